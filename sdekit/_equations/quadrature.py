"""Integrals of interpolating polynomials against dt or against d e^{a l}, from which the weights of
multistep rules are computed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Map = Callable[[np.ndarray], np.ndarray]

# Gauss-Legendre on [0, 1]: exact to rounding for a polynomial times e^{a s} with |a| up to about
# 30.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_NODES = (_NODES + 1) / 2
_WEIGHTS = _WEIGHTS / 2


def _identity(l: np.ndarray) -> np.ndarray:
    return l


@dataclass(frozen=True, eq=False)
class Panels:
    """The steps of an integral against dA(l), and the nodes whose values each step may use.

    A(l) = l where rate = 0; else A(l) = e^{rate (l - stop)}, which is 1 at the end of the step so
    that nothing overflows.

    Arguments:
        nodes: `(steps, k)`, distinct in each row; start, stop: `(steps,)`.
        rate: the exponent of A, a number or `(steps,)`.
        own: the time in which the equation itself is written, as a function of l.
        smooth: a variable in which the values are nearly a polynomial, as a function of l.
    """

    nodes: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    rate: float | np.ndarray = 0.0
    own: Map = _identity
    smooth: Map = _identity

    @property
    def k(self) -> int:
        """The number of values that a step may use."""
        return self.nodes.shape[1]

    @property
    def rate_at_end(self) -> np.ndarray:
        """dA/dl at the end of each step, `(steps,)`."""
        return np.where(self.rate, self.rate, np.ones_like(self.stop))

    def inverse(self, l: np.ndarray) -> np.ndarray:
        """e^{-l} up to a factor; l itself if A(l) = l."""
        return np.exp(self.stop.max() - l) if np.any(self.rate) else l

    def moments(self, variable: Map = _identity) -> np.ndarray:
        """The integrals of 1, s, ..., s^{k-1} against dA, `(steps, k)`; s is the given variable,
        shifted and scaled so that it runs from 0 to 1 over the step.
        """
        if self.k == 1:  # A's increment
            width = self.stop - self.start
            rate = np.where(self.rate, self.rate, 1.0)
            return np.where(self.rate, -np.expm1(-rate * width), width)[:, None]
        width = (self.stop - self.start)[:, None]
        s = self._position(self.stop[:, None] - _NODES * width, variable)
        density = (
            np.exp(-(self.rate * (self.stop - self.start))[:, None] * _NODES)
            * self.rate_at_end[:, None]
            * width
            * _WEIGHTS
        )
        return np.einsum("iq,iqj->ij", density, s[:, :, None] ** np.arange(self.k))

    def weights(self, moments: np.ndarray, variable: Map = _identity) -> np.ndarray:
        """w with sum_j w_j p(s_j) = sum_i moments_i c_i for every p = sum_i c_i s^i of degree < k:
        `(steps, k)`.
        """
        if self.k == 1:
            return moments
        powers = np.arange(self.k)[:, None]
        return np.linalg.solve(
            self._position(self.nodes, variable)[:, None, :] ** powers, moments[:, :, None]
        )[:, :, 0]

    def exact(self, variable: Map = _identity) -> np.ndarray:
        """w with sum_j w_j p(node_j) = the integral of p dA, for every polynomial p of degree < k
        in a variable.
        """
        return self.weights(self.moments(variable), variable)

    def _position(self, l: np.ndarray, variable: Map) -> np.ndarray:
        """The s of `moments` at l, `(steps, n)`."""
        start = variable(self.start)[:, None]
        stop = variable(self.stop)[:, None]
        return (variable(l) - start) / (stop - start)


Rule = Callable[[Panels], np.ndarray]  # to weights (steps, k) of the values, in units of A(stop)
