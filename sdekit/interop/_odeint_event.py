"""torchdiffeq's odeint_event: the time of an event, with derivatives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.calling import require_call
from sdekit.interop._crossing import Crossing
from sdekit.interop._guarded import GuardedMethod, GuardedModule
from sdekit.interop._odeint import guarded_arguments, odeint
from sdekit.interop._odeint_adjoint import odeint_adjoint
from sdekit.interop._odeint_methods import require_arguments
from sdekit.interop._system import State, System


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
    """The time at which event_fn(t, y) is zero, and the state there, as
    `torchdiffeq.odeint_event`.

    Gradients: if g = event_fn changes by dg at the fixed time of the event, this time changes by
    dt = -dg / (g_t + g_y f), with f = func there, and the state at the event by another f dt.

    Arguments:
        func: `func(t, y)`, shaped like y.
        y0: the state at t0, a tensor or a tuple of tensors.
        t0: the initial time, a 0-dim tensor.
        event_fn: `event_fn(t, y)`, a tensor; the event is the first time at which one of its
            elements changes sign.
        reverse_time: whether the solve goes from t0 to earlier times.
        odeint_interface: a solver with the arguments of torchdiffeq's odeint, such as
            `sdekit.odeint_adjoint`; None means `sdekit.odeint`.
        settings: further arguments of the solver, such as rtol, atol and method.

    Returns:
        the time of the event, and the states at t0 and at that time, `(2, *y0.shape)`. Both have
        gradients, first ones only, with respect to y0, t0 and the parameters of func and event_fn.

    Raises:
        UnfinishedError, NotFiniteError, ValueError: as `odeint`.
        RuntimeError: when func or event_fn changes its input in place, and for second derivatives.
        TypeError: for a y0 that is not floating-point or complex, or a func that does not take
            (t, y).

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
    start = t0.reshape(1)
    ends = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    try:
        if odeint_interface in (None, odeint, odeint_adjoint):
            interface = odeint_interface or odeint
            when, states = interface(func, y0, ends, event_fn=event_fn, **settings)
        else:
            guarded, y, ends = guarded_arguments(func, y0, ends)
            assert odeint_interface is not None
            when, states = odeint_interface(
                GuardedModule(func, guarded) if isinstance(func, nn.Module) else guarded,
                y,
                ends,
                event_fn=GuardedMethod("event_fn(t, y)", event_fn),
                **settings,
            )
    except TypeError:
        require_call(func, "func(t, y)", t0, y0)
        raise
    return _linked(System(func, y0), event_fn, t0, when.detach(), y0, states)


def _linked(
    system: System,
    event_fn: Callable[..., Any],
    t0: Tensor,
    when: Tensor,
    y0: State,
    states: State,
) -> tuple[Tensor, State]:
    """The time and the states with the gradients that both have through the time of the event."""
    parts = (states,) if isinstance(states, Tensor) else states
    last = tuple(part[-1] for part in parts)
    x = system.flat(last[0] if system.single else last)
    if torch.is_grad_enabled():
        change = _change(Crossing(system, event_fn, float(t0.detach()), system.flat(y0)), when, x)
        if change is not None:
            change = _Once.apply(change)
            with torch.no_grad():
                slope = system.drift(float(when), x)
            when = when + change.to(when)
            x = x + change.to(x) * slope
    ends = system.parts(x[0])
    states = tuple(torch.cat([part[:-1], end[None]]) for part, end in zip(parts, ends, strict=True))
    return when, states[0] if system.single else states


class _Once(torch.autograd.Function):
    """A number with first derivatives only, because the rates in them are not differentiated."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(value)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        return _FirstDerivative.apply(*grads, *ctx.saved_tensors)


class _FirstDerivative(torch.autograd.Function):
    """A derivative that depends on a number, but whose own derivatives are refused."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, number: Tensor) -> Tensor:  # noqa: ANN401
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ANN401
        raise RuntimeError(
            "the time of an event has first derivatives only; for second ones solve its equation, "
            "event_fn(t, y(t)) = 0, by Newton steps that autograd records"
        )


def _change(crossing: Crossing, when: Tensor, x: Tensor) -> Tensor | None:
    """The change of the time of an event, which is 0, with the gradients of -dg / (g_t + g_y f);
    None if g has no gradients, or does not change along the solution.
    """
    t = when.detach().double()
    value = crossing.differentiable(t, x)
    if not value.requires_grad:
        return None
    rate, _ = crossing.derivatives(t, x)
    return None if rate == 0 else (value.detach() - value) / rate
