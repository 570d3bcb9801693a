"""Rosenbrock methods for stiff ordinary equations: linear systems with the Jacobian of each sample,
no iteration.
"""

import math
from abc import ABC
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit._solvers.linear_systems import fits, linear_solver, no_derivatives, per_sample
from sdekit._solvers.runge_kutta import combine, weighted
from sdekit.calling import is_differentiated
from sdekit.elementary import Time, broadcast


@dataclass(frozen=True)
class RosenbrockTableau:
    """The coefficients of a Rosenbrock method in the form without products with the Jacobian, see
    `AbstractRosenbrock`.

    Attributes:
        gamma: the diagonal coefficient, the same for all stages.
        a: the rows a_i from the second stage to the last but one; the last stage begins at the
            state of the one before plus its k.
        c: the rows c_i from the second stage to the last.
        times: the times of the stages, in steps.
        rates: the d_i, the factors of h f_t.
        dense: the weights of all stages but the last in the two coefficients of the interpolant.

    Example:
        >>> sdekit.Rodas4.tableau.gamma
        0.25
    """

    gamma: float
    a: tuple[tuple[float, ...], ...]
    c: tuple[tuple[float, ...], ...]
    times: tuple[float, ...]
    rates: tuple[float, ...]
    dense: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class AbstractRosenbrock(AbstractSolver, ABC):
    """A stiffly accurate Rosenbrock method, with the Jacobian J = f_x of each sample:

        (1 / (gamma h) - J) k_i = f(t_0 + t_i h, x_0 + sum_j a_ij k_j) + sum_j (c_ij / h) k_j
                                  + h d_i f_t.

    J and f_t are those at the start of the step, and h is its length. x_1 is the argument of the
    last f plus the last k, and the last k is the error estimate. f receives t as with adaptive
    steps, `(batch, 1, ...)`, also on a grid. f of a sample must not depend on the others. A
    subclass defines `tableau`, `order` and `embedded`.

    Arguments:
        direct: the largest number d of coordinates of a sample for which J is computed, by d
            vector-Jacobian products in one batched call, and factorised once per step. With
            adaptive steps, a step that is tried again with another length has the same J, except
            with gradients and within torch.compile; which samples these are is read from the device
            in each step. For larger samples the systems are solved by GMRES from products J v,
            without preconditioner, in a subspace of at most 200 dimensions, whose vectors are kept.
            If it does not converge the step is NaN, and adaptive steps repeat it with a shorter
            one. GMRES has no gradients, and its checks of convergence wait for the device.
        residual: the residual of GMRES, relative to the largest right-hand side of the step so far.
            It should be at most 100 times the tolerance; otherwise steps are rejected, and results
            are less accurate than the tolerance.

    Raises:
        ValueError: in a solve, for a drift through which autograd finds no path to x, and with
            `gradient=`; for samples of more than `direct` coordinates, if gradients are needed,
            torch.func transforms the solve or tolerances are below residual / 100.

    Example:
        >>> isinstance(sdekit.Rodas4(), sdekit.AbstractRosenbrock)
        True

    References:
        Hairer and Wanner 1996, "Solving ordinary differential equations II", IV.7.
    """

    differentiates = True

    tableau: ClassVar[RosenbrockTableau]
    direct: int = field(default=2000, repr=False)
    residual: float = field(default=1e-6, repr=False)

    def resolution(self, x: Tensor) -> float:
        return self.residual / 100 if math.prod(x.shape[1:]) > self.direct else 0.0

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        """With adaptive steps the state of a solve has J and f_t, for a step that is tried again;
        on a grid it is empty.
        """
        return no_derivatives(x) if isinstance(t0, Tensor) and fits(x, self.direct) else ()

    def retried(self, given: Tree, returned: Tree) -> Tree:
        """J and f_t of the rejected step, which has the same t0 and x; with gradients none, because
        those of a sample that fails would make all gradients NaN.
        """
        if not returned or any(part.requires_grad for part in returned):
            return given
        jacobian, rate, known = returned
        return jacobian, rate, torch.ones_like(known)

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        tableau = self.tableau
        start = per_sample(t0, x)
        length = per_sample(t1, x) - start
        first = problem.drift(start, x)
        with nullcontext() if is_differentiated(first) else torch.no_grad():
            solved, rate, derivatives = linear_solver(
                problem, start, x, tableau.gamma * length, direct=self.direct,
                residual=self.residual, kept=state,
            )  # fmt: skip
        h = broadcast(length, x)
        increments: list[Tensor] = []
        point = x
        for i, time in enumerate(tableau.times):
            if i:
                # The last stage begins where the one before it ended.
                last = i == len(tableau.times) - 1
                point = point + increments[-1] if last else combine(x, tableau.a[i - 1], increments)
                rest = weighted(tableau.c[i - 1], increments)
                value = problem.drift(torch.lerp(start, start + length, time), point) + rest / h
            else:
                value = first
            if tableau.rates[i]:
                value = value + tableau.rates[i] * h * rate
            increments.append(solved(value))
        end = point + increments[-1]
        state = (*derivatives, torch.zeros_like(state[-1])) if state else ()
        return Step(end, increments[-1], (x, end, *increments[:-1]), state)

    def dense(self, problem: AbstractSDE, t0: Time, t1: Time, dense: Tree) -> Tree:
        start, end, *increments = dense
        zero = torch.zeros_like(start)
        return start, end, *(combine(zero, row, increments) for row in self.tableau.dense)

    def interpolate(self, dense: Tree, theta: Tensor) -> Tensor:
        """(1 - s) x_0 + s (x_1 + (1 - s) (d_1 + s d_2)), from what `dense` returned."""
        start, end, first, second = dense
        s = broadcast(theta, start)
        return torch.lerp(start, end, s) + s * (1 - s) * (first + s * second)


@dataclass(frozen=True, eq=False)
class Rodas4(AbstractRosenbrock):
    """The Rosenbrock method RODAS of order four with an embedded error estimate of order three, for
    stiff ordinary equations; L-stable.

    A step has six evaluations of f, and one Jacobian and one factorisation of a d x d matrix for
    each sample of up to 2,000 coordinates; for larger samples it uses GMRES. States within a step
    have order three. Arguments as in `AbstractRosenbrock`.

    Example:
        >>> stiff = sdekit.ODE(lambda t, x: -1000 * (x - torch.cos(t)))
        >>> control = sdekit.PIDController(rtol=1e-6, atol=1e-6)
        >>> x0 = torch.zeros(1, 1).double()
        >>> solution = sdekit.solve(stiff, x0, [0.0, 1.0], solver=sdekit.Rodas4(), control=control)
        >>> round(float(solution.x), 4), int(solution.accepted) < 100  # explicit: 330 or more
        (0.5411, True)

    References:
        Hairer and Wanner 1996, "Solving ordinary differential equations II", IV.7 and the code
        RODAS.
    """

    order = {"none": Order(4, 4)}
    embedded = 4
    tableau = RosenbrockTableau(
        gamma=0.25,
        a=(
            (1.544,),
            (0.9466785280815826, 0.2557011698983284),
            (3.314825187068521, 2.896124015972201, 0.9986419139977817),
            (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950),
        ),
        c=(
            (-5.6688,),
            (-2.430093356833875, -0.2063599157091915),
            (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
            (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160),
            (
                8.083246795921522,
                -7.981132988064893,
                -31.52159432874371,
                16.31930543123136,
                -6.058818238834054,
            ),
        ),
        times=(0.0, 0.386, 0.21, 0.63, 1.0, 1.0),
        rates=(0.25, -0.1043, 0.1035, -0.0362, 0.0, 0.0),
        dense=(
            (
                10.12623508344586,
                -7.487995877610167,
                -34.80091861555747,
                -7.992771707568823,
                1.025137723295662,
            ),
            (
                -0.6762803392801253,
                6.087714651680015,
                16.43084320892478,
                24.76722511418386,
                -6.594389125716872,
            ),
        ),
    )
