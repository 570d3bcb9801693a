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

_SLACK = 1e-6  # of a step: times closer than this are equal
# Between the seeds of the noise within neighbouring steps.
_SEED_STRIDE = 0x9FB21C651E98DF25


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
    remaining = deque(times(ts))
    slack = _slack(ts, dt)
    sign = math.copysign(1.0, remaining[-1] - remaining[0])
    noise = (
        WhiteNoise() if bm is None else bm if isinstance(bm, AbstractNoise) else TorchsdeNoise(bm)
    )
    previous = Point(0, remaining[0], y0)
    for point in integrate(
        problem, y0, steps(remaining[0], remaining[-1], dt, slack), solver=solver, noise=noise
    ):
        output_times = []
        while remaining and sign * (point.t - remaining[0]) > slack:
            output_times.append(remaining.popleft())
        if output_times:
            yield from bridge(
                problem, _bridge_noise(noise, point.step), previous, point, output_times
            )
        while remaining and abs(point.t - remaining[0]) <= slack:
            remaining.popleft()
            yield point.x
        previous = point


def steps(t0: float, t1: float, dt: float, slack: float) -> list[float]:
    """t0, t0 + dt, t0 + 2 dt, ..., t1: the last step may be shorter, but not shorter than slack."""
    count = max(1, math.ceil((abs(t1 - t0) - slack) / dt))
    return [t0 + math.copysign(i * dt, t1 - t0) for i in range(count)] + [t1]


def bridge(
    problem: AbstractSDE, noise: AbstractNoise, start: Point, end: Point, ts: list[float]
) -> Iterator[Tensor]:
    """(1 - r) x_0 + r x_1 + g(t_0, x_0) . (W(t) - W(t_0) - r (W(t_1) - W(t_0))), r the relative
    position of t.
    """
    increments = noise.readings([start.t, *ts, end.t], start.x, problem.noise_shape(start.x))
    *path, increment = accumulate(i.w for i in increments if i.w is not None)
    g = problem.diffusion(start.t, start.x)
    for t, w in zip(ts, path, strict=True):
        r = (t - start.t) / (end.t - start.t)
        yield problem.multiply(g, w - r * increment, torch.lerp(start.x, end.x, r))


def _bridge_noise(noise: AbstractNoise, step: int) -> AbstractNoise:
    """The noise of the bridge within a step: the path itself, or for white noise independent noise,
    because a bridge is independent of the increment.
    """
    return (
        replace(noise, seed=noise.seed + signed(step * _SEED_STRIDE))
        if isinstance(noise, WhiteNoise)
        else noise
    )


def _slack(ts: Tensor | Sequence[float], dt: float) -> float:
    """The distance below which two times are equal: the rounding of ts, or 1e-6 of a step."""
    dtype = ts.dtype if isinstance(ts, Tensor) and ts.is_floating_point() else torch.float64
    rounding = 4 * torch.finfo(dtype).eps * max(map(abs, times(ts)))
    return min(max(rounding, _SLACK * dt), dt / 4)
