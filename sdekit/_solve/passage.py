"""First passages of zero within steps of a stochastic equation, given both ends of each."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._noise import generator
from sdekit._solve.active import called_for_some
from sdekit._solve.counted import Counted
from sdekit.elementary import axpy, broadcast, sum_of_sample

# Times |g| at the start of a step: the least |g| at its end, to avoid a division by 0.
_SMALLEST = 1e-12
_NEWTON = 8  # steps to the surface; one is enough where g is linear


class StepBatch(NamedTuple):
    """Steps that were taken, one per sample of a part of the batch.

    Attributes:
        samples: the samples' rows in the full batch.
        accept: whether their steps are accepted.
        t0, t1, x0, x1: the ends of the steps.
        problem: the equation of these samples, whose counts of evaluations are not used.
        within: a function of rows, which returns a function from theta, `(rows,)`, to the states
            within the steps of these rows; None with noise.
    """

    samples: Tensor
    accept: Tensor
    t0: Tensor
    t1: Tensor
    x0: Tensor
    x1: Tensor
    problem: Counted
    within: Callable[[Tensor], Callable[[Tensor], Tensor]] | None


class EventZeros(NamedTuple):
    """Zeros of some rows of the steps that were taken, with their times and states."""

    rows: Tensor
    t: Tensor
    x: Tensor


def first_passage(
    function: Callable[[Tensor, Tensor], Tensor],
    batch: StepBatch,
    values: tuple[Tensor, Tensor],
    key: Tensor,
    number: Tensor,
) -> EventZeros:
    """The first passages of zero by g, of the samples whose steps are accepted.

    Given its values a > 0 and b at the ends of a step of length h, a Brownian motion whose variance
    over the step is v = s^2 h passes zero with the probability e^{-2 a b / v} if b > 0, and with
    probability one if b <= 0. The time theta h of the passage has theta = xi / (1 + xi), where xi
    has the inverse Gaussian law with the mean a / |b| and the shape a^2 / v. s is |g_x sigma| at
    the end where |g| is smaller, with sigma the diffusion coefficient of the equation.

    Arguments:
        function: g(t, x), `(batch,)`.
        values: g at both ends.
        key, number: the keys of the samples and the numbers of their steps, on which the random
            numbers depend.

    References:
        Metwally and Atiya 2002, "Using Brownian bridge for fast simulation of jump-diffusion
        processes and barrier options"; Michael, Schucany and Haas 1976, "Generating random variates
        using transformations with multiple roots", for the inverse Gaussian law.
    """
    t0 = batch.t0
    t1 = batch.t1
    length = (t1 - t0).abs()
    second = values[1].abs() < values[0].abs()
    near = torch.where(second, t1, t0)
    point = torch.where(broadcast(second, batch.x0) != 0, batch.x1, batch.x0)
    _, _, across, _ = _across(function, batch.problem, near, point)
    variance = sum_of_sample(across.square()) * length
    side = values[0].sign().to(length)
    a = values[0].to(length).abs()
    b = side * values[1].to(length)
    uniform = generator.uniform01(key, number, (), counter=0)
    hit = (b <= 0) | (variance > 0) & (uniform < torch.exp(-2 * a * b / variance))
    rows = (batch.accept & hit).nonzero().flatten()
    if not len(rows):
        return EventZeros(rows, t0[rows], batch.x0[rows])
    a, b, variance, key, number, length = (
        part[rows] for part in (a, b, variance, key, number, length)
    )
    theta = _share(a, b, variance, key, number)
    with called_for_some(len(rows), len(t0)):
        problem = batch.problem.rows(rows)
        with torch.no_grad():
            t = torch.lerp(t0[rows], t1[rows], theta)
            x = batch.x0[rows]
            between = torch.lerp(x, batch.x1[rows], broadcast(theta, x))
            dw = generator.normal(key, number, tuple(across.shape[1:]), counter=3, dtype=x.dtype)
            dw = broadcast((theta * (1 - theta) * length).sqrt(), dw) * dw
            x = problem.diffuse(near[rows], point[rows], dw, between)
        for _ in range(_NEWTON):
            height, normal, across, along = _across(function, problem, t, x)
            # Along sigma sigma^T g_x, or along g_x where the noise does not move g.
            reached = sum_of_sample(across.square()) > 0
            along = torch.where(broadcast(reached, x) != 0, along, normal)
            size = sum_of_sample(normal * along)
            step = torch.where(size > 0, -height / torch.where(size > 0, size, 1.0), 0.0)
            x = axpy(step.to(t), along, x)
    return EventZeros(rows, t, x)


def _share(a: Tensor, b: Tensor, variance: Tensor, key: Tensor, number: Tensor) -> Tensor:
    """theta, the share of a step after which Brownian motion passes zero."""
    mean = a / torch.maximum(b.abs(), _SMALLEST * a)
    shape = a.square() / variance
    square = generator.normal(key, number, (), counter=2).to(a).square()
    w = 0.5 * mean * square / shape
    root = mean / (1 + w + (w * (2 + w)).sqrt())
    uniform = generator.uniform01(key, number, (), counter=1)
    xi = torch.where(uniform * (mean + root) <= mean, root, mean * (mean / root))
    return torch.where(xi.isfinite(), xi / (1 + xi), 1.0)


def _across(
    function: Callable[[Tensor, Tensor], Tensor], problem: Counted, t: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """g, g_x, g_x sigma, shaped as dW, and sigma sigma^T g_x, shaped as x.

    Raises:
        ValueError: for a g without a gradient.
    """
    shape = problem.noise_shape(x)
    assert shape is not None
    with torch.inference_mode(False), torch.enable_grad():
        t = t.clone()
        x = x.detach().clone()
        point = x.clone().requires_grad_()
        value = function(t, point)
        normal = None
        if value.requires_grad:
            (normal,) = torch.autograd.grad(value.sum(), point, allow_unused=True)
        if normal is None:
            raise ValueError(
                "an event's g(t, x) has no gradient in x, which the law of a first passage needs: "
                "do not detach x, nor use torch.no_grad()"
            )
        zero = torch.zeros_like(x)
        dw = x.new_zeros(len(x), *shape, requires_grad=True)
        moved = (normal * problem.diffuse(t, x, dw, zero)).sum()
        (across,) = torch.autograd.grad(moved, dw)
    with torch.no_grad():
        return value.detach(), normal, across, problem.diffuse(t, x, across, zero)
