"""Log-likelihoods against closed forms, traces against Jacobians, bits per dimension against hand
arithmetic.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

import sdekit
from sdekit import (
    ODE,
    Dopri8,
    Exact,
    Hutchinson,
    NotFiniteError,
    PIDController,
    Status,
    UnfinishedError,
    interop,
)
from sdekit._likelihood.divergence import quadratic_forms
from sdekit_diffusion import (
    VESDE,
    VPSDE,
    AbstractDerivedModel,
    AdaptiveFlow,
    GaussianMixture,
    Guided,
    LinearObservation,
    MomentMatched,
    Recipe,
    ScoreModel,
    SubVPSDE,
    bits_per_dim,
    data,
    decode,
    encode,
    fit,
    interpolate,
    log_likelihood,
    nets,
    sample,
)
from sdekit_diffusion._inference.encoding import slerp

KERNELS = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
MIXTURE = GaussianMixture(
    [0.3, 0.5, 0.2],
    torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]], dtype=torch.float64),
    torch.tensor(
        [[[0.05, 0.02], [0.02, 0.04]], [[0.1, 0.0], [0.0, 0.01]], [[0.02, -0.01], [-0.01, 0.05]]]
    ),
)
X = MIXTURE.sample(50, seed=1)
FINE = AdaptiveFlow(3e-7, 3e-7)


@pytest.mark.parametrize("sde", KERNELS)
def test_equals_the_closed_form_with_the_exact_law_at_the_start(sde):
    kernel = KERNELS[sde]
    t_min = float(kernel.time(math.log(1000 / MIXTURE.data_std)))
    alpha = float(kernel.alpha(t_min))  # x is in the scale of the data: x_t / alpha
    exact = MIXTURE.marginal(t_min, kernel).log_prob(alpha * X) + 2 * math.log(alpha)
    start = MIXTURE.marginal(1.0, kernel)
    prior = GaussianMixture([1.0], start.data_mean[None], [start.data_std**2])
    ours = log_likelihood(MIXTURE, X, sde=sde, log_prior=start.log_prob, method=FINE)
    assert (ours.value - exact).abs().max() < 1e-4
    assert ours.value.dtype == torch.float64
    assert torch.equal(ours.stderr, torch.zeros(50, dtype=torch.float64))
    with_prior = log_likelihood(MIXTURE, X, sde=sde, method=FINE)
    difference = prior.log_prob(ours.latent) - start.log_prob(ours.latent)
    assert (with_prior.value - ours.value - difference).abs().max() < 1e-4
    assert (with_prior.value - exact).abs().max() < 0.1


@pytest.mark.parametrize("sde", KERNELS)
def test_x_is_data_with_noise_under_every_diffusion(sde):
    """Also where alpha at the end is not quite 1, as under sub-VP: data + end s eps, the same law
    under all of them.
    """
    law = MIXTURE.marginal(float(VESDE().time(math.log(50 / MIXTURE.data_std))), VESDE())
    start = MIXTURE.marginal(1.0, KERNELS[sde])
    settings = {"sde": sde, "end": 0.02, "method": FINE}
    ours = log_likelihood(MIXTURE, X, log_prior=start.log_prob, **settings)
    torch.testing.assert_close(ours.value, law.log_prob(X), rtol=0, atol=1e-5)
    back, on_the_way = decode(MIXTURE, ours.latent, return_likelihood=True, **settings)
    torch.testing.assert_close(back, X, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        on_the_way.value, log_likelihood(MIXTURE, X, **settings).value, rtol=0, atol=1e-5
    )


def test_default_tolerance_and_float32():
    t_min = float(VPSDE().time(math.log(1000 / MIXTURE.data_std)))
    exact = MIXTURE.marginal(t_min, VPSDE()).log_prob(X)
    start = MIXTURE.marginal(1.0, VPSDE())
    for x in (X, X.float()):
        error = (log_likelihood(MIXTURE, x, sde="vp", log_prior=start.log_prob).value - exact).abs()
        assert error.max() < 5e-3
        assert error.mean() < 5e-4


def test_density_integrates_to_one():
    """Over a fine grid around the mixture; a wrong change of variables would miss by a factor."""
    side = torch.linspace(-3, 3, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    wide = GaussianMixture(
        [0.5, 0.5], [[-0.5, 0.0], [0.5, 0.3]], torch.tensor([0.2, 0.3], dtype=torch.float64)
    )
    total = (
        log_likelihood(wide, grid, sde="subvp", end=0.1).value.exp().sum()
        * (side[1] - side[0]) ** 2
    )
    assert total == pytest.approx(1.0, abs=2e-3)


def test_hutchinson_is_unbiased_and_its_standard_error_calibrated():
    """z-scores of 50 points with 16 probes follow Student's t with 15 degrees of freedom; bounds
    beyond 1e-6.
    """
    exact = log_likelihood(MIXTURE, X, sde="vp", trace=Exact())
    for kind in ("rademacher", "gaussian"):
        ours = log_likelihood(MIXTURE, X, sde="vp", trace=Hutchinson(16, kind, seed=3))
        z = (ours.value - exact.value) / ours.stderr
        assert z.abs().max() < 9
        assert abs(z.mean()) < 5.5 * 1.075 / math.sqrt(50)
        assert 0.5 < z.square().mean() < 2.3
    single = log_likelihood(MIXTURE, X[:3], sde="vp", trace=Hutchinson(1))
    assert single.stderr.isnan().all()


def rowwise(x, t):
    """A score whose rows are computed alike wherever they stand: sines, without matrix products."""
    return -x / (0.3 + t[:, None]) + 0.3 * torch.sin(3 * x.flip(1)) * t[:, None]


OUTLIER = torch.cat([X[:7], torch.tensor([[4.0, -3.0]], dtype=torch.float64), X[7:]])
INSIDE = [i for i in range(len(OUTLIER)) if i != 7]


@pytest.mark.parametrize(
    "trace", [Exact(), Hutchinson(4, seed=5), Hutchinson(4, "gaussian", fresh=False)], ids=repr
)
def test_a_sample_does_not_know_its_batch(trace):
    """Alone, in a batch, in pieces, beside an outlier: bit-identical where the model works row by
    row.
    """

    def found(x, **settings):
        loose = AdaptiveFlow(1e-3, 1e-3)
        return log_likelihood(rowwise, x, sde="vp", trace=trace, method=loose, **settings)

    whole = found(X)
    pieces = found(X, batch_size=20)
    last = found(X[49:], first=49)
    for name in ("value", "stderr", "latent", "evaluations"):
        of = lambda part: getattr(part, name)  # noqa: B023, E731
        assert torch.equal(of(pieces), of(whole))
        assert torch.equal(of(last), of(whole)[49:])
    if not isinstance(trace, Exact):  # probes are those of a number, which the outlier shifts
        return
    beside = found(OUTLIER)
    alone = whole
    assert torch.equal(beside.value[INSIDE], alone.value)
    assert torch.equal(beside.evaluations[INSIDE], alone.evaluations)
    assert beside.evaluations[7] != alone.evaluations.max()


def test_a_networks_rounding_is_all_that_a_batch_changes():
    torch.manual_seed(0)
    net = nets.MLP((2,), width=32, depth=2).double()
    model = ScoreModel(net, "subvp", "noise", shape=(2,), data_std=1.0)
    whole = log_likelihood(model, X)
    for i in (0, 18, 45):
        single = log_likelihood(model, X[i : i + 1], first=i)
        torch.testing.assert_close(single.value, whole.value[i : i + 1], rtol=0, atol=1e-10)
        assert torch.equal(single.evaluations, whole.evaluations[i : i + 1])


def test_the_network_sees_no_row_in_vain():
    """Rows of all calls, against the evaluations of the samples: those that have finished leave the
    batch.
    """
    rows = 0

    def counted(x, t):
        nonlocal rows
        rows += len(x)
        return rowwise(x, t)

    spread = torch.cat([0.1 * X, X, 10 * X])
    model = ScoreModel(counted, "vp", "score", shape=(2,), data_std=1.0)
    found = log_likelihood(model, spread)
    assert found.evaluations.double().std() > 5
    total = int(found.evaluations.sum())
    assert total <= rows - 2 <= 1.05 * total  # two rows look whether autograd can follow


def test_latents_are_what_sampling_starts_from():
    latent = log_likelihood(MIXTURE, X, sde="vp", method=FINE).latent
    assert torch.equal(encode(MIXTURE, X, sde="vp", method=FINE), latent)
    back = sample(MIXTURE, sde="vp", x_T=latent, method=FINE)
    torch.testing.assert_close(back, X, rtol=0, atol=1e-5)


def test_linear_flow():
    """dx = a x dt: log p(x_0) = log p(x_1) + d a, in both directions."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normal = lambda y: -0.5 * y.square().sum(1)  # noqa: E731
    for ts in ([0.0, 1.0], [1.0, 0.0]):
        for trace in (Exact(), Hutchinson(3), Hutchinson(500, "gaussian")):
            ours = sdekit.log_likelihood(ODE(lambda t, y: 0.4 * y), x, ts, normal, trace=trace)
            growth = 0.4 * (ts[1] - ts[0])
            assert ours.value == pytest.approx(
                normal(x * math.exp(growth)) + 3 * growth, abs=1e-4 + 6 * float(ours.stderr.max())
            )
    for trace in (Exact(), Hutchinson(3)):
        constant = sdekit.log_likelihood(
            ODE(lambda t, y: torch.ones_like(y)), x, [0.0, 1.0], normal, trace=trace
        )
        assert constant.value == pytest.approx(normal(x + 1), abs=1e-6)


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(3)])
@pytest.mark.parametrize("seen", [True, False])
def test_a_drift_that_torch_cannot_differentiate_is_refused(trace, seen):
    """Its divergence would be 0; that of a constant drift, and of one that jumps, is 0."""
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    rate = torch.ones((), dtype=torch.float64, requires_grad=True)

    def logp(f):
        whole = f if seen else torch.no_grad()(f)
        return sdekit.log_likelihood(
            ODE(whole), x, [0.0, 1.0], lambda x: -x.square().sum(1), trace=trace
        ).value

    with pytest.raises(RuntimeError, match=r"the drift depends on x, but .* its divergence needs"):
        logp(lambda t, x: -rate * x.detach())
    logp(lambda t, x: rate * torch.ones_like(x))
    logp(lambda t, x: torch.where(x > 0.1, 1.0, rate))


def test_products_against_the_jacobian():
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    point = x.clone().requires_grad_()
    exact = Exact()
    none = torch.zeros(2, dtype=torch.int64)
    trace = exact.estimates(
        quadratic_forms(lambda x: torch.tanh(x @ weight), point, exact.vectors(x, none, none))
    )[0]
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: torch.tanh(v @ weight), x[row])
        assert trace[row] == pytest.approx(jacobian.trace().item())


def probes(trace, index, node, event=(6,)):
    x = torch.zeros(len(index), *event, dtype=torch.float64)
    return torch.stack(list(trace.vectors(x, torch.as_tensor(index), torch.as_tensor(node))))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_variance_of_one_probe_is_the_formula(kind):
    """2 (|S|_F^2 - sum S_ii^2) or 2 |S|_F^2, S the symmetric part; 5.5 standard errors of 20,000
    probes.
    """
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    v = probes(
        Hutchinson(4, kind), torch.arange(5000), torch.zeros(5000, dtype=torch.int64)
    ).flatten(0, 1)
    values = torch.einsum("ki,ij,kj->k", v, weight, v)
    s = (weight + weight.T) / 2
    variance = 2 * (s.square().sum() - (s.diagonal().square().sum() if kind == "rademacher" else 0))
    assert abs(values.mean() - weight.trace()) < 5.5 * math.sqrt(variance / 20_000)
    fourth = ((values - values.mean()) ** 4).mean()
    assert abs(values.var() - variance) < 5.5 * math.sqrt((fourth - values.var() ** 2) / 20_000)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_probes_are_fresh_at_each_node_or_fixed(kind):
    fresh = Hutchinson(3, kind)
    fixed = Hutchinson(3, kind, fresh=False)
    a = ([4] * 50, list(range(50)))
    b = ([4, 9], [7, 7])
    along = probes(fresh, *a, event=(8, 5))
    assert along.flatten().square().mean() == pytest.approx(1, abs=0.2)
    assert len(along.flatten(2).flatten(0, 1).unique(dim=0)) == 150
    torch.testing.assert_close(probes(fresh, *b, event=(8, 5))[:, 0], along[:, 7])
    assert (probes(fixed, *a, event=(8, 5)) == probes(fixed, *a, event=(8, 5))[:, :1]).all()
    assert torch.equal(probes(Hutchinson(2, kind), *a), probes(fresh, *a)[:2])


def test_fresh_probes_have_the_variance_of_a_sum():
    """dx = A x with A off the diagonal: fixed probes leave 2 |S|_F^2 h^2, fresh ones what the
    squares of the weights leave.
    """
    a = torch.randn(8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    a = a - torch.diag(a.diagonal())
    x = torch.ones(400, 8, dtype=torch.float64)
    s = (a + a.T) / 2
    variance = 2 * float(s.square().sum())
    control = PIDController(1e-9, 1e-9)

    def errors(fresh):
        found = sdekit.log_likelihood(
            ODE(lambda t, y: y @ a.T),
            x,
            [0.0, 0.5],
            lambda y: 0 * y[:, 0],
            trace=Hutchinson(1, fresh=fresh),
            control=control,
        )
        steps = (found.evaluations - 1).double().mean() / 10  # six evaluations and four nodes
        return found.value.square().mean() / (0.25 * variance), float(steps)

    fixed, steps = errors(False)
    # 400 samples of a variance of about 20 % error, 5.5 of it... and what the steps leave.
    assert 0.6 < fixed < 1.6
    fresh, _ = errors(True)
    assert fresh < 0.9 / steps


@dataclass(frozen=True, eq=False)
class InHalf(AbstractDerivedModel):
    """A model whose network has half precision."""

    def predict_data(self, l, u):
        return self.model.predict_data(l, u)

    def place(self):
        return torch.bfloat16, torch.device("cpu")


def test_levels_of_models_in_half_precision_are_dequantised_in_single():
    """In bfloat16 numbers near 128 are whole, so that the points were the levels' ends."""
    law = GaussianMixture([1.0], [[128.0] * 4], [6.5])
    levels = law.sample(20, seed=3).floor().long()
    settings = {"low": 0, "high": 256, "levels": 256, "sde": VESDE(0.01, 5000.0)}
    expected = bits_per_dim(law, levels, **settings).value
    torch.testing.assert_close(bits_per_dim(InHalf(law), levels, **settings).value, expected)


def test_bits_per_dim_by_hand():
    d = 4
    model = GaussianMixture(
        [1.0], torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    )
    levels = torch.randint(0, 17, (6, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    ours = bits_per_dim(model, levels, low=-1, high=1, levels=17, sde="vp", seed=4)
    u = sdekit.uniform01(4, torch.arange(6), (1, 2, 2), counter=-3)
    x = -1 + 2 * (levels + u) / 17
    nats = log_likelihood(model, x, sde="vp").value
    torch.testing.assert_close(ours.value, -nats / (d * math.log(2)) - math.log2(2 / 17))
    torch.testing.assert_close(
        bits_per_dim(model, x, low=-1, high=1, levels=17, sde="vp").value, ours.value
    )
    assert ours.mean == pytest.approx(ours.value.mean().item())
    assert ours.mean_stderr == pytest.approx(ours.value.std().item() / math.sqrt(6))


def test_offsets_of_the_published_conventions():
    """For the same levels of 8-bit images a model of [0, 1] has the bits of one of [-1, 1], by
    offsets of 8 and 7.
    """
    levels = torch.randint(0, 256, (4, 3), generator=torch.Generator().manual_seed(0))
    deviation = torch.tensor([0.3**2], dtype=torch.float64)
    wide = GaussianMixture([1.0], torch.zeros(1, 3, dtype=torch.float64), deviation)
    narrow = GaussianMixture([1.0], torch.full((1, 3), 0.5, dtype=torch.float64), deviation / 4)
    tight = {"sde": "vp", "method": FINE, "end": 1e-5, "levels": 256}
    a = bits_per_dim(wide, levels, low=-1, high=1, **tight).value
    b = bits_per_dim(narrow, levels, low=0, high=1, **tight).value
    # The prior's mean is 0 and this mixture's is not.
    torch.testing.assert_close(a, b, rtol=0, atol=1e-2)
    u = sdekit.uniform01(0, torch.arange(4), (3,), counter=-3)
    nats = wide.log_prob(-1 + 2 * (levels + u) / 256)
    torch.testing.assert_close(a, 7 - nats / (3 * math.log(2)), rtol=0, atol=2e-3)


def test_inference_mode_changes_nothing():
    outside = log_likelihood(MIXTURE, X[:4], sde="vp").value
    with torch.inference_mode():
        inside = log_likelihood(MIXTURE, X[:4] + 0, sde="vp").value
    torch.testing.assert_close(inside, outside)


def test_a_model_that_autograd_cannot_follow_is_refused():
    score = torch.no_grad()(lambda x, t: MIXTURE.score(t, x, VPSDE()))
    with pytest.raises(ValueError, match="remove no_grad or detach"):
        log_likelihood(score, X[:4], sde="vp")


def test_a_network_that_hides_its_input_is_refused():
    """Also where its output has gradients through its parameters: its divergence would count as 0
    silently.
    """
    torch.manual_seed(0)
    inner = nets.MLP((2,), width=8, depth=1).double()
    for predicts in ("noise", "velocity"):
        model = ScoreModel(lambda x, t: inner(x.detach(), t), "vp", predicts, shape=(2,))
        with pytest.raises(ValueError, match="remove no_grad or detach"):
            log_likelihood(model, X[:4])


@pytest.mark.parametrize("hidden", ["detach", "no_grad"])
def test_models_made_from_a_network_that_hides_its_input_are_refused(hidden):
    """Their own output still has a gradient: that of the multiple of x which is added to a
    network's output.
    """
    inner = nets.MLP((2,), width=8, depth=1).double()
    call = torch.no_grad()(inner) if hidden == "no_grad" else lambda x, t: inner(x.detach(), t)
    model = ScoreModel(call, "vp", "velocity", shape=(2,), data_std=1.0)
    y = LinearObservation(torch.eye(2).double()[:1], torch.ones(1).double(), 1.0)
    derived = [
        Guided(model, 1.0, by=model),
        MomentMatched(model, y),
        Guided(MIXTURE, 2.0, by=model),
    ]
    for made in derived:
        with pytest.raises(ValueError, match="remove no_grad or detach"):
            log_likelihood(made, X[:4], sde="vp")
    followed = replace(derived[0], model=MIXTURE, by=MIXTURE)
    assert log_likelihood(followed, X[:4], sde="vp").value.isfinite().all()


def test_failures_are_in_the_diffusions_time_and_the_callers_rows():
    def net(x, t):
        return torch.where((t[:, None] > 0.5) & (x[:, :1] > 1e3), math.nan, x)

    x = torch.ones(6, 2)
    x[5] = 1e6
    model = ScoreModel(net, "vp", "data", shape=(2,))
    for call in (log_likelihood, encode):
        with pytest.raises(
            UnfinishedError, match=r"1 of 2 samples.*row 5: it became infinite or NaN.*at t = 0\.5"
        ) as caught:
            call(model, x, batch_size=4)
        assert caught.value.solution.status.tolist() == [Status.DONE, Status.NOT_FINITE]
        assert caught.value.reached[1] == pytest.approx(0.5, abs=1e-3)
        torch.testing.assert_close(caught.value.solution.x[0], encode(model, x[:5])[4])
        assert float(caught.value.solution.ts[1]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("log_prior", "message"),
    [
        (
            lambda x: x.square(),
            r"shape \(50, 2\) for 50 samples; it must return one number for each",
        ),
        (lambda x: x.sum(), r"shape \(\) for 50 samples"),
        (lambda x: x[:, :1], r"shape \(50, 1\)"),
        (lambda x: 0.0, "float for 50 samples"),
        (lambda x: x.sum(1) + 0j, r"complex128 of shape \(50,\) .* each, real"),
    ],
)
def test_densities_of_the_wrong_shape(log_prior, message):
    with pytest.raises(ValueError, match=message):
        sdekit.log_likelihood(ODE(lambda t, y: -y), X, [0.0, 1.0], log_prior)


def test_there_is_one_index_for_each_sample():
    estimate = partial(
        sdekit.log_likelihood,
        ODE(lambda t, y: -y),
        X,
        [0.0, 1.0],
        lambda x: x.sum(1),
        trace=Hutchinson(1),
    )
    with pytest.raises(ValueError, match="index has 3 numbers and x 50 samples"):
        estimate(index=torch.arange(3))
    with pytest.raises(TypeError, match="index must be an integer, or one per sample"):
        estimate(index=torch.arange(50.0))
    values = [estimate(index=index).value for index in (list(range(50)), None)]
    assert torch.equal(*values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_likelihood(MIXTURE, X, sde="vp", trace="hutchinson"), "trace must be Exact"),
        (lambda: log_likelihood(MIXTURE, X, sde="vp", trace=Exact), "trace must be Exact"),
        (
            lambda: log_likelihood(MIXTURE, X, sde="vp", method="ode"),
            "method must be an AdaptiveFlow",
        ),
        (lambda: log_likelihood(MIXTURE, X.numpy(), sde="vp"), "x must be a tensor"),
        (lambda: encode(MIXTURE, X.numpy(), sde="vp"), "x must be a tensor"),
        (
            lambda: sdekit.log_likelihood(lambda t, x: x, X, [0, 1], lambda x: x),
            r"an equation such "
            r"as ODE\(f\)",
        ),
        (
            lambda: sdekit.log_likelihood(ODE(lambda t, x: x), X, [0, 1], 3.0),
            "log_prior must be a function",
        ),
    ],
)
def test_things_of_the_wrong_kind(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_solver_without_states_within_its_steps_is_refused():
    with pytest.raises(ValueError, match=r"ImplicitPlaten has no interpolant of.*take Dopri5\(\)"):
        sdekit.log_likelihood(
            ODE(lambda t, x: -x), X, [0.0, 1.0], lambda x: x.sum(1), solver=sdekit.ImplicitPlaten()
        )


def test_points_that_are_not_finite_are_named():
    x = X.clone()
    x[7, 1] = math.nan
    with pytest.raises(ValueError, match=r"x is not finite in rows \[7\]"):
        log_likelihood(MIXTURE, x, sde="vp")


def test_sums_over_many_coordinates_do_not_depend_on_the_batch():
    """Of such a number that torch would cut the sum of a single row among its threads."""
    x = torch.randn(4, 70_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.arange(4)

    def forms(x, rows):
        x = x.clone().requires_grad_()
        return quadratic_forms(torch.sin, x, Hutchinson(1).vectors(x, rows, torch.zeros_like(rows)))

    whole = forms(x, rows)
    prior = VPSDE().log_prior(x)
    for row in range(4):
        assert torch.equal(forms(x[row : row + 1], rows[row : row + 1])[:, 0], whole[:, row])
        assert torch.equal(VPSDE().log_prior(x[row : row + 1])[0], prior[row])


def test_the_clock_is_fine_enough_in_float32():
    """Near the noisy end, thousands of times wider than the data, the clock turns small differences
    into large ratios.
    """
    narrow = GaussianMixture(
        [0.5, 0.5], [[0.01, 0.02], [-0.02, 0.01]], torch.tensor([1e-4, 4e-4], dtype=torch.float64)
    )
    x = narrow.sample(20, seed=0)
    single, double = (log_likelihood(narrow, v, sde="ve", end=1e-5).latent for v in (x.float(), x))
    assert (single - double).abs().max() < 2e-4 * double.abs().max()


def test_too_many_steps_is_a_status():
    found = log_likelihood(
        MIXTURE, OUTLIER, sde="vp", method=AdaptiveFlow(1e-6, 1e-6, max_steps=25)
    )
    late = found.status == Status.TOO_MANY_STEPS
    assert 0 < late.sum() < len(OUTLIER)
    assert torch.equal(found.value.isnan(), late)
    assert torch.equal(found.stderr.isnan(), late)
    whole = log_likelihood(MIXTURE, OUTLIER, sde="vp", method=AdaptiveFlow(1e-6, 1e-6))
    torch.testing.assert_close(found.value[~late], whole.value[~late], rtol=0, atol=1e-10)
    assert (whole.status == Status.DONE).all()


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (torch.full((2, 4), 17), {}, "not levels 0 to 16"),
        (torch.full((2, 4), -1), {}, "not levels 0 to 16"),
        (torch.full((2, 4), 1.5), {}, r"outside \[-1, 1\]"),
        (torch.randint(0, 17, (40, 4)) / 8.5 - 1, {}, "looks quantised"),
        (torch.zeros(2, 4), {"low": 1, "high": -1}, "low < high"),
        (torch.zeros(2, 5), {}, r"needs \(batch, 4\)"),
    ],
)
def test_bits_per_dim_refuses(x, settings, message):
    model = GaussianMixture([1.0], torch.zeros(1, 4), torch.ones(1))
    with pytest.raises(ValueError, match=message):
        bits_per_dim(model, x, **{"low": -1, "high": 1, "levels": 17, "sde": "vp", **settings})


def test_bad_input():
    with pytest.raises(TypeError, match="floating"):
        log_likelihood(MIXTURE, torch.zeros(2, 2, dtype=torch.int64), sde="vp")
    with pytest.raises(ValueError, match="from one probe to 4,096"):
        Hutchinson(0)
    with pytest.raises(ValueError, match="kind"):
        Hutchinson(2, "uniform")
    model = ScoreModel(lambda x, t: x * math.nan, "vp", shape=(2,), data_std=1.0)
    with pytest.raises(UnfinishedError, match="infinite or NaN"):
        log_likelihood(model, X)
    with pytest.raises(ValueError, match=r"below what torch\.float32 resolves"):
        log_likelihood(MIXTURE, X.float(), sde="vp", method=AdaptiveFlow(1e-12, 1e-12))
    with pytest.raises(ValueError, match="increase strictly or decrease strictly"):
        sdekit.log_likelihood(ODE(lambda t, x: x), X, [1.0, 1.0], lambda x: x[:, 0])
    with pytest.raises(ValueError, match="has diagonal noise; likelihoods are those of an ODE"):
        sdekit.log_likelihood(
            sdekit.SDE(lambda t, x: x, lambda t, x: x), X, [0.0, 1.0], lambda x: x[:, 0]
        )
    for ts in ([0.0, math.nan, 1.0], [0.0, 5.0, 1.0]):
        with pytest.raises(ValueError, match=r"not finite|increase strictly"):
            sdekit.log_likelihood(ODE(lambda t, x: x), X, ts, lambda x: x[:, 0])
    flow = ODE(lambda t, x: x)
    ts = torch.tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(ValueError, match="ts requires a gradient"):
        sdekit.log_likelihood(flow, X, ts, lambda x: x[:, 0], differentiable=True)
    assert len(sdekit.log_likelihood(flow, X, ts, lambda x: x[:, 0]).value) == len(X)
    with pytest.raises(ValueError, match="SRA1 does not solve equations without noise"):
        sdekit.log_likelihood(flow, X, [0.0, 1.0], lambda x: x[:, 0], solver=sdekit.SRA1())
    with pytest.raises(TypeError, match="solver must be an object such as"):
        sdekit.log_likelihood(flow, X, [0.0, 1.0], lambda x: x[:, 0], solver="dopri5")
    empty = log_likelihood(MIXTURE, X[:0], sde="vp")
    assert empty.value.shape == empty.stderr.shape == (0,)
    assert bits_per_dim(MIXTURE, X[:0], low=-1, high=1, levels=17, sde="vp").value.shape == (0,)


# What the probes leave


def test_intervals():
    found = log_likelihood(MIXTURE, X[:5], sde="vp", trace=Hutchinson(8))
    low, high = replace(found, skewness=torch.zeros_like(found.value)).interval(0.95)
    # T of 7 degrees of freedom.
    torch.testing.assert_close(high - found.value, 2.364624251592785 * found.stderr)
    torch.testing.assert_close(found.value - low, high - found.value)
    few = log_likelihood(MIXTURE, X[:5], sde="vp", trace=Hutchinson(3))
    # T of 2.
    torch.testing.assert_close(few.interval()[1] - few.value, 4.302652729911275 * few.stderr)
    exact = log_likelihood(MIXTURE, X[:5], sde="vp")
    assert exact.probes == 0
    assert all(torch.equal(end, exact.value) for end in exact.interval())
    assert all(
        end.isnan().all()
        for end in log_likelihood(MIXTURE, X[:5], sde="vp", trace=Hutchinson(1)).interval()
    )
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="between 0 and 1"):
            exact.interval(level)


# Gradients and conditions


def test_gradients_are_those_of_differences():
    torch.manual_seed(1)
    net = nets.MLP((2,), width=8, depth=1).double()
    model = ScoreModel(net, "vp", "velocity", shape=(2,))
    x = X[:3].clone().requires_grad_()
    for trace in (Exact(), Hutchinson(2)):

        def value(x, **more):
            return log_likelihood(
                model,
                x,
                trace=trace,  # noqa: B023
                end=0.05,
                method=AdaptiveFlow(1e-8, 1e-8),
                **more,
            )

        found = value(x, differentiable=True).value
        weight = net.get_parameter(next(name for name, _ in net.named_parameters()))
        by_x, by_weight = torch.autograd.grad(found.sum(), [x, weight])
        h = 1e-5
        for i in range(2):
            shift = h * torch.eye(2, dtype=torch.float64)[i]
            difference = (value(x.detach() + shift).value - value(x.detach() - shift).value) / (
                2 * h
            )
            torch.testing.assert_close(by_x[:, i], difference, rtol=1e-4, atol=1e-4)
        direction = torch.randn(
            weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * h * direction
            ends.append(value(x.detach()).value.sum())
            with torch.no_grad():
                weight -= sign * h * direction
        assert float((by_weight * direction).sum()) == pytest.approx(
            float(ends[0] - ends[1]) / (2 * h), rel=1e-4
        )
    assert not value(x).value.requires_grad


class Shifted(torch.nn.Module):
    """The noise of N(y, 0.25) for a label y, given as a tensor a sample, and a scale that is one
    for all.
    """

    def forward(self, x, t, y=None, scale=1.0):
        sde = VPSDE()
        alpha = sde.alpha(t)[:, None]
        sigma = sde.sigma(t)[:, None]
        return sigma * (x - alpha * scale * y[:, None]) / (0.25 * alpha**2 + sigma**2)


def test_conditional_likelihoods_and_samples():
    model = ScoreModel(Shifted(), "vp", "noise", shape=(2,), data_std=2.0)
    y = torch.tensor([-1.0, 0.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    x = y[:, None] + 0.5 * X[:5]
    found = log_likelihood(model.given(y=y / 2, scale=2.0), x, method=FINE, batch_size=2)
    exact = -0.5 * ((x - y[:, None]).square() / 0.25).sum(1) - math.log(2 * math.pi * 0.25)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=0.03)  # the prior's mean is 0
    one = log_likelihood(model.given(y=y[3:4]), x[3:4], method=FINE)
    torch.testing.assert_close(one.value, found.value[3:4], rtol=0, atol=1e-8)
    for method in ("default", "ode"):
        drawn = sample(
            model.given(y=y), 5, seed=2, method=method, batch_size=3, dtype=torch.float64
        )
        alone = sample(model.given(y=y[4:]), 1, seed=2, method=method, first=4, dtype=torch.float64)
        torch.testing.assert_close(drawn[4:], alone, rtol=0, atol=1e-9)
        assert abs(float((drawn - y[:, None]).mean())) < 0.8
    with pytest.raises(ValueError, match="y has 2 entries for 5 samples"):
        log_likelihood(model.given(y=y[:2].repeat(1)), x, batch_size=None)


# Latents


def test_labels_travel_with_their_points_to_the_latents_and_back():
    """D = y: the noise eps = (x - y) / end is the same all along the flow, whichever batch a point
    is in.
    """
    y = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)
    settings = {"shape": (2,), "data_std": 1.0}
    known = ScoreModel(lambda x, t, y: y[:, None].expand_as(x), "vp", "data", **settings).given(y=y)
    x = y[:, None] + 0.3 * X[:7]
    sde = VPSDE()
    expected = sde.alpha(1.0) * y[:, None] + sde.sigma(1.0) * (x - y[:, None]) / 0.1
    for size in (3, None):
        latents = encode(known, x, end=0.1, batch_size=size, method=FINE)
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            decode(known, latents, end=0.1, batch_size=size, method=FINE), x, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("sde", ["ve"])
def test_decode_undoes_encode_and_knows_the_likelihood(sde):
    """In batches, with the likelihood and without; other tests have every diffusion."""
    latent = encode(MIXTURE, X, sde=sde, method=FINE, batch_size=30)
    back, on_the_way = decode(MIXTURE, latent, sde=sde, method=FINE, return_likelihood=True)
    torch.testing.assert_close(back, X, rtol=0, atol=1e-5)
    assert torch.equal(decode(MIXTURE, latent, sde=sde, method=FINE), back)
    assert torch.equal(on_the_way.latent, latent)
    again = log_likelihood(MIXTURE, back, sde=sde, method=FINE)
    torch.testing.assert_close(on_the_way.value, again.value, rtol=0, atol=1e-5)


def test_a_trained_network_of_images_encodes_and_decodes():
    """In proportion to the solver's tolerance."""
    torch.manual_seed(0)
    source = data.load("digits")
    net = nets.UNet(1, width=8, multipliers=(1, 2), blocks=1)
    model = ScoreModel(
        net, "subvp", "velocity", shape=(1, 8, 8), conditioning="log_snr", data_std=0.75
    )
    fit(
        model,
        source.train,
        Recipe(steps=40, batch_size=32, lr=3e-3, weighting="plain"),
        transform=source.scale.encode,
        progress=False,
    )
    x = source.scale.encode(source.test[:1]).double()
    # Errors of steps add up, and the flow magnifies them: 50 to 300 times the tolerance at either.
    method = AdaptiveFlow(1e-3, 1e-3)
    back = decode(model, encode(model, x, method=method), method=method)
    torch.testing.assert_close(back, x, rtol=0, atol=0.1)
    method = AdaptiveFlow(1e-5, 1e-5)
    latent = encode(model, x, method=method)
    # Probes that are the same all along the flow, so that both ways integrate the same numbers.
    probes = Hutchinson(1, seed=1, fresh=False)
    back, on_the_way = decode(model, latent, method=method, trace=probes, return_likelihood=True)
    again = log_likelihood(model, back, method=method, trace=probes)
    torch.testing.assert_close(back, x, rtol=0, atol=4e-3)
    torch.testing.assert_close(again.value, on_the_way.value, rtol=0, atol=0.05)
    assert latent.std() == pytest.approx(1, abs=0.3)
    method = AdaptiveFlow(accuracy=0.05)
    back = decode(model, encode(model, x, method=method), method=method)
    torch.testing.assert_close(back, x, rtol=0, atol=0.05)


@pytest.mark.parametrize(("name", "accuracy"), [("vp", 1e-2), ("subvp", 1e-2), ("ve", 1e-4)])
def test_an_accuracy_asked_for_is_that_of_every_sample(name, accuracy):
    """Of the latents, of the images, and of the way there and back, where a tolerance of the same
    number misses it.
    """
    sde = KERNELS[name]
    method = AdaptiveFlow(accuracy=accuracy)
    fine = AdaptiveFlow(1e-3 * accuracy, 1e-3 * accuracy, Dopri8())
    scale = float(sde.sigma(sde.T))  # the deviation of x_T; that of the data is 0.8
    latent = encode(MIXTURE, X, sde=sde, method=method)
    exact = encode(MIXTURE, X, sde=sde, method=fine)
    torch.testing.assert_close(latent, exact, rtol=0, atol=accuracy * scale)
    whole = sample(MIXTURE, len(X), sde=sde, x_T=latent, method=method, return_solution=True)
    back = whole.x
    exact = decode(MIXTURE, latent, sde=sde, method=fine)
    torch.testing.assert_close(back, exact, rtol=0, atol=accuracy)
    torch.testing.assert_close(back, X, rtol=0, atol=accuracy)
    loose = AdaptiveFlow(accuracy, accuracy)
    missed = decode(MIXTURE, encode(MIXTURE, X, sde=sde, method=loose), sde=sde, method=loose) - X
    assert missed.abs().max() > accuracy
    alone = sample(MIXTURE, 1, sde=sde, x_T=latent[30:31], method=method, return_solution=True)
    torch.testing.assert_close(alone.x, back[30:31], rtol=0, atol=1e-10)
    assert torch.equal(alone.evaluations, whole.evaluations[30:31])
    assert whole.evaluations.double().mean() < (90 if accuracy == 1e-2 else 180)


def test_an_accuracy_that_cannot_be_had():
    """Float32 resolves no tolerance that would do; where one sample fails the others are there."""
    x = X[:6].float()
    exact = encode(MIXTURE, x.double(), sde="vp", method=AdaptiveFlow(1e-8, 1e-8, Dopri8()))
    found = encode(MIXTURE, x, sde="vp", method=AdaptiveFlow(accuracy=1e-5))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)
    for accuracy in (3e-6, 1e-9):
        with pytest.raises(UnfinishedError, match="ask for less accuracy, a wider dtype") as caught:
            encode(MIXTURE, x, sde="vp", method=AdaptiveFlow(accuracy=accuracy))
        assert bool((caught.value.solution.status == Status.UNDERFLOW).all())
    with pytest.raises(
        UnfinishedError, match=r"1 of 51 .*row 7: max_steps was not enough"
    ) as caught:
        encode(MIXTURE, OUTLIER, sde="vp", method=AdaptiveFlow(accuracy=1e-2, max_steps=25))
    found = caught.value.solution.x
    with pytest.raises(UnfinishedError, match="ask for less accuracy"):
        sample(MIXTURE, 2, sde="vp", method=AdaptiveFlow(accuracy=1e-2, max_steps=2), seed=0)
    assert bool(found[7].isnan().all())
    assert 0 < float(caught.value.reached[7]) < 0.9 < float(caught.value.reached[0])
    exact = encode(MIXTURE, X, sde="vp", method=AdaptiveFlow(accuracy=1e-2))
    torch.testing.assert_close(found[INSIDE], exact, rtol=0, atol=1e-10)
    assert encode(MIXTURE, X[:0], sde="vp", method=AdaptiveFlow(accuracy=1e-5)).shape == (0, 2)
    with pytest.raises(ValueError, match="a likelihood takes rtol and atol"):
        log_likelihood(MIXTURE, X, sde="vp", method=AdaptiveFlow(accuracy=1e-5))
    with pytest.raises(ValueError, match="accuracy is the error of x at the end"):
        AdaptiveFlow(accuracy=0.0)


def test_interpolation_of_nothing():
    assert interpolate(MIXTURE, X[:0], X[:0], 3, sde="vp").shape == (3, 0, 2)
    with pytest.raises(ValueError, match="batch_size counts points from 1 on"):
        encode(MIXTURE, X, sde="vp", batch_size=0)
    with pytest.raises(ValueError, match=r"from 1 on, in whole numbers; not 1\.5"):
        encode(MIXTURE, X, sde="vp", batch_size=1.5)


def test_slerp_keeps_angle_and_length():
    a = X[:3, None]
    b = 2 * X[3:6, None]
    u = torch.linspace(0, 1, 5, dtype=torch.float64)
    z = slerp(a, b, u)
    assert z.shape == (5, 3, 1, 2)
    torch.testing.assert_close(z[0], a)
    torch.testing.assert_close(z[-1], b)
    circle = slerp(a / a.norm(dim=2, keepdim=True), b / b.norm(dim=2, keepdim=True), u)
    torch.testing.assert_close(circle.norm(dim=3), torch.ones(5, 3, 1, dtype=torch.float64))
    torch.testing.assert_close(slerp(a, a, u), a.expand(5, 3, 1, 2))
    opposite = slerp(a, -a, u)
    torch.testing.assert_close(opposite, (1 - 2 * u[:, None, None, None]) * a)


def test_slerp_of_unequal_and_nearly_opposite_latents_stays_between_their_norms():
    """Slerp of the latents themselves would have a norm of 400 in the middle."""
    angle = torch.tensor(math.pi - 1e-3, dtype=torch.float64)
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = 0.2 * torch.stack([angle.cos(), angle.sin()])[None]
    z = slerp(a, b, torch.tensor([0.25, 0.5], dtype=torch.float64))[:, 0]
    torch.testing.assert_close(z.norm(dim=1), torch.tensor([0.8, 0.6], dtype=torch.float64))
    torch.testing.assert_close(z[1] / 0.6, torch.stack([(angle / 2).cos(), (angle / 2).sin()]))
    middle = slerp(torch.zeros_like(a), b, torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(middle[0], 0.5 * b)
    x = MIXTURE.sample(2000, seed=2)
    points = interpolate(MIXTURE, x[:1000], x[1000:], 3, sde="vp")
    assert float(points.abs().max()) < 1.5 * float(x.abs().max())


def test_interpolation_ends_at_its_ends():
    a = X[:4]
    b = X[4:8]
    method = AdaptiveFlow(1e-6, 1e-6)
    between = interpolate(MIXTURE, a, b, 5, sde="subvp", method=method, batch_size=7)
    assert between.shape == (5, 4, 2)
    torch.testing.assert_close(between[0], a, rtol=0, atol=1e-4)
    torch.testing.assert_close(between[-1], b, rtol=0, atol=1e-4)
    single = interpolate(MIXTURE, a[1:2], b[1:2], 5, sde="subvp", method=method)
    torch.testing.assert_close(between[:, 1:2], single, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="whole number from 2 on, and a and b have one shape"):
        interpolate(MIXTURE, a, b[:2], sde="vp")


@pytest.mark.parametrize("given", [False, True])
def test_interpolation_is_about_the_mean_of_the_latents(given):
    """Data far from 0: a midpoint about 0 would have the standard deviation 0.75, and about the
    mean of the data for a posterior elsewhere 0.8.
    """
    law = GaussianMixture([1.0], torch.full((1, 200), 100.0), [1.0])
    model = law
    mean = 100.0
    if given:
        shift = LinearObservation(torch.eye(200), torch.full((200,), 200.0), 1e-2)
        model = MomentMatched(law, shift)
        mean = 100.0 + 100.0 / 1.01
    std = 1.0 if not given else math.sqrt(0.01 / 1.01)
    normals = torch.randn(2, 50, 200, generator=torch.Generator().manual_seed(0))
    a, b = mean + std * normals
    method = AdaptiveFlow(1e-4, 1e-4)
    between = interpolate(model, a, b, 5, sde="ve", method=method)
    for points in between:
        assert float((points - mean).std()) == pytest.approx(std, rel=0.02)
    torch.testing.assert_close(between[0], a, rtol=0, atol=0.02 * std)
    torch.testing.assert_close(between[-1], b, rtol=0, atol=0.02 * std)
    with pytest.raises(ValueError, match=r"a whole number from 2 on, .* not 2\.5"):
        interpolate(law, a, b, 2.5, sde="ve")


# Several dequantisations


def test_draws_of_the_dequantisation():
    """With exact traces the spread of draws is that of -log p of the dequantised point."""
    model = GaussianMixture(
        [1.0], torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0.02], dtype=torch.float64)
    )
    levels = torch.randint(3, 14, (30, 4), generator=torch.Generator().manual_seed(0))
    settings = {"low": -1, "high": 1, "levels": 17, "sde": "vp"}
    found = bits_per_dim(model, levels, draws=6, **settings)
    assert found.draws.shape == (6, 30)
    assert torch.equal(found.draws[0], bits_per_dim(model, levels, **settings).value)
    torch.testing.assert_close(found.value, found.draws.mean(0))
    torch.testing.assert_close(found.stderr, found.draws.std(0) / math.sqrt(6))
    parts = found.parts
    assert parts["probes"] == 0
    assert parts["dequantisation"] == pytest.approx(
        math.sqrt(found.draws.var(0).mean().item() / 6 / 30)
    )
    assert math.hypot(*parts.values()) == pytest.approx(found.mean_stderr)
    noisy = bits_per_dim(model, levels, draws=6, trace=Hutchinson(2, "gaussian"), **settings)
    assert not torch.equal(noisy.draws[0] - found.draws[0], noisy.draws[1] - found.draws[1])
    assert noisy.parts["probes"] > 0
    assert bits_per_dim(model, levels, **settings).parts.keys() == {"probes", "data"}
    single = bits_per_dim(model, levels, draws=6, trace=Hutchinson(1), **settings)
    assert math.isnan(single.parts["probes"])
    assert single.parts["dequantisation"] == pytest.approx(
        math.sqrt(single.draws.var(0).mean().item() / 6 / 30)
    )
    assert math.isnan(bits_per_dim(model, levels[:1], **settings).parts["data"])
    assert bits_per_dim(model, levels[:0], **settings).parts.keys() == {"probes", "data"}
    with pytest.raises(ValueError, match="draws counts dequantisations of integers"):
        bits_per_dim(model, levels / 8.5 - 1, draws=2, **settings)
    with pytest.raises(ValueError, match=r"a whole number from 1 on; not 1\.5 of torch\.int64"):
        bits_per_dim(model, levels, draws=1.5, **settings)
    with pytest.raises(TypeError, match=r"x must be real, not torch\.complex64"):
        bits_per_dim(model, levels / 8.5 - 1 + 0j, **settings)
    with pytest.raises(ValueError, match="x is not finite in rows"):
        bits_per_dim(model, levels / 8.5 * math.nan, **settings)
    with pytest.raises(ValueError, match="need finite low < high"):
        bits_per_dim(model, levels, **(settings | {"high": math.inf}))
    with pytest.raises(
        ValueError, match=r"a whole number of levels from 1 on, not -1, 1 and 17\.5"
    ):
        bits_per_dim(model, levels, **(settings | {"levels": 17.5}))


def test_a_network_of_the_noise_that_is_wrong_at_the_noisy_end():
    """Its denoiser grows like sigma / alpha there, where the clock of the flow makes long steps."""
    torch.manual_seed(0)
    net = nets.MLP((2,), width=8, depth=1).double()
    model = ScoreModel(net, "vp", "noise", shape=(2,), data_std=1.0)
    exact = log_likelihood(model, X, method=AdaptiveFlow(1e-9, 1e-9)).value
    errors = [
        (log_likelihood(model, X, method=AdaptiveFlow(tol, tol)).value - exact).abs()
        for tol in (1e-5, 1e-7)
    ]
    assert errors[0].max() < 5e-3
    assert errors[1].max() < 1e-4


# What users hand in


def test_layouts_dtypes_and_ranks_make_no_difference():
    model = GaussianMixture(
        [1.0],
        torch.zeros(1, 1, 2, 3, dtype=torch.float64),
        torch.tensor([0.5], dtype=torch.float64),
    )
    x = torch.randn(
        6, 3, 2, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).permute(0, 3, 2, 1)
    assert not x.is_contiguous()
    assert torch.equal(
        log_likelihood(model, x, sde="vp").value,
        log_likelihood(model, x.contiguous(), sde="vp").value,
    )
    torch.manual_seed(0)
    single = ScoreModel(nets.MLP((2,), width=8, depth=1), "vp", "velocity", shape=(2,))
    found = log_likelihood(single, X)  # a float32 network, float64 points
    assert found.latent.dtype == torch.float64
    torch.testing.assert_close(
        found.value, log_likelihood(single, X.float()).value, rtol=0, atol=1e-3
    )


# torchdiffeq as the engine


def test_solve_ode_both_ways_and_its_refusals():
    flow = ODE(lambda t, x: x * torch.cos(t))
    x0 = torch.ones(3, 2, dtype=torch.float64)
    there = interop.solve_ode(flow, x0, [0.0, 2.0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(there.x, x0 * math.exp(math.sin(2.0)), rtol=1e-7, atol=0)
    back = interop.solve_ode(flow, there.x, [2.0, 0.0], rtol=1e-9, atol=1e-9, method="dopri8")
    torch.testing.assert_close(back.x, x0, rtol=1e-7, atol=0)
    assert int(there.evaluations.min()) > 10
    with pytest.raises(ValueError, match='Invalid method "rk5"'):
        interop.solve_ode(flow, x0, [0.0, 1.0], method="rk5")
    with pytest.raises(ValueError, match="from 0 on"):
        interop.solve_ode(flow, x0, [0.0, 1.0], rtol=-1.0)
    with pytest.raises(ValueError, match="has diagonal noise"):
        interop.solve_ode(sdekit.SDE(lambda t, x: x, lambda t, x: x), x0, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"below what torch\.float32 resolves"):
        interop.solve_ode(flow, x0.float(), [0.0, 1.0], rtol=1e-14, atol=1e-14)
    with pytest.raises(NotFiniteError) as caught:
        interop.solve_ode(
            ODE(lambda t, x: torch.where(torch.arange(3)[:, None] == 1, math.nan, x)),
            x0,
            [0.0, 1.0],
        )
    assert caught.value.samples == [1]


def test_states_without_coordinates_have_the_density_of_the_prior():
    decay = sdekit.ODE(lambda t, x: -x)
    found = sdekit.log_likelihood(decay, torch.zeros(3, 0), [0.0, 1.0], lambda x: x.sum(1) + 2.0)
    assert found.value.tolist() == [2.0, 2.0, 2.0]
