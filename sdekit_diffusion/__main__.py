"""The command line: train, sample, likelihood, restore, explore, report."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import sdekit_diffusion
from sdekit_diffusion import Log, Recipe, Record, ScoreModel, Shards
from sdekit_diffusion._app import (
    explored,
    exploring,
    held_out,
    interactive,
    labels,
    outputs,
    report,
    restoring,
    trained,
)
from sdekit_diffusion._app.condition_options import notes_of
from sdekit_diffusion._app.exploring import Sliders
from sdekit_diffusion._app.measurements import Measurements
from sdekit_diffusion._app.net_options import Net
from sdekit_diffusion._app.options import (
    QUICK,
    Estimate,
    Guidance,
    Labelling,
    Loading,
    Sampler,
    with_names,
)
from sdekit_diffusion._app.parsing import parsed
from sdekit_diffusion._app.restoring import Degradation
from sdekit_diffusion._arguments.inputs import available_device
from sdekit_diffusion._storage.distributed import first_to_fail, process_group, rank, wait
from sdekit_diffusion._storage.shards import digest
from sdekit_diffusion._training.clear import EXPLORE, clear
from sdekit_diffusion._training.fit import require_minutes
from sdekit_diffusion._training.history import newest
from sdekit_diffusion._training.interrupt import number_of, raised
from sdekit_diffusion.data import Dataset

# CheckpointError is a ValueError.
_ERRORS = (ValueError, TypeError, ArithmeticError, OSError, ImportError, RuntimeError)


@with_names
def train(
    run: Path,
    /,
    *,
    data: str,
    sde: str | None = None,
    net: Net = Net(),  # noqa: B008 - frozen
    recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    log: Log = Log(),  # noqa: B008 - frozen
    measurements: Measurements = Measurements(),  # noqa: B008 - frozen
    device: str = "cpu",
    minutes: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a score model and write the folder of a run: config.json, weights-*.safetensors,
    metrics.jsonl and checkpoints.

    Under torchrun all processes train together. Ctrl-C, SIGTERM and SIGHUP end the run with a
    checkpoint, as --minutes does; the same command with --resume continues from it.

    Args:
        run: the folder of the run.
        data: digits, mnist, fashion-mnist, moons, swissroll, eight_gaussians, checkerboard, spiral;
            a .npy or .npz file; a folder of images; hf: and a data set that Hugging Face's datasets
            can open, such as hf:a/folder, or hf-stream: to stream it.
        sde: the diffusion to train under: {diffusions}; unless given subvp, or that of a network of
            your own.
        net: the network, its conditioning and what it predicts.
        recipe: the settings of the training run.
        log: what is logged, and how often.
        measurements: what is measured during training.
        device: where to train: cpu, cuda, cuda:1, ...
        minutes: end after this many minutes, with a checkpoint to resume from.
        resume: continue from the newest checkpoint in the folder, or begin a run if there is none.
        overwrite: replace an older run in the folder; other files stay.
    """
    if resume and overwrite:
        raise ValueError("--resume continues a run, --overwrite begins another: give one of them")
    source = net.with_labels(sdekit_diffusion.data.load(data, conditions=net.columns()))
    with process_group(device) as local_device:
        torch.manual_seed(recipe.seed)
        place = available_device(local_device)
        model = net.model(source, sde, newest(run) if resume else None).to(place)
        # All checks come before an older run is deleted.
        label = labels.label_to_train(model, source)
        data_notes = {"name": source.name} | ({labels.NOTE: label} if label else {})
        data_notes |= notes_of(source, net.columns())
        require_minutes(minutes, run)
        sdekit_diffusion.Training(model, source, recipe)
        measures = measurements.measures(source, recipe, run, label)
        if rank() == 0:
            _prepare(run, overwrite, resume)
        wait()
        start = time.perf_counter()
        records = sdekit_diffusion.fit(
            model,
            source,
            recipe,
            folder=run,
            resume=resume,
            minutes=minutes,
            log=log,
            measures=measures,
            notes={"data": data_notes, "device": device},
        )
        if rank() == 0:
            summary = _training_summary(model, source, data)
            print(f"trained {summary} in {time.perf_counter() - start:.0f} s; wrote {run}")
            _print_remaining(records, recipe.steps)


def sample(
    run: Path,
    /,
    *,
    n: int = 64,
    out: Path | None = None,
    label: tuple[int, ...] = (),
    conditions: tuple[str, ...] = (),
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    sampler: Sampler = Sampler(),  # noqa: B008 - frozen
    loading: Loading = Loading(),  # noqa: B008 - frozen
) -> None:
    """Draw samples from a trained model, in the range and the type of its data.

    Batches are stored in a folder beside the output until it is complete: after an interruption
    the same command resumes. With "torchrun --nproc-per-node N -m -- sdekit_diffusion sample ..." N
    processes share the work; the samples are the same.

    Args:
        run: the folder that train wrote.
        n: the number of samples.
        out: a .npz file with the array `samples`, a .npy file, a .png picture, a folder of images
            000000.png, ..., or a folder .shards of the batches; samples.npz in the folder of the
            run unless given.
        label: for a model with labels, the class of all samples; or several, which samples have in
            turn. Unless given, samples of all classes.
        conditions: for a model with other conditions, their values: context=0.5,-1 for one vector
            of all samples; context=values.npy for several, (k, ...), which samples have in turn; or
            a .npz file with an array for each. Unless given, they are unknown.
        guidance: how closely samples follow their labels and other conditions.
        sampler: how to sample.
        loading: how to load the model.
    """
    out = run / "samples.npz" if out is None else out
    folder = outputs.shards_of(out)
    with process_group("cpu"):
        model, _ = trained.opened(run, loading)
        chosen = labels.chosen(run, model, label, guidance, conditions)
        settings = {**asdict(sampler), **trained.result_identity(run, model)}
        settings |= labels.settings(chosen, guidance)
        shards = Shards(folder, n, sampler.batch_size, sampler.first, settings)
        outputs.require(out, shards, model.scale)
        options = {**sampler.settings(), "progress": n <= sampler.batch_size}

        def draw(first: int, count: int) -> dict[str, Tensor]:
            arguments: dict[str, Any] = {**options, "first": first}
            given = labels.drawn(model, chosen, guidance, count, first)
            x = sdekit_diffusion.sample(given, count, **arguments)
            return {"samples": model.scale.decode(x.cpu())}

        shards.fill(draw, "sampling")
        if rank() == 0:
            shape = outputs.assemble(out, shards, model.scale)
            print(
                f"{n} samples in {out}, of shape {shape}; seed {sampler.seed}, the first is number "
                f"{sampler.first}{labels.sentence(chosen, guidance)}"
            )
        wait()


@with_names
def likelihood(
    run: Path,
    /,
    *,
    data: str | None = None,
    n: int = 500,
    estimate: Estimate = Estimate(),  # noqa: B008 - frozen
    sde: str | None = None,
    seed: int = 0,
    batch_size: int = 100,
    csv: Path | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    labelling: Labelling = Labelling(),  # noqa: B008 - frozen
    loading: Loading = Loading(),  # noqa: B008 - frozen
) -> None:
    """Print the mean likelihood of held-out samples: bits per dimension for images, the
    log-likelihood in nats for other data; for a model with labels, of each sample given its label,
    and in the same way for other conditions.

    Batches are stored in the folder of the run, or beside the csv file, until all are complete:
    after an interruption the same command resumes. With "torchrun --nproc-per-node N -m --
    sdekit_diffusion likelihood ..." N processes share the work; the values are the same.

    Args:
        run: the folder that train wrote.
        data: a data set as for train, whose held-out part is used; the run's own unless given.
        n: the number of samples, or all if there are fewer.
        estimate: how to estimate the likelihood.
        sde: the diffusion: {diffusions}; the model's own unless given.
        seed: of the dequantisation and of the probes.
        batch_size: how many samples are solved together.
        csv: a file for the value and the standard error of each sample.
        guidance: of the model whose likelihood is computed.
        labelling: whether each sample is given its conditions.
        loading: how to load the model.
    """
    if n < 1:
        raise ValueError(f"n is the number of samples, from 1 on; not {n}")
    if csv is not None and not csv.parent.is_dir():
        raise ValueError(f"the folder of {csv} does not exist; make it, or choose another file")
    with process_group("cpu"):
        model, recorded_name = trained.opened(run, loading)
        name = trained.data_of(run, data, recorded_name)
        source = labels.source_of_run(run, model, name, labelling)
        given = labels.required(run, model, source, labelling)
        labels.require_guidance(run, model, given, guidance)
        x = source.test[:n]
        data_digest = labels.digest_of(x, given)
        settings = {"data": data_digest, **asdict(estimate), "sde": sde, "seed": seed}
        settings |= trained.result_identity(run, model) | guidance.settings()
        folder = run if csv is None else csv.parent
        folder /= f"likelihood-{digest([settings, len(x), batch_size])}.shards"
        shards = Shards(folder, len(x), batch_size, settings=settings)

        def measure(first: int, count: int) -> dict[str, Tensor]:
            batch = x[first : first + count]
            options = {"sde": sde, "seed": seed, "first": first, "progress": len(x) <= batch_size}
            of_batch = labels.drawn(model, given, guidance, count, first)
            bits = held_out.measured(of_batch, model.scale, batch, estimate, **options)
            return held_out.columns(bits)

        shards.fill(measure, "likelihood")
        if rank() == 0:
            result = held_out.summed(held_out.of_columns(shards), model.scale)
            if csv is not None:
                outputs.table(csv, result)
            shards.remove()
            lines = [*result.sentences(), *labels.of_likelihood(run, model, given, guidance)]
            print("\n".join([f"{name}: {line}" for line in lines]))
        wait()


def restore(
    run: Path,
    /,
    *,
    degradation: Degradation,
    n: int = 16,
    samples: int = 128,
    particles: int = 128,
    steps: int = 100,
    data: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    first: int = 0,
    labelling: Labelling = Labelling(),  # noqa: B008 - frozen
    loading: Loading = Loading(),  # noqa: B008 - frozen
) -> None:
    """Restore held-out images from degraded observations: weighted samples of the posterior, a
    picture with maps of their mean and standard deviation, and the coverage of credible intervals.
    With a model with labels each image is restored given its label, and in the same way for other
    conditions.

    The results of each image are stored in a folder beside the output until all are complete: after
    an interruption the same command resumes. With "torchrun --nproc-per-node N -m --
    sdekit_diffusion restore ..." N processes share the work; the samples are the same.

    Args:
        run: the folder that train wrote.
        degradation: what is observed.
        n: the number of held-out images, or all if there are fewer.
        samples: the number of weighted posterior samples of each image.
        particles: the number of particles in one cloud; more are closer to the posterior.
        steps: the number of steps of the reverse process.
        data: a data set as for train, whose held-out part is used; the run's own unless given.
        out: a .png picture, or a .npz file of all samples and weights; restored.png in the folder
            of the run unless given.
        seed: of the noise of the observations and of the samples.
        first: the number of the first held-out image.
        labelling: whether each image is given its conditions.
        loading: how to load the model.
    """
    out = run / "restored.png" if out is None else out
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"{out} ends in neither .png nor .npz; choose a name that does")
    with process_group("cpu"):
        model, recorded_name = trained.opened(run, loading)
        name = trained.data_of(run, data, recorded_name)
        source = labels.source_of_run(run, model, name, labelling)
        given = labels.required(run, model, source, labelling)
        images = restoring.selected(source, first, n)
        degradation.operator(tuple(images.shape[1:]))
        options = {"samples": samples, "particles": particles, "steps": steps, "seed": seed}
        settings = {**asdict(degradation), **options, "data": labels.digest_of(images, given)}
        settings |= trained.result_identity(run, model)
        shards = Shards(outputs.shards_of(out), len(images), 1, first, settings)

        def work(start: int, count: int) -> dict[str, Tensor]:
            rows = images[start - first : start - first + count]
            of_rows = labels.given(model, given, count, start)
            return restoring.restored(of_rows, degradation, rows, first=start, **options)

        shards.fill(work, "restoring")
        if rank() == 0:
            restoration = restoring.Restoration.of(shards)
            outputs.save_restoration(out, restoration, model.scale)
            shards.remove()
            lines = [*restoration.sentences(), *labels.of_restoration(given), f"wrote {out}"]
            print("\n".join(lines))
        wait()


@with_names
def explore(
    run: Path | None = None,
    /,
    *,
    mixture: str | None = None,
    n: int | None = None,
    out: Path | None = None,
    label: tuple[int, ...] = (),
    conditions: tuple[str, ...] = (),
    sliders: Sliders = Sliders(),  # noqa: B008 - frozen
    method: str = "default",
    grid: str | None = None,
    sde: str | None = None,
    noise: Literal["white", "path"] = "path",
    megabytes: float = 3.0,
    loading: Loading = Loading(),  # noqa: B008 - frozen
) -> None:
    """Write an interactive page of samples from a run or an exact mixture: one HTML file, which
    works offline, with sliders for the time, eta, the number of steps, guidance and the seed.

    Args:
        run: the folder that train wrote.
        mixture: instead of a run an exact mixture: two_modes or three_modes; or the exact model of
            the points of a data set, such as moons.
        n: the number of samples; as many as fit, at most 300 points or 40 images, unless given.
        out: the page; unless given, explore.html in the folder of the run, or in the current
            folder.
        label: for a model with labels, the classes that samples have in turn; all unless given.
        conditions: of a run, the values of other conditions, as for sample.
        sliders: what the sliders can be set to.
        method: as for sample.
        grid: the grid of the steps: {grids}.
        sde: the diffusion to sample under: {diffusions}; the model's own unless given, and vp for a
            mixture.
        noise: with eta above 0: path, one Brownian path per sample, which more steps refine; or
            white, other noise for every number of steps, which all methods can use.
        megabytes: the largest size of the page.
        loading: how to load the model.
    """
    if (run is None) == (mixture is None):
        raise ValueError("give the folder of a run, or --mixture and a name such as three_modes")
    if mixture is not None and conditions:
        raise ValueError("--conditions are those of a run: leave them out with --mixture")
    out = (run or Path()) / EXPLORE if out is None else out
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give the name of a file, such as {out / EXPLORE}")
    if not out.parent.is_dir():
        raise ValueError(f"the folder of {out} does not exist; make it, or choose another file")
    law = (
        explored.of_run(run, label, loading, conditions)
        if run is not None
        else explored.of_mixture(mixture or "", label)
    )
    sampler = Sampler(method=method, grid=grid, sde=sde or law.sde, noise=noise)
    completed = sliders.completed(law, method)
    count = exploring.number_of_samples(law, completed, n, megabytes)
    start = time.perf_counter()
    page = interactive.page_of(
        law, exploring.explored_frames(law, completed, count, sampler), sampler
    )
    size = outputs.save_page(out, page, megabytes)
    print(
        f"wrote {out}, {size:.1f} MB, {count} samples of {completed.states()} states, in "
        f"{time.perf_counter() - start:.0f} s"
    )


def summarise(
    run: Path,
    /,
    *,
    samples: int | None = None,
    out: Path | None = None,
    data: str | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    labelling: Labelling = Labelling(),  # noqa: B008 - frozen
    sampler: Sampler = Sampler(),  # noqa: B008 - frozen
    estimate: Estimate = QUICK,
    inception: Path | None = None,
    restore: str | None = None,
    loading: Loading = Loading(),  # noqa: B008 - frozen
) -> None:
    """Write report.html, its pictures and report.json: samples, their distances to the data with
    reference values, and the likelihood of held-out samples.

    Args:
        run: the folder that train wrote.
        samples: the number of samples to draw, and of held-out samples to compare them with, or all
            if there are fewer; 500 for images and 2000 for other data unless given.
        out: the page; report.html in the folder unless given.
        data: a data set as for train; the run's own unless given.
        guidance: how closely samples follow their labels and other conditions.
        labelling: whether samples are given the conditions of the held-out ones.
        sampler: how to sample; the likelihood uses its sde and seed too.
        estimate: how to estimate the likelihood.
        inception: a file with the weights of the standard Inception network, such as
            weights-inception-2015-12-05-6726825d.pth, for FID, KID and Inception Score of images,
            in addition to distances in the features of a small classifier.
        restore: degrade and restore 16 held-out images, as by the command restore: mask=bottom,
            downsample=2 or blur=1.0, and perhaps noise, as in downsample=2,noise=0.2.
        loading: how to load the model.
    """
    with process_group("cpu"):
        if rank() == 0:  # of several processes one is enough
            numbers = report.write_report(
                run,
                samples=samples,
                out=out,
                data=data,
                guidance=guidance,
                labelling=labelling,
                sampler=sampler,
                estimate=estimate,
                inception=inception,
                restore=None if restore is None else Degradation.parsed(restore),
                loading=loading,
            )
            print(
                f"wrote {numbers['page']}, its pictures and {run / 'report.json'} in "
                f"{numbers['seconds']:.0f} s"
            )
        wait()


def _print_remaining(records: Sequence[Record], steps: int) -> None:
    """Prints how to continue, if not all updates are complete."""
    if records and records[-1].step < steps:
        progress = f"{records[-1].step} of {steps} updates are done"
        print(f"{progress}; the same command with --resume continues it")


def _training_summary(model: ScoreModel, source: Dataset, data: str) -> str:
    """The number of parameters, and of samples that they were trained on, as text."""
    parameters = sum(p.numel() for p in model.parameters())
    samples = "a stream" if source.size is None else f"{source.size} samples"
    return f"{parameters:,} parameters on {samples} of {data}"


def _prepare(run: Path, overwrite: bool, resume: bool) -> None:
    """Makes the folder of a run; with `overwrite` deletes the files of an older run, and only
    these.
    """
    if run.is_dir() and any(run.iterdir()) and not (overwrite or resume):
        raise ValueError(
            f"{run} is not empty; add --resume to continue a run, --overwrite to write over it, "
            "or choose another folder"
        )
    run.mkdir(parents=True, exist_ok=True)
    if overwrite:
        clear(run)


COMMANDS = {
    "train": train,
    "sample": sample,
    "likelihood": likelihood,
    "restore": restore,
    "explore": explore,
    "report": summarise,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0; 2 after an error, which is printed as one line
    on stderr; 128 plus the number of the signal after a signal.
    """
    try:
        # Under torchrun signals keep their default action and end the process at once: one that
        # waits for other processes could not handle them.
        with nullcontext() if "TORCHELASTIC_RUN_ID" in os.environ else raised():
            parsed(COMMANDS, argv)()
    except _ERRORS as error:
        return _report_error(" ".join(str(error).split()) or type(error).__name__, 2)
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "interrupted; nothing is left running"
        return _report_error(message, 128 + number_of(interrupt))
    return 0


def _report_error(reason: str, code: int) -> int:
    """Prints the reason, once for all processes that work together."""
    if first_to_fail():
        with suppress(OSError):  # if the terminal was closed
            print(f"error: {reason}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
