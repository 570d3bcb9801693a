"""The conditions of a network: their names, and their values for unknown conditions."""

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from sdekit import did_you_mean

Null = Mapping[str, float]
_SINGLE = (type(None), bool, int, float, complex, str)


def null_of(net: Callable[..., Tensor], given: Null | None) -> dict[str, float]:
    """For each condition the value that stands for an unknown one: the given mapping, or
    `net.null`.

    Raises:
        TypeError: when it is not a mapping from names to numbers.
        ValueError: for a name in the given mapping that is not in the signature of the network.
    """
    null = getattr(net, "null", None) if given is None else given
    if given is None and not isinstance(null, Mapping):
        return {}
    if not isinstance(null, Mapping) or not all(isinstance(v, Real) for v in null.values()):
        raise TypeError(
            "null has a number for each condition that the network may be asked without, such as "
            f"{{'class_labels': 1000}}; not {null!r:.60}"
        )
    for name in () if given is None else null:
        require_name(name, net, {}, f"null has a value for {name!r}, and ")
    return dict(null)


def names_of(net: Callable[..., Tensor], null: Null) -> tuple[str, ...] | None:
    """The conditions that a network takes: those of `net.null` and `null`, or without `net.null`
    those of `null` and the parameters of its signature after x and t. None if there are no names,
    and the signature accepts any.
    """
    own = getattr(net, "null", None)
    if isinstance(own, Mapping):
        return tuple({**own, **null})
    names = _parameters_of(net)
    return tuple(dict.fromkeys([*null, *(names or [])])) or names


def require_name(name: str, net: Callable[..., Tensor], null: Null, where: str = "") -> None:
    """Refuses a condition that is not in the signature of a network; `where` begins the message.

    Raises:
        ValueError: with the conditions in the signature.
    """
    names = _parameters_of(net)
    if names is not None and name not in (*names, *null):
        raise ValueError(
            f"{where}the network takes no {name!r}; its conditions are {', '.join(names) or 'none'}"
            f"{did_you_mean(name, names)}"
        )


def _parameters_of(net: Callable[..., Tensor]) -> tuple[str, ...] | None:
    """The parameters of a network after x and t; None if it accepts any."""
    try:
        called = net.forward if isinstance(net, nn.Module) else net
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(
        p.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        for p in parameters
    ):
        return None
    return tuple(p.name for p in parameters[2:])


def require_entries(name: str, value: Tensor, n: int) -> None:
    """Refuses a condition without one entry for each of n samples.

    Raises:
        ValueError: says what to give.
    """
    if len(value) != n:
        sizes = ", -1" * (value.ndim if len(value) > 1 else value.ndim - 1)
        raise ValueError(
            f"{name} has {len(value)} entries for {n} samples; give one entry per sample, or, if "
            f"it is one for all samples, {name}.expand({n}{sizes})"
            f"{f'; n={len(value)} makes a sample of each' if n == 1 else ''}"
        )


def require_no_array(name: str, value: object) -> None:
    """Refuses an array of numpy as a condition.

    Raises:
        TypeError: says what to give.
    """
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(
            f"{name} is an array of numpy; give a tensor, which has one entry per sample: "
            f"torch.as_tensor({name})"
        )


def require_no_infinity(name: str, value: Any, null: Null) -> None:  # noqa: ANN401
    """Refuses a condition with infinite values, unless its null value is one. Of tensors only on
    the CPU: on other devices the check would synchronise.

    Raises:
        ValueError: names the condition.
    """
    if isinstance(value, Tensor):
        readable = value.device.type == "cpu" and not torch.compiler.is_compiling()
        infinite = readable and not is_functorch_wrapped_tensor(value) and bool(value.isinf().any())
    else:
        infinite = isinstance(value, float) and math.isinf(value)
    if infinite and not math.isinf(null.get(name, 0.0)):
        raise ValueError(
            f"{name} has infinite values, for which the network has no finite output; give finite "
            "numbers, or, to networks of sdekit_diffusion.nets, NaN where it is not known"
        )


def is_single(value: object) -> bool:
    """Whether a condition is one value, the same for all samples."""
    return isinstance(value, _SINGLE) or (isinstance(value, Tensor) and value.ndim == 0)


def expanded(
    conditions: Mapping[str, Any],
    null: Null,
    rows: int,
    device: torch.device,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """Conditions as a network receives them: a number is repeated for all rows, if the condition
    has a null value; floating ones with entries per sample are in a dtype, if it is not None.
    """
    values = {
        name: torch.full((rows,), value, device=device)
        if name in null and isinstance(value, int | float)
        else value
        for name, value in conditions.items()
    }
    return {
        name: value.to(dtype or value.dtype)
        if isinstance(value, Tensor) and value.ndim and value.is_floating_point()
        else value
        for name, value in values.items()
    }


def dropped(value: Tensor, null: float, drop: Tensor) -> Tensor:
    """A condition with the null value in the rows `drop`, `(batch,)` booleans; integers as int64,
    because the null value may not be one of their own type.

    Raises:
        TypeError: for integers or booleans where the null value is not a whole number.
    """
    if not value.is_floating_point() and not float(null).is_integer():
        raise TypeError(
            f"a condition of {value.dtype} cannot hold {null}, which stands for an unknown one: it "
            "must hold floating-point numbers; use .float()"
        )
    value = value if value.is_floating_point() else value.to(torch.int64)
    rows = drop.reshape(-1, *[1] * (value.ndim - 1))
    return torch.where(rows, torch.full((), null, dtype=value.dtype, device=value.device), value)


def unknown_like(value: Tensor, null: float) -> Tensor:
    """A condition in which all entries are unknown."""
    return dropped(value, null, torch.ones(len(value), dtype=torch.bool, device=value.device))
