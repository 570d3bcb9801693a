"""Weights against scipy's adaptive quadrature."""

import numpy as np
import pytest
from scipy import integrate

from sdekit import AdamsBashforth, AngleClocked, Clocked
from sdekit._equations.quadrature import Panels
from sdekit.elementary import atan, exp, log1p


@pytest.mark.parametrize("rate", [0.0, 1.0, 2.0, 1.25, -1.0])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [0.01, 0.3, 3.0, -0.3, 11.0])
def test_polynomials_are_integrated_exactly(rate, k, width):
    start = 0.7
    stop = 0.7 + width
    nodes = start - np.array([0, 0.5, 1.3, 1.9])[:k] * width
    (weights,) = Panels(nodes[None], np.array([start]), np.array([stop]), rate).exact()
    for power in range(k):
        density = lambda l: ((l - stop) / width) ** power * np.exp(rate * (l - stop)) * (rate or 1)  # noqa: B023, E731
        exact = integrate.quad(density, start, stop, epsabs=0, epsrel=1e-13)[0]
        assert weights @ ((nodes - stop) / width) ** power == pytest.approx(
            exact, rel=1e-11, abs=1e-13
        )


@pytest.mark.parametrize("variable", ["l", "smooth"])
def test_multistep_on_an_angle_is_exact_for_polynomials(variable):
    """Of the angle, which stands for l, or of the smooth variable."""
    import torch

    from sdekit import solve

    f = lambda v: 1 - v + 0.5 * v**2  # noqa: E731
    smooth = (lambda l: log1p(exp(-l))) if variable == "smooth" else lambda l: -atan(exp(-l) / 0.3)
    problem = AngleClocked(
        lambda l, x: torch.full_like(x, f(smooth(l))),
        lambda l: 1.0,
        smooth=lambda l: log1p(exp(-l)),
        c=0.3,
    )
    ls = np.linspace(-2.0, 5.0, 9)
    ts = [problem.time(float(l)) for l in ls]
    solver = AdamsBashforth(3, variable=variable)
    y = solve(problem, torch.zeros(1, 1, dtype=torch.float64), ts, solver=solver, save="all").xs[
        :, 0, 0
    ]
    # The first two steps have fewer than three values behind them: compare from the third on.
    density = lambda l: f(smooth(l)) * 0.3 * np.exp(l) / (1 + 0.09 * np.exp(2 * l))  # noqa: E731
    exact = integrate.quad(density, ls[3], ls[-1], epsrel=1e-13)[0]
    assert (y[-1] - y[3]).item() == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("a", "q"), [(1.0, 0.0), (2.0, 2.0), (1.25, 0.5), (-1.0, 0.0)])
def test_clocked_multistep_is_exact_for_polynomials_of_its_parameter(a, q):
    """Without x in F the increments are integrals of F dA: exact for degree below k."""
    import torch

    from sdekit import WhiteNoise, solve

    problem = Clocked(lambda l, x: torch.full_like(x, 1 - l + 0.5 * l**2), lambda l: 1.0, a, q)
    ls = np.linspace(-1.0, 2.0, 9)
    ts = [problem.time(float(l)) for l in ls]
    y0 = torch.zeros(1, 1, dtype=torch.float64)
    noise = WhiteNoise(0) if q else None
    # The first two steps have fewer than three values behind them: compare from the third on.
    solution = solve(problem, y0, ts, solver=AdamsBashforth(3), noise=noise, save="all")
    quiet = solution.xs[:, 0, 0]
    if q:
        dw = torch.stack([i.w for i in noise.increments(ts, y0, (1,))])[:, 0, 0]
        quiet = quiet - torch.cat([torch.zeros(1), dw.cumsum(0)])
    exact = integrate.quad(
        lambda l: (1 - l + 0.5 * l**2) * a * np.exp(a * l), ls[3], ls[-1], epsrel=1e-13
    )[0]
    assert (quiet[-1] - quiet[3]).item() == pytest.approx(exact, rel=1e-10)
