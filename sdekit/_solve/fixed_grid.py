"""The loop over a fixed grid, and the solution that comes of it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sdekit._solve.gradient import AbstractGradient
from sdekit._solve.solution import (
    NotFiniteError,
    Point,
    Solution,
    Status,
    finite,
    not_finite,
    shared,
)
from sdekit._solve.steps import Steps
from sdekit._solvers.contract import Tree
from sdekit.calling import hidden

_CHECK = 128  # steps between two looks at whether the state is finite


def states_on_grid(
    steps: Steps,
    x0: Tensor,
    *,
    gradient: AbstractGradient | None,
    callback: Callable[[Point], None] | None,
    throw: bool,
    every: bool,
) -> Iterator[Point]:
    """The states of a solve, every one or the first and the last; arguments as in `solve`."""
    if gradient is None or not len(x0):
        states = points(steps, x0, check=throw, every=every)
    else:
        states = _differentiable(steps, x0, gradient, every=every, check=throw)
    return states if callback is None else _watched(states, callback)


def solution_on_grid(steps: Steps, x: Tensor, xs: Tensor | None, *, throw: bool) -> Solution:
    """The solution that ends at x, with all states or without."""
    seed = None if steps.noise is None else steps.noise.seed
    at = torch.tensor(steps.ts, dtype=torch.float64)
    evaluations = steps.problem.evaluations
    solution = shared(x, at, xs, seed, evaluations=evaluations, steps=len(steps))
    if throw:
        return solution
    return replace(solution, status=torch.where(finite(x), Status.DONE, Status.NOT_FINITE))


def _differentiable(
    steps: Steps, x0: Tensor, gradient: AbstractGradient, *, every: bool, check: bool
) -> Iterator[Point]:
    """The states of a solve whose gradients do not come from all of autograd's record."""
    yield Point(0, steps.ts[0], x0)
    x = x0
    for i, x in gradient.states(steps, x0, every=every):
        if i == len(steps):
            steps.problem.require_unchanged()
        yield Point(i, steps.ts[i], x)
    if check:
        _require_finite(steps, x0, x)


def _require_finite(steps: Steps, x0: Tensor, x: Tensor) -> None:
    """Refuses an end that is not finite, of a solve that did not look at its states.

    Raises:
        NotFiniteError: with the step, which the plain loop finds.
    """
    if failure := not_finite(Point(len(steps), steps.ts[-1], x)):
        with torch.no_grad():
            deque(points(steps, x0), maxlen=0)
        raise failure


def _watched(points: Iterator[Point], callback: Callable[[Point], None]) -> Iterator[Point]:
    for point in points:
        callback(point)
        yield point


def collected(points: Iterator[Point], size: int) -> Tensor:
    """All states as one tensor, `(size, batch, *event)`."""
    # To write in place would copy the gradient of all states at each step.
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


def points(steps: Steps, x: Tensor, *, check: bool = True, every: bool = True) -> Iterator[Point]:
    """The states of a solve: of every step, or the first and the last.

    The CPU reads whether the state is finite at every look. Elsewhere a read waits for all that is
    queued, so the looks are collected on the device and read once, at the end: an error comes
    later, and names the same step.
    """
    ts = steps.ts
    n = len(steps)
    yield Point(0, ts[0], x)
    if not len(x):
        yield from (Point(i, t, x) for i, t in enumerate(ts[1:], 1))
        return
    state = steps.init(x)
    kept = (0, x, state)
    looks = []
    at_once = x.device.type == "cpu"
    step = steps.solver.step
    problem = steps.problem
    for i, increment in enumerate(steps.increments(x, 0, n), 1):
        x, _, _, state = step(problem, ts[i - 1], ts[i], x, increment, state)
        if check and (i % _CHECK == 0 or i == n):
            looks.append(torch.isfinite(x).all())
            if at_once or i == n:
                if not _all(looks):
                    raise _located(steps, *kept, Point(i, ts[i], x))
                kept = (i, x, state)
                looks = []
        if i == n:
            problem.require_unchanged()
        if every or i == n:
            yield Point(i, ts[i], x)


def _all(looks: Sequence[Tensor]) -> bool:
    """Whether all flags are set, by one read; True under `torch.func.vmap`, which hides values."""
    every = looks[0] if len(looks) == 1 else torch.stack(list(looks)).all()
    return hidden(every) or bool(every)


def _located(steps: Steps, i: int, x: Tensor, state: Tree, seen: Point) -> NotFiniteError:
    """Repeats the steps since the last finite state and finds the first that spoils it: noise is
    random access.
    """
    with torch.no_grad():
        for increment in steps.increments(x, i, len(steps)):
            if i == seen.step or not bool(torch.isfinite(x).all()):
                break
            x, state = steps.step(i, increment, x, state)
            i += 1
    # A model that is not deterministic may pass the second time; then what was seen first is all
    # that is known.
    return (
        not_finite(Point(i, steps.ts[i], x))
        or not_finite(seen)
        or NotFiniteError(seen.step, seen.t, [], len(x))
    )
