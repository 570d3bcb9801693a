"""The fixed-grid loop: both directions, trajectories, failures, memory."""

import copy
import math
import pickle
import re
import tracemalloc

import pytest
import torch

import sdekit
from sdekit import (
    ODE,
    RK4,
    SDE,
    AbstractSDE,
    ClockedHeun,
    DPMSolverSingle,
    EulerMaruyama,
    Heun,
    Langevin,
    NotFiniteError,
    PredictorCorrector,
    WhiteNoise,
    integrate,
    solve,
    uniform,
)

GROWTH = ODE(lambda t, x: x * torch.cos(t))
GBM = SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x)
ONE = torch.ones(3, 1, dtype=torch.float64)


def test_there_and_back_again():
    there = solve(GROWTH, ONE, uniform(0.0, 2.0, 200), solver=RK4())
    back = solve(GROWTH, there.x, uniform(2.0, 0.0, 200), solver=RK4())
    torch.testing.assert_close(there.x, ONE * math.exp(math.sin(2.0)), rtol=1e-9, atol=0)
    torch.testing.assert_close(back.x, ONE, rtol=1e-9, atol=0)


def test_solution_reports_what_was_done():
    torch.manual_seed(3)
    ts = uniform(0.0, 1.0, 5)
    solution = solve(GBM, ONE, ts, solver=EulerMaruyama(), save="all")
    assert bool((solution.evaluations == 5).all())
    assert torch.equal(solution.ts, ts)
    assert solution.xs.shape == (6, 3, 1)
    assert torch.equal(solution.xs[0], ONE)
    assert torch.equal(solution.xs[-1], solution.x)
    again = solve(GBM, ONE, ts, solver=EulerMaruyama(), noise=WhiteNoise(solution.seed))
    assert torch.equal(again.x, solution.x)
    assert again.xs is None
    assert solve(GROWTH, ONE, ts, solver=Heun()).seed is None
    assert solve(GROWTH, ONE, ts, solver=Heun()).evaluations.tolist() == [10] * len(ONE)


def test_points_and_callback_see_every_state():
    seen = []
    solution = solve(GROWTH, ONE, [0.0, 0.5, 1.0], solver=RK4(), save="all", callback=seen.append)
    points = list(integrate(GROWTH, ONE, [0.0, 0.5, 1.0], solver=RK4()))
    for a, b, x in zip(seen, points, solution.xs, strict=True):
        assert (a.step, a.t) == (b.step, b.t)
        assert torch.equal(a.x, x)
        assert torch.equal(b.x, x)


def test_stopping_early_costs_what_was_done():
    calls = []
    points = integrate(
        ODE(lambda t, x: calls.append(t) or x), ONE, uniform(0.0, 1.0, 100), solver=EulerMaruyama()
    )
    for point in points:
        if point.t > 0.1:
            break
    assert len(calls) == 11


def spoiled(at, row, value=math.nan):
    def f(t, x):
        bad = torch.zeros_like(x)
        if abs(t - at) < 1e-9:
            bad[row] = value
        return -x + bad

    return f


@pytest.mark.parametrize("step", [0, 1, 127, 128, 299])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_failure_names_step_time_and_samples(step, value):
    ts = uniform(0.0, 3.0, 300)
    sde = SDE(spoiled(float(ts[step]), 2, value), lambda t, x: torch.ones_like(x), "additive")
    with pytest.raises(
        NotFiniteError, match=f"after step {step + 1}, at t = .*in 1 of 4 samples"
    ) as caught:
        solve(
            sde,
            torch.zeros(4, 2, dtype=torch.float64),
            ts,
            solver=EulerMaruyama(),
            noise=WhiteNoise(0),
        )
    assert (caught.value.step, caught.value.samples) == (step + 1, [2])
    assert caught.value.t == pytest.approx(float(ts[step + 1]))


def test_initial_state_that_is_not_finite():
    with pytest.raises(NotFiniteError, match="the initial state x0 is not finite"):
        solve(GROWTH, ONE * math.nan, [0.0, 1.0], solver=RK4())


def test_an_error_is_pickled_with_its_attributes():
    """As pools of processes do; it failed."""
    with pytest.raises(NotFiniteError) as caught:
        solve(ODE(spoiled(1.0, 2)), ONE, uniform(0.0, 3.0, 6), solver=EulerMaruyama())
    error = caught.value.relocated(after=4, total=9)
    error.add_note("a note")
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(same) is NotFiniteError
        assert str(same) == str(error)
        assert vars(same) == vars(error)
        assert same.relocated().samples == [6]


def test_failure_that_does_not_repeat_is_still_reported():
    calls = []

    def f(t, x):
        calls.append(t)
        return x * (math.nan if len(calls) == 2 else 1.0)

    with pytest.raises(NotFiniteError, match="in 3 of 3 samples"):
        solve(ODE(f), ONE, uniform(0.0, 1.0, 4), solver=EulerMaruyama())


@pytest.mark.parametrize(
    ("problem", "solver", "message"),
    [
        (GBM, RK4(), "RK4 does not solve equations with diagonal noise, only those without noise"),
        (GBM, Heun(), "Heun solves stratonovich equations and this one is ito"),
        (
            SDE(lambda t, x: x, lambda t, x: x, sde_type="stratonovich"),
            EulerMaruyama(),
            "solves ito equations",
        ),
    ],
)
def test_unsound_pairs_are_refused_before_the_loop(problem, solver, message):
    for call in (solve, integrate):
        with pytest.raises(ValueError, match=message):
            call(problem, ONE, [0.0, 1.0], solver=solver)


@pytest.mark.parametrize("calculus", ["ito", "stratonovich"])
@pytest.mark.parametrize("noise", ["additive", "diagonal", "scalar", "general"])
def test_a_refused_solver_is_answered_with_solvers_that_apply(noise, calculus):
    size = 1 if noise == "general" else None
    shapes = {"additive": lambda t, x: 1.0, "general": lambda t, x: x[..., None]}
    g = shapes.get(noise, lambda t, x: x)
    equation = SDE(lambda t, x: -x, g, noise, calculus, size)
    with pytest.raises(ValueError, match=r"choose .*eta=0") as caught:
        solve(equation, ONE, [0.0, 1.0], solver=RK4())
    names = re.findall(r"(\w+)\(\)", str(caught.value))
    assert len(names) == 2
    for name in names:
        assert solve(equation, ONE, [0.0, 0.1], solver=getattr(sdekit, name)()).x.isfinite().all()


@pytest.mark.parametrize("x0", [torch.ones(3, 1, dtype=torch.int64), torch.tensor(1.0), [1.0]])
def test_what_is_not_a_state(x0):
    with pytest.raises(TypeError, match=r"floating tensor of shape \(batch, \*event\)"):
        solve(GROWTH, x0, [0.0, 1.0], solver=RK4())


def test_save_is_last_or_all():
    with pytest.raises(ValueError, match="'last', 'all', 'dense' or times"):
        solve(GROWTH, ONE, [0.0, 1.0], solver=RK4(), save="some")


def test_empty_batch_never_asks_the_drift():
    def f(t, x):
        raise AssertionError

    solution = solve(ODE(f), torch.zeros(0, 3), [0.0, 0.5, 1.0], solver=RK4(), save="all")
    assert solution.x.shape == (0, 3)
    assert solution.xs.shape == (3, 0, 3)


def test_non_contiguous_states():
    x0 = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).T
    ts = uniform(0.0, 1.0, 7)
    ours = solve(GBM, x0, ts, solver=EulerMaruyama(), noise=WhiteNoise(1)).x
    assert torch.equal(
        ours, solve(GBM, x0.contiguous(), ts, solver=EulerMaruyama(), noise=WhiteNoise(1)).x
    )


def test_predictor_corrector_needs_a_score():
    with pytest.raises(TypeError, match="has no score"):
        solve(GBM, ONE, [0.0, 1.0], solver=PredictorCorrector(EulerMaruyama(), Langevin()))


def test_langevin_settings():
    with pytest.raises(ValueError, match="snr > 0"):
        Langevin(snr=0.0)


def test_no_step_keeps_anything(monkeypatch):
    """Live tensors on the way do not depend on the number of steps: counted by size at every
    point.
    """
    import gc

    def most(steps):
        peaks = []
        for point in integrate(
            GBM,
            torch.ones(50, 7),
            uniform(0.0, 1.0, steps),
            solver=EulerMaruyama(),
            noise=WhiteNoise(0),
        ):
            if point.step in (steps // 2, steps):
                peaks.append(
                    sum(
                        1
                        for o in gc.get_objects()
                        if type(o) is torch.Tensor and o.shape == (50, 7)
                    )
                )
        return max(peaks)

    monkeypatch.setattr("sdekit._noise.white._BLOCK", 1 << 9)
    assert most(400) <= most(40) + 1


def test_python_memory_is_flat_in_the_number_of_steps(monkeypatch):
    monkeypatch.setattr("sdekit._noise.white._BLOCK", 1 << 7)

    def peak(steps):
        tracemalloc.start()
        for _ in integrate(
            GBM,
            torch.ones(2, 1),
            uniform(0.0, 1.0, steps),
            solver=EulerMaruyama(),
            noise=WhiteNoise(0),
        ):
            pass
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    peak(10)
    # The grid itself: one Python float a step, and its place in a list. Other threads may allocate
    # during one solve, but hardly during each of three.
    few = peak(400)
    assert any(peak(4000) < few + 4000 * 64 for _ in range(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": "gbm"}, "the equation must be SDE"),
        ({"solver": "euler"}, "solver must be an object such as EulerMaruyama"),
        ({"solver": EulerMaruyama}, "not the class EulerMaruyama"),
        ({"noise": 0}, "noise must be WhiteNoise"),
        ({"noise": WhiteNoise}, "not the class WhiteNoise"),
        ({"control": True}, "control must be PIDController"),
        ({"gradient": "checkpointed"}, "gradient must be Checkpointed"),
    ],
)
def test_what_is_no_equation_solver_or_noise_is_named(change, message):
    arguments = {"problem": GBM, "x0": ONE, "ts": [0.0, 1.0], "solver": EulerMaruyama()} | change
    with pytest.raises(TypeError, match=message):
        solve(**arguments)


class Tabulating(AbstractSDE):
    """dx = -x dt, or with its score, which keeps the times that it is prepared for."""

    noise_type = "none"

    def __init__(self):
        self.times = []

    def drift(self, t, x):
        return -x

    def score(self, t, x):
        return -x

    def tabulated(self, ts):
        self.times.append(list(ts))
        return self


@pytest.mark.parametrize(
    ("solver", "stages"),
    [
        (EulerMaruyama(), ()),
        (RK4(), (0.5, 1.5)),
        (sdekit.Tsit5(), ()),
        (DPMSolverSingle(3), (1 / 3, 2 / 3, 4 / 3, 5 / 3)),
        (ClockedHeun(), ()),
        (PredictorCorrector(DPMSolverSingle(2), Langevin()), (0.5, 1.5)),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_equation_is_prepared_for_the_times_of_all_stages_in_order(solver, stages, sign):
    """Of RK4, whose two inner stages are at the same time, and of single steps."""
    equation = Tabulating()
    ts = [0.0, sign * 1.0, sign * 2.0]
    solve(equation, ONE, ts, solver=solver, noise=WhiteNoise(seed=0))
    (times,) = equation.times
    if not isinstance(solver, sdekit.Tsit5):
        expected = sorted([*ts, *(sign * t for t in stages)], key=abs)
        assert times == pytest.approx(expected, abs=1e-15)
    assert times == sorted(times, reverse=sign < 0)
    assert {*ts} <= {*times}
