"""Grids that are fitted to a model."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit import AbstractSolver, NotFiniteError
from sdekit.calling import warn_caller
from sdekit_diffusion._arguments.inputs import require_counts
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.data_scale import data_scale
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._sampling.fitted_samplers import is_default
from sdekit_diffusion._sampling.given_grids import Given
from sdekit_diffusion._sampling.grid import DEFAULT_END, AbstractGrid
from sdekit_diffusion._sampling.least_squares import least_squares
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.methods import method_of
from sdekit_diffusion._sampling.sample import sample

Method = AbstractMethod | AbstractSolver | str
# A function from a method and a grid to errors, one row per sample: the difference of x at the end
# from the exact solution, divided by the square root of the number of coordinates.
Errors = Callable[[Method, AbstractGrid], Tensor]

_TOLERANCE = 1e-6  # of the exact solutions
_FAR = 10.0  # over the median distance from the mean of the data, of solutions to fit to
_LARGEST = 4.0  # |theta|
FEW_STEPS = 10  # up to here the derivatives, which cost a solve a step, are taken more often


def fitted_grid(
    model: AbstractModel,
    steps: int,
    *,
    n: int = 128,
    sde: AbstractDiffusion | str | None = None,
    method: Method = "default",
    end: float = DEFAULT_END,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    batch_size: int | None = None,
) -> Given:
    """The grid of a number of steps on which a method has the least mean error for a model.

    The steps of l = log(alpha / sigma) are those of the method's own grid times exp(theta_i), and
    divided by a common factor so that the ends stay. Levenberg and Marquardt's method minimises
    over theta

        E = 1/n sum_j |x_N^j - x^j|,

    where x_N^j are n samples of the method on the grid, and x^j are the solutions of the
    probability flow from the same x_T, as "ode" has them. On n other samples the result is compared
    with the method's own grid, which is returned where it is the more accurate one. Solutions far
    from the data are left out, with a warning: the flow of a network may leave them under strong
    guidance.

    This takes about 6 (N + 5) n samples of N steps, once for each model, method and N, or
    2 (N + 12) n where N is above 10; and as much memory as some 5 N n samples in float64. Store
    `grid.l` with the model, as in `save(model, folder, {"l": grid.l.tolist()})`; for networks
    `fit_sampler` fits the rule too, and stores both.

    Arguments:
        model: the model; with conditions per sample these are of n samples.
        steps: the number of steps N.
        n: the number of samples, and of those of the comparison.
        method: a method without noise that has a grid.
        sde, end, seed, shape, batch_size: as in `sample`.

    Raises:
        TypeError, ValueError: as `sample`; also for a number of samples or steps that is not a
            positive integer, and a method with noise or without a grid.
        sdekit.NotFiniteError, sdekit.UnfinishedError: as `sample`.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> grid = sd.fitted_grid(model, 2, n=16, sde="vp")
        >>> sd.sample(model, 4, sde="vp", grid=grid, seed=0).shape
        torch.Size([4, 1])

    References:
        Sabour, Fidler and Kreis 2024, arXiv 2404.14507, for levels that are optimised for a model;
        Tong et al. 2024, arXiv 2405.15506, for solutions of the flow as what to optimise for.
    """
    require_counts(n=n, steps=steps)
    model, diffusion = as_model(model, sde, shape)
    options: dict[str, Any] = {"sde": diffusion, "end": end, "seed": seed, "shape": shape}
    options |= {"batch_size": batch_size}
    l = _own_points(model, n, steps, method, options)
    fitted = fitted_from(l, method, solved(model, n, 0, options).errors)
    errors = solved(model, n, n, options).errors
    return min(Given(l), fitted, key=lambda grid: float(errors(method, grid).norm(dim=1).mean()))


class Solved(NamedTuple):
    """Samples of a model with their exact solutions of the probability flow; `options` are those of
    `sample`, and `report` is called after each solve.
    """

    model: AbstractModel
    exact: Tensor
    options: dict[str, Any]
    report: Callable[[], object] = lambda: None

    def samples(self, method: Method, grid: AbstractGrid) -> Tensor:
        """x at the end by a method, from the same x_T."""
        try:
            return sample(self.model, len(self.exact), method=method, grid=grid, **self.options)
        finally:
            self.report()

    def errors(self, method: Method, grid: AbstractGrid) -> Tensor:
        """See `Errors`."""
        exact = self.exact
        x = self.samples(method, grid)
        return (x - exact).double().reshape(len(x), -1).cpu() / math.sqrt(exact[0].numel())


def solved(
    model: AbstractModel,
    n: int,
    first: int,
    options: dict[str, Any],
    report: Callable[[], object] = lambda: None,
) -> Solved:
    """n samples of a model, from the first on, but those whose exact solution is far from the
    data; `options` and `report` are those of `Solved`.
    """
    options = options | {"first": first}
    exact = sample(model, n, method=AdaptiveFlow(_TOLERANCE, _TOLERANCE), **options)
    near = _near_data(model, exact, options.get("sde"))
    if not bool(near.all()):
        solution = sample(model, n, steps=1, save="all", return_solution=True, **options)
        assert solution.xs is not None
        index = near.nonzero().flatten().to(exact.device)
        options["x_T"] = solution.xs[0][index]
        model = model.rows(index)
        exact = exact[index]
    return Solved(model, exact, options, report)


def _near_data(model: AbstractModel, exact: Tensor, sde: AbstractDiffusion | None = None) -> Tensor:
    """Which solutions are near the data. The others may be far because the flow of a network leaves
    the data, and one of a thousand would decide the mean error. At least half are near by
    definition, also if an observation is far from the data.
    """
    scale = data_scale(model, tuple(exact.shape[1:]), sde)
    x = exact.double().cpu() - torch.as_tensor(scale.mean).double().cpu()
    distance = x.reshape(len(x), -1).square().mean(dim=1).sqrt() / scale.std
    near = distance <= _FAR * distance.median().clamp(min=1.0)
    if not bool(near.all()):
        warn_caller(
            f"{int((~near).sum())} of {len(near)} solutions of the probability flow are left out "
            f"of the fit: they end up to {float(distance.max()):.3g} standard deviations of the "
            f"data from their mean, where the median is {float(distance.median()):.3g}; if the "
            "data do not reach as far, train the model longer, or choose less guidance",
        )
    return near


def _own_points(
    model: AbstractModel,
    n: int,
    steps: int,
    method: Method,
    options: dict[str, Any],
) -> Tensor:
    """log(alpha / sigma) at the points of a method's own grid; `options` has the diffusion.

    Raises:
        ValueError: for a method with noise.
    """
    drawn: dict[str, Any] = {**options, "method": method, "steps": steps}
    if is_default(method_of(method)):
        drawn["grid"] = "focused"  # not that of a sampler that was fitted before
    solution = sample(model, n, save="all", return_solution=True, **drawn)
    assert solution.xs is not None
    drawn["x_T"] = solution.xs[0]
    ends = []
    for seed in (0, 1):
        drawn["seed"] = seed
        ends.append(sample(model, n, **drawn))
    if not torch.equal(*ends):
        raise ValueError(
            "grids are fitted to solutions of the probability flow, and this method has noise: "
            "choose one without, such as 'default'"
        )
    return torch.as_tensor(options["sde"].log_snr(solution.ts))


def moved(l: Tensor, theta: np.ndarray) -> Given:
    """The grid whose steps are those between the points l times exp(theta_i), and divided by a
    common factor so that the ends stay.
    """
    w = l.diff().numpy() * np.exp(theta)
    inner = l[0] + (l[-1] - l[0]) * torch.from_numpy(np.cumsum(w)[:-1] / w.sum())
    return Given(torch.cat([l[:1], inner, l[-1:]]))


def fitted_from(l: Tensor, method: Method, errors: Errors) -> Given:
    """The grid of least mean error of a method, from the points l on."""
    steps = len(l) - 1
    few = steps <= FEW_STEPS
    theta = least_error(
        lambda theta: (method, moved(l, theta)),
        errors,
        size=steps,
        steps=steps,
        trials=24 if few else 18,
        period=4 if few else 9,
    )
    return moved(l, theta)


def least_error(
    sampler: Callable[[np.ndarray], tuple[Method, AbstractGrid]],
    errors: Errors,
    *,
    size: int,
    steps: int,
    trials: int,
    period: int,
) -> np.ndarray:
    """The parameters of least mean error of a sampler, from 0 on, by weighted least squares.

    Arguments:
        sampler: the method and the grid for `(size,)` parameters, of which the first, as many as
            there are steps, are those of `moved`.
        trials, period: as in `least_squares`.
    """

    def residuals(theta: np.ndarray) -> np.ndarray:
        """Numbers whose sum of squares, which `least_squares` minimises, is the sum of the norms
        of the errors.
        """
        e = errors(*sampler(theta))
        roots = e.norm(dim=1, keepdim=True).clamp(min=1e-12).sqrt()
        return (e / roots).flatten().numpy()

    start = np.zeros(size)
    value = residuals(start)

    def tried(theta: np.ndarray) -> np.ndarray:
        """The residuals; infinite, which is never the least, where states are not finite."""
        try:
            return residuals(theta)
        except NotFiniteError:
            return np.full_like(value, np.inf)

    settings: dict[str, Any] = {"trials": trials, "period": period, "largest": _LARGEST}
    return least_squares(tried, start, value, alike=steps, **settings)
