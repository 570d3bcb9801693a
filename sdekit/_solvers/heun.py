"""Methods of Heun's family: one stage at each end of the step, or one in its middle; Stratonovich
where g depends on x.
"""

from dataclasses import dataclass

from torch import Tensor

from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, axpy, scaled

# Common to the family; Heun has weak order two for additive noise.
_WITH_NOISE: dict[NoiseType, Order] = {
    "additive": Order(1, 1),
    "diagonal": Order(1, 1),
    "scalar": Order(1, 1),
    "general": Order(0.5, 1),
}
_ORDERS: dict[NoiseType, Order] = {"none": Order(2, 2), **_WITH_NOISE}


def _half(w: Tensor | None) -> Tensor | None:
    return None if w is None else 0.5 * w


@dataclass(frozen=True, eq=False)
class Heun(AbstractSolver):
    """Heun's method for Stratonovich equations, the explicit trapezoidal rule:

        x~ = x_0 + f_0 dt + g_0 dW,
        x_1 = (x_0 + x~) / 2 + f(t_1, x~) dt / 2 + g(t_1, x~) dW / 2.

    With additive noise the weak order is two; for general noise that commutes the strong order is
    one.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.Heun()).x.shape
        torch.Size([4, 1])

    References:
        Kloeden and Platen 1992, "Numerical solution of stochastic differential equations",
        section 15.1, for additive noise; Ruemelin 1982, "Numerical treatment of stochastic
        differential equations", for other noise; Heun 1900 without.
    """

    order = {**_ORDERS, "additive": Order(1, 2)}
    sde_type = "stratonovich"

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        dt = t1 - t0
        predicted = problem.diffuse(t0, x, noise.w, problem.drift_at(t0)(x, dt, x))
        onto = problem.drift_at(t1)(predicted, 0.5 * dt, scaled(0.5, x + predicted))
        return Step(problem.diffuse(t1, predicted, _half(noise.w), onto))


@dataclass(frozen=True, eq=False)
class EulerHeun(AbstractSolver):
    """The Euler-Heun method for Stratonovich equations, one evaluation of the drift per step:

        x~ = x_0 + g_0 dW,
        x_1 = (x_0 + x~) / 2 + f_0 dt + g(t_1, x~) dW / 2.

    For general noise that commutes the strong order is one.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x, sde_type="stratonovich")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.EulerHeun()).x.shape
        torch.Size([4, 1])

    References:
        Burrage, Burrage and Tian 2004, "Numerical methods for strong solutions of stochastic
        differential equations".
    """

    order = _WITH_NOISE
    sde_type = "stratonovich"

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        predicted = problem.diffuse(t0, x, noise.w, x)
        onto = problem.drift_at(t0)(x, t1 - t0, scaled(0.5, x + predicted))
        return Step(problem.diffuse(t1, predicted, _half(noise.w), onto))


@dataclass(frozen=True, eq=False)
class Midpoint(AbstractSolver):
    """The explicit midpoint rule for Stratonovich equations:

        x~ = x_0 + f_0 dt / 2 + g_0 dW / 2,
        x_1 = x_0 + f(t, x~) dt + g(t, x~) dW,  t = (t_0 + t_1) / 2.

    For general noise that commutes the strong order is one.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x, sde_type="stratonovich")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.Midpoint()).x.shape
        torch.Size([4, 1])

    References:
        Burrage, Burrage and Tian 2004, as for `EulerHeun`; Runge 1895 without noise.
    """

    order = _ORDERS
    sde_type = "stratonovich"

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        dt = t1 - t0
        middle = problem.diffuse(t0, x, _half(noise.w), problem.drift_at(t0)(x, 0.5 * dt, x))
        t = t0 + 0.5 * dt
        return Step(problem.diffuse(t, middle, noise.w, problem.drift_at(t)(middle, dt, x)))


@dataclass(frozen=True, eq=False)
class ReversibleHeun(AbstractSolver):
    """A reversible method for Stratonovich equations, one evaluation per step:

        x^_1 = 2 x_0 - x^_0 + f^_0 dt + g^_0 dW,
        x_1 = x_0 + (f^_0 + f^_1) dt / 2 + (g^_0 + g^_1) dW / 2.

    f^ and g^ are evaluated at x^, which is x at the start of the solve; the first step costs one
    more evaluation. A step can be undone up to rounding, see `reverse`. The state of the solver is
    (x^, f^, g^). The paper proves strong order one for additive noise and 0.5 for other noise; the
    measured order is one for noise that commutes, such as diagonal and scalar noise. The difference
    of x^ and x is not damped: if the drift contracts at some rate, it grows like e^(rate t) for
    every dt, so solves must be short.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x, sde_type="stratonovich")
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.ReversibleHeun()).x.shape
        torch.Size([4, 1])

    References:
        Kidger, Foster, Li and Lyons 2021, "Efficient and accurate gradients for neural SDEs",
        arXiv 2105.13493.
    """

    order = _ORDERS
    sde_type = "stratonovich"
    reversible = True

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        f = problem.drift(t0, x)  # first: equations of torchsde may compute both together
        g = 0.0 if problem.noise_shape(x) is None else problem.diffusion(t0, x)
        # All tensors of the state have the batch first, also a g that is one number.
        if not isinstance(g, Tensor):
            ones = [1] * (x.ndim - 1)
            g = x.new_full(x.shape if problem.noise_type == "scalar" else (len(x), *ones), g)
        return x, f, g

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        x, state = _reversible_step(self, problem, t1, t1 - t0, x, noise.w, state)
        return Step(x, state=state)

    def reverse(
        self, problem: AbstractSDE, t0: Time, t1: Time, x1: Tensor, noise: Increment, state1: Tree
    ) -> tuple[Tensor, Tree]:
        """x and the state at t_0 from those at t_1 and the noise of the step."""
        return _reversible_step(
            self, problem, t0, t0 - t1, x1, None if noise.w is None else -noise.w, state1
        )


def _reversible_step(
    solver: ReversibleHeun,
    problem: AbstractSDE,
    t: Time,
    dt: Time,
    x: Tensor,
    w: Tensor | None,
    state: Tree,
) -> tuple[Tensor, Tree]:
    """The step to t with (dt, w); a step with (-dt, -w) undoes it, because the formula is symmetric
    in the two ends.
    """
    auxiliary, f, g = state
    half = _half(w)
    auxiliary = problem.multiply(g, w, axpy(dt, f, 2 * x - auxiliary))
    onto = problem.multiply(g, half, axpy(0.5 * dt, f, x))
    _, f, g = state = solver.init(problem, t, auxiliary)
    return problem.multiply(g, half, axpy(0.5 * dt, f, onto)), state
