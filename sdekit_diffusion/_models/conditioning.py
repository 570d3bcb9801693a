"""What a network receives besides the point: its label at a noise level."""

import math
from typing import Any, Literal

from sdekit import did_you_mean

Conditioning = Literal["time", "log_snr", "standardised", "sigma"] | tuple[float, float]
_CONDITIONINGS = ("time", "log_snr", "standardised", "sigma")


def conditioning_of(conditioning: Conditioning) -> Conditioning:
    """The conditioning, a pair as a tuple of floats.

    Raises:
        ValueError: for another value.
    """
    if isinstance(conditioning, str) and conditioning in _CONDITIONINGS:
        return conditioning
    numbers = pair(conditioning)
    if numbers is None or not all(map(math.isfinite, numbers)):
        suggestion = did_you_mean(conditioning, _CONDITIONINGS)
        raise ValueError(
            f"conditioning = {conditioning!r} is not {', '.join(map(repr, _CONDITIONINGS))} or a "
            f"pair (a, b) of finite numbers for a t + b{suggestion}"
        )
    return numbers


def pair(given: Any) -> tuple[float, float] | None:  # noqa: ANN401
    """Two numbers as floats; None for anything else."""
    try:
        first, second = given
        if isinstance(first, str) or isinstance(second, str):
            return None
        return float(first), float(second)
    except (TypeError, ValueError, RuntimeError):
        return None
