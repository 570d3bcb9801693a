"""What a grid is: a rule for the steps of a solve from noise to data."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates, Span

DEFAULT_END = 1e-3  # sigma / alpha at the end of a solve, in units of s
Levels = Tensor | np.ndarray | Sequence[float]  # of noise, sigma / alpha


@dataclass(frozen=True, eq=False)
class AbstractGrid(ABC):
    """A rule that divides a span of l = log(alpha s / sigma), from the noisy end to the clean one,
    into steps.

    s is the standard deviation of the data: l is the log-SNR of data that are divided by s.

    Attributes:
        follows_model: whether steps are short where the model varies fast, so that multistep rules
            of high order are stable.
        count: the number of steps of the grid; None where any number is possible.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Squared(sd.AbstractGrid):  # steps of l that grow linearly
        ...     def points(self, coordinates, span, steps):
        ...         u = sdekit.uniform(0.0, 1.0, steps)
        ...         return span[0] + (span[1] - span[0]) * u**2
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=Squared(), seed=0).shape
        torch.Size([4, 1])
    """

    follows_model: ClassVar[bool] = False

    @property
    def count(self) -> int | None:
        return None

    @property
    def denoises(self) -> bool:
        """Whether the last state is replaced by the mean of the data given this state."""
        return False

    def span(self, model: AbstractModel, coordinates: Coordinates, end: float) -> Span:
        """l at both ends of a solve that stops at sigma / alpha = end s.

        Raises:
            ValueError: when the span is empty.
        """
        return coordinates.span(model, end)

    @abstractmethod
    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        """l at the ends of the steps: float64, `(steps + 1,)`, increasing from the first end of the
        span to the last.

        Raises:
            ValueError: for a span or a number of steps that the grid does not support.
        """


def with_exact_ends(l: Tensor | float, span: Span) -> Tensor:
    """Points whose ends, which formulas may round, are replaced by those of the span."""
    points = torch.as_tensor(l)
    points[0], points[-1] = span
    return points
