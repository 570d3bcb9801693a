"""Recipes: all settings of a training run on which the weights depend."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import torch

from sdekit import did_you_mean
from sdekit_diffusion._arguments.inputs import is_number, is_whole
from sdekit_diffusion._models.prediction import Prediction
from sdekit_diffusion._training.densities import (
    AbstractDensity,
    AbstractLogSNRDensity,
    Density,
)
from sdekit_diffusion._training.loss import density_of, require_density, require_huber, weight_of
from sdekit_diffusion._training.loss_weights import AbstractWeight, Weighting, default_weighting
from sdekit_diffusion._training.profiles import exponent

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["full", "bfloat16"]

VALUES = "at l = -4, 0, 4"  # in the settings of a weight or a density that is an object


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run: AdamW, with a linear warm-up of the learning rate and then a
    schedule, and exponential moving averages of the weights.

    Attributes:
        steps: the number of updates.
        batch_size: the number of samples in a batch, over all processes together.
        accumulate: the number of parts in which each process computes its share of a batch, one
            after the other, to save memory.
        lr: the highest learning rate.
        warmup: the number of updates in which the learning rate rises to lr; half of the steps
            where that is not below steps.
        schedule: of the learning rate afterwards: "cosine" or "linear", both of which decrease to
            0, or "constant".
        clip: the largest norm of the gradient; larger gradients are scaled down to it.
        ema: the decay of the averaged weights, which rises to this value as min(ema, (1 + n) /
            (10 + n)) with the number n of updates; or several, the first of which gives the weights
            of the trained model.
        widths: the relative widths of averages that are stored during the run, such as (0.05, 0.1);
            from them `load(folder, width=...)` computes the average of any width after the run. See
            `Log.snapshots`.
        weighting: of the noise levels, see `dsm_loss`: plain, likelihood, edm, velocity, min_snr,
            balanced, data, sigmoid, or in Python an `AbstractWeight`. Unless given, "velocity" for
            a network that predicts the velocity at levels that are not discrete, "balanced" for one
            that predicts the data, and "plain" for others.
        density: of the noise levels, see `dsm_loss`: time, uniform, log_normal, logistic, or in
            Python an `AbstractDensity`; that of the weighting unless given.
        stratified: spread the noise levels evenly over successive samples, see `dsm_loss`.
        discrete: train only the discrete levels of `DDPM` and `NCSN`, see `dsm_loss`.
        end: sigma / alpha at the smallest noise that is trained, divided by the standard deviation
            of the data.
        huber: the width c of the pseudo-Huber loss for students, such as 1e-3, and 0 for the
            square of the error, see `dsm_loss`; needs data with noise and log_snr of each sample.
        drop: the probability with which a condition is replaced by the null value of the network,
            so that guidance has an unconditional model to compare with: a number for all conditions
            with a null value, or a dictionary of numbers by name.
        flip: mirror images left to right, each with probability 1/2 whenever it is used;
            not where a condition is an image too.
        precision: "full", the precision of the weights; or "bfloat16", autocast of the network,
            with the weights in their own precision.
        compile: compile the network with torch.compile; where that fails, a warning is raised and
            training continues without it.
        seed: of batches, flips, times, noise, dequantisation, dropped conditions and dropout.

    Raises:
        ValueError: for a setting out of range, an unknown name, a count that is not a whole number,
            or settings that exclude each other, see `dsm_loss`.
        TypeError: for a switch that is not True or False, or a weighting or a density that is
            neither a name nor such an object.

    Example:
        >>> recipe = sd.Recipe(steps=5000, batch_size=256, lr=1e-3, ema=(0.999, 0.9999))
        >>> recipe.steps
        5000
    """

    steps: int = 1500
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 2e-3
    warmup: int = 100
    schedule: Schedule = "cosine"
    clip: float = 1.0
    ema: float | tuple[float, ...] = 0.999
    widths: tuple[float, ...] = ()
    weighting: Weighting | None = None
    density: Density | None = None
    stratified: bool = False
    discrete: bool = False
    end: float = 1e-3
    huber: float = 0.0
    drop: float | dict[str, float] = 0.1
    flip: bool = False
    precision: Precision = "full"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self._convert()
        for name, smallest in (("steps", 1), ("batch_size", 1), ("accumulate", 1), ("warmup", 0)):
            if not is_whole(getattr(self, name), smallest):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} must be a whole number from {smallest} on"
                )
        if not is_whole(self.seed):
            raise ValueError(f"seed = {self.seed!r} must be a whole number")
        for name in ("lr", "clip", "end"):
            value = getattr(self, name)
            finite = is_number(value) and (value < math.inf or name == "clip")
            if not (finite and value > 0):
                raise ValueError(f"{name} = {value!r} must be positive, a number such as 1e-3")
        require_huber(self.huber, exact=True)
        weighting = "plain" if self.weighting is None else self.weighting
        weight_of(weighting)
        if self.density is not None:
            density_of(self.density)
        require_density(weighting, self.density, self.discrete)
        for name, choices in (("schedule", Schedule), ("precision", Precision)):
            value = getattr(self, name)
            if value not in (allowed := get_args(choices)):
                raise ValueError(
                    f"{name} = {value!r} must be one of "
                    f"{', '.join(map(repr, allowed))}{did_you_mean(value, allowed)}"
                )
        self._require_probabilities()
        for width in self.widths:
            exponent(width)

    def _convert(self) -> None:
        """Converts numbers of numpy and torch to those of Python, which can be written as JSON."""
        for field in fields(self):
            value = _plain(getattr(self, field.name))
            if field.type is bool and not isinstance(value, bool):
                raise TypeError(f"{field.name} = {value!r} must be True or False")
            if field.type is float and is_number(value):
                value = float(value)
            object.__setattr__(self, field.name, value)
        for name in ("ema", "widths"):
            value: Any = getattr(self, name)
            several = isinstance(value, Iterable) and not isinstance(value, str)
            given: tuple[Any, ...] = tuple(map(_plain, value)) if several else (value,)
            if not all(map(is_number, given)):
                raise ValueError(f"{name} = {value!r} must be numbers, such as 0.1 or (0.05, 0.1)")
            numbers = tuple(map(float, given))
            object.__setattr__(self, name, numbers if several or name == "widths" else numbers[0])
        if isinstance(self.drop, Mapping):
            object.__setattr__(self, "drop", {k: _plain(p) for k, p in self.drop.items()})

    def _require_probabilities(self) -> None:
        """Refuses decays and probabilities that are out of range."""
        if not all(is_number(p) and 0 <= p <= 1 for p in self._drops().values()):
            raise ValueError(f"drop = {self.drop!r} must be a probability, or one for each name")
        if not (self.decays and all(0 <= decay < 1 for decay in self.decays)):
            raise ValueError(f"ema = {self.ema!r} must be one or more decays in [0, 1)")

    def suited(self, predicts: Prediction) -> Self:
        """The recipe with the default weighting and density for what a network predicts, such as
        "velocity", where none are given.
        """
        weighting = self.weighting
        if weighting is None:
            weighting = default_weighting(predicts, discrete=self.discrete)
        density = None if self.discrete else self.density or weight_of(weighting).density
        return replace(self, weighting=weighting, density=density)

    def settings(self) -> dict[str, Any]:
        """All settings as values of JSON. A weight or a density that is an object is represented by
        its class, its fields and its values at three noise levels.
        """
        objects = {
            name: {"class": type(value).__name__, **asdict(value), VALUES: _values(value)}
            for name in ("weighting", "density")
            if isinstance(value := getattr(self, name), AbstractWeight | AbstractDensity)
        }
        return asdict(self) | objects

    def _drops(self) -> dict[str, float]:
        """The probabilities of `drop` by name; a number for all conditions has the name ""."""
        given: Any = self.drop
        return dict(given) if isinstance(given, Mapping) else {"": given}

    def drop_of(self, names: Sequence[str]) -> dict[str, float]:
        """The probability with which each condition is dropped, by name.

        Arguments:
            names: the conditions with a null value.

        Raises:
            ValueError: when `drop` has a probability for another name.
        """
        drops = self._drops()
        if "" in drops:
            return dict.fromkeys(names, drops[""])
        for name in drops:
            if name not in names:
                raise ValueError(
                    f"drop has a probability for {name!r}, which is not a condition with a null "
                    f"value; these are: {', '.join(names) or 'none'}"
                )
        return drops

    @property
    def decays(self) -> tuple[float, ...]:
        """The decays of `ema`, one or several."""
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)

    def rate(self, step: int) -> float:
        """The learning rate of update number `step`, counted from 0."""
        warmup = self.warmup if self.warmup < self.steps else self.steps // 2
        if step < warmup:
            return self.lr * (step + 1) / warmup
        fraction = min(1.0, (step - warmup) / max(1, self.steps - warmup))
        return (
            self.lr
            * {
                "cosine": 0.5 * (1 + math.cos(math.pi * fraction)),
                "linear": 1 - fraction,
                "constant": 1.0,
            }[self.schedule]
        )


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A number of numpy or torch as one of Python; other values as they are."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _values(function: AbstractWeight | AbstractDensity) -> list[str]:
    """A weight, or the distribution function of a density of l, at the levels of `VALUES`."""
    l = torch.tensor([-4.0, 0.0, 4.0], dtype=torch.float64)
    if isinstance(function, AbstractWeight):
        return [f"{value:.6g}" for value in function.weight(l).tolist()]
    if isinstance(function, AbstractLogSNRDensity):
        return [f"{value:.6g}" for value in function.cdf(l).tolist()]
    return []


def recipe_given(recipe: object) -> Recipe:
    """The recipe that a user passes; `Recipe()` for None.

    Raises:
        TypeError: for anything else, such as labels.
    """
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    raise TypeError(
        "recipe is a Recipe, such as Recipe(steps=1500, batch_size=128), not "
        f"{type(recipe).__name__}: the number of updates is its steps; labels go with the data, as "
        "in fit(model, (X, y))"
    )
