"""Stochastic and ordinary differential equations in PyTorch, solved forwards or backwards in time."""

from importlib.metadata import version

from sdekit import elementary, interop
from sdekit._brownian import BrownianPath
from sdekit._clocked import Clocked
from sdekit._divergence import AbstractTrace, Exact, Hutchinson
from sdekit._grid import geometric, uniform
from sdekit._integrate import NotFiniteError, Point, Solution, integrate, solve
from sdekit._likelihood import Likelihood, log_likelihood
from sdekit._noise import AbstractNoise, Increment, WhiteNoise
from sdekit._random import fresh_seed, normal, uniform01
from sdekit._reverse import ProbabilityFlow, ReverseSDE
from sdekit._sde import ODE, SDE, AbstractSDE
from sdekit._solver import (
    RK4,
    AbstractCorrector,
    AbstractRungeKutta,
    AbstractSolver,
    AdamsBashforth,
    EulerMaruyama,
    Heun,
    Langevin,
    Order,
    PredictorCorrector,
    Step,
    Tableau,
)

__version__ = version("sdekit")

__all__ = [
    "ODE",
    "RK4",
    "SDE",
    "AbstractCorrector",
    "AbstractNoise",
    "AbstractRungeKutta",
    "AbstractSDE",
    "AbstractSolver",
    "AbstractTrace",
    "AdamsBashforth",
    "BrownianPath",
    "Clocked",
    "EulerMaruyama",
    "Exact",
    "Heun",
    "Hutchinson",
    "Increment",
    "Langevin",
    "Likelihood",
    "NotFiniteError",
    "Order",
    "Point",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseSDE",
    "Solution",
    "Step",
    "Tableau",
    "WhiteNoise",
    "elementary",
    "fresh_seed",
    "geometric",
    "integrate",
    "interop",
    "log_likelihood",
    "normal",
    "solve",
    "uniform",
    "uniform01",
]
