"""EDM's stochastic sampler: new noise, then a deterministic step, on the clock sigma / alpha."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

from torch import Tensor

from sdekit import (
    AbstractSDE,
    AbstractSolver,
    Increment,
    Order,
    Step,
    computed,
    did_you_mean,
)
from sdekit.elementary import Time, axpy
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._sampling.grid import AbstractGrid
from sdekit_diffusion._sampling.method import ReverseProblem
from sdekit_diffusion._sampling.on_clock import AbstractOnClock, OnClock
from sdekit_diffusion._sampling.published_grids import UniformInLogSNR

Rule = Literal["heun", "euler", "dpm_2"]


@dataclass(frozen=True, eq=False)
class Churn(AbstractSolver):
    """x^ = x_0 + s_noise sqrt(t^2 - t_0^2) z with t = (1 + gamma) t_0, then a step of a rule from
    x^ at t to t_1: of Heun, of Euler, or of DPM-Solver-2, whose stage is at sqrt(t t_1).

    gamma = min(s_churn / N, sqrt(2) - 1) where s_tmin <= t_0 <= s_tmax, else 0, for N steps, which
    include the `steps_after` the grid; t is at most `largest`. Time is the standard deviation of
    the noise in x, and decreases. Two evaluations per step and order two, for Euler's one and order
    one; with noise this is the order of the law.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    largest: float = math.inf
    rule: Rule = "heun"
    steps_after: int = 0
    gamma: float = 0.0

    @computed
    def order(self) -> Mapping[Any, Order]:
        p = 1 if self.rule == "euler" else 2
        return {"none": Order(p, p)}

    @computed
    def normals(self) -> int:
        return 1 if self.s_churn else 0

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        count = len(ts) - 1 + self.steps_after
        return replace(self, gamma=min(self.s_churn / count, math.sqrt(2) - 1))

    def stage_times(self, problem: AbstractSDE, ts: Sequence[float]) -> Sequence[float]:
        planned = self.plan(problem, ts)
        raised = [planned._raised(t) for t in ts[:-1]]
        if self.rule != "dpm_2":
            return raised
        return [*raised, *(math.sqrt(t * t1) for t, t1 in zip(raised, ts[1:], strict=True))]

    def _raised(self, t0: float) -> float:
        """t after the new noise of a step from t_0."""
        churns = self.gamma and self.s_tmin <= t0 <= self.s_tmax
        return min((1 + self.gamma) * t0, self.largest) if churns else t0

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: object
    ) -> Step:
        assert isinstance(t0, float), "churn lives on fixed grids"
        assert isinstance(t1, float)
        t = self._raised(t0)
        if t != t0:
            assert noise.z is not None
            x = axpy(self.s_noise * math.sqrt(max(0.0, t**2 - t0**2)), noise.z[0], x)
        if self.rule == "euler":
            return Step(problem.drift_at(t)(x, t1 - t, x))
        if self.rule == "dpm_2":
            middle = math.sqrt(t * t1)
            stage = problem.drift_at(t)(x, middle - t, x)
            return Step(problem.drift_at(middle)(stage, t1 - t, x))
        end = problem.drift_at(t)(x, t1 - t, x)
        return Step(problem.drift_at(t1)(end, 0.5 * (t1 - t), 0.5 * (x + end)))


@dataclass(frozen=True, eq=False)
class EDM(AbstractOnClock):
    """The stochastic sampler of EDM: each step adds new noise, then solves the probability flow in
    sigma / alpha by one step of a rule.

    A step from y_0 at t_0 to t_1, with t = sigma / alpha and y = x / alpha, is

        t = (1 + gamma) t_0,  y^ = y_0 + s_noise sqrt(t^2 - t_0^2) z,
        then a step of dy = eps dt from y^ at t to t_1,

    where gamma = min(s_churn / N, sqrt(2) - 1) if s_tmin <= t_0 <= s_tmax, else 0, for N steps.
    Unlike in the paper, t never exceeds its value at the noisy end of the diffusion, beyond which
    models may not be trained: a first step from there adds no noise. The step to D(x) after noise
    levels that end in 0 adds none either, but counts in N. By default steps are uniform in log(t).
    For s_noise = 1 the law converges with the order of the rule; larger values compensate for the
    noise that networks remove in excess. s_churn = 0 is the rule without noise.

    Arguments:
        s_churn: the amount of noise over all steps; 0 for none.
        s_tmin, s_tmax: the range of sigma / alpha in which noise is added.
        s_noise: the standard deviation of the added noise over sqrt(t^2 - t_0^2).
        rule: "heun" as published, of order two; "dpm_2", the midpoint in log(t), of order two;
            "euler", of order one. Their steps are those of `sample_heun`, `sample_dpm_2` and
            `sample_euler` of k-diffusion. Two evaluations per step, or one with "euler".
        steps, grid: N and the grid, unless `sample` receives others.

    Raises:
        TypeError: for amounts or levels of noise that are not numbers.
        ValueError: for a negative s_churn, s_tmin or s_noise, s_tmin > s_tmax, or another rule.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.EDM(s_churn=10.0, s_noise=1.003)
        >>> sd.sample(model, 4, sde="edm", method=method, steps=20, seed=0).shape
        torch.Size([4, 1])

    References:
        Karras et al. 2022, arXiv 2206.00364, algorithm 2.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    rule: Rule = "heun"
    steps: int = field(default=50, kw_only=True)
    grid: AbstractGrid = field(default=UniformInLogSNR(), kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "s_churn", "s_tmin", "s_tmax", "s_noise")
        if not (
            0 <= self.s_churn < math.inf
            and 0 <= self.s_tmin <= self.s_tmax
            and 0 <= self.s_noise < math.inf
        ):
            values = f"{self.s_churn}, {self.s_tmin}, {self.s_tmax} and {self.s_noise}"
            raise ValueError(
                f"EDM needs s_churn >= 0, 0 <= s_tmin <= s_tmax and s_noise >= 0, not {values}"
            )

        if self.rule not in get_args(Rule):
            raise ValueError(
                f"rule must be one of {', '.join(map(repr, get_args(Rule)))}, not {self.rule!r}"
                f"{did_you_mean(self.rule, get_args(Rule))}"
            )

    def on_clock(self, problem: ReverseProblem) -> OnClock:
        std = problem.coordinates.std
        largest = math.exp(-problem.coordinates.start(problem.model)[0])
        after = int(self.grid.denoises)
        solver = Churn(
            self.s_churn,
            self.s_tmin / std,
            self.s_tmax / std,
            self.s_noise,
            largest,
            self.rule,
            after,
        )
        return OnClock(solver, integrand="noise", steps=self.steps, grid=self.grid)
