"""The logs of a training run: metrics.jsonl and optionally TensorBoard's files."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdekit_diffusion._arguments.inputs import is_whole
from sdekit_diffusion._storage.atomic import flush, replace_atomically, with_file_name
from sdekit_diffusion._storage.distributed import rank

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Log:
    """What a training run writes to its folder, and how often.

    Attributes:
        log_every: updates between two lines of metrics.jsonl.
        save_every: updates between two checkpoints; one is also written whenever the validation
            loss is the smallest so far.
        keep: how many of the newest checkpoints are kept, besides that with the smallest validation
            loss.
        snapshots: how many times, evenly over the run, the averages of `Recipe.widths` are stored.
        tensorboard: write the numbers of metrics.jsonl for TensorBoard too.

    Raises:
        ValueError: for numbers below 1, or that are not whole.
        ImportError: when tensorboard is true and TensorBoard is not installed.

    Example:
        >>> model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", shape=(2,))
        >>> log = sd.Log(log_every=5, save_every=10, keep=1)
        >>> recipe = sd.Recipe(steps=10, batch_size=8)
        >>> x = torch.randn(32, 2)
        >>> records = sd.fit(model, x, recipe, folder="run", log=log, progress=False)
    """

    log_every: int = 10
    save_every: int = 500
    keep: int = 3
    snapshots: int = 64
    tensorboard: bool = False

    def __post_init__(self) -> None:
        counts = (self.log_every, self.save_every, self.keep, self.snapshots)
        if not all(is_whole(n, 1) for n in counts):
            raise ValueError(
                "log_every, save_every, keep and snapshots are whole numbers that start at 1: "
                f"{self}"
            )
        if self.tensorboard:
            _writer()


class MetricsFile:
    """metrics.jsonl in the folder of a run. A run that resumes drops the lines of later updates.

    Of several processes the first one writes.

    Arguments:
        folder: that of the run.
        step: the number of completed updates.
        tensorboard: whether to write the numbers for TensorBoard too.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self._path = folder / METRICS
        lines = _lines(self._path, step)
        self._start_time = time.perf_counter() - (lines[-1]["seconds"] if lines else 0.0)
        self._tensorboard = None
        if rank() == 0:
            with replace_atomically(self._path) as beside:
                beside.write_text(
                    "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
                )
            if tensorboard:
                self._tensorboard = _writer()(str(folder / "tensorboard"), purge_step=step + 1)

    def seconds(self) -> float:
        """The seconds that the run has taken, without the time between an interruption and the
        resumption.
        """
        return time.perf_counter() - self._start_time

    def add(self, line: Mapping[str, float], *, flush: bool) -> None:
        """Appends a line; with flush=True it is on the disk when this returns."""
        with with_file_name(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            if flush:
                os.fsync(file.fileno())
        if self._tensorboard is not None:
            for name in set(line) - {"step"}:
                self._tensorboard.add_scalar(name, line[name], line["step"])
            self._tensorboard.flush()

    def flush(self) -> None:
        """Returns when all lines are on the disk."""
        flush(self._path)

    def close(self) -> None:
        """Closes the files."""
        if self._tensorboard is not None:
            self._tensorboard.close()


def require_lines(path: Path) -> bool:
    """Whether a file is the metrics.jsonl of a training run; False where there is none.

    Raises:
        ValueError: when a file of that name holds something else.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    first = text.partition("\n")[0]
    # A run may have been killed within its first line.
    complete = "\n" not in text or '"seconds": ' in first
    if text and not (first.startswith('{"step": ') and complete):
        raise ValueError(
            f"{path} was not written by a training run; choose another folder, or remove that file"
        )
    return bool(text)


def _lines(path: Path, step: int) -> list[dict[str, float]]:
    """The complete lines of metrics.jsonl up to an update."""
    lines = []
    for text in (
        path.read_text(encoding="utf-8", errors="replace").splitlines()
        if path.exists() and step
        else ()
    ):
        try:
            line = json.loads(text)
            if line["step"] <= step:
                lines.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    return lines


def _writer() -> Any:  # noqa: ANN401 - an extra
    """TensorBoard's class for writing; an error where it is missing, before anything is written."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs TensorBoard: pip install 'sdekit[tensorboard]'"
        ) from error
    return SummaryWriter
