"""Stochastic and ordinary differential equations in PyTorch, solved forwards or backwards in time."""

from typing import Any

from sdekit import elementary, interop
from sdekit._equations.clocked import AbstractClocked, AngleClocked, Clocked, PiecewiseClocked
from sdekit._equations.reverse import ProbabilityFlow, ReverseSDE
from sdekit._equations.sde import ODE, SDE, AbstractSDE
from sdekit._equations.semilinear import SemiLinear
from sdekit._grid import geometric, uniform
from sdekit._likelihood.divergence import AbstractTrace, Exact, Hutchinson
from sdekit._likelihood.likelihood import Likelihood, log_likelihood
from sdekit._names import did_you_mean
from sdekit._noise.brownian import BrownianPath
from sdekit._noise.generator import fresh_seed, normal, uniform01
from sdekit._noise.white import AbstractNoise, Increment, WhiteNoise
from sdekit._solve.control import PIDController
from sdekit._solve.gradient import AbstractGradient, Checkpointed, Reversible
from sdekit._solve.integrate import integrate, solve
from sdekit._solve.solution import NotFiniteError, Point, Solution, Status, UnfinishedError
from sdekit._solvers import (
    DEIS,
    RK4,
    SEA,
    SRA1,
    SRA3,
    SRID2,
    AbstractCorrector,
    AbstractEmbeddedRungeKutta,
    AbstractMultistep,
    AbstractPredictor,
    AbstractRungeKutta,
    AbstractSingleStep,
    AbstractSolver,
    AbstractStochasticRungeKutta,
    AdamsBashforth,
    AdamsMoulton,
    Ancestral,
    Bosh3,
    ClockedHeun,
    Dopri5,
    Dopri8,
    DPMSolver,
    DPMSolverSingle,
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
    ReverseDiffusion,
    ReversibleHeun,
    ShARK,
    SlowRK,
    SPaRK,
    Stage,
    Step,
    StochasticTableau,
    Tableau,
    Tsit5,
    UniPC,
)
from sdekit.interop import odeint, odeint_adjoint, odeint_event, sdeint

__all__ = [
    "DEIS",
    "ODE",
    "RK4",
    "SDE",
    "SEA",
    "SRA1",
    "SRA3",
    "SRID2",
    "AbstractClocked",
    "AbstractCorrector",
    "AbstractEmbeddedRungeKutta",
    "AbstractGradient",
    "AbstractMultistep",
    "AbstractNoise",
    "AbstractPredictor",
    "AbstractRungeKutta",
    "AbstractSDE",
    "AbstractSingleStep",
    "AbstractSolver",
    "AbstractStochasticRungeKutta",
    "AbstractTrace",
    "AdamsBashforth",
    "AdamsMoulton",
    "Ancestral",
    "AngleClocked",
    "Bosh3",
    "BrownianPath",
    "Checkpointed",
    "Clocked",
    "ClockedHeun",
    "DPMSolver",
    "DPMSolverSingle",
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
    "PiecewiseClocked",
    "Point",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
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
    "UniPC",
    "WhiteNoise",
    "did_you_mean",
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


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "__version__":  # importlib.metadata is slow to import
        from importlib.metadata import version

        return version("sdekit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
