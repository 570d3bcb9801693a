"""A classifier two-sample test that needs no separate training set: leave-one-out predictions of
kernel ridge regression, with an exact p-value by permutations.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdekit_diffusion.metrics._calibration import TwoSample
from sdekit_diffusion.metrics._points import Matrix, Samples, pair, require_count, squares

_RIDGE = 0.03
_BLOCK = 256  # permutations that are computed together


def kernel_c2st(a: Samples, b: Samples, *, permutations: int = 999, seed: int = 0) -> TwoSample:
    """A test of whether two sets of samples have the same law: the leave-one-out accuracy of a
    kernel classifier that distinguishes them, with a p-value by permutations of the labels.

    The classifier of labels y_i = 1 (a) and -1 (b) is the sign of kernel ridge regression,

        f = K (K + lambda I)^{-1} y,  K_ij = exp(-|x_i - x_j|^2 / (2 h^2)),

    with h the median distance between different samples of both sets and lambda = 0.03. Trained
    without sample i it predicts y_i - (G y)_i / G_ii for that sample, where
    G = (K + lambda I)^{-1}. One inverse therefore gives the predictions for all samples and all
    permutations.

    Under the hypothesis that both sets have the same law, all permutations are equally likely, and
    P(p <= u) <= u for every u, whatever the law and the number of samples. Two sets with the same
    number of samples of each class, such as samples that were given the labels of held-out ones,
    are more alike than independent sets: for them p tends to be larger. The cost is that of
    inverting a matrix with a row for each sample, and grows with the cube of their number.

    Arguments:
        a, b: samples (N, ...), of the same number and shape. The distances are Euclidean: divide
            coordinates by their standard deviations where their units differ.
        permutations: the number of permutations; p is at least 1 / (permutations + 1).
        seed: of the permutations.

    Returns:
        a `TwoSample`: the accuracy, which for the same law is near 0.5, and below it for few
        samples; its standard deviation over the permutations; and p, the share of permutations with
        an accuracy at least as large, the given labels counted as one of them.

    Raises:
        ValueError: for fewer than two samples, sets of different sizes or shapes, values that are
            not finite, or permutations that are not a whole number from 1 on.

    Example:
        >>> law = sd.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
        >>> a, b = law.sample(100, seed=0), law.sample(100, seed=1)
        >>> sd.metrics.kernel_c2st(a, b).p_value > 0.01
        True
        >>> sd.metrics.kernel_c2st(a, 2 * b).p_value
        0.001

    References:
        Lopez-Paz and Oquab 2017, arXiv 1610.06545, the classifier test; Rifkin and Lippert 2007,
        "Notes on Regularized Least Squares", leave-one-out predictions; Phipson and Smyth 2010,
        "Permutation P-values Should Never Be Zero".
    """
    require_count("permutations", permutations, 999)
    first, second = pair(a, b, least=2)
    n = len(first)
    if n != len(second):
        raise ValueError(f"there are {n} samples of a and {len(second)} of b: give as many of both")
    inverse = np.linalg.inv(_kernel(np.concatenate([first, second])) + _RIDGE * np.eye(2 * n))
    labels = np.repeat([1.0, -1.0], n)
    accuracy = float(_accuracies(inverse, labels[:, None])[0])
    rng = np.random.default_rng(seed)
    blocks = []
    for i in range(0, permutations, _BLOCK):
        size = min(_BLOCK, permutations - i)
        shuffled = rng.permuted(np.tile(labels, (size, 1)), axis=1).T
        blocks.append(_accuracies(inverse, shuffled))
    permuted = np.concatenate(blocks)
    p_value = float((1 + (permuted >= accuracy - 1e-9).sum()) / (permutations + 1))
    return TwoSample(accuracy, float(permuted.std()), p_value)


def _kernel(x: Matrix) -> Matrix:
    """The Gaussian kernel between all samples, its width the median distance between different
    ones.
    """
    squared = squares(x, x)
    between = squared[np.triu_indices(len(x), 1)]
    different = between[between > 0]
    median = float(np.median(different)) if different.size else 1.0
    return np.exp(squared / (-2 * median))


def _accuracies(inverse: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """The leave-one-out accuracy for each column of labels."""
    predicted = labels - inverse @ labels / np.diag(inverse)[:, None]
    return (predicted * labels > 0).mean(axis=0)
