"""Does a model denoise a batch of data, and if it does not, with which other convention would
it?
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sdekit import normal
from sdekit_diffusion._counters import NOISE
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inputs import require_tensor
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.model import (
    AbstractModel,
    Conditioning,
    Prediction,
    ScoreModel,
    as_model,
    noise_scale,
    signal_scale,
)

# In units of the data's deviation; beyond, small errors of a network are magnified.
_NOISE = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_NUMBERS = 4096  # coordinates with noise of their own, at least: an error is known to some 2 %
_ALIKE = 1.03  # errors whose ratio is within this are the same: then the fewest changes are named
# Ratios to the guess's error, which are at least 1 for whatever is linear in x, an untrained
# network too: on average, of a model that passes; at one level, of one that is broken there; of a
# convention that is named, and what it must gain.
_PASSES = 1.1
_BROKEN = 10.0
_NAMED = 0.95
_GAIN = 1.25
_SEVERAL = "sde='flow', "  # how what changes more than one convention begins
_OPPOSITE: dict[str, str] = {"flow": "reverse_flow", "reverse_flow": "flow"}
# A network's, of labels.
_REFUSALS = (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AssertionError)
_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))


@dataclass(frozen=True)
class ModelCheck:
    """How well a model denoises a batch, see `check_model`.

    Attributes:
        noise: sigma / alpha of each level, increasing.
        errors: the mean square of a coordinate of D(x_t) - x_0 at each.
        guesses: the error of the linear denoiser that uses only the mean and the variance v of a
            coordinate, v r^2 / (v + r^2) at sigma / alpha = r.
        verdict: the conclusion, in words.
        fits: whether the model denoises the batch as it should.

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
        """Errors over guesses: below 1 for a trained model, 1 + r^2 / v for one that returns x."""
        return tuple(error / guess for error, guess in zip(self.errors, self.guesses, strict=True))

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return max(self.ratios)

    @property
    def score(self) -> float:
        """The geometric mean of the ratios, each at least 0.001, below which rounding would
        dominate.
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
    """Checks that a model denoises a batch of data; if not, names the likely mistake.

    The noise is 0.1 to 5 times the standard deviation of the data.

    The mean of x_0 given x_t is at least as close to x_0 as any linear function of x_t, and closer
    than the same network with another meaning of its output, another label of time or another range
    of the data. These are tried, one change at a time: about a hundred evaluations of the batch.

    Arguments:
        model: a trained `ScoreModel`, a `GaussianMixture`, or a plain score `(x, t)` with sde=.
        x: data of the kind that it was trained on, floating, `(batch, *shape)`; 16 images are
            enough, or 500 points.
        sde: the diffusion; the model's own unless given.
        seed: of the noise.
        throw: False to return the verdict on a wrong model instead of raising it. Networks with a
            table of labels may be evaluated at labels that do not exist: check these on the CPU.

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
    found = _checked(model, x, diffusion, seed, ())
    if throw and not found.fits:
        raise ValueError(found.verdict)
    return found


def checked(
    model: ScoreModel, x: Tensor | None, readings: Iterable[tuple[str, ScoreModel]]
) -> ScoreModel:
    """The model itself, if it denoises x or there is none to try; readings are what else it may be,
    and how to say so.

    Raises:
        TypeError, ValueError: as `check_model`.
    """
    if x is not None:
        found = _checked(model, x, model.sde, 0, readings)
        if not found.fits:
            raise ValueError(found.verdict)
    return model


def _checked(
    model: AbstractModel,
    x: Tensor,
    sde: AbstractDiffusion,
    seed: int,
    readings: Iterable[tuple[str, ScoreModel]],
) -> ModelCheck:
    require_tensor("x", x)
    if not x.is_floating_point():
        raise TypeError(
            f"x must be floating, in the range that the model has learned, not {x.dtype}; scale "
            "it, or use .float()"
        )
    if model.shape is not None and tuple(x.shape[1:]) != tuple(model.shape):
        raise ValueError(
            f"x has shape {tuple(x.shape)}; this model needs (batch, "
            f"{', '.join(map(str, model.shape))})"
        )
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    with torch.no_grad(), evaluating(model, len(x)):
        return _judged(model, x, sde, seed, readings)


def _judged(
    model: AbstractModel,
    x: Tensor,
    sde: AbstractDiffusion,
    seed: int,
    readings: Iterable[tuple[str, ScoreModel]],
) -> ModelCheck:
    failure = None
    others = {}
    noise = _noise(x, model, sde)
    try:
        given = _errors(model, x, sde, seed)
    except _REFUSALS as error:  # over labels it was not made for, perhaps
        failure = error
        given = ModelCheck(noise, (math.inf,) * len(noise), (1.0,) * len(noise))
    changed = [(change, other, x, other.sde) for change, other in readings]
    for change, other, points, under in [
        *changed,
        *((*change, sde) for change in _alternatives(model, x)),
    ]:
        try:
            others[change] = _errors(other, points, under, seed)
        except _REFUSALS:
            continue
    at = given.noise[given.ratios.index(given.worst)]
    said = (
        f"at sigma / alpha = {at:.3g} its error is {given.worst:.3g} times that of a guess from "
        "mean and deviation"
    )
    if failure is not None:
        said = f"its network fails with {type(failure).__name__}: {failure}"
    least = min((other.score for other in others.values()), default=math.inf)
    alike = [change for change, other in others.items() if other.score <= _ALIKE * least]
    best = min(
        alike, key=lambda change: (change.startswith(_SEVERAL), others[change].score), default=""
    )
    if best and others[best].score < min(_NAMED, given.score / _GAIN):
        gain = f"on average {others[best].score:.3g} times" + (
            f" that of the guess instead of {given.score:.3g} times"
            if failure is None
            else " that of the guess"
        )
        return replace(
            given,
            verdict=f"the model does not denoise x: {said}. With {best} it is {gain}",
            fits=False,
        )
    if failure is not None:
        raise failure
    if given.score <= _PASSES and given.worst <= _BROKEN:
        return replace(given, verdict=f"the model denoises x: {said}, and nowhere more", fits=True)
    why = (
        "no single change of predicts, conditioning or the range of x explains it; it may be "
        "untrained, or of other data"
    )
    return replace(given, verdict=f"the model does not denoise x: {said}, and {why}", fits=False)


def _noise(x: Tensor, model: AbstractModel, sde: AbstractDiffusion) -> tuple[float, ...]:
    """The levels sigma / alpha that lie within the diffusion's range."""
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
            f"{sde} has no noise between 0.1 and 5 times the deviation of x, "
            f"{math.sqrt(variance):.3g}; scale x"
        )
    return noise


def _errors(model: AbstractModel, x: Tensor, sde: AbstractDiffusion, seed: int) -> ModelCheck:
    """Errors on x, repeated until there are numbers enough."""
    noise = _noise(x, model, sde)
    variance = float(x.double().var(correction=0))
    errors = []
    rows = torch.arange(len(x), device=x.device).repeat(-(-_NUMBERS // x.numel()))
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


class _Negative(nn.Module):
    """-net(x, t)."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:  # noqa: ANN401 - whatever the network takes
        return -self.net(x, t, **conditions)


def _alternatives(model: AbstractModel, x: Tensor) -> Iterator[tuple[str, AbstractModel, Tensor]]:
    """Models and data with one convention changed, and the change in words."""
    for change, points in _rescaled(x, getattr(model, "data_range", None)):
        yield change, model, points
    if not isinstance(model, ScoreModel):
        return
    for predicts in get_args(Prediction):
        if predicts not in (model.predicts, _OPPOSITE.get(model.predicts)):
            yield (
                f"predicts={predicts!r}",
                _variant(model, model.net, predicts, model.conditioning),
                x,
            )
    opposite = f" (predicts={_OPPOSITE[model.predicts]!r})" if model.predicts in _OPPOSITE else ""
    yield (
        f"the opposite sign of the output{opposite}",
        _variant(model, _Negative(model.net), model.predicts, model.conditioning),
        x,
    )
    for n in (1, 1000):
        usual = ScoreModel(
            model.net, "flow", "reverse_flow", conditioning=(-n, n), data_std=model.data_std
        )
        change = (
            f"{_SEVERAL}predicts='reverse_flow' and conditioning=({-n}, {n}), flow matching with "
            "time from noise to data,"
        )
        yield change, usual.given(**model.conditions), x
    for conditioning in _labels(model):
        label = (
            repr(conditioning)
            if isinstance(conditioning, str)
            else (f"({conditioning[0]:g}, {conditioning[1]:g})")
        )
        yield f"conditioning={label}", _variant(model, model.net, model.predicts, conditioning), x


def _variant(
    model: ScoreModel, net: Callable[..., Tensor], predicts: Prediction, conditioning: Conditioning
) -> ScoreModel:
    new = ScoreModel(net, model.sde, predicts, conditioning=conditioning, data_std=model.data_std)
    return new.given(**model.conditions)


def _labels(model: ScoreModel) -> list[Conditioning]:
    """The other labels that a network may have been trained with: names, steps or levels counted up
    or down, time reversed.
    """
    sde = model.sde
    counted: list[Conditioning] = []
    try:
        n = len(sde.levels)
    except ValueError:
        n = 1000  # as many as most networks count where the diffusion has none
        counted = [(-n, n * sde.T)]
    a, b = model.conditioning if isinstance(model.conditioning, tuple) else (1.0, 0.0)
    known: list[Conditioning] = ["time", "sigma", "log_snr", (n, -1), (n - 1, 0), (1 - n, n - 1)]
    known += [(-1, sde.T), (-a, a * sde.T + b), *counted]
    return [label for label in dict.fromkeys(known) if label != model.conditioning]


def _rescaled(x: Tensor, wanted: tuple[float, float] | None) -> Iterator[tuple[str, Tensor]]:
    """x moved from the narrowest of the usual ranges that holds it to the others, or to the model's
    own.
    """
    least = float(x.min())
    most = float(x.max())
    for low, high in _RANGES:
        slack = 0.01 * (high - low)
        if low - slack <= least and most <= high + slack:
            for a, b in _RANGES[:2] if wanted is None else (wanted,):
                if (a, b) != (low, high):
                    scaled = a + (b - a) * (x - low) / (high - low)
                    yield f"x moved from [{low:g}, {high:g}] to [{a:g}, {b:g}]", scaled
            return
