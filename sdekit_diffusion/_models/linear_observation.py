"""Linear observations y = A x + noise with normal noise, and their spectra."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from sdekit import computed, normal
from sdekit.elementary import sum_of_sample
from sdekit_diffusion._arguments.inputs import require_tensor, seed_given
from sdekit_diffusion._models.counters import MEASUREMENT
from sdekit_diffusion._models.observation import AbstractObservation, require_one_each
from sdekit_diffusion._models.operators import (
    MAX_GRAM,
    Matrix,
    gram,
    operator_of,
    require_linear,
)

_ROUNDING = 1e-12  # of elements of A A^T off the diagonal, relative to the largest on it
# Cached values that do not depend on y, which `rows` keeps.
_INDEPENDENT_OF_Y = (
    "spectrum",
    "log_volume",
    "noise_covariance",
    "_factor",
    "largest_gain",
    "_applied",
)
_POWER_ITERATIONS = 30
_PRODUCTS = 4  # the rounding of sums of products, in units in the last place, over their number
_ROWS = 64  # that of the rows of A, over the square root of their number


@dataclass(frozen=True, eq=False)
class LinearObservation(AbstractObservation):
    """y = A x + noise, with normal noise of mean 0.

    Arguments:
        operator: A: a matrix `(m, d)` for flattened samples; a linear function of a batch, or a
            pair of such a function and its adjoint; or an `AbstractOperator` such as `Mask`,
            `Downsampling`, `Blur`, `FourierSampling` or `Radon`.
        y: the observed values, in the shape of A x, `(*measured)`, or with one entry per sample,
            `(n, *measured)`.
        covariance: the covariance of the noise: a number r for r I, variances `(m,)`, or a matrix
            `(m, m)`. With 0 mixtures still have an exact posterior, `given`, but `log_prob` and
            the weights of `sample_posterior` are not defined.

    Raises:
        TypeError: for an operator, y or covariance of the wrong type.
        ValueError: for a y that is not floating and finite, or a covariance that is not positive;
            in `bound`, which `given` and `sample_posterior` call, for shapes that do not fit, or a
            function that is not linear.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> A, y = torch.tensor([[1.0, 1.0]]), torch.tensor([1.2])
        >>> observation = sd.LinearObservation(A, y, 0.01)
        >>> observation.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
        >>> law.given(observation).weights.argmax()
        tensor(1)
    """

    operator: Any
    y: Tensor
    covariance: Tensor | float
    event: tuple[int, ...] | None = field(default=None, repr=False, kw_only=True)
    measured: tuple[int, ...] = field(default=(), repr=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "operator", operator_of(self.operator))
        require_tensor("y", self.y, "(*measured) or (n, *measured)")
        if not self.y.is_floating_point():
            raise ValueError(f"y must be floating, not {self.y.dtype}; use y.float()")
        if not bool(self.y.isfinite().all()):
            raise ValueError("y has numbers that are not finite; a Mask leaves out what is missing")
        _ = self.noise_covariance  # raises if it is not a covariance

    @cached_property
    def noise_covariance(self) -> Tensor:
        """The covariance of the noise, float64: a number, `(m,)` or `(m, m)`."""
        return _covariance(self.covariance)

    @computed
    def each(self) -> bool:
        if self.event is None:
            raise ValueError(
                "whether y has one entry per sample is known when the shape of samples is: call "
                "bound(shape)"
            )
        return self.y.ndim > len(self.measured)

    def bound(self, event: tuple[int, ...], like: Tensor | None = None) -> Self:
        if self.event == tuple(event):
            return self
        event = tuple(event)
        like = self.y if like is None else like
        measured = require_linear(self.operator, event, like)
        y = self.y
        if tuple(y.shape) != measured and tuple(y.shape[1:]) != measured:
            raise ValueError(
                f"y has shape {tuple(y.shape)} and A x has {measured}; give that, or (n, "
                f"{', '.join(map(str, measured))}), one entry per sample"
            )
        m = math.prod(measured)
        if self.noise_covariance.ndim and self.noise_covariance.shape[-1] != m:
            raise ValueError(
                f"covariance has shape {tuple(self.noise_covariance.shape)} and there are {m} "
                f"measurements; give a number, ({m},) or ({m}, {m})"
            )
        bound = replace(self, y=y.to(like), event=event, measured=measured)
        if not bound.noiseless:
            # Computed here, because values that are computed in a derivative cannot be cached.
            _ = bound.log_volume
        return bound

    def rows(self, index: Tensor) -> Self:
        if not self.each:
            return self
        selected = replace(self, y=self.y[index.to(self.y.device)])
        known = {name: vars(self)[name] for name in _INDEPENDENT_OF_Y if name in vars(self)}
        vars(selected).update(known)
        return selected

    def log_prob(self, x: Tensor) -> Tensor:
        self.require_noise()
        if self.event is None:
            return self.bound(tuple(x.shape[1:]), x).log_prob(x)
        require_one_each(self, x)
        z = self.whitened(self.residual(x))
        constant = self.log_volume + z.shape[1] * math.log(2 * math.pi)
        return (-0.5 * (sum_of_sample(z.square()) + constant)).to(x.dtype)

    def residual(self, x: Tensor) -> Tensor:
        """y - A x, `(batch, m)`."""
        measured = self.operator(x)
        return (self.y.to(measured) - measured).flatten(1)

    def apply(self, x: Tensor) -> Tensor:
        """A x, `(batch, m)`."""
        return self.operator(x).flatten(1)

    def applied(self, matrix: Tensor, device: torch.device) -> Tensor:
        """A times the columns of a matrix `(d, k)`, as rows `(k, m)` on a device, in the dtype of
        the matrix. The result for the last matrix is kept, as `spectrum` is.

        Raises:
            ValueError: for a matrix that does not have a row for each coordinate of a sample.
        """
        assert self.event is not None
        if len(matrix) != math.prod(self.event):
            raise ValueError(
                f"covariance has shape ({len(matrix)}, {len(matrix)}) and a sample has "
                f"{math.prod(self.event)} coordinates"
            )
        known = vars(self).get("_applied")  # read once: other threads may replace it
        if known is None or known[0] is not matrix or known[1].device != device:
            columns = matrix.T.reshape(-1, *self.event).to(self.y)
            known = (matrix, self.apply(columns).to(device, matrix.dtype))
            vars(self)["_applied"] = known
        return known[1]

    def adjoint(self, v: Tensor) -> Tensor:
        """A^T v of v `(batch, m)`."""
        assert self.event is not None
        return self.operator.adjoint(v.reshape(len(v), *self.measured), self.event)

    def whitened(self, v: Tensor) -> Tensor:
        """L^{-1} v of v `(batch, m)`, where R = L L^T with L lower triangular."""
        covariance = self.noise_covariance.to(v.device)
        if covariance.ndim < 2:
            return v / covariance.sqrt().to(v)
        factor = self._factor.to(v)
        return torch.linalg.solve_triangular(factor, v.T, upper=False).T

    def unwhitened(self, v: Tensor) -> Tensor:
        """L^{-T} v of v `(batch, m)`, the adjoint of `whitened`."""
        covariance = self.noise_covariance.to(v.device)
        if covariance.ndim < 2:
            return v / covariance.sqrt().to(v)
        return torch.linalg.solve_triangular(self._factor.to(v).T, v.T, upper=True).T

    @cached_property
    def _factor(self) -> Tensor:
        return torch.linalg.cholesky(self.noise_covariance)

    @cached_property
    def log_volume(self) -> float:
        """log det R."""
        if self.noise_covariance.ndim == 2:
            return float(2 * self._factor.diagonal().log().sum())
        m = math.prod(self.measured) if self.noise_covariance.ndim == 0 else 1
        return float(m * self.noise_covariance.log().sum())

    def require_noise(self) -> None:
        """Refuses a covariance of 0.

        Raises:
            ValueError: with where it is supported.
        """
        if self.noiseless:
            raise ValueError(
                "with noise 0, p(y | x) is not a density, and paths have no weights. The exact "
                "posterior of a mixture, law.given(observation), needs no noise; for other models "
                "give a small covariance"
            )

    @property
    def noiseless(self) -> bool:
        """Whether the noise is 0."""
        return self.noise_covariance.ndim == 0 and float(self.noise_covariance) == 0

    @property
    def rounding(self) -> float:
        """The relative rounding error of an element of A."""
        own = self.operator.matrix if isinstance(self.operator, Matrix) else self.y
        return max(torch.finfo(part.dtype).eps for part in (own, self.y))

    def require_independent(
        self,
        covariance: Tensor,
        factor: Tensor,
        failed: Tensor,
        formula: str,
        products: torch.dtype = torch.float64,
    ) -> None:
        """Refuses a covariance of measurements, `(..., m, m)`, that is singular up to rounding:
        where Cholesky's method fails, or a measurement has nearly no variance given those before
        it. Without noise this variance must be above the square of the rounding errors of A.

        Arguments:
            factor, failed: the result of `torch.linalg.cholesky_ex`.
            formula: of the covariance.
            products: the dtype in which it was computed.

        Raises:
            ValueError: with what to do.
        """
        least = _PRODUCTS * torch.finfo(products).eps
        least += (_ROWS * self.rounding) ** 2 if self.noiseless else 0.0
        remaining = factor.diagonal(dim1=-2, dim2=-1).square()
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        regular = (remaining > least * covariance.shape[-1] * variances).all()
        if bool(failed.any() | ~regular):
            raise ValueError(
                f"{formula} is singular up to rounding: with noise 0, or almost 0, the rows of A "
                "must be independent; leave out measurements that follow from others, or give a "
                "larger covariance"
            )

    @property
    def gram_too_large(self) -> bool:
        """Whether A A^T is too large to compute, and not known to be a multiple of I."""
        assert self.event is not None
        number = self.operator.gram_diagonal(self.event)
        known = number is not None and self.noise_covariance.ndim < 2
        return not known and math.prod(self.measured) > MAX_GRAM

    @cached_property
    def largest_gain(self) -> float:
        """The largest eigenvalue of A A^T of whitened measurements, by the power method."""
        assert self.event is not None
        if not self.gram_too_large:
            return float(torch.as_tensor(self.spectrum.gains).max())
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(1, math.prod(self.measured), generator=generator).to(self.y)
        for _ in range(_POWER_ITERATIONS):
            v = v / v.norm()
            v = self.whitened(self.apply(self.adjoint(self.unwhitened(v))))
        return float(v.norm())

    @cached_property
    def spectrum(self) -> "Spectrum":
        """The eigenvalues and eigenvectors of A A^T of whitened measurements."""
        assert self.event is not None
        return Spectrum.of(self)

    @classmethod
    def simulated(
        cls,
        operator: Any,  # noqa: ANN401 - as in the class
        x: Tensor,
        covariance: Tensor | float,
        *,
        seed: int | None = None,
        first: int = 0,
    ) -> Self:
        """The observation with one y per sample of x, drawn as in `simulate`.

        Arguments:
            operator, covariance: as in the class.
            x: the samples, `(n, *event)`.
            seed, first: as in `simulate`.

        Example:
            >>> y = sd.LinearObservation.simulated(sd.Downsampling(2), torch.zeros(3, 1, 8, 8), 0.1)
            >>> y.each, y.y.shape
            (True, torch.Size([3, 1, 4, 4]))
        """
        measured = require_linear(operator_of(operator), tuple(x.shape[1:]), x)
        clean = cls(operator, x.new_zeros(measured), covariance)
        return replace(clean, y=clean.simulate(x, seed=seed, first=first)).bound(x.shape[1:], x)

    def simulate(self, x: Tensor, *, seed: int | None = None, first: int = 0) -> Tensor:
        """Draws of y given x: A x + noise, `(batch, *event)` to `(batch, *measured)`.

        Arguments:
            seed, first: the noise of sample i depends only on (seed, first + i); None draws a new
                seed.
        """
        bound = self.bound(tuple(x.shape[1:]), x)
        seed = seed_given(seed)
        measured = bound.operator(x)
        index = torch.arange(first, first + len(x), device=x.device)
        z = normal(seed, index, (math.prod(measured.shape[1:]),), counter=MEASUREMENT).to(x.dtype)
        covariance = bound.noise_covariance.to(x)
        noise = z * covariance.sqrt() if covariance.ndim < 2 else z @ bound._factor.to(x).T
        return measured + noise.reshape(measured.shape)


def _covariance(value: Any) -> Tensor:  # noqa: ANN401 - what a user gives
    """The covariance of noise, float64: a number, variances or a matrix.

    Raises:
        TypeError: for anything else.
        ValueError: for another shape, or values that are not those of a covariance of noise.
    """
    try:
        covariance = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"covariance is a number, variances (m,) or a matrix (m, m), not {value!r:.60}"
        ) from error
    if covariance.ndim == 2:
        symmetric = covariance.shape[0] == covariance.shape[1] and torch.allclose(
            covariance, covariance.T, atol=1e-6 * float(covariance.abs().max())
        )
        valid = symmetric and not bool(torch.linalg.cholesky_ex(covariance).info)
        valid = valid and bool(covariance.isfinite().all())
    else:
        smallest = float(covariance.min()) if covariance.numel() else -1.0
        valid = covariance.ndim < 2 and bool(covariance.isfinite().all())
        valid = valid and (smallest > 0 or (covariance.ndim == 0 and smallest == 0))
    if not valid:
        raise ValueError(
            "covariance must be that of noise: a number from 0 on, positive variances (m,), or a "
            f"symmetric positive definite matrix (m, m); not {value!r:.60}"
        )
    return covariance


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Measurements U^T L^{-1} y that are independent for isotropic normal x, where R = L L^T and
    U^T L^{-1} A A^T L^{-T} U = diag(gains).

    Without noise L is replaced by I.

    Attributes:
        observation: the observation.
        gains: the eigenvalues, `(m,)`, or a number.
        noise: the variance of the noise of each of these measurements, 1 or 0.
        directions: U, `(m, m)`; None for I.
    """

    observation: LinearObservation
    gains: Tensor
    noise: float
    directions: Tensor | None

    @staticmethod
    def of(observation: LinearObservation) -> "Spectrum":
        """The spectrum of an observation that is bound to a shape of samples.

        Raises:
            ValueError: without noise for linearly dependent rows of A.
        """
        event = observation.event
        assert event is not None
        covariance = observation.noise_covariance
        noiseless = observation.noiseless
        noise = 0.0 if noiseless else 1.0
        number = observation.operator.gram_diagonal(event)
        if number is not None and covariance.ndim < 2:
            gains = number / (torch.ones_like(covariance) if noiseless else covariance)
            return Spectrum(observation, gains, noise, None)
        like = observation.y
        like = like.double() if isinstance(observation.operator, Matrix) else like
        full = gram(observation.operator, event, observation.measured, like)
        if not noiseless:
            full = observation.whitened(observation.whitened(full).T)
        else:
            factor, failed = torch.linalg.cholesky_ex(full)
            observation.require_independent(full, factor, failed, "A A^T", like.dtype)
        diagonal = full.diagonal()
        off_diagonal = full - torch.diag(diagonal)
        if float(off_diagonal.abs().max()) <= _ROUNDING * float(diagonal.abs().max()):
            return Spectrum(observation, diagonal.clone(), noise, None)
        gains, directions = torch.linalg.eigh(0.5 * (full + full.T))
        return Spectrum(observation, gains.clamp_min(0.0), noise, directions)

    def project(self, v: Tensor) -> Tensor:
        """U^T L^{-1} v of measurements `(batch, m)`."""
        v = self.observation.whitened(v) if self.noise else v
        return v if self.directions is None else v @ self.directions.to(v)

    def lift(self, v: Tensor) -> Tensor:
        """(U^T L^{-1} A)^T v of v `(batch, m)`, in the shape of samples."""
        v = v if self.directions is None else v @ self.directions.to(v).T
        v = self.observation.unwhitened(v) if self.noise else v
        return self.observation.adjoint(v)
