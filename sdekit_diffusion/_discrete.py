"""DDPM's chain and NCSN's noise levels as diffusions: what lies between two levels is interpolated."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sdekit import geometric
from sdekit.elementary import Time, exp, expm1, softplus, sqrt
from sdekit_diffusion._diffusion import AbstractDiffusion, AbstractExploding


@dataclass(frozen=True)
class PiecewiseLinear:
    """The increasing function through points (x_i, y_i), linear between neighbours; its outer pieces go on.

    Arguments:
        x, y: at least two strictly increasing numbers each.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, x: Time) -> Time:
        x0, y0, slope = self._piece(x)
        return y0 + slope * (x - x0)

    def slope(self, x: Time) -> Time:
        """The derivative; at a point that of the piece after it."""
        return self._piece(x)[2]

    @cached_property
    def inverse(self) -> "PiecewiseLinear":
        """x as a function of y."""
        return PiecewiseLinear(self.y, self.x)

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self._pieces, dtype=torch.float64)

    @cached_property
    def _pieces(self) -> list[tuple[float, float, float]]:
        """Where each begins, and its slope."""
        points = pairwise(zip(self.x, self.y, strict=True))
        return [(x0, y0, (y1 - y0) / (x1 - x0)) for (x0, y0), (x1, y1) in points]

    def _piece(self, x: Time) -> tuple[Time, Time, Time]:
        if not isinstance(x, Tensor):
            return self._pieces[bisect_right(self.x, x, 1, len(self.x) - 1) - 1]
        table = self._table.to(x.device, non_blocking=True)
        index = torch.searchsorted(table[1:, 0].contiguous(), x.to(torch.float64), right=True)
        x0, y0, slope = table[index].to(x.dtype).unbind(dim=-1)
        return x0, y0, slope


def linear_betas(n: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> tuple[float, ...]:
    """n numbers at equal distances from beta_min to beta_max (Ho et al. 2020, arXiv 2006.11239, section 4)."""
    return tuple(torch.linspace(beta_min, beta_max, n, dtype=torch.float64).tolist())


def cosine_betas(n: int = 1000, s: float = 0.008) -> tuple[float, ...]:
    """beta_i = 1 - abar_{i+1} / abar_i <= 0.999, abar_i ~ cos(pi/2 (i/n + s) / (1 + s))^2 (Nichol and Dhariwal 2021)."""
    kept = [math.cos(0.5 * math.pi * (i / n + s) / (1 + s)) ** 2 for i in range(n + 1)]
    return tuple(min(1 - after / before, 0.999) for before, after in pairwise(kept))


@dataclass(frozen=True)
class DDPM(AbstractDiffusion):
    """The chain x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z with a time between its steps: a VP SDE with steps of beta.

    After i = 1 ... N steps t = i/N and log(alpha) = sum_{j <= i} log(1 - beta_j) / 2, linear in t between;
    sigma^2 = 1 - alpha^2, g^2 = -2 f. A network that counts steps from 0 to N - 1 is `lambda x, t: net(x, N * t - 1)`.

    Arguments:
        betas: N numbers between 0 and 1, such as `linear_betas(1000, 1e-4, 0.02)`, the default, or `cosine_betas(1000)`.

    Raises:
        ValueError: for fewer than two, or one that is not between 0 and 1.

    References:
        Ho et al. 2020, arXiv 2006.11239; Lu et al. 2022, arXiv 2206.00927, appendix D.4, for the interpolation.
    """

    largest = "betas"

    betas: Sequence[float] = linear_betas()

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", _numbers(self.betas))
        if len(self.betas) < 2 or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError(f"DDPM needs two betas or more, each between 0 and 1, not {_shown(self.betas)}")
        _require_increasing(self.integral, f"DDPM({_shown(self.betas)}) has betas so small that alpha does not change")

    def __repr__(self) -> str:
        return f"DDPM({_shown(self.betas)})"

    @cached_property
    def integral(self) -> PiecewiseLinear:
        """-2 log(alpha) as a function of t, from 0 at t = 0."""
        ends = [i / len(self.betas) for i in range(len(self.betas) + 1)]
        return PiecewiseLinear(tuple(ends), tuple(accumulate((-math.log1p(-beta) for beta in self.betas), initial=0.0)))

    @property
    def levels(self) -> Tensor:
        """i/N for i = 1 ... N, at which x_t is x_i of the chain: q(x_i | x_0) = N(sqrt(abar_i) x_0, (1 - abar_i) I)."""
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


@dataclass(frozen=True)
class NCSN(AbstractExploding):
    """Noise levels with a time between them: alpha = 1, log(sigma) linear between neighbours, the smallest at t = 0.

    f = 0, g^2 = d sigma^2/dt. Levels in a geometric progression make it `VESDE(exact=False)`.

    Arguments:
        sigmas: positive and in order, up or down; such as `sdekit.geometric(50.0, 0.01, 231)`, the default, for 232 levels.

    Raises:
        ValueError: for fewer than two levels, or levels that are not positive and all different.

    References:
        Song and Ermon 2019, arXiv 1907.05600; 2020, arXiv 2006.09011, whose levels for CIFAR-10 the default is.
    """

    largest = "sigmas"

    sigmas: Sequence[float] | Tensor = tuple(geometric(0.01, 50.0, 231).tolist())

    def __post_init__(self) -> None:
        given = _numbers(self.sigmas)
        object.__setattr__(self, "sigmas", tuple(sorted(given)))
        increasing = len(given) > 1 and all(0 < a < b < math.inf for a, b in pairwise(self.sigmas))
        if not increasing or given not in (self.sigmas, tuple(reversed(self.sigmas))):
            raise ValueError(f"NCSN needs two different positive noise levels or more, in order, not {_shown(given)}")
        _require_increasing(self.log_sigma, f"NCSN({_shown(given)}) has sigmas so near that their logarithms are equal")

    def __repr__(self) -> str:
        return f"NCSN({_shown(self.sigmas)})"

    @cached_property
    def log_sigma(self) -> PiecewiseLinear:
        """log(sigma) as a function of t."""
        last = len(self.sigmas) - 1
        return PiecewiseLinear(tuple(i / last for i in range(last + 1)), tuple(math.log(sigma) for sigma in self.sigmas))

    @property
    def levels(self) -> Tensor:
        """The times of the sigmas, the smallest at 0, the largest at 1."""
        return torch.tensor(self.log_sigma.x, dtype=torch.float64)

    def sigma(self, t: Time) -> Time:
        return exp(self.log_sigma(t))

    def time(self, l: Time) -> Time:
        return self.log_sigma.inverse(-l)

    def g(self, t: Time) -> Time:
        return self.sigma(t) * sqrt(2 * self.log_sigma.slope(t))


def _require_increasing(function: PiecewiseLinear, why: str) -> None:
    """Refuses a table of a clock that stands still: it has no inverse."""
    if not all(a < b for a, b in pairwise(function.y)):
        raise ValueError(f"{why} in float64; leave these out")


def _numbers(values: Sequence[float] | Tensor) -> tuple[float, ...]:
    """As a tuple of floats: two diffusions are equal where these are."""
    return tuple(torch.as_tensor(values, dtype=torch.float64).flatten().tolist())


def _shown(values: Sequence[float] | Tensor) -> str:
    """All of a few numbers, or how many there are, and the ends."""
    if len(values) <= 6:
        return ", ".join(f"{float(value):g}" for value in values)
    return f"{len(values)} values from {float(values[0]):g} to {float(values[-1]):g}"
