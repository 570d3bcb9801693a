"""Events: where a function of time and state is zero, sample by sample."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from sdekit._noise import generator
from sdekit._noise.white import AbstractNoise, AbstractSeededNoise
from sdekit._solve.counted import Counted
from sdekit._solve.passage import Passed, Zeros, first_passage
from sdekit._solve.solution import Events, Solution
from sdekit.elementary import broadcast

_RESOLUTION = 2.0**-30  # of a step, before a last Newton step
_SALT = 0x2545F4914F6CDD1D  # tells the numbers of passages from those of increments


@dataclass(frozen=True)
class Event:
    """A zero of g(t, x), at which a sample may stop.

    Of an ordinary equation zeros are where g changes its sign from one step to the next, located on
    the interpolation within the step; two zeros in one step are not seen. Of a stochastic equation
    it is the first passage of zero, between the times of the grid too: the path of g within a step
    is taken for Brownian motion, given both ends. That is exact where g is linear, and f and the
    diffusion are constant.

    A sample that has stopped stays where it is: the solve returns the stopped path.

    Arguments:
        function: `g(t, x)`, with t and the result `(batch,)`.
        direction: 1 for zeros at which g rises, -1 for those at which it falls, 0 for both.
        terminal: whether the sample stops at its first zero.

    Raises:
        ValueError: for another direction, and in a solve for results of another shape; for events
            that do not stop a stochastic path, of which there are infinitely many; with
            `gradient=`.
        TypeError: for a function that is not callable.

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
        zeros on the interpolation; `sdekit._solve.passage` for first passages.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    direction: Literal[-1, 0, 1] = 0
    terminal: bool = True

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function is g(t, x), not {self.function!r:.60}")
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"direction is -1, 0 or 1, not {self.direction!r}")

    def values(self, t: Tensor, x: Tensor) -> Tensor:
        """g of each sample, checked."""
        found = self.function(t, x)
        if not isinstance(found, Tensor) or found.shape != (len(x),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"an event's g(t, x) returned {shape}; it must return one number per sample, "
                f"({len(x)},)"
            )
        return found


@dataclass(eq=False)
class EventSearch:
    """The search of a solve: the side of zero on which each sample is, and the zeros so far.

    Attributes:
        event: what is looked for.
        value, side: g at the last point of each sample, and its sign; that before, where g is 0.
        looked: the number of steps of each sample.
        stopped: which samples have.
        key: of the random numbers of each sample, of a stochastic equation.
        found: rows in the full batch, times and states.
    """

    event: Event
    value: Tensor
    side: Tensor
    looked: Tensor
    stopped: Tensor
    key: Tensor | None
    found: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @staticmethod
    def of(event: Event, t0: float, x0: Tensor, noise: AbstractNoise | None) -> "EventSearch":
        """The search from the initial states.

        Raises:
            ValueError: for an event of a stochastic equation that does not stop it.
        """
        if noise is not None and not event.terminal:
            raise ValueError(
                "a stochastic path that passes zero does so infinitely often: take terminal=True, "
                "the first passage"
            )
        with torch.no_grad():
            t = torch.full((len(x0),), t0, dtype=torch.float64, device=x0.device)
            value = event.values(t, x0).clone()  # g may return a view of x0
        zeros = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
        key = None if noise is None else _keys(noise, x0)
        return EventSearch(event, value, value.sign(), zeros, zeros.bool(), key)

    def look(self, passed: Passed) -> Zeros | None:
        """The zeros at which samples stop in steps that were taken; None where there are none."""
        index = passed.index
        with torch.no_grad():
            value = self.event.values(passed.t1, passed.x1)
        side = self.side[index]
        other = torch.where(value == 0, -side, value.sign())
        searched = passed.accept & ~self.stopped[index]
        if passed.within is None:
            zeros = self._passages(passed, value, searched)
        else:
            crossed = searched & (side != 0) & (other != side)
            if self.event.direction:
                crossed = crossed & (other == self.event.direction)
            rows = crossed.nonzero().flatten()
            zeros = self._located(passed, rows) if len(rows) else Zeros(rows, rows, rows)
        self.side[index] = torch.where(searched, other, side)
        self.value[index] = torch.where(searched, value, self.value[index])
        self.looked[index] += searched
        if not len(zeros.rows):
            return None
        rows = index[zeros.rows]
        self.found.append((rows, zeros.t, zeros.x))
        if not self.event.terminal:
            return None
        self.stopped[rows] = True
        return zeros

    def _located(self, passed: Passed, rows: Tensor) -> Zeros:
        """The zeros of an ordinary equation in some of the steps, with their gradients: those of an
        implicit function, dt = -dg / (dg/dt).
        """
        assert passed.within is not None
        state = passed.within(rows)
        t0 = passed.t0[rows]
        length = passed.t1[rows] - t0
        side = self.side[passed.index[rows]]

        def height(theta: Tensor) -> Tensor:
            return -side * self.event.values(t0 + theta * length, state(theta))

        with torch.no_grad():
            theta = _root(height, torch.zeros_like(t0))
        t = t0 + theta * length
        x = state(theta)
        g = self.event.values(t, x)
        slope, rate = self._rate(passed.problem.rows(passed.index[rows]), t, x)
        step = torch.where(rate != 0, -g.to(t) / torch.where(rate != 0, rate, 1.0), 0.0)
        return Zeros(rows, t + step, x + broadcast(step, x) * slope)

    def _rate(self, problem: Counted, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """f, and dg/dt along the solution, as constants."""
        with torch.no_grad():
            slope = problem.drift(t, x)
        with torch.enable_grad():
            time = t.detach().requires_grad_()
            point = x.detach().requires_grad_()
            g = self.event.values(time, point).sum()
            parts = torch.autograd.grad(g, (time, point), allow_unused=True)
        by_time = torch.zeros_like(t) if parts[0] is None else parts[0]
        if parts[1] is None:
            return slope, by_time
        return slope, by_time + (parts[1] * slope).flatten(1).sum(dim=1).to(t)

    def _passages(self, passed: Passed, value: Tensor, searched: Tensor) -> Zeros:
        """The first passages of stochastic paths, from both ends of each step."""
        index = passed.index
        assert self.key is not None
        side = self.side[index]
        searched = searched & (side != 0) & (self.event.direction * side <= 0)
        passed = passed._replace(accept=searched)
        values = (self.value[index], value)
        return first_passage(self.event.values, passed, values, self.key[index], self.looked[index])

    def stopped_solution(self, solution: Solution) -> Solution:
        """A solution with the zeros, and with states at later times than a stop as they were
        there.
        """
        events = self.events(solution.x)
        if not self.event.terminal:
            return replace(solution, events=events)
        there = self.stopped.reshape(-1, *[1] * (solution.x.ndim - 1))
        x = torch.where(there, events.x[0], solution.x)
        solution = replace(solution, x=x, events=events)
        if solution.xs is None:
            return solution
        ts = solution.ts.to(events.t.device)[:, None]
        later = (ts - events.t[0]) * torch.sign(ts[-1] - ts[0]) >= 0
        later = later.reshape(*later.shape, *[1] * (solution.x.ndim - 1))
        return replace(solution, xs=torch.where(later, events.x[0], solution.xs))

    def events(self, x: Tensor) -> Events:
        """All zeros; x is a state of the full batch."""
        batch = len(x)
        counts = torch.zeros(batch, dtype=torch.int64, device=x.device)
        rows = []
        for index, _, _ in self.found:
            rows.append(counts[index])
            counts[index] += 1
        most = max(1, int(counts.max())) if batch else 1
        t = torch.full((most, batch), torch.nan, dtype=torch.float64, device=x.device)
        states = x.new_full((most, *x.shape), torch.nan)
        for row, (index, time, state) in zip(rows, self.found, strict=True):
            t = t.index_put((row, index), time)
            states = states.index_put((row, index), state)
        return Events(t, states)


def _keys(noise: AbstractNoise, x0: Tensor) -> Tensor:
    """A key of random numbers for each sample, which depends on it alone where its noise does."""
    if isinstance(noise, AbstractSeededNoise):
        return noise.keys(x0) ^ _SALT
    index = torch.arange(len(x0), device=x0.device)
    return generator.keys(generator.fresh_seed(), index)


def _root(function: Callable[[Tensor], Tensor], zero: Tensor) -> Tensor:
    """The zero of a function of (batch,) numbers from [0, 1], not positive at 0 and not negative at
    1, to 2^-30, by the ITP method.

    References:
        Oliveira and Takahashi 2020, "An enhancement of the bisection method average performance
        preserving minmax optimality".
    """
    low = zero
    high = zero + 1
    below = function(low).to(zero)
    above = function(high).to(zero)
    rounds = 1 + round(-torch.tensor(_RESOLUTION).log2().item())
    for j in range(rounds):
        width = high - low
        if not bool((width > 2 * _RESOLUTION).any()):
            break
        middle = low + 0.5 * width
        rise = above - below
        chord = torch.where(
            rise > 0, low - below * width / torch.where(rise > 0, rise, 1.0), middle
        )
        side = (middle - chord).sign()
        shift = torch.minimum(0.2 * width.square(), (middle - chord).abs())
        allowed = (_RESOLUTION * 2.0 ** (rounds - j) - 0.5 * width).clamp_min(0.0)
        tried = chord + side * shift
        tried = middle + (tried - middle).clamp(-1.0, 1.0).maximum(-allowed).minimum(allowed)
        value = function(tried).to(zero)
        below = torch.where(value < 0, value, below)
        low = torch.where(value < 0, tried, low)
        above = torch.where(value < 0, above, value)
        high = torch.where(value < 0, high, tried)
        exact = value == 0
        low = torch.where(exact, tried, low)
    return 0.5 * (low + high)
