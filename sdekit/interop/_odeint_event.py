"""torchdiffeq's odeint_event with guarded functions."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sdekit.calling import require_call
from sdekit.interop._guarded import GuardedMethod, GuardedModule
from sdekit.interop._odeint import guarded_arguments, require_arguments
from sdekit.interop._originals import original


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

    Raises:
        RuntimeError: when func or event_fn changes its input in place.
        TypeError: for a y0 that is not floating, or a func that does not take (t, y).

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
    require_arguments(y0, (t0,))
    if odeint_interface is not None:
        settings["odeint_interface"] = odeint_interface
    solve_event = original("torchdiffeq._impl.odeint", "odeint_event")
    guarded, start, start_time = guarded_arguments(func, y0, t0)
    try:
        return solve_event(
            GuardedModule(func, guarded) if isinstance(func, nn.Module) else guarded,
            start,
            start_time,
            event_fn=GuardedMethod("event_fn(t, y)", event_fn),
            reverse_time=reverse_time,
            **settings,
        )
    except TypeError:
        require_call(func, "func(t, y)", t0, y0)
        raise
