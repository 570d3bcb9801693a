"""Samplers of few steps whose rules have weights of their own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit import AdamsMoulton, NotFiniteError
from sdekit_diffusion._models.recorded import FittedSampler
from sdekit_diffusion._sampling.default import WEIGHTED_RULES
from sdekit_diffusion._sampling.fitted_grid import Solved, least_error, moved
from sdekit_diffusion._sampling.fitted_samplers import grid_of, method_of
from sdekit_diffusion._sampling.given_grids import Given
from sdekit_diffusion._sampling.weight_regression import FittingWeights, Path, Recording

_FITS = 2
_PATH_STEPS = 240
_TRIALS = 16
_PERIOD = 8  # of trials, the derivatives are taken twice


def weighted_samplers(own: Solved, grids: Sequence[Tensor]) -> list[FittedSampler]:
    """Samplers whose weights are fitted to the solutions at the points of some grids: those of
    least mean error at the end, of all integrands and grids, and these with grid and weights fitted
    to the end together; none where the solutions are not finite.
    """
    one_batch = _in_one_batch(own)
    try:
        path = _path(one_batch, grids[0])
    except NotFiniteError:
        return []
    errors = []
    for rule in WEIGHTED_RULES:
        for l in grids:
            try:
                sampler = _along(path, one_batch, rule, l)
                error = _mean_error(sampler, own)
            except NotFiniteError:
                continue
            errors.append((error, len(errors), sampler))
    best = [sampler for _, _, sampler in sorted(errors)[:_FITS]]
    return best + [_fitted(sampler, own) for sampler in best]


def _in_one_batch(own: Solved) -> Solved:
    """The samples of the first batch: the weights of a step are those for all samples together,
    before the next step.
    """
    size = own.options.get("batch_size")
    if size is None or size >= len(own.exact):
        return own
    options = dict(own.options)
    if "x_T" in options:
        options["x_T"] = options["x_T"][:size]
    index = torch.arange(size, device=own.exact.device)
    return Solved(own.model.rows(index), own.exact[:size], options)


def _path(own: Solved, l: Tensor) -> Path:
    """The solutions at equidistant times."""
    method = Recording(AdamsMoulton(2), integrand="velocity")
    times = torch.linspace(float(l[0]), float(l[-1]), _PATH_STEPS + 1, dtype=torch.float64)
    own.samples(method, Given(times))
    return method.paths[0]


def _along(path: Path, own: Solved, rule: str, l: Tensor) -> FittedSampler:
    """The sampler of a grid whose weights are those with which each step is nearest to the
    solutions.
    """
    method = FittingWeights(integrand=WEIGHTED_RULES[rule], path=path)
    own.samples(method, Given(l))
    return FittedSampler(rule, tuple(l.tolist()), tuple(method.fitted))


def _mean_error(fitted: FittedSampler, own: Solved) -> float:
    return float(own.errors(method_of(fitted), grid_of(fitted)).norm(dim=1).mean())


def _fitted(fitted: FittedSampler, own: Solved) -> FittedSampler:
    """The sampler with the grid and the weights of least mean error."""
    steps = len(fitted.weights)
    ends = np.cumsum([len(row) for row in fitted.weights])[:-1]

    def changed(theta: np.ndarray) -> FittedSampler:
        changes = np.split(theta[steps:], ends)
        rows = zip(fitted.weights, changes, strict=True)
        weights = tuple([tuple((np.array(row) + change).tolist()) for row, change in rows])
        grid = moved(grid_of(fitted).l, theta[:steps])
        return fitted._replace(l=tuple(grid.l.tolist()), weights=weights)

    def sampler(theta: np.ndarray) -> tuple[Any, Given]:
        one = changed(theta)
        return method_of(one), grid_of(one)

    size = steps + sum(len(row) for row in fitted.weights)
    settings = {"size": size, "steps": steps, "trials": _TRIALS, "period": _PERIOD}
    return changed(least_error(sampler, own.errors, **settings))
