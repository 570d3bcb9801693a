"""Time grids: one-dimensional float64 tensors, increasing or decreasing."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(t0: float, t1: float, steps: int) -> Tensor:
    """steps equal steps from t0 to t1: shape `(steps + 1,)`, both ends exact."""
    _require_steps(steps)
    return torch.linspace(t0, t1, steps + 1, dtype=torch.float64)


def geometric(t0: float, t1: float, steps: int) -> Tensor:
    """steps steps from t0 to t1 with a constant ratio t_{i+1} / t_i: shape `(steps + 1,)`, both ends exact.

    Raises:
        ValueError: when t0 and t1 are not both positive.
    """
    if not (t0 > 0 and t1 > 0):
        raise ValueError(f"a geometric grid needs two positive times, not {t0} and {t1}; use uniform, or shift the time")
    grid = uniform(math.log(t0), math.log(t1), steps).exp()
    grid[0], grid[-1] = t0, t1
    return grid


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, not {steps}")


def times(ts: Tensor | Sequence[float]) -> list[float]:
    """A grid as Python floats, checked.

    Raises:
        ValueError: when ts is not one-dimensional, has fewer than two points, is not finite or not strictly monotone.
    """
    values = torch.as_tensor(ts, dtype=torch.float64)
    if values.ndim != 1 or values.numel() < 2:
        raise ValueError(f"ts must be one-dimensional with at least two times, not of shape {tuple(values.shape)}")
    steps = values.diff()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("ts holds a time that is not finite; give finite times")
    if not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise ValueError("ts must increase strictly or decrease strictly; sort it and drop the repeated times")
    return values.tolist()
