"""The option --conditions: the arrays or columns to train with, and values for samples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdekit import did_you_mean
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.data._array_files import read_npy, read_npz
from sdekit_diffusion.data._columns import LABELS, entries
from sdekit_diffusion.data._dataset import entry_shape

NOTE = "conditions"  # in the notes on the data of a run
_EXAMPLE = "context=0.5,-1"

Array = NDArray[Any]


@dataclass(frozen=True)
class Column:
    """Where the values of a condition are in the data of a run.

    Attributes:
        columns: the names of their arrays or columns.
        shape: of one value; None where it was not recorded.
    """

    columns: tuple[str, ...]
    shape: tuple[int, ...] | None = None


def columns_to_train(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The arrays or columns of each condition, from NAME or NAME=COLUMN,COLUMN.

    Raises:
        ValueError: for a condition without a name or a column, or that is given twice.
    """
    columns: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, mark, listed = text.partition("=")
        several = tuple(listed.split(",")) if mark else (name,)
        if not name or not all(several) or name in columns:
            raise ValueError(
                "--conditions takes the names of conditions, each once, such as context, or "
                f"context=theta if that is what the data call it; not {text!r}"
            )
        columns[name] = several
    return columns


def notes_of(source: Dataset, columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What a run records of its conditions, as JSON: nothing where there are none."""
    notes: dict[str, Any] = {name: {"columns": list(names)} for name, names in columns.items()}
    for name, rows in source.conditions.items():
        notes[name] |= {"shape": list(entry_shape(rows))}
    return {NOTE: notes} if notes else {}


def recorded(notes: Any) -> dict[str, Column]:  # noqa: ANN401 - JSON
    """The conditions that a run has recorded; none for one without such notes."""
    if not isinstance(notes, Mapping):
        return {}
    return {
        name: Column(tuple(note["columns"]), tuple(note["shape"]) if "shape" in note else None)
        for name, note in notes.items()
    }


def values(given: Sequence[str], known: Mapping[str, Column]) -> dict[str, Tensor]:
    """The values of conditions, `(k, ...)` by name; samples have them in turn.

    Arguments:
        given: each is NAME=NUMBERS, with commas between the numbers of one value; NAME=FILE.npy; or
            FILE.npz, with arrays of the names of the conditions, or of their columns in the data.
        known: the conditions of the model.

    Raises:
        ValueError: for a condition that the model does not have, or of another shape than in
            training, and for what is none of these.
    """
    result: dict[str, Tensor] = {}
    for text in given:
        name, mark, value = text.partition("=")
        if mark:
            _require_known([name], known)
            arrays = {name: [_array(name, value, known[name].shape)]}
        elif text.endswith(".npz"):
            arrays = _of_archive(Path(text), known)
        else:
            raise ValueError(
                f"--conditions takes NAME=NUMBERS, such as {_EXAMPLE}, NAME=FILE.npy, or FILE.npz; "
                f"not {text!r}"
            )
        for key, parts in arrays.items():
            if key in result:
                raise ValueError(f"--conditions gives {key} twice: leave out one of them")
            result[key] = entries(key, parts, f"{key} of --conditions")
            _require_shape(key, result[key], known[key].shape)
    return result


def _require_known(names: Iterable[str], known: Mapping[str, Column]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"--conditions gives {name!r}; the conditions of this model are "
                f"{', '.join(known) or 'none'}{did_you_mean(name, known)}"
            )


def _array(name: str, value: str, shape: tuple[int, ...] | None) -> Array:
    """The values that a text stands for."""
    if value.endswith(".npy"):
        array = read_npy(Path(value))
        return array[None] if shape is not None and array.shape == shape else array
    try:
        numbers = np.array([float(number) for number in value.split(",")])
    except ValueError:
        raise ValueError(
            f"--conditions {name}={value} has neither numbers with commas between them, such as "
            f"{_EXAMPLE}, nor the name of a .npy file"
        ) from None
    if name in LABELS:  # classes, in turn
        return numbers.astype(np.int64) if (numbers == np.rint(numbers)).all() else numbers
    return numbers[None]


def _of_archive(path: Path, known: Mapping[str, Column]) -> dict[str, list[Array]]:
    """The arrays of each condition that an .npz file has."""
    arrays = read_npz(path)
    result: dict[str, list[Array]] = {}
    for name, column in known.items():
        for keys in ((name,), column.columns):
            if name not in result and all(key in arrays for key in keys):
                result[name] = [arrays[key] for key in keys]
    if not result:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'no arrays'}, and the conditions of this model "
            f"are {', '.join(known) or 'none'}; save them under these names with np.savez"
        )
    return result


def _require_shape(name: str, value: Tensor, shape: tuple[int, ...] | None) -> None:
    if not len(value):
        raise ValueError(f"--conditions gives no value of {name}; give one, or one per sample")
    if shape is not None and tuple(value.shape[1:]) != shape:
        raise ValueError(
            f"--conditions gives {name} values of shape {tuple(value.shape[1:])}, and the model "
            f"was trained with {shape}; give an array (n, {', '.join(map(str, shape))})"
        )
