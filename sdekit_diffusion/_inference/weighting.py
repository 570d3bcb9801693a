"""Methods of weighting the samples of a conditioned model, so that they are exact."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sdekit import AbstractMultistep, AbstractTrace, AdamsMoulton, Hutchinson, Status, normal
from sdekit_diffusion._arguments.inputs import is_whole, require_numbers
from sdekit_diffusion._inference.flow_map import FlowMap, default_trace
from sdekit_diffusion._inference.particles import CloudSolve
from sdekit_diffusion._inference.weighted import WeightedSamples
from sdekit_diffusion._models.conditioned import AbstractPosterior
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.initial_states import INITIAL_STATE
from sdekit_diffusion._sampling.on_clock import OnClock
from sdekit_diffusion._sampling.start_warnings import centre

_OTHER_PROBES = 1 << 40  # added to the indices of samples, for independent probes
_MAX_PROBE_VARIANCE = 0.3  # nats^2; above it e^{v/2} depends on the law of the probes' noise
_LARGEST_TOLERANCE = 1e-4
FEW_STEPS = 16  # of rules of order two; `benchmarks/posterior_error.py` prints the errors
# In units of the noise of y; `benchmarks/posterior.py --calibrate` prints the errors.
_TOLERANCE = 3e-3


@dataclass(frozen=True, eq=False)
class PosteriorProblem:
    """The posterior of one observation, from which an `AbstractWeighting` draws n samples.

    Arguments:
        posterior: the conditioned model; what it has per sample has one entry.
        coordinates: the standardised coordinates in which it is solved.
        span: log(alpha s / sigma) at the noisy end and at the clean end, s being the standard
            deviation of the data.
        n: the number of samples.
        seed, number: the random numbers depend on the seed and on the number of the observation.
        noise: the smallest standard deviation of the noise of y, in units of that of the data; 1
            where it is not known.
        dtype, device: of the states.
        report: a function to call with the number of further samples that are complete, for the
            progress bar.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Reporting(sd.AbstractWeighting):
        ...     weighting: sd.AbstractWeighting
        ...     def run(self, problem):
        ...         print(problem.n, problem.number)
        ...         return self.weighting.run(problem)
        >>> law = sd.GaussianMixture([1.0], [[0.0]], [1.0])
        >>> y = sd.LinearObservation(torch.tensor([[1.0]]), torch.tensor([1.0]), 1.0)
        >>> method = Reporting(sd.Particles(particles=8, steps=20))
        >>> x = sd.sample_posterior(law, y, 16, sde="vp", method=method, seed=0).x
        16 0
    """

    posterior: AbstractPosterior
    coordinates: Coordinates
    span: Span
    n: int
    seed: int
    number: int
    noise: float
    dtype: torch.dtype
    device: torch.device
    report: Callable[[int], None] = field(default=lambda count: None)

    def of(self, count: int) -> AbstractPosterior:
        """The conditioned model for a batch of `count` samples."""
        return self.posterior.rows(torch.zeros(count, dtype=torch.int64, device=self.device))


class AbstractWeighting(ABC):
    """A method of sampling a posterior with weights that make the samples exact.

    Example:
        >>> all(isinstance(way, sd.AbstractWeighting) for way in sd.POSTERIOR_METHODS.values())
        True
    """

    @abstractmethod
    def run(self, problem: PosteriorProblem) -> WeightedSamples:
        """n or more samples of one posterior, with their weights."""


@dataclass(frozen=True, eq=False)
class Particles(AbstractWeighting):
    """Weights of whole paths, by a twisted particle filter: exact for the discretised reverse
    process of the model, in any dimension, with one evaluation of the model per step.

    A step of a solver with noise is normal with a known mean, both under the model and under the
    conditioned model. So the weight of a path is a product of ratios of normal densities, times
    p(y | x) at its end. An approximation psi of p(y | x_t) anticipates these weights, and a cloud
    of particles is resampled where few of them carry most of the weight. The error that remains is
    that of the discretisation in time.

    Arguments:
        particles: the number K of particles in one cloud. n samples take n / K clouds, rounded up,
            and cloud i depends on (seed, i) alone.
        steps: the number of steps of the reverse process; that of the method unless given.
        threshold: a cloud is resampled where its effective sample size is below this share of K; 0
            for never, which is importance sampling of whole paths: each then counts as a cloud.
        method: the solver, its noise (a number eta > 0) and its grid; a method of weak order two
            unless given.

    Raises:
        ValueError: for numbers out of range, or a method without noise.
        TypeError: for a threshold that is not a number; while sampling, for a solver with several
            evaluations per step, see `sdekit.Transitions`.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2]), 0.1)
        >>> method = sd.Particles(particles=64, steps=20)
        >>> samples = sd.sample_posterior(law, y, 256, sde="vp", method=method, seed=0)
        >>> samples.clouds, bool((samples.mean() - law.given(y).mean()).norm() < 0.3)
        (4, True)

    References:
        Wu et al. 2023, "Practical and asymptotically exact conditional sampling in diffusion
        models", arXiv 2306.17775; here with solvers of higher order, independent clouds, and
        p(y | x) itself in the last weight.
    """

    particles: int = 128
    steps: int | None = None
    threshold: float = 0.5
    method: OnClock = field(default=OnClock(AdamsMoulton(2), eta=1.0))

    def __post_init__(self) -> None:
        require_numbers(self, "threshold")
        valid = is_whole(self.particles, 2) and (self.steps is None or is_whole(self.steps, 1))
        if not (valid and 0 <= self.threshold <= 1):
            raise ValueError(
                "Particles needs whole numbers particles >= 2 and steps >= 1, and threshold from 0 "
                f"to 1, not {self.particles}, {self.steps} and {self.threshold}"
            )
        numbers = isinstance(self.method, OnClock) and not callable(self.method.eta)
        if not numbers or not self.method.eta:
            raise ValueError(
                "Particles needs steps with noise: give a method OnClock(eta=1.0), with a number "
                f"eta > 0, not {self.method!r:.60}"
            )
        if self.method.denoises:
            raise ValueError(
                "particles end at a noise level above 0, where they have a density: leave the 0 "
                "out of the grid"
            )

    @property
    def number_of_steps(self) -> int:
        """The number of steps of the reverse process."""
        count = None if self.method.grid is None else self.method.grid.count
        return self.steps or count or self.method.steps

    @property
    def takes_few_steps(self) -> bool:
        """Whether the steps are too few for a rule with several values: p(y) of the discretised
        process is then far from that of the model.
        """
        rule = self.method.rule
        several = isinstance(rule, AbstractMultistep) and rule.k > 1
        return several and self.number_of_steps < FEW_STEPS

    def run(self, problem: PosteriorProblem) -> WeightedSamples:
        count = -(-problem.n // self.particles)
        steps = self.number_of_steps
        method = replace(self.method, steps=steps)
        solve = CloudSolve(
            problem.of(self.particles), problem.coordinates, problem.span, method, self.threshold,
            problem.dtype, problem.device,
        )  # fmt: skip
        parts = []
        with torch.no_grad():
            for i in range(problem.number * count, (problem.number + 1) * count):
                parts.append(solve.cloud(self.particles, problem.seed, i))
                problem.report(self.particles)
        x, log_weights, ancestors = (torch.cat(part) for part in zip(*parts, strict=True))
        count = count if self.threshold else len(x)
        evaluations = torch.full((len(x),), steps + 1, dtype=torch.int64)
        return WeightedSamples(
            x, log_weights, count, evaluations, seed=problem.seed, ancestors=ancestors
        )


@dataclass(frozen=True, eq=False)
class FlowWeights(AbstractWeighting):
    """Weights by likelihoods, w = p(x) p(y | x) / q(x), from the densities of probability flows.

    The samples are drawn by the flow of the conditioned model; q is its density, and p that of the
    flow of the model. Both densities are exact up to the tolerances and the noise of the probes.
    That noise, of variance v in log w, would increase the mean of w by the factor e^{v/2}, and is
    corrected for. Each sample costs several hundred evaluations with their derivatives: for few
    dimensions, and for an accurate log p(y).

    Arguments:
        method: tolerances and solver; unless given, tolerances of 0.003 times the noise of y, at
            most 1e-4.
        trace: as in `log_likelihood`; the seed of the samples is added to that of the probes.
        batch_size: how many samples are solved together; all unless given.

    Raises:
        ValueError: while sampling, where v is above 0.3 nats^2 on average: the correction e^{v/2}
            would then depend on the distribution of the noise, which need not be normal.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2]), 0.1)
        >>> samples = sd.sample_posterior(law, y, 50, sde="vp", method="flow", seed=0)
        >>> bool((samples.log_evidence - law.log_evidence(y)).abs() < 0.3)
        True
    """

    method: AdaptiveFlow | None = None
    trace: AbstractTrace | None = None
    batch_size: int | None = None

    def run(self, problem: PosteriorProblem) -> WeightedSamples:
        posterior = problem.of(problem.n)
        coordinates = problem.coordinates
        low, high = problem.span
        method = self.method or _method_for(problem.noise)
        index = problem.number * problem.n + torch.arange(problem.n, device=problem.device)
        z = normal(
            problem.seed, index, coordinates.event, counter=INITIAL_STATE, dtype=problem.dtype
        )
        with torch.no_grad():
            u = z + centre(coordinates.standardised(posterior), low, z)
        start = coordinates.leave((high, low), u)
        to_data = FlowMap(posterior, coordinates, (low, high), method, self.batch_size)
        trace = self.trace or default_trace(math.prod(start.shape[1:]))
        if isinstance(trace, Hutchinson):
            trace = replace(trace, seed=trace.seed + problem.seed)
        settings = {"trace": trace, "first": problem.number * problem.n}
        proposal = to_data.log_likelihood(start, lambda x: x.new_zeros(len(x)), **settings)
        _require_finished(proposal.status)
        with torch.no_grad():
            log_start = to_data.log_prior(posterior, start)(start)
        x = proposal.latent
        to_noise = FlowMap(posterior.model, coordinates, (high, low), method, self.batch_size)
        # Other probes, so that the noise of both is independent.
        settings["first"] += _OTHER_PROBES
        prior = to_noise.log_likelihood(x, None, **settings)
        problem.report(problem.n)
        _require_finished(prior.status)
        with torch.no_grad():
            log_likelihood = posterior.observation.log_prob(x).to(torch.float64)
        log_q = log_start - proposal.value
        variance = proposal.stderr.square() + prior.stderr.square()
        _require_small(variance)
        log_weights = prior.value + log_likelihood - log_q - 0.5 * variance
        return WeightedSamples(
            x, log_weights, len(x), proposal.evaluations + prior.evaluations,
            float(variance.mean()), problem.seed,
        )  # fmt: skip


def _method_for(noise: float) -> AdaptiveFlow:
    """The flow at tolerances for which errors of log p(y | x) are small."""
    tolerance = min(_LARGEST_TOLERANCE, _TOLERANCE * noise)
    return AdaptiveFlow(rtol=tolerance, atol=tolerance)


def _require_finished(status: Tensor) -> None:
    """Refuses samples whose flows did not reach their end.

    Raises:
        ValueError: with their number.
    """
    unfinished = status != Status.DONE
    if bool(unfinished.any()):
        raise ValueError(
            f"the flows of {int(unfinished.sum())} of {len(unfinished)} samples did not reach "
            "their end, so that their weights are not known: give AdaptiveFlow more max_steps or "
            "larger tolerances, or take method='particles'"
        )


def _require_small(variance: Tensor) -> None:
    """Refuses log-weights with too large a variance due to the probes.

    Raises:
        ValueError: says what to change.
    """
    average = float(variance.mean()) if len(variance) else 0.0
    if not average <= _MAX_PROBE_VARIANCE:
        vary = f"by {average:.3g} nats^2"
        vary = "by an amount that one probe does not show" if math.isnan(average) else vary
        raise ValueError(
            f"the probes make log-weights vary {vary}, and only up to "
            f"{_MAX_PROBE_VARIANCE} can be corrected for: take more probes, "
            "FlowWeights(trace=Hutchinson(probes=64)), exact traces, or method='particles'"
        )


POSTERIOR_METHODS: dict[str, AbstractWeighting] = {
    "particles": Particles(),
    "path": Particles(particles=1024, threshold=0.0),
    "flow": FlowWeights(),
}
"""The weightings of `sample_posterior`, by name."""
