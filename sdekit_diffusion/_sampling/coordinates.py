"""Standardised coordinates, in which reverse equations are solved under any diffusion and for data
of any scale.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from sdekit import NotFiniteError, Point, Solution, UnfinishedError, computed
from sdekit.elementary import Time, broadcast, scaled, sqrt, sum_of_sample
from sdekit_diffusion._arguments.immutable import is_immutable
from sdekit_diffusion._arguments.inputs import is_one_number
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.affine import Affine, NetworkCall
from sdekit_diffusion._models.data_scale import data_scale
from sdekit_diffusion._models.derived import AbstractDerivedModel
from sdekit_diffusion._models.model import AbstractModel, noise_scale, signal_scale

Span = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Standardised(AbstractDerivedModel):
    """A model of z = (x_0 - m) / s, data of mean 0 and standard deviation 1, from a model of x_0.

    A state u = a z + b eps with l = log(a / b) corresponds to the state u_0 = a_0 x_0 + b_0 eps of
    x_0 = m + s z at the log-SNR l_0 = log(a_0 / b_0) = l - log(s):

        u_0 = a_0 m + r u,  r^2 = (a_0 s)^2 + b_0^2,

    since a = a_0 s / r and b = b_0 / r.
    """

    mean: Tensor | float
    std: float
    event: tuple[int, ...] | None = None  # the shape of a sample, for a model that does not know it

    @computed
    def shape(self) -> tuple[int, ...] | None:
        return self.model.shape if self.event is None else self.event

    @computed
    def jumps(self) -> tuple[float, ...]:
        return tuple(l + math.log(self.std) for l in self.model.jumps)

    def model_input(self, l: Time, u: Tensor) -> tuple[Time, Tensor]:
        """l_0 and u_0, with which the model of x_0 is evaluated."""
        level = l - math.log(self.std)
        a = signal_scale(level)
        r = sqrt((a * self.std) ** 2 + noise_scale(level) ** 2)
        return level, shifted(self.mean, a, scaled(r, u))

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        level, point = self.model_input(l, u)
        data = self.model.predict_data(level, point)
        return scaled(1 / self.std, shifted(self.mean, -1.0, data))

    def predict_noise(self, l: Time, u: Tensor) -> Tensor:
        return self.model.predict_noise(*self.model_input(l, u))

    @property
    def shifts(self) -> bool:
        """Whether the mean of the data is not 0."""
        return isinstance(self.mean, Tensor) or self.mean != 0

    def network_call(self) -> NetworkCall | None:
        inner = self.model.network_call()
        if inner is None:
            return None
        key = None if inner.key is None else (inner.key, self.std, self.shifts)
        return inner._replace(key=key, m=self.mean)

    def affine(self, l: Time, prediction: Literal["data", "noise"]) -> Affine:
        level = l - math.log(self.std)
        a = signal_scale(level)
        r = sqrt((a * self.std) ** 2 + noise_scale(level) ** 2)
        affine_prediction = self.model.affine(level, prediction).at(r, a if self.shifts else 0.0)
        return (
            affine_prediction
            if prediction == "noise"
            else affine_prediction.times(1 / self.std, mean=-float(self.shifts))
        )


def shifted(mean: Tensor | float, factor: Time, x: Tensor) -> Tensor:
    """x + factor mean; mean is a number or shaped like one sample."""
    if not isinstance(mean, Tensor):
        return x + broadcast(factor * mean, x) if mean else x
    return x + broadcast(factor, x) * mean.to(x)


def event_of(x: object) -> tuple[int, ...]:
    """The shape of one sample of a batch; () for other objects, which are refused elsewhere."""
    return tuple(x.shape[1:]) if isinstance(x, Tensor) else ()


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The coordinates u and l in which a reverse equation is solved, and their conversion to x_t
    and t of a diffusion.

    States are u = a z + b eps with z = (x_0 - m) / s, a^2 + b^2 = 1, and times are l = log(a / b),
    which is log(alpha s / sigma):

        x_t = alpha m + r u,  r^2 = (alpha s)^2 + sigma^2.

    Attributes:
        sde: the diffusion.
        mean, std: m, a number or shaped like one sample, and s.
        event: the shape of a sample.
        extent: sigma / (alpha s) above which a model hardly changes: sqrt(d), the norm of z in d
            coordinates.
        trained_under: the diffusion of the model, in whose time a network may vary fast; None if
            the model has none.
        grids: grids, with their points in these coordinates and the times there, that a method
            needs several times.
    """

    sde: AbstractDiffusion
    mean: Tensor | float = 0.0
    std: float = 1.0
    event: tuple[int, ...] = ()
    extent: float = 1.0
    trained_under: AbstractDiffusion | None = None
    grids: dict[Hashable, tuple[object, tuple[float, ...], tuple[float, ...]]] = field(
        default_factory=dict, init=False, repr=False
    )

    @staticmethod
    def of(
        model: AbstractModel, sde: AbstractDiffusion, shape: tuple[int, ...] | None = None
    ) -> "Coordinates":
        """The coordinates for the data of a model."""
        event = model.shape if shape is None else shape
        scale = data_scale(model, event, sde)
        mean = scale.mean
        if isinstance(mean, Tensor):
            mean = mean.to(model.place()[1])
        event = tuple(event or ())
        return Coordinates(sde, mean, scale.std, event, math.sqrt(math.prod(event)), model.sde)

    def standardised(self, model: AbstractModel) -> AbstractModel:
        """The model of z; the model itself if its data are standardised."""
        if self.std == 1 and not self.shifts and model.shape is not None:
            return model
        return Standardised(model, self.mean, self.std, self.event)

    @property
    def shifts(self) -> bool:
        """Whether the mean of the data is not 0."""
        return isinstance(self.mean, Tensor) or self.mean != 0

    def time(self, l: Time) -> Time:
        """The diffusion's time at l."""
        return self.sde.time_within(l - math.log(self.std))

    def log_snr(self, t: Time) -> Time:
        """l at a time of the diffusion."""
        return self.sde.log_snr(t) + math.log(self.std)

    def radius(self, t: Time) -> Time:
        """r at a time of the diffusion."""
        if self.std == 1 and self.sde.preserves_variance:
            return 1.0
        signal = self.sde.alpha(t) * self.std
        sigma = self.sde.sigma(t)
        return sqrt(signal * signal + sigma * sigma)

    def physical(self, t: Time, u: Tensor) -> Tensor:
        """x_t from u."""
        x = scaled(self.radius(t), u)
        return shifted(self.mean, self.sde.alpha(t), x) if self.shifts else x

    def standard(self, t: Time, x: Tensor) -> Tensor:
        """u from x_t."""
        centred = shifted(self.mean, -self.sde.alpha(t), x) if self.shifts else x
        return scaled(1 / self.radius(t), centred)

    def standard_data(self, x: Tensor) -> Tensor:
        """z = (x_0 - m) / s."""
        return scaled(1 / self.std, shifted(self.mean, -1.0, x))

    def denoised(self, z: Tensor) -> Tensor:
        """x_0 = m + s z."""
        return shifted(self.mean, 1.0, scaled(self.std, z))

    def _end_scales(self, l: float, *, noisy: bool) -> tuple[float, float]:
        """p and q of x = p m + q u at an end of a solve, where x is x_T at the noisy end and
        x_t / alpha at the clean one.
        """
        if noisy:
            t = float(self.time(l))
            return float(self.sde.alpha(t)), float(self.radius(t))
        return 1.0, self.std / float(signal_scale(l))

    def enter(self, span: Span, x: Tensor) -> Tensor:
        """u at the first end of a span of l, from x_T if this is the noisy end, else from
        x_t / alpha.
        """
        p, q = self._end_scales(span[0], noisy=span[0] < span[1])
        return scaled(1 / q, shifted(self.mean, -p, x))

    def leave(self, span: Span, u: Tensor) -> Tensor:
        """x_T or x_t / alpha at the last end of a span of l, from u."""
        p, q = self._end_scales(span[1], noisy=span[1] < span[0])
        return shifted(self.mean, p, scaled(q, u))

    def log_scaling(self, span: Span) -> float:
        """For one coordinate, the log of dx/du at the last end of a span minus that at the first,
        with x as in `enter` and `leave`.
        """
        first = self._end_scales(span[0], noisy=span[0] < span[1])[1]
        last = self._end_scales(span[1], noisy=span[1] < span[0])[1]
        return math.log(last / first)

    def log_prior(self, span: Span, x: Tensor) -> Tensor:
        """log N(x; alpha m, r^2 I) at the noisy end of a span, in nats, float64: `(batch, *event)`
        to `(batch,)`.
        """
        u = self.enter((min(span), max(span)), x)
        log_norm = math.log(2 * math.pi) + 2 * math.log(self._end_scales(min(span), noisy=True)[1])
        squares = sum_of_sample(u.to(torch.float64).square())
        return -0.5 * (squares + math.prod(u.shape[1:]) * log_norm)

    def span(self, model: AbstractModel, end: float) -> Span:
        """The range of l that the model and the diffusion share, down to sigma / alpha = end s.

        Raises:
            TypeError: when end is not a number.
            ValueError: when end is not positive, or the range is empty.
        """
        if not is_one_number(end):
            raise TypeError(
                f"end is a number, sigma / alpha where a solve stops, such as 1e-3; not {end!r:.60}"
            )
        if not end > 0:
            raise ValueError(
                "end is sigma / alpha where the solve stops, a positive number such as 1e-3; not "
                f"{end}"
            )
        starts, stops = zip(*map(self._range, self._shared(model)), strict=True)
        start = max(starts)
        stop = min(-math.log(end), *stops)
        if not start < stop:
            description = "" if model.sde is None else f" with a model of {model.sde}"
            raise ValueError(
                f"nothing to solve: sigma / alpha runs from {self.std * math.exp(-start):.3g} to "
                f"{self.std * math.exp(-stop):.3g} under {self.sde}{description}; choose a smaller "
                f"end{self.start(model)[1].more_noise} or another diffusion"
            )
        return start, stop

    def start(self, model: AbstractModel) -> tuple[float, AbstractDiffusion]:
        """l at the noisy end of a solve, and the diffusion, of those in `_shared`, that sets it."""
        ends = [(self._range(sde)[0], sde) for sde in self._shared(model)]
        return max(ends, key=lambda end: end[0])

    def cleanest(self, model: AbstractModel) -> AbstractDiffusion:
        """The diffusion, of those in `_shared`, that sets l at the clean end of a solve."""
        return min(self._shared(model), key=lambda sde: self._range(sde)[1])

    def _range(self, sde: AbstractDiffusion) -> Span:
        """l at the noisy and at the clean end of a diffusion."""
        return (_cached_range if is_immutable(sde) else _range)(sde, self.std)

    def _shared(self, model: AbstractModel) -> list[AbstractDiffusion]:
        """The diffusions whose ranges limit a solve: this one and those of the model."""
        return [self.sde, *(known for known in model.diffusions() if known is not self.sde)]

    def physical_solution(self, solution: Solution) -> Solution:
        """A solution in u and l as one in x and t."""
        ts = torch.as_tensor(self.time(solution.ts))
        xs = solution.xs
        if xs is not None:
            xs = torch.stack([self.physical(t, u) for t, u in zip(ts.tolist(), xs, strict=True)])
        return solution.with_states(self.physical(float(ts[-1]), solution.x), xs, ts)

    def physical_point(self, point: Point) -> Point:
        """A point (step, l, u) as (step, t, x)."""
        t = float(self.time(point.t))
        return Point(point.step, t, self.physical(t, point.x))

    def locate_failure(self, error: NotFiniteError, after: int, total: int) -> NotFiniteError:
        """An error at the diffusion's time, for a batch of `total` rows of which `after` precede
        those of the error.
        """
        return error.relocated(t=float(self.time(error.t)), after=after, total=total)

    def unfinished_flow(self, span: Span, error: UnfinishedError, after: int) -> UnfinishedError:
        """`unfinished`, with the x of `leave` as the solution's."""
        solution = replace(
            error.solution,
            x=self.leave(span, error.solution.x),
            ts=torch.as_tensor(self.time(error.solution.ts)),
        )
        return self.unfinished(error, solution, after)

    def unfinished(
        self, error: UnfinishedError, solution: Solution, after: int = 0
    ) -> UnfinishedError:
        """An error at the diffusion's times, with a solution in x and t."""
        return UnfinishedError(
            solution, torch.as_tensor(self.time(error.reached)), after, error.advice
        )


def _range(sde: AbstractDiffusion, std: float) -> Span:
    """log(alpha std / sigma) where a solve may begin at the earliest, and at the data."""
    shift = math.log(std)
    return float(sde.log_snr(sde.latest(std))) + shift, float(sde.log_snr(0.0)) + shift


_cached_range = lru_cache(maxsize=64)(_range)
