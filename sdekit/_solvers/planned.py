"""Steps planned in numbers before a solve: where slopes are evaluated, and the weights that they
get.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Step, Tree
from sdekit.elementary import Time, axpy


class Row(NamedTuple):
    """One step in numbers; weights are those of the slopes, the newest first.

    known: whether the state holds the slope at t_0. stages: where slopes are evaluated on the way,
    and the weights with which one gets there. weights: of the step. kept: which slopes the next
    step is given.
    """

    known: bool
    stages: tuple[tuple[float, tuple[float, ...]], ...]
    weights: tuple[float, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AbstractPlanned(AbstractSolver):
    """x_1 = x_0 + sum_j w_j f_j + g((t_0 + t_1)/2) dW with weights of each step, which `plan` of a
    subclass computes.

    Arguments:
        planned: the steps of a grid by their t_0; `plan` fills it in.
    """

    stepwise = True

    planned: Mapping[float, Row] = field(default_factory=dict, repr=False, kw_only=True)

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        assert isinstance(t0, float), "planned weights belong to a fixed grid"
        known, stages, weights, kept = self.planned[t0]
        slopes = state if known else (problem.drift(t0, x), *state)
        kicked = x if noise.w is None else problem.kick(t0, t1, x, noise.w)
        for t, on_the_way in stages:
            slopes = (problem.drift(t, _moved(kicked, on_the_way, slopes)), *slopes)
        return Step(_moved(kicked, weights, slopes), None, None, tuple([slopes[i] for i in kept]))


def _moved(x: Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + sum_j w_j f_j over the newest values, as many as there are weights."""
    add = torch.add if x.dtype.itemsize >= 4 else None  # see `axpy`, which this loop spares
    for weight, slope in zip(weights, slopes, strict=False):
        x = axpy(weight, slope, x) if add is None else add(x, slope, alpha=weight)
    return x
