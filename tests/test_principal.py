"""The largest standard deviation of data in any direction, against eigenvalues."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdekit_diffusion import EmpiricalMixture, GaussianMixture, LinearObservation
from sdekit_diffusion._models import empirical
from sdekit_diffusion._models.principal import (
    estimated_principal_std,
    principal_std_of,
)


def largest(covariance):
    return math.sqrt(float(torch.linalg.eigvalsh(covariance.double())[-1]))


def mixture(seed, d, shape):
    """Three components in d dimensions, with covariances of shape `()`, `(d,)` or `(d, d)`."""
    draw = torch.Generator().manual_seed(seed)
    weights = 0.1 + torch.rand(3, generator=draw, dtype=torch.float64)
    means = 2 * torch.randn(3, d, generator=draw, dtype=torch.float64)
    factors = torch.rand(3, *shape, generator=draw, dtype=torch.float64)
    covariances = factors @ factors.mT if len(shape) == 2 else factors + 0.1
    return GaussianMixture(weights / weights.sum(), means, covariances)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), d=st.sampled_from([1, 2, 7]), kind=st.integers(0, 2))
def test_that_of_a_mixture_is_the_root_of_the_largest_eigenvalue(seed, d, kind):
    law = mixture(seed, d, (d,) * kind)
    exact = largest(law.covariance())
    assert 0.9 * exact < law.principal_std < 1.0001 * exact
    noisy = law.marginal(0.3, "vp")
    exact = largest(noisy.covariance())
    assert 0.9 * exact < noisy.principal_std < 1.0001 * exact


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_after_an_observation_it_is_that_of_the_new_law(kind):
    law = mixture(3, 4, (4,) * kind)
    row = law.means[0] - law.means[1]
    y = LinearObservation(row[None], torch.zeros(1, dtype=torch.float64), 0.01)
    narrower = law.given(y)
    assert narrower.principal_std == pytest.approx(largest(narrower.covariance()), rel=1e-2)
    assert narrower.principal_std < 0.9 * law.principal_std


def test_components_may_share_their_axes():
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = LinearObservation(torch.eye(3, dtype=torch.float64)[:1], points[0, :1], 1e-4)
    law = EmpiricalMixture(0.1 * points, 2.0).given(y)
    exact = largest(law.covariance())
    assert 0.9 * exact < law.principal_std < 1.0001 * exact


def test_that_of_points_is_the_root_of_the_largest_eigenvalue(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(6000, 3, 2, generator=draw) * torch.arange(1.0, 7.0).reshape(3, 2)
    exact = largest(points.flatten(1).T.cov(correction=0))
    equal = torch.full((6000,), 1 / 6000)
    assert principal_std_of(points, equal) == pytest.approx(exact, rel=1e-3)
    assert EmpiricalMixture(points, 0.5).principal_std == pytest.approx(
        math.hypot(exact, 0.5), 1e-3
    )
    monkeypatch.setattr(empirical, "_BLOCK", 18_000)  # numbers: every second point
    law = EmpiricalMixture(points, 0.5)
    assert law.principal_std == pytest.approx(math.hypot(exact, 0.5), rel=0.03)
    assert principal_std_of(points[:1], torch.ones(1)) == 0.0


def test_an_estimate_from_few_samples_is_not_too_large():
    """Of 40 normal samples in 200 dimensions the covariance has an eigenvalue near 10."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(40, 200, generator=draw)
    assert principal_std_of(noise, torch.full((40,), 1 / 40)) > 2.5
    assert estimated_principal_std(noise) < 1.6
    together = noise + 3 * torch.randn(40, 1, generator=draw)
    assert estimated_principal_std(together) == pytest.approx(math.sqrt(9 * 200 + 1), rel=0.4)
    numbers = torch.randn(2000, generator=draw)
    assert estimated_principal_std(numbers) == pytest.approx(1.0, rel=0.1)
    assert estimated_principal_std(noise[:1]) == estimated_principal_std(0 * noise) == 0.0


def test_points_count_by_their_weights():
    points = torch.tensor([[-1.0], [1.0]])
    assert principal_std_of(points, torch.tensor([0.9, 0.1])) == pytest.approx(0.6)
    weighted = EmpiricalMixture(points, 0.8, torch.tensor([0.9, 0.1]))
    assert weighted.principal_std == pytest.approx(1.0)
