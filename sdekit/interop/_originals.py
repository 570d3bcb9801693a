"""Functions of torchdiffeq and torchsde, loaded when first needed: both import SciPy, which is
slow.

A program may replace attributes of these packages by ours, as in `torchsde.sdeint = sdekit.sdeint`.
Their functions are therefore taken from the submodules that define them, which such an assignment
does not change.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


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


def torchsde_sdeint(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """torchsde's sdeint."""
    return original("torchsde._core.sdeint", "sdeint")(*args, **kwargs)


def torchsde_methods() -> Sequence[str]:
    """The names of torchsde's methods."""
    methods = original("torchsde.settings", "METHODS")
    return [name for name in vars(methods).values() if isinstance(name, str) and name in methods]


def odeint_event(
    func: Callable[..., Any],
    y0: Any,  # noqa: ANN401 - a tensor, or a tuple of tensors
    t0: Tensor,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] | None = None,
    **settings: Any,  # noqa: ANN401 - those of odeint_interface
) -> tuple[Tensor, Any]:
    """torchdiffeq's odeint_event: the time at which event_fn(t, y) is zero, and the state there.

    Arguments:
        func: `func(t, y)`, shaped as y.
        y0: the state at t0, a tensor or a tuple of tensors.
        t0: the time at which the solve begins, a 0-dim tensor.
        event_fn: `event_fn(t, y)`, a tensor; the event is the first time at which one of its
            elements changes sign.
        reverse_time: whether the solve goes from t0 to earlier times.
        odeint_interface: a solver with the arguments of torchdiffeq's odeint, such as
            `sdekit.odeint`; None means torchdiffeq's.
        settings: further arguments of the solver, such as rtol, atol and method.

    Returns:
        the time of the event, and the states at t0 and at that time, `(2, *y0.shape)`; gradients
        flow to y0, t0 and the parameters of func and event_fn.

    Example:
        >>> t, y = sdekit.odeint_event(
        ...     lambda t, y: -y, torch.ones(1), torch.tensor(0.0), event_fn=lambda t, y: y - 0.5
        ... )
        >>> round(float(t), 4)  # log 2
        0.6931

    References:
        Chen et al. 2021, "Learning neural event functions for ordinary differential equations",
        arXiv 2011.03902.
    """
    if odeint_interface is not None:
        settings["odeint_interface"] = odeint_interface
    found = original("torchdiffeq._impl.odeint", "odeint_event")
    return found(func, y0, t0, event_fn=event_fn, reverse_time=reverse_time, **settings)
