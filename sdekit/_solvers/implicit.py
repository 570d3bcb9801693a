"""Methods for stiff stochastic equations that are implicit in the drift."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit._solvers.euler import EulerMaruyama
from sdekit._solvers.linear_systems import fits, per_sample
from sdekit._solvers.newton import implicit, initial_factors, smoothed, warn_without_solution
from sdekit.elementary import Time, axpy, broadcast, sqrt


@dataclass(frozen=True, eq=False)
class ImplicitEulerMaruyama(AbstractSolver):
    """The drift-implicit Euler-Maruyama method, x_1 = x_0 + f(t_1, x_1) dt + g(t_0, x_0) dW, for
    Ito equations with a stiff drift.

    The equation for x_1 is solved by Newton's method with the Jacobian of f for each sample. Its LU
    factors are reused, in later steps too, while the iteration converges fast. If it does not
    converge, or its solution is not the one that shorter steps lead to, the sample becomes NaN,
    with a warning. The latter is seen where an odd number of directions grow faster than 1 / dt. f
    of a sample must not depend on the others.

    Only accuracy limits the steps: for f = l x with l < 0 the mean shrinks by 1 / (1 - l dt) in a
    step, and the variance is stable wherever that of the equation is. f receives t as with adaptive
    steps, `(batch, 1, ...)`, also on a grid. Each iteration waits for the device. For ordinary
    equations states within a step are on the straight line between its ends.

    Arguments:
        direct: the largest number d of coordinates of a sample for which Jacobians and factors,
            d x d matrices, are computed. For larger samples each change of Newton's method is that
            of GMRES, from products with the Jacobian, without preconditioner, in a subspace of at
            most 200 dimensions, whose vectors are kept; it has no gradients. For diffusion
            equations the number of dimensions grows with the square root of dt times the largest
            rate. Where 200 do not suffice the sample is NaN: take shorter steps, a larger `direct`,
            or `SKROCK`, which needs no Jacobian. It is also NaN where GMRES finds a direction that
            grows faster than 1 / dt at the solution; one that the residual hardly contains is not
            seen.

    Raises:
        ValueError: in a solve, for a drift through which autograd finds no path to x, and with
            `gradient=`; for samples of more than `direct` coordinates, if gradients are needed or
            torch.func transforms the solve.
        RuntimeError: in a solve under torch.func.vmap, which hides whether a sample has converged.

    Warns:
        RuntimeWarning: on a grid, where Newton's method does not converge, or finds a solution that
            shorter steps do not lead to.

    Example:
        >>> drift = lambda t, x: -1000 * (x - torch.cos(t))
        >>> stiff = sdekit.SDE(drift, lambda t, x: 1.0, "additive")
        >>> x0, ts = torch.ones(4, 1), sdekit.uniform(0.0, 1.0, 10)  # explicit: 500 steps or more
        >>> x = sdekit.solve(stiff, x0, ts, solver=sdekit.ImplicitEulerMaruyama()).x
        >>> bool((x - 0.5403).abs().max() < 0.1)
        True

    References:
        Kloeden and Platen 1992, "Numerical solution of stochastic differential equations",
        section 12.2; Higham 2000, "Mean-square and asymptotic stability of the stochastic theta
        method", SIAM Journal on Numerical Analysis 38.
    """

    order = EulerMaruyama.order
    differentiates = True
    iterates = True

    direct: int = field(default=2000, repr=False)

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        return initial_factors(x, self.direct)

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        end = per_sample(t1, x)
        h = end - per_sample(t0, x)
        noisy = problem.diffuse(t0, x, noise.w, x)
        x1, unconnected, state = implicit(
            problem, end, h, noisy, noisy, state, allow_slow=True, direct=self.direct
        )
        warn_without_solution(t1, x1, unconnected, noisy, self.direct)
        return Step(x1, dense=(x, x1), state=state)


@dataclass(frozen=True, eq=False)
class ImplicitPlaten(AbstractSolver):
    """Platen's drift-implicit method of weak order two, with the trapezoidal rule for the drift:

        x_1 = x_0 + (f(t_0, x_0) + f(t_1, x_1)) dt / 2 + k,
        k = (a + b + 2 g_0) dW / 4 + (a - b) (dW^2 - |dt|) / (4 sqrt|dt|),
        a, b = g(t_1, x_0 + f_0 dt +- g_0 sqrt|dt|).

    For Ito equations with a stiff drift and additive, diagonal (g_i depends on x_i only) or scalar
    noise; strong order one. x_1 is found as in `ImplicitEulerMaruyama`. On a grid fast modes do not
    decay: for f = l x and l dt -> -infinity, x only changes its sign in each step. Adaptive steps
    resolve them: their error estimate is the difference from an Euler-Maruyama step, multiplied by
    (1 - J dt / 2)^{-1} with the Jacobian J of f. For ordinary equations states within a step are on
    the straight line between its ends.

    Arguments:
        direct: as of `ImplicitEulerMaruyama`.

    Raises:
        ValueError: in a solve, for a drift through which autograd finds no path to x, and with
            `gradient=`; for samples of more than `direct` coordinates, if gradients are needed or
            torch.func transforms the solve.
        RuntimeError: in a solve under torch.func.vmap, which hides whether a sample has converged.

    Warns:
        RuntimeWarning: on a grid, where Newton's method does not converge, or finds a solution that
            shorter steps do not lead to.

    Example:
        >>> drift = lambda t, x: -1000 * (x - torch.cos(t))
        >>> stiff = sdekit.SDE(drift, lambda t, x: 1.0, "additive")
        >>> x0, ts = torch.ones(4, 1), sdekit.uniform(0.0, 1.0, 10)  # explicit: 500 steps or more
        >>> x = sdekit.solve(stiff, x0, ts, solver=sdekit.ImplicitPlaten()).x
        >>> bool((x - 0.5403).abs().max() < 0.1)
        True

    References:
        Kloeden and Platen 1992, as for `ImplicitEulerMaruyama`, section 15.4.
    """

    order = {
        "none": Order(2, 2),
        "additive": Order(1, 2),
        "diagonal": Order(1, 2),
        "scalar": Order(1, 2),
    }
    embedded = 1.0
    differentiates = True
    iterates = True

    direct: int = field(default=2000, repr=False)

    def estimate_power(self, noise_type: NoiseType) -> float:
        return 2.0 if noise_type == "none" else 1.0

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        return initial_factors(x, self.direct)

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        start = per_sample(t0, x)
        end = per_sample(t1, x)
        h = end - start
        slope = problem.drift(start, x)
        half = axpy(0.5 * h, slope, x)
        kick = torch.zeros_like(x)
        correction = torch.zeros_like(x)
        if noise.w is not None:
            kick, correction = _kicks(problem, t0, t1, h, x, axpy(h, slope, x), noise.w)
        base = half + kick + correction
        guess = x + kick + correction
        allow_slow = not isinstance(t1, Tensor)  # on a grid
        x1, unconnected, state = implicit(
            problem, end, 0.5 * h, base, guess, state, allow_slow=allow_slow, direct=self.direct
        )
        warn_without_solution(t1, x1, unconnected, base, self.direct)
        if allow_slow and not fits(x, self.direct):  # nothing reads it, and it takes another solve
            return Step(x1, None, (x, x1), state)
        # From Euler's step, whose drift is that of the start and whose noise is g_0 dW.
        error = correction + (x1 - base) - (half - x)
        error = smoothed(problem, end, 0.5 * h, x1, error.detach(), state, direct=self.direct)
        return Step(x1, error, (x, x1), state)


def _kicks(
    problem: AbstractSDE, t0: Time, t1: Time, h: Tensor, x: Tensor, ahead: Tensor, w: Tensor
) -> tuple[Tensor, Tensor]:
    """g_0 dW, and k - g_0 dW."""
    s = broadcast(sqrt(h.abs()), w) * torch.ones_like(w)
    square = (w * w - s * s) / s
    g = problem.diffusion(t0, x)
    above = problem.diffusion(t1, problem.multiply(g, s, ahead))
    below = problem.diffusion(t1, problem.multiply(g, -s, ahead))
    kick = problem.multiply(g, w, torch.zeros_like(x))
    correction = problem.multiply(above, 0.25 * (w + square), -0.5 * kick)
    return kick, problem.multiply(below, 0.25 * (w - square), correction)
