"""The checkpoints of a run, one folder each: their list, the newest valid one, and pruning."""

import math
import re
from contextlib import suppress
from pathlib import Path

from sdekit.calling import warn_caller
from sdekit_diffusion._models.checkpoint import (
    CONFIG,
    STEPS,
    CheckpointError,
    is_foreign,
    is_ours,
    read_config,
    read_tensors,
)

VALIDATION = "validation_loss"  # its name among the notes of a checkpoint and the measures
_STEP = re.compile(r"\d{8,}")


def checkpoint(run: Path, step: int) -> Path:
    """The folder of the checkpoint of an update."""
    return run / STEPS / f"{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    folders = [path for path in step_folders(run) if (path / CONFIG).exists()]
    return sorted(folders, key=lambda path: int(path.name), reverse=True)


def step_folders(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, including unfinished ones."""
    return [
        path for path in (run / STEPS).glob("*") if path.is_dir() and _STEP.fullmatch(path.name)
    ]


def newest(run: Path) -> Path | None:
    """The newest undamaged checkpoint of a run, with a warning for each damaged one that is newer;
    None where there is no checkpoint.

    Raises:
        CheckpointError: when all are damaged.
    """
    while folders := checkpoints(run):
        for path in folders:
            try:
                for part in read_config(path)["files"]:
                    read_tensors(path, part)
                return path
            except CheckpointError as error:
                if not (path / CONFIG).exists():
                    # A process that trains there has removed it meanwhile: look for its newer ones.
                    break
                warn_caller(f"{error}; the one before it is used", RuntimeWarning)
        else:
            raise CheckpointError(
                f"all checkpoints in {run / STEPS} are damaged; remove that folder to start again"
            )
    return None


def discard(folder: Path) -> None:
    """Removes a checkpoint of a run, or what is left of one; its config first, so that a partly
    removed checkpoint does not count as one.

    Files that are not the checkpoint's stay, and the folder with them; so does the folder of
    another program. Of a symbolic link only the link is removed.
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
    """Removes checkpoints. Of those up to an update it keeps the newest `keep`, and the one with
    the smallest validation loss.

    Unfinished checkpoints are removed. So are those of later updates: the run resumed from an
    earlier one, because they are damaged.
    """
    folders = [path for path in checkpoints(run) if int(path.name) <= step]
    kept_folders = {*folders[:keep], min(folders, key=validation_loss_at, default=None)}
    for path in step_folders(run):
        if path not in kept_folders:
            discard(path)


def best_of(run: Path) -> Path:
    """The checkpoint of a run with the smallest validation loss.

    Raises:
        CheckpointError: when none was measured.
    """
    best = min(checkpoints(run), key=validation_loss_at, default=run)
    if validation_loss_at(best) == math.inf:
        raise CheckpointError(
            f"{run} has no checkpoint with a validation loss: train with fit(..., folder=, "
            "measures=[(500, validation_loss(x))]), or on the command line with --validate-every"
        )
    return best


def validation_loss_at(folder: Path) -> float:
    """The validation loss of a checkpoint; infinite if it was not measured."""
    try:
        return read_config(folder)["notes"].get(VALIDATION, math.inf)
    except CheckpointError:
        return math.inf
