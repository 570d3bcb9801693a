"""The grid of the default method: most steps where the denoiser determines the sample."""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit import uniform
from sdekit.elementary import Time, exp, log1p, sigmoid
from sdekit_diffusion._arguments.immutable import is_immutable
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.grid import AbstractGrid, with_exact_ends
from sdekit_diffusion._sampling.published_grids import native_points

# Chosen by benchmarks/choice.py. With a reach, or with fewer than _FEW_STEPS steps and no native
# share, `Focused` calls `smooth` with _FEW_SHARPNESS instead of SHARPNESS. With so few steps and
# neither of them it also raises the extent to the power _FEW_EXTENT.
_FEW_STEPS = 12
_FEW_SHARPNESS = 12.0
_FEW_EXTENT = 0.75
SHARPNESS = 5.0
_LEAST_SHARPNESS = 2.0  # about the factor in 64 coordinates, the most with which it was chosen
_SHARE = 0.8
_SHARE_WITH_REACH = 0.9
# With a reach, the steps that are uniform in l begin at most at this many extents, so that at lower
# levels the grid is the same for diffusions with more noise.
_FARTHEST = 10.0
# Standard deviations of data for which a diffusion with alpha < 1 is made. For others its times are
# nearly all at far more noise than data, or at far less: see benchmarks/scale.py.
_NATIVE_STDS = (0.5, 2.0)
_FINE = 4000  # steps of the grid on which the points of `Focused` are interpolated


@dataclass(frozen=True, eq=False)
class Focused(AbstractGrid):
    """A share of the steps is uniform in v = log(1 + 5 y / (y / r + 1)), the others in l.

    y = sigma / (alpha s) is the noise in standard deviations of the data, l = -log(y), and
    r = d^{1/2} the norm of a standardised sample of d coordinates. Steps in v cover the levels at
    which the sample is determined, y from 1/5 to r, and steps in l the lower ones. A native share
    adds steps of the own grid of the diffusion that the model was trained under, at large noise,
    where networks are less smooth in l than exact scores.

    With fewer than 12 steps, v = log(1 + 12 y / (y / r + 1)) with r = d^{3/8}, so that steps are
    shorter near the data. With a reach, this v has r = reach d^{1/2}, and the steps in l begin at y
    = 10 r. With a native share and no reach, v is the first one in any number of steps.

    With `method="default"` and a network, the table on the page of samplers sets what is None: the
    reach and the sharpness for networks that predict the noise, and for others both shares if
    neither is given. With noise and no given solver, as of `method="sde"`, share, reach and
    sharpness are 0.95, 0.85 d^{0.35} and 350 d^{1/2} instead of None. Nothing is set if a reach or
    a native share is given.

    Arguments:
        share: the share of v, from 0 to less than 1. None means 0.8, or 0.9 with a reach.
        reach: the level y up to which v extends, over d^{1/2}; with infinity it covers all noise.
        sharpness: the larger, the more steps are near the data. The factor of y in v is
            sharpness / d^{1/2}, but at least 2. None means the factors 5 and 12 above, and 12 with
            a reach, in any number of coordinates.
        native_share: the share of the steps of `Native` under the model's diffusion, or under that
            of the solve if the model has none; None means 0. Where alpha < 1, the data are taken to
            have a standard deviation from 1/2 to 2 there. What both shares leave is uniform in l.

    Raises:
        TypeError: for arguments that are not numbers.
        ValueError: for a share that is not in [0, 1), shares whose sum is not less than 1, or a
            reach or a sharpness that is not positive.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", steps=20, grid=sd.Focused(share=0.5), seed=0).shape
        torch.Size([4, 1])
    """

    follows_model = True

    share: float | None = None
    reach: float | None = None
    sharpness: float | None = None
    native_share: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "share", "reach", "sharpness", "native_share")
        if self.share is not None and not 0 <= self.share < 1:
            raise ValueError(
                f"share is a number from 0 on and less than 1, such as 0.8; not {self.share}"
            )
        native_share = self.native_share or 0.0
        if not (native_share >= 0 and self._share_of_v + native_share < 1):
            raise ValueError(
                "native_share is a number from 0 on, and its sum with share less than 1; not "
                f"{native_share} with {'the default' if self.share is None else 'the'} share "
                f"{self._share_of_v}"
            )
        if self.reach is not None and not self.reach > 0:
            raise ValueError(f"reach is a positive number, such as 10; not {self.reach}")
        if self.sharpness is not None and not 0 < self.sharpness < math.inf:
            raise ValueError(
                f"sharpness is a positive, finite number, such as 17; not {self.sharpness}"
            )

    @property
    def _share_of_v(self) -> float:
        default = _SHARE if self.reach is None else _SHARE_WITH_REACH
        return default if self.share is None else self.share

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        native_share = self.native_share or 0.0
        few = self.reach is not None or (steps < _FEW_STEPS and not native_share)
        sharpness = _FEW_SHARPNESS if few else SHARPNESS
        extent = coordinates.extent
        if self.sharpness is not None:
            sharpness = max(self.sharpness / extent, _LEAST_SHARPNESS)
        farthest = math.inf
        if self.reach is not None:
            extent *= self.reach
            farthest = _FARTHEST * extent
        elif few:
            extent **= _FEW_EXTENT
        density = _Density(self._share_of_v, extent, sharpness, farthest, native_share)
        if not native_share:
            return _cached_focused(density, span, steps).clone()
        own = coordinates.trained_under
        sde = coordinates.sde if own is None else own
        compute = _cached_focused if is_immutable(sde) else _focused
        return compute(density, span, steps, sde, coordinates.std).clone()


class _Density(NamedTuple):
    """Where the steps of `Focused` are; those that are uniform in l begin at `farthest`."""

    share: float
    extent: float
    sharpness: float
    farthest: float
    native_share: float


def _focused(
    density: _Density,
    span: Span,
    steps: int,
    sde: AbstractDiffusion | None = None,
    std: float = 1.0,
) -> Tensor:
    """The points of `Focused`. The diffusion, and s, are needed only for a native share."""
    l = uniform(*span, _FINE)
    v = torch.as_tensor(smooth(l, density.extent, density.sharpness))
    edge = -math.log(density.farthest)
    finer = l.clamp(min=edge) if edge < span[1] else l
    rest = 1 - density.share - density.native_share
    mass = density.share * _from_0_to_1(v) + rest * _from_0_to_1(finer)
    if sde is not None:
        fractions = 1 - uniform(1.0, 0.0, _FINE) ** 3  # close near the data, where l varies fast
        if float(sde.alpha(sde.latest())) < 1:
            std = float(np.clip(std, *_NATIVE_STDS))
        native = native_points(Coordinates(sde, std=std), span, fractions)
        part = np.interp(l.numpy(), native.numpy(), fractions.numpy())
        mass += density.native_share * torch.from_numpy(part)
    targets = uniform(0.0, 1.0, steps).numpy()
    return with_exact_ends(torch.from_numpy(np.interp(targets, mass.numpy(), l.numpy())), span)


_cached_focused = lru_cache(maxsize=32)(_focused)


def _from_0_to_1(values: Tensor) -> Tensor:
    """Increasing values, scaled so that the first is 0 and the last is 1."""
    return (values - values[0]) / (values[-1] - values[0])


def smooth(l: Time, extent: float, sharpness: float = SHARPNESS) -> Time:
    """v = log(1 + k y / (y / r + 1)) with y = e^{-l}, the sharpness k and the extent r, for data
    of standard deviation 1.

    v decreases from log(1 + k r) for pure noise to 0 for the data. The denoiser is smooth in y as y
    goes to 0, in 1/y as y goes to infinity, and in log(y) between 1/k and the norm r of a sample,
    where the sample is determined. In these ranges v is nearly linear in y, in 1/y and in log(y);
    l would be unbounded on both sides. For an infinite extent v is log(1 + k y).
    """
    if math.isinf(extent):
        return log1p(sharpness * exp(-l))
    return log1p(sharpness * extent * sigmoid(-l - math.log(extent)))
