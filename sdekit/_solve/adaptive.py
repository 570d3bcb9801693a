"""The loop in which each sample has its own time, step and error, for ordinary and stochastic
equations.

Everything that decides about steps (times, errors, rows) is kept on the host in NumPy arrays,
whatever the device of the states: a round of steps reads its errors and nothing else, unless there
are events, the solver iterates (Newton's method, GMRES) or it keeps Jacobians of some samples
(Rosenbrock methods). What the device needs is copied there without waiting.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import AbstractNoise, Increment, Reader
from sdekit._solve.active import (
    AcceptedSteps,
    ActiveSamples,
    Flags,
    Host,
    Results,
    Rows,
    called_for_some,
    on_host,
    scatter_rows,
    take,
    tensors,
    to_device,
    where,
)
from sdekit._solve.control import PIDController
from sdekit._solve.counted import Counted
from sdekit._solve.dense import Dense, Piece, cubic, cubic_data
from sdekit._solve.events import EventSearch
from sdekit._solve.intervals import DyadicIntervals, FreeIntervals, Interval
from sdekit._solve.passage import StepBatch
from sdekit._solve.solution import Solution, Status
from sdekit._solvers import AbstractSolver
from sdekit._solvers.contract import Step, Tree
from sdekit.calling import version_of
from sdekit.elementary import broadcast


class Attempt(NamedTuple):
    """What the solver receives in a round, in which every active sample tries a step from start to
    stop, the ends of `interval`; context: in which it is called.
    """

    interval: Interval
    problem: Counted
    start: Tensor
    stop: Tensor
    increment: Increment
    context: AbstractContextManager[None]


class AdaptiveSolve:
    """The state of a solve with adaptive steps.

    full_problem: the problem of the full batch. problem, reader: the problem and the noise of the
    active samples. rounds: the number of rounds so far, in each of which every active sample tries
    a step.
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
        callback: Callable[[AcceptedSteps], None] | None = None,
        search: EventSearch | None = None,
        record: Dense | None = None,
    ) -> None:
        self.full_problem = self.problem = problem
        self.solver = solver
        self.power = solver.estimate_power(problem.noise_type)
        self.noise = noise
        self.control = control
        self.callback = callback
        self.search = search
        self.record = record
        self.device = x0.device
        self.outputs = np.array(ts, dtype=np.float64)
        if noise is None:
            self.intervals = FreeIntervals.of(ts, control, problem.jumps)
        else:
            self.intervals = DyadicIntervals.of(ts, noise.tree, problem.jumps)
        self.jumps = np.array([float(t) for t in problem.jumps])
        self.results = Results.of(x0, ts, save=save)
        self.active = self._initial_samples(x0, ts)
        self.reader = self._reader(noise, x0)
        self.rounds = 0

    def run(self) -> tuple[Solution, Tensor]:
        """Solves; returns the solution and the times that the samples reached."""
        # The solver is called here, not deeper, so that few calls lie between a solve and a drift.
        self.active.state = self.solver.init(*self._beginning())
        while len(self.active.index):
            active = self.active
            attempt = self._attempt()
            _, problem, start, stop, noise, context = attempt
            with context:
                step = self.solver.step(problem, start, stop, active.x, noise, active.state)
            self._finish(attempt, step)
            del active, attempt, noise, step  # else they are in memory during the next step
        self.problem.require_unchanged()
        seed = None if self.noise is None else self.noise.seed
        solution = self.results.solution(torch.from_numpy(self.outputs), seed)
        if self.search is not None:
            solution = self.search.stopped_solution(solution)
        (reached,) = to_device(self.device, self.results.reached)
        return solution, reached

    def _evaluating(self, rows: int) -> AbstractContextManager[None]:
        """The context of calls of the equation for some rows. An equation that does not define
        `rows` may hold values of all samples, of which it cannot select those of the rows.
        """
        total = self.results.x.shape[0]
        has_rows = type(self.full_problem.problem).rows is not AbstractSDE.rows
        return nullcontext() if has_rows or rows == total else called_for_some(rows, total)

    def _initial_samples(self, x0: Tensor, ts: list[float]) -> ActiveSamples:
        """The samples before their first steps."""
        span = abs(ts[-1] - ts[0])
        first = self.control.first
        t = np.full(len(x0), ts[0])
        (start,) = to_device(self.device, t)
        problem = self._between_jumps(self.problem, t, np.full_like(t, ts[-1]))
        if first is None and self.noise is None:
            end = torch.full_like(start, ts[-1])
            h = on_host(_first_step(problem, start, x0, self.control, self.power, end))
        else:
            h = np.full_like(t, min(first or 0.1 * span, span))
        return ActiveSamples.of(x0, t, np.full_like(t, span), h, ())

    def _beginning(self) -> tuple[Counted, Tensor, Tensor]:
        """What the solver receives before the first steps: the problem, the time and the states."""
        t = self.active.t
        (start,) = to_device(self.device, t)
        problem = self._between_jumps(self.problem, t, np.full_like(t, self.outputs[-1]))
        # Values that are not finite are replaced by 0: they would make the gradients of their
        # factors NaN.
        return problem, start, torch.nan_to_num(self.active.x, 0.0, 0.0, 0.0)

    def _reader(self, noise: AbstractNoise | None, x: Tensor) -> Reader | None:
        """A reader of the noise between two times per sample; None without noise."""
        if noise is None:
            return None
        return noise.reader(x, self.problem.noise_shape(x), levy=self.solver.levy == "H")

    def _attempt(self) -> Attempt:
        """The next steps of all active samples."""
        active = self.active
        interval = self.intervals.after(active)
        times = torch.from_numpy(active.t), torch.from_numpy(interval.t1)
        increment = self.reader(*times) if self.reader else Increment()
        start, stop = (t.to(self.device, non_blocking=True) for t in times)
        # A solver that keeps Jacobians computes those of some samples only.
        some = self.solver.differentiates and self.rounds > 0
        problem = self._between_jumps(self.problem, active.t, interval.t1)
        context = self._evaluating(0 if some else start.shape[0])
        return Attempt(interval, problem, start, stop, increment, context)

    def _finish(self, attempt: Attempt, step: Step) -> None:
        """Accepts or rejects the steps of a round, and records the samples that have finished or
        failed.
        """
        active = self.active
        interval, _, start, stop, increment, _ = attempt
        retried = self.solver.retried(active.state, step.state)
        q, accept = self._accept(interval, start, stop, step)
        if step.x.requires_grad and not accept.all():
            step = self._accepted_step(interval.t1, increment, accept)
        ended, x = self._stopped(start, stop, interval, accept, step)
        if self.callback is not None and accept.any():
            (end,) = to_device(self.device, ended.t1)
            _call(self.callback, _accepted_steps(active, start, end, accept, step._replace(x=x)))
        if self.record is not None:
            self._record(self.record, interval.t1, accept, step)
        if self.results.xs is not None and len(self.outputs) > 2:
            self._output(self.results.xs, interval.t1, accept, step, increment)
        active.advance(ended.t1, ended.remaining, accept, x, (step.state, retried))
        if len(self.jumps):
            crossed = accept & np.isin(active.t, self.jumps) & (active.remaining > 0)
            if crossed.any():
                self._restart(crossed)
        self.rounds += 1
        if self.rounds == self.control.max_steps or self.intervals.may_end(active):
            self._record_ended(interval, q, accept)

    def _between_jumps(self, problem: Counted, t0: Host, t1: Host) -> Counted:
        """The problem for steps from t0 to t1, with times at a jump of the drift moved to the side
        of the step, in spite of the rounding of times for states in single precision.
        """
        if not len(self.jumps):
            return problem
        dtype = torch.float64 if self.results.x.dtype == torch.float64 else torch.float32
        eps = torch.finfo(dtype).eps
        largest = np.abs(self.outputs).max()
        gap = 4 * eps * np.maximum(np.abs((t0, t1)), eps * largest)
        gap = np.minimum(gap, np.abs(t1 - t0) / 4) * np.isin((t0, t1), self.jumps)
        direction = np.sign(t1 - t0)
        ends = t0 + direction * gap[0], t1 - direction * gap[1]
        low, high = to_device(self.device, np.minimum(*ends), np.maximum(*ends))
        return problem.limited(low, high)

    def _restart(self, crossed: Flags) -> None:
        """What the solver passes from step to step, computed again beyond a jump of the drift."""
        active = self.active
        rows = crossed.nonzero()[0]
        t = active.t[rows]
        index, start, own, there = to_device(self.device, active.index[rows], t, rows, crossed)
        problem = Counted(self.full_problem.problem.rows(index), self.full_problem.copies)
        beyond = t + math.copysign(1.0, self.outputs[-1] - self.outputs[0]) * active.h[rows]
        with self._evaluating(len(rows)):
            state = self.solver.init(self._between_jumps(problem, t, beyond), start, active.x[own])
        active.state = where(there, scatter_rows(state, own, len(crossed)), active.state)
        more = np.zeros_like(active.index)
        more[rows] = problem.evaluations
        active.output_evaluations = active.output_evaluations + more

    def _stopped(
        self, start: Tensor, stop: Tensor, interval: Interval, accept: Flags, step: Step
    ) -> tuple[Interval, Tensor]:
        """The interval and the states at its end. For a sample that an event stops, the interval
        ends at the event.
        """
        if self.search is None:
            return interval, step.x
        active = self.active

        def within(rows: Tensor) -> Callable[[Tensor], Tensor]:
            data = self._dense(interval.t1, step, on_host(rows, np.int64))
            return partial(self._interpolant(step), data)

        index, accepted = to_device(self.device, active.index, accept & (active.ended == 0))
        problem = Counted.of(self.problem.problem, active.x)
        zeros = self.search.locate(
            StepBatch(
                index, accepted, start, stop, active.x, step.x, problem,
                within if self.noise is None else None,
            )
        )  # fmt: skip
        if zeros is None or not self.search.event.terminal:
            return interval, step.x
        rows = on_host(zeros.rows, np.int64)
        t1 = interval.t1.copy()
        t1[rows] = on_host(zeros.t)
        remaining = interval.remaining.copy()
        remaining[rows] = 0.0
        x = step.x.index_copy(0, zeros.rows, zeros.x)
        return interval._replace(t1=t1, remaining=remaining), x

    def _accept(
        self, interval: Interval, start: Tensor, stop: Tensor, step: Step
    ) -> tuple[Host, Flags]:
        """q of each sample, its error relative to the tolerance, and whether its step is accepted;
        sets the length of the next step.
        """
        active = self.active
        control = self.control
        problem = self.problem
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            ends = problem.physical(start, active.x), problem.physical(stop, step.x)
            quotient = self.solver.quotient(
                lambda error: control.error(problem.physical(stop, error), *ends), step.error
            )
        q = on_host(quotient)
        accept = q <= 1
        factor = control.factor(q, active.previous, self.power)
        allowed = self.intervals.allowed(active, interval, factor)
        active.h = allowed * factor
        if control.uses_history:
            latest = np.empty_like(active.previous)
            np.maximum(q, 1e-10, out=latest[:, 0])
            latest[:, 1] = active.previous[:, 0]
            active.previous = np.where(accept[:, None], latest, active.previous)
        return q, accept

    def _accepted_step(self, t1: Host, increment: Increment, accept: Flags) -> Step:
        """The step repeated for the accepted samples only, for gradients: a rejected step that is
        not finite would make all gradients NaN.
        """
        active = self.active
        accepted = accept.nonzero()[0]
        if not len(accepted):
            return Step(active.x, dense=None, state=active.state)
        index, start, stop, rows = to_device(
            self.device, active.index[accepted], active.t[accepted], t1[accepted], accepted
        )
        problem = Counted(self.full_problem.problem.rows(index), self.full_problem.copies)
        problem = self._between_jumps(problem, active.t[accepted], t1[accepted])
        noise = Increment(*(None if part is None else part[rows] for part in increment))
        state = take(active.state, rows)
        with self._evaluating(len(rows)):
            step = self.solver.step(problem, start, stop, active.x[rows], noise, state)
        x = active.x.index_copy(0, rows, step.x)
        dense = None if step.dense is None else scatter_rows(step.dense, rows, len(accept))
        return Step(x, dense=dense, state=scatter_rows(step.state, rows, len(accept)))

    def _record(self, dense: Dense, t1: Host, accept: Flags, step: Step) -> None:
        """Keeps the accepted steps."""
        active = self.active
        rows = (accept & (active.ended == 0)).nonzero()[0]
        if not len(rows):
            return
        index, start, stop, samples = to_device(
            self.device, active.index[rows], active.t[rows], t1[rows], rows
        )
        if self.noise is None:
            dense.cubic = step.dense is None
            data = self._dense(t1, step, rows)
        else:
            data = (active.x[samples], step.x[samples])
        dense.pieces.append(Piece(index, start, stop, data))

    def _output(
        self,
        xs: Tensor,
        t1: Host,
        accept: Flags,
        step: Step,
        increment: Increment,
    ) -> None:
        """Writes the states at the output times that accepted steps pass; the last output is that
        of the end.

        With noise a bridge of the path is used: g times the deviation of W from a straight line is
        added to the linear interpolation of x. Without it the variance in the middle of a step
        would be half as large.
        """
        active = self.active
        outputs = self.outputs
        direction = 1 if outputs[-1] > outputs[0] else -1
        passed = np.searchsorted(direction * outputs[:-1], direction * t1, side="right")
        counts = np.where(accept, np.maximum(passed - active.next_output, 0), 0)
        row = np.arange(len(counts)).repeat(counts)
        if not len(row):
            return
        # All outputs of all samples at once, one row each.
        output = active.next_output[row] + np.arange(len(row)) - (counts.cumsum() - counts)[row]
        t0 = active.t[row]
        times = outputs[output]
        start, theta, samples, outputs_there, index = to_device(
            self.device, t0, (times - t0) / (t1[row] - t0), row, output, active.index[row]
        )
        if self.noise is None or increment.w is None:
            x = self._interpolant(step)(self._dense(t1, step, row), theta)
        else:
            problem = self.full_problem.rows(index)
            x0 = active.x[samples]
            x1 = step.x[samples]
            reader = self.noise.rows(index).reader(x0, problem.noise_shape(x0), levy=False)
            w = reader(torch.from_numpy(t0), torch.from_numpy(times)).w
            assert w is not None
            bridge = w - broadcast(theta, w) * increment.w[samples]
            x = problem.diffuse(start, x0, bridge, torch.lerp(x0, x1, broadcast(theta, x0)))
        xs[outputs_there, index] = x
        active.next_output = active.next_output + counts

    def _interpolant(self, step: Step) -> Callable[[Tree, Tensor], Tensor]:
        """The function of `_dense` and theta that returns states within a step."""
        return cubic if step.dense is None else self.solver.interpolate

    def _dense(self, t1: Host, step: Step, row: Rows) -> Tree:
        """The data of the interpolation, one row per output, computed once per sample with outputs;
        its evaluations are counted: two where the step returned none, for the slopes at both ends.
        """
        active = self.active
        rows, inverse = np.unique(row, return_inverse=True)
        index, start, stop, samples, repeated = to_device(
            self.device, active.index[rows], active.t[rows], t1[rows], rows, inverse
        )
        problem = Counted(self.full_problem.problem.rows(index), self.full_problem.copies)
        limited = self._between_jumps(problem, active.t[rows], t1[rows])
        with self._evaluating(len(rows)):
            if step.dense is None:
                dense = cubic_data(limited, start, stop, active.x[samples], step.x[samples])
            else:
                dense = self.solver.dense(limited, start, stop, take(step.dense, samples))
        more = np.zeros_like(active.index)
        more[rows] = problem.evaluations
        active.output_evaluations = active.output_evaluations + more
        return take(dense, repeated)

    def _record_ended(self, interval: Interval, q: Host, accept: Flags) -> None:
        """Stores the results of the samples that finished or failed in this round."""
        active = self.active
        exhausted = self.rounds == self.control.max_steps
        done = active.remaining == 0
        too_short = self.intervals.too_short(active, interval) & ~accept
        rows = ((done | too_short | exhausted) & (active.ended == 0)).nonzero()[0]
        if not len(rows):
            return
        moved = interval.t1 != active.t  # a step of length 0 may be infinite or NaN
        stuck = np.where(np.isinf(q) & moved, Status.NOT_FINITE, Status.UNDERFLOW)
        failure = np.where(too_short, stuck, Status.TOO_MANY_STEPS)
        status = np.where(done, Status.DONE, failure)
        self.results.keep(active, rows, status, self.rounds, self.problem.evaluations)
        active.ended[rows] = math.inf
        active.h[rows] = 0.0
        # With noise they are removed at once, because steps of length 0 could make gradients NaN,
        # and with events, because they are not at the end; else several at a time, which is
        # cheaper.
        active_rows = (active.ended == 0).nonzero()[0]
        at_once = self.noise is not None or self.search is not None
        limit = len(active.ended) - 1 if at_once else 7 * len(active.ended) // 8
        if exhausted or len(active_rows) <= limit:
            self._restrict(active_rows)

    def _restrict(self, rows: Rows) -> None:
        """Continues with these samples only."""
        self.active = active = self.active.rows(rows)
        (index,) = to_device(self.device, active.index)
        self.problem = self.full_problem.rows(index)
        self.reader = self._reader(self.noise and self.noise.rows(index), active.x)


def _accepted_steps(
    active: ActiveSamples, t0: Tensor, t1: Tensor, accept: Flags, step: Step
) -> AcceptedSteps:
    """The accepted steps of the samples that have not ended."""
    rows = (accept & (active.ended == 0)).nonzero()[0]
    index, active_rows = to_device(t0.device, active.index, rows)
    parts = (index, t0, t1, step.x, () if step.dense is None else step.dense)
    samples, t0, t1, x, dense = parts if len(rows) == len(accept) else take(parts, active_rows)
    return AcceptedSteps(samples, t0, t1, x, None if step.dense is None else dense)


def _call(callback: Callable[[AcceptedSteps], None], accepted: AcceptedSteps) -> None:
    """Calls a callback, and refuses it if it changes what it receives, from which the solve
    continues.

    Raises:
        RuntimeError: with what to do.
    """
    parts = tensors(accepted)
    versions = [version_of(part) for part in parts]
    callback(accepted)
    if versions != [version_of(part) for part in parts]:
        raise RuntimeError(
            "the callback changed a tensor of the accepted steps in place, which would change the "
            "solve: change a copy, such as that by x.clone()"
        )


def _first_step(
    problem: Counted, t: Tensor, x: Tensor, control: PIDController, power: float, end: Tensor
) -> Tensor:
    """The first step of each sample of an ordinary equation by two evaluations (Hairer, Norsett and
    Wanner 1993, II.4).
    """
    sign = (end - t).sign()
    span = (end - t).abs()
    with torch.no_grad():
        slope = problem.drift(t, x)
        size, speed = (
            control.error(problem.physical(t, value), *[problem.physical(t, x)] * 2)
            for value in (x, slope)
        )
        length = torch.where(
            (size < 1e-5) | (speed < 1e-5), 1e-6 * span, 0.01 * size / speed
        ).minimum(span)
        # lerp returns the end exactly, not a time beyond it by rounding.
        end_slope = problem.drift(
            torch.lerp(t, end, length / span), torch.addcmul(x, broadcast(sign * length, x), slope)
        )
        curvature = (
            control.error(problem.physical(t, end_slope - slope), *[problem.physical(t, x)] * 2)
            / length
        )
        # The slope may be infinite or NaN there.
        rate = torch.maximum(speed, curvature).clamp(max=1e30)
        second_length = torch.where(
            rate <= 1e-15, 1e-3 * length, ((0.01 / rate).log() / power).exp()
        )
        length = torch.minimum(100 * length, second_length)
        # It is 0 or NaN for an infinite slope.
        return torch.where(length > 0, length, 1e-6 * span).minimum(span)
