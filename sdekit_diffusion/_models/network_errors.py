"""What is wrong with a network that fails, or returns something else than a tensor of x's shape."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from sdekit.calling import accepts_swapped, missing_arguments, require_call, require_real

_SWAPPED_ARGUMENTS = (
    "a network, or a plain score, is called as net(x, t) here, and this one takes (t, x); pass "
    "lambda x, t: net(t, x)"
)


def explain_failure(
    error: Exception,
    net: Callable[..., object],
    conditions: Mapping[str, Any],
    point: Tensor,
    label: Tensor,
) -> None:
    """Raises a more informative error for a call net(point, label, **conditions) that failed, if
    there is one.

    Raises:
        TypeError: for arguments that the network does not take, or that it lacks.
    """
    if accepts_swapped(partial(net, **conditions), point, label, point.shape):
        raise TypeError(_SWAPPED_ARGUMENTS) from error
    rounded = label.to(point.dtype)
    if label.dtype != point.dtype and accepts_swapped(
        partial(net, **conditions), rounded, point, point.shape
    ):
        raise TypeError(
            f"the network fails for labels t in {label.dtype}, which are not rounded to the "
            f"{point.dtype} of its weights: embed t as it is, and cast what a layer receives, "
            "as in layer(embedding.to(x.dtype))"
        ) from error
    if isinstance(error, TypeError):
        if names := missing_arguments(net, point, label, **conditions):
            arguments = ", ".join(f"{name}=..." for name in names)
            raise TypeError(
                f"the network also needs {', '.join(names)}: pass model.given({arguments}), "
                "with one entry per sample, such as vector.expand(n, -1); to train, give the "
                "data with them, as in fit(model, (x, labels))"
            ) from error
        call = f"net({', '.join(['x', 't', *conditions])})"
        require_call(net, call, point, label, **conditions)


def refuse_output(
    out: object,
    net: Callable[..., object],
    conditions: Mapping[str, Any],
    point: Tensor,
    label: Tensor,
) -> None:
    """Raises for an output that is not real, or not shaped like the point.

    Raises:
        TypeError, ValueError: with what the network returned.
    """
    if isinstance(out, Tensor) and out.shape == point.shape:
        require_real("the network", out, point)
    if accepts_swapped(partial(net, **conditions), point, label, point.shape):
        raise TypeError(_SWAPPED_ARGUMENTS)
    if not isinstance(out, Tensor):
        raise TypeError(
            f"the network returned {type(out).__name__}; it must return a tensor of x's shape"
        )
    raise ValueError(
        f"the network returned shape {tuple(out.shape)} for x of shape {tuple(point.shape)}; "
        "it must return x's shape"
    )
