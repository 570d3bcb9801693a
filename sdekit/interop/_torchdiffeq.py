"""torchdiffeq's solvers as an engine: steps that the batch shares, and its adjoint."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sdekit._equations.sde import AbstractSDE
from sdekit._grid import times
from sdekit._names import did_you_mean
from sdekit._solve.solution import (
    Counted,
    NotFiniteError,
    Point,
    Solution,
    not_finite,
    require_state,
    shared,
)
from sdekit.elementary import Time
from sdekit.interop._originals import torchdiffeq_adjoint, torchdiffeq_odeint
from sdekit.interop._to_torchsde import held

State = tuple[Tensor, ...]

_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
_TOLERANT = (*_ADAPTIVE, "scipy_solver")


def engine(
    f: Callable[[Time, State], State],
    state: State,
    ts: Tensor | Sequence[float],
    *,
    rtol: float,
    atol: float,
    method: str,
) -> tuple[State, int]:
    """The state at the last time of d state / dt = f(t, state) by an adaptive method, and the
    number of evaluations.
    """
    if method not in _ADAPTIVE:
        raise ValueError(
            f"method {method!r} is not one of torchdiffeq's adaptive ones: {', '.join(_ADAPTIVE)}"
            f"{did_you_mean(method, _ADAPTIVE)}"
        )
    states, calls = trajectory(f, state, ts, rtol=rtol, atol=atol, method=method)
    return tuple(part[-1] for part in states), calls


def trajectory(
    f: Callable[[Time, State], State],
    state: State,
    ts: Tensor | Sequence[float],
    *,
    rtol: float,
    atol: float,
    method: str,
    options: dict[str, Any] | None = None,
    adjoint: Sequence[Tensor] | None = None,
) -> tuple[State, int]:
    """The states at all times, and the number of evaluations; with `adjoint`, gradients by
    torchdiffeq's adjoint equation.

    Two things that torchdiffeq leaves to its caller are done here: f is never asked for a time
    outside the interval, and a value that is not finite is reported instead of shrinking the step
    for ever.
    """
    grid = times(ts)
    calls = 0
    _require_tolerances(rtol, atol, state[0].dtype, method)
    low = min(grid)
    high = max(grid)

    def checked(t: Tensor, state: State) -> State:
        nonlocal calls
        calls += 1
        now = min(max(float(t.detach()), low), high)
        # torchdiffeq differentiates its first step: then times do depend on the state, and have to
        # stay tensors.
        slopes = f(t.clamp(low, high) if t.requires_grad else now, state)
        for slope in slopes:
            rows = slope if slope.shape == state[0].shape else slope.transpose(0, 1)
            if error := not_finite(Point(calls, now, rows)):
                raise NotFiniteError(calls, now, error.samples, len(rows), "evaluation")
        return slopes

    points = torch.tensor(grid, dtype=torch.float64, device=state[0].device)
    given: dict[str, Any] = {
        "rtol": rtol,
        "atol": atol,
        "method": method,
        "options": _options(method, points, options or {}),
    }
    try:
        if adjoint is None:
            states = torchdiffeq_odeint(checked, state, points, **given)
        else:
            states = torchdiffeq_adjoint(
                checked, state, points, **given, adjoint_params=tuple(adjoint)
            )
    except AssertionError as error:
        if "dt" not in str(error) and "max_num_steps" not in str(error):  # not torchdiffeq's
            raise
        raise ValueError(
            f"torchdiffeq's {method} stopped ({error}); ask for a larger rtol or atol than "
            f"{rtol:g} and {atol:g}"
        ) from error
    return cast(State, states), calls


def _options(method: str, points: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """The caller's, and for adaptive methods steps that end at the times of output."""
    if method not in _ADAPTIVE:
        return options
    jumps = torch.as_tensor(options.get("jump_t", ()), dtype=points.dtype, device=points.device)
    return {"step_t": points[~torch.isin(points, jumps)], **options}


def _require_tolerances(rtol: float, atol: float, dtype: torch.dtype, method: str) -> None:
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"rtol and atol are tolerances, from 0 on; not {rtol} and {atol}")
    finest = 4 * torch.finfo(dtype).eps
    if max(rtol, atol) < finest and method in _TOLERANT:
        raise ValueError(
            f"rtol = {rtol:g} and atol = {atol:g} are below what {dtype} resolves; ask for "
            f"{finest:.1g} or more, or use a "
            "wider dtype"
        )


def solve_ode(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    options: dict[str, Any] | None = None,
    adjoint: bool = False,
    adjoint_params: Iterable[Tensor] | None = None,
    save: Literal["last", "all"] = "last",
) -> Solution:
    """Solves dx = f(t, x) dt with one of torchdiffeq's methods, whose steps the whole batch shares.

    Arguments:
        problem: an equation without noise.
        x0: the initial states, floating, `(batch, *event)`.
        ts: the times, strictly monotone: those of output, and the grid of the methods with fixed
            steps.
        rtol, atol: the tolerances.
        method: adaptive, "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"; or with fixed
            steps, such as "rk4" and "implicit_adams"; or "scipy_solver", which has no gradients.
        options: torchdiffeq's, such as step_size, or solver="LSODA" for "scipy_solver".
        adjoint: whether gradients come from the adjoint equation, in memory that does not grow with
            the steps.
        adjoint_params: the tensors that get gradients besides x0; None means the parameters of the
            equation: those in its fields, and those that its functions close over or use as
            globals.
        save: "all" keeps the states at all ts.

    Raises:
        NotFiniteError: when the drift is not finite; `step` is then the number of the evaluation.
        ValueError: for a problem with noise, an unknown method, or tolerances that cannot be met.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> sdekit.interop.solve_ode(ode, torch.ones(4, 1), [0.0, 1.0], method="dopri5").x.shape
        torch.Size([4, 1])

    References:
        Chen et al. 2018, "Neural ordinary differential equations", arXiv 1806.07366, for the
        adjoint.
    """
    if problem.noise_type != "none":
        raise ValueError(
            f"this equation has {problem.noise_type} noise; torchdiffeq's solvers are for ODEs"
        )
    if save not in ("last", "all"):
        raise ValueError(
            f"save must be 'last' or 'all', not {save!r}{did_you_mean(save, ('last', 'all'))}"
        )
    require_state(x0)
    grid = torch.tensor(times(ts), dtype=torch.float64)
    counted = Counted.of(problem.within(float(grid[0]), float(grid[-1])), x0)
    if not len(x0):
        xs = x0.expand(len(grid), *x0.shape)
        evaluations = 0
    else:
        params = (
            [*(_parameters(problem) if adjoint_params is None else adjoint_params)]
            if adjoint
            else None
        )
        given: dict[str, Any] = {
            "rtol": rtol,
            "atol": atol,
            "method": method,
            "options": options,
            "adjoint": params,
        }
        (xs,), evaluations = trajectory(
            lambda t, state: (counted.drift(t, state[0]),), (x0.clone(),), grid, **given
        )
    return shared(
        xs[-1], grid, xs if save == "all" else None, None, evaluations=evaluations, steps=None
    )


def _parameters(problem: AbstractSDE) -> list[Tensor]:
    """The parameters within an equation, each once."""
    found = [
        item.parameters() if isinstance(item, nn.Module) else (item,) for item in held(problem)
    ]
    return list({id(param): param for some in found for param in some}.values())
