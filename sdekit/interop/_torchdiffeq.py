"""torchdiffeq's solvers, with steps that the batch shares, and its adjoint method, for equations of
sdekit.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdekit._equations.sde import AbstractSDE
from sdekit._grid import fixed_times
from sdekit._solve.arguments import require_save
from sdekit._solve.counted import Counted
from sdekit._solve.solution import (
    NotFiniteError,
    Point,
    Solution,
    not_finite,
    require_state,
    solution_of_equal_steps,
)
from sdekit.elementary import Time
from sdekit.interop._originals import torchdiffeq_adjoint, torchdiffeq_odeint
from sdekit.interop._to_torchsde import modules_and_parameters

_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
_TOLERANT = (*_ADAPTIVE, "scipy_solver")


class _Field:
    """The drift of an equation as torchdiffeq calls it, on a tuple of one state.

    The drift is never called at a time outside the interval, and a value that is not finite is an
    error; torchdiffeq would make its steps shorter for ever.

    Attributes:
        evaluations: the number of evaluations so far.
        failed: whether an assertion within the drift failed.
    """

    def __init__(self, drift: Callable[[Time, Tensor], Tensor], ts: Sequence[float]) -> None:
        self.drift = drift
        self.low = min(ts)
        self.high = max(ts)
        self.evaluations = 0
        self.failed = False

    def __call__(self, t: Tensor, state: tuple[Tensor]) -> tuple[Tensor]:
        self.evaluations += 1
        clamped = min(max(float(t.detach()), self.low), self.high)
        # torchdiffeq differentiates its first step: times then depend on the state and must remain
        # tensors.
        time = t.clamp(self.low, self.high) if t.requires_grad else clamped
        try:
            slope = self.drift(time, state[0])
        except AssertionError:
            self.failed = True
            raise
        if error := not_finite(Point(self.evaluations, clamped, slope)):
            raise NotFiniteError(self.evaluations, clamped, error.samples, len(slope), "evaluation")
        return (slope,)


def _trajectory(
    field: _Field,
    x0: Tensor,
    ts: Sequence[float],
    *,
    rtol: float,
    atol: float,
    method: str,
    options: dict[str, Any],
    adjoint: Sequence[Tensor] | None,
) -> Tensor:
    """The states at all times; with `adjoint`, gradients are by torchdiffeq's adjoint method, also
    those with respect to these tensors.
    """
    _require_tolerances(rtol, atol, x0.dtype, method)
    points = torch.tensor(ts, dtype=torch.float64, device=x0.device)
    settings: dict[str, Any] = {
        "rtol": rtol,
        "atol": atol,
        "method": method,
        "options": _options(method, points, options),
    }
    try:
        if adjoint is None:
            (xs,) = torchdiffeq_odeint(field, (x0,), points, **settings)
        else:
            (xs,) = torchdiffeq_adjoint(field, (x0,), points, **settings, adjoint_params=adjoint)
    except AssertionError as error:
        # Arguments are checked before the first evaluation.
        if field.failed or not field.evaluations or method not in _ADAPTIVE:
            raise
        if failure := not_finite(Point(0, ts[0], x0)):
            raise failure from error
        raise ValueError(
            f"torchdiffeq's {method} stopped ({error}); ask for a larger rtol or atol than "
            f"{rtol:g} and {atol:g}"
        ) from error
    return xs


def _options(method: str, points: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """The caller's options; adaptive methods also get the times of output as ends of steps."""
    if method not in _ADAPTIVE:
        return options
    jumps = torch.as_tensor(options.get("jump_t", ()), dtype=points.dtype, device=points.device)
    return {"step_t": points[~torch.isin(points, jumps)], **options}


def _require_tolerances(rtol: float, atol: float, dtype: torch.dtype, method: str) -> None:
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"rtol and atol are tolerances, from 0 on; not {rtol} and {atol}")
    resolution = 4 * torch.finfo(dtype).eps
    if max(rtol, atol) < resolution and method in _TOLERANT:
        raise ValueError(
            f"rtol = {rtol:g} and atol = {atol:g} are below what {dtype} resolves; ask for "
            f"{resolution:.1g} or more, or use a wider dtype"
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
        x0: the initial states, floating-point, `(batch, *event)`.
        ts: the times, strictly monotone: those of output, and the grid of methods with fixed steps.
        rtol, atol: the tolerances of adaptive methods and of "scipy_solver".
        method: an adaptive method, "dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun"; a
            method with fixed steps, such as "rk4" or "implicit_adams"; or "scipy_solver", which has
            no gradients.
        options: torchdiffeq's options, such as {"step_size": 0.1}, or {"solver": "LSODA"} for
            "scipy_solver".
        adjoint: whether gradients come from the adjoint equation, with memory that does not grow
            with the number of steps.
        adjoint_params: the tensors that get gradients besides x0; None means the parameters of the
            equation: those in its fields, and those that its functions close over or use as
            globals.
        save: "all" keeps the states at all ts, "last" only those at the last.

    Returns:
        a `Solution`, whose accepted and rejected are None.

    Raises:
        NotFiniteError: when the drift is not finite; `step` is then the number of the evaluation.
        RuntimeError: when the drift changes its input or an earlier result in place.
        TypeError: when x0 is not a floating-point tensor with a batch dimension, or ts are not
            numbers.
        ValueError: for a problem with noise, times that are not monotone, an unknown method, or
            tolerances that cannot be met.

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
    require_save(save)
    require_state(x0)
    grid = fixed_times(ts)
    counted = Counted.of(problem.within(grid[0], grid[-1]), x0)
    field = _Field(counted.drift, grid)
    xs = x0.expand(len(grid), *x0.shape)
    if len(x0):
        params = None
        if adjoint:
            params = tuple(_parameters(problem) if adjoint_params is None else adjoint_params)
        xs = _trajectory(
            field,
            x0.clone(),
            grid,
            rtol=rtol,
            atol=atol,
            method=method,
            options=options or {},
            adjoint=params,
        )
    counted.require_unchanged()
    times_tensor = torch.tensor(grid, dtype=torch.float64)
    states = xs if save == "all" else None
    return solution_of_equal_steps(
        xs[-1], times_tensor, states, None, evaluations=field.evaluations, steps=None
    )


def _parameters(problem: AbstractSDE) -> list[Tensor]:
    """The parameters within an equation, each once."""
    groups = [
        item.parameters() if isinstance(item, nn.Module) else (item,)
        for item in modules_and_parameters(problem)
    ]
    return list({id(param): param for group in groups for param in group}.values())
