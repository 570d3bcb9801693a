"""Weights with which steps follow solutions."""

import math

import numpy as np
import pytest
import torch

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion._sampling.on_clock import OnClock
from sdekit_diffusion._sampling.weight_regression import FittingWeights, Path, Recording, _weights
from sdekit_diffusion._sampling.weighted_rule import WeightedRule

LAW = sd.GaussianMixture([1.0], [[0.0]], [0.3])


def test_paths_are_cubic_between_their_times():
    l = torch.linspace(-2, 3, 11, dtype=torch.float64)
    cubic = lambda l: torch.stack([l**3 - l, 2 * l**2 + 1], dim=-1)[:, None]  # noqa: E731
    times = torch.tensor([-2.0, -1.9, 0.31, 1.0, 2.99, 3.0], dtype=torch.float64)
    found = torch.stack(Path(l, list(cubic(l))).at(times))
    torch.testing.assert_close(found, cubic(times), rtol=1e-12, atol=1e-12)
    sine = Path(l, list(l.sin()[:, None, None]))  # of the four nearest times: error 9/16 h^4/24
    assert abs(float(sine.at(torch.tensor([0.75]))[0]) - np.sin(0.75)) < 0.6 * 0.5**4 / 24


def test_weights_are_those_of_a_combination_and_of_the_least_sum_of_errors():
    generator = torch.Generator().manual_seed(0)
    slopes = [torch.randn(40, 3, generator=generator) for _ in range(2)]
    change = 0.7 * slopes[0] - 0.2 * slopes[1]
    assert _weights(change, slopes) == pytest.approx([0.7, -0.2], abs=1e-6)
    change[0] += 100  # one sample of forty
    assert _weights(change, slopes) == pytest.approx([0.7, -0.2], abs=1e-2)
    plain = torch.linalg.lstsq(
        torch.stack(slopes, dim=-1).reshape(-1, 2), change.reshape(-1, 1)
    ).solution
    assert float((plain.flatten() - torch.tensor([0.7, -0.2])).abs().max()) > 0.1


def test_weights_of_equal_slopes_are_the_smallest():
    slope = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert _weights(slope, [slope, slope * (1 + 1e-7)]) == pytest.approx([0.5, 0.5], abs=1e-3)
    assert _weights(0 * slope, [slope]) == [0.0]
    assert _weights(slope, [0 * slope]) == [0.0]
    assert _weights(slope[:1, :1], [slope[:1, :1]]) == pytest.approx([1.0])


def test_weights_of_what_is_not_finite_are_not_numbers():
    slope = torch.tensor([[1.0], [float("nan")]])
    assert all(map(math.isnan, _weights(torch.ones(2, 1), [slope, slope])))
    assert all(map(math.isnan, _weights(slope, [torch.ones(2, 1)])))


@pytest.mark.parametrize("integrand", ["data", "noise", "velocity"])
def test_fitted_weights_follow_solutions(integrand):
    """Of a normal law in one dimension, where one value suffices."""
    settings = {"sde": "vp", "seed": 0, "save": "all", "return_solution": True}
    recording = Recording(sdekit.AdamsMoulton(2), integrand="velocity")
    exact = sd.sample(LAW, 16, steps=200, method=recording, grid="log_snr", **settings)
    (path,) = recording.paths
    assert len(path.u) == len(path.l) == 201
    assert path.u[0].shape == (16, 1)
    fitting = FittingWeights(integrand=integrand, path=path)
    x = sd.sample(LAW, 16, steps=4, method=fitting, grid="log_snr", **settings)
    assert [len(row) for row in fitting.fitted] == [1, 2, 3, 4]
    torch.testing.assert_close(x.xs, exact.xs[::50], rtol=1e-4, atol=1e-4)
    rule = OnClock(WeightedRule(tuple(fitting.fitted)), integrand=integrand)
    again = sd.sample(LAW, 16, steps=4, method=rule, grid="log_snr", sde="vp", seed=0)
    torch.testing.assert_close(again, x.x, rtol=1e-5, atol=1e-5)
    other = sd.sample(LAW, 16, sde="vp", seed=1, steps=4, method=rule, grid="log_snr")
    accurate = sd.sample(LAW, 16, sde="vp", seed=1, method="ode")
    torch.testing.assert_close(other, accurate, rtol=1e-3, atol=1e-3)
