"""Sources from what users train on: arrays, pairs, dictionaries, data sets and loaders."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from sdekit import did_you_mean
from sdekit_diffusion.data._batches import (
    AbstractSource,
    Rows,
    Shuffled,
    given_draws,
    require_no_table,
)
from sdekit_diffusion.data._columns import LABELS
from sdekit_diffusion.data._dataset import Dataset
from sdekit_diffusion.data._loader import Loaded
from sdekit_diffusion.data._stream import Stream

Labelled = tuple[Rows, Rows | Mapping[str, Rows]] | Mapping[str, Rows]
Data = Rows | AbstractSource | Labelled | Dataset | TorchDataset[Any] | DataLoader[Any]


def source_of(
    data: Data, names: Sequence[str] | None, null: Collection[str] = ()
) -> AbstractSource:
    """A source of samples and conditions from data of any kind.

    Arguments:
        data: a source; samples alone; a pair (x, y), where y are labels or a dictionary of
            conditions; a dictionary of samples and conditions; a `TensorDataset` or another data
            set of torch; a `DataLoader`; or a `sdekit_diffusion.data.Dataset`, with its
            conditions, and with its labels if the network takes them.
        names: the conditions that the network takes; None where that is not known.
        null: those of them with a value for unknown ones.

    Raises:
        TypeError: for anything else.
        ValueError: for conditions without a name, or that the network does not take; or a data set
            with labels for a network whose only argument may be something else.
    """
    if isinstance(data, AbstractSource):
        return data
    if isinstance(data, Dataset):
        return _of_dataset(data, names, null)
    if isinstance(data, TensorDataset):
        return source_of(data.tensors, names)
    if isinstance(data, DataLoader | TorchDataset):
        return Loaded(data, lambda item: named(item, names))
    if type(data).__module__.partition(".")[0] == "datasets":
        raise TypeError(
            "a data set of Hugging Face's library is read by sdekit_diffusion.data.from_datasets("
            "data, column), which names its columns and holds samples out; pass the result"
        )
    if isinstance(data, Mapping | tuple):
        rows, conditions = named(data, names)
        return Shuffled(rows, conditions)
    return Shuffled(data)


def _of_dataset(
    data: Dataset, names: Sequence[str] | None, null: Collection[str]
) -> AbstractSource:
    """The training samples of a data set, with its conditions, and with its labels where the
    network takes them.
    """
    name = label_name([name for name in names or () if name not in data.conditions])
    if not (name is None or data.labels is None or name in LABELS or name in null):
        raise ValueError(
            f"{data.name} has labels, and the argument {name!r} of the network may be something "
            f"else: call it 'label', or give ScoreModel null={{{name!r}: value}}, whose value "
            "stands for no label; or train without the labels, on dataclasses.replace(data, "
            "labels=None, test_labels=None)"
        )
    name = None if data.labels is None else name
    if isinstance(data.train, Stream):
        return data.train.labelled(name, data.conditions)
    if isinstance(data.train, AbstractSource):
        return data.train
    labels = {} if name is None or data.labels is None else {name: data.labels}
    return Shuffled(data.train, {**labels, **data.conditions})


def named(given: Any, names: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    """The samples, and the conditions by name, of a pair, a dictionary, or samples alone.

    Raises:
        TypeError, ValueError: for data whose parts cannot be named; the message says how to.
    """
    if isinstance(given, Mapping):
        return _of_mapping(given, names)
    if not isinstance(given, tuple | list):
        return given, {}
    if len(given) == 1:
        return given[0], {}
    if len(given) != 2:
        raise ValueError(
            f"the data have {len(given)} parts; give samples, a pair (x, labels), or a dictionary "
            "with the samples as 'x' and each condition under its name in the network"
        )
    x, y = given
    if isinstance(y, Mapping):
        if "x" in y:
            raise ValueError(
                "the samples are given twice, alone and as 'x' of the dictionary: name each "
                "condition as the network does, such as 'label' or 'context'"
            )
        return _of_mapping({"x": x, **y}, names)
    name = label_name(names)
    if name is None:
        takes = f"takes {', '.join(names)}" if names else "takes no condition that is known here"
        raise ValueError(
            f"the data are pairs, and the network {takes}: name the second part, as in "
            "{'x': x, 'label': y}; or train on the samples alone, or with a network that takes "
            "labels, such as nets.MLP(classes=10)"
        )
    return _of_mapping({"x": x, name: y}, names)


def label_name(names: Sequence[str] | None) -> str | None:
    """The name of a condition that has none: "label", or the only one that the network takes."""
    names = names or ()
    return "label" if "label" in names else names[0] if len(names) == 1 else None


def _of_mapping(
    given: Mapping[str, Any], names: Sequence[str] | None
) -> tuple[Any, dict[str, Any]]:
    known = (*(names or ()), *given_draws(names))
    others = [name for name in given if name not in known]
    key = "x" if "x" in given else others[0] if len(others) == 1 else None
    if key is None:
        raise ValueError(f"of the data {', '.join(given)} one must be the samples: call them 'x'")
    conditions = {name: _rows(name, value) for name, value in given.items() if name != key}
    for name in conditions:
        if names is not None and name not in known:
            raise ValueError(
                f"the network does not take {name!r}; it takes {', '.join(names) or 'none'}"
                f"{did_you_mean(name, names)}"
            )
    return given[key], conditions


def _rows(name: str, values: Any) -> Rows:  # noqa: ANN401
    """The entries of a condition; a list of numbers is converted to a tensor."""
    require_no_table(name, values)
    if isinstance(values, Tensor) or _kind(values) in ("u", "i", "f"):
        return values
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} must be numbers, one entry per sample, not {values!r:.60}; number the classes "
            "from 0"
        ) from None


def _kind(values: Any) -> str | None:  # noqa: ANN401
    """The kind of an array's dtype, such as "f"; None for other objects."""
    return getattr(getattr(values, "dtype", None), "kind", None)
