"""States between the steps of a solve."""

import itertools
import math
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from sdekit import (
    ODE,
    RK4,
    SDE,
    SKROCK,
    SRA1,
    AbstractRosenbrock,
    AbstractSolver,
    AdamsBashforth,
    AdamsMoulton,
    BrownianPath,
    Checkpointed,
    Dopri5,
    Dopri8,
    EulerMaruyama,
    Event,
    ExponentialEuler,
    ExponentialHeun,
    Heun,
    ImplicitEulerMaruyama,
    ImplicitPlaten,
    PIDController,
    PiecewiseClocked,
    Rodas4,
    Rodas5P,
    ShARK,
    Solution,
    Tsit5,
    UniPC,
    WhiteNoise,
    interop,
    solve,
    uniform,
)

F64 = torch.float64
TIGHT = PIDController(1e-9, 1e-9)
X0 = torch.tensor([[1.0], [0.5], [-2.0]], dtype=F64)


def f(t, x):
    return -x * torch.cos(torch.as_tensor(t, dtype=F64).reshape(-1, 1))


def exact(t, x0=X0, start=0.0):
    return x0 * math.exp(math.sin(start) - math.sin(t))


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        *[(RK4(), 4), (Heun(), 2), (Dopri5(), 4.5), (Tsit5(), 4.5), (Rodas4(), 4)],
        *[(Rodas5P(), 5), (Dopri8(), 7)],
    ],
    ids=str,
)
@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])
def test_order_between_the_steps(solver, order, ends):
    """The largest error over the whole interval, of grids with 8 to 32 steps (4 to 16 of order
    eight); a middle of pairs has order four, with a small factor before that of the end.
    """
    steps = np.array([4, 8, 16] if order == 7 else [8, 16, 32])
    times = torch.linspace(*ends, 101, dtype=F64)
    errors = []
    for n in steps:
        grid = uniform(*ends, int(n))
        solution = solve(ODE(f), X0, grid, solver=solver, save="dense")
        found = solution.at(times)
        expected = torch.stack([exact(t, start=ends[0]) for t in times.tolist()])
        errors.append(float((found - expected).abs().max()))
        if n == steps[0]:
            saved = solve(ODE(f), X0, grid, solver=solver, save=times)
            assert torch.equal(saved.ts, times)
            torch.testing.assert_close(saved.xs, found, rtol=0, atol=1e-14)
            assert torch.equal(saved.x, solution.x)
    slope = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert slope > order - 0.35


@pytest.mark.parametrize("solver", [Dopri5(), Dopri8(), Rodas4(), Rodas5P()], ids=str)
def test_adaptive_steps_of_each_sample(solver):
    """Samples with steps of their own, each as alone; in both directions."""
    x0 = X0 * torch.tensor([[1.0], [30.0], [1e4]], dtype=F64)
    times = torch.tensor([1.9, 1.2, 0.33, 0.0], dtype=F64)
    control = PIDController(1e-8, 1e-8) if isinstance(solver, AbstractRosenbrock) else TIGHT
    settings = {"solver": solver, "control": control}
    for ends in ((0.0, 2.0), (2.0, 0.0)):
        those = times.flip(0) if ends[0] == 0 else times
        solution = solve(ODE(f), x0, ends, save="dense", **settings)
        alone = solve(ODE(f), x0[1:2], ends, save="dense", **settings)
        for t in those.tolist():
            found = solution.at(t)
            torch.testing.assert_close(found, exact(t, x0, ends[0]), rtol=1e-6, atol=1e-9)
            assert torch.equal(alone.at(t), found[1:2])
        saved = solve(ODE(f), x0, ends, save=those, **settings)
        assert torch.equal(saved.ts, those)
        torch.testing.assert_close(saved.xs, solution.at(those), rtol=1e-12, atol=0)
        assert torch.equal(solution.at(torch.as_tensor(those).tolist()), solution.at(those))


def bridges(solver, x0=None, **arguments):
    """A Brownian motion and its path."""
    path = BrownianPath(5, (0.0, 1.0))
    motion = SDE(lambda t, x: 0 * x, lambda t, x: 1.0, "additive")
    x0 = torch.zeros(4, 2, dtype=F64) if x0 is None else x0
    return path, solve(motion, x0, solver=solver, noise=path, **arguments)


@pytest.mark.parametrize(
    ("solver", "ts", "control"),
    [
        (EulerMaruyama(), [0.0, 0.25, 1.0], None),
        (SRA1(), [0.0, 1.0], PIDController(1e-1, 1e-1)),
        (EulerMaruyama(), [1.0, 0.25, 0.0], None),
    ],
)
@pytest.mark.parametrize("save", ["dense", "times"])
def test_stochastic_states_are_on_the_path(solver, ts, control, save):
    times = sorted([0.0, 0.125, 0.3125, 1.0], reverse=ts[0] > ts[-1])
    how = "dense" if save == "dense" else times
    path, solution = bridges(solver, ts=ts, control=control, save=how)
    xs = solution.at(torch.tensor(times, dtype=F64)) if save == "dense" else solution.xs
    increments = path.increments(times, torch.zeros(4, 2, dtype=F64), (2,))
    expected = torch.stack([increment.w for increment in increments]).cumsum(0)
    torch.testing.assert_close(xs[1:], expected, rtol=0, atol=1e-12)
    assert torch.equal(xs[0], torch.zeros(4, 2, dtype=F64))


@pytest.mark.parametrize("control", [None, PIDController(1e-2, 1e-2)], ids=["grid", "adaptive"])
def test_chosen_times_between_the_ticks_of_a_path_are_refused(control):
    """All of them were the same tick, where the path has no increment."""
    solved = partial(
        solve,
        SDE(lambda t, x: 0 * x, lambda t, x: 1.0, "additive"),
        torch.zeros(1, 1),
        solver=ShARK(),
        control=control,
    )
    times = [0.5, 0.5 + 2.0**-22, 0.5 + 2.0**-21]
    grid = uniform(0.0, 1.0, 8)
    with pytest.raises(ValueError, match="give BrownianPath a larger depth"):
        solved(ts=grid, noise=BrownianPath(0), save=times)
    if control is not None:
        with pytest.raises(ValueError, match="give BrownianPath a larger depth"):
            solved(ts=[0.0, *times, 1.0], noise=BrownianPath(0), save="all")
        assert solved(ts=[0.0, *times, 1.0], noise=BrownianPath(0)).xs is None
    xs = solved(ts=grid, noise=BrownianPath(0, depth=24), save=times).xs
    assert bool(xs.diff(dim=0).all())


def test_white_noise_has_states_at_chosen_times_with_the_variance_of_the_solution():
    """20,000 samples; five standard errors, a false alarm of 2e-6 in all."""
    n = 20_000
    motion = SDE(lambda t, x: 0 * x, lambda t, x: 1.0, "additive")
    arguments = {"solver": EulerMaruyama(), "noise": WhiteNoise(1), "save": [0.2, 0.3, 0.7]}
    xs = solve(motion, torch.zeros(n, 1, dtype=F64), [0.0, 0.5, 1.0], **arguments).xs[..., 0]
    covariance = xs @ xs.T / n
    t = torch.tensor([0.2, 0.3, 0.7], dtype=F64)
    law = torch.minimum(t[:, None], t)
    error = ((law**2 + t[:, None] * t) / n).sqrt()
    assert ((covariance - law).abs() < 5 * error).all()
    with pytest.raises(TypeError, match="not one path that can be read at any times"):
        solve(motion, X0, [0.0, 1.0], solver=EulerMaruyama(), noise=WhiteNoise(0), save="dense")


@pytest.mark.parametrize("control", [None, TIGHT], ids=["grid", "adaptive"])
@pytest.mark.parametrize("save", ["dense", "times"])
def test_a_stopped_sample_stays_where_it_is(control, save):
    fall = ODE(lambda t, x: torch.stack([x[:, 1], 0 * x[:, 1] - 1.0], dim=1))
    ground = Event(lambda t, x: x[:, 0], direction=-1)
    x0 = torch.tensor([[0.5, 0.0], [8.0, 0.0]], dtype=F64)
    times = [0.3, 1.5, 2.0]
    solution = solve(
        fall, x0, [0.0, 0.7, 2.0] if control is None else [0.0, 2.0], solver=Dopri5(),
        control=control, event=ground, save="dense" if save == "dense" else times,
    )  # fmt: skip
    xs = solution.at(torch.tensor(times, dtype=F64)) if save == "dense" else solution.xs
    expected = [[0.455, -0.3], [0.0, -1.0], [0.0, -1.0]]
    torch.testing.assert_close(xs[:, 0], torch.tensor(expected, dtype=F64), rtol=0, atol=1e-9)
    heights = torch.tensor([8 - 0.5 * t**2 for t in times], dtype=F64)
    torch.testing.assert_close(xs[:, 1, 0], heights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("save", [[0.5], [0.9, 1.0], [0.1, 0.25, 0.5, 0.9]])
def test_times_after_all_samples_have_stopped(save):
    fall = ODE(lambda t, x: 0 * x - 1.0)
    ground = Event(lambda t, x: x[:, 0])
    x0 = torch.tensor([[0.3], [0.2]], dtype=F64)
    grid = uniform(0.0, 1.0, 10)
    solution = solve(fall, x0, grid, solver=RK4(), event=ground, save=save)
    expected = torch.stack([(x0 - t).clamp(min=0.0) for t in save])
    torch.testing.assert_close(solution.xs, expected, rtol=0, atol=1e-12)


def test_one_chosen_time_does_not_tell_the_direction():
    fall = ODE(lambda t, x: 0 * x - 1.0)
    arguments = {"solver": RK4(), "event": Event(lambda t, x: x[:, 0]), "save": [0.5]}
    x0 = torch.tensor([[0.85]], dtype=F64)
    xs = solve(fall, x0, uniform(0.0, 1.0, 10), **arguments).xs
    torch.testing.assert_close(xs, torch.tensor([[[0.35]]], dtype=F64))


def test_gradients_pass_through_states_between_the_steps():
    x0 = X0.clone().requires_grad_()
    for arguments in ({"ts": [0.0, 2.0], "control": TIGHT}, {"ts": uniform(0.0, 2.0, 40)}):
        solution = solve(ODE(f), x0, solver=Dopri5(), save="dense", **arguments)
        (found,) = torch.autograd.grad(solution.at(0.77).sum(), x0)
        expected = torch.full_like(X0, math.exp(-math.sin(0.77)))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("arguments", [{"control": TIGHT}, {}], ids=["adaptive", "fixed"])
def test_states_stay_when_an_optimiser_changes_the_initial_ones(arguments):
    """The record of the first step shared the memory of a leaf that requires gradients."""
    x0 = X0.clone().requires_grad_()
    ts = [0.0, 1.0] if arguments else uniform(0.0, 1.0, 4)
    solution = solve(ODE(f), x0, ts, solver=Dopri5(), save="dense", **arguments)
    times = [0.0, 1e-3, 0.1]
    before = solution.at(times)
    with torch.no_grad():
        x0.mul_(5.0)
    assert torch.equal(solution.at(times), before)
    (slope,) = torch.autograd.grad(solution.at(0.1).sum(), x0)
    torch.testing.assert_close(slope, exact(0.1, torch.ones_like(X0)), rtol=1e-6, atol=0)


def test_an_empty_batch_and_torchsdes_motion():
    none = torch.zeros(0, 2, dtype=F64)
    solution = solve(ODE(f), none, [0.0, 1.0], solver=RK4(), save=[0.2, 0.4])
    assert solution.xs.shape == (2, 0, 2)
    numbers = solve(ODE(f), X0, [0.0, 1.0], solver=RK4(), save=np.linspace(0.0, 1.0, 3))
    assert numbers.ts.tolist() == [0.0, 0.5, 1.0]
    torchsde = pytest.importorskip("torchsde")
    bm = torchsde.BrownianInterval(0.0, 1.0, (3, 1), dtype=F64, entropy=1)
    motion = SDE(lambda t, x: 0 * x, lambda t, x: 1.0, "additive")
    noise = interop.TorchsdeNoise(bm)
    arguments = {"solver": EulerMaruyama(), "noise": noise, "save": [0.2, 1.0]}
    xs = solve(motion, 0 * X0, [0.0, 1.0], **arguments).xs
    torch.testing.assert_close(xs[0], bm(0.0, 0.2))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"save": "dens"}, ValueError, "did you mean 'dense'"),
        ({"save": [0.5, 3.0]}, ValueError, r"must lie between 0\.0 and 2\.0"),
        ({"save": [0.5, 0.2]}, ValueError, "strictly monotone in this direction"),
        ({"save": []}, ValueError, r"must lie between 0\.0 and 2\.0"),
        ({"save": {"a": 1}}, TypeError, "or times, not"),
        ({"save": True}, TypeError, "or times, not True"),
        ({"save": [True]}, TypeError, r"or times, not \[True\]"),
        ({"save": torch.tensor([True])}, TypeError, "or times, not"),
        ({"save": "dense", "gradient": Checkpointed()}, ValueError, "leave out gradient"),
        ({"save": [0.5], "gradient": Checkpointed()}, ValueError, "leave out gradient"),
    ],
)
def test_refusals(arguments, error, said):
    with pytest.raises(error, match=said):
        solve(ODE(f), X0, [0.0, 1.0, 2.0], solver=RK4(), **arguments)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("save", ["dense", "times"])
def test_slopes_at_the_ends_of_a_step_are_its_own(save, backwards):
    """Where the rate of a clock jumps between two steps: y = A(l) is then an exponential there."""
    l = np.array([0.0, 1.0, 2.0, 3.0])
    log_a = np.array([0.0, 0.2, 0.9, 1.0])
    equation = PiecewiseClocked(
        lambda l, x: torch.ones_like(x), lambda l: 1.0, l, log_a=log_a, log_q=0.0 * l
    )
    order = -1 if backwards else 1
    ts = l.tolist()[::order]
    within = [0.5, 1.5, 2.5][::order]
    x0 = torch.full((1, 1), math.exp(log_a[-1] if backwards else 0.0), dtype=torch.float64)
    settings = {"solver": AdamsBashforth(1), "save": "dense" if save == "dense" else within}
    solution = solve(equation, x0, ts, **settings)
    xs = solution.at(within) if save == "dense" else solution.xs
    expected = np.exp(np.interp(within, l, log_a))
    np.testing.assert_allclose(xs.flatten().numpy(), expected, rtol=0.001)


def test_outside_there_is_no_state():
    solution = solve(ODE(f), X0, [0.0, 1.0, 2.0], solver=RK4(), save="dense")
    with pytest.raises(ValueError, match=r"from 0\.0 to 2\.0 and has no state at 2\.1;"):
        solution.at(2.1)
    with pytest.raises(ValueError, match=r"has no state at 2\.0000000002;"):
        solution.at(2.0000000002)
    with pytest.raises(ValueError, match='save="dense" only'):
        solve(ODE(f), X0, [0.0, 1.0, 2.0], solver=RK4()).at(1.0)
    for wrong in ("1", None, ["1"], True, [1.0 + 0.1j], torch.tensor([1.0 + 0.1j])):
        with pytest.raises(TypeError, match="t must be a time or several"):
            solution.at(wrong)


@pytest.mark.parametrize("ends", [(-0.3, 0.3), (0.3, -0.3)])
def test_times_in_float32_may_be_the_ends_of_a_solve(ends):
    """In float32 0.3 is larger than in float64."""
    times = torch.tensor(ends)
    solved = partial(solve, ODE(f), X0, uniform(*ends, 4), solver=RK4())
    solution = solved(save="dense")
    close = partial(torch.testing.assert_close, rtol=1e-15, atol=0)
    for given in (times, times.numpy()):
        close(solution.at(given), torch.stack([X0, solution.x]))
        close(solved(save=given).xs, solution.at(given))
    low, high = sorted(ends)
    for outside in (times.double(), times.tolist(), high + 1e-6, torch.tensor(low - 1e-6)):
        with pytest.raises(ValueError, match="and has no state at"):
            solution.at(outside)
    with pytest.raises(ValueError, match="must lie between"):
        solved(save=times.tolist())


class CountedCalls(TorchFunctionMode):
    """Counts calls of torch."""

    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)])
def test_a_state_between_adaptive_steps_costs_no_more_after_many(ends):
    """Each step of the solve was compared with the time."""
    calls = []
    for control in (PIDController(1e-3, 1e-3), PIDController(1e-11, 1e-11)):
        solution = solve(ODE(f), X0[:1], ends, solver=Dopri5(), control=control, save="dense")
        solution.at(0.3)
        with CountedCalls() as counted:
            x = solution.at(0.77)
        torch.testing.assert_close(x, exact(0.77, X0[:1], ends[0]), rtol=0, atol=1e-2)
        calls.append(counted.calls)
    assert calls[1] == calls[0]


def test_a_solve_without_accepted_steps_has_no_states():
    fails = ODE(lambda t, x: x * math.nan)
    settings = {"solver": Dopri5(), "control": TIGHT, "save": "dense", "throw": False}
    assert solve(fails, X0, [0.0, 1.0], **settings).at(0.5).isnan().all()


class CountingList(list):
    """A list that counts its entries that are read."""

    read = 0

    def __getitem__(self, index):
        part = super().__getitem__(index)
        self.read += len(part) if isinstance(index, slice) else 1
        return part


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_chosen_times_are_read_once_on_a_grid(ends, monkeypatch):
    """Besides a search in each step; all that remained were read in each step."""
    grid = uniform(*ends, 200)
    times = CountingList(uniform(*ends, 500).tolist())
    settings = {"solver": RK4(), "ts": grid}
    expected = solve(ODE(f), X0, save=list(times), **settings).xs
    monkeypatch.setattr("sdekit._solve.integrate.chosen_times", lambda save, grid: times)
    assert torch.equal(solve(ODE(f), X0, save=[0.5], **settings).xs, expected)
    torch.testing.assert_close(expected[200], exact(0.4 if ends[1] else 0.6, start=ends[0]))
    assert times.read < 2 * 500 + 200 * 12


class ComparedTime(float):
    """A time that counts how often one is compared with another for equality."""

    count = 0

    def __eq__(self, other):
        ComparedTime.count += 1
        return float(self) == other

    __hash__ = float.__hash__


def test_chosen_times_are_not_searched_for_one_after_the_other(monkeypatch):
    """With adaptive steps each was compared with all before it."""
    times = [ComparedTime(t) for t in uniform(0.0, 1.0, 2000).tolist()]
    monkeypatch.setattr("sdekit._solve.integrate.chosen_times", lambda save, grid: times)
    ComparedTime.count = 0
    settings = {"solver": Dopri5(), "control": TIGHT}
    solution = solve(ODE(f), X0, [0.0, 1.0], save=[0.5], **settings)
    torch.testing.assert_close(solution.xs[500], exact(0.25), rtol=0, atol=1e-7)
    assert ComparedTime.count < 10 * len(times)


def test_times_of_any_shape():
    solution = solve(ODE(f), X0, [0.0, 1.0, 2.0], solver=RK4(), save="dense")
    times = torch.tensor([[0.3, 1.1, 2.0], [0.0, 0.5, 1.0]], dtype=F64)
    expected = torch.stack([torch.stack([solution.at(t) for t in row]) for row in times.tolist()])
    for given in (times, times.numpy(), times.tolist()):
        assert torch.equal(solution.at(given), expected)
    assert solution.at([]).shape == (0, *X0.shape)


CORRECTING = [AdamsMoulton(1), AdamsMoulton(3), UniPC(2)]


@pytest.mark.parametrize("solver", CORRECTING, ids=repr)
@pytest.mark.parametrize("noisy", [False, True], ids=["ordinary", "noisy"])
def test_states_are_those_after_their_correction(solver, noisy):
    """They were the predictions: .8 where the solve has .82."""
    problem = SDE(f, lambda t, x: 0.3, "additive") if noisy else ODE(f)
    grid = uniform(0.0, 1.0, 5)
    path = {"solver": solver, "noise": BrownianPath(0, grid) if noisy else None}
    expected = solve(problem, X0, grid, save="all", **path).xs
    kept = solve(problem, X0, grid, save="dense", **path)
    torch.testing.assert_close(kept.at(grid), expected, rtol=0, atol=1e-15)
    near = [t + 1e-9 for t in grid[:-1].tolist()]
    for save in (kept.at(near), solve(problem, X0, grid, save=near, **path).xs):
        torch.testing.assert_close(save, expected[:-1], rtol=0, atol=1e-3 if noisy else 1e-8)
    before = [t - 1e-9 for t in grid[1:].tolist()]
    for save in (kept.at(before), solve(problem, X0, grid, save=before, **path).xs):
        torch.testing.assert_close(save, expected[1:], rtol=0, atol=1e-3 if noisy else 1e-8)


@pytest.mark.parametrize("solver", CORRECTING, ids=repr)
def test_events_are_those_of_the_states_after_their_correction(solver):
    """A sample that stops stays where the solve is, and the others go on as if alone."""
    ode = ODE(lambda t, x: -x)
    grid = uniform(0.0, 1.0, 5)
    x0 = torch.tensor([[1.0], [2.0]], dtype=F64)
    expected = solve(ode, x0, grid, solver=solver, save="all").xs
    after = int((expected[:, 0, 0] < 0.7).nonzero()[0])
    event = Event(lambda t, x: x[:, 0] - 0.7, located=False)
    found = solve(ode, x0, grid, solver=solver, save="all", event=event)
    assert float(found.events.t[0, 0]) == float(grid[after])
    assert torch.equal(found.xs[after:, 0], expected[after, 0].expand(len(grid) - after, 1))
    assert torch.equal(found.xs[:, 1], expected[:, 1])
    located = solve(ode, x0, grid, solver=solver, event=Event(lambda t, x: x[:, 0] - 0.7))
    assert abs(float(located.events.t[0, 0]) + math.log(0.7)) < 6e-3


@dataclass(frozen=True, eq=False)
class WithoutInterpolant(Dopri5):
    """A pair whose steps return nothing for states within."""

    interpolate = AbstractSolver.interpolate

    def step(self, problem, t0, t1, x, noise, state):
        return super().step(problem, t0, t1, x, noise, state)._replace(dense=None)


def of_length(h):
    """A controller whose steps all have this length."""
    return PIDController(1e3, 1e3, first=h, largest=1.0)


def passing(level):
    return Event(lambda t, x: x[:, 0] - level)


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])
def test_adaptive_steps_without_an_interpolant_have_the_cubic(ends):
    """Errors of states between the steps, and of the times of events, fall as h^4; on the straight
    line they fell as h^2.
    """
    solver = WithoutInterpolant()
    times = torch.linspace(*ends, 51, dtype=F64)
    expected = torch.stack([exact(t, start=ends[0]) for t in times.tolist()])
    errors = []
    for n in (8, 16, 32):
        settings = {"solver": solver, "control": of_length(2.0 / n)}
        solution = solve(ODE(f), X0[:1], ends, save="dense", **settings)
        assert solution.accepted.tolist() == [n]
        if n == 8:
            saved = solve(ODE(f), X0[:1], ends, save=times, **settings)
            torch.testing.assert_close(saved.xs, solution.at(times), rtol=0, atol=1e-14)
            grid = solve(ODE(f), X0[:1], uniform(*ends, n), solver=solver, save="dense")
            torch.testing.assert_close(grid.at(times), solution.at(times), rtol=0, atol=1e-14)
        middle = 1.0 + 1.0 / n  # of a step
        there = passing(exact(middle, start=ends[0])[0])
        stopped = solve(ODE(f), X0[:1], ends, event=there, **settings)
        late = float(stopped.events.t[0, 0]) - middle
        errors.append([float((solution.at(times) - expected[:, :1]).abs().max()), abs(late)])
    falls = np.log2(np.array(errors)[:-1] / np.array(errors)[1:])
    assert (falls > 3.5).all()


def test_slopes_are_evaluated_only_for_samples_with_states_within_steps():
    """Two evaluations for a step with output, counted for its sample; none without."""
    settings = {"solver": WithoutInterpolant(), "control": of_length(0.25)}
    event = Event(lambda t, x: x[:, 0] - 0.9)
    alone = solve(ODE(f), X0, [0.0, 2.0], **settings).evaluations
    kept = solve(ODE(f), X0, [0.0, 2.0], save="dense", **settings).evaluations
    some = solve(ODE(f), X0, [0.0, 2.0], save=[0.3, 0.4, 1.1], **settings).evaluations
    seen = solve(ODE(f), X0, [0.0, 2.0], event=replace(event, terminal=False), **settings)
    assert (kept - alone).tolist() == [2 * 8] * 3
    assert (some - alone).tolist() == [2 * 2] * 3  # the step of 0.3 and 0.4, and that of 1.1
    assert (seen.evaluations - alone).tolist() == [2, 0, 0]


def test_implicit_states_between_adaptive_steps_are_within_the_tolerance():
    """Hardly less accurate than the ends of the steps."""
    steps = []
    settings = {"solver": ImplicitPlaten(), "control": PIDController(1e-4, 1e-4)}
    solution = solve(ODE(f), X0, [0.0, 2.0], **settings, save="dense", callback=steps.append)
    times = torch.linspace(0.0, 2.0, 51, dtype=F64)
    expected = torch.stack([exact(t) for t in times.tolist()])
    ends = max(
        float((step.x - X0[step.samples] * torch.exp(-torch.sin(step.t1))[:, None]).abs().max())
        for step in steps
    )
    assert float((solution.at(times) - expected).abs().max()) < min(3 * ends, 1e-4)


def stiff(rate):
    """An equation whose solutions are soon within 1 / rate of cos t."""
    return ODE(lambda t, x: -rate * (x - torch.cos(torch.as_tensor(t, dtype=F64))))


STIFF = [
    ImplicitPlaten(),
    ImplicitEulerMaruyama(),
    SKROCK(8),
    ExponentialEuler(-1e3),
    ExponentialHeun(-1e3),
]


@pytest.mark.parametrize("solver", STIFF, ids=str)
def test_stiff_states_within_a_grid_are_between_the_ends_of_their_steps(solver):
    """The slope at the start, 500 / s, would throw a cubic off by 7."""
    grid = uniform(0.0, 2.0, 20)
    x0 = torch.full((1, 1), 1.5, dtype=F64)
    settings = {"solver": solver, "save": "dense"}
    solution = solve(stiff(1e3), x0, grid, **settings)
    ends = solve(stiff(1e3), x0, grid, solver=solver, save="all").xs[:, 0, 0]
    middles = [0.5 * (a + b) for a, b in itertools.pairwise(grid)]
    expected = 0.5 * (ends[1:] + ends[:-1])
    torch.testing.assert_close(solution.at(middles)[:, 0, 0], expected, rtol=0, atol=1e-14)
    saved = solve(stiff(1e3), x0, grid, solver=solver, save=middles).xs[:, 0, 0]
    torch.testing.assert_close(saved, expected, rtol=0, atol=1e-14)
    found = solve(stiff(1e3), x0, grid, solver=solver, event=passing(1.4)).events.t[0, 0]
    assert abs(float(found) - 0.1 * float((1.4 - 1.5) / (ends[1] - 1.5))) < 1e-9


def test_stiff_states_between_adaptive_steps():
    """The trapezoidal rule does not damp fast modes, whose slopes threw a cubic off by 380; the
    straight line is off by 0.16 in the longest step. The event is at the zero of that line.
    """
    x0 = torch.full((1, 1), 1.005, dtype=F64)
    settings = {"solver": ImplicitPlaten(), "control": PIDController(1e-2, 1e-2)}
    times = torch.linspace(0.0, 2.0, 201, dtype=F64)
    for solution in (
        solve(stiff(1e6), x0, [0.0, 2.0], **settings, save="dense").at(times),
        solve(stiff(1e6), x0, [0.0, 2.0], **settings, save=times).xs,
    ):
        assert float((solution[:, 0, 0] - times.cos()).abs().max()) < 0.2
    steps = []
    solve(stiff(1e6), x0, [0.0, 2.0], **settings, callback=steps.append)
    found = solve(stiff(1e6), x0, [0.0, 2.0], **settings, event=passing(0.5)).events.t[0, 0]
    last = next(i for i, step in enumerate(steps) if float(step.t1) >= float(found))
    start = float(steps[last - 1].x)
    share = (0.5 - start) / (float(steps[last].x) - start)
    expected = torch.lerp(steps[last].t0, steps[last].t1, share)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_solution_in_other_coordinates_keeps_everything_else():
    solution = Solution(*(object() for _ in fields(Solution)))
    x, xs, ts = object(), object(), object()
    other = solution.with_states(x, xs, ts)
    assert vars(other) == vars(solution) | {"x": x, "xs": xs, "ts": ts}
