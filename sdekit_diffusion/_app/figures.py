"""The pictures of a report."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sdekit import normal
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.sample import sample
from sdekit_diffusion._training.log import METRICS
from sdekit_diffusion.data import Dataset, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_ASPECT = 4  # axes that differ by less share one unit
_BLUE = "#2b6cb0"
_GREY = "#718096"
RATIO = "σ/α"  # noqa: RUF001


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
    """Images `(n, C, H, W)`, levels or a model's values, row by row in a grid; labels stand over
    its columns, and names beside its rows.
    """
    levels = scale.levels or 2
    pixels = (
        (x.double() - scale.low) / (scale.high - scale.low)
        if x.is_floating_point()
        else x.double() / (levels - 1)
    )
    pixels = pixels.clamp(0, 1)
    (c, h, w) = pixels.shape[1:]
    rows = -(-len(x) // columns)
    canvas = np.ones((rows * (h + gap) - gap, columns * (w + gap) - gap, c))
    for i, image in enumerate(pixels.numpy()):
        row = i // columns * (h + gap)
        column = i % columns * (w + gap)
        canvas[row : row + h, column : column + w] = np.moveaxis(image, 0, 2)
    ax.imshow(canvas.repeat(3 // c, axis=2), interpolation="nearest")
    ax.set_yticks([i * (h + gap) + (h - 1) / 2 for i in range(len(names))], names)
    ax.xaxis.tick_top()
    ax.set_xticks([i * (w + gap) + (w - 1) / 2 for i in range(len(labels))], labels)


def scatter(panels: list[tuple[str, Tensor]]) -> "Figure":
    """Points `(n, ...)` by their first two coordinates, or histograms of numbers, all in one
    frame.
    """
    side = min(11 / len(panels), 3.5)
    figure, axes = _axes(side * len(panels), side + 0.2, len(panels))
    points = [x.reshape(len(x), -1)[:, :2].double().cpu().numpy() for _, x in panels]
    low, high = np.quantile(np.concatenate(points), (0.001, 0.999), axis=0)
    centre = (low + high) / 2
    half_widths = np.maximum(0.55 * (high - low), 1e-6 * np.abs(high) + 1e-12)
    # One unit for both axes if their ranges are similar.
    half_widths = np.where(
        half_widths.max() < _MAX_ASPECT * half_widths, half_widths.max(), half_widths
    )
    low = centre - half_widths
    high = centre + half_widths
    for i, (ax, flat) in enumerate(zip(axes, points, strict=True)):
        if flat.shape[1] == 1:
            ax.hist(flat[:, 0], bins=60, range=(low[0], high[0]), color=_BLUE, density=True)
        else:
            ax.scatter(flat[:, 0], flat[:, 1], s=4, alpha=0.6, linewidths=0, color=_BLUE)
            ax.set(ylim=(low[1], high[1]), box_aspect=1)
        ax.set(xlim=(low[0], high[0]))
        ax.set_title(panels[i][0], fontsize=8)
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
    for l in np.linspace(*coordinates.span(model, 1e-3), 5 if continuous else 11)[::-1]:
        alpha, sigma = model.sde.kernel(float(coordinates.time(float(l))))
        panels.append((alpha, sigma, alpha * x0 + sigma * eps))
    if continuous:
        return scatter(_labelled(panels, source))
    figure, (ax,) = _axes(9, 9 * len(x) / 11 * x.shape[2] / x.shape[3] + 0.3)
    _strip(ax, _labelled(panels, source), source.scale)
    return figure


def denoising(
    model: ScoreModel,
    source: Dataset,
    seed: int,
    drawn: Callable[[int], AbstractModel] | None = None,
) -> "Figure":
    """States of a solve at evenly spaced steps, and for images the denoised ones; `drawn` gives the
    model of so many samples where that depends on their number.
    """
    device = model.place()[1]
    continuous = source.scale.levels is None
    n = 500 if continuous else 8
    given = model if drawn is None else drawn(n)
    solution = sample(given, n, seed=seed, save="all", return_solution=True)
    assert solution.xs is not None
    states = []
    denoised = []
    for i in np.linspace(0, len(solution.ts) - 1, 5 if continuous else 9).round().astype(int):
        t = float(solution.ts[i])
        x = solution.xs[i].to(device)
        alpha, sigma = model.sde.kernel(t)
        states.append((alpha, sigma, x.cpu()))
        with torch.no_grad():
            denoised.append((_format_ratio(sigma / alpha), given.denoise(t, x).cpu()))
    if continuous:
        return scatter(_labelled(states, source))
    figure, axes = _axes(11, 5.5 * 8 / 9 * states[0][2].shape[2] / states[0][2].shape[3] + 0.3, 2)
    _strip(axes[0], _labelled(states, source), source.scale)
    _strip(axes[1], denoised, source.scale)
    return figure


def _labelled(
    panels: list[tuple[float, float, Tensor]], source: Dataset
) -> list[tuple[str, Tensor]]:
    """States at unit signal plus noise, named by sigma / alpha."""
    prefix = f"{RATIO} = " if source.scale.levels is None else ""
    return [
        (prefix + _format_ratio(sigma / alpha), x / math.hypot(alpha, sigma))
        for alpha, sigma, x in panels
    ]


def _format_ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _strip(ax: "Axes", panels: list[tuple[str, Tensor]], scale: Scale) -> None:
    x = torch.stack([x for _, x in panels], dim=1).flatten(0, 1)
    _tiles(ax, x, scale, len(panels), [label for label, _ in panels])


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
    """The loss by update, raw and smoothed over a twentieth of the run; None if it was not
    logged.
    """
    path = run / METRICS
    if not path.is_file():
        return None
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        step, loss = (
            np.array([line[key] for line in lines], dtype=float) for key in ("step", "loss")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); remove it to have a report without a loss curve"
        ) from error
    width = max(1, len(loss) // 20)
    kernel = np.ones(width)
    smoothed = np.convolve(loss, kernel, "same") / np.convolve(np.ones(len(loss)), kernel, "same")
    figure, (ax,) = _axes(7, 2.6)
    ax.plot(step, loss, color=_BLUE, alpha=0.25, linewidth=0.7)
    ax.plot(step, smoothed, color=_BLUE, linewidth=1.6)
    ax.grid(axis="y", color="#e2e8f0", linewidth=0.6)
    ax.set(yscale="log", xlim=(0, step[-1]))
    ax.tick_params(which="both", length=0, labelsize=7, colors=_GREY)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:.2g}")
    ax.set_xlabel("update", fontsize=8, color=_GREY)
    ax.set_ylabel("loss", fontsize=8, color=_GREY)
    return figure
