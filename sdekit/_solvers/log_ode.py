"""The log-ODE method, which uses the areas between the coordinates of W."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit._solvers.milstein import (
    directional_derivative,
    load_forward_mode,
    require_derivative_of_diffusion,
)
from sdekit.elementary import Time


@dataclass(frozen=True, eq=False)
class LogODE(AbstractSolver):
    """The log-ODE method for Stratonovich equations, the midpoint rule with Levy areas:

        x~ = x_0 + f dt / 2 + g dW / 2,
        x_1 = x_0 + f~ dt + g~ dW + sum_jk D g~^k[g~^j] A^jk.

    f~ and g~ are evaluated at x~ and the middle t of the step, D is the derivative with respect to
    x, g^j multiplies the j-th Brownian motion, and A^jk is the Levy area between the coordinates j
    and k of W, see `Increment`. For general noise that does not commute, exact areas give the
    strong order one. `WhiteNoise` and `BrownianPath` draw, for each step by itself, areas with the
    right mean and covariance given W and its space-time Levy area; then the strong order is 0.5 and
    the weak order one. With noise that has no areas this method is `Midpoint`.

    Raises:
        RuntimeError: in a solve, for a g that depends on x in a way that torch cannot
            differentiate.

    Example:
        >>> def g(t, x):  # two Brownian motions that do not commute
        ...     return torch.stack([torch.ones_like(x), x.flip(-1)], dim=-1)
        >>> sde = sdekit.SDE(lambda t, x: -x, g, "general", "stratonovich", noise_size=2)
        >>> ts, solver = sdekit.uniform(0.0, 1.0, 10), sdekit.LogODE()
        >>> sdekit.solve(sde, torch.ones(4, 2), ts, solver=solver).x.shape
        torch.Size([4, 2])

    References:
        Castell and Gaines 1995, "An efficient approximation method for stochastic differential
        equations by means of the exponential Lie series"; Foster, Oberhauser and Lyons 2020, "An
        optimal polynomial approximation of Brownian motion", for the areas.
    """

    order = {
        "none": Order(2, 2),
        "additive": Order(1, 1),
        "diagonal": Order(1, 1),
        "scalar": Order(1, 1),
        "general": Order(0.5, 1),
    }
    sde_type = "stratonovich"
    levy = "A"

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        if problem.noise_type == "general":
            load_forward_mode()
            require_derivative_of_diffusion(problem, t0, x)
        return ()

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        dt = t1 - t0
        half = None if noise.w is None else 0.5 * noise.w
        middle = problem.diffuse(t0, x, half, problem.drift_at(t0)(x, 0.5 * dt, x))
        t = t0 + 0.5 * dt
        x = problem.diffuse(t, middle, noise.w, problem.drift_at(t)(middle, dt, x))
        if noise.a is None or noise.w is None:
            return Step(x)
        _, pushforward = directional_derivative(problem, t, middle)
        for unit, area in zip(
            torch.eye(noise.a.shape[-1]).to(noise.a), noise.a.unbind(-1), strict=True
        ):
            x = x + pushforward(unit.expand_as(noise.w), area)
        return Step(x)
