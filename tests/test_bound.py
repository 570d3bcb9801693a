"""The variational bound: against conditioning by hand, closed forms on Gaussian data, and exact
densities of mixtures.
"""

import contextlib
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Normal, kl_divergence

import sdekit
from sdekit_diffusion import (
    DDPM,
    DIFFUSIONS,
    METHODS,
    NCSN,
    VESDE,
    VPSDE,
    GaussianMixture,
    ScoreModel,
    cosine_betas,
    linear_betas,
    nets,
    sample,
    variational_bound,
)
from sdekit_diffusion._inference.chain import _DRAW_STRIDE
from sdekit_diffusion._inference.decoder import Levels
from sdekit_diffusion._models.counters import BOUND
from sdekit_diffusion.metrics import modes

CHAIN = DDPM(linear_betas(20, 1e-3, 0.4))
CHAINS = [CHAIN, DDPM(cosine_betas(30)), NCSN(sdekit.geometric(5.0, 0.02, 20))]
VARIANCES = ["smaller", "larger"]
MIXTURE = GaussianMixture(
    [0.25, 0.75], torch.tensor([[-0.9, 0.6], [0.3, -0.2]], dtype=torch.float64), [0.05, 0.02]
)
X = MIXTURE.sample(50, seed=3)


# The chain


@pytest.mark.parametrize("sde", [kind() for kind in DIFFUSIONS.values()], ids=list(DIFFUSIONS))
def test_posterior_is_bayes_rule(sde):
    """Two observations of x_s: from x_0 before it and from x_t after it; precisions add up."""
    for s, t in ((0.1, 0.3), (0.5, 0.95)):
        s = s * sde.T
        t = t * sde.T
        factor, noise = sde.transition(s, t)
        precision = 1 / sde.sigma(s) ** 2 + (factor / noise) ** 2
        a, b, std = sde.posterior(s, t)
        assert std == pytest.approx(precision**-0.5, rel=1e-9)
        assert a == pytest.approx(factor / noise**2 / precision, rel=1e-9)
        assert b == pytest.approx(sde.alpha(s) / sde.sigma(s) ** 2 / precision, rel=1e-9)
        batch = sde.posterior(
            torch.full((2,), s, dtype=torch.float64), torch.full((2,), t, dtype=torch.float64)
        )
        assert [v[1].item() for v in batch] == pytest.approx([a, b, std])
    if sde.sigma(0.0) == 0:
        assert sde.posterior(0.0, 0.5 * sde.T) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "betas", [linear_betas(50, 1e-3, 0.3), cosine_betas(50)], ids=["linear", "cosine"]
)
def test_the_levels_of_ddpm_are_its_chain(betas):
    """q(x_i | x_0), and the published mean and variances of a step back (Ho et al., equations 4 and
    7), at every step.
    """
    sde = DDPM(betas)
    betas = np.array(betas)
    kept = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], kept[:-1]])
    times = sde.levels.tolist()
    assert times == pytest.approx(np.arange(1, 51) / 50)
    mean, std = sde.marginal(sde.levels, torch.ones(50, 1, dtype=torch.float64))
    np.testing.assert_allclose(mean[:, 0], np.sqrt(kept))
    np.testing.assert_allclose(std[:, 0] ** 2, 1 - kept)
    for i, (s, t) in enumerate(itertools.pairwise([0.0, *times])):
        a, b, smaller = sde.posterior(s, t)
        assert a == pytest.approx(np.sqrt(1 - betas[i]) * (1 - before[i]) / (1 - kept[i]), rel=1e-9)
        assert b == pytest.approx(np.sqrt(before[i]) * betas[i] / (1 - kept[i]), rel=1e-9)
        assert smaller**2 == pytest.approx(betas[i] * (1 - before[i]) / (1 - kept[i]), rel=1e-9)
        assert sde.transition(s, t)[1] ** 2 == pytest.approx(betas[i], rel=1e-9)


def test_the_levels_of_ncsn_are_its_sigmas():
    sde = NCSN([1.0, 0.5, 0.1, 0.05])
    assert [sde.sigma(t) for t in sde.levels.tolist()] == pytest.approx([0.05, 0.1, 0.5, 1.0])
    with pytest.raises(
        ValueError,
        match=r"VPSDE.* has no discrete noise levels: leave discrete out, or give times, or "
        r"take DDPM",
    ):
        VPSDE().levels  # noqa: B018


# The terms


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("sde", CHAINS, ids=str)
def test_every_term_is_its_divergence(sde, variance):
    """The same noise, x_t, and torch's divergence of two normals whose means are written out."""
    found = variational_bound(
        MIXTURE, X, sde=sde, variance=variance, draws=2, seed=4, first=7, decoder_std=0.03
    )
    times = sde.levels.tolist()
    unit = 2 * math.log(2)
    assert found.draws.shape == (2, len(times), 50)
    for k, (i, t) in itertools.product(range(2), enumerate(times)):
        index = torch.arange(7, 57) + k * _DRAW_STRIDE
        x_t = sde.alpha(t) * X + sde.sigma(t) * sdekit.normal(
            4, index, (2,), counter=BOUND + i, dtype=torch.float64
        )
        denoised = MIXTURE.denoise(t, x_t, sde)
        if i == 0:
            expected = -Normal(denoised, 0.03).log_prob(X)
        else:
            a, b, std = sde.posterior(times[i - 1], t)
            back = Normal(
                a * x_t + b * denoised,
                std if variance == "smaller" else sde.transition(times[i - 1], t)[1],
            )
            expected = kl_divergence(Normal(a * x_t + b * X, std), back)
        torch.testing.assert_close(found.draws[k, i], expected.sum(1) / unit, rtol=1e-6, atol=1e-9)
    alpha, sigma = sde.kernel(times[-1])
    prior = kl_divergence(Normal(alpha * X, sigma), Normal(torch.zeros_like(X), sigma))
    torch.testing.assert_close(found.prior, prior.sum(1) / unit)


@pytest.mark.parametrize("variance", VARIANCES)
def test_terms_of_gaussian_data_have_their_closed_forms(variance):
    """|x_0 - D|^2 = |u + c eps|^2 for Gaussian data and the exact denoiser: mean |u|^2 + d c^2,
    variance 2 d c^4 + 4 c^2 |u|^2.

    The mean over 20,000 points within 5.5 of its own standard errors, which sees 4 % in any of 20
    terms.
    """
    s2 = 0.09
    m = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    n = 20_000
    gauss = GaussianMixture([1.0], m[None], [s2])
    x = gauss.sample(n, seed=1)
    found = variational_bound(gauss, x, sde=CHAIN, variance=variance, seed=2)
    times = CHAIN.levels.tolist()
    unit = 3 * math.log(2)
    for i, t in enumerate(times):
        alpha, sigma = CHAIN.kernel(t)
        gain = alpha * s2 / (alpha**2 * s2 + sigma**2)
        u2 = ((1 - gain * alpha) * (x - m)).square().sum(1)
        c = gain * sigma
        if i == 0:
            offset = 3 * math.log(sigma * math.sqrt(2 * math.pi))
            weight = 0.5 / sigma**2
        else:
            _, b, std = CHAIN.posterior(times[i - 1], t)
            v = std if variance == "smaller" else CHAIN.transition(times[i - 1], t)[1]
            offset = 1.5 * (std**2 / v**2 - 1 - math.log(std**2 / v**2))
            weight = 0.5 * (b / v) ** 2
        expected = offset + weight * (u2 + 3 * c**2)
        stderr = weight * (6 * c**4 + 4 * c**2 * u2).mean().div(n).sqrt()
        assert abs(found.draws[0, i].mean() * unit - expected.mean()) < 5.5 * stderr
        assert 5.5 * stderr < 0.04 * (expected - offset).mean()


# The bound


@pytest.mark.parametrize("variance", VARIANCES)
def test_it_is_above_the_exact_density(variance):
    """On average over the law of the data, -log p of any model is at least its entropy (Gibbs).
    With Ho et al.'s chain the bound of the exact denoiser is that much above: 0.63 bits/dim with
    the smaller variance, 0.03 with the larger.

    Six standard errors of 3200 paired differences, 0.15, above what is found and below 0.
    """
    x = MIXTURE.sample(3200, seed=5)
    gap = variational_bound(
        MIXTURE, x, sde=DDPM(), variance=variance, seed=6
    ).value + MIXTURE.log_prob(x) / (2 * math.log(2))
    margin = 6 * float(gap.std()) / math.sqrt(3200)
    assert margin < 0.15
    assert -margin < float(gap.mean()) < {"smaller": 0.63, "larger": 0.03}[variance] + margin


def test_it_tends_to_the_density_as_steps_become_many():
    """Half of what it is above log p is gone with twice the steps: the chain of the exact denoiser
    is the reverse equation's.

    Gaussian data, steps even in log(alpha / sigma); the standard error of the ratios is 0.03.
    """
    gauss = GaussianMixture([1.0], torch.tensor([[0.5, -0.5]], dtype=torch.float64), [0.1])
    sde = VPSDE()
    x = gauss.sample(20_000, seed=7)
    gaps = []
    for n in (50, 100, 200):
        l = torch.linspace(math.log(1000), float(sde.log_snr(1.0)), n + 1, dtype=torch.float64)
        found = variational_bound(gauss, x, sde=sde, times=sde.time(l), seed=8)
        gaps.append(float((found.value + gauss.log_prob(x) / (2 * math.log(2))).mean()))
    assert 0 < gaps[-1] < 0.5
    assert all(1.8 < coarse / fine < 2.2 for coarse, fine in itertools.pairwise(gaps))


def test_levels_of_quantised_data():
    """Eight levels of unequal mass and the exact denoiser of points in the middles of their bins:
    above the entropy, and near.

    Six standard errors of 5000 paired differences are below 0.06 bits. The decoder's term is that
    of each level's bin.
    """
    low = -1.0
    high = 1.0
    weights = torch.arange(1.0, 9.0, dtype=torch.float64) / 36
    middles = low + (high - low) * (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    points = GaussianMixture(weights, middles[:, None], torch.full((8,), 1e-8))
    x = ((points.sample(5000, seed=1) - low) * (8 / (high - low))).floor().long()
    found = variational_bound(points, x, low=low, high=high, levels=8, sde=DDPM(), seed=2)
    gap = found.value + weights.log2()[x[:, 0]]
    margin = 6 * float(gap.std()) / math.sqrt(5000)
    assert margin < 0.06
    assert -margin < float(gap.mean()) < 0.08 + margin
    start = DDPM().levels[:2]
    wide = variational_bound(
        points, x, low=low, high=high, levels=8, sde=DDPM(), times=start, decoder_std=0.1
    )
    inner = 2 * scipy.stats.norm.cdf(1.25) - 1
    outer = scipy.stats.norm.cdf(1.25)
    mass = torch.tensor([outer, *[inner] * 6, outer], dtype=torch.float64)
    torch.testing.assert_close(wide.terms[0], -mass.log2()[x[:, 0]], rtol=1e-4, atol=0)


def test_a_chain_that_begins_below_a_bin_says_where_in_it():
    """A smooth law, quantised: near the entropy where the first noise is half a bin or more, above
    it by log2(width / (sigma_1 sqrt(2 pi e))) where it is less. Six standard errors of 5000 points
    are 0.1 bits.
    """
    law = GaussianMixture(
        [0.4, 0.6], torch.tensor([[-0.5], [0.4]], dtype=torch.float64), [0.01, 0.02]
    )
    x = ((law.sample(5000, seed=1) + 1) * 16).floor().clamp(0, 31).long()
    edges = -1 + np.arange(1, 32) / 16
    width = 1 / 16
    below = 0.4 * scipy.stats.norm.cdf(edges, -0.5, 0.1) + 0.6 * scipy.stats.norm.cdf(
        edges, 0.4, 0.02**0.5
    )
    entropy = -torch.from_numpy(np.log2(np.diff(below, prepend=0, append=1)))
    sde = DDPM(linear_betas(300, 1e-4, 0.06))
    gaps = []
    for times in (sde.levels, sde.levels[sde.sigma(sde.levels) > width / 2]):
        found = variational_bound(
            law, x, low=-1, high=1, levels=32, variance="larger", sde=sde, times=times, seed=2
        )
        gaps.append(float((found.value - entropy[x[:, 0]]).mean()))
        assert 6 * float((found.value - entropy[x[:, 0]]).std()) / math.sqrt(5000) < 0.11
    assert -0.11 < gaps[1] < 0.12 + 0.11
    assert gaps[0] - gaps[1] == pytest.approx(
        math.log2(width / (0.01 * math.sqrt(2 * math.pi * math.e))), abs=0.15
    )


@pytest.mark.parametrize("std", [0.003, 0.05, 3.0])
def test_the_decoder_gives_each_level_its_mass(std):
    """The masses of all levels add up to one; each is that of SciPy's normal, far out in the tails
    as well.
    """
    levels = torch.arange(17, dtype=torch.float64)
    decoder = Levels(-1.0, 1.0, 17)
    middles = decoder.values(levels)
    for mean in (-1.3, -0.4, 0.111, 1.0):
        found = decoder.negative_log_prob(middles, torch.tensor(mean, dtype=torch.float64), std)
        assert found.isfinite().all()
        assert (-found).exp().sum() == pytest.approx(1, abs=1e-12)
        near = np.abs(middles.numpy() - mean) < 30 * std
        edges = np.concatenate([[-np.inf], middles[1:].numpy() - 1 / 17, [np.inf]])
        # The tail in which differences keep their digits.
        side = np.where(middles.numpy() > mean, -1, 1)
        tails = [scipy.stats.norm.cdf(side * (edges[i : i + 17] - mean) / std) for i in (0, 1)]
        exact = np.abs(tails[1] - tails[0])
        np.testing.assert_allclose(np.exp(-found.numpy()[near]), exact[near], rtol=1e-9)


# Errors, batches, refusals


def test_standard_errors_are_those_of_the_noise():
    """Two runs of three draws with other seeds differ by what their standard errors say; the ratio
    is 1 +- 0.03 over points.
    """
    x = MIXTURE.sample(4000, seed=9)
    first, second = (
        variational_bound(MIXTURE, x, sde=CHAIN, draws=3, seed=seed) for seed in (1, 2)
    )
    ratio = (first.value - second.value).square().mean() / (
        first.stderr.square() + second.stderr.square()
    ).mean()
    assert ratio == pytest.approx(1, abs=0.17)
    means, stderrs = first.term_means
    assert means.sum() == pytest.approx(first.mean)
    assert stderrs[3] == pytest.approx(float(first.terms[3].std()) / math.sqrt(4000))
    assert first.mean_stderr == pytest.approx(float(first.value.std()) / math.sqrt(4000))
    single = variational_bound(MIXTURE, x[:1], sde=CHAIN)
    assert single.stderr.isnan().all()
    assert math.isnan(single.mean_stderr)
    assert single.terms_stderr[-1] == 0


def test_draws_share_no_noise():
    """Equal points, so that equal noise would give equal terms: no term of one draw is a term of
    the other at the same step.
    """
    found = variational_bound(MIXTURE, X[:1].expand(50, 2), sde=CHAIN, draws=2).draws
    for first, second in zip(*found, strict=True):
        assert not torch.isin(first, second).any()
        assert len(first.unique()) == 50


def test_progress_counts_steps_draws_and_batches(capsys):
    """20 steps, 2 draws, batches of 7 from 50 points: 8 of them."""
    variational_bound(MIXTURE, X, sde=CHAIN, draws=2, batch_size=7, progress=True)
    assert "320/320" in capsys.readouterr().err


def test_points_do_not_depend_on_their_batch():
    torch.manual_seed(0)
    model = ScoreModel(nets.MLP(shape=(2,), width=16, depth=1), CHAIN, shape=(2,)).train()
    whole = variational_bound(model, X.float(), draws=2)
    for part in (
        variational_bound(model, X.float(), draws=2, batch_size=7).draws,
        torch.cat(
            [
                variational_bound(model, X[i : i + 25].float(), draws=2, first=i).draws
                for i in (0, 25)
            ],
            dim=2,
        ),
    ):
        torch.testing.assert_close(part, whole.draws, rtol=1e-4, atol=1e-5)
    assert model.training
    assert not torch.equal(variational_bound(model, X.float(), draws=2, seed=1).draws, whole.draws)
    assert variational_bound(model, X[:0].float()).value.shape == (0,)


def test_numbers_are_vectors_of_one():
    settings = {"sde": CHAIN, "draws": 2}
    column, numbers = (
        GaussianMixture([0.3, 0.7], torch.tensor(m), [0.04, 0.01])
        for m in ([[-1.0], [0.5]], [-1.0, 0.5])
    )
    x = column.sample(5, seed=0)
    expected = variational_bound(column, x, **settings)
    found = variational_bound(numbers, x[:, 0], **settings)
    assert found.terms.shape == (21, 5)
    assert torch.equal(found.terms, expected.terms)


def test_labels_travel_with_their_points():
    def net(x, t, y):
        return x * y[:, None]

    model = ScoreModel(net, CHAIN, shape=(2,)).given(y=torch.linspace(0, 1, 50))
    whole, parts = (variational_bound(model, X, batch_size=size) for size in (None, 8))
    torch.testing.assert_close(parts.draws, whole.draws)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"x": X.long()}, TypeError, "pass low, high and levels"),
        ({"x": X, "levels": 8}, ValueError, "leave them out for floats"),
        ({"x": X[:, :1]}, ValueError, r"shape \(50, 1\); this model needs \(batch, 2\)"),
        (
            {"x": X.long() + 20, "low": -1, "high": 1, "levels": 8},
            ValueError,
            "integers from 19 to 21 are not levels 0 to 7",
        ),
        (
            {"x": X.long(), "low": 1, "high": 1, "levels": 8},
            ValueError,
            "low < high and two or more",
        ),
        ({"sde": "vp"}, ValueError, "no discrete noise levels"),
        ({"sde": "vp", "times": [0.0, 1.0]}, ValueError, "sigma > 0, and t = 0 has none"),
        (
            {"sde": "vp", "times": [0.5, 0.4]},
            ValueError,
            r"increasing numbers, not shape \(2,\): "
            r"\[0.5, 0.4\]",
        ),
        ({"sde": "vp", "times": [0.5, 1.4]}, ValueError, "outside the range"),
        (
            {"sde": "vp", "times": []},
            ValueError,
            r"one to 262144 increasing numbers, not shape "
            r"\(0,\)",
        ),
        (
            {"sde": "vp", "times": np.linspace(0.1, 1, 262_145)},
            ValueError,
            r"one to 262144 .* not "
            r"shape \(262145,\)",
        ),
        ({"sde": "vp", "times": 0.5}, ValueError, r"increasing numbers, not shape \(\)"),
        ({"variance": "learned"}, ValueError, "'smaller' or 'larger', not 'learned'"),
        ({"decoder_std": 0.0}, ValueError, "decoder_std must be positive"),
        ({"decoder_std": math.inf}, ValueError, "positive and finite, such as 0.01, not inf"),
        ({"decoder_std": "a"}, ValueError, "positive and finite, such as 0.01, not 'a'"),
        ({"x": X * math.nan}, ValueError, r"x is not finite in rows \[0, 1, 2, 3, 4, 5, 6, 7\]"),
        ({"x": X + 0j}, TypeError, r"x must be real, not torch\.complex128"),
        (
            {"x": X.long(), "low": -math.inf, "high": 1, "levels": 8},
            ValueError,
            "finite low < high and two or more of them, a whole number; not -inf, 1 and 8",
        ),
        (
            {"x": X.long(), "low": -1, "high": math.inf, "levels": 8},
            ValueError,
            "finite low < high and two or more of them, a whole number; not -1, inf and 8",
        ),
        ({"draws": 0}, ValueError, "count from 1"),
        ({"batch_size": 0}, ValueError, "count from 1"),
        (
            {"x": X.long(), "low": -1, "high": 1, "levels": 8.5},
            ValueError,
            r"a whole number; not -1, 1 and 8\.5",
        ),
        ({"draws": 1.5}, ValueError, r"in whole numbers; not 1\.5 and None"),
        ({"batch_size": 2.5}, ValueError, r"in whole numbers; not 1 and 2\.5"),
    ],
)
def test_what_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        variational_bound(MIXTURE, **{"x": X, "sde": CHAIN, **settings})


# The limit of the chain


def chain_of_vp(n):
    return DDPM([(0.1 + 19.9 * i / n) / n for i in range(1, n + 1)])


def test_the_chain_tends_to_the_vp_sde():
    """alpha and sigma of q(x_i | x_0) with beta_i = beta(i/N)/N: what they are off by falls as
    1/N.
    """
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    for name in ("alpha", "sigma"):
        errors = [
            float((getattr(chain_of_vp(n), name)(t) - getattr(VPSDE(), name)(t)).abs().max())
            for n in (100, 200, 400)
        ]
        assert errors[-1] < 0.02
        assert all(1.8 < coarse / fine < 2.2 for coarse, fine in itertools.pairwise(errors))


@pytest.mark.parametrize("s2", [0.05, 0.5])
def test_ancestral_sampling_along_the_chain_tends_to_the_law_of_the_data(s2):
    """Gaussian data, for which a step is x <- (a + b k) x + std z with D = k x: the variance down
    the chain, without samples.

    What it is off by falls as 1/N. It is the variance under the chain and, in the limit, under the
    VP SDE.
    """
    errors = []
    for n in (250, 500, 1000):
        sde = chain_of_vp(n)
        times = sde.levels.tolist()
        variance = float(sde.sigma(1.0)) ** 2
        for s, t in reversed(list(itertools.pairwise([0.0, *times]))):
            alpha, sigma = sde.kernel(t)
            a, b, std = sde.posterior(s, t)
            variance = (a + b * alpha * s2 / (alpha**2 * s2 + sigma**2)) ** 2 * variance + std**2
        errors.append(abs(variance / s2 - 1))
    assert errors[-1] < 0.1
    assert all(1.7 < coarse / fine < 2.3 for coarse, fine in itertools.pairwise(errors))


def test_ancestral_sampling_is_at_the_floor():
    """A thousand steps with the exact score along DDPM's chain: weights, means and covariances of
    modes. Under the VP SDE it is in test_sample.py.

    Twelve figures within 5.5 standard errors of 2000 samples, which are 20 % of the larger mode's
    variance.
    """
    law = GaussianMixture(
        [0.2, 0.8], torch.tensor([[-1.0, 0.4], [0.25, -0.1]], dtype=torch.float64), [0.02, 0.01]
    )
    settings = {"sde": "ddpm", "method": "ddpm", "steps": 1000, "seed": 1}
    solution = sample(law, 2000, return_solution=True, **settings)
    assert modes(solution.x, law.marginal(float(solution.ts[-1]), "ddpm")).worst < 5.5


def test_the_ddpm_method_takes_the_chains_steps():
    """METHODS["ddpm"] over one step is a x + b D + std z of `posterior`."""
    x = X[:5]
    for sde in (CHAIN, VPSDE()):
        settings = {"method": "ddpm", "steps": 1, "end": 0.3, "seed": 1, "save": "all"}
        solution = sample(MIXTURE, x_T=x, sde=sde, return_solution=True, **settings)
        t, s = solution.ts.tolist()
        a, b, std = sde.posterior(s, t)
        z = sdekit.normal(1, torch.arange(5), (2,), counter=0, dtype=torch.float64)
        expected = a * x + b * MIXTURE.denoise(t, x, sde) + std * z
        torch.testing.assert_close(solution.xs[-1], expected)
    assert METHODS["ddpm"].eta == 1


@pytest.mark.parametrize(
    ("own", "chain", "warns"),
    [
        ("ncsn", DDPM(linear_betas(50, 1e-6, 0.02)), True),  # less noise than the model has
        (VESDE(0.01, 5.0), DDPM(linear_betas(50, 2e-3, 0.4)), True),  # more
        ("vp", DDPM(), False),  # a little more
        ("vp", CHAIN, False),
    ],
    ids=str,
)
def test_a_chain_beyond_the_range_of_the_model(own, chain, warns):
    model = ScoreModel(lambda x, t: 0.5 * x, own, shape=(2,), data_std=1.0)
    expected = pytest.warns(UserWarning, match="times that it does not know")
    with expected if warns else contextlib.nullcontext():
        variational_bound(model, X[:1].float(), sde=chain, times=chain.levels[[0, -1]])
