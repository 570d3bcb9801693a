"""What a solver is: a frozen description of one step, with the orders it promises."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE, NoiseType, SDEType
from sdekit._noise.white import Increment
from sdekit.elementary import Time, broadcast

Tree = Any  # a tensor with the batch first, or a tuple of trees


class Order(NamedTuple):
    """Global orders in the step size: of the mean error of paths, and of the error of means."""

    strong: float
    weak: float


class Step(NamedTuple):
    """What a step returns; each part is a tensor or a tuple of tensors with the batch first.

    x: the state at t1. error: an estimate of the step's error, or what `quotient` makes one number a sample of; or None.
    dense: what describes the step between its ends, or None. state: what the next step is given.
    """

    x: Tensor
    error: Tree = None
    dense: Tree = None
    state: Tree = ()


class AbstractSolver(ABC):
    """One step of a one-step or multistep rule, as a pure function. The loops draw the noise and keep the time.

    Attributes:
        order: the orders by noise type: what it supports and promises. A noise type that is missing is refused.
        sde_type: the calculus in which it is right where the noise depends on the state.
        levy: "H" where a step needs the space-time Levy area.
        normals: how many fresh normals of the state's shape a step uses besides W.
        embedded: the power of the step size with which the error estimate falls; None where a step has none.
        reversible: whether `reverse` undoes a step.
        stepwise: whether coefficients may jump from one step to the next, because the weights and the noise of a step are
            those that `AbstractSDE.quadrature` and `kick` give for it.
    """

    order: Mapping[NoiseType, Order]
    sde_type: SDEType = "ito"
    levy: Literal["H"] | None = None
    normals: int = 0
    embedded: float | None = None
    reversible: bool = False
    stepwise: bool = False

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        """The solver with all that depends on the grid computed; itself where nothing does."""
        return self

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        """The state that the first step is given."""
        return ()

    @abstractmethod
    def step(self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree) -> Step:
        """From x at t0 to t1; t1 < t0 is reverse time. Times are floats, or `(batch,)` where samples have their own."""

    def quotient(self, measure: Callable[[Tensor], Tensor], error: Tree) -> Tensor:
        """q, the error of a step relative to the tolerance, `(batch,)`, from what the step returned as `error`.

        measure is the controller's norm, `(batch, *event)` to `(batch,)`, infinite where a sample is not finite; so is q.
        """
        return measure(error)

    def dense(self, problem: AbstractSDE, t0: Time, t1: Time, dense: Tree) -> Tree:
        """What `interpolate` is given, from what the step from t0 to t1 returned as `dense`: evaluations that only output
        between steps needs are made here, and asked for only where there is one.
        """
        return dense

    def interpolate(self, dense: Tree, theta: Tensor) -> Tensor:
        """The state at t_0 + theta (t_1 - t_0), theta `(batch,)`, from what the method `dense` returned.

        For equations without noise; with noise the path is bridged.
        """
        start, end = dense
        return torch.lerp(start, end, broadcast(theta, start))

    def reverse(
        self, problem: AbstractSDE, t0: Time, t1: Time, x1: Tensor, noise: Increment, state1: Tree
    ) -> tuple[Tensor, Tree]:
        """x and the state at t_0 from those at t_1, given the noise of the step; where the solver is reversible."""
        raise NotImplementedError
