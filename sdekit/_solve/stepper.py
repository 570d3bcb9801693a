"""A solve on a fixed grid whose loop is the caller's."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import AbstractNoise, Increment
from sdekit._solve.integrate import steps_of
from sdekit._solve.solution import Point, not_finite
from sdekit._solve.steps import Steps
from sdekit._solvers import AbstractSolver
from sdekit._solvers.contract import Tree
from sdekit.calling import require_like, version_of

_BLOCK = 16  # steps whose noise is drawn together


@dataclass(frozen=True, eq=False)
class Stepper:
    """A point of a solve on a fixed grid; its method `next` takes one step. `stepper` makes the
    first point.

    Attributes:
        step: the number of steps before this point.
        x: the state, `(batch, *event)`; `with_x` replaces it.

    Raises:
        NotFiniteError: in `next`, when the state is not finite; on an accelerator only at the end
            of the grid, because each check waits for the device.
        RuntimeError: in `next`, when x was changed in place.
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
    drawn: dict[int, Increment] = field(repr=False)  # noise of steps to come, of all points
    version: int | None = field(repr=False)  # of x
    replaced: bool = field(default=False, repr=False)  # whether memory is that of another x

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
        """The number of evaluations of the drift so far, by all points of the solve."""
        return self.steps.problem.evaluations

    def next(self) -> Self:
        """The point after one more step."""
        if not self.remaining:
            raise ValueError(f"the grid ends at t = {self.t:g}, after {self.step} steps")
        if version_of(self.x) != self.version:
            raise RuntimeError("x was changed in place; give the changed state by with_x(x)")
        i = self.step
        start = self._start() if self.replaced else (self.inner, self.memory)
        inner, memory = self.steps.step(i, self._increment(i), *start)
        x = self.steps.solver.output(self.t, inner, memory)
        last = self.remaining == 1
        if last:
            self.steps.problem.require_unchanged()
        look = last or x.device.type == "cpu"
        if look and (failure := not_finite(Point(i + 1, self.steps.ts[i + 1], x))):
            raise failure
        return replace(
            self, step=i + 1, x=x, inner=inner, memory=memory, version=version_of(x), replaced=False
        )

    def _start(self) -> tuple[Tensor, Tree]:
        """x and the solver's state for the next step, after the caller has replaced x."""
        if isinstance(self.memory, tuple) and not self.memory:
            return self.x, self.memory
        solver = self.steps.solver
        memory = solver.restarted(self.steps.problem, self.t, self.x, self.memory)
        if not self.step:
            return self.x, memory
        correction = solver.output(self.steps.ts[self.step - 1], self.x, memory) - self.x
        return self.x - correction, memory

    def _increment(self, i: int) -> Increment:
        """The noise of step i, drawn with that of the steps after it."""
        increment = self.drawn.get(i)
        if increment is not None:
            return increment
        stop = min(i + _BLOCK, len(self.steps))
        block = dict(enumerate(self.steps.increments(self.inner, i, stop), i))
        self.drawn.clear()  # other threads may read and clear it too
        self.drawn.update(block)
        return block[i]

    def with_x(self, x: Tensor) -> Self:
        """The same point with another state, of the same shape and dtype; the earlier values that a
        multistep rule uses are kept. A solver that remembers the drift at the state replaced
        evaluates it once more, in `next`.
        """
        require_like(x, self.x)
        x = x.clone()
        return replace(self, x=x, inner=x, version=version_of(x), replaced=True)


def stepper(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
) -> Stepper:
    """The first point of a solve on a fixed grid, for a loop in the caller's own code.

    The points are those of `integrate`, unless the caller changes a state with `with_x`; even then
    the noise of all steps stays the same. `next` may be called more than once on the same point.

    Arguments as in `solve`.

    Raises:
        TypeError, ValueError: as `solve`.
        NotFiniteError: for initial states that are not finite.

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
    if failure := not_finite(Point(0, steps.ts[0], x)):
        raise failure
    return Stepper(steps, 0, x, x, steps.init(x), {}, version_of(x))
