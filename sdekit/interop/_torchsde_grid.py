"""torchsde's steps, of equal length or adapted to an error, and the states between them."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import AbstractNoise, Increment, NoiseQuery
from sdekit._solve.dense import bridged, within_step
from sdekit._solve.gradient import AbstractGradient
from sdekit._solve.solution import NotFiniteError, Point, not_finite
from sdekit._solve.steps import Steps
from sdekit._solvers.contract import Tree
from sdekit.calling import has_hidden_values, warn_caller

_TIME_TOLERANCE = 1e-6  # of a step: times closer than this are equal
_CHECK_INTERVAL = 128  # steps between two checks that the state is finite


class Reached(NamedTuple):
    """A point of a solve: the number of steps before it, its time, and the arguments x and state of
    the next step.
    """

    step: int
    t: float
    x: Tensor
    state: Tree


@dataclass(frozen=True, eq=False)
class Doubling:
    """torchsde's adaptive steps, which the whole batch shares. The error of a step is estimated by
    the difference between this step and two of half its length.

    Arguments:
        rtol, atol: the tolerances of the root mean square.
        shortest: a step that would be shorter is as long as this, and accepted.

    Raises:
        ValueError: for tolerances or a shortest step that are negative or NaN, and infinite
            tolerances.
    """

    rtol: float
    atol: float
    shortest: float

    def __post_init__(self) -> None:
        if not (0 <= self.rtol < math.inf and 0 <= self.atol < math.inf):
            raise ValueError(
                f"rtol and atol are tolerances, finite and from 0 on; not {self.rtol} and "
                f"{self.atol}"
            )
        if not self.shortest >= 0:
            raise ValueError(
                f"dt_min is the length of the shortest step, from 0 on, not {self.shortest}"
            )

    def error(self, coarse: Tensor, fine: Tensor) -> float:
        """The error relative to the tolerance, at least 1e-7; infinite if it is not finite."""
        if not fine.numel():
            return 1e-7
        scale = torch.maximum(coarse.abs(), fine.abs()).mul(self.rtol).add(self.atol).clamp(1e-7)
        error = float(((coarse - fine) / scale).square().mean().sqrt())
        return max(1e-7, error) if math.isfinite(error) else math.inf

    def factor(self, error: float, previous: float | None) -> float:
        """The factor of the next step by PI control, from 0.2 to 0.9^{2/3} after a rejection, from
        1 to 1.4 otherwise.

        previous: 0.9 divided by the error of the last accepted step, or of the first step.
        """
        ratio = 0.9 / error
        if error > 1:
            return min(max(ratio ** (1 / 1.5), 0.2), 1.4)
        change = 1.0 if previous is None else ratio / previous
        return min(max(ratio ** (1 / 4.5) * change**0.13, 1.0), 1.4)


def fixed(
    steps: Steps, x: Tensor, state: Tree = None, gradient: AbstractGradient | None = None
) -> Iterator[Reached]:
    """The states of a grid, the first included.

    Arguments:
        state: the state of the solver at the first step; None means that of `init`.
        gradient: how gradients pass back, see `sdekit.solve`.

    Raises:
        NotFiniteError: for a state that is not finite, checked every 128 steps, or with a gradient
            at the end only.
    """
    ts = steps.ts
    n = len(steps)
    if gradient is not None:
        yield Reached(0, ts[0], x, ())
        end = x
        for i, end in gradient.states(steps, x, every=True):
            yield Reached(i, ts[i], end, ())
        if not has_hidden_values(end) and (failure := not_finite(Point(n, ts[n], end))):
            raise _first_failure(steps, x, steps.init(x)) or failure
        return
    state = steps.init(x) if state is None else state
    start = (x, state)
    yield Reached(0, ts[0], x, state)
    for i, increment in enumerate(steps.increments(x, 0, n)):
        x, state = steps.step(i, increment, x, state)
        checked = ((i + 1) % _CHECK_INTERVAL == 0 or i + 1 == n) and not has_hidden_values(x)
        if checked and (failure := not_finite(Point(i + 1, ts[i + 1], x))):
            raise _first_failure(steps, *start) or failure
        if i + 1 == n:
            steps.problem.require_unchanged()
        yield Reached(i + 1, ts[i + 1], x, state)


def _first_failure(steps: Steps, x: Tensor, state: Tree) -> NotFiniteError | None:
    """The error of the first step that is not finite, found by repeating the steps."""
    with torch.no_grad():
        for i, increment in enumerate(steps.increments(x, 0, len(steps))):
            x, state = steps.step(i, increment, x, state)
            if failure := not_finite(Point(i + 1, steps.ts[i + 1], x)):
                return failure
    return None


def doubled(
    steps: Steps, x: Tensor, dt: float, doubling: Doubling, state: Tree = None
) -> Iterator[Reached]:
    """The states of adaptive steps between the first and the last of steps.ts.

    Raises:
        NotFiniteError: for a step that is not finite.
    """
    t = steps.ts[0]
    end = steps.ts[-1]
    sign = math.copysign(1.0, end - t)
    problem = steps.problem
    state = steps.init(x) if state is None else state
    dt = abs(end - t) if math.isinf(dt) else dt
    yield Reached(0, t, x, state)
    previous: float | None = None
    accepted = 0
    while t != end:
        t1 = end if abs(end - t) <= dt else t + sign * dt
        middle = 0.5 * (t + t1)
        coarse, _ = _step(steps, t, t1, x, state)
        fine, between = _step(steps, t, middle, x, state)
        fine, after = _step(steps, middle, t1, fine, between)
        with torch.no_grad():
            error = doubling.error(coarse, fine)
        failure = not_finite(Point(accepted + 1, t1, fine))
        if failure and dt <= doubling.shortest:
            raise failure
        dt *= doubling.factor(error, previous)
        previous = 0.9 / error if error <= 1 or previous is None else previous
        if dt < doubling.shortest:
            if not failure:
                warn_caller(
                    f"the step has reached dt_min = {doubling.shortest:g} at t = {t:.6g}: the "
                    "error may be above the tolerance there",
                )
            dt = doubling.shortest
            previous = None
        if error <= 1 or (dt <= doubling.shortest and not failure):
            t = t1
            x = fine
            state = after
            accepted += 1
            yield Reached(accepted, t, x, state)
    problem.require_unchanged()


def _step(steps: Steps, t0: float, t1: float, x: Tensor, state: Tree) -> tuple[Tensor, Tree]:
    """A step between two arbitrary times."""
    solver = steps.solver
    x, _, _, state = solver.step(steps.problem, t0, t1, x, _increment(steps, t0, t1, x), state)
    return x, state


def _increment(steps: Steps, t0: float, t1: float, x: Tensor) -> Increment:
    """The noise between two arbitrary times."""
    noise = steps.noise
    shape = steps.problem.noise_shape(x)
    if noise is None or shape is None:
        return Increment()
    if steps.solver.levy == "A" and steps.problem.noise_type == "general":
        return next(noise.answer(NoiseQuery([t0, t1], x, shape, areas=True)))
    return next(iter(noise.readings([t0, t1], x, shape, levy=steps.solver.levy == "H")))


def states(
    problem: AbstractSDE, reached: Iterator[Reached], ts: Sequence[float], noise: AbstractNoise,
    slack: float,
) -> tuple[list[Tensor], Tree]:  # fmt: skip
    """The states at ts, and the state of the solver after the last step."""
    xs = []
    remaining = deque(ts)
    sign = math.copysign(1.0, remaining[-1] - remaining[0])
    previous = None
    for now in reached:
        within = []
        while remaining and sign * (now.t - remaining[0]) > slack:
            within.append(remaining.popleft())
        if within and previous is not None:
            inner = within_step(noise, now.step)
            ends = (previous.t, now.t)
            xs += bridged(problem, inner, ends, (previous.x, now.x), within)
        while remaining and abs(now.t - remaining[0]) <= slack:
            remaining.popleft()
            xs.append(now.x)
        previous = now
    assert previous is not None
    return xs, previous.state


def steps(t0: float, t1: float, dt: float, slack: float) -> list[float]:
    """t0, t0 + dt, t0 + 2 dt, ..., t1: the last step may be shorter, but not shorter than slack; an
    infinite dt makes one step.
    """
    if math.isinf(dt):
        return [t0, t1]
    count = max(1, math.ceil((abs(t1 - t0) - slack) / dt))
    return [t0 + math.copysign(i * dt, t1 - t0) for i in range(count)] + [t1]


def slack_of(ts: Tensor | Sequence[float], numbers: Sequence[float], dt: float) -> float:
    """The distance below which two times are equal: the rounding of ts, or 1e-6 of a step."""
    dtype = ts.dtype if isinstance(ts, Tensor) and ts.is_floating_point() else torch.float64
    dt = abs(numbers[-1] - numbers[0]) if math.isinf(dt) else dt
    rounding = 4 * torch.finfo(dtype).eps * max(map(abs, numbers))
    return min(max(rounding, _TIME_TOLERANCE * dt), dt / 4)
