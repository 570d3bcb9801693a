"""Multistep rules with weights of their own for each step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import methodcaller
from typing import Self

import numpy as np
from torch import Tensor

from sdekit import AbstractSDE, AbstractSolver, Increment, Order, Step
from sdekit.elementary import Time, combined

Weights = tuple[tuple[float, ...], ...]

VALUES = 4  # of slopes in a step


@dataclass(frozen=True, eq=False)
class WeightedRule(AbstractSolver):
    """The rule x_{n+1} = x_n + A_n sum_j w_nj f_{n-j}, with f_{n-j} the slope at t_{n-j}.

    A_n is the integral of the clock's rate over the step, for equations without a clock its length.
    The rule is consistent where the weights of each step sum to one.

    Arguments:
        weights: w_n of each step, the newest value first; step n, counted from 1, has at most n of
            them, and at most four.

    Raises:
        ValueError: for weights that are not finite numbers, or more or fewer of them; in a solve,
            for a grid with another number of steps.
    """

    order = {"none": Order(1, 1)}

    weights: Weights
    planned: Mapping[float, tuple[float, ...]] = field(
        default_factory=dict, repr=False, kw_only=True
    )

    def __post_init__(self) -> None:
        for n, row in enumerate(self.weights, 1):
            numbers = isinstance(row, tuple) and all(map(_is_finite, row))
            if not numbers or not 1 <= len(row) <= min(n, VALUES):
                raise ValueError(
                    f"the weights of step {n} are {row!r}; they must be finite numbers, from 1 to "
                    f"{min(n, VALUES)} of them"
                )

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        if len(self.weights) != len(ts) - 1:
            raise ValueError(
                f"this rule has weights for {len(self.weights)} steps, and the grid has "
                f"{len(ts) - 1}"
            )
        rows = zip(clock_lengths(problem, ts), self.weights, strict=True)
        planned = [tuple([length * weight for weight in row]) for length, row in rows]
        return replace(self, planned=dict(zip(ts[:-1], planned, strict=True)))

    def step(
        self,
        problem: AbstractSDE,
        t0: Time,
        t1: Time,
        x: Tensor,
        noise: Increment,
        state: tuple[Tensor, ...],
    ) -> Step:
        assert isinstance(t0, float), "planned weights belong to a fixed grid"
        slopes = (problem.drift(t0, x), *state)
        x = combined(x, self.weights_of(t0, x, slopes), slopes)
        return Step(x, None, None, slopes[: VALUES - 1])

    def weights_of(self, t0: float, x: Tensor, slopes: Sequence[Tensor]) -> Sequence[float]:
        """A_n w_n for the step from x at t0."""
        return self.planned[t0]

    def restarted(
        self, problem: AbstractSDE, t0: Time, x: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return state


def _is_finite(weight: object) -> bool:
    return isinstance(weight, float | int) and math.isfinite(weight)


def clock_lengths(problem: AbstractSDE, ts: Sequence[float]) -> list[float]:
    """A_n of each step."""
    grid = np.asarray(ts)
    starts = grid[:-1]
    exact = methodcaller("exact")  # the integral of the rate
    return problem.quadrature(exact, starts[:, np.newaxis], starts, grid[1:])[:, 0].tolist()
