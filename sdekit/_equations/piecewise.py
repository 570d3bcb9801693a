"""Equations on a clock whose exponents change from step to step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from torch import Tensor

from sdekit._equations.clocked import on_arrays
from sdekit._equations.computed import computed
from sdekit._equations.quadrature import Panels, Rule
from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit.elementary import Time, axpy, broadcast

_ROUNDING = 1e-9  # of the length of a grid; exponents are the same so little beyond its ends


@dataclass(frozen=True, eq=False)
class PiecewiseClocked(AbstractSDE):
    """An equation on a clock that changes from step to step: dy = F(l, x) dA(l) + dB_{Q(l)} with
    x = y scale(l), where log A and log Q are linear on each step of a grid of l.

    This is `Clocked` with exponents that change from step to step. Its time is l, because Q may be
    constant on a step. With planned rules, such as `AdamsBashforth`, the weights and the noise of a
    step, N(0, Q(l_1) - Q(l_0)), are exact; for other solvers the drift and g jump between steps.

    Arguments:
        integrand: `F(l, x)`, shaped like x.
        scale: x / y as a function of l.
        l: the grid, increasing, `(points,)`.
        log_a: log A at the points of the grid, increasing.
        log_q: log Q there, not decreasing; steps on which it is constant have no noise.
        own, smooth: as in `AbstractClocked`.

    Raises:
        ValueError: unless l and log_a increase and log_q does not decrease, or for arrays of
            different shapes; in a solve with adaptive steps, or beyond the grid.

    Example:
        >>> from sdekit.elementary import scaled
        >>> l = sdekit.uniform(-3.0, 3.0, 20).numpy()
        >>> equation = sdekit.PiecewiseClocked(
        ...     lambda l, x: scaled(0.0, x), lambda l: 1.0, l, log_a=l, log_q=0.0 * l
        ... )
        >>> equation.noise_type
        'none'
    """

    integrand: Callable[[Time, Tensor], Tensor]
    scale: Callable[[Time], Time]
    l: np.ndarray
    log_a: np.ndarray
    log_q: np.ndarray
    own: Callable[[Time], Time] = lambda l: l
    smooth: Callable[[Time], Time] = lambda l: l

    def __post_init__(self) -> None:
        shapes = [np.shape(values) for values in (self.l, self.log_a, self.log_q)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0][0] < 2:
            raise ValueError(
                "l, log_a and log_q have one number for each point of the grid, of at least two "
                f"points; not the shapes {', '.join(map(str, shapes))}"
            )
        if not (
            (np.diff(self.l) > 0).all()
            and (np.diff(self.log_a) > 0).all()
            and (np.diff(self.log_q) >= 0).all()
        ):
            raise ValueError("l and log_a must increase, and log_q must not decrease")

    @computed
    def noise_type(self) -> NoiseType:
        return "additive" if self.log_q[-1] > self.log_q[0] else "none"

    def time(self, l: Time) -> Time:
        """l itself."""
        return l

    def parameter(self, t: Time) -> Time:
        """l itself."""
        return t

    def physical(self, t: Time, x: Tensor) -> Tensor:
        """The equation's x = y scale(l), from its y."""
        return x * broadcast(self.scale(t), x)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        return self.integrand(t, self.physical(t, x)) * self._rate(self.log_a, t)

    def diffusion(self, t: Time, x: Tensor) -> float:
        return self._rate(self.log_q, t) ** 0.5

    def tabulated(self, ts: Sequence[float]) -> Self:
        """The equation itself.

        Raises:
            ValueError: for times beyond the grid.
        """
        _require_inside(self.l, ts[0], ts[-1])
        return self

    def within(self, t0: float, t1: float) -> Self:
        """With the steps from t0 to t1 only, so that the slope at either end is that of a step
        between them.

        Raises:
            ValueError: for times beyond the grid.
        """
        _require_inside(self.l, t0, t1)
        low, high = sorted((t0, t1))
        last = len(self.l) - 1
        start = min(max(int(np.searchsorted(self.l, low, side="right")) - 1, 0), last - 1)
        stop = min(max(int(np.searchsorted(self.l, high)), start + 1), last)
        part = slice(start, stop + 1)
        return replace(self, l=self.l[part], log_a=self.log_a[part], log_q=self.log_q[part])

    def kick(self, t0: Time, t1: Time, x: Tensor, dw: Tensor | None) -> Tensor:
        if dw is None:
            return x
        start, stop = np.interp([float(t0), float(t1)], self.l, self.log_q).tolist()
        return axpy(math.sqrt(-math.exp(stop) * math.expm1(start - stop) / float(t1 - t0)), dw, x)

    def quadrature(
        self, rule: Rule, nodes: np.ndarray, t0: np.ndarray, t1: np.ndarray
    ) -> np.ndarray:
        start, stop = (np.interp(t, self.l, self.log_a) for t in (t0, t1))
        rate = (stop - start) / (t1 - t0)
        panels = Panels(nodes, t0, t1, rate, on_arrays(self.own), on_arrays(self.smooth))
        return rule(panels) * np.exp(stop)[:, None] / self._derivative(self.log_a, nodes)

    def _rate(self, log_values: np.ndarray, t: Time) -> float:
        if isinstance(t, Tensor) and t.ndim:
            raise ValueError(
                "this equation jumps where its steps meet, so each sample cannot have its own; use "
                "Clocked"
            )
        return float(self._derivative(log_values, np.asarray(t)))

    def _derivative(self, log_values: np.ndarray, l: np.ndarray) -> np.ndarray:
        """The derivative of the function with these logarithms; between two steps, that of the
        later one.
        """
        step = np.clip(np.searchsorted(self.l, l, side="right") - 1, 0, len(self.l) - 2)
        return (np.diff(log_values) / np.diff(self.l))[step] * np.exp(
            np.interp(l, self.l, log_values)
        )


def _require_inside(l: np.ndarray, t0: float, t1: float) -> None:
    """Refuses times beyond a grid by more than rounding, where the exponents are unknown.

    Raises:
        ValueError: with both.
    """
    low, high = sorted((t0, t1))
    rounding = _ROUNDING * (l[-1] - l[0])
    if low < l[0] - rounding or high > l[-1] + rounding:
        raise ValueError(
            f"the equation is given for l from {float(l[0])} to {float(l[-1])}, and the solve is "
            f"from {t0} to {t1}: give it a grid over the whole solve"
        )
