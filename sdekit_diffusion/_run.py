"""The folder of a training: metrics.jsonl, checkpoints, and how it goes on after an end that came too soon."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sdekit_diffusion._checkpoint import (
    CONFIG,
    checkpoint,
    checkpoints,
    described,
    newest,
    prune,
    read_config,
    read_tensors,
    save,
    validation_loss_at,
)
from sdekit_diffusion._distributed import agreed, rank, wait
from sdekit_diffusion._files import alone, made, naming, replacing
from sdekit_diffusion._training import Record, Training

METRICS, VALIDATION = "metrics.jsonl", "validation_loss"


@dataclass(frozen=True)
class Log:
    """What is written to a run's folder, and how often.

    Attributes:
        log_every: updates between two lines of metrics.jsonl.
        save_every: updates between two checkpoints; one with the least validation loss so far is written at once.
        keep: how many checkpoints stay besides that one.
        tensorboard: write the numbers of metrics.jsonl for TensorBoard too.

    Raises:
        ValueError: for numbers below 1.
    """

    log_every: int = 10
    save_every: int = 500
    keep: int = 3
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if min(self.log_every, self.save_every, self.keep) < 1:
            raise ValueError(f"log_every, save_every and keep start at 1: {self}")


@contextmanager
def run_in(folder: Path, training: Training, log: Log, notes: Mapping[str, Any], resume: bool) -> Iterator["Run"]:
    """A run for the time of a block in which no other process writes to its folder; in the end the model is saved for `load`.

    Raises:
        OSError: when the folder cannot be written to, or another process trains in it; other errors are those of `Run`.
    """
    with alone(made(folder)) if rank() == 0 else nullcontext():
        run = Run(folder, training, log, notes, resume)
        try:
            yield run
        finally:
            run.close()
        if rank() == 0:
            save(training.model, folder, run.notes)
        wait()


class Run:
    """The folder of a training, begun or gone on with. Of several processes the first one writes.

    Arguments:
        folder: where.
        training: is put to the state of the newest checkpoint if resume is true and there is one.
        log: how often to write what.
        notes: what to save with the model.
        resume: go on.

    Raises:
        ValueError: when there is a run or a model and resume is false, or the run is of another model, recipe or other data.
        CheckpointError: when all are damaged.
        RuntimeError: when the processes do not see the same checkpoints.
    """

    def __init__(self, folder: Path, training: Training, log: Log, notes: Mapping[str, Any], resume: bool) -> None:
        model, recipe = training.model, training.recipe
        self.folder, self.training, self.log, self._losses = folder, training, log, []
        self.notes = dict(notes) | {
            "recipe": json.loads(json.dumps(asdict(recipe))),
            "decays": list(recipe.decays),
            "samples": training.source.fingerprint,
        }
        if not resume and checkpoints(folder):
            raise ValueError(f"{folder} holds checkpoints of a run; go on with resume=True, or choose another folder")
        path = newest(folder) if resume else None
        if path is None and (folder / CONFIG).exists():
            raise ValueError(f"{folder} holds a model, and no checkpoints to go on from; choose another folder")
        if path is not None:
            self._require_same(path)
            training.load_state_dict(read_tensors(path, "training"))
        if not agreed(training.step, model.place()[1]):  # all have read before one writes
            raise RuntimeError(f"the processes do not see the same checkpoints; let {folder} be one that all of them share")
        earlier = [path for path in checkpoints(folder) if int(path.name) <= training.step]
        self._least = min(map(validation_loss_at, earlier), default=math.inf)
        lines = _lines(folder / METRICS, training.step)
        self._begun = time.perf_counter() - (lines[-1]["seconds"] if lines else 0.0)
        if rank() == 0:
            with replacing(folder / METRICS) as beside:
                beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        self._board = _board(folder, training.step) if log.tensorboard and rank() == 0 else None

    def _require_same(self, path: Path) -> None:
        config = read_config(path)
        known, model = config["notes"], json.loads(json.dumps(described(self.training.model)))
        before, now = config | known["recipe"], model | self.notes["recipe"] | {"versions": config["versions"]}
        others = [f"{name} = {before.get(name)}, not {value}" for name, value in now.items() if before.get(name) != value]
        if others:
            said = ", ".join(others)
            raise ValueError(f"the run in {self.folder} was begun with {said}; give the same, or choose another folder")
        if known["samples"] != self.notes["samples"]:
            raise ValueError(
                f"the run in {self.folder} was begun on other data ({known['samples']}, not {self.notes['samples']}); give the "
                "same, or choose another folder"
            )

    def note(self, record: Record, found: Mapping[str, float]) -> None:
        """Takes note of an update and of what was measured after it; writes what is due."""
        step, last = record.step, record.step == self.training.recipe.steps
        self._losses.append(record.loss)
        better = found.get(VALIDATION, math.inf) < self._least
        self._least = min(self._least, found.get(VALIDATION, math.inf))
        saves = last or better or step % self.log.save_every == 0
        if saves or found or step % self.log.log_every == 0:
            loss = torch.stack(self._losses).mean()
            self.training.require_finite(loss)
            self._losses.clear()
            if rank() == 0:
                seconds = time.perf_counter() - self._begun
                line = {"step": step, "loss": float(loss), "lr": record.lr, "seconds": seconds} | dict(found)
                self._write(line, flush=saves)
        if saves and rank() == 0:
            self._save(step, {name: found[name] for name in (VALIDATION,) if name in found})

    def _save(self, step: int, measured: Mapping[str, float]) -> None:
        state = self.training.state_dict()
        with self.training.averaged() as model:
            save(model, checkpoint(self.folder, step), self.notes | {"step": step, **measured}, state=state)
        prune(self.folder, self.log.keep, step)

    def close(self) -> None:
        """Nothing more is to be written."""
        if self._board is not None:
            self._board.close()

    def _write(self, line: Mapping[str, float], flush: bool) -> None:
        """A line, on the disk before the checkpoint that it belongs to."""
        path = self.folder / METRICS
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            if flush:
                os.fsync(file.fileno())
        if self._board is not None:
            for name in set(line) - {"step"}:
                self._board.add_scalar(name, line[name], line["step"])
            self._board.flush()


def _lines(path: Path, step: int) -> list[dict[str, float]]:
    """The lines of metrics.jsonl up to an update; one that was not finished is none."""
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() and step else ():
        try:
            line = json.loads(text)
            if line["step"] <= step:
                found.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    return found


def _board(folder: Path, step: int) -> Any:  # noqa: ANN401 - an extra
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True needs TensorBoard: pip install 'sdekit[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
