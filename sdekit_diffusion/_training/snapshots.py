"""Snapshots of a run's power-function averages, from which averages of any width are computed
afterwards. Each is a file, named by its update and its checksum.
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as deserialised
from safetensors.torch import save as serialised
from torch import Tensor

from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion._storage.atomic import PART, make_folder, replace_atomically

FOLDER = "averages"
_NAME = re.compile(r"(\d{8,})-([0-9a-f]{12})\.safetensors")


def snapshots(run: Path) -> dict[int, Path]:
    """The files of a run's snapshots by update, in increasing order."""
    named = [(_NAME.fullmatch(path.name), path) for path in (run / FOLDER).glob("*")]
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def write_snapshot(run: Path, step: int, averages: Mapping[str, Tensor]) -> None:
    """Writes the averages after an update, atomically."""
    content = serialised({name: value.detach().clone() for name, value in averages.items()})
    name = f"{step:08d}-{hashlib.sha256(content).hexdigest()[:12]}.safetensors"
    with replace_atomically(make_folder(run / FOLDER) / name) as path:
        path.write_bytes(content)


def read_snapshot(path: Path) -> dict[str, Tensor]:
    """The averages in a file.

    Raises:
        CheckpointError: when the file is damaged.
    """
    content = path.read_bytes()
    match = _NAME.fullmatch(path.name)
    if match is None or hashlib.sha256(content).hexdigest()[:12] != match[2]:
        raise CheckpointError(f"{path} is not as it was written: its checksum differs; remove it")
    try:
        return deserialised(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from error


def remove_snapshots(run: Path, after: int = -1) -> None:
    """Removes the snapshots after an update, and partial files that a killed process left. Of a
    symbolic link to a folder only the link is removed.
    """
    folder = run / FOLDER
    if folder.is_symlink():
        folder.unlink()
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        match = _NAME.fullmatch(path.name.removeprefix(".").removesuffix(PART))
        if match and (int(match[1]) > after or path.name.endswith(PART)):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()  # where nothing else is in it
