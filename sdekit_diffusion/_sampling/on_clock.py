"""Solvers on the clock of the signal-to-noise ratio, where the linear part is exact."""

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from sdekit import (
    AbstractClocked,
    AbstractMultistep,
    AbstractSolver,
    did_you_mean,
    uniform,
)
from sdekit.elementary import scaled
from sdekit_diffusion._arguments.immutable import is_immutable
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.clock import (
    Integrand,
    Plans,
    checked_eta,
    clock_knots,
    on_clock,
    piecewise_on_clock,
    require_distinct,
)
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.default import RULES, WITH_NOISE, default_choice
from sdekit_diffusion._sampling.focused import Focused
from sdekit_diffusion._sampling.grid import AbstractGrid
from sdekit_diffusion._sampling.method import ReverseProblem
from sdekit_diffusion._sampling.on_grid import AbstractGridMethod, Transformed


def require_clock(problem: ReverseProblem, start: float, stop: float) -> None:
    """Refuses a clock that overflows or underflows in the dtype of the states; start and stop are
    its logarithm at the ends.

    At the clean end the weights and variances are proportional to the clock; at the noisy end y is
    proportional to its square root.

    Raises:
        ValueError: with what to change.
    """
    dtype = problem.u.dtype
    if max(stop, -0.5 * start) > math.log(torch.finfo(dtype).max / 10):
        wider = ", or dtype=torch.float64" if dtype != torch.float64 else ""
        raise ValueError(
            f"at this eta the clock (alpha / sigma)^(2 eta^2) runs from e^{start:.0f} to "
            f"e^{stop:.0f}, which {dtype} does not hold; take a smaller eta or a larger end{wider}"
        )


EtaConvention = Literal["sde", "k-diffusion"]
_CONVENTIONS = get_args(EtaConvention)
_INTEGRANDS = (*get_args(Integrand), "model")


_CACHE_SIZE = 32  # clocks whose plans are kept
_PLANS_OF_A_CLOCK = 64  # the times and the plans of grids
_MOST_STEPS = 2000  # of these grids
_PLANS: dict[Hashable, Plans] = {}


def _plans(coordinates: Coordinates, eta: float, integrand: Integrand, steps: int) -> Plans:
    """The times of grids on one clock and the plans of multistep rules, kept for later calls."""
    if steps > _MOST_STEPS or not is_immutable(coordinates.sde):
        return {}
    key = coordinates.sde, coordinates.std, coordinates.extent, eta, integrand
    plans = _PLANS.setdefault(key, {})
    for cache, most in ((_PLANS, _CACHE_SIZE), (plans, _PLANS_OF_A_CLOCK)):
        if len(cache) > most:
            cache.clear()
    return plans


def _times(
    equation: AbstractClocked, eta: float, ls: Sequence[float], plans: Plans
) -> Sequence[float]:
    """The times at the points ls of a grid on a clock.

    Raises:
        ValueError: where they are equal.
    """
    key = "times", *ls
    times = plans.get(key)
    if times is None:
        grid = torch.tensor(ls, dtype=torch.float64, device="cpu")
        times = tuple(torch.as_tensor(equation.time(grid)).tolist())
        if eta:
            require_distinct(eta, times)
        plans[key] = times
    return times


def _shifted(eta: Callable[[float], float], coordinates: Coordinates) -> Callable[[float], float]:
    """eta, a function of log(alpha / sigma), as a function of the l of the coordinates."""
    shift = math.log(coordinates.std)
    return lambda l: eta(l - shift)


class DefaultGrid(Focused):
    """`Focused` where no grid was given: the one in place of which a fitted sampler is taken, as
    long as all its arguments are None.
    """

    @property
    def is_plain(self) -> bool:
        """Whether all arguments are None."""
        given = (self.share, self.reach, self.sharpness, self.native_share)
        return given == (None, None, None, None)

    def __repr__(self) -> str:
        return repr(Focused(self.share, self.reach, self.sharpness, native_share=self.native_share))


@dataclass(frozen=True, eq=False)
class OnClock(AbstractGridMethod):
    """A solver on the clock of the signal-to-noise ratio, where the linear part is exact.

    Arguments:
        solver: `AdamsMoulton(k)` or `AdamsBashforth(k)`, whose weights are then exponential
            integrals of a polynomial in the variable in which the denoiser is smooth.
            `AdamsBashforth(1)` is DDIM for eta = 0 and the integrand "data" or "noise", and DDPM's
            ancestral sampler for eta = 1. Any other solver takes the clock as its time. None
            chooses by the number of steps, see `rule`.
        eta: the noise level: 0 for the probability flow, 1 for the reverse SDE. Or a function of
            l = log(alpha / sigma), such as `lambda l: float(-2 < l < 3)`, which each step evaluates
            in its middle; it needs a solver with planned weights, such as `AdamsBashforth`.
        convention: what eta means. "sde": dx = [f - (1 + eta^2)/2 g^2 s] dt + eta g dW, so that the
            noise of a step of length h in l, to the noise level sigma_1, has the variance
            sigma_1^2 (1 - e^{-2 eta^2 h}). "k-diffusion": as in its SDE samplers, such as
            `sample_dpmpp_2m_sde`, where this variance is sigma_1^2 (1 - e^{-2 eta h}): this eta is
            the square of the other. The eta of DDIM and of k-diffusion's ancestral samplers has a
            third meaning; see `DDIM`.
        integrand: the prediction that rules approximate by a polynomial: "data", the denoiser D;
            or, for eta = 0, "noise", eps, "velocity", v = a eps - b D with a and b the normalised
            alpha and sigma, a^2 + b^2 = 1, or "model", which chooses by the model, see `rule`.
        steps, grid: the number of steps and their grid, unless `sample` receives others.

    Raises:
        TypeError: for a solver that is not an object, such as a name, or an eta that is not a
            number.
        ValueError: for a negative eta, an unknown convention, a solver that does not support the
            noise or an eta that is a function of l, or an integrand other than "data" with noise;
            in `sample`, where the clock overflows in the dtype.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.OnClock(sdekit.AdamsBashforth(2), eta=1.0)
        >>> sd.sample(model, 4, sde="vp", method=method, steps=20, seed=0).shape
        torch.Size([4, 1])
    """

    solver: AbstractSolver | None = None
    eta: float | Callable[[float], float] = 0.0
    integrand: Integrand | Literal["model"] = "data"
    convention: EtaConvention = field(default="sde", kw_only=True)
    steps: int = field(default=100, kw_only=True)
    grid: AbstractGrid = field(default=DefaultGrid(), kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.solver, AbstractSolver | None):
            raise TypeError(
                "solver is an object such as AdamsMoulton(3), or None for the default, not "
                f"{self.solver!r}"
            )
        if self.convention not in _CONVENTIONS:
            raise ValueError(
                f"convention must be one of {', '.join(map(repr, _CONVENTIONS))}, not "
                f"{self.convention!r}{did_you_mean(self.convention, _CONVENTIONS)}"
            )
        if not callable(self.eta):
            object.__setattr__(self, "eta", checked_eta(self.eta))
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
        if self.integrand not in _INTEGRANDS or (self.integrand != "data" and self.eta):
            raise ValueError(
                "integrand must be 'data', or for eta = 0 'noise', 'velocity' or 'model'; not "
                f"{self.integrand!r} for eta = {self.eta}: with noise take integrand='data', or "
                "the method 'sde'"
            )

    @property
    def noise_level(self) -> float | Callable[[float], float]:
        """eta in the convention "sde"."""
        eta = self.eta
        if self.convention == "sde":
            return eta
        return (lambda l: math.sqrt(checked_eta(eta(l)))) if callable(eta) else math.sqrt(eta)

    @property
    def rule(self) -> AbstractSolver:
        """The solver, or the default for this number of steps.

        The defaults are:

        - with noise: `AdamsMoulton(2, lower_final=True)`;
        - "data": `AdamsMoulton(3)`; "noise": `AdamsBashforth(2, variable="l")`;
        - "velocity": `AdamsBashforth(3)` below 7 steps, `AdamsMoulton(3)` with fewer values in the
          last steps below 25 steps, else `AdamsMoulton(4)`;
        - "model": those of "velocity" for exact scores without guidance. For networks and under
          guidance (`AbstractModel.learned`, `predicts_noise` and `stiffness`), which this property
          does not know, `run` takes those of the table on the page of samplers.

        On grids that do not follow the model (`follows_model`) the longer rules have larger errors
        or are unstable. There, where the stiffness is below 1, the velocity is integrated by
        `AdamsMoulton(3)`, and for networks that predict the noise by `AdamsMoulton(2)`.
        """
        if self.solver is not None:
            return self.solver
        if self.eta:
            return WITH_NOISE.rule
        if self.integrand in RULES:
            return RULES[self.integrand]
        return default_choice(self.grid, self.steps).rule

    def points(self, problem: ReverseProblem) -> Tensor:
        grid = self.grid
        if isinstance(grid, Focused) and grid.reach is None and grid.native_share is None:
            grid = self._fitting(grid, problem.model)
        return grid.points(problem.coordinates, problem.span, self.steps)

    def _fitting(self, grid: Focused, model: AbstractModel) -> Focused:
        """The grid with what the choice for a model, or for noise and no given solver, has and the
        caller does not give; with an infinite reach where the integrand is the noise.
        """
        if self.integrand == "noise":
            return replace(grid, reach=math.inf)
        chosen_with_noise = bool(self.eta) and self.solver is None
        if self.integrand != "model" and not chosen_with_noise:
            return grid
        choice = WITH_NOISE if self.eta else default_choice(self.grid, self.steps, model)
        return choice.on(grid, math.prod(model.shape or ()))

    def _choice(self, model: AbstractModel) -> tuple[Integrand, AbstractSolver]:
        """The integrand and the rule for a model."""
        if self.integrand != "model":
            return self.integrand, self.rule
        choice = default_choice(self.grid, self.steps, model)
        return choice.integrand, self.solver or choice.rule

    def transformed(self, problem: ReverseProblem, grid: Tensor) -> Transformed:
        integrand, rule = self._choice(problem.model)
        eta = self.noise_level
        coordinates = problem.coordinates
        ls = grid.tolist()
        if callable(eta):
            in_coordinates = _shifted(eta, coordinates)
            equation = piecewise_on_clock(problem.model, in_coordinates, grid, coordinates.time)
            require_clock(problem, equation.log_q[0], equation.log_q[-1])
            times = torch.as_tensor(equation.time(grid)).tolist()
        else:
            plans = _plans(coordinates, eta, integrand, len(ls) - 1)
            equation = on_clock(problem.model, eta, integrand, coordinates.time, plans)
            require_clock(problem, *(2 * eta**2 * l for l in problem.span))
            times = _times(equation, eta, ls, plans)
        if self.grid.denoises and isinstance(rule, AbstractMultistep):
            rule = replace(rule, steps_after=1)
        return Transformed(
            equation,
            rule,
            times,
            lambda i, u: u if (scale := equation.scale(ls[i])) == 1 else u / scale,
            lambda i, y: y if (scale := equation.scale(ls[i])) == 1 else scaled(scale, y),
            lambda t: float(equation.parameter(t)),
        )

    def knots(self, coordinates: Coordinates, span: Span) -> Tensor:
        """Knots in l that are uniform, at most log 2 apart, if eta is a function of l; else
        `clock_knots`.

        Raises:
            ValueError: for eta = 0, a method without noise.
        """
        eta = self.noise_level
        if callable(eta):
            return uniform(*span, math.ceil((span[1] - span[0]) / math.log(2)))
        if not eta:
            raise ValueError(
                "a method without noise reads no Brownian path; leave out noise='path', or give "
                "eta > 0"
            )
        return clock_knots(eta, span)


@dataclass(frozen=True, eq=False)
class AbstractOnClock(AbstractGridMethod):
    """A method that is a solver on the clock; a subclass defines `on_clock`."""

    @abstractmethod
    def on_clock(self, problem: ReverseProblem) -> OnClock:
        """The solver with its clock, for a problem."""

    def points(self, problem: ReverseProblem) -> Tensor:
        return self.on_clock(problem).points(problem)

    def transformed(self, problem: ReverseProblem, grid: Tensor) -> Transformed:
        return self.on_clock(problem).transformed(problem, grid)
