"""The table of methods and the rules behind it: orders on a mixture, coefficients that matter,
evaluations, brevity.
"""

import ast
import inspect
import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from peers import Case
from physical import on_clock, run, span_of

import sdekit
from sdekit import (
    DEIS,
    RK4,
    AbstractMultistep,
    AdamsBashforth,
    AdamsMoulton,
    ClockedHeun,
    Dopri8,
    DPMSolver,
    DPMSolverSingle,
    UniPC,
    solve,
    uniform,
)
from sdekit._equations.quadrature import Panels
from sdekit._solvers import multistep, published, single
from sdekit_diffusion import (
    DDIM,
    DIFFUSIONS,
    GRIDS,
    METHODS,
    VESDE,
    VPSDE,
    AbstractModel,
    AdaptiveSDE,
    ClassifierGuided,
    Focused,
    GaussianMixture,
    Given,
    Guided,
    Inpainted,
    OnClock,
    ScoreModel,
    from_edm,
    sample,
)
from sdekit_diffusion._sampling.clock import on_clock as data_on_clock
from sdekit_diffusion._sampling.clock import velocity_on_angle
from sdekit_diffusion.metrics import modes

MIXTURE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.3, 0.2]
)
ON_CLOCK = [name for name, method in METHODS.items() if isinstance(method, OnClock)]
MULTISTEP = [name for name in ON_CLOCK if isinstance(METHODS[name].rule, AbstractMultistep)]
SINGLE = [DPMSolverSingle(2), DPMSolverSingle(3), ClockedHeun()]
EXACT = [*(AdamsBashforth(k) for k in (1, 2, 3, 4)), *(AdamsMoulton(k) for k in (1, 2, 3, 4))]
PUBLISHED = [
    *(
        DPMSolver(k, form)
        for k, form in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun"))
    ),
    *(UniPC(k, form) for k in (1, 2, 3) for form in ("bh1", "bh2")),
    *(DEIS(k, variable) for k in (1, 2, 3, 4) for variable in ("t", "rho", "log_rho")),
]
IN_L = [
    *(AdamsBashforth(k, variable="l") for k in (3, 4)),
    *(AdamsMoulton(k, variable="l") for k in (2, 3)),
]
STARTED = [
    *(AdamsBashforth(k, self_starting=False) for k in (3, 4)),
    *(AdamsMoulton(k, self_starting=False) for k in (3, 4)),
]
FINAL = [
    rule(k, lower_final=True)
    for rule in (AdamsBashforth, AdamsMoulton, DPMSolver, UniPC)
    for k in (2, 3)
]


def flowed(solver, steps, integrand="data", start=-0.5):
    """The probability flow to l = 3/2, from -1/2 unless told: there the denoiser is as far from
    constant as anywhere.
    """
    problem = on_clock(MIXTURE, VPSDE(), integrand=integrand)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = solve(
        problem, x / problem.scale(start), problem.time(uniform(start, 1.5, steps)), solver=solver
    )
    return solution.x * problem.scale(1.5)


@cache
def reference(start=-0.5):
    """To 1e-12."""
    return flowed(Dopri8(), 60, start=start)


def measured(solver, integrand="data", start=-0.5, steps=64):
    """The order between `steps` steps and twice as many, from the noisy end three times as many."""
    steps = 3 * steps if start < -1 else steps
    errors = [
        (flowed(solver, n, integrand, start) - reference(start)).norm() for n in (steps, 2 * steps)
    ]
    return math.log2(errors[0] / errors[1])


INTEGRANDS = ("data", "noise", "velocity")
# A rule does not know what it integrates: an integrand each, by turns, so that each form and each
# variable meets all three.
ORDERS = [
    (rule, INTEGRANDS[(i + i // 3) % 3]) for i, rule in enumerate([*EXACT, *SINGLE, *PUBLISHED])
]
# These differ from those in the variable, or in steps at the ends.
ORDERS += zip([*IN_L, *STARTED, *FINAL], itertools.cycle(INTEGRANDS), strict=False)


@pytest.mark.parametrize(("solver", "integrand"), ORDERS, ids=str)
def test_order_of_the_probability_flow(solver, integrand):
    assert measured(solver, integrand) == pytest.approx(solver.order["none"].strong, abs=0.15)


@pytest.mark.parametrize(
    ("k", "integrand"), [(1, "data"), (2, "velocity"), (3, "data"), (4, "velocity")]
)
def test_order_from_the_noisy_end_needs_no_start(k, integrand):
    """From l = -9/2, where the denoiser hardly changes."""
    rule = AdamsMoulton(k, self_starting=False)
    assert measured(rule, integrand, start=-4.5) == pytest.approx(rule.accuracy[k], abs=0.15)


@pytest.mark.parametrize("g", [0.0, 0.5])
def test_states_on_the_way_are_corrected(g):
    """Euler's prediction and the trapezoidal rule with the value there, of which only the last
    state is not corrected.
    """
    ts = uniform(0.0, 1.0, 5).tolist()
    x0 = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)[:, None]
    equation = sdekit.SDE(lambda t, x: torch.sin(3 * x) + t, lambda t, x: g, "additive")
    noise = sdekit.WhiteNoise(0)
    found = sdekit.solve(equation, x0, ts, solver=AdamsMoulton(1), noise=noise, save="all").xs
    x = x0
    f = torch.sin(3 * x)
    states = [x]
    for t0, t1, increment in zip(ts, ts[1:], noise.increments(ts, x, (1,)), strict=False):
        predicted = x + g * increment.w + (t1 - t0) * f
        before = f
        f = torch.sin(3 * predicted) + t1
        x = x + g * increment.w + 0.5 * (t1 - t0) * (f + before)
        states.append(x if t1 < 1 else predicted)
    torch.testing.assert_close(found, torch.stack(states), rtol=1e-12, atol=1e-12)


def scaled(j, factor=1.1, weights=Panels.weights):
    """`Panels.weights` with one of the integrals of powers off by a factor."""

    def wrong(panels, moments, *variable):
        moments = moments * torch.where(torch.arange(panels.k) == j, factor, 1.0).numpy()
        return weights(panels, moments, *variable)

    return wrong


@pytest.mark.parametrize(
    ("solver", "j"), [(s, j) for s in EXACT for j in range(s.k + s.corrects)], ids=str
)
def test_every_coefficient_of_exact_rules_matters_to_the_order(solver, j, monkeypatch):
    """A tenth more; where the order is the start's twice as much, seen from the noisy end, which
    needs no start. That of the highest power shows in short steps only.
    """
    start, factor, steps = (
        (-0.5, 1.1, 32)
        if solver.order["none"].strong == solver.accuracy[solver.k]
        else (-4.5, 2.0, 16)
    )
    steps = 4 * steps if j == solver.k + solver.corrects - 1 else steps
    monkeypatch.setattr(Panels, "weights", scaled(j, factor))
    assert measured(solver, start=start, steps=steps) < solver.accuracy[solver.k] - 0.2


@pytest.mark.parametrize("solver", SINGLE, ids=str)
@pytest.mark.parametrize("j", [0, 1])
def test_every_coefficient_of_a_single_step_matters_to_the_order(solver, j, monkeypatch):
    monkeypatch.setattr(Panels, "weights", scaled(j))
    assert measured(solver) < solver.order["none"].strong - 0.2


@pytest.mark.parametrize("solver", PUBLISHED, ids=str)
def test_every_coefficient_of_published_rules_shows_in_the_comparison_with_peers(
    solver, monkeypatch
):
    case = Case(VESDE())
    x = case.ours(solver)
    for j in range(solver.k + solver.corrects):
        monkeypatch.setattr(Panels, "weights", scaled(j))
        assert (case.ours(solver) - x).abs().max() > 1e-6, j


def test_a_start_of_too_low_an_order_would_show(monkeypatch):
    for solver in (AdamsBashforth(3), AdamsBashforth(4), AdamsMoulton(3)):
        with monkeypatch.context() as patch:
            patch.setattr(type(solver), "starting", {})
            assert measured(solver) < solver.accuracy[solver.k] - 0.5


def extra(method, steps):
    """Evaluations of the first step besides one a step."""
    rule = method.rule
    if method.eta or not rule.self_starting:
        return 0
    values = rule.starting.get(rule.k, 1)
    if rule.corrects:  # what a start of two values asks is the corrector's, except in the last step
        return {1: 0, 2: 0, 3: 2 + (steps == 1)}[values]
    return {1: 0, 2: 1, 3: 3}[values]


@pytest.mark.parametrize("name", MULTISTEP)
def test_evaluations(name):
    method = METHODS[name]
    counted = sample(MIXTURE, 2, sde="vp", method=name, seed=0, return_solution=True).evaluations
    assert counted.tolist() == [method.steps + extra(method, method.steps)] * 2


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        *((AdamsBashforth(k), more) for k, more in ((1, 0), (2, 0), (3, 1), (4, 3))),
        *((AdamsMoulton(k), more) for k, more in ((1, 0), (2, 0), (3, 2), (4, 0))),
    ],
    ids=str,
)
def test_evaluations_of_the_start(rule, more):
    for case in itertools.product((1, 2, 10), (0.0, 1.0)):
        steps, eta = case
        method = OnClock(rule, eta=eta, steps=steps)
        solution = sample(MIXTURE, 2, sde="vp", method=method, seed=0, return_solution=True)
        assert solution.evaluations.tolist() == [steps + extra(method, steps)] * 2, case
        assert steps == 1 or extra(method, steps) == (0 if eta else more), case


@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("lower_final", [False, True])
def test_short_solves(name, lower_final):
    """Fewer steps than values: finite, an evaluation per step besides those of the start, and one
    step without a start is DDIM or ancestral sampling, whatever the rule.
    """
    settings = {"sde": "vp", "end": 0.3, "seed": 0}
    for steps in (1, 2, 3, 4, 5):
        method = replace(
            METHODS[name],
            solver=replace(replace(METHODS[name], steps=steps).rule, lower_final=lower_final),
        )
        solution = sample(MIXTURE, 4, method=method, steps=steps, return_solution=True, **settings)
        assert solution.x.isfinite().all(), steps
        more = extra(method, steps)
        assert solution.evaluations.tolist() == [steps + more] * 4, steps
        if steps == 1 and not more and method.integrand in ("data", "noise"):
            one = "ddpm" if method.eta else "ddim"
            expected = sample(MIXTURE, 4, method=one, steps=1, **settings)
            torch.testing.assert_close(solution.x, expected)


@pytest.mark.parametrize("steps", [5, 27, 28, 50])
def test_with_noise_the_default_rule_has_two_values(steps):
    """And one in the last step, on a grid that is finer near the data than that of the flow."""
    rule = AdamsMoulton(2, lower_final=True)
    d = math.prod(MIXTURE.shape)
    own = Focused(0.95, reach=0.85 * d**0.35, sharpness=350 * d**0.5)
    assert same_samples(MIXTURE, "sde", OnClock(rule, eta=1.0, grid=own), steps)
    plain = OnClock(rule, eta=1.0, grid=Focused())
    assert same_samples(MIXTURE, OnClock(rule, eta=1.0), plain, steps)
    assert not same_samples(MIXTURE, "sde", plain, steps)
    assert same_samples(MIXTURE, OnClock(eta=0.5), OnClock(rule, eta=0.5, grid=own), steps)
    assert not same_samples(MIXTURE, OnClock(eta=1.0), OnClock(AdamsMoulton(2), eta=1.0), steps)
    for eta in (np.array(0.5), torch.tensor(0.5)):
        assert same_samples(MIXTURE, OnClock(eta=eta), OnClock(eta=0.5), steps)
        assert same_samples(MIXTURE, DDIM(eta=eta), DDIM(eta=0.5), steps)
    given = Focused(0.5, sharpness=100)
    own = replace(given, reach=0.85 * d**0.35)
    assert same_samples(MIXTURE, OnClock(eta=1.0, grid=given), OnClock(eta=1.0, grid=own), steps)


@pytest.mark.parametrize("given", [1, 0, -3, 2.5, "15"])
def test_a_number_of_steps_for_the_last_steps_is_one(given):
    with pytest.raises(ValueError, match="lower_final is True, False, or a whole number from 2 on"):
        DPMSolver(2, lower_final=given)


def moulton(k, **settings):
    return AdamsMoulton(k, self_starting=False, **settings)


def same_samples(model, method, meant, steps, **settings):
    x, same = (
        sample(model, 4, sde="vp", method=m, steps=steps, seed=0, **settings)
        for m in (method, meant)
    )
    return torch.equal(x, same)


@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        (5, AdamsBashforth(3, self_starting=False)),
        (6, AdamsBashforth(3, self_starting=False)),
        (7, moulton(3, lower_final=True)),
        (24, moulton(3, lower_final=True)),
        (25, moulton(4)),
        (40, moulton(4)),
    ],
)
def test_the_default_looks_further_back_where_there_are_enough_steps(steps, rule):
    """Of the velocity; of the data, and on grids that do not follow the model, three values."""
    assert same_samples(MIXTURE, "default", OnClock(rule, integrand="velocity"), steps)
    assert same_samples(MIXTURE, OnClock(), OnClock(moulton(3)), steps)
    fixed = "native time quadratic sigma karras log_snr".split()
    for name, grid in GRIDS.items():
        found = replace(METHODS["default"], steps=steps, grid=grid).rule
        assert found.k == (rule.k if grid.follows_model else 3)
        assert grid.follows_model or name != "focused"
        assert not (grid.follows_model and name in fixed)
    elsewhere = OnClock(moulton(3, lower_final=steps < 20), integrand="velocity")
    assert same_samples(MIXTURE, "default", elsewhere, steps, grid="karras")
    given = replace(METHODS["default"], steps=steps, grid=Given(uniform(-3.0, 3.0, steps)))
    assert (type(given.rule), given.rule.k) == (type(rule), rule.k)


class Guess(torch.nn.Module):
    """Of the noise, or of what a network predicts: nearly right for N(0, 1), and not smooth."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x, t):
        return x * self.factor + 0.1 * torch.sin(5 * x + 20 * t[:, None])


@pytest.mark.parametrize(
    ("steps", "integrand", "rule", "reach", "sharpness"),
    [
        (6, "data", UniPC(2, lower_final=True), 10, 14),
        (7, "velocity", moulton(2, lower_final=True), 10, 24),
        (17, "velocity", moulton(2, lower_final=True), 10, 24),
        (18, "velocity", moulton(2, lower_final=True), 30, None),
        (29, "velocity", moulton(2, lower_final=True), 30, None),
        (30, "velocity", moulton(3, lower_final=True), math.inf, None),
        (39, "velocity", moulton(3, lower_final=True), math.inf, None),
        (40, "velocity", moulton(4), math.inf, None),
    ],
)
@pytest.mark.parametrize("predicts", ["noise", "score"])
def test_the_default_has_shorter_rules_where_a_network_predicts_the_noise(
    steps, integrand, rule, reach, sharpness, predicts
):
    """On a grid that reaches further, with more steps among all noise."""
    model = ScoreModel(Guess(), "vp", predicts, shape=(1,), data_std=0.5)
    grid = Focused(0.9, reach=reach, sharpness=sharpness)
    meant = OnClock(rule, integrand=integrand, grid=grid)
    assert same_samples(model, "default", meant, steps)
    assert not same_samples(model, "default", replace(meant, grid=Focused()), steps)
    inside = Inpainted(model, torch.zeros(1), torch.zeros(1).bool())
    assert same_samples(inside, "default", meant, steps)
    elsewhere = OnClock(moulton(2, lower_final=True), integrand="velocity")
    assert same_samples(model, "default", elsewhere, steps, grid="quadratic")
    for chosen in (Focused(0.7, reach=2.0), Focused(0.6, native_share=0.1)):
        assert same_samples(model, "default", replace(meant, grid=chosen), steps, grid=chosen)
    sharp = Focused(0.7, sharpness=3.0)
    usual = replace(METHODS["default"], grid=sharp)
    assert same_samples(model, usual, replace(meant, grid=replace(sharp, reach=grid.reach)), steps)


@pytest.mark.parametrize(
    ("steps", "rule", "grid"),
    [
        (5, AdamsBashforth(3, self_starting=False), Focused()),
        (6, moulton(2, lower_final=True), Focused(0.8, native_share=0.1)),
        (11, moulton(2, lower_final=True), Focused(0.8, native_share=0.1)),
        (12, moulton(2, lower_final=True), Focused(0.7, native_share=0.2)),
        (21, moulton(2, lower_final=True), Focused(0.7, native_share=0.2)),
        (22, moulton(3, lower_final=True), Focused(0.5, native_share=0.3)),
        (34, moulton(3, lower_final=True), Focused(0.5, native_share=0.3)),
        (35, moulton(4), Focused(0.5, native_share=0.3)),
    ],
)
@pytest.mark.parametrize("predicts", ["velocity", "data"])
def test_the_default_has_steps_in_time_for_other_networks(steps, rule, grid, predicts):
    """Also inside another model. Where the caller gives a share the grid has none of them; on grids
    that do not follow the model the rule is that for exact scores.
    """
    model = ScoreModel(Guess(), "vp", predicts, shape=(1,), data_std=0.5)
    meant = OnClock(rule, integrand="velocity", grid=grid)
    assert same_samples(model, "default", meant, steps)
    inside = Inpainted(model, torch.zeros(1), torch.zeros(1).bool())
    assert same_samples(inside, "default", meant, steps)
    assert steps == 5 or not same_samples(model, "default", replace(meant, grid=Focused()), steps)
    shares = Focused(0.95), Focused(0.6, native_share=0.1), Focused(native_share=0.0)
    for chosen in (*shares, Focused(reach=2.0)):
        assert same_samples(model, "default", replace(meant, grid=chosen), steps, grid=chosen)
    usual = replace(METHODS["default"], grid=Focused(sharpness=3.0))
    sharper = replace(meant, grid=replace(grid, sharpness=3.0))
    assert same_samples(model, usual, sharper, steps)
    elsewhere = OnClock(moulton(3, lower_final=steps < 20), integrand="velocity")
    assert same_samples(model, "default", elsewhere, steps, grid="karras")


class Own(AbstractModel):
    """A model of the user's, which says what it is."""

    shape, sde, data_std = (1,), VPSDE(), 0.5
    learned, predicts_noise = False, True

    def predict_data(self, l, u):
        return 0.3 * torch.sin(5 * u + l)


def test_models_say_what_they_are():
    """A model that predicts the noise need not say that it is a network; a model made from several
    is one if any of them is, or its classifier.
    """
    meant = OnClock(moulton(2, lower_final=True), integrand="velocity")
    grid = Focused(0.9, reach=10, sharpness=24)
    assert same_samples(Own(), "default", replace(meant, grid=grid), 15)
    network = ScoreModel(Guess(), "vp", "velocity", shape=(1,), data_std=0.5)
    exact = GaussianMixture([1.0], [[0.0]], [0.25])
    assert Guided(exact, 2.0, by=network).learned
    assert Guided(network, 2.0, by=exact).learned
    assert Guided(exact, 2.0, by=Own()).predicts_noise
    linear = torch.nn.Linear(1, 1)
    for log_prob, expected in ((lambda x, t, y: linear(x)[:, 0], True), (lambda x, t, y: x, False)):
        classified = ClassifierGuided(exact, log_prob, torch.zeros(4), 1.0, "vp")
        assert classified.learned == expected


def test_which_models_are_networks_and_predict_the_noise():
    """Modules with parameters are networks, and predict the noise by it or the score; functions are
    neither, also those that a loader holds.
    """
    net, tanh = Guess(), torch.nn.Tanh()
    for predicts in ("noise", "score", "data", "velocity", "flow"):
        expected = predicts in ("noise", "score")
        model = ScoreModel(net, "vp", predicts, shape=(1,), data_std=0.5)
        inside = Inpainted(model, torch.zeros(1), torch.zeros(1).bool())
        wrapped = ScoreModel(lambda x, t: net(x, t), "vp", predicts)
        for network in (model, inside, wrapped):
            assert network.learned
            assert network.predicts_noise == expected
        for exact in (lambda x, t: -x, torch.nn.Tanh(), lambda x, t: tanh(x)):
            function = ScoreModel(exact, "vp", predicts)
            assert not function.learned
            assert function.with_network(net).learned
            assert not network.with_network(lambda x, t: 0.5 * x).learned
            assert not function.predicts_noise
    assert from_edm(lambda x, sigma: net(x, sigma), shape=(1,), data_range=None).learned
    assert not from_edm(lambda x, sigma: 0.5 * x, shape=(1,), data_range=None).learned
    assert not MIXTURE.learned
    assert not MIXTURE.predicts_noise
    with pytest.raises(ValueError, match="'velocity' or 'model'; not 'score'"):
        OnClock(integrand="score")


@pytest.mark.parametrize("steps", [10, 40])
def test_the_noise_is_integrated_where_a_caller_says_so(steps):
    """By two values, on a grid with steps among all noise."""
    model = ScoreModel(Guess(), "vp", "noise", shape=(1,), data_std=0.5)
    rule = AdamsBashforth(2, variable="l", self_starting=False)
    meant = OnClock(rule, integrand="noise", grid=Focused(0.9, reach=math.inf))
    assert same_samples(model, OnClock(integrand="noise"), meant, steps)


@pytest.mark.parametrize("sde", ["ve", "vp", "subvp", "flow"])
def test_the_velocity(sde):
    """One step turns the state by the velocity in closed form; where the data are N(0, s^2 I) there
    is none, and x is exact.
    """
    kernel = DIFFUSIONS[sde]()
    velocity = OnClock(AdamsBashforth(1), integrand="velocity", steps=1)
    span = span_of(MIXTURE, kernel, 1e-2)
    x = kernel.prior((5, 2), seed=0, t=float(kernel.time(span[0])), dtype=torch.float64)
    (t0, a0, s0), (_, a1, s1) = (
        (t, kernel.alpha(t), kernel.sigma(t)) for t in (float(kernel.time(l)) for l in span)
    )
    mean = MIXTURE.data_mean
    s = MIXTURE.data_std  # angles grow from noise to data
    r0 = math.hypot(s * a0, s0)
    r1 = math.hypot(s * a1, s1)
    denoised = MIXTURE.denoise(t0, x, kernel) - mean
    turned = math.atan2(s * a1, s1) - math.atan2(s * a0, s0)
    centred = x - a0 * mean
    expected = a1 * mean + r1 * (
        centred / r0 + turned * (r0 * denoised / s - s * a0 * centred / r0) / s0
    )
    torch.testing.assert_close(
        run(velocity, MIXTURE, kernel, x, span), expected, rtol=1e-10, atol=1e-10
    )
    gaussian = GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), [s**2])
    gaussian.data_std = s
    torch.testing.assert_close(
        run(velocity, gaussian, kernel, x, span), x * r1 / r0, rtol=1e-10, atol=1e-10
    )


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("name", METHODS)
def test_solves_are_replayed(name):
    """A solve repeated in parts of the batch has the same bits, in double precision.

    Single and half precision are in test_sample.py.
    """
    settings = {
        "sde": "subvp",
        "method": AdaptiveSDE(0.3, 0.3) if name == "adaptive_sde" else name,  # fewer steps
        "steps": {"ode": None, "adaptive_sde": None, "ncsn": 2, "ncsnv2": 3}.get(name, 12),
        "seed": 3,
        "end": 0.1,
        "dtype": torch.float64,
    }
    whole = sample(MIXTURE, 7, **settings)
    assert torch.equal(sample(MIXTURE, 7, batch_size=3, **settings), whole)
    assert torch.equal(sample(MIXTURE, 2, first=4, **settings), whole[4:6])


@pytest.mark.parametrize("eta", [0.0, 1.0, 1.4])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_rho_serves_every_clock(k, eta):
    """In long steps with the data predicted the law is that of the data, but for 8 standard errors
    of 4,000 samples.

    Polynomials in A = e^{(1 + eta^2) l} are off by 18 or more.
    """
    method = OnClock(DEIS(k, "rho"), eta=eta)
    x = sample(
        MIXTURE,
        4000,
        sde="vp",
        method=method,
        grid="log_snr",
        steps=20,
        seed=0,
        dtype=torch.float64,
    )
    assert modes(x, MIXTURE).worst < 8


@pytest.mark.parametrize("rule", [AdamsBashforth, AdamsMoulton, DPMSolver, UniPC, DEIS])
def test_rules_refuse_other_numbers_of_values(rule):
    for k in (0, max(rule.accuracy) + 1):
        with pytest.raises(ValueError, match=f"{rule.__name__} is offered for k in 1, 2, 3"):
            rule(k)


@pytest.mark.parametrize(
    ("rule", "name"), [(DPMSolver, "form"), (UniPC, "form"), (DEIS, "variable")]
)
def test_rules_refuse_unknown_forms(rule, name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*, not 'other'"):
        rule(2, "other")


WRONG = [
    {"integrand": "score"},
    {"integrand": "noise", "eta": 1.0},
    {"integrand": "velocity", "eta": 0.5},
]


@pytest.mark.parametrize("settings", WRONG)
def test_noise_and_velocity_are_integrated_without_noise(settings):
    with pytest.raises(
        ValueError,
        match=r"integrand must be 'data', or for eta = 0 'noise', "
        r"'velocity' or 'model'.* the method 'sde'",
    ):
        OnClock(**settings)


def test_solvers_without_noise_are_refused_at_once_with_it():
    with pytest.raises(
        ValueError,
        match=r"DPMSolverSingle is for the probability flow, eta = 0; "
        r".* ClockedHeun",
    ):
        OnClock(DPMSolverSingle(2), eta=1.0)


@pytest.mark.parametrize("module", [multistep, published, single])
def test_a_rule_takes_twenty_lines(module):
    """Decorator, docstring and blank lines not counted; and every rule is public."""
    source = inspect.getsource(module)
    rules = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name in sdekit.__all__
    ]
    for node in rules:
        if not node.name.startswith("Abstract"):
            lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
            docstring = len(ast.get_docstring(node, clean=False).splitlines())
            assert len([line for line in lines if line.strip()]) - docstring <= 20
    assert rules


@dataclass(frozen=True, eq=False)
class Weighted(AbstractMultistep):
    """Euler's rule times a factor, which a field holds in some way."""

    accuracy = {1: 1}
    k: int = 1
    held: Any = 1.0

    def rule(self, panels):
        factor = self.held[0] if hasattr(self.held, "__getitem__") else self.held
        return float(factor) * panels.exact()


@pytest.mark.parametrize(
    "held",
    [[1.0], np.ones(1), torch.ones(1), (torch.ones(()),), {0: 1.0}],
    ids=["list", "array", "tensor", "tuple of a tensor", "dict"],
)
def test_plans_follow_fields_that_can_change(held):
    law = GaussianMixture([1.0], torch.zeros(1, 2), [1.0])

    def drawn(value):
        return sample(law, 4, sde="vp", method=OnClock(Weighted(held=value), steps=5), seed=0)

    assert torch.equal(drawn(held), drawn(1.0))
    if isinstance(held, tuple):
        held[0].fill_(0.5)
    else:
        held[0] = 0.5
    assert torch.equal(drawn(held), drawn(0.5))
    assert not torch.equal(drawn(0.5), drawn(1.0))


def test_a_given_rule_integrates_what_suits_the_model():
    law = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.2])
    methods = [
        OnClock(AdamsBashforth(1), integrand=name, steps=10) for name in ("model", "velocity")
    ]
    first, second = (sample(law, 4, sde="vp", method=method, seed=0) for method in methods)
    assert torch.equal(first, second)


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
def test_the_velocity_of_any_scale_has_the_flow_of_the_data(c):
    """c changes what rules interpolate, not where the flow goes: solved finely, both ends agree."""
    model = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0], [0.7]]).double(), [0.1, 0.2])
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid = uniform(-3.0, 3.0, 120)
    ends = []
    for equation in (velocity_on_angle(model, c), data_on_clock(model)):
        start, stop = (float(equation.scale(float(l))) for l in (grid[0], grid[-1]))
        times = torch.as_tensor(equation.time(grid))
        ends.append(solve(equation, u / start, times, solver=RK4()).x * stop)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [5, 20])
def test_the_default_is_exact_where_the_data_are_normal(steps):
    """The velocity of N(0, I) is 0 for c = 1: under VP states stay where they begin."""
    model = GaussianMixture([1.0], torch.zeros(1, 2).double(), [1.0])
    solution = sample(model, 8, sde="vp", steps=steps, seed=0, save="all", return_solution=True)
    torch.testing.assert_close(solution.xs, solution.xs[:1].expand_as(solution.xs))
