"""The stabilised method: its polynomials, its interval of stability, and equations of many
dimensions.
"""

import math

import pytest
import torch

from sdekit import (
    ODE,
    SDE,
    SKROCK,
    EulerMaruyama,
    Increment,
    NotFiniteError,
    WhiteNoise,
    solve,
    uniform,
)

F64 = torch.float64
STAGES = pytest.mark.parametrize("stages", [1, 2, 3, 5, 10, 40])


def factors(stages, z):
    """x_1 / x_0 of one step for x' = z x."""
    z = torch.as_tensor(z, dtype=F64)
    x0 = torch.ones(len(z), 1, dtype=F64)
    return solve(ODE(lambda t, x: z[:, None] * x), x0, [0.0, 1.0], solver=SKROCK(stages)).x[:, 0]


@STAGES
def test_it_is_chebyshevs_polynomial(stages):
    """T_s(w_0 + w_1 z) / T_s(w_0), whose derivative at 0 is 1."""
    chebyshev = torch.special.chebyshev_polynomial_t
    point = torch.tensor(1 + 0.05 / stages**2, dtype=F64, requires_grad=True)
    # That of torch has no derivative: T_s' = s U_(s-1).
    slope = stages * torch.special.chebyshev_polynomial_u(point.detach(), stages - 1)
    top = chebyshev(point.detach(), stages)
    z = torch.linspace(-1.9 * stages**2, 0.0, 101, dtype=F64)
    expected = chebyshev(point.detach() + top / slope * z, stages) / top
    torch.testing.assert_close(factors(stages, z), expected, rtol=1e-9, atol=1e-9)
    small = 1e-5
    assert float(factors(stages, [small])) == pytest.approx(1 + small, abs=small**2)


@STAGES
def test_the_interval_of_stability(stages):
    """[-1.93 s^2, 0], strictly inside but for 0; beyond 2 s^2 steps grow."""
    z = torch.linspace(-1.93 * stages**2, -1e-2, 4001, dtype=F64)
    assert factors(stages, z).abs().max() < 1
    assert factors(stages, [-2.05 * stages**2]).abs() > 1


@pytest.mark.parametrize("stages", [5, 10, 20])
def test_it_is_stable_in_mean_square_where_the_equation_is(stages):
    """dx = l x dt + m x dW with m^2 = -2 l, the border: E x^2 of a step with dW = -1 and 1, whose
    square has the same mean.
    """
    for z in torch.linspace(-1.9 * stages**2, -0.1, 60).tolist():
        m = math.sqrt(-2 * z)
        equation = SDE(lambda t, x, z=z: z * x, lambda t, x, m=m: m * x)
        step = SKROCK(stages).step
        ends = [
            step(equation, 0.0, 1.0, torch.ones(1, 1, dtype=F64), noise, ()).x.item()
            for noise in (Increment(torch.full((1, 1), w, dtype=F64)) for w in (-1.0, 1.0))
        ]
        assert (ends[0] ** 2 + ends[1] ** 2) / 2 <= 1 + 1e-9


def test_the_heat_equation_with_noise():
    """100 cells, steps 200 times those of Euler-Maruyama: the variance of slow modes."""
    cells, h = 100, 0.01
    stages = math.ceil(math.sqrt(4 * (cells + 1) ** 2 * h / 1.93))

    def drift(t, x):
        padded = torch.nn.functional.pad(x, (1, 1))
        return (cells + 1) ** 2 * (padded[:, 2:] - 2 * x + padded[:, :-2])

    noise = math.sqrt(cells + 1)
    equation = SDE(drift, lambda t, x: noise, "additive")
    x0 = torch.zeros(400, cells, dtype=F64)
    x = solve(equation, x0, uniform(0, 1, 100), solver=SKROCK(stages), noise=WhiteNoise(0)).x
    place = torch.arange(1, cells + 1, dtype=F64) / (cells + 1)
    for k in (1, 2):
        mode = math.sqrt(2) * torch.sin(math.pi * k * place) / (cells + 1)
        rate = 4 * (cells + 1) ** 2 * math.sin(math.pi * k / (2 * (cells + 1))) ** 2
        found = float((x @ mode).var()) * 2 * rate
        # Five standard errors, and the bias of order one.
        assert found == pytest.approx(1.0, abs=5 * math.sqrt(2 / 400) + 0.05)
    with pytest.raises(NotFiniteError):
        solve(equation, x0[:1], uniform(0, 2, 200), solver=EulerMaruyama(), noise=WhiteNoise(0))


@pytest.mark.parametrize("stages", [0, -1, 2.0, True, "10"])
def test_what_is_no_number_of_stages_is_refused(stages):
    with pytest.raises(ValueError, match="stages must be a positive integer, not"):
        SKROCK(stages)


@STAGES
def test_stages_are_asked_at_their_times(stages):
    """x' = 1 has come to x = t."""
    seen = []

    def f(t, x):
        seen.append((float(t), float(x)))
        return torch.ones_like(x)

    solve(ODE(f), torch.zeros(1, 1, dtype=F64), [0.0, 1.0], solver=SKROCK(stages))
    assert len(seen) == stages
    assert all(x == pytest.approx(t, abs=1e-9) for t, x in seen)


def test_a_step_costs_its_stages():
    x0 = torch.ones(2, 1, dtype=F64)
    for stages in (1, 4, 9):
        found = solve(ODE(lambda t, x: -x), x0, uniform(0, 1, 3), solver=SKROCK(stages))
        assert int(found.evaluations[0]) == 3 * stages
