"""The batches of a call of `sample`: what is solved for each of them, and what comes of it."""

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
from sdekit_diffusion._sampling.method import AbstractMethod, Descent


def noise_of(
    given: Literal["white", "path"] | AbstractNoise | None,
    method: AbstractMethod,
    coordinates: Coordinates,
    span: Span,
    *,
    seed: int,
    first: int,
) -> AbstractNoise:
    """The noise of a name, or of the method."""
    given = method.noise if given is None else given
    if given == "white":
        return WhiteNoise(seed, first=first)
    if given == "path":
        return BrownianPath(seed, method.knots(coordinates, span).tolist(), first=first)
    return given


@dataclass(frozen=True, eq=False)
class Descents:
    """The solves of a call, one a batch, from noise to data.

    Arguments:
        coordinates, span, noise, save, callback: as in `Descent`.
        n, event: the number of samples, and the shape of one.
        given: the initial states x_T; None draws them from the prior.
        seed, first: of the prior's draws.
        steps: how many the method takes.
        dtype: of the result. States have it too, but float32 for half precision, whose rounding is
            larger than the increments of a fine grid.
        denoise: whether the result is D(x).
        whole: whether solutions have the times and states of the diffusion, beside their samples.
    """

    coordinates: Coordinates
    span: Span
    noise: AbstractNoise
    save: Literal["last", "all"]
    callback: Callable[[Point], None] | None
    n: int
    event: tuple[int, ...]
    given: Tensor | None
    seed: int
    first: int
    steps: int
    dtype: torch.dtype
    denoise: bool
    whole: bool

    def of(self, index: Tensor, i: int, model: AbstractModel) -> Descent:
        """What is solved for the samples of an index, which begins at i."""
        wide = torch.promote_types(self.dtype, torch.float32)
        if self.given is None:
            u = normal(self.seed, self.first + index, self.event, dtype=wide)
        else:
            x = self.given[i : i + len(index)].to(device=index.device, dtype=wide)
            u = self.coordinates.standard(float(self.coordinates.time(self.span[0])), x)
        return Descent(
            self.coordinates.standardised(model),
            self.coordinates,
            u,
            self.span,
            self.noise.rows(index),
            self.save,
            self.callback,
        )

    def result(self, down: Descent, found: Solution, i: int) -> Solution:
        """The samples x_t / alpha of a solution, or denoised where that is wanted, in the dtype."""
        solution = self._denoised(down, found) if self.denoise else self._samples(found)
        if self.denoise:
            self._require_finite(solution.x, i)
        return solution

    def _samples(self, found: Solution) -> Solution:
        solution = self.coordinates.physical_solution(found) if self.whole else found
        return self._cast(replace(solution, x=self.coordinates.leave(self.span, found.x)))

    def _denoised(self, down: Descent, found: Solution) -> Solution:
        solution = self._samples(found)
        if not len(found.x):
            return solution
        x = self.coordinates.denoised(down.model.predict_data(self.span[1], found.x))
        return self._cast(replace(solution, x=x, evaluations=solution.evaluations + 1))

    def _cast(self, solution: Solution) -> Solution:
        if solution.x.dtype == self.dtype:
            return solution
        xs = None if solution.xs is None else solution.xs.to(self.dtype)
        return replace(solution, x=solution.x.to(self.dtype), xs=xs)

    def _require_finite(self, x: Tensor, i: int) -> None:
        spoilt = ~torch.isfinite(x).flatten(1).all(dim=1) if x.ndim > 1 else ~torch.isfinite(x)
        if bad := spoilt.nonzero().flatten().tolist():
            after = "the denoising that follows step"
            t = float(self.coordinates.time(self.span[1]))
            error = NotFiniteError(self.steps, t, bad, len(x), after)
            raise error.seen(after=i, total=self.n)

    def unfinished(
        self, error: UnfinishedError, down: Descent, before: Sequence[Solution], i: int
    ) -> UnfinishedError:
        """The error of a batch that begins at i, with the samples of those before it."""
        own = (
            self._denoised(down, error.solution) if self.denoise else self._samples(error.solution)
        )
        found = replace(Solution.joined([*before, own]), seed=self.seed)
        reached = torch.as_tensor(self.coordinates.time(error.reached))
        done = torch.full((i,), float(found.ts[-1])).to(reached)
        return UnfinishedError(found, torch.cat([done, reached]), advice=error.advice)
