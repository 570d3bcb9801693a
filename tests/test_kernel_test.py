"""The kernel classifier two-sample test: by refits without each sample, its level, its power."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from sdekit_diffusion import metrics
from sdekit_diffusion.metrics import kernel_c2st


def test_leave_one_out_is_a_fit_without_each_sample():
    """The accuracy of kernel ridge regressions that never saw the sample, one by one."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((20, 3))
    b = 0.8 + rng.standard_normal((20, 3))
    x = np.concatenate([a, b])
    y = np.repeat([1.0, -1.0], 20)
    distances = np.linalg.norm(x[:, None] - x, axis=2)
    kernel = np.exp(
        -np.square(distances) / np.median(np.square(distances[np.triu_indices(40, 1)])) / 2
    )
    right = 0
    for i in range(40):
        rest = np.arange(40) != i
        weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + 0.03 * np.eye(39), y[rest])
        right += kernel[i, rest] @ weights * y[i] > 0
    assert kernel_c2st(a, b).accuracy == right / 40


def test_p_values_are_uniform_for_one_law():
    """The Kolmogorov-Smirnov test of 300 p-values that they are not too small, at a false-alarm
    rate of 1e-6, for a law with heavy tails and equal samples; and their mean within five standard
    errors (3e-7). Accuracies come in steps of 1/40, and p counts equal ones, so that it is larger
    than a uniform number by up to half of the probability of a step, 0.1.
    """
    rng = np.random.default_rng(1)
    p_values = []
    stderr = math.sqrt(1 / 12 / 300)
    for seed in range(300):
        x = rng.standard_t(1.5, (40, 2)).round(1)
        p_values.append(kernel_c2st(x[:20], x[20:], permutations=99, seed=seed).p_value)
    assert scipy.stats.kstest(p_values, "uniform", alternative="greater").pvalue > 1e-6
    assert 0.5 - 5 * stderr < np.mean(p_values) < 0.6 + 5 * stderr


def test_small_differences_are_noticed():
    """A sixth more width in all of 20 coordinates, which moves no mean, and two modes in the place
    of one normal law with the same mean and covariance.
    """
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 300, 20))
    assert kernel_c2st(a, 7 / 6 * b, permutations=199).p_value == 1 / 200
    modes = rng.choice([-0.95, 0.95], (300, 1)) + math.sqrt(1 - 0.95**2) * b[:, :1]
    assert kernel_c2st(a[:, :1], modes, permutations=199).p_value == 1 / 200


def test_the_scale_the_place_and_the_type_do_not_matter():
    x = torch.randn(60, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = x[:30]
    b = 0.5 + x[30:]
    found = kernel_c2st(a, b, permutations=99)
    assert kernel_c2st(100 + 8 * a.numpy(), 100 + 8 * b, permutations=99) == found
    assert kernel_c2st(a, b, permutations=99, seed=1).accuracy == found.accuracy
    assert kernel_c2st(a, b, permutations=700).stderr == pytest.approx(found.stderr, rel=0.3)


def test_sets_without_a_difference():
    """Equal samples are not distinguished, nor is there a division by their distance."""
    assert kernel_c2st(np.ones((5, 2)), np.ones((5, 2))).p_value == 1
    x = np.random.default_rng(0).standard_normal((50, 2))
    assert kernel_c2st(x, x).p_value > 0.5


def test_one_diverged_sample_hides_no_difference():
    a, b = np.random.default_rng(0).standard_normal((2, 200, 2))
    a[0] = 1e10
    assert kernel_c2st(a, b + 2, permutations=199).p_value == 1 / 200


def test_wrong_sets_are_refused():
    with pytest.raises(ValueError, match="there are 5 samples of a and 6 of b"):
        kernel_c2st(np.zeros((5, 2)), np.zeros((6, 2)))
    with pytest.raises(ValueError, match="2 or more samples"):
        kernel_c2st(np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="permutations=0"):
        kernel_c2st(np.zeros((5, 2)), np.zeros((5, 2)), permutations=0)
    with pytest.raises(ValueError, match=r"permutations=9\.5; it is a count from 1 on"):
        kernel_c2st(np.zeros((5, 2)), np.zeros((5, 2)), permutations=9.5)
    assert "kernel_c2st" in metrics.__all__
