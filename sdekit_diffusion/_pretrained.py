"""Networks of diffusers as models."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdekit_diffusion._diffusion import VESDE, AbstractDiffusion
from sdekit_diffusion._discrete import DDPM, cosine_betas, linear_betas
from sdekit_diffusion._model import Conditioning, Prediction, ScoreModel

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity"}


class _Sample(nn.Module):
    """net(x, t).sample, less the channels that are a learned variance."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:  # noqa: ANN401 - whatever the network takes
        return self.net(x, t, **conditions).sample[:, : x.shape[1]]


def from_diffusers(
    unet: nn.Module,
    config: Mapping[str, Any],
    *,
    data_std: float = 1.0,
    data_range: tuple[float, float] | None = (-1.0, 1.0),
) -> ScoreModel:
    """A `ScoreModel` of a diffusers `UNet2DModel` and the scheduler that it was trained with.

    Schedulers with betas make it a `DDPM(betas)` whose steps the network counts from 0, t = (step + 1) / N, with fractions in
    between; what the scheduler does to sample, such as its clipping or its order of steps, is not taken over.
    `ScoreSdeVeScheduler` makes it a `VESDE(exact=False)` whose network is told sigma.

    Arguments:
        unet: called as `unet(x, t).sample`, with a `config`; further arguments by `ScoreModel.given`. `load` takes the net of
            another such model.
        config: the scheduler's, such as `scheduler.config` or the content of scheduler_config.json.
        data_std: the root mean square of a coordinate of the data.
        data_range: that of its images; diffusers' pipelines have -1 to 1.

    Raises:
        TypeError: for a network without a config, or a scheduler in the place of its config.
        ValueError: for schedules and predictions that are not known here.
    """
    settings: Any = getattr(unet, "config", None)
    if settings is None or not isinstance(config, Mapping):
        raise TypeError(
            "from_diffusers takes a network with a config, such as a UNet2DModel, and scheduler.config; not "
            f"{type(unet).__name__} and {type(config).__name__}"
        )
    size, channels = settings["sample_size"], settings["in_channels"]
    shape = None if size is None else (channels, size, size) if isinstance(size, int) else (channels, *size)
    sde, predicts, conditioning = _conventions(config)
    return ScoreModel(
        _Sample(unet), sde, predicts, shape=shape, conditioning=conditioning, data_std=data_std, data_range=data_range
    )


def _conventions(config: Mapping[str, Any]) -> tuple[AbstractDiffusion, Prediction, Conditioning]:
    """The diffusion, the output and the label that a scheduler's config stands for."""
    if {"sigma_min", "sigma_max", "snr"} <= set(config):
        return VESDE(config["sigma_min"], config["sigma_max"], exact=False), "score", "sigma"
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"prediction_type = {prediction!r} is not one of {', '.join(_PREDICTIONS)}")
    if config.get("rescale_betas_zero_snr") or config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            "schedulers with rescale_betas_zero_snr, which ends at alpha = 0, or continuous timesteps are not chains of betas; "
            "make a ScoreModel of the network with the diffusion it was trained under"
        )
    betas = _betas(config)
    return DDPM(betas), _PREDICTIONS[prediction], (len(betas), -1)


def _betas(config: Mapping[str, Any]) -> tuple[float, ...]:
    if config.get("trained_betas") is not None:
        return tuple(torch.as_tensor(config["trained_betas"], dtype=torch.float64).tolist())
    schedule, n = config.get("beta_schedule"), config.get("num_train_timesteps", 1000)
    if schedule == "squaredcos_cap_v2":
        return cosine_betas(n)
    if schedule == "linear":
        return linear_betas(n, config["beta_start"], config["beta_end"])
    if schedule == "scaled_linear":
        return tuple(root**2 for root in linear_betas(n, config["beta_start"] ** 0.5, config["beta_end"] ** 0.5))
    raise ValueError(
        f"beta_schedule = {schedule!r} is not one of linear, scaled_linear, squaredcos_cap_v2; give the numbers themselves, "
        f"from_diffusers(unet, {{**config, 'trained_betas': scheduler.betas}})"
    )
