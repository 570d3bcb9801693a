"""Checkpoints from models.

config.json is replaced last, and atomically, so that a folder always contains either the old or the
new checkpoint. Only files that a config.json of this format names are removed.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialised
from torch import Tensor, nn

from sdekit_diffusion import nets
from sdekit_diffusion._arguments.inputs import as_json
from sdekit_diffusion._diffusions.names import DIFFUSIONS
from sdekit_diffusion._models.checkpoint import (
    CONFIG,
    FORMAT,
    MEAN,
    STATE,
    TEMPORARY,
    WEIGHTS,
    CheckpointError,
    checksum,
    files_of,
    read_config,
    versions,
    warn_of_not_finite,
)
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._models.wrapped import bare, plain_name, require_own
from sdekit_diffusion._storage.atomic import (
    exclusive,
    flush,
    make_folder,
    replace_atomically,
    with_file_name,
)


def save(
    model: ScoreModel,
    folder: str | Path,
    notes: Mapping[str, Any] | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes config.json and weights-*.safetensors into a folder, which is created if missing.

    The checkpoint is written atomically: at any time the folder contains either the old or the new
    one. The files of the old checkpoint are removed, and no others. A warning is raised for weights
    that are NaN or infinite. Of a network in wrappers, of `torch.compile`, `DataParallel` or
    `DistributedDataParallel`, the network itself is saved.

    Arguments:
        model: the model. Its network either has a `config` of constructor arguments and a class in
            `nets.registry`, or must be passed to `load`.
        folder: the folder, which may have a checkpoint that is replaced.
        notes: other values to store, which JSON must be able to represent, such as the name of the
            data.
        state: tensors from which a training run is resumed, stored in a third file.

    Returns:
        the folder.

    Raises:
        TypeError: when the network is a plain function, which has no weights to save, or has extra
            state that is not a tensor; when the model is in a wrapper, or the class of its
            diffusion is not in `DIFFUSIONS`; for notes or settings that JSON cannot represent.
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
    config = config_to_save(model, notes)
    assert isinstance(model.net, nn.Module)
    warn_of_not_finite(model.net, "the network")
    if Path(folder).is_file():
        raise NotADirectoryError(
            f"{str(folder)!r} is a file: save writes a folder of several files; name another"
        )
    with exclusive(make_folder(Path(folder))):
        return write(model, config, Path(folder), state)


def config_to_save(model: ScoreModel, notes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The config of a model without its files.

    Raises:
        TypeError, ValueError: for models that cannot be saved, as in `save`.
    """
    require_own(
        model,
        ScoreModel,
        "pass the model that is inside the wrapper: compiled._orig_mod, or parallel.module",
    )
    if not isinstance(model.net, nn.Module):
        raise TypeError("this model's network is a plain function and has no weights to save")
    return config_of(model) | {"notes": as_json("notes", dict(notes or {}))}


def config_of(model: ScoreModel) -> dict[str, Any]:
    """The config of a model without its files and notes.

    Raises:
        TypeError: when its diffusion has no name, or its network has extra state that is not a
            tensor.
        ValueError: when it has conditions.
    """
    if model.conditions:
        names = ", ".join(model.conditions)
        raise ValueError(
            f"this model was given {names}, which a checkpoint does not hold: save the model that "
            "given() was called on, and after load(folder) call "
            f"given({names.replace(', ', '=..., ')}=...) again"
        )
    assert isinstance(model.net, nn.Module)
    net = bare(model.net)
    _tensors(net)  # refuses before training what could not be saved after it
    registered = nets.registry.get(type(net).__name__) is type(net)
    names = {kind: name for name, kind in DIFFUSIONS.items()}
    if type(model.sde) not in names:
        kind = type(model.sde).__name__
        raise TypeError(
            f"{kind} has no name to save it under: give it one, such as "
            f"DIFFUSIONS['{kind.lower()}'] = {kind}"
        )
    config = {
        "format": FORMAT,
        "net": {
            "class": type(net).__name__,
            "config": getattr(net, "config", None) if registered else None,
        },
        "sde": {"name": names[type(model.sde)], **dataclasses.asdict(model.sde)},
        "predicts": model.predicts,
        "conditioning": model.conditioning,
        "shape": model.shape,
        "data_mean": None if isinstance(model.data_mean, Tensor) else model.data_mean,
        "data_std": model.data_std,
        "data_range": model.data_range,
        "scale": dataclasses.asdict(model.scale),
        "null": model.given_null,
        "never_dropped": list(model.never_dropped) or None,
        "trained_levels": list(model.trained_levels) or None,
        "samplers": [
            {"guidance": guidance, **fitted._asdict()}
            for (guidance, _), fitted in model.samplers.items()
        ]
        or None,
        "dtype": str(model.place()[0]).removeprefix("torch."),
        "versions": versions(),
    }
    return as_json("the settings of the model", config)


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """The state of a network, by names without those of wrappers.

    Raises:
        TypeError: for extra state that is not a tensor.
    """
    state = bare(net).state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} in the state of the network is {value!r:.60}, and a checkpoint holds "
                "tensors only: let get_extra_state return one, or keep it in an attribute"
            )
    return {plain_name(name): value for name, value in state.items()}


def write(
    model: ScoreModel,
    config: dict[str, Any],
    folder: Path,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """`save` into a folder that no other process writes to."""
    assert isinstance(model.net, nn.Module)
    old_files = files_of(folder)
    # Clones, since safetensors refuses tensors that share memory.
    weights = {name: value.clone() for name, value in _tensors(model.net).items()}
    if isinstance(model.data_mean, Tensor):
        weights[MEAN] = model.data_mean.clone()
    parts = {WEIGHTS: weights} | ({} if state is None else {STATE: dict(state)})
    new_files: set[str] = set()
    try:
        files = {part: _stage(tensors, folder, part) for part, tensors in parts.items()}
        new_files |= {file["name"] for file in files.values()}
        config |= {"files": files, "replaces": sorted(old_files - new_files)}
        config["sha256"] = checksum(config)
        with replace_atomically(folder / CONFIG) as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            # The temporary config names them already, so that `files_of` finds them after a kill.
            for part, file in files.items():
                os.replace(folder / TEMPORARY[part], folder / file["name"])
            flush(folder)
    finally:
        _remove_unreferenced(folder, old_files | new_files | set(TEMPORARY.values()))
    return folder


def _stage(tensors: dict[str, Tensor], folder: Path, part: str) -> dict[str, str]:
    """Writes tensors to a temporary file; returns its final name, from its content, and its
    checksum.
    """
    content = serialised({name: value.detach().contiguous() for name, value in tensors.items()})
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{part}-{sha256[:12]}.safetensors"
    path = folder / TEMPORARY[part]
    with with_file_name(folder / name):
        path.write_bytes(content)
        flush(path)
    return {"name": name, "sha256": sha256}


def _remove_unreferenced(folder: Path, names: Iterable[str]) -> None:
    """Removes those of the named files that config.json does not name; none if it is damaged."""
    try:
        files = read_config(folder)["files"] if (folder / CONFIG).exists() else {}
    except CheckpointError:
        return
    for name in set(names) - {str(file["name"]) for file in files.values()}:
        (folder / name).unlink(missing_ok=True)
