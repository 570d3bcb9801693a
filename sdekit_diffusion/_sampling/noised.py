"""Data with noise as the start of a solve: SDEdit."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdekit.calling import require_bools
from sdekit.elementary import axpy, scaled
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._models.counters import START
from sdekit_diffusion._models.model import AbstractModel, noise_scale, signal_scale
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.initial_states import AbstractStart, require_states

# The relative difference of sigma / alpha by which a level may exceed that of the noisy end.
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Noised(AbstractStart):
    """A start from data with noise, x_t = alpha x + sigma eps, at a level below the noisy end:
    SDEdit.

    The lower the level, the more the results resemble x. With the reverse SDE they follow the law
    p(x_0 | x_t), averaged over eps. The probability flow maps x_t to results of another law, unless
    x is a sample of the model. The eps of sample i depends only on (seed, first + i). All `steps`
    of `sample` are taken between the level and the data.

    Arguments:
        x: the data, `(n, *shape)`, or `(1, *shape)` for n samples from the same data.
        strength: the share of the diffusion's own grid (`Native`) that is solved, above 0 and at
            most 1: of its time, or for `EDMSDE` of the steps of `Karras(7)`. 1 starts at the noisy
            end, where little of x is left.
        level: instead of the strength, sigma / alpha at the start in units of s, the standard
            deviation of the data (`data_std` of the model), like `end` of `sample`.
        add_noise: False if x already has the noise of the level. Then x is x_t / alpha, such as the
            result of `sample(end=level)`.

    Raises:
        TypeError: for a strength or a level that is not a number; in `sample`, for an x that is
            not a floating tensor.
        ValueError: unless one of strength and level is given, in its range; in `sample`, for an x
            that is not finite or of another shape, or a level outside the range of the solve.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> x = torch.tensor([[-0.8], [1.1], [1.3]])
        >>> edited = sd.sample(model, sde="vp", start=sd.Noised(x, strength=0.3), seed=0)
        >>> edited.sign().flatten().tolist()  # each stays near its own mode
        [-1.0, 1.0, 1.0]
        >>> sd.sample(model, 5, sde="vp", start=sd.Noised(x[:1], level=2.0), seed=0).shape
        torch.Size([5, 1])

    References:
        Meng et al. 2022, "SDEdit", arXiv 2108.01073.
    """

    name = "x of start"

    x: Tensor = field()
    strength: float | None = field(default=None, kw_only=True)
    level: float | None = field(default=None, kw_only=True)
    add_noise: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "strength", "level")
        require_bools(add_noise=self.add_noise)
        if (self.strength is None) == (self.level is None):
            raise ValueError(
                "give one of strength, a share of the diffusion's time such as 0.6, and level, "
                "sigma / alpha in standard deviations of the data such as 2.0; not "
                f"{self.strength} and {self.level}"
            )
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(
                "strength is the share of the diffusion's time that is solved, above 0 and at most "
                f"1; not {self.strength}"
            )
        if self.level is not None and not 0 < self.level < math.inf:
            raise ValueError(
                "level is sigma / alpha in standard deviations of the data, a positive number such "
                f"as 2.0; not {self.level}"
            )

    def require(self, model: AbstractModel) -> None:
        require_states(self.name, self.x, model, "correct these rows or leave them out")

    def count(self, n: int) -> int:
        if len(self.x) == 1:
            return n
        if n not in (1, len(self.x)):
            raise ValueError(
                f"x of start has shape {tuple(self.x.shape)}; give one x or {n} of them, or leave "
                "n out"
            )
        return len(self.x)

    def rows(self, i: int, count: int) -> Tensor:
        one_for_all = len(self.x) == 1
        return self.x.expand(count, *self.x.shape[1:]) if one_for_all else self.x[i : i + count]

    def span(self, span: Span, coordinates: Coordinates) -> Span:
        start, stop = span
        l = self._level_of_strength(span, coordinates) if self.level is None else self._l
        if not start - _TOLERANCE <= l < stop:
            sde = coordinates.sde
            raise ValueError(
                f"a solve under {sde} runs from sigma / alpha = {math.exp(-start):.3g} to "
                f"{math.exp(-stop):.3g} standard deviations of the data, and the start is at "
                f"{math.exp(-l):.3g}: choose a level between them (sigma / alpha over "
                f"{coordinates.std:.4g}), or another diffusion{sde.more_noise}, or a smaller end"
            )
        return max(start, l), stop

    @property
    def _l(self) -> float:
        """l of the level."""
        assert self.level is not None
        return -math.log(self.level)

    def _level_of_strength(self, span: Span, coordinates: Coordinates) -> float:
        """l at which a share `strength` of the diffusion's own grid is left."""
        assert self.strength is not None
        t0, t1 = (float(coordinates.time(l)) for l in span)
        u = torch.tensor(1 - float(self.strength), dtype=torch.float64)
        t = coordinates.sde.spaced(t0, t1, u)
        return float(coordinates.log_snr(float(t))) if self.strength < 1 else span[0]

    def states(
        self, coordinates: Coordinates, l: float, x: Tensor | None, draw: Callable[[int], Tensor]
    ) -> Tensor:
        assert x is not None
        u = scaled(signal_scale(l), coordinates.standard_data(x))
        return axpy(noise_scale(l), draw(START), u) if self.add_noise else u
