"""Solvers: the contract in `contract`, one family per file.

`__all__` registers a solver: `sdekit` exports the names in it, and `all_solvers`, from which the
methods of `sdekit.odeint` and the tests are derived, makes an object of each.
"""

from dataclasses import MISSING, fields, is_dataclass
from typing import TypeVar

from sdekit._solvers.contract import AbstractSolver, Order, Step
from sdekit._solvers.dopri8 import Dopri8
from sdekit._solvers.euler import EulerMaruyama
from sdekit._solvers.exponential import ExponentialEuler, ExponentialHeun
from sdekit._solvers.heun import EulerHeun, Heun, Midpoint, ReversibleHeun
from sdekit._solvers.implicit import ImplicitEulerMaruyama, ImplicitPlaten
from sdekit._solvers.limited import LimitedUniPC
from sdekit._solvers.log_ode import LogODE
from sdekit._solvers.milstein import Milstein, StratonovichMilstein
from sdekit._solvers.multistep import AbstractMultistep, AdamsBashforth, AdamsMoulton
from sdekit._solvers.predictor_corrector import AbstractCorrector, Langevin, PredictorCorrector
from sdekit._solvers.predictors import AbstractPredictor, Ancestral, ReverseDiffusion
from sdekit._solvers.published import DEIS, DPMSolver, UniPC
from sdekit._solvers.rosenbrock import AbstractRosenbrock, Rodas4, Rodas5P, RosenbrockTableau
from sdekit._solvers.runge_kutta import (
    RK4,
    AbstractEmbeddedRungeKutta,
    AbstractRungeKutta,
    Bosh3,
    Dopri5,
    Fehlberg2,
    HeunEuler,
    Tableau,
    Tsit5,
)
from sdekit._solvers.single import AbstractSingleStep, ClockedHeun, DPMSolverSingle
from sdekit._solvers.stabilised import SKROCK
from sdekit._solvers.stochastic_runge_kutta import SEA, SRA1, SRA3, SRID2, ShARK, SlowRK, SPaRK
from sdekit._solvers.stochastic_tableau import (
    AbstractStochasticRungeKutta,
    Stage,
    StochasticTableau,
)

__all__ = [
    "DEIS",
    "RK4",
    "SEA",
    "SKROCK",
    "SRA1",
    "SRA3",
    "SRID2",
    "AbstractCorrector",
    "AbstractEmbeddedRungeKutta",
    "AbstractMultistep",
    "AbstractPredictor",
    "AbstractRosenbrock",
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
    "Fehlberg2",
    "Heun",
    "HeunEuler",
    "ImplicitEulerMaruyama",
    "ImplicitPlaten",
    "Langevin",
    "LimitedUniPC",
    "LogODE",
    "Midpoint",
    "Milstein",
    "Order",
    "PredictorCorrector",
    "ReverseDiffusion",
    "ReversibleHeun",
    "Rodas4",
    "Rodas5P",
    "RosenbrockTableau",
    "SPaRK",
    "ShARK",
    "SlowRK",
    "Stage",
    "Step",
    "StochasticTableau",
    "StratonovichMilstein",
    "Tableau",
    "Tsit5",
    "UniPC",
]

Solver = TypeVar("Solver", bound=AbstractSolver)


def all_solvers(family: type[Solver] = AbstractSolver) -> list[Solver]:
    """One object of each registered solver of a family, with its default arguments.

    Solvers that need an argument, such as `ExponentialEuler(A)`, are left out.

    Arguments:
        family: a class of solvers, such as `AbstractMultistep`.

    Example:
        >>> rules = sdekit.all_solvers(sdekit.AbstractMultistep)
        >>> "AdamsMoulton" in [type(rule).__name__ for rule in rules]
        True
    """
    kinds = [globals()[name] for name in __all__ if not name.startswith("Abstract")]
    return [kind() for kind in kinds if issubclass(kind, family) and not _needs_arguments(kind)]


def _needs_arguments(kind: type) -> bool:
    arguments = fields(kind) if is_dataclass(kind) else ()
    return any(field.default is MISSING and field.default_factory is MISSING for field in arguments)
