"""Checks of what users give: functions, their signatures and results, changes in place, flags; and
warnings at their line.
"""

# pyright: reportPrivateUsage=false

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing_state
from torch._C import _len_torch_dispatch_stack as modes
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    peek_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.compiler import is_compiling

__all__ = [
    "ChangedError",
    "accepts_swapped",
    "changed_in_place",
    "check_of",
    "checked_call",
    "checked_output",
    "has_no_version_counter",
    "is_recorded",
    "missing_arguments",
    "require_bools",
    "require_call",
    "require_derivative",
    "require_like",
    "require_order",
    "require_real",
    "version_of",
    "warn_caller",
]

_TIMES = {"t", "time", "times", "timestep", "timesteps", "sigma", "tau", "log_snr", "noise_level"}
_STATES = {
    "x",
    "y",
    "z",
    "u",
    "xt",
    "x_t",
    "state",
    "states",
    "sample",
    "samples",
    "image",
    "images",
    "point",
    "points",
}


def require_call(
    function: Callable[..., Any], call: str, *arguments: object, **keywords: object
) -> None:
    """Refuses a function, or the forward method of a module, whose signature does not fit a call.

    It is meant for handlers of a TypeError, so that a call that succeeds costs nothing, and returns
    if the TypeError has another cause.

    Arguments:
        function: what was called; a function whose signature cannot be read is not refused.
        call: the call as text, such as "net(x, t)".
        arguments, keywords: the arguments of the call.

    Raises:
        TypeError: when the function cannot be called with these arguments.

    Example:
        >>> sdekit.calling.require_call(lambda x: x, "f(t, x)", 0.0, 1.0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: a function that is called as f(t, x) has the signature (x), which does not fit...
    """
    try:
        signature = inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise TypeError(
            f"a function that is called as {call} has the signature {signature}, which does not "
            f"fit ({error}); let it take these arguments, even those that it does not use"
        ) from None


def missing_arguments(
    function: Callable[..., Any], *arguments: object, **keywords: object
) -> list[str]:
    """The names of the arguments that a function, or the forward method of a module, still needs.

    Empty if it needs none, does not accept the given arguments, or has no signature.

    Example:
        >>> sdekit.calling.missing_arguments(lambda x, t, y: x, 1, 2)
        ['y']
    """
    try:
        signature = inspect.signature(getattr(function, "forward", function))
        bound = signature.bind_partial(*arguments, **keywords).arguments
    except (TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in signature.parameters.items()
        if name not in bound
        and parameter.default is parameter.empty
        and parameter.kind not in variadic
    ]


def require_order(function: Callable[..., Any], order: str) -> None:
    """Refuses a function whose first two parameters are named in the other order.

    `ReverseSDE` and `ProbabilityFlow` call a score as `(t, x)`; `sdekit_diffusion.sample` calls it
    as `(x, t)`, like a network. Functions whose parameters have other names are not checked.

    Arguments:
        function: the function, or a module, whose forward method is checked.
        order: "t, x" or "x, t", the order of the call.

    Raises:
        TypeError: when its first two parameters are named as a state and a time in the other order.

    Example:
        >>> require_order(lambda t, x: -x, "t, x")
        >>> require_order(lambda x, t: -x, "t, x")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: a function is called as (t, x) here, and this one takes (x, t); ...
    """
    names = _first_two_names(function)
    state_first = names[0] in _STATES and names[1] in _TIMES
    time_first = names[0] in _TIMES and names[1] in _STATES
    if (state_first and order == "t, x") or (time_first and order == "x, t"):
        other_order = "x, t" if order == "t, x" else "t, x"
        raise TypeError(
            f"a function is called as ({order}) here, and this one takes ({', '.join(names)}); "
            f"pass lambda {order}: function({other_order})"
        )


def accepts_swapped(
    function: Callable[..., Any],
    first: Any,  # noqa: ANN401
    second: Any,  # noqa: ANN401
    shape: tuple[int, ...],
) -> bool:
    """Whether a function returns a tensor of the given shape when its two arguments are exchanged.

    It is called after the function failed or returned something else. The result is False for
    arguments of equal shape, such as points `(batch,)` and their times, where a failure has another
    cause.

    Example:
        >>> def score(x, t):
        ...     return -x * t[:, None]
        >>> x, t = torch.ones(2, 3), torch.ones(2)
        >>> sdekit.calling.accepts_swapped(score, t, x, x.shape)
        True
    """
    if getattr(first, "shape", ()) == getattr(second, "shape", ()):
        return False
    try:
        return tuple(getattr(function(second, first), "shape", ())) == tuple(shape)
    except Exception:
        return False


def _first_two_names(function: Callable[..., Any]) -> tuple[str, str]:
    """The names of the first two parameters in lower case; empty strings if they are unknown."""
    function = getattr(function, "forward", function)
    call = vars(type(function)).get("__call__")
    decorated = any(
        hasattr(part, name)
        for part in (function, call)
        for name in ("__wrapped__", "__signature__")
    )
    if isinstance(call, FunctionType) and not decorated:
        positional = call.__code__.co_varnames[1 : call.__code__.co_argcount]
    else:  # slower
        positional = _positional_names(function)
    return (positional[0].lower(), positional[1].lower()) if len(positional) > 1 else ("", "")


def _positional_names(function: Callable[..., Any]) -> Sequence[str]:
    """The names of the positional parameters; empty if they are unknown."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def has_no_version_counter(x: Tensor) -> bool:
    """Whether torch does not count in-place changes of x: in inference mode, in compiled code and
    under `torch.func.vmap`.

    Example:
        >>> sdekit.calling.has_no_version_counter(torch.zeros(1))
        False
    """
    if is_compiling() or x.is_inference():
        return True
    # The second question is the slower one.
    return peek_interpreter_stack() is not None and is_batchedtensor(x)


def version_of(x: Tensor) -> int | None:
    """How often x was changed in place; None where torch does not count.

    Example:
        >>> sdekit.calling.version_of(torch.zeros(1).add_(1))
        1
    """
    return None if has_no_version_counter(x) else x._version


def has_hidden_values(x: Tensor) -> bool:
    """Whether `torch.func.vmap` hides the values of x, possibly inside other transforms."""
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return True
        x = get_unwrapped(x)
    return False


def require_values(x: Tensor, need: str) -> None:
    """Refuses a tensor whose values `torch.func.vmap` hides.

    Arguments:
        need: what needs the values, the beginning of the message.

    Raises:
        RuntimeError: with what to do.
    """
    if has_hidden_values(x):
        raise RuntimeError(
            f"{need}, which torch.func.vmap hides: solve all rows as one batch, without vmap"
        )


def is_in_forward_mode() -> bool:
    """Whether torch takes derivatives in forward mode."""
    return forward_ad._current_level >= 0


def is_differentiating() -> bool:
    """Whether torch takes derivatives, in reverse or in forward mode."""
    return torch.is_grad_enabled() or is_in_forward_mode()


def is_differentiated(value: Tensor) -> bool:
    """Whether torch may take derivatives of a value, in any mode."""
    return value.requires_grad or is_in_forward_mode() or is_transformed()


def may_be_inferring() -> bool:
    """Whether inference mode is on; True within torch.compile, which cannot trace the question."""
    return is_compiling() or torch.is_inference_mode_enabled()


def recording() -> AbstractContextManager[Any]:
    """The context in which torch records derivatives, inside inference mode too."""
    return torch.inference_mode(False) if may_be_inferring() else torch.enable_grad()


def leaf(x: Tensor) -> Tensor:
    """A tensor with the values of x, with respect to which derivatives may be taken."""
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def is_transformed() -> bool:
    """Whether torch.func transforms what is called, or torch.compile or a trace records it."""
    return is_compiling() or tracing_state() is not None or peek_interpreter_stack() is not None


def is_recorded(x: Tensor) -> bool:
    """Whether torch traces, transforms, intercepts or compiles operations on x, so that only
    torch's own functions may be used.

    Example:
        >>> sdekit.calling.is_recorded(torch.zeros(1))
        False
    """
    return (
        is_compiling()
        or tracing_state() is not None
        or is_functorch_wrapped_tensor(x)
        or modes() > 0
    )


def require_bools(**values: object) -> None:
    """Refuses arguments that are neither True nor False; those of NumPy are allowed.

    Raises:
        TypeError: names the argument.

    Example:
        >>> sdekit.calling.require_bools(denoise=True, progress=False)
    """
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} is True or False, not {value!r:.60}")


def require_like(x: Tensor, state: Tensor) -> None:
    """Refuses a state that cannot take the place of another.

    Raises:
        TypeError: for anything but a tensor.
        ValueError: for another shape or dtype.

    Example:
        >>> sdekit.calling.require_like(torch.ones(2, 3), torch.zeros(2, 3))
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"the state is a tensor, such as x.clone(), not {x!r:.60}")
    if x.shape != state.shape or x.dtype != state.dtype:
        raise ValueError(
            f"the state has shape {tuple(state.shape)} and {state.dtype}; one of shape "
            f"{tuple(x.shape)} and {x.dtype} cannot take its place"
        )


class ChangedError(RuntimeError):
    """A function changed its input, or a tensor that it had returned, in place.

    Example:
        >>> isinstance(sdekit.calling.ChangedError(), RuntimeError)
        True
    """


def changed_in_place(name: str) -> ChangedError:
    """The error for a function that changes its input in place.

    Example:
        >>> str(sdekit.calling.changed_in_place("f(t, x)")).partition(", which")[0]
        'f(t, x) changes its input in place'
    """
    return ChangedError(
        f"{name} changes its input in place, which the solver still needs; begin with x = "
        "x.clone(), or replace the operation (x.mul_(2), x += 1, nn.ReLU(inplace=True) as the "
        "first layer) by one that returns a new tensor"
    )


def overwritten(name: str) -> ChangedError:
    """The error for a function that overwrites a tensor that it returned before."""
    return ChangedError(
        f"{name} overwrites the tensor that it returned before, which the solver still needs; "
        "return a new tensor from each call, or a copy of the buffer: buffer.clone()"
    )


def check_of(t: object, x: Tensor) -> Callable[..., Any]:
    """The function check(name, function, t, x) that is `checked_call`, for several functions of
    the same arguments: whether torch counts the changes of x is asked only once.

    Example:
        >>> x = torch.ones(2)
        >>> check = sdekit.calling.check_of(0.0, x)
        >>> check("f(t, x)", lambda t, x: -x, 0.0, x)
        tensor([-1., -1.])
    """
    counted = not (isinstance(t, Tensor) or x.requires_grad or has_no_version_counter(x))
    return _checked_by_version if counted else checked_call


def _checked_by_version(
    name: str, function: Callable[[Any, Tensor], Any], t: object, x: Tensor
) -> Any:  # noqa: ANN401
    """`checked_call` of function(t, x), for a number t and a tensor x whose changes are counted."""
    version = x._version
    result = function(t, x)
    if x._version != version:
        raise changed_in_place(name)
    return result


def checked_call(
    name: str,
    function: Callable[..., Any],
    *arguments: Any,  # noqa: ANN401
    **keywords: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """function(*arguments, **keywords), refused if it changes one of its tensors in place.

    Changes are detected by the tensors' version counters; tensors without a counter are copied
    first. Torch itself refuses in-place changes of leaves that require gradients: the call is then
    repeated with copies, to distinguish this from other failures.

    Arguments:
        name: the name of the function, for the message.

    Raises:
        RuntimeError: when the function changes a tensor in place.

    Example:
        >>> sdekit.calling.checked_call("f(x)", lambda x: -x, torch.ones(2))
        tensor([-1., -1.])
    """
    versions = []
    for value in (*arguments, *keywords.values()):
        if isinstance(value, Tensor):
            if has_no_version_counter(value):
                return function(
                    *map(_copied, arguments), **{key: _copied(v) for key, v in keywords.items()}
                )
            versions.append((value, value._version))
    try:
        result = function(*arguments, **keywords)
    except RuntimeError as error:
        leaves = any(is_kept_leaf(tensor) for tensor, _ in versions)
        if leaves and changes_in_place(function, arguments, keywords):
            raise changed_in_place(name) from error
        raise
    for tensor, version in versions:
        if tensor._version != version:
            raise changed_in_place(name)
    return result


def is_kept_leaf(value: Any) -> bool:  # noqa: ANN401
    """Whether torch refuses in-place changes of a value: a leaf that requires gradients, while
    gradients are recorded.
    """
    return (
        isinstance(value, Tensor)
        and value.requires_grad
        and value.is_leaf
        and torch.is_grad_enabled()
    )


def changes_in_place(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> bool:
    """Whether a function changes a leaf in place, tested on copies, which are not leaves."""
    copies = [value.clone() if is_kept_leaf(value) else value for value in arguments]
    keyword_copies = {
        key: value.clone() if is_kept_leaf(value) else value for key, value in keywords.items()
    }
    tensors = [value for value in (*copies, *keyword_copies.values()) if isinstance(value, Tensor)]
    versions = [value._version for value in tensors]
    with suppress(Exception):
        function(*copies, **keyword_copies)
    return versions != [value._version for value in tensors]


def _copied(value: Any) -> Any:  # noqa: ANN401
    return value.clone() if isinstance(value, Tensor) else value


def checked_output(name: str, value: object, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """The value that a user's function returned for x, checked and converted to x's dtype.

    Arguments:
        name: the call as text, such as "f(t, x)", for the message.
        value: what the function returned.
        shape: the shape that it must have.
        x: the state for which it was called.

    Raises:
        TypeError: unless value is a tensor of real floating-point numbers.
        ValueError: for another shape.

    Example:
        >>> x = torch.ones(2)
        >>> sdekit.calling.checked_output("f(t, x)", -x.double(), (2,), x)
        tensor([-1., -1.])
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} returned {type(value).__name__}; it must return a tensor of shape "
            f"{tuple(shape)}"
        )
    if value.shape != shape:
        raise ValueError(
            f"{name} returned shape {tuple(value.shape)} for x of shape {tuple(x.shape)}; it must "
            f"return {tuple(shape)}"
        )
    if value.dtype == x.dtype:
        return value
    require_real(name, value, x)
    return value.to(x.dtype)


def require_real(name: str, value: Tensor, x: Tensor) -> None:
    """Refuses integers, booleans and complex numbers, which a cast would silently make wrong.

    Raises:
        TypeError: with what the function should return.

    Example:
        >>> x = torch.ones(2)
        >>> sdekit.calling.require_real("f(t, x)", x, x)
    """
    if not value.is_floating_point():
        remedy = (
            "return its real part"
            if value.is_complex()
            else ("return floating numbers, as by .to(x.dtype)")
        )
        raise TypeError(f"{name} returned {value.dtype} for x of {x.dtype}; {remedy}")


def require_derivative(name: str, value: Tensor, x: Tensor) -> None:
    """Refuses tensors made in inference mode if a derivative with respect to x is needed.

    Raises:
        RuntimeError: with what to do.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> sdekit.calling.require_derivative("f(t, x)", 2 * x, x)
    """
    if x.requires_grad and value.is_inference():
        raise RuntimeError(
            f"{name} returned a tensor made in inference mode, through which no derivative passes, "
            "and one is asked for; leave torch.inference_mode out of it"
        )


# The packages between a caller and a warning: these two, and those that call them back.
_BETWEEN = ("sdekit", "sdekit_diffusion", "torch", "contextlib")


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the innermost line outside these packages and torch, however many calls lie between.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     sdekit.calling.warn_caller("the grid is coarse")
        >>> str(caught[0].message)
        'the grid is coarse'
    """
    level = 1
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).split(".")[0] in _BETWEEN:
        level += 1
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=level)
