"""Solvers that only torchsde's methods need."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE, SDEType
from sdekit._noise.white import Increment
from sdekit._solvers import AbstractSolver, Order
from sdekit._solvers.contract import Step, Tree
from sdekit.elementary import Time, axpy, broadcast, scaled, sqrt


@dataclass(frozen=True, eq=False)
class DerivativeFreeMilstein(AbstractSolver):
    """Milstein's method with a difference quotient of g in place of its derivative:
    x_1 = x_0 + f dt + g dW + (g(t_0, x~) - g) v / (2 sqrt(|dt|)).

    For Ito equations v = dW^2 - |dt| and x~ = x_0 + f dt + g sqrt(|dt|); for Stratonovich equations
    v = dW^2 and x~ = x_0 + g sqrt(|dt|).

    References:
        Kloeden and Platen 1992, section 11.1.
    """

    sde_type: SDEType = "ito"

    order = {"diagonal": Order(1, 1), "scalar": Order(1, 1)}

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        assert noise.w is not None
        dt = t1 - t0
        root = sqrt(abs(dt))
        mean = axpy(dt, problem.drift(t0, x), x)
        g = problem.diffusion(t0, x)
        ito = self.sde_type == "ito"
        ones = scaled(root, torch.ones_like(noise.w))
        there = problem.diffusion(t0, problem.multiply(g, ones, mean if ito else x))
        square = noise.w.square() - broadcast(abs(dt), noise.w) if ito else noise.w.square()
        v = square / (2 * broadcast(root, square))
        end = problem.multiply(g, noise.w, mean)
        return Step(problem.multiply(there, v, problem.multiply(g, -v, end)))


@dataclass(frozen=True, eq=False)
class ProductMilstein(AbstractSolver):
    """Milstein's method for an equation that has only the products P(v) = g v, with noise that
    commutes: x_1 = x_0 + f dt + P(dW) + D P(dW)[P(dW)] / 2, minus |dt| D P(1)[P(1)] / 2 for Ito
    equations, where D g^k[g^j] must be 0 unless j = k.
    """

    sde_type: SDEType = "ito"

    order = {"general": Order(1, 1)}

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        assert noise.w is not None
        dt = t1 - t0
        end = problem.diffuse(t0, x, noise.w, axpy(dt, problem.drift(t0, x), x))
        end = axpy(0.5, _pushforward(problem, t0, x, noise.w), end)
        if self.sde_type == "ito":
            correction = _pushforward(problem, t0, x, torch.ones_like(noise.w))
            end = axpy(-0.5 * abs(dt), correction, end)
        return Step(end)


def _pushforward(problem: AbstractSDE, t: Time, x: Tensor, v: Tensor) -> Tensor:
    """D P(v)[P(v)], by differentiating twice in reverse mode, because P contains a derivative
    itself.
    """
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        product = problem.diffuse(t, x, v, torch.zeros_like(x))
        if not product.requires_grad:
            return torch.zeros_like(product)
        dual = torch.zeros_like(product).requires_grad_()
        (pulled,) = torch.autograd.grad(
            product, x, dual, create_graph=True, allow_unused=True, materialize_grads=True
        )
        if not pulled.requires_grad:
            return torch.zeros_like(product)
        direction = product if recorded else product.detach()
        (pushed,) = torch.autograd.grad(
            pulled, dual, direction, create_graph=recorded, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
    return pushed
