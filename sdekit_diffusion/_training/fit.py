"""`fit`: a complete training run, with checkpoints and with measurements on the way."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sdekit_diffusion._arguments.inputs import is_whole, require_tensor
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._storage.distributed import rank, wait
from sdekit_diffusion._training.history import VALIDATION
from sdekit_diffusion._training.log import Log
from sdekit_diffusion._training.loop import Record, Training
from sdekit_diffusion._training.loss import require_huber
from sdekit_diffusion._training.recipe import Recipe, recipe_given
from sdekit_diffusion._training.recipe_loss import RecipeLoss, Transform, require_transform
from sdekit_diffusion._training.run import run_in
from sdekit_diffusion._training.trainable import require_floating, require_given, require_gradients
from sdekit_diffusion.data._batches import GIVEN_LEVEL, GIVEN_NOISE, Batch, require_finite
from sdekit_diffusion.data._given import Data, Labelled, named

_BAR_INTERVAL = 50  # updates between two losses shown by the progress bar
_RESERVED_NAMES = {"step", "loss", "lr", "seconds"}  # which measures cannot have
_BATCH = 250  # samples of a validation loss that are evaluated together

Measure = Callable[[ScoreModel, int], Mapping[str, float]]


def fit(
    model: ScoreModel,
    data: Data,
    recipe: Recipe | None = None,
    *,
    transform: Transform | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    log: Log | None = None,
    measures: Sequence[tuple[int, Measure]] = (),
    notes: Mapping[str, Any] | None = None,
    callback: Callable[[Record], None] | None = None,
    progress: bool = True,
) -> list[Record]:
    """Trains a model in place to the end of a recipe, with a progress bar, and returns one record
    per update. At the end the model has the averaged weights.

    With a folder, checkpoints and metrics.jsonl are written to it, and at the end the model, for
    `load`. An interrupted run resumes from its newest valid checkpoint with resume=True; on the CPU
    its weights and metrics, apart from the seconds, are those of a run without interruption.
    Ctrl-C, SIGTERM and SIGHUP end such a run after the current update, with a checkpoint; a second
    signal ends it at once. In a process group of torch.distributed all processes train together
    and the first one writes.

    Arguments:
        model, data, recipe, transform: as for `Training`, which yields the records one by one.
        folder: where the run is stored; without one nothing is written, and what is only for a
            stored run is refused.
        resume: resume the run in the folder, or begin one if there is none.
        minutes: end after the first update that is complete this many minutes after the call, with
            a checkpoint to resume from. The model then has the averaged weights, too, and the step
            of the last record is the number of updates. Needs a folder.
        log: what is written to the folder, and how often; `Log()` unless given.
        measures: pairs (every, function). The function is called after each multiple of `every`
            updates, and after the last of the recipe, with the model, which has the averaged
            weights, and the number of updates. It returns numbers by name for metrics.jsonl, such
            as `validation_loss`, or an empty dictionary. No two give the same name.
        notes: a dictionary to save with the model, as JSON.
        callback: called with each record.
        progress: show a bar.

    Returns:
        the records of the updates of this call.

    Raises:
        TypeError, ValueError, ArithmeticError, RuntimeError: as `Training`; TypeError also for a
            measure that is not a pair; ValueError also when the folder holds a run and resume is
            false, or the run there has another model, recipe or data; for minutes, resume, a log,
            notes, widths in the recipe or values of measures without a folder; or for measures
            every 0 updates, or with a reserved name or that of another.
        CheckpointError: when all checkpoints to resume from are damaged.
        OSError: when the folder cannot be written to, or another process trains in it; its
            checkpoints are then as they were.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP; with a folder its message says from
            which update the run resumes.

    Example:
        >>> model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", shape=(2,))
        >>> x = 20 * torch.randn(64, 2) + 5
        >>> records = sd.fit(model, x, sd.Recipe(steps=20, batch_size=16), progress=False)
        >>> len(records), model.data_std is not None
        (20, True)
    """
    require_minutes(minutes, folder)
    require_gradients()
    recipe = recipe_given(recipe)
    if folder is None:
        _require_nothing_to_store(resume, log, notes, recipe)
    measured = _Measures(measures, stored=folder is not None)
    training = Training(model, data, recipe, transform=transform)
    records = []
    run_context = (
        nullcontext()
        if folder is None
        else run_in(Path(folder), training, log or Log(), notes or {}, resume, minutes)
    )
    show_bar = progress and rank() == 0
    with run_context as run, _bar(training, show_bar) as show:
        if run is not None and run.pending:
            run.note(measured.after_update(training))
        for record in training:
            records.append(record)
            if run is not None:
                run.take(record)
            show(records)
            if callback is not None:
                callback(record)
            values = measured.after_update(training)
            if run is not None:
                run.note(values)
                if run.ended():
                    training.finish()
                    if show_bar:
                        reason = f"{minutes:g} minutes are over at {run.position}"
                        tqdm.write(f"{reason}: {run.advice()}", sys.stderr)
                    break
    return records


@contextmanager
def _bar(training: Training, shown: bool) -> Iterator[Callable[[Sequence[Record]], None]]:
    """A context with a progress bar; yields a function that counts an update and, every 50 updates,
    shows the mean of the latest losses.
    """
    steps = training.recipe.steps
    with tqdm(
        total=steps, initial=training.step, disable=not shown, unit="step", desc="training"
    ) as bar:

        def show(records: Sequence[Record]) -> None:
            bar.update()
            if shown and records[-1].step % _BAR_INTERVAL == 0:
                losses = torch.stack([record.loss for record in records[-_BAR_INTERVAL:]])
                bar.set_postfix(loss=f"{float(losses.mean()):.4f}", refresh=False)

        yield show


def _require_nothing_to_store(
    resume: bool, log: Log | None, notes: Mapping[str, Any] | None, recipe: Recipe
) -> None:
    """Refuses, for a run without a folder, what is only read from one or written to one."""
    given = {
        "resume=True": resume,
        "log=": log is not None,
        "notes=": bool(notes),
        "Recipe(widths=)": bool(recipe.widths),
    }
    for name, is_given in given.items():
        if is_given:
            raise ValueError(
                f"{name} is for a run that is stored in a folder, and this one is not: give its "
                f"folder= too, or leave {name} out"
            )


def require_minutes(minutes: float | None, folder: str | Path | None) -> None:
    """Refuses an invalid time budget, or one without a folder for its checkpoint.

    Raises:
        ValueError: says what is allowed.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ValueError(
            f"minutes is a time, a number above 0, or None for no bound; not {minutes}"
        )
    if minutes is not None and folder is None:
        raise ValueError(
            "minutes= ends the run with a checkpoint to continue from: give its folder= too"
        )


class _Measures:
    """The measures of a run, and which of them gives each name.

    Arguments:
        measures: see `fit`.
        stored: whether the run has a folder for their values.

    Raises:
        TypeError: for a measure that is not a pair (every, function).
        ValueError: for numbers of updates below 1, or that are not whole; for a validation loss
            without a folder.
    """

    def __init__(self, measures: Sequence[tuple[int, Measure]], stored: bool) -> None:
        _require_measures(measures)
        self._measures = measures
        self._stored = stored
        self._given_by: dict[str, Measure] = {}
        if not stored:  # before training, where it is known that there will be values
            for _, measure in measures:
                self._require_names(getattr(measure, "gives", ()), measure)

    def after_update(self, training: Training) -> dict[str, float]:
        """The values of the measures that are due after this update. The first process takes them,
        and the others wait.

        Raises:
            ValueError: for a name of the training, one of two measures, or values without a folder.
        """
        due = [
            measure
            for every, measure in self._measures
            if training.step % every == 0 or training.step == training.recipe.steps
        ]
        values = {}
        if due and rank() == 0:
            with training.averaged() as model:
                for measure in due:
                    measured = measure(model, training.step)
                    self._require_names(measured, measure)
                    values |= {name: float(value) for name, value in measured.items()}
        if due:
            wait()
        return values

    def _require_names(self, names: Iterable[str], measure: Measure) -> None:
        """Refuses names that another has, or any where they cannot be written."""
        for name in names:
            if name in _RESERVED_NAMES:
                raise ValueError(
                    f"the names {', '.join(sorted(_RESERVED_NAMES))} are the training's own; give "
                    "what is measured another name"
                )
            if self._given_by.setdefault(name, measure) is not measure:
                raise ValueError(
                    f"two measures give {name!r}, and only one of them would be kept: give one of "
                    "them another name, as with lambda model, step: {'train_loss': "
                    f"measure(model, step)[{name!r}]}}"
                )
            if not self._stored:
                raise ValueError(
                    f"a measure gives {name!r}, which is written to the folder of the run, and "
                    "this run has none: give folder= too, or let the measure return {}"
                )


def _require_measures(measures: Any) -> None:  # noqa: ANN401 - what a user gives
    """Refuses measures that are not pairs of a positive whole number and a function.

    Raises:
        TypeError, ValueError: says what is allowed.
    """
    for pair in measures if isinstance(measures, Sequence) else [measures]:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and callable(pair[1])):
            raise TypeError(
                "measures are pairs (every, function), such as [(500, validation_loss(x))] to "
                f"measure every 500 updates; not {pair!r:.60}"
            )
        if not is_whole(pair[0], 1):
            raise ValueError(
                "the number of updates between two calls of a measure must be a positive "
                f"integer; not {pair[0]}"
            )


def validation_loss(
    data: Tensor | Labelled, recipe: Recipe | None = None, *, transform: Transform | None = None
) -> Measure:
    """A measure for `fit`: the mean of `dsm_loss` over held-out samples, with the same times and
    noise each time.

    With it `fit` also keeps the checkpoint with the smallest loss. With `Recipe(huber=)` that is
    the pseudo-Huber loss, for which the samples need noise and log_snr too. Conditions are never
    dropped here, and images not flipped. A condition that the model was given with one entry per
    sample belongs to these samples, in their order.

    Arguments:
        data: the samples, `(n, *shape)`; or, with conditions that have one entry per sample, a pair
            (x, labels) or a dictionary such as {"x": x, "label": y}.
        recipe, transform: those of the training run; for a `sdekit_diffusion.data.Dataset` that it
            trains on, transform is the `scale.encode` of that.

    Returns:
        a function of the model and the number of updates that returns {"validation_loss": loss}.

    Raises:
        TypeError: when the samples are not a tensor, or integers without transform; for a recipe
            that is none, or a transform that does not take two arguments.
        ValueError: for no samples, or samples that are not finite; for `huber` in the recipe with
            samples without noise and log_snr; when called, for conditions that do not have one
            entry per sample, or that the network does not take or misses.

    Example:
        >>> model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", shape=(2,))
        >>> measure = sd.validation_loss(torch.randn(32, 2))
        >>> sorted(measure(model, 0))
        ['validation_loss']
    """
    recipe = replace(recipe_given(recipe), flip=False, drop=0.0)
    x = _samples(data)
    require_tensor("x", x)
    require_transform(transform)
    require_floating(x, transformed=transform is not None)
    if len(x) < 1:
        raise ValueError("there are no samples to find a validation loss of; hold some out")
    require_finite(x, range(len(x)))
    names = data.keys() if isinstance(data, Mapping) else ()
    require_huber(recipe.huber, {GIVEN_NOISE, GIVEN_LEVEL} <= set(names))

    def measure(model: ScoreModel, step: int) -> dict[str, float]:
        device = model.place()[1]
        batch = Batch.of(named(data, model.condition_names()))
        require_given(batch.conditions, model)
        parts = []
        with torch.no_grad(), evaluating(model, len(x)):
            for i in range(0, len(x), _BATCH):
                rows = slice(i, i + _BATCH)
                some_x = batch.x[rows].to(device)
                conditions = {k: v[rows].to(device) for k, v in batch.conditions.items()}
                some = model.rows(torch.arange(i, i + len(some_x), device=device))
                parts.append(RecipeLoss(some, recipe, transform)(some_x, conditions, i).sum())
        return {VALIDATION: float(torch.stack(parts).sum()) / len(x)}

    setattr(measure, "gives", (VALIDATION,))  # noqa: B010 - which `_Measures` reads
    return measure


def _samples(data: Any) -> Any:  # noqa: ANN401 - what a user gives
    """The samples of held-out data, alone or with conditions."""
    if isinstance(data, Mapping):
        return data.get("x")
    return data[0] if isinstance(data, tuple) else data
