"""Checks of arguments that are numbers."""

from numbers import Real

import numpy as np
from torch import Tensor


def require_number(name: str, value: object, *, tensors: bool = False) -> None:
    """Refuses an argument that is not one number, perhaps as an array without dimensions; a tensor
    with one element is a number where tensors are allowed.

    Raises:
        TypeError: with its name.
    """
    number = value[()] if isinstance(value, np.ndarray) else value
    if isinstance(number, Real) or (tensors and isinstance(value, Tensor) and value.numel() == 1):
        return
    raise TypeError(f"{name} is a number, not {value!r:.60}")
