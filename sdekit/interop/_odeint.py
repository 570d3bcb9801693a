"""torchdiffeq's odeint: by sdekit's solvers for supported methods, else by torchdiffeq itself."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit._grid import times
from sdekit._solve.adaptive import AdaptiveSolve
from sdekit._solve.control import PIDController
from sdekit._solve.counted import Counted
from sdekit._solve.integrate import integrate
from sdekit._solve.solution import Point, Status, unfinished
from sdekit._solvers import AbstractSolver
from sdekit.calling import require_call, require_order
from sdekit.interop._guarded import GuardedFunc, GuardedMethod
from sdekit.interop._odeint_methods import (
    ADAPTIVE,
    CONTROL,
    FIXED,
    is_supported,
    require_arguments,
    require_method,
)
from sdekit.interop._originals import torchdiffeq_odeint
from sdekit.interop._system import State, System
from sdekit.interop._torchsde_grid import steps

_MAX_STEPS = 2**31 - 1  # steps, as in torchdiffeq


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
    """Solves dy = func(t, y) dt as `torchdiffeq.odeint` does: its arguments, defaults and names of
    methods.

    The whole of y is one system with one step. sdekit's own solvers are used for the methods
    "dopri5", "dopri8" (another pair of order eight, `Dopri8`), "bosh3", "tsit5" (which torchdiffeq
    does not have), "euler", "midpoint", "heun2", "heun3" and "rk4", with the options "first_step",
    "safety", "ifactor", "dfactor" and "max_num_steps", or "step_size". Other methods and options,
    `event_fn`, gradients with respect to t, complex states, tolerances of each element and
    callbacks of func are passed to torchdiffeq with the same arguments. With sdekit's solvers these
    differences are intended:

    - func is never called at a time outside the interval;
    - a state that is not finite, or a tolerance below the rounding of y's dtype, is an error;
    - max_num_steps, by default 2^31 - 1 as there, limits the whole solve to this number of steps
      times the number of intervals;
    - with step_size steps are counted, not accumulated, to avoid a tiny last step.

    Arguments:
        func: `func(t, y)`, shaped as y; t is a 0-dim tensor of y's dtype.
        y0: the state at t[0], floating, of any shape, or a tuple of such tensors.
        t: the times of the result, strictly monotone.
        rtol, atol: the tolerances of the root mean square of y; of a tuple, of each of its tensors.
        method: a name of torchdiffeq's, or "tsit5"; None is "dopri5".
        options, event_fn: as torchdiffeq's.

    Returns:
        the states at t, `(len(t), *y0.shape)`, the first of them y0; for a tuple a tuple of these.

    Raises:
        UnfinishedError: when adaptive steps fail; it says when and why.
        NotFiniteError: when fixed steps reach a state that is not finite.
        TypeError: for a state that is not floating, times that are not numbers, or a func that does
            not take (t, y).
        ValueError: for times that are not monotone, tolerances that are negative or cannot be met,
            or an unknown method.

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
    require_method(method)
    require_order(func, "t, x")
    if event_fn is not None:
        require_order(event_fn, "t, x")
    try:
        return _solve(func, y0, t, event_fn, rtol=rtol, atol=atol, method=method, options=options)
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
    settings: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    if not is_supported(func, y0, t, event_fn, **settings):
        return torchdiffeq_odeint(
            *guarded_arguments(func, y0, t),
            **settings,
            event_fn=event_fn and GuardedMethod("event_fn(t, y)", event_fn),
        )
    method = method or "dopri5"
    options = options or {}
    system = System(func, y0)
    x0 = system.flat(y0)
    if isinstance(t, Tensor) and t.ndim != 1:
        raise ValueError(
            f"t must have one dimension, the times of the result, not shape {tuple(t.shape)}"
        )
    if len(t) == 1 or not x0.numel():
        xs = x0.expand(len(t), *x0.shape)
    elif method in ADAPTIVE:
        xs = _adaptive(system, x0, times(t), ADAPTIVE[method], float(rtol), float(atol), options)
    else:
        size = options.get("step_size")
        xs = torch.stack(
            list(
                _fixed_steps(
                    system, x0, times(t), FIXED[method], None if size is None else float(size)
                )
            )
        )
    return system.shaped(xs[:, 0])


def guarded_arguments(
    func: Callable[..., Any], y0: State, t: Tensor | Sequence[float]
) -> tuple[GuardedFunc, State, Tensor]:
    """Arguments for torchdiffeq: a guarded func, and copies of y0 and t, because func may change
    them before this is detected.
    """
    times = t.clone() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    copies = y0.clone() if isinstance(y0, Tensor) else tuple(part.clone() for part in y0)
    return GuardedFunc(func, y0), copies, times


@dataclass(frozen=True, eq=False)
class _Control(PIDController):
    """A controller whose q is the largest of those of the parts of a tuple, so that small parts
    have their own tolerance.
    """

    sizes: Sequence[int] = ()

    def error(self, error: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        if len(self.sizes) == 1:
            return super().error(error, x0, x1)
        parts = zip(*(value.split(self.sizes, dim=1) for value in (error, x0, x1)), strict=True)
        return torch.stack([PIDController.error(self, *part) for part in parts]).amax(dim=0)


def _adaptive(
    system: System,
    x0: Tensor,
    ts: list[float],
    solver: AbstractSolver,
    rtol: float,
    atol: float,
    options: dict[str, Any],
) -> Tensor:
    settings: dict[str, Any] = {"max_steps": _MAX_STEPS}
    for option, value in options.items():
        name, kind = CONTROL[option]
        settings |= {} if value is None else {name: kind(value)}
        if value is not None and not value > 0:
            raise ValueError(f"options[{option!r}] must be positive, not {value}")
    settings["max_steps"] *= len(ts) - 1
    control = _Control(rtol, atol, **settings, sizes=system.sizes)
    resolution = torch.finfo(x0.dtype).eps
    if max(rtol, atol) < resolution / 2:
        raise ValueError(
            f"rtol = {rtol:g} and atol = {atol:g} are below the rounding of {x0.dtype}; ask for "
            f"{resolution:.1g} or more, or use a wider dtype"
        )
    solution, reached = AdaptiveSolve(
        Counted.of(system, x0), x0, ts, solver=solver, noise=None, control=control, save=True
    ).run()
    if bool((solution.status != Status.DONE).any()):
        raise unfinished(
            solution,
            reached,
            x0,
            advice="look at what func returns there, or ask for a larger rtol or atol; the limit "
            "of steps is options={'max_num_steps': ...}",
        )
    assert solution.xs is not None
    return solution.xs


def _fixed_steps(
    system: System, x0: Tensor, ts: list[float], solver: AbstractSolver, size: float | None
) -> Iterator[Tensor]:
    """The states at ts by fixed steps, of one size or from each of ts to the next, interpolated
    linearly.
    """
    if size is not None and not size > 0:
        raise ValueError(
            f"step_size is the width of a step, positive, not {size}; decreasing t reverse the time"
        )
    span = abs(ts[-1] - ts[0])
    remaining = deque(ts[1:])
    grid = ts if size is None else steps(ts[0], ts[-1], size, 1e-6 * min(size, span))
    previous = Point(0, ts[0], x0)
    sign = 1 if ts[-1] > ts[0] else -1
    for point in integrate(system, x0, grid, solver=solver):
        if point.step == 0:
            yield point.x
        while point.step and remaining and sign * (point.t - remaining[0]) >= 0:
            yield torch.lerp(
                previous.x, point.x, (remaining.popleft() - previous.t) / (point.t - previous.t)
            )
        previous = point
