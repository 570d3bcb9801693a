"""Checks of arguments that are numbers."""

from numbers import Integral, Real

import numpy as np
from torch import Tensor


def require_number(name: str, value: object, *, tensors: bool = False) -> None:
    """Refuses an argument that is not one number, perhaps as an array without dimensions; a tensor
    with one element is a number where tensors are allowed. True and False are not.

    Raises:
        TypeError: with its name.
    """
    number = value[()] if isinstance(value, np.ndarray) else value
    real = type(number) is float or (isinstance(number, Real) and not isinstance(number, bool))
    if real or (tensors and isinstance(value, Tensor) and value.numel() == 1):
        return
    raise TypeError(f"{name} is a number, not {value!r:.60}")


def require_whole(name: str, value: object) -> None:
    """Refuses what is not a whole number; True and False are not.

    Raises:
        TypeError: with what was given.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r:.60}")
