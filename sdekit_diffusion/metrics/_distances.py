"""Distances between sets of N samples, which are flattened to (N, d) and computed in float64."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from sdekit_diffusion.metrics._points import Matrix, Samples, blocks, pair, require_count, squares

_MEDIAN_SAMPLES = 2000  # samples whose distances give the median: two million of them


def frechet(a: Samples, b: Samples) -> float:
    """The squared Fréchet distance between Gaussian fits, which is the FID if a and b are Inception
    features:

        |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2}).

    Args:
        a: features (N, d).
        b: features (M, d).

    Returns:
        the squared distance, never negative. Covariances may be singular, as they are for N <= d.

    Raises:
        ValueError: for fewer than two samples, values that are not finite, or unequal d.

    Example:
        >>> a = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> round(sd.metrics.frechet(a, a + 1), 4)
        2.0

    Reference: Dowson and Landau, The Fréchet Distance between Multivariate Normal Distributions,
    1982; Heusel et al., 2017.
    """
    first, second = pair(a, b, least=2)
    means = first.mean(0), second.mean(0)
    # With C = R^T R, the trace of (C_a C_b)^{1/2} is the sum of the singular values of R_a R_b^T.
    # Unlike the square roots of the eigenvalues of C_a^{1/2} C_b C_a^{1/2}, they lose no digits
    # where the covariances are singular.
    roots = [
        np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r")
        for x, mean in zip((first, second), means, strict=True)
    ]
    cross = np.linalg.svd(roots[0] @ np.transpose(roots[1]), compute_uv=False).sum()
    covariance_term = np.square(roots[0]).sum() + np.square(roots[1]).sum() - 2 * cross
    return float(np.square(means[0] - means[1]).sum() + max(covariance_term, 0.0))


def _mean_distance(a: Matrix, b: Matrix) -> float:
    from scipy.spatial.distance import cdist

    return sum(float(cdist(a[rows], b).sum()) for rows in blocks(len(a), len(b))) / (
        len(a) * len(b)
    )


def energy_distance(a: Samples, b: Samples) -> float:
    """The energy distance between two sets of samples, in the units of the data:

        (2 E|a - b| - E|a - a'| - E|b - b'|)^{1/2},

    as `scipy.stats.energy_distance`, for samples of any dimension. It is 0 only if both empirical
    distributions are the same.

    Args:
        a: samples (N, ...).
        b: samples (M, ...) of the same shape.

    Raises:
        ValueError: for no samples, values that are not finite, or samples of unequal size.

    Example:
        >>> a = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> sd.metrics.energy_distance(a, a + 1) > sd.metrics.energy_distance(a, a + 0.1)
        True

    Reference: Székely and Rizzo, Energy Statistics, 2013.
    """
    first, second = pair(a, b)
    square = (
        2 * _mean_distance(first, second)
        - _mean_distance(first, first)
        - _mean_distance(second, second)
    )
    return float(np.sqrt(max(square, 0.0)))


def sliced_wasserstein(a: Samples, b: Samples, *, projections: int = 128, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance, in the units of the data: the root mean square, over
    random directions, of the 2-Wasserstein distance between the projections of both sets.

    Args:
        a: samples (N, ...).
        b: samples (M, ...) of the same shape.
        projections: the number of directions, uniform on the sphere.
        seed: of the directions.

    Raises:
        ValueError: for no samples, values that are not finite, samples of unequal size, or
            projections that are not a whole number from 1 on.

    Example:
        >>> a = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> sd.metrics.sliced_wasserstein(a, a)
        0.0

    Reference: Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, 2015.
    """
    require_count("projections", projections, 128)
    first, second = pair(a, b)
    n = len(first)
    m = len(second)
    directions = np.random.default_rng(seed).standard_normal((first.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    # Both quantile functions are constant between the multiples of 1/n and 1/m; in units of 1/(nm)
    # these are integers.
    edges = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    weights = np.diff(edges, prepend=0) / (n * m)
    quantiles = [np.sort(x @ directions, axis=0) for x in (first, second)]
    gaps = quantiles[0][(edges - 1) // m] - quantiles[1][(edges - 1) // n]
    return float(np.sqrt(weights @ np.square(gaps).mean(1)))


def mmd(
    a: Samples,
    b: Samples,
    *,
    kernel: Literal["rbf", "polynomial"] = "rbf",
    bandwidth: float | None = None,
) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy between two sets of samples:

        E k(a, a') + E k(b, b') - 2 E k(a, b),

    with means over pairs of different samples. It may be negative.

    Args:
        a: samples (N, ...).
        b: samples (M, ...) of the same shape, the reference.
        kernel: "rbf", k(x, y) = exp(-|x - y|^2 / (2 h^2)), or "polynomial", (x.y/d + 1)^3 with the
            dimension d, which gives the KID if a and b are Inception features.
        bandwidth: h. Unless given, the median distance within b, which is the same for all sets
            that are compared with b; of more than 2000 samples, at most 2000 evenly spaced ones are
            used.

    Raises:
        ValueError: for fewer than two samples, values that are not finite, samples of unequal size,
            an unknown kernel, a bandwidth that is not positive and finite, or one for the
            polynomial.

    Example:
        >>> a = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> sd.metrics.mmd(a + 1, a) > sd.metrics.mmd(a + 0.1, a)
        True

    Reference: Gretton et al., A Kernel Two-Sample Test, 2012, lemma 6; Binkowski et al.,
    Demystifying MMD GANs, 2018.
    """
    first, second = pair(a, b, least=2)
    if kernel not in ("rbf", "polynomial") or (kernel == "polynomial" and bandwidth is not None):
        raise ValueError(
            f"kernel must be 'rbf', or 'polynomial' without a bandwidth; not {kernel!r} and "
            f"{bandwidth}"
        )
    if kernel == "polynomial":
        d = first.shape[1]
        return _discrepancy(first, second, lambda x, y: (x @ y.T / d + 1) ** 3)
    h = (
        _median_distance(second[:: -(-len(second) // _MEDIAN_SAMPLES)])
        if bandwidth is None
        else bandwidth
    )
    if not 0 < h < np.inf:
        raise ValueError(
            f"the bandwidth is {h:g}; give a positive one, or a reference whose samples differ"
        )
    return _discrepancy(first, second, lambda x, y: np.exp(squares(x, y) / (-2 * h * h)))


def _median_distance(x: Matrix) -> float:
    from scipy.spatial.distance import pdist

    return float(np.median(pdist(x)))


def _discrepancy(a: Matrix, b: Matrix, kernel: Callable[[Matrix, Matrix], Matrix]) -> float:
    """E k(a, a') + E k(b, b') - 2 E k(a, b) over pairs of different samples."""

    def within(x: Matrix) -> float:
        total = 0.0
        for rows in blocks(len(x), len(x)):
            values = kernel(x[rows], x)
            np.fill_diagonal(values[:, rows], 0)
            total += float(values.sum())
        return total / (len(x) * (len(x) - 1))

    across = sum(float(kernel(a[rows], b).sum()) for rows in blocks(len(a), len(b))) / (
        len(a) * len(b)
    )
    return within(a) + within(b) - 2 * across
