"""Stochastic and ordinary differential equations in PyTorch, solved forwards or backwards in time.

The examples in the docstrings assume `import torch, sdekit` and `import sdekit_diffusion as sd`.

Example:
    >>> gbm = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x)
    >>> ts = sdekit.uniform(0.0, 1.0, 100)
    >>> sdekit.solve(gbm, torch.ones(4, 1), ts, solver=sdekit.EulerMaruyama()).x.shape
    torch.Size([4, 1])
"""

from typing import TYPE_CHECKING

from sdekit import _solvers, elementary, interop
from sdekit._arguments.names import did_you_mean
from sdekit._equations.clocked import AbstractClocked, AngleClocked, Clocked
from sdekit._equations.computed import computed
from sdekit._equations.functions import ODE, SDE
from sdekit._equations.piecewise import PiecewiseClocked
from sdekit._equations.reverse import ProbabilityFlow, ReverseSDE
from sdekit._equations.sde import AbstractSDE
from sdekit._equations.semilinear import SemiLinear
from sdekit._grid import geometric, uniform
from sdekit._likelihood.divergence import AbstractTrace, Exact, Hutchinson
from sdekit._likelihood.likelihood import Likelihood, log_likelihood
from sdekit._likelihood.transitions import PathWeights, Transitions, path_kl, path_weights
from sdekit._noise.brownian import BrownianPath
from sdekit._noise.generator import fresh_seed, normal, uniform01
from sdekit._noise.white import AbstractNoise, Increment, NoiseQuery, WhiteNoise
from sdekit._solve.control import PIDController
from sdekit._solve.events import Event
from sdekit._solve.gradient import AbstractGradient, Checkpointed, Reversible
from sdekit._solve.integrate import integrate, solve
from sdekit._solve.solution import (
    Events,
    NotFiniteError,
    Point,
    Solution,
    Status,
    UnfinishedError,
)
from sdekit._solve.stepper import Stepper, stepper
from sdekit._solvers import *  # noqa: F403
from sdekit._solvers import all_solvers
from sdekit.interop import (
    odeint,
    odeint_adjoint,
    odeint_dense,
    odeint_event,
    sdeint,
    sdeint_adjoint,
)

__all__ = [
    "ODE",
    "SDE",
    "AbstractClocked",
    "AbstractGradient",
    "AbstractNoise",
    "AbstractSDE",
    "AbstractTrace",
    "AngleClocked",
    "BrownianPath",
    "Checkpointed",
    "Clocked",
    "Event",
    "Events",
    "Exact",
    "Hutchinson",
    "Increment",
    "Likelihood",
    "NoiseQuery",
    "NotFiniteError",
    "PIDController",
    "PathWeights",
    "PiecewiseClocked",
    "Point",
    "ProbabilityFlow",
    "ReverseSDE",
    "Reversible",
    "SemiLinear",
    "Solution",
    "Status",
    "Stepper",
    "Transitions",
    "UnfinishedError",
    "WhiteNoise",
    "all_solvers",
    "computed",
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
    "odeint_dense",
    "odeint_event",
    "path_kl",
    "path_weights",
    "sdeint",
    "sdeint_adjoint",
    "solve",
    "stepper",
    "uniform",
    "uniform01",
]
__all__ += _solvers.__all__


__version__: str

if not TYPE_CHECKING:  # so that type checkers know which names there are

    def __getattr__(name: str) -> str:
        if name == "__version__":  # importlib.metadata is slow to import
            from importlib.metadata import version

            return version("sdekit")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
