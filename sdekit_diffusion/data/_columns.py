"""Conditions of data sets: the columns or arrays that they are made of, and their entries."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit_diffusion.data._dataset import samples

# Integers under these names are classes.
LABELS = {
    *("label", "labels", "class_label", "class_labels", "cls", "classes", "class_idx"),
    *("y", "c", "target", "targets"),
}
_LEVELS = 256  # of bytes

Array = NDArray[Any]
Conditions = Mapping[str, str | Sequence[str]] | Sequence[str]


def columns_of(conditions: Conditions | None) -> dict[str, tuple[str, ...]]:
    """The columns of each condition, by the name of the network's argument.

    Args:
        conditions: a column or several for each name, or names that are those of their columns.

    Raises:
        TypeError: for anything else.
    """
    if conditions is None:
        return {}
    if isinstance(conditions, str):
        raise TypeError(f"conditions are a list of names, such as [{conditions!r}]; not a text")
    if not isinstance(conditions, Mapping):
        conditions = {name: name for name in conditions}
    columns: dict[str, tuple[str, ...]] = {}
    for name, given in conditions.items():
        several: Any = given if isinstance(given, list | tuple) else (given,)
        if not several or not all(isinstance(column, str) for column in several):
            raise TypeError(
                "conditions have the name of a column, or several, for each argument of the "
                f"network, such as {{'context': 'temperature'}}; not {conditions!r:.60}"
            )
        columns[name] = tuple(several)
    return columns


def entries(name: str, arrays: Sequence[Array], where: str) -> Tensor:
    """The entries of a condition for n samples, from one array or several, each `(n, ...)`.

    Classes stay integers; bytes with two or more dimensions per sample are images, whose levels are
    scaled to (-1, 1) as those of samples are; all other numbers become float32. A single number is
    a vector of length 1, and several arrays are joined into one vector.

    Args:
        name: of the network's argument.
        arrays: the columns.
        where: what they are, for messages.

    Raises:
        ValueError: for arrays that are not finite numbers.
    """
    parts = [_numbers(name, array, where) for array in arrays]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.flatten(1).float() for part in parts], dim=1)


def _numbers(name: str, array: Array, where: str) -> Tensor:
    if array.dtype.kind not in "buif" or not array.ndim:
        raise ValueError(
            f"{where} has shape {array.shape} and type {array.dtype}; the condition {name!r} "
            "needs numbers: a number, a vector or an image for each sample"
        )
    if array.ndim == 1 and array.dtype.kind in "ui" and name in LABELS:
        return torch.from_numpy(array.astype(np.int64))
    if array.ndim > 2 and array.dtype == np.uint8:
        images = torch.from_numpy(samples(array, where)).float()
        return (images + 0.5) * (2 / _LEVELS) - 1
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{where} has values that are NaN, infinite or beyond float32; remove those samples, "
            f"or give {name!r} a number for each"
        )
    return torch.from_numpy(values[:, None] if values.ndim == 1 else values)


class Entries:
    """The entries of a condition that are read on demand by row number, as `Rows`.

    Args:
        n: the number of samples.
        read: a function from row numbers to entries, `(k, ...)`.
    """

    def __init__(self, n: int, read: Callable[[Sequence[int]], Tensor]) -> None:
        self._n = n
        self._read = read

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: Tensor) -> Tensor:
        numbers = rows.tolist()
        return self._read(numbers or [0])[: len(numbers)]

    @property
    def nbytes(self) -> int:
        """The size of all entries in bytes."""
        return self._n * self._read([0]).nbytes
