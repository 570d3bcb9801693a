"""One cloud of particles that follow a conditioned reverse equation, weighted by their paths."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdekit import NoiseQuery, Transitions, WhiteNoise, normal, uniform01
from sdekit.elementary import Time, sum_of_sample
from sdekit_diffusion._inference.weighted import systematic
from sdekit_diffusion._models.conditioned import AbstractPosterior
from sdekit_diffusion._models.counters import RESAMPLING
from sdekit_diffusion._sampling.coordinates import Coordinates, Span, Standardised
from sdekit_diffusion._sampling.initial_states import INITIAL_STATE
from sdekit_diffusion._sampling.method import ReverseProblem
from sdekit_diffusion._sampling.on_clock import OnClock
from sdekit_diffusion._sampling.start_warnings import centre

_LOG_PSI_MARGIN = 3.0  # nats below the least log psi at the start: log psi where psi is 0


@dataclass(frozen=True, eq=False)
class Cloud:
    """K particles at a point of the grid, with what the next step needs.

    Attributes:
        y: the states on the clock, `(K, *event)`.
        slopes: the drifts of the conditioned and of the unconditioned equation, `(2, K, *event)`,
            at this point and earlier ones, the newest first.
        log_psi: log psi at the states, `(K,)`; log_weights contain it.
        log_weights: the log-weights accumulated since the last resampling, `(K,)`.
        log_mean: the logarithm of the product of the mean weights at each resampling.
        ancestors: the number of the initial particle from which each descends, `(K,)`.
    """

    y: Tensor
    slopes: tuple[Tensor, ...]
    log_psi: Tensor
    log_weights: Tensor
    log_mean: Tensor
    ancestors: Tensor

    def resampled(self, threshold: float, u: Tensor) -> "Cloud":
        """K particles of equal weight, where the effective sample size is below a share of K; else
        the cloud itself. Without host synchronisation.
        """
        k = len(self.y)
        weights = torch.softmax(self.log_weights, dim=0)
        few = 1 / weights.square().sum() < threshold * k
        same = torch.arange(k, device=weights.device)
        index = torch.where(few, systematic(weights[None], u, k)[0], same)
        mean = torch.logsumexp(self.log_weights, dim=0) - math.log(k)
        return Cloud(
            self.y[index],
            tuple(slope[:, index] for slope in self.slopes),
            self.log_psi[index],
            torch.where(few, 0.0, self.log_weights),
            self.log_mean + torch.where(few, mean, 0.0),
            self.ancestors[index],
        )


class DenoiserPair:
    """The conditioned and the unconditioned denoiser, `(2, K, *event)`, as the integrand of an
    equation; each call also sets `log_psi`, from the same evaluation.
    """

    def __init__(self, posterior: AbstractPosterior, coordinates: Coordinates) -> None:
        self.posterior = posterior
        self.coordinates = coordinates
        self.standard = Standardised(
            posterior, coordinates.mean, coordinates.std, coordinates.event
        )
        self.log_psi = torch.zeros(0)
        self._least: Tensor | None = None

    def __call__(self, l: Time, u: Tensor) -> Tensor:
        outputs = self.posterior.conditioned(*self.standard.model_input(l, u))
        self.log_psi = self._positive(outputs.log_psi.to(torch.float64))
        denoised = (outputs.conditioned, outputs.data)
        return torch.stack([self.coordinates.standard_data(data) for data in denoised])

    def _positive(self, log_psi: Tensor) -> Tensor:
        """log psi, with a constant instead of -inf where psi is 0: p(y | x) may still become
        positive later, and the weights are exact for any positive psi.
        """
        if self._least is None:  # at the start
            least = torch.where(log_psi.isfinite(), log_psi, math.inf).amin()
            self._least = torch.where(least.isfinite(), least, 0.0) - _LOG_PSI_MARGIN
        return torch.where(log_psi == -math.inf, self._least, log_psi)


@dataclass(frozen=True, eq=False)
class CloudSolve:
    """How a cloud is solved: the twisted particle filter of a conditioned reverse equation.

    Under the model a step is normal with mean m, and under the conditioned model, which proposes,
    with mean m_c and the same variance. Each step multiplies the weight by the ratio of both
    densities and by psi at its end over psi at its beginning; psi approximates p(y | x_t), and the
    last psi is p(y | x). The initial weight is the density of the prior over that of the proposal.
    So the expected mean weight is p(y) of the chain, whatever the approximations are.

    Attributes:
        posterior: of one observation; per-sample entries are those of all particles.
        coordinates, span: where it is solved.
        method: the rule, its noise and its grid.
        threshold: the share of effective particles below which a cloud is resampled.
        dtype, device: of the states.

    References:
        Wu et al. 2023, arXiv 2306.17775; Guarniero et al. 2017, "The iterated auxiliary particle
        filter", for twisting.
    """

    posterior: AbstractPosterior
    coordinates: Coordinates
    span: Span
    method: OnClock
    threshold: float
    dtype: torch.dtype
    device: torch.device

    def cloud(self, particles: int, seed: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """x `(K, *event)`, log weights `(K,)` and the numbers of ancestors `(K,)` of a cloud, a
        function of (seed, number) alone.
        """
        index = number * particles + torch.arange(particles, device=self.device)
        z = normal(seed, index, self.coordinates.event, counter=INITIAL_STATE, dtype=self.dtype)
        denoisers = DenoiserPair(self.posterior, self.coordinates)
        u = z + centre(denoisers.standard, self.span[0], z)
        equation, steps, to_u, from_u = self._steps(denoisers, u)
        y = from_u(0, u)
        slopes = (equation.drift(steps.ts[0], y),)
        start = sum_of_sample(0.5 * (z.double() - u.double()) * (z.double() + u.double()))
        log_weights = start + denoisers.log_psi
        cloud = Cloud(y, slopes, denoisers.log_psi, log_weights, start.new_zeros(()), index)
        query = NoiseQuery(steps.ts, u, equation.noise_shape(u))
        for i, increment in enumerate(WhiteNoise(seed, index=index).answer(query)):
            w = increment.w
            assert w is not None
            cloud = cloud.resampled(self.threshold, self._uniform(seed, number, i))
            noisy = steps.with_noise(i, cloud.y, w)
            y, other = steps.mean(i, noisy, cloud.slopes)
            log_ratio = steps.log_ratio(i, cloud.y, other - y, w)
            if i + 1 < len(steps):
                slopes = (equation.drift(steps.ts[i + 1], y), *cloud.slopes)[: steps.memory]
                log_psi = denoisers.log_psi
            else:
                x = self.coordinates.leave(self.span, to_u(i + 1, y))
                log_psi = self.posterior.observation.log_prob(x).to(torch.float64)
            log_weights = cloud.log_weights + log_ratio + (log_psi - cloud.log_psi)
            cloud = replace(cloud, y=y, slopes=slopes, log_psi=log_psi, log_weights=log_weights)
        x = self.coordinates.leave(self.span, to_u(len(steps), cloud.y))
        log_weights = cloud.log_weights + cloud.log_mean
        _require_numbers(x, log_weights)
        return x, log_weights, cloud.ancestors

    def _steps(self, denoisers: DenoiserPair, u: Tensor) -> tuple[Any, Transitions, Any, Any]:
        """The equation with both denoisers, its transitions, and the maps from the clock's states
        to u and back.
        """
        problem = ReverseProblem(denoisers.standard, self.coordinates, u, self.span)
        grid = self.method.points(problem)
        equation, solver, ts, from_u, to_u, _ = self.method.transformed(problem, grid)
        equation: Any = replace(equation, integrand=denoisers, prepare=None, plans=None)
        equation = equation.tabulated(ts)
        return equation, Transitions(equation, ts, solver), to_u, from_u

    def _uniform(self, seed: int, number: int, i: int) -> Tensor:
        """The uniform number of the resampling of a cloud before step i."""
        index = torch.tensor([number], device=self.device)
        return uniform01(seed, index, (), counter=RESAMPLING + i)


def _require_numbers(x: Tensor, log_weights: Tensor) -> None:
    """Refuses states or log-weights that are not finite, other than -inf, a weight of 0.

    Raises:
        ValueError: says where to look.
    """
    finite = torch.isfinite(x).unsqueeze(-1).flatten(1).all(dim=1)
    wrong = ~finite | log_weights.isnan() | (log_weights > 1e300)
    if bool(wrong.any()):
        raise ValueError(
            f"{int(wrong.sum())} of {len(x)} particles are not finite: log p(y | x) must be a "
            "number, or -inf where y is impossible, wherever particles come, and the steps of a "
            "proposal such as 'dps' may be too long for the noise of y"
        )
