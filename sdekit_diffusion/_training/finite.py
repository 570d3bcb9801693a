"""Whether the loss and the weights of a training run are finite."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class _Flag(NamedTuple):
    """Whether loss and weights were finite after an update; the value is valid on the host once the
    event of the device has happened.
    """

    step: int
    loss: Tensor
    finite: Tensor
    arrived: torch.Event


class FiniteCheck:
    """Checks that losses and weights are finite.

    Arguments:
        weights: all that are trained.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self._weights = weights
        self._flag: _Flag | None = None

    def require(self, loss: Tensor, step: int) -> None:
        """Raises unless a loss and all weights are finite after an update; reads the host once.

        Raises:
            ArithmeticError: says which of them is not.
        """
        if not self._finite(loss):
            _refuse(loss, step)

    def require_deferred(self, loss: Tensor, step: int) -> None:
        """As `require`, but on an accelerator without host synchronisation: the result is read at a
        later call, once it has arrived on the host.

        Raises:
            ArithmeticError: as `require`.
        """
        if loss.device.type == "cpu":
            self.require(loss, step)
            return
        if self._flag is not None and self._flag.arrived.query():
            if not self._flag.finite:
                _refuse(self._flag.loss, self._flag.step)
            self._flag = None
        if self._flag is None:
            arrived = torch.Event(loss.device)
            finite = self._finite(loss).to("cpu", non_blocking=True)
            arrived.record()
            self._flag = _Flag(step, loss, finite, arrived)

    def _finite(self, loss: Tensor) -> Tensor:
        """Whether the loss and all weights are finite."""
        parts = [loss.detach(), *(weight.detach() for weight in self._weights)]
        return torch.stack([part.isfinite().all() for part in parts]).all()


def _refuse(loss: Tensor, step: int) -> None:
    remedy = "lower lr, or look for NaN in the data"
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {float(loss)} at update {step}; {remedy}")
    raise ArithmeticError(f"weights are not finite after update {step}; {remedy}")
