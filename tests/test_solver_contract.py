"""The solver contract: what each solver promises per kind of noise, forwards and backwards, on
nonlinear problems.

Weak orders are measured without Monte Carlo: the expectation of one step by Gauss-Hermite
quadrature against the expansion of the semigroup, whose generator is differentiated by autograd.
Strong orders come from 2,000 paths on one fine noise, against the Taylor method of order 1.5 on
that noise, which shares nothing with the solvers.
"""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from convergence import (
    SIZES,
    START,
    FinePath,
    Nodes,
    b,
    derivative,
    expanded,
    f,
    fine,
    ito,
    problem,
    quadrature,
    reverse_decay,
    slope,
    strong_slope,
    taylor,
    weak_slope,
)

from sdekit import (
    DEIS,
    ODE,
    RK4,
    SDE,
    SEA,
    SKROCK,
    SRID2,
    AbstractEmbeddedRungeKutta,
    AbstractMultistep,
    AbstractPredictor,
    AbstractSingleStep,
    AdamsBashforth,
    AdamsMoulton,
    Clocked,
    ClockedHeun,
    DPMSolver,
    DPMSolverSingle,
    EulerMaruyama,
    ExponentialEuler,
    ExponentialHeun,
    ImplicitPlaten,
    Increment,
    Langevin,
    Milstein,
    PredictorCorrector,
    ReversibleHeun,
    SPaRK,
    UniPC,
    WhiteNoise,
    all_solvers,
    solve,
    uniform,
)
from sdekit._solvers.planned import AbstractPlanned
from sdekit.elementary import exp

RULES = [  # others have their variants
    *(AdamsBashforth(k) for k in (1, 2, 3, 4)),
    *(AdamsMoulton(k) for k in (1, 2, 3, 4)),
    *(
        DPMSolver(k, form)
        for k, form in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun"))
    ),
    *(UniPC(k, form) for k in (1, 2, 3) for form in ("bh1", "bh2")),
    *(DEIS(k, variable) for k, variable in ((2, "rho"), (3, "t"), (4, "rho"), (4, "log_rho"))),
    *(rule(lower_final=True) for rule in (AdamsBashforth, AdamsMoulton, DPMSolver, UniPC)),
]


def variants(rule):
    """With each number of values, each of its choices, and fewer values at the end."""
    yield from (replace(rule, k=k) for k in rule.accuracy)
    for name, values in rule.choices.items():
        yield from (replace(rule, **{name: value}) for value in values)
    yield replace(rule, lower_final=True)


KNOWN = {type(rule) for rule in RULES}
RULES += [
    rule
    for other in all_solvers(AbstractMultistep)
    if type(other) not in KNOWN
    for rule in variants(other)
]
SINGLE = [DPMSolverSingle(3), *all_solvers(AbstractSingleStep)]
PLANNED = [*RULES, *SINGLE]
MULTISTEP = [*PLANNED, ReversibleHeun()]
PAIRS = all_solvers(AbstractEmbeddedRungeKutta)  # their orders are in test_runge_kutta.py
PREDICTORS = all_solvers(AbstractPredictor)  # they are for the reverse of an equation
OTHERS = (AbstractPlanned, ReversibleHeun, AbstractEmbeddedRungeKutta, AbstractPredictor)
SOLVERS = [
    *(solver for solver in all_solvers() if not isinstance(solver, OTHERS)),
    *(ExponentialEuler(-1.3), ExponentialHeun(-1.3), SKROCK(3), *MULTISTEP),
]
WAYS = {"forwards": 1, "backwards": -1}
DIRECTIONS = pytest.mark.parametrize("direction", WAYS.values(), ids=WAYS)


def both_ways(measured):
    """What is measured in each direction of time."""
    return {name: measured(direction) for name, direction in WAYS.items()}


def alike_both_ways(number, error):
    return pytest.approx(dict.fromkeys(WAYS, number), abs=error)


# Convergence of paths


@DIRECTIONS
@pytest.mark.parametrize("kind", ["additive", "diagonal"])
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_the_derivatives_of_the_reference_are_those_of_autograd(sde_type, kind, direction):
    t = torch.full_like(START, 0.3, requires_grad=True)
    x = START.clone().requires_grad_()
    drift, columns = ito(kind, sde_type, direction)
    for value, written in zip(
        (drift(t, x), *columns(t, x)), expanded(kind, sde_type, direction, t, x), strict=True
    ):
        by_x = derivative(value, x)
        found = (value, derivative(value, t), by_x, derivative(by_x, x))
        for part, number in zip(found, written, strict=True):
            expected = torch.as_tensor(number, dtype=torch.float64).expand_as(part)
            torch.testing.assert_close(part, expected, rtol=1e-13, atol=1e-13)


def cases(solvers, *extra):
    return [
        pytest.param(solver, kind, id=f"{solver}-{kind}")
        for solver in solvers
        for kind in (*solver.order, *extra)
    ]


@pytest.mark.parametrize(("solver", "kind"), cases(SOLVERS))
def test_strong_order(solver, kind):
    """That of scalar noise is that of diagonal noise, of which it has the paths in one
    dimension.
    """
    alike = "diagonal" if kind == "scalar" else kind
    found = both_ways(lambda direction: strong_slope(solver, alike, direction))
    assert found == alike_both_ways(solver.order[kind].strong, 0.15)
    if kind == "scalar":
        for direction in WAYS.values():
            ends = [one_dimension(solver, noise_type, direction) for noise_type in (kind, alike)]
            torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


def one_dimension(solver, kind, direction):
    ts = uniform(*(0.0, 1.0)[::direction], 4)
    return solve(problem(kind, solver), START, ts, solver=solver, noise=fine(1)).x


@pytest.mark.parametrize(
    "solver", [s for s in SOLVERS if s.sde_type == "stratonovich"] + [Milstein()], ids=str
)
def test_strong_order_is_that_of_diagonal_noise_where_general_noise_commutes(solver):
    found = both_ways(lambda direction: strong_slope(solver, "commutative", direction))
    assert found == alike_both_ways(solver.order["diagonal"].strong, 0.15)


@functools.cache
def coupled(solver, steps):
    """Ends of paths, backwards, whose scalar noise moves each coordinate by a function of the
    other.
    """
    equation = SDE(lambda t, x: f(t, x.flip(1)), lambda t, x: b(t, x.flip(1)), "scalar")
    x0 = torch.cat([START, START.flip(0)], dim=1)
    return solve(equation, x0, uniform(1.0, 0.0, steps), solver=solver, noise=fine(1)).x


@pytest.mark.parametrize(("solver", "promised"), [(Milstein(), 1), (SRID2(), 1.5)], ids=str)
def test_scalar_noise_may_couple_coordinates(solver, promised):
    """Where g_i depends on all of x, the derivative of g is a matrix and not symmetric."""
    steps = np.array([16, 32, 64])
    exact = coupled(SRID2(), 2**8)
    errors = [(coupled(solver, n) - exact).norm() for n in steps]
    assert slope(steps, errors) == pytest.approx(promised, abs=0.15)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if "additive" in s.order], ids=str)
def test_time_runs_backwards_where_the_grid_does(solver):
    """dx = x dt with hardly any noise, from 1 to 0: x falls, by e."""
    steps = 240 if isinstance(solver, ExponentialEuler) else 100
    x = solve(
        SDE(lambda t, x: x, lambda t, x: 1e-9, "additive"),
        torch.ones(1, 1, dtype=torch.float64),
        uniform(1.0, 0.0, steps),
        solver=solver,
        noise=WhiteNoise(0),
    ).x
    assert x.item() == pytest.approx(math.exp(-1), abs=2e-3)


class Without(FinePath):
    """The fine noise without H, or with its sign reversed in reverse time, as where a reversed path
    is taken for a path.
    """

    def __init__(self, noise, factor):
        self.noise = noise
        self.cells = noise.cells
        self.factor = factor

    def answer(self, query):
        for step in self.noise.answer(query):
            yield step._replace(h=self.factor * step.h)


KINDS = ("diagonal", "additive")
H_SOLVERS = [  # without H no strong order is more than one
    (solver, kind)
    for solver in SOLVERS
    for kind in [k for k in KINDS if k in solver.order and solver.order[k].strong > 1][:1]
]


@pytest.mark.parametrize(("solver", "kind"), H_SOLVERS, ids=str)
def test_without_its_area_or_with_the_area_of_a_path_not_reversed_the_strong_order_falls(
    solver, kind
):
    for direction in (1, -1):
        assert strong_slope(solver, kind, direction, Without(fine(1), 0.0)) < 1.15
    assert strong_slope(solver, kind, -1, Without(fine(1), -1.0)) < 1.15


@pytest.mark.parametrize(("factor", "power"), [(1, 2), (0, 1.5)], ids=["with H", "without H"])
def test_the_shift_of_euler_needs_the_area(factor, power):
    """The error of one step of SEA; the global order is one either way."""
    h = 2.0 ** -np.arange(5, 11)
    errors = []
    w, z = torch.randn(
        2, len(START), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    t = torch.tensor(0.3, dtype=torch.float64)
    for step in h:
        noise = Increment(w * math.sqrt(step), z * math.sqrt(step / 12))
        exact = taylor("additive", "ito", 1, t, START, step, noise)
        end = (
            SEA()
            .step(
                problem("additive", SEA()),
                0.3,
                0.3 + step,
                START,
                noise._replace(h=factor * noise.h),
                (),
            )
            .x
        )
        errors.append((end - exact).norm())
    assert slope(1 / h, errors) == pytest.approx(power, abs=0.05)


# Convergence of means


WITH_NOISE = [
    case for case in cases(s for s in SOLVERS if s not in MULTISTEP) if case.values[1] != "none"
]


@pytest.mark.parametrize(("solver", "kind"), WITH_NOISE)
def test_weak_order_of_one_step(solver, kind):
    """Without noise it is the strong order."""
    found = both_ways(lambda direction: weak_slope(solver, kind, direction))
    assert found == alike_both_ways(solver.order[kind].weak + 1, 0.1)


def clocked(q):
    """A nonlinear semi-linear equation on the clock e^{q l}, F a function of l and x = y
    scale(l).
    """
    return Clocked(lambda l, x: torch.sin(2 * x) + 0.5 * l, lambda l: exp(-l), a=1 + q / 2, q=q)


SEVERAL = [
    *(
        (rule, kind)
        for rule in RULES
        if not rule.lower_final and "additive" in rule.order
        for kind in ("additive", "clock, eta = 1", "clock, eta = 0.5")
    ),
    *((ClockedHeun(), kind) for kind in ("additive", "clock, eta = 1", "clock, eta = 0.5")),
    *((ReversibleHeun(), kind) for kind in ("additive", "diagonal")),
]


@pytest.mark.parametrize("solver", dict.fromkeys(solver for solver, _ in SEVERAL), ids=str)
def test_weak_order_of_several_steps(solver):
    """Expectations over all increments of 1, 2, 4, 8 steps by product quadrature; the differences
    fall with the order. Forwards and backwards by turns.
    """
    found = {}
    promised = {}
    for i, (other, kind) in enumerate(SEVERAL):
        if other == solver:
            found[kind] = order_of_several_steps(solver, kind, (-1) ** (i + i // 3))
            promised[kind] = solver.order.get(kind, solver.order["additive"]).weak - 0.35
    assert all(found[kind] > promised[kind] for kind in found), (found, promised)


def order_of_several_steps(solver, kind, direction):
    clocks = {"clock, eta = 1": clocked(2.0), "clock, eta = 0.5": clocked(0.5)}
    equation = clocks[kind] if kind in clocks else problem(kind, solver)
    values = []
    start = 1.0 if kind in clocks else 0.5
    # Longer spans of ClockedHeun, and of rules that look far back, have errors of order two that
    # change their sign.
    reach = getattr(solver, "k", 1) + getattr(solver, "corrects", False)
    long = getattr(solver, "k", 1) > 1 or isinstance(solver, ClockedHeun)
    span = 0.02 if reach > 4 else 0.05 if long else 0.1 if kind == "diagonal" else 0.2
    for n in (1, 2, 4, 8):
        grid, mass = quadrature(4, n)
        x0 = torch.full((len(grid), 1), 0.4, dtype=torch.float64)
        x = solve(
            equation,
            x0,
            uniform(start, start + span * direction, n),
            solver=solver,
            noise=Nodes(grid),
        ).x[:, 0]
        values.append((mass * torch.cos(2 * x)).sum())
    differences = torch.stack(values).diff().abs()
    return math.log2(differences[-2] / differences[-1])


# Estimates of the error


EMBEDDED = [s for s in SOLVERS if s.embedded is not None]


# `embedded` is the least power. The estimate of SPaRK is of Levy's area, which is only there with
# general noise; that of ImplicitPlaten of Milstein's correction, or else of the drift.
POWERS = {
    (solver, kind): power
    for solver in EMBEDDED
    for kind, power in {
        SPaRK: dict.fromkeys(("additive", "diagonal", "scalar", "commutative"), 1.5),
        ImplicitPlaten: {"none": 2, "additive": 1.5},
    }.get(type(solver), {}).items()
}
COMMUTING = [
    pytest.param(s, "commutative", id=f"{s}-commutative") for s in EMBEDDED if isinstance(s, SPaRK)
]


@pytest.mark.parametrize(("solver", "kind"), [*cases(EMBEDDED), *COMMUTING])
def test_the_error_estimate_falls_with_its_power(solver, kind):
    h = 2.0 ** -np.arange(5, 11)
    errors = []
    shape = SIZES.get(kind, ())
    x = START[:, 0]
    noise = torch.randn(
        2, len(START), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    w, z = noise if shape else noise[..., 0]
    for step in h:
        drawn = Increment(w * math.sqrt(step), z * math.sqrt(step / 12))
        equation = problem(kind, solver)
        state = solver.init(equation, 0.3, x)
        end = solver.step(equation, 0.3, 0.3 + step, x, drawn, state)
        errors.append(end.error.square().mean().sqrt())
    promised = POWERS.get((solver, kind), solver.embedded)
    assert slope(1 / h, errors) == pytest.approx(promised, abs=0.1)


# Coefficients


def conditions(a, b, c):
    """The eight order conditions of a fourth-order Runge-Kutta method, and that rows sum to c."""
    a = np.array([[*row, *[0] * (len(b) - len(row))] for row in a], dtype=float)
    b = np.array(b, dtype=float)
    c = np.array(c, dtype=float)
    return np.array(
        [
            b.sum() - 1,
            b @ c - 1 / 2,
            b @ c**2 - 1 / 3,
            b @ a @ c - 1 / 6,
            b @ c**3 - 1 / 4,
            (b * c) @ a @ c - 1 / 8,
            b @ a @ c**2 - 1 / 12,
            b @ a @ a @ c - 1 / 24,
            *(a.sum(1) - c),
        ]
    )


def test_rk4_satisfies_the_order_conditions_and_no_neighbour_does():
    tableau = RK4.tableau
    assert np.abs(conditions(tableau.a, tableau.b, tableau.c)).max() < 1e-14
    for i, row in enumerate(tableau.a):
        for j, value in enumerate(row):
            if value:
                a = [list(r) for r in tableau.a]
                a[i][j] *= 1.05
                assert np.abs(conditions(a, tableau.b, tableau.c)).max() > 1e-3
    for i in range(4):
        b = list(tableau.b)
        b[i] *= 1.05
        assert np.abs(conditions(tableau.a, b, tableau.c)).max() > 1e-3


@pytest.mark.parametrize(
    ("k", "published"),
    [(1, [1]), (2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12])],
)
def test_adams_bashforth_has_the_classical_weights_on_even_grids(k, published):
    grid = uniform(1.0, -1.0, 8).tolist()
    planned = AdamsBashforth(k).plan(ODE(f), grid)
    for t in grid[k - 1 : -1]:
        assert planned.planned[t].weights == pytest.approx(
            [-0.25 * w for w in published], abs=1e-13
        )
    assert [len(planned.planned[t].weights) for t in grid[1:4]] == [
        min(i + 1, k) for i in range(1, 4)
    ]


def test_orders_that_the_first_or_the_last_steps_limit():
    """To two where the first step has one value, or the last one is of order one; to three with a
    corrector.
    """
    for solver, order in (
        (AdamsBashforth(4), 4),
        (AdamsBashforth(4, self_starting=False), 2),
        (AdamsBashforth(4, lower_final=True), 2),
        (AdamsMoulton(3), 4),
        (AdamsMoulton(3, self_starting=False), 3),
        (AdamsMoulton(4), 3),
    ):
        assert solver.order == {"none": (order, order), "additive": (1, 2)}


# What every solver keeps


ALL = [*SOLVERS, *PAIRS, *PREDICTORS, PredictorCorrector(EulerMaruyama(), Langevin(steps=2))]


def every_problem(solver):
    if solver.normals or isinstance(solver, AbstractPredictor):
        return [reverse_decay()]
    constant = SDE(f, lambda t, x: 0.7, "additive")  # g as one number
    return [
        *([constant] if "additive" in solver.order else []),
        *(problem(kind, solver) for kind in solver.order),
    ]


EVENTS = [(), (3,), (2, 1, 3)]


@pytest.mark.parametrize("solver", ALL, ids=str)
def test_shapes_dtypes_and_batch_independence(solver):
    """A sample's bits are the same in a smaller batch: the last rows and others in another order,
    by turns.
    """
    for event in EVENTS:
        every_dtype_and_smaller_batches(solver, event)


def every_dtype_and_smaller_batches(solver, event):
    start = torch.randn(6, *event, generator=torch.Generator().manual_seed(0))
    grid = uniform(1.0, 0.0, 6)
    if not isinstance(solver, AbstractPlanned):  # rules that look back need steps to do so
        grid = grid[:4]
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    equations = every_problem(solver)
    tried = list(itertools.product(equations, dtypes))
    if len(event) != 1:  # all with vectors, one with numbers and one with images
        tried = [(equation, dtypes[1] if event else dtypes[0]) for equation in equations]
    elif len(equations) >= len(dtypes) - 1:  # single precision and another by turns
        tried = [
            (equation, dtype)
            for i, equation in enumerate(equations)
            for dtype in (dtypes[1], dtypes[0 if i % 3 == 0 else 1 + i % 3])
        ]
    order = torch.tensor([5, 0, 3])
    some = itertools.cycle([(slice(2, None), WhiteNoise(1, first=2)), (order, None)])
    for equation, dtype in tried:
        x0 = start.to(dtype)

        def run(x0, noise, equation=equation):
            return solve(equation, x0, grid, solver=solver, noise=noise).x

        whole = run(x0, WhiteNoise(1))
        assert whole.dtype == dtype
        assert whole.shape == x0.shape
        rows, noise = next(some)
        assert torch.equal(run(x0[rows], noise or WhiteNoise(1).rows(rows)), whole[rows])
        if dtype == tried[0][1]:
            assert run(x0[:0], WhiteNoise(1)).shape == (0, *event)


@pytest.mark.parametrize(
    "solver", [s for s in [*SOLVERS, *PAIRS] if not isinstance(s, AbstractPlanned)], ids=str
)
def test_samples_may_have_times_of_their_own(solver):
    for event in EVENTS:
        each_has_its_times(solver, event)


def each_has_its_times(solver, event):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *event, generator=generator, dtype=torch.float64)
    t0 = torch.tensor([0.0, 0.3, 0.5], dtype=torch.float64)
    t1 = torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64)
    for equation in every_problem(solver):
        shape = equation.noise_shape(x)
        noise = Increment()
        if shape is not None:
            noise = Increment(*torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64))
        end = solver.step(equation, t0, t1, x, noise, solver.init(equation, t0, x))
        for i in range(3):
            row = slice(i, i + 1)
            alone = Increment(*(part if part is None else part[row] for part in noise))
            state = solver.init(equation, t0[i].item(), x[row])
            single = solver.step(equation, t0[i].item(), t1[i].item(), x[row], alone, state)
            torch.testing.assert_close(end.x[row], single.x, rtol=1e-12, atol=1e-12)
            if end.error is not None:
                estimates = (
                    (end.error, single.error)
                    if isinstance(end.error, tuple)
                    else ((end.error,), (single.error,))
                )
                for error, other in zip(*estimates, strict=True):
                    assert error.shape == x.shape
                    torch.testing.assert_close(error[row], other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ALL, ids=str)
def test_gradients_flow_through_a_solve(solver):
    equation = every_problem(solver)[-1]

    def end(x0):
        return solve(equation, x0, uniform(0.5, 0.0, 4), solver=solver, noise=WhiteNoise(1)).x

    x0 = torch.tensor([[-1.0], [1.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(end, x0)


@pytest.mark.parametrize("solver", ALL, ids=str)
def test_no_solver_needs_gradients_enabled(solver):
    for equation in every_problem(solver):
        x0 = torch.linspace(-1, 1.2, 3)[:, None]
        expected = solve(equation, x0, uniform(0.5, 0.0, 4), solver=solver, noise=WhiteNoise(1)).x
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                x = solve(equation, x0, uniform(0.5, 0.0, 4), solver=solver, noise=WhiteNoise(1)).x
                # Milstein's derivative is then taken forwards, with another rounding.
                torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-7)


@DIRECTIONS
@pytest.mark.parametrize("kind", ReversibleHeun.order)
def test_reversible_heun_finds_its_way_back(kind, direction):
    solver = ReversibleHeun()
    equation = problem(kind, ReversibleHeun())
    x0 = torch.linspace(-1, 1.2, 7, dtype=torch.float64)[:, None]
    ts = uniform(*(0.0, 1.0)[::direction], 50).tolist()
    noise = [Increment()] * 50
    if kind != "none":
        noise = list(WhiteNoise(1).increments(ts, x0, equation.noise_shape(x0), start=0))
    x = x0
    state = solver.init(equation, ts[0], x0)
    start = state
    for t0, t1, step in zip(ts, ts[1:], noise, strict=False):
        x, _, _, state = solver.step(equation, t0, t1, x, step, state)
    for t0, t1, step in reversed(list(zip(ts, ts[1:], noise, strict=False))):
        x, state = solver.reverse(equation, t0, t1, x, step, state)
    for found, begun in zip((x, *state), (x0, *start), strict=True):
        torch.testing.assert_close(found, begun, rtol=1e-11, atol=1e-11)
