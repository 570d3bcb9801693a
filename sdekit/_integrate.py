"""The loop over a fixed grid, and what it returns. No solver iterates over time; this file does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sdekit._grid import times
from sdekit._noise import AbstractNoise, Increment, WhiteNoise
from sdekit._sde import AbstractSDE, NoiseType, SDEType
from sdekit._solver import AbstractSolver
from sdekit._solver._contract import Tree
from sdekit.elementary import Time

_CHECK = 128  # steps between two looks at whether the state is finite: the only host reads of the loop


class Point(NamedTuple):
    """A state on the way: after how many steps, at which time, `(batch, *event)`."""

    step: int
    t: float
    x: Tensor


class NotFiniteError(ArithmeticError):
    """A state became infinite or not a number.

    Attributes:
        step: the first step after which it was, 0 being the initial state; the number of the evaluation in adaptive solves.
        t: its time.
        samples: the rows of the batch that were.
        total: the size of the batch.
    """

    def __init__(self, step: int, t: float, samples: list[int], total: int, unit: str = "step") -> None:
        self.step, self.t, self.samples, self.total, self.unit = step, t, samples, total, unit
        shown = ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
        super().__init__(
            f"the state is not finite after {unit} {step}, at t = {t:.6g}, in {len(samples)} of {total} samples (rows "
            f"{shown}); look at what the drift returns there, or take smaller steps"
        )

    def seen(self, *, t: float | None = None, after: int = 0, total: int | None = None) -> "NotFiniteError":
        """The same failure as the caller knows it: at its own time, in a batch that begins `after` rows earlier."""
        rows = [row + after for row in self.samples]
        time, size = self.t if t is None else t, self.total if total is None else total
        return NotFiniteError(self.step, time, rows, size, self.unit)


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solve returns.

    Attributes:
        x: the state at the last time, `(batch, *event)`.
        ts: the grid, float64, `(steps + 1,)`.
        xs: all states, `(steps + 1, batch, *event)`, or None unless asked for.
        evaluations: how often the drift, or the score, was evaluated on the batch.
        seed: the seed of the noise; None where there was none.
    """

    x: Tensor
    ts: Tensor
    xs: Tensor | None
    evaluations: int
    seed: int | None


@dataclass(frozen=True, eq=False)
class Counted(AbstractSDE):
    """A problem that counts its evaluations."""

    problem: AbstractSDE
    calls: list[int] = field(default_factory=lambda: [0])

    @property
    def noise_type(self) -> NoiseType:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.problem.noise_type

    @property
    def sde_type(self) -> SDEType:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.problem.sde_type

    @property
    def evaluations(self) -> int:
        return self.calls[0]

    def drift(self, t: Time, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return self.problem.drift(t, x)

    def score(self, t: Time, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return self.problem.score(t, x)

    def diffusion(self, t: Time, x: Tensor) -> Time:
        return self.problem.diffusion(t, x)

    def diffuse(self, t: Time, x: Tensor, dw: Tensor | None, onto: Tensor) -> Tensor:
        return self.problem.diffuse(t, x, dw, onto)

    def noise_shape(self, x: Tensor) -> tuple[int, ...] | None:
        return self.problem.noise_shape(x)

    def rows(self, index: Tensor) -> Self:
        return replace(self, problem=self.problem.rows(index))

    def kernel(self, t: float) -> tuple[float, float] | None:
        return self.problem.kernel(t)

    def quadrature(self, nodes: np.ndarray, t0: np.ndarray, t1: np.ndarray) -> np.ndarray:
        return self.problem.quadrature(nodes, t0, t1)


def integrate(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
) -> Iterator[Point]:
    """The states of a solve one by one, the initial one first: for progress, early stops, or a look at each.

    Arguments, errors and meaning as in `solve`. Memory does not grow with the number of steps.
    """
    grid = times(ts)
    require_state(x0)
    _require_pairing(problem, solver)
    if noise is None and _random(problem, solver):
        noise = WhiteNoise()
    return _points(problem, x0, grid, solver.plan(problem, grid), noise)


def solve(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
    save: Literal["last", "all"] = "last",
    callback: Callable[[Point], None] | None = None,
) -> Solution:
    """Solves dx = f dt + g dW from x(ts[0]) = x0 on the grid ts, one solver step an interval.

    Where ts decreases the equation is solved as an Ito equation with respect to the reversed path.

    Arguments:
        problem: the equation.
        x0: the initial states, floating, `(batch, *event)`; an empty batch gives an empty result.
        ts: the grid, strictly monotone, at least two times.
        solver: the method of a step.
        noise: where increments come from; None is `WhiteNoise()` with a fresh seed, which the result reports.
        save: "all" keeps every state.
        callback: called with each `Point`.

    Raises:
        NotFiniteError: when a state stops being finite; it names the step, the time and the samples.
        TypeError: when x0 is not a floating tensor with a batch dimension.
        ValueError: for a grid that is not monotone, or a solver that does not support the problem's noise.
    """
    if save not in ("last", "all"):
        raise ValueError(f"save must be 'last' or 'all', not {save!r}")
    grid = times(ts)
    require_state(x0)
    if noise is None and _random(problem, solver):
        noise = WhiteNoise()
    counted, x, xs = Counted(problem), x0, []
    for point in integrate(counted, x0, grid, solver=solver, noise=noise):
        x = point.x
        if save == "all":
            xs.append(x)
        if callback is not None:
            callback(point)
    seed = noise.seed if noise is not None and _random(problem, solver) else None
    return Solution(x, torch.tensor(grid, dtype=torch.float64), torch.stack(xs) if xs else None, counted.evaluations, seed)


def _points(
    problem: AbstractSDE, x: Tensor, ts: list[float], solver: AbstractSolver, noise: AbstractNoise | None
) -> Iterator[Point]:
    yield Point(0, ts[0], x)
    if not len(x):
        yield from (Point(i, t, x) for i, t in enumerate(ts[1:], 1))
        return
    state = solver.init(problem, ts[0], x)
    kept = (0, x, state)
    for i, increment in enumerate(_increments(problem, solver, noise, x, ts, 0), 1):
        x, _, _, state = solver.step(problem, ts[i - 1], ts[i], x, increment, state)
        if i % _CHECK == 0 or i == len(ts) - 1:
            if not _finite(x):
                raise _located(problem, ts, solver, noise, *kept, Point(i, ts[i], x))
            kept = (i, x, state)
        yield Point(i, ts[i], x)


def _finite(x: Tensor) -> bool:
    """Whether all of x is finite; True under `torch.func.vmap`, which hides values."""
    try:
        return bool(torch.isfinite(x).all())
    except RuntimeError as error:
        if "vmap" in str(error):
            return True
        raise


def _located(
    problem: AbstractSDE,
    ts: list[float],
    solver: AbstractSolver,
    noise: AbstractNoise | None,
    i: int,
    x: Tensor,
    state: Tree,
    seen: Point,
) -> NotFiniteError:
    """Repeats the steps since the last finite state and finds the first that spoils it: noise is random access."""
    with torch.no_grad():
        for increment in _increments(problem, solver, noise, x, ts, i):
            if i == seen.step or not bool(torch.isfinite(x).all()):
                break
            x, _, _, state = solver.step(problem, ts[i], ts[i + 1], x, increment, state)
            i += 1
    # A model that is not deterministic may pass the second time; then what was seen first is all that is known.
    return not_finite(Point(i, ts[i], x)) or not_finite(seen) or NotFiniteError(seen.step, seen.t, [], len(x))


def not_finite(point: Point) -> NotFiniteError | None:
    """The error to raise for a state, None where it is finite."""
    bad = ~torch.isfinite(point.x.reshape(len(point.x), -1)).all(dim=1)
    rows = bad.nonzero().flatten().tolist()
    return NotFiniteError(point.step, point.t, rows, len(bad)) if rows else None


def _increments(
    problem: AbstractSDE, solver: AbstractSolver, noise: AbstractNoise | None, x: Tensor, ts: list[float], start: int
) -> Iterator[Increment]:
    if noise is None:
        return iter([Increment()] * (len(ts) - 1 - start))
    shape = problem.noise_shape(x)
    return noise.increments(ts, x, shape, levy=solver.levy == "H", normals=solver.normals, start=start)


def _random(problem: AbstractSDE, solver: AbstractSolver) -> bool:
    return problem.noise_type != "none" or solver.normals > 0


def _require_pairing(problem: AbstractSDE, solver: AbstractSolver) -> None:
    name, noise = type(solver).__name__, problem.noise_type
    if noise not in solver.order:
        raise ValueError(f"{name} does not support {noise} noise, only {', '.join(solver.order)}; choose another solver")
    if noise not in ("none", "additive") and problem.sde_type != solver.sde_type:
        raise ValueError(f"{name} solves {solver.sde_type} equations and this one is {problem.sde_type}; choose another solver")


def require_state(x: Tensor) -> None:
    """Refuses what cannot be a state.

    Raises:
        TypeError: when x is not a floating tensor with a batch dimension.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1:
        given = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"the state must be a floating tensor of shape (batch, *event), not {given}; convert it with .float()")
