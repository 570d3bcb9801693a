"""Other conventions that a network may have been trained with: another meaning of the output,
another label of time, another diffusion, another range of the data.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

from torch import Tensor, nn

from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.names import DIFFUSIONS
from sdekit_diffusion._models.conditioning import Conditioning
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.prediction import Prediction
from sdekit_diffusion._models.score_model import ScoreModel

_OPPOSITE: dict[str, str] = {"flow": "reverse_flow", "reverse_flow": "flow"}
_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))


class Alternative(NamedTuple):
    """A model, data and a diffusion to evaluate together.

    Attributes:
        change: the change of convention, in words.
        model, x, sde: the model, the data, and the diffusion.
        several: whether more than one convention is changed.
    """

    change: str
    model: AbstractModel
    x: Tensor
    sde: AbstractDiffusion
    several: bool = False


def alternatives(model: AbstractModel, x: Tensor, sde: AbstractDiffusion) -> Iterator[Alternative]:
    """The data in other ranges, and for a `ScoreModel` its network with other conventions."""
    for change, points in _rescaled(x, getattr(model, "data_range", None)):
        yield Alternative(change, model, points, sde)
    if not isinstance(model, ScoreModel):
        return
    for change, other in _other_outputs(model):
        yield Alternative(change, other, x, sde)
    for change, other in _reverse_flows(model):
        yield Alternative(change, other, x, sde, several=True)
    for conditioning in _labels(model):
        name = repr(conditioning)
        if not isinstance(conditioning, str):
            name = f"({conditioning[0]:g}, {conditioning[1]:g})"
        other = _with_convention(model, model.net, model.predicts, conditioning)
        yield Alternative(f"conditioning={name}", other, x, sde)
    for name, other in _other_diffusions(model):
        yield Alternative(f"sde={name!r}", other, x, other.sde)


class _Negative(nn.Module):
    """-net(x, t)."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        self.null = getattr(net, "null", None)

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:  # noqa: ANN401
        return -self.net(x, t, **conditions)


def _other_outputs(model: ScoreModel) -> Iterator[tuple[str, ScoreModel]]:
    """The model with other meanings of the network's output, and with the opposite sign."""
    for predicts in get_args(Prediction):
        if predicts not in (model.predicts, _OPPOSITE.get(model.predicts)):
            other = _with_convention(model, model.net, predicts, model.conditioning)
            yield f"predicts={predicts!r}", other
    opposite = f" (predicts={_OPPOSITE[model.predicts]!r})" if model.predicts in _OPPOSITE else ""
    negative = _with_convention(model, _Negative(model.net), model.predicts, model.conditioning)
    yield f"the opposite sign of the output{opposite}", negative


def _other_diffusions(model: ScoreModel) -> Iterator[tuple[str, ScoreModel]]:
    """The model under the diffusions that have a name, with their default parameters."""
    settings = {
        "conditioning": model.conditioning,
        "data_std": model.data_std,
        "null": model.given_null,
    }
    for name, kind in DIFFUSIONS.items():
        if (sde := kind()) != model.sde:
            other = ScoreModel(model.net, sde, model.predicts, **settings)
            yield name, other.given(**model.conditions)


def _reverse_flows(model: ScoreModel) -> Iterator[tuple[str, ScoreModel]]:
    """The model as flow matching with a time from 0 for noise to 1 or 1000 for data."""
    for n in (1, 1000):
        model_variant = ScoreModel(
            model.net,
            "flow",
            "reverse_flow",
            conditioning=(-n, n),
            data_std=model.data_std,
            null=model.given_null,
        )
        change = (
            f"sde='flow', predicts='reverse_flow' and conditioning=({-n}, {n}), flow matching with "
            "time from noise to data,"
        )
        yield change, model_variant.given(**model.conditions)


def _with_convention(
    model: ScoreModel, net: Callable[..., Tensor], predicts: Prediction, conditioning: Conditioning
) -> ScoreModel:
    variant = ScoreModel(
        net,
        model.sde,
        predicts,
        conditioning=conditioning,
        data_std=model.data_std,
        null=model.given_null,
    )
    return variant.given(**model.conditions)


def _labels(model: ScoreModel) -> list[Conditioning]:
    """Other conditionings that a network may have been trained with: those with names, the number
    of a step or level, counted up or down, and reversed time.
    """
    sde = model.sde
    step_labels: list[Conditioning] = []
    try:
        n = len(sde.levels)
    except ValueError:
        n = 1000  # the most common number of steps, if the diffusion has no levels
        step_labels = [(-n, n * sde.T)]
    a, b = model.conditioning if isinstance(model.conditioning, tuple) else (1.0, 0.0)
    labels: list[Conditioning] = ["time", "sigma", "log_snr", (n, -1), (n - 1, 0), (1 - n, n - 1)]
    labels += [(-1, sde.T), (-a, a * sde.T + b), *step_labels]
    return [label for label in dict.fromkeys(labels) if label != model.conditioning]


def _rescaled(x: Tensor, data_range: tuple[float, float] | None) -> Iterator[tuple[str, Tensor]]:
    """x scaled from the narrowest of _RANGES that contains it to [0, 1] and [-1, 1], or to the
    range of the model.
    """
    smallest = float(x.min())
    largest = float(x.max())
    for low, high in _RANGES:
        tolerance = 0.01 * (high - low)
        if low - tolerance <= smallest and largest <= high + tolerance:
            for a, b in _RANGES[:2] if data_range is None else (data_range,):
                if (a, b) != (low, high):
                    scaled = a + (b - a) * (x - low) / (high - low)
                    yield f"x moved from [{low:g}, {high:g}] to [{a:g}, {b:g}]", scaled
            return
