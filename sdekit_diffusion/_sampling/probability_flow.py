"""The probability flow as the likelihood and the adaptive sampler solve it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sdekit import (
    AbstractSDE,
    AbstractSolver,
    PIDController,
    Solution,
    Status,
    UnfinishedError,
    solve,
)
from sdekit.elementary import Time, broadcast, clip, expm1, log, sqrt
from sdekit_diffusion._models.affine import Function
from sdekit_diffusion._models.model import AbstractModel

_SMALLEST_DIFFERENCE = (
    1e-6  # of 5 - (e^v - 1): where v is rounded in float32, y may run off to infinity
)
ADVICE = (
    "look at what the model returns there, or leave these rows out; see `.solution` of this error"
)


@dataclass(frozen=True, eq=False)
class ProbabilityFlowOnClock(AbstractSDE):
    """The probability flow of u = a z + b eps for data z of mean 0 and standard deviation 1, on a
    clock of its own.

    du/dl = a (D - a u), l = log(a / b): the denoiser minus that of N(0, I), so that the right-hand
    side and its divergence vanish where the data are such.

    The clock is v = log(1 + 5 y / (y + 1)), y = b / a, from 0 to log 6: as y below 1/6, as log y
    from there to 1, as -1/y beyond. The flow is smooth in y as y goes to 0 and in 1/y as it goes to
    infinity, and its features lie between; l would run on without end on both sides. dl/dv = -(6
    y + 1)(y + 1) / (5 y).
    """

    noise_type = "none"

    model: AbstractModel

    @staticmethod
    def clock(l: float) -> float:
        """v at l."""
        y = math.exp(-l)
        return math.log1p(5 * y / (y + 1))

    @staticmethod
    def ratio(v: Time) -> Time:
        """y = b / a at v."""
        rise = expm1(v)
        return rise / clip(5 - rise, _SMALLEST_DIFFERENCE, 5.0)

    def log_snr(self, v: Time) -> Time:
        """l at v."""
        return -log(self.ratio(v))

    def drift(self, t: Time, x: Tensor) -> Tensor:
        y = self.ratio(t)
        ahead, back = self._weights(y)
        denoised = self.model.predict_data(-log(y), x)
        return denoised * broadcast(ahead, x) + x * broadcast(back, x)

    def drifts(self, times: Sequence[Tensor], x: Tensor) -> list[Function] | None:
        network_call = self.model.network_call()
        if network_call is None:
            return None
        y = torch.as_tensor(self.ratio(torch.cat([*times])))
        ahead, back = self._weights(y)
        slope = self.model.affine(torch.as_tensor(-log(y)), "data").times(ahead, skip_term=back)
        return network_call.in_rows(slope, len(times), x)

    @staticmethod
    def _weights(y: Time) -> tuple[Time, Time]:
        """The factors of D and of u in the drift."""
        rate = -(6 * y + 1) * (y + 1) / (5 * y)
        a = 1 / sqrt(1 + y * y)
        return rate * a, -rate * a * a

    def relocated(self, error: UnfinishedError, after: int = 0) -> UnfinishedError:
        """A failure as the caller knows it: times l, `after` rows earlier."""
        solution = replace(error.solution, ts=torch.as_tensor(self.log_snr(error.solution.ts)))
        return UnfinishedError(
            solution, torch.as_tensor(self.log_snr(error.reached)), after, ADVICE
        )

    def diffusion(self, t: Time, x: Tensor) -> float:
        return 0.0

    def rows(self, index: Tensor) -> Self:
        return replace(self, model=self.model.rows(index))


def solve_flow(
    model: AbstractModel,
    u: Tensor,
    span: tuple[float, float],
    solver: AbstractSolver,
    control: PIDController,
    *,
    after: int = 0,
) -> Solution:
    """The solution in u from one end of a span of l to the other.

    Arguments:
        after: how many rows of the caller's batch come before those of u.

    Raises:
        UnfinishedError: with such a solution, where some samples do not reach the end.
    """
    equation = ProbabilityFlowOnClock(model)
    ends = equation.clock(span[0]), equation.clock(span[1])
    try:
        solution = solve(equation, u, ends, solver=solver, control=control)
    except UnfinishedError as error:
        raise equation.relocated(error, after) from None
    return replace(solution, ts=torch.tensor(span, dtype=torch.float64))


def solve_to_accuracy(
    model: AbstractModel,
    u: Tensor,
    span: tuple[float, float],
    solver: AbstractSolver,
    control: Callable[[float], PIDController],
    accuracy: float,
    *,
    after: int = 0,
) -> Solution:
    """The solution at tolerances accuracy/10, accuracy/100, ... until two in a row agree within
    accuracy/2; the finer of them.

    The last tolerance is the finest that the dtype resolves.

    Each sample continues until its own do, in every coordinate, in units of the standard deviation
    of u. An error rho times that of the solve before is rho / (1 - rho) times the difference, so
    within accuracy for rho up to 2/3; tolerances alone say nothing, for the errors of steps add up
    and are magnified. Evaluations and steps are those of all solves together.

    Arguments:
        control: the controller for a tolerance.
        Others as in `flow`.

    Raises:
        UnfinishedError: where some samples fail, or agree at no tolerance that the dtype resolves.
    """
    smallest = 4 * torch.finfo(u.dtype).eps if u.is_floating_point() else 0.0
    rows = torch.arange(len(u), device=u.device)
    reached = torch.full((len(u),), span[1], dtype=torch.float64, device=u.device)
    solution = None
    tolerance = max(accuracy / 10, smallest)
    while solution is None or (len(rows) and tolerance > 0):
        try:
            part = solve_flow(model.rows(rows), u[rows], span, solver, control(tolerance))
        except UnfinishedError as error:
            part = error.solution
            reached = reached.index_copy(0, rows, error.reached.double())
        previous = torch.full_like(part.x, math.inf) if solution is None else solution.x[rows]
        difference = (part.x - previous).abs().unsqueeze(-1).flatten(1).amax(1)
        solution = part if solution is None else _replace_rows(solution, part, rows)
        rows = rows[(part.status == Status.DONE) & (difference > accuracy / 2)]
        tolerance = max(tolerance / 10, smallest) if tolerance > smallest else 0.0
    solution.status[rows] = Status.UNDERFLOW
    solution.x[rows] = math.nan
    if bool((solution.status != Status.DONE).any()):
        advice = (
            "ask for less accuracy, a wider dtype or more steps, or look at the model; `.solution` "
            "of this error has the others"
        )
        raise UnfinishedError(solution, reached, after, advice)
    return solution


def _replace_rows(solution: Solution, part: Solution, rows: Tensor) -> Solution:
    """What is found, some rows of it anew; what is counted adds up."""
    counts = {
        name: getattr(solution, name).index_add(0, rows, getattr(part, name))
        for name in ("evaluations", "accepted", "rejected")
    }
    return replace(
        solution,
        x=solution.x.index_copy(0, rows, part.x),
        status=solution.status.index_copy(0, rows, part.status),
        **counts,
    )
