"""The order of samples in a training run, which depends on the seed alone."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

# What data may contain for each sample besides the conditions of the network, unless these have the
# same names: the noise that is added to it, and its noise level log(alpha / sigma).
GIVEN_NOISE = "noise"
GIVEN_LEVEL = "log_snr"
_CHECKED_ROWS = 4096  # rows of a tensor that are checked together
_FINGERPRINT_ROWS = 1000  # evenly spaced rows that identify the data
ALL_ROWS = "; sha256 of all conditions in memory "  # in a fingerprint, before its last part


def given_draws(names: Sequence[str] | None) -> tuple[str, ...]:
    """Which of "noise" and "log_snr" are not names of conditions that the network takes."""
    return tuple(name for name in (GIVEN_NOISE, GIVEN_LEVEL) if name not in (names or ()))


class Rows(Protocol):
    """Samples by row number: a tensor, an array, or any object with a length that takes a tensor of
    row numbers.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...  # noqa: ANN401


class Batch(NamedTuple):
    """Samples of a training run, with their conditions.

    Arguments:
        x: the samples, `(batch, *shape)`.
        conditions: by the name of the network's argument, with one entry per sample,
            `(batch, ...)`.

    Example:
        >>> batch = sd.Batch(torch.zeros(3, 2), {"label": torch.tensor([0, 1, 1])})
        >>> [len(part.x) for part in batch.split(2)]
        [2, 1]
    """

    x: Tensor
    conditions: Mapping[str, Tensor] = {}

    @classmethod
    def of(cls, given: Any) -> Self:  # noqa: ANN401 - what a source yields
        """A batch from a tensor, or from a pair of a tensor and a dictionary of conditions.

        Raises:
            TypeError: for anything else.
            ValueError: when a condition does not have one entry per sample.
        """
        x, conditions = (given, {}) if isinstance(given, Tensor) else _pair(given)
        for name, value in conditions.items():
            if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != len(x):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"the condition {name!r} needs one entry for each of {len(x)} samples, a "
                    f"tensor ({len(x)}, ...), not {shape}"
                )
        return cls(x, conditions)

    def split(self, parts: int) -> list[Self]:
        """The batch in `parts` parts of consecutive samples, of nearly equal size."""
        xs = self.x.tensor_split(parts)
        split = {name: value.tensor_split(parts) for name, value in self.conditions.items()}
        return [
            type(self)(x, {name: values[i] for name, values in split.items()})
            for i, x in enumerate(xs)
        ]


def _pair(given: Any) -> tuple[Tensor, Mapping[str, Tensor]]:  # noqa: ANN401
    if isinstance(given, tuple) and len(given) == 2:
        x, conditions = given
        if isinstance(x, Tensor) and isinstance(conditions, Mapping):
            return x, conditions
    raise TypeError(
        "a source yields tensors, or pairs of a tensor and a dictionary of conditions, such as "
        f"(x, {{'label': y}}); not {type(given).__name__}"
    )


def require_finite(
    rows: Tensor, numbers: Sequence[int] | np.ndarray, condition: str | None = None
) -> None:
    """Refuses samples that have NaN or infinite values, by their numbers, or such values of one of
    their conditions.

    Raises:
        ValueError: names the first eight.
    """
    if not rows.is_floating_point() or bool(torch.isfinite(rows).all()):
        return
    bad_rows = (
        (~torch.isfinite(rows)).reshape(len(rows), -1).any(dim=1).nonzero().flatten().tolist()
    )
    row_list = ", ".join(str(int(numbers[i])) for i in bad_rows[:8]) + (
        ", ..." if len(bad_rows) > 8 else ""
    )
    where = "" if condition is None else f" of {condition!r}"
    raise ValueError(
        f"the data have NaN or infinite values in rows {row_list}{where}; remove or repair these "
        "samples"
    )


class AbstractSource(ABC):
    """An endless stream of samples for a training run, in an order that depends only on the seed:
    not on batch size, process or worker.

    Attributes:
        fingerprint: a text that identifies the samples, so that a run is not resumed with other
            data; "" to skip this check.

    Example:
        >>> class Uniform(sd.AbstractSource):
        ...     def batches(self, size, *, seed=0, first=0, part=slice(None)):
        ...         while True:
        ...             numbers = torch.arange(first, first + size)[part]
        ...             yield sdekit.uniform01(seed, numbers, (2,), counter=0).float()
        ...             first += size
        >>> next(Uniform().batches(3)).shape
        torch.Size([3, 2])
    """

    fingerprint: str = ""

    @abstractmethod
    def batches(
        self, size: int, *, seed: int = 0, first: int = 0, part: slice = slice(None)
    ) -> Iterator[Tensor | tuple[Tensor, Mapping[str, Tensor]]]:
        """An endless iterator of batches: of samples, or of pairs of samples and a dictionary of
        conditions as in `Batch`.

        Arguments:
            size: the number of samples in a batch, which may span epochs.
            seed: of the order.
            first: the number of samples of the order to skip, to resume a run.
            part: the samples of each batch to return; all unless given.
        """


class Shuffled(AbstractSource):
    """All samples in each epoch, in a permutation that depends on (seed, epoch).

    Arguments:
        rows: the samples, `(n, *shape)`, a tensor or other `Rows`.
        conditions: the conditions of the samples by name, each with n rows; without them batches
            are tensors.

    Raises:
        TypeError: for a list, or anything else that does not take a tensor of row numbers.
        ValueError: for no rows, a condition of another length, or NaN or infinite values (in a
            tensor at once, in other rows when they are read).
    """

    def __init__(self, rows: Rows, conditions: Mapping[str, Rows] | None = None) -> None:
        self.rows = rows
        self.conditions = {name: _native(values) for name, values in (conditions or {}).items()}
        _require_rows("data", rows)
        for name, values in self.conditions.items():
            _require_rows(name, values, condition=name)
            if len(values) != len(rows):
                raise ValueError(
                    f"{name} has {len(values)} entries for {len(rows)} samples; give one for each"
                )
        self.fingerprint = _fingerprint(rows)
        for name, values in sorted(self.conditions.items()):
            self.fingerprint += f"; {name}: {_fingerprint(values, name)}"
        digest = hashlib.sha256()
        for _, values in sorted(self.conditions.items()):
            if isinstance(values, Tensor | np.ndarray) and not isinstance(values, np.memmap):
                for first in range(0, len(values), _CHECKED_ROWS):
                    digest.update(_bytes(values[first : first + _CHECKED_ROWS]))
        if self.conditions:
            self.fingerprint += ALL_ROWS + digest.hexdigest()[:16]

    def batches(
        self, size: int, *, seed: int = 0, first: int = 0, part: slice = slice(None)
    ) -> Iterator[Tensor | Batch]:
        for numbers in shuffled_numbers(len(self.rows), size, seed=seed, first=first, part=part):
            x = _read(self.rows, numbers)
            values = {name: _read(rows, numbers, name) for name, rows in self.conditions.items()}
            yield Batch(x, values) if values else x


def shuffled_numbers(
    n: int, size: int, *, seed: int, first: int, part: slice
) -> Iterator[np.ndarray]:
    """The row numbers of batches of n samples; each epoch is a permutation by (seed, epoch)."""
    order_epoch = -1
    order = np.empty(0, dtype=np.int64)
    numbers = np.arange(size, dtype=np.int64)[part]
    while True:
        epochs, positions = np.divmod(first + numbers, n)
        batch_rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            if epoch != order_epoch:
                order_epoch = epoch
                order = np.random.default_rng([seed % 2**64, epoch]).permutation(n)
            batch_rows[epochs == epoch] = order[positions[epochs == epoch]]
        yield batch_rows
        first += size


def require_no_table(name: str, rows: object) -> None:
    """Refuses tables and columns, as of pandas, which take labels of rows and not their numbers.

    Raises:
        TypeError: says how to convert them.
    """
    if hasattr(rows, "to_numpy"):
        raise TypeError(
            f"{name} must be a tensor or an array, not a {type(rows).__name__}, whose rows are not "
            "taken by number; use its .to_numpy()"
        )


def _require_rows(name: str, rows: Any, condition: str | None = None) -> None:  # noqa: ANN401
    """Refuses what is not `Rows`, is empty, or is a tensor that is not finite."""
    require_no_table(name, rows)
    if isinstance(rows, list | tuple | dict | str) or not (
        hasattr(rows, "__len__") and hasattr(rows, "__getitem__")
    ):
        raise TypeError(
            f"{name} must be a tensor, an array, or an object with a length that takes a tensor "
            f"of row numbers, not {type(rows).__name__}; use torch.as_tensor"
        )
    if len(rows) < 1:
        raise ValueError(f"there are no data to train on: {len(rows)} samples")
    if isinstance(rows, Tensor):
        for first in range(0, len(rows), _CHECKED_ROWS):
            some = rows[first : first + _CHECKED_ROWS]
            require_finite(some, range(first, len(rows)), condition)


def _fingerprint(rows: Rows, condition: str | None = None) -> str:
    """The number of rows, their type and shape, and a hash of some of them."""
    n = len(rows)
    numbers = np.linspace(0, n - 1, min(n, _FINGERPRINT_ROWS)).astype(np.int64)
    subset = _read(rows, numbers, condition)
    digest = hashlib.sha256(_bytes(subset)).hexdigest()
    return (
        f"{n} samples of {subset.dtype} {tuple(subset.shape[1:])}, sha256 of {len(subset)} "
        f"{digest[:16]}"
    )


def _native(rows: Any) -> Any:  # noqa: ANN401
    """An array in the byte order of this machine, the only one that torch reads; others as they
    are.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype.isnative:
        return rows
    return rows.astype(rows.dtype.newbyteorder("="))


def _bytes(rows: Tensor | np.ndarray) -> bytes:
    if isinstance(rows, np.ndarray):
        return rows.tobytes()
    rows = rows.cpu().clone(memory_format=torch.contiguous_format)
    return rows.view(torch.uint8).numpy().tobytes()


def _read(rows: Rows, numbers: np.ndarray, condition: str | None = None) -> Tensor:
    # an array treats a tensor with one element as a scalar index
    samples = torch.as_tensor(
        _native(rows[numbers if isinstance(rows, np.ndarray) else torch.from_numpy(numbers)])
    )
    # On other devices each check would synchronise.
    if not isinstance(rows, Tensor) and samples.device.type == "cpu":
        require_finite(samples, numbers, condition)
    return samples
