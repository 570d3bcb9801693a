"""Options of the network to train, and of its prediction."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sdekit_diffusion import nets
from sdekit_diffusion._app.condition_options import columns_to_train
from sdekit_diffusion._app.labels import class_count
from sdekit_diffusion._app.network_arguments import with_network_arguments
from sdekit_diffusion._app.options import with_names
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._diffusions.names import diffusion
from sdekit_diffusion._loading.load import load
from sdekit_diffusion._loading.named import named_model
from sdekit_diffusion._models.conditioning import Conditioning
from sdekit_diffusion._models.prediction import ALIASES, Prediction
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.data._dataset import entries_of, entry_shape

# Predictions and conditionings as published, of the networks for which they are not the default.
_PUBLISHED: dict[str, tuple[Prediction, Conditioning]] = {
    "NCSN": ("score", "time"),
    "NCSNv2": ("noise", "time"),
}
_SDE = "subvp"
_CONVENTIONS = ("sde", "predicts", "conditioning")
_DEFAULT: tuple[Prediction, Conditioning] = ("velocity", "log_snr")


@with_names
@dataclass(frozen=True)
class _Conventions:
    """The network, its conditioning and its prediction; defaults are those of the network.

    Attributes:
        network: {networks}; a UNet for images and an MLP for other data unless given. Or one of
            your own: the folder of a network of diffusers with its scheduler, or
            package.module:factory, a function without arguments that is imported and returns a
            module or a ScoreModel. By default the levels of a UNet go down to 16 pixels or an odd
            size, and NCSN has the noise levels of the diffusion.
        predicts: what the output means: noise, data, score, velocity or flow. Unless given
            velocity; as published, score for NCSN and noise for NCSNv2.
        conditioning: the input for the noise level: log_snr, time, sigma, or two numbers a b for
            a t + b, such as 1000 -1 for DDPM's steps from 0; standardised is log_snr for data
            divided by their standard deviation, EDM's preconditioning. Unless given log_snr; time
            for NCSN and for NCSNv2, which ignores it.
        labels: train with the labels of the data, the class of each sample.
        conditions: what else the network receives for each sample, and from which array or column
            of the data: context=theta for a vector, image=small for an image of the size of x,
            context=age,mass for several joined; or only the name, where the data call it so too.
            Those of the networks here are context and, of UNet and DiT, image.
    """

    network: str | None = None
    predicts: str | None = None
    conditioning: Conditioning | None = None
    labels: bool = False
    conditions: tuple[str, ...] = ()

    def columns(self) -> dict[str, tuple[str, ...]]:
        """The arrays or columns of the conditions, by name.

        Raises:
            ValueError: for a condition without a name or a column.
        """
        return columns_to_train(self.conditions)

    def with_labels(self, source: Dataset) -> Dataset:
        """The data set; without its labels unless the network is to be trained with them.

        Raises:
            ValueError: when it is and the data set has no labels.
        """
        if not self.labels and "label" not in self.columns():
            return replace(source, labels=None, test_labels=None)
        class_count(source)  # refuses
        return source

    def model(self, source: Dataset, sde: str | None, checkpoint: Path | None = None) -> ScoreModel:
        """The model to train on a data set: untrained, or with the weights of a network of the
        user's own.

        Arguments:
            source: the data.
            sde: the diffusion; unless given that of a model of the user's own, or else sub-VP.
            checkpoint: the checkpoint from which a run with a network of the user's own resumes.

        Raises:
            ValueError: for a name that is not one of these, an option that this network does not
                have, or images of a size that it does not take.
        """
        name = self.network or ("MLP" if source.scale.levels is None else "UNet")
        shape = tuple(source.test.shape[1:])
        is_custom = name not in nets.registry
        if is_custom and checkpoint is not None:
            return self._resume(name, checkpoint, sde, source)
        custom = self._load_custom(name, sde, source) if is_custom else None
        if isinstance(custom, ScoreModel):
            net = custom.net
            training_sde = custom.sde
            predicts = custom.predicts
            conditioning = custom.conditioning
        else:
            training_sde = diffusion(sde or _SDE)
            (predicts, conditioning) = _PUBLISHED.get(name, _DEFAULT)
            net = self._build(name, source, training_sde) if custom is None else custom
        return ScoreModel(
            net,
            training_sde,
            self.predicts or predicts,
            shape=shape,
            conditioning=self.conditioning or conditioning,
            data_range=custom.data_range if isinstance(custom, ScoreModel) else None,
            scale=source.scale,
            null=custom.given_null if isinstance(custom, ScoreModel) else None,
        )

    def _load_custom(self, name: str, sde: str | None, source: Dataset) -> ScoreModel | nn.Module:
        """A network or model of the user's own; the conventions of a model are fixed."""
        custom = named_model(name)
        fixed_options = [
            *self._constructor_options(),
            *(_CONVENTIONS if isinstance(custom, ScoreModel) else ()),
        ]
        self._require_unset(name, fixed_options, {**asdict(self), "sde": sde})
        if isinstance(custom, ScoreModel):
            shape = tuple(source.test.shape[1:])
            scale = source.scale
            if custom.shape not in (None, shape):
                raise ValueError(
                    f"{name} is for samples of shape {custom.shape}, and {source.name} has "
                    f"{shape}; choose other data"
                )
            if None not in (custom.data_range, scale.levels) and custom.data_range != (
                scale.low,
                scale.high,
            ):
                raise ValueError(
                    f"{name} is for images in {custom.data_range}, and those of {source.name} are "
                    f"trained in {(scale.low, scale.high)}; train it from Python, with transform="
                )
        return custom

    @staticmethod
    def _require_unset(name: str, fixed_options: Sequence[str], options: dict[str, Any]) -> None:
        """Refuses options that a network of the user's own determines."""
        for option in fixed_options:
            if options[option] is not None:
                raise ValueError(
                    f"--{option} is not an option of {name}, which has its own; leave it out"
                )

    def _resume(self, name: str, checkpoint: Path, sde: str | None, source: Dataset) -> ScoreModel:
        """The model of a run, also of one from Python, with a network of the user's own."""
        self._require_unset(name, list(self._constructor_options()), asdict(self))
        model = load(checkpoint, net=name)
        requested: dict[str, Any] = {
            "predicts": ALIASES.get(self.predicts or "", self.predicts),
            "conditioning": self.conditioning,
            "sde": None if sde is None else diffusion(sde),
            "shape": tuple(source.test.shape[1:]),
            "scale": source.scale,
        }
        for option, value in requested.items():
            recorded = getattr(model, option)
            if value is not None and value != recorded:
                raise ValueError(
                    f"the run of {checkpoint} was begun with {option} = {recorded}, not "
                    f"{value}; give the same"
                )
        return model

    def _build(self, name: str, source: Dataset, sde: AbstractDiffusion) -> nn.Module:
        shape = tuple(source.test.shape[1:])
        parameters = inspect.signature(nets.registry[name]).parameters
        arguments = {
            option: value
            for option, value in self._constructor_options().items()
            if value is not None
        }
        for option in arguments:
            if option not in parameters:
                raise ValueError(
                    f"--{option} is not an option of {name}; leave it out, or choose another "
                    "--network"
                )
        of_data = _arguments_of_data(source)
        _require_taken(name, source, list(parameters))
        arguments |= {option: of_data[option] for option in of_data if option in parameters}
        if name == "UNet" and len(shape) > 1 and not {"multipliers", "attention"} & set(arguments):
            arguments |= _unet_levels(shape)
        if "levels" in parameters and "levels" not in arguments:
            arguments["levels"] = len(sde.levels)
        net = nets.registry[name](**arguments)
        first = entries_of(source.conditions, torch.arange(1))
        with torch.no_grad():
            net(torch.zeros(1, *shape), torch.zeros(1), **first)
        return net

    def _constructor_options(self) -> dict[str, Any]:
        """The options that are arguments of a network's constructor."""
        conventions = {field.name for field in fields(_Conventions)}
        return {name: value for name, value in asdict(self).items() if name not in conventions}


if TYPE_CHECKING:
    Net = _Conventions
else:
    Net = with_network_arguments("Net", _Conventions)


def _arguments_of_data(source: Dataset) -> dict[str, Any]:
    """The arguments of networks that follow from the data, by their names."""
    shape = tuple(source.test.shape[1:])
    sizes = shape[1:]
    arguments: dict[str, Any] = {"shape": shape}
    if shape:
        arguments["channels"] = shape[0]
    if sizes:
        arguments["dimensions"] = len(sizes)
    if len(sizes) == 2:
        arguments["size"] = sizes
    if source.labels is not None:
        arguments["classes"] = class_count(source)
    sizes_of = {name: entry_shape(rows) for name, rows in source.conditions.items()}
    if sizes_of.get("context"):
        arguments["context"] = sizes_of["context"][-1]
    if sizes_of.get("image"):
        arguments["image"] = sizes_of["image"][0]
    return arguments


def _require_taken(network: str, source: Dataset, parameters: Sequence[str]) -> None:
    """Refuses conditions that a network of the library does not take.

    Raises:
        ValueError: says which it takes.
    """
    allowed = [name for name in ("context", "image") if name in parameters]
    for name in source.conditions:
        if name not in allowed:
            advice = (
                f"its conditions are {' and '.join(allowed)}, as in --conditions "
                f"{allowed[0]}={name}"
                if allowed
                else "leave out --conditions"
            )
            raise ValueError(
                f"{network} takes no condition {name!r}: {advice}; or choose another --network, "
                "such as UNet"
            )


def _unet_levels(shape: tuple[int, ...]) -> dict[str, list[Any]]:
    """The levels of a U-Net for samples `(C, *sizes)`: down to 16 pixels or an odd size; those of
    at most 64 pixels, other than the first, have attention.
    """
    sizes = list(shape[1:])
    areas = [math.prod(sizes)]
    while areas[-1] > 16 and all(size % 2 == 0 for size in sizes):
        sizes = [size // 2 for size in sizes]
        areas.append(math.prod(sizes))
    lower_areas = areas[1:]
    return {
        "multipliers": [1, *[2 for _ in lower_areas]],
        "attention": [False, *[area <= 64 for area in lower_areas]],
    }
