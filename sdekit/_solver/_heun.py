"""Heun's method."""

from dataclasses import dataclass

from torch import Tensor

from sdekit._noise import Increment
from sdekit._sde import AbstractSDE
from sdekit._solver._contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, axpy


@dataclass(frozen=True, eq=False)
class Heun(AbstractSolver):
    """x~ = x_0 + f_0 dt + g_0 dW, then x_1 = x_0 + (f_0 + f(t_1, x~)) dt / 2 + (g_0 + g_1) dW / 2.

    The explicit trapezoidal rule; with additive noise weak order two.

    References:
        Kloeden and Platen 1992, section 15.1, for additive noise; Heun 1900 without.
    """

    order = {"none": Order(2, 2), "additive": Order(1, 2)}

    def step(self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree) -> Step:
        dt = t1 - t0
        half = None if noise.w is None else 0.5 * noise.w
        slope = problem.drift(t0, x)
        kicked = problem.diffuse(t0, x, half, x)
        predicted = problem.diffuse(t0, x, half, axpy(dt, slope, kicked))
        average = slope + problem.drift(t1, predicted)
        return Step(problem.diffuse(t1, predicted, half, axpy(0.5 * dt, average, kicked)))
