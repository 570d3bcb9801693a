"""The oracle itself: against torch.distributions, autograd and moments."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sdekit_diffusion import VESDE, VPSDE, GaussianMixture, LinearObservation, SubVPSDE

WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [-2.0, -1.0, 1.0]], dtype=torch.float64)
FACTOR = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
FULL = FACTOR @ FACTOR.mT + 0.1 * torch.eye(3, dtype=torch.float64)
KINDS = {"full": FULL, "diagonal": FULL.diagonal(dim1=1, dim2=2), "isotropic": FULL[:, 0, 0]}
X = torch.randn(50, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2


def dense(kind):
    value = KINDS[kind]
    if kind == "full":
        return value
    return torch.diag_embed(value if kind == "diagonal" else value[:, None].expand(3, 3))


def peer(kind, alpha=1.0, sigma=0.0):
    covariances = alpha**2 * dense(kind) + sigma**2 * torch.eye(3, dtype=torch.float64)
    return MixtureSameFamily(Categorical(WEIGHTS), MultivariateNormal(alpha * MEANS, covariances))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), SubVPSDE()], ids=str)
def test_density_score_and_denoiser(kind, sde):
    mixture = GaussianMixture(WEIGHTS, MEANS, KINDS[kind])
    for t in (0.0, 0.01, 0.4, 1.0):
        alpha = sde.alpha(t)
        sigma = sde.sigma(t)
        x = (alpha * X + sigma * X.flip(0)).requires_grad_()
        log_p = peer(kind, alpha, sigma).log_prob(x)
        (score,) = torch.autograd.grad(log_p.sum(), x)
        x = x.detach()
        named = lambda message: f"t = {t}: {message}"  # noqa: B023, E731
        torch.testing.assert_close(mixture.marginal(t, sde).log_prob(x), log_p.detach(), msg=named)
        torch.testing.assert_close(mixture.score(t, x, sde), score, msg=named)
        data = (x + sigma**2 * score) / alpha
        found = mixture.denoise(t, x, sde)
        torch.testing.assert_close(found, data, rtol=1e-6, atol=1e-6, msg=named)


@pytest.mark.parametrize("kind", KINDS)
def test_times_per_sample_and_events_of_any_rank(kind):
    mixture = GaussianMixture(WEIGHTS, MEANS, KINDS[kind])
    sde = VPSDE()
    t = torch.linspace(0.05, 1, 50, dtype=torch.float64)
    rows = {
        of: torch.cat([of(float(s), X[i : i + 1]) for i, s in enumerate(t)])
        for of in (mixture.predict_data, mixture.predict_noise, partial(mixture.score, sde=sde))
    }
    for of, each in rows.items():
        torch.testing.assert_close(of(t, X), each)
    image = GaussianMixture(WEIGHTS, MEANS.reshape(3, 1, 3, 1), KINDS[kind])
    torch.testing.assert_close(image.score(t, X.reshape(50, 1, 3, 1), sde).reshape(50, 3), each)
    assert image.sample(4, seed=0).shape == (4, 1, 3, 1)


def test_scalars():
    mixture = GaussianMixture([0.5, 0.5], torch.tensor([-1.0, 1.0]), [0.1, 0.2])
    assert mixture.shape == ()
    assert mixture.sample(5, seed=0).shape == (5,)
    assert mixture.score(0.3, torch.zeros(5), VPSDE()).shape == (5,)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments(kind):
    """Within 5.5 standard errors of 2e5 samples (false alarm below 1e-6 over all entries)."""
    mixture = GaussianMixture(WEIGHTS, MEANS, KINDS[kind])
    n = 200_000
    x = mixture.sample(n, seed=5)
    torch.testing.assert_close(mixture.mean(), WEIGHTS @ MEANS)
    centred = MEANS - mixture.mean()
    torch.testing.assert_close(
        mixture.covariance(),
        torch.einsum("k,kij->ij", WEIGHTS, dense(kind) + centred[:, :, None] * centred[:, None]),
    )
    spread = (x - mixture.mean())[:, :, None] * (x - mixture.mean())[:, None]
    assert ((x.mean(0) - mixture.mean()).abs() < 5.5 * x.std(0) / math.sqrt(n)).all()
    assert (
        (spread.mean(0) - mixture.covariance()).abs() < 5.5 * spread.std(0) / math.sqrt(n)
    ).all()
    assert mixture.data_std == pytest.approx(x.square().mean().sqrt().item(), rel=0.02)
    assert torch.equal(mixture.sample(10, seed=5, first=100), x[100:110])


@pytest.mark.parametrize("kind", KINDS)
def test_components_can_be_read(kind):
    law = GaussianMixture(WEIGHTS, MEANS.reshape(3, 1, 3), KINDS[kind]).marginal(0.3, VPSDE())
    alpha, sigma = VPSDE().kernel(0.3)
    torch.testing.assert_close(law.means, alpha * MEANS.reshape(3, 1, 3))
    torch.testing.assert_close(
        law.covariances, alpha**2 * dense(kind) + sigma**2 * torch.eye(3, dtype=torch.float64)
    )


def test_posterior_sums_to_one_and_finds_the_component():
    mixture = GaussianMixture(WEIGHTS, 20 * MEANS, KINDS["full"])
    r = mixture.responsibilities(20 * MEANS)
    torch.testing.assert_close(r, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "x",
    [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3), torch.zeros(2, 1), torch.zeros(2, 3, 1)],
)
def test_what_is_not_a_batch_of_points(x):
    mixture = GaussianMixture(WEIGHTS, MEANS, KINDS["full"])
    for call in (mixture.log_prob, mixture.responsibilities, lambda x: mixture.score(0.5, x, "vp")):
        with pytest.raises(
            ValueError, match=r"points must be floating, of shape \(batch, 3\), not"
        ):
            call(x)


@pytest.mark.parametrize("t", [-0.1, 1.5, torch.tensor([0.5, 1.5])], ids=str)
def test_times_outside_are_refused(t):
    mixture = GaussianMixture(WEIGHTS, MEANS, KINDS["full"])
    for call in (mixture.score, mixture.denoise):
        with pytest.raises(ValueError, match="outside the range of VPSDE"):
            call(t, X[:2], "vp")


def test_weights_of_a_list_keep_their_digits():
    mixture = GaussianMixture([0.1, 0.9], torch.zeros(2, 1, dtype=torch.float64), [1.0, 2.0])
    assert mixture.weights.tolist() == [0.1, 0.9]


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([0.5, 0.6], [[0.0], [1.0]], [1.0, 1.0], "sum to 1"),
        ([1.5, -0.5], [[0.0], [1.0]], [1.0, 1.0], "2 positive numbers"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0], "covariances must have shape"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, -1.0], "positive definite"),
        ([0.5, 0.5], [[0.0], [math.nan]], [1.0, 1.0], "means must be finite"),
        ([0.5, 0.5], [[0.0], [-math.inf]], [1.0, 1.0], "means must be finite"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, math.inf], "covariances must be finite"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, math.nan]]], "covariances must be finite"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]], "symmetric"),
        ([1.0], 0.0, [1.0], r"means must have shape \(K, \*event\), .*, not \(\)"),
        ([], [], [], r"means must have shape \(K, \*event\), .*, not \(0,\)"),
        ([0.0] * 99, [0.0] * 99, [1.0] * 99, r"99 positive numbers, .*, not \[.{50,59}$"),
    ],
)
def test_what_is_not_a_mixture(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(weights, means, covariances)


def test_covariances_are_decomposed_in_float64():
    """Although the means are float32, in which a variance of 1e-8 beside 1 is rounding."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    covariance = q @ torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e-8]).double()) @ q.T
    laws = [
        GaussianMixture([1.0], torch.zeros(1, 4), c)
        for c in ([covariance.tolist()], covariance[None])
    ]
    double = GaussianMixture([1.0], torch.zeros(1, 4).double(), covariance[None])
    given = LinearObservation(q[:, :1].T, torch.tensor([1e-4]).double(), 1e-8)
    x = double.sample(100, seed=0)
    for law in laws:
        assert law.log_prob(x.float()).dtype == torch.float32
        torch.testing.assert_close(law.log_prob(x), double.log_prob(x), rtol=0, atol=1e-3)
        a, b = (each.log_evidence(given) for each in (law, double))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    half = GaussianMixture([1 / 7] * 7, torch.zeros(7, 4).half(), torch.eye(4).expand(7, 4, 4))
    torch.testing.assert_close(half.covariance(), torch.eye(4).half(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("n", [-1, 2.5, True])
def test_numbers_of_samples_that_are_not_whole_are_refused(n):
    law = GaussianMixture(WEIGHTS, MEANS, KINDS["full"])
    with pytest.raises(ValueError, match=f"n counts samples, a whole number from 0 on; not {n}"):
        law.sample(n)
    assert law.sample(0).shape == (0, 3)


def test_points_of_another_shape_than_single_numbers():
    law = GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1])
    with pytest.raises(ValueError, match=r"of shape \(batch,\), not"):
        law.log_prob(torch.zeros(3, 1))
