"""Exponential moving averages of weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averages:
    """An average of the weights for each of some decays.

    Attributes:
        values: the averages, by decay and weight.

    Arguments:
        weights: changed in place, by the updates of a training run.
        decays: which the averages approach as min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, weights: list[Tensor], decays: Sequence[float]) -> None:
        self._weights = weights
        self._decays = decays
        self.values = [[weight.detach().clone() for weight in weights] for _ in decays]

    def update(self, step: int) -> None:
        """Updates the averages with the weights after update number `step`, counted from 0."""
        for decay, average in zip(self._decays, self.values, strict=True):
            # The first copies the weights.
            decay_now = min(decay, (1 + step) / (10 + step)) if step else 0.0
            get_ema_multi_avg_fn(decay_now)(average, self._weights, step)

    def fill(self, index: int = 0) -> None:
        """Copies an average to the weights."""
        self._copy(self.values[index])

    @contextmanager
    def filled(self, index: int = 0) -> Iterator[None]:
        """A context in which the weights have the values of an average."""
        original = [weight.detach().clone() for weight in self._weights]
        self.fill(index)
        try:
            yield
        finally:
            self._copy(original)

    def _copy(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)
