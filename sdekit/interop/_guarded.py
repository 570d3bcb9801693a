"""Users' functions as torchsde and torchdiffeq get them: what they get, and what they returned,
stays as it is.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdekit._solve.counted import Counted
from sdekit.calling import checked_call, overwritten, require_derivative, require_real, uncounted
from sdekit.elementary import Time
from sdekit.interop._system import State, System


class GuardedFunc:
    """A func of torchdiffeq's, checked as by sdekit's own solvers; its callbacks are the attributes
    that they were.
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
    """A guarded func that was a module: its parameters are found as in the module itself."""

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
    """A function of an equation, or of events, called with a time, a state or a tuple of them, and
    more tensors.
    """

    def __init__(self, name: str, method: Callable[..., Any]) -> None:
        self.name = name
        self.method = method
        self.returned: list[Tensor] = []

    def __call__(self, t: Time, y: State, *more: Tensor | None) -> Any:  # noqa: ANN401
        parts = (y,) if isinstance(y, Tensor) else y

        def call(t: Time, *given: Tensor | None) -> Any:  # noqa: ANN401
            return self.method(t, *given) if isinstance(y, Tensor) else self.method(t, given)

        before = [(part, part._version) for part in self.returned]
        found = checked_call(self.name, call, t, *parts, *more)
        # Changes by others, such as those of a parameter by an optimiser after a solve, are no
        # fault.
        if any(part._version != version for part, version in before):
            raise overwritten(self.name)
        kept = self._kept(found if isinstance(found, tuple) else (found,), parts[0])
        return tuple(kept) if isinstance(found, tuple) else kept[0]

    def _kept(self, found: Sequence[Any], y: Tensor) -> list[Any]:
        """What was returned, checked, remembered, and copied where its changes are not counted."""
        tensors = [part for part in found if isinstance(part, Tensor)]
        for part in tensors:
            require_real(self.name, part, y)
            require_derivative(self.name, part, y)
        self.returned = [part.detach() for part in tensors if not uncounted(part)]
        dtype = y.dtype.to_real()  # a step in half precision would have no error estimate
        return [
            part.to(dtype, copy=uncounted(part)) if isinstance(part, Tensor) else part
            for part in found
        ]


class Differentiated:
    """A diffusion g(t, y) whose derivative in y a method asks torch for.

    Where torch sees no dependence on y, as through a buffer or a detached tensor, the derivative is
    taken for zero: g is then asked at another state, and refused if it returns something else.
    """

    def __init__(self, g: Callable[[Time, Tensor], Tensor]) -> None:
        self.g = g

    def __call__(self, t: Time, y: Tensor) -> Tensor:
        found = self.g(t, y)
        if y.requires_grad and not found.requires_grad:
            with torch.no_grad():
                elsewhere = self.g(t, y + 1e-3 * (1 + y.abs()))
            if not torch.equal(elsewhere, found):
                raise RuntimeError(
                    "the diffusion depends on y, but returns a tensor through which no derivative "
                    "passes, and this method needs one; leave .detach(), torch.no_grad() and "
                    "buffers out of it"
                )
        return found


class GuardedSDE:
    """A torchsde equation with its methods guarded; all else is as it was."""

    def __init__(self, sde: object, names: Iterable[str]) -> None:
        self.sde = sde
        for name in names:
            method = getattr(sde, name, None)
            if callable(method):
                setattr(self, name, GuardedMethod(f"{name}(t, y)", method))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.__dict__["sde"], name)
