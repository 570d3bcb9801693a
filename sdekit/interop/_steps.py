"""torchsde's fixed steps, and the states between them."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sdekit._grid import times
from sdekit._integrate import integrate
from sdekit._noise import AbstractNoise, WhiteNoise
from sdekit._sde import AbstractSDE
from sdekit._solution import Point
from sdekit._solver import AbstractSolver
from sdekit.interop._torchsde_noise import Brownian, TorchsdeNoise

_SLACK = 1e-6  # of a step: times nearer than this are the same


def states(
    problem: AbstractSDE,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    bm: Brownian | None,
    dt: float,
) -> Iterator[Tensor]:
    """The states at ts, each `(batch, *event)`, solved in steps of dt from ts[0]."""
    outputs = times(ts)
    slack = _slack(ts, outputs, dt)
    grid = steps(outputs[0], outputs[-1], dt, slack)
    noise = WhiteNoise() if bm is None else bm if isinstance(bm, AbstractNoise) else TorchsdeNoise(bm)
    if isinstance(noise, WhiteNoise):  # not a path that could be asked between the steps, so there must be a step
        grid = _with(grid, outputs, slack)
    sign, left, before = math.copysign(1.0, outputs[-1] - outputs[0]), iter(outputs), Point(0, outputs[0], y0)
    t = next(left)
    for point in integrate(problem, y0, grid, solver=solver, noise=noise):
        while t is not None and sign * (t - point.t) <= slack:
            yield point.x if abs(t - point.t) <= slack else bridged(problem, noise, before, point, t)
            t = next(left, None)
        before = point


def steps(t0: float, t1: float, dt: float, slack: float) -> list[float]:
    """t0, t0 + dt, t0 + 2 dt, ..., t1: the last step is shorter where it has to be, but not as short as slack."""
    count = max(1, math.ceil((abs(t1 - t0) - slack) / dt))
    return [t0 + math.copysign(i * dt, t1 - t0) for i in range(count)] + [t1]


def bridged(problem: AbstractSDE, noise: AbstractNoise, before: Point, after: Point, t: float) -> Tensor:
    """(1 - r) x_0 + r x_1 + g(t_0, x_0) . (W(t) - W(t_0) - r (W(t_1) - W(t_0))), r the relative position of t."""
    r = (t - before.t) / (after.t - before.t)
    shape = problem.noise_shape(before.x)
    first, second = noise.increments([before.t, t, after.t], before.x, shape, levy=False, normals=0, start=0)
    straight = torch.lerp(before.x, after.x, r)
    if first.w is None or second.w is None:
        return straight
    return problem.diffuse(before.t, before.x, (1 - r) * first.w - r * second.w, straight)


def _slack(ts: Tensor | Sequence[float], outputs: list[float], dt: float) -> float:
    """What is less than a difference between two times: the rounding of ts, or a millionth of a step."""
    dtype = ts.dtype if isinstance(ts, Tensor) and ts.is_floating_point() else torch.float64
    rounding = 4 * torch.finfo(dtype).eps * max(map(abs, outputs))
    return min(max(rounding, _SLACK * dt), dt / 4)


def _with(grid: list[float], outputs: list[float], slack: float) -> list[float]:
    """The grid with the outputs between its times among them."""
    sign = math.copysign(1.0, grid[-1] - grid[0])
    line = [sign * t for t in grid]

    def between(t: float) -> bool:
        i = bisect_left(line, sign * t)
        return all(abs(line[j] - sign * t) > slack for j in (i - 1, i) if 0 <= j < len(line))

    return sorted({*grid, *filter(between, outputs)}, reverse=sign < 0)
