"""torchdiffeq's odeint_dense: the solution of an ordinary equation as a function of the time."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.calling import require_call, require_order
from sdekit.elementary import Time
from sdekit.interop._odeint import Method
from sdekit.interop._odeint_methods import (
    ADAPTIVE,
    FIXED,
    is_supported,
    require_arguments,
    require_method,
)
from sdekit.interop._odeint_steps import number
from sdekit.interop._odeint_times import Times
from sdekit.interop._system import State, System


def odeint_dense(
    func: Callable[..., Any],
    y0: Any,  # noqa: ANN401 - a tensor, or a tuple of tensors
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Any = 1e-7,  # noqa: ANN401 - a number, or what torchdiffeq takes
    atol: Any = 1e-9,  # noqa: ANN401
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Tensor | float], Any]:
    """The solution y(t) of dy = func(t, y) dt between t0 and t1, as a function of the time, as
    `torchdiffeq.odeint_dense`.

    The equation is solved once, and all steps are kept; the function interpolates within them, with
    the order of the method's dense output. torchdiffeq takes "dopri5" and one tensor only, and its
    function takes one time at a time, where t1 < t0 with the other sign. Here

    - every method that `odeint` solves by sdekit is allowed, with its options, and y0 may be a
      tuple;
    - t1 may be less than t0, and times are those of func;
    - a time outside the interval is an error.

    Arguments:
        func: `func(t, y)`, shaped like y.
        y0: the state at t0, floating-point or complex, of any shape, or a tuple of such tensors.
        t0, t1: the ends of the interval, 0-dim tensors or numbers.
        rtol, atol, method, options: as of `odeint`. Without "step_size" or "grid_constructor" a
            method with fixed steps makes one step from t0 to t1.

    Returns:
        a function of t, a number or a tensor, 0-dim or `(n,)`, whose result is the state at t,
        shaped like y0, or `(n, *y0.shape)`; for a tuple a tuple of these. Its results have
        gradients with respect to y0, the tensors in func, t0 and t.

    Raises:
        UnfinishedError, NotFiniteError, RuntimeError: as `odeint`.
        TypeError: as `odeint`, or for an end that is not a number.
        ValueError: as `odeint`, for a method without dense output, and from the function for a time
            outside the interval or a tensor with more than one dimension.

    Example:
        >>> y = sdekit.odeint_dense(lambda t, y: -y, torch.ones(3), 0.0, 1.0)
        >>> round(float(y(0.5)[0]), 4)  # e^-0.5
        0.6065
        >>> y(torch.linspace(0.0, 1.0, 5)).shape
        torch.Size([5, 3])

    References:
        Hairer, Norsett and Wanner 1993, II.6, for dense output.
    """
    ends = _ends(t0, t1)
    require_arguments(y0, ends)
    require_method(method, options)
    require_order(func, "t, x")
    if not is_supported(method):
        raise ValueError(
            f"method {method!r} has no dense output; take one of {', '.join((*ADAPTIVE, *FIXED))}, "
            "or give sdekit.odeint the times"
        )
    try:
        return _solved(func, y0, ends, rtol, atol, method or "dopri5", options or {})
    except TypeError:
        require_call(func, "func(t, y)", ends[0], y0)
        raise


def _ends(t0: Tensor | float, t1: Tensor | float) -> Tensor:
    """Both ends, `(2,)`, in float64 where they are numbers.

    Raises:
        TypeError: unless each is one number.
    """
    for t in (t0, t1):
        if not isinstance(t, Tensor | Real) or (isinstance(t, Tensor) and t.numel() != 1):
            raise TypeError(f"t0 and t1 must be numbers or tensors of one number, not {t!r:.60}")
    double = {"dtype": torch.float64, "device": "cpu"}
    numbers = [t if isinstance(t, Tensor) else float(t) for t in (t0, t1)]
    return torch.stack([torch.as_tensor(t, **double).reshape(()) for t in numbers])


def _solved(
    func: Callable[..., Any],
    y0: State,
    ends: Tensor,
    rtol: Any,  # noqa: ANN401
    atol: Any,  # noqa: ANN401
    method: str,
    options: dict[str, Any],
) -> "_DenseSolution":
    system = System(func, y0)
    x0 = system.flat(y0)
    chosen = Method(system, func, y0, rtol, atol, method, options)
    ts = Times.of(ends.to(x0.device), differentiated=chosen.is_adaptive)
    x0 = ts.shifted(system, x0, 0, -1.0)
    taken = chosen.steps(x0, ts, event=False) if x0.numel() else ()
    steps = [_Piece(step.t0, step.t1, step.x, step.interpolant()) for step in taken]
    if steps and (failure := chosen.failure(x0, ts, steps[-1].x)):
        raise failure
    return _DenseSolution(system, x0, ts.numbers, steps)


class _Piece(NamedTuple):
    """A step: its times, the state at its end, and that at t0 + theta (t1 - t0) as a function of
    theta `(1,)`, which evaluates nothing.
    """

    t0: Time
    t1: Time
    x: Tensor
    state: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _DenseSolution:
    """The function that `odeint_dense` returns.

    Arguments:
        x0: the state at the first of the two ends.
        steps: all steps, in their order; none for an empty state.
    """

    system: System
    x0: Tensor
    ends: Sequence[float]
    steps: Sequence[_Piece]

    def __call__(self, t: Tensor | float) -> State:
        if not isinstance(t, Tensor):
            t = torch.tensor(t, dtype=torch.float64)
        if t.ndim > 1:
            raise ValueError(
                f"t must be one time or have one dimension, not shape {tuple(t.shape)}"
            )
        states = [self._at(time) for time in t.reshape(-1).unbind()]
        x = torch.cat(states) if states else self.x0[:0]
        return self.system.shaped(x if t.ndim else x[0])

    def _at(self, t: Tensor) -> Tensor:
        """The state at a 0-dim time, `(1, n)`."""
        time = self._within(t)
        sign = math.copysign(1.0, self.ends[1] - self.ends[0])
        if not self.steps:
            return self.x0
        i = bisect_left(self.steps, sign * time, key=lambda step: sign * number(step.t1))
        step = self.steps[min(i, len(self.steps) - 1)]
        if not t.requires_grad:
            # At a time that is a number; with one that is a tensor the state depends on it.
            if not isinstance(step.t1, Tensor) and time == step.t1:
                return step.x
            if not isinstance(step.t0, Tensor) and time == step.t0:
                return self.x0  # of the first step, as others begin where one ends
        # The number, with the derivative of t.
        exact = time + (t - t.detach()).to(self.x0.device, torch.float64).reshape(1)
        return step.state((exact - step.t0) / (step.t1 - step.t0))

    def _within(self, t: Tensor) -> float:
        """A time as a number, moved to an end from which it differs by rounding.

        Raises:
            ValueError: for a time outside the interval.
        """
        low, high = sorted(self.ends)
        time = float(t.detach())
        eps = torch.finfo(t.dtype if t.is_floating_point() else torch.float64).eps
        slack = eps * max(abs(low), abs(high))
        if not low - slack <= time <= high + slack:
            raise ValueError(
                f"the solve is from {self.ends[0]} to {self.ends[1]} and has no state at {time}; "
                "give a time between both"
            )
        return min(max(time, low), high)
