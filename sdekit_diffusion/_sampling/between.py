"""Samples between two samples, by interpolation of all their noise."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit import (
    AbstractNoise,
    AbstractSolver,
    Increment,
    NoiseQuery,
    WhiteNoise,
    computed,
    normal,
)
from sdekit.elementary import broadcast
from sdekit_diffusion._arguments.inputs import is_whole, require_whole, seed_given
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._sampling.arguments import Model, shape_of
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.grid import DEFAULT_END
from sdekit_diffusion._sampling.initial_states import GivenStates
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.methods import method_of
from sdekit_diffusion._sampling.sample import sample


@dataclass(frozen=True, eq=False)
class InterpolatedNoise(AbstractNoise):
    """cos(pi u / 2) a + sin(pi u / 2) b of two independent noises, which has the law of each.

    Arguments:
        a, b: the noises.
        u: the position of each sample between a, at 0, and b, at 1, `(batch,)`.
    """

    a: AbstractNoise
    b: AbstractNoise
    u: Tensor

    @computed
    def seed(self) -> int | Tensor:
        return self.a.seed

    def rows(self, index: Tensor) -> "InterpolatedNoise":
        return InterpolatedNoise(
            self.a.rows(index), self.b.rows(index), self.u[index.to(self.u.device)]
        )

    def interpolate(self, a: Tensor, b: Tensor) -> Tensor:
        """The same of two tensors `(batch, ...)`."""
        # Both as sines, which are exactly 0 and 1 at the ends.
        return a * broadcast((0.5 * math.pi * (1 - self.u)).sin(), a) + b * broadcast(
            (0.5 * math.pi * self.u).sin(), b
        )

    def answer(self, query: NoiseQuery) -> Iterator[Increment]:
        pairs = (noise.answer(query) for noise in (self.a, self.b))
        for first, second in zip(*pairs, strict=True):
            w, h = (
                None if a is None or b is None else self.interpolate(a, b)
                for a, b in ((first.w, second.w), (first.h, second.h))
            )
            z = None
            if first.z is not None and second.z is not None:
                pairs_of_z = zip(first.z, second.z, strict=True)
                z = torch.stack([self.interpolate(*pair) for pair in pairs_of_z])
            yield Increment(w, h, z)


@dataclass(frozen=True, eq=False)
class _PriorDraws(GivenStates):
    """Given draws from the prior, which are shifted to the mean of x_T as those of `sample` are."""

    moves = True


def _two_seeds(first: object, last: object) -> tuple[int, int]:
    """Two seeds as integers of Python; equal ones are refused, whose noises are not independent."""
    for name, given in (("first", first), ("last", last)):
        if not is_whole(given):
            raise TypeError(f"{name} is the seed of one end, a whole number, not {given!r:.60}")
    seeds = seed_given(first), seed_given(last)
    if seeds[0] == seeds[1]:
        raise ValueError(
            f"first and last are the same seed, {seeds[0]}, and the interpolation is between two "
            "independent noises: give two seeds"
        )
    return seeds


def sample_between(
    model: Model,
    first: int,
    last: int,
    n: int = 8,
    *,
    sde: AbstractDiffusion | str | None = None,
    method: AbstractMethod | AbstractSolver | str = "ncsnv2",
    steps: int | None = None,
    shape: tuple[int, ...] | None = None,
    end: float = DEFAULT_END,
    denoise: bool = False,
    batch_size: int | None = None,
) -> Tensor:
    """n samples from that of the seed `first` to that of the seed `last`, `(n, *shape)`.

    x_T and all noise of the solve are cos(pi u / 2) a + sin(pi u / 2) b, where a and b are those of
    sample 0 of the two seeds, and u increases from 0 to 1 in equal steps. So each sample has the
    law of `sample`, and neighbours are similar if the method is continuous in its noise.

    Arguments:
        first, last: the seeds of the ends.
        n: the number of samples, both ends included, at least 2.
        sde, method, steps, shape, end, denoise, batch_size: as in `sample`; "ode" has no noise
            except x_T.

    Raises:
        TypeError: for a number of samples or seeds that are not whole numbers, and as `sample`.
        ValueError: for fewer than two samples, two equal seeds, a method that reads a Brownian
            path, such as "adaptive_sde", and as `sample`.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample_between(model, 0, 1, 5, sde="vp", method="ddim", steps=10).shape
        torch.Size([5, 1])

    References:
        Song and Ermon 2020, arXiv 2006.09011, figure 6 and appendix.
    """
    require_whole("n, the number of samples with both ends,", n, 2)
    first, last = _two_seeds(first, last)
    sampler = method_of(method)
    if sampler.noise == "path":
        raise ValueError(
            f"{type(sampler).__name__} reads a Brownian path, which is not interpolated; choose a "
            "method with fixed steps, such as OnClock(eta=1.0), or one without noise, such as 'ode'"
        )
    model, diffusion = as_model(model, sde, shape)
    dtype, device = model.place()
    zero = torch.zeros(n, dtype=torch.int64, device=device)
    u = torch.linspace(0, 1, n, dtype=torch.float64, device=device)
    noise = InterpolatedNoise(WhiteNoise(first, index=zero), WhiteNoise(last, index=zero), u)
    event = shape_of(model, shape)
    coordinates = Coordinates.of(model, diffusion, event)
    start = float(coordinates.time(sampler.span(model, coordinates, end)[0]))
    state_dtype = torch.promote_types(dtype, torch.float32)
    ends = [
        normal(seed, zero[:1], event, dtype=state_dtype).expand(n, *event) for seed in (first, last)
    ]
    draws: Any = _PriorDraws(coordinates.physical(start, noise.interpolate(*ends)))
    return sample(
        model,
        sde=diffusion,
        method=sampler,
        steps=steps,
        seed=first,
        noise=noise,
        end=end,
        denoise=denoise,
        start=draws,  # which is not public
        batch_size=batch_size,
        dtype=dtype,
    )
