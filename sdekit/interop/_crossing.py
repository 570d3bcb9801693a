"""The zero of a function of time and state along the steps of odeint."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sdekit._solve.events import root
from sdekit._solve.solution import Point, not_finite
from sdekit.calling import checked_call
from sdekit.interop._odeint_steps import AcceptedStep, number
from sdekit.interop._system import System

MOST = 20_000  # fixed steps at most until an event, as in torchdiffeq


class Crossing:
    """The function whose zero is an event: the smallest of the elements of event_fn, each with the
    sign that makes it positive at the start.
    """

    def __init__(self, system: System, event_fn: Callable[..., Any], t0: float, x0: Tensor) -> None:
        self.system = system
        self.event_fn = event_fn
        self.t0 = t0
        self.x0 = x0
        with torch.no_grad():
            self.signs = self._elements(self._time(t0, x0), x0).sign()

    @staticmethod
    def _time(t: float, x: Tensor) -> Tensor:
        return torch.tensor(t, dtype=torch.float64, device=x.device)

    def _elements(self, t: Tensor, x: Tensor) -> Tensor:
        state = self.system.parts(x[0])
        single = self.system.single

        def function(t: Tensor, *parts: Tensor) -> Any:  # noqa: ANN401
            return self.event_fn(t, parts[0] if single else parts)

        value = checked_call("event_fn(t, y)", function, t, *state)
        if not isinstance(value, Tensor) or value.is_complex() or not value.numel():
            raise TypeError(
                f"event_fn(t, y) returned {value!r:.60}; it must return a real tensor, of which "
                "one element changes its sign"
            )
        if bool(value.isnan().any()) and bool(torch.isfinite(x).all()):
            raise ValueError(
                f"event_fn(t, y) is NaN at t = {float(t):.6g}: it must be defined wherever y comes"
            )
        return value

    def __call__(self, t: float, x: Tensor) -> Tensor:
        """The function at a time and a state, `(1,)`."""
        return (self._elements(self._time(t, x), x) * self.signs).min().reshape(1)

    def differentiable(self, t: Tensor, x: Tensor) -> Tensor:
        """The same with a tensor as the time, recorded by autograd; a 0-dim tensor."""
        return (self._elements(t, x) * self.signs).min()

    def derivatives(self, t: Tensor, x: Tensor) -> tuple[float, Tensor]:
        """The derivative along the solution, and that with respect to the state."""
        with torch.enable_grad():
            inputs = (t.detach().clone().requires_grad_(), x.detach().requires_grad_())
            value = self.differentiable(*inputs)
            slopes = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            slope = self.system.drift(float(t), x.detach())
        return float(slopes[0] + (slopes[1] * slope).sum()), slopes[1]


def first_crossing(crossing: Crossing, taken: Iterator[AcceptedStep]) -> tuple[float, Tensor]:
    """The time of the first zero, and the state there.

    Raises:
        NotFiniteError: when a state before it is not finite.
        ValueError: when there is none in the steps.
    """
    if failure := not_finite(Point(0, crossing.t0, crossing.x0)):
        raise failure
    if not bool(crossing.signs.all()):
        return crossing.t0, crossing.x0
    for i, step in enumerate(taken, 1):
        if failure := not_finite(Point(i, number(step.t1), step.x)):
            raise failure
        t0 = number(step.t0)
        length = number(step.t1) - t0
        with torch.no_grad():
            if float(crossing(t0 + length, step.x)) > 0:
                continue
        state = step.interpolant()  # with gradients, which are those of the state at the zero

        def negated_event(
            theta: Tensor,
            t0: float = t0,
            length: float = length,
            state: Callable[[Tensor], Tensor] = state,
        ) -> Tensor:
            return -crossing(t0 + float(theta) * length, state(theta)).to(theta)

        with torch.no_grad():
            theta = root(negated_event, torch.zeros(1, dtype=torch.float64, device=step.x.device))
        return t0 + float(theta) * length, state(theta)
    raise ValueError(f"event_fn(t, y) has not changed its sign in {MOST:,} steps")
