"""Where a solve begins: at draws from the prior or at given states, at the noisy end or below."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.start_warnings import warn_of_prior, warn_of_states

INITIAL_STATE = -1  # the counter of `sdekit.normal` that belongs to initial states


@dataclass(frozen=True, eq=False)
class AbstractStart(ABC):
    """The states and the level at which a solve begins.

    Attributes:
        name: the name of the given states in messages.
        moves: whether the states are shifted to the mean of x_T, for a model that `starts_at_mean`.
        x: the given states, `(n, *event)`; None where there are none.
    """

    name: ClassVar[str] = "x_T"
    moves: ClassVar[bool] = False
    x: Tensor | None = None

    def require(self, model: AbstractModel) -> None:
        """Refuses given states that cannot be used.

        Raises:
            TypeError, ValueError: with what is allowed.
        """
        return

    def count(self, n: int) -> int:
        """The number of samples, where the caller asks for n.

        Raises:
            ValueError: where the number of given states is another.
        """
        return n

    def rows(self, i: int, count: int) -> Tensor | None:
        """The given states of `count` samples from i on; None where there are none."""
        return None if self.x is None else self.x[i : i + count]

    def span(self, span: Span, coordinates: Coordinates) -> Span:
        """The part of a span of l from this start on.

        Raises:
            ValueError: when the start is outside the span.
        """
        return span

    def warn(
        self, method: AbstractMethod, model: AbstractModel, coordinates: Coordinates, l: float
    ) -> None:
        """Warns where the states do not follow the law of noisy data at l."""
        return

    @abstractmethod
    def states(
        self, coordinates: Coordinates, l: float, x: Tensor | None, draw: Callable[[int], Tensor]
    ) -> Tensor:
        """u at the beginning of a batch, `(batch, *event)`.

        Arguments:
            l: the level there.
            x: the given states of the batch, in its dtype and on its device.
            draw: returns standard normals of the samples of the batch for a counter.
        """


@dataclass(frozen=True, eq=False)
class PriorStates(AbstractStart):
    """Draws from the prior, at the noisy end or at a level below.

    Arguments:
        l: the level; None for the noisy end.
    """

    moves = True
    l: float | None = None

    def span(self, span: Span, coordinates: Coordinates) -> Span:
        return span if self.l is None else (max(span[0], self.l), span[1])

    def warn(
        self, method: AbstractMethod, model: AbstractModel, coordinates: Coordinates, l: float
    ) -> None:
        if not method.accepts_any_start:
            alternative = ", or give the start, x_T= or start=Noised(...)"
            warn_of_prior(model, coordinates, l, alternative=alternative)

    def states(
        self, coordinates: Coordinates, l: float, x: Tensor | None, draw: Callable[[int], Tensor]
    ) -> Tensor:
        return draw(INITIAL_STATE)


@dataclass(frozen=True, eq=False)
class GivenStates(AbstractStart):
    """Given states x_T at the noisy end.

    Arguments:
        x: x_T, `(n, *event)`.
    """

    advice: ClassVar[str] = (
        "give latents of encode(model, x), or prior(...) of the diffusion, or leave x_T out"
    )

    x: Tensor = field()

    def require(self, model: AbstractModel) -> None:
        require_states(self.name, self.x, model, self.advice)

    def count(self, n: int) -> int:
        if n not in (1, len(self.x)):
            raise ValueError(
                f"x_T has shape {tuple(self.x.shape)}; it must be (n, *shape), with n = {n} left "
                "out or the same"
            )
        return len(self.x)

    def warn(
        self, method: AbstractMethod, model: AbstractModel, coordinates: Coordinates, l: float
    ) -> None:
        if not method.accepts_any_start:
            warn_of_states(self.x, coordinates, l)

    def states(
        self, coordinates: Coordinates, l: float, x: Tensor | None, draw: Callable[[int], Tensor]
    ) -> Tensor:
        assert x is not None
        return coordinates.standard(float(coordinates.time(l)), x)


def start_of(start: AbstractStart | None, x_T: Tensor | None) -> AbstractStart:
    """The start that a caller chooses by one of two arguments; by default draws from the prior.

    Raises:
        TypeError: for a start of another type, such as a tensor.
        ValueError: where both are given.
    """
    if start is None:
        return PriorStates() if x_T is None else GivenStates(x_T)
    if not isinstance(start, AbstractStart):
        raise TypeError(
            f"start must be data and a level, such as Noised(x, strength=0.6), not {start!r:.60}; "
            "initial states at the noisy end are x_T"
        )
    if x_T is not None:
        raise ValueError(
            "x_T and start both say where the solve begins: give x_T for states at its noisy end, "
            "or start=Noised(x, ...) for data to which noise is added"
        )
    return start


def require_states(name: str, x: Tensor, model: AbstractModel, advice: str) -> None:
    """Refuses states that are not a finite floating tensor, or do not have the shape of the model.

    Raises:
        TypeError, ValueError: with the name of the argument, and the advice.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1:
        description = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a floating tensor of shape (n, *shape), not {description}; use "
            "torch.as_tensor and .float()"
        )
    if model.shape is not None and tuple(x.shape[1:]) != tuple(model.shape):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it must be (n, {', '.join(map(str, model.shape))})"
        )
    finite = torch.isfinite(x).reshape(len(x), math.prod(x.shape[1:])).all(dim=1)
    if rows := (~finite).nonzero().flatten().tolist():
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        raise ValueError(
            f"{name} is not finite in {len(rows)} of {len(x)} samples (rows {shown}); {advice}"
        )
