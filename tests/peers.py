"""What samplers are compared on: one model, an uneven grid of sigma / alpha, and noise as standard normals."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from sdekit import WhiteNoise, solve
from sdekit_diffusion import VESDE, VPSDE, GaussianMixture
from sdekit_diffusion._samplers import on_clock

MIXTURE = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.3, 0.05])


@dataclass
class Case:
    """A solve down an uneven grid of sigma / alpha, with the noise of our solver as standard normals, one a step."""

    sde: VESDE | VPSDE
    steps: int = 20
    eta: float = 0.0
    l: np.ndarray | None = None

    def __post_init__(self):
        ramp = np.linspace(1, 0, self.steps + 1)
        uneven = -3 * np.log(0.05 ** (1 / 3) + ramp * (20 ** (1 / 3) - 0.05 ** (1 / 3)))
        self.l = uneven if self.l is None else self.l
        self.sigmas = np.exp(-self.l)
        self.x = self.sde.prior((5, 2), seed=1, dtype=torch.float64, t=float(self.sde.time(self.l[0])))
        clock = self.problem().time(torch.tensor(self.l))
        drawn = WhiteNoise(3).increments(clock.tolist(), self.x, (2,)) if self.eta else ()
        self.z = [step.w / math.sqrt(abs(dt)) for step, dt in zip(drawn, clock.diff(), strict=bool(self.eta))]

    def problem(self, integrand="data"):
        return on_clock(MIXTURE, self.sde, self.eta, integrand)

    def ours(self, solver, integrand="data"):
        problem = self.problem(integrand)
        y, clock = self.x / problem.scale(self.l[0]), problem.time(torch.tensor(self.l))
        x = solve(problem, y, clock, solver=solver, noise=WhiteNoise(3) if self.eta else None).x
        return x * problem.scale(self.l[-1])

    def data(self, i, x):
        return MIXTURE.denoise(self.sde.time(self.l[i]), x, self.sde)

    def noise(self, i, x):
        t = self.sde.time(self.l[i])
        return -self.sde.sigma(t) * MIXTURE.score(t, x, self.sde)


def agree(x, y):
    torch.testing.assert_close(x, y, rtol=0, atol=1e-10)
