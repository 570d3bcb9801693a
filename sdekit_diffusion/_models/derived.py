"""Models made from models: a condition, guidance, other coordinates."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.model import AbstractModel

_PER_SAMPLE = "per sample"


def per_sample() -> Any:  # noqa: ANN401 - stands for the value of a field
    """A field of an `AbstractDerivedModel` that holds one entry per sample, `(n, ...)`."""
    return field(metadata={_PER_SAMPLE: True})


@dataclass(frozen=True, eq=False)
class AbstractDerivedModel(AbstractModel):
    """A model made from another: a subclass defines `predict_data`, and perhaps `predict_noise`.

    A subclass is a frozen dataclass. Its fields may hold further models, and what is declared as
    `per_sample()` has one entry per sample: the rows of a batch, networks in evaluation mode, dtype,
    device, shape and diffusion are then taken care of, for all of them.

    Arguments:
        model: the model that it is made from, of which it takes whatever it does not define.
    """

    model: AbstractModel

    @property
    def shape(self) -> tuple[int, ...] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.shape

    @property
    def sde(self) -> AbstractDiffusion | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.sde

    @property
    def data_mean(self) -> Tensor | float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.data_mean

    @property
    def data_std(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.data_std

    def rows(self, index: Tensor) -> Self:
        chosen: dict[str, Any] = {name: model.rows(index) for name, model in self._models().items()}
        for name, value in self._own().items():
            chosen[name] = value[index.to(value.device)]
        return replace(self, **chosen)

    def entries(self) -> dict[str, Tensor]:
        inner = [model.entries() for model in self._models().values()]
        return {name: value for found in [*inner, self._own()] for name, value in found.items()}

    def networks(self) -> list[nn.Module]:
        return [network for model in self._models().values() for network in model.networks()]

    def place(self) -> tuple[torch.dtype, torch.device]:
        return self.model.place()

    def _models(self) -> dict[str, AbstractModel]:
        """The fields that are models."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, AbstractModel)}

    def _own(self) -> dict[str, Tensor]:
        """The fields with an entry per sample."""
        return {part.name: getattr(self, part.name) for part in fields(self) if _PER_SAMPLE in part.metadata}
