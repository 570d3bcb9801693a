"""The model that a user means: a model, or a plain score with its diffusion."""

from collections.abc import Callable
from typing import cast

from torch import Tensor

from sdekit_diffusion._arguments.inputs import shape_given
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.names import diffusion
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.score_model import ScoreModel, require_mean
from sdekit_diffusion._models.wrapped import require_plain, unwrapped


def as_model(
    model: AbstractModel | Callable[[Tensor, Tensor], Tensor],
    sde: AbstractDiffusion | str | None,
    shape: tuple[int, ...] | None = None,
) -> tuple[AbstractModel, AbstractDiffusion]:
    """The model and its diffusion from what a user passes: a model, perhaps with another diffusion,
    or a score `(x, t)` with its diffusion.

    Raises:
        TypeError: when the model is neither, or is in a wrapper that is not supported.
        ValueError: when there is no diffusion, neither given nor of the model, or when the mean of
            the data has another shape than that given.
    """
    model = cast(
        "AbstractModel | Callable[[Tensor, Tensor], Tensor]", unwrapped(model, AbstractModel)
    )
    if not isinstance(model, AbstractModel):
        require_plain(model, AbstractModel)
        if not callable(model):
            raise TypeError(
                "the model must be a ScoreModel, a GaussianMixture or a score (x, t), not "
                f"{type(model).__name__}"
            )
        if sde is None:
            raise ValueError(
                "a plain score function needs the diffusion it belongs to: pass sde='vp', for "
                "example"
            )
        model = ScoreModel(model, sde, "score", shape=shape)
        model.plain = True
    elif isinstance(model, ScoreModel) and model.shape is None and shape is not None:
        model = model.given()  # a copy
        model.shape = shape_given(shape)
        require_mean(model.data_mean, model.shape)
    if isinstance(model, ScoreModel):
        model.warn_of_missing(model.conditions)
    selected = model.sde if sde is None else diffusion(sde)
    if selected is None:
        raise ValueError(
            f"{type(model).__name__} has no diffusion of its own: pass sde='vp', another name or "
            "a diffusion"
        )
    return model, selected
