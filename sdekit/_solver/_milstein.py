"""Milstein's method, with exact directional derivatives of g."""

import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._noise import Increment
from sdekit._sde import AbstractSDE, NoiseType
from sdekit._solver._contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, axpy


def _ones(w: Tensor) -> Iterable[Tensor]:
    return (torch.ones_like(w),)


def _basis(w: Tensor) -> Iterable[Tensor]:
    return torch.eye(w.shape[1], dtype=w.dtype, device=w.device).unsqueeze(1).expand(-1, *w.shape)


# Noises v, shaped like W, for which the sum of D(g v)[g v] is the sum of D g^j[g^j] over the Brownian motions.
_UNITS: dict[NoiseType, Callable[[Tensor], Iterable[Tensor]]] = {
    "additive": _ones,
    "diagonal": _ones,
    "scalar": _ones,
    "general": _basis,
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
    cost m + 1 directional derivatives, other noise two.

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

        def pushed(v: Tensor, gv: Tensor) -> Tensor:
            """D(g v)[g v]."""
            return torch.func.jvp(lambda y: problem.multiply(problem.diffusion(t0, y), v, zero), (x,), (gv,))[1]

        kick = problem.multiply(g, noise.w, zero)
        x1 = axpy(dt, problem.drift(t0, x), x) + kick + 0.5 * pushed(noise.w, kick)
        for v in _UNITS[problem.noise_type](noise.w):
            x1 = axpy(-0.5 * abs(dt), pushed(v, problem.multiply(g, v, zero)), x1)
        return Step(x1)
