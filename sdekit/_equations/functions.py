"""Equations made of plain functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from sdekit._arguments.names import did_you_mean
from sdekit._equations.sde import AbstractSDE, NoiseType, SDEType
from sdekit.calling import checked_output, require_call, require_order
from sdekit.elementary import Time

_NOISE_TYPES = [name for name in get_args(NoiseType) if name != "none"]


def _as_tensor(t: Time, x: Tensor) -> Tensor:
    """t as a user's function receives it: 0-dim, or `(batch, 1, ...)` to broadcast against x; in
    float32 or float64.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if isinstance(t, Tensor):
        t = t if t.dtype == dtype else t.to(dtype)
        return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim == 1 else t
    return torch.full((), t, dtype=dtype, device=x.device)


def _call(name: str, function: Callable[[Tensor, Tensor], Tensor], t: Tensor, x: Tensor) -> Tensor:
    """function(t, x), with an error that names the expected arguments if it takes others."""
    try:
        return function(t, x)
    except TypeError:
        require_call(function, f"{name}(t, x)", t, x)
        raise


def _broadcast(g: Tensor, x: Tensor) -> Tensor:
    """g broadcast to the shape of x; g itself if torch cannot broadcast it."""
    try:
        return torch.broadcast_to(g, x.shape)
    except RuntimeError:
        return g


def _require_function(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Refuses what is not a function, or one of (x, t).

    Raises:
        TypeError: with its name.
    """
    if not callable(function):
        raise TypeError(f"{name} is a function of (t, x), not {function!r:.60}")
    require_order(function, "t, x")


def require_jumps(jumps: Any) -> None:  # noqa: ANN401 - what a user gives
    """Refuses anything but a sequence of numbers.

    Raises:
        TypeError: with an example.
    """
    try:
        _ = [float(t) for t in jumps]
    except (TypeError, ValueError):
        raise TypeError(f"jumps are times, such as (0.5,), not {jumps!r:.60}") from None


@dataclass(frozen=True, eq=False)
class SDE(AbstractSDE):
    """dx = f(t, x) dt + g(t, x) dW from two plain functions.

    Arguments:
        f: `f(t, x)`, shaped like x; t is a 0-dim tensor, or `(batch, 1, ...)` where samples have
            their own times. For float32 states, and narrower ones, t is rounded to float32, by up
            to 2^-24 |t|: far from 0 shift the times, or solve in float64.
        g: `g(t, x)`, shaped as the table in `AbstractSDE` says for the noise type; an additive or
            diagonal g may also be a number, or broadcast against x as torch does.
        noise_type: "additive", "diagonal", "scalar" or "general". "additive" is not checked: with a
            g that depends on x, solvers that rely on it converge to another law.
        sde_type: the calculus, "ito" or "stratonovich".
        noise_size: m, the number of Brownian motions of general noise; None for other noise.
        jumps: times at which f jumps, at which adaptive steps end.

    Raises:
        ValueError: for an unknown noise type or calculus, noise_size without general noise, or
            general noise without noise_size; in a solve, when f or g returns another shape.
        TypeError: for an f or g that is not a function, or whose arguments are named in the order
            (x, t); in a solve, when f or g returns anything but a tensor of real floating-point
            numbers.
        RuntimeError: in a solve, when f or g changes t, x or a tensor that it returned before in
            place.

    Example:
        >>> gbm = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x, "diagonal")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(gbm, torch.ones(4, 1), ts, solver=sdekit.EulerMaruyama()).x.shape
        torch.Size([4, 1])
    """

    checks_shapes = True

    f: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor, Tensor], Tensor]
    noise_type: NoiseType = "diagonal"
    sde_type: SDEType = "ito"
    noise_size: int | None = None
    jumps: Sequence[float] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if self.noise_type not in _NOISE_TYPES:
            raise ValueError(
                f"noise_type {self.noise_type!r} is not one of {_NOISE_TYPES}; without noise use "
                f"ODE(f){did_you_mean(self.noise_type, _NOISE_TYPES)}"
            )
        if self.sde_type not in ("ito", "stratonovich"):
            raise ValueError(
                f"sde_type {self.sde_type!r} is not 'ito' or "
                f"'stratonovich'{did_you_mean(self.sde_type, ('ito', 'stratonovich'))}"
            )
        _require_function("f", self.f)
        _require_function("g", self.g)
        require_jumps(self.jumps)
        if self.noise_type == "general" and self.noise_size is None:
            raise ValueError(
                "noise_type='general' needs noise_size=m, the number of Brownian motions"
            )
        if self.noise_size is not None and self.noise_type != "general":
            raise ValueError(
                "noise_size=m, the number of Brownian motions, goes with noise_type='general' and "
                "only there"
            )

    def drift(self, t: Time, x: Tensor) -> Tensor:
        return checked_output("f(t, x)", _call("f", self.f, _as_tensor(t, x), x), x.shape, x)

    def diffusion(self, t: Time, x: Tensor) -> Time:
        g = _call("g", self.g, _as_tensor(t, x), x)
        if self.noise_size is not None:
            return checked_output("g(t, x)", g, (*x.shape, self.noise_size), x)
        if self.noise_type != "scalar" and isinstance(g, (int, float)) and not isinstance(g, bool):
            return float(g)
        if self.noise_type != "scalar" and isinstance(g, Tensor) and g.shape != x.shape:
            g = _broadcast(g, x)
        return checked_output("g(t, x)", g, x.shape, x)

    def noise_shape(self, x: Tensor) -> tuple[int, ...] | None:
        return AbstractSDE.noise_shape(self, x) if self.noise_size is None else (self.noise_size,)


@dataclass(frozen=True, eq=False)
class ODE(AbstractSDE):
    """dx = f(t, x) dt from a plain function.

    Arguments:
        f: `f(t, x)`, shaped like x; t is a 0-dim tensor, or `(batch, 1, ...)` where samples have
            their own times, rounded as for `SDE`.
        jumps: times at which f jumps, at which adaptive steps end.

    Raises:
        TypeError: for an f that is not a function, or a function whose arguments are named in the
            order (x, t).
        TypeError, ValueError, RuntimeError: in a solve, as `SDE`.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(ode, torch.ones(4, 1), ts, solver=sdekit.RK4()).x.shape
        torch.Size([4, 1])
    """

    noise_type = "none"
    checks_shapes = True

    f: Callable[[Tensor, Tensor], Tensor]
    jumps: Sequence[float] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        _require_function("f", self.f)
        require_jumps(self.jumps)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        return checked_output("f(t, x)", _call("f", self.f, _as_tensor(t, x), x), x.shape, x)
