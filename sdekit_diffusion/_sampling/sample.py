"""The one call: samples from a model, under any diffusion, by any method."""

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import Literal, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sdekit import (
    AbstractNoise,
    AbstractSolver,
    BrownianPath,
    NotFiniteError,
    Point,
    Solution,
    UnfinishedError,
    WhiteNoise,
    did_you_mean,
    fresh_seed,
    normal,
)
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inputs import usable
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.in_batches import batches
from sdekit_diffusion._models.model import AbstractModel, as_model
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.grids import AbstractGrid
from sdekit_diffusion._sampling.method import AbstractMethod, Descent
from sdekit_diffusion._sampling.methods import method_of
from sdekit_diffusion._sampling.start import warn_of_prior, warn_of_start

Model = AbstractModel | Callable[[Tensor, Tensor], Tensor]


@overload
def sample(
    model: Model,
    n: int = 1,
    *,
    sde: AbstractDiffusion | str | None = None,
    method: AbstractMethod | AbstractSolver | str = "default",
    steps: int | None = None,
    grid: AbstractGrid | str | None = None,
    seed: int | None = None,
    noise: Literal["white", "path"] | AbstractNoise | None = None,
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
    return_solution: Literal[False] = False,
) -> Tensor: ...
@overload
def sample(
    model: Model,
    n: int = 1,
    *,
    sde: AbstractDiffusion | str | None = None,
    method: AbstractMethod | AbstractSolver | str = "default",
    steps: int | None = None,
    grid: AbstractGrid | str | None = None,
    seed: int | None = None,
    noise: Literal["white", "path"] | AbstractNoise | None = None,
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
    return_solution: Literal[True],
) -> Solution: ...


def sample(
    model: Model,
    n: int = 1,
    *,
    sde: AbstractDiffusion | str | None = None,
    method: AbstractMethod | AbstractSolver | str = "default",
    steps: int | None = None,
    grid: AbstractGrid | str | None = None,
    seed: int | None = None,
    noise: Literal["white", "path"] | AbstractNoise | None = None,
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
    """Draws n samples: x_T from the prior, then the reverse equation down to sigma / alpha = end s.

    s is the standard deviation of the data, `data_std` of the model. The prior N(alpha_T mean,
    (alpha_T^2 s^2 + sigma_T^2) I) stands for p_T. Where sigma / alpha at T is above 1e5 s, as under
    "cosine" and "flow", the solve starts at sigma / alpha = 1000 s.

    Sample i depends on (seed, first + i) and on nothing else: not on n, nor on batch_size.

    Arguments:
        model: a `ScoreModel`, a `GaussianMixture`, or a plain score `(x, t)` with shape= and sde=.
        n: the number of samples.
        sde: the diffusion to sample under, an object or a name in `DIFFUSIONS`, such as "vp"; the
            model's own unless given. Under another one the solve runs over the range of
            sigma / alpha that both share.
        method: a name in `METHODS`, a method object with its own parameters, or a solver.
        steps: the number of steps; the method's own unless given.
        grid: where the steps are, "native", "time", "quadratic", "sigma", "karras", "log_snr",
            "focused" or an object such as `Karras(rho=7)`; the method's own unless given.
        seed: of all noise; None takes a new one from torch's default generator.
        noise: "white", other noise on every grid; "path", one `BrownianPath` per sample on the
            clock of the method's noise, so that more steps refine the same samples; or an object
            whose row i is the noise of sample i of this call. Unless given, "path" for adaptive
            steps and "white" for all others.
        first: the index of the first sample, to continue where another call stopped.
        shape: the shape of one sample; the model's unless given.
        x_T: initial states `(n, *shape)` instead of the prior's, such as latents of `encode`: noise
            of standard deviation sigma_T, not data. A warning is raised where their standard
            deviation or range is not that of such noise; data of more than one sigma_T that spread
            as the noise does cannot be told from it. n may then be left out.
        end: the noise sigma / alpha at which the solve stops, in units of s; the samples follow the
            law of the data with this noise.
        denoise: replace the result x by D(x), which costs one evaluation.
        dtype, device: those of the result; those of the model unless given, or the dtype of x_T
            where that is wider. Half precision is solved in float32 and cast at the end.
        batch_size: how many samples are solved together; all unless given.
        progress: show a bar.
        callback: called with each `Point` (step, t, x) of each batch; by "ode" only with both ends.
        save: "all" keeps every state, in `Solution.xs`; needs return_solution=True.
        return_solution: return the `Solution`, with grid, states, evaluations per sample, and seed.

    Returns:
        a tensor of shape `(n, *shape)`, or a `sdekit.Solution` that has it as x.

    Raises:
        TypeError: for an x_T that is no floating tensor, or a network whose signature does not fit.
        ValueError: for unknown names, a device that cannot be used, a missing shape or diffusion, a
            range with nothing to solve, or a dtype narrower than that of x_T.
        sdekit.NotFiniteError: when a state is not finite; it names the step, the time and the
            samples.
        sdekit.UnfinishedError: when samples of "ode" do not reach the end; it names them, with the
            time, and its `solution` has the others, of all batches so far.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> x = sd.sample(model, 1000, sde="vp", steps=20, seed=0)
        >>> x.shape
        torch.Size([1000, 1])
        >>> solution = sd.sample(model, 4, sde="ve", method="ddim", return_solution=True)
        >>> solution.evaluations.tolist()
        [100, 100, 100, 100]
    """
    given = tuple(x_T.shape[1:]) if shape is None and isinstance(x_T, Tensor) else shape
    model, diffusion = as_model(model, sde, given)
    _require(n, steps, batch_size, first, save, return_solution, noise)
    chosen = method_of(method, steps, grid)
    x_T = None if x_T is None else _given(x_T, n, model)
    own_dtype, own_device = model.place()
    dtype = _dtype(dtype, x_T, own_dtype)
    device = own_device if device is None else usable(device)
    n, event = (n, shape_of(model, shape)) if x_T is None else (len(x_T), tuple(x_T.shape[1:]))
    seed = fresh_seed() if seed is None else seed
    coordinates = Coordinates.of(model, diffusion, event)
    span = coordinates.span(model, end)
    if x_T is None and not chosen.forgets:
        warn_of_prior(model, coordinates)
    elif x_T is not None and not chosen.forgets:
        warn_of_start(x_T, coordinates, span[0])
    # Increments of a fine grid are below the rounding of a state in half precision: it is kept in
    # float32 and cast at the end.
    wide = torch.promote_types(dtype, torch.float32)
    noise = chosen.noise if noise is None else noise
    if noise == "white":
        noise = WhiteNoise(seed, first=first)
    elif noise == "path":
        noise = BrownianPath(seed, chosen.knots(coordinates, span).tolist(), first=first)
    start = float(coordinates.time(span[0]))
    size = max(1, n if batch_size is None else batch_size)
    solutions = []
    bar = tqdm(
        total=chosen.steps * -(-n // size) or None,
        disable=not progress,
        unit="step",
        desc="sampling",
    )

    def report(point: Point) -> None:
        bar.update(point.step > 0)
        if callback is not None:
            callback(coordinates.physical_point(point))

    watch = report if progress or callback is not None else None
    with torch.no_grad(), evaluating(model, n), bar:
        for i, index, part in batches(model, n, size, device):
            count = len(index)
            if x_T is not None:
                u = coordinates.standard(start, x_T[i : i + count].to(device=device, dtype=wide))
            else:
                u = normal(seed, first + index, event, dtype=wide)
            some = coordinates.standardised(part)
            try:
                solution = chosen.run(
                    Descent(some, coordinates, u, span, noise.rows(index), save, watch)
                )
            except NotFiniteError as error:
                raise coordinates.located(error, i, n) from None
            except UnfinishedError as error:
                found = Solution.joined([*solutions, coordinates.physical_solution(error.solution)])
                reached = torch.as_tensor(coordinates.time(error.reached))
                reached = torch.cat([torch.full((i,), float(found.ts[-1])).to(reached), reached])
                raise UnfinishedError(found, reached, advice=error.advice) from None
            data = (
                coordinates.denoised(some.predict_data(span[1], solution.x))
                if denoise and count
                else None
            )
            solution = coordinates.physical_solution(solution)
            x = solution.x
            if data is not None:
                x = data
                if (
                    bad := (~torch.isfinite(x).reshape(count, -1).all(dim=1))
                    .nonzero()
                    .flatten()
                    .tolist()
                ):
                    last = float(solution.ts[-1])
                    error = NotFiniteError(
                        chosen.steps, last, bad, count, "the denoising that follows step"
                    )
                    raise error.seen(after=i, total=n)
                solution = replace(solution, evaluations=solution.evaluations + 1)
            solutions.append(
                replace(
                    solution,
                    x=x.to(dtype),
                    xs=None if solution.xs is None else solution.xs.to(dtype),
                )
            )
    if not return_solution:
        return torch.cat([solution.x for solution in solutions])
    return replace(Solution.joined(solutions), seed=seed)


def _require(
    n: int,
    steps: int | None,
    batch_size: int | None,
    first: int,
    save: str,
    return_solution: bool,
    noise: object,
) -> None:
    """Refuses numbers out of range and options that would be ignored."""
    for name, value in (("n", n), ("batch_size", batch_size), ("first", first)):
        if not isinstance(value, Integral | None):
            raise TypeError(f"{name} must be an integer, not {value!r}")
    if steps is not None and (not isinstance(steps, Integral) or steps < 1):
        raise ValueError(f"steps must be at least one step, a whole number of them; not {steps}")
    if n < 0 or (batch_size is not None and batch_size < 1):
        raise ValueError(
            f"n counts samples from 0 on and batch_size from 1; not {n} and {batch_size}"
        )
    if save not in ("last", "all") or (save == "all" and not return_solution):
        raise ValueError(
            "save must be 'last', or 'all' with return_solution=True; not "
            f"{save!r}{did_you_mean(save, ('all',))}"
        )
    if noise not in (None, "white", "path") and not isinstance(noise, AbstractNoise):
        raise ValueError(
            "noise must be 'white', 'path', or an object such as BrownianPath(seed, knots); "
            f"not {noise!r}{did_you_mean(noise, ('white', 'path'))}"
        )


def _dtype(given: torch.dtype | None, x_T: Tensor | None, own: torch.dtype) -> torch.dtype:
    """The result's: as given, else that of x_T where it is wider than the model's, else the
    model's.

    Raises:
        TypeError: for one that is not floating.
        ValueError: for one in which the digits of x_T would be lost.
    """
    dtype = given or (own if x_T is None else torch.promote_types(own, x_T.dtype))
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(
            f"dtype is the state's and must be floating, such as torch.float32, not {dtype!r}"
        )
    wide = torch.promote_types(dtype, torch.float32)
    if x_T is not None and torch.promote_types(wide, x_T.dtype) != wide:
        raise ValueError(
            f"x_T is {x_T.dtype} and dtype={dtype} would drop its digits: leave dtype "
            f"out, or use x_T.to({dtype})"
        )
    return dtype


def _given(x_T: Tensor, n: int, model: AbstractModel) -> Tensor:
    """Initial states from a user, checked."""
    if not isinstance(x_T, Tensor) or not x_T.is_floating_point() or x_T.ndim < 1:
        given = x_T.dtype if isinstance(x_T, Tensor) else type(x_T).__name__
        raise TypeError(
            f"x_T must be a floating tensor of shape (n, *shape), not {given}; use "
            "torch.as_tensor and .float()"
        )
    if n not in (1, len(x_T)) or (
        model.shape is not None and tuple(x_T.shape[1:]) != tuple(model.shape)
    ):
        known = "(n, *shape)" if model.shape is None else f"(n, {', '.join(map(str, model.shape))})"
        raise ValueError(
            f"x_T has shape {tuple(x_T.shape)}; it must be {known}, with n = {n} left "
            "out or the same"
        )
    return x_T


def shape_of(model: AbstractModel, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of one sample, from the model or from the caller.

    Raises:
        ValueError: when neither knows it, or they differ.
    """
    if model.shape is None and shape is None:
        raise ValueError(
            "the shape of one sample is not known: pass shape=(1, 28, 28), for example"
        )
    if shape is not None and model.shape is not None and tuple(shape) != tuple(model.shape):
        raise ValueError(
            f"the model makes samples of shape {tuple(model.shape)}, not {tuple(shape)}"
        )
    known = model.shape if shape is None else shape
    assert known is not None
    return tuple(known)
