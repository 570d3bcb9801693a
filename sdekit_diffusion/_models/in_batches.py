"""Batches of samples that are solved together."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sdekit_diffusion._models.model import AbstractModel


def batches(
    model: AbstractModel, n: int, size: int | None, device: torch.device
) -> Iterator[tuple[int, Tensor, AbstractModel]]:
    """Batches of `size` of n samples, or one of all: the index of the first sample, the indices
    `(batch,)`, and the model for these samples.

    For n = 0 there is one empty batch.
    """
    size = size or max(n, 1)
    for first in range(0, max(n, 1), size):
        rows = torch.arange(first, min(first + size, n), device=device)
        yield first, rows, model.rows(rows)
