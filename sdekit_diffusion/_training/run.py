"""The folder of a training run: what is written when, and how an interrupted run resumes."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
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
from sdekit_diffusion._models.recorded import samplers_in
from sdekit_diffusion._models.save import config_of, config_to_save, save, write
from sdekit_diffusion._storage.atomic import exclusive, make_folder
from sdekit_diffusion._storage.distributed import equal_on_all, largest, rank, wait
from sdekit_diffusion._training.history import (
    VALIDATION,
    checkpoint,
    checkpoints,
    discard,
    newest,
    prune,
    validation_loss_at,
)
from sdekit_diffusion._training.interrupt import Interrupted, number_of, remember_signals
from sdekit_diffusion._training.log import METRICS, Log, MetricsFile, require_lines
from sdekit_diffusion._training.loop import Record, Training
from sdekit_diffusion._training.recipe import VALUES, Recipe
from sdekit_diffusion._training.snapshots import remove_snapshots, write_snapshot
from sdekit_diffusion.data._batches import ALL_ROWS

_PENDING_LOSSES = "losses"  # in a state: the losses since the last line of metrics.jsonl
# Tolerances for moments of the same samples, computed on another device or by another version of
# torch: relative to the standard deviation, below the differences of other samples; and relative to
# the mean, for the rounding of samples far from zero.
_ROUNDING = 1e-4
_FLOAT32 = 1e-6
_TIME = 1  # request to end because the time is over; a signal's request is _TIME + its number


@contextmanager
def run_in(
    folder: Path,
    training: Training,
    log: Log,
    notes: Mapping[str, Any],
    resume: bool,
    minutes: float | None = None,
) -> Iterator["Run"]:
    """A context with a run to whose folder no other process writes; at the end of a complete run
    the model is saved for `load`.

    Raises:
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, which end the run between two updates;
            its message says how to resume.
        OSError: when the folder cannot be written to, or another process trains in it; other errors
            are those of `Run`.
    """
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    with (
        exclusive(make_folder(folder)) if rank() == 0 else nullcontext(),
        largest() as largest_of,
        remember_signals() as signal_came,
    ):
        run = Run(folder, training, log, notes, resume)

        def end_requested() -> int:
            over = _TIME if time.monotonic() >= end else 0
            return largest_of(_TIME + signal_came() if signal_came() else over)

        run.end_requested = end_requested
        try:
            yield run
        except KeyboardInterrupt as error:
            raise Interrupted(number_of(error), run.interrupted()) from error
        finally:
            run.close()
        complete = training.step == training.recipe.steps
        if complete and rank() == 0:
            write(training.model, config_to_save(training.model, run.notes), folder)
        # A signal may have come since the last check, such as while a checkpoint was written.
        if number := largest_of(signal_came()):
            raise Interrupted(
                number,
                f"interrupted when the training run was complete; the model is in {folder}"
                if complete
                else run.interrupted(),
            )


class Run:
    """The folder of a training run, new or resumed. Of several processes the first one writes.

    Attributes:
        end_requested: a function that all processes call together and that returns the same number
            to all: 0 unless the run is to end early; `_TIME` when its time is over, and `_TIME`
            plus the number of a signal that came.

    Arguments:
        folder: the folder.
        training: set to the state of the newest checkpoint if resume is true and there is one.
        log: what is written, and how often.
        notes: what to save with the model.
        resume: whether to resume from the newest checkpoint, if there is one.

    Raises:
        ValueError: when the folder has a run and resume is false, a model without checkpoints, or
            a run with another model, recipe or data; or a metrics.jsonl that no training run wrote.
        TypeError: when the model cannot be saved.
        CheckpointError: when all checkpoints are damaged, or config.json is not that of a
            checkpoint.
        RuntimeError: when the processes do not see the same checkpoints.
    """

    def __init__(
        self, folder: Path, training: Training, log: Log, notes: Mapping[str, Any], resume: bool
    ) -> None:
        self.end_requested: Callable[[], int] = lambda: 0
        self.folder = folder
        self.training = training
        self.log = log
        self.notes = dict(notes) | {
            "recipe": json.loads(json.dumps(_recipe_of(training).settings())),
            "decays": list(training.recipe.decays),
            "samples": training.source.fingerprint,
        }
        self._saved: int | None = None
        self._last: Record | None = None
        self._losses: list[Tensor] = []
        config_of(training.model)  # refuses what could not be saved in the end
        files_of(folder)  # and what would stand in its way
        path = self._newest(resume)
        if path is None:
            require_lines(folder / METRICS)
        else:
            self._resume(path)
        if not equal_on_all(
            training.step, training.model.place()[1]
        ):  # all have read before one writes
            raise RuntimeError(
                f"the processes do not see the same checkpoints; let {folder} be one that all of "
                "them share"
            )
        earlier = [path for path in checkpoints(folder) if int(path.name) <= training.step]
        if rank() == 0:
            remove_snapshots(folder, after=training.step)
        self._smallest_loss = min(map(validation_loss_at, earlier), default=math.inf)
        self._metrics = MetricsFile(folder, training.step, log.tensorboard)

    def _newest(self, resume: bool) -> Path | None:
        """The checkpoint to resume from, if any; refuses a folder that holds another run."""
        if not resume and checkpoints(self.folder):
            raise ValueError(
                f"{self.folder} holds checkpoints of a run; continue it with resume=True, or "
                "choose another folder"
            )
        path = newest(self.folder) if resume else None
        if path is None and (self.folder / CONFIG).exists():
            raise ValueError(
                f"{self.folder} holds a model, and no checkpoints to continue from; choose another "
                "folder"
            )
        return path

    def _resume(self, path: Path) -> None:
        """Sets the training to the state of a checkpoint."""
        self._require_same(path)
        state = read_tensors(path, STATE)
        model = self.training.model
        self.training.load_state_dict(state)
        model.record_scale(*scale_in(path))
        self._losses = list(state.get(_PENDING_LOSSES, torch.empty(0)).to(model.place()[1]))
        step = self.training.step
        if step == self.training.recipe.steps and (self.folder / CONFIG).exists():
            model.samplers = samplers_in(read_config(self.folder))  # fitted after the run
        self._saved = step
        if self._losses:
            self._last = Record(step, self._losses[-1], self.training.recipe.rate(step - 1))

    def _require_same(self, path: Path) -> None:
        config = read_config(path)
        saved = config["notes"]
        model = json.loads(json.dumps(config_of(self.training.model)))
        old_settings = config | _recorded(saved["recipe"])
        new_settings = model | self.notes["recipe"] | {"versions": config["versions"]}
        # Moments are compared below, never_dropped follows from the recipe, and trained_levels from
        # the data; samplers are fitted after training.
        for name in ("data_mean", "data_std", "never_dropped", "trained_levels", "samplers"):
            del new_settings[name]
        differences = [
            f"{name} = {old_settings.get(name)}, not {value}"
            for name, value in new_settings.items()
            if old_settings.get(name) not in (value, _without_values(value))
        ]
        if differences:
            text = ", ".join(differences)
            raise ValueError(
                f"the run in {self.folder} was begun with {text}; give the same, or choose another "
                "folder, where fit(sdekit_diffusion.load(run), ...) trains the model of this run on"
            )
        samples = self.notes["samples"]
        # Earlier versions recorded no hash of all conditions.
        if saved["samples"] not in (samples, samples.partition(ALL_ROWS)[0]):
            raise ValueError(
                f"the run in {self.folder} was begun on other data ({saved['samples']}, not "
                f"{samples}); give the same, or choose another folder"
            )
        self._require_same_moments(path)

    def _require_same_moments(self, path: Path) -> None:
        """Refuses data whose mean or standard deviation is not that of the checkpoint up to
        rounding.
        """
        mean, std = scale_in(path)
        model = self.training.model
        if std is None or model.data_std is None:  # a checkpoint of an earlier version
            return
        mean_now = torch.as_tensor(model.data_mean).detach().cpu().double()
        mean_before = torch.as_tensor(mean).cpu().double()
        difference = float((mean_now - mean_before).abs().max())

        def same(mean_found: Tensor, std_found: float) -> bool:
            tolerance = _ROUNDING * std + _FLOAT32 * float(mean_before.abs().max())
            near = float((mean_found - mean_before).abs().max()) <= tolerance
            return near and abs(std_found - std) <= _ROUNDING * std

        if not (same(mean_now, model.data_std) or same(*self.training.moments_of_few())):
            raise ValueError(
                f"the run in {self.folder} was begun on data with another mean or standard "
                f"deviation ({float(mean_before.mean()):.6g} and {std:.6g}, not "
                f"{float(mean_now.mean()):.6g} and {model.data_std:.6g}; a coordinate's mean moved "
                f"by {difference:.3g}): the samples or the transform are others; give the same, or "
                "choose another folder"
            )

    @property
    def pending(self) -> bool:
        """Whether there are losses since the last line of metrics.jsonl. A run that resumes with
        some may have been interrupted before what was due after its last update was measured.
        """
        return bool(self._losses)

    def take(self, record: Record) -> None:
        """Records an update, after which an interrupted run can resume."""
        self._last = record
        self._losses.append(record.loss)

    def note(self, measured: Mapping[str, float]) -> None:
        """Records what was measured after the last update, and writes what is due: metrics,
        snapshots and checkpoints.
        """
        assert self._last is not None
        record = self._last
        step = record.step
        last = record.step == self.training.recipe.steps
        improved = measured.get(VALIDATION, math.inf) < self._smallest_loss
        self._smallest_loss = min(self._smallest_loss, measured.get(VALIDATION, math.inf))
        saves_checkpoint = last or improved or step % self.log.save_every == 0
        self._snapshot(record)
        if saves_checkpoint or measured or step % self.log.log_every == 0:
            loss = torch.stack(self._losses).mean()
            self.training.require_finite(loss)
            self._losses.clear()
            if rank() == 0:
                line = {
                    "step": step,
                    "loss": float(loss),
                    "lr": record.lr,
                    "seconds": self._metrics.seconds(),
                }
                self._metrics.add(line | dict(measured), flush=saves_checkpoint)
        if saves_checkpoint and rank() == 0:
            self._save(step, {name: measured[name] for name in (VALIDATION,) if name in measured})
        if saves_checkpoint:
            self._saved = step

    def _snapshot(self, record: Record) -> None:
        """Stores the averages of the recipe's widths after an update, if that is due."""
        recipe = self.training.recipe
        due, before = (
            n * self.log.snapshots // recipe.steps for n in (record.step, record.step - 1)
        )
        if not recipe.widths or due == before:
            return
        self.training.require_finite(record.loss)
        if rank() == 0:
            averages = {
                f"{width}/{name}": value
                for i, width in enumerate(recipe.widths)
                for name, value in self.training.average(len(recipe.decays) + i).items()
            }
            write_snapshot(self.folder, record.step, averages)

    def ended(self) -> bool:
        """Whether the run ends before the recipe does, because its time is over; then a checkpoint
        of the last update is saved.

        Raises:
            KeyboardInterrupt: when a signal asked the run to end.
        """
        if self.training.step == self.training.recipe.steps:
            return False
        request = self.end_requested()
        if request:
            self._save_checkpoint()
            wait()
        if request > _TIME:
            raise Interrupted(request - _TIME)
        return bool(request)

    @property
    def position(self) -> str:
        """The progress of the run, in words."""
        return f"update {self.training.step} of {self.training.recipe.steps}"

    def interrupted(self) -> str:
        """Saves a checkpoint unless the interruption came within an update; returns a message that
        says how to resume.
        """
        step = self.training.step
        if self.training.whole and self._last is not None and self._last.step == step:
            self._save_checkpoint()
        if self._saved is None:
            return f"interrupted at {self.position}; there is no checkpoint to continue from"
        of_update = (
            "" if self._saved == step and self.training.whole else f" of update {self._saved}"
        )
        return (
            f"interrupted at {self.position}; the checkpoint{of_update} is saved: {self.advice()}"
        )

    def advice(self) -> str:
        """How to resume the run, in words."""
        path = checkpoint(self.folder, self._saved or 0)
        return f"the same call with resume=True, or command with --resume, continues from {path}"

    def _save_checkpoint(self) -> None:
        """Saves a checkpoint now, with the losses since the last line of metrics.jsonl, whose lines
        are then those of a run without interruption.
        """
        if self._saved == self.training.step:
            return
        losses = torch.stack(self._losses) if self._losses else torch.empty(0)
        if self._losses:
            self.training.require_finite(losses.mean())
        if rank() == 0:
            self._metrics.flush()
            self._save(self.training.step, {}, {_PENDING_LOSSES: losses})
        self._saved = self.training.step

    def _save(
        self,
        step: int,
        measured: Mapping[str, float],
        extra_state: Mapping[str, Tensor] | None = None,
    ) -> None:
        state = self.training.state_dict() | dict(extra_state or {})
        path = checkpoint(self.folder, step)
        if path.exists():
            discard(path)  # a damaged one, before which the run resumed, or one without measures
        with self.training.averaged() as model:
            save(model, path, self.notes | {"step": step, **measured}, state=state)
        prune(self.folder, self.log.keep, step)

    def close(self) -> None:
        """Closes the logs."""
        self._metrics.close()


def _recipe_of(training: Training) -> Recipe:
    """The recipe with the defaults that depend on the model."""
    return training.recipe.suited(training.model.predicts)


def _without_values(setting: object) -> object:
    """A setting as earlier versions recorded it."""
    if not isinstance(setting, dict):
        return setting
    return {name: value for name, value in setting.items() if name != VALUES}


def _recorded(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded settings of a run; those that its version did not have yet, with the values that
    were in effect.
    """
    chosen = {name: recipe[name] for name in ("weighting", "discrete") if name in recipe}
    earlier = Recipe() if "density" in recipe else Recipe(**chosen)
    return json.loads(json.dumps(earlier.suited("noise").settings())) | dict(recipe)
