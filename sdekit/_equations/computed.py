"""Properties that replace class attributes and dataclass fields."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

Value = TypeVar("Value")


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
