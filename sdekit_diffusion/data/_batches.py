"""The order of samples in a training run, which depends on the seed alone."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_CHECKED_ROWS = 4096  # rows of a tensor that are checked together
_FINGERPRINT_ROWS = 1000  # evenly spaced rows that identify the data


class Rows(Protocol):
    """Samples by their number: a tensor, an array, or any object that has a length and takes a
    tensor of row numbers.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...  # noqa: ANN401 - of a tensor of numbers a tensor or an array


def require_finite(rows: Tensor, numbers: Sequence[int] | np.ndarray) -> None:
    """Refuses samples that have NaN or infinite values, by their numbers.

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
    raise ValueError(
        f"the data have NaN or infinite values in rows {row_list}; remove or repair these samples"
    )


class AbstractSource(ABC):
    """Samples for a training run, in an endless order that depends on the seed alone: not on
    batch size, process or worker.

    Attributes:
        fingerprint: identifies the samples, so that a run is not resumed with other data; "" to
            skip this check.

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
    ) -> Iterator[Tensor]:
        """An endless iterator of batches, the first of which begins with number `first` of the
        order.

        Arguments:
            size: samples of a batch; one may span epochs.
            seed: of the order.
            first: the number of earlier samples, to resume a run.
            part: which samples of each batch to load; all unless given.
        """


class Shuffled(AbstractSource):
    """Each epoch a new permutation of all samples, which depends on (seed, epoch).

    Arguments:
        rows: `(n, *shape)`, a tensor or other `Rows`.

    Raises:
        TypeError: for a list, or anything else that does not take a tensor of row numbers.
        ValueError: for no rows, or rows with NaN or infinite values: of a tensor at once, of others
            when they are read.
    """

    def __init__(self, rows: Rows) -> None:
        if isinstance(rows, list | tuple | dict | str) or not (
            hasattr(rows, "__len__") and hasattr(rows, "__getitem__")
        ):
            raise TypeError(
                "data must be a tensor, an array, or an object with a length that takes a tensor "
                f"of row numbers, not {type(rows).__name__}; use torch.as_tensor"
            )
        if len(rows) < 1:
            raise ValueError(f"there are no data to train on: {len(rows)} samples")
        self.rows = rows
        n = len(rows)
        if isinstance(rows, Tensor):
            for first in range(0, n, _CHECKED_ROWS):
                require_finite(rows[first : first + _CHECKED_ROWS], range(first, n))
        subset = (
            self._read(np.linspace(0, n - 1, min(n, _FINGERPRINT_ROWS)).astype(np.int64))
            .cpu()
            .contiguous()
        )
        digest = hashlib.sha256(subset.view(torch.uint8).numpy().tobytes()).hexdigest()
        self.fingerprint = (
            f"{n} samples of {subset.dtype} {tuple(subset.shape[1:])}, sha256 of {len(subset)} "
            f"{digest[:16]}"
        )

    def _read(self, numbers: np.ndarray) -> Tensor:
        # an array treats a tensor with one element as a scalar index
        samples = torch.as_tensor(
            self.rows[numbers if isinstance(self.rows, np.ndarray) else torch.from_numpy(numbers)]
        )
        # On other devices each check would synchronise.
        if not isinstance(self.rows, Tensor) and samples.device.type == "cpu":
            require_finite(samples, numbers)
        return samples

    def batches(
        self, size: int, *, seed: int = 0, first: int = 0, part: slice = slice(None)
    ) -> Iterator[Tensor]:
        n = len(self.rows)
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
            yield self._read(batch_rows)
            first += size
