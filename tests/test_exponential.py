"""Exponential methods: their functions, the linear part solved exactly, and stiff equations."""

import math
from decimal import Decimal, localcontext

import pytest
import torch

from sdekit import (
    ODE,
    RK4,
    SDE,
    AdamsBashforth,
    EulerMaruyama,
    ExponentialEuler,
    ExponentialHeun,
    Heun,
    Increment,
    SemiLinear,
    WhiteNoise,
    solve,
    uniform,
)
from sdekit._solvers.exponential import phi

SOLVERS = [ExponentialEuler, ExponentialHeun]
POINTS = [
    -700.0,
    -50.0,
    -3.0,
    -1.0,
    -0.51,
    -0.5,
    -0.49,
    -1e-3,
    -1e-9,
    0.0,
    1e-12,
    0.3,
    0.499,
    0.5,
    2.0,
    20.0,
]


def exact_phi(k, z):
    with localcontext() as context:
        context.prec = 60
        z = Decimal(z)
        return float(
            1 / Decimal(k) if not z else (z.exp() - 1) / z if k == 1 else (z.exp() - 1 - z) / z**2
        )


@pytest.mark.parametrize("k", [1, 2])
def test_phi_is_right_to_rounding(k):
    expected = [exact_phi(k, z) for z in POINTS]
    assert [phi(k, z) for z in POINTS] == pytest.approx(expected, rel=1e-15)
    z = torch.tensor(POINTS, dtype=torch.float64)
    assert phi(k, z).tolist() == pytest.approx(expected, rel=1e-15)
    assert torch.autograd.gradcheck(lambda z: phi(k, z), z[1:-1].requires_grad_())


def stiff(kind="additive", linear=-50.0):
    g = {
        "none": None,
        "additive": lambda t, x: torch.ones_like(x),
        "diagonal": lambda t, x: 1 + 0.3 * torch.sin(x),
    }[kind]
    return SemiLinear(linear, lambda t, x: torch.sin(x) + torch.cos(t), g, kind)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dt", [1.0, -0.5])
def test_constant_coefficients_are_solved_exactly(solver, dt):
    """Mean and variance of one long step of dx = (A x + c) dt + g dW, A = -50 along the run and 0.7
    against it.
    """
    for A in (-50.0 / dt, 0.7 / dt, 0.0):
        problem = SemiLinear(
            A,
            lambda t, x: torch.full_like(x, 2.0),
            lambda t, x: torch.full_like(x, 1.5),
            "additive",
        )
        x = torch.tensor([[0.3], [0.3]], dtype=torch.float64)
        w = torch.tensor([[0.0], [abs(dt) ** 0.5]], dtype=torch.float64)
        end = solver(A).step(problem, 0.0, dt, x, Increment(w), ()).x.flatten().tolist()
        z = A * dt
        assert end[0] == pytest.approx(
            0.3 * exact_phi(1, z) * z + 0.3 + 2 * dt * exact_phi(1, z), rel=1e-13
        )
        assert (end[1] - end[0]) ** 2 == pytest.approx(
            1.5**2 * abs(dt) * exact_phi(1, 2 * z), rel=1e-13
        )


@pytest.mark.parametrize("dt", [1.0, -0.5])
def test_what_grows_with_time_is_solved_exactly_in_two_stages(dt):
    """One long step of dx = (A x + a + b t) dt: x(t) = p + q t + c e^{A t} with q = -b / A and p =
    (q - a) / A.
    """
    a = 2.0
    b = -3.0
    x0 = torch.tensor([0.3], dtype=torch.float64)
    for A in (-50.0 / dt, 0.7 / dt):
        end = (
            ExponentialHeun(A)
            .step(SemiLinear(A, lambda t, x: a + b * t + 0 * x), 0.0, dt, x0, Increment(), ())
            .x
        )
        q = -b / A
        p = (q - a) / A
        assert end.item() == pytest.approx(p + q * dt + (0.3 - p) * math.exp(A * dt), rel=1e-12)


@pytest.mark.parametrize("kind", ["additive", "diagonal"])
def test_stiff_equations_are_stable_where_euler_is_not(kind):
    problem = stiff(kind)
    x0 = torch.linspace(-2, 2, 512, dtype=torch.float64)[:, None]
    grid = uniform(0.0, 20.0, 20)  # A dt = -50
    x = solve(problem, x0, grid, solver=ExponentialEuler(-50.0), noise=WhiteNoise(0)).x
    assert x.std().item() == pytest.approx(0.1, rel=0.15)
    assert (
        solve(problem, x0, grid, solver=EulerMaruyama(), noise=WhiteNoise(0)).x.abs().max() > 1e10
    )


@pytest.mark.parametrize(
    ("solver", "plain"), [(ExponentialEuler, EulerMaruyama()), (ExponentialHeun, Heun())]
)
def test_the_linear_part_costs_no_accuracy(solver, plain):
    """While the fast part decays, with A dt = -0.75, where the plain method is stable."""
    problem = stiff("none", -30.0)
    x0 = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    exact = solve(problem, x0, uniform(0.0, 0.1, 400), solver=RK4()).x
    ours, theirs = (
        (solve(problem, x0, uniform(0.0, 0.1, 4), solver=s).x - exact).abs().max()
        for s in (solver(-30.0), plain)
    )
    assert ours < 0.1 * theirs


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_diagonal_is_as_many_numbers(solver):
    linear = torch.tensor([-40.0, -1.0, 0.0], dtype=torch.float64)
    x = torch.ones(4, 3, dtype=torch.float64)
    w = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = (
        torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64),
        torch.tensor([0.5, 0.0, 0.4, 2.0], dtype=torch.float64),
    )
    for t0, t1 in ((0.1, 0.3), times):
        whole = solver(linear).step(stiff(linear=linear), t0, t1, x, Increment(w), ()).x
        for i, A in enumerate(linear.tolist()):
            single = (
                solver(A)
                .step(stiff(linear=A), t0, t1, x[:, i : i + 1], Increment(w[:, i : i + 1]), ())
                .x
            )
            torch.testing.assert_close(whole[:, i : i + 1], single, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_diagonal_in_float64_leaves_the_dtype_of_the_state(solver, dtype):
    linear = torch.tensor([-40.0, -1.0], dtype=torch.float64)
    x = solve(
        stiff(linear=linear),
        torch.ones(3, 2, dtype=dtype),
        uniform(0.0, 1.0, 8),
        solver=solver(linear),
    ).x
    assert x.dtype == dtype
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("solver", "plain"), [(ExponentialEuler, EulerMaruyama()), (ExponentialHeun, Heun())]
)
def test_without_a_linear_part_they_are_the_plain_methods(solver, plain):
    problem = SDE(lambda t, x: torch.sin(x) + t, lambda t, x: torch.ones_like(x), "additive")
    x0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    found = solve(problem, x0, uniform(1.0, 0.0, 10), solver=solver(0.0), noise=WhiteNoise(3)).x
    torch.testing.assert_close(
        found, solve(problem, x0, uniform(1.0, 0.0, 10), solver=plain, noise=WhiteNoise(3)).x
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_linear_part_may_be_learnt(solver):
    def end(linear):
        problem = SemiLinear(
            linear, lambda t, x: torch.sin(x), lambda t, x: torch.ones_like(x), "additive"
        )
        return solve(
            problem, x0, uniform(0.0, 1.0, 3), solver=solver(linear), noise=WhiteNoise(1)
        ).x

    x0 = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(2, 2)
    assert torch.autograd.gradcheck(
        end, torch.tensor([-3.0, 0.0], dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_very_stiff_linear_part_has_a_gradient(solver):
    def gradient(dtype):
        linear = torch.tensor([-1e4], dtype=dtype, requires_grad=True)
        ode = ODE(lambda t, x: linear * x + torch.cos(x))
        x0 = torch.ones(1, 1, dtype=dtype)
        solve(ode, x0, [0.0, 1.0, 2.0], solver=solver(linear)).x.sum().backward()
        return linear.grad.double()

    single, double = gradient(torch.float32), gradient(torch.float64)
    assert float(double) != 0
    torch.testing.assert_close(single, double, rtol=1e-2, atol=0)


def test_other_solvers_see_the_whole_drift():
    problem = SemiLinear(torch.tensor([-2.0, 1.0]), lambda t, x: torch.sin(x) + t)
    plain = ODE(lambda t, x: torch.tensor([-2.0, 1.0]).to(x) * x + torch.sin(x) + t)
    x0 = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(2, 2)
    for solver in (Heun(), AdamsBashforth(3)):
        found, expected = (
            solve(p, x0, uniform(0.0, 1.0, 10), solver=solver).x for p in (problem, plain)
        )
        torch.testing.assert_close(found, expected)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="leave g out"):
        SemiLinear(-1.0, torch.sin, None, "additive")
    with pytest.raises(ValueError, match="leave g out"):
        SemiLinear(-1.0, torch.sin, torch.ones_like, "none")
    with pytest.raises(ValueError, match="noise_size"):
        SemiLinear(-1.0, torch.sin, torch.ones_like, "general")
