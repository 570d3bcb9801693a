"""The value of a metric between real samples, the floor for any model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit_diffusion.metrics._points import Matrix, require_count


@dataclass(frozen=True, eq=False)
class Floor:
    """The values of a metric between two sets of real samples.

    Attributes:
        values: one for each draw, (draws,), or (draws, ...) for a metric of several numbers.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> floor = sd.metrics.sampling_floor(sd.metrics.energy_distance, x, 50, draws=4)
        >>> floor.values.shape, bool(floor.mean > 0)
        ((4,), True)
    """

    values: Matrix

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean over the draws."""
        return self.values.mean(axis=0)

    @property
    def std(self) -> NDArray[np.float64]:
        """The standard deviation over the draws, by which the values of exact models vary; NaN for
        one draw.
        """
        return (
            self.values.std(axis=0, ddof=1)
            if len(self.values) > 1
            else np.full(self.values.shape[1:], np.nan)
        )


def sampling_floor(
    metric: Callable[[Any, Any], Any],
    reference: NDArray[Any] | Tensor,
    n: int,
    *,
    against: int | None = None,
    draws: int = 10,
    seed: int = 0,
) -> Floor:
    """The metric between two disjoint sets drawn at random from real samples, for several draws:
    the value that an exact model would have.

    Different draws share samples. So their spread is too small where the reference is not much
    larger than the two sets together.

    Args:
        metric: a function of two sets that returns a number or a tuple of numbers, such as
            `energy_distance`, or `functools.partial(mmd, kernel="polynomial")`.
        reference: real samples (N, ...).
        n: the number of samples in the first set, in the place of a model's.
        against: the number of real samples in the second set; n unless given.
        draws: the number of draws.
        seed: of the draws.

    Raises:
        ValueError: for fewer than n + against samples, or numbers that are not whole, from 1 on.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> floor = sd.metrics.sampling_floor(sd.metrics.energy_distance, x, 50, draws=4)
        >>> floor.values.shape
        (4,)
    """
    against = n if against is None else against
    for name, value in {"n": n, "against": against, "draws": draws}.items():
        require_count(name, value, 10)
    if len(reference) < n + against:
        raise ValueError(
            f"the reference has {len(reference)} samples; two disjoint sets of {n} and {against} "
            f"need {n + against}: take smaller ones"
        )
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        rows: Any = rng.permutation(len(reference))[: n + against]
        rows = (
            torch.from_numpy(rows).to(reference.device) if isinstance(reference, Tensor) else rows
        )
        values.append(metric(reference[rows[:n]], reference[rows[n:]]))
    return Floor(np.asarray(values, dtype=np.float64))
