"""The probability flow with adaptive steps, for likelihoods and for the adaptive sampler."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sdekit import (
    AbstractSDE,
    Solution,
    Status,
    UnfinishedError,
    computed,
)
from sdekit.elementary import Time, broadcast, clip, expm1, log, sqrt
from sdekit_diffusion._models.affine import Function
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Span
from sdekit_diffusion._sampling.focused import SHARPNESS

# Of k - (e^v - 1): where v is rounded in float32, y may run off to infinity.
_SMALLEST_DIFFERENCE = 1e-6
_LARGEST_LEVEL = 300.0  # of |l| that its exponential holds
ADVICE = (
    "look at what the model returns there, or leave these rows out; see `.solution` of this error"
)


@dataclass(frozen=True, eq=False)
class ProbabilityFlowOnClock(AbstractSDE):
    """The probability flow of u = a z + b eps for data z of mean 0 and standard deviation 1, in a
    time v.

    du/dl = a (D - a u), l = log(a / b), where a u is the denoiser of N(0, I): the right-hand side
    and its divergence are 0 for such data.

    The time is v = log(1 + k y / (y + 1)) with y = b / a and k = 5, between 0 and log(k + 1), which
    is `smooth` of focused.py with the extent 1. It is nearly linear in y for y below 1 / (k + 1),
    in log(y) from there to 1, and in 1/y above. The flow is smooth in y as y goes to 0 and in 1/y
    as y goes to infinity, and varies between; l would be unbounded on both sides.
    dl/dv = -((k + 1) y + 1)(y + 1) / (k y).
    """

    noise_type = "none"

    model: AbstractModel

    @computed
    def jumps(self) -> list[float]:
        return [self.clock(max(l, -_LARGEST_LEVEL)) for l in self.model.jumps]

    @staticmethod
    def clock(l: float) -> float:
        """v at l."""
        y = math.exp(-l)
        return math.log1p(SHARPNESS * y / (y + 1))

    @staticmethod
    def ratio(v: Time) -> Time:
        """y = b / a at v."""
        rise = expm1(v)
        return rise / clip(SHARPNESS - rise, _SMALLEST_DIFFERENCE, SHARPNESS)

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
        a = 1 / sqrt(1 + y * y)
        factor = ((SHARPNESS + 1) * y + 1) * (y + 1) / (SHARPNESS * y) * a
        return -factor, factor * a

    def ends(self, span: Span) -> tuple[float, float]:
        """v at both ends of a span of l."""
        return self.clock(span[0]), self.clock(span[1])

    @contextmanager
    def errors_in_l(self, after: int = 0) -> Iterator[None]:
        """Errors of a solve get times l, in a batch with `after` rows before those of the solve."""
        try:
            yield
        except UnfinishedError as error:
            raise self.relocated(error, after) from None

    def relocated(self, error: UnfinishedError, after: int = 0) -> UnfinishedError:
        """An error with times l, in a batch with `after` rows before those of the error."""
        solution = replace(error.solution, ts=torch.as_tensor(self.log_snr(error.solution.ts)))
        reached = torch.as_tensor(self.log_snr(error.reached))
        return UnfinishedError(solution, reached, after, ADVICE)

    def diffusion(self, t: Time, x: Tensor) -> float:
        return 0.0

    def rows(self, index: Tensor) -> Self:
        return replace(self, model=self.model.rows(index))


def solve_to_accuracy(
    solve_flow: Callable[[float, AbstractModel, Tensor], Solution],
    model: AbstractModel,
    u: Tensor,
    span: Span,
    accuracy: float,
    *,
    after: int = 0,
) -> Solution:
    """The flow at the tolerances accuracy/10, accuracy/100, ..., until two successive solutions
    agree within accuracy/2; the finer of the two.

    Each sample is solved again until its solutions agree in every coordinate of u, whose standard
    deviation is about 1. The last tolerance is the smallest that the dtype resolves. If the error
    of a solve is rho times that of the previous one, it is rho / (1 - rho) times their difference,
    hence within the accuracy for rho up to 2/3. A tolerance alone does not bound the error, since
    the errors of steps add up and are amplified. Evaluations and steps are those of all solves
    together.

    Arguments:
        solve_flow: the solution for a tolerance, a model and u, over the span.
        model, u, span: the model of the flow, the states at the first end of a span of l, and both
            ends.
        after: the number of rows of the caller's batch before those of u.

    Raises:
        UnfinishedError: where some samples fail, or do not agree at any tolerance that the dtype
            resolves.
    """
    smallest = 4 * torch.finfo(u.dtype).eps if u.is_floating_point() else 0.0
    rows = torch.arange(len(u), device=u.device)
    reached = torch.full((len(u),), span[1], dtype=torch.float64, device=u.device)
    solution = None
    tolerance = max(accuracy / 10, smallest)
    while solution is None or (len(rows) and tolerance > 0):
        try:
            part = solve_flow(tolerance, model.rows(rows), u[rows])
        except UnfinishedError as error:
            part = error.solution
            reached = reached.index_copy(0, rows, error.reached.double())
        previous = torch.full_like(part.x, math.inf) if solution is None else solution.x[rows]
        difference = (part.x - previous).abs().unsqueeze(-1).flatten(1).amax(1)
        solution = part if solution is None else replace_rows(solution, part, rows)
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


def replace_rows(solution: Solution, part: Solution, rows: Tensor) -> Solution:
    """A solution with some rows replaced by those of another, and the sums of the counts."""
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
