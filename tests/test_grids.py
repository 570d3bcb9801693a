"""Grids: their formulas, their ends, and what the focused one gains."""

import itertools
import math
import re
from array import array
from fractions import Fraction

import numpy as np
import pytest
import torch
from physical import grid_points, span_of

from sdekit import DPMSolver, EulerMaruyama
from sdekit_diffusion import (
    DDIM,
    DIFFUSIONS,
    EDMSDE,
    GRIDS,
    METHODS,
    VESDE,
    VPSDE,
    AbstractGrid,
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
    Sigmas,
    UniformInLogSNR,
    UniformInTime,
    sample,
)
from sdekit_diffusion._sampling.adaptive import AbstractAdaptive
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.focused import _cached_focused

SDES = {
    "ve as published": VESDE(exact=False),
    **{name: build() for name, build in DIFFUSIONS.items()},
}


def narrow():
    means = torch.tensor([[-1.0, 0.3], [0.5, -0.2]], dtype=torch.float64)
    return GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64), means, torch.tensor([0.05, 0.03]).square()
    )


class Halved(torch.nn.Module):
    """A network with a parameter."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        return self.factor * x


def sixteen():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(3, 16, 16, generator=generator).double() / 8
    means = torch.randn(3, 16, generator=generator).double()
    weights = torch.tensor([0.2, 0.3, 0.5]).double()
    return GaussianMixture(
        weights, means - weights @ means, factor @ factor.mT + 0.0025 * torch.eye(16)
    )


@pytest.mark.parametrize("name", GRIDS)
def test_ends_are_exact_and_points_increase(name):
    for case in itertools.product(SDES, (1, 2, 30, 1000)):
        sde, steps = case
        coordinates = Coordinates.of(narrow(), SDES[sde])
        span = coordinates.span(narrow(), 1e-3)
        l = GRIDS[name].points(coordinates, span, steps)
        assert l.shape == (steps + 1,), case
        assert l.dtype == torch.float64, case
        assert (float(l[0]), float(l[-1])) == span, case
        assert (l.diff() > 0).all(), case
        assert torch.isfinite(l).all(), case
        assert (torch.as_tensor(coordinates.time(l)).diff() < 0).all(), case


@pytest.mark.parametrize("sde", SDES)
def test_formulas(sde):
    """Equal steps, each in its own variable: t, sqrt(t), log(sigma), (sigma / alpha)^(1/rho),
    log(sigma / alpha).
    """
    kernel = SDES[sde]
    span = span_of(narrow(), kernel, 1e-2)
    variables = {
        "time": lambda t: t,
        "quadratic": lambda t: t.sqrt(),
        "sigma": lambda t: kernel.sigma(t).log(),
        "karras": lambda t: (kernel.sigma(t) / kernel.alpha(t)) ** (1 / 7),
        "log_snr": lambda t: (kernel.sigma(t) / kernel.alpha(t)).log(),
    }
    for name, variable in variables.items():
        l = grid_points(GRIDS[name], narrow(), kernel, span, 23)
        steps = variable(torch.as_tensor(kernel.time(l))).diff()
        torch.testing.assert_close(steps, steps.mean().expand(23), rtol=1e-7, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.7])
@pytest.mark.parametrize(("steps", "k", "power"), [(11, 12, 3 / 8), (12, 5, 1 / 2)])
def test_a_focused_grid_has_equal_steps_of_its_own_variable(share, steps, k, power):
    """log(1 + k y / (y / r + s)) and l, each over its range, y = sigma / alpha, s the deviation and
    r a power of 2 coordinates.
    """
    model = narrow()
    for sde, kernel in SDES.items():
        l = grid_points(Focused(share), model, kernel, span_of(model, kernel, 1e-3), steps)
        y = l.neg().exp()
        v = torch.log1p(k * y / (y / 2**power + model.data_std))
        parts = (share * v / (v[-1] - v[0]) + (1 - share) * l / (l[-1] - l[0])).diff()
        assert float((parts / parts.mean() - 1).abs().max()) < 1e-5, sde


@pytest.mark.parametrize("steps", [11, 12])
@pytest.mark.parametrize("reach", [None, 3.0, math.inf])
@pytest.mark.parametrize(
    ("sharpness", "k"), [(4.0, 4 / 2**0.5), (2.0, 2.0)], ids=["over the norm", "least"]
)
def test_a_sharper_focused_grid_has_shorter_steps_near_the_data(steps, reach, sharpness, k):
    """log(1 + k y / (y / r + 1)) with a given k, over d^{1/2} and at least 2, for few steps and for
    many.
    """
    model = narrow()
    kernel = SDES["vp"]
    grid = Focused(0.7, reach, sharpness)
    l = grid_points(grid, model, kernel, span_of(model, kernel, 1e-3), steps)
    y = l.neg().exp() / float(model.data_std)
    r = 2 ** (3 / 8 if steps < 12 else 1 / 2) if reach is None else reach * 2**0.5
    v = torch.log1p(k * y / (y / r + 1))
    finer = y.clamp(max=math.inf if reach is None else 10 * r).log()
    parts = (0.7 * v / (v[0] - v[-1]) + 0.3 * finer / (finer[0] - finer[-1])).diff()
    torch.testing.assert_close(parts, parts.mean().expand(steps), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("steps", "k", "reach"),
    [
        (5, 14 / 2**0.5, 10.0),
        (10, 24 / 2**0.5, 10.0),
        (17, 24 / 2**0.5, 10.0),
        (18, 12.0, 30.0),
        (30, 12.0, math.inf),
    ],
)
def test_a_focused_grid_reaches_further_for_networks_that_predict_the_noise(steps, k, reach):
    """log(1 + k y / (s + y / r)) and l up to ten r, of 10, 30 or all norms; with noise those of all
    models.
    """

    model = ScoreModel(Halved(), "vp", "noise", shape=(2,), data_std=0.5)
    settings = {"steps": steps, "seed": 0, "return_solution": True}
    found = sample(model, 2, grid=Focused(0.7), **settings)
    l = model.sde.log_snr(found.ts.double())
    y = l.neg().exp() / 0.5
    r = reach * 2**0.5
    v = torch.log1p(k * y / (1 + y / r))
    finer = y.clamp(max=10 * r).log()
    parts = (0.7 * v / (v[0] - v[-1]) + 0.3 * finer / (finer[0] - finer[-1])).diff()
    torch.testing.assert_close(parts, parts.mean().expand(steps), rtol=1e-5, atol=1e-7)
    noisy = sample(model, 2, method="sde", grid=Focused(0.7), **settings)
    l = model.sde.log_snr(noisy.ts.double())
    kernel = SDES["vp"]
    own = Focused(0.7, reach=0.85 * 2**0.35, sharpness=350 * 2**0.5)
    usual = grid_points(own, model, kernel, span_of(model, kernel, 1e-3), steps)
    torch.testing.assert_close(l, usual, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("share", "native_share"), [(0.5, 0.3), (0.0, 0.9), (0.8, 0.1)])
@pytest.mark.parametrize("steps", [5, 40])
def test_a_focused_grid_has_a_share_of_the_native_steps(share, native_share, steps):
    """Uniform in the time of every diffusion, also of data that are not standardised and of a
    diffusion that no cache can hold; v is that of many steps.
    """
    model = narrow()
    deviation = float(model.data_std)
    grid = Focused(share, native_share=native_share)

    class Changeable(VPSDE):
        power = 2.0

        def spaced(self, t0, t1, u):
            return super().spaced(t0, t1, u**self.power)

    changeable = Changeable()
    grid_points(grid, model, changeable, span_of(model, changeable, 1e-3), steps)
    Changeable.power = 1.0
    for kernel in (*SDES.values(), changeable):
        l = grid_points(grid, model, kernel, span_of(model, kernel, 1e-3), steps)
        y = l.neg().exp() / deviation
        v = torch.log1p(5 * y / (1 + y / 2**0.5))
        t = torch.as_tensor(kernel.time(l))
        if isinstance(kernel, EDMSDE):
            t = t ** (1 / 7)
        rest = 1 - share - native_share
        variables = (share, v), (native_share, t), (rest, -l)
        parts = sum(part * w / (w[0] - w[-1]) for part, w in variables).diff()
        torch.testing.assert_close(parts, parts.mean().expand(steps), rtol=1e-4, atol=0)


def test_native_steps_are_those_of_the_diffusion_of_the_model():
    """Under other diffusions of the same range, too."""
    model = ScoreModel(Halved(), "flow", "velocity", shape=(2,), data_std=0.5)
    chosen = Focused(0.5, native_share=0.3)
    span = -3.0, 6.0
    own, other = (Coordinates.of(model, DIFFUSIONS[name]()) for name in ("flow", "ve"))
    torch.testing.assert_close(
        chosen.points(own, span, 20), chosen.points(other, span, 20), rtol=0, atol=0
    )
    unknown = Coordinates.of(narrow(), DIFFUSIONS["ve"]())
    assert not torch.allclose(chosen.points(other, span, 20), chosen.points(unknown, span, 20))


def test_native_steps_of_data_far_from_the_unit_are_those_of_a_half_or_of_two():
    """Where alpha < 1: the range of "ve" is in proportion to the data."""
    span = -4.0, 6.0
    chosen = Focused(0.5, native_share=0.3)

    def points(kernel, std):
        return chosen.points(Coordinates(kernel, std=std), span, 20)

    for far, std in ((0.01, 0.5), (100.0, 2.0)):
        assert torch.equal(points(VPSDE(), far), points(VPSDE(), std))
        near = 0.5 * (1 + std)
        assert not torch.allclose(points(VPSDE(), near), points(VPSDE(), std), atol=1e-2)
        assert not torch.allclose(points(VESDE(), far), points(VESDE(), std), atol=1e-2)


def test_a_focused_grid_is_computed_once():
    """For each diffusion and each scale of the data if it has native steps, else for all."""
    span = -4.0, 6.0

    def new(grid, kernel, std):
        before = _cached_focused.cache_info().misses
        first = grid.points(Coordinates(kernel, std=std), span, 10)
        expected = first.clone()
        first.zero_()  # a copy
        assert torch.equal(grid.points(Coordinates(kernel, std=std), span, 10), expected)
        return _cached_focused.cache_info().misses - before

    kernels = VPSDE(), VPSDE(beta_max=15.0), VESDE()
    _cached_focused.cache_clear()
    assert [new(Focused(), kernel, 1.0) for kernel in kernels] == [1, 0, 0]
    native = Focused(native_share=0.1)
    assert [new(native, kernel, std) for kernel in kernels for std in (1.0, 2.0)] == [1] * 6
    assert new(native, kernels[0], 2.0) == 0


@pytest.mark.parametrize("noise", [50.0, 5000.0])
def test_with_a_reach_more_noise_changes_no_step_below_it(noise):
    """Steps of l begin at ten times the reach: beyond, the grid has only the end."""
    model = narrow()
    grid = Focused(reach=3.0)
    deviation = float(model.data_std)
    kernel = VESDE(0.001 * deviation, noise * deviation)
    l = grid_points(grid, model, kernel, span_of(model, kernel, 1e-3), 10)
    y = l.neg().exp() / deviation
    r = 3 * 2**0.5
    v = torch.log1p(12 * y / (1 + y / r))
    finer = y.clamp(max=10 * r).log()
    parts = (0.9 * v / (v[0] - v[-1]) + 0.1 * finer / (finer[0] - finer[-1])).diff()
    torch.testing.assert_close(parts, parts.mean().expand(10), rtol=1e-4, atol=0)
    beyond = Coordinates.of(model, kernel, (2,))
    l = grid.points(beyond, (-9.0, -5.0), 4)  # where no level is below
    assert l[[0, -1]].tolist() == [-9.0, -5.0]
    assert (l.diff() > 0.3).all()


def test_steps_have_equal_shares_of_a_density_that_jumps():
    """With a density of 1 up to 0.5 and 3 above, a quarter of the mass ends at 0.5."""
    l = torch.tensor([0.0, 0.5 - 1e-9, 0.5 + 1e-9, 1.0], dtype=torch.float64)
    grid = Equidistributed(l, torch.tensor([1.0, 1.0, 3.0, 3.0]))
    points = grid.points(Coordinates(VPSDE()), (0.0, 1.0), 4)
    assert points.tolist() == pytest.approx([0, 0.5, 2 / 3, 5 / 6, 1], abs=1e-6)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_is_the_published_formula(rho):
    """Equation 5 of Karras et al. 2022, with their sigma_min, sigma_max and number of points."""
    high = 80.0
    low = 0.002
    n = 18
    sigma = [
        (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(n)
    ]
    coordinates = Coordinates(VESDE(sigma_max=80.0))
    l = Karras(rho).points(coordinates, (-math.log(high), -math.log(low)), n - 1)
    torch.testing.assert_close(
        l.neg().exp(), torch.tensor(sigma, dtype=torch.float64), rtol=1e-11, atol=0
    )


def test_native_is_uniform_in_time_but_for_edm():
    for kernel, same, end in ((EDMSDE(), Karras(7), 2e-3), (VPSDE(), UniformInTime(), 1e-3)):
        coordinates = Coordinates.of(narrow(), kernel)
        span = coordinates.span(narrow(), end)
        own = Native().points(coordinates, span, 17)
        torch.testing.assert_close(own, same.points(coordinates, span, 17))


def test_sigma_over_alpha_is_that_of_the_diffusion_only_where_alpha_is_one():
    for name, same in (("ve", True), ("vp", False)):
        coordinates = Coordinates.of(narrow(), SDES[name])
        span = coordinates.span(narrow(), 1e-3)
        l = GeometricInSigma().points(coordinates, span, 20)
        assert torch.allclose(l, UniformInLogSNR().points(coordinates, span, 20)) is same


def test_a_density_is_equidistributed():
    """Density l from 1 to 3: the mass is l^2 / 2, so that the points are equidistant in l^2; also
    on a part of the range.
    """
    l = torch.linspace(1.0, 3.0, 2001, dtype=torch.float64)
    grid = Equidistributed(l, l)
    for span in ((1.0, 3.0), (1.5, 2.0)):
        squares = torch.linspace(span[0] ** 2, span[1] ** 2, 9, dtype=torch.float64)
        points = grid_points(grid, narrow(), VPSDE(), span, 8)
        torch.testing.assert_close(points, squares.sqrt(), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("name", GRIDS)
def test_sample_takes_the_grid_to_the_chosen_end(name):
    for method in (OnClock(), InTime(EulerMaruyama())):
        solution = sample(
            narrow(),
            2,
            sde="vp",
            method=method,
            steps=9,
            grid=name,
            end=0.02,
            seed=1,
            return_solution=True,
        )
        span = span_of(narrow(), VPSDE(), 0.02)
        l = grid_points(GRIDS[name], narrow(), VPSDE(), span, 9)
        torch.testing.assert_close(
            solution.ts, torch.as_tensor(VPSDE().time(l)), rtol=1e-12, atol=0
        )
        end = 0.02 * narrow().data_std
        assert VPSDE().log_snr(float(solution.ts[-1])) == pytest.approx(-math.log(end), abs=1e-12)
        assert solution.evaluations.tolist() == [9] * 2


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("default", "focused"),
        ("dpmpp_2m", "log_snr"),
        ("euler_maruyama", "native"),
        ("pc", "native"),
    ],
)
def test_each_method_has_its_own_grid_by_default(method, name):
    x = sample(narrow(), 5, sde="vp", method=method, steps=20, seed=1)
    assert torch.equal(sample(narrow(), 5, sde="vp", method=method, steps=20, seed=1, grid=name), x)
    assert torch.equal(
        sample(narrow(), 5, sde="vp", method=method, steps=20, seed=1, grid=GRIDS[name]), x
    )
    assert not torch.equal(
        sample(narrow(), 5, sde="vp", method=method, steps=20, seed=1, grid=Quadratic()), x
    )


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, method in METHODS.items()
        if not isinstance(method, (AbstractAdaptive, AnnealedLangevin))
    ],
)
def test_no_method_forgets_its_grid(name):
    """The times of the solution are the grid's, whatever the method makes of it; for levels see
    test_annealed.py.
    """
    mixture = GaussianMixture(
        [1.0], torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    )
    own, karras = (
        sample(mixture, 2, sde="vp", method=name, steps=24, grid=grid, seed=0, return_solution=True)
        for grid in (None, "karras")
    )
    sde = VPSDE()
    span = span_of(mixture, sde, 1e-3)
    expected = sde.time(grid_points(Karras(), mixture, sde, span, 24))
    torch.testing.assert_close(karras.ts, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(own.ts, karras.ts)
    assert own.ts[0] == pytest.approx(float(karras.ts[0]))


def test_a_method_object_and_a_grid_of_ones_own():
    class Halves(AbstractGrid):
        def points(self, coordinates, span, steps):
            middle = 0.5 * (span[0] + span[1])
            return torch.tensor([span[0], middle, span[1]], dtype=torch.float64)

    by_object = sample(narrow(), 3, sde="vp", method=OnClock(grid=Halves(), steps=2), seed=1)
    by_name = sample(narrow(), 3, sde="vp", method=OnClock(), grid="log_snr", steps=2, seed=1)
    torch.testing.assert_close(by_object, by_name)


@pytest.mark.parametrize(
    ("mixture", "sde"), [(narrow, "vp"), (narrow, "ve"), (sixteen, "ve"), (sixteen, "subvp")]
)
def test_what_is_gained_over_steps_uniform_in_log_snr(mixture, sde):
    """RMS error of x over that of as many steps uniform in log-SNR, by the same rule, at 20, 50 and
    100 evaluations.

    It was at most 0.21, 0.08 and 0.06.
    """
    model = mixture()
    settings = {"sde": sde, "seed": 7, "dtype": torch.float64}
    exact = sample(model, 300, steps=300, **settings)

    def error(grid, steps):
        return float(
            (sample(model, 300, grid=grid, steps=steps, **settings) - exact).square().mean().sqrt()
        )

    for steps, at_most in ((20, 0.27), (50, 0.1), (100, 0.075)):
        assert error("focused", steps) < at_most * error("log_snr", steps)


def test_given_points_are_taken_as_they_are():
    l = (
        torch.tensor([*span_of(narrow(), VPSDE(), 1e-3), 0.0, 1.5], dtype=torch.float64)
        .sort()
        .values
    )
    solution = sample(narrow(), 2, sde="vp", grid=Given(l), steps=3, seed=1, return_solution=True)
    torch.testing.assert_close(torch.as_tensor(VPSDE().log_snr(solution.ts)), l)
    points = Given(l).points(Coordinates(VPSDE()), (float(l[0]), float(l[-1])), 3)
    assert torch.equal(points, l)
    with pytest.raises(ValueError, match="4 points are 3 steps, not 6: leave steps out, or give 3"):
        sample(narrow(), 2, sde="vp", grid=Given(l), steps=6)
    last = 1e-3 * narrow().data_std
    ends = (
        f"covers sigma / alpha from 152.167 to {last:.6g}, and the solve needs 50 to "
        f"{10 * last:.6g}"
    )
    with pytest.raises(ValueError, match=re.escape(ends)):
        sample(narrow(), 2, sde="ve", grid=Given(l), steps=3, end=1e-2)


def test_given_points_say_how_many_steps():
    l = (
        torch.tensor([*span_of(narrow(), VPSDE(), 1e-3), 0.0, 1.5, 3.0], dtype=torch.float64)
        .sort()
        .values
    )
    for method, count in (
        ("default", 5),
        ("heun", 5),
        ("euler_maruyama", 5),
        (OnClock(grid=Given(l)), 5),
        ("ncsn", 5),
    ):
        grid = None if isinstance(method, OnClock) else Given(l)
        solution = sample(
            narrow(), 2, sde="vp", grid=grid, method=method, seed=1, return_solution=True
        )
        assert len(solution.ts) == count + (method == "ncsn")
    assert torch.equal(
        sample(narrow(), 2, sde="vp", grid=Given(l), seed=1),
        sample(narrow(), 2, sde="vp", grid=Given(l), steps=4, seed=1),
    )
    with pytest.raises(
        ValueError, match="5 points are 4 steps, not 50: leave steps out, or give 4"
    ):
        sample(narrow(), 2, sde="vp", method=OnClock(steps=50, grid=Given(l)))


def array_of(values):
    """A sequence that is neither a list nor a tuple."""
    return array("d", values)


SIGMAS = [14.6, 6.5, 3.9, 2.7, 1.9, 1.4, 0.96, 0.65, 0.4, 0.15, 0.03]


def euler(model, x, sigmas):
    """k-diffusion's `sample_euler` under VE, down to 0 where that is the last level."""
    for s, t in itertools.pairwise(sigmas):
        d = (x - model.denoise(VESDE().time(-math.log(s)), x, VESDE())) / s
        x = x + (t - s) * d
    return x


@pytest.mark.parametrize("kind", [list, tuple, torch.DoubleTensor, np.array, Sigmas, array_of])
@pytest.mark.parametrize("last", [[], [0.0]], ids=["positive", "0"])
def test_noise_levels_set_both_ends_and_0_denoises(kind, last):
    model = narrow()
    sigmas = [*SIGMAS, *last]
    generator = torch.Generator().manual_seed(0)
    x = 14.6 * torch.randn(4, 2, generator=generator, dtype=torch.float64)
    settings = {"sde": "ve", "method": "ddim", "grid": kind(sigmas), "x_T": x}
    solution = sample(model, **settings, return_solution=True)
    torch.testing.assert_close(solution.x, euler(model, x, sigmas), rtol=1e-9, atol=1e-9)
    assert solution.evaluations.tolist() == [10 + len(last)] * 4
    alone = sample(model, **{**settings, "method": DDIM(grid=Sigmas(sigmas)), "grid": None})
    torch.testing.assert_close(alone, solution.x, rtol=1e-12, atol=1e-12)


def dpmpp_2m(model, x, sigmas):
    """k-diffusion's `sample_dpmpp_2m`, of order one in the first step and in that to 0 only."""
    before = None
    for s, t in itertools.pairwise(sigmas):
        d = model.denoise(VESDE().time(-math.log(s)), x, VESDE())
        if not t:
            return d
        h = math.log(s / t)
        mixed = d
        if before is not None:
            r = math.log(before[0] / s) / h
            mixed = (1 + 1 / (2 * r)) * d - before[1] / (2 * r)
        x = t / s * x - math.expm1(-h) * mixed
        before = s, d
    return x


@pytest.mark.parametrize("last", [[], [0.0]], ids=["positive", "0"])
def test_the_step_to_0_is_the_last_of_few(last):
    """So that no step before it is of lower order; without it, that to the last level is."""
    model = narrow()
    generator = torch.Generator().manual_seed(0)
    x = 14.6 * torch.randn(4, 2, generator=generator, dtype=torch.float64)
    settings = {"sde": "ve", "x_T": x, "grid": [*SIGMAS, *last]}
    found = sample(model, method="dpmpp_2m", **settings)
    same = torch.allclose(found, dpmpp_2m(model, x, [*SIGMAS, *last]), rtol=1e-9, atol=1e-9)
    assert same == bool(last)
    never = sample(model, method=OnClock(DPMSolver(2)), **settings)
    torch.testing.assert_close(never, dpmpp_2m(model, x, [*SIGMAS, *last]), rtol=1e-9, atol=1e-9)


def test_the_end_is_that_of_the_noise_levels():
    settings = {"sde": "ve", "grid": [5.0, 1.0, 0.5], "seed": 0}
    model = narrow()
    end = 0.5 / model.data_std
    assert torch.equal(sample(model, 2, end=end, **settings), sample(model, 2, **settings))
    with pytest.raises(ValueError, match=r"the noise levels end at .* and end is 1: leave out end"):
        sample(model, 2, end=1.0, **settings)


def test_levels_of_a_tensor_are_those_that_it_had():
    given = torch.tensor([5.0, 1.0], dtype=torch.float64)
    grid = Sigmas(given)
    given[1] = 3.0
    assert float(grid.sigmas[1]) == 1.0


def test_noise_levels_begin_with_the_prior_of_the_first():
    """N(m, (s^2 + sigma_0^2) I), as data of this deviation have it under VE."""
    normal = GaussianMixture([1.0], [[3.0]], [4.0])
    n = 20_000
    x = sample(normal, n, sde="ve", grid=[5.0, 4.9], seed=0)
    wanted = 4 + 4.9**2
    assert float(x.var()) == pytest.approx(wanted, rel=5.5 * math.sqrt(2 / n))
    assert float(x.mean()) == pytest.approx(3.0, abs=5.5 * math.sqrt(wanted / n))
    with pytest.warns(UserWarning, match="the grid begins at sigma / alpha = 2"):
        sample(normal, 2, sde="ve", grid=[2.0, 1.0], seed=0)


def test_noise_levels_are_those_of_the_data_whatever_the_diffusion():
    """sigma / alpha, so that VP and VE give the same samples from the same noise."""
    model = narrow()
    settings = {"method": "ddim", "grid": SIGMAS, "seed": 0, "dtype": torch.float64}
    torch.testing.assert_close(
        sample(model, 4, sde="vp", **settings), sample(model, 4, sde="ve", **settings)
    )


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0], "two or more positive numbers that decrease"),
        ([1.0, 0.0], "two or more positive"),
        ([1.0, 2.0], "two or more positive"),
        ([2.0, 1.0, 1.0], "two or more positive"),
        ([2.0, -1.0], "two or more positive"),
        ([math.inf, 1.0], "two or more positive"),
        ([[2.0, 1.0]], "two or more positive"),
        ([51.0, 1.0], "levels run from 51 to 1, and sigma / alpha under VESDE.* from 50 "),
        ([2.0, 5e-3], "levels run from 2 to 0.005, .* to 0.01: take levels between them"),
    ],
    ids=str,
)
def test_noise_levels_that_are_refused(sigmas, message):
    with pytest.raises(ValueError, match=message):
        sample(narrow(), 2, sde=VESDE(0.01, 50.0, exact=False), grid=sigmas)


@pytest.mark.parametrize("grid", [Sigmas, Given, lambda l: Equidistributed(l, [1.0, 1.0])])
@pytest.mark.parametrize(
    "points",
    [["a", "b"], "ab", [None, 1.0], None, torch.ones(2) * 1j, torch.ones(2).bool(), [1j, 2]],
)
def test_points_that_are_no_numbers_are_refused(grid, points):
    with pytest.raises(TypeError, match=r"(sigmas|l) must .*; not "):
        grid(points)


@pytest.mark.parametrize(
    "levels",
    [
        [torch.tensor(2.0), torch.tensor(1.0, dtype=torch.bfloat16)],
        torch.tensor([2, 1]),
        np.array([1.0, 2.0])[::-1],
        np.array([2.0, 1.0], dtype=">f8"),
        (Fraction(2), 1),
    ],
)
def test_numbers_of_all_kinds_are_points(levels):
    assert torch.as_tensor(Sigmas(levels).sigmas).tolist() == [2.0, 1.0]


def test_noise_levels_say_how_many_steps():
    with pytest.raises(
        ValueError, match=r"3 points are 2 steps, not 5: .*the step from the last level to 0 is not"
    ):
        sample(narrow(), 2, sde="ve", grid=[9.0, 2.0, 1.0, 0.0], steps=5)
    with pytest.raises(
        ValueError,
        match=r"the grid covers sigma / alpha from .*; begin with the level of the start",
    ):
        Sigmas([2.0, 1.0]).points(Coordinates(VESDE()), (-1.0, 0.0), 1)


@pytest.mark.parametrize("off", [-9e-4, -1e-9, 1e-9, 9e-4])
def test_ends_are_the_same_but_for_rounding_and_then_those_of_the_solve(off):
    """Points printed with four digits, and densities known from there to there."""
    span = span_of(narrow(), VPSDE(), 1e-2)
    l = torch.linspace(*span, 40, dtype=torch.float64)
    l[0], l[-1] = l[0] - off, l[-1] + off
    for grid in (Given(l), Equidistributed(l, torch.ones_like(l))):
        solution = sample(
            narrow(), 2, sde="vp", grid=grid, steps=39, seed=1, end=1e-2, return_solution=True
        )
        ends = VPSDE().log_snr(torch.as_tensor(solution.ts)[[0, -1]])
        torch.testing.assert_close(ends, torch.tensor(span, dtype=torch.float64), rtol=0, atol=1e-9)
    for grid in (Given(l), Equidistributed(l, torch.ones_like(l))):
        with pytest.raises(ValueError, match="the grid covers sigma / alpha from"):
            sample(narrow(), 2, sde="vp", grid=grid, steps=39, seed=1, end=0.98e-2)


@pytest.mark.parametrize("grid", ["quadratic", "focused"])
def test_sde_does_not_explode_on_uneven_grids(grid):
    """The variance of a narrow mode after 30 steps: with three values in l it was 1.6 to 10 times
    too large.
    """
    model = GaussianMixture(
        [0.3, 0.7],
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(),
        torch.tensor([0.02, 0.05]).double(),
    )
    x = sample(model, 4000, sde="vp", method="sde", steps=30, grid=grid, seed=0)
    assert float(x[x[:, 0] < 0, 1].var()) < 1.35 * 0.02


@pytest.mark.parametrize(
    "build", [Native, UniformInTime, Quadratic, GeometricInSigma, Karras, UniformInLogSNR, Focused]
)
def test_names(build):
    assert build in [type(grid) for grid in GRIDS.values()]
    assert len({str(grid) for grid in GRIDS.values()}) == len(GRIDS)


@pytest.mark.parametrize(
    "method", ["ode", AdaptiveFlow(1e-3, 1e-3), "adaptive_sde"], ids=["ode", "object", "sde"]
)
@pytest.mark.parametrize("grid", ["time", "focused"])
def test_adaptive_methods_refuse_a_grid(method, grid):
    with pytest.raises(ValueError, match="adaptive method chooses its own steps: leave grid out"):
        sample(narrow(), 2, sde="vp", method=method, grid=grid)
    assert METHODS["ode"].grid is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: sample(narrow(), 2, sde="vp", grid="cosine"),
            f"unknown grid 'cosine'; choose one of {', '.join(GRIDS)}, or pass",
        ),
        (
            lambda: sample(
                narrow(), sde="vp", grid=Equidistributed(torch.arange(3), torch.ones(3))
            ),
            "give a density for that range",
        ),
        (lambda: Karras(rho=0.0), "rho must be a positive, finite number"),
        (lambda: Karras(rho=math.inf), "rho must be a positive, finite number"),
        (lambda: Equidistributed([0.0, math.inf], [1.0, 1.0]), "l must increase"),
        (lambda: Equidistributed([0.0, 1.0], [1.0, math.inf]), "l must increase"),
        (lambda: Focused(1.0), "share is a number from 0 on and less than 1"),
        (
            lambda: Focused(native_share=0.2),
            "native_share is a number from 0 on, and its sum with share less than 1; not 0.2 with "
            "the default share 0.8",
        ),
        (lambda: Focused(0.7, native_share=0.3), "not 0.3 with the share 0.7"),
        (lambda: Focused(0.5, native_share=-0.1), "not -0.1 with the share 0.5"),
        (lambda: Focused(reach=10, native_share=0.15), "with the default share 0.9"),
        (lambda: Focused(native_share=math.nan), "not nan with the default share 0.8"),
        (lambda: Focused(reach=0.0), "reach is a positive number, such as 10; not 0.0"),
        (lambda: Focused(reach=math.nan), "reach is a positive number, such as 10; not nan"),
        (
            lambda: Focused(sharpness=0.0),
            "sharpness is a positive, finite number, such as 17; not 0.0",
        ),
        (
            lambda: Focused(sharpness=math.inf),
            "sharpness is a positive, finite number, such as 17; not inf",
        ),
        (lambda: Given(torch.tensor([1.0, 0.0])), "two or more finite numbers that increase"),
        (lambda: Given(torch.tensor([1.0])), "two or more finite numbers that increase"),
        (lambda: Given(torch.tensor([1.0, math.inf])), "two or more finite numbers that increase"),
        (lambda: Equidistributed(torch.tensor([1.0, 0.0]), torch.ones(2)), "l must increase"),
        (lambda: Equidistributed(torch.arange(3), torch.zeros(3)), "positive numbers"),
        (lambda: UniformInTime().points(Coordinates(VPSDE()), (-4.0, 6.0), 0), "at least one step"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
