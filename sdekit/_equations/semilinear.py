"""Equations with a known linear part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdekit._equations.functions import ODE, SDE, require_jumps
from sdekit._equations.sde import AbstractSDE, NoiseType, SDEType
from sdekit.calling import check_of, require_derivative
from sdekit.elementary import Time


@dataclass(frozen=True, eq=False)
class SemiLinear(AbstractSDE):
    """dx = (A x + f(t, x)) dt + g(t, x) dW, where A is a number or diagonal.

    Every solver applies; `ExponentialEuler(A)` and `ExponentialHeun(A)` solve the linear part
    exactly, even if it is stiff.

    Arguments:
        linear: A, a float or a tensor that broadcasts against the event.
        f: `f(t, x)`, as in `SDE`: the drift without A x.
        g: `g(t, x)`, as in `SDE`; None without noise.
        noise_type: "none", "additive", "diagonal", "scalar" or "general".
        sde_type: "ito" or "stratonovich".
        noise_size: m, the number of Brownian motions of general noise.
        jumps: times at which f jumps, at which adaptive steps end.

    Raises:
        ValueError: for an unknown noise type or calculus, noise without g or g without noise,
            noise_size without general noise, or general noise without noise_size.
        TypeError, ValueError, RuntimeError: as `SDE`.

    Example:
        >>> f, g = lambda t, x: torch.cos(x), lambda t, x: 1.0
        >>> stiff = sdekit.SemiLinear(-1000.0, f, g, "additive")
        >>> ts, solver = sdekit.uniform(0.0, 1.0, 10), sdekit.ExponentialHeun(-1000.0)
        >>> sdekit.solve(stiff, torch.ones(4, 1), ts, solver=solver).x.shape
        torch.Size([4, 1])
    """

    linear: float | Tensor
    f: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor, Tensor], Tensor] | None = None
    noise_type: NoiseType = "none"
    sde_type: SDEType = "ito"
    noise_size: int | None = None
    jumps: Sequence[float] = field(default=(), kw_only=True)
    rest: AbstractSDE = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if (self.g is None) != (self.noise_type == "none"):
            raise ValueError(
                f"noise_type {self.noise_type!r} does not fit g = {self.g}; give g for noise, and "
                "leave g out for noise_type 'none'"
            )
        rest = (
            ODE(self.f)
            if self.g is None
            else SDE(self.f, self.g, self.noise_type, self.sde_type, self.noise_size)
        )
        object.__setattr__(self, "rest", rest)
        require_jumps(self.jumps)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        linear = self.linear.to(x) if isinstance(self.linear, Tensor) else self.linear
        # Checks that the sum would hide.
        rest = check_of(t, x)("f(t, x)", self.rest.drift, t, x)
        require_derivative("f(t, x)", rest, x)
        return torch.add(rest, linear * x)

    def jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        self.rest._require_followed(t, x)
        return super().jacobian(t, x)

    def jacobian_product(self, t: Tensor, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        self.rest._require_followed(t, x)
        return super().jacobian_product(t, x)

    def diffusion(self, t: Time, x: Tensor) -> Time:
        return self.rest.diffusion(t, x)

    def noise_shape(self, x: Tensor) -> tuple[int, ...] | None:
        return self.rest.noise_shape(x)
