"""Methods that solve an equation on a fixed grid, in variables of their own."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit import AbstractSDE, AbstractSolver, NotFiniteError, Point, Solution, solve
from sdekit_diffusion._sampling.method import AbstractMethod, ReverseProblem


class Transformed(NamedTuple):
    """A reverse problem in the variables in which a method solves it.

    Attributes:
        equation, solver: the equation of a state x in a time, and the solver for it.
        times: the times at the points of the grid.
        from_u, to_u: x from the number of a point of the grid and u there, and u from x.
        to_l: l from a time.
    """

    equation: AbstractSDE
    solver: AbstractSolver
    times: Sequence[float]
    from_u: Callable[[int, Tensor], Tensor]
    to_u: Callable[[int, Tensor], Tensor]
    to_l: Callable[[float], float]


@dataclass(frozen=True, eq=False)
class AbstractGridMethod(AbstractMethod):
    """A method that solves an equation on the points of its grid; a subclass defines
    `transformed`.
    """

    @abstractmethod
    def transformed(self, problem: ReverseProblem, grid: Tensor) -> Transformed:
        """The problem in the variables of the method, for a grid of l."""

    def run(self, problem: ReverseProblem) -> Solution:
        grid = self.points(problem)
        equation, solver, times, from_u, to_u, to_l = self.transformed(problem, grid)

        def report(point: Point) -> None:
            assert problem.callback is not None
            l = float(grid[point.step])
            problem.callback(Point(point.step, l, to_u(point.step, point.x)))

        try:
            solution = solve(
                equation,
                from_u(0, problem.u),
                times,
                solver=solver,
                noise=problem.noise,
                save=problem.save,
                callback=problem.callback and report,
            )
        except NotFiniteError as error:
            raise error.relocated(t=to_l(error.t)) from None
        xs = solution.xs
        if xs is not None:
            xs = torch.stack([to_u(i, state) for i, state in enumerate(xs)])
        return solution.with_states(to_u(grid.shape[0] - 1, solution.x), xs, grid)
