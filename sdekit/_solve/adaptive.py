"""The loop in which each sample has its own time, step and error, for ordinary and stochastic
equations.

What decides on steps, times, errors and rows, is kept on the host, however the states are kept: a
round reads the errors of its steps, and nothing else. What the device needs of it is copied there
without waiting.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdekit._noise.white import AbstractNoise, Increment, Reader
from sdekit._solve.control import PIDController
from sdekit._solve.counted import Counted
from sdekit._solve.intervals import DyadicIntervals, FreeIntervals, Interval
from sdekit._solve.solution import Solution, Status
from sdekit._solve.working import Found, Move, Working, spread, take, where
from sdekit._solvers import AbstractSolver
from sdekit._solvers.contract import Step, Tree
from sdekit.elementary import broadcast


class AdaptiveSolve:
    """A solve with adaptive steps, under way.

    whole: the problem of the whole batch. problem, read: the problem and the noise of the samples
    in `now`. tries: the rounds so far, in each of which every sample tries a step.
    """

    def __init__(
        self,
        problem: Counted,
        x0: Tensor,
        ts: list[float],
        *,
        solver: AbstractSolver,
        noise: AbstractNoise | None,
        control: PIDController,
        save: bool,
        callback: Callable[[Move], None] | None = None,
    ) -> None:
        assert solver.embedded is not None
        self.whole = self.problem = problem
        self.solver = solver
        self.power = solver.embedded
        self.noise = noise
        self.control = control
        self.callback = callback
        self.device = x0.device
        self.outputs = torch.tensor(ts, dtype=torch.float64)
        if noise is None:
            self.intervals = FreeIntervals.of(ts, control)
        else:
            self.intervals = DyadicIntervals.of(ts, noise.tree)
        self.found = Found.of(x0, ts, save=save)
        self.now = self._start(x0, ts)
        self.read = self._reader(noise, x0)
        self.tries = 0

    def run(self) -> tuple[Solution, Tensor]:
        """The solution, and the times that the samples reached."""
        while len(self.now.index):
            self._round()
        self.problem.require_unchanged()
        seed = None if self.noise is None else self.noise.seed
        return self.found.solution(self.outputs, seed), self.found.reached.to(self.device)

    def _start(self, x0: Tensor, ts: list[float]) -> Working:
        """The samples before their first steps."""
        span = abs(ts[-1] - ts[0])
        first = self.control.first
        t = self.outputs.new_full((len(x0),), ts[0])
        start = t.to(self.device)
        if first is None and self.noise is None:
            end = torch.full_like(start, ts[-1])
            h = _first(self.problem, start, x0, self.control, self.power, end).cpu()
        else:
            h = torch.full_like(t, min(first or 0.1 * span, span))
        # Zeros for what is not finite, which would make the gradient of whatever it is multiplied
        # with NaN.
        state = self.solver.init(self.problem, start, torch.nan_to_num(x0, 0.0, 0.0, 0.0))
        return Working.of(x0, t, torch.full_like(t, span), h, state)

    def _reader(self, noise: AbstractNoise | None, x: Tensor) -> Reader | None:
        """The noise of steps from times to times, None where there is none."""
        if noise is None:
            return None
        return noise.reader(x, self.problem.noise_shape(x), levy=self.solver.levy == "H")

    def _round(self) -> None:
        """Tries a step of each sample, and records those that have finished or failed."""
        now = self.now
        interval = self.intervals.after(now)
        increment = self.read(now.t, interval.t1) if self.read else Increment()
        start = now.t.to(self.device, non_blocking=True)
        stop = interval.t1.to(self.device, non_blocking=True)
        step = self.solver.step(self.problem, start, stop, now.x, increment, now.state)
        q, accept = self._judge(interval, start, stop, step)
        if step.x.requires_grad and not bool(accept.all()):
            step = self._again(interval.t1, increment, accept)
        if self.callback is not None and bool(accept.any()):
            self.callback(_moved(now, start, stop, accept, step))
        if self.found.xs is not None and len(self.outputs) > 2:
            self._output(self.found.xs, interval.t1, accept, step, increment)
        now.advance(interval.t1, interval.left, accept, step.x, step.state)
        self.tries += 1
        if self.tries == self.control.max_steps or self.intervals.may_end(now):
            self._record(interval, q, accept)

    def _judge(
        self, interval: Interval, start: Tensor, stop: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """q of each sample, its error relative to the tolerance, and whether its step is accepted;
        sets the length of the next one.
        """
        now = self.now
        control = self.control
        problem = self.problem
        with torch.no_grad():
            ends = problem.physical(start, now.x), problem.physical(stop, step.x)
            q = self.solver.quotient(
                lambda error: control.error(problem.physical(stop, error), *ends), step.error
            ).cpu()
            accept = q <= 1
            factor = control.factor(q, now.before, self.power)
            allowed = self.intervals.allowed(now, interval, factor)
            now.h = allowed * factor
            if control.remembers:
                now.before = where(
                    accept, torch.stack([q.clamp(min=1e-10), now.before[:, 0]], dim=1), now.before
                )
        return q, accept

    def _again(self, t1: Tensor, increment: Increment, accept: Tensor) -> Step:
        """The step of those that are accepted, recorded for gradients: a trial that is not finite
        would make them all NaN.
        """
        now = self.now
        rows = accept.nonzero().flatten()
        if not len(rows):
            return Step(now.x, dense=None, state=now.state)
        index, t0, t1, rows = _sent(self.device, now.index[rows], now.t[rows], t1[rows], rows)
        problem = self.whole.problem.rows(index)
        noise = Increment(*(None if part is None else part[rows] for part in increment))
        step = self.solver.step(problem, t0, t1, now.x[rows], noise, take(now.state, rows))
        x = now.x.index_copy(0, rows, step.x)
        dense = None if step.dense is None else spread(step.dense, rows, len(accept))
        return Step(x, dense=dense, state=spread(step.state, rows, len(accept)))

    def _output(
        self, xs: Tensor, t1: Tensor, accept: Tensor, step: Step, increment: Increment
    ) -> None:
        """Writes the states at the output times that accepted steps go by; the last output is the
        end of the solve.

        With noise the path is bridged: between the ends x moves with g times what W does beyond a
        straight line, so that it has the variance of the path there, and not that of a straight
        line, half as much in the middle.
        """
        now = self.now
        outputs = self.outputs
        direction = 1 if outputs[-1] > outputs[0] else -1
        passed = torch.searchsorted(direction * outputs[:-1], direction * t1, right=True) - now.due
        passed = torch.where(accept, passed.clamp(min=0), 0)
        row = torch.arange(len(passed)).repeat_interleave(passed)
        if not len(row):
            return
        # All outputs of all samples at once, a row each.
        number = now.due[row] + torch.arange(len(row)) - (passed.cumsum(0) - passed)[row]
        t0 = now.t[row]
        at = outputs[number]
        theta = (at - t0) / (t1[row] - t0)
        start, theta, those, number, index = _sent(
            self.device, t0, theta, row, number, now.index[row]
        )
        if self.noise is None or increment.w is None:
            x = self.solver.interpolate(self._dense(t1, step, row), theta)
        else:
            problem = self.whole.rows(index)
            x0 = now.x[those]
            x1 = step.x[those]
            read = self.noise.rows(index).reader(x0, problem.noise_shape(x0), levy=False)
            part = read(t0, at).w
            assert part is not None
            bend = part - broadcast(theta, part) * increment.w[those]
            x = problem.diffuse(start, x0, bend, torch.lerp(x0, x1, broadcast(theta, x0)))
        xs[number, index] = x
        now.due = now.due + passed

    def _dense(self, t1: Tensor, step: Step, row: Tensor) -> Tree:
        """What the solver interpolates, a row an output, made once for each sample that has any;
        its evaluations are counted.
        """
        now = self.now
        rows, of = row.unique_consecutive(return_inverse=True)
        index, start, stop, those, of = _sent(
            self.device, now.index[rows], now.t[rows], t1[rows], rows, of
        )
        problem = Counted(self.whole.problem.rows(index), self.whole.copies)
        dense = (now.x, step.x) if step.dense is None else step.dense
        dense = self.solver.dense(problem, start, stop, take(dense, those))
        now.extra = now.extra.index_add(0, rows, torch.full_like(rows, problem.evaluations))
        return take(dense, of)

    def _record(self, interval: Interval, q: Tensor, accept: Tensor) -> None:
        """Writes down the samples that have finished or failed in this round."""
        now = self.now
        last = self.tries == self.control.max_steps
        done = now.left == 0
        short = self.intervals.too_short(now, interval) & ~accept
        new = ((done | short | last) & (now.gone == 0)).nonzero().flatten()
        if not len(new):
            return
        why = torch.where(
            short,
            torch.where(q.isinf(), Status.NOT_FINITE, Status.UNDERFLOW),
            Status.TOO_MANY_STEPS,
        )
        status = torch.where(done, Status.DONE, why)
        self.found.keep(now, new, status, self.tries, self.problem.evaluations)
        now.gone[new] = math.inf
        now.h[new] = 0.0
        # They leave at once where a step of length 0 could spoil gradients, else together, which is
        # cheaper.
        stay = (now.gone == 0).nonzero().flatten()
        most = len(now.gone) - 1 if self.noise is not None else 7 * len(now.gone) // 8
        if last or len(stay) <= most:
            self._keep(stay)

    def _keep(self, rows: Tensor) -> None:
        """Goes on with these samples alone."""
        self.now = now = self.now.rows(rows)
        index = now.index.to(self.device, non_blocking=True)
        self.problem = self.whole.rows(index)
        self.read = self._reader(self.noise and self.noise.rows(index), now.x)


def _sent(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Small tensors of the host on a device, without waiting for what is queued there."""
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def _moved(now: Working, t0: Tensor, t1: Tensor, accept: Tensor, step: Step) -> Move:
    """The steps that count: those accepted of samples that are still on their way."""
    rows = (accept & (now.gone == 0)).nonzero().flatten()
    index, those = _sent(t0.device, now.index, rows)
    parts = (index, t0, t1, step.x, () if step.dense is None else step.dense)
    samples, t0, t1, x, dense = parts if len(rows) == len(accept) else take(parts, those)
    return Move(samples, t0, t1, x, None if step.dense is None else dense)


def _first(
    problem: Counted, t: Tensor, x: Tensor, control: PIDController, power: float, end: Tensor
) -> Tensor:
    """The first step of each sample of an ordinary equation by two evaluations (Hairer, Norsett and
    Wanner 1993, II.4).
    """
    way = (end - t).sign()
    span = (end - t).abs()
    with torch.no_grad():
        slope = problem.drift(t, x)
        size, speed = (
            control.error(problem.physical(t, v), *[problem.physical(t, x)] * 2) for v in (x, slope)
        )
        h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6 * span, 0.01 * size / speed).minimum(
            span
        )
        # lerp ends on the end itself, not a rounding beyond it.
        there = problem.drift(
            torch.lerp(t, end, h / span), torch.addcmul(x, broadcast(way * h, x), slope)
        )
        bend = control.error(problem.physical(t, there - slope), *[problem.physical(t, x)] * 2) / h
        # There may be no slope at all so far away.
        fastest = torch.maximum(speed, bend).clamp(max=1e30)
        second = torch.where(fastest <= 1e-15, 1e-3 * h, ((0.01 / fastest).log() / power).exp())
        h = torch.minimum(100 * h, second)
        return torch.where(h.isnan(), 1e-6 * span, h).minimum(span)
