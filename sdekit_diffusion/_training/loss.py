"""Denoising score matching."""

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from sdekit import did_you_mean, fresh_seed, normal, uniform01
from sdekit.elementary import broadcast
from sdekit_diffusion._arguments.inputs import is_number, require_tensor
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.counters import NOISE, SHIFT, TIME
from sdekit_diffusion._models.model import noise_scale, signal_scale
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._training.densities import (
    DENSITIES,
    AbstractDensity,
    Density,
    draw_discrete,
    draw_times,
)
from sdekit_diffusion._training.loss_weights import WEIGHTS, AbstractWeight, Weighting

# 2^64 / phi as a signed integer, phi the golden ratio: its multiples modulo 2^64 spread evenly.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_BITS = 53

Kind = TypeVar("Kind", AbstractWeight, AbstractDensity)


def dsm_loss(
    model: ScoreModel,
    x0: Tensor,
    *,
    weighting: Weighting = "plain",
    density: Density | None = None,
    stratified: bool = False,
    discrete: bool = False,
    end: float = 1e-3,
    huber: float = 0.0,
    seed: int | None = None,
    first: int = 0,
    noise: Tensor | None = None,
    log_snr: Tensor | None = None,
) -> Tensor:
    """The denoising score matching loss w(l) |eps_hat(x_t) - eps|^2 / d of each sample, `(batch,)`.

    Here x_t = alpha x_0 + sigma eps with a random time and random noise eps for each sample, d is
    the number of coordinates of a sample, l = log(alpha s / sigma), and s is the standard deviation
    of the data. In terms of other predictions, where a hat marks the prediction, the same loss is

        w sigma^2 |score_hat - grad log p(x_t | x_0)|^2 / d for the score, -eps_hat / sigma;

        w e^{2l} |z_hat - z|^2 / d for the standardised data z = x_0 / s;

        w / (1 + e^{-2l}) |v_hat - v|^2 / d for the velocity v of z, see `AbstractWeight`.

    With discrete levels and "plain" its expectation is DDPM's E |eps - eps_hat(x_i, i)|^2 / d, i
    uniform on 1, ..., N; and twice NCSN's mean over the levels of
    lambda(sigma) 1/2 |(x_t - x_0) / sigma^2 + score_hat|^2 / d with lambda = sigma^2.

    Arguments:
        model: the network and its diffusion.
        x0: data, floating, `(batch, *shape)`.
        weighting: w, by its name in `WEIGHTS`, or an `AbstractWeight`: "plain", 1; "likelihood", 1
            with l uniform, so that the loss bounds the negative log-likelihood up to a factor and a
            constant; "edm" and "velocity", 1 + e^{-2l}; "min_snr", `MinSNR(5)`; "balanced", e^{-l};
            "data", e^{-2l}; "sigmoid", `Sigmoid(2)`.
        density: the density of noise levels, by its name in `DENSITIES`, or an `AbstractDensity`:
            "time", t uniform (EDM: t^(1/7)); "uniform", l uniform; "log_normal", `LogNormal()`;
            "logistic", `Logistic()`. That of the weighting unless given: "uniform" for
            "likelihood", "balanced" and "sigmoid", "log_normal" for "edm", "logistic" for
            "velocity", "time" for others.
        stratified: spread the noise levels evenly over successive samples: the quantile of sample n
            is u + n / phi modulo 1, with the golden ratio phi and u drawn once from the seed.
        discrete: draw t from the diffusion's own `levels`, all equally likely, as DDPM and NCSN do.
        end: sigma / alpha at the smallest noise that is trained, divided by `model.data_std`, or by
            1 where that is None. Without effect on discrete levels, which are all trained.
        huber: with c > 0 the loss L of each sample, with its weight, becomes the pseudo-Huber loss
            sqrt(L + c^2) - c: nearly sqrt(L) above c^2, and L / (2 c) below. Only for samples with
            noise and log_snr, such as those of `Trajectories.steps`, where the network can be
            exact. Elsewhere it must predict the mean of x_0 given x_t, which minimises L only.
        seed, first: the noise of sample i depends on (seed, first + i) alone, its time also on
            `model.data_std`; None takes a new seed.
        noise: eps of each sample, shaped like x0, instead of a draw; for pairs of data and noise,
            as in rectified flow.
        log_snr: log(alpha / sigma) of each sample, `(batch,)`, instead of a draw; not with discrete
            or stratified.

    Raises:
        TypeError: when x0 is not a floating tensor, or weighting or density are neither names nor
            objects of these classes.
        ValueError: for an unknown name; for discrete levels where the diffusion has none, or with
            another density; for "likelihood" with a density that is not uniform; for noise or
            levels of another shape, or levels with discrete or stratified; for levels on the CPU
            that the diffusion does not have; for an end above which it has none; for a huber that
            is neither 0 nor from 1e-8 to 1e8, or is given without noise and log_snr.

    Example:
        >>> model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", shape=(2,))
        >>> loss = sd.dsm_loss(model, torch.randn(16, 2), weighting="min_snr", seed=0)
        >>> loss.shape
        torch.Size([16])
        >>> loss.mean().backward()

    References:
        Vincent 2011, "A connection between score matching and denoising autoencoders"; Song et al.
        2021, arXiv 2101.09258, for the likelihood weighting; Ho et al. 2020, arXiv 2006.11239,
        equation 14, and Song and Ermon 2019, arXiv 1907.05600, equation 6, for discrete levels;
        Kingma et al. 2021, arXiv 2107.00630, for stratified levels; Song and Dhariwal 2023,
        arXiv 2310.14189, for the pseudo-Huber loss of networks of one step.
    """
    require_tensor("x0", x0)
    if not x0.is_floating_point():
        raise TypeError(
            f"x0 must be floating, in the range that the model is to learn, not {x0.dtype}; scale "
            "it, or use .float()"
        )
    require_density(weighting, density, discrete)
    require_given_noise(x0, noise, log_snr)
    require_huber(huber, noise is not None and log_snr is not None)
    if log_snr is not None and (discrete or stratified):
        raise ValueError("log_snr gives the levels: leave out discrete and stratified")
    if log_snr is not None and log_snr.device.type == "cpu":  # elsewhere it would synchronise
        require_levels(log_snr, model.sde)
    weight = weight_of(weighting)
    data_std = model.data_std or 1.0
    seed = fresh_seed() if seed is None else seed
    index = torch.arange(first, first + len(x0), device=x0.device)
    l = log_snr
    if l is None:
        u = _stratified(seed, index) if stratified else uniform01(seed, index, (), counter=TIME)
        t = (
            draw_discrete(model.sde, u)
            if discrete
            else draw_times(model.sde, u, density_of(density or weight.density), end, data_std)
        )
        l = torch.as_tensor(model.sde.log_snr(t))
    eps = noise
    if eps is None:
        eps = normal(seed, index, tuple(x0.shape[1:]), counter=NOISE, dtype=x0.dtype)
    point = x0 * broadcast(signal_scale(l), x0) + eps * broadcast(noise_scale(l), x0)
    error = (model.predict_noise(l, point) - eps).square().reshape(len(x0), -1).mean(dim=1)
    loss = error * weight.weight(l + math.log(data_std)).to(error.dtype)
    return loss / ((loss + huber**2).sqrt() + huber) if huber else loss


def require_huber(huber: float, exact: bool) -> None:
    """Refuses an invalid width of the pseudo-Huber loss, or one unless the network can be exact:
    where noise and levels of the samples are given.

    Raises:
        ValueError: says what is allowed.
    """
    if not (is_number(huber) and (huber == 0 or 1e-8 <= huber <= 1e8)):
        raise ValueError(f"huber = {huber!r} must be 0, or from 1e-8 to 1e8, such as 1e-3")
    if huber and not exact:
        raise ValueError(
            f"huber = {huber:g} needs the noise and the log_snr of each sample, as in the data of "
            "Trajectories.steps(); elsewhere the network must predict the mean of x_0 given x_t, "
            "which does not minimise this loss: leave out huber"
        )


def require_given_noise(x0: Tensor, noise: Tensor | None, log_snr: Tensor | None) -> None:
    """Refuses noise and levels that are not those of these samples.

    Raises:
        TypeError: for a value that is not a tensor.
        ValueError: says which shape they must have.
    """
    for name, value, shape in (("noise", noise, x0.shape), ("log_snr", log_snr, x0.shape[:1])):
        if value is None:
            continue
        require_tensor(name, value)
        if value.shape != shape:
            raise ValueError(
                f"{name} of shape {tuple(value.shape)} must have the shape {tuple(shape)} for x0 "
                f"of shape {tuple(x0.shape)}"
            )


def require_levels(levels: Tensor, sde: AbstractDiffusion) -> None:
    """Refuses noise levels log(alpha / sigma) that a diffusion does not have.

    Raises:
        ValueError: says which it has.
    """
    low, high = (float(sde.log_snr(t)) for t in (sde.T, 0.0))
    margin = 1e-3  # for levels that were rounded
    if not bool(((low - margin <= levels) & (levels <= high + margin)).all()):
        raise ValueError(
            f"log_snr runs from {float(levels.min()):.4g} to {float(levels.max()):.4g}, and "
            f"log(alpha / sigma) under {sde} from {low:.4g} to {high:.4g}"
        )


def weight_of(choice: Weighting) -> AbstractWeight:
    """A weight from its name.

    Raises:
        TypeError, ValueError: as `dsm_loss`.
    """
    return _resolved("weighting", choice, WEIGHTS, AbstractWeight)


def density_of(choice: Density) -> AbstractDensity:
    """A density of noise levels from its name.

    Raises:
        TypeError, ValueError: as `dsm_loss`.
    """
    return _resolved("density", choice, DENSITIES, AbstractDensity)


def _resolved(
    argument: str, choice: str | Kind, table: Mapping[str, Kind], kind: type[Kind]
) -> Kind:
    if isinstance(choice, kind):
        return choice
    if not isinstance(choice, str):
        raise TypeError(f"{argument} must be a name or an {kind.__name__}, not {choice!r:.60}")
    if choice not in table:
        raise ValueError(
            f"{argument} = {choice!r} must be one of {', '.join(map(repr, table))}"
            f"{did_you_mean(choice, table)}"
        )
    return table[choice]


def require_density(weighting: Weighting, density: Density | None, discrete: bool) -> None:
    """Refuses a density of noise levels where the weighting or discrete levels determine it.

    Raises:
        TypeError, ValueError: as `dsm_loss`.
    """
    bounds = weight_of(weighting) == WEIGHTS["likelihood"]
    if discrete and (density is not None or bounds):
        raise ValueError(
            "discrete levels are all equally likely: leave out density, and take another "
            "weighting than 'likelihood', which has a density of its own"
        )
    if bounds and density is not None and density_of(density) != DENSITIES["uniform"]:
        raise ValueError(
            f"weighting = 'likelihood' bounds the likelihood with density = 'uniform' only, "
            f"not {density!r}; leave out density, or take weighting = 'plain'"
        )


def _stratified(seed: int, index: Tensor) -> Tensor:
    """Points in [0, 1), float64, that are evenly spread for successive samples n: u + n / phi
    modulo 1, with u uniform, computed in integers.

    Each point alone is uniform, and the points of N successive samples leave no gap above 2 / N.
    """
    shift = uniform01(seed, index.new_zeros(1), (), counter=SHIFT)
    words = index * _GOLDEN + (shift * 2.0**_BITS).to(torch.int64) * 2 ** (64 - _BITS)
    return ((words >> (64 - _BITS)) & (2**_BITS - 1)).to(torch.float64) * 2.0**-_BITS
