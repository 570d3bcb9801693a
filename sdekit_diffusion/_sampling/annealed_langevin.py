"""Annealed Langevin dynamics: some moves of Langevin dynamics at each of several noise levels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor

from sdekit import AbstractSDE, EulerMaruyama, NotFiniteError, Point, Solution, did_you_mean, solve
from sdekit.elementary import Time
from sdekit_diffusion._arguments.inputs import is_whole, require_numbers
from sdekit_diffusion._models.affine import Affine, Function, prepared
from sdekit_diffusion._models.model import AbstractModel, signal_scale
from sdekit_diffusion._sampling.grid import AbstractGrid
from sdekit_diffusion._sampling.method import AbstractMethod, ReverseProblem
from sdekit_diffusion._sampling.published_grids import UniformInLogSNR
from sdekit_diffusion._sampling.techniques import langevin_step_size


@dataclass(frozen=True, eq=False)
class Relaxation(AbstractSDE):
    """dy = -h rho eps dk + sqrt(2 h) rho dW, for y = x / alpha at the noise rho = sigma / alpha,
    whose score is -eps / rho.

    The time k counts moves, and the level is constant for `moves` of them: the Euler-Maruyama
    method with steps of 1 is annealed Langevin dynamics.

    Arguments:
        model: predicts eps.
        levels: l = log(alpha / sigma) of each level.
        moves: the number of moves per level.
        size: h.
    """

    noise_type = "additive"

    model: AbstractModel
    levels: Sequence[float]
    moves: int
    size: float
    slopes: Mapping[float, Function] = field(default_factory=dict)

    def tabulated(self, ts: Sequence[float]) -> Self:
        l = torch.tensor(self.levels, dtype=torch.float64)

        def numbers() -> Affine:
            eps = self.model.affine(l, "noise").at(signal_scale(l))
            return eps.times(-self.size * torch.exp(-l))

        key = ("relaxation", self.size, *self.levels)
        functions = prepared(self.model, key, len(l), numbers)
        if functions is None:
            return self
        return replace(self, slopes={k: functions[int(k) // self.moves] for k in ts[:-1]})

    def _level(self, k: Time) -> float:
        """l of move k."""
        return self.levels[int(k) // self.moves]

    def drift(self, t: Time, x: Tensor) -> Tensor:
        l = self._level(t)
        return self.model.predict_noise(l, signal_scale(l) * x) * (-self.size * math.exp(-l))

    def diffusion(self, t: Time, x: Tensor) -> float:
        return math.sqrt(2 * self.size) * math.exp(-self._level(t))


@dataclass(frozen=True, eq=False)
class AnnealedLangevin(AbstractMethod):
    """Langevin dynamics at each of a number of noise levels, from the largest to the smallest.

    With y = x_t / alpha_t, whose noise is sigma = sigma_t / alpha_t under any diffusion, its score
    s, standard normal z, and alpha_i = size sigma_i^2, a move is

        NCSNv2:  y <- y + alpha_i s(y, sigma_i) + sqrt(2 alpha_i) z,
        NCSN:    y <- y + alpha_i / 2 s(y, sigma_i) + sqrt(alpha_i) z.

    The first level is that of x_T. `sample(..., denoise=True)` adds the papers' last step,
    y + sigma_L^2 s(y, sigma_L). Under `NCSN(sigmas)`, with steps = L and the grid "native", the
    levels are the sigmas; `NCSNSettings` has this diffusion and this method.

    Arguments:
        moves: T, the number of moves per level.
        size: e / sigma_L^2 in the papers' notation, 0.062 in NCSNv2 on CIFAR-10 and 0.2 in NCSN;
            None takes `langevin_step_size` of the levels, technique 4.
        convention: which of the two a move is. A move of NCSN is one of NCSNv2 with half the size.
        steps, grid: L, the number of levels, and their grid, unless `sample` receives others.

    Raises:
        TypeError: for a size that is not a number.
        ValueError: for moves < 1, steps < 2 or numbers of them that are not whole, an unknown
            convention, or a size with which the moves diverge.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.AnnealedLangevin(moves=5, steps=20)
        >>> sd.sample(model, 4, sde="ve", method=method, denoise=True, seed=0).shape
        torch.Size([4, 1])

    References:
        Song and Ermon 2019, arXiv 1907.05600, algorithm 1; 2020, arXiv 2006.09011.
    """

    extra_steps = 1  # the levels are the points of the grid
    accepts_any_start = True  # the papers start from uniform random numbers

    moves: int = 5
    size: float | None = None
    convention: Literal["ncsnv2", "ncsn"] = "ncsnv2"
    steps: int = field(default=232, kw_only=True)
    grid: AbstractGrid = field(default=UniformInLogSNR(), kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "size")
        if self.convention not in ("ncsnv2", "ncsn"):
            raise ValueError(
                "convention must be 'ncsnv2' or 'ncsn', not "
                f"{self.convention!r}{did_you_mean(self.convention, ('ncsnv2', 'ncsn'))}"
            )
        largest = 2 if self.convention == "ncsnv2" else 4
        whole = is_whole(self.moves, 1) and is_whole(self.steps, 2)
        if not whole or not 0 < (1 if self.size is None else self.size) < largest:
            raise ValueError(
                "annealed Langevin dynamics needs whole numbers moves >= 1 and steps >= 2, and a "
                f"size e / sigma_L^2 between 0 and {largest}, beyond which it diverges; not "
                f"{self.moves}, {self.steps} and {self.size}"
            )

    def run(self, problem: ReverseProblem) -> Solution:
        levels = self.grid.points(problem.coordinates, problem.span, self.steps - 1)
        size = self.size
        if size is None:
            size = langevin_step_size(torch.exp(levels[-1] - levels), self.moves)
        elif self.convention == "ncsn":
            size = 0.5 * size
        equation = Relaxation(problem.model, levels.tolist(), self.moves, size)
        ts = torch.cat([levels[:1], levels])
        xs = []

        def report(point: Point) -> None:
            level, remainder = divmod(point.step, self.moves)
            if remainder:
                return
            l = float(ts[level])
            u = point.x * signal_scale(l)
            if problem.save == "all":
                xs.append(u)
            if problem.callback is not None:
                problem.callback(Point(level, l, u))

        counts = torch.arange(len(levels) * self.moves + 1, dtype=torch.float64)
        callback = report if problem.save == "all" or problem.callback is not None else None
        try:
            y = problem.u / signal_scale(problem.span[0])
            solution = solve(
                equation, y, counts, solver=EulerMaruyama(), noise=problem.noise, callback=callback
            )
        except NotFiniteError as error:
            raise error.relocated(t=float(ts[-(-error.step // self.moves)])) from None
        u = solution.x * signal_scale(problem.span[1])
        return replace(solution, x=u, xs=torch.stack(xs) if xs else None, ts=ts)
