"""A report on a run folder: pictures, distances beside their anchors, held-out likelihood."""

import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit_diffusion._app.comparison import neighbours
from sdekit_diffusion._app.evaluation import distances, inception_network, inception_table
from sdekit_diffusion._app.figures import (
    RATIO,
    denoising,
    forward,
    loss_curve,
    neighbouring,
    picture,
    scatter,
)
from sdekit_diffusion._app.held_out import measured, summed
from sdekit_diffusion._app.labels import (
    Conditions,
    drawn,
    given,
    of_restoration,
    require_guidance,
    required,
    source_of_run,
)
from sdekit_diffusion._app.options import QUICK, Estimate, Guidance, Labelling, Loading, Sampler
from sdekit_diffusion._app.page import Picture, page_of
from sdekit_diffusion._app.quality import compared, farthest
from sdekit_diffusion._app.quality_figures import quality_figures
from sdekit_diffusion._app.restoring import Degradation, Restoration, restored
from sdekit_diffusion._app.trained import data_of, opened
from sdekit_diffusion._loading.load import config_folder
from sdekit_diffusion._models.checkpoint import read_config, versions
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._sampling.sample import sample
from sdekit_diffusion.data import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RESTORED = 16  # images
_RESTORING = {"samples": 128, "particles": 128, "steps": 100}  # as by the command `restore`


def write_report(
    run_folder: str | Path,
    *,
    samples: int | None = None,
    out: str | Path | None = None,
    data: str | None = None,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    labelling: Labelling = Labelling(),  # noqa: B008 - frozen
    sampler: Sampler = Sampler(),  # noqa: B008 - frozen
    estimate: Estimate = QUICK,
    inception: str | Path | None = None,
    restore: Degradation | None = None,
    loading: Loading = Loading(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Writes report.html, its pictures as PNG, and report.json with all numbers, into a run folder.

    Arguments:
        run_folder: the folder that `sdekit-diffusion train` wrote.
        samples: the number of samples to draw, and of held-out samples to compare them with, or all
            if there are fewer; 500 for images and 2000 for other data unless given.
        out: the page; report.html in the folder unless given.
        data: the name of the data set; the run's own unless given.
        guidance: how closely samples follow their labels and other conditions, where the network
            takes them; likelihoods and restored images are without guidance.
        labelling: whether the model is given the conditions of held-out samples, or other values,
            for samples, likelihoods and restored images.
        sampler: how to sample. The likelihood uses its sde too, and its seed also determines
            dequantisation, probes, the classifier and the reference sets.
        estimate: how to estimate the likelihood.
        inception: a file with the weights of the standard Inception network, for FID, KID and
            Inception Score.
        restore: how 16 held-out images are degraded, which are then restored as by the command
            `restore`, with 128 samples of each and the seed of the sampler; none unless given.
        loading: how to load the model.

    Returns:
        the content of report.json.

    Raises:
        CheckpointError: when the folder is not a run's.
        ValueError: for fewer than two samples, or damaged files, or Inception weights or a
            degradation if the data are not images; for a model with labels and data without, or
            guidance without labels.
        OSError: when the weights cannot be read.
        ImportError: when an optional library is not installed.
    """
    start_time = time.perf_counter()
    run = Path(run_folder)
    model, source, n = _load_inputs(run, samples, data, loading, labelling)
    law = _law(run, model, source, guidance, labelling)
    device = model.place()[1]
    network = None if inception is None else inception_network(inception, source, device)
    seed = sampler.seed
    restoration, restorations = _restored(law, source, restore, seed)
    x, sampling = _draw_samples(law, n, sampler)
    results = _about(run, model, source, seed) | {"sampling": sampling}
    results |= restoration
    results["conditions"] = {} if law.conditions is None else law.conditions.sources()
    results["labels"] = "label" in results["conditions"]
    results["likelihood"] = _likelihood(law, source.test[:n], estimate, sampler)
    results["two_sample"] = compared(x, source, seed)
    results["neighbours"], nearest = neighbours(x, source)
    results["farthest"] = farthest(nearest)
    results |= distances(x, source, seed, law.classes(n, sampler.first))
    if network is not None:
        results["inception"] = inception_table(x, source, network, device, seed)
    figures = _make_figures(law, source, x, nearest.training_samples, sampler, run)
    figures |= quality_figures(x, source, results) | restorations
    pictures = _save_pictures(run, figures)
    page = run / "report.html" if out is None else Path(out)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_of(results, pictures), encoding="utf-8")
    results |= {"page": str(page), "seconds": time.perf_counter() - start_time}
    text = json.dumps(_without_nan(results), indent=2, allow_nan=False)
    (run / "report.json").write_text(text + "\n", encoding="utf-8")
    return results


def _load_inputs(
    run: Path, samples: int | None, data: str | None, loading: Loading, labelling: Labelling
) -> tuple[ScoreModel, Dataset, int]:
    """The model of a run, the data to compare it with, and how many samples."""
    model, recorded_name = opened(run, loading)
    name = data_of(run, data, recorded_name)
    n = (2000 if model.scale.levels is None else 500) if samples is None else samples
    if n < 2:
        raise ValueError(f"a report needs two samples or more, not {n}")
    source = source_of_run(run, model, name, labelling)
    if tuple(source.test.shape[1:]) != model.shape:
        raise ValueError(
            f"{source.name} has samples of shape {tuple(source.test.shape[1:])}, the model of "
            f"{model.shape}"
        )
    return model, source, n


@dataclass(frozen=True, eq=False)
class _Law:
    """What samples are drawn from: a model, the conditions of held-out samples, guidance.

    Attributes:
        conditions: None for a model without.
    """

    model: ScoreModel
    conditions: Conditions | None
    guidance: Guidance

    def drawn(self, n: int, first: int = 0) -> AbstractModel:
        """The model of samples first, ..., first + n - 1."""
        return drawn(self.model, self.conditions, self.guidance, n, first)

    def classes(self, n: int, first: int) -> Tensor | None:
        """The labels of these samples."""
        if self.conditions is None or self.conditions.label is None:
            return None
        return self.conditions.of(n, first)[self.conditions.label]


def _law(
    run: Path, model: ScoreModel, source: Dataset, guidance: Guidance, labelling: Labelling
) -> _Law:
    """What samples are drawn from; errors as `write_report`."""
    conditions = required(run, model, source, labelling)
    require_guidance(run, model, conditions, guidance)
    return _Law(model, conditions, guidance)


def _draw_samples(law: _Law, n: int, sampler: Sampler) -> tuple[Tensor, dict[str, Any]]:
    """Samples in the range of the data, and how they were drawn, as JSON."""
    arguments = sampler.settings()
    model = law.drawn(n, sampler.first)
    solution = sample(model, n, progress=True, return_solution=True, **arguments)
    del arguments["batch_size"]  # samples do not depend on it
    arguments["steps"] = len(solution.ts) - 1
    sampling = {"n": n} | {
        name: value if isinstance(value, int | float) else str(value)
        for name, value in arguments.items()
        if value is not None
    }
    sampling["evaluations"] = int(solution.evaluations[0])
    if law.conditions is not None:
        sampling |= {"labels": "of the held-out samples"} if law.conditions.label else {}
        sampling |= law.guidance.settings()
    return law.model.scale.decode(solution.x.cpu()), sampling


def _restored(
    law: _Law, source: Dataset, degradation: Degradation | None, seed: int
) -> tuple[dict[str, Any], dict[str, tuple[str, str, "Figure"]]]:
    """The numbers and the picture of held-out images that are restored given their conditions; none
    without a degradation.
    """
    if degradation is None:
        return {}, {}
    levels = source.test[:_RESTORED]
    model = given(law.model, law.conditions, len(levels))
    parts = restored(model, degradation, levels, **_RESTORING, seed=seed, first=0)
    restoration = Restoration.of([{name: part.cpu() for name, part in parts.items()}])
    numbers = {"degradation": str(degradation), **_RESTORING, **restoration.numbers()}
    sentences = "; ".join([*of_restoration(law.conditions), *restoration.sentences()])
    caption = (
        f"Held-out images, their observations ({degradation}), weighted samples of the posteriors, "
        f"their mean and standard deviation; {sentences}."
    )
    picture = restoration.picture(model.scale)
    return {"restoration": numbers}, {"restorations": ("Restored images", caption, picture)}


def _likelihood(law: _Law, x: Tensor, estimate: Estimate, sampler: Sampler) -> dict[str, Any]:
    """The likelihood of held-out samples, given their labels, under the diffusion and with the seed
    of the sampler.
    """
    model = given(law.model, law.conditions, len(x))
    bits = measured(
        model,
        model.scale,
        x,
        estimate,
        sde=sampler.sde,
        seed=sampler.seed,
        batch_size=100,
        progress=True,
    )
    return summed(bits, model.scale).numbers() | {"tolerance": estimate.tolerance}


def _about(run: Path, model: ScoreModel, source: Dataset, seed: int) -> dict[str, Any]:
    """The data, the model, the recipe and the environment."""
    dtype, device = model.place()
    return {
        "data": {
            "name": source.name,
            "train": source.size,
            "test": len(source.test),
            "levels": source.scale.levels,
        },
        "model": {
            "network": type(model.net).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "sde": str(model.sde),
            "predicts": model.predicts,
        },
        "recipe": read_config(config_folder(run))["notes"].get("recipe"),
        "seed": seed,
        "environment": {
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
    }


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - JSON
    """The value with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_class(law: _Law, conditions: Conditions, sampler: Sampler) -> tuple[str, str, "Figure"]:
    """A picture with a row of samples for each class."""
    model = law.model
    label = conditions.label
    assert label is not None
    rows, names = conditions.rows(label, model.scale.levels is None)
    n = len(rows.values[label])
    arguments = sampler.settings()
    x = sample(drawn(model, rows, law.guidance, n), n, **arguments)
    kind = "panel" if model.scale.levels is None else "row"
    caption = f"One {kind} for each class, at guidance {law.guidance.guidance:g}"
    classes = len(conditions.values[label].unique())
    if classes > len(names):
        caption += f"; the first {len(names)} of {classes} classes"
    return (
        "Samples by class",
        f"{caption}.",
        picture(model.scale.decode(x.cpu()), model.scale, names),
    )


def _make_figures(
    law: _Law, source: Dataset, x: Tensor, nearest: Tensor, sampler: Sampler, run: Path
) -> dict[str, tuple[str, str, "Figure"]]:
    """The pictures by name: a heading, a caption, the picture."""
    model = law.model
    seed = sampler.seed
    grid = x[:64]
    unit = f"divided by √(α² + σ²); headings are {RATIO}"
    figures: dict[str, tuple[str, str, Figure]] = {}
    if source.scale.levels is None:
        n = min(len(x), len(source.test))
        rows = 500
        states = ""
        panels = [(f"{n} held-out data", source.test[:n]), (f"{n} samples", x[:n])]
        figures["samples"] = ("Samples and data", "", scatter(panels))
    else:
        rows = 4
        states = "; on the right, the denoised image of each state"
        figures["samples"] = (f"{len(grid)} samples", "", picture(grid, source.scale))
        caption = f"Each of {len(grid)} samples, and on its right its nearest training image."
        figures["neighbours"] = (
            "Nearest training images",
            caption,
            neighbouring(grid, nearest[:64], source.scale),
        )
    caption = (
        f"States of {500 if source.scale.levels is None else 8} samples on their way from noise to "
        f"data, {unit}{states}."
    )
    figures["denoising"] = ("Denoising", caption, denoising(model, source, seed, law.drawn))
    if law.conditions is not None and law.conditions.label is not None:
        figures["classes"] = _by_class(law, law.conditions, sampler)
    rows = min(rows, len(source.test))
    caption = (
        f"{rows} held-out samples at times uniform in the logarithm of the signal-to-noise ratio, "
        f"{unit}."
    )
    figures["forward"] = ("The forward process", caption, forward(model, source, seed))
    loss = loss_curve(run)
    if loss is not None:
        figures["loss"] = (
            "Loss",
            "Pale: means over the updates of each line of the log. Dark: their moving average.",
            loss,
        )
    return figures


def _save_pictures(run: Path, figures: dict[str, tuple[str, str, "Figure"]]) -> dict[str, Picture]:
    """Saves the pictures to the folder of the run, and returns them as PNG."""
    pictures = {}
    for name, (heading, caption, figure) in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        pictures[name] = heading, caption, buffer.getvalue()
        (run / f"{name}.png").write_bytes(buffer.getvalue())
    return pictures
