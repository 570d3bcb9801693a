"""Models of x given an observation y, made from models of x."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from sdekit import did_you_mean
from sdekit.elementary import Time, broadcast, sqrt, sum_of_sample
from sdekit_diffusion._arguments.inputs import is_whole, require_numbers
from sdekit_diffusion._diffusions.vp import VPSDE
from sdekit_diffusion._models.covariances import (
    COVARIANCES,
    AbstractCovariance,
    Conditioned,
    differentiable_data,
    posterior_variance,
)
from sdekit_diffusion._models.data_scale import data_scale
from sdekit_diffusion._models.derived import AbstractDerivedModel
from sdekit_diffusion._models.linear_observation import LinearObservation
from sdekit_diffusion._models.model import noise_scale, signal_scale, solved_like
from sdekit_diffusion._models.observation import AbstractObservation

_PSI_STEPS = 4  # Newton steps for the psi of DPS


@dataclass(frozen=True, eq=False)
class AbstractPosterior(AbstractDerivedModel):
    """An approximate model of x given an observation y; a subclass defines `condition`.

    It is a model with the denoiser D_c, an approximation of E[x_0 | x_t, y]: it can be sampled by
    every method, has latents and a likelihood. Solves start around D_c at the noisy end, because
    the law given y has another mean than the data. `sample_posterior` weights its samples so that
    they follow the exact law for any D_c and psi, an approximation of p(y | x_t); a better choice
    gives more effective samples. psi may have any constant factor.

    `condition` receives l, a number or `(batch,)`, and u = a x_0 + b eps, where a and b are
    `signal_scale(l)` and `noise_scale(l)`; `broadcast` of `sdekit.elementary` gives them a shape
    that multiplies u.

    Arguments:
        model: the model of x.
        observation: the observation y, and p(y | x).

    Raises:
        TypeError: for anything but an observation.
        ValueError: for an observation that does not fit the model, or a model without a shape.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Unmoved(sd.AbstractPosterior):  # the prior as a proposal
        ...     def condition(self, l, u):
        ...         data = self.model.predict_data(l, u)
        ...         return sd.Conditioned(data, data, self.observation.log_prob(data).double())
        >>> law = sd.GaussianMixture([1.0], [[0.0]], [1.0])
        >>> y = sd.LinearObservation(torch.tensor([[1.0]]), torch.tensor([1.0]), 1.0)
        >>> sd.sample(Unmoved(law, y), 4, sde="vp", steps=5, seed=0).shape
        torch.Size([4, 1])
    """

    starts_at_mean = True

    observation: AbstractObservation

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.observation, AbstractObservation):
            raise TypeError(
                "observation must be a LinearObservation(operator, y, covariance) or an "
                f"Observation(y, log_likelihood), not {self.observation!r:.60}"
            )
        if self.model.shape is None:
            raise ValueError("the model does not know the shape of its samples; give it shape=")
        bound = self.observation.bound(tuple(self.model.shape), solved_like(self.model))
        object.__setattr__(self, "observation", bound)

    @abstractmethod
    def condition(self, l: Time, u: Tensor) -> Conditioned:
        """D, D_c and log psi at l and u, as in `predict_data`, from one evaluation of the model."""

    def conditioned(self, l: Time, u: Tensor) -> Conditioned:
        """The result of `condition`, after a check.

        Raises:
            TypeError: when it is not a `Conditioned` for the states u.
        """
        result = self.condition(l, u)
        shapes = (u.shape, u.shape, (len(u),))
        if not isinstance(result, Conditioned) or tuple(part.shape for part in result) != shapes:
            raise TypeError(
                f"condition of {type(self).__name__} must return Conditioned(data, conditioned, "
                f"log_psi) with the shapes {tuple(u.shape)}, {tuple(u.shape)} and ({len(u)},)"
            )
        return result

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        return self.conditioned(l, u).conditioned

    def rows(self, index: Tensor) -> Self:
        selected = replace(super().rows(index), observation=self.observation.rows(index))
        vars(self).pop("_estimate", None)  # the weights may have changed since the last solve
        vars(selected)["_std"] = self.std
        return selected

    def entries(self) -> dict[str, Tensor]:
        entries = super().entries()
        for name, value in self.observation.entries().items():
            entries[f"observation.{name}" if name in entries else name] = value
        return entries

    @property
    def std(self) -> float:
        """The standard deviation of the data of the model; where it is estimated, the estimate is
        kept until the model has one.
        """
        known = vars(self).get("_std")
        if known is not None:
            return known
        if self.model.data_std is not None:
            return self.model.data_std
        if "_estimate" not in vars(self):
            vars(self)["_estimate"] = data_scale(self.model, self.shape).std
        return vars(self)["_estimate"]


@dataclass(frozen=True, eq=False)
class MomentMatched(AbstractPosterior):
    """x given y = A x + N(0, R), where the law of x_0 given x_t is taken as N(D, V):

        D_c = D + V A^T (R + A V A^T)^{-1} (y - A D),  psi = N(y; A D, R + A V A^T).

    This is exact where that law is N(D, V).

    Arguments:
        model: the model of x.
        observation: a `LinearObservation`.
        covariance: V, a name in `COVARIANCES`, "isotropic", "diagonal" or "jacobian", or an
            `AbstractCovariance` such as `DataCovariance(c)`.

    Raises:
        TypeError: for an observation that is not linear.
        ValueError: for an unknown name, or an observation that does not fit the model.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
        >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), 0.1)
        >>> x = sd.sample(sd.MomentMatched(law, y, "jacobian"), 100, sde="vp", steps=20)
        >>> bool((x[:, 0] > 0).double().mean() > 0.9)
        True

    References:
        Finzi et al. 2023, arXiv 2306.07526; Rozet et al. 2024, arXiv 2405.13712.
    """

    covariance: AbstractCovariance | str = "isotropic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.observation, LinearObservation):
            raise TypeError(
                "moment matching is for linear observations, not "
                f"{type(self.observation).__name__}; take Laplace(model, observation)"
            )
        if not isinstance(self.covariance, AbstractCovariance) and (
            self.covariance not in COVARIANCES
        ):
            raise ValueError(
                f"covariance must be one of {', '.join(map(repr, COVARIANCES))}, or an object such "
                f"as DataCovariance(c); not {self.covariance!r:.60}"
                f"{did_you_mean(str(self.covariance), COVARIANCES)}"
            )

    @property
    def matrix(self) -> AbstractCovariance:
        """V."""
        chosen = self.covariance
        return COVARIANCES[chosen] if isinstance(chosen, str) else chosen

    def condition(self, l: Time, u: Tensor) -> Conditioned:
        assert isinstance(self.observation, LinearObservation)
        return self.matrix.condition(self.model, self.observation, self.std, l, u)


@dataclass(frozen=True, eq=False)
class Laplace(AbstractPosterior):
    """x given any observation, by Laplace's approximation of the law of x_0 given x_t and y, where
    that of x_0 given x_t is taken as N(D, r^2 I): D_c is the x_0 with the largest

        log p(y | x_0) - |x_0 - D|^2 / (2 r^2),  r^2 = sigma^2 s^2 / (sigma^2 + alpha^2 s^2),

    with the standard deviation s of the data, and psi is the integral of p(y | x_0) N(x_0; D,
    r^2 I) with the curvature at D_c.

    The maximum is found by damped Newton steps, which are accepted only if the objective increases.
    The matrix of second derivatives is replaced by the diagonal matrix of its row sums, which is
    exact where each measurement depends on one coordinate; for y = A x + noise with such an A this
    is `MomentMatched`. The network is not differentiated.

    Arguments:
        model: the model of x.
        observation: any observation.
        steps: the number of Newton steps, each with a first and a second derivative of
            log p(y | x_0).

    Raises:
        TypeError: for anything but an observation.
        ValueError: for steps that are not a whole number from 1 on, or an observation that does not
            fit the model.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> squares = sd.Observation(torch.tensor([1.0]), lambda x, y: -((x**2 - y) ** 2).sum(1))
        >>> sd.sample(sd.Laplace(law, squares), 4, sde="vp", steps=5).shape
        torch.Size([4, 1])

    References:
        MacKay 2003, "Information theory, inference, and learning algorithms", chapter 27.
    """

    steps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_whole(self.steps, 1):
            raise ValueError(
                f"Laplace needs at least one Newton step, a whole number; not {self.steps!r:.60}"
            )

    def condition(self, l: Time, u: Tensor) -> Conditioned:
        data = self.model.predict_data(l, u)
        variance = posterior_variance(l, self.std**2)
        return Conditioned(data, *laplace(self.observation, data, variance, self.steps))


def laplace(
    observation: AbstractObservation, data: Tensor, variance: Time, steps: int
) -> tuple[Tensor, Tensor]:
    """The x with the largest log p(y | x) - |x - D|^2 / (2 r^2), r^2 the variance, and log psi, the
    logarithm of the integral of p(y | x) N(x; D, r^2 I) in Laplace's approximation.
    """
    variance = broadcast(variance, data)
    x = data
    with torch.inference_mode(False), torch.enable_grad():
        gradient, curvature, best = _derivatives(observation, x)
        damping = torch.ones_like(best)
        for _ in range(steps):
            move = (variance * gradient - (x - data)) / (1 + variance * curvature)
            tried = x + move / broadcast(damping, x)
            slope, bend, value = _derivatives(observation, tried)
            value = value - 0.5 * sum_of_sample((tried - data).square() / variance)
            better = value > best
            best = torch.where(better, value, best)
            damping = torch.where(better, (0.5 * damping).clamp_min(1.0), 4 * damping)
            kept = better.reshape(-1, *[1] * (x.ndim - 1))
            x = torch.where(kept, tried, x)
            gradient = torch.where(kept, slope, gradient)
            curvature = torch.where(kept, bend, curvature)
    return x, best - 0.5 * sum_of_sample(torch.log1p(variance * curvature))


def _derivatives(observation: AbstractObservation, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of log p(y | x), minus the row sums of its second derivatives, clipped to be at
    least 0, and its value.
    """

    def gradient_of(point: Tensor) -> tuple[Tensor, Tensor]:
        return _gradient(observation.log_prob, point)

    gradient_and_vjp: Any = torch.func.vjp(gradient_of, x, has_aux=True)
    gradient, vjp, values = gradient_and_vjp
    sums = vjp(torch.ones_like(x))[0]
    return gradient, (-sums).clamp_min(0.0), values


@dataclass(frozen=True, eq=False)
class DPS(AbstractPosterior):
    """x given any observation, where p(y | x_t) is replaced by p(y | x_0) at x_0 = D (diffusion
    posterior sampling):

        D_c = D + zeta (sigma^2 / alpha) grad_x log p(y | D(x, t)).

    It is never exact, and its flow is stiff where the noise of y is small. As a proposal it is
    often less accurate than `Laplace`; psi is that of `Laplace`, since p(y | D) is too narrow.

    Arguments:
        model: the model of x.
        observation: any observation.
        zeta: the factor of the gradient.
        jacobian: False replaces (sigma^2 / alpha) dD/dx by
            r^2 = sigma^2 s^2 / (sigma^2 + alpha^2 s^2), with the standard deviation s of the data.
            Then the network is not differentiated.
        published: True for the step of the paper, with the factor zeta / |y - A D| instead of
            zeta / (noise variance), scaled so that it changes each of the 1,000 steps of DDPM as
            published; for linear observations.

    Raises:
        TypeError: for anything but an observation, or a zeta that is not a number.
        ValueError: for `published` with an observation that is not linear, or with jacobian=False,
            a zeta that is not finite, or an observation that does not fit the model; while sampling
            with jacobian=True, for a model that autograd does not see.

    Example:
        >>> law = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> squares = sd.Observation(torch.tensor([1.0]), lambda x, y: -((x**2 - y) ** 2).sum(1))
        >>> sd.sample(sd.DPS(law, squares), 4, sde="vp", steps=5).shape
        torch.Size([4, 1])

    References:
        Chung et al. 2023, arXiv 2209.14687, algorithm 1.
    """

    zeta: float = 1.0
    jacobian: bool = True
    published: bool = False

    def __post_init__(self) -> None:
        require_numbers(self, "zeta")
        super().__post_init__()
        if not math.isfinite(self.zeta):
            raise ValueError(f"zeta is a finite number, 1 unless given; not {self.zeta!r:.60}")
        linear = isinstance(self.observation, LinearObservation)
        if self.published and not (linear and self.jacobian):
            raise ValueError(
                "the published step is for y = A x + noise and uses the network's derivative: take "
                "a LinearObservation, or published=False"
            )

    def condition(self, l: Time, u: Tensor) -> Conditioned:
        a = signal_scale(l)
        b = noise_scale(l)
        variance = posterior_variance(l, self.std**2)
        if self.jacobian:
            gradient, data = self._through_model(l, u)
            factor = b * b / a / _ddpm_step(l) if self.published else b * b / a
        else:
            data = self.model.predict_data(l, u)
            gradient, _ = _gradient(self.observation.log_prob, data)
            factor = variance
        move = broadcast(self.zeta * factor, u) * gradient
        _, log_psi = laplace(self.observation, data, variance, _PSI_STEPS)
        return Conditioned(data, data + move, log_psi)

    def _through_model(self, l: Time, u: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient in u of the objective at D, and D."""

        def objective(point: Tensor) -> tuple[Tensor, Tensor]:
            data = differentiable_data(self.model, l, point)
            return self._objective(data).sum(), data

        with torch.inference_mode(False), torch.enable_grad():
            gradient_and_data: Any = torch.func.grad(objective, has_aux=True)(u)
        return gradient_and_data

    def _objective(self, data: Tensor) -> Tensor:
        """The function whose gradient is taken: log p(y | D), or as published -|y - A D|."""
        if not self.published:
            return self.observation.log_prob(data)
        assert isinstance(self.observation, LinearObservation)
        return -torch.linalg.vector_norm(self.observation.residual(data), dim=1)


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a function of each sample, and its values in float64."""

    def total(point: Tensor) -> tuple[Tensor, Tensor]:
        values = function(point)
        return values.sum(), values

    with torch.inference_mode(False), torch.enable_grad():
        gradient, values = torch.func.grad(total, has_aux=True)(x)
    return gradient, values.to(torch.float64)


def _ddpm_step(l: Time) -> Time:
    """beta_i / sqrt(1 - beta_i) of the 1,000 steps of DDPM at a level. A step of DDPM multiplies a
    change of D by sqrt(alphabar_{i-1}) beta_i / (1 - alphabar_i).
    """
    sde = VPSDE()
    beta = sde.beta(sde.time(l)) / 1000
    return beta / sqrt(1 - beta)
