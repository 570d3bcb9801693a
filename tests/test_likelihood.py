"""Log-likelihoods against closed forms, traces against Jacobians, bits per dimension against hand arithmetic."""

import math

import pytest
import torch

import sdekit
from sdekit import ODE, Exact, Hutchinson, NotFiniteError, interop
from sdekit._divergence import vector_jacobian_products
from sdekit_diffusion import VESDE, VPSDE, GaussianMixture, ScoreModel, SubVPSDE, bits_per_dim, log_likelihood, sample

KERNELS = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
MIXTURE = GaussianMixture(
    [0.3, 0.5, 0.2],
    torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]], dtype=torch.float64),
    torch.tensor([[[0.05, 0.02], [0.02, 0.04]], [[0.1, 0.0], [0.0, 0.01]], [[0.02, -0.01], [-0.01, 0.05]]]),
)
X = MIXTURE.sample(50, seed=1)


@pytest.mark.parametrize("sde", KERNELS)
def test_equals_the_closed_form_with_the_exact_law_at_the_start(sde):
    kernel = KERNELS[sde]
    t_min = float(kernel.time(math.log(1000)))
    exact = MIXTURE.marginal(t_min, kernel).log_prob(X)
    start = MIXTURE.marginal(1.0, kernel)
    ours = log_likelihood(MIXTURE, X, sde=sde, log_prior=start.log_prob, rtol=1e-7, atol=1e-7)
    assert (ours.value - exact).abs().max() < 1e-4
    assert ours.value.dtype == torch.float64
    assert torch.equal(ours.stderr, torch.zeros(50, dtype=torch.float64))
    with_prior = log_likelihood(MIXTURE, X, sde=sde, rtol=1e-7, atol=1e-7)
    difference = kernel.log_prior(ours.latent) - start.log_prob(ours.latent)
    assert (with_prior.value - ours.value - difference).abs().max() < 1e-4
    assert (with_prior.value - exact).abs().max() < 0.1


def test_default_tolerance_and_float32():
    exact = MIXTURE.marginal(float(VPSDE().time(math.log(1000))), VPSDE()).log_prob(X)
    start = MIXTURE.marginal(1.0, VPSDE())
    for x, bound in ((X, 2e-3), (X.float(), 5e-3)):
        ours = log_likelihood(MIXTURE, x, sde="vp", log_prior=start.log_prob)
        assert (ours.value - exact).abs().max() < bound


def test_density_integrates_to_one():
    """Over a fine grid around the mixture; a wrong change of variables would miss by a factor."""
    side = torch.linspace(-3, 3, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    wide = GaussianMixture([0.5, 0.5], [[-0.5, 0.0], [0.5, 0.3]], torch.tensor([0.2, 0.3], dtype=torch.float64))
    total = log_likelihood(wide, grid, sde="subvp", end=0.1).value.exp().sum() * (side[1] - side[0]) ** 2
    assert total == pytest.approx(1.0, abs=2e-3)


def test_hutchinson_is_unbiased_and_its_standard_error_calibrated():
    """z-scores of 50 points with 16 probes follow Student's t with 15 degrees of freedom; bounds beyond 1e-6."""
    exact = log_likelihood(MIXTURE, X, sde="vp", trace=Exact())
    for kind in ("rademacher", "gaussian"):
        ours = log_likelihood(MIXTURE, X, sde="vp", trace=Hutchinson(16, kind, seed=3))
        z = (ours.value - exact.value) / ours.stderr
        assert z.abs().max() < 9
        assert abs(z.mean()) < 5.5 * 1.075 / math.sqrt(50)
        assert 0.5 < z.square().mean() < 2.3
    single = log_likelihood(MIXTURE, X[:3], sde="vp", trace=Hutchinson(1))
    assert single.stderr.isnan().all()


def test_probes_and_values_do_not_depend_on_the_batch():
    """Steps are shared by a batch, so values agree to the tolerance; probes are the sample's own, to the bit."""
    trace = Hutchinson(4, seed=5)
    whole = log_likelihood(MIXTURE, X, sde="vp", trace=trace, rtol=1e-7, atol=1e-7)
    parts = log_likelihood(MIXTURE, X, sde="vp", trace=trace, rtol=1e-7, atol=1e-7, batch_size=7)
    last = log_likelihood(MIXTURE, X[49:], sde="vp", trace=trace, first=49, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(parts.value, whole.value, rtol=0, atol=1e-4)
    torch.testing.assert_close(parts.stderr, whole.stderr, rtol=0, atol=1e-4)
    torch.testing.assert_close(last.value, whole.value[49:], rtol=0, atol=1e-4)
    v = trace.vectors(X, torch.arange(50))
    assert torch.equal(trace.vectors(X[49:], torch.arange(49, 50)), v[:, 49:])


def test_latents_are_what_sampling_starts_from():
    latent = log_likelihood(MIXTURE, X, sde="vp", rtol=1e-8, atol=1e-8).latent
    from sdekit_diffusion import AdaptiveFlow

    back = sample(MIXTURE, sde="vp", x_T=latent, method=AdaptiveFlow(1e-8, 1e-8))
    torch.testing.assert_close(back, X, rtol=0, atol=1e-5)


def test_linear_flow():
    """dx = a x dt: log p(x_0) = log p(x_1) + d a, in both directions."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normal = lambda y: -0.5 * y.square().sum(1)  # noqa: E731
    for ts in ([0.0, 1.0], [1.0, 0.0]):
        for trace in (Exact(), Hutchinson(3), Hutchinson(2000, "gaussian")):
            ours = sdekit.log_likelihood(ODE(lambda t, y: 0.4 * y), x, ts, normal, trace=trace)
            growth = 0.4 * (ts[1] - ts[0])
            assert ours.value == pytest.approx(
                normal(x * math.exp(growth)) + 3 * growth, abs=1e-4 + 6 * float(ours.stderr.max())
            )
    for trace in (Exact(), Hutchinson(3)):
        constant = sdekit.log_likelihood(ODE(lambda t, y: torch.ones_like(y)), x, [0.0, 1.0], normal, trace=trace)
        assert constant.value == pytest.approx(normal(x + 1), abs=1e-6)


def test_products_against_the_jacobian():
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    point = x.clone().requires_grad_()
    y = torch.tanh(point @ weight)
    exact = Exact()
    trace = exact.estimates(vector_jacobian_products(y, point, exact.vectors(x, torch.arange(2))))[0]
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: torch.tanh(v @ weight), x[row])
        assert trace[row] == pytest.approx(jacobian.trace().item())


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_variance_of_one_probe_is_the_formula(kind):
    """2 (|S|_F^2 - sum S_ii^2) or 2 |S|_F^2, S the symmetric part; 5.5 standard errors of 20,000 probes."""
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    v = Hutchinson(20_000, kind).vectors(x.detach(), torch.arange(1))
    values = torch.einsum("kbi,ij,kbj->k", v, weight, v)
    s = (weight + weight.T) / 2
    variance = 2 * (s.square().sum() - (s.diagonal().square().sum() if kind == "rademacher" else 0))
    assert abs(values.mean() - weight.trace()) < 5.5 * math.sqrt(variance / 20_000)
    fourth = ((values - values.mean()) ** 4).mean()
    assert abs(values.var() - variance) < 5.5 * math.sqrt((fourth - values.var() ** 2) / 20_000)


def test_bits_per_dim_by_hand():
    d = 4
    model = GaussianMixture([1.0], torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    levels = torch.randint(0, 17, (6, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    ours = bits_per_dim(model, levels, low=-1, high=1, levels=17, sde="vp", seed=4)
    u = sdekit.uniform01(4, torch.arange(6), (1, 2, 2), counter=-3)
    x = -1 + 2 * (levels + u) / 17
    nats = log_likelihood(model, x, sde="vp").value
    torch.testing.assert_close(ours.value, -nats / (d * math.log(2)) - math.log2(2 / 17))
    torch.testing.assert_close(bits_per_dim(model, x, low=-1, high=1, levels=17, sde="vp").value, ours.value)
    assert ours.mean == pytest.approx(ours.value.mean().item())
    assert ours.mean_stderr == pytest.approx(ours.value.std().item() / math.sqrt(6))


def test_offsets_of_the_published_conventions():
    """For the same levels of 8-bit images a model of [0, 1] has the bits of one of [-1, 1], by offsets of 8 and 7."""
    levels = torch.randint(0, 256, (4, 3), generator=torch.Generator().manual_seed(0))
    deviation = torch.tensor([0.3**2], dtype=torch.float64)
    wide = GaussianMixture([1.0], torch.zeros(1, 3, dtype=torch.float64), deviation)
    narrow = GaussianMixture([1.0], torch.full((1, 3), 0.5, dtype=torch.float64), deviation / 4)
    tight = {"sde": "vp", "rtol": 1e-7, "atol": 1e-7, "end": 1e-5, "levels": 256}
    a = bits_per_dim(wide, levels, low=-1, high=1, **tight).value
    b = bits_per_dim(narrow, levels, low=0, high=1, **tight).value
    torch.testing.assert_close(a, b, rtol=0, atol=1e-2)  # the prior's mean is 0 and this mixture's is not
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


def test_failures_are_in_the_diffusions_time_and_the_callers_rows():
    def net(x, t):
        return torch.where((t[:, None] > 0.5) & (x[:, :1] > 1e3), math.nan, x)

    x = torch.ones(6, 2)
    x[5] = 1e6
    with pytest.raises(NotFiniteError, match="after evaluation") as caught:
        log_likelihood(ScoreModel(net, "vp", "data", shape=(2,)), x, batch_size=4)
    assert caught.value.samples == [5]
    assert 0.5 < caught.value.t <= 1.0


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
    with pytest.raises(ValueError, match="at least one probe"):
        Hutchinson(0)
    with pytest.raises(ValueError, match="kind"):
        Hutchinson(2, "uniform")
    model = ScoreModel(lambda x, t: x * math.nan, "vp", shape=(2,))
    with pytest.raises(NotFiniteError):
        log_likelihood(model, X)
    empty = log_likelihood(MIXTURE, X[:0], sde="vp")
    assert empty.value.shape == empty.stderr.shape == (0,)
    assert bits_per_dim(MIXTURE, X[:0], low=-1, high=1, levels=17, sde="vp").value.shape == (0,)


# torchdiffeq as the engine


def test_solve_ode_both_ways_and_its_refusals():
    flow = ODE(lambda t, x: x * torch.cos(t))
    x0 = torch.ones(3, 2, dtype=torch.float64)
    there = interop.solve_ode(flow, x0, [0.0, 2.0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(there.x, x0 * math.exp(math.sin(2.0)), rtol=1e-7, atol=0)
    back = interop.solve_ode(flow, there.x, [2.0, 0.0], rtol=1e-9, atol=1e-9, method="dopri8")
    torch.testing.assert_close(back.x, x0, rtol=1e-7, atol=0)
    assert int(there.evaluations.min()) > 10
    with pytest.raises(ValueError, match="not one of torchdiffeq's adaptive ones"):
        interop.solve_ode(flow, x0, [0.0, 1.0], method="rk4")
    with pytest.raises(ValueError, match="from 0 on"):
        interop.solve_ode(flow, x0, [0.0, 1.0], rtol=-1.0)
    with pytest.raises(ValueError, match="has diagonal noise"):
        interop.solve_ode(sdekit.SDE(lambda t, x: x, lambda t, x: x), x0, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"below what torch\.float32 resolves"):
        interop.solve_ode(flow, x0.float(), [0.0, 1.0], rtol=1e-14, atol=1e-14)
    with pytest.raises(NotFiniteError) as caught:
        interop.solve_ode(ODE(lambda t, x: torch.where(torch.arange(3)[:, None] == 1, math.nan, x)), x0, [0.0, 1.0])
    assert caught.value.samples == [1]
