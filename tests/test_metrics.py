"""Distances between sets of samples, against closed forms, brute force and scipy."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from scipy.spatial.distance import cdist

from sdekit_diffusion import metrics
from sdekit_diffusion.metrics import energy_distance, frechet, nearest, sliced_wasserstein

SETS = [frechet, energy_distance, sliced_wasserstein]


def gaussian(mean, covariance, n=50, seed=0):
    """A set of samples whose empirical mean and covariance are exactly those given."""
    d = len(mean)
    x = np.random.default_rng(seed).standard_normal((n, d))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T).reshape(d, d))).T
    return x @ scipy.linalg.sqrtm(covariance).real.T + mean


def test_frechet_of_commuting_covariances():
    a = gaussian(np.array([1.0, 2.0]), np.diag([4.0, 9.0]), n=40)
    b = gaussian(np.array([0.0, 4.0]), np.diag([1.0, 25.0]), n=60, seed=1)
    assert frechet(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 5) ** 2, rel=1e-10)


def test_frechet_of_general_covariances():
    rng = np.random.default_rng(0)
    first, second = (m @ m.T for m in rng.standard_normal((2, 5, 5)))
    a, b = gaussian(np.zeros(5), first), gaussian(np.ones(5), second, seed=1)
    expected = 5 + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_singular_covariances():
    """Fewer samples than features: the closed form of two orthogonal segments, and zero for equal sets."""
    a, b = np.zeros((3, 6)), np.zeros((3, 6))
    a[:, 0], b[:, 5] = [-2, 0, 2], [-3, 0, 3]
    assert frechet(a, b) == pytest.approx(4 + 9)
    few = np.random.default_rng(0).standard_normal((4, 30))
    assert frechet(few, few) == pytest.approx(0, abs=1e-12)
    assert frechet(few, few + 1e-6) == pytest.approx(30e-12, rel=1e-2, abs=1e-13)


@pytest.mark.parametrize("block", [metrics._BLOCK, 64])
def test_nearest_agrees_with_brute_force(monkeypatch, block):
    monkeypatch.setattr(metrics, "_BLOCK", block)
    rng = np.random.default_rng(0)
    x, reference = rng.standard_normal((37, 1, 2, 3)) + 1e3, rng.standard_normal((53, 1, 2, 3)) + 1e3
    x[5] = reference[7]
    distances, indices = nearest(x, torch.from_numpy(reference))
    every = cdist(x.reshape(37, -1), reference.reshape(53, -1))
    assert np.array_equal(indices, every.argmin(1))
    np.testing.assert_allclose(distances, every.min(1), atol=1e-12)
    assert distances[5] == 0


@pytest.mark.parametrize("block", [metrics._BLOCK, 64])
def test_energy_distance_agrees_with_scipy_in_one_dimension(monkeypatch, block):
    monkeypatch.setattr(metrics, "_BLOCK", block)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(70), 0.5 + 2 * rng.standard_normal(41)
    assert energy_distance(a, b) == pytest.approx(scipy.stats.energy_distance(a, b), rel=1e-10)


def test_sliced_wasserstein_in_one_dimension_is_the_distance_of_quantiles():
    a, b = np.array([0.0, 1.0]), np.array([3.0, 0.0, 0.0])
    # Quantiles on the sixths: 0 0 0 1 1 1 against 0 0 0 0 3 3.
    assert sliced_wasserstein(a, b) == pytest.approx(np.sqrt((1 + 4 + 4) / 6))


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection():
    x = np.random.default_rng(0).standard_normal((100, 3))
    shift = np.array([1.0, 2.0, 2.0])
    assert sliced_wasserstein(x, x + shift, projections=4000) == pytest.approx(3 / np.sqrt(3), rel=0.03)
    assert sliced_wasserstein(x, x + shift, seed=1) != sliced_wasserstein(x, x + shift, seed=2)


@pytest.mark.parametrize("distance", SETS)
def test_distances_of_sets(distance):
    rng = np.random.default_rng(0)
    x, shuffle = rng.standard_normal((200, 4)), rng.permutation(200)
    assert distance(x, x[shuffle]) == pytest.approx(0, abs=1e-6)
    near, far = distance(x, rng.standard_normal((150, 4))), distance(x, 1 + rng.standard_normal((150, 4)))
    assert 0 < near < far / 3
    images = torch.from_numpy(x).view(200, 1, 2, 2).float().requires_grad_()
    assert distance(images, 2 * x) == pytest.approx(distance(x, 2 * x), rel=1e-5)


@pytest.mark.parametrize("distance", [*SETS, nearest])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3)), "2 numbers and .* 3"),
        (np.zeros((0, 2)), np.zeros((5, 2)), r"shape \(0, 2\); it needs"),
        (np.zeros((5, 2)), np.zeros(()), r"shape \(\); it needs"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "NaN"),
        (np.zeros((5, 2)), torch.full((5, 2), torch.inf), "infinite"),
    ],
)
def test_wrong_sets_are_refused(distance, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(a, b)


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="2 or more samples"):
        frechet(np.zeros((1, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="projections=0"):
        sliced_wasserstein(np.zeros((5, 2)), np.zeros((5, 2)), projections=0)
