"""Users' functions that take other arguments than they are called with."""

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["require_call", "require_order", "swapped"]

_TIMES = {"t", "time", "times", "timestep", "timesteps", "sigma", "tau", "log_snr", "noise_level"}
_STATES = {"x", "y", "z", "u", "xt", "x_t", "state", "states", "sample", "samples", "image", "images", "point", "points"}


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


def require_order(function: Callable[..., Any], order: str) -> None:
    """Refuses a function whose parameters are named in the other order: a score is called `(t, x)` by `ReverseSDE` and
    `ProbabilityFlow`, and `(x, t)` by `sdekit_diffusion.sample`, as networks are.

    >>> require_order(lambda t, x: -x, "t, x")
    >>> require_order(lambda x, t: -x, "t, x")
    Traceback (most recent call last):
    TypeError: a function is called as (t, x) here, and this one takes (x, t); pass lambda t, x: function(x, t)

    Functions with other names are not judged.

    Arguments:
        function: whose parameters are read; of a module, those of its forward.
        order: "t, x" or "x, t", in which it is called.

    Raises:
        TypeError: where its first two parameters are named as a state and a time and they are the other way round.
    """
    names = _first_two(function)
    state_first = names[0] in _STATES and names[1] in _TIMES
    time_first = names[0] in _TIMES and names[1] in _STATES
    if (state_first and order == "t, x") or (time_first and order == "x, t"):
        other = "x, t" if order == "t, x" else "t, x"
        raise TypeError(
            f"a function is called as ({order}) here, and this one takes ({', '.join(names)}); "
            f"pass lambda {order}: function({other})"
        )


def swapped(function: Callable[..., Any], first: Any, second: Any, shape: tuple[int, ...]) -> bool:  # noqa: ANN401
    """Whether a function that failed, or returned something else, returns a tensor of a shape with its arguments exchanged."""
    try:
        return tuple(getattr(function(second, first), "shape", ())) == tuple(shape) != ()
    except Exception:
        return False


def _first_two(function: Callable[..., Any]) -> tuple[str, str]:
    """The lower-case names of the first two parameters; empty where they are not known."""
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError):
        return "", ""
    positional = [p.name.lower() for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (positional[0], positional[1]) if len(positional) > 1 else ("", "")
