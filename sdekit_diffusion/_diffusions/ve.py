"""Variance exploding."""

import math
from dataclasses import dataclass

from sdekit.calling import require_bools
from sdekit.elementary import Time, clip, exp, expm1, softplus, sqrt
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._diffusions.diffusion import LARGEST, AbstractExploding


@dataclass(frozen=True)
class VESDE(AbstractExploding):
    """Variance exploding: f = 0, g^2 = d s^2 / dt with s(t) = sigma_min (sigma_max / sigma_min)^t.

    alpha = 1 and sigma^2 = s(t)^2 - s(0)^2, the kernel of this SDE, which is 0 at t = 0.

    Arguments:
        sigma_min: s(0), smaller than the finest details of the data.
        sigma_max: s(1), at least the largest distance between two points of the data.
        exact: False for sigma = s(t), with which published checkpoints were trained.

    Raises:
        TypeError: for parameters that are not numbers, or an exact that is not a bool.
        ValueError: unless 0 < sigma_min < sigma_max and both are finite.

    Example:
        >>> alpha, sigma = sd.VESDE(sigma_min=0.01, sigma_max=50.0).kernel(1.0)
        >>> alpha, round(sigma, 2)
        (1.0, 50.0)

    References:
        Song et al. 2021, arXiv 2011.13456, appendix C; Song and Ermon 2020, arXiv 2006.09011,
        technique 1.
    """

    largest = "sigma_max"

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    exact: bool = True

    def __post_init__(self) -> None:
        require_numbers(self, "sigma_min", "sigma_max")
        require_bools(exact=self.exact)
        if not (0 < self.sigma_min < self.sigma_max < math.inf and self.growth > 0):
            raise ValueError(
                f"VESDE needs 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}"
            )

    @property
    def growth(self) -> float:
        """log(sigma_max / sigma_min)."""
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def _level(self, t: Time) -> Time:
        """s(t), from logarithms, since sigma_max / sigma_min may overflow."""
        return exp(math.log(self.sigma_min) + self.growth * t)

    def sigma(self, t: Time) -> Time:
        return self._level(t) * sqrt(-expm1(-2 * self.growth * t)) if self.exact else self._level(t)

    def time(self, l: Time) -> Time:
        # An infinite l, of a diffusion with less or more noise, becomes a time far outside [0, T].
        log_ratio = clip(-l - math.log(self.sigma_min), -LARGEST, self.growth + LARGEST)
        return (
            log_ratio / self.growth
            if not self.exact
            else softplus(2 * log_ratio) / (2 * self.growth)
        )

    def g(self, t: Time) -> Time:
        return self._level(t) * math.sqrt(2 * self.growth)
