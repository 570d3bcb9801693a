"""Weights of multistep rules with which each step follows solutions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sdekit import AbstractSDE, Point, Solution
from sdekit_diffusion._sampling.method import ReverseProblem
from sdekit_diffusion._sampling.on_clock import OnClock
from sdekit_diffusion._sampling.on_grid import Transformed
from sdekit_diffusion._sampling.weighted_rule import WeightedRule, Weights, clock_lengths

_REWEIGHTINGS = 2
_SMALLEST = 1e-3  # of an error over the mean error, in the weight of a sample
_RANK = 1e-6  # of a direction of the values over the largest one; smaller ones are rounding


class Path(NamedTuple):
    """Solutions of the probability flow.

    l: equidistant times. u: the states at these times, `(batch, *event)` each.
    """

    l: Tensor
    u: Sequence[Tensor]

    def at(self, l: Tensor) -> list[Tensor]:
        """The states at other times, on the cubics through those at the four nearest times."""
        states = []
        for time in l.tolist():
            i = int(torch.searchsorted(self.l, time)) - 2
            i = min(max(i, 0), len(self.l) - 4)
            nodes = self.l[i : i + 4].tolist()
            weights = [
                math.prod([(time - other) / (node - other) for other in nodes if other != node])
                for node in nodes
            ]
            terms = [w * u for w, u in zip(weights, self.u[i : i + 4], strict=True)]
            states.append(torch.stack(terms).sum(dim=0))
        return states


@dataclass(frozen=True, eq=False)
class Recording(OnClock):
    """A method that records its solution.

    Arguments:
        paths: a list, to which `run` appends the solution.
    """

    paths: list[Path] = field(default_factory=list, kw_only=True)

    def run(self, problem: ReverseProblem) -> Solution:
        states: list[Point] = []
        solution = super().run(replace(problem, callback=states.append))
        times = torch.tensor([point.t for point in states], dtype=torch.float64)
        self.paths.append(Path(times, [point.x for point in states]))
        return solution


@dataclass(frozen=True, eq=False)
class _FittedRule(WeightedRule):
    """A `WeightedRule` whose weights of each step are those with which its end is nearest to a
    given state, by iteratively reweighted least squares over all samples.

    Arguments:
        states: the states at the points of the grid.
        fitted: a list, to which each step appends its weights.
    """

    weights: Weights = ()
    states: Sequence[Tensor] = ()
    fitted: list[tuple[float, ...]] = field(default_factory=list, kw_only=True)
    goals: Mapping[float, tuple[float, Tensor]] = field(default_factory=dict, kw_only=True)

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        goals = zip(clock_lengths(problem, ts), self.states[1:], strict=True)
        return replace(self, goals=dict(zip(ts[:-1], goals, strict=True)))

    def weights_of(self, t0: float, x: Tensor, slopes: Sequence[Tensor]) -> Sequence[float]:
        length, goal = self.goals[t0]
        weights = _weights(goal - x, slopes)
        self.fitted.append(tuple([weight / length for weight in weights]))
        return weights


@dataclass(frozen=True, eq=False)
class FittingWeights(OnClock):
    """A method that fits the weights of its steps, so that its states follow solutions.

    Arguments:
        path: the solutions, from the same x_T.
        fitted: a list, to which each step appends its weights.
    """

    path: Path | None = field(default=None, kw_only=True)
    fitted: list[tuple[float, ...]] = field(default_factory=list, kw_only=True)

    def transformed(self, problem: ReverseProblem, grid: Tensor) -> Transformed:
        assert self.path is not None
        whole = super().transformed(problem, grid)
        states = [whole.from_u(i, u) for i, u in enumerate(self.path.at(grid))]
        return whole._replace(solver=_FittedRule(states=states, fitted=self.fitted))


def _weights(change: Tensor, slopes: Sequence[Tensor]) -> list[float]:
    """The weights w that nearly minimise sum_i |change_i - sum_j w_j f_ij| over the samples i, by
    iteratively reweighted least squares; not numbers where the values are not finite.
    """
    columns = (
        torch.stack([*slopes, change], dim=-1).double().reshape(len(change), -1, len(slopes) + 1)
    )
    scale = torch.ones_like(columns[:, :1, :1])
    weights = np.zeros(len(slopes))
    for _ in range(1 + _REWEIGHTINGS):
        rows = (scale * columns).reshape(-1, columns.shape[-1])
        r = torch.linalg.qr(rows, mode="r").R.cpu().numpy()  # the same least squares, of few rows
        if not np.isfinite(r).all():  # then `solve` refuses the state after the step
            return [math.nan] * len(slopes)
        weights = np.linalg.lstsq(r[:, :-1], r[:, -1], rcond=_RANK)[0]
        remaining = columns @ torch.tensor([*-weights, 1.0], device=columns.device).to(columns)
        errors = remaining.norm(dim=1)
        smallest = _SMALLEST * errors.mean() + torch.finfo(errors.dtype).tiny
        scale = errors.clamp(min=smallest).rsqrt()[:, np.newaxis, np.newaxis]
    return weights.tolist()
