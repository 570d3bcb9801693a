"""The posterior samplers of azula, for `posterior.py`; importing this needs azula.

Each takes a mixture, the matrix A, y, the standard deviation of the noise, and a number of samples,
and returns these.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from azula import guidance  # pyright: ignore[reportMissingImports]
from azula.denoise import Denoiser, DiracPosterior  # pyright: ignore[reportMissingImports]
from azula.linalg.covariance import IsotropicCovariance  # pyright: ignore[reportMissingImports]
from azula.noise import VPSchedule  # pyright: ignore[reportMissingImports]
from azula.sample import DDPMSampler  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch.distributions import MultivariateNormal

import sdekit_diffusion as sd

STEPS = 100
SETTINGS = {"silent": True, "dtype": torch.float64, "steps": STEPS}
Sampled = Callable[[sd.GaussianMixture, Tensor, Tensor, float, int], Tensor]


class Exact(Denoiser):
    """The denoiser of a mixture."""

    def __init__(self, law: sd.GaussianMixture) -> None:
        super().__init__()
        self.law = law
        self.schedule = VPSchedule()

    def forward(self, x_t: Tensor, t: Tensor, **more: Any) -> Any:
        alpha, sigma = self.schedule(t)
        size = torch.sqrt(alpha**2 + sigma**2)
        data = self.law.predict_data(float(torch.log(alpha / sigma)), x_t / size)
        return DiracPosterior(mean=data)


def started(sampler: Any, law: sd.GaussianMixture, n: int) -> Tensor:
    """Samples from the prior's states on."""
    torch.manual_seed(1)
    x = sampler.init((n, *law.shape), mean=law.mean(), var=law.data_std**2, dtype=torch.float64)
    return sampler(x)


def dps(law: sd.GaussianMixture, a: Tensor, y: Tensor, noise: float, n: int) -> Tensor:
    # It divides by the norm of the whole batch.
    zeta = math.sqrt(n)
    sampler = guidance.DPSSampler(Exact(law), y, lambda x: x @ a.T, zeta=zeta, **SETTINGS)
    return started(sampler, law, n)


def pgdm(law: sd.GaussianMixture, a: Tensor, y: Tensor, noise: float, n: int) -> Tensor:
    inverse = torch.linalg.pinv(a)
    sampler = guidance.PGDMSampler(
        Exact(law), y, lambda x: x @ a.T, lambda v: v @ inverse.T, eta=1.0, **SETTINGS
    )
    return started(sampler, law, n)


def tds(law: sd.GaussianMixture, a: Tensor, y: Tensor, noise: float, n: int) -> Tensor:
    def twist(x: Tensor, sigma: Tensor) -> Tensor:
        variance = 1 / (1 / sigma**2 + 1 / law.data_std**2)
        spread = variance * a @ a.T + noise**2 * torch.eye(len(y), dtype=torch.float64)
        return MultivariateNormal(x @ a.T, spread).log_prob(y)

    return started(guidance.TDSSampler(denoiser=Exact(law), twist=twist, **SETTINGS), law, n)


def through(made: Callable[..., Any]) -> Sampled:
    """DDPM through a conditioned denoiser, `made(denoiser, y, A, noise variance)`."""

    def run(law: sd.GaussianMixture, a: Tensor, y: Tensor, noise: float, n: int) -> Tensor:
        model = made(Exact(law), y, lambda x: x @ a.T, noise**2)
        return started(DDPMSampler(model, **SETTINGS), law, n)

    return run


def mmps(
    denoiser: Exact, y: Tensor, forward: Callable[[Tensor], Tensor], variance: float
) -> Denoiser:
    covariance = IsotropicCovariance(torch.tensor(variance, dtype=torch.float64))
    return guidance.MMPSDenoiser(denoiser, y, forward, covariance, iterations=4)


METHODS: dict[str, Sampled] = {
    "azula DPS": dps,
    "azula PiGDM": pgdm,
    "azula TMPD": through(guidance.TMPDenoiser),
    "azula DiffPIR": through(guidance.DiffPIRDenoiser),
    "azula MMPS": through(mmps),
    "azula TDS": tds,
}
