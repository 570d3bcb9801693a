"""Sampling methods: an equation for reverse time, a solver for it, and a grid."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from sdekit import (
    AbstractNoise,
    AbstractSolver,
    AdamsMoulton,
    NotFiniteError,
    Point,
    ReverseSDE,
    Solution,
    solve,
    uniform,
)
from sdekit.elementary import Time, broadcast, scaled
from sdekit_diffusion._models.affine import Affine, Function, constant, prepared
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.clock import Integrand, clock_knots, level, on_clock, on_steps
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.grids import AbstractGrid, Focused, Native

# Steps from which the default rules look one value further back, without noise and with it; and
# the largest share of `Focused` with which they do so with noise.
_ENOUGH = 20
_ENOUGH_WITH_NOISE = 25
_SHARE_WITH_NOISE = 0.3


@dataclass(frozen=True, eq=False)
class Descent:
    """What a method solves: the reverse equation from the noisy end of a span of l to its clean
    end.

    States are u and times are l as in `Coordinates`, whatever the diffusion.

    Arguments:
        model: whose reverse equation; of data with mean 0 and standard deviation 1.
        coordinates: the way to a diffusion, in whose time grids may be even and solvers may run.
        u: the states at the noisy end, `(batch, *event)`.
        span: l at both ends.
        noise: row i is the noise of state i.
        save: whether the states at all points of the grid are wanted.
        callback: called with each `Point` (step, l, u).

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Reporting(sd.AbstractMethod):
        ...     method: sd.AbstractMethod
        ...     def run(self, down):
        ...         print(tuple(down.u.shape), down.span[0] < down.span[1])
        ...         return self.method.run(down)
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> x = sd.sample(model, 4, sde="vp", method=Reporting(sd.DDIM(steps=5)), seed=0)
        (4, 1) True
    """

    model: AbstractModel
    coordinates: Coordinates
    u: Tensor
    span: Span
    noise: AbstractNoise | None = None
    save: Literal["last", "all"] = "last"
    callback: Callable[[Point], None] | None = None


def require_clock(down: Descent, start: float, stop: float) -> None:
    """Refuses a clock whose logarithm has these values at the ends, where the dtype of the states
    does not hold it.

    At the clean end weights and variances are as the clock, at the noisy end y is as its root.

    Raises:
        ValueError: with what to change.
    """
    dtype = down.u.dtype
    if max(stop, -0.5 * start) > math.log(torch.finfo(dtype).max / 10):
        wider = ", or dtype=torch.float64" if dtype != torch.float64 else ""
        raise ValueError(
            f"at this eta the clock (alpha / sigma)^(2 eta^2) runs from e^{start:.0f} to "
            f"e^{stop:.0f}, which {dtype} does not hold; take a smaller eta or a larger end{wider}"
        )


@dataclass(frozen=True, eq=False)
class AbstractMethod(ABC):
    """A sampling method: an equation in reverse time, a solver, and a grid.

    A subclass defines `run`, which solves a `Descent` in standardised coordinates u and l.

    Arguments:
        steps, grid: the number of steps and their grid, unless `sample` receives others.

    Example:
        >>> from dataclasses import dataclass, replace
        >>> @dataclass(frozen=True, eq=False)
        ... class Switched(sd.AbstractMethod):  # another method from l = 0 on
        ...     high: sd.AbstractMethod
        ...     low: sd.AbstractMethod
        ...     def run(self, down):
        ...         first = self.high.run(replace(down, span=(down.span[0], 0.0)))
        ...         return self.low.run(replace(down, u=first.x, span=(0.0, down.span[1])))
        >>> method = Switched(sd.DDIM(steps=10), sd.OnClock(steps=5))
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> sd.sample(model, 4, sde="vp", method=method, seed=0).shape
        torch.Size([4, 1])
    """

    noise: ClassVar[Literal["white", "path"]] = "white"  # what it reads unless told otherwise
    extra: ClassVar[int] = 0  # what `steps` counts beyond the steps of the grid
    # Whether x_T may be of another law, which is forgotten on the way.
    forgets: ClassVar[bool] = False

    steps: int = field(default=0, kw_only=True)
    grid: AbstractGrid | None = field(default=None, kw_only=True)

    def points(self, down: Descent) -> Tensor:
        """l at the ends of the steps."""
        assert self.grid is not None
        return self.grid.points(down.coordinates, down.span, self.steps)

    @abstractmethod
    def run(self, down: Descent) -> Solution:
        """The solution in u and l.

        Raises:
            sdekit.NotFiniteError: when a state of a fixed grid is not finite.
            sdekit.UnfinishedError: when samples with adaptive steps do not reach the end.
            ValueError: for steps or states that the method does not support.
        """

    def knots(self, coordinates: Coordinates, span: Span) -> Tensor:
        """The knots of a Brownian path that resolves the noise of this method over a span, for
        every grid.

        Raises:
            ValueError: for a method whose noise is not one path.
        """
        raise ValueError(
            f"{type(self).__name__} reads no Brownian path; leave out noise='path', or choose a "
            "method such as 'ddpm'"
        )


_REMEMBERED = 32  # clocks whose plans are kept, and plans of each
_PLANS: dict[Hashable, dict[Hashable, Any]] = {}


def _plans(coordinates: Coordinates, eta: float, integrand: Integrand) -> dict[Hashable, Any]:
    """The plans of multistep rules on one clock, for calls to come."""
    if not constant(coordinates.sde):
        return {}
    key = coordinates.sde, coordinates.std, coordinates.dimension, eta, integrand
    plans = _PLANS.setdefault(key, {})
    for remembered in (_PLANS, plans):
        if len(remembered) > _REMEMBERED:
            remembered.clear()
    return plans


@dataclass(frozen=True, eq=False)
class OnClock(AbstractMethod):
    """A solver on the clock of the signal-to-noise ratio, where the linear part is exact.

    Arguments:
        solver: `AdamsMoulton(k)` or `AdamsBashforth(k)`, whose weights are then exponential
            integrals, for a polynomial in the variable in which the denoiser is smooth; the latter
            with k = 1 is DDIM for eta = 0, of the data or the noise, and DDPM's ancestral sampler
            for eta = 1. Or any other solver, on the clock as its time. None chooses by the number
            of steps, see `rule`.
        eta: the noise level: 0 the probability flow, 1 the reverse SDE; or a function of
            l = log(alpha / sigma), such as `lambda l: float(-2 < l < 3)`, of which a step uses the
            value in its middle: for solvers with planned weights. It is the square root of the eta
            of k-diffusion's SDE samplers, such as `sample_dpmpp_2m_sde`, whose noise has the
            variance sigma_1^2 (1 - e^{-2 eta h}) where here it is sigma_1^2 (1 - e^{-2 eta^2 h}), h
            the step in l. The eta of DDIM and of k-diffusion's ancestral samplers has another
            meaning; see `DDIM`.
        integrand: what rules approximate by a polynomial: "data", the denoiser; or, for eta = 0,
            "noise", or "velocity", a combination of both; see `on_clock`.
        steps, grid: the number of steps and their grid, unless `sample` receives others.

    Raises:
        TypeError: for a solver that is not an object, such as a name.
        ValueError: for a negative eta, a solver that does not support the noise or an eta that is a
            function of l, or an integrand other than "data" with noise; in `sample`, where the
            dtype does not hold the clock.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.OnClock(sdekit.AdamsBashforth(2), eta=1.0)
        >>> sd.sample(model, 4, sde="vp", method=method, steps=20, seed=0).shape
        torch.Size([4, 1])
    """

    solver: AbstractSolver | None = None
    eta: float | Callable[[float], float] = 0.0
    integrand: Integrand = "data"
    steps: int = field(default=100, kw_only=True)
    grid: AbstractGrid = field(default=Focused(), kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.solver, AbstractSolver | None):
            raise TypeError(
                "solver is an object such as AdamsMoulton(3), or None for the default, not "
                f"{self.solver!r}"
            )
        if not callable(self.eta):
            level(self.eta)
        elif not self.rule.stepwise:
            raise ValueError(
                f"{type(self.rule).__name__} is for one eta: as a function of l it jumps where "
                "steps meet, which rules with planned weights take exactly; choose one such as "
                "AdamsBashforth(2), or give eta as a number"
            )
        if self.eta and not callable(self.eta) and "additive" not in self.rule.order:
            name = type(self.rule).__name__
            raise ValueError(
                f"{name} is for the probability flow, eta = 0; with noise take ClockedHeun() or "
                "AdamsMoulton(2)"
            )
        if self.integrand not in get_args(Integrand) or (self.integrand != "data" and self.eta):
            raise ValueError(
                "integrand must be 'data', or for eta = 0 'noise' or 'velocity'; not "
                f"{self.integrand!r} for eta = {self.eta}: with noise take integrand='data', or "
                "the method 'sde'"
            )

    @property
    def rule(self) -> AbstractSolver:
        """The solver, or the default for this number of steps.

        Without noise it is `AdamsMoulton(3)`, and `AdamsMoulton(4)` for the velocity from 20 steps
        on; with noise `AdamsMoulton(2)`, and with three values in l from 25 steps on. On other
        grids than those that `follow` the model, with noise than `Focused(0.3)`, whose steps of l
        differ less, the longer rules have larger errors or are unstable, and are not used.
        """
        if self.solver is not None:
            return self.solver
        if self.eta:
            even = isinstance(self.grid, Focused) and self.grid.share <= _SHARE_WITH_NOISE
            far = self.steps >= _ENOUGH_WITH_NOISE and even
            return AdamsMoulton(3, variable="l") if far else AdamsMoulton(2)
        far = self.integrand == "velocity" and self.steps >= _ENOUGH and self.grid.follows
        return AdamsMoulton(4 if far else 3, self_starting=False)

    def run(self, down: Descent) -> Solution:
        grid = self.points(down)
        if callable(self.eta):
            problem = on_steps(
                down.model, self._eta_in(down.coordinates), grid, down.coordinates.time
            )
            require_clock(down, problem.log_q[0], problem.log_q[-1])
        else:
            problem = on_clock(down.model, self.eta, self.integrand, down.coordinates.time)
            problem = replace(problem, plans=_plans(down.coordinates, self.eta, self.integrand))
            require_clock(down, *(2 * self.eta**2 * l for l in down.span))
        clock = torch.as_tensor(problem.time(grid))

        def report(point: Point) -> None:
            assert down.callback is not None
            down.callback(
                Point(point.step, float(grid[point.step]), problem.physical(point.t, point.x))
            )

        y = down.u / problem.scale(down.span[0])
        watch = down.callback and report
        try:
            solution = solve(
                problem,
                y,
                clock,
                solver=self.rule,
                noise=down.noise,
                save=down.save,
                callback=watch,
            )
        except NotFiniteError as error:
            raise error.seen(t=float(problem.parameter(error.t))) from None
        xs = solution.xs
        if xs is not None:
            xs = xs * broadcast(problem.scale(grid), xs)
        return replace(solution, x=solution.x * problem.scale(down.span[1]), xs=xs, ts=grid)

    def _eta_in(self, coordinates: Coordinates) -> Callable[[float], float]:
        """eta as a function of the l of standardised coordinates."""
        assert callable(self.eta)
        eta = self.eta
        shift = math.log(coordinates.std)
        return lambda l: eta(l - shift)

    def knots(self, coordinates: Coordinates, span: Span) -> Tensor:
        """`clock_knots`; if eta is a function of l, uniform in l, at most log 2 apart.

        Raises:
            ValueError: for eta = 0, a method without noise.
        """
        if callable(self.eta):
            return uniform(*span, math.ceil((span[1] - span[0]) / math.log(2)))
        if not self.eta:
            raise ValueError(
                "a method without noise reads no Brownian path; leave out noise='path', or give "
                "eta > 0"
            )
        return clock_knots(self.eta, span)


@dataclass(frozen=True, eq=False)
class _Score:
    """grad log p_t(x) = -eps / sigma of a model of standardised data, in the diffusion's own
    states.
    """

    model: AbstractModel
    coordinates: Coordinates
    table: Mapping[float, Function] = field(default_factory=dict)

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        known = None if isinstance(t, Tensor) else self.table.get(t)
        if known is not None:
            return known(x)
        eps = self.model.predict_noise(self.coordinates.log_snr(t), self.coordinates.standard(t, x))
        return scaled(-1 / self.coordinates.sde.sigma(t), eps)

    def tabulated(self, ts: Sequence[float]) -> "_Score":
        """The same with what depends on the times of a grid computed at once."""
        functions = self._prepared(ts, "score", lambda t, score: score)
        return replace(self, table=dict(zip(ts, functions or (), strict=bool(functions))))

    def slopes(self, factor: float, ts: Sequence[float]) -> Mapping[float, Function]:
        """f x - factor g^2 s at the times of a grid; empty where it is not affine in a network's
        output.
        """
        sde = self.coordinates.sde

        def slope(t: Tensor, score: Affine) -> Affine:
            g = torch.as_tensor(sde.g(t), dtype=torch.float64)
            return score.times(-factor * g * g, plus=sde.f(t))

        functions = self._prepared(ts, factor, slope)
        return dict(zip(ts, functions or (), strict=bool(functions)))

    def _prepared(
        self,
        ts: Sequence[float],
        what: Hashable,
        made: Callable[[Tensor, Affine], Affine],
    ) -> list[Function] | None:
        """What is made of the score at the times of a grid."""
        coordinates = self.coordinates
        sde = coordinates.sde

        def numbers() -> Affine:
            t = torch.tensor(ts, dtype=torch.float64)
            r = coordinates.radius(t)
            shift = -sde.alpha(t) / r if coordinates.shifts else 0.0
            eps = self.model.affine(torch.as_tensor(coordinates.log_snr(t)), "noise")
            return made(t, eps.at(1 / r, shift).times(-1 / sde.sigma(t)))

        key = ("time", sde, coordinates.std, what, *ts) if constant(sde) else None
        return prepared(self.model, key, len(ts), numbers)


@dataclass(frozen=True, eq=False)
class InTime(AbstractMethod):
    """A solver in the diffusion's own time, on dx = [f - (1 + eta^2)/2 g^2 s] dt + eta g dW.

    Arguments:
        solver: any, such as `EulerMaruyama()` or `PredictorCorrector(ReverseDiffusion(),
            Langevin(snr=0.16, steps=2))`.
        eta: the noise level: 1 the reverse SDE, 0 the probability flow.
        steps, grid: the number of steps and their grid, unless `sample` receives others.

    Raises:
        ValueError: in `sample`, for a negative eta, or a solver that does not support additive
            noise.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.InTime(sdekit.EulerMaruyama(), eta=1.0, steps=100)
        >>> sd.sample(model, 4, sde="vp", method=method, seed=0).shape
        torch.Size([4, 1])

    References:
        Song et al. 2021, arXiv 2011.13456, section 4.
    """

    solver: AbstractSolver
    eta: float = 1.0
    steps: int = field(default=1000, kw_only=True)
    grid: AbstractGrid = field(default=Native(), kw_only=True)

    def run(self, down: Descent) -> Solution:
        coordinates = down.coordinates
        score = _Score(down.model, coordinates)
        problem = ReverseSDE(
            coordinates.sde, score, self.eta, prepare=partial(score.slopes, 0.5 * (1 + self.eta**2))
        )
        grid = self.points(down)
        times = torch.as_tensor(coordinates.time(grid))

        def report(point: Point) -> None:
            assert down.callback is not None
            u = coordinates.standard(point.t, point.x)
            down.callback(Point(point.step, float(grid[point.step]), u))

        x = coordinates.physical(float(times[0]), down.u)
        watch = down.callback and report
        try:
            solution = solve(
                problem,
                x,
                times,
                solver=self.solver,
                noise=down.noise,
                save=down.save,
                callback=watch,
            )
        except NotFiniteError as error:
            raise error.seen(t=float(coordinates.log_snr(error.t))) from None
        xs = solution.xs
        if xs is not None:
            xs = torch.stack(
                [coordinates.standard(t, x) for t, x in zip(times.tolist(), xs, strict=True)]
            )
        u = coordinates.standard(float(times[-1]), solution.x)
        return replace(solution, x=u, xs=xs, ts=grid)

    def knots(self, coordinates: Coordinates, span: Span) -> Tensor:
        """Sixteen knots of the own grid of the diffusion, which may be denser at one end.

        Raises:
            ValueError: without noise, or for a solver that draws normals of its own.
        """
        if self.solver.normals or not self.eta:
            raise ValueError(
                "one Brownian path is for eta > 0 and solvers that draw nothing else; without "
                "noise there is none, and a corrector draws anew on each grid: leave out "
                "noise='path'"
            )
        return torch.as_tensor(coordinates.time(Native().points(coordinates, span, 16))).flip(0)
