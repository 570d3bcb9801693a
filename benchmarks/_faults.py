"""Faults of networks, scores, drifts and diffusions, each with the sound function of the same
meaning where there is one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[[Tensor, Tensor], Any]  # of x and t, what a network is called with


@dataclass(frozen=True)
class Fault:
    """What is wrong, and what would be right.

    Attributes:
        name: what is wrong.
        make: a sound function to a faulty one.
        right: a sound function to one whose results are those that the faulty one should give; None
            where there are none, and it must be refused.
    """

    name: str
    make: Callable[[Function], Function]
    right: Callable[[Function], Function] | None = None


def _before(change: Callable[[Tensor, Tensor], Any]) -> Callable[[Function], Function]:
    """The function after something was done to its input."""

    def make(h: Function) -> Function:
        def faulty(x: Tensor, t: Tensor) -> Any:
            change(x, t)
            return h(x, t)

        return faulty

    return make


def _after(change: Callable[[Tensor], Any]) -> Callable[[Function], Function]:
    """The function with something done to its output."""
    return lambda h: lambda x, t: change(h(x, t))


def _scaled(factor: float) -> Callable[[Function], Function]:
    return lambda h: lambda x, t: h(factor * x, t)


def _cast(dtype: torch.dtype) -> Fault:
    return Fault(
        f"returns {dtype}",
        _after(lambda y: y.to(dtype)),
        _after(lambda y: y.to(dtype).to(torch.float32)),
    )


def _instead(value: Callable[[Tensor, Tensor], Any]) -> Callable[[Function], Function]:
    return lambda h: value


def _broken(name: str, change: Callable[[Tensor], Any]) -> Fault:
    """A fault of the output that must be refused."""
    return Fault(name, _after(change))


class _Buffer:
    """Writes each result into the same tensor, or into several in turn."""

    def __init__(self, h: Function, *, detached: bool = False, several: int = 1) -> None:
        self.h = h
        self.detached = detached
        self.buffers: list[Tensor | None] = [None] * several

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.h(x, t)
        buffer = self.buffers.pop(0)
        if buffer is None or buffer.shape != y.shape:
            buffer = torch.zeros_like(y)
        self.buffers.append(buffer)
        with torch.no_grad():
            buffer.copy_(y)
        return buffer.detach() if self.detached else buffer


def _at_small_times(value: float, *, columns: int = 2) -> Callable[[Function], Function]:
    """Not finite in the second half of time, in some of the coordinates."""

    def make(h: Function) -> Function:
        def faulty(x: Tensor, t: Tensor) -> Tensor:
            y = h(x, t)
            late = (t < 0.5).reshape(-1, *[1] * (x.ndim - 1)) & (torch.arange(2) < columns)
            return torch.where(late, value, y)

        return faulty

    return make


def _energy(*, enabled: bool, on_x: bool) -> Callable[[Function], Function]:
    """-x as the gradient of an energy."""

    def make(h: Function) -> Function:
        def faulty(x: Tensor, t: Tensor) -> Tensor:
            with torch.set_grad_enabled(enabled or torch.is_grad_enabled()):
                at = x.requires_grad_() if on_x else x.detach().requires_grad_()
                return torch.autograd.grad(-0.5 * at.square().sum(), at)[0]

        return faulty

    return make


def _raising(h: Function) -> Function:
    def faulty(x: Tensor, t: Tensor) -> Tensor:
        if bool((t < 0.5).any()):
            raise LookupError("on purpose")
        return h(x, t)

    return faulty


def _in_inference_mode(h: Function) -> Function:
    def faulty(x: Tensor, t: Tensor) -> Tensor:
        with torch.inference_mode():
            return h(x, t)

    return faulty


def _same(h: Function) -> Function:
    return h


def _negative(h: Function) -> Function:
    return lambda x, t: -x


def _first_column_is_zero(h: Function) -> Function:
    return lambda x, t: h(torch.cat([0 * x[:, :1], x[:, 1:]], dim=1), t)


IN_PLACE = [
    Fault("x.mul_ first", _before(lambda x, t: x.mul_(0.5)), _scaled(0.5)),
    Fault("relu_ first", _before(lambda x, t: x.relu_()), lambda h: lambda x, t: h(x.relu(), t)),
    Fault("x += 1 first", _before(lambda x, t: x.add_(1)), lambda h: lambda x, t: h(x + 1, t)),
    Fault("writes a column of x", _before(lambda x, t: x[:, 0].zero_()), _first_column_is_zero),
    Fault("changes x.detach()", _before(lambda x, t: x.detach().mul_(0.5)), _scaled(0.5)),
    Fault("changes x at the end", lambda h: lambda x, t: (h(x, t), x.zero_())[0], _same),
    Fault("returns x.neg_()", _instead(lambda x, t: x.neg_()), _negative),
    Fault("t.mul_ first", _before(lambda x, t: t.mul_(0.5)), lambda h: lambda x, t: h(x, 0.5 * t)),
    Fault("one buffer for all outputs", _Buffer, _same),
    Fault("one buffer, detached", lambda h: _Buffer(h, detached=True), _same),
    Fault("two buffers in turn", lambda h: _Buffer(h, several=2), _same),
    Fault("three buffers, detached", lambda h: _Buffer(h, detached=True, several=3), _same),
]
SHARED = [
    Fault("identity", _instead(lambda x, t: x), _instead(lambda x, t: x.clone())),
    Fault(
        "a view of x",
        _instead(lambda x, t: x.flatten().view_as(x)),
        _instead(lambda x, t: x.clone()),
    ),
    Fault(
        "x flipped, not contiguous",
        _instead(lambda x, t: x.t().contiguous().t()),
        _instead(lambda x, t: x.clone()),
    ),
    Fault("constant", _instead(lambda x, t: torch.ones_like(x)), _instead(lambda x, t: 1 + 0 * x)),
    Fault(
        "an expanded constant",
        _instead(lambda x, t: x.new_ones(()).expand_as(x)),
        _instead(lambda x, t: 1 + 0 * x),
    ),
]
KINDS = [
    *(
        _broken(f"returns {dtype}", lambda y, d=dtype: y.to(d))
        for dtype in (torch.int64, torch.uint8, torch.bool)
    ),
    _broken("returns complex numbers", lambda y: y.to(torch.complex64)),
    *map(_cast, (torch.float16, torch.bfloat16, torch.float64)),
    _broken("returns None", lambda y: None),
    _broken("returns a tuple", lambda y: (y, y)),
    _broken("returns a list", lambda y: y.tolist()),
    _broken("returns an array", lambda y: y.detach().numpy()),
    _broken("returns a dict", lambda y: {"sample": y}),
    _broken("on another device", lambda y: y.to("meta")),
]
SHAPES = [
    _broken("one number per sample", lambda y: y[:, 0]),
    _broken("one column", lambda y: y[:, :1]),
    _broken("one row", lambda y: y[:1]),
    _broken("one number", lambda y: y.mean()),
    _broken("transposed", lambda y: y.t()),
    _broken("a dimension more", lambda y: y[:, None]),
    _broken("an empty batch", lambda y: y[:0]),
]
VALUES = [
    Fault("NaN at small t", _at_small_times(torch.nan)),
    Fault("infinite at small t", _at_small_times(torch.inf)),
    Fault("NaN in one coordinate", _at_small_times(torch.nan, columns=1)),
    Fault("raises at small t", _raising),
]
GRADIENTS = [
    Fault("gradient of an energy", _energy(enabled=True, on_x=False), _negative),
    Fault("the same with x.requires_grad_()", _energy(enabled=True, on_x=True), _negative),
    Fault("the same without gradients", _energy(enabled=False, on_x=False), _negative),
    Fault("in inference mode", _in_inference_mode, _same),
    Fault("leaves gradients on", _before(lambda x, t: torch.set_grad_enabled(True)), _same),
]
FAULTS = [*IN_PLACE, *SHARED, *KINDS, *SHAPES, *VALUES, *GRADIENTS]


class Network(nn.Module):
    """A network around a function of x and t."""

    def __init__(self, make: Callable[[Function], Function]) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.6, 0.2], [-0.1, 0.5]]))
            self.linear.bias.copy_(torch.tensor([0.1, -0.2]))
        self.function = make(self.sound)

    def sound(self, x: Tensor, t: Tensor) -> Tensor:
        return self.linear(x) * (1 + 0.1 * t[:, None])

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.function(x, t)


class Layers(nn.Module):
    """The sound network between layers that differ in training mode."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = Network(_same)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(self.layers(x), t)


class Holder(nn.Module):
    """A module that somebody wrote around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t)
