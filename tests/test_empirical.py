"""The mixture of images: against `GaussianMixture`, in float32 against float64, and in bounded
memory.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdekit import Hutchinson
from sdekit_diffusion import (
    DIFFUSIONS,
    EDMSDE,
    AdaptiveFlow,
    EmpiricalMixture,
    GaussianMixture,
    LinearObservation,
    log_likelihood,
    sample,
)

GENERATOR = torch.Generator().manual_seed(0)
FEW, MANY = (torch.randn(n, 2, 3, generator=GENERATOR, dtype=torch.float64) for n in (5, 300))
close = torch.testing.assert_close


def pair(centres, std):
    n = len(centres)
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    return EmpiricalMixture(centres, std), GaussianMixture(
        weights, centres, torch.full((n,), std**2, dtype=torch.float64)
    )


@pytest.mark.parametrize("centres", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("std", [0.3, 1e-4])
@pytest.mark.parametrize("name", DIFFUSIONS)
def test_it_is_a_gaussian_mixture(centres, std, name):
    ours, plain = pair(centres, std)
    sde = DIFFUSIONS[name]()
    for t in (0.0, 1e-6, 0.01, 0.5, 1.0, torch.linspace(0, 1, 40, dtype=torch.float64)):
        t = t * sde.T
        alpha, sigma = (
            torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1)
            for v in (sde.alpha(t), sde.sigma(t))
        )
        x = alpha * ours.sample(40, seed=1) + sigma * torch.randn(
            40, 2, 3, generator=GENERATOR, dtype=torch.float64
        )
        close(ours.score(t, x, sde), plain.score(t, x, sde), rtol=1e-10, atol=1e-10)
        close(ours.denoise(t, x, sde), plain.denoise(t, x, sde), rtol=1e-10, atol=1e-10)
    close(ours.log_prob(x), plain.log_prob(x), rtol=1e-10, atol=1e-10)
    close(ours.responsibilities(x), plain.responsibilities(x), rtol=1e-10, atol=1e-10)
    law = ours.marginal(0.3 * sde.T, sde)
    close(law.log_prob(x), plain.marginal(0.3 * sde.T, sde).log_prob(x), rtol=1e-10, atol=1e-10)


def test_samples_are_a_gaussian_mixtures():
    ours, plain = pair(MANY, 0.1)
    close(ours.sample(20, seed=3), plain.sample(20, seed=3), rtol=1e-12, atol=1e-12)
    assert ours.data_std == pytest.approx(plain.data_std, rel=1e-12)
    assert torch.equal(ours.sample(5, seed=3, first=10), ours.sample(20, seed=3)[10:15])
    assert torch.equal(ours.centres, MANY)


@pytest.mark.parametrize("apart", [1e-3, 0.3])
@pytest.mark.parametrize("sigma", [0.003, 0.03, 0.3])
def test_float32_weighs_near_duplicates_as_float64_does(apart, sigma):
    """Five images of 3,072 numbers, each eight times with small changes: between these the weights
    are decided by the last digits of |x - c|^2, which the product lacks: alone it is off by much
    more than the bound.
    """
    base = torch.rand(5, 1, 3072, generator=GENERATOR)
    centres = (
        base + apart * sigma * torch.randn(5, 8, 3072, generator=GENERATOR) / math.sqrt(3072)
    ).flatten(0, 1)
    x = centres[::3] + sigma * torch.randn(14, 3072, generator=GENERATOR)
    single = EmpiricalMixture(centres, sigma).responsibilities(x)
    double = EmpiricalMixture(centres.double(), sigma).responsibilities(x.double())
    assert (single - double).abs().max() < 2e-4
    product = (
        -0.5
        * (centres.square().sum(1) - 2 * x @ centres.T + x.square().sum(1, keepdim=True))
        / sigma**2
    )
    if sigma < 0.1:
        assert (torch.softmax(product, dim=1) - double).abs().max() > 2e-3


@pytest.mark.parametrize("std", [0.0, 0.02])
def test_float32_far_from_0(std):
    """Whose products have an error of the size of the squared distances, unless they are of
    differences to the mean: those of points near 0 need no copy of the centres.
    """
    centres = (1e3 + 0.1 * torch.randn(1000, 2, generator=GENERATOR)).float()
    single = EmpiricalMixture(centres, std)
    double = EmpiricalMixture(centres.double(), std)
    x = centres + 0.03 * torch.randn(1000, 2, generator=GENERATOR)
    error = single.denoise(0.03, x, "edm") - double.denoise(0.03, x.double(), "edm")
    assert error.abs().max() < 2e-3 * 0.1
    assert torch.equal(single.centres, centres)
    assert single._centred.abs().max() < 1
    near = EmpiricalMixture(MANY, std)
    assert near._centred.data_ptr() == MANY.data_ptr()


@pytest.mark.parametrize("far", [0.0, 100.0])
def test_products_of_differences_to_the_mean(far):
    """In float64, with a time and derivatives of each sample."""
    ours, plain = pair(MANY + far, 0.2)
    t = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    noise = torch.randn(20, 2, 3, generator=GENERATOR, dtype=torch.float64)
    x = (0.5 * MANY[:20] + 0.5 * far + noise).requires_grad_()
    for name in ("denoise", "score"):
        a, b = (getattr(law, name)(t, x, "vp") for law in (ours, plain))
        close(a, b, rtol=1e-9, atol=1e-9)
        slopes = [torch.autograd.grad(value.square().sum(), x)[0] for value in (a, b)]
        close(*slopes, rtol=1e-8, atol=1e-6)
    law = ours.marginal(0.3, "vp")
    close(law.log_prob(x), plain.marginal(0.3, "vp").log_prob(x), rtol=1e-9, atol=1e-9)


def test_points_themselves_have_a_score_where_there_is_noise():
    points = EmpiricalMixture(FEW)
    near = FEW[2:3] + 1e-4
    close(points.score(1e-3, near, "edm"), (FEW[2:3] - near) / 1e-6, rtol=1e-9, atol=0)
    close(points.denoise(1e-3, near, "edm"), FEW[2:3])
    for call in (lambda: points.score(0.0, near, "edm"), lambda: points.log_prob(near)):
        with pytest.raises(ValueError, match="neither score nor density where sigma = 0"):
            call()
    x = sample(points, 20, sde="vp", seed=0)
    nearest = FEW[torch.cdist(x.flatten(1), FEW.flatten(1)).argmin(dim=1)]
    close(sample(points, 20, sde="vp", seed=0, denoise=True), nearest)


def test_likelihoods_through_autograd():
    """The exact trace is that of the closed form; so are Hutchinson's estimates, probe by probe."""
    ours, plain = pair(MANY, 0.3)
    x = ours.sample(4, seed=0)
    given = {"sde": "vp", "method": AdaptiveFlow(1e-6, 1e-6)}
    for trace in (None, Hutchinson(2)):
        a, b = (log_likelihood(model, x, trace=trace, **given) for model in (ours, plain))
        close(a.value, b.value, rtol=1e-7, atol=1e-7)


class Largest(TorchDispatchMode):
    """The most numbers that a tensor had which torch made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_memory_is_bounded(monkeypatch):
    """No tensor has more than a block of numbers, where points times centres would be 200 times as
    many; in one block it is.
    """
    centres = torch.randn(1000, 8, generator=GENERATOR)
    x = torch.randn(2000, 8, generator=GENERATOR)
    mixture = EmpiricalMixture(centres, 0.1)
    expected = mixture.score(0.5, x, "edm")
    sizes = {}
    for block in (10_000, 1 << 23):
        monkeypatch.setattr("sdekit_diffusion._models.empirical._BLOCK", block)
        with Largest() as largest:
            score = mixture.score(0.5, x, "edm")
            mixture.log_prob(x)
        sizes[block] = largest.numbers
        close(score, expected, rtol=1e-5, atol=1e-5)
    assert sizes[10_000] <= 2 * 10_000 < 2_000_000 <= sizes[1 << 23]


@pytest.mark.parametrize("method", ["default", "ode", "ncsnv2"])
def test_one_point_at_0_has_no_scale_and_is_found(method):
    point = EmpiricalMixture(torch.zeros(1, 2, dtype=torch.float64))
    x = sample(point, 3, sde="vp", method=method, seed=0, denoise=True)
    assert torch.equal(x, torch.zeros_like(x))


def test_the_scale_of_points_that_are_near_each_other_and_far_from_0():
    """In float32, of which the mean of the squares has a rounding error of 1e-3; and 1 where all
    points are the same.
    """
    generator = torch.Generator().manual_seed(0)
    points = 100 + 0.01 * torch.randn(500, 4, generator=generator, dtype=torch.float64)
    law = EmpiricalMixture(points.float())
    expected = points.float().double()
    std = float(expected.var(dim=0, correction=0).mean().sqrt())
    assert law.data_std == pytest.approx(std, rel=1e-9)
    torch.testing.assert_close(law.data_mean, expected.mean(0).float(), rtol=0, atol=0)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    mean = weights @ points[:3]
    law = EmpiricalMixture(points[:3], weights=weights)
    std = float((weights @ (points[:3] - mean).square()).mean().sqrt())
    assert law.data_std == pytest.approx(std, rel=1e-9)
    assert EmpiricalMixture(points[:1].expand(7, 4)).data_std == 1.0


def test_shapes_and_empty_batches():
    scalars = EmpiricalMixture(torch.tensor([-1.0, 1.0]), 0.1)
    assert scalars.score(0.3, torch.zeros(4), "vp").shape == (4,)
    assert scalars.score(0.3, torch.zeros(0), "vp").shape == (0,)
    assert EmpiricalMixture(FEW).score(0.3, FEW[:0], EDMSDE()).shape == (0, 2, 3)
    assert EmpiricalMixture(FEW, 0.1).log_prob(FEW[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EmpiricalMixture(torch.zeros(0, 3)), "floating, of shape"),
        (lambda: EmpiricalMixture(torch.zeros(2, 3, dtype=torch.int64)), "floating, of shape"),
        (lambda: EmpiricalMixture(FEW * math.inf), "must be finite"),
        (lambda: EmpiricalMixture(FEW, -1.0), "std is -1.0"),
        (
            lambda: EmpiricalMixture(FEW).score(0.5, FEW.flatten(1), "vp"),
            "points must be floating, of shape",
        ),
        (
            lambda: EmpiricalMixture(FEW).score(0.5, FEW),
            "EmpiricalMixture has no diffusion of its own",
        ),
        (lambda: EmpiricalMixture(FEW).score(1.5, FEW, "vp"), "outside the range"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_posterior_has_its_axes_once():
    """No array of one matrix for each of 300 components, 480,000 numbers; samples are the same."""
    points = torch.randn(300, 40, generator=GENERATOR, dtype=torch.float64)
    observation = LinearObservation(torch.ones(1, 40), torch.zeros(1), 100.0)
    x = points[:2].float()
    with Largest() as largest:
        law = EmpiricalMixture(points, 0.1).given(observation)
        law.sample(100, seed=0)
        law.denoise(0.5, x, "vp")
        law.score(0.5, points[:2], "vp")
    assert 24_000 <= largest.numbers <= 48_000


def test_samples_of_a_posterior_have_its_law():
    """Whose components share their variances: means and variances within 6 standard errors."""
    points = torch.tensor([[-1.0, 0.2], [0.3, 1.0], [1.2, -0.5]], dtype=torch.float64)
    y = LinearObservation(torch.tensor([[1.0, 0.5]]), torch.tensor([0.4]), 0.5)
    law = EmpiricalMixture(points, 0.3).given(y)
    n = 20_000
    x = law.sample(n, seed=0)
    variance = law.covariance().diagonal()
    assert ((x.mean(dim=0) - law.mean()).abs() < 6 * (variance / n).sqrt()).all()
    assert ((x.var(dim=0) / variance - 1).abs() < 6 * math.sqrt(2 / n)).all()
