"""The states between the steps of a solve."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.generator import signed
from sdekit._noise.white import AbstractNoise, WhiteNoise
from sdekit._solve.active import take
from sdekit._solve.steps import Steps
from sdekit._solvers import AbstractSolver
from sdekit._solvers.contract import Step, Tree
from sdekit.elementary import Time, broadcast, scaled

# The difference between the seeds of the noise within neighbouring steps.
_SEED_STRIDE = 0x9FB21C651E98DF25


def cubic(data: Tree, theta: Tensor) -> Tensor:
    """The cubic through both ends of a step with the slopes there, from `cubic_data`; theta
    `(batch,)`.
    """
    start, end, first, last = data
    s = broadcast(theta, start)
    rest = (1 - 2 * s) * (end - start) + (s - 1) * first + s * last
    return torch.lerp(start, end, s) + s * (s - 1) * rest


def cubic_data(
    problem: AbstractSDE, t0: Time, t1: Time, x0: Tensor, x1: Tensor
) -> tuple[Tensor, ...]:
    """Both ends of a step, and the slopes there, times the step."""
    first, last = (scaled(t1 - t0, problem.drift(t, x)) for t, x in ((t0, x0), (t1, x1)))
    return x0, x1, first, last


def bridged(
    problem: AbstractSDE,
    noise: AbstractNoise,
    ends: tuple[float, float],
    states: tuple[Tensor, Tensor],
    ts: Sequence[float],
) -> Iterator[Tensor]:
    """(1 - r) x_0 + r x_1 + g(t_0, x_0) . (W(t) - W(t_0) - r (W(t_1) - W(t_0))) at times t within a
    step, with r = (t - t_0) / (t_1 - t_0).
    """
    t0, t1 = ends
    x0, x1 = states
    increments = noise.readings([t0, *ts, t1], x0, problem.noise_shape(x0))
    *path, increment = accumulate(i.w for i in increments if i.w is not None)
    g = problem.diffusion(t0, x0)
    for t, w in zip(ts, path, strict=True):
        r = (t - t0) / (t1 - t0)
        yield problem.multiply(g, w - r * increment, torch.lerp(x0, x1, r))


class Piece(NamedTuple):
    """A step of some samples.

    Attributes:
        rows: their rows in the full batch; None means all, which took it together.
        t0, t1: the ends, float64, `(rows,)`.
        data: what `AbstractSolver.interpolate` takes, or `cubic`, or with noise both ends.
    """

    rows: Tensor | None
    t0: Tensor
    t1: Tensor
    data: Tree


@dataclass(eq=False)
class Dense:
    """The steps of a solve, from which states at any times within are computed.

    Attributes:
        terminal: whether samples stop at an event.
        cubic: whether states within steps are those of the function `cubic`.
        starts: of the steps of a grid, the times where they begin.
    """

    problem: AbstractSDE
    solver: AbstractSolver
    noise: AbstractNoise | None
    ends: tuple[float, float]
    terminal: bool
    cubic: bool = False
    pieces: list[Piece] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)

    def add(self, i: int, steps: Steps, x0: Tensor, step: Step) -> None:
        """Adds step i of a grid, which all samples took, from x0 to its x, as they are returned."""
        t0, t1 = (
            torch.full((len(x0),), t, dtype=torch.float64, device=x0.device)
            for t in steps.ts[i - 1 : i + 1]
        )
        data: Tree = (x0, step.x)
        if self.noise is None:
            self.cubic = step.dense is None
            data = _data(i, steps, x0, step)
        self.pieces.append(Piece(None, t0, t1, data))
        self.starts.append(steps.ts[i - 1])

    def at(self, t: float, x: Tensor) -> Tensor:
        """The states at a time; a sample without a step there has its row of x, the final states.

        Raises:
            ValueError: for a time outside the solve.
        """
        low, high = sorted(self.ends)
        if not low <= t <= high:
            raise ValueError(
                f"the solve is from {self.ends[0]} to {self.ends[1]} and has no state at {t}; give "
                "a time between both"
            )
        sign = math.copysign(1.0, self.ends[1] - self.ends[0])
        pieces = self.pieces
        if self.starts:
            after = bisect_right(self.starts, sign * t, key=lambda start: sign * start)
            pieces = pieces[max(after - 2, 0) : after]
        elif pieces:
            first, last = self._spans.unbind(1)
            near = ((first <= t) & (t <= last)).nonzero().flatten()
            pieces = [pieces[i] for i in near.tolist()]
        states = x
        for piece in pieces:
            inside = (sign * piece.t0 <= sign * t) & (sign * t <= sign * piece.t1)
            rows = inside.nonzero().flatten()
            if len(rows):
                index = rows if piece.rows is None else piece.rows[rows]
                states = states.index_copy(0, index, self._within(piece, index, rows, t))
        return states

    @cached_property
    def _spans(self) -> Tensor:
        """The least and the largest time of each piece, on the host, `(pieces, 2)`."""
        times = [torch.cat([piece.t0, piece.t1]) for piece in self.pieces]
        return torch.stack([torch.stack(t.aminmax()) for t in times]).cpu()

    def _within(self, piece: Piece, index: Tensor, rows: Tensor, t: float) -> Tensor:
        t0 = piece.t0[rows]
        t1 = piece.t1[rows]
        theta = (t - t0) / (t1 - t0)
        data = take(piece.data, rows)
        if self.noise is None:
            return cubic(data, theta) if self.cubic else self.solver.interpolate(data, theta)
        x0, x1 = data
        problem = self.problem.rows(index)
        reader = self.noise.rows(index).reader(x0, problem.noise_shape(x0), levy=False)
        part, whole = (reader(t0.cpu(), end.cpu()).w for end in (torch.full_like(t0, t), t1))
        assert part is not None
        assert whole is not None
        bridge = part - broadcast(theta, part) * whole
        return problem.diffuse(t0, x0, bridge, torch.lerp(x0, x1, broadcast(theta, x0)))


@dataclass(eq=False)
class SavedStates:
    """The states of a solve on a grid at chosen times, computed as the steps pass."""

    times: Sequence[float]
    xs: list[Tensor] = field(default_factory=list)

    def add(self, i: int, steps: Steps, x0: Tensor, step: Step) -> None:
        """Adds the states within step i, and at its end; before the first, that at its start. x0
        and the x of the step are as they are returned.
        """
        t0, t1 = steps.ts[i - 1 : i + 1]
        sign = math.copysign(1.0, t1 - t0)
        if i == 1 and self.times[0] == t0:
            self.xs.append(x0)
        first = len(self.xs)
        after = bisect_left(self.times, sign * t1, first, key=lambda t: sign * t)
        within = self.times[first:after]
        if within and steps.noise is not None:
            noise = within_step(steps.noise, i)
            self.xs += bridged(steps.problem, noise, (t0, t1), (x0, step.x), within)
        elif within:
            data = _data(i, steps, x0, step)
            interpolate = cubic if step.dense is None else steps.solver.interpolate
            for t in within:
                position = (t - t0) / (t1 - t0)
                theta = torch.full((len(x0),), position, dtype=torch.float64, device=x0.device)
                self.xs.append(interpolate(data, theta))
        if len(self.xs) < len(self.times) and self.times[len(self.xs)] == t1:
            self.xs.append(step.x)


def _data(i: int, steps: Steps, x0: Tensor, step: Step) -> Tree:
    """The data from which states within a step of an ordinary equation are interpolated."""
    t0, t1 = steps.ts[i - 1 : i + 1]
    if step.dense is not None:
        return steps.solver.dense(steps.problem, t0, t1, step.dense)
    return cubic_data(steps.problem.within(t0, t1), t0, t1, x0, step.x)


def within_step(noise: AbstractNoise, step: int) -> AbstractNoise:
    """The noise of the bridge within a step: the path itself, or for white noise independent noise,
    because a bridge is independent of the increment.
    """
    return (
        replace(noise, seed=noise.seed + signed(step * _SEED_STRIDE))
        if isinstance(noise, WhiteNoise)
        else noise
    )
