"""Solvers: the contract in `_contract`, one family a file."""

from sdekit._solver._contract import AbstractSolver, Order, Step
from sdekit._solver._dopri8 import Dopri8
from sdekit._solver._euler import EulerMaruyama
from sdekit._solver._exponential import ExponentialEuler, ExponentialHeun
from sdekit._solver._heun import EulerHeun, Heun, Midpoint, ReversibleHeun
from sdekit._solver._milstein import Milstein
from sdekit._solver._multistep import AbstractMultistep, AdamsBashforth, AdamsMoulton
from sdekit._solver._predictor_corrector import AbstractCorrector, Langevin, PredictorCorrector
from sdekit._solver._predictors import AbstractPredictor, Ancestral, ReverseDiffusion
from sdekit._solver._published import DEIS, DPMSolver, UniPC
from sdekit._solver._runge_kutta import RK4, AbstractEmbeddedRungeKutta, AbstractRungeKutta, Bosh3, Dopri5, Tableau, Tsit5
from sdekit._solver._single import AbstractSingleStep, ClockedHeun, DPMSolverSingle
from sdekit._solver._stochastic_runge_kutta import (
    SEA,
    SRA1,
    SRA3,
    SRID2,
    AbstractStochasticRungeKutta,
    ShARK,
    SlowRK,
    SPaRK,
    Stage,
    StochasticTableau,
)

__all__ = [
    "DEIS",
    "RK4",
    "SEA",
    "SRA1",
    "SRA3",
    "SRID2",
    "AbstractCorrector",
    "AbstractEmbeddedRungeKutta",
    "AbstractMultistep",
    "AbstractPredictor",
    "AbstractRungeKutta",
    "AbstractSingleStep",
    "AbstractSolver",
    "AbstractStochasticRungeKutta",
    "AdamsBashforth",
    "AdamsMoulton",
    "Ancestral",
    "Bosh3",
    "ClockedHeun",
    "DPMSolver",
    "DPMSolverSingle",
    "Dopri5",
    "Dopri8",
    "EulerHeun",
    "EulerMaruyama",
    "ExponentialEuler",
    "ExponentialHeun",
    "Heun",
    "Langevin",
    "Midpoint",
    "Milstein",
    "Order",
    "PredictorCorrector",
    "ReverseDiffusion",
    "ReversibleHeun",
    "SPaRK",
    "ShARK",
    "SlowRK",
    "Stage",
    "Step",
    "StochasticTableau",
    "Tableau",
    "Tsit5",
    "UniPC",
]
