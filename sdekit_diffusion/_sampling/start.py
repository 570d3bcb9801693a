"""Warnings where a solve starts from what is not the law of noisy data: a prior far from it, or
given states.
"""

import math
import warnings

import torch
from torch import Tensor

from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates

# Sigma / alpha over the data's standard deviation, below which the shape of the data's law shows at
# the start.
_PRIOR = 2.0
_SLACK = 1.25  # of the standard deviation of states that are given, for models that are not exact
_FALSE_ALARM = 1e-6


def warn_of_start(model: AbstractModel, coordinates: Coordinates, x_T: Tensor | None) -> None:
    """Warns where the prior is far from the law at the start, or given states are not noise."""
    if x_T is None:
        warn_of_prior(model, coordinates, stacklevel=4)
    else:
        warn_of_given(x_T, coordinates, coordinates.start(model)[0])


def warn_of_prior(model: AbstractModel, coordinates: Coordinates, *, stacklevel: int = 3) -> None:
    """Warns where p_T is far from a normal law: where sigma / alpha at the start is below twice the
    data's deviation.
    """
    start, noisiest = coordinates.start(model)
    ratio = math.exp(-start)
    if ratio < _PRIOR:
        warnings.warn(
            f"{noisiest} ends at sigma / alpha = {coordinates.std * ratio:.3g}, {ratio:.3g} times "
            f"the standard deviation of the data, {coordinates.std:.3g}: the prior is far from "
            "the law there, and so is the result from that of the data. Choose another "
            f"diffusion{noisiest.more_noise}, or give the start or its log-density (x_T, "
            "log_prior)",
            stacklevel=stacklevel,
        )


def warn_of_given(x_T: Tensor, coordinates: Coordinates, l: float) -> None:
    """Warns where given states are not noise as at l: data, or latents of another diffusion.

    The d coordinates of a sample are taken for independent normals of a standard deviation between
    sigma, that of pure noise, and sqrt(sigma^2 + alpha^2 s^2), that of latents of `encode`; a
    factor of 1.25 is allowed for models that are not exact and for latents of other data. The mean
    variance v of up to 64 samples is tested: v / E v is chi^2 / m, m = (d - 1) tr(C)^2 / tr(C^2) by
    Welch and Satterthwaite, C the correlation of the samples, so that copies and interpolated
    latents count for what they are. Data within [-1, 1] may pass this; but no d normals have all
    |x| < 1.05 sigma where 0.706^d is rare. Draws from the prior raise a warning once in a million
    calls at most.
    """
    from scipy.special import gammainccinv, gammaincinv

    k = x_T[:1].numel() - 1
    if k < 1:
        return
    alpha, sigma = coordinates.sde.kernel(float(coordinates.time(l)))
    std, samples = _spread(x_T.detach()[:64].to(torch.float64).flatten(1))
    m = k * samples
    least, most = (
        math.sqrt(2 * quantile(0.5 * m, _FALSE_ALARM / 4) / m)
        for quantile in (gammaincinv, gammainccinv)
    )
    low = std < least * sigma / _SLACK
    high = std > most * math.hypot(sigma, alpha * coordinates.std) * _SLACK
    within = float(x_T.detach().abs().amax()) < _least_range(k + 1) * sigma
    if low or high or within:
        bound = f" and does not stay within +-{_least_range(k + 1) * sigma:.3g} as x_T does"
        warnings.warn(
            f"x_T has the standard deviation {std:.3g}, and the noise at which the solve starts "
            f"has {sigma:.3g}{bound if within and not low else ''}: x_T is that noise, not data. "
            "Take latents from encode(model, x), or prior(...) of the diffusion, or leave x_T out",
            stacklevel=4,
        )


def _spread(rows: Tensor) -> tuple[float, float]:
    """The standard deviation within rows, and how many independent rows they are worth."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    gram = centred @ centred.T / (rows.shape[1] - 1)
    total, squares = torch.stack([gram.trace(), gram.square().sum()]).tolist()
    return math.sqrt(total / len(rows)), total * total / squares if squares else 1.0


def _least_range(d: int) -> float:
    """The largest |x| that d standard normals exceed but for rare draws; 1.05 at most."""
    from scipy.special import ndtri

    return min(1.05, float(ndtri(0.5 + 0.5 * (_FALSE_ALARM / 4) ** (1 / d))))
