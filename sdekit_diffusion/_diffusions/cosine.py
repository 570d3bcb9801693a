"""Variance preserving with a cosine for alpha."""

import math
from dataclasses import dataclass

from sdekit.elementary import Time, atan, reciprocal, sigmoid, sin, sqrt
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion


@dataclass(frozen=True)
class CosineVPSDE(AbstractDiffusion):
    """Variance preserving with alpha = cos(k (t + s)) / cos(k s), k = pi / (2 (1 + s)), which is 0
    at t = 1.

    f = -k tan(k (t + s)), g^2 = -2 f, sigma^2 = 1 - alpha^2 = sin(k t) sin(k (2 - t)) / cos(k s)^2.
    f and g are infinite at t = 1. Near it the noise and the score contain little information on the
    data: networks should predict "velocity".

    Arguments:
        s: the offset of t, without which beta = -2 f would be too small near t = 0.

    Raises:
        TypeError: for an s that is not a number.
        ValueError: for an s that is not positive and finite.

    Example:
        >>> alpha, sigma = sd.CosineVPSDE().kernel(0.5)
        >>> round(alpha**2 + sigma**2, 6)
        1.0

    References:
        Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17.
    """

    preserves_variance = True

    s: float = 0.008

    def __post_init__(self) -> None:
        require_numbers(self, "s")
        if not 0 < self.s < math.inf:
            raise ValueError(f"CosineVPSDE needs s > 0, such as 0.008, not {self.s}")

    @property
    def k(self) -> float:
        """The angle per unit of time, pi / (2 (1 + s)) = pi/2 - k s."""
        return 0.5 * math.pi / (1 + self.s)

    def alpha(self, t: Time) -> Time:
        return sin(self.k * (1 - t)) / math.sin(self.k)

    def sigma(self, t: Time) -> Time:
        return sqrt(sin(self.k * t) * sin(self.k * (2 - t))) / math.sin(self.k)

    def time(self, l: Time) -> Time:
        # With u = k (t + s) the tangent of k t is a quotient of sums of positive terms, without
        # cancellation.
        cos_ks = math.sin(self.k)  # k + k s is a right angle
        sin_ks = math.sin(self.k * self.s)
        cos_u = cos_ks * sqrt(sigmoid(2 * l))
        noise = cos_ks * cos_ks * sigmoid(-2 * l)
        sin_u = sqrt(sin_ks * sin_ks + noise)
        divisor = (cos_ks * sin_u + sin_ks * cos_u) * (cos_ks * cos_u + sin_ks * sin_u)
        return atan(noise / divisor) / self.k

    def f(self, t: Time) -> Time:
        return -self.k * sin(self.k * (t + self.s)) * reciprocal(sin(self.k * (1 - t)))

    def g(self, t: Time) -> Time:
        return sqrt(-2 * self.f(t))
