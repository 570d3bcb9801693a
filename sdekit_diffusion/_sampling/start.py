"""Warnings where a solve starts from what is not the law of noisy data: a prior far from it, or
given states.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates

# Sigma / alpha over the data's standard deviation, below which the shape of the data's law shows at
# the start.
_SMALLEST_RATIO = 2.0
_STD_MARGIN = (
    1.25  # of the standard deviation of states that are given, for models that are not exact
)
_FALSE_ALARM = 1e-6
_NUMBERS = 2**16  # of x_T, that are looked at


def warn_of_start(model: AbstractModel, coordinates: Coordinates, x_T: Tensor | None) -> None:
    """Warns where the prior is far from the law at the start, or given states are not noise."""
    if x_T is None:
        warn_of_prior(model, coordinates, stacklevel=4)
    else:
        warn_of_states(x_T, coordinates, coordinates.start(model)[0])


def warn_of_prior(model: AbstractModel, coordinates: Coordinates, *, stacklevel: int = 3) -> None:
    """Warns where p_T is far from a normal law: where sigma / alpha at the start is below twice the
    data's deviation.
    """
    start, noisiest = coordinates.start(model)
    ratio = math.exp(-start)
    if ratio < _SMALLEST_RATIO:
        warnings.warn(
            f"{noisiest} ends at sigma / alpha = {coordinates.std * ratio:.3g}, {ratio:.3g} times "
            f"the standard deviation of the data, {coordinates.std:.3g}: the prior is far from "
            "the law there, and so is the result from that of the data. Choose another "
            f"diffusion{noisiest.more_noise}, or give the start or its log-density (x_T, "
            "log_prior)",
            stacklevel=stacklevel,
        )


def warn_of_states(x_T: Tensor, coordinates: Coordinates, l: float) -> None:
    """Warns where given states are not noise as at l: data, or latents of another diffusion.

    The numbers of x_T are taken for independent normals of a standard deviation between sigma, that
    of pure noise, and sqrt(sigma^2 + alpha^2 s^2), that of latents of `encode`; a factor of 1.25 is
    allowed for models that are not exact and for latents of other data. The mean variance v within
    samples (of single numbers, within the batch) is tested: v / E v is chi^2 / m, and so is the
    mean square of all numbers, with one more degree of freedom for each sample. `_Numbers.samples`
    says how many samples count. Data within [-1, 1] may pass this; but no n normals have all
    |x| < 1.05 sigma where 0.706^n is rare. Draws from the prior raise a warning once in a million
    calls at most.
    """
    known = _Numbers.of(x_T.detach())
    if not known.samples:
        return
    alpha, sigma = coordinates.sde.kernel(float(coordinates.time(l)))
    mean = float(torch.as_tensor(coordinates.mean, dtype=torch.float64).square().mean().sqrt())
    n = known.samples * known.size
    within_rows = known.samples * (known.size - 1) if known.size > 1 else n - 1
    lower, upper = _range_of_std(within_rows, sigma, math.hypot(sigma, alpha * coordinates.std))
    # The prior's mean is alpha times that of the data.
    _, largest = _range_of_std(n, sigma, math.hypot(sigma, alpha * coordinates.std, alpha * mean))
    low = known.std < lower
    high = known.std > upper or known.root > largest
    bounded = known.most < _smallest_range(n) * sigma
    if low or high or bounded:
        bound = f" and does not stay within +-{_smallest_range(n) * sigma:.3g} as x_T does"
        far = known.root > largest and known.std <= upper
        given = (
            f"root mean square {known.root:.3g}" if far else f"standard deviation {known.std:.3g}"
        )
        warnings.warn(
            f"x_T has the {given}, and the noise at which the solve starts "
            f"has {sigma:.3g}{bound if bounded and not low else ''}: x_T is that noise, not data. "
            "Take latents from encode(model, x), or prior(...) of the diffusion, or leave x_T out",
            stacklevel=4,
        )


class _Numbers(NamedTuple):
    """What is known of a batch of states.

    size: the numbers in a sample. samples: how many independent samples the batch is worth. std:
    the standard deviation within samples; of single numbers, within the batch. root: the root mean
    square. most: the largest absolute value.
    """

    size: int
    samples: float
    std: float
    root: float
    most: float

    @staticmethod
    def of(x: Tensor) -> "_Numbers":
        """Of the first 65,536 numbers, but for the largest, which is that of all.

        Copies count once; of latents that change little from one to the next, as those between two
        do, some count for one. With r the correlation of neighbours, n are worth
        n (1 - r) / (1 + r), the number for an autoregression.
        """
        size = x[:1].numel()
        if not size:
            return _Numbers(0, 0.0, 0.0, 0.0, 0.0)
        most = float(x.abs().amax())
        rows = x[: max(1, _NUMBERS // size)].reshape(-1, size).cpu().double()
        square = float(rows.square().mean())
        neighbours = (rows[1:] * rows[:-1]).mean() if len(rows) > 1 else torch.zeros(())
        r = min(max(float(neighbours) / square if square else 0.0, 0.0), 1.0)
        samples = max(1.0, len(torch.unique(rows, dim=0)) * (1 - r) / (1 + r))
        centred = rows - (rows.mean(dim=1, keepdim=True) if size > 1 else rows.mean())
        degrees = len(rows) * (size - 1) if size > 1 else max(1, len(rows) - 1)
        std = math.sqrt(float(centred.square().sum()) / degrees)
        return _Numbers(size, samples, std, math.sqrt(square), most)


def _range_of_std(m: float, low: float, high: float) -> tuple[float, float]:
    """What the root of chi^2 / m, times one of two standard deviations, is between but for rare
    draws.
    """
    from scipy.special import gammainccinv, gammaincinv

    if not m:
        return 0.0, math.inf
    least, most = (
        math.sqrt(2 * quantile(0.5 * m, _FALSE_ALARM / 4) / m)
        for quantile in (gammaincinv, gammainccinv)
    )
    return least * low / _STD_MARGIN, most * high * _STD_MARGIN


def _smallest_range(n: float) -> float:
    """The largest |x| that n standard normals exceed but for rare draws; 1.05 at most."""
    from scipy.special import ndtri

    return min(1.05, float(ndtri(0.5 + 0.5 * (_FALSE_ALARM / 4) ** (1 / n))))
