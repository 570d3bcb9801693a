"""Steps moved until what arrives at the end of a solve is nearest to the truth."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SHIFT = 0.03  # of log M, for the differences that stand for derivatives
CAUTIONS = (1.0, 0.3, 0.1, 0.03, 0.01)  # weights of small local errors, relative to the median error with equal shares
MOVES = 6  # with each of them
GAIN = 0.02  # of the cost: a move that brings less is the last
WILD = 1e3  # times far: a solve that ends there has failed


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
    those that nearly do. c falls from 1 to 1/100 on the way, and of all shares on it those are taken that are judged
    best. Levenberg-Marquardt; the derivatives by differences, N solves, for each c, and by Broyden's update after its moves.

    Arguments:
        errors: at the end of solves with such shares, `(samples, *event)`; not finite, or a thousand times far, where a solve
            fails.
        judged: the error with such shares, of more samples.
        weights: w, `(samples,)`.
        steps: N.
        far: from which size on errors are no longer told apart.

    References:
        Nocedal and Wright 2006, "Numerical optimization", sections 10.3 and 11.1; Geman and McClure 1987 for rho.
    """
    identity = torch.eye(steps, dtype=torch.float64)

    def of(q: Tensor) -> Tensor:
        e = errors(_shares(q))
        e = e.reshape(len(e), -1)
        return torch.where(_sizes(e)[:, None] < (WILD * far) ** 2, e, math.inf)

    def cost(q: Tensor, e: Tensor, c: float) -> float:
        return _mean(weights * _sizes(e) * _nearness(e, far)) + c * float(_shares(q).pow(4).mean())

    q = torch.zeros(steps, dtype=torch.float64)
    e = of(q)
    unit = float((weights * _sizes(e)).median())
    found = [(judged(_shares(q)), q)]
    for c in (caution * unit for caution in CAUTIONS):
        least, damping = cost(q, e, c), 1e-3
        if not 0 < least < math.inf:
            break
        slopes = torch.stack([(of(q + SHIFT * one) - e) / SHIFT for one in identity]).nan_to_num(0.0, 0.0, 0.0)
        for _ in range(MOVES):
            move = _move(e, slopes, _shares(q), (weights.sqrt() * _nearness(e, far))[:, None], c, damping)
            if not move.abs().max() > 0:
                break
            there = of(q + move)
            if bool(there.isfinite().all()):
                missed = there - e - torch.tensordot(move.to(e), slopes, 1)
                for slope, part in zip(slopes, (move / move.square().sum()).tolist(), strict=True):
                    slope.add_(missed, alpha=part)
            if not (reached := cost(q + move, there, c)) < least:
                damping *= 8
                continue
            gain, q, e, least, damping = 1 - reached / least, q + move, there, reached, damping / 5
            found.append((judged(_shares(q)), q))
            if gain < GAIN:
                break
    return _shares(min(found, key=lambda one: one[0])[1])


def _move(e: Tensor, slopes: Tensor, m: Tensor, root: Tensor, c: float, damping: float) -> Tensor:
    """Of log M, by errors e with their derivatives and c sum_n M_n^4 / N; root^2 is the derivative of w rho by |e|^2."""
    steps = len(m)
    level = torch.eye(steps, dtype=torch.float64) - 1 / steps  # all log M moved alike are no move
    rows = (slopes * root).flatten(1)
    of_m = 2 * m.square().diag() - 2 * m.square()[:, None] * m / steps  # M^2 by log M
    normal = level @ ((rows @ rows.T).cpu().double() / e.numel() + c / steps * of_m.T @ of_m) @ level
    descent = level @ ((rows @ (root * e).flatten()).cpu().double() / e.numel() + c / steps * of_m.T @ m.square())
    move = -torch.linalg.pinv(normal + damping * normal.diagonal().mean() * level, hermitian=True) @ descent
    return move / move.abs().max().clamp(min=1)


def distance(e: Tensor, weights: Tensor, far: float) -> float:
    """E w rho(|e|)^(1/2) of errors `(samples, *event)`; infinite where one is not finite.

    In the mean of |e| a sample in a wrong mode takes its share, in that of |e|^2 it would take all.
    """
    return _mean(weights * (_sizes(e) * _nearness(e, far)).sqrt())


def _mean(values: Tensor) -> float:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else math.inf


def _sizes(e: Tensor) -> Tensor:
    """|e|^2, `(samples,)`."""
    return e.reshape(len(e), -1).square().mean(dim=1)


def _nearness(e: Tensor, far: float) -> Tensor:
    """rho(|e|) / |e|^2, `(samples,)`, the root of the derivative of rho by |e|^2."""
    return 1 / (1 + _sizes(e) / far**2)


def _shares(q: Tensor) -> Tensor:
    """M from log M, with the mean 1."""
    return q.exp() / q.exp().mean()
