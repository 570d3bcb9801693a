"""Loss, training, checkpoints."""

import itertools
import json
import math

import pytest
import torch
from torch import nn

from sdekit import ShARK, normal
from sdekit_diffusion import (
    DDPM,
    NCSN,
    VESDE,
    VPSDE,
    CheckpointError,
    GaussianMixture,
    OnClock,
    Recipe,
    ScoreModel,
    SubVPSDE,
    dsm_loss,
    fit,
    linear_betas,
    load,
    nets,
    sample,
    save,
    training,
)
from sdekit_diffusion._loss import draw_levels, draw_times

TINY = Recipe(steps=20, batch_size=8, warmup=3)


def model(sde="vp", **settings):
    torch.manual_seed(0)
    return ScoreModel(nets.MLP(shape=(2,), width=16, depth=1), sde, shape=(2,), **settings)


@pytest.mark.parametrize("weighting", ["plain", "likelihood"])
def test_loss_of_the_exact_denoiser_is_the_conditional_variance(weighting):
    """E |eps_hat - eps|^2 for the exact score of N(0, s^2): s^2 alpha^2 / (s^2 alpha^2 + sigma^2), averaged over the times.

    Within 5.5 standard errors of 40,000 samples.
    """
    s, sde = 0.5, VPSDE()
    gauss = GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), torch.tensor([s**2], dtype=torch.float64))
    exact = ScoreModel(lambda x, t: gauss.score(t, x, sde), sde, "score")
    x0 = gauss.sample(40_000, seed=1)
    losses = dsm_loss(exact, x0, weighting=weighting, seed=2)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t = draw_times(sde, u, weighting, 1e-3)
    signal = (s * sde.alpha(t)) ** 2
    expected = (signal / (signal + sde.sigma(t) ** 2)).mean()
    assert abs(losses.mean() - expected) < 5.5 * losses.std() / math.sqrt(len(losses))
    worse = ScoreModel(lambda x, t: 0.9 * gauss.score(t, x, sde), sde, "score")
    excess = dsm_loss(worse, x0, weighting=weighting, seed=2) - losses
    assert excess.mean() > 5.5 * excess.std() / math.sqrt(len(excess))


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), SubVPSDE()], ids=str)
def test_likelihood_times_have_density_g2_over_sigma2(sde):
    """The distribution function of t against the integral of g^2/sigma^2 by the trapezoidal rule."""
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)
    t = draw_times(sde, u, "likelihood", 1e-3)
    assert float(t.max()) <= 1.0
    density = (sde.g(t) / sde.sigma(t)) ** 2
    mass = (0.5 * (density[1:] + density[:-1]) * t.diff().abs()).cumsum(0)
    torch.testing.assert_close(mass / mass[-1], u[1:], rtol=0, atol=5e-5 if sde == VPSDE() else 5e-4)


class Seen:
    """Any function as a network that notes what it was given."""

    def __call__(self, x, t):
        self.x, self.t = x, t
        self.out = torch.sin(x) * t[:, None]
        return self.out


def test_discrete_loss_of_ddpm():
    """|eps - eps_hat(x_i, i)|^2 with x_i from abar_i, i uniform on 1 ... N: each of ten within 5.5 standard errors."""
    net, betas, x0 = Seen(), linear_betas(10, 0.01, 0.5), normal(0, torch.arange(20_000), (2,), dtype=torch.float64)
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
    """Twice the mean over the levels of sigma^2 / 2 |(x_t - x_0) / sigma^2 + s|^2, averaged over the coordinates."""
    net, sigmas, x0 = Seen(), [1.0, 0.5, 0.1, 0.05], normal(0, torch.arange(1000), (2,), dtype=torch.float64)
    loss = dsm_loss(ScoreModel(net, NCSN(sigmas), "score"), x0, discrete=True, seed=1)
    sigma = NCSN(sigmas).sigma(net.t)[:, None]
    assert sorted(set(sigma.flatten().tolist()), reverse=True) == pytest.approx(sigmas)
    published = sigma.square() / 2 * ((net.x - x0) / sigma.square() + net.out).square()
    torch.testing.assert_close(loss, 2 * published.mean(1))


def test_discrete_levels_are_asked_of_the_diffusion():
    u = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw_levels(NCSN([1.0, 0.1]), u, "plain").tolist() == [0.0, 0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="no discrete noise levels"):
        dsm_loss(model("vp"), torch.zeros(2, 2), discrete=True)
    with pytest.raises(ValueError, match="drawn uniformly, for weighting = 'plain'"):
        dsm_loss(model("ddpm"), torch.zeros(2, 2), discrete=True, weighting="likelihood")
    with pytest.raises(ValueError, match="trained with weighting = 'plain'"):
        Recipe(discrete=True, weighting="likelihood")


@pytest.mark.parametrize("sde", ["ddpm", "ncsn"])
def test_training_on_discrete_levels(sde):
    """What the network saw: levels and nothing between them; and a loss that differs from that of continuous time."""
    data, trained = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), model(sde)
    times = []
    trained.net.register_forward_pre_hook(lambda module, given: times.append(given[1]))
    losses = [float(r.loss) for r in training(trained, data, Recipe(steps=20, batch_size=8, warmup=3, discrete=True))]
    levels = trained.sde.levels.float()
    assert torch.isin(torch.cat(times), levels).all()
    assert losses != [float(r.loss) for r in training(model(sde), data, TINY)]


def test_a_network_trained_on_ddpms_steps_samples_by_every_kind_of_method():
    """Weights, and samples near the modes, from a network that has seen a hundred times and nothing between them.

    Two of the methods ask in between. A weight's standard error is 0.0145; 0.05 is left to the training.
    """
    mixture = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.0]], torch.tensor([0.01, 0.01]))
    torch.manual_seed(0)
    chain = DDPM(linear_betas(100, 1e-3, 0.2))
    net = ScoreModel(nets.MLP(shape=(2,), width=64, depth=2), chain, shape=(2,))
    fit(net, mixture.sample(2000, seed=1), Recipe(steps=800, lr=3e-3, discrete=True), progress=False)
    for method in ("ddpm", "dpmpp_2m", OnClock(ShARK(), eta=1.0), "ode"):
        x = sample(net, 1000, method=method, steps=None if method == "ode" else 50, end=0.04, seed=1)
        assert (mixture.log_prob(x) > -4).float().mean() > 0.95
        assert abs(float((x[:, 0] < 0).float().mean()) - 0.3) < 0.05 + 5.5 * 0.0145


def test_loss_is_per_sample():
    x0 = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    whole = dsm_loss(model(), x0, seed=3)
    assert whole.shape == (6,)
    torch.testing.assert_close(dsm_loss(model(), x0[4:], seed=3, first=4), whole[4:])
    assert whole.requires_grad


def test_loss_refuses():
    with pytest.raises(TypeError, match="x0 must be floating"):
        dsm_loss(model(), torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="'plain' or 'likelihood'"):
        dsm_loss(model(), torch.zeros(2, 2), weighting="snr")


def test_training_learns_a_mixture():
    """From a loss near 1 to that of the exact denoiser within 10 %, and samples near the modes."""
    mixture = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], torch.tensor([0.01, 0.01]))
    torch.manual_seed(0)
    net = ScoreModel(nets.MLP(shape=(2,), width=64, depth=2), "vp", "velocity", shape=(2,), conditioning="log_snr")
    records = fit(net, mixture.sample(2000, seed=1), Recipe(steps=800, lr=3e-3), progress=False)
    assert len(records) == 800
    test = mixture.sample(4000, seed=2)
    vp = VPSDE()
    exact = ScoreModel(lambda x, t: mixture.score(t, x, vp), vp, "score")
    with torch.no_grad():
        ours, best = (float(dsm_loss(m, test, seed=3).mean()) for m in (net, exact))
    assert ours < 1.1 * best
    x = sample(net, 500, seed=1, steps=50)
    assert (mixture.log_prob(x) > -4).float().mean() > 0.95
    assert abs(float((x[:, 0] > 0).float().mean()) - 0.5) < 0.15


def test_training_is_deterministic_and_stops_where_it_should():
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    first, second = model(), model()
    a = [float(r.loss) for r in training(first, data, TINY)]
    assert a == [float(r.loss) for r in training(second, data, TINY)]
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    other = [float(r.loss) for r in training(model(), data, Recipe(steps=20, batch_size=8, warmup=3, seed=1))]
    assert a != other
    assert not first.training


def test_the_average_is_what_remains():
    """The recursion replayed: the first update copies the weights, the n-th moves the average by 1 - min(ema, n / (9 + n))."""
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))

    def flat(net):
        return torch.cat([v.detach().flatten() for v in net.parameters()])

    trained, averaged, path = model(), model(), []
    for record in training(trained, data, Recipe(steps=5, ema=0.0)):
        assert record.step == len(path) + 1
        path.append(flat(trained).clone())
    list(training(averaged, data, Recipe(steps=5, ema=0.15)))
    mean = path[0]
    for n, weights in enumerate(path[1:], 1):
        mean = torch.lerp(mean, weights, 1 - min(0.15, (1 + n) / (10 + n)))
    torch.testing.assert_close(flat(averaged), mean)


@pytest.mark.parametrize("weighting", ["plain", "likelihood"])
def test_training_under_every_diffusion(weighting):
    data = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for sde in (VESDE(), VESDE(exact=False), VPSDE(), SubVPSDE()):
        recipe = Recipe(steps=3, batch_size=16, weighting=weighting)
        assert all(math.isfinite(r.loss) for r in training(model(sde), data, recipe))
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        dsm_loss(model(), data, end=1e6)


def test_a_diffusion_of_your_own_needs_a_name_to_be_saved(tmp_path):
    class Mine(VPSDE):
        pass

    own = model(Mine())
    with pytest.raises(TypeError, match=r"DIFFUSIONS\['mine'\] = Mine"):
        save(own, tmp_path)


def test_learning_rate():
    recipe = Recipe(steps=100, warmup=10)
    rates = [recipe.rate(i) for i in range(101)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == 1.0
    assert rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_dequantisation_is_drawn_anew_each_time():
    seen = []

    def transform(rows, u):
        seen.append(u)
        return (rows + u).float()

    list(training(model(), torch.zeros(4, 2, dtype=torch.int64), TINY, transform=transform))
    noise = torch.cat(seen)
    assert noise.unique().numel() == noise.numel()
    assert 0 <= noise.min() < noise.max() < 1


def test_training_refuses():
    data = torch.zeros(4, 2)
    with pytest.raises(TypeError, match="need transform="):
        list(training(model(), data.long(), TINY))
    with pytest.raises(ValueError, match="no data"):
        list(training(model(), data[:0], TINY))
    with pytest.raises(ArithmeticError, match=r"the loss is nan at update"):
        list(training(model(), data * math.nan, TINY))
    with pytest.raises(ValueError, match="do not fit"):
        list(training(model(), torch.zeros(4, 3), TINY))
    with pytest.raises(TypeError, match="no weights to train"):
        list(training(ScoreModel(lambda x, t: x, "vp"), data, TINY))
    for bad in ({"end": 0.0}, {"weighting": "snr"}):
        with pytest.raises(ValueError, match="end positive"):
            Recipe(**bad)
    for bad in ({"steps": 0}, {"lr": -1.0}, {"ema": 1.0}, {"clip": 0.0}):
        with pytest.raises(ValueError, match=r"must be positive|start at 1"):
            Recipe(**bad)


# Checkpoints


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip(tmp_path, dtype):
    a = model(SubVPSDE(0.2, 10.0), predicts="velocity", conditioning="log_snr", data_std=0.7).to(dtype)
    save(a, tmp_path / "run", {"data": "toy"})
    b = load(tmp_path / "run")
    assert (b.sde, b.predicts, b.conditioning, b.shape, b.data_std) == (a.sde, "velocity", "log_snr", (2,), 0.7)
    assert b.place()[0] == dtype
    assert torch.equal(sample(a, 3, seed=1, steps=3), sample(b, 3, seed=1, steps=3))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "weights.safetensors"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["notes"] == {"data": "toy"}


def test_unet_and_own_networks(tmp_path):
    unet = ScoreModel(nets.UNet(channels=1, width=8, multipliers=(1, 2)), VESDE(exact=False), shape=(1, 8, 8))
    save(unet, tmp_path / "unet")
    again = load(tmp_path / "unet")
    assert again.sde == VESDE(exact=False)
    x = torch.zeros(2, 1, 8, 8)
    assert torch.equal(again.denoise(0.5, x), unet.eval().denoise(0.5, x))
    own = ScoreModel(nn.Bilinear(2, 1, 2), "vp", shape=(2,))
    save(own, tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"pass it as load\(..., net=...\)"):
        load(tmp_path / "own")
    filled = load(tmp_path / "own", net=nn.Bilinear(2, 1, 2))
    assert torch.equal(filled.net.weight, own.net.weight)
    with pytest.raises(TypeError, match="plain function"):
        save(ScoreModel(lambda x, t: x, "vp"), tmp_path / "function")


@pytest.mark.parametrize(
    "net", [nets.NCSNv2(1, 4, (1, 2), (1, 2)), nets.NCSN(1, 4, (1, 2), (1, 1), levels=3)], ids=["v2", "v1"]
)
def test_refinenets_labels_and_ranges(tmp_path, net):
    a = ScoreModel(net, NCSN([10.0, 1.0, 0.1]), "noise", shape=(1, 8, 8), conditioning=(2, 3), data_range=(-1, 1)).eval()
    save(a, tmp_path / "run")
    b = load(tmp_path / "run")
    assert (b.sde, b.conditioning, b.data_range, b.net.config) == (a.sde, (2.0, 3.0), (-1.0, 1.0), net.config)
    assert torch.equal(sample(a, 2, seed=1, steps=3), sample(b, 2, seed=1, steps=3))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["data_range"]  # as before there was one
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert load(tmp_path / "run").data_range is None


def damage(path, what):
    if what == "missing":
        path.unlink()
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "garbage":
        path.write_bytes(b"\x80\x04garbage" * 20)
    elif what == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize("file", ["config.json", "weights.safetensors"])
@pytest.mark.parametrize("what", ["missing", "truncated", "garbage", "empty"])
def test_damaged_checkpoints_say_so(tmp_path, file, what):
    save(model(), tmp_path)
    damage(tmp_path / file, what)
    with pytest.raises(CheckpointError, match=file):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"sde": {"name": "ddim"}},
        {"sde": {"name": "ddpm", "betas": [0.1, 2.0]}},
        {"sde": {"name": "vp", "gamma": 1}},
        {"net": {"class": "MLP", "config": {"wdth": 3}}},
        {"net": {"class": "os.system", "config": {}}},
        {"dtype": "int8"},
        {"predicts": "nothing"},
        {"shape": 3},
    ],
)
def test_foreign_configs_say_so(tmp_path, change):
    save(model(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_weights_of_another_network(tmp_path):
    save(model(), tmp_path / "a")
    torch.manual_seed(0)
    save(ScoreModel(nets.MLP(shape=(2,), width=24, depth=1), "vp", shape=(2,)), tmp_path / "b")
    (tmp_path / "a" / "weights.safetensors").write_bytes((tmp_path / "b" / "weights.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="weights of another network"):
        load(tmp_path / "a")


def test_pickles_are_never_loaded(tmp_path):
    save(model(), tmp_path)
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="safetensors"):
        load(tmp_path)
