"""Plots of measurements on the pages, from the same results as their tables.

A page has a comment `<!-- plotted: NAME -->`, and `registered.py` puts a picture of
`docs/results/NAME.json` in its place when the pages are built: a panel for each value of one key of
the rows, a line for each value of another, both axes logarithmic. `conf.py` has the pictures drawn
to docs/images/measured. A row is a point, or with lists as values a line.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import measured

FOLDER = Path(__file__).parent / "images" / "measured"
PLACE = re.compile(r"^<!-- plotted: (\w+) -->$", re.MULTILINE)
COLUMNS = 3
MARKERS = "osD^v<>P*X"


class Plot(NamedTuple):
    """The keys of panels, lines and both axes, the label of y, and what to look for."""

    panel: str
    line: str
    x: str
    y: str
    label: str
    caption: str


PLOTS = {
    "curves": Plot(
        "case", "solver", "evaluations", "error", "error of paths",
        "Error of paths against evaluations: the lowest line needs the fewest",
    ),
    "mixture": Plot(
        "sde", "method", "evaluations", "worst", "standard errors",
        "Largest difference from the law in standard errors: 95 % of exact samples are below 3.3",
    ),
    "networks": Plot(
        "", "network", "evaluations", "ratio", "error over the best",
        "Error of the default over that of the best of the others: less where below 1",
    ),
    "probability_flow": Plot(
        "diffusion, direction", "solver", "evaluations", "error", "root mean square error",
        "Error against evaluations: the lowest line needs the fewest",
    ),
    "samplers": Plot(
        "problem", "sde", "evaluations", "ratio", "error over the best",
        "Error of the default over that of the best of the others: less where below 1",
    ),
}  # fmt: skip


def completed(text: str) -> str:
    """The text of a page, with its pictures."""
    return PLACE.sub(lambda match: picture(match[1]), text)


def picture(name: str) -> str:
    """A picture in Markdown."""
    return f"![{PLOTS[name].caption}](images/measured/{name}.png)"


def write() -> None:
    """Draws all stored results that have a plot."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, plot in PLOTS.items():
        if name in measured.names():
            drawn(measured.stored(name)["rows"], plot).savefig(FOLDER / f"{name}.png", dpi=130)


def drawn(rows: measured.Rows, plot: Plot) -> Figure:
    """The figure of some rows."""
    panels: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        title = ", ".join(row[key] for key in plot.panel.split(", ") if key)
        points = zip(*(listed(row[key]) for key in (plot.x, plot.y)), strict=True)
        panels.setdefault(title, {}).setdefault(row[plot.line], []).extend(points)
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, (title, curves) in zip(axes, panels.items(), strict=False):
        for marker, (name, points) in zip(MARKERS * len(curves), curves.items(), strict=False):
            ax.loglog(*zip(*points, strict=True), marker=marker, markersize=3, label=name)
        ax.set(title=title, xlabel=plot.x, ylabel=plot.label)
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            if high < 100 * low:
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        ax.legend(fontsize=6, frameon=False)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure


def listed(value: Any) -> list[Any]:  # noqa: ANN401
    """A list as it is, a number as a list."""
    return value if isinstance(value, list) else [value]
