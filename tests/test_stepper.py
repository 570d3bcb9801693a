"""Solves whose loop is the caller's: bit-identical to the points of `integrate` and of `sample`,
and states that are changed between two steps.
"""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from peers import MIXTURE

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion._sampling.on_grid import AbstractGridMethod

ODE = sdekit.ODE(lambda t, x: -torch.sin(x) * t)
SDE = sdekit.SDE(lambda t, x: -torch.sin(x), lambda t, x: 0.3 + 0.1 * torch.cos(x), "diagonal")
X = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(3, 2)


class Nothing(sdekit.AbstractCorrector):
    """A corrector that leaves the state."""

    normals = 0

    def correct(self, problem, t0, t1, x, z):
        return x


GRIDDED = [name for name, method in sd.METHODS.items() if isinstance(method, AbstractGridMethod)]


@pytest.mark.parametrize(
    "solver", [sdekit.RK4(), sdekit.AdamsMoulton(4), sdekit.AdamsBashforth(3)], ids=str
)
def test_the_points_are_those_of_integrate(solver):
    ts = sdekit.uniform(0.0, 1.0, 9)
    at = sdekit.stepper(ODE, X, ts, solver=solver)
    for point in sdekit.integrate(ODE, X, ts, solver=solver):
        assert (at.step, at.t) == (point.step, point.t)
        assert at.remaining == 9 - point.step
        assert torch.equal(at.x, point.x)
        at = at.next() if at.remaining else at
    solution = sdekit.solve(ODE, X, ts, solver=solver)
    assert at.evaluations == int(solution.evaluations[0])


@pytest.mark.parametrize(
    "noise", [sdekit.WhiteNoise(3), sdekit.BrownianPath(3, (0.0, 1.0))], ids=["white", "path"]
)
def test_the_noise_is_that_of_a_solve(noise):
    ts = sdekit.uniform(0.0, 1.0, 40)
    at = sdekit.stepper(SDE, X, ts, solver=sdekit.SRID2(), noise=noise)
    while at.remaining:
        at = at.next()
    assert torch.equal(at.x, sdekit.solve(SDE, X, ts, solver=sdekit.SRID2(), noise=noise).x)


class Careless(sdekit.AbstractSolver):
    """Euler's step, which changes what the drift returned."""

    order = {"none": sdekit.Order(1, 1)}
    kept: ClassVar = []

    def step(self, problem, t0, t1, x, noise, state):
        f = problem.drift(t0, x)
        end = x + (t1 - t0) * f
        self.kept.append(f.mul_(0))
        return sdekit.Step(end)


def test_what_a_drift_returned_in_the_last_step_is_not_overwritten():
    at = sdekit.stepper(ODE, X, [0.0, 1.0], solver=Careless())
    with pytest.raises(RuntimeError, match="the drift"):
        at.next()


def test_a_point_may_be_left_twice():
    at = sdekit.stepper(ODE, X, [0.0, 0.5, 1.0], solver=sdekit.RK4()).next()
    assert torch.equal(at.next().x, at.next().x)
    assert at.step == 1


@pytest.mark.parametrize("solver", [sdekit.RK4(), sdekit.AdamsMoulton(3)], ids=str)
def test_another_state_takes_the_place_of_one(solver):
    """Where the drift depends on the time alone, a state that is larger stays so, also if the rule
    corrects the one before.
    """
    timed = sdekit.ODE(lambda t, x: torch.full_like(x, math.cos(3 * t)))
    at = sdekit.stepper(timed, X, sdekit.uniform(0.0, 1.0, 5), solver=solver)
    for _ in range(3):
        at = at.next()
    moved = at.with_x(at.x + 7.0)
    assert torch.equal(moved.x, at.x + 7.0)
    torch.testing.assert_close(moved.next().x, at.next().x + 7.0, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"one of shape \(2, 2\) and torch.float64 cannot take"):
        at.with_x(X[:2])
    with pytest.raises(ValueError, match=r"torch.float32 cannot take its place"):
        at.with_x(at.x.float())
    with pytest.raises(TypeError, match=r"the state is a tensor, such as x\.clone\(\), not \[1"):
        at.with_x([1.0])


@pytest.mark.parametrize(
    "solver",
    [
        sdekit.RK4(),
        sdekit.Dopri5(),
        sdekit.Tsit5(),
        sdekit.ReversibleHeun(),
        sdekit.ImplicitPlaten(),
        sdekit.Rodas4(),
        sdekit.PredictorCorrector(sdekit.Tsit5(), Nothing()),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_step_from_another_state_is_one_from_there(solver):
    """Solvers that remember the drift took that of the state before."""
    at = sdekit.stepper(ODE, X, [0.0, 0.25, 0.5], solver=solver).next()
    found = at.with_x(100 * at.x).with_x(7.0 - at.x).next()
    alone = sdekit.stepper(ODE, 7.0 - at.x, [0.25, 0.5], solver=solver)
    torch.testing.assert_close(found.x, alone.next().x, rtol=0, atol=1e-13)
    assert not found.replaced


@pytest.mark.parametrize("weights", [(1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12)], ids=len)
def test_a_corrected_step_from_another_state_takes_the_drift_there(weights):
    """It was that at the state before; the earlier values are kept."""
    growth = sdekit.ODE(lambda t, x: x)
    solver = sdekit.AdamsMoulton(len(weights), self_starting=False)
    at = sdekit.stepper(growth, X, sdekit.uniform(0.0, 1.0, 5), solver=solver).next().next().next()
    y = at.x + 100.0
    values = (y, *at.memory[1 : len(weights)])
    predicted = y + 0.2 * sum(w * f for w, f in zip(weights, values, strict=True))
    moved = at.with_x(y).next()
    torch.testing.assert_close(moved.inner, predicted, rtol=1e-14, atol=0)
    assert moved.evaluations == at.evaluations == 4 + 2
    if len(weights) == 1:
        torch.testing.assert_close(moved.x, y + 0.1 * (y + predicted), rtol=1e-14, atol=0)


def test_a_state_that_is_not_finite_may_be_repaired():
    """It is what takes its place that goes on, whatever the correction of the rule."""
    for solver in (sdekit.RK4(), sdekit.AdamsMoulton(3)):
        at = sdekit.stepper(ODE, X, sdekit.uniform(0.0, 1.0, 5), solver=solver).next().next()
        broken = replace(at, x=at.x * math.nan)
        repaired = broken.with_x(torch.ones_like(X))
        assert torch.equal(repaired.x, torch.ones_like(X))
        assert repaired.next().x.isfinite().all()
    large = sdekit.stepper(ODE, 1e8 * X.float(), [0.0, 1e-9], solver=sdekit.RK4())
    torch.testing.assert_close(large.with_x(0.3 * X.float()).next().x, 0.3 * X.float())


def test_noise_is_drawn_in_blocks_and_for_equations_that_have_some_only():
    noise = sdekit.BrownianPath(0, (0.0, 0.5))  # too short, and not read
    at = sdekit.stepper(ODE, X, [0.0, 1.0, 2.0], solver=sdekit.RK4(), noise=noise)
    assert at.next().next().remaining == 0


def test_what_a_stepper_refuses():
    at = sdekit.stepper(ODE, X, [0.0, 1.0], solver=sdekit.RK4()).next()
    with pytest.raises(ValueError, match="the grid ends at t = 1, after 1 steps"):
        at.next()
    wild = sdekit.ODE(lambda t, x: x * math.inf if t > 0.4 else x)
    at = sdekit.stepper(wild, X, sdekit.uniform(0.0, 1.0, 5), solver=sdekit.AdamsBashforth(1))
    with pytest.raises(sdekit.NotFiniteError, match="step 4"):
        at.next().next().next().next()
    with pytest.raises(sdekit.NotFiniteError, match="the initial state x0 is not finite in 3 of"):
        sdekit.stepper(ODE, X * math.nan, [0.0, 1.0], solver=sdekit.RK4())
    at = sdekit.stepper(ODE, X, [0.0, 1.0], solver=sdekit.RK4())
    at.x.mul_(0)
    with pytest.raises(RuntimeError, match=r"x was changed in place; .* by with_x"):
        at.next()

    kept = torch.empty_like(X)
    buffered = sdekit.ODE(lambda t, x: torch.mul(x, -1.0, out=kept))
    at = sdekit.stepper(buffered, X, [0.0, 0.5, 1.0], solver=sdekit.AdamsBashforth(2)).next()
    with pytest.raises(RuntimeError, match="the drift"):
        at.next()


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("name", GRIDDED)
def test_the_loop_ends_in_the_samples(name):
    settings = {"sde": "vp", "method": name, "steps": 24, "seed": 1}
    at = sd.stepper(MIXTURE, 3, **settings)
    states = []
    samples = sd.sample(MIXTURE, 3, callback=states.append, **settings)
    for point in states:
        assert at.step == point.step
        assert at.t == point.t
        assert torch.equal(at.x, point.x)
        assert at.sigma == pytest.approx(float(sd.VPSDE().sigma(at.t) / sd.VPSDE().alpha(at.t)))
        at = at.next() if at.remaining else at
    assert torch.equal(at.samples, samples)
    assert torch.equal(at.denoised(), sd.sample(MIXTURE, 3, denoise=True, **settings))


@pytest.mark.parametrize("name", ["ddim", "default", "sde", "dpmpp_2m"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_after_noise_levels_that_end_in_0_the_samples_are_denoised(name, dtype):
    sigmas = [9.0, 3.0, 1.0, 0.3, 0.1, 0.0]
    settings = {"sde": "ve", "method": name, "grid": sigmas, "seed": 2, "dtype": dtype}
    at = sd.stepper(MIXTURE, 3, **settings)
    while at.remaining:
        at = at.next()
    assert torch.equal(at.samples, sd.sample(MIXTURE, 3, **settings))


def test_failures_are_told_at_the_step_and_in_the_diffusions_time():
    """As by `sample`."""
    net = lambda x, t: x * torch.where(t < 0.5, math.nan, 1.0)[:, None]  # noqa: E731
    model = sd.ScoreModel(net, "vp", "data", shape=(2,), data_std=1.0)
    settings = {"method": "ddim", "steps": 10, "seed": 0, "grid": "time"}
    with pytest.raises(sdekit.NotFiniteError) as whole:
        sd.sample(model, 3, **settings)
    at = sd.stepper(model, 3, **settings)
    for _ in range(whole.value.step - 1):
        at = at.next()
    with pytest.raises(sdekit.NotFiniteError) as single:
        at.next()
    assert str(single.value) == str(whole.value)
    assert "at t = 0." in str(whole.value)


def test_conditions_go_with_their_samples():
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=8, classes=3)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
    given = model.given(label=torch.tensor([0, 2, 1]))
    at = sd.stepper(given, 3, steps=4, seed=0)
    while at.remaining:
        at = at.next()
    assert torch.equal(at.samples, sd.sample(given, 3, steps=4, seed=0))
    assert repr(at).startswith("Stepper(step=4, remaining=0, sigma=")
    with pytest.raises(ValueError, match=r"the solve ends at t = .*, after 4 steps"):
        at.next()


def test_states_of_another_shape_are_refused_also_where_they_would_broadcast():
    at = sd.stepper(MIXTURE, 3, sde="vp", steps=4, seed=0)
    for wrong in (at.x[:, :1], at.x[:2], at.x.float()):
        with pytest.raises(ValueError, match="cannot take its place"):
            at.with_x(wrong)


def test_a_network_is_in_evaluation_mode_within_steps_only():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    model = sd.ScoreModel(Net(), "vp", "data", shape=(2,), data_std=1.0).train()
    at = sd.stepper(model, 5, method="ddim", steps=4, seed=0)
    while at.remaining:
        assert model.training
        at = at.next()
    x = at.samples
    assert not x.requires_grad
    assert torch.equal(x, sd.sample(model, 5, method="ddim", steps=4, seed=0))
    assert at.evaluations == 4


def test_states_of_samples_may_be_changed():
    """By DDIM for data that are 0: x_t / sigma_t stays."""
    zero = sd.ScoreModel(lambda x, t: 0 * x, "ve", "data", shape=(2,), data_std=1.0)
    at = sd.stepper(zero, 3, method="ddim", steps=5, seed=0).next()
    moved = at.with_x(2 * at.x)
    torch.testing.assert_close(moved.x, 2 * at.x)
    torch.testing.assert_close(moved.next().x, 2 * at.next().x)


def test_one_step_between_two_levels():
    """DDIM's, from data with noise, written down."""
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    s = MIXTURE.data_std
    noisy = sd.Noised(x, level=2.0 / s, add_noise=False)
    settings = {"sde": "ve", "method": "ddim", "dtype": torch.float64}
    at = sd.stepper(MIXTURE, start=noisy, grid=[2.0, 0.7], **settings)
    assert at.remaining == 1
    assert at.sigma == pytest.approx(2.0, rel=1e-12)
    d = MIXTURE.denoise(sd.VESDE().time(-math.log(2.0)), x, sd.VESDE())
    torch.testing.assert_close(at.denoised(), d, rtol=1e-9, atol=1e-9)
    wanted = d + 0.35 * (x - d)
    torch.testing.assert_close(at.next().samples, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ode", "ncsnv2"])
def test_methods_without_a_grid_of_steps_are_refused(name):
    with pytest.raises(TypeError, match="does not step along a grid; choose a method that does"):
        sd.stepper(MIXTURE, 2, sde="vp", method=name)


def test_threads_may_step_from_one_point():
    """Each reads noise that another may just have drawn, and drops it when it draws more."""
    sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 0.1 * x)
    noise = sdekit.WhiteNoise(0)
    ts = sdekit.uniform(0.0, 1.0, 60)
    first = sdekit.stepper(sde, torch.ones(4, 1), ts, solver=sdekit.EulerMaruyama(), noise=noise)
    expected = sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.EulerMaruyama(), noise=noise).x

    def walked(_):
        at = first
        while at.remaining:
            at = at.next()
        return at.x

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(walked, range(64)))
    finally:
        sys.setswitchinterval(interval)
    assert all(torch.equal(x, expected) for x in found)


@pytest.mark.parametrize("name", ["batch_size", "denoise", "save", "wrong"])
def test_other_options_are_refused(name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'.* sde, method,"):
        sd.stepper(MIXTURE, 2, sde="vp", **{name: 1})
