"""The share, mean and covariance of samples in each mode of a known mixture of Gaussians."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sdekit_diffusion.metrics._points import Matrix, Samples, points, require_probability


class Mixture(Protocol):
    """sum_k w_k N(m_k, C_k): weights (K,), means (K, ...) and covariances (K, d, d); a
    `GaussianMixture` is one.
    """

    @property
    def weights(self) -> Samples: ...
    @property
    def means(self) -> Samples: ...
    @property
    def covariances(self) -> Samples: ...


@dataclass(frozen=True, eq=False)
class Modes:
    """Weight, mean and covariance of the samples in each of K modes, and their differences from
    those of the mixture in standard errors.

    The standard errors are those of the same number of exact samples. Mean and covariance are NaN
    for a mode with fewer than two samples.

    Attributes:
        weights: the share of the samples in each mode, (K,).
        means, covariances: those of the samples in each mode, (K, d) and (K, d, d).
        weight_scores, mean_scores, covariance_scores: differences divided by their standard errors,
            (K,), (K, d) and (K, d, d); for means and covariances in coordinates in which the
            covariance of the mode is the identity.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], [0.1, 0.1])
        >>> fit = sd.metrics.modes(law.sample(500, seed=0), law)
        >>> fit.weights.shape, fit.mean_scores.shape
        ((2,), (2, 1))
    """

    weights: Matrix
    means: Matrix
    covariances: Matrix
    weight_scores: Matrix
    mean_scores: Matrix
    covariance_scores: Matrix

    @property
    def scores(self) -> Matrix:
        """All distinct scores that are not NaN, at most K (1 + d + d (d + 1) / 2)."""
        upper = np.triu_indices(self.means.shape[1])
        parts = self.weight_scores, self.mean_scores, self.covariance_scores[:, upper[0], upper[1]]
        values = np.concatenate([part.ravel() for part in parts])
        return values[~np.isnan(values)]

    @property
    def worst(self) -> float:
        """The largest score in absolute value."""
        return float(np.abs(self.scores).max())

    def floor(self, confidence: float = 0.95) -> float:
        """The bound that `worst` does not exceed for exact samples, with the probability
        `confidence`, for independent standard normal scores.

        The scores are nearly so if each mode has hundreds of samples and the modes are separate.

        Raises:
            ValueError: for a confidence that is not between 0 and 1.
        """
        from scipy.special import ndtri

        require_probability("confidence", confidence)
        return float(ndtri(0.5 * (1 + confidence ** (1 / len(self.scores)))))


def modes(x: Samples, law: Mixture) -> Modes:
    """Weights, means and covariances of samples for each mode of a known mixture.

    A sample counts for mode k in proportion to r_k, the probability of that mode given the sample.
    For exact samples E r_k = w_k, E r_k (x - m_k) = 0 and E r_k (x - m_k)(x - m_k)^T = w_k C_k,
    with the weights w_k, means m_k and covariances C_k of the mixture. This also holds where modes
    overlap; the standard errors are then too large, never too small.

    Args:
        x: samples (N, ...).
        law: the mixture that they should follow, such as `GaussianMixture.marginal(t, sde)`.

    Raises:
        ValueError: for no samples, values that are not finite, or samples of another size than the
            means.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], [0.1, 0.1])
        >>> fit = sd.metrics.modes(law.sample(500, seed=0), law)
        >>> bool((abs(fit.weight_scores) < 5).all())
        True
    """
    from scipy.linalg import solve_triangular
    from scipy.special import softmax

    samples = points(x, "x")
    centres = points(law.means, "means")
    weights = points(law.weights, "weights")[:, 0]
    n, d = samples.shape
    if d != centres.shape[1]:
        raise ValueError(
            f"x has samples of {d} numbers, and the mixture's means have {centres.shape[1]}; they "
            "must agree"
        )
    roots = np.linalg.cholesky(points(law.covariances, "covariances").reshape(-1, d, d))
    white = [
        solve_triangular(r, (samples - m).T, lower=True).T
        for r, m in zip(roots, centres, strict=True)
    ]
    volumes = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
    logits = (
        np.stack([-0.5 * np.square(u).sum(1) for u in white], axis=1) + np.log(weights) - volumes
    )
    responsibilities = softmax(logits, axis=1)
    counts = responsibilities.sum(0)
    fits = [_fit(u, r) for u, r in zip(white, responsibilities.T, strict=True)]
    mean = np.stack([fit[0] for fit in fits])
    covariance = np.stack([fit[1] for fit in fits])
    weight_stderr = np.sqrt(weights * (1 - weights) / n)
    covariance_stderr = np.sqrt(1 + np.eye(d)) / np.sqrt(counts)[:, None, None]
    return Modes(
        weights=counts / n,
        means=centres + np.einsum("kij,kj->ki", roots, mean),
        covariances=roots @ covariance @ roots.transpose(0, 2, 1),
        weight_scores=(counts / n - weights) / np.where(weight_stderr > 0, weight_stderr, math.inf),
        mean_scores=mean * np.sqrt(counts)[:, None],
        covariance_scores=(covariance - np.eye(d)) / covariance_stderr,
    )


def _fit(u: Matrix, responsibility: Matrix) -> tuple[Matrix, Matrix]:
    """Mean (d,) and covariance (d, d) of weighted points; NaN if the total weight is below 2."""
    count = responsibility.sum()
    d = u.shape[1]
    if count < 2:
        return np.full(d, math.nan), np.full((d, d), math.nan)
    mean = responsibility @ u / count
    centred = u - mean
    return mean, (responsibility * centred.T) @ centred / (count - 1)
