"""Events: zeros of ordinary equations against SciPy's, with gradients, and first passages of
stochastic ones against their laws.
"""

import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from sdekit import (
    ODE,
    RK4,
    SDE,
    SRA1,
    SRID2,
    AbstractSDE,
    AdamsMoulton,
    BrownianPath,
    Checkpointed,
    Dopri5,
    Dopri8,
    EulerMaruyama,
    Event,
    Langevin,
    NotFiniteError,
    PIDController,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseSDE,
    Tsit5,
    UnfinishedError,
    WhiteNoise,
    normal,
    solve,
    uniform,
)
from sdekit_diffusion import VPSDE

FALSE_ALARM = 1e-6
TIGHT = PIDController(1e-9, 1e-9)
TURN = ODE(lambda t, x: torch.stack([x[:, 1], -x[:, 0]], dim=1))
FIRST = Event(lambda t, x: x[:, 0], terminal=False)
# x = sin t and x = cos t.
STARTS = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)


def ball(g, h):
    """The time of a fall from h."""
    fall = ODE(lambda t, x: torch.stack([x[:, 1], -g * torch.ones_like(x[:, 0])], dim=1))
    start = torch.stack([h, torch.zeros_like(h)], dim=1)
    return fall, start


GROUND = Event(lambda t, x: x[:, 0], direction=-1)


# Ordinary equations


def coupled(y, p):
    """Two neurons with eight parameters, of which all oscillate or decay."""
    a, b, c, d, k, m, u, v = p
    return (
        -0.3 * y[0] + a * np.tanh(b * y[1] + u) + k,
        -0.2 * y[1] - c * np.tanh(d * y[0] + v) + m,
    )


def coupled_tensors(t, x):
    y = x[:, :2].unbind(1)
    a, b, c, d, k, m, u, v = x[:, 2:].unbind(1)
    first = -0.3 * y[0] + a * torch.tanh(b * y[1] + u) + k
    second = -0.2 * y[1] - c * torch.tanh(d * y[0] + v) + m
    return torch.cat([torch.stack([first, second], dim=1), torch.zeros_like(x[:, 2:])], dim=1)


def random_equations():
    """200 starts and parameters."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1, 1, 1, 1, 0.1, 0.1, 0.3, 0.3], dtype=torch.float64)
    p = torch.randn(200, 8, generator=generator, dtype=torch.float64) * spread
    p[:, :4] = 0.7 + p[:, :4].abs()
    return torch.randn(200, 2, generator=generator, dtype=torch.float64), p


@functools.cache
def zeros_of_scipy():
    """For each equation the times of all zeros, the states there and the state at 12; all
    equations are one for SciPy, which bounds the mean of their errors.
    """
    starts, p = (part.T.numpy() for part in random_equations())
    count = starts.shape[1]

    def g(t, y, i):
        return y[i] - 0.5 * y[count + i] - 0.25 * math.sin(t)

    found = solve_ivp(
        lambda t, y: np.concatenate(coupled(y.reshape(2, count), p)), (0.0, 12.0),
        starts.reshape(-1), method="DOP853", rtol=1e-12, atol=1e-12,
        events=[functools.partial(g, i=i) for i in range(count)],
    )  # fmt: skip
    every = []
    for i, (times, states) in enumerate(zip(found.t_events, found.y_events, strict=True)):
        own = [i, count + i]
        there = states[:, own] if len(states) else np.zeros((0, 2))
        every.append([torch.from_numpy(v) for v in (times, there, found.y[own, -1])])
    return every


@pytest.mark.parametrize("terminal", [True, False])
def test_zeros_of_200_random_equations_are_those_of_scipy(terminal):
    """Times of all zeros of y_0 - y_1 / 2 - sin(t) / 4 up to 12, or of the first, where a sample
    stops.
    """
    y0, p = random_equations()
    event = Event(lambda t, x: x[:, 0] - 0.5 * x[:, 1] - 0.25 * torch.sin(t), terminal=terminal)
    solution = solve(
        ODE(coupled_tensors), torch.cat([y0, p], dim=1), [0.0, 12.0], solver=Dopri5(),
        control=TIGHT, event=event,
    )  # fmt: skip
    assert (solution.status == 0).all()

    most = 0
    for i, (known, expected, end) in enumerate(zeros_of_scipy()):
        if terminal:
            end = (*expected, end)[0]
            known = known[:1]
            expected = expected[:1]
        t = solution.events.t[:, i]
        torch.testing.assert_close(t[~t.isnan()], known, rtol=0, atol=2e-7)
        x = solution.events.x[: len(known), i, :2]
        torch.testing.assert_close(x, expected, rtol=0, atol=2e-7)
        torch.testing.assert_close(solution.x[i, :2], end, rtol=0, atol=2e-7)
        most = max(most, len(known))
    assert most == (1 if terminal else len(solution.events.t))
    assert terminal or most > 4
    assert int(solution.events.count.sum()) > 100


SOLVES = {
    "RK4": (RK4(), uniform(0.0, 7.0, 200), None),
    "Dopri5": (Dopri5(), uniform(0.0, 7.0, 100), None),
    "Dopri8": (Dopri8(), uniform(0.0, 7.0, 60), None),
    "Dopri8, adaptive": (Dopri8(), [0.0, 7.0], TIGHT),
    "Tsit5, adaptive": (Tsit5(), [0.0, 7.0], TIGHT),
}


@pytest.mark.parametrize("name", SOLVES)
def test_every_zero_is_found(name):
    """Those of sin and cos up to 7, all, and of either direction."""
    solver, ts, control = SOLVES[name]
    pi = math.pi
    zeros = {0: [[pi, 2 * pi], [pi / 2, 3 * pi / 2]], -1: [[pi], [pi / 2]]}
    zeros[1] = [[2 * pi], [3 * pi / 2]]
    for direction, known in zeros.items():
        event = Event(lambda t, x: x[:, 0], direction=direction, terminal=False)
        events = solve(TURN, STARTS, ts, solver=solver, control=control, event=event).events
        assert events.t.T.numpy() == pytest.approx(np.array(known), abs=2e-7)
        assert events.x[..., 0].abs().max() < 2e-7


@pytest.mark.parametrize("control", [TIGHT, None], ids=["adaptive", "fixed"])
def test_backwards_in_time(control):
    """From the states at 7 the same zeros in the opposite order; a rise is one in this order."""
    c = math.cos(7.0)
    s = math.sin(7.0)
    x0 = torch.tensor([[s, c], [c, -s]], dtype=torch.float64)
    ts = [7.0, 0.5] if control else uniform(7.0, 0.5, 200)
    events = solve(TURN, x0, ts, solver=Dopri5(), control=control, event=FIRST).events
    known = [[2 * math.pi, math.pi], [1.5 * math.pi, 0.5 * math.pi]]
    assert events.t.T.numpy() == pytest.approx(np.array(known), abs=2e-7)
    event = Event(FIRST.function, direction=1)
    found = solve(TURN, x0, ts, solver=Dopri5(), control=control, event=event).events.t[0]
    assert found.numpy() == pytest.approx([math.pi, math.pi / 2], abs=2e-7)


@pytest.mark.parametrize("control", [TIGHT, None], ids=["adaptive", "fixed"])
def test_gradients_of_times_and_states(control):
    """Of sqrt(2 h / g), and of the speed there, sqrt(2 g h)."""
    g = torch.tensor(9.81, dtype=torch.float64, requires_grad=True)
    h = torch.tensor([10.0, 20.0], dtype=torch.float64, requires_grad=True)
    fall, start = ball(g, h)
    ts = [0.0, 9.0] if control else uniform(0.0, 9.0, 50)
    solution = solve(fall, start, ts, solver=Dopri5(), control=control, event=GROUND)
    t = torch.sqrt(2 * h / g)
    speed = torch.sqrt(2 * g * h)
    torch.testing.assert_close(solution.events.t[0], t, rtol=1e-10, atol=0)
    torch.testing.assert_close(solution.x[:, 1], -speed, rtol=1e-10, atol=0)
    for ours, known in ((solution.events.t[0], t), (-solution.x[:, 1], speed)):
        found = torch.autograd.grad(ours.sum(), (g, h), retain_graph=True)
        expected = torch.autograd.grad(known.sum(), (g, h), retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("control", [PIDController(1e-5, 1e-5), None], ids=["adaptive", "fixed"])
def test_gradients_in_float32(control):
    """As above, for 12 heights: g at its zeros is a rounding error, which was taken for a jump."""
    h = torch.linspace(10.0, 14.0, 12, requires_grad=True)
    fall, start = ball(9.81, h)
    ts = [0.0, 2.5] if control else uniform(0.0, 2.5, 20)
    solution = solve(fall, start, ts, solver=Dopri5(), control=control, event=GROUND)
    t = torch.sqrt(2 * h / 9.81)
    for ours, known in ((solution.events.t[0], t), (solution.x[:, 1], -9.81 * t)):
        (found,) = torch.autograd.grad(ours.sum(), h, retain_graph=True)
        (expected,) = torch.autograd.grad(known.sum(), h, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_gradients_where_g_is_a_small_difference_of_large_numbers():
    """x = 1e6 + v t at 1e6 + 0.3 in float64, where g is known to 1e-10: dt/dv = -t / v."""
    v = torch.tensor(1.37, dtype=torch.float64, requires_grad=True)
    x0 = torch.full((1, 1), 1e6, dtype=torch.float64)
    event = Event(lambda t, x: x[:, 0] - 1e6 - 0.3)
    line = ODE(lambda t, x: v.expand_as(x))
    t = solve(line, x0, uniform(0.0, 1.0, 100), solver=RK4(), event=event).events.t
    (slope,) = torch.autograd.grad(t.sum(), v)
    assert float(slope) == pytest.approx(-0.3 / 1.37**2, rel=1e-6)


def test_gradients_by_finite_differences():
    """Where g depends on time and a parameter of its own, and the flow is not linear."""

    def first(a):
        event = Event(lambda t, x: x[:, 0] - 0.8 + a * torch.sin(3 * t), terminal=True)
        equation = ODE(lambda t, x: torch.cos(a + x) * (1 + t))
        x0 = torch.stack([0 * a, 0.1 * a])[:, None]
        return solve(
            equation, x0, [0.0, 3.0], solver=Dopri8(), control=PIDController(1e-12, 1e-12),
            event=event,
        ).events.t[0].sum()  # fmt: skip

    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(first(a), a)
    with torch.no_grad():
        difference = (first(a + 1e-4) - first(a - 1e-4)) / 2e-4
    assert float(gradient) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("control", [TIGHT, None], ids=["adaptive", "fixed"])
def test_a_sample_that_stops_stays(control):
    """From its stop on; the others go on. Nothing is changed in place, where g is a view of x."""
    fall, start = ball(9.81, torch.tensor([10.0, 200.0], dtype=torch.float64))
    before = start.clone()
    ts = uniform(0.0, 4.0, 40)
    solution = solve(fall, start, ts, solver=Dopri5(), control=control, event=GROUND, save="all")
    assert torch.equal(start, before)
    t = ts.clone()[:, None].clamp(max=math.sqrt(20 / 9.81))
    torch.testing.assert_close(
        solution.xs[:, 0], torch.cat([10 - 0.5 * 9.81 * t**2, -9.81 * t], dim=1), rtol=0, atol=1e-6
    )
    assert float(solution.xs[-1, 1, 0]) == pytest.approx(200 - 0.5 * 9.81 * 16)
    assert solution.events.t[0].isnan().tolist() == [False, True]
    assert solution.events.count.tolist() == [1, 0]
    assert torch.equal(solution.xs[-1], solution.x)
    alone = solve(fall, start[:1], ts, solver=Dopri5(), control=control, event=GROUND, save="all")
    assert torch.equal(alone.xs[:, 0], solution.xs[:, 0])
    assert int(alone.evaluations[0]) <= int(solution.evaluations.max())


def test_a_grid_ends_when_all_have_stopped():
    calls = []
    fall, start = ball(9.81, torch.tensor([10.0], dtype=torch.float64))
    counted = ODE(lambda t, x: calls.append(1) or fall.f(t, x))
    solve(counted, start, uniform(0.0, 90.0, 900), solver=RK4(), event=GROUND)
    assert len(calls) < 80


@pytest.mark.parametrize("solver", [RK4(), Dopri8()], ids=str)
def test_evaluations_for_the_location_are_counted(solver):
    """Of the samples whose event is located; all take part in each step of a grid."""
    calls = []
    fall, start = ball(9.81, torch.tensor([10.0, 1000.0], dtype=torch.float64))
    counted = ODE(lambda t, x: calls.append(1) or fall.f(t, x))
    settings = {"ts": uniform(0.0, 9.0, 9), "solver": solver, "event": GROUND}
    alone = solve(counted, start[:1], **settings)
    assert alone.events.count.tolist() == [1]
    assert alone.evaluations.tolist() == [len(calls)]
    calls.clear()
    both = solve(counted, start, **settings)
    assert both.events.count.tolist() == [1, 0]
    stops, goes_on = both.evaluations.tolist()
    assert goes_on < stops == len(calls)


def test_zero_at_a_step():
    """g that is 0 at an end of a step is found once; at the beginning of a solve it is not."""
    line = ODE(lambda t, x: torch.ones_like(x))
    x0 = torch.tensor([[-0.5], [0.0]], dtype=torch.float64)
    event = Event(lambda t, x: x[:, 0], terminal=False)
    events = solve(line, x0, uniform(0.0, 1.0, 4), solver=RK4(), event=event).events
    assert events.count.tolist() == [1, 0]
    assert float(events.t[0, 0]) == pytest.approx(0.5)


# Stochastic equations


def passage_cdf(t, drift, std, a):
    """P(T <= t) for Brownian motion from 0 to a > 0."""
    t = np.maximum(t, 1e-12)
    root = std * np.sqrt(t)
    return stats.norm.cdf((drift * t - a) / root) + math.exp(
        2 * drift * a / std**2
    ) * stats.norm.cdf((-drift * t - a) / root)


def distance(t, drift, std, a):
    """Kolmogorov's, of the times before the end."""
    n = len(t)
    t = np.sort(t[~t.isnan()].numpy())
    exact = passage_cdf(t, drift, std, a)
    ranks = np.arange(len(t) + 1) / n
    return max(np.abs(ranks[1:] - exact).max(), np.abs(ranks[:-1] - exact).max())


@pytest.mark.parametrize("drift", [1.0, -0.3])
def test_first_passage_of_brownian_motion(drift):
    """100,000 paths with steps of .1: the inverse Gaussian law, of which sign changes on the grid
    are off by .1.
    """
    n = 100_000
    equation = SDE(lambda t, x: drift + 0 * x, lambda t, x: 0.7 + 0 * x, "additive")
    x0 = torch.zeros(n, 1, dtype=torch.float64)
    event = Event(lambda t, x: x[:, 0] - 0.8)
    solution = solve(
        equation, x0, uniform(0.0, 3.0, 30), solver=EulerMaruyama(), noise=WhiteNoise(0),
        event=event,
    )  # fmt: skip
    limit = math.sqrt(math.log(2 / FALSE_ALARM) / 2 / n)
    assert distance(solution.events.t[0], drift, 0.7, 0.8) < limit
    stopped = solution.events.count == 1
    assert (solution.x[stopped] - 0.8).abs().max() < 1e-12
    # Those that do not stop are paths that stay below: their law is reflected.
    rest = solution.x[~stopped, 0].numpy()
    assert rest.max() < 0.8


NORMAL = torch.tensor([1.0, 2.0], dtype=torch.float64)
DRIFT = torch.tensor([0.3, 0.1], dtype=torch.float64)
SIGMA = torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.4, 0.3]], dtype=torch.float64)
PLANE = Event(lambda t, x: 1.0 - x @ NORMAL)
EQUATIONS = {
    "general": (
        SDE(
            lambda t, x: DRIFT.expand_as(x),
            lambda t, x: SIGMA.expand(len(x), 2, 3),
            "general",
            noise_size=3,
        ),
        SIGMA,
    ),
    "diagonal": (
        SDE(
            lambda t, x: DRIFT.expand_as(x),
            lambda t, x: torch.tensor([0.6, 0.5], dtype=torch.float64).expand_as(x),
            "diagonal",
        ),
        torch.diag(torch.tensor([0.6, 0.5], dtype=torch.float64)),
    ),
}
GRID = {"solver": EulerMaruyama(), "ts": uniform(0.0, 8.0, 20)}
STEPS = {
    "solver": SRID2(),
    "ts": [0.0, 8.0],
    "control": PIDController(0.1, 0.1, first=0.5),
    "noise": BrownianPath(3, (0.0, 8.0)),
}
CASES = {
    "general": ("general", {**GRID, "noise": WhiteNoise(1)}),
    "on a path": ("diagonal", {**GRID, "noise": BrownianPath(2, (0.0, 8.0))}),
    "adaptive": ("diagonal", STEPS),
}


@pytest.mark.parametrize("case", CASES)
def test_first_passage_of_a_plane(case):
    """The time has its law; the state is on the plane, and along it normal, with the covariance of
    the time that has passed.
    """
    n = 20_000
    name, settings = CASES[case]
    equation, sigma = EQUATIONS[name]
    solution = solve(equation, torch.zeros(n, 2, dtype=torch.float64), event=PLANE, **settings)
    drift = float(DRIFT @ NORMAL)
    std = float((sigma.T @ NORMAL).norm())
    t = solution.events.t[0]
    limit = math.sqrt(math.log(2 / FALSE_ALARM) / 2 / n)
    assert distance(t, drift, std, 1.0) < limit
    stopped = ~t.isnan()
    x = solution.events.x[0, stopped]
    assert (1 - x @ NORMAL).abs().max() < 1e-12
    along = sigma @ (sigma.T @ NORMAL) / std**2
    covariance = sigma @ sigma.T - std**2 * torch.outer(along, along)
    rest = x - torch.outer(x @ NORMAL, along)
    rest = (rest - torch.outer(t[stopped], DRIFT - drift * along)) / t[stopped].sqrt()[:, None]
    size = covariance.diagonal().sqrt()
    count = int(stopped.sum())
    assert (rest.mean(0).abs() < 5.6 * size / math.sqrt(count)).all()
    assert rest.std(0) / size == pytest.approx(1, abs=5.6 / math.sqrt(2 * count))


def test_a_curved_surface_is_reached():
    """The state is on it to rounding; finer grids converge: the mean time of a disc's exit is
    r^2 / 2 for Brownian motion in the plane.
    """
    equation = SDE(lambda t, x: 0 * x, lambda t, x: torch.ones_like(x), "diagonal")
    disc = Event(lambda t, x: 1 - x.square().sum(1))
    n = 20_000
    x0 = torch.zeros(n, 2, dtype=torch.float64)
    means = []
    for steps in (50, 200):
        solution = solve(
            equation, x0, uniform(0.0, 5.0, steps), solver=EulerMaruyama(), noise=WhiteNoise(3),
            event=disc,
        )  # fmt: skip
        t = solution.events.t[0]
        stopped = ~t.isnan()
        assert stopped.double().mean() > 0.999
        assert (solution.events.x[0, stopped].square().sum(1) - 1).abs().max() < 1e-6
        means.append(float(t[stopped].mean()))
    assert abs(means[1] - 0.5) < 0.02 + 5.5 * 0.35 / math.sqrt(n)
    assert abs(means[1] - 0.5) < abs(means[0] - 0.5)


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_sample_does_not_know_its_batch(case):
    name, settings = CASES[case]
    equation, _ = EQUATIONS[name]
    noise = settings["noise"]
    x0 = torch.zeros(7, 2, dtype=torch.float64)
    whole = solve(equation, x0, event=PLANE, **settings)
    assert whole.events.count.sum() > 2
    index = torch.tensor([5, 0, 6])
    some = solve(equation, x0[index], event=PLANE, **{**settings, "noise": noise.rows(index)})
    assert torch.equal(some.x, whole.x[index])
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(some.events.t, whole.events.t[:, index], **exactly)
    again = solve(equation, x0, event=PLANE, **settings)
    torch.testing.assert_close(again.events.t, whole.events.t, **exactly)


class Scaled(AbstractSDE):
    """dx = k_i dt + s_i dW with a rate and a scale for each sample."""

    def __init__(self, rates, scales, noise_type="additive"):
        self.rates = rates
        self.scales = scales
        self.noise_type = noise_type

    def drift(self, t, x):
        return self.rates[:, None] + 0 * x

    def diffusion(self, t, x):
        return self.scales[:, None]

    def rows(self, index):
        return Scaled(self.rates[index], self.scales[index], self.noise_type)


LEVEL = Event(lambda t, x: 1 - x[:, 0])
RATES = torch.linspace(0.3, 3.0, 16, dtype=torch.float64).flip(0)


@pytest.mark.parametrize("control", [TIGHT, None], ids=["adaptive", "fixed"])
def test_each_sample_has_its_own_equation(control):
    """Samples that stop early leave the batch; the parameters of the others stay with them."""
    equation = Scaled(RATES, 0 * RATES, "none")
    x0 = torch.zeros(16, 1, dtype=torch.float64)
    ts = [0.0, 5.0] if control else uniform(0.0, 5.0, 50)
    settings = {"solver": Dopri5(), "control": control, "event": LEVEL}
    solution = solve(equation, x0, ts, **settings)
    torch.testing.assert_close(solution.events.t[0], 1 / RATES, rtol=1e-9, atol=0)
    for i in (0, 9, 15):
        alone = solve(equation.rows(torch.tensor([i])), x0[:1], ts, **settings)
        assert torch.equal(alone.events.t[:, 0], solution.events.t[:, i])
        if control:
            assert alone.evaluations.tolist() == [int(solution.evaluations[i])]


def test_each_stochastic_path_has_its_own_equation():
    """With scales of which the smallest make paths nearly straight."""
    scales = torch.where(torch.arange(16) % 2 == 0, 1e-3, 1.0).double()
    equation = Scaled(RATES, scales)
    x0 = torch.zeros(16, 1, dtype=torch.float64)
    settings = {"solver": SRA1(), "control": PIDController(1.0, 1.0), "event": LEVEL}
    path = BrownianPath(1, (0.0, 5.0))
    solution = solve(equation, x0, [0.0, 5.0], noise=path, **settings)
    straight = solution.events.t[0, ::2]
    torch.testing.assert_close(straight, 1 / RATES[::2], rtol=0, atol=0.03)
    for i in (1, 8, 14):
        rows = torch.tensor([i])
        alone = solve(equation.rows(rows), x0[:1], [0.0, 5.0], noise=path.rows(rows), **settings)
        torch.testing.assert_close(
            alone.events.t[:, 0], solution.events.t[:, i], rtol=0, atol=0, equal_nan=True
        )


EACH = RATES[:, None]
UP = ODE(lambda t, x: torch.ones_like(x))
NOISY = SDE(lambda t, x: torch.ones_like(x), lambda t, x: 0.5, "additive")
OWN_LEVEL = Event(lambda t, x: RATES / 3 - x[:, 0])


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize(
    ("equation", "event"),
    [
        (ODE(lambda t, x: EACH + 0 * x), LEVEL),
        (UP, OWN_LEVEL),
        (SDE(lambda t, x: torch.ones_like(x), lambda t, x: EACH + 0 * x, "additive"), LEVEL),
        (NOISY, OWN_LEVEL),
    ],
    ids=["drift", "event", "diffusion", "event of paths"],
)
def test_numbers_of_each_sample_in_plain_functions_are_explained(equation, event, adaptive):
    """A note tells that functions are called for the samples whose zeros are located."""
    noise = None if equation.noise_type == "none" else BrownianPath(1, (0.0, 5.0))
    solver = SRA1() if noise else Tsit5() if adaptive else RK4()
    settings = {"solver": solver, "noise": noise, "event": event, "throw": False}
    ts = [0.0, 5.0] if adaptive else uniform(0.0, 5.0, 50)
    control = PIDController(1.0, 1.0) if adaptive else None
    with pytest.raises((RuntimeError, ValueError)) as caught:
        solve(equation, torch.zeros(16, 1).double(), ts, control=control, **settings)
    assert ["rows(index)" in note for note in caught.value.__notes__] == [True]


def test_a_stopped_sample_is_not_solved_beyond():
    """With adaptive steps: x' = x^3 would be infinite soon after the event."""
    seen = []

    def f(t, x):
        seen.append(float(x.abs().max()))
        return x**3

    x0 = torch.linspace(0.1, 2.0, 16, dtype=torch.float64)[:, None]
    event = Event(lambda t, x: x[:, 0] - 3)
    solution = solve(ODE(f), x0, [0.0, 1.0], solver=Dopri5(), control=TIGHT, event=event)
    assert solution.events.count.sum() > 5
    assert max(seen) < 10


@pytest.mark.parametrize("kind", ["no event shape", "scalar"])
def test_shapes_of_states_and_of_noise(kind):
    """One number per sample; and one Brownian motion for three numbers."""
    n = 4000
    if kind == "scalar":
        column = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
        equation = SDE(lambda t, x: 0 * x, lambda t, x: column.expand_as(x), "scalar")
        x0 = torch.zeros(n, 3, dtype=torch.float64)
        event = Event(lambda t, x: 1 - x.sum(1))
    else:
        equation = SDE(lambda t, x: 0 * x, lambda t, x: 1.2 + 0 * x, "additive")
        x0 = torch.zeros(n, dtype=torch.float64)
        event = Event(lambda t, x: 1 - x)
        found = solve(
            ODE(lambda t, x: 1 + 0 * x), x0[:2], [0.0, 3.0], solver=Dopri5(), control=TIGHT,
            event=event,
        )  # fmt: skip
        assert found.events.t[0] == pytest.approx([1.0, 1.0])
    solution = solve(
        equation, x0, uniform(0.0, 3.0, 10), solver=EulerMaruyama(), noise=WhiteNoise(0),
        event=event,
    )  # fmt: skip
    limit = math.sqrt(math.log(2 / FALSE_ALARM) / 2 / n)
    assert distance(solution.events.t[0], 0.0, 1.2, 1.0) < limit


def test_a_diffusion_that_depends_on_time():
    """Brownian motion in the time int (1 + 4 s)^2 ds: the share that has passed by 1."""
    n = 20_000
    equation = SDE(lambda t, x: 0 * x, lambda t, x: 1 + 4 * t + 0 * x, "additive")
    solution = solve(
        equation, torch.zeros(n, 1, dtype=torch.float64), uniform(0.0, 1.0, 40), solver=SRA1(),
        noise=WhiteNoise(0), event=LEVEL,
    )  # fmt: skip
    share = float(solution.events.count.double().mean())
    exact = 2 * stats.norm.sf(1 / math.sqrt((5**3 - 1) / 12))
    assert abs(share - exact) < 5 * math.sqrt(exact * (1 - exact) / n) + 0.003


def test_a_diffusion_that_vanishes_at_the_surface():
    """Feller's x at 0: states are on the surface all the same."""
    equation = SDE(lambda t, x: 0 * x - 0.5, lambda t, x: x.clamp_min(0.0).sqrt(), "diagonal")
    event = Event(lambda t, x: x[:, 0])
    solution = solve(
        equation, torch.full((500, 1), 0.5, dtype=torch.float64), uniform(0.0, 3.0, 50),
        solver=EulerMaruyama(), noise=WhiteNoise(0), event=event,
    )  # fmt: skip
    stopped = solution.events.count == 1
    assert stopped.sum() > 400
    assert solution.x[stopped].abs().max() < 1e-8


# What else is called


@pytest.mark.parametrize("control", [TIGHT, None], ids=["adaptive", "fixed"])
def test_callbacks_see_the_stop(control):
    """The last that they see of a sample is where it stopped; a rule that looks back moves it no
    more.
    """
    fall, start = ball(9.81, torch.tensor([10.0, 200.0], dtype=torch.float64))
    seen = []
    ts = [0.0, 4.0] if control else uniform(0.0, 4.0, 64)
    solver = Dopri5() if control else AdamsMoulton(3)

    def callback(point):
        if control:
            if (point.samples == 0).any():
                seen.append(float(point.x[point.samples == 0, 0]))
                assert float(point.t1[point.samples == 0]) <= math.sqrt(20 / 9.81) + 1e-9
        else:
            seen.append(float(point.x[0, 0]))

    solution = solve(
        fall, start, ts, solver=solver, control=control, event=GROUND, callback=callback
    )
    assert seen[-1] == pytest.approx(0.0, abs=1e-6)
    assert min(seen) > -1e-6
    assert float(solution.x[0, 0]) == pytest.approx(0.0, abs=1e-6)


def test_inference_mode():
    equation, _ = EQUATIONS["diagonal"]
    fall, start = ball(9.81, torch.tensor([10.0], dtype=torch.float64))
    with torch.inference_mode():
        x0 = torch.zeros(50, 2, dtype=torch.float64)
        stochastic = solve(equation, x0, **GRID, noise=WhiteNoise(1), event=PLANE)
        t = solve(fall, start, [0.0, 9.0], solver=Dopri5(), control=TIGHT, event=GROUND).events.t
    plain = solve(equation, torch.zeros(50, 2).double(), **GRID, noise=WhiteNoise(1), event=PLANE)
    torch.testing.assert_close(stochastic.events.t, plain.events.t, rtol=0, atol=0, equal_nan=True)
    assert float(t) == pytest.approx(math.sqrt(20 / 9.81))


@pytest.mark.parametrize("control", [TIGHT, None], ids=["adaptive", "fixed"])
def test_states_that_are_not_finite_are_named(control):
    """x' = x^2 from 1 stops at 5; from .4, where the event is away by then, it becomes infinite."""
    x0 = torch.tensor([[1.0], [0.4]], dtype=torch.float64)
    event = Event(lambda t, x: torch.where(t < 1.5, 5 - x[:, 0], 1 + 0 * x[:, 0]))
    equation = ODE(lambda t, x: x**2)
    ts = [0.0, 2.6] if control else uniform(0.0, 2.6, 300)
    solver = Dopri5() if control else RK4()
    kind = UnfinishedError if control else NotFiniteError
    with pytest.raises(kind) as caught:
        solve(equation, x0, ts, solver=solver, control=control, event=event)
    if control:
        solution = caught.value.solution
        assert solution.events.t[0, 0] == pytest.approx(0.8)
        assert solution.status[0] == 0
        assert solution.status[1] != 0
    else:
        assert caught.value.samples == [1]


def test_a_state_that_is_not_finite_is_no_event():
    """Also where all samples would have stopped."""
    equation = ODE(lambda t, x: x**2 + (3 - x).sqrt())
    event = Event(lambda t, x: x[:, 0] - 50)
    settings = {"ts": uniform(0.0, 2.3, 20), "solver": RK4(), "event": event}
    with pytest.raises(NotFiniteError):
        solve(equation, torch.ones(1, 1).double(), **settings)
    found = solve(equation, torch.ones(1, 1).double(), throw=False, **settings)
    assert found.events.count.tolist() == [0]


def test_the_zero_of_a_sample_does_not_depend_on_others():
    """Some zeros are found sooner than others, which go on."""
    rates = torch.linspace(0.3, 3.0, 40, dtype=torch.float64)
    powers = torch.linspace(1.0, 9.0, 40, dtype=torch.float64)

    def found(rows):
        """The second coordinate is the power in g, the third the rate."""
        equation = ODE(
            lambda t, x: torch.stack([x[:, 2] * torch.cos(x[:, 0]), *[0 * x[:, 0]] * 2], 1)
        )
        event = Event(lambda t, x: (x[:, 0] + 0.5) ** x[:, 1] - 0.7 ** x[:, 1])
        x0 = torch.stack([0 * powers, powers, rates], dim=1)[rows]
        return solve(equation, x0, uniform(0.0, 3.0, 7), solver=RK4(), event=event).events.t[0]

    whole = found(torch.arange(40))
    assert whole.isfinite().all()
    for row in range(40):
        assert torch.equal(found(torch.tensor([row])), whole[row : row + 1])


@pytest.mark.parametrize("noise_type", ["additive", "diagonal"])
def test_the_variance_within_a_step_is_that_at_its_nearer_end(noise_type):
    """The path goes from 1 to 0.1 without noise, where it has some: it has passed zero before with
    the probability e^{-2 0.1 / 0.81}; 4,000 samples, five standard errors.
    """
    n = 4000
    diffusions = {"additive": lambda t, x: 0.9 * t, "diagonal": lambda t, x: 1 - x}
    equation = SDE(lambda t, x: -0.9 + 0 * x, diffusions[noise_type], noise_type)
    x0 = torch.ones(n, 1, dtype=torch.float64)
    event = Event(lambda t, x: x[:, 0])
    noise = WhiteNoise(2)
    found = solve(equation, x0, [0.0, 1.0], solver=EulerMaruyama(), noise=noise, event=event)
    p = math.exp(-2 * 0.1 / 0.81)
    share = float(found.events.count.double().mean())
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_events_under_torch_func():
    """In forward mode t = ln(1.2) / a has its derivative; the others are refused."""

    def zero(a, located=True):
        event = Event(lambda t, x: x[:, 0] - 1.2, located=located)
        equation = ODE(lambda t, x: a * x)
        ts = uniform(0.0, 1.0, 20)
        return solve(equation, torch.ones(1, 1).double(), ts, solver=RK4(), event=event).events.t

    a = torch.tensor(0.5, dtype=torch.float64)
    derivative = torch.func.jacfwd(zero)(a)
    assert float(derivative) == pytest.approx(-math.log(1.2) / 0.25, rel=1e-6)
    with pytest.raises(RuntimeError, match="has derivatives by"):
        torch.func.jacrev(zero)(a)
    for located in (True, False):
        with pytest.raises(RuntimeError, match="an event reads the sign of each sample, which"):
            torch.func.vmap(functools.partial(zero, located=located))(torch.stack([a, 2 * a]))


def test_second_derivatives():
    """Of t = sqrt(2 h / g): d/dh (h dt/dh) = dt/dh / 2."""
    h = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    fall, start = ball(9.81, h)
    t = solve(fall, start, [0.0, 9.0], solver=Dopri5(), control=TIGHT, event=GROUND).events.t
    (first,) = torch.autograd.grad(t.sum(), h, create_graph=True)
    (second,) = torch.autograd.grad((h * first).sum(), h)
    torch.testing.assert_close(second, 0.5 * first.detach(), rtol=1e-8, atol=0)


def test_a_function_that_jumps():
    """Located by its sign; it has no derivative, and no time far outside."""
    line = ODE(lambda t, x: torch.ones_like(x))
    x0 = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    for function in (
        lambda t, x: torch.where(x[:, 0] > 0.55, 1.0, -1.0) + 1e-3 * x[:, 0],
        lambda t, x: (x[:, 0] > 0.55).double() - 0.5,
    ):
        found = solve(line, x0, uniform(0.0, 1.0, 4), solver=RK4(), event=Event(function))
        assert float(found.events.t.detach()) == pytest.approx(0.55, abs=1e-8)


@pytest.mark.parametrize("control", [None, TIGHT], ids=["grid", "adaptive"])
def test_a_function_that_jumps_and_requires_a_gradient(control):
    line = ODE(lambda t, x: torch.ones_like(x))
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    p = torch.tensor(0.55, dtype=torch.float64, requires_grad=True)
    solver = RK4() if control is None else Dopri5()
    ts = uniform(0.0, 1.0, 4)
    for function in (
        lambda t, x: torch.where(x[:, 0] < 0.55, p, -p),
        lambda t, x: torch.where(x[:, 0] < 0.55, -p, p) + 2 * x[:, 0] - 1.1,
        lambda t, x: x.detach()[:, 0] - p,
    ):
        found = solve(line, x0, ts, solver=solver, event=Event(function), control=control)
        assert float(found.events.t.detach()) == pytest.approx(0.55, abs=1e-8)
        if found.events.t.requires_grad:
            (slope,) = torch.autograd.grad(found.events.t.sum(), p, allow_unused=True)
            assert slope is None or float(slope) == 0


def test_a_function_that_stays_at_zero():
    """One zero, not one a step."""
    line = ODE(lambda t, x: torch.ones_like(x))
    event = Event(lambda t, x: (0.55 - x[:, 0]).clamp_min(0.0), terminal=False)
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    events = solve(line, x0, uniform(0.0, 1.0, 10), solver=RK4(), event=event).events
    assert events.count.tolist() == [1]


# Arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"event": lambda t, x: x[:, 0]}, TypeError, r"event must be an Event\(g\)"),
        ({"event": Event(lambda t, x: x)}, ValueError, r"returned shape \(2, 2\) .*return \(2,\)"),
        ({"event": Event(lambda t, x: 1.0)}, TypeError, "returned float"),
        ({"gradient": Checkpointed()}, ValueError, "cannot be combined"),
        (
            {"event": Event(PLANE.function, terminal=False)},
            ValueError,
            "does so infinitely often",
        ),
        ({"event": Event(lambda t, x: (1 - x @ NORMAL).detach())}, ValueError, "no gradient in x"),
        ({"event": Event(PLANE.function, direction=1)}, ValueError, "in both directions"),
        ({"event": Event(lambda t, x: (0.2 - x[:, 0]).sqrt())}, ValueError, "is NaN at t = "),
        (
            {
                "solver": SRID2(),
                "ts": [0.0, 0.5, 1.0],
                "control": TIGHT,
                "save": "all",
                "noise": BrownianPath(0, (0.0, 1.0)),
            },
            ValueError,
            "cannot be saved",
        ),
    ],
)
def test_wrong_events_are_refused(change, error, message):
    equation, _ = EQUATIONS["diagonal"]
    x0 = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(error, match=message):
        solve(equation, x0, **{**GRID, "event": PLANE, **change})


def test_solves_that_have_no_passages_are_refused():
    equation, _ = EQUATIONS["diagonal"]
    x0 = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="gradients do not flow through first passages"):
        solve(equation, x0, **GRID, event=PLANE)
    flow = ProbabilityFlow(VPSDE(), lambda t, x: -x)
    method = PredictorCorrector(EulerMaruyama(), Langevin())
    with pytest.raises(ValueError, match="draws noise besides that of the equation"):
        solve(flow, x0.detach(), [0.9, 0.5, 0.1], solver=method, event=PLANE)


@pytest.mark.parametrize(
    ("ts", "save"),
    [
        (uniform(0.0, 1.0, 5), [0.2, 0.3]),
        (uniform(0.0, 1.0, 5), "dense"),
        ([0.0, 1.0], "dense"),
        ([0.0, 1.0], [0.3, 0.6]),
        ([0.0, 1.0], [0.6]),
    ],
)
def test_states_within_steps_do_not_know_of_a_first_passage(ts, save):
    """So they are refused; the ends of steps know of it."""
    motion = SDE(lambda t, x: 1 + 0 * x, lambda t, x: 0.7 + 0 * x, "additive")
    level = Event(lambda t, x: x[:, 0] - 0.3)
    control = PIDController(0.1, 0.1) if len(ts) == 2 else None
    arguments = {"solver": SRA1(), "noise": BrownianPath(0), "event": level, "control": control}
    x0 = torch.zeros(500, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="states within steps of a stochastic equation cannot"):
        solve(motion, x0, ts, **arguments, save=save)
    at_ends = solve(motion, x0, ts, **arguments, save=[float(ts[0]), float(ts[-1])])
    assert float(at_ends.xs.max()) <= 0.3 + 1e-9


def test_wrong_definitions_are_refused():
    with pytest.raises(ValueError, match="direction is -1, 0 or 1, not 2"):
        Event(lambda t, x: x[:, 0], direction=2)
    with pytest.raises(TypeError, match=r"function is g\(t, x\)"):
        Event(3)
    with pytest.raises(TypeError, match=r"called as \(t, x\) here, and this one takes \(x, t\)"):
        Event(lambda x, t: x - 0.5)
    with pytest.raises(TypeError, match="terminal is True or False, not 'False'"):
        Event(lambda t, x: x[:, 0], terminal="False")


def test_single_precision_and_empty_batches():
    equation, _ = EQUATIONS["diagonal"]
    x0 = normal(0, torch.arange(5), (2,), dtype=torch.float32)
    single = SDE(lambda t, x: 0.3 + 0 * x, lambda t, x: 0.5 + 0 * x, "diagonal")
    event = Event(lambda t, x: 3 - x.sum(1))
    solution = solve(single, x0, **GRID, noise=WhiteNoise(0), event=event)
    assert solution.x.dtype == torch.float32
    assert solution.events.t.dtype == torch.float64
    nothing = solve(equation, torch.zeros(0, 2).double(), **GRID, event=PLANE)
    assert nothing.events.t.shape == (1, 0)


# Ends of steps


@pytest.mark.parametrize("control", [None, PIDController(1e-3, 1e-3)], ids=["grid", "adaptive"])
@pytest.mark.parametrize("noisy", [False, True], ids=["ordinary", "stochastic"])
def test_samples_stop_at_the_end_of_a_step_by_any_condition(control, noisy):
    """The first after which it holds; each sample goes as without the event until then, and stays
    there.
    """
    ends = []

    def watch(move):
        ends.append(move)

    f = lambda t, x: x  # noqa: E731
    equation = SDE(f, lambda t, x: 0.3 * x) if noisy else ODE(f)
    noise = BrownianPath(0, (0.0, 2.0)) if noisy else None
    x0 = torch.tensor([[1.0], [2.0], [0.1]], dtype=torch.float64)
    settings = {"solver": SRID2() if noisy else Dopri5(), "control": control, "noise": noise}
    ts = uniform(0.0, 2.0, 20)
    stop = Event(lambda t, x: torch.where(x[:, 0] > 3, -1.0, 1.0), located=False)
    plain = solve(equation, x0, ts, callback=watch, save="all", **settings)
    found = solve(equation, x0, ts, event=stop, save="all", **settings)
    for i in range(2):
        if control is None:
            j = int((plain.xs[:, i, 0] > 3).nonzero()[0])
            t, x = float(ts[j]), plain.xs[j, i]
        else:
            t, x = next(
                (float(move.t1[row]), move.x[row])
                for move in ends
                for row in (move.samples == i).nonzero().flatten()
                if move.x[row] > 3
            )
        assert float(found.events.t[0, i]) == t
        assert torch.equal(found.x[i], x)
        later = ts >= t
        assert (found.xs[later, i] == x).all()
        assert torch.equal(found.xs[~later, i], plain.xs[~later, i])
    assert found.events.count.tolist() == [1, 1, 0]
    assert torch.equal(found.xs[:, 2], plain.xs[:, 2])
    for g in (lambda t, x: x[:, 0] > 3, lambda t, x: (x[:, 0] > 3).to(x.dtype)):
        same = solve(equation, x0, ts, event=Event(g, located=False), save="all", **settings)
        assert torch.equal(same.xs, found.xs)


def test_states_within_steps_are_saved_where_samples_stop_at_their_ends():
    """Of a stochastic equation, too: no event is hidden within a step."""
    equation = SDE(lambda t, x: x, lambda t, x: 0.3 * x)
    x0 = torch.tensor([[1.0], [0.1]], dtype=torch.float64)
    settings = {"solver": EulerMaruyama(), "noise": BrownianPath(0, (0.0, 2.0))}
    stop = Event(lambda t, x: x[:, 0] - 2, located=False)
    times = [0.33, 1.72]
    plain, found = (
        solve(equation, x0, uniform(0.0, 2.0, 20), save=times, event=event, **settings)
        for event in (None, stop)
    )
    assert 0.33 < float(found.events.t[0, 0]) < 1.72
    assert torch.equal(found.xs[0], plain.xs[0])
    assert torch.equal(found.xs[1, 0], found.x[0])
    assert torch.equal(found.xs[1, 1], plain.xs[1, 1])


@pytest.mark.parametrize("at_once", [True, False])
def test_a_function_that_changes_x_is_refused(at_once):
    """And it has not changed the caller's states."""

    def function(t, x):
        return (x if at_once or float(t[0]) == 0 else x.mul_(0.9))[:, 0] - 0.5

    def leaf(t, x):
        return x.mul_(0.9)[:, 0] - 0.5

    for requires_grad in (False, True):
        x0 = torch.ones(2, 1, dtype=torch.float64, requires_grad=requires_grad)
        with pytest.raises(RuntimeError, match=r"an event's g\(t, x\) changes its input in place"):
            solve(
                ODE(lambda t, x: -x), x0, uniform(0.0, 1.0, 10), solver=RK4(),
                event=Event(leaf if at_once else function),
            )  # fmt: skip
        assert torch.equal(x0, torch.ones(2, 1))


@pytest.mark.parametrize("large", [math.inf, -math.inf])
@pytest.mark.parametrize("located", [True, False])
def test_a_function_that_is_infinite_on_one_side(large, located):
    """At the first state, or only afterwards."""
    line = ODE(lambda t, x: torch.ones_like(x))
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    for before, after in ((large, -math.copysign(1.0, large)), (-math.copysign(1.0, large), large)):
        event = Event(lambda t, x, a=before, b=after: torch.where(x[:, 0] < 0.55, a, b).to(x),
                      located=located)  # fmt: skip
        found = solve(line, x0, uniform(0.0, 1.0, 10), solver=RK4(), event=event)
        assert float(found.events.t) == pytest.approx(0.55 if located else 0.6, abs=1e-8)


def test_a_function_that_is_nan_at_the_first_state_is_refused():
    """As one that becomes NaN; the first state does not count as a zero."""
    event = Event(lambda t, x: (x[:, 0] - 0.1).log() + 1)
    line = ODE(lambda t, x: torch.ones_like(x))
    x0 = torch.tensor([[0.2], [0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="is NaN at t = 0 in 1 samples, the first in row 1"):
        solve(line, x0, uniform(0.0, 1.0, 10), solver=RK4(), event=event)


def test_located_is_true_or_false():
    with pytest.raises(TypeError, match="located is True or False, not 'no'"):
        Event(lambda t, x: x[:, 0], located="no")
    nan = Event(lambda t, x: x[:, 0] * math.nan, located=False)
    with pytest.raises(ValueError, match="an event's g"):
        solve(ODE(lambda t, x: x), torch.ones(1, 1), [0.0, 1.0], solver=RK4(), event=nan)


def test_ends_of_steps_with_more_noise_than_that_of_the_equation():
    equation = ReverseSDE(VPSDE(), lambda t, x: -x)
    event = Event(lambda t, x: x[:, 0] - 0.5, located=False)
    solver = PredictorCorrector(EulerMaruyama(), Langevin())
    x0 = torch.zeros(50, 1, dtype=torch.float64)
    found = solve(equation, x0, uniform(1.0, 0.1, 20), solver=solver, noise=WhiteNoise(0),
                  event=event)  # fmt: skip
    stopped = found.events.count == 1
    assert 5 < int(stopped.sum()) < 50
    assert (found.x[stopped] >= 0.5).all()
