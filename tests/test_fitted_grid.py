"""Grids that are fitted to a model: more accurate on other samples, for every method without
noise.
"""

import functools
import math

import numpy as np
import pytest
import torch

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion._models.recorded import FittedSampler
from sdekit_diffusion._sampling.fitted_grid import _near_data, fitted_from, solved

LAW = sd.GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64), [0.02, 0.05]
)


CORRECTED = sdekit.AdamsMoulton(3, self_starting=False, lower_final=True)


@functools.cache
def exact_samples():
    return sd.sample(LAW, 500, sde="vp", seed=9, method=sd.AdaptiveFlow(1e-7, 1e-7))


def mean_error(steps, grid, method):
    exact = exact_samples()
    x = sd.sample(LAW, 500, sde="vp", seed=9, steps=steps, grid=grid, method=method)
    return float((x - exact).square().mean(dim=1).sqrt().mean())


@pytest.mark.parametrize(
    ("method", "steps", "gain"),
    [
        ("default", 5, 0.6),
        (sd.OnClock(CORRECTED, integrand="velocity"), 5, 0.5),
        ("unipc", 6, 0.35),
        (sd.InTime(sdekit.Heun(), eta=0.0), 4, 0.5),
        ("unipc", 12, 0.5),
    ],
)
def test_other_samples_are_more_accurate(method, steps, gain):
    grid = sd.fitted_grid(LAW, steps, sde="vp", method=method)
    assert grid.count == steps
    errors = [mean_error(steps, kind, method) for kind in (None, grid)]
    assert errors[1] < gain * errors[0]


def test_a_fit_begins_from_the_own_grid_of_the_default_not_from_a_fitted_sampler():
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=8)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
    before = sd.fitted_grid(model, 3, n=8)
    settings = {"steps": 3, "seed": 0}
    own = sd.sample(model, 8, **settings)
    ends = (float(before.l[0]), float(before.l[-1]))
    l = tuple(torch.linspace(*ends, 4, dtype=torch.float64).tolist())
    model.samplers = {(0.0, 3): FittedSampler("UniPC(2), data", l)}
    assert not torch.equal(sd.sample(model, 8, **settings), own)
    assert torch.equal(sd.fitted_grid(model, 3, n=8).l, before.l)
    assert torch.equal(sd.fitted_grid(model, 3, n=8, method=sd.METHODS["default"]).l, before.l)


def test_the_ends_are_those_of_the_solve():
    grid = sd.fitted_grid(LAW, 3, n=16, sde="vp", end=0.1)
    vp = sd.VPSDE()
    assert float(grid.l[0]) == pytest.approx(float(vp.log_snr(1.0)), abs=1e-6)
    assert float(grid.l[-1]) == pytest.approx(-math.log(0.1 * LAW.data_std), abs=1e-6)


def test_samples_may_be_single_numbers():
    law = sd.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1])
    assert law.sample(2).shape == (2,)
    assert sd.fitted_grid(law, 2, n=16, sde="vp").count == 2


def test_the_grid_of_the_method_is_kept_where_it_is_more_accurate(monkeypatch):
    first = float(sd.VPSDE().log_snr(1.0))
    worse = sd.Given(torch.tensor([first, 5.0, 5.5]))
    monkeypatch.setattr(
        "sdekit_diffusion._sampling.fitted_grid.fitted_from", lambda l, method, errors: worse
    )
    end = math.exp(-5.5) / LAW.data_std
    grid = sd.fitted_grid(LAW, 2, n=64, sde="vp", method="ddim", end=end)
    assert float(grid.l[1]) == pytest.approx(0.5 * (first + 5.5), abs=1e-3)


def test_a_model_with_labels_is_given_as_many_as_samples():
    net = sd.nets.MLP(shape=(2,), width=8, classes=2)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
    labels = torch.tensor([0, 1, 1])
    assert sd.fitted_grid(model.given(label=labels), 2, n=3, batch_size=2).count == 2


@pytest.mark.parametrize("method", ["sde", sd.DDIM(1.0), "edm", "pc"])
@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_methods_with_noise_are_refused(method):
    with pytest.raises(ValueError, match="this method has noise: choose one without"):
        sd.fitted_grid(LAW, 4, n=4, sde="vp", method=method)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be a positive integer; not 0"),
        ({"steps": 2.5}, TypeError, r"steps must be a positive integer; not 2\.5"),
        ({"steps": 2, "n": 0}, ValueError, "n must be a positive integer; not 0"),
        ({"steps": 2, "method": "ode"}, ValueError, "an adaptive method chooses its own steps"),
    ],
)
def test_what_cannot_be_fitted_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        sd.fitted_grid(LAW, sde="vp", **settings)


@pytest.mark.parametrize(
    ("spread", "fourth", "far"),
    [
        (1.0, 10.5, True),
        (1.0, 9.5, False),
        (0.0, 9.5, False),  # ten times the median, but not ten standard deviations
        (0.0, 10.5, True),
        (3.0, 31.0, True),
        (3.0, 29.0, False),  # ten standard deviations, but not ten times the median
    ],
)
def test_solutions_far_from_the_others_and_from_the_data_are_left_out(spread, fourth, far):
    law = sd.GaussianMixture([1.0], [[5.0, 5.0]], [2.0])
    distance = spread * torch.tensor([-1.0, 1.1, 1.0, 0.0, 0.9, 1.0, -1.0, 0.8])
    distance[3] = fourth
    exact = 5 + math.sqrt(2) * distance[:, None].repeat(1, 2)
    if far:
        with pytest.warns(UserWarning, match=f"1 of 8 solutions .* up to {fourth:g} standard"):
            near = _near_data(law, exact)
    else:
        near = _near_data(law, exact)
    assert near.tolist() == [True, True, True, not far, True, True, True, True]


GRID = sd.Given(torch.linspace(float(sd.VPSDE().log_snr(1.0)), math.log(1e3), 5))


class Leaving(sd.AbstractModel):
    """A normal law, but for large u, where the flow ends at 40."""

    shape = (1,)
    sde = None
    data_std = 1.0

    def __init__(self):
        self.counts = []

    def predict_data(self, l, u):
        self.counts.append(len(u))
        a = torch.as_tensor(sd.signal_scale(l)).reshape(-1, 1)
        return torch.where(u.abs() > 2, 40 * u.sign(), a * u)

    def rows(self, index):
        assert index.tolist() == sorted(index.tolist())
        return self


def test_what_is_left_out_is_not_solved_for():
    """So that no error of it ends a fit, and the others have their own x_T and conditions."""
    model = Leaving()
    options = {"sde": sd.VPSDE(), "seed": 3}
    with pytest.warns(UserWarning, match="of 64 solutions"):
        errors = solved(model, 64, 8, options).errors
    model.counts.clear()
    found = errors("ddim", GRID)
    assert 48 < len(found) < 64
    assert set(model.counts) == {len(found)}
    settings = {"first": 8, **options}
    exact = sd.sample(model, 64, method=sd.AdaptiveFlow(1e-6, 1e-6), **settings)
    x = sd.sample(model, 64, method="ddim", grid=GRID, **settings)
    near = exact.abs()[:, 0] < 20
    assert torch.equal(found.float(), (x - exact)[near])


def test_conditions_of_what_is_left_out_are_too():
    class Shifted(Leaving):
        def __init__(self, shift):
            super().__init__()
            self.shift = shift

        def entries(self):
            return {"shift": self.shift}

        def rows(self, index):
            return Shifted(self.shift[index])

        def predict_data(self, l, u):
            return super().predict_data(l, u) + 0 * self.shift[:, None]

    model = Shifted(torch.zeros(64))
    with pytest.warns(UserWarning, match="of 64 solutions"):
        errors = solved(model, 64, 0, {"sde": sd.VPSDE(), "seed": 3}).errors
    assert len(errors("ddim", GRID)) < 64


def test_a_flow_that_leaves_the_data_is_warned_of_where_it_is_fitted(recwarn):
    sd.fitted_grid(Leaving(), 2, n=64, sde="vp")
    assert any("are left out" in str(one.message) and one.filename == __file__ for one in recwarn)


@pytest.mark.parametrize(("steps", "differences", "trials"), [(10, 6, 24), (11, 2, 18)])
def test_fits_of_many_steps_take_differences_less_often(steps, differences, trials):
    calls = []

    def errors(method, grid):
        calls.append(grid)
        return (grid.l[1:-1] - torch.arange(1, steps) ** 1.3)[None].repeat(4, 1)

    l = torch.linspace(0, steps**1.3, steps + 1, dtype=torch.float64)
    fitted = fitted_from(l, "default", errors)
    assert len(calls) == 1 + differences * steps + trials
    before, after = (float(errors("default", grid).norm()) for grid in (sd.Given(l), fitted))
    assert after < 0.02 * before


def test_residuals_are_infinite_where_states_are_not_finite(monkeypatch):
    def errors(method, grid):
        if float(grid.l[1]) > 0.6:
            raise sdekit.NotFiniteError(1, 0.0, [0], 4)
        return torch.ones(4, 1)

    def tried(function, x, value, **settings):
        assert value == pytest.approx(np.ones(4))
        assert np.isposinf(function(np.array([1.0, 0.0]))).all()
        assert function(np.array([0.0, 1.0])) == pytest.approx(np.ones(4))
        return x

    monkeypatch.setattr("sdekit_diffusion._sampling.fitted_grid.least_squares", tried)
    l = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(fitted_from(l, "default", errors).l, l)


@pytest.mark.parametrize("steps", [6, 12])
def test_trials_that_are_not_finite_are_refused(steps):
    """And so is a fit that begins with one."""
    wanted = torch.linspace(0, 3, steps + 1, dtype=torch.float64) ** 2
    refused = []

    def errors(method, grid):
        widths = grid.l.diff()
        if float(widths.max() / widths.min()) > 8:
            refused.append(grid)
            raise sdekit.NotFiniteError(1, 0.0, [0], 4)
        return (grid.l - wanted)[None, 1:-1].repeat(4, 1)

    l = torch.linspace(0, 9, steps + 1, dtype=torch.float64)
    fitted = fitted_from(l, "default", errors)
    assert refused
    before, after = (float(errors("default", grid).norm()) for grid in (sd.Given(l), fitted))
    assert after < 0.6 * before
    with pytest.raises(sdekit.NotFiniteError):
        fitted_from(wanted, "default", errors)
