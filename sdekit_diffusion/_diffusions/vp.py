"""Variance preserving and sub-variance preserving, with beta linear in time."""

import math
from abc import ABC
from dataclasses import dataclass

from sdekit.elementary import Time, asinh, clip, exp, expm1, softplus, sqrt
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._diffusions.diffusion import LARGEST, AbstractDiffusion


@dataclass(frozen=True)
class AbstractLinearBeta(AbstractDiffusion, ABC):
    """f = -beta/2 with beta(t) = beta_min + t (beta_max - beta_min), hence alpha = e^{-B/2}, B the
    integral of beta.
    """

    largest = "beta_max"

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require_numbers(self, "beta_min", "beta_max")
        if not (0 <= self.beta_min <= self.beta_max and 1e-30 <= self.beta_max <= 1e30):
            raise ValueError(
                f"{type(self).__name__} needs 0 <= beta_min <= beta_max, and beta_max from 1e-30 "
                f"to 1e30, such as 20; not {self.beta_min} and {self.beta_max}"
            )

    def beta(self, t: Time) -> Time:
        """beta(t), the rate at which the variance of the data decays."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Time) -> Time:
        """B(t), the integral of beta from 0."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def inverse(self, integral: Time) -> Time:
        """The t at which B(t) = integral: the root of a quadratic, in the form without
        cancellation.
        """
        # An infinite integral, of a diffusion with more noise, becomes a time far beyond T.
        integral = clip(integral, 0.0, float(self.integral(self.T)) + 2 * LARGEST)
        slope = self.beta_max - self.beta_min
        rate = self.beta_min + sqrt(self.beta_min**2 + 2 * slope * integral)
        return 2 * integral / clip(rate, 1e-37, math.inf)  # 0, not 0 / 0, where beta_min = 0

    def alpha(self, t: Time) -> Time:
        return exp(-0.5 * self.integral(t))

    def f(self, t: Time) -> Time:
        return -0.5 * self.beta(t)


@dataclass(frozen=True)
class VPSDE(AbstractLinearBeta):
    """Variance preserving: g^2 = beta, sigma^2 = 1 - e^{-B}. The limit of DDPM's chain for small
    steps.

    beta(t) = beta_min + t (beta_max - beta_min) on [0, 1], B(t) is its integral from 0,
    f = -beta/2 and alpha = e^{-B/2}.

    Arguments:
        beta_min, beta_max: beta at t = 0 and at t = 1.

    Raises:
        TypeError: for parameters that are not numbers.
        ValueError: unless 0 <= beta_min <= beta_max and 1e-30 <= beta_max <= 1e30.

    Example:
        >>> alpha, sigma = sd.VPSDE(beta_min=0.1, beta_max=20.0).kernel(0.5)
        >>> round(alpha**2 + sigma**2, 6)
        1.0

    References:
        Song et al. 2021, arXiv 2011.13456, equation 11; Ho et al. 2020, arXiv 2006.11239.
    """

    preserves_variance = True

    def sigma(self, t: Time) -> Time:
        return sqrt(-expm1(-self.integral(t)))

    def time(self, l: Time) -> Time:
        return self.inverse(softplus(-2 * l))

    def chain(self, s: float, t: float) -> tuple[float, float, float]:
        """One step of DDPM's chain from s to t, as Song et al. discretise it, beta_i = beta(t)
        (t - s): the factor sqrt(1 - beta_i) of x_s, the variance beta_i of x_t given x_s, and
        beta_i again as the variance of the step back.

        The exact values have 1 - e^{-(B(t) - B(s))} for beta_i, and as the third DDPM's smaller
        variance, that of x_s given x_t and x_0.

        Raises:
            ValueError: when beta_i is not between 0 and 1.
        """
        beta = float(self.beta(t)) * (t - s)
        if not 0 < beta < 1:
            raise ValueError(
                f"the chain needs steps with beta(t) dt between 0 and 1, and from t = {t:g} to "
                f"{s:g} it is {beta:g}; take more than {self.beta_max * self.T:.0f} steps, back in "
                "time"
            )
        return math.sqrt(1 - beta), beta, beta

    def g(self, t: Time) -> Time:
        return sqrt(self.beta(t))


@dataclass(frozen=True)
class SubVPSDE(AbstractLinearBeta):
    """Sub-variance preserving: g^2 = beta (1 - e^{-2B}), sigma = 1 - e^{-B}, at most that of VP.

    beta, B, f and alpha are those of `VPSDE`.

    Arguments:
        beta_min, beta_max: beta at t = 0 and at t = 1.

    Raises:
        TypeError, ValueError: as `VPSDE`.

    Example:
        >>> alpha, sigma = sd.SubVPSDE().kernel(0.5)
        >>> round(alpha**2 + sigma, 6)
        1.0

    References:
        Song et al. 2021, arXiv 2011.13456, equation 12.
    """

    def sigma(self, t: Time) -> Time:
        return -expm1(-self.integral(t))

    def time(self, l: Time) -> Time:
        return self.inverse(2 * asinh(0.5 * exp(-l)))  # alpha / sigma = 1 / (2 sinh(B/2))

    def g(self, t: Time) -> Time:
        return sqrt(-self.beta(t) * expm1(-2 * self.integral(t)))
