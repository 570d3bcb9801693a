"""`load`: a model from the files that `save` wrote."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit import did_you_mean
from sdekit.calling import warn_caller
from sdekit_diffusion import nets
from sdekit_diffusion._arguments.inputs import available_device
from sdekit_diffusion._diffusions.names import DIFFUSIONS
from sdekit_diffusion._loading.bounded import Bounded, shape_from
from sdekit_diffusion._loading.combined import combined
from sdekit_diffusion._loading.diffusers import WRAPPER, wrap
from sdekit_diffusion._loading.named import named_network, network_of
from sdekit_diffusion._loading.weights import unwrapped
from sdekit_diffusion._models.checkpoint import (
    CONFIG,
    MEAN,
    STATE,
    CheckpointError,
    read_config,
    read_tensors,
    scale_in,
    warn_of_not_finite,
)
from sdekit_diffusion._models.recorded import samplers_in
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._models.wrapped import bare, plain_name
from sdekit_diffusion._training.history import best_of, newest
from sdekit_diffusion.data import Scale

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# Errors of constructors for a config that does not describe a model.
_CONSTRUCTOR_ERRORS = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
)


def load(
    folder: str | Path,
    *,
    net: nn.Module | str | Path | None = None,
    device: torch.device | str = "cpu",
    ema: float | None = None,
    width: float | None = None,
    best: bool = False,
) -> ScoreModel:
    """Loads the model that `save` or `fit` wrote, in evaluation mode; for an unfinished run, that
    of its newest checkpoint.

    Arguments:
        folder: a folder with config.json and weights-*.safetensors, or the folder of a run.
        net: the network for the weights, unless it is one of `nets`: a module, such as the one
            passed to `from_diffusers`; a model with such a network; a folder of diffusers; or
            "package.module:factory", which is imported, called without arguments, and returns a
            module or a model. A warning is raised where its class or its configuration is not the
            one that was saved, and for weights that are NaN or infinite.
        device: the device of the model.
        ema: the decay of the averaged weights to load, one of `Recipe.ema`, from the newest
            checkpoint of a run; 0 for the weights without averaging. Unless given, the first decay.
        width: the relative width of the average of the weights to load, that is, the standard
            deviation of the update numbers under its profile, divided by the number of updates. The
            average is the nearest linear combination of the snapshots that a run with
            `Recipe(widths=...)` has stored, at the update of the newest one.
        best: load the checkpoint of a run with the smallest `validation_loss`, instead of the last
            weights.

    Raises:
        CheckpointError: when a file is missing, damaged, or belongs to another network; when the
            run has no average of this decay, no snapshots, or no checkpoint with a validation loss;
            or when net is missing and the network is not one of `nets`.
        ImportError, TypeError, ValueError: when net is not a network.
        TypeError: for a folder that is not a path.
        ValueError: for a device that cannot be used, a width that no average has, or more than one
            of ema, width and best.

    Example:
        >>> net = sd.nets.MLP(shape=(2,), width=8)
        >>> folder = sd.save(sd.ScoreModel(net, "vp", shape=(2,)), "toy")
        >>> model = sd.load(folder)
        >>> sd.sample(model, 3, steps=5, seed=0).shape
        torch.Size([3, 2])
    """
    device = available_device(device)
    if sum([ema is not None, width is not None, best]) > 1:
        raise ValueError("ema, width and best each name other weights: give one of them")
    run = _path(folder)
    folder = best_of(run) if best else config_folder(run) if ema is None else newest(run) or run
    config = read_config(folder)
    parts = [read_tensors(folder) if ema is None else _averaged(folder, config, ema)]
    parts[0].pop(MEAN, None)
    if width is not None:
        parts.append(combined(run, width, config["notes"]))
        config["samplers"] = []  # those of other weights
    own_network = _given_network(net)
    try:
        network = _network(config["net"], parts[0]) if own_network is None else own_network
        if config["net"]["class"] == WRAPPER:
            network = wrap(network)
        model = _model(config, network)
    except CheckpointError:
        raise
    except _CONSTRUCTOR_ERRORS as error:
        raise CheckpointError(
            f"{folder / CONFIG} does not describe a model ({error!r:.300}); the checkpoint is "
            "damaged"
        ) from error
    weights = _named_as_in(bare(network), parts)
    try:
        _cast_like(bare(network), weights)
        bare(network).load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{folder} holds the weights of another network: {reason}") from error
    warn_of_not_finite(network, f"the network in {folder}")
    if own_network is not None:
        _warn_of_another(config["net"], network, folder)
    try:
        model.record_scale(*scale_in(folder))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    return model.to(device).eval()


def _path(folder: object) -> Path:
    """A folder as a path, refused if it is not the name of one."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder is the path of what save or fit wrote, not {folder!r:.60}")
    return Path(folder)


def _given_network(net: nn.Module | str | Path | None) -> nn.Module | None:
    """The network that `load` was given, or None."""
    if isinstance(net, str | Path):
        return named_network(net)
    if isinstance(net, ScoreModel):
        return network_of(net)
    if not isinstance(net, nn.Module | None):
        given = f"the class {net.__name__}" if isinstance(net, type) else f"{net!r:.60}"
        raise TypeError(
            "net is a network, such as Net() of a class Net; a model with one; a folder of "
            f"diffusers, or 'package.module:factory'; not {given}"
        )
    return net


def _warn_of_another(config: Any, network: nn.Module, folder: Path) -> None:  # noqa: ANN401 - JSON
    """Warns where a network has another class, or was made with other arguments, than the one whose
    weights a checkpoint contains: the names and shapes of the weights may be the same for both.
    """
    saved = config["class"]
    # Earlier versions recorded the class of a wrapper.
    kinds = [kind.__name__ for kind in (*type(bare(network)).__mro__, type(network))]
    given = _arguments(bare(network)) if config["config"] is not None else None
    if saved not in kinds:
        differ = f"class {saved}, and net is of {kinds[0]}"
    elif given is not None and given != config["config"]:
        differ = f"{saved}({config['config']}), and net is {saved}({given})"
    else:
        return
    warn_caller(
        f"{folder} holds weights of a network of {differ}: the results are wrong unless both "
        "compute the same; give the network that was saved",
    )


def _arguments(network: nn.Module) -> Any:  # noqa: ANN401 - JSON
    """The arguments of a network's constructor as `save` stores them, None where they are not
    known.
    """
    try:
        return json.loads(json.dumps(getattr(network, "config", None), default=_python_number))
    except (TypeError, ValueError, RuntimeError):
        return None


def _python_number(value: Any) -> Any:  # noqa: ANN401
    """A number of numpy, or a tensor with one number, as a Python number; other values as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _model(config: dict[str, Any], network: nn.Module) -> ScoreModel:
    """The model that a config describes, around a network, whose first parameter has its dtype."""
    sde = dict(config["sde"])
    model = ScoreModel(
        network,
        DIFFUSIONS[sde.pop("name")](**sde),
        config["predicts"],
        shape=shape_from(config["shape"]),
        conditioning=config["conditioning"],
        data_range=None if config["data_range"] is None else tuple(config["data_range"]),
        scale=Scale(**config["scale"]),
        null=config.get("null"),  # not in checkpoints of earlier versions
    )
    model.never_dropped = tuple(config.get("never_dropped") or ())
    model.trained_levels = tuple(map(float, config.get("trained_levels") or ()))
    model.samplers = samplers_in(config)
    if model.place()[0] != _DTYPES[config["dtype"]]:
        model.to(_DTYPES[config["dtype"]])
    return model


def _named_as_in(network: nn.Module, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All weights by the names in this network; those of wrappers are removed or added."""
    names = {plain_name(name): name for name in network.state_dict()}
    plain = [{plain_name(name): value for name, value in part.items()} for part in parts]
    return {
        names.get(name, name): value
        for part in plain
        for name, value in unwrapped(part, names).items()
    }


def _cast_like(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Converts each parameter and buffer to the dtype in which it was saved: a network may have
    several.
    """
    for name, tensor in network.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and name in weights and weights[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(weights[name].dtype)


def config_folder(folder: str | Path) -> Path:
    """The folder with the config of a model: the given one, or the newest checkpoint of a run that
    is not complete.
    """
    folder = Path(folder)
    return folder if (folder / CONFIG).exists() else newest(folder) or folder


def _network(config: dict[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    name = config["class"]
    if config["config"] is None or name not in nets.registry:
        others = "the library's" if name in nets.registry else f"one of {', '.join(nets.registry)}"
        raise CheckpointError(
            f"the network {name!r} is not {others}: pass it as load(..., net=...); on the command "
            "line name it by --network: the folder of a network of diffusers, or "
            f"package.module:factory{did_you_mean(name, nets.registry)}"
        )
    with Bounded(weights):
        return nets.registry[name](**config["config"])


def _averaged(folder: Path, config: dict[str, Any], ema: float) -> dict[str, Tensor]:
    """The weights in a checkpoint of a training run, averaged with one of its decays, or not
    averaged for ema = 0.
    """
    state = read_tensors(folder, STATE)
    decays = config["notes"]["decays"]
    if ema and ema not in decays:
        raise CheckpointError(
            f"{folder} has no average of decay {ema}; choose one of {', '.join(map(str, decays))}, "
            "or 0"
        )
    prefixes = ["model.net."] + ([f"average.{decays.index(ema)}.net."] if ema else [])
    return {
        name.removeprefix(prefix): v
        for prefix in prefixes
        for name, v in state.items()
        if name.startswith(prefix)
    }
