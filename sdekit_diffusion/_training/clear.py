"""Removes a training run from its folder, so that another run can take it."""

import json
import re
import zipfile
from pathlib import Path

from sdekit_diffusion._models.checkpoint import CONFIG, files_of
from sdekit_diffusion._storage.atomic import exclusive
from sdekit_diffusion._training.history import checkpoints, discard, step_folders
from sdekit_diffusion._training.log import METRICS, require_lines
from sdekit_diffusion._training.snapshots import remove_snapshots

PROGRESS = "progress"
REPORT = "report.html"
NUMBERS = "report.json"
EXPLORE = "explore.html"
SAMPLES = "samples.npz"
# The pictures of a report, a png file each.
PICTURES = (
    "samples",
    "classes",
    "worst",
    "histogram",
    "neighbours",
    "restorations",
    "denoising",
    "forward",
    "loss",
)
_PICTURE = re.compile(r"\d{8,}\.png")


def clear(run: Path) -> None:
    """Removes an older run's model, checkpoints, snapshots of averages, samples, pictures of its
    progress, report and interactive page; all other files stay.

    If the folder has no run, nothing is removed.

    Raises:
        CheckpointError: when its config.json is not that of a checkpoint, or is damaged.
        ValueError: when its metrics.jsonl is not that of a run.
        OSError: when another process trains there.
    """
    with exclusive(run):
        files = files_of(run)
        config = run / CONFIG
        if not (require_lines(run / METRICS) or config.exists() or checkpoints(run)):
            return
        report = [run / REPORT, run / NUMBERS, *(run / f"{name}.png" for name in PICTURES)]
        report = report if _is_report(run / NUMBERS) else []
        samples = [run / SAMPLES] if _is_samples(run / SAMPLES) else []
        pages = [run / EXPLORE] if _is_interactive(run / EXPLORE) else []
        pictures = [
            path for path in (run / PROGRESS).glob("*.png") if _PICTURE.fullmatch(path.name)
        ]
        for path in [config, *(run / name for name in files), *pictures, *report, *samples, *pages]:
            path.unlink(missing_ok=True)
        for path in step_folders(run):
            discard(path)
        remove_snapshots(run)


def _is_report(path: Path) -> bool:
    """Whether it is the report.json of a report, which has a page beside it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"page", "model", "sampling", "likelihood"} <= set(content)


def _is_interactive(path: Path) -> bool:
    """Whether the file is a page written by `explore`."""
    try:
        return '<script type="application/json" id="frames">' in path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _is_samples(path: Path) -> bool:
    """Whether the file was written by `sample`: a single array, not compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(member.filename, member.compress_type) for member in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return False
    return members == [("samples.npy", zipfile.ZIP_STORED)]
