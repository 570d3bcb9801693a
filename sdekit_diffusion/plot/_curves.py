"""Curves: the loss of a training run, the coverage of posteriors."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdekit.plot import new_axes
from sdekit_diffusion._training.history import VALIDATION
from sdekit_diffusion._training.log import METRICS
from sdekit_diffusion._training.loop import Record
from sdekit_diffusion.metrics import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = tuple(i / 20 for i in range(1, 20))
_WIDTH = 1.96  # standard errors on both sides, 95 % of a normal law


def loss(run: str | Path | Sequence[Record], *, ax: "Axes | None" = None) -> "Axes":
    """Plots the loss of a training run against the number of updates: the loss of batches, its
    moving mean over a twentieth of the run, and the validation loss where it was measured.

    Arguments:
        run: the folder of a run, with its metrics.jsonl; or the records that `fit` returned, which
            have no validation loss.
        ax: axes to draw on; new ones unless given.

    Raises:
        ImportError: when matplotlib is not installed.
        FileNotFoundError: for a folder without metrics.jsonl.
        TypeError: for anything but a folder or records.
        ValueError: for no records, or a damaged file.

    Example:
        >>> from sdekit_diffusion import plot
        >>> model = sd.ScoreModel(sd.nets.MLP(shape=(2,), width=8), "vp", shape=(2,))
        >>> recipe = sd.Recipe(steps=10, batch_size=8)
        >>> records = sd.fit(model, torch.randn(32, 2), recipe, progress=False)
        >>> ax = plot.loss(records)
        >>> len(ax.lines[0].get_xdata())
        10
    """
    if isinstance(run, str | Path):
        step, values, validation = _read(Path(run) / METRICS)
    else:
        step, values = _numbers(run)
        validation = np.empty((0, 2))
    if not len(step):
        raise ValueError("there are no losses to draw: the run has no records")
    ax = new_axes(6, 3)[0] if ax is None else ax
    width = max(1, len(values) // 20)
    kernel = np.ones(width)
    smooth = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(step)), kernel, "same")
    (line,) = ax.plot(step, values, alpha=0.25, linewidth=0.7, label="batches")
    ax.plot(step, smooth, color=line.get_color(), linewidth=1.6, label="moving mean")
    if len(validation):
        ax.plot(*validation.T, "o-", color="C3", markersize=3, linewidth=1, label="validation")
    ax.set(yscale="log", xlim=(0, step[-1]), xlabel="update", ylabel="loss")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:.2g}")
    ax.legend()
    return ax


def _numbers(records: Sequence[Record]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The updates of records, and their losses.

    Raises:
        TypeError: for anything but records.
    """
    try:
        step, values = (np.array([float(record[i]) for record in records]) for i in (0, 1))
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise TypeError(
            "give the folder of a run, or the records that fit returned, each with the number of "
            f"an update and its loss; not {records!r:.60}"
        ) from error
    return step, values


def _read(
    path: Path,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The updates in a metrics.jsonl, their losses, and pairs of an update and a validation loss.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give the folder of a run, fit(..., folder=), or its records"
        )
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        step, values = (
            np.array([line[key] for line in lines], dtype=float) for key in ("step", "loss")
        )
        pairs = [(line["step"], line[VALIDATION]) for line in lines if VALIDATION in line]
        return step, values, np.array(pairs, dtype=float).reshape(-1, 2)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); remove it to have a report without a loss curve"
        ) from error


def calibration(
    result: Calibration | Mapping[str, Calibration],
    *,
    levels: Sequence[float] = _LEVELS,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plots the empirical coverage of credible regions against their credibility, with a band of
    its sampling error.

    Exact posteriors are on the diagonal, too narrow ones below it, and too wide ones above it. The
    band is the coverage +- 1.96 standard errors, see `Calibration.coverage`. For exact posteriors
    it contains the diagonal at each level with a probability of about 95 %.

    Arguments:
        result: the result of `metrics.sbc` or `metrics.tarp`; or several by name, for a legend.
        levels: the credibilities, between 0 and 1.
        ax: axes to draw on; new ones unless given.

    Raises:
        ImportError: when matplotlib is not installed.
        TypeError: for anything other than a `Calibration`.
        ValueError: for levels that are not between 0 and 1.

    Example:
        >>> from sdekit_diffusion import plot
        >>> law = sd.GaussianMixture([1.0], [[0.0]], [1.0])
        >>> x, truth = law.sample(100 * 50, seed=0).reshape(100, 50, 1), law.sample(100, seed=1)
        >>> narrow, exact = sd.metrics.sbc(0.5 * x, truth), sd.metrics.sbc(x, truth)
        >>> ax = plot.calibration({"exact": exact, "too narrow": narrow})
        >>> len(ax.collections)  # bands
        2
    """
    curves = result if isinstance(result, Mapping) else {"": result}
    for value in curves.values():
        if not isinstance(value, Calibration):
            raise TypeError(
                "give what metrics.sbc or metrics.tarp return, a Calibration, or several by name; "
                f"not {type(value).__name__}"
            )
    if not len(levels) or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels are credibilities between 0 and 1, not {levels}")
    ax = new_axes(4.5, 4.5)[0] if ax is None else ax
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    for name, value in curves.items():
        share, stderr = np.array(list(value.coverage(levels).values())).T
        (line,) = ax.plot(levels, share, "o-", markersize=3, linewidth=1, label=name)
        low, high = (np.clip(share + s * _WIDTH * stderr, 0, 1) for s in (-1, 1))
        ax.fill_between(levels, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
        xlabel="nominal coverage", ylabel="empirical coverage",
    )  # fmt: skip
    if isinstance(result, Mapping):
        ax.legend()
    return ax
