"""Users' functions as passed to torchsde and torchdiffeq, with checks of in-place changes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from sdekit._solve.counted import Counted
from sdekit.calling import (
    checked_call,
    has_no_version_counter,
    overwritten,
    require_derivative,
    require_real,
)
from sdekit.elementary import Time
from sdekit.interop._system import State, System


class GuardedFunc:
    """A func for torchdiffeq with the checks of sdekit's own solvers; its attributes, such as
    callbacks, are those of func.
    """

    def __init__(self, func: Callable[..., Any], y0: State) -> None:
        self.func = func
        self.system = System(func, y0)
        self.counted = Counted(self.system, copies=True)

    def __call__(self, t: Tensor, y: State) -> State:
        return self.system.shaped(self.counted.drift(t, self.system.flat(y))[0])

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.__dict__["func"], name)


class GuardedModule(nn.Module):
    """A guarded func that is a module, with the parameters of the original module."""

    def __init__(self, func: nn.Module, guarded: GuardedFunc) -> None:
        super().__init__()
        self.func = func
        self.guarded = guarded

    def forward(self, t: Tensor, y: State) -> State:
        return self.guarded(t, y)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("func"), name)


class GuardedMethod:
    """A method of an equation, or an event function, with checks of in-place changes. It is called
    with a time, a state or a tuple of states, and further tensors.
    """

    def __init__(self, name: str, method: Callable[..., Any]) -> None:
        self.name = name
        self.method = method
        self.returned: list[Tensor] = []

    def __call__(self, t: Time, y: State, *vectors: Tensor | None) -> Any:  # noqa: ANN401
        parts = (y,) if isinstance(y, Tensor) else y

        def call(t: Time, *states: Tensor | None) -> Any:  # noqa: ANN401
            return self.method(t, *states) if isinstance(y, Tensor) else self.method(t, states)

        versions = [(part, part._version) for part in self.returned]
        result = checked_call(self.name, call, t, *parts, *vectors)
        # Changes between calls, such as those of a parameter by an optimiser, are allowed.
        if any(part._version != version for part, version in versions):
            raise overwritten(self.name)
        results = self._checked_results(
            result if isinstance(result, tuple) else (result,), parts[0]
        )
        return tuple(results) if isinstance(result, tuple) else results[0]

    def _checked_results(self, results: Sequence[Any], y: Tensor) -> list[Any]:
        """The returned tensors, checked, and copied if they have no version counter."""
        tensors = [part for part in results if isinstance(part, Tensor)]
        for part in tensors:
            require_real(self.name, part, y)
            require_derivative(self.name, part, y)
        self.returned = [part.detach() for part in tensors if not has_no_version_counter(part)]
        dtype = y.dtype.to_real()  # a step in half precision would have no error estimate
        return [
            part.to(dtype, copy=has_no_version_counter(part)) if isinstance(part, Tensor) else part
            for part in results
        ]
