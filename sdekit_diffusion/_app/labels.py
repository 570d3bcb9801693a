"""The labels and other conditions of samples, and models that receive them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit_diffusion._app import trained
from sdekit_diffusion._app.condition_options import NOTE as CONDITIONS
from sdekit_diffusion._app.condition_options import Column, recorded, values
from sdekit_diffusion._app.options import Guidance, Labelling
from sdekit_diffusion._loading.load import config_folder
from sdekit_diffusion._models.checkpoint import read_config
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._storage.shards import digest
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.data._batches import Rows
from sdekit_diffusion.data._dataset import entries_of
from sdekit_diffusion.data._given import label_name

NOTE = "label"  # in the notes on the data of a run: the condition that the labels are
_MOST_ROWS = 10  # classes of a picture
_IMAGES = 8  # samples of each class in a picture
_POINTS = 200


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditions of samples: sample i has entry i mod k of a condition with k entries.

    Attributes:
        values: the entries, `(k, ...)`, by the names of the network's conditions.
        label: the name of the one that is the class; None without.
        chosen: the names of those that are values of --conditions, not of held-out samples.
    """

    values: Mapping[str, Tensor]
    label: str | None = None
    chosen: Collection[str] = ()

    def of(self, count: int, first: int = 0) -> dict[str, Tensor]:
        """The conditions of samples first, ..., first + count - 1."""
        numbers = torch.arange(first, first + count)
        return {name: values[numbers % len(values)] for name, values in self.values.items()}

    def others(self) -> dict[str, Tensor]:
        """The conditions besides the class."""
        return {name: values for name, values in self.values.items() if name != self.label}

    def sources(self) -> dict[str, str]:
        """Whose the conditions of samples are, as text, by name; that of the class is label."""
        names = {"label": self.label} if self.label else {}
        names |= {name: name for name in self.others()}
        return {
            word: "of --conditions" if name in self.chosen else "of the held-out sample"
            for word, name in names.items()
        }

    def rows(self, label: str, continuous: bool) -> tuple["Conditions", list[str]]:
        """Conditions for a picture with a row of samples for each class, and the names of the
        rows.
        """
        labels = self.values[label]
        return by_class(label, labels, self.of(len(labels)), continuous)


def by_class(
    name: str, labels: Tensor, conditions: Mapping[str, Rows], continuous: bool
) -> tuple[Conditions, list[str]]:
    """The conditions of a picture with a row for each class, each with conditions of samples of
    that class; and the names of the rows.

    Arguments:
        name: of the network's condition that is the class.
        labels: the classes of samples, `(n,)`.
        conditions: of the same samples, by name.
        continuous: whether rows are of points and not of images.
    """
    classes = labels.unique()[:_MOST_ROWS]
    size = _POINTS if continuous else _IMAGES
    members = [(labels == k).nonzero()[:, 0] for k in classes]
    index = torch.cat([rows[torch.arange(size) % len(rows)] for rows in members])
    values = entries_of(conditions, index) | {name: labels[index]}
    return Conditions(values, name), [str(k) for k in classes.tolist()]


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
    name = _label_of(model, source.conditions)
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


def _label_of(model: ScoreModel, others: Collection[str]) -> str | None:
    """The name of the network's condition that is a class, and is none of the others; None where
    it has none.
    """
    name = label_name([name for name in model.condition_names() or () if name not in others])
    # NaN stands for an unknown context or image.
    return None if name is None or math.isnan(model.null.get(name, 0.0)) else name


@dataclass(frozen=True)
class Known:
    """The conditions of the model of a run.

    Attributes:
        label: the name of the one that is a class; None where there is none.
        trained: whether it was trained with classes.
        others: where the values of the others are in its data, by name.
        label_column: the name of the column of its classes, where that was chosen.
    """

    label: str | None
    trained: bool
    others: Mapping[str, Column]
    label_column: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Those that it was trained with."""
        return [*([self.label] if self.label and self.trained else []), *self.others]

    def columns(self) -> dict[str, Column]:
        """All, with that of the classes."""
        own = {} if self.label is None else {self.label: Column(self.label_column or ("labels",))}
        return own | dict(self.others)


def known(run: Path, model: ScoreModel) -> Known:
    """The conditions that a run has recorded, and those without which a network of the library is
    not built.
    """
    data_notes = _notes(run).get("data")
    data_notes = data_notes if isinstance(data_notes, Mapping) else {}
    others = recorded(data_notes.get(CONDITIONS))
    column = others.pop("label", Column(()))
    label = _label_of(model, others)
    if model.given_null is None:
        others |= {name: Column((name,)) for name in model.null if name not in {*others, label}}
    # Other arguments of a network may be anything.
    trained = label in [*model.null, data_notes.get(NOTE)]
    return Known(label, label is not None and trained, others, column.columns)


def held_out(source: Dataset, name: str | None, advice: str) -> Conditions | None:
    """The conditions of held-out samples, with their labels as the condition `name`; None where
    there are none.

    Raises:
        ValueError: when they have no labels; it ends with the advice.
    """
    values = dict(source.test_conditions)
    if name is not None:
        if source.test_labels is None:
            raise ValueError(
                f"the network takes labels, and the held-out samples of {source.name} have none: "
                f"{advice}"
            )
        values[name] = source.test_labels
    return Conditions(values, name) if values else None


def source_of_run(run: Path, model: ScoreModel, name: str, labelling: Labelling) -> Dataset:
    """A data set for the model of a run, with the conditions that the model takes, apart from
    those whose values are given.

    Raises:
        ValueError: when it is not there, is of another kind, or lacks a condition.
    """
    conditions = known(run, model)
    given_values = values(labelling.conditions, conditions.columns())
    columns = {
        key: column.columns
        for key, column in conditions.others.items()
        if not labelling.unconditional and key not in given_values
    }
    needs_labels = not labelling.unconditional and conditions.label not in given_values
    if conditions.label_column and needs_labels:
        columns["label"] = conditions.label_column
    return trained.source_of(name, model.scale, columns)


def required(
    run: Path, model: ScoreModel, source: Dataset, labelling: Labelling
) -> Conditions | None:
    """The conditions of held-out samples for the model of a run; None where it was trained without,
    or is to be used without. Values that are given replace those of the samples.

    Raises:
        ValueError: when they have no labels, or classes that the network does not know; or when the
            model cannot be used without conditions, or only without.
    """
    conditions = known(run, model)
    if labelling.unconditional:
        if not conditions.names():
            raise ValueError("this model has no conditions: leave out --unconditional")
        if labelling.conditions:
            raise ValueError(
                "--conditions gives values and --unconditional uses none: leave out one of them"
            )
        _require_dropped(run, conditions.names(), conditions.label)
        return None
    given_values = values(labelling.conditions, conditions.columns())
    name = conditions.label if conditions.trained else None
    own = None if name in given_values else name
    held = held_out(source, own, "give --data that have them, or add --unconditional")
    merged = {**({} if held is None else held.values), **given_values}
    if not merged:
        return None
    name = conditions.label if conditions.label in merged else None
    if name is not None:
        what = "--conditions has" if name in given_values else f"the labels of {source.name} have"
        _require_classes(model, merged[name].tolist(), what)
    return Conditions(merged, name, list(given_values))


def chosen(
    run: Path,
    model: ScoreModel,
    label: Sequence[int],
    guidance: Guidance,
    conditions: Sequence[str] = (),
) -> Conditions | None:
    """The conditions of samples, which they have in turn; None for samples without.

    Arguments:
        label: their classes, if any are given.
        conditions: values of conditions, as for the option.

    Raises:
        ValueError: when the model has no labels or not these, or not these conditions, or guidance
            has no condition to follow or no unconditional model to compare with; or for a condition
            that is not given and without which the model cannot be used.
    """
    of_model = known(run, model)
    name = of_model.label
    if label and name is None:
        raise ValueError(
            "this model has no labels: leave out --label, or train one that has them, with "
            "train --labels"
        )
    by_name = values(conditions, of_model.others if label else of_model.columns())
    if label and name is not None:
        by_name[name] = torch.tensor(label)
    if name in by_name:
        what = "--label has" if label else f"--conditions {name} has"
        _require_classes(model, by_name[name].tolist(), what)
    result = Conditions(by_name, name if name in by_name else None) if by_name else None
    require_guidance(run, model, result, guidance)
    needed = [*([name] if name in model.null else []), *of_model.others]
    _require_dropped(run, [key for key in needed if key is not None and key not in by_name], name)
    return result


def require_guidance(
    run: Path, model: ScoreModel, conditions: Conditions | None, guidance: Guidance
) -> None:
    """Refuses guidance without conditions, guidance by an unconditional model that was never
    trained, and numbers out of range.

    Raises:
        ValueError: says what to do.
    """
    if guidance.guidance == 1:
        return
    if conditions is None:
        raise ValueError(
            "guidance follows labels or other conditions, and there are none: leave out "
            "--guidance, or sample a model with labels with --label and a class, or several, or "
            "one with other conditions with --conditions"
        )
    _require_dropped(run, list(conditions.values), conditions.label)
    guidance.of(given(model, conditions, 1))  # refuses


def given(
    model: ScoreModel, conditions: Conditions | None, count: int, first: int = 0
) -> ScoreModel:
    """The model of samples first, ..., first + count - 1, with their conditions if there are
    any.
    """
    if conditions is None:
        return model
    device = model.place()[1]
    entries = conditions.of(count, first)
    return model.given(**{name: values.to(device) for name, values in entries.items()})


def drawn(
    model: ScoreModel,
    conditions: Conditions | None,
    guidance: Guidance,
    count: int,
    first: int = 0,
) -> AbstractModel:
    """The model that samples first, ..., first + count - 1 are drawn from."""
    return guidance.of(given(model, conditions, count, first))


def settings(conditions: Conditions | None, guidance: Guidance) -> dict[str, Any]:
    """What samples depend on besides the sampler, as JSON; nothing without conditions."""
    if conditions is None:
        return {}
    described: dict[str, Any] = guidance.settings()
    if conditions.label is not None:
        described["label"] = conditions.values[conditions.label].tolist()
    if others := conditions.others():
        described["conditions"] = digest("", others)
    return described


def sentence(conditions: Conditions | None, guidance: Guidance) -> str:
    """The conditions and the guidance of samples, as the end of a sentence."""
    if conditions is None:
        return ""
    parts = [f"{name} given" for name in conditions.others()]
    if conditions.label is not None:
        classes = conditions.values[conditions.label].tolist()
        listed = ", ".join(map(str, classes[:_MOST_ROWS]))
        listed += ", ..." if len(classes) > _MOST_ROWS else ""
        several = len(classes) > 1
        parts.insert(0, f"labels {listed} in turn" if several else f"label {listed}")
    return f"; {', '.join(parts)}, guidance {guidance.guidance:g}"


def of_likelihood(
    run: Path, model: ScoreModel, conditions: Conditions | None, guidance: Guidance
) -> list[str]:
    """The law to which a likelihood belongs, for a model with conditions, as text."""
    if conditions is None:
        of_model = known(run, model)
        words = [*(["labels"] if of_model.label in model.null else []), *of_model.others]
        without = " and ".join(words)
        return [f"this is log p(x), of samples without their {without}"] if words else []
    words = list(conditions.sources())
    if guidance.guidance != 1:
        return [
            f"this is log p(x) of the law of the flow guided by {guidance.guidance:g} towards the "
            f"{' and '.join(words)} of each sample"
        ]
    own = [word for word, source in conditions.sources().items() if source != "of --conditions"]
    each = (
        f"each sample with its own {' and '.join(own)}"
        if own
        else "with the values of --conditions"
    )
    return [f"this is log p(x | {', '.join(words)}), {each}"]


def digest_of(x: Tensor, conditions: Conditions | None) -> str:
    """A digest of held-out samples and the conditions that they are given."""
    return digest("", {"x": x} | ({} if conditions is None else dict(conditions.values)))


def of_restoration(conditions: Conditions | None) -> list[str]:
    """What restored images are given besides their observations, as text."""
    if conditions is None:
        return []
    parts = [f"the {name} {source}" for name, source in conditions.sources().items()]
    return [f"given {' and '.join(parts)}"]


def _require_classes(model: ScoreModel, label: Sequence[int], what: str) -> None:
    """Refuses classes that the network is known not to have."""
    classes = _known_classes(model)
    least = min(label)
    largest = max(label)
    if least < 0 or (classes is not None and largest >= classes):
        allowed = "from 0 on" if classes is None else f"0 to {classes - 1}"
        values = str(least) if least == largest else f"values from {least} to {largest}"
        raise ValueError(f"{what} {values}; the classes of this model are {allowed}")


def _known_classes(model: ScoreModel) -> int | None:
    """The number of classes of a network, None where it does not say."""
    config = getattr(model.net, "config", None)
    return config.get("classes") if isinstance(config, dict) else None


def all_classes(run: Path, model: ScoreModel) -> tuple[int, ...]:
    """The classes of a model that was trained with labels; none where their number is unknown."""
    return tuple(range(_known_classes(model) or 0)) if known(run, model).trained else ()


def is_dropped(run: Path, name: str) -> bool:
    """Whether a model may be used without a condition: some were dropped when it was trained."""
    recipe = _notes(run).get("recipe")
    drop = recipe.get("drop") if isinstance(recipe, Mapping) else None
    drop = drop.get(name, 0.0) if isinstance(drop, Mapping) else drop
    return drop != 0


def _require_dropped(run: Path, names: Sequence[str], label: str | None) -> None:
    """Refuses to use a model without conditions without which it was never trained."""
    for name in names:
        if is_dropped(run, name):
            continue
        if name == label:
            raise ValueError(
                "this model was trained with drop = 0 and knows samples with labels only: use it "
                "with labels and without guidance, or train one with --drop 0.1"
            )
        raise ValueError(
            f"this model was trained with drop = 0 for {name} and knows samples with it only: "
            f"give its values by --conditions {name}=..., without guidance, or train one with "
            "--drop 0.1"
        )


def _notes(run: Path) -> Mapping[str, Any]:
    """The notes of a run."""
    notes = read_config(config_folder(run)).get("notes")
    return notes if isinstance(notes, Mapping) else {}
