"""Models made from models, such as by a condition, guidance, or other coordinates."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from sdekit import computed
from sdekit_diffusion._arguments.inputs import require_tensor
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.wrapped import unwrapped

_PER_SAMPLE = "per sample"


def per_sample(*, or_one: bool = False) -> Any:  # noqa: ANN401 - stands for the value of a field
    """A field of an `AbstractDerivedModel` that holds one entry per sample, `(n, ...)`.

    Arguments:
        or_one: whether it may also hold one tensor of the shape of a sample, for all samples.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Weighted(sd.AbstractDerivedModel):
        ...     weight: torch.Tensor = sd.per_sample()
        ...     def predict_data(self, l, u):
        ...         return self.weight * self.model.predict_data(l, u)
        >>> model = sd.GaussianMixture([1.0], [[0.0]], [1.0])
        >>> weighted = Weighted(model, torch.tensor([[0.5], [1.0], [2.0]]))
        >>> weighted.rows(torch.tensor([2])).weight
        tensor([[2.]])
    """
    return field(metadata={_PER_SAMPLE: "or one" if or_one else "each"})


@dataclass(frozen=True, eq=False)
class AbstractDerivedModel(AbstractModel):
    """A model made from another: a subclass defines `predict_data`, and perhaps `predict_noise`.

    A subclass is a frozen dataclass. Its fields may hold further models, and a field declared as
    `per_sample()` has one entry per sample. This class selects the rows of a batch, puts the
    networks of all these models into evaluation mode, and passes on dtype, device, shape and
    diffusion.

    Arguments:
        model: the original model, which provides what the subclass does not define.

    Raises:
        TypeError: when model is not a model, but a plain score, for example, or when a field with
            an entry per sample is not a tensor.

    Example:
        >>> from dataclasses import dataclass
        >>> from sdekit.elementary import scaled
        >>> @dataclass(frozen=True, eq=False)
        ... class Shifted(sd.AbstractDerivedModel):
        ...     offset: torch.Tensor = sd.per_sample()
        ...     def predict_data(self, l, u):
        ...         a = sd.signal_scale(l)
        ...         return self.model.predict_data(l, u - scaled(a, self.offset)) + self.offset
        >>> model = sd.GaussianMixture([1.0], [[0.0]], [0.01])
        >>> shifted = Shifted(model, torch.tensor([[-2.0], [0.0], [2.0]]))
        >>> sd.sample(shifted, 3, sde="vp", seed=0).round().int().flatten().tolist()
        [-2, 0, 2]
    """

    model: AbstractModel

    def __post_init__(self) -> None:
        model = unwrapped(self.model, AbstractModel)
        if not isinstance(model, AbstractModel):
            advice = (
                "; of a score (x, t) ScoreModel(score, 'vp', 'score', shape=(2,)) makes one"
                if callable(model)
                else ""
            )
            raise TypeError(
                f"{type(self).__name__} is made from a model, not {type(model).__name__}{advice}"
            )
        object.__setattr__(self, "model", model)
        for part in fields(self):
            if _PER_SAMPLE in part.metadata:
                require_tensor(part.name, getattr(self, part.name), "(n, ...)")

    @computed
    def shape(self) -> tuple[int, ...] | None:
        return self.model.shape

    @computed
    def sde(self) -> AbstractDiffusion | None:
        return self.model.sde

    @computed
    def data_mean(self) -> Tensor | float:
        return self.model.data_mean

    @computed
    def data_std(self) -> float | None:
        return self.model.data_std

    @computed
    def principal_std(self) -> float | None:
        return self.model.principal_std

    @computed
    def learned(self) -> bool:
        return any(model.learned for model in self._models().values())

    @computed
    def predicts_noise(self) -> bool:
        return any(model.predicts_noise for model in self._models().values())

    @computed
    def stiffness(self) -> float:
        return self.model.stiffness

    @computed
    def starts_at_mean(self) -> bool:
        return self.model.starts_at_mean

    @computed
    def jumps(self) -> tuple[float, ...]:
        return tuple(l for model in self._models().values() for l in model.jumps)

    def rows(self, index: Tensor) -> Self:
        selected: dict[str, Any] = {
            name: model.rows(index) for name, model in self._models().items()
        }
        for name, value in self._per_sample_fields().items():
            selected[name] = value[index.to(value.device)]
        return replace(self, **selected)

    def entries(self) -> dict[str, Tensor]:
        entries = self._per_sample_fields()
        for name, model in self._models().items():
            for inner, value in model.entries().items():
                entries[f"{name}.{inner}" if inner in entries else inner] = value
        return entries

    def diffusions(self) -> list[AbstractDiffusion]:
        parts = self._models()
        if self.sde is not self.model.sde:  # a subclass says where it can be evaluated
            del parts["model"]
        return [
            *super().diffusions(),
            *(sde for part in parts.values() for sde in part.diffusions()),
        ]

    def networks(self) -> list[nn.Module]:
        return [network for model in self._models().values() for network in model.networks()]

    def made_from(self) -> list[AbstractModel]:
        parts = self._models().values()
        return [self, *(inner for part in parts for inner in part.made_from())]

    def place(self) -> tuple[torch.dtype, torch.device]:
        return self.model.place()

    def _models(self) -> dict[str, AbstractModel]:
        """The fields that are models."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, AbstractModel)}

    def _per_sample_fields(self) -> dict[str, Tensor]:
        """The fields with an entry per sample."""
        return {
            part.name: getattr(self, part.name)
            for part in fields(self)
            if self._is_per_sample(getattr(self, part.name), part.metadata.get(_PER_SAMPLE))
        }

    def _is_per_sample(self, value: Any, declared: str | None) -> bool:  # noqa: ANN401
        """Whether the value of a field has one entry per sample.

        Raises:
            ValueError: where it may be one for all, which only the shape of a sample tells.
        """
        if declared != "or one":
            return declared is not None
        if self.shape is None:
            raise ValueError(
                f"the model in {type(self).__name__} has no shape, so that one value for all "
                "samples looks like one per sample: give the shape of a sample, as in "
                "ScoreModel(net, sde, shape=(2,))"
            )
        return value.ndim > len(self.shape)


def innermost(model: AbstractModel) -> AbstractModel:
    """The original model of a chain of derived models; a model that is not derived itself."""
    while isinstance(model, AbstractDerivedModel):
        model = model.model
    return model
