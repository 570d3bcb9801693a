"""Elementary functions of a time, and products of coefficients and states.

A time is a Python float on fixed grids (no tensor, no synchronisation, no promotion), and a
`(batch,)` tensor where each sample has its own. A closed form written with these functions accepts
both.

Example:
    >>> from sdekit.elementary import ZERO, Time, exp, scaled
    >>> def alpha(t: Time) -> Time:  # of an Ornstein-Uhlenbeck process
    ...     return exp(-t)
    >>> alpha(0.0), alpha(torch.zeros(2))
    (1.0, tensor([1., 1.]))
    >>> scaled(torch.tensor([1.0, 2.0]), torch.ones(2, 3)).tolist()  # one factor per sample
    [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    >>> ZERO + torch.ones(2, dtype=torch.float64)  # of any dtype, on any device
    tensor([1., 1.], dtype=torch.float64)
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, cast, overload

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

__all__ = [
    "ZERO", "Time", "adder", "asinh", "atan", "axpy", "broadcast", "clip", "combined", "exp",
    "expm1", "log", "log1p", "norm", "reciprocal", "scaled", "sigmoid", "sin", "softplus", "sqrt",
    "sum_of_sample", "tan",
]  # fmt: skip

Time = float | Tensor
_PIECE = 1 << 14  # numbers that torch sums on one thread
# A 0-dim tensor on the CPU combines with tensors on any device.
ZERO = torch.zeros((), dtype=torch.float32, device="cpu")


class _Elementary(Protocol):
    @overload
    def __call__(self, value: float, /) -> float: ...
    @overload
    def __call__(self, value: Tensor, /) -> Tensor: ...
    def __call__(self, value: Time, /) -> Time: ...


def _elementary(
    name: str, scalar: Callable[[float], float], tensor: Callable[[Tensor], Tensor]
) -> _Elementary:
    def function(value: Time, /) -> Time:
        return tensor(value) if isinstance(value, Tensor) else scalar(value)

    function.__name__ = name
    function.__qualname__ = name
    function.__doc__ = f"""{name} of a number, or of each element of a tensor.

Example:
    >>> x = torch.tensor([0.5], dtype=torch.float64)
    >>> abs(float(sdekit.elementary.{name}(x)) - sdekit.elementary.{name}(0.5)) < 1e-12
    True
"""
    return cast(_Elementary, function)


# Python's functions raise where those of torch are infinite or NaN.


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _expm1(value: float) -> float:
    try:
        return math.expm1(value)
    except OverflowError:
        return math.inf


def _log(value: float) -> float:
    return math.log(value) if value > 0 else (-math.inf if value == 0 else math.nan)


def _log1p(value: float) -> float:
    return math.log1p(value) if value > -1 else (-math.inf if value == -1 else math.nan)


def _sqrt(value: float) -> float:
    return math.sqrt(value) if value >= 0 else math.nan


def _sin(value: float) -> float:
    return math.nan if math.isinf(value) else math.sin(value)


def _tan(value: float) -> float:
    return math.nan if math.isinf(value) else math.tan(value)


def _reciprocal(value: float) -> float:
    return 1 / value if value else math.copysign(math.inf, value)


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _sigmoid(value: float) -> float:
    return math.exp(min(value, 0.0)) / (1 + math.exp(-abs(value)))


def _sigmoid_of_tensor(value: Tensor) -> Tensor:
    # Not torch.sigmoid: as with logaddexp, its rounding depends on the position of an element.
    negative = value < 0
    small = torch.where(negative, value, -value).exp()
    return torch.where(negative, small, 1.0) / (1 + small)


asinh = _elementary("asinh", math.asinh, torch.asinh)
atan = _elementary("atan", math.atan, torch.atan)
exp = _elementary("exp", _exp, torch.exp)
expm1 = _elementary("expm1", _expm1, torch.expm1)
log = _elementary("log", _log, torch.log)
log1p = _elementary("log1p", _log1p, torch.log1p)
reciprocal = _elementary("reciprocal", _reciprocal, torch.reciprocal)
sigmoid = _elementary("sigmoid", _sigmoid, _sigmoid_of_tensor)
sin = _elementary("sin", _sin, torch.sin)
# Not logaddexp, whose rounding depends on an element's position in the tensor: results would depend
# on the batch.
softplus = _elementary(
    "softplus", _softplus, lambda value: value.clamp(min=0) + value.abs().neg().exp().log1p()
)
sqrt = _elementary("sqrt", _sqrt, torch.sqrt)
tan = _elementary("tan", _tan, torch.tan)


@overload
def clip(value: float, low: float, high: float) -> float: ...
@overload
def clip(value: Tensor, low: float, high: float) -> Tensor: ...
def clip(value: Time, low: float, high: float) -> Time:
    """The value limited to [low, high], elementwise for tensors.

    Example:
        >>> sdekit.elementary.clip(1.5, 0.0, 1.0)
        1.0
    """
    return value.clamp(low, high) if isinstance(value, Tensor) else min(max(value, low), high)


@overload
def broadcast(coefficient: float, x: Tensor) -> float: ...
@overload
def broadcast(coefficient: Tensor, x: Tensor) -> Tensor: ...
def broadcast(coefficient: Time, x: Tensor) -> Time:
    """A coefficient in a shape that multiplies a state: a float is unchanged, a tensor gets the
    dtype and the device of x, and `(batch,)` becomes `(batch, 1, ...)`.

    Arguments:
        coefficient: a float, a 0-dim tensor or a tensor of shape `(batch,)`.
        x: the state, shape `(batch, *event)`.

    Example:
        >>> x = torch.ones(2, 3, 4)
        >>> sdekit.elementary.broadcast(torch.tensor([1.0, 2.0]), x).shape
        torch.Size([2, 1, 1])
    """
    if not isinstance(coefficient, Tensor):
        return coefficient
    coefficient = coefficient.to(x)
    return coefficient.reshape(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient


def axpy(a: Time, x: Tensor, y: Tensor) -> Tensor:
    """y + a x with a float or `(batch,)` a, in one pass over memory if this rounds all elements in
    the same way.

    In half precision torch's fused sum rounds the last elements of a tensor differently from the
    others, so that a sample would depend on its position in the batch.

    Example:
        >>> sdekit.elementary.axpy(0.5, torch.tensor([2.0]), torch.tensor([1.0]))
        tensor([2.])
    """
    if isinstance(a, Tensor):
        return torch.addcmul(y, broadcast(a, x), x)
    return torch.add(y, x, alpha=a) if x.dtype.itemsize >= 4 else y + a * x


def adder(x: Tensor) -> Callable[..., Tensor]:
    """The function add(y, x, alpha=a) that is `axpy` with a number a for tensors of the dtype of x:
    for loops over many sums, which check the dtype once.

    Example:
        >>> x = torch.tensor([2.0])
        >>> add = sdekit.elementary.adder(x)
        >>> add(torch.tensor([1.0]), x, alpha=0.5)
        tensor([2.])
    """
    return torch.add if x.dtype.itemsize >= 4 else _add_rounded


def _add_rounded(y: Tensor, x: Tensor, *, alpha: float) -> Tensor:
    """y + alpha x, with a rounding of the product."""
    return y + alpha * x


def combined(x: Tensor, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """x + sum_j w_j v_j over the first values and weights, as many as the shorter has; all values
    are shaped like x and of its dtype.

    Values of weight 0 are not added, even if they are not finite.

    Example:
        >>> x = torch.tensor([1.0])
        >>> values = [torch.tensor([2.0]), torch.tensor([math.inf])]
        >>> sdekit.elementary.combined(x, [0.5, 0.0], values)
        tensor([2.])
    """
    if x.dtype.itemsize < 4:
        for weight, value in zip(weights, values, strict=False):
            x = x + weight * value if weight else x
        return x
    # In place after the first sum, which is new. torch.func.vmap refuses that where only a later
    # value differs between its calls.
    in_place = peek_interpreter_stack() is None
    is_new = False
    for weight, value in zip(weights, values):  # noqa: B905 - the argument takes time
        if is_new and weight:
            x.add_(value, alpha=weight)
        elif weight:
            x = torch.add(x, value, alpha=weight)
            is_new = in_place
    return x


def scaled(a: Time, x: Tensor) -> Tensor:
    """a x with a float or `(batch,)` a.

    torch converts the float in a product to a tensor, which is slow for a small x, but not the
    `alpha` of a sum.

    Example:
        >>> sdekit.elementary.scaled(0.5, torch.tensor([2.0]))
        tensor([1.])
    """
    if isinstance(a, Tensor):
        return x * broadcast(a, x)
    return torch.add(ZERO, x, alpha=a) if x.dtype.itemsize >= 4 else x * a


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample: `(batch, *event)` to `(batch,)`.

    Example:
        >>> sdekit.elementary.norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([5., 1.])
    """
    return torch.linalg.vector_norm(x.reshape(len(x), math.prod(x.shape[1:])), dim=1)


def sum_of_sample(x: Tensor) -> Tensor:
    """The sum over each sample: `(batch, *event)` to `(batch,)`, float64.

    It is taken in pieces that torch sums on one thread: with several threads the order of summation
    would depend on the number of rows.

    Example:
        >>> sdekit.elementary.sum_of_sample(torch.ones(2, 3, 4))
        tensor([12., 12.], dtype=torch.float64)
    """
    flat = x.reshape(len(x), math.prod(x.shape[1:]))
    pieces = [piece.sum(dim=1, dtype=torch.float64) for piece in flat.split(_PIECE, dim=1)]
    return torch.stack(pieces).cumsum(dim=0)[-1]
