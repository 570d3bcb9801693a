"""Denoisers of EDM and k-diffusion: exact ones, raw or not, give the exact score everywhere, and
wrong readings are named.
"""

import math
import re

import pytest
import torch
from torch import nn

from sdekit_diffusion import (
    EDMSDE,
    GaussianMixture,
    bits_per_dim,
    check_model,
    from_edm,
    load,
    log_likelihood,
    sample,
    save,
)

MEANS = torch.tensor(
    [[0.6, -0.7, 0.5, 0.2], [-0.6, -0.5, -0.7, 0.5], [0.5, 0.7, -0.4, -0.6]], dtype=torch.float64
)
MIXTURE = GaussianMixture(
    [0.3, 0.3, 0.4], MEANS, torch.tensor([0.004, 0.002, 0.008], dtype=torch.float64)
)
X = MIXTURE.sample(64, seed=1)
NOISY = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Double(nn.Module):
    """What it is given, with a weight of float64."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, *arguments, **conditions):
        return self.one * self.function(*arguments, **conditions)


def denoiser(x, sigma):
    assert sigma.shape == (len(x),)
    return MIXTURE.denoise(sigma.clamp(1e-9, 80.0), x, EDMSDE())


def inner(std, told="edm"):
    """F of D = c_skip x + c_out F(c_in x, c_noise), Karras et al.'s equation 7 solved for it."""

    def network(scaled, label):
        sigma = torch.exp(4 * label).clamp(1e-9, 80.0) if told == "edm" else label.clamp(min=1e-9)
        s = sigma[:, None]
        c_skip = std**2 / (s**2 + std**2)
        c_out = s * std / (s**2 + std**2).sqrt()
        x = scaled * (s**2 + std**2).sqrt()
        return (denoiser(x, sigma) - c_skip * x) / c_out

    return network


READ = {
    "denoiser": (denoiser, {}),
    "edm": (inner(0.5), {"raw": "edm"}),
    "k-diffusion": (inner(1.0, "k-diffusion"), {"raw": "k-diffusion", "sigma_data": 1.0}),
}


@pytest.mark.parametrize("kind", READ)
def test_everything_is_exact(kind):
    """The denoiser and the score at every noise, its own and other diffusions; the likelihood of
    points.
    """
    function, arguments = READ[kind]
    model = from_edm(Double(function), shape=(4,), check=X, **arguments)
    model.record_scale(MIXTURE.data_mean, MIXTURE.data_std)
    for sigma in (80.0, 5.0, 0.5, 0.02, 0.002):
        x = X[:5] + sigma * NOISY
        torch.testing.assert_close(
            model.denoise(sigma, x), MIXTURE.denoise(sigma, x, "edm"), rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(
            model.score(sigma, x), MIXTURE.score(sigma, x, "edm"), rtol=1e-8, atol=1e-8
        )
    for sde in ("vp", "subvp", "cosine", "flow"):
        torch.testing.assert_close(
            model.score(0.4, NOISY, sde), MIXTURE.score(0.4, NOISY, sde), rtol=1e-8, atol=1e-8
        )
    given = {"end": 0.01, "dtype": torch.float64, "seed": 0, "steps": 20, "method": "dpmpp_2m"}
    torch.testing.assert_close(
        sample(model, 8, **given), sample(MIXTURE, 8, sde="edm", **given), rtol=1e-8, atol=1e-8
    )
    ours, exact = (log_likelihood(m, X[:4], sde="vp", end=0.01).value for m in (model, MIXTURE))
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-4)  # EDM ends at sigma_max


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", READ)
def test_half_precision_rounds_points_and_outputs_only(kind, dtype):
    """The noise levels that the function is given, and those in c_skip and c_out, are in float32:
    the preconditioning of a network whose output is 0 has the accuracy of its points alone.
    """
    seen = []

    def function(x, label):
        seen.append((x.dtype, label))
        return torch.zeros_like(x)

    arguments = READ[kind][1]
    net = Double(function).to(dtype)
    model = from_edm(net, shape=(4,), **arguments)
    sigma = torch.tensor([0.0123, 0.345, 1.07, 5.43, 54.3])
    x = (X[:5] + sigma[:, None] * NOISY).to(dtype).double()
    found = model.net(x.to(dtype), sigma).double()
    label = sigma.log() / 4 if arguments.get("raw") == "edm" else sigma
    assert seen[-1][0] == dtype
    assert torch.equal(seen[-1][1], label)
    v = arguments.get("sigma_data", 0.5) ** 2
    s = sigma.double()[:, None]
    skip = x * (s * (1 - v) / (s**2 + v)) if kind != "denoiser" else 0 * x
    torch.testing.assert_close(found, skip, rtol=1e-6, atol=1e-6)
    assert sample(model, 3, steps=3, seed=0, end=0.01).isfinite().all()
    assert {label.dtype for _, label in seen} == {torch.float32}


@pytest.mark.parametrize("truth", READ)
@pytest.mark.parametrize("told", READ)
def test_a_wrong_reading_is_named(truth, told):
    if truth == told:
        return
    with pytest.raises(ValueError, match="the model does not denoise x") as refusal:
        from_edm(Double(READ[truth][0]), check=X, **READ[told][1])
    named = re.search(r"With raw=(\S+), sigma_data=(\S+) it is", str(refusal.value))
    assert named, refusal.value
    assert named[1].strip("'") == str(READ[truth][1].get("raw"))
    assert truth == "denoiser" or float(named[2]) == READ[truth][1].get("sigma_data", 0.5)


def test_a_wrong_range_is_named():
    with pytest.raises(ValueError, match=r"With x moved from \[0, 1\] to \[-1, 1\] it is"):
        from_edm(Double(denoiser), check=(X + 1) / 2)


def test_the_ends_of_sigma():
    """At 0 the data are x itself, though log(0) is infinite; at single precision the noise is found
    at sigma = 1e-3.
    """
    networks = {
        "k-diffusion": lambda x, sigma: x.sin() * sigma.log()[:, None],
        "edm": lambda x, label: x.sin() * label[:, None],
    }
    for raw, network in networks.items():
        model = from_edm(network, raw=raw)
        assert torch.equal(model.denoise(0.0, NOISY), NOISY)
    model = from_edm(lambda x, sigma: x / (1 + sigma[:, None] + 1 / sigma[:, None] ** 2))
    assert model.denoise(0.0, NOISY).isfinite().all()
    single = from_edm(inner(0.5), raw="edm")
    double = from_edm(Double(inner(0.5)), raw="edm")
    x = (X[:5] + 1e-3 * NOISY).float()
    coarse, fine = (
        model.predict_noise(*EDMSDE().normalised(1e-3, points))
        for model, points in ((single, x), (double, x.double()))
    )
    assert not torch.isnan(coarse).any()
    assert (coarse - fine).abs().max() < 1e-2 * fine.abs().max()


def test_further_arguments_go_with_their_samples():
    """class_cond of k-diffusion, or EDM's class_labels: one entry per sample."""
    seen = []

    def labelled(x, sigma, class_cond=None, mapping_cond=None):
        seen.append((class_cond, mapping_cond))
        return denoiser(x, sigma)

    model = from_edm(Double(labelled), shape=(4,)).given(
        class_cond=torch.arange(6), mapping_cond=torch.zeros(6, 2)
    )
    sample(model, 6, steps=3, batch_size=4, seed=0, end=0.01)
    assert seen[0][0].tolist() == [0, 1, 2, 3]
    assert seen[-1][0].tolist() == [4, 5]
    assert seen[-1][1].shape == (2, 2)
    assert check_model(from_edm(Double(labelled)).given(class_cond=torch.arange(64)), X).fits


def test_saved_and_read_again(tmp_path):
    torch.manual_seed(0)
    network = Double(lambda x, label: x.sin() * label[:, None])
    model = from_edm(network, raw="edm", sigma_data=0.7, sigma_max=50.0, shape=(4,))
    mean = torch.tensor([1.0, 0.0, -2.0, 0.5])
    model.record_scale(mean, 0.7)
    save(model, tmp_path)
    again = load(tmp_path, net=from_edm(network, raw="edm", sigma_data=0.7).net)
    assert again.sde == EDMSDE(50.0)
    assert again.data_std == 0.7
    assert torch.equal(again.data_mean, mean)
    assert torch.equal(again.denoise(3.0, NOISY), model.denoise(3.0, NOISY))


def test_refusals():
    with pytest.raises(ValueError, match=r"raw = True is not None, .* nor 'edm' or 'k-diffusion'"):
        from_edm(denoiser, raw=True)
    assert from_edm(denoiser, data_range=None).data_range is None
    assert math.isfinite(
        bits_per_dim(
            from_edm(Double(denoiser), shape=(4,)), X[:2], low=-1, high=1, levels=256, end=0.01
        ).mean
    )
