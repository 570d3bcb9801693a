"""An equation that counts its evaluations and detects in-place changes of its tensors."""

from collections import deque
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, TypeVar
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from sdekit._equations.computed import computed
from sdekit._equations.quadrature import Rule
from sdekit._equations.sde import AbstractSDE, NoiseType, SDEType, Slope, wrong_shape
from sdekit.calling import (
    changed_in_place,
    changes_in_place,
    checked_call,
    checked_output,
    has_no_version_counter,
    is_kept_leaf,
    may_be_inferring,
    overwritten,
    require_derivative,
)
from sdekit.elementary import Time

# The number of last results of a function that are checked: multistep rules remember up to four.
_CHECKED_RESULTS = 4
Result = TypeVar("Result")
_Results = deque[tuple[ref[Tensor], int]]  # with the version when it was returned


@dataclass(frozen=True, eq=False)
class Counted(AbstractSDE):
    """A problem that counts its evaluations and detects in-place changes of its tensors.

    `calls` has two counts: the calls of drift and score, and those of the diffusion. A drift or a
    diffusion that changes its input, or a tensor that it returned before, would invalidate what
    solvers remember. Torch's version counters reveal such changes, in the input and in the last
    results that are still referenced. Without version counters `copies` is true: both functions
    then receive and return copies.
    """

    problem: AbstractSDE
    copies: bool = False
    calls: list[int] = field(default_factory=lambda: [0, 0])
    returned: tuple[_Results, _Results] = field(
        default_factory=lambda: (deque(maxlen=_CHECKED_RESULTS), deque(maxlen=_CHECKED_RESULTS))
    )

    slopes: Mapping[float, Slope] = field(default_factory=dict)
    plans: MutableMapping[Hashable, Any] | None = None
    limits: tuple[Tensor, Tensor] | None = None  # of the times of each sample

    @staticmethod
    def of(problem: AbstractSDE, x: Tensor) -> "Counted":
        """A problem for states such as x."""
        return Counted(
            problem, has_no_version_counter(x), slopes=problem.slopes, plans=problem.plans
        )

    def limited(self, low: Tensor, high: Tensor) -> "Counted":
        """The problem, with the same counts, at times limited to [low, high], `(batch,)`."""
        return replace(self, limits=(low, high))

    def _within_limits(self, t: Tensor) -> Tensor:
        return t if self.limits is None else t.clamp(*self.limits)

    @computed
    def noise_type(self) -> NoiseType:
        return self.problem.noise_type

    @computed
    def sde_type(self) -> SDEType:
        return self.problem.sde_type

    @computed
    def jumps(self) -> Sequence[float]:
        return self.problem.jumps

    @property
    def evaluations(self) -> int:
        return self.calls[0]

    def drift(self, t: Time, x: Tensor) -> Tensor:
        if isinstance(t, float) and (slope := self.slopes.get(t)) is not None:
            self.calls[0] += 1
            return slope(x)
        return self._checked_drift(t, x)

    def _checked_drift(self, t: Time, x: Tensor) -> Tensor:
        """The drift of the equation, counted and checked."""
        f = self._guarded(0, "the drift", self.problem.drift, t, x)
        if not self.problem.checks_shapes and isinstance(f, Tensor):
            if f.shape != x.shape:
                raise wrong_shape("drift(t, x)", f, f"{tuple(x.shape)}", x)
            if f.dtype != x.dtype:  # the state would have the wider one from the first step on
                return checked_output("drift(t, x)", f, x.shape, x)
        return f

    def jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._derivative(self.problem.jacobian, t, x)

    def jacobian_product(self, t: Tensor, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        return self._derivative(self.problem.jacobian_product, t, x)

    def _derivative(
        self, method: Callable[[Tensor, Tensor], Result], t: Tensor, x: Tensor
    ) -> Result:
        """What a method of the equation returns that differentiates the drift."""
        t = self._within_limits(t)
        if may_be_inferring():
            enabled = torch.is_grad_enabled()
            # Leaving inference mode alone would enable gradients.
            with torch.inference_mode(False), torch.set_grad_enabled(enabled):
                return checked_call("the drift", method, t.clone(), x.clone())
        return checked_call("the drift", method, t.clone(), x.clone())

    def drift_at(self, t: Time) -> Slope:
        slope = self.slopes.get(t) if isinstance(t, float) else None
        if slope is None:
            return super().drift_at(t)
        self.calls[0] += 1
        return slope

    def drifts(
        self, times: Sequence[Tensor], x: Tensor
    ) -> Sequence[Callable[[Tensor], Tensor]] | None:
        functions = self.problem.drifts([*map(self._within_limits, times)], x)
        self.calls[0] += len(functions or ())
        return functions

    def score(self, t: Time, x: Tensor) -> Tensor:
        return self.score_at(t)(x)

    def score_at(self, t: Time) -> Callable[[Tensor], Tensor]:
        function = self.problem.scores_on_grid.get(t) if isinstance(t, float) else None
        if function is None:
            return partial(self._checked_score, t)
        self.calls[0] += 1
        return function

    def _checked_score(self, t: Time, x: Tensor) -> Tensor:
        """The score of the equation, counted and checked."""
        score = self._guarded(0, "the score", self.problem.score, t, x)
        return checked_output("score(t, x)", score, x.shape, x)

    def diffusion(self, t: Time, x: Tensor) -> Time:
        return self._guarded(1, "the diffusion", self.problem.diffusion, t, x)

    def diffuse(self, t: Time, x: Tensor, dw: Tensor | None, onto: Tensor) -> Tensor:
        return self._guarded(1, "the diffusion", self.problem.diffuse, t, x, dw, onto)

    def _guarded(
        self,
        kind: int,
        name: str,
        function: Callable[..., Any],
        t: Time,
        x: Tensor,
        *arguments: Tensor | None,
    ) -> Any:  # noqa: ANN401
        """function(t, x, *arguments), refused if it changes t, x or what it returned before."""
        self.calls[kind] += 1
        t = self._within_limits(t) if isinstance(t, Tensor) else t
        if (self.copies and has_no_version_counter(x)) or x.is_inference():
            value = function(t.clone() if isinstance(t, Tensor) else t, x.clone(), *arguments)
            return value.clone() if isinstance(value, Tensor) else value
        version = x._version + t._version if isinstance(t, Tensor) else x._version
        try:
            value = function(t, x, *arguments)
        except RuntimeError as error:
            if is_kept_leaf(x) and changes_in_place(function, (t, x, *arguments), {}):
                raise changed_in_place(name) from error
            raise
        if version != (x._version + t._version if isinstance(t, Tensor) else x._version):
            raise changed_in_place(name)
        previous = self.returned[kind]
        try:
            while previous and previous[0][0]() is None:  # results that no one can use any more
                previous.popleft()
        except IndexError:  # another thread has removed them
            pass
        for reference, version_then in previous.copy():  # which other threads do not change
            if (earlier := reference()) is not None and earlier._version != version_then:
                raise overwritten(name)
        if isinstance(value, Tensor) and value.is_inference():
            require_derivative(name, value, x)
            return value.clone()
        if not arguments and isinstance(value, Tensor):
            previous.append((ref(value), value._version))
        return value

    def require_unchanged(self) -> None:
        """Refuses results that were overwritten after they were returned; for the last step."""
        for name, results in zip(("the drift", "the diffusion"), self.returned, strict=True):
            for reference, version in results.copy():
                if (value := reference()) is not None and value._version != version:
                    raise overwritten(name)

    def multiply(self, g: Time, dw: Tensor | None, onto: Tensor) -> Tensor:
        return self.problem.multiply(g, dw, onto)

    def kick(self, t0: Time, t1: Time, x: Tensor, dw: Tensor | None) -> Tensor:
        self.calls[1] += 1
        return self.problem.kick(t0, t1, x, dw)

    def physical(self, t: Time, x: Tensor) -> Tensor:
        return self.problem.physical(t, x)

    def noise_shape(self, x: Tensor) -> tuple[int, ...] | None:
        return self.problem.noise_shape(x)

    def rows(self, index: Tensor) -> Self:
        problem = self.problem.rows(index)  # dataclasses.replace takes longer
        limits = self.limits and (self.limits[0][index], self.limits[1][index])
        return type(self)(
            problem, self.copies, self.calls, self.returned, self.slopes, self.plans, limits
        )  # fmt: skip

    def within(self, t0: float, t1: float) -> Self:
        return replace(self, problem=self.problem.within(t0, t1))

    def kernel(self, t: float) -> tuple[float, float] | None:
        return self.problem.kernel(t)

    def chain(self, s: float, t: float) -> tuple[float, float, float]:
        return self.problem.chain(s, t)

    def quadrature(
        self, rule: Rule, nodes: np.ndarray, t0: np.ndarray, t1: np.ndarray
    ) -> np.ndarray:
        return self.problem.quadrature(rule, nodes, t0, t1)

    def between(self, t0: np.ndarray, t1: np.ndarray, c: float) -> np.ndarray:
        return self.problem.between(t0, t1, c)
