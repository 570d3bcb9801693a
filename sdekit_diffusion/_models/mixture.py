"""Gaussian mixtures: models with exact score, denoiser and density under every diffusion."""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit import computed, fresh_seed, normal, uniform01
from sdekit.elementary import Time, broadcast
from sdekit_diffusion._arguments.inputs import is_whole, require_tensor
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.counters import COMPONENT, POINT
from sdekit_diffusion._models.linear_observation import LinearObservation
from sdekit_diffusion._models.model import (
    AbstractModel,
    noise_scale,
    signal_scale,
    solved_like,
    times_of,
)
from sdekit_diffusion._models.observation import AbstractObservation
from sdekit_diffusion._models.principal import covariance_product, principal_std

ROUNDING = 1e-13  # a variance given y is 0 if it is below this share of the variance before
_NEGLIGIBLE = -100.0  # log of a weight over the largest one, below which a component is omitted


class AbstractMixture(AbstractModel):
    """p_0 = sum_k w_k N(m_k, C_k), with the methods of all mixtures.

    Attributes:
        weights: w_k, `(K,)`.
    """

    sde = None
    shape: tuple[int, ...]  # pyright: ignore[reportIncompatibleVariableOverride] - always known
    data_std: float  # pyright: ignore[reportIncompatibleVariableOverride] - always known
    weights: Tensor

    def sample(self, n: int = 1, *, seed: int | None = None, first: int = 0) -> Tensor:
        """n exact samples, `(n, *event)`; sample i depends only on (seed, first + i).

        Raises:
            ValueError: for an n that is not a whole number from 0 on.
        """
        if not is_whole(n, 0):
            raise ValueError(f"n counts samples, a whole number from 0 on; not {n!r:.60}")
        seed = fresh_seed() if seed is None else seed
        (dtype, device) = self.place()
        index = torch.arange(first, first + n, device=device)
        edges = self.weights.to(torch.float64).cumsum(0)[:-1]
        k = torch.searchsorted(edges, uniform01(seed, index, (), counter=COMPONENT), right=True)
        z = normal(seed, index, (math.prod(self.shape),), counter=POINT, dtype=dtype)
        return self._component_points(k, z).reshape(n, *self.shape)

    @abstractmethod
    def _component_points(self, k: Tensor, z: Tensor) -> Tensor:
        """Draws `(n, d)` from the components k, `(n,)`, made from standard normals z, `(n, d)`."""

    def log_evidence(self, observation: AbstractObservation) -> Tensor:
        """log p(y) in nats, float64: a tensor `()`, or `(n,)` if y has one entry per sample.

        Raises:
            TypeError, ValueError: as `given`.
        """
        log_evidence = torch.logsumexp(self._given_logits(self._observed(observation)), dim=1)
        return log_evidence if self._bound(observation).each else log_evidence[0]

    def _bound(self, observation: AbstractObservation) -> AbstractObservation:
        """The observation, bound to the shape, dtype and device of samples of this law."""
        if not isinstance(observation, AbstractObservation):
            raise TypeError(
                "the law is given an observation, such as LinearObservation(operator, y, "
                f"covariance), not {observation!r:.60}"
            )
        return observation.bound(self.shape, solved_like(self))

    @abstractmethod
    def _given_logits(self, observed: "Observed") -> Tensor:
        """log (w_k N(y; A m_k, A C_k A^T + R)), `(n, K)` in float64."""

    def _observed(self, observation: AbstractObservation, *, one: bool = False) -> "Observed":
        """The matrices of an observation.

        Raises:
            TypeError: for an observation that is not linear.
            ValueError: where it does not fit; with `one`, where y has several entries.
        """
        bound = self._bound(observation)
        if not isinstance(bound, LinearObservation):
            raise TypeError(
                "the exact law of a mixture is known given a LinearObservation or a Joint of "
                f"several, not given {type(bound).__name__}; see sample_posterior"
            )
        if one and bound.each and len(bound.y) != 1:
            raise ValueError(
                f"y has {len(bound.y)} entries, and a mixture is given one: call it for each, or "
                "sample_posterior for all"
            )
        return Observed.of(bound)

    def _flat(self, x: Tensor) -> Tensor:
        """Points as vectors, `(batch, d)`.

        Raises:
            TypeError: for points that are not a tensor.
            ValueError: for points that are not floating, or have another shape.
        """
        require_tensor("x", x)
        if not x.is_floating_point() or tuple(x.shape[1:]) != self.shape or not x.ndim:
            shape = str((0, *self.shape)).replace("0", "batch", 1)
            raise ValueError(
                f"points must be floating, of shape {shape}, not {x.dtype} of {tuple(x.shape)}"
            )
        return x.reshape(len(x), math.prod(self.shape))


@dataclass(frozen=True, eq=False)
class Observed:
    """The matrices of a linear observation y = A x + N(0, R), in float64.

    matrix: A, `(m, d)`. covariance: R, `(m, m)`. y: `(n, m)`.
    """

    observation: LinearObservation
    matrix: Tensor
    covariance: Tensor
    y: Tensor

    @staticmethod
    def of(observation: LinearObservation) -> "Observed":
        event = observation.event
        assert event is not None
        unit = torch.eye(math.prod(event)).to(observation.y).reshape(-1, *event)
        matrix = observation.apply(unit).T.to(torch.float64)
        given = observation.noise_covariance.to(matrix)
        covariance = given if given.ndim == 2 else torch.eye(len(matrix)).to(matrix) * given
        y = observation.y.to(matrix).reshape(-1, len(matrix))
        return Observed(observation, matrix, covariance, y)

    def factor(self, covariances: Tensor) -> Tensor:
        """The Cholesky factors of A C A^T + R, `(..., m, m)`.

        Raises:
            ValueError: where it is singular.
        """
        spread = self.matrix @ covariances @ self.matrix.T + self.covariance
        factor, failed = torch.linalg.cholesky_ex(spread)
        self.observation.require_independent(spread, factor, failed, "A C A^T + R")
        return factor

    def log_normal(self, means: Tensor, factor: Tensor) -> Tensor:
        """log N(y; A m_k, S_k), `(n, K)`, from means m_k, `(K, d)`, and Cholesky factors of S_k."""
        residual = self.y[:, None] - means @ self.matrix.T
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        constant = log_det + residual.shape[-1] * math.log(2 * math.pi)
        if factor.ndim == 2:  # one for all components; no factor is copied, here or below
            rows = residual.flatten(0, 1).T
            white = torch.linalg.solve_triangular(factor, rows, upper=False).T
            squares = white.square().sum(dim=1).reshape(residual.shape[:2])
        else:
            columns = residual.permute(1, 2, 0)
            white = torch.linalg.solve_triangular(factor, columns, upper=False)
            squares = white.square().sum(dim=1).T
        return -0.5 * (squares + constant)


class GaussianMixture(AbstractMixture):
    """p_0 = sum_k w_k N(m_k, C_k), hence p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I).

    It can be used like a trained model. It has no diffusion of its own: pass `sde=`.

    Arguments:
        weights: w_k, positive, with sum 1, `(K,)`.
        means: m_k, `(K, *event)`.
        covariances: C_k, of the d coordinates of a flattened sample: matrices `(K, d, d)`,
            variances of each coordinate `(K, d)`, or one variance per component `(K,)`.

    Raises:
        TypeError: for values that are not numbers.
        ValueError: for weights that are not positive or do not have the sum 1, shapes that do not
            fit, means or covariances that are not finite, or a covariance that is not symmetric and
            positive definite.

    Example:
        >>> model = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.0]], [0.05, 0.05])
        >>> model.sample(3, seed=0).shape
        torch.Size([3, 2])
        >>> model.denoise(0.5, torch.zeros(1, 2), "vp").shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Any],
        covariances: Tensor | Sequence[Any],
    ) -> None:
        means = _as_tensor("means", means)
        means = means if means.is_floating_point() else means.to(torch.get_default_dtype())
        if means.ndim < 1 or not means.numel():
            raise ValueError(
                f"means must have shape (K, *event), one for each of K components, not "
                f"{tuple(means.shape)}"
            )
        if not isinstance(weights, Tensor):
            weights = _as_tensor("weights", weights, torch.float64)
        self.weights = weights.to(means)
        covariances = _as_tensor("covariances", covariances, torch.float64).to(means.device)
        for name, values in (("means", means), ("covariances", covariances.to(means))):
            if not bool(values.isfinite().all()):
                raise ValueError(f"{name} must be finite; leave out components that are not")
        self.shape = tuple(means.shape[1:])
        self._means = means.reshape(len(means), -1)
        self._variances, self._axes = _spectrum(covariances, self._means)
        if self.weights.shape != (len(means),) or not bool((self.weights > 0).all()):
            raise ValueError(
                f"weights must be {len(means)} positive numbers, one for each mean, not "
                f"{self.weights.tolist()!r:.60}"
            )
        total = float(weights.sum(dtype=torch.float64))
        if abs(total - 1) > 1e-5:
            raise ValueError(f"weights must sum to 1, not {total:g}; divide them by their sum")
        self._record_scale()

    @classmethod
    def of_parts(
        cls, weights: Tensor, means: Tensor, variances: Tensor, axes: Tensor | None
    ) -> "GaussianMixture":
        """A mixture from variances `(K, d)`, which may be 0, along axes `(K, d, d)`, or `(d, d)`
        for all components, or None for the coordinates.
        """
        shape = tuple(means.shape[1:])
        law = cls(weights, means, torch.ones_like(weights))
        law._variances = variances
        law._axes = axes
        law._record_scale()
        assert law.shape == shape
        return law

    def _record_scale(self) -> None:
        """Sets `data_mean`, and `data_std`, which is 1 for a single point."""
        self.data_mean = self.mean()
        spread = (self._means - self.data_mean.reshape(-1)).square() + self._variances
        self.data_std = math.sqrt(float((self.weights @ spread).detach().mean())) or 1.0
        self._principal_std: float | None = None

    @computed
    def principal_std(self) -> float | None:
        if self._principal_std is None:  # computed where it is needed, and kept
            d = self._means.shape[1]
            self._principal_std = principal_std(self._covariance_product(), d)
        return self._principal_std

    def _covariance_product(self) -> Callable[[Tensor], Tensor]:
        """The function v -> C v of vectors `(d,)`, with the covariance C of the law."""
        means = self._means.to(torch.float64)
        weights = self.weights.to(means)
        of_means = covariance_product(means, weights)
        shares = weights.unsqueeze(-1) * self._variances.to(means).expand_as(means)
        axes = None if self._axes is None else self._axes.to(means)

        def product(v: Tensor) -> Tensor:
            v = v.to(means)
            between = of_means(v)
            if axes is None:
                return between + shares.sum(dim=0) * v
            parts = shares * (axes.mT @ v)
            if axes.ndim == 2:  # of all components
                return between + axes @ parts.sum(dim=0)
            return between + torch.einsum("kij,kj->i", axes, parts)

        return product

    def __repr__(self) -> str:
        return f"GaussianMixture({len(self.weights)} components, shape={self.shape})"

    def place(self) -> tuple[torch.dtype, torch.device]:
        return self._means.dtype, self._means.device

    @property
    def means(self) -> Tensor:
        """The means of the components, `(K, *event)`."""
        return self._means.reshape(-1, *self.shape)

    @property
    def covariances(self) -> Tensor:
        """The covariances of the components, of flattened samples, `(K, d, d)`."""
        return self._covariances().to(self._means)

    def _covariances(self) -> Tensor:
        """The covariances in float64."""
        full = torch.diag_embed(self._variances.expand_as(self._means).to(torch.float64))
        if self._axes is None:
            return full
        axes = self._axes.to(full)
        return axes @ full @ axes.mT

    def marginal(self, t: float, sde: AbstractDiffusion | str) -> "GaussianMixture":
        """The law p_t under a diffusion, an object or a name."""
        alpha, sigma = self.under(sde).kernel(t)
        law = copy.copy(self)
        law._means = alpha * self._means
        law._variances = alpha**2 * self._variances + sigma**2
        law.data_mean = alpha * self.data_mean
        law.data_std = math.hypot(alpha * self.data_std, sigma)
        law._principal_std = None
        return law

    def mean(self) -> Tensor:
        """The mean of the law, shaped like one sample."""
        return (self.weights @ self._means).reshape(self.shape)

    def covariance(self) -> Tensor:
        """The covariance of the law, of flattened samples, `(d, d)`."""
        centred = self._means - self.weights @ self._means
        return torch.einsum(
            "k,kij->ij", self.weights, self.covariances + centred[:, :, None] * centred[:, None, :]
        )

    def given(self, observation: AbstractObservation) -> "GaussianMixture":
        """The exact law given y = A x + N(0, R), again a mixture:

            S_k = A C_k A^T + R,  weights w_k N(y; A m_k, S_k),
            means m_k + C_k A^T S_k^{-1} (y - A m_k),  covariances C_k - C_k A^T S_k^{-1} A C_k.

        Components whose weight is below e^-100 of the largest, or 0 in the dtype of the means, are
        omitted. Without noise the law has no density, but it has samples and a denoiser.

        Raises:
            TypeError: for an observation that is not linear.
            ValueError: where y has several entries, for an observation that does not fit, or
                without noise for linearly dependent rows of A.

        Example:
            >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
            >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), 0.1)
            >>> law.given(y).mean().round(decimals=3)
            tensor([1., 0.])
        """
        observed = self._observed(observation, one=True)
        logits = self._given_logits(observed)[0]
        kept = components_kept(logits, self._means.dtype)
        means = self._means[kept].to(torch.float64)
        covariances = self._covariances()[kept]
        factor = observed.factor(covariances)
        gain = torch.cholesky_solve(observed.matrix @ covariances, factor).mT
        residual = observed.y[0] - means @ observed.matrix.T
        moved = means + torch.einsum("kdm,km->kd", gain, residual)
        rest = covariances - gain @ observed.matrix @ covariances
        variances, axes = torch.linalg.eigh(0.5 * (rest + rest.mT))
        largest = covariances.diagonal(dim1=1, dim2=2).amax(dim=1, keepdim=True)
        exact = variances.where(variances > ROUNDING * largest, 0.0)
        weights = torch.softmax(logits[kept], dim=0)
        points, variances, axes = (value.to(self._means) for value in (moved, exact, axes))
        return self.of_parts(weights, points.reshape(-1, *self.shape), variances, axes)

    def _given_logits(self, observed: Observed) -> Tensor:
        factor = observed.factor(self._covariances())
        log_weights = self.weights.to(torch.float64).log()
        return log_weights + observed.log_normal(self._means.to(torch.float64), factor)

    def _component_points(self, k: Tensor, z: Tensor) -> Tensor:
        z = z * self._variances.expand_as(self._means)[k].sqrt()
        if self._axes is None:
            return self._means[k] + z
        if self._axes.ndim == 2:
            return self._means[k] + z @ self._axes.T
        return self._means[k] + torch.einsum("nij,nj->ni", self._axes[k], z)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p_0(x) in nats: `(batch, *event)` to `(batch,)`.

        Raises:
            ValueError: for a law without a density, such as one given y without noise.
        """
        self._require_density()
        return torch.logsumexp(self._components(1.0, 0.0, x)[2], dim=1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability of each component given x from p_0: `(batch, *event)` to `(batch, K)`.

        Raises:
            ValueError: for a law without a density.
        """
        self._require_density()
        return torch.softmax(self._components(1.0, 0.0, x)[2], dim=1)

    def _require_density(self) -> None:
        """Refuses a law with a variance of 0 in some direction.

        Raises:
            ValueError: with the reason.
        """
        if not bool((self._variances > 0).all()):
            raise ValueError(
                "this law has no density: it was given y with noise that is 0, or below rounding "
                "relative to its variance; give a larger covariance"
            )

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        """D(l, u) = sum_k r_k [m_k + a C_k (a^2 C_k + b^2 I)^{-1} (u - a m_k)], r_k the probability
        of component k given u.
        """
        a = signal_scale(l)
        b = noise_scale(l)
        z, variances, logits = self._components(a, b, u)
        r = torch.softmax(logits, dim=1)
        means = self._means.to(u)
        gain = broadcast(a, z) * self._variances.to(u) / variances
        if self._axes is not None:
            return (r @ means + self._sum(r[:, :, None] * gain * z)).reshape(u.shape)
        # Without an array of all samples, components and coordinates.
        mixed = _averaged(r, gain, torch.ones_like(means[:, :1])) * self._flat(u)
        mixed = mixed + _averaged(r, broadcast(b, z) ** 2 / variances, means)
        return mixed.reshape(u.shape)

    def predict_noise(self, l: Time, u: Tensor) -> Tensor:
        """eps(l, u) = b sum_k r_k (a^2 C_k + b^2 I)^{-1} (u - a m_k)."""
        b = noise_scale(l)
        z, variances, logits = self._components(signal_scale(l), b, u)
        r = torch.softmax(logits, dim=1)[:, :, None]
        return self._sum(r * broadcast(b, z) / variances * z).reshape(u.shape)

    def score(self, t: Time, x: Tensor, sde: AbstractDiffusion | str | None = None) -> Tensor:
        """grad log p_t(x) = -sum_k r_k (alpha^2 C_k + sigma^2 I)^{-1} (x - alpha m_k), also where
        sigma = 0.

        Raises:
            ValueError: without a diffusion, or for t outside its range or of another shape.
        """
        require_tensor("x", x)
        kernel = self.under(sde)
        t = kernel.checked(times_of(t, x))
        z, variances, logits = self._components(kernel.alpha(t), kernel.sigma(t), x)
        r = torch.softmax(logits, dim=1)[:, :, None]
        return -self._sum(r / variances * z).reshape(x.shape)

    def _components(self, alpha: Time, sigma: Time, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x - alpha m_k along the axes of each component, `(batch, K, d)`, the variances along
        them, `(K, d)`, or `(batch, K, d)` for a time of each sample, where d may be 1, and
        log (w_k N_k(x)), `(batch, K)`.
        """
        z = self._flat(x).unsqueeze(1)
        alpha = broadcast(alpha, z)
        sigma = broadcast(sigma, z)
        z = z - alpha * self._means.to(x)
        if self._axes is not None:
            axes = self._axes.to(x)
            z = z @ axes if axes.ndim == 2 else torch.einsum("bki,kij->bkj", z, axes)
        variances = alpha * alpha * self._variances.to(x) + sigma * sigma
        d = z.shape[-1]
        determinant = variances.log().sum(dim=-1) * (d // variances.shape[-1])
        squares = (
            z.square().sum(dim=-1) / variances.squeeze(-1)
            if variances.shape[-1] == 1
            else (z.square() / variances).sum(dim=-1)
        )
        logits = self.weights.to(x).log() - 0.5 * (
            squares + determinant + d * math.log(2 * math.pi)
        )
        return z, variances, logits

    def _sum(self, components: Tensor) -> Tensor:
        """sum_k axes_k components_k."""
        if self._axes is None:
            return components.sum(dim=1)
        axes = self._axes.to(components)
        if axes.ndim == 2:
            return components.sum(dim=1) @ axes.T
        return torch.einsum("bkj,kij->bi", components, axes)


def components_kept(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether each component of a law given y is kept, `(K,)`: its weight is neither below e^-100
    of the largest, nor 0 in a dtype.
    """
    weights = torch.softmax(logits, dim=0).to(dtype)
    return (logits > logits.max() + _NEGLIGIBLE) & (weights > 0)


def _averaged(r: Tensor, factors: Tensor, points: Tensor) -> Tensor:
    """sum_k r_k factors_k points_k, with factors `(K, d)`, or `(batch, K, d)` of each sample, where
    d may be 1.
    """
    if factors.shape[-1] == 1:
        return (r * factors.squeeze(-1)) @ points
    if factors.ndim == 2:
        return r @ (factors * points)
    return torch.einsum("bk,bkd->bd", r, factors * points)


def _as_tensor(name: str, values: Any, dtype: torch.dtype | None = None) -> Tensor:  # noqa: ANN401
    """An argument as a tensor.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for lists of different lengths, or of texts.
    """
    try:
        return torch.as_tensor(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"{name} of a GaussianMixture are numbers, in a tensor or in lists of one length; not "
            f"{values!r:.60}"
        ) from None


def _spectrum(covariances: Tensor, means: Tensor) -> tuple[Tensor, Tensor | None]:
    """Variances, `(K, d)` or `(K, 1)`, and the axes along which they are, `(K, d, d)`, or None for
    the coordinates: computed in float64, in the dtype of the means, `(K, d)`.

    Raises:
        ValueError: for shapes that do not fit, or matrices that are not symmetric and positive
            definite.
    """
    (k, d) = means.shape
    shape = tuple(covariances.shape)
    if shape not in ((k,), (k, d), (k, d, d)):
        raise ValueError(
            f"covariances must have shape ({k},), ({k}, {d}) or ({k}, {d}, {d}), not {shape}"
        )
    if covariances.ndim == 3:
        if not torch.allclose(
            covariances, covariances.mT, atol=1e-6 * float(covariances.abs().max())
        ):
            raise ValueError("covariances must be symmetric; use (C + C^T) / 2")
        variances, axes = torch.linalg.eigh(covariances)
    else:
        variances = covariances.reshape(k, -1)
        axes = None
    variances = variances.to(means)
    if not bool((variances > 0).all()):
        raise ValueError(
            "covariances must be positive definite; the smallest variance is "
            f"{float(variances.min()):g}"
        )
    return variances, None if axes is None else axes.to(means)
