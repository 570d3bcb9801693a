"""Grids: where a solve from noise to data takes its steps."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sdekit import uniform
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.model import AbstractModel

Span = tuple[float, float]
_SAME = 1e-3  # between two l, the relative difference of sigma / alpha: ends that are nearer are the same


@dataclass(frozen=True, eq=False)
class AbstractGrid(ABC):
    """A rule that divides a span of l = log(alpha / sigma), from the noisy end to the clean one, into steps.

    Attributes:
        evaluations: what it took to find the rule, of all samples together; 0 for a formula.
        follows: whether steps are short where the model is rough, so that polynomials may reach far back.
        count: the number of its steps; None where it divides a span into any number.
    """

    evaluations, follows = 0, False
    count: ClassVar[int | None] = None

    @abstractmethod
    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        """l at the ends of the steps: float64, `(steps + 1,)`, increasing strictly; the first and the last are the span's."""

    def fitted(
        self,
        model: AbstractModel,
        sde: AbstractDiffusion | str | None = None,
        span: Span | None = None,
        method: object = None,
    ) -> "AbstractGrid":
        """The grid with what it must know of a model, and of the `AbstractMethod` that asks; itself where that is nothing."""
        return self


@dataclass(frozen=True, eq=False)
class Native(AbstractGrid):
    """The diffusion's own, `AbstractDiffusion.spaced`: equal steps of t, but `Karras(7)` for `EDMSDE`, whose t is sigma."""

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        t0, t1 = (float(sde.time_within(l)) for l in span)
        return _ended(sde.log_snr(sde.spaced(t0, t1, uniform(0.0, 1.0, steps))), span)


@dataclass(frozen=True, eq=False)
class UniformInTime(AbstractGrid):
    """t_i = t_0 + (i / N) (t_N - t_0) in the diffusion's own time.

    References:
        Song et al. 2021, arXiv 2011.13456.
    """

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        t0, t1 = (float(sde.time_within(l)) for l in span)
        return _ended(sde.log_snr(uniform(t0, t1, steps)), span)


@dataclass(frozen=True, eq=False)
class Quadratic(AbstractGrid):
    """sqrt(t) in equal steps: t_i = (sqrt(t_0) + (i / N) (sqrt(t_N) - sqrt(t_0)))^2, shorter steps towards the data.

    References:
        Song, Meng and Ermon 2021, arXiv 2010.02502, appendix D.2.
    """

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        t0, t1 = (float(sde.time_within(l)) for l in span)
        return _ended(sde.log_snr(uniform(math.sqrt(t0), math.sqrt(t1), steps).square()), span)


@dataclass(frozen=True, eq=False)
class GeometricInSigma(AbstractGrid):
    """sigma_i = sigma_0 (sigma_N / sigma_0)^{i / N}, sigma the diffusion's own.

    Where alpha = 1 that is uniform in l; where variance is preserved the first steps are long, for sigma is flat there.

    References:
        Song and Ermon 2019, arXiv 1907.05600.
    """

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        start, stop = (math.log(float(sde.sigma(float(sde.time_within(l))))) for l in span)
        wanted = uniform(start, stop, steps)
        low, high = torch.full_like(wanted, span[0]), torch.full_like(wanted, span[1])
        for _ in range(64):  # bisection: sigma falls as l rises
            l = 0.5 * (low + high)
            above = torch.as_tensor(sde.sigma(sde.time(l))).log() > wanted
            low, high = torch.where(above, l, low), torch.where(above, high, l)
        return _ended(0.5 * (low + high), span)


@dataclass(frozen=True, eq=False)
class Karras(AbstractGrid):
    """y_i = (y_0^{1/rho} + (i / N) (y_N^{1/rho} - y_0^{1/rho}))^rho with y = sigma / alpha.

    Arguments:
        rho: 1 is uniform in y; the larger, the shorter the steps towards the data; uniform in log y in the limit.

    References:
        Karras et al. 2022, arXiv 2206.00364, equation 5.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be a positive number, such as 7; not {self.rho}")

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        root0, root1 = (math.exp(-l / self.rho) for l in span)
        return _ended(-self.rho * uniform(root0, root1, steps).log(), span)


@dataclass(frozen=True, eq=False)
class UniformInLogSNR(AbstractGrid):
    """l_i = l_0 + (i / N) (l_N - l_0): sigma / alpha falls by the same factor in each step.

    References:
        Lu et al. 2022, arXiv 2206.00927.
    """

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        return uniform(*span, steps)


@dataclass(frozen=True, eq=False)
class Focused(AbstractGrid):
    """A share of the steps spread evenly over v = `AbstractModel.clock(l)`, the others over l.

    The former are where the denoiser finds out what the sample is, sigma / alpha from a fifth of the deviation of the data to
    the length of a sample; the latter are for what is finer.

    Arguments:
        share: 0 is uniform in l.
        model: whose clock; `fitted` fills it in.
    """

    follows = True

    share: float = 0.8
    model: AbstractModel | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share is a number from 0 on and less than 1, such as 0.8; not {self.share}")

    def fitted(
        self,
        model: AbstractModel,
        sde: AbstractDiffusion | str | None = None,
        span: Span | None = None,
        method: object = None,
    ) -> "AbstractGrid":
        return replace(self, model=model)

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        if self.model is None:
            raise ValueError("a focused grid needs the deviation of the data: ask Focused().fitted(model) for its points")
        l = uniform(*span, 4000)
        v = torch.as_tensor(self.model.clock(l))
        mass = self.share * (v - v[0]) / (v[-1] - v[0]) + (1 - self.share) * torch.linspace(0, 1, len(l), dtype=torch.float64)
        wanted = uniform(0.0, 1.0, steps).numpy()
        return _ended(torch.from_numpy(np.interp(wanted, mass.numpy(), l.numpy())), span)


@dataclass(frozen=True, eq=False)
class Equidistributed(AbstractGrid):
    """Steps with the same integral of a density of steps over l.

    Arguments:
        l: increasing, `(points,)`, float64.
        density: positive, `(points,)`; linear between the points.
        evaluations: what it took to find the density, of all samples together.
        width: the deviation of a Gaussian that smooths the density, in mean steps: steps do not follow what is shorter.

    References:
        de Boor 1974, "Good approximation by splines with variable knots II".
    """

    follows = True

    l: Tensor
    density: Tensor
    evaluations: int = 0
    width: float = 0.0

    def __post_init__(self) -> None:
        l, density = (torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in (self.l, self.density))
        if (
            l.ndim != 1
            or l.shape != density.shape
            or len(l) < 2
            or not (bool((l.diff() > 0).all()) and bool((density > 0).all()))
        ):
            raise ValueError("l must increase, and the density be as many positive numbers, two or more")
        if not 0 <= self.width < math.inf:
            raise ValueError(f"width must be a number of steps from 0 on, not {self.width}")
        object.__setattr__(self, "l", l)
        object.__setattr__(self, "density", density)

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        return self.divided(span, torch.ones(steps, dtype=torch.float64))

    def divided(self, span: Span, shares: Tensor) -> Tensor:
        """Points between which the integrals of the density are in the proportions of shares, `(steps,)`."""
        l = self.l.numpy()
        if not (l[0] - _SAME <= span[0] < span[1] <= l[-1] + _SAME):
            raise ValueError(f"{_known(self.l, span)}; fit it for that range, or leave that to sample by grid='adapted'")
        density = smoothed(self.density, self.l, self.l, self.width * (span[1] - span[0]) / len(shares))
        mass = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, self.l)]).numpy()
        start, stop = np.interp(span, l, mass).tolist()
        wanted = start + (stop - start) * np.append(0.0, np.cumsum(shares.numpy()) / float(shares.sum()))
        return _ended(torch.from_numpy(np.interp(wanted, mass, l)), span)


@dataclass(frozen=True, eq=False)
class Given(AbstractGrid):
    """Points l_0 < ... < l_N that are given, for N steps, which `sample` takes from here.

    Arguments:
        l: log(alpha / sigma), increasing, `(N + 1,)`, from the noisy end of a solve to its clean one; sigma / alpha at the ends
            may be off by a thousandth, as of numbers that were printed, and is then that of the solve.
        evaluations: what it took to find them, of all samples together.
    """

    follows = True

    l: Tensor
    evaluations: int = 0

    def __post_init__(self) -> None:
        l = torch.as_tensor(self.l, dtype=torch.float64, device="cpu").detach()
        if l.ndim != 1 or len(l) < 2 or not bool((l.diff() > 0).all() and l.isfinite().all()):
            raise ValueError(
                "l must be two or more finite numbers that increase: log(alpha / sigma) from the noisy end to the "
                "clean one; of decreasing noise levels sigma that is -torch.log(sigmas) where alpha = 1"
            )
        object.__setattr__(self, "l", l)

    @property
    def count(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.l) - 1

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        if steps != self.count:
            raise ValueError(f"{len(self.l)} points are {self.count} steps, not {steps}: leave steps out, or give {self.count}")
        points = _ended(self.l.clone(), span)
        if not (np.allclose(self.l[[0, -1]], span, rtol=0, atol=_SAME) and bool((points.diff() > 0).all())):
            raise ValueError(f"{_known(self.l, span)}; give points that end there, fit them again, or pass another end=")
        return points


def _known(l: Tensor, span: Span) -> str:
    has, asked = (f"{math.exp(-a):.6g} to {math.exp(-b):.6g}" for a, b in ((l[0], l[-1]), span))
    return f"the grid is known from sigma / alpha = {has}, and asked for from {asked}"


def smoothed(values: Tensor, at: Tensor, to: Tensor, width: float) -> Tensor:
    """A piecewise linear function, by its values `(points,)`, averaged with a Gaussian of a deviation; 0 is no smoothing."""
    if not width:
        return values
    log_lengths = torch.cat([at[1:2] - at[:1], at[2:] - at[:-2], at[-1:] - at[-2:-1]]).log()
    return torch.softmax(log_lengths - 0.5 * ((to[:, None] - at) / width).square(), dim=1) @ values


def _ended(l: Tensor | float, span: Span) -> Tensor:
    """Points whose ends are exact, where formulas round."""
    points = torch.as_tensor(l)
    points[0], points[-1] = span
    return points
