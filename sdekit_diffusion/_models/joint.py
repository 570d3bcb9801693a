"""Several observations of one sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sdekit import computed
from sdekit_diffusion._models.linear_observation import LinearObservation
from sdekit_diffusion._models.observation import AbstractObservation


@dataclass(frozen=True, eq=False)
class Joint(AbstractObservation):
    """Several observations of one x with independent noise: p(y | x) is the product of theirs.

    All have one y for all samples, or all have one y per sample. If all are linear, `bound`, which
    `given` and `sample_posterior` call, makes them one `LinearObservation`.

    Arguments:
        parts: the observations, at least one.

    Raises:
        TypeError: for anything but a tuple of observations, or an empty one.
        ValueError: in `bound`, where only some have a y per sample, or another number of them, or
            only some of linear ones have noise.

    Example:
        >>> law = sd.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
        >>> first = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), 1.0)
        >>> second = sd.LinearObservation(torch.tensor([[0.0, 1.0]]), torch.tensor([2.0]), 1.0)
        >>> law.given(sd.Joint((first, second))).mean()
        tensor([0.5000, 1.0000])
    """

    parts: tuple[AbstractObservation, ...]

    def __post_init__(self) -> None:
        parts = tuple(self.parts) if isinstance(self.parts, tuple | list) else ()
        if not parts or not all(isinstance(part, AbstractObservation) for part in parts):
            raise TypeError(f"Joint takes a tuple of observations, not {self.parts!r:.60}")
        object.__setattr__(self, "parts", parts)

    @computed
    def y(self) -> Tensor:
        return self.parts[0].y

    @computed
    def each(self) -> bool:
        return self.parts[0].each

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.stack([part.log_prob(x) for part in self.parts]).sum(dim=0)

    def rows(self, index: Tensor) -> Self:
        return replace(self, parts=tuple(part.rows(index) for part in self.parts))

    def entries(self) -> dict[str, Tensor]:
        return {
            f"y of observation {i}": value
            for i, part in enumerate(self.parts)
            for value in part.entries().values()
        }

    def bound(self, event: tuple[int, ...], like: Tensor | None = None) -> AbstractObservation:
        parts = tuple(part.bound(event, like) for part in self.parts)
        if len({part.each for part in parts}) > 1:
            raise ValueError(
                "some of the observations have a y per sample, and some have one y for all: give "
                "all of them one per sample"
            )
        counts = [len(part.y) for part in parts if part.each]
        if len(set(counts)) > 1:
            raise ValueError(
                f"the observations have {', '.join(map(str, counts))} entries of y: give each the "
                "same number, one per sample"
            )
        linear = [part for part in parts if isinstance(part, LinearObservation)]
        if len(linear) == len(parts):
            return _stacked(linear).bound(event, linear[0].y)
        return Joint(parts)


def _stacked(parts: Sequence[LinearObservation]) -> LinearObservation:
    """One observation with the flattened measurements of all, concatenated.

    Raises:
        ValueError: where only some of them have noise.
    """

    def measured(x: Tensor) -> Tensor:
        return torch.cat([part.apply(x) for part in parts], dim=1)

    noiseless = [part.noiseless for part in parts]
    if any(noiseless) and not all(noiseless):
        raise ValueError(
            "some of the observations have noise 0, and some have noise: give those without a "
            "small covariance, or mixtures one after the other, law.given(first).given(second)"
        )
    each = parts[0].each
    ys = [part.y for part in parts]
    rows = [y.reshape(len(y), -1) if each else y.reshape(1, -1) for y in ys]
    y = torch.cat(rows, dim=1)
    covariances = [
        part.noise_covariance.expand(math.prod(part.measured))
        if part.noise_covariance.ndim < 2
        else part.noise_covariance
        for part in parts
    ]
    if all(noiseless):
        covariance = 0.0
    elif all(one.ndim == 1 for one in covariances):
        covariance = torch.cat(covariances)
    else:
        covariance = torch.block_diag(
            *[one.diag() if one.ndim == 1 else one for one in covariances]
        )
    return LinearObservation(measured, y if each else y[0], covariance)
