"""The times of a result of odeint, and derivatives with respect to them."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit._grid import times
from sdekit.calling import checked_call
from sdekit.elementary import Time
from sdekit.interop._odeint_steps import AcceptedStep, number
from sdekit.interop._system import System


@dataclass(frozen=True, eq=False)
class Times:
    """The times of a result, as numbers, and as tensors `(1,)` where derivatives with respect to
    them are asked for.

    exact: whether these derivatives are f, those of the exact solution, as with adaptive steps, or
    those of the numerical steps.
    """

    numbers: list[float]
    tensors: Sequence[Tensor] | None
    exact: bool

    @staticmethod
    def of(t: Tensor | Sequence[float], *, differentiated: bool) -> "Times":
        wanted = isinstance(t, Tensor) and t.requires_grad and torch.is_grad_enabled()
        tensors = t.double().reshape(-1, 1).unbind() if wanted and isinstance(t, Tensor) else None
        return Times(times(t), tensors, differentiated)

    @property
    def grid(self) -> Sequence[Time]:
        """The times for steps: tensors only if steps are differentiated with respect to them."""
        return self.numbers if self.tensors is None or self.exact else self.tensors

    def shifted(self, system: System, x: Tensor, i: int, sign: float) -> Tensor:
        """A state, with the derivative sign f with respect to the i-th time."""
        if self.tensors is None or not self.exact:
            return x
        with torch.no_grad():
            slope = checked_call("the drift", system.drift, self.numbers[i], x.detach())
        return _Shifted.apply(x, sign * slope, self.tensors[i])


class _Shifted(torch.autograd.Function):
    """x, as a function of a time on which it depends with a given slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, t: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(slope, t)
        return x.clone()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> Any:  # noqa: ANN401
        slope, t = ctx.saved_tensors
        by_t = (grad * slope).sum().to(t).reshape(t.shape)
        return grad, None, differentiated_once("derivatives with respect to t", t, by_t)[0]


def differentiated_once(name: str, anchor: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """First derivatives, as they are; those of higher order through them are refused. Unless these
    are asked for, that is with create_graph=True, the values are returned unchanged.

    Arguments:
        name: what the values are, for the error.
        anchor: a tensor that requires a gradient.
    """
    return _Once.apply(name, anchor, *values) if torch.is_grad_enabled() else values


class _Once(torch.autograd.Function):
    """Values that cannot be differentiated."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        name: str,
        anchor: Tensor,
        *values: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(value.clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ANN401
        raise RuntimeError(
            f"{ctx.name} are of first order only: for second ones take odeint, and times that "
            "require no gradient"
        )


def outputs(ts: Times, taken: Iterator[AcceptedStep]) -> Iterator[Tensor]:
    """The states at the times after the first."""
    remaining = deque(zip(ts.numbers, ts.grid, strict=True))
    remaining.popleft()
    sign = math.copysign(1.0, ts.numbers[-1] - ts.numbers[0])
    for step in taken:
        end = number(step.t1)
        state = None
        while remaining and sign * (end - remaining[0][0]) >= 0:
            time, t = remaining.popleft()
            theta = (t - step.t0) / (step.t1 - step.t0)
            if time == end and (t is step.t1 or not isinstance(t, Tensor)):
                yield step.x
            else:
                state = state or step.interpolant()
                yield state(torch.as_tensor(theta, dtype=torch.float64).reshape(1))
