"""How samples of a conditioned model get the weights that make them exact."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sdekit import AbstractTrace, AdamsMoulton, normal
from sdekit_diffusion._inference.flow_map import FlowMap
from sdekit_diffusion._inference.particles import CloudSolve
from sdekit_diffusion._inference.weighted import WeightedSamples
from sdekit_diffusion._models.conditioned import AbstractPosterior
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.initial_states import INITIAL_STATE
from sdekit_diffusion._sampling.on_clock import OnClock
from sdekit_diffusion._sampling.start import centre

_OTHER_PROBES = 1 << 40  # added to the numbers of samples
_MAX_PROBE_VARIANCE = 0.3  # nats^2, above which e^{v/2} depends on the law of the probes' noise
_LARGEST_TOLERANCE = 1e-4
# Of the noise of y, in units of the data; `benchmarks/posterior.py --calibrate` prints the errors.
_TOLERANCE = 3e-3


@dataclass(frozen=True, eq=False)
class PosteriorProblem:
    """The posterior of one observation, of which n samples are wanted.

    Arguments:
        posterior: the conditioned model; of what it has per sample there is one entry.
        coordinates, span: where it is solved.
        n: the number of samples.
        seed, number: of their random numbers; observations are numbered.
        noise: the smallest standard deviation of the noise of y, in units of the data; 1 where it
            is not known.
        dtype, device: of the states.
        report: called with the number of samples that are done.

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
        >>> method = Reporting(sd.Particles(particles=8, steps=10))
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
        """The conditioned model of as many samples."""
        return self.posterior.rows(torch.zeros(count, dtype=torch.int64, device=self.device))


class AbstractWeighting(ABC):
    """A way to weight the samples of a conditioned model, so that they are those of the exact law.

    Example:
        >>> all(isinstance(way, sd.AbstractWeighting) for way in sd.POSTERIOR_METHODS.values())
        True
    """

    @abstractmethod
    def run(self, problem: PosteriorProblem) -> WeightedSamples:
        """Samples of one posterior, with their weights."""


@dataclass(frozen=True, eq=False)
class Particles(AbstractWeighting):
    """Weights by the path: exact for the discretised reverse process of the model, in any
    dimension, at one evaluation of the model a step.

    Each step of a rule with noise is normal, with a known mean, under the model and given y. So the
    weight of a path is a product of ratios of normal densities, and of p(y | x) at its end. Clouds
    of particles are resampled on the way, where few of them carry most of the weight, which an
    approximation psi of p(y | x_t) foresees. What remains is the error of the steps.

    Arguments:
        particles: K, in one cloud; n samples are n / K clouds, rounded up, and cloud i depends on
            (seed, i) alone.
        steps: of the reverse process; those of the method unless given.
        threshold: resampling where fewer than this share of the particles are effective; 0 for
            never: importance sampling of whole paths, each a cloud of its own.
        method: the rule, its noise (eta > 0) and its grid; of weak order two unless given.

    Raises:
        ValueError: for numbers out of range, or a method without noise.
        TypeError: for a rule of several evaluations per step, see `sdekit.Transitions`.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2]), 0.1)
        >>> method = sd.Particles(particles=64, steps=50)
        >>> samples = sd.sample_posterior(law, y, 256, sde="vp", method=method, seed=0)
        >>> samples.clouds, bool((samples.mean() - law.given(y).mean()).norm() < 0.3)
        (4, True)

    References:
        Wu et al. 2023, "Practical and asymptotically exact conditional sampling in diffusion
        models", arXiv 2306.17775; here with rules of higher order, clouds, and the last weights.
    """

    particles: int = 128
    steps: int | None = None
    threshold: float = 0.5
    method: OnClock = field(default=OnClock(AdamsMoulton(2), eta=1.0))

    def __post_init__(self) -> None:
        valid = self.particles >= 2 and (self.steps is None or self.steps >= 1)
        if not (valid and 0 <= self.threshold <= 1):
            raise ValueError(
                "Particles needs particles >= 2, steps >= 1 and threshold from 0 to 1, not "
                f"{self.particles}, {self.steps} and {self.threshold}"
            )
        numbers = isinstance(self.method, OnClock) and not callable(self.method.eta)
        if not numbers or not self.method.eta:
            raise ValueError(
                "paths have weights where steps have noise: give a method OnClock(eta=1.0), with "
                f"a number eta > 0, not {self.method!r:.60}"
            )

    def run(self, problem: PosteriorProblem) -> WeightedSamples:
        count = -(-problem.n // self.particles)
        steps = self.steps or self.method.steps
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
    """Weights by the flow, w = p(x) p(y | x) / q(x), with the likelihood p of the model and that of
    the conditioned flow, q, of which the samples are. Both are exact but for tolerances and probes,
    whose noise is corrected for.

    Each sample costs several hundred evaluations, and derivatives: for few dimensions and accurate
    evidences.

    Arguments:
        method: tolerances and solver; unless given, tolerances that follow the noise of y.
        trace: as in `log_likelihood`.
        batch_size: how many samples are solved together; all unless given.

    Raises:
        ValueError: while sampling, where probes make the logarithms of the weights vary by more
            than 0.3 nats^2: then the correction e^{v/2} would depend on the law of their noise.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2]), 0.1)
        >>> samples = sd.sample_posterior(law, y, 100, sde="vp", method="flow", seed=0)
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
        down = FlowMap(posterior, coordinates, (low, high), method, self.batch_size)
        settings = {"trace": self.trace, "first": problem.number * problem.n}
        found = down.log_likelihood(start, lambda x: x.new_zeros(len(x)), **settings)
        with torch.no_grad():
            log_start = down.log_prior(posterior, start)(start)
        x = found.latent
        up = FlowMap(posterior.model, coordinates, (high, low), method, self.batch_size)
        # Other probes, so that the noise of both is independent.
        settings["first"] += _OTHER_PROBES
        prior = up.log_likelihood(x, None, **settings)
        problem.report(problem.n)
        with torch.no_grad():
            log_likelihood = posterior.observation.log_prob(x).to(torch.float64)
        log_q = log_start - found.value
        variance = found.stderr.square() + prior.stderr.square()
        _require_few(variance)
        log_weights = prior.value + log_likelihood - log_q - 0.5 * variance
        return WeightedSamples(
            x, log_weights, len(x), found.evaluations + prior.evaluations,
            float(variance.mean()), problem.seed,
        )  # fmt: skip


def _method_for(noise: float) -> AdaptiveFlow:
    """The flow at tolerances for which errors of log p(y | x) are small."""
    tolerance = min(_LARGEST_TOLERANCE, _TOLERANCE * noise)
    return AdaptiveFlow(rtol=tolerance, atol=tolerance)


def _require_few(variance: Tensor) -> None:
    """Refuses weights that vary too much with the probes.

    Raises:
        ValueError: says what to change.
    """
    largest = float(variance.mean()) if len(variance) else 0.0
    if not largest <= _MAX_PROBE_VARIANCE:
        raise ValueError(
            f"the probes make log-weights vary by {largest:.3g} nats^2, and only up to "
            f"{_MAX_PROBE_VARIANCE} can be corrected for: take more probes, "
            "FlowWeights(trace=Hutchinson(probes=64)), exact traces, or method='particles'"
        )


POSTERIOR_METHODS: dict[str, AbstractWeighting] = {
    "particles": Particles(),
    "path": Particles(particles=1024, threshold=0.0),
    "flow": FlowWeights(),
}
"""How `sample_posterior` weights samples, by name."""
