"""integrate and solve: the solution of an equation by a solver."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._grid import fixed_times
from sdekit._noise.brownian import BrownianPath
from sdekit._noise.white import AbstractNoise, WhiteNoise
from sdekit._solve.adaptive import AdaptiveSolve
from sdekit._solve.arguments import (
    chosen_times,
    require_adaptive,
    require_kinds,
    require_no_inner_outputs,
    require_options,
    require_pairing,
    require_resolved_outputs,
)
from sdekit._solve.control import PIDController
from sdekit._solve.counted import Counted
from sdekit._solve.dense import Dense, SavedStates
from sdekit._solve.events import Event, EventSearch
from sdekit._solve.fixed_grid import collect, points, solution_on_grid, states_on_grid, unchanged
from sdekit._solve.gradient import AbstractGradient
from sdekit._solve.solution import Point, Solution, Status, require_state, unfinished
from sdekit._solve.steps import Steps, tabulated
from sdekit._solvers import AbstractSolver
from sdekit.calling import is_kept_leaf


def integrate(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
) -> Iterator[Point]:
    """The states of a solve on a fixed grid one by one, as an iterator of `Point`, the initial one
    first.

    Arguments as in `solve`. Without gradients memory does not grow with the number of steps.

    Raises:
        NotFiniteError, RuntimeError, TypeError, ValueError: as `solve`.
        RuntimeError: also when the loop changes the x of a point in place.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> x0, ts = torch.ones(1, 1), [0.0, 0.5, 1.0]
        >>> for point in sdekit.integrate(ode, x0, ts, solver=sdekit.RK4()):
        ...     print(point.step, point.t, tuple(point.x.shape))
        0 0.0 (1, 1)
        1 0.5 (1, 1)
        2 1.0 (1, 1)
    """
    return unchanged(points(*steps_of(problem, x0, ts, solver, noise)))


def steps_of(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    solver: AbstractSolver,
    noise: AbstractNoise | None,
) -> tuple[Steps, Tensor]:
    """The steps of a solve on a fixed grid, and its initial states.

    Raises:
        RuntimeError, TypeError, ValueError: as `solve`.
    """
    grid = _checked_times(problem, x0, ts, solver, noise)
    noise = _noise_of(problem, solver, noise, WhiteNoise)
    return Steps.of(problem, x0, grid, solver, noise), _copied_states(x0)


def solve(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
    save: Literal["last", "all", "dense"] | Sequence[float] | Tensor = "last",
    control: PIDController | None = None,
    gradient: AbstractGradient | None = None,
    callback: Callable[[Any], None] | None = None,
    event: Event | None = None,
    throw: bool = True,
) -> Solution:
    """Solves dx = f dt + g dW from x(ts[0]) = x0.

    Without `control`, ts is the grid: the solver takes one step per interval. With `control`, each
    sample has its own steps, which keep its error within the tolerances, and ts are the times of
    output. With decreasing ts an Ito equation is one with respect to the reversed path: its noise
    term has g at the start of each step, the later time.

    Arguments:
        problem: the equation.
        x0: the initial states, floating-point, `(batch, *event)`; an empty batch gives an empty
            result.
        ts: the times, strictly monotone, at least two.
        solver: the method of a step.
        noise: the source of increments. None takes a new seed, which is the `seed` of the result:
            for `WhiteNoise()` on a grid, and for `BrownianPath(knots=the two ends)` with adaptive
            steps.
        save: which states the solution has. "last": only those at ts[-1]; "all": those at all ts;
            a sequence of times: those at these times, in the order of the solve; "dense": what its
            method `at` needs for any times. Within a step the state of an ordinary equation is on
            the solver's interpolant, or if it has none on the cubic through both ends of the step
            and their slopes, for two evaluations of the drift, and on the straight line for stiff
            equations (`ImplicitPlaten`, `ImplicitEulerMaruyama`, `SKROCK`, `ExponentialEuler`,
            `ExponentialHeun`); that of a stochastic equation is bridged along the path.
        control: the controller of adaptive steps, with which f and g of a sample must not depend on
            other samples, since these are at other times; None for a fixed grid.
        gradient: how gradients pass back through a fixed grid, `Checkpointed()` or `Reversible()`;
            None leaves it to autograd, which records every step.
        callback: called with each `Point` of a fixed grid; with adaptive steps after each round, in
            which every active sample tries a step, with the accepted steps: an object with the
            attributes samples (their rows), t0, t1, x (the states at t1) and dense. What it returns
            is ignored; a condition that stops samples is an `Event(located=False)`.
        event: a function whose zeros are located, and may stop samples; see `Event`.
        throw: False returns the solution with the status of each sample in cases where True raises
            NotFiniteError or UnfinishedError.

    Raises:
        NotFiniteError: when a state on a fixed grid is not finite; it names the step, the time and
            the samples.
        UnfinishedError: when samples with adaptive steps fail; its `solution` has the results of
            the others.
        RuntimeError: when the drift, the diffusion or an event changes its input in place, the
            drift or the diffusion an earlier result, or the callback what it receives; x0 is not
            changed. Changes that torch does not count, through `.data` or an array of NumPy that
            shares the memory, are not seen.
        TypeError: when x0 is not a floating-point tensor with a batch dimension, an argument is of
            another kind, or adaptive steps or save="dense" are used with noise that cannot be read
            twice.
        ValueError: for times that are not monotone or outside ts, or nearer to each other than the
            noise resolves, or that require a gradient, a solver that does not support the noise of
            the problem or adaptive steps, tolerances that the dtype does not resolve, or options
            that cannot be combined.

    Example:
        >>> gbm = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x)
        >>> ts = sdekit.uniform(0.0, 1.0, 100)
        >>> noise = sdekit.WhiteNoise(seed=0)
        >>> x0, solver = torch.ones(4, 1), sdekit.Milstein()
        >>> solution = sdekit.solve(gbm, x0, ts, solver=solver, noise=noise)
        >>> solution.x.shape, solution.seed
        (torch.Size([4, 1]), 0)
    """
    grid = _checked_times(problem, x0, ts, solver, noise, control, gradient)
    require_options(solver, save, gradient, event, callback, throw=throw)
    if control is not None:
        require_adaptive(problem, solver, control, gradient, x0)
    ends = grid[0], grid[-1]
    path = partial(BrownianPath, knots=(min(ends), max(ends)))
    noise = _noise_of(problem, solver, noise, WhiteNoise if control is None else path)
    problem = tabulated(problem, solver, grid) if control is None else problem.within(*ends)
    chosen = None if isinstance(save, str) else chosen_times(save, grid)
    kept = save if isinstance(save, str) else "times"
    require_resolved_outputs(noise, chosen, grid, kept, adaptive=control is not None)
    if event is not None and event.located and noise is not None:
        require_no_inner_outputs(grid, kept, chosen, adaptive=control is not None)
    search = None if event is None else EventSearch.of(event, grid, x0, noise)
    record = _dense(problem, solver, noise, grid, x0, search) if kept == "dense" else None
    counted = Counted.of(problem, x0)
    x0 = _copied_states(x0) if record is None else x0.clone()  # which a record keeps
    if control is None or not len(x0):
        steps = Steps(counted, grid, solver.plan(counted, grid), noise)
        callback = callback if control is None else None
        record = record if chosen is None else SavedStates(chosen)
        states = states_on_grid(
            steps, x0, every=kept == "all", gradient=gradient, callback=callback, throw=throw,
            search=search, record=record,
        )  # fmt: skip
        xs = collect(states, len(grid)) if kept == "all" else None
        x = deque(states, maxlen=1).pop().x if xs is None else xs[-1]
        return _on_grid(steps, x, xs, record, throw=throw, search=search)
    adaptive = AdaptiveSolve(
        counted, x0, grid if chosen is None else _merged(grid, chosen), solver=solver, noise=noise,
        control=control, save=kept in ("all", "times"), callback=callback, search=search,
        record=record,
    )  # fmt: skip
    solution = _in_adaptive_steps(*adaptive.run(), x0, chosen, throw=throw)
    return solution if record is None else replace(solution, dense=record)


def _in_adaptive_steps(
    solution: Solution, reached: Tensor, x0: Tensor, chosen: list[float] | None, *, throw: bool
) -> Solution:
    """A solution by adaptive steps, with the states at chosen times only if there are any.

    Raises:
        UnfinishedError: if `throw`, where some samples failed; `reached` are their times.
    """
    if chosen is not None and solution.xs is not None:
        row_of = {t: row for row, t in enumerate(solution.ts.tolist())}
        rows = torch.tensor([row_of[t] for t in chosen])
        solution = replace(solution, ts=solution.ts[rows], xs=solution.xs[rows.to(x0.device)])
    if throw and bool((solution.status != Status.DONE).any()):
        raise unfinished(solution, reached, x0)
    return solution


def _checked_times(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    solver: AbstractSolver,
    noise: AbstractNoise | None,
    control: PIDController | None = None,
    gradient: AbstractGradient | None = None,
) -> list[float]:
    """The times as floats, after checks of the main arguments of `solve`."""
    require_kinds(problem, solver, noise, control, gradient)
    grid = fixed_times(ts)
    require_state(x0)
    require_pairing(problem, solver)
    return grid


def _on_grid(
    steps: Steps,
    x: Tensor,
    xs: Tensor | None,
    record: Dense | SavedStates | None,
    *,
    throw: bool,
    search: EventSearch | None,
) -> Solution:
    """The solution that ends at x, with the states at all times of the grid, or chosen ones."""
    ts = steps.ts
    if isinstance(record, SavedStates):
        ts = record.times
        # All samples may stop before the last of the times.
        states = [*record.xs, *[x] * (len(ts) - len(record.xs))]
        xs = torch.stack(states) if len(x) else x.expand(len(ts), *x.shape)
    solution = solution_on_grid(steps, x, xs, ts=ts, throw=throw, search=search)
    return replace(solution, dense=record) if isinstance(record, Dense) else solution


def _merged(grid: list[float], chosen: list[float]) -> list[float]:
    """All times of both, in the order of the grid."""
    return sorted({*grid, *chosen}, reverse=grid[-1] < grid[0])


def _dense(
    problem: AbstractSDE,
    solver: AbstractSolver,
    noise: AbstractNoise | None,
    grid: list[float],
    x0: Tensor,
    search: EventSearch | None,
) -> Dense:
    """An empty record of the steps of a solve.

    Raises:
        TypeError: for noise that cannot be read at arbitrary times.
    """
    if noise is not None:
        noise.reader(x0, problem.noise_shape(x0), levy=False)
    stops = search is not None and search.event.terminal
    return Dense(problem, solver, noise, (grid[0], grid[-1]), stops)


def _copied_states(x0: Tensor) -> Tensor:
    """A copy of the caller's states, because a drift that changes its input is only refused after
    it has changed it once.

    A leaf that requires gradients is not copied: torch itself refuses to change it in place, and
    compiled drifts need the leaf itself.
    """
    return x0 if is_kept_leaf(x0) else x0.clone()


def _noise_of(
    problem: AbstractSDE,
    solver: AbstractSolver,
    noise: AbstractNoise | None,
    default: Callable[[], AbstractNoise],
) -> AbstractNoise | None:
    """The noise of a solve; None if neither the equation nor the solver uses any."""
    if problem.noise_type == "none" and not solver.normals:
        return None
    return default() if noise is None else noise
