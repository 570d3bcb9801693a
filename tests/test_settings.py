"""Every setting of a likelihood and of a sampler reaches what it sets: closed forms, and runs that
must be equal or differ.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from physical import run, span_of

import sdekit
from sdekit import (
    ODE,
    DPMSolverSingle,
    EulerMaruyama,
    Exact,
    ExponentialHeun,
    Heun,
    Hutchinson,
    Likelihood,
    PIDController,
    PredictorCorrector,
    Status,
    UnfinishedError,
    WhiteNoise,
    solve,
    uniform,
)
from sdekit._solvers import AbstractCorrector
from sdekit._solvers.contract import AbstractSolver, Order, Step
from sdekit_diffusion import (
    DDIM,
    DIFFUSIONS,
    EDM,
    VESDE,
    VPSDE,
    AbstractGrid,
    AdaptiveFlow,
    AdaptiveSDE,
    BitsPerDim,
    EmpiricalMixture,
    Focused,
    GaussianMixture,
    Given,
    InTime,
    Native,
    ScoreModel,
    SubVPSDE,
    bits_per_dim,
    decode,
    encode,
    interpolate,
    log_likelihood,
    nets,
    sample,
    sample_between,
)
from sdekit_diffusion._app.held_out import measured
from sdekit_diffusion._app.options import Estimate
from sdekit_diffusion._inference.encoding import slerp
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.in_time import _native_points
from sdekit_diffusion._sampling.method import ReverseProblem
from sdekit_diffusion._sampling.methods import method_of
from sdekit_diffusion._sampling.on_clock import _PLANS
from sdekit_diffusion.data import Scale

MIXTURE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.3, 0.2]
)
X = MIXTURE.sample(6, seed=1)
LOOSE = AdaptiveFlow(1e-2, 1e-2)


def oblique(dim):
    """A Gaussian with a full covariance, whose Jacobian is far from diagonal."""
    a = torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    covariance = a @ a.T / dim + 0.1 * torch.eye(dim)
    return GaussianMixture([1.0], torch.zeros(1, dim, dtype=torch.float64), covariance.unsqueeze(0))


# Probes


def test_one_standard_error_by_hand():
    """std / sqrt(K), of 1 and 3 sqrt(2) / sqrt(2); of 0, 0 and 3 sqrt(3) / sqrt(3)."""
    for values, expected in (([1.0, 3.0], 1.0), ([0.0, 0.0, 3.0], 1.0)):
        estimates = torch.tensor(values, dtype=torch.float64).unsqueeze(1)
        assert Hutchinson(len(values)).stderr(estimates).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_fixed_probes_of_a_linear_flow_in_closed_form(kind):
    """dx = A x dt over a span of 1/2: the K estimates are v^T A v / 2 for the K probes of the seed,
    and no others.
    """
    a = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    zero = torch.zeros(4)
    for seed in (0, 7):
        trace = Hutchinson(6, kind, seed=seed, fresh=False)
        v = torch.stack(list(trace.vectors(x, torch.arange(4), zero.long())))
        estimates = 0.5 * torch.einsum("kbi,ij,kbj->kb", v, a, v)
        found = sdekit.log_likelihood(
            ODE(lambda t, y: y @ a.T), x, [0.0, 0.5], lambda y: y.new_zeros(len(y)), trace=trace
        )
        torch.testing.assert_close(found.value, estimates.mean(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(found.stderr, estimates.std(0) / math.sqrt(6), rtol=0, atol=1e-9)


def test_probes_of_two_seeds_differ():
    values = [
        log_likelihood(MIXTURE, X, sde="vp", trace=Hutchinson(2, seed=seed), method=LOOSE).value
        for seed in (1, 2, 1)
    ]
    assert torch.equal(values[0], values[2])
    assert (values[0] != values[1]).all()


@dataclass(frozen=True)
class Recorded(Hutchinson):
    """Notes at which nodes of which sample it is asked."""

    asked: list = field(default_factory=list)

    def vectors(self, x, index, node):
        self.asked.extend(zip(index.tolist(), node.tolist(), strict=True))
        return super().vectors(x, index, node)


@pytest.mark.parametrize(
    ("solver", "nodes"), [(sdekit.Bosh3(), 3), (sdekit.Dopri5(), 4)], ids=["Bosh3", "Dopri5"]
)
def test_every_node_of_a_trajectory_has_a_number_of_its_own(solver, nodes):
    """0, 1, 2, ... up to the steps times the nodes of Gauss's rule, exact to twice their number:
    above the solver's order.
    """
    trace = Recorded(2)
    control = PIDController(1e-3, 1e-3)
    ends = [0.0, 2.0]
    equation = ODE(lambda t, y: torch.sin(3 * y))
    solution = solve(equation, X, ends, solver=solver, control=control)
    found = sdekit.log_likelihood(
        equation,
        X,
        ends,
        lambda y: y.new_zeros(len(y)),
        trace=trace,
        solver=solver,
        control=control,
    )
    assert torch.equal(found.evaluations, solution.evaluations + nodes * solution.accepted)
    for i, steps in enumerate(solution.accepted.tolist()):
        assert sorted(node for index, node in trace.asked if index == i) == list(
            range(nodes * steps)
        )


def test_all_probes_of_neighbouring_nodes_are_different():
    """As many as there may be: 4,096 at each of two nodes."""
    x = torch.zeros(2, 64, dtype=torch.float64)
    index = torch.zeros(2, dtype=torch.int64)
    vectors = torch.stack(list(Hutchinson(4096).vectors(x, index, torch.tensor([0, 1]))))
    bits = (vectors.flatten(0, 1) > 0).long()
    assert len((bits @ (1 << torch.arange(64))).unique()) == 8192


def test_up_to_32_dimensions_the_default_is_exact_and_above_it_has_eight_probes():
    for dim, probes in ((32, 0), (33, 8)):
        law = GaussianMixture([1.0], torch.zeros(1, dim, dtype=torch.float64), [0.5])
        latent = torch.zeros(1, dim, dtype=torch.float64)
        assert log_likelihood(law, latent, sde="vp", method=LOOSE).probes == probes
        assert (
            decode(law, latent, sde="vp", method=LOOSE, return_likelihood=True)[1].probes == probes
        )


def test_first_is_the_index_of_the_first_point():
    settings = {"sde": "vp", "trace": Hutchinson(3), "method": LOOSE}
    whole = log_likelihood(MIXTURE, X, **settings)
    part = log_likelihood(MIXTURE, X[2:], first=2, **settings)
    torch.testing.assert_close(part.value, whole.value[2:], rtol=0, atol=1e-9)
    back = decode(MIXTURE, whole.latent, return_likelihood=True, **settings)[1]
    part = decode(MIXTURE, whole.latent[2:], first=2, return_likelihood=True, **settings)[1]
    torch.testing.assert_close(part.value, back.value[2:], rtol=0, atol=1e-9)


# Likelihoods in the units of data


def test_nats_of_data_are_those_of_the_model_less_its_units():
    """log p(data) = log p(x) - d log u where x = (data - shift) / u; with the seed, probes,
    tolerance and index asked for.
    """
    torch.manual_seed(0)
    net = nets.MLP((40,), width=16, depth=1).double()
    model = ScoreModel(net, "vp", "velocity", shape=(40,), scale=Scale(1.0, 3.0, dtype="float64"))
    for p in net.parameters():
        p.data = p.data + 0.02
    data = 1 + 3 * torch.randn(
        2, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    x = (data - 1) / 3
    for seed, probes, tolerance in ((5, 3, 1e-2), (6, 2, 1e-3)):
        settings = {
            "trace": Hutchinson(probes, seed=seed),
            "method": AdaptiveFlow(tolerance, tolerance),
            "first": 4,
        }
        nats = log_likelihood(model, x, **settings)
        found = measured(
            model,
            model.scale,
            data,
            Estimate(probes=probes, tolerance=tolerance),
            seed=seed,
            first=4,
        )
        # Where the logarithm of the unit would not be rounded away.
        assert nats.value.abs().max() < 1e3
        torch.testing.assert_close(found.value, nats.value - 40 * math.log(3), rtol=0, atol=1e-9)
        torch.testing.assert_close(found.stderr, nats.stderr, rtol=0, atol=1e-9)


# Bits per dimension


LEVELS = torch.full((5, 34), 7)
BITS = {"low": -1.0, "high": 1.0, "levels": 17, "sde": "vp", "method": LOOSE}


def test_every_draw_of_every_point_is_its_own():
    """Noise of the dequantisation and probes: five points of the same levels, three draws."""
    law = oblique(34)
    exact = bits_per_dim(law, LEVELS, draws=3, trace=Exact(), **BITS)
    probed = bits_per_dim(
        law, LEVELS, draws=3, trace=Hutchinson(2, "gaussian", fresh=False), **BITS
    )
    assert len(exact.draws.flatten().unique()) == 15
    # The divergence of a Gaussian's flow is the same everywhere: what is left are the probes,
    # nearly the same if they are.
    error = (probed.draws - exact.draws).flatten()
    assert (error.unsqueeze(0) - error.unsqueeze(1)).abs().add(torch.eye(15)).min() > 1e-4


def test_the_error_of_a_mean_of_draws():
    """sqrt(sum of squares) / draws of the standard errors of single draws; evaluations add up."""
    law = oblique(34)
    settings = {**BITS, "trace": Hutchinson(3)}
    found = bits_per_dim(law, LEVELS, draws=3, **settings)
    single = [bits_per_dim(law, LEVELS, first=i << 40, **settings) for i in range(3)]
    torch.testing.assert_close(
        found.draws, torch.stack([part.value for part in single]), rtol=0, atol=1e-9
    )
    squares = torch.stack([part.probe_stderr for part in single]).square().sum(0)
    torch.testing.assert_close(found.probe_stderr, squares.sqrt() / 3, rtol=1e-9, atol=0)
    assert torch.equal(found.evaluations, torch.stack([part.evaluations for part in single]).sum(0))


def test_parts_of_an_error_by_hand():
    """Two draws of three points: what probes leave is not counted again as dequantisation."""
    draws = torch.tensor([[1.0, 2.0, 6.0], [2.0, 4.0, 6.0]], dtype=torch.float64)
    stderr = torch.tensor([0.3, 0.6, 0.6], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.int64)
    parts = BitsPerDim(draws, stderr, zero, zero, probes=8).parts
    assert parts["probes"] == pytest.approx(math.sqrt((0.09 + 0.36 + 0.36) / 3 / 3))
    drawn = (0.5 + 2.0 + 0.0) / 3 / 2 / 3
    assert parts["dequantisation"] == pytest.approx(math.sqrt(drawn - 0.81 / 9))
    total = torch.tensor([1.5, 3.0, 6.0], dtype=torch.float64).var().item() / 3
    assert parts["data"] == pytest.approx(math.sqrt(total - drawn))


def test_the_status_of_a_point_is_the_worst_of_its_draws(monkeypatch):
    """A draw that is given up shows, whichever it is."""
    statuses = iter([[0, 0, 3], [0, 2, 0], [0, 0, 0]])

    def solved(model, points, **settings):
        zero = torch.zeros(3, dtype=torch.float64)
        return Likelihood(zero, zero, points, zero.long(), torch.tensor(next(statuses)), 0, zero)

    monkeypatch.setattr("sdekit_diffusion._inference.bits_per_dim.log_likelihood", solved)
    assert bits_per_dim(MIXTURE, LEVELS[:3], draws=3, **BITS).status.tolist() == [0, 2, 3]


# Where solves begin and end


def test_the_prior_is_that_of_the_time_at_which_the_solve_begins():
    """Where alpha(T) = 0 it begins before T, at sigma / alpha = 160 s."""
    sde = DIFFUSIONS["flow"]()
    start = float(sde.time(-math.log(160 * MIXTURE.data_std)))
    assert start < sde.T
    assert span_of(MIXTURE, sde, 1e-3)[0] == pytest.approx(-math.log(160 * MIXTURE.data_std))
    alpha, sigma = sde.kernel(start)
    deviation = math.hypot(alpha * MIXTURE.data_std, sigma)
    prior = torch.distributions.Normal(alpha * MIXTURE.data_mean, deviation)
    given = log_likelihood(
        MIXTURE, X, sde=sde, method=LOOSE, log_prior=lambda x: prior.log_prob(x).sum(1)
    )
    found = log_likelihood(MIXTURE, X, sde=sde, method=LOOSE)
    torch.testing.assert_close(found.value, given.value, rtol=0, atol=1e-9)
    settings = {"sde": sde, "method": AdaptiveFlow(1e-6, 1e-6)}
    fine = log_likelihood(MIXTURE, X, **settings)
    again = decode(MIXTURE, fine.latent, return_likelihood=True, **settings)[1]
    torch.testing.assert_close(again.value, fine.value, rtol=0, atol=1e-4)


def test_a_solve_begins_where_both_the_model_and_the_diffusion_reach():
    vp = VPSDE(0.1, 4.0)
    ve = VESDE(0.01, 50.0)
    model = ScoreModel(nets.MLP((2,), width=8, depth=1), vp, "noise", shape=(2,))
    assert span_of(model, ve, 1e-3)[0] == pytest.approx(float(vp.log_snr(1.0)))
    assert span_of(model, vp, 1e-3)[0] == pytest.approx(float(vp.log_snr(1.0)))


def test_the_adaptive_flow_ends_in_the_diffusions_own_scale():
    """`decode` is in the scale of the data, the sampler in that of x_t: alpha(t) apart, which is
    0.89 here.
    """
    sde = DIFFUSIONS["subvp"]()
    method = AdaptiveFlow(1e-6, 1e-6)
    end = 0.5
    z = sde.prior((4, 2), seed=0, dtype=torch.float64)
    low, high = span_of(MIXTURE, sde, end)
    alpha = float(sde.alpha(float(sde.time(high))))
    assert alpha < 0.95
    x = run(method, MIXTURE, sde, z, (low, high))
    torch.testing.assert_close(
        x, alpha * decode(MIXTURE, z, sde=sde, end=end, method=method), rtol=0, atol=1e-9
    )


def test_an_adaptive_method_shows_its_two_ends():
    seen = []
    for method in (LOOSE, AdaptiveSDE()):
        seen.clear()
        x = sample(MIXTURE, 3, sde="vp", method=method, seed=0, end=0.05, callback=seen.append)
        assert [point.step for point in seen] == [0, 1]
        assert seen[0].t == pytest.approx(1.0)
        end = 0.05 * MIXTURE.data_std
        assert seen[1].t == pytest.approx(float(VPSDE().time(-math.log(end))))
        torch.testing.assert_close(seen[1].x, x * VPSDE().alpha(seen[1].t))


# Tolerances


@pytest.mark.parametrize(("method", "fine"), [(AdaptiveFlow, 1e-7), (AdaptiveSDE, 1e-2)])
def test_both_tolerances_count(method, fine):
    """A step is accepted by the sum of both, so that either alone saves steps of a solve to the
    finer one.
    """

    def steps(rtol, atol):
        settings = {"method": method(rtol, atol), "seed": 0, "dtype": torch.float64, "end": 0.1}
        return float(
            sample(MIXTURE, 20, sde="vp", return_solution=True, **settings).accepted.double().mean()
        )

    most = steps(fine, fine)
    assert steps(fine, 30 * fine) < 0.8 * most
    assert steps(30 * fine, fine) < 0.8 * most


def test_an_accuracy_takes_a_tenth_and_a_hundredth_and_counts_all_solves():
    """Samples that two solves satisfy cost those two; six evaluations a step that was tried, and
    one for each solve.
    """
    a = 1e-2
    span = tuple(reversed(span_of(MIXTURE, VPSDE(), 1e-3)))
    found = AdaptiveFlow(accuracy=a).solve_flow(MIXTURE, X, span)
    parts = [AdaptiveFlow(tol, tol).solve_flow(MIXTURE, X, span) for tol in (a / 10, a / 100)]
    twice = found.evaluations == parts[0].evaluations + parts[1].evaluations
    assert twice.any()
    torch.testing.assert_close(found.x[twice], parts[1].x[twice], rtol=0, atol=1e-9)
    for name in ("accepted", "rejected"):
        assert torch.equal(
            getattr(found, name)[twice], sum(getattr(part, name) for part in parts)[twice]
        )


def test_a_rejected_step_becomes_shorter_whatever_the_errors_before():
    """PI control would lengthen it where the error before was larger."""
    control = PIDController(proportional=0.4, integral=0.3)
    before = np.array([[1e4, 1.0]])
    assert control.factor(np.array([1.01]), before, 5).item() <= control.safety
    assert control.factor(np.array([0.99]), before, 5).item() > 1


# Failures, as the caller knows them


def broken(x, t):
    """The score of N(0, 0.3 I) under VE; not finite along the flow of points beyond 50."""
    variance = 0.3 + (0.01 * 5000 ** t[:, None]) ** 2
    return torch.where(x * (0.3 / variance).sqrt() > 50, math.nan, -x / variance)


def test_failures_are_told_by_the_callers_rows_times_and_scale():
    """Under VE, whose x at the noisy end is fifty times as large as that of the flow's own
    equation.
    """
    std = math.sqrt(0.3)
    model = ScoreModel(broken, "ve", "score", shape=(2,), data_std=std)
    end = float(VESDE().time(math.log(1000 / std)))
    x = torch.cat([X[:5], torch.full((1, 2), 60.0, dtype=torch.float64)])
    exact = encode(model, X[:5], method=LOOSE)
    for solved in (
        lambda: encode(model, x, method=LOOSE, batch_size=4),
        lambda: log_likelihood(model, x, method=LOOSE, batch_size=4),
    ):
        with pytest.raises(UnfinishedError, match="row 5: ") as caught:
            solved()
        error = caught.value
        assert error.solution.status.tolist() == [Status.DONE, Status.NOT_FINITE]
        torch.testing.assert_close(error.solution.x[0], exact[4], rtol=0, atol=1e-9)
        assert error.reached.tolist() == pytest.approx([1.0, end], abs=1e-6)


def test_half_precision_is_solved_in_single():
    found = log_likelihood(MIXTURE, X.half(), sde="vp", method=LOOSE)
    assert found.latent.dtype == torch.float32
    torch.testing.assert_close(
        found.value, log_likelihood(MIXTURE, X.half().float(), sde="vp", method=LOOSE).value
    )


def test_likelihoods_refuse_points_that_are_not_finite():
    x = X.clone()
    x[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"x is not finite in rows \[3\]"):
        log_likelihood(MIXTURE, x, sde="vp")


# Latents


def test_interpolation_gives_each_pair_its_own_condition():
    """A Gaussian about the condition of its row."""

    y = torch.tensor([0.0, 3.0], dtype=torch.float64)
    model = ScoreModel(_Shifted(), "vp", "noise", shape=(2,), data_std=1.0).given(y=y)
    both = interpolate(model, X[:2], X[2:4], 3, method=LOOSE)
    for i in range(2):
        alone = model.given(y=y[i : i + 1])
        one = interpolate(alone, X[i : i + 1], X[i + 2 : i + 3], 3, method=LOOSE)
        torch.testing.assert_close(both[:, i : i + 1], one, rtol=0, atol=1e-9)


class _Shifted(torch.nn.Module):
    """Noise of data about a condition."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x, t, y):
        return self.weight * torch.tanh(x - y[:, None])


@pytest.mark.parametrize("angle", [0.05, 1.0, 3.1])
def test_slerp_stays_on_the_circle(angle):
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    z = slerp(a, b, torch.tensor([0.25], dtype=torch.float64))[0, 0]
    assert z.tolist() == pytest.approx([math.cos(angle / 4), math.sin(angle / 4)], abs=1e-12)


def test_samples_between_two_seeds_begin_where_the_flow_does():
    """Flow matching begins before T, where sigma is not 1."""
    model = EmpiricalMixture(torch.zeros(1, 3, dtype=torch.float64), 1.0)
    given = {"sde": "flow", "method": "ode", "end": 0.01}
    found = sample_between(model, 3, 8, 3, **given)
    for end, seed in ((0, 3), (-1, 8)):
        torch.testing.assert_close(
            found[end], sample(model, seed=seed, **given)[0], rtol=0, atol=1e-4
        )


# Samplers


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.3])
def test_one_step_in_time(eta):
    """x - [f x - (1 + eta^2)/2 g^2 s] h + eta g sqrt(h) z, by Euler and Maruyama's method."""
    sde = VPSDE()
    method = InTime(EulerMaruyama(), eta=eta)
    x = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    span = (-1.0, 0.5)
    t0, t1 = (float(sde.time(l)) for l in span)
    noise = WhiteNoise(3)
    g2 = float(sde.g(t0)) ** 2
    drift = float(sde.f(t0)) * x - 0.5 * (1 + eta**2) * g2 * MIXTURE.score(t0, x, sde)
    w = next(iter(noise.increments([t0, t1], x, (2,)))).w
    once = replace(method, steps=1, grid=Given(torch.tensor(span, dtype=torch.float64)))
    found = run(once, MIXTURE, sde, x, span, noise if eta else None)
    torch.testing.assert_close(
        found, x + drift * (t1 - t0) + eta * math.sqrt(g2) * w, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("s_tmin", "s_tmax"), [(0.0, math.inf), (0.6, math.inf), (0.0, 0.8)])
@pytest.mark.parametrize("s_noise", [1.0, 1.5])
def test_churn_of_data_at_one_point(s_tmin, s_tmax, s_noise):
    """eps = y / t, along which Heun's step is exact, y_1 = y^ t_1 / t: what is left is the noise
    asked for.

    Also at the start, t = 2, which is below the noisy end of the diffusion.
    """
    ve = VESDE()
    point = EmpiricalMixture(torch.zeros(1, 4, dtype=torch.float64))
    ts = [2.0, 1.0, 0.5, 0.25]
    grid = torch.tensor([-math.log(t) for t in ts], dtype=torch.float64)
    span = (float(grid[0]), float(grid[-1]))
    y = torch.ones(2, 4, dtype=torch.float64)
    noise = WhiteNoise(5)
    drawn = noise.increments(ts, y, None, normals=1)
    method = EDM(1.2, s_tmin, s_tmax, s_noise, steps=3, grid=Given(grid))
    found = run(method, point, ve, y, span, noise)
    for t0, t1, step in zip(ts, ts[1:], drawn, strict=False):
        t = 1.4 * t0 if s_tmin <= t0 <= s_tmax else t0
        y = (y + s_noise * math.sqrt(t**2 - t0**2) * step.z[0]) * t1 / t
    torch.testing.assert_close(found, y, rtol=0, atol=1e-9)


def test_ddim_has_the_noise_asked_for():
    """Data at one point: sqrt(tau_1^2 - c^2) y_0 / tau_0 + s_noise c z, in one step under VE."""
    ve = VESDE()
    point = EmpiricalMixture(torch.zeros(1, 3, dtype=torch.float64))
    eta = 0.5
    y = torch.ones(2, 3, dtype=torch.float64)
    span = (-math.log(2.0), 0.0)
    noise = WhiteNoise(5)
    c = eta * math.sqrt(1 - 1 / 4)
    clock = [math.exp(2 * eta**2 * l) for l in span]
    z = next(iter(noise.increments(clock, y, (3,)))).w / math.sqrt(clock[1] - clock[0])
    for s_noise in (1.0, 1.5):
        method = DDIM(
            eta, s_noise=s_noise, steps=1, grid=Given(torch.tensor(span, dtype=torch.float64))
        )
        found = run(method, point, ve, y, span, noise)
        torch.testing.assert_close(
            found, math.sqrt(1 - c * c) * y / 2 + s_noise * c * z, rtol=0, atol=1e-9
        )


def test_exponential_heun_takes_g_in_the_middle():
    noise = WhiteNoise(2)
    x = torch.zeros(3, 2, dtype=torch.float64)
    w = next(iter(noise.increments([1.0, 2.0], x, (2,)))).w
    equation = sdekit.SDE(lambda t, x: 0 * x, lambda t, x: t**2, "additive")
    found = solve(equation, x, [1.0, 2.0], solver=ExponentialHeun(0.0), noise=noise).x
    torch.testing.assert_close(found, 1.5**2 * w, rtol=0, atol=1e-12)


@dataclass(frozen=True, eq=False)
class Drawing(AbstractSolver):
    """Adds the normal that it draws."""

    order = {"additive": Order(1, 1)}
    normals = 1

    def step(self, problem, t0, t1, x, noise, state):
        assert len(noise.z) == 1
        return Step(x + noise.z[0])


@dataclass(frozen=True, eq=False)
class Adding(AbstractCorrector):
    """Adds ten times the normal that it draws."""

    normals = 1

    def correct(self, problem, t0, t1, x, z):
        assert len(z) == 1
        return x + 10 * z[0]


def test_predictor_and_corrector_draw_normals_of_their_own():
    noise = WhiteNoise(2)
    x = torch.zeros(3, 2, dtype=torch.float64)
    equation = sdekit.SDE(lambda t, x: 0 * x, lambda t, x: 1.0, "additive")
    z = next(iter(noise.increments([1.0, 0.0], x, (2,), normals=2))).z
    found = solve(
        equation, x, [1.0, 0.0], solver=PredictorCorrector(Drawing(), Adding()), noise=noise
    ).x
    torch.testing.assert_close(found, z[0] + 10 * z[1])


def test_single_step_of_order_three_has_its_stages_at_thirds():
    assert DPMSolverSingle(3).c == (1 / 3, 2 / 3)


def test_a_method_is_an_object():
    with pytest.raises(TypeError, match=r"method is an object, DDIM\(...\), not the class"):
        sample(MIXTURE, 2, sde="vp", method=DDIM)


def test_the_native_grid_is_computed_once_for_all_calls():
    """Of a diffusion that cannot change; and what callers do to the points does not reach it."""

    def model(std=1.0):
        return ScoreModel(lambda x, t: -x, "vp", "score", shape=(1,), data_std=std)

    def times(law, sde, grid):
        method = InTime(Heun(), 0.0, steps=30, grid=grid)
        return sample(law, 2, sde=sde, method=method, seed=0, return_solution=True).ts

    def expected(law, sde, grid):
        coordinates = Coordinates.of(law, sde)
        points = grid.points(coordinates, coordinates.span(law, 1e-3), 30)
        return torch.as_tensor(coordinates.time(points))

    _native_points.cache_clear()
    usual = (model(), VPSDE(), Native())
    times(*usual).zero_()
    coordinates = Coordinates.of(usual[0], VPSDE())
    span = coordinates.span(usual[0], 1e-3)
    problem = ReverseProblem(usual[0], coordinates, torch.zeros(1, 1), span)
    method = InTime(Heun(), 0.0, steps=30)
    method.points(problem).zero_()
    assert torch.equal(times(*usual), expected(*usual))
    assert _native_points.cache_info().misses == 1
    InTime(Heun(), 0.0, steps=2001).points(problem)
    assert _native_points.cache_info().misses == 1  # a long one is not kept
    cases = [
        usual,
        (model(), SubVPSDE(), Native()),
        (model(), VPSDE(beta_max=10.0), Native()),
        (model(2.0), VPSDE(), Native()),
        (model(), VPSDE(), Focused()),
    ]
    assert len({tuple(times(*case).tolist()) for case in cases}) == len(cases)
    for case in cases:
        assert torch.equal(times(*case), expected(*case))


def test_a_native_grid_after_calls_with_other_modes():
    """Nothing of the mode of the first call is kept."""
    law = ScoreModel(lambda x, t: -x, "vp", "score", shape=(1,), data_std=1.0)
    method = InTime(Heun(), 0.0, steps=10)
    expected = sample(law, 2, method=method, seed=0)
    _native_points.cache_clear()
    with torch.inference_mode():
        sample(law, 2, method=method, seed=0)
    coordinates = Coordinates.of(law, VPSDE())
    problem = ReverseProblem(law, coordinates, torch.zeros(1, 1), coordinates.span(law, 1e-3))
    assert not method.points(problem).is_inference()
    assert torch.equal(sample(law, 2, method=method, seed=0), expected)


def test_the_times_of_a_method_are_those_of_the_points_that_it_receives():
    law = ScoreModel(lambda x, t: -x, "vp", "score", shape=(1,), data_std=1.0)
    coordinates = Coordinates.of(law, VPSDE())
    problem = ReverseProblem(law, coordinates, torch.zeros(1, 1), (-2.0, 2.0))
    method = InTime(Heun(), 0.0, steps=4)
    method.points(problem)
    for points in (torch.linspace(-2, 2, 5), torch.tensor([-2.0, 0.5, 1.0, 1.5, 2.0])):
        times = method.transformed(problem, points.double()).times
        assert [*times] == coordinates.time(points.double()).tolist()


def test_the_native_grid_of_a_diffusion_that_can_change_is_what_it_is_in_each_call():
    class Changing(VPSDE):
        power = 1.0

        def spaced(self, t0, t1, u):
            return t0 + (t1 - t0) * u**self.power

    sde = Changing()
    law = ScoreModel(lambda x, t: -x, sde, "score", shape=(1,), data_std=1.0)

    def times():
        method = InTime(Heun(), 0.0, steps=10)
        return sample(law, 2, method=method, seed=0, return_solution=True).ts

    first = times()
    sde.power = 2.0
    assert not torch.equal(times(), first)


def test_a_grid_that_can_change_is_what_it_is_in_each_call():
    class Held(AbstractGrid):
        power = 1.0

        def points(self, coordinates, span, steps):
            return span[0] + (span[1] - span[0]) * uniform(0.0, 1.0, steps) ** self.power

    grid = Held()
    law = ScoreModel(lambda x, t: -x, "vp", "score", shape=(1,), data_std=1.0)
    method = InTime(Heun(), 0.0, steps=4, grid=grid)
    first = sample(law, 2, method=method, seed=0, return_solution=True).ts
    grid.power = 2.0
    assert not torch.equal(sample(law, 2, method=method, seed=0, return_solution=True).ts, first)


def test_a_grid_in_time_is_computed_once_in_a_call():
    """And each grid of a call has its own points, at each number of steps."""
    computed = []

    @dataclass(frozen=True, eq=False)
    class Counting(AbstractGrid):
        power: float

        def points(self, coordinates, span, steps):
            computed.append((self.power, steps))
            return span[0] + (span[1] - span[0]) * uniform(0.0, 1.0, steps) ** self.power

    law = GaussianMixture([1.0], [[0.0]], [1.0])
    x = [
        sample(law, 2, sde="vp", method=InTime(Heun(), 0.0, steps=n, grid=Counting(power)), seed=0)
        for n, power in ((3, 1.0), (4, 1.0), (4, 2.0))
    ]
    assert computed == [(1.0, 3), (1.0, 4), (2.0, 4)]
    assert not torch.equal(x[0], x[1])
    computed.clear()
    noisy = InTime(EulerMaruyama(), steps=200, grid=Counting(1.0))
    sample(law, 4, sde="vp", method=noisy, batch_size=2, seed=0)
    assert computed == [(1.0, 200)]
    span = (-1.0, 1.0)
    coordinates = Coordinates.of(law, VPSDE())
    methods = [noisy, replace(noisy, grid=Counting(2.0)), replace(noisy, steps=3)]
    for method in methods:
        expected = method.grid.points(coordinates, span, method.steps)
        points, times = method._points(coordinates, span)
        assert [*points] == expected.tolist()
        assert [*times] == coordinates.time(expected).tolist()
    assert noisy._points(coordinates, (-1.0, 2.0))[0][-1] == 2.0


def test_the_times_of_a_grid_on_a_clock_are_its_own():
    """Also after a call with another grid of as many points on the same clock."""
    law = ScoreModel(lambda x, t: -x, "vp", "score", shape=(1,), data_std=1.0)
    coordinates = Coordinates.of(law, VPSDE())
    problem = ReverseProblem(law, coordinates, torch.zeros(1, 1), (-2.0, 2.0))
    method = method_of("ddim")
    for points in (uniform(-2.0, 2.0, 4), uniform(-2.0, 1.0, 4)):
        transformed = method.transformed(problem, points)
        assert [*transformed.times] == transformed.equation.time(points).tolist()


def test_the_plans_of_long_grids_are_not_kept():
    law = ScoreModel(lambda x, t: -x, "vp", "score", shape=(1,), data_std=1.0)
    sde = VPSDE(beta_max=17.25)  # whose clock no other test uses
    for steps, kept in ((2001, 0), (2000, 2)):
        sample(law, 2, sde=sde, method="dpmpp_2m", steps=steps, seed=0)
        plans = [plans for key, plans in _PLANS.items() if sde in key]
        assert sum(map(len, plans)) == kept  # the times and the plan
