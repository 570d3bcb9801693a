"""Networks of diffusers as models: the same chain, labels and outputs as their schedulers have."""

import pytest
import torch
from torch import nn

from sdekit_diffusion import (
    DDPM,
    VESDE,
    AdaptiveFlow,
    Recipe,
    check_model,
    cosine_betas,
    data,
    fit,
    from_diffusers,
    log_likelihood,
    sample,
)


class Output:
    """What networks of diffusers return."""

    def __init__(self, value):
        self.sample = value


class Stub(nn.Module):
    """Remembers its labels; its output has more channels than its input where a variance is learned."""

    def __init__(self, size=4, extra=0):
        super().__init__()
        self.config = {"in_channels": 2, "sample_size": size}
        self.extra = extra

    def forward(self, x, t, class_labels=None):
        self.seen = t, class_labels
        return Output(torch.cat([0.1 * x, x.new_ones(len(x), self.extra, *x.shape[2:])], dim=1))


BETAS = {"num_train_timesteps": 50, "beta_start": 0.001, "beta_end": 0.1, "beta_schedule": "linear"}
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def test_labels_are_the_numbers_of_steps():
    """Step i, from 0, is at t = (i + 1) / N; between two steps fractions."""
    unet = Stub()
    model = from_diffusers(unet, BETAS)
    assert model.shape == (2, 4, 4)
    assert model.data_range == (-1.0, 1.0)
    for t, label in ((1 / 50, 0.0), (1.0, 49.0), (0.51, 24.5)):
        model.denoise(t, X)
        torch.testing.assert_close(unet.seen[0], torch.full((3,), label), rtol=0, atol=1e-5)
    model.given(class_labels=torch.arange(3)).denoise(0.5, X)
    assert unet.seen[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("name", "predicts"), [("epsilon", "noise"), ("sample", "data"), ("v_prediction", "velocity")])
@pytest.mark.parametrize("extra", [0, 2])
def test_outputs(name, predicts, extra):
    model = from_diffusers(Stub(extra=extra), {**BETAS, "prediction_type": name})
    alpha, sigma = model.sde.kernel(0.4)
    out = 0.1 * X
    data = {"noise": (X - sigma * out) / alpha, "data": out, "velocity": alpha * X - sigma * out}[predicts]
    torch.testing.assert_close(model.denoise(0.4, X), data)


def test_sizes():
    assert from_diffusers(Stub((6, 8)), BETAS).shape == (2, 6, 8)
    assert from_diffusers(Stub(None), BETAS, data_range=None).shape is None


def test_a_variance_exploding_network_is_told_sigma_and_gives_the_score():
    unet = Stub()
    model = from_diffusers(unet, {"sigma_min": 0.01, "sigma_max": 100.0, "snr": 0.15, "num_train_timesteps": 2000})
    assert model.sde == VESDE(0.01, 100.0, exact=False)
    torch.testing.assert_close(model.score(0.5, X), 0.1 * X)
    torch.testing.assert_close(unet.seen[0], torch.ones(3))


def test_betas_may_be_given():
    betas = [0.01, 0.02, 0.05]
    assert from_diffusers(Stub(), {"trained_betas": betas}).sde == DDPM(betas)
    assert from_diffusers(Stub(), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 20}).sde == DDPM(
        cosine_betas(20)
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**BETAS, "beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid' is not one of linear.*trained_betas"),
        ({}, "beta_schedule = None"),
        ({**BETAS, "prediction_type": "flow_prediction"}, "prediction_type = 'flow_prediction' is not one of epsilon"),
        ({**BETAS, "rescale_betas_zero_snr": True}, "ends at alpha = 0"),
        ({**BETAS, "timestep_type": "continuous"}, "continuous timesteps"),
    ],
)
def test_what_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(Stub(), config)


def test_a_scheduler_is_not_its_config():
    for unet, config in ((Stub(), Stub()), (Stub(), "folder"), (torch.nn.Identity(), BETAS)):
        with pytest.raises(TypeError, match=r"takes a network with a config, .* and scheduler\.config; not"):
            from_diffusers(unet, config)


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


def unet_of(diffusers):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_chain_is_that_of_the_scheduler(diffusers, schedule):
    """alpha^2 after each of its steps, in its float32; and its network's output at each."""
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule=schedule)
    unet = unet_of(diffusers)
    model = from_diffusers(unet, scheduler.config)
    times = torch.arange(1, 101, dtype=torch.float64) / 100
    torch.testing.assert_close(model.sde.alpha(times).square().float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-9)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 10, 50, 99])
    expected = unet(x, steps).sample
    torch.testing.assert_close(model.noise(times[steps], x), expected, rtol=1e-3, atol=1e-5)
    noisy = scheduler.add_noise(x, torch.ones_like(x), steps)
    mean, sigma = model.sde.marginal(times[steps], x)
    torch.testing.assert_close((mean + sigma).float(), noisy, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_network_of_diffusers_trains_samples_and_has_a_likelihood(diffusers):
    """On digits, for a few seconds: it comes to denoise, makes samples of their deviation, and tells them from noise."""
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    model, x = from_diffusers(unet_of(diffusers), scheduler.config, data_std=0.7), data.load("digits").train.float() / 8 - 1
    assert not check_model(model, x[:32], throw=False).fits
    fit(model, x, Recipe(steps=60, batch_size=32, warmup=20), progress=False)
    assert check_model(model, x[:32]).score < 0.9
    assert 0.5 < sample(model, 16, steps=10, seed=0).std() < 1.0
    noise = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = log_likelihood(model, torch.cat([x[:2], noise]), end=0.01, method=AdaptiveFlow(rtol=1e-2, atol=1e-2))
    assert found.value[:2].min() - found.value[2:].max() > 10 * found.stderr.max()
