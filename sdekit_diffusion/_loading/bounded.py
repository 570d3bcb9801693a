"""A bound for networks that are built from a file: not much larger than the weights in the file."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdekit_diffusion._arguments.inputs import shape_given

_CONSTRUCTORS = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full)
# Relative to the weights, and in addition: constructors also make tensors that they do not keep.
_FACTOR = 4
_EXTRA_TENSORS = 1000
_EXTRA_NUMBERS = 2**24


class Bounded(TorchFunctionMode):
    """A context in which tensors are refused, before memory is used, once they are many more or
    much larger than some weights.

    Arguments:
        weights: the weights of the network that is built in the context.

    Raises:
        ValueError: within the block, instead of making a tensor that exceeds the bound.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.description = (
            f"{len(weights)} tensors of {sum(value.numel() for value in weights.values()):,} "
            "numbers"
        )
        self.tensors = _FACTOR * len(weights) + _EXTRA_TENSORS
        self.numbers = _FACTOR * sum(value.numel() for value in weights.values()) + _EXTRA_NUMBERS

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in _CONSTRUCTORS:
            first = args[0] if args else kwargs.get("size", ())
            sizes = (
                first
                if isinstance(first, tuple | list)
                else [size for size in args if isinstance(size, int)]
            )
            self.tensors -= 1
            self.numbers -= math.prod(sizes)
            if self.tensors < 0 or self.numbers < 0:
                raise ValueError(
                    f"the network it describes is larger than its weights, {self.description}"
                )
        return func(*args, **kwargs)


def shape_from(sizes: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - JSON
    """The shape of a sample, None where it is not known.

    Raises:
        TypeError, ValueError: for sizes that are not positive integers, or a sample of 2^31 numbers
            or more.
    """
    if sizes is None:
        return None
    if not isinstance(sizes, list):
        raise ValueError(f"the shape of a sample is a list of positive integers, not {sizes!r:.60}")
    return shape_given(sizes)
