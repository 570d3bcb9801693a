"""Plots of trajectories from noise to data."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sdekit import Solution
from sdekit.plot import new_axes, paths, saved_states
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion.plot._drawn import samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATIO = "σ/α"  # noqa: RUF001


def trajectories(
    solution: Solution,
    *,
    count: int = 50,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plots the trajectories of samples from noise to data: against time in one dimension, as
    curves in the plane in two.

    Arguments:
        solution: the result of `sample(..., save="all", return_solution=True)`, with samples of
            shape `(1,)` or `(2,)`.
        count: the number of samples that are drawn, from the first on.
        ax: axes to draw on; new ones unless given.

    Raises:
        ImportError: when matplotlib is not installed.
        TypeError: for anything other than a solution.
        ValueError: for a solution without saved states, or with samples of more dimensions.

    Example:
        >>> from sdekit_diffusion import plot
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> settings = {"save": "all", "return_solution": True}
        >>> solution = sd.sample(law, 20, sde="vp", steps=20, seed=0, **settings)
        >>> ax = plot.trajectories(solution)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['first state', 'last state']
    """
    _, xs = saved_states(solution)
    if xs.shape[2] > 2:
        raise ValueError(
            f"the states have shape {tuple(solution.x.shape[1:])}; trajectories are drawn in one "
            "or two dimensions, images by plot.denoising, one coordinate by sdekit.plot.paths"
        )
    if xs.shape[2] == 1:
        return paths(solution, count=count, ax=ax)
    ax = new_axes(4.5, 4.5)[0] if ax is None else ax
    x = xs[:, :count]
    ax.plot(x[:, :, 0], x[:, :, 1], color="0.6", linewidth=0.6)
    for state, color, label in ((x[0], "C0", "first state"), (x[-1], "C3", "last state")):
        ax.scatter(*state.T, s=9, color=color, linewidths=0, zorder=2, label=label)
    ax.set(xlabel="x[0]", ylabel="x[1]")
    ax.legend()
    return ax


def denoising(
    model: AbstractModel,
    solution: Solution,
    *,
    sde: AbstractDiffusion | str | None = None,
    count: int = 8,
    columns: int = 9,
    black: float = -1.0,
    white: float = 1.0,
    axes: "tuple[Axes, Axes] | None" = None,
) -> "tuple[Axes, Axes]":
    """Plots the trajectories of images from noise to data, and the denoised images D(x_t, t).

    The states x_t / sqrt(alpha^2 + sigma^2) are on the left, the denoised images on the right, with
    a row for each sample, and columns with sigma / alpha as headings.

    Arguments:
        model: the model of the samples.
        solution: the result of `sample(model, ..., save="all", return_solution=True)`, with images
            `(C, H, W)`.
        sde: the diffusion of the samples; the model's own unless given.
        count: the number of samples that are drawn, from the first on.
        columns: the largest number of states per sample, at evenly spaced steps.
        black, white: the values that are drawn black and white.
        axes: two axes to draw on; new ones unless given.

    Raises:
        ImportError: when matplotlib is not installed.
        TypeError: for anything other than a solution.
        ValueError: for a solution without saved states, samples that are not images, or a missing
            diffusion.

    Example:
        >>> from sdekit_diffusion import plot
        >>> digits = sd.data.load("digits")
        >>> model = sd.EmpiricalMixture(digits.scale.encode(digits.train[:100]))
        >>> settings = {"save": "all", "return_solution": True}
        >>> solution = sd.sample(model, 4, sde="vp", steps=8, seed=0, **settings)
        >>> states, images = plot.denoising(model, solution, sde="vp", columns=3)
        >>> states.images[0].get_array().shape
        (35, 26, 3)
    """
    saved_states(solution)
    assert solution.xs is not None
    if solution.x.ndim != 4 or solution.x.shape[1] not in (1, 3):
        raise ValueError(
            f"the states have shape {tuple(solution.x.shape[1:])}; denoising is drawn of images "
            "(C, H, W) with 1 or 3 channels, points by plot.trajectories"
        )
    kernel = model.under(sde)
    columns = min(columns, len(solution.ts))
    chosen = np.linspace(0, len(solution.ts) - 1, columns).round().astype(int)
    shown = min(count, len(solution.x))
    states = []
    denoised = []
    headings = []
    few = model.rows(torch.arange(shown, device=model.place()[1]))
    with torch.no_grad(), evaluating(few, shown):
        for i in chosen:
            t = float(solution.ts[i])
            alpha, sigma = kernel.kernel(t)
            x = solution.xs[i, :shown].to(model.place()[1])
            states.append(x / math.hypot(alpha, sigma))
            denoised.append(few.denoise(t, x, kernel))
            headings.append(ratio(sigma / alpha))
    if axes is None:
        height = 5.5 * shown / columns * solution.x.shape[2] / solution.x.shape[3] + 0.7
        left, right = new_axes(11, height, 2)
        left.set_title(f"states at decreasing {RATIO}", fontsize=9)
        right.set_title("the denoiser's images of these states", fontsize=9)
        for ax in (left, right):
            ax.tick_params(labelsize=7)
    else:
        left, right = axes
    for ax, images in ((left, states), (right, denoised)):
        strip(images, headings, black, white, ax)
    return left, right


def strip(
    images: Sequence[Tensor], headings: Sequence[str], black: float, white: float, ax: "Axes"
) -> "Axes":
    """Columns of images `(rows, C, H, W)` with headings."""
    x = torch.stack(list(images), dim=1).flatten(0, 1)
    return samples(x, columns=len(images), headings=headings, black=black, white=white, ax=ax)


def ratio(value: float) -> str:
    """sigma / alpha with two digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
