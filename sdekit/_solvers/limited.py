"""A multistep method with limiters: it extrapolates and corrects only as far as the slopes keep
their direction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sdekit._equations.computed import computed
from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit._solvers.planned import Row
from sdekit._solvers.published import UniPC
from sdekit.elementary import Time, axpy


@dataclass(frozen=True, eq=False)
class LimitedUniPC(UniPC):
    """UniPC-2 with limiters, for ordinary equations that are stiff for the steps that are taken,
    such as the probability flow under strong guidance in few steps.

    With d_1 = f_1 - f_0 and d_0 = f_0 - f_{-1}, the differences of the slopes of a sample, and
    phi_n = max(0, cos(d_n, d_{n-1})), a prediction and its correction are

        p   = P_1 + phi_0 (P_2 - P_1),
        x_1 = p + min(1, 1 + cos(d_1, d_0)) (C_1 + phi_1 (C_2 - C_1) - p),

    where P_k and C_k are the predicted and the corrected states of UniPC-k; a cosine with a
    difference of 0 counts as 0. The first step is C_1, the second predicts P_1, and the last is
    not corrected. Where the slopes are smooth, the cosines are near 1 and this is UniPC-2. Where a
    slope turns back, as it does in a stiff direction, extrapolation makes the error larger; there
    the next prediction uses one value, and the correction is small or none.

    x is corrected before the next step. After a change of x by the caller the next prediction is
    P_1. Derivatives take the cosines as constants.

    Arguments:
        k: 2.
        form, lower_final, steps_after: as in `UniPC`; self_starting has no effect.

    Raises:
        ValueError: for another k or form; in a solve, for equations with noise.

    Example:
        >>> from sdekit.elementary import scaled, sigmoid, sqrt
        >>> sigma = lambda l: sqrt(sigmoid(-2 * l))
        >>> denoiser = lambda l, x: scaled(sqrt(sigmoid(2 * l)), x)  # of data from N(0, 1)
        >>> flow = sdekit.Clocked(denoiser, sigma, a=1.0)  # in y = x / sigma
        >>> ts, y = flow.time(sdekit.uniform(-3.0, 3.0, 100)), torch.ones(1, 1) / sigma(-3.0)
        >>> y = sdekit.solve(flow, y, ts, solver=sdekit.LimitedUniPC()).x
        >>> round(float(y * sigma(3.0)), 2)  # the flow of normal data keeps x = 1
        1.0

    References:
        Zhao et al. 2023, arXiv 2302.04867, for UniPC; limiters are those of schemes for hyperbolic
        equations: LeVeque 2002, "Finite volume methods for hyperbolic problems", chapter 6.
    """

    accuracy = {2: 3}
    k: int = 2

    @computed
    def order(self) -> Mapping[NoiseType, Order]:
        return {"none": super().order["none"]}

    def _compute_plan(self, problem: AbstractSDE, ts: Sequence[float]) -> dict[float, Row]:
        """The steps of a grid by their t_0. The weights are those of f_0 and of f_{-1} - f_0 in
        P_2; the correction has those of d_1 in C_1, of d_1 in C_2 - C_1 and of f_{-1} - f_0 in C_2.
        """
        grid = np.asarray(ts)
        starts = grid[:-1]
        ends = grid[1:]
        later = starts[1:], ends[1:]
        before = np.column_stack([starts[1:], starts[:-1]])
        line = problem.quadrature(self.rule, np.column_stack([ends, starts]), starts, ends)
        predicted = problem.quadrature(self.rule, before, *later)
        parabola = problem.quadrature(self.rule, np.column_stack([ends[1:], before]), *later)
        weights = np.zeros((len(starts), 5))
        weights[:, 0] = line.sum(axis=1)
        weights[1:, 1] = predicted[:, 1]
        weights[:, 2] = line[:, 0]
        weights[1:, 3] = parabola[:, 0] - line[1:, 0]
        weights[1:, 4] = parabola[:, 2]
        count = len(starts) + self.steps_after
        if not self.steps_after and (self.lower_final is True or count < self.lower_final):
            weights[-1, 1] = 0.0
        rows = [
            Row(i > 0, (), tuple(row[:2]), (), tuple(row[2:]))
            for i, row in enumerate(weights.tolist())
        ]
        rows[-1] = rows[-1]._replace(correction=())
        return dict(zip(ts[:-1], rows, strict=True))

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        """The state has f_0, then f_{-1}, then the cosine of d_0 and d_{-1}."""
        assert isinstance(t0, float), "planned weights belong to a fixed grid"
        row = self.planned[t0]
        slope, *earlier = state or (problem.drift(t0, x),)
        whole, weight = row.weights
        end = axpy(whole, slope, x)
        back = earlier[0] - slope if earlier else None
        extrapolated = weight * earlier[1].clamp(min=0.0) if len(earlier) > 1 else 0.0
        if back is not None and len(earlier) > 1:
            end = axpy(extrapolated, back, end)
        if not row.correction:
            return Step(end)
        new = problem.drift(t1, end)
        change = new - slope
        line, parabola, third = row.correction
        if back is None:
            return Step(axpy(line, change, end), None, None, (new, slope))
        cosine = _cosine(change, -back)
        forward = cosine.clamp(min=0.0)
        part = (1 + cosine).clamp(max=1.0)
        end = axpy(part * (line + forward * parabola), change, end)
        end = axpy(part * (forward * third - extrapolated), back, end)
        return Step(end, None, None, (new, slope, cosine))

    def restarted(self, problem: AbstractSDE, t0: Time, x: Tensor, state: Tree) -> Tree:
        return tuple(super().restarted(problem, t0, x, state))[:2]

    def mean_weights(self, t0: float, t1: float) -> Sequence[float]:
        return AbstractSolver.mean_weights(self, t0, t1)

    def output(self, t0: float, x: Tensor, state: Tree) -> Tensor:
        return x


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of the angle between two states of each sample, `(batch,)`; 0 where one is 0."""
    return cosine_similarity(_directions(a), _directions(b), dim=1).clamp(-1.0, 1.0)


def _directions(x: Tensor) -> Tensor:
    """The states as rows with a largest absolute value of 1, or 0 where it is 0, in float32 or
    float64.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = x.detach().reshape(len(x), math.prod(x.shape[1:])).to(wide)
    if not rows.shape[1]:
        return rows
    largest = rows.abs().amax(dim=1, keepdim=True)
    return rows / torch.where(largest > 0, largest, 1.0)
