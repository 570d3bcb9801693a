"""Observations: likelihoods, noise, rows, and directions in which they are independent."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from sdekit_diffusion import LinearObservation, Mask, Observation

GENERATOR = torch.Generator().manual_seed(0)
A = torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64)
X = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(3, generator=GENERATOR, dtype=torch.float64)
FULL = torch.tensor([[0.5, 0.1, 0.0], [0.1, 0.3, -0.05], [0.0, -0.05, 0.2]], dtype=torch.float64)
COVARIANCES = {"number": 0.4, "variances": torch.tensor([0.4, 0.1, 0.9]), "matrix": FULL}


def full(covariance):
    """A covariance as a matrix."""
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    return covariance if covariance.ndim == 2 else covariance * torch.eye(3).double()


@pytest.mark.parametrize("name", COVARIANCES)
def test_the_likelihood_is_normal(name):
    covariance = COVARIANCES[name]
    observation = LinearObservation(A, Y, covariance)
    expected = MultivariateNormal(X @ A.T, full(covariance)).log_prob(Y)
    torch.testing.assert_close(observation.log_prob(X), expected)
    torch.testing.assert_close(observation.bound((4,)).log_prob(X), expected)


@pytest.mark.parametrize("name", COVARIANCES)
def test_the_spectrum_makes_measurements_independent(name):
    """project(A x) has the covariance gains for standard normal x, noise of 1, and lift is its
    adjoint.
    """
    observation = LinearObservation(A, Y, COVARIANCES[name]).bound((4,))
    spectrum = observation.spectrum
    matrix = spectrum.project(observation.apply(torch.eye(4).double())).T
    torch.testing.assert_close(matrix @ matrix.T, torch.diag(spectrum.gains), atol=1e-10, rtol=0)
    root = spectrum.project(torch.eye(3).double()).T
    noise = root @ full(COVARIANCES[name]) @ root.T
    torch.testing.assert_close(noise, torch.eye(3).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(spectrum.lift(torch.eye(3).double()), matrix)
    assert spectrum.noise == 1


def test_spectra_that_are_known_are_not_computed():
    mask = torch.tensor([True, False, True, True])
    observation = LinearObservation(Mask(mask), Y, 0.25).bound((4,))
    assert observation.spectrum.directions is None
    assert float(observation.spectrum.gains) == 4
    each = LinearObservation(Mask(mask), Y, torch.tensor([0.25, 0.5, 1.0])).bound((4,))
    torch.testing.assert_close(each.spectrum.gains.double(), torch.tensor([4.0, 2.0, 1.0]).double())
    without = LinearObservation(Mask(mask), Y, 0).bound((4,))
    assert (float(without.spectrum.gains), without.spectrum.noise) == (1.0, 0.0)
    unknown = LinearObservation(A, Y, 0.0).bound((4,)).spectrum
    assert unknown.directions is not None
    assert unknown.noise == 0


def test_rows_select_y_and_keep_what_does_not_depend_on_it():
    ys = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)
    observation = LinearObservation(A, ys, FULL).bound((4,))
    assert observation.each
    assert list(observation.entries()) == ["y"]
    expected = MultivariateNormal(X @ A.T, FULL).log_prob(ys)
    torch.testing.assert_close(observation.log_prob(X), expected)
    spectrum = observation.spectrum
    some = observation.rows(torch.tensor([3, 1]))
    assert some.spectrum is spectrum
    torch.testing.assert_close(some.log_prob(X[[3, 1]]), expected[[3, 1]])
    with pytest.raises(ValueError, match="y has 5 entries, one per sample, and there are 1"):
        observation.log_prob(X[:1])
    with pytest.raises(ValueError, match="is known when the shape of samples is"):
        assert LinearObservation(A, ys, FULL).each
    one = LinearObservation(A, Y, FULL).bound((4,))
    assert LinearObservation(A, Y[None], FULL).bound((4,)).each
    assert not one.each
    assert one.entries() == {}
    assert one.rows(torch.tensor([0])) is one


@pytest.mark.parametrize("name", COVARIANCES)
def test_simulated_observations_have_the_law(name):
    """Mean and covariance of 20,000, within 5.6 standard errors; y of sample i depends on (seed,
    i).
    """
    n = 20_000
    observation = LinearObservation(A, Y, COVARIANCES[name])
    x = X[:1].expand(n, 4)
    y = observation.simulate(x, seed=3)
    noise = full(COVARIANCES[name])
    error = (noise.diagonal() / n).sqrt()
    assert ((y.mean(0) - X[0] @ A.T).abs() < 5.6 * error).all()
    std = noise.diagonal().sqrt()
    limit = 5.6 * (noise.square() + torch.outer(std, std).square()).sqrt() / math.sqrt(n)
    assert ((torch.cov(y.T) - noise).abs() < limit).all()
    assert torch.equal(observation.simulate(x[:10], seed=3, first=7), y[7:17])


def test_any_likelihood():
    counts = torch.tensor([3.0, 0.0])
    poisson = Observation(counts, lambda x, y: (y * x - x.exp() - (y + 1).lgamma()).sum(1))
    x = torch.tensor([[0.2, -0.3]])
    expected = torch.distributions.Poisson(x.exp()).log_prob(counts).sum(1)
    torch.testing.assert_close(poisson.log_prob(x), expected)
    each = Observation(torch.ones(4, 2), lambda x, y: -(x - y).square().sum(1), each=True)
    assert len(each.rows(torch.tensor([1, 2])).y) == 2
    assert list(each.entries()) == ["y"]
    with pytest.raises(ValueError, match="y has 4 entries, one per sample, and there are 3"):
        each.log_prob(torch.zeros(3, 2))
    for y in (torch.zeros(0, 2), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="one entry for each of one or more observations"):
            Observation(y, poisson.log_likelihood, each=True)
    batch = Observation(torch.ones(4, 2), lambda x, y: -(x - y).square().sum(1))
    with pytest.raises(ValueError, match="if y has one entry per sample, pass each=True"):
        batch.log_prob(torch.zeros(3, 2)[:1])
    with pytest.raises(ValueError, match=r"failed for x of shape \(3, 2\) .*pass each=True"):
        batch.bound((2,))
    with pytest.raises(TypeError, match="one whole number for all samples"):
        LinearObservation(torch.eye(2), x[0], 1.0).simulate(x, seed=1.5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, y: x.sum(), r"it must return log p\(y \| x\) of each of 3 samples"),
        (lambda x, y: x.detach().sum(1), "no gradient in x"),
        (lambda x, y: -(x - x.mean(0)).square().sum(1), "depends on the other samples"),
        (lambda x, y: x.sum(1) + 1e3 * torch.rand(len(x)), "or is random"),
    ],
    ids=["shape", "gradient", "batch", "random"],
)
def test_likelihoods_that_cannot_be_used(function, message):
    for y, each in ((torch.ones(2), False), (torch.ones(3, 2), True)):
        with pytest.raises(ValueError, match=message):
            Observation(y, function, each=each).bound((2,))


ABOVE = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # the diagonal


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((A, Y, -1.0), ValueError, "a number from 0 on"),
        ((A, Y, torch.tensor([1.0, 0.0, 1.0])), ValueError, "positive variances"),
        ((A, Y, -FULL), ValueError, "symmetric positive definite"),
        ((A, Y, 1e-9 * (torch.eye(3) + 0.5 * ABOVE)), ValueError, "symmetric positive definite"),
        ((A, Y, torch.diag(torch.tensor([1.0, 2.0, math.inf]))), ValueError, "symmetric positive"),
        ((A, Y, "small"), TypeError, "covariance is a number"),
        ((A, Y.int(), 1.0), ValueError, r"use y\.float"),
        ((A, Y * math.nan, 1.0), ValueError, "finite"),
        ((A, [1.0], 1.0), TypeError, r"torch\.as_tensor"),
        ((3, Y, 1.0), TypeError, "the operator is a matrix"),
    ],
    ids=lambda value: "",
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        LinearObservation(*arguments)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"y has shape \(2,\) and A x has \(3,\)"):
        LinearObservation(A, Y[:2], 1.0).bound((4,))
    with pytest.raises(ValueError, match=r"give a number, \(3,\) or \(3, 3\)"):
        LinearObservation(A, Y, torch.ones(2)).bound((4,))
    with pytest.raises(ValueError, match="with noise 0"):
        LinearObservation(A, Y, 0.0).log_prob(X)
    with pytest.raises(TypeError, match="log_likelihood is a function"):
        Observation(Y, 3)
    with pytest.raises(TypeError, match=r"y must be a tensor, not ndarray; use torch\.as_tensor"):
        Observation(Y.numpy(), lambda x, y: x.sum(1))
