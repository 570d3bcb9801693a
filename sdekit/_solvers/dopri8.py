"""The method of order eight of Dormand and Prince, with two estimates of its error and output of
order seven between steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import Order, Step, Tree
from sdekit._solvers.runge_kutta import AbstractEmbeddedRungeKutta, Tableau, stage_times
from sdekit.elementary import Time, broadcast, combined

# Hairer, Norsett and Wanner 1993, section II.10, and the Fortran program DOP853. _A, _B, _C: the
# method. _E5: its b minus that of order five. _B3: the b of order three. _OUTPUT_STAGES: the stages
# of the output. _DENSE: the last four coefficients of its polynomial. fmt: off
_A = (
    (),
    (0.05260015195876773,),
    (0.0197250569845379, 0.0591751709536137),
    (0.02958758547680685, 0, 0.08876275643042054),
    (0.2413651341592667, 0, -0.8845494793282861, 0.924834003261792),
    (0.037037037037037035, 0, 0, 0.17082860872947386, 0.12546768756682242),
    (0.037109375, 0, 0, 0.17025221101954405, 0.06021653898045596, -0.017578125),
    (
        0.03709200011850479,
        0,
        0,
        0.17038392571223998,
        0.10726203044637328,
        -0.015319437748624402,
        0.008273789163814023,
    ),
    (
        0.6241109587160757,
        0,
        0,
        -3.3608926294469414,
        -0.868219346841726,
        27.59209969944671,
        20.154067550477894,
        -43.48988418106996,
    ),
    (
        0.47766253643826434,
        0,
        0,
        -2.4881146199716677,
        -0.590290826836843,
        21.230051448181193,
        15.279233632882423,
        -33.28821096898486,
        -0.020331201708508627,
    ),
    (
        -0.9371424300859873,
        0,
        0,
        5.186372428844064,
        1.0914373489967295,
        -8.149787010746927,
        -18.52006565999696,
        22.739487099350505,
        2.4936055526796523,
        -3.0467644718982196,
    ),
    (
        2.273310147516538,
        0,
        0,
        -10.53449546673725,
        -2.0008720582248625,
        -17.9589318631188,
        27.94888452941996,
        -2.8589982771350235,
        -8.87285693353063,
        12.360567175794303,
        0.6433927460157636,
    ),
)
_B = (
    0.054293734116568765,
    0,
    0,
    0,
    0,
    4.450312892752409,
    1.8915178993145003,
    -5.801203960010585,
    0.3111643669578199,
    -0.1521609496625161,
    0.20136540080403034,
    0.04471061572777259,
    0,
)
_C = (
    0,
    0.05260015195876773,
    0.0789002279381516,
    0.1183503419072274,
    0.2816496580927726,
    0.3333333333333333,
    0.25,
    0.3076923076923077,
    0.6512820512820513,
    0.6,
    0.8571428571428571,
    1.0,
)
_E5 = (
    0.01312004499419488,
    0,
    0,
    0,
    0,
    -1.2251564463762044,
    -0.4957589496572502,
    1.6643771824549864,
    -0.35032884874997366,
    0.3341791187130175,
    0.08192320648511571,
    -0.022355307863886294,
    0,
)
_B3 = (
    0.2440944881889764,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0.7338466882816118,
    0,
    0,
    0.022058823529411766,
    0,
)
_OUTPUT_STAGES = (
    (
        0.056167502283047954,
        0,
        0,
        0,
        0,
        0,
        0.25350021021662483,
        -0.2462390374708025,
        -0.12419142326381637,
        0.15329179827876568,
        0.00820105229563469,
        0.007567897660545699,
        -0.008298,
    ),
    (
        0.03183464816350214,
        0,
        0,
        0,
        0,
        0.028300909672366776,
        0.053541988307438566,
        -0.05492374857139099,
        0,
        0,
        -0.00010834732869724932,
        0.0003825710908356584,
        -0.00034046500868740456,
        0.1413124436746325,
    ),
    (
        -0.42889630158379194,
        0,
        0,
        0,
        0,
        -4.697621415361164,
        7.683421196062599,
        4.06898981839711,
        0.3567271874552811,
        0,
        0,
        0,
        -0.0013990241651590145,
        2.9475147891527724,
        -9.15095847217987,
    ),
)
_OUTPUT_TIMES = (0.1, 0.2, 0.7777777777777778)
_DENSE = (
    (
        -8.428938276109013,
        0,
        0,
        0,
        0,
        0.5667149535193777,
        -3.0689499459498917,
        2.38466765651207,
        2.117034582445028,
        -0.871391583777973,
        2.2404374302607883,
        0.6315787787694688,
        -0.08899033645133331,
        18.148505520854727,
        -9.194632392478356,
        -4.436036387594894,
    ),
    (
        10.427508642579134,
        0,
        0,
        0,
        0,
        242.28349177525817,
        165.20045171727028,
        -374.5467547226902,
        -22.113666853125306,
        7.733432668472264,
        -30.674084731089398,
        -9.332130526430229,
        15.697238121770845,
        -31.139403219565178,
        -9.35292435884448,
        35.81684148639408,
    ),
    (
        19.985053242002433,
        0,
        0,
        0,
        0,
        -387.0373087493518,
        -189.17813819516758,
        527.8081592054236,
        -11.57390253995963,
        6.8812326946963,
        -1.0006050966910838,
        0.7777137798053443,
        -2.778205752353508,
        -60.19669523126412,
        84.32040550667716,
        11.99229113618279,
    ),
    (
        -25.69393346270375,
        0,
        0,
        0,
        0,
        -154.18974869023643,
        -231.5293791760455,
        357.6391179106141,
        93.40532418362432,
        -37.45832313645163,
        104.0996495089623,
        29.8402934266605,
        -43.53345659001114,
        96.32455395918828,
        -39.17726167561544,
        -149.72683625798564,
    ),
)
_E3 = tuple(b - b3 for b, b3 in zip(_B, _B3, strict=True))
# fmt: on


@dataclass(frozen=True, eq=False)
class Dopri8(AbstractEmbeddedRungeKutta):
    """DOP853, the method of Dormand and Prince of order eight with embedded error estimates of
    orders five and three, twelve evaluations per step; for small tolerances.

    With e_5 and e_3 the estimates of both errors relative to the tolerance, the step has
    q = e_5^2 / sqrt(e_5^2 + 0.01 e_3^2), which is O(dt^8). States within a step are of order seven
    and cost three more evaluations in that step.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> control = sdekit.PIDController(rtol=1e-6, atol=1e-6)
        >>> x0 = torch.ones(1, 1).double()
        >>> x = sdekit.solve(ode, x0, [0.0, 1.0], solver=sdekit.Dopri8(), control=control).x
        >>> round(float(x), 5)  # e^-1
        0.36788

    References:
        Hairer, Norsett and Wanner 1993, "Solving ordinary differential equations I", sections II.5,
        II.6 and II.10.
    """

    order = {"none": Order(8, 8)}
    embedded = 8
    tableau = Tableau(a=_A, b=_B, c=_C, embedded=tuple(b - e for b, e in zip(_B, _E5, strict=True)))

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        step = super().step(problem, t0, t1, x, noise, state)
        _, _, *increments = step.dense
        return Step(
            step.x,
            (step.error, combined(torch.zeros_like(x), _E3, increments)),
            step.dense,
            step.state,
        )

    def quotient(self, measure: Callable[[Tensor], Tensor], error: Tree) -> Tensor:
        fifth, third = map(measure, error)
        combined = torch.hypot(fifth, 0.1 * third)
        return torch.where(
            combined.isinf(),
            combined,
            fifth * fifth / combined.clamp(min=torch.finfo(combined.dtype).tiny),
        )

    def dense(self, problem: AbstractSDE, t0: Time, t1: Time, dense: Tree) -> Tree:
        """Computes three more stages, then the coefficients of the polynomial of degree seven."""
        start, end, *increments = dense
        width = broadcast(t1 - t0, start)
        first = increments[0]
        last = increments[-1]
        for t, row in zip(
            stage_times(_OUTPUT_TIMES, t0, t1, start)[:-1], _OUTPUT_STAGES, strict=True
        ):
            increments.append(width * problem.drift(t, combined(start, row, increments)))
        change = end - start
        rest = (combined(torch.zeros_like(start), row, increments) for row in _DENSE)
        return start, change, first - change, 2 * change - first - last, *rest

    def interpolate(self, dense: Tree, theta: Tensor) -> Tensor:
        """x_0 + s (d_1 + (1 - s) (d_2 + s (d_3 + (1 - s) (d_4 + ...)))), from what `dense`
        returned.
        """
        start, *terms = dense
        s = broadcast(theta, start)
        total = torch.zeros_like(start)
        for i, term in reversed(list(enumerate(terms))):
            total = (total + term) * (1 - s if i % 2 else s)
        return start + total
