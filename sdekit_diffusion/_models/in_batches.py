"""Batches of samples that are solved together."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sdekit_diffusion._models.model import AbstractModel


def batches(
    model: AbstractModel, n: int, size: int | None, device: torch.device
) -> Iterator[tuple[int, Tensor, AbstractModel]]:
    """Of n samples, `size` at a time, or all: the number of the first, `(batch,)` numbers, their
    model.

    Of no samples there is one batch, an empty one.
    """
    size = size or max(n, 1)
    for first in range(0, max(n, 1), size):
        rows = torch.arange(first, min(first + size, n), device=device)
        yield first, rows, model.rows(rows)
