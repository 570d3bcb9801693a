"""torchsde's sdeint, by sdekit's solvers."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit._arguments.names import did_you_mean, require_mapping
from sdekit._arguments.numbers import require_number
from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._grid import times
from sdekit._noise.brownian import BrownianPath
from sdekit._noise.white import AbstractNoise, WhiteNoise
from sdekit._solve.arguments import require_pairing
from sdekit._solve.counted import Counted
from sdekit._solve.gradient import AbstractGradient
from sdekit._solve.steps import Steps
from sdekit._solvers import (
    SRA1,
    SRID2,
    AbstractSolver,
    EulerHeun,
    EulerMaruyama,
    Heun,
    LogODE,
    Midpoint,
    Milstein,
    ReversibleHeun,
    StratonovichMilstein,
)
from sdekit._solvers.contract import Tree
from sdekit.calling import require_bools, warn_caller
from sdekit.interop._from_torchsde import from_torchsde, prepare_solve, signature_errors
from sdekit.interop._logqp import with_divergence
from sdekit.interop._torchsde_grid import (
    Doubling,
    doubled,
    fixed,
    slack_of,
    states,
    steps,
)
from sdekit.interop._torchsde_noise import AREAS, Brownian, TorchsdeNoise
from sdekit.interop._torchsde_solvers import DerivativeFreeMilstein

_NOISE_TYPES: tuple[NoiseType, ...] = ("additive", "diagonal", "scalar", "general")
_ALIKE: tuple[NoiseType, ...] = ("diagonal", "scalar")  # for Milstein's method and for srk

# torchsde's names, and solvers by calculus and noise type. For additive noise Milstein's method is
# Euler's.
SOLVERS: dict[str, dict[str, dict[NoiseType, AbstractSolver]]] = {
    "euler": {"ito": dict.fromkeys(_NOISE_TYPES, EulerMaruyama())},
    "milstein": {
        "ito": {"additive": EulerMaruyama(), **dict.fromkeys(_ALIKE, Milstein())},
        "stratonovich": {
            "additive": EulerMaruyama(), **dict.fromkeys(_ALIKE, StratonovichMilstein()),
        },
    },
    "srk": {"ito": {"additive": SRA1(), **dict.fromkeys(_ALIKE, SRID2())}},
    "heun": {"stratonovich": dict.fromkeys(_NOISE_TYPES, Heun())},
    "euler_heun": {"stratonovich": dict.fromkeys(_NOISE_TYPES, EulerHeun())},
    "midpoint": {"stratonovich": dict.fromkeys(_NOISE_TYPES, Midpoint())},
    "reversible_heun": {"stratonovich": dict.fromkeys(_NOISE_TYPES, ReversibleHeun())},
    "log_ode": {"stratonovich": dict.fromkeys(_NOISE_TYPES, LogODE())},
}  # fmt: skip
_ALIASES = {"euler_maruyama": "euler", "em": "euler"}
_OPTIONS = ("grad_free",)
_DEPTH = 32  # of the path of adaptive steps
# Where the first solve with each WhiteNoise began.
_STARTS: weakref.WeakKeyDictionary[WhiteNoise, float] = weakref.WeakKeyDictionary()


def sdeint(
    sde: object,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Brownian | None = None,
    method: str | None = None,
    dt: float = 1e-3,
    adaptive: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: dict[str, Any] | None = None,
    names: dict[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: tuple[Tensor, ...] | None = None,
    **unused_kwargs: object,
) -> Any:  # noqa: ANN401 - a tensor, or the tuple that logqp and extra ask for
    """Solves an equation as `torchsde.sdeint` does, with its arguments, defaults and names of
    methods, in steps to ts[0] + k dt, or in adaptive steps that the whole batch shares.

    All methods are sdekit's own. They differ from torchsde's on purpose:

    - a state between two steps is (1 - r) x_0 + r x_1, with r its relative position, plus
      g(t_0, x_0) times the Brownian bridge of the path; so it has the variance of the solution, not
      half of it;
    - with bm=None torch's default generator seeds the noise, so that `torch.manual_seed` repeats
      a result;
    - step k ends at ts[0] + k dt, not at a sum of k numbers dt, to avoid a tiny last step;
    - a state that is not finite is an error;
    - the Levy areas of "log_ode" with bm=None have the exact variance, dt^2 / 4; those of a
      torchsde.BrownianInterval have another;
    - ts may decrease: the equation is then solved in reverse time as by `sdekit.solve`;
    - sde may be an `AbstractSDE`, with events of any shape.

    Arguments:
        sde: a torchsde equation, or an `AbstractSDE`.
        y0: the initial states, `(batch, d)`, or `(batch, *event)` for an `AbstractSDE`.
        ts: the times of the result, strictly monotone; y0 is the state at the first.
        bm: a Brownian motion of torchsde, a callable like one, or an `AbstractNoise`; None draws
            new noise. A `WhiteNoise` is not one path: it counts steps from the start of each solve,
            so a solve that continues another one needs another.
        method: "euler", "milstein", "srk", "heun", "euler_heun", "midpoint", "reversible_heun" or
            "log_ode". None is "midpoint" for Stratonovich equations, "euler" for Ito equations with
            general noise, and "srk" for other Ito equations.
        dt: the length of a step, positive; with adaptive steps that of the first.
        adaptive: whether the length of a step is adapted to the difference between one step and two
            of half its length.
        rtol, atol: the tolerances of adaptive steps: the root mean square over the batch of
            error / (atol + rtol |y|) is kept below one.
        dt_min: the shortest adaptive step, which is accepted whatever its error, with a warning.
        options: {"grad_free": True} for Milstein's method without derivatives of g.
        names: other names of the methods of sde, as in `from_torchsde`, and "prior_drift" for h.
        logqp: whether sde has a method h, the drift of a prior. Then the integrals of
            |g^{-1} (f - h)|^2 / 2 between the times of ts are returned too, `(len(ts) - 1, batch)`;
            the mean of their sum is the Kullback-Leibler divergence of the paths from the prior.
        extra: whether the state of the solver at the last time is returned too: (f, g, z) for
            "reversible_heun", () for other methods.
        extra_solver_state: such a state, with which the solve begins.
        unused_kwargs: other arguments have no effect; a warning names them.

    Returns:
        the states at ts, `(len(ts), *y0.shape)`; with logqp or extra a tuple of these, the
        integrals, and the state of the solver.

    Raises:
        NotFiniteError: when a state is not finite.
        RuntimeError: when a method of sde changes its input or an earlier result in place.
        TypeError: for ts or a dt that are not numbers, an adaptive, logqp or extra that is not a
            bool, a y0 of integers or complex numbers, or methods that do not take (t, y).
        ValueError: for an unknown method, one that does not solve such equations, a y0 of another
            shape, a dt that is not positive, tolerances that are negative, a `WhiteNoise` that was
            used from another time on, or arguments that cannot be combined.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 0.1 * x)
        >>> ts = torch.tensor([0.0, 0.5, 1.0])
        >>> ys = sdekit.sdeint(sde, torch.ones(4, 2), ts, method="euler", dt=0.1)
        >>> ys.shape
        torch.Size([3, 4, 2])
    """
    warn_of_unused("sdeint", unused_kwargs)
    require_bools(adaptive=adaptive, logqp=logqp, extra=extra)
    call = Call.of(sde, y0, ts, bm, names, logqp=logqp)
    doubling = Doubling(float(rtol), float(atol), float(dt_min)) if adaptive else None
    solve = call.solve(method, ts, dt, doubling, options)
    with signature_errors(solve.problem, call.start):
        if len(ts) == 1:
            return call.at_one_time(solve, extra_solver_state, extra=extra)
        xs, state = solve.states(call.start, extra_solver_state)
        return call.result(torch.stack(xs), state, extra=extra)


@dataclass(frozen=True, eq=False)
class Solve:
    """How an equation is solved: in steps of length dt, or in adaptive steps."""

    problem: AbstractSDE
    solver: AbstractSolver
    ts: Sequence[float]
    noise: AbstractNoise
    dt: float
    slack: float
    doubling: Doubling | None = None
    gradient: AbstractGradient | None = None

    def states(
        self, x: Tensor, extra: tuple[Tensor, ...] | None = None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The states at ts from x, and the solver's state at the end; extra: that at the start."""
        require_pairing(self.problem, self.solver)
        t0 = self.ts[0]
        t1 = self.ts[-1]
        grid = [t0, t1] if self.doubling else steps(t0, t1, self.dt, self.slack)
        taken = Steps.of(self.problem, x, grid, self.solver, self.noise)
        state = None if not extra else _ours(self.problem, extra)
        if self.doubling is None:
            reached = fixed(taken, x, state, self.gradient)
        else:
            reached = doubled(taken, x, self.dt, self.doubling, state)
        xs, state = states(self.problem, reached, self.ts, self.noise, self.slack)
        return xs, _theirs(self.problem, state) if self.solver.reversible else ()

    def first_state(self, x: Tensor, extra: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """The solver's state at the first time, which is extra if that is given."""
        require_pairing(self.problem, self.solver)
        if extra or not self.solver.reversible:
            return extra or ()
        counted = Counted.of(self.problem, x)
        return _theirs(self.problem, self.solver.init(counted, self.ts[0], x))


def _ours(problem: AbstractSDE, extra: tuple[Tensor, ...]) -> Tree:
    """torchsde's (f, g, z) as the state of `ReversibleHeun`."""
    f, g, z = extra
    return z, f, g.squeeze(-1) if problem.noise_type == "scalar" and g.ndim > z.ndim else g


def _theirs(problem: AbstractSDE, state: Tree) -> tuple[Tensor, ...]:
    if not state:
        return ()
    z, f, g = state
    return f, g.unsqueeze(-1) if problem.noise_type == "scalar" else g, z


@dataclass(frozen=True, eq=False)
class Call:
    """The checked arguments of a call of sdeint: the equation, the state, the noise."""

    problem: AbstractSDE
    start: Tensor
    bm: Brownian | None
    logqp: bool

    @staticmethod
    def of(
        sde: object,
        y0: Tensor,
        ts: Tensor | Sequence[float],
        bm: Brownian | None,
        names: Mapping[str, str] | None,
        *,
        logqp: bool,
    ) -> "Call":
        """The call, checked."""
        _require(sde, y0, ts)
        start = y0.clone(memory_format=torch.contiguous_format)
        if logqp:
            direction = -1.0 if float(ts[-1]) < float(ts[0]) else 1.0
            sde = with_divergence(sde, names, direction)
            names = None
            start = torch.cat([start, start.new_zeros(len(start), 1)], dim=1)
        if not isinstance(sde, AbstractSDE):
            shape = getattr(bm, "shape", None)
            noise_size = None if shape is None else shape[-1]
            sde = from_torchsde(sde, names=names, noise_size=noise_size)
        return Call(prepare_solve(sde, start, ts), start, bm, logqp)

    def solve(
        self,
        method: str | None,
        ts: Tensor | Sequence[float],
        dt: float,
        doubling: Doubling | None,
        options: Mapping[str, Any] | None,
    ) -> Solve:
        """The solve by a method; dt is the length of the steps, or of the first adaptive one."""
        _require_step(dt)
        require_mapping(options)
        method = default_method(self.problem) if method is None else method
        if doubling and method == "euler" and self.problem.noise_type != "additive":
            warn_caller(
                "adaptive steps of the Euler-Maruyama method do not converge to the solution where "
                "g depends on the state: take another method, or a Stratonovich equation",
            )
        solver = _solver(method, self.problem, options or {})
        _require_areas(method, self.bm)
        numbers = times(ts) if len(ts) > 1 else [float(ts[0])]
        slack = slack_of(ts, numbers, float(dt))
        noise = _noise(self.bm, numbers, adaptive=doubling is not None)
        return Solve(self.problem, solver, numbers, noise, float(dt), slack, doubling)

    def at_one_time(
        self, solve: Solve, extra_solver_state: tuple[Tensor, ...] | None, *, extra: bool
    ) -> Any:  # noqa: ANN401
        """What sdeint returns for one time, y0."""
        state = solve.first_state(self.start, extra_solver_state) if extra else ()
        return self.result(self.start.unsqueeze(0), state, extra=extra)

    def result(self, xs: Tensor, state: tuple[Tensor, ...], *, extra: bool) -> Any:  # noqa: ANN401
        """What sdeint returns."""
        results = (xs[..., :-1], xs[..., -1].diff(dim=0)) if self.logqp else (xs,)
        results = (*results, state) if extra else results
        return results if len(results) > 1 else results[0]


def _noise(bm: Brownian | None, ts: Sequence[float], *, adaptive: bool) -> AbstractNoise:
    """The noise of a solve.

    Raises:
        ValueError: for noise that is not a path, where steps are adapted, or a solve is continued.
    """
    if adaptive and isinstance(bm, WhiteNoise):
        raise ValueError(
            "WhiteNoise has no path, and adaptive steps ask for one; use bm=None or a BrownianPath"
        )
    start = _STARTS.setdefault(bm, ts[0]) if isinstance(bm, WhiteNoise) else ts[0]
    if start != ts[0]:
        raise ValueError(
            f"this WhiteNoise was used from t = {start:g} on, and from t = {ts[0]:g} on it would "
            "have the same increments again, because it counts steps and not times: give "
            "BrownianPath(seed, (first, last time of all solves)), or a new WhiteNoise with "
            "another seed"
        )
    if bm is None:
        ends = (min(ts), max(ts))
        return BrownianPath(knots=ends, depth=_DEPTH) if adaptive else WhiteNoise()
    return bm if isinstance(bm, AbstractNoise) else TorchsdeNoise(bm)


def _require_areas(method: str, bm: Brownian | None) -> None:
    """Refuses a Brownian motion without areas for "log_ode" with any noise type, as torchsde does.

    Raises:
        ValueError: with what to do.
    """
    known = getattr(bm, "levy_area_approximation", None)
    if method == "log_ode" and known not in (None, *AREAS):
        raise ValueError(
            f"'log_ode' uses the areas between the coordinates of bm, which has "
            f"levy_area_approximation = {known!r}: take {' or '.join(map(repr, AREAS))}, or bm=None"
        )


def _require(sde: object, y0: Tensor, ts: Tensor | Sequence[float]) -> None:
    if not isinstance(y0, Tensor) or (y0.ndim != 2 and not isinstance(sde, AbstractSDE)):
        description = tuple(y0.shape) if isinstance(y0, Tensor) else type(y0).__name__
        raise ValueError(
            f"y0 must be a tensor of shape (batch, d), not {description}; an sdekit equation takes "
            "events of any shape"
        )
    if not y0.is_floating_point():
        remedy = (
            "complex states are for odeint only; give real and imaginary parts as coordinates"
            if y0.is_complex()
            else "convert it with .float()"
        )
        raise TypeError(f"y0 must hold real floating-point numbers, not {y0.dtype}: {remedy}")
    if not isinstance(ts, Tensor | Sequence | np.ndarray) or isinstance(ts, str):
        raise TypeError(
            f"ts must be a tensor or a sequence of numbers, not {ts!r:.60}; give [0.0, 1.0], for "
            "example"
        )
    if isinstance(ts, Tensor) and ts.requires_grad:
        raise ValueError("ts must not require a gradient; detach it")


def _require_step(dt: float) -> None:
    if isinstance(dt, Tensor) and dt.requires_grad:
        raise ValueError("dt must not require a gradient; detach it")
    require_number("dt", dt, tensors=True)
    if not dt > 0:
        raise ValueError(
            f"dt is the width of a step, positive, not {dt}; decreasing ts reverse the time"
        )


def warn_of_unused(name: str, arguments: Mapping[str, object]) -> None:
    """Warns of arguments that a function does not have."""
    if arguments:
        warn_caller(
            f"{name} does not know the arguments {', '.join(arguments)}, which have no effect",
        )


def _solver(method: str, problem: AbstractSDE, options: Mapping[str, Any]) -> AbstractSolver:
    """sdekit's solver for a method and an equation.

    Raises:
        ValueError: for a name that is not a method, and an equation that it does not solve.
    """
    if method not in SOLVERS:
        raise ValueError(
            f"method = {method!r} is not one of "
            f"{', '.join(SOLVERS)}{did_you_mean(method, SOLVERS, _ALIASES)}"
        )
    kinds = SOLVERS[method]
    if problem.sde_type not in kinds:
        raise ValueError(
            f"{method!r} solves {' and '.join(kinds)} equations, and this one is {problem.sde_type}"
        )
    solver = kinds[problem.sde_type].get(problem.noise_type)
    if solver is None:
        raise ValueError(
            f"{method!r} has no step for {problem.noise_type} noise, only for "
            f"{', '.join(kinds[problem.sde_type])}"
        )
    for name in set(options) - set(_OPTIONS):
        warn_caller(
            f"sdeint has no option {name!r}, which has no effect; it has {', '.join(_OPTIONS)}"
            f"{did_you_mean(name, _OPTIONS)}",
        )
    if options.get("grad_free") and isinstance(solver, Milstein):
        return DerivativeFreeMilstein(problem.sde_type)
    return solver


def default_method(problem: AbstractSDE) -> str:
    """The method that None stands for."""
    if problem.sde_type == "stratonovich":
        return "midpoint"
    return "euler" if problem.noise_type == "general" else "srk"
