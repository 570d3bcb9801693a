"""Methods whose steps adapt to each sample: the probability flow, and the reverse SDE on one
Brownian path per sample.
"""

import math
from abc import ABC
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sdekit import (
    AbstractSolver,
    Dopri5,
    PIDController,
    Point,
    ShARK,
    Solution,
    UnfinishedError,
    solve,
)
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.clock import clock_knots, on_clock
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.method import AbstractMethod, ReverseProblem
from sdekit_diffusion._sampling.on_clock import require_clock
from sdekit_diffusion._sampling.probability_flow import (
    ADVICE,
    ProbabilityFlowOnClock,
    solve_to_accuracy,
)


@dataclass(frozen=True, eq=False)
class AbstractAdaptive(AbstractMethod, ABC):
    """A method that chooses its own steps: it accepts neither their number nor a grid, and saves no
    states between the ends.
    """

    def __post_init__(self) -> None:
        if self.grid is not None:
            raise ValueError(
                "an adaptive method chooses its own steps: leave grid out, or take a method with "
                "fixed steps"
            )

    def require(self, problem: ReverseProblem) -> None:
        """Refuses options that would be ignored.

        Raises:
            ValueError: for a number of steps, or states between the ends.
        """
        if self.steps or problem.save == "all":
            raise ValueError(
                "an adaptive method chooses its own steps: leave steps out and save='last', or set "
                "rtol and atol"
            )

    @staticmethod
    def require_solver(solver: object, such: str) -> None:
        """Refuses anything but a solver with an error estimate.

        Raises:
            TypeError, ValueError: with an example of such a solver.
        """
        if not isinstance(solver, AbstractSolver):
            raise TypeError(f"solver is an object such as {such}, not {solver!r:.60}")
        if solver.embedded is None:
            raise ValueError(
                f"{type(solver).__name__} has no error estimate, which adaptive steps need; take "
                f"{such}"
            )

    @staticmethod
    def report_ends(problem: ReverseProblem, solution: Solution) -> Solution:
        """The solution, after the callback received its two ends."""
        if problem.callback is not None:
            for i, state in enumerate((problem.u, solution.x)):
                problem.callback(Point(i, float(solution.ts[i]), state))
        return solution


@dataclass(frozen=True, eq=False)
class AdaptiveFlow(AbstractAdaptive):
    """The probability flow with adaptive steps.

    Arguments:
        rtol, atol: the relative and the absolute tolerance of a step, for the normalised state
            u = (x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2), where m and s are the mean and the
            standard deviation of the data.
        solver: an explicit Runge-Kutta method with an error estimate.
        max_steps: the largest number of steps per sample, including rejected ones.
        accuracy: the error of u at the end, instead of the tolerances: each sample is solved at the
            tolerances accuracy/10, accuracy/100, ..., until two solves agree within accuracy/2 in
            every coordinate. This costs two to ten times the evaluations of one solve with the
            tolerance that is needed.

    Raises:
        TypeError: for a solver that is not an object, such as a name, or an accuracy or tolerances
            that are not numbers.
        ValueError: for an accuracy that is not positive, a solver without an error estimate, or a
            grid; in `sample`, for a number of steps or save="all".

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.AdaptiveFlow(1e-4, 1e-4)
        >>> x = sd.sample(model, 4, sde="vp", method=method, seed=0)
        >>> x.shape
        torch.Size([4, 1])
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    solver: AbstractSolver = field(default_factory=Dopri5)
    max_steps: int = 100_000
    accuracy: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "accuracy")
        PIDController(self.rtol, self.atol)  # refuses tolerances that are none
        super().__post_init__()
        self.require_solver(self.solver, "Dopri5()")
        if self.accuracy is not None and not 0 < self.accuracy < math.inf:
            raise ValueError(
                "accuracy is the error of x at the end over its standard deviation there, such as "
                f"1e-3; not {self.accuracy}"
            )

    @property
    def control(self) -> PIDController:
        """The controller of the steps.

        The clock of the flow has a length of about 2 for every model, so that tol^(1/k), k the
        order of the error estimate, is about as good a first step as an estimate, which costs two
        evaluations. PI control has a third of the rejections of the classical rule.
        """
        first = max(self.rtol, self.atol) ** (1 / (self.solver.embedded or 1))
        return PIDController(
            self.rtol,
            self.atol,
            proportional=0.3,
            integral=0.4,
            first=first or None,
            max_steps=self.max_steps,
        )

    def solve_flow(
        self, model: AbstractModel, u: Tensor, span: Span, *, after: int = 0
    ) -> Solution:
        """The flow of u over a span of l, to the tolerances or the accuracy.

        Arguments:
            after: the number of rows of the caller's batch before those of u.

        Raises:
            UnfinishedError: where some samples do not reach the end; it has the solution in u and
                l.
        """
        if self.accuracy is not None:

            def to_tolerance(tolerance: float, model: AbstractModel, u: Tensor) -> Solution:
                flow = replace(self, rtol=tolerance, atol=tolerance, accuracy=None)
                return AdaptiveFlow.solve_flow(flow, model, u, span)

            return solve_to_accuracy(to_tolerance, model, u, span, self.accuracy, after=after)
        equation = ProbabilityFlowOnClock(model)
        with equation.errors_in_l(after):
            ends = equation.ends(span)
            solution = solve(equation, u, ends, solver=self.solver, control=self.control)
        return replace(solution, ts=torch.tensor(span, dtype=torch.float64))

    def run(self, problem: ReverseProblem) -> Solution:
        self.require(problem)
        return self.report_ends(problem, self.solve_flow(problem.model, problem.u, problem.span))


@dataclass(frozen=True, eq=False)
class AdaptiveSDE(AbstractAdaptive):
    """The reverse SDE on the clock of the signal-to-noise ratio, with adaptive steps and one
    Brownian path per sample.

    After a rejection the step is repeated on the same path. New noise would favour small
    increments; with one path the law converges to that of the equation as the tolerances go to 0,
    in any dimension.

    Arguments:
        rtol, atol: the relative and the absolute tolerance of a step, for the normalised state u of
            `AdaptiveFlow`.
        solver: one for additive noise with an error estimate, such as `ShARK` or `SRA1`.
        eta: the noise level, positive; 1 is the reverse SDE.
        max_steps: the largest number of steps per sample, including rejected ones.

    Raises:
        TypeError: for a solver that is not an object, such as a name, or an eta or tolerances that
            are not numbers.
        ValueError: for an eta that is not positive, a solver without an error estimate, or a grid;
            in `sample`, for a number of steps or save="all".

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.AdaptiveSDE(rtol=0.1, atol=0.1)
        >>> x = sd.sample(model, 4, sde="vp", method=method, seed=0)
        >>> x.shape
        torch.Size([4, 1])

    References:
        Jolicoeur-Martineau et al. 2021, arXiv 2105.14080, for adaptive steps with new noise.
    """

    noise = "path"

    rtol: float = 2e-2
    atol: float = 2e-2
    solver: AbstractSolver = field(default_factory=ShARK)
    eta: float = 1.0
    max_steps: int = 100_000

    def __post_init__(self) -> None:
        require_numbers(self, "eta")
        PIDController(self.rtol, self.atol)  # refuses tolerances that are none
        super().__post_init__()
        self.require_solver(self.solver, "ShARK()")
        if not 0 < self.eta < math.inf:
            raise ValueError(
                "eta must be a positive number, 1 being the reverse SDE; for 0 take "
                f"AdaptiveFlow(); not {self.eta}"
            )

    def run(self, problem: ReverseProblem) -> Solution:
        self.require(problem)
        equation = on_clock(problem.model, self.eta)
        require_clock(problem, *(2 * self.eta**2 * l for l in problem.span))
        y = problem.u / equation.scale(problem.span[0])
        ends = [float(equation.time(l)) for l in problem.span]
        control = PIDController(
            self.rtol, self.atol, proportional=0.1, integral=0.3, max_steps=self.max_steps
        )
        ts = torch.tensor(problem.span, dtype=torch.float64)

        def converted(solution: Solution) -> Solution:
            return replace(solution, x=solution.x * equation.scale(problem.span[1]), ts=ts)

        try:
            solution = solve(
                equation, y, ends, solver=self.solver, noise=problem.noise, control=control
            )
        except UnfinishedError as error:
            reached = torch.as_tensor(equation.parameter(error.reached))
            raise UnfinishedError(converted(error.solution), reached, advice=ADVICE) from None
        return self.report_ends(problem, converted(solution))

    def knots(self, coordinates: Coordinates, span: Span) -> Tensor:
        return clock_knots(self.eta, span)
