"""Data sets of points in the plane, for demonstrations and tests, some with classes."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = tuple[NDArray[np.float64], NDArray[np.int64] | None]  # with their classes


def _moons(rng: Generator, n: int) -> Points:
    """The upper moon is class 0, the lower 1."""
    angle = np.pi * rng.random(n)
    upper = rng.random(n) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    points = np.stack([x, y], axis=1) + 0.05 * rng.standard_normal((n, 2))
    return points, (~upper).astype(np.int64)


def _swissroll(rng: Generator, n: int) -> Points:
    angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1)
    return points + 0.3 * rng.standard_normal((n, 2)), None


def _eight_gaussians(rng: Generator, n: int) -> Points:
    """Class k has its centre at the angle k pi / 4."""
    component = rng.integers(8, size=n)
    angle = 0.25 * np.pi * component
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres + 0.1 * rng.standard_normal((n, 2)), component


def _checkerboard(rng: Generator, n: int) -> Points:
    """The eight squares are classes, two in each column, from below."""
    column = rng.integers(4, size=n)
    row = rng.integers(2, size=n)
    corners = np.stack([column, 2 * row + column % 2], axis=1)
    return corners + rng.random((n, 2)), 2 * column + row


def _spiral(rng: Generator, n: int) -> Points:
    """Each arm is a class."""
    angle = 3 * np.pi * np.sqrt(rng.random(n))
    arm = rng.choice([-1.0, 1.0], size=n)
    curve = np.stack([-angle * np.cos(angle), angle * np.sin(angle)], axis=1)
    points = arm[:, None] * curve + 0.2 * rng.standard_normal((n, 2))
    return points, (arm > 0).astype(np.int64)


TOYS: dict[str, Callable[[Generator, int], Points]] = {
    "moons": _moons,
    "swissroll": _swissroll,
    "eight_gaussians": _eight_gaussians,
    "checkerboard": _checkerboard,
    "spiral": _spiral,
}
