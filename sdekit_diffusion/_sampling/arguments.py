"""The arguments of `sample`: its options as types, and checks."""

import inspect
from collections.abc import Callable
from typing import Literal, TypedDict

import torch
from torch import Tensor

from sdekit import AbstractNoise, AbstractSolver, Point, did_you_mean
from sdekit.calling import require_bools
from sdekit_diffusion._arguments.inputs import (
    available_device,
    require_counts,
    require_whole,
    shape_given,
)
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.grid import AbstractGrid, Levels
from sdekit_diffusion._sampling.initial_states import AbstractStart
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.noised import Noised

Model = AbstractModel | Callable[[Tensor, Tensor], Tensor]


class StepperOptions(TypedDict, total=False):
    """The keyword options of `stepper` as a type, for functions that pass them on; `sample`, which
    has them too, explains them.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> options: sd.StepperOptions = {"sde": "vp", "steps": 20, "seed": 0}
        >>> sd.stepper(model, 4, **options).remaining
        20
    """

    sde: AbstractDiffusion | str | None
    method: AbstractMethod | AbstractSolver | str
    steps: int | None
    grid: AbstractGrid | Levels | str | None
    seed: int | None
    noise: Literal["white", "path"] | AbstractNoise | None
    first: int
    shape: tuple[int, ...] | None
    x_T: Tensor | None
    start: Noised | None
    end: float
    dtype: torch.dtype | None
    device: torch.device | str | None


class SampleOptions(StepperOptions, total=False):
    """The keyword options of `sample` as a type, for functions that pass them on; `sample` explains
    them.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> options: sd.SampleOptions = {"sde": "vp", "steps": 20, "seed": 0}
        >>> sd.sample(model, 4, **options).shape
        torch.Size([4, 1])
    """

    denoise: bool
    batch_size: int | None
    progress: bool
    callback: Callable[[Point], None] | None
    save: Literal["last", "all"]


_ELSEWHERE = {  # names in other libraries
    "sigmas": "grid", "timesteps": "grid", "num_steps": "steps", "num_inference_steps": "steps",
    "generator": "seed", "latents": "x_T", "solver": "method", "sampler": "method",
    "scheduler": "method",
}  # fmt: skip


def require_known(options: StepperOptions) -> None:
    """Refuses options that `stepper` does not have.

    Raises:
        TypeError: with those that it has.
    """
    known = inspect.get_annotations(StepperOptions)
    for name in options:
        if name not in known:
            raise TypeError(
                f"stepper() got an unexpected keyword argument {name!r}"
                f"{did_you_mean(name, tuple(known), _ELSEWHERE)}: its options are "
                f"{', '.join(known)}"
            )


def require_output(
    save: str,
    batch_size: int | None,
    callback: object,
    *,
    return_solution: bool,
    progress: bool,
) -> None:
    """Refuses unknown names, states that would not be returned, batches of no samples, and what is
    not a bool or not a function.

    Raises:
        TypeError, ValueError: with what is allowed.
    """
    require_bools(return_solution=return_solution, progress=progress)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a function of a Point, not {callback!r:.60}")
    if save not in ("last", "all") or (save == "all" and not return_solution):
        raise ValueError(
            "save must be 'last', or 'all' with return_solution=True; not "
            f"{save!r}{did_you_mean(save, ('all',))}"
        )
    if batch_size is not None:
        require_whole("batch_size", batch_size, 1)


def require_counts_and_noise(n: int, options: StepperOptions) -> None:
    """Refuses numbers that are not whole, or out of range, and an unknown noise.

    Raises:
        TypeError, ValueError: with what is allowed.
    """
    require_whole("n", n, 0)
    require_whole("first", options.get("first", 0), 0)
    steps = options.get("steps")
    if steps is not None:
        require_counts(steps=steps)
    noise = options.get("noise")
    if noise not in (None, "white", "path") and not isinstance(noise, AbstractNoise):
        raise ValueError(
            "noise must be 'white', 'path', or an object such as BrownianPath(seed, knots); not "
            f"{noise!r}{did_you_mean(noise, ('white', 'path'))}"
        )


def shape_given_by(shape: tuple[int, ...] | None, x: Tensor | None) -> tuple[int, ...] | None:
    """The shape of one sample where the caller gives it, by itself or as that of states x."""
    return tuple(x.shape[1:]) if shape is None and isinstance(x, Tensor) else shape


def size_of(
    model: AbstractModel,
    n: int,
    shape: tuple[int, ...] | None,
    start: AbstractStart,
    method: AbstractMethod,
) -> tuple[int, tuple[int, ...]]:
    """The number of samples and the shape of one: those of given initial states, or of values that
    the method has per sample; else those of the arguments.

    Raises:
        TypeError, ValueError: for states that cannot be used, and as `shape_of`.
    """
    start.require(model)
    event = shape_of(model, shape) if start.x is None else tuple(start.x.shape[1:])
    return start.count(method.count(start.count(n), event)), event


def place_of(
    model: AbstractModel,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    start: AbstractStart,
) -> tuple[torch.dtype, torch.device]:
    """The dtype and the device of the result: the arguments, else those of the model, but the dtype
    of given states where that is wider.

    Raises:
        TypeError, ValueError: as `dtype_of`, or for a device that cannot be used.
    """
    own_dtype, own_device = model.place()
    return (
        dtype_of(dtype, start, own_dtype),
        own_device if device is None else available_device(device),
    )


def dtype_of(
    requested: torch.dtype | None, start: AbstractStart, model_dtype: torch.dtype
) -> torch.dtype:
    """The dtype of the result: the requested one, else the wider of those of given states and of
    the model.

    Raises:
        TypeError: for a dtype that is not floating.
        ValueError: for a dtype narrower than that of given states.
    """
    x = start.x
    own = model_dtype if x is None else torch.promote_types(model_dtype, x.dtype)
    dtype = floating_dtype(requested or own)
    state_dtype = torch.promote_types(dtype, torch.float32)
    if x is not None and torch.promote_types(state_dtype, x.dtype) != state_dtype:
        raise ValueError(
            f"{start.name} is {x.dtype} and dtype={dtype} would drop its digits: leave dtype out, "
            f"or use {start.name}.to({dtype})"
        )
    return dtype


def floating_dtype(dtype: object) -> torch.dtype:
    """The dtype, unless states would be rounded to integers in it.

    Raises:
        TypeError: for one that is not floating.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(
            f"dtype is the state's and must be floating, such as torch.float32, not {dtype!r}"
        )
    return dtype


def shape_of(model: AbstractModel, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of one sample, from the model or from the caller.

    Raises:
        TypeError: when the argument is not a shape.
        ValueError: when neither has a shape, or they differ.
    """
    if model.shape is None and shape is None:
        raise ValueError(
            "the shape of one sample is not known: pass shape=(1, 28, 28), for example"
        )
    shape = None if shape is None else shape_given(shape)
    if shape is not None and model.shape is not None and shape != tuple(model.shape):
        raise ValueError(
            f"the model makes samples of shape {tuple(model.shape)}, not {tuple(shape)}"
        )
    event = model.shape if shape is None else shape
    assert event is not None
    return tuple(event)
