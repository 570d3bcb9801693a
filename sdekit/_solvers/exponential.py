"""Exponential methods for a stiff linear part A, a number or a diagonal matrix: e^{A dt} and its
integrals replace powers of A dt.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit._solvers.euler import EulerMaruyama
from sdekit.elementary import Time, expm1, sqrt


def phi(k: int, z: Time) -> Time:
    """phi_1(z) = (e^z - 1) / z or phi_2(z) = (e^z - 1 - z) / z^2, accurate to rounding for every
    real z.

    The quotient of phi_2 loses digits near 0; there the series sum_n z^n / (n + k)! is summed.
    """
    if not isinstance(z, Tensor):
        return _series(k, z) if abs(z) < 0.5 else _quotient(k, z)
    small = z.abs() < 0.5
    # Where a branch is not taken its argument is one at which it has a finite derivative.
    series = _series(k, torch.where(small, z, 0))
    return torch.where(small, series, _quotient(k, torch.where(small, 1, z)))


def _series(k: int, z: Time) -> Time:
    series = 0.0 * z + 1 / math.factorial(14 + k)
    for n in reversed(range(14)):
        series = series * z + 1 / math.factorial(n + k)
    return series


def _quotient(k: int, z: Time) -> Time:
    return expm1(z) / z if k == 1 else (expm1(z) - z) / (z * z)


def _scaled_linear(linear: float | Tensor, dt: Time, x: Tensor) -> tuple[Time, Time]:
    """dt and A dt in shapes that multiply x: A dt is in float64 unless both A and dt have another
    dtype.
    """
    dt_column = dt.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(dt, Tensor) else dt
    return dt_column, linear * dt_column


def _multiply(a: Time, x: Tensor) -> Tensor:
    return (a.to(x) if isinstance(a, Tensor) else a) * x


@dataclass(frozen=True, eq=False)
class ExponentialEuler(AbstractSolver):
    """The exponential Euler-Maruyama method for Ito equations with a stiff linear part A x:

        x_1 = e^z x_0 + phi_1(z) N dt + sqrt(phi_1(2 z)) g dW

    with z = A dt, N = f(t_0, x_0) - A x_0 and phi_1(z) = (e^z - 1) / z. f is the whole drift, and A
    its linear part or an approximation of it: the orders hold for every A, and steps are stable for
    all z <= 0 if N is not stiff. The noise of a step has the exact variance, phi_1(2 z) |dt| g^2,
    and converges path by path: for constant N and g the solution has the exact law on every grid.
    For ordinary equations states within a step are on the straight line between its ends.

    Arguments:
        linear: A, a float or a tensor that broadcasts against the event.

    Example:
        >>> stiff = sdekit.SemiLinear(-1000.0, lambda t, x: torch.cos(x))
        >>> ts, solver = sdekit.uniform(0.0, 1.0, 10), sdekit.ExponentialEuler(-1000.0)
        >>> bool(sdekit.solve(stiff, torch.ones(4, 1), ts, solver=solver).x.abs().max() < 0.01)
        True

    References:
        Hochbruck and Ostermann 2010, "Exponential integrators"; Lord and Tambue 2013, "Stochastic
        exponential integrators for the finite element discretization of SPDEs".
    """

    linear: float | Tensor
    order = EulerMaruyama.order

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        dt, z = _scaled_linear(self.linear, t1 - t0, x)
        predicted = x + _multiply(dt * phi(1, z), problem.drift(t0, x))
        end = _add_noise(problem, t0, z, noise, x, predicted)
        return Step(end, dense=(x, end))


def _add_noise(
    problem: AbstractSDE, t: Time, z: Time, noise: Increment, x: Tensor, onto: Tensor
) -> Tensor:
    """onto + sqrt(phi_1(2 z)) g(t, x) dW."""
    return onto + _multiply(
        sqrt(phi(1, 2 * z)), problem.diffuse(t, x, noise.w, torch.zeros_like(x))
    )


@dataclass(frozen=True, eq=False)
class ExponentialHeun(AbstractSolver):
    """Exponential time differencing of order two, ETD2RK, for a stiff linear part A x:

        x~ = e^z x_0 + phi_1(z) N_0 dt + sqrt(phi_1(2 z)) g dW,
        x_1 = x~ + phi_2(z) (N(t_1, x~) - N_0) dt.

    Here phi_2(z) = (e^z - 1 - z) / z^2, N_0 is N at (t_0, x_0), and g is evaluated in the middle of
    the step; the rest is as in `ExponentialEuler`. With additive noise the weak order is two. For
    ordinary equations states within a step are on the straight line between its ends.

    Arguments:
        linear: A, a float or a tensor that broadcasts against the event.

    Example:
        >>> stiff = sdekit.SemiLinear(-1000.0, lambda t, x: torch.cos(x))
        >>> ts, solver = sdekit.uniform(0.0, 1.0, 10), sdekit.ExponentialHeun(-1000.0)
        >>> bool(sdekit.solve(stiff, torch.ones(4, 1), ts, solver=solver).x.abs().max() < 0.01)
        True

    References:
        Cox and Matthews 2002, "Exponential time differencing for stiff systems", ETD2RK.
    """

    linear: float | Tensor
    order = {"none": Order(2, 2), "additive": Order(1, 2)}

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        dt, z = _scaled_linear(self.linear, t1 - t0, x)
        slope = problem.drift(t0, x)
        predicted = _add_noise(
            problem, t0 + 0.5 * (t1 - t0), z, noise, x, x + _multiply(dt * phi(1, z), slope)
        )
        change = _multiply(dt, problem.drift(t1, predicted) - slope) - _multiply(z, predicted - x)
        end = predicted + _multiply(phi(2, z), change)
        return Step(end, dense=(x, end))
