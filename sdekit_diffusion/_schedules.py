"""Cosine, EDM and rectified flow: more scales and clocks of the same process; and all diffusions by name."""

import math
from dataclasses import dataclass

from torch import Tensor

from sdekit import did_you_mean
from sdekit.elementary import Time, atan, exp, reciprocal, sigmoid, sin, sqrt
from sdekit_diffusion._diffusion import VESDE, VPSDE, AbstractDiffusion, AbstractExploding, SubVPSDE
from sdekit_diffusion._discrete import DDPM, NCSN


@dataclass(frozen=True)
class CosineVPSDE(AbstractDiffusion):
    """Variance preserving with alpha = cos(k (t + s)) / cos(k s), k = pi / (2 (1 + s)), which is 0 at t = 1.

    f = -k tan(k (t + s)), g^2 = -2 f, sigma^2 = 1 - alpha^2 = sin(k t) sin(k (2 - t)) / cos(k s)^2. Both coefficients are
    infinite at t = 1. Networks that predict the noise or the score say little of the data there: predict "velocity".

    Arguments:
        s: keeps the noise from vanishing too fast near the data.

    Raises:
        ValueError: for s that is not positive.

    References:
        Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 < self.s < math.inf:
            raise ValueError(f"CosineVPSDE needs s > 0, such as 0.008, not {self.s}")

    @property
    def k(self) -> float:
        """The angle per unit of time, pi/2 less k s."""
        return 0.5 * math.pi / (1 + self.s)

    def alpha(self, t: Time) -> Time:
        return sin(self.k * (1 - t)) / math.sin(self.k)

    def sigma(self, t: Time) -> Time:
        return sqrt(sin(self.k * t) * sin(self.k * (2 - t))) / math.sin(self.k)

    def time(self, l: Time) -> Time:
        # cos and sin of k s; then those of k (t + s), with which tan(k t) is a quotient of positive terms.
        c, s = math.sin(self.k), math.sin(self.k * self.s)
        cos, noise = c * sqrt(sigmoid(2 * l)), c * c * sigmoid(-2 * l)
        sine = sqrt(s * s + noise)
        return atan(noise / ((c * sine + s * cos) * (c * cos + s * sine))) / self.k

    def f(self, t: Time) -> Time:
        return -self.k * sin(self.k * (t + self.s)) * reciprocal(sin(self.k * (1 - t)))

    def g(self, t: Time) -> Time:
        return sqrt(-2 * self.f(t))


@dataclass(frozen=True)
class EDMSDE(AbstractExploding):
    """sigma = t and alpha = 1 on [0, sigma_max]: f = 0, g^2 = 2 t. The noise level is the time.

    Where others take equal steps in t, or draw t uniformly, this one does so in t^(1/7). Its times are on the scale of sigma:
    condition networks on "log_snr".

    Arguments:
        sigma_max: the end of time, at least the largest distance between two points of the data.

    Raises:
        ValueError: for sigma_max that is not positive.

    References:
        Karras et al. 2022, arXiv 2206.00364, table 1; equation 5 for the steps, with rho = 7.
    """

    largest = "sigma_max"

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_max < math.inf:
            raise ValueError(f"EDMSDE needs sigma_max > 0, such as 80, not {self.sigma_max}")

    @property
    def T(self) -> float:
        return self.sigma_max

    def spaced(self, t0: float, t1: float, u: Tensor) -> Tensor:
        start, stop = t0 ** (1 / 7), t1 ** (1 / 7)
        return (start + (stop - start) * u) ** 7

    def sigma(self, t: Time) -> Time:
        return t

    def time(self, l: Time) -> Time:
        return exp(-l)

    def g(self, t: Time) -> Time:
        return sqrt(2 * t)


@dataclass(frozen=True)
class RectifiedFlow(AbstractDiffusion):
    """The straight line from the data to the noise: alpha = 1 - t, sigma = t; f = -1 / (1 - t), g^2 = 2 t / (1 - t).

    Its probability flow is dx/dt = E[eps - x_0 | x_t = x], the velocity of flow matching: `predicts="flow"`. Time runs from the
    data, 0, to the noise, 1, as everywhere here; the other way round in some papers. Both coefficients are infinite at t = 1.

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


DIFFUSIONS: dict[str, type[AbstractDiffusion]] = {
    "ve": VESDE,
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "cosine": CosineVPSDE,
    "edm": EDMSDE,
    "flow": RectifiedFlow,
    "ddpm": DDPM,
    "ncsn": NCSN,
}


def diffusion(sde: AbstractDiffusion | str) -> AbstractDiffusion:
    """A diffusion from its name, with its default parameters; a diffusion is returned as it is.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(sde, AbstractDiffusion):
        return sde
    if sde not in DIFFUSIONS:
        raise ValueError(
            f"unknown sde {sde!r}"
            f"{did_you_mean(sde, DIFFUSIONS)}; choose one of {', '.join(DIFFUSIONS)}, or pass a diffusion such as VPSDE()"
        )
    return DIFFUSIONS[sde]()
