"""Nearest neighbours, and the precision and recall of samples that they give."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdekit_diffusion.metrics._points import (
    ROUNDING,
    Matrix,
    Samples,
    blocks,
    pair,
    require_count,
    squares,
)


def nearest(x: Samples, reference: Samples) -> tuple[Matrix, NDArray[np.int64]]:
    """Euclidean distance from each sample to its nearest neighbour in a reference set, and the
    neighbour's index.

    Args:
        x: samples (N, ...).
        reference: samples (M, ...) of the same shape.

    Returns:
        distances (N,) and indices (N,) into `reference`.

    Raises:
        ValueError: for no samples, values that are not finite, or samples of unequal size.

    Example:
        >>> x, reference = torch.tensor([[0.2]]), torch.tensor([[1.0], [0.0]])
        >>> distances, indices = sd.metrics.nearest(x, reference)
        >>> indices.tolist()
        [1]
    """
    queries, points = pair(x, reference, ("x", "reference"))
    indices = np.concatenate(
        [
            np.argmin(squares(queries[rows], points), axis=1)
            for rows in blocks(len(queries), len(points))
        ]
    )
    return np.linalg.norm(queries - points[indices], axis=1), indices


class PrecisionRecall(NamedTuple):
    """Precision, the share of samples in the manifold of the reference, and recall, the share of
    the reference in the manifold of the samples.

    Example:
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> sd.metrics.precision_recall(x, x)
        PrecisionRecall(precision=1.0, recall=1.0)
    """

    precision: float
    recall: float


def precision_recall(x: Samples, reference: Samples, *, k: int = 3) -> PrecisionRecall:
    """Precision and recall of samples, with manifolds estimated by k-th nearest neighbours.

    The manifold of a set is the union of balls around its points. The radius of a ball is the
    distance from its centre to the k-th nearest other point of the set. Both shares depend on the
    numbers of samples: compare only sets of the same size, and with `sampling_floor`.

    Args:
        x: samples (N, ...), or their features.
        reference: real samples (M, ...) of the same shape, or their features.
        k: the number of the neighbour, 3 as published.

    Returns:
        (precision, recall), each from 0 to 1.

    Raises:
        ValueError: for k or fewer samples, values that are not finite, samples of unequal size, or
            a k that is not a whole number from 1 on.

    Example:
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> sd.metrics.precision_recall(x + 100, x)
        PrecisionRecall(precision=0.0, recall=0.0)

    Reference: Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative
    Models, 2019.
    """
    require_count("k", k, 3)
    first, second = pair(x, reference, ("x", "reference"), least=k + 1)
    return PrecisionRecall(_coverage(first, second, k), _coverage(second, first, k))


def _coverage(x: Matrix, manifold: Matrix, k: int) -> float:
    """The share of x within the balls around the points of a manifold."""
    radii = np.concatenate(
        [
            np.partition(squares(manifold[rows], manifold), k, axis=1)[:, k]
            for rows in blocks(len(manifold), len(manifold))
        ]
    )  # the nearest is the point itself
    radii *= 1 + 2 * ROUNDING  # a neighbour on the surface is inside
    inside = [
        (squares(x[rows], manifold) <= radii).any(axis=1) for rows in blocks(len(x), len(manifold))
    ]
    return float(np.concatenate(inside).mean())
