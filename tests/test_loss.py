"""Denoising score matching."""

import math

import pytest
import torch

from sdekit import normal
from sdekit_diffusion import (
    DDPM,
    DENSITIES,
    NCSN,
    VESDE,
    VPSDE,
    WEIGHTS,
    GaussianMixture,
    LogNormal,
    Recipe,
    ScoreModel,
    SubVPSDE,
    dsm_loss,
    linear_betas,
    nets,
)
from sdekit_diffusion._training.densities import draw_discrete, draw_times

TINY = Recipe(steps=20, batch_size=8, warmup=3)


def model(sde="vp", **settings):
    torch.manual_seed(0)
    return ScoreModel(nets.MLP(shape=(2,), width=16, depth=1), sde, shape=(2,), **settings)


@pytest.mark.parametrize("weighting", ["plain", "likelihood"])
def test_loss_of_the_exact_denoiser_is_the_conditional_variance(weighting):
    """E |eps_hat - eps|^2 for the exact score of N(0, s^2): s^2 alpha^2 / (s^2 alpha^2 + sigma^2),
    averaged over the times.

    Within 5.5 standard errors of 40,000 samples.
    """
    s = 0.5
    sde = VPSDE()
    gauss = GaussianMixture(
        [1.0], torch.zeros(1, 2, dtype=torch.float64), torch.tensor([s**2], dtype=torch.float64)
    )
    exact = ScoreModel(lambda x, t: gauss.score(t, x, sde), sde, "score")
    x0 = gauss.sample(40_000, seed=1)
    losses = dsm_loss(exact, x0, weighting=weighting, seed=2)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t = draw_times(sde, u, DENSITIES[WEIGHTS[weighting].density], 1e-3)
    signal = (s * sde.alpha(t)) ** 2
    expected = (signal / (signal + sde.sigma(t) ** 2)).mean()
    assert abs(losses.mean() - expected) < 5.5 * losses.std() / math.sqrt(len(losses))
    worse = ScoreModel(lambda x, t: 0.9 * gauss.score(t, x, sde), sde, "score")
    excess = dsm_loss(worse, x0, weighting=weighting, seed=2) - losses
    assert excess.mean() > 5.5 * excess.std() / math.sqrt(len(excess))


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), SubVPSDE(), DDPM(), NCSN()], ids=str)
def test_times_reach_from_the_end_to_the_latest(sde, density):
    """From sigma / alpha = end, or from t = 0 where that has more noise."""
    ends = (
        draw_times(sde, torch.tensor([0.0, 1.0], dtype=torch.float64), DENSITIES[density], 0.02)
        .sort()
        .values
    )
    least = max(0.02, math.exp(-float(sde.log_snr(0.0))))
    assert math.exp(-float(sde.log_snr(float(ends[0])))) == pytest.approx(least, rel=1e-6)
    assert float(ends[1]) == pytest.approx(sde.latest(), rel=1e-6)


@pytest.mark.parametrize("sde", [DDPM(linear_betas(5)), NCSN([0.1, 1.0, 10.0])], ids=str)
def test_every_level_is_drawn_alike(sde):
    n = len(sde.levels)
    u = (torch.arange(4 * n, dtype=torch.float64) + 0.5) / (4 * n)
    assert torch.equal(draw_discrete(sde, u), sde.levels.repeat_interleave(4))


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), SubVPSDE()], ids=str)
def test_likelihood_times_have_density_g2_over_sigma2(sde):
    """The distribution function of t against the integral of g^2/sigma^2 by the trapezoidal
    rule.
    """
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)
    t = draw_times(sde, u, DENSITIES["uniform"], 1e-3)
    assert float(t.max()) <= 1.0
    density = (sde.g(t) / sde.sigma(t)) ** 2
    mass = (0.5 * (density[1:] + density[:-1]) * t.diff().abs()).cumsum(0)
    torch.testing.assert_close(
        mass / mass[-1], u[1:], rtol=0, atol=5e-5 if sde == VPSDE() else 5e-4
    )


class Seen:
    """Any function as a network that notes what it was given."""

    def __call__(self, x, t):
        self.x = x
        self.t = t
        self.out = torch.sin(x) * t[:, None]
        return self.out


def test_discrete_loss_of_ddpm():
    """|eps - eps_hat(x_i, i)|^2 with x_i from abar_i, i uniform on 1 ... N: each of ten within 5.5
    standard errors.
    """
    net = Seen()
    betas = linear_betas(10, 0.01, 0.5)
    x0 = normal(0, torch.arange(20_000), (2,), dtype=torch.float64)
    loss = dsm_loss(ScoreModel(net, DDPM(betas)), x0, discrete=True, seed=1)
    i = (10 * net.t).round()
    torch.testing.assert_close(i, 10 * net.t)
    count = torch.bincount(i.long(), minlength=11)
    assert count[0] == 0
    assert ((count[1:] - 2000).abs() < 5.5 * math.sqrt(1800)).all()
    kept = (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)[i.long() - 1, None]
    eps = (net.x - kept.sqrt() * x0) / (1 - kept).sqrt()
    torch.testing.assert_close(loss, (eps - net.out).square().mean(1))
    assert abs(eps.square().mean() - 1) < 5.5 * math.sqrt(2 / 40_000)


def test_discrete_loss_of_ncsn():
    """Twice the mean over the levels of sigma^2 / 2 |(x_t - x_0) / sigma^2 + s|^2, averaged over
    the coordinates.
    """
    net = Seen()
    sigmas = [1.0, 0.5, 0.1, 0.05]
    x0 = normal(0, torch.arange(1000), (2,), dtype=torch.float64)
    loss = dsm_loss(ScoreModel(net, NCSN(sigmas), "score"), x0, discrete=True, seed=1)
    sigma = NCSN(sigmas).sigma(net.t)[:, None]
    assert sorted(set(sigma.flatten().tolist()), reverse=True) == pytest.approx(sigmas)
    published = sigma.square() / 2 * ((net.x - x0) / sigma.square() + net.out).square()
    torch.testing.assert_close(loss, 2 * published.mean(1))


def test_discrete_levels_are_asked_of_the_diffusion():
    u = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw_discrete(NCSN([1.0, 0.1]), u).tolist() == [0.0, 0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="no discrete noise levels"):
        dsm_loss(model("vp"), torch.zeros(2, 2), discrete=True)
    for given in ({"weighting": "likelihood"}, {"density": "time"}, {"density": LogNormal()}):
        with pytest.raises(ValueError, match="discrete levels are all equally likely"):
            dsm_loss(model("ddpm"), torch.zeros(2, 2), discrete=True, **given)
        with pytest.raises(ValueError, match="discrete levels are all equally likely"):
            Recipe(discrete=True, **given)


def test_loss_is_per_sample():
    x0 = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    whole = dsm_loss(model(), x0, seed=3)
    assert whole.shape == (6,)
    torch.testing.assert_close(dsm_loss(model(), x0[4:], seed=3, first=4), whole[4:])
    assert whole.requires_grad


def test_loss_refuses():
    with pytest.raises(TypeError, match="x0 must be floating"):
        dsm_loss(model(), torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="must be one of 'plain', 'likelihood', 'edm'"):
        dsm_loss(model(), torch.zeros(2, 2), weighting="snr")
