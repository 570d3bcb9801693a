"""Checks of models, data and recipes before training."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sdekit import did_you_mean
from sdekit_diffusion._models.condition_values import is_single
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._storage.distributed import world
from sdekit_diffusion._training.loss import require_huber, require_levels
from sdekit_diffusion._training.recipe import Recipe
from sdekit_diffusion.data._batches import (
    GIVEN_LEVEL,
    GIVEN_NOISE,
    AbstractSource,
    Batch,
    Shuffled,
    given_draws,
)
from sdekit_diffusion.nets._conditions import Conditions


def require_trainable(model: ScoreModel, recipe: Recipe) -> None:
    """Refuses models without weights to train or with conditions per sample, and batches of too few
    samples.

    Raises:
        TypeError, ValueError: as `Training`.
    """
    if next(model.parameters(), None) is None:
        raise TypeError("this model's network is a plain function and has no weights to train")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "all weights of this model are frozen: call requires_grad_() on the model, or on the "
            "layers to train"
        )
    _require_single(model)
    parts = world() * recipe.accumulate
    if recipe.batch_size < parts:
        raise ValueError(
            f"a batch of {recipe.batch_size} cannot be taken in {parts} parts; raise batch_size"
        )


def require_gradients() -> None:
    """Refuses to train where torch records no gradients.

    Raises:
        RuntimeError: says where not to train.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "gradients are not recorded here, so nothing can be trained: leave out torch.no_grad() "
            "and torch.inference_mode() around fit and Training"
        )


def _require_single(model: ScoreModel) -> None:
    """Refuses conditions of the model that may have one entry per sample: all but single values."""
    for name, value in model.conditions.items():
        if not is_single(value):
            raise ValueError(
                f"the model was given {name}, a {type(value).__name__} that may hold one entry per "
                "sample; training shuffles the rows of the data and would pair them with the "
                "entries of others. Conditions are part of the data: fit(model, {'x': x, "
                f"'{name}': {name}}})"
            )


def require_rows(rows: Tensor, model: ScoreModel, recipe: Recipe, transformed: bool) -> None:
    """Refuses rows of data that do not fit this model and recipe, and weights of half precision.

    Raises:
        TypeError, ValueError: as `Training`.
    """
    shape = tuple(rows.shape[1:])
    if recipe.flip and rows.ndim != 4:
        raise ValueError(
            f"only images (C, H, W) can be flipped, not samples of shape {shape}; leave out flip"
        )
    require_floating(rows, transformed)
    dtype = model.place()[0]
    if dtype.itemsize < 4:
        raise ValueError(
            f"small updates vanish in weights of {dtype}; use model.float(), and "
            "precision='bfloat16' with it"
        )
    if recipe.precision == "bfloat16" and dtype == torch.float64:
        raise ValueError(
            "products of float64 are not taken in bfloat16; use model.float(), or precision='full'"
        )
    if recipe.discrete:
        len(model.sde.levels)  # refuses where there are none
    if model.shape is not None and shape != model.shape:
        raise ValueError(
            f"samples of shape {shape} do not fit a model of samples of shape {model.shape}"
        )


def require_floating(rows: Tensor, transformed: bool) -> None:
    """Refuses integers that no transform brings to the scale of the model.

    Raises:
        TypeError: says what to pass.
    """
    if not transformed and not rows.is_floating_point():
        raise TypeError(
            f"data of {rows.dtype} need transform=, such as a data set's scale.encode; or scale "
            "them and use .float()"
        )


def require_count(samples: Batch, count: int) -> None:
    """Refuses a batch of a source with another number of samples than it was asked for.

    Raises:
        ValueError: says how many.
    """
    if len(samples.x) != count:
        raise ValueError(
            f"the source gave {len(samples.x)} samples where {count} were asked for: "
            "batches(size, part=...) yields size samples, or those of the part, each time"
        )


def require_conditions(rows: Batch, model: ScoreModel, recipe: Recipe) -> None:
    """Refuses data with conditions that the network does not take, data without a condition that it
    takes, drop probabilities for other conditions, flips of samples with images as conditions, and
    settings that data with noise or levels of their own exclude.

    Raises:
        ValueError: as `Training`.
    """
    conditions = rows.conditions
    names = model.condition_names()
    draws = given_draws(names)
    _require_recipe(recipe, [name for name in conditions if name in draws])
    for name in conditions.keys() - set(draws):
        if names is not None and name not in names:
            raise ValueError(
                f"the data have the condition {name!r} and the network takes "
                f"{', '.join(names) or 'none'}{did_you_mean(name, names)}"
            )
        if name in model.conditions:
            raise ValueError(
                f"{name} is given by the data, and to the model by given(): leave out one of them"
            )
    require_given(conditions, model)
    if recipe.flip:
        _require_no_images(rows, draws)
    recipe.drop_of([name for name in conditions if name in model.null])


def _require_no_images(rows: Batch, draws: Sequence[str]) -> None:
    """Refuses conditions that are images, `(batch, C, H, W)` or of the height and width of x, which
    would not be mirrored with their samples.

    Raises:
        ValueError: names the condition.
    """
    for name, value in rows.conditions.items():
        image = value.ndim == 4 or (value.ndim == 3 and value.shape[-2:] == rows.x.shape[-2:])
        if image and name not in draws:
            raise ValueError(
                f"flip mirrors the samples and not {name}, an image of each sample of shape "
                f"{tuple(value.shape[1:])}: leave out flip, and add the mirrored pairs to the data "
                "if they are wanted"
            )


def _require_recipe(recipe: Recipe, draws: Sequence[str]) -> None:
    """Refuses settings that do not go with data that have noise or levels of their own.

    Raises:
        ValueError: says which.
    """
    if recipe.flip and GIVEN_NOISE in draws:
        raise ValueError("images with noise of their own are not flipped; leave out flip")
    drawn = recipe.discrete or recipe.stratified or recipe.density is not None
    if drawn and GIVEN_LEVEL in draws:
        raise ValueError(
            "the data have their own noise levels, log_snr: leave out discrete, stratified and "
            "density, which say how levels are drawn"
        )
    require_huber(recipe.huber, {GIVEN_NOISE, GIVEN_LEVEL} <= set(draws))


_MOST_LEVELS = 64  # noise levels of a distilled model that are recorded


def trained_levels(source: AbstractSource, rows: Batch, model: ScoreModel) -> tuple[float, ...]:
    """The noise levels log(alpha / sigma) of data that come with them, if there are at most 64
    different ones and all are known before the first batch; else empty. `rows` are some of the
    source.

    Raises:
        ValueError: for levels that the diffusion of the model does not have; or when the model does
            not know its data_std, which cannot be computed from data at given levels.
    """
    if not has_levels(rows, model):
        return ()
    known = source.conditions[GIVEN_LEVEL][:] if isinstance(source, Shuffled) else None
    levels = torch.as_tensor(rows.conditions[GIVEN_LEVEL] if known is None else known).double()
    require_levels(levels, model.sde)
    if model.data_std is None:
        raise ValueError(
            "the model does not know the standard deviation of its data, which is not that of data "
            "at given noise levels: pass ScoreModel(..., data_std=teacher.data_std)"
        )
    distinct = levels.unique().tolist()
    return tuple(distinct) if known is not None and len(distinct) <= _MOST_LEVELS else ()


def has_levels(rows: Batch, model: ScoreModel) -> bool:
    """Whether samples come with noise levels, which are not a condition of the network."""
    return GIVEN_LEVEL in rows.conditions and GIVEN_LEVEL in given_draws(model.condition_names())


def require_fitting(source: AbstractSource, rows: Batch, model: ScoreModel, count: int) -> None:
    """Refuses conditions of a dtype or shape that a network of `nets` does not take, and labels
    that are not its classes, where all labels are known before the first batch. `rows` are some of
    the source, and `count` is the number of samples that messages name where it is not known.

    Raises:
        TypeError, ValueError: says what the network takes.
    """
    layers = getattr(model.net, "conditions", None)
    if not isinstance(layers, Conditions):
        return
    n = len(source.rows) if isinstance(source, Shuffled) else count
    some = {name: rows.conditions[name] for name in ("label", "context") if name in rows.conditions}
    shapes = {
        name: torch.empty((n, *value.shape[1:]), dtype=value.dtype, device="meta")
        for name, value in some.items()
    }
    layers.require(torch.empty((n, 1), device="meta"), **shapes)
    label = source.conditions.get("label") if isinstance(source, Shuffled) else None
    if isinstance(label, Tensor | np.ndarray):
        known = label if isinstance(label, Tensor) else torch.from_numpy(np.array(label))
        layers.require_classes(known)


def never_dropped(
    conditions: Mapping[str, Tensor], model: ScoreModel, recipe: Recipe
) -> tuple[str, ...]:
    """The conditions with a null value that are never dropped in training."""
    names = [name for name in conditions if name in model.null]
    drops = recipe.drop_of(names)
    return tuple(name for name in names if not drops.get(name, 0.0))


def require_given(conditions: Mapping[str, Tensor], model: ScoreModel) -> None:
    """Refuses data without a condition that the network was built for.

    Raises:
        ValueError: says which.
    """
    missing = [name for name in model.null if name not in {**conditions, **model.conditions}]
    if missing and model.given_null is None:
        raise ValueError(
            f"the network was built for {', '.join(missing)} and the data have none: give them, as "
            f"in fit(model, {{'x': x, '{missing[0]}': ...}}), or leave it out of the network"
        )
