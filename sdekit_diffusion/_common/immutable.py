"""Which objects may be keys of a cache."""

from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any


def is_immutable(value: object) -> bool:
    """Whether an object can be a key of a cache: whether its class is a frozen dataclass that is
    compared by value, and its fields are constants: numbers, strings, and tuples and such objects
    of them.

    A subclass of such a dataclass that is not itself declared as one is refused, since it may have
    more attributes than the fields.
    """
    parameters = vars(type(value)).get("__dataclass_params__")
    if parameters is None or not (parameters.frozen and parameters.eq):
        return False
    return all(_is_constant(getattr(value, name)) for name in _fields_of(type(value)))


@cache
def _fields_of(kind: Any) -> list[str]:  # noqa: ANN401 - a dataclass
    """The names of the fields of a dataclass."""
    return [part.name for part in fields(kind)]


_SIMPLE_TYPES = {bool, int, float, str, type(None)}  # found without recursion


def _is_constant(value: object) -> bool:
    """Whether a field of a dataclass cannot change."""
    if isinstance(value, tuple):
        simple = {*map(type, value)} <= _SIMPLE_TYPES
        return simple or all(map(_is_constant, value))
    return type(value) in _SIMPLE_TYPES or isinstance(value, float | Enum) or is_immutable(value)
