"""Milstein's method, with exact directional derivatives of g."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._equations.derivative import derivative
from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, axpy, broadcast

Correction = Callable[[AbstractSDE, Time, Tensor, Tensor, Time, Tensor], Tensor]


def _additive(
    problem: AbstractSDE, t: Time, x: Tensor, w: Tensor, dt: Time, onto: Tensor
) -> Tensor:
    return problem.diffuse(t, x, w, onto)


def _diagonal(
    problem: AbstractSDE, t: Time, x: Tensor, w: Tensor, dt: Time, onto: Tensor
) -> Tensor:
    """g W + g' g (W^2 - dt) / 2: where g_i depends on x_i alone the Jacobian is its transpose,
    which torch applies faster.
    """
    half = 0.5 * (w * w - broadcast(dt, w))

    def diffusion(y: Tensor) -> Tensor:
        return problem.multiply(problem.diffusion(t, y), torch.ones_like(y), torch.zeros_like(y))

    g, correction = derivative(diffusion, x, lambda g: g * half)
    return torch.addcmul(onto, g, w) + correction


def _scalar(problem: AbstractSDE, t: Time, x: Tensor, w: Tensor, dt: Time, onto: Tensor) -> Tensor:
    """g W + D g[g] (W^2 - dt) / 2."""
    g, pushforward = _directional_derivative(problem, t, x)
    onto = problem.multiply(g, w, onto)
    return problem.multiply(pushforward(torch.ones_like(w)), 0.5 * (w * w - broadcast(dt, w)), onto)


def _general(problem: AbstractSDE, t: Time, x: Tensor, w: Tensor, dt: Time, onto: Tensor) -> Tensor:
    """g W + D(g W)[g W] / 2 - dt / 2 sum_j D g^j[g^j]."""
    g, pushforward = _directional_derivative(problem, t, x)
    onto = problem.multiply(g, w, onto) + 0.5 * pushforward(w)
    for unit in torch.eye(w.shape[1], dtype=w.dtype, device=w.device):
        onto = axpy(-0.5 * dt, pushforward(unit.expand_as(w)), onto)
    return onto


def _directional_derivative(
    problem: AbstractSDE, t: Time, x: Tensor
) -> tuple[Time, Callable[[Tensor], Tensor]]:
    """g, and the function from v, shaped like W, to D(g v)[g v], shaped like x."""
    zero = torch.zeros_like(x)
    g = problem.diffusion(t, x)

    def pushforward(v: Tensor) -> Tensor:
        def product(y: Tensor) -> Tensor:
            return problem.multiply(problem.diffusion(t, y), v, zero)

        point = x.contiguous()
        direction = problem.multiply(g, v, zero).contiguous()
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return torch.func.jvp(product, (point,), (direction,))[1]
        with torch.inference_mode(mode=False):  # in that mode older versions of torch return zeros
            return torch.func.jvp(product, (point.clone(),), (direction.clone(),))[1]

    return g, pushforward


_CORRECTIONS: dict[NoiseType, Correction] = {
    "additive": _additive,
    "diagonal": _diagonal,
    "scalar": _scalar,
    "general": _general,
}


@functools.cache
def _load_forward_mode() -> None:
    """Makes torch compile its rules of forward differentiation, which issues a DeprecationWarning
    from torch itself at the first use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


@dataclass(frozen=True, eq=False)
class Milstein(AbstractSolver):
    """x_1 = x_0 + f dt + g dW + D(g dW)[g dW] / 2 - |dt| / 2 sum_j D g^j[g^j], for Ito equations.

    torch differentiates g: with x.detach() or torch.no_grad() in g, D is zero.

    All functions are at (t_0, x_0); D is the derivative in x; g^j multiplies the j-th Brownian
    motion. Diagonal noise as in Kloeden and Platen: g_i depends on x_i only, not on the other
    coordinates. With general noise that commutes, D g^j[g^k] = D g^k[g^j], the strong order is one;
    with other general noise it is that of Euler-Maruyama, because Levy's area is missing. m
    Brownian motions cost m + 1 directional derivatives, other noise one.

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
            _load_forward_mode()
        return ()

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        assert noise.w is not None
        dt = t1 - t0
        mean = axpy(dt, problem.drift(t0, x), x)
        return Step(_CORRECTIONS[problem.noise_type](problem, t0, x, noise.w, abs(dt), mean))
