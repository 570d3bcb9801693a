"""The one call: samples from a model, under any diffusion, by any method."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sdekit import AbstractSolver, Point, Solution, WhiteNoise, fresh_seed
from sdekit_diffusion._diffusion import AbstractDiffusion
from sdekit_diffusion._model import AbstractModel, as_model
from sdekit_diffusion._samplers import AbstractMethod, method_of, span_of

Model = AbstractModel | Callable[[Tensor, Tensor], Tensor]


@contextmanager
def evaluating(model: AbstractModel) -> Iterator[None]:
    """The model without dropout, and afterwards as it was."""
    modules = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


# fmt: off
@overload
def sample(
    model: Model, n: int = 1, *, sde: AbstractDiffusion | str | None = None,
    method: AbstractMethod | AbstractSolver | str = "default", steps: int | None = None, seed: int | None = None,
    first: int = 0, shape: tuple[int, ...] | None = None, x_T: Tensor | None = None, end: float = 1e-3, denoise: bool = False,
    dtype: torch.dtype | None = None, device: torch.device | str | None = None, batch_size: int | None = None,
    progress: bool = False, callback: Callable[[Point], None] | None = None, save: Literal["last", "all"] = "last",
    return_solution: Literal[False] = False,
) -> Tensor: ...
@overload
def sample(
    model: Model, n: int = 1, *, sde: AbstractDiffusion | str | None = None,
    method: AbstractMethod | AbstractSolver | str = "default", steps: int | None = None, seed: int | None = None,
    first: int = 0, shape: tuple[int, ...] | None = None, x_T: Tensor | None = None, end: float = 1e-3, denoise: bool = False,
    dtype: torch.dtype | None = None, device: torch.device | str | None = None, batch_size: int | None = None,
    progress: bool = False, callback: Callable[[Point], None] | None = None, save: Literal["last", "all"] = "last",
    return_solution: Literal[True],
) -> Solution: ...
# fmt: on
def sample(
    model: Model,
    n: int = 1,
    *,
    sde: AbstractDiffusion | str | None = None,
    method: AbstractMethod | AbstractSolver | str = "default",
    steps: int | None = None,
    seed: int | None = None,
    first: int = 0,
    shape: tuple[int, ...] | None = None,
    x_T: Tensor | None = None,
    end: float = 1e-3,
    denoise: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    callback: Callable[[Point], None] | None = None,
    save: Literal["last", "all"] = "last",
    return_solution: bool = False,
) -> Tensor | Solution:
    """Draws n samples: x_T from the prior N(0, sigma_T^2 I), then the reverse equation down to sigma / alpha = end.

    The prior stands for p_T, whose mean is alpha_T times that of the data: centre the data, or raise VE's sigma_max.

    Sample i depends on (seed, first + i) and on nothing else: not on n, nor on batch_size.

    Arguments:
        model: a `ScoreModel`, a `GaussianMixture`, or a plain score `(x, t)` with shape= and sde=.
        n: how many.
        sde: the diffusion to sample under, "ve", "vp", "subvp" or an object; the model's own unless given. Under another one
            the solve runs over the range of sigma / alpha that both share.
        method: "default", "euler_maruyama", "pc", "ode", a method object with its own parameters, or a solver.
        steps: the number of steps; the method's own unless given.
        seed: what all noise depends on; None takes a fresh one from torch's default generator.
        first: the index of the first sample, to go on where another call stopped.
        shape: the shape of one sample; the model's unless given.
        x_T: initial states `(n, *shape)` instead of the prior's.
        end: sigma / alpha where the solve stops; the samples follow the law of the data at that noise.
        denoise: replace the result x by D(x), one evaluation more.
        dtype, device: the state's; the model's unless given.
        batch_size: how many samples are solved together; all unless given.
        progress: show a bar.
        callback: called with each `Point` (step, t, x) of each batch.
        save: "all" keeps every state, in `Solution.xs`.
        return_solution: return the `Solution`, with grid, states, evaluations a sample and seed.

    Returns:
        a tensor of shape `(n, *shape)`, or a `sdekit.Solution` whose x it is.

    Raises:
        ValueError: for unknown names, a missing shape or diffusion, or a range with nothing to solve.
        sdekit.NotFiniteError: when the model spoils the state; it names the step, the time and the samples.
    """
    model, diffusion = as_model(model, sde, shape)
    chosen = method_of(method)
    chosen = chosen if steps is None else replace(chosen, steps=steps)
    span = span_of(model, diffusion, end)
    own_dtype, own_device = model.place()
    dtype, device = dtype or own_dtype, torch.device(device or own_device)
    start = float(diffusion.time(span[0]))
    seed = fresh_seed() if seed is None else seed
    if x_T is None:
        event = shape_of(model, shape)
    else:
        if not x_T.is_floating_point():
            raise TypeError(f"x_T must be floating, not {x_T.dtype}; use .float()")
        n, event = len(x_T), tuple(x_T.shape[1:])
        x_T = x_T.to(device=device, dtype=dtype)
    if n < 0 or (batch_size is not None and batch_size < 1):
        raise ValueError(f"n counts samples from 0 on and batch_size from 1; not {n} and {batch_size}")
    if save not in ("last", "all"):
        raise ValueError(f"save must be 'last' or 'all', not {save!r}")

    solutions = []
    size = max(1, n if batch_size is None else batch_size)
    bar = tqdm(total=chosen.steps * -(-n // size) or None, disable=not progress, unit="step", desc="sampling")

    def report(point: Point) -> None:
        bar.update(point.step > 0)
        if callback is not None:
            callback(point)

    with torch.no_grad(), evaluating(model), bar:
        for i in range(0, max(n, 1), size):
            count = min(size, n - i)
            noise = WhiteNoise(seed, first=first + i)
            if x_T is not None:
                x = x_T[i : i + count]
            else:
                x = diffusion.prior((count, *event), seed=noise.seed, first=first + i, t=start, dtype=dtype, device=device)
            solution = chosen.run(model, diffusion, x, span, noise, save=save == "all", callback=report)
            if denoise and count:
                x = model.denoise(float(diffusion.time(span[1])), solution.x, diffusion)
                solution = replace(solution, x=x, evaluations=solution.evaluations + 1)
            solutions.append(solution)
    if not return_solution:
        return torch.cat([solution.x for solution in solutions])
    xs = torch.cat([solution.xs for solution in solutions], dim=1) if save == "all" else None
    return Solution(
        torch.cat([solution.x for solution in solutions]),
        solutions[0].ts,
        xs,
        max(solution.evaluations for solution in solutions),
        seed,
    )


def shape_of(model: AbstractModel, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of one sample, from the model or from the caller.

    Raises:
        ValueError: when neither knows it, or they differ.
    """
    if model.shape is None and shape is None:
        raise ValueError("the shape of one sample is not known: pass shape=(1, 28, 28), for example")
    if shape is not None and model.shape is not None and tuple(shape) != tuple(model.shape):
        raise ValueError(f"the model makes samples of shape {tuple(model.shape)}, not {tuple(shape)}")
    known = model.shape if shape is None else shape
    assert known is not None
    return tuple(known)
