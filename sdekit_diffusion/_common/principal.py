"""The standard deviation of data in the direction in which it is largest."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdekit import normal
from sdekit_diffusion._common.counters import DIRECTION

# sigma / alpha, over the standard deviation of the data in its principal direction, below which
# noisy data are far from normal.
SMALLEST_RATIO = 2.0
_ITERATIONS = 30  # of the power method, which make its result a few per cent too small at most


def principal_std(product: Callable[[Tensor], Tensor], d: int) -> float:
    """The square root of the largest eigenvalue of a covariance matrix C, by the power method from
    a fixed direction: v <- C v / |C v|.

    Arguments:
        product: returns C v of a vector `(d,)` in float64.
        d: the number of coordinates.
    """
    v = normal(0, torch.zeros(1, dtype=torch.int64), (d,), counter=DIRECTION, dtype=torch.float64)
    v = v[0]
    for _ in range(_ITERATIONS):
        v = product(v / v.norm().clamp_min(torch.finfo(v.dtype).tiny))
    return math.sqrt(float(v.norm()))


def principal_std_of(points: Tensor, weights: Tensor | None = None) -> float:
    """`principal_std` of points `(n, *event)`, equally likely unless weights `(n,)` are given."""
    rows = points.flatten(1).to(torch.float64)
    shares = torch.full_like(rows[:, 0], 1 / len(rows)) if weights is None else weights.to(rows)
    centred = rows - shares @ rows
    return principal_std(lambda v: (shares * (centred @ v.to(rows))) @ centred, rows.shape[1])
