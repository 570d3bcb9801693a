"""Which calls of `sample` take the sampler that was fitted to the network."""

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion._models.recorded import FittedSampler
from sdekit_diffusion._sampling.fitted_samplers import guidance_of

STD = 2.0
DEFAULT = sd.METHODS["default"]
END = 0.05 * STD  # sigma / alpha


def network(**conditions):
    net = sd.nets.MLP(shape=(2,), width=8, classes=3)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=STD)
    start = float(sd.VPSDE().log_snr(1.0))
    model.samplers = {
        (w, 2): FittedSampler("UniPC(2), data", (start, 0.5 * w, -math.log(END)))
        for w in (0.0, 1.0, 3.0)
    }
    return model.given(**conditions) if conditions else model


def middle(model, **options):
    """l between two steps down to the end of the fit."""
    options = {"steps": 2, "end": 0.05, "seed": 0, **options}
    solution = sd.sample(model, 4, save="all", return_solution=True, **options)
    return float(model.under(None).log_snr(solution.ts[1]))


def test_each_guidance_takes_its_own():
    model = network()
    given = model.given(label=torch.zeros(4, dtype=torch.long))
    assert middle(model) == pytest.approx(0.0, abs=1e-6)
    assert middle(model.unconditional()) == pytest.approx(0.0, abs=1e-6)
    assert middle(given) == pytest.approx(0.5, abs=1e-6)
    assert middle(model.given(label=1)) == pytest.approx(0.5, abs=1e-6)
    assert middle(sd.Guided(given, 3)) == pytest.approx(1.5, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"grid": "focused"},
        {"steps": 3},
        {"end": 0.052},
        {"method": "unipc"},
        {"method": sd.OnClock(integrand="velocity")},
        {"method": sd.OnClock(sdekit.AdamsMoulton(2), integrand="model")},
        {"method": sd.OnClock(integrand="model", grid=sd.Karras())},
        {"method": replace(DEFAULT, grid=replace(DEFAULT.grid, share=0.5))},
        {"sde": sd.VPSDE(beta_max=10.0)},
        {"start": sd.Noised(torch.zeros(4, 2), level=0.5)},
    ],
    ids=str,
)
def test_other_calls_do_not(options):
    assert abs(middle(network(), **options)) > 1e-3


def test_the_rule_is_the_one_that_was_fitted():
    model = network()
    grid = sd.Given(torch.tensor(model.samplers[0.0, 2].l, dtype=torch.float64))
    method = sd.OnClock(sdekit.UniPC(2, lower_final=True), grid=grid)
    options = {"end": 0.05, "seed": 0}
    by_hand = sd.sample(model, 4, method=method, **options)
    assert torch.equal(sd.sample(model, 4, steps=2, **options), by_hand)
    stepped = sd.stepper(model, 4, steps=2, **options).next().next()
    assert float(model.under(None).log_snr(stepped.t)) == pytest.approx(-math.log(END), abs=1e-6)
    assert torch.allclose(stepped.x, model.under(None).alpha(stepped.t) * by_hand, atol=1e-5)
    sent = pickle.loads(pickle.dumps(DEFAULT))  # noqa: S301 - as to another process
    for one in ("default", DEFAULT, copy.deepcopy(DEFAULT), sent):
        assert middle(model, method=one) == pytest.approx(0.0, abs=1e-6)


def test_a_rule_of_another_version_is_an_error():
    model = network()
    model.samplers = {(0.0, 2): model.samplers[0.0, 2]._replace(rule="UniPC(9)")}
    with pytest.raises(ValueError, match=r"rule 'UniPC\(9\)', which this version does not know"):
        middle(model)


def test_guidance_is_a_number_for_one_network_only():
    model = network()
    given = model.given(label=torch.zeros(4, dtype=torch.long))
    assert [guidance_of(one) for one in (model, model.unconditional(), given)] == [0, 0, 1]
    assert guidance_of(model.given(label=math.nan)) == 0
    for label in (math.nan, torch.full((4,), math.nan), torch.full((4,), 3)):
        unknown = network()
        unknown.null = {"label": 3}
        assert guidance_of(unknown.given(label=label)) == 0
    assert guidance_of(unknown.given(label=torch.tensor([3, 3, 3, 0]))) == 1
    others = [
        sd.Guided(given, 2.0, by=model.given(label=1)),
        sd.Guided(given, 2.0, by=network()),
        sd.Guided(given, 2.0, rescale=0.1),
        sd.Guided(given, 2.0, interval=(0.1, 1.0)),
        sd.Guided(sd.Guided(given, 2.0), 2.0, by=model),
        sd.GaussianMixture([1.0], [[0.0]], [1.0]),
    ]
    assert [guidance_of(one) for one in others] == [None] * 6
