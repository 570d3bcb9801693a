"""The standard deviation of data in the direction in which it is largest."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdekit import normal
from sdekit_diffusion._models.counters import DIRECTION

# sigma / alpha, over the standard deviation of the data in its principal direction, below which
# noisy data are far from normal.
SMALLEST_RATIO = 2.0
_ITERATIONS = 20  # of the power method, which make its result a few per cent too small at most


def principal_std(product: Callable[[Tensor], Tensor], d: int) -> float:
    """The square root of the largest eigenvalue of a covariance matrix C.

    Arguments:
        product: returns C v of a vector `(d,)` in float64.
        d: the number of coordinates.
    """
    return math.sqrt(float(_principal(product, d).norm()))


def _principal(product: Callable[[Tensor], Tensor], d: int) -> Tensor:
    """The eigenvector of the largest eigenvalue, of which it has the length, by the power method
    from a fixed direction: v <- C v / |C v|.
    """
    v = normal(0, torch.zeros(1, dtype=torch.int64), (d,), counter=DIRECTION, dtype=torch.float64)
    v = v[0]
    for _ in range(_ITERATIONS):
        v = product(v / v.norm().clamp_min(torch.finfo(v.dtype).tiny))
    return v


def principal_std_of(points: Tensor, weights: Tensor) -> float:
    """`principal_std` of points `(n, *event)` with probabilities `(n,)`."""
    rows = points.reshape(len(points), -1).to(torch.float64)
    return principal_std(covariance_product(rows, weights.to(rows)), rows.shape[1])


def estimated_principal_std(samples: Tensor) -> float:
    """An estimate for the law of samples `(n, *event)`: the standard deviation of every second one
    in the principal direction of the others, so that chance does not increase it.
    """
    rows = samples.reshape(len(samples), -1).to(torch.float64)
    first = rows[::2]
    second = rows[1::2]
    shares = torch.full_like(first[:, 0], 1 / len(first))
    direction = _principal(covariance_product(first, shares), rows.shape[1])
    if len(second) < 2 or not float(direction.norm()):
        return 0.0
    return float((second @ (direction / direction.norm())).std())


def covariance_product(rows: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """The function v -> C v, with the covariance C of rows `(n, d)` of probabilities `(n,)`."""
    centred = rows - weights @ rows
    return lambda v: (weights * (centred @ v.to(rows))) @ centred
