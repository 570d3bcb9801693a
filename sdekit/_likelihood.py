"""Log-likelihoods under the flow of an ordinary equation, with the error that random probes leave."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._divergence import AbstractTrace, Exact, vector_jacobian_products
from sdekit._sde import AbstractSDE
from sdekit._solution import require_state
from sdekit.interop import odeint


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-densities and what is known of their error.

    Attributes:
        value: log p(x) of every sample in nats, float64, `(batch,)`.
        stderr: the standard error that the probes leave, `(batch,)`: 0 for exact traces, not a number for one probe.
        latent: where the flow takes x, `(batch, *event)`.
        evaluations: how often the drift was evaluated on the batch.
    """

    value: Tensor
    stderr: Tensor
    latent: Tensor
    evaluations: int


def log_likelihood(
    flow: AbstractSDE,
    x: Tensor,
    ts: Tensor | Sequence[float],
    log_prior: Callable[[Tensor], Tensor],
    *,
    trace: AbstractTrace | None = None,
    index: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
) -> Likelihood:
    """log p(x) where x(ts[0]) = x, dx = f(t, x) dt, and x(ts[-1]) has the density of log_prior.

    log p(x(t_0)) = log p(x(t_1)) + integral from t_0 to t_1 of div f(t, x(t)) dt along the trajectory, in either direction
    of time. The integral runs in float64 whatever the dtype of the state.

    Arguments:
        flow: the ordinary equation.
        x: the points, floating, `(batch, *event)`.
        ts: the first and the last time, in that order.
        log_prior: the log-density at the last time, `(batch, *event)` to `(batch,)`.
        trace: how the divergence is found; `Exact()` unless given.
        index: the samples' indices, `(batch,)`, on which their probes depend; counted from 0 unless given.
        rtol, atol: the tolerances of the adaptive solver, on the state and on the log-density.
        method: an adaptive method of torchdiffeq.

    Raises:
        TypeError: when x is not a floating tensor with a batch dimension.
        NotFiniteError, ValueError: as `sdekit.interop.solve_ode`.

    References:
        Chen et al. 2018, arXiv 1806.07366; Grathwohl et al. 2019, arXiv 1810.01367.
    """
    require_state(x)
    trace = Exact() if trace is None else trace
    index = torch.arange(len(x), device=x.device) if index is None else index
    if not len(x):
        empty = x.new_zeros(0, dtype=torch.float64)
        return Likelihood(empty, empty, x, 0)
    with torch.inference_mode(False):  # in which the divergence would be forgotten without a word
        x = x.clone()
        vectors = trace.vectors(x, index)

        def augmented(t: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                point = state[0].detach().requires_grad_()
                slope = flow.drift(t, point)
                if slope.requires_grad:
                    products = vector_jacobian_products(slope, point, vectors)
                else:  # the drift does not depend on x
                    products = vectors.new_zeros(len(vectors), len(x))
            return slope.detach(), trace.estimates(products).to(torch.float64)

        estimates = trace.estimates(x.new_zeros(len(vectors), len(x), dtype=torch.float64))
        (latent, integrals), evaluations = odeint(augmented, (x, estimates), ts, rtol=rtol, atol=atol, method=method)
        value = log_prior(latent).to(torch.float64) + integrals.mean(dim=0)
        return Likelihood(value, trace.stderr(integrals), latent, evaluations)
