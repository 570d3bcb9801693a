"""Song et al.'s samplers against plain loops that are written as the papers have them, and the
chains they step along.

That each method has the right law under each diffusion is in test_sample.py and test_schedules.py:
bounds of 5.5 standard errors with fixed seeds, false alarm below 1e-6 a test.
"""

import ast
import inspect
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from convergence import local_weak_slope, reverse_decay, slope
from peers import DTYPES, agree
from physical import prior, span_of

import sdekit
from sdekit import (
    RK4,
    SDE,
    AbstractCorrector,
    AbstractSDE,
    Ancestral,
    BrownianPath,
    Checkpointed,
    EulerMaruyama,
    ImplicitEulerMaruyama,
    Increment,
    Langevin,
    LogODE,
    Midpoint,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    ReverseSDE,
    WhiteNoise,
    solve,
    uniform,
)
from sdekit._solvers import predictors
from sdekit_diffusion import (
    DDPM,
    DIFFUSIONS,
    VESDE,
    VPSDE,
    GaussianMixture,
    InTime,
    SubVPSDE,
    sample,
)

MIXTURE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.09, 0.04]
)
STEPS = 60
SEED = 0
close = torch.testing.assert_close
VES = [VESDE(sigma_max=5.0), VESDE(sigma_max=5.0, exact=False)]


def setting(sde, normals=0, dtype=torch.float64):
    """The start, the times, and of each step the standard normals of W and the fresh ones."""
    ends = [float(sde.time(l)) for l in span_of(MIXTURE, sde, 1e-3)]
    ts = sde.spaced(*ends, uniform(0.0, 1.0, STEPS))
    ts[0], ts[-1] = ends
    x = prior(MIXTURE, sde, ends[0], 4, SEED, dtype)
    ts = ts.tolist()
    drawn = list(WhiteNoise(SEED).increments(ts, x, (2,), normals=normals))
    return (
        x,
        ts,
        [(d.w / math.sqrt(t - s), d.z) for d, t, s in zip(drawn, ts, ts[1:], strict=False)],
    )


def ours(sde, solver, dtype=torch.float64):
    settings = {"method": InTime(solver, steps=STEPS), "seed": SEED, "dtype": dtype, "save": "all"}
    return sample(MIXTURE, 4, sde=sde, return_solution=True, **settings).xs[-1]


@DTYPES
@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VES[0]], ids=str)
def test_euler_maruyama_is_the_published_loop(sde, dtype):
    """x <- x - [f - g^2 s] dt + g sqrt(dt) z, f and g written down for each."""
    x, ts, noise = setting(sde, dtype=dtype)
    for t, s, (z, _) in zip(ts, ts[1:], noise, strict=False):
        beta = 0.1 + t * 19.9
        growth = math.log(5.0 / 0.01)
        square = {
            "VPSDE": beta,
            "SubVPSDE": -beta * math.expm1(-2 * (0.1 * t + 19.9 * t * t / 2)),
            "VESDE": 2 * growth * (0.01 * math.exp(growth * t)) ** 2,
        }[type(sde).__name__]
        f = 0.0 if isinstance(sde, VESDE) else -0.5 * beta * x
        x = x - (f - square * MIXTURE.score(t, x, sde)) * (t - s) + math.sqrt(square * (t - s)) * z
    agree(ours(sde, EulerMaruyama(), dtype), x)


@DTYPES
def test_reverse_diffusion_under_vp_is_the_published_loop(dtype):
    sde = VPSDE()
    x, ts, noise = setting(sde, dtype=dtype)
    for t, s, (z, _) in zip(ts, ts[1:], noise, strict=False):
        beta = (0.1 + t * 19.9) * (t - s)
        f = (math.sqrt(1 - beta) - 1) * x
        x = x - f + beta * MIXTURE.score(t, x, sde) + math.sqrt(beta) * z
    agree(ours(sde, ReverseDiffusion(), dtype), x)


@DTYPES
def test_ancestral_under_vp_is_the_published_loop(dtype):
    sde = VPSDE()
    x, ts, noise = setting(sde, dtype=dtype)
    for t, s, (z, _) in zip(ts, ts[1:], noise, strict=False):
        beta = (0.1 + t * 19.9) * (t - s)
        x = (x + beta * MIXTURE.score(t, x, sde)) / math.sqrt(1 - beta) + math.sqrt(beta) * z
    agree(ours(sde, Ancestral(), dtype), x)


@pytest.mark.parametrize("sde", VES, ids=str)
@DTYPES
@pytest.mark.parametrize("ancestral", [False, True])
def test_under_ve_both_are_the_published_loops(sde, ancestral, dtype):
    x, ts, noise = setting(sde, dtype=dtype)
    for t, s, (z, _) in zip(ts, ts[1:], noise, strict=False):
        late = sde.sigma(t)
        early = sde.sigma(s)
        v = late**2 - early**2
        variance = early**2 * v / late**2 if ancestral else v
        x = x + v * MIXTURE.score(t, x, sde) + math.sqrt(variance) * z
    agree(ours(sde, Ancestral() if ancestral else ReverseDiffusion(), dtype), x)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", [name for name in DIFFUSIONS if name != "vp"])
def test_ancestral_samples_the_posterior_of_frozen_data(name, large):
    """q(x_s | x_t, x_0 = D), as Bayes' formula has it; or with its mean and the variance of q(x_t |
    x_s).
    """
    sde = DIFFUSIONS[name]()
    x, ts, noise = setting(sde)
    for t, s, (z, _) in zip(ts, ts[1:], noise, strict=False):
        r, spread = sde.transition(s, t)
        precision = r**2 / spread**2 + 1 / sde.sigma(s) ** 2
        mean = (
            r * x / spread**2 + sde.alpha(s) * MIXTURE.denoise(t, x, sde) / sde.sigma(s) ** 2
        ) / precision
        x = mean + z * (spread if large else 1 / math.sqrt(precision))
    close(ours(sde, Ancestral(large)), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in DIFFUSIONS if name != "vp"])
def test_reverse_diffusion_takes_the_increments_of_drift_and_noise(name):
    sde = DIFFUSIONS[name]()
    x, ts, noise = setting(sde)
    for t, s, (z, _) in zip(ts, ts[1:], noise, strict=False):
        r, spread = sde.transition(s, t)
        x = x - (r - 1) * x + spread**2 * MIXTURE.score(t, x, sde) + spread * z
    close(ours(sde, ReverseDiffusion()), x, rtol=1e-10, atol=1e-10)


def test_ddpm_has_its_own_betas_between_its_own_times():
    sde = DDPM()
    for i in (1, 500, 1000):
        r, v, w = sde.chain((i - 1) / 1000, i / 1000)
        beta = sde.betas[i - 1]
        kept = [float(sde.alpha(j / 1000)) ** 2 for j in (i - 1, i)]
        assert (r, v) == pytest.approx((math.sqrt(1 - beta), beta), rel=1e-9)
        assert w == pytest.approx(beta * (1 - kept[0]) / (1 - kept[1]), rel=1e-9)


def test_the_published_chain_of_vp_tends_to_the_exact_one():
    """r and v differ by O(dt^2), w too where the noise has not just begun."""
    sde = VPSDE()
    h = [2.0**-k for k in range(8, 13)]
    for which in range(3):
        errors = [
            abs(sde.chain(0.5 - dt, 0.5)[which] - AbstractSDE.chain(sde, 0.5 - dt, 0.5)[which])
            for dt in h
        ]
        assert slope([1 / dt for dt in h], errors) == pytest.approx(2, abs=0.05)


# Each pair of a diffusion, a predictor, and moves with a dtype once.
KERNELS = [VPSDE(), SubVPSDE(), VES[0]]
PREDICTORS = [ReverseDiffusion(), Ancestral(), EulerMaruyama()]
MOVES = [(1, torch.float64), (3, torch.float64), (1, torch.float32)]
PAIRS = [
    (*MOVES[(i + j) % 3], predictor, sde)
    for i, sde in enumerate(KERNELS)
    for j, predictor in enumerate(PREDICTORS)
]


@pytest.mark.parametrize(("moves", "dtype", "predictor", "sde"), PAIRS, ids=str)
def test_the_corrector_is_the_published_loop_with_norms_of_one_sample(sde, predictor, moves, dtype):
    """Corrector, then predictor, at the same t; each move has a step size a sample. Steps of
    predictors are compared above.

    More moves blow the rounding of float32 up: in two dimensions scores come near to 0, and moves
        there become long.
    """
    x, ts, noise = setting(sde, moves, dtype)
    problem = ReverseSDE(sde, lambda t, x: MIXTURE.score(t, x, sde))
    for t, s, (w, fresh) in zip(ts, ts[1:], noise, strict=False):
        a = 1.0 if isinstance(sde, VESDE) else (sde.alpha(t) / sde.alpha(s)) ** 2
        for z in fresh:
            score = MIXTURE.score(t, x, sde)
            e = torch.stack(
                [
                    2 * a * (0.16 * zi.norm() / si.norm()) ** 2
                    for zi, si in zip(z, score, strict=True)
                ]
            )[:, None]
            x = x + e * score + (2 * e).sqrt() * z
        x = predictor.step(problem, t, s, x, sdekit.Increment(w * math.sqrt(t - s)), ()).x
    solver = PredictorCorrector(predictor, Langevin(snr=0.16, steps=moves, m=0.0))
    agree(ours(sde, solver, dtype), x)


def test_pc_has_the_published_ratio_of_signal_to_noise():
    """0.16, that of Song et al. (2021) for CIFAR-10, and one move per step."""
    solver = PredictorCorrector(EulerMaruyama(), Langevin(snr=0.16, steps=1))
    named = sample(MIXTURE, 4, sde="ve", method="pc", steps=STEPS, seed=SEED)
    plain = sample(MIXTURE, 4, sde="ve", method=InTime(solver), steps=STEPS, seed=SEED)
    assert torch.equal(named, plain)


@pytest.mark.parametrize("kernel", [VPSDE(), SubVPSDE(), VES[0]], ids=str)
@pytest.mark.parametrize(
    "solver", [ReverseDiffusion(), Ancestral(), Ancestral(large=True)], ids=str
)
def test_weak_order(solver, kernel):
    """Strong orders are in test_noise_path.py, by refinement on one path."""
    line = GaussianMixture(
        [0.3, 0.7], torch.tensor([[-1.0], [0.5]], dtype=torch.float64), [0.3, 0.2]
    )
    problem = ReverseSDE(kernel, lambda t, x: line.score(t, x, kernel))
    assert local_weak_slope(solver, problem, lambda h: 0.5 - h / 16) == pytest.approx(
        1 + solver.order["additive"].weak, abs=0.1
    )


@pytest.mark.parametrize("method", ["reverse_diffusion", "ancestral"])
def test_replay_and_batches(method):
    settings = {"sde": "subvp", "method": method, "steps": 40, "seed": 3}
    for dtype in (torch.float32, torch.float64):
        whole = sample(MIXTURE, 7, dtype=dtype, **settings)
        assert torch.equal(sample(MIXTURE, 7, dtype=dtype, **settings), whole)
        assert torch.equal(sample(MIXTURE, 7, dtype=dtype, batch_size=3, **settings), whole)
        assert torch.equal(sample(MIXTURE, 2, dtype=dtype, first=4, **settings), whole[4:6])
    assert sample(MIXTURE, 2, return_solution=True, **settings).evaluations.tolist() == [40, 40]


class Shift(AbstractCorrector):
    """Adds its normals."""

    normals = 1

    def correct(self, problem, t0, t1, x, z):
        return x + z.sum(dim=0)


@pytest.mark.parametrize(
    ("corrector", "m"),
    [(Langevin(), 100.0), (Langevin(snr=0.3, m=7.0), 7.0)],
    ids=["default", "m = 7"],
)
def test_a_move_of_langevins_has_m_further_coordinates(corrector, m):
    """x + e s + sqrt(2 e) z, e = 2 a (snr sigma)^2 (|z|^2 + m) / (sigma^2 |s|^2 + m), a the squared
    ratio of the alphas.
    """
    sde = VPSDE()
    t = 0.5
    s = 0.48
    problem = ReverseSDE(sde, lambda t, x: MIXTURE.score(t, x, sde))
    draw = torch.Generator().manual_seed(0)
    x, z = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((5, 2), (1, 5, 2))
    )
    alpha, sigma = sde.kernel(t)
    score = MIXTURE.score(t, x, sde)
    square = score.square().sum(dim=1, keepdim=True)
    length = z[0].square().sum(dim=1, keepdim=True)
    e = (
        2
        * (alpha / sde.alpha(s)) ** 2
        * (corrector.snr * sigma) ** 2
        * (length + m)
        / (sigma**2 * square + m)
    )
    found = corrector.correct(problem, t, s, x, z)
    close(found, x + e * score + (2 * e).sqrt() * z[0], rtol=1e-12, atol=1e-12)


def test_every_corrector_has_normals_of_its_own():
    """A predictor that corrects as well reads the first of them, the corrector around it the
    others.
    """
    still = SDE(lambda t, x: 0 * x, lambda t, x: 0.0, "additive")
    solver = PredictorCorrector(PredictorCorrector(EulerMaruyama(), Shift()), Shift())
    noise = Increment(torch.zeros(1, 1), None, torch.tensor([1.0, 10.0]).reshape(2, 1, 1))
    assert solver.normals == 2
    assert solver.step(still, 1.0, 0.9, torch.zeros(1, 1), noise, ()).x.item() == 11


class Still(AbstractCorrector):
    normals = 0

    def correct(self, problem, t0, t1, x, z):
        return x


def test_a_predictor_gets_all_that_it_asks_for():
    """The areas of the path too, without which LogODE is Midpoint."""
    columns = lambda t, x: torch.stack([x.cos(), x.flip(-1).sin()], -1)  # noqa: E731
    equation = SDE(lambda t, x: -x, columns, "general", "stratonovich", noise_size=2)
    x = torch.ones(3, 2, dtype=torch.float64)
    alone, as_predictor, without = (
        solve(equation, x, uniform(0.0, 1.0, 4), solver=solver, noise=BrownianPath(1)).x
        for solver in (LogODE(), PredictorCorrector(LogODE(), Still()), Midpoint())
    )
    assert torch.equal(as_predictor, alone)
    assert not torch.allclose(without, alone)


def test_what_a_predictor_cannot_do_is_known():
    implicit = PredictorCorrector(ImplicitEulerMaruyama(), Still())
    assert (implicit.differentiates, implicit.iterates) == (True, True)
    with pytest.raises(ValueError, match="use derivatives of f, and Checkpointed cannot repeat"):
        solve(
            SDE(lambda t, x: -x, lambda t, x: 1.0, "additive"),
            torch.ones(2, 1),
            [0.0, 1.0],
            solver=implicit,
            gradient=Checkpointed(),
        )


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("solver", [ReverseDiffusion(), Ancestral()], ids=str)
def test_what_the_predictors_refuse(solver):
    x = torch.zeros(2, 1)
    noise = WhiteNoise(0)
    plain = ReverseSDE(SDE(lambda t, x: -x, lambda t, x: 1.0, "additive"), lambda t, x: -x)
    with pytest.raises(TypeError, match="SDE has no kernel"):
        solve(plain, x, [1.0, 0.5], solver=solver, noise=noise)
    with pytest.raises(ValueError, match="from late times to early ones"):
        solve(reverse_decay(), x, [0.5, 1.0], solver=solver, noise=noise)
    with pytest.raises(ValueError, match=r"eta = 0; not 0\.5"):
        sample(MIXTURE, 2, sde="ve", method=InTime(solver, eta=0.5), steps=9)
    with pytest.raises(ValueError, match="take more than 20 steps"):
        sample(MIXTURE, 2, sde="vp", method=InTime(solver), steps=15)
    sample(MIXTURE, 2, sde="vp", method=InTime(EulerMaruyama()), steps=15)


def test_of_the_flow_there_is_reverse_diffusion_only():
    message = "Ancestral does not solve equations without noise, only those with additive noise"
    with pytest.raises(ValueError, match=message):
        sample(MIXTURE, 2, sde="ve", method=InTime(Ancestral(), eta=0.0), steps=9)


@DTYPES
@pytest.mark.parametrize("sde", [VPSDE(), VES[0]], ids=str)
def test_reverse_diffusion_of_the_flow_is_the_published_loop(sde, dtype):
    """Half of the score's term, and no noise."""
    x, ts, _ = setting(sde, dtype=dtype)
    for t, s in pairwise(ts):
        if isinstance(sde, VPSDE):
            v = (0.1 + t * 19.9) * (t - s)
            f = (math.sqrt(1 - v) - 1) * x
        else:
            v = sde.sigma(t) ** 2 - sde.sigma(s) ** 2
            f = 0.0
        x = x - f + 0.5 * v * MIXTURE.score(t, x, sde)
    method = InTime(ReverseDiffusion(), eta=0.0, steps=STEPS)
    agree(sample(MIXTURE, 4, sde=sde, method=method, seed=SEED, dtype=dtype), x / sde.alpha(ts[-1]))


def test_reverse_diffusion_of_the_flow_has_order_one():
    """Towards the solution of the flow by `RK4` on a fine grid."""
    sde = VPSDE()
    problem = ReverseSDE(sde, lambda t, x: MIXTURE.score(t, x, sde), eta=0.0)
    x = torch.tensor([[0.4, -0.2], [-1.0, 0.7]], dtype=torch.float64)
    exact = solve(problem, x, uniform(0.6, 0.2, 100), solver=RK4()).x
    steps = [100, 200]
    ends = [solve(problem, x, uniform(0.6, 0.2, n), solver=ReverseDiffusion()).x for n in steps]
    errors = [float((end - exact).abs().max()) for end in ends]
    assert slope(steps, errors) == pytest.approx(ReverseDiffusion().order["none"].weak, abs=0.1)


@pytest.mark.parametrize("sde", [VPSDE(), VES[0]], ids=str)
def test_both_equations_of_the_flow_have_the_same_chain(sde):
    x, ts, _ = setting(sde)
    score = partial(MIXTURE.score, sde=sde)
    flow, reverse = ProbabilityFlow(sde, score), ReverseSDE(sde, score, eta=0.0)
    ends = [solve(problem, x, ts, solver=ReverseDiffusion()).x for problem in (flow, reverse)]
    assert torch.equal(*ends)
    if isinstance(sde, VPSDE):
        with pytest.raises(ValueError, match="take more than 20 steps"):
            solve(flow, x, [1.0, 1e-3], solver=ReverseDiffusion())


def test_a_predictor_takes_twenty_lines():
    source = inspect.getsource(predictors)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
            docstring = len(ast.get_docstring(node, clean=False).splitlines())
            assert len([line for line in lines if line.strip()]) - docstring <= 20


def test_a_corrector_may_draw_nothing():
    """A step along the score before each step of the predictor; with and without noise in the
    predictor.
    """

    class Along(AbstractCorrector):
        normals = 0

        def correct(self, problem, t0, t1, x, z):
            assert z.shape == (0, *x.shape)
            return x + 0.01 * problem.score(t0, x)

    grid = uniform(1.0, 0.5, 2)
    x = torch.ones(3, 2, dtype=torch.float64)
    for eta in (0.0, 1.0):
        problem = ReverseSDE(VPSDE(), lambda t, x: -x, eta)
        found = solve(
            problem,
            x,
            grid,
            solver=PredictorCorrector(EulerMaruyama(), Along()),
            noise=WhiteNoise(1),
        ).x
        expected = x
        noise = WhiteNoise(1).increments(grid.tolist(), x, (2,))
        for t0, t1, step in zip(grid.tolist(), grid.tolist()[1:], noise, strict=False):
            expected = 0.99 * expected
            increment = step if eta else Increment()
            expected = EulerMaruyama().step(problem, t0, t1, expected, increment, ()).x
        close(found, expected)
