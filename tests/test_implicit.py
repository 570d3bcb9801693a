"""Methods that are implicit in the drift: stiff equations with noise, Newton's method, and its
derivatives.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import forward_ad

from sdekit import (
    ODE,
    SDE,
    SRID2,
    BrownianPath,
    EulerMaruyama,
    ImplicitEulerMaruyama,
    ImplicitPlaten,
    Increment,
    NotFiniteError,
    PIDController,
    WhiteNoise,
    solve,
    uniform,
)

F64 = torch.float64
BOTH = pytest.mark.parametrize("solver", [ImplicitEulerMaruyama(), ImplicitPlaten()], ids=str)
HALF = torch.full((16, 1), 0.5, dtype=F64)


def quadratic(p, q=1.0):
    """SciML's stiff problem with the solution tanh(artanh x_0 - p t + q W); its time constants are
    1 / p.
    """
    return SDE(lambda t, x: -(p + q * q * x) * (1 - x.square()), lambda t, x: q * (1 - x.square()))


def on_the_path(p, path, t):
    start = torch.zeros(len(HALF), dtype=F64)
    w = path.reader(HALF, (1,), levy=False)(start, start + t).w
    return torch.tanh(math.atanh(0.5) - p * t + w)


def test_adaptive_steps_of_a_stiff_equation():
    """Soon the state rests at -1, where explicit steps are bounded by 1 / p: more are needed for a
    third of the time.
    """
    p = 500.0
    path = BrownianPath(3, (0.0, 3.0))
    control = PIDController(1e-2, 1e-2)
    settings = {"noise": path, "control": control, "save": "all"}
    ours, explicit = (
        solve(quadratic(p), HALF, [0.0, 0.3 / p, end], solver=solver, **settings)
        for solver, end in ((ImplicitPlaten(), 3.0), (SRID2(), 1.0))
    )
    assert int(ours.accepted.max()) < 50 < 300 < int(explicit.accepted.min())
    for x, t in zip(ours.xs[1:], (0.3 / p, 3.0), strict=True):
        assert (x - on_the_path(p, path, t)).abs().max() < 0.02


@BOTH
def test_steps_that_explicit_methods_cannot_take(solver):
    """A hundred times as long, for noise around a moving point: the law of the slow
    coordinate.
    """

    def drift(t, x):
        x, y = x.unbind(1)
        return torch.stack([-(x + 0.5 * y), 4000.0 * (x - y)], dim=1)

    equation = SDE(drift, lambda t, x: torch.tensor([[1.0, 1.0]], dtype=F64), "additive")
    x0 = torch.zeros(20_000, 2, dtype=F64)
    ts = uniform(0.0, 2.0, 40)
    x = solve(equation, x0, ts, solver=solver, noise=WhiteNoise(1)).x[:, 0]
    # y follows x: dx = -1.5 x dt + dW, whose variance at 2 is (1 - e^-6) / 3.
    variance = (1 - math.exp(-6)) / 3
    assert abs(float(x.mean())) < 5 * math.sqrt(variance / len(x))
    step = 0.05 * 1.5 if isinstance(solver, ImplicitEulerMaruyama) else 0.0  # its bias
    assert float(x.var()) / variance == pytest.approx(1 / (1 + step / 2), abs=5 * 0.01)
    with pytest.raises(NotFiniteError):
        solve(equation, x0[:2], uniform(0, 20, 400), solver=EulerMaruyama(), noise=WhiteNoise(1))


def test_fast_fluctuations_do_not_bound_adaptive_steps():
    """A coordinate that follows another within 1 / 4000: an estimate that is not damped as the step
    is has more than a thousand steps.
    """

    def drift(t, x):
        x, y = x.unbind(1)
        return torch.stack([-(x + 0.5 * y), 4000.0 * (x - y)], dim=1)

    equation = SDE(drift, lambda t, x: torch.ones_like(x), "additive")
    x0 = torch.full((6, 2), 0.5, dtype=torch.float64)
    control = PIDController(2e-2, 2e-2)
    settings = {"solver": ImplicitPlaten(), "noise": BrownianPath(1), "control": control}
    assert int(solve(equation, x0, [0.0, 1.0], **settings).accepted.max()) < 60


@BOTH
def test_the_equation_of_a_step_is_solved(solver):
    """x_1 = x_0 + f(t_1, x_1) dt, or half of both slopes, to rounding."""

    def drift(t, x):
        return torch.cos(3 * t) - 5 * x.flip(1).sinh() - x**3

    x0 = torch.linspace(-1.5, 1.5, 14, dtype=F64).reshape(7, 2)
    x = solve(ODE(drift), x0, [0.0, 0.05], solver=solver).x
    end = drift(torch.tensor(0.05), x)
    start = drift(torch.tensor(0.0), x0)
    slope = end if isinstance(solver, ImplicitEulerMaruyama) else (start + end) / 2
    torch.testing.assert_close(x, x0 + 0.05 * slope, rtol=1e-9, atol=1e-9)


class Watched(ODE):
    """Counts its Jacobians."""

    def __init__(self, f):
        super().__init__(f)
        self.jacobians = 0

    def jacobian(self, t, x):
        self.jacobians += 1
        return super().jacobian(t, x)


@BOTH
def test_factors_are_used_again(solver):
    """Over the equal steps of a grid, as long as the Jacobian hardly changes."""
    slow = Watched(lambda t, x: -100 * (x - torch.cos(t)) - x**3)
    x0 = torch.zeros(3, 1, dtype=F64)
    with torch.no_grad():
        solve(slow, x0, uniform(0.0, 1.0, 100), solver=solver)
    assert slow.jacobians < 5
    fast = Watched(lambda t, x: -1e4 * torch.cos(20 * t) ** 2 * x + 1)
    with torch.no_grad():
        solve(fast, x0, uniform(0.0, 1.0, 100), solver=solver)
    assert 20 < fast.jacobians <= 100
    lengthening = Watched(lambda t, x: -x)
    with torch.no_grad():
        solve(lengthening, x0 + 1, [0.0, 0.1, 0.3, 0.7, 1.5], solver=solver)
    assert lengthening.jacobians == 4


@BOTH
def test_derivatives_are_those_of_the_solution(solver):
    """Where h f' is 50, to parameters of f and g and to x_0, against finite differences."""

    def solved(k, s, start):
        equation = SDE(
            lambda t, x: -k * (x - torch.cos(t)) ** 3 - 30 * k * x,
            lambda t, x: s * (1 + 0.1 * torch.sin(x)),
        )
        x0 = start * torch.tensor([[0.3], [1.0]], dtype=F64)
        ts = uniform(0.0, 3.0, 6)
        return solve(equation, x0, ts, solver=solver, noise=WhiteNoise(1)).x.sum()

    given = [torch.tensor(v, dtype=F64, requires_grad=True) for v in (3.0, 0.7, 0.9)]
    assert torch.autograd.gradcheck(solved, given, eps=1e-5, atol=1e-6, rtol=1e-5)


@BOTH
def test_a_step_without_the_right_solution_is_said(solver):
    """Where differences grow within a step Newton's method would find another root."""
    equation = quadratic(50.0)
    with (
        pytest.warns(RuntimeWarning, match=r"finds no solution that shorter steps lead to in the"),
        pytest.raises(NotFiniteError),
    ):
        solve(equation, HALF, uniform(0, 3, 32), solver=solver, noise=WhiteNoise(0))
    with pytest.warns(
        RuntimeWarning, match="for 1 of 3 samples, the first of which is 1: take sho"
    ):
        found = solve(
            ODE(lambda t, x: torch.where(x > 1, 100.0 * x, -x)),
            torch.tensor([[0.5], [2.0], [0.7]], dtype=F64), [0.0, 0.1], solver=solver, throw=False,
        )  # fmt: skip
    assert found.x.isfinite().flatten().tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@BOTH
def test_other_dtypes(solver, dtype):
    x0 = torch.ones(2, 3, dtype=dtype)
    x = solve(ODE(lambda t, x: -20 * x), x0, uniform(0.0, 0.1, 64), solver=solver).x
    z = 20 * 0.1 / 64
    euler = isinstance(solver, ImplicitEulerMaruyama)
    exact = 1 / (1 + z) ** 64 if euler else ((1 - z / 2) / (1 + z / 2)) ** 64
    assert x.dtype == dtype
    assert x.double() == pytest.approx(exact, abs=40 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("dtype", "rate"),
    [(F64, 1e12), (torch.float32, 1e5), (torch.bfloat16, 1e3), (torch.float16, 1e3)],
    ids=str,
)
@BOTH
def test_factors_that_are_too_old_are_seen(solver, dtype, rate):
    """A drift that is stiff no longer: with the old factors changes are small, and the state would
    stay where it is, at 1.
    """

    def drift(t, x):
        return torch.where(t < 0.55, -rate * (x - 1), -0.5 * x)

    x0 = torch.ones(1, 1, dtype=dtype)
    x = solve(ODE(drift), x0, uniform(0.0, 3.0, 30), solver=solver).x
    euler = isinstance(solver, ImplicitEulerMaruyama)
    # Of Platen's steps the one across the change has both slopes, of which the first is 0.
    exact = 1 / 1.05**25 if euler else (0.975 / 1.025) ** 24 / 1.025
    assert float(x) == pytest.approx(exact, abs=4e-3)


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_the_way_to_an_equilibrium_at_0(dtype):
    """Where the rounding of f is larger than x."""
    x0 = torch.ones(1, 1, dtype=dtype)
    f = ODE(lambda t, x: 1000 * (1 - torch.exp(x)))
    x = solve(f, x0, uniform(0.0, 10.0, 40), solver=ImplicitEulerMaruyama()).x
    assert abs(float(x)) < 1e-6


@BOTH
def test_second_derivatives(solver):
    x0 = torch.tensor([[0.7]], dtype=F64, requires_grad=True)
    p = torch.tensor(1.3, dtype=F64, requires_grad=True)

    def solved(x0, p):
        return solve(ODE(lambda t, x: -p * x**3), x0, uniform(0.0, 1.0, 4), solver=solver).x

    assert torch.autograd.gradgradcheck(solved, (x0, p))


@BOTH
def test_states_without_numbers_and_short_steps_of_half_precision(solver):
    none = solve(ODE(lambda t, x: -x), torch.ones(3, 0), uniform(0.0, 1.0, 4), solver=solver).x
    assert none.shape == (3, 0)
    x0 = torch.ones(1, 1, dtype=torch.float16)
    x = solve(ODE(lambda t, x: -x), x0, [0.0, 1e-8, 1.0], solver=solver).x
    exact = 1 / 2 if isinstance(solver, ImplicitEulerMaruyama) else 1 / 3
    assert float(x) == pytest.approx(exact, abs=2e-3)


def chain(rate):
    """A diffusion on a chain, with rates up to 4 `rate`, and additive noise."""

    def drift(t, x):
        padded = torch.nn.functional.pad(x, (1, 1))
        return rate * (padded[:, 2:] - 2 * x + padded[:, :-2]) - x

    return SDE(drift, lambda t, x: 0.1, "additive")


@BOTH
def test_systems_of_3000_coordinates_need_no_matrices(solver):
    """The state has none, and the equation of a step is solved; an explicit step would multiply
    differences by 60.
    """
    equation = chain(500.0)
    x0 = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert sum(part.numel() for part in solver.init(equation, 0.0, x0)) == len(x0)
    path = BrownianPath(3, (0.0, 0.06))
    ts = [0.0, 0.03, 0.06]
    with torch.no_grad():
        xs = solve(equation, x0, ts, solver=solver, noise=path, save="all").xs
    increments = path.increments(ts, x0, (3000,))
    for a, b, increment in zip(xs[:-1], xs[1:], increments, strict=True):
        end = equation.drift(0.0, b)
        euler = isinstance(solver, ImplicitEulerMaruyama)
        slope = end if euler else (equation.drift(0.0, a) + end) / 2
        torch.testing.assert_close(b, a + 0.03 * slope + 0.1 * increment.w, rtol=0, atol=1e-9)


@BOTH
def test_gmres_and_factors_agree(solver):
    """Of a drift that is not linear, forwards and backwards, each sample as alone."""

    def drift(t, x):
        return -200 * (x - 0.5 * x.roll(1, dims=1)) - x**3 + torch.cos(t)

    equation = SDE(drift, lambda t, x: 0.2, "additive")
    x0 = torch.randn(3, 12, generator=torch.Generator().manual_seed(1), dtype=F64)
    ts = uniform(0.0, 0.4, 8)
    settings = {"noise": BrownianPath(1, (0.0, 0.4))}
    products = replace(solver, direct=11)
    with torch.no_grad():
        whole = solve(equation, x0, ts, solver=products, **settings).x
        direct = solve(equation, x0, ts, solver=solver, **settings).x
        noise = settings["noise"].rows(torch.tensor([1]))
        alone = solve(equation, x0[1:2], ts, solver=products, noise=noise).x
    torch.testing.assert_close(whole, direct, rtol=0, atol=1e-10)
    torch.testing.assert_close(alone, whole[1:2], rtol=0, atol=1e-12)


def test_adaptive_steps_by_gmres():
    """As many as with factors, of nearly the same lengths."""
    equation = ODE(lambda t, x: -1e3 * (x - torch.cos(t + torch.arange(5.0))) - x**3)
    x0 = torch.zeros(2, 5, dtype=F64)
    settings = {"control": PIDController(1e-3, 1e-3)}
    with torch.no_grad():
        direct, products = (
            solve(equation, x0, [0.0, 2.0], solver=solver, **settings)
            for solver in (ImplicitPlaten(), ImplicitPlaten(direct=4))
        )
    torch.testing.assert_close(products.x, direct.x, rtol=0, atol=1e-3)
    assert int(products.accepted.max()) <= 1.1 * int(direct.accepted.max())
    assert int(products.rejected.max()) <= int(direct.rejected.max()) + 5


@BOTH
def test_what_gmres_cannot_do_is_said(solver):
    products = replace(solver, direct=1)
    x0 = torch.ones(2, 3, dtype=F64)
    with pytest.raises(ValueError, match=r"more than direct = 1 numbers .* without gradients"):
        solve(ODE(lambda t, x: -x), x0.clone().requires_grad_(), [0.0, 1.0], solver=products)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x0, x0)
        with pytest.raises(ValueError, match="without gradients"):
            solve(ODE(lambda t, x: -x), dual, [0.0, 1.0], solver=products)
        rate = forward_ad.make_dual(torch.tensor(1.0, dtype=F64), torch.tensor(1.0, dtype=F64))
        with pytest.raises(ValueError, match="more than direct = 1 numbers"):
            solve(ODE(lambda t, x: -rate * x), x0, [0.0, 1.0], solver=products)
    steep = chain(1e9)
    wide = torch.randn(2, 400, generator=torch.Generator().manual_seed(0), dtype=F64)
    with (
        torch.no_grad(),
        pytest.warns(RuntimeWarning, match="set direct to the size of a sample, or take SKROCK"),
        pytest.raises(NotFiniteError),
    ):
        solve(steep, wide, [0.0, 1.0], solver=products, noise=WhiteNoise(0))


@BOTH
def test_gmres_sees_directions_that_grow_faster_than_a_step_resolves(solver):
    """x' = 20 x has the wrong sign after a step of 0.1 or 0.2; also two such directions, which a
    determinant does not show, among 398 that decay. A third of the step is solved. A larger
    `direct`, which would not show them, is not advised.
    """
    h = 0.1 if isinstance(solver, ImplicitEulerMaruyama) else 0.2
    rates = torch.linspace(-500, -1, 400, dtype=F64)
    rates[7] = 20
    rates[300] = 30
    x0 = torch.ones(2, 400, dtype=F64)
    products = replace(solver, direct=399)
    for rate in (20.0, rates):
        equation = ODE(lambda t, x, rate=rate: rate * x)
        with torch.no_grad(), pytest.warns(RuntimeWarning, match="lead to .* take shorter steps$"):
            x = solve(equation, x0, [0.0, h], solver=products, throw=False).x
        assert x.isnan().all()
        with torch.no_grad():
            short = solve(equation, x0, [0.0, 0.3 * h], solver=products).x
        exact = solve(equation, x0, [0.0, 0.3 * h], solver=solver).x
        torch.testing.assert_close(short, exact, rtol=0, atol=1e-9)


def test_a_direction_that_grows_only_on_the_way_to_the_solution_does_not_matter():
    """1 - h J is -0.76 at the start, and 3.9 at the solution."""
    equation = ODE(lambda t, x: 2 * (x - x**3))
    x0 = torch.full((1, 1), 0.2, dtype=F64)
    with torch.no_grad():
        x = solve(equation, x0, [0.0, 2.0], solver=ImplicitPlaten(direct=0)).x
        direct = solve(equation, x0, [0.0, 2.0], solver=ImplicitPlaten()).x
    assert float(direct) == pytest.approx(0.906673, abs=1e-6)
    torch.testing.assert_close(x, direct, rtol=0, atol=1e-10)


@BOTH
def test_long_steps_of_diffusion_in_single_precision_by_gmres(solver):
    """Rounding of f in 2,500 coordinates, times h |J| = 4000, leaves a residual that is larger than
    the tolerance of the state, but hardly changes it.
    """

    def heat(t, x):
        padded = torch.nn.functional.pad(x[:, None], (1, 1), mode="replicate")[:, 0]
        return 1e4 * (padded[:, 2:] - 2 * x + padded[:, :-2])

    x0 = 1 + torch.sin(torch.linspace(0, math.pi, 2500, dtype=F64))[None]
    products = replace(solver, direct=1)
    with torch.no_grad():
        single = solve(ODE(heat), x0.float(), [0.0, 0.1], solver=products)
        double = solve(ODE(heat), x0, [0.0, 0.1], solver=products)
    torch.testing.assert_close(single.x.double(), double.x, rtol=0, atol=1e-5)
    assert int(single.evaluations) <= 5


@BOTH
def test_a_slow_coordinate_that_gmres_leaves_at_first_is_solved(solver):
    """The residual is that of fast coordinates at 1e-12, so the first change is below the tolerance
    and does not move the slow one.
    """
    rates = torch.linspace(1e13, 1e14, 400, dtype=F64)
    rates[0] = 1
    x0 = torch.full((1, 400), 1e-12, dtype=F64)
    x0[0, 0] = 1
    with torch.no_grad():
        products = replace(solver, direct=1)
        x = solve(ODE(lambda t, x: -rates * x), x0, [0.0, 0.1], solver=products).x
    exact = 1 / 1.1 if isinstance(solver, ImplicitEulerMaruyama) else 0.95 / 1.05
    assert float(x[0, 0]) == pytest.approx(exact, abs=1e-10)


def test_a_grid_computes_no_estimate_by_gmres():
    equation = ODE(lambda t, x: -50 * x)
    solver = ImplicitPlaten(direct=1)
    x0 = torch.ones(2, 3, dtype=F64)
    with torch.no_grad():
        state = solver.init(equation, 0.0, x0)
        step = solver.step(equation, 0.0, 0.1, x0, Increment(), state)
        times = torch.zeros(2, dtype=F64), torch.full((2,), 0.1, dtype=F64)
        estimated = solver.step(equation, *times, x0, Increment(), state)
    assert step.error is None
    assert estimated.error is not None


def test_the_power_of_the_error_estimate_is_two_without_noise():
    solver = ImplicitPlaten()
    logistic = ODE(lambda t, x: torch.cos(t).reshape(-1, 1) * x * (1.5 - x))
    x = torch.tensor([[0.4], [0.9]], dtype=torch.float64)
    t0 = torch.full((2,), 0.3, dtype=torch.float64)
    errors = [
        solver.step(logistic, t0, t0 + h, x, Increment(), solver.init(logistic, t0, x)).error
        for h in (0.02, 0.01)
    ]
    ratio = errors[0].abs() / errors[1].abs()
    assert torch.allclose(
        ratio, torch.full_like(ratio, 2 ** solver.estimate_power("none")), rtol=0.1
    )
    assert solver.estimate_power("additive") == solver.embedded == 1.0


@pytest.mark.parametrize("start", [0.0, 1.0, 1000.0])
def test_a_fast_equation_may_start_at_any_time(start):
    stiff = ODE(lambda t, x: -1e5 * (x - torch.cos(t)))
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    control = PIDController(1e-4, 1e-4)
    solution = solve(stiff, x0, [start, start + 1.0], solver=ImplicitPlaten(), control=control)
    assert float(solution.x) == pytest.approx(math.cos(start + 1.0), abs=1e-3)


def test_few_steps_of_an_ordinary_equation_are_rejected():
    """Each second one by a power of 1 of the error estimate, which is that with noise."""

    def oscillator(t, x):
        return torch.stack([x[:, 1], 10 * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], dim=1)

    x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    control = PIDController(1e-3, 1e-3)
    solution = solve(ODE(oscillator), x0, [0.0, 30.0], solver=ImplicitPlaten(), control=control)
    assert int(solution.rejected) < 0.3 * int(solution.accepted)
