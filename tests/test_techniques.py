"""NCSNv2's techniques against its published table, against brute force, and the error that a
sampled distance states.
"""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from sdekit_diffusion import (
    NCSN,
    NCSNSettings,
    geometric_sigmas,
    langevin_step_size,
    max_pairwise_distance,
    ncsnv2_settings,
)
from sdekit_diffusion._sampling.techniques import level_overlap, variance_ratio

# Song and Ermon 2020, table 4: dimension, sigma_1, L, T and e; and what the formulas give: L at
# overlap 0.5, the overlap of the published L, e. The published e of church and of FFHQ are not the
# minimiser.
TABLE = {
    "CIFAR-10": (3072, 50, 232, 5, 6.2e-6, 219.2, 0.567, 6.18e-6),
    "CelebA": (12288, 90, 500, 5, 3.3e-6, 472.2, 0.567, 3.33e-6),
    "church": (27648, 140, 788, 4, 4.9e-6, 744.5, 0.566, 2.31e-6),
    "bedroom": (49152, 190, 1086, 3, 1.8e-6, 1025.7, 0.566, 1.77e-6),
    "FFHQ": (196608, 348, 2311, 3, 0.9e-7, 2181.6, 0.567, 8.93e-7),
}
POINTS = torch.randn(300, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", TABLE)
def test_the_published_table(name):
    dim, largest, count, steps, published, at_half, overlap, e = TABLE[name]
    assert level_overlap(dim, (100 * largest) ** (1 / (count - 1))) == pytest.approx(
        overlap, abs=5e-4
    )
    assert abs(len(geometric_sigmas(dim, largest)) - at_half) < 1
    settings = ncsnv2_settings(dim, sigma_max=largest, overlap=overlap, steps=steps)
    assert len(settings.sigmas) == count
    assert (settings.sigmas[0], settings.sigmas[-1]) == (largest, 0.01)
    assert settings.step_size == pytest.approx(e, rel=0.01)
    assert (abs(published / settings.step_size - 1) < 0.02) == (name not in ("church", "FFHQ"))
    assert (settings.steps, settings.convention, settings.ema) == (steps, "ncsnv2", 0.999)
    assert settings.sde == NCSN(settings.sigmas)


def test_the_quotient_stays_above_one():
    assert ncsnv2_settings(3072, sigma_max=50, overlap=0.567).variance_ratio == pytest.approx(
        1.0555, abs=5e-5
    )


@pytest.mark.parametrize("steps", [1, 2, 5, 100])
@pytest.mark.parametrize("ratio", [1.005, 1.04, 1.5, 4.0])
def test_the_step_size_is_the_minimiser(ratio, steps):
    """Of the quotient as the paper writes it."""

    def quotient(h, least=0.01):
        e = h * least**2
        spread = 2 * e / (least**2 - least**2 * (1 - e / least**2) ** 2)
        return (1 - e / least**2) ** (2 * steps) * (ratio**2 - spread) + spread

    found = langevin_step_size(torch.tensor([0.01 * ratio**2, 0.01 * ratio, 0.01]), steps) / 1e-4
    assert quotient(found) == pytest.approx(variance_ratio(ratio, steps, found), rel=1e-12)
    best = minimize_scalar(quotient, bounds=(1e-6, 1.9), method="bounded", options={"xatol": 1e-10})
    assert found == pytest.approx(best.x, rel=1e-5)
    assert quotient(found) <= best.fun + 1e-12


def test_ncsns_step_is_twice_ncsnv2s():
    sigmas = (1.0, 0.1, 0.01)
    assert (
        NCSNSettings(sigmas, 7, 2e-5, "ncsn").variance_ratio
        == NCSNSettings(sigmas, 7, 1e-5).variance_ratio
    )


def test_in_a_few_dimensions_all_levels_overlap():
    """sqrt(2 d) < 3: the larger deviation is wider than the shift of the lengths, whatever the
    ratio.
    """
    assert geometric_sigmas(4, 10.0).tolist() == [10.0, 0.01]
    assert len(geometric_sigmas(16, 10.0)) > 5


@pytest.mark.parametrize("block", [1, 70, 1 << 22])
def test_the_largest_distance_is_exact(monkeypatch, block):
    monkeypatch.setattr("sdekit_diffusion._sampling.techniques._BLOCK", block)
    few = POINTS[:80]
    sphere = few / few.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    for points in (
        few,
        sphere,
        few[:2],
        few + 1e4,
        torch.zeros(3, 2),
        (10 * few).round().to(torch.int64),
    ):
        expected = torch.pdist(points.flatten(1).double()).max().item()
        assert max_pairwise_distance(points) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    single = (few + 1e4).float()
    assert max_pairwise_distance(single) == pytest.approx(
        torch.pdist(single.flatten(1).double()).max().item(), rel=1e-12
    )


def test_a_sampled_distance_keeps_its_promise():
    """In 300 choices the fraction of points with one farther away exceeds log(20)/20 no more often
    than 1 in 20.

    False alarm 1e-6 by the binomial law. With half of that fraction it would be 1 in sqrt(20),
    which the same bound refuses.
    """
    m = 20
    trials = 300
    delta = 0.05
    farthest = torch.cdist(POINTS.flatten(1), POINTS.flatten(1)).amax(dim=1)
    found = torch.tensor(
        [max_pairwise_distance(POINTS, sample=m, seed=seed) for seed in range(trials)]
    )
    beyond = (farthest > found[:, None] + 1e-9).double().mean(dim=1)
    assert (found >= 0.5 * farthest.max()).all()
    most = binom.isf(1e-6, trials, delta)
    fraction = math.log(1 / delta) / m
    assert (beyond > fraction).sum() <= most
    assert (beyond > 0.5 * fraction).sum() > most
    assert max_pairwise_distance(POINTS, sample=300) == max_pairwise_distance(POINTS)


def test_settings_from_data():
    settings = ncsnv2_settings(POINTS)
    assert settings.sigmas[0] == pytest.approx(max_pairwise_distance(POINTS))
    assert settings == ncsnv2_settings(10, sigma_max=settings.sigmas[0])
    assert ncsnv2_settings(POINTS, sample=20, seed=3).sigmas[0] == max_pairwise_distance(
        POINTS, sample=20, seed=3
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_pairwise_distance(POINTS[:1]), "n from 2 on"),
        (lambda: max_pairwise_distance(torch.tensor(1.0)), "n from 2 on"),
        (lambda: max_pairwise_distance(POINTS * math.nan), "NaN or infinite"),
        (lambda: max_pairwise_distance(POINTS, sample=301), "1 to 300 here, not 301"),
        (lambda: geometric_sigmas(64, 0.01, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: geometric_sigmas(64, 1.0, overlap=0.999), "between 0 and 0.997"),
        (lambda: langevin_step_size(torch.tensor([0.01, 1.0]), 5), "decreasing positive levels"),
        (lambda: langevin_step_size(torch.tensor([1.0, 0.01]), 0), "steps >= 1"),
        (lambda: langevin_step_size(torch.tensor([1.0, 0.5, 0.1]), 5), "geometric progression"),
        (lambda: ncsnv2_settings(64), "pass the data, or sigma_max"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
