"""RePaint: known coordinates are replaced in every step, with returns to higher noise levels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from sdekit import (
    AbstractSDE,
    AbstractSolver,
    Increment,
    NotFiniteError,
    Order,
    Point,
    Solution,
    Step,
    solve,
)
from sdekit.elementary import Time, axpy
from sdekit_diffusion._arguments.inputs import is_whole, require_numbers
from sdekit_diffusion._models.known import known_values
from sdekit_diffusion._models.model import AbstractModel, noise_scale, signal_scale
from sdekit_diffusion._sampling.grid import AbstractGrid
from sdekit_diffusion._sampling.method import AbstractMethod, ReverseProblem
from sdekit_diffusion._sampling.published_grids import UniformInLogSNR


def visited_points(steps: int, jump: int, resamplings: int) -> list[int]:
    """The points of a grid that RePaint visits, from 0 to `steps`, in order.

    At the last point but one, and at every `jump` points before it, it returns to the point `jump`
    steps towards the noise, resamplings - 1 times.
    """
    returns = dict.fromkeys(range(steps - 1, jump - 1, -jump), resamplings - 1)
    visited = [0]
    while visited[-1] < steps:
        i = visited[-1] + 1
        visited.append(i)
        if returns.get(i):
            returns[i] -= 1
            visited.append(i - jump)
    return visited


@dataclass(frozen=True, eq=False)
class LevelChanges(AbstractSDE):
    """An equation whose time k counts moves between levels, and whose drift is D(l_k, u)."""

    noise_type = "none"

    model: AbstractModel
    levels: Sequence[float]

    def drift(self, t: Time, x: Tensor) -> Tensor:
        return self.model.predict_data(self.levels[int(t)], x)

    def diffusion(self, t: Time, x: Tensor) -> float:
        return 0.0


@dataclass(frozen=True, eq=False)
class ReplacingStep(AbstractSolver):
    """A move of `RePaint` from u at l_k to u at l_{k+1}.

    A move towards the data is DDIM's step, with c = eta b_1 sqrt(1 - e^{2 (l_0 - l_1)}),

        u_1 = a_1 D + sqrt(b_1^2 - c^2) (u_0 - a_0 D) / b_0 + c eps,

    and a_1 y + b_1 eps where y is known, without this noise at the last level. A move towards the
    noise is the transition of the diffusion.

    Arguments:
        levels: l before each move and after the last one.
        y, mask: the known values of the standardised data, and where they are known.
        eta: the noise of DDIM's step.
    """

    order = {"none": Order(1, 1)}
    normals = 1

    levels: Sequence[float]
    y: Tensor
    mask: Tensor
    eta: float

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: object
    ) -> Step:
        assert noise.z is not None
        (eps,) = noise.z
        l0 = self.levels[int(t0)]
        l1 = self.levels[int(t1)]
        a0 = signal_scale(l0)
        b0 = noise_scale(l0)
        a1 = signal_scale(l1)
        b1 = noise_scale(l1)
        share = -math.expm1(-2 * abs(l1 - l0))  # of the variance at the noisier level
        if l1 < l0:
            return Step(axpy(b1 * math.sqrt(share), eps, (a1 / a0) * x))
        data = problem.drift(t0, x)
        kept = b1 * math.sqrt(1 - self.eta**2 * share) / b0
        u = axpy(a1 - kept * a0, data, kept * x)
        u = axpy(self.eta * b1 * math.sqrt(share), eps, u)
        last = int(t1) == len(self.levels) - 1
        known = a1 * self.y if last else axpy(b1, eps, a1 * self.y)
        # 0 u is NaN where the output of the model is not finite, which the mask would hide.
        return Step(torch.where(self.mask, known + 0 * u, u))


@dataclass(frozen=True, eq=False)
class RePaint(AbstractMethod):
    """Samples with known coordinates: each step sets these to alpha y + sigma eps at the new level,
    with new noise eps, and the solve returns to higher noise levels several times.

    A step is one of DDIM (for eta = 1 DDPM's ancestral sampling). The returns adapt the other
    coordinates to the known ones: at points of the grid `jump` steps apart, the state receives the
    noise of `jump` steps and is solved again, resamplings - 1 times. Without returns, for
    resamplings=1, this is the replacement method of Song et al. In the results the known
    coordinates are y.

    Both methods are approximations; docs/editing.md shows their errors. `Inpainted` is a
    replacement method for every sampler.

    Arguments:
        y: the known values, of the shape of one sample, or one per sample, `(n, *shape)`; values
            where mask is False are ignored.
        mask: True where y is known, in a shape that broadcasts against y.
        resamplings: how often each part of the grid is solved, at least 1.
        jump: the length of a return, in steps; with returns less than `steps`.
        eta: the noise of DDIM's step, from 0 to 1.
        steps, grid: the number of steps from the noise to the data and their grid, unless `sample`
            receives others; the number of evaluations is at most resamplings times as large.

    Raises:
        TypeError: for a y that is not a floating tensor, a mask that is not boolean, or an eta that
            is not a number.
        ValueError: for shapes that do not fit, known values that are not finite, or numbers out of
            range; while sampling, for a jump that is not less than the number of steps.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, -1.0], [1.0, 1.0]], [0.05, 0.05])
        >>> y, mask = torch.tensor([1.0, 0.0]), torch.tensor([True, False])
        >>> method = sd.RePaint(y, mask, resamplings=5, jump=5, steps=50)
        >>> x = sd.sample(law, 100, sde="vp", method=method, seed=0)
        >>> bool((x[:, 0] - 1).abs().max() < 1e-5), bool((x[:, 1] > 0).double().mean() > 0.95)
        (True, True)

    References:
        Lugmayr et al. 2022, "RePaint", arXiv 2201.09865, algorithm 1 and appendix B; Song et al.
        2021, arXiv 2011.13456, appendix I.2.
    """

    sets_values = True

    y: Tensor
    mask: Tensor
    resamplings: int = 10
    jump: int = 10
    eta: float = 1.0
    steps: int = field(default=100, kw_only=True)
    grid: AbstractGrid = field(default=UniformInLogSNR(), kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "eta")
        whole = is_whole(self.resamplings, 1) and is_whole(self.jump, 1)
        if not whole or not 0 <= self.eta <= 1:
            raise ValueError(
                "RePaint needs whole numbers resamplings >= 1 and jump >= 1, and eta from 0 to 1, "
                f"not {self.resamplings!r:.60}, {self.jump!r:.60} and {self.eta!r:.60}"
            )
        y, mask = known_values(self.y, self.mask)
        object.__setattr__(self, "y", y)
        object.__setattr__(self, "mask", mask)

    @property
    def reports(self) -> int:
        return len(visited_points(self.steps, self.jump, self.resamplings)) - 1

    def count(self, n: int, event: tuple[int, ...]) -> int:
        rows = len(self.y) if self.y.ndim == len(event) + 1 else 1
        if tuple(self.y.shape[self.y.ndim - len(event) :]) != event or self.y.ndim > len(event) + 1:
            raise ValueError(
                f"y has shape {tuple(self.y.shape)} and samples have {event}; give one sample, or "
                "(n, *shape)"
            )
        if rows == 1:
            return n
        if n not in (1, rows):
            raise ValueError(f"y has {rows} entries for {n} samples; give one, or one per sample")
        return rows

    def rows(self, index: Tensor, event: tuple[int, ...]) -> Self:
        if self.y.ndim == len(event) or len(self.y) == 1:
            return self
        rows = index.to(self.y.device)
        return replace(self, y=self.y[rows], mask=self.mask[rows])

    def run(self, problem: ReverseProblem) -> Solution:
        if self.resamplings > 1 and self.jump >= self.steps:
            raise ValueError(
                f"a return of jump = {self.jump} steps needs more steps than that, and there are "
                f"{self.steps}: take a smaller jump, more steps, or resamplings=1 for no returns"
            )
        grid = self.points(problem)
        ts = grid[visited_points(self.steps, self.jump, self.resamplings)]
        levels = ts.tolist()
        y = problem.coordinates.standard_data(self.y.to(problem.u))
        solver = ReplacingStep(levels, y, self.mask.to(problem.u.device), self.eta)

        def report(point: Point) -> None:
            assert problem.callback is not None
            problem.callback(Point(point.step, levels[point.step], point.x))

        counts = torch.arange(len(levels), dtype=torch.float64)
        try:
            solution = solve(
                LevelChanges(problem.model, levels),
                problem.u,
                counts,
                solver=solver,
                noise=problem.noise,
                save=problem.save,
                callback=problem.callback and report,
            )
        except NotFiniteError as error:
            raise error.relocated(t=levels[error.step]) from None
        return replace(solution, ts=ts)
