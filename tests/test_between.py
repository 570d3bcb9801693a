"""Samples between two seeds: the ends, the law in between, and that near ones are alike."""

import pytest
import torch

from sdekit import WhiteNoise, geometric
from sdekit_diffusion import (
    VESDE,
    EmpiricalMixture,
    GaussianMixture,
    LinearObservation,
    MomentMatched,
    OnClock,
    Sigmas,
    sample,
    sample_between,
)
from sdekit_diffusion._sampling.between import InterpolatedNoise

MODEL = EmpiricalMixture(torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0)), 0.2)


@pytest.mark.parametrize("method", [OnClock(eta=1.0, steps=20), "pc", "ncsnv2", "default"], ids=str)
@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_the_ends_are_the_samples_of_their_seeds(method):
    given = {
        "sde": "vp",
        "method": method,
        "steps": None if method == "default" else 20,
        "end": 0.01,
    }
    found = sample_between(MODEL, 3, 8, 5, **given)
    assert found.shape == (5, 2, 3)
    for end, seed in ((0, 3), (-1, 8)):
        torch.testing.assert_close(found[end], sample(MODEL, seed=seed, **given)[0])
    torch.testing.assert_close(sample_between(MODEL, 3, 8, 5, batch_size=2, **given), found)


SIGMAS = Sigmas(geometric(10.0, 0.01, 12))


@pytest.mark.parametrize(
    ("method", "sde"),
    [("ddim", VESDE(0.01, 3.0)), (OnClock(grid=SIGMAS), "ve"), (OnClock(grid=SIGMAS), "vp")],
    ids=["ddim", "sigmas under VE", "sigmas under VP"],
)
def test_the_ends_of_posteriors_and_of_given_levels(method, sde):
    """Draws from the prior are shifted to the mean of a posterior, and begin at the first level."""
    law = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
    y = LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), 0.1)
    for model in (law, MomentMatched(law, y)):
        found = sample_between(model, 3, 4, 3, sde=sde, method=method)
        for end, seed in ((0, 3), (-1, 4)):
            expected = sample(model, 1, sde=sde, method=method, seed=seed)[0]
            torch.testing.assert_close(found[end], expected)


def test_near_ones_are_alike():
    """Steps between 400 neighbours are small beside the distance of the ends; with noise of its own
    none would be.
    """
    model = EmpiricalMixture(torch.zeros(1, 50), 1.0)
    x = sample_between(model, 1, 2, 400, sde="ve", method="ncsnv2", steps=30)
    steps = x.diff(dim=0).norm(dim=1)
    ends = (x[-1] - x[0]).norm()
    assert steps.max() < 0.02 * ends
    own = sample(model, 2, sde="ve", method="ncsnv2", steps=30, seed=1)
    assert (own[1] - own[0]).norm() > 0.5 * ends


def test_in_between_the_noise_has_its_law():
    """Mean, variance and independence of steps within 5.5 standard errors of 1e5 numbers: false
    alarms below 1e-6. A straight line would halve the variance in the middle.
    """
    x = torch.zeros(4, 100_000)
    u = torch.linspace(0, 1, 4, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.int64)
    noise = InterpolatedNoise(WhiteNoise(1, index=zero), WhiteNoise(2, index=zero), u)
    steps = list(noise.increments([0.0, 1.0, 2.0], x, (100_000,), levy=True, normals=2))
    parts = [part for s in steps for part in (s.w, s.h * 12**0.5, s.z[0], s.z[1])]
    for i, a in enumerate(parts):
        assert (a.mean(dim=1).abs() < 5.5 / 1e5**0.5).all()
        assert ((a.square().mean(dim=1) - 1).abs() < 5.5 * (2 / 1e5) ** 0.5).all()
        assert all(((a * b).mean(dim=1).abs() < 5.5 / 1e5**0.5).all() for b in parts[:i])
    some = noise.rows(torch.tensor([2]))
    assert torch.equal(next(some.increments([0.0, 1.0], x[:1], (100_000,))).w, steps[0].w[2:3])


def test_what_is_refused():
    with pytest.raises(ValueError, match="with both ends, must be 2 or more, not 1"):
        sample_between(MODEL, 0, 1, 1, sde="vp")
    with pytest.raises(ValueError, match="no diffusion of its own"):
        sample_between(MODEL, 0, 1)
    with pytest.raises(ValueError, match="AdaptiveSDE reads a Brownian path, which is not interp"):
        sample_between(MODEL, 0, 1, sde="vp", method="adaptive_sde")
    with pytest.raises(ValueError, match=r"the same seed, 3, .* give two seeds"):
        sample_between(MODEL, 3, 3, sde="vp")
