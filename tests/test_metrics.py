"""Distances and scores of sets of samples, against closed forms, brute force, scipy and
torchmetrics.
"""

import math
import sys
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from scipy.spatial.distance import cdist

from sdekit_diffusion import GaussianMixture
from sdekit_diffusion.metrics import (
    DISTANCES,
    ClassifierFeatures,
    ImageFeatures,
    _image_features,
    _points,
    classifier_features,
    energy_distance,
    frechet,
    image_features,
    inception_scores,
    mmd,
    modes,
    nearest,
    precision_recall,
    sampling_floor,
    sliced_wasserstein,
)

SETS = [frechet, *(distance for _, distance in DISTANCES.values())]
CUBIC = partial(mmd, kernel="polynomial")


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
    a = gaussian(np.zeros(5), first)
    b = gaussian(np.ones(5), second, seed=1)
    expected = 5 + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_singular_covariances():
    """Fewer samples than features: the closed form of two orthogonal segments, and zero for equal
    sets.
    """
    a = np.zeros((3, 6))
    b = np.zeros((3, 6))
    a[:, 0] = [-2, 0, 2]
    b[:, 5] = [-3, 0, 3]
    assert frechet(a, b) == pytest.approx(4 + 9)
    few = np.random.default_rng(0).standard_normal((4, 30))
    assert frechet(few, few) == pytest.approx(0, abs=1e-12)
    assert frechet(few, few + 1e-6) == pytest.approx(30e-12, rel=1e-2, abs=1e-13)


@pytest.mark.parametrize("block", [_points.BLOCK, 64])
def test_nearest_agrees_with_brute_force(monkeypatch, block):
    monkeypatch.setattr(_points, "BLOCK", block)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((37, 1, 2, 3)) + 1e3
    reference = rng.standard_normal((53, 1, 2, 3)) + 1e3
    x[5] = reference[7]
    distances, indices = nearest(x, torch.from_numpy(reference))
    every = cdist(x.reshape(37, -1), reference.reshape(53, -1))
    assert np.array_equal(indices, every.argmin(1))
    np.testing.assert_allclose(distances, every.min(1), atol=1e-12)
    assert distances[5] == 0


@pytest.mark.parametrize("block", [_points.BLOCK, 64])
def test_energy_distance_agrees_with_scipy_in_one_dimension(monkeypatch, block):
    monkeypatch.setattr(_points, "BLOCK", block)
    rng = np.random.default_rng(0)
    a = rng.standard_normal(70)
    b = 0.5 + 2 * rng.standard_normal(41)
    assert energy_distance(a, b) == pytest.approx(scipy.stats.energy_distance(a, b), rel=1e-10)


def test_sliced_wasserstein_in_one_dimension_is_the_distance_of_quantiles():
    a = np.array([0.0, 1.0])
    b = np.array([3.0, 0.0, 0.0])
    # Quantiles on the sixths: 0 0 0 1 1 1 against 0 0 0 0 3 3.
    assert sliced_wasserstein(a, b) == pytest.approx(np.sqrt((1 + 4 + 4) / 6))


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection():
    x = np.random.default_rng(0).standard_normal((100, 3))
    shift = np.array([1.0, 2.0, 2.0])
    assert sliced_wasserstein(x, x + shift, projections=4000) == pytest.approx(
        3 / np.sqrt(3), rel=0.03
    )
    assert sliced_wasserstein(x, x + shift, seed=1) != sliced_wasserstein(x, x + shift, seed=2)


@pytest.mark.parametrize("distance", SETS)
def test_distances_of_sets(distance):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4))
    shuffle = rng.permutation(200)
    assert distance(x, x[shuffle]) == pytest.approx(0, abs=1e-6)
    near = distance(x, rng.standard_normal((150, 4)))
    far = distance(x, 1 + rng.standard_normal((150, 4)))
    assert 0 < near < far / 3
    images = torch.from_numpy(x).view(200, 1, 2, 2).float().requires_grad_()
    assert distance(images, 2 * x) == pytest.approx(distance(x, 2 * x), rel=1e-5)


@pytest.mark.parametrize("distance", [*SETS, nearest, mmd, CUBIC, precision_recall])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3)), "2 numbers and .* 3"),
        (np.zeros((5, 3, 4, 4)), torch.zeros(5, 4, 4, 3), "axes in one order"),
        (np.zeros((0, 2)), np.zeros((5, 2)), r"shape \(0, 2\); it needs"),
        (np.zeros((5, 2)), np.zeros(()), r"shape \(\); it needs"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "NaN"),
        (np.zeros((5, 2)), torch.full((5, 2), torch.inf), "infinite"),
        (np.zeros((5, 2)) + 5j, np.zeros((5, 2)), "is complex; give real and imaginary parts"),
        (np.zeros((5, 2)), torch.zeros(5, 2, dtype=torch.complex64), "is complex"),
    ],
)
def test_wrong_sets_are_refused(distance, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(a, b)


@pytest.mark.parametrize("shape", [(5, 12), (5, 1, 4, 3), (5, 4, 3, 1)])
def test_flat_samples_and_axes_of_length_1_are_accepted(shape):
    x = np.random.default_rng(0).standard_normal((5, 4, 3))
    assert energy_distance(x, x.reshape(shape).tolist()) == 0


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="2 or more samples"):
        frechet(np.zeros((1, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="projections=0"):
        sliced_wasserstein(np.zeros((5, 2)), np.zeros((5, 2)), projections=0)
    with pytest.raises(
        ValueError, match="'rbf', or 'polynomial' without a bandwidth; not 'cubic' and None"
    ):
        mmd(np.zeros((5, 2)), np.zeros((5, 2)), kernel="cubic")
    with pytest.raises(ValueError, match="not 'polynomial' and 1"):
        CUBIC(np.zeros((5, 2)), np.zeros((5, 2)), bandwidth=1.0)
    with pytest.raises(ValueError, match="the bandwidth is 0; give a positive one"):
        mmd(np.zeros((5, 2)), np.zeros((5, 2)))
    for wrong in (math.inf, math.nan):
        with pytest.raises(ValueError, match=f"the bandwidth is {wrong}; give a positive one"):
            mmd(np.zeros((5, 2)), np.ones((5, 2)), bandwidth=wrong)
    for wrong in (2.5, math.nan):
        with pytest.raises(ValueError, match=f"projections={wrong}; it is a count from 1 on"):
            sliced_wasserstein(np.zeros((5, 2)), np.zeros((5, 2)), projections=wrong)
        with pytest.raises(ValueError, match=f"k={wrong}; it is a count from 1 on"):
            precision_recall(np.zeros((5, 2)), np.zeros((5, 2)), k=wrong)
    with pytest.raises(ValueError, match="k=0"):
        precision_recall(np.zeros((5, 2)), np.zeros((5, 2)), k=0)
    with pytest.raises(ValueError, match="4 or more samples"):
        precision_recall(np.zeros((3, 2)), np.zeros((5, 2)))


# Kernel distances


@pytest.mark.parametrize("block", [_points.BLOCK, 64])
@pytest.mark.parametrize("kernel", ["rbf", "polynomial"])
def test_mmd_is_the_sum_over_pairs(kernel, block, monkeypatch):
    """By loops over pairs, with the median distance within the second set."""
    monkeypatch.setattr(_points, "BLOCK", block)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((13, 1, 3))
    b = 1e3 + rng.standard_normal((17, 1, 3))
    a, b = (a + 1e3, b) if kernel == "rbf" else (a, b - 1e3)
    x = a.reshape(13, 3)
    y = b.reshape(17, 3)
    h = np.median([np.linalg.norm(y[i] - y[j]) for i in range(17) for j in range(i)])

    def k(p, q):
        return (
            np.exp(-np.square(p - q).sum() / (2 * h * h))
            if kernel == "rbf"
            else (p @ q / 3 + 1) ** 3
        )

    def mean(p, q):
        return np.mean(
            [k(p[i], q[j]) for i in range(len(p)) for j in range(len(q)) if p is not q or i != j]
        )

    assert mmd(a, b, kernel=kernel) == pytest.approx(
        mean(x, x) + mean(y, y) - 2 * mean(x, y), rel=1e-8, abs=1e-12
    )


def test_mmd_of_gaussians():
    """E exp(-|x - y|^2 / (2 h^2)) of normals in closed form; 400 estimates of few samples within
    5.5 standard errors.
    """
    d = 2
    h = 1.5
    shift = 0.7
    rng = np.random.default_rng(1)

    def kernel(variance, distance):
        return (h * h / (h * h + variance)) ** (d / 2) * math.exp(
            -(distance**2) / (2 * (h * h + variance))
        )

    expected = kernel(2, 0) + kernel(8, 0) - 2 * kernel(5, math.sqrt(d) * shift)
    found = [
        mmd(rng.standard_normal((8, d)), shift + 2 * rng.standard_normal((10, d)), bandwidth=h)
        for _ in range(400)
    ]
    stderr = np.std(found) / 20
    # With the diagonal, as it must not be, it would be more than twice as large.
    assert 5.5 * stderr < 0.4 * expected
    assert abs(np.mean(found) - expected) < 5.5 * stderr
    equal = [CUBIC(*rng.standard_normal((2, 8, d))) for _ in range(400)]
    assert abs(np.mean(equal)) < 5.5 * np.std(equal) / 20
    assert min(equal) < 0


# Precision and recall


@pytest.mark.parametrize("block", [_points.BLOCK, 64])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_agree_with_brute_force(k, block, monkeypatch):
    monkeypatch.setattr(_points, "BLOCK", block)
    rng = np.random.default_rng(0)
    x = 0.7 * rng.standard_normal((60, 2, 2)) + 100
    reference = rng.standard_normal((80, 2, 2)) + 100
    a = x.reshape(60, 4)
    b = reference.reshape(80, 4)

    def covered(p, q):
        radii = np.sort(cdist(q, q), axis=1)[:, k]
        return (cdist(p, q) <= radii).any(1).mean()

    found = precision_recall(x, torch.from_numpy(reference), k=k)
    assert found == pytest.approx((covered(a, b), covered(b, a)))
    assert 0.1 < found.recall < found.precision < 1


def test_precision_and_recall_mean_what_they_say():
    """Half of the modes, exactly: all precision, half the recall. Two sets of which one is far off
    in half: the converse.
    """
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 400, 2)) + np.array([[[-20.0, 0.0]], [[20.0, 0.0]]])
    both = np.concatenate([left, right])
    assert precision_recall(left[:200], both).precision > 0.9
    assert 0.4 < precision_recall(left, both).recall <= 0.5
    assert 0.4 < precision_recall(both, left).precision <= 0.5
    assert precision_recall(both, both) == (1, 1)
    twice = np.zeros((6, 2))
    assert precision_recall(twice, twice) == (1, 1)


def far(rng):
    """Images of 12 pixels, one of which has diverged to 1e10, with copies among them."""
    x = rng.standard_normal((300, 12))
    x[7] = 1e10
    return np.concatenate([x, x[:50], x[5:8] + 1e-9])


def test_squared_distances_do_not_cancel():
    """One that has diverged, far from 0, and two narrow modes far from each other: to a relative
    error, and exactly 0 for copies.
    """
    rng = np.random.default_rng(0)
    modes = rng.choice([-1e4, 1e4], (200, 1)) + 1e-2 * rng.standard_normal((200, 784))
    for x in (far(rng), 1e8 + rng.standard_normal((100, 3)), modes, np.zeros((5, 2))):
        expected = cdist(x, x, "sqeuclidean")
        found = _points.squares(x, x)
        np.testing.assert_allclose(found, expected, rtol=_points.ROUNDING, atol=0)
        assert ((found == 0) == (expected == 0)).all()


def test_one_diverged_sample_does_not_change_the_others():
    """Their neighbours, kernels and manifolds."""
    rng = np.random.default_rng(0)
    x = far(rng)
    others = x[np.abs(x[:, 0]) < 1e9]
    distances, indices = nearest(others, x)
    assert (distances == 0).all()
    assert (x[indices] == others).all()
    assert nearest([[1e-9]], [[0.0], [1e-9], [2e3]]) == (0, 1)
    shifted = rng.standard_normal((300, 12)) + 8
    expected = mmd(shifted, others)
    shifted[0] = 1e7
    assert precision_recall(shifted, others) == (0, 0)
    for value in (1e7, 1e12):
        shifted[0] = value
        assert mmd(shifted, others) == pytest.approx(expected, rel=0.02)
        assert mmd(others, shifted) == pytest.approx(mmd(others, shifted[1:]), rel=0.02)


# The sampling floor


def test_the_floor_is_of_disjoint_sets():
    """Each draw has every sample at most once, in sets of the sizes asked for, and another set than
    the other draws.
    """
    reference = np.arange(50)[:, None]
    seen = []

    def metric(a, b):
        seen.append((a.ravel(), b.ravel()))
        return len(a), len(b)

    floor = sampling_floor(metric, reference, 20, against=30, draws=4)
    assert floor.values.tolist() == [[20, 30]] * 4
    assert floor.std.tolist() == [0, 0]
    assert all(sorted([*a, *b]) == list(range(50)) for a, b in seen)
    assert len({tuple(a) for a, _ in seen}) == 4
    assert math.isnan(sampling_floor(energy_distance, reference, 5, draws=1).std)


@pytest.mark.parametrize("metric", [*SETS, mmd, CUBIC, precision_recall])
def test_real_samples_are_at_the_floor(metric):
    """Other real samples within six of its deviations, and samples with a wrong mean beyond."""
    rng = np.random.default_rng(0)
    reference = torch.from_numpy(rng.standard_normal((2000, 2)))
    real = rng.standard_normal((200, 2))
    floor = sampling_floor(metric, reference, 200, draws=20, seed=1)
    first = np.ravel(floor.mean)[0], np.ravel(floor.std)[0]

    def away(x):
        return abs(np.ravel(metric(x, reference[:200]))[0] - first[0]) / first[1]

    assert away(real) < 6
    assert away(real + 1.5) > 6


def test_floors_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="two disjoint sets of 30 and 30 need 60"):
        sampling_floor(frechet, np.zeros((50, 2)), 30)
    with pytest.raises(ValueError, match="count from 1"):
        sampling_floor(frechet, np.zeros((50, 2)), 10, draws=0)
    for name in ("n", "against", "draws"):
        with pytest.raises(ValueError, match=f"{name}=2.5; it is a count from 1 on"):
            sampling_floor(frechet, np.zeros((50, 2)), **{"n": 10, name: 2.5})


# Modes

TILTED = GaussianMixture(
    [0.2, 0.3, 0.5],
    torch.tensor([[-4.0, 0.0], [4.0, 1.0], [0.0, 5.0]], dtype=torch.float64),
    torch.tensor(
        [[[1.0, 0.6], [0.6, 0.5]], [[0.3, -0.1], [-0.1, 0.2]], [[0.2, 0.0], [0.0, 0.9]]],
        dtype=torch.float64,
    ),
)


def test_modes_of_exact_samples():
    """Scores are standard normal: the mean square of each kind over 60 sets, within 5.5 deviations,
    and how often the worst is above the 95 % floor.
    """
    found = [modes(TILTED.sample(2000, seed=seed), TILTED) for seed in range(60)]
    assert all(len(f.scores) == 3 * (1 + 2 + 3) for f in found)
    kinds = {
        "weights": [f.weight_scores for f in found],
        "means": [f.mean_scores for f in found],
        "variances": [np.diagonal(f.covariance_scores, axis1=1, axis2=2) for f in found],
        "correlations": [f.covariance_scores[:, 0, 1] for f in found],
    }
    for kind, scores in kinds.items():
        independent = np.size(scores) * (2 / 3 if kind == "weights" else 1)  # weights add up to one
        assert np.square(scores).mean() == pytest.approx(1, abs=5.5 * math.sqrt(2 / independent)), (
            kind
        )
    # Of 60 at 5 %: more have a probability of 1e-6.
    assert sum(f.worst > f.floor() for f in found) <= 14
    assert found[0].floor() == pytest.approx(-scipy.stats.norm.ppf((1 - 0.95 ** (1 / 18)) / 2))
    np.testing.assert_allclose(found[0].weights, TILTED.weights, atol=0.06)
    np.testing.assert_allclose(found[0].means, TILTED.means, atol=0.3)
    np.testing.assert_allclose(found[0].covariances, TILTED.covariances, atol=0.3)


@pytest.mark.parametrize("part", ["weights", "means", "variances", "correlation"])
def test_modes_that_are_wrong_show(part):
    """A sixth of one mode's deviation, or a fifth of its weight or variance, or another
    correlation, in 20,000 samples.
    """
    weights = TILTED.weights.clone()
    means = TILTED.means.clone()
    covariances = TILTED.covariances.clone()
    if part == "weights":
        weights = torch.tensor([0.24, 0.26, 0.5], dtype=torch.float64)
    elif part == "means":
        means[1, 0] += 0.1
    elif part == "variances":
        covariances[0] *= 1.2
    else:
        covariances[1, 0, 1] = covariances[1, 1, 0] = 0.1
    wrong = modes(GaussianMixture(weights, means, covariances).sample(20_000, seed=1), TILTED)
    assert wrong.worst > 8
    # The covariances are products that need not be symmetric to the last bit; `worst` looks at
    # their upper halves.
    which = {"weights": wrong.weight_scores, "means": wrong.mean_scores}.get(
        part, np.triu(wrong.covariance_scores)
    )
    assert np.abs(which).max() == wrong.worst
    assert modes(TILTED.sample(20_000, seed=1), TILTED).worst < 5.5


def test_the_fit_of_a_single_mode_is_the_mean_and_the_unbiased_covariance():
    x = np.random.default_rng(0).standard_normal((7, 2)) @ np.array([[2.0, 0.5], [0.0, 1.0]]) + 3
    law = GaussianMixture(
        [1.0],
        torch.tensor([[1.0, 2.0]], dtype=torch.float64),
        torch.tensor([[[2.0, 0.3], [0.3, 0.5]]], dtype=torch.float64),
    )
    found = modes(x, law)
    np.testing.assert_allclose(found.means[0], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariances[0], np.cov(x.T), rtol=1e-12)


def test_modes_that_overlap_have_no_bias():
    """A narrow mode in the flank of a wide one: assigned to the likelier alone, means would be off
    by 10 standard errors.
    """
    law = GaussianMixture(
        [0.8, 0.2], torch.tensor([[-0.75], [0.75]], dtype=torch.float64), [1.0, 0.25]
    )
    x = law.sample(20_000, seed=2)
    assert modes(x, law).worst < 5.5
    hard = x[law.responsibilities(x).argmax(1) == 0]
    assert abs(float(hard.mean()) + 0.75) * math.sqrt(len(hard)) > 10


def test_a_missing_mode():
    x = TILTED.sample(2000, seed=1)
    found = modes(x[TILTED.responsibilities(x).argmax(1) > 0], TILTED)
    assert found.weights[0] < 1e-3
    assert np.isnan(found.means[0]).all()
    assert np.isnan(found.covariance_scores[0]).all()
    assert found.worst == -found.weight_scores[0] > 15
    alone = GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), [1.0])
    assert modes(alone.sample(1000, seed=1), alone).worst < 5.5
    for wrong in (1.5, math.nan):
        with pytest.raises(ValueError, match=f"the confidence is a probability .* not {wrong}"):
            found.floor(wrong)
    with pytest.raises(ValueError, match="samples of 3 numbers, and the mixture's means have 2"):
        modes(np.zeros((5, 3)), TILTED)


# Features


def test_classifier_features_tell_classes_apart():
    """Three clusters: all are recognised; features are those of the network; a missing class is
    far, real samples near.
    """
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=600)
    x = rng.standard_normal((600, 2, 2)) * 0.05 + np.eye(4)[labels].reshape(600, 2, 2)
    features = classifier_features(x[:400], labels[:400], width=8)
    assert features.accuracy(x[400:], labels[400:]) > 0.98
    np.testing.assert_allclose(
        features(x), np.maximum(x.reshape(600, 4) @ features.weight + features.offset, 0)
    )
    real = features(x[400:])
    known = features(x[:400])
    assert frechet(real, known) < 0.1 * frechet(real[labels[400:] > 0], known)
    with pytest.raises(ValueError, match="labels name 2 classes"):
        classifier_features(x, labels > 0)


def bars(n, seed):
    """Images of a bar at a random place: upright, level or aslant; and their classes."""
    rng = np.random.default_rng(seed)
    labels, row, column = rng.integers(3, size=n), *np.mgrid[:16, :16]
    across = np.stack([column, row, (row + column) % 16])[labels]
    return ((across - rng.integers(16, size=(n, 1, 1))) % 16 < 4)[:, None].astype(float), labels


def test_image_features_see_more_than_moments(monkeypatch):
    """Gaussians with the moments of each class are far, real images near."""
    monkeypatch.setattr(_image_features, "_UPDATES", 120)
    (x, labels) = bars(600, 0)
    (real, others) = bars(400, 1)
    rng = np.random.default_rng(0)
    flat = x.reshape(600, -1)
    fits = [(flat[labels == k].mean(0), np.cov(flat[labels == k].T)) for k in range(3)]
    fake = np.empty_like(real)
    for k, fit in enumerate(fits):
        shape = real[others == k].shape
        fake[others == k] = rng.multivariate_normal(*fit, shape[0], method="eigh").reshape(shape)
    torch.manual_seed(5)
    features = image_features(x, labels, width=16)
    assert features.accuracy(real, others) > 0.97
    assert features(x).shape == (600, 16)
    assert frechet(features(fake), features(x)) > 5 * frechet(features(real), features(x))
    assert torch.random.initial_seed() == 5
    monkeypatch.setattr(_image_features, "_UPDATES", 8)
    again = [image_features(part, labels, width=16)(real) for part in (x, torch.from_numpy(x))]
    np.testing.assert_array_equal(*again)
    assert torch.random.initial_seed() == 5


def test_the_accuracy_takes_one_label_for_each_sample():
    """Also of a column of labels, which is not compared with every sample."""
    rng = np.random.default_rng(0)
    net, head = torch.nn.Flatten(), torch.nn.Linear(256, 3)
    images = ImageFeatures(net, head, np.arange(3))
    points = ClassifierFeatures(np.eye(3), np.zeros(3), np.eye(3), np.zeros(3), np.arange(3))
    for features, x in ((images, rng.random((60, 1, 16, 16))), (points, rng.random((60, 3)))):
        labels = features.logits(x).argmax(1)
        labels[:15] += 1
        assert features.accuracy(x, labels) == 0.75
        assert features.accuracy(x, labels[:, None]) == 0.75
        for wrong in (labels[:1], np.stack([labels, labels], axis=1)):
            with pytest.raises(ValueError, match=r"for 60 samples; give one label for each"):
                features.accuracy(x, wrong)


@pytest.mark.parametrize("train", [image_features, classifier_features])
@pytest.mark.parametrize("count", [20, 40])
def test_features_take_one_label_for_each_sample(train, count):
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="for 30 samples; give one label for each"):
        train(bars(30, 0)[0], bars(count, 0)[1])
    with pytest.raises(ValueError, match="labels are whole numbers, one for each class"):
        train(bars(30, 0)[0], np.linspace(0.0, 1.0, 30))


def test_images_without_features():
    x, labels = bars(30, 0)
    for images, classes in ((x, labels > 0), (x[..., :9], labels)):
        with pytest.raises(ValueError, match="these features need three classes and 16 pixels"):
            image_features(images, classes)
    with pytest.raises(ValueError, match=r"shape \(30, 256\); images are \(N, C, H, W\)"):
        image_features(x.reshape(30, -1), labels)


class Projection(torch.nn.Module):
    """Features of images of levels."""

    def __init__(self, width):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(width, 64, generator=generator) / 8

    def forward(self, images):
        return torch.tanh(images.flatten(1).float() / 16 @ self.weight.T)


def levels(n, shift, seed):
    return torch.randint(0, 12, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) + shift


def test_torchmetrics_agrees_with_ours():
    """FID and, of one subset of all images, KID; the Inception Score by its definition; batches and
    seeds.
    """
    network = Projection(12)
    x = levels(80, 0, 1)
    reference = levels(100, 3, 2)
    settings = {"network": network, "classifier": network, "splits": 1}
    scores = inception_scores(x[:80], reference[:80], **settings)
    a = network(x)
    b = network(reference[:80])
    assert scores.fid == pytest.approx(frechet(a, b), rel=1e-4)
    assert scores.kid == pytest.approx(CUBIC(a, b), rel=1e-4)
    p = a.double().softmax(1)
    assert scores.inception == pytest.approx(
        float((p * (p / p.mean(0)).log()).sum(1).mean().exp()), rel=1e-5
    )
    same = inception_scores(x[:80], reference[:80], batch_size=7, **settings)
    assert (same.fid, same.kid) == pytest.approx((scores.fid, scores.kid))
    state = torch.get_rng_state()
    drawn = [
        inception_scores(x, reference, network=network, subset=20, seed=seed) for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0].kid == drawn[1].kid != drawn[2].kid
    assert math.isnan(drawn[0].inception)
    floor = sampling_floor(
        lambda a, b: inception_scores(a, b, network=network).fid, levels(400, 0, 3), 80
    )
    assert floor.mean + 3 * floor.std < scores.fid


def test_the_standard_network_is_asked_for_as_it_must_be(tmp_path):
    grey = levels(4, 0, 1)
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"takes uint8 \(N, 3, H, W\); give levels"):
        inception_scores(grey, grey)
    with pytest.raises(OSError, match=r"weights are not available .* give weights= a file"):
        inception_scores(images, images, weights=tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="two or more of each"):
        inception_scores(images[:1], images, network=Projection(2))


def test_torchmetrics_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match=r"pip install 'sdekit\[metrics\]'"):
        inception_scores(levels(4, 0, 1), levels(4, 0, 1), network=Projection(2))
