"""The result of a solve, and its errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sdekit._grid import require_no_gradient, rounded_to_ends


class Point(NamedTuple):
    """A state of a solve on a fixed grid.

    Arguments:
        step: the number of steps before it, 0 for the initial state.
        t: its time.
        x: the state, `(batch, *event)`.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> points = sdekit.integrate(ode, torch.ones(1, 1), [0.0, 0.5, 1.0], solver=sdekit.RK4())
        >>> [(point.step, point.t) for point in points]
        [(0, 0.0), (1, 0.5), (2, 1.0)]
    """

    step: int
    t: float
    x: Tensor


class NotFiniteError(ArithmeticError):
    """A state became infinite or NaN.

    Attributes:
        step: the number of the step after which it did, 0 for the initial state; in
            `interop.solve_ode` the number of the evaluation.
        t: its time.
        samples: the rows of the batch that are not finite.
        total: the size of the batch.
        unit: what `step` counts, "step" or "evaluation".

    Example:
        >>> ode = sdekit.ODE(lambda t, x: torch.exp(100 * x))
        >>> try:
        ...     sdekit.solve(ode, torch.ones(2, 1), [0.0, 1.0], solver=sdekit.EulerMaruyama())
        ... except sdekit.NotFiniteError as error:
        ...     print(error.step, error.samples)
        1 [0, 1]
    """

    def __init__(
        self, step: int, t: float, samples: list[int], total: int, unit: str = "step"
    ) -> None:
        self.step = step
        self.t = t
        self.samples = samples
        self.total = total
        self.unit = unit
        where = f"in {len(samples)} of {total} samples (rows {listed(samples)})"
        super().__init__(
            f"the state is not finite after {unit} {step}, at t = {t:.6g}, {where}; look at what "
            "the drift returns there, or take smaller steps"
            if step or unit != "step"
            else f"the initial state x0 is not finite {where}; give finite numbers"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle calls the class with the message otherwise.
        return type(self).__new__, (type(self), *self.args), vars(self)

    def relocated(
        self, *, t: float | None = None, after: int = 0, total: int | None = None
    ) -> "NotFiniteError":
        """The same error with another time t, for a larger batch of `total` rows, `after` of which
        precede those of this error.
        """
        rows = [row + after for row in self.samples]
        time = self.t if t is None else t
        size = self.total if total is None else total
        return NotFiniteError(self.step, time, rows, size, self.unit)


class Status(IntEnum):
    """How the solve of a sample ended.

    DONE: it reached the last time, or an event stopped it. NOT_FINITE: a state became infinite or
    NaN. UNDERFLOW: no step was short enough for the tolerance. TOO_MANY_STEPS: it needed more than
    `PIDController.max_steps`.

    Example:
        >>> list(sdekit.Status)[0].name
        'DONE'
    """

    DONE = 0
    NOT_FINITE = 1
    UNDERFLOW = 2
    TOO_MANY_STEPS = 3


@dataclass(frozen=True, eq=False)
class Events:
    """The zeros of an event function, for each sample in the order in which the solve meets them.

    Attributes:
        t: their times, float64, `(zeros, batch)`, with at least one row; NaN where a sample has
            fewer zeros. For ordinary equations the times have gradients.
        x: the states there, `(zeros, batch, *event)`, likewise.

    Example:
        >>> turn = sdekit.ODE(lambda t, x: torch.stack([x[:, 1], -x[:, 0]], dim=1))
        >>> zero = sdekit.Event(lambda t, x: x[:, 0], terminal=False)
        >>> x0 = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
        >>> grid = sdekit.uniform(0.0, 7.0, 100)
        >>> events = sdekit.solve(turn, x0, grid, solver=sdekit.RK4(), event=zero).events
        >>> events.count.tolist(), [round(float(t), 4) for t in events.t[:, 0]]
        ([2], [3.1416, 6.2832])
    """

    t: Tensor
    x: Tensor

    @property
    def count(self) -> Tensor:
        """The number of zeros of each sample, int64, `(batch,)`."""
        return (~self.t.isnan()).sum(dim=0)


class AbstractDense(Protocol):
    """The record of the steps of a solve; terminal: whether samples stop at an event."""

    terminal: bool

    def at(self, t: float, x: Tensor) -> Tensor:
        """The states at a time; for a sample without a step there, its row of x."""
        ...


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of a solve; counts are per sample, int64, `(batch,)`.

    Attributes:
        x: the states at the last time, `(batch, *event)`; with adaptive steps NaN for a sample that
            did not reach it.
        ts: the times of the solve, or those of `save`, float64, `(times,)`.
        xs: the states at ts, `(times, batch, *event)`; None unless `save` was "all" or times.
        seed: the seed of the noise; None without noise.
        evaluations: the number of evaluations of the drift, or of the score.
        accepted, rejected: the numbers of accepted and rejected steps; None if they are unknown.
        status: how the solve of each sample ended, see `Status`.
        events: the zeros that were found; None in a solve without event.
        dense: the record of the steps for the method `at`; None unless `save` was "dense".

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> solver = sdekit.EulerMaruyama()
        >>> solution = sdekit.solve(sde, torch.zeros(4, 1), ts, solver=solver, save="all")
        >>> solution.x.shape, solution.xs.shape, solution.evaluations.tolist()
        (torch.Size([4, 1]), torch.Size([11, 4, 1]), [10, 10, 10, 10])
    """

    x: Tensor
    ts: Tensor
    xs: Tensor | None
    seed: int | Tensor | None
    evaluations: Tensor
    accepted: Tensor | None
    rejected: Tensor | None
    status: Tensor
    events: Events | None = None
    dense: AbstractDense | None = None

    def with_states(self, x: Tensor, xs: Tensor | None, ts: Tensor) -> "Solution":
        """The same solve with other states and times, such as those in other coordinates.

        Arguments:
            x: the final states, `(batch, *event)`.
            xs: the states at the times, `(times, batch, *event)`, or None.
            ts: the times.

        Example:
            >>> decay = sdekit.ODE(lambda t, y: -torch.ones_like(y))  # of the logarithm y of x
            >>> y0 = torch.zeros(1, 1, dtype=torch.float64)
            >>> solved = sdekit.solve(decay, y0, [0.0, 1.0], solver=sdekit.RK4())
            >>> in_x = solved.with_states(solved.x.exp(), None, solved.ts)
            >>> round(float(in_x.x), 4), int(in_x.evaluations)  # e^-1
            (0.3679, 4)
        """
        return Solution(
            x, ts, xs, self.seed, self.evaluations, self.accepted, self.rejected, self.status,
            self.events, self.dense,
        )  # fmt: skip

    def at(self, t: float | Sequence[float] | Tensor) -> Tensor:
        """The states at any times of a solve with save="dense".

        Within a step the state of an ordinary equation is on the solver's interpolant, or if it has
        none on the cubic through both ends of the step and their slopes, by solvers of stiff
        equations on the straight line; that of a stochastic equation is bridged along the path,
        at the tick of the path that is nearest to t.

        Arguments:
            t: a time within the solve, or several: a sequence, an array or a tensor, of any shape.

        Returns:
            `(batch, *event)`, or `(*times, batch, *event)` for several times.

        Raises:
            TypeError: for values that are not real numbers.
            ValueError: if the solve has not kept its steps, or for times outside it or that require
                a gradient.

        Example:
            >>> ode = sdekit.ODE(lambda t, x: -x)
            >>> control = sdekit.PIDController(1e-8, 1e-8)
            >>> x0, span = torch.ones(1, 1).double(), [0.0, 1.0]
            >>> solution = sdekit.solve(
            ...     ode, x0, span, solver=sdekit.Dopri5(), control=control, save="dense"
            ... )
            >>> [round(float(x), 6) for x in solution.at(torch.tensor([0.25, 0.5]))]
            [0.778801, 0.606531]
        """
        if self.dense is None:
            raise ValueError('states between the steps are known with save="dense" only')
        require_no_gradient("t", t)
        try:
            times = rounded_to_ends(t, float(self.ts[0]), float(self.ts[-1]))
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"t must be a time or several, not {t!r:.60}") from None
        shape = (*times.shape, *self.x.shape)
        states = [self._at(self.dense, time) for time in times.reshape(-1).tolist()]
        return torch.stack(states).reshape(shape) if states else self.x.new_empty(shape)

    def _at(self, dense: AbstractDense, t: float) -> Tensor:
        """The states at a time; those of samples that have stopped are their last ones."""
        x = dense.at(t, self.x)
        if self.events is None or not dense.terminal:
            return x
        sign = torch.sign(self.ts[-1] - self.ts[0]).to(self.events.t)
        stopped = sign * t >= sign * self.events.t[0]
        return torch.where(stopped.reshape(-1, *[1] * (x.ndim - 1)), self.x, x)

    @staticmethod
    def joined(parts: "Sequence[Solution]") -> "Solution":
        """The solutions of several batches, without events, as that of one batch."""
        first = parts[0]
        parts = list(parts)
        counts = [
            [getattr(part, name) for part in parts]
            for name in ("evaluations", "accepted", "rejected", "status")
        ]
        evaluations, accepted, rejected, status = (
            None if c[0] is None else torch.cat(c) for c in counts
        )
        xs = (
            None
            if first.xs is None
            else torch.cat([part.xs for part in parts if part.xs is not None], dim=1)
        )
        assert evaluations is not None
        assert status is not None
        x = torch.cat([part.x for part in parts])
        assert first.events is None
        return Solution(x, first.ts, xs, first.seed, evaluations, accepted, rejected, status)


def solution_of_equal_steps(
    x: Tensor,
    ts: Tensor,
    xs: Tensor | None,
    seed: int | Tensor | None,
    *,
    evaluations: int,
    steps: int | None,
) -> Solution:
    """The solution of samples that took the same steps."""
    zeros = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    accepted, rejected = (None, None) if steps is None else (torch.full_like(zeros, steps), zeros)
    counts = torch.full_like(zeros, evaluations)
    return Solution(x, ts, xs, seed, counts, accepted, rejected, zeros)


class UnfinishedError(ArithmeticError):
    """Some samples did not reach the end of an adaptive solve.

    Attributes:
        solution: the `Solution`: the results of the other samples, NaN for those that failed, and
            the status of each.
        reached: the times that the samples reached, `(batch,)`.
        advice: the end of the message, which says what to do.

    Arguments:
        after: the number of rows of the batch that precede those of the solution, for the message.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> control = sdekit.PIDController(rtol=1e-8, atol=1e-8, max_steps=3)
        >>> x0 = torch.ones(2, 1).double()
        >>> try:
        ...     sdekit.solve(ode, x0, [0.0, 1.0], solver=sdekit.Dopri5(), control=control)
        ... except sdekit.UnfinishedError as error:
        ...     print(error.solution.status.tolist())
        [3, 3]
    """

    def __init__(
        self, solution: Solution, reached: Tensor, after: int = 0, advice: str | None = None
    ) -> None:
        self.solution = solution
        self.reached = reached
        others = "the others did; " if bool((solution.status == Status.DONE).any()) else ""
        coarse = solution.seed is not None and bool((solution.status == Status.UNDERFLOW).any())
        ticks = (
            "steps have at least the length of a tick of the path: give BrownianPath a larger "
            "depth or knots nearer to each other, or ask for less; "
        )
        many = bool((solution.status == Status.TOO_MANY_STEPS).any())
        steps = "raise max_steps or the tolerances, or take a solver for stiff equations if it is; "
        advice = advice or others + (ticks if coarse else "") + (steps if many else "") + (
            "see `.solution` of this error, which `sdekit.solve` returns with throw=False"
        )
        self.advice = advice
        failed = (solution.status != Status.DONE).nonzero().flatten().tolist()
        causes = "; ".join(
            f"row {after + i}: {_REASONS[Status(int(solution.status[i]))]} at t = {reached[i]:.6g}"
            for i in failed[:4]
        )
        super().__init__(
            f"{len(failed)} of {len(reached)} samples did not reach the end "
            f"({causes}{'; ...' if len(failed) > 4 else ''}); " + advice
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle calls the class with the message otherwise.
        return type(self).__new__, (type(self), *self.args), vars(self)


_REASONS = {
    Status.NOT_FINITE: "it became infinite or NaN however short the step,",
    Status.UNDERFLOW: "no step is short enough for the tolerance,",
    Status.TOO_MANY_STEPS: "max_steps was not enough: the solve stopped",
}


def listed(rows: Sequence[int]) -> str:
    """The first of some numbers of rows, for messages."""
    return ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")


def unfinished(
    solution: Solution, reached: Tensor, x0: Tensor, advice: str | None = None
) -> UnfinishedError:
    """The error to raise for samples that did not reach the end from x0; it names the initial
    states that are not finite, if there are any.
    """
    if point := not_finite(Point(0, 0.0, x0.detach())):
        others = bool((solution.status == Status.DONE).any())
        advice = f"{point}{'; the others are in `.solution` of this error' if others else ''}"
    return UnfinishedError(solution, reached, advice=advice)


def finite(x: Tensor) -> Tensor:
    """Which samples are finite, `(batch,)`."""
    return torch.isfinite(x).reshape(len(x), math.prod(x.shape[1:])).all(dim=1)


def not_finite(point: Point) -> NotFiniteError | None:
    """The error for a state that is not finite; None if it is finite."""
    failed = ~finite(point.x)
    rows = failed.nonzero().flatten().tolist()
    return NotFiniteError(point.step, point.t, rows, len(failed)) if rows else None


def require_state(x: Tensor) -> None:
    """Refuses values that cannot be a state.

    Raises:
        TypeError: when x is not a floating tensor with a batch dimension.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1:
        description = (
            f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        )
        integral = isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex()
        remedy = (
            "convert it with .float()"
            if integral
            else ("give one tensor of real numbers, with the batch first")
        )
        raise TypeError(
            f"the state must be a floating tensor of shape (batch, *event), not {description}; "
            f"{remedy}"
        )
