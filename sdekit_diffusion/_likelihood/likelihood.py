"""Log-likelihoods of a model's probability flow in nats, and in bits per dimension of quantised
data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

import sdekit
from sdekit import (
    AbstractTrace,
    Exact,
    Hutchinson,
    Likelihood,
    UnfinishedError,
    fresh_seed,
    uniform01,
)
from sdekit_diffusion._counters import DEQUANTISATION
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inputs import require_tensor
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.in_batches import batches
from sdekit_diffusion._models.model import AbstractModel, ScoreModel, as_model
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._sampling.coordinates import Coordinates, Span, event_of
from sdekit_diffusion._sampling.probability_flow import ProbabilityFlowOnClock
from sdekit_diffusion._sampling.sample import Model
from sdekit_diffusion._sampling.start import warn_of_prior

_EXACT_UP_TO = 32  # dimensions: above, eight probes cost less than a quarter of the exact trace
_DRAW = 1 << 40  # between the indices of two dequantisations


def log_likelihood(
    model: Model,
    x: Tensor,
    *,
    sde: AbstractDiffusion | str | None = None,
    trace: AbstractTrace | None = None,
    end: float = 1e-3,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    method: AdaptiveFlow = AdaptiveFlow(),  # noqa: B008 - frozen
    first: int = 0,
    batch_size: int | None = None,
    differentiable: bool = False,
    progress: bool = False,
) -> Likelihood:
    """log p(x) in nats, where p is the law of the probability flow at sigma / alpha = end s.

    s is the standard deviation of the data, and x is in their scale.

    log p(x) = log p_T(x_T) + d log(sigma_T / sigma) - integral of alpha tr(dD/dx) dl along the
    flow, l = log(alpha / sigma).

    The linear part is exact. Errors come from the solver's tolerance; from the probes, whose
    standard error the result contains; and from the prior N(alpha_T mean, (alpha_T^2
    s^2 + sigma_T^2) I) instead of p_T, which can be replaced by log_prior.

    Arguments:
        model: a `ScoreModel`, a `GaussianMixture`, or a plain score `(x, t)` with sde=. For a
            network with more arguments, such as labels, pass `model.given(y=labels)`.
        x: floating points, `(batch, *shape)`, in the model's own scale.
        sde: the diffusion; the model's own unless given.
        trace: `sdekit.Exact()`, the default up to 32 dimensions, or `sdekit.Hutchinson(probes=8)`,
            the default above.
        end: the noise that x is taken to have, in units of the standard deviation s of the data: p
            is the law of data + end s eps.
        log_prior: the log-density of x_T, `(batch, *shape)` to `(batch,)`.
        method: the tolerances, the solver and the largest number of steps, such as
            `AdaptiveFlow(rtol=1e-7, atol=1e-7)`.
        first: the index of the first point, on which its probes depend, besides the seed of
            `trace`.
        batch_size: how many points are solved together; all unless given.
        differentiable: whether the values have gradients with respect to x and the network's
            parameters.
        progress: show a bar.

    Returns:
        a `sdekit.Likelihood`, by sample: value and stderr in float64; latent, the x_T; evaluations
        and status. A sample that needs more than `AdaptiveFlow.max_steps` has NaN as its value.

    Raises:
        TypeError: when x is not floating.
        sdekit.UnfinishedError: when the model is not finite; it names the samples and the time.
        ValueError: as `sample`, and for a method with `accuracy`.

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
        warn_of_prior(model, coordinates)
    return along(
        model,
        coordinates,
        x,
        (high, low),
        log_prior or partial(coordinates.log_prior, (low, high)),
        trace=trace,
        method=method,
        first=first,
        batch_size=batch_size,
        differentiable=differentiable,
        progress=progress,
    )


def along(
    model: AbstractModel,
    coordinates: Coordinates,
    x: Tensor,
    span: Span,
    log_end: Callable[[Tensor], Tensor],
    *,
    trace: AbstractTrace | None,
    method: AdaptiveFlow,
    first: int,
    batch_size: int | None,
    differentiable: bool = False,
    progress: bool = False,
) -> Likelihood:
    """log_end at the end of the flow over a span of l plus the logarithm of the change of volume of
    x, batch by batch.
    """
    x = points_of(model, x, batch_size, method)
    if method.accuracy is not None:
        raise ValueError(
            f"accuracy={method.accuracy} is that of x at the end; a likelihood takes rtol and atol"
        )
    equation = ProbabilityFlowOnClock(coordinates.standardised(model))
    clock = equation.clock(span[0]), equation.clock(span[1])
    # The flow's own divergence is that of u.
    volume = math.prod(x.shape[1:]) * coordinates.log_scaling(span)

    def at_end(u: Tensor) -> Tensor:
        return log_end(coordinates.leave(span, u)).to(torch.float64) + volume

    trace = trace or (Exact() if math.prod(x.shape[1:]) <= _EXACT_UP_TO else Hutchinson(probes=8))
    parts = []
    bar = tqdm(total=len(x), unit="sample", desc="likelihood", disable=not progress)
    with torch.set_grad_enabled(differentiable), evaluating(model, len(x)), bar:
        _require_differentiable(model, x)
        for before, rows, _ in batches(model, len(x), batch_size, x.device):
            u = coordinates.enter(span, x[rows]) if x.is_floating_point() else x[rows]
            try:
                part = sdekit.log_likelihood(
                    equation.rows(rows),
                    u,
                    clock,
                    at_end,
                    trace=trace,
                    index=first + rows,
                    solver=method.solver,
                    control=method.control,
                    differentiable=differentiable,
                )
            except UnfinishedError as error:
                raise coordinates.left_unfinished(span, equation.seen(error), before) from None
            parts.append(part)
            bar.update(len(rows))
    value, stderr, latent, evaluations, status, skewness = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("value", "stderr", "latent", "evaluations", "status", "skewness")
    )
    return Likelihood(
        value, stderr, coordinates.leave(span, latent), evaluations, status, trace.probes, skewness
    )


def points_of(model: AbstractModel, x: object, batch_size: int | None, method: object) -> Tensor:
    """x, in float32 where its precision is half; what cannot be solved is refused.

    Raises:
        TypeError: for an x that is no tensor, or a method that is no `AdaptiveFlow`.
        ValueError: for points of another shape than the model's, or an empty batch_size.
    """
    require_tensor("x", x)
    assert isinstance(x, Tensor)
    if not isinstance(method, AdaptiveFlow):
        raise TypeError(f"method must be an AdaptiveFlow(rtol, atol), not {method!r}")
    if model.shape is not None and tuple(x.shape[1:]) != tuple(model.shape):
        raise ValueError(
            f"x has shape {tuple(x.shape)}; this model needs (batch, "
            f"{', '.join(map(str, model.shape))})"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size counts points from 1 on, not {batch_size}")
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def _require_differentiable(model: AbstractModel, x: Tensor) -> None:
    """Refuses a model whose output autograd cannot follow: its divergence would count as 0."""
    if len(x) and x.is_floating_point():
        with torch.inference_mode(False), torch.enable_grad():
            point = x[:1].detach().clone().requires_grad_()
            model = model.rows(torch.zeros(1, dtype=torch.int64))
            out = (
                model(point, 0.5)
                if isinstance(model, ScoreModel)
                else model.predict_data(0.0, point)
            )
            if (
                not out.requires_grad
                or torch.autograd.grad(out.sum(), point, allow_unused=True)[0] is None
            ):
                raise ValueError(
                    "the model's output does not depend on x in a way autograd can see: remove "
                    "no_grad or detach, or give a "
                    "model that is not constant"
                )


@dataclass(frozen=True, eq=False)
class BitsPerDim:
    """Code lengths and their error: value, stderr, mean, mean_stderr and parts, computed from

    Attributes:
        draws: bits per dimension of every point for every dequantisation, float64,
            `(draws, batch)`.
        probe_stderr: the standard error that the probes leave in the mean over draws, `(batch,)`.
        evaluations: of the model, over all draws, `(batch,)`.
        status: how the solve of each point ended, the worst of its draws, see `sdekit.Status`.
        probes: of each trace; 0 for exact ones.

    Example:
        >>> model = sd.GaussianMixture([1.0], [[0.0, 0.0]], [0.04])
        >>> pixels = torch.tensor([[3, 4], [4, 5]])
        >>> bits = sd.bits_per_dim(model, pixels, low=-1, high=1, levels=8, draws=2, sde="vp")
        >>> bits.draws.shape, bits.value.shape
        (torch.Size([2, 2]), torch.Size([2]))
        >>> bool(bits.mean > 0)
        True
    """

    draws: Tensor
    probe_stderr: Tensor
    evaluations: Tensor
    status: Tensor
    probes: int

    @property
    def value(self) -> Tensor:
        """Bits per dimension of every point: the mean over the draws, `(batch,)`."""
        return self.draws.mean(dim=0)

    @property
    def stderr(self) -> Tensor:
        """The standard deviation of the draws over the root of their number; of one draw,
        `probe_stderr`.

        The former includes the error due to the probes.
        """
        n = len(self.draws)
        return self.draws.std(dim=0) / math.sqrt(n) if n > 1 else self.probe_stderr

    @property
    def mean(self) -> float:
        """The mean over the points."""
        return float(self.value.mean())

    @property
    def mean_stderr(self) -> float:
        """The standard error of the mean as an estimate for the population, from the spread of the
        points.
        """
        return (
            float(self.value.std() / math.sqrt(len(self.value)))
            if len(self.value) > 1
            else math.nan
        )

    @property
    def parts(self) -> dict[str, float]:
        """The parts of `mean_stderr`, standard errors whose squares sum to its square.

        probes: the random traces; NaN for one probe, when it is included in the next part.
        dequantisation: the noise added to the levels, for several draws; for one draw it is
        included in data. data: the rest, the differences of the points; NaN for one point.
        """
        points = max(1, self.draws.shape[1])
        n = len(self.draws)
        squares = {"probes": float(self.probe_stderr.square().mean()) / points}
        if n > 1:
            drawn = float(self.draws.var(dim=0).mean()) / (n * points)
            squares["dequantisation"] = max(
                0.0, drawn - (0.0 if self.probes == 1 else squares["probes"])
            )
        rest = self.mean_stderr**2 - sum(
            value for value in squares.values() if not math.isnan(value)
        )
        squares["data"] = rest if math.isnan(rest) else max(0.0, rest)
        return {name: math.sqrt(value) for name, value in squares.items()}


def bits_per_dim(
    model: Model,
    x: Tensor,
    *,
    low: float,
    high: float,
    levels: int,
    draws: int = 1,
    seed: int | None = 0,
    first: int = 0,
    sde: AbstractDiffusion | str | None = None,
    trace: AbstractTrace | None = None,
    end: float = 1e-3,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    method: AdaptiveFlow = AdaptiveFlow(),  # noqa: B008 - frozen
    batch_size: int | None = None,
    progress: bool = False,
) -> BitsPerDim:
    """Bits per dimension of data of `levels` levels that the model sees in [low, high]:

        -log p(x) / (d log 2) - log2((high - low) / levels).

    Integers 0 .. levels - 1 are dequantised here, x = low + (high - low)(k + u) / levels with u
    uniform on [0, 1), which makes the result an upper bound of the code length of k. Floats are
    taken as already dequantised.

    Arguments:
        x: integers, or floats in [low, high], `(batch, *shape)`.
        low, high: the range in which the model was trained.
        levels: 256 for 8-bit images.
        draws: the number of dequantisations of each point, each with new probes.
        seed: of the dequantisation; None takes a new one.
        Others as in `log_likelihood`.

    Raises:
        TypeError: when x is no tensor.
        ValueError: for values outside the range, floats that look quantised, or several draws of
            floats.

    Example:
        >>> model = sd.GaussianMixture([1.0], [[0.0, 0.0]], [0.04])
        >>> pixels = torch.tensor([[3, 4], [4, 5]])
        >>> sd.bits_per_dim(model, pixels, low=-1, high=1, levels=8, sde="vp").value.shape
        torch.Size([2])

    References:
        Theis et al. 2016, arXiv 1511.01844, section 3.1.
    """
    require_tensor("x", x)
    if not (high > low and levels >= 1):
        raise ValueError(
            f"bits per dimension need low < high and levels >= 1, not {low}, {high} and {levels}"
        )
    if draws < 1 or (draws > 1 and x.is_floating_point()):
        raise ValueError(
            f"draws counts dequantisations of integers, from 1 on; not {draws} of {x.dtype}"
        )
    _require_values(x, low, high, levels)
    seed = fresh_seed() if seed is None else seed
    dtype = as_model(model, sde)[0].place()[0]
    found = []
    for start in range(first, first + draws * _DRAW, _DRAW):
        points = x
        if not x.is_floating_point():
            index = torch.arange(start, start + len(x), device=x.device)
            u = uniform01(seed, index, tuple(x.shape[1:]), counter=DEQUANTISATION)
            points = (low + (high - low) * (x + u) / levels).to(dtype)
        found.append(
            log_likelihood(
                model,
                points,
                sde=sde,
                trace=trace,
                end=end,
                log_prior=log_prior,
                method=method,
                first=start,
                batch_size=batch_size,
                progress=progress,
            )
        )
    unit = (x[0].numel() if len(x) else 1) * math.log(2)
    return BitsPerDim(
        torch.stack([-part.value / unit - math.log2((high - low) / levels) for part in found]),
        torch.stack([part.stderr / unit for part in found]).square().mean(dim=0).div(draws).sqrt(),
        torch.stack([part.evaluations for part in found]).sum(dim=0),
        torch.stack([part.status for part in found]).amax(dim=0),
        found[0].probes,
    )


def _require_values(x: Tensor, low: float, high: float, levels: int) -> None:
    """Refuses values out of range, and floats that are quantised."""
    if not x.is_floating_point():
        if len(x) and not (int(x.min()) >= 0 and int(x.max()) < levels):
            raise ValueError(
                f"integers from {int(x.min())} to {int(x.max())} are not levels 0 to {levels - 1}"
            )
        return
    if len(x) and not (low <= float(x.min()) and float(x.max()) <= high):
        raise ValueError(
            f"x runs from {float(x.min()):g} to {float(x.max()):g}, outside [{low}, {high}]"
        )
    if x.numel() > levels + 8 and len(x.unique()) <= levels:
        raise ValueError(
            f"x has only {len(x.unique())} different values: it looks quantised, where a density "
            "has no bound; "
            f"pass the integer levels 0 to {levels - 1} instead"
        )
