"""Interfaces to torchdiffeq and torchsde: their functions by sdekit's solvers, and conversions of
equations and Brownian motions.

Example:
    >>> ode = sdekit.ODE(lambda t, x: -x)
    >>> sdekit.interop.solve_ode(ode, torch.ones(4, 1), [0.0, 1.0], method="rk4").x.shape
    torch.Size([4, 1])
"""

from typing import TYPE_CHECKING

from sdekit.interop._from_torchsde import from_torchsde
from sdekit.interop._odeint import odeint
from sdekit.interop._odeint_adjoint import odeint_adjoint
from sdekit.interop._odeint_dense import odeint_dense
from sdekit.interop._odeint_event import odeint_event
from sdekit.interop._path_adapters import BrownianTreeNoiseSampler
from sdekit.interop._sdeint import sdeint
from sdekit.interop._sdeint_adjoint import sdeint_adjoint
from sdekit.interop._to_torchsde import to_torchsde
from sdekit.interop._torchdiffeq import solve_ode
from sdekit.interop._torchsde_engine import solve_sde
from sdekit.interop._torchsde_noise import TorchsdeNoise

if TYPE_CHECKING:
    from sdekit.interop._torchsde_brownian import TorchsdeBrownian

__all__ = [
    "BrownianTreeNoiseSampler",
    "TorchsdeBrownian",
    "TorchsdeNoise",
    "from_torchsde",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "sdeint",
    "sdeint_adjoint",
    "solve_ode",
    "solve_sde",
    "to_torchsde",
]

if not TYPE_CHECKING:  # so that type checkers know which names there are

    def __getattr__(name: str) -> type:
        if name == "TorchsdeBrownian":  # a subclass of torchsde's, which is slow to import
            from sdekit.interop._torchsde_brownian import TorchsdeBrownian

            return TorchsdeBrownian
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
