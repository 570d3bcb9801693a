"""Densities of the noise levels in training. `DENSITIES` and `__all__` register a new one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sdekit.elementary import clip
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion

__all__ = ["DENSITIES", "AbstractDensity", "AbstractLogSNRDensity", "LogNormal", "Logistic"]

_EDM_MEAN = -1.2 - math.log(0.5)  # EDM's P_mean = -1.2 is for data of standard deviation 0.5


@dataclass(frozen=True)
class AbstractDensity(ABC):
    """The distribution of the noise levels in a loss. A subclass is a frozen dataclass of numbers,
    which a training run records.

    Example:
        >>> u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        >>> sd.DENSITIES["uniform"].times(sd.VESDE(), u, (-3.0, 5.0), 1.0).diff() < 0
        tensor([True, True])
    """

    @abstractmethod
    def times(
        self, sde: AbstractDiffusion, u: Tensor, span: tuple[float, float], data_std: float
    ) -> Tensor:
        """Times of a diffusion, `(batch,)`, whose noise levels have this density for uniform u.

        Arguments:
            sde: the diffusion.
            u: numbers in [0, 1], float64, `(batch,)`.
            span: the least and the largest log(alpha / sigma) that is trained.
            data_std: the standard deviation of the data.
        """


@dataclass(frozen=True)
class AbstractLogSNRDensity(AbstractDensity):
    """A density of l = log(alpha s / sigma), s being the standard deviation of the data, truncated
    to the levels that are trained.

    A subclass is a frozen dataclass of numbers with the distribution function and its inverse. The
    function need not be normalised, because a factor and a constant cancel: the uniform density has
    the identity for both.

    Raises:
        ValueError: where the density is 0 at all levels that are trained, up to rounding.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Cauchy(sd.AbstractLogSNRDensity):
        ...     def cdf(self, l): return 0.5 + torch.atan(l) / torch.pi
        ...     def quantile(self, p): return torch.tan(torch.pi * (p - 0.5))
        >>> recipe = sd.Recipe(steps=20, density=Cauchy())
    """

    @abstractmethod
    def cdf(self, l: Tensor) -> Tensor:
        """The distribution function at l, float64, increasing."""

    @abstractmethod
    def quantile(self, p: Tensor) -> Tensor:
        """The l at which `cdf` is p."""

    def times(
        self, sde: AbstractDiffusion, u: Tensor, span: tuple[float, float], data_std: float
    ) -> Tensor:
        shift = math.log(data_std)
        ends = torch.tensor(span, dtype=torch.float64) + shift
        lower, sign = self._lower(ends)
        first, last = lower.cdf(sign * ends).tolist()
        if first == last:
            noisiest, cleanest = ends.tolist()
            raise ValueError(
                f"{self} has no noise levels among those that are trained, with "
                f"log(sigma / (alpha s)) from {-cleanest:.3g} to {-noisiest:.3g}; choose one that "
                "has, such as LogNormal()"
            )
        l = sign * lower.quantile(first + (last - first) * u) - shift
        return clip(torch.as_tensor(sde.time(clip(l, *span))), 0.0, sde.latest(data_std))

    def _lower(self, ends: Tensor) -> tuple["AbstractLogSNRDensity", float]:
        """A density, of l or of -l, and the sign: that whose `cdf` between the ends is not rounded
        to 1.
        """
        return self, 1.0


@dataclass(frozen=True)
class _AbstractSymmetric(AbstractLogSNRDensity):
    """A density that is symmetric about l = -mean."""

    mean: float = _EDM_MEAN

    def _lower(self, ends: Tensor) -> tuple[AbstractLogSNRDensity, float]:
        return (replace(self, mean=-self.mean), -1.0) if self.cdf(ends[0]) > 0.5 else (self, 1.0)


@dataclass(frozen=True)
class LogNormal(_AbstractSymmetric):
    """log(sigma / (alpha s)) ~ N(mean, std^2), where s is the standard deviation of the data.

    Arguments:
        mean: unless given, -1.2 - log(0.5): EDM's P_mean = -1.2 is that of log sigma, for data of
            standard deviation 0.5.
        std: unless given EDM's P_std = 1.2. With mean = 0 and std = 1 the time of flow matching,
            t = sigma / (alpha s + sigma), is logit-normal, as in Stable Diffusion 3.

    Raises:
        TypeError: for arguments that are not numbers.
        ValueError: unless std is positive and mean finite.

    Example:
        >>> recipe = sd.Recipe(steps=20, density=sd.LogNormal(mean=0.0, std=1.0))

    References:
        Karras et al. 2022, arXiv 2206.00364, table 1; Esser et al. 2024, arXiv 2403.03206.
    """

    std: float = 1.2

    def __post_init__(self) -> None:
        require_numbers(self, "mean", "std")
        if not (0 < self.std < math.inf and math.isfinite(self.mean)):
            raise ValueError(f"mean must be finite and std positive: {self}")

    def cdf(self, l: Tensor) -> Tensor:
        # Of torch.special.ndtr the lower tail is rounded to 0.
        return 0.5 * torch.erfc((l + self.mean) / (-math.sqrt(2.0) * self.std))

    def quantile(self, p: Tensor) -> Tensor:
        return torch.special.ndtri(p) * self.std - self.mean


@dataclass(frozen=True)
class Logistic(_AbstractSymmetric):
    """log(sigma / (alpha s)) has a logistic distribution, where s is the standard deviation of the
    data. Its tails are heavier than those of `LogNormal`: the smallest and the largest noise levels
    are trained more often.

    Arguments:
        mean: that of `LogNormal` unless given.
        scale: of the distribution, whose standard deviation is scale pi / sqrt(3). With mean = 0
            and scale = 1 the time of flow matching, t = sigma / (alpha s + sigma), is uniform.

    Raises:
        TypeError: for arguments that are not numbers.
        ValueError: unless scale is positive and mean finite.

    Example:
        >>> recipe = sd.Recipe(steps=20, density=sd.Logistic(mean=0.0, scale=0.8))
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self, "mean", "scale")
        if not (0 < self.scale < math.inf and math.isfinite(self.mean)):
            raise ValueError(f"mean must be finite and scale positive: {self}")

    def cdf(self, l: Tensor) -> Tensor:
        return torch.sigmoid((l + self.mean) / self.scale)

    def quantile(self, p: Tensor) -> Tensor:
        return torch.logit(p) * self.scale - self.mean


@dataclass(frozen=True)
class _Time(AbstractDensity):
    """Uniform in the diffusion's time t; under EDM uniform in t^(1/7)."""

    def times(
        self, sde: AbstractDiffusion, u: Tensor, span: tuple[float, float], data_std: float
    ) -> Tensor:
        return sde.spaced(float(sde.time_within(span[1])), sde.latest(data_std), u)


@dataclass(frozen=True)
class _Uniform(AbstractLogSNRDensity):
    """Uniform in l = log(alpha s / sigma)."""

    def cdf(self, l: Tensor) -> Tensor:
        return l

    def quantile(self, p: Tensor) -> Tensor:
        return p


DENSITIES: Mapping[str, AbstractDensity] = {
    "time": _Time(),
    "uniform": _Uniform(),
    "log_normal": LogNormal(),
    "logistic": Logistic(),
}

if TYPE_CHECKING:
    Density = str | AbstractDensity
else:
    Density = Literal[*DENSITIES]  # what the command line offers


def draw_times(
    sde: AbstractDiffusion,
    u: Tensor,
    density: AbstractDensity,
    end: float,
    data_std: float = 1.0,
) -> Tensor:
    """Times between that of sigma / alpha = end data_std and the diffusion's latest, whose noise
    levels have a density, from uniform numbers u in [0, 1).

    Raises:
        ValueError: where end leaves no levels.
    """
    low = float(sde.log_snr(sde.latest(data_std)))
    high = min(-math.log(end * data_std), float(sde.log_snr(0.0)))
    if not high > low:
        raise ValueError(
            f"nothing to train on: noise begins at end = {end:g} standard deviations of the data, "
            f"{data_std:.3g} each, and sigma / alpha is at most {math.exp(-low):.3g} under {sde}; "
            f"scale the data, or choose a smaller end{sde.more_noise} or another diffusion"
        )
    return density.times(sde, u, (low, high), data_std)


def draw_discrete(sde: AbstractDiffusion, u: Tensor) -> Tensor:
    """Times of the diffusion's discrete noise levels, all equally likely, from uniform numbers u in
    [0, 1).
    """
    levels = sde.levels.to(u.device, non_blocking=True)
    return levels[(u * len(levels)).to(torch.int64)]
