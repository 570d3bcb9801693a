"""Plots of densities in two dimensions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from sdekit.plot import new_axes
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inference.likelihood import log_likelihood
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RANGE = 10.0  # the range of the colours in nats, down from the largest log p
_SPAN = 4.0  # standard deviations on both sides of the mean


@runtime_checkable
class _Law(Protocol):
    """A model whose density is known."""

    def log_prob(self, x: Tensor) -> Tensor: ...


def density(
    model: AbstractModel,
    *,
    limits: Sequence[tuple[float, float]] | None = None,
    size: int = 60,
    sde: AbstractDiffusion | str | None = None,
    method: AdaptiveFlow = AdaptiveFlow(rtol=1e-3, atol=1e-3),  # noqa: B008 - frozen
    ax: "Axes | None" = None,
) -> "Axes":
    """Plots log p(x) in nats of a model in two dimensions as colours on a grid, down to 10 nats
    below its largest value.

    It is `model.log_prob` where the model has this method, and else `log_likelihood`.

    Arguments:
        model: a model of points `(n, 2)`.
        limits: the smallest and the largest value of both coordinates, a pair for each; four
            standard deviations of the data on both sides of their mean unless given.
        size: the number of points of the grid along each coordinate.
        sde: the diffusion; the model's own unless given. Not needed for exact densities.
        method: the tolerances of `log_likelihood`.
        ax: axes to draw on; new ones unless given.

    Raises:
        ImportError: when matplotlib is not installed.
        ValueError: for a model of another shape, limits that are not two pairs, or no limits for a
            model without `data_std`; and as `log_likelihood`.

    Example:
        >>> from sdekit_diffusion import plot
        >>> law = sd.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
        >>> ax = plot.density(law, limits=[(-2, 2), (-1, 1)], size=11)
        >>> log_p = ax.collections[0].get_array()
        >>> log_p.shape, round(float(log_p.max()), 3)  # -log(2 pi)
        ((11, 11), -1.838)
    """
    if model.shape is not None and tuple(model.shape) != (2,):
        raise ValueError(
            f"the model has samples of shape {tuple(model.shape)}; a density is drawn of two "
            "dimensions, shape (2,)"
        )
    dtype, device = model.place()
    given = torch.as_tensor(_around(model) if limits is None else limits, dtype=torch.float64)
    if tuple(given.shape) != (2, 2) or not bool((given[:, 0] < given[:, 1]).all()):
        raise ValueError(f"limits are pairs (low, high) for both coordinates, not {limits}")
    horizontal, vertical = (
        torch.linspace(low, high, size, dtype=torch.float64) for low, high in given.tolist()
    )
    points = torch.cartesian_prod(horizontal, vertical).to(device, dtype)
    with torch.no_grad():
        log_p = (
            model.log_prob(points)
            if isinstance(model, _Law)
            else log_likelihood(model, points, sde=sde, method=method).value
        )
    shown = log_p.double().cpu().reshape(size, size).T.numpy()
    ax = new_axes(4.8, 4)[0] if ax is None else ax
    highest = float(torch.nan_to_num(log_p.double(), -torch.inf).max())
    mesh = ax.pcolormesh(
        horizontal.numpy(), vertical.numpy(), shown, shading="nearest", rasterized=True,
        cmap="Oranges", vmin=highest - _RANGE, vmax=highest,
    )  # fmt: skip
    ax.figure.colorbar(mesh, ax=ax, label="log p in nats", extend="min")
    ax.set(xlabel="x[0]", ylabel="x[1]")
    return ax


def _around(model: AbstractModel) -> list[list[float]]:
    """Limits around the mean of a model's data.

    Raises:
        ValueError: when the standard deviation of the data is not known.
    """
    if model.data_std is None:
        raise ValueError("the model has no data_std, the scale of its data: give limits=")
    mean = torch.as_tensor(model.data_mean).double().expand(2).tolist()
    return [[m - _SPAN * model.data_std, m + _SPAN * model.data_std] for m in mean]
