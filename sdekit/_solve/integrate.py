"""integrate and solve: what is checked before a loop, and the loop over a fixed grid."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from sdekit import _solvers
from sdekit._equations.sde import AbstractSDE
from sdekit._grid import times
from sdekit._names import did_you_mean
from sdekit._noise.brownian import BrownianPath
from sdekit._noise.white import AbstractNoise, WhiteNoise
from sdekit._solve.adaptive import adaptive
from sdekit._solve.control import PIDController
from sdekit._solve.gradient import AbstractGradient
from sdekit._solve.solution import (
    Counted,
    NotFiniteError,
    Point,
    Solution,
    Status,
    UnfinishedError,
    finite,
    not_finite,
    require_state,
    shared,
)
from sdekit._solve.steps import Steps
from sdekit._solvers import AbstractSolver
from sdekit._solvers.contract import Tree
from sdekit.calling import hidden, is_kept_leaf

_CHECK = 128  # steps between two looks at whether the state is finite


def integrate(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
) -> Iterator[Point]:
    """The states of a solve on a fixed grid one by one, the initial one first.

    Arguments as in `solve`. Memory does not grow with the number of steps.

    Raises:
        NotFiniteError, RuntimeError, TypeError, ValueError: as `solve`.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> x0, ts = torch.ones(1, 1), [0.0, 0.5, 1.0]
        >>> for point in sdekit.integrate(ode, x0, ts, solver=sdekit.RK4()):
        ...     print(point.step, point.t, tuple(point.x.shape))
        0 0.0 (1, 1)
        1 0.5 (1, 1)
        2 1.0 (1, 1)
    """
    _require_kinds(problem, solver, noise, None, None)
    grid = times(ts)
    require_state(x0)
    _require_pairing(problem, solver)
    if noise is None and _random(problem, solver):
        noise = WhiteNoise()
    counted = Counted.of(problem.tabulated(grid), x0)
    return _points(Steps(counted, grid, solver.plan(counted, grid), noise), _own(x0))


def solve(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
    save: Literal["last", "all"] = "last",
    control: PIDController | None = None,
    gradient: AbstractGradient | None = None,
    callback: Callable[[Any], None] | None = None,
    throw: bool = True,
) -> Solution:
    """Solves dx = f dt + g dW from x(ts[0]) = x0.

    Without `control` ts is the grid, with one solver step per interval. With it each sample has
    steps of its own, which keep its error within the tolerances, and ts are the times of output.
    For decreasing ts the equation is solved as an Ito equation with respect to the reversed path.

    Arguments:
        problem: the equation.
        x0: the initial states, floating, `(batch, *event)`; an empty batch gives an empty result.
        ts: strictly monotone, at least two times.
        solver: the method of a step.
        noise: the source of increments. None takes a new seed, which the result contains:
            `WhiteNoise()` on a grid, `BrownianPath(knots=the two ends)` with adaptive steps.
        save: "all" keeps the states at all ts.
        control: how steps are adapted.
        gradient: how gradients pass back through a fixed grid, `Checkpointed()` or `Reversible()`;
            None leaves it to autograd, which records every step.
        callback: called with each `Point` of a fixed grid, or after each round of adaptive steps
            with a `Move`, which has the samples and their times before and after.
        throw: False returns the solution with the status of each sample where True raises.

    Raises:
        NotFiniteError: when a state on a fixed grid stops being finite; it names the step, the time
            and the samples.
        UnfinishedError: when samples with adaptive steps fail; it holds the solution of the others.
        RuntimeError: when the drift or the diffusion changes its input or an earlier result in
            place; x0 is not changed.
        TypeError: when x0 is not a floating tensor with a batch dimension, or adaptive steps are
            used with noise that cannot be read twice.
        ValueError: for times that are not monotone, or a solver that does not support the problem's
            noise or adaptive steps.

    Example:
        >>> gbm = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x)
        >>> ts = sdekit.uniform(0.0, 1.0, 100)
        >>> noise = sdekit.WhiteNoise(seed=0)
        >>> x0, solver = torch.ones(4, 1), sdekit.Milstein()
        >>> solution = sdekit.solve(gbm, x0, ts, solver=solver, noise=noise)
        >>> solution.x.shape, solution.seed
        (torch.Size([4, 1]), 0)
    """
    if save not in ("last", "all"):
        raise ValueError(
            f"save must be 'last' or 'all', not {save!r}{did_you_mean(save, ('last', 'all'))}"
        )
    _require_kinds(problem, solver, noise, control, gradient)
    grid = times(ts)
    require_state(x0)
    _require_pairing(problem, solver)
    if control is not None:
        _require_adaptive(problem, solver, control, gradient, x0)
    random = _random(problem, solver)
    if noise is None and random:
        noise = WhiteNoise() if control is None else BrownianPath(knots=(min(grid), max(grid)))
    noise = noise if random else None
    problem = problem.tabulated(grid) if control is None else problem.within(grid[0], grid[-1])
    counted = Counted.of(problem, x0)
    x0 = _own(x0)
    if control is not None and len(x0):
        solution, reached = adaptive(
            counted,
            x0,
            grid,
            solver=solver,
            noise=noise,
            control=control,
            save=save == "all",
            callback=callback,
        )
        if throw and bool((solution.status != Status.DONE).any()):
            raise UnfinishedError(solution, reached)
        return solution
    steps = Steps(counted, grid, solver.plan(counted, grid), noise)
    every = save == "all" or callback is not None
    points = _points(steps, x0, check=throw, every=every)
    if gradient is not None and len(x0):
        states = gradient.states(steps, x0, every=every)
        points = chain([Point(0, grid[0], x0)], (Point(i, grid[i], state) for i, state in states))
    points = points if callback is None or control is not None else _watched(points, callback)
    xs = _collected(points, len(grid)) if save == "all" else None
    x = deque(points, maxlen=1).pop().x if xs is None else xs[-1]
    if (
        gradient is not None
        and throw
        and len(x0)
        and (failure := not_finite(Point(len(grid) - 1, grid[-1], x)))
    ):
        with torch.no_grad():  # the plain loop finds the step
            deque(_points(steps, x0), maxlen=0)
        raise failure
    seed = None if noise is None else noise.seed
    at = torch.tensor(grid, dtype=torch.float64)
    solution = shared(x, at, xs, seed, evaluations=counted.evaluations, steps=len(steps))
    return (
        solution
        if throw
        else replace(solution, status=torch.where(finite(x), Status.DONE, Status.NOT_FINITE))
    )


def _own(x0: Tensor) -> Tensor:
    """A copy of the caller's states: a drift that changes its input is refused, but not before it
    has changed it once.

    Torch lets nothing change a leaf that requires gradients, which compiled drifts need as it is.
    """
    return x0 if is_kept_leaf(x0) else x0.clone()


def _watched(points: Iterator[Point], callback: Callable[[Point], None]) -> Iterator[Point]:
    for point in points:
        callback(point)
        yield point


def _collected(points: Iterator[Point], size: int) -> Tensor:
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


def _points(steps: Steps, x: Tensor, *, check: bool = True, every: bool = True) -> Iterator[Point]:
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


def _random(problem: AbstractSDE, solver: AbstractSolver) -> bool:
    return problem.noise_type != "none" or solver.normals > 0


def _require_kinds(
    problem: object, solver: object, noise: object, control: object, gradient: object
) -> None:
    """Refuses what is no equation, solver, noise, controller or gradient, and says what makes one
    of it.

    Raises:
        TypeError: always with what was given and what is wanted.
    """
    wanted = [
        (
            "the equation",
            problem,
            AbstractSDE,
            "SDE(f, g), ODE(f), or interop.from_torchsde(sde) for one of torchsde's",
        ),
        ("solver", solver, AbstractSolver, "an object such as EulerMaruyama()"),
        (
            "noise",
            noise,
            AbstractNoise,
            "WhiteNoise(seed), BrownianPath(seed, knots), or interop.TorchsdeNoise(bm) for "
            "torchsde's",
        ),
        ("control", control, PIDController, "PIDController(rtol, atol)"),
        ("gradient", gradient, AbstractGradient, "Checkpointed() or Reversible()"),
    ]
    for name, value, kind, remedy in wanted:
        if not isinstance(value, kind) and (
            value is not None or name in ("the equation", "solver")
        ):
            given = (
                f"the class {value.__name__}"
                if isinstance(value, type)
                else f"{type(value).__name__} {value!r:.40}"
            )
            near = (
                did_you_mean(value, _solvers.__all__, {"euler": "EulerMaruyama"})
                if name == "solver"
                else ""
            )
            raise TypeError(f"{name} must be {remedy}; not {given}{near}")


def _require_adaptive(
    problem: AbstractSDE,
    solver: AbstractSolver,
    control: PIDController,
    gradient: AbstractGradient | None,
    x: Tensor,
) -> None:
    if solver.embedded is None or solver.normals:
        raise ValueError(
            f"{type(solver).__name__} does not estimate its error; for {problem.noise_type} noise "
            f"these do: {_able(problem)}"
        )
    if gradient is not None:
        raise ValueError(
            "gradient= goes with a fixed grid, and control= makes steps adaptive; "
            "leave out one of them"
        )
    control.require_resolved(x.dtype)


def _able(problem: AbstractSDE) -> str:
    """The solvers with an error estimate that suit an equation."""
    kinds = [
        kind
        for kind in vars(_solvers).values()
        if isinstance(kind, type) and getattr(kind, "embedded", None)
    ]
    state_free = problem.noise_type in ("none", "additive")
    suited = [
        k
        for k in kinds
        if problem.noise_type in k.order and (state_free or k.sde_type == problem.sde_type)
    ]
    return ", ".join(k.__name__ for k in suited) or (
        "none in this calculus; write it in Stratonovich form, for SPaRK"
    )


def _require_pairing(problem: AbstractSDE, solver: AbstractSolver) -> None:
    name = type(solver).__name__
    noise = problem.noise_type
    if noise not in solver.order:
        raise ValueError(
            f"{name} does not support {noise} noise, only {', '.join(solver.order)}; "
            "choose another solver"
        )
    if noise not in ("none", "additive") and problem.sde_type != solver.sde_type:
        raise ValueError(
            f"{name} solves {solver.sde_type} equations and this one is "
            f"{problem.sde_type}; choose another solver"
        )
