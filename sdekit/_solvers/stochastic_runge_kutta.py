"""Stochastic Runge-Kutta methods: coefficients as data, one step for all."""

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, axpy, broadcast, sqrt

Row = tuple[float, ...]
Basis = Callable[[Time, Increment], tuple[Tensor, ...]]


def area(dt: Time, noise: Increment) -> tuple[Tensor, ...]:
    """W and H."""
    assert noise.w is not None
    assert noise.h is not None
    return noise.w, noise.h


def iterated(dt: Time, noise: Increment) -> tuple[Tensor, ...]:
    """Roessler's I_1, I_11 / s, I_10 / s^2, I_111 / s^2 and s, with s^2 = |dt|, for noises that do
    not mix.
    """
    w, h = area(dt, noise)
    s = broadcast(sqrt(abs(dt)), w)
    n = w / s
    return w, 0.5 * s * (n * n - 1), 0.5 * w + h, s * n * (n * n - 3) / 6, s * torch.ones_like(w)


class Stage(NamedTuple):
    """The point t_0 + c dt, x_0 + dt sum_j a_j f_j + sum_j g_j (b_j1 N_1 + b_j2 N_2 + ...).

    N is the basis of the noise; f_j and g_j are the drifts and diffusions evaluated so far; `asks`
    says which of the two are evaluated here.

    Example:
        >>> sdekit.SRA1.tableau.stages[0]
        Stage(asks='fg', c=0.0, a=(), b=())
    """

    asks: Literal["", "f", "g", "fg"] = ""
    c: float = 0.0
    a: Row = ()
    b: tuple[Row, ...] = ()


@dataclass(frozen=True)
class StochasticTableau:
    """The coefficients of a stochastic Runge-Kutta method: its stages, in order, and its end.

    embedded: the end of a method of lower order, or None. difference: the weights of the end minus
    those of the embedded method. basis: the random variables to which the weights of the noise
    belong.

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

    A subclass defines `tableau` and `order`. A step costs the evaluations of the tableau.

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

        def moved(stage: Stage, y: Tensor) -> Tensor:
            for weight, slope in zip(stage.a, f[: len(stage.a)], strict=True):
                y = axpy(weight * dt, slope, y) if weight else y
            for weights, factor in zip(stage.b, g[: len(stage.b)], strict=True):
                y = problem.multiply(factor, _mixed(weights, basis), y) if any(weights) else y
            return y

        for stage in tableau.stages:
            # A stage at the end of the step is on t1 itself, never a rounding beyond it.
            t = t1 if stage.c == 1 else t0 + stage.c * dt
            y = moved(stage, x)
            if "f" in stage.asks:
                f.append(problem.drift(t, y))
            if "g" in stage.asks:
                g.append(problem.diffusion(t, y))
        error = (
            None if tableau.difference is None else moved(tableau.difference, torch.zeros_like(x))
        )
        return Step(moved(tableau.end, x), error)


def _mixed(weights: Row, basis: tuple[Tensor, ...]) -> Tensor:
    terms = [
        part if weight == 1 else weight * part
        for weight, part in zip(weights, basis, strict=True)
        if weight
    ]
    return sum(terms[1:], terms[0])


# Additive noise: g at both ends, (W / 2 + H) and (W / 2 - H) of it at the end, which is exact for a
# g linear in time.

_ENDS = (Stage("g"), Stage("g", c=1))
_SPREAD = ((1 / 2, 1), (1 / 2, -1))
# Roessler's methods have a drift at the start, too.
_START_AND_END = (Stage("fg"), Stage("g", c=1))


@dataclass(frozen=True, eq=False)
class SEA(AbstractStochasticRungeKutta):
    """Shifted Euler: x_1 = x_0 + f(t_0, x_0 + g (W / 2 + H)) dt + g dW.

    One drift evaluation per step.

    Strong order one, as Euler-Maruyama, with smaller errors: the error of one step is O(dt^2)
    instead of O(dt^1.5).

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.SEA()).x.shape
        torch.Size([4, 1])

    References:
        Foster, dos Reis and Strange 2022, arXiv 2210.17543, equation 5.8.
    """

    order = {"additive": Order(1, 1)}
    tableau = StochasticTableau(
        stages=(*_ENDS, Stage("f", b=((1 / 2, 1),))), end=Stage(a=(1,), b=_SPREAD)
    )


@dataclass(frozen=True, eq=False)
class SRA1(AbstractStochasticRungeKutta):
    """Roessler's SRA1 for additive noise, two drift evaluations per step.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.SRA1()).x.shape
        torch.Size([4, 1])

    References:
        Roessler 2010, "Runge-Kutta methods for the strong approximation of solutions of stochastic
        differential equations", SIAM Journal on Numerical Analysis 48.
    """

    order = {"additive": Order(1.5, 2)}
    embedded = 1.5
    tableau = StochasticTableau(
        stages=(*_START_AND_END, Stage("f", 3 / 4, (3 / 4,), ((0, 0), (3 / 4, 3 / 2)))),
        end=Stage(a=(1 / 3, 2 / 3), b=_SPREAD),
        embedded=Stage(a=(1, 0), b=_SPREAD),
    )


@dataclass(frozen=True, eq=False)
class SRA3(AbstractStochasticRungeKutta):
    """Roessler's SRA3 for additive noise, three drift evaluations per step.

    For small noise its errors fall as with order three.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.SRA3()).x.shape
        torch.Size([4, 1])

    References:
        Roessler 2010, as for `SRA1`.
    """

    order = {"additive": Order(1.5, 2)}
    embedded = 1.5
    tableau = StochasticTableau(
        stages=(
            *_START_AND_END,
            Stage("f", 1, (1,)),
            Stage("f", 1 / 2, (1 / 4, 1 / 4), ((1 / 4, 1 / 2), (1 / 2, 1))),
        ),
        end=Stage(a=(1 / 6, 1 / 6, 2 / 3), b=_SPREAD),
        embedded=Stage(a=(1 / 2, 1 / 2, 0), b=_SPREAD),
    )


@dataclass(frozen=True, eq=False)
class ShARK(AbstractStochasticRungeKutta):
    """Shifted additive-noise Runge-Kutta, two drift evaluations per step.

    Both stages contain the noise, which makes errors small.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.ShARK()).x.shape
        torch.Size([4, 1])

    References:
        Foster, dos Reis and Strange 2022, arXiv 2210.17543, equation 6.1.
    """

    order = {"additive": Order(1.5, 2)}
    embedded = 1.5
    tableau = StochasticTableau(
        stages=(*_ENDS, Stage("f", b=((0, 1),)), Stage("f", 5 / 6, (5 / 6,), ((5 / 6, 1),))),
        end=Stage(a=(2 / 5, 3 / 5), b=_SPREAD),
        embedded=Stage(a=(1, 0), b=_SPREAD),
    )


def _ito(s: float = 0, I10: float = 0, I1: float = 0, I11: float = 0, I111: float = 0) -> Row:
    """Weights for the basis `iterated`."""
    return I1, I11, I10, I111, s


@dataclass(frozen=True, eq=False)
class SRID2(AbstractStochasticRungeKutta):
    """Roessler's SRID2 for diagonal and scalar noise in Ito equations.

    Three drift and four diffusion evaluations per step.

    Diagonal noise as in `Milstein`: g_i depends on x_i only. Stages at g sqrt(|dt|) leave half
    powers of dt in means, so that the weak order is 1.5, too; with additive noise they cancel.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x)
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.SRID2()).x.shape
        torch.Size([4, 1])

    References:
        Roessler 2010, as for `SRA1`; the embedded error as by Rackauckas and Nie 2017, "Adaptive
        methods for stochastic differential equations via natural embeddings and rejection sampling
        with memory".
    """

    order = {"additive": Order(1.5, 2), "diagonal": Order(1.5, 1.5), "scalar": Order(1.5, 1.5)}
    embedded = 1.5
    tableau = StochasticTableau(
        stages=(
            Stage("fg"),
            Stage("g", 1 / 4, (1 / 4,), (_ito(s=-1 / 2),)),
            Stage("f", 1, (1,)),
            Stage("g", 1, (1,), (_ito(s=1),)),
            Stage("f", 1 / 2, (1 / 4, 1 / 4), (_ito(I10=1), _ito(I10=1 / 2))),
            Stage("g", 1 / 4, (0, 0, 1 / 4), (_ito(s=2), _ito(s=-1), _ito(s=1 / 2))),
        ),
        end=Stage(
            a=(1 / 6, 1 / 6, 2 / 3),
            b=(
                _ito(I1=-1, I11=1, I10=2, I111=-2),
                _ito(I1=4 / 3, I11=-4 / 3, I10=-4 / 3, I111=5 / 3),
                _ito(I1=2 / 3, I11=1 / 3, I10=-2 / 3, I111=-2 / 3),
                _ito(I111=1),
            ),
        ),
        embedded=Stage(
            a=(1 / 2, 1 / 2, 0),
            b=(_ito(I1=-1, I11=1), _ito(I1=4 / 3, I11=-4 / 3), _ito(I1=2 / 3, I11=1 / 3), _ito()),
        ),
        basis=iterated,
    )


# P + Q + P = 1
_P = (3 - 3**0.5) / 6
_Q = 3**0.5 / 3
_R = 3**0.5


@dataclass(frozen=True, eq=False)
class SPaRK(AbstractStochasticRungeKutta):
    """Splitting-path Runge-Kutta for every noise in Stratonovich equations.

    Three evaluations per step.

    Based on a piecewise linear path with the increment and the area of W. For general noise that
    commutes the strong order is one. The embedded error is O(dt), as is the missing part of Levy's
    area, and O(dt^1.5) for noise that commutes.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x, sde_type="stratonovich")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.SPaRK()).x.shape
        torch.Size([4, 1])

    References:
        Foster 2023, "On the convergence of adaptive approximations for stochastic differential
        equations", arXiv 2311.14201, definition 1.6.
    """

    order = {
        "additive": Order(1.5, 2),
        "diagonal": Order(1, 1),
        "scalar": Order(1, 1),
        "general": Order(0.5, 1),
    }
    sde_type = "stratonovich"
    embedded = 1.0
    tableau = StochasticTableau(
        stages=(
            Stage("fg"),
            Stage("fg", 1 / 2, (1 / 2,), ((1 / 2, _R),)),
            Stage("fg", 1, (0, 1), ((0, 0), (1, 0))),
        ),
        end=Stage(a=(_P, _Q, _P), b=((_P, 1), (_Q, 0), (_P, -1))),
        embedded=Stage(a=(1 / 2, 0, 1 / 2), b=((1 / 2, 0), (0, 0), (1 / 2, 0))),
    )


@dataclass(frozen=True, eq=False)
class SlowRK(AbstractStochasticRungeKutta):
    """Strong order 1.5 for Stratonovich equations with noise that commutes.

    Two evaluations of the drift and five of g per step.

    For noise that does not commute the strong order is 0.5.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x, sde_type="stratonovich")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.SlowRK()).x.shape
        torch.Size([4, 1])

    References:
        Foster, dos Reis and Strange 2022, arXiv 2210.17543, equation 6.2.
    """

    order = {
        "additive": Order(1.5, 2),
        "diagonal": Order(1.5, 2),
        "scalar": Order(1.5, 2),
        "general": Order(0.5, 1),
    }
    sde_type = "stratonovich"
    tableau = StochasticTableau(
        stages=(
            Stage("f"),
            Stage("g", 1 / 2, (1 / 2,)),
            Stage("g", 1 / 2, (1 / 2,), ((1 / 2, 0),)),
            Stage("g", 1 / 2, (1 / 2,), ((0, 0), (1 / 2, 0))),
            Stage("g", 1 / 2, (1 / 2,), ((0, 0), (0, 0), (1, 0))),
            Stage("f", 3 / 4, (3 / 4,), ((0, 0), (0, 0), (3 / 4, 3 / 2))),
            Stage("g", 1, (1,), ((0, 0), (1 / 2, 0))),
        ),
        end=Stage(a=(1 / 3, 2 / 3), b=((1 / 6, 0), (1 / 3, 0), (1 / 3, 2), (1 / 6, 0), (0, -2))),
    )
