"""Linear systems with the Jacobian of the drift of each sample."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from sdekit._equations.sde import AbstractSDE
from sdekit._solvers.contract import Tree
from sdekit._solvers.krylov import gmres
from sdekit.elementary import Time

Factors = tuple[Tensor, Tensor]

_FEW = 4  # coordinates for which `inverted` pays
_DIMENSIONS = 200  # the most of GMRES's subspace


def per_sample(t: Time, x: Tensor) -> Tensor:
    """A time of each sample, `(batch,)`."""
    if isinstance(t, Tensor):
        return t.expand(len(x))
    return torch.full((len(x),), t, dtype=torch.float64, device=x.device)


def factorised(jacobian: Tensor, length: Tensor) -> Factors:
    """LU factors of 1 / length - J, `(batch, d, d)`; a singular matrix gives numbers that are not
    finite.
    """
    jacobian = jacobian.to(torch.promote_types(jacobian.dtype, torch.float32))
    unit = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    matrix = unit / length.to(jacobian.dtype)[:, None, None] - jacobian
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    return factors, pivots


def connected(factors: Factors, length: Tensor) -> Tensor:
    """Whether det(1 - length J) > 0 for each sample.

    The determinant is 1 for short steps. As a step becomes longer, it changes its sign only where
    two solutions meet.
    """
    matrices, pivots = factors
    signs = matrices.diagonal(dim1=-2, dim2=-1).sign().prod(-1)
    own = torch.arange(1, pivots.shape[-1] + 1, device=pivots.device)
    swaps = (pivots != own).sum(-1) + pivots.shape[-1] * (length < 0)
    return torch.where(swaps % 2 == 0, signs, -signs) > 0


def solved(factors: Factors, value: Tensor) -> Tensor:
    """The solution of the linear system of each sample, shaped like the right side."""
    matrices, pivots = factors
    if value.dtype != matrices.dtype:  # half precision
        return solved(factors, value.to(matrices.dtype)).to(value.dtype)
    if value.ndim == 2:
        return torch.linalg.lu_solve(matrices, pivots, value.unsqueeze(-1)).squeeze(-1)
    right = value.reshape(*pivots.shape, 1)
    return torch.linalg.lu_solve(matrices, pivots, right).reshape(value.shape)


def inverted(factors: Factors) -> Factors:
    """L^-1 P and U^-1 of a matrix P^T L U, `(batch, d, d)`.

    For a few coordinates two products with them take less time than substitutions, and have errors
    of about the same size, unlike products with the inverse of the matrix.
    """
    permutation, lower, upper = torch.lu_unpack(*factors)
    unit = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    first = torch.linalg.solve_triangular(lower, permutation.mT, upper=False, unitriangular=True)
    return first, torch.linalg.solve_triangular(upper, unit, upper=True)


def _product(inverses: Factors, value: Tensor) -> Tensor:
    """The solution of the linear system of each sample from what `inverted` returns, shaped like
    the right side.
    """
    first, second = inverses
    if value.dtype != first.dtype:  # half precision
        return _product(inverses, value.to(first.dtype)).to(value.dtype)
    if value.ndim == 2:
        return torch.bmm(second, torch.bmm(first, value.unsqueeze(-1))).squeeze(-1)
    right = value.reshape(*first.shape[:2], 1)
    return torch.bmm(second, torch.bmm(first, right)).reshape(value.shape)


def linear_solver(
    problem: AbstractSDE,
    t: Tensor,
    x: Tensor,
    length: Tensor,
    *,
    direct: int,
    residual: float,
    kept: Tree = (),
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tree]:
    """The function that solves (1 / length - f_x) k = b for each sample, f_t, and f_x and f_t to be
    kept for another length.

    For samples of up to `direct` numbers by the factors of the matrix; for larger ones by GMRES,
    from products with f_x, to a relative residual; then nothing is kept. The solution of a singular
    system is not finite, and NaN where GMRES does not converge.

    Arguments:
        kept: of each sample f_x, f_t and whether these are those at t and x; () if none are kept.

    Raises:
        ValueError: for GMRES within a transform of torch.func; by the function, for gradients
            through it.
    """
    if fits(x, direct):
        jacobian, rate = _derivatives(problem, t, x, kept)
        factors = factorised(jacobian, length)
        if jacobian.shape[-1] > _FEW:
            return partial(solved, factors), rate, (jacobian, rate)
        return partial(_product, inverted(factors)), rate, (jacobian, rate)
    return *by_products(problem, t, x, length, direct=direct, residual=residual), ()


def fits(x: Tensor, direct: int) -> bool:
    """Whether samples have at most `direct` numbers, so that their systems are factorised."""
    return math.prod(x.shape[1:]) <= direct


def no_derivatives(x: Tensor) -> Tree:
    """What is `kept` before the first step."""
    d = math.prod(x.shape[1:])
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return x.new_zeros(len(x), d, d), torch.zeros_like(x), none


def _derivatives(problem: AbstractSDE, t: Tensor, x: Tensor, kept: Tree) -> tuple[Tensor, Tensor]:
    """f_x and f_t of each sample, computed where they are not kept; within torch.compile, whose
    graphs cannot depend on which samples these are, for all.
    """
    if not kept or torch.compiler.is_compiling():
        return problem.jacobian(t, x)
    jacobian, rate, known = kept
    rows = (~known).nonzero().flatten()
    if len(rows) == len(x):
        return problem.jacobian(t, x)
    if not len(rows):
        return jacobian, rate
    updated = problem.rows(rows).jacobian(t[rows], x[rows])
    return jacobian.index_copy(0, rows, updated[0]), rate.index_copy(0, rows, updated[1])


def require_no_gradients(value: Tensor, direct: int) -> None:
    """Refuses derivatives through GMRES.

    Raises:
        ValueError: for a right side that has them, in reverse or in forward mode.
    """
    if value.requires_grad or forward_ad.unpack_dual(value).tangent is not None:
        raise ValueError(
            f"samples of more than direct = {direct} numbers have linear systems without "
            "gradients: solve under torch.no_grad(), or set direct to the size of a sample"
        )


class ByProducts:
    """b -> k: GMRES for the systems (1 / length - f_x) k = b with the same matrix.

    Residuals are relative to the norm of the largest length * b so far, because the right-hand side
    of an error estimate is a small difference and may consist of rounding errors.

    unconnected: the samples for which 1 - length f_x was seen to have a negative eigenvalue, which
    shorter steps do not have; see `connected`.
    """

    def __init__(
        self,
        by_x: Callable[[Tensor], Tensor],
        x: Tensor,
        length: Tensor,
        direct: int,
        residual: float,
    ) -> None:
        wide = torch.promote_types(x.dtype, torch.float32)
        self.by_x = by_x
        self.x = x
        self.h = length.to(wide)[:, None]
        self.direct = direct
        self.residual = max(residual, 8 * torch.finfo(wide).eps)
        self.largest = torch.zeros_like(self.h[:, 0])
        self.unconnected = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def __call__(self, value: Tensor) -> Tensor:
        """The solutions, shaped like the right sides.

        Raises:
            ValueError: for right sides that need gradients.
        """
        require_no_gradients(value, self.direct)
        right = self.h * value.reshape(len(value), -1).to(self.h)
        size = right.abs().amax(1)
        unit = torch.where(size > 0, size, 1.0)  # without it squares of small numbers are 0
        right = right / unit[:, None]
        self.largest = torch.maximum(self.largest, unit * torch.linalg.vector_norm(right, dim=1))
        limit = self.residual * (self.largest / unit)
        solution, negative = gmres(self._product, right, limit=limit, most=_DIMENSIONS)
        self.unconnected = self.unconnected | negative
        return (unit[:, None] * solution).reshape(value.shape).to(value)

    def _product(self, vector: Tensor) -> Tensor:
        """(1 - length f_x) v."""
        product = self.by_x(vector.reshape(self.x.shape).to(self.x))
        return vector - self.h * product.reshape(vector.shape).to(vector)


def by_products(
    problem: AbstractSDE, t: Tensor, x: Tensor, length: Tensor, *, direct: int, residual: float
) -> tuple[ByProducts, Tensor]:
    """The solver of (1 / length - f_x) k = b by GMRES, to a relative residual, and f_t.

    Raises:
        ValueError: within a transform of torch.func, such as its jvp and grad.
    """
    if peek_interpreter_stack() is not None:
        raise ValueError(
            f"samples of more than direct = {direct} numbers have linear systems that torch.func "
            "does not transform: solve outside of jvp, grad and vmap, or set direct to the size of "
            "a sample"
        )
    by_x, rate = problem.jacobian_product(t, x)
    return ByProducts(by_x, x, length, direct, residual), rate
