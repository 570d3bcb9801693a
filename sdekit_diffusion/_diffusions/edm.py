"""EDM: the noise level as time."""

import math
from dataclasses import dataclass

from torch import Tensor

from sdekit.elementary import Time, clip, exp, sqrt
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._diffusions.diffusion import LARGEST, AbstractExploding


@dataclass(frozen=True)
class EDMSDE(AbstractExploding):
    """sigma = t and alpha = 1 on [0, sigma_max]: f = 0, g^2 = 2 t. The noise level is the time.

    Where other diffusions take equal steps in t, or draw t uniformly, this one does so in t^(1/7).
    Times are not in [0, 1] but noise levels: condition networks on "log_snr".

    Arguments:
        sigma_max: the last time T, at least the largest distance between two points of the data.

    Raises:
        TypeError: for a sigma_max that is not a number.
        ValueError: for a sigma_max that is not positive and finite.

    Example:
        >>> sd.EDMSDE(sigma_max=80.0).kernel(2.0)  # alpha and sigma at t = 2
        (1.0, 2.0)

    References:
        Karras et al. 2022, arXiv 2206.00364, table 1; equation 5, with rho = 7, for the steps.
    """

    largest = "sigma_max"

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        require_numbers(self, "sigma_max")
        if not 0 < self.sigma_max < math.inf:
            raise ValueError(f"EDMSDE needs sigma_max > 0, such as 80, not {self.sigma_max}")

    @property
    def T(self) -> float:
        return self.sigma_max

    def spaced(self, t0: float, t1: float, u: Tensor) -> Tensor:
        start = t0 ** (1 / 7)
        stop = t1 ** (1 / 7)
        return (start + (stop - start) * u) ** 7

    def sigma(self, t: Time) -> Time:
        return t

    def time(self, l: Time) -> Time:
        # An infinite l, of a diffusion with more noise, becomes a time far beyond T.
        return exp(clip(-l, -math.inf, math.log(self.sigma_max) + LARGEST))

    def g(self, t: Time) -> Time:
        return sqrt(2 * t)
