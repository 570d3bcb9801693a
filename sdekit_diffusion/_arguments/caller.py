"""Warnings that name the line of the caller's program."""

import inspect
import warnings

_OURS = ("sdekit", "sdekit_diffusion")


def warn_caller(message: str) -> None:
    """Warns at the innermost line outside these packages, however many calls lie between."""
    level = 1
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        level += 1
        frame = frame.f_back
    warnings.warn(message, stacklevel=level)
