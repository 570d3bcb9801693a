"""A func for torchdiffeq as an equation."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit.calling import require_real
from sdekit.elementary import Time

State = Tensor | tuple[Tensor, ...]


class System(AbstractSDE):
    """func as an equation whose batch is one state, flat and real: `(1, n)`. A complex number is
    two of them.

    Arguments:
        func, y0: see `odeint`.

    Raises:
        TypeError: in a solve, when func returns something other than tensors of a dtype that fits.
        ValueError: in a solve, when func returns another shape, or for a tuple another number of
            elements.
    """

    noise_type = "none"
    checks_shapes = True

    def __init__(self, func: Callable[..., Any], y0: State) -> None:
        parts = y0 if isinstance(y0, tuple) else (y0,)
        self.func = func
        self.single = isinstance(y0, Tensor)
        self.shapes = [part.shape for part in parts]
        self.complex = [part.is_complex() for part in parts]
        self.sizes = [
            part.numel() * (2 if pair else 1)
            for part, pair in zip(parts, self.complex, strict=True)
        ]
        self.low = -math.inf
        self.high = math.inf

    def strictly_between(self, t0: float, t1: float, dtype: torch.dtype) -> Self:
        """The same equation with times limited to those strictly between t0 and t1 in a dtype, so
        that func is not called at the jumps there.
        """
        low, high = torch.tensor(sorted((t0, t1)), dtype=dtype).unbind()
        limited = copy.copy(self)
        limited.low = float(torch.nextafter(low, high))
        limited.high = float(torch.nextafter(high, low))
        return limited

    def flat(self, y: State) -> Tensor:
        """A state as `(1, n)`."""
        if isinstance(y, Tensor) and not y.is_complex():
            return y.reshape(1, -1).clone()
        parts = (y,) if isinstance(y, Tensor) else y
        return torch.cat([_real(part).reshape(1, -1) for part in parts], dim=1)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """States `(*times, n)` as a tuple of tensors in the shapes of y0."""
        if self.single and not self.complex[0]:
            return (x.reshape((*x.shape[:-1], *self.shapes[0])),)
        # Slices, because autograd forbids in-place changes of the results of split.
        ends = accumulate(self.sizes)
        return tuple(
            _shaped(x[..., end - size : end], shape, pair)
            for end, size, shape, pair in zip(
                ends, self.sizes, self.shapes, self.complex, strict=True
            )
        )

    def shaped(self, x: Tensor) -> State:
        """States `(*times, n)` as func takes them: a tensor, or a tuple of tensors."""
        parts = self.parts(x)
        return parts[0] if self.single else parts

    def drift(self, t: Time, x: Tensor) -> Tensor:
        dtype = x.dtype
        if isinstance(t, Tensor):
            t = t.reshape(()).to(dtype, copy=True)  # func may change it
            if math.isfinite(self.low) or math.isfinite(self.high):
                t = t + (t.clamp(self.low, self.high) - t).detach()  # with the derivative of t
            return self._slope(t, x)
        t = min(max(t, self.low), self.high)
        return self._slope(torch.full((), t, dtype=dtype, device=x.device), x)

    def _slope(self, t: Tensor, x: Tensor) -> Tensor:
        """func at a 0-dim time; a copy, which later calls of func cannot change."""
        slopes = self.func(t, self.shaped(x[0]))
        if not self.single and not isinstance(slopes, Tensor):
            slopes = tuple(slopes)  # of a generator, which ends
        if (
            not self.single
            or not isinstance(slopes, Tensor)
            or (slopes.dtype, slopes.shape) != (x.dtype, self.shapes[0])
        ):
            self._require(slopes, x)
        slope = self.flat(slopes)
        return slope if slope.dtype == x.dtype else slope.to(x.dtype)

    def _require(self, slopes: Any, x: Tensor) -> None:  # noqa: ANN401
        parts = (slopes,) if self.single else tuple(slopes)
        if not all(isinstance(part, Tensor) for part in parts):
            expected = "a tensor" if self.single else f"{len(self.shapes)} tensors"
            raise TypeError(
                f"func(t, y) returned {type(slopes).__name__}; it must return {expected}, shaped "
                "as y"
            )
        # For a tuple torchdiffeq only requires the numbers of elements.
        numbers = [math.prod(shape) for shape in self.shapes]
        if [part.numel() for part in parts] != numbers or (
            self.single and parts[0].shape != self.shapes[0]
        ):
            returned = [tuple(part.shape) for part in parts]
            expected = [tuple(shape) for shape in self.shapes]
            raise ValueError(
                f"func(t, y) returned {returned} for a state of shapes {expected}; return the "
                "state's"
            )
        for part, pair in zip(parts, self.complex, strict=True):
            if pair and not part.is_complex():
                raise TypeError(
                    f"func(t, y) returned {part.dtype} for a complex state; return complex numbers"
                )
            if not pair:
                require_real("func(t, y)", part, x)


def _real(part: Tensor) -> Tensor:
    """A tensor as real numbers; those of a complex number are in a further, last dimension."""
    return torch.view_as_real(part.resolve_conj()) if part.is_complex() else part


def _shaped(x: Tensor, shape: Sequence[int], pair: bool) -> Tensor:
    """Numbers `(*times, n)` in a shape, pairs of them as complex numbers."""
    if not pair:
        return x.reshape((*x.shape[:-1], *shape))
    real, imaginary = x.reshape((*x.shape[:-1], *shape, 2)).unbind(-1)
    return torch.complex(real, imaginary)
