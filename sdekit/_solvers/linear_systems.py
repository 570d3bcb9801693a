"""Linear systems with the Jacobian of the drift of each sample."""

import torch
from torch import Tensor

from sdekit.elementary import Time

Factors = tuple[Tensor, Tensor]


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
    matrix = unit / length.to(jacobian).reshape(-1, 1, 1) - jacobian
    factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    return factors, pivots


def connected(factors: Factors, length: Tensor) -> Tensor:
    """Whether det(1 - length J) > 0 for each sample.

    It is 1 for short steps, and along the solutions of longer and longer ones it changes its sign
    only where two of them meet.
    """
    matrices, pivots = factors
    signs = matrices.diagonal(dim1=-2, dim2=-1).sign().prod(-1)
    own = torch.arange(1, pivots.shape[-1] + 1, device=pivots.device)
    swaps = (pivots != own).sum(-1) + pivots.shape[-1] * (length < 0)
    return torch.where(swaps % 2 == 0, signs, -signs) > 0


def solved(factors: Factors, value: Tensor) -> Tensor:
    """The solution of the linear system of each sample, shaped like the right side."""
    right = value.reshape(len(value), -1, 1).to(factors[0])
    return torch.linalg.lu_solve(*factors, right).to(value).reshape(value.shape)
