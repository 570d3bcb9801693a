"""Known coordinates as a model: every method keeps them, and is exact where the others do not
depend on them.
"""

import math
from dataclasses import replace

import pytest
import torch

from sdekit_diffusion import (
    METHODS,
    VPSDE,
    AdaptiveSDE,
    AnnealedLangevin,
    GaussianMixture,
    Inpainted,
    InTime,
    ScoreModel,
    encode,
    sample,
)
from sdekit_diffusion._sampling.adaptive import AbstractAdaptive

N = 1200
LIMIT = math.sqrt(math.log(2 / 1e-6) / 2 / N)  # of Kolmogorov's distance, once in a million
END = 0.02
# Independent coordinates: the second has two modes.
LAW = GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[0.5, -1.0], [0.5, 1.5]], dtype=torch.float64),
    torch.tensor([[0.3, 0.09], [0.3, 0.25]], dtype=torch.float64),
)
Y = torch.tensor([2.0, math.nan], dtype=torch.float64)
MASK = torch.tensor([True, False])
STEPS = {"ncsn": 12, "ddpm": 300, "euler_maruyama": 550}


def closed_form():
    """A network that has the formula of the law given the first coordinate."""
    second = GaussianMixture(LAW.weights, LAW.means[:, 1:], LAW.covariances[:, 1, 1])

    def net(x, l):
        data = second.denoise(VPSDE().time(l), x[:, 1:], "vp")
        return torch.cat([torch.full_like(data, 2.0), data], dim=1)

    scale = {"data_mean": LAW.data_mean, "data_std": LAW.data_std}
    return ScoreModel(net, "vp", "data", conditioning="log_snr", shape=(2,), **scale)


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_what_is_known(method):
    """As the closed form of the law given what is known, to rounding; denoised, y itself."""
    settings = {"sde": "vp", "method": method, "seed": 5, "dtype": torch.float64}
    chosen = METHODS[method]
    if isinstance(chosen, AbstractAdaptive):
        settings["method"] = replace(chosen, rtol=0.3, atol=0.3)
    else:
        settings["steps"] = {AnnealedLangevin: 2, InTime: 24}.get(type(chosen), 10)
    known = Inpainted(LAW, Y, MASK)
    found, expected = (sample(model, 6, end=END, **settings) for model in (known, closed_form()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    denoised = sample(known, 2, end=END, denoise=True, **settings)
    torch.testing.assert_close(denoised[:, 0], torch.full((2,), 2.0, dtype=torch.float64))


# On the clock without and with noise, in the diffusion's time, of annealed Langevin dynamics.
@pytest.mark.parametrize("method", ["default", "ddpm", "euler_maruyama", "ncsn"])
def test_the_first_coordinate_is_y_with_noise_and_the_second_has_its_own_law(method):
    """The noise is that of the end."""
    steps = STEPS.get(method)
    model = Inpainted(LAW, Y, MASK)
    x = sample(model, N, sde="vp", method=method, steps=steps, seed=5, end=END)
    noise = (x[:, 0] - 2.0) / (END * LAW.data_std)
    # Langevin dynamics, and steps that are equal in time, leave more noise than the level has.
    bias = {"ncsn": 0.5, "euler_maruyama": 0.2}.get(method, 0.05)
    assert abs(float(noise.mean())) < 5 / math.sqrt(N) + 0.1
    assert abs(float(noise.std()) - 1) < 5 / math.sqrt(2 * N) + bias
    grid = torch.linspace(-3, 4, 200, dtype=torch.float64)
    std = (LAW.covariances[:, 1, 1] + (END * LAW.data_std) ** 2).sqrt()
    exact = 0.5 * torch.erfc(-(grid[:, None] - LAW.means[:, 1]) / std / math.sqrt(2)) @ LAW.weights
    empirical = (x[:, 1:] <= grid).double().mean(0)
    # Langevin dynamics with few levels starts from another law at T.
    assert float((empirical - exact).abs().max()) < LIMIT + 0.01


def test_the_noisy_path_of_what_is_known_has_the_law_of_the_diffusion():
    """At every level of a solve with noise, x_t is N(alpha y, sigma^2) there; with one path, so
    that neighbouring levels are correlated.
    """
    solution = sample(
        Inpainted(LAW, Y, MASK), N, steps=100, save="all", return_solution=True, sde="vp",
        method="ddpm", seed=1,
    )  # fmt: skip
    vp = VPSDE()
    eps = []
    for t, x in zip(solution.ts.tolist(), solution.xs, strict=True):
        alpha, sigma = vp.kernel(t)
        eps.append((x[:, 0] - alpha * 2.0) / sigma)
    eps = torch.stack(eps)[5:]
    assert float(eps.mean(1).abs().max()) < 6 / math.sqrt(N)
    assert float((eps.std(1) - 1).abs().max()) < 6 / math.sqrt(2 * N) + 0.01
    assert float((eps[40] * eps[41]).mean()) > 0.8


def test_the_denoised_result_is_y():
    found = sample(Inpainted(LAW, Y, MASK), 5, sde="vp", steps=10, seed=0, denoise=True)
    torch.testing.assert_close(found[:, 0], torch.full((5,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("method", ["default", "sde", "ode", "adaptive_sde"])
def test_each_sample_has_its_own_values(method):
    y = LAW.sample(7, seed=1)
    mask = torch.rand(7, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    model = Inpainted(LAW, y, mask)
    settings = {"sde": "vp", "method": method, "seed": 3}
    if method == "adaptive_sde":
        settings["method"] = AdaptiveSDE(0.3, 0.3)  # fewer steps
    elif method != "ode":
        settings["steps"] = 24
    whole = sample(model, 7, denoise=True, **settings)
    assert torch.equal(sample(model, 7, denoise=True, batch_size=4, **settings), whole)
    torch.testing.assert_close(whole[mask], y[mask])
    assert float((whole - y)[~mask].abs().min()) > 1e-3


def test_one_value_serves_all_samples():
    settings = {"sde": "vp", "seed": 3, "steps": 5}
    one = sample(Inpainted(LAW, Y, MASK), 4, batch_size=3, **settings)
    for y, mask in ((Y.expand(4, 2), MASK), (Y, MASK.expand(4, 2)), (Y.expand(4, 2), MASK[None])):
        assert torch.equal(sample(Inpainted(LAW, y, mask), 4, batch_size=3, **settings), one)
    assert torch.equal(sample(Inpainted(LAW, Y[None], MASK), 4, **settings), one)
    with pytest.raises(ValueError, match="y has 4 entries for 5 samples"):
        sample(Inpainted(LAW, Y.expand(4, 2), MASK), 5, **settings)


def test_a_model_without_a_shape_is_refused():
    """With two samples of two coordinates, y of one sample was taken as a number of each."""
    model = ScoreModel(lambda x, t: x, "vp", "data", data_std=1.0)
    known = Inpainted(model, torch.tensor([5.0, -5.0]), torch.tensor([True, True]))
    for batch_size in (None, 1):
        with pytest.raises(
            ValueError, match=r"Inpainted has no shape.* ScoreModel\(net, sde, shape"
        ):
            sample(known, 2, shape=(2,), steps=5, batch_size=batch_size)


def test_a_mask_broadcasts_over_channels():
    model = ScoreModel(lambda x, t: x, "vp", "data", shape=(3, 4, 4), data_std=1.0)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    known = Inpainted(model, torch.ones(3, 4, 4), mask)
    data = known.predict_data(0.0, torch.zeros(2, 3, 4, 4))
    assert torch.equal(data, mask.float().expand(2, 3, 4, 4))


def test_a_flow_with_known_values_goes_back():
    """`encode` takes it: the noise of a known coordinate is that of its x_T."""
    model = Inpainted(LAW, Y, MASK)
    x = sample(model, 3, sde="vp", method="ode", seed=0)
    again = sample(model, x_T=encode(model, x, sde="vp"), sde="vp", method="ode")
    torch.testing.assert_close(again, x, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("y", "mask", "error", "match"),
    [
        ([2.0, 0.0], MASK, TypeError, r"y must be a tensor of shape \(\*shape\) or"),
        (Y, [True, False], TypeError, "mask must be a tensor"),
        (Y.int(), MASK, TypeError, r"y must be a floating tensor, not torch.int32; use y.float"),
        (Y, MASK.int(), TypeError, r"mask must be boolean, .* not torch.int32; use mask.bool"),
        (Y, torch.ones(3, dtype=torch.bool), ValueError, r"mask has shape \(3,\) and y \(2,\)"),
        (Y, ~MASK, ValueError, "not finite where the mask says that it is known"),
        (Y[:1], MASK[:1], ValueError, r"y has shape \(1,\) and the model makes samples of"),
        (Y.expand(1, 1, 2), MASK, ValueError, r"y has shape \(1, 1, 2\)"),
    ],
)
def test_wrong_values_are_refused(y, mask, error, match):
    with pytest.raises(error, match=match):
        Inpainted(LAW, y, mask)
