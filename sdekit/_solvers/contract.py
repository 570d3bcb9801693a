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
    """Global orders in the step size: strong, of the mean error of paths, and weak, of
    expectations.

    Example:
        >>> sdekit.EulerMaruyama().order["diagonal"]
        Order(strong=0.5, weak=1)
    """

    strong: float
    weak: float


class Step(NamedTuple):
    """The result of a step; each part is a tensor or a tuple of tensors with the batch first.

    x: the state at t1. error: an estimate of the error of the step, or what `quotient` reduces to
    one number per sample; or None. dense: the data for interpolation within the step, or None.
    state: what the next step receives.

    Example:
        >>> step = sdekit.Step(torch.ones(4, 1))
        >>> step.error is None, step.state
        (True, ())
    """

    x: Tensor
    error: Tree = None
    dense: Tree = None
    state: Tree = ()


class AbstractSolver(ABC):
    """One step of a one-step or multistep rule, as a pure function.

    The loops of `solve` draw the noise and advance the time.

    Attributes:
        order: the orders by noise type. Other noise types are refused.
        sde_type: the calculus of the equations that it solves, if the noise depends on the state.
        levy: "H" where a step needs the space-time Levy area, "A" where it needs the areas between
            the coordinates of W, of equations with general noise.
        normals: the number of normals of the state's shape that a step uses besides W.
        embedded: the power of the step size with which the error estimate falls; None where a step
            has none.
        reversible: whether `reverse` undoes a step.
        differentiates: whether steps use the Jacobian of the drift, whose steps `Checkpointed` and
            `Reversible` cannot repeat.
        iterates: whether a step ends where values have converged: its evaluations are not known
            before, the host waits for the device, and under vmap it is refused.
        stepwise: whether coefficients may jump from one step to the next, because the weights and
            the noise of a step come from `AbstractSDE.quadrature` and `kick`.

    Raises:
        NotImplementedError: in `reverse`, for a solver that is not reversible.
        ValueError, TypeError: in a solve, for equations that the solver does not support.

    Example:
        >>> from sdekit.elementary import axpy
        >>> class Euler(sdekit.AbstractSolver):
        ...     order = {"none": sdekit.Order(1, 1)}
        ...     def step(self, problem, t0, t1, x, noise, state):
        ...         return sdekit.Step(axpy(t1 - t0, problem.drift(t0, x), x))
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> round(float(sdekit.solve(ode, torch.ones(1, 1), ts, solver=Euler()).x), 4)  # 0.9^10
        0.3487
    """

    order: Mapping[NoiseType, Order]
    sde_type: SDEType = "ito"
    levy: Literal["H", "A"] | None = None
    normals: int = 0
    embedded: float | None = None
    reversible: bool = False
    differentiates: bool = False
    iterates: bool = False
    stepwise: bool = False

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        """The solver with what depends on the grid computed; itself if nothing does."""
        return self

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        """The state that the first step receives."""
        return ()

    @abstractmethod
    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        """One step from x at t0 to t1; t1 < t0 is reverse time.

        Times are floats, or `(batch,)` where samples have their own.
        """

    def resolution(self, x: Tensor) -> float:
        """The least tolerance that steps of states such as x resolve, besides rounding."""
        return 0.0

    def mean_weights(self, t0: float, t1: float) -> Sequence[float]:
        """The weights of a step whose mean is x_0 + sum_j w_j f_j, with f_j the drifts at points of
        the grid up to t_0, the newest first: those of the steps of `Transitions`.

        Raises:
            TypeError: for a solver with other steps.
        """
        raise TypeError(
            f"the steps of {type(self).__name__} are not normal with a known mean: choose a rule "
            "with one evaluation per step, such as EulerMaruyama(), AdamsBashforth(2) or "
            "AdamsMoulton(2)"
        )

    def with_noise(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, dw: Tensor | None
    ) -> Tensor:
        """x with the noise of a step of a solver that has `mean_weights`."""
        return problem.kick(t0, t1, x, dw)

    def output(self, t0: float, x: Tensor, state: Tree) -> Tensor:
        """The state that a solve on a fixed grid returns after the step from t0, from the x and the
        state that the step passes on.

        x itself, unless a solver passes on another state than it would return.
        """
        return x

    def quotient(self, measure: Callable[[Tensor], Tensor], error: Tree) -> Tensor:
        """q, the error of a step relative to the tolerance, `(batch,)`, from what the step returned
        as `error`.

        measure is the controller's norm, `(batch, *event)` to `(batch,)`, infinite where a sample
        is not finite; so is q.
        """
        return measure(error)

    def dense(self, problem: AbstractSDE, t0: Time, t1: Time, dense: Tree) -> Tree:
        """The argument of `interpolate`, from what the step from t0 to t1 returned as `dense`.

        Called only for a step with outputs inside, so that their evaluations are made here.
        """
        return dense

    def interpolate(self, dense: Tree, theta: Tensor) -> Tensor:
        """The state at t_0 + theta (t_1 - t_0), theta `(batch,)`, from what the method `dense`
        returned.

        For equations without noise; with noise a bridge of the path is used.
        """
        start, end = dense
        return torch.lerp(start, end, broadcast(theta, start))

    def reverse(
        self, problem: AbstractSDE, t0: Time, t1: Time, x1: Tensor, noise: Increment, state1: Tree
    ) -> tuple[Tensor, Tree]:
        """x and the state at t_0 from those at t_1 and the noise of the step, of a reversible
        solver.
        """
        raise NotImplementedError
