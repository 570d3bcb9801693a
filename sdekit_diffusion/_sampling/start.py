"""Warnings where a solve starts from what is not the law of noisy data: a prior far from it, or
given states.
"""

import math
import warnings

import torch
from torch import Tensor

from sdekit.elementary import scaled
from sdekit_diffusion._models.model import AbstractModel, signal_scale
from sdekit_diffusion._sampling.coordinates import Coordinates

# Sigma / alpha over the data's standard deviation, below which the shape of the data's law shows at
# the start.
_SMALLEST_RATIO = 2.0
# Of the standard deviation of states that are given, for models that are not exact.
_STD_MARGIN = 1.25
_FALSE_ALARM = 1e-6
# What is looked at of x_T.
_SAMPLES = 64
_NUMBERS = 2**16


def centre(model: AbstractModel, l: float, like: Tensor) -> Tensor:
    """a D(l, 0), around which the states of a model that `starts_at_mean` lie at the noisy end."""
    return scaled(signal_scale(l), model.predict_data(l, torch.zeros_like(like)))


def warn_of_prior(
    model: AbstractModel, coordinates: Coordinates, l: float, *, stacklevel: int = 3
) -> None:
    """Warns where the law at l, the start of a solve, is far from a normal one: where sigma / alpha
    is below twice the data's deviation.
    """
    ratio = math.exp(-l)
    if ratio >= _SMALLEST_RATIO:
        return
    start, noisiest = coordinates.start(model)
    where = f"{noisiest} ends"
    remedy = f"Choose another diffusion{noisiest.more_noise}, or give"
    if l > start:
        where = "the grid begins"
        remedy = "Begin at a higher level, or give"
    warnings.warn(
        f"{where} at sigma / alpha = {coordinates.std * ratio:.3g}, {ratio:.3g} times "
        f"the standard deviation of the data, {coordinates.std:.3g}: the prior is far from "
        f"the law there, and so is the result from that of the data. {remedy} the start or its "
        "log-density (x_T, log_prior)",
        stacklevel=stacklevel,
    )


def warn_of_states(x_T: Tensor, coordinates: Coordinates, l: float) -> None:
    """Warns where given states are not noise as at l: data, or latents of another diffusion.

    The d coordinates of a sample are taken for independent normals of a standard deviation between
    sigma, that of pure noise, and sqrt(sigma^2 + alpha^2 s^2), that of latents of `encode`, with a
    mean between 0 and alpha m; a factor of 1.25 is allowed for models that are not exact and for
    latents of other data. The mean variance v within n samples is tested: v / E v is chi^2 / k with
    k = n (d - 1), and so is the mean square, with k = n d. `_spread` says how many samples count.
    Data within [-1, 1] may pass this; but no n d normals have all |x| < 1.05 sigma where 0.706^(n
    d) is rare. Draws from the prior raise a warning once in a million calls at most.
    """
    if not x_T.numel():
        return
    x = x_T.detach()
    size = x[0].numel()
    rows = x[: max(1, min(_SAMPLES, _NUMBERS // size))].reshape(-1, size).cpu().double()
    std, samples = _spread(rows)
    root = math.sqrt(float(rows.square().mean()))
    alpha, sigma = coordinates.sde.kernel(float(coordinates.time(l)))
    mean = float(torch.as_tensor(coordinates.mean, dtype=torch.float64).square().mean().sqrt())
    lower, _ = _range_of_std(samples * (size - 1), sigma, sigma)
    _, upper = _range_of_std(
        samples * size, sigma, math.hypot(sigma, alpha * coordinates.std, alpha * mean)
    )
    bound = _smallest_range(samples * size) * sigma
    bounded = float(x.abs().amax()) < bound
    if std < lower or root > upper or bounded:
        given = f"root mean square {root:.3g}" if root > upper else f"standard deviation {std:.3g}"
        stays = f" and does not stay within +-{bound:.3g} as x_T does"
        warnings.warn(
            f"x_T has the {given}, and the noise at which the solve starts "
            f"has {sigma:.3g}{stays if bounded and std >= lower else ''}: x_T is that noise, not "
            "data. Take latents from encode(model, x), or prior(...) of the diffusion, or leave "
            "x_T out",
            stacklevel=5,
        )


def _spread(rows: Tensor) -> tuple[float, float]:
    """The standard deviation within samples, and how many independent samples they are worth.

    With C the correlation of the samples they are worth tr(C)^2 / tr(C^2) by Welch and
    Satterthwaite: copies and interpolated latents count for what they are. That of d - 1
    coordinates is at most d - 1, so that samples of one or two numbers count for one.
    """
    centred = rows - rows.mean(dim=1, keepdim=True)
    gram = centred @ centred.T
    trace = float(gram.trace())
    squares = float(gram.square().sum())
    std = math.sqrt(trace / (len(rows) * max(1, rows.shape[1] - 1)))
    return std, trace * trace / squares if squares else 1.0


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
