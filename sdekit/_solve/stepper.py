"""A solve on a fixed grid whose loop is the caller's."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import AbstractNoise
from sdekit._solve.integrate import steps_of
from sdekit._solve.solution import Point, not_finite
from sdekit._solve.steps import Steps
from sdekit._solvers import AbstractSolver
from sdekit._solvers.contract import Tree


@dataclass(frozen=True, eq=False)
class Stepper:
    """A point of a solve from which it goes on step by step; `stepper` makes the first.

    Attributes:
        step: the number of steps that were made.
        x: the state there, `(batch, *event)`.

    Raises:
        NotFiniteError: in `next`, when the state at the end of the grid is not finite.
        ValueError: in `next` at the end of the grid, and in `with_x` for another shape or dtype.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> at = sdekit.stepper(ode, torch.ones(1, 1), [0.0, 0.5, 1.0], solver=sdekit.RK4())
        >>> isinstance(at, sdekit.Stepper), at.remaining
        (True, 2)
    """

    steps: Steps = field(repr=False)
    step: int
    x: Tensor
    # What the solver passes on: its state of x, which `output` converts to x, and its memory.
    inner: Tensor = field(repr=False)
    memory: Tree = field(repr=False)

    @property
    def t(self) -> float:
        """The time of x."""
        return self.steps.ts[self.step]

    @property
    def remaining(self) -> int:
        """The number of steps to the end of the grid."""
        return len(self.steps) - self.step

    @property
    def evaluations(self) -> int:
        """Those of the drift so far, by all points of the solve."""
        return self.steps.problem.evaluations

    def next(self) -> Self:
        """The point after one more step."""
        if not self.remaining:
            raise ValueError(f"the grid ends at t = {self.t:g}, after {self.step} steps")
        i = self.step
        (increment,) = self.steps.increments(self.inner, i, i + 1)
        inner, memory = self.steps.step(i, increment, self.inner, self.memory)
        x = self.steps.solver.output(self.t, inner, memory)
        if self.remaining == 1:
            self.steps.problem.require_unchanged()
            if failure := not_finite(Point(i + 1, self.steps.ts[i + 1], x)):
                raise failure
        return replace(self, step=i + 1, x=x, inner=inner, memory=memory)

    def with_x(self, x: Tensor) -> Self:
        """The same point with another state; what a multistep rule remembers is kept."""
        if x.shape != self.x.shape or x.dtype != self.x.dtype:
            raise ValueError(
                f"the state has shape {tuple(self.x.shape)} and {self.x.dtype}; one of shape "
                f"{tuple(x.shape)} and {x.dtype} cannot take its place"
            )
        return replace(self, x=x, inner=self.inner + (x - self.x))


def stepper(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
) -> Stepper:
    """The first point of a solve on a fixed grid, for loops of one's own.

    The points are those of `integrate`, with the same noise, also if a caller changes states with
    `with_x` between two steps. A point may be stepped from more than once.

    Arguments as in `solve`.

    Raises:
        TypeError, ValueError: as `solve`.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 20)
        >>> at = sdekit.stepper(ode, torch.ones(1, 1), ts, solver=sdekit.AdamsMoulton(3))
        >>> while at.remaining:
        ...     at = at.next()
        >>> at.step, at.t, round(float(at.x), 4)  # e^-1 = 0.3679
        (20, 1.0, 0.3679)
    """
    steps, x = steps_of(problem, x0, ts, solver, noise)
    return Stepper(steps, 0, x, x, steps.init(x))
