"""Attributes that are checked when they are set."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

Given = TypeVar("Given")
Value = TypeVar("Value")


class Checked(Generic[Given, Value]):
    """An attribute of a class whose objects hold check(value) for each value that is set.

    In a module of torch, a value that is a module itself is one of its submodules, unchecked.

    Example:
        >>> class Point:
        ...     size = Checked(float)
        >>> point = Point()
        >>> point.size = 2
        >>> point.size
        2.0
    """

    def __init__(self, check: Callable[[Given], Value]) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, instance: object, value: Given) -> None:
        vars(instance)[self.name] = self.check(value)

    def __get__(self, instance: Any, owner: type | None = None) -> Value:  # noqa: ANN401
        if instance is None:
            return cast(Value, self)
        if self.name in vars(instance):
            return vars(instance)[self.name]
        if not hasattr(type(instance), "__getattr__"):
            raise AttributeError(f"{type(instance).__name__} has no {self.name} yet")
        return instance.__getattr__(self.name)
