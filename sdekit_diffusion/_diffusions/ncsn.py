"""NCSN's noise levels as a diffusion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from sdekit import geometric
from sdekit.elementary import Time, clip, exp, sqrt
from sdekit_diffusion._diffusions.diffusion import LARGEST, AbstractExploding
from sdekit_diffusion._diffusions.piecewise import (
    PiecewiseLinear,
    numbers,
    require_increasing,
    summary,
)


@dataclass(frozen=True)
class NCSN(AbstractExploding):
    """NCSN's noise levels in continuous time: alpha = 1, and log(sigma) is linear in t between
    neighbours.

    The smallest level is at t = 0, the largest at t = 1, and all are equally spaced in t. f = 0 and
    g^2 = d sigma^2 / dt. With levels in a geometric progression it is `VESDE(exact=False)`.

    Arguments:
        sigmas: the noise levels, positive, increasing or decreasing. By default the 232 levels
            `sdekit.geometric(50.0, 0.01, 231)`.

    Raises:
        TypeError: for levels that are not numbers.
        ValueError: for fewer than two levels, or levels that are not positive, finite, and
            increasing or decreasing.

    Example:
        >>> sde = sd.NCSN([1.0, 0.1, 0.01])
        >>> [round(float(sde.sigma(t)), 4) for t in sde.levels.tolist()]
        [0.01, 0.1, 1.0]

    References:
        Song and Ermon 2019, arXiv 1907.05600; 2020, arXiv 2006.09011, whose levels for CIFAR-10 are
        the default.
    """

    largest = "sigmas"

    sigmas: Sequence[float] | Tensor = tuple(geometric(0.01, 50.0, 231).tolist())

    def __post_init__(self) -> None:
        sigmas = numbers(self.sigmas)
        object.__setattr__(self, "sigmas", tuple(sorted(sigmas)))
        increasing = len(sigmas) > 1 and all(0 < a < b < math.inf for a, b in pairwise(self.sigmas))
        if not increasing or sigmas not in (self.sigmas, tuple(reversed(self.sigmas))):
            raise ValueError(
                "NCSN needs two different positive noise levels or more, in order, not "
                f"{summary(sigmas)}"
            )
        require_increasing(
            self.log_sigma,
            f"NCSN({summary(sigmas)}) has sigmas so near that their logarithms are equal",
        )

    def __repr__(self) -> str:
        return f"NCSN({summary(self.sigmas)})"

    @cached_property
    def log_sigma(self) -> PiecewiseLinear:
        """log(sigma) as a function of t."""
        last = len(self.sigmas) - 1
        return PiecewiseLinear(
            tuple(i / last for i in range(last + 1)),
            tuple(math.log(sigma) for sigma in self.sigmas),
        )

    @property
    def levels(self) -> Tensor:
        """The times of the sigmas, the smallest at 0, the largest at 1."""
        return torch.tensor(self.log_sigma.x, dtype=torch.float64)

    def sigma(self, t: Time) -> Time:
        return exp(self.log_sigma(t))

    def time(self, l: Time) -> Time:
        return self.log_sigma.inverse(-clip(l, -LARGEST, LARGEST))

    def g(self, t: Time) -> Time:
        return self.sigma(t) * sqrt(2 * self.log_sigma.slope(t))
