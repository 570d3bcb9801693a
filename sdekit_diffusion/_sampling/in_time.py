"""Solvers in the diffusion's own time."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from sdekit import AbstractPredictor, AbstractSolver, ReverseSDE
from sdekit.elementary import Time, scaled
from sdekit_diffusion._arguments.immutable import is_immutable
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.affine import Affine, Function, prepared
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.grid import AbstractGrid
from sdekit_diffusion._sampling.method import ReverseProblem
from sdekit_diffusion._sampling.on_grid import AbstractGridMethod, Transformed
from sdekit_diffusion._sampling.published_grids import Native


@dataclass(frozen=True, eq=False)
class _Score:
    """grad log p_t(x) = -eps / sigma as a function of the diffusion's t and x, from a model of
    standardised data.
    """

    model: AbstractModel
    coordinates: Coordinates
    ts: Sequence[float] = ()

    @cached_property
    def scores_on_grid(self) -> Mapping[float, Function]:
        """The score at each time of a grid, with the coefficients of all times computed together;
        empty where it is not affine in a network's output.
        """
        functions = self._prepare_score(self.ts, "score", lambda t, score: score)
        return dict(zip(self.ts, functions or (), strict=bool(functions)))

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        eps = self.model.predict_noise(self.coordinates.log_snr(t), self.coordinates.standard(t, x))
        return scaled(-1 / self.coordinates.sde.sigma(t), eps)

    def tabulated(self, ts: Sequence[float]) -> "_Score":
        """The same for the times of a grid."""
        return _Score(self.model, self.coordinates, ts)

    def slopes(self, factor: float, ts: Sequence[float]) -> Mapping[float, Function]:
        """f x - factor g^2 s at each time of a grid; empty where it is not affine in a network's
        output.
        """
        sde = self.coordinates.sde

        def slope(t: Tensor, score: Affine) -> Affine:
            g = torch.as_tensor(sde.g(t), dtype=torch.float64)
            return score.times(-factor * g * g, skip_term=sde.f(t))

        functions = self._prepare_score(ts, factor, slope)
        return dict(zip(ts, functions or (), strict=bool(functions)))

    def _prepare_score(
        self,
        ts: Sequence[float],
        name: Hashable,
        transform: Callable[[Tensor, Affine], Affine],
    ) -> list[Function] | None:
        """The functions of x into which `transform` turns the score at the times of a grid."""
        coordinates = self.coordinates
        sde = coordinates.sde

        def numbers() -> Affine:
            t = torch.tensor(ts, dtype=torch.float64)
            r = coordinates.radius(t)
            shift = -sde.alpha(t) / r if coordinates.shifts else 0.0
            eps = self.model.affine(torch.as_tensor(coordinates.log_snr(t)), "noise")
            return transform(t, eps.at(1 / r, shift).times(-1 / sde.sigma(t)))

        key = ("time", sde, name, *ts) if is_immutable(sde) else None
        return prepared(self.model, key, len(ts), numbers)


_MOST_STEPS = 2000  # of grids whose points are kept from call to call


def _points_of(
    grid: AbstractGrid, coordinates: Coordinates, span: Span, steps: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The points of a grid and the diffusion's times there."""
    points = grid.points(coordinates, span, steps)
    return tuple(points.tolist()), tuple(torch.as_tensor(coordinates.time(points)).tolist())


@lru_cache(maxsize=32)
def _native_points(
    sde: AbstractDiffusion, std: float, span: Span, steps: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The same for `Native`, whose points depend on nothing else."""
    return _points_of(Native(), Coordinates(sde, std=std), span, steps)


@dataclass(frozen=True, eq=False)
class InTime(AbstractGridMethod):
    """A solver in the diffusion's own time, on dx = [f x - (1 + eta^2)/2 g^2 s] dt + eta g dW with
    the score s.

    The last step leaves noise of variance (eta g)^2 h, h its length. On a grid in t it depends on
    the scale of the data whether that is visible; `sample` warns where it is.

    Arguments:
        solver: any, such as `EulerMaruyama()` or `PredictorCorrector(ReverseDiffusion(),
            Langevin(snr=0.16, steps=2))`.
        eta: the noise level: 1 for the reverse SDE, 0 for the probability flow.
        steps, grid: the number of steps and their grid, unless `sample` receives others.

    Raises:
        TypeError: for an eta that is not a number.
        ValueError: in `sample`, for a negative eta, or a solver that does not support additive
            noise.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.InTime(sdekit.EulerMaruyama(), eta=1.0, steps=100)
        >>> sd.sample(model, 4, sde="vp", method=method, seed=0).shape
        torch.Size([4, 1])

    References:
        Song et al. 2021, arXiv 2011.13456, section 4.
    """

    solver: AbstractSolver
    eta: float = 1.0
    steps: int = field(default=1000, kw_only=True)
    grid: AbstractGrid = field(default=Native(), kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "eta")

    def transformed(self, problem: ReverseProblem, grid: Tensor) -> Transformed:
        coordinates = problem.coordinates
        score = _Score(problem.model, coordinates)
        equation = ReverseSDE(
            coordinates.sde, score, self.eta, prepare=partial(score.slopes, 0.5 * (1 + self.eta**2))
        )
        ts = self._times(coordinates, problem.span, grid)
        return Transformed(
            equation,
            self.solver,
            ts,
            lambda i, u: coordinates.physical(ts[i], u),
            lambda i, x: coordinates.standard(ts[i], x),
            lambda t: float(coordinates.log_snr(t)),
        )

    def points(self, problem: ReverseProblem) -> Tensor:
        points = self._points(problem.coordinates, problem.span)[0]
        return torch.tensor(points, dtype=torch.float64, device="cpu")

    def _points(
        self, coordinates: Coordinates, span: Span
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The points of the grid and the times there, computed once for these coordinates."""
        grid = self.grid
        key = id(grid), span, self.steps
        if key not in coordinates.grids:  # with the grid, so that no other can have its id
            sde = coordinates.sde
            if type(grid) is Native and self.steps <= _MOST_STEPS and is_immutable(sde):
                points_and_times = _native_points(sde, coordinates.std, span, self.steps)
            else:
                points_and_times = _points_of(grid, coordinates, span, self.steps)
            coordinates.grids[key] = grid, *points_and_times
        return coordinates.grids[key][1:]

    def _times(self, coordinates: Coordinates, span: Span, points: Tensor) -> Sequence[float]:
        """The times at points of a grid, which may be those of another one."""
        known = coordinates.grids.get((id(self.grid), span, self.steps))
        if known is not None and known[1] == tuple(points.tolist()):
            return known[2]
        return torch.as_tensor(coordinates.time(points)).tolist()

    def left_over(self, coordinates: Coordinates, span: Span) -> float:
        """From the variance of the last step of Euler and Maruyama, (eta g)^2 h, or of a predictor.

        0 where the noise at the end is larger, as for a large `end`.
        """
        if not 0 < self.eta < math.inf:  # the equation refuses others than 0
            return 0.0
        t0, t1 = self._points(coordinates, span)[1][-2:]
        sde = coordinates.sde
        predictor = getattr(self.solver, "predictor", self.solver)
        variance = (self.eta * float(sde.g(t0))) ** 2 * (t0 - t1)
        if isinstance(predictor, AbstractPredictor):
            _, _, variance = predictor.coefficients(*sde.chain(t1, t0))
        signal = float(sde.alpha(t1)) * coordinates.std
        return math.sqrt(max(0.0, variance / signal**2 - math.exp(-2 * span[1])))

    def knots(self, coordinates: Coordinates, span: Span) -> Tensor:
        """The 17 points of 16 steps of the diffusion's own grid, which may be denser at one end.

        Raises:
            ValueError: without noise, or for a solver that draws normals of its own.
        """
        if self.solver.normals or not self.eta:
            raise ValueError(
                "one Brownian path is for eta > 0 and solvers that draw nothing else; without "
                "noise there is none, and a corrector draws new noise on each grid: leave out "
                "noise='path'"
            )
        return torch.as_tensor(coordinates.time(Native().points(coordinates, span, 16))).flip(0)
