"""Models of networks of diffusers."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdekit import did_you_mean
from sdekit_diffusion._diffusions.ddpm import DDPM, cosine_betas, linear_betas
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.ve import VESDE
from sdekit_diffusion._loading.folder import open_folder, shape_of
from sdekit_diffusion._models.check import require_denoising
from sdekit_diffusion._models.condition_values import Null
from sdekit_diffusion._models.conditioning import Conditioning
from sdekit_diffusion._models.prediction import ALIASES, Prediction
from sdekit_diffusion._models.score_model import ScoreModel

_PREDICTIONS: dict[str, Prediction] = {
    name: ALIASES[name] for name in ("epsilon", "sample", "v_prediction")
}
_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_MAX_STEPS = 100_000


class _Sample(nn.Module):
    """net(x, t).sample, without the channels of a learned variance."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:  # noqa: ANN401
        return self.net(x, t, **conditions).sample[:, : x.shape[1]]


def from_diffusers(
    unet: nn.Module | str | Path,
    config: Mapping[str, Any] | None = None,
    *,
    data_std: float | None = None,
    data_range: tuple[float, float] | Literal["config"] | None = "config",
    check: Tensor | None = None,
    null: Null | None = None,
) -> ScoreModel:
    """A `ScoreModel` from a diffusers `UNet2DModel` or `UNet2DConditionModel` and the scheduler of
    its training.

    A scheduler with betas gives `DDPM(betas)`, whose N steps the network counts from 0:
    t = (step + 1) / N, where steps may be fractional. The sampling options of the scheduler, such
    as clipping or the spacing of steps, are not used. `ScoreSdeVeScheduler` gives
    `VESDE(exact=False)`, whose network receives sigma and returns the score.

    Arguments:
        unet: the folder of a pipeline, or one with both configs, whose weights are read from
            safetensors, or from a .bin file that contains only tensors; or a network with a
            `config`, called as `unet(x, t).sample`, such as a `UNet2DConditionModel`. Further
            arguments of the network, class_labels or encoder_hidden_states, are passed by
            `ScoreModel.given`. A saved model is loaded with `load(run, net=unet)`, where unet may
            be the folder too.
        config: that of the scheduler, such as `scheduler.config` or the content of
            scheduler_config.json; unless given, the one in the folder.
        data_std: the standard deviation of a coordinate of the data; estimated from the network
            unless given.
        data_range: the range of the images; "config" for (0, 1) where the network's
            center_input_sample is set, else (-1, 1). None where there is no bound.
        check: a batch of data, on which the conventions are checked as by `check_model`; for a
            network with labels use `check_model(model.given(class_labels=...), x)` instead.
        null: the values that stand for unknown conditions, with which guidance compares, such as
            {"class_labels": 1000} for networks trained with one more class, or
            {"encoder_hidden_states": 0.0} for embeddings of zeros; see `ScoreModel`. Where another
            embedding stands for it, such as that of an empty text, give the model with it to
            `Guided(..., by=model.given(encoder_hidden_states=empty))`.

    Returns:
        the model, in evaluation mode if unet is a folder.

    Raises:
        TypeError: for a network without a config, or a scheduler instead of its config.
        ValueError: for unknown schedules and predictions, schedulers that are not chains of betas,
            or when the model does not denoise the batch.
        CheckpointError: for a folder that is incomplete or damaged.
        ImportError: for a folder when diffusers is not installed.

    Example:
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> unet = UNet2DModel(
        ...     8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4,
        ...     down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        ... )
        >>> model = sd.from_diffusers(unet, DDPMScheduler().config)
        >>> sd.sample(model, 2, steps=3, seed=0).shape  # of an untrained network
        torch.Size([2, 1, 8, 8])
    """
    if from_folder := isinstance(unet, str | Path):
        unet, config = open_folder(Path(unet), config, _conventions)
    settings: Any = getattr(unet, "config", None)
    if settings is None or not isinstance(config, Mapping):
        raise TypeError(
            "from_diffusers takes a folder, or a network with a config, such as a UNet2DModel, "
            f"and scheduler.config; not {type(unet).__name__} and {type(config).__name__}"
        )
    if data_range == "config":
        data_range = (0.0, 1.0) if settings.get("center_input_sample") else (-1.0, 1.0)
    net = _Sample(unet)
    shape = shape_of(settings)

    def model(config: Mapping[str, Any]) -> ScoreModel:
        sde, predicts, label = _conventions(config)
        return ScoreModel(
            net,
            sde,
            predicts,
            shape=shape,
            conditioning=label,
            data_std=data_std,
            data_range=data_range,
            null=null,
        )

    given_model = model(config).eval() if from_folder else model(config)
    return require_denoising(
        given_model, check, ((change, model(other)) for change, other in _alternatives(config))
    )


def network_in(folder: Path) -> nn.Module:
    """The network of `from_diffusers(folder)`; the folder need not have a scheduler's config.

    Raises:
        CheckpointError, ImportError: as `from_diffusers`.
    """
    return wrap(open_folder(folder, {}, _conventions)[0])


def wrap(net: nn.Module) -> nn.Module:
    """A network of diffusers with the output of `from_diffusers`; itself if it has that already."""
    return net if isinstance(net, _Sample) else _Sample(net)


WRAPPER = _Sample.__name__  # as checkpoints name it


def _alternatives(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config with one convention changed, and the change in words."""
    if "beta_schedule" in config:
        for name in _PREDICTIONS:
            yield (
                f"prediction_type = {name!r} in the scheduler's config",
                {**config, "prediction_type": name},
            )
        for name in _SCHEDULES:
            try:
                _betas(other := {**config, "beta_schedule": name})
            except ValueError:
                continue
            yield f"beta_schedule = {name!r} in the scheduler's config", other


def _conventions(config: Mapping[str, Any]) -> tuple[AbstractDiffusion, Prediction, Conditioning]:
    """The diffusion, the prediction and the conditioning of a scheduler's config."""
    if {"sigma_min", "sigma_max", "snr"} <= set(config):
        return (
            VESDE(_number(config, "sigma_min"), _number(config, "sigma_max"), exact=False),
            "score",
            "sigma",
        )
    # Before diffusers 0.7 it was called predict_epsilon.
    default = "epsilon" if config.get("predict_epsilon", True) else "sample"
    prediction = config.get("prediction_type", default)
    if prediction == "flow_prediction" or ("shift" in config and "beta_schedule" not in config):
        raise ValueError(
            "schedulers of flow matching have no betas; make the model by ScoreModel(lambda x, t: "
            "net(x, t).sample, 'flow', 'flow', conditioning=(1000, 0), shape=...)"
        )
    if prediction not in list(_PREDICTIONS):
        raise ValueError(
            f"prediction_type = {prediction!r} is not one of "
            f"{', '.join(_PREDICTIONS)}{did_you_mean(prediction, _PREDICTIONS)}"
        )
    if (
        config.get("rescale_betas_zero_snr")
        or config.get("timestep_type", "discrete") != "discrete"
    ):
        raise ValueError(
            "schedulers with rescale_betas_zero_snr, which ends at alpha = 0, or continuous "
            "timesteps are not chains of betas; make a ScoreModel of the network with the "
            "diffusion it was trained under"
        )
    if config.get("snr_shift_scale") not in (None, 1):
        raise ValueError(
            f"snr_shift_scale = {config['snr_shift_scale']} changes the noise levels that follow "
            "from the betas; give the betas of the levels c = scheduler.alphas_cumprod: "
            "from_diffusers(unet, {**config, 'snr_shift_scale': 1, 'trained_betas': "
            "1 - c / torch.cat([c.new_ones(1), c[:-1]])})"
        )
    betas = _betas(config)
    return DDPM(betas), _PREDICTIONS[prediction], (len(betas), -1)


def _betas(config: Mapping[str, Any]) -> tuple[float, ...]:
    trained_betas = config.get("trained_betas")
    if trained_betas is not None:
        try:
            return tuple(torch.as_tensor(trained_betas, dtype=torch.float64).flatten().tolist())
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"trained_betas must be numbers between 0 and 1, not {str(trained_betas)[:40]}"
            ) from error
    schedule = config.get("beta_schedule")
    n = config.get("num_train_timesteps", 1000)
    if schedule not in _SCHEDULES:
        raise ValueError(
            f"beta_schedule = {schedule!r} is not one of {', '.join(_SCHEDULES)}; give the numbers "
            "themselves, from_diffusers(unet, {**config, 'trained_betas': scheduler.betas}), or "
            "for schedulers of EDM whose prediction_type is epsilon the network, from_edm(lambda "
            f"x, t: unet(x, t).sample, raw='edm'){did_you_mean(schedule, _SCHEDULES)}"
        )
    if type(n) is not int or not 2 <= n <= _MAX_STEPS:
        raise ValueError(
            f"num_train_timesteps must be a number of steps from 2 to {_MAX_STEPS}, such as 1000, "
            f"not {n!r}"
        )
    if schedule == "squaredcos_cap_v2":
        return cosine_betas(n)
    low = _number(config, "beta_start")
    high = _number(config, "beta_end")
    if schedule == "linear":
        return linear_betas(n, low, high)
    return tuple(root**2 for root in linear_betas(n, low**0.5, high**0.5))


def _number(config: Mapping[str, Any], name: str) -> float:
    value: Any = config.get(name)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        defaults = (
            "beta_start is 0.0001 and beta_end 0.02 in DDPMScheduler() unless given, sigma_min "
            "0.01 in ScoreSdeVeScheduler()"
        )
        raise ValueError(
            f"{name} must be a positive number in the scheduler's config, not {value!r}; {defaults}"
        )
    return float(value)
