"""What callers give to public functions: tensors, devices; refused where they cannot be used."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor


def is_whole(value: object, least: int | None = None) -> bool:
    """Whether a value counts something: a whole number, from the least one on; True is none."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    return least is None or int(value) >= least


def require_tensor(name: str, value: Any, shape: str = "(batch, *shape)") -> None:  # noqa: ANN401
    """Refuses lists, arrays and whatever else is no tensor.

    Raises:
        TypeError: says what makes a tensor of it.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor of shape {shape}, not {type(value).__name__}; use "
            f"torch.as_tensor({name})"
        )


def require_event(x: Tensor, event: Sequence[int] | None) -> None:
    """Refuses a batch whose samples do not have the shape of a model's, where that is known.

    Raises:
        ValueError: says which shape the batch has, and which it needs.
    """
    if event is not None and tuple(x.shape[1:]) != tuple(event):
        raise ValueError(
            f"x has shape {tuple(x.shape)}; this model needs (batch, {', '.join(map(str, event))})"
        )


def usable(device: torch.device | str) -> torch.device:
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
