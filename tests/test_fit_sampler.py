"""Samplers that are fitted to a network: more accurate on other samples, taken by the default for
what they were fitted for only, stored with the network, and removed when it is trained.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion._models.checkpoint import read_config
from sdekit_diffusion._models.recorded import FittedSampler
from sdekit_diffusion._sampling import fit_sampler as fitting
from sdekit_diffusion._sampling.default import FITTED_RULES

LAWS = [
    sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2]),
    sd.GaussianMixture([1.0], [[1.0, 0.5]], [0.2]),
]


class Exact(nn.Module):
    """The noise of a mixture, or with label 1 that of one of its modes."""

    null = {"label": 0.0}

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, t, label=None):
        vp = sd.VPSDE()
        noise = [-law.score(t, x, vp) * vp.sigma(t)[:, None] for law in LAWS]
        given = torch.zeros(len(x)) if label is None else label
        return torch.where(given[:, None] > 0, noise[1], noise[0]) * self.weight


def network():
    return sd.ScoreModel(Exact(), "vp", "noise", shape=(2,), data_std=LAWS[0].data_std)


def mean_error(model, steps, n=300, **options):
    exact = sd.sample(model, n, seed=9, method=sd.AdaptiveFlow(1e-6, 1e-6))
    x = sd.sample(model, n, seed=9, steps=steps, **options)
    return float((x - exact).square().mean(dim=1).sqrt().mean())


def test_other_samples_are_more_accurate_and_ratios_are_those_of_errors():
    model = network()
    ratios = sd.fit_sampler(model, (5, 12), n=64)
    assert set(ratios) == {5, 12}
    assert set(model.samplers) == {(0.0, 5), (0.0, 12)}
    for steps in ratios:
        found = mean_error(model, steps) / mean_error(model, steps, grid="focused")
        assert found < 0.75
        assert found == pytest.approx(ratios[steps], rel=0.25)
    fitted = model.samplers[0.0, 12]
    integrand, rule = FITTED_RULES[fitted.rule]
    grid = sd.Given(torch.tensor(fitted.l, dtype=torch.float64))
    method = sd.OnClock(rule, integrand=integrand, grid=grid)
    by_hand = sd.sample(model, 4, method=method, seed=0)
    assert torch.equal(sd.sample(model, 4, steps=12, seed=0), by_hand)


def test_each_guidance_has_a_sampler_of_its_own():
    model = network()
    labels = torch.arange(16) % 2
    given = model.given(label=labels)
    guided = sd.Guided(given, 2.0)
    before = [sd.sample(one, 16, steps=2, seed=0) for one in (model, given, guided)]
    sd.fit_sampler(guided, [2], n=16)
    assert set(model.samplers) == {(2.0, 2)}
    after = [sd.sample(one, 16, steps=2, seed=0) for one in (model, given, guided)]
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, True, False]
    sd.fit_sampler(given, [2], n=16)
    sd.fit_sampler(model.unconditional(), [2], n=16)
    assert set(model.samplers) == {(2.0, 2), (1.0, 2), (0.0, 2)}


def test_a_fit_begins_from_the_default_and_replaces_the_sampler_of_before():
    model = network()
    model.samplers = {(0.0, 3): FittedSampler("UniPC(2), data", (-4.0, 0.0, 1.0, 2.0))}
    kept = (2.0, 3), FittedSampler("UniPC(2), data", (-4.0, 0.0, 1.0, 2.0))
    model.samplers = {**model.samplers, kept[0]: kept[1]}
    ratios = [sd.fit_sampler(model, [3], n=32), sd.fit_sampler(model, [3], n=32)]
    assert ratios[0] == ratios[1]
    assert model.samplers[kept[0]] == kept[1]


def test_nothing_is_recorded_that_is_not_more_accurate_by_two_standard_errors(monkeypatch):
    model = network()
    old = FittedSampler("UniPC(3), data", (-1.0, 0.0, 1.0, 2.0, 3.0))
    model.samplers = {(2.0, 4): old, (0.0, 4): old}
    own = fitting._points(model, 8, 4, "focused", {})
    name = "UniPC(2), data"
    firsts = []
    one = FittedSampler(name, tuple(own.tolist()))
    monkeypatch.setattr(fitting, "_candidates", lambda starts, errors: [one])
    monkeypatch.setattr(fitting, "weighted_samplers", lambda own, grids: [])

    def errors_are(*default):
        """With the recorded sampler they are nine tenths of these."""

        def solved(model, n, first, options, report=None):
            firsts.append(first)
            found = torch.tensor(default)[:, None]

            def errors(method, grid):
                return found if method == "default" else 0.9 * found

            return SimpleNamespace(errors=errors)

        monkeypatch.setattr(fitting, "solved", solved)

    errors_are(1.0, 3.0)  # the gain has mean 0.2 and standard error 0.1
    assert sd.fit_sampler(model, [4], n=2) == {4: 1.0}
    assert list(model.samplers) == [(2.0, 4)]
    assert firsts == [0, 2]
    errors_are(1.0, 2.9)
    assert sd.fit_sampler(model, [4], n=2)[4] == pytest.approx(0.9)
    assert model.samplers[0.0, 4].rule == name
    assert list(model.samplers) == [(2.0, 4), (0.0, 4)]


def test_rules_whose_states_are_not_finite_are_left_out(monkeypatch):
    failing = "UniPC(2), data"
    l = torch.linspace(-4, 6, 3)

    def errors(method, grid):
        if method.solver == FITTED_RULES[failing][1]:
            raise sdekit.NotFiniteError(1, 0.0, [0], 4)
        return torch.ones(4, 1) * (1 + (method.integrand == "data") + (float(grid.l[1]) - 2) ** 2)

    monkeypatch.setattr(fitting, "fitted_from", lambda l, *_: sd.Given(l))
    best = fitting._candidates([l, l + 1], errors)[0]
    assert best.l == tuple((l + 1).tolist())
    others = [rule for rule, (integrand, _) in FITTED_RULES.items() if integrand != "data"]
    assert best.rule == others[0]
    assert fitting._errors(FittedSampler(failing, tuple(l.tolist())), errors).tolist() == [math.inf]


def test_samplers_are_saved_and_training_removes_them(tmp_path):
    net = sd.nets.MLP(shape=(2,), width=8)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
    fitted = FittedSampler("LimitedUniPC, data", (-5.0, 0.25, 6.5))
    model.samplers = {(1.5, 2): fitted}
    sd.save(model, tmp_path / "model")
    loaded = sd.load(tmp_path / "model")
    assert loaded.samplers == {(1.5, 2): fitted}
    assert isinstance(loaded.samplers[1.5, 2].l, tuple)
    sd.fit(loaded, torch.randn(64, 2), sd.Recipe(steps=1, batch_size=8), progress=False)
    assert loaded.samplers == {}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n": 1}, ValueError, "n must be 2 or more: one sample has no standard error"),
        ({"steps": [0]}, ValueError, "steps must be a positive integer; not 0"),
        ({"steps": [5, 2.5]}, TypeError, r"steps must be a positive integer; not 2\.5"),
        ({"steps": 2.5}, TypeError, r"steps must be a positive integer; not 2\.5"),
        ({"steps": []}, TypeError, r"steps must be a positive integer; not \[\]"),
        ({"n": 0}, ValueError, "n must be a positive integer; not 0"),
    ],
)
def test_numbers_that_are_not_whole_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        sd.fit_sampler(network(), **settings)


@pytest.mark.parametrize(
    "model",
    [
        LAWS[0],
        lambda x, t: -x,
        sd.Guided(network().given(label=torch.ones(4)), 2.0, rescale=0.5),
        sd.Guided(network().given(label=torch.ones(4)), 2.0, interval=(0.1, 1.0)),
        sd.Guided(network().given(label=torch.ones(4)), 2.0, by=network()),
    ],
)
def test_models_without_a_network_of_their_own_are_refused(model):
    with pytest.raises(TypeError, match="a sampler is fitted to a ScoreModel"):
        sd.fit_sampler(model)


def test_the_best_pairs_of_rules_and_grids_are_fitted(monkeypatch):
    starts = [torch.tensor([-4.0, middle, 6.0]) for middle in (0.0, 1.0, 2.0)]

    def errors(method, grid):
        miss = abs(float(grid.l[1]) - 2.2)
        return torch.full((4, 1), miss + 5 * (not isinstance(method.solver, sdekit.DEIS)))

    def fitted_from(l, method, errors):
        if float(l[1]) == 1.0:
            raise sdekit.NotFiniteError(1, 0.0, [0], 4)
        return sd.Given(l + torch.tensor([0.0, 0.25, 0.0]))

    monkeypatch.setattr(fitting, "fitted_from", fitted_from)
    found = fitting._candidates(starts, errors)
    assert {one.rule for one in found} == {"DEIS(3), noise"}
    assert [one.l[1] for one in found] == [2.0, 1.0, 0.0, 2.25, 0.25]


def test_of_the_candidates_the_best_for_other_samples_is_recorded(monkeypatch):
    model = network()
    found = [FittedSampler("UniPC(2), data", (-4.0, middle, 6.0)) for middle in (0.0, 1.0, 2.0)]
    monkeypatch.setattr(fitting, "_candidates", lambda starts, errors: found)

    def solved(model, n, first, options, report=None):
        wanted = 1.0 if first else 2.0

        def errors(method, grid):
            size = 10.0 if method == "default" else 0.5 + abs(float(grid.l[1]) - wanted)
            return torch.full((n, 1), size)

        return SimpleNamespace(errors=errors)

    monkeypatch.setattr(fitting, "solved", solved)
    monkeypatch.setattr(fitting, "weighted_samplers", lambda own, grids: [])
    assert sd.fit_sampler(model, [2], n=4)[2] == pytest.approx(0.05)
    assert model.samplers[0.0, 2] == found[1]


def test_grids_of_the_default_and_four_others_are_tried(monkeypatch):
    model = network()
    seen = []

    def candidates(starts, errors):
        seen.extend(starts)
        return [FittedSampler("UniPC(2), data", tuple(starts[0].tolist()))]

    monkeypatch.setattr(fitting, "_candidates", candidates)
    sd.fit_sampler(model, [3], n=4)
    grids = ["focused", "quadratic", "time", "karras", "log_snr"]
    expected = [
        sd.sample(model, 1, steps=3, grid=grid, return_solution=True, save="all").ts
        for grid in grids
    ]
    assert len(seen) == 5
    for l, ts in zip(seen, expected, strict=True):
        assert torch.allclose(l, sd.VPSDE().log_snr(ts))


def test_a_number_of_steps_is_fitted_once_and_may_be_alone():
    found = [sd.fit_sampler(network(), steps, n=8) for steps in (2, [2, 2], np.int64(2))]
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == [2]


def test_a_fit_that_fails_leaves_the_samplers_of_before():
    model = network()
    before = {(0.0, 2): FittedSampler("UniPC(2), data", (-4.0, 0.0, 2.0))}
    model.samplers = before
    with pytest.raises(ValueError, match="end"):
        sd.fit_sampler(model, 2, n=8, end=-1.0)
    assert model.samplers == before


def test_a_default_that_is_not_finite_is_replaced():
    finite = torch.ones(4)
    infinite = torch.tensor([math.inf])
    assert fitting._is_less(finite, infinite)
    assert not fitting._is_less(infinite, finite)
    assert not fitting._is_less(infinite, infinite)
    assert not fitting._is_less(finite[:1], 2 * finite[:1])  # one sample, without a warning


def test_a_student_is_refused():
    model = network()
    model.trained_levels = (0.5, -1.0)
    with pytest.raises(ValueError, match="fit a sampler to its teacher"):
        sd.fit_sampler(model)


def test_other_weights_have_no_sampler_of_these():
    """Loaded into the model, or into a module with it."""
    model = network()
    for module in (model, nn.ModuleList([model])):
        model.samplers = {(0.0, 4): FittedSampler("UniPC(2), data", (0.0, 1.0))}
        module.load_state_dict({name: 2 * value for name, value in module.state_dict().items()})
        assert not model.samplers
    assert float(model.net.weight.detach()) == 4.0


def test_another_network_has_no_sampler_of_this_one():
    net = sd.nets.MLP(shape=(2,), width=8)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
    model.samplers = {(0.0, 2): FittedSampler("UniPC(2), data", (-5.0, 0.25, 6.5))}
    compiled = model.with_network(torch.compile(net, backend="eager"))
    assert compiled.samplers == model.samplers != {}
    assert model.with_network(sd.nets.MLP(shape=(2,), width=8)).samplers == {}
    assert model.with_network(lambda x, t: x).samplers == {}


def test_a_complete_run_that_is_resumed_keeps_its_sampler(tmp_path):
    """It is not trained again."""
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    def fitted(resume):
        torch.manual_seed(0)
        model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", "velocity", shape=(2,))
        recipe = sd.Recipe(steps=2, batch_size=8)
        sd.fit(model, data, recipe, folder=tmp_path / "run", resume=resume, progress=False)
        return model

    model = fitted(resume=False)
    samplers = {(0.0, 2): FittedSampler("UniPC(2), data", (-5.0, 0.25, 6.5))}
    model.samplers = samplers
    sd.save(model, tmp_path / "run", read_config(tmp_path / "run")["notes"])
    assert fitted(resume=True).samplers == samplers
    assert sd.load(tmp_path / "run").samplers == samplers


def test_another_average_of_the_weights_has_no_sampler_of_these(tmp_path):
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", "velocity", shape=(2,))
    recipe = sd.Recipe(steps=20, batch_size=8, widths=(0.05, 0.1))
    folder = tmp_path / "run"
    sd.fit(model, data, recipe, folder=folder, log=sd.Log(snapshots=5), progress=False)
    model.samplers = {(0.0, 2): FittedSampler("UniPC(2), data", (-5.0, 0.25, 6.5))}
    sd.save(model, folder, read_config(folder)["notes"])
    assert sd.load(folder).samplers == model.samplers
    assert sd.load(folder, width=0.07).samplers == sd.load(folder, ema=0.999).samplers == {}


def test_weights_are_fitted_up_to_ten_steps_also_on_the_fitted_grids(monkeypatch):
    seen = []

    def candidates(starts, errors):
        """Three pairs, and one of them with its grid fitted."""
        grids = (*starts[:3], starts[0] + 0.5)
        return [FittedSampler("UniPC(2), data", tuple(l.tolist())) for l in grids]

    def weighted(own, grids):
        seen.append([grid.tolist() for grid in grids])
        return []

    def solved(model, n, first, options, report=None):
        return SimpleNamespace(errors=lambda method, grid: torch.ones(n, 1))

    monkeypatch.setattr(fitting, "_candidates", candidates)
    monkeypatch.setattr(fitting, "weighted_samplers", weighted)
    monkeypatch.setattr(fitting, "solved", solved)
    sd.fit_sampler(network(), [10, 11], n=4)
    (grids,) = seen
    assert [len(grid) for grid in grids] == [11] * 6
    assert grids[5] == pytest.approx([l + 0.5 for l in grids[0]])


def test_a_bar_counts_the_solves_and_its_total_is_about_theirs(monkeypatch):
    bars = []

    class Bar(fitting.tqdm):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.updates = []
            bars.append(self)

        def update(self, n=1):
            self.updates.append(n)
            return super().update(n)

    monkeypatch.setattr(fitting, "tqdm", Bar)
    sd.fit_sampler(network(), [2], n=4)
    assert bars[0].disable
    sd.fit_sampler(network(), [2, 11], n=4, progress=True)
    bar = bars[1]
    assert bar.n == bar.total == 38 * 9 + 6 * 34
    left = sorted(bar.updates)[-2:]  # what the fits of both numbers of steps did not take
    assert bar.updates.count(1) >= len(bar.updates) - 2
    assert sum(left) < 0.25 * bar.total
