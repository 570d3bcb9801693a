"""The labels of samples: the condition of a network that they are, and models that receive them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit_diffusion._app.options import Guidance, Labelling
from sdekit_diffusion._loading.load import config_folder
from sdekit_diffusion._models.checkpoint import read_config
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.data._given import label_name

NOTE = "label"  # in the notes on the data of a run: the condition that the labels are
_MOST_ROWS = 10  # classes of a picture
_IMAGES = 8  # samples of each class in a picture
_POINTS = 200


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of samples: sample i has values[i mod len(values)].

    Attributes:
        name: the name of the network's condition.
        values: integers, `(k,)`.
    """

    name: str
    values: Tensor

    def of(self, count: int, first: int = 0) -> Tensor:
        """The labels of samples first, ..., first + count - 1."""
        return self.values[torch.arange(first, first + count) % len(self.values)]

    def rows(self, continuous: bool) -> tuple["Labels", list[str]]:
        """Labels for a picture with a row of samples for each class, and the names of the rows."""
        classes = self.values.unique()[:_MOST_ROWS]
        repeated = classes.repeat_interleave(_POINTS if continuous else _IMAGES)
        return Labels(self.name, repeated), [str(k) for k in classes.tolist()]


def class_count(source: Dataset) -> int:
    """The number of classes of a data set with labels: the largest label plus one.

    Raises:
        ValueError: when it has no labels, or they are not numbered from 0.
    """
    if source.labels is None:
        raise ValueError(
            f"{source.name} has no labels: leave out --labels, or give data that have them, such "
            "as digits, an .npz file with the array labels, or a folder of images with a "
            "sub-folder for each class"
        )
    parts = [part for part in (source.labels, source.test_labels) if part is not None]
    least = min(int(part.min()) for part in parts)
    largest = max(int(part.max()) for part in parts)
    samples = len(source.labels)
    if least < 0 or largest >= samples:
        raise ValueError(
            f"the labels of {source.name} run from {least} to {largest}, of {samples} training "
            "samples; number the classes from 0"
        )
    return largest + 1


def label_to_train(model: ScoreModel, source: Dataset) -> str | None:
    """The name of the network's condition that receives the labels of the data; None without
    labels.

    Raises:
        ValueError: when the network does not take them, or needs them.
    """
    name = _label_of(model)
    if source.labels is None:
        if name in [*model.null] and model.given_null is None:
            raise ValueError(
                "this network takes labels: add --labels, with --data that have them; or choose "
                "another --network"
            )
        return None
    if name is None:
        raise ValueError(
            "this network takes no labels: leave out --labels, or choose another --network, such "
            "as MLP, UNet or DiT"
        )
    return name


def _label_of(model: ScoreModel) -> str | None:
    """The name of the network's condition that is a class; None where it has none."""
    name = label_name(model.condition_names())
    # NaN stands for an unknown context or image.
    return None if name is None or math.isnan(model.null.get(name, 0.0)) else name


def held_out(source: Dataset, name: str | None, advice: str) -> Labels | None:
    """The labels of held-out samples as the condition `name`; None where there is no such one.

    Raises:
        ValueError: when they have none; it ends with the advice.
    """
    if name is None:
        return None
    if source.test_labels is None:
        raise ValueError(
            f"the network takes labels, and the held-out samples of {source.name} have none: "
            f"{advice}"
        )
    return Labels(name, source.test_labels)


def required(run: Path, model: ScoreModel, source: Dataset, labelling: Labelling) -> Labels | None:
    """The labels of held-out samples for the model of a run; None where it was trained without, or
    is to be used without.

    Raises:
        ValueError: when they have no labels, or classes that the network does not know; or when the
            model cannot be used without labels, or only without.
    """
    name = _trained_with(run, model)
    if labelling.unconditional:
        if name is None:
            raise ValueError("this model has no labels: leave out --unconditional")
        _require_dropped(run, name)
        return None
    labels = held_out(source, name, "give --data that have them, or add --unconditional")
    if labels is not None:
        _require_classes(model, labels.values.tolist(), f"the labels of {source.name} have")
    return labels


def _trained_with(run: Path, model: ScoreModel) -> str | None:
    """The name of the condition that receives labels; None for a model trained without labels."""
    name = _label_of(model)
    data_notes = _notes(run).get("data")
    noted = data_notes.get(NOTE) if isinstance(data_notes, Mapping) else None
    # Other arguments of a network may be anything.
    return name if name in [*model.null, noted] else None


def chosen(run: Path, model: ScoreModel, label: Sequence[int], guidance: Guidance) -> Labels | None:
    """The labels of samples, which they have in turn; None for samples without labels.

    Raises:
        ValueError: when the model has no labels or not these, or guidance has no label to follow
            or no unconditional model to compare with.
    """
    name = _label_of(model)
    if not label:
        require_guidance(run, model, None, guidance)
        if name is not None and name in model.null:
            _require_dropped(run, name)
        return None
    if name is None:
        raise ValueError(
            "this model has no labels: leave out --label, or train one that has them, with "
            "train --labels"
        )
    _require_classes(model, label, "--label has")
    labels = Labels(name, torch.tensor(label))
    require_guidance(run, model, labels, guidance)
    return labels


def require_guidance(
    run: Path, model: ScoreModel, labels: Labels | None, guidance: Guidance
) -> None:
    """Refuses guidance without labels, guidance by an unconditional model that was never trained,
    and numbers out of range.

    Raises:
        ValueError: says what to do.
    """
    if guidance.guidance == 1:
        return
    if labels is None:
        raise ValueError(
            "guidance follows labels, and there are none: leave out --guidance, or sample a model "
            "with labels with --label and a class, or several"
        )
    _require_dropped(run, labels.name)
    guidance.of(given(model, labels, 1))  # refuses


def given(model: ScoreModel, labels: Labels | None, count: int, first: int = 0) -> ScoreModel:
    """The model of samples first, ..., first + count - 1, with their labels if there are any."""
    if labels is None:
        return model
    return model.given(**{labels.name: labels.of(count, first).to(model.place()[1])})


def drawn(
    model: ScoreModel, labels: Labels | None, guidance: Guidance, count: int, first: int = 0
) -> AbstractModel:
    """The model that samples first, ..., first + count - 1 are drawn from."""
    return guidance.of(given(model, labels, count, first))


def settings(labels: Labels | None, guidance: Guidance) -> dict[str, Any]:
    """What samples depend on besides the sampler, as JSON; nothing without labels."""
    return {} if labels is None else {"label": labels.values.tolist(), **guidance.settings()}


def sentence(labels: Labels | None, guidance: Guidance) -> str:
    """The labels and the guidance of samples, as the end of a sentence."""
    if labels is None:
        return ""
    classes = labels.values.tolist()
    kind = f"label {classes[0]}" if len(classes) == 1 else f"labels {', '.join(map(str, classes))}"
    return f"; {kind}{' in turn' if len(classes) > 1 else ''}, guidance {guidance.guidance:g}"


def of_likelihood(model: ScoreModel, labels: Labels | None, guidance: Guidance) -> list[str]:
    """The law to which a likelihood belongs, for a model with labels, as text."""
    if labels is not None and guidance.guidance != 1:
        guided = f"the flow guided by {guidance.guidance:g} towards the label of each sample"
        return [f"this is log p(x) of the law of {guided}"]
    if labels is not None:
        return ["this is log p(x | label), each sample with its own label"]
    return (
        ["this is log p(x), of samples without their labels"]
        if _label_of(model) in [*model.null]
        else []
    )


def _require_classes(model: ScoreModel, label: Sequence[int], what: str) -> None:
    """Refuses classes that the network is known not to have."""
    classes = _known_classes(model)
    least = min(label)
    largest = max(label)
    if least < 0 or (classes is not None and largest >= classes):
        known = "from 0 on" if classes is None else f"0 to {classes - 1}"
        values = str(least) if least == largest else f"values from {least} to {largest}"
        raise ValueError(f"{what} {values}; the classes of this model are {known}")


def _known_classes(model: ScoreModel) -> int | None:
    """The number of classes of a network, None where it does not say."""
    config = getattr(model.net, "config", None)
    return config.get("classes") if isinstance(config, dict) else None


def all_classes(run: Path, model: ScoreModel) -> tuple[int, ...]:
    """The classes of a model that was trained with labels; none where their number is unknown."""
    known = None if _trained_with(run, model) is None else _known_classes(model)
    return tuple(range(known or 0))


def is_dropped(run: Path, name: str) -> bool:
    """Whether a model may be used without its labels: some were dropped when it was trained."""
    recipe = _notes(run).get("recipe")
    drop = recipe.get("drop") if isinstance(recipe, Mapping) else None
    drop = drop.get(name, 0.0) if isinstance(drop, Mapping) else drop
    return drop != 0


def _require_dropped(run: Path, name: str) -> None:
    """Refuses to use a model without labels if it was never trained without them."""
    if not is_dropped(run, name):
        raise ValueError(
            "this model was trained with drop = 0 and knows samples with labels only: use it with "
            "labels and without guidance, or train one with --drop 0.1"
        )


def _notes(run: Path) -> Mapping[str, Any]:
    """The notes of a run."""
    notes = read_config(config_folder(run)).get("notes")
    return notes if isinstance(notes, Mapping) else {}
