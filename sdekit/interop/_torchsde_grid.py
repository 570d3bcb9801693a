"""torchsde's fixed steps, and the states between them."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._grid import times
from sdekit._noise.generator import signed
from sdekit._noise.white import AbstractNoise, WhiteNoise
from sdekit._solve.integrate import Point, integrate
from sdekit._solvers import AbstractSolver
from sdekit.interop._torchsde_noise import Brownian, TorchsdeNoise

_SLACK = 1e-6  # of a step: times nearer than this are the same
_APART = 0x9FB21C651E98DF25  # between the seed of the steps and those of what is drawn within each


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
    left = deque(times(ts))
    slack = _slack(ts, dt)
    sign = math.copysign(1.0, left[-1] - left[0])
    noise = (
        WhiteNoise() if bm is None else bm if isinstance(bm, AbstractNoise) else TorchsdeNoise(bm)
    )
    before = Point(0, left[0], y0)
    for point in integrate(
        problem, y0, steps(left[0], left[-1], dt, slack), solver=solver, noise=noise
    ):
        inside = []
        while left and sign * (point.t - left[0]) > slack:
            inside.append(left.popleft())
        if inside:
            yield from bridged(problem, _within(noise, point.step), before, point, inside)
        while left and abs(point.t - left[0]) <= slack:
            left.popleft()
            yield point.x
        before = point


def steps(t0: float, t1: float, dt: float, slack: float) -> list[float]:
    """t0, t0 + dt, t0 + 2 dt, ..., t1: the last step is shorter where it has to be, but not as
    short as slack.
    """
    count = max(1, math.ceil((abs(t1 - t0) - slack) / dt))
    return [t0 + math.copysign(i * dt, t1 - t0) for i in range(count)] + [t1]


def bridged(
    problem: AbstractSDE, noise: AbstractNoise, before: Point, after: Point, ts: list[float]
) -> Iterator[Tensor]:
    """(1 - r) x_0 + r x_1 + g(t_0, x_0) . (W(t) - W(t_0) - r (W(t_1) - W(t_0))), r the relative
    position of t.
    """
    increments = noise.readings([before.t, *ts, after.t], before.x, problem.noise_shape(before.x))
    *path, end = accumulate(i.w for i in increments if i.w is not None)
    g = problem.diffusion(before.t, before.x)
    for t, w in zip(ts, path, strict=True):
        r = (t - before.t) / (after.t - before.t)
        yield problem.multiply(g, w - r * end, torch.lerp(before.x, after.x, r))


def _within(noise: AbstractNoise, step: int) -> AbstractNoise:
    """What a step is bridged by: the path itself, or independent noise, as a bridge is of the
    increment it spans.
    """
    return (
        replace(noise, seed=noise.seed + signed(step * _APART))
        if isinstance(noise, WhiteNoise)
        else noise
    )


def _slack(ts: Tensor | Sequence[float], dt: float) -> float:
    """What is less than a difference between two times: the rounding of ts, or a millionth of a
    step.
    """
    dtype = ts.dtype if isinstance(ts, Tensor) and ts.is_floating_point() else torch.float64
    rounding = 4 * torch.finfo(dtype).eps * max(map(abs, times(ts)))
    return min(max(rounding, _SLACK * dt), dt / 4)
