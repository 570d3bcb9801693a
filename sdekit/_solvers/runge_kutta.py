"""Explicit Runge-Kutta methods for ordinary equations: coefficients as data, one step for all."""

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, broadcast, combined, scaled


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau, the coefficients of an explicit Runge-Kutta method, see
    `AbstractRungeKutta`.

    Attributes:
        a: the rows a_i, lower triangular; the first row is empty.
        b: the weights of the slopes.
        c: the times of the stages, in steps.
        embedded: the b of a method of lower order, or None. If given, b and embedded have one more
            number, the weight of the slope at the end of the step, which is the first stage of the
            next step.
        middle: the b of a formula of order four for the middle of the step, or None.
        difference: b minus embedded, which is computed.

    Example:
        >>> tableau = sdekit.Tableau(a=((), (2 / 3,)), b=(1 / 4, 3 / 4), c=(0, 2 / 3))
        >>> sum(tableau.b)
        1.0
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    embedded: tuple[float, ...] | None = None
    middle: tuple[float, ...] | None = None
    difference: tuple[float, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.embedded is not None:
            weights = tuple(x - y for x, y in zip(self.b, self.embedded, strict=True))
            object.__setattr__(self, "difference", weights)


class AbstractRungeKutta(AbstractSolver, ABC):
    """An explicit Runge-Kutta method for ordinary equations: x_1 = x_0 + dt sum_i b_i k_i with
    k_i = f(t_0 + c_i dt, x_0 + dt sum_j a_ij k_j).

    A subclass defines `tableau` and `order`.

    Example:
        >>> class Ralston(sdekit.AbstractRungeKutta):
        ...     order = {"none": sdekit.Order(2, 2)}
        ...     tableau = sdekit.Tableau(a=((), (2 / 3,)), b=(1 / 4, 3 / 4), c=(0, 2 / 3))
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 50)
        >>> x = sdekit.solve(ode, torch.ones(1, 1).double(), ts, solver=Ralston()).x
        >>> round(float(x), 3)  # e^-1
        0.368
    """

    tableau: ClassVar[Tableau]

    def stage_times(self, problem: AbstractSDE, ts: Sequence[float]) -> Sequence[float]:
        inner = [c for c in self.tableau.c if c not in (0, 1)]
        return [t0 + c * (t1 - t0) for t0, t1 in pairwise(ts) for c in inner]

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        tableau = self.tableau
        dt = broadcast(t1 - t0, x)
        increments = []
        times = stage_times(tableau.c, t0, t1, x)
        for t, row in zip(times[:-1], tableau.a, strict=True):
            increments.append(dt * problem.drift(t, combined(x, row, increments)))
        return Step(x + weighted(tableau.b, increments))


class AbstractEmbeddedRungeKutta(AbstractRungeKutta, ABC):
    """An `AbstractRungeKutta` with an embedded error estimate.

    The slope at the end of a step is the first stage of the next one (FSAL). A subclass defines
    `tableau` with its `embedded` weights, `order`, and the attribute `embedded`, the power of the
    step size with which the error estimate falls.

    Example:
        >>> isinstance(sdekit.Dopri5(), sdekit.AbstractEmbeddedRungeKutta)
        True
        >>> sdekit.Dopri5.tableau.embedded is not None
        True
    """

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        (drift,) = drifts_at(problem, [t0], x)
        return (drift(x),)

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        tableau = self.tableau
        # Slopes times the step: with steps per sample this is one product per stage, and the
        # weights remain numbers.
        dt = broadcast(t1 - t0, x)
        increments = [dt * state[0]]
        *drifts, last = drifts_at(problem, stage_times(tableau.c, t0, t1, x)[1:], x)
        for drift, row in zip(drifts, tableau.a[1:], strict=True):
            increments.append(dt * drift(combined(x, row, increments)))
        end = x + weighted(tableau.b, increments)
        slope = last(end)
        increments.append(dt * slope)
        error = weighted(tableau.difference, increments)
        return Step(end, error, (x, end, *increments), (slope,))

    def interpolate(self, dense: Tree, theta: Tensor) -> Tensor:
        """Hermite's cubic through both ends and their slopes; the quartic that also includes a
        middle.
        """
        start, end, *increments = dense
        s = broadcast(theta, start)
        correction = (1 - 2 * s) * (end - start) + (s - 1) * increments[0] + s * increments[-1]
        if self.tableau.middle is not None:
            # A quartic that is 0 at both ends, as is its slope, corrects the cubic in the middle.
            cubic = 0.5 * (start + end) + 0.125 * (increments[0] - increments[-1])
            correction = correction + 16 * s * (s - 1) * (
                combined(start, self.tableau.middle, increments) - cubic
            )
        return torch.lerp(start, end, s) + s * (s - 1) * correction


def stage_times(c: tuple[float, ...], t0: Time, t1: Time, x: Tensor) -> Sequence[Time]:
    """t_0 + c_i dt for each stage, then t_1. A stage at the end of a step is at exactly t_1, not
    beyond it by rounding.
    """
    if not isinstance(t0, Tensor) or not isinstance(t1, Tensor):
        return [*(t1 if ci == 1 else t0 + ci * (t1 - t0) for ci in c), t1]
    # All in one call.
    return torch.lerp(t0, t1, _node_tensor(c, t0.device).reshape(-1, *[1] * t0.ndim)).unbind(0)


def drifts_at(
    problem: AbstractSDE, times: Sequence[Time], x: Tensor
) -> Sequence[Callable[[Tensor], Tensor]]:
    """The drift at each of the times of a step, as functions of states like x."""
    tensors = [t for t in times if isinstance(t, Tensor)]
    functions = problem.drifts(tensors, x) if len(tensors) == len(times) else None
    return functions or [partial(problem.drift, t) for t in times]


@cache
def _node_tensor(c: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor([*c, 1.0], dtype=torch.float64, device=device)


def weighted(weights: Sequence[float], increments: Sequence[Tensor]) -> Tensor:
    """sum_j w_j k_j, summed before it is added to the larger state: this rounds the state once."""
    return combined(scaled(weights[0], increments[0]), weights[1:], increments[1:])


@dataclass(frozen=True, eq=False)
class RK4(AbstractRungeKutta):
    """The classical fourth-order method of Kutta (1901), four evaluations per step.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> x = sdekit.solve(ode, torch.ones(1, 1).double(), ts, solver=sdekit.RK4()).x
        >>> round(float(x), 4)  # e^-1 = 0.3679
        0.3679
    """

    order = {"none": Order(4, 4)}
    tableau = Tableau(
        a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0, 1 / 2, 1 / 2, 1),
    )


@dataclass(frozen=True, eq=False)
class HeunEuler(AbstractEmbeddedRungeKutta):
    """Heun's method of order two with the error estimate of Euler's method, two evaluations per
    step.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> control = sdekit.PIDController(rtol=1e-5, atol=1e-5)
        >>> x0 = torch.ones(1, 1).double()
        >>> x = sdekit.solve(ode, x0, [0.0, 1.0], solver=sdekit.HeunEuler(), control=control).x
        >>> round(float(x), 4)  # e^-1
        0.3679

    References:
        Heun 1900, "Neue Methoden zur approximativen Integration der Differentialgleichungen".
    """

    order = {"none": Order(2, 2)}
    embedded = 2
    tableau = Tableau(a=((), (1,)), b=(1 / 2, 1 / 2, 0), c=(0, 1), embedded=(1, 0, 0))


@dataclass(frozen=True, eq=False)
class Fehlberg2(AbstractEmbeddedRungeKutta):
    """Fehlberg's method of order two with an embedded error estimate of order one, three
    evaluations per step.

    The embedded formula has only 1/256 of the error of Euler's method, and the estimate is of this
    error. The result, of order two, has larger errors: some thousand times the tolerance.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> control = sdekit.PIDController(rtol=1e-6, atol=1e-6)
        >>> x0 = torch.ones(1, 1).double()
        >>> x = sdekit.solve(ode, x0, [0.0, 1.0], solver=sdekit.Fehlberg2(), control=control).x
        >>> round(float(x), 4)  # e^-1
        0.3679

    References:
        Fehlberg 1969, "Low-order classical Runge-Kutta formulas with step size control", NASA TR
        R-315.
    """

    order = {"none": Order(2, 2)}
    embedded = 2
    tableau = Tableau(
        a=((), (1 / 2,), (1 / 256, 255 / 256)),
        b=(1 / 512, 255 / 256, 1 / 512, 0),
        c=(0, 1 / 2, 1),
        embedded=(1 / 256, 255 / 256, 0, 0),
    )


@dataclass(frozen=True, eq=False)
class Bosh3(AbstractEmbeddedRungeKutta):
    """The method of Bogacki and Shampine of order three with an embedded error estimate of order
    two, three evaluations per step.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> control = sdekit.PIDController(rtol=1e-6, atol=1e-6)
        >>> x0 = torch.ones(1, 1).double()
        >>> x = sdekit.solve(ode, x0, [0.0, 1.0], solver=sdekit.Bosh3(), control=control).x
        >>> round(float(x), 5)  # e^-1
        0.36788

    References:
        Bogacki and Shampine 1989, "A 3(2) pair of Runge-Kutta formulas".
    """

    order = {"none": Order(3, 3)}
    embedded = 3
    tableau = Tableau(
        a=((), (1 / 2,), (0, 3 / 4)),
        b=(2 / 9, 1 / 3, 4 / 9, 0),
        c=(0, 1 / 2, 3 / 4),
        embedded=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    )


@dataclass(frozen=True, eq=False)
class Dopri5(AbstractEmbeddedRungeKutta):
    """The method of Dormand and Prince of order five with an embedded error estimate of order four,
    six evaluations per step.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> control = sdekit.PIDController(rtol=1e-6, atol=1e-6)
        >>> x0 = torch.ones(1, 1).double()
        >>> x = sdekit.solve(ode, x0, [0.0, 1.0], solver=sdekit.Dopri5(), control=control).x
        >>> round(float(x), 5)  # e^-1
        0.36788

    References:
        Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae".
    """

    order = {"none": Order(5, 5)}
    embedded = 5
    tableau = Tableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
        c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1),
        embedded=(5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
        middle=(
            6025192743 / 30085553152 / 2,
            0,
            51252292925 / 65400821598 / 2,
            -2691868925 / 45128329728 / 2,
            187940372067 / 1594534317056 / 2,
            -1776094331 / 19743644256 / 2,
            11237099 / 235043384 / 2,
        ),
    )


@dataclass(frozen=True, eq=False)
class Tsit5(AbstractEmbeddedRungeKutta):
    """The method of Tsitouras of order five with an embedded error estimate of order four, six
    evaluations per step; its errors are smaller than those of `Dopri5`.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> control = sdekit.PIDController(rtol=1e-6, atol=1e-6)
        >>> x0 = torch.ones(1, 1).double()
        >>> x = sdekit.solve(ode, x0, [0.0, 1.0], solver=sdekit.Tsit5(), control=control).x
        >>> round(float(x), 5)  # e^-1
        0.36788

    References:
        Tsitouras 2011, "Runge-Kutta pairs of order 5(4) satisfying only the first column
        simplifying assumption".
    """

    order = {"none": Order(5, 5)}
    embedded = 5
    tableau = Tableau(
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
        ),
        b=(
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
            0,
        ),
        c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1),
        embedded=(
            0.09646076681806523 + 0.001780011052225777,
            0.01 + 0.0008164344596567469,
            0.4798896504144996 - 0.007880878010261995,
            1.379008574103742 + 0.1447110071732629,
            -3.290069515436081 - 0.5823571654525552,
            2.324710524099774 + 0.45808210592918697,
            -1 / 66,
        ),
        middle=(
            0.10741235230096871,
            0.01135625,
            0.39560903056045305,
            -0.34475214352593553,
            1.3161853649581645,
            -1.0170608542936508,
            0.031249999999999993,
        ),
    )
