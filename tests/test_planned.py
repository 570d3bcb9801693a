"""Steps planned before a solve, with slopes that are kept in their units."""

import math

import pytest
import torch

from sdekit import (
    DEIS,
    AbstractSDE,
    AdamsBashforth,
    AdamsMoulton,
    DPMSolver,
    Transitions,
    UniPC,
    WhiteNoise,
    solve,
    stepper,
    uniform,
)
from sdekit._solvers.planned import Row, in_units, units_of

RULES = [
    *(AdamsBashforth(k) for k in (1, 2, 3, 4)),
    *(AdamsMoulton(k) for k in (1, 2, 3, 4)),
    AdamsMoulton(3, self_starting=False, lower_final=True),
    DPMSolver(3, lower_final=True),
    UniPC(3, lower_final=True),
    DEIS(3),
]


class Slope:
    """-sin(3 x) - t x at one time, with a unit that is another at each time."""

    def __init__(self, t, asked):
        self.t = t
        self.unit = 0.5 + 3 * abs(math.sin(40 * t))
        self.asked = asked

    def __call__(self, x, h=1.0, onto=None):
        self.asked.append(h / self.unit)
        value = h * (-torch.sin(3 * x) - self.t * x)
        return value if onto is None else onto + value


class Pendulum(AbstractSDE):
    """dx = (-sin(3 x) - t x) dt + sigma dW, whose slopes have units if they are asked for."""

    def __init__(self, sigma=0.0, in_units=True):
        self.noise_type = "additive" if sigma else "none"
        self.sigma = sigma
        self.in_units = in_units
        self.slopes = {}
        self.asked = []

    def drift(self, t, x):
        return -torch.sin(3 * x) - t * x

    def diffusion(self, t, x):
        return self.sigma

    def tabulated(self, ts):
        if self.in_units:
            self.slopes = {t: Slope(t, self.asked) for t in ts}
        return self


X = torch.linspace(-1.0, 1.5, 6, dtype=torch.float64).reshape(3, 2)
TS = uniform(0.0, 1.0, 7)


def solved(rule, sigma=0.0, **options):
    noise = WhiteNoise(0) if sigma else None
    problems = Pendulum(sigma), Pendulum(sigma, in_units=False)
    return [solve(p, X, TS, solver=rule, noise=noise, **options) for p in problems]


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_states_do_not_depend_on_the_units_of_the_slopes(rule):
    kept, plain = solved(rule, save="all")
    near(kept.xs, plain.xs)


@pytest.mark.parametrize("rule", [AdamsBashforth(1), AdamsBashforth(3), AdamsMoulton(2)], ids=repr)
def test_states_with_noise_do_not_depend_on_the_units_of_the_slopes(rule):
    kept, plain = solved(rule, 0.3, save="all")
    near(kept.xs, plain.xs)


@pytest.mark.parametrize("rule", [AdamsBashforth(3), AdamsMoulton(4)], ids=repr)
def test_slopes_that_are_kept_are_asked_for_in_their_units(rule):
    problem = Pendulum()
    solve(problem, X, TS, solver=rule)
    in_their_units = [abs(ratio - 1) < 1e-12 for ratio in problem.asked]
    first = {3: 2, 4: 0}[rule.k]  # the first step of the former evaluates two slopes, plainly
    assert in_their_units[first:-1] == [True] * (len(in_their_units) - first - 1)
    # The last one is used once by the former, and kept for no other step.
    assert in_their_units[-1] is (rule.k == 4)


@pytest.mark.parametrize("rule", [AdamsBashforth(3), AdamsMoulton(3)], ids=repr)
def test_steps_from_another_state_begin_with_a_slope_in_its_unit(rule):
    ends = []
    for problem in (Pendulum(), Pendulum(in_units=False)):
        walk = stepper(problem, X, TS, solver=rule)
        for i in range(7):
            walk = walk.next()
            if i == 3:
                walk = walk.with_x(walk.x + 0.1)
        ends.append(walk.x)
    near(*ends)


def test_the_mean_of_a_step_has_the_weights_of_plain_slopes():
    for rule in (AdamsBashforth(1), AdamsBashforth(2), AdamsMoulton(2)):
        known = Pendulum(0.3).tabulated(TS.tolist())
        means = []
        for problem in (known, Pendulum(0.3, in_units=False)):
            steps = Transitions(problem, TS, rule)
            slopes = [torch.full_like(X, 2.0), X, X.square()]
            means.append(steps.mean(4, X, slopes))
        near(*means)


def test_a_slope_without_a_unit_is_asked_for_as_it_is():
    problem = Pendulum()
    problem.slopes = {0.0: lambda x: x}
    assert units_of(problem, [0.0, 1.0]) == [1.0, 1.0]


def test_weights_are_those_of_slopes_in_their_units():
    rows = [
        Row(False, ((0.5, (0.1,)),), (2.0, 3.0), (0,)),  # with a stage, plainly
        Row(False, (), (4.0, 5.0), (0,), (6.0, 7.0, 8.0)),  # corrected
        Row(True, (), (9.0,), ()),
    ]
    first, second, third = in_units(rows, [2.0, 4.0, 8.0, 16.0])
    assert (first.weights, first.units[:2]) == ((2.0, 3.0), (1.0, 1.0))
    assert second.weights == (4.0 / 4, 5.0 / 1)
    assert second.correction == (6.0 / 8, 7.0 / 4, 8.0 / 1)
    assert (second.units[0], second.units[-1]) == (4.0, 8.0)
    assert third.weights == (9.0 / 8,)
    assert third.units[0] == 8.0
    older = Row(False, ((0.5, (0.1,)),), (2.0, 3.0), (1,))
    kept = [row.keeps_newest for row in in_units([rows[0], older, rows[2]], [1.0] * 4)]
    assert kept == [True, False, True]


def test_the_drift_at_a_time_is_multiplied_by_a_factor():
    problem = Pendulum(in_units=False)
    drift = problem.drift(0.3, X)
    function = problem.drift_at(0.3)
    assert torch.equal(function(X), drift)
    near(function(X, 2.5), 2.5 * drift)
    near(function(X, 2.5, X), X + 2.5 * drift)
    factors = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    near(function(X, factors), factors[:, None] * drift)


def test_solves_with_other_units_have_plans_of_their_own():
    class Cached(Pendulum):
        plans = {}

    class Scaled(Cached):
        def tabulated(self, ts):
            super().tabulated(ts)
            for slope in self.slopes.values():
                slope.unit *= 2
            return self

    for kind in (Cached, Scaled, Cached):
        problem = kind()
        solve(problem, X, TS, solver=AdamsMoulton(4))
        assert problem.asked == pytest.approx([1.0] * len(problem.asked))
    assert len(Cached.plans) == 2


def test_a_cache_of_plans_that_another_thread_empties():
    class Emptied(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            self.clear()

    class Cached(Pendulum):
        plans = Emptied()

    problem = Pendulum()
    expected = solve(problem, X, TS, solver=AdamsMoulton(2)).x
    assert torch.equal(solve(Cached(), X, TS, solver=AdamsMoulton(2)).x, expected)
