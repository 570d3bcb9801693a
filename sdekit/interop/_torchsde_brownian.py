"""Brownian paths of sdekit for torchsde; a separate module, because it imports torchsde."""

from typing import Any

import torch
from torch import Tensor

from sdekit._noise.white import AbstractNoise, WhiteNoise
from sdekit.interop._originals import original
from sdekit.interop._path_adapters import read


class TorchsdeBrownian(original("torchsde._brownian.brownian_base", "BaseBrownian")):
    """A path of sdekit as a Brownian motion for torchsde's solvers: bm(ta, tb) = W(tb) - W(ta).

    With `return_U=True` it also returns U, the integral of W(t) - W(ta) from ta to tb. bm(t) is
    W(t) - W(t_0) with the first time t_0 of the path.

    Arguments:
        path: a `BrownianPath` with knots at the times of the solve, which are then not rounded, or
            other noise that is one path.
        size: the shape of W, `(batch, m)` for torchsde.
        dtype, device: those of the increments; None means torch's defaults.

    Raises:
        TypeError: for `WhiteNoise`, which would have the same increment in every step.
        ValueError: when called with ta > tb, times outside the path, or return_A=True.

    Example:
        >>> path = sdekit.BrownianPath(seed=0)
        >>> bm = sdekit.interop.TorchsdeBrownian(path, (4, 2))
        >>> bm(0.0, 0.5).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        path: AbstractNoise,
        size: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(path, WhiteNoise):
            raise TypeError(
                "WhiteNoise is not one path that can be read at any times; use BrownianPath"
            )
        self.path = path
        self._like = torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        ta: float | Tensor,
        tb: float | Tensor | None = None,
        return_U: bool = False,
        return_A: bool = False,
    ) -> Any:  # noqa: ANN401 - one tensor or two, as torchsde's
        if return_A:
            raise ValueError(
                "the path knows W and its space-time area U, not the areas between coordinates: "
                "return_A=False"
            )
        start, end = (self.path.tree.knots[0], float(ta)) if tb is None else (float(ta), float(tb))
        if start > end:
            raise ValueError(f"bm(ta, tb) needs ta <= tb, not {start} and {end}")
        w, h = read(self.path, start, end, self._like, levy=return_U)[:2]
        if not return_U:
            return w
        assert w is not None
        assert h is not None
        return w, (end - start) * (0.5 * w + h)

    @property
    def shape(self) -> torch.Size:
        return self._like.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def levy_area_approximation(self) -> str:
        return "space-time"

    def __repr__(self) -> str:
        return f"TorchsdeBrownian({self.path}, size={tuple(self.shape)})"

    def to(self, *args: Any, **kwargs: Any) -> "TorchsdeBrownian":  # noqa: ANN401
        """The same path in another dtype or on another device."""
        like = self._like.to(*args, **kwargs)
        return TorchsdeBrownian(self.path, tuple(like.shape), dtype=like.dtype, device=like.device)
