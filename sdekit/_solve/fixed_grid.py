"""The loop over a fixed grid, and its solution."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sdekit._solve.active import called_for_some, take
from sdekit._solve.counted import Counted
from sdekit._solve.dense import Dense, SavedStates, cubic, cubic_data
from sdekit._solve.events import EventSearch
from sdekit._solve.gradient import AbstractGradient
from sdekit._solve.passage import StepBatch
from sdekit._solve.solution import (
    NotFiniteError,
    Point,
    Solution,
    Status,
    finite,
    not_finite,
    solution_of_equal_steps,
)
from sdekit._solve.steps import Steps
from sdekit._solvers.contract import Step, Tree
from sdekit.calling import has_hidden_values, version_of
from sdekit.elementary import broadcast

_CHECK_INTERVAL = 128  # steps between two checks that the state is finite


def states_on_grid(
    steps: Steps,
    x0: Tensor,
    *,
    gradient: AbstractGradient | None,
    callback: Callable[[Point], None] | None,
    throw: bool,
    every: bool,
    search: EventSearch | None,
    record: Dense | SavedStates | None,
) -> Iterator[Point]:
    """The states of a solve, all or only the first and the last; arguments as in `solve`."""
    needed = every or callback is not None
    if gradient is None or not len(x0):
        states = points(steps, x0, check=throw, every=needed, search=search, record=record)
    else:
        states = _states_with_gradient(steps, x0, gradient, every=needed, check=throw)
    return states if callback is None else _with_callback(states, callback)


def solution_on_grid(
    steps: Steps,
    x: Tensor,
    xs: Tensor | None,
    *,
    ts: Sequence[float],
    throw: bool,
    search: EventSearch | None,
) -> Solution:
    """The solution that ends at x, with or without the states at some times."""
    seed = None if steps.noise is None else steps.noise.seed
    times = torch.tensor(ts, dtype=torch.float64)
    evaluations = steps.problem.evaluations
    solution = solution_of_equal_steps(
        x, times, xs, seed, evaluations=evaluations, steps=len(steps)
    )
    if search is not None:
        counts = solution.evaluations + search.evaluations
        solution = search.stopped_solution(replace(solution, evaluations=counts))
    if throw:
        return solution
    return replace(solution, status=torch.where(finite(x), Status.DONE, Status.NOT_FINITE))


def _states_with_gradient(
    steps: Steps, x0: Tensor, gradient: AbstractGradient, *, every: bool, check: bool
) -> Iterator[Point]:
    """The states of a solve with a `gradient` other than plain autograd."""
    yield Point(0, steps.ts[0], x0)
    x = x0
    for i, x in gradient.states(steps, x0, every=every):
        if i == len(steps):
            steps.problem.require_unchanged()
        yield Point(i, steps.ts[i], x)
    if check:
        _require_finite(steps, x0, x)


def _require_finite(steps: Steps, x0: Tensor, x: Tensor) -> None:
    """Refuses a final state that is not finite, of a solve that did not check its states.

    Raises:
        NotFiniteError: with the step, which the plain loop determines.
    """
    if failure := not_finite(Point(len(steps), steps.ts[-1], x)):
        with torch.no_grad():
            deque(points(steps, x0), maxlen=0)
        raise failure


def _with_callback(points: Iterator[Point], callback: Callable[[Point], None]) -> Iterator[Point]:
    for point in points:
        version = version_of(point.x)
        callback(point)
        _require_version(point, version)
        yield point


def unchanged(points: Iterator[Point]) -> Iterator[Point]:
    """The points for a loop of the caller's, whose states are refused if the loop changes them.

    Raises:
        RuntimeError: when the next point is asked for.
    """
    for point in points:
        version = version_of(point.x)
        yield point
        _require_version(point, version)


def _require_version(point: Point, version: int | None) -> None:
    """Refuses a state that was changed in place, from which the solve would continue."""
    if version_of(point.x) != version:
        raise RuntimeError(
            f"x of the point at step {point.step} was changed in place, which would change the "
            "solve: change a copy, point.x.clone(), or continue from another state by "
            "sdekit.stepper and its with_x(x)"
        )


def collect(points: Iterator[Point], size: int) -> Tensor:
    """All states as one tensor, `(size, batch, *event)`."""
    # Writing in place would copy the gradient of all states at each step.
    if torch.is_grad_enabled():
        return torch.stack([point.x for point in points])
    first = next(points).x
    second = next(points).x
    xs = second.new_empty(size, *second.shape)
    xs[0] = first
    xs[1] = second
    for point in points:
        xs[point.step] = point.x
    return xs


def points(
    steps: Steps,
    x: Tensor,
    *,
    check: bool = True,
    every: bool = True,
    search: EventSearch | None = None,
    record: Dense | SavedStates | None = None,
) -> Iterator[Point]:
    """The states of a solve: of every step, or only the first and the last.

    On the CPU every check whether the state is finite is read at once. Elsewhere a read waits for
    all queued work, so the largest values are collected on the device and read once, at the end: an
    error is raised later, but names the same step.
    """
    ts = steps.ts
    n = len(steps)
    yield Point(0, ts[0], x)
    if not x.shape[0]:
        yield from (Point(i, t, x) for i, t in enumerate(ts[1:], 1))
        return
    state = steps.init(x)
    output = x
    checkpoint = (0, x, state)
    sizes = []
    step = steps.solver.step
    problem = steps.problem
    plain = search is None and record is None
    for i, increment in enumerate(steps.increments(x, 0, n), 1):
        if plain:
            x, _, _, state = step(problem, ts[i - 1], ts[i], x, increment, state)
        else:
            taken = step(problem, ts[i - 1], ts[i], x, increment, state)
            x, output = _observed(steps, i, output, taken, search, record)
            state = taken.state
            ended = search is not None and bool(search.stopped.all())
            if ended and not not_finite(Point(i, ts[i], x)):
                yield from (Point(j, ts[j], x) for j in range(i if every else n, n + 1))
                return
        if check and (i % _CHECK_INTERVAL == 0 or i == n):
            sizes.append(_largest(x))
            if x.device.type == "cpu" or i == n:
                if not _all_finite(sizes):
                    failure = Point(i, ts[i], x)
                    if search is not None:  # a repetition would not stop
                        raise _named(failure)
                    raise _locate_failure(steps, *checkpoint, failure)
                checkpoint = (i, x, state)
                sizes = []
        if i == n:
            problem.require_unchanged()
        if every or i == n:
            if plain:
                output = steps.solver.output(ts[i - 1], x, state)
            yield Point(i, ts[i], output)


def _observed(
    steps: Steps,
    i: int,
    x0: Tensor,
    taken: Step,
    search: EventSearch | None,
    record: Dense | SavedStates | None,
) -> tuple[Tensor, Tensor]:
    """The states with which the solver continues after step i, and those that the solve returns,
    from the latter before it; they differ where the solver corrects its states afterwards.
    """
    step = taken._replace(x=steps.solver.output(steps.ts[i - 1], taken.x, taken.state))
    if record is not None:
        record.add(i, steps, x0, step)
    if search is None:
        return taken.x, step.x
    output = _stopped(search, steps, i, x0, step)
    return torch.where(broadcast(search.stopped, x0) != 0, output, taken.x), output


def _stopped(search: EventSearch, steps: Steps, i: int, x0: Tensor, step: Step) -> Tensor:
    """The states after step i; those of samples that an event has stopped are as they were then."""
    index = torch.arange(len(x0), device=x0.device)
    t0, t1 = (
        torch.full((len(x0),), t, dtype=torch.float64, device=x0.device)
        for t in steps.ts[i - 1 : i + 1]
    )
    within = None if steps.noise is not None else partial(_within, search, steps, i, x0, step)
    x = torch.where(broadcast(search.stopped, x0) != 0, x0, step.x)
    problem = Counted.of(steps.problem.problem, x0)  # all samples count the same evaluations
    batch = StepBatch(index, ~search.stopped, t0, t1, x0, x, problem, within)
    zeros = search.locate(batch)
    if zeros is None or not search.event.terminal:
        return x
    return x.index_copy(0, zeros.rows, zeros.x)


def _within(
    search: EventSearch, steps: Steps, i: int, x0: Tensor, step: Step, rows: Tensor
) -> Callable[[Tensor], Tensor]:
    """The states within step i of some samples: the solver's interpolation, or else the cubic
    through both ends and their slopes (Hermite). Its evaluations are counted.
    """
    t0, t1 = (
        torch.full((len(rows),), t, dtype=torch.float64, device=x0.device)
        for t in steps.ts[i - 1 : i + 1]
    )
    some = Counted.of(steps.problem.problem.rows(rows), x0)
    with called_for_some(len(rows), len(x0)):
        if step.dense is None:
            data = cubic_data(some, t0, t1, x0[rows], step.x[rows])
        else:
            data = steps.solver.dense(some, t0, t1, take(step.dense, rows))
    search.evaluations[rows] += some.evaluations
    return partial(cubic if step.dense is None else steps.solver.interpolate, data)


def _largest(x: Tensor) -> Tensor:
    """The largest absolute value, which is not finite if any value is not, in less time than that
    of `torch.isfinite`.
    """
    return x.detach().abs().amax() if x.numel() else x.new_zeros(())


def _all_finite(sizes: Sequence[Tensor]) -> bool:
    """Whether all numbers are finite, with one synchronisation; True under `torch.func.vmap`, which
    hides values.
    """
    size = sizes[0] if len(sizes) == 1 else torch.stack(list(sizes)).amax()
    return has_hidden_values(size) or math.isfinite(float(size))


def _locate_failure(steps: Steps, i: int, x: Tensor, state: Tree, failure: Point) -> NotFiniteError:
    """The error for the first step that fails after the last finite state, found by repeating the
    steps with the same noise.
    """
    with torch.no_grad():
        for increment in steps.increments(x, i, len(steps)):
            if i == failure.step or not bool(torch.isfinite(x).all()):
                break
            x, state = steps.step(i, increment, x, state)
            i += 1
    # A model that is not deterministic may succeed in the repetition; then only the original
    # failure is known.
    return not_finite(Point(i, steps.ts[i], x)) or _named(failure)


def _named(failure: Point) -> NotFiniteError:
    """The error of a state that is not finite, or was not before its step was repeated."""
    return not_finite(failure) or NotFiniteError(failure.step, failure.t, [], len(failure.x))
