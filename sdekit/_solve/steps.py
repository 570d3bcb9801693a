"""The steps of a solve on a fixed grid: noise has random access, so any step can be repeated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import AbstractNoise, Increment, NoiseQuery
from sdekit._solve.counted import Counted
from sdekit._solvers.contract import AbstractSolver, Tree

_BLOCK = 16  # steps whose noise is drawn together in the backward pass


def tabulated(problem: AbstractSDE, solver: AbstractSolver, ts: Sequence[float]) -> AbstractSDE:
    """The equation with its coefficients at all times that a solver needs on a grid computed in
    advance.
    """
    if type(problem).tabulated is AbstractSDE.tabulated:
        return problem
    stages = [float(t) for t in solver.stage_times(problem, ts)]
    times = sorted({*ts, *stages}, reverse=ts[-1] < ts[0]) if stages else ts
    return problem.tabulated(times)


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a solve, any of which can be repeated."""

    problem: Counted
    ts: Sequence[float]
    solver: AbstractSolver
    noise: AbstractNoise | None

    @staticmethod
    def of(
        problem: AbstractSDE,
        x: Tensor,
        ts: Sequence[float],
        solver: AbstractSolver,
        noise: AbstractNoise | None,
    ) -> "Steps":
        """The steps of a solver on a grid, for states such as x."""
        counted = Counted.of(tabulated(problem, solver, ts), x)
        return Steps(counted, ts, solver.plan(counted, ts), noise)

    def __len__(self) -> int:
        return len(self.ts) - 1

    def init(self, x: Tensor) -> Tree:
        return self.solver.init(self.problem, self.ts[0], x)

    def increments(self, x: Tensor, i: int, j: int) -> Iterator[Increment]:
        """The noise of steps i to j - 1; empty increments without noise."""
        if self.noise is None:
            return iter([Increment()] * (j - i))
        shape = self.problem.noise_shape(x)
        levy = self.solver.levy == "H"
        areas = self.solver.levy == "A" and self.problem.noise_type == "general"
        return self.noise.answer(
            NoiseQuery(self.ts[: j + 1], x, shape, levy, self.solver.normals, i, areas)
        )

    def backwards(self, x: Tensor) -> Iterator[tuple[int, Increment]]:
        """The indices of the steps in reverse order, with their noise."""
        for j in range(len(self), 0, -_BLOCK):
            i = max(0, j - _BLOCK)
            yield from reversed(list(enumerate(self.increments(x, i, j), i)))

    def step(self, i: int, increment: Increment, x: Tensor, state: Tree) -> tuple[Tensor, Tree]:
        x, _, _, state = self.solver.step(
            self.problem, self.ts[i], self.ts[i + 1], x, increment, state
        )
        return x, state

    def reverse_step(
        self, i: int, increment: Increment, x: Tensor, state: Tree
    ) -> tuple[Tensor, Tree]:
        """x and the state before step i, from those after it, by a reversible solver."""
        return self.solver.reverse(self.problem, self.ts[i], self.ts[i + 1], x, increment, state)

    def run(
        self, x: Tensor, state: Tree, i: int, j: int, every: bool
    ) -> tuple[list[Tensor], Tensor, Tree]:
        """Steps i to j - 1: the outputs of each of them, or only of the last; then x and the state
        of the solver that the last one passes on.
        """
        xs = []
        for k, increment in enumerate(self.increments(x, i, j), i):
            x, state = self.step(k, increment, x, state)
            if every or k == j - 1:
                xs.append(self.solver.output(self.ts[k], x, state))
        return xs, x, state
