"""Which known name a misspelt one is nearest to, and options by name."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


def did_you_mean(
    given: object, known: Iterable[object], aliases: Mapping[str, str] | None = None
) -> str:
    """The end of an error message about an unknown name: "; did you mean 'heun'?", or "" if no
    known name is near.

    A name that is known, but not allowed where it was given, is not suggested again.

    Arguments:
        given: the unknown name.
        known: the names.
        aliases: other names, in lower case and with underscores, to the known names they stand for.

    Example:
        >>> sdekit.did_you_mean("huen", ["heun", "euler"])
        "; did you mean 'heun'?"
        >>> sdekit.did_you_mean("midpoint", ["heun", "euler"])
        ''
        >>> sdekit.did_you_mean("Leap-Frog", ["midpoint"], {"leap_frog": "midpoint"})
        "; did you mean 'midpoint'?"
    """
    if not isinstance(given, str):
        return ""
    names: dict[str, object] = {str(name).lower(): name for name in known}
    candidates = {**names, **(aliases or {})}
    normalised = given.lower().replace("-", "_").replace(" ", "_")
    matches = (
        [normalised]
        if normalised in candidates
        else get_close_matches(given.lower(), names, n=1)
        or get_close_matches(normalised, candidates, n=1)
    )
    return (
        f"; did you mean {candidates[matches[0]]!r}?"
        if matches and candidates[matches[0]] != given
        else ""
    )


def require_mapping(options: object) -> None:
    """Refuses options that are not a dictionary.

    Raises:
        TypeError: with what was given.
    """
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options is a dictionary of options by name, not {options!r:.60}")
