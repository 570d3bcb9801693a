"""A call of `sample` before its first evaluation: its arguments, checked and resolved."""

from dataclasses import dataclass
from typing import Literal

import torch

from sdekit import AbstractNoise, AbstractSolver
from sdekit_diffusion._common.inputs import seed_given
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._models.score_model import as_model
from sdekit_diffusion._sampling.arguments import Model, place_of, shape_given_by, size_of
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.fitted_samplers import fitted_sampler
from sdekit_diffusion._sampling.grids import AbstractGrid, Levels
from sdekit_diffusion._sampling.initial_states import AbstractStart
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.methods import method_of
from sdekit_diffusion._sampling.reverse_problems import ReverseProblems, noise_of
from sdekit_diffusion._sampling.start import warn_of_end, warn_of_last_step
from sdekit_diffusion._sampling.trained_levels import warn_of_levels


@dataclass(frozen=True, eq=False)
class Prepared:
    """A call of `sample`: the model, its device, the method, and the problems of the batches."""

    model: AbstractModel
    device: torch.device
    method: AbstractMethod
    problems: ReverseProblems


def prepared(
    begin: AbstractStart,
    model: Model,
    n: int,
    *,
    sde: AbstractDiffusion | str | None,
    method: AbstractMethod | AbstractSolver | str,
    steps: int | None,
    grid: AbstractGrid | Levels | str | None,
    seed: int | None,
    noise: Literal["white", "path"] | AbstractNoise | None,
    first: int,
    shape: tuple[int, ...] | None,
    end: float,
    denoise: bool,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    save: Literal["last", "all"],
    full_solution: bool,
) -> Prepared:
    """The arguments of `sample`, which explains them, checked and resolved; `begin` has the initial
    states.

    Raises:
        TypeError, ValueError: as `sample`.
    """
    model, diffusion = as_model(model, sde, shape_given_by(shape, begin.x), stacklevel=4)
    sampler = method_of(method, steps, grid)
    denoise = denoise or sampler.denoises
    if denoise and sampler.sets_values:
        raise ValueError(
            f"{type(sampler).__name__} sets known values in its last step, which a denoising step "
            "would change: leave out denoise, or the 0 at the end of noise levels"
        )
    n, event = size_of(model, n, shape, begin, sampler)
    dtype, device = place_of(model, dtype, device, begin)
    seed = seed_given(seed)
    coordinates = Coordinates.of(model, diffusion, event)
    span = begin.span(sampler.span(model, coordinates, end), coordinates)
    begin.warn(sampler, model, coordinates, span[0])
    if not denoise and (sampler.grid is None or sampler.grid.count is None):
        warn_of_end(model, coordinates, span[1], end, stacklevel=4)
    warn_of_last_step(sampler.left_over(coordinates, span), stacklevel=4)
    sampler = fitted_sampler(sampler, model, coordinates, span)
    warn_of_levels(model, sampler, coordinates, span, denoise=denoise, stacklevel=4)
    noise = noise_of(noise, sampler, coordinates, span, seed=seed, first=first)
    problems = ReverseProblems(
        coordinates, span, noise, save, None, n, event, begin, seed, first, sampler.steps, dtype,
        denoise, full_solution,
    )  # fmt: skip
    return Prepared(model, device, sampler, problems)
