"""`sample`: samples from a model, under any diffusion, by any method."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sdekit import (
    AbstractNoise,
    AbstractSolver,
    NotFiniteError,
    Point,
    Solution,
    UnfinishedError,
)
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.in_batches import batches
from sdekit_diffusion._sampling.arguments import Model, SampleOptions, require_output
from sdekit_diffusion._sampling.grid import DEFAULT_END, AbstractGrid, Levels
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.noised import Noised
from sdekit_diffusion._sampling.prepare import Prepared, prepared


@overload
def sample(
    model: Model,
    n: int = 1,
    *,
    return_solution: Literal[False] = False,
    **options: Unpack[SampleOptions],
) -> Tensor: ...
@overload
def sample(
    model: Model, n: int = 1, *, return_solution: Literal[True], **options: Unpack[SampleOptions]
) -> Solution: ...


def sample(
    model: Model,
    n: int = 1,
    *,
    sde: AbstractDiffusion | str | None = None,
    method: AbstractMethod | AbstractSolver | str = "default",
    steps: int | None = None,
    grid: AbstractGrid | Levels | str | None = None,
    seed: int | None = None,
    noise: Literal["white", "path"] | AbstractNoise | None = None,
    first: int = 0,
    shape: tuple[int, ...] | None = None,
    x_T: Tensor | None = None,
    start: Noised | None = None,
    end: float = DEFAULT_END,
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

    s is the standard deviation of the data, `data_std` of the model, and m their mean. The prior
    N(alpha_T m, (alpha_T^2 s^2 + sigma_T^2) I) replaces p_T. Where sigma / alpha at T is above
    1e5 s, as under "cosine" and "flow", the solve starts at sigma / alpha = 160 s instead.

    The noise of sample i depends only on (seed, first + i), not on n or batch_size.

    Arguments:
        model: a `ScoreModel`, a `GaussianMixture`, or a plain score `(x, t)` with shape= and sde=.
        n: the number of samples.
        sde: the diffusion to sample under, an object or a name in `DIFFUSIONS`, such as "vp"; the
            model's own unless given. Under another one the solve runs over the range of
            sigma / alpha that both share.
        method: a name in `METHODS`, a method object with its own parameters, or a solver of
            `sdekit`, which solves the reverse equation in the diffusion's own time (`InTime`).
        steps: the number of steps; the method's own by default.
        grid: where the steps are: a name in `GRIDS`, an object such as `Karras(rho=7)`, or the
            decreasing noise levels sigma / alpha themselves, like the sigmas of k-diffusion, with 0
            at the end for a last step to D(x) (`Sigmas`). The method's own by default.
        seed: the seed of all noise; None draws one from torch's default generator.
        noise: "white", new noise on every grid; "path", one `BrownianPath` per sample on the clock
            of the method's noise, so that more steps refine the same samples; or an object whose
            row i is the noise of sample i of this call. By default "path" for adaptive steps and
            "white" for all others.
        first: the index of the first sample, to continue where another call stopped.
        shape: the shape of one sample; the model's by default.
        x_T: initial states `(n, *shape)` instead of draws from the prior, such as latents of
            `encode`: noise of standard deviation sigma_T, not data. A warning is raised where their
            standard deviation or range is not that of such noise; data with the same standard
            deviation and range as the noise are not detected. n may then be left out.
        start: `Noised(x, strength=)` or `Noised(x, level=)`: begin at x with noise of a level below
            the noisy end (SDEdit). n may then be left out.
        end: the noise sigma / alpha at which the solve stops, in units of s. The samples are
            x_t / alpha there: they follow the law of the data with this noise, or with the least
            noise of the diffusion where that is larger. A warning is raised where that, or what the
            last step of `InTime` leaves, is above a fifth of s. Leave it out where the grid is
            noise levels, whose last positive one is the end.
        denoise: replace the result x by D(x), the mean of the data given x; one more evaluation.
        dtype, device: those of the result. By default those of the model, but the dtype of x_T
            where that is wider. Half precision is solved in float32 and cast at the end.
        batch_size: how many samples are solved together; all by default.
        progress: show a progress bar.
        callback: called with each `Point` (step, t, x) of each batch; by adaptive methods only with
            both ends.
        save: "all" keeps every state x_t, in `Solution.xs`; needs return_solution=True.
        return_solution: return the `Solution`, with grid, states, evaluations per sample, and seed.

    Returns:
        a tensor of shape `(n, *shape)`, or a `sdekit.Solution` whose x is this tensor.

    Raises:
        TypeError: for an argument of the wrong type, such as an x_T or start that is not a floating
            tensor, a seed that is not a whole number, or a network whose signature does not fit.
        ValueError: for unknown names, numbers out of range, a device that cannot be used, a missing
            shape or diffusion, a range with nothing to solve, an x_T that is not finite, a dtype
            narrower than that of x_T, results beyond its range, or both x_T and start.
        sdekit.NotFiniteError: when a state is not finite; it names the step, the time and the
            samples.
        sdekit.UnfinishedError: when samples do not reach the end with adaptive steps; it names
            them, with the time, and its `solution` has the others, of all batches so far.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> x = sd.sample(model, 1000, sde="vp", steps=20, seed=0)
        >>> x.shape
        torch.Size([1000, 1])
        >>> solution = sd.sample(model, 4, sde="ve", method="ddim", return_solution=True)
        >>> solution.evaluations.tolist()
        [100, 100, 100, 100]
    """
    require_output(save, batch_size, callback, return_solution=return_solution, progress=progress)
    call = prepared(
        model, n, denoise=denoise, save=save, full_solution=return_solution, sde=sde,
        method=method, steps=steps, grid=grid, seed=seed, noise=noise, first=first, shape=shape,
        x_T=x_T, start=start, end=end, dtype=dtype, device=device,
    )  # fmt: skip
    bar, report = _reporting(progress, callback, call, batch_size)
    problems = call.problems if report is None else replace(call.problems, callback=report)
    event = problems.event
    solutions = []
    with torch.no_grad(), evaluating(call.model, problems.n), bar:
        for i, index, part in batches(call.model, problems.n, batch_size, call.device):
            problem = problems.of(index, i, part)
            try:
                solution = call.method.rows(index, event).run(problem)
            except (NotFiniteError, UnfinishedError) as error:
                raise problems.located(error, problem, solutions, i) from None
            solutions.append(problems.result(problem, solution, i))
    return problems.joined(solutions)


def _reporting(
    progress: bool,
    callback: Callable[[Point], None] | None,
    call: Prepared,
    batch_size: int | None,
) -> tuple[AbstractContextManager[Any], Callable[[Point], None] | None]:
    """A progress bar of the steps of all batches, and a function of each point (step, l, u) that
    updates the bar and calls the callback with (step, t, x). An empty context, and None, where
    nothing is to be reported.

    The bar has no total where `reports` of the method is 0.
    """
    if not progress and callback is None:
        return nullcontext(), None  # even a disabled bar takes time and starts a thread
    n = call.problems.n
    batches = -(-n // (batch_size or max(1, n)))
    total = call.method.reports * batches or None
    bar = tqdm(total=total, unit="step", desc="sampling", disable=not progress)

    def report(point: Point) -> None:
        bar.update(point.step > 0)
        if callback is not None:
            callback(call.problems.coordinates.physical_point(point))

    return bar, report
