"""Warnings where a solve does not start from the law of noisy data, because the prior is far from
this law, or given states are; and where its result has visible noise.
"""

import math

import torch
from torch import Tensor

from sdekit.calling import warn_caller
from sdekit.elementary import scaled
from sdekit_diffusion._models.model import AbstractModel, signal_scale
from sdekit_diffusion._models.principal import SMALLEST_RATIO
from sdekit_diffusion._sampling.coordinates import Coordinates

# The noise in a result, in standard deviations of the data, up to which there is no warning: their
# standard deviation is then at most 2 % too large. For data of standard deviation 0.1 or more the
# built-in diffusions stay below: "ncsn", whose least noise is 0.01, has 0.1, and the last of 1000
# steps in time leaves up to 0.11, under "vp".
_VISIBLE = 0.2
# By this factor the standard deviation of given states may be off, for models that are not exact.
_STD_MARGIN = 1.25
_FALSE_ALARM = 1e-6  # the probability of a warning for draws from the prior
# How many samples, and how many numbers of them, are read of x_T.
_SAMPLES = 64
_NUMBERS = 2**16


def centre(model: AbstractModel, l: float, like: Tensor) -> Tensor:
    """a D(l, 0): the mean of u at the noisy end, for a model that `starts_at_mean`."""
    return scaled(signal_scale(l), model.predict_data(l, torch.zeros_like(like)))


def warn_of_prior(
    model: AbstractModel,
    coordinates: Coordinates,
    l: float,
    *,
    alternative: str,
) -> None:
    """Warns if the law at l, the start of a solve, is far from a normal one: if sigma / alpha is
    below two standard deviations of the data, in the direction in which it is largest if the model
    knows it.

    Arguments:
        alternative: what else the caller of the public function can do than to choose another
            diffusion or level.
    """
    noise = coordinates.std * math.exp(-l)
    std = coordinates.std
    direction = ""
    if noise >= SMALLEST_RATIO * std:
        std = model.principal_std or 0.0
        direction = " in the direction in which it is largest"
    if noise >= SMALLEST_RATIO * std:
        return
    start, noisiest = coordinates.start(model)
    where = f"{noisiest} ends"
    remedy = f"Choose another diffusion{noisiest.more_noise}"
    if l > start:
        where = "the grid begins"
        remedy = "Begin at a higher level"
    estimated = " (estimated)" if model.data_std is None else ""
    warn_caller(
        f"{where} at sigma / alpha = {noise:.3g}, {noise / std:.3g} times the standard deviation "
        f"of the data{direction}, {std:.3g}{estimated}: the prior is far from the law there, and "
        f"so is the result from that of the data. {remedy}{alternative}",
    )


def warn_of_end(model: AbstractModel, coordinates: Coordinates, l: float, end: float) -> None:
    """Warns if a solve stops at l with visible noise because a diffusion has no less; not if the
    caller asked for as much by `end`.
    """
    ratio = math.exp(-l)
    if ratio <= 1.01 * max(_VISIBLE, end):  # 1.01: messages round
        return
    warn_caller(
        f"the least noise of {coordinates.cleanest(model)} is sigma / alpha = "
        f"{coordinates.std * ratio:.3g}, {ratio:.3g} times the standard deviation of the data, "
        f"{coordinates.std:.3g}: the result is for data with this noise. Choose a diffusion with "
        "less noise at t = 0, such as one with smaller sigma_min or sigmas, or accept the noise by "
        f"end={ratio:.3g}",
    )


def warn_of_last_step(left_over: float) -> None:
    """Warns if the last step of a method leaves visible noise, in standard deviations of the
    data.
    """
    if not left_over > _VISIBLE:
        return
    warn_caller(
        f"the last step leaves noise in the result, {left_over:.3g} times the standard deviation "
        "of the data: it is long where the noise vanishes. Take more steps, grid='log_snr', or a "
        "method such as 'sde', whose steps do not depend on the scale of the data",
    )


def warn_of_states(x_T: Tensor, coordinates: Coordinates, l: float) -> None:
    """Warns if given states are not noise of the level l, but data or latents of another diffusion.

    The hypothesis is that the d coordinates of a sample are independent normals, whose standard
    deviation is between sigma, for pure noise, and sqrt(sigma^2 + alpha^2 s^2), for latents of
    `encode`, and whose mean is between 0 and alpha m. A factor of 1.25 is allowed for models that
    are not exact and for latents of other data. For n samples, n as counted by `_spread`, the mean
    variance within a sample is chi^2 / k times its expectation with k = n (d - 1), and so is the
    mean square with k = n d. Data in [-1, 1] may pass this test; but n d normals have all
    |x| < 1.05 sigma only with the probability 0.706^(n d). Draws from the prior raise a warning in
    at most one of a million calls.
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
        warn_caller(
            f"x_T has the {given}, and the noise at which the solve starts "
            f"has {sigma:.3g}{stays if bounded and std >= lower else ''}: x_T is that noise, not "
            "data. Take latents from encode(model, x), or prior(...) of the diffusion, or leave "
            "x_T out",
        )


def _spread(rows: Tensor) -> tuple[float, float]:
    """The standard deviation within samples, and the effective number of independent samples.

    With C the covariance between the samples, estimated from d - 1 degrees of freedom, this number
    is tr(C)^2 / tr(C^2) (Welch and Satterthwaite), which is smaller for copies and for interpolated
    latents. It is at most d - 1, so that samples of one or two coordinates count as one sample.
    """
    centred = rows - rows.mean(dim=1, keepdim=True)
    gram = centred @ centred.T
    trace = float(gram.trace())
    squares = float(gram.square().sum())
    std = math.sqrt(trace / (len(rows) * max(1, rows.shape[1] - 1)))
    return std, trace * trace / squares if squares else 1.0


def _range_of_std(m: float, low: float, high: float) -> tuple[float, float]:
    """Bounds of a standard deviation estimated from m degrees of freedom, if the true one is
    between `low` and `high`, except in rare draws.
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
    """A bound, at most 1.05, that the largest of n |x| of standard normals exceeds except in rare
    draws.
    """
    from scipy.special import ndtri

    return min(1.05, float(ndtri(0.5 + 0.5 * (_FALSE_ALARM / 4) ** (1 / n))))
