"""The decoder of a chain's last step: a density, or the probability masses of levels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit_diffusion._arguments.inputs import is_whole


@dataclass(frozen=True)
class Density:
    """N(mean, std^2) at points."""

    def values(self, x: Tensor) -> Tensor:
        """x_0, float64."""
        return x.double()

    def negative_log_prob(self, x0: Tensor, mean: Tensor, std: float) -> Tensor:
        """-log N(x_0; mean, std^2) of each coordinate."""
        return 0.5 * ((x0 - mean) / std).square() + math.log(std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Levels:
    """The probability under N(mean, std^2) of bins of equal width from low to high; the outermost
    bins extend to infinity.

    Attributes:
        low, high: the ends of the range.
        levels: how many bins it has.

    References:
        Ho et al. 2020, arXiv 2006.11239, equation 13.
    """

    low: float
    high: float
    levels: int

    @property
    def width(self) -> float:
        """Of one bin."""
        return (self.high - self.low) / self.levels

    def values(self, x: Tensor) -> Tensor:
        """x_0 of levels 0 ... levels - 1, the middles of their bins, float64."""
        return self.low + self.width * (x.double() + 0.5)

    def negative_log_prob(self, x0: Tensor, mean: Tensor, std: float) -> Tensor:
        """-log of the probability of the bin of each coordinate, accurate to rounding in the tails
        too.
        """
        upper = torch.where(
            x0 > self.high - self.width, math.inf, (x0 + 0.5 * self.width - mean) / std
        )
        lower = torch.where(
            x0 < self.low + self.width, -math.inf, (x0 - 0.5 * self.width - mean) / std
        )
        flip = lower > 0  # by symmetry, to the lower tail, where log_ndtr is accurate
        top = torch.special.log_ndtr(torch.where(flip, -lower, upper))
        bottom = torch.special.log_ndtr(torch.where(flip, -upper, lower))
        return -(top + torch.log(-torch.expm1(bottom - top)))


def decoder_of(
    x: Tensor, low: float | None, high: float | None, levels: int | None
) -> Density | Levels:
    """The decoder of data of this kind.

    Raises:
        TypeError: for integers without levels.
        ValueError: for floats with levels, or values out of range.
    """
    if x.is_floating_point():
        if any(value is not None for value in (low, high, levels)):
            raise ValueError(
                "low, high and levels are for integers: leave them out for floats, or pass the "
                "levels of the data"
            )
        return Density()
    if low is None or high is None or levels is None:
        raise TypeError(
            f"integers, here {x.dtype}, are levels: pass low, high and levels, such as -1.0, 1.0 "
            "and 256"
        )
    if not (-math.inf < low < high < math.inf and is_whole(levels, 2)):
        raise ValueError(
            "levels need finite low < high and two or more of them, a whole number; not "
            f"{low}, {high} and {levels}"
        )
    if len(x) and not (int(x.min()) >= 0 and int(x.max()) < levels):
        raise ValueError(
            f"integers from {int(x.min())} to {int(x.max())} are not levels 0 to {levels - 1}"
        )
    return Levels(low, high, levels)
