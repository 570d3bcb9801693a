"""Functions of torchdiffeq and torchsde, loaded when they are first needed, because both import
SciPy, which is slow.

A program may replace attributes of these packages by ours, as in `torchsde.sdeint = sdekit.sdeint`.
Their functions are therefore taken from the submodules that define them, which such an assignment
does not change.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch


@cache
def original(module: str, name: str) -> Any:  # noqa: ANN401
    """An attribute of a submodule, which is imported if necessary.

    Importing torchdiffeq creates tensors of coefficients. They are created outside inference mode,
    since gradients could not flow through them otherwise, and on the CPU.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        return getattr(import_module(module), name)


def torchdiffeq_odeint(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """torchdiffeq's odeint."""
    return original("torchdiffeq._impl.odeint", "odeint")(*args, **kwargs)


def torchdiffeq_adjoint(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """torchdiffeq's odeint_adjoint."""
    return original("torchdiffeq._impl.adjoint", "odeint_adjoint")(*args, **kwargs)


def torchdiffeq_methods() -> Sequence[str]:
    """The names of torchdiffeq's methods."""
    return tuple(original("torchdiffeq._impl.odeint", "SOLVERS"))
