"""Checks whether a model denoises a batch of data, and if not, finds a convention with which it
does.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdekit import normal
from sdekit_diffusion._arguments.inputs import require_event, require_tensor
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.conventions import Alternative, alternatives
from sdekit_diffusion._models.counters import NOISE
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.model import AbstractModel, noise_scale, signal_scale
from sdekit_diffusion._models.score_model import ScoreModel

# In standard deviations of the data. At other levels small errors of a network are amplified.
_NOISE = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_MIN_COORDINATES = (
    4096  # the smallest number of coordinates with independent noise: errors are known to some 2 %
)
_EQUAL_RATIO = (
    1.03  # errors are equal up to this ratio: of equal ones that with the fewest changes is named
)
# Bounds of ratios of errors to those of the guess. The ratios are at least 1 for every linear
# function of x, hence for most untrained networks. A model passes up to the first, on average, and
# up to the second at every level. A convention is named up to the third, if it divides the average
# by the fourth.
_LARGEST_MEAN_RATIO = 1.1
_LARGEST_RATIO = 10.0
_LARGEST_ALTERNATIVE = 0.95
_SMALLEST_GAIN = 1.25
# Errors of a network for labels that it does not accept.
_REFUSALS = (
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    AssertionError,
)


@dataclass(frozen=True)
class ModelCheck:
    """How well a model denoises a batch, see `check_model`.

    Attributes:
        noise: sigma / alpha of each level, increasing.
        errors: the mean square over the coordinates of D(x_t) - x_0 at each level.
        guesses: the error of a linear guess of x_0, which uses only the mean and the variance v of
            all coordinates: v r^2 / (v + r^2) at sigma / alpha = r.
        verdict: the conclusion, in words.
        fits: whether the model denoises the batch.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> check = sd.check_model(model, model.sample(500, seed=0), sde="vp")
        >>> check.fits, len(check.errors) == len(check.noise)
        (True, True)
        >>> check.score < 1
        True
    """

    noise: tuple[float, ...]
    errors: tuple[float, ...]
    guesses: tuple[float, ...]
    verdict: str = ""
    fits: bool = True

    @property
    def ratios(self) -> tuple[float, ...]:
        """Errors over guesses: below 1 for a trained model, and 1 + r^2 / v for one that removes no
        noise, D(x_t) = x_t / alpha.
        """
        return tuple(error / guess for error, guess in zip(self.errors, self.guesses, strict=True))

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return max(self.ratios)

    @property
    def score(self) -> float:
        """The geometric mean of the ratios, in which ratios below 0.001, which rounding dominates,
        count as 0.001.
        """
        return math.exp(sum(math.log(max(ratio, 1e-3)) for ratio in self.ratios) / len(self.ratios))


def check_model(
    model: AbstractModel | Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    sde: AbstractDiffusion | str | None = None,
    seed: int = 0,
    throw: bool = True,
) -> ModelCheck:
    """Checks that a model denoises a batch of data; if it does not, names the likely mistake.

    Noise of 0.1 to 5 times the standard deviation of x is added to x. A model passes if its mean
    squared error is not larger than that of a linear guess, and no other convention has a much
    smaller error. The conventions are other meanings of the network's output, other labels of time,
    other diffusions in `DIFFUSIONS` and other ranges of x, one change at a time: about 150
    evaluations of the batch.

    Arguments:
        model: a trained `ScoreModel`, a `GaussianMixture`, or a plain score `(x, t)` with sde=.
        x: data of the kind that it was trained on, floating, `(batch, *shape)`; 16 images or 500
            points in few dimensions are enough.
        sde: the diffusion, an object or a name; by default that of the model.
        seed: the seed of the noise.
        throw: False to return the verdict on a wrong model instead of raising an error. Networks
            with a table of labels may be called with labels outside the table; check these on the
            CPU, where this is an error that can be handled.

    Raises:
        TypeError: when x is not a floating tensor.
        ValueError: when the model does not fit x, with what would fit better; or when x does not
            vary.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> x = model.sample(500, seed=0)
        >>> sd.check_model(model, x, sde="vp").fits
        True
        >>> sd.check_model(model, 255 * x, sde="vp", throw=False).fits  # data in another range
        False

    References:
        Karras et al. 2022, arXiv 2206.00364, section 5, for errors in these units.
    """
    model, diffusion = as_model(model, sde)
    check = _check(model, x, diffusion, seed, ())
    if throw and not check.fits:
        raise ValueError(check.verdict)
    return check


def require_denoising(
    model: ScoreModel, x: Tensor | None, interpretations: Iterable[tuple[str, ScoreModel]]
) -> ScoreModel:
    """The model itself, after a check that it denoises x unless x is None.

    Arguments:
        interpretations: other models to compare with, each with the change in words.

    Raises:
        TypeError, ValueError: as `check_model`.
    """
    if x is not None:
        check = _check(model, x, model.sde, 0, interpretations)
        if not check.fits:
            raise ValueError(check.verdict)
    return model


def _check(
    model: AbstractModel,
    x: Tensor,
    sde: AbstractDiffusion,
    seed: int,
    interpretations: Iterable[tuple[str, ScoreModel]],
) -> ModelCheck:
    require_tensor("x", x)
    if not x.is_floating_point():
        raise TypeError(
            f"x must be floating, in the range that the model was trained on, not {x.dtype}; scale "
            "it, or use .float()"
        )
    require_event(x, model.shape)
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    failure = None
    with torch.no_grad(), evaluating(model, len(x)):
        noise = _noise(x, model, sde)
        try:
            errors = _errors(model, x, sde, seed)
        except _REFUSALS as error:  # perhaps for labels that the network does not accept
            failure = error
            errors = ModelCheck(noise, (math.inf,) * len(noise), (1.0,) * len(noise))
        interpreted = [
            Alternative(change, other, x, other.sde) for change, other in interpretations
        ]
        alternatives_tried = list(
            _evaluate_alternatives([*interpreted, *alternatives(model, x, sde)], seed)
        )
    return _with_verdict(errors, failure, alternatives_tried)


def _evaluate_alternatives(
    candidates: list[Alternative], seed: int
) -> Iterator[tuple[Alternative, ModelCheck]]:
    """The errors of the alternatives that can be evaluated."""
    for candidate in candidates:
        try:
            yield candidate, _errors(candidate.model, candidate.x, candidate.sde, seed)
        except _REFUSALS:
            continue


def _with_verdict(
    check: ModelCheck,
    failure: Exception | None,
    alternatives_tried: list[tuple[Alternative, ModelCheck]],
) -> ModelCheck:
    """The check with its verdict; raises a failure of the model that no alternative explains."""
    noise = check.noise[check.ratios.index(check.worst)]
    description = (
        f"at sigma / alpha = {noise:.3g} its error is {check.worst:.3g} times that of a guess from "
        "mean and standard deviation"
    )
    if failure is not None:
        description = f"its network fails with {type(failure).__name__}: {failure}"
    best = _best(alternatives_tried)
    if best is not None and best[1].score < min(_LARGEST_ALTERNATIVE, check.score / _SMALLEST_GAIN):
        gain = f"on average {best[1].score:.3g} times that of the guess"
        if failure is None:
            gain += f" instead of {check.score:.3g} times"
        verdict = f"the model does not denoise x: {description}. With {best[0].change} it is {gain}"
        return replace(check, verdict=verdict, fits=False)
    if failure is not None:
        raise failure
    if check.score <= _LARGEST_MEAN_RATIO and check.worst <= _LARGEST_RATIO:
        return replace(
            check, verdict=f"the model denoises x: {description}, and nowhere more", fits=True
        )
    reason = (
        "no single change of predicts, conditioning or the range of x explains it; it may be "
        "untrained, or of other data"
    )
    return replace(
        check, verdict=f"the model does not denoise x: {description}, and {reason}", fits=False
    )


def _best(
    alternatives_tried: list[tuple[Alternative, ModelCheck]],
) -> tuple[Alternative, ModelCheck] | None:
    """The alternative with the smallest error; of equal ones, one with a single change if any."""
    smallest = min((check.score for _, check in alternatives_tried), default=math.inf)
    equal = [
        (alternative, check)
        for alternative, check in alternatives_tried
        if check.score <= _EQUAL_RATIO * smallest
    ]
    return min(equal, key=lambda pair: (pair[0].several, pair[1].score), default=None)


def _noise(x: Tensor, model: AbstractModel, sde: AbstractDiffusion) -> tuple[float, ...]:
    """The levels sigma / alpha that are within the range of the diffusion.

    Raises:
        ValueError: when there are none, or x does not vary.
    """
    variance = float(x.double().var(correction=0)) if x.numel() else 0.0
    if not 0 < variance < math.inf:
        raise ValueError(
            f"x of shape {tuple(x.shape)} has variance {variance:g}; give a batch of data that "
            "vary, and are finite"
        )
    low = float(sde.log_snr(0.0))
    high = float(sde.log_snr(sde.latest(model.data_std or 1.0)))
    noise = tuple(
        r for r in (math.sqrt(variance) * unit for unit in _NOISE) if high <= -math.log(r) <= low
    )
    if not noise:
        raise ValueError(
            f"{sde} has no noise between 0.1 and 5 times the standard deviation of x, "
            f"{math.sqrt(variance):.3g}; scale x"
        )
    return noise


def _errors(model: AbstractModel, x: Tensor, sde: AbstractDiffusion, seed: int) -> ModelCheck:
    """The errors on x, which is repeated until it has at least _MIN_COORDINATES coordinates."""
    noise = _noise(x, model, sde)
    variance = float(x.double().var(correction=0))
    errors = []
    rows = torch.arange(len(x), device=x.device).repeat(-(-_MIN_COORDINATES // x.numel()))
    x = x[rows]
    model = model.rows(rows)
    eps = normal(
        seed,
        torch.arange(len(x), device=x.device),
        tuple(x.shape[1:]),
        counter=NOISE,
        dtype=x.dtype,
    )
    for r in noise:
        l = -math.log(r)
        point = signal_scale(l) * x + noise_scale(l) * eps
        error = float((model.predict_data(l, point) - x).double().square().mean())
        errors.append(error if math.isfinite(error) else math.inf)
    return ModelCheck(
        noise, tuple(errors), tuple(variance * r * r / (variance + r * r) for r in noise)
    )
