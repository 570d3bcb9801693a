"""Methods and their equations in the states x and the log-SNR of a diffusion, as publications have
them.
"""

import math
from dataclasses import replace

import torch

from sdekit import normal
from sdekit.elementary import broadcast
from sdekit_diffusion._sampling import clock
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.method import ReverseProblem


def span_of(model, sde, end):
    """l = log(alpha / sigma) at both ends of a solve down to end, in units of the standard
    deviation of the data.
    """
    coordinates = Coordinates.of(model, sde)
    shift = math.log(coordinates.std)
    return tuple(l - shift for l in coordinates.span(model, end))


def grid_points(grid, model, sde, span, steps):
    """l = log(alpha / sigma) at the ends of the steps of a grid."""
    coordinates = Coordinates.of(model, sde)
    shift = math.log(coordinates.std)
    return grid.points(coordinates, tuple(l + shift for l in span), steps) - shift


def prior(model, sde, t, n, seed, dtype=torch.float64):
    """The states at time t from which `sample` starts: N(alpha m, (alpha s)^2 + sigma^2)."""
    alpha, sigma = sde.kernel(t)
    z = normal(seed, torch.arange(n), model.shape, dtype=dtype)
    mean = torch.as_tensor(model.data_mean, dtype=dtype)
    return alpha * mean + math.hypot(alpha * model.data_std, sigma) * z


def run(method, model, sde, x, span, noise=None):
    """The states at the end of a method that starts from x; span is that of log(alpha / sigma)."""
    coordinates = Coordinates.of(model, sde)
    start, stop = (l + math.log(coordinates.std) for l in span)
    u = coordinates.standard(float(coordinates.time(start)), x)
    problem = ReverseProblem(coordinates.standardised(model), coordinates, u, (start, stop), noise)
    return coordinates.physical_solution(method.run(problem)).x


def _in_x(problem, sde):
    """A problem for u = x / sqrt(alpha^2 + sigma^2) as one for x."""
    own = problem.integrand
    scale = problem.scale
    size = lambda l: sde.size(sde.time(l))  # noqa: E731
    return replace(
        problem,
        integrand=lambda l, x: own(l, x * broadcast(1 / size(l), x)),
        scale=lambda l: scale(l) * size(l),
    )


def on_clock(model, sde, eta=0.0, integrand="data"):
    return _in_x(clock.on_clock(model, eta, integrand, sde.time), sde)


def on_steps(model, sde, eta, grid):
    return _in_x(clock.piecewise_on_clock(model, eta, grid, sde.time), sde)
