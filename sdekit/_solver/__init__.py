"""Solvers: the contract in `_contract`, one family a file."""

from sdekit._solver._contract import AbstractSolver, Order, Step
from sdekit._solver._euler import EulerMaruyama
from sdekit._solver._heun import Heun
from sdekit._solver._multistep import AdamsBashforth
from sdekit._solver._predictor_corrector import AbstractCorrector, Langevin, PredictorCorrector
from sdekit._solver._runge_kutta import RK4, AbstractRungeKutta, Tableau

__all__ = [
    "RK4",
    "AbstractCorrector",
    "AbstractRungeKutta",
    "AbstractSolver",
    "AdamsBashforth",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "Order",
    "PredictorCorrector",
    "Step",
    "Tableau",
]
