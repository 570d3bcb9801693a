"""A noise level that depends on l: equal to a constant where it is one, to the published formula
elsewhere, with its orders.

That the law is right with noise in a part of the range is in test_sample.py.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from convergence import Nodes, quadrature, slope
from peers import DTYPES, MIXTURE, Case, agree
from physical import on_clock, on_steps

from sdekit import (
    DEIS,
    SRA1,
    AdamsBashforth,
    AdamsMoulton,
    BrownianPath,
    ClockedHeun,
    DPMSolver,
    DPMSolverSingle,
    EulerMaruyama,
    Heun,
    PIDController,
    PiecewiseClocked,
    ShARK,
    UniPC,
    WhiteNoise,
    solve,
    uniform,
)
from sdekit_diffusion import (
    DDIM,
    VESDE,
    VPSDE,
    AdaptiveSDE,
    GaussianMixture,
    Given,
    Noised,
    OnClock,
    ScoreModel,
    sample,
)

WIDE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.3, 0.2]
)
LINE = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0], [0.5]], dtype=torch.float64), [0.3, 0.2])
RULES = [
    *(AdamsBashforth(k) for k in (1, 2, 3, 4)),
    *(AdamsMoulton(k) for k in (1, 2, 3, 4)),
    *(
        DPMSolver(2),
        DPMSolver(2, "heun"),
        DPMSolver(3),
        UniPC(2),
        UniPC(3, "bh1"),
        DEIS(3),
        DEIS(3, "log_rho"),
        DEIS(4, "rho"),
    ),
    *(AdamsBashforth(3, lower_final=True), ClockedHeun()),
]


def smooth(l):
    return 0.7 + 0.5 * math.sin(2 * l)


def between(l):
    return float(-1 < l < 2)


@dataclass(frozen=True)
class Constant:
    """The function that is one number."""

    value: float

    def __call__(self, l):
        return self.value


def solved(case, solver, eta):
    """A case's start, grid and noise with another level."""
    grid = torch.tensor(case.l)
    problem = on_steps(MIXTURE, case.sde, eta, grid)
    return solve(
        problem, case.x / problem.scale(case.l[0]), grid, solver=solver, noise=WhiteNoise(3)
    ).x * problem.scale(case.l[-1])


@pytest.mark.parametrize(
    ("solver", "sde"),
    [(solver, ("ve", "vp", "flow")[i % 3]) for i, solver in enumerate(RULES)],
    ids=str,
)
def test_a_constant_function_is_the_constant(solver, sde):
    """Also on a grid whose steps differ, and for 0 where the first step has no middle, which is
    that of another time.
    """
    settings = {"sde": sde, "steps": 12, "seed": 1, "grid": "karras", "dtype": torch.float64}
    middle = getattr(solver, "starting", {}).get(getattr(solver, "k", None)) == 3
    for eta in (0.6, 1.0, 1.4, *([] if middle else [0.0])):
        number, function = (
            sample(MIXTURE, 5, method=OnClock(solver, value), **settings)
            for value in (eta, Constant(eta))
        )
        torch.testing.assert_close(function, number, rtol=0, atol=1e-12)


@DTYPES
@pytest.mark.parametrize("eta", [smooth, between])
@pytest.mark.parametrize("k", [1, 2])
def test_each_step_has_its_own_level(k, eta, dtype):
    """SDE-DPM-Solver++(1), and (2M) with the line integrated exactly, with the level of the middle
    of each step.
    """
    case = Case(VESDE(), eta=1.0, dtype=dtype)
    x = case.x
    before = None
    for i, (start, stop) in enumerate(itertools.pairwise(case.l)):
        level = eta(0.5 * (start + stop)) ** 2
        h = stop - start
        d = case.data(i, x)
        z = (1 + level) * h
        x = math.exp(-z) * x - math.expm1(-z) * d
        if before is not None and k == 2:
            x = x + (math.expm1(-z) / z + 1) * (d - before) / ((start - case.l[i - 1]) / h)
        before = d
        x = x + case.sigmas[i + 1] * math.sqrt(-math.expm1(-2 * level * h)) * case.z[i]
    agree(solved(case, DPMSolver(k, "heun"), eta), x)


@pytest.mark.parametrize(
    "solver",
    [AdamsBashforth(1), AdamsBashforth(2), AdamsMoulton(2), DPMSolver(2), ClockedHeun()],
    ids=str,
)
def test_weak_order_where_the_level_is_smooth(solver):
    """Differences of means over a span, by quadrature over all increments: the levels are a
    midpoint rule, of order two.
    """
    means = []
    for n in (1, 2, 4, 8):
        grid, mass = quadrature(4, n)
        ts = uniform(0.2, 0.6, n)
        problem = on_steps(LINE, VPSDE(), smooth, ts)
        y = torch.full((len(grid), 1), 0.4 / problem.scale(0.2), dtype=torch.float64)
        end = solve(problem, y, ts, solver=solver, noise=Nodes(grid)).x * problem.scale(0.6)
        means.append((mass * torch.cos(2 * end)[:, 0]).sum())
    differences = torch.stack(means).diff().abs()
    assert math.log2(differences[-2] / differences[-1]) > solver.order["additive"].weak - 0.35


def distances(solver, eta, noise, steps):
    """Root mean squares of x(n) - x(4 n)."""
    settings = {"sde": "vp", "seed": 1, "noise": noise, "end": 0.05, "method": OnClock(solver, eta)}
    ends = {n: sample(WIDE, 200, steps=n, **settings) for n in {*steps, *(4 * n for n in steps)}}
    return [float((ends[n] - ends[4 * n]).square().mean().sqrt()) for n in steps]


@pytest.mark.parametrize("solver", [AdamsBashforth(1), AdamsMoulton(2)], ids=str)
def test_more_steps_refine_the_same_sample(solver):
    """On one path in l, with order one. Where the level jumps within a step, that step has noise
    which is not the path's.
    """
    steps = [25, 50]
    assert slope(steps, distances(solver, smooth, "path", steps)) == pytest.approx(1, abs=0.15)
    jumping, white = (distances(solver, between, noise, [50])[0] for noise in ("path", "white"))
    assert jumping < 0.25 * white


def test_without_noise_it_is_the_flow():
    """Nothing is drawn where the level is 0 throughout; rules that are for equations without noise
    then serve as well.
    """
    settings = {
        "sde": "vp",
        "steps": 20,
        "dtype": torch.float64,
        "x_T": VPSDE().prior((4, 2), seed=1, dtype=torch.float64),
    }
    for solver in (AdamsBashforth(3), DPMSolverSingle(2)):
        ends = [
            sample(MIXTURE, method=OnClock(solver, Constant(0.0)), seed=seed, **settings)
            for seed in (1, 2)
        ]
        assert torch.equal(*ends)
        torch.testing.assert_close(
            ends[0], sample(MIXTURE, method=OnClock(solver), **settings), rtol=0, atol=1e-12
        )
    with pytest.raises(
        ValueError, match="DPMSolverSingle does not solve equations with additive noise"
    ):
        sample(MIXTURE, method=OnClock(DPMSolverSingle(2), between), **settings)


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_its_equation_is_the_chain_rule_of_the_other(eta):
    grid = uniform(-1.0, 2.0, 6)
    l = 0.7
    x = torch.tensor([[0.4], [-0.3]], dtype=torch.float64)
    ours = on_steps(LINE, VPSDE(), Constant(eta), grid)
    other = on_clock(LINE, VPSDE(), eta)
    y = x / other.scale(l)
    rate = other.q * other.time(l)
    assert ours.scale(l) == pytest.approx(other.scale(l))
    torch.testing.assert_close(ours.drift(l, y), other.drift(other.time(l), y) * rate)
    assert ours.diffusion(l, y) == pytest.approx(math.sqrt(rate))


def test_the_noise_of_steps_adds_up():
    """The variances of parts of a span sum to that of the span, whatever the levels."""
    grid = uniform(-2.0, 3.0, 7)
    problem = on_steps(LINE, VPSDE(), smooth, grid)
    one = torch.ones(1, 1, dtype=torch.float64)
    parts = [
        problem.kick(t0, t1, torch.zeros_like(one), math.sqrt(t1 - t0) * one).item() ** 2
        for t0, t1 in itertools.pairwise(grid.tolist())
    ]
    assert sum(parts) == pytest.approx(
        np.exp(problem.log_q[-1]) - np.exp(problem.log_q[0]), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replay_and_batches(dtype):
    for noise in ("white", "path"):
        settings = {
            "sde": "subvp",
            "method": OnClock(AdamsBashforth(2), between),
            "steps": 25,
            "seed": 3,
            "noise": noise,
        }
        whole = sample(MIXTURE, 7, dtype=dtype, **settings)
        assert torch.equal(sample(MIXTURE, 7, dtype=dtype, **settings), whole)
        assert torch.equal(sample(MIXTURE, 7, dtype=dtype, batch_size=3, **settings), whole)
        assert torch.equal(sample(MIXTURE, 2, dtype=dtype, first=4, **settings), whole[4:6])


@pytest.mark.parametrize("solver", [Heun(), SRA1()], ids=str)
def test_solvers_without_planned_weights_are_refused(solver):
    with pytest.raises(
        ValueError,
        match=f"{type(solver).__name__} is for one eta: .* choose one such as AdamsBashforth",
    ):
        OnClock(solver, between)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_levels_are_numbers_from_zero_on(value):
    with pytest.raises(ValueError, match="eta must be a number from 0"):
        sample(MIXTURE, 2, sde="vp", method=OnClock(eta=Constant(value)))
    with pytest.raises(ValueError, match="integrand must be 'data'"):
        OnClock(eta=between, integrand="noise")


@pytest.mark.parametrize(
    "method", [OnClock(eta=3.0), OnClock(eta=Constant(3.0)), AdaptiveSDE(eta=3.0)], ids=repr
)
def test_a_clock_that_the_dtype_does_not_hold_is_refused(method):
    with pytest.raises(
        ValueError,
        match=r"from e\^-98 to e\^124, which torch.float32 does not "
        r"hold; take a smaller eta",
    ):
        sample(MIXTURE, 2, sde="vp", method=method, seed=0, dtype=torch.float32)


@pytest.mark.parametrize("noise", ["white", "path"])
@pytest.mark.parametrize("method", [OnClock(eta=1e-9), DDIM(eta=1e-9)], ids=repr)
def test_an_eta_that_the_clock_does_not_show_is_refused(method, noise):
    with pytest.raises(ValueError, match=r"eta = 1e-09 is so small that the clock .* give eta = 0"):
        sample(MIXTURE, 2, sde="vp", method=method, seed=0, noise=noise)


def test_a_clock_that_the_dtype_just_holds():
    """Nothing overflows, or is rounded away, below what is refused: in float32 it is the sample of
    float64, in float64 that of the other equation, whose time is l.
    """
    settings = {"sde": "flow", "seed": 0, "steps": 40}
    for solver in (AdamsBashforth(1), AdamsMoulton(2), ClockedHeun()):
        a, b = (
            sample(MIXTURE, 50, method=OnClock(solver, 2.5), dtype=d, **settings)
            for d in (torch.float32, torch.float64)
        )
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-3)
        a, b = (
            sample(MIXTURE, 50, method=OnClock(solver, e), dtype=b.dtype, **settings)
            for e in (7.1, Constant(7.1))
        )
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_exponents_out_of_order_are_refused():
    l = np.array([0.0, 1.0, 2.0])
    for log_a, log_q in ((-l, l), (l, -l)):
        with pytest.raises(ValueError, match="log_a must increase, and log_q must not decrease"):
            PiecewiseClocked(lambda l, x: x, lambda l: 1.0, l, log_a, log_q)


@pytest.mark.parametrize("points", [slice(1), slice(3), slice(None, None, 2)])
def test_exponents_of_other_points_are_refused(points):
    l = np.arange(4.0)
    with pytest.raises(ValueError, match="l, log_a and log_q have one number for each point"):
        PiecewiseClocked(lambda l, x: x, lambda l: 1.0, l, l[points], l)
    with pytest.raises(ValueError, match="of at least two points"):
        PiecewiseClocked(lambda l, x: x, lambda l: 1.0, *[l[:1]] * 3)


def test_times_beyond_the_grid_are_refused():
    """There was no noise there, and the drift was that of the end of the grid."""
    l = np.arange(4.0)
    equation = PiecewiseClocked(lambda l, x: x, lambda l: 1.0, l, l, l)
    x = torch.zeros(2, 1, dtype=torch.float64)
    for solver in (EulerMaruyama(), AdamsBashforth(2)):
        for ts in ([0.0, 1.0, 3.1], [2.0, -0.1]):
            with pytest.raises(ValueError, match=r"given for l from 0\.0 to 3\.0, and"):
                solve(equation, x, ts, solver=solver, noise=WhiteNoise(0))
        end = 3.0 + 1e-12  # by rounding
        assert solve(equation, x, [0.0, end], solver=solver, noise=WhiteNoise(0)).x.all()


def test_a_part_of_the_steps_has_the_noise_of_these_steps_only():
    """In both directions; of the first step there is noise."""
    l = np.arange(4.0)
    log_q = np.array([0.0, 1.0, 1.0, 1.0])
    equation = PiecewiseClocked(lambda l, x: x, lambda l: 1.0, l, l, log_q)
    for ends, kind in (((0.0, 1.5), "additive"), ((1.0, 3.0), "none"), ((3.0, 1.2), "none")):
        part = equation.within(*ends)
        assert part.noise_type == kind
        assert part.l[0] <= min(ends)
        assert part.l[-1] >= max(ends)
        assert len(part.l) == 3


def test_steps_of_each_sample_are_refused():
    problem = on_steps(LINE, VPSDE(), Constant(1.0), uniform(-1.0, 2.0, 6))
    control = PIDController(1e-3, 1e-3)
    noise = BrownianPath(0, (-1.0, 2.0))
    with pytest.raises(ValueError, match="each sample cannot have its own; use Clocked"):
        solve(
            problem,
            torch.zeros(2, 1, dtype=torch.float64),
            [-1.0, 2.0],
            solver=ShARK(),
            control=control,
            noise=noise,
        )


def test_eta_of_k_diffusion_is_the_square():
    """As a number and as a function of l; the default is the reverse SDE's own."""
    settings = {"sde": "vp", "steps": 20, "seed": 1, "dtype": torch.float64}
    ours = sample(MIXTURE, 3, method=OnClock(DPMSolver(2), 0.5), **settings)
    theirs = OnClock(DPMSolver(2), 0.25, convention="k-diffusion")
    assert torch.equal(sample(MIXTURE, 3, method=theirs, **settings), ours)
    varying = OnClock(DPMSolver(2), lambda l: 0.5 if l < 0 else 1.0)
    squared = OnClock(DPMSolver(2), lambda l: 0.25 if l < 0 else 1.0, convention="k-diffusion")
    assert torch.equal(
        sample(MIXTURE, 3, method=squared, **settings),
        sample(MIXTURE, 3, method=varying, **settings),
    )
    path = {"noise": "path", **settings}
    assert torch.equal(
        sample(MIXTURE, 3, method=theirs, **path),
        sample(MIXTURE, 3, method=OnClock(DPMSolver(2), 0.5), **path),
    )
    negative = OnClock(DPMSolver(2), lambda l: -0.5, convention="k-diffusion")
    with pytest.raises(ValueError, match=r"eta must be a number from 0 .*; not -0.5"):
        sample(MIXTURE, 3, method=negative, **settings)
    with pytest.raises(ValueError, match="one of 'sde', 'k-diffusion', not 'karras'"):
        OnClock(eta=0.5, convention="karras")


def test_eta_of_k_diffusion_has_its_variance():
    """sigma_1^2 (1 - e^{-2 eta h}) in one step, as `sample_dpmpp_2m_sde` has it."""
    nothing = ScoreModel(lambda x, t: 0 * x, "ve", "data", shape=(1,), data_std=1.0)
    grid = torch.tensor([0.0, 0.7], dtype=torch.float64)
    method = OnClock(DPMSolver(1), 0.3, convention="k-diffusion", grid=Given(grid), steps=1)
    start = Noised(torch.zeros(1, 1), level=1.0, add_noise=False)
    n = 20_000
    x = sample(nothing, n, method=method, start=start, end=math.exp(-0.7), seed=0)
    wanted = math.exp(-1.4) * -math.expm1(-2 * 0.3 * 0.7)
    assert float(x.var()) == pytest.approx(wanted, rel=5.5 * math.sqrt(2 / n))
