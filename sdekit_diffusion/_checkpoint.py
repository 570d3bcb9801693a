"""Checkpoints are data: weights in safetensors, everything else in JSON; nothing in them is ever executed."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sdekit_diffusion import nets
from sdekit_diffusion._model import ScoreModel
from sdekit_diffusion._schedules import DIFFUSIONS
from sdekit_diffusion.data import Scale

_FORMAT = "sdekit-diffusion 1"
_CONFIG, _WEIGHTS = "config.json", "weights.safetensors"


class CheckpointError(ValueError):
    """A folder that is not a checkpoint, or a damaged one."""


def save(model: ScoreModel, folder: str | Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Writes config.json and weights.safetensors into a folder, which is made where it is missing.

    Arguments:
        model: its network either has a `config` of constructor arguments and a class in `nets.registry`, or must be given
            again to `load`.
        notes: what else to remember, as JSON: the name of the data, say.

    Raises:
        TypeError: when the network is a plain function, which has no weights to save.
    """
    if not isinstance(model.net, nn.Module):
        raise TypeError("this model's network is a plain function and has no weights to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    known = nets.registry.get(type(model.net).__name__) is type(model.net)
    names = {kind: name for name, kind in DIFFUSIONS.items()}
    if type(model.sde) not in names:
        kind = type(model.sde).__name__
        raise TypeError(f"{kind} has no name to save it under: give it one, such as DIFFUSIONS['{kind.lower()}'] = {kind}")
    config = {
        "format": _FORMAT,
        "net": {"class": type(model.net).__name__, "config": model.net.config if known else None},
        "sde": {"name": names[type(model.sde)], **dataclasses.asdict(model.sde)},
        "predicts": model.predicts,
        "conditioning": model.conditioning,
        "shape": model.shape,
        "data_std": model.data_std,
        "data_range": model.data_range,
        "scale": dataclasses.asdict(model.scale),
        "dtype": str(model.place()[0]).removeprefix("torch."),
        "notes": dict(notes or {}),
    }
    save_file({name: value.contiguous() for name, value in model.net.state_dict().items()}, folder / _WEIGHTS)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a checkpoint, checked to be one.

    Raises:
        CheckpointError: when the folder, or its config, is not a checkpoint's.
    """
    path = Path(folder) / _CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; give the folder that save() or `sdekit-diffusion train` wrote") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error}); the checkpoint is damaged") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{path} is not a checkpoint of this version: format {found!r}, expected {_FORMAT!r}")
    return config


def load(folder: str | Path, *, net: nn.Module | None = None, device: torch.device | str = "cpu") -> ScoreModel:
    """The model that `save` wrote, in evaluation mode.

    Arguments:
        folder: with config.json and weights.safetensors.
        net: the network to fill with the weights, where it is none of `nets`.
        device: where to.

    Raises:
        CheckpointError: when a file is missing, damaged, or fits another network.
    """
    folder, config = Path(folder), read_config(folder)
    try:
        network = _network(config["net"]) if net is None else net
        sde = dict(config["sde"])
        model = ScoreModel(
            network,
            DIFFUSIONS[sde.pop("name")](**sde),
            config["predicts"],
            shape=None if config["shape"] is None else tuple(config["shape"]),
            conditioning=config["conditioning"],
            data_std=config["data_std"],
            data_range=None if config.get("data_range") is None else tuple(config["data_range"]),
            scale=Scale(**config.get("scale", {})),
        )
        dtype = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
        model.to(dtype[config["dtype"]])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder / _CONFIG} does not describe a model ({error!r}); the checkpoint is damaged") from error
    path = folder / _WEIGHTS
    try:
        network.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; the checkpoint is incomplete") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); the checkpoint is damaged") from error
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds the weights of another network: {str(error).splitlines()[-1].strip()}") from error
    return model.to(device).eval()


def _network(config: dict[str, Any]) -> nn.Module:
    name = config["class"]
    if config["config"] is None or name not in nets.registry:
        raise CheckpointError(f"the network {name!r} is not one of {', '.join(nets.registry)}: pass it as load(..., net=...)")
    return nets.registry[name](**config["config"])
