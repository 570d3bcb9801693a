"""Reverse time: Anderson's equation and the probability flow, from a forward equation and its score."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sdekit._sde import AbstractSDE, NoiseType, broadcast_noise
from sdekit.elementary import Time, axpy

Score = Callable[[Time, Tensor], Tensor]


def _require_additive(forward: AbstractSDE) -> None:
    if forward.noise_type != "additive":
        raise TypeError(
            f"the forward equation has {forward.noise_type} noise; reversing is supported for additive (state-independent, "
            "elementwise) noise, because other noise adds div(g g^T) to the drift"
        )


def _anderson(forward: AbstractSDE, score: Score, factor: float, t: Time, x: Tensor) -> Tensor:
    """f - factor g^2 s."""
    f, s, g = forward.drift(t, x), score(t, x), forward.diffusion(t, x)
    if s.shape != x.shape:
        raise ValueError(f"score(t, x) returned shape {tuple(s.shape)} for x of shape {tuple(x.shape)}; it must return x's")
    if isinstance(g, Tensor):
        return torch.addcmul(f, broadcast_noise(g.square(), x), s, value=-factor)
    return axpy(-factor * g * g, s, f)


@dataclass(frozen=True, eq=False)
class ReverseSDE(AbstractSDE):
    """dx = [f - (1 + eta^2)/2 g^2 s] dt + eta g dW, to be solved from late to early times.

    With s(t, x) = grad log p_t(x) its solution has the forward equation's marginals for every eta: 1 is Anderson's
    equation, 0 the probability flow.

    Arguments:
        forward: dx = f dt + g dW with additive elementwise noise.
        score: `s(t, x)`, shaped like x. t is a float, or `(batch,)`: `sdekit.elementary` has functions for both.
        eta: the noise level, from 0.

    Raises:
        TypeError: when the forward noise depends on the state.
        ValueError: for a negative eta.

    References:
        Anderson 1982, "Reverse-time diffusion equation models"; Huang et al. 2021, arXiv 2106.02808, for eta.
    """

    forward: AbstractSDE
    score: Score  # pyright: ignore[reportIncompatibleMethodOverride] - the method, given as a function
    eta: float = 1.0

    def __post_init__(self) -> None:
        _require_additive(self.forward)
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be a number from 0 (probability flow) on, 1 being Anderson's equation; not {self.eta}")

    @property
    def noise_type(self) -> NoiseType:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "additive" if self.eta else "none"

    def drift(self, t: Time, x: Tensor) -> Tensor:
        return _anderson(self.forward, self.score, 0.5 * (1 + self.eta**2), t, x)

    def diffusion(self, t: Time, x: Tensor) -> Time:
        return self.eta * self.forward.diffusion(t, x)

    def rows(self, index: Tensor) -> Self:
        return replace(self, forward=self.forward.rows(index))

    def kernel(self, t: float) -> tuple[float, float] | None:
        return self.forward.kernel(t)


@dataclass(frozen=True, eq=False)
class ProbabilityFlow(AbstractSDE):
    """dx = [f - g^2 s / 2] dt: the ordinary equation with the forward equation's marginals.

    Arguments and errors as in `ReverseSDE`.

    References:
        Song et al. 2021, arXiv 2011.13456, section 4.3.
    """

    noise_type = "none"

    forward: AbstractSDE
    score: Score  # pyright: ignore[reportIncompatibleMethodOverride] - the method, given as a function

    def __post_init__(self) -> None:
        _require_additive(self.forward)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        return _anderson(self.forward, self.score, 0.5, t, x)

    def diffusion(self, t: Time, x: Tensor) -> float:
        return 0.0

    def rows(self, index: Tensor) -> Self:
        return replace(self, forward=self.forward.rows(index))

    def kernel(self, t: float) -> tuple[float, float] | None:
        return self.forward.kernel(t)
