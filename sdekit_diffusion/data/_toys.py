"""Data sets of points in the plane, for demonstrations and tests."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def _moons(rng: Generator, n: int) -> NDArray[np.float64]:
    angle = np.pi * rng.random(n)
    upper = rng.random(n) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([x, y], axis=1) + 0.05 * rng.standard_normal((n, 2))


def _swissroll(rng: Generator, n: int) -> NDArray[np.float64]:
    angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
    return np.stack(
        [angle * np.cos(angle), angle * np.sin(angle)], axis=1
    ) + 0.3 * rng.standard_normal((n, 2))


def _eight_gaussians(rng: Generator, n: int) -> NDArray[np.float64]:
    angle = 0.25 * np.pi * rng.integers(8, size=n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * rng.standard_normal((n, 2))


def _checkerboard(rng: Generator, n: int) -> NDArray[np.float64]:
    column = rng.integers(4, size=n)
    row = rng.integers(2, size=n)
    return np.stack([column, 2 * row + column % 2], axis=1) + rng.random((n, 2))


def _spiral(rng: Generator, n: int) -> NDArray[np.float64]:
    angle = 3 * np.pi * np.sqrt(rng.random(n))
    arm = rng.choice([-1.0, 1.0], size=n)
    return arm[:, None] * np.stack(
        [-angle * np.cos(angle), angle * np.sin(angle)], axis=1
    ) + 0.2 * rng.standard_normal((n, 2))


TOYS: dict[str, Callable[[Generator, int], NDArray[np.float64]]] = {
    "moons": _moons,
    "swissroll": _swissroll,
    "eight_gaussians": _eight_gaussians,
    "checkerboard": _checkerboard,
    "spiral": _spiral,
}
