"""Plots of samples: grids of images, scatter plots, histograms."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sdekit.plot import new_axes
from sdekit_diffusion.metrics._points import Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 60


def samples(
    x: Samples,
    *,
    limits: Sequence[tuple[float, float]] | None = None,
    columns: int | None = None,
    headings: Sequence[str] = (),
    names: Sequence[str] = (),
    gap: int = 1,
    black: float | None = None,
    white: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plots samples: images as a grid, points as a scatter plot, numbers as a histogram.

    Arguments:
        x: images `(n, C, H, W)` with 1 or 3 channels, points `(n, 2)`, or numbers `(n,)` or
            `(n, 1)`.
        limits: for points and numbers, the smallest and the largest value of each coordinate; those
            of x unless given.
        columns: for images, the number of columns; about as many as rows unless given.
        headings: for images, texts above the columns.
        names: for images, texts beside the rows.
        gap: for images, the number of white pixels between neighbours.
        black, white: for images, the values that are drawn black and white; values outside are
            clipped. Unless given -1 and 1 for floats, 0 and 255 for integers, and 0 and 1 for bool.
        ax: axes to draw on; new ones unless given.

    Raises:
        ImportError: when matplotlib is not installed.
        TypeError: for anything but a tensor or an array.
        ValueError: for no samples, values that are not finite, samples of other shapes, limits that
            are not a pair for each coordinate, or another number of texts than columns or rows.

    Example:
        >>> from sdekit_diffusion import plot
        >>> ax = plot.samples(torch.zeros(6, 1, 8, 8), columns=3, headings=["a", "b", "c"])
        >>> ax.images[0].get_array().shape
        (17, 26, 3)
        >>> ax = plot.samples(torch.randn(100, 2))
        >>> len(ax.collections[0].get_offsets())
        100
    """
    try:
        values = torch.as_tensor(x).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"x is a tensor or an array of samples, not {x!r:.60}") from error
    if not values.ndim or not len(values):
        raise ValueError("there are no samples to draw; give one or more")
    if not bool(values.isfinite().all()):
        raise ValueError("x has NaN or infinite values; leave out those samples")
    if values.ndim == 4 and values.shape[1] in (1, 3):
        floating = values.is_floating_point()
        least = -1.0 if floating else 0.0
        largest = 1.0 if floating or values.dtype == torch.bool else 255.0
        low = least if black is None else black
        high = largest if white is None else white
        pixels = ((values.double() - low) / (high - low)).clamp(0, 1)
        return _grid(pixels, columns, headings, names, gap, ax)
    points = values[:, None] if values.ndim == 1 else values
    if points.ndim != 2 or points.shape[1] > 2:
        raise ValueError(
            f"x has shape {tuple(values.shape)}; give images (n, C, H, W) with 1 or 3 channels, "
            f"points (n, 2) or numbers (n, 1){_remedy(values)}"
        )
    ax = new_axes(4, 4 if points.shape[1] == 2 else 3)[0] if ax is None else ax
    return _points(points.double().numpy(), limits, ax)


def _remedy(x: Tensor) -> str:
    """How samples of another shape can be drawn, where that is known."""
    if x.ndim == 4 and x.shape[3] in (1, 3):
        return "; images (n, H, W, C) as x.permute(0, 3, 1, 2)"
    if x.ndim == 3 and x.shape[2] in (1, 3):
        return "; an image (H, W, C) as x.permute(2, 0, 1)[None]"
    if x.ndim == 3:
        return "; images (n, H, W) as x[:, None]"
    if x.ndim == 2:
        return "; of more coordinates two, x[:, :2], and an image (H, W) as x[None, None]"
    return ""


def _points(x: "np.ndarray", limits: Sequence[tuple[float, float]] | None, ax: "Axes") -> "Axes":
    """A scatter plot of points `(n, 2)`, a histogram of numbers `(n, 1)`."""
    if limits is not None and np.shape(limits) != (x.shape[1], 2):
        raise ValueError(
            f"limits are pairs (low, high) for each of the {x.shape[1]} coordinates, not {limits}"
        )
    if x.shape[1] == 1:
        span = None if limits is None else (limits[0][0], limits[0][1])
        ax.hist(x[:, 0], bins=_BINS, range=span, density=True)
        ax.set(xlabel="x", ylabel="density")
    else:
        size = float(np.clip(2000 / len(x), 4, 20))
        ax.scatter(x[:, 0], x[:, 1], s=size, alpha=0.6, linewidths=0)
        ax.set(xlabel="x[0]", ylabel="x[1]")
    if limits is not None:
        ax.set_xlim(*limits[0])
        if len(limits) == 2:
            ax.set_ylim(*limits[1])
    return ax


def _grid(
    pixels: Tensor,
    columns: int | None,
    headings: Sequence[str],
    names: Sequence[str],
    gap: int,
    ax: "Axes | None",
) -> "Axes":
    """Images `(n, C, H, W)` of values from 0 to 1, row by row."""
    n, c, h, w = pixels.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    rows = -(-n // columns)
    for given, number, what in ((headings, columns, "columns"), (names, rows, "rows")):
        if len(given) not in (0, number):
            raise ValueError(f"there are {len(given)} texts for {number} {what}: give one for each")
    if ax is None:
        ratio = rows * (h + gap) / (columns * (w + gap))
        width = min(5.5, 5.5 / ratio)
        ax = new_axes(width, width * ratio + (0.2 if headings else 0))[0]
    canvas = np.ones((rows * (h + gap) - gap, columns * (w + gap) - gap, c))
    for i, image in enumerate(pixels.numpy()):
        row = i // columns * (h + gap)
        column = i % columns * (w + gap)
        canvas[row : row + h, column : column + w] = np.moveaxis(image, 0, 2)
    ax.imshow(canvas.repeat(3 // c, axis=2), interpolation="nearest")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_yticks([i * (h + gap) + (h - 1) / 2 for i in range(len(names))], names)
    ax.xaxis.tick_top()
    ax.set_xticks([i * (w + gap) + (w - 1) / 2 for i in range(len(headings))], headings)
    return ax
