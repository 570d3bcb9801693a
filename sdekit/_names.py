"""The nearest of known names."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: object, known: Iterable[object]) -> str:
    """Part of a message on an unknown name: ", did you mean 'heun'?", or nothing where no known name is near.

    >>> did_you_mean("huen", ["heun", "euler"])
    ", did you mean 'heun'?"
    >>> did_you_mean("midpoint", ["heun", "euler"])
    ''

    Arguments:
        given: what is unknown.
        known: the names.
    """
    names = {str(name).lower(): name for name in known}
    near = get_close_matches(str(given).lower(), names, n=1)
    return f", did you mean {names[near[0]]!r}?" if near else ""
