"""Cosine, EDM, flow, DDPM and NCSN: published formulas, ends where alpha or sigma is 0, and the
same samples as under VP.
"""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from physical import span_of
from torch import nn

import sdekit
from sdekit._equations.quadrature import Panels
from sdekit_diffusion import (
    DDIM,
    DDPM,
    DENSITIES,
    DIFFUSIONS,
    EDMSDE,
    METHODS,
    NCSN,
    VESDE,
    VPSDE,
    WEIGHTS,
    AdaptiveFlow,
    CosineVPSDE,
    GaussianMixture,
    InTime,
    OnClock,
    Recipe,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    cosine_betas,
    decode,
    dsm_loss,
    fit,
    linear_betas,
    load,
    log_likelihood,
    sample,
    save,
)
from sdekit_diffusion._training.densities import draw_times

DEFAULTS = {name: kind() for name, kind in DIFFUSIONS.items()}
NEW = [name for name in DIFFUSIONS if name not in ("ve", "vp", "subvp")]
PREDICTIONS = ["noise", "data", "score", "velocity", "flow"]
# Centred, as data should be: then p_T differs from the prior by the square of alpha / sigma only.
MIXTURE = GaussianMixture(
    [0.25, 0.75], torch.tensor([[-0.9, 0.6], [0.3, -0.2]], dtype=torch.float64), [0.05, 0.02]
)
X = MIXTURE.sample(20, seed=3)
FINE = AdaptiveFlow(1e-6, 1e-6)  # errors are a tenth of the least tolerance, 1e-5
LESS_FINE = AdaptiveFlow(1e-5, 1e-5)
T = torch.linspace(0, 1, 101, dtype=torch.float64)


def exact(sde, predicts, conditioning="time"):
    """A network that knows the mixture, in the convention given."""

    def net(x, t):
        alpha, sigma = (
            (sde.alpha(t), sde.sigma(t))
            if conditioning == "time"
            else ((2 * t).sigmoid().sqrt(), (-2 * t).sigmoid().sqrt())
        )
        data = MIXTURE.denoise(
            sde.time((alpha / sigma).log()), x * (sde_scale(sde, alpha, sigma))[:, None], sde
        )
        alpha = alpha[:, None]
        sigma = sigma[:, None]
        noise = (x - alpha * data) / sigma
        outputs = {
            "data": data,
            "noise": noise,
            "score": -noise / sigma,
            "velocity": alpha * noise - sigma * data,
        }
        return (outputs | {"flow": noise - data})[predicts]

    return ScoreModel(
        net, sde, predicts, shape=(2,), conditioning=conditioning, data_std=MIXTURE.data_std
    )


def sde_scale(sde, alpha, sigma):
    """From a point with the kernel (alpha, sigma) to the diffusion's with the same ratio."""
    return sde.sigma(sde.time((alpha / sigma).log())) / sigma


def test_cosine_is_as_published():
    """Nichol and Dhariwal's alpha-bar, their equation 17."""
    f = torch.cos((T + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(CosineVPSDE().alpha(T) ** 2, f / f[0], rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(
        CosineVPSDE().alpha(T) ** 2 + CosineVPSDE().sigma(T) ** 2, torch.ones_like(T)
    )


def test_edm_is_as_published():
    """Karras et al., table 1: s(t) = 1, sigma(t) = t, and their dx/dt = (x - D)/t."""
    sde = EDMSDE()
    t = 3.0
    flow = sdekit.ProbabilityFlow(sde, lambda t, x: MIXTURE.score(t, x, sde))
    torch.testing.assert_close(flow.drift(t, X), (X - MIXTURE.denoise(t, X, sde)) / t)
    assert (sde.T, sde.kernel(80.0)) == (80.0, (1.0, 80.0))
    i = torch.arange(18, dtype=torch.float64)
    steps = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sde.spaced(80.0, 0.002, i / 17), steps)


def test_the_flow_of_rectified_flow_is_the_mean_velocity():
    """dx/dt = E[eps - x_0 | x_t = x], what a "flow" network predicts."""
    sde = RectifiedFlow()
    t = 0.3
    flow = sdekit.ProbabilityFlow(sde, lambda t, x: MIXTURE.score(t, x, sde))
    torch.testing.assert_close(
        flow.drift(t, X), exact(sde, "flow").net(X, torch.full((20,), t, dtype=torch.float64))
    )


def test_ddpm_is_the_chain_at_its_steps():
    betas = linear_betas(50, 1e-3, 0.3)
    sde = DDPM(betas)
    kept = (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)
    t = torch.arange(1, 51, dtype=torch.float64) / 50
    torch.testing.assert_close(sde.alpha(t), kept.sqrt())
    torch.testing.assert_close(sde.sigma(t), (1 - kept).sqrt())
    for i in (0, 1, 20, 49):
        factor, spread = sde.transition(i / 50, (i + 1) / 50)
        assert (factor, spread) == pytest.approx(
            (math.sqrt(1 - betas[i]), math.sqrt(betas[i])), rel=1e-9
        )
    middle = sde.alpha(0.5 * (t[1:] + t[:-1]))
    # Log(alpha) is linear between.
    torch.testing.assert_close(middle, (sde.alpha(t[1:]) * sde.alpha(t[:-1])).sqrt())


def test_betas():
    assert (
        DDPM()
        == DDPM(linear_betas(1000, 1e-4, 0.02))
        == DDPM(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    )
    assert hash(DDPM()) == hash(DDPM(list(linear_betas())))
    assert (linear_betas()[0], linear_betas()[-1], len(linear_betas())) == pytest.approx(
        (1e-4, 0.02, 1000)
    )
    cosine = DDPM(cosine_betas(500))
    t = torch.arange(0, 450, dtype=torch.float64) / 500  # the last of them are cut at 0.999
    torch.testing.assert_close(cosine.alpha(t), CosineVPSDE().alpha(t))
    assert max(cosine_betas(500)) == 0.999
    assert math.isfinite(cosine.log_snr(1.0))


def test_ncsn_of_geometric_levels_is_ve():
    published = VESDE(0.01, 50.0, exact=False)
    for levels in (sdekit.geometric(50.0, 0.01, 9), [0.01, 50.0], NCSN().sigmas):
        for name in ("sigma", "g", "log_snr"):
            torch.testing.assert_close(getattr(NCSN(levels), name)(T), getattr(published, name)(T))
    uneven = NCSN([1.0, 0.5, 0.1])
    assert [uneven.sigma(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 0.5, 1.0])
    assert uneven == NCSN([0.1, 0.5, 1.0])


@pytest.mark.parametrize("sde", [DDPM(), NCSN(), NCSN([1.0, 0.5, 0.1])], ids=str)
@pytest.mark.parametrize("name", ["alpha", "sigma", "f", "g", "log_snr"])
def test_times_may_be_whole_numbers(sde, name):
    function = getattr(sde, name)
    torch.testing.assert_close(function(torch.tensor([0, 1])), function(torch.tensor([0.0, 1.0])))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CosineVPSDE(0.0), "needs s > 0, such as 0.008, not 0.0"),
        (lambda: EDMSDE(-1.0), "needs sigma_max > 0, such as 80, not -1.0"),
        (lambda: EDMSDE(math.inf), "needs sigma_max > 0"),
        (lambda: DDPM([0.1]), "two betas or more, each between 0 and 1, not 0.1"),
        (lambda: DDPM([0.1, 1.0]), "not 0.1, 1"),
        (lambda: DDPM([0.5] * 999 + [math.nan]), "not 1000 values from 0.5 to nan"),
        (lambda: NCSN([1.0]), "in order, not 1"),
        (lambda: NCSN([1.0, 1.0]), "in order, not 1, 1"),
        (lambda: NCSN([1.0, 0.1, 0.5]), "in order, not 1, 0.1, 0.5"),
        (lambda: NCSN([1.0, 0.0]), "in order, not 1, 0"),
        (lambda: NCSN([1.0, math.nan]), "in order, not 1, nan"),
    ],
)
def test_parameters_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_many_numbers_are_counted_not_shown():
    assert str(DDPM()) == "DDPM(1000 values from 0.0001 to 0.02)"
    assert str(NCSN([1, 0.1])) == "NCSN(0.1, 1)"


@pytest.mark.parametrize("sde", DEFAULTS.values(), ids=DEFAULTS)
def test_nothing_is_undefined_at_the_ends(sde):
    """Where alpha = 0 or sigma = 0 a value may be infinite, but it is a number."""
    x = torch.ones(2, 2, dtype=torch.float64)
    ends = torch.tensor([0.0, sde.T], dtype=torch.float64)
    for name in ("alpha", "sigma", "f", "g", "log_snr"):
        values = getattr(sde, name)(ends)
        assert not values.isnan().any()
        assert values.tolist() == pytest.approx([getattr(sde, name)(t) for t in ends.tolist()])
    assert math.isfinite(sde.log_snr(sde.latest(0.5)))
    assert sde.alpha(sde.T) >= 0
    for s in (0.0, 0.5 * sde.T, sde.T):
        for t in (column(sde.T), sde.T):
            assert not any(torch.as_tensor(v).isnan().any() for v in sde.transition(s, t))
    assert sde.marginal(ends, x)[0].isfinite().all()
    assert sde.prior((2, 2), seed=0).isfinite().all()
    assert sde.log_prior(x).isfinite().all()


# The exact model on the range 0.02 < sigma / alpha < 5, which all diffusions have.
SHARED = exact(VESDE(0.01, 5.0), "data", "log_snr")


def data_left(name):
    """alpha / sigma at T."""
    return math.exp(DEFAULTS[name].log_snr(DEFAULTS[name].T))


def column(t):
    return torch.tensor([t], dtype=torch.float64)


@pytest.mark.parametrize("end", [1e-3, 0.02])
def test_where_a_solve_ends(end):
    """At sigma / alpha = end standard deviations of the data, or at t = 0 if that is noisier."""
    for name, sde in DEFAULTS.items():
        least = max(end * MIXTURE.data_std, math.exp(-float(sde.log_snr(0.0))))
        assert math.exp(-span_of(MIXTURE, sde, end)[1]) == pytest.approx(least, rel=1e-9), name


def test_where_a_solve_starts():
    """At T, unless sigma / alpha there is above 1e5 standard deviations of the data, as where alpha
    is 0: then at 160.
    """
    starts = {}
    for name, sde in DEFAULTS.items():
        start = span_of(MIXTURE, sde, 1e-3)[0]
        last = sde.log_snr(sde.T)
        starts[name] = -last > math.log(1e5 * MIXTURE.data_std)
        expected = -math.log(160 * MIXTURE.data_std) if starts[name] else last
        assert start == pytest.approx(expected, rel=1e-9)
        model = exact(VPSDE(), "data")
        assert span_of(model, sde, 1e-3)[0] == pytest.approx(max(start, VPSDE().log_snr(1.0)))
    assert starts["cosine"]
    assert starts["flow"]
    assert not starts["edm"]
    assert not starts["vp"]


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("own", DEFAULTS)
def test_models_are_finite_at_the_ends(own, predicts):
    """A network that is finite makes denoisers that are, under its own diffusion and under
    others.
    """
    net = lambda x, t: torch.sin(x + t[:, None].clamp(-1e3, 1e3))  # noqa: E731
    for case in itertools.product(("time", "log_snr"), (own, "vp", "flow", "edm", "cosine")):
        conditioning, other = case
        model = ScoreModel(net, own, predicts, shape=(2,), conditioning=conditioning)
        sde = DEFAULTS[other]
        for t in (0.0, sde.T, torch.linspace(0, sde.T, 20, dtype=torch.float64)):
            assert model.denoise(t, X, other).isfinite().all(), case
            assert model.predict_noise(*sde.normalised(t, X)).isfinite().all(), case
        assert model.score(sde.T, X, other).isfinite().all(), case
        if sde.sigma(0.0) == 0:
            for t in (0.0, torch.zeros(20)):
                with pytest.raises(ValueError, match="where sigma = 0"):
                    model.score(t, X, other)


VARIANTS = DEFAULTS | {
    "ve as published": VESDE(0.02, 30.0, exact=False),
    "subvp to 15": SubVPSDE(0.2, 15.0),
}


POINTS = (0.4, torch.linspace(-2, 3, 20, dtype=torch.float64))  # log(alpha / sigma)


@functools.cache
def known(name):
    """Of a diffusion at a time and at times of each sample: the time, alpha, sigma, points there,
    and the mixture's denoiser and score of these.
    """
    sde = VARIANTS[name]
    found = []
    for l in POINTS:
        t = sde.time(l)
        t = float(t) if isinstance(l, float) else torch.as_tensor(t)
        alpha, sigma = (
            torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1)
            for v in (sde.alpha(t), sde.sigma(t))
        )
        x = X * sigma
        found.append((t, alpha, sigma, x, MIXTURE.denoise(t, x, sde), MIXTURE.score(t, x, sde)))
    return found


def close(found, expected, rtol, case):
    named = lambda message: f"{case}: {message}"  # noqa: E731
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-8, msg=named)


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("own", VARIANTS)
def test_conventions_agree_under_every_diffusion(own, predicts):
    """Denoiser, score and noise, at one time and at times of each sample; None is the model's own
    diffusion. Of the others each model meets every fifth: every pair of diffusions meets two kinds
    of model, and every kind meets every diffusion.
    """
    turn = list(VARIANTS).index(own) + PREDICTIONS.index(predicts)
    cases = [
        (conditioning, given)
        for conditioning, turn in (("log_snr", turn), ("time", turn + 2))
        for given in (None, *list(VARIANTS)[turn % 5 :: 5])
    ]
    for case in cases:
        conditioning, given = case
        model = exact(VARIANTS[own], predicts, conditioning)
        sde = VARIANTS[given or own]
        for t, alpha, sigma, x, data, score in known(given or own):
            other = given and sde
            close(model.denoise(t, x, other), data, 1e-7, case)
            close(model.score(t, x, other), score, 1e-6, case)
            noise = model.predict_noise(*sde.normalised(t, x))
            close(alpha * data + sigma * noise, x, 1e-7, case)


def in_own_time(method):
    """Whether it is defined in a diffusion's own time, as the polynomial in t of "deis" is."""
    if not isinstance(method, OnClock) or not isinstance(method.rule, sdekit.AbstractMultistep):
        return isinstance(method, InTime)
    nodes = -np.arange(float(method.rule.k))[None]
    panels = Panels(nodes, nodes[:, 0], nodes[:, 0] + 1, rate=1.0)
    weights = [method.rule.rule(replace(panels, own=own)) for own in (np.exp, np.tanh)]
    return not np.allclose(*weights)


NATURAL = [name for name, method in METHODS.items() if in_own_time(method)]
assert "deis" in NATURAL


ON_THE_CLOCK = [name for name in METHODS if name not in (*NATURAL, "adaptive_sde")] + [
    OnClock(eta=0.7),
    DDIM(0.5),
]


@functools.cache
def drawn(method, sde):
    """Six samples on the range that all diffusions share: that of the model. A level of "ncsn"
    takes a hundred moves.
    """
    steps = {"ode": None, "ncsn": 2}.get(method, 8)
    settings = {"steps": steps, "seed": 4, "end": 0.02 / SHARED.data_std, "dtype": torch.float64}
    return sample(SHARED, 6, sde=sde, method=method, **settings)


@pytest.mark.parametrize("method", ON_THE_CLOCK, ids=str)
def test_on_the_clock_every_method_gives_the_same_samples_under_all_diffusions(method):
    """To rounding, or to the tolerance, which is one of x. Each method meets three of the others
    by turns, the default all.
    """
    others = [name for name in DEFAULTS if name != "vp"]
    turn = ON_THE_CLOCK.index(method)
    chosen = others if method == "default" else [others[(turn + i) % 7] for i in (0, 2, 3)]
    expected = drawn(method, DEFAULTS["vp"])
    for sde in chosen:
        found = drawn(method, DEFAULTS[sde])
        off = float((found - expected).abs().max())
        assert off < (1e-4 if method == "ode" else 1e-9), sde


@functools.cache
def of_the_mixture(method, sde):
    return sample(MIXTURE, 300, sde=sde, method=method, seed=4)


@pytest.mark.parametrize("sde", NEW)
@pytest.mark.parametrize("method", ["default", FINE], ids=["default", "ode"])
def test_on_the_clock_all_diffusions_give_the_same_samples(sde, method):
    """Up to the ends, by the square of alpha / sigma at T and of sigma at 0. Deviations of the
    modes are 0.14 and 0.22.
    """
    a, b = (of_the_mixture(method, name) for name in ("vp", sde))
    ends = 0.25 * data_left(sde) ** 2 + 15 * math.exp(-2 * DEFAULTS[sde].log_snr(0.0))
    torch.testing.assert_close(b, a, rtol=0, atol=1e-4 + ends)


@pytest.mark.parametrize(
    ("sde", "method"),
    # A corrector doubles the time; it knows of a diffusion what its predictor does. Of the three
    # methods of many steps, whose single steps test_predictors.py has, every diffusion meets one.
    [
        (sde, method)
        for (i, sde), (j, method) in itertools.product(enumerate(NEW), enumerate(NATURAL))
        if (method == "pc" and sde == "ncsn")
        or method == "deis"
        or (method != "pc" and (i + j) % 3 == 0)
    ],
)
def test_every_method_has_the_law(sde, method):
    """Mean and covariance within 5.5 standard errors of 2000 samples, which the bias of 300 steps
    does not exceed. Samples of methods on the clock are those under VP, see above.
    """
    n = 2000
    steps = min(METHODS[method].steps, 300)
    settings = {"sde": sde, "method": method, "steps": steps, "seed": 2}
    solution = sample(MIXTURE, n, return_solution=True, **settings)
    law = MIXTURE.marginal(float(solution.ts[-1]), DEFAULTS[sde])
    x = solution.x
    exactly = law.sample(n, seed=9)
    assert ((x.mean(0) - law.mean()).abs() < 5.5 * exactly.std(0) / math.sqrt(n)).all()
    products, known = (v[:, :, None] * v[:, None] for v in (x, exactly))
    assert ((products.mean(0) - law.covariance()).abs() < 5.5 * known.std(0) / math.sqrt(n)).all()
    assert float(law.responsibilities(x)[:, 0].mean()) == pytest.approx(
        0.25, abs=5.5 * math.sqrt(0.1875 / n)
    )


@functools.cache
def data_with_noise(l):
    """log p of data + e^{-l} eps: the same under every diffusion."""
    return MIXTURE.marginal(math.exp(-l), EDMSDE()).log_prob(X)


@pytest.mark.parametrize("sde", DEFAULTS)
def test_likelihood_equals_the_closed_form(sde):
    """Up to what the prior leaves out; without that where the law at the start takes its place."""
    kernel = DEFAULTS[sde]
    low, high = span_of(MIXTURE, kernel, 1e-3)
    expected = data_with_noise(high)
    ours = log_likelihood(MIXTURE, X, sde=sde, method=FINE)
    left = 0.8 * data_left(sde) ** 2
    torch.testing.assert_close(ours.value, expected, rtol=0, atol=1e-4 + left)
    law = MIXTURE.marginal(float(kernel.time(low)), kernel)
    prior = GaussianMixture([1.0], law.data_mean[None], [law.data_std**2])
    more = law.log_prob(ours.latent) - prior.log_prob(ours.latent)
    torch.testing.assert_close(ours.value + more, expected, rtol=0, atol=1e-4)
    back = decode(MIXTURE, ours.latent, sde=sde, method=FINE)
    torch.testing.assert_close(back, X, rtol=0, atol=1e-5)


@functools.cache
def samples_of_the_mixture():
    return sample(MIXTURE, 50, sde="vp", method=LESS_FINE, seed=1)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_model_of_one_diffusion_under_the_others(predicts):
    """Trained under VP, or under the flow, sampled and measured under one of EDM, flow and cosine,
    by turns: as the mixture itself.
    """
    expected = samples_of_the_mixture()
    density = data_with_noise(-math.log(1e-3 * MIXTURE.data_std))
    for i, own in enumerate(("vp", "flow")):
        model = exact(DEFAULTS[own], predicts, "time")
        sde = ("edm", "flow", "cosine")[(PREDICTIONS.index(predicts) + i) % 3]
        x = sample(model, 50, sde=sde, method=LESS_FINE, seed=1, dtype=torch.float64)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-3)
        found = log_likelihood(model, X, sde=sde, method=LESS_FINE).value
        torch.testing.assert_close(found, density, rtol=0, atol=2e-3)


class Small(nn.Module):
    """A perceptron of x and of a few functions of the label."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x, t):
        return self.layers(
            torch.cat([x, torch.stack([torch.sin(t), torch.cos(t), t / 8], dim=1)], dim=1)
        )


@pytest.mark.parametrize("weighting", ["plain", "likelihood", "edm"])
@pytest.mark.parametrize("sde", DEFAULTS)
def test_training_under_every_diffusion(sde, weighting, tmp_path):
    """Times stay where the clock is finite; the loss is; the checkpoint comes back with its
    diffusion. Of predictions each pair of a diffusion and a weighting has two, by turns.
    """
    u = torch.linspace(0, 1, 101, dtype=torch.float64)[:-1]
    t = draw_times(DEFAULTS[sde], u, DENSITIES[WEIGHTS[weighting].density], 1e-3, 0.5)
    assert DEFAULTS[sde].log_snr(t).isfinite().all()
    assert t.min() >= 0
    assert t.max() <= DEFAULTS[sde].latest(0.5)
    torch.manual_seed(0)
    turn = list(DEFAULTS).index(sde) + 2 * ["plain", "likelihood", "edm"].index(weighting)
    for predicts in (PREDICTIONS[turn % 5], PREDICTIONS[(turn + 1) % 5]):
        model = ScoreModel(Small(), sde, predicts, shape=(2,), conditioning="log_snr", data_std=0.5)
        records = fit(
            model, X.float(), Recipe(steps=2, batch_size=16, weighting=weighting), progress=False
        )
        assert all(record.loss.isfinite() for record in records)
    save(model, tmp_path)
    assert load(tmp_path, net=Small()).sde == DEFAULTS[sde]


def test_training_ends_where_solves_start():
    """For data of deviation 0.01 under the flow at sigma/alpha = 1.6, t = 1.6/2.6."""
    seen = []
    model = ScoreModel(lambda x, t: seen.append(t) or x, "flow", "flow", shape=(2,), data_std=0.01)
    dsm_loss(model, 0.01 * X.repeat(200, 1), seed=0)
    assert 0.6 < seen[0].max() < 1.6 / 2.6


def test_flow_matching_learns():
    """A "flow" network trained under RectifiedFlow approaches the least loss there is; sampled
    under VP it has the law.
    """
    torch.manual_seed(0)
    model = ScoreModel(
        Small(), "flow", "flow", shape=(2,), conditioning="log_snr", data_std=MIXTURE.data_std
    )
    fit(
        model,
        MIXTURE.sample(5000, seed=1).float(),
        Recipe(steps=800, batch_size=256, lr=4e-3),
        progress=False,
    )
    held_out = MIXTURE.sample(5000, seed=2)
    right = exact(RectifiedFlow(), "flow")
    losses = [
        dsm_loss(m, x0, seed=3).mean().item()
        for m, x0 in ((model, held_out.float()), (right, held_out))
    ]
    assert losses[0] < losses[1] + 0.02
    for sde in ("flow", "vp"):
        x = sample(model, 2000, sde=sde, seed=4)
        assert MIXTURE.responsibilities(x)[:, 0].mean() == pytest.approx(0.25, abs=0.06)
        assert (x.double().T.cov() - MIXTURE.covariance()).abs().max() < 0.05


def test_solves_start_at_the_end_of_time_where_the_clock_has_one():
    for sde in (VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), DDPM(), NCSN()):
        assert sde.latest(0.01) == sde.T
