"""The pictures of a report on quality: the classes of samples, and the worst samples."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sdekit_diffusion.data import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE = "#2b6cb0"
_GREY = "#a0aec0"
_TEXT = "#4a5568"
_MOST_NAMED = 20  # classes with a name on the axis
_ROWS = {"model": "samples", "held_out": "held-out"}


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'sdekit[app]'") from error
    return Figure((width, height), dpi=150, layout="constrained")


def quality_figures(
    x: Tensor, source: Dataset, results: dict[str, Any]
) -> dict[str, tuple[str, str, "Figure"]]:
    """Pictures of images by name, a heading, a caption and the picture: the worst samples, and the
    classes of all where there is a classifier.
    """
    if source.scale.levels is None:
        return {}
    if "frechet" not in results:
        caption = (
            "The samples that are farthest from their nearest training image, with the distance, "
            "above the held-out images that are. Images of much contrast are far from all others."
        )
        return {"worst": ("Worst samples", caption, worst(x, source, results["farthest"]))}
    classes = results["frechet"]["classes"]
    sure_caption = (
        "The samples of which the classifier is least sure, with the class that it finds and its "
        "confidence, above the held-out images of which it is. Look for samples that show no class "
        "at all, or parts of two."
    )
    share_caption = (
        "The share of samples that the classifier takes for each class, beside that of held-out "
        "images, with standard errors. Look for classes that are rare or missing among the samples."
    )
    return {
        "worst": ("Worst samples", sure_caption, worst(x, source, classes["worst"])),
        "histogram": ("Classes of the samples", share_caption, histogram(classes)),
    }


def histogram(classes: dict[str, Any]) -> "Figure":
    """The share of each class that a classifier finds, of samples and of held-out ones, with
    binomial standard errors.
    """
    figure = _figure(7, 2.8)
    ax = figure.subplots()
    names = classes["names"]
    place = np.arange(len(names))
    for i, (name, colour) in enumerate((("held_out", _GREY), ("model", _BLUE))):
        counts = np.array(classes["counts"][name])
        share = counts / counts.sum()
        stderr = np.sqrt(share * (1 - share) / counts.sum())
        ax.bar(
            place + 0.4 * (i - 0.5),
            100 * share,
            width=0.38,
            yerr=100 * stderr,
            color=colour,
            ecolor=_TEXT,
            error_kw={"linewidth": 0.8},
            label=_ROWS[name],
        )
    step = math.ceil(len(names) / _MOST_NAMED)
    ax.set_xticks(place[::step], names[::step])
    ax.set_xlabel("class found by the classifier", fontsize=8, color=_TEXT)
    ax.set_ylabel("share, %", fontsize=8, color=_TEXT)
    ax.tick_params(length=0, labelsize=7, colors=_TEXT)
    ax.spines[:].set_visible(False)
    ax.grid(axis="y", color="#e2e8f0", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(fontsize=7, frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.14))
    return figure


def worst(x: Tensor, source: Dataset, selected: dict[str, Any]) -> "Figure":
    """The worst samples in a row, above the held-out ones that are worst in the same sense, each
    headed by its class and confidence, or its distance.
    """
    sets = {"model": x, "held_out": source.test}
    columns = max(len(row["index"]) for row in selected.values())
    figure = _figure(9, 2 * (9 / columns * x.shape[2] / x.shape[3] + 0.25))
    axes = figure.subplots(2, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    top = (source.scale.levels or 2) - 1
    for row, (name, label) in zip(axes, _ROWS.items(), strict=True):
        headings = _headings(selected[name])
        for ax, index, heading in zip(row, selected[name]["index"], headings, strict=False):
            image = sets[name][index].double().numpy() / top
            shown = np.moveaxis(image.repeat(3 // len(image), axis=0), 0, 2)
            ax.imshow(shown.clip(0, 1), interpolation="nearest")
            ax.set_title(heading, fontsize=8, color=_TEXT, pad=2)
        row[0].text(
            -0.15,
            0.5,
            label,
            transform=row[0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontsize=8,
            color=_TEXT,
        )
    return figure


def _headings(row: dict[str, Any]) -> list[str]:
    """The class and the confidence of each sample of a row, or its distance."""
    if "distance" in row:
        return [f"{distance:.3g}" for distance in row["distance"]]
    return [
        f"{name}: {100 * sure:.0f} %"
        for name, sure in zip(row["class"], row["confidence"], strict=True)
    ]
