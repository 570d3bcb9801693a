"""Grids whose points, noise levels or density of steps the caller gives."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit import uniform
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.grid import DEFAULT_END, AbstractGrid, Levels, with_exact_ends

_SIGMAS_EXPECTED = (
    "sigmas must be two or more positive numbers that decrease, sigma / alpha at the ends of the "
    "steps, and 0 after them where the result is denoised"
)
_POINTS_EXPECTED = (
    "l must be two or more finite numbers that increase: log(alpha / sigma) from the noisy end to "
    "the clean one; of decreasing noise levels sigma that is -torch.log(sigmas) where alpha = 1"
)
_DENSITY_EXPECTED = "l must increase, and the density be as many positive numbers, two or more"
# Ends are the same if their l, hence log(sigma / alpha), differ by less.
_TOLERANCE = 1e-3


def _real_numbers(values: Any, expected: str) -> Tensor:  # noqa: ANN401 - what a user gives
    """A tensor, an array or a sequence of real numbers in float64, on the CPU.

    Raises:
        TypeError: for what is not numbers, or complex ones, with what is expected.
    """
    kind = getattr(values, "dtype", None)
    is_array = isinstance(values, np.ndarray)
    is_complex = np.iscomplexobj(values) if is_array else getattr(kind, "is_complex", False)
    if kind == torch.bool or is_complex:
        raise TypeError(f"{expected}; not numbers of the type {kind}")
    try:
        given = np.array(values, dtype=np.float64) if is_array else values
        return torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{expected}; not {values!r:.100}") from None


@dataclass(frozen=True, eq=False)
class Equidistributed(AbstractGrid):
    """Steps over each of which a given density has the same integral with respect to
    l = log(alpha / sigma).

    Arguments:
        l: increasing, `(points,)`.
        density: the relative number of steps per unit of l, positive, `(points,)`; linear between
            the points.

    Raises:
        TypeError: for values that are not real numbers.
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
        l = _real_numbers(self.l, _DENSITY_EXPECTED)
        density = _real_numbers(self.density, _DENSITY_EXPECTED)
        fits = l.ndim == 1 and l.shape == density.shape and len(l) > 1
        finite = bool(l.isfinite().all() and density.isfinite().all())
        if not (fits and finite and bool((l.diff() > 0).all() and (density > 0).all())):
            raise ValueError(
                f"{_DENSITY_EXPECTED}; not l = {l.tolist()!r:.60} with the density "
                f"{density.tolist()!r:.60}"
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
        return with_exact_ends(torch.from_numpy(np.interp(targets, mass, l.numpy())), span)


@dataclass(frozen=True, eq=False)
class Given(AbstractGrid):
    """Given points l_0 < ... < l_N, which also set the number of steps N.

    Arguments:
        l: log(alpha / sigma), increasing, `(N + 1,)`, from the noisy end of a solve to its clean
            one. At the ends sigma / alpha may differ from that of the solve by 0.1 %, such as by
            the rounding of printed numbers; the ends of the solve are then used.

    Raises:
        TypeError: for values that are not real numbers.
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
        l = _real_numbers(self.l, _POINTS_EXPECTED)
        if l.ndim != 1 or len(l) < 2 or not bool((l.diff() > 0).all() and l.isfinite().all()):
            raise ValueError(f"{_POINTS_EXPECTED}; not {l.tolist()!r:.100}")
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
        TypeError: for values that are not real numbers.
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
        sigmas = _real_numbers(self.sigmas, _SIGMAS_EXPECTED).clone()
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
            f"{len(l)} points are {len(l) - 1} step{'s' * (len(l) > 2)}, not {steps}: leave steps "
            "out, or give "
            f"{len(l) - 1}{'; the step from the last level to 0 is not counted' if to_zero else ''}"
        )
    points = with_exact_ends(l.clone(), span)
    fits = np.allclose(l[[0, -1]], span, rtol=0, atol=_TOLERANCE)
    if not (fits and bool((points.diff() > 0).all())):
        raise ValueError(f"{_range_mismatch(l, span, coordinates.std)}; {advice}")
    return points


def _range_mismatch(l: Tensor, span: Span, std: float) -> str:
    available, required = (
        f"{std * math.exp(-a):.6g} to {std * math.exp(-b):.6g}" for a, b in ((l[0], l[-1]), span)
    )
    return f"the grid covers sigma / alpha from {available}, and the solve needs {required}"
