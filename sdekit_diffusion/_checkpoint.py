"""Checkpoints are data: tensors in safetensors, everything else in JSON; nothing in them is ever executed.

config.json names the other files and has their checksums and its own. Files are named by their content, and config.json is
replaced last, in one move: a folder that a checkpoint is written into is always the old one or the new one.
"""

import dataclasses
import hashlib
import json
import math
import platform
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialised
from safetensors.torch import save as serialised
from torch import Tensor, nn

from sdekit import did_you_mean
from sdekit_diffusion import nets
from sdekit_diffusion._bounded import Bounded, shape_from
from sdekit_diffusion._files import made, replacing
from sdekit_diffusion._inputs import usable
from sdekit_diffusion._model import ScoreModel
from sdekit_diffusion._schedules import DIFFUSIONS
from sdekit_diffusion.data import Scale

_FORMAT = "sdekit-diffusion 2"
CONFIG, _STEPS = "config.json", "checkpoints"
_WEIGHTS, _STATE = "weights", "training"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def versions() -> dict[str, str]:
    """Of Python and of what numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("sdekit", "torch", "numpy", "scipy")}


class CheckpointError(ValueError):
    """A folder that is not a checkpoint, or a damaged one."""


def save(
    model: ScoreModel,
    folder: str | Path,
    notes: Mapping[str, Any] | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes config.json and weights-*.safetensors into a folder, which is made where it is missing.

    Whatever happens meanwhile, the folder holds what it held before or all of the new checkpoint.

    Arguments:
        model: its network either has a `config` of constructor arguments and a class in `nets.registry`, or must be given
            again to `load`.
        notes: what else to remember, as JSON: the name of the data, say.
        state: that of a training, to go on with: a third file.

    Raises:
        TypeError: when the network is a plain function, which has no weights to save.
        OSError: when the folder cannot be written to, or the disk is full; the folder is then as it was.
    """
    if not isinstance(model.net, nn.Module):
        raise TypeError("this model's network is a plain function and has no weights to save")
    config, folder = described(model) | {"notes": dict(notes or {})}, made(Path(folder))
    weights = {name: value.clone() for name, value in model.net.state_dict().items()}  # none twice in memory
    parts = {_WEIGHTS: weights} | ({} if state is None else {_STATE: dict(state)})
    try:
        config["files"] = {part: _written(tensors, folder, part) for part, tensors in parts.items()}
        config["sha256"] = _checksum(config)
        with replacing(folder / CONFIG) as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError:
        _tidy(folder)
        raise
    _tidy(folder)
    return folder


def _tidy(folder: Path) -> None:
    """Removes the files of tensors that config.json does not name; where it is damaged all stay."""
    try:
        files = read_config(folder)["files"] if (folder / CONFIG).exists() else {}
    except CheckpointError:
        return
    current = [file["name"] for file in files.values()]
    for path in [*folder.glob(f"{_WEIGHTS}-*.safetensors"), *folder.glob(f"{_STATE}-*.safetensors")]:
        if path.name not in current:
            path.unlink()


def described(model: ScoreModel) -> dict[str, Any]:
    """The config of a model but for its files and notes."""
    known = nets.registry.get(type(model.net).__name__) is type(model.net)
    names = {kind: name for name, kind in DIFFUSIONS.items()}
    if type(model.sde) not in names:
        kind = type(model.sde).__name__
        raise TypeError(f"{kind} has no name to save it under: give it one, such as DIFFUSIONS['{kind.lower()}'] = {kind}")
    return {
        "format": _FORMAT,
        "net": {"class": type(model.net).__name__, "config": getattr(model.net, "config", None) if known else None},
        "sde": {"name": names[type(model.sde)], **dataclasses.asdict(model.sde)},
        "predicts": model.predicts,
        "conditioning": model.conditioning,
        "shape": model.shape,
        "data_std": model.data_std,
        "data_range": model.data_range,
        "scale": dataclasses.asdict(model.scale),
        "dtype": str(model.place()[0]).removeprefix("torch."),
        "versions": versions(),
    }


def _written(tensors: dict[str, Tensor], folder: Path, part: str) -> dict[str, str]:
    """Writes a file named by its content; returns its name and its checksum."""
    content = serialised({name: value.detach().contiguous() for name, value in tensors.items()})
    checksum = hashlib.sha256(content).hexdigest()
    name = f"{part}-{checksum[:12]}.safetensors"
    with replacing(folder / name) as path:
        path.write_bytes(content)
    return {"name": name, "sha256": checksum}


def _checksum(config: Mapping[str, Any]) -> str:
    """Of a config but for its checksum."""
    rest = {key: value for key, value in config.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a checkpoint, checked to be one and to be as it was written.

    Raises:
        CheckpointError: when the folder, or its config, is not a checkpoint's.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; give the folder that save() or `sdekit-diffusion train` wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error}); the checkpoint is damaged") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(f"{path} is not a checkpoint of this version: format {found!r}, expected {_FORMAT!r}")
    files = config.get("files")
    known = isinstance(files, dict) and all(
        isinstance(file, dict) and set(file) == {"name", "sha256"} for file in files.values()
    )
    if not known or config.get("sha256") != _checksum(config):
        raise CheckpointError(f"{path} is not as it was written: its checksum differs; the checkpoint is damaged")
    return config


def read_tensors(folder: str | Path, part: str = _WEIGHTS) -> dict[str, Tensor]:
    """The tensors of a checkpoint, its "weights" or, where there are some, those of its "training".

    Raises:
        CheckpointError: when there are none, or they are not as they were written.
    """
    file = read_config(folder)["files"].get(part)
    if file is None:
        raise CheckpointError(f"{folder} holds no state of a training; give a folder within `{_STEPS}`")
    path = Path(folder) / Path(str(file["name"])).name
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise CheckpointError(f"{path} is not as it was written: its checksum differs; the checkpoint is damaged")
        return deserialised(content)
    except PermissionError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; the checkpoint is incomplete") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); the checkpoint is damaged") from error


def load(
    folder: str | Path,
    *,
    net: nn.Module | None = None,
    device: torch.device | str = "cpu",
    ema: float | None = None,
) -> ScoreModel:
    """The model that `save` wrote, in evaluation mode; of a training that is not over, that of its newest checkpoint.

    Arguments:
        folder: with config.json and weights-*.safetensors, or a run's folder.
        net: the network to fill with the weights, where it is none of `nets`.
        device: where to.
        ema: which of several decays of a training the averaged weights are to have, in its newest checkpoint; 0 for the
            weights themselves.

    Raises:
        CheckpointError: when a file is missing, damaged, or fits another network.
        ValueError: for a device that cannot be used.
    """
    device, folder = usable(device), Path(folder)
    if ema is not None or not (folder / CONFIG).exists():
        folder = newest(folder) or folder
    config = read_config(folder)
    weights = read_tensors(folder) if ema is None else _averaged(folder, config, ema)
    try:
        network = _network(config["net"], weights) if net is None else net
        sde = dict(config["sde"])
        model = ScoreModel(
            network,
            DIFFUSIONS[sde.pop("name")](**sde),
            config["predicts"],
            shape=shape_from(config["shape"]),
            conditioning=config["conditioning"],
            data_std=config["data_std"],
            data_range=None if config["data_range"] is None else tuple(config["data_range"]),
            scale=Scale(**config["scale"]),
        )
        model.to(_DTYPES[config["dtype"]])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise CheckpointError(f"{folder / CONFIG} does not describe a model ({error!r}); the checkpoint is damaged") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{folder} holds the weights of another network: {what}") from error
    return model.to(device).eval()


def _network(config: dict[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    name = config["class"]
    if config["config"] is None or name not in nets.registry:
        raise CheckpointError(
            f"the network {name!r} is not one of {', '.join(nets.registry)}"
            f"{did_you_mean(name, nets.registry)}: pass it as load(..., net=...)"
        )
    with Bounded(weights):
        return nets.registry[name](**config["config"])


def _averaged(folder: Path, config: dict[str, Any], ema: float) -> dict[str, Tensor]:
    """The weights of a training at its checkpoint, averaged with one of its decays."""
    state, decays = read_tensors(folder, _STATE), config["notes"]["decays"]
    if ema and ema not in decays:
        raise CheckpointError(f"{folder} has no average of decay {ema}; choose one of {', '.join(map(str, decays))}, or 0")
    prefixes = ["model.net."] + ([f"average.{decays.index(ema)}.net."] if ema else [])
    return {name.removeprefix(prefix): v for prefix in prefixes for name, v in state.items() if name.startswith(prefix)}


def checkpoint(run: Path, step: int) -> Path:
    """Where the checkpoint of an update is."""
    return run / _STEPS / f"{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """Those of a run, the newest first; one that was never finished is none, nor is a folder of another kind of name."""
    found = [path.parent for path in (run / _STEPS).glob(f"*/{CONFIG}") if path.parent.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def newest(run: Path) -> Path | None:
    """The newest checkpoint of a run that is as it was written, None where there never was one; others are warned of.

    Raises:
        CheckpointError: when all are damaged.
    """
    while found := checkpoints(run):
        for path in found:
            try:
                for part in read_config(path)["files"]:
                    read_tensors(path, part)
                return path
            except CheckpointError as error:
                if not (path / CONFIG).exists():
                    break  # the training that is going on has removed it meanwhile and has newer ones
                warnings.warn(f"{error}; the one before it is used", RuntimeWarning, stacklevel=3)
        else:
            raise CheckpointError(f"all checkpoints in {run / _STEPS} are damaged; remove that folder to begin anew")
    return None


def prune(run: Path, keep: int, step: int) -> None:
    """Removes all checkpoints but the newest `keep` up to an update and the one with the least validation loss.

    Others are of no use: they were never finished, or they are later and were passed over because they are damaged.
    """
    found = [path for path in checkpoints(run) if int(path.name) <= step]
    kept = {*found[:keep], min(found, key=validation_loss_at, default=None)}
    for path in (run / _STEPS).iterdir():
        if path.is_dir() and path.name.isdecimal() and path not in kept:
            (path / CONFIG).unlink(missing_ok=True)  # first, so that none is found in part
            shutil.rmtree(path)


def validation_loss_at(folder: Path) -> float:
    """That of a checkpoint, infinite where it was not measured."""
    try:
        return read_config(folder)["notes"].get("validation_loss", math.inf)
    except CheckpointError:
        return math.inf
