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
    """Global orders of convergence in the step size h: the strong order p of the mean error of
    paths, E|x - x_h| = O(h^p), and the weak order of the error of expectations.

    Example:
        >>> sdekit.EulerMaruyama().order["diagonal"]
        Order(strong=0.5, weak=1)
    """

    strong: float
    weak: float


class Step(NamedTuple):
    """The result of a step; each part is a tensor or a tuple of tensors with the batch first.

    Arguments:
        x: the state at t1.
        error: an estimate of the error of the step, shaped like x, or whatever `quotient` of the
            solver takes; None without an estimate.
        dense: what `dense` of the solver takes, for states within the step; None if these are on
            the cubic through both ends and their slopes, for which the drift is evaluated twice. A
            solver for stiff equations returns both ends, (x_0, x_1), for the straight line: slopes
            there may be far larger than the change of the solution in a step.
        state: what the next step receives as `state`.

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
    """One step of a one-step or multistep method, as a pure function.

    The loops of `solve` draw the noise and advance the time. A subclass defines `order` and `step`.

    Attributes:
        order: the orders by noise type; equations with other noise types are refused.
        sde_type: the calculus of the equations that the solver is for; it matters only where g
            depends on the state.
        levy: "H" if a step needs the space-time Levy area; "A" if it needs the areas between the
            coordinates of W, for equations with general noise; None if it needs neither.
        normals: the number of standard normals, shaped like the state, that a step uses besides W.
        embedded: k if the error estimate of a step of length h is O(h^k); None without an estimate.
            Adaptive steps need it.
        reversible: whether `reverse` undoes a step.
        differentiates: whether steps use the Jacobian of the drift; `Checkpointed` and `Reversible`
            cannot repeat such steps.
        iterates: whether a step iterates until its values have converged. The number of its
            evaluations is then not known in advance, the host waits for the device, and
            torch.func.vmap is refused.
        stepwise: whether coefficients may jump from one step to the next, because the weights and
            the noise of a step come from `AbstractSDE.quadrature` and `kick`.

    Raises:
        NotImplementedError: in `reverse`, for a solver that is not reversible.
        TypeError: in `mean_weights`, for a solver whose steps are not normal with a known mean.
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

    def estimate_power(self, noise_type: NoiseType) -> float:
        """k of an error estimate O(h^k) for equations with this noise: `embedded`, unless it is
        larger for some.
        """
        assert self.embedded is not None
        return self.embedded

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        """The solver with everything that depends on the grid computed in advance; itself if
        nothing does.
        """
        return self

    def stage_times(self, problem: AbstractSDE, ts: Sequence[float]) -> Sequence[float]:
        """The times besides those of a fixed grid at which steps evaluate the equation, exactly as
        `step` computes them; the equation then computes its coefficients there in advance. By
        default none are known.
        """
        return ()

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        """What the first step receives as `state`."""
        return ()

    def restarted(self, problem: AbstractSDE, t0: Time, x: Tensor, state: Tree) -> Tree:
        """The `state` for a step from t0 after the caller has replaced x, given the `state` before
        that. It is the one of `init`, unless a multistep rule keeps its earlier values.
        """
        return self.init(problem, t0, x)

    def retried(self, given: Tree, returned: Tree) -> Tree:
        """The `state` for another try of a rejected step, from the same t0 and x to another t1. It
        is the one that the rejected step was given, unless the solver keeps part of the one that
        this step returned.
        """
        return given

    @abstractmethod
    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        """One step from x at t0 to t1; t1 < t0 is reverse time.

        Arguments:
            t0, t1: floats, or `(batch,)` float64 where samples have their own times.
            x: the states at t0, `(batch, *event)`.
            noise: the noise of the step.
            state: what `init` or the step before returned, or `retried` after a rejected one.
        """

    def resolution(self, x: Tensor) -> float:
        """The smallest tolerance that makes sense for states such as x, apart from rounding."""
        return 0.0

    def mean_weights(self, t0: float, t1: float) -> Sequence[float]:
        """The weights w_j of a step whose mean is x_0 + sum_j w_j f_j, with f_j the drifts at the
        points of the grid up to t_0, the newest first; `Transitions` uses them.

        Raises:
            TypeError: for a solver whose steps have another form.
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
        """The state that a solve on a fixed grid returns after the step from t0, computed from the
        x and the state that the step passes on: x itself, unless the solver corrects it.
        """
        return x

    def quotient(self, measure: Callable[[Tensor], Tensor], error: Tree) -> Tensor:
        """q, the error of a step relative to the tolerance, `(batch,)`.

        Arguments:
            measure: the controller's norm, `(batch, *event)` to `(batch,)`; infinite for a sample
                that is not finite, as q must be.
            error: what the step returned as `error`.
        """
        return measure(error)

    def dense(self, problem: AbstractSDE, t0: Time, t1: Time, dense: Tree) -> Tree:
        """The argument of `interpolate`, from what the step from t0 to t1 returned as `dense`.

        It is called only for steps with outputs within, so evaluations that only these need belong
        here.
        """
        return dense

    def interpolate(self, dense: Tree, theta: Tensor) -> Tensor:
        """The state at t_0 + theta (t_1 - t_0), theta `(batch,)`, from what the method `dense`
        returned: on the straight line through both ends, unless the solver has an interpolant.

        It is for equations without noise; with noise states are bridged along the path.
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
