"""Data to latents and back by the probability flow, which is a bijection."""

import math
from dataclasses import replace
from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from sdekit import AbstractTrace, Likelihood
from sdekit_diffusion._arguments.inputs import is_whole, require_tensor
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inference.flow_map import FlowMap
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._sampling.arguments import Model
from sdekit_diffusion._sampling.coordinates import Coordinates, event_of
from sdekit_diffusion._sampling.grid import DEFAULT_END
from sdekit_diffusion._sampling.trained_levels import warn_of_few_levels


def encode(
    model: Model,
    x: Tensor,
    *,
    sde: AbstractDiffusion | str | None = None,
    end: float = DEFAULT_END,
    method: AdaptiveFlow = AdaptiveFlow(),  # noqa: B008 - frozen
    batch_size: int | None = None,
) -> Tensor:
    """The latent x_T to which the probability flow maps x, `(batch, *shape)`, without gradients.

    `decode` is the inverse. The arguments are those of `log_likelihood`, and the result is the
    `latent` that it returns.

    Raises:
        TypeError, ValueError: as `log_likelihood`.
        sdekit.UnfinishedError: when the solve of some samples does not reach the end; its
            `solution` has the others.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.encode(model, model.sample(3, seed=0), sde="vp").shape
        torch.Size([3, 1])
    """
    model, diffusion = as_model(model, sde)
    coordinates = Coordinates.of(model, diffusion, event_of(x))
    low, high = coordinates.span(model, end)
    warn_of_few_levels(model)
    return FlowMap(model, coordinates, (high, low), method, batch_size).image(x)


class _DecodeOptions(TypedDict, total=False):
    """The options of `decode` other than `return_likelihood`."""

    sde: AbstractDiffusion | str | None
    end: float
    method: AdaptiveFlow
    batch_size: int | None
    trace: AbstractTrace | None
    first: int


@overload
def decode(
    model: Model,
    latent: Tensor,
    *,
    return_likelihood: Literal[False] = False,
    **options: Unpack[_DecodeOptions],
) -> Tensor: ...
@overload
def decode(
    model: Model,
    latent: Tensor,
    *,
    return_likelihood: Literal[True],
    **options: Unpack[_DecodeOptions],
) -> tuple[Tensor, Likelihood]: ...


def decode(
    model: Model,
    latent: Tensor,
    *,
    sde: AbstractDiffusion | str | None = None,
    end: float = DEFAULT_END,
    method: AdaptiveFlow = AdaptiveFlow(),  # noqa: B008 - frozen
    batch_size: int | None = None,
    trace: AbstractTrace | None = None,
    first: int = 0,
    return_likelihood: bool = False,
) -> Tensor | tuple[Tensor, Likelihood]:
    """The x to which the probability flow maps a latent x_T, the inverse of `encode`, without
    gradients.

    Arguments:
        latent: x_T, `(batch, *shape)`.
        return_likelihood: also return the log-density of x, at the cost of its traces.
        trace, first: as in `log_likelihood`, used with return_likelihood=True only.
        sde, end, method, batch_size: as in `log_likelihood`.

    Returns:
        x, `(batch, *shape)`; with return_likelihood=True a pair of x and a `sdekit.Likelihood`,
        whose value is log p(x) in nats and whose latent is the given one.

    Raises:
        TypeError, ValueError, sdekit.UnfinishedError: as `encode`.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> x = model.sample(3, seed=0)
        >>> z = sd.encode(model, x, sde="vp")
        >>> torch.allclose(sd.decode(model, z, sde="vp"), x, atol=1e-2)
        True
    """
    model, diffusion = as_model(model, sde)
    coordinates = Coordinates.of(model, diffusion, event_of(latent))
    low, high = coordinates.span(model, end)
    warn_of_few_levels(model)
    flow_map = FlowMap(model, coordinates, (low, high), method, batch_size)
    if not return_likelihood:
        return flow_map.image(latent)
    likelihood = flow_map.log_likelihood(
        latent, lambda x: x.new_zeros(len(x)), trace=trace, first=first
    )
    with torch.no_grad(), evaluating(model, len(latent)):
        start = flow_map.log_prior(model, latent)(latent)
    return likelihood.latent, replace(
        likelihood, value=start - likelihood.value, latent=latent, skewness=-likelihood.skewness
    )


def interpolate(
    model: Model,
    a: Tensor,
    b: Tensor,
    n: int = 8,
    *,
    sde: AbstractDiffusion | str | None = None,
    end: float = DEFAULT_END,
    method: AdaptiveFlow = AdaptiveFlow(),  # noqa: B008 - frozen
    batch_size: int | None = None,
) -> Tensor:
    """n points between each sample of a and that of b, both included, `(n, batch, *shape)`.

    Relative to the mean c of the latents, the directions e_a and e_b of z_a - c and z_b - c are
    interpolated on their great circle (slerp), and the norms r_a and r_b linearly,

        c + ((1 - u) r_a + u r_b) (sin((1 - u) phi) e_a + sin(u phi) e_b) / sin(phi),

    with phi the angle between e_a and e_b and u from 0 to 1. So points in between are as far from c
    as the ends, which is typical of the prior; slerp of the latents themselves goes far beyond both
    where their norms differ and phi is near pi. Opposite directions, as in one dimension, have no
    great circle: there the latents are interpolated linearly, through c.

    Arguments:
        a, b: data, `(batch, *shape)`.
        n: the number of points, both ends included, a whole number from 2 on.
        sde, end, method, batch_size: as in `log_likelihood`.

    Raises:
        TypeError, ValueError, sdekit.UnfinishedError: as `encode`; ValueError also for n below 2,
            or a and b of different shapes.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> a, b = model.sample(2, seed=0), model.sample(2, seed=1)
        >>> sd.interpolate(model, a, b, 5, sde="vp").shape
        torch.Size([5, 2, 1])

    References:
        Shoemake 1985, "Animating rotation with quaternion curves"; Song et al. 2021,
        arXiv 2011.13456, appendix D.3.
    """
    require_tensor("a", a)
    require_tensor("b", b)
    if not is_whole(n, 2) or a.shape != b.shape:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(
            "n counts points with both ends, a whole number from 2 on, and a and b have one shape; "
            f"not {n!r:.60}, {shapes}"
        )
    settings = {"sde": sde, "end": end, "method": method, "batch_size": batch_size}
    u = torch.linspace(0, 1, n, dtype=torch.float64, device=a.device)
    first = encode(model, a, **settings)
    last = encode(model, b, **settings)
    mean = _latent_mean(model, first, sde, end)
    inner = slerp(first.double() - mean, last.double() - mean, u[1:-1]) + mean
    z = torch.cat([first[None], inner.to(first), last[None]])
    rows_model = as_model(model, sde)[0].rows(torch.arange(len(a), device=a.device).repeat(n))
    return decode(rows_model, z.flatten(0, 1), **settings).unflatten(0, (n, len(a)))


def _latent_mean(
    model: Model, latent: Tensor, sde: AbstractDiffusion | str | None, end: float
) -> Tensor:
    """The mean of the prior of some latents, `(batch, *event)` in float64."""
    model, diffusion = as_model(model, sde)
    coordinates = Coordinates.of(model, diffusion, event_of(latent))
    low, high = coordinates.span(model, end)
    flow_map = FlowMap(model, coordinates, (high, low), AdaptiveFlow(), None)
    with torch.no_grad(), evaluating(model, len(latent)):
        shift = flow_map.prior_shift(model, latent)
    mean = coordinates.leave((high, low), torch.zeros_like(latent, dtype=torch.float64))
    return mean if shift is None else mean + shift


def slerp(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """Points at u `(n,)` between a and b `(batch, *event)`, with directions on their great circle
    and norms between theirs: `(n, batch, *event)`.
    """
    flat = [ends.reshape(len(a), math.prod(a.shape[1:])).to(torch.float64) for ends in (a, b)]
    norms = [ends.norm(dim=1, keepdim=True) for ends in flat]
    cosine = torch.nn.functional.cosine_similarity(*flat, dim=1).clamp(-1, 1)
    angle = cosine.acos()
    # Parallel or opposite latents, and the mean, do not determine a great circle: interpolate
    # linearly.
    collinear = (angle.sin() < 1e-6) | (torch.cat(norms, dim=1).amin(dim=1) == 0)
    u = u[:, None]
    norm = (1 - u[..., None]) * norms[0] + u[..., None] * norms[1]
    interpolated = torch.zeros(len(u), *flat[0].shape, dtype=torch.float64, device=a.device)
    for v, ends, own_norm in zip((1 - u, u), flat, norms, strict=True):
        along_circle = (v * angle).sin() / torch.where(collinear, 1.0, angle.sin())
        direction = ends / torch.where(own_norm > 0, own_norm, 1.0)
        linear = v[..., None] * ends
        on_circle = norm * along_circle[..., None] * direction
        interpolated += torch.where(collinear[:, None], linear, on_circle)
    return interpolated.to(a.dtype).reshape(len(u), *a.shape)
