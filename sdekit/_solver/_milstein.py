"""Milstein's method, with exact directional derivatives of g."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._noise import Increment
from sdekit._sde import AbstractSDE, NoiseType
from sdekit._solver._contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, axpy, broadcast

Push = Callable[[Tensor], Tensor]  # from a noise v, shaped like W, to D(g v)[g v], shaped like x


def _single(problem: AbstractSDE, push: Push, w: Tensor, dt: Time, onto: Tensor) -> Tensor:
    """One Brownian motion a coordinate, or one in all: the correction is D g[g] (W^2 - |dt|) / 2."""
    return problem.multiply(push(torch.ones_like(w)), 0.5 * (w * w - broadcast(dt, w)), onto)


def _several(problem: AbstractSDE, push: Push, w: Tensor, dt: Time, onto: Tensor) -> Tensor:
    onto = onto + 0.5 * push(w)
    for unit in torch.eye(w.shape[1], dtype=w.dtype, device=w.device):
        onto = axpy(-0.5 * dt, push(unit.expand_as(w)), onto)
    return onto


_CORRECTIONS: dict[NoiseType, Callable[[AbstractSDE, Push, Tensor, Time, Tensor], Tensor]] = {
    "additive": lambda problem, push, w, dt, onto: onto,
    "diagonal": _single,
    "scalar": _single,
    "general": _several,
}


@functools.cache
def _load_forward_mode() -> None:
    """torch compiles rules of forward differentiation at the first use, and warns of a deprecation inside itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


@dataclass(frozen=True, eq=False)
class Milstein(AbstractSolver):
    """x_1 = x_0 + f dt + g dW + D(g dW)[g dW] / 2 - |dt| / 2 sum_j D g^j[g^j], all at (t_0, x_0), for Ito equations.

    D is the derivative in x; g^j is what multiplies the j-th Brownian motion. Diagonal noise is meant as by Kloeden and Platen:
    g_i depends on x_i only, not on the other coordinates. With general noise that commutes, D g^j[g^k] = D g^k[g^j], the strong
    order is one; with other general noise it is that of Euler-Maruyama, because Levy's area is missing. m Brownian motions
    cost m + 1 directional derivatives, other noise one.

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
        _load_forward_mode()
        return ()

    def step(self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree) -> Step:
        assert noise.w is not None
        dt, zero, g = t1 - t0, torch.zeros_like(x), problem.diffusion(t0, x)

        def push(v: Tensor) -> Tensor:
            def product(y: Tensor) -> Tensor:
                return problem.multiply(problem.diffusion(t0, y), v, zero)

            return torch.func.jvp(product, (x,), (problem.multiply(g, v, zero),))[1]

        euler = problem.multiply(g, noise.w, axpy(dt, problem.drift(t0, x), x))
        return Step(_CORRECTIONS[problem.noise_type](problem, push, noise.w, abs(dt), euler))
