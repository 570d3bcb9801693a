"""Exact log-likelihoods of a model through its probability flow, in nats and in bits per dimension."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sdekit
from sdekit import AbstractTrace, Exact, Hutchinson, Likelihood, NotFiniteError, fresh_seed, uniform01
from sdekit_diffusion._counters import DEQUANTISATION
from sdekit_diffusion._diffusion import AbstractDiffusion
from sdekit_diffusion._model import AbstractModel, ScoreModel, as_model
from sdekit_diffusion._sample import Model, evaluating
from sdekit_diffusion._samplers import span_of, standardised

_EXACT_UP_TO = 32  # dimensions: above, eight probes cost less than a quarter of the exact trace


def log_likelihood(
    model: Model,
    x: Tensor,
    *,
    sde: AbstractDiffusion | str | None = None,
    trace: AbstractTrace | None = None,
    end: float = 1e-3,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    batch_size: int | None = None,
) -> Likelihood:
    """log p(x) in nats, p being the law of the model's probability flow at sigma / alpha = end.

    log p(x) = log p_T(x_T) + d log(sigma_T / sigma) - integral of alpha tr(dD/dx) dl along the flow, l = log(alpha / sigma).

    What is exact: the linear part. What is not: the solver's tolerance; the probes, whose standard error the result carries;
    and the prior N(0, sigma_T^2 I) in the place of p_T, whose effect is mostly below 1e-2 nats and can be removed by log_prior.

    Arguments:
        model: a `ScoreModel`, a `GaussianMixture`, or a plain score `(x, t)` with sde=.
        x: floating points, `(batch, *shape)`, in the model's own scale.
        sde: the diffusion; the model's own unless given.
        trace: `sdekit.Exact()`, the default up to 32 dimensions, or `sdekit.Hutchinson(probes=8)`, the default above.
        end: sigma / alpha at which x is taken to be.
        log_prior: the log-density of x_T, `(batch, *shape)` to `(batch,)`.
        first: the index of the first point, on which its probes depend.
        rtol, atol: tolerances of the adaptive solver.
        batch_size: how many points are solved together; all unless given.

    Returns:
        a `sdekit.Likelihood`: value and stderr in float64, `(batch,)`; latent, the x_T; evaluations, the most of any batch.

    Raises:
        TypeError: when x is not floating. ValueError: as `sample`.

    References:
        Song et al. 2021, arXiv 2011.13456, appendix D.2.
    """
    model, diffusion = as_model(model, sde)
    if model.shape is not None and tuple(x.shape[1:]) != tuple(model.shape):
        raise ValueError(f"x has shape {tuple(x.shape)}; this model needs (batch, {', '.join(map(str, model.shape))})")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size counts points from 1 on, not {batch_size}")
    low, high = span_of(model, diffusion, end)
    flow, r = standardised(model, diffusion)
    start, d = float(diffusion.time(low)), x[0].numel() if len(x) else 0
    trace = trace or (Exact() if d <= _EXACT_UP_TO else Hutchinson(probes=8))

    def log_p_start(w: Tensor) -> Tensor:
        x_T = w * r(low)
        value = diffusion.log_prior(x_T, start) if log_prior is None else log_prior(x_T).to(torch.float64)
        return value + d * math.log(r(low) / r(high))  # the densities of x and of w = x / r

    parts, size = [], batch_size or max(len(x), 1)
    with torch.inference_mode(False), evaluating(model):
        x = x.clone()
        _require_differentiable(model, diffusion, x)
        for i in range(0, max(len(x), 1), size):
            some = x[i : i + size]
            index = torch.arange(first + i, first + i + len(some), device=x.device)
            w = some / r(high) if x.is_floating_point() else some
            try:
                part = sdekit.log_likelihood(flow, w, (high, low), log_p_start, trace=trace, index=index, rtol=rtol, atol=atol)
            except NotFiniteError as error:
                raise error.seen(t=float(diffusion.time(error.t)), after=i, total=len(x)) from None
            parts.append(part)
    return Likelihood(
        torch.cat([part.value for part in parts]),
        torch.cat([part.stderr for part in parts]),
        torch.cat([part.latent for part in parts]) * r(low),
        max(part.evaluations for part in parts),
    )


def _require_differentiable(model: AbstractModel, sde: AbstractDiffusion, x: Tensor) -> None:
    """Refuses a model whose output autograd cannot follow: its divergence would count as 0."""
    if len(x) and x.is_floating_point():
        with torch.enable_grad():
            point = x[:1].clone().requires_grad_()
            out = model(point, 0.5) if isinstance(model, ScoreModel) else model.denoise(0.5, point, sde)
            if not out.requires_grad:
                raise ValueError("the model's output does not depend on x in a way autograd can see: remove no_grad or detach")


@dataclass(frozen=True, eq=False)
class BitsPerDim:
    """Code lengths and what is known of their error.

    Attributes:
        value: bits per dimension of every point, float64, `(batch,)`.
        stderr: the standard error that the probes leave, `(batch,)`.
        mean: over the points.
        mean_stderr: the standard error of the mean as an estimate for the population: the spread of the points, which holds
            that of probes and dequantisation.
        evaluations: the most of any batch.
    """

    value: Tensor
    stderr: Tensor
    evaluations: int

    @property
    def mean(self) -> float:
        return float(self.value.mean())

    @property
    def mean_stderr(self) -> float:
        return float(self.value.std() / math.sqrt(len(self.value))) if len(self.value) > 1 else math.nan


def bits_per_dim(
    model: Model,
    x: Tensor,
    *,
    low: float,
    high: float,
    levels: int,
    seed: int | None = 0,
    first: int = 0,
    sde: AbstractDiffusion | str | None = None,
    trace: AbstractTrace | None = None,
    end: float = 1e-3,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    batch_size: int | None = None,
) -> BitsPerDim:
    """-log p(x) / (d log 2) - log2((high - low) / levels) for data of `levels` levels that the model sees in [low, high].

    Integers 0 .. levels - 1 are dequantised here, x = low + (high - low)(k + u) / levels with u uniform on [0, 1), which
    makes the result an upper bound of the code length of k. Floating points are taken as dequantised already.

    Arguments:
        x: integers, or floats in [low, high], `(batch, *shape)`.
        low, high: the range in which the model was trained.
        levels: 256 for 8-bit images.
        seed: of the dequantisation; None takes a fresh one.
        Others as in `log_likelihood`.

    Raises:
        ValueError: for values outside the range, or floats that look quantised.

    References:
        Theis et al. 2016, arXiv 1511.01844, section 3.1.
    """
    if not (high > low and levels >= 1):
        raise ValueError(f"bits per dimension need low < high and levels >= 1, not {low}, {high} and {levels}")
    if x.is_floating_point():
        _require_dequantised(x, low, high, levels)
    else:
        if len(x) and not (int(x.min()) >= 0 and int(x.max()) < levels):
            raise ValueError(f"integers from {int(x.min())} to {int(x.max())} are not levels 0 to {levels - 1}")
        seed = fresh_seed() if seed is None else seed
        index = torch.arange(first, first + len(x), device=x.device)
        u = uniform01(seed, index, tuple(x.shape[1:]), counter=DEQUANTISATION)
        x = (low + (high - low) * (x + u) / levels).to(as_model(model, sde)[0].place()[0])
    nats = log_likelihood(model, x, sde=sde, trace=trace, end=end, first=first, rtol=rtol, atol=atol, batch_size=batch_size)
    unit = (x[0].numel() if len(x) else 1) * math.log(2)
    return BitsPerDim(-nats.value / unit - math.log2((high - low) / levels), nats.stderr / unit, nats.evaluations)


def _require_dequantised(x: Tensor, low: float, high: float, levels: int) -> None:
    if len(x) and not (low <= float(x.min()) and float(x.max()) <= high):
        raise ValueError(f"x runs from {float(x.min()):g} to {float(x.max()):g}, outside [{low}, {high}]")
    if x.numel() > levels + 8 and len(x.unique()) <= levels:
        raise ValueError(
            f"x has only {len(x.unique())} different values: it looks quantised, where a density has no bound; "
            f"pass the integer levels 0 to {levels - 1} instead"
        )
