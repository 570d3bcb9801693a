"""The integral of a divergence along trajectories: evaluated at Gauss nodes, many at a time,
on the dense output of every accepted step, and summed in float64.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._likelihood.divergence import AbstractTrace, quadratic_forms
from sdekit._solve.active import AcceptedSteps
from sdekit._solve.counted import Counted
from sdekit._solvers import AbstractSolver
from sdekit._solvers.contract import Tree

# The number of points on trajectories whose traces are evaluated together, for small events.
_ROWS = 1 << 12
_NUMBERS = 1 << 15  # the limit of their coordinates; at least one point per sample


class DivergenceIntegral:
    """Estimates of the integral of the divergence along trajectories, `(estimates, batch)`, from
    the accepted steps of a solve.

    The terms of a sample are added one by one in the order of its time, so that the result does not
    depend on the batch.
    """

    def __init__(
        self, flow: AbstractSDE, solver: AbstractSolver, trace: AbstractTrace, index: Tensor
    ) -> None:
        self.flow = flow
        self.solver = solver
        self.trace = trace
        self.index = index
        # The Gauss-Legendre rule on [0, 1]. With three nodes for order five the error of the
        # quadrature would be as large as that of the trajectory.
        nodes, weights = np.polynomial.legendre.leggauss(int(solver.order["none"].strong + 3) // 2)
        self.nodes, self.weights = (
            torch.from_numpy(part).to(index.device) for part in (0.5 + 0.5 * nodes, 0.5 * weights)
        )
        self.evaluations = torch.zeros_like(index)
        self._steps = torch.zeros_like(index)
        self._pending: list[tuple[AcceptedSteps, Tensor]] = []
        self._sums = index.new_zeros(max(1, trace.probes), len(index), dtype=torch.float64)

    def add(self, accepted: AcceptedSteps) -> None:
        """Adds steps; the traces are computed when there are enough of them.

        Raises:
            ValueError: for the steps of a solver that has no states within them.
        """
        if accepted.dense is None or type(self.solver).interpolate is AbstractSolver.interpolate:
            raise ValueError(
                f"{type(self.solver).__name__} has no interpolant of its order, which gives the "
                "states within a step that a likelihood needs: take Dopri5(), Dopri8() or, for a "
                "stiff equation, Rodas5P()"
            )
        self._pending.append((accepted, self._steps[accepted.samples]))
        self._steps[accepted.samples] += 1
        if sum(len(m.samples) for m, _ in self._pending) * len(self.nodes) >= self._block_size(
            accepted.x
        ):
            self._evaluate()

    def estimates(self) -> Tensor:
        """The integral, after the end of the solve."""
        self._evaluate()
        return self._sums

    def _block_size(self, x: Tensor) -> int:
        return max(len(self.index), min(_ROWS, _NUMBERS // max(1, math.prod(x.shape[1:]))))

    def _evaluate(self) -> None:
        if not self._pending:
            return
        batches, numbers = zip(*self._pending, strict=True)
        self._pending = []
        index, t0, t1, dense = (
            _concatenate([getattr(accepted, name) for accepted in batches])
            for name in ("samples", "t0", "t1", "dense")
        )
        flow = Counted.of(self.flow.rows(index), batches[0].x)
        dense = self.solver.dense(flow, t0, t1, dense)
        n = len(self.nodes)
        x = torch.stack(
            [self.solver.interpolate(dense, part.expand_as(t0)) for part in self.nodes], dim=1
        ).flatten(0, 1)
        t = torch.lerp(t0.unsqueeze(1), t1.unsqueeze(1), self.nodes).flatten()
        weight = torch.outer(t1 - t0, self.weights).flatten()
        rows = index.repeat_interleave(n)
        node = torch.cat(numbers).unsqueeze(1) * n + torch.arange(n, device=index.device)
        node = node.flatten()
        size = self._block_size(x)
        parts = (slice(i, i + size) for i in range(0, len(rows), size))
        traces = (
            torch.cat(
                [self._traces(t[part], x[part], rows[part], node[part]) for part in parts], dim=1
            )
            * weight
        )
        integrals = sum(traces.unflatten(1, (-1, n)).unbind(2))
        assert isinstance(integrals, Tensor)
        sizes = [len(accepted.samples) for accepted in batches]
        for accepted, integral in zip(batches, integrals.split(sizes, dim=1), strict=True):
            # Every sample occurs once per batch, so its terms are added in the order of time.
            self._sums = self._sums.index_add(1, accepted.samples, integral)
        self.evaluations.index_add_(0, index, torch.full_like(index, flow.evaluations + n))

    def _traces(self, t: Tensor, x: Tensor, rows: Tensor, node: Tensor) -> Tensor:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if create_graph and x.requires_grad else x.detach().requires_grad_()
            drift = partial(self.flow.rows(rows).drift, t)
            vectors = self.trace.vectors(x.detach(), self.index[rows], node)
            return self.trace.estimates(
                quadratic_forms(drift, x, vectors, create_graph=create_graph)
            )


def _concatenate(trees: Sequence[Tree]) -> Tree:
    """Several trees as one, by concatenating their tensors."""
    if isinstance(trees[0], Tensor):
        return torch.cat(list(trees))
    return tuple(_concatenate(parts) for parts in zip(*trees, strict=True))
