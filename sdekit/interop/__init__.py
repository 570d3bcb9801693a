"""Bridges to torchdiffeq, whose adaptive solvers are an engine here, and to torchsde, whose programs run here."""

from sdekit.interop._brownian import BrownianTreeNoiseSampler, TorchsdeBrownian
from sdekit.interop._from_torchsde import from_torchsde
from sdekit.interop._sdeint import sdeint
from sdekit.interop._to_torchsde import to_torchsde
from sdekit.interop._torchdiffeq import odeint, solve_ode
from sdekit.interop._torchsde_noise import TorchsdeNoise

__all__ = [
    "BrownianTreeNoiseSampler",
    "TorchsdeBrownian",
    "TorchsdeNoise",
    "from_torchsde",
    "odeint",
    "sdeint",
    "solve_ode",
    "to_torchsde",
]
