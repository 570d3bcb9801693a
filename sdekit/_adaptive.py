"""The loop in which each sample has its own time, step and error, for ordinary and stochastic equations.

Steps of a stochastic equation are dyadic intervals: a rejected step is halved, and the walk comes by the time it had tried
before. So all that was learned of the path is used, and results are consistent for every kind of noise; and the path is read
where it costs least.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._control import PIDController
from sdekit._grid import Dyadic
from sdekit._noise import AbstractNoise, Increment, Reader
from sdekit._solution import Counted, Solution, Status
from sdekit._solver import AbstractSolver
from sdekit._solver._contract import Step, Tree
from sdekit.elementary import broadcast


def take(tree: Tree, rows: Tensor) -> Tree:
    """Some rows of every tensor."""
    return tree[rows] if isinstance(tree, Tensor) else tuple(take(part, rows) for part in tree)


def where(accept: Tensor, new: Tree, old: Tree) -> Tree:
    """By row, the new or the old of every tensor."""
    if isinstance(new, Tensor):
        return torch.where(accept.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return tuple(where(accept, a, b) for a, b in zip(new, old, strict=True))


@dataclass
class _Working:
    """The samples still on their way; tensors with the batch first.

    index: their rows in the whole batch. left: the time to the end. h: the length of the next step, without sign. before: q of
    the last two accepted steps. due: the number of the output that comes next. gone: infinity for those that have finished or
    failed and not left yet, else 0.
    """

    index: Tensor
    x: Tensor
    t: Tensor
    left: Tensor
    h: Tensor
    state: Tree
    before: Tensor
    accepted: Tensor
    due: Tensor
    gone: Tensor

    def rows(self, keep: Tensor) -> "_Working":
        parts = (self.index, self.x, self.t, self.left, self.h, self.state, self.before, self.accepted, self.due, self.gone)
        return _Working(*take(parts, keep))


def adaptive(
    problem: Counted,
    x0: Tensor,
    ts: list[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None,
    control: PIDController,
    save: bool,
) -> tuple[Solution, Tensor]:
    """The solution, and the times that the samples reached."""
    assert solver.embedded is not None
    whole, power, total = problem, solver.embedded, len(x0)
    direction, span, levy = (1 if ts[-1] > ts[0] else -1), abs(ts[-1] - ts[0]), solver.levy == "H"
    outputs = torch.tensor(ts, dtype=torch.float64, device=x0.device)
    end, ladder = outputs[-1], None if noise is None else _ladder(noise.tree, ts)
    floor = 16 * torch.finfo(torch.float64).eps * max(map(abs, ts)) if ladder is None else 0.5 * ladder.finest
    # What there is to return.
    x_end, reached = torch.full_like(x0, torch.nan), outputs.new_empty(total)
    evaluations, accepted, rejected, status = reached.new_zeros(4, total, dtype=torch.int64)
    xs = x0.new_full((len(ts), *x0.shape), torch.nan) if save else None
    if xs is not None:
        xs[0] = x0

    t = reached.new_full((total,), ts[0])
    h = _first(problem, t, x0, control, power, direction, span)
    index, state = torch.arange(total, device=t.device), solver.init(problem, t, x0)
    zero, ones = torch.zeros_like(t), torch.ones_like(index)
    now = _Working(index, x0, t, zero + span, h, state, t.new_ones(total, 2), 0 * ones, ones, zero)
    read = noise and noise.reader(x0, problem.noise_shape(x0), levy=levy)
    tries = 0
    while len(now.index):
        if ladder is None:
            length = torch.minimum(now.h, now.left)
            left = now.left - length
            t1 = torch.add(end, left, alpha=-direction)
        else:
            t1 = ladder.after(now.t, now.h, direction)
            left, length = (end - t1).abs(), (t1 - now.t).abs()
        increment = read(now.t, t1) if read else Increment()
        step = solver.step(problem, now.t, t1, now.x, increment, now.state)
        with torch.no_grad():
            q = control.error(problem.physical(t1, step.error), problem.physical(now.t, now.x), problem.physical(t1, step.x))
            accept = q <= 1
            now.h = length.mul_(control.factor(q, now.before, power))
            if control.remembers:
                now.before = where(accept, torch.stack([q.clamp(min=1e-10), now.before[:, 0]], dim=1), now.before)
        if xs is not None:
            _output(xs, outputs, problem, solver, now, t1, accept, step, increment, read)
        tries, now.accepted = tries + 1, now.accepted + accept
        now.x, now.state = where(accept, (step.x, step.state), (now.x, now.state))
        now.t, now.left = torch.where(accept, t1, now.t), torch.where(accept, left, now.left)
        last = tries == control.max_steps
        if not last and not bool(torch.minimum(now.left, now.h).add_(now.gone).amin() <= 2 * floor):
            continue
        # Somebody may have finished or failed.
        done, short = now.left == 0, (now.h < floor) & ~accept
        new = ((done | short | last) & (now.gone == 0)).nonzero().flatten()
        index = now.index[new]
        why = torch.where(short, torch.where(q.isinf(), Status.NOT_FINITE, Status.UNDERFLOW), Status.TOO_MANY_STEPS)
        status[index], reached[index] = torch.where(done, Status.DONE, why)[new], now.t[new]
        accepted[index], rejected[index], evaluations[index] = now.accepted[new], tries - now.accepted[new], problem.evaluations
        x_end[index] = torch.where(broadcast(done[new], now.x) != 0, now.x[new], torch.nan)
        now.gone[new], now.h[new] = math.inf, 0.0
        # They leave at once where a step of length 0 could spoil gradients, else together, which is cheaper.
        stay = (now.gone == 0).nonzero().flatten()
        if last or (len(stay) < len(now.gone) if ladder else 8 * len(stay) <= 7 * len(now.gone)):
            now = now.rows(stay)
            problem = whole.rows(now.index)
            read = noise and noise.rows(now.index).reader(now.x, problem.noise_shape(now.x), levy=levy)
    if xs is not None:
        xs[-1] = x_end
    seed = None if noise is None else noise.seed
    return Solution(x_end, outputs.cpu(), xs, seed, evaluations, accepted, rejected, status), reached


def _ladder(tree: Dyadic, ts: list[float]) -> Dyadic:
    """The dyadic times of a path between the ends of a solve."""
    low, high = min(ts[0], ts[-1]), max(ts[0], ts[-1])
    return Dyadic((low, *(knot for knot in tree.knots if low < knot < high), high), tree.depth)


def _first(problem: Counted, t: Tensor, x: Tensor, control: PIDController, power: float, direction: int, span: float) -> Tensor:
    """The length of the first step of each sample (Hairer, Norsett and Wanner 1993, section II.4), two evaluations."""
    if control.first is not None:
        return torch.full_like(t, min(control.first, span))
    with torch.no_grad():
        slope = problem.drift(t, x)
        size, speed = (control.error(problem.physical(t, v), *[problem.physical(t, x)] * 2) for v in (x, slope))
        h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6 * span, 0.01 * size / speed).clamp(max=span)
        there = problem.drift(t + direction * h, torch.addcmul(x, broadcast(direction * h, x), slope))
        bend = control.error(problem.physical(t, there - slope), *[problem.physical(t, x)] * 2) / h
        fastest = torch.maximum(speed, bend)
        second = torch.where(fastest <= 1e-15, 1e-3 * h, ((0.01 / fastest).log() / power).exp())
        return torch.nan_to_num(torch.minimum(100 * h, second), nan=1e-6 * span).clamp(max=span)


def _output(
    xs: Tensor,
    outputs: Tensor,
    problem: Counted,
    solver: AbstractSolver,
    now: _Working,
    t1: Tensor,
    accept: Tensor,
    step: Step,
    increment: Increment,
    read: Reader | None,
) -> None:
    """Writes the states at the output times that accepted steps go by; the last output is the end of the solve.

    With noise the path is bridged: between the ends x moves with g times what W does beyond a straight line, so that it has
    the variance of the path there, and not that of a straight line, half as much in the middle.
    """
    direction = 1 if outputs[-1] > outputs[0] else -1
    while True:
        at = outputs[now.due.clamp(max=len(outputs) - 1)]
        passed = accept & (now.due < len(outputs) - 1) & (direction * (t1 - at) >= 0)
        if not bool(passed.any()):
            return
        theta = ((at - now.t) / (t1 - now.t)).clamp(0, 1)
        if read is None or increment.w is None:
            x = solver.interpolate((now.x, step.x) if step.dense is None else step.dense, theta)
        else:
            part = read(now.t, torch.where(passed, at, t1)).w
            assert part is not None
            bend = part - broadcast(theta, part) * increment.w
            x = problem.diffuse(now.t, now.x, bend, torch.lerp(now.x, step.x, broadcast(theta, now.x)))
        xs[now.due[passed], now.index[passed]] = x[passed]
        now.due = now.due + passed
