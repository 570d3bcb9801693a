"""The loop in which each sample has its own time, step and error, for ordinary and stochastic
equations.

What decides on steps, times, errors and rows, is kept on the host, however the states are kept: a
round reads the errors of its steps, and nothing else. What the device needs of it is copied there
without waiting.

Steps of a stochastic equation are dyadic intervals: a rejected step is halved, and the walk comes
by the time it had tried before. So all that was learned of the path is used, and results are
consistent for every kind of noise; and the path is read where it costs least.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._grid import Dyadic
from sdekit._noise.white import AbstractNoise, Increment
from sdekit._solve.control import PIDController
from sdekit._solve.solution import Counted, Solution, Status
from sdekit._solve.working import Found, Move, Working, spread, take, where
from sdekit._solvers import AbstractSolver
from sdekit._solvers.contract import Step, Tree
from sdekit.elementary import broadcast


def adaptive(
    problem: Counted,
    x0: Tensor,
    ts: list[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None,
    control: PIDController,
    save: bool,
    callback: Callable[[Move], None] | None = None,
) -> tuple[Solution, Tensor]:
    """The solution, and the times that the samples reached."""
    assert solver.embedded is not None
    whole = problem
    power = solver.embedded
    total = len(x0)
    direction = 1 if ts[-1] > ts[0] else -1
    span = abs(ts[-1] - ts[0])
    levy = solver.levy == "H"
    device = x0.device
    outputs = torch.tensor(ts, dtype=torch.float64)
    end = outputs[-1]
    (ladder, coarse) = (None, None) if noise is None else _ladder(noise.tree, ts)
    # The last step may be a little longer than allowed, lest a sliver be left; less than by what a
    # rejection makes it shorter.
    stretch = control.safety**-0.9
    floor = 16 * torch.finfo(torch.float64).eps * max(map(abs, ts))
    found = Found.of(x0, ts, save=save)

    t = outputs.new_full((total,), ts[0])
    start = t.to(device)
    if control.first is not None or ladder is not None:
        h = torch.full_like(t, min(control.first or 0.1 * span, span))
    else:
        h = _first(problem, start, x0, control, power, torch.full_like(start, ts[-1])).cpu()
    # Zeros for what is not finite, which would make the gradient of whatever it is multiplied with
    # NaN.
    index = torch.arange(total)
    state = solver.init(problem, start, torch.nan_to_num(x0, 0.0, 0.0, 0.0))
    zero = torch.zeros_like(t)
    ones = torch.ones_like(index)
    now = Working(
        index, x0, t, zero + span, h, state, t.new_ones(total, 2), 0 * ones, ones, zero, 0 * ones
    )
    read = noise and noise.reader(x0, problem.noise_shape(x0), levy=levy)
    tries = 0
    while len(now.index):
        shortest = None
        if ladder is None or coarse is None:
            length = torch.where(now.left <= stretch * now.h, now.left, now.h)
            left = now.left - length
            t1 = torch.add(end, left, alpha=-direction)
        else:
            t1, shortest = ladder.after(now.t, now.h, direction, coarse)
            left = (end - t1).abs()
            length = (t1 - now.t).abs()
        increment = read(now.t, t1) if read else Increment()
        start, stop = _sent(device, now.t, t1)
        step = solver.step(problem, start, stop, now.x, increment, now.state)
        with torch.no_grad():
            q = _quotient(problem, solver, control, start, stop, now.x, step).cpu()
            accept = q <= 1
            factor = control.factor(q, now.before, power)
            # Where alignment made a step shorter than it was allowed to be, it stays allowed.
            allowed = (
                length
                if shortest is None
                else torch.where(factor > 1, torch.maximum(length, now.h / factor), length)
            )
            now.h = allowed * factor
            if control.remembers:
                now.before = where(
                    accept, torch.stack([q.clamp(min=1e-10), now.before[:, 0]], dim=1), now.before
                )
        if step.x.requires_grad and not bool(accept.all()):
            step = _again(whole.problem, solver, now, t1, increment, accept)
        if callback is not None and bool(accept.any()):
            callback(_moved(now, start, stop, accept, step))
        if found.xs is not None:
            _output(found.xs, outputs, whole, solver, noise, now, t1, accept, step, increment)
        tries = tries + 1
        now.accepted = now.accepted + accept
        now.x, now.state = where(*_sent(device, accept), (step.x, step.state), (now.x, now.state))
        now.t = torch.where(accept, t1, now.t)
        now.left = torch.where(accept, left, now.left)
        last = tries == control.max_steps
        if shortest is None:
            if not last and not bool(
                torch.minimum(now.left, now.h).add_(now.gone).amin() <= 2 * floor
            ):
                continue
            short = (now.h < floor) & ~accept
        else:
            short = (length < 1.5 * shortest) & ~accept
        # Somebody may have finished or failed.
        done = now.left == 0
        new = ((done | short | last) & (now.gone == 0)).nonzero().flatten()
        if not len(new):
            continue
        why = torch.where(
            short,
            torch.where(q.isinf(), Status.NOT_FINITE, Status.UNDERFLOW),
            Status.TOO_MANY_STEPS,
        )
        found.keep(now, new, torch.where(done, Status.DONE, why), tries, problem.evaluations)
        now.gone[new] = math.inf
        now.h[new] = 0.0
        # They leave at once where a step of length 0 could spoil gradients, else together, which is
        # cheaper.
        stay = (now.gone == 0).nonzero().flatten()
        if last or (len(stay) < len(now.gone) if ladder else 8 * len(stay) <= 7 * len(now.gone)):
            now = now.rows(stay)
            (index,) = _sent(device, now.index)
            problem = whole.rows(index)
            read = noise and noise.rows(index).reader(now.x, problem.noise_shape(now.x), levy=levy)
    return found.solution(outputs, None if noise is None else noise.seed), found.reached.to(device)


def _sent(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Small tensors of the host on a device, without waiting for what is queued there."""
    return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)


def _moved(now: Working, t0: Tensor, t1: Tensor, accept: Tensor, step: Step) -> Move:
    """The steps that count: those accepted of samples that are still on their way."""
    rows = (accept & (now.gone == 0)).nonzero().flatten()
    index, those = _sent(t0.device, now.index, rows)
    parts = (index, t0, t1, step.x, () if step.dense is None else step.dense)
    samples, t0, t1, x, dense = parts if len(rows) == len(accept) else take(parts, those)
    return Move(samples, t0, t1, x, None if step.dense is None else dense)


def _again(
    problem: AbstractSDE,
    solver: AbstractSolver,
    now: Working,
    t1: Tensor,
    increment: Increment,
    accept: Tensor,
) -> Step:
    """The step of those that are accepted, recorded for gradients: a trial that is not finite would
    make them all NaN.
    """
    rows = accept.nonzero().flatten()
    if not len(rows):
        return Step(now.x, dense=None, state=now.state)
    index, t0, t1, rows = _sent(now.x.device, now.index[rows], now.t[rows], t1[rows], rows)
    noise = Increment(*(None if part is None else part[rows] for part in increment))
    step = solver.step(problem.rows(index), t0, t1, now.x[rows], noise, take(now.state, rows))
    x = now.x.index_copy(0, rows, step.x)
    dense = None if step.dense is None else spread(step.dense, rows, len(accept))
    return Step(x, dense=dense, state=spread(step.state, rows, len(accept)))


def _ladder(tree: Dyadic, ts: list[float]) -> tuple[Dyadic, Tensor]:
    """The dyadic times of a solve, and how many of the lowest bits are not used in each cell.

    The cells are those of the path between the ends of the solve. Where an end cuts a cell, its
    dyadic times are not the path's: then an interval is 32 of the path's ticks long at least, and
    one of them where they are.

    Raises:
        ValueError: for a solve so short that the path does not resolve it.
    """
    low = min(ts[0], ts[-1])
    high = max(ts[0], ts[-1])
    cells = [(a, b) for a, b in pairwise(tree.knots) if a < high and b > low]
    # A cell of which hardly anything is left is joined to its neighbour: an end is often a rounding
    # away from a knot.
    inner = [
        b
        for (a, b), (_, d) in pairwise(cells)
        if b - low > (b - a) / 64 and high - b > (d - b) / 64
    ]
    knots = (low, *inner, high)
    coarse = []
    for start, stop in pairwise(knots):
        length = max((b - a for a, b in cells if a < stop and b > start), default=stop - start)
        whole = any((start, stop) == cell for cell in cells)
        coarse.append(max(0, math.ceil(math.log2((1 if whole else 32) * length / (stop - start)))))
    if max(coarse) >= tree.depth:
        raise ValueError(
            f"the solve from {ts[0]} to {ts[-1]} is shorter than the path resolves, "
            f"2^-{tree.depth} of an interval of knots; "
            "give BrownianPath knots at the ends of the solve"
        )
    return Dyadic(knots, tree.depth), torch.tensor(coarse)


def _quotient(
    problem: Counted,
    solver: AbstractSolver,
    control: PIDController,
    t0: Tensor,
    t1: Tensor,
    x: Tensor,
    step: Step,
) -> Tensor:
    """q of each sample: its error relative to the tolerance."""
    ends = problem.physical(t0, x), problem.physical(t1, step.x)
    return solver.quotient(
        lambda error: control.error(problem.physical(t1, error), *ends), step.error
    )


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


def _output(
    xs: Tensor,
    outputs: Tensor,
    whole: Counted,
    solver: AbstractSolver,
    noise: AbstractNoise | None,
    now: Working,
    t1: Tensor,
    accept: Tensor,
    step: Step,
    increment: Increment,
) -> None:
    """Writes the states at the output times that accepted steps go by; the last output is the end
    of the solve.

    With noise the path is bridged: between the ends x moves with g times what W does beyond a
    straight line, so that it has the variance of the path there, and not that of a straight line,
    half as much in the middle.
    """
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
    start, theta, those, number, index = _sent(xs.device, t0, theta, row, number, now.index[row])
    if noise is None or increment.w is None:
        x = solver.interpolate(_dense(whole, solver, now, t1, step, row), theta)
    else:
        problem = whole.rows(index)
        x0 = now.x[those]
        x1 = step.x[those]
        part = noise.rows(index).reader(x0, problem.noise_shape(x0), levy=False)(t0, at).w
        assert part is not None
        bend = part - broadcast(theta, part) * increment.w[those]
        x = problem.diffuse(start, x0, bend, torch.lerp(x0, x1, broadcast(theta, x0)))
    xs[number, index] = x
    now.due = now.due + passed


def _dense(
    whole: Counted, solver: AbstractSolver, now: Working, t1: Tensor, step: Step, row: Tensor
) -> Tree:
    """What the solver interpolates, a row an output, made once for each sample that has any; its
    evaluations are counted.
    """
    rows, of = row.unique_consecutive(return_inverse=True)
    index, start, stop, those, of = _sent(
        now.x.device, now.index[rows], now.t[rows], t1[rows], rows, of
    )
    problem = Counted(whole.problem.rows(index), whole.copies)
    dense = (now.x, step.x) if step.dense is None else step.dense
    dense = solver.dense(problem, start, stop, take(dense, those))
    now.extra = now.extra.index_add(0, rows, torch.full_like(rows, problem.evaluations))
    return take(dense, of)
