"""The pictures of docs/editing.md: docs/images/sdedit.png, inpainting.png and encoded.png.

The model of the digits is a Gaussian of standard deviation 0.15 around each of 1,700 images of
scikit-learn's digits, whose score is known exactly: nothing is trained. Images that are edited are
not among them. `python benchmarks/editing_pictures.py`, half a minute.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

import sdekit_diffusion as sd

IMAGES = Path(__file__).parent.parent / "docs" / "images"
DRAWN = (  # by hand: a ring, a bar, a seven and a vee
    (
        "........",
        "..####..",
        "..#..#..",
        "..#..#..",
        "..#..#..",
        "..#..#..",
        "..####..",
        "........",
    ),
    (
        "...##...",
        "...##...",
        "...##...",
        "...##...",
        "...##...",
        "...##...",
        "...##...",
        "...##...",
    ),
    (
        ".######.",
        ".######.",
        ".....##.",
        "....##..",
        "...##...",
        "...##...",
        "..##....",
        "..##....",
    ),
    (
        "........",
        "..#..#..",
        "..#..#..",
        "..####..",
        "....##..",
        "....##..",
        "....##..",
        "........",
    ),
)


def digits() -> tuple[Tensor, Tensor]:
    """Images in [-1, 1], `(1700, 1, 8, 8)` for the model and `(97, 1, 8, 8)` others."""
    images = torch.from_numpy(load_digits(return_X_y=True)[0]).float().reshape(-1, 1, 8, 8) / 8 - 1
    return images[:1700], images[1700:]


def gallery(rows: Sequence[Tensor], titles: Sequence[str], name: str, heads: Sequence[str]) -> None:
    """Rows of images of 8 x 8, with a title on the left of each and heads above columns."""
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(0.62 * columns + 1.6, 0.66 * len(rows) + 0.4), layout="constrained")
    grid: list[list[Axes]] = figure.subplots(len(rows), columns, squeeze=False).tolist()
    for row, title, line in zip(rows, titles, grid, strict=True):
        for i, axes in enumerate(line):
            axes.axis("off")
            if i < len(row):
                axes.imshow(row[i, 0].clamp(-1, 1), cmap="gray_r", vmin=-1, vmax=1)
        line[0].text(-0.3, 0.5, title, transform=line[0].transAxes, ha="right", va="center")
    for axes, head in zip(grid[0], heads, strict=False):
        axes.set_title(head, fontsize=9)
    figure.savefig(IMAGES / name, dpi=90)


def sdedit(model: sd.AbstractModel) -> None:
    """Drawings, and what three seeds make of them at each level."""
    drawn = [[[2.0 * (c == "#") - 1 for c in line] for line in image] for image in DRAWN]
    x = torch.tensor(drawn)[:, None]
    rows = [x.repeat_interleave(3, 0)]
    titles = ["drawing"]
    for level in (0.5, 1.0, 2.0, 4.0):
        start = sd.Noised(x.repeat_interleave(3, 0), level=level)
        rows.append(sd.sample(model, sde="vp", method="sde", start=start, seed=1, denoise=True))
        titles.append(f"level {level:g}")
    gallery(rows, titles, "sdedit.png", ())


def inpainting(model: sd.AbstractModel, held_out: Tensor) -> None:
    """Upper halves of images, and lower halves that go with them."""
    x = held_out[[3, 11, 15, 26, 31, 40]]
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    known = torch.where(mask, x, 0.0)
    rows = [x, known]
    settings: dict[str, Any] = {"sde": "vp", "seed": 2, "denoise": True}
    rows.append(sd.sample(sd.Inpainted(model, x, mask), 6, method="sde", **settings))
    for resamplings in (1, 10):
        method = sd.RePaint(x, mask, resamplings=resamplings)
        rows.append(sd.sample(model, 6, method=method, **settings))
    titles = ["image", "known", "Inpainted", "RePaint, 1", "RePaint, 10"]
    gallery(rows, titles, "inpainting.png", ())


def encoded() -> None:
    """Two-dimensional data, their latents turned by 60 degrees, and the data that these encode."""
    angle = torch.arange(6) * math.pi / 3
    means = torch.stack([angle.cos(), angle.sin()], 1)
    law = sd.GaussianMixture(torch.full((6,), 1 / 6), means, torch.full((6,), 0.01))
    x = law.sample(600, seed=0)
    x_T = sd.encode(law, x, sde="vp")
    turn = torch.tensor([[0.5, 0.75**0.5], [-(0.75**0.5), 0.5]])
    edited = sd.decode(law, x_T @ turn, sde="vp")
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = zip(
        (x, x_T @ turn, edited), ("data", "latents, turned by 60°", "decoded"), strict=True
    )
    colours = torch.atan2(x[:, 1], x[:, 0])
    for axes, (points, title) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.scatter(*points.T, c=colours, cmap="hsv", s=4)
        axes.set_aspect("equal")
        axes.set_title(title)
    figure.savefig(IMAGES / "encoded.png", dpi=90)


def main() -> None:
    train, held_out = digits()
    model = sd.EmpiricalMixture(train, 0.15)
    sdedit(model)
    inpainting(model, held_out)
    encoded()


if __name__ == "__main__":
    main()
