"""The labels of the levels of a grid, made together and kept for later calls."""

from collections.abc import Hashable, MutableMapping, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from sdekit.calling import is_recorded, is_transformed

_BLOCK = 1 << 16  # labels made together, few enough for the cache of the processor

# A column of the labels of all levels, and one label per sample for each level, by what they are
# for: the thread, the size of the batch, the dtype. At most one.
Kept = MutableMapping[Hashable, tuple[Tensor, Sequence[Tensor]]]


class Labels:
    """The labels of several levels, one per sample of a batch, made for a block of levels together.

    Arguments:
        values: the labels of all levels.
        dtype, device: those of the labels; None for those of the points.
        kept: the labels of earlier calls with these values, which are used again by batches of the
            same kind in the same thread, and replaced otherwise. Labels that a network has changed
            are made again. Those on a device, in inference mode, under transforms and of more
            than one block are not kept.
    """

    def __init__(
        self,
        values: Sequence[float],
        dtype: torch.dtype | None,
        device: torch.device | None,
        kept: Kept,
    ) -> None:
        self.values = values
        self.dtype = dtype
        self.device = device
        self.kept = kept
        # The size, dtype and device of a batch and whether inference mode is on; the labels of all
        # levels as a column, and a block of levels, of which the first is named. Replaced as a
        # whole, since threads may share this object.
        self._last: tuple[Any, ...] = (0, None, None, False, None, 0, ())

    def at(self, i: int, x: Tensor) -> Tensor:
        """The labels of level i for the samples of a batch x."""
        # One comparison after another is faster than that of tuples.
        n, dtype, device, inferring, column, first, block = self._last
        same = n == x.shape[0] and dtype is x.dtype and device == x.device
        if not same or inferring is not torch.is_inference_mode_enabled():
            column = None
        if column is None or not 0 <= i - first < len(block):
            first, block = self._find(i, x, column)
        return block[i - first]

    def _find(self, i: int, x: Tensor, column: Tensor | None) -> tuple[int, Sequence[Tensor]]:
        """The first of a block of levels with i, and their labels; `column` if it is known."""
        n = x.shape[0]
        size = max(1, _BLOCK // max(1, n))
        first = i // size * size
        inferring = torch.is_inference_mode_enabled()
        key = get_ident(), n, self.dtype or x.dtype
        is_keeping = size >= len(self.values) and not inferring and self._on_plain_cpu(x)
        kept = self.kept.get(key) if is_keeping else None
        if kept is not None and _is_unchanged(*kept):
            column, block = kept
        else:
            if column is None:
                column = self._column(x)
            # Copies: the rounding of functions of numbers that share their memory depends on the
            # size of the batch.
            rows = column[first : first + size].expand(-1, n)
            block = rows.clone(memory_format=torch.contiguous_format).unbind()
            if is_keeping:
                self.kept.clear()
                self.kept[key] = column, block
        self._last = n, x.dtype, x.device, inferring, column, first, block
        return first, block

    def _column(self, x: Tensor) -> Tensor:
        """The labels of all levels, copied once, since a copy to a device may wait for its queued
        work.
        """
        column = torch.tensor(self.values, dtype=torch.float64).unsqueeze(1)
        return column.to(self.device or x.device, self.dtype or x.dtype, non_blocking=True)

    def _on_plain_cpu(self, x: Tensor) -> bool:
        """Whether the labels are tensors on the CPU that nothing transforms, traces or replaces."""
        device = self.device or x.device
        return device.type == "cpu" and not (is_transformed() or is_recorded(x))


def _is_unchanged(column: Tensor, block: Sequence[Tensor]) -> bool:
    """Whether the labels are as they were made: never changed in place, of the same values, and
    without gradients.
    """
    if block[0]._version:
        return False
    with torch.enable_grad():
        now = torch.stack([*block])
    return not now.requires_grad and torch.equal(now, column.expand_as(now))
