"""Tableaux of stochastic Runge-Kutta methods, and one step for all."""

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Step, Tree
from sdekit._solvers.runge_kutta import drifts_at
from sdekit.elementary import Time, axpy, broadcast, sqrt

Row = tuple[float, ...]
Basis = Callable[[Time, Increment], tuple[Tensor, ...]]


def area(dt: Time, noise: Increment) -> tuple[Tensor, ...]:
    """W and H."""
    assert noise.w is not None
    assert noise.h is not None
    return noise.w, noise.h


def iterated(dt: Time, noise: Increment) -> tuple[Tensor, ...]:
    """Roessler's iterated Ito integrals I_1, I_11 / s, I_10 / s^2 and I_111 / s^2, and s, with
    s^2 = |dt|; for diagonal and scalar noise.
    """
    w, h = area(dt, noise)
    s = broadcast(sqrt(abs(dt)), w)
    n = w / s
    return w, 0.5 * s * (n * n - 1), 0.5 * w + h, s * n * (n * n - 3) / 6, s * torch.ones_like(w)


class Stage(NamedTuple):
    """The point t_0 + c dt, x_0 + dt sum_j a_j f_j + sum_j g_j (b_j1 N_1 + b_j2 N_2 + ...).

    Arguments:
        evaluates: what is evaluated at this point, "f", "g", "fg", or "" for nothing.
        c: the time of the point, in steps.
        a: the weights of the drifts f_j evaluated so far.
        b: for each of the g_j evaluated so far, the weights of the random variables N_1, N_2, ...,
            which are the `basis` of the tableau.

    Example:
        >>> sdekit.SRA1.tableau.stages[0]
        Stage(evaluates='fg', c=0.0, a=(), b=())
    """

    evaluates: Literal["", "f", "g", "fg"] = ""
    c: float = 0.0
    a: Row = ()
    b: tuple[Row, ...] = ()


@dataclass(frozen=True)
class StochasticTableau:
    """The coefficients of a stochastic Runge-Kutta method.

    Arguments:
        stages: the points at which f and g are evaluated, in order.
        end: the weights of x_1, as a `Stage` that evaluates nothing.
        embedded: the end of a method of lower order, or None.
        basis: a function of dt and the `Increment` to the random variables N_1, N_2, ... of the
            weights b; by default these are W and its space-time Levy area H.

    Attributes:
        difference: the weights of the end minus those of embedded, which are computed.

    Example:
        >>> tableau = sdekit.StochasticTableau(  # Euler's method
        ...     (sdekit.Stage("fg"),), sdekit.Stage(a=(1.0,), b=((1.0, 0.0),))
        ... )
        >>> len(tableau.stages)
        1
    """

    stages: tuple[Stage, ...]
    end: Stage
    embedded: Stage | None = None
    basis: Basis = area
    difference: Stage | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.embedded is None:
            return
        a = tuple(x - y for x, y in zip(self.end.a, self.embedded.a, strict=True))
        pairs = zip(self.end.b, self.embedded.b, strict=True)
        b = tuple(tuple(x - y for x, y in zip(*rows, strict=True)) for rows in pairs)
        object.__setattr__(self, "difference", Stage(a=a, b=b))


class AbstractStochasticRungeKutta(AbstractSolver, ABC):
    """A step through the stages of a stochastic Runge-Kutta tableau.

    A subclass defines `tableau` and `order`; if the tableau has an embedded method, also
    `embedded`, the power of the step size with which the error estimate falls.

    Example:
        >>> class Euler(sdekit.AbstractStochasticRungeKutta):
        ...     order = {"additive": sdekit.Order(1, 1)}
        ...     tableau = sdekit.StochasticTableau(
        ...         (sdekit.Stage("fg"),), sdekit.Stage(a=(1.0,), b=((1.0, 0.0),))
        ...     )
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=Euler()).x.shape
        torch.Size([4, 1])
    """

    tableau: ClassVar[StochasticTableau]
    levy = "H"

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        dt = t1 - t0
        tableau = self.tableau
        basis = tableau.basis(dt, noise)
        f = []
        g = []

        def point(stage: Stage, y: Tensor) -> Tensor:
            for weight, slope in zip(stage.a, f[: len(stage.a)], strict=True):
                y = axpy(weight * dt, slope, y) if weight else y
            for weights, factor in zip(stage.b, g[: len(stage.b)], strict=True):
                y = problem.multiply(factor, _combine(weights, basis), y) if any(weights) else y
            return y

        # A stage at the end of the step is at t1 exactly, not beyond it by rounding.
        times = [t1 if stage.c == 1 else t0 + stage.c * dt for stage in tableau.stages]
        stages = [*zip(tableau.stages, times, strict=True)]
        drifts = iter(drifts_at(problem, [t for stage, t in stages if "f" in stage.evaluates], x))
        for stage, t in stages:
            y = point(stage, x)
            if "f" in stage.evaluates:
                f.append(next(drifts)(y))
            if "g" in stage.evaluates:
                g.append(problem.diffusion(t, y))
        error = (
            None if tableau.difference is None else point(tableau.difference, torch.zeros_like(x))
        )
        return Step(point(tableau.end, x), error)


def _combine(weights: Row, basis: tuple[Tensor, ...]) -> Tensor:
    terms = [
        part if weight == 1 else weight * part
        for weight, part in zip(weights, basis, strict=True)
        if weight
    ]
    return sum(terms[1:], terms[0])
