"""Brownian paths of sdekit as the noise of k-diffusion's samplers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdekit._grid import geometric
from sdekit._noise.brownian import BrownianPath
from sdekit._noise.generator import fresh_seed
from sdekit._noise.white import AbstractNoise, Increment


class BrownianTreeNoiseSampler:
    """Noise for k-diffusion's stochastic samplers, with the signature of k-diffusion's class of
    this name.

    A seed gives one Brownian path per sample, the same for any batch size, device and number of
    steps. If all times are positive the path has a knot per octave, so that steps near sigma_min
    are resolved as well as those near sigma_max.

    Arguments:
        x: a state, `(batch, *event)`, from which the shape, dtype and device are taken.
        sigma_min, sigma_max: the range of noise levels; levels outside are replaced by the nearer
            end.
        seed: an integer; or one per sample, each of which gets the noise of a batch of one with
            that seed; None takes one from torch's default generator.
        transform: a function from sigma to the time of the path.
        cpu: whether the noise is computed on the CPU and copied, to be bit-identical on every
            device.

    Raises:
        ValueError: in a call, for two levels so near that the path does not tell them apart.

    Example:
        >>> sampler = sdekit.interop.BrownianTreeNoiseSampler(torch.zeros(4, 2), 0.01, 80.0, seed=0)
        >>> sampler(1.0, 0.5).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: float | Tensor,
        sigma_max: float | Tensor,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[Tensor], Tensor] = lambda sigma: sigma,
        cpu: bool = False,
    ) -> None:
        self._transform = transform
        self._target = x[:0]
        self._like = torch.empty_like(x, device="cpu" if cpu else None)
        low, high = sorted(self._time(sigma) for sigma in (sigma_min, sigma_max))
        high = high if high > low else low + 1.0  # one level alone: no step will be read
        knots = (low, high)
        if low > 0:
            octaves = max(1, math.ceil(math.log2(high / low)))
            knots = geometric(low, high, octaves).tolist() if octaves <= _OCTAVES else knots
        path_seed: Any = fresh_seed() if seed is None else seed
        self.path = BrownianPath(path_seed, knots)

    def _time(self, sigma: float | Tensor) -> float:
        # Through float32, so that a level given as a number and as a tensor is the same time.
        return float(self._transform(torch.as_tensor(sigma, dtype=torch.float32).to(torch.float64)))

    def __call__(self, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        """Standard normals for the step between two noise levels, shaped like x:
        (W(t1) - W(t0)) / sqrt(|t1 - t0|); 0 for a step of length 0.
        """
        low = self.path.knots[0]
        high = self.path.knots[-1]
        ends = torch.tensor(
            [min(max(self._time(s), low), high) for s in (sigma, sigma_next)], dtype=torch.float64
        )
        # The times of the ticks, between which W has exactly the variance |t1 - t0|.
        t0, t1 = self.path.tree.times(self.path.ticks(ends)).tolist()
        if t0 == t1 and ends[0] != ends[1]:
            raise ValueError(
                f"the step between the levels {float(sigma):g} and {float(sigma_next):g} is "
                f"shorter than the path from {low:g} to {high:g} resolves: give sigma_min > 0, the "
                "smallest level of the steps, which makes the path finer there, or skip the step"
            )
        w = read(self.path, t0, t1, self._like, levy=False).w
        assert w is not None
        return (w / (abs(t1 - t0) ** 0.5 or 1.0)).to(self._target)


_OCTAVES = 1 << 12


def read(path: AbstractNoise, t0: float, t1: float, x: Tensor, *, levy: bool) -> Increment:
    return next(iter(path.readings([t0, t1], x, tuple(x.shape[1:]), levy=levy)))
