"""Known coordinates of samples: their values, and the mask that selects them."""

import torch
from torch import Tensor

from sdekit_diffusion._arguments.inputs import require_tensor


def known_values(y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """y and the mask in the same shape and on the device of y; y is 0 where it is not known.

    Raises:
        TypeError: for a y that is not a floating tensor, or a mask that is not boolean.
        ValueError: for shapes that do not fit, or known values that are not finite.
    """
    require_tensor("y", y, "(*shape) or (n, *shape)")
    require_tensor("mask", mask, "(*shape) or (n, *shape)")
    if not y.is_floating_point():
        raise TypeError(f"y must be a floating tensor, not {y.dtype}; use y.float()")
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be boolean, True where y is known, not {mask.dtype}; use mask.bool()"
        )
    try:
        y, mask = torch.broadcast_tensors(y, mask.to(y.device))
    except RuntimeError:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} and y {tuple(y.shape)}; give the shape of one "
            "sample, or (n, *shape), to both"
        ) from None
    y = torch.where(mask, y, 0.0)
    if not bool(torch.isfinite(y).all()):
        raise ValueError(
            "y is not finite where the mask says that it is known; make the mask False there"
        )
    return y, mask
