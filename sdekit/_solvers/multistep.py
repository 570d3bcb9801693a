"""Multistep methods: rules for the weights, in time or on a clock."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cache
from operator import attrgetter
from types import MappingProxyType
from typing import ClassVar, Literal, Self, get_args

import numpy as np

from sdekit._arguments.names import did_you_mean
from sdekit._arguments.numbers import require_whole
from sdekit._equations.computed import computed
from sdekit._equations.quadrature import Panels
from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._solvers.contract import Order
from sdekit._solvers.planned import AbstractPlanned, Row, in_units, units_of
from sdekit.calling import require_bools

Variable = Literal["l", "smooth"]


@dataclass(frozen=True, eq=False)
class AbstractMultistep(AbstractPlanned):
    """A multistep method: x_1 = x_0 + sum_j w_j f_j + g((t_0 + t_1)/2) dW, with f_j the drifts at
    the last k times.

    A subclass defines `rule`, which computes the weights from the times, and `accuracy`, the order
    for each k. If its `corrects` is True, f is evaluated at the predicted x_1, and the same rule is
    applied again with this value as well. That still costs one evaluation per step, because the
    next step uses the value too. The last step is not corrected. In the first steps fewer than k
    values are available.

    Arguments:
        k: the number of values that a prediction uses.
        lower_final: whether the last steps use at most as many values as there are steps left, as
            some samplers do because their last step is infinite in log(alpha / sigma). This limits
            the order to two. A number n means: only in solves of fewer than n steps.
        steps_after: the number of steps that the caller takes after those of the grid; lower_final
            counts them. It is 1 if a sampler ends with a step to the denoised state.
        self_starting: whether the first step evaluates f more often, if the order needs it. If f
            hardly changes at first, as at the noisy end of a diffusion, more steps are a better use
            of these evaluations.

    Raises:
        TypeError: for a k that is not a whole number, or a self_starting that is neither True nor
            False.
        ValueError: for a k that is not in `accuracy`, a name that is not in `choices`, or a
            lower_final that is neither a bool nor a number of steps, 2 or larger.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Adams(sdekit.AbstractMultistep):  # a polynomial in t, integrated exactly
        ...     accuracy = {1: 1, 2: 2, 3: 2}  # k to the order
        ...     def rule(self, panels):
        ...         return panels.exact()
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 50)
        >>> x = sdekit.solve(ode, torch.ones(1, 1).double(), ts, solver=Adams(2)).x
        >>> round(float(x), 3)  # e^-1
        0.368
    """

    accuracy: ClassVar[Mapping[int, int]]  # k to the order without noise, as measured
    corrects: ClassVar[bool] = False
    # k to the number of values that the first step computes, without noise.
    starting: ClassVar[Mapping[int, int]] = {}
    # The names that further arguments may have.
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    k: int = 3
    lower_final: bool | int = field(default=False, kw_only=True)
    steps_after: int = field(default=0, kw_only=True)
    self_starting: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        require_whole(f"k of {type(self).__name__}", self.k)
        if self.k not in self.accuracy:
            raise ValueError(
                f"{type(self).__name__} is offered for k in {', '.join(map(str, self.accuracy))}, "
                f"not {self.k}"
            )
        require_bools(self_starting=self.self_starting)
        is_count = isinstance(self.lower_final, int) and self.lower_final >= 2
        if not isinstance(self.lower_final, bool) and not is_count:
            raise ValueError(
                "lower_final is True, False, or a whole number from 2 on, which means True for "
                f"fewer steps than that; not {self.lower_final!r}"
            )
        for name, allowed in self.choices.items():
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                suggestion = did_you_mean(value, allowed)
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}"
                    f"{suggestion}"
                )

    @computed
    def order(self) -> Mapping[NoiseType, Order]:
        return _orders(min(self.accuracy[self.k], self._limited_order))

    @property
    def _limited_order(self) -> int:
        """The largest order that the first and the last steps allow: their errors, made once, may
        be of one order less.
        """
        if self.lower_final is True:
            return 2
        return max(2 + self.corrects, self.starting.get(self.k, 1) + 1 if self.self_starting else 0)

    @abstractmethod
    def rule(self, panels: Panels) -> np.ndarray:
        """The weights of the values at panels.nodes, the newest first, `(steps, k)`, in units of
        A(stop), as those of `Panels.exact`.
        """

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        settings = _settings_of(type(self))(self)
        if problem.plans is None or not _is_hashed_by_value(settings):
            return replace(self, planned=self._compute_plan(problem, ts))
        key = type(self), settings, problem.noise_type, tuple(ts), tuple(units_of(problem, ts))
        plan = problem.plans.get(key)  # which another thread may empty
        if plan is None:
            plan = replace(self, planned=self._compute_plan(problem, ts))
            problem.plans[key] = plan
        return plan

    def _compute_plan(self, problem: AbstractSDE, ts: Sequence[float]) -> dict[float, Row]:
        """The steps of a grid by their t_0."""
        grid = np.asarray(ts)
        steps = np.arange(len(ts) - 1)
        start = (
            self.starting.get(self.k, 1)
            if problem.noise_type == "none" and self.self_starting
            else 1
        )
        # The times of the values, and the index of the newest value at the start of each step.
        points = grid
        newest = steps
        if start == 3:
            points = np.insert(grid, 1, 0.5 * (grid[0] + grid[1]))
            newest = np.where(steps > 0, steps + 1, 0)
        sizes = np.minimum(self.k, newest + 1)
        count = len(steps) + self.steps_after
        if self.lower_final is True or count < self.lower_final:
            sizes = np.minimum(sizes, count - steps)
        nodes = points[np.maximum(newest[:, None] - np.arange(self.k), 0)]
        weights, corrections = self._weights(problem, grid, nodes, sizes)
        if self.corrects:
            rows = _corrected_rows(weights, corrections, sizes, first=1 if start == 1 else 2)
        else:
            rows = [
                Row(False, (), tuple(row[:size]), tuple(range(min(self.k - 1, size))))
                for row, size in zip(weights.tolist(), sizes, strict=True)
            ]
        if start > 1:
            rows[0] = self._first_step(problem, points[: start - 1].tolist(), ts[1])
        rows[-1] = rows[-1]._replace(kept_slopes=(), correction=())
        return dict(zip(ts[:-1], in_units(rows, units_of(problem, ts)), strict=True))

    def _weights(
        self, problem: AbstractSDE, grid: np.ndarray, nodes: np.ndarray, sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The weights of the predictions, and those of the corrections to be added to them, which
        begin with the value at the end of a step; `(steps, k + 1)`.

        Arguments:
            nodes: the times of the values before each step, `(steps, k)`.
            sizes: how many of them there are.
        """
        weights = np.zeros((len(sizes), self.k + 1))
        corrections = np.zeros_like(weights)
        for size in np.unique(sizes).tolist():
            steps = np.flatnonzero(sizes == size)
            ends = grid[steps], grid[steps + 1]
            before = nodes[steps, :size]
            predicted = problem.quadrature(self.rule, before, *ends)
            weights[steps, :size] = predicted
            if self.corrects:
                values = np.column_stack([ends[1], before])
                corrections[steps, : size + 1] = problem.quadrature(self.rule, values, *ends)
                corrections[steps, 1 : size + 1] -= predicted
        return weights, corrections

    def _first_step(self, problem: AbstractSDE, starts: Sequence[float], end: float) -> Row:
        """The first step as a Runge-Kutta method: its error, made once, must fall as fast as the
        sum of all later ones.

        With t_0 alone the value at the end is predicted and the step corrected: an error of h^3.
        With the middle m as well, m, the end and m again are predicted, each with all values so
        far: an error of h^4.
        """

        def weights_over(stop: float, *nodes: float) -> tuple[float, ...]:
            ends = np.array([starts[0]]), np.array([stop])
            return tuple(problem.quadrature(self.rule, np.array([nodes]), *ends)[0].tolist())

        t0, *middle = starts
        if not middle:
            return Row(False, ((end, weights_over(end, t0)),), weights_over(end, end, t0), (1,))
        m = middle[0]
        stages = (
            (m, weights_over(m, t0)),
            (end, weights_over(end, m, t0)),
            (m, weights_over(m, end, m, t0)),
        )
        weight_m, weight_end, weight_0 = weights_over(end, m, end, t0)
        return Row(
            False,
            stages,
            (weight_m, weight_end, 0.0, weight_0),
            (1, 0, 3) if self.corrects else (0, 3),
        )


@cache
def _orders(p: int) -> Mapping[NoiseType, Order]:
    """The orders of a rule that has order p without noise."""
    return MappingProxyType({"none": Order(p, p), "additive": Order(1, min(p, 2))})


def _corrected_rows(
    weights: np.ndarray, corrections: np.ndarray, sizes: np.ndarray, first: int
) -> list[Row]:
    """The steps of a predictor-corrector; from the first on, each adds the correction of the one
    before.
    """
    counts = sizes.copy()
    counts[first:] = sizes[first - 1 : -1] + 1
    weights[first:] += corrections[first - 1 : -1]
    parts = zip(weights.tolist(), counts, corrections.tolist(), sizes + 1, strict=True)
    return [
        Row(i > 0, (), tuple(row[:count]), tuple(range(size)), tuple(correction[:size]))
        for i, (row, count, correction, size) in enumerate(parts)
    ]


@cache
def _settings_of(kind: type[AbstractMultistep]) -> Callable[[AbstractMultistep], object]:
    """The function that returns the fields of a rule of this class, all but the plan."""
    return attrgetter(*[part.name for part in fields(kind) if part.name != "planned"])


def _is_hashed_by_value(value: object) -> bool:
    """Whether a value is immutable, so that its hash identifies it: a number, a string, or a tuple
    of them. Tensors, arrays and lists are not, because they may be changed in place.
    """
    if isinstance(value, tuple):
        return {*map(type, value)} <= _SIMPLE_TYPES or all(map(_is_hashed_by_value, value))
    return value is None or isinstance(value, bool | int | float | complex | str | Enum)


_SIMPLE_TYPES = {bool, int, float, str}  # a tuple of only these is found without recursion


@dataclass(frozen=True, eq=False)
class AbstractAdams(AbstractMultistep, ABC):
    """Rules that integrate the interpolant exactly; it is a polynomial in a chosen variable.

    Arguments:
        variable: "smooth", the variable `smooth` of a `Clocked` problem, or "l", its parameter; for
            other problems both are t.
    """

    choices = {"variable": get_args(Variable)}
    variable: Variable = field(default="smooth", kw_only=True)

    def rule(self, panels: Panels) -> np.ndarray:
        return panels.exact(panels.smooth) if self.variable == "smooth" else panels.exact()


@dataclass(frozen=True, eq=False)
class AdamsBashforth(AbstractAdams):
    """The Adams-Bashforth method: x_1 = x_0 + the integral over [t_0, t_1] of the polynomial
    through the last k values of f + g((t_0 + t_1)/2) dW.

    One evaluation per step. The polynomial is one in t; for a `Clocked` problem it is one in the
    parameter l or the variable `smooth` of the problem, and is integrated against its clock, which
    is an exponential integrator. Without noise the order is k: the first step evaluates f once more
    for k = 3 and three times more for k = 4, because the error of an Euler step would limit the
    order to two. With additive noise the strong order is one, and the weak order min(k, 2).

    Arguments:
        k: the number of values, 1 to 4.
        variable: the variable of the polynomial: "smooth", that of a `Clocked` problem, or "l", its
            parameter; for other problems both are t.
        lower_final, steps_after, self_starting: as in `AbstractMultistep`.

    Raises:
        ValueError: for another k or variable.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 20)
        >>> x = sdekit.solve(ode, torch.ones(1, 1).double(), ts, solver=sdekit.AdamsBashforth(4)).x
        >>> round(float(x), 4)  # e^-1 = 0.3679
        0.3679

    References:
        Hairer, Noersett and Wanner 1993, "Solving ordinary differential equations I",
        section III.1; with noise: Buckwar and Winkler 2006, "Multistep methods for SDEs and their
        application to problems with small noise".
    """

    accuracy = {1: 1, 2: 2, 3: 3, 4: 4}
    starting = {3: 2, 4: 3}


@dataclass(frozen=True, eq=False)
class AdamsMoulton(AbstractAdams):
    """The Adams-Bashforth-Moulton predictor-corrector: `AdamsBashforth(k)`, then the same with
    k + 1 values of f, of which the new one is that at the predicted x_1.

    One evaluation per step, and two more in a solve with k = 3 without noise; f is not evaluated
    again at the corrected point. Without noise the order is k + 1, but three for k = 4, whose first
    step has no further evaluations: k = 4 is for solves that begin where f hardly changes, as at
    the noisy end of a diffusion, and has order five there. With additive noise the strong order is
    one and the weak order two; predictor and corrector use the same dW. On the clock of a
    diffusion's reverse equation this is SA-Solver.

    Arguments:
        k: the number of values of the predictor, 1 to 4.
        variable: the variable of the polynomial: "smooth", that of a `Clocked` problem, or "l", its
            parameter; for other problems both are t.
        lower_final, steps_after, self_starting: as in `AbstractMultistep`.

    Raises:
        ValueError: for another k or variable.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> ts = sdekit.uniform(0.0, 1.0, 20)
        >>> x = sdekit.solve(ode, torch.ones(1, 1).double(), ts, solver=sdekit.AdamsMoulton(3)).x
        >>> round(float(x), 4)  # e^-1 = 0.3679
        0.3679

    References:
        Hairer, Noersett and Wanner 1993, section III.1; Xue et al. 2023, arXiv 2309.05019, with
        noise.
    """

    accuracy = {1: 2, 2: 3, 3: 4, 4: 5}
    corrects = True
    starting = {3: 3}
