"""The batches of a call of `sample`: their reverse problems and results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sdekit import (
    AbstractNoise,
    BrownianPath,
    NotFiniteError,
    Point,
    Solution,
    UnfinishedError,
    WhiteNoise,
    normal,
)
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.initial_states import AbstractStart
from sdekit_diffusion._sampling.method import AbstractMethod, ReverseProblem
from sdekit_diffusion._sampling.start_warnings import centre


def noise_of(
    choice: Literal["white", "path"] | AbstractNoise | None,
    method: AbstractMethod,
    coordinates: Coordinates,
    span: Span,
    *,
    seed: int,
    first: int,
) -> AbstractNoise:
    """The noise object of a name; by default of the name that is the method's."""
    choice = method.noise if choice is None else choice
    if choice == "white":
        return WhiteNoise(seed, first=first)
    if choice == "path":
        return BrownianPath(seed, method.knots(coordinates, span).tolist(), first=first)
    return choice


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Results in their dtype, which may be half precision.

    Raises:
        ValueError: for numbers beyond the range of a narrower dtype.
    """
    if x.dtype == dtype:
        return x
    narrow = x.to(dtype)
    if bool((narrow.isinf() & x.isfinite()).any()):
        raise ValueError(
            f"the result has numbers up to {float(x[x.isfinite()].abs().max()):.3g}, and {dtype} "
            f"holds those up to {torch.finfo(dtype).max:.5g}: take dtype=torch.float32"
        )
    return narrow


@dataclass(frozen=True, eq=False)
class ReverseProblems:
    """The reverse problems of a call, one per batch, from noise to data.

    Arguments:
        coordinates, span, noise, save, callback: as in `ReverseProblem`.
        n, event: the number of samples, and the shape of one.
        start: the initial states.
        seed, first: the seed and the first index of their draws.
        steps: the number of steps of the method.
        dtype: that of the result and of the states; but states are float32 for half precision,
            whose rounding is larger than the increments of a fine grid.
        denoise: whether the result is D(x).
        full_solution: whether the result is a solution, in x and t of the diffusion.
    """

    coordinates: Coordinates
    span: Span
    noise: AbstractNoise
    save: Literal["last", "all"]
    callback: Callable[[Point], None] | None
    n: int
    event: tuple[int, ...]
    start: AbstractStart
    seed: int
    first: int
    steps: int
    dtype: torch.dtype
    denoise: bool
    full_solution: bool

    def of(self, index: Tensor, i: int, model: AbstractModel) -> ReverseProblem:
        """The reverse problem of a batch of samples, `index`, the first of which is sample i."""
        state_dtype = torch.promote_types(self.dtype, torch.float32)

        def draw(counter: int) -> Tensor:
            rows = index + self.first if self.first else index
            return normal(self.seed, rows, self.event, counter=counter, dtype=state_dtype)

        x = self.start.rows(i, index.shape[0])
        x = None if x is None else x.to(device=index.device, dtype=state_dtype)
        standard = self.coordinates.standardised(model)
        u = self.start.states(self.coordinates, self.span[0], x, draw)
        return ReverseProblem(
            standard,
            self.coordinates,
            u + centre(standard, self.span[0], u) if self._moves(model) else u,
            self.span,
            self.noise.rows(index) if len(index) < self.n else self.noise,
            self.save,
            self.callback,
        )

    def result(self, problem: ReverseProblem, solution: Solution, i: int) -> Solution:
        """A solution whose x is the samples: x_t / alpha, or D(x) with `denoise`, in the dtype."""
        samples = self._denoised(problem, solution) if self.denoise else self._samples(solution)
        if self.denoise:
            self._require_finite(samples.x, i)
        if self._moves(problem.model):
            samples = replace(samples, evaluations=samples.evaluations + 1)
        return samples

    def _moves(self, model: AbstractModel) -> bool:
        """Whether the initial states are shifted to the mean of x_T, which takes an evaluation."""
        return self.start.moves and model.starts_at_mean

    def _samples(self, solution: Solution) -> Solution:
        physical = self.coordinates.physical_solution(solution) if self.full_solution else solution
        return self._with(physical, self.coordinates.leave(self.span, solution.x))

    def _denoised(self, problem: ReverseProblem, solution: Solution) -> Solution:
        samples = self._samples(solution)
        if not len(solution.x):
            return samples
        x = self.coordinates.denoised(problem.model.predict_data(self.span[1], solution.x))
        return replace(self._with(samples, x), evaluations=samples.evaluations + 1)

    def _with(self, solution: Solution, x: Tensor) -> Solution:
        """A solution with another x, in the dtype of the result."""
        xs = None if solution.xs is None else cast(solution.xs, self.dtype)
        return solution.with_states(cast(x, self.dtype), xs, solution.ts)

    def _require_finite(self, x: Tensor, i: int) -> None:
        failed = ~torch.isfinite(x).flatten(1).all(dim=1) if x.ndim > 1 else ~torch.isfinite(x)
        if rows := failed.nonzero().flatten().tolist():
            unit = "the denoising that follows step"
            t = float(self.coordinates.time(self.span[1]))
            error = NotFiniteError(self.steps, t, rows, len(x), unit)
            raise error.relocated(after=i, total=self.n)

    def joined(self, solutions: Sequence[Solution]) -> Tensor | Solution:
        """The results of all batches: the samples, or with `full_solution` the solution."""
        if not self.full_solution:
            states = [solution.x for solution in solutions]
            return states[0].contiguous() if len(states) == 1 else torch.cat(states)
        return replace(Solution.joined(solutions), seed=self.seed)

    def located(
        self,
        error: NotFiniteError | UnfinishedError,
        problem: ReverseProblem,
        previous: Sequence[Solution],
        i: int,
    ) -> NotFiniteError | UnfinishedError:
        """The error of a batch that begins at sample i, with the times of the diffusion and the
        indices of samples in the call.
        """
        if isinstance(error, NotFiniteError):
            return self.coordinates.locate_failure(error, i, self.n)
        return self._unfinished(error, problem, previous, i)

    def _unfinished(
        self, error: UnfinishedError, problem: ReverseProblem, previous: Sequence[Solution], i: int
    ) -> UnfinishedError:
        """The error of a batch that begins at sample i, with the samples of previous batches."""
        current = (
            self._denoised(problem, error.solution)
            if self.denoise
            else self._samples(error.solution)
        )
        ts = torch.as_tensor(self.coordinates.time(error.solution.ts))
        solution = replace(Solution.joined([*previous, current]), ts=ts, seed=self.seed)
        reached = torch.as_tensor(self.coordinates.time(error.reached))
        done = torch.full((i,), float(solution.ts[-1])).to(reached)
        return UnfinishedError(solution, torch.cat([done, reached]), advice=error.advice)
