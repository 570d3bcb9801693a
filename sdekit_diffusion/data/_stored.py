"""Samples that are read from storage on demand."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sdekit_diffusion.data._batches import Rows
from sdekit_diffusion.data._columns import Entries
from sdekit_diffusion.data._dataset import (
    Array,
    Dataset,
    Subset,
    entries_of,
    of_arrays,
    require_alike,
    require_conditions_alike,
    require_entries,
    samples,
    shuffled,
    subsets,
)
from sdekit_diffusion.data._scale import Scale

_MAX_BYTES_IN_MEMORY = 2**30  # larger data sets are read on demand
# The most samples of a large set that are kept in memory, to estimate and to compare.
_MAX_SAMPLES_IN_MEMORY = 10_000
_MAX_BYTES_OF_SAMPLES = 2**28
_CHUNK = 1000  # samples read together
_CLASSES = ""  # stands for labels among the conditions


class Stored:
    """Samples that are read and checked on demand by row number, as `Rows`.

    Args:
        n: the number of samples.
        read: a function from row numbers to a list of arrays, one for each sample.
        sample_name: a function from a row number to the name of the sample in errors.
        name: the name of the data set.
    """

    def __init__(
        self,
        n: int,
        read: Callable[[Sequence[int]], Sequence[Array]],
        sample_name: Callable[[int], str],
        name: str,
    ) -> None:
        if n < 1:
            raise ValueError(f"{name} has no samples")
        self._n = n
        self._read = read
        self._sample_name = sample_name
        self.name = name
        self._first = read([0])[0]

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: Tensor) -> Tensor:
        numbers = rows.tolist()
        tensor = torch.from_numpy(samples(self.arrays(numbers or [0]), self.name))
        return tensor if numbers else tensor[:0]

    @property
    def sample_nbytes(self) -> int:
        """The size of one sample in bytes."""
        return self._first.nbytes

    def arrays(self, numbers: Sequence[int]) -> Array:
        """Samples as they are stored."""
        return stacked(
            [self._first, *self._read(numbers)],
            lambda i: self._sample_name(numbers[i - 1] if i else 0),
        )[1:]

    def everything(self) -> Array:
        """All samples."""
        return np.concatenate(
            [self.arrays(range(i, min(i + _CHUNK, self._n))) for i in range(0, self._n, _CHUNK)]
        )


def of_stored(
    train: Stored,
    test: Stored | None = None,
    labels: Array | None = None,
    test_labels: Array | None = None,
    conditions: Mapping[str, Rows] | None = None,
    test_conditions: Mapping[str, Rows] | None = None,
) -> Dataset:
    """A data set of stored samples: in memory, or read on demand if they take more than 1 GiB.

    Args:
        train, test: the samples; some of the training samples are held out without test.
        labels, test_labels: their classes.
        conditions, test_conditions: their other conditions, by name.

    Raises:
        ValueError: for samples that are not as `of_arrays` describes, or a large set of integers
            other than bytes.
    """
    if len(train) * train.sample_nbytes <= _MAX_BYTES_IN_MEMORY:
        arrays = {"train": train.everything(), "labels": labels, "test_labels": test_labels}
        arrays["test"] = None if test is None else test.everything()
        return of_arrays(
            train.name,
            {key: array for key, array in arrays.items() if array is not None},
            conditions=conditions,
            test_conditions=test_conditions,
        )
    return _read_on_demand(
        train,
        test,
        {**(conditions or {}), **_as_entries(labels)},
        {**(test_conditions or {}), **_as_entries(test_labels)},
    )


def _read_on_demand(
    train: Stored,
    test: Stored | None,
    entries: Mapping[str, Rows],
    test_entries: Mapping[str, Rows],
) -> Dataset:
    """As `of_stored`, for a large set; labels are entries of that name."""
    require_entries(entries, len(train), train.name)
    if test is None:
        order = shuffled(len(train))
        n = min(fits(train.sample_nbytes), len(train) // 10)
        numbers = order[:n]
        train_numbers = order[n:].sort().values
        rows = Subset(train, train_numbers)
        conditions = subsets(entries, train_numbers)
        held_out = train[numbers]
        test_conditions = entries_of(entries, numbers)
    else:
        require_entries(test_entries, len(test), test.name)
        numbers = shuffled(len(test))[: fits(test.sample_nbytes)]
        rows = train
        conditions = dict(entries)
        held_out = test[numbers]
        test_conditions = entries_of(test_entries, numbers)
    first_samples = rows[shuffled(len(rows))[: fits(train.sample_nbytes)]]
    require_alike(first_samples, held_out, train.name)
    labels = conditions.pop(_CLASSES, None)
    assert isinstance(labels, Tensor | None)
    test_labels = test_conditions.pop(_CLASSES, None)
    require_conditions_alike(conditions, test_conditions, train.name)
    return Dataset(
        rows,
        held_out,
        scale_of(first_samples, train.name),
        train.name,
        labels,
        test_labels,
        conditions=conditions,
        test_conditions=test_conditions,
    )


def _as_entries(labels: Array | None) -> dict[str, Rows]:
    """The classes of samples as entries of a name that no argument of a network has."""
    return {} if labels is None else {_CLASSES: torch.from_numpy(labels)}


def in_memory(entries: Entries) -> Rows:
    """All entries as a tensor, or themselves if they take more than 1 GiB."""
    if entries.nbytes > _MAX_BYTES_IN_MEMORY:
        return entries
    return torch.cat([entries[rows] for rows in torch.arange(len(entries)).split(_CHUNK)])


def stacked(arrays: Sequence[Array], sample_name: Callable[[int], str]) -> Array:
    """Samples in one array.

    Raises:
        ValueError: when shapes or types differ.
    """
    for i, array in enumerate(arrays):
        if (array.shape, array.dtype) != (arrays[0].shape, arrays[0].dtype):
            raise ValueError(
                f"{sample_name(i)} has shape {array.shape} and type {array.dtype} but "
                f"{sample_name(0)} has {arrays[0].shape} and {arrays[0].dtype}; all samples must "
                "have one shape and type"
            )
    return np.stack(arrays)


def fits(nbytes: int) -> int:
    """How many samples of `nbytes` bytes are kept in memory at most, to estimate and to compare."""
    return max(1, min(_MAX_SAMPLES_IN_MEMORY, _MAX_BYTES_OF_SAMPLES // nbytes))


def scale_of(values: Tensor, name: str) -> Scale:
    """The scale of a data set from some of its samples.

    Raises:
        ValueError: for integers other than bytes, whose levels are unknown.
    """
    if values.is_floating_point():
        return Scale.standard(values)
    if values.dtype != torch.uint8:
        raise ValueError(
            f"{name} has type {values.dtype}; of so large a set, and of a stream, store images as "
            "uint8"
        )
    return Scale.quantised(256)
