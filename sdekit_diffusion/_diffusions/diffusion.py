"""Diffusions with affine drift: x_t = alpha(t) x_0 + sigma(t) eps, eps ~ N(0, I)."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sdekit import AbstractSDE, fresh_seed, normal
from sdekit.elementary import (
    Time,
    broadcast,
    clip,
    expm1,
    log,
    reciprocal,
    scaled,
    sqrt,
    sum_of_sample,
)
from sdekit_diffusion._arguments.immutable import is_immutable
from sdekit_diffusion._arguments.inputs import available_device

# sigma / alpha, in standard deviations of the data, where solves start if they cannot start at T.
_START_RATIO = 160.0


# The largest such ratio at T with which solves start at T: published schedules end at up to 4e4,
# and beyond 1e5 the clocks of solves lose digits.
_LARGEST_RATIO = 1e5

# |log(alpha / sigma)| that stands for infinity where a diffusion or a network has none.
LARGEST = 20.0


@dataclass(frozen=True)
class AbstractDiffusion(AbstractSDE):
    """dx = f(t) x dt + g(t) dW on [0, T] with x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I).

    Every such process, divided by alpha, is a Brownian motion in the time sigma^2 / alpha^2.
    Diffusions differ only in alpha, in the range of l = log(alpha / sigma) and in l as a function
    of t. A subclass defines `alpha`, `sigma`, `time`, which is the inverse of l(t), and the
    coefficients `f` and `g`. Times are floats or `(batch,)` tensors.

    A frozen dataclass whose fields are numbers is compared by them, and what depends on it is kept
    from call to call: its methods must not depend on anything that changes.

    Attributes:
        preserves_variance: whether alpha^2 + sigma^2 = 1 at all times, so that the state itself is
            the argument of a network for standardised data; False unless a class sets it.

    Raises:
        ValueError: in its methods, for times outside [0, T].

    Example:
        >>> from dataclasses import dataclass
        >>> from sdekit.elementary import exp, expm1, softplus, sqrt
        >>> @dataclass(frozen=True)
        ... class OrnsteinUhlenbeck(sd.AbstractDiffusion):  # dx = -5 x dt + sqrt(10) dW
        ...     def alpha(self, t): return exp(-5 * t)
        ...     def sigma(self, t): return sqrt(-expm1(-10 * t))
        ...     def time(self, l): return softplus(-2 * l) / 10
        ...     def f(self, t): return -5.0
        ...     def g(self, t): return 10**0.5
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde=OrnsteinUhlenbeck(), seed=0).shape
        torch.Size([4, 1])
    """

    noise_type = "additive"
    largest: ClassVar[str] = ""  # the parameter that says how much noise there is at T
    preserves_variance: ClassVar[bool] = False
    _table: ClassVar[Mapping[float, tuple[float, float]]] = {}  # f and g at the times of a grid
    _reads_times = True  # whether `checked` reads times that are tensors

    def __init_subclass__(cls, **arguments: Any) -> None:  # noqa: ANN401 - of other classes
        """Where alpha or sigma is not that of the class that sets preserves_variance, the variance
        is not known to be preserved.
        """
        super().__init_subclass__(**arguments)
        kind = next(kind for kind in cls.__mro__ if "preserves_variance" in vars(kind))
        if kind.alpha is not cls.alpha or kind.sigma is not cls.sigma:
            cls.preserves_variance = False

    @property
    def T(self) -> float:
        """The last time, that of the most noise; 1 by default."""
        return 1.0

    @abstractmethod
    def alpha(self, t: Time) -> Time:
        """The factor of x_0 in the mean of x_t."""

    @abstractmethod
    def sigma(self, t: Time) -> Time:
        """The standard deviation of x_t given x_0."""

    @abstractmethod
    def time(self, l: Time) -> Time:
        """The t at which log(alpha / sigma) = l."""

    @abstractmethod
    def f(self, t: Time) -> Time:
        """The factor of x in the drift, d log(alpha) / dt."""

    @abstractmethod
    def g(self, t: Time) -> Time:
        """The diffusion coefficient, the root of g^2 = d sigma^2 / dt - 2 f sigma^2."""

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """f(t) x."""
        return scaled(self._coefficients(t)[0], x)

    def diffusion(self, t: Time, x: Tensor) -> Time:
        """g(t), in a shape that multiplies x."""
        return broadcast(self._coefficients(t)[1], x)

    def _coefficients(self, t: Time) -> tuple[Time, Time]:
        """f(t) and g(t)."""
        values = None if isinstance(t, Tensor) else self._table.get(t)
        if values is not None:
            return values
        t = self.checked(t)
        return self.f(t), self.g(t)

    def tabulated(self, ts: Sequence[float]) -> Self:
        # An unchecked copy is equal to this diffusion, but not the same.
        kept = self._reads_times and len(ts) <= _MOST_TIMES and is_immutable(self)
        table = (_cached_table if kept else _table)(self, tuple(ts))
        copied = copy.copy(self)
        object.__setattr__(copied, "_table", table)
        return copied

    def kernel(self, t: float) -> tuple[float, float]:
        """alpha(t) and sigma(t)."""
        t = self._require_in_range(t)
        return float(self.alpha(t)), float(self.sigma(t))

    def log_snr(self, t: Time) -> Time:
        """l = log(alpha / sigma), half the logarithm of the signal-to-noise ratio; infinite where
        sigma = 0.
        """
        return log(self.alpha(t)) - log(self.sigma(t))

    def time_within(self, l: Time) -> Time:
        """`time(l)`, clipped to [0, T], since rounding may place it just outside."""
        return clip(self.time(l), 0.0, self.T)

    def normalised(self, t: Time, x: Tensor) -> tuple[Time, Tensor]:
        """The arguments of a model: the log-SNR l = log(alpha / sigma), and the normalised state
        x / sqrt(alpha^2 + sigma^2).

        Raises:
            ValueError: when t is outside [0, T].
        """
        t = self.checked(t)
        return self.log_snr(t), x * broadcast(1 / self.size(t), x)

    def size(self, t: Time) -> Time:
        """sqrt(alpha^2 + sigma^2), the standard deviation of x_t for data of variance 1."""
        alpha = self.alpha(t)
        sigma = self.sigma(t)
        return sqrt(alpha * alpha + sigma * sigma)

    def spaced(self, t0: float, t1: float, u: Tensor) -> Tensor:
        """Times of the diffusion's own grid, from t0 at u = 0 to t1 at u = 1.

        t0 + (t1 - t0) u, equal steps, unless a subclass has others.
        """
        return t0 + (t1 - t0) * u

    @property
    def more_noise(self) -> str:
        """How to have more noise at T, for messages, such as ", larger sigma_max"; or ""."""
        return f", larger {self.largest}" if self.largest else ""

    @property
    def levels(self) -> Tensor:
        """The times of its discrete noise levels, increasing, float64.

        Raises:
            ValueError: for a diffusion that has none.
        """
        raise ValueError(
            f"{self} has no discrete noise levels: leave discrete out, or give times, or take "
            "DDPM(betas) or NCSN(sigmas), which have"
        )

    def latest(self, data_std: float = 1.0) -> float:
        """The last time of training and the first of solves, at which the prior replaces p_t.

        It is T, unless sigma / alpha at T is above 1e5 data_std or infinite. Then it is the time
        at which sigma / alpha = 160 data_std, a value near that of the published VP at T: there the
        data increase the standard deviation of x_t by a factor of 1 + 2e-5. At later times the
        states hardly change, and networks are hardly trained.

        Arguments:
            data_std: the standard deviation of a coordinate of the data, as a root mean square.
        """
        if -float(self.log_snr(self.T)) <= math.log(_LARGEST_RATIO * data_std):
            return self.T
        return max(0.0, float(self.time(-math.log(_START_RATIO * data_std))))

    def marginal(self, t: Time, x0: Tensor) -> tuple[Tensor, Time]:
        """The mean and the standard deviation of x_t given x_0; the latter in a shape that
        multiplies x_0.

        Raises:
            ValueError: when t is outside [0, T].
        """
        t = self.checked(t)
        return x0 * broadcast(self.alpha(t), x0), broadcast(self.sigma(t), x0)

    def transition(self, s: Time, t: Time) -> tuple[Time, Time]:
        """The factor of x_s in the mean, and the standard deviation, of x_t given x_s, s <= t.

        The factor is alpha_t / alpha_s, and the variance
        sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 = sigma_t^2 (1 - e^{2 (l_t - l_s)}).

        Raises:
            ValueError: when s > t, or either is outside [0, T].
        """
        s = self.checked(s)
        t = self.checked(t)
        if bool(torch.as_tensor(s > t).any()):
            raise ValueError(f"transition(s, t) goes forwards: s <= t; here s = {s} and t = {t}")
        if not isinstance(s, Tensor) and not isinstance(t, Tensor) and s == t:
            return 1.0, 0.0
        # Where s = t at an end of [0, T], both log-SNRs may be infinite, and alpha may be 0.
        factor = self.alpha(t) * reciprocal(self.alpha(s))
        log_ratio = self.log_snr(t) - self.log_snr(s)
        if isinstance(log_ratio, Tensor):
            same = torch.as_tensor(s == t)
            factor = torch.where(same, 1.0, torch.as_tensor(factor))
            log_ratio = torch.where(same, 0.0, log_ratio)
        return factor, self.sigma(t) * sqrt(-expm1(2 * log_ratio))

    def posterior(self, s: Time, t: Time) -> tuple[Time, Time, Time]:
        """(a, b, std) of q(x_s | x_t, x_0) = N(a x_t + b x_0, std^2 I), for s <= t, sigma(t) > 0.

        With the factor alpha_ts and the standard deviation sigma_ts of `transition(s, t)`,
        a = alpha_ts sigma_s^2 / sigma_t^2, b = alpha_s sigma_ts^2 / sigma_t^2 and
        std = sigma_s sigma_ts / sigma_t.

        Raises:
            ValueError: as `transition`.

        References:
            Ho et al. 2020, arXiv 2006.11239, equations 6 and 7.
        """
        factor, std = self.transition(s, t)
        signal_ratio = self.sigma(s) / self.sigma(t)
        noise_ratio = std / self.sigma(t)
        return (
            factor * signal_ratio * signal_ratio,
            self.alpha(s) * noise_ratio * noise_ratio,
            signal_ratio * std,
        )

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        seed: int | None = None,
        first: int = 0,
        t: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Samples of N(0, sigma(t)^2 I), the limit of p_t for small alpha / sigma.

        Arguments:
            shape: `(batch, *event)`.
            seed, first: sample n depends only on (seed, first + n); None draws a new seed.
            t: the time; T by default.
            dtype, device: those of the samples.
        """
        target_device = None if device is None else available_device(device)
        index = torch.arange(first, first + shape[0], device=target_device)
        seed = fresh_seed() if seed is None else seed
        return normal(seed, index, tuple(shape[1:]), dtype=dtype) * float(
            self.sigma(self.checked(self.T if t is None else t))
        )

    def log_prior(self, x: Tensor, t: float | None = None) -> Tensor:
        """log N(x; 0, sigma(t)^2 I) in nats, float64: `(batch, *event)` to `(batch,)`; t is T by
        default.

        Raises:
            ValueError: when t is outside [0, T], or sigma = 0 there.
        """
        time = self.checked(self.T if t is None else t)
        sigma = float(self.sigma(time))
        if not sigma:
            raise ValueError(
                f"the prior has no density where sigma = 0, at t = {float(time):g}: ask for it at "
                "a later t; by default that is T"
            )
        squares = sum_of_sample((x.to(torch.float64) / sigma).square())
        d = math.prod(x.shape[1:])
        return -0.5 * squares - d * (math.log(sigma) + 0.5 * math.log(2 * math.pi))

    def checked(self, t: Time) -> Time:
        """t, after a check that it is in [0, T] up to rounding in float32; what is outside by that
        rounding is set to the end.

        The check of a tensor reads it once, which synchronises host and device.

        Raises:
            ValueError: when t is outside [0, T].
        """
        if isinstance(t, Tensor) and t.numel() and self._reads_times:
            for value in torch.stack(torch.aminmax(t.detach())).cpu():
                self._require_in_range(float(value))
            return clip(t, 0.0, self.T)
        return t if isinstance(t, Tensor) else self._require_in_range(t)

    def unchecked(self) -> Self:
        """A copy, equal to this diffusion, that does not check times that are tensors.

        For loops that compute the times themselves: the check synchronises host and device. Floats
        are still checked.
        """
        copied = copy.copy(self)
        object.__setattr__(copied, "_reads_times", False)
        return copied

    def within(self, t0: float, t1: float) -> Self:
        self._require_in_range(t0)
        self._require_in_range(t1)
        return self.unchecked()

    def _require_in_range(self, t: float) -> float:
        """t within [0, T]; refuses what is outside by more than rounding."""
        if not -1e-6 <= t / self.T <= 1 + 1e-6:
            kind = type(self).__name__
            raise ValueError(
                f"t = {t} is outside the range of {kind}, which runs from 0 (data) to {self.T:g} "
                "(noise)"
            )
        return clip(t, 0.0, self.T)


def _table(sde: AbstractDiffusion, ts: tuple[float, ...]) -> Mapping[float, tuple[float, float]]:
    """f and g at the times of a grid."""
    t = sde.checked(torch.tensor(ts, dtype=torch.float64))
    columns = (
        torch.as_tensor(column, dtype=torch.float64).expand(len(ts)).tolist()
        for column in (sde.f(t), sde.g(t))
    )
    return dict(zip(ts, zip(*columns, strict=True), strict=True))


_MOST_TIMES = 2000  # of grids whose tables are kept
_cached_table = lru_cache(maxsize=32)(_table)


@dataclass(frozen=True)
class AbstractExploding(AbstractDiffusion, ABC):
    """alpha = 1, hence f = 0 and g^2 = d sigma^2 / dt: the noise grows and the data keep their
    scale.
    """

    def alpha(self, t: Time) -> Time:
        return t * 0 + 1.0

    def f(self, t: Time) -> Time:
        return t * 0.0
