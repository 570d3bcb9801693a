"""Grids of the steps of a solve from noise to data. `GRIDS` and `__all__` register one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sdekit import did_you_mean, uniform
from sdekit.elementary import Time, exp, log1p, sigmoid
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates, Span

__all__ = [
    "GRIDS",
    "AbstractGrid",
    "Equidistributed",
    "Focused",
    "GeometricInSigma",
    "Given",
    "Karras",
    "Native",
    "Quadratic",
    "Sigmas",
    "UniformInLogSNR",
    "UniformInTime",
]

# `Focused` with few steps, or with a reach: below how many, with what sharpness of `smooth`, and to
# what power of the extent. Chosen by benchmarks/choice.py.
_FEW_STEPS = 12
_FEW_SHARPNESS = 12.0
_FEW_EXTENT = 0.75
_SHARPNESS = 5.0
_SHARE = 0.8
_SHARE_WITH_REACH = 0.9
# In extents, with a reach: steps that are uniform in l begin there at most, so that the grid below
# is the same for diffusions with more noise.
_FARTHEST = 10.0
DEFAULT_END = 1e-3  # of `sample`: sigma / alpha at the end of a solve, in units of s
_LEVELS = (
    "sigmas must be two or more positive numbers that decrease, sigma / alpha at the ends of the "
    "steps, and 0 after them where the result is denoised"
)
# Between two l, the relative difference of sigma / alpha: ends that are nearer are the same.
_TOLERANCE = 1e-3


Levels = Tensor | np.ndarray | Sequence[float]  # of noise, sigma / alpha


@dataclass(frozen=True, eq=False)
class AbstractGrid(ABC):
    """A rule that divides a span of l = log(alpha s / sigma), from the noisy end to the clean one,
    into steps.

    s is the standard deviation of the data: l is the log-SNR in `Coordinates`.

    Attributes:
        follows_model: whether steps are short where the model varies fast, so that multistep rules
            of high order are stable.
        count: the number of its steps; None where any number is possible.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Squared(sd.AbstractGrid):  # steps of l that grow linearly
        ...     def points(self, coordinates, span, steps):
        ...         u = sdekit.uniform(0.0, 1.0, steps)
        ...         return span[0] + (span[1] - span[0]) * u**2
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=Squared(), seed=0).shape
        torch.Size([4, 1])
    """

    follows_model: ClassVar[bool] = False

    @property
    def count(self) -> int | None:
        return None

    @property
    def denoises(self) -> bool:
        """Whether the last state is replaced by the mean of the data given it."""
        return False

    def span(self, model: AbstractModel, coordinates: Coordinates, end: float) -> Span:
        """l at both ends of a solve that ends at sigma / alpha = end s.

        Raises:
            ValueError: when there is nothing between them.
        """
        return coordinates.span(model, end)

    @abstractmethod
    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        """l at the ends of the steps: float64, `(steps + 1,)`, increasing, with the ends of the
        span.

        Raises:
            ValueError: for a span or a number of steps that the grid does not support.
        """


@dataclass(frozen=True, eq=False)
class Native(AbstractGrid):
    """The diffusion's own grid, `AbstractDiffusion.spaced`.

    Equal steps of t; for `EDMSDE`, whose t is sigma, `Karras(7)`.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=sd.Native(), seed=0).shape
        torch.Size([4, 1])
    """

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        t0, t1 = (float(coordinates.time(l)) for l in span)
        return _with_exact_ends(
            coordinates.log_snr(coordinates.sde.spaced(t0, t1, uniform(0.0, 1.0, steps))), span
        )


@dataclass(frozen=True, eq=False)
class UniformInTime(AbstractGrid):
    """t_i = t_0 + (i / N) (t_N - t_0) in the diffusion's own time.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=sd.UniformInTime(), seed=0).shape
        torch.Size([4, 1])

    References:
        Song et al. 2021, arXiv 2011.13456.
    """

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        t0, t1 = (float(coordinates.time(l)) for l in span)
        return _with_exact_ends(coordinates.log_snr(uniform(t0, t1, steps)), span)


@dataclass(frozen=True, eq=False)
class Quadratic(AbstractGrid):
    """Equal steps of sqrt(t): t_i = (sqrt(t_0) + (i / N) (sqrt(t_N) - sqrt(t_0)))^2.

    Steps are shorter near the data.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=sd.Quadratic(), seed=0).shape
        torch.Size([4, 1])

    References:
        Song, Meng and Ermon 2021, arXiv 2010.02502, appendix D.2.
    """

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        t0, t1 = (float(coordinates.time(l)) for l in span)
        return _with_exact_ends(
            coordinates.log_snr(uniform(math.sqrt(t0), math.sqrt(t1), steps).square()), span
        )


@dataclass(frozen=True, eq=False)
class GeometricInSigma(AbstractGrid):
    """sigma_i = sigma_0 (sigma_N / sigma_0)^{i / N}, sigma the diffusion's own.

    Where alpha = 1 this is uniform in l. Under variance-preserving diffusions the first steps are
    long, because sigma is nearly constant there.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="ve", steps=20, grid=sd.GeometricInSigma(), seed=0).shape
        torch.Size([4, 1])

    References:
        Song and Ermon 2019, arXiv 1907.05600.
    """

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        sigma = coordinates.sde.sigma
        start, stop = (math.log(float(sigma(float(coordinates.time(l))))) for l in span)
        targets = uniform(start, stop, steps)
        low = torch.full_like(targets, span[0])
        high = torch.full_like(targets, span[1])
        for _ in range(64):  # bisection: sigma falls as l rises
            l = 0.5 * (low + high)
            above = torch.as_tensor(sigma(coordinates.time(l))).log() > targets
            low = torch.where(above, l, low)
            high = torch.where(above, high, l)
        return _with_exact_ends(0.5 * (low + high), span)


@dataclass(frozen=True, eq=False)
class Karras(AbstractGrid):
    """y_i = (y_0^{1/rho} + (i / N) (y_N^{1/rho} - y_0^{1/rho}))^rho with y = sigma / alpha.

    Arguments:
        rho: 1 is uniform in y. The larger rho, the shorter the steps near the data; in the limit
            they are uniform in log y.

    Raises:
        ValueError: for a rho that is not positive.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="edm", steps=20, grid=sd.Karras(rho=7.0), seed=0).shape
        torch.Size([4, 1])

    References:
        Karras et al. 2022, arXiv 2206.00364, equation 5.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be a positive number, such as 7; not {self.rho}")

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        root0, root1 = (math.exp(-l / self.rho) for l in span)
        return _with_exact_ends(-self.rho * uniform(root0, root1, steps).log(), span)


@dataclass(frozen=True, eq=False)
class UniformInLogSNR(AbstractGrid):
    """l_i = l_0 + (i / N) (l_N - l_0): sigma / alpha falls by the same factor in each step.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=sd.UniformInLogSNR(), seed=0).shape
        torch.Size([4, 1])

    References:
        Lu et al. 2022, arXiv 2206.00927.
    """

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        return uniform(*span, steps)


@dataclass(frozen=True, eq=False)
class Focused(AbstractGrid):
    """A share of the steps is uniform in v = `smooth(l, r)`, the others are uniform in l.

    v covers the levels at which the sample is determined, sigma / alpha from a fifth of the
    standard deviation of the data to the norm r = d^{1/2} of a sample; l covers the finer ones.
    Fewer than 12 steps are shorter near the data: v = log(1 + 12 y / (y / r + 1)) with
    r = d^{3/8}. With a reach, which the default has for networks that predict the noise, v is the
    latter with r = reach d^{1/2}, and the steps of l begin at 10 r.

    Arguments:
        share: from 0, uniform in l, to less than 1. None is 0.8, or 0.9 with a reach.
        reach: up to which level v runs, in norms of a sample; infinity covers all noise.

    Raises:
        ValueError: for a share that is not in [0, 1), or a reach that is not positive.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=sd.Focused(share=0.5), seed=0).shape
        torch.Size([4, 1])
    """

    follows_model = True

    share: float | None = None
    reach: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share < 1:
            raise ValueError(
                f"share is a number from 0 on and less than 1, such as 0.8; not {self.share}"
            )
        if self.reach is not None and not self.reach > 0:
            raise ValueError(f"reach is a positive number, such as 10; not {self.reach}")

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        share = _SHARE if self.reach is None else _SHARE_WITH_REACH
        share = share if self.share is None else self.share
        extent = coordinates.extent
        if self.reach is not None:
            extent *= self.reach
            return _focused(share, extent, _FEW_SHARPNESS, _FARTHEST * extent, span, steps).clone()
        if steps < _FEW_STEPS:
            extent **= _FEW_EXTENT
            return _focused(share, extent, _FEW_SHARPNESS, math.inf, span, steps).clone()
        return _focused(share, extent, _SHARPNESS, math.inf, span, steps).clone()


@lru_cache(maxsize=32)
def _focused(
    share: float, extent: float, sharpness: float, farthest: float, span: Span, steps: int
) -> Tensor:
    """The points of `Focused`; steps that are uniform in l begin at the level `farthest`."""
    l = uniform(*span, 4000)
    v = torch.as_tensor(smooth(l, extent, sharpness))
    begin = -math.log(farthest)
    finer = l.clamp(min=begin) if begin < span[1] else l
    mass = share * _from_0_to_1(v) + (1 - share) * _from_0_to_1(finer)
    targets = uniform(0.0, 1.0, steps).numpy()
    return _with_exact_ends(torch.from_numpy(np.interp(targets, mass.numpy(), l.numpy())), span)


def _from_0_to_1(values: Tensor) -> Tensor:
    """Increasing values as their share of the way from the first to the last."""
    return (values - values[0]) / (values[-1] - values[0])


def smooth(l: Time, extent: float, sharpness: float = _SHARPNESS) -> Time:
    """v = log(1 + k y / (y / r + 1)) with y = e^{-l}, r the extent and k = 5, for data of standard
    deviation 1.

    From log(1 + k r), all noise, down to 0, the data. The denoiser is smooth in y as y goes to 0
    and in 1/y as it goes to infinity; where the sample is determined, from a fifth up to the length
    r of a whole sample, it is so in log y. v is as y, as log y and as -1/y there; l would run on
    without end on both sides. For an infinite extent v is log(1 + k y).
    """
    if math.isinf(extent):
        return log1p(sharpness * exp(-l))
    return log1p(sharpness * extent * sigmoid(-l - math.log(extent)))


@dataclass(frozen=True, eq=False)
class Equidistributed(AbstractGrid):
    """Steps with the same integral of a density of steps over log(alpha / sigma).

    Arguments:
        l: log(alpha / sigma), increasing, `(points,)`, float64.
        density: positive, `(points,)`; linear between the points.

    Raises:
        ValueError: unless l increases and there are as many positive densities, two or more; in a
            solve whose range of l is wider.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> l = torch.linspace(-8.0, 8.0, 100)
        >>> grid = sd.Equidistributed(l, density=1 / (1 + l**2))  # short steps near l = 0
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=grid, seed=0).shape
        torch.Size([4, 1])

    References:
        de Boor 1974, "Good approximation by splines with variable knots II".
    """

    follows_model = True

    l: Tensor
    density: Tensor

    def __post_init__(self) -> None:
        l = torch.as_tensor(self.l, dtype=torch.float64, device="cpu")
        density = torch.as_tensor(self.density, dtype=torch.float64, device="cpu")
        fits = l.ndim == 1 and l.shape == density.shape and len(l) > 1
        if not (fits and bool((l.diff() > 0).all() and (density > 0).all())):
            raise ValueError(
                "l must increase, and the density be as many positive numbers, two or more"
            )
        object.__setattr__(self, "l", l)
        object.__setattr__(self, "density", density)

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        l = self.l + math.log(coordinates.std)
        if not (float(l[0]) - _TOLERANCE <= span[0] < span[1] <= float(l[-1]) + _TOLERANCE):
            raise ValueError(
                f"{_range_mismatch(l, span, coordinates.std)}; give a density for that range"
            )
        mass = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(self.density, l)]).numpy()
        start, stop = np.interp(span, l.numpy(), mass).tolist()
        targets = uniform(start, stop, steps).numpy()
        return _with_exact_ends(torch.from_numpy(np.interp(targets, mass, l.numpy())), span)


@dataclass(frozen=True, eq=False)
class Given(AbstractGrid):
    """Given points l_0 < ... < l_N, which also set the number of steps N.

    Arguments:
        l: log(alpha / sigma), increasing, `(N + 1,)`, from the noisy end of a solve to its clean
            one; sigma / alpha at the ends may differ from that of the solve by a thousandth, the
            rounding of printed numbers, and is then replaced by it.

    Raises:
        ValueError: for fewer than two points, or points that are not finite or do not increase; in
            a solve of another range of l, or with another number of steps.

    Example:
        >>> model = sd.GaussianMixture([1.0], [[0.0]], [1.0])
        >>> sigmas = sdekit.geometric(50.0, 0.001, 20)
        >>> sd.sample(model, 4, sde="ve", grid=sd.Given(-sigmas.log()), seed=0).shape
        torch.Size([4, 1])
    """

    follows_model = True

    l: Tensor

    def __post_init__(self) -> None:
        l = torch.as_tensor(self.l, dtype=torch.float64, device="cpu").detach()
        if l.ndim != 1 or len(l) < 2 or not bool((l.diff() > 0).all() and l.isfinite().all()):
            raise ValueError(
                "l must be two or more finite numbers that increase: log(alpha / sigma) from the "
                "noisy end to the clean one; of decreasing noise levels sigma that is "
                "-torch.log(sigmas) where alpha = 1"
            )
        object.__setattr__(self, "l", l)

    @property
    def count(self) -> int:
        return len(self.l) - 1

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        advice = "give points that end there, or pass another end="
        return _given_points(self.l + math.log(coordinates.std), coordinates, span, steps, advice)


@dataclass(frozen=True, eq=False)
class Sigmas(AbstractGrid):
    """Given noise levels sigma_0 > ... > sigma_N, sigma / alpha in units of the data, as
    k-diffusion's samplers and diffusers' schedulers take them.

    They set both ends of the solve as well: it begins with noise of the first level, and ends at
    the last. A last level of 0 is no step: it replaces the state x by D(x), as those samplers do.
    As on all grids that need not follow the model, the default's rules are the shorter ones; those
    of `Given` are longer.

    Arguments:
        sigmas: decreasing and positive, but for the last; a tensor, an array or a sequence, which
            `sample(grid=)` takes as it is too.

    Raises:
        ValueError: for fewer than two positive levels, or levels that do not decrease; in a solve
            for levels that the model or the diffusion does not have, another number of steps, or an
            end that is not the last level.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sigmas = [14.6, 6.5, 3.9, 2.7, 1.9, 1.4, 0.96, 0.65, 0.4, 0.15, 0.03, 0.0]
        >>> sd.sample(model, 4, sde="ve", grid=sd.Sigmas(sigmas), seed=0).shape
        torch.Size([4, 1])

    References:
        Karras et al. 2022, arXiv 2206.00364; Sabour, Fidler and Kreis 2024, arXiv 2404.14507, for
        levels that are optimised for a model.
    """

    sigmas: Levels

    def __post_init__(self) -> None:
        try:
            sigmas = torch.as_tensor(self.sigmas, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{_LEVELS}; not {self.sigmas!r:.100}") from None
        sigmas = sigmas.detach().clone()
        valid = sigmas.ndim == 1 and bool((sigmas.diff() < 0).all() and sigmas.isfinite().all())
        if not valid or len(sigmas) < 2 or float(sigmas[-1]) < 0 or self._of(sigmas) < 1:
            raise ValueError(f"{_LEVELS}; not {sigmas.tolist()!r:.100}")
        object.__setattr__(self, "sigmas", sigmas)

    @staticmethod
    def _of(sigmas: Tensor) -> int:
        """The number of steps between positive levels."""
        return int((sigmas > 0).sum()) - 1

    @property
    def count(self) -> int:
        return self._of(torch.as_tensor(self.sigmas))

    @property
    def denoises(self) -> bool:
        return float(self.sigmas[-1]) == 0

    def _l(self, coordinates: Coordinates) -> Tensor:
        levels = torch.as_tensor(self.sigmas)[: self.count + 1]
        return math.log(coordinates.std) - levels.log()

    def span(self, model: AbstractModel, coordinates: Coordinates, end: float) -> Span:
        l = self._l(coordinates).tolist()
        last = math.exp(-l[-1])
        if end != DEFAULT_END and not math.isclose(end, last, rel_tol=_TOLERANCE):
            raise ValueError(
                f"the noise levels end at {last:.4g} standard deviations of the data, and end is "
                f"{end:.4g}: leave out end, or give levels that end there"
            )
        start, stop = coordinates.span(model, last)
        if not (start - _TOLERANCE <= l[0] and l[-1] <= stop + _TOLERANCE):
            raise ValueError(
                f"the noise levels run from {coordinates.std * math.exp(-l[0]):.6g} to "
                f"{coordinates.std * math.exp(-l[-1]):.6g}, and sigma / alpha under "
                f"{coordinates.sde} from {coordinates.std * math.exp(-start):.6g} to "
                f"{coordinates.std * math.exp(-stop):.6g}: take levels between them, or another "
                "diffusion"
            )
        return max(start, l[0]), stop

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        advice = "begin with the level of the start, as sigmas[sigmas <= level] does"
        l = self._l(coordinates)
        return _given_points(l, coordinates, span, steps, advice, to_zero=self.denoises)


def _given_points(
    l: Tensor,
    coordinates: Coordinates,
    span: Span,
    steps: int,
    advice: str,
    *,
    to_zero: bool = False,
) -> Tensor:
    """Given points, with the exact ends of a span.

    Raises:
        ValueError: for another number of steps, or another range.
    """
    if steps != len(l) - 1:
        raise ValueError(
            f"{len(l)} points are {len(l) - 1} steps, not {steps}: leave steps out, or give "
            f"{len(l) - 1}{'; the step from the last level to 0 is not counted' if to_zero else ''}"
        )
    points = _with_exact_ends(l.clone(), span)
    fits = np.allclose(l[[0, -1]], span, rtol=0, atol=_TOLERANCE)
    if not (fits and bool((points.diff() > 0).all())):
        raise ValueError(f"{_range_mismatch(l, span, coordinates.std)}; {advice}")
    return points


def _range_mismatch(l: Tensor, span: Span, std: float) -> str:
    available, required = (
        f"{std * math.exp(-a):.6g} to {std * math.exp(-b):.6g}" for a, b in ((l[0], l[-1]), span)
    )
    return f"the grid is known from sigma / alpha = {available}, and asked for from {required}"


def _with_exact_ends(l: Tensor | float, span: Span) -> Tensor:
    """Points with exact ends, which formulas may round."""
    points = torch.as_tensor(l)
    points[0], points[-1] = span
    return points


GRIDS: dict[str, AbstractGrid] = {
    "native": Native(),
    "time": UniformInTime(),
    "quadratic": Quadratic(),
    "sigma": GeometricInSigma(),
    "karras": Karras(),
    "log_snr": UniformInLogSNR(),
    "focused": Focused(),
}


def grid_of(choice: AbstractGrid | Levels | str) -> AbstractGrid:
    """A grid from its name, or from noise levels.

    Raises:
        TypeError: for what is neither a name nor a grid.
        ValueError: for an unknown name.
    """
    if isinstance(choice, AbstractGrid):
        return choice
    if not isinstance(choice, str) and isinstance(choice, Tensor | np.ndarray | Sequence):
        return Sigmas(choice)
    if not isinstance(choice, str):
        raise TypeError(
            "grid must be a name, a grid or noise levels sigma / alpha that decrease, not "
            f"{type(choice).__name__}"
        )
    if choice not in GRIDS:
        raise ValueError(
            f"unknown grid {choice!r}{did_you_mean(choice, GRIDS)}; choose one of "
            f"{', '.join(GRIDS)}, or pass a grid such as Karras(rho=7)"
        )
    return GRIDS[choice]
