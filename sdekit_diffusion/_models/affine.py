"""Predictions at known levels as affine functions of a network's output, with coefficients that are
computed once.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sdekit.elementary import ZERO, Time, adder, scaled

Network = Callable[
    [Tensor, Tensor], Tensor
]  # a network, of points and labels in its own convention
Function = Callable[..., Tensor]  # f(u), or of (u, h, onto): onto + h f(u)
Row = tuple[float, float, float, float, float, float]

_CACHE_SIZE = 64  # grids whose coefficients are kept
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
            self.point * factor,
            self.skip * factor,
            self.out,
            self.shift + _product(shift, self.point),
            self.mean + _product(shift, self.skip),
        )

    def times(self, factor: Time, skip_term: Time = 0.0, mean: Time = 0.0) -> "Affine":
        """factor (prediction + mean m) + skip_term u."""
        return Affine(
            self.label,
            self.point,
            self.skip * factor + skip_term,
            self.out * factor,
            self.shift,
            _product(self.mean + mean, factor),
        )

    def rows(self, levels: int) -> list[Row]:
        """Label, point, skip, out, shift and mean of each level."""
        parts = (self.label, self.point, self.skip, self.out, self.shift, self.mean)
        columns = [
            torch.as_tensor(part, dtype=torch.float64).expand(levels).tolist() for part in parts
        ]
        return list(zip(*columns, strict=True))


class NetworkCall(NamedTuple):
    """How a network is called.

    network: the function that calls it. dtype, device: those of labels, at least float32; None for
    those of the points. m: the mean of the data, a number or shaped like one sample. key:
    everything that `affine` depends on besides the levels; None if this may change, so that the
    coefficients are computed in each call.
    """

    network: Network
    dtype: torch.dtype | None
    device: torch.device | None
    key: Hashable | None
    m: Tensor | float = 0.0

    def functions(self, rows: list[Row]) -> list[Function]:
        """The prediction at each level, as a function of u."""
        labels: Sequence[Tensor | None] = [None] * len(rows)
        if self.dtype is not None:
            column = torch.tensor([row[0] for row in rows], dtype=torch.float64)
            labels = column.to(self.device, self.dtype, non_blocking=True).unbind()
        return [
            partial(_predict, self.network, self.m, label, row)
            for label, row in zip(labels, rows, strict=True)
        ]

    def in_rows(self, affine: Affine, stages: int, x: Tensor) -> list[Function]:
        """The prediction at levels `(stages * batch,)`: for each stage a function of u, shaped like
        x.
        """
        count = stages * len(x)
        label = torch.as_tensor(affine.label).expand(count).reshape(stages, -1)
        labels = label.to(self.device or x.device, self.dtype or x.dtype).unbind()
        parts = (affine.point, affine.skip, affine.out, affine.shift, affine.mean)
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
    if key is None or network_call.key is None:
        return network_call.functions(numbers().rows(levels))
    full_key = network_call.key, key
    rows = _CACHE.get(full_key)
    if rows is None:
        rows = numbers().rows(levels)
        if len(_CACHE) >= _CACHE_SIZE:
            _CACHE.clear()
        _CACHE[full_key] = rows
    return network_call.functions(rows)


def is_immutable(value: object) -> bool:
    """Whether an object can be a key of a cache: whether its class is a frozen dataclass that is
    compared by the values of all fields, and these are constants: numbers, strings, and tuples and
    such objects of them.

    A subclass of such a dataclass that is not itself declared as one is refused, since it may have
    more attributes than the fields; so is an object with attributes that its class does not have.
    """
    kind = type(value)
    names = _compared_fields(kind)
    if names is None:
        return False
    attributes = getattr(value, "__dict__", {})
    if attributes.keys() == names:  # without recursion, if the values are simple
        if {*map(type, attributes.values())} <= _SIMPLE_TYPES:
            return True
    elif not all(name in names or hasattr(kind, name) for name in attributes):
        return False
    return all(_is_constant(getattr(value, name)) for name in names)


@cache
def _compared_fields(kind: Any) -> frozenset[str] | None:  # noqa: ANN401 - a class
    """The names of the fields of a frozen dataclass, if it is compared by all of them; None for
    other classes.
    """
    parameters = vars(kind).get("__dataclass_params__")
    if parameters is None or not (parameters.frozen and parameters.eq):
        return None
    parts = fields(kind)
    if not all(part.compare for part in parts):
        return None
    return frozenset(part.name for part in parts)


_SIMPLE_TYPES = {bool, int, float, str, type(None)}  # found without recursion


def _is_constant(value: object) -> bool:
    """Whether a field of a dataclass cannot change."""
    if isinstance(value, tuple):
        simple = {*map(type, value)} <= _SIMPLE_TYPES
        return simple or all(map(_is_constant, value))
    return type(value) in _SIMPLE_TYPES or isinstance(value, float | Enum) or is_immutable(value)


def _predict(
    network: Network,
    m: Tensor | float,
    label: Tensor | None,
    row: Row,
    u: Tensor,
    h: float = 1.0,
    onto: Tensor | None = None,
) -> Tensor:
    """onto + h times the prediction at u."""
    value, point, skip, out, shift, mean = row
    x = u if point == 1 else scaled(point, u)
    if shift:
        x = _add_multiple(shift, m, x)
    n = u.shape[0]
    output = network(x, x.new_full((n,), value) if label is None else label.expand(n))
    add = adder(output)
    # A new tensor, even if the network returns the same buffer in each call.
    result = add(ZERO if onto is None else onto, output, alpha=h * out)
    if skip:
        result = add(result, u, alpha=h * skip)
    return _add_multiple(h * mean, m, result) if mean else result


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
    x = u * point
    if isinstance(shift, Tensor):
        x = x + shift * (m.to(x) if isinstance(m, Tensor) else m)
    result = torch.addcmul(u * skip, network(x, label), out)
    if isinstance(mean, Tensor):
        result = result + mean * (m.to(result) if isinstance(m, Tensor) else m)
    return result


def _product(a: Time, b: Time) -> Time:
    """a b; the number 0 where a is the number 0."""
    return a * b if isinstance(a, Tensor) or a else 0.0


def _add_multiple(factor: float, m: Tensor | float, x: Tensor) -> Tensor:
    """x + factor m."""
    return torch.add(x, m.to(x), alpha=factor) if isinstance(m, Tensor) else x + factor * m
