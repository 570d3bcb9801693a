"""Equations whose linear part has been integrated exactly, in the time in which their noise is a
standard Brownian motion: the clock.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sdekit._equations.computed import computed, with_computed
from sdekit._equations.quadrature import Panels, Rule
from sdekit._equations.sde import AbstractSDE, NoiseType, Slope
from sdekit.elementary import Time, atan, broadcast, exp, log, scaled, tan

Coefficients = tuple[Time, Time, Time]
Prepare = Callable[[Sequence[float], Callable[[], Coefficients]], Sequence[Slope] | None]


@dataclass(frozen=True, eq=False)
class AbstractClocked(AbstractSDE, ABC):
    """An equation on a clock: dy = F(l, x) dA(l) + dB with x = y scale(l), in a time tau in which B
    is a standard Brownian motion:

        dy = F dA/dtau dtau + dB_tau.

    tau is the time of the equation, in which the ts of a solve are given. l is a parameter of this
    time; for a diffusion it is log(alpha / sigma), which increases from noise to data.

    Arguments:
        integrand: `F(l, x)`, shaped like x; l is a float or `(batch,)`.
        scale: x / y as a function of l; like own and smooth it is called with floats and with
            tensors.
        own: the time of the published equation as a function of l, such as the t of a diffusion;
            some rules interpolate in it.
        smooth: a monotone function of l in which F is nearly a polynomial.
        prepare: `prepare(ts, levels)` returns one function y -> rate F(l_i, scale_i y) per time of
            the grid ts, see `slopes` of `AbstractSDE`; `levels()` returns l, scale and rate at
            these times as float64 tensors. None, or the result None, if this saves nothing.
        plans: a cache of the plans of multistep rules; it may be shared by equations with the same
            clock, `own` and `smooth`.
        table: the values of `at` at the times of a grid; `tabulated` fills it in.
        slopes: the functions of `prepare` by their times; `tabulated` fills it in.

    Example:
        >>> from sdekit.elementary import scaled
        >>> flow = sdekit.Clocked(lambda l, x: scaled(0.0, x), lambda l: 1.0, a=2.0)
        >>> isinstance(flow, sdekit.AbstractClocked)
        True
        >>> flow.parameter(flow.time(0.5))  # l to the time of the equation, and back
        0.5
    """

    integrand: Callable[[Time, Tensor], Tensor]
    scale: Callable[[Time], Time]
    own: Callable[[Time], Time] = field(default=lambda l: l, kw_only=True)
    smooth: Callable[[Time], Time] = field(default=lambda l: l, kw_only=True)
    prepare: Prepare | None = field(default=None, repr=False, kw_only=True)
    plans: MutableMapping[Hashable, Any] | None = field(default=None, repr=False, kw_only=True)
    table: Mapping[float, tuple[float, float, float]] = field(
        default_factory=dict, repr=False, kw_only=True
    )
    slopes: Mapping[float, Slope] = field(default_factory=dict, repr=False, kw_only=True)

    @property
    def constant_rate(self) -> bool:
        """Whether dA / dtau is 1."""
        return True

    @abstractmethod
    def time(self, l: Time) -> Time:
        """The time at l."""

    @abstractmethod
    def parameter(self, t: Time) -> Time:
        """l at a time."""

    @abstractmethod
    def rate(self, l: Time) -> Time:
        """dA / dtau at l."""

    def at(self, t: Time) -> Coefficients:
        """l, the scale and the rate at a time of the equation."""
        l = self.parameter(t)
        return l, self.scale(l), self.rate(l)

    def tabulated(self, ts: Sequence[float]) -> Self:
        def levels() -> Coefficients:
            return self.at(torch.tensor(ts, dtype=torch.float64))

        functions = None if self.prepare is None else self.prepare(ts, levels)
        if functions is not None:
            return with_computed(self, slopes=dict(zip(ts, functions, strict=True)))
        parts = (torch.as_tensor(part, dtype=torch.float64) for part in levels())
        rows = (part.expand(len(ts)).tolist() for part in parts)
        return with_computed(self, table=dict(zip(ts, zip(*rows, strict=True), strict=True)))

    def _drift(self, l: Time, scale: Time, rate: Time, x: Tensor) -> Tensor:
        """F(l, scale y) dA/dtau."""
        f = self.integrand(l, scaled(scale, x))
        return f if self.constant_rate else scaled(rate, f)

    def physical(self, t: Time, x: Tensor) -> Tensor:
        """The equation's x = y scale(l) at a time, from its y."""
        return x * broadcast(self.scale(self.parameter(t)), x)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        coefficients = None if isinstance(t, Tensor) else self.table.get(t)
        return self._drift(*(coefficients or self.at(t)), x)

    def diffusion(self, t: Time, x: Tensor) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class Clocked(AbstractClocked):
    """An equation on an exponential clock: dy = F(l, x) dA(l) + dB_{Q(l)} with x = y scale(l),
    A(l) = e^{a l} and Q(l) = e^{q l}.

    This is a semi-linear equation in a variable y in which the linear part is gone. Its time is its
    clock: tau = Q(l), in which the noise is a standard Brownian motion, or tau = A(l) without
    noise. So any solver applies.

    Multistep rules interpolate F as a polynomial in l, in `smooth` or in `own`, and integrate it
    against dA.

    Arguments:
        integrand, scale, own, smooth, prepare, plans: as in `AbstractClocked`.
        a: the exponent of A, not zero.
        q: the exponent of Q; 0 for an ordinary equation.

    Raises:
        ValueError: for a = 0, a negative q, or exponents that are not finite.

    Example:
        >>> from sdekit.elementary import scaled, sigmoid, sqrt
        >>> sigma = lambda l: sqrt(sigmoid(-2 * l))
        >>> denoiser = lambda l, x: scaled(sqrt(sigmoid(2 * l)), x)  # of data from N(0, 1)
        >>> flow = sdekit.Clocked(denoiser, sigma, a=1.0)  # in y = x / sigma
        >>> ts, y = flow.time(sdekit.uniform(-3.0, 3.0, 100)), torch.ones(1, 1) / sigma(-3.0)
        >>> y = sdekit.solve(flow, y, ts, solver=sdekit.AdamsBashforth(2)).x
        >>> round(float(y * sigma(3.0)), 2)  # the flow of normal data keeps x = 1
        1.0
    """

    a: float
    q: float = 0.0

    def __post_init__(self) -> None:
        if not (self.a and math.isfinite(self.a) and 0 <= self.q < math.inf):
            raise ValueError(
                f"the exponents must be finite, a != 0 and q >= 0, not a = {self.a} and "
                f"q = {self.q}"
            )

    @computed
    def noise_type(self) -> NoiseType:
        return "additive" if self.q else "none"

    @property
    def constant_rate(self) -> bool:
        return self.a == self.q or not self.q

    def time(self, l: Time) -> Time:
        """The clock at l."""
        return exp((self.q or self.a) * l)

    def parameter(self, t: Time) -> Time:
        """l at a time of the clock."""
        return log(t) / (self.q or self.a)

    def rate(self, l: Time) -> Time:
        """dA / dtau at l."""
        return self.a / self.q * exp((self.a - self.q) * l) if self.q else 1.0

    def quadrature(
        self, rule: Rule, nodes: np.ndarray, t0: np.ndarray, t1: np.ndarray
    ) -> np.ndarray:
        clock = self.q or self.a
        l = np.log(nodes) / clock
        start = np.log(t0) / clock
        stop = np.log(t1) / clock
        rate = self.a / self.q * np.exp((self.a - self.q) * l) if self.q else 1.0
        panels = Panels(l, start, stop, self.a, on_arrays(self.own), on_arrays(self.smooth))
        return rule(panels) * np.exp(self.a * stop)[:, None] / rate

    def between(self, t0: np.ndarray, t1: np.ndarray, c: float) -> np.ndarray:
        return t0 * (t1 / t0) ** c


@dataclass(frozen=True, eq=False)
class AngleClocked(AbstractClocked):
    """An equation without noise on the clock of an angle: dy = F(l, x) dA(l) with x = y scale(l)
    and A(l) = -arctan(e^{-l} / c), from -pi/2 to 0.

    Its time is A. Multistep rules interpolate F as a polynomial in A, which they use in place of l,
    in `smooth` or in `own`.

    Arguments:
        integrand, scale, own, smooth, prepare, plans: as in `AbstractClocked`.
        c: positive; the angle is -pi/4 at l = -log c.

    Raises:
        ValueError: for a c that is not positive and finite.

    Example:
        >>> from sdekit.elementary import scaled
        >>> flow = sdekit.AngleClocked(lambda l, x: scaled(0.0, x), lambda l: 1.0, c=1.0)
        >>> round(flow.time(0.0), 4)  # -pi / 4
        -0.7854
    """

    noise_type = "none"

    c: float

    def __post_init__(self) -> None:
        if not 0 < self.c < math.inf:
            raise ValueError(f"c must be a positive number, not {self.c}")

    def time(self, l: Time) -> Time:
        """The angle at l."""
        return -atan(exp(-l) / self.c)

    def parameter(self, t: Time) -> Time:
        """l at an angle, a time of the equation."""
        return -log(self.c * tan(-t))

    def rate(self, l: Time) -> float:
        """dA / dtau at l, which is 1: the time is A."""
        return 1.0

    def quadrature(
        self, rule: Rule, nodes: np.ndarray, t0: np.ndarray, t1: np.ndarray
    ) -> np.ndarray:
        own, smooth = (
            on_arrays(lambda t, f=f: f(self.parameter(t))) for f in (self.own, self.smooth)
        )
        return rule(Panels(nodes, t0, t1, own=own, smooth=smooth))


def on_arrays(function: Callable[[Time], Time]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of floats and tensors as a function of numpy arrays."""
    return lambda l: np.asarray(function(torch.from_numpy(l)))
