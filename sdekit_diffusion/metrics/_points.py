"""Sets of samples as matrices, their distances in blocks, and checks of numbers."""

from collections.abc import Iterator
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

BLOCK = 2**24  # numbers in one block of a distance matrix: 128 MB of float64
ROUNDING = 1e-9  # relative error of squared distances
_CANCELLED = 1e-3  # |a - b|^2 relative to |a|^2 + |b|^2 below which too few digits remain
_CENTRE_SAMPLES = 1000

Samples = ArrayLike | Tensor
Matrix = NDArray[np.float64]


def points(x: Samples, name: str, least: int = 1) -> Matrix:
    """N samples as a matrix (N, d), float64.

    Raises:
        ValueError: for fewer than `least` samples, or values that are complex or not finite.
    """
    has_imaginary_part = x.is_complex() if isinstance(x, Tensor) else np.iscomplexobj(x)
    if has_imaginary_part:
        raise ValueError(
            f"{name} is complex; give real and imaginary parts as two coordinates of real samples"
        )
    array = np.asarray(x.detach().cpu().double() if isinstance(x, Tensor) else x, dtype=np.float64)
    if array.ndim == 0 or len(array) < least or array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape}; it needs {least} or more samples along its first "
            "dimension"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} has NaN or infinite values; remove those samples, or find out why they "
            "diverged"
        )
    return array.reshape(len(array), -1)


def pair(
    a: Samples, b: Samples, names: tuple[str, str] = ("a", "b"), least: int = 1
) -> tuple[Matrix, Matrix]:
    """Both sets as matrices of the same width. Samples have one shape, but for axes of length 1, or
    those of one set are flat.

    Raises:
        ValueError: as `points`, or for samples of unequal shape.
    """
    first = points(a, names[0], least)
    second = points(b, names[1], least)
    shapes = [tuple(np.shape(x)[1:]) for x in (a, b)]
    axes = [[length for length in shape if length > 1] for shape in shapes]
    unequal = axes[0] != axes[1] and min(map(len, axes)) > 1
    if first.shape[1] != second.shape[1] or unequal:
        raise ValueError(
            f"samples of {names[0]}, {shapes[0]}, have {first.shape[1]} numbers and samples of "
            f"{names[1]}, {shapes[1]}, {second.shape[1]}; compare sets of samples of one shape, "
            "with the axes in one order"
        )
    return first, second


def units(x: Matrix) -> Matrix:
    """The standard deviation of each coordinate, (d,), and 1 for those that do not vary, which have
    no unit of their own.
    """
    return np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0)


def blocks(n: int, width: int) -> Iterator[slice]:
    """Slices of the rows of an (n, width) matrix with at most BLOCK numbers each."""
    rows = max(1, BLOCK // width)
    return (slice(i, min(i + rows, n)) for i in range(0, n, rows))


def squares(a: Matrix, b: Matrix) -> Matrix:
    """Squared distances |a_i - b_j|^2, (N, M), with relative errors below ROUNDING: by one matrix
    product, and by differences wherever it cancels.
    """
    from scipy.spatial.distance import cdist

    # The distances are the same for any centre; for one near most samples, as the median is even
    # if some diverged, few products cancel.
    centre = np.median(b[:: -(-len(b) // _CENTRE_SAMPLES)], axis=0)
    first = a - centre
    second = b - centre
    squared = np.square(first).sum(1)[:, None] + np.square(second).sum(1)
    cancelled = _CANCELLED * squared
    squared -= 2 * first @ second.T
    near = squared < cancelled
    for i in np.flatnonzero(near.any(axis=1)):
        squared[i, near[i]] = cdist(a[i : i + 1], b[near[i]], "sqeuclidean")[0]
    return squared


def require_count(name: str, value: int, usual: int) -> None:
    """Refuses what is not a whole number from 1 on.

    Raises:
        ValueError: for another number.
    """
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(
            f"{name}={value!r}; it is a count from 1 on, a whole number such as {usual}"
        )


def require_probability(name: str, value: float) -> None:
    """Refuses what is not a number from 0 to 1.

    Raises:
        ValueError: for another number, or NaN.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"the {name} is a probability between 0 and 1, such as 0.95; not {value}")
