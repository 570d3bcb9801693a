"""The format of checkpoints, and how they are read. They are data, tensors in safetensors and
everything else in JSON: nothing in them is ever executed.

config.json names the other files and has their checksums and its own. Files are named by their
content. In "replaces" it names those of the checkpoints before it, which a process that was killed
may have left.
"""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as deserialised
from torch import Tensor

from sdekit_diffusion._storage.atomic import PART

FORMAT = "sdekit-diffusion 2"
CONFIG = "config.json"
STEPS = "checkpoints"
WEIGHTS = "weights"
STATE = "training"
MEAN = ".data_mean"  # beside the weights, whose names do not begin so
# The names that `save` gives.
_TENSORS = re.compile(rf"({WEIGHTS}|{STATE})-[0-9a-f]{{12}}\.safetensors")
# Until config.json is written.
TEMPORARY = {part: f".{part}.safetensors{PART}" for part in (WEIGHTS, STATE)}


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
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        format_found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of this version: format {format_found!r}, "
            f"expected {FORMAT!r}"
        )
    files = config.get("files")
    valid = isinstance(files, dict) and all(
        isinstance(file, dict) and set(file) == {"name", "sha256"} for file in files.values()
    )
    if not valid or config.get("sha256") != checksum(config):
        raise CheckpointError(
            f"{path} is not as it was written: its checksum differs; the checkpoint is damaged"
        )
    return config


def checksum(config: Mapping[str, Any]) -> str:
    """Of a config but for its checksum."""
    rest = {key: value for key, value in config.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_tensors(folder: str | Path, part: str = WEIGHTS) -> dict[str, Tensor]:
    """The tensors of a checkpoint, its "weights" or, where there are some, those of its "training".

    Raises:
        CheckpointError: when there are none, or they are not as they were written.
    """
    file = read_config(folder)["files"].get(part)
    if file is None:
        raise CheckpointError(
            f"{folder} holds no state of a training run; give a folder within `{STEPS}`"
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


def scale_in(folder: str | Path) -> tuple[Tensor | float, float | None]:
    """`data_mean` and `data_std` of the model of a checkpoint.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    config = read_config(folder)
    mean = read_tensors(folder).get(MEAN, config.get("data_mean") or 0.0)
    return mean, config["data_std"]


def files_of(folder: Path) -> set[str]:
    """The names of the files of tensors that checkpoints in a folder have, or that a save which was
    killed left there.

    Raises:
        CheckpointError: when its config.json is not that of a checkpoint, or is damaged.
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
    """The files that a config names, and those that it says it replaces; names that `save` does
    not use are left out.
    """
    replaced = config.get("replaces")
    names = [
        *(file["name"] for file in config["files"].values()),
        *(replaced if isinstance(replaced, list) else []),
    ]
    return {str(name) for name in names if _TENSORS.fullmatch(str(name))}


def is_ours(name: str) -> bool:
    """Whether `save` gives this name to a file of tensors, or to one that is to become a file of a
    checkpoint.
    """
    return bool(_TENSORS.fullmatch(name)) or name in (*TEMPORARY.values(), f".{CONFIG}{PART}")


def is_foreign(path: Path) -> bool:
    """Whether a file can be read as JSON and is no config of a checkpoint."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return not (isinstance(config, dict) and config.get("format") == FORMAT)
