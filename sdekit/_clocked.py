"""Equations whose linear part is already integrated, run on the clock of their own noise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdekit._quadrature import Panels, Rule
from sdekit._sde import AbstractSDE, NoiseType
from sdekit.elementary import Time, broadcast, exp, log


@dataclass(frozen=True, eq=False)
class Clocked(AbstractSDE):
    """dy = F(l, x) dA(l) + dB_{Q(l)} with x = y scale(l), A(l) = e^{a l}, Q(l) = e^{q l}.

    A semi-linear equation in the variable y that removes its linear part. Its time is its clock: tau = Q(l), on which the
    noise is a standard Brownian motion, or tau = A(l) where there is none, so that any solver applies:

        dy = F(l, x) dA/dtau dtau + dB_tau.

    Multistep rules interpolate F as a polynomial in l, in a variable where it is smooth, or as their authors chose, and
    integrate against dA.

    Arguments:
        integrand: `F(l, x)`, shaped like x; l is a float, or `(batch,)`.
        scale: x / y as a function of l.
        a: the exponent of A, not zero.
        q: the exponent of Q; 0 for an ordinary equation.
        own: the time in which F is known outside, as a function of l: a diffusion's t, in which some rules interpolate.
        smooth: a monotone function of l in which F is nearly a polynomial.
    """

    integrand: Callable[[Time, Tensor], Tensor]
    scale: Callable[[Time], Time]
    a: float
    q: float = 0.0
    own: Callable[[Time], Time] = lambda l: l
    smooth: Callable[[Time], Time] = lambda l: l

    def __post_init__(self) -> None:
        if not self.a or self.q < 0:
            raise ValueError(f"the exponents must be a != 0 and q >= 0, not a = {self.a} and q = {self.q}")

    @property
    def noise_type(self) -> NoiseType:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "additive" if self.q else "none"

    def time(self, l: Time) -> Time:
        """The clock at l."""
        return exp((self.q or self.a) * l)

    def parameter(self, t: Time) -> Time:
        """l at a time of the clock."""
        return log(t) / (self.q or self.a)

    def rate(self, l: Time) -> Time:
        """dA / dtau at l."""
        return self.a / self.q * exp((self.a - self.q) * l) if self.q else 1.0

    def physical(self, t: Time, x: Tensor) -> Tensor:
        """The equation's x = y scale(l) at a time of the clock, from its y."""
        return x * broadcast(self.scale(self.parameter(t)), x)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        l = self.parameter(t)
        f = self.integrand(l, x * broadcast(self.scale(l), x))
        return f if self.a == self.q or not self.q else f * broadcast(self.rate(l), x)

    def diffusion(self, t: Time, x: Tensor) -> float:
        return 1.0

    def quadrature(self, rule: Rule, nodes: np.ndarray, t0: np.ndarray, t1: np.ndarray) -> np.ndarray:
        clock = self.q or self.a
        l, start, stop = np.log(nodes) / clock, np.log(t0) / clock, np.log(t1) / clock
        rate = self.a / self.q * np.exp((self.a - self.q) * l) if self.q else 1.0
        own, smooth = (lambda l, f=f: np.asarray(f(torch.from_numpy(l))) for f in (self.own, self.smooth))
        panels = Panels(l, start, stop, self.a, own, smooth)
        return rule(panels) * np.exp(self.a * stop)[:, None] / rate

    def between(self, t0: np.ndarray, t1: np.ndarray, c: float) -> np.ndarray:
        return t0 * (t1 / t0) ** c
