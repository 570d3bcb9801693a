"""Checks of arguments of public functions: tensors, shapes, devices."""

import json
import math
import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, SupportsInt, cast

import numpy as np
import torch
from torch import Tensor

from sdekit import fresh_seed

_LARGEST = 2**31  # numbers in one sample


def is_whole(value: object, smallest: int | None = None) -> bool:
    """Whether a value is a whole number, and not below the smallest; True and False are not."""
    if not isinstance(value, int | Integral) or isinstance(value, bool):
        return False
    return smallest is None or int(value) >= smallest


def require_whole(name: str, value: object, smallest: int) -> None:
    """Refuses what is not a whole number, or is below the smallest.

    Raises:
        TypeError, ValueError: with what was given.
    """
    if not is_whole(value):
        raise TypeError(f"{name} must be a whole number, not {value!r:.60}")
    if not is_whole(value, smallest):
        raise ValueError(f"{name} must be {smallest} or more, not {value!r:.60}")


def is_number(value: object) -> bool:
    """Whether a value is a real number; True and False are not numbers."""
    # The first question takes least time.
    return type(value) is float or (isinstance(value, Real) and not isinstance(value, bool))


def as_json(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON returns them, numbers of numpy as numbers.

    Raises:
        TypeError: for values that JSON cannot represent.
    """

    def number(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{name} must be what JSON can represent, not {value!r:.60}")

    return json.loads(json.dumps(values, default=number))


def seed_given(seed: object) -> int:
    """A seed as an integer of Python; a new one for None.

    Raises:
        TypeError: for anything but a whole number, such as one seed per sample.
    """
    if seed is None:
        return fresh_seed()
    if not is_whole(seed):
        raise TypeError(
            f"seed is one whole number for all samples, or None for a new one, not {seed!r:.60}: "
            "use int(seed), or a call for each of several seeds"
        )
    return int(cast(SupportsInt, seed))


def require_tensor(name: str, value: Any, shape: str = "(batch, *shape)") -> None:  # noqa: ANN401
    """Refuses values that are not tensors, such as lists and arrays. The shape is that of the
    message; it may be empty.

    Raises:
        TypeError: with how to convert the value to a tensor.
    """
    if not isinstance(value, Tensor):
        of_shape = f" of shape {shape}" if shape else ""
        raise TypeError(
            f"{name} must be a tensor{of_shape}, not {type(value).__name__}; use "
            f"torch.as_tensor({name})"
        )


def require_points(x: Any) -> None:  # noqa: ANN401
    """Refuses points that are not a real, finite tensor.

    Raises:
        TypeError: for complex numbers, and what is not a tensor.
        ValueError: names the first eight rows that are not finite.
    """
    require_tensor("x", x)
    if x.is_complex():
        raise TypeError(f"x must be real, not {x.dtype}; use torch.view_as_real(x)")
    wrong = (~torch.isfinite(x)).unsqueeze(-1).flatten(1).any(dim=1).nonzero().flatten()
    if len(wrong):
        raise ValueError(f"x is not finite in rows {wrong.tolist()[:8]}; leave these out")


def is_one_number(value: object) -> bool:
    """Whether a value is one real number, perhaps as an array without dimensions or a tensor."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
    return is_number(value[()] if isinstance(value, np.ndarray) else value)


def require_counts(**counts: object) -> None:
    """Refuses what is not a positive integer.

    Raises:
        TypeError, ValueError: with what was given.
    """
    for name, count in counts.items():
        if not is_whole(count, 1):
            kind = ValueError if is_whole(count) else TypeError
            raise kind(f"{name} must be a positive integer; not {count!r:.60}")


def require_numbers(owner: object, *names: str) -> None:
    """Refuses an object with attributes that are not numbers, or None where that is the default.

    Raises:
        TypeError: names the attribute.
    """
    for name in names:
        value = getattr(owner, name)
        default = getattr(type(owner), name, "")  # a number, or None, or absent
        if not is_one_number(value) and not (value is None and default is None):
            such = f", such as {default}" if is_number(default) else ""
            kinds = (kind.__name__ for kind in type(owner).__mro__)
            public = next(kind for kind in kinds if not kind.startswith("_"))
            raise TypeError(f"{name} of {public} is a number{such}, not {value!r:.60}")


def shape_given(shape: Any) -> tuple[int, ...]:  # noqa: ANN401
    """The shape of one sample, as integers of Python.

    Raises:
        TypeError: unless it is a sequence, an array or a tensor of whole numbers.
        ValueError: for sizes that are not positive, or a sample of 2^31 numbers or more.
    """
    try:
        given = tuple(shape)
        sizes = tuple(map(operator.index, given))
        if any(isinstance(size, bool) for size in given):
            raise TypeError
    except TypeError:
        raise TypeError(
            f"shape = {shape!r:.60} is not the shape of one sample, a tuple of whole numbers such "
            "as (2,) or (1, 28, 28)"
        ) from None
    if min(sizes, default=1) < 1 or math.prod(sizes) >= _LARGEST:
        raise ValueError(
            f"shape = {sizes!r:.60} must have positive sizes, and fewer than {_LARGEST} numbers"
        )
    return sizes


def require_event(x: Tensor, event: Sequence[int] | None) -> None:
    """Refuses a batch whose samples do not have the shape of a model's, where that is known.

    Raises:
        ValueError: says which shape the batch has, and which it needs.
    """
    if event is not None and tuple(x.shape[1:]) != tuple(event):
        raise ValueError(
            f"x has shape {tuple(x.shape)}; this model needs (batch, {', '.join(map(str, event))})"
        )


def available_device(device: torch.device | str) -> torch.device:
    """The device, with its number where it has one.

    Raises:
        ValueError: where this machine, or this build of torch, cannot use it.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"the device {str(device)!r} cannot be used ({reason}); cpu always can"
        ) from error
