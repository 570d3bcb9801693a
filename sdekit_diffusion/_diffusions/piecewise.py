"""Piecewise linear functions of time, and sequences of numbers as parameters."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from sdekit.elementary import Time


@dataclass(frozen=True)
class PiecewiseLinear:
    """The increasing function through points (x_i, y_i), linear between neighbours; the first and
    the last piece extend beyond the points.

    Arguments:
        x, y: at least two strictly increasing numbers each.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, x: Time) -> Time:
        x0, y0, slope = self._piece(x)
        return _like(y0 + slope * (x - x0), x)

    def slope(self, x: Time) -> Time:
        """The derivative; at a point (x_i, y_i) that of the piece after it."""
        return _like(self._piece(x)[2], x)

    @cached_property
    def inverse(self) -> "PiecewiseLinear":
        """x as a function of y."""
        return PiecewiseLinear(self.y, self.x)

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self._pieces, dtype=torch.float64)

    @cached_property
    def _pieces(self) -> list[tuple[float, float, float]]:
        """(x_i, y_i, slope) of each piece."""
        points = pairwise(zip(self.x, self.y, strict=True))
        return [(x0, y0, (y1 - y0) / (x1 - x0)) for (x0, y0), (x1, y1) in points]

    def _piece(self, x: Time) -> tuple[Time, Time, Time]:
        if not isinstance(x, Tensor):
            return self._pieces[bisect_right(self.x, x, 1, len(self.x) - 1) - 1]
        table = self._table.to(x.device, non_blocking=True)
        index = torch.searchsorted(table[1:, 0].contiguous(), x.to(torch.float64), right=True)
        x0, y0, slope = table[index].unbind(dim=-1)
        return x0, y0, slope


def _like(value: Time, x: Time) -> Time:
    """A value in the dtype of x; in the default dtype where x is a tensor of integers."""
    if not (isinstance(value, Tensor) and isinstance(x, Tensor)):
        return value
    return value.to(x.dtype if x.is_floating_point() else torch.get_default_dtype())


def require_increasing(function: PiecewiseLinear, reason: str) -> None:
    """Refuses a function that is constant on a piece, since it has no inverse.

    Raises:
        ValueError: with the reason.
    """
    if not all(a < b for a, b in pairwise(function.y)):
        raise ValueError(f"{reason} in float64; leave these out")


def numbers(values: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The values as a tuple of floats, by which diffusions are compared.

    Raises:
        TypeError: for values that are not numbers.
    """
    try:
        return tuple(torch.as_tensor(values, dtype=torch.float64).flatten().tolist())
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"give a sequence of numbers, or a tensor, not {values!r:.60}") from error


def summary(values: Sequence[float] | Tensor) -> str:
    """The values as text if there are at most six, else their number, first and last."""
    if len(values) <= 6:
        return ", ".join(f"{float(value):g}" for value in values)
    return f"{len(values)} values from {float(values[0]):g} to {float(values[-1]):g}"
