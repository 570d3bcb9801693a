"""The Gaussian transitions of a discretised solve: their densities, and the weights of paths."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._grid import fixed_times, require_integer
from sdekit._noise.white import AbstractNoise, NoiseQuery, WhiteNoise
from sdekit._solve.arguments import require_kinds, require_pairing
from sdekit._solve.counted import Counted
from sdekit._solve.solution import NotFiniteError, finite, require_state
from sdekit._solvers import AbstractSolver
from sdekit.calling import checked_output, has_hidden_values
from sdekit.elementary import axpy, sum_of_sample


@dataclass(frozen=True, eq=False)
class Transitions:
    """The steps x_{i+1} = x_i + sum_j w_j f_j + g dW of a solver on a fixed grid, as normal laws.

    f_j are the drifts at the last points x_i, x_{i-1}, ..., so each step is normal given the points
    before it, with a known mean. For a predictor-corrector these are the *predicted* points: the
    correction of a step belongs to the mean of the next one.

    The noise is additive, diagonal, or general with a square g that can be inverted; the last two
    are for `EulerMaruyama`. The additive noise of `from_torchsde`, too, has a matrix g, which must
    be square.

    Arguments:
        problem: the equation; only its noise and, for a `Clocked` equation, its clock are used.
        ts: the grid.
        solver: a method with one evaluation per step, such as `AdamsBashforth(2)`.

    Raises:
        TypeError: for a solver with other steps, or times that are not numbers; in methods for a
            step whose number is not an integer, or a tensor in the place of the list of slopes.
        ValueError: for an equation without noise, with scalar noise, with noise that the solver
            does not support or in another calculus than its own; for times that are not strictly
            monotone; in methods for a step that the grid does not have, fewer slopes than it uses,
            or slopes of another shape than x; in `log_prob` and `log_ratio`, for a matrix g that is
            not square or has no inverse; in `log_prob`, for an end of another shape than x, or
            where g is 0 in a coordinate.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 0.5)
        >>> steps = sdekit.Transitions(sde, [0.0, 0.1], sdekit.EulerMaruyama())
        >>> x0, x1 = torch.ones(1, 1), torch.full((1, 1), 0.9)
        >>> round(float(steps.log_prob(0, x0, [-x0], x1).exp()), 4)  # 1 / sqrt(2 pi 0.025)
        2.5231
    """

    problem: AbstractSDE
    ts: Sequence[float]
    solver: AbstractSolver

    def __post_init__(self) -> None:
        noise = self.problem.noise_type
        if noise in ("none", "scalar") or noise not in self.solver.order:
            raise ValueError(
                f"a step of {type(self.solver).__name__} with noise of type {noise!r} has no "
                "density that is known here: take additive noise, or EulerMaruyama() for diagonal "
                "noise and general noise with a square g"
            )
        require_pairing(self.problem, self.solver)
        object.__setattr__(self, "ts", fixed_times(self.ts))
        object.__setattr__(self, "solver", self.solver.plan(self.problem, self.ts))
        for i in range(len(self)):
            self._weights(i)

    def __len__(self) -> int:
        return len(self.ts) - 1

    @property
    def memory(self) -> int:
        """The largest number of drifts that any step uses."""
        return max(len(self._weights(i)) for i in range(len(self)))

    def _weights(self, i: int) -> Sequence[float]:
        return self.solver.mean_weights(*_ends(self, i))

    def mean(self, i: int, x: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """The mean of step i from x.

        Arguments:
            i: the number of the step, from 0.
            x: the states at ts[i], `(batch, *event)`.
            slopes: the drifts at x and at the points before it, the newest first; those that the
                step does not need are ignored. They may have further dimensions before those of x,
                such as one for the drifts of several equations; the mean then has them too.
        """
        weights = self._weights(i)
        if isinstance(slopes, Tensor):
            raise TypeError(
                "slopes is a list of drifts, one for each point, the newest first; not a tensor: "
                "give [drift]"
            )
        if len(slopes) < len(weights):
            raise ValueError(
                f"step {i} of {type(self.solver).__name__} uses the drifts at {len(weights)} "
                f"points, and {len(slopes)} were given: give those at x and at the points before "
                "it, the newest first"
            )
        mean = x
        for weight, slope in zip(weights, slopes, strict=False):
            if slope.shape[slope.ndim - x.ndim :] != x.shape:
                raise ValueError(
                    f"a drift of slopes has the shape {tuple(slope.shape)}, and x "
                    f"{tuple(x.shape)}: give one drift for each state"
                )
            mean = axpy(weight, slope, mean)
        return mean

    def with_noise(self, i: int, x: Tensor, dw: Tensor) -> Tensor:
        """x plus the noise of step i with the increment dw."""
        return self.solver.with_noise(self.problem, *_ends(self, i), x, dw)

    def log_prob(self, i: int, x: Tensor, slopes: Sequence[Tensor], end: Tensor) -> Tensor:
        """The log-density at `end` of the law of x_{i+1} given x_i = x, `(batch,)` in float64;
        arguments as in `mean`, with drifts of one equation.
        """
        mean = self.mean(i, x, slopes)
        for name, value in (("end", end), ("the mean of the step", mean)):
            if value.shape != x.shape:
                raise ValueError(
                    f"{name} has the shape {tuple(value.shape)} and x {tuple(x.shape)}: give one "
                    "end, and drifts of one equation, for each state"
                )
        z, log_volume = _scale(self, i, x).normals(end - mean)
        constant = 0.5 * math.prod(x.shape[1:]) * math.log(2 * math.pi)
        return -0.5 * sum_of_sample(z.square()) - log_volume - constant

    def log_ratio(self, i: int, x: Tensor, move: Tensor, dw: Tensor) -> Tensor:
        """log p(x_{i+1}) - log q(x_{i+1}), `(batch,)` in float64, for two laws p and q of step i
        with the same noise, at the x_{i+1} that q reaches from x with the increment dw.

        Arguments:
            move: the mean of p minus that of q.
        """
        return _log_ratio(_scale(self, i, x), _width(self, i), move, dw)


def _ends(steps: Transitions, i: int) -> tuple[float, float]:
    """The times at which step i begins and ends.

    Raises:
        TypeError: for a number that is not an integer.
        ValueError: for a step that the grid does not have.
    """
    i = require_integer("the number of a step", i)
    if not 0 <= i < len(steps):
        raise ValueError(
            f"the grid has the steps 0 to {len(steps) - 1}, and none of the number {i}"
        )
    return steps.ts[i], steps.ts[i + 1]


def _width(steps: Transitions, i: int) -> float:
    t0, t1 = _ends(steps, i)
    return abs(t1 - t0)


def _scale(steps: Transitions, i: int, x: Tensor) -> "_Scale":
    """S^{1/2} of step i from x.

    Additive noise is elementwise unless g has more dimensions than x, as that of `from_torchsde`;
    the columns are then the noise of one Brownian motion each.
    """
    root = math.sqrt(_width(steps, i))
    noise = steps.problem.noise_type
    g = torch.as_tensor(steps.problem.diffusion(steps.ts[i], x), dtype=x.dtype, device=x.device)
    if noise != "additive":
        g = root * g
        return _Scale(g.expand_as(x), False) if noise == "diagonal" else _matrix(g, x)
    zero = torch.zeros_like(x)
    if g.ndim <= x.ndim:
        return _Scale(steps.with_noise(i, zero, torch.full_like(zero, root)), False)
    units = root * torch.eye(g.shape[-1], dtype=x.dtype, device=x.device)
    columns = [steps.with_noise(i, zero, unit.expand(len(x), -1)) for unit in units]
    return _matrix(torch.stack(columns, dim=-1), x)


def _log_ratio(scale: "_Scale", width: float, move: Tensor, dw: Tensor) -> Tensor:
    """`Transitions.log_ratio` of a step that is `width` long."""
    z = scale.ratio(move)
    return sum_of_sample(z * (dw / math.sqrt(width) - 0.5 * z))


class _Scale(NamedTuple):
    """S^{1/2}, where S is the covariance of a step: shaped like x, which multiplies elementwise, or
    a matrix, `(batch, d, m)`.
    """

    value: Tensor
    is_matrix: bool

    def normals(self, move: Tensor) -> tuple[Tensor, Tensor]:
        """The z, shaped like dw, with S^{1/2} z = move, `(batch, *event)`, and log |det S^{1/2}|.

        Raises:
            ValueError: for a matrix that cannot be inverted, or a coordinate without noise.
        """
        root = self.value
        if not self.is_matrix:
            zero = (root == 0).any()
            if not has_hidden_values(zero) and bool(zero):
                raise ValueError(
                    "g is 0 in a coordinate here, so a step has no density: give a g that is not 0 "
                    "at any x"
                )
            return move / root, sum_of_sample(root.to(torch.float64).abs().log())
        _require_square(root)
        z, singular = torch.linalg.solve_ex(root, move.reshape(len(move), -1))
        if not has_hidden_values(singular) and bool(singular.any()):
            raise ValueError(
                "g is a matrix without an inverse here, so a step has no density: give a g whose "
                "columns are linearly independent at every x"
            )
        return z, torch.linalg.slogdet(root.to(torch.float64)).logabsdet

    def ratio(self, move: Tensor) -> Tensor:
        """The z of `normals`, where those of coordinates with neither noise nor a move are 0.

        Raises:
            ValueError: for a matrix that cannot be inverted.
        """
        if self.is_matrix:
            return self.normals(move)[0]
        fixed = (self.value == 0) & (move == 0)
        return torch.where(fixed, 0.0, move / torch.where(fixed, 1.0, self.value))

    def differs(self, other: "_Scale") -> Tensor:
        """Whether another one is different anywhere, apart from rounding; a flag on the device."""
        a = self.value.detach()
        b = other.value.detach()
        if self.is_matrix and not other.is_matrix:
            b = torch.diag_embed(b.flatten(1))
        elif other.is_matrix and not self.is_matrix:
            a = torch.diag_embed(a.flatten(1))
        if a.shape != b.shape:
            return torch.ones((), dtype=torch.bool, device=a.device)
        size = b.abs()
        eps = torch.finfo(b.dtype).eps
        relative = min(500 * eps, 4e-3)  # the latter in half precision
        return ((a - b).abs() > relative * size + 8 * eps * size.nanmean()).any()


def _matrix(g: Tensor, x: Tensor) -> _Scale:
    """A g of shape `(batch, *event, m)`, or one that broadcasts to it, as a matrix."""
    return _Scale(g.reshape(len(x), -1, g.shape[-1]), True)


def _require_equal(differences: Sequence[Tensor]) -> None:
    """Refuses two equations whose noise is different in a step, with one synchronisation.

    Raises:
        ValueError: with the reason.
    """
    differ = torch.stack(list(differences)).any()
    if not has_hidden_values(differ) and bool(differ):
        raise ValueError(
            "the target and the proposal have different g: paths have a density only where g is "
            "the same"
        )


def _require_square(matrix: Tensor) -> None:
    """Refuses a g that cannot be inverted because of its shape.

    Raises:
        ValueError: with its shape.
    """
    if matrix.shape[1] != matrix.shape[2]:
        raise ValueError(
            f"a step with a g of {matrix.shape[1]} coordinates and {matrix.shape[2]} Brownian "
            "motions has no density that is known here: g must be square"
        )


class PathWeights(NamedTuple):
    """Paths of a proposal at their last time, and their weights under a target.

    Arguments:
        x: the states at the last time, `(batch, *event)`.
        log_weight: the logarithm of the ratio of the density of the path under the target to that
            under the proposal, `(batch,)` in float64; the mean of its exponential is 1.

    Example:
        >>> weights = sdekit.PathWeights(torch.ones(3, 1), torch.zeros(3))
        >>> weights.log_weight.exp().mean()
        tensor(1.)
    """

    x: Tensor
    log_weight: Tensor


def path_weights(
    target: AbstractSDE,
    proposal: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
) -> PathWeights:
    """Solves the proposal q, and computes importance weights of its paths for a target p with the
    same noise.

    With d = m_p - m_q the difference of the means of a step under both, S the covariance of the
    step and n its noise, each step adds

        d^T S^{-1} n - d^T S^{-1} d / 2

    to log w. This is exact for the discretised equations: for every function h, E[w h(path)] under
    the proposal is E[h(path)] under the target. In the limit of short steps it is Girsanov's
    theorem. -E[log w] is the Kullback-Leibler divergence KL(q || p), with gradients by autograd;
    `path_kl` estimates it with less variance. A coordinate in which g is 0 adds nothing where both
    drifts are exactly equal, as the same operations on the same numbers are, and -inf elsewhere. A
    matrix g with a row of zeros has no inverse, and is refused.

    Arguments:
        target, proposal: equations with the same g.
        x0: the initial states, floating-point, `(batch, *event)`.
        ts: the grid, in either direction.
        solver: a method with one evaluation per step, see `Transitions`.
        noise: as in `solve`.

    Raises:
        NotFiniteError: when a state of the proposal is not finite.
        TypeError, ValueError: as `Transitions`, also for a matrix g without an inverse, and for
            equations with different noise types or different g.

    Example:
        >>> q = sdekit.SDE(lambda t, x: 0 * x, lambda t, x: 1.0)
        >>> p = sdekit.SDE(lambda t, x: 0 * x + 0.5, lambda t, x: 1.0)
        >>> ts, solver = sdekit.uniform(0.0, 1.0, 10), sdekit.EulerMaruyama()
        >>> noise = sdekit.WhiteNoise(0)
        >>> x, log_w = sdekit.path_weights(p, q, torch.zeros(4, 1), ts, solver=solver, noise=noise)
        >>> torch.allclose(log_w, 0.5 * x[:, 0].double() - 0.125)  # of N(1/2, 1) over N(0, 1)
        True

    References:
        Kloeden and Platen 1992, section 16.2, for Girsanov's theorem; Li et al. 2020,
        arXiv 2001.01328, section 5, for latent equations.
    """
    require_state(x0)
    x = x0
    log_weight = _zeros(x0)
    for step in _steps_of_pair(target, proposal, x0, ts, solver, noise):
        x = step.x
        log_weight = log_weight + _log_ratio(step.scale, step.width, step.move, step.dw)
    return PathWeights(x, log_weight)


def path_kl(
    target: AbstractSDE,
    proposal: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    solver: AbstractSolver,
    noise: AbstractNoise | None = None,
) -> tuple[Tensor, Tensor]:
    """Solves the proposal q, and sums the Kullback-Leibler divergences of its steps from those of a
    target p with the same noise.

    With d = m_p - m_q the difference of the means of a step under both and S the covariance of the
    step, each step adds its divergence given the path so far,

        d^T S^{-1} d / 2.

    The mean of the sum over the paths is KL(q || p) of the discretised paths, exactly. In the limit
    of short steps the sum is the integral of |u|^2 / 2 with g u = f_p - f_q, which `logqp=True` of
    `sdeint` computes. -log w of `path_weights` has the same mean, but also the variance of a
    stochastic integral. In a bound E[log p(y | x) + log w] of the evidence, however, the two terms
    cancel each other's variance if the proposal is the posterior: for proposals that are close to
    the posterior `path_weights` is better. A
    coordinate in which g is 0 adds nothing where both drifts are exactly equal, as the same
    operations on the same numbers are, and infinity elsewhere. A matrix g with a row of zeros has
    no inverse, and is refused.

    Arguments:
        target, proposal, x0, ts, solver, noise: as of `path_weights`.

    Returns:
        the states at the last time, `(batch, *event)`, and the sum for each path, `(batch,)` in
        float64, both with gradients by autograd.

    Raises:
        NotFiniteError, TypeError, ValueError: as `path_weights`.

    Example:
        >>> q = sdekit.SDE(lambda t, x: 0 * x, lambda t, x: 1.0)
        >>> p = sdekit.SDE(lambda t, x: 0 * x + 0.5, lambda t, x: 1.0)
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> x, kl = sdekit.path_kl(p, q, torch.zeros(4, 1), ts, solver=sdekit.EulerMaruyama())
        >>> kl[:2]  # of N(0, 1) from N(1/2, 1), whatever the path
        tensor([0.1250, 0.1250], dtype=torch.float64)

    References:
        Li et al. 2020, arXiv 2001.01328, section 5; Opper 2019, "Variational inference for
        stochastic differential equations", Annalen der Physik 531.
    """
    require_state(x0)
    x = x0
    total = _zeros(x0)
    for step in _steps_of_pair(target, proposal, x0, ts, solver, noise):
        x = step.x
        z = step.scale.ratio(step.move)
        total = total + 0.5 * sum_of_sample(z.square())
    return x, total


class _PathStep(NamedTuple):
    """A step of paths of a proposal: the states at its end, S^{1/2}, its length, the mean of the
    target minus that of the proposal, and the increment.
    """

    x: Tensor
    scale: _Scale
    width: float
    move: Tensor
    dw: Tensor


def _steps_of_pair(
    target: AbstractSDE,
    proposal: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    solver: AbstractSolver,
    noise: AbstractNoise | None,
) -> Iterator[_PathStep]:
    """The steps of the proposal, with the means of the target; arguments as of `path_weights`.

    Raises:
        NotFiniteError, TypeError, ValueError: see there.
    """
    if target.noise_type != proposal.noise_type:
        raise ValueError(
            f"the target has {target.noise_type} noise and the proposal {proposal.noise_type}: "
            "paths have a density only where g is the same"
        )
    require_kinds(proposal, solver, noise, None, None)
    require_kinds(target, solver, noise, None, None)
    grid = fixed_times(ts)
    equations = [Counted.of(equation.tabulated(grid), x0) for equation in (proposal, target)]
    steps = Transitions(equations[0], grid, solver)
    target_steps = Transitions(equations[1], grid, solver)
    shape = equations[0].noise_shape(x0)
    x = x0
    slopes: list[Tensor] = []
    differences = []
    finite_samples = [finite(x0)]
    for i, increment in enumerate((noise or WhiteNoise()).answer(NoiseQuery(grid, x, shape))):
        w = increment.w
        assert w is not None
        drifts = [equation.drift(grid[i], x) for equation in equations]
        both = [checked_output("the drift", drift, x.shape, x) for drift in drifts]
        slopes = [torch.stack(both), *slopes]
        scale = _scale(steps, i, x)
        differences.append(scale.differs(_scale(target_steps, i, x)))
        end, other = steps.mean(i, steps.with_noise(i, x, w), slopes)
        yield _PathStep(end, scale, _width(steps, i), other - end, w)
        x = end
        finite_samples.append(finite(x))
        slopes = slopes[: steps.memory - 1]
    _require_finite(finite_samples, grid)
    _require_equal(differences)


def _require_finite(finite_samples: Sequence[Tensor], grid: Sequence[float]) -> None:
    """Refuses paths that are not finite, with one synchronisation.

    Arguments:
        finite_samples: which samples are finite at each time of the grid, `(batch,)`.

    Raises:
        NotFiniteError: with the first such time.
    """
    failed = ~torch.stack(list(finite_samples))
    if has_hidden_values(failed) or not bool(failed.any()):
        return
    step = int(failed.any(dim=1).nonzero()[0])
    rows = failed[step].nonzero().flatten().tolist()
    raise NotFiniteError(step, grid[step], rows, failed.shape[1])


def _zeros(x: Tensor) -> Tensor:
    """Where a sum over the steps of each path begins, `(batch,)` in float64."""
    return torch.zeros(len(x), dtype=torch.float64, device=x.device)
