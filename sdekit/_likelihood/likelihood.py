"""Log-likelihoods under the flow of an ordinary equation, with the errors due to random probes.

The trajectory does not depend on the trace. It is solved first, each sample with its own steps;
then the divergence is integrated along it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._grid import fixed_times
from sdekit._likelihood.divergence import AbstractTrace, Exact, by_row, skewness
from sdekit._likelihood.integral import DivergenceIntegral
from sdekit._noise.white import integers
from sdekit._solve.arguments import require_kinds, require_pairing
from sdekit._solve.control import PIDController
from sdekit._solve.integrate import solve
from sdekit._solve.solution import Solution, Status, UnfinishedError, finite, require_state
from sdekit._solvers import AbstractSolver, Dopri5


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-densities and their errors, per sample, `(batch,)`.

    Attributes:
        value: log p(x) in nats, float64; NaN for a sample whose solve did not reach the end.
        stderr: the standard error due to the probes: 0 for exact traces, NaN for one probe.
        latent: the point to which the flow maps x, `(batch, *event)`.
        evaluations: the number of evaluations of the drift, for the trajectory and the traces,
            int64.
        status: how the solve of each sample ended, see `Status`.
        probes: K, the number of independent estimates of the trace; 0 for exact traces.
        skewness: the skewness of one of the K estimates, computed from all of them; 0 for K < 4.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> logp = sdekit.log_likelihood(
        ...     ode, torch.zeros(3, 2), [0.0, 1.0], lambda x: normal.log_prob(x).sum(1)
        ... )
        >>> logp.value.shape, logp.latent.shape, logp.status.tolist()
        (torch.Size([3]), torch.Size([3, 2]), [0, 0, 0])
    """

    value: Tensor
    stderr: Tensor
    latent: Tensor
    evaluations: Tensor
    status: Tensor
    probes: int
    skewness: Tensor

    def __repr__(self) -> str:
        n = len(self.value)
        done = int((self.status == Status.DONE).sum())
        source = (
            f"{self.probes} probes, standard errors of {self.stderr.nanmean():.3g}"
            if self.probes
            else "exact traces"
        )
        return (
            f"Likelihood({n} samples, {done} done, mean {self.value.nanmean():.6g} nats, {source})"
        )

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """A confidence interval for the value that exact traces would give: its lower and upper
        ends, `(batch,)`; NaN for one probe.

        The ends are value - t stderr with the two t at which Hall's transformation of the
        studentised mean is -q and q, where q is the quantile of Student's t distribution with K - 1
        degrees of freedom:

            t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 = -+ q,  a = skewness / sqrt(K).

        Without skewness this is value -+ q stderr. One estimate with a fixed probe is a quadratic
        form v^T M v, so it is skewed if few eigenvalues of M dominate, as for data near a plane
        that is oblique to the axes: at worst it has a chi-squared law with one degree of freedom.
        Fresh probes, the default, are independent at each node, so that the sum over nodes is
        nearly normal.

        With eight or more fresh or Gaussian probes an interval of the level 95 % covers 93.5 to
        95.5 %, and one of the level 99 % covers 97 to 99 %. Fewer do not suffice to estimate the
        skewness: where it is largest, intervals of the level 95 % cover 92 % with six, 89 % with
        four, and 82 to 85 % with two or three, which use Student's t alone. No interval is valid
        for fixed Rademacher probes if M couples a few coordinates equally: v^T M v then has only a
        few different values, and intervals from eight probes cover 76 to 99 %. Use fresh or
        Gaussian probes there.

        Raises:
            ValueError: for a level that is not between 0 and 1.

        References:
            Hall 1992, "On the removal of skewness by transformation", J. R. Statist. Soc. B 54.
        """
        if not 0 < level < 1:
            raise ValueError(
                f"the level is a probability between 0 and 1, such as 0.95; not {level}"
            )
        from scipy.special import stdtrit

        q = float(stdtrit(self.probes - 1, 0.5 + 0.5 * level)) if self.probes > 1 else 1.0
        a = self.skewness / math.sqrt(max(1, self.probes))
        low, high = (_inverse_hall(end, a) for end in (-q, q))
        return self.value - high * self.stderr, self.value - low * self.stderr


def _inverse_hall(q: float, a: Tensor) -> Tensor:
    """The t with t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 = q, where the left-hand side is
    ((1 + a t / 3)^3 - 1) / a + a / 6.
    """
    rest = q - a / 6
    cube = 1 + a * rest
    root = cube.sign() * cube.abs().pow(1 / 3)
    return 3 * rest / (root * root + root + 1)  # which is 3 (root - 1) / a


def log_likelihood(
    flow: AbstractSDE,
    x: Tensor,
    ts: Tensor | Sequence[float],
    log_prior: Callable[[Tensor], Tensor],
    *,
    trace: AbstractTrace | None = None,
    index: Tensor | None = None,
    solver: AbstractSolver | None = None,
    control: PIDController | None = None,
    differentiable: bool = False,
) -> Likelihood:
    """log p(x) where x(ts[0]) = x, dx = f(t, x) dt, and log_prior is the log-density of x(ts[-1]).

    log p(x(t_0)) = log p(x(t_1)) + integral from t_0 to t_1 of div f(t, x(t)) dt along the
    trajectory, in either direction of time. The trajectory is solved first, with adaptive steps for
    each sample. Then the divergence is integrated along it by Gauss-Legendre quadrature, with four
    nodes per step for a solver of order five. A node costs one evaluation of f and one
    vector-Jacobian product per vector of `trace`.

    Arguments:
        flow: the ordinary equation.
        x: the points, floating-point and finite, `(batch, *event)`; the result of a sample does not
            depend on the rest of the batch.
        ts: the times, strictly monotone; only the first and the last are used.
        log_prior: the log-density at the last time, `(batch, *event)` to `(batch,)`.
        trace: how the divergence is computed; `Exact()` unless given.
        index: the samples' indices, `(batch,)` int64, on which their probes depend; counted from 0
            unless given.
        solver: a method with an error estimate and an interpolant, an explicit Runge-Kutta method
            or `Rodas5P()`; `Dopri5()` unless given.
        control: the tolerances, in the units of `AbstractSDE.physical`; `PIDController()` unless
            given.
        differentiable: whether value and latent have gradients with respect to x and the tensors in
            f: those of the discretised integral. Autograd then records every step.

    Returns:
        a `Likelihood`. A sample that needed more than `PIDController.max_steps` steps, or whose
        tolerance could not be met, has the value NaN; its status says which.

    Raises:
        TypeError: when x is not a floating-point tensor with a batch dimension, or another argument
            is of the wrong kind.
        UnfinishedError: when the drift of some samples is not finite; it names these and the times.
        RuntimeError: for a drift that depends on x in a way that torch cannot differentiate.
        ValueError: for an equation with noise, an x that is not finite, a log_prior that does not
            return one real number per sample, an index of another length, a solver without an error
            estimate or an interpolant, a tolerance that the dtype does not resolve, times that are
            not finite or not monotone, or, with differentiable=True, a ts that requires a gradient.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> logp = sdekit.log_likelihood(
        ...     ode, torch.zeros(3, 2), [0.0, 1.0], lambda x: normal.log_prob(x).sum(1)
        ... )
        >>> [round(value, 3) for value in logp.value.tolist()]  # -log(2 pi) - 2
        [-3.838, -3.838, -3.838]

    References:
        Chen et al. 2018, arXiv 1806.07366; Grathwohl et al. 2019, arXiv 1810.01367.
    """
    _require_kinds(flow, x, log_prior, trace)
    trace = trace or Exact()
    solver = solver or Dopri5()
    require_kinds(flow, solver, None, control, None)
    require_pairing(flow, solver)
    with torch.set_grad_enabled(differentiable):
        grid = fixed_times(ts)
    ends = [grid[0], grid[-1]]
    flow = flow.within(*ends)
    # In inference mode the derivatives would silently be lost.
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        x = x.clone() if x.is_inference() else x
        _require_points(x)
        index = _indices(index, x)
        integral = DivergenceIntegral(flow, solver, trace, index)
        solution = _trajectory(flow, x, ends, solver, control or PIDController(), integral)
        estimates = integral.estimates()
        done = solution.status == Status.DONE
        rows = done.nonzero().flatten()
        value = estimates.new_full((len(x),), math.nan)
        if len(rows):
            prior = _prior(log_prior, solution.x[rows])
            value = value.index_copy(0, rows, prior + by_row(estimates).mean(dim=1)[rows])
        stderr = torch.where(done, trace.stderr(estimates.detach()), math.nan)
    skew = skewness(estimates.detach()) if trace.probes else torch.zeros_like(stderr)
    evaluations = solution.evaluations + integral.evaluations
    return Likelihood(value, stderr, solution.x, evaluations, solution.status, trace.probes, skew)


def _trajectory(
    flow: AbstractSDE,
    x: Tensor,
    ends: list[float],
    solver: AbstractSolver,
    control: PIDController,
    integral: DivergenceIntegral,
) -> Solution:
    """The solve from x, whose accepted steps are added to the integral; samples that need too many
    or too short steps are not an error.

    Raises:
        UnfinishedError: when the drift of some samples is not finite.
    """
    try:
        return solve(flow, x, ends, solver=solver, control=control, callback=integral.add)
    except UnfinishedError as error:
        if bool((error.solution.status == Status.NOT_FINITE).any()):
            raise
        return error.solution


def _indices(index: Tensor | None, x: Tensor) -> Tensor:
    """The samples' indices on x's device.

    Raises:
        TypeError: for values that are not integers.
        ValueError: unless there is one for each sample.
    """
    if index is None:
        return torch.arange(len(x), device=x.device)
    index = integers("index", index)
    if len(index) != len(x):
        raise ValueError(
            f"index has {len(index)} numbers and x {len(x)} samples: give one number for each"
        )
    return index.to(x.device)


def _prior(log_prior: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The log-density of latents, float64, `(batch,)`.

    Raises:
        ValueError: unless log_prior returns one real number per sample.
    """
    prior = log_prior(x)
    if not isinstance(prior, Tensor) or prior.shape != x.shape[:1] or prior.is_complex():
        returned = (
            f"{prior.dtype} of shape {tuple(prior.shape)}"
            if isinstance(prior, Tensor)
            else type(prior).__name__
        )
        raise ValueError(
            f"log_prior returned {returned} for {len(x)} samples; it must return one number for "
            "each, real: sum over events"
        )
    return prior.to(torch.float64)


def _require_points(x: Tensor) -> None:
    """Refuses values that are not a batch of finite points.

    Raises:
        TypeError: when x is not a floating tensor with a batch dimension.
        ValueError: when it is not finite.
    """
    require_state(x)
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"x is not finite in rows {(~finite(x)).nonzero().flatten().tolist()[:8]}; leave these "
            "out"
        )


def _require_kinds(flow: object, x: object, log_prior: object, trace: object) -> None:
    """Refuses arguments that are not an ordinary equation, a tensor, a density or a trace.

    Raises:
        TypeError: with what is expected.
        ValueError: for an equation with noise.
    """
    if not isinstance(flow, AbstractSDE):
        raise TypeError(f"the flow must be an equation such as ODE(f), not {type(flow).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, not {type(x).__name__}; use torch.as_tensor")
    if not callable(log_prior):
        raise TypeError(
            "log_prior must be a function of the latents, such as a distribution's log_prob; not "
            f"{log_prior!r}"
        )
    if trace is not None and not isinstance(trace, AbstractTrace):
        raise TypeError(f"trace must be Exact() or Hutchinson(probes), an object; not {trace!r}")
    if flow.noise_type != "none":
        raise ValueError(
            f"this equation has {flow.noise_type} noise; likelihoods are those of an ODE or a "
            "ProbabilityFlow"
        )
