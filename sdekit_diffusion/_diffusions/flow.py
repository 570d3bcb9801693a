"""Rectified flow: the straight line of flow matching."""

from dataclasses import dataclass

from sdekit.elementary import Time, reciprocal, sigmoid, sqrt
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion


@dataclass(frozen=True)
class RectifiedFlow(AbstractDiffusion):
    """The straight line from the data to the noise: alpha = 1 - t, sigma = t; f = -1 / (1 - t),
    g^2 = 2 t / (1 - t).

    Its probability flow is dx/dt = E[eps - x_0 | x_t = x], the velocity of flow matching, which a
    `ScoreModel` with `predicts="flow"` learns. Time runs from the data at 0 to the noise at 1, as
    in all diffusions here; some papers reverse it. f and g are infinite at t = 1.

    Example:
        >>> sd.RectifiedFlow().kernel(0.25)  # alpha and sigma at t = 0.25
        (0.75, 0.25)

    References:
        Liu et al. 2023, arXiv 2209.03003; Lipman et al. 2023, arXiv 2210.02747.
    """

    def alpha(self, t: Time) -> Time:
        return 1 - t

    def sigma(self, t: Time) -> Time:
        return t

    def time(self, l: Time) -> Time:
        return sigmoid(-l)

    def f(self, t: Time) -> Time:
        return -reciprocal(1 - t)

    def g(self, t: Time) -> Time:
        return sqrt(2 * t * reciprocal(1 - t))
