"""Events: where a function of time and state is zero, sample by sample."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from sdekit._noise.white import AbstractNoise, AbstractSeededNoise
from sdekit._solve.active import called_for_some
from sdekit._solve.passage import EventZeros, StepBatch, first_passage
from sdekit._solve.solution import Events, Solution, finite
from sdekit.calling import (
    checked_call,
    checked_output,
    is_transformed,
    require_bools,
    require_order,
    require_values,
)

_NAME = "an event's g(t, x)"
_HALVINGS = 44
_RESOLUTION = 2.0**-_HALVINGS  # of a step
_LARGEST_NEWTON_STEP = 2.0**-10  # of a step, from a zero: rounding is below, a jump of g above
_KAPPA = 0.2  # kappa_1 of the ITP method; kappa_2 is 2
_SALT = 0x2545F4914F6CDD1D  # makes the random numbers of passages independent of the increments


@dataclass(frozen=True)
class Event:
    """A zero of g(t, x), at which a sample may stop.

    For an ordinary equation a zero is where g changes its sign within a step; it is located on the
    interpolant of the step, and two zeros within one step are not noticed. For a stochastic
    equation the event is the first passage of zero, which may lie within a step: given g at both
    ends of the step, it is drawn as if the path of g between them were a Brownian bridge. This is
    exact where g is linear, and f and the diffusion coefficient are constant.

    A sample that has stopped stays where it is: the solve returns the stopped path. A zero of g at
    the initial state does not count.

    g is called for some of the samples, where their zeros are, and so is the equation. So numbers
    of each sample, such as a level of its own, belong in the state; those of the equation may also
    belong to an `AbstractSDE` with a method `rows`.

    Arguments:
        function: `g(t, x)`, `(batch,)`; t is `(batch,)`, and x the state of the equation.
        direction: 1 for zeros at which g rises in the course of the solve, -1 for those at which it
            falls, 0 for both; first passages have 0.
        terminal: whether a sample stops at its first zero; first passages always do.
        located: False does not look within steps: the event is then the end of the first step after
            which g has become positive, or has ceased to be. This works with every equation and
            solver, and g may return booleans, so that any condition can stop a sample.

    Raises:
        TypeError: for a function that is not callable or whose arguments are named in the order
            (x, t), and a terminal or located that is not a bool; in a solve for results that are
            not floating-point tensors, and for first passages with noise that is not `WhiteNoise`
            or `BrownianPath`.
        RuntimeError: in a solve, when the function changes t or x in place.
        ValueError: for another direction; in a solve for results of another shape or NaN, with
            `gradient=`, and for first passages with a direction, terminal=False, gradients, solvers
            that draw more noise than the equation has, or saved states within steps.

    Example:
        >>> fall = sdekit.ODE(lambda t, x: torch.stack([x[:, 1], 0 * x[:, 1] - 9.81], dim=1))
        >>> ground = sdekit.Event(lambda t, x: x[:, 0], direction=-1)
        >>> x0 = torch.tensor([[10.0, 0.0], [20.0, 0.0]], dtype=torch.float64)
        >>> control = sdekit.PIDController(1e-8, 1e-8)
        >>> solution = sdekit.solve(
        ...     fall, x0, [0.0, 9.0], solver=sdekit.Dopri5(), control=control, event=ground
        ... )
        >>> [round(float(t), 6) for t in solution.events.t[0]]  # sqrt(2 h / 9.81)
        [1.427843, 2.019275]

    References:
        Hairer, Norsett and Wanner 1993, "Solving ordinary differential equations I", II.6, for
        zeros on the interpolation; Metwally and Atiya 2002, "Using Brownian bridge for fast
        simulation of jump-diffusion processes and barrier options", for first passages.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    direction: Literal[-1, 0, 1] = 0
    terminal: bool = True
    located: bool = True

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function is g(t, x), not {self.function!r:.60}")
        require_order(self.function, "t, x")
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"direction is -1, 0 or 1, not {self.direction!r}")
        require_bools(terminal=self.terminal, located=self.located)

    def values(self, t: Tensor, x: Tensor) -> Tensor:
        """g of each sample, checked, with the largest number for infinity; for an event that is not
        located it is never 0, and only its sign matters.
        """
        value = checked_call(_NAME, self.function, t, x)
        if not self.located and isinstance(value, Tensor) and value.dtype == torch.bool:
            value = value.to(x.dtype) - 0.5
        value = torch.nan_to_num(checked_output(_NAME, value, (len(x),), x), torch.nan)
        return value if self.located else torch.where(value == 0, -1.0, value)

    def require_passages(self, noise: AbstractNoise) -> None:
        """Refuses settings that have no meaning for first passages.

        Raises:
            TypeError, ValueError: with the reason.
        """
        if not self.terminal or self.direction:
            raise ValueError(
                "a stochastic path that passes zero does so infinitely often, in both directions: "
                "take terminal=True and direction=0, the first passage"
            )
        if not isinstance(noise, AbstractSeededNoise):
            raise TypeError(
                "first passages draw random numbers for each sample: take WhiteNoise or "
                f"BrownianPath, not {type(noise).__name__}"
            )


@dataclass(eq=False)
class EventSearch:
    """The search of a solve: the side of zero on which each sample is, and the zeros so far.

    Attributes:
        event: the event.
        value, side: g at the last point of each sample, and its sign.
        steps_searched: the number of steps of each sample that were searched.
        stopped: which samples have stopped.
        direction: the direction of time, 1 or -1.
        key: the keys of the samples for random numbers; None for ordinary equations.
        evaluations: those of the drift that locating zeros took on a grid, of each sample.
        zeros: the zeros so far: rows in the full batch, times and states.
    """

    event: Event
    value: Tensor
    side: Tensor
    steps_searched: Tensor
    stopped: Tensor
    direction: float
    key: Tensor | None
    evaluations: Tensor
    zeros: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @staticmethod
    def of(
        event: Event, ts: Sequence[float], x0: Tensor, noise: AbstractNoise | None
    ) -> "EventSearch":
        """The search from the initial states, at the first of the times."""
        t0 = ts[0]
        direction = math.copysign(1.0, ts[-1] - t0)
        key = None
        if noise is not None and event.located:
            event.require_passages(noise)
            assert isinstance(noise, AbstractSeededNoise)
            key = noise.keys(x0) ^ _SALT
        with torch.no_grad():
            t = torch.full((len(x0),), t0, dtype=torch.float64, device=x0.device)
            # A copy, because a function that changes its x is refused only afterwards.
            value = event.values(t, x0.clone())
        zeros = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
        _require_numbers(t, value, torch.arange(len(x0), device=x0.device), finite(x0))
        return EventSearch(
            event, value, value.sign(), zeros, zeros.bool(), direction, key, zeros.clone()
        )

    def locate(self, batch: StepBatch) -> EventZeros | None:
        """The zeros in steps that were taken, or None; if the event is terminal, their samples are
        marked as stopped.
        """
        index = batch.samples
        searched = batch.accept & finite(batch.x1)
        with torch.no_grad():
            value = self._values(batch.t1, batch.x1)
        _require_numbers(batch.t1, value, index, searched)
        zeros = self._passages(batch, value, searched)
        if zeros is None:
            zeros = self._sign_changes(batch, value, searched)
        self.side[index] = torch.where(searched, value.sign(), self.side[index])
        self.value[index] = torch.where(searched, value, self.value[index])
        self.steps_searched[index] += searched
        if not len(zeros.rows):
            return None
        rows = index[zeros.rows]
        self.zeros.append((rows, zeros.t, zeros.x))
        if self.event.terminal:
            self.stopped[rows] = True
        return zeros

    def _values(self, t: Tensor, x: Tensor) -> Tensor:
        """g of some of the samples."""
        with called_for_some(len(x), len(self.side)):
            return self.event.values(t, x)

    def _sign_changes(self, batch: StepBatch, value: Tensor, searched: Tensor) -> EventZeros:
        """The zeros of an ordinary equation, or the ends of steps if the event is not located."""
        side = self.side[batch.samples]
        sign = value.sign()
        crossed = searched & (side != 0) & (sign != side)
        if self.event.direction:
            crossed = crossed & (side == -self.event.direction)
        rows = crossed.nonzero().flatten()
        if not len(rows):
            return EventZeros(rows, rows, rows)
        if not self.event.located:
            return EventZeros(rows, batch.t1[rows], batch.x1[rows])
        return self._located(batch, rows)

    def _located(self, batch: StepBatch, rows: Tensor) -> EventZeros:
        """The zeros in some of the steps."""
        assert batch.within is not None
        state = batch.within(rows)
        t0 = batch.t0[rows]
        length = batch.t1[rows] - t0
        side = self.side[batch.samples[rows]]

        def value(t: Tensor) -> Tensor:
            return self._values(t, state((t - t0) / length)).to(t)

        with torch.no_grad():
            theta = root(lambda theta: -side * value(t0 + theta * length), torch.zeros_like(t0))
            t = t0 + theta * length
        if torch.is_grad_enabled() and value(t).requires_grad:
            if is_transformed():
                raise RuntimeError(
                    "the time of an event has derivatives by torch.func.jvp and jacfwd and by "
                    "autograd, not by torch.func.grad, vjp and jacrev"
                )
            t = _differentiable(value, t, length)
        return EventZeros(rows, t, state((t - t0) / length))

    def _passages(self, batch: StepBatch, value: Tensor, searched: Tensor) -> EventZeros | None:
        """The first passages of stochastic paths; None of an ordinary equation."""
        if self.key is None:
            return None
        if batch.x1.requires_grad:
            raise ValueError(
                "gradients do not flow through first passages, whose law depends on what they "
                "would flow to: detach x0 and the parameters, or solve with torch.no_grad()"
            )
        index = batch.samples
        searched = searched & (self.side[index] != 0)
        values = (self.value[index], value)
        return first_passage(
            self._values,
            batch._replace(accept=searched),
            values,
            self.key[index],
            self.steps_searched[index],
        )

    def stopped_solution(self, solution: Solution) -> Solution:
        """The solution with the zeros, in which the states of a sample after its stop are the state
        at its stop.
        """
        events = self._events(solution.x)
        if not self.event.terminal:
            return replace(solution, events=events)
        there = self.stopped.reshape(-1, *[1] * (solution.x.ndim - 1))
        x = torch.where(there, events.x[0], solution.x)
        solution = replace(solution, x=x, events=events)
        if solution.xs is None:
            return solution
        ts = solution.ts.to(events.t.device)[:, None]
        later = (ts - events.t[0]) * self.direction >= 0
        later = later.reshape(*later.shape, *[1] * (solution.x.ndim - 1))
        return replace(solution, xs=torch.where(later, events.x[0], solution.xs))

    def _events(self, x: Tensor) -> Events:
        """All zeros; x is a state of the full batch."""
        batch = len(x)
        counts = torch.zeros(batch, dtype=torch.int64, device=x.device)
        rows = []
        for index, _, _ in self.zeros:
            rows.append(counts[index])
            counts[index] += 1
        most = max(1, int(counts.max())) if batch else 1
        t = torch.full((most, batch), torch.nan, dtype=torch.float64, device=x.device)
        states = x.new_full((most, *x.shape), torch.nan)
        for row, (index, time, state) in zip(rows, self.zeros, strict=True):
            t = t.index_put((row, index), time)
            states = states.index_put((row, index), state)
        return Events(t, states)


def _require_numbers(t: Tensor, value: Tensor, samples: Tensor, searched: Tensor) -> None:
    """Refuses a g that is NaN in some of the samples.

    Raises:
        ValueError: with a time and the first of the samples.
        RuntimeError: under torch.func.vmap.
    """
    require_values(value, "an event reads the sign of each sample")
    rows = (searched & value.isnan()).nonzero().flatten()
    if len(rows):
        raise ValueError(
            f"{_NAME} is NaN at t = {float(t[rows[0]]):.6g} in {len(rows)} samples, the first in "
            f"row {int(samples[rows[0]])}: it must be defined wherever x comes"
        )


def _differentiable(function: Callable[[Tensor], Tensor], t: Tensor, length: Tensor) -> Tensor:
    """The zero t with first and second derivatives with respect to all that the function depends
    on, by two steps of Newton's method from t; a constant where the function jumps.
    """
    t = t.requires_grad_()
    for _ in range(2):
        value = function(t)
        (rate,) = torch.autograd.grad(
            value.sum(), t, create_graph=True, allow_unused=True, materialize_grads=True
        )
        smooth = value.abs() <= _LARGEST_NEWTON_STEP * (rate * length).abs()
        smooth = smooth & (rate != 0)
        t = t - torch.where(smooth, value / torch.where(smooth, rate, 1.0), 0.0)
    return t


def root(function: Callable[[Tensor], Tensor], low: Tensor) -> Tensor:
    """The zeros of a function of `(batch,)` numbers in [0, 1], elementwise, to an accuracy of 2^-44
    by the ITP method. The function is not positive at 0 and not negative at 1. `low` holds the
    lower ends of the intervals, which are all 0, `(batch,)`.

    References:
        Oliveira and Takahashi 2020, "An enhancement of the bisection method average performance
        preserving minmax optimality".
    """
    high = low + 1
    below = function(low).to(low)
    above = function(high).to(low)
    rounds = 1 + _HALVINGS
    for j in range(rounds):
        width = high - low
        wide = width > 2 * _RESOLUTION
        if not bool(wide.any()):
            break
        middle = low + 0.5 * width
        rise = above - below
        chord = torch.where(
            rise > 0, low - below * width / torch.where(rise > 0, rise, 1.0), middle
        )
        side = (middle - chord).sign()
        shift = torch.minimum(_KAPPA * width.square(), (middle - chord).abs())
        allowed = (_RESOLUTION * 2.0 ** (rounds - j) - 0.5 * width).clamp_min(0.0)
        tried = chord + side * shift
        tried = middle + (tried - middle).maximum(-allowed).minimum(allowed)
        value = function(tried).to(low)
        below = torch.where(wide & (value < 0), value, below)
        low = torch.where(wide & (value <= 0), tried, low)
        above = torch.where(wide & (value > 0), value, above)
        high = torch.where(wide & (value >= 0), tried, high)
    return 0.5 * (low + high)
