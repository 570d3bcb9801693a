"""The page of a report, written from its numbers and pictures; it opens offline."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from sdekit_diffusion._app.page_quality import quality
from sdekit_diffusion._app.page_table import Card, table
from sdekit_diffusion.metrics import DISTANCES

Picture = tuple[str, str, bytes]  # a heading, a caption, a PNG

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
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr));
  gap: 1rem; margin: 1.5rem 0 0 }
.card { border: 1px solid #e2e8f0; border-radius: .5rem; padding: .9rem 1.1rem }
.card b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums }
.card span { font-size: .85rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: .75rem 0; font-size: .92rem;
  font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem 0 .35rem 2rem; border-bottom: 1px solid #e2e8f0 }
th { font-weight: 500 }
th:first-child, td:first-child { text-align: left; padding-left: 0 } td { white-space: nowrap }
@media (max-width: 40rem) { th, td { padding-left: 1rem; font-size: .85rem } }
td:first-child { white-space: normal; min-width: 7rem } tr.ours td { font-weight: 600 }
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


def page_of(results: dict[str, Any], pictures: Mapping[str, Picture]) -> str:
    """The HTML page of the results of `write_report`."""
    verdict, cards = quality(results)
    distances, nearest = _distances(results)
    likelihood, card = _likelihood(results["likelihood"], list(results["conditions"]))
    sections = {
        name: f'<h2>{escape(heading)}</h2><figure><img alt="{escape(heading)}" '
        'src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"><figcaption '
        f'class="quiet">{escape(caption)}</figcaption></figure>'
        for name, (heading, caption, png) in pictures.items()
    }
    order = [
        "samples",
        "classes",
        verdict,
        "worst",
        "histogram",
        "neighbours",
        distances,
        likelihood,
        "restorations",
        "denoising",
        "forward",
        "loss",
    ]
    body = "\n".join(
        sections.get(section, section if section.startswith("<") else "") for section in order
    )
    provenance = [
        f"<p><b>{name}</b> {escape(_in_words(results[name]))}</p>"
        for name in ("data", "recipe", "sampling", "environment")
    ]
    body += f'\n<h2>How it was made</h2><div class="quiet">{"".join(provenance)}</div>'
    card_html = "".join(
        f'<div class="card"><b>{value}</b><span class="quiet">{escape(text)}</span></div>'
        for value, text in [*cards, nearest, card]
    )
    model = results["model"]
    subtitle = (
        f"{model['network']} of {model['parameters']:,} parameters, trained under {model['sde']} "
        f"to predict {model['predicts']}"
    )
    return _PAGE.substitute(
        title=escape(results["data"]["name"]), subtitle=escape(subtitle), cards=card_html, body=body
    )


def _in_words(value: Any) -> str:  # noqa: ANN401 - JSON
    """A value as text, also of nested dictionaries."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(
        f"{name} ({_in_words(item)})" if isinstance(item, dict) else f"{name} {item}"
        for name, item in value.items()
    )


def _distances(results: dict[str, Any]) -> tuple[str, Card]:
    """The section on distances, and its headline figure."""
    html = _frechet(results["frechet"]) if "frechet" in results else _floors(results["distances"])
    if "inception" in results:
        html += _inception(results["inception"])
    text, nearest = _nearest(results["neighbours"])
    labels = ""
    if results["conditions"]:
        guidance = results["sampling"]["guidance"]
        sources = [f"the {name} {where}" for name, where in results["conditions"].items()]
        labels = (
            f"<p>Each sample is given {escape(' and '.join(sources))}, at guidance "
            f"{guidance:g}.</p>"
        )
    return f"<h2>Distances</h2>{labels}{html}<p>{text}</p>", nearest


def _frechet(results: dict[str, Any]) -> str:
    """Distances in the features of a classifier."""
    text = (
        f"Fréchet distances to {results['n_train']} training images, between Gaussian fits to the "
        f"{results['features']} hidden features of a small classifier, which was trained on these "
        f"and is right on {results['accuracy']:.1%} of the {results['n_held_out']} held-out "
        "ones. The scale runs from 0, held-out images, to 1, noise; ± is the standard error that "
        "the choice of images leaves. The kernel distance is the squared MMD of the same features "
        "with KID's kernel, unbiased; the score is exp E KL(p(class | image) | p(class)), as the "
        "Inception Score is, from 1 to the number of classes."
    )
    if "agreement" in results:
        text += (
            f" It finds the label that a sample was given in {results['agreement']:.1%} of them."
        )
    head = [
        "against the training images",
        "distance",
        "on the scale",
        "kernel distance",
        "score",
        "images",
    ]
    cells = [[_NAMES[name], *_cells(row)] for name, row in results["rows"].items()]
    return f"<p>{text}</p>" + table(head, cells, 0)


def _cells(row: dict[str, Any]) -> list[str]:
    """The cells of a set of images in the table of a classifier's features."""
    scaled = f"{row['relative']:.4f} ± {row['stderr']:.4f}"
    return [
        f"{row['distance']:.4f}",
        scaled,
        f"{row['kid']:.4g}",
        f"{row['score']:.3f}",
        str(row["n"]),
    ]


def _floors(results: dict[str, Any]) -> str:
    """Distances of samples to data, beside those between data and data."""
    n = results["n"]
    text = (
        f"Distances of {n} samples to {n} held-out data, beside those of as many training data: "
        f"the mean and the largest of {results['draws']} draws. A perfect model is at that floor. "
        "Numbers are in the model's scale, levels of images as they are."
    )
    cells = [
        [
            DISTANCES[name][0],
            f"{row['distance']:.4f}",
            f"{row['floor']:.4f}",
            f"{row['floor_max']:.4f}",
            str(n),
        ]
        for name, row in results["rows"].items()
    ]
    head = ["", "samples", "floor", "largest of floor", "points"]
    return f"<p>{text}</p>" + table(head, cells)


def _nearest(results: dict[str, Any]) -> tuple[str, Card]:
    """How far samples are from the training samples, compared with held-out ones."""
    text = (
        f"The median distance of {results['n_samples']} samples to their nearest of "
        f"{results['n_train']} training samples is {results['samples']:.4g}; that of "
        f"{results['n_held_out']} held-out samples is {results['held_out']:.4g}. Their ratio is "
        f"{results['ratio']:.3f}; far below 1 it would mean that training samples are repeated."
    )
    card = (
        f"{results['ratio']:.3f}",
        f"ratio of distances to the nearest training sample; {results['n_samples']} samples",
    )
    return text, card


def _inception(results: dict[str, Any]) -> str:
    """The paragraph and the table of FID, KID and Inception Score."""
    text = (
        f"FID, KID and Inception Score against {results['n_train']} training images, with the "
        "standard Inception network as torchmetrics has it; ± is the standard deviation over "
        "KID's subsets and the score's splits. They compare only with scores of as many images."
    )
    cells = [
        [
            _NAMES[name],
            f"{row['fid']:.3f}",
            f"{row['kid']:.4g} ± {row['kid_std']:.2g}",
            f"{row['inception']:.3f} ± {row['inception_std']:.2g}",
            str(row["n"]),
        ]
        for name, row in results["rows"].items()
    ]
    return f"<p>{text}</p>" + table(["", "FID", "KID", "Inception Score", "images"], cells, 0)


def _likelihood(results: dict[str, Any], conditions: Sequence[str]) -> tuple[str, Card]:
    """The section on the likelihood, given conditions or not, and its headline figure."""
    n = results["n"]
    unit = results["unit"]
    mean = f"{results['mean']:.4f}"
    error = f"{results['stderr']:.4f}"
    trace_note = (
        "Traces are exact."
        if not results["probes"]
        else f"The {results['probes']} random probes of each trace make "
        f"{results['parts']['probes']:.4f} of the error."
    )
    text = (
        f"{mean} ± {error} {unit}: mean and standard error over {n} held-out samples. {trace_note}"
    )
    names = escape(" and ".join(conditions))
    given_note = f" Each sample is given its {names}, without guidance." if conditions else ""
    given = f" given {names}" if conditions else ""
    bound_note = (
        " Levels are dequantised uniformly, so this bounds the code length from above."
        if unit == "bits/dim"
        else ""
    )
    return (
        f"<h2>Held-out likelihood</h2><p>{text}{given_note}{bound_note} "
        f"{results['evaluations']:.0f} evaluations per sample.</p>",
        (f"{mean} ± {error}", f"held-out {unit}{given}; {n} samples"),
    )
