"""Steps moved until what arrives at the end of a solve is nearest to the truth."""

from collections.abc import Callable

import torch
from torch import Tensor

SHIFT = 0.03  # of log M, for the differences that stand for derivatives
MOVES = 14
CAUTION = 0.03  # the weight of small local errors, relative to the errors at the end with equal shares


def refined(end: Callable[[Tensor], Tensor], exact: Tensor, steps: int, far: float) -> Tensor:
    """Shares of the steps in the local error, `(steps,)`, that make the errors at the end small.

    With equal shares M_n = 1 the sum of the local errors, M_n^{k+1}, is least: that is equidistribution. What arrives at the
    end is a sum in which they cancel as far as their signs allow. For errors e of a few samples log M is moved to lessen

        E rho(|e|) + c rho_0 sum_n M_n^4 / N,   rho(e) = e^2 / (1 + e^2 / far^2),

    |e| the root mean square over the coordinates, rho_0 the first term at M = 1. The second keeps local errors small, which
    is what other samples profit from; and rho leaves out samples that end somewhere else altogether, of which there are few,
    but not those that nearly do. Levenberg-Marquardt, the derivatives by differences at M = 1, N solves, and by Broyden's
    update then.

    Arguments:
        end: where a solve with such shares ends, `(samples, *event)`.
        exact: where it should.
        steps: N.
        far: from which size on errors are no longer told apart.

    References:
        Nocedal and Wright 2006, "Numerical optimization", sections 10.3 and 11.1; Geman and McClure 1987 for rho.
    """

    def errors(q: Tensor) -> Tensor:
        return (end(q.exp() / q.exp().mean()) - exact).flatten(1)

    def cost(q: Tensor, e: Tensor) -> float:
        return remoteness(e, far) + c * float((q.exp() / q.exp().mean()).pow(4).mean())

    q, c = torch.zeros(steps, dtype=torch.float64), 0.0
    e = errors(q)
    c, identity, damping = CAUTION * cost(q, e), torch.eye(steps, dtype=torch.float64), 1e-3
    least = cost(q, e)
    slopes = torch.stack([(errors(q + SHIFT * unit) - e) / SHIFT for unit in identity])
    for _ in range(MOVES):
        rows, m = (slopes * nearness(e, far)).flatten(1), q.exp() / q.exp().mean()
        of_m = 2 * m.square().diag() - 2 * m.square()[:, None] * m / steps  # of M_n^2 by log M
        normal = (rows @ rows.T).double().cpu() / e.numel() + c / steps * of_m.T @ of_m
        descent = (rows @ (nearness(e, far) * e).flatten()).double().cpu() / e.numel() + c / steps * of_m.T @ m.square()
        move = -torch.linalg.solve(normal + damping * normal.diagonal().mean() * identity, descent)
        move = move / move.abs().max().clamp(min=1)
        there = errors(q + move)
        missed = there - e - torch.tensordot(move.to(e), slopes, 1)
        slopes = slopes + (move / move.square().sum()).to(e)[:, None, None] * missed
        if (found := cost(q + move, there)) < least:
            q, e, least, damping = q + move, there, found, damping / 5
        else:
            damping *= 8
    return q.exp() / q.exp().mean()


def remoteness(e: Tensor, far: float) -> float:
    """E rho(|e|) of errors `(samples, *event)`."""
    return float((e.flatten(1).square() * nearness(e.flatten(1), far)).mean())


def nearness(e: Tensor, far: float) -> Tensor:
    """rho(|e|) / |e|^2, `(samples, 1)`, the root of the derivative of rho by |e|^2."""
    return 1 / (1 + e.square().mean(dim=1, keepdim=True) / far**2)
