"""Sampling methods: an equation for reverse time, a solver for it, and a grid. Each named sampler is a line of a table."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sdekit import (
    ODE,
    AbstractSolver,
    AdamsBashforth,
    Clocked,
    EulerMaruyama,
    Langevin,
    NotFiniteError,
    Point,
    PredictorCorrector,
    ReverseSDE,
    Solution,
    WhiteNoise,
    interop,
    solve,
    uniform,
)
from sdekit.elementary import Time, broadcast, exp, sqrt
from sdekit_diffusion._diffusion import AbstractDiffusion
from sdekit_diffusion._model import AbstractModel


def on_clock(model: AbstractModel, sde: AbstractDiffusion, eta: float = 0.0) -> Clocked:
    """The reverse equation of noise level eta without its linear part.

    y = x e^{eta^2 l} / sigma,  dy = D d e^{(1 + eta^2) l} + dB_Q,  Q = e^{2 eta^2 l}, with l = log(alpha / sigma).

    References:
        Zhang and Chen 2023, arXiv 2204.13902; Lu et al. 2022, arXiv 2211.01095, for eta = 0 and 1.
    """

    def denoised(l: Time, x: Tensor) -> Tensor:
        return model.denoise(sde.time(l), x, sde)

    def scale(l: Time) -> Time:
        return sde.sigma(sde.time(l)) * exp(-(eta**2) * l)

    return Clocked(denoised, scale, a=1 + eta**2, q=2 * eta**2)


def standardised(model: AbstractModel, sde: AbstractDiffusion) -> tuple[ODE, Callable[[float], float]]:
    """The probability flow in l = log(alpha / sigma) for w = x / r with r^2 = alpha^2 s^2 + sigma^2, s the data's deviation.

    dw/dl = (alpha / r) (D - alpha s^2 x / r^2): the denoiser less that of a Gaussian of deviation s, so that the right-hand
    side vanishes where the data are such. Returns the equation and r as a function of l.
    """
    s = model.data_std

    def kernel(l: Time) -> tuple[Time, Time, Time]:
        t = sde.time(l)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return t, alpha, sqrt((alpha * s) ** 2 + sigma * sigma)

    def slope(l: Tensor, w: Tensor) -> Tensor:
        t, alpha, r = kernel(float(l))
        return (alpha / r) * (model.denoise(t, w * r, sde) - w * (alpha * s * s / r))

    return ODE(slope), lambda l: float(kernel(l)[2])


@dataclass(frozen=True, eq=False)
class AbstractMethod(ABC):
    """A way from x at the noisy end of a span of l = log(alpha / sigma) to x at its clean end."""

    steps: int = field(default=0, kw_only=True)

    @abstractmethod
    def run(
        self,
        model: AbstractModel,
        sde: AbstractDiffusion,
        x: Tensor,
        span: tuple[float, float],
        noise: WhiteNoise,
        *,
        save: bool,
        callback: Callable[[Point], None] | None,
    ) -> Solution:
        """The solution in x; its grid and the points given to the callback are in the diffusion's own time."""


@dataclass(frozen=True, eq=False)
class OnClock(AbstractMethod):
    """A solver on the clock of the signal-to-noise ratio, where the linear part is exact; steps uniform in log(alpha / sigma).

    Arguments:
        solver: `AdamsBashforth(k)`, whose weights are then exponential integrals; k = 1 is DDIM for eta = 0 and DDPM's
            ancestral sampler for eta = 1. Or any other solver, on the clock as its time.
        eta: the noise level: 0 the probability flow, 1 the reverse SDE.
        steps: how many, unless `sample` says otherwise.
    """

    solver: AbstractSolver = field(default_factory=AdamsBashforth)
    eta: float = 0.0
    steps: int = field(default=99, kw_only=True)  # 100 evaluations: the first step of three values takes two

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be a number from 0 (probability flow) on, 1 being the reverse SDE; not {self.eta}")

    def run(
        self,
        model: AbstractModel,
        sde: AbstractDiffusion,
        x: Tensor,
        span: tuple[float, float],
        noise: WhiteNoise,
        *,
        save: bool,
        callback: Callable[[Point], None] | None,
    ) -> Solution:
        problem = on_clock(model, sde, self.eta)
        grid = uniform(*span, self.steps)
        needed = noise if self.eta or self.solver.normals else None
        times = torch.as_tensor(sde.time(grid))

        def report(point: Point) -> None:
            assert callback is not None
            callback(Point(point.step, float(times[point.step]), problem.physical(point.t, point.x)))

        y = x / problem.scale(span[0])
        clock = torch.as_tensor(problem.time(grid))
        try:
            solution = solve(
                problem,
                y,
                clock,
                solver=self.solver,
                noise=needed,
                save="all" if save else "last",
                callback=callback and report,
            )
        except NotFiniteError as error:
            raise error.seen(t=float(sde.time(problem.parameter(error.t)))) from None
        xs = solution.xs
        if xs is not None:
            xs = xs * broadcast(problem.scale(grid), xs)
        return replace(solution, x=solution.x * problem.scale(span[1]), xs=xs, ts=times)


@dataclass(frozen=True, eq=False)
class InTime(AbstractMethod):
    """A solver in the diffusion's own time, on dx = [f - (1 + eta^2)/2 g^2 s] dt + eta g dW; steps uniform in t.

    Arguments:
        solver: any, such as `EulerMaruyama()` or `PredictorCorrector(EulerMaruyama(), Langevin(snr=0.16))`.
        eta: the noise level: 1 the reverse SDE, 0 the probability flow.
        steps: how many, unless `sample` says otherwise.

    References:
        Song et al. 2021, arXiv 2011.13456, section 4.
    """

    solver: AbstractSolver
    eta: float = 1.0
    steps: int = field(default=1000, kw_only=True)

    def run(
        self,
        model: AbstractModel,
        sde: AbstractDiffusion,
        x: Tensor,
        span: tuple[float, float],
        noise: WhiteNoise,
        *,
        save: bool,
        callback: Callable[[Point], None] | None,
    ) -> Solution:
        problem = ReverseSDE(sde, lambda t, x: model.score(t, x, sde), self.eta)
        grid = uniform(float(sde.time(span[0])), float(sde.time(span[1])), self.steps)
        needed = noise if self.eta or self.solver.normals else None
        return solve(problem, x, grid, solver=self.solver, noise=needed, save="all" if save else "last", callback=callback)


@dataclass(frozen=True, eq=False)
class AdaptiveFlow(AbstractMethod):
    """The probability flow with steps chosen by torchdiffeq, the same for the whole batch.

    A sample then depends on its batch to within the tolerance; with the other methods it does not at all.

    Arguments:
        rtol, atol: the tolerances, in units of x.
        engine: an adaptive method of torchdiffeq.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    engine: str = "dopri5"

    def run(
        self,
        model: AbstractModel,
        sde: AbstractDiffusion,
        x: Tensor,
        span: tuple[float, float],
        noise: WhiteNoise,
        *,
        save: bool,
        callback: Callable[[Point], None] | None,
    ) -> Solution:
        if self.steps or save:
            raise ValueError("an adaptive method chooses its own steps: leave steps out and save='last', or set rtol and atol")
        flow, r = standardised(model, sde)
        w, ls = x / r(span[0]), list(span)
        try:
            solution = interop.solve_ode(flow, w, ls, rtol=self.rtol, atol=self.atol, method=self.engine)
        except NotFiniteError as error:
            raise error.seen(t=float(sde.time(error.t))) from None
        end = solution.x * r(span[1])
        if callback is not None:
            for i, state in enumerate((x, end)):
                callback(Point(i, float(sde.time(span[i])), state))
        return replace(solution, x=end, ts=torch.as_tensor(sde.time(solution.ts)))


METHODS: dict[str, AbstractMethod] = {
    "default": OnClock(),
    "euler_maruyama": InTime(EulerMaruyama()),
    "pc": InTime(PredictorCorrector(EulerMaruyama(), Langevin(snr=0.16))),
    "ode": AdaptiveFlow(),
}


def method_of(given: AbstractMethod | AbstractSolver | str) -> AbstractMethod:
    """A method from its name or from a solver, which is then used in the diffusion's own time.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(given, AbstractMethod):
        return given
    if isinstance(given, AbstractSolver):
        return InTime(given, eta=1.0 if "additive" in given.order else 0.0)
    if given not in METHODS:
        raise ValueError(f"unknown method {given!r}; choose one of {', '.join(METHODS)}, or pass a solver or a method object")
    return METHODS[given]


def span_of(model: AbstractModel, sde: AbstractDiffusion, end: float) -> tuple[float, float]:
    """The range of l = log(alpha / sigma) that the model and the diffusion share, down to sigma / alpha = end.

    Raises:
        ValueError: when nothing is left of it.
    """
    if not end > 0:
        raise ValueError(f"end is sigma / alpha where the solve stops, a positive number such as 1e-3; not {end}")
    parts = [sde] if model.sde is None else [sde, model.sde]
    start = max(float(part.log_snr(1.0)) for part in parts)
    stop = min(-math.log(end), *(float(part.log_snr(0.0)) for part in parts), math.inf)
    if not start < stop:
        raise ValueError(
            f"nothing to solve: sigma / alpha runs from {math.exp(-start):.3g} to {math.exp(-stop):.3g} under {sde}"
            f"{'' if model.sde is None else f' with a model of {model.sde}'}; choose a smaller end or another diffusion"
        )
    return start, stop
