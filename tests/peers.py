"""What samplers are compared on: one model, an uneven grid of sigma / alpha, and noise as standard
normals.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from physical import on_clock

from sdekit import WhiteNoise, solve
from sdekit_diffusion import VESDE, VPSDE, GaussianMixture

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
MIXTURE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.3, 0.05]
)


@dataclass
class Case:
    """A solve down an uneven grid of sigma / alpha, with the noise of our solver as standard
    normals, one a step.
    """

    sde: VESDE | VPSDE
    steps: int = 20
    eta: float = 0.0
    l: np.ndarray | None = None
    dtype: torch.dtype = torch.float64

    def __post_init__(self):
        ramp = np.linspace(1, 0, self.steps + 1)
        uneven = -3 * np.log(0.05 ** (1 / 3) + ramp * (20 ** (1 / 3) - 0.05 ** (1 / 3)))
        self.l = uneven if self.l is None else self.l
        self.sigmas = np.exp(-self.l)
        self.x = self.sde.prior((5, 2), seed=1, dtype=self.dtype, t=float(self.sde.time(self.l[0])))
        clock = self.problem().time(torch.tensor(self.l))
        drawn = WhiteNoise(3).increments(clock.tolist(), self.x, (2,)) if self.eta else ()
        self.z = [
            step.w / math.sqrt(abs(dt))
            for step, dt in zip(drawn, clock.diff(), strict=bool(self.eta))
        ]

    def middles(self):
        """Of each step the normal of the path up to its middle in l, given W over the step and a
        fresh normal.
        """
        clock = self.problem().time(torch.tensor(self.l)).tolist()
        found = []
        drawn = WhiteNoise(3).increments(clock, self.x, (2,), normals=1) if self.eta else ()
        for t0, t1, step in zip(clock, clock[1:], drawn, strict=False):
            part = math.sqrt(t0 * t1) - t0
            whole = t1 - t0
            w = part / whole * step.w + math.sqrt(part * (whole - part) / whole) * step.z[0]
            found.append(w / math.sqrt(part))
        return found

    def problem(self, integrand="data"):
        return on_clock(MIXTURE, self.sde, self.eta, integrand)

    def ours(self, solver, integrand="data"):
        problem = self.problem(integrand)
        y = self.x / problem.scale(self.l[0])
        clock = problem.time(torch.tensor(self.l))
        x = solve(
            problem,
            y,
            clock,
            solver=solver,
            noise=WhiteNoise(3) if self.eta or solver.normals else None,
        ).x
        return x * problem.scale(self.l[-1])

    def data(self, i, x):
        return self.denoised(self.l[i], x)

    def noise(self, i, x):
        return self.predicted(self.l[i], x)

    def denoised(self, l, x):
        return MIXTURE.denoise(self.sde.time(l), x, self.sde)

    def predicted(self, l, x):
        t = self.sde.time(l)
        return -self.sde.sigma(t) * MIXTURE.score(t, x, self.sde)

    def kernel(self, l):
        return float(self.sde.alpha(self.sde.time(l))), float(self.sde.sigma(self.sde.time(l)))


def agree(x, y):
    """To 1e-10 in float64; to 1e-5 in float32."""
    assert x.dtype == y.dtype
    rtol, atol = (0, 1e-10) if x.dtype == torch.float64 else (1e-5, 1e-5)
    torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


# Single-step methods, as k-diffusion has them: variance exploding, x = x_0 + sigma eps, t = -log
# sigma


def slope(case, s, x):
    return (x - case.denoised(-math.log(s), x)) / s


def heun(
    case, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0, largest=math.inf, rule="heun"
):
    """Karras et al. 2022, algorithm 2, for largest = inf; the normals are those that a solver gets
    besides W. k-diffusion has the same noise before steps of Euler and of DPM-Solver-2.
    """
    x = case.x
    fresh = WhiteNoise(3).increments(case.sigmas.tolist(), case.x, None, normals=1)
    for s, t, drawn in zip(case.sigmas, case.sigmas[1:], fresh, strict=False):
        gamma = min(s_churn / case.steps, math.sqrt(2) - 1) if s_tmin <= s <= s_tmax else 0.0
        hat = min(s * (1 + gamma), largest)
        if gamma:
            x = x + drawn.z[0] * s_noise * math.sqrt(max(0, hat**2 - s**2))
        d = slope(case, hat, x)
        if rule == "heun":
            d = (d + slope(case, t, x + d * (t - hat))) / 2
        if rule == "dpm_2":
            middle = math.exp((math.log(hat) + math.log(t)) / 2)
            d = slope(case, middle, x + d * (middle - hat))
        x = x + d * (t - hat)
    return x


def ancestral_step(s, t, eta):
    """k-diffusion's split of a step to sigma = t: the sigma to go down to, and that of the noise
    added there.
    """
    up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
    return math.sqrt(t**2 - up**2), up


def euler_ancestral(case, s_noise=1.0):
    x = case.x
    for i, (s, t) in enumerate(zip(case.sigmas, case.sigmas[1:], strict=False)):
        down, up = ancestral_step(s, t, case.eta)
        x = x + slope(case, s, x) * (down - s)
        if up:
            x = x + case.z[i] * s_noise * up
    return x


def dpmpp_sde(case, s_noise=1.0):
    """DPM-Solver++ (stochastic), r = 1/2: the noise to the middle and that of the step are normals
    of one path.
    """
    x = case.x
    middles = case.middles()
    for i, (s, t) in enumerate(zip(case.sigmas, case.sigmas[1:], strict=False)):
        middle = math.sqrt(s * t)
        down, up = ancestral_step(s, middle, case.eta)
        x_2 = down / s * x - (down / s - 1) * case.data(i, x)
        if up:
            x_2 = x_2 + middles[i] * s_noise * up
        down, up = ancestral_step(s, t, case.eta)
        x = down / s * x - (down / s - 1) * case.denoised(-math.log(middle), x_2)
        if up:
            x = x + case.z[i] * s_noise * up
    return x


def dpm_2_ancestral(case, s_noise=1.0, data=False):
    """Two stages down to the lower sigma of `ancestral_step`, one where that is 0: the slope of the
    second, or its data.
    """
    x = case.x
    fresh = WhiteNoise(3).increments(case.sigmas.tolist(), case.x, None, normals=1)
    for s, t, drawn in zip(case.sigmas, case.sigmas[1:], fresh, strict=False):
        down, up = ancestral_step(s, t, case.eta)
        d = slope(case, s, x)
        if down == 0:
            x = x + d * (down - s)
        else:
            middle = math.exp((math.log(s) + math.log(down)) / 2)
            inner = x + d * (middle - s)
            if data:
                x = down / s * x + (1 - down / s) * case.denoised(-math.log(middle), inner)
            else:
                x = x + slope(case, middle, inner) * (down - s)
        if up:
            x = x + drawn.z[0] * s_noise * up
    return x


def dpm_2(case):
    x = case.x
    for s, t in zip(case.sigmas, case.sigmas[1:], strict=False):
        middle = math.exp((math.log(s) + math.log(t)) / 2)
        x = x + slope(case, middle, x + slope(case, s, x) * (middle - s)) * (t - s)
    return x


def dpmpp_2s(case):
    """The ancestral form at eta = 0."""
    x = case.x
    t = -np.log(case.sigmas)
    for i in range(case.steps):
        h = t[i + 1] - t[i]
        middle = t[i] + h / 2
        x_2 = math.exp(t[i] - middle) * x - math.expm1(-h / 2) * case.data(i, x)
        x = math.exp(-h) * x - math.expm1(-h) * case.denoised(middle, x_2)
    return x


def exp_heun(case):
    """The predictor is SDE-DPM-Solver++(1) with noise level eta; the corrector adds phi_2 (D_1 -
    D_0), with the same noise.
    """
    x = case.x
    for i in range(case.steps):
        d = case.data(i, x)
        h = case.l[i + 1] - case.l[i]
        z = (1 + case.eta**2) * h
        x = math.exp(-z) * x - math.expm1(-z) * d
        if case.eta:
            x = x + case.sigmas[i + 1] * math.sqrt(-math.expm1(-2 * case.eta**2 * h)) * case.z[i]
        x = x + (math.expm1(-z) / z + 1) * (case.data(i + 1, x) - d)
    return x


# Lu et al. 2022: r_1 = 1/3, r_2 = 2/3


def dpm_3(case):
    """arXiv 2206.00927, algorithm 2."""
    x = case.x
    l = case.l
    for i in range(case.steps):
        h = l[i + 1] - l[i]
        eps = case.noise(i, x)
        (a, _), (a_1, s_1), (a_2, s_2), (a_t, s_t) = (
            case.kernel(l[i] + r * h) for r in (0, 1 / 3, 2 / 3, 1)
        )
        u = a_1 / a * x - s_1 * math.expm1(h / 3) * eps
        d = case.predicted(l[i] + h / 3, u) - eps
        grown = math.expm1(2 * h / 3)
        u = a_2 / a * x - s_2 * grown * eps - s_2 * 2 * (grown / (2 * h / 3) - 1) * d
        d = case.predicted(l[i] + 2 * h / 3, u) - eps
        x = a_t / a * x - s_t * math.expm1(h) * eps - s_t * 1.5 * (math.expm1(h) / h - 1) * d
    return x


def dpmpp_3s(case):
    """The same on the data, as in the authors' code with algorithm_type="dpmsolver++"."""
    x = case.x
    l = case.l
    for i in range(case.steps):
        h = l[i + 1] - l[i]
        d_0 = case.data(i, x)
        (_, s), (a_1, s_1), (a_2, s_2), (a_t, s_t) = (
            case.kernel(l[i] + r * h) for r in (0, 1 / 3, 2 / 3, 1)
        )
        u = s_1 / s * x - a_1 * math.expm1(-h / 3) * d_0
        d = case.denoised(l[i] + h / 3, u) - d_0
        fallen = math.expm1(-2 * h / 3)
        u = s_2 / s * x - a_2 * fallen * d_0 + a_2 * 2 * (fallen / (2 * h / 3) + 1) * d
        d = case.denoised(l[i] + 2 * h / 3, u) - d_0
        x = s_t / s * x - a_t * math.expm1(-h) * d_0 + a_t * 1.5 * (math.expm1(-h) / h + 1) * d
    return x
