"""The checkpoints of a run, a folder each: which are there, which of them is the newest sound one,
and which go.
"""

import math
import re
import warnings
from contextlib import suppress
from pathlib import Path

from sdekit_diffusion._models.checkpoint import (
    CONFIG,
    STEPS,
    CheckpointError,
    is_foreign,
    is_ours,
    read_config,
    read_tensors,
)

_STEP = re.compile(r"\d{8,}")


def checkpoint(run: Path, step: int) -> Path:
    """Where the checkpoint of an update is."""
    return run / STEPS / f"{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """Those of a run, the newest first; one that was never finished is none, nor is a folder of
    another kind of name.
    """
    found = [path for path in step_folders(run) if (path / CONFIG).exists()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def step_folders(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, those too that were never finished."""
    return [
        path for path in (run / STEPS).glob("*") if path.is_dir() and _STEP.fullmatch(path.name)
    ]


def newest(run: Path) -> Path | None:
    """The newest checkpoint of a run that is as it was written, None where there never was one;
    others are warned of.

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
                    # The training that is going on has removed it meanwhile and has newer ones.
                    break
                warnings.warn(f"{error}; the one before it is used", RuntimeWarning, stacklevel=3)
        else:
            raise CheckpointError(
                f"all checkpoints in {run / STEPS} are damaged; remove that folder to begin anew"
            )
    return None


def discard(folder: Path) -> None:
    """Removes a checkpoint of a run, or what is left of one: its config first, so that none is
    found in part.

    Other files stay, and the folder with them; a link goes and what it leads to stays; so does a
    folder of another program.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    if is_foreign(folder / CONFIG):
        return
    (folder / CONFIG).unlink(missing_ok=True)
    for path in list(folder.iterdir()):
        if is_ours(path.name):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()  # where nothing else is in it


def prune(run: Path, keep: int, step: int) -> None:
    """Removes all checkpoints but the newest `keep` up to an update and the one with the least
    validation loss.

    Others are of no use: they were never finished, or they are later and were passed over because
    they are damaged.
    """
    found = [path for path in checkpoints(run) if int(path.name) <= step]
    kept = {*found[:keep], min(found, key=validation_loss_at, default=None)}
    for path in step_folders(run):
        if path not in kept:
            discard(path)


def validation_loss_at(folder: Path) -> float:
    """That of a checkpoint, infinite where it was not measured."""
    try:
        return read_config(folder)["notes"].get("validation_loss", math.inf)
    except CheckpointError:
        return math.inf
