"""GMRES: linear systems of each sample from products with their matrices alone."""

from collections.abc import Callable

import torch
from torch import Tensor

_CHECK_INTERVAL = 8  # dimensions of the subspace between two checks of the residual
_RITZ_RESIDUAL = 0.1  # relative to a Ritz value, which up to here is taken for an eigenvalue


def gmres(
    product: Callable[[Tensor], Tensor], right: Tensor, *, limit: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """x, `(batch, d)`, with |b - A x| <= limit for each sample, from products A v, and for which
    samples A has a negative eigenvalue, as far as the subspace shows.

    Each sample has a Krylov subspace of its own, of at most `most` dimensions, and its solution is
    that of the check at which it converged, so that it does not depend on the other samples. A
    sample that does not converge is NaN.

    Arguments:
        product: v -> A v, `(batch, d)`.
        right: b, `(batch, d)`.
        limit: `(batch,)`.

    References:
        Saad and Schultz 1986, "GMRES: a generalized minimal residual algorithm for solving
        nonsymmetric linear systems", SIAM Journal on Scientific and Statistical Computing 7.
    """
    most = min(most, right.shape[1])
    norm = torch.linalg.vector_norm(right, dim=1)
    basis = right.new_zeros(len(right), most + 1, right.shape[1])
    basis[:, 0] = _divided(right, norm)
    hessenberg = right.new_zeros(len(right), most + 1, most)
    done = (norm <= limit) & norm.isfinite()
    x = torch.where(done[:, None], 0, torch.full_like(right, torch.nan))
    done = done | ~norm.isfinite()
    negative = torch.zeros_like(done)
    for k in range(1, most + 1):
        if bool(done.all()):
            break
        column, basis[:, k] = _orthogonalised(product(basis[:, k - 1]), basis[:, :k])
        hessenberg[:, : k + 1, k - 1] = column
        if k % _CHECK_INTERVAL == 0 or k == most:
            weights, residual = _least_squares(hessenberg[:, : k + 1, :k], norm)
            converged = ~done & (residual <= limit)
            candidate = (basis[:, :k] * weights[:, :, None]).sum(1)
            x = torch.where(converged[:, None], candidate, x)
            negative = negative | _has_negative_eigenvalue(hessenberg[:, : k + 1, :k], converged)
            done = done | converged | residual.isnan()
    return x, negative


def _divided(vector: Tensor, norm: Tensor) -> Tensor:
    """The vectors divided by their norms; 0 where the norm is 0."""
    return torch.where((norm > 0)[:, None], vector / norm[:, None], 0)


def _orthogonalised(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients of a vector in a basis `(batch, k, d)` and in the next vector,
    `(batch, k + 1)`, and that vector, by Gram and Schmidt.
    """
    part = torch.linalg.vecdot(basis, vector[:, None])
    rest = vector - (basis * part[:, :, None]).sum(1)
    norm = torch.linalg.vector_norm(rest, dim=1)
    return torch.cat([part, norm[:, None]], dim=1), _divided(rest, norm)


def _has_negative_eigenvalue(hessenberg: Tensor, samples: Tensor) -> Tensor:
    """For which of some samples A has a real eigenvalue below 0: a Ritz value, an eigenvalue of the
    square part of `(batch, k + 1, k)`, whose vector has a small residual.

    Where that part is positive definite there is none, as in most systems, and no eigenvalue is
    computed.
    """
    square = hessenberg[:, :-1]
    _, failed = torch.linalg.cholesky_ex(square + square.mT)
    rows = (samples & (failed != 0)).nonzero().flatten()
    negative = torch.zeros_like(samples)
    if not len(rows):
        return negative
    values, vectors = torch.linalg.eig(square[rows].cpu())  # small, and slow elsewhere
    residual = hessenberg[rows, -1, -1].cpu().abs()[:, None] * vectors[:, -1].abs()
    converged = residual <= _RITZ_RESIDUAL * values.abs()
    is_negative = (values.imag == 0) & (values.real < 0) & converged
    return negative.index_copy(0, rows, is_negative.any(1).to(negative.device))


def _least_squares(hessenberg: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """The y of each sample that minimises |norm e_1 - H y|, and this residual.

    Where the subspace is exhausted, H has columns of zeros, whose y does not matter.
    """
    q, r = torch.linalg.qr(hessenberg, mode="complete")
    projected = q[:, 0] * norm[:, None]
    k = r.shape[2]
    diagonal = r.diagonal(dim1=1, dim2=2)
    empty = diagonal.abs() <= 8 * torch.finfo(r.dtype).eps * diagonal.abs().amax(1, keepdim=True)
    unit = torch.eye(k, dtype=r.dtype, device=r.device)
    triangle = torch.where(empty[:, :, None] | empty[:, None], unit, r[:, :k])
    y = torch.linalg.solve_triangular(triangle, projected[:, :k, None], upper=True)[:, :, 0]
    residual = (hessenberg @ y[:, :, None])[:, :, 0]
    residual[:, 0] -= norm
    return y, torch.linalg.vector_norm(residual, dim=1)
