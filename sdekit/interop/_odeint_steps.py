"""The steps of odeint, for one system with one time."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit._noise.white import Increment
from sdekit._solve.control import PIDController
from sdekit._solve.counted import Counted
from sdekit._solve.dense import cubic, cubic_data
from sdekit._solve.solution import (
    Status,
    UnfinishedError,
    solution_of_equal_steps,
    unfinished,
)
from sdekit._solvers import AbstractSolver
from sdekit._solvers.contract import Tree
from sdekit.calling import require_values
from sdekit.elementary import Time, broadcast
from sdekit.interop._system import System

_ADVICE = (
    "look at what func returns there, or ask for a larger rtol or atol; the limit of steps is "
    "options={'max_num_steps': ...}"
)
_LATEST = 1e-3  # times the largest number of the dtype: where the search for an event ends
_EPSILON = torch.finfo(torch.float64).eps


class AcceptedStep(NamedTuple):
    """An accepted step: its times, the state at its end, `data()`, which may evaluate func, and
    `interpolate(data(), theta)`, the state at t0 + theta (t1 - t0), theta `(1,)`.
    """

    t0: Time
    t1: Time
    x: Tensor
    data: Callable[[], Tree]
    interpolate: Callable[[Tree, Tensor], Tensor]

    def interpolant(self) -> Callable[[Tensor], Tensor]:
        """The state as a function of theta, whose data are computed now; they have gradients unless
        this call is within `torch.no_grad`.
        """
        return partial(self.interpolate, self.data())


# called with "callback_step", "callback_accept_step" or "callback_reject_step", and t0, x and |dt|
Callback = Callable[[str, Time, Tensor, Time], None]


@dataclass(frozen=True, eq=False)
class Control:
    """Which steps are accepted, and how long they are.

    Arguments:
        system: the equation; each of its parts has its own error.
        rtol, atol: the tolerances of each part, numbers or tensors.
        limits: safety, smallest and largest factor, the first step, the limit of steps.
        norm: a function of the errors divided by their tolerances, shaped like y; None is the
            largest root mean square of the parts.
        shortest, longest: the limits of a step; a step that is not longer than shortest is always
            accepted if it is finite.
        stops: times at which steps end.
        jumps: those of them at which func jumps.
    """

    system: System
    rtol: Sequence[float | Tensor]
    atol: Sequence[float | Tensor]
    limits: PIDController
    norm: Callable[..., Any] | None = None
    shortest: float = 0.0
    longest: float = math.inf
    stops: Sequence[float] = ()
    jumps: Sequence[float] = ()

    @cached_property
    def plain(self) -> bool:
        """Whether all parts are real and have the same two numbers as tolerances, without norm."""
        values = (*self.rtol, *self.atol)
        return (
            self.norm is None
            and not any(self.system.complex)
            and not any(isinstance(value, Tensor) for value in values)
            and len({*self.rtol}) == len({*self.atol}) == 1
        )

    def error(self, error: Tensor, x0: Tensor, x1: Tensor) -> float:
        """q, the error relative to the tolerance; infinite where anything is not finite.

        Raises:
            RuntimeError: under torch.func.vmap.
        """
        require_values(error, "adaptive steps read their error")
        if self.plain:
            sizes = self.system.sizes
            if len(sizes) == 1:
                return float(self.limits.error(error, x0, x1))
            parts = zip(*(value.split(sizes, dim=1) for value in (error, x0, x1)), strict=True)
            return max(float(self.limits.error(*part)) for part in parts)
        parts = zip(*map(self.system.parts, (error[0], x0[0], x1[0])), strict=True)
        tiny = torch.finfo(x0.dtype).tiny ** 0.5
        ratios = [
            e / (atol + rtol * torch.maximum(a.abs(), b.abs())).clamp_min(tiny)
            for (e, a, b), rtol, atol in zip(parts, self.rtol, self.atol, strict=True)
        ]
        if self.norm is None:
            q = torch.stack([rms(ratio) for ratio in ratios]).max()
        else:
            q = self.norm(ratios[0] if self.system.single else tuple(ratios))
        q = float(abs(q) + 0 * x1.abs().max())
        return math.inf if math.isnan(q) else q

    def factor(self, q: float, power: float) -> float:
        """The factor by which the next step is longer or shorter."""
        limits = self.limits
        factor = limits.safety * q ** (-1 / power) if q > 0 else limits.largest
        return min(max(factor, limits.smallest), limits.largest)

    def first(self, problem: Counted, power: float, t: float, end: float, x: Tensor) -> float:
        """The length of the first step, by two evaluations.

        References:
            Hairer, Norsett and Wanner 1993, II.4.
        """
        if self.limits.first is not None:
            return self.limits.first
        span = abs(end - t)
        tiny = 1e-6 * (span if math.isfinite(span) else 1.0)
        with torch.no_grad():
            slope = problem.drift(t, x)
            size, speed = (self.error(value, x, x) for value in (x, slope))
            length = 0.01 * size / speed if min(size, speed) >= 1e-5 else tiny
            length = min(length if 0 < length < math.inf else tiny, span)
            there = t + math.copysign(length, end - t) if length < span else end
            change = problem.drift(there, x + math.copysign(length, end - t) * slope) - slope
            rate = min(max(speed, self.error(change, x, x) / length), 1e30)
        second = (0.01 / rate) ** (1 / power) if rate > 1e-15 else 1e-3 * length
        return min(100 * length, second, span)


def rms(x: Tensor) -> Tensor:
    """The root mean square, a real number; 0 for an empty tensor."""
    return torch.linalg.vector_norm(x) / math.sqrt(max(1, x.numel()))


def _no_callback(name: str, t: Time, x: Tensor, length: Time) -> None:
    """The callback if none is given."""


def adaptive_steps(
    system: System,
    x: Tensor,
    t: float,
    end: float,
    *,
    solver: AbstractSolver,
    control: Control,
    callback: Callback | None,
) -> Iterator[AcceptedStep]:
    """The accepted steps from t to the end, which may be infinite. A step that begins or ends at a
    jump of func calls it with times strictly on its own side of the jump.

    Raises:
        UnfinishedError: when steps become too short, or too many.
        ValueError: when a solve to an infinite end reaches the largest times of the dtype.
    """
    power = solver.estimate_power("none")
    length = 0.0
    tried = 0
    rejected = False
    state: Tree = None
    notify = callback or _no_callback
    problem = Counted.of(system, x)
    for stop in _stops(control, t, end):
        if state is None:
            problem = _problem(system, control.jumps, t, end, x)
            length = length or control.first(problem, power, t, end, x)
            state = solver.init(problem, t, x)
        while t != stop:
            step_length = min(max(length, control.shortest), control.longest)
            t1 = _end(control, t, stop, step_length, x.dtype, stretches=not rejected)
            tried += 1
            notify("callback_step", t, x, abs(t1 - t))
            step = solver.step(problem, t, t1, x, Increment(), state)
            q = _quotient(control, solver, x, step.x, step.error)
            proposed = abs(t1 - t) * control.factor(q, power)
            rejected = (q > 1 and step_length > control.shortest) or math.isinf(q)
            if rejected:
                notify("callback_reject_step", t, x, abs(t1 - t))
                _require_shortenable(control, x, t, step_length, q, tried)
                length = proposed
                continue
            notify("callback_accept_step", t, x, abs(t1 - t))
            length = max(length, proposed) if t1 == stop else proposed
            data = partial(solver.dense, problem, t, t1, step.dense)
            yield AcceptedStep(t, t1, step.x, data, solver.interpolate)
            t = t1
            x = step.x
            state = step.state
            if t != end and tried >= control.limits.max_steps:
                raise _unfinished(x, t, Status.TOO_MANY_STEPS)
        if t in control.jumps:
            state = None
    problem.require_unchanged()


def _stops(control: Control, t: float, end: float) -> list[float]:
    """The times between t and the end that steps end at, in their order, and the end."""
    sign = math.copysign(1.0, end - t)
    between = [stop for stop in control.stops if sign * t < sign * stop < sign * end]
    return [*sorted(between, reverse=sign < 0), end]


def _end(
    control: Control, t: float, stop: float, length: float, dtype: torch.dtype, *, stretches: bool
) -> float:
    """The end of a step. A step to the stop may be a tenth longer, to avoid a tiny one after it,
    unless it is tried again: it would be the same step.

    Raises:
        ValueError: for an end beyond the largest times of the dtype.
    """
    stretch = 1.1 if stretches and length < control.longest / 1.1 else 1.0
    end = stop if abs(stop - t) <= stretch * length else t + math.copysign(length, stop - t)
    if abs(end) > _LATEST * torch.finfo(dtype).max:
        raise ValueError(f"event_fn(t, y) has not changed its sign up to t = {t:.3g}")
    return end


def _problem(system: System, jumps: Sequence[float], t: float, end: float, x: Tensor) -> Counted:
    """The equation from t to the next jump."""
    if not jumps:
        return Counted.of(system, x)
    beyond = [s for s in jumps if (s - t) * (end - t) > 0 and abs(s - t) <= abs(end - t)]
    low = t if t in jumps else -math.copysign(math.inf, end - t)
    high = min(beyond, key=lambda s: abs(s - t), default=math.copysign(math.inf, end - t))
    return Counted.of(system.strictly_between(low, high, x.dtype), x)


def _quotient(
    control: Control, solver: AbstractSolver, x0: Tensor, x1: Tensor, error: Tree
) -> float:
    """q of a step."""
    with torch.no_grad():
        if isinstance(error, Tensor):
            return control.error(error, x0, x1)
        return float(
            solver.quotient(
                lambda e: torch.tensor([control.error(e, x0, x1)], dtype=torch.float64), error
            )
        )


def _require_shortenable(
    control: Control, x: Tensor, t: float, length: float, q: float, tried: int
) -> None:
    """Refuses to continue after a rejected step that cannot be shortened, or was the last allowed.

    Raises:
        UnfinishedError: says which.
    """
    if length <= max(16 * _EPSILON * (abs(t) + length), control.shortest):
        raise _unfinished(x, t, Status.NOT_FINITE if math.isinf(q) else Status.UNDERFLOW)
    if tried >= control.limits.max_steps:
        raise _unfinished(x, t, Status.TOO_MANY_STEPS)


def _unfinished(x: Tensor, t: float, status: Status) -> UnfinishedError:
    """The error of a solve that stops at t with the state x."""
    nan_state = torch.full_like(x.detach(), math.nan)
    ts = torch.tensor([t], dtype=torch.float64)
    solution = solution_of_equal_steps(nan_state, ts, None, None, evaluations=0, steps=None)
    solution = replace(solution, status=torch.full_like(solution.status, status))
    return unfinished(solution, ts, x, advice=_ADVICE)


def fixed_steps(
    system: System,
    x: Tensor,
    grid: Iterable[Time],
    *,
    solver: AbstractSolver,
    perturb: bool,
    is_cubic: bool,
    callback: Callback | None,
) -> Iterator[AcceptedStep]:
    """A step for each interval of a grid.

    Arguments:
        grid: numbers, or tensors `(1,)` for derivatives with respect to them; it may be infinite.
        perturb: whether func is called with times strictly within a step.
        is_cubic: whether states within a step are on a cubic that has the slopes of both ends, or
            on a straight line.
    """
    problem = Counted.of(system, x)
    for t0, t1 in pairwise(grid):
        if perturb:
            problem = Counted.of(system.strictly_between(number(t0), number(t1), x.dtype), x)
        if callback:
            callback("callback_step", t0, x, abs(t1 - t0))
        end = solver.step(problem, t0, t1, x, Increment(), ()).x
        if is_cubic:
            data = partial(cubic_data, problem, t0, t1, x, end)
            yield AcceptedStep(t0, t1, end, data, cubic)
        else:
            yield AcceptedStep(t0, t1, end, partial(_ends, x, end), _line)
        x = end
    problem.require_unchanged()


def number(t: Time) -> float:
    """A time as a number."""
    return float(t.detach()) if isinstance(t, Tensor) else t


def _ends(x0: Tensor, x1: Tensor) -> Tree:
    return x0, x1


def _line(ends: Tree, theta: Tensor) -> Tensor:
    x0, x1 = ends
    return torch.lerp(x0, x1, broadcast(theta, x0))
