"""Time grids: one-dimensional float64 tensors, increasing or decreasing."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from operator import gt, lt
from typing import Any

import torch
from torch import Tensor


def uniform(t0: float, t1: float, steps: int) -> Tensor:
    """A grid of equal steps that begins and ends with exactly t0 and t1, float64, `(steps + 1,)`.

    Raises:
        TypeError: for times that are not numbers, or steps that are not an integer.
        ValueError: for times that are not finite or equal, or fewer than one step.

    Example:
        >>> sdekit.uniform(0.0, 1.0, 4).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    _require_steps(steps)
    _require_ends(t0, t1)
    return torch.linspace(t0, t1, steps + 1, dtype=torch.float64)


def geometric(t0: float, t1: float, steps: int) -> Tensor:
    """A grid with a constant ratio t_{i+1} / t_i that begins and ends with exactly t0 and t1,
    float64, `(steps + 1,)`.

    Raises:
        TypeError: for times that are not numbers, or steps that are not an integer.
        ValueError: unless t0 and t1 are positive, finite and different and steps >= 1.

    Example:
        >>> [round(t, 6) for t in sdekit.geometric(1.0, 0.01, 2).tolist()]
        [1.0, 0.1, 0.01]
    """
    _require_ends(t0, t1)
    if not (t0 > 0 and t1 > 0):
        raise ValueError(
            f"a geometric grid needs two positive times, not {t0} and {t1}; use uniform, or shift "
            "the time"
        )
    grid = uniform(math.log(t0), math.log(t1), steps).exp()
    grid[0] = t0
    grid[-1] = t1
    return grid


def require_integer(name: str, value: Any) -> int:  # noqa: ANN401 - whatever a user gives
    """An integer of any type as Python's.

    Raises:
        TypeError: for other values.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is an integer, not {value!r:.60}") from None


def _require_ends(t0: float, t1: float) -> None:
    """Refuses ends of a grid that are not finite, or no interval.

    Raises:
        TypeError, ValueError: with both.
    """
    try:
        ends_are_finite = math.isfinite(t0) and math.isfinite(t1) and math.isfinite(t1 - t0)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"t0 and t1 are the ends of a grid, two times; not {t0!r} and {t1!r}"
        ) from None
    if not ends_are_finite:
        raise ValueError(
            "a grid goes from t0 to t1, with a finite difference of two finite times; not from "
            f"{t0} to {t1}"
        )
    if t0 == t1:
        raise ValueError(f"a grid goes from t0 to another time t1; not from {t0} to {t1}")


def _require_steps(steps: int) -> None:
    """Refuses numbers of steps that are not an integer, or less than 1.

    Raises:
        TypeError, ValueError: with the number.
    """
    try:
        operator.index(steps)
    except TypeError:
        raise TypeError(
            f"the arguments of a grid are t0, t1 and the number of its steps, an integer; not "
            f"{steps!r:.60}"
        ) from None
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, not {steps}")


def real_times(values: object) -> Tensor:
    """Times as a tensor, float64 on the CPU.

    Raises:
        TypeError, ValueError, RuntimeError: for values that are not real numbers, or are bools.
    """
    dtype = torch.as_tensor(values).dtype
    if dtype == torch.bool or dtype.is_complex:
        raise TypeError(f"{dtype} is not the type of times")
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def times(ts: Tensor | Sequence[float]) -> list[float]:
    """A grid as Python floats, checked.

    Raises:
        TypeError: when ts holds something other than numbers.
        ValueError: when ts is not one-dimensional, has fewer than two points, is not finite or not
            strictly monotone.
    """
    grid = _floats(ts)
    if len(grid) < 2:
        raise _wrong_shape(len(grid))
    if not all(map(math.isfinite, grid)):
        raise ValueError("ts holds a time that is not finite; give finite times")
    if not (all(map(lt, grid, grid[1:])) or all(map(gt, grid, grid[1:]))):
        raise ValueError(
            "ts must increase strictly or decrease strictly; sort it and drop the repeated times"
        )
    return grid


def _floats(ts: Tensor | Sequence[float]) -> list[float]:
    """Times as Python floats.

    Raises:
        TypeError, ValueError: as `times`.
    """
    if isinstance(ts, list | tuple) and {*map(type, ts)} == {float}:
        return [*ts]  # in less time than through a tensor
    try:
        values = real_times(ts)
    except (TypeError, ValueError, RuntimeError) as error:
        given = f"{ts!r:.60}"
        raise TypeError(
            f"ts must be a tensor or a sequence of numbers, not {given}; give [0.0, 1.0], for "
            "example"
        ) from error
    if values.ndim != 1:
        raise _wrong_shape(*values.shape)
    try:
        return values.tolist()
    # Under a transform of torch.func some versions of torch only allow reading single numbers.
    except RuntimeError:
        return [float(value) for value in values]


def _wrong_shape(*shape: int) -> ValueError:
    """The error for times that are not a grid."""
    return ValueError(f"ts must be one-dimensional with at least two times, not of shape {shape}")


def rounded_to_ends(values: Any, t0: float, t1: float) -> Tensor:  # noqa: ANN401
    """Times as float64, moved to an end of a span from which the rounding of their dtype moved
    them.

    Raises:
        TypeError, ValueError, RuntimeError: as `real_times`.
    """
    times = real_times(values)
    dtype = torch.as_tensor(values).dtype if hasattr(values, "dtype") else torch.float64
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    ends = times.clamp(min(t0, t1), max(t0, t1))
    return torch.where((ends - times).abs() <= eps * max(abs(t0), abs(t1)), ends, times)


def fixed_times(ts: Tensor | Sequence[float]) -> list[float]:
    """The `times` of a solve without gradients with respect to them.

    Raises:
        TypeError, ValueError: as `times`, and for times that require a gradient.
    """
    require_no_gradient("ts", ts)
    return times(ts)


def require_no_gradient(name: str, values: object) -> None:
    """Refuses times that require a gradient, which would be None.

    Raises:
        ValueError: with what to do.
    """
    parts = values if isinstance(values, list | tuple) else (values,)
    if {*map(type, parts)} <= {float, int}:
        return
    if torch.is_grad_enabled() and any(getattr(part, "requires_grad", False) for part in parts):
        raise ValueError(
            f"{name} requires a gradient, and a solve has none with respect to its times: detach "
            f"it, as by {name}.detach(), or take sdekit.odeint for an ordinary equation, which has"
        )


@dataclass(frozen=True, eq=False)
class Dyadic:
    """Times as integers: each interval between neighbouring knots, a cell, is 2^depth ticks long.

    Arguments:
        knots: at least two increasing times.
        depth: from 1 to 32.

    Raises:
        TypeError: for a depth that is not an integer, or knots that are not several times.
        ValueError: for knots that do not increase, or a depth out of range.
    """

    knots: Sequence[float]
    depth: int

    def __post_init__(self) -> None:
        wrong = TypeError(
            f"knots are two or more times, such as (0.0, 1.0), not {self.knots!r:.60}"
        )
        try:
            given = torch.as_tensor(self.knots, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise wrong from None
        if given.ndim != 1:
            raise wrong
        knots = given.tolist()
        if len(knots) < 2 or not all(a < b and math.isfinite(b - a) for a, b in pairwise(knots)):
            raise ValueError(
                f"knots must be at least two increasing finite times, not {self.knots}"
            )
        depth = require_integer("depth, a number of levels,", self.depth)
        if not 1 <= depth <= 32 or self.cells << self.depth > 1 << 36:
            raise ValueError(
                "depth must be from 1 to 32, and 2^depth times the number of cells at most 2^36, "
                f"not {self.depth}"
            )
        object.__setattr__(self, "knots", tuple(knots))

    @property
    def cells(self) -> int:
        return len(self.knots) - 1

    def knots_on(self, device: torch.device) -> Tensor:
        """The knots as a tensor, float64."""
        return _tensor_on(tuple(self.knots), device)

    def ticks(self, t: Tensor) -> Tensor:
        """The tick nearest to a time, int64: cell 2^depth + the tick in the cell. Times outside the
        knots get ticks as if the first and the last cell went on.
        """
        knots = self.knots_on(t.device)
        cell = (
            torch.searchsorted(knots, t.to(torch.float64), right=True)
            .sub_(1)
            .clamp_(0, self.cells - 1)
        )
        start = knots[cell]
        return (
            ((t - start) / (knots[cell + 1] - start))
            .mul_(1 << self.depth)
            .round_()
            .to(torch.int64)
            .add_(cell << self.depth)
        )

    def times(self, ticks: Tensor) -> Tensor:
        """The times of ticks, float64."""
        knots = self.knots_on(ticks.device)
        cell = (ticks >> self.depth).clamp_(0, self.cells - 1)
        return torch.lerp(
            knots[cell],
            knots[cell + 1],
            (ticks - (cell << self.depth)).to(torch.float64) * 2.0**-self.depth,
        )

    def after(
        self, t: Tensor, h: Tensor, direction: int, unused_bits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The end of the longest dyadic interval that begins at t and is at most h long, and the
        length of the shortest interval there; if even that is longer than h, it is taken.

        Dyadic intervals are nested, so a solve that shortens a step still visits the time that it
        had tried before.

        Arguments:
            t, h: times and lengths, `(n,)`.
            direction: 1 or -1.
            unused_bits: the number of unused lowest bits of a tick, per cell, `(cells,)`.
        """
        ticks = self.ticks(t)
        knots = self.knots_on(t.device)
        cell = ((ticks if direction > 0 else ticks - 1) >> self.depth).clamp_(0, self.cells - 1)
        tick_length = (knots[cell + 1] - knots[cell]) * 2.0**-self.depth
        shortest = torch.ones_like(ticks) << unused_bits[cell]
        allowed = torch.minimum(
            torch.maximum(h / tick_length, shortest.to(torch.float64)),
            shortest.new_tensor(1 << self.depth),
        )
        longest = torch.ones_like(ticks) << allowed.log2_().add_(1e-9).floor_().to(torch.int64)
        offset = ticks - (cell << self.depth)
        alignment = torch.where(offset == 0, 1 << self.depth, offset & -offset)
        return self.times(
            ticks + direction * torch.minimum(longest, alignment)
        ), tick_length * shortest


@lru_cache(maxsize=64)
def _tensor_on(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
