"""Denoising score matching."""

import math
from typing import Literal

import torch
from torch import Tensor

from sdekit import did_you_mean, fresh_seed, normal, uniform01
from sdekit.elementary import broadcast, clip
from sdekit_diffusion._counters import NOISE, TIME
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inputs import require_tensor
from sdekit_diffusion._models.model import noise_scale, signal_scale
from sdekit_diffusion._models.score_model import ScoreModel

Weighting = Literal["plain", "likelihood"]


def dsm_loss(
    model: ScoreModel,
    x0: Tensor,
    *,
    weighting: Weighting = "plain",
    discrete: bool = False,
    end: float = 1e-3,
    seed: int | None = None,
    first: int = 0,
) -> Tensor:
    """E lambda(t) |s(x_t, t) - grad log p(x_t | x_0)|^2 for each sample, x_t = alpha x_0 + sigma
    eps: shape `(batch,)`.

    With sigma s = -eps_hat the loss is lambda / sigma^2 |eps_hat - eps|^2, averaged over the
    coordinates here. With discrete levels it is DDPM's E |eps - eps_hat(x_i, i)|^2, i uniform on 1
    ... N, and twice NCSN's mean over the levels of lambda(sigma) 1/2 |(x_t - x_0) / sigma^2 + s|^2,
    lambda = sigma^2.

    Arguments:
        model: the network and its diffusion.
        x0: data, floating, `(batch, *shape)`.
        weighting: "plain", lambda = sigma^2 and t uniform (EDM: t^(1/7)); or "likelihood",
            lambda = g^2, with t drawn from a density proportional to g^2 / sigma^2 = -2 dl/dt,
            l = log(alpha / sigma), so that the variance stays finite: l is uniform, and the loss
            bounds the negative log-likelihood up to a factor and a constant.
        discrete: draw t from the diffusion's own `levels`, all equally likely, as DDPM and NCSN do;
            with "plain" only.
        end: sigma / alpha at the least noise that is trained, divided by `model.data_std`, or by 1
            where that is None; levels are all trained.
        seed, first: the noise of sample i depends on (seed, first + i) alone, its time also on
            `model.data_std`; None takes a new seed.

    Raises:
        TypeError: when x0 is not a floating tensor.
        ValueError: for an unknown weighting, or discrete levels where the diffusion has none or
            with another weighting.

    Example:
        >>> model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", shape=(2,))
        >>> loss = sd.dsm_loss(model, torch.randn(16, 2), seed=0)
        >>> loss.shape
        torch.Size([16])
        >>> loss.mean().backward()

    References:
        Vincent 2011, "A connection between score matching and denoising autoencoders"; Song et al.
        2021, arXiv 2101.09258, for the likelihood weighting; Ho et al. 2020, arXiv 2006.11239,
        equation 14, and Song and Ermon 2019, arXiv 1907.05600, equation 6, for discrete levels.
    """
    require_tensor("x0", x0)
    if not x0.is_floating_point():
        raise TypeError(
            f"x0 must be floating, in the range that the model is to learn, not {x0.dtype}; scale "
            "it, or use .float()"
        )
    seed = fresh_seed() if seed is None else seed
    index = torch.arange(first, first + len(x0), device=x0.device)
    u = uniform01(seed, index, (), counter=TIME)
    t = (
        draw_levels(model.sde, u, weighting)
        if discrete
        else draw_times(model.sde, u, weighting, end, model.data_std or 1.0)
    )
    eps = normal(seed, index, tuple(x0.shape[1:]), counter=NOISE, dtype=x0.dtype)
    l = model.sde.log_snr(t)
    point = x0 * broadcast(signal_scale(l), x0) + eps * broadcast(noise_scale(l), x0)
    return (model.predict_noise(l, point) - eps).square().reshape(len(x0), -1).mean(dim=1)


def draw_times(
    sde: AbstractDiffusion, u: Tensor, weighting: Weighting, end: float, data_std: float = 1.0
) -> Tensor:
    """Uniform numbers in [0, 1) as times from sigma / alpha = end data_std to the diffusion's
    latest, as the weighting wants them.
    """
    last = sde.latest(data_std)
    low = float(sde.log_snr(last))
    high = min(-math.log(end * data_std), float(sde.log_snr(0.0)))
    if not high > low:
        raise ValueError(
            f"end = {end:g} leaves nothing to train on under {sde}; choose a smaller one, such as "
            "1e-3"
        )
    if weighting == "plain":
        earliest = float(sde.time_within(high))
        return sde.spaced(earliest, last, u)
    if weighting == "likelihood":
        return clip(torch.as_tensor(sde.time(low + (high - low) * u)), 0.0, last)
    suggestion = did_you_mean(weighting, ("plain", "likelihood"))
    raise ValueError(f"weighting must be 'plain' or 'likelihood', not {weighting!r}{suggestion}")


def draw_levels(sde: AbstractDiffusion, u: Tensor, weighting: Weighting) -> Tensor:
    """Uniform numbers in [0, 1) as times of the diffusion's discrete noise levels, all equally
    likely.
    """
    if weighting != "plain":
        raise ValueError(
            f"discrete levels are drawn uniformly, for weighting = 'plain'; not {weighting!r}"
        )
    levels = sde.levels.to(u.device, non_blocking=True)
    return levels[(u * len(levels)).to(torch.int64)]
