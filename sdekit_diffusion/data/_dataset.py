"""Training and test samples, and their construction from arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit_diffusion.data._batches import AbstractSource, Rows
from sdekit_diffusion.data._scale import Scale

# The first of these folders or splits that exists is held out.
HELD_OUT = "test", "validation", "valid", "val"
_MAX_LEVELS = 2**16
_SCALE_SAMPLES = 10_000  # for the mean and the standard deviation

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test samples.

    Attributes:
        train: training samples: integer levels of images (N, C, H, W), or floats of continuous data
            (N, ...). A tensor, an object that reads samples by row number, or a stream.
        test: held-out samples (M, ...) of the same kind, a tensor.
        scale: the map from the data to the inputs of a model, and back.
        name: the name of the data set.
        labels: the classes of the training samples, (N,), or None; for a stream those of `known`.
        test_labels: the classes of the test samples, (M,), or None.
        known: the first samples of a stream, a tensor; else None.
        conditions: of the training samples, besides their labels, by the name of the network's
            argument, each (N, ...); for a stream those of `known`.
        test_conditions: of the test samples, by the same names, tensors (M, ...).

    Example:
        >>> data = sd.data.load("moons")
        >>> x = data.scale.encode(data.test)  # as a model sees them
        >>> data.name, x.shape[1:]
        ('moons', torch.Size([2]))
    """

    train: Rows | AbstractSource
    test: Tensor
    scale: Scale
    name: str
    labels: Tensor | None = None
    test_labels: Tensor | None = None
    known: Tensor | None = None
    conditions: Mapping[str, Rows] = field(default_factory=dict)
    test_conditions: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int | None:
        """The number of training samples; None for a stream."""
        return None if isinstance(self.train, AbstractSource) else len(self.train)

    def reference(self, n: int) -> tuple[Tensor, Tensor | None]:
        """At most n training samples and their labels: all of them, or a fixed random subset."""
        rows = self.train if self.known is None else self.known
        assert not isinstance(rows, AbstractSource)
        if isinstance(rows, Tensor) and len(rows) <= n:
            return rows, self.labels
        numbers = shuffled(len(rows))[:n]
        return rows[numbers], None if self.labels is None else self.labels[numbers]


class Subset:
    """Some of the rows of other `Rows`."""

    def __init__(self, rows: Rows, numbers: Tensor) -> None:
        self._rows = rows
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self._rows[self._numbers[rows]]


def of_arrays(
    name: str,
    arrays: Mapping[str, Array],
    *,
    levels: int | None = None,
    conditions: Mapping[str, Rows] | None = None,
    test_conditions: Mapping[str, Rows] | None = None,
) -> Dataset:
    """A data set from arrays, which are checked; a tenth of the training samples is held out if
    there is no test set.

    Args:
        name: the name of the data set, used in errors.
        arrays: "train" and optionally "test", "labels" and "test_labels". Integer samples are
            images, `(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)`, and floats are continuous data,
            `(N, ...)`; labels are integers, `(N,)`.
        levels: the number of levels of images; unless given, 256 for bytes, and one more than the
            largest value for other integers.
        conditions: of the training samples, by name.
        test_conditions: of the test samples, where `arrays` has a test set.

    Raises:
        ValueError: for arrays that are not as described.
    """
    conditions = dict(conditions or {})
    train = samples(arrays["train"], name, least=2)
    test = arrays.get("test")
    labels = _classes(arrays.get("labels"), len(train), f"the labels of {name}")
    require_entries(conditions, len(train), name)
    if test is None:
        test_rows, train_rows = np.split(shuffled(len(train)).numpy(), [max(1, len(train) // 10)])
        labels, test_labels = (
            (None, None) if labels is None else (labels[train_rows], labels[test_rows])
        )
        test = train[test_rows]
        train = train[train_rows]
        held_out = entries_of(conditions, torch.from_numpy(test_rows))
        conditions = subsets(conditions, torch.from_numpy(train_rows))
    else:
        test = samples(test, f"the test set of {name}")
        test_labels = _classes(arrays.get("test_labels"), len(test), f"the test labels of {name}")
        require_entries(test_conditions or {}, len(test), f"the test set of {name}")
        held_out = entries_of(test_conditions or {}, torch.arange(len(test)))
    require_alike(train, test, name)
    require_conditions_alike(conditions, held_out, name)
    scale, dtype = _scale(train, test, levels, name)
    return Dataset(
        torch.from_numpy(train).to(dtype),
        torch.from_numpy(test).to(dtype),
        scale,
        name,
        None if labels is None else torch.from_numpy(labels),
        None if test_labels is None else torch.from_numpy(test_labels),
        conditions=conditions,
        test_conditions=held_out,
    )


def _scale(
    train: Array, test: Array, levels: int | None, name: str
) -> tuple[Scale, torch.dtype | None]:
    """The scale of a data set, and the dtype in which its samples are kept; None is their own.

    Raises:
        ValueError: for images that are zeros only.
    """
    if train.dtype.kind == "f":
        some = train[shuffled(len(train))[:_SCALE_SAMPLES].numpy()]
        return Scale.standard(torch.from_numpy(some)), None
    levels = levels or (256 if train.dtype == np.uint8 else int(max(train.max(), test.max())) + 1)
    if levels < 2:
        raise ValueError(f"{name} has zeros only; images need two levels or more")
    dtype = torch.uint8 if levels <= 256 else torch.int64
    return Scale.quantised(levels, dtype=train.dtype.name), dtype


def samples(array: Array, name: str, least: int = 1) -> Array:
    """Checks one array, and converts images to `(N, C, H, W)` and all data to native byte order.

    Raises:
        ValueError: for arrays that are not samples.
    """
    if array.dtype.kind not in "uif":
        raise ValueError(
            f"{name} has type {array.dtype}; save images as integers and other data as floats, "
            "with array.astype(...)"
        )
    if array.ndim == 0 or array.size == 0 or len(array) < least:
        raise ValueError(
            f"{name} has shape {array.shape}; it needs {least} or more samples along its first "
            "dimension"
        )
    if array.dtype.kind != "f":
        return _channels_first(array, name)
    with np.errstate(over="ignore"):
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(
                f"{name} has values that are NaN, infinite or beyond float32; remove those samples"
            )
    return np.ascontiguousarray(
        array, np.float64 if array.itemsize > 8 else array.dtype.newbyteorder("=")
    )


def shuffled(n: int) -> Tensor:
    """A fixed random permutation of the row numbers of n samples."""
    return torch.from_numpy(np.random.default_rng(0).permutation(n))


def require_alike(train: Array | Tensor, test: Array | Tensor, name: str) -> None:
    """Raises ValueError when training and test samples differ in shape or type."""
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise ValueError(
            f"{name} holds training samples of shape {tuple(train.shape[1:])} and type "
            f"{train.dtype} but test samples of shape {tuple(test.shape[1:])} and type "
            f"{test.dtype}; save both in one shape and type"
        )


def entry_shape(rows: Rows) -> tuple[int, ...]:
    """The shape of one entry of a condition."""
    return tuple(rows[torch.arange(1)].shape[1:])


def require_entries(conditions: Mapping[str, Rows], n: int, name: str) -> None:
    """Raises ValueError unless each condition has one entry for each of n samples."""
    for condition, rows in conditions.items():
        if len(rows) != n:
            raise ValueError(
                f"the condition {condition!r} has {len(rows)} entries for {n} samples of {name}; "
                "give one for each"
            )


def require_conditions_alike(
    conditions: Mapping[str, Rows], held_out: Mapping[str, Tensor], name: str
) -> None:
    """Raises ValueError when the entries of training and test samples differ in shape or type."""
    for condition, test in held_out.items():
        train = conditions[condition][torch.arange(1)]
        require_alike(train, test, f"the condition {condition!r} of {name}")


def subsets(conditions: Mapping[str, Rows], numbers: Tensor) -> dict[str, Rows]:
    """The entries of some samples: in memory where all are, else read on demand."""
    return {
        name: rows[numbers] if isinstance(rows, Tensor) else Subset(rows, numbers)
        for name, rows in conditions.items()
    }


def entries_of(conditions: Mapping[str, Rows], numbers: Tensor) -> dict[str, Tensor]:
    """The entries of some samples, in memory."""
    return {name: rows[numbers] for name, rows in conditions.items()}


def _channels_first(array: Array, name: str) -> Array:
    if not 0 <= int(array.min()) <= int(array.max()) < _MAX_LEVELS:
        raise ValueError(
            f"{name} has integers from {array.min()} to {array.max()}; the levels of an image lie "
            f"in [0, {_MAX_LEVELS - 1}], and other data are saved as floats"
        )
    if array.ndim == 3:
        images = array[:, None]
    else:
        images = (
            np.moveaxis(array, 3, 1) if array.ndim == 4 and array.shape[1] not in (1, 3) else array
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} has integers, so images, of shape {array.shape}; allowed are (N, H, W), (N, "
            "C, H, W) and (N, H, W, C) with C = 1 or 3; save data that are not images as floats"
        )
    return np.ascontiguousarray(images, array.dtype.newbyteorder("="))


def _classes(labels: Array | None, n: int, name: str) -> NDArray[np.int64] | None:
    if labels is not None and (labels.dtype.kind not in "ui" or labels.shape != (n,)):
        raise ValueError(
            f"{name} have shape {labels.shape} and type {labels.dtype}; give one integer for each "
            f"of {n} samples"
        )
    return None if labels is None else labels.astype(np.int64)
