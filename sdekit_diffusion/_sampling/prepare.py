"""A call of `sample` before its first evaluation: its arguments, checked and resolved."""

from dataclasses import dataclass
from typing import Literal, Unpack

import torch

from sdekit.calling import require_bools
from sdekit_diffusion._arguments.inputs import seed_given
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.arguments import (
    Model,
    StepperOptions,
    place_of,
    require_counts_and_noise,
    shape_given_by,
    size_of,
)
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.fitted_samplers import fitted_sampler
from sdekit_diffusion._sampling.grid import DEFAULT_END
from sdekit_diffusion._sampling.initial_states import start_of
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.methods import method_of
from sdekit_diffusion._sampling.reverse_problems import ReverseProblems, noise_of
from sdekit_diffusion._sampling.start_warnings import warn_of_end, warn_of_last_step
from sdekit_diffusion._sampling.trained_levels import warn_of_levels


@dataclass(frozen=True, eq=False)
class Prepared:
    """A call of `sample`: the model, its device, the method, and the problems of the batches."""

    model: AbstractModel
    device: torch.device
    method: AbstractMethod
    problems: ReverseProblems


def prepared(
    model: Model,
    n: int,
    *,
    denoise: bool = False,
    save: Literal["last", "all"] = "last",
    full_solution: bool = False,
    **options: Unpack[StepperOptions],
) -> Prepared:
    """The arguments of `sample`, which explains them, checked and resolved.

    Raises:
        TypeError, ValueError: as `sample`.
    """
    require_counts_and_noise(n, options)
    require_bools(denoise=denoise)
    start = start_of(options.get("start"), options.get("x_T"))
    shape = options.get("shape")
    end = options.get("end", DEFAULT_END)
    first = options.get("first", 0)
    shape_known = shape_given_by(shape, start.x)
    model, diffusion = as_model(model, options.get("sde"), shape_known)
    method = options.get("method", "default")
    sampler = method_of(method, options.get("steps"), options.get("grid"))
    denoise = denoise or sampler.denoises
    if denoise and sampler.sets_values:
        raise ValueError(
            f"{type(sampler).__name__} sets known values in its last step, which a denoising step "
            "would change: leave out denoise, or the 0 at the end of noise levels"
        )
    n, event = size_of(model, n, shape, start, sampler)
    dtype, device = place_of(model, options.get("dtype"), options.get("device"), start)
    seed = seed_given(options.get("seed"))
    coordinates = Coordinates.of(model, diffusion, event)
    span = start.span(sampler.span(model, coordinates, end), coordinates)
    start.warn(sampler, model, coordinates, span[0])
    if not denoise and (sampler.grid is None or sampler.grid.count is None):
        warn_of_end(model, coordinates, span[1], end)
    warn_of_last_step(sampler.left_over(coordinates, span))
    sampler = fitted_sampler(sampler, model, coordinates, span)
    warn_of_levels(model, sampler, coordinates, span, denoise=denoise)
    noise = noise_of(options.get("noise"), sampler, coordinates, span, seed=seed, first=first)
    problems = ReverseProblems(
        coordinates, span, noise, save, None, n, event, start, seed, first, sampler.steps, dtype,
        denoise, full_solution,
    )  # fmt: skip
    return Prepared(model, device, sampler, problems)
