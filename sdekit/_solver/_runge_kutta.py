"""Explicit Runge-Kutta methods for ordinary equations: coefficients as data, one step for all."""

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdekit._noise import Increment
from sdekit._sde import AbstractSDE
from sdekit._solver._contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, axpy


@dataclass(frozen=True)
class Tableau:
    """Butcher's coefficients: stage i is at c_i and starts from sum_j a_ij k_j; the step ends at sum_i b_i k_i."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


class AbstractRungeKutta(AbstractSolver, ABC):
    """x_1 = x_0 + dt sum_i b_i k_i, k_i = f(t_0 + c_i dt, x_0 + dt sum_j a_ij k_j)."""

    tableau: ClassVar[Tableau]

    def step(self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree) -> Step:
        dt, stages = t1 - t0, []
        for c, row in zip(self.tableau.c, self.tableau.a, strict=True):
            # The last stage of a step lands on t1 itself, never a rounding beyond it.
            t = t1 if c == 1 else t0 + c * dt
            stages.append(problem.drift(t, _combined(x, dt, row, stages)))
        return Step(_combined(x, dt, self.tableau.b, stages))


def _combined(x: Tensor, dt: Time, weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    for weight, stage in zip(weights, stages, strict=True):
        if weight:
            x = axpy(weight * dt, stage, x)
    return x


@dataclass(frozen=True, eq=False)
class RK4(AbstractRungeKutta):
    """The classical fourth-order method of Kutta (1901), four evaluations a step."""

    order = {"none": Order(4, 4)}
    tableau = Tableau(
        a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0, 1 / 2, 1 / 2, 1),
    )
