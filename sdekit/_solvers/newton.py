"""Newton's method for the implicit steps of each sample."""

import math
from functools import partial

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._solvers.contract import Tree
from sdekit._solvers.linear_systems import (
    by_products,
    connected,
    factorised,
    fits,
    require_no_gradients,
    solved,
)
from sdekit.calling import is_differentiating, require_values, warn_caller
from sdekit.elementary import Time, broadcast

_ATTEMPTS = 50  # evaluations of the drift in a step
_MAX_CONTRACTION = 0.3  # ratio of successive changes, above which the Jacobian is computed again
_MAX_STEP_CHANGE = 0.1  # relative change of h, above which the Jacobian is computed again
_RESIDUAL = 1e-2  # of GMRES in an iteration, whose error the next one corrects
_RESIDUAL_OF_ERROR = 1e-4  # of GMRES for an error estimate


def initial_factors(x: Tensor, direct: int) -> Tree:
    """The state of the first step: empty factors, marked by the length 0 of their step, and the
    largest absolute value of each sample; only the latter for samples of more than `direct`
    numbers.
    """
    if not fits(x, direct):
        return (_largest(x),)
    d = math.prod(x.shape[1:])
    wide = torch.promote_types(x.dtype, torch.float32)
    matrices = torch.zeros(len(x), d, d, dtype=wide, device=x.device)
    pivots = torch.ones(len(x), d, dtype=torch.int32, device=x.device)
    length = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return matrices, pivots, length, _largest(x)


def implicit(
    problem: AbstractSDE,
    t: Tensor,
    h: Tensor,
    base: Tensor,
    guess: Tensor,
    state: Tree,
    *,
    allow_slow: bool,
    direct: int,
) -> tuple[Tensor, Tensor, Tree]:
    """The solution of x = base + h f(t, x) near a guess, for which samples it is one that shorter
    steps do not lead to, and the factors with which the next step begins; t and h are `(batch,)`.

    The LU factors of a sample are kept, in later steps too, while each change is at most 0.3 times
    the one before and h differs by at most a tenth. A sample has converged when a change is below
    eps^(3/4) times the largest absolute value that it has had, and either is at most 0.3 times the
    one before or comes from a Jacobian of this step: with factors that are too old, changes may be
    small far from the solution. f of a sample must not depend on the others. First and second
    derivatives are those of the solution, by the implicit function theorem.

    A sample without a solution is NaN. So is a sample whose solution is not `connected` with those
    of shorter steps, which happens where differences grow within a step. Unless `allow_slow`, so is
    a sample that would need a second Jacobian in this step.

    Samples of more than `direct` numbers have no factors, and no derivatives: their changes are
    those of GMRES with the Jacobian at the present x. They are NaN where GMRES finds a negative
    eigenvalue of 1 - h J in an iteration, and again at the solution; `connected` detects only an
    odd number of them.

    Raises:
        ValueError: for derivatives of these, and within a transform of torch.func.
    """
    iterated = _iterated if fits(base, direct) else partial(_iterated_by_products, direct=direct)
    with torch.no_grad():
        start = base.detach(), guess.detach()
        x, unconnected, state = iterated(problem, t, h, *start, state, allow_slow=allow_slow)
    if not is_differentiating():
        return x, unconnected, state
    if not fits(base, direct):
        require_no_gradients(_residual(problem, t, h, base, x), direct)
        return x, unconnected, state
    jacobian, _ = problem.jacobian(t, x)
    factors = factorised(jacobian.detach(), h)
    for _ in range(2):  # the first has the first derivatives, and the second the second ones
        change = solved(factors, _residual(problem, t, h, base, x)).to(x.dtype)
        x = x + (change - change.detach())
    return x, unconnected, state


def smoothed(
    problem: AbstractSDE,
    t: Tensor,
    h: Tensor,
    x: Tensor,
    error: Tensor,
    state: Tree,
    *,
    direct: int,
) -> Tensor:
    """(1 - h J)^{-1} error: the estimate, damped in stiff directions as the implicit step is; J is
    that of the factors, or that at x.
    """
    if len(state) == 1:
        with torch.no_grad():
            solve, _ = by_products(
                problem, t, x.detach(), h, direct=direct, residual=_RESIDUAL_OF_ERROR
            )
            return solve(error / broadcast(h, error))
    matrices, pivots, length, _ = state
    return solved((matrices, pivots), error / broadcast(length, error))


def _residual(problem: AbstractSDE, t: Tensor, h: Tensor, base: Tensor, x: Tensor) -> Tensor:
    """(base - x) / h + f, at least in single precision: h may be below the range of half precision.

    Raises:
        RuntimeError: under vmap.
    """
    wide = (base - x).to(torch.promote_types(x.dtype, torch.float32))
    residual = wide / broadcast(h, wide) + problem.drift(t, x)
    require_values(residual, "implicit steps iterate until each sample has converged")
    return residual


def _relative_tolerance(eps: float) -> float:
    """The relative change at which an iteration has converged: eps^(3/4), and 8 eps where that is
    larger, as in half precision.
    """
    return max(eps**0.75, 8 * eps)


def _iterated(
    problem: AbstractSDE,
    t: Tensor,
    h: Tensor,
    base: Tensor,
    x: Tensor,
    state: Tree,
    *,
    allow_slow: bool,
) -> tuple[Tensor, Tensor, Tree]:
    """What `implicit` returns, without derivatives."""
    eps = torch.finfo(x.dtype).eps
    *factors, largest = state
    relative = _relative_tolerance(eps)
    scale = torch.maximum(largest, _largest(base))
    outdated = (h - factors[2]).abs() > _MAX_STEP_CHANGE * factors[2].abs()
    before = torch.full_like(largest, torch.inf)
    done = torch.zeros_like(outdated)
    renewed = done
    for _ in range(_ATTEMPTS):
        if bool(outdated.any()):
            x = x if allow_slow else torch.where(_mask(outdated & renewed, x), torch.nan, x)
            factors = _updated(problem, t, h, x, factors, outdated)
            before = torch.where(outdated, torch.inf, before)
            renewed = renewed | outdated
        change = solved((factors[0], factors[1]), _residual(problem, t, h, base, x)).to(x.dtype)
        size = _largest(change)
        tolerance = relative * torch.maximum(scale, _largest(x + change))
        shrinks = (size <= _MAX_CONTRACTION * before) & before.isfinite()
        small = (size <= tolerance) & (shrinks | renewed)
        outdated = ~(shrinks | small | before.isinf() | done)
        x = torch.where(_mask(done | outdated, x), x, x + change)
        before = size
        done = done | small | ~size.isfinite()
        if bool(done.all()):
            break
    same = connected((factors[0], factors[1]), h)
    solution = torch.where(_mask(done & same, x), x, torch.nan)
    largest = torch.maximum(largest, _largest(solution).nan_to_num(0.0, 0.0))
    return solution, ~same & before.isfinite(), (*factors, largest)


def _iterated_by_products(
    problem: AbstractSDE,
    t: Tensor,
    h: Tensor,
    base: Tensor,
    x: Tensor,
    state: Tree,
    *,
    allow_slow: bool,
    direct: int,
) -> tuple[Tensor, Tensor, Tree]:
    """What `implicit` returns, by Newton's method with GMRES and without derivatives.

    A sample has converged when a change is below the tolerance, and either what GMRES left of the
    residual or the change before is, too. The rounding error of a residual grows with h J and
    may exceed the tolerance, but it hardly changes x.
    """
    eps = torch.finfo(x.dtype).eps
    (largest,) = state
    scale = torch.maximum(largest, _largest(base))
    before = torch.full_like(largest, torch.inf)
    done = torch.zeros_like(before, dtype=torch.bool)
    suspect = torch.zeros_like(base)  # right sides for which a negative eigenvalue was found
    for _ in range(_ATTEMPTS):
        residual = _residual(problem, t, h, base, x)
        solve, _ = by_products(problem, t, x, h, direct=direct, residual=_RESIDUAL)
        change = solve(residual).to(x.dtype)
        size = _largest(change)
        left = _RESIDUAL * torch.linalg.vector_norm(residual.flatten(1), dim=1) * h.abs()
        tolerance = _relative_tolerance(eps) * torch.maximum(scale, _largest(x + change))
        small = (size <= tolerance) & ((left <= tolerance) | (before <= tolerance))
        slow = ~(small | (size <= _MAX_CONTRACTION * before) | before.isinf())
        failed = ~size.isfinite() | (slow if not allow_slow else False)
        suspect = torch.where(_mask(solve.unconnected & ~done, x), residual, suspect)
        x = torch.where(_mask(done, x), x, torch.where(_mask(failed, x), torch.nan, x + change))
        before = size
        done = done | small | failed
        if bool(done.all()):
            break
    unconnected = _unconnected(problem, t, h, x, suspect, direct)
    solution = torch.where(_mask(done & ~unconnected, x), x, torch.nan)
    largest = torch.maximum(largest, _largest(solution).nan_to_num(0.0, 0.0))
    return solution, unconnected, (largest,)


def _unconnected(
    problem: AbstractSDE, t: Tensor, h: Tensor, x: Tensor, right: Tensor, direct: int
) -> Tensor:
    """For which samples with a right side other than 0 GMRES finds a negative eigenvalue of 1 - h J
    at x, or does not converge. An eigenvalue that is negative only on the way to x does not matter.
    """
    suspected = _largest(right) != 0
    if not bool(suspected.any()):
        return suspected
    solve, _ = by_products(problem, t, x, h, direct=direct, residual=_RESIDUAL)
    unsolved = ~_largest(solve(right)).isfinite()
    return suspected & (solve.unconnected | unsolved)


def _updated(
    problem: AbstractSDE, t: Tensor, h: Tensor, x: Tensor, factors: list[Tensor], outdated: Tensor
) -> list[Tensor]:
    """The factors and their lengths, with new ones for outdated samples."""
    jacobian, _ = problem.jacobian(t, x)
    updated = *factorised(jacobian, h), h
    return [
        torch.where(_mask(outdated, new), new, old)
        for new, old in zip(updated, factors, strict=True)
    ]


def _mask(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (x.ndim - 1))


def _largest(x: Tensor) -> Tensor:
    """The largest absolute value of each sample; 0 without numbers."""
    if not x.numel():
        return x.new_zeros(len(x))
    return x.detach().reshape(len(x), -1).abs().amax(1)


def warn_without_solution(
    t1: Time, x: Tensor, unconnected: Tensor, given: Tensor, direct: int
) -> None:
    """Warns of samples for which a step of a fixed grid has no solution, or one that shorter steps
    do not lead to.

    Warns:
        RuntimeWarning: with what to do.
    """
    if isinstance(t1, Tensor):  # with adaptive steps it is repeated with a shorter one
        return
    failed = _largest(given).isfinite() & ~_largest(x).isfinite()
    if not bool(failed.any()):
        return
    larger = "" if fits(x, direct) else ", set direct to the size of a sample, or take SKROCK"
    _warn("does not converge", t1, failed & ~unconnected, larger)
    # Shorter steps only: with `direct`, an even number of growing directions would not be detected.
    _warn("finds no solution that shorter steps lead to", t1, failed & unconnected, "")


def _warn(what: str, t1: float, failed: Tensor, advice: str) -> None:
    """Names the samples that failed, if there are any."""
    samples = failed.nonzero()[:, 0].tolist()
    if samples:
        warn_caller(
            f"Newton's method {what} in the step to t = {t1:g} for {len(samples)} of "
            f"{len(failed)} samples, the first of which is {samples[0]}: take shorter steps"
            + advice,
            RuntimeWarning,
        )
