"""Code lengths of points in bits per dimension, estimated, and their mean over a population."""

import math
from abc import ABC, abstractmethod

from torch import Tensor


class AbstractCodeLength(ABC):
    """Estimates of the code length of every point, and of its mean over a population."""

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """Bits per dimension of every point, `(batch,)`."""

    @property
    @abstractmethod
    def stderr(self) -> Tensor:
        """The standard error of `value`, `(batch,)`."""

    @property
    def mean(self) -> float:
        """The mean over the points."""
        return float(self.value.mean())

    @property
    def mean_stderr(self) -> float:
        """The standard error of the mean as an estimate for the population, from the spread of the
        points.
        """
        n = len(self.value)
        return float(self.value.std() / math.sqrt(n)) if n > 1 else math.nan
