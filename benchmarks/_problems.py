"""The equations on which `order.py` measures, with the solvers that are for each."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sdekit as sk
from sdekit import AbstractSDE, AbstractSolver, BrownianPath
from sdekit.elementary import Time, broadcast, exp


@dataclass(frozen=True)
class Case:
    """An equation on [start, stop] of its own time, with the solvers that are for it.

    exact: the end from x_0, W and the direction, or None: then a fine solve by `reference`. theirs:
        torchsde's methods.
    """

    name: str
    equation: AbstractSDE
    solvers: list[AbstractSolver]
    reference: AbstractSolver
    theirs: tuple[str, ...] = ()
    exact: Callable[[Tensor, Tensor, int], Tensor] | None = None
    span: tuple[float, float] = (0.0, 1.0)
    geometric: bool = False
    fine: int = 4096
    slow: bool = False  # strong order one half: only the finer grids are in the asymptotic range

    def grid(self, steps: int, direction: int) -> list[float]:
        ends = self.span[::direction]
        return (sk.geometric if self.geometric else sk.uniform)(ends[0], ends[1], steps).tolist()

    def path(self, seed: int) -> BrownianPath:
        return BrownianPath(
            seed,
            sk.geometric(self.span[0], self.span[1], 8).tolist() if self.geometric else self.span,
            depth=24,
        )


def drift(t: Tensor, x: Tensor) -> Tensor:
    return torch.sin(2 * x) + 0.5 * torch.cos(3 * t) - 0.3 * x


def state_free(t: Tensor, x: Tensor) -> Tensor:
    return (0.6 + 0.3 * torch.sin(2 * t)) * torch.ones_like(x)


def elementwise(t: Tensor, x: Tensor) -> Tensor:
    return 0.8 + 0.3 * torch.cos(2 * x) + 0.2 * torch.sin(3 * t)


def columns(t: Tensor, x: Tensor) -> Tensor:
    return 0.9 * torch.stack([torch.cos(x + t), torch.sin(x + t)], dim=-1)


def denoiser(l: Time, x: Tensor) -> Tensor:
    """E[x_0 | x] for modes at -1, 0.4 and 1.2 of deviation 0.15, alpha = 1 and sigma = e^-l."""
    means = torch.tensor([-1.0, 0.4, 1.2]).to(x)
    weights = torch.tensor([0.3, 0.3, 0.4]).to(x)
    s2 = 0.15**2
    noise = broadcast(exp(-2.0 * l), x)
    total = (s2 + noise).unsqueeze(-1) if isinstance(noise, Tensor) else s2 + noise
    posterior = torch.softmax(weights.log() - 0.5 * (x.unsqueeze(-1) - means) ** 2 / total, dim=-1)
    return ((means * noise + s2 * x.unsqueeze(-1)) / total * posterior).sum(-1)


MU = 0.3
NU = 0.5


def ito_geometric(x0: Tensor, w: Tensor, direction: int) -> Tensor:
    return x0 * torch.exp(direction * MU - 0.5 * NU**2 + NU * w)


def stratonovich_geometric(x0: Tensor, w: Tensor, direction: int) -> Tensor:
    return x0 * torch.exp(direction * MU + NU * w)


ITO = [sk.EulerMaruyama(), sk.Milstein(), sk.SRID2()]
STRATONOVICH = [
    sk.Heun(),
    sk.EulerHeun(),
    sk.Midpoint(),
    sk.ReversibleHeun(),
    sk.SPaRK(),
    sk.SlowRK(),
]
ADDITIVE = [sk.EulerMaruyama(), sk.Heun(), sk.ReversibleHeun(), sk.AdamsBashforth(2), sk.SEA()]
ADDITIVE += [sk.SRA1(), sk.SRA3(), sk.ShARK(), sk.SRID2(), sk.SPaRK()]
ODES = [sk.EulerMaruyama(), sk.Heun(), sk.Midpoint(), sk.AdamsBashforth(2), sk.AdamsBashforth(3)]
ODES += [sk.Bosh3(), sk.RK4(), sk.Dopri5(), sk.Tsit5()]
THEIRS = ("heun", "euler_heun", "midpoint", "reversible_heun")

CASES = [
    Case(
        "geometric Brownian motion",
        sk.SDE(lambda t, x: MU * x, lambda t, x: NU * x),
        ITO,
        sk.SRID2(),
        ("euler", "milstein", "srk"),
        ito_geometric,
    ),
    Case(
        "geometric Brownian motion, Stratonovich",
        sk.SDE(lambda t, x: MU * x, lambda t, x: NU * x, sde_type="stratonovich"),
        STRATONOVICH,
        sk.Heun(),
        THEIRS,
        stratonovich_geometric,
    ),
    Case(
        "additive",
        sk.SDE(drift, state_free, "additive"),
        ADDITIVE,
        sk.SRA3(),
        ("euler", "heun", "srk"),
    ),
    Case(
        "mixture score on the clock",
        sk.Clocked(denoiser, lambda l: exp(-2.0 * l), a=2.0, q=2.0),
        ADDITIVE,
        sk.SRA3(),
        span=(math.exp(-4.0), math.exp(3.0)),
        geometric=True,
    ),
    Case("diagonal", sk.SDE(drift, elementwise), ITO, sk.SRID2(), ("euler", "milstein", "srk")),
    Case(
        "diagonal, Stratonovich",
        sk.SDE(drift, elementwise, sde_type="stratonovich"),
        STRATONOVICH,
        sk.SlowRK(),
        THEIRS,
    ),
    Case(
        "noises that do not commute, Ito",
        sk.SDE(drift, columns, "general", noise_size=2),
        [sk.EulerMaruyama(), sk.Milstein()],
        sk.Milstein(),
        ("euler",),
        fine=2**14,
        slow=True,
    ),
    Case(
        "noises that do not commute, Stratonovich",
        sk.SDE(drift, columns, "general", "stratonovich", noise_size=2),
        STRATONOVICH,
        sk.Heun(),
        THEIRS,
        fine=2**14,
        slow=True,
    ),
    Case(
        "semi-linear, dx = (-4 x + f) dt + g dW",
        sk.SemiLinear(-4.0, drift, state_free, "additive"),
        [sk.ExponentialEuler(-4.0), sk.ExponentialHeun(-4.0), sk.EulerMaruyama(), sk.Heun()],
        sk.SRA3(),
    ),
    Case("ordinary", sk.ODE(drift), ODES, sk.RK4()),
]
