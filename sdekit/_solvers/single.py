"""One-step methods with the weights of multistep rules: all values come from within the step."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from sdekit._arguments.numbers import require_whole
from sdekit._equations.computed import computed
from sdekit._equations.quadrature import Panels
from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._solvers.contract import Order
from sdekit._solvers.planned import AbstractPlanned, Row


@dataclass(frozen=True, eq=False)
class AbstractSingleStep(AbstractPlanned):
    """A one-step method: x_1 = x_0 + the integral over [t_0, t_1] of the straight line through the
    slopes at the start and at the last stage + g((t_0 + t_1)/2) dW.

    Stages lie at fractions `c` of the step, in t, or for a `Clocked` problem in its parameter l.
    Each is computed in the same way, with the line through the slopes at the start and at the stage
    before. A subclass defines `c`, `order`, and `rule`, which computes the weights of the two
    slopes from the times.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class ExplicitMidpoint(sdekit.AbstractSingleStep):
        ...     order = {"none": sdekit.Order(2, 2)}
        ...     c = (0.5,)
        ...     def rule(self, panels):
        ...         return panels.exact()
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 50)
        >>> x = sdekit.solve(ode, torch.ones(1, 1).double(), ts, solver=ExplicitMidpoint()).x
        >>> round(float(x), 3)  # e^-1
        0.368
    """

    c: ClassVar[tuple[float, ...]]

    @abstractmethod
    def rule(self, panels: Panels) -> np.ndarray:
        """The weights of the values at panels.nodes, the newest first, `(steps, k)` with k = 1 or
        2, in units of A(stop), as those of `Panels.exact`.
        """

    def stage_times(self, problem: AbstractSDE, ts: Sequence[float]) -> Sequence[float]:
        starts = np.asarray(ts[:-1])
        ends = np.asarray(ts[1:])
        inner = [problem.between(starts, ends, c) for c in self.c if c != 1]
        return np.concatenate(inner).tolist() if inner else ()

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        starts = np.asarray(ts[:-1])
        ends = np.asarray(ts[1:])
        nodes = starts[:, None]
        stops = []
        weights = []
        for i, c in enumerate((*self.c, 1.0)):
            stops.append(ends if c == 1 else problem.between(starts, ends, c))
            line = problem.quadrature(self.rule, nodes, starts, stops[i])
            # The stages that are neither the start nor the last.
            between = np.zeros((len(starts), max(0, i - 1)))
            weights.append(map(tuple, np.hstack([line[:, :1], between, line[:, 1:]]).tolist()))
            nodes = np.column_stack([stops[i], starts])
        *stages, final = (
            list(zip(stop.tolist(), row, strict=True))
            for stop, row in zip(stops, weights, strict=True)
        )
        rows = zip(ts[:-1], zip(*stages, strict=True), final, strict=True)
        return replace(
            self,
            planned={
                t: Row(False, stages_of_step, weights_of_step, ())
                for t, stages_of_step, (_, weights_of_step) in rows
            },
        )


_NODES = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}  # of DPM-Solver-k


@dataclass(frozen=True, eq=False)
class DPMSolverSingle(AbstractSingleStep):
    """DPM-Solver++(kS) with data prediction, DPM-Solver-k with noise prediction: order k, for
    equations without noise.

    x_1 = x_0 + M_0 F_0 + M_1 (F_c - F_0) / c, where M_i is the integral of s^i dA over the step, s
    runs from 0 to 1 as l does, and F_c is F at the stage s = c. For k = 2, c = 1/2 and M_0/2 takes
    the place of M_1: this is the midpoint rule in l, with noise prediction k-diffusion's `dpm_2`.
    For k = 3, c = 2/3, and the state there is computed by the same formula from a stage at 1/3.

    Arguments:
        k: the number of evaluations per step, 2 or 3.

    Raises:
        ValueError: for another k.

    Example:
        >>> from sdekit.elementary import scaled, sigmoid, sqrt
        >>> sigma = lambda l: sqrt(sigmoid(-2 * l))
        >>> denoiser = lambda l, x: scaled(sqrt(sigmoid(2 * l)), x)  # of data from N(0, 1)
        >>> flow = sdekit.Clocked(denoiser, sigma, a=1.0)  # in y = x / sigma
        >>> ts, y = flow.time(sdekit.uniform(-3.0, 3.0, 100)), torch.ones(1, 1) / sigma(-3.0)
        >>> y = sdekit.solve(flow, y, ts, solver=sdekit.DPMSolverSingle(2)).x
        >>> round(float(y * sigma(3.0)), 2)  # the flow of normal data keeps x = 1
        1.0

    References:
        Lu et al. 2022, arXiv 2206.00927, algorithms 1 and 2; arXiv 2211.01095, algorithm 1
        (r_1 = 1/2).
    """

    k: int = 2

    def __post_init__(self) -> None:
        require_whole("k of DPMSolverSingle", self.k)
        if self.k not in (2, 3):
            raise ValueError(f"DPMSolverSingle is offered for k in 2, 3, not {self.k}")

    @computed
    def order(self) -> Mapping[NoiseType, Order]:
        return {"none": Order(self.k, self.k)}

    c: ClassVar[tuple[float, ...]] = computed(lambda self: _NODES[self.k])

    def rule(self, panels: Panels) -> np.ndarray:
        moments = panels.moments()
        if self.k == panels.k == 2:
            moments[:, 1] = moments[:, 0] / 2
        return panels.weights(moments)


@dataclass(frozen=True, eq=False)
class ClockedHeun(AbstractSingleStep):
    """Exponential Heun: x~ = x_0 + M_0 F_0 + g dW, then x_1 = x~ + M_1 (F(t_1, x~) - F_0).

    M_i is the integral of s^i dA over the step, where s runs from 0 to 1 as l does: the line
    through both slopes is integrated exactly against the clock. For problems in t, M_0 = dt and
    M_1 = dt/2, which is `Heun`. Two evaluations per step. The order is two; with additive noise the
    strong order is one and the weak order two. Predictor and corrector use the same dW.

    Example:
        >>> from sdekit.elementary import scaled, sigmoid, sqrt
        >>> sigma = lambda l: sqrt(sigmoid(-2 * l))
        >>> denoiser = lambda l, x: scaled(sqrt(sigmoid(2 * l)), x)  # of data from N(0, 1)
        >>> flow = sdekit.Clocked(denoiser, sigma, a=1.0)  # in y = x / sigma
        >>> ts, y = flow.time(sdekit.uniform(-3.0, 3.0, 100)), torch.ones(1, 1) / sigma(-3.0)
        >>> y = sdekit.solve(flow, y, ts, solver=sdekit.ClockedHeun()).x
        >>> round(float(y * sigma(3.0)), 2)  # the flow of normal data keeps x = 1
        1.0

    References:
        Hochbruck and Ostermann 2010, "Exponential integrators", section 2; Cox and Matthews 2002,
        ETD2RK.
    """

    order = {"none": Order(2, 2), "additive": Order(1, 2)}
    c = (1.0,)

    def rule(self, panels: Panels) -> np.ndarray:
        return panels.exact()
