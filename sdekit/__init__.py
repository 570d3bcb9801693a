"""Stochastic and ordinary differential equations in PyTorch, solved forwards or backwards in time."""

from importlib.metadata import version

from sdekit import elementary, interop
from sdekit._brownian import BrownianPath
from sdekit._clocked import Clocked
from sdekit._control import PIDController
from sdekit._divergence import AbstractTrace, Exact, Hutchinson
from sdekit._gradient import AbstractGradient, Checkpointed, Reversible
from sdekit._grid import geometric, uniform
from sdekit._integrate import integrate, solve
from sdekit._likelihood import Likelihood, log_likelihood
from sdekit._noise import AbstractNoise, Increment, WhiteNoise
from sdekit._random import fresh_seed, normal, uniform01
from sdekit._reverse import ProbabilityFlow, ReverseSDE
from sdekit._sde import ODE, SDE, AbstractSDE
from sdekit._semilinear import SemiLinear
from sdekit._solution import NotFiniteError, Point, Solution, Status, UnfinishedError
from sdekit._solver import (
    RK4,
    SEA,
    SRA1,
    SRA3,
    SRID2,
    AbstractCorrector,
    AbstractEmbeddedRungeKutta,
    AbstractRungeKutta,
    AbstractSolver,
    AbstractStochasticRungeKutta,
    AdamsBashforth,
    Bosh3,
    Dopri5,
    Dopri8,
    EulerHeun,
    EulerMaruyama,
    ExponentialEuler,
    ExponentialHeun,
    Heun,
    Langevin,
    Midpoint,
    Milstein,
    Order,
    PredictorCorrector,
    ReversibleHeun,
    ShARK,
    SlowRK,
    SPaRK,
    Stage,
    Step,
    StochasticTableau,
    Tableau,
    Tsit5,
)
from sdekit.interop import odeint, odeint_adjoint, odeint_event, sdeint

__version__ = version("sdekit")

__all__ = [
    "ODE",
    "RK4",
    "SDE",
    "SEA",
    "SRA1",
    "SRA3",
    "SRID2",
    "AbstractCorrector",
    "AbstractEmbeddedRungeKutta",
    "AbstractGradient",
    "AbstractNoise",
    "AbstractRungeKutta",
    "AbstractSDE",
    "AbstractSolver",
    "AbstractStochasticRungeKutta",
    "AbstractTrace",
    "AdamsBashforth",
    "Bosh3",
    "BrownianPath",
    "Checkpointed",
    "Clocked",
    "Dopri5",
    "Dopri8",
    "EulerHeun",
    "EulerMaruyama",
    "Exact",
    "ExponentialEuler",
    "ExponentialHeun",
    "Heun",
    "Hutchinson",
    "Increment",
    "Langevin",
    "Likelihood",
    "Midpoint",
    "Milstein",
    "NotFiniteError",
    "Order",
    "PIDController",
    "Point",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseSDE",
    "Reversible",
    "ReversibleHeun",
    "SPaRK",
    "SemiLinear",
    "ShARK",
    "SlowRK",
    "Solution",
    "Stage",
    "Status",
    "Step",
    "StochasticTableau",
    "Tableau",
    "Tsit5",
    "UnfinishedError",
    "WhiteNoise",
    "elementary",
    "fresh_seed",
    "geometric",
    "integrate",
    "interop",
    "log_likelihood",
    "normal",
    "odeint",
    "odeint_adjoint",
    "odeint_event",
    "sdeint",
    "solve",
    "uniform",
    "uniform01",
]
