"""Multistep methods whose weights are exact integrals, on the time axis or on a clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from torch import Tensor

from sdekit._noise import Increment
from sdekit._sde import AbstractSDE, NoiseType
from sdekit._solver._contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, axpy


@dataclass(frozen=True, eq=False)
class AdamsBashforth(AbstractSolver):
    """x_1 = x_0 + integral over [t_0, t_1] of the interpolant of f through the last k values + g((t_0 + t_1)/2) dW.

    One evaluation a step. The weights are the exact integrals that the problem's `quadrature` gives: of a polynomial in t,
    or, for a `Clocked` problem, of one in its parameter against its clock (an exponential integrator). The first steps use
    as many values as there are; for k = 3 without noise the very first is corrected once with the value at its end (one
    evaluation more), because Euler's error there would keep the order at two.

    Arguments:
        k: how many values, 1 to 3.

    References:
        Hairer, Noersett and Wanner 1993, "Solving ordinary differential equations I", section III.1; with noise: Buckwar
        and Winkler 2006, "Multistep methods for SDEs and their application to problems with small noise".
    """

    k: int = 3
    weights: Mapping[float, tuple[float, ...]] = field(default_factory=dict, repr=False)
    start: Mapping[float, tuple[float, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.k not in (1, 2, 3):
            raise ValueError(f"Adams-Bashforth is offered for 1, 2 or 3 values, not {self.k}")

    @property
    def order(self) -> Mapping[NoiseType, Order]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {"none": Order(self.k, self.k), "additive": Order(1, min(self.k, 2))}

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        grid, weights, start = np.asarray(ts), {}, {}
        for k in range(1, self.k + 1):  # step i has i + 1 values behind it
            steps = np.arange(k - 1, len(ts) - 1)
            steps = steps if k == self.k else steps[:1]
            if len(steps):
                nodes = grid[steps[:, None] - np.arange(k)]
                rows = problem.quadrature(nodes, grid[steps], grid[steps + 1]).tolist()
                weights.update(zip(grid[steps].tolist(), map(tuple, rows), strict=True))
        if self.k == 3 and problem.noise_type == "none":
            start[ts[0]] = tuple(problem.quadrature(grid[None, 1::-1], grid[:1], grid[1:2])[0].tolist())
        return replace(self, weights=weights, start=start)

    def step(self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree) -> Step:
        assert isinstance(t0, float), "multistep weights belong to a fixed grid"
        slopes = (problem.drift(t0, x), *state[: self.k - 1])
        moved = _moved(x, self.weights[t0], slopes)
        if t0 in self.start:
            moved = _moved(x, self.start[t0], (problem.drift(t1, moved), *slopes))
        # Additive noise takes g at the middle of the step: at its start the variance would be right to first order only.
        return Step(problem.diffuse(0.5 * (t0 + t1), x, noise.w, moved), state=slopes)


def _moved(x: Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + sum_j w_j f_j."""
    for weight, slope in zip(weights, slopes, strict=True):
        x = axpy(weight, slope, x)
    return x
