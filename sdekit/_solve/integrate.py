"""integrate and solve: the solution of an equation by a solver."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._grid import times
from sdekit._noise.brownian import BrownianPath
from sdekit._noise.white import AbstractNoise, WhiteNoise
from sdekit._solve.adaptive import AdaptiveSolve
from sdekit._solve.arguments import (
    require_adaptive,
    require_kinds,
    require_no_inner_outputs,
    require_options,
    require_pairing,
)
from sdekit._solve.control import PIDController
from sdekit._solve.counted import Counted
from sdekit._solve.events import Event, EventSearch
from sdekit._solve.fixed_grid import collect, points, solution_on_grid, states_on_grid
from sdekit._solve.gradient import AbstractGradient
from sdekit._solve.solution import Point, Solution, Status, require_state, unfinished
from sdekit._solve.steps import Steps
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
    return points(*steps_of(problem, x0, ts, solver, noise))


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
    require_kinds(problem, solver, noise, None, None)
    grid = times(ts)
    require_state(x0)
    require_pairing(problem, solver)
    noise = _noise_of(problem, solver, noise, WhiteNoise)
    counted = Counted.of(problem.tabulated(grid), x0)
    return Steps(counted, grid, solver.plan(counted, grid), noise), _copied_states(x0)


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
    event: Event | None = None,
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
        event: a function of which zeros are found, where samples may stop; see `Event`.
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
    require_kinds(problem, solver, noise, control, gradient)
    require_options(solver, save, gradient, event)
    grid = times(ts)
    require_state(x0)
    require_pairing(problem, solver)
    if control is not None:
        require_adaptive(problem, solver, control, gradient, x0)
    path = partial(BrownianPath, knots=(min(grid), max(grid)))
    noise = _noise_of(problem, solver, noise, WhiteNoise if control is None else path)
    problem = problem.tabulated(grid) if control is None else problem.within(grid[0], grid[-1])
    counted = Counted.of(problem, x0)
    x0 = _copied_states(x0)
    search = _search(event, grid, x0, noise, within=save == "all" and control is not None)
    if control is None or not len(x0):
        steps = Steps(counted, grid, solver.plan(counted, grid), noise)
        callback = callback if control is None else None
        settings = {"gradient": gradient, "callback": callback, "throw": throw, "search": search}
        states = states_on_grid(steps, x0, every=save == "all", **settings)
        xs = collect(states, len(grid)) if save == "all" else None
        x = deque(states, maxlen=1).pop().x if xs is None else xs[-1]
        return solution_on_grid(steps, x, xs, throw=throw, search=search)
    solution, reached = AdaptiveSolve(
        counted,
        x0,
        grid,
        solver=solver,
        noise=noise,
        control=control,
        save=save == "all",
        callback=callback,
        search=search,
    ).run()
    if throw and bool((solution.status != Status.DONE).any()):
        raise unfinished(solution, reached, x0)
    return solution


def _search(
    event: Event | None, grid: list[float], x0: Tensor, noise: AbstractNoise | None, *, within: bool
) -> EventSearch | None:
    """The search of a solve; within: whether states are saved within steps."""
    if event is None:
        return None
    if within and noise is not None:
        require_no_inner_outputs(grid)
    return EventSearch.of(event, grid[0], x0, noise)


def _copied_states(x0: Tensor) -> Tensor:
    """A copy of the caller's states: a drift that changes its input is only refused after it has
    changed it once.

    A leaf that requires gradients is not copied: torch refuses its changes, and compiled drifts
    need the leaf itself.
    """
    return x0 if is_kept_leaf(x0) else x0.clone()


def _noise_of(
    problem: AbstractSDE,
    solver: AbstractSolver,
    noise: AbstractNoise | None,
    default: Callable[[], AbstractNoise],
) -> AbstractNoise | None:
    """The noise of a solve: none where there is nothing to draw."""
    if problem.noise_type == "none" and not solver.normals:
        return None
    return default() if noise is None else noise
