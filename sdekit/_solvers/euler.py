"""The Euler-Maruyama method."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time


@dataclass(frozen=True, eq=False)
class EulerMaruyama(AbstractSolver):
    """The Euler-Maruyama method for Ito equations: x_1 = x_0 + f(t_0, x_0) dt + g(t_0, x_0) dW.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x)
        >>> ts = sdekit.uniform(0.0, 1.0, 100)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.EulerMaruyama()).x.shape
        torch.Size([4, 1])

    References:
        Kloeden and Platen 1992, "Numerical solution of stochastic differential equations", sections
        10.2 and 14.1.
    """

    order = {
        "none": Order(1, 1),
        "additive": Order(1, 1),
        "diagonal": Order(0.5, 1),
        "scalar": Order(0.5, 1),
        "general": Order(0.5, 1),
    }

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        mean = problem.drift_at(t0)(x, t1 - t0, x)
        return Step(problem.diffuse(t0, x, noise.w, mean))

    def mean_weights(self, t0: float, t1: float) -> Sequence[float]:
        return (t1 - t0,)

    def with_noise(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, dw: Tensor | None
    ) -> Tensor:
        return problem.diffuse(t0, x, dw, x)
