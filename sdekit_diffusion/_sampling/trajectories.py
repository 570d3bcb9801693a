"""Solutions of a model's probability flow, as data for networks that sample in few steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sdekit import Point, Solution, Status, UnfinishedError
from sdekit.calling import warn_caller
from sdekit_diffusion._arguments.inputs import require_counts
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.derived import innermost
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._sampling.arguments import shape_of
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.grid import DEFAULT_END, AbstractGrid, Levels
from sdekit_diffusion._sampling.grids import grid_of
from sdekit_diffusion._sampling.initial_states import PriorStates
from sdekit_diffusion._sampling.noised import Noised
from sdekit_diffusion._sampling.probability_flow import replace_rows
from sdekit_diffusion._sampling.sample import sample
from sdekit_diffusion.data._batches import given_draws


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Solutions of a probability flow at decreasing noise levels.

    Attributes:
        sigmas: the noise levels sigma / alpha, float64, `(levels,)`.
        y: x_t / alpha at these levels, `(levels, n, *shape)`, at least float32.
        conditions: the conditions of the network by name, with one entry per sample.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> solved = sd.trajectories(model, 8, steps=2, sde="vp", seed=0)
        >>> isinstance(solved, sd.Trajectories), solved.y.shape
        (True, torch.Size([3, 8, 1]))
    """

    sigmas: Tensor
    y: Tensor
    conditions: Mapping[str, Tensor]

    def pairs(self) -> dict[str, Tensor]:
        """The end of each solution and the noise of its beginning, as data for `fit`: rectified
        flow.

        x_0 is y at the last level, and eps = (y - x_0) / sigma at the first. A network trained on
        x_t = alpha x_0 + sigma eps has a probability flow with straighter solutions (Liu et al.
        2023).

        Returns:
            "x", x_0, "noise", eps, both `(n, *shape)`, and the conditions.
        """
        data = self.y[-1]
        noise = (self.y[0] - data) / float(self.sigmas[0])
        return {"x": data, "noise": noise, **self.conditions}

    def steps(self) -> dict[str, Tensor]:
        """The predictions at all levels but the last with which steps of "ddim" between the levels
        follow the flow, as data for `fit`: distillation.

        A step from y at sigma to y' at sigma' = r sigma is exact where the network predicts the
        data x = (y' - r y) / (1 - r), and with it the noise (y - x) / sigma.

        Returns:
            "x" and "noise", both `((levels - 1) n, *shape)`, "log_snr", -log(sigma), and the
            conditions.
        """
        levels = self.sigmas[:-1].tolist()
        ratios = (self.sigmas[1:] / self.sigmas[:-1]).tolist()
        pieces = zip(self.y[:-1], self.y[1:], ratios, strict=True)
        data = torch.stack([(end - r * start) / (1 - r) for start, end, r in pieces])
        noise = torch.stack(
            [(start - x) / sigma for start, x, sigma in zip(self.y, data, levels, strict=False)]
        )
        count = len(levels)
        log_snr = -self.sigmas[:-1].log().repeat_interleave(self.y.shape[1])
        conditions = {
            name: value.repeat(count, *[1] * (value.ndim - 1))
            for name, value in self.conditions.items()
        }
        target = {"x": data.flatten(0, 1), "noise": noise.flatten(0, 1), "log_snr": log_snr}
        return target | conditions


@dataclass(frozen=True, eq=False)
class _TeacherFlow(AdaptiveFlow):
    """A flow to an accuracy, and to a tolerance where two solves do not agree at any tolerance of
    the dtype: one solution of thousands must not end them all. `coarse` has the numbers of these.
    """

    coarse: list[int] = field(default_factory=list)

    def tolerance(self, dtype: torch.dtype) -> float:
        """That of the solutions that do not reach the accuracy."""
        assert self.accuracy is not None
        return max(self.accuracy / 1000, 4 * torch.finfo(dtype).eps)

    def solve_flow(
        self, model: AbstractModel, u: Tensor, span: Span, *, after: int = 0
    ) -> Solution:
        try:
            return super().solve_flow(model, u, span, after=after)
        except UnfinishedError as error:
            unfinished = error
        status = unfinished.solution.status
        rows = (status == Status.UNDERFLOW).nonzero().flatten()
        if len(rows) < int((status != Status.DONE).sum()) or len(rows) > 1 + len(u) // 100:
            raise unfinished
        tolerance = self.tolerance(u.dtype)
        plain = AdaptiveFlow(tolerance, tolerance, self.solver, self.max_steps)
        try:
            part = plain.solve_flow(model.rows(rows), u[rows], span, after=after)
        except UnfinishedError:
            raise unfinished from None
        self.coarse.append(len(rows))
        return replace_rows(unfinished.solution, part, rows)


def trajectories(
    model: AbstractModel,
    n: int,
    steps: int = 1,
    *,
    sde: AbstractDiffusion | str | None = None,
    grid: AbstractGrid | Levels | str = "focused",
    accuracy: float = 1e-2,
    end: float = DEFAULT_END,
    seed: int = 0,
    first: int = 0,
    shape: tuple[int, ...] | None = None,
    batch_size: int | None = None,
) -> Trajectories:
    """Accurate solutions of the probability flow of a model, at the ends of `steps` steps, as data
    for a student: a network that samples in this number of steps.

    A student is a `ScoreModel`, such as a copy of the teacher. Train it with
    `fit(student, solved.steps(), Recipe(weighting="data"))`, where `solved` is the result, and
    sample it with `sample(student, method="ddim", grid=solved.sigmas)`, whose steps are those of
    the solutions.

    Arguments:
        model: the teacher; with conditions per sample these are of n samples.
        n: the number of solutions.
        steps, grid: the number of steps and their grid; noise levels set both.
        accuracy: the error of each step of a solution, as in `AdaptiveFlow`. A few steps may not
            reach it in the dtype, where neighbouring solutions separate: in each batch one, and up
            to 1 % more, are solved to the tolerance accuracy / 1000 instead, with a warning.
        sde, end, seed, first, shape, batch_size: as in `sample`. The initial states are those of
            `sample` with the same seed.

    Raises:
        sdekit.UnfinishedError: when more solutions do not reach the accuracy, or the end.
        TypeError, ValueError: as `sample`; also for noise levels that end in 0, since a step to 0
            is not a step of the flow, and for a condition with the name of noise or of a level in
            data.

    Example:
        >>> teacher = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> solved = sd.trajectories(teacher, 64, steps=2, sde="vp")
        >>> net = sd.nets.MLP(shape=(1,), width=16)
        >>> settings = {"shape": (1,), "conditioning": "log_snr", "data_std": teacher.data_std}
        >>> student = sd.ScoreModel(net, "vp", "velocity", **settings)
        >>> recipe = sd.Recipe(steps=5, weighting="data")
        >>> records = sd.fit(student, solved.steps(), recipe, progress=False)
        >>> x = sd.sample(student, 4, method="ddim", grid=solved.sigmas, seed=0)

    References:
        Salimans and Ho 2022, arXiv 2202.00512, for the data that a step of "ddim" must be given;
        Luhman and Luhman 2021, arXiv 2101.02388, for one step; Liu, Gong and Liu 2023,
        arXiv 2209.03003, for `Trajectories.pairs`.
    """
    model, diffusion = as_model(model, sde, shape)
    coordinates = Coordinates.of(model, diffusion, shape_of(model, shape))
    chosen = grid_of(grid)
    if chosen.denoises:
        raise ValueError("noise levels of solutions end above 0: leave out the last")
    require_counts(n=n, steps=steps)
    points = chosen.points(coordinates, chosen.span(model, coordinates, end), chosen.count or steps)
    relative = torch.exp(-points).tolist()  # sigma / alpha in standard deviations of the data
    beginnings: list[Tensor] = []

    def keep(point: Point) -> None:
        if point.step == 0:
            beginnings.append(point.x / diffusion.alpha(point.t))

    method = _TeacherFlow(accuracy=accuracy)
    settings = {"sde": diffusion, "method": method, "seed": seed}
    settings |= {"first": first, "shape": shape, "batch_size": batch_size}
    # Differences of states, in `steps`, would be rounding in half precision.
    settings |= {"dtype": torch.promote_types(model.place()[0], torch.float32)}
    prior: Any = PriorStates(l=float(points[0]))  # which is not public
    states = [sample(model, n, start=prior, end=relative[1], callback=keep, **settings)]
    for level, stop in pairwise(relative[1:]):
        start = Noised(states[-1], level=level, add_noise=False)
        states.append(sample(model, n, start=start, end=stop, **settings))
    dtype = states[-1].dtype
    if method.coarse:
        warn_caller(
            f"{sum(method.coarse)} steps of the {n} solutions do not reach the accuracy "
            f"{accuracy:g} in {dtype}: they have the tolerance {method.tolerance(dtype):g}; ask "
            "for less accuracy, or take a model in a wider dtype",
        )
    y = torch.stack([torch.cat(beginnings), *states])
    return Trajectories(coordinates.std * torch.exp(-points), y, _conditions_of(model))


def _conditions_of(model: AbstractModel) -> dict[str, Tensor]:
    """The conditions of the network of a model, perhaps within models made from it, one entry per
    sample.

    Raises:
        ValueError: for a condition that has the name of noise or levels in data.
    """
    conditions = dict(innermost(model).entries())
    for name in conditions.keys() & set(given_draws(None)):
        raise ValueError(
            f"the network has a condition {name!r}, which is what data call the noise or the level "
            "of each sample: give it another name"
        )
    return conditions
