"""Steps planned before a solve: the times at which slopes are evaluated, and their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Step, Tree
from sdekit.elementary import Time, combined


class Row(NamedTuple):
    """The plan of one step; weights are those of the slopes, the newest first.

    slope_known: whether the state of the solver contains the slope at t_0. stages: the times of the
    stages, and the weights of the states there. weights: those of x_1. kept_slopes: the indices of
    the slopes that are passed to the next step. correction: the weights of the correction of x_1,
    the first of them that of the slope at x_1; empty without correction. units: the factors by
    which the slopes of `weights` are multiplied, and at the end that of the slope at x_1.
    keeps_newest: whether the slopes that are passed on are the newest ones.
    """

    slope_known: bool
    stages: tuple[tuple[float, tuple[float, ...]], ...]
    weights: tuple[float, ...]
    kept_slopes: tuple[int, ...]
    correction: tuple[float, ...] = ()
    units: tuple[float, ...] = (1.0, 1.0)
    keeps_newest: bool = False


@dataclass(frozen=True, eq=False)
class AbstractPlanned(AbstractSolver):
    """x_1 = x_0 + sum_j w_j f_j + g((t_0 + t_1)/2) dW with weights of each step that are computed
    in advance, by `plan` of a subclass.

    Arguments:
        planned: the steps of a grid by their t_0; `plan` fills it in.
    """

    stepwise = True

    planned: Mapping[float, Row] = field(default_factory=dict, repr=False, kw_only=True)

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        assert isinstance(t0, float), "planned weights belong to a fixed grid"
        slope_known, stages, weights, kept, correction, units, keeps_newest = self.planned[t0]
        noisy = x if noise.w is None else problem.kick(t0, t1, x, noise.w)
        if not (stages or state or kept):
            return Step(problem.drift_at(t0)(x, weights[0], noisy))
        slopes = state if slope_known else (problem.drift_at(t0)(x, units[0]), *state)
        for t, stage_weights in stages:
            slopes = (problem.drift(t, combined(noisy, stage_weights, slopes)), *slopes)
        end = combined(noisy, weights, slopes)
        if correction:
            slopes = (problem.drift_at(t1)(end, units[-1]), *slopes)
        # A slice takes less time than a comprehension.
        rest = slopes[: len(kept)] if keeps_newest else tuple([slopes[i] for i in kept])
        return Step(end, None, None, rest)

    def restarted(self, problem: AbstractSDE, t0: Time, x: Tensor, state: Tree) -> Tree:
        assert isinstance(t0, float), "planned weights belong to a fixed grid"
        row = self.planned[t0]
        return (problem.drift_at(t0)(x, row.units[0]), *state[1:]) if row.slope_known else state

    def mean_weights(self, t0: float, t1: float) -> Sequence[float]:
        row = self.planned[t0]
        if row.stages:
            return super().mean_weights(t0, t1)
        return [weight * unit for weight, unit in zip(row.weights, row.units, strict=False)]

    def output(self, t0: float, x: Tensor, state: Tree) -> Tensor:
        return combined(x, self.planned[t0].correction, state)


def units_of(problem: AbstractSDE, ts: Sequence[float]) -> list[float]:
    """The units of the slopes at the times of a grid; 1 where a slope has none."""
    slopes = problem.slopes
    return [getattr(slopes.get(t), "unit", 1.0) for t in ts]


def in_units(rows: Sequence[Row], units: Sequence[float]) -> list[Row]:
    """The same steps with slopes that are multiplied by their units if they are kept.

    Arguments:
        rows: the steps of a grid, of which only the first may have stages.
        units: the units of the slopes at the times of the grid.
    """
    converted = []
    kept: list[float] = []
    for (start, end), row in zip(pairwise(units), rows, strict=True):
        used = kept
        if not row.slope_known:
            is_plain = bool(row.stages) or not row.kept_slopes
            used = [1.0 if is_plain else start, *kept]
        used = [1.0] * len(row.stages) + used
        slopes = [end, *used] if row.correction else used
        converted.append(
            row._replace(
                weights=_divided(row.weights, used),
                correction=_divided(row.correction, slopes),
                units=(*used, end),
                keeps_newest=row.kept_slopes == tuple(range(len(row.kept_slopes))),
            )
        )
        kept = [slopes[i] for i in row.kept_slopes]
    return converted


def _divided(weights: Sequence[float], units: Sequence[float]) -> tuple[float, ...]:
    return tuple([weight / unit for weight, unit in zip(weights, units, strict=False)])
