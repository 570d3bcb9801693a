"""Steps moved until what arrives at the end of a solve is nearest to the truth."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SHIFT = 0.03  # of log M, for the differences that stand for derivatives
MOVES = 28
ANEW = 3  # how often derivatives are found anew
LEAST = 1e-6  # move that is made
WILD = 1e3  # times far: a solve that ends there has failed
CAUTION = 1.0  # the weight of small local errors, relative to the median error at the end with equal shares


def refined(
    errors: Callable[[Tensor], Tensor], judged: Callable[[Tensor], float], weights: Tensor, steps: int, far: float
) -> Tensor:
    """Shares of the steps in the local error, `(steps,)`, that make the errors at the end small.

    With equal shares M_n = 1 the sum of the local errors, as M_n^4 for three values, is least: that is equidistribution. What
    arrives at the end is a sum in which they cancel as far as their signs allow. For errors e of some samples, which weigh w,
    log M is moved to lessen

        E w rho(|e|) + c e_0 sum_n M_n^4 / N,   rho(e) = e^2 / (1 + e^2 / far^2),

    |e| the root mean square over the coordinates, e_0 the median of w |e|^2 at M = 1. The second term keeps local errors
    small, which is what other samples profit from; and rho leaves out samples that end somewhere else altogether, but not
    those that nearly do. Of all shares on the way those are taken that other samples find best.
    Levenberg-Marquardt, the derivatives by differences, N solves, then by Broyden's update, and by differences again when a
    move does not help, three times at most.

    Arguments:
        errors: at the end of solves with such shares, `(samples, *event)`; not finite, or a thousand times far, where a solve
            fails.
        judged: E w rho of other samples with such shares.
        weights: w, `(samples,)`.
        steps: N.
        far: from which size on errors are no longer told apart.

    References:
        Nocedal and Wright 2006, "Numerical optimization", sections 10.3 and 11.1; Geman and McClure 1987 for rho.
    """
    identity = torch.eye(steps, dtype=torch.float64)
    level = identity - 1 / steps  # all log M moved alike are no move

    def of(q: Tensor) -> Tensor:
        e = errors(_shares(q))
        e = e.reshape(len(e), -1)
        return torch.where(_sizes(e)[:, None] < (WILD * far) ** 2, e, math.inf)

    def cost(q: Tensor, e: Tensor) -> float:
        return remoteness(e, weights, far) + c * float(_shares(q).pow(4).mean())

    def differences(q: Tensor, e: Tensor) -> Tensor:
        return torch.stack([(of(q + SHIFT * unit) - e) / SHIFT for unit in identity]).nan_to_num(0.0, 0.0, 0.0)

    q = torch.zeros(steps, dtype=torch.float64)
    e = of(q)
    c = CAUTION * float((weights * _sizes(e)).median())
    least, damping = cost(q, e), 1e-3
    if not 0 < least < math.inf:
        return _shares(q)
    found = [(judged(_shares(q)), q)]
    slopes, anew, moved = differences(q, e), ANEW, False
    for _ in range(MOVES):
        root, m = (weights.sqrt() * _nearness(e, far))[:, None], _shares(q)  # of the derivative of w rho by |e|^2
        rows = (slopes * root).flatten(1)
        of_m = 2 * m.square().diag() - 2 * m.square()[:, None] * m / steps  # M^2 by log M
        normal = level @ ((rows @ rows.T).cpu().double() / e.numel() + c / steps * of_m.T @ of_m) @ level
        descent = level @ ((rows @ (root * e).flatten()).cpu().double() / e.numel() + c / steps * of_m.T @ m.square())
        move = -torch.linalg.pinv(normal + damping * normal.diagonal().mean() * level, hermitian=True) @ descent
        if not move.abs().max() > LEAST:
            break
        move = move / move.abs().max().clamp(min=1)
        there = of(q + move)
        if bool(there.isfinite().all()):
            missed = there - e - torch.tensordot(move.to(e), slopes, 1)
            for slope, part in zip(slopes, (move / move.square().sum()).tolist(), strict=True):
                slope.add_(missed, alpha=part)
        if (reached := cost(q + move, there)) < least:
            q, e, least, damping, moved = q + move, there, reached, damping / 5, True
            found.append((judged(_shares(q)), q))
        elif moved and anew:
            slopes, anew, moved = differences(q, e), anew - 1, False
        else:
            damping *= 8
    return _shares(min(found, key=lambda one: one[0])[1])


def remoteness(e: Tensor, weights: Tensor, far: float) -> float:
    """E w rho(|e|) of errors `(samples, *event)`; infinite where one is not finite."""
    value = float((weights * _sizes(e) * _nearness(e, far)).mean())
    return value if math.isfinite(value) else math.inf


def _sizes(e: Tensor) -> Tensor:
    """|e|^2, `(samples,)`."""
    return e.reshape(len(e), -1).square().mean(dim=1)


def _nearness(e: Tensor, far: float) -> Tensor:
    """rho(|e|) / |e|^2, `(samples,)`, the root of the derivative of rho by |e|^2."""
    return 1 / (1 + _sizes(e) / far**2)


def _shares(q: Tensor) -> Tensor:
    """M from log M, with the mean 1."""
    return q.exp() / q.exp().mean()
