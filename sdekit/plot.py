"""Pictures of solves with matplotlib, which is imported when a function is called: `from sdekit
import plot`.

Example:
    >>> from sdekit import plot
    >>> ax = plot.convergence([0.1, 0.05], [0.02, 0.005], label="Heun")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['Heun: slope 2.00']
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sdekit._grid import require_integer
from sdekit._solve.solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["convergence", "new_axes", "paths", "saved_states"]


def new_axes(width: float = 5.5, height: float = 3.5, columns: int = 1) -> "list[Axes]":
    """Axes side by side in a new figure of pyplot, which is `width` by `height` inches; a list of
    `columns` axes.

    Raises:
        ImportError: when matplotlib is not installed.

    Example:
        >>> from sdekit import plot
        >>> len(plot.new_axes(columns=2))
        2
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'sdekit[plot]'") from error
    figure = plt.figure(figsize=(width, height), layout="constrained")
    return list(figure.subplots(1, columns, squeeze=False)[0])


def saved_states(solution: Solution) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The times `(times,)` and the states `(times, batch, d)` that a solve has kept, as float64
    arrays; the state of a sample is flattened to d numbers.

    Raises:
        TypeError: for something other than a solution.
        ValueError: when it has kept no states, or some are not finite.

    Example:
        >>> from sdekit import plot
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 4)
        >>> solution = sdekit.solve(ode, torch.ones(2, 3), ts, solver=sdekit.RK4(), save="all")
        >>> plot.saved_states(solution)[1].shape
        (5, 2, 3)
    """
    if not isinstance(solution, Solution):
        raise TypeError(
            f"give the solution of a solve, not {type(solution).__name__}: that of sdekit.solve, "
            "or of sd.sample(..., return_solution=True)"
        )
    if solution.xs is None:
        raise ValueError(
            'the solution has no states between its ends: solve with save="all", or with times as '
            "save="
        )
    states = solution.xs.detach().double().cpu()
    xs = states.reshape(*states.shape[:2], math.prod(states.shape[2:])).numpy()
    if not np.isfinite(xs).all():
        raise ValueError(
            "the solution has states that are not finite; leave out those samples, see its status"
        )
    return solution.ts.detach().double().cpu().numpy(), xs


def paths(
    solution: Solution,
    *,
    coordinate: int = 0,
    count: int = 50,
    mean: bool = False,
    band: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The states of a solve against time.

    Arguments:
        solution: a solution with states, from `solve(..., save="all")` or with times as `save=`.
        coordinate: which of the d numbers of a state is drawn.
        count: how many samples are drawn, one line each, from the first on; 0 for none.
        mean: whether to draw the mean of all samples at each time.
        band: a share of the samples, such as 0.9: draws the central interval that contains this
            share of all samples at each time; None for none.
        ax: axes to draw on; new ones unless given.

    Returns:
        the axes.

    Raises:
        ImportError: when matplotlib is not installed.
        TypeError: for something other than a solution, or a coordinate or a count that is not an
            integer.
        ValueError: for a solution without states, a coordinate that the states do not have, a
            negative count, a share that is not between 0 and 1, or the mean or a share of no
            samples.

    Example:
        >>> from sdekit import plot
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
        >>> ts = sdekit.uniform(0.0, 1.0, 20)
        >>> solution = sdekit.solve(
        ...     sde, torch.zeros(100, 1), ts, solver=sdekit.Heun(), save="all"
        ... )
        >>> ax = plot.paths(solution, count=10, mean=True, band=0.9)
        >>> len(ax.lines), ax.get_xlabel()
        (11, 'time')
    """
    ts, xs = saved_states(solution)
    size = xs.shape[2]
    coordinate = require_integer("coordinate", coordinate)
    count = require_integer("count, a number of samples,", count)
    if count < 0:
        raise ValueError(f"count is a number of samples from 0 on, not {count}")
    if not xs.shape[1] and (mean or band is not None):
        raise ValueError("the solution has no samples, of which to draw the mean or a share")
    if not -size <= coordinate < size:
        raise ValueError(f"coordinate {coordinate} is not one of the {size} numbers of a state")
    if band is not None and not 0 < band < 1:
        raise ValueError(f"band is a share of the samples between 0 and 1, not {band}")
    x = xs[:, :, coordinate]
    ax = new_axes()[0] if ax is None else ax
    drawn = x[:, :count]
    ax.plot(ts, drawn, color="C0", linewidth=0.7, alpha=1.0 if drawn.shape[1] <= 5 else 0.5)
    if band is not None:
        low, high = np.quantile(x, [(1 - band) / 2, (1 + band) / 2], axis=1)
        label = f"{100 * band:g} % of the samples"
        ax.fill_between(ts, low, high, color="C1", alpha=0.25, linewidth=0, label=label)
    if mean:
        ax.plot(ts, x.mean(axis=1), color="C1", linewidth=1.8, label="mean")
    if mean or band is not None:
        ax.legend()
    ax.set(xlabel="time", ylabel="x" if size == 1 else f"x[{coordinate}]")
    return ax


def convergence(
    steps: ArrayLike,
    errors: ArrayLike,
    *,
    label: str = "error",
    order: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Errors against step sizes, on logarithmic axes, with a line and its slope.

    The slope p is that of the least-squares line log(error) = p log(step) + c, an estimate of the
    order of convergence. Call the function again with the same axes for the next solver.

    Arguments:
        steps: the step sizes, positive, at least two different ones.
        errors: the error for each of them, positive.
        label: the name in the legend, followed there by the slope.
        order: the slope of the line that is drawn through the mean of the points, such as the
            expected order; the fitted slope unless given.
        ax: axes to draw on; new ones unless given.

    Returns:
        the axes.

    Raises:
        ImportError: when matplotlib is not installed.
        ValueError: for other numbers of errors than of steps, fewer than two different steps, or
            numbers that are not positive and finite; for an order that is not finite.

    Example:
        >>> from sdekit import plot
        >>> ode, x0 = sdekit.ODE(lambda t, x: -x), torch.ones(1, 1).double()
        >>> counts = [8, 16, 32]
        >>> ends = [
        ...     sdekit.solve(ode, x0, sdekit.uniform(0.0, 1.0, k), solver=sdekit.Heun()).x
        ...     for k in counts
        ... ]
        >>> errors = [float((x - x0.neg().exp()).abs()) for x in ends]
        >>> ax = plot.convergence([1 / k for k in counts], errors, label="Heun", order=2)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['Heun: slope 2.05 (line: 2)']
    """
    h = _numbers(steps)
    e = _numbers(errors)
    if h.ndim != 1 or h.shape != e.shape or len(np.unique(h)) < 2:
        raise ValueError(
            f"steps have shape {h.shape} and errors {e.shape}; give an error for each of two or "
            "more different steps"
        )
    if not all((np.isfinite(values) & (values > 0)).all() for values in (h, e)):
        raise ValueError("steps and errors are drawn by their logarithms: give positive numbers")
    if order is not None and not math.isfinite(order):
        raise ValueError(f"order is the slope of a line, a finite number, not {order}")
    x = np.log(h)
    y = np.log(e)
    slope = float(np.polyfit(x - x.mean(), y, 1)[0])
    ax = new_axes(5.5, 4)[0] if ax is None else ax
    from matplotlib.ticker import LogLocator, NullFormatter

    (points,) = ax.loglog(h, e, "o", markersize=4)
    drawn = slope if order is None else order
    name = f"{label}: slope {slope:.2f}" + ("" if order is None else f" (line: {order:g})")
    ends = np.array([h.min(), h.max()])
    line = np.exp(y.mean() + drawn * (np.log(ends) - x.mean()))
    ax.loglog(ends, line, color=points.get_color(), linewidth=0.8, label=name)
    ax.set(xlabel="step", ylabel="error")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize="small")
    return ax


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    """Numbers as an array, without the gradients that tensors of them may have."""
    if isinstance(values, list | tuple):
        return np.array([_numbers(value) for value in values], dtype=np.float64)
    plain = values.detach().cpu() if isinstance(values, torch.Tensor) else values
    return np.asarray(plain, dtype=np.float64)
