"""The flow map of a model: where the probability flow takes points, and how it changes volumes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm.auto import tqdm

import sdekit
from sdekit import AbstractTrace, Exact, Hutchinson, Likelihood, UnfinishedError
from sdekit_diffusion._arguments.inputs import is_whole, require_event, require_tensor
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.in_batches import batches
from sdekit_diffusion._models.model import AbstractModel, require_gradient
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.probability_flow import ProbabilityFlowOnClock
from sdekit_diffusion._sampling.start_warnings import centre

# Above this dimension eight probes cost less than a quarter of the exact trace.
MAX_EXACT_DIMENSION = 32


@dataclass(frozen=True, eq=False)
class FlowMap:
    """The map of a model's probability flow from one end of a span of l to the other.

    Attributes:
        model: the model.
        coordinates: those in which it is solved.
        span: l at the first end and at the last.
        method: the tolerances and the solver.
        batch_size: how many points are solved together; all unless given.
    """

    model: AbstractModel
    coordinates: Coordinates
    span: Span
    method: AdaptiveFlow
    batch_size: int | None

    def image(self, x: Tensor) -> Tensor:
        """Where the flow takes x, `(batch, *shape)`, without gradients.

        Raises:
            TypeError, ValueError, UnfinishedError: as `encode`.
        """
        x = self._points(x)
        parts = []
        with torch.no_grad(), evaluating(self.model, len(x)):
            for offset, rows, batch_model in batches(self.model, len(x), self.batch_size, x.device):
                u = self._enter(x[rows])
                try:
                    solution = self.method.solve_flow(
                        self.coordinates.standardised(batch_model), u, self.span
                    )
                except UnfinishedError as error:
                    raise self.coordinates.unfinished_flow(self.span, error, offset) from None
                parts.append(self.coordinates.leave(self.span, solution.x))
        return torch.cat(parts)

    def log_likelihood(
        self,
        x: Tensor,
        log_end: Callable[[Tensor], Tensor] | None,
        *,
        trace: AbstractTrace | None,
        first: int,
        differentiable: bool = False,
        progress: bool = False,
    ) -> Likelihood:
        """log_end, or the log-density of the prior, at the images of x, plus the logarithm of the
        change of volume.

        Raises:
            TypeError, ValueError, UnfinishedError: as `log_likelihood` of a model.
        """
        x = self._points(x)
        if self.method.accuracy is not None:
            raise ValueError(
                f"accuracy={self.method.accuracy} is that of x at the end; a likelihood takes rtol "
                "and atol"
            )
        equation = ProbabilityFlowOnClock(self.coordinates.standardised(self.model))
        dimension = math.prod(x.shape[1:])
        trace = trace or default_trace(dimension)
        likelihood = partial(
            sdekit.log_likelihood,
            ts=[equation.clock(l) for l in self.span],
            trace=trace,
            solver=self.method.solver,
            control=self.method.control,
            differentiable=differentiable,
        )
        parts = []
        bar = tqdm(total=len(x), unit="sample", desc="likelihood", disable=not progress)
        with torch.set_grad_enabled(differentiable), evaluating(self.model, len(x)), bar:
            require_differentiable(self.model, x)
            for offset, rows, model in batches(self.model, len(x), self.batch_size, x.device):
                u = self._enter(x[rows])
                end = self._log_density_at_end(log_end or self.log_prior(model, u), dimension)
                try:
                    parts.append(
                        likelihood(equation.rows(rows), u, log_prior=end, index=first + rows)
                    )
                except UnfinishedError as error:
                    relocated = equation.relocated(error)
                    raise self.coordinates.unfinished_flow(self.span, relocated, offset) from None
                bar.update(len(rows))
        return self._join(parts, trace.probes)

    def _points(self, x: object) -> Tensor:
        """x, checked; half precision is converted to float32."""
        require_tensor("x", x)
        assert isinstance(x, Tensor)
        if not isinstance(self.method, AdaptiveFlow):
            raise TypeError(f"method must be an AdaptiveFlow(rtol, atol), not {self.method!r}")
        require_event(x, self.model.shape)
        if self.batch_size is not None and not is_whole(self.batch_size, 1):
            raise ValueError(
                f"batch_size counts points from 1 on, in whole numbers; not {self.batch_size}"
            )
        return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x

    def _enter(self, x: Tensor) -> Tensor:
        """u of x at the first end; integers are passed on: the solve refuses them."""
        return self.coordinates.enter(self.span, x) if x.is_floating_point() else x

    def log_prior(self, model: AbstractModel, like: Tensor) -> Callable[[Tensor], Tensor]:
        """The log-density of x_T of some samples: that of the prior, shifted to the denoiser's mean
        where the model starts there.
        """
        log_prior = partial(self.coordinates.log_prior, self.span)
        shift = self.prior_shift(model, like)
        if shift is None:
            return log_prior
        return lambda x: log_prior(x - shift)

    def prior_shift(self, model: AbstractModel, like: Tensor) -> Tensor | None:
        """The shift of the prior of x_T, for samples `like` these; None for models whose prior is
        not shifted.
        """
        if not model.starts_at_mean:
            return None
        l = min(self.span)
        shift = centre(self.coordinates.standardised(model), l, like)
        return shift * float(self.coordinates.radius(self.coordinates.time(l)))

    def _log_density_at_end(
        self, log_end: Callable[[Tensor], Tensor], dimension: int
    ) -> Callable[[Tensor], Tensor]:
        """log_end as a function of u at the last end, plus the change of volume between x and u at
        both ends: the divergence that is integrated is that of the flow of u.
        """
        volume = dimension * self.coordinates.log_scaling(self.span)
        return lambda u: log_end(self.coordinates.leave(self.span, u)).to(torch.float64) + volume

    def _join(self, parts: list[Likelihood], probes: int) -> Likelihood:
        """The likelihoods of all batches, with latents in the scale of x."""
        value, stderr, latent, evaluations, status, skewness = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("value", "stderr", "latent", "evaluations", "status", "skewness")
        )
        latent = self.coordinates.leave(self.span, latent)
        return Likelihood(value, stderr, latent, evaluations, status, probes, skewness)


def default_trace(dimension: int) -> AbstractTrace:
    """Exact traces in few dimensions, and eight probes in many."""
    return Exact() if dimension <= MAX_EXACT_DIMENSION else Hutchinson(probes=8)


def require_differentiable(model: AbstractModel, x: Tensor) -> None:
    """Refuses a model whose output has no gradient with respect to x, and one that is made from
    such a model: a part of its divergence would be taken as 0.
    """
    if not (len(x) and x.is_floating_point()):
        return
    with torch.inference_mode(False), torch.enable_grad():
        point = x[:1].detach().clone().requires_grad_()
        for part in model.rows(torch.zeros(1, dtype=torch.int64)).made_from():
            if part.shape is not None and tuple(part.shape) != tuple(x.shape[1:]):
                continue
            out = (
                part(point, 0.5) if isinstance(part, ScoreModel) else part.predict_data(0.0, point)
            )
            require_gradient(
                out.requires_grad
                and torch.autograd.grad(out.sum(), point, allow_unused=True)[0] is not None
            )
