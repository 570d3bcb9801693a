"""Sampling step by step, in a loop of the caller."""

import math
from dataclasses import dataclass, field, replace
from typing import Self, Unpack

import torch
from torch import Tensor

import sdekit
from sdekit import NotFiniteError
from sdekit.calling import require_like
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._sampling.arguments import Model, StepperOptions, require_known
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.method import ReverseProblem
from sdekit_diffusion._sampling.on_grid import AbstractGridMethod, Transformed
from sdekit_diffusion._sampling.prepare import Prepared, prepared


@dataclass(frozen=True, eq=False)
class Stepper:
    """A point of the grid of a solve, from which `next` takes a step; `stepper` returns the first.

    Raises:
        sdekit.NotFiniteError: in `next`, when the state is not finite; on an accelerator only at
            the end of the grid.
        ValueError: in `next` at the end of the grid, and in `with_x` for another shape or dtype.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> at = sd.stepper(model, 4, sde="ve", steps=10, seed=0)
        >>> isinstance(at, sd.Stepper), at.remaining, round(at.sigma, 3)  # sigma / alpha
        (True, 10, 50.0)
    """

    call: Prepared = field(repr=False)
    problem: ReverseProblem = field(repr=False)
    transformed: Transformed = field(repr=False)
    grid: Tensor = field(repr=False)
    solve: sdekit.Stepper = field(repr=False)

    def __repr__(self) -> str:
        return f"Stepper(step={self.step}, remaining={self.remaining}, sigma={self.sigma:.4g})"

    @property
    def step(self) -> int:
        """The number of steps that were taken."""
        return self.solve.step

    @property
    def remaining(self) -> int:
        """The number of steps to the end of the grid."""
        return self.solve.remaining

    @property
    def evaluations(self) -> int:
        """The evaluations per sample of all steps so far, from any point of this solve."""
        return self.solve.evaluations

    @property
    def _coordinates(self) -> Coordinates:
        return self.problem.coordinates

    @property
    def _l(self) -> float:
        return float(self.grid[self.step])

    @property
    def _u(self) -> Tensor:
        return self.transformed.to_u(self.step, self.solve.x)

    @property
    def t(self) -> float:
        """The diffusion's time."""
        return float(self._coordinates.time(self._l))

    @property
    def sigma(self) -> float:
        """The noise level sigma / alpha, in units of the data."""
        return self._coordinates.std * math.exp(-self._l)

    @property
    def x(self) -> Tensor:
        """A copy of x_t, `(n, *shape)`, in float32 where samples are in half precision; `with_x`
        replaces it.
        """
        return self._coordinates.physical(self.t, self._u).clone()

    @property
    def samples(self) -> Tensor:
        """x_t / alpha, which is the result of `sample` at the end of the grid. After noise levels
        that end in 0 it is there `denoised()`, which takes one evaluation.
        """
        if self.call.problems.denoise and not self.remaining:
            return self.denoised()
        x = self._coordinates.leave((self.problem.span[0], self._l), self._u)
        return x.to(self.call.problems.dtype)

    def denoised(self) -> Tensor:
        """D(x_t), the mean of the data given x_t; one evaluation, not in `evaluations`."""
        with torch.no_grad(), evaluating(self.call.model, self.call.problems.n):
            x = self._coordinates.denoised(self.problem.model.predict_data(self._l, self._u))
        return x.to(self.call.problems.dtype)

    def next(self) -> Self:
        """The point after one more step."""
        if not self.remaining:
            raise ValueError(f"the solve ends at t = {self.t:g}, after {self.step} steps")
        with torch.no_grad(), evaluating(self.call.model, self.call.problems.n):
            try:
                return replace(self, solve=self.solve.next())
            except NotFiniteError as error:
                error = error.relocated(t=self.transformed.to_l(error.t))
                raise self._coordinates.locate_failure(error, 0, self.call.problems.n) from None

    def with_x(self, x: Tensor) -> Self:
        """The same point with another x_t, such as a clamped one; the past values of a multistep
        rule are kept.
        """
        require_like(x, self.x)
        u = self._coordinates.standard(self.t, x)
        return replace(self, solve=self.solve.with_x(self.transformed.from_u(self.step, u)))


def stepper(model: Model, n: int = 1, **options: Unpack[StepperOptions]) -> Stepper:
    """The first point of a solve, for sampling in a loop of the caller.

    The states are those of `sample`, unless the caller replaces one with `with_x` between two
    steps. With `start=Noised(x, level=...)` the loop begins at any noise level, and
    `grid=[2.0, 1.0]` is one step from sigma / alpha = 2 to 1.

    Arguments:
        model, n: as in `sample`.
        options: those of `sample` of these names: sde, method, steps, grid, seed, noise, first,
            shape, x_T, start, end, dtype and device.

    Returns:
        the `Stepper` at the initial states.

    Raises:
        TypeError: for a method that does not step along a grid, such as "ode"; for other options;
            and as `sample`.
        ValueError: as `sample`.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> at = sd.stepper(model, 4, sde="vp", steps=20, seed=0)
        >>> while at.remaining:
        ...     at = at.next()
        >>> torch.equal(at.samples, sd.sample(model, 4, sde="vp", steps=20, seed=0))
        True
        >>> x = torch.ones(3, 1)
        >>> level = sd.Noised(x, level=1.0)  # in standard deviations of the data
        >>> sigma = model.data_std
        >>> at = sd.stepper(model, sde="vp", start=level, grid=[sigma, 0.5 * sigma], seed=0)
        >>> at.next().samples.shape
        torch.Size([3, 1])
    """
    require_known(options)
    call = prepared(model, n, **options)
    index = torch.arange(call.problems.n, device=call.device)
    chosen = call.method.rows(index, call.problems.event)
    if not isinstance(chosen, AbstractGridMethod):
        raise TypeError(
            f"{type(chosen).__name__} does not step along a grid; choose a method that does, such "
            "as 'default', 'ddim' or 'sde'"
        )
    with torch.no_grad(), evaluating(call.model, call.problems.n):
        problem = call.problems.of(index, 0, call.model.rows(index))
        points = chosen.points(problem)
        transformed = chosen.transformed(problem, points)
        equation, solver, times, from_u, _, _ = transformed
        x = from_u(0, problem.u)
        solve = sdekit.stepper(equation, x, times, solver=solver, noise=problem.noise)
    return Stepper(call, problem, transformed, points, solve)
