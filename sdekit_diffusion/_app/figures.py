"""The pictures of a report."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit import normal
from sdekit_diffusion import plot
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.grid import DEFAULT_END
from sdekit_diffusion._sampling.sample import sample
from sdekit_diffusion._training.log import METRICS
from sdekit_diffusion.data import Dataset, Scale
from sdekit_diffusion.plot._solves import RATIO, ratio, strip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_ASPECT = 4  # axes that differ by less share one unit
_BLUE = "#2b6cb0"
_GREY = "#718096"


def _axes(width: float, height: float, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'sdekit[app]'") from error
    figure = Figure((width, height), dpi=150, layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for ax in axes:
        ax.tick_params(length=0, labelsize=7, colors=_GREY)
        ax.spines[:].set_visible(False)
        ax.set_prop_cycle(color=[_BLUE])
        for label in (ax.xaxis.label, ax.yaxis.label):
            label.set(size=8, color=_GREY)
    return figure, axes


def _tiles(
    ax: "Axes",
    x: Tensor,
    scale: Scale,
    columns: int,
    labels: Sequence[str] = (),
    gap: int = 1,
    names: Sequence[str] = (),
) -> None:
    """Images `(n, C, H, W)`, levels or a model's values."""
    floating = x.is_floating_point()
    plot.samples(
        x, columns=columns, headings=labels, names=names, gap=gap, ax=ax,
        black=scale.low if floating else 0,
        white=scale.high if floating else (scale.levels or 2) - 1,
    )  # fmt: skip


def frame(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The smallest and the largest coordinates of a picture of points `(n, d)`."""
    low, high = np.quantile(points, (0.001, 0.999), axis=0)
    centre = (low + high) / 2
    half_widths = np.maximum(0.55 * (high - low), 1e-6 * np.abs(high) + 1e-12)
    # One unit for both axes if their ranges are similar.
    half_widths = np.where(
        half_widths.max() < _MAX_ASPECT * half_widths, half_widths.max(), half_widths
    )
    return centre - half_widths, centre + half_widths


def scatter(panels: list[tuple[str, Tensor]]) -> "Figure":
    """Points `(n, ...)` by their first two coordinates, or histograms of numbers, all in one
    frame.
    """
    side = min(11 / len(panels), 3.5)
    figure, axes = _axes(side * len(panels), side + 0.4, len(panels))
    points = [x.reshape(len(x), -1)[:, :2].double().cpu().numpy() for _, x in panels]
    low, high = frame(np.concatenate(points))
    for i, (ax, flat) in enumerate(zip(axes, points, strict=True)):
        plot.samples(flat, limits=list(zip(low, high, strict=True)), ax=ax)
        ax.set(box_aspect=1 if flat.shape[1] == 2 else None)
        ax.set_title(panels[i][0], fontsize=8)
        ax.label_outer()
    return figure


def picture(x: Tensor, scale: Scale, rows: Sequence[str] = ()) -> "Figure":
    """A picture of samples: a grid of images, or points by their first two coordinates; with names
    a row of equally many images, or a panel of points, for each.

    Raises:
        ValueError: when there are none.
    """
    if not len(x):
        raise ValueError("there are no samples to draw; ask for one or more")
    if scale.levels is None:
        parts = x.tensor_split(max(1, len(rows)))
        titles = [f"class {name}" for name in rows] or [f"{len(x)} samples"]
        return scatter(list(zip(titles, parts, strict=True)))
    columns = len(x) // len(rows) if rows else math.ceil(math.sqrt(len(x)))
    figure, (ax,) = _axes(5.5, 5.5 * x.shape[2] / x.shape[3] * -(-len(x) // columns) / columns)
    _tiles(ax, x, scale, columns, names=rows)
    return figure


def table_of_images(columns: Sequence[Tensor], labels: Sequence[str], scale: Scale) -> "Figure":
    """Images `(rows, C, H, W)` in columns with labels."""
    rows = len(columns[0])
    figure, (ax,) = _axes(1.1 * len(columns), 1.1 * rows + 0.3)
    _tiles(ax, torch.stack(list(columns), dim=1).flatten(0, 1), scale, len(columns), labels)
    ax.set_yticks([])
    return figure


def forward(model: ScoreModel, source: Dataset, seed: int) -> "Figure":
    """Held-out samples noised at times uniform in log(alpha / sigma)."""
    continuous = source.scale.levels is None
    x = source.test[: 500 if continuous else 4]
    x0 = source.scale.encode(x).float()
    eps = normal(seed, torch.arange(len(x)), tuple(x.shape[1:]), dtype=x0.dtype)
    panels = []
    coordinates = Coordinates.of(model, model.sde)
    for l in np.linspace(*coordinates.span(model, DEFAULT_END), 5 if continuous else 11)[::-1]:
        alpha, sigma = model.sde.kernel(float(coordinates.time(float(l))))
        panels.append((alpha, sigma, alpha * x0 + sigma * eps))
    if continuous:
        return scatter(_labelled(panels, source))
    figure, (ax,) = _axes(9, 9 * len(x) / 11 * x.shape[2] / x.shape[3] + 0.3)
    labels, states = zip(*_labelled(panels, source), strict=True)
    strip(states, labels, source.scale.low, source.scale.high, ax)
    return figure


def denoising(
    model: ScoreModel,
    source: Dataset,
    seed: int,
    drawn: Callable[[int], AbstractModel] | None = None,
) -> "Figure":
    """States of a solve at evenly spaced steps, and for images the denoised ones. `drawn` is a
    function from the number of samples to the model, where the model depends on it.
    """
    continuous = source.scale.levels is None
    n = 500 if continuous else 8
    given = model if drawn is None else drawn(n)
    solution = sample(given, n, seed=seed, save="all", return_solution=True)
    assert solution.xs is not None
    if continuous:
        chosen = np.linspace(0, len(solution.ts) - 1, 5).round().astype(int)
        states = [(*model.sde.kernel(float(solution.ts[i])), solution.xs[i].cpu()) for i in chosen]
        return scatter(_labelled(states, source))
    scale = source.scale
    figure, axes = _axes(11, 5.5 * 8 / 9 * solution.x.shape[2] / solution.x.shape[3] + 0.3, 2)
    plot.denoising(given, solution, black=scale.low, white=scale.high, axes=(axes[0], axes[1]))
    return figure


def _labelled(
    panels: list[tuple[float, float, Tensor]], source: Dataset
) -> list[tuple[str, Tensor]]:
    """States divided by sqrt(alpha^2 + sigma^2), named by sigma / alpha."""
    prefix = f"{RATIO} = " if source.scale.levels is None else ""
    return [
        (prefix + ratio(sigma / alpha), x / math.hypot(alpha, sigma)) for alpha, sigma, x in panels
    ]


def neighbouring(x: Tensor, nearest: Tensor, scale: Scale) -> "Figure":
    """Each sample, and on its right its nearest training image."""
    separator = torch.full((*x.shape[:3], 1), (scale.levels or 2) - 1, dtype=x.dtype)
    pairs = torch.cat([x, separator, nearest.to(x.dtype)], dim=3)
    figure, (ax,) = _axes(
        9, 9 * -(-len(x) // 8) * (x.shape[2] + 3) / (8 * (pairs.shape[3] + 3)) + 0.1
    )
    _tiles(ax, pairs, scale, 8, gap=3)
    return figure


def loss_curve(run: Path) -> "Figure | None":
    """The loss against the number of updates, raw and smoothed over a twentieth of the run; None if
    it was not logged.
    """
    if not (run / METRICS).is_file():
        return None
    figure, (ax,) = _axes(7, 2.6)
    plot.loss(run, ax=ax)
    ax.grid(axis="y", color="#e2e8f0", linewidth=0.6)
    ax.tick_params(which="both", length=0, labelsize=7, colors=_GREY)
    return figure
