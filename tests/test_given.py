"""Mixtures given an observation: against quadrature, conditional normal laws and each other."""

import pytest
import torch
from torch.autograd.profiler import profile

from sdekit_diffusion import (
    EmpiricalMixture,
    GaussianMixture,
    Joint,
    LinearObservation,
    Mask,
    Observation,
    sample,
)

GENERATOR = torch.Generator().manual_seed(0)
FACTORS = torch.randn(3, 2, 2, generator=GENERATOR, dtype=torch.float64)
MEANS = 2 * torch.randn(3, 2, generator=GENERATOR, dtype=torch.float64)
LAWS = {
    "full": FACTORS @ FACTORS.mT + 0.1 * torch.eye(2).double(),
    "diagonal": torch.tensor([[0.2, 0.9], [0.5, 0.4], [1.2, 0.1]]).double(),
    "isotropic": torch.tensor([0.2, 0.5, 0.9]).double(),
}
A = torch.tensor([[1.0, -0.6]], dtype=torch.float64)
Y = torch.tensor([0.7], dtype=torch.float64)
OBSERVED = LinearObservation(A, Y, 0.3)
SIDE = torch.linspace(-9.0, 9.0, 451, dtype=torch.float64)
GRID = torch.cartesian_prod(SIDE, SIDE)
CELL = float(SIDE[1] - SIDE[0]) ** 2


def law_of(kind):
    return GaussianMixture([0.5, 0.3, 0.2], MEANS, LAWS[kind])


@pytest.mark.parametrize("kind", LAWS)
def test_by_quadrature(kind):
    """p(x | y) = p(x) p(y | x) / p(y) on a grid: the evidence, the density, mean and covariance."""
    law = law_of(kind)
    joint = (law.log_prob(GRID) + OBSERVED.log_prob(GRID)).exp()
    evidence = joint.sum() * CELL
    torch.testing.assert_close(law.log_evidence(OBSERVED), evidence.log(), rtol=0, atol=1e-8)
    given = law.given(OBSERVED)
    density = joint / evidence
    torch.testing.assert_close(given.log_prob(GRID).exp(), density, rtol=0, atol=1e-8)
    mean = (density[:, None] * GRID).sum(0) * CELL
    torch.testing.assert_close(given.mean(), mean, rtol=0, atol=1e-8)
    centred = GRID - mean
    covariance = (density[:, None, None] * centred[:, :, None] * centred[:, None]).sum(0) * CELL
    torch.testing.assert_close(given.covariance(), covariance, rtol=0, atol=1e-7)


def test_two_measurements_at_once_or_one_after_the_other():
    law = GaussianMixture([0.4, 0.6], torch.randn(2, 3, 4, generator=GENERATOR), [0.5, 1.5])
    a = torch.randn(3, 12, generator=GENERATOR)
    y = torch.randn(3, generator=GENERATOR)
    noise = torch.tensor([0.3, 0.5, 0.2])
    whole = LinearObservation(a, y, noise)
    parts = [LinearObservation(a[i : i + 1], y[i : i + 1], float(noise[i])) for i in range(3)]
    step = law
    evidence = torch.zeros(())
    for part in parts:
        evidence = evidence + step.log_evidence(part)
        step = step.given(part)
    assert step.shape == (3, 4)
    torch.testing.assert_close(law.log_evidence(whole), evidence.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(law.given(whole).mean(), step.mean(), rtol=0, atol=1e-3)
    torch.testing.assert_close(law.given(whole).covariance(), step.covariance(), rtol=0, atol=1e-3)


def test_several_observations_are_one():
    """Of linear ones the stacked one, with y per sample too; of others the product."""
    law = law_of("full")
    second = LinearObservation(
        torch.tensor([[0.3, 0.8]]).double(), torch.tensor([-0.4]).double(), 0.2
    )
    both = Joint((OBSERVED, second))
    step = law.given(OBSERVED).given(second)
    x = torch.randn(5, 2, generator=GENERATOR, dtype=torch.float64)
    torch.testing.assert_close(law.given(both).log_prob(x), step.log_prob(x))
    evidence = law.log_evidence(OBSERVED) + law.given(OBSERVED).log_evidence(second)
    torch.testing.assert_close(law.log_evidence(both), evidence)
    torch.testing.assert_close(both.log_prob(x), OBSERVED.log_prob(x) + second.log_prob(x))
    bound = both.bound((2,))
    assert isinstance(bound, LinearObservation)
    torch.testing.assert_close(bound.log_prob(x), both.log_prob(x))
    ys = [torch.randn(3, 1, generator=GENERATOR, dtype=torch.float64) for _ in range(2)]
    many = Joint(
        [LinearObservation(one.operator, y, one.covariance)
         for one, y in zip((OBSERVED, second), ys, strict=True)]
    )  # fmt: skip
    stacked = many.bound((2,))
    assert stacked.y.shape == (3, 2)
    some = stacked.rows(torch.tensor([2, 0])).log_prob(x[:2])
    torch.testing.assert_close(some, many.log_prob(x[[1, 4, 0]])[[2, 0]])
    with pytest.raises(ValueError, match="some of the observations have noise 0"):
        Joint((OBSERVED, LinearObservation(A, Y, 0.0))).bound((2,))
    exact = Joint((LinearObservation(A, Y, 0.0), LinearObservation(second.operator, second.y, 0.0)))
    point = law.given(exact).sample(3, seed=0)
    torch.testing.assert_close(point @ A.T, Y.expand(3, 1), rtol=0, atol=1e-5)
    squares = Observation(Y, lambda x, y: -(((x**2).sum(1) - y) ** 2))
    mixed = Joint((OBSERVED, squares)).bound((2,))
    assert isinstance(mixed, Joint)
    torch.testing.assert_close(mixed.log_prob(x), OBSERVED.log_prob(x) + squares.log_prob(x))
    with pytest.raises(TypeError, match="Joint takes a tuple of observations"):
        Joint(())
    with pytest.raises(TypeError, match="Joint takes a tuple of observations"):
        Joint(OBSERVED)
    with pytest.raises(ValueError, match="some have one y for all"):
        Joint((many.parts[0], second)).bound((2,))
    fewer = LinearObservation(second.operator, ys[1][:2], second.covariance)
    with pytest.raises(ValueError, match="have 3, 2 entries of y"):
        law.log_evidence(Joint((many.parts[0], fewer)))


def test_variances_of_several_observations_stay_variances():
    """A matrix of all measurements would take memory and time; only a matrix of a part needs it."""
    a = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
    x = torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64)
    number = LinearObservation(a[:2], x[0, :2], 0.3)
    each = LinearObservation(a[2:4], x[1, :2], torch.tensor([0.1, 0.2]))
    both = Joint((number, each)).bound((4,))
    variances = torch.tensor([0.3, 0.3, *each.covariance], dtype=torch.float64)
    torch.testing.assert_close(both.noise_covariance, variances)
    torch.testing.assert_close(both.log_prob(x), number.log_prob(x) + each.log_prob(x))
    full = LinearObservation(a[3:], x[2, :2], torch.tensor([[0.5, 0.1], [0.1, 0.4]]))
    every = Joint((number, each, full))
    torch.testing.assert_close(every.bound((4,)).log_prob(x), every.log_prob(x))


def test_evidences_of_many_observations():
    law = law_of("full")
    ys = torch.tensor([[0.1], [2.0], [-3.0]], dtype=torch.float64)
    found = law.log_evidence(LinearObservation(A, ys, 0.3))
    single = [law.log_evidence(LinearObservation(A, y, 0.3)) for y in ys]
    torch.testing.assert_close(found, torch.stack(single))
    with pytest.raises(ValueError, match="y has 3 entries, and a mixture is given one"):
        law.given(LinearObservation(A, ys, 0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_laws_in_half_precision_do_not_round_y(dtype):
    """Nor the operator: 100.3 would be 100.5 in bfloat16, three of these deviations away."""
    a = torch.tensor([[1.003, 1.007]])
    given = LinearObservation(a, torch.tensor([100.3]), 0.005)
    means = torch.tensor([[64.0, 36.0], [50.0, 50.0]])
    for law_of_points in (
        EmpiricalMixture,
        lambda points: GaussianMixture([0.5, 0.5], points, [4.0, 1.0]),
    ):
        half = law_of_points(means.to(dtype)).log_evidence(given)
        torch.testing.assert_close(half, law_of_points(means).log_evidence(given))


def test_without_noise():
    """The law on a plane, which the denoiser knows: samples have A x = y; two rows of A that say
    the same are refused.
    """
    law = law_of("full")
    exact = law.given(LinearObservation(A, Y, 0.0))
    near = law.given(LinearObservation(A, Y, 1e-9))
    torch.testing.assert_close(exact.mean(), near.mean(), rtol=0, atol=1e-7)
    torch.testing.assert_close(exact.sample(50, seed=0) @ A.T, Y.expand(50, 1), atol=1e-6, rtol=0)
    end = 1e-3 * exact.data_std
    x = sample(exact, 50, sde="vp", steps=30, seed=0)
    assert (x @ A.T - Y).std() == pytest.approx(end * float(A.norm()), rel=0.5)
    for call in (exact.log_prob, exact.responsibilities):
        with pytest.raises(ValueError, match="no density"):
            call(x)
    with pytest.raises(ValueError, match="the rows of A must be independent"):
        law.given(LinearObservation(A.expand(2, 2), Y.expand(2), 0.0))


def test_components_that_do_not_matter_are_left_out():
    far = GaussianMixture([0.5, 0.5], [[0.0], [100.0]], [1.0, 1.0])
    given = far.given(LinearObservation(torch.eye(1), torch.zeros(1), 0.1))
    assert given.means.shape == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_components_whose_weight_is_0_in_the_dtype_are_left_out(dtype):
    """The last of 201 has e^-99.5 of the weight of any other, hence e^-104.8 of the sum."""
    means = torch.zeros(201, 1, dtype=dtype)
    means[-1] = 19.95
    observation = LinearObservation(torch.eye(1), torch.zeros(1), 1.0)
    laws = (
        GaussianMixture([1 / 201] * 201, means, [1.0] * 201),
        EmpiricalMixture(means, 1.0),
    )
    for law in laws:
        given = law.given(observation)
        assert len(given.weights) == (201 if dtype == torch.float64 else 200)
        assert (given.weights > 0).all()
        close = {"rtol": 0, "atol": 1e-3}
        torch.testing.assert_close(given.mean(), torch.zeros(1, dtype=dtype), **close)


def test_evidences_take_no_copies_of_the_covariances():
    """50 y of 100 numbers and 2 components: 8 MB of copies, and the largest array has 160 kB."""
    matrices = torch.eye(100).double().expand(2, 100, 100)
    law = GaussianMixture([0.5, 0.5], torch.zeros(2, 100).double(), matrices)
    y = torch.randn(50, 100, generator=GENERATOR, dtype=torch.float64)
    observation = LinearObservation(torch.eye(100), y, 1.0).bound((100,))
    with profile(profile_memory=True, use_kineto=False) as profiled:
        law.log_evidence(observation)
    assert 80_000 <= max(event.cpu_memory_usage for event in profiled.function_events) < 1_000_000


def test_points():
    """The points with other weights."""
    points = torch.randn(40, 2, generator=GENERATOR, dtype=torch.float64)
    weights = torch.rand(40, generator=GENERATOR, dtype=torch.float64)
    law = EmpiricalMixture(points, weights=weights / weights.sum())
    logits = law.weights.log() + OBSERVED.log_prob(points)
    given = law.given(OBSERVED)
    torch.testing.assert_close(given.weights, logits.softmax(0))
    torch.testing.assert_close(given.data_mean, logits.softmax(0) @ points)
    torch.testing.assert_close(law.log_evidence(OBSERVED), logits.logsumexp(0))
    torch.testing.assert_close(law.marginal(0.5, "vp").weights, law.weights)


def test_points_with_width_are_a_gaussian_mixture():
    points = torch.randn(6, 2, generator=GENERATOR, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.1, 0.2], dtype=torch.float64)
    law = EmpiricalMixture(points, 0.4, weights)
    same = GaussianMixture(weights, points, torch.full((6,), 0.16).double())
    x = torch.randn(7, 2, generator=GENERATOR, dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(x), same.log_prob(x))
    torch.testing.assert_close(law.denoise(0.4, x, "vp"), same.denoise(0.4, x, "vp"))
    torch.testing.assert_close(law.score(0.4, x, "vp"), same.score(0.4, x, "vp"))
    torch.testing.assert_close(law.responsibilities(x), same.responsibilities(x))
    assert law.data_std == pytest.approx(same.data_std)
    a, b = (each.given(OBSERVED) for each in (law, same))
    torch.testing.assert_close(a.log_prob(x), b.log_prob(x))
    torch.testing.assert_close(a.denoise(0.4, x, "vp"), b.denoise(0.4, x, "vp"))
    torch.testing.assert_close(a.score(0.4, x, "vp"), b.score(0.4, x, "vp"))
    torch.testing.assert_close(law.log_evidence(OBSERVED), same.log_evidence(OBSERVED))
    again = LinearObservation(torch.tensor([[0.5, 1.0]]), torch.tensor([0.2]), 0.1)
    a, b = (each.given(again) for each in (a, b))
    torch.testing.assert_close(a.log_prob(x), b.log_prob(x))


def test_images_of_a_mask():
    """A function as the operator, and a mask, are the matrix that they are."""
    law = GaussianMixture([0.4, 0.6], torch.randn(2, 1, 2, 2, generator=GENERATOR), [0.5, 1.5])
    mask = torch.tensor([[[True, False], [False, True]]])
    y = torch.tensor([0.3, -0.4])
    matrix = torch.zeros(2, 4)
    matrix[0, 0] = matrix[1, 3] = 1
    a = law.given(LinearObservation(Mask(mask), y, 0.1))
    b = law.given(LinearObservation(matrix, y, 0.1))
    torch.testing.assert_close(a.means, b.means)
    assert a.shape == (1, 2, 2)


def test_what_is_refused():
    with pytest.raises(TypeError, match="see sample_posterior"):
        law_of("full").given(Observation(Y, lambda x, y: x.sum(1)))
    with pytest.raises(TypeError, match="the law is given an observation"):
        law_of("full").given(Y)
    with pytest.raises(ValueError, match="weights must be positive and sum to 1"):
        EmpiricalMixture(MEANS, weights=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"give one per centre, \(3,\)"):
        EmpiricalMixture(MEANS, weights=torch.ones(1))
