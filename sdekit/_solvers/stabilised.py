"""Explicit methods with many stages for stiff equations of many dimensions: no Jacobian."""

import functools
import math
from dataclasses import dataclass

from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Step, Tree
from sdekit._solvers.euler import EulerMaruyama
from sdekit.elementary import Time, axpy, scaled

_DAMPING = 0.05


@dataclass(frozen=True, eq=False)
class SKROCK(AbstractSolver):
    """The stabilised method SK-ROCK for stiff Ito equations, s stages by Chebyshev's recurrence:

        k_1 = x_0 + m_1 f(t_0, x_0 + n Q) dt + c Q,
        k_i = m_i f(t_i, k_(i-1)) dt + v_i k_(i-1) + (1 - v_i) k_(i-2), k_0 = x_0, x_1 = k_s.

    Here Q = g(t_0, x_0) dW, and t_i is the time of k_(i-1). With the Chebyshev polynomials T_i,
    a = 1 + 0.05 / s^2 and b = T_s(a) / T_s'(a), the coefficients are m_1 = b / a, n = s b / 2,
    c = s b / a, m_i = 2 b T_(i-1)(a) / T_i(a) and v_i = 2 a T_(i-1)(a) / T_i(a).

    For Ito equations with a drift whose Jacobian has negative real eigenvalues, such as those of
    discretised diffusion in space. With s evaluations, steps are stable if |l dt| <= 1.93 s^2 for
    the eigenvalue l of largest modulus; if g is proportional to the state, also in mean square.
    s steps of Euler-Maruyama, with as many evaluations, are stable for |l dt| <= 2 s. But a step
    multiplies a stiff coordinate by up to 0.95 in absolute value, with any number of stages: what
    is stiff and begins far from rest takes tens of steps to decay. The method needs neither a
    Jacobian nor a linear system. For ordinary equations states within a step are on the straight
    line between its ends.

    Arguments:
        stages: s, at least sqrt(|l dt| / 1.93).

    Raises:
        ValueError: for a number of stages that is not a positive integer.

    Example:
        >>> stiff = sdekit.SDE(lambda t, x: -1000 * x, lambda t, x: 1.0, "additive")
        >>> x0, ts = torch.ones(4, 1), sdekit.uniform(0.0, 1.0, 10)  # l dt = -100
        >>> x = sdekit.solve(stiff, x0, ts, solver=sdekit.SKROCK(8)).x
        >>> bool(x.abs().max() < 1)
        True
        >>> decay = sdekit.ODE(lambda t, x: -100 * x)
        >>> x = sdekit.solve(decay, torch.ones(1, 1), [0.0, 0.05], solver=sdekit.SKROCK(10)).x
        >>> round(float(x), 2)  # exactly 0.007
        -0.95

    References:
        Abdulle, Almuslimani and Vilmart 2018, "Optimal explicit stabilized integrator of weak order
        one for stiff and ergodic stochastic differential equations", arXiv 1708.08145.
    """

    stages: int

    order = EulerMaruyama.order

    def __post_init__(self) -> None:
        if not isinstance(self.stages, int) or isinstance(self.stages, bool) or self.stages < 1:
            raise ValueError(f"stages must be a positive integer, not {self.stages!r}")

    def __repr__(self) -> str:
        return f"SKROCK({self.stages})"

    @functools.cached_property
    def weights(self) -> tuple[tuple[float, float, float], ...]:
        """m_i, v_i and the time t_i, in steps, at which stage i evaluates f."""
        s = self.stages
        point = 1 + _DAMPING / s**2
        # T_i(point) = cosh(i a)
        a = math.acosh(point)
        chebyshev = [math.cosh(i * a) for i in range(s + 1)]
        scale = chebyshev[s] * math.sinh(a) / (s * math.sinh(s * a))
        rows = [(scale / point, 1.0, 0.0)]
        before = 0.0
        time = scale / point
        for i in range(2, s + 1):
            ratio = chebyshev[i - 1] / chebyshev[i]
            m = 2 * scale * ratio
            v = 2 * point * ratio
            rows.append((m, v, time))
            after = m + v * time + (1 - v) * before
            before = time
            time = after
        return tuple(rows)

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        dt = t1 - t0
        (first, _, _), *rows = self.weights
        point = 1 + _DAMPING / self.stages**2
        share = self.stages * first  # c; n = c point / 2
        shifted = x
        start = x
        if noise.w is not None:
            g = problem.diffusion(t0, x)
            shifted = problem.multiply(g, 0.5 * share * point * noise.w, x)
            start = problem.multiply(g, share * noise.w, x)
        before = x
        last = axpy(first * dt, problem.drift(t0, shifted), start)
        for m, v, time in rows:
            combined = axpy(v, last, scaled(1 - v, before))
            before = last
            last = axpy(m * dt, problem.drift(t0 + time * dt, last), combined)
        return Step(last, dense=(x, last))
