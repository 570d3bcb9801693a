"""Whether an object can be a key of a cache."""

from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any


def is_immutable(value: object) -> bool:
    """Whether an object can be a key of a cache: whether its class is a frozen dataclass that is
    compared by the values of all fields, and these are constants: numbers, strings, and tuples and
    such objects of them.

    A subclass of such a dataclass that is not itself declared as one is refused, since it may have
    more attributes than the fields; so is an object with attributes that its class does not have.
    """
    kind = type(value)
    names = _compared_fields(kind)
    if names is None:
        return False
    attributes = getattr(value, "__dict__", {})
    if attributes.keys() == names:  # without recursion, if the values are simple
        if {*map(type, attributes.values())} <= _SIMPLE_TYPES:
            return True
    elif not all(name in names or hasattr(kind, name) for name in attributes):
        return False
    return all(_is_constant(getattr(value, name)) for name in names)


@cache
def _compared_fields(kind: Any) -> frozenset[str] | None:  # noqa: ANN401 - a class
    """The names of the fields of a frozen dataclass, if it is compared by all of them; None for
    other classes.
    """
    parameters = vars(kind).get("__dataclass_params__")
    if parameters is None or not (parameters.frozen and parameters.eq):
        return None
    parts = fields(kind)
    if not all(part.compare for part in parts):
        return None
    return frozenset(part.name for part in parts)


_SIMPLE_TYPES = {bool, int, float, str, type(None)}  # found without recursion


def _is_constant(value: object) -> bool:
    """Whether a field of a dataclass cannot change."""
    if isinstance(value, tuple):
        simple = {*map(type, value)} <= _SIMPLE_TYPES
        return simple or all(map(_is_constant, value))
    return type(value) in _SIMPLE_TYPES or isinstance(value, float | Enum) or is_immutable(value)
