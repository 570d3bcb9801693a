"""Sampling methods: an equation for reverse time, a solver for it, and a grid."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sdekit import (
    AbstractNoise,
    AbstractSolver,
    AdamsMoulton,
    Clocked,
    NotFiniteError,
    PiecewiseClocked,
    Point,
    ReverseSDE,
    Solution,
    geometric,
    solve,
    uniform,
)
from sdekit.elementary import Time, broadcast, exp
from sdekit_diffusion._diffusion import AbstractDiffusion
from sdekit_diffusion._discrete import PiecewiseLinear
from sdekit_diffusion._grids import AbstractGrid, Focused, Native, Span
from sdekit_diffusion._model import AbstractModel

_LARGEST = 0.99 * math.log(torch.finfo(torch.float64).max)  # of the logarithm of a clock


@dataclass(frozen=True, eq=False)
class Denoising(Clocked):
    """The equation of `on_clock` with the data predicted: what the network is given besides x goes with its samples."""

    model: AbstractModel = field(kw_only=True)
    sde: AbstractDiffusion = field(kw_only=True)

    def rows(self, index: Tensor) -> Self:
        model = self.model.rows(index)
        return replace(self, model=model, integrand=partial(model.denoise, sde=self.sde))


def on_clock(
    model: AbstractModel, sde: AbstractDiffusion, eta: float = 0.0, integrand: Literal["data", "noise"] = "data"
) -> Clocked:
    """The reverse equation of noise level eta without its linear part, l = log(alpha / sigma).

    With the data predicted, y = x e^{eta^2 l} / sigma,  dy = D d e^{(1 + eta^2) l} + dB_Q,  Q = e^{2 eta^2 l}; with the noise,
    for eta = 0, y = x / alpha,  dy = eps d e^{-l}.

    References:
        Zhang and Chen 2023, arXiv 2204.13902; Lu et al. 2022, arXiv 2211.01095, for eta = 0 and 1.
    """
    if integrand == "noise":

        def noise(t: Time, x: Tensor) -> Tensor:
            return model.score(t, x, sde) * broadcast(-sde.sigma(t), x)

        return Clocked(noise, lambda l: sde.alpha(sde.time(l)), a=-1.0, own=sde.time, smooth=model.clock)

    def scale(l: Time) -> Time:
        return sde.sigma(sde.time(l)) * exp(-(eta**2) * l)

    denoised, a, q = partial(model.denoise, sde=sde), 1 + eta**2, 2 * eta**2
    return Denoising(denoised, scale, a, q, own=sde.time, smooth=model.clock, model=model, sde=sde)


def clock_knots(eta: float, span: Span) -> Tensor:
    """Geometric on the clock (alpha / sigma)^(2 eta^2), the ratio of neighbours at most 4.

    Raises:
        ValueError: where floats do not hold that clock.
    """
    if max(abs(2 * eta**2 * l) for l in span) > _LARGEST:
        raise ValueError(f"one path on the clock (alpha / sigma)^(2 eta^2) is too long for eta = {eta}; take a smaller one")
    start, stop = (math.exp(2 * eta**2 * l) for l in span)
    return geometric(start, stop, math.ceil(math.log(stop / start, 4)))


def on_steps(model: AbstractModel, sde: AbstractDiffusion, eta: Callable[[float], float], grid: Tensor) -> PiecewiseClocked:
    """The same with a noise level that depends on l, taken in the middle of each step and kept on it.

    With E the integral of eta^2 from l = 0, y = x e^E / sigma,  dy = D d e^{E + l} + dB_Q,  Q = e^{2 E}.

    Arguments:
        grid: l at the ends of the steps.

    Raises:
        ValueError: where eta is not a number from 0 on.

    References:
        Xue et al. 2023, arXiv 2309.05019, where eta is called tau.
    """
    l, middles = grid.numpy(), (0.5 * (grid[1:] + grid[:-1])).tolist()
    levels = np.array([_level(float(eta(middle))) for middle in middles])
    total = np.append(0.0, np.cumsum(levels**2 * np.diff(l)))
    total = total - np.interp(0.0, l, total)
    exponent = PiecewiseLinear(tuple(l.tolist()), tuple(total.tolist()))

    def scale(l: Time) -> Time:
        return sde.sigma(sde.time(l)) * exp(-exponent(l))

    return PiecewiseClocked(
        partial(model.denoise, sde=sde), scale, l, log_a=l + total, log_q=2 * total, own=sde.time, smooth=model.clock
    )


def _level(eta: float) -> float:
    """A noise level, refused unless it is a number from 0 on."""
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be a number from 0 (probability flow) on, 1 being the reverse SDE; not {eta}")
    return eta


@dataclass(frozen=True, eq=False)
class Descent:
    """What a method solves: the way of some states from the noisy end of a span of l = log(alpha / sigma) to its clean end.

    Arguments:
        model, sde: whose reverse equation.
        x: the states at the noisy end, `(batch, *event)`.
        span: l at both ends.
        noise: row i is the noise of state i.
        save: whether the states at all points of the grid are wanted.
        callback: what is given each `Point`, in the diffusion's own time.
    """

    model: AbstractModel
    sde: AbstractDiffusion
    x: Tensor
    span: Span
    noise: AbstractNoise | None = None
    save: Literal["last", "all"] = "last"
    callback: Callable[[Point], None] | None = None


def require_clock(down: Descent, start: float, stop: float) -> None:
    """Refuses a clock whose logarithm has these values at the ends, where the dtype of the states does not hold it.

    At the clean end weights and variances are as the clock, at the noisy end y is as its root.

    Raises:
        ValueError: with what to change.
    """
    dtype = down.x.dtype
    if max(stop, -0.5 * start) > math.log(torch.finfo(dtype).max / 10):
        wider = ", or dtype=torch.float64" if dtype != torch.float64 else ""
        raise ValueError(
            f"at this eta the clock (alpha / sigma)^(2 eta^2) runs from e^{start:.0f} to e^{stop:.0f}, which {dtype} does not "
            f"hold; take a smaller eta or a larger end{wider}"
        )


@dataclass(frozen=True, eq=False)
class AbstractMethod(ABC):
    """A way to descend: an equation, a solver, and where it takes its steps."""

    noise: ClassVar[Literal["white", "path"]] = "white"  # what it reads unless told otherwise

    steps: int = field(default=0, kw_only=True)
    grid: AbstractGrid | None = field(default=None, kw_only=True)

    def fitted(self, model: AbstractModel, sde: AbstractDiffusion, span: Span) -> tuple[Self, int]:
        """The method with its grid fitted to a model, and the evaluations that this took."""
        if self.grid is None or (grid := self.grid.fitted(model, sde, span)) is self.grid:
            return self, 0
        return replace(self, grid=grid), grid.evaluations

    def points(self, down: Descent) -> Tensor:
        """l at the ends of the steps."""
        assert self.grid is not None
        return self.grid.fitted(down.model, down.sde, down.span).points(down.sde, down.span, self.steps)

    @abstractmethod
    def run(self, down: Descent) -> Solution:
        """The solution in x; its grid is in the diffusion's own time."""

    def knots(self, sde: AbstractDiffusion, span: Span) -> Tensor:
        """The knots of a Brownian path that resolves this method's noise over a span, whatever the number of steps.

        Raises:
            ValueError: for a method whose noise is not one path.
        """
        raise ValueError(
            f"{type(self).__name__} reads no Brownian path; leave out noise='path', or choose a method such as 'ddpm'"
        )


@dataclass(frozen=True, eq=False)
class OnClock(AbstractMethod):
    """A solver on the clock of the signal-to-noise ratio, where the linear part is exact.

    Arguments:
        solver: `AdamsMoulton(k)` or `AdamsBashforth(k)`, whose weights are then exponential integrals, for a polynomial in
            `AbstractModel.clock`; the latter with k = 1 is DDIM for eta = 0 and DDPM's ancestral sampler for eta = 1. Or any
            other solver, on the clock as its time.
        eta: the noise level: 0 the probability flow, 1 the reverse SDE; or a function of l = log(alpha / sigma), such as
            `lambda l: float(-2 < l < 3)`, whose value in the middle of a step is kept on it: for solvers with planned weights.
        integrand: what rules take for a polynomial: "data", the denoiser; or "noise", for eta = 0.
        steps, grid: how many and where, unless `sample` says otherwise.
    """

    solver: AbstractSolver = field(default_factory=lambda: AdamsMoulton(3, self_starting=False))
    eta: float | Callable[[float], float] = 0.0
    integrand: Literal["data", "noise"] = "data"
    steps: int = field(default=100, kw_only=True)
    grid: AbstractGrid = field(default=Focused(), kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.eta):
            _level(self.eta)
        elif not self.solver.stepwise:
            raise ValueError(
                f"{type(self.solver).__name__} is for one eta: as a function of l it jumps where steps meet, which rules with "
                "planned weights take exactly; choose one such as AdamsBashforth(2), or give eta as a number"
            )
        if self.eta and not callable(self.eta) and "additive" not in self.solver.order:
            name = type(self.solver).__name__
            raise ValueError(f"{name} is for the probability flow, eta = 0; with noise take ClockedHeun() or AdamsMoulton(2)")
        if self.integrand not in ("data", "noise") or (self.integrand == "noise" and self.eta):
            raise ValueError(f"integrand must be 'data', or 'noise' for eta = 0; not {self.integrand!r} for eta = {self.eta}")

    def run(self, down: Descent) -> Solution:
        grid = self.points(down)
        if callable(self.eta):
            problem = on_steps(down.model, down.sde, self.eta, grid)
            require_clock(down, problem.log_q[0], problem.log_q[-1])
        else:
            problem = on_clock(down.model, down.sde, self.eta, self.integrand)
            require_clock(down, *(problem.q * l for l in down.span))
        times, clock = torch.as_tensor(down.sde.time(grid)), torch.as_tensor(problem.time(grid))

        def report(point: Point) -> None:
            assert down.callback is not None
            down.callback(Point(point.step, float(times[point.step]), problem.physical(point.t, point.x)))

        y, watch = down.x / problem.scale(down.span[0]), down.callback and report
        try:
            solution = solve(problem, y, clock, solver=self.solver, noise=down.noise, save=down.save, callback=watch)
        except NotFiniteError as error:
            raise error.seen(t=float(down.sde.time(problem.parameter(error.t)))) from None
        xs = solution.xs
        if xs is not None:
            xs = xs * broadcast(problem.scale(grid), xs)
        return replace(solution, x=solution.x * problem.scale(down.span[1]), xs=xs, ts=times)

    def knots(self, sde: AbstractDiffusion, span: Span) -> Tensor:
        """`clock_knots`; where eta is a function of l the time is l, and they are at most log 2 apart."""
        if callable(self.eta):
            return uniform(*span, math.ceil((span[1] - span[0]) / math.log(2)))
        if not self.eta:
            raise ValueError("a method without noise reads no Brownian path; leave out noise='path', or give eta > 0")
        return clock_knots(self.eta, span)


@dataclass(frozen=True, eq=False)
class InTime(AbstractMethod):
    """A solver in the diffusion's own time, on dx = [f - (1 + eta^2)/2 g^2 s] dt + eta g dW.

    Arguments:
        solver: any, such as `EulerMaruyama()` or `PredictorCorrector(ReverseDiffusion(), Langevin(snr=0.16, steps=2))`.
        eta: the noise level: 1 the reverse SDE, 0 the probability flow.
        steps, grid: how many and where, unless `sample` says otherwise.

    References:
        Song et al. 2021, arXiv 2011.13456, section 4.
    """

    solver: AbstractSolver
    eta: float = 1.0
    steps: int = field(default=1000, kw_only=True)
    grid: AbstractGrid = field(default=Native(), kw_only=True)

    def run(self, down: Descent) -> Solution:
        problem = ReverseSDE(down.sde, lambda t, x: down.model.score(t, x, down.sde), self.eta)
        grid = torch.as_tensor(down.sde.time(self.points(down)))
        return solve(problem, down.x, grid, solver=self.solver, noise=down.noise, save=down.save, callback=down.callback)

    def knots(self, sde: AbstractDiffusion, span: Span) -> Tensor:
        """Sixteen, spaced as the steps are, which may be much smaller at one end than at the other."""
        if self.solver.normals or not self.eta:
            raise ValueError(
                "one Brownian path is for eta > 0 and solvers that draw nothing else; without noise there is none, and a "
                "corrector draws anew on each grid: leave out noise='path'"
            )
        return torch.as_tensor(sde.time(Native().points(sde, span, 16))).flip(0)
