"""Classification by Bayes' rule, from how well each class's model denoises a point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit import normal, uniform01
from sdekit.calling import warn_caller
from sdekit.elementary import broadcast, sum_of_sample
from sdekit_diffusion._arguments.inputs import is_whole, require_event, require_points, seed_given
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.counters import CLASSES
from sdekit_diffusion._models.data_scale import DataScale, data_scale
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.in_batches import batches
from sdekit_diffusion._models.model import AbstractModel, noise_scale, signal_scale
from sdekit_diffusion._models.principal import SMALLEST_RATIO
from sdekit_diffusion._sampling.grid import DEFAULT_END
from sdekit_diffusion._sampling.trained_levels import warn_of_few_levels


@dataclass(frozen=True, eq=False)
class Classification:
    """p(c | x) for K classes, from independent estimates of log p(x | c).

    Attributes:
        estimates: log p(x | c) in nats, up to a constant that all classes share, float64,
            `(draws, batch, K)`.
        log_weights: log p(c), up to a constant, `(K,)`.

    Example:
        >>> models = [sd.GaussianMixture([1.0], [[m]], [0.1]) for m in (-1.0, 1.0)]
        >>> result = sd.classify(models, torch.tensor([[-0.9], [1.2]]), sde="vp")
        >>> result.label.tolist(), result.probability.round().tolist()
        ([0, 1], [[1.0, 0.0], [0.0, 1.0]])
    """

    estimates: Tensor
    log_weights: Tensor

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x | c) up to a constant that all classes share, `(batch, K)`."""
        return self.estimates.mean(dim=0)

    @property
    def probability(self) -> Tensor:
        """p(c | x), `(batch, K)`."""
        return torch.softmax(self.log_likelihood + self.log_weights, dim=1)

    @property
    def stderr(self) -> Tensor:
        """The standard error of p(c | x), `(batch, K)`, from the spread of the draws and the
        derivative of the softmax (the delta method); NaN for one draw.

        From few draws it is often too small by chance: of 4, the default, one error in seven
        exceeds two of it, as with Student's t; of 16 about one in sixteen.
        """
        n = len(self.estimates)
        if n < 2:
            return torch.full_like(self.probability, math.nan)
        p = self.probability
        deviation = self.estimates - self.log_likelihood
        change = p * (deviation - (p * deviation).sum(dim=2, keepdim=True))
        return (change.square().sum(dim=0) / (n * (n - 1))).sqrt()

    @property
    def label(self) -> Tensor:
        """The class with the largest p(c | x), `(batch,)`."""
        return self.probability.argmax(dim=1)


def classify(
    models: Sequence[AbstractModel],
    x: Tensor,
    *,
    log_weights: Tensor | None = None,
    sde: AbstractDiffusion | str | None = None,
    draws: int = 4,
    levels: int = 8,
    end: float = DEFAULT_END,
    seed: int | None = 0,
    first: int = 0,
    batch_size: int | None = None,
) -> Classification:
    """p(c | x) by Bayes' rule, with log p(x | c) from the errors of the models' noise predictions.

    For the optimal prediction eps_c of the noise of class c,

        log p(x | c) = const - int E |eps - eps_c(l, u)|^2 dl

    over all l = log(alpha / sigma), with u = a x + b eps, a^2 + b^2 = 1, a / b = e^l, and a
    constant that does not depend on the class. The models are evaluated from the largest noise of
    the diffusion to `end`, so that p is the density of the data with noise of that last level;
    above the largest noise the data of each class are taken for normal, with the mean and the
    standard deviation of its model. At each level all classes receive the same eps and -eps: most
    of the Monte Carlo error cancels in the differences between classes.

    The alternative `log_likelihood(model, x)` of each class has no Monte Carlo error in few
    dimensions, where its traces are exact, and takes more evaluations.

    Arguments:
        models: one per class, such as `[model.given(label=k) for k in range(10)]`.
        x: points, `(batch, *shape)`, floating, in the scale of the models.
        log_weights: log p(c), up to a constant, `(K,)`; all equal unless given. -inf excludes a
            class.
        sde: the diffusion whose range of noise levels is used, as far as all models have it; that
            of the first model unless given.
        draws: the number of independent estimates, two or more for a standard error.
        levels: the number of noise levels in each draw: one, at random, in each of `levels`
            equal parts of the range of l. Each costs two evaluations of every model.
        end: sigma / alpha of the last level, in units of the smallest standard deviation of the
            data of a class; the smallest level that all models have if this is larger.
        seed, first: levels and noise of point i depend on (seed, first + i) alone; None takes a
            new seed.
        batch_size: how many points are evaluated together; all unless given.

    Warns:
        UserWarning: where the largest noise is below two standard deviations of a class, and for
            models that were trained at a few noise levels only.

    Raises:
        TypeError: when x is not a floating tensor, models is a single model, or seed is not a whole
            number.
        ValueError: for fewer than two models, counts that are not whole numbers from 1 on,
            log_weights of another length, or NaN, infinite or all -inf, points that are not finite
            or of another shape than the models', an end that is not positive or not below the
            largest noise, or no noise levels that all models have.

    Example:
        >>> models = [sd.GaussianMixture([1.0], [[m]], [0.1]) for m in (-1.0, 1.0)]
        >>> result = sd.classify(models, torch.tensor([[-0.9], [1.2]]), sde="vp")
        >>> result.stderr.shape
        torch.Size([2, 2])

    References:
        Kong et al. 2023, arXiv 2302.03792, equation 9, for the integral; Li et al. 2023, arXiv
        2303.16203, for classification with common noise.
    """
    _require(models, x, draws, levels, batch_size)
    diffusion = models[0].under(sde)
    scales = [data_scale(model, tuple(x.shape[1:]), diffusion) for model in models]
    span = _span(models, diffusion, end, [scale.std for scale in scales])
    weights = _weights(log_weights, len(models))
    for model in models:
        warn_of_few_levels(model)
    seed = seed_given(seed)
    columns = []
    with torch.no_grad():
        for model, scale in zip(models, scales, strict=True):
            with evaluating(model, len(x)):
                parts = [
                    _estimates(part, x[rows], first + rows, seed, span, draws, levels)
                    for _, rows, part in batches(model, len(x), batch_size, x.device)
                ]
            columns.append(torch.cat(parts, dim=1) + _of_larger_noise(scale, x, span[0]))
    return Classification(torch.stack(columns, dim=2), weights.to(columns[0]))


def _span(
    models: Sequence[AbstractModel],
    diffusion: AbstractDiffusion,
    end: float,
    stds: Sequence[float],
) -> tuple[float, float]:
    """The range of l, from the largest noise that the diffusion and all models share to sigma /
    alpha = end s, for the smallest s of the models, or to the smallest that they share.
    """
    std = min(stds)
    shared = [diffusion, *(known for model in models for known in model.diffusions())]
    low = max(float(sde.log_snr(sde.latest(max(stds)))) for sde in shared)
    high = min(float(sde.log_snr(0.0)) for sde in shared)
    largest = math.exp(-low) / std
    if not 0 < end < largest:
        raise ValueError(
            "end is sigma / alpha of the last level in standard deviations of the data, above 0 "
            f"and below the largest of the diffusion, {largest:.3g}; not {end}"
        )
    high = min(high, -math.log(end * std))
    if not low < high:
        raise ValueError(
            f"the models and the diffusion share no noise levels: sigma / alpha is at most "
            f"{math.exp(-low):.3g} for one and at least {math.exp(-high):.3g} for another; choose "
            "another sde, or models that were trained under the same"
        )
    if largest * std < SMALLEST_RATIO * max(stds):
        warn_caller(
            f"the largest noise that the diffusion and the models share, sigma / alpha = "
            f"{math.exp(-low):.3g}, is below {SMALLEST_RATIO:g} standard deviations of the data of "
            f"a class, {max(stds):.3g}: unless these data are normal, p(c | x) is wrong; choose an "
            "sde with more noise, such as 'flow', or scale the data",
        )
    return low, high


def _weights(given: Tensor | None, n: int) -> Tensor:
    """log p(c) of n classes, checked."""
    weights = torch.zeros(n) if given is None else torch.as_tensor(given)
    if weights.shape != (n,):
        raise ValueError(
            f"log_weights has shape {tuple(weights.shape)}; give one for each of {n} models"
        )
    if weights.is_complex() or not math.isfinite(float(weights.amax())):
        raise ValueError(
            "log_weights are logarithms of probabilities, real numbers or, but not all, -inf; not "
            f"{weights.tolist()!r:.60}"
        )
    return weights


def _of_larger_noise(scale: DataScale, x: Tensor, low: float) -> Tensor:
    """- int E |eps - eps_c|^2 dl over all l below low, for normal data, `(batch,)`, float64."""
    ratio = (scale.std * math.exp(low)) ** 2
    mean = torch.as_tensor(scale.mean, dtype=torch.float64, device=x.device)
    z = (x.to(torch.float64) - mean) / scale.std
    squares = sum_of_sample(z.square())
    d = math.prod(x.shape[1:])
    return -0.5 * (ratio / (1 + ratio) * (squares - d) + d * math.log1p(ratio))


def _estimates(
    model: AbstractModel,
    x: Tensor,
    index: Tensor,
    seed: int,
    span: tuple[float, float],
    draws: int,
    levels: int,
) -> Tensor:
    """- int E |eps - eps_c|^2 dl over a span of l, for the points of an index, `(draws, batch)`."""
    low, high = span
    width = (high - low) / levels
    total = torch.zeros(draws, len(x), dtype=torch.float64, device=x.device)
    for draw in range(draws):
        for k in range(levels):
            counter = CLASSES - 2 * (draw * levels + k)
            l = low + width * (k + uniform01(seed, index, (), counter=counter))
            eps = normal(seed, index, tuple(x.shape[1:]), counter=counter - 1, dtype=x.dtype)
            total[draw] -= 0.5 * width * (_error(model, l, x, eps) + _error(model, l, x, -eps))
    return total


def _error(model: AbstractModel, l: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    """|eps - eps_c|^2 at u = a x + b eps, `(batch,)`, float64."""
    u = x * broadcast(signal_scale(l), x) + eps * broadcast(noise_scale(l), x)
    difference = (model.predict_noise(l, u) - eps).to(torch.float64)
    return difference.square().unsqueeze(-1).flatten(1).sum(dim=1)


def _require(
    models: Sequence[AbstractModel], x: Tensor, draws: int, levels: int, batch_size: int | None
) -> None:
    """Refuses what `classify` cannot use."""
    if isinstance(models, AbstractModel):
        raise TypeError(
            "models is a list with one model per class, such as [model.given(label=k) for k in "
            "range(10)]"
        )
    if len(models) < 2:
        raise ValueError(f"classify needs two models or more, one per class; not {len(models)}")
    require_points(x)
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, in the scale of the models, not {x.dtype}")
    require_event(x, models[0].shape)
    size = 1 if batch_size is None else batch_size
    for name, value in (("draws", draws), ("levels", levels), ("batch_size", size)):
        if not is_whole(value, 1):
            raise ValueError(f"{name} = {value!r} must be a whole number from 1 on")
