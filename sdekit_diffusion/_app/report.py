"""A report on a run folder: pictures, distances beside their anchors, held-out likelihood; a page
that opens offline.
"""

import base64
import io
import json
import math
import time
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdekit_diffusion._app.evaluation import (
    data_of,
    distances,
    inception_networks,
    inception_table,
    measured,
    neighbours,
    opened,
    source_of,
    summed,
)
from sdekit_diffusion._app.figures import (
    RATIO,
    denoising,
    forward,
    loss_curve,
    neighbouring,
    picture,
    scatter,
)
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._loading.load import described_in
from sdekit_diffusion._models.checkpoint import read_config, versions
from sdekit_diffusion._models.model import ScoreModel
from sdekit_diffusion._sampling.grids import AbstractGrid
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.sample import sample
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.metrics import DISTANCES

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; color: #1a202c; background: #fff;
  margin: 0 }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem }
h1 { font-size: 1.75rem; font-weight: 650; letter-spacing: -.015em; margin: 0 }
h2 { font-size: 1.1rem; font-weight: 650; margin: 2.75rem 0 .25rem }
p { margin: .25rem 0 .75rem; max-width: 46rem }
.quiet, figcaption, th { color: #718096 }
.quiet { font-size: .9rem }
figure { margin: .75rem 0 } img { display: block; max-width: 100%; height: auto }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0 0 }
.card { flex: 1 1 15rem; border: 1px solid #e2e8f0; border-radius: .5rem; padding: .9rem 1.1rem }
.card b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums }
.card span { font-size: .85rem }
table { border-collapse: collapse; margin: .75rem 0; font-size: .92rem;
  font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem 0 .35rem 2rem; border-bottom: 1px solid #e2e8f0 }
th { font-weight: 500 }
th:first-child, td:first-child { text-align: left; padding-left: 0 } tr.ours td { font-weight: 600 }
</style></head><body><main>
<h1>$title</h1><p class="quiet">$subtitle</p>
<div class="cards">$cards</div>
$body
</main></body></html>
""")

_NAMES = {
    "model": "samples of the model",
    "real": "held-out images, real against real",
    "gaussians": "a Gaussian for each class, fitted to the training pixels",
    "noisy": "training images plus noise of a tenth of the range",
    "noise": "pure noise, every level as likely",
}


def _table(head: list[str], rows: list[list[str]], ours: int = -1) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(
        f"<tr{' class=ours' if i == ours else ''}>{line}</tr>" for i, line in enumerate(lines)
    )
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{body}</table>"


def _distances(found: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """The section on distances, and its headline figures."""
    near = found["neighbours"]
    cards = []
    if "frechet" in found:
        table = found["frechet"]
        rows = found["frechet"]["rows"]
        text = (
            f"Fréchet distances to {table['n_train']} training images, between Gaussian fits to "
            f"the {table['features']} "
            "hidden features of a small classifier, which was trained on these and is right on "
            f"{table['accuracy']:.1%} of "
            f"the {table['n_held_out']} held-out ones. The scale runs from 0, held-out images, to "
            "1, noise; ± is the standard "
            "error that the choice of images leaves. The kernel distance is the squared MMD of the "
            "same features with KID's "
            "kernel, unbiased; the score is exp E KL(p(class | image) | p(class)), as the "
            "Inception Score is, from 1 to the "
            "number of classes."
        )
        cells = [[_NAMES[name], *_numbers(row)] for name, row in rows.items()]
        head = [
            "against the training images",
            "distance",
            "on the scale",
            "kernel distance",
            "score",
            "images",
        ]
        html = f"<p>{text}</p>" + _table(head, cells, 0)
        first = rows["model"]
        cards.append(
            (
                f"{first['relative']:.4f} ± {first['stderr']:.4f}",
                f"Fréchet distance, 0 being real and 1 noise; {first['n']} samples",
            )
        )
    else:
        table = found["distances"]
        text = (
            f"Distances of {table['n']} samples to {table['n']} held-out data, beside those of as "
            "many training data: the mean "
            f"and the largest of {table['draws']} draws. A perfect model is at that floor. Numbers "
            "are in the model's scale, "
            "levels of images as they are."
        )
        cells = [
            [
                DISTANCES[k][0],
                f"{r['distance']:.4f}",
                f"{r['floor']:.4f}",
                f"{r['floor_max']:.4f}",
                str(table["n"]),
            ]
            for k, r in table["rows"].items()
        ]
        html = f"<p>{text}</p>" + _table(
            ["", "samples", "floor", "largest of floor", "points"], cells
        )
        name, first = next(iter(table["rows"].items()))
        heading = DISTANCES[name][0]
        cards.append(
            (
                f"{first['distance']:.4f}",
                f"{heading}, floor {first['floor']:.4f}; {table['n']} samples",
            )
        )
    text = (
        f"The median distance of {near['n_samples']} samples to their nearest of {near['n_train']} "
        "training samples is "
        f"{near['samples']:.4g}; that of {near['n_held_out']} held-out samples is "
        f"{near['held_out']:.4g}. Their ratio is "
        f"{near['ratio']:.3f}; far below 1 it would mean that training samples are repeated."
    )
    cards.append(
        (
            f"{near['ratio']:.3f}",
            f"ratio of distances to the nearest training sample; {near['n_samples']} samples",
        )
    )
    if "inception" in found:
        html += _inception(found["inception"])
    return f"<h2>Distances</h2>{html}<p>{text}</p>", cards


def _numbers(row: dict[str, Any]) -> list[str]:
    """The cells of a set of images in the table of a classifier's features."""
    scaled = f"{row['relative']:.4f} ± {row['stderr']:.4f}"
    return [
        f"{row['distance']:.4f}",
        scaled,
        f"{row['kid']:.4g}",
        f"{row['score']:.3f}",
        str(row["n"]),
    ]


def _inception(found: dict[str, Any]) -> str:
    """The paragraph and the table of FID, KID and Inception Score."""
    text = (
        f"FID, KID and Inception Score against {found['n_train']} training images, with the "
        "standard Inception network as "
        "torchmetrics has it; ± is the standard deviation over KID's subsets and the score's "
        "splits. They compare only with "
        "scores of as many images."
    )
    cells = [
        [
            _NAMES[name],
            f"{row['fid']:.3f}",
            f"{row['kid']:.4g} ± {row['kid_std']:.2g}",
            f"{row['inception']:.3f} ± {row['inception_std']:.2g}",
            str(row["n"]),
        ]
        for name, row in found["rows"].items()
    ]
    return f"<p>{text}</p>" + _table(["", "FID", "KID", "Inception Score", "images"], cells, 0)


def _likelihood_text(found: dict[str, Any]) -> tuple[str, tuple[str, str]]:
    n = found["n"]
    unit = found["unit"]
    mean = f"{found['mean']:.4f}"
    error = f"{found['stderr']:.4f}"
    part = (
        "Traces are exact."
        if not found["probes"]
        else f"The {found['probes']} random probes of each trace make "
        f"{found['parts']['probes']:.4f} of the error."
    )
    text = f"{mean} ± {error} {unit}: mean and standard error over {n} held-out samples. {part}"
    more = (
        " Levels are dequantised uniformly, so this bounds the code length from above."
        if unit == "bits/dim"
        else ""
    )
    return (
        f"<h2>Held-out likelihood</h2><p>{text}{more} {found['evaluations']:.0f} evaluations a "
        "sample.</p>",
        (f"{mean} ± {error}", f"held-out {unit}; {n} samples"),
    )


def _drawn(
    model: ScoreModel, source: Dataset, x: Tensor, nearest: Tensor, seed: int, run: Path
) -> dict[str, tuple[str, str, Any]]:
    """The pictures by name: a heading, a caption, the picture."""
    grid = x[:64]
    unit = f"shown at unit signal plus noise, headed by {RATIO}"
    found: dict[str, tuple[str, str, Any]] = {}
    if source.scale.levels is None:
        n = min(len(x), len(source.test))
        rows = 500
        states = ""
        panels = [(f"{n} held-out data", source.test[:n]), (f"{n} samples", x[:n])]
        found["samples"] = ("Samples and data", "", scatter(panels))
    else:
        rows = 4
        states = "; on the right, what the model makes of each state"
        found["samples"] = (f"{len(grid)} samples", "", picture(grid, source.scale))
        caption = f"Each of {len(grid)} samples, and on its right its nearest training image."
        found["neighbours"] = (
            "Nearest training images",
            caption,
            neighbouring(grid, nearest[:64], source.scale),
        )
    caption = (
        f"States of {500 if source.scale.levels is None else 8} samples on their way from "
        f"noise to data, {unit}{states}."
    )
    found["denoising"] = ("Denoising", caption, denoising(model, source, seed))
    rows = min(rows, len(source.test))
    caption = (
        f"{rows} held-out samples at times uniform in the logarithm of the signal-to-noise "
        f"ratio, {unit}."
    )
    found["forward"] = ("The forward process", caption, forward(model, source, seed))
    loss = loss_curve(run)
    if loss is not None:
        found["loss"] = ("Loss", "Pale: means over ten updates. Dark: their moving average.", loss)
    return found


def _page(found: dict[str, Any], pictures: dict[str, tuple[str, str, bytes]]) -> str:
    distances, cards = _distances(found)
    likelihood, card = _likelihood_text(found["likelihood"])
    sections = {
        name: f'<h2>{escape(heading)}</h2><figure><img alt="{escape(heading)}" '
        'src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"><figcaption '
        f'class="quiet">{escape(caption)}</figcaption></figure>'
        for name, (heading, caption, png) in pictures.items()
    }
    order = ["samples", "neighbours", distances, likelihood, "denoising", "forward", "loss"]
    body = "\n".join(sections.get(part, part if part.startswith("<") else "") for part in order)
    made = [
        f"<p><b>{name}</b> {escape(_said(found[name]))}</p>"
        for name in ("data", "recipe", "sampling", "environment")
    ]
    body += f'\n<h2>How it was made</h2><div class="quiet">{"".join(made)}</div>'
    shown = "".join(
        f'<div class="card"><b>{value}</b><span class="quiet">{escape(text)}</span></div>'
        for value, text in [*cards, card]
    )
    model = found["model"]
    subtitle = (
        f"{model['network']} of {model['parameters']:,} parameters, trained under {model['sde']} "
        f"to predict {model['predicts']}"
    )
    return _PAGE.substitute(
        title=escape(found["data"]["name"]), subtitle=escape(subtitle), cards=shown, body=body
    )


def _said(value: Any) -> str:  # noqa: ANN401 - JSON
    """A nest of dictionaries in words."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{name} ({_said(part)})" if isinstance(part, dict) else f"{name} {part}"
        for name, part in value.items()
    )


def write_report(
    run_folder: str | Path,
    *,
    samples: int | None = None,
    out: str | Path | None = None,
    data: str | None = None,
    net: nn.Module | str | Path | None = None,
    method: AbstractMethod | str = "default",
    steps: int | None = None,
    grid: AbstractGrid | str | None = None,
    noise: Literal["white", "path"] | None = None,
    sde: AbstractDiffusion | str | None = None,
    end: float = 1e-3,
    denoise: bool = False,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 256,
    probes: int = 2,
    tolerance: float = 3e-4,
    inception: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Writes report.html, its pictures as PNG, and report.json with all numbers, into a run folder.

    Arguments: run_folder: what `sdekit-diffusion train` wrote. samples: how many samples to draw,
        and held-out samples to use, or all where there are fewer; 500 images or 2000 others
            unless given.
        out: the page; report.html in the folder unless given.
        data: the name of the data set; the run's own unless given.
        net: the network, where the run cannot name it, as for `load`.
        method, steps, grid, noise, end, denoise, dtype, first, batch_size: how to sample, as in
            `sample`.
        sde: the diffusion of samples and likelihood; the model's own unless given.
        seed: of samples, dequantisation, probes, the classifier and the anchors.
        probes: of each trace in the likelihood; up to 32 dimensions traces are exact.
        tolerance: relative and absolute, of the likelihood's solver.
        inception: a file with the weights of the standard Inception network, for FID, KID and
            Inception Score.
        device: where to.

    Returns:
        what report.json holds.

    Raises: CheckpointError: when the folder is not a run's. ValueError: for fewer than two samples,
        or damaged files, or Inception weights where the data are no images. OSError: when the
        weights cannot be read. ImportError: when an extra is missing.
    """
    begun = time.perf_counter()
    run = Path(run_folder)
    model, known = opened(run, device, net)
    name = data_of(run, data, known)
    scale = model.scale
    samples = (2000 if scale.levels is None else 500) if samples is None else samples
    if samples < 2:
        raise ValueError(f"a report needs two samples or more, not {samples}")
    source = source_of(name, scale)
    if tuple(source.test.shape[1:]) != model.shape:
        raise ValueError(
            f"{source.name} has samples of shape {tuple(source.test.shape[1:])}, the "
            f"model of {model.shape}"
        )
    networks = (
        None if inception is None else inception_networks(inception, source, model.place()[1])
    )
    options = {
        "method": method,
        "steps": steps,
        "grid": grid,
        "noise": noise,
        "sde": sde,
        "end": end,
        "denoise": denoise,
    }
    options |= {"dtype": dtype, "seed": seed, "first": first, "batch_size": batch_size}
    solution = sample(model, samples, progress=True, return_solution=True, **options)
    x = scale.decode(solution.x.cpu())
    bits = measured(
        model,
        source.test[:samples],
        probes=probes,
        sde=sde,
        seed=seed,
        tolerance=tolerance,
        batch_size=100,
        progress=True,
    )
    likelihood = summed(bits, model.scale)
    found = _about(run, model, source, seed)
    found["sampling"] = {
        "n": samples,
        "method": str(method),
        "steps": len(solution.ts) - 1,
        "evaluations": int(solution.evaluations[0]),
        "seed": seed,
        "end": end,
        "denoise": denoise,
        "first": first,
    } | {
        name: str(options[name])
        for name in ("grid", "noise", "sde", "dtype")
        if options[name] is not None
    }
    found["likelihood"] = likelihood.numbers() | {"tolerance": tolerance}
    found["neighbours"], nearest = neighbours(x, source)
    found |= distances(x, source, seed)
    if networks is not None:
        found["inception"] = inception_table(x, source, networks, model.place()[1], seed)
    pictures = {}
    for name, (heading, caption, figure) in _drawn(model, source, x, nearest, seed, run).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        pictures[name] = heading, caption, buffer.getvalue()
        (run / f"{name}.png").write_bytes(buffer.getvalue())
    page = run / "report.html" if out is None else Path(out)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_page(found, pictures), encoding="utf-8")
    found |= {"page": str(page), "seconds": time.perf_counter() - begun}
    text = json.dumps(_finite(found), indent=2, allow_nan=False)
    (run / "report.json").write_text(text + "\n", encoding="utf-8")
    return found


def _about(run: Path, model: ScoreModel, source: Dataset, seed: int) -> dict[str, Any]:
    """What the numbers are of, and where they were found."""
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
        "recipe": read_config(described_in(run))["notes"].get("recipe"),
        "seed": seed,
        "environment": {
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
    }


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
