"""The reverse equation without its linear part, on a clock on which any solver applies."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import lt
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sdekit import (
    AbstractClocked,
    AngleClocked,
    Clocked,
    PiecewiseClocked,
    computed,
    geometric,
)
from sdekit.elementary import Time, axpy, exp, scaled, sqrt
from sdekit_diffusion._arguments.inputs import is_one_number
from sdekit_diffusion._diffusions.piecewise import PiecewiseLinear
from sdekit_diffusion._models.affine import Affine, Function, prepared
from sdekit_diffusion._models.model import AbstractModel, noise_scale, signal_scale
from sdekit_diffusion._sampling.coordinates import Span
from sdekit_diffusion._sampling.focused import smooth


def identity(l: Time) -> Time:
    """l itself."""
    return l


Integrand = Literal["data", "noise", "velocity"]
Plans = dict[Hashable, Any]
VELOCITY_SCALE = 1.0  # chosen by benchmarks/choice.py
_LARGEST = 0.99 * math.log(torch.finfo(torch.float64).max)  # of the logarithm of a clock


@dataclass(frozen=True, eq=False)
class DenoiserClocked(Clocked):
    """The equation of `on_clock` with the data predicted, with its `drifts`; `rows` also takes the
    rows of the model, which may have values per sample.
    """

    model: AbstractModel = field(kw_only=True)

    @computed
    def jumps(self) -> list[float]:
        return [float(self.time(torch.tensor(l, dtype=torch.float64))) for l in self.model.jumps]

    def drifts(self, times: Sequence[Tensor], x: Tensor) -> list[Function] | None:
        network_call = self.model.network_call()
        if network_call is None:
            return None
        l, scale, rate = self.at(torch.cat([*times]))
        slope = self.model.affine(torch.as_tensor(l), "data").at(scale).times(rate)
        return network_call.in_rows(slope, len(times), x)

    def rows(self, index: Tensor) -> Self:
        model = self.model.rows(index)
        return replace(self, model=model, integrand=model.predict_data)


def on_clock(
    model: AbstractModel,
    eta: float = 0.0,
    integrand: Integrand = "data",
    own: Callable[[Time], Time] = identity,
    plans: Plans | None = None,
) -> AbstractClocked:
    """The reverse equation of noise level eta without its linear part, for u = a z + b eps,
    a^2 + b^2 = 1, l = log(a / b).

    With the data predicted, where B_Q is Brownian motion in the time Q,

        y = u e^{eta^2 l} / b,  dy = D d e^{(1 + eta^2) l} + dB_Q,  Q = e^{2 eta^2 l}.

    For eta = 0 with the noise predicted, y = u / a and dy = eps d e^{-l}. For eta = 0 with the
    velocity v = a eps - b D, at the angle theta = arctan(a / b), y = u and

        du = F d theta,  F = -v = cos(theta) D - sin(theta) eps = (D - a u) / b.

    F is 0 where the data are N(0, I), nearly D where b is much larger than a, and nearly -eps where
    it is much smaller. So errors of the state are damped at all levels: by D at noise above the
    standard deviation of the data, which is 1, and by eps below it.

    Arguments:
        own: a diffusion's time as a function of l, in which some published rules interpolate.
        plans: a cache of the plans of multistep rules on this clock.

    References:
        Zhang and Chen 2023, arXiv 2204.13902; Lu et al. 2022, arXiv 2211.01095, for eta = 0 and 1;
        for the velocity Salimans and Ho 2022, arXiv 2202.00512.
    """
    if integrand == "velocity":
        return velocity_on_angle(model, VELOCITY_SCALE, own, plans)
    prepare = partial(_prepare_prediction, model, eta, integrand)
    settings = {"own": own, "smooth": smooth_of(model), "prepare": prepare, "plans": plans}
    if integrand == "noise":
        return Clocked(model.predict_noise, signal_scale, a=-1.0, **settings)

    def scale(l: Time) -> Time:
        return noise_scale(l) * exp(-(eta**2) * l)

    return DenoiserClocked(
        model.predict_data,
        scale if eta else noise_scale,
        1 + eta**2,
        2 * eta**2,
        model=model,
        **settings,
    )


Coefficients = Callable[[], tuple[Time, Time, Time]]


def _prepare_prediction(
    model: AbstractModel,
    eta: float,
    prediction: Literal["data", "noise"],
    ts: Sequence[float],
    levels: Coefficients,
) -> list[Function] | None:
    """For each level, rate times the prediction at u = scale y, as a function of y."""

    def numbers() -> Affine:
        l, scale, rate = levels()
        return model.affine(torch.as_tensor(l), prediction).at(scale).times(rate)

    return prepared(model, ("clock", eta, prediction, *ts), len(ts), numbers)


def velocity_on_angle(
    model: AbstractModel,
    c: float,
    own: Callable[[Time], Time] = identity,
    plans: Plans | None = None,
) -> AngleClocked:
    """`on_clock` with a velocity, for data of standard deviation c:

        y = c u / r,  dy = F d arctan(c a / b),  r^2 = (c a)^2 + b^2,
        F = (r D - c^2 a u / r) / b,

    which is 0 where the data are N(0, c^2 I).

    References:
        Lu and Song 2024, arXiv 2410.11081.
    """

    def radius(l: Time) -> tuple[Time, Time, Time]:
        a = signal_scale(l)
        b = noise_scale(l)
        return a, b, sqrt((c * a) * (c * a) + b * b)

    def velocity(l: Time, u: Tensor) -> Tensor:
        a, b, r = radius(l)
        return axpy(-(c * c) * a / (r * b), u, scaled(r / b, model.predict_data(l, u)))

    def prepare(ts: Sequence[float], levels: Coefficients) -> list[Function] | None:
        def numbers() -> Affine:
            l, scale, _ = levels()
            a, b, r = radius(l)
            denoiser = model.affine(torch.as_tensor(l), "data")
            return denoiser.times(r / b, skip_term=-(c * c) * a / (r * b)).at(scale)

        return prepared(model, ("angle", c, *ts), len(ts), numbers)

    def scale(l: Time) -> Time:
        return 1.0 if c == 1 else radius(l)[2] / c

    settings = {"own": own, "smooth": smooth_of(model), "prepare": prepare, "plans": plans}
    return AngleClocked(velocity, scale, c=c, **settings)


def smooth_of(model: AbstractModel) -> Callable[[Time], Time]:
    """The variable in which a model is smooth, as a function of l."""
    return partial(smooth, extent=math.sqrt(math.prod(model.shape or ())))


def clock_knots(eta: float, span: Span) -> Tensor:
    """Knots in geometric progression on the clock (alpha / sigma)^(2 eta^2), with a ratio of
    neighbours of at most 4.

    Raises:
        ValueError: where floats do not hold that clock, or do not resolve it.
    """
    if max(abs(2 * eta**2 * l) for l in span) > _LARGEST:
        raise ValueError(
            f"one path on the clock (alpha / sigma)^(2 eta^2) is too long for eta = {eta}; take a "
            "smaller one"
        )
    start, stop = (math.exp(2 * eta**2 * l) for l in span)
    require_distinct(eta, [start, stop])
    return geometric(start, stop, math.ceil(math.log(stop / start, 4)))


def require_distinct(eta: float, times: Sequence[float]) -> None:
    """Refuses an eta so small that times on its clock are equal in float64.

    Raises:
        ValueError: with what to change.
    """
    if not all(map(lt, times, times[1:])):
        raise ValueError(
            f"eta = {eta} is so small that the clock (alpha / sigma)^(2 eta^2) does not change "
            "over a step: give eta = 0 for no noise, or a larger one"
        )


def piecewise_on_clock(
    model: AbstractModel,
    eta: Callable[[float], float],
    grid: Tensor,
    own: Callable[[Time], Time] = identity,
) -> PiecewiseClocked:
    """The equation of `on_clock` with the data predicted and a noise level that depends on l, taken
    in the middle of each step and constant over it.

    With E(l) the integral of eta^2 from 0 to l,

        y = u e^E / b,  dy = D d e^{E + l} + dB_Q,  Q = e^{2 E}.

    Arguments:
        grid: l at the ends of the steps.

    Raises:
        ValueError: where eta is negative or not finite.

    References:
        Xue et al. 2023, arXiv 2309.05019, where eta is called tau.
    """
    l = grid.numpy()
    midpoints = (0.5 * (grid[1:] + grid[:-1])).tolist()
    etas = np.array([checked_eta(float(eta(middle))) for middle in midpoints])
    integral = np.append(0.0, np.cumsum(etas**2 * np.diff(l)))
    integral = integral - np.interp(0.0, l, integral)
    exponent = PiecewiseLinear(tuple(l.tolist()), tuple(integral.tolist()))

    def scale(l: Time) -> Time:
        return noise_scale(l) * exp(-exponent(l))

    return PiecewiseClocked(
        model.predict_data,
        scale,
        l,
        log_a=l + integral,
        log_q=2 * integral,
        own=own,
        smooth=smooth_of(model),
    )


def checked_eta(eta: float) -> float:
    """eta, after a check that it is a finite number that is not negative.

    Raises:
        TypeError, ValueError: with what eta means.
    """
    number = is_one_number(eta)
    if not number or not 0 <= eta < math.inf:
        raise (ValueError if number else TypeError)(
            "eta must be a number from 0 (probability flow) on, 1 being the reverse SDE; not "
            f"{eta!r:.60}"
        )
    return float(eta)
