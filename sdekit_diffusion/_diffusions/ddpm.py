"""DDPM's chain as a diffusion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sdekit.elementary import Time, exp, expm1, softplus, sqrt
from sdekit_diffusion._arguments.inputs import require_whole
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.piecewise import (
    PiecewiseLinear,
    numbers,
    require_increasing,
    summary,
)


def linear_betas(
    n: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02
) -> tuple[float, ...]:
    """The linear schedule of DDPM: n equally spaced values from beta_min to beta_max.

    Raises:
        TypeError, ValueError: for an n that is not a whole number from 1 on.

    Example:
        >>> [round(beta, 4) for beta in sd.linear_betas(3, 0.0001, 0.02)]
        [0.0001, 0.01, 0.02]

    References:
        Ho et al. 2020, arXiv 2006.11239, section 4.
    """
    require_whole("n", n, 1)
    return tuple(torch.linspace(beta_min, beta_max, n, dtype=torch.float64).tolist())


def cosine_betas(n: int = 1000, s: float = 0.008) -> tuple[float, ...]:
    """The cosine schedule of DDPM: beta_i = min(1 - abar_i / abar_{i-1}, 0.999) for i = 1 ... n.

    abar_i is proportional to cos(pi/2 (i/n + s) / (1 + s))^2.

    Raises:
        TypeError, ValueError: for an n that is not a whole number from 1 on.

    Example:
        >>> betas = sd.cosine_betas(100)
        >>> len(betas), max(betas)
        (100, 0.999)

    References:
        Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17.
    """
    require_whole("n", n, 1)
    alphas_bar = [math.cos(0.5 * math.pi * (i / n + s) / (1 + s)) ** 2 for i in range(n + 1)]
    return tuple(
        min(1 - next_alpha_bar / alpha_bar, 0.999)
        for alpha_bar, next_alpha_bar in pairwise(alphas_bar)
    )


@dataclass(frozen=True)
class DDPM(AbstractDiffusion):
    """The chain x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z in continuous time: a VP SDE whose
    beta(t) is piecewise constant.

    After step i = 1 ... N the time is t = i/N and log(alpha) = sum_{j <= i} log(1 - beta_j) / 2;
    between the steps log(alpha) is linear in t. sigma^2 = 1 - alpha^2, g^2 = -2 f. A network that
    counts steps from 0 to N - 1 is passed as `lambda x, t: net(x, N * t - 1)`.

    Arguments:
        betas: N numbers between 0 and 1, such as `linear_betas(1000, 1e-4, 0.02)`, the default, or
            `cosine_betas(1000)`.

    Raises:
        TypeError: for betas that are not numbers.
        ValueError: for fewer than two betas, for one that is not between 0 and 1, or for betas so
            small that alpha does not change in float64.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> chain = sd.DDPM(sd.linear_betas(1000))
        >>> len(chain.levels)
        1000
        >>> sd.sample(model, 4, sde=chain, steps=20, seed=0).shape
        torch.Size([4, 1])

    References:
        Ho et al. 2020, arXiv 2006.11239; Lu et al. 2022, arXiv 2206.00927, appendix D.4, for the
        interpolation.
    """

    largest = "betas"
    preserves_variance = True

    betas: Sequence[float] = linear_betas()

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", numbers(self.betas))
        if len(self.betas) < 2 or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError(
                f"DDPM needs two betas or more, each between 0 and 1, not {summary(self.betas)}"
            )
        require_increasing(
            self.integral,
            f"DDPM({summary(self.betas)}) has betas so small that alpha does not change",
        )

    def __repr__(self) -> str:
        return f"DDPM({summary(self.betas)})"

    @cached_property
    def integral(self) -> PiecewiseLinear:
        """-2 log(alpha) as a function of t, from 0 at t = 0."""
        ends = [i / len(self.betas) for i in range(len(self.betas) + 1)]
        return PiecewiseLinear(
            tuple(ends), tuple(accumulate((-math.log1p(-beta) for beta in self.betas), initial=0.0))
        )

    @property
    def levels(self) -> Tensor:
        """i/N for i = 1 ... N, the times of x_i, where
        q(x_i | x_0) = N(sqrt(abar_i) x_0, (1 - abar_i) I).
        """
        return torch.tensor(self.integral.x[1:], dtype=torch.float64)

    def alpha(self, t: Time) -> Time:
        return exp(-0.5 * self.integral(t))

    def sigma(self, t: Time) -> Time:
        return sqrt(-expm1(-self.integral(t)))

    def time(self, l: Time) -> Time:
        return self.integral.inverse(softplus(-2 * l))

    def f(self, t: Time) -> Time:
        return -0.5 * self.integral.slope(t)

    def g(self, t: Time) -> Time:
        return sqrt(self.integral.slope(t))
