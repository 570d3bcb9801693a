"""Checks of the arguments of `solve` and `integrate`."""

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sdekit import _solvers
from sdekit._arguments.names import did_you_mean
from sdekit._equations.sde import AbstractSDE
from sdekit._grid import require_no_gradient, rounded_to_ends
from sdekit._noise.brownian import BrownianPath
from sdekit._noise.white import AbstractNoise
from sdekit._solve.control import PIDController
from sdekit._solve.events import Event
from sdekit._solve.gradient import AbstractGradient
from sdekit._solvers import AbstractSolver
from sdekit.calling import require_bools

_SAVES = ("last", "all")
_SAVES_OF_SOLVE = (*_SAVES, "dense")


def require_options(
    solver: AbstractSolver,
    save: "str | Sequence[float] | Tensor",
    gradient: AbstractGradient | None,
    event: object,
    callback: object,
    *,
    throw: bool,
) -> None:
    """Refuses options that are unknown, of the wrong type, or that cannot be combined.

    Raises:
        TypeError, ValueError: with what is allowed.
    """
    if isinstance(save, str) and save not in _SAVES_OF_SOLVE:
        raise ValueError(
            f"save must be 'last', 'all', 'dense' or times, not {save!r}"
            f"{did_you_mean(save, _SAVES_OF_SOLVE)}"
        )
    if gradient is not None and (not isinstance(save, str) or save not in _SAVES):
        raise ValueError(
            "states between the steps cannot be saved with gradient=, which repeats the steps: "
            "leave out gradient, or save='all'"
        )
    _require_repeatable(solver, gradient)
    _require_event(event, gradient, solver)
    require_bools(throw=throw)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a function of a Point, not {callback!r:.60}")


def require_save(save: str) -> None:
    """Refuses an unknown value of `save`.

    Raises:
        ValueError: with the allowed values and the nearest one.
    """
    if save not in _SAVES:
        raise ValueError(f"save must be 'last' or 'all', not {save!r}{did_you_mean(save, _SAVES)}")


def chosen_times(save: "Sequence[float] | Tensor", grid: Sequence[float]) -> list[float]:
    """The times of a `save=`, in the order of the solve.

    Raises:
        TypeError: for values that are not real numbers.
        ValueError: for times outside the solve, or not in its order, or that require a gradient.
    """
    require_no_gradient("save", save)
    try:
        times = rounded_to_ends(save, grid[0], grid[-1]).reshape(-1).tolist()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"save must be 'last', 'all', 'dense' or times, not {save!r:.60}") from None
    sign = 1 if grid[-1] > grid[0] else -1
    inside = all(sign * grid[0] <= sign * t <= sign * grid[-1] for t in times)
    if not (times and inside and all(sign * a < sign * b for a, b in pairwise(times))):
        raise ValueError(
            f"the times of save must lie between {grid[0]} and {grid[-1]} and be "
            f"strictly monotone in this direction; not {times}"
        )
    return times


def require_resolved_outputs(
    noise: AbstractNoise | None,
    chosen: Sequence[float] | None,
    grid: Sequence[float],
    save: str,
    *,
    adaptive: bool,
) -> None:
    """Refuses times of output that a path does not tell apart; arguments as in
    `require_no_inner_outputs`.

    Raises:
        ValueError: with what to do.
    """
    times = grid if adaptive and save == "all" else chosen
    if times and isinstance(noise, BrownianPath):
        noise.require_resolved(torch.tensor(times, dtype=torch.float64))


def require_kinds(
    problem: object, solver: object, noise: object, control: object, gradient: object
) -> None:
    """Refuses arguments that are not an equation, a solver, noise, a controller or a gradient.

    Raises:
        TypeError: with what was given and what is expected.
    """
    expected = [
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
    for name, value, kind, remedy in expected:
        optional = name not in ("the equation", "solver")
        if not (value is None and optional) and not isinstance(value, kind):
            description = (
                f"the class {value.__name__}"
                if isinstance(value, type)
                else f"{type(value).__name__} {value!r:.40}"
            )
            suggestion = (
                did_you_mean(value, _solvers.__all__, {"euler": "EulerMaruyama"})
                if name == "solver"
                else ""
            )
            raise TypeError(f"{name} must be {remedy}; not {description}{suggestion}")


def _require_repeatable(solver: AbstractSolver, gradient: AbstractGradient | None) -> None:
    """Refuses a gradient that repeats steps for a solver whose steps take derivatives.

    Raises:
        ValueError: with what to do.
    """
    if gradient is not None and solver.differentiates:
        raise ValueError(
            f"the steps of {type(solver).__name__} use derivatives of f, and "
            f"{type(gradient).__name__} cannot repeat them: leave out gradient"
        )


def _require_event(
    event: object, gradient: AbstractGradient | None, solver: AbstractSolver
) -> None:
    """Refuses an argument that is not an event, and events in a solve with a `gradient` or with a
    solver that draws further noise.

    Raises:
        TypeError, ValueError: with what to give.
    """
    if event is not None and not isinstance(event, Event):
        raise TypeError(f"event must be an Event(g), not {event!r:.60}")
    if event is not None and gradient is not None:
        raise ValueError(
            "event= and gradient= cannot be combined: leave out gradient, which then records every "
            "step"
        )
    if event is not None and event.located and solver.normals:
        raise ValueError(
            f"{type(solver).__name__} draws noise besides that of the equation, so that its paths "
            "have no events; choose another solver"
        )


def require_no_inner_outputs(
    ts: Sequence[float], save: str, chosen: Sequence[float] | None, *, adaptive: bool
) -> None:
    """Refuses to save states within the steps of a stochastic equation with an event: the bridges
    there do not depend on its first passage.

    Arguments:
        save: "last", "all", "dense" or "times".
        chosen: the times of save="times".
        adaptive: whether steps are adaptive; then only the first and the last of ts are known to be
            ends of steps.

    Raises:
        ValueError: with what to do.
    """
    known = (ts[0], ts[-1]) if adaptive else ts
    wanted = ts if save == "all" else chosen or ()
    if save == "dense" or not {*wanted} <= {*known}:
        raise ValueError(
            "with an event the states within steps of a stochastic equation cannot be saved, "
            "because their law does not take account of the event: take a fixed grid with these "
            'times and save="all", or save="last"'
        )


def require_adaptive(
    problem: AbstractSDE,
    solver: AbstractSolver,
    control: PIDController,
    gradient: AbstractGradient | None,
    x: Tensor,
) -> None:
    """Refuses combinations that cannot be solved with adaptive steps.

    Raises:
        ValueError: for a solver without an error estimate, a gradient of fixed grids, or tolerances
            that the dtype or the solver does not resolve.
    """
    if solver.embedded is None or solver.normals:
        raise ValueError(
            f"{type(solver).__name__} does not estimate its error; for {problem.noise_type} noise "
            f"these do: {_adaptive_solvers(problem)}"
        )
    if gradient is not None:
        raise ValueError(
            "gradient= goes with a fixed grid, and control= makes steps adaptive; leave out one of "
            "them"
        )
    control.require_resolved(x.dtype)
    least = solver.resolution(x)
    if max(control.rtol, control.atol) < least:
        raise ValueError(
            f"rtol = {control.rtol:g} and atol = {control.atol:g} are below {least:g}, what "
            f"{type(solver).__name__} resolves for states of this size: ask for that or more, or "
            "change the solver's arguments"
        )


def _adaptive_solvers(problem: AbstractSDE) -> str:
    """The names of the solvers with an error estimate that support an equation."""
    kinds = [
        kind
        for kind in vars(_solvers).values()
        if isinstance(kind, type) and getattr(kind, "embedded", None)
    ]
    state_free = problem.noise_type in ("none", "additive")
    suitable = [
        k
        for k in kinds
        if problem.noise_type in k.order and (state_free or k.sde_type == problem.sde_type)
    ]
    return ", ".join(k.__name__ for k in suitable) or (
        "none in this calculus; write it in Stratonovich form, for SPaRK"
    )


def require_pairing(problem: AbstractSDE, solver: AbstractSolver) -> None:
    """Refuses a solver that does not support the equation.

    Raises:
        ValueError: for another kind of noise, or another calculus.
    """
    name = type(solver).__name__
    noise = problem.noise_type
    if noise not in solver.order:
        remedy = _recommended(problem)
        if set(solver.order) == {"none"}:
            remedy += ", or an equation without noise (eta=0)"
        raise ValueError(
            f"{name} does not solve equations {_noises([noise])}, only those "
            f"{_noises(solver.order)}; choose {remedy}"
        )
    if noise not in ("none", "additive") and problem.sde_type != solver.sde_type:
        raise ValueError(
            f"{name} solves {solver.sde_type} equations and this one is {problem.sde_type}; choose "
            f"{_recommended(problem)}"
        )


def _noises(kinds: Collection[str]) -> str:
    """In words, such as: with additive or diagonal noise or without noise."""
    noisy = [kind for kind in kinds if kind != "none"]
    parts = [f"with {' or '.join(noisy)} noise"] if noisy else []
    return " or ".join([*parts, *(["without noise"] if "none" in kinds else [])])


def _recommended(problem: AbstractSDE) -> str:
    """Solvers for the noise and the calculus of an equation, as docs/solvers.md recommends them."""
    ito = problem.sde_type == "ito"
    diagonal = "SRID2() or Milstein()" if ito else "SlowRK() or Heun()"
    return {
        "none": "RK4(), or Tsit5() with adaptive steps",
        "additive": "ShARK() or SRA1()",
        "diagonal": diagonal,
        "scalar": diagonal,
        "general": "EulerMaruyama() or Milstein()" if ito else "SPaRK() or Heun()",
    }[problem.noise_type]
