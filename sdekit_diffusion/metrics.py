"""Distances between sets of samples, each array of N samples flattened to (N, d) and computed in float64."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

# Numbers in one block of a distance matrix: 128 MB of float64.
_BLOCK = 2**24


def _points(x: ArrayLike | Tensor, name: str, least: int = 1) -> NDArray[np.float64]:
    array = np.asarray(x.detach().cpu().double() if isinstance(x, Tensor) else x, dtype=np.float64)
    if array.ndim == 0 or len(array) < least or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; it needs {least} or more samples along its first dimension")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite values; remove those samples, or find out why they diverged")
    return array.reshape(len(array), -1)


def _pair(
    a: ArrayLike | Tensor, b: ArrayLike | Tensor, names: tuple[str, str] = ("a", "b"), least: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _points(a, names[0], least), _points(b, names[1], least)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"samples of {names[0]} have {first.shape[1]} numbers and samples of {names[1]} {second.shape[1]}; "
            f"compare sets of samples of one shape"
        )
    return first, second


def frechet(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    """Squared Fréchet distance between Gaussian fits, the FID when a and b are Inception features.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2})

    Args:
        a: features (N, d).
        b: features (M, d).

    Returns:
        The distance, never negative; covariances may be singular, as they are when N <= d.

    Raises:
        ValueError: fewer than two samples, values that are not finite, or unequal d.

    Reference: Dowson and Landau, The Fréchet Distance between Multivariate Normal Distributions, 1982; Heusel et al., 2017.
    """
    first, second = _pair(a, b, least=2)
    means = first.mean(0), second.mean(0)
    # With C = R^T R, the trace of (C_a C_b)^{1/2} is the sum of the singular values of R_a R_b^T. Unlike the square
    # roots of the eigenvalues of C_a^{1/2} C_b C_a^{1/2}, they lose no digits where the covariances are singular.
    roots = [np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r") for x, mean in zip((first, second), means, strict=True)]
    cross = np.linalg.svd(roots[0] @ np.transpose(roots[1]), compute_uv=False).sum()
    spread = np.square(roots[0]).sum() + np.square(roots[1]).sum() - 2 * cross
    return float(np.square(means[0] - means[1]).sum() + max(spread, 0.0))


def nearest(x: ArrayLike | Tensor, reference: ArrayLike | Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Euclidean distance from each sample to its nearest neighbour in a reference set, and the neighbour's index.

    Args:
        x: samples (N, ...).
        reference: samples (M, ...) of the same shape.

    Returns:
        distances (N,) and indices (N,) into `reference`.

    Raises:
        ValueError: no samples, values that are not finite, or samples of unequal size.
    """
    queries, points = _pair(x, reference, ("x", "reference"))
    centre = points.mean(0)
    centred = points - centre
    squares = np.square(centred).sum(1)
    rows = max(1, _BLOCK // len(points))
    # |x - r|^2 = |x|^2 - 2 x.r + |r|^2, of which |x|^2 does not matter: one matrix product finds the neighbour ...
    blocks = [
        np.argmin(squares - 2 * (queries[i : i + rows] - centre) @ centred.T, axis=1) for i in range(0, len(queries), rows)
    ]
    indices = np.concatenate(blocks)
    # ... and a difference gives its distance, without cancellation: exactly zero for a copy.
    return np.linalg.norm(queries - points[indices], axis=1), indices


def _mean_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    rows = max(1, _BLOCK // len(b))
    return sum(float(cdist(a[i : i + rows], b).sum()) for i in range(0, len(a), rows)) / (len(a) * len(b))


def energy_distance(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    """Energy distance of two sets of samples, zero only if they are the same distribution.

    (2 E|a - b| - E|a - a'| - E|b - b'|)^{1/2}, as `scipy.stats.energy_distance` but for samples of any size.

    Args:
        a: samples (N, ...).
        b: samples (M, ...) of the same shape.

    Raises:
        ValueError: no samples, values that are not finite, or samples of unequal size.

    Reference: Székely and Rizzo, Energy Statistics, 2013.
    """
    first, second = _pair(a, b)
    square = 2 * _mean_distance(first, second) - _mean_distance(first, first) - _mean_distance(second, second)
    return float(np.sqrt(max(square, 0.0)))


def sliced_wasserstein(a: ArrayLike | Tensor, b: ArrayLike | Tensor, *, projections: int = 128, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance: the root mean square, over random directions, of the distance in one dimension.

    Args:
        a: samples (N, ...).
        b: samples (M, ...) of the same shape.
        projections: number of directions, uniform on the sphere.
        seed: of the directions.

    Raises:
        ValueError: no samples, values that are not finite, samples of unequal size, or no projections.

    Reference: Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, 2015.
    """
    if projections < 1:
        raise ValueError(f"projections={projections}; take 1 or more directions, 128 as a rule")
    first, second = _pair(a, b)
    n, m = len(first), len(second)
    directions = np.random.default_rng(seed).standard_normal((first.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    # Both quantile functions are constant between the multiples of 1/n and 1/m; in units of 1/(nm) these are integers.
    edges = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    weights = np.diff(edges, prepend=0) / (n * m)
    quantiles = [np.sort(x @ directions, axis=0) for x in (first, second)]
    gaps = quantiles[0][(edges - 1) // m] - quantiles[1][(edges - 1) // n]
    return float(np.sqrt(weights @ np.square(gaps).mean(1)))
