"""Predictions at known levels as affine functions of a network's output, in numbers computed at
once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from sdekit.elementary import Time, axpy, scaled

Ask = Callable[[Tensor, Tensor], Tensor]  # a network's output at points and labels that are its own


@dataclass(frozen=True, eq=False)
class Affine:
    """A prediction at levels l_i: own_i u + out_i net(point_i u + shift_i m, label_i) + mean_i m.

    Numbers are float64 tensors, `(levels,)`, or the same for all levels; m is the mean of the data.

    Arguments:
        ask: calls the network.
        label, point, shift, own, out, mean: of each level.
        m: a number, or shaped like one sample.
    """

    ask: Ask
    label: Tensor
    point: Time
    own: Time
    out: Time
    shift: Time = 0.0
    mean: Time = 0.0
    m: Tensor | float = 0.0

    def at(self, factor: Time, shift: Time = 0.0) -> Self:
        """The prediction at factor u + shift m."""
        return replace(
            self,
            point=self.point * factor,
            shift=self.shift + self.point * shift,
            own=self.own * factor,
            mean=self.mean + self.own * shift,
        )

    def times(self, factor: Time, plus: Time = 0.0) -> Self:
        """factor times the prediction, plus `plus` u."""
        return replace(
            self, own=self.own * factor + plus, out=self.out * factor, mean=self.mean * factor
        )

    def functions(self) -> list[Callable[[Tensor], Tensor]]:
        """The prediction at each level, as a function of the point."""
        parts = (self.point, self.own, self.out, self.shift, self.mean)
        columns = [
            torch.as_tensor(part, dtype=torch.float64).expand(len(self.label)).tolist()
            for part in parts
        ]
        rows = zip(self.label.unbind(), *columns, strict=True)
        return [partial(_predicted, self.ask, self.m, row) for row in rows]


def _predicted(
    ask: Ask, m: Tensor | float, row: tuple[Tensor, float, float, float, float, float], u: Tensor
) -> Tensor:
    label, point, own, out, shift, mean = row
    x = u if point == 1 else scaled(point, u)
    if shift:
        x = _plus(shift, m, x)
    # New, even if a network has one buffer for all.
    found = scaled(out, ask(x, label.expand(len(u))))
    if own:
        found = axpy(own, u, found)
    return _plus(mean, m, found) if mean else found


def _plus(factor: float, m: Tensor | float, x: Tensor) -> Tensor:
    """x + factor m."""
    return torch.add(x, m.to(x), alpha=factor) if isinstance(m, Tensor) else x + factor * m
