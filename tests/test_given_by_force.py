"""Mixtures given an observation against brute force: quadrature in one and two dimensions,
rejection in sixteen.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.distributions import MultivariateNormal

from sdekit_diffusion import (
    EmpiricalMixture,
    GaussianMixture,
    LinearObservation,
    noise_scale,
    signal_scale,
)

LAWS = ("full", "diagonal", "isotropic", "points with width")
SCALES = torch.tensor([0.6, 0.9, 1.3], dtype=torch.float64)


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Known:
    """A mixture, and what it is made of: weights, means and covariances as matrices."""

    law: GaussianMixture | EmpiricalMixture
    weights: torch.Tensor
    means: torch.Tensor
    covariances: torch.Tensor


def known(kind, d):
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = 1.5 * randn(3, d, seed=d)
    if kind == "points with width":
        shared = 0.49 * torch.eye(d).double().expand(3, d, d)
        return Known(EmpiricalMixture(means, 0.7, weights), weights, means, shared)
    roots = randn(3, d, d, seed=d + 100) / math.sqrt(d)
    given = {
        "full": roots @ roots.mT + 0.1 * torch.eye(d).double(),
        "diagonal": 0.2 + randn(3, d, seed=d + 200).abs(),
        "isotropic": SCALES**2,
    }[kind]
    full = given if given.ndim == 3 else torch.diag_embed(given.reshape(3, -1).expand(3, d))
    return Known(GaussianMixture(weights, means, given), weights, means, full)


def observation(parts, m):
    """m measurements with dependent noise, and three values of y, each near a component."""
    d = parts.means.shape[1]
    root = randn(m, m, seed=m)
    noise = 0.2 * root @ root.T + 0.2 * torch.eye(m).double()
    matrix = randn(m, d, seed=m + 20) / math.sqrt(d)
    return LinearObservation(matrix, parts.means @ matrix.T + 0.5 * randn(3, m, seed=m + 10), noise)


def of_one(given, i):
    return LinearObservation(given.operator, given.y[i], given.covariance)


def likelihoods(given, x):
    """p(y | x) for each y, `(3, n)`, from the density of the noise."""
    noise = MultivariateNormal(torch.zeros(len(given.covariance)).double(), given.covariance)
    return torch.stack([noise.log_prob(y - x @ given.operator.matrix.T).exp() for y in given.y])


def grid(d):
    side = torch.linspace(-14.0, 14.0, {1: 2801, 2: 225}[d], dtype=torch.float64)
    points = torch.cartesian_prod(*[side] * d).reshape(-1, d)
    return points, float(side[1] - side[0]) ** d


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize(("d", "m"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_by_quadrature(kind, d, m):
    """p(y) of three observations, and of each posterior the weights of the components, density,
    mean, covariance, and the denoiser at three levels of noise.
    """
    parts = known(kind, d)
    law = parts.law
    given = observation(parts, m)
    x, cell = grid(d)
    components = MultivariateNormal(parts.means, parts.covariances).log_prob(x[:, None]).exp()
    likelihood = likelihoods(given, x)
    shares = torch.einsum("k,nk,yn->yk", parts.weights, components, likelihood) * cell
    evidence = shares.sum(1)
    torch.testing.assert_close(law.log_evidence(given), evidence.log(), rtol=0, atol=1e-9)
    prior = components @ parts.weights
    for i in range(3):
        posterior = law.given(of_one(given, i))
        density = prior * likelihood[i] / evidence[i]
        torch.testing.assert_close(posterior.weights, shares[i] / evidence[i], rtol=0, atol=1e-9)
        torch.testing.assert_close(posterior.log_prob(x).exp(), density, rtol=0, atol=1e-9)
        mean = density @ x * cell
        torch.testing.assert_close(posterior.mean(), mean, rtol=0, atol=1e-9)
        covariance = torch.einsum("n,ni,nj->ij", density * cell, x - mean, x - mean)
        torch.testing.assert_close(posterior.covariance(), covariance, rtol=0, atol=1e-9)
        # Given the component and x, y says nothing about the component.
        some = x[:: len(x) // 50]
        torch.testing.assert_close(posterior.responsibilities(some), law.responsibilities(some))
        u = 1.5 * randn(3, d, seed=5)
        for l in (-1.0, 0.5, 2.0):
            distance = (u[:, None] - signal_scale(l) * x).square().sum(2)
            logits = density.log() - distance / (2 * noise_scale(l) ** 2)
            denoised = logits.softmax(1) @ x
            found = posterior.predict_data(l, u)
            torch.testing.assert_close(found, denoised, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", LAWS)
def test_samples_have_the_distribution_by_quadrature(kind):
    """50,000 in one dimension, by the test of Kolmogorov and Smirnov with a false alarm of 1e-7; a
    shift by a fiftieth of their range is seen.
    """
    parts = known(kind, 1)
    given = observation(parts, 1)
    x, _ = grid(1)
    components = MultivariateNormal(parts.means, parts.covariances).log_prob(x[:, None]).exp()
    density = (components @ parts.weights) * likelihoods(given, x)[0]
    cumulative = (density.cumsum(0) - 0.5 * density) / density.sum()

    def distribution(points):
        return np.interp(points, x[:, 0].numpy(), cumulative.numpy())

    drawn = parts.law.given(of_one(given, 0)).sample(50_000, seed=0)[:, 0].numpy()
    assert kstest(drawn, distribution).pvalue > 1e-7
    assert kstest(drawn + 0.02 * np.ptp(drawn), distribution).pvalue < 1e-7


def rejection(parts, given, draws=400_000):
    """Samples of each of three posteriors in the sense of rejection: draws of the prior, accepted
    with the probability p(y | x) / max p(y | x). The components of those that are accepted, their
    x, and the share that is accepted times the maximum, with its standard error.
    """
    generator = torch.Generator().manual_seed(1)
    d = parts.means.shape[1]
    k = torch.multinomial(parts.weights, draws, replacement=True, generator=generator)
    z = torch.randn(draws, d, generator=generator, dtype=torch.float64)
    roots = torch.linalg.cholesky(parts.covariances)
    x = torch.empty_like(z)
    for i, root in enumerate(roots):
        x[k == i] = parts.means[i] + z[k == i] @ root.T
    largest = float(torch.linalg.det(2 * math.pi * given.covariance)) ** -0.5
    results = []
    for likelihood in likelihoods(given, x):
        uniform = torch.rand(draws, generator=generator, dtype=torch.float64)
        accepted = uniform < likelihood / largest
        share = float(accepted.double().mean())
        stderr = math.sqrt(share * (1 - share) / draws)
        results.append((k[accepted], x[accepted], largest * share, largest * stderr))
    return results


def deviations(posterior, log_evidence, rejected):
    """How far each number of a posterior is from that by rejection, in standard errors: p(y), the
    weights of the components, the mean and the elements of the covariance.
    """
    k, x, evidence, stderr = rejected
    n = len(x)
    shares = torch.nn.functional.one_hot(k, 3).double().mean(0)
    weights = posterior.weights
    centred = x - posterior.mean()
    products = centred.T @ centred / n
    # Of the products of two coordinates, as the mean of their squares.
    spread = ((centred**2).T @ centred**2 / n - products**2).sqrt()
    return torch.cat(
        [
            ((log_evidence.exp() - evidence) / stderr).reshape(1),
            (shares - weights) / (weights * (1 - weights) / n).sqrt(),
            centred.mean(0) / (centred.std(0) / math.sqrt(n)),
            ((products - posterior.covariance()) / (spread / math.sqrt(n))).flatten(),
        ]
    ).abs()


@pytest.mark.parametrize("kind", ["full", "points with width"])
def test_by_rejection(kind):
    """In 16 dimensions, with two measurements and three values of y.

    There are 2 laws, 3 posteriors of each and 156 different numbers of each posterior; at 6.5
    standard errors a false alarm has a probability of 1e-7, for normal errors. More than 20,000
    draws are accepted. At twice the threshold a log p(y) that is off by 0.1 is seen, a mean off by
    a tenth of the standard deviation, a weight off by 0.05, and a variance off by 13 %. So are the
    posteriors of a y that is off by 0.25, of noise with 1.5 times the variance, and with the
    weights of the prior.
    """
    parts = known(kind, 16)
    given = observation(parts, 2)
    law = parts.law
    log_evidences = law.log_evidence(given)
    for i, rejected in enumerate(rejection(parts, given)):
        assert len(rejected[1]) > 20_000
        one = of_one(given, i)
        posterior = law.given(one)
        assert deviations(posterior, log_evidences[i], rejected).max() < 6.5
        moved = LinearObservation(one.operator, one.y + 0.25, one.covariance)
        noisy = LinearObservation(one.operator, one.y, 1.5 * one.covariance)
        for wrong in (moved, noisy):
            found = deviations(law.given(wrong), law.log_evidence(wrong), rejected)
            assert found.max() > 13
        posterior.weights = parts.weights
        assert deviations(posterior, log_evidences[i], rejected).max() > 13
