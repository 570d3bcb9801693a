"""Checks of arguments that are numbers."""

from numbers import Real

from torch import Tensor


def require_number(name: str, value: object) -> None:
    """Refuses an argument that is not one number; a tensor with one element is.

    Raises:
        TypeError: with its name.
    """
    if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
        raise TypeError(f"{name} is a number, not {value!r:.60}")
