"""`sample_posterior`: samples of x given y, with the weights that make them exact."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sdekit import did_you_mean
from sdekit.calling import warn_caller
from sdekit_diffusion._arguments.inputs import available_device, require_whole, seed_given
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inference.weighted import WeightedSamples, doubts
from sdekit_diffusion._inference.weighting import (
    FEW_STEPS,
    POSTERIOR_METHODS,
    AbstractWeighting,
    Particles,
    PosteriorProblem,
)
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.conditioned import DPS, AbstractPosterior, Laplace, MomentMatched
from sdekit_diffusion._models.covariances import COVARIANCES, AbstractCovariance
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.joint import Joint
from sdekit_diffusion._models.linear_observation import LinearObservation
from sdekit_diffusion._models.model import solved_like
from sdekit_diffusion._models.observation import AbstractObservation
from sdekit_diffusion._sampling.arguments import Model, floating_dtype
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.grid import DEFAULT_END
from sdekit_diffusion._sampling.reverse_problems import cast
from sdekit_diffusion._sampling.start_warnings import warn_of_end, warn_of_prior
from sdekit_diffusion._sampling.trained_levels import warn_of_few_levels

Proposal = AbstractCovariance | Callable[..., AbstractPosterior] | str

_OTHERS: dict[str, Callable[..., AbstractPosterior]] = {"laplace": Laplace, "dps": DPS}
_END = 0.1  # the noise at which a solve ends, in units of the noise of y
_SMALLEST_END = 1e-6


def sample_posterior(
    model: Model,
    observation: AbstractObservation | None = None,
    n: int = 1024,
    *,
    sde: AbstractDiffusion | str | None = None,
    method: AbstractWeighting | str = "particles",
    proposal: Proposal | None = None,
    particles: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    first: int = 0,
    end: float | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> WeightedSamples:
    """Weighted samples of x given y, whose weights make them exact, and log p(y) with its error.

    An approximate model of x given y proposes the samples. Each has the weight w = p / q, the
    density of the exact law over that of the proposal. So the quality of the approximation changes
    the effective number of samples, but not the law to which they converge. With particles this law
    is that of the reverse process in the given number of steps; with "flow" it is that of the
    model's probability flow.

    With y per sample, `(n_y, *measured)`, there are n samples for each of the n_y observations.

    Arguments:
        model: the model of x, as in `sample`; or a conditioned model, such as `DPS(model, y)`, and
            no observation.
        observation: y and its likelihood p(y | x): a `LinearObservation`, an `Observation`, or a
            `Joint` of several.
        n: the number of samples for each observation; with particles it is rounded up to a multiple
            of their number in a cloud.
        sde: the diffusion to sample under, as in `sample`.
        method: "particles", clouds that are resampled on the way (`Particles`); "path", the same
            without resampling; "flow", weights by likelihoods (`FlowWeights`); or such an object.
        proposal: how the denoiser is conditioned: "isotropic", the default with particles,
            "jacobian", the default with "flow", "diagonal", or a covariance such as
            `DataCovariance(c)`, see `MomentMatched`; "laplace", the default for observations that
            are not linear, or "dps"; or a function of (model, observation) that returns a
            conditioned model.
        particles, steps: replace those of `Particles`: the number of particles in a cloud, and of
            steps.
        seed, first: cloud i depends on (seed, i) alone. Observation j has the C clouds from number
            C (first + j) on, where C is the number of clouds per observation; so a later call with
            first= continues with further observations.
        end: sigma / alpha at which the solve stops, in units of the standard deviation of the data,
            as in `sample`. Unless given, a tenth of the noise of y in these units, at most 1e-3 and
            at least 1e-6.
        shape: of one sample; the model's unless given.
        dtype, device: of the result; those of the model unless given. Half precision is solved in
            float32.
        progress: show a bar.

    Returns:
        `WeightedSamples`; with several observations each attribute has them as its first dimension.

    Raises:
        TypeError: for a method or a proposal that is neither a name nor such an object, or a seed
            that is not a whole number.
        ValueError: for unknown names, an observation that does not fit or has no noise, numbers out
            of range, a missing diffusion, particles that are not finite, or weights that are all 0.

    Warns:
        UserWarning: for particles with fewer than 16 steps of a rule of several values, whose log
            p(y) is not reliable. Where the effective sample size is below n / 16 (but at least 10
            and at most 100; below n / 4 for n below 40), log p(y) of the clouds has a standard
            deviation of more than 1 nat, or the samples of a single cloud effectively descend from
            fewer than 4 initial particles: then neither the samples nor log p(y) are reliable.
            Where the least noise of the diffusion is above a fifth of the standard deviation of the
            data, or its largest noise below twice the standard deviation, in any direction that the
            model knows. For a model that was trained at a few noise levels only.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2]), 0.1)
        >>> samples = sd.sample_posterior(law, y, 256, sde="vp", steps=40, seed=0)
        >>> error = samples.log_evidence - law.log_evidence(y)
        >>> bool(error.abs() < 4 * samples.log_evidence_stderr + 0.05)
        True
        >>> samples.resampled(5, seed=0).shape
        torch.Size([5, 2])

    References:
        Del Moral, Doucet and Jasra 2006, "Sequential Monte Carlo samplers"; Wu et al. 2023,
        arXiv 2306.17775; Cardoso et al. 2024, arXiv 2308.07983.
    """
    weighting = _weighting(method, particles, steps)
    require_whole("n", n, 1)
    require_whole("first", first, 0)
    _warn_of_few_steps(weighting)
    posterior, diffusion = _posterior(model, observation, sde, shape, proposal, weighting)
    count = _count(posterior)
    coordinates = Coordinates.of(posterior, diffusion, posterior.shape)
    noise = _relative_noise(posterior.observation, coordinates.std)
    end = max(_SMALLEST_END, min(DEFAULT_END, _END * noise)) if end is None else end
    own_dtype, own_device = posterior.place()
    dtype = floating_dtype(dtype or own_dtype)
    place = available_device(own_device if device is None else device)
    problem = PosteriorProblem(
        posterior, coordinates, coordinates.span(posterior, end), n, seed_given(seed), first, noise,
        torch.promote_types(dtype, torch.float32), place,
    )  # fmt: skip
    warn_of_prior(posterior, coordinates, problem.span[0], alternative="")
    warn_of_end(posterior, coordinates, problem.span[1], end)
    warn_of_few_levels(posterior)
    parts = []
    bar = tqdm(total=count * n, unit="sample", desc="posterior", disable=not progress)
    with evaluating(posterior, count), bar:
        for j in range(count):
            row = posterior.rows(torch.tensor([j], device=place)) if count > 1 else posterior
            one = replace(problem, posterior=row, number=first + j, report=bar.update)
            parts.append(weighting.run(one))
    samples = parts[0] if not posterior.observation.each else _joined(parts)
    _require_weights(samples)
    _warn_of_unreliable(samples)
    return replace(samples, x=cast(samples.x, dtype), first=first)


def _weighting(
    method: AbstractWeighting | str, particles: int | None, steps: int | None
) -> AbstractWeighting:
    """The weighting of a name, with its numbers of particles and steps replaced by those given."""
    if isinstance(method, str) and method not in POSTERIOR_METHODS:
        raise ValueError(
            f"unknown method {method!r}; choose one of {', '.join(POSTERIOR_METHODS)}, or pass an "
            f"object such as Particles(particles=256){did_you_mean(method, POSTERIOR_METHODS)}"
        )
    weighting = POSTERIOR_METHODS[method] if isinstance(method, str) else method
    if not isinstance(weighting, AbstractWeighting):
        raise TypeError(f"method is a name or an object such as Particles(), not {method!r:.60}")
    numbers = {"particles": particles, "steps": steps}
    given = [name for name, value in numbers.items() if value is not None]
    if not given:
        return weighting
    if not isinstance(weighting, Particles):
        raise ValueError(
            f"{' and '.join(given)} are those of method='particles'; {method!r:.40} chooses its "
            "own steps"
        )
    return replace(
        weighting,
        particles=weighting.particles if particles is None else particles,
        steps=weighting.steps if steps is None else steps,
    )


def _warn_of_few_steps(weighting: AbstractWeighting) -> None:
    if not (isinstance(weighting, Particles) and weighting.takes_few_steps):
        return
    rule = type(weighting.method.rule).__name__
    warn_caller(
        f"{weighting.number_of_steps} steps are few for {rule}: log p(y) may be wrong by more than "
        "its standard error, which does not contain the error of the steps; take "
        f"{FEW_STEPS} or more",
    )


def _posterior(
    model: Model,
    observation: AbstractObservation | None,
    sde: AbstractDiffusion | str | None,
    shape: tuple[int, ...] | None,
    proposal: Proposal | None,
    weighting: AbstractWeighting,
) -> tuple[AbstractPosterior, AbstractDiffusion]:
    """The conditioned model that proposes, and the diffusion."""
    resolved, diffusion = as_model(model, sde, shape)
    if isinstance(resolved, AbstractPosterior):
        if observation is not None or proposal is not None:
            raise ValueError(
                f"the model is given an observation already, a {type(resolved).__name__}: leave "
                "out observation and proposal, or pass the model of x"
            )
        return resolved, diffusion
    if observation is None:
        raise ValueError(
            "there is no observation: pass LinearObservation(operator, y, covariance), for example"
        )
    if resolved.shape is not None and isinstance(observation, AbstractObservation):
        observation = observation.bound(tuple(resolved.shape), solved_like(resolved))
    if proposal is None:
        default = "isotropic" if isinstance(weighting, Particles) else "jacobian"
        proposal = default if isinstance(observation, LinearObservation) else "laplace"
    if isinstance(proposal, str) and proposal in _OTHERS:
        return _OTHERS[proposal](resolved, observation), diffusion
    if isinstance(proposal, str | AbstractCovariance):
        if isinstance(proposal, str) and proposal not in COVARIANCES:
            raise ValueError(
                f"unknown proposal {proposal!r}; choose one of "
                f"{', '.join([*COVARIANCES, *_OTHERS])}"
                f"{did_you_mean(proposal, [*COVARIANCES, *_OTHERS])}"
            )
        return MomentMatched(resolved, observation, proposal), diffusion
    if not callable(proposal):
        raise TypeError(f"proposal is a name, a covariance or a function, not {proposal!r:.60}")
    made = proposal(resolved, observation)
    if not isinstance(made, AbstractPosterior):
        raise TypeError(
            f"proposal(model, observation) must return a conditioned model, an AbstractPosterior; "
            f"not {type(made).__name__}"
        )
    return made, diffusion


def _count(posterior: AbstractPosterior) -> int:
    """The number of observations, after checks of their noise and of the model's conditions.

    Raises:
        ValueError: for no observation, one without noise, or another number of conditions.
    """
    observation = posterior.observation
    if isinstance(observation, LinearObservation):
        observation.require_noise()
    count = len(observation.y) if observation.each else 1
    if not count:
        raise ValueError(
            f"there are no observations: y has shape {tuple(observation.y.shape)}; give one or more"
        )
    for name, value in posterior.entries().items():
        if len(value) != count:
            there = "there is 1 observation" if count == 1 else f"there are {count} observations"
            raise ValueError(
                f"{name} has {len(value)} entries, and {there}: give one entry per observation, "
                "also of y, (n_y, *measured)"
            )
    return count


def _relative_noise(observation: AbstractObservation, std: float) -> float:
    """The smallest standard deviation of the noise of y, in the units of x, divided by that of the
    data; 1 where this ratio is larger or not known.
    """
    if isinstance(observation, Joint):
        return min(_relative_noise(one, std) for one in observation.parts)
    if not isinstance(observation, LinearObservation):
        return 1.0
    largest = observation.largest_gain
    return min(1.0, 1 / (math.sqrt(largest) * std)) if largest > 0 else 1.0


def _joined(parts: list[WeightedSamples]) -> WeightedSamples:
    """The samples of several observations."""
    counts = [part.evaluations for part in parts if part.evaluations is not None]
    evaluations = torch.stack(counts) if len(counts) == len(parts) else None
    lines = [part.ancestors for part in parts if part.ancestors is not None]
    ancestors = torch.stack(lines) if len(lines) == len(parts) else None
    return replace(
        parts[0],
        x=torch.stack([part.x for part in parts]),
        log_weights=torch.stack([part.log_weights for part in parts]),
        ancestors=ancestors,
        evaluations=evaluations,
        probe_variance=sum(part.probe_variance for part in parts) / len(parts),
    )


def _require_weights(samples: WeightedSamples) -> None:
    """Refuses samples of an observation whose weights are all 0.

    Raises:
        ValueError: says what to check.
    """
    if not bool(samples.log_weights.isfinite().any(dim=-1).all()):
        raise ValueError(
            "all weights are 0: y is impossible for all particles, outside the range of a sensor "
            "or far from what the model was trained on; check y, its scale and the covariance of "
            "its noise, or take more particles"
        )


def _warn_of_unreliable(samples: WeightedSamples) -> None:
    """Warns of samples of which few are effective, whose clouds differ in log p(y), or that descend
    from few initial particles.
    """
    few, spread, related = doubts(samples)
    wrong = few | spread | related
    if bool(wrong.any()):
        which = f" of {int(wrong.sum())} of {wrong.numel()} observations" if wrong.ndim else ""
        reasons = []
        if bool(few.any()):
            reasons.append(f"as few as {float(samples.ess.min()):.3g} of them are effective")
        if bool(spread.any()):
            std = float(samples.log_evidence_by_cloud.std(dim=-1).max())
            reasons.append(f"log p(y) of the clouds has a standard deviation of {std:.2g}")
        if bool(related.any()):
            least = float(samples.families.min())
            reasons.append(f"they descend from effectively {least:.3g} initial particles")
        warn_caller(
            f"the samples{which} are not reliable: {' and '.join(reasons)}. Take more particles or "
            "steps, or a proposal that is nearer to the posterior, see docs/posteriors.md",
        )


def bayes_factor(a: WeightedSamples, b: WeightedSamples) -> tuple[Tensor, Tensor]:
    """The logarithm of the Bayes factor, log p(y | model a) - log p(y | model b) in nats, and its
    standard error, each `()`, or `(n_y,)` for several observations.

    a and b are samples under two models, or two operators, given the same y. Draw them with
    different seeds, or other clouds by `first`: their errors are taken as independent.

    Raises:
        TypeError: for anything but weighted samples.
        ValueError: for other numbers of observations.

    Warns:
        UserWarning: where both were drawn with the same seed, and share random numbers.

    Example:
        >>> y = sd.LinearObservation(torch.tensor([[1.0]]), torch.tensor([1.0]), 1.0)
        >>> near, far = (sd.GaussianMixture([1.0], [[m]], [1.0]) for m in (0.0, 3.0))
        >>> a = sd.sample_posterior(near, y, 256, sde="vp", steps=20, seed=0)
        >>> b = sd.sample_posterior(far, y, 256, sde="vp", steps=20, seed=1)
        >>> value, stderr = sd.bayes_factor(a, b)
        >>> bool((value - 0.75).abs() < 4 * stderr + 0.05)  # (2^2 - 1^2) / (2 * 2)
        True
    """
    for samples in (a, b):
        if not isinstance(samples, WeightedSamples):
            raise TypeError(
                "a Bayes factor is of two results of sample_posterior, WeightedSamples; not "
                f"{samples!r:.60}"
            )
    shared = max(a.indices.start, b.indices.start) < min(a.indices.stop, b.indices.stop)
    if a.seed is not None and a.seed == b.seed and shared:
        warn_caller(
            f"a and b were drawn with the same seed, {a.seed}, so their errors are not independent "
            "and the standard error of the Bayes factor is not known: draw one with another seed",
        )
    if a.rows != b.rows:
        raise ValueError(
            f"a and b have {a.rows} and {b.rows} as the numbers of observations; give samples of "
            "the same observations"
        )
    value = a.log_evidence - b.log_evidence
    return value, torch.hypot(a.log_evidence_stderr, b.log_evidence_stderr)
