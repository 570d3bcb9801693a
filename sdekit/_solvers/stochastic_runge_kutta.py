"""Stochastic Runge-Kutta methods, as tables of coefficients."""

from dataclasses import dataclass

from sdekit._solvers.contract import Order
from sdekit._solvers.stochastic_tableau import (
    AbstractStochasticRungeKutta,
    Row,
    Stage,
    StochasticTableau,
    iterated,
)

# Additive noise: g at both ends; the step ends with the noise g_0 (W / 2 + H) + g_1 (W / 2 - H),
# which is exact for a g that is linear in time.

_ENDS = (Stage("g"), Stage("g", c=1))
_NOISE_AT_ENDS = ((1 / 2, 1), (1 / 2, -1))
# Roessler's methods also evaluate the drift at the start.
_START_AND_END = (Stage("fg"), Stage("g", c=1))


@dataclass(frozen=True, eq=False)
class SEA(AbstractStochasticRungeKutta):
    """Shifted Euler for additive noise: x_1 = x_0 + f(t_0, x_0 + g (dW / 2 + H)) dt + g dW.

    One evaluation of the drift per step; H is the space-time Levy area of the step. The strong
    order is one, as that of Euler-Maruyama, with smaller errors: the error of one step is O(dt^2)
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
        stages=(*_ENDS, Stage("f", b=((1 / 2, 1),))), end=Stage(a=(1,), b=_NOISE_AT_ENDS)
    )


@dataclass(frozen=True, eq=False)
class SRA1(AbstractStochasticRungeKutta):
    """Roessler's SRA1 for additive noise, strong order 1.5, two evaluations of the drift per step.

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
        end=Stage(a=(1 / 3, 2 / 3), b=_NOISE_AT_ENDS),
        embedded=Stage(a=(1, 0), b=_NOISE_AT_ENDS),
    )


@dataclass(frozen=True, eq=False)
class SRA3(AbstractStochasticRungeKutta):
    """Roessler's SRA3 for additive noise, strong order 1.5, three evaluations of the drift per
    step.

    For small noise its errors fall like those of a method of order three.

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
        end=Stage(a=(1 / 6, 1 / 6, 2 / 3), b=_NOISE_AT_ENDS),
        embedded=Stage(a=(1 / 2, 1 / 2, 0), b=_NOISE_AT_ENDS),
    )


@dataclass(frozen=True, eq=False)
class ShARK(AbstractStochasticRungeKutta):
    """Shifted additive-noise Runge-Kutta, strong order 1.5, two evaluations of the drift per step.

    Both stages contain noise, which makes the errors small.

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
        end=Stage(a=(2 / 5, 3 / 5), b=_NOISE_AT_ENDS),
        embedded=Stage(a=(1, 0), b=_NOISE_AT_ENDS),
    )


def _ito(s: float = 0, I10: float = 0, I1: float = 0, I11: float = 0, I111: float = 0) -> Row:
    """Weights for the basis `iterated`."""
    return I1, I11, I10, I111, s


@dataclass(frozen=True, eq=False)
class SRID2(AbstractStochasticRungeKutta):
    """Roessler's SRID2 for Ito equations with diagonal or scalar noise, strong order 1.5.

    A step has three evaluations of the drift and four of g. With diagonal noise g_i must depend on
    x_i only. Stages that are shifted by g sqrt(|dt|) leave half-integer powers of dt in means, so
    that the weak order is also 1.5; with additive noise they cancel.

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
    """Splitting-path Runge-Kutta for Stratonovich equations with any noise, three evaluations of f
    and of g per step.

    It solves along a piecewise linear path with the increment and the space-time Levy area of W.
    For general noise that commutes the strong order is one. The error estimate is O(dt), like the
    part of Levy's area that such a path lacks, and O(dt^1.5) for noise that commutes.

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
    """A Runge-Kutta method of strong order 1.5 for Stratonovich equations with noise that commutes,
    two evaluations of the drift and five of g per step.

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
