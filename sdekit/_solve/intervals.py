"""The intervals over which adaptive steps go: of any length, or the dyadic ones of a path."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._grid import Dyadic
from sdekit._solve.control import PIDController
from sdekit._solve.working import Working


class Interval(NamedTuple):
    """The next interval of each sample; float64, `(batch,)`, on the host.

    t1: where it ends. left: the time from there to the end of the solve. length: without sign.
    shortest: the length of the shortest there is at that place; None where there is no such length.
    """

    t1: Tensor
    left: Tensor
    length: Tensor
    shortest: Tensor | None = None


class AbstractIntervals(ABC):
    """Which intervals there are for steps."""

    @abstractmethod
    def after(self, now: Working) -> Interval:
        """The next interval of each sample, of about the length h that the controller allows."""

    @abstractmethod
    def allowed(self, now: Working, interval: Interval, factor: Tensor) -> Tensor:
        """The length that the controller's factor is of."""

    @abstractmethod
    def too_short(self, now: Working, interval: Interval) -> Tensor:
        """Where there is no shorter interval to try, if this one was rejected."""

    @abstractmethod
    def may_end(self, now: Working) -> bool:
        """False where it is cheap to see that no sample has finished or failed."""


@dataclass(frozen=True, eq=False)
class FreeIntervals(AbstractIntervals):
    """Intervals of any length, for ordinary equations.

    end: the last time. direction: 1 or -1. stretch: how much longer than allowed the last step may
    be, lest a sliver be left; less than by what a rejection makes it shorter. floor: the shortest
    length.
    """

    end: Tensor
    direction: int
    stretch: float
    floor: float

    @staticmethod
    def of(ts: list[float], control: PIDController) -> "FreeIntervals":
        """Those of a solve with output at ts."""
        stretch = control.safety**-0.9
        floor = 16 * torch.finfo(torch.float64).eps * max(map(abs, ts))
        end = torch.tensor(ts[-1], dtype=torch.float64)
        return FreeIntervals(end, 1 if ts[-1] > ts[0] else -1, stretch, floor)

    def after(self, now: Working) -> Interval:
        length = torch.where(now.left <= self.stretch * now.h, now.left, now.h)
        left = now.left - length
        return Interval(torch.add(self.end, left, alpha=-self.direction), left, length)

    def allowed(self, now: Working, interval: Interval, factor: Tensor) -> Tensor:
        return interval.length

    def too_short(self, now: Working, interval: Interval) -> Tensor:
        return now.h < self.floor

    def may_end(self, now: Working) -> bool:
        return bool(torch.minimum(now.left, now.h).add_(now.gone).amin() <= 2 * self.floor)


@dataclass(frozen=True, eq=False)
class DyadicIntervals(AbstractIntervals):
    """Dyadic intervals, for stochastic equations: a rejected step is halved.

    The walk along them comes by the times it had tried before. So all that was learned of the path
    is used, and results are consistent for every kind of noise; and the path is read where it costs
    least.

    tree: the dyadic times. coarse: how many of the lowest bits are not used in each of its cells.
    end: the last time. direction: 1 or -1.
    """

    tree: Dyadic
    coarse: Tensor
    end: Tensor
    direction: int

    @staticmethod
    def of(ts: list[float], path: Dyadic) -> "DyadicIntervals":
        """Those of a solve with output at ts on a path that lives on a tree.

        The cells are those of the path between the ends of the solve. Where an end cuts a cell, its
        dyadic times are not the path's: then an interval is 32 of the path's ticks long at least,
        and one of them where they are.

        Raises:
            ValueError: for a solve so short that the path does not resolve it.
        """
        low = min(ts[0], ts[-1])
        high = max(ts[0], ts[-1])
        cells = [(a, b) for a, b in pairwise(path.knots) if a < high and b > low]
        knots = (low, *_inner(cells, low, high), high)
        coarse = [_unused_bits(start, stop, cells) for start, stop in pairwise(knots)]
        if max(coarse) >= path.depth:
            raise ValueError(
                f"the solve from {ts[0]} to {ts[-1]} is shorter than the path resolves, "
                f"2^-{path.depth} of an interval of knots; give BrownianPath knots at the ends of "
                "the solve"
            )
        end = torch.tensor(ts[-1], dtype=torch.float64)
        tree = Dyadic(knots, path.depth)
        return DyadicIntervals(tree, torch.tensor(coarse), end, 1 if ts[-1] > ts[0] else -1)

    def after(self, now: Working) -> Interval:
        t1, shortest = self.tree.after(now.t, now.h, self.direction, self.coarse)
        return Interval(t1, (self.end - t1).abs(), (t1 - now.t).abs(), shortest)

    def allowed(self, now: Working, interval: Interval, factor: Tensor) -> Tensor:
        # Where alignment made a step shorter than it was allowed to be, it stays allowed.
        length = interval.length
        return torch.where(factor > 1, torch.maximum(length, now.h / factor), length)

    def too_short(self, now: Working, interval: Interval) -> Tensor:
        assert interval.shortest is not None
        return interval.length < 1.5 * interval.shortest

    def may_end(self, now: Working) -> bool:
        return True


def _inner(cells: list[tuple[float, float]], low: float, high: float) -> list[float]:
    """The knots between the ends of a solve. A cell of which hardly anything is left is joined to
    its neighbour: an end is often a rounding away from a knot.
    """
    return [
        b
        for (a, b), (_, d) in pairwise(cells)
        if b - low > (b - a) / 64 and high - b > (d - b) / 64
    ]


def _unused_bits(start: float, stop: float, cells: list[tuple[float, float]]) -> int:
    """How many of the lowest bits of a cell from start to stop are not used, given the path's."""
    length = max((b - a for a, b in cells if a < stop and b > start), default=stop - start)
    whole = any((start, stop) == cell for cell in cells)
    return max(0, math.ceil(math.log2((1 if whole else 32) * length / (stop - start))))
