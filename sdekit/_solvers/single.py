"""Single-step methods with the weights of multistep rules; all values come from within the step."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from sdekit._common.computed import computed
from sdekit._equations.quadrature import Panels
from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._solvers.contract import Order
from sdekit._solvers.planned import AbstractPlanned, Row


@dataclass(frozen=True, eq=False)
class AbstractSingleStep(AbstractPlanned):
    """x_1 = x_0 + the integral over [t_0, t_1] of the line through the slopes at the start and at
    the last stage.

    Stages lie at fractions `c` of the step, in t, or for a `Clocked` problem in its parameter l;
    each is reached along the line through the start and the previous stage. A subclass defines `c`,
    `order`, and `rule`, which computes the weights of a line from the times.

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
        """The weights of the values at panels.nodes, newest first, `(steps, k)`, divided by
        A(stop).

        k is 1 or 2.
        """

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
    """DPM-Solver++(kS) with data prediction, DPM-Solver-k with noise prediction: order k.

    x_1 = x_0 + M_0 F_0 + M_1 (F_c - F_0) / c, with M_i the integrals of s^i dA over the step and s
    from 0 to 1 in l. For k = 2 c = 1/2, and M_0/2 takes the place of M_1: the midpoint rule in l,
    k-diffusion's `dpm_2` with noise prediction. For k = 3 c = 2/3, and F_c is computed with one
    more stage at 1/3 by the same formula. For equations without noise.

    Arguments:
        k: evaluations per step, 2 or 3.

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

    M_i is the integral of s^i dA over the step.

    s runs from 0 to 1 over the step in l: the line through both slopes is integrated exactly
    against the clock. In t M_0 = dt, M_1 = dt/2, and it is `Heun`. Two evaluations per step,
    order two; with additive noise strong order one and weak order two; predictor and corrector
    share dW.

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
