"""The folder of a training: metrics.jsonl, checkpoints, and how it goes on after an end that came
too soon.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit_diffusion._models.checkpoint import (
    CONFIG,
    STATE,
    files_of,
    read_config,
    read_tensors,
    scale_in,
)
from sdekit_diffusion._models.save import config_of, config_to_save, save, write
from sdekit_diffusion._storage.atomic import alone, flush, made, naming, replacing
from sdekit_diffusion._storage.distributed import agreed, largest, rank, wait
from sdekit_diffusion._training.history import (
    checkpoint,
    checkpoints,
    discard,
    newest,
    prune,
    validation_loss_at,
)
from sdekit_diffusion._training.interrupt import remembered
from sdekit_diffusion._training.loop import Record, Training

METRICS = "metrics.jsonl"
VALIDATION = "validation_loss"
_PENDING = "losses"  # in a state: those since the last line of metrics.jsonl
_SIGNAL = 2  # that a signal asked for the end; 1 that the time is over


@dataclass(frozen=True)
class Log:
    """What a training run writes to its folder, and how often.

    Attributes:
        log_every: updates between two lines of metrics.jsonl.
        save_every: updates between two checkpoints; one with the least validation loss so far is
            written at once.
        keep: how many checkpoints stay besides that one.
        tensorboard: write the numbers of metrics.jsonl for TensorBoard too.

    Raises:
        ValueError: for numbers below 1.
        ImportError: when TensorBoard is wanted and missing.

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
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if min(self.log_every, self.save_every, self.keep) < 1:
            raise ValueError(f"log_every, save_every and keep start at 1: {self}")
        if self.tensorboard:
            _writer()


@contextmanager
def run_in(
    folder: Path,
    training: Training,
    log: Log,
    notes: Mapping[str, Any],
    resume: bool,
    minutes: float | None = None,
) -> Iterator["Run"]:
    """A run for the time of a block in which no other process writes to its folder; in the end the
    model is saved for `load`.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, which end the run between two updates; it says
            how to go on.
        OSError: when the folder cannot be written to, or another process trains in it; other errors
            are those of `Run`.
    """
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    with (
        alone(made(folder)) if rank() == 0 else nullcontext(),
        largest() as agreed_on,
        remembered() as signalled,
    ):
        run = Run(folder, training, log, notes, resume)
        run.asked = lambda: agreed_on(_SIGNAL if signalled() else int(time.monotonic() >= end))
        try:
            yield run
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(run.interrupted()) from error
        finally:
            run.close()
        done = training.step == training.recipe.steps
        if done and rank() == 0:
            write(training.model, config_to_save(training.model, run.notes), folder)
        wait()
        if done and signalled():
            raise KeyboardInterrupt(
                f"interrupted when the training run was complete; the model is in {folder}"
            )


class Run:
    """The folder of a training, begun or gone on with. Of several processes the first one writes.

    Attributes:
        asked: whether the run is to end before its time, the same for all processes, which call it
            together: 0 for no.

    Arguments:
        folder: where.
        training: is put to the state of the newest checkpoint if resume is true and there is one.
        log: how often to write what.
        notes: what to save with the model.
        resume: go on.

    Raises:
        ValueError: when there is a run or a model and resume is false, or the run is of another
            model, recipe or other data; when the folder has a metrics.jsonl that no training run
            wrote.
        TypeError: when the model cannot be saved.
        CheckpointError: when all are damaged, or the folder has a config.json that is none of a
            checkpoint.
        RuntimeError: when the processes do not see the same checkpoints.
    """

    def __init__(
        self, folder: Path, training: Training, log: Log, notes: Mapping[str, Any], resume: bool
    ) -> None:
        model = training.model
        recipe = training.recipe
        self.asked: Callable[[], int] = lambda: 0
        self._saved: int | None = None
        self._last: Record | None = None
        self._noted = 0
        self.folder = folder
        self.training = training
        self.log = log
        self._losses = []
        self.notes = dict(notes) | {
            "recipe": json.loads(json.dumps(asdict(recipe))),
            "decays": list(recipe.decays),
            "samples": training.source.fingerprint,
        }
        config_of(model)  # refuses what could not be saved in the end
        files_of(folder)  # and what would stand in its way
        if not resume and checkpoints(folder):
            raise ValueError(
                f"{folder} holds checkpoints of a run; go on with resume=True, or "
                "choose another folder"
            )
        path = newest(folder) if resume else None
        if path is None and (folder / CONFIG).exists():
            raise ValueError(
                f"{folder} holds a model, and no checkpoints to go on from; choose another folder"
            )
        if path is not None:
            self._require_same(path)
            state = read_tensors(path, STATE)
            training.load_state_dict(state)
            model.record_scale(*scale_in(path))
            self._losses = list(state.get(_PENDING, torch.empty(0)).to(model.place()[1]))
            self._saved = training.step
        else:
            require_lines(folder / METRICS)
        if not agreed(training.step, model.place()[1]):  # all have read before one writes
            raise RuntimeError(
                f"the processes do not see the same checkpoints; let {folder} be "
                "one that all of them share"
            )
        earlier = [path for path in checkpoints(folder) if int(path.name) <= training.step]
        self._least = min(map(validation_loss_at, earlier), default=math.inf)
        lines = _lines(folder / METRICS, training.step)
        self._begun = time.perf_counter() - (lines[-1]["seconds"] if lines else 0.0)
        if rank() == 0:
            with replacing(folder / METRICS) as beside:
                beside.write_text(
                    "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
                )
        self._board = None
        if log.tensorboard and rank() == 0:
            self._board = _writer()(str(folder / "tensorboard"), purge_step=training.step + 1)

    def _require_same(self, path: Path) -> None:
        config = read_config(path)
        known = config["notes"]
        model = json.loads(json.dumps(config_of(self.training.model)))
        before = config | known["recipe"]
        now = model | self.notes["recipe"] | {"versions": config["versions"]}
        for name in ("data_mean", "data_std"):  # those of the checkpoint stay
            del now[name]
        others = [
            f"{name} = {before.get(name)}, not {value}"
            for name, value in now.items()
            if before.get(name) != value
        ]
        if others:
            said = ", ".join(others)
            raise ValueError(
                f"the run in {self.folder} was begun with {said}; give the same, or "
                "choose another folder"
            )
        if known["samples"] != self.notes["samples"]:
            raise ValueError(
                f"the run in {self.folder} was begun on other data ({known['samples']}, not "
                f"{self.notes['samples']}); give the "
                "same, or choose another folder"
            )

    def take(self, record: Record) -> None:
        """Takes a new update: from now on the run can be interrupted and goes on after it."""
        self._last = record
        self._losses.append(record.loss)

    def note(self, found: Mapping[str, float]) -> None:
        """Takes note of what was measured after the last update; writes what is due."""
        assert self._last is not None
        record = self._last
        step = record.step
        last = record.step == self.training.recipe.steps
        self._noted = step
        better = found.get(VALIDATION, math.inf) < self._least
        self._least = min(self._least, found.get(VALIDATION, math.inf))
        saves = last or better or step % self.log.save_every == 0
        if saves or found or step % self.log.log_every == 0:
            loss = torch.stack(self._losses).mean()
            self.training.require_finite(loss)
            self._losses.clear()
            if rank() == 0:
                seconds = time.perf_counter() - self._begun
                line = {
                    "step": step,
                    "loss": float(loss),
                    "lr": record.lr,
                    "seconds": seconds,
                } | dict(found)
                self._write(line, flush=saves)
        if saves and rank() == 0:
            self._save(step, {name: found[name] for name in (VALIDATION,) if name in found})
        if saves:
            self._saved = step

    def ended(self) -> bool:
        """Whether the run ends here, before the recipe does, because its time is over; a checkpoint
        is there then.

        Raises:
            KeyboardInterrupt: when a signal asked for the end.
        """
        if self.training.step == self.training.recipe.steps:
            return False
        why = self.asked()
        if why:
            self._keep()
            wait()
        if why == _SIGNAL:
            raise KeyboardInterrupt
        return bool(why)

    def interrupted(self) -> str:
        """Saves a checkpoint where the state is that of a whole number of updates; says how to go
        on.
        """
        step = self.training.step
        steps = self.training.recipe.steps
        if self.training.whole and self._last is not None and self._last.step == step:
            if self._noted != step:
                self.note({})
            self._keep()
        if self._saved is None:
            return f"interrupted at update {step} of {steps}; there is no checkpoint to go on from"
        lost = "" if self._saved == step and self.training.whole else f" of update {self._saved}"
        return (
            f"interrupted at update {step} of {steps}; the checkpoint{lost} is saved: "
            f"{self.advice()}"
        )

    def advice(self) -> str:
        """How to go on."""
        path = checkpoint(self.folder, self._saved or 0)
        return f"the same call with resume=True, or command with --resume, goes on from {path}"

    def _keep(self) -> None:
        """Saves a checkpoint now; the lines of metrics.jsonl will be those of a run without a
        break.
        """
        if self._saved == self.training.step:
            return
        losses = torch.stack(self._losses) if self._losses else torch.empty(0)
        if self._losses:
            self.training.require_finite(losses.mean())
        if rank() == 0:
            flush(self.folder / METRICS)
            self._save(self.training.step, {}, {_PENDING: losses})
        self._saved = self.training.step

    def _save(
        self, step: int, measured: Mapping[str, float], more: Mapping[str, Tensor] | None = None
    ) -> None:
        state = self.training.state_dict() | dict(more or {})
        path = checkpoint(self.folder, step)
        if path.exists():
            discard(path)  # one that is damaged, and was passed over
        with self.training.averaged() as model:
            save(model, path, self.notes | {"step": step, **measured}, state=state)
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


def require_lines(path: Path) -> bool:
    """Whether there is a metrics.jsonl of a training run.

    Raises:
        ValueError: when a file of that name is none.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    first = text.partition("\n")[0]
    # A run may have been killed within its first line.
    whole = "\n" not in text or '"seconds": ' in first
    if text and not (first.startswith('{"step": ') and whole):
        raise ValueError(
            f"{path} was not written by a training run; choose another folder, or remove that file"
        )
    return bool(text)


def _lines(path: Path, step: int) -> list[dict[str, float]]:
    """The lines of metrics.jsonl up to an update; one that was not finished is none."""
    found = []
    for text in (
        path.read_text(encoding="utf-8", errors="replace").splitlines()
        if path.exists() and step
        else ()
    ):
        try:
            line = json.loads(text)
            if line["step"] <= step:
                found.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    return found


def _writer() -> Any:  # noqa: ANN401 - an extra
    """TensorBoard's class, refused where it is missing before anything is written."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs TensorBoard: pip install 'sdekit[tensorboard]'"
        ) from error
    return SummaryWriter
