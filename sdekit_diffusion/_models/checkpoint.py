"""Checkpoints are data: tensors in safetensors, everything else in JSON; nothing in them is ever
executed.

config.json names the other files and has their checksums and its own. Files are named by their
content, and config.json is replaced last, in one move: a folder that a checkpoint is written into
is always the old one or the new one.

No file is removed but those that a config.json of this format names: the files of the checkpoint,
and in "replaces" those of the checkpoints before it, which a process that was killed may have left.
"""

import dataclasses
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as deserialised
from safetensors.torch import save as serialised
from torch import Tensor, nn

from sdekit_diffusion import nets
from sdekit_diffusion._diffusions.names import DIFFUSIONS
from sdekit_diffusion._models.model import ScoreModel
from sdekit_diffusion._models.wrapped import require_own
from sdekit_diffusion._storage.atomic import PART, alone, flush, made, naming, replacing

_FORMAT = "sdekit-diffusion 2"
CONFIG = "config.json"
STEPS = "checkpoints"
_WEIGHTS = "weights"
STATE = "training"
MEAN = ".data_mean"  # beside the weights, whose names do not begin so
# The names that `save` gives.
_TENSORS = re.compile(rf"({_WEIGHTS}|{STATE})-[0-9a-f]{{12}}\.safetensors")
# Until config.json is written.
_STAGED = {part: f".{part}.safetensors{PART}" for part in (_WEIGHTS, STATE)}


def versions() -> dict[str, str]:
    """Of Python and of what numbers depend on."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("sdekit", "torch", "numpy", "scipy")
    }


class CheckpointError(ValueError):
    """A folder that is not a checkpoint, or a damaged one.

    Example:
        >>> sd.load("no such folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        CheckpointError: no such folder has no config.json
    """


def save(
    model: ScoreModel,
    folder: str | Path,
    notes: Mapping[str, Any] | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes config.json and weights-*.safetensors into a folder, which is created if missing.

    The checkpoint is written atomically: the folder contains either the old or the new one. The
    files of the old checkpoint are removed, and no others.

    Arguments:
        model: its network either has a `config` of constructor arguments and a class in
            `nets.registry`, or must be passed to `load`.
        notes: what else to store, as JSON, such as the name of the data.
        state: of a training run, to resume it, in a third file.

    Raises:
        TypeError: when the network is a plain function, which has no weights to save, or the model
            is wrapped.
        ValueError: when the model has conditions, which a checkpoint does not contain.
        CheckpointError: when the folder has a config.json that is not one of `save`, or is damaged;
            nothing is written then.
        OSError: when the folder cannot be written to, the disk is full, or another process saves or
            trains there; the folder is then as it was.

    Example:
        >>> net = sd.nets.MLP(shape=(2,), width=8)
        >>> folder = sd.save(sd.ScoreModel(net, "vp", shape=(2,)), "toy", {"data": "moons"})
        >>> sorted(path.name.split("-")[0] for path in folder.iterdir())
        ['config.json', 'weights']
    """
    config = to_save(model, notes)
    if Path(folder).is_file():
        raise NotADirectoryError(
            f"{str(folder)!r} is a file: save writes a folder of several files; name another"
        )
    with alone(made(Path(folder))):
        return written(model, config, Path(folder), state)


def to_save(model: ScoreModel, notes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The config of a model but for its files; what cannot be saved is refused, as by `save`."""
    require_own(
        model,
        ScoreModel,
        "pass the model that is inside the wrapper: compiled._orig_mod, or parallel.module",
    )
    if not isinstance(model.net, nn.Module):
        raise TypeError("this model's network is a plain function and has no weights to save")
    return described(model) | {"notes": dict(notes or {})}


def written(
    model: ScoreModel,
    config: dict[str, Any],
    folder: Path,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """`save` into a folder that no other process writes to."""
    assert isinstance(model.net, nn.Module)
    before = files_of(folder)
    # None twice in memory.
    weights = {name: value.clone() for name, value in model.net.state_dict().items()}
    if isinstance(model.data_mean, Tensor):
        weights[MEAN] = model.data_mean.clone()
    parts = {_WEIGHTS: weights} | ({} if state is None else {STATE: dict(state)})
    new: set[str] = set()
    try:
        files = {part: _staged(tensors, folder, part) for part, tensors in parts.items()}
        new |= {file["name"] for file in files.values()}
        config |= {"files": files, "replaces": sorted(before - new)}
        config["sha256"] = _checksum(config)
        with replacing(folder / CONFIG) as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            # Named in what stands beside by now: `files_of` knows them after a kill.
            for part, file in files.items():
                os.replace(folder / _STAGED[part], folder / file["name"])
            flush(folder)
    finally:
        _tidy(folder, before | new | set(_STAGED.values()))
    return folder


def files_of(folder: Path) -> set[str]:
    """The names of the files of tensors that checkpoints in a folder have, or that a save which was
    killed left there.

    Raises:
        CheckpointError: when its config.json is none of a checkpoint, or a damaged one.
    """
    names: set[str] = set()
    if (folder / CONFIG).exists():
        try:
            names |= _names(_config(folder / CONFIG))
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; it stays as it is: choose another folder, or remove that file"
            ) from error
    with suppress(CheckpointError):
        names |= _names(_config(folder / f".{CONFIG}{PART}"))
    return {name for name in names if (folder / name).exists()}


def _names(config: Mapping[str, Any]) -> set[str]:
    """The files that a config names, and those that it says it replaces; a name that `save` does
    not give is none.
    """
    replaced = config.get("replaces")
    names = [
        *(file["name"] for file in config["files"].values()),
        *(replaced if isinstance(replaced, list) else []),
    ]
    return {str(name) for name in names if _TENSORS.fullmatch(str(name))}


def _tidy(folder: Path, names: Iterable[str]) -> None:
    """Removes those of some files that config.json does not name; where it is damaged all stay."""
    try:
        files = read_config(folder)["files"] if (folder / CONFIG).exists() else {}
    except CheckpointError:
        return
    for name in set(names) - {str(file["name"]) for file in files.values()}:
        (folder / name).unlink(missing_ok=True)


def is_ours(name: str) -> bool:
    """Whether `save` gives this name to a file of tensors, or to one that is to become a file of a
    checkpoint.
    """
    return bool(_TENSORS.fullmatch(name)) or name in (*_STAGED.values(), f".{CONFIG}{PART}")


def is_foreign(path: Path) -> bool:
    """Whether a file can be read as JSON and is no config of a checkpoint."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return not (isinstance(config, dict) and config.get("format") == _FORMAT)


def described(model: ScoreModel) -> dict[str, Any]:
    """The config of a model but for its files and notes.

    Raises:
        TypeError: when its diffusion has no name.
        ValueError: when it was given conditions.
    """
    if model.conditions:
        names = ", ".join(model.conditions)
        raise ValueError(
            f"this model was given {names}, which a checkpoint does not hold: save the model that "
            "given() was called on, and after load(folder) call "
            f"given({names.replace(', ', '=..., ')}=...) again"
        )
    known = nets.registry.get(type(model.net).__name__) is type(model.net)
    names = {kind: name for name, kind in DIFFUSIONS.items()}
    if type(model.sde) not in names:
        kind = type(model.sde).__name__
        raise TypeError(
            f"{kind} has no name to save it under: give it one, such as "
            f"DIFFUSIONS['{kind.lower()}'] = {kind}"
        )
    return {
        "format": _FORMAT,
        "net": {
            "class": type(model.net).__name__,
            "config": getattr(model.net, "config", None) if known else None,
        },
        "sde": {"name": names[type(model.sde)], **dataclasses.asdict(model.sde)},
        "predicts": model.predicts,
        "conditioning": model.conditioning,
        "shape": model.shape,
        "data_mean": None if isinstance(model.data_mean, Tensor) else model.data_mean,
        "data_std": model.data_std,
        "data_range": model.data_range,
        "scale": dataclasses.asdict(model.scale),
        "dtype": str(model.place()[0]).removeprefix("torch."),
        "versions": versions(),
    }


def _staged(tensors: dict[str, Tensor], folder: Path, part: str) -> dict[str, str]:
    """Writes a file that is to be named by its content; returns that name and its checksum."""
    content = serialised({name: value.detach().contiguous() for name, value in tensors.items()})
    checksum = hashlib.sha256(content).hexdigest()
    name = f"{part}-{checksum[:12]}.safetensors"
    path = folder / _STAGED[part]
    with naming(folder / name):
        path.write_bytes(content)
        flush(path)
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
    return _config(Path(folder) / CONFIG)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; give the folder that save() or `sdekit-diffusion train` wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable as JSON ({error}); the checkpoint is damaged"
        ) from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of this version: format {found!r}, expected {_FORMAT!r}"
        )
    files = config.get("files")
    known = isinstance(files, dict) and all(
        isinstance(file, dict) and set(file) == {"name", "sha256"} for file in files.values()
    )
    if not known or config.get("sha256") != _checksum(config):
        raise CheckpointError(
            f"{path} is not as it was written: its checksum differs; the checkpoint is damaged"
        )
    return config


def scale_in(folder: str | Path) -> tuple[Tensor | float, float | None]:
    """`data_mean` and `data_std` of the model of a checkpoint.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    config = read_config(folder)
    mean = read_tensors(folder).get(MEAN, config.get("data_mean") or 0.0)
    return mean, config["data_std"]


def read_tensors(folder: str | Path, part: str = _WEIGHTS) -> dict[str, Tensor]:
    """The tensors of a checkpoint, its "weights" or, where there are some, those of its "training".

    Raises:
        CheckpointError: when there are none, or they are not as they were written.
    """
    file = read_config(folder)["files"].get(part)
    if file is None:
        raise CheckpointError(
            f"{folder} holds no state of a training; give a folder within `{STEPS}`"
        )
    path = Path(folder) / Path(str(file["name"])).name
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise CheckpointError(
                f"{path} is not as it was written: its checksum differs; the checkpoint is damaged"
            )
        return deserialised(content)
    except PermissionError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; the checkpoint is incomplete") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); the checkpoint is damaged"
        ) from error
