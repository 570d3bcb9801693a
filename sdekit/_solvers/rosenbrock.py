"""Rosenbrock methods for stiff ordinary equations: linear systems with the Jacobian of each sample,
no iteration.
"""

import math
from abc import ABC
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from sdekit._arguments.numbers import require_number
from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit._solvers.linear_systems import fits, linear_solver, no_derivatives, per_sample
from sdekit._solvers.runge_kutta import stage_times
from sdekit.calling import is_differentiated
from sdekit.elementary import Time, axpy, broadcast, combined


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
        dense: the weights of all stages in each coefficient of the interpolant.

    Example:
        >>> sdekit.Rodas4.tableau.gamma
        0.25
    """

    gamma: float
    a: tuple[tuple[float, ...], ...]
    c: tuple[tuple[float, ...], ...]
    times: tuple[float, ...]
    rates: tuple[float, ...]
    dense: tuple[tuple[float, ...], ...]


@cache
def _weights(
    tableau: RosenbrockTableau, ndim: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """The weights d_i of h^2 f_t in the stages from the second on, beside 0 for their states, and
    the weights a_ij and c_ij of the k of each stage j but the last in the later stages i:
    `(stages - 1 - j, 2, 1, ...)`, for states of `ndim` dimensions.
    """
    # The last stage begins where the one before it ended.
    states = (*tableau.a, (*(tableau.a[-1] if tableau.a else ()), 1.0))
    pairs = [[(0.0, d) for d in tableau.rates[1:]]]
    for j in range(len(tableau.c)):
        later = zip(states[j:], tableau.c[j:], strict=True)
        pairs.append([(a[j], c[j]) for a, c in later])
    with torch.inference_mode(False):
        return [
            torch.tensor(part, dtype=dtype, device=device).reshape(len(part), 2, *[1] * ndim)
            for part in pairs
        ]


@dataclass(frozen=True, eq=False)
class AbstractRosenbrock(AbstractSolver, ABC):
    """A stiffly accurate Rosenbrock method, with the Jacobian J = f_x of each sample:

        (1 / (gamma h) - J) k_i = f(t_0 + t_i h, x_0 + sum_j a_ij k_j) + sum_j (c_ij / h) k_j
                                  + h d_i f_t.

    J and f_t are those at the start of the step, and h is its length. x_1 is the argument of the
    last f plus the last k, and the last k is the error estimate. f receives t as with adaptive
    steps, `(batch, 1, ...)`, also on a grid. f of a sample must not depend on the others. A
    subclass defines `tableau`, `order` and `embedded`.

    With adaptive steps `PIDController(..., safety=0.8)` rejects fewer of them than with 0.9 where
    solutions change between slow and fast motion, and then takes less time for the same error.

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
        TypeError: for a residual that is not a number.
        ValueError: for a residual that is not between 0 and 1; in a solve, for a drift through
            which autograd finds no path to x, and with `gradient=`; for samples of more than
            `direct` coordinates, if gradients are needed, torch.func transforms the solve or
            tolerances are below residual / 100.

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

    def __post_init__(self) -> None:
        require_number("residual", self.residual)
        if not 0 < self.residual < 1:
            raise ValueError(
                f"residual is a number between 0 and 1, such as 1e-6; not {self.residual}"
            )

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
        stop = per_sample(t1, x)
        length = stop - start
        first = problem.drift(start, x)
        differentiated = is_differentiated(first)
        with nullcontext() if differentiated else torch.no_grad():
            solve, rate, derivatives = linear_solver(
                problem, start, x, tableau.gamma * length, direct=self.direct,
                residual=self.residual, kept=state,
            )  # fmt: skip
        wide = torch.promote_types(x.dtype, torch.float32)
        narrow = x.dtype != wide
        h = length.to(wide).reshape(-1, *[1] * (x.ndim - 1))
        inverse = h.reciprocal()
        change = h * rate
        by_rate, *weights = _weights(tableau, x.ndim, wide, x.device)
        # The states and the sums over c_ij of all later stages, to which each k is added at once.
        sums = torch.addcmul(torch.stack([x, torch.zeros_like(x)]), by_rate, h * change)
        value = axpy(tableau.rates[0], change, first).to(x.dtype)
        point = x
        increments: list[Tensor] = []
        times = stage_times(tableau.times[1:], start, stop, x)[:-1]
        for time, weight in zip(times, weights, strict=True):
            increments.append(solve(value))
            sums = torch.addcmul(sums, weight, increments[-1])
            point, rest = sums[0].unbind(0)
            if differentiated:  # a graph that keeps a view would keep all sums
                point = point.clone()
            if narrow:
                point = point.to(x.dtype)
            value = torch.addcmul(problem.drift(time, point), rest, inverse)
            if narrow:
                value = value.to(x.dtype)
            sums = sums[1:]
        increments.append(solve(value))
        end = point + increments[-1]
        state = (*derivatives, torch.zeros_like(state[-1])) if state else ()
        return Step(end, increments[-1], (x, end, *increments), state)

    def dense(self, problem: AbstractSDE, t0: Time, t1: Time, dense: Tree) -> Tree:
        start, end, *increments = dense
        zero = torch.zeros_like(start)
        return start, end, *(combined(zero, row, increments) for row in self.tableau.dense)

    def interpolate(self, dense: Tree, theta: Tensor) -> Tensor:
        """(1 - s) x_0 + s (x_1 + (1 - s) (d_1 + s d_2 + s^2 d_3 ...)), from what `dense`
        returned.
        """
        start, end, *coefficients = dense
        s = broadcast(theta, start)
        total = coefficients[-1]
        for coefficient in reversed(coefficients[:-1]):
            total = coefficient + s * total
        return torch.lerp(start, end, s) + s * (1 - s) * total


@dataclass(frozen=True, eq=False)
class Rodas4(AbstractRosenbrock):
    """The Rosenbrock method RODAS of order four with an embedded error estimate of order three, for
    stiff ordinary equations; L-stable.

    A step has six evaluations of f, and one Jacobian and one factorisation of a d x d matrix for
    each sample of up to 2,000 coordinates; for larger samples it uses GMRES. States within a step
    have order three. Arguments as in `AbstractRosenbrock`.

    Raises:
        TypeError, ValueError: as `AbstractRosenbrock`.

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
                0.0,
            ),
            (
                -0.6762803392801253,
                6.087714651680015,
                16.43084320892478,
                24.76722511418386,
                -6.594389125716872,
                0.0,
            ),
        ),
    )


@dataclass(frozen=True, eq=False)
class Rodas5P(AbstractRosenbrock):
    """The Rosenbrock method RODAS5P of order five with an embedded error estimate of order four,
    for stiff ordinary equations; L-stable.

    A step has eight evaluations of f, and one Jacobian and one factorisation, as `Rodas4`; it takes
    fewer steps. States within a step have order four. Arguments as in `AbstractRosenbrock`.

    Raises:
        TypeError, ValueError: as `AbstractRosenbrock`.

    Example:
        >>> stiff = sdekit.ODE(lambda t, x: -1000 * (x - torch.cos(t)))
        >>> control = sdekit.PIDController(rtol=1e-8, atol=1e-8)
        >>> x0 = torch.zeros(1, 1).double()
        >>> solution = sdekit.solve(stiff, x0, [0.0, 1.0], solver=sdekit.Rodas5P(), control=control)
        >>> round(float(solution.x), 7)
        0.5411432

    References:
        Steinebach 2023, "Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks
        within the Julia Differential Equations package", BIT Numerical Mathematics 63, 27.
    """

    order = {"none": Order(5, 5)}
    embedded = 5
    tableau = RosenbrockTableau(
        gamma=0.21193756319429014,
        a=(
            (3.0,),
            (2.849394379747939, 0.45842242204463923),
            (-6.954028509809101, 2.489845061869568, -10.358996098473584),
            (
                2.8029986275628964,
                0.5072464736228206,
                -0.3988312541770524,
                -0.04721187230404641,
            ),
            (
                -7.502846399306121,
                2.561846144803919,
                -11.627539656261098,
                -0.18268767659942256,
                0.030198172008377946,
            ),
            (
                -7.502846399306121,
                2.561846144803919,
                -11.627539656261098,
                -0.18268767659942256,
                0.030198172008377946,
                1.0,
            ),
        ),
        c=(
            (-14.155112264123755,),
            (-17.97296035885952, -2.859693295451294),
            (147.12150275711716, -1.41221402718213, 71.68940251302358),
            (
                165.43517024871676,
                -0.4592823456491126,
                42.90938336958603,
                -5.961986721573306,
            ),
            (
                24.854864614690072,
                -3.0009227002832186,
                47.4931110020768,
                5.5814197821558125,
                -0.6610691825249471,
            ),
            (
                30.91273214028599,
                -3.1208243349937974,
                77.79954646070892,
                34.28646028294783,
                -19.097331116725623,
                -28.087943162872662,
            ),
            (
                37.80277123390563,
                -3.2571969029072276,
                112.26918849496327,
                66.9347231244047,
                -40.06618937091002,
                -54.66780262877968,
                -9.48861652309627,
            ),
        ),
        times=(
            0.0,
            0.6358126895828704,
            0.4095798393397535,
            0.9769306725060716,
            0.4288403609558664,
            1.0,
            1.0,
            1.0,
        ),
        rates=(
            0.21193756319429014,
            -0.42387512638858027,
            -0.3384627126235924,
            1.8046452872882734,
            2.325825639765069,
            0.0,
            0.0,
            0.0,
        ),
        dense=(
            (
                25.948786856663858,
                -2.5579724845846235,
                10.433815404888879,
                -2.3679251022685204,
                0.524948541321073,
                1.1241088310450404,
                0.4272876194431874,
                -0.17202221070155493,
            ),
            (
                -9.91568850695171,
                -0.9689944594115154,
                3.0438037242978453,
                -24.495224566215796,
                20.176138334709044,
                15.98066361424651,
                -6.789040303419874,
                -6.710236069923372,
            ),
            (
                11.419903575922262,
                2.8879645146136994,
                72.92137995996029,
                80.12511834622643,
                -52.072871366152654,
                -59.78993625266729,
                -0.15582684282751913,
                4.883087185713722,
            ),
        ),
    )
