"""Sampling methods: an equation for reverse time, a solver for it, and a grid."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from torch import Tensor

from sdekit import (
    AbstractNoise,
    Point,
    Solution,
)
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.grid import AbstractGrid


@dataclass(frozen=True, eq=False)
class ReverseProblem:
    """The problem that a method solves: the reverse equation from the noisy end of a span of l to
    its clean end.

    Under any diffusion the states are u = a z + b eps and the times are l = log(a / b), where
    a^2 + b^2 = 1 and z are the data, shifted and scaled to mean 0 and standard deviation 1.

    Arguments:
        model: the model of z, as a function of l and u.
        coordinates: the conversion of u and l to the x_t and t of the diffusion, for grids and
            solvers in its time.
        u: the states at the noisy end, `(batch, *event)`.
        span: l at both ends, increasing.
        noise: row i is the noise of state i.
        save: "all" returns the states at all points of the grid, "last" only those at the end.
        callback: called with each `Point` (step, l, u).

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Reporting(sd.AbstractMethod):
        ...     method: sd.AbstractMethod
        ...     def run(self, problem):
        ...         print(tuple(problem.u.shape), problem.span[0] < problem.span[1])
        ...         return self.method.run(problem)
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> x = sd.sample(model, 4, sde="vp", method=Reporting(sd.DDIM(steps=5)), seed=0)
        (4, 1) True
    """

    model: AbstractModel
    coordinates: Coordinates
    u: Tensor
    span: Span
    noise: AbstractNoise | None = None
    save: Literal["last", "all"] = "last"
    callback: Callable[[Point], None] | None = None


@dataclass(frozen=True, eq=False)
class AbstractMethod(ABC):
    """A sampling method: an equation in reverse time, a solver, and a grid.

    A subclass defines `run`, which solves a `ReverseProblem` in the coordinates u and l.

    Arguments:
        steps, grid: the number of steps and their grid, unless `sample` receives others.

    Example:
        >>> from dataclasses import dataclass, replace
        >>> @dataclass(frozen=True, eq=False)
        ... class Switched(sd.AbstractMethod):  # another method from l = 0 on
        ...     high: sd.AbstractMethod
        ...     low: sd.AbstractMethod
        ...     def run(self, problem):
        ...         first = self.high.run(replace(problem, span=(problem.span[0], 0.0)))
        ...         return self.low.run(replace(problem, u=first.x, span=(0.0, problem.span[1])))
        >>> method = Switched(sd.DDIM(steps=10), sd.OnClock(steps=5))
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", method=method, seed=0).shape
        torch.Size([4, 1])
    """

    noise: ClassVar[Literal["white", "path"]] = "white"  # the noise that `sample` takes by default
    extra_steps: ClassVar[int] = 0  # what `steps` counts beyond the steps of the grid
    # Whether x_T may have another law than the prior, since the result hardly depends on it.
    accepts_any_start: ClassVar[bool] = False
    # Whether the last step sets values that a denoising step after it would change.
    sets_values: ClassVar[bool] = False

    steps: int = field(default=0, kw_only=True)
    grid: AbstractGrid | None = field(default=None, kw_only=True)

    @property
    def reports(self) -> int:
        """How many points `run` reports to a callback after the first; 0 if that is not known in
        advance.
        """
        return self.steps

    def count(self, n: int, event: tuple[int, ...]) -> int:
        """The number of samples, of shape `event`, where the caller asks for n: n itself, unless
        the method has values per sample and n is 1; then it is the number of these values.

        Raises:
            ValueError: where the values of the method do not fit n or the shape.
        """
        return n

    def rows(self, index: Tensor, event: tuple[int, ...]) -> Self:
        """The method for the samples of an index, of shape `event`: with their values, if it has
        values per sample.
        """
        return self

    @property
    def denoises(self) -> bool:
        """Whether the last state is replaced by the mean of the data given this state."""
        return self.grid is not None and self.grid.denoises

    def span(self, model: AbstractModel, coordinates: Coordinates, end: float) -> Span:
        """l at both ends of a solve that stops at sigma / alpha = end s, or at the end of the grid.

        Raises:
            ValueError: when the span is empty.
        """
        if self.grid is None:
            return coordinates.span(model, end)
        return self.grid.span(model, coordinates, end)

    def left_over(self, coordinates: Coordinates, span: Span) -> float:
        """The noise that the last step leaves beyond that of the end of a span, in standard
        deviations of the data; 0 for methods that are exact there.
        """
        return 0.0

    def points(self, problem: ReverseProblem) -> Tensor:
        """l at the ends of the steps."""
        assert self.grid is not None
        return self.grid.points(problem.coordinates, problem.span, self.steps)

    @abstractmethod
    def run(self, problem: ReverseProblem) -> Solution:
        """The solution, whose states are u and whose times are l.

        Raises:
            sdekit.NotFiniteError: when a state of a fixed grid is not finite.
            sdekit.UnfinishedError: when samples with adaptive steps do not reach the end.
            ValueError: for steps or states that the method does not support.
        """

    def knots(self, coordinates: Coordinates, span: Span) -> Tensor:
        """The knots of a Brownian path that resolves the noise of this method over a span, the same
        for every grid.

        Raises:
            ValueError: for a method that does not read its noise from a Brownian path.
        """
        raise ValueError(
            f"{type(self).__name__} reads no Brownian path; leave out noise='path', or choose a "
            "method such as 'ddpm'"
        )
