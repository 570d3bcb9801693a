"""Log-likelihoods of a model's probability flow, in nats."""

from collections.abc import Callable

from torch import Tensor

from sdekit import AbstractTrace, Likelihood
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inference.flow_map import FlowMap
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._sampling.arguments import Model
from sdekit_diffusion._sampling.coordinates import Coordinates, event_of
from sdekit_diffusion._sampling.grid import DEFAULT_END
from sdekit_diffusion._sampling.start_warnings import warn_of_end, warn_of_prior
from sdekit_diffusion._sampling.trained_levels import warn_of_few_levels


def log_likelihood(
    model: Model,
    x: Tensor,
    *,
    sde: AbstractDiffusion | str | None = None,
    trace: AbstractTrace | None = None,
    end: float = DEFAULT_END,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    method: AdaptiveFlow = AdaptiveFlow(),  # noqa: B008 - frozen
    first: int = 0,
    batch_size: int | None = None,
    differentiable: bool = False,
    progress: bool = False,
) -> Likelihood:
    """log p(x) in nats, where p is the density of the probability flow at sigma / alpha = end s.

    s is the standard deviation of the data, and x = x_t / alpha is in the scale of the data. Along
    the flow from x to x_T, with l = log(alpha / sigma), denoiser D and d coordinates per sample,

        log p(x) = log p_T(x_T) + d log(sigma_T / (end s)) - int_{l_T}^{l} alpha tr(dD/dx_t) dl.

    The linear part of the flow is exact. Errors come from the solver's tolerance; from the probes,
    whose standard error is part of the result; and from the use of the prior N(alpha_T mean,
    (alpha_T^2 s^2 + sigma_T^2) I) for p_T, which log_prior can replace.

    Arguments:
        model: a `ScoreModel`, a `GaussianMixture`, or a plain score `(x, t)` with sde=. For a
            network with more arguments, such as labels, pass `model.given(y=labels)`.
        x: floating points, `(batch, *shape)`, in the model's own scale.
        sde: the diffusion; the model's own unless given.
        trace: how tr(dD/dx_t) is computed: `sdekit.Exact()`, the default up to 32 dimensions, or
            `sdekit.Hutchinson(probes=8)`, the default above.
        end: the noise that x is taken to have, in units of the standard deviation s of the data: p
            is the density of data + end s eps, eps standard normal. Where the least noise of the
            diffusion, or of the model's own, is larger, as under `NCSN`, x is taken to have that,
            with a warning above a fifth of s.
        log_prior: the log-density of x_T in nats, a function from `(batch, *shape)` to `(batch,)`.
        method: the tolerances, the solver and the largest number of steps, such as
            `AdaptiveFlow(rtol=1e-7, atol=1e-7)`; 1e-5 for both tolerances by default.
        first: the index of the first point, on which its probes depend, besides the seed of
            `trace`.
        batch_size: how many points are solved together; all unless given.
        differentiable: whether the values have gradients with respect to x and the network's
            parameters.
        progress: show a bar.

    Returns:
        a `sdekit.Likelihood` with, per sample, value and stderr in float64, latent (x_T),
        evaluations and status. The value is NaN for a sample that needs more steps than
        `AdaptiveFlow.max_steps`.

    Raises:
        TypeError: when x is not a floating tensor, or method is not an `AdaptiveFlow`.
        sdekit.UnfinishedError: when the model returns values that are not finite; it names the
            samples and the time.
        ValueError: for an x that is not finite or has another shape than the model's samples, a
            model whose output has no gradient with respect to x, a method with `accuracy`, a
            missing diffusion, or an end that leaves nothing to solve.

    Warns:
        UserWarning: where the prior is far from p_T, because the largest noise is below twice the
            standard deviation of the data in a direction that the model knows; where the least
            noise is large; and for a model that was trained at a few noise levels only.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> x = model.sample(3, seed=0)
        >>> logp = sd.log_likelihood(model, x, sde="vp").value
        >>> torch.allclose(logp, model.log_prob(x).double(), atol=0.05)
        True

    References:
        Song et al. 2021, arXiv 2011.13456, appendix D.2.
    """
    model, diffusion = as_model(model, sde)
    coordinates = Coordinates.of(model, diffusion, event_of(x))
    low, high = coordinates.span(model, end)
    if log_prior is None:
        alternative = ", or give the log-density of the latents, log_prior="
        warn_of_prior(model, coordinates, low, alternative=alternative)
    warn_of_end(model, coordinates, high, end)
    warn_of_few_levels(model)
    flow_map = FlowMap(model, coordinates, (high, low), method, batch_size)
    return flow_map.log_likelihood(
        x,
        log_prior,
        trace=trace,
        first=first,
        differentiable=differentiable,
        progress=progress,
    )
