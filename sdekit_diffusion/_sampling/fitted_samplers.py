"""The samplers that `fit_sampler` has recorded with a network, and what they are for."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from sdekit_diffusion._models.derived import innermost
from sdekit_diffusion._models.guidance import Guided
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.recorded import FittedSampler
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.default import FITTED_RULES, WEIGHTED_RULES
from sdekit_diffusion._sampling.given_grids import Given
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.on_clock import DefaultGrid, OnClock
from sdekit_diffusion._sampling.weighted_rule import WeightedRule

_TOLERANCE = 1e-3  # of l at the ends


def fitted_sampler(
    method: AbstractMethod, model: AbstractModel, coordinates: Coordinates, span: Span
) -> AbstractMethod:
    """The rule and grid that were fitted to the network of a model for its guidance, the number of
    steps and this span of l, in place of the default; the method itself if there are none, and
    every other method.

    Raises:
        ValueError: for a rule that this version does not have.
    """
    samplers = getattr(innermost(model), "samplers", None)
    if not samplers or not is_default(method):
        return method
    fitted = samplers.get((guidance_of(model), method.steps))
    if fitted is None:
        return method
    shift = math.log(coordinates.std)
    ends = (fitted.l[0] + shift, fitted.l[-1] + shift)
    if max(abs(ends[0] - span[0]), abs(ends[1] - span[1])) > _TOLERANCE:
        return method
    return replace(method_of(fitted), steps=method.steps, grid=grid_of(fitted))


def method_of(fitted: FittedSampler) -> OnClock:
    """The rule of a fitted sampler.

    Raises:
        ValueError: for a rule that this version does not have, or weights that are not valid.
    """
    if fitted.rule in FITTED_RULES and not fitted.weights:
        integrand, rule = FITTED_RULES[fitted.rule]
        return OnClock(rule, integrand=integrand)
    advice = "fit it again with fit_sampler, or set model.samplers = {}"
    if fitted.rule not in WEIGHTED_RULES:
        raise ValueError(
            f"the sampler fitted to this model has a rule {fitted.rule!r}"
            f"{' with weights of its own' if fitted.weights else ''}, which this version does not "
            f"know: {advice}"
        )
    if len(fitted.weights) != len(fitted.l) - 1:
        raise ValueError(
            f"the sampler fitted to this model has {len(fitted.l) - 1} steps, and weights for "
            f"{len(fitted.weights)}: {advice}"
        )
    try:
        rule = WeightedRule(fitted.weights)
    except ValueError as error:
        raise ValueError(
            f"the sampler fitted to this model is not valid, {error}: {advice}"
        ) from None
    return OnClock(rule, integrand=WEIGHTED_RULES[fitted.rule])


def grid_of(fitted: FittedSampler) -> Given:
    """The grid of a fitted sampler."""
    return Given(torch.tensor(fitted.l, dtype=torch.float64))


def is_default(method: AbstractMethod) -> bool:
    """Whether a method is the default: chooses its rule by the model, on its own grid."""
    chosen = isinstance(method, OnClock) and method.integrand == "model" and method.solver is None
    return chosen and isinstance(method.grid, DefaultGrid) and method.grid.is_plain


def guidance_of(model: AbstractModel) -> float | None:
    """The scale w of the denoiser D_0 + w (D - D_0) that a model is, where D is that of a network
    with conditions, and D_0 that of the same network without them: 0 for a network alone, 1 for one
    that is given conditions, w for `Guided`. None for other models.
    """
    if isinstance(model, ScoreModel):
        return float(_is_conditional(model))
    if not isinstance(model, Guided) or model.interval is not None or model.rescale:
        return None
    own = model.model
    reference = model.by
    if not (isinstance(own, ScoreModel) and isinstance(reference, ScoreModel)):
        return None
    same = reference.net is own.net and not _is_conditional(reference)
    return float(model.scale) if same else None


def _is_conditional(model: ScoreModel) -> bool:
    """Whether a network is given conditions that are not unknown."""
    given = model.conditions.items()
    return any(_is_known(value, model.null.get(name)) for name, value in given)


def _is_known(condition: object, null: float | None) -> bool:
    """Whether a condition, of any sample, is not the number for an unknown one."""
    if isinstance(condition, int | float):
        return condition != null and not math.isnan(condition)
    if isinstance(condition, Tensor):
        unknown = condition.isnan() if null is None else condition.isnan() | (condition == null)
        return not bool(unknown.all())
    return condition is not None
