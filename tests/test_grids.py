"""Grids: their formulas, their ends, and what the adapted one gains, costs and depends on."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sdekit import AdamsBashforth, EulerMaruyama, Langevin, NotFiniteError, PredictorCorrector
from sdekit_diffusion import (
    DIFFUSIONS,
    EDMSDE,
    GRIDS,
    METHODS,
    VESDE,
    VPSDE,
    AbstractGrid,
    Adapted,
    AdaptiveFlow,
    AnnealedLangevin,
    Equidistributed,
    Focused,
    GaussianMixture,
    GeometricInSigma,
    Given,
    InTime,
    Karras,
    Native,
    OnClock,
    Quadratic,
    ScoreModel,
    UniformInLogSNR,
    UniformInTime,
    sample,
)
from sdekit_diffusion._sampling.adaptive import AbstractAdaptive
from sdekit_diffusion._sampling.grids import smoothed
from sdekit_diffusion._sampling.probability_flow import span_of

SDES = {"ve as published": VESDE(exact=False), **{name: build() for name, build in DIFFUSIONS.items()}}
FORMULAS = ["time", "quadratic", "sigma", "karras", "log_snr"]


def narrow():
    means = torch.tensor([[-1.0, 0.3], [0.5, -0.2]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.3, 0.7], dtype=torch.float64), means, torch.tensor([0.05, 0.03]).square())


def sixteen():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(3, 16, 16, generator=generator).double() / 8
    means, weights = torch.randn(3, 16, generator=generator).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    return GaussianMixture(weights, means - weights @ means, factor @ factor.mT + 0.0025 * torch.eye(16))


@pytest.fixture(scope="module")
def adapted():
    """The adapted grid of the narrow modes under each diffusion."""
    return {name: Adapted().fitted(narrow(), sde) for name, sde in SDES.items()}


def points(name, sde, span, steps, adapted):
    grid = adapted[sde] if name == "adapted" else GRIDS[name].fitted(narrow())
    return grid.points(SDES[sde], span, steps)


@pytest.mark.parametrize("steps", [1, 2, 30, 1000])
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("name", GRIDS)
def test_ends_are_exact_and_points_increase(name, sde, steps, adapted):
    span = span_of(narrow(), SDES[sde], 1e-3)
    l = points(name, sde, span, steps, adapted)
    assert l.shape == (steps + 1,)
    assert l.dtype == torch.float64
    assert (float(l[0]), float(l[-1])) == span
    assert (l.diff() > 0).all()
    assert torch.isfinite(l).all()
    assert (torch.as_tensor(SDES[sde].time(l)).diff() < 0).all()


@pytest.mark.parametrize("sde", SDES)
def test_formulas(sde):
    """Equal steps, each in its own variable: t, sqrt(t), log(sigma), (sigma / alpha)^(1/rho), log(sigma / alpha)."""
    kernel = SDES[sde]
    span = span_of(narrow(), kernel, 1e-2)
    variables = {
        "time": lambda t: t,
        "quadratic": lambda t: t.sqrt(),
        "sigma": lambda t: kernel.sigma(t).log(),
        "karras": lambda t: (kernel.sigma(t) / kernel.alpha(t)) ** (1 / 7),
        "log_snr": lambda t: (kernel.sigma(t) / kernel.alpha(t)).log(),
    }
    assert list(variables) == FORMULAS
    for name, variable in variables.items():
        steps = variable(torch.as_tensor(kernel.time(GRIDS[name].points(kernel, span, 23)))).diff()
        torch.testing.assert_close(steps, steps.mean().expand(23), rtol=1e-7, atol=0)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_a_focused_grid_has_equal_steps_of_its_own_variable(sde, share):
    """log(1 + 5 y / (y / r + s)) and l, each over its range, y = sigma / alpha, s the deviation and r^2 = 2 coordinates."""
    model, kernel = narrow(), SDES[sde]
    l = Focused(share).fitted(model).points(kernel, span_of(model, kernel, 1e-3), 23)
    y = l.neg().exp()
    v = torch.log1p(5 * y / (y / math.sqrt(2) + model.data_std))
    steps = (share * v / (v[-1] - v[0]) + (1 - share) * l / (l[-1] - l[0])).diff()
    torch.testing.assert_close(steps, steps.mean().expand(23), rtol=1e-5, atol=0)


def test_steps_that_are_divided_have_their_shares_of_the_density():
    """With a density of 1 up to 0.5 and 3 above, a quarter of the mass ends at 0.5."""
    l = torch.tensor([0.0, 0.5 - 1e-9, 0.5 + 1e-9, 1.0], dtype=torch.float64)
    grid = Equidistributed(l, torch.tensor([1.0, 1.0, 3.0, 3.0]))
    for shares, expected in (([1, 3], [0, 0.5, 1]), ([3, 1], [0, 5 / 6, 1]), ([1, 1, 6], [0, 0.25, 0.5, 1])):
        points = grid.divided((0.0, 1.0), torch.tensor(shares, dtype=torch.float64))
        assert points.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_is_the_published_formula(rho):
    """Equation 5 of Karras et al. 2022, with their sigma_min, sigma_max and number of points."""
    high, low, n = 80.0, 0.002, 18
    sigma = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    l = Karras(rho).points(VESDE(sigma_max=80.0), (-math.log(high), -math.log(low)), n - 1)
    torch.testing.assert_close(l.neg().exp(), torch.tensor(sigma, dtype=torch.float64), rtol=1e-11, atol=0)


def test_native_is_uniform_in_time_but_for_edm():
    span = span_of(narrow(), EDMSDE(), 2e-3)
    torch.testing.assert_close(Native().points(EDMSDE(), span, 17), Karras(7).points(EDMSDE(), span, 17))
    span = span_of(narrow(), VPSDE(), 1e-3)
    torch.testing.assert_close(Native().points(VPSDE(), span, 17), UniformInTime().points(VPSDE(), span, 17))


def test_sigma_over_alpha_is_that_of_the_diffusion_only_where_alpha_is_one():
    for name, same in (("ve", True), ("vp", False)):
        span = span_of(narrow(), SDES[name], 1e-3)
        l = GeometricInSigma().points(SDES[name], span, 20)
        assert torch.allclose(l, UniformInLogSNR().points(SDES[name], span, 20)) is same


def test_a_density_is_equidistributed():
    """Density l from 1 to 3: the mass is l^2 / 2, so that the points are equidistant in l^2; also on a part of the range."""
    l = torch.linspace(1.0, 3.0, 2001, dtype=torch.float64)
    grid = Equidistributed(l, l)
    for span in ((1.0, 3.0), (1.5, 2.0)):
        squares = torch.linspace(span[0] ** 2, span[1] ** 2, 9, dtype=torch.float64)
        torch.testing.assert_close(grid.points(VPSDE(), span, 8), squares.sqrt(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_sample_takes_the_grid_to_the_chosen_end(name):
    for method in (OnClock(), InTime(EulerMaruyama())):
        solution = sample(narrow(), 2, sde="vp", method=method, steps=9, grid=name, end=0.02, seed=1, return_solution=True)
        l = GRIDS[name].points(VPSDE(), span_of(narrow(), VPSDE(), 0.02), 9)
        torch.testing.assert_close(solution.ts, torch.as_tensor(VPSDE().time(l)), rtol=1e-12, atol=0)
        assert VPSDE().log_snr(float(solution.ts[-1])) == pytest.approx(-math.log(0.02), abs=1e-12)
        assert solution.evaluations.tolist() == [9] * 2
        assert solution.pilot == 0


@pytest.mark.parametrize(
    ("method", "name"), [("default", "focused"), ("dpmpp_2m", "log_snr"), ("euler_maruyama", "native"), ("pc", "native")]
)
def test_each_method_has_its_own_grid_by_default(method, name):
    x = sample(narrow(), 5, sde="vp", method=method, steps=20, seed=1)
    assert torch.equal(sample(narrow(), 5, sde="vp", method=method, steps=20, seed=1, grid=name), x)
    assert torch.equal(sample(narrow(), 5, sde="vp", method=method, steps=20, seed=1, grid=GRIDS[name]), x)
    assert not torch.equal(sample(narrow(), 5, sde="vp", method=method, steps=20, seed=1, grid=Quadratic()), x)


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if not isinstance(method, (AbstractAdaptive, AnnealedLangevin))]
)
def test_no_method_forgets_its_grid(name):
    """The times of the solution are the grid's, whatever the method makes of it; for levels see test_annealed.py."""
    mixture = GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    own, karras = (
        sample(mixture, 2, sde="vp", method=name, steps=200, grid=grid, seed=0, return_solution=True)
        for grid in (None, "karras")
    )
    sde = VPSDE()
    expected = sde.time(Karras().points(sde, span_of(mixture, sde, 1e-3), 200))
    torch.testing.assert_close(karras.ts, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(own.ts, karras.ts)
    assert own.ts[0] == pytest.approx(float(karras.ts[0]))


def test_a_method_object_and_a_grid_of_ones_own():
    class Halves(AbstractGrid):
        def points(self, sde, span, steps):
            middle = 0.5 * (span[0] + span[1])
            return torch.tensor([span[0], middle, span[1]], dtype=torch.float64)

    by_object = sample(narrow(), 3, sde="vp", method=OnClock(grid=Halves(), steps=2), seed=1)
    by_name = sample(narrow(), 3, sde="vp", method=OnClock(), grid="log_snr", steps=2, seed=1)
    torch.testing.assert_close(by_object, by_name)


@pytest.mark.parametrize("sde", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("mixture", [narrow, sixteen])
def test_what_is_gained_over_steps_uniform_in_log_snr(mixture, sde):
    """RMS error of x over that of as many steps uniform in log-SNR, by the same rule, at 20, 50 and 100 evaluations.

    It was at most 0.21, 0.08 and 0.06 for the focused grid, 0.15, 0.03 and 0.02 for the adapted one.
    """
    model, settings = mixture(), {"sde": sde, "seed": 7, "dtype": torch.float64}
    adapted, exact = Adapted().fitted(model, sde), sample(model, 300, steps=1500, **settings)

    def error(grid, steps):
        return float((sample(model, 300, grid=grid, steps=steps, **settings) - exact).square().mean().sqrt())

    for steps, focused_at_most, adapted_at_most in ((20, 0.27, 0.17), (50, 0.1, 0.035), (100, 0.075, 0.02)):
        uniform = error("log_snr", steps)
        assert error("focused", steps) < focused_at_most * uniform
        assert error(adapted, steps) < adapted_at_most * uniform


@pytest.mark.parametrize("k", [1, 2])
def test_lower_orders_gain_too(k):
    """Against 3,000 steps; ratios were 0.55 and 0.37."""
    model = GaussianMixture([1.0], torch.tensor([[0.5, -1.0]]), [0.05**2])
    settings = {"sde": "vp", "seed": 7, "dtype": torch.float64}
    exact, grid = sample(model, 50, steps=3000, **settings), Adapted(order=k).fitted(model, "vp")

    def error(grid):
        x = sample(model, 50, method=OnClock(AdamsBashforth(k)), grid=grid, steps=50, **settings)
        return float((x - exact).square().mean().sqrt())

    assert error(grid) < 0.7 * error(None)


def test_the_adapted_grid_depends_on_the_model_alone():
    model, span = narrow(), span_of(narrow(), VPSDE(), 1e-3)
    settings = {"sde": "vp", "grid": "adapted", "steps": 12, "return_solution": True}
    a = sample(model, 6, seed=1, **settings)
    torch.manual_seed(3)
    b = sample(model, 3, seed=2, batch_size=2, dtype=torch.float32, **settings)
    assert torch.equal(a.ts, b.ts)
    assert torch.equal(sample(model, 6, seed=1, batch_size=4, **settings).x, a.x)
    assert torch.equal(sample(model, 2, seed=1, first=4, **settings).x, a.x[4:])
    method = replace(METHODS["default"], steps=12)
    fitted = Adapted().fitted(model, "vp", method=method)
    assert torch.equal(torch.as_tensor(VPSDE().time(fitted.points(VPSDE(), span, 12))), a.ts)
    assert fitted.fitted(model, VPSDE(), span, method) is fitted


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.tensor(1.0)), nn.Dropout(0.5)

    def forward(self, x, t):
        return self.drop(torch.tanh(self.scale * x * (0.1 + t).reciprocal()[:, None]))


def test_it_follows_the_weights_and_leaves_the_model_as_it_was():
    model = ScoreModel(Net(), "vp", shape=(3,))
    settings = {"grid": "adapted", "steps": 8, "seed": 1, "return_solution": True}
    before, again = sample(model, 2, **settings).ts, sample(model, 2, **settings).ts
    assert torch.equal(before, again)
    model.net.scale.data.mul_(3)
    assert not torch.equal(sample(model, 2, **settings).ts, before)
    assert model.training
    assert model.net.drop.training
    assert model.net.scale.grad is None


def test_evaluations_of_the_pilot_are_counted():
    """By a network that counts the rows it is given; a grid fitted before costs nothing more."""
    rows, mixture, vp = [], narrow(), VPSDE()

    def score(x, t):
        rows.append(len(x))
        return mixture.score(t, x, vp)

    model = ScoreModel(score, vp, "score", shape=(2,))
    solution = sample(model, 5, grid="adapted", steps=10, seed=1, batch_size=2, return_solution=True)
    assert solution.pilot > 0
    assert sum(rows) == solution.pilot + int(solution.evaluations.sum())
    rows.clear()
    grid = Adapted(pilots=4, pilot_steps=20).fitted(model)
    assert sum(rows) == grid.evaluations == 4 * (70 + 20 + 21)
    assert sample(model, 5, grid=grid, steps=10, seed=1, return_solution=True).pilot == 0
    for name in ("default", "heun"):
        rows.clear()
        grid = Adapted(pilots=5, pilot_steps=20).fitted(model, method=replace(METHODS[name], steps=10))
        assert sum(rows) == grid.evaluations


@pytest.mark.parametrize(("name", "steps", "at_most"), [("default", 8, 0.5), ("unipc", 20, 0.12), ("heun", 10, 0.45)])
def test_moving_the_steps_of_a_method_gains(name, steps, at_most):
    """Mean error of x over that without moves; ratios were 0.38, 0.08 and 0.32."""
    model, settings = narrow(), {"sde": "vp", "seed": 7, "dtype": torch.float64}
    exact, method = sample(model, 300, steps=1500, **settings), replace(METHODS[name], steps=steps)

    def error(grid):
        return float((sample(model, 300, method=method, grid=grid, **settings) - exact).norm(dim=1).mean())

    assert error(Adapted(pilots=256)) < at_most * error(Adapted(pilots=256, moved=0))


@pytest.mark.parametrize(
    "method",
    [
        replace(METHODS["default"], steps=33),
        replace(METHODS["sde"], steps=20),
        OnClock(eta=lambda l: 0.0, solver=AdamsBashforth(2), steps=20),
        OnClock(PredictorCorrector(AdamsBashforth(1), Langevin()), steps=20),
        InTime(EulerMaruyama(), eta=0.0, steps=20),
        METHODS["edm"],
        None,
    ],
    ids=["many", "sde", "eta", "corrector", "time", "edm", "none"],
)
def test_steps_of_methods_with_noise_or_of_many_steps_are_not_moved(method):
    grid = Adapted(pilots=4, pilot_steps=20).fitted(narrow(), "vp", method=method)
    assert isinstance(grid, Equidistributed)
    assert grid.evaluations == 4 * (70 + 20 + 21)


def test_steps_are_moved_by_every_other_pilot_and_judged_by_all():
    """By labels, one a pilot; the latter half of them are looked for where modes part."""
    met = set()

    def net(x, t, label):
        met.add(tuple(label.tolist()))
        return torch.tanh(x)

    model = ScoreModel(net, "vp", shape=(2,)).given(label=torch.arange(7.0))
    Adapted(pilots=7).fitted(model, method=replace(METHODS["default"], steps=6))
    assert met == {(0, 1, 2, 3, 4, 5, 6), (4, 5, 6), (0, 2, 4, 6)}


def test_moves_that_fail_are_not_taken():
    """A network that has no value at a point to which a step is moved."""
    mixture, vp, method, holes = narrow(), VPSDE(), replace(METHODS["default"], steps=12), []

    def score(x, t):
        hole = torch.stack([(torch.as_tensor(vp.log_snr(t)) - l).abs() < 1e-5 for l in holes]).any(dim=0) if holes else t < 0
        return mixture.score(t, x, vp) / (~hole)[:, None]

    model = ScoreModel(score, vp, "score", shape=(2,))
    free = Adapted(pilots=64).fitted(model, method=method)
    holes.append(free.l[5])
    assert not bool(sample(model, 4, method=method, grid=Adapted(pilots=64), seed=0).isnan().any())
    grid = Adapted(pilots=64).fitted(model, method=method)
    assert (grid.l - free.l).abs().max() > 1e-3
    with pytest.raises(NotFiniteError):
        sample(model, 4, method=method, grid=free, seed=0)


def test_given_points_are_taken_as_they_are():
    l = torch.tensor([*span_of(narrow(), VPSDE(), 1e-3), 0.0, 1.5], dtype=torch.float64).sort().values
    solution = sample(narrow(), 2, sde="vp", grid=Given(l), steps=3, seed=1, return_solution=True)
    torch.testing.assert_close(torch.as_tensor(VPSDE().log_snr(solution.ts)), l)
    assert torch.equal(Given(l).points(VPSDE(), (float(l[0]), float(l[-1])), 3), l)
    with pytest.raises(ValueError, match="4 points are 3 steps, not 6: leave steps out, or give 3"):
        sample(narrow(), 2, sde="vp", grid=Given(l), steps=6)
    with pytest.raises(ValueError, match=r"known from sigma / alpha = 152\.167 to 0\.001, and asked for from 50 to 0\.01"):
        sample(narrow(), 2, sde="ve", grid=Given(l), steps=3, end=1e-2)


def test_given_points_say_how_many_steps():
    l = torch.tensor([*span_of(narrow(), VPSDE(), 1e-3), 0.0, 1.5, 3.0], dtype=torch.float64).sort().values
    for method, count in (("default", 5), ("heun", 5), ("euler_maruyama", 5), (OnClock(grid=Given(l)), 5), ("ncsn", 5)):
        grid = None if isinstance(method, OnClock) else Given(l)
        solution = sample(narrow(), 2, sde="vp", grid=grid, method=method, seed=1, return_solution=True)
        assert len(solution.ts) == count + (method == "ncsn")
    assert torch.equal(
        sample(narrow(), 2, sde="vp", grid=Given(l), seed=1), sample(narrow(), 2, sde="vp", grid=Given(l), steps=4, seed=1)
    )
    with pytest.raises(ValueError, match="5 points are 4 steps, not 50: leave steps out, or give 4"):
        sample(narrow(), 2, sde="vp", method=OnClock(steps=50, grid=Given(l)))


@pytest.mark.parametrize("off", [-9e-4, -1e-9, 1e-9, 9e-4])
def test_ends_are_the_same_but_for_rounding_and_then_those_of_the_solve(off):
    """Points printed with four digits, and densities known from there to there."""
    span = span_of(narrow(), VPSDE(), 1e-2)
    l = torch.linspace(*span, 40, dtype=torch.float64)
    l[0], l[-1] = l[0] - off, l[-1] + off
    for grid in (Given(l), Equidistributed(l, torch.ones_like(l))):
        solution = sample(narrow(), 2, sde="vp", grid=grid, steps=39, seed=1, end=1e-2, return_solution=True)
        ends = VPSDE().log_snr(torch.as_tensor(solution.ts)[[0, -1]])
        torch.testing.assert_close(ends, torch.tensor(span, dtype=torch.float64), rtol=0, atol=1e-9)
    for grid in (Given(l), Equidistributed(l, torch.ones_like(l))):
        with pytest.raises(ValueError, match="the grid is known from sigma / alpha"):
            sample(narrow(), 2, sde="vp", grid=grid, steps=39, seed=1, end=0.98e-2)


def test_half_of_the_pilots_are_where_modes_part():
    """How many end in another mode from x_T + 0.05 z: of the latter half, whose pairs differ in mode in two of five, many."""
    model, pilots = narrow(), Adapted(pilots=400)
    down = pilots._drawn(model, VPSDE(), span_of(model, VPSDE(), 1e-3))
    parting, evaluations = pilots._parting(down)
    assert torch.equal(parting.x[:200], down.x[:200])
    assert evaluations == 200 * 20 * 7
    z = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def mode(x):
        return model.posterior(sample(model, x_T=x, sde="vp", steps=50)).argmax(1)

    switched = (mode(parting.x) != mode(parting.x + 0.05 * z)).double()
    assert switched[:200].mean() < 0.05
    assert switched[200:].mean() > 0.1


@pytest.mark.parametrize("method", ["default", 20])
def test_a_grid_is_for_an_object_of_a_method(method):
    with pytest.raises(TypeError, match=r"method is an object with steps, such as replace\(METHODS"):
        Adapted().fitted(narrow(), "vp", method=method)


def test_pilots_are_counted_in_whole_numbers():
    with pytest.raises(TypeError, match=r"whole numbers, not 16\.0, 64 and 32"):
        Adapted(pilots=16.0)
    assert [len(Adapted()._drawn(law, VPSDE(), (-5.0, 7.0)).x) for law in (narrow(), wide(500), wide(3072))] == [512, 131, 64]


def wide(d):
    return GaussianMixture([1.0], torch.zeros(1, d), [1.0])


@pytest.mark.parametrize("grid", ["adapted", "quadratic", "focused"])
def test_sde_does_not_explode_on_uneven_grids(grid):
    """The variance of a narrow mode after 30 steps: with three values in l it was 1.6 to 10 times too large."""
    model = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(), torch.tensor([0.02, 0.05]).double())
    x = sample(model, 4000, sde="vp", method="sde", steps=30, grid=grid, seed=0)
    assert float(x[x[:, 0] < 0, 1].var()) < 1.35 * 0.02


def test_an_adapted_grid_is_found_in_inference_mode_too():
    model, grid = narrow(), Adapted(pilots=4, pilot_steps=20)
    expected = grid.fitted(model, "vp").density
    with torch.inference_mode():
        assert torch.equal(grid.fitted(model, "vp").density, expected)


def test_smoothing_averages_the_function_not_its_knots():
    """Two knots of ten a unit on one side and a hundred on the other: as on even knots, to the trapezoid's error."""
    even, uneven = torch.linspace(0, 10, 2001), torch.cat([torch.linspace(0, 5, 51), torch.linspace(5, 10, 501)[1:]])
    step, to = [1.0 + (l > 5) for l in (even, uneven)], torch.linspace(3, 7, 9)
    a, b = (smoothed(v, l, to, 1.0) for v, l in zip(step, (even, uneven), strict=True))
    torch.testing.assert_close(a, b, rtol=0, atol=0.03)
    torch.testing.assert_close(a, 1 + torch.special.ndtr(to - 5), rtol=0, atol=1e-3)
    assert smoothed(step[0], even, even, 0.0) is step[0]


@pytest.mark.parametrize("end", [1e-3, 1e-4])
def test_the_rounding_of_float32_does_not_place_steps(end):
    """RMS error with the grid that is found in float32 over that with the one found in float64: 1.3 to 1.4 times, and
    1.7 times with 100 steps down to 1e-4, where it is 1e-7."""
    model, settings = narrow(), {"sde": "vp", "seed": 7, "dtype": torch.float64, "end": end}
    single = GaussianMixture(model.weights.float(), model.means.float(), torch.tensor([0.05, 0.03]).square())
    exact, span = sample(model, 300, steps=1500, **settings), span_of(model, VPSDE(), end)
    grids = [Adapted().fitted(m, "vp", span) for m in (single, model)]
    for steps in (20, 100):
        here, there = ((sample(model, 300, grid=g, steps=steps, **settings) - exact).square().mean().sqrt() for g in grids)
        assert here < (2 if steps == 100 and end == 1e-4 else 1.4) * there


def test_the_adapted_grid_does_not_depend_on_torchs_default_dtype():
    model = narrow()
    one = Adapted(pilots=4, pilot_steps=20).fitted(model, "vp").density
    torch.set_default_dtype(torch.float64)
    try:
        same = Adapted(pilots=4, pilot_steps=20).fitted(model, "vp").density
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(one, same)


def test_numbers_are_vectors_of_one():
    column = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0], [0.5]]), [0.04, 0.01])
    numbers = GaussianMixture([0.3, 0.7], torch.tensor([-1.0, 0.5]), [0.04, 0.01])
    a, b = (Adapted(pilots=4, pilot_steps=20).fitted(model, "vp") for model in (column, numbers))
    assert torch.equal(a.density, b.density)


def test_labels_of_the_samples_do_not_enter():
    net = lambda x, t, label: torch.tanh(x) * label[:, None]  # noqa: E731
    model = ScoreModel(net, "vp", shape=(2,)).given(label=torch.arange(5.0))
    with pytest.raises(ValueError, match="label has 5 entries for 512 pilots: fit the grid beforehand"):
        sample(model, 5, grid="adapted", seed=1)
    grid = Adapted(pilots=8).fitted(model.given(label=torch.arange(8.0) % 5))
    assert sample(model, 5, grid=grid, steps=10, seed=1).shape == (5, 2)
    moved = Adapted(pilots=8).fitted(model.given(label=torch.arange(8.0) % 5), method=replace(METHODS["default"], steps=10))
    assert sample(model, 5, grid=moved, steps=10, seed=1).shape == (5, 2)
    other = Adapted(pilots=8).fitted(
        model.given(label=torch.arange(8.0).flip(0) % 5), method=replace(METHODS["default"], steps=10)
    )
    assert not torch.equal(moved.l, other.l)


@pytest.mark.parametrize(
    "build", [Native, UniformInTime, Quadratic, GeometricInSigma, Karras, UniformInLogSNR, Focused, Adapted]
)
def test_names(build):
    assert [type(grid) for grid in GRIDS.values()].count(build) == 1


@pytest.mark.parametrize("method", ["ode", AdaptiveFlow(1e-3, 1e-3), "adaptive_sde"], ids=["ode", "object", "sde"])
@pytest.mark.parametrize("grid", ["time", "adapted"])
def test_adaptive_methods_refuse_a_grid(method, grid):
    with pytest.raises(ValueError, match="adaptive method chooses its own steps: leave grid out"):
        sample(narrow(), 2, sde="vp", method=method, grid=grid)
    assert METHODS["ode"].grid is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: sample(narrow(), 2, sde="vp", grid="cosine"),
            "unknown grid 'cosine'; choose one of native, time, quadratic, sigma",
        ),
        (lambda: sample(narrow(), 2, sde="vp", grid=Equidistributed(torch.arange(3), torch.ones(3))), "fit it for that range"),
        (lambda: Adapted().fitted(ScoreModel(Net(), "vp")), "needs its shape="),
        (lambda: Adapted().points(VPSDE(), (0.0, 1.0), 3), "comes from a model"),
        (lambda: Karras(rho=0.0), "rho must be a positive number"),
        (lambda: Karras(rho=math.inf), "rho must be a positive number"),
        (lambda: Focused().points(VPSDE(), (0.0, 1.0), 3), "needs the deviation of the data"),
        (lambda: Focused(1.0), "share is a number from 0 on and less than 1"),
        (lambda: Adapted(order=5), "1 to 4, not 5"),
        (lambda: Adapted(pilots=1), "2 samples and 10 steps or more, and moves 0 or more; not 1, 64 and 32"),
        (lambda: Adapted(moved=-1), "moves 0 or more"),
        (lambda: Given(torch.tensor([1.0, 0.0])), "two or more finite numbers that increase"),
        (lambda: Given(torch.tensor([1.0])), "two or more finite numbers that increase"),
        (lambda: Given(torch.tensor([1.0, math.inf])), "two or more finite numbers that increase"),
        (lambda: Adapted(pilot_steps=5), "10 steps or more"),
        (lambda: Adapted(width=0.0), "positive numbers"),
        (lambda: Adapted(even=math.nan), "positive numbers"),
        (lambda: Equidistributed(torch.tensor([1.0, 0.0]), torch.ones(2)), "l must increase"),
        (lambda: Equidistributed(torch.arange(3), torch.zeros(3)), "positive numbers"),
        (lambda: Equidistributed(torch.arange(3), torch.ones(3), width=-1.0), "width must be a number of steps"),
        (lambda: UniformInTime().points(VPSDE(), (-4.0, 6.0), 0), "at least one step"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
