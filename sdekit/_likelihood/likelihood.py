"""Log-likelihoods under the flow of an ordinary equation, with the error that random probes leave.

The trajectory does not need the trace: it is solved first, each sample with its own steps; then the
divergence is evaluated in bulk, at Gauss's nodes of every accepted step's dense output, and summed
in float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._likelihood.divergence import AbstractTrace, Exact, by_row, quadratic_forms, skewness
from sdekit._solve.control import PIDController
from sdekit._solve.integrate import solve
from sdekit._solve.solution import Counted, Status, UnfinishedError, finite, require_state
from sdekit._solve.working import Move
from sdekit._solvers import AbstractSolver, Dopri5
from sdekit._solvers.contract import Tree

# Points of trajectories whose traces are evaluated together, where events are small.
_ROWS = 1 << 12
_NUMBERS = 1 << 15  # numbers of such points, or as many points as there are samples


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-densities and their errors, per sample, `(batch,)`.

    Attributes:
        value: log p(x) in nats, float64; NaN for a sample that did not reach the end.
        stderr: the standard error due to the probes: 0 for exact traces, NaN for one probe.
        latent: the point to which the flow maps x, `(batch, *event)`.
        evaluations: of the drift, for the trajectory and the traces, int64.
        status: how the solve of each sample ended, see `Status`.
        probes: K, the number of independent estimates behind each standard error; 0 for exact
            traces.
        skewness: that of one estimate, computed from all K; 0 for fewer than four.

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
        of = (
            f"{self.probes} probes, standard errors of {self.stderr.nanmean():.3g}"
            if self.probes
            else "exact traces"
        )
        return f"Likelihood({n} samples, {done} done, mean {self.value.nanmean():.6g} nats, {of})"

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """A confidence interval for the value with exact traces.

        value - t stderr for the two t at which Hall's transformation of the studentised mean is -q
        and q, a quantile of Student's t of K - 1 degrees of freedom:

            t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 = -+ q,  a = skewness / sqrt(K).

        Without skewness it is value -+ q stderr. One estimate is a quadratic form v^T M v, so it is
        skewed where few eigenvalues of M dominate, as for data near a plane that is oblique to the
        axes: at worst it is chi-squared with one degree of freedom. Fresh probes, the default, are
        independent at each node, and their sum is nearly normal; fixed ones are as skewed as that.

        At a level of 95 % eight or more Gaussian or fresh probes cover 93.5 to 95.5 %, and 97 to 99
        % at 99 %. Fewer do not suffice to estimate the skewness: where it is largest six cover 92
        %, four 89 %, and two or three, by Student's t alone, 82 to 85 %. No interval is valid for
        fixed Rademacher probes where M couples a few coordinates equally: with signs v^T M v then
        has only a few values, and eight probes cover 76 to 99 %. Use fresh or Gaussian probes.

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
        low, high = (_untransformed(end, a) for end in (-q, q))
        return self.value - high * self.stderr, self.value - low * self.stderr


def _untransformed(q: float, a: Tensor) -> Tensor:
    """The t with t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 = q: ((1 + a t / 3)^3 - 1) / a + a / 6 on the
    left.
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
    trajectory, in either direction of time. The trajectory is solved first, with adaptive steps of
    each sample; the integral is taken on it by Gauss's rule, four nodes a step of order five, one
    evaluation of f and as many vector-Jacobian products as `trace` has vectors at each.

    Arguments:
        flow: the ordinary equation.
        x: the points, floating, `(batch, *event)`; the result of a sample does not depend on the
            rest of the batch.
        ts: the first and the last time, in that order.
        log_prior: the log-density at the last time, `(batch, *event)` to `(batch,)`.
        trace: how the divergence is computed; `Exact()` unless given.
        index: the samples' indices, `(batch,)`, on which their probes depend; counted from 0 unless
            given.
        solver: an explicit Runge-Kutta method with an error estimate; `Dopri5()` unless given.
        control: the tolerances, `PIDController()` unless given, in the units of
            `AbstractSDE.physical`.
        differentiable: whether value and latent have gradients with respect to x and the tensors in
            f: those of the discretised integral. Autograd then records every step.

    Returns:
        a `Likelihood`. A sample that needed more than `PIDController.max_steps`, or whose tolerance
        could not be met, has NaN as its value, and its status.

    Raises:
        TypeError: when x is not a floating tensor with a batch dimension.
        UnfinishedError: when the drift of some samples is not finite: which ones, and where.
        ValueError: for an equation with noise, a tolerance that the dtype does not resolve, or
            fewer than two times.

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
    if flow.noise_type != "none":
        raise ValueError(
            f"this equation has {flow.noise_type} noise; likelihoods are those of an "
            "ODE or a ProbabilityFlow"
        )
    trace = trace or Exact()
    solver = solver or Dopri5()
    ends = [float(t) for t in (ts[0], ts[-1])]
    flow = flow.within(*ends)
    # In inference mode the divergence would be forgotten without a word.
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        x = x.clone() if isinstance(x, Tensor) and x.is_inference() else x
        require_state(x)
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                "x is not finite in rows "
                f"{(~finite(x)).nonzero().flatten().tolist()[:8]}; leave these out"
            )
        integral = _Integral(
            flow, solver, trace, torch.arange(len(x), device=x.device) if index is None else index
        )
        try:
            solution = solve(
                flow,
                x,
                ends,
                solver=solver,
                control=control or PIDController(),
                callback=integral.add,
            )
        except UnfinishedError as error:
            if bool((error.solution.status == Status.NOT_FINITE).any()):
                raise
            solution = error.solution
        estimates = integral.estimates()
        done = solution.status == Status.DONE
        rows = done.nonzero().flatten()
        value = estimates.new_full((len(x),), math.nan)
        if len(rows):
            prior = log_prior(solution.x[rows])
            if not isinstance(prior, Tensor) or prior.shape != rows.shape:
                given = (
                    f"shape {tuple(prior.shape)}"
                    if isinstance(prior, Tensor)
                    else type(prior).__name__
                )
                raise ValueError(
                    f"log_prior returned {given} for {len(rows)} samples; it must return one "
                    "number for each: sum over events"
                )
            known = prior.to(torch.float64) + by_row(estimates).mean(dim=1)[rows]
            value = value.index_copy(0, rows, known)
        stderr = torch.where(done, trace.stderr(estimates.detach()), math.nan)
    skew = skewness(estimates.detach()) if trace.probes else torch.zeros_like(stderr)
    evaluations = solution.evaluations + integral.evaluations
    return Likelihood(value, stderr, solution.x, evaluations, solution.status, trace.probes, skew)


def _require_kinds(flow: object, x: object, log_prior: object, trace: object) -> None:
    """Refuses what is no equation, tensor, density or trace, and says what makes one of it.

    Raises:
        TypeError: always.
    """
    if not isinstance(flow, AbstractSDE):
        raise TypeError(f"the flow must be an equation such as ODE(f), not {type(flow).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, not {type(x).__name__}; use torch.as_tensor")
    if not callable(log_prior):
        raise TypeError(
            "log_prior must be a function of the latents, such as a distribution's "
            f"log_prob; not {log_prior!r}"
        )
    if trace is not None and not isinstance(trace, AbstractTrace):
        raise TypeError(f"trace must be Exact() or Hutchinson(probes), an object; not {trace!r}")


class _Integral:
    """The integral of the divergence along trajectories, out of the moves of a solve: estimates of
    it, `(estimates, batch)`.

    A sample's terms are added one by one in the order of its own time, so that the batch cannot
    show.
    """

    def __init__(
        self, flow: AbstractSDE, solver: AbstractSolver, trace: AbstractTrace, index: Tensor
    ) -> None:
        self.flow = flow
        self.solver = solver
        self.trace = trace
        self.index = index
        # Gauss and Legendre's rule on [0, 1]. With three nodes for order five its error would be
        # that of everything else.
        nodes, weights = np.polynomial.legendre.leggauss(int(solver.order["none"].strong + 3) // 2)
        self.nodes, self.weights = (
            torch.from_numpy(part).to(index.device) for part in (0.5 + 0.5 * nodes, 0.5 * weights)
        )
        self.evaluations = torch.zeros_like(index)
        self._steps = torch.zeros_like(index)
        self._waiting: list[tuple[Move, Tensor]] = []
        self._sums = index.new_zeros(max(1, trace.probes), len(index), dtype=torch.float64)

    def add(self, move: Move) -> None:
        """Takes note of steps; the traces wait until there are enough of them."""
        self._waiting.append((move, self._steps[move.samples]))
        self._steps[move.samples] += 1
        if sum(len(m.samples) for m, _ in self._waiting) * len(self.nodes) >= self._most(move.x):
            self._evaluate()

    def estimates(self) -> Tensor:
        """The integral, when the solve has come to its end."""
        self._evaluate()
        return self._sums

    def _most(self, x: Tensor) -> int:
        return max(len(self.index), min(_ROWS, _NUMBERS // max(1, math.prod(x.shape[1:]))))

    def _evaluate(self) -> None:
        if not self._waiting:
            return
        moves, steps = zip(*self._waiting, strict=True)
        self._waiting = []
        index, t0, t1, dense = (
            _joined([getattr(m, name) for m in moves]) for name in ("samples", "t0", "t1", "dense")
        )
        flow = Counted.of(self.flow.rows(index), moves[0].x)
        dense = self.solver.dense(flow, t0, t1, dense)
        n = len(self.nodes)
        x = torch.stack(
            [self.solver.interpolate(dense, part.expand_as(t0)) for part in self.nodes], dim=1
        ).flatten(0, 1)
        t = torch.lerp(t0.unsqueeze(1), t1.unsqueeze(1), self.nodes).flatten()
        weight = torch.outer(t1 - t0, self.weights).flatten()
        rows = index.repeat_interleave(n)
        node = torch.cat(steps).unsqueeze(1) * n + torch.arange(n, device=index.device)
        node = node.flatten()
        most = self._most(x)
        parts = (slice(i, i + most) for i in range(0, len(rows), most))
        found = (
            torch.cat(
                [self._traces(t[part], x[part], rows[part], node[part]) for part in parts], dim=1
            )
            * weight
        )
        steps = sum(found.unflatten(1, (-1, n)).unbind(2))
        assert isinstance(steps, Tensor)
        for move, step in zip(
            moves, steps.split([len(move.samples) for move in moves], dim=1), strict=True
        ):
            # Each sample once: the order is that of time.
            self._sums = self._sums.index_add(1, move.samples, step)
        self.evaluations.index_add_(0, index, torch.full_like(index, flow.evaluations + n))

    def _traces(self, t: Tensor, x: Tensor, rows: Tensor, node: Tensor) -> Tensor:
        record = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if record and x.requires_grad else x.detach().requires_grad_()
            slope = self.flow.rows(rows).drift(t, x)
            vectors = self.trace.vectors(x.detach(), self.index[rows], node)
            return self.trace.estimates(quadratic_forms(slope, x, vectors, record=record))


def _joined(trees: Sequence[Tree]) -> Tree:
    """Every tensor of several trees as one."""
    if isinstance(trees[0], Tensor):
        return torch.cat(list(trees))
    return tuple(_joined(parts) for parts in zip(*trees, strict=True))
