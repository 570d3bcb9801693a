"""The interval that a likelihood with random probes reports covers what exact traces give, as often as it says."""

import pytest
import torch

from sdekit import Exact, Hutchinson
from sdekit_diffusion import AdaptiveFlow, GaussianMixture, log_likelihood

POINTS, COPIES, PROBES, METHOD = 20, 50, 8, AdaptiveFlow(1e-2, 1e-2)


@pytest.fixture(scope="module")
def problem():
    """Four modes in 16 dimensions with full covariances, points, and their log p by exact traces along the same ways."""
    generator = torch.Generator().manual_seed(16)
    means = 0.5 * torch.randn(4, 16, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(4, 16, 16, generator=generator, dtype=torch.float64))[0]
    variances = torch.logspace(-1.5, -0.5, 16, dtype=torch.float64).expand(4, 16)
    mixture = GaussianMixture([0.1, 0.2, 0.3, 0.4], means, axes @ torch.diag_embed(variances) @ axes.mT)
    x = mixture.sample(POINTS, seed=0)
    return mixture, x, log_likelihood(mixture, x, sde="vp", trace=Exact(), method=METHOD).value


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "fixed"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_intervals_cover_the_exact_trace(problem, kind, fresh):
    """1,000 runs, 50 of each point, cover within 91 and 98.2 %.

    By new seeds this fails by chance in 1 of 12 million tries where the coverage is 95 %, and in 1 of 14,000 where it is 94 %,
    as with fixed Gaussian probes: the estimates are skewed.
    """
    mixture, x, exact = problem
    trace = Hutchinson(PROBES, kind, seed=1, fresh=fresh)
    found = log_likelihood(mixture, x.repeat(COPIES, 1), sde="vp", trace=trace, method=METHOD)
    low, high = found.interval(0.95)
    error = (found.value - exact.repeat(COPIES)).reshape(COPIES, POINTS)
    coverage = ((low <= exact.repeat(COPIES)) & (exact.repeat(COPIES) <= high)).double().mean()
    assert 0.91 <= coverage <= 0.982
    # As large as it says, besides: the squares of 1,000 errors and of their standard errors, on average.
    assert found.stderr.square().mean() == pytest.approx(error.square().mean().item(), rel=0.3)
