"""torchdiffeq's odeint: by sdekit's solvers for explicit methods, else by torchdiffeq itself."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sdekit._grid import times
from sdekit._solve.solution import NotFiniteError, Point, not_finite
from sdekit.calling import has_hidden_values, require_call, require_order
from sdekit.elementary import Time
from sdekit.interop._crossing import MOST, Crossing, first_crossing
from sdekit.interop._guarded import GuardedFunc, GuardedMethod
from sdekit.interop._odeint_methods import (
    ADAPTIVE,
    FIXED,
    callback_of,
    is_supported,
    options_of,
    require_arguments,
    require_method,
)
from sdekit.interop._odeint_steps import AcceptedStep, adaptive_steps, fixed_steps, number
from sdekit.interop._odeint_times import Times, outputs
from sdekit.interop._originals import torchdiffeq_odeint
from sdekit.interop._system import State, System
from sdekit.interop._torchsde_grid import steps


def odeint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor | Sequence[float],
    *,
    rtol: Any = 1e-7,  # noqa: ANN401 - a number, or what torchdiffeq takes
    atol: Any = 1e-9,  # noqa: ANN401
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:  # noqa: ANN401 - as y0, or the pair that event_fn asks for
    """Solves dy = func(t, y) dt as `torchdiffeq.odeint` does, with its arguments, defaults and
    names of methods.

    All of y, including a batch dimension, is one system, whose elements share the steps. The
    explicit Runge-Kutta methods are sdekit's own, with all options, events, callbacks, complex
    states and gradients with respect to t: "dopri5", "dopri8" (`Dopri8`, another pair of order
    eight than torchdiffeq's), "bosh3", "fehlberg2", "adaptive_heun", "tsit5" (which torchdiffeq
    0.2.5 does not have), "euler", "midpoint", "heun2", "heun3" and "rk4". The Adams methods,
    "scipy_solver" and the implicit methods with fixed steps, such as "implicit_euler", are
    torchdiffeq's, if its version has them, with the same arguments. sdekit's own methods differ
    from torchdiffeq's on purpose:

    - func is never called at a time outside the interval, except on the way to an event;
    - a state that is not finite, or a tolerance below the rounding of y's dtype, is an error;
    - max_num_steps, by default 2^31 - 1 as in torchdiffeq, limits the number of steps of the whole
      solve to this number times the number of intervals of t;
    - with step_size = h step k begins at t[0] + k h, not at a sum of k numbers h, to avoid a tiny
      last step;
    - an event is located to 2^-44 of its step, not to atol.

    Arguments:
        func: `func(t, y)`, shaped like y; t is a 0-dim tensor of y's real dtype. If func has
            attributes callback_step, callback_accept_step and callback_reject_step, they are called
            with (t0, y0, dt) before each step, and after its acceptance or rejection.
        y0: the state at t[0], floating-point or complex, of any shape, or a tuple of such tensors.
        t: the times of the result, strictly monotone. With adaptive steps the derivatives with
            respect to t, first ones only, are those of the exact solution.
        rtol, atol: the tolerances of the root mean square error of y, or of each tensor of a tuple.
            A tensor shaped like y has a tolerance per element, and a tuple one per tensor.
        method: a name of torchdiffeq's, or "tsit5"; None is "dopri5".
        options: with adaptive steps "first_step", "min_step", "max_step", "safety", "ifactor",
            "dfactor", "max_num_steps", "step_t", "jump_t", "norm" and "dtype", which has no effect;
            with fixed steps "step_size" or "grid_constructor", "interp" and "perturb".
        event_fn: `event_fn(t, y)`, a tensor. The solve continues in the direction from t[0] to t[1]
            until an element of it changes sign. The result is then the pair of the time of this
            event, and the states at t[0] and at the event. Their derivatives are those for a fixed
            time; `odeint_event` adds those through the time.

    Returns:
        the states at t, `(len(t), *y0.shape)`, the first of them y0; for a tuple a tuple of these.

    Raises:
        UnfinishedError: when adaptive steps fail; it says when and why.
        NotFiniteError: when fixed steps reach a state that is not finite.
        RuntimeError: when func or event_fn changes its input or an earlier result in place.
        TypeError: for a state that is not floating-point or complex, times that are not numbers, or
            a func that does not take (t, y).
        ValueError: for times that are not monotone, tolerances that are negative or cannot be met,
            an unknown method, option values that are not allowed, or an event_fn whose elements
            never change sign.

    Example:
        >>> y = sdekit.odeint(lambda t, y: -y, torch.ones(3), torch.linspace(0.0, 1.0, 5))
        >>> y.shape
        torch.Size([5, 3])
        >>> round(float(y[-1, 0]), 4)  # e^-1
        0.3679

    References:
        Chen 2018, torchdiffeq, https://github.com/rtqichen/torchdiffeq.
    """
    require_arguments(y0, t)
    require_method(method, options)
    require_order(func, "t, x")
    if event_fn is not None:
        require_order(event_fn, "t, x")
    settings: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    try:
        if is_supported(method):
            return _solve(func, y0, t, event_fn, **settings)
        return torchdiffeq_odeint(
            *guarded_arguments(func, y0, t),
            **settings,
            event_fn=event_fn and GuardedMethod("event_fn(t, y)", event_fn),
        )
    except TypeError:
        require_call(func, "func(t, y)", t, y0)
        raise


def _solve(
    func: Callable[..., Any],
    y0: State,
    t: Tensor | Sequence[float],
    event_fn: Callable[..., Any] | None,
    *,
    rtol: Any,  # noqa: ANN401
    atol: Any,  # noqa: ANN401
    method: str | None,
    options: dict[str, Any] | None,
) -> Any:  # noqa: ANN401
    system = System(func, y0)
    if isinstance(t, Tensor) and t.ndim != 1:
        raise ValueError(
            f"t must have one dimension, the times of the result, not shape {tuple(t.shape)}"
        )
    x0 = system.flat(y0)
    if event_fn is None and (len(t) == 1 or not x0.numel()):
        return system.shaped(x0.expand(len(t), *x0.shape)[:, 0])
    if event_fn is not None and len(t) != 2:
        raise ValueError(
            f"with event_fn t is the pair of the beginning and any later time, not {len(t)} times"
        )
    chosen = Method(system, func, y0, rtol, atol, method or "dopri5", options or {})
    ts = Times.of(t, differentiated=chosen.is_adaptive)
    start = ts.shifted(system, x0, 0, -1.0)
    taken = chosen.steps(start, ts, event=event_fn is not None)
    if event_fn is not None:
        when, x = first_crossing(Crossing(system, event_fn, ts.numbers[0], start), taken)
        event_t = torch.tensor(when, dtype=torch.float64, device=x0.device)
        dtype = t.dtype if isinstance(t, Tensor) and t.is_floating_point() else x0.dtype
        return event_t.to(dtype), system.shaped(torch.cat([x0, x]))
    xs = list(outputs(ts, taken))
    if failure := chosen.failure(x0, ts, xs[-1]):
        raise failure
    xs = [ts.shifted(system, x, i, 1.0) for i, x in enumerate(xs, 1)]
    return system.shaped(torch.cat([x0, *xs]))


def guarded_arguments(
    func: Callable[..., Any], y0: State, t: Tensor | Sequence[float]
) -> tuple[GuardedFunc, State, Tensor]:
    """Arguments for torchdiffeq: a guarded func, and copies of y0 and t, because func may change
    them before this is detected.
    """
    at = t.clone() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    copies = y0.clone() if isinstance(y0, Tensor) else tuple(part.clone() for part in y0)
    return GuardedFunc(func, y0), copies, at


@dataclass(frozen=True, eq=False)
class Method:
    """A method with its options, for one system."""

    system: System
    func: Callable[..., Any]
    y0: State
    rtol: Any
    atol: Any
    name: str
    options: dict[str, Any]

    @property
    def is_adaptive(self) -> bool:
        """Whether the error chooses the steps."""
        return self.name in ADAPTIVE

    def steps(self, x0: Tensor, ts: Times, *, event: bool) -> Iterator[AcceptedStep]:
        """The steps from the first time to the last; to an event, without an end."""
        first = ts.numbers[0]
        last = ts.numbers[-1]
        given = options_of(self.name, self.options)
        callback = callback_of(self.func, self.system, self.name)
        if self.is_adaptive:
            return adaptive_steps(
                self.system, x0, first, math.copysign(math.inf, last - first) if event else last,
                solver=ADAPTIVE[self.name], callback=callback,
                control=given.control(self.system, self.rtol, self.atol, x0, len(ts.numbers) - 1),
            )  # fmt: skip
        return fixed_steps(
            self.system, x0, self._grid(ts, given.step_size, given.constructor, event=event),
            solver=FIXED[self.name], callback=callback, perturb=given.perturb, is_cubic=given.cubic,
        )  # fmt: skip

    def failure(self, x0: Tensor, ts: Times, end: Tensor) -> NotFiniteError | None:
        """The error of a solve whose state at the end is not finite: that of the initial state or
        of the first step that is not, found by repeating the steps.
        """
        if has_hidden_values(end) or not (last := not_finite(Point(0, ts.numbers[-1], end))):
            return None
        if failure := not_finite(Point(0, ts.numbers[0], x0.detach())):
            return failure
        numbers = Times(ts.numbers, None, ts.exact)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # given already
            for i, step in enumerate(self.steps(x0.detach(), numbers, event=False), 1):
                if failure := not_finite(Point(i, number(step.t1), step.x)):
                    return failure
        return last

    def _grid(
        self,
        ts: Times,
        size: float | None,
        constructor: Callable[..., Tensor] | None,
        *,
        event: bool,
    ) -> Iterable[Time]:
        """The times of fixed steps."""
        first = ts.numbers[0]
        last = ts.numbers[-1]
        if event:
            if size is None:
                raise ValueError(
                    "until an event fixed steps need a width: options={'step_size': ...}"
                )
            # The time of the event is a number, so that those of the steps are numbers.
            start = first if ts.tensors is None else ts.tensors[0]
            rest = (first + math.copysign(i * size, last - first) for i in range(1, MOST + 1))
            return chain([start], rest)
        if constructor is not None:
            return _constructed(constructor, self.func, self.y0, ts)
        if size is None:
            return ts.grid
        numbers = steps(first, last, size, 1e-6 * min(size, abs(last - first)))
        if ts.tensors is None:
            return numbers
        return [*(ts.tensors[0] + (s - first) for s in numbers[:-1]), ts.tensors[-1]]


def _constructed(
    constructor: Callable[..., Tensor], func: Callable[..., Any], y0: State, ts: Times
) -> Sequence[Time]:
    """The grid of the caller's grid_constructor.

    Raises:
        ValueError: unless it begins and ends with the first and the last time.
    """
    part = y0 if isinstance(y0, Tensor) else y0[0]
    dtype = torch.float64 if part.dtype.to_real() == torch.float64 else torch.float32
    t = (
        torch.tensor(ts.numbers, dtype=dtype, device=part.device)
        if ts.tensors is None
        else torch.cat([*ts.tensors])
    )
    grid = constructor(func, y0, t)
    numbers = times(grid)
    if [numbers[0], numbers[-1]] != t[[0, -1]].tolist():
        raise ValueError(
            f"grid_constructor returned times from {numbers[0]} to {numbers[-1]}; they must be "
            f"those from {ts.numbers[0]} to {ts.numbers[-1]}"
        )
    if isinstance(grid, Tensor) and grid.requires_grad:
        return grid.double().reshape(-1, 1).unbind()
    return [ts.numbers[0], *numbers[1:-1], ts.numbers[-1]]
