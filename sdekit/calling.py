"""Users' functions that take other arguments than they are called with."""

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["require_call"]


def require_call(function: Callable[..., Any], call: str, *given: object, **named: object) -> None:
    """Refuses a function, or the forward method of a module, whose signature does not fit a call.

    For handlers of a TypeError, so that a call that succeeds pays nothing; a TypeError of another cause passes.

    Arguments:
        function: what was called; one without a signature passes.
        call: how, in words, such as "net(x, t)".
        given, named: the arguments.

    Raises:
        TypeError: when it cannot be called with these.
    """
    try:
        signature = inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        raise TypeError(
            f"a function that is called as {call} has the signature {signature}, which does not fit ({error}); let it take "
            "these arguments, even those that it does not use"
        ) from None
