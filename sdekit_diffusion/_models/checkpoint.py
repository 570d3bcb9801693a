"""The format of checkpoints, and how they are read. Tensors are in safetensors and everything else
is in JSON: loading a checkpoint executes no code from it.

config.json has the names and the checksums of the other files, and its own checksum. The names of
the other files contain a hash of their content. "replaces" has the files of previous checkpoints,
which may still be there if a process was killed.
"""

import functools
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialised
from torch import Tensor, nn

from sdekit.calling import warn_caller
from sdekit_diffusion._models.wrapped import bare, plain_name
from sdekit_diffusion._storage.atomic import PART

FORMAT = "sdekit-diffusion 2"
CONFIG = "config.json"
STEPS = "checkpoints"
WEIGHTS = "weights"
STATE = "training"
MEAN = ".data_mean"  # among the weights, whose names do not begin with a dot
# The names of files of tensors that `save` writes.
_TENSORS = re.compile(rf"({WEIGHTS}|{STATE})-[0-9a-f]{{12}}\.safetensors")
# Their names until config.json is written.
TEMPORARY = {part: f".{part}.safetensors{PART}" for part in (WEIGHTS, STATE)}


@functools.cache  # packages do not change, and reading their metadata takes a while
def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("sdekit", "torch", "numpy", "scipy")
    }


class CheckpointError(ValueError):
    """A folder that is not a checkpoint, or a damaged one.

    Example:
        >>> sd.load("no such folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        CheckpointError: no such folder does not exist
    """


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a checkpoint, after checks of its format and its checksum.

    Raises:
        CheckpointError: when the folder is not a checkpoint, or its config is damaged.
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
    except NotADirectoryError:
        raise CheckpointError(
            f"{path.parent} is not a folder; give the folder that save() or `sdekit-diffusion "
            f"train` wrote, such as {path.parent.parent}"
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
    """The checksum of a config without its own entry."""
    rest = {key: value for key, value in config.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_tensors(folder: str | Path, part: str = WEIGHTS) -> dict[str, Tensor]:
    """The tensors of a checkpoint: its "weights", or the state of its "training" run.

    Raises:
        CheckpointError: when there are none, or the file is damaged.
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


def warn_of_not_finite(net: nn.Module, owner: str) -> None:
    """Warns of weights that are NaN or infinite, and does not raise, because one may want to look
    at a network that diverged. The warning names the line that called the caller of this function.
    """
    weights = dict(bare(net).named_parameters())
    wrong = [
        plain_name(name)
        for name, value in weights.items()
        # One pass without a copy, in formats that torch can compare.
        if value.is_floating_point() and value.numel() and value.dtype.itemsize > 1
        if not bool(torch.stack(value.detach().aminmax()).isfinite().all())
    ]
    if wrong:
        warn_caller(
            f"{owner} has NaN or infinite numbers in {len(wrong)} of its {len(weights)} "
            f"weights, the first of them {wrong[0]}: training diverged, or they are damaged",
        )


def files_of(folder: Path) -> set[str]:
    """The names of files of tensors in a folder that belong to its checkpoint, or that an
    interrupted save left there.

    Raises:
        CheckpointError: when config.json is not that of a checkpoint, or is damaged.
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
    """The files of a config and those in its "replaces", without names that `save` does not use."""
    replaced = config.get("replaces")
    names = [
        *(file["name"] for file in config["files"].values()),
        *(replaced if isinstance(replaced, list) else []),
    ]
    return {str(name) for name in names if _TENSORS.fullmatch(str(name))}


def is_ours(name: str) -> bool:
    """Whether `save` uses this name for a file of tensors, or for a temporary file."""
    return bool(_TENSORS.fullmatch(name)) or name in (*TEMPORARY.values(), f".{CONFIG}{PART}")


def is_foreign(path: Path) -> bool:
    """Whether a file is JSON, but not the config of a checkpoint."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return not (isinstance(config, dict) and config.get("format") == FORMAT)
