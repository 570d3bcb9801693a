"""Predictions at known levels as affine functions of a network's output, in numbers computed
once.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sdekit.elementary import Time, axpy, scaled

Ask = Callable[[Tensor, Tensor], Tensor]  # a network's output at points and labels that are its own
Function = Callable[[Tensor], Tensor]
Row = tuple[float, float, float, float, float, float]

_REMEMBERED = 64  # grids whose numbers are kept
_ROWS: dict[Hashable, list[Row]] = {}


@dataclass(frozen=True, eq=False)
class Affine:
    """A prediction at levels l_i: own_i u + out_i net(point_i u + shift_i m, label_i) + mean_i m.

    Numbers are float64 tensors, `(levels,)`, or the same for all levels; m is the mean of the data.

    Arguments:
        label, point, own, out, shift, mean: of each level.
    """

    label: Time
    point: Time
    own: Time
    out: Time
    shift: Time = 0.0
    mean: Time = 0.0

    def at(self, factor: Time, shift: Time = 0.0) -> "Affine":
        """The prediction at factor u + shift m."""
        return Affine(
            self.label,
            self.point * factor,
            self.own * factor,
            self.out,
            self.shift + _product(shift, self.point),
            self.mean + _product(shift, self.own),
        )

    def times(self, factor: Time, plus: Time = 0.0, mean: Time = 0.0) -> "Affine":
        """factor times the sum of the prediction and mean m, plus `plus` u."""
        return Affine(
            self.label,
            self.point,
            self.own * factor + plus,
            self.out * factor,
            self.shift,
            _product(self.mean + mean, factor),
        )

    def rows(self, levels: int) -> list[Row]:
        """Label, point, own, out, shift and mean of each level."""
        parts = (self.label, self.point, self.own, self.out, self.shift, self.mean)
        columns = [
            torch.as_tensor(part, dtype=torch.float64).expand(levels).tolist() for part in parts
        ]
        return list(zip(*columns, strict=True))


class Asking(NamedTuple):
    """How a network is asked.

    ask: calls it. dtype, device: of labels. m: the mean of the data, a number or shaped like one
    sample. key: all that `affine` depends on besides levels; None where that may change, so that
    numbers are computed anew.
    """

    ask: Ask
    dtype: torch.dtype
    device: torch.device
    key: Hashable | None
    m: Tensor | float = 0.0

    def functions(self, rows: list[Row]) -> list[Function]:
        """The prediction at each level, as a function of the point."""
        labels = torch.tensor([row[0] for row in rows], dtype=torch.float64).to(
            device=self.device, dtype=self.dtype, non_blocking=True
        )
        return [
            partial(_predicted, self.ask, self.m, label, row)
            for label, row in zip(labels.unbind(), rows, strict=True)
        ]

    def in_rows(self, affine: Affine, levels: torch.Size, x: Tensor) -> list[Function]:
        """The prediction at each of the levels, `(stages, batch)`, as a function of points like
        x.
        """
        label = torch.as_tensor(affine.label).expand(levels)
        labels = label.to(device=self.device, dtype=self.dtype).unbind()
        parts = (affine.point, affine.own, affine.out, affine.shift, affine.mean)
        each = (*levels, *[1] * (x.ndim - 1))
        columns = [
            part.to(x).expand(levels).reshape(each).unbind()
            if isinstance(part, Tensor)
            else [part] * len(labels)
            for part in parts
        ]
        return [
            partial(_predicted_in_rows, self.ask, self.m, *numbers)
            for numbers in zip(labels, *columns, strict=True)
        ]


class Model(Protocol):
    """A model that may have a network."""

    def asking(self) -> Asking | None: ...


def prepared(
    model: Model, key: Hashable | None, levels: int, numbers: Callable[[], Affine]
) -> list[Function] | None:
    """The functions of a grid with so many levels; None for a model that is not affine in a
    network's output.

    Arguments:
        key: what `numbers` depends on besides the model; None computes them anew.
    """
    asking = model.asking()
    if asking is None:
        return None
    if key is None or asking.key is None:
        return asking.functions(numbers().rows(levels))
    whole = asking.key, key
    rows = _ROWS.get(whole)
    if rows is None:
        rows = numbers().rows(levels)
        if len(_ROWS) >= _REMEMBERED:
            _ROWS.clear()
        _ROWS[whole] = rows
    return asking.functions(rows)


def constant(value: object) -> bool:
    """Whether an object may be a key: of a frozen dataclass compared by value, without tensors.

    A class that inherits from such a dataclass and is none itself may hold more than its fields.
    """
    parameters = vars(type(value)).get("__dataclass_params__")
    if parameters is None or not (parameters.frozen and parameters.eq):
        return False
    try:
        hash(value)
    except TypeError:
        return False
    return not any(isinstance(held, Tensor) for held in vars(value).values())


def _predicted(ask: Ask, m: Tensor | float, label: Tensor, row: Row, u: Tensor) -> Tensor:
    _, point, own, out, shift, mean = row
    x = u if point == 1 else scaled(point, u)
    if shift:
        x = _plus(shift, m, x)
    # New, even if a network has one buffer for all.
    found = scaled(out, ask(x, label.expand(len(u))))
    if own:
        found = axpy(own, u, found)
    return _plus(mean, m, found) if mean else found


def _predicted_in_rows(
    ask: Ask,
    m: Tensor | float,
    label: Tensor,
    point: Time,
    own: Time,
    out: Time,
    shift: Time,
    mean: Time,
    u: Tensor,
) -> Tensor:
    """`_predicted` with numbers of each sample, ready to multiply u."""
    x = u * point
    if isinstance(shift, Tensor):
        x = x + shift * (m.to(x) if isinstance(m, Tensor) else m)
    found = u * own + ask(x, label) * out
    if isinstance(mean, Tensor):
        found = found + mean * (m.to(found) if isinstance(m, Tensor) else m)
    return found


def _product(a: Time, b: Time) -> Time:
    """a b; the number 0 where a is."""
    return a * b if isinstance(a, Tensor) or a else 0.0


def _plus(factor: float, m: Tensor | float, x: Tensor) -> Tensor:
    """x + factor m."""
    return torch.add(x, m.to(x), alpha=factor) if isinstance(m, Tensor) else x + factor * m
