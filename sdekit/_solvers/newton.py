"""Newton's method for the implicit steps of each sample."""

import math
import warnings
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
from sdekit.calling import has_hidden_values, is_differentiating
from sdekit.elementary import Time, broadcast

_ATTEMPTS = 50  # evaluations of the drift in a step
_MAX_CONTRACTION = 0.3  # of changes; slower ones ask for another Jacobian
_MAX_STEP_CHANGE = 0.1  # of h, relative; larger ones do, too
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
) -> tuple[Tensor, Tree]:
    """The solution of x = base + h f(t, x) near a guess, and the factors with which the next step
    begins; t and h are `(batch,)`.

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
    those of GMRES with the Jacobian at the present x. They are NaN where 1 - h J is seen to have a
    negative eigenvalue, which `connected` also notices if their number is odd.

    Raises:
        ValueError: for derivatives of these, and within a transform of torch.func.
    """
    iterated = _iterated if fits(base, direct) else partial(_iterated_by_products, direct=direct)
    with torch.no_grad():
        start = base.detach(), guess.detach()
        x, state = iterated(problem, t, h, *start, state, allow_slow=allow_slow)
    if not is_differentiating():
        return x, state
    if not fits(base, direct):
        require_no_gradients(_residual(problem, t, h, base, x), direct)
        return x, state
    jacobian, _ = problem.jacobian(t, x)
    factors = factorised(jacobian.detach(), h)
    for _ in range(2):  # the first has the first derivatives, and the second the second ones
        change = solved(factors, _residual(problem, t, h, base, x)).to(x.dtype)
        x = x + (change - change.detach())
    return x, state


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
    if has_hidden_values(residual):
        raise RuntimeError(
            "implicit steps iterate until each sample has converged, which torch.func.vmap hides: "
            "solve all rows as one batch, without vmap"
        )
    return residual


def _iterated(
    problem: AbstractSDE,
    t: Tensor,
    h: Tensor,
    base: Tensor,
    x: Tensor,
    state: Tree,
    *,
    allow_slow: bool,
) -> tuple[Tensor, Tree]:
    """The solution without derivatives."""
    eps = torch.finfo(x.dtype).eps
    *factors, largest = state
    relative = max(eps**0.75, 8 * eps)
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
    solution = torch.where(_mask(done & connected((factors[0], factors[1]), h), x), x, torch.nan)
    return solution, (*factors, torch.maximum(largest, _largest(solution).nan_to_num(0.0, 0.0)))


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
) -> tuple[Tensor, Tree]:
    """The solution by Newton's method with GMRES, without derivatives. The tolerance is also that
    of what GMRES leaves of the residual.
    """
    eps = torch.finfo(x.dtype).eps
    (largest,) = state
    scale = torch.maximum(largest, _largest(base))
    before = torch.full_like(largest, torch.inf)
    done = torch.zeros_like(before, dtype=torch.bool)
    for _ in range(_ATTEMPTS):
        residual = _residual(problem, t, h, base, x)
        solve, _ = by_products(problem, t, x, h, direct=direct, residual=_RESIDUAL)
        change = solve(residual).to(x.dtype)
        size = _largest(change)
        left = _RESIDUAL * torch.linalg.vector_norm(residual.flatten(1), dim=1) * h.abs()
        tolerance = max(eps**0.75, 8 * eps) * torch.maximum(scale, _largest(x + change))
        small = torch.maximum(size, left) <= tolerance
        slow = ~(small | (size <= _MAX_CONTRACTION * before) | before.isinf())
        failed = ~size.isfinite() | solve.unconnected | (slow if not allow_slow else False)
        x = torch.where(_mask(done, x), x, torch.where(_mask(failed, x), torch.nan, x + change))
        before = size
        done = done | small | failed
        if bool(done.all()):
            break
    solution = torch.where(_mask(done, x), x, torch.nan)
    return solution, (torch.maximum(largest, _largest(solution).nan_to_num(0.0, 0.0)),)


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


def warn_without_solution(t1: Time, x: Tensor, given: Tensor, direct: int) -> None:
    """Warns of samples for which a step of a fixed grid has no solution.

    Warns:
        RuntimeWarning: with what to do.
    """
    if isinstance(t1, Tensor):  # with adaptive steps it is repeated with a shorter one
        return
    failed = (_largest(given).isfinite() & ~_largest(x).isfinite()).nonzero()[:, 0].tolist()
    if failed:
        warnings.warn(
            f"Newton's method does not converge in the step to t = {t1:g} for {len(failed)} of "
            f"{len(x)} samples, the first of which is {failed[0]}: take shorter steps"
            + ("" if fits(x, direct) else ", set direct to the size of a sample, or take SKROCK"),
            RuntimeWarning,
            stacklevel=2,
        )
