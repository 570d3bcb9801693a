"""The chain over some times of a diffusion: the terms of its variational bound."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdekit import normal
from sdekit_diffusion._arguments.inputs import is_one_number
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inference.decoder import Density, Levels
from sdekit_diffusion._models.counters import BOUND
from sdekit_diffusion._models.model import AbstractModel

Variance = Literal["smaller", "larger"]

_DRAW_STRIDE = 1 << 40  # between the indices of two draws, for independent noise
_MAX_STEPS = -BOUND // 2


@dataclass(frozen=True, eq=False)
class ChainNoise:
    """The noise of some samples, a function of the seed, their indices, the draw and the step.

    Attributes:
        seed: the seed.
        rows: the indices of the samples, `(batch,)`.
        shape: of one sample.
        dtype: of the noise.
    """

    seed: int
    rows: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype

    def at(self, draw: int, step: int) -> Tensor:
        """The noise of one draw at one step, `(batch, *shape)`."""
        index = self.rows + draw * _DRAW_STRIDE
        return normal(self.seed, index, self.shape, counter=BOUND + step, dtype=self.dtype)


@dataclass(frozen=True)
class Chain:
    """The chain over some times of a diffusion; its terms are in nats, float64, `(batch,)`."""

    sde: AbstractDiffusion
    times: list[float]
    variance: Variance
    decoder_std: float | None

    def __post_init__(self) -> None:
        if self.variance not in ("smaller", "larger"):
            raise ValueError(f"variance must be 'smaller' or 'larger', not {self.variance!r}")
        std = self.decoder_std
        if std is not None and not (is_one_number(std) and 0 < std < math.inf):
            raise ValueError(
                f"decoder_std must be positive and finite, such as 0.01, not {std!r:.60}"
            )

    def terms(
        self,
        model: AbstractModel,
        x0: Tensor,
        noise: ChainNoise,
        draw: int,
        decoder: Density | Levels,
        update: Callable[[], object],
    ) -> Tensor:
        """L_0, ..., L_{N-1} for one draw of the noise, `(N, batch)`; calls update after each."""
        terms = x0.new_empty(len(self.times), len(x0))
        for i, t in enumerate(self.times):
            eps = noise.at(draw, i)
            x_t = self.sde.alpha(t) * x0.to(eps.dtype) + self.sde.sigma(t) * eps
            denoised = model.predict_data(*self.sde.normalised(t, x_t)).double()
            terms[i] = self.term(i, x0, denoised, decoder)
            update()
        return terms

    def term(self, i: int, x0: Tensor, denoised: Tensor, decoder: Density | Levels) -> Tensor:
        """L_i, given x_0 and the denoised x_{i+1}."""
        if i == 0:
            std = (
                float(self.sde.sigma(self.times[0]))
                if self.decoder_std is None
                else self.decoder_std
            )
            return _sum_coordinates(decoder.negative_log_prob(x0, denoised, std))
        s = self.times[i - 1]
        t = self.times[i]
        _, b, std = (float(value) for value in self.sde.posterior(s, t))
        v = std if self.variance == "smaller" else float(self.sde.transition(s, t)[1])
        ratio = (std / v) ** 2
        distance = _sum_coordinates((x0 - denoised).mul(b / v).square())
        return 0.5 * (x0[:1].numel() * (ratio - 1 - math.log(ratio)) + distance)

    def prior(self, x0: Tensor) -> Tensor:
        """L_N = alpha^2 |x_0|^2 / (2 sigma^2)."""
        alpha, sigma = self.sde.kernel(self.times[-1])
        return 0.5 * (alpha / sigma) ** 2 * _sum_coordinates(x0.square())


def _sum_coordinates(x: Tensor) -> Tensor:
    """The sum over the coordinates of each sample, `(batch,)`."""
    return x.unsqueeze(-1).flatten(1).sum(dim=1)


def times_of(sde: AbstractDiffusion, times: Tensor | None) -> list[float]:
    """The times of the chain, checked."""
    selected = sde.levels if times is None else torch.as_tensor(times, dtype=torch.float64)
    if (
        selected.ndim != 1
        or not 0 < len(selected) <= _MAX_STEPS
        or not bool((selected.diff() > 0).all())
    ):
        first_times = selected.flatten()[:4].tolist()
        raise ValueError(
            f"times must be one to {_MAX_STEPS} increasing numbers, not shape "
            f"{tuple(selected.shape)}: {first_times} ..."
        )
    sde.checked(selected)
    if float(sde.sigma(float(selected[0]))) == 0:
        raise ValueError(
            f"the first of the times must have sigma > 0, and t = {float(selected[0]):g} has none; "
            "begin later"
        )
    return selected.tolist()
