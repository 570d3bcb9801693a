"""Samplers of few steps that are fitted to a network and stored with it."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sdekit import NotFiniteError
from sdekit_diffusion._arguments.inputs import require_counts
from sdekit_diffusion._models.derived import innermost
from sdekit_diffusion._models.guidance import Guided
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.recorded import FittedSampler
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._sampling.default import FITTED_RULES
from sdekit_diffusion._sampling.fitted_grid import (
    FEW_STEPS,
    Errors,
    fitted_from,
    solved,
)
from sdekit_diffusion._sampling.fitted_samplers import grid_of, guidance_of, method_of
from sdekit_diffusion._sampling.fitted_weights import weighted_samplers
from sdekit_diffusion._sampling.given_grids import Given
from sdekit_diffusion._sampling.grid import DEFAULT_END
from sdekit_diffusion._sampling.on_clock import OnClock
from sdekit_diffusion._sampling.sample import sample

_GRIDS = ("focused", "quadratic", "time", "karras", "log_snr")  # the first is the default's
_FITS = 3


def fit_sampler(
    model: ScoreModel | Guided,
    steps: int | Iterable[int] = (5, 6, 8, 10),
    *,
    n: int = 128,
    end: float = DEFAULT_END,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> dict[int, float]:
    """Fits the default sampler to a network: for each number of steps the multistep rule and the
    grid that have the least mean error, |x - x_exact|, for n samples. x_exact is the solution of
    the probability flow from the same x_T.

    Fourteen rules are tried on five grids, and the grids of the best three pairs are fitted, as by
    `fitted_grid`. Up to ten steps there are also rules with weights of their own,

        y_{n+1} = y_n + A_n sum_j w_nj F_{n-j},  j = 0, ..., 3,

    with y the state in the variables of `OnClock`, F the data, the noise or the velocity, and A_n
    what the clock advances in the step. On each of these grids the weights are first those of least
    squares with which each step follows x_exact; then grid and weights of the best two are fitted
    together to the ends.

    Of all these samplers the one with the least mean error for n other samples is recorded with the
    network, in `ScoreModel.samplers`, if that is below the mean error of the default by more than
    two standard errors of the difference. Solutions far from the data are left out, as by
    `fitted_grid`. With a `batch_size` the weights that follow x_exact are those of the first batch.

    Afterwards `sample` by the default with this number of steps, from the same noise to the same
    end in units of `data_std`, and with no grid, takes it for the guidance that it was fitted for:
    none, that of the network with conditions, or that of `Guided` with this scale. `save` stores
    it; `fit` and `Training` remove it. After a training loop of your own fit again, or set
    `model.samplers = {}`.

    A fit takes about 38 (N + 7) n samples of N steps, or 6 (N + 23) n where N is above 10, and once
    2 n accurate solutions. It needs as much memory as some 25 N n samples in float64 and 240 n in
    their dtype, or 5 N n where N is above 10.

    Arguments:
        model: a network, without conditions or with those of n samples, which represent those that
            will be sampled; or `Guided` of it.
        steps: the number of steps, or several.
        n: the number of samples of a fit, and of those of the comparison; 2 or more, and many under
            strong guidance, where errors of a few samples are far larger than those of the others.
        end, seed, batch_size: as in `sample`.
        progress: show a progress bar.

    Returns:
        for each number of steps the mean error over that of the default, on the other samples; 1
        where nothing was recorded. Since one of ten was chosen by these samples, new ones have a
        somewhat larger ratio, above all if n is small.

    Raises:
        TypeError: for other models, also for `Guided` by another model, in an interval or rescaled;
            `fitted_grid` fits their grids. Also for numbers of steps or of samples that are not
            whole, or no number of steps.
        ValueError: for numbers of steps that are not positive, fewer than two samples, or a
            student, which was trained at a few noise levels only.
        sdekit.NotFiniteError, sdekit.UnfinishedError: as `sample`.

    Example:
        >>> net = sd.nets.MLP(shape=(2,), width=8)
        >>> model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), data_std=1.0)
        >>> ratios = sd.fit_sampler(model, [2], n=16)  # after training
        >>> ratios[2] <= 1
        True

    References:
        Sabour, Fidler and Kreis 2024, arXiv 2404.14507, for levels that are optimised for a model;
        Tong et al. 2024, arXiv 2405.15506, for solutions of the flow as what to optimise for; Shaul
        et al. 2024, arXiv 2403.01329, and Frankel et al. 2025, arXiv 2502.17423, for weights of
        each step.
    """
    counts = list(dict.fromkeys(steps)) if isinstance(steps, Iterable) else [steps]
    require_counts(n=n)
    for count in counts or [steps]:
        require_counts(steps=count)
    if n == 1:
        raise ValueError("n must be 2 or more: one sample has no standard error")
    network, guidance = _network_of(model)
    options: dict[str, Any] = {"end": end, "seed": seed, "batch_size": batch_size}
    ratios = {}
    solves = 0
    total = sum(map(_solves, counts))
    with tqdm(total=total, unit="solve", desc="fitting", disable=not progress) as bar:
        own = solved(model, n, 0, options, bar.update)
        others = solved(model, n, n, options).errors
        for count in counts:
            starts = [_points(model, n, count, grid, options) for grid in _GRIDS]
            candidates = _candidates(starts, own.errors)
            if count <= FEW_STEPS:
                grids = [grid_of(one).l for one in candidates[_FITS:]]
                candidates += weighted_samplers(own, [*starts, *grids])
            fitted = min(candidates, key=lambda one: float(_errors(one, others).mean()))
            before = _norms("default", Given(starts[0]), others)
            after = _errors(fitted, others)
            better = _is_less(after, before)
            kept = {key: one for key, one in network.samplers.items() if key != (guidance, count)}
            network.samplers = kept | ({(guidance, count): fitted} if better else {})
            ratios[count] = float(after.mean() / before.mean()) if better else 1.0
            solves += _solves(count)
            bar.update(solves - bar.n)  # a fit may end before the last trial
    return ratios


def _network_of(model: AbstractModel) -> tuple[ScoreModel, float]:
    """The network that a sampler is fitted to, and its guidance.

    Raises:
        TypeError: for other models.
        ValueError: for students.
    """
    network = innermost(model)
    guidance = guidance_of(model)
    if not isinstance(network, ScoreModel) or guidance is None:
        raise TypeError(
            "a sampler is fitted to a ScoreModel, with conditions or without, or to Guided of one "
            "whose reference is the same network without conditions, with interval=None and "
            f"rescale=0, not to this {type(model).__name__}: pass what fitted_grid(model, steps) "
            "returns as grid="
        )
    if network.trained_levels:
        raise ValueError(
            "this model was trained at a few noise levels only, where the flow cannot be solved: "
            "fit a sampler to its teacher"
        )
    return network, guidance


def _solves(steps: int) -> int:
    """About how often n samples are solved in a fit."""
    return 38 * (steps + 7) if steps <= FEW_STEPS else 6 * (steps + 23)


def _is_less(after: Tensor, before: Tensor) -> bool:
    """Whether errors are less than others of the same samples, by two standard errors or more."""
    if not bool(after.isfinite().all()) or len(after) == 1:
        return False
    if not bool(before.isfinite().all()):
        return True
    gain = before - after
    return bool(gain.mean() > 2 * gain.std() / math.sqrt(len(gain)))


def _points(model: AbstractModel, n: int, steps: int, grid: str, options: dict[str, Any]) -> Tensor:
    """log(alpha / sigma) at the points of a grid with the default method."""
    settings = {**options, "save": "all", "return_solution": True}
    solution = sample(model, n, steps=steps, grid=grid, **settings)
    return torch.as_tensor(model.under(None).log_snr(solution.ts))


def _candidates(starts: list[Tensor], errors: Errors) -> list[FittedSampler]:
    """The rules and grids of least mean error, of all rules on all grids, and after these
    themselves with their grids fitted.
    """
    pairs = [FittedSampler(rule, tuple(l.tolist())) for rule in FITTED_RULES for l in starts]
    pairs.sort(key=lambda pair: float(_errors(pair, errors).mean()))
    candidates = pairs[:_FITS]
    for pair in pairs[:_FITS]:
        try:
            grid = fitted_from(grid_of(pair).l, method_of(pair), errors)
        except NotFiniteError:
            continue
        candidates.append(pair._replace(l=tuple(grid.l.tolist())))
    return candidates


def _errors(fitted: FittedSampler, errors: Errors) -> Tensor:
    return _norms(method_of(fitted), grid_of(fitted), errors)


def _norms(method: OnClock | str, grid: Given, errors: Errors) -> Tensor:
    """The norms of the errors of samples; infinite where states are not finite."""
    try:
        return errors(method, grid).norm(dim=1)
    except NotFiniteError:
        return torch.tensor([math.inf])
