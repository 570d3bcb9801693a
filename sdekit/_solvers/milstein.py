"""Milstein's method, with exact directional derivatives of g."""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sdekit._equations.derivative import derivative, require_visible
from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit.calling import has_hidden_values
from sdekit.elementary import Time, axpy, broadcast

# The arguments: the equation, the time, the state, W, the width (|dt| for Ito equations, 0 for
# Stratonovich ones), and the state to which the noise is added.
Correction = Callable[[AbstractSDE, Time, Tensor, Tensor, Time, Tensor], Tensor]


def _additive(
    problem: AbstractSDE, t: Time, x: Tensor, w: Tensor, dt: Time, onto: Tensor
) -> Tensor:
    return problem.diffuse(t, x, w, onto)


def _diagonal(
    problem: AbstractSDE, t: Time, x: Tensor, w: Tensor, dt: Time, onto: Tensor
) -> Tensor:
    """g W + g' g (W^2 - dt) / 2: if g_i depends on x_i alone the Jacobian equals its transpose,
    which torch applies faster.
    """
    half = 0.5 * (w * w - broadcast(dt, w))
    g, correction = derivative(partial(_elements, problem, t), x, lambda g: g * half)
    return torch.addcmul(onto, g, w) + correction


def _elements(problem: AbstractSDE, t: Time, x: Tensor) -> Tensor:
    """A diagonal g, shaped like x."""
    return problem.multiply(problem.diffusion(t, x), torch.ones_like(x), torch.zeros_like(x))


def _scalar(problem: AbstractSDE, t: Time, x: Tensor, w: Tensor, dt: Time, onto: Tensor) -> Tensor:
    """g W + D g[g] (W^2 - dt) / 2."""
    g, pushforward = directional_derivative(problem, t, x)
    onto = problem.multiply(g, w, onto)
    return problem.multiply(pushforward(torch.ones_like(w)), 0.5 * (w * w - broadcast(dt, w)), onto)


def _general(problem: AbstractSDE, t: Time, x: Tensor, w: Tensor, dt: Time, onto: Tensor) -> Tensor:
    """g W + D(g W)[g W] / 2 - dt / 2 sum_j D g^j[g^j]."""
    g, pushforward = directional_derivative(problem, t, x)
    onto = problem.multiply(g, w, onto) + 0.5 * pushforward(w)
    if not isinstance(dt, Tensor) and dt == 0:
        return onto
    for unit in torch.eye(w.shape[1], dtype=w.dtype, device=w.device):
        onto = axpy(-0.5 * dt, pushforward(unit.expand_as(w)), onto)
    return onto


def directional_derivative(
    problem: AbstractSDE, t: Time, x: Tensor
) -> tuple[Time, Callable[..., Tensor]]:
    """g, and the function from v and u, both shaped like W, to D(g v)[g u], shaped like x; u is v
    unless given.
    """
    zero = torch.zeros_like(x)
    g = problem.diffusion(t, x)

    def pushforward(v: Tensor, u: Tensor | None = None) -> Tensor:
        def product(y: Tensor) -> Tensor:
            return problem.multiply(problem.diffusion(t, y), v, zero)

        return _derivative_along(product, x, problem.multiply(g, v if u is None else u, zero))

    return g, pushforward


def _derivative_along(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    """The derivative of a function at x along a direction."""
    point = x.contiguous()
    direction = direction.contiguous()
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return torch.func.jvp(function, (point,), (direction,))[1]
    with torch.inference_mode(mode=False):  # in that mode older versions of torch return zeros
        return torch.func.jvp(function, (point.clone(),), (direction.clone(),))[1]


def _weighted_noise(problem: AbstractSDE, t: Time, x: Tensor) -> Tensor:
    """g with a weight for each Brownian motion, shaped like x."""
    shape = problem.noise_shape(x) or ()
    v = torch.linspace(1.0, 2.0, math.prod(shape), dtype=x.dtype, device=x.device)
    return problem.multiply(
        problem.diffusion(t, x), v.reshape(shape).expand(len(x), *shape), torch.zeros_like(x)
    )


_CORRECTIONS: dict[NoiseType, Correction] = {
    "additive": _additive,
    "diagonal": _diagonal,
    "scalar": _scalar,
    "general": _general,
}


def require_derivative_of_diffusion(problem: AbstractSDE, t: Time, x: Tensor) -> None:
    """Refuses a g that depends on x in a way that torch cannot differentiate: its derivative would
    be 0.

    Raises:
        RuntimeError: with what to do.
    """
    if torch.compiler.is_compiling() or has_hidden_values(x) or not x.numel():
        return
    # Next to x, because the derivative at x itself may be 0 by chance.
    point = x + 1e-3 * (1 + x.abs())
    with torch.no_grad():
        if problem.noise_type == "diagonal":
            product = partial(_elements, problem, t)
            _, change = derivative(product, point, torch.ones_like)
        else:
            product = partial(_weighted_noise, problem, t)
            change = _derivative_along(product, point, torch.ones_like(point))
        if not has_hidden_values(change) and not bool((change != 0).any()):
            require_visible("the diffusion", "this method", product, x)


@functools.cache
def load_forward_mode() -> None:
    """Makes torch load its rules of forward-mode differentiation, without the DeprecationWarning
    that torch itself issues at their first use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


@dataclass(frozen=True, eq=False)
class Milstein(AbstractSolver):
    """Milstein's method for Ito equations:

        x_1 = x_0 + f dt + g dW + D(g dW)[g dW] / 2 - |dt| / 2 sum_j D g^j[g^j].

    f and g are evaluated at (t_0, x_0), D is the derivative with respect to x, and g^j multiplies
    the j-th Brownian motion. torch differentiates g. A solve first checks that it can: x.detach()
    or torch.no_grad() in g would make D zero, and are refused.

    With diagonal noise g_i must depend on x_i only, not on other coordinates (Kloeden and Platen).
    With general noise that commutes, D g^j[g^k] = D g^k[g^j], the strong order is one; with other
    general noise it is that of Euler-Maruyama, because Levy's area is missing. General noise with m
    Brownian motions costs m + 1 directional derivatives per step, diagonal and scalar noise one.

    Raises:
        RuntimeError: in a solve, for a g that depends on x in a way that torch cannot
            differentiate.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x)
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.Milstein()).x.shape
        torch.Size([4, 1])

    References:
        Milstein 1975; Kloeden and Platen 1992, section 10.3.
    """

    order = {
        "additive": Order(1, 1),
        "diagonal": Order(1, 1),
        "scalar": Order(1, 1),
        "general": Order(0.5, 1),
    }

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        if problem.noise_type in ("scalar", "general"):
            load_forward_mode()
        if problem.noise_type != "additive":
            require_derivative_of_diffusion(problem, t0, x)
        return ()

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        assert noise.w is not None
        dt = t1 - t0
        mean = axpy(dt, problem.drift(t0, x), x)
        width = abs(dt) if self.sde_type == "ito" else 0.0
        return Step(_CORRECTIONS[problem.noise_type](problem, t0, x, noise.w, width, mean))


@dataclass(frozen=True, eq=False)
class StratonovichMilstein(Milstein):
    """Milstein's method for Stratonovich equations, x_1 = x_0 + f dt + g dW + D(g dW)[g dW] / 2.

    General noise costs one directional derivative per step; the rest is as in `Milstein`.

    Raises:
        RuntimeError: in a solve, for a g that depends on x in a way that torch cannot
            differentiate.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x, sde_type="stratonovich")
        >>> ts, solver = sdekit.uniform(0.0, 1.0, 10), sdekit.StratonovichMilstein()
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=solver).x.shape
        torch.Size([4, 1])

    References:
        Kloeden and Platen 1992, section 10.3.
    """

    sde_type = "stratonovich"
