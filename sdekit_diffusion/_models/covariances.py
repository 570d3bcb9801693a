"""Approximations of the covariance V of x_0 given x_t, for moment matching."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.calling import warn_caller
from sdekit.elementary import Time, broadcast, scaled, sum_of_sample
from sdekit_diffusion._arguments.inputs import require_numbers, require_tensor
from sdekit_diffusion._models.linear_observation import LinearObservation
from sdekit_diffusion._models.model import (
    AbstractModel,
    noise_scale,
    require_gradient,
    signal_scale,
)

_LOG_2PI = math.log(2 * math.pi)
_DENSE = 8  # the largest number of measurements for which A V A^T is computed
_ROUNDING = 1e-6  # of a covariance, relative to its largest eigenvalue


class Conditioned(NamedTuple):
    """The result of `AbstractPosterior.condition` at noisy states.

    data: D, the denoiser of the model, shaped like the states. conditioned: D_c, the denoiser given
    y, of the same shape. log_psi: an approximation of log p(y | x_t), `(batch,)` in float64.

    Example:
        >>> means = sd.Conditioned(torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(3))
        >>> (means.conditioned - means.data).norm(dim=1)
        tensor([1.4142, 1.4142, 1.4142])
    """

    data: Tensor
    conditioned: Tensor
    log_psi: Tensor


class AbstractCovariance(ABC):
    """An approximation V of the covariance of x_0 given x_t, which gives the denoiser D_c given
    y = A x_0 + N(0, R), and psi, an approximation of p(y | x_t):

        D_c = D + V A^T (R + A V A^T)^{-1} (y - A D),  psi = N(y; A D, R + A V A^T).

    A subclass defines `condition`.

    Example:
        >>> isinstance(sd.IsotropicCovariance(), sd.AbstractCovariance)
        True
    """

    @abstractmethod
    def condition(
        self, model: AbstractModel, observation: LinearObservation, std: float, l: Time, u: Tensor
    ) -> Conditioned:
        """D, D_c and log psi at u.

        Arguments:
            std: s, the standard deviation of the data.
        """


@dataclass(frozen=True)
class IsotropicCovariance(AbstractCovariance):
    """V = r^2 I with r^2 = sigma^2 s^2 / (sigma^2 + alpha^2 s^2), exact for data N(m, s^2 I).

    This is PiGDM. The network is not differentiated. A A^T is diagonalised once.

    Arguments:
        std: s, positive; by default the standard deviation of the model's data.

    Raises:
        TypeError: for a std that is not a number.
        ValueError: for a std that is not positive and finite; while sampling, without noise for
            linearly dependent rows of A.

    Example:
        >>> law = sd.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
        >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), 1.0)
        >>> x = sd.sample(sd.MomentMatched(law, y), 4, sde="vp", seed=0)  # exact for this law
        >>> x.shape
        torch.Size([4, 2])

    References:
        Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR.
    """

    std: float | None = None

    def __post_init__(self) -> None:
        require_numbers(self, "std")
        if self.std is not None and not 0 < self.std < math.inf:
            raise ValueError(
                "std is the standard deviation of the data, a positive number, or None for that of "
                f"the model; not {self.std!r:.60}"
            )

    def condition(
        self, model: AbstractModel, observation: LinearObservation, std: float, l: Time, u: Tensor
    ) -> Conditioned:
        data = model.predict_data(l, u)
        spectrum = observation.spectrum
        residual = spectrum.project(observation.residual(data))
        variance = posterior_variance(l, (std if self.std is None else self.std) ** 2)
        gains = spectrum.gains.to(residual)
        variances = spectrum.noise + broadcast(variance, residual) * gains
        move = spectrum.lift(residual / variances)
        conditioned = data + broadcast(variance, u) * move
        return Conditioned(data, conditioned, _log_normal(residual, variances, observation))


@dataclass(frozen=True, eq=False)
class DataCovariance(AbstractCovariance):
    """V = (C^{-1} + (alpha / sigma)^2 I)^{-1} with the covariance C of the data, exact for normal
    data. The network is not differentiated.

    Arguments:
        covariance: C, `(d, d)`, of flattened samples.

    Raises:
        TypeError: for a covariance that is not a tensor.
        ValueError: for a matrix that is not symmetric and positive semidefinite; while sampling,
            for samples of another size, and without noise for linearly dependent rows of A.

    Example:
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> covariance = sd.DataCovariance(torch.cov(x.T))

    References:
        Rozet et al. 2024, arXiv 2405.13712, section 4.1, for its use as a reference.
    """

    covariance: Tensor

    def __post_init__(self) -> None:
        require_tensor("covariance", self.covariance, "(d, d)")
        c = self.covariance
        square = c.ndim == 2 and c.shape[0] == c.shape[1]
        if not square or not torch.allclose(c, c.T, atol=1e-6 * float(c.abs().max())):
            raise ValueError(
                f"covariance must be symmetric, of shape (d, d), not {tuple(c.shape)}; use "
                "torch.cov(x.flatten(1).T)"
            )
        _ = self._spectrum  # raises if an eigenvalue is negative

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        values, axes = torch.linalg.eigh(self.covariance.to(torch.float64))
        least = float(values.min())
        if least < -_ROUNDING * float(values.abs().max()):
            raise ValueError(
                f"covariance must be positive semidefinite; its least eigenvalue is {least:.3g}"
            )
        return values.clamp_min(0.0), axes

    def condition(
        self, model: AbstractModel, observation: LinearObservation, std: float, l: Time, u: Tensor
    ) -> Conditioned:
        values, axes = (part.to(u.device) for part in self._spectrum)
        data = model.predict_data(l, u)
        measured = _whitened(observation, observation.applied(self._spectrum[1], u.device)).T
        level = l.to(values)[:, None] if isinstance(l, Tensor) and l.ndim else l
        v = posterior_variance(level, values)
        assert isinstance(v, Tensor)
        matrix = (measured * v.unsqueeze(-2)) @ measured.T
        if not observation.noiseless:
            matrix = matrix + torch.eye(len(measured)).to(values)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if observation.noiseless:
            observation.require_independent(matrix, factor, failed, "A V A^T")
        factor = factor.masked_fill((failed > 0)[..., None, None], math.nan)
        residual = _whitened(observation, observation.residual(data)).to(values)
        solved = _cholesky_solve(residual, factor)
        move = ((solved @ measured) * v) @ axes.T
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        log_psi = -0.5 * ((residual * solved).sum(dim=1) + log_det + residual.shape[1] * _LOG_2PI)
        log_psi = log_psi - 0.5 * _log_volume(observation)
        return Conditioned(data, data + move.to(u).reshape(u.shape), log_psi)


@dataclass(frozen=True)
class DiagonalCovariance(AbstractCovariance):
    """V = (sigma^2 / alpha) dD/dx, the covariance by Tweedie's formula, where A V A^T is replaced
    by the diagonal matrix of its row sums (TMPD).

    The measurements are first scaled to noise of covariance I. Takes two products with the
    derivative of the network.

    Raises:
        ValueError: while sampling, for an observation without noise, or a model that autograd does
            not see.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), 0.1)
        >>> model = sd.MomentMatched(law, y, sd.DiagonalCovariance())
        >>> sd.sample(model, 4, sde="vp", steps=20).shape
        torch.Size([4, 2])

    References:
        Boys et al. 2023, arXiv 2310.06721.
    """

    def condition(
        self, model: AbstractModel, observation: LinearObservation, std: float, l: Time, u: Tensor
    ) -> Conditioned:
        data, residual, covariance_times = _whitened_residual(model, observation, l, u)
        sums = observation.whitened(observation.apply(covariance_times(torch.ones_like(residual))))
        variances = 1 + sums.clamp_min(0.0)
        conditioned = data + covariance_times(residual / variances)
        return Conditioned(data, conditioned, _log_normal(residual, variances, observation))


@dataclass(frozen=True)
class JacobianCovariance(AbstractCovariance):
    """V = (sigma^2 / alpha) dD/dx, the full covariance by Tweedie's formula, from products with the
    derivative of the network (MMPS).

    For at most 8 measurements the matrix A V A^T is computed, with one product per measurement. For
    more the linear system is solved by conjugate gradients until the residual of each sample is
    below a tolerance; psi is then that of an isotropic V, because the determinant is not known.

    Arguments:
        rtol: the tolerance of the residual of conjugate gradients, relative to y - A D. A warning
            is raised if it is not reached in two steps per measurement.

    Raises:
        TypeError: for an rtol that is not a number.
        ValueError: for an rtol that is negative or not finite; while sampling, for an observation
            without noise, or a model that autograd does not see.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), 0.1)
        >>> model = sd.MomentMatched(law, y, sd.JacobianCovariance())
        >>> sd.sample(model, 4, sde="vp", steps=20).shape
        torch.Size([4, 2])

    References:
        Rozet et al. 2024, arXiv 2405.13712.
    """

    rtol: float = 1e-3

    def __post_init__(self) -> None:
        require_numbers(self, "rtol")
        if not 0 <= self.rtol < math.inf:
            raise ValueError(
                "rtol is the residual of conjugate gradients relative to y - A D, a number from 0 "
                f"on, such as 1e-3; not {self.rtol!r:.60}"
            )

    def condition(
        self, model: AbstractModel, observation: LinearObservation, std: float, l: Time, u: Tensor
    ) -> Conditioned:
        data, residual, covariance_times = _whitened_residual(model, observation, l, u)

        def measured(v: Tensor) -> Tensor:
            return v + observation.whitened(observation.apply(covariance_times(v)))

        if residual.shape[1] <= _DENSE:
            solved, log_psi = _dense(measured, residual, observation)
        else:
            solved = conjugate_gradients(measured, residual, self.rtol)
            log_psi = _isotropic_log_psi(observation, data, std, l)
        return Conditioned(data, data + covariance_times(solved), log_psi)


def _dense(
    product: Callable[[Tensor], Tensor], residual: Tensor, observation: LinearObservation
) -> tuple[Tensor, Tensor]:
    """M^{-1} residual and log psi, where M is computed from its products with unit vectors."""
    m = residual.shape[1]
    unit = torch.eye(m, dtype=residual.dtype, device=residual.device)
    columns = [product(row.expand_as(residual)) for row in unit]
    matrix = torch.stack(columns, dim=2).to(torch.float64)
    values, axes = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    values = values.clamp_min(1.0)  # noise of 1, and a V that networks may make indefinite
    along = torch.einsum("bij,bi->bj", axes, residual.to(torch.float64))
    solved = torch.einsum("bij,bj->bi", axes, along / values).to(residual)
    return solved, _log_normal(along, values, observation)


def _isotropic_log_psi(observation: LinearObservation, data: Tensor, std: float, l: Time) -> Tensor:
    """log psi with an isotropic V; for too many measurements with the largest gain for all."""
    if observation.gram_too_large:
        residual = observation.whitened(observation.residual(data))
        variance = broadcast(posterior_variance(l, std**2), residual) * observation.largest_gain
        return _log_normal(residual, torch.ones_like(residual) + variance, observation)
    spectrum = observation.spectrum
    residual = spectrum.project(observation.residual(data))
    variance = broadcast(posterior_variance(l, std**2), residual)
    return _log_normal(
        residual, spectrum.noise + variance * spectrum.gains.to(residual), observation
    )


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, rtol: float) -> Tensor:
    """The x with M x = b, `(batch, m)`, for a symmetric and positive definite M; each row is
    iterated until its residual is below rtol |b|.

    Warns if 2 m steps are not enough. A row also stops where M is found not to be positive.
    """
    x = torch.zeros_like(b)
    residual = b
    direction = b
    square = residual.square().sum(dim=1)
    target = rtol**2 * square
    for _ in range(2 * b.shape[1]):
        active = square > target
        if not bool(active.any()):
            return x
        image = product(direction)
        curvature = (direction * image).sum(dim=1)
        active = active & (curvature > 0)  # the V of a network may be indefinite
        if not bool(active.any()):
            return x
        step = torch.where(active, square / curvature, 0.0)[:, None]
        x = x + step * direction
        residual = residual - step * image
        new_square = residual.square().sum(dim=1)
        ratio = torch.where(active, new_square / square, 0.0)[:, None]
        direction = torch.where(active[:, None], residual + ratio * direction, direction)
        square = torch.where(active, new_square, square)
    warn_caller(
        f"conjugate gradients did not reach rtol = {rtol:g} in {2 * b.shape[1]} steps: take a "
        "larger one, or dtype=torch.float64",
    )
    return x


def _whitened_residual(
    model: AbstractModel, observation: LinearObservation, l: Time, u: Tensor
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """D, L^{-1} (y - A D), and the product V A^T L^{-T} v with V = (b^2 / a) (dD/du)^T."""
    observation.require_noise()
    with torch.inference_mode(False), torch.enable_grad():
        data_and_vjp: Any = torch.func.vjp(lambda point: differentiable_data(model, l, point), u)
    data, vjp = data_and_vjp
    b = noise_scale(l)
    factor = b * b / signal_scale(l)

    def covariance_times(v: Tensor) -> Tensor:
        return scaled(factor, vjp(observation.adjoint(observation.unwhitened(v)))[0])

    return data, observation.whitened(observation.residual(data)), covariance_times


def differentiable_data(model: AbstractModel, l: Time, u: Tensor) -> Tensor:
    """D at a point u that has a gradient.

    Raises:
        ValueError: where D has none.
    """
    data = model.predict_data(l, u)
    require_gradient(data.requires_grad)
    return data


def posterior_variance(l: Time, variance: Tensor | float) -> Time:
    """1 / (1 / variance + (a / b)^2), the variance of normal data given noisy data."""
    a = signal_scale(l)
    b = noise_scale(l)
    return b * b * variance / (b * b + a * a * variance)


def _log_normal(residual: Tensor, variances: Tensor, observation: LinearObservation) -> Tensor:
    """The log of the density of y, from independent whitened residuals and their variances."""
    variances = variances.to(torch.float64).expand(residual.shape)
    terms = residual.to(torch.float64).square() / variances + variances.log() + _LOG_2PI
    return -0.5 * (sum_of_sample(terms) + _log_volume(observation))


def _log_volume(observation: LinearObservation) -> float:
    """log det R, from the whitening; 0 without noise."""
    return 0.0 if observation.noiseless else observation.log_volume


def _whitened(observation: LinearObservation, v: Tensor) -> Tensor:
    return v if observation.noiseless else observation.whitened(v)


def _cholesky_solve(b: Tensor, factor: Tensor) -> Tensor:
    """M^{-1} b for rows b and M = L L^T, with one L for all rows or one per row."""
    if factor.ndim == 2:
        return torch.cholesky_solve(b.T, factor).T
    return torch.cholesky_solve(b.unsqueeze(2), factor).squeeze(2)


COVARIANCES: dict[str, AbstractCovariance] = {
    "isotropic": IsotropicCovariance(),
    "diagonal": DiagonalCovariance(),
    "jacobian": JacobianCovariance(),
}
