"""Grids that follow a formula, each with its reference."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit import uniform
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.grid import AbstractGrid, with_exact_ends


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
        return native_points(coordinates, span, uniform(0.0, 1.0, steps))


def native_points(coordinates: Coordinates, span: Span, fractions: Tensor) -> Tensor:
    """l at fractions of the steps of `Native`."""
    t0, t1 = (float(coordinates.time(l)) for l in span)
    return with_exact_ends(coordinates.log_snr(coordinates.sde.spaced(t0, t1, fractions)), span)


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
        return with_exact_ends(coordinates.log_snr(uniform(t0, t1, steps)), span)


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
        return with_exact_ends(
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
        return with_exact_ends(0.5 * (low + high), span)


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
            raise ValueError(f"rho must be a positive, finite number, such as 7; not {self.rho}")

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        root0, root1 = (math.exp(-l / self.rho) for l in span)
        return with_exact_ends(-self.rho * uniform(root0, root1, steps).log(), span)


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
