"""Guidance against the formulas that others publish, and against exact conditional laws."""

import functools
import math

import pytest
import torch
from torch import nn

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion import (
    ClassifierGuided,
    GaussianMixture,
    Guided,
    Inpainted,
    ScoreModel,
    nets,
)
from sdekit_diffusion._models.model import noise_scale, signal_scale
from sdekit_diffusion._sampling.clock import on_clock
from sdekit_diffusion._sampling.coordinates import Standardised

WEIGHTS = [0.3, 0.7]
MEANS = [[-1.0], [1.5]]
VARIANCES = [0.2, 0.5]


def mixture(weights, means, variances):
    arguments = (weights, means, variances)
    return GaussianMixture(*(torch.tensor(value, dtype=torch.float64) for value in arguments))


WHOLE = mixture(WEIGHTS, MEANS, VARIANCES)
SECOND = mixture([1.0], MEANS[1:], VARIANCES[1:])


def network(seed=0, **sizes):
    torch.manual_seed(seed)
    net = nets.MLP(shape=(3,), width=16, depth=2, **({"classes": 4} | sizes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net


LABELS = torch.tensor([0, 3, 1, 2, 2])
U = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def model(predicts="noise", net=None, **settings):
    settings = {"shape": (3,), "conditioning": "log_snr", "data_std": 1.0} | settings
    return ScoreModel(net or network(), "vp", predicts, **settings).eval()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("l", [0.3, torch.linspace(-2, 2, 5)])
def test_the_formula_of_classifier_free_guidance(l, together):
    """The outputs of the network, u + w (c - u), and the noise and the data that belong to them."""
    plain = model()
    guided = Guided(plain.given(label=LABELS), 2.5, together=together)
    with torch.no_grad():
        times = l if isinstance(l, torch.Tensor) else torch.full((5,), l)
        own = plain.net(U, times, label=LABELS)
        none = plain.net(U, times)
        expected = none + 2.5 * (own - none)
        torch.testing.assert_close(guided.predict_noise(l, U), expected, rtol=1e-6, atol=1e-6)
        # azula's, with w - 1 for its strength.
        azula = own + 1.5 * (own - none)
        torch.testing.assert_close(guided.predict_noise(l, U), azula, rtol=1e-6, atol=1e-6)
        a, b = signal_scale(times)[:, None], noise_scale(times)[:, None]
        data = (U - b * expected) / a
        torch.testing.assert_close(guided.predict_data(l, U), data, rtol=1e-5, atol=1e-5)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()
        self.rows = []

    @property
    def null(self):
        return self.net.null

    def forward(self, x, t, **conditions):
        self.rows.append(len(x))
        return self.net(x, t, **conditions)


def test_calls_of_the_network():
    """One of 2 B rows, two of B, one of B where the reference or the model alone counts."""
    counting = Counting()
    plain = model(net=counting)
    conditional = plain.given(label=LABELS)
    for settings, rows in (
        ({"scale": 2.0}, [10]),
        ({"scale": 2.0, "together": False}, [5, 5]),
        ({"scale": 1.0}, [5]),
        ({"scale": 0.0}, [5]),
        ({"scale": 2.0, "interval": (0.1, 0.5)}, [5]),
        ({"scale": 2.0, "interval": (0.1, 2.0)}, [10]),
        ({"scale": 2.0, "rescale": 0.5}, [10]),
        ({"scale": 2.0, "by": model(net=network(3)).given(label=LABELS)}, [5]),
    ):
        counting.rows.clear()
        with torch.no_grad():
            Guided(conditional, **settings).predict_data(0.0, U)
        assert counting.rows == rows, settings
    with torch.no_grad():
        one = Guided(conditional, 1.0).predict_data(0.0, U)
        assert torch.equal(one, conditional.predict_data(0.0, U))
        none = Guided(conditional, 0.0).predict_data(0.0, U)
        assert torch.equal(none, plain.unconditional().predict_data(0.0, U))


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ({}, {"predicts": "velocity"}),
        ({}, {"conditioning": "time"}),
        ({"conditioning": "time"}, {"conditioning": "time", "sde": sd.VPSDE(beta_max=5.0)}),
        (
            {"conditioning": "standardised", "predicts": "velocity"},
            {"conditioning": "standardised", "predicts": "velocity", "data_std": 2.0},
        ),
    ],
    ids=str,
)
def test_a_reference_with_the_same_network_keeps_its_own_conventions(own, other):
    counting = Counting()
    first, second = (
        ScoreModel(
            counting,
            **{"sde": "vp", "shape": (3,), "conditioning": "log_snr", "data_std": 1.0, **given},
        ).given(label=LABELS)
        for given in (own, other)
    )
    with torch.no_grad():
        expected = second.predict_data(0.3, U)
        expected = expected + 2.5 * (first.predict_data(0.3, U) - expected)
        counting.rows.clear()
        found = Guided(first, 2.5, by=second).predict_data(0.3, U)
        assert counting.rows == [5, 5]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        alike = ScoreModel(
            counting, **{"sde": sd.VPSDE(), "conditioning": "log_snr", "data_std": 1.0, **own}
        )
        counting.rows.clear()
        Guided(first, 2.5, by=alike).predict_data(0.3, U)
        assert counting.rows == [10]


def test_other_conditions_in_one_call():
    """A number for all, contexts with NaN for unknown, and conditions that stay the same."""
    net = network(classes=4, context=2)
    plain = model(net=net)
    context = torch.randn(5, 2, generator=torch.Generator().manual_seed(2))
    for conditions in (
        {"label": 2},
        {"label": LABELS, "context": context},
        {"context": context},
        {"label": None, "context": context},
    ):
        conditional = plain.given(**conditions)
        with torch.no_grad():
            one = Guided(conditional, 3.0).predict_data(0.5, U)
            two = Guided(conditional, 3.0, together=False).predict_data(0.5, U)
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    kept = plain.given(label=LABELS, context=context)
    other = plain.given(label=LABELS, context=None)
    with torch.no_grad():
        one = Guided(kept, 3.0, by=other).predict_data(0.5, U)
        own, reference = kept.predict_data(0.5, U), other.predict_data(0.5, U)
    torch.testing.assert_close(one, reference + 3 * (own - reference), rtol=1e-6, atol=1e-6)


class Scaled(nn.Module):
    """A network whose output is its condition, in floating point."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.linear.weight)

    def forward(self, x, t, c=None):
        return self.linear(c.to(x)[:, None]).expand_as(x)


@pytest.mark.parametrize("together", [True, False])
def test_fractions_stay_fractions_beside_whole_numbers(together):
    """A number, and numbers beside integers of the other model, were truncated."""
    asked = ScoreModel(Scaled(), "vp", "data", shape=(1,), null={"c": 0}, data_std=1.0)
    u = torch.zeros(3, 1)
    number = Guided(asked.given(c=0.7), 2.0, together=together).predict_data(0.0, u)
    torch.testing.assert_close(number, torch.full((3, 1), 1.4))
    whole = asked.given(c=torch.tensor([1, 2, 3]))
    by = Guided(whole, 2.0, by=asked.given(c=0.5), together=together).predict_data(0.0, u)
    torch.testing.assert_close(by, torch.tensor([[1.5], [3.5], [5.5]]))


class Tabulated(nn.Module):
    """A network with a null value of its own, which it must be given: its default is a class."""

    null = {"label": 3, "context": math.nan}

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.tensor([-1.0, 1.0, 2.0, 0.0]))
        self.contexts = []

    def forward(self, x, t, label=0, context=None):
        self.contexts.append(context)
        return self.table[label][:, None].expand_as(x)


@pytest.mark.parametrize("context", [None, torch.ones(2, 3), 0.5])
def test_the_reference_has_the_null_value_of_the_network(context):
    """Together, in two calls, and alone, as training gave it; NaN in the shape of what was
    given.
    """
    net = Tabulated()
    plain = ScoreModel(net, "vp", "data", shape=(2,), data_std=1.0)
    given = plain.given(label=torch.tensor([0, 1]), context=context)
    for settings, expected in (
        ({"scale": 2.0}, [-2.0, 2.0]),
        ({"scale": 2.0, "together": False}, [-2.0, 2.0]),
        ({"scale": 0.0}, [0.0, 0.0]),
    ):
        found = Guided(given, **settings).predict_data(0.0, torch.zeros(2, 2))
        assert found[:, 0].tolist() == expected
    reference = net.contexts[-1]
    if context is None:
        assert reference is None
    else:
        assert reference.isnan().all()
        assert reference.shape == ((2, 3) if isinstance(context, torch.Tensor) else (2,))


def test_unknown_values_have_the_dtype_of_what_was_given():
    """A network that multiplies its condition by weights was given integers."""

    class Strict(Scaled):
        def forward(self, x, t, c=None):
            return self.linear(c[:, None]).expand_as(x)

    asked = ScoreModel(Strict(), "vp", "data", shape=(1,), null={"c": 0}, data_std=1.0)
    given = asked.given(c=torch.rand(3))
    assert torch.equal(Guided(given, 0.0).predict_data(0.0, torch.ones(3, 1)), torch.zeros(3, 1))


def test_the_interval_per_sample():
    """sigma / alpha = e^-l; outside the interval the conditional model."""
    conditional = model().given(label=LABELS)
    l = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    with torch.no_grad():
        found = Guided(conditional, 4.0, interval=(math.exp(-0.6), 1.2)).predict_data(l, U)
        inside = Guided(conditional, 4.0).predict_data(l, U)
        outside = conditional.predict_data(l, U)
        for level in (-2.0, 2.0):  # the same for all samples
            one = Guided(conditional, 4.0, interval=(math.exp(-0.6), 1.2)).predict_data(level, U)
            assert torch.equal(one, conditional.predict_data(level, U))
    applies = torch.tensor([False, False, True, True, False])[:, None]
    torch.testing.assert_close(found, torch.where(applies, inside, outside), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("predicts", ["noise", "velocity", "data", "flow"])
def test_rescaling_is_that_of_diffusers(predicts):
    """Of the outputs of the network, as its guider does it."""
    from diffusers.guiders import ClassifierFreeGuidance

    plain = model(predicts)
    guided = Guided(plain.given(label=LABELS), 3.0, rescale=0.7)
    l = 0.4
    a, b = signal_scale(l), noise_scale(l)
    with torch.no_grad():
        times = torch.full((5,), l)
        own, none = plain.net(U, times, label=LABELS), plain.net(U, times)
        theirs = ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.7)
        output = theirs.forward(own, none).pred
        data = {
            "noise": (U - b * output) / a,
            "velocity": a * U - b * output,
            "data": output,
            "flow": (U - b * output) / (a + b),
        }[predicts]
        torch.testing.assert_close(guided.predict_data(l, U), data, rtol=1e-5, atol=1e-5)
        noise = (U - a * data) / b
        torch.testing.assert_close(guided.predict_noise(l, U), noise, rtol=1e-5, atol=1e-5)


def test_rescaling_in_an_interval_at_one_level_per_sample():
    """As at each level alone: w is 1 outside of the interval."""
    guided = Guided(model().given(label=LABELS), 3.0, interval=(0.5, 2.0), rescale=0.7)
    l = torch.tensor([0.0, 2.0, -2.0, 0.3, -0.3])
    with torch.no_grad():
        rows = [torch.tensor([i]) for i in range(5)]
        alone = [guided.rows(i).predict_data(float(l[i]), U[i]) for i in rows]
        found = guided.predict_data(l, U)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)
    x = sd.sample(guided, 5, method=sd.AdaptiveFlow(1e-2, 1e-2), seed=0)
    assert bool(x.isfinite().all())


def test_rescaling_of_samples_that_are_numbers():
    """Their outputs have no standard deviation, and are not rescaled."""
    law, other = (GaussianMixture([1.0], [m], [0.3]) for m in (1.0, -1.0))
    l, u = 0.4, torch.tensor([0.2, -0.7, 1.1])
    plain = Guided(law, 2.0, by=other).predict_data(l, u)
    assert torch.equal(Guided(law, 2.0, by=other, rescale=0.7).predict_data(l, u), plain)


def test_rescaling_does_not_depend_on_the_unit_of_the_data():
    """Networks of standardised data, for data with standard deviations of 1 and of 2."""
    first, second = (
        Guided(
            model("velocity", conditioning="standardised", data_std=std).given(label=LABELS),
            3.0,
            rescale=0.7,
        )
        for std in (1.0, 2.0)
    )
    l = 0.4
    size = math.hypot(2 * signal_scale(l), noise_scale(l))
    with torch.no_grad():
        expected = 2 * first.predict_data(l + math.log(2), U / size)
        torch.testing.assert_close(second.predict_data(l, U), expected, rtol=1e-5, atol=1e-5)


@functools.cache
def exactly_guided():
    """Starts, and where they end at tolerance 1e-10."""
    guided = Guided(SECOND, 2.0, by=WHOLE)
    x_T = sd.VPSDE().prior((16, 1), seed=0).double()
    method = sd.AdaptiveFlow(rtol=1e-10, atol=1e-10)
    return x_T, sd.sample(guided, sde="vp", method=method, x_T=x_T)


@pytest.mark.parametrize(
    ("method", "steps", "tolerance"),
    [("default", 200, 1e-5), ("ddim", 1000, 1e-2), ("heun", 400, 1e-3), ("ode", None, 1e-4)],
)
def test_the_guided_flow_of_exact_scores(method, steps, tolerance):
    """Samples are those of a solve of the guided equation at tolerance 1e-10."""
    guided = Guided(SECOND, 2.0, by=WHOLE)
    x_T, exact = exactly_guided()
    found = sd.sample(guided, sde="vp", method=method, x_T=x_T, steps=steps)
    torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)
    few = None if steps is None else 50
    plain = sd.sample(SECOND, sde="vp", method=method, x_T=x_T, steps=few)
    assert float((plain - exact).abs().max()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adaptive_steps_do_not_skip_an_interval(dtype):
    """Outside of it the flow of the conditional model is trivial, so that steps grow beyond it."""
    own = GaussianMixture([1.0], torch.tensor([[1.0]], dtype=dtype), [0.05])
    modes = torch.tensor([[-1.0], [1.0]], dtype=dtype)
    guided = Guided(
        own, 3.0, by=GaussianMixture([0.5, 0.5], modes, [0.05, 0.05]), interval=(0.3, 1)
    )
    x = torch.linspace(-4, 4, 801, dtype=dtype)[:, None]
    for model in (guided, Inpainted(guided, torch.zeros(1), torch.zeros(1).bool())):
        density = sd.log_likelihood(model, x, sde="vp").value.exp()
        assert float(torch.trapezoid(density, x[:, 0].double())) == pytest.approx(1.0, abs=2e-4)
    z = torch.tensor([[-2.0], [0.5]], dtype=dtype)
    exact = sd.sample(guided, x_T=z, sde="vp", steps=2000)
    torch.testing.assert_close(sd.decode(guided, z, sde="vp"), exact, rtol=0, atol=5e-4)
    torch.testing.assert_close(
        sd.sample(guided, x_T=z, sde="vp", method="ode"), exact, rtol=0, atol=5e-4
    )
    latent = sd.encode(guided, sd.decode(guided, z, sde="vp"), sde="vp")
    torch.testing.assert_close(latent, z, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["ode", "adaptive_sde"])
def test_an_interval_of_all_levels(method):
    own = GaussianMixture([1.0], [[1.0]], [0.05])
    both = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.05, 0.05])
    settings = {"sde": "vp", "method": method, "seed": 0}
    x = sd.sample(Guided(own, 3.0, by=both, interval=(1e-308, 1e308)), 3, **settings)
    torch.testing.assert_close(x, sd.sample(Guided(own, 3.0, by=both), 3, **settings))


def test_the_ends_of_an_interval_are_jumps_of_every_model_made_from_it():
    own = GaussianMixture([1.0], [[1.0]], [0.05])
    inner = Guided(own, 3.0, by=own, interval=(0.5, 2.0))
    outer = Guided(inner, 2.0, by=own, interval=(0.0, 4.0))
    expected = (math.log(2.0), -math.log(2.0), -math.log(4.0))
    assert sorted(outer.jumps) == pytest.approx(sorted(expected))
    standardised = Standardised(outer, 0.0, math.e)
    assert sorted(standardised.jumps) == pytest.approx(sorted(l + 1 for l in expected))
    assert own.jumps == Guided(own, 3.0, by=own).jumps == ()
    # A reference with an interval of its own, and the clock of the reverse SDE.
    assert Guided(own, 2.0, by=inner).jumps == inner.jumps
    assert on_clock(inner, 1.0).jumps == [math.exp(2 * l) for l in inner.jumps]


def test_the_likelihood_of_a_guided_model():
    """Its density is that of the flow map, p(x) = p_T(z(x)) z'(x), and integrates to 1."""
    guided = Guided(SECOND, 2.0, by=WHOLE)
    method = sd.AdaptiveFlow(rtol=1e-9, atol=1e-9)
    x = torch.linspace(-3.0, 6.0, 181, dtype=torch.float64)[:, None]
    found = sd.log_likelihood(guided, x, sde="vp", method=method)
    h = 1e-3
    above, below = (sd.encode(guided, x + s, sde="vp", method=method) for s in (h, -h))
    slope = ((above - below) / (2 * h))[:, 0]
    model_mean, model_std = float(SECOND.data_mean), SECOND.data_std
    alpha, sigma = (float(v) for v in sd.VPSDE().kernel(1.0))
    prior = torch.distributions.Normal(alpha * model_mean, math.hypot(alpha * model_std, sigma))
    expected = prior.log_prob(found.latent[:, 0]) + slope.log()
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-5)
    total = torch.trapezoid(found.value.exp(), x[:, 0])
    assert abs(float(total) - 1) < 1e-4
    far = (found.value - sd.log_likelihood(SECOND, x, sde="vp").value).abs().max()
    assert float(far) > 0.1


def log_prob(x, t, y):
    """log p(second component | x_t) under VP; y = 1 asks for it, y = 0 for the first."""
    sde = sd.VPSDE()
    alpha, sigma = (v.reshape(-1, 1) for v in (sde.alpha(t), sde.sigma(t)))
    logs = []
    for weight, mean, variance in zip(WEIGHTS, MEANS, VARIANCES, strict=True):
        spread = alpha**2 * variance + sigma**2
        logs.append(
            math.log(weight) - 0.5 * ((x - alpha * mean[0]) ** 2 / spread + spread.log())[:, 0]
        )
    both = torch.log_softmax(torch.stack(logs), dim=0)
    return torch.where(y > 0, both[1], both[0])


@pytest.mark.parametrize("l", [-1.0, 0.7, torch.linspace(-3, 3, 6).double()])
def test_an_exact_classifier_gives_the_conditional_law(l):
    y = torch.ones(6)
    guided = ClassifierGuided(WHOLE, log_prob, y, classifier_sde="vp")
    u = torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        guided.predict_data(l, u), SECOND.predict_data(l, u), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        guided.predict_noise(l, u), SECOND.predict_noise(l, u), rtol=1e-5, atol=1e-5
    )
    doubled = ClassifierGuided(WHOLE, log_prob, y, 2.0, classifier_sde="vp")
    plain = WHOLE.predict_data(l, u)
    torch.testing.assert_close(
        doubled.predict_data(l, u) - plain,
        2 * (guided.predict_data(l, u) - plain),
        rtol=1e-6,
        atol=1e-9,
    )


def test_classifier_guidance_samples_per_row():
    y = torch.tensor([0.0, 1.0]).repeat(200)
    guided = ClassifierGuided(WHOLE, log_prob, y, classifier_sde="vp")
    whole = sd.sample(guided, 400, sde="vp", seed=3, steps=30)
    parts = sd.sample(guided, 400, sde="vp", seed=3, steps=30, batch_size=64)
    assert torch.equal(whole, parts)
    for value, mean, variance in ((0, -1.0, 0.2), (1, 1.5, 0.5)):
        of_class = whole[y == value]
        # Five standard errors: once in two million.
        assert abs(float(of_class.mean()) - mean) < 5 * math.sqrt(variance / 200)
        assert abs(float(of_class.var()) / variance - 1) < 5 * math.sqrt(2 / 199)


def test_a_classifier_is_put_into_evaluation_mode():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x, t, y):
            self.seen.append(self.training)
            return -((x[:, 0] - y) ** 2)

    classifier = Classifier()
    guided = ClassifierGuided(WHOLE, classifier, torch.zeros(3), classifier_sde="vp")
    sd.sample(guided, 3, sde="vp", steps=4, seed=0)
    assert classifier.training
    assert not any(classifier.seen)


@pytest.mark.parametrize("method", ["default", sd.AdaptiveFlow(1e-3, 1e-3), "sde"], ids=str)
def test_labels_stay_with_their_samples_in_batches(method):
    guided = Guided(model("velocity").double().given(label=LABELS), 1.5)
    steps = None if isinstance(method, sd.AdaptiveFlow) else 20
    whole, parts = (
        sd.sample(guided, 5, method=method, steps=steps, seed=0, batch_size=size) for size in (5, 2)
    )
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)


def test_what_is_refused():
    conditional = model().given(label=LABELS)
    with pytest.raises(ValueError, match="no unconditional model that is known"):
        Guided(WHOLE, 2.0)
    with pytest.raises(ValueError, match="not known to work without"):
        Guided(model(net=lambda x, t: x), 2.0)
    for interval in ((2.0, 1.0), 0.5, (0.1, 1.0, 2.0), ("a", "b"), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="interval has a least"):
            Guided(conditional, 2.0, interval=interval)
    for forgotten in (model(), model().unconditional(), model().given(label=None)):
        with pytest.raises(ValueError, match="not given label, so there is nothing to guide to"):
            Guided(forgotten, 2.0)
    with pytest.raises(TypeError, match="by is a model"):
        Guided(conditional, 2.0, by="weak")
    wrong = ((math.nan, ValueError), ("2", TypeError), (None, TypeError), (True, TypeError))
    for scale, error in wrong:
        with pytest.raises(error, match="scale is a finite number"):
            Guided(conditional, scale)
        with pytest.raises(error, match="scale is a finite number"):
            ClassifierGuided(WHOLE, log_prob, torch.ones(1), scale, classifier_sde="vp")
    with pytest.raises(TypeError, match="rescale is a finite number"):
        Guided(conditional, 2.0, rescale="0.7")
    for y in (2, torch.tensor(2), [1, 2]):
        with pytest.raises(TypeError, match="y is a tensor with one entry per sample"):
            ClassifierGuided(WHOLE, log_prob, y, classifier_sde="vp")
    with pytest.raises(ValueError, match="rescale is a share"):
        Guided(conditional, 2.0, rescale=1.5)
    with pytest.raises(ValueError, match="has no diffusion of its own"):
        ClassifierGuided(WHOLE, log_prob, torch.ones(1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x, t, y: log_prob(x.detach(), t, y), "has no gradient in x"),
        (torch.no_grad()(log_prob), "has no gradient in x"),
        (lambda x, t, y: x.expand(len(x), 3), "it must return log p"),
        (lambda x, t, y: log_prob(x, t, y).sum(), "it must return log p"),
        (lambda x, t, y: 1.0, "returned float; it must return"),
    ],
)
def test_a_classifier_that_guides_nowhere_is_refused(wrong, message):
    guided = ClassifierGuided(WHOLE, wrong, torch.ones(4), classifier_sde="vp")
    with pytest.raises(ValueError, match=message):
        guided.predict_data(0.3, torch.zeros(4, 1))
    with pytest.raises(ValueError, match=message):
        sd.sample(guided, 4, sde="vp", steps=4, seed=0)


def test_vectors_of_networks_with_null_values():
    """A null value of a condition that is a vector fills it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, t, y):
            return self.layer(x) + y

    torch.manual_seed(0)
    plain = model(net=Net(), null={"y": 0})
    y = torch.eye(3)
    with torch.no_grad():
        found = Guided(plain.given(y=y), 2.0).predict_noise(0.0, U[:3])
        reference = plain.given(y=torch.zeros(3, 3))
        expected = Guided(plain.given(y=y), 2.0, by=reference).predict_noise(0.0, U[:3])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def far(scale):
    """One narrow mode of four, moved away from all: a stiff flow."""
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    whole = GaussianMixture([0.25] * 4, means, [0.02] * 4)
    one = GaussianMixture([1.0], means[:1], [0.02])
    return Guided(one, scale, by=whole)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.0, 1.9, 2.0, 7.5])
def test_guidance_is_the_stiffer_the_stronger(scale):
    """Also inside another model, and by a classifier; not at all without guidance."""
    known = torch.tensor([True, False])
    log_prob = lambda x, t, y: x.sum(dim=1)  # noqa: E731
    assert far(scale).stiffness == abs(scale - 1)
    assert sd.Inpainted(far(scale), torch.zeros(2), known).stiffness == abs(scale - 1)
    assert Guided(far(scale), 1.5, by=WHOLE).stiffness == max(abs(scale - 1), 0.5)
    classified = ClassifierGuided(WHOLE, log_prob, torch.zeros(4), scale, "vp")
    assert classified.stiffness == abs(scale - 1)
    assert far(0.0).stiffness == WHOLE.stiffness == 0


UNIPC = "data", sdekit.UniPC(2, lower_final=True)
LIMITED_DATA = "data", sdekit.LimitedUniPC(lower_final=True)
LIMITED = "velocity", sdekit.LimitedUniPC(lower_final=True)
TWO = "velocity", sdekit.AdamsMoulton(2, self_starting=False, lower_final=True)
THREE = "velocity", sdekit.AdamsMoulton(3, self_starting=False, lower_final=True)
FOCUSED = sd.Focused()
REACHING = sd.Focused(reach=10, sharpness=24)
FURTHER = sd.Focused(reach=10 * math.sqrt(3), sharpness=24)
ALL = sd.Focused(reach=math.inf, sharpness=24)
SHARED = sd.Focused(0.9)
TENTH, FIFTH, THIRD = (
    sd.Focused(share, native_share=native) for share, native in ((0.8, 0.1), (0.7, 0.2), (0.5, 0.3))
)


@pytest.mark.parametrize(
    ("kind", "scale", "steps", "choice", "own"),
    [
        ("exact", 2.0, 3, UNIPC, FOCUSED),
        ("exact", 2.0, 9, UNIPC, FOCUSED),
        ("exact", 2.0, 10, TWO, FOCUSED),
        ("exact", 5.0, 7, LIMITED_DATA, FOCUSED),
        ("exact", 5.0, 8, UNIPC, FOCUSED),
        ("exact", 5.0, 9, UNIPC, FOCUSED),
        ("exact", 5.0, 10, LIMITED, FOCUSED),
        ("exact", 5.0, 18, LIMITED, FOCUSED),
        ("exact", 5.0, 19, TWO, FOCUSED),
        ("exact", 8.0, 18, LIMITED_DATA, FOCUSED),
        ("exact", 8.0, 19, LIMITED, FOCUSED),
        ("velocity", 2.0, 2, UNIPC, SHARED),
        ("velocity", 2.0, 6, UNIPC, SHARED),
        ("velocity", 2.0, 7, LIMITED, TENTH),
        ("velocity", 2.0, 9, LIMITED, TENTH),
        ("velocity", 2.0, 10, TWO, TENTH),
        ("velocity", 2.0, 21, TWO, TENTH),
        ("velocity", 2.0, 22, THREE, THIRD),
        ("velocity", 5.0, 7, LIMITED_DATA, SHARED),
        ("velocity", 5.0, 8, LIMITED, TENTH),
        ("velocity", 5.0, 21, LIMITED, TENTH),
        ("velocity", 5.0, 22, TWO, TENTH),
        ("velocity", 5.0, 57, TWO, TENTH),
        ("velocity", 5.0, 58, THREE, THIRD),
        ("noise", 2.0, 1, LIMITED_DATA, FURTHER),
        ("noise", 2.0, 9, LIMITED_DATA, FURTHER),
        ("noise", 2.0, 10, TWO, REACHING),
        ("noise", 2.0, 20, TWO, REACHING),
        ("noise", 2.0, 21, TWO, FURTHER),
        ("noise", 2.0, 29, TWO, FURTHER),
        ("noise", 2.0, 30, THREE, ALL),
        ("noise", 5.0, 3, LIMITED_DATA, ALL),
        ("noise", 5.0, 4, LIMITED_DATA, FURTHER),
        ("noise", 5.0, 13, LIMITED_DATA, FURTHER),
        ("noise", 5.0, 14, LIMITED, FURTHER),
        ("noise", 5.0, 26, LIMITED, FURTHER),
        ("noise", 5.0, 27, TWO, REACHING),
        ("noise", 5.0, 29, TWO, REACHING),
        ("noise", 5.0, 30, TWO, FURTHER),
        ("noise", 5.0, 71, TWO, FURTHER),
        ("noise", 5.0, 72, THREE, ALL),
    ],
    ids=str,
)
@pytest.mark.parametrize("grid", ["focused", "karras"])
def test_the_default_looks_less_far_back_where_the_flow_is_stiff(
    kind, scale, steps, choice, own, grid
):
    """The rules and the grids by the stiffness w - 1, for functions and for networks."""
    guided = far(scale) if kind == "exact" else Guided(model(kind).given(label=LABELS), scale)
    integrand, rule = choice
    meant = sd.OnClock(rule, integrand=integrand)
    settings = {"steps": steps, "seed": 0, "sde": "vp"}
    assert torch.equal(
        sd.sample(guided, 5, grid=grid, **settings),
        sd.sample(guided, 5, method=meant, grid=own if grid == "focused" else grid, **settings),
    )


@functools.cache
def far_samples():
    """Samples of strong guidance, exactly."""
    return sd.sample(far(7.5), 100, method=sd.AdaptiveFlow(1e-8, 1e-8), sde="vp", seed=0)


@pytest.mark.parametrize(("steps", "share"), [(10, 0.05), (15, 0.05), (25, 0.3)])
def test_the_default_is_stable_under_strong_guidance(steps, share):
    """At w = 7.5 it has a small share of the error of a rule of four values."""
    guided = far(7.5)
    settings = {"sde": "vp", "seed": 0}
    exact = far_samples()
    four = sd.OnClock(sdekit.AdamsMoulton(4, self_starting=False), integrand="velocity")

    def error(method):
        x = sd.sample(guided, 100, method=method, steps=steps, **settings)
        return float((x - exact).norm(dim=1).mean())

    assert error("default") < 0.8 * error("ddim")
    assert error("default") < share * error(four)


class Recorded(nn.Module):
    """A network that notes the times at which it is called."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.times = []

    def forward(self, x, t):
        self.times.append(float(t[0]))
        return self.weight * x


def test_a_solve_keeps_to_the_range_of_every_part():
    """No part is called at a noise level that it was not trained for."""
    own = ScoreModel(lambda x, t: 0.5 * x, "vp", shape=(2,), data_std=1.0)
    for name in ("ve", "ncsn"):
        weak = ScoreModel(Recorded(), name, shape=(2,), data_std=1.0)
        sd.sample(Guided(own, 2.0, by=weak), 4, seed=0)
        assert min(weak.net.times) >= 0
        assert max(weak.net.times) <= weak.sde.T
    times = []

    def log_prob(x, t, y):
        times.append(float(t[0]))
        return -((x[:, 0] - y) ** 2)

    guided = ClassifierGuided(own, log_prob, torch.ones(4), 1e-3, "edm")
    sd.sample(guided, 4, seed=0)
    assert max(times) == pytest.approx(sd.EDMSDE().T)


def test_a_reference_limits_a_solve_only_where_it_is_used():
    own = ScoreModel(Recorded(), "edm", shape=(2,), data_std=1.0)
    weak = ScoreModel(Recorded(), sd.VESDE(0.01, 5.0), shape=(2,), data_std=1.0)
    for settings in ({"scale": 1.0}, {"scale": 2.0, "interval": (0.1, 4.0)}):
        sd.sample(Guided(own, by=weak, **settings), 4, seed=0)
        assert max(own.net.times) == pytest.approx(80)
        own.net.times.clear()
    sd.sample(Guided(own, 2.0, by=weak, interval=(0.1, 6.0)), 4, seed=0)
    assert max(own.net.times) == pytest.approx(5, rel=1e-3)


def test_a_derived_model_may_say_where_it_can_be_evaluated():
    class Wider(sd.AbstractDerivedModel):
        sde = None

        def predict_data(self, l, u):
            return self.model.predict_data(l, u)

    own = ScoreModel(Recorded(), sd.VESDE(0.01, 5.0), shape=(2,), data_std=1.0)
    assert Wider(own).diffusions() == []
    assert [*map(type, Guided(own, 2.0, by=own).diffusions())] == [sd.VESDE] * 3
