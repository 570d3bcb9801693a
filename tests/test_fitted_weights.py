"""Samplers with weights of their own: more accurate than those of rules, fitted to one batch, and
left out where states are not finite.
"""

import math
from types import SimpleNamespace

import pytest
import torch

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion._models.recorded import FittedSampler
from sdekit_diffusion._sampling import fitted_weights
from sdekit_diffusion._sampling.fitted_grid import solved
from sdekit_diffusion._sampling.fitted_samplers import grid_of, method_of
from sdekit_diffusion._sampling.weight_regression import Recording

LAW = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2])
OPTIONS = {"sde": sd.VPSDE(), "seed": 0}
FIRST = float(sd.VPSDE().log_snr(1.0))
LAST = -math.log(1e-3 * LAW.data_std)


def grids(*middles):
    return [torch.tensor([FIRST, middle - 2, middle, LAST]).double() for middle in middles]


def mean_error(sampler, own):
    return float(own.errors(method_of(sampler), grid_of(sampler)).norm(dim=1).mean())


def test_weights_are_fitted_along_the_solutions_and_then_to_their_ends():
    own = solved(LAW, 128, 0, OPTIONS)
    found = fitted_weights.weighted_samplers(own, grids(-1.0, 1.0, 2.0))
    assert len(found) == 4
    errors = [mean_error(sampler, own) for sampler in found]
    assert errors[0] <= errors[1]
    assert errors[2] < 0.95 * errors[0]
    assert errors[3] < errors[1]
    others = solved(LAW, 128, 128, OPTIONS)
    best = min(
        float(others.errors(method, sd.Given(l)).norm(dim=1).mean())
        for method in ("default", "unipc", "ddim")
        for l in grids(-1.0, 1.0, 2.0)
    )
    assert mean_error(found[2], others) < 0.5 * best
    for sampler in found:
        assert [len(row) for row in sampler.weights] == [1, 2, 3]
        assert sampler.rule.startswith("weights, ")
    assert found[2].l[0] == found[0].l[0]
    assert found[2].l[1:3] != found[0].l[1:3]
    assert found[2].l[3] == found[0].l[3]


def test_steps_follow_the_solutions_of_one_batch():
    own = solved(LAW, 8, 4, {**OPTIONS, "batch_size": 3})
    first = fitted_weights._in_one_batch(own)
    assert torch.equal(first.exact, own.exact[:3])
    assert torch.equal(first.samples("ddim", sd.Karras()), own.samples("ddim", sd.Karras())[:3])
    start = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    given = own._replace(options={**own.options, "x_T": start})
    assert torch.equal(fitted_weights._in_one_batch(given).options["x_T"], start[:3])
    for size in (None, 8):
        whole = own._replace(options={**own.options, "batch_size": size})
        assert fitted_weights._in_one_batch(whole) is whole
    labelled = own._replace(model=SimpleNamespace(rows=lambda index: index.tolist()))
    assert fitted_weights._in_one_batch(labelled).model == [0, 1, 2]


def test_ends_are_fitted_to_all_samples(monkeypatch):
    """And steps to those of one batch."""
    sizes = {"_path": [], "_along": [], "_mean_error": [], "_fitted": []}
    for name, found in sizes.items():
        original = getattr(fitted_weights, name)

        def recorded(*arguments, original=original, found=found):
            (own,) = [one for one in arguments if hasattr(one, "exact")]
            found.append(len(own.exact))
            return original(*arguments)

        monkeypatch.setattr(fitted_weights, name, recorded)
    own = solved(LAW, 6, 0, {**OPTIONS, "batch_size": 4})
    fitted_weights.weighted_samplers(own, grids(0.0))
    assert sizes == {"_path": [4], "_along": [4] * 3, "_mean_error": [6] * 3, "_fitted": [6] * 2}


def test_solutions_that_are_not_finite_are_left_out(monkeypatch):
    own = solved(LAW, 8, 0, OPTIONS)

    def along(path, own, rule, l):
        if rule != "weights, noise" or float(l[2]) > 0:
            raise sdekit.NotFiniteError(1, 0.0, [0], 8)
        return FittedSampler(rule, tuple(l.tolist()), ((1.0,), (1.0, 0.0), (1.0, 0.0, 0.0)))

    monkeypatch.setattr(fitted_weights, "_along", along)
    monkeypatch.setattr(fitted_weights, "_fitted", lambda sampler, own: sampler)
    found = fitted_weights.weighted_samplers(own, grids(-1.0, 1.0))
    assert [sampler.rule for sampler in found] == ["weights, noise"] * 2

    def path(own, l):
        raise sdekit.NotFiniteError(1, 0.0, [0], 8)

    monkeypatch.setattr(fitted_weights, "_path", path)
    assert fitted_weights.weighted_samplers(own, grids(-1.0)) == []


def test_the_path_is_that_of_the_solutions():
    own = solved(LAW, 8, 0, OPTIONS)
    path = fitted_weights._path(own, grids(0.0)[0])
    finer = Recording(sdekit.AdamsMoulton(3), integrand="velocity")
    times = torch.linspace(FIRST, LAST, 961, dtype=torch.float64)
    sd.sample(LAW, 8, method=finer, grid=sd.Given(times), **OPTIONS)
    expected = finer.paths[0]
    torch.testing.assert_close(path.l, expected.l[::4], rtol=0, atol=1e-6)
    torch.testing.assert_close(path.u, expected.u[::4], rtol=1e-3, atol=1e-3)
    assert len(path.u) == 241
    assert path.u[0].shape == (8, 2)


def test_a_sampler_with_weights_is_taken_saved_and_loaded(tmp_path):
    net = sd.nets.MLP(shape=(2,), width=8)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
    end = 1e-3
    fitted = FittedSampler("weights, noise", (FIRST, 0.5, -math.log(end)), ((0.9,), (1.2, -0.2)))
    model.samplers = {(0.0, 2): fitted}
    x = sd.sample(model, 4, steps=2, seed=0, end=end)
    by_hand = sd.sample(model, 4, seed=0, method=method_of(fitted), grid=grid_of(fitted), end=end)
    assert torch.equal(x, by_hand)
    assert not torch.equal(x, sd.sample(model, 4, steps=2, seed=0, end=end, grid="focused"))
    sd.save(model, tmp_path / "model")
    loaded = sd.load(tmp_path / "model")
    assert loaded.samplers == {(0.0, 2): fitted}
    assert isinstance(loaded.samplers[0.0, 2].weights[1], tuple)
    assert torch.equal(sd.sample(loaded, 4, steps=2, seed=0, end=end), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": ((1.0,),)}, "has 2 steps, and weights for 1: fit it again with fit_sampler"),
        ({"weights": ()}, "has 2 steps, and weights for 0: fit it again"),
        ({"weights": ((1.0,), ("a",))}, r"is not valid, the weights of step 2 .*: fit it again"),
        ({"rule": "UniPC(2), data"}, r"rule 'UniPC\(2\), data' with weights of its own, which"),
        (
            {"rule": "weights"},
            "rule 'weights' with weights of its own, which this version does not",
        ),
    ],
)
def test_samplers_that_are_not_valid_are_refused(change, message):
    fitted = FittedSampler("weights, data", (FIRST, 0.5, LAST), ((0.9,), (1.2, -0.2)))
    method_of(fitted)
    with pytest.raises(ValueError, match=message):
        method_of(fitted._replace(**change))


class OnlyNearSolutions(torch.nn.Module):
    """A network without finite values far from the solutions of the flow."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.allowed = True

    def forward(self, x, t):
        vp = sd.VPSDE()
        noise = -LAW.score(t, x, vp) * vp.sigma(t)[:, None] * self.weight
        return noise if self.allowed else noise * math.nan


def test_values_that_are_not_finite_leave_a_sampler_out():
    net = OnlyNearSolutions()
    model = sd.ScoreModel(net, "vp", "noise", shape=(2,), data_std=LAW.data_std)
    own = solved(model, 8, 0, OPTIONS)
    path = fitted_weights._path(own, grids(0.0)[0])
    fitted_weights._along(path, own, "weights, data", grids(0.0)[0])
    net.allowed = False
    with pytest.raises(sdekit.NotFiniteError):
        fitted_weights._along(path, own, "weights, data", grids(0.0)[0])
