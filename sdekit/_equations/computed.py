"""Attributes that are computed: as properties, or for the grid of a solve."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

Value = TypeVar("Value")
Equation = TypeVar("Equation")


def computed(method: Callable[[Any], Value]) -> Value:
    """A decorator for a property that overrides an attribute of a base class, such as the order of
    a solver.

    At run time it is `property`; to type checkers the attribute has the type of its value.

    Example:
        >>> class Base:
        ...     normals: int = 0
        >>> class Chain(Base):
        ...     steps = 3
        ...     @sdekit.computed
        ...     def normals(self) -> int:
        ...         return self.steps
        >>> Chain().normals
        3
    """
    return cast(Value, property(method))


def with_computed(equation: Equation, **values: object) -> Equation:
    """A copy of an equation, a dataclass, with fields that were computed for a grid, in less time
    than by `dataclasses.replace`.
    """
    copy = object.__new__(type(equation))
    vars(copy).update(vars(equation), **values)
    return copy
