"""Classification by Bayes' rule against exact mixtures."""

import math

import pytest
import torch

import sdekit_diffusion as sd
from sdekit_diffusion import Classification, GaussianMixture, classify

MEANS = torch.tensor([[-1.0, 0.0], [0.5, 0.5], [0.8, -1.0]], dtype=torch.float64)
VARIANCES = torch.tensor([0.5, 0.3, 0.8], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)
MODELS = [GaussianMixture(ONE, m[None], v[None]) for m, v in zip(MEANS, VARIANCES, strict=True)]


def exact(x):
    """p(c | x) of the three normal laws."""
    logs = [
        torch.distributions.Normal(m, math.sqrt(v)).log_prob(x).sum(1)
        for m, v in zip(MEANS, VARIANCES.tolist(), strict=True)
    ]
    return torch.softmax(torch.stack(logs, dim=1) + WEIGHTS.log(), dim=1)


X = GaussianMixture(WEIGHTS, MEANS, VARIANCES).sample(400, seed=1)


@pytest.mark.parametrize("sde", ["ve", "flow"])
def test_probabilities_of_exact_models(sde):
    """Within the reported errors."""
    found = classify(MODELS, X, log_weights=WEIGHTS.log(), sde=sde, draws=16, levels=10, seed=3)
    wanted = exact(X)
    error = found.probability - wanted
    assert float(error.abs().max()) < 0.2
    assert float(error.abs().mean()) < 0.01
    z = error / found.stderr
    # t with 15 degrees of freedom: the mean square is 15/13; its mean over 1,200 correlated
    # values lies within 0.8 and 1.7 but for one seed in a million.
    assert 0.7 < float(z.square().mean()) < 1.9
    agree = (found.label == wanted.argmax(1)).double().mean()
    assert float(agree) > 0.97


def test_errors_shrink_with_the_draws():
    few = classify(MODELS, X[:50], sde="vp", draws=4, levels=2)
    many = classify(MODELS, X[:50], sde="vp", draws=64, levels=2)
    ratio = float(few.stderr.mean() / many.stderr.mean())
    assert 3 < ratio < 5.5  # four


def test_the_class_of_a_mixture_is_the_ratio_of_densities():
    """The estimates are log p(x | c) up to a constant: their differences are those of exact
    log-densities, with many evaluations: of ten copies of each point, which have noise of their
    own.
    """
    found = classify(MODELS, X[:50].repeat(10, 1), sde="vp", draws=4, levels=20)
    logs = torch.stack([model.log_prob(X[:50]) for model in MODELS], dim=1)
    means = found.log_likelihood.unflatten(0, (10, 50)).mean(dim=0)
    differences = (means - logs).diff(dim=1)
    assert float(differences.abs().max()) < 0.5
    assert float(differences.abs().mean()) < 0.09


@pytest.mark.parametrize(("levels", "draws"), [(1, 600), (4, 150)])
def test_few_levels_are_unbiased(levels, draws):
    """The mean over many draws of the levels, whatever their number: within 6 standard errors in
    each of 16 differences of log-densities, which one seed in ten million exceeds. A tenth of the
    draws is made at once, of ten copies of each point, which have noise of their own.
    """
    x = X[:8]
    copies = x.repeat(10, 1)
    found = classify(MODELS, copies, sde="vp", draws=draws // 10, levels=levels, seed=7)
    found = found.estimates.unflatten(1, (10, 8)).flatten(0, 1).diff(dim=2)
    logs = torch.stack([model.log_prob(x) for model in MODELS], dim=1).diff(dim=1)
    z = (found.mean(dim=0) - logs) / (found.std(dim=0) / math.sqrt(len(found)))
    assert float(z.abs().max()) < 6


@pytest.mark.parametrize("sde", ["vp", "edm", "ve"])
def test_data_wider_than_the_largest_noise(sde):
    """Normal laws keep their ratio of densities: within 6 standard errors over 600 draws. For
    others there is a warning.
    """
    laws = ((-100.0, 1e4), (100.0, 2e4))
    models = [GaussianMixture(ONE, ONE[None] * m, ONE * v) for m, v in laws]
    x = torch.tensor([[-20.0], [150.0]], dtype=torch.float64)
    with pytest.warns(UserWarning, match="below 2 standard deviations of the data of a class, 141"):
        found = classify(models, x.repeat(300, 1), sde=sde, draws=2, seed=3)
    difference = found.estimates.diff(dim=2).unflatten(1, (300, 2)).flatten(0, 1)[..., 0]
    logs = torch.stack([model.log_prob(x) for model in models], dim=1).diff(dim=1)[:, 0]
    stderr = difference.std(dim=0) / math.sqrt(600)
    assert float(stderr.max()) < 0.03
    assert float(((difference.mean(dim=0) - logs) / stderr).abs().max()) < 6


def test_a_sample_does_not_depend_on_its_batch():
    few = {"sde": "vp", "draws": 3, "levels": 4}
    whole = classify(MODELS, X[:10], seed=5, **few)
    parts = classify(MODELS, X[:10], seed=5, batch_size=3, **few)
    assert torch.equal(whole.estimates, parts.estimates)
    later = classify(MODELS, X[4:10], seed=5, first=4, **few)
    assert torch.equal(whole.estimates[:, 4:], later.estimates)
    other = classify(MODELS, X[:10], seed=6, **few)
    assert not torch.equal(whole.estimates, other.estimates)
    assert not torch.equal(
        classify(MODELS, X[:2], seed=None, **few).estimates,
        classify(MODELS, X[:2], seed=None, **few).estimates,
    )


def test_networks_with_labels():
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=16, depth=1, classes=3)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr", data_std=1.0)
    assert net.training
    found = classify([model.given(label=k) for k in range(3)], X[:6].float())
    assert found.probability.shape == (6, 3)
    torch.testing.assert_close(found.probability.sum(1), torch.ones(6, dtype=torch.float64))
    # A new network does not look at the label.
    torch.testing.assert_close(found.probability, torch.full((6, 3), 1 / 3, dtype=torch.float64))
    assert net.training


def test_the_standard_error_is_that_of_the_softmax():
    """Against the spread of the probabilities of slightly different estimates."""
    estimates = torch.tensor([[[0.0, 0.01]], [[0.02, 0.0]], [[0.01, 0.03]]], dtype=torch.float64)
    found = Classification(estimates, torch.zeros(2, dtype=torch.float64))
    each = torch.softmax(estimates, dim=2)[:, 0]
    expected = each.std(dim=0) / math.sqrt(3)
    torch.testing.assert_close(found.stderr[0], expected, rtol=1e-3, atol=1e-6)
    assert Classification(estimates[:1], torch.zeros(2)).stderr.isnan().all()


def test_no_points_and_points_that_are_numbers():
    models = [sd.GaussianMixture([1.0], [[m]], [0.1]) for m in (-1.0, 1.0)]
    numbers = [sd.GaussianMixture([1.0], [m], [0.1]) for m in (-1.0, 1.0)]
    x = torch.tensor([[-0.9], [1.2]])
    assert sd.classify(models, x[:0], sde="vp").probability.shape == (0, 2)
    assert sd.classify(numbers, x[:0, 0], sde="vp").probability.shape == (0, 2)
    found = sd.classify(numbers, x[:, 0], sde="vp")
    torch.testing.assert_close(found.estimates, sd.classify(models, x, sde="vp").estimates)


def test_a_class_may_be_excluded():
    weights = torch.tensor([0.0, -math.inf, 0.0])
    found = classify(MODELS, X[:20], sde="vp", log_weights=weights)
    assert not found.probability[:, 1].any()
    assert found.probability.isfinite().all()


def test_what_is_refused():
    with pytest.raises(TypeError, match="a list with one model per class"):
        classify(MODELS[0], X, sde="vp")
    with pytest.raises(ValueError, match="two models or more, one per class; not 1"):
        classify(MODELS[:1], X, sde="vp")
    with pytest.raises(TypeError, match="must be floating"):
        classify(MODELS, X.long(), sde="vp")
    with pytest.raises(TypeError, match="x must be a tensor"):
        classify(MODELS, X.numpy(), sde="vp")
    with pytest.raises(ValueError, match="shape"):
        classify(MODELS, X[:, :1], sde="vp")
    with pytest.raises(ValueError, match="draws = 0"):
        classify(MODELS, X, sde="vp", draws=0)
    with pytest.raises(ValueError, match=r"levels = 1\.5"):
        classify(MODELS, X, sde="vp", levels=1.5)
    with pytest.raises(ValueError, match="batch_size = 0"):
        classify(MODELS, X, sde="vp", batch_size=0)
    with pytest.raises(ValueError, match=r"log_weights has shape \(2,\)"):
        classify(MODELS, X, sde="vp", log_weights=torch.zeros(2))
    for weights in ([math.nan, 0, 0], [math.inf, 0, 0], [-math.inf] * 3, [1j, 0, 0]):
        with pytest.raises(ValueError, match="logarithms of probabilities, real numbers or, but"):
            classify(MODELS, X, sde="vp", log_weights=torch.tensor(weights))
    for wrong in (math.nan, math.inf):
        x = X.clone()
        x[[2, 5], 1] = wrong
        with pytest.raises(ValueError, match=r"x is not finite in rows \[2, 5\]; leave these out"):
            classify(MODELS, x, sde="vp")
    with pytest.raises(ValueError, match="no diffusion of its own"):
        classify(MODELS, X)
    for end in (0.0, -1.0, math.nan, 1e6):
        with pytest.raises(ValueError, match="below the largest of the diffusion"):
            classify(MODELS, X, sde="vp", end=end)


class Recorded(torch.nn.Module):
    """A network that notes the times at which it is called; the denoiser of a law."""

    def __init__(self, law=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.law = law
        self.times = []

    def forward(self, x, t):
        self.times += t.tolist() if t.ndim else [float(t)]
        return self.weight * (x if self.law is None else self.law.predict_data(t, x))


@pytest.mark.parametrize("sde", [None, "vp"])
@pytest.mark.parametrize("own", ["ncsn", "ve", "edm", sd.VESDE(exact=False)], ids=str)
def test_models_are_evaluated_in_their_own_range(own, sde):
    model = sd.ScoreModel(Recorded(), own, shape=(2,), data_std=1.0)
    classify([model, model], X[:50].float(), sde=sde)
    assert min(model.net.times) >= 0
    assert max(model.net.times) <= model.sde.T


def test_a_range_that_is_not_shared():
    low, high = (
        sd.ScoreModel(Recorded(), sd.VESDE(*levels, exact=False), shape=(2,), data_std=1.0)
        for levels in ((1e-3, 0.01), (0.1, 10.0))
    )
    with pytest.raises(ValueError, match=r"at most 0\.01 for one and at least 0\.1 for another"):
        classify([low, high], X[:2].float())


def test_the_order_of_the_models_does_not_matter():
    """Laws of very different scales, with the exact ratio of their densities. Of 32 draws four are
    made one after the other, of eight copies of each point.
    """
    wide, narrow = (GaussianMixture(ONE, [[0.0]], ONE * v) for v in (100.0, 1e-6))
    x = torch.tensor([[0.0005], [0.003]], dtype=torch.float64)
    copies = x.repeat(8, 1)
    found = classify([wide, narrow], copies, sde="edm", draws=4, levels=16)
    swapped = classify([narrow, wide], copies, sde="edm", draws=4, levels=16)
    torch.testing.assert_close(found.log_likelihood, swapped.log_likelihood.flip(1))
    # The law of the narrow one with noise of a thousandth of its standard deviation is its own.
    expected = narrow.log_prob(x) - wide.log_prob(x)
    difference = found.estimates.diff(dim=2)[..., 0].unflatten(1, (8, 2)).flatten(0, 1)
    stderr = difference.std(dim=0) / math.sqrt(len(difference))
    assert float(((difference.mean(dim=0) - expected) / stderr).abs().max()) < 6


def test_the_scale_of_data_is_estimated_where_it_is_not_known():
    law = GaussianMixture([0.5, 0.5], [[-100.0, 0.0], [100.0, 0.0]], [9.0, 9.0])
    smallest = []
    for std in (None, law.data_std):
        model = sd.ScoreModel(
            Recorded(law), "flow", "data", shape=(2,), conditioning="log_snr", data_std=std
        )
        sd.sample(model, 1, seed=0, steps=2)  # estimates
        model.net.times.clear()
        classify([model, model], 70 * X[:200].float())
        smallest.append(min(model.net.times))
    assert smallest[0] == pytest.approx(smallest[1], abs=0.1)
