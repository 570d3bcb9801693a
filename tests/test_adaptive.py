"""Adaptive steps: tolerances, one path whatever is rejected, and that no sample knows of the
others.
"""

import copy
import functools
import math
import pickle
import weakref

import numpy as np
import pytest
import torch

from sdekit import (
    ODE,
    RK4,
    SDE,
    SRA1,
    SRID2,
    AbstractEmbeddedRungeKutta,
    AbstractSDE,
    Bosh3,
    BrownianPath,
    Clocked,
    Dopri5,
    Dopri8,
    EulerMaruyama,
    Event,
    Fehlberg2,
    HeunEuler,
    ImplicitPlaten,
    PIDController,
    ProbabilityFlow,
    ReverseSDE,
    Rodas5P,
    SemiLinear,
    SPaRK,
    Status,
    Tsit5,
    UnfinishedError,
    WhiteNoise,
    all_solvers,
    geometric,
    solve,
    uniform,
)
from sdekit._solve.counted import Counted
from sdekit.elementary import broadcast, exp

START = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ALL_PAIRS = all_solvers(AbstractEmbeddedRungeKutta)
PAIRS = pytest.mark.parametrize("solver", ALL_PAIRS, ids=str)


def oscillator(t, x):
    """Van der Pol's, written row by row."""
    return torch.stack([x[:, 1], 2 * (1 - x[:, 0] * x[:, 0]) * x[:, 1] - x[:, 0]], dim=1)


def f(t, x):
    return torch.sin(2 * x) + 0.5 * torch.cos(3 * t) - 0.3 * x


def g(t, x):
    return 0.8 + 0.3 * torch.cos(2 * x)


EQUATION = SDE(f, g, "diagonal")
LINE = torch.linspace(-2, 2, 400, dtype=torch.float64)[:, None]


# Tolerances


@functools.cache
def fine(start, end):
    """The solution of dx = f dt at 401 times."""
    return solve(ODE(f), START, uniform(start, end, 400), solver=RK4(), save="all").xs


@pytest.mark.parametrize(
    ("ends", "solver"),
    [
        *(pytest.param((0.0, 2.0), s, id=f"forwards-{s}") for s in ALL_PAIRS),
        *(pytest.param((2.0, 0.0), s, id=f"backwards-{s}") for s in (Bosh3(), Dopri8())),
    ],
)
def test_errors_follow_the_tolerance(solver, ends):
    """Backwards two methods show what is the same for all of them."""
    exact = fine(*ends)[-1]
    errors = []
    evaluations = []
    if isinstance(solver, HeunEuler):
        tolerances = (1e-2, 1e-3, 1e-4)
    elif isinstance(solver, Bosh3):
        tolerances = (1e-2, 1e-4, 1e-6)
    else:
        tolerances = (1e-3, 1e-5, 1e-7) if solver.embedded < 4 else (1e-4, 1e-6, 1e-8)
    for tol in tolerances:
        solution = solve(ODE(f), START, ends, solver=solver, control=PIDController(tol, tol))
        errors.append(float((solution.x - exact).abs().max()) / tol)
        evaluations.append(int(solution.evaluations.max()))
        assert (solution.status == Status.DONE).all()
    # Fehlberg's estimate is that of a formula of order one with a 256th of Euler's error.
    assert max(errors) < (10_000 if isinstance(solver, Fehlberg2) else 100)
    # Error per step to the tolerance: evaluations grow as tol^(-1/k).
    fall = math.log(tolerances[1] / tolerances[2])
    assert math.log(evaluations[2] / evaluations[1]) / fall == pytest.approx(
        1 / solver.embedded, abs=0.1
    )


@PAIRS
def test_outputs_between_steps_follow_the_tolerance(solver):
    ts = [0.0, 0.1, 0.7, 1.55, 2.0]
    tol = 1e-4 if isinstance(solver, HeunEuler) else 1e-6 if solver.embedded < 4 else 1e-7
    control = PIDController(tol, tol)
    solution = solve(ODE(f), START, ts, solver=solver, control=control, save="all")
    assert torch.equal(solution.xs[0], START)
    assert torch.equal(solution.xs[-1], solution.x)
    exact = fine(0.0, 2.0)[[0, 20, 140, 310, 400]]
    atol = (1500 if isinstance(solver, Fehlberg2) else 50) * tol
    torch.testing.assert_close(solution.xs, exact, rtol=0, atol=atol)
    last = solve(ODE(f), START, [0.0, 2.0], solver=solver, control=control)
    assert torch.equal(last.x, solution.x), "asking for outputs changed the steps"


def test_the_first_step_and_pi_control():
    exact = fine(0.0, 2.0)[-1]
    for control in (
        PIDController(1e-6, 1e-6, first=1.9),
        PIDController(1e-6, 1e-6, first=1e-7),
        PIDController(1e-6, 1e-6, proportional=0.3, integral=0.4),
        PIDController(1e-6, 1e-6, proportional=0.2, integral=0.4, derivative=0.1),
    ):
        solution = solve(ODE(f), START, [0.0, 2.0], solver=Dopri5(), control=control)
        assert (solution.x - exact).abs().max() < 5e-5


def test_evaluations_are_those_of_the_tableau():
    for solver, stages in ((Bosh3(), 3), (Dopri5(), 6), (Dopri8(), 12)):
        solution = solve(
            ODE(f), START, [0.0, 2.0], solver=solver, control=PIDController(1e-6, 1e-6)
        )
        # Two choose the first step, one begins; then a sample has exactly its tries, accepted or
        # not.
        assert torch.equal(
            solution.evaluations, 3 + stages * (solution.accepted + solution.rejected)
        )
        known = solve(
            ODE(f), START, [0.0, 2.0], solver=solver, control=PIDController(1e-6, 1e-6, first=0.01)
        )
        assert torch.equal(known.evaluations, 1 + stages * (known.accepted + known.rejected))


def test_evaluations_for_output_are_made_and_counted_where_there_is_output():
    """Three a step that has any, however many it has, for the samples whose steps these are."""
    control = PIDController(1e-9, 1e-9)
    calls = []

    def counted(t, x):
        calls.append(len(x))
        return f(t, x)

    def run(x0, ts):
        calls.clear()
        return solve(ODE(counted), x0, ts, solver=Dopri8(), control=control, save="all")

    plain = run(START, [0.0, 2.0])
    assert torch.equal(plain.evaluations, 3 + 12 * (plain.accepted + plain.rejected))
    inside = run(START, [0.0, 0.1, 0.7, 0.7001, 1.55, 2.0])
    extra = inside.evaluations - plain.evaluations
    assert torch.equal(inside.x, plain.x)
    assert set(extra.tolist()) <= {3, 6, 9, 12}
    assert extra.double().mean() < 10
    alone = run(START[5:6], [0.0, 0.1, 0.7, 0.7001, 1.55, 2.0])
    assert len(calls) == int(alone.evaluations)
    assert int(alone.evaluations) == int(inside.evaluations[5])


# No sample knows of the others


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["ode", "sde"])
def test_a_sample_is_the_same_alone(kind, dtype):
    x0 = START.to(dtype)
    tol = 1e-3 if kind == "ode" else 4e-2
    control = PIDController(tol, tol)

    def run(x0, index):
        if kind == "ode":
            return solve(
                ODE(oscillator), x0, [0.0, 1.0, 2.0], solver=Dopri5(), control=control, save="all"
            )
        noise = BrownianPath(4, (0.0, 2.0)).rows(index)
        return solve(
            EQUATION, x0, [0.0, 1.0, 2.0], solver=SRID2(), noise=noise, control=control, save="all"
        )

    whole = run(x0, torch.arange(64))
    assert whole.accepted.unique().numel() > 5
    assert kind == "ode" or whole.rejected.sum() > 0
    for i in (0, 63):
        alone = run(x0[i : i + 1], torch.tensor([i]))
        assert torch.equal(alone.xs[:, 0], whole.xs[:, i])
        assert (alone.evaluations, alone.rejected) == (whole.evaluations[i], whole.rejected[i])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(x0[order], order).x, whole.x[order])


def test_one_fast_sample_changes_nothing_for_the_others():
    """torchdiffeq goes from 32 to 530 evaluations for all 64."""
    speed = torch.ones(64, dtype=torch.float64)
    fast = torch.where(torch.arange(64) == 11, 100.0, speed)

    def run(rates):
        equation = Rated(rates)
        return solve(
            equation, START, [0.0, 2.0], solver=Dopri5(), control=PIDController(1e-6, 1e-6)
        )

    a = run(speed)
    b = run(fast)
    others = torch.arange(64) != 11
    assert torch.equal(a.x[others], b.x[others])
    assert torch.equal(a.evaluations[others], b.evaluations[others])
    assert b.evaluations[11] > 5 * a.evaluations[11]


class Rated(ODE):
    """dx = -rate sin(x) dt with a rate a sample."""

    def __init__(self, rate):
        super().__init__(lambda t, x: -rate[:, None] * torch.sin(x))
        object.__setattr__(self, "rate", rate)

    def rows(self, index):
        return Rated(self.rate[index])


def test_samples_that_are_not_finite_leave_the_others_bit_identical():
    x0 = START.clone()
    bad = [5, 40]
    x0[bad, 1] = torch.tensor([torch.nan, torch.inf], dtype=torch.float64)
    others = ~torch.isin(torch.arange(64), torch.tensor(bad))
    for equation, solver, tol in ((ODE(oscillator), Dopri5(), 1e-5), (EQUATION, SRID2(), 1e-2)):
        control = PIDController(tol, tol)
        whole = solve(
            equation, START, [0.0, 1.0], solver=solver, control=control, noise=BrownianPath(1)
        )
        spoilt = solve(
            equation,
            x0,
            [0.0, 1.0],
            solver=solver,
            control=control,
            noise=BrownianPath(1),
            throw=False,
        )
        assert torch.equal(spoilt.x[others], whole.x[others])
        assert torch.equal(spoilt.evaluations[others], whole.evaluations[others])
        assert spoilt.x[bad].isnan().all()
        assert (spoilt.status[bad] == Status.NOT_FINITE).all()
        assert (spoilt.status[others] == Status.DONE).all()


def test_failures_say_which_samples_where_and_why_and_keep_the_rest():
    def wall(t, x):
        return torch.where((t > 0.5) & (x > 1), torch.nan, torch.ones_like(x))

    x0 = torch.tensor([[0.0], [1.0], [-3.0]])
    with pytest.raises(
        UnfinishedError, match=r"1 of 3 samples .*row 1: .*NaN.* at t = 0.5"
    ) as caught:
        solve(ODE(wall), x0, [0.0, 1.0], solver=Dopri5(), control=PIDController(1e-4, 1e-4))
    assert caught.value.solution.status.tolist() == [Status.DONE, Status.NOT_FINITE, Status.DONE]
    torch.testing.assert_close(caught.value.solution.x[[0, 2]], x0[[0, 2]] + 1)
    assert caught.value.reached[1] == pytest.approx(0.5, abs=1e-3)


def test_an_error_is_pickled_with_its_solution():
    """And with the rows of a larger batch in its message; it failed."""
    few = PIDController(1e-9, 1e-9, max_steps=3)
    with pytest.raises(UnfinishedError) as caught:
        solve(ODE(f), torch.ones(2, 1).double(), [0.0, 1.0], solver=Dopri5(), control=few)
    error = UnfinishedError(caught.value.solution, caught.value.reached, 5, "ask for less")
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert str(same) == str(error)
        assert "row 5: " in str(same)
        assert same.advice == "ask for less"
        assert torch.equal(same.reached, error.reached)
        assert torch.equal(same.solution.status, error.solution.status)


def test_explosions_and_limits_have_their_status():
    x0 = torch.tensor([[0.1], [2.0]], dtype=torch.float64)
    blow = solve(
        ODE(lambda t, x: x * x),
        x0,
        [0.0, 1.0],
        solver=Dopri5(),
        control=PIDController(1e-6, 1e-6),
        throw=False,
    )
    assert blow.status[0] == Status.DONE
    assert blow.status[1] in (Status.NOT_FINITE, Status.UNDERFLOW)
    few = PIDController(1e-9, 1e-9, max_steps=3)
    limited = solve(ODE(f), x0, [0.0, 1.0], solver=Dopri5(), control=few, throw=False)
    assert limited.status.tolist() == [Status.TOO_MANY_STEPS] * 2
    assert (limited.accepted + limited.rejected == 3).all()
    rough = BrownianPath(0, depth=5)
    short = solve(
        EQUATION,
        x0,
        [0.0, 1.0],
        solver=SRID2(),
        noise=rough,
        control=PIDController(1e-6, 1e-6),
        throw=False,
    )
    assert (short.status == Status.UNDERFLOW).all()


def test_the_limit_of_steps_is_for_the_whole_solve_not_for_each_output():
    few = PIDController(1e-9, 1e-9, max_steps=5)
    ts = uniform(0.0, 2.0, 40)
    limited = solve(ODE(f), START, ts, solver=Dopri5(), control=few, save="all", throw=False)
    assert (limited.accepted + limited.rejected == 5).all()
    assert (limited.status == Status.TOO_MANY_STEPS).all()
    assert limited.xs[-1].isnan().all()


def test_errors_are_not_diluted_by_a_batch():
    """torchdiffeq's norm over the batch lets one sample's error grow: 1.2e-6 alone, 2.1e-5 among
    4,096.
    """
    hard = torch.tensor([[2.0, 2.0]], dtype=torch.float64)
    easy = torch.zeros(500, 2, dtype=torch.float64)
    control = PIDController(1e-6, 1e-6)
    alone = solve(ODE(oscillator), hard, [0.0, 5.0], solver=Dopri5(), control=control).x
    among = solve(
        ODE(oscillator), torch.cat([easy, hard]), [0.0, 5.0], solver=Dopri5(), control=control
    ).x
    assert torch.equal(among[-1:], alone)


@pytest.mark.parametrize(("depth", "tol"), [(6, 1e-4), (10, 1e-6)])
def test_what_the_path_cannot_resolve_is_an_underflow_at_once(depth, tol):
    control = PIDController(tol, tol, max_steps=3000)
    path = BrownianPath(0, depth=depth)
    solution = solve(
        EQUATION, LINE[:40], [0.0, 1.0], solver=SRID2(), noise=path, control=control, throw=False
    )
    assert (solution.status != Status.TOO_MANY_STEPS).all()
    assert (solution.status == Status.UNDERFLOW).any()
    assert solution.rejected.max() < 2 ** (depth + 1)
    with pytest.raises(UnfinishedError, match="give BrownianPath a larger depth or knots nearer"):
        solve(EQUATION, LINE[:40], [0.0, 1.0], solver=SRID2(), noise=path, control=control)


def test_too_many_steps_are_no_matter_of_the_path():
    few = PIDController(1e-3, 1e-3, max_steps=2)
    with pytest.raises(UnfinishedError, match=r"max_steps was not .*solver for stiff") as caught:
        solve(EQUATION, LINE[:2], [0.0, 1.0], solver=SRID2(), noise=BrownianPath(0), control=few)
    assert "depth" not in str(caught.value)


@pytest.mark.parametrize(
    "knots", [(0.0, 0.2, 1.0), (0.0, 1.0 - 1e-9, 1.0), geometric(1e-3, 1.0, 8).tolist()], ids=str
)
def test_failures_are_seen_in_cells_of_any_length(knots):
    equation = SDE(
        lambda t, x: torch.where(t > 0.5, torch.nan, -x),
        lambda t, x: torch.ones_like(x),
        "additive",
    )
    path = BrownianPath(0, knots)
    control = PIDController(1e-2, 1e-2, max_steps=2000)
    x0 = torch.zeros(2, 1, dtype=torch.float64)
    failed = solve(
        equation, x0, [knots[0], 1.0], solver=SRA1(), noise=path, control=control, throw=False
    )
    assert (failed.status == Status.NOT_FINITE).all()
    assert failed.rejected.max() < 60


@pytest.mark.parametrize("length", [1e2, 1e3, 1e7])
def test_a_solve_much_shorter_than_the_path_is_right_or_refused(length):
    """Geometric Brownian motion without drift on [0, 1] of a path on [0, length], 2,000 samples,
    5.3 standard errors.
    """
    equation = SDE(lambda t, x: 0 * x, lambda t, x: 0.5 * x)
    x0 = torch.ones(2000, 1, dtype=torch.float64)
    path = BrownianPath(0, (0.0, length))
    control = PIDController(1e-2, 1e-2)
    if length == 1e7:
        with pytest.raises(ValueError, match="shorter than the path resolves"):
            solve(equation, x0, [0.0, 1.0], solver=SRID2(), noise=path, control=control)
        return
    x = solve(equation, x0, [0.0, 1.0], solver=SRID2(), noise=path, control=control).x
    assert x.log().var() / 0.25 == pytest.approx(1, abs=5.3 * math.sqrt(2 / 2000) + 0.01)


def test_ends_a_rounding_away_from_the_knots_cost_nothing():
    path = BrownianPath(3, (0.0, 0.3))
    control = PIDController(1e-2, 1e-2)
    steps = [
        solve(EQUATION, LINE[:50], ts, solver=SRID2(), noise=path, control=control)
        .accepted.double()
        .mean()
        for ts in ([0.0, 0.3], torch.tensor([0.0, 0.3]).clamp(max=0.3), [1e-9, 0.3 - 1e-9])
    ]
    assert max(steps) < 1.1 * min(steps)


def test_a_zero_in_the_state_needs_no_absolute_tolerance():
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    solution = solve(
        ODE(lambda t, x: -x), x0, [0.0, 1.0], solver=Dopri5(), control=PIDController(1e-6, 0.0)
    )
    torch.testing.assert_close(solution.x, x0 / math.e, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float16, 1e-9), (torch.float32, 1e-46), (torch.float64, 0.0)]
)
def test_a_tolerance_that_underflows_is_no_division_by_zero(dtype, atol):
    x0 = torch.tensor([[1.0, 0.0]], dtype=dtype)
    control = PIDController(1e-2, atol)
    x = solve(ODE(lambda t, x: -x), x0, [0.0, 1.0], solver=Dopri5(), control=control).x
    torch.testing.assert_close(x, x0 / math.e, rtol=3e-2, atol=0)


def test_an_error_in_the_jacobian_of_some_samples_says_that_they_are_some():
    mu = torch.logspace(0, 3, 4, dtype=torch.float64)[:, None]

    def swings(t, x):
        y, v = x.split(1, dim=1)
        return torch.cat([v, mu * (1 - y * y) * v - y], dim=1)

    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(4, 1)
    control = PIDController(1e-6, 1e-6)
    with pytest.raises(RuntimeError, match="size of tensor") as caught:
        solve(ODE(swings), start, [0.0, 20.0], solver=Rodas5P(), control=control)
    assert "rows(index)" in caught.value.__notes__[0]


def test_derivatives_by_torch_func_of_stopped_samples_and_of_noisy_paths():
    """Values on the host, such as times and rows, cannot be read there as elsewhere."""
    decay = ODE(lambda t, x: -x)
    control = PIDController(1e-6, 1e-6)
    event = Event(lambda t, x: x[:, 0] - 0.7)
    x0 = torch.tensor([[1.0], [0.5]], dtype=torch.float64)

    def stopped(x0):
        return solve(decay, x0, [0.0, 0.2, 1.0], solver=Dopri5(), control=control, event=event).x

    value, along = torch.func.jvp(stopped, (x0,), (torch.ones_like(x0),))
    exact = torch.tensor([[0.7], [0.5 * math.exp(-1)]], dtype=torch.float64)
    torch.testing.assert_close(value, exact, rtol=1e-5, atol=0)
    assert float(along[1]) == pytest.approx(math.exp(-1), rel=1e-5)
    line = SDE(lambda t, x: -x, lambda t, x: 0.1 * torch.ones_like(x), "additive")

    def noisy(x0):
        return solve(line, x0, [0.0, 1.0], solver=SRA1(), noise=BrownianPath(0), control=control).x

    _, along = torch.func.jvp(noisy, (x0,), (torch.ones_like(x0),))
    torch.testing.assert_close(along, torch.full_like(x0, math.exp(-1)), rtol=1e-3, atol=0)
    slope = torch.func.grad(lambda x0: noisy(x0).sum())(x0)
    torch.testing.assert_close(slope, along, rtol=1e-9, atol=0)


# The controller


def test_the_error_is_measured_against_the_larger_of_both_ends():
    control = PIDController(rtol=0.1, atol=0.01)
    x0 = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    x1 = torch.tensor([[-3.0, 1.0], [0.0, 4.0]])
    error = torch.tensor([[0.62, 0.0], [0.01, -0.41]])
    scaled = torch.tensor([[0.62 / 0.31, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(control.error(error, x0, x1).float(), scaled.square().mean(1).sqrt())
    assert control.error(error, x0, torch.full_like(x1, torch.inf)).isinf().all()


def test_the_factor_is_that_of_the_formula():
    q = np.array([0.5, 1.5])
    before = np.array([[0.8, 0.3], [0.9, 0.7]])
    control = PIDController(proportional=0.2, integral=0.3, derivative=0.1)
    expected = 0.9 * q ** (-0.6 / 2) * before[:, 0] ** (0.4 / 2) * before[:, 1] ** (-0.1 / 2)
    np.testing.assert_allclose(control.factor(q, before, 2), expected.clip(0.2, 10), rtol=1e-14)
    assert (
        PIDController(proportional=0.1, integral=0.3, derivative=0.1).factor(
            np.array([1.5]), np.array([[1.0, 1e-10]]), 1.5
        )
        <= 0.9
    ), "a rejected step became longer"


def test_the_factor_has_no_overflow_of_its_own():
    """Also where NumPy raises errors of its own for such numbers."""
    q = np.array([0.0, 1e-300, 1e300, math.inf])
    control = PIDController(smallest=0.1, largest=math.inf)
    with np.errstate(all="raise"):
        factor = control.factor(q, np.ones((4, 2)), 0.5)
    assert factor[0] == factor[1] > 1e50
    assert list(factor[2:]) == [0.1, 0.1]
    assert np.isfinite(factor).all()


@pytest.mark.parametrize("save", ["last", "all"])
def test_a_step_may_grow_without_limit(save):
    """Samples without error end in rounds in which others go on; their lengths stay 0."""
    rate = torch.logspace(0, 3, 16, dtype=torch.float64)
    x0 = torch.stack([torch.ones_like(rate), torch.where(rate < 10, 0.0, rate)], dim=1)
    decay = ODE(lambda t, x: torch.stack([-x[:, 0] * x[:, 1], 0 * x[:, 1]], dim=1))
    found, usual = (
        solve(decay, x0, [0.0, 0.5, 1.0], solver=Dopri5(), save=save, control=control)
        for control in (PIDController(largest=math.inf, max_steps=2000), PIDController())
    )
    assert bool((found.accepted <= usual.accepted).all())
    torch.testing.assert_close(found.x, usual.x, rtol=1e-3, atol=1e-4)


def test_a_path_without_error_may_take_longer_and_longer_steps():
    line = SDE(lambda t, x: torch.zeros_like(x), lambda t, x: torch.ones_like(x), "additive")
    noise = BrownianPath(0)
    control = PIDController(largest=math.inf)
    x = solve(line, LINE, [0.0, 1.0], solver=SRA1(), noise=noise, control=control).x
    (increment,) = noise.increments([0.0, 1.0], LINE, (1,))
    torch.testing.assert_close(x, LINE + increment.w)


def test_the_factor_receives_the_errors_of_the_last_two_accepted_steps(monkeypatch):
    """The newest first, 1 where there were none yet; rejected steps leave them as they are."""
    formula = PIDController.factor
    before = np.ones((len(START), 2))
    rejected = 0

    def factor(self, q, given, power):
        nonlocal before, rejected
        np.testing.assert_array_equal(given, before)
        newest = np.stack([np.maximum(q, 1e-10), before[:, 0]], axis=1)
        before = np.where((q <= 1)[:, None], newest, before)
        rejected += int((q > 1).sum())
        return formula(self, q, given, power)

    monkeypatch.setattr(PIDController, "factor", factor)
    control = PIDController(
        1e-6, 1e-6, proportional=0.2, integral=0.4, derivative=0.1, first=0.5, max_steps=8
    )
    solve(ODE(f), START, [0.0, 2.0], solver=Dopri5(), control=control, throw=False)
    assert rejected
    assert (before != 1).all()


def test_the_first_step_is_neither_far_too_short_nor_too_long():
    control = PIDController(1e-6, 1e-6)
    solution = solve(ODE(f), START, [0.0, 2.0], solver=Dopri5(), control=control)
    tries = (solution.accepted + solution.rejected).max()
    for first in (1e-3, 1e-2, 1e-1):
        known = solve(
            ODE(f),
            START,
            [0.0, 2.0],
            solver=Dopri5(),
            control=PIDController(1e-6, 1e-6, first=first),
        )
        assert tries <= (known.accepted + known.rejected).max() + 1
    still = solve(
        SDE(lambda t, x: 0 * x, lambda t, x: 0.1, "additive"),
        LINE,
        [0.0, 1.0],
        solver=SRA1(),
        control=control,
    )
    assert still.accepted.max() <= 17


# One path


@pytest.mark.parametrize(
    ("ends", "equation", "solver"),
    [
        pytest.param(
            (0.0, 1.0), SDE(f, lambda t, x: 0.8, "additive"), SRA1(), id="forwards-additive"
        ),
        pytest.param((1.0, 0.0), EQUATION, SRID2(), id="backwards-diagonal"),
    ],
)
def test_adaptive_paths_converge_to_the_solution_on_the_same_path(equation, solver, ends):
    path = BrownianPath(3)
    # Four times as many steps change none of the errors below by a hundredth.
    exact = solve(equation, LINE, uniform(*ends, 2**8), solver=solver, noise=path).x
    errors = []
    for tol in (6e-2, 1.2e-2, 2.4e-3):
        solution = solve(
            equation, LINE, ends, solver=solver, noise=path, control=PIDController(tol, tol)
        )
        errors.append(float((solution.x - exact).square().mean().sqrt()))
        assert solution.rejected.sum() > 0
    assert errors[0] < 0.15
    assert errors[1] < errors[0] / 1.9
    assert errors[2] < errors[1] / 1.9


def test_stratonovich_general_noise_with_revisited_times():
    """Noises that do not commute: rejected times are revisited, so what is learned of the path is
    not lost.
    """

    def columns(t, x):
        return torch.stack(
            [torch.stack([x[:, 1], 0 * x[:, 0]], 1), torch.stack([0 * x[:, 0], x[:, 0]], 1)], dim=2
        )

    equation = SDE(lambda t, x: -0.5 * x, columns, "general", "stratonovich", noise_size=2)
    x0 = torch.ones(200, 2, dtype=torch.float64)
    path = BrownianPath(3)
    # Twice as many steps change none of the errors below by a twentieth.
    exact = solve(equation, x0, uniform(0, 1, 2**8), solver=SPaRK(), noise=path).x
    errors = []
    for tol in (2e-1, 2e-2, 4e-3):
        x = solve(
            equation, x0, [0.0, 1.0], solver=SPaRK(), noise=path, control=PIDController(tol, tol)
        ).x
        errors.append(float((x - exact).square().mean().sqrt()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


def test_the_variance_of_a_reversed_gaussian_has_no_bias_that_tolerances_do_not_remove():
    """VE from sigma 50 to 1e-3, variance 0.25, against a fine grid on the same paths.

    Drawing new noise after a rejection gives 130 % too much in one dimension, and less in more.
    Common paths make the comparison free of sampling noise: no false alarms; a bias of the bars'
    size is what it sees.
    """
    k0 = 50.0**-2
    k1 = 1e-3**-2

    def denoiser(l, x):
        return x * broadcast(0.25 / (0.25 + exp(-2 * l)), x)

    equation = Clocked(denoiser, lambda l: exp(-2 * l), a=2.0, q=2.0)
    path = BrownianPath(5, geometric(k0, k1, 12))
    n = 200
    y0 = (
        k0
        * math.sqrt(0.25 + 50**2)
        * torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    exact = (
        (solve(equation, y0, geometric(k0, k1, 500), solver=SRA1(), noise=path).x / k1)
        .square()
        .mean()
    )
    for tol, bar in ((1e-2, 0.01), (2e-3, 0.001)):
        x = (
            solve(
                equation, y0, [k0, k1], solver=SRA1(), noise=path, control=PIDController(tol, tol)
            ).x
            / k1
        )
        assert abs(float(x.square().mean() / exact) - 1) < bar


def test_outputs_between_steps_have_the_variance_of_the_path():
    """A straight line has half of it in the middle: torchsde's 0.025 for 0.050. A variance off by
    a tenth is seen.
    """
    brownian = SDE(lambda t, x: 0 * x, lambda t, x: 1.0, "additive")
    n = 10_000
    ts = [0.0, 0.05, 0.1, 0.55, 1.0]
    x0 = torch.zeros(n, 1, dtype=torch.float64)
    noise = BrownianPath(9)
    control = PIDController(1e-1, 1e-1, first=1.0)
    solution = solve(brownian, x0, ts, solver=SRA1(), noise=noise, control=control, save="all")
    assert solution.accepted.max() == 1
    w = torch.stack([i.w for i in noise.increments(ts, x0, (1,), levy=False)]).cumsum(0)
    torch.testing.assert_close(solution.xs[1:], w, rtol=0, atol=1e-12)
    error = 5.3 * math.sqrt(2 / n)  # two-sided 1e-7 each
    assert ((solution.xs[1:, :, 0].var(dim=1) / torch.tensor(ts[1:]) - 1).abs() < error).all()


def test_bridged_outputs_are_on_the_path_of_the_solution():
    ts = uniform(0.0, 1.0, 10).tolist()
    path = BrownianPath(3)
    x0 = LINE[::4]
    # Twice as many steps change this by a hundredth of the bar below.
    exact = solve(EQUATION, x0, uniform(0.0, 1.0, 160), solver=SRID2(), noise=path, save="all")
    control = PIDController(2e-3, 2e-3)
    bridged = solve(EQUATION, x0, ts, solver=SRID2(), noise=path, control=control, save="all")
    assert (bridged.xs - exact.xs[::16]).square().mean(dim=(1, 2)).sqrt().max() < 0.02


def test_gradients_flow_through_adaptive_steps():
    x0 = torch.linspace(-1, 1.2, 3, dtype=torch.float64)[:, None].requires_grad_()
    control = PIDController(1e-2, 1e-2)

    def sde(x):
        return solve(
            EQUATION, x, [0.0, 1.0], solver=SRID2(), noise=BrownianPath(1), control=control
        ).x

    # Steps are chosen from values: their dependence on x0 is not differentiated, and small changes
    # leave them alone here.
    assert torch.autograd.gradcheck(sde, x0, atol=1e-4, fast_mode=True)
    exact = torch.autograd.functional.jvp(
        lambda x: solve(ODE(f), x, uniform(0, 1, 100), solver=RK4()).x, x0, torch.ones_like(x0)
    )
    fine = PIDController(1e-7, 1e-7)
    end = solve(ODE(f), x0, [0.0, 0.3, 1.0], solver=Dopri5(), control=fine, save="all").xs[-1]
    torch.testing.assert_close(torch.autograd.grad(end.sum(), x0)[0], exact[1], rtol=0, atol=1e-5)


def test_a_trial_that_is_not_finite_does_not_spoil_gradients():
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    x0 = torch.full((2, 1), 0.5, dtype=torch.float64)
    control = PIDController(1e-6, 1e-6, first=1.2)
    solution = solve(
        ODE(lambda t, x: -theta * torch.sqrt(x)), x0, [0.0, 1.2], solver=Dopri5(), control=control
    )
    assert solution.rejected.min() > 0
    (gradient,) = torch.autograd.grad(solution.x.sum(), theta)
    # x = (sqrt(x0) - theta t / 2)^2
    assert float(gradient) == pytest.approx(-2 * 2 * (math.sqrt(0.5) - 0.6) * 0.6, rel=1e-3)
    bad = torch.tensor([[0.5], [torch.nan]], dtype=torch.float64)
    mixed = solve(
        ODE(lambda t, x: -theta * x), bad, [0.0, 1.0], solver=Dopri5(), control=control, throw=False
    )
    (gradient,) = torch.autograd.grad(mixed.x[0].sum(), theta)
    assert float(gradient) == pytest.approx(-0.5 / math.e, rel=1e-3)


def test_a_callback_sees_every_step_that_counts():
    """Steps of a sample join, and their dense output is the solution between."""
    moves = []
    control = PIDController(1e-8, 1e-8)
    ends = (2.0, 0.0)
    solution = solve(ODE(f), START, ends, solver=Tsit5(), control=control, callback=moves.append)
    for sample in (0, 17):
        mine = [(m, int((m.samples == sample).nonzero())) for m in moves if sample in m.samples]
        assert len(mine) == solution.accepted[sample]
        times = [float(m.t0[i]) for m, i in mine] + [float(mine[-1][0].t1[mine[-1][1]])]
        assert times[0] == 2.0
        assert times[-1] == 0.0
        assert times[1:] == [float(m.t1[i]) for m, i in mine]
        assert torch.equal(mine[-1][0].x[mine[-1][1]], solution.x[sample])
    middle = moves[3]
    half = Tsit5().interpolate(middle.dense, torch.full_like(middle.t0, 0.5))
    for row in (0, 5):
        at = float(0.5 * (middle.t0 + middle.t1)[row])
        exact = solve(
            ODE(f), START[middle.samples[row]][None], [2.0, at], solver=Tsit5(), control=control
        ).x
        torch.testing.assert_close(half[row : row + 1], exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("far", [math.nan, math.inf, 1e300])
def test_a_first_step_is_never_of_length_zero(far):
    """The estimate of the first step looks ahead, where there may be nothing."""
    drift = ODE(lambda t, x: torch.where(t > 0.1, far, 0.01 * x))
    solution = solve(
        drift, START, [0.0, 1.0], solver=Dopri5(), control=PIDController(max_steps=500), throw=False
    )
    assert (solution.status == Status.NOT_FINITE).all() or far == 1e300
    assert (solution.accepted > 3).all()


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (-3.0, 1.0), (-1.0, 3.0), (3.0, -1.0)])
def test_what_ends_at_a_time_of_zero_within_the_span_is_noticed(ends):
    """Times are resolved there as at the ends of the span, and not better."""
    before = ends[0] < 0
    drift = ODE(lambda t, x: torch.sqrt(-t if before else t) + 0 * x)
    control = PIDController(max_steps=1000)
    solution = solve(drift, START, list(ends), solver=Dopri5(), control=control, throw=False)
    assert (solution.status == Status.NOT_FINITE).all()


# What is refused


@pytest.mark.parametrize("rates", [[1.0, 50.0], [1.0, 10.0, 50.0]])
def test_numbers_of_each_sample_in_a_plain_function_are_explained(rates):
    rate = torch.tensor(rates, dtype=torch.float64)[:, None]
    decay = ODE(lambda t, x: -rate * x)
    control = PIDController(1e-6, 1e-6)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        solve(decay, torch.ones_like(rate), [0.0, 1.0], solver=Dopri5(), control=control)
    assert "rows(index)" in caught.value.__notes__[0]

    def own(t, x):  # the note does not depend on the words of an error
        if len(x) < len(rate):
            raise ValueError("a number for each sample is needed")
        return -rate * x

    with pytest.raises(ValueError, match="number for each") as caught:
        solve(ODE(own), torch.ones_like(rate), [0.0, 1.0], solver=Dopri5(), control=control)
    assert "rows(index)" in caught.value.__notes__[0]

    def wrong(t, x):
        raise RuntimeError("of another size")

    with pytest.raises(RuntimeError) as caught:
        solve(ODE(wrong), torch.ones_like(rate), [0.0, 1.0], solver=Dopri5(), control=control)
    assert not hasattr(caught.value, "__notes__")  # it is not the choice of samples

    def fails(t, x):  # after the first round
        raise ValueError("of the event")

    event = Event(lambda t, x: x[:, 0] if float(t[0]) < 0.3 else fails(t, x))
    settings = {"solver": Dopri5(), "control": control, "event": event}
    with pytest.raises(ValueError, match="of the event") as caught:
        solve(ODE(lambda t, x: -x), torch.ones_like(rate), [0.0, 1.0], **settings)
    assert not hasattr(caught.value, "__notes__")


def test_refusals():
    x0 = torch.zeros(2, 1)
    control = PIDController()
    with pytest.raises(TypeError, match="WhiteNoise cannot be read twice"):
        solve(EQUATION, x0, [0.0, 1.0], solver=SRID2(), noise=WhiteNoise(0), control=control)
    with pytest.raises(
        ValueError,
        match="does not estimate its error; for diagonal noise these do: ImplicitPlaten, SRID2",
    ):
        solve(EQUATION, x0, [0.0, 1.0], solver=EulerMaruyama(), control=control)
    with pytest.raises(ValueError, match=r"below what torch.float32 resolves; ask for 5e-07"):
        solve(ODE(f), x0, [0.0, 1.0], solver=Dopri5(), control=PIDController(1e-12, 1e-12))
    with pytest.raises(ValueError, match="is defined on"):
        solve(
            EQUATION,
            x0,
            [0.0, 2.0],
            solver=SRID2(),
            noise=BrownianPath(0),
            control=PIDController(0.1, 0.1),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rtol": -1.0}, "tolerances"),
        ({"rtol": 0.0, "atol": 0.0}, "not both 0"),
        ({"safety": 1.5}, "order 0 < smallest"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 10.5}, "whole number from 1 on.* not 10.5"),
        ({"max_steps": math.nan}, "whole number from 1 on"),
        ({"max_steps": math.inf}, "whole number from 1 on"),
        ({"first": 0.0}, "first"),
        ({"derivative": math.inf}, "all finite; not 1.0, 0.0 and inf"),
        ({"proportional": math.inf}, "all finite; not 1.0, inf and 0.0"),
        ({"integral": math.inf}, "all finite; not inf"),
    ],
)
def test_controllers_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        PIDController(**arguments)


def test_empty_batches_and_default_noise():
    empty = solve(EQUATION, torch.zeros(0, 3), [0.0, 1.0], solver=SRID2(), control=PIDController())
    assert empty.x.shape == (0, 3)
    torch.manual_seed(0)
    x0 = LINE[::10]
    a = solve(EQUATION, x0, [0.5, 2.0], solver=SRID2(), control=PIDController(3e-2, 3e-2))
    b = solve(
        EQUATION,
        x0,
        [0.5, 2.0],
        solver=SRID2(),
        noise=BrownianPath(a.seed, (0.5, 2.0)),
        control=PIDController(3e-2, 3e-2),
    )
    assert torch.equal(a.x, b.x)
    assert np.isfinite(a.x.numpy()).all()


@pytest.mark.parametrize("ends", [(0.0, 1e9), (0.0, -1e9)], ids=["forwards", "backwards"])
def test_times_near_the_start_are_resolved_far_below_the_span(ends):
    """A step of 1e-9 of a span of 1e9 ends at 1e-9."""
    moves = []
    control = PIDController(1e-3, 1e-3, first=1e-9)
    solve(ODE(lambda t, x: 0 * x), torch.ones(1, 1, dtype=torch.float64), list(ends),
          solver=Dopri5(), control=control, callback=moves.append)  # fmt: skip
    assert float(moves[0].t1) == math.copysign(1e-9, ends[1])
    assert float(moves[-1].t1) == ends[1]


def test_tolerances_are_numbers():
    for given in ({"atol": torch.tensor([1e-3, 1e-6])}, {"rtol": "1e-3"}):
        (name,) = given
        with pytest.raises(TypeError, match=f"{name} is a number, the same for all coordinates"):
            PIDController(**given)
    for name in ("proportional", "integral", "derivative", "safety", "smallest", "largest"):
        with pytest.raises(TypeError, match=f"{name} is a number, not '0.5'"):
            PIDController(**{name: "0.5"})
    for name in ("first", "max_steps"):
        with pytest.raises(TypeError, match=f"{name} is a number, not '3'"):
            PIDController(**{name: "3"})


def test_states_without_numbers():
    """The path has no numbers for them either."""
    solution = solve(
        EQUATION, torch.zeros(3, 0), [0.0, 1.0], solver=SRID2(), control=PIDController(1e-2, 1e-2)
    )
    assert solution.x.shape == (3, 0)
    assert (solution.status == Status.DONE).all()


def test_adaptive_steps_under_vmap_are_refused():
    settings = {"solver": Dopri5(), "control": PIDController(1e-3, 1e-3)}

    def end(rate, x):
        return solve(ODE(lambda t, x: -rate * x), x, [0.0, 1.0], **settings).x

    for arguments in (torch.ones(3), torch.ones(2, 1)), (torch.ones(3), torch.ones(3, 2, 1)):
        in_dims = 0, 0 if arguments[1].ndim == 3 else None
        with pytest.raises(RuntimeError, match="hides: solve all rows as one batch"):
            torch.func.vmap(end, in_dims=in_dims)(*arguments)


class Pulse(AbstractSDE):
    """dx = -x dt + 1000 dt for t from 0.3 to 0.31, which steps may overlook."""

    noise_type = "none"

    def __init__(self, *jumps, noise=0.0):
        self.jumps = jumps
        self.noise = noise
        if noise:
            self.noise_type = "additive"

    def drift(self, t, x):
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
        return 1000.0 * ((t >= 0.3) & (t <= 0.31)).to(x) - x

    def diffusion(self, t, x):
        return self.noise

    @staticmethod
    def exact(t):
        return math.exp(-t) + 1000 * (math.exp(min(0.0, 0.31 - t)) - math.exp(min(0.0, 0.3 - t)))


@pytest.mark.parametrize("solver", [*ALL_PAIRS, Rodas5P()], ids=str)
def test_steps_end_at_jumps_of_the_drift(solver):
    x0 = torch.ones(3, 1, dtype=torch.float64)
    settings = {"solver": solver, "control": PIDController(1e-8, 1e-8)}
    at_zero = torch.tensor([[1.0], [0.5], [2.0]], dtype=torch.float64)
    solution = solve(Pulse(0.31, 0.3), at_zero, [0.0, 1.0], save=[0.3, 0.305, 1.0], **settings)
    exact = torch.tensor([Pulse.exact(t) for t in (0.3, 0.305, 1.0)], dtype=torch.float64)
    torch.testing.assert_close(solution.xs[:, 0, 0], exact, rtol=2e-6, atol=0)
    alone = solve(Pulse(0.31, 0.3), at_zero[2:], [0.0, 1.0], **settings)
    assert torch.equal(alone.x, solution.x[2:])
    # Interpolation at the outputs takes evaluations of its own with some solvers.
    assert alone.evaluations <= solution.evaluations[2]
    together = solve(Pulse(0.31, 0.3), at_zero, [0.0, 1.0], **settings)
    assert alone.evaluations == together.evaluations[2]
    back = solve(Pulse(0.3, 0.31), x0 * Pulse.exact(1.0), [1.0, 0.0], **settings)
    torch.testing.assert_close(back.x, x0, rtol=0, atol=2e-5)
    outside = solve(Pulse(-1.0, 5.0), x0, [0.0, 1.0], **settings)
    assert torch.equal(outside.x, solve(Pulse(), x0, [0.0, 1.0], **settings).x)


@pytest.mark.parametrize("solver", [*ALL_PAIRS, Rodas5P()], ids=str)
def test_the_slope_after_a_jump_is_that_beyond_it(solver):
    """The solution is a straight line on both sides, so that no step is rejected."""
    equation = ODE(lambda t, x: (t > 0.5).to(x).expand_as(x), jumps=(0.5,))
    settings = {"solver": solver, "control": PIDController(1e-8, 1e-8)}
    solution = solve(equation, torch.zeros(2, 1, dtype=torch.float64), [0.0, 1.0], **settings)
    torch.testing.assert_close(solution.x, torch.full_like(solution.x, 0.5), rtol=1e-10, atol=0)
    assert solution.rejected.tolist() == [0, 0]


@pytest.mark.parametrize("ends", [[0.0, 1.0], [1.0, 0.0]])
def test_a_jump_at_an_end_is_not_met(ends):
    def f(t, x):
        return 1000.0 * ((t >= 1.0) | (t <= 0.0)).to(x) - x

    settings = {"solver": Dopri5(), "control": PIDController(1e-8, 1e-8)}
    x0 = torch.ones(1, 1, dtype=torch.float64)
    solution = solve(ODE(f, jumps=(1.0, 0.0)), x0, ends, **settings)
    torch.testing.assert_close(solution.x, x0 * math.exp(ends[0] - ends[1]), rtol=1e-6, atol=0)
    assert solution.evaluations < 150  # 867 where it is met at the end


@pytest.mark.parametrize("solver", [Rodas5P(), Dopri8()], ids=str)
def test_samples_across_a_jump_do_not_know_their_batch(solver):
    def f(t, x):
        return torch.where(t > 0.5, -1e3 * (x - 0.5 * torch.sin(x)), -(x**3))

    x0 = torch.tensor([[1e-3], [20.0], [-1.0], [300.0]], dtype=torch.float64)
    settings = {"solver": solver, "control": PIDController(1e-6, 1e-6)}
    together = solve(ODE(f, jumps=(0.5,)), x0, [0.0, 0.7], **settings)
    for i in range(4):
        alone = solve(ODE(f, jumps=(0.5,)), x0[i : i + 1], [0.0, 0.7], **settings)
        assert torch.equal(alone.x, together.x[i : i + 1])
        assert alone.evaluations == together.evaluations[i]


def test_stages_that_are_prepared_together_are_limited_too():
    seen = []

    class Prepared(Pulse):
        def drifts(self, times, x):
            seen.extend(times)
            return [lambda x: x for _ in times]

    x = torch.ones(2, 1, dtype=torch.float64)
    low, high = torch.tensor([0.1, 0.2]).double(), torch.tensor([0.4, 0.5]).double()
    problem = Counted.of(Prepared(), x).limited(low, high)
    problem.drifts([low - 0.1, low + 0.1, high + 0.1], x)
    assert torch.equal(torch.stack(seen), torch.stack([low, low + 0.1, high]))


@pytest.mark.parametrize("jumps", [0.3, ("a",), [None]])
def test_jumps_are_times(jumps):
    with pytest.raises(TypeError, match="jumps are times, such as"):
        ODE(f, jumps=jumps)
    with pytest.raises(TypeError, match="jumps are times, such as"):
        SDE(f, g, jumps=jumps)
    with pytest.raises(TypeError, match="jumps are times, such as"):
        SemiLinear(-1.0, f, jumps=jumps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0.0, 1000.0])
def test_steps_at_a_jump_stay_on_their_side_and_lose_no_time(dtype, start):
    """Also in single precision, in which times far from 0 are rounded by much."""
    ends = [start, start + 1.0]
    jumps = (start + 0.3, start + 0.300001, start + 0.5)
    seen = []

    def f(t, x):
        seen.append(t.double().flatten())
        return torch.ones_like(x)

    settings = {"solver": Dopri5(), "control": PIDController(1e-5, 1e-5)}
    solution = solve(ODE(f, jumps=jumps), torch.zeros(2, 1, dtype=dtype), ends, **settings)
    torch.testing.assert_close(solution.x, torch.ones(2, 1, dtype=dtype), rtol=0, atol=1e-5)
    assert len(seen) == solution.evaluations[0]
    if start == 0.0:
        at_jumps = torch.tensor(jumps, dtype=dtype).double()
        assert not torch.isin(torch.cat(seen), at_jumps).any()


def test_every_kind_of_equation_has_jumps():
    def f(t, x):
        return 1000.0 * ((t >= 0.3) & (t <= 0.31)).to(x) - x

    x0 = torch.ones(2, 1, dtype=torch.float64)
    settings = {"solver": Dopri5(), "control": PIDController(1e-8, 1e-8)}
    forward = Pulse(0.3, 0.31, noise=1.0)
    for equation in (
        ODE(f, jumps=(0.3, 0.31)),
        SemiLinear(-1.0, lambda t, x: f(t, x) + x, jumps=[0.3, 0.31]),
        ReverseSDE(forward, lambda t, x: 0 * x, eta=0.0),
        ProbabilityFlow(forward, lambda t, x: 0 * x),
    ):
        x = solve(equation, x0, [0.0, 1.0], **settings).x
        torch.testing.assert_close(x, Pulse.exact(1.0) + 0 * x0, rtol=1e-6, atol=0)


def test_gradients_and_events_across_a_jump():
    x0 = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    settings = {"solver": Dopri5(), "control": PIDController(1e-8, 1e-8)}
    solution = solve(Pulse(0.3, 0.31), x0, [0.0, 1.0], **settings)
    (slope,) = torch.autograd.grad(solution.x.sum(), x0)
    assert float(slope) == pytest.approx(math.exp(-1), rel=1e-6)
    event = Event(lambda t, x: x[:, 0] - 8.0, direction=-1)
    stopped = solve(Pulse(0.3, 0.31), x0.detach(), [0.0, 1.0], event=event, **settings)
    assert Pulse.exact(float(stopped.events.t)) == pytest.approx(8.0, rel=1e-6)


def test_noise_is_read_up_to_the_jumps():
    """With them the steps of a path do not overlook the pulse."""
    x0 = torch.ones(8, 1, dtype=torch.float64)
    settings = {"solver": SRA1(), "noise": BrownianPath(0), "control": PIDController(1e-3, 1e-3)}
    found = solve(Pulse(0.3, 0.31, noise=1e-3), x0, [0.0, 1.0], **settings)
    torch.testing.assert_close(found.x, Pulse.exact(1.0) + 0 * x0, rtol=0.0, atol=0.02)
    overlooked = solve(Pulse(noise=1e-3), x0, [0.0, 1.0], **settings)
    assert float(overlooked.x.max()) < 0.5 * Pulse.exact(1.0)
    for knots in ((0.0, 1.0), (0.0, 0.3, 1.0), (0.0, 0.3000001, 1.0)):
        for ends in ([0.0, 1.0], [1.0, 0.0]):
            settings["noise"] = BrownianPath(0, knots=knots)
            pulse = Pulse(0.0, 0.3, 0.300001, 0.31, 1.0, noise=1e-3)
            assert solve(pulse, x0, ends, **settings).x.isfinite().all()


def test_jumps_near_the_ends_of_a_path():
    class Early(Pulse):
        def drift(self, t, x):
            t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1)
            low, high = self.jumps
            return 1e4 * ((low <= t) & (t < high)).to(x)

    settings = {"solver": SRA1(), "control": PIDController(1e-2, 1e-2)}
    for jumps in ((0.0002, 0.0009), (0.9992, 0.9999)):
        x = solve(Early(*jumps, noise=1e-6), torch.zeros(1, 1, dtype=torch.float64), [0.0, 1.0],
                  noise=BrownianPath(0, knots=(0.0, 1.0)), **settings).x  # fmt: skip
        assert float(x) == pytest.approx(7.0, abs=0.02)


def test_a_step_that_does_not_change_the_time_is_no_infinite_state():
    decay = ODE(lambda t, x: -1e3 * x)
    control = PIDController(1e-6, 1e-6, first=1e-25)
    with pytest.raises(UnfinishedError, match="no step is short enough") as caught:
        solve(decay, torch.ones(1, 1), [1.0, 2.0], solver=ImplicitPlaten(), control=control)
    assert caught.value.solution.status.tolist() == [Status.UNDERFLOW]


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_drift_that_is_nan_is_named(start):
    broken = ODE(lambda t, x: x * math.nan)
    with pytest.raises(UnfinishedError, match="became infinite or NaN however short the step"):
        solve(broken, torch.ones(1, 1), [start, 2.0], solver=Dopri5(), control=PIDController())


def test_a_step_is_not_in_memory_during_the_next():
    class Watched(HeunEuler):
        def step(self, problem, t0, t1, x, noise, state):
            assert all(tensor() is None for tensor in seen)
            step = super().step(problem, t0, t1, x, noise, state)
            seen[:] = [weakref.ref(step.error), weakref.ref(step.dense[2])]
            return step

    seen = []
    control = PIDController(1e-4, 1e-4)
    ode = ODE(lambda t, x: -x)
    solution = solve(ode, torch.ones(2, 1), [0.0, 1.0], solver=Watched(), control=control)
    assert int(solution.accepted.min()) > 3
    assert seen
