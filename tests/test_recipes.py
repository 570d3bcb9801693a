"""Weights and densities of noise levels: their formulas, what they train, what a run records."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats

from sdekit_diffusion import (
    DENSITIES,
    EDMSDE,
    WEIGHTS,
    AbstractLogSNRDensity,
    AbstractWeight,
    GaussianMixture,
    Log,
    Logistic,
    LogNormal,
    MinSNR,
    Recipe,
    ScoreModel,
    Sigmoid,
    SubVPSDE,
    Training,
    dsm_loss,
    fit,
    load,
    nets,
    sample,
)
from sdekit_diffusion._models.checkpoint import checksum
from sdekit_diffusion._training.densities import draw_times
from sdekit_diffusion._training.loss import _stratified
from sdekit_diffusion._training.recipe_loss import RecipeLoss

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
S = 0.5


@dataclass(frozen=True)
class Power(AbstractWeight):
    """A weight of a user."""

    exponent: float

    def weight(self, l):
        return (self.exponent * l).exp()


@dataclass(frozen=True)
class Cauchy(AbstractLogSNRDensity):
    """A density of a user."""

    centre: float = 0.5

    def cdf(self, l):
        return 0.5 + torch.atan(l - self.centre) / math.pi

    def quantile(self, p):
        return torch.tan(math.pi * (p - 0.5)) + self.centre


# Of |x_0 hat - x_0|^2 / s^2, with SNR = alpha^2 s^2 / sigma^2; EDM's as published, of |D - x_0|^2.
PUBLISHED = {
    "plain": lambda snr: snr,
    "likelihood": lambda snr: snr,
    "edm": lambda snr: S**2 * (S**2 / snr + S**2) / (S**2 / snr * S**2),
    "velocity": lambda snr: 1 + snr,  # z_hat - z = -b (v_hat - v), 1 / b^2 = 1 + snr
    "min_snr": lambda snr: snr.clamp(max=5),
    "balanced": lambda snr: snr.sqrt(),
    "data": lambda snr: torch.ones_like(snr),
    "sigmoid": lambda snr: snr / (1 + snr * math.exp(-2)),
}


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_weights_are_as_published(weighting):
    """From the error of x_0 of any network, under EDM's diffusion, where alpha = 1."""
    seen = []

    def net(x, sigma):
        seen.append((sigma, torch.sin(3 * x)))
        return seen[-1][1]

    data = S * X
    model = ScoreModel(net, EDMSDE(), "data", conditioning="sigma", data_std=S)
    found = dsm_loss(model, data, weighting=weighting, seed=1)
    sigma, out = seen[0]
    error = (out - data).square().mean(dim=1) / S**2
    torch.testing.assert_close(found, PUBLISHED[weighting]((S / sigma) ** 2) * error)


def test_parameters_of_weights():
    l = torch.linspace(-4, 6, 11, dtype=torch.float64)
    torch.testing.assert_close(MinSNR(2.0).weight(l), (2 / (2 * l).exp()).clamp(max=1))
    torch.testing.assert_close(Sigmoid(-1.0).weight(l), 1 / (1 + (2 * l + 1).exp()))
    for wrong in (lambda: MinSNR(0.0), lambda: MinSNR(math.inf), lambda: Sigmoid(math.nan)):
        with pytest.raises(ValueError, match="must be a"):
            wrong()


SPAN = (-2.0, 5.0)


@dataclass(frozen=True)
class Truncated:
    """A law restricted to SPAN."""

    law: object

    def ppf(self, u):
        low, high = self.law.cdf(SPAN)
        return self.law.ppf(low + (high - low) * u)


LAWS = {
    "uniform": stats.uniform(SPAN[0], SPAN[1] - SPAN[0]),
    "log_normal": stats.truncnorm(
        *((end - 1.2 - math.log(0.5)) / 1.2 for end in SPAN), loc=1.2 + math.log(0.5), scale=1.2
    ),
    "logistic": Truncated(stats.logistic(loc=1.2 + math.log(0.5))),
    Logistic(0.3, 2.0): Truncated(stats.logistic(loc=-0.3, scale=2)),
    LogNormal(0.3, 2.0): stats.truncnorm(*((end + 0.3) / 2 for end in SPAN), loc=-0.3, scale=2),
}


@pytest.mark.parametrize("name", LAWS, ids=str)
def test_densities_are_as_published(name):
    """l = log(alpha s / sigma) at the quantiles u of a diffusion's times, for data of s = 0.5;
    EDM's P_mean and P_std are of data of this standard deviation.
    """
    sde = EDMSDE()
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    density = DENSITIES.get(name, name)
    span = tuple(end - math.log(S) for end in SPAN)
    l = sde.log_snr(density.times(sde, u, span, S)) + math.log(S)
    torch.testing.assert_close(l, torch.as_tensor(LAWS[name].ppf(u)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("mean", [-25.0, -12.0, 12.0, 25.0])
@pytest.mark.parametrize("kind", [LogNormal, Logistic])
def test_densities_far_from_the_levels(kind, mean):
    """What is trained is their tail, at the nearer end: with the exact ratio of the densities of
    neighbouring quantiles, within SPAN.
    """
    density = kind(mean, 1.0)
    law = (stats.norm if kind is LogNormal else stats.logistic)(loc=-mean)
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    l = EDMSDE().log_snr(density.times(EDMSDE(), u, SPAN, 1.0)).numpy()
    logs = law.logsf(l) if mean > 0 else law.logcdf(l)
    tail = np.exp(logs - logs.max())
    expected = tail[0] + (tail[-1] - tail[0]) * u.numpy()
    np.testing.assert_allclose(tail, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(l[[0, -1]], SPAN, atol=1e-3)


def test_a_density_without_the_levels():
    u = torch.linspace(0, 1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"no noise levels .* from -5 to 2; choose one that has"):
        LogNormal(60.0, 1.0).times(EDMSDE(), u, SPAN, 1.0)


def test_edm_trains_sigmas_of_p_mean_and_p_std():
    """For images of standard deviation 0.5: log sigma ~ N(-1.2, 1.2^2). Within 5.5 standard
    errors.
    """
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = EDMSDE().sigma(draw_times(EDMSDE(), u, DENSITIES["log_normal"], 1e-4, S))
    assert abs(sigma.log().mean() + 1.2) < 5.5 * 1.2 / math.sqrt(20_000)
    assert abs(sigma.log().std() - 1.2) < 5.5 * 1.2 / math.sqrt(40_000)


def test_the_time_of_flow_matching_is_logit_normal():
    u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    edm = EDMSDE()
    t = edm.sigma(draw_times(edm, u, LogNormal(0.0, 1.0), 1e-4))
    t = t / (1 + t)
    expected = -torch.special.ndtri(u)
    torch.testing.assert_close(torch.logit(t), expected, rtol=0, atol=1e-4)  # of the ends


def test_parameters_of_densities():
    for wrong in ({"mean": math.nan}, {"std": 0.0}, {"std": math.inf}):
        with pytest.raises(ValueError, match="mean must be finite and std positive"):
            LogNormal(**wrong)
    for wrong in ({"mean": math.inf}, {"scale": 0.0}, {"scale": math.nan}):
        with pytest.raises(ValueError, match="mean must be finite and scale positive"):
            Logistic(**wrong)


# The loss


def errors_of_a_wrong_gaussian(l, factor=0.9):
    """E |eps_hat - eps|^2 for `factor` times the exact mean of eps given u, of data N(0, s^2)."""
    a2 = 1 / (1 + np.exp(-2 * l))
    b2 = 1 - a2
    gain = factor / (S**2 * a2 + b2)
    return gain**2 * b2 * (S**2 * a2 + b2) - 2 * gain * b2 + 1


CASES = [
    *((name, None) for name in WEIGHTS),
    ("edm", "time"),
    ("min_snr", "uniform"),
    ("plain", "log_normal"),
    (Power(-0.3), Cauchy()),
]


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("weighting", "density"), CASES, ids=str)
def test_the_loss_is_the_integral_over_the_levels(weighting, density, stratified):
    """Of a fixed network, against the trapezoidal rule on the formulas of weight and density.
    Within 5.5 standard errors of 40,000 samples, which are below 3 %.
    """
    # A constant error of the noise is, at much noise, one of the velocity that grows without bound.
    sde = SubVPSDE(beta_max=6.0) if weighting == "velocity" else SubVPSDE()
    gauss = GaussianMixture(
        [1.0], torch.zeros(1, 2, dtype=torch.float64), torch.tensor([S**2], dtype=torch.float64)
    )
    model = ScoreModel(
        lambda u, l: 0.9 * gauss.predict_noise(l, u), sde, conditioning="log_snr", data_std=S
    )
    x0 = gauss.sample(40_000, seed=1)
    losses = dsm_loss(
        model,
        x0,
        weighting=weighting,
        density=density,
        stratified=stratified,
        end=0.05,
        seed=2,
    )
    low = float(sde.log_snr(1.0))
    high = -math.log(0.05 * S)
    weight = WEIGHTS.get(weighting, weighting)
    density = weight.density if density is None else density
    l = np.linspace(low, high, 20_001)
    shifted = l + math.log(S)
    p = {
        "uniform": lambda: np.ones_like(l),
        "log_normal": lambda: stats.norm.pdf(shifted, 1.2 + math.log(0.5), 1.2),
        "time": lambda: np.abs(np.gradient(sde.time(torch.as_tensor(l)).numpy(), l)),
        "logistic": lambda: stats.logistic.pdf(shifted, 1.2 + math.log(0.5)),
        Cauchy(): lambda: stats.cauchy.pdf(shifted, 0.5),
    }[density]()
    w = weight.weight(torch.as_tensor(shifted)).numpy()
    expected = np.trapezoid(w * p * errors_of_a_wrong_gaussian(l), l) / np.trapezoid(p, l)
    standard_error = float(losses.std()) / 200
    assert standard_error < 0.03 * expected
    assert abs(float(losses.mean()) - expected) < 5.5 * standard_error


def test_stratified_levels_are_uniform_and_spread():
    """Each quantile is a function of (seed, number), uniform over seeds; successive ones leave no
    gap above 2 / n; uneven by less than independent ones by a factor that grows like sqrt(n).
    """
    whole = _stratified(3, torch.arange(1000))
    assert torch.equal(_stratified(3, torch.arange(700, 720)), whole[700:720])
    assert torch.equal(_stratified(3, torch.tensor([719, 2])), whole[[719, 2]])
    phi = (1 + math.sqrt(5)) / 2
    expected = (whole[0] + torch.arange(1000, dtype=torch.float64) / phi) % 1
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-12)
    for first, n in ((0, 7), (123, 128), (10**12, 500)):
        u = _stratified(3, torch.arange(first, first + n)).sort().values
        assert u[0] >= 0
        assert u[-1] < 1
        gaps = torch.cat([u[:1] + 1 - u[-1:], u.diff()])
        assert gaps.max() < 2 / n
    of_seeds = torch.cat([_stratified(seed, torch.tensor([5])) for seed in range(400)])
    # False once in a million.
    assert stats.kstest(of_seeds.numpy(), "uniform").pvalue > 1e-6


def test_stratified_losses_do_not_depend_on_the_batch():
    model = ScoreModel(lambda x, t: torch.sin(x), "vp", data_std=1.0)
    whole, other = (
        dsm_loss(model, X, weighting="edm", stratified=stratified, seed=3)
        for stratified in (True, False)
    )
    part = dsm_loss(model, X[20:33], weighting="edm", stratified=True, seed=3, first=20)
    assert torch.equal(part, whole[20:33])
    assert not torch.isclose(whole, other).any()


# Recipes

RECIPES = [
    Recipe(steps=12, batch_size=10, warmup=3, weighting="min_snr", stratified=True),
    Recipe(steps=12, batch_size=10, warmup=3, weighting="edm", accumulate=3),
    Recipe(steps=12, batch_size=10, warmup=3, weighting=Power(-0.3), density=Cauchy()),
    Recipe(steps=12, batch_size=10, warmup=3, density=LogNormal(0.0, 1.0)),
]


def network(predicts="velocity", **settings):
    torch.manual_seed(0)
    net = nets.MLP(shape=(2,), width=16, depth=1)
    return ScoreModel(net, "vp", predicts, shape=(2,), conditioning="log_snr", **settings)


class Stop(BaseException):
    """What ends a run too soon."""


def stop_at(step):
    def callback(record):
        if record.step == step:
            raise Stop

    return callback


@pytest.mark.parametrize("predicts", ["velocity", "data"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: str(recipe.weighting))
def test_a_run_goes_on_bit_for_bit(recipe, predicts, tmp_path):
    data = X.float()
    whole = network(predicts)
    losses = [record.loss for record in Training(whole, data, recipe)]
    options = {"folder": tmp_path, "log": Log(save_every=5), "progress": False}
    with pytest.raises(Stop):
        fit(network(predicts), data, recipe, callback=stop_at(7), **options)
    resumed = network(predicts)
    records = fit(resumed, data, recipe, resume=True, **options)
    assert [record.step for record in records] == list(range(6, 13))
    assert torch.equal(torch.stack([r.loss for r in records]), torch.stack(losses[-len(records) :]))
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    other = replace(recipe, weighting=MinSNR(gamma=3), density=None)
    with pytest.raises(ValueError, match=r"was begun with weighting = .*, not .*'gamma': 3"):
        fit(network(predicts), data, other, resume=True, **options)


def test_each_prediction_has_its_weight():
    """Where none is given, and also in the validation loss; what is given stays."""
    for predicts, expected in (("data", "balanced"), ("velocity", "velocity"), ("noise", "plain")):
        model = network(predicts, data_std=1.0)
        losses = RecipeLoss(model, Recipe(seed=4), None)(X.float(), {}, 0)
        torch.testing.assert_close(losses, dsm_loss(model, X.float(), weighting=expected, seed=4))
        losses = RecipeLoss(model, Recipe(seed=4, density="log_normal"), None)(X.float(), {}, 0)
        expected_losses = dsm_loss(
            model, X.float(), weighting=expected, density="log_normal", seed=4
        )
        torch.testing.assert_close(losses, expected_losses)
    assert Recipe(weighting="edm").suited("data").weighting == "edm"
    densities = [Recipe().suited(predicts).density for predicts in ("velocity", "data", "noise")]
    assert densities == ["logistic", "uniform", "time"]
    discrete = Recipe(discrete=True)
    assert discrete.suited("velocity").weighting == discrete.suited("noise").weighting == "plain"
    assert discrete.suited("data").weighting == "balanced"


def weight_of_power(power):
    """A class of the same name each time."""

    @dataclass(frozen=True)
    class Own(AbstractWeight):
        def weight(self, l):
            return (power * l).exp()

    return Own()


def test_a_weight_of_ones_own_is_known_by_its_values(tmp_path):
    """Its name and fields may be the same. Runs of earlier versions, which recorded no more, go
    on.
    """
    recipe = Recipe(steps=2, batch_size=10, weighting=weight_of_power(-0.3), density=Cauchy())
    options = {"folder": tmp_path, "progress": False}
    fit(network("noise"), X.float(), recipe, **options)
    fit(network("noise"), X.float(), recipe, resume=True, **options)
    other = replace(recipe, weighting=weight_of_power(-0.4))
    with pytest.raises(ValueError, match=r"begun with weighting = .*, not .*'4\.95303', '1'"):
        fit(network("noise"), X.float(), other, resume=True, **options)

    def change(old):
        for name in ("weighting", "density"):
            assert len(old[name].pop("at l = -4, 0, 4")) == 3

    rewritten(tmp_path, change)
    fit(network("noise"), X.float(), other, resume=True, **options)


def rewritten(folder, change):
    """Changes the recipe that a checkpoint records."""
    path = max((folder / "checkpoints").iterdir()) / "config.json"
    config = json.loads(path.read_text())
    change(config["notes"]["recipe"])
    config["sha256"] = checksum(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("weighting", ["plain", "likelihood"])
def test_runs_of_earlier_versions_go_on(weighting, tmp_path):
    """Their recipes have a weighting, and no density; they continue with the weighting that they
    had, also where it was the default.
    """
    data = X.float()
    recipe = Recipe(steps=12, batch_size=10, warmup=3, weighting=weighting)
    for predicts in ("noise", "velocity", "data"):
        folder = tmp_path / predicts
        options = {"folder": folder, "log": Log(save_every=5), "progress": False}
        with pytest.raises(Stop):
            fit(network(predicts), data, recipe, callback=stop_at(7), **options)

        def change(old):
            assert old.pop("density") == {"plain": "time", "likelihood": "uniform"}[weighting]
            assert old.pop("stratified") is False
            assert old.pop("huber") == 0.0

        rewritten(folder, change)
        default = replace(recipe, weighting=None)
        resumed = recipe
        if (weighting, predicts) == ("plain", "noise"):
            resumed = default
        else:
            with pytest.raises(ValueError, match=f"begun with weighting = {weighting}, not "):
                fit(network(predicts), data, default, resume=True, **options)
        assert fit(network(predicts), data, resumed, resume=True, **options)[0].step == 6


def test_recipes_refuse():
    for wrong in ({"weighting": "snr"}, {"weighting": "min-snr"}, {"density": "lognormal"}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"{name} = '{value}' must be one of"):
            Recipe(**wrong)
    for wrong in ({"weighting": 3}, {"density": LogNormal}, {"weighting": LogNormal()}):
        with pytest.raises(TypeError, match="must be a name or an Abstract"):
            Recipe(**wrong)
    for density in ("time", "log_normal", LogNormal()):
        with pytest.raises(ValueError, match="bounds the likelihood with density = 'uniform' only"):
            Recipe(weighting="likelihood", density=density)
        with pytest.raises(ValueError, match="bounds the likelihood with density = 'uniform' only"):
            Recipe(weighting=WEIGHTS["likelihood"], density=density)
    for density in ("uniform", DENSITIES["uniform"]):
        Recipe(weighting="likelihood", density=density)
        Recipe(weighting=WEIGHTS["likelihood"], density=density)


# Standardised conditioning


@pytest.mark.parametrize("std", [0.2, 0.5, 3.0])
def test_standardised_velocity_is_edms_preconditioning(std):
    """D = c_skip x + c_out F(c_in x, .) of Karras et al. 2022, table 1, with F = -net."""
    net = lambda x, l: torch.cos(2 * x) * (1 + 0.1 * l[:, None])  # noqa: E731
    model = ScoreModel(net, EDMSDE(), "velocity", conditioning="standardised", data_std=std)
    sigma = torch.logspace(-2, 1.8, 60, dtype=torch.float64)
    x = X * (std**2 + sigma[:, None] ** 2).sqrt()
    total = (sigma**2 + std**2)[:, None]
    c_skip = std**2 / total
    c_out = sigma[:, None] * std / total.sqrt()
    label = -(sigma / std).log()
    expected = c_skip * x - c_out * net(x / total.sqrt(), label)
    found = model.denoise(EDMSDE().time(-sigma.log()), x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predicts", ["noise", "data", "score", "velocity", "flow"])
def test_standardised_predictions_are_of_standardised_data(predicts):
    """The exact network of N(0, 1) is that of N(0, s^2)."""
    exact = GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), [1.0])

    def net(u, l):
        data, noise = exact.predict_data(l, u), exact.predict_noise(l, u)
        a, b = (torch.sigmoid(sign * 2 * l).sqrt()[:, None] for sign in (1, -1))
        return {
            "noise": noise,
            "data": data,
            "score": -noise / b,
            "velocity": a * noise - b * data,
            "flow": noise - data,
        }[predicts]

    l = torch.linspace(-4, 6, 60, dtype=torch.float64)
    keys = set()
    for std in (S, 3.0):  # one after the other: nothing is kept of the first
        law = GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), [std**2])
        model = ScoreModel(
            net, "vp", predicts, shape=(2,), conditioning="standardised", data_std=std
        )
        keys.add(model.network_call().key)
        torch.testing.assert_close(model.predict_data(l, X), law.predict_data(l, X))
        torch.testing.assert_close(model.predict_noise(l, X), law.predict_noise(l, X))
        x, y = (sample(m, 5, sde="vp", steps=6, seed=0, dtype=torch.float64) for m in (model, law))
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)
    assert len(keys) == 2


def test_a_standardised_model_is_saved_with_its_scale(tmp_path):
    torch.manual_seed(0)
    net = nets.MLP(shape=(2,), width=16, depth=1)
    torch.nn.init.normal_(net.last.weight)
    model = ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="standardised")
    fit(model, 7 * X.float(), Recipe(steps=3), folder=tmp_path, progress=False)
    assert model.data_std == pytest.approx(7, rel=0.2)
    again = load(tmp_path)
    assert again.conditioning == "standardised"
    assert torch.equal(again.denoise(0.5, X.float()), model.denoise(0.5, X.float()))
    before = model.denoise(0.5, X.float())
    model.data_std = 1.0
    assert not torch.allclose(before, model.denoise(0.5, X.float()))
