"""Observations y of samples x: their likelihoods p(y | x)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from sdekit_diffusion._arguments.inputs import require_tensor


class AbstractObservation(ABC):
    """An observation y of a sample x, with its log-likelihood log p(y | x).

    y is the same for all samples, or has one entry per sample, `(n, *measured)`: then n samples of
    a model given y are from n posteriors.

    Attributes:
        y: the observed values.
        each: whether y has one entry per sample.

    Example:
        >>> squares = sd.Observation(torch.tensor([4.0]), lambda x, y: -((x**2 - y) ** 2).sum(1))
        >>> isinstance(squares, sd.AbstractObservation), squares.each
        (True, False)
    """

    y: Tensor
    each: bool

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(y | x) in nats of each sample, `(batch, *event)` to `(batch,)`, differentiable."""

    def rows(self, index: Tensor) -> Self:
        """The observation of the samples of an index; itself where y is the same for all."""
        return self

    def entries(self) -> dict[str, Tensor]:
        """The tensors with one entry per sample, by name."""
        return {"y": self.y} if self.each else {}

    def bound(self, event: tuple[int, ...], like: Tensor | None = None) -> "AbstractObservation":
        """The observation for samples of a shape, after checks.

        Arguments:
            event: the shape of one sample.
            like: a tensor with the dtype and the device of the samples.

        Raises:
            ValueError: when the observation does not fit such samples.
        """
        return self


@dataclass(frozen=True, eq=False)
class Observation(AbstractObservation):
    """Any observation, given by its log-likelihood, such as Poisson counts, saturated measurements,
    or magnitudes without phases.

    Arguments:
        y: the observed values, of any shape; with each=True one entry per sample.
        log_likelihood: returns log p(y | x), `(batch,)`, from (x, y), differentiable in x; with
            each=True y has the batch first. A factor of p(y | x) that depends only on y changes
            only the evidence.
        each: whether y has one entry per sample.

    Raises:
        TypeError: for a y that is not a tensor, or a log_likelihood that is not a function.
        ValueError: with each=True for a y without entries; while sampling, for a result of another
            shape, without a gradient, or that depends on the other samples of the batch.

    Example:
        >>> counts = torch.tensor([7.0, 2.0])  # Poisson, at rates exp(x)
        >>> def log_likelihood(x, y):
        ...     return (y * x - x.exp() - (y + 1).lgamma()).sum(1)
        >>> poisson = sd.Observation(counts, log_likelihood)
        >>> poisson.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    y: Tensor
    log_likelihood: Callable[[Tensor, Tensor], Tensor]
    each: bool = field(default=False, kw_only=True)
    event: tuple[int, ...] | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        require_tensor("y", self.y, "")
        if self.each and not (self.y.ndim and len(self.y)):
            raise ValueError(
                "with each=True y has one entry for each of one or more observations, (n, "
                f"*measured), not the shape {tuple(self.y.shape)}"
            )
        if not callable(self.log_likelihood):
            raise TypeError(
                "log_likelihood is a function (x, y) to log p(y | x), not "
                f"{self.log_likelihood!r:.60}"
            )

    def log_prob(self, x: Tensor) -> Tensor:
        require_one_each(self, x)
        value = self.log_likelihood(x, self.y.to(x.device))
        if not isinstance(value, Tensor) or value.shape != (len(x),):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            batch = "" if self.each else "; if y has one entry per sample, pass each=True"
            raise ValueError(
                f"log_likelihood(x, y) returned {shape}; it must return log p(y | x) of each of "
                f"{len(x)} samples, ({len(x)},): sum over the measurements of a sample{batch}"
            )
        return value

    def rows(self, index: Tensor) -> Self:
        return replace(self, y=self.y[index.to(self.y.device)]) if self.each else self

    def bound(self, event: tuple[int, ...], like: Tensor | None = None) -> Self:
        if self.event == tuple(event):
            return self
        like = torch.zeros(()) if like is None else like
        with torch.inference_mode(False), torch.enable_grad():
            n = len(self.y) if self.each else 3
            levels = torch.arange(n).remainder(3).to(like).reshape(n, *[1] * len(event))
            x = levels.expand(n, *event).clone().requires_grad_()
            try:
                values = self.log_prob(x)
            except RuntimeError as error:
                raise ValueError(
                    f"log_likelihood(x, y) failed for x of shape {tuple(x.shape)} and y of shape "
                    f"{tuple(self.y.shape)} ({error}): it must take any number of samples x; if y "
                    "has one entry per sample, pass each=True"
                ) from error
            alone = self.rows(torch.tensor([n - 1])).log_prob(x[n - 1 :])
        if not values.requires_grad:
            raise ValueError(
                "log_likelihood(x, y) has no gradient in x: do not detach x, nor use "
                "torch.no_grad()"
            )
        if not torch.allclose(values[n - 1 :], alone, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                "log_likelihood(x, y) of a sample depends on the other samples of the batch, or is "
                "random: return the same for each sample alone"
            )
        return replace(self, event=tuple(event))


def require_one_each(observation: AbstractObservation, x: Tensor) -> None:
    """Refuses another number of samples than y has entries, if it has one entry per sample.

    Raises:
        ValueError: with both numbers.
    """
    if observation.each and len(observation.y) != len(x):
        raise ValueError(
            f"y has {len(observation.y)} entries, one per sample, and there are {len(x)} samples; "
            "give as many, or rows(index) of the observation"
        )
