"""Exact integrals of interpolating polynomials against dt or against d e^{a l}: the weights of multistep rules."""

import numpy as np

# Gauss-Legendre on [0, 1]: exact to rounding for a polynomial times e^{a s} with |a| up to about 30.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2


def polynomial_weights(nodes: np.ndarray, start: np.ndarray, stop: np.ndarray, rate: float = 0.0) -> np.ndarray:
    """w with sum_j w_j p(node_j) = integral from start to stop of p(l) dA(l), for every polynomial p of degree < k.

    A(l) = l when rate = 0; else A(l) = e^{rate (l - stop)}, normalised to 1 at the end so that nothing overflows.

    Arguments:
        nodes: `(steps, k)`, distinct in each row; start, stop: `(steps,)`.

    Returns:
        `(steps, k)` in float64.
    """
    width = stop - start
    s = (stop[:, None] - nodes) / width[:, None]  # 0 at the end of the step, 1 at its start, above 1 before it
    density = np.exp(-rate * width[:, None] * _NODES) * (rate or 1.0) * width[:, None]
    powers = np.arange(nodes.shape[1])
    moments = (_NODES ** powers[:, None]) @ (density * _WEIGHTS).T
    return np.linalg.solve(s[:, None, :] ** powers[:, None], moments.T[:, :, None])[:, :, 0]
