"""Predictions at known levels as affine functions of a network's output, with coefficients that are
computed once.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from sdekit.elementary import ZERO, Time, adder

Network = Callable[
    [Tensor, Tensor], Tensor
]  # a network, of points and labels in its own convention
Function = Callable[..., Tensor]  # f(u), or of (u, h, onto): onto + h f(u)
Row = tuple[float, float, float, float, float, float]

_ROUNDING = 2.0**-49  # the most by which products and roots of float64 differ from an exact 1
_CACHE_SIZE = 64  # grids whose coefficients are kept
_MOST_LEVELS = 2000  # of each of them
_BLOCK = 1 << 14  # labels made together, few enough for the cache of the processor
_CACHE: dict[Hashable, list[Row]] = {}


@dataclass(frozen=True, eq=False)
class Affine:
    """A prediction at levels l_i: skip_i u + out_i net(point_i u + shift_i m, label_i) + mean_i m.

    m is the mean of the data.

    Arguments:
        label, point, skip, out, shift, mean: float64 tensors, `(levels,)`, or numbers for all
            levels.
    """

    label: Time
    point: Time
    skip: Time
    out: Time
    shift: Time = 0.0
    mean: Time = 0.0

    def at(self, factor: Time, shift: Time = 0.0) -> "Affine":
        """The prediction at factor u + shift m, as a function of u."""
        return Affine(
            self.label,
            _product(self.point, factor),
            _product(self.skip, factor),
            self.out,
            self.shift + _product(shift, self.point),
            self.mean + _product(shift, self.skip),
        )

    def times(self, factor: Time, skip_term: Time = 0.0, mean: Time = 0.0) -> "Affine":
        """factor (prediction + mean m) + skip_term u."""
        return Affine(
            self.label,
            self.point,
            _product(self.skip, factor) + skip_term,
            _product(self.out, factor),
            self.shift,
            _product(self.mean + mean, factor),
        )

    def rows(self, levels: int) -> list[Row]:
        """Label, point, skip, out, shift and mean of each level; point is exactly 1 where it
        differs from 1 by rounding, so that the product is saved.
        """
        point = torch.as_tensor(self.point, dtype=torch.float64)
        point = torch.where((point - 1).abs() < _ROUNDING, 1.0, point)
        parts = (self.label, point, self.skip, self.out, self.shift, self.mean)
        columns = [
            torch.as_tensor(part, dtype=torch.float64).expand(levels).tolist() for part in parts
        ]
        return list(zip(*columns, strict=True))


class NetworkCall(NamedTuple):
    """How a network is called.

    network: the function that calls it, whose output has the dtype of the points. dtype, device:
    those of labels, at least float32; None for those of the points. m: the mean of the data, a
    number or shaped like one sample. key: everything that `affine` depends on besides the levels;
    None if this may change, so that the coefficients are computed in each call.
    """

    network: Network
    dtype: torch.dtype | None
    device: torch.device | None
    key: Hashable | None
    m: Tensor | float = 0.0

    def functions(self, rows: list[Row]) -> list[Function]:
        """The prediction at each level, as a function of u."""
        labels = _Labels([row[0] for row in rows], self.dtype, self.device)
        return [Prediction(self.network, self.m, labels, i, row) for i, row in enumerate(rows)]

    def in_rows(self, affine: Affine, stages: int, x: Tensor) -> list[Function]:
        """The prediction at levels `(stages * batch,)`: for each stage a function of u, shaped like
        x.
        """
        count = stages * len(x)
        label = torch.as_tensor(affine.label).expand(count).reshape(stages, -1)
        labels = label.to(self.device or x.device, self.dtype or x.dtype).unbind()
        out = torch.as_tensor(affine.out, dtype=torch.float64)
        parts = (affine.point, affine.skip, out, affine.shift, affine.mean)
        # All numbers per sample in one copy.
        tensors = [part.expand(count) for part in parts if isinstance(part, Tensor)]
        shape = (stages * len(tensors), len(x), *[1] * (x.ndim - 1))
        rows = iter(torch.stack(tensors).to(x).reshape(shape).unbind())
        columns = [
            [next(rows) if isinstance(part, Tensor) else part for _ in range(stages)]
            for part in parts
        ]
        return [
            partial(_predict_in_rows, self.network, self.m, *numbers)
            for numbers in zip(labels, *columns, strict=True)
        ]


class _Labels:
    """The labels of several levels, one per sample of a batch, made for a block of levels together
    and kept for batches of the same kind.
    """

    def __init__(
        self, values: list[float], dtype: torch.dtype | None, device: torch.device | None
    ) -> None:
        self.values = values
        self.dtype = dtype
        self.device = device
        # The size, dtype and device of a batch and whether inference mode is on; the labels of all
        # levels as a column, and a block of levels, of which the first is named. Replaced as a
        # whole, since threads may share this object.
        self._kept: tuple[Any, ...] = (0, None, None, False, None, 0, ())

    def at(self, i: int, x: Tensor) -> Tensor:
        """The labels of level i for the samples of a batch x."""
        # One comparison after another is faster than that of tuples.
        n, dtype, device, inferring, column, first, block = self._kept
        same = n == x.shape[0] and dtype is x.dtype and device == x.device
        if not same or inferring is not torch.is_inference_mode_enabled():
            column = None
        if column is None or not 0 <= i - first < len(block):
            first, block = self._keep(i, x, column)
        return block[i - first]

    def _keep(self, i: int, x: Tensor, column: Tensor | None) -> tuple[int, Sequence[Tensor]]:
        """The first of a block of levels with i, and their labels; `column` if it is known."""
        n = x.shape[0]
        if column is None:
            # Copied once, since a copy to a device may wait for its queued work.
            dtype = self.dtype or x.dtype
            column = torch.tensor(self.values, dtype=dtype, device="cpu").unsqueeze(1)
            place = self.device or x.device
            if place.type != "cpu":
                column = column.to(place, non_blocking=True)
        size = max(1, _BLOCK // max(1, n))
        first = i // size * size
        part = column if size >= len(self.values) else column[first : first + size]
        # Contiguous: the rounding of functions of numbers that share their memory depends on the
        # size of the batch.
        block = part.expand(-1, n).contiguous().unbind()
        inferring = torch.is_inference_mode_enabled()
        self._kept = n, x.dtype, x.device, inferring, column, first, block
        return first, block


class Prediction:
    """The prediction at one level as a function of u.

    Arguments:
        network, m: as in `NetworkCall`.
        labels, i: the labels of all levels, and the number of this one.
        row: its coefficients, see `Affine.rows`.

    Attributes:
        unit: 1 / out: the prediction times this takes one operation less.
    """

    __slots__ = ("i", "labels", "m", "network", "row", "unit")

    def __init__(
        self, network: Network, m: Tensor | float, labels: _Labels, i: int, row: Row
    ) -> None:
        self.network = network
        self.m = m
        self.labels = labels
        self.i = i
        self.row = row
        self.unit = 1 / row[3] if row[3] else 1.0

    def __call__(self, u: Tensor, h: float = 1.0, onto: Tensor | None = None) -> Tensor:
        """h times the prediction at u, added to `onto` if it is given."""
        _, point, skip, out, shift, mean = self.row
        add = adder(u)
        x = u if point == 1 else add(ZERO, u, alpha=point)
        if shift:
            x = _add_multiple(shift, self.m, x)
        output = self.network(x, self.labels.at(self.i, x))
        # A new tensor, even if the network returns the same buffer in each call.
        if skip and onto is None and h == self.unit and out:
            result = add(output, u, alpha=h * skip)
        else:
            result = add(ZERO if onto is None else onto, output, alpha=h * out)
            if skip and add is torch.add and peek_interpreter_stack() is None:
                result.add_(u, alpha=h * skip)
            elif skip:
                result = add(result, u, alpha=h * skip)
        return _add_multiple(h * mean, self.m, result) if mean else result


class Model(Protocol):
    """A model that may have a network."""

    def network_call(self) -> NetworkCall | None: ...


def prepared(
    model: Model, key: Hashable | None, levels: int, numbers: Callable[[], Affine]
) -> list[Function] | None:
    """The prediction at each level of a grid, as functions of u; None for a model that is not
    affine in a network's output.

    Arguments:
        key: everything that `numbers` depends on besides the model; None disables the cache.
        levels: the number of levels.
        numbers: computes the coefficients.
    """
    network_call = model.network_call()
    if network_call is None:
        return None
    if key is None or network_call.key is None or levels > _MOST_LEVELS:
        return network_call.functions(numbers().rows(levels))
    full_key = network_call.key, key
    rows = _CACHE.get(full_key)
    if rows is None:
        rows = numbers().rows(levels)
        if len(_CACHE) >= _CACHE_SIZE:
            _CACHE.clear()
        _CACHE[full_key] = rows
    return network_call.functions(rows)


def _predict_in_rows(
    network: Network,
    m: Tensor | float,
    label: Tensor,
    point: Time,
    skip: Time,
    out: Tensor,
    shift: Time,
    mean: Time,
    u: Tensor,
) -> Tensor:
    """The prediction at u, with coefficients per sample in shapes that multiply u."""
    x = u * point if isinstance(point, Tensor) or point != 1 else u
    if isinstance(shift, Tensor):
        x = x + shift * (m.to(x) if isinstance(m, Tensor) else m)
    result = torch.addcmul(u * skip, network(x, label), out)
    if isinstance(mean, Tensor):
        result = result + mean * (m.to(result) if isinstance(m, Tensor) else m)
    return result


def _product(a: Time, b: Time) -> Time:
    """a b; without an operation on b where a is the number 0 or 1."""
    if isinstance(a, Tensor):
        return a * b
    return b if a == 1 else a and a * b


def _add_multiple(factor: float, m: Tensor | float, x: Tensor) -> Tensor:
    """x + factor m."""
    return torch.add(x, m.to(x), alpha=factor) if isinstance(m, Tensor) else x + factor * m
