"""The reverse equation without its linear part, on a clock on which any solver applies."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from sdekit import AbstractClocked, AngleClocked, Clocked, PiecewiseClocked, geometric
from sdekit.elementary import Time, axpy, broadcast, exp, scaled, sqrt
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.piecewise import PiecewiseLinear
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.grids import Span

Integrand = Literal["data", "noise", "velocity"]
_LARGEST = 0.99 * math.log(torch.finfo(torch.float64).max)  # of the logarithm of a clock


@dataclass(frozen=True, eq=False)
class Denoising(Clocked):
    """The equation of `on_clock` with the data predicted: what the network is given besides x goes with its samples."""

    model: AbstractModel = field(kw_only=True)
    sde: AbstractDiffusion = field(kw_only=True)

    def rows(self, index: Tensor) -> Self:
        model = self.model.rows(index)
        return replace(self, model=model, integrand=partial(model.denoise, sde=self.sde))


def on_clock(model: AbstractModel, sde: AbstractDiffusion, eta: float = 0.0, integrand: Integrand = "data") -> AbstractClocked:
    """The reverse equation of noise level eta without its linear part, l = log(alpha / sigma).

    With the data predicted, y = x e^{eta^2 l} / sigma,  dy = D d e^{(1 + eta^2) l} + dB_Q,  Q = e^{2 eta^2 l}. For eta = 0
    with the noise, y = x / alpha,  dy = eps d e^{-l}; or with the velocity, c = data_std / 4, r^2 = (c alpha)^2 + sigma^2 and
    the angle theta = arctan(c alpha / sigma),

        y = c x / r,  dy = F d theta,  F = cos(theta) D - c sin(theta) eps = (r D - c^2 alpha x / r) / sigma.

    F is 0 where the data are N(0, c^2 I), nearly D where sigma is larger than c alpha and -c eps where it is smaller. An error
    of a state that is only predicted is damped in D above the deviations of the data and in eps below them; c stands between
    the deviation of the data and those of their details. For c = 1 and alpha^2 + sigma^2 = 1, F is -v, v = alpha eps - sigma D.

    References:
        Zhang and Chen 2023, arXiv 2204.13902; Lu et al. 2022, arXiv 2211.01095, for eta = 0 and 1; for the velocity Salimans
        and Ho 2022, arXiv 2202.00512, and with c Lu and Song 2024, arXiv 2410.11081.
    """
    sde = sde.unchecked()
    if integrand == "velocity":
        return turning(model, sde, model.data_std / 4)
    if integrand == "noise":

        def noise(t: Time, x: Tensor) -> Tensor:
            return model.score(t, x, sde) * broadcast(-sde.sigma(t), x)

        return Clocked(noise, lambda l: sde.alpha(sde.time_within(l)), a=-1.0, own=sde.time_within, smooth=model.clock)

    def scale(l: Time) -> Time:
        return sde.sigma(sde.time_within(l)) * exp(-(eta**2) * l)

    denoised, a, q = partial(model.denoise, sde=sde), 1 + eta**2, 2 * eta**2
    return Denoising(denoised, scale, a, q, own=sde.time_within, smooth=model.clock, model=model, sde=sde)


def turning(model: AbstractModel, sde: AbstractDiffusion, c: float) -> AngleClocked:
    """`on_clock` with the velocity of some c."""

    def radius(t: Time) -> tuple[Time, Time, Time]:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return alpha, sigma, sqrt((c * alpha) * (c * alpha) + sigma * sigma)

    def velocity(t: Time, x: Tensor) -> Tensor:
        alpha, sigma, r = radius(t)
        return axpy(-(c * c) * alpha / (r * sigma), x, scaled(r / sigma, model.denoise(t, x, sde)))

    return AngleClocked(velocity, lambda l: radius(sde.time_within(l))[2] / c, own=sde.time_within, smooth=model.clock, c=c)


def clock_knots(eta: float, span: Span) -> Tensor:
    """Geometric on the clock (alpha / sigma)^(2 eta^2), the ratio of neighbours at most 4.

    Raises:
        ValueError: where floats do not hold that clock.
    """
    if max(abs(2 * eta**2 * l) for l in span) > _LARGEST:
        raise ValueError(f"one path on the clock (alpha / sigma)^(2 eta^2) is too long for eta = {eta}; take a smaller one")
    start, stop = (math.exp(2 * eta**2 * l) for l in span)
    return geometric(start, stop, math.ceil(math.log(stop / start, 4)))


def on_steps(model: AbstractModel, sde: AbstractDiffusion, eta: Callable[[float], float], grid: Tensor) -> PiecewiseClocked:
    """The same with a noise level that depends on l, taken in the middle of each step and kept on it.

    With E the integral of eta^2 from l = 0, y = x e^E / sigma,  dy = D d e^{E + l} + dB_Q,  Q = e^{2 E}.

    Arguments:
        grid: l at the ends of the steps.

    Raises:
        ValueError: where eta is not a number from 0 on.

    References:
        Xue et al. 2023, arXiv 2309.05019, where eta is called tau.
    """
    l, middles = grid.numpy(), (0.5 * (grid[1:] + grid[:-1])).tolist()
    levels = np.array([level(float(eta(middle))) for middle in middles])
    total = np.append(0.0, np.cumsum(levels**2 * np.diff(l)))
    total = total - np.interp(0.0, l, total)
    exponent = PiecewiseLinear(tuple(l.tolist()), tuple(total.tolist()))

    def scale(l: Time) -> Time:
        return sde.sigma(sde.time_within(l)) * exp(-exponent(l))

    return PiecewiseClocked(
        partial(model.denoise, sde=sde), scale, l, log_a=l + total, log_q=2 * total, own=sde.time_within, smooth=model.clock
    )


def level(eta: float) -> float:
    """A noise level, refused unless it is a number from 0 on."""
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be a number from 0 (probability flow) on, 1 being the reverse SDE; not {eta}")
    return eta
