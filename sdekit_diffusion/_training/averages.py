"""Averages of weights along a training run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sdekit_diffusion._training.profiles import exponent


class Averages:
    """Moving averages of the weights: one for each decay, then one for each relative width.

    Attributes:
        values: the averages, a list of tensors for each decay or width.

    Arguments:
        weights: those that are trained, which updates change in place.
        decays: of exponential averages; after update n the decay is min(decay, (1 + n) / (10 + n)).
        widths: of averages in which the weights after update n count in proportion to n^gamma: the
            decay of update n is (1 - 1 / n)^(gamma + 1), see `profiles.py`.
    """

    def __init__(
        self, weights: list[Tensor], decays: Sequence[float], widths: Sequence[float] = ()
    ) -> None:
        self._weights = weights
        self._decays = decays
        self._powers = [exponent(width) + 1 for width in widths]
        count = len(decays) + len(widths)
        self.values = [[weight.detach().clone() for weight in weights] for _ in range(count)]

    def update(self, step: int) -> None:
        """Updates the averages with the weights after update number `step`, counted from 0."""
        # The first update copies the weights.
        decays = [min(decay, (1 + step) / (10 + step)) if step else 0.0 for decay in self._decays]
        decays += [(step / (step + 1)) ** power for power in self._powers]
        for decay, average in zip(decays, self.values, strict=True):
            get_ema_multi_avg_fn(decay)(average, self._weights, step)

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
