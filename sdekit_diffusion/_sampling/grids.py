"""Grids of the steps of a solve from noise to data. A new one is added to `GRIDS` and `__all__`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit import did_you_mean, uniform
from sdekit.elementary import Time, exp, log1p, sigmoid
from sdekit_diffusion._common.immutable import is_immutable
from sdekit_diffusion._common.inputs import require_numbers
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
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

# Chosen by benchmarks/choice.py. With a reach, or with fewer than _FEW_STEPS steps and no native
# share, `Focused` calls `smooth` with _FEW_SHARPNESS instead of SHARPNESS. With so few steps and
# neither of them it also raises the extent to the power _FEW_EXTENT.
_FEW_STEPS = 12
_FEW_SHARPNESS = 12.0
_FEW_EXTENT = 0.75
SHARPNESS = 5.0
_LEAST_SHARPNESS = 2.0  # about the factor in 64 coordinates, the most with which it was chosen
_SHARE = 0.8
_SHARE_WITH_REACH = 0.9
# With a reach, the steps that are uniform in l begin at most at this many extents, so that at lower
# levels the grid is the same for diffusions with more noise.
_FARTHEST = 10.0
# Standard deviations of data for which a diffusion with alpha < 1 is made. For others its times are
# nearly all at far more noise than data, or at far less: see benchmarks/scale.py.
_NATIVE_STDS = (0.5, 2.0)
_FINE = 4000  # steps of the grid on which the points of `Focused` are interpolated
DEFAULT_END = 1e-3  # sigma / alpha at the end of a solve, in units of s
_SIGMAS_EXPECTED = (
    "sigmas must be two or more positive numbers that decrease, sigma / alpha at the ends of the "
    "steps, and 0 after them where the result is denoised"
)
# Ends are the same if their l, hence log(sigma / alpha), differ by less.
_TOLERANCE = 1e-3


Levels = Tensor | np.ndarray | Sequence[float]  # of noise, sigma / alpha


@dataclass(frozen=True, eq=False)
class AbstractGrid(ABC):
    """A rule that divides a span of l = log(alpha s / sigma), from the noisy end to the clean one,
    into steps.

    s is the standard deviation of the data: l is the log-SNR of data that are divided by s.

    Attributes:
        follows_model: whether steps are short where the model varies fast, so that multistep rules
            of high order are stable.
        count: the number of steps of the grid; None where any number is possible.

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
        """Whether the last state is replaced by the mean of the data given this state."""
        return False

    def span(self, model: AbstractModel, coordinates: Coordinates, end: float) -> Span:
        """l at both ends of a solve that stops at sigma / alpha = end s.

        Raises:
            ValueError: when the span is empty.
        """
        return coordinates.span(model, end)

    @abstractmethod
    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        """l at the ends of the steps: float64, `(steps + 1,)`, increasing from the first end of the
        span to the last.

        Raises:
            ValueError: for a span or a number of steps that the grid does not support.
        """


@dataclass(frozen=True, eq=False)
class Native(AbstractGrid):
    """The diffusion's own grid, `AbstractDiffusion.spaced`.

    Equal steps of t; for `EDMSDE`, whose t is sigma, the steps of `Karras(7)`.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=sd.Native(), seed=0).shape
        torch.Size([4, 1])
    """

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        return _native(coordinates, span, uniform(0.0, 1.0, steps))


def _native(coordinates: Coordinates, span: Span, fractions: Tensor) -> Tensor:
    """l at fractions of the steps of `Native`."""
    t0, t1 = (float(coordinates.time(l)) for l in span)
    return _with_exact_ends(coordinates.log_snr(coordinates.sde.spaced(t0, t1, fractions)), span)


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
    """sigma_i = sigma_0 (sigma_N / sigma_0)^{i / N}, with the sigma of the diffusion.

    Where alpha = 1 this is uniform in l. Under variance-preserving diffusions the first steps are
    long, in t and in l, because sigma is nearly constant there.

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
        for _ in range(64):  # bisection: sigma decreases as l increases
            l = 0.5 * (low + high)
            above = torch.as_tensor(sigma(coordinates.time(l))).log() > targets
            low = torch.where(above, l, low)
            high = torch.where(above, high, l)
        return _with_exact_ends(0.5 * (low + high), span)


@dataclass(frozen=True, eq=False)
class Karras(AbstractGrid):
    """y_i = (y_0^{1/rho} + (i / N) (y_N^{1/rho} - y_0^{1/rho}))^rho with y = sigma / alpha.

    Arguments:
        rho: with 1 the steps are uniform in y; the larger rho, the shorter the steps near the data;
            in the limit they are uniform in log(y).

    Raises:
        TypeError: for a rho that is not a number.
        ValueError: for a rho that is not positive and finite.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="edm", steps=20, grid=sd.Karras(rho=7.0), seed=0).shape
        torch.Size([4, 1])

    References:
        Karras et al. 2022, arXiv 2206.00364, equation 5.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        require_numbers(self, "rho")
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be a positive number, such as 7; not {self.rho}")

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        root0, root1 = (math.exp(-l / self.rho) for l in span)
        return _with_exact_ends(-self.rho * uniform(root0, root1, steps).log(), span)


@dataclass(frozen=True, eq=False)
class UniformInLogSNR(AbstractGrid):
    """l_i = l_0 + (i / N) (l_N - l_0): each step divides sigma / alpha by the same factor.

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
    """A share of the steps is uniform in v = log(1 + 5 y / (y / r + 1)), the others in l.

    y = sigma / (alpha s) is the noise in standard deviations of the data, l = -log(y), and
    r = d^{1/2} the norm of a standardised sample of d coordinates. Steps in v cover the levels at
    which the sample is determined, y from 1/5 to r, and steps in l the lower ones. A native share
    adds steps of the own grid of the diffusion that the model was trained under, at large noise,
    where networks are less smooth in l than exact scores.

    With fewer than 12 steps, v = log(1 + 12 y / (y / r + 1)) with r = d^{3/8}, so that steps are
    shorter near the data. With a reach, this v has r = reach d^{1/2}, and the steps in l begin at y
    = 10 r. With a native share and no reach, v is the first one in any number of steps.

    With `method="default"` and a network, the table on the page of samplers sets what is None: the
    reach and the sharpness for networks that predict the noise, and for others both shares if
    neither is given. It sets nothing if a reach or a native share is given.

    Arguments:
        share: the share of v, from 0 to less than 1. None means 0.8, or 0.9 with a reach.
        reach: the level y up to which v extends, over d^{1/2}; with infinity it covers all noise.
        sharpness: the larger, the more steps are near the data. The factor of y in v is
            sharpness / d^{1/2}, but at least 2. None means the factors 5 and 12 above, and 12 with
            a reach, in any number of coordinates.
        native_share: the share of the steps of `Native` under the model's diffusion, or under that
            of the solve if the model has none; None means 0. Where alpha < 1, the data are taken to
            have a standard deviation from 1/2 to 2 there. What both shares leave is uniform in l.

    Raises:
        TypeError: for arguments that are not numbers.
        ValueError: for a share that is not in [0, 1), shares whose sum is not less than 1, or a
            reach or a sharpness that is not positive.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=sd.Focused(share=0.5), seed=0).shape
        torch.Size([4, 1])
    """

    follows_model = True

    share: float | None = None
    reach: float | None = None
    sharpness: float | None = None
    native_share: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "share", "reach", "sharpness", "native_share")
        if self.share is not None and not 0 <= self.share < 1:
            raise ValueError(
                f"share is a number from 0 on and less than 1, such as 0.8; not {self.share}"
            )
        native_share = self.native_share or 0.0
        if not (native_share >= 0 and self._share_of_v + native_share < 1):
            raise ValueError(
                "native_share is a number from 0 on, and its sum with share less than 1; not "
                f"{native_share} with {'the default' if self.share is None else 'the'} share "
                f"{self._share_of_v}"
            )
        if self.reach is not None and not self.reach > 0:
            raise ValueError(f"reach is a positive number, such as 10; not {self.reach}")
        if self.sharpness is not None and not 0 < self.sharpness < math.inf:
            raise ValueError(
                f"sharpness is a positive, finite number, such as 17; not {self.sharpness}"
            )

    @property
    def _share_of_v(self) -> float:
        default = _SHARE if self.reach is None else _SHARE_WITH_REACH
        return default if self.share is None else self.share

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        native_share = self.native_share or 0.0
        few = self.reach is not None or (steps < _FEW_STEPS and not native_share)
        sharpness = _FEW_SHARPNESS if few else SHARPNESS
        extent = coordinates.extent
        if self.sharpness is not None:
            sharpness = max(self.sharpness / extent, _LEAST_SHARPNESS)
        farthest = math.inf
        if self.reach is not None:
            extent *= self.reach
            farthest = _FARTHEST * extent
        elif few:
            extent **= _FEW_EXTENT
        density = _Density(self._share_of_v, extent, sharpness, farthest, native_share)
        if not native_share:
            return _cached_focused(density, span, steps).clone()
        own = coordinates.trained_under
        sde = coordinates.sde if own is None else own
        compute = _cached_focused if is_immutable(sde) else _focused
        return compute(density, span, steps, sde, coordinates.std).clone()


class _Density(NamedTuple):
    """Where the steps of `Focused` are; those that are uniform in l begin at `farthest`."""

    share: float
    extent: float
    sharpness: float
    farthest: float
    native_share: float


def _focused(
    density: _Density,
    span: Span,
    steps: int,
    sde: AbstractDiffusion | None = None,
    std: float = 1.0,
) -> Tensor:
    """The points of `Focused`. The diffusion, and s, are needed only for a native share."""
    l = uniform(*span, _FINE)
    v = torch.as_tensor(smooth(l, density.extent, density.sharpness))
    begin = -math.log(density.farthest)
    finer = l.clamp(min=begin) if begin < span[1] else l
    rest = 1 - density.share - density.native_share
    mass = density.share * _from_0_to_1(v) + rest * _from_0_to_1(finer)
    if sde is not None:
        fractions = 1 - uniform(1.0, 0.0, _FINE) ** 3  # close near the data, where l varies fast
        if float(sde.alpha(sde.latest())) < 1:
            std = float(np.clip(std, *_NATIVE_STDS))
        native = _native(Coordinates(sde, std=std), span, fractions)
        part = np.interp(l.numpy(), native.numpy(), fractions.numpy())
        mass += density.native_share * torch.from_numpy(part)
    targets = uniform(0.0, 1.0, steps).numpy()
    return _with_exact_ends(torch.from_numpy(np.interp(targets, mass.numpy(), l.numpy())), span)


_cached_focused = lru_cache(maxsize=32)(_focused)


def _from_0_to_1(values: Tensor) -> Tensor:
    """Increasing values, scaled so that the first is 0 and the last is 1."""
    return (values - values[0]) / (values[-1] - values[0])


def smooth(l: Time, extent: float, sharpness: float = SHARPNESS) -> Time:
    """v = log(1 + k y / (y / r + 1)) with y = e^{-l}, the sharpness k and the extent r, for data
    of standard deviation 1.

    v decreases from log(1 + k r) for pure noise to 0 for the data. The denoiser is smooth in y as y
    goes to 0, in 1/y as y goes to infinity, and in log(y) between 1/k and the norm r of a sample,
    where the sample is determined. In these ranges v is nearly linear in y, in 1/y and in log(y);
    l would be unbounded on both sides. For an infinite extent v is log(1 + k y).
    """
    if math.isinf(extent):
        return log1p(sharpness * exp(-l))
    return log1p(sharpness * extent * sigmoid(-l - math.log(extent)))


@dataclass(frozen=True, eq=False)
class Equidistributed(AbstractGrid):
    """Steps over each of which a given density has the same integral with respect to
    l = log(alpha / sigma).

    Arguments:
        l: increasing, `(points,)`.
        density: the relative number of steps per unit of l, positive, `(points,)`; linear between
            the points.

    Raises:
        ValueError: unless l increases and has as many densities, all positive, two or more; in a
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
                "l must increase, and the density be as many positive numbers, two or more; not "
                f"l = {l.tolist()!r:.60} with the density {density.tolist()!r:.60}"
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
            one. At the ends sigma / alpha may differ from that of the solve by 0.1 %, such as by
            the rounding of printed numbers; the ends of the solve are then used.

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
                f"-torch.log(sigmas) where alpha = 1; not {l.tolist()!r:.100}"
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
    """Given noise levels sigma / alpha, sigma_0 > ... > sigma_N, in units of the data, as the
    samplers of k-diffusion and the schedulers of diffusers use them.

    They also set both ends of the solve: it begins with noise of the first level, and ends at the
    last. A last level of 0 is not a step: the state x is replaced by D(x), which is what the last
    step of those samplers is too, except for `lms` and under churn. The default method uses shorter
    multistep rules on this grid than on `Given`, because published levels need not follow the
    model.

    Arguments:
        sigmas: decreasing and positive, except that the last may be 0; a tensor, an array or a
            sequence, which `sample(grid=)` also accepts directly.

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
            raise ValueError(f"{_SIGMAS_EXPECTED}; not {self.sigmas!r:.100}") from None
        sigmas = sigmas.detach().clone()
        valid = sigmas.ndim == 1 and bool((sigmas.diff() < 0).all() and sigmas.isfinite().all())
        if not valid or len(sigmas) < 2 or float(sigmas[-1]) < 0 or self._steps(sigmas) < 1:
            raise ValueError(f"{_SIGMAS_EXPECTED}; not {sigmas.tolist()!r:.100}")
        object.__setattr__(self, "sigmas", sigmas)

    @staticmethod
    def _steps(sigmas: Tensor) -> int:
        """The number of steps, which are between positive levels."""
        return int((sigmas > 0).sum()) - 1

    @property
    def count(self) -> int:
        return self._steps(torch.as_tensor(self.sigmas))

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
                f"{coordinates.sde} from {coordinates.std * math.exp(-start):.6g} (that of T, or "
                "160 standard deviations of the data instead of more than 1e5) to "
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
    """Given points, whose ends are replaced by those of a span.

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
    return f"the grid covers sigma / alpha from {available}, and the solve needs {required}"


def _with_exact_ends(l: Tensor | float, span: Span) -> Tensor:
    """Points whose ends, which formulas may round, are replaced by those of the span."""
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
        TypeError: for anything else.
        ValueError: for an unknown name, or levels that do not decrease.
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
