"""Weighted posteriors: evidences and moments against exact ones; what numbers depend on."""

import math
import warnings
from dataclasses import dataclass, field, replace

import pytest
import torch

from sdekit import SRA1, AdamsBashforth, Hutchinson
from sdekit_diffusion import (
    DPS,
    AbstractWeighting,
    AdaptiveFlow,
    DataCovariance,
    FlowWeights,
    GaussianMixture,
    IsotropicCovariance,
    LinearObservation,
    MomentMatched,
    Observation,
    OnClock,
    Particles,
    ScoreModel,
    Sigmas,
    WeightedSamples,
    bayes_factor,
    nets,
    sample_posterior,
)
from sdekit_diffusion._inference.particles import Cloud, CloudSolve
from sdekit_diffusion._inference.weighted import systematic

pytestmark = pytest.mark.filterwarnings("ignore:.* steps are few for AdamsMoulton")

Z = 5.6  # standard errors: a false alarm once in 40 million comparisons


def problem(d, m=1):
    """A mixture of three modes and an observation that several of them explain."""
    generator = torch.Generator().manual_seed(d)
    means = 2 * torch.randn(3, d, generator=generator, dtype=torch.float64)
    roots = 0.5 * torch.randn(3, d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    law = GaussianMixture(
        [0.5, 0.3, 0.2], means, roots @ roots.mT + 0.05 * torch.eye(d, dtype=torch.float64)
    )
    a = torch.randn(m, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    y = means.mean(0) @ a.T
    return law, LinearObservation(a, y, 0.3)


def require_exact(samples, law, given, allowance=0.0):
    """log p(y), and means and variances under the posterior, within their errors.

    Those of moments are from the spread of the clouds, of which there are enough for a normal law.
    """
    exact = law.given(given)
    error = float(samples.log_evidence - law.log_evidence(given))
    assert abs(error) < Z * float(samples.log_evidence_stderr) + allowance
    clouds = samples.clouds
    x = samples.x.unflatten(0, (clouds, -1))
    w = (samples.log_weights - samples.log_evidence).exp().unflatten(0, (clouds, -1))
    for power, known in ((1, exact.mean()), (2, exact.covariance().diagonal())):
        h = (x - (exact.mean() if power == 2 else 0)) ** power - known
        residuals = (w[..., None] * h).mean(1)
        stderr = residuals.std(0) / math.sqrt(clouds)
        assert (residuals.mean(0).abs() < Z * stderr + allowance * known.abs()).all()


@pytest.mark.parametrize(("d", "m"), [(1, 1), (2, 2), (16, 2)])
def test_particles_are_exact(d, m):
    """To the error of 12 clouds; that of 40 steps is below a fiftieth of a nat, that of the default
    number smaller. One measurement of two coordinates is in the tests below.
    """
    law, given = problem(d, m)
    samples = sample_posterior(law, given, 12 * 64, sde="vp", seed=0, particles=64, steps=40)
    assert samples.clouds == 12
    assert samples.evaluations.unique().tolist() == [41]
    assert samples.log_evidence_stderr < 0.15
    require_exact(samples, law, given, 0.02)


def test_the_default_takes_a_hundred_steps():
    law, given = problem(1)
    samples = sample_posterior(law, given, 8, sde="vp", seed=0, particles=8)
    assert samples.evaluations.tolist() == [101] * 8


PROPOSALS = {
    "diagonal": "diagonal",
    "jacobian": "jacobian",
    "data": lambda law, given: MomentMatched(law, given, DataCovariance(law.covariance())),
    "laplace": "laplace",
    "dps": "dps",
}


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_every_proposal_has_the_same_law(proposal):
    law, given = problem(2)
    samples = sample_posterior(
        law, given, 10 * 64, sde="ve", seed=0, proposal=PROPOSALS[proposal], particles=64, steps=10
    )
    require_exact(samples, law, given, 0.05)


PROBED = FlowWeights(trace=Hutchinson(16), batch_size=99)


@pytest.mark.parametrize("method", ["path", "flow", PROBED], ids=["path", "flow", "probes"])
def test_other_weights(method):
    law, given = problem(2)
    n = 1024 if method == "path" else 200
    samples = sample_posterior(law, given, n, sde="vp", seed=0, method=method, proposal="jacobian")
    error = float(samples.log_evidence - law.log_evidence(given))
    stderr = samples.weights.std() * n / math.sqrt(n)
    torch.testing.assert_close(samples.log_evidence_stderr, stderr)
    assert abs(error) < Z * float(stderr) + 0.02
    assert (samples.probe_variance > 0) == isinstance(method, FlowWeights)
    assert samples.ess > 0.2 * n
    exact = law.given(given)
    weighted = (samples.x - exact.mean()) * samples.weights[:, None] * n
    assert ((weighted.mean(0)).abs() < Z * weighted.std(0) / math.sqrt(n)).all()


def test_the_weights_are_needed():
    """The accuracy trap: y between two modes, whose weights moment matching does not keep."""
    law = GaussianMixture([0.8, 0.2], torch.tensor([[-4.0], [4.0]]).double(), [1.0, 1.0])
    given = LinearObservation(torch.eye(1).double(), torch.zeros(1).double(), 1.0)
    samples = sample_posterior(law, given, 2048, sde="vp", seed=0, method="path")
    right = samples.x[:, 0] > 0
    stderr = math.sqrt(0.16 / float(samples.ess))
    assert float(samples.weights[right].sum()) == pytest.approx(0.2, abs=Z * stderr)
    assert float(right.double().mean()) > 0.3


def test_the_noise_of_y_is_followed():
    """From once to a thousandth of the data's deviation, at the tolerance that is chosen."""
    for d, ratios in ((2, (1.0, 0.03)), (8, (0.001,))):
        law, wide = problem(d)
        for ratio in ratios:
            noise = (ratio * law.data_std) ** 2
            given = LinearObservation(wide.operator, wide.y, noise)
            found = sample_posterior(law, given, 100, sde="vp", seed=0, method="flow")
            error = float(found.log_evidence - law.log_evidence(given))
            assert abs(error) < 0.05 + 3.5 * float(found.log_evidence_stderr), (d, ratio)


def test_clouds_depend_on_seed_and_number_alone():
    """Not on how many there are, nor on other observations, nor on their order."""
    law, given = problem(2)
    settings = {"sde": "vp", "seed": 4, "particles": 32, "steps": 10}
    few = sample_posterior(law, given, 64, **settings)
    many = sample_posterior(law, given, 160, **settings)
    assert torch.equal(few.x, many.x[:64])
    assert torch.equal(few.log_weights, many.log_weights[:64])
    ys = torch.tensor([[0.3], [-1.0], [2.0]], dtype=torch.float64)
    several = LinearObservation(given.operator, ys, 0.3)
    whole = sample_posterior(law, several, 64, **settings)
    assert whole.x.shape == (3, 64, 2)
    assert whole.log_evidence.shape == (3,)
    for j in range(3):
        one = LinearObservation(given.operator, ys[j], 0.3)
        alone = sample_posterior(law, one, 64, first=j, **settings)
        assert torch.equal(alone.x, whole.x[j])
        assert torch.equal(alone.log_weights, whole.log_weights[j])
    assert not torch.equal(sample_posterior(law, given, 64, **{**settings, "seed": 5}).x, few.x)
    flow = {"sde": "vp", "seed": 4, "method": FlowWeights(method=AdaptiveFlow(1e-2, 1e-2))}
    both = sample_posterior(law, several, 20, **flow)
    assert both.x.shape == (3, 20, 2)
    second = LinearObservation(given.operator, ys[1], 0.3)
    torch.testing.assert_close(sample_posterior(law, second, 20, first=1, **flow).x, both.x[1])


def test_poisson_counts():
    """An observation that is not linear, in one dimension, by quadrature."""
    law = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0], [1.5]]).double(), [0.3, 0.2])
    counts = torch.tensor([3.0, 5.0], dtype=torch.float64)

    def log_likelihood(x, y):
        return (y * x - x.exp() - (y + 1).lgamma()).sum(1)

    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    joint = (law.log_prob(x) + log_likelihood(x, counts)).exp()
    evidence = (joint.sum() * 12 / 4000).log()
    mean = (joint * x[:, 0]).sum() / joint.sum()
    samples = sample_posterior(
        law, Observation(counts, log_likelihood), 8 * 64, sde="vp", seed=0, particles=64, steps=32
    )
    error = float(samples.log_evidence - evidence)
    assert abs(error) < Z * float(samples.log_evidence_stderr) + 0.01
    assert samples.log_evidence_stderr < 0.03
    assert samples.mean() == pytest.approx(float(mean), abs=0.1)


@pytest.mark.parametrize(("y", "steps"), [(0.5, 24), (0.9, 16)])
def test_a_saturating_sensor(y, steps):
    """y = tanh(2 x) + noise: Newton's method alone would overshoot in the tail."""
    law = GaussianMixture([1.0], torch.zeros(1, 1).double(), [1.0])

    def log_likelihood(x, y):
        return -0.5 * ((torch.tanh(2 * x) - y) / 0.3).square().sum(1)

    x = torch.linspace(-8, 8, 8001, dtype=torch.float64)[:, None]
    observed = torch.tensor([y], dtype=torch.float64)
    joint = (law.log_prob(x) + log_likelihood(x, observed)).exp()
    exact = (joint.sum() * 16 / 8000).log()
    mean = float((joint * x[:, 0]).sum() / joint.sum())
    given = Observation(observed, log_likelihood)
    found = sample_posterior(law, given, 8 * 64, sde="vp", seed=0, particles=64, steps=steps)
    assert abs(float(found.log_evidence - exact)) < Z * float(found.log_evidence_stderr) + 0.03
    assert found.log_evidence_stderr < 0.08
    assert float(found.mean()) == pytest.approx(mean, abs=0.2)


def test_a_conditioned_model_of_ones_own_returns_what_is_asked():
    law, given = problem(2)

    class Wrong(DPS):
        def condition(self, l, u):
            return self.model.predict_data(l, u)

    with pytest.raises(TypeError, match=r"condition of Wrong must return Conditioned"):
        sample_posterior(Wrong(law, given), n=8, sde="vp", particles=8, steps=3)


def test_a_likelihood_that_is_zero_somewhere():
    """x > 0.3, half of the prior's mass; and one that is not a number is refused."""
    law = GaussianMixture([1.0], torch.zeros(1, 1).double(), [1.0])
    above = Observation(
        torch.zeros(1), lambda x, y: torch.where(x[:, 0] > 0.3, -0.5 * x[:, 0] ** 2, -math.inf)
    )
    prior = lambda law, y: DPS(law, y, zeta=0.0, jacobian=False)  # noqa: E731
    found = sample_posterior(
        law, above, 16 * 48, sde="vp", seed=0, proposal=prior, particles=48, steps=10
    )
    # The integral of N(x; 0, 1) e^{-x^2 / 2} above 0.3: the root of a half times a tail.
    exact = math.log(math.sqrt(0.5) * 0.5 * math.erfc(0.3))
    error = float(found.log_evidence) - exact
    assert abs(error) < Z * float(found.log_evidence_stderr) + 0.02
    assert (found.x[found.weights > 0] > 0.3).all()
    assert found.log_evidence_stderr < 0.25
    root = Observation(torch.zeros(1), lambda x, y: (x[:, 0] + 0.5).sqrt())
    with pytest.raises(ValueError, match="particles are not finite"):
        sample_posterior(law, root, 64, sde="vp", seed=0, particles=64, steps=10, proposal=prior)


def test_half_precision_is_solved_in_single():
    law, given = problem(2)
    settings = {"n": 64, "sde": "vp", "seed": 0, "particles": 64, "steps": 20}
    single = sample_posterior(law, given, dtype=torch.float32, **settings)
    half = sample_posterior(law, given, dtype=torch.bfloat16, **settings)
    assert half.x.dtype == torch.bfloat16
    assert torch.equal(half.x, single.x.to(torch.bfloat16))
    assert torch.equal(half.log_weights, single.log_weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_y_is_not_rounded_for_a_network_in_half_precision(dtype):
    """Nor the operator. The network is 0 in all dtypes."""

    class Zero(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, l):
            return self.weight * x

    given = LinearObservation(torch.tensor([[1.003, 1.007]]), torch.tensor([0.1003]), 1.0)
    single, half = (
        sample_posterior(
            ScoreModel(Zero(), "vp", "data", shape=(2,), data_std=1.0).to(kind),
            given, 64, seed=0, particles=64, steps=20, dtype=torch.float32,
        )
        for kind in (torch.float32, dtype)
    )  # fmt: skip
    assert torch.equal(half.log_weights, single.log_weights)


def test_probes_of_both_flows_are_independent():
    """With fixed probes the errors of both likelihoods would cancel, and their sum be corrected
    for.
    """
    law, given = problem(2)
    settings = {"n": 150, "sde": "vp", "seed": 0}
    exact = sample_posterior(law, given, method="flow", **settings)
    trace = Hutchinson(6, seed=1, fresh=False)
    found = sample_posterior(law, given, method=FlowWeights(trace=trace), **settings)
    noise = found.log_weights - exact.log_weights + 0.5 * found.probe_variance
    assert float(noise.var()) == pytest.approx(found.probe_variance, rel=0.5)


def test_the_noise_of_probes_has_no_bias():
    """e^v / 2 would be one: the mean of the log weights is that of exact traces less v / 2, with
    5.3 standard errors to either side, a false alarm of 1e-7.
    """
    law, given = problem(2)
    flow = AdaptiveFlow(1e-3, 1e-3)
    settings = {"n": 1500, "sde": "vp", "seed": 0}
    exact = sample_posterior(law, given, method=FlowWeights(method=flow), **settings)
    method = FlowWeights(method=flow, trace=Hutchinson(2, seed=1))
    found = sample_posterior(law, given, method=method, **settings)
    v = found.probe_variance
    assert v > 0.15
    assert float((found.log_weights - exact.log_weights).mean()) == pytest.approx(-v / 2, abs=v / 4)


@pytest.mark.parametrize("method", ["flow", "particles", "path"])
def test_samples_of_a_network_are_numbers_without_a_graph(method):
    torch.manual_seed(0)
    model = ScoreModel(
        nets.MLP(shape=(2,), width=8), "vp", "velocity", shape=(2,), conditioning="log_snr",
        data_std=1.0,
    )  # fmt: skip
    given = LinearObservation(torch.tensor([[1.0, 1.0]]), torch.tensor([0.2]), 0.3)
    found = sample_posterior(model, given, 32, seed=0, method=method, steps=None)
    assert not found.x.requires_grad
    assert not found.log_weights.requires_grad


@dataclass(frozen=True)
class Spans(AbstractWeighting):
    """Notes where problems are solved, and does not."""

    seen: list = field(default_factory=list)

    def run(self, problem):
        self.seen.append(math.exp(-problem.span[1]))  # sigma / alpha at the end, in units of s
        return WeightedSamples(torch.zeros(1, 1), torch.zeros(1))


def test_a_solve_ends_below_the_noise_of_y():
    law = GaussianMixture([1.0], torch.zeros(1, 1).double(), [1.0])
    for noise, end in ((1.0, 1e-3), (1e-3, 1e-4), (1e-9, 1e-6)):
        spans = Spans()
        given = LinearObservation(torch.eye(1).double(), torch.zeros(1).double(), noise**2)
        sample_posterior(law, given, 1, sde="edm", method=spans)
        sample_posterior(law, given, 1, sde="edm", method=spans, end=0.02)
        assert spans.seen == [pytest.approx(end), pytest.approx(0.02)]


def test_samples_that_are_numbers():
    """As those of one coordinate."""
    y = LinearObservation(torch.tensor([[1.0]]), torch.tensor([0.5]), 1.0)
    number, one = (
        sample_posterior(
            GaussianMixture([0.5, 0.5], means, [0.1, 0.1]), y, 128, sde="vp", seed=0, steps=10
        )
        for means in ([-1.0, 1.0], [[-1.0], [1.0]])
    )
    assert number.x.shape == (128,)
    torch.testing.assert_close(number.x, one.x[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(number.log_evidence, one.log_evidence, rtol=1e-4, atol=1e-4)


def test_each_resampling_has_a_number_of_its_own():
    """Of 40 steps of two clouds."""
    law, given = problem(1)
    solve = CloudSolve(
        MomentMatched(law, given), None, (0.0, 1.0), Particles().method, 0.5, torch.float64,
        torch.device("cpu"),
    )  # fmt: skip
    numbers = [float(solve._uniform(3, number, i)) for number in (0, 1) for i in range(40)]
    assert len({*numbers}) == 80


@pytest.mark.filterwarnings("ignore:the samples are not reliable")  # few are, of Euler's chain
def test_the_rule_of_weak_order_two_is_needed():
    """With few steps the evidence of Euler's chain is far from exact, and that of the default is
    not.
    """
    law, given = problem(1)
    exact = law.log_evidence(given)
    n = 64 * 32
    default, euler = (
        float(
            sample_posterior(
                law, given, n, sde="vp", seed=0,
                method=Particles(steps=12, method=OnClock(rule, eta=1.0)),
            ).log_evidence - exact
        )
        for rule in (Particles().method.solver, AdamsBashforth(1))
    )  # fmt: skip
    assert abs(default) < 0.5 * abs(euler)


def test_factors_of_models():
    law, given = problem(2)
    other = GaussianMixture([1.0], torch.zeros(1, 2).double(), [2.0])
    a, b = (
        sample_posterior(p, given, 8 * 64, sde="vp", seed=seed, particles=64, steps=40)
        for seed, p in enumerate((law, other))
    )
    value, stderr = bayes_factor(a, b)
    exact = law.log_evidence(given) - other.log_evidence(given)
    assert abs(float(value - exact)) < Z * float(stderr) + 0.02
    torch.testing.assert_close(stderr, torch.hypot(a.log_evidence_stderr, b.log_evidence_stderr))
    many, one = (WeightedSamples(torch.zeros(n, 4, 1), torch.zeros(n, 4)) for n in (3, 1))
    for pair in ((many, one), (a, many)):
        with pytest.raises(ValueError, match="as the numbers of observations"):
            bayes_factor(*pair)
    with pytest.warns(UserWarning, match=r"drawn with the same seed, 0, so their errors are not"):
        bayes_factor(a, replace(b, seed=0))
    settings = {"sde": "vp", "seed": 0, "particles": 8, "steps": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = (sample_posterior(law, given, 16, first=i, **settings) for i in (0, 1))
    three, others, some = (replace(many, seed=0, first=i) for i in (1, 4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bayes_factor(before, after)  # of the same seed, and other clouds
        bayes_factor(three, others)
    with pytest.warns(UserWarning, match="drawn with the same seed"):
        bayes_factor(three, some)
    with pytest.raises(TypeError, match=r"two results of sample_posterior, .* not -2\.0"):
        bayes_factor(a, -2.0)


def test_the_error_of_a_few_clouds():
    """The larger of that by their spread, which is often too small by chance, and that by the
    families of each.
    """
    x = torch.zeros(4, 1)
    log_weights = torch.tensor([0.2, 0.8, 0.4, 0.6], dtype=torch.float64).log()
    equal = WeightedSamples(x, log_weights, clouds=2)  # both of mean 1/2
    variances = [2 * (0.04 + 0.64) - 1, 2 * (0.16 + 0.36) - 1]
    assert float(equal.log_evidence_stderr) == pytest.approx(math.sqrt(sum(variances) / 4))
    related = replace(equal, ancestors=torch.tensor([0, 1, 2, 2]))
    assert float(related.log_evidence_stderr) == pytest.approx(math.sqrt((variances[0] + 1) / 4))
    other = torch.tensor([0.2, 0.8, 1.2, 1.8], dtype=torch.float64).log()  # of mean 3/2
    spread = float(WeightedSamples(x, other, clouds=2).log_evidence_stderr)
    assert spread == pytest.approx(0.5)
    many = WeightedSamples(x.repeat(4, 1), log_weights.repeat(4), clouds=8)
    assert float(many.log_evidence_stderr) < 1e-12


def test_few_steps_are_said():
    """Of rules with several values; one value per step has an error of its own order."""
    law, given = problem(2)
    settings = {"n": 16, "sde": "vp", "seed": 0}
    with pytest.warns(UserWarning, match=r"15 steps are few for AdamsMoulton: log p\(y\) may be"):
        sample_posterior(law, given, **settings, particles=16, steps=15)
    rule = OnClock(AdamsBashforth(1), eta=1.0, steps=15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample_posterior(law, given, **settings, particles=16, steps=16)
        sample_posterior(law, given, **settings, method=Particles(16, method=rule))


def test_resampling():
    weights = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25]])
    chosen = systematic(weights, torch.tensor([0.5, 0.2]), 10)
    assert torch.bincount(chosen[0], minlength=4).tolist() == [1, 0, 6, 3]
    assert (torch.bincount(chosen[1], minlength=4) - 2.5).abs().max() == 0.5
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([[0.2, 0.5, 0.3]]).expand(20_000, 3)
    counts = torch.nn.functional.one_hot(systematic(rows, u, 2), 3).double().sum(1).mean(0)
    assert counts.tolist() == pytest.approx([0.4, 1.0, 0.6], abs=5.6 * 0.5 / math.sqrt(20_000))
    x = torch.arange(8.0).reshape(2, 4, 1)
    samples = WeightedSamples(x, weights.log())
    drawn = samples.resampled(10, seed=1)
    assert drawn.shape == (2, 10, 1)
    assert set(drawn[0].flatten().tolist()) == {0.0, 2.0, 3.0}
    assert torch.equal(drawn, samples.resampled(10, seed=1))
    assert samples.resampled(0).shape == (2, 0, 1)
    for wrong in (-1, 2.5):
        with pytest.raises(ValueError, match=f"from 0 on; not {wrong}"):
            samples.resampled(wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_in_half_precision_are_those_in_single(dtype):
    """Squares of 300, and weights of 1e-5, are out of the range of float16."""
    generator = torch.Generator().manual_seed(0)
    x = (500 + 300 * torch.randn(100_000, 1, generator=generator)).to(dtype)
    log_weights = torch.randn(100_000, generator=generator, dtype=torch.float64)
    half, single = (WeightedSamples(values, log_weights) for values in (x, x.float()))
    for found, expected in ((half.mean(), single.mean()), (half.std(), single.std())):
        assert found.dtype == dtype
        assert torch.equal(found, expected.to(dtype))


def test_moments_and_sizes():
    x = torch.tensor([[0.0], [1.0], [4.0], [2.0]])
    samples = WeightedSamples(x, torch.tensor([0.1, 0.2, 0.4, 0.3]).double().log() + 3, clouds=2)
    assert float(samples.mean()) == pytest.approx(2.4)
    assert float(samples.std()) == pytest.approx(math.sqrt(0.2 * 1 + 0.4 * 16 + 0.3 * 4 - 2.4**2))
    assert float(samples.ess) == pytest.approx(1 / (0.01 + 0.04 + 0.16 + 0.09))
    assert float(samples.log_evidence) == pytest.approx(3 + math.log(0.25))
    clouds = samples.log_evidence_by_cloud
    assert clouds.tolist() == pytest.approx([3 + math.log(0.15), 3 + math.log(0.35)])
    spread = torch.tensor([0.15, 0.35]).std() / 0.25 / math.sqrt(2)
    assert float(samples.log_evidence_stderr) == pytest.approx(float(spread))
    alone = WeightedSamples(x, samples.log_weights)
    assert float(alone.log_evidence_stderr) == pytest.approx(math.sqrt((4 * 0.3 - 1) / 3))
    assert WeightedSamples(x[:1], torch.zeros(1)).log_evidence_stderr.isnan()
    assert repr(samples).startswith("WeightedSamples(4 samples in 2 clouds, effective 3.333")


class Unfollowed(torch.nn.Module):
    """A network that autograd does not see."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)

    def forward(self, x, t):
        with torch.no_grad():
            return self.inner(x)


@pytest.mark.filterwarnings("ignore:the samples are not reliable")
@pytest.mark.parametrize("proposal", ["diagonal", "jacobian", "dps"])
def test_networks_without_a_derivative_are_refused(proposal):
    """Where the proposal needs one; the others do not."""
    model = ScoreModel(Unfollowed(), "vp", shape=(2,), data_std=1.0)
    _, given = problem(2)
    settings = {"particles": 8, "steps": 5, "seed": 0}
    with pytest.raises(ValueError, match="remove no_grad or detach"):
        sample_posterior(model, given, 16, proposal=proposal, **settings)
    for other in ("isotropic", lambda law, y: DPS(law, y, jacobian=False)):
        found = sample_posterior(model, given, 16, proposal=other, **settings)
        assert found.x.isfinite().all()


def test_families():
    """Weights .8 and .2 of the descendants of two particles, and of three in another row."""
    weights = torch.tensor([0.1, 0.2, 0.4, 0.3]).double()
    ancestors = torch.tensor([[5, 4, 5, 5], [9, 10, 8, 10]])
    samples = WeightedSamples(torch.zeros(2, 4, 1), weights.log().expand(2, 4), ancestors=ancestors)
    families = [1 / (0.8**2 + 0.2**2), 1 / (0.1**2 + 0.5**2 + 0.4**2)]
    assert samples.families.tolist() == pytest.approx(families)
    stderr = [math.sqrt((4 / number - 1) / 3) for number in families]
    assert samples.log_evidence_stderr.tolist() == pytest.approx(stderr)
    assert samples.ess.tolist() == pytest.approx([1 / 0.3] * 2)


def test_the_error_of_one_cloud_is_that_between_clouds():
    """80 clouds of about eight families: the root mean square of what each states, over their
    spread, which is known to 8 %.
    """
    law, given = problem(2)
    far = LinearObservation(given.operator, given.y + 1.5, 0.2)
    found = sample_posterior(
        law, far, 80 * 32, sde="vp", seed=1, particles=32, steps=15,
        proposal=IsotropicCovariance(0.5),
    )  # fmt: skip
    parts = (v.unflatten(0, (80, 32)) for v in (found.x, found.log_weights, found.ancestors))
    x, log_weights, ancestors = parts
    assert (ancestors // 32 == torch.arange(80)[:, None]).all()
    stated = WeightedSamples(x, log_weights, ancestors=ancestors).log_evidence_stderr
    spread = float(found.log_evidence_stderr) * math.sqrt(80)
    assert 0.65 < float(stated.square().mean().sqrt()) / spread < 1.6


@pytest.mark.parametrize(
    ("n", "least"), [(16, 4.0), (40, 10.0), (160, 10.0), (320, 20.0), (1024, 64.0), (10_000, 100.0)]
)
def test_how_few_effective_samples_are_doubtful(n, least):
    """A sixteenth of n; a quarter of very few, at least ten of more, and 100 are always enough."""
    for effective, reliable in ((0.99 * least, False), (1.01 * least, True)):
        # One sample of weight a and n - 1 of weight 1, with (a + n - 1)^2 = ess (a^2 + n - 1).
        m = n - 1
        a = (m + math.sqrt(m * effective * (n - effective))) / (effective - 1)
        log_weights = torch.zeros(n, dtype=torch.float64)
        log_weights[0] = math.log(a)
        samples = WeightedSamples(torch.zeros(n, 1), log_weights, clouds=n)
        assert float(samples.ess) == pytest.approx(effective)
        assert bool(samples.reliable) == reliable


def test_doubtful_results_are_said():
    """Few particles of a proposal that ignores y, many and in one cloud; and y that no particle
    explains.
    """
    law, given = problem(16)
    far = LinearObservation(given.operator, given.y + 6, 0.01)
    prior = lambda law, y: DPS(law, y, zeta=0.0, jacobian=False)  # noqa: E731
    with pytest.warns(
        UserWarning, match=r"not reliable: .* effective and log p\(y\) of the clouds"
    ):
        sample_posterior(law, far, 64, sde="vp", seed=0, particles=16, steps=30, proposal=prior)
    with pytest.warns(UserWarning, match="they descend from effectively 1 initial particles"):
        found = sample_posterior(
            law, far, 64, sde="vp", seed=0, particles=64, steps=30, proposal=prior
        )
    assert not found.reliable
    impossible = Observation(torch.zeros(1), lambda x, y: x.sum(1) * 0 - math.inf)
    with pytest.raises(ValueError, match="all weights are 0"):
        sample_posterior(law, impossible, 16, sde="vp", particles=8, steps=5)
    with pytest.raises(ValueError, match=r"only up to 0\.3 can be corrected"):
        sample_posterior(
            law, given, 5, sde="vp", seed=0, method=FlowWeights(trace=Hutchinson(2, fresh=False))
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "particle"}, ValueError, "did you mean 'particles'"),
        ({"method": 3}, TypeError, r"an object such as Particles\(\)"),
        ({"proposal": "jacobi"}, ValueError, "unknown proposal 'jacobi'"),
        ({"proposal": lambda law, y: law}, TypeError, "must return a conditioned model"),
        ({"n": 0}, ValueError, "n must be 1 or more, not 0"),
        ({"first": -1}, ValueError, "first must be 0 or more, not -1"),
        ({"observation": None}, ValueError, "there is no observation"),
        ({"steps": 5, "method": "flow"}, ValueError, "steps are those of method='particles'"),
        ({"particles": 1}, ValueError, "particles >= 2"),
        ({"particles": 2.5}, ValueError, "whole numbers particles >= 2"),
        ({"steps": 5.5}, ValueError, "steps >= 1"),
        ({"proposal": 3}, TypeError, "proposal is a name, a covariance or a function"),
        ({"sde": None}, ValueError, "no diffusion of its own"),
        ({"dtype": torch.int32}, TypeError, r"must be floating, .* not torch\.int32"),
    ],
    ids=lambda value: "",
)
def test_arguments_are_checked(change, error, message):
    law, given = problem(2)
    settings = {"observation": given, "n": 8, "sde": "vp", "seed": 0, **change}
    with pytest.raises(error, match=message):
        sample_posterior(law, **settings)


def test_a_grid_of_levels_has_its_own_steps():
    levels = [20.0, 5.0, 1.0, 0.1, 0.01]
    own = Particles(method=OnClock(AdamsBashforth(1), eta=1.0, grid=Sigmas(levels)))
    assert own.number_of_steps == 4
    with pytest.raises(ValueError, match="end at a noise level above 0"):
        Particles(method=OnClock(AdamsBashforth(1), eta=1.0, grid=Sigmas([*levels, 0.0])))


def test_flows_that_do_not_end_are_refused():
    law, given = problem(2)
    short = FlowWeights(AdaptiveFlow(1e-2, 1e-2, max_steps=4))
    with pytest.raises(ValueError, match=r"the flows of \d of 8 samples did not reach their end"):
        sample_posterior(law, given, 8, sde="vp", seed=0, method=short)
    one = FlowWeights(AdaptiveFlow(1e-2, 1e-2), trace=Hutchinson(1))
    with pytest.raises(ValueError, match="an amount that one probe does not show"):
        sample_posterior(law, given, 8, sde="vp", seed=0, method=one)


def test_another_seed_has_other_probes():
    """For a single Gaussian of which the conditioned law is exact, so that the log-weights are
    log p(y) and the noise of the probes.
    """
    covariance = [[[1.0, 0.6, 0.3], [0.6, 1.0, 0.5], [0.3, 0.5, 1.0]]]
    law = GaussianMixture([1.0], torch.zeros(1, 3, dtype=torch.float64), covariance)
    given = LinearObservation(torch.tensor([[1.0, 1.0, 0.0]]).double(), torch.tensor([0.2]), 0.5)
    method = FlowWeights(AdaptiveFlow(1e-3, 1e-3), trace=Hutchinson(16))
    first, again, other = (
        sample_posterior(law, given, 60, sde="vp", method=method, seed=seed).log_weights
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    correlation = float(torch.corrcoef(torch.stack([first, other]))[0, 1])
    assert abs(correlation) < 0.6  # 60 independent pairs: above with a probability below 1e-6


def test_more_arguments_are_checked():
    law, given = problem(2)
    for eta in (0.0, lambda l: 1.0):
        with pytest.raises(ValueError, match="a number eta > 0"):
            Particles(method=OnClock(AdamsBashforth(1), eta=eta))
    own = Particles(8, method=OnClock(AdamsBashforth(1), eta=1.0, steps=7))
    found = sample_posterior(law, given, 64, sde="vp", method=own)
    assert found.evaluations.unique().tolist() == [8]
    with pytest.raises(ValueError, match="leave out observation and proposal"):
        sample_posterior(MomentMatched(law, given), n=8, sde="vp", proposal="dps")
    stages = Particles(method=OnClock(SRA1(), eta=1.0))
    with pytest.raises(TypeError, match="not normal with a known mean"):
        sample_posterior(law, given, 8, sde="vp", method=stages)
    with pytest.raises(ValueError, match="the model is given an observation already"):
        sample_posterior(MomentMatched(law, given), given, 8, sde="vp")
    exact = LinearObservation(given.operator, given.y, 0.0)
    with pytest.raises(ValueError, match="with noise 0"):
        sample_posterior(law, exact, 8, sde="vp")
    found = sample_posterior(MomentMatched(law, given), n=64, sde="vp", particles=64, steps=20)
    assert found.x.shape == (64, 2)


def test_conditions_belong_to_observations():
    """Not to the samples of each, of which another number is asked for."""
    model = ScoreModel(nets.MLP((2,), 8, classes=3), "vp", shape=(2,), data_std=1.0)
    labelled = model.given(label=torch.tensor([0, 1, 2]))
    for y, message in (
        (torch.zeros(2), r"label has 3 entries, and there is 1 observation: give one entry per ob"),
        (torch.zeros(2, 2), "label has 3 entries, and there are 2 observations: give one entry"),
        (torch.zeros(0, 2), r"there are no observations: y has shape \(0, 2\); give one or more"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_posterior(labelled, LinearObservation(torch.eye(2), y, 0.05), 128)


def test_a_network_in_training_mode_and_its_dtype():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, x, t):
            return self.drop(torch.tanh(x))

    model = ScoreModel(Net(), "vp", shape=(3,), data_std=1.0)
    given = LinearObservation(torch.eye(3)[:1], torch.tensor([0.5]), 0.1)
    settings = {"n": 64, "particles": 32, "steps": 10, "seed": 0}
    first, second = (sample_posterior(model, given, **settings) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert first.x.dtype == torch.float32
    assert model.net.training
    score = sample_posterior(lambda x, t: -x, given, sde="vp", shape=(3,), **settings)
    assert score.x.shape == (64, 3)
    assert sample_posterior(model, given, dtype=torch.float64, **settings).x.dtype == torch.float64


def test_what_belongs_to_a_particle_goes_with_it():
    """States, slopes of both laws and psi have the same ancestors; a cloud that is even is kept."""
    k = torch.arange(6.0, dtype=torch.float64)
    slopes = tuple(torch.stack([k + 10 * i, k + 100 * i])[:, :, None] for i in (1, 2))
    zero = torch.zeros((), dtype=torch.float64)
    cloud = Cloud(k[:, None], slopes, k, torch.tensor([0.0, 5, 0, 4, 0, 0]).double(), zero, k)
    chosen = cloud.resampled(0.5, torch.tensor([0.3]))
    ancestors = chosen.y[:, 0]
    assert set(ancestors.tolist()) <= {1.0, 3.0}
    assert torch.equal(chosen.log_psi, ancestors)
    assert torch.equal(chosen.ancestors, ancestors)
    for i, slope in zip((1, 2), chosen.slopes, strict=True):
        assert torch.equal(slope[0, :, 0], ancestors + 10 * i)
        assert torch.equal(slope[1, :, 0], ancestors + 100 * i)
    assert torch.equal(chosen.log_weights, torch.zeros(6).double())
    mean = cloud.log_weights.logsumexp(0) - math.log(6)
    torch.testing.assert_close(chosen.log_mean, mean)
    even = cloud.resampled(0.1, torch.tensor([0.3]))
    assert torch.equal(even.y, cloud.y)
    assert torch.equal(even.log_weights, cloud.log_weights)
    assert even.log_mean == 0
