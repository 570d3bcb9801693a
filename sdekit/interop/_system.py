"""A func for torchdiffeq as an equation."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit.calling import checked_call, require_real
from sdekit.elementary import Time

State = Tensor | tuple[Tensor, ...]


class System(AbstractSDE):
    """func as an equation whose batch is one state, flat: `(1, n)`.

    Arguments:
        func, y0: as of `odeint`.

    Raises:
        TypeError: in a solve, when func returns something else than tensors.
        ValueError: in a solve, when func returns another number of elements.
    """

    noise_type = "none"

    def __init__(self, func: Callable[..., Any], y0: State) -> None:
        parts = y0 if isinstance(y0, tuple) else (y0,)
        self.func = func
        self.single = isinstance(y0, Tensor)
        self.shapes = [part.shape for part in parts]
        self.sizes = [part.numel() for part in parts]

    def flat(self, y: State) -> Tensor:
        """A state as `(1, n)`."""
        if isinstance(y, Tensor):
            return y.reshape(1, -1).clone()
        return torch.cat([part.reshape(1, -1) for part in y], dim=1)

    def shaped(self, x: Tensor) -> State:
        """States `(*times, n)` in the shapes of func."""
        if self.single:
            return x.reshape((*x.shape[:-1], *self.shapes[0]))
        # Slices, because autograd forbids in-place changes of the results of split.
        ends = [*accumulate(self.sizes)]
        parts = (x[..., end - size : end] for end, size in zip(ends, self.sizes, strict=True))
        return tuple(
            part.reshape((*x.shape[:-1], *shape))
            for part, shape in zip(parts, self.shapes, strict=True)
        )

    def drift(self, t: Time, x: Tensor) -> Tensor:
        dtype = x.dtype.to_real()
        t = (
            t.reshape(()).to(dtype)
            if isinstance(t, Tensor)
            else torch.full((), t, dtype=dtype, device=x.device)
        )
        return self._slope(t, x)

    def drifts(
        self, times: Sequence[Tensor], x: Tensor
    ) -> Sequence[Callable[[Tensor], Tensor]] | None:
        converted = torch.cat([*times]).to(x.dtype.to_real()).unbind()
        return [partial(checked_call, "the drift", self._slope, t) for t in converted]

    def _slope(self, t: Tensor, x: Tensor) -> Tensor:
        """func at a time without dimensions; a copy, which later calls of func do not change."""
        slopes = self.func(t, x.reshape(self.shapes[0]) if self.single else self.shaped(x[0]))
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
        if [part.numel() for part in parts] != self.sizes or (
            self.single and parts[0].shape != self.shapes[0]
        ):
            returned = [tuple(part.shape) for part in parts]
            expected = [tuple(shape) for shape in self.shapes]
            raise ValueError(
                f"func(t, y) returned {returned} for a state of shapes {expected}; return the "
                "state's"
            )
        for part in parts:
            if not (x.is_complex() and part.is_complex()):
                require_real("func(t, y)", part, x)

    def diffusion(self, t: Time, x: Tensor) -> float:
        return 0.0
