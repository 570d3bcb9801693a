"""Standardised coordinates: where models are solved, whatever the diffusion and the scale of the
data.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sdekit import NotFiniteError, Point, Solution, UnfinishedError, computed
from sdekit.elementary import Time, broadcast, scaled, sqrt, sum_of_sample
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.affine import Affine, NetworkCall
from sdekit_diffusion._models.data_scale import data_scale
from sdekit_diffusion._models.derived import AbstractDerivedModel
from sdekit_diffusion._models.model import AbstractModel, noise_scale, signal_scale

Span = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Standardised(AbstractDerivedModel):
    """A model of z = (x_0 - m) / s, data of mean 0 and standard deviation 1, from one of x_0.

    A point u = a z + b eps with l = log(a / b) is one of x_0 = m + s z, at the log-SNR l - log(s),
    up to a shift and a factor: with a_0, b_0 of that level, u_0 = a_0 m + r u, r^2 = (a_0
    s)^2 + b_0^2, since a = a_0 s / r and b = b_0 / r.
    """

    mean: Tensor | float
    std: float
    event: tuple[int, ...] | None = None  # the shape of a sample, for a model that does not know it

    @computed
    def shape(self) -> tuple[int, ...] | None:
        return self.model.shape if self.event is None else self.event

    def model_input(self, l: Time, u: Tensor) -> tuple[Time, Tensor]:
        """The level and the point at which the model of x_0 is asked."""
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
        """Whether the data have a mean."""
        return isinstance(self.mean, Tensor) or self.mean != 0

    def network_call(self) -> NetworkCall | None:
        inner = self.model.network_call()
        if inner is None:
            return None
        key = None if inner.key is None else (inner.key, self.std, self.shifts)
        return inner._replace(key=key, m=self.mean)

    def affine(self, l: Tensor, prediction: Literal["data", "noise"]) -> Affine:
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
    """The coordinates in which a model under a diffusion is solved, and the way to those of the
    diffusion and back.

    States are u = a z + b eps with z = (x_0 - m) / s, a^2 + b^2 = 1, and times are l = log(a / b),
    which is log(alpha s / sigma):

        x_t = alpha m + r u,  r^2 = (alpha s)^2 + sigma^2.

    Attributes:
        sde: the diffusion.
        mean, std: m and s.
        event: the shape of a sample.
        extent: sigma / (alpha s) from which on a model hardly changes: the length of a sample.
    """

    sde: AbstractDiffusion
    mean: Tensor | float = 0.0
    std: float = 1.0
    event: tuple[int, ...] = ()
    extent: float = 1.0

    @staticmethod
    def of(
        model: AbstractModel, sde: AbstractDiffusion, shape: tuple[int, ...] | None = None
    ) -> "Coordinates":
        """Those for the data of a model."""
        event = model.shape if shape is None else shape
        scale = data_scale(model, event)
        mean = scale.mean
        if isinstance(mean, Tensor):
            mean = mean.to(model.place()[1])
        event = tuple(event or ())
        return Coordinates(sde, mean, scale.std, event, math.sqrt(math.prod(event)))

    def standardised(self, model: AbstractModel) -> AbstractModel:
        """The model of u; the model itself where it is that."""
        if self.std == 1 and not self.shifts and model.shape is not None:
            return model
        return Standardised(model, self.mean, self.std, self.event)

    @property
    def shifts(self) -> bool:
        """Whether the data have a mean."""
        return isinstance(self.mean, Tensor) or self.mean != 0

    def time(self, l: Time) -> Time:
        """The diffusion's time at l."""
        return self.sde.time_within(l - math.log(self.std))

    def log_snr(self, t: Time) -> Time:
        """l at a time of the diffusion."""
        return self.sde.log_snr(t) + math.log(self.std)

    def radius(self, t: Time) -> Time:
        """r at a time of the diffusion."""
        signal = self.sde.alpha(t) * self.std
        sigma = self.sde.sigma(t)
        return sqrt(signal * signal + sigma * sigma)

    def physical(self, t: Time, u: Tensor) -> Tensor:
        """x_t from u."""
        return shifted(self.mean, self.sde.alpha(t), scaled(self.radius(t), u))

    def standard(self, t: Time, x: Tensor) -> Tensor:
        """u from x_t."""
        return scaled(1 / self.radius(t), shifted(self.mean, -self.sde.alpha(t), x))

    def standard_data(self, x: Tensor) -> Tensor:
        """z = (x_0 - m) / s."""
        return scaled(1 / self.std, shifted(self.mean, -1.0, x))

    def denoised(self, z: Tensor) -> Tensor:
        """x_0 = m + s z."""
        return shifted(self.mean, 1.0, scaled(self.std, z))

    def _end_scales(self, l: float, *, noisy: bool) -> tuple[float, float]:
        """p and q of x = p m + q u at an end of a flow: x is x_T at the noisy end, and x_t / alpha
        at the clean one.
        """
        if noisy:
            t = float(self.time(l))
            return float(self.sde.alpha(t)), float(self.radius(t))
        return 1.0, self.std / float(signal_scale(l))

    def enter(self, span: Span, x: Tensor) -> Tensor:
        """u at the first end of a span of l, from x_T or, at the clean end, the data with noise
        sigma / alpha.
        """
        p, q = self._end_scales(span[0], noisy=span[0] < span[1])
        return scaled(1 / q, shifted(self.mean, -p, x))

    def leave(self, span: Span, u: Tensor) -> Tensor:
        """x at the last end of a span of l, in the sense of `enter`."""
        p, q = self._end_scales(span[1], noisy=span[1] < span[0])
        return shifted(self.mean, p, scaled(q, u))

    def log_scaling(self, span: Span) -> float:
        """log of dx/du at the last end over that at the first, for one coordinate."""
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
            ValueError: when nothing is left of it.
        """
        if not end > 0:
            raise ValueError(
                "end is sigma / alpha where the solve stops, a positive number such as 1e-3; not "
                f"{end}"
            )
        start, noisiest = self.start(model)
        stop = min(
            -math.log(end),
            *(float(self.under(sde).log_snr(0.0)) for sde in self._shared(model)),
            math.inf,
        )
        if not start < stop:
            description = "" if model.sde is None else f" with a model of {model.sde}"
            raise ValueError(
                f"nothing to solve: sigma / alpha runs from {self.std * math.exp(-start):.3g} to "
                f"{self.std * math.exp(-stop):.3g} under {self.sde}{description}; choose a smaller "
                f"end{noisiest.more_noise} or another diffusion"
            )
        return start, stop

    def start(self, model: AbstractModel) -> tuple[float, AbstractDiffusion]:
        """l at the noisy end of a solve, and the diffusion that ends there."""
        ends = [
            (float(self.under(sde).log_snr(sde.latest(self.std))), sde)
            for sde in self._shared(model)
        ]
        return max(ends, key=lambda end: end[0])

    def under(self, sde: AbstractDiffusion) -> "Coordinates":
        """The coordinates of the same data under another diffusion."""
        return self if sde is self.sde else replace(self, sde=sde)

    def _shared(self, model: AbstractModel) -> list[AbstractDiffusion]:
        """The diffusions whose ranges a solve shares."""
        known = model.sde
        return [self.sde] if known is None or known is self.sde else [self.sde, known]

    def physical_solution(self, solution: Solution) -> Solution:
        """A solution in u and l as one in x and t."""
        ts = torch.as_tensor(self.time(solution.ts))
        xs = solution.xs
        if xs is not None:
            xs = torch.stack([self.physical(t, u) for t, u in zip(ts.tolist(), xs, strict=True)])
        return replace(solution, x=self.physical(float(ts[-1]), solution.x), xs=xs, ts=ts)

    def physical_point(self, point: Point) -> Point:
        """A point (step, l, u) as (step, t, x)."""
        t = float(self.time(point.t))
        return Point(point.step, t, self.physical(t, point.x))

    def locate_failure(self, error: NotFiniteError, after: int, total: int) -> NotFiniteError:
        """A failure at the diffusion's time, in a batch of `total` rows, `after` of which come
        before.
        """
        return error.relocated(t=float(self.time(error.t)), after=after, total=total)

    def unfinished_flow(self, span: Span, error: UnfinishedError, after: int) -> UnfinishedError:
        """`unfinished` at the last end of a span, in the sense of `leave`."""
        solution = replace(
            error.solution,
            x=self.leave(span, error.solution.x),
            ts=torch.as_tensor(self.time(error.solution.ts)),
        )
        return self.unfinished(error, solution, after)

    def unfinished(
        self, error: UnfinishedError, solution: Solution, after: int = 0
    ) -> UnfinishedError:
        """Failures at the diffusion's times, with a solution in its states."""
        return UnfinishedError(
            solution, torch.as_tensor(self.time(error.reached)), after, error.advice
        )
