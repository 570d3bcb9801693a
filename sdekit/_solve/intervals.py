"""The intervals of adaptive steps: of any length, or the dyadic intervals of a path."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit._grid import Dyadic
from sdekit._solve.active import ActiveSamples, Flags, Host, on_host
from sdekit._solve.control import PIDController

_ROUNDING = float(np.finfo(np.float64).eps)


class Interval(NamedTuple):
    """The next interval of each sample, arrays `(batch,)`.

    t1: where it ends. remaining: the time from there to the end of the solve. length: without sign.
    shortest: the length of the shortest interval there; None if there is no shortest one.
    """

    t1: Host
    remaining: Host
    length: Host
    shortest: Host | None = None


class AbstractIntervals(ABC):
    """The intervals over which steps may be taken."""

    @abstractmethod
    def after(self, active: ActiveSamples) -> Interval:
        """The next interval of each sample, of about the length h that the controller allows."""

    @abstractmethod
    def allowed(self, active: ActiveSamples, interval: Interval, factor: Host) -> Host:
        """The length that the controller's factor multiplies."""

    @abstractmethod
    def too_short(self, active: ActiveSamples, interval: Interval) -> Flags:
        """Whether there is no shorter interval to try after a rejection, `(batch,)`."""

    @abstractmethod
    def may_end(self, active: ActiveSamples) -> bool:
        """False if it is known cheaply that no sample has finished or failed."""


@dataclass(frozen=True, eq=False)
class FreeIntervals(AbstractIntervals):
    """Intervals of any length, for ordinary equations.

    In the first half times are counted from the start and then back from the end, so that both ends
    may be resolved far below the span, as where one of them is 0.

    start, end: the first and the last time. direction: 1 or -1. stretch: the factor by which the
    last step may be longer than allowed, to avoid a tiny last step; smaller than the factor by
    which a rejection shortens it. shortest_length: below this a step at time 0 is too short.
    stops: the jumps of the drift, at which steps end, in the order of the solve.
    """

    start: float
    end: float
    direction: int
    stretch: float
    shortest_length: float
    stops: Host

    @staticmethod
    def of(ts: list[float], control: PIDController, jumps: Sequence[float]) -> "FreeIntervals":
        """Those of a solve with output at ts, of a drift with jumps."""
        stretch = control.safety**-0.9
        shortest_length = _ROUNDING**1.5 * max(map(abs, ts))
        direction = 1 if ts[-1] > ts[0] else -1
        stops = np.array(sorted(inner_jumps(ts, jumps), reverse=direction < 0))
        return FreeIntervals(ts[0], ts[-1], direction, stretch, shortest_length, stops)

    def after(self, active: ActiveSamples) -> Interval:
        left = active.remaining
        length = np.where(left <= self.stretch * active.h, left, active.h)
        remaining = left - length
        from_start = active.t + self.direction * length
        early = np.abs(from_start - self.start) < remaining
        from_end = self.end - self.direction * remaining
        remaining = np.where(early, np.abs(self.end - from_start), remaining)
        interval = Interval(np.where(early, from_start, from_end), remaining, length)
        return self._stopped(active, interval) if len(self.stops) else interval

    def _stopped(self, active: ActiveSamples, interval: Interval) -> Interval:
        """The intervals, shortened to the next stop where they reach it."""
        ahead = np.searchsorted(self.direction * self.stops, self.direction * active.t, "right")
        stop = np.append(self.stops, self.direction * math.inf)[ahead]
        length = np.abs(stop - active.t)
        there = length <= self.stretch * active.h
        return Interval(
            np.where(there, stop, interval.t1),
            np.where(there, np.abs(self.end - stop), interval.remaining),
            np.where(there, length, interval.length),
        )

    def allowed(self, active: ActiveSamples, interval: Interval, factor: Host) -> Host:
        return interval.length

    def too_short(self, active: ActiveSamples, interval: Interval) -> Flags:
        return active.h < self._shortest(active)

    def may_end(self, active: ActiveSamples) -> bool:
        left = np.minimum(active.remaining, active.h - 2 * self._shortest(active))
        return bool((left + active.ended).min() <= 0)

    def _shortest(self, active: ActiveSamples) -> Host:
        """The shortest step of each sample that its times resolve in spite of rounding. It is
        relative to the larger of |t| and the distance from t to the nearer end of the span, from
        which times are counted.
        """
        counted = np.minimum(np.abs(active.t - self.start), active.remaining)
        largest = np.maximum(np.abs(active.t), counted)
        return np.maximum(16 * _ROUNDING * largest, self.shortest_length)


@dataclass(frozen=True, eq=False)
class DyadicIntervals(AbstractIntervals):
    """Dyadic intervals, for stochastic equations: a rejected step is halved.

    A solve visits all times that it had tried before. So every value of the path that was read is
    used, results are consistent for every kind of noise, and the path is read where it is cheapest.

    tree: the dyadic times. unused_bits: the number of unused lowest bits in each of its cells.
    end: the last time. direction: 1 or -1.
    """

    tree: Dyadic
    unused_bits: Tensor
    end: float
    direction: int

    @staticmethod
    def of(ts: list[float], path: Dyadic, jumps: Sequence[float]) -> "DyadicIntervals":
        """Those of a solve with output at ts on a path with the dyadic times of a tree. Cells end
        at the jumps of the drift.

        The cells are those of the path between the ends of the solve. If an end cuts a cell, the
        dyadic times of its rest are not those of the path, and intervals are at least 32 ticks of
        the path long; elsewhere at least one tick.

        Raises:
            ValueError: for a solve so short that the path does not resolve it.
        """
        low = min(ts[0], ts[-1])
        high = max(ts[0], ts[-1])
        cells = [(a, b) for a, b in pairwise(path.knots) if a < high and b > low]
        # Nearer to each other than this, the path does not resolve what is between two times.
        nearest = 64 * max(b - a for a, b in cells) * 2.0**-path.depth
        stops: list[float] = []
        for t in sorted(inner_jumps(ts, jumps)):
            if min(abs(t - other) for other in (*path.knots, *stops)) > nearest:
                stops.append(t)
        parts = [(a, b) for a, b in pairwise(sorted({*path.knots, *stops})) if a < high and b > low]
        knots = (low, *_inner_knots(parts, low, high), high)
        unused_bits = [_unused_bits(start, stop, cells) for start, stop in pairwise(knots)]
        if max(unused_bits) >= path.depth:
            raise ValueError(
                f"the solve from {ts[0]} to {ts[-1]} is shorter than the path resolves, "
                f"2^-{path.depth} of an interval of knots; give BrownianPath knots at the ends of "
                "the solve"
            )
        tree = Dyadic(knots, path.depth)
        direction = 1 if ts[-1] > ts[0] else -1
        return DyadicIntervals(tree, torch.tensor(unused_bits), ts[-1], direction)

    def after(self, active: ActiveSamples) -> Interval:
        t, h = map(torch.from_numpy, (active.t, active.h))
        step = self.tree.after(t, h, self.direction, self.unused_bits)
        t1, shortest = map(on_host, step)
        return Interval(t1, np.abs(self.end - t1), np.abs(t1 - active.t), shortest)

    def allowed(self, active: ActiveSamples, interval: Interval, factor: Host) -> Host:
        # Dyadic times may make a step shorter than h. If the next step may be longer than this one,
        # it may also be as long as h.
        length = interval.length
        return np.where(factor > 1, np.maximum(length, active.h / factor), length)

    def too_short(self, active: ActiveSamples, interval: Interval) -> Flags:
        assert interval.shortest is not None
        return interval.length < 1.5 * interval.shortest

    def may_end(self, active: ActiveSamples) -> bool:
        return True


def inner_jumps(ts: list[float], jumps: Sequence[float]) -> set[float]:
    """The jumps strictly between the ends of a solve."""
    return {float(t) for t in jumps if min(ts[0], ts[-1]) < t < max(ts[0], ts[-1])}


def _inner_knots(cells: list[tuple[float, float]], low: float, high: float) -> list[float]:
    """The knots between the ends of a solve. A tiny rest of a cell is joined to the neighbouring
    cell: an end often differs from a knot by rounding only.
    """
    return [
        b
        for (a, b), (_, d) in pairwise(cells)
        if b - low > (b - a) / 64 and high - b > (d - b) / 64
    ]


def _unused_bits(start: float, stop: float, cells: list[tuple[float, float]]) -> int:
    """The number of unused lowest bits of a cell from start to stop, given the path's cells."""
    length = max((b - a for a, b in cells if a < stop and b > start), default=stop - start)
    uncut = any((start, stop) == cell for cell in cells)
    return max(0, math.ceil(math.log2((1 if uncut else 32) * length / (stop - start))))
