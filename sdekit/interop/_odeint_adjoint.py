"""torchdiffeq's odeint_adjoint: gradients by an equation that is solved backwards, in memory that
does not grow with steps.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sdekit.calling import require_call, require_order
from sdekit.interop._guarded import GuardedMethod
from sdekit.interop._odeint import handed, odeint
from sdekit.interop._odeint_methods import require_arguments, require_method, solved_here
from sdekit.interop._originals import original, torchdiffeq_adjoint
from sdekit.interop._system import State, System


def odeint_adjoint(
    func: Callable[..., Any],
    y0: State,
    t: Tensor | Sequence[float],
    *,
    rtol: Any = 1e-7,  # noqa: ANN401 - a number, or what torchdiffeq takes
    atol: Any = 1e-9,  # noqa: ANN401
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: Any = None,  # noqa: ANN401
    adjoint_atol: Any = None,  # noqa: ANN401
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:  # noqa: ANN401 - as y0, or the pair that event_fn asks for
    """`odeint` with gradients by the adjoint equation, as `torchdiffeq.odeint_adjoint`: its
    arguments and defaults.

    With L the loss and a = dL/dy, da = -a^T (df/dy) dt and d(dL/dp) = -a^T (df/dp) dt are solved
    backwards along with y, which is reset to its value at each of t. torchdiffeq solves the cases
    that `odeint` passes to it, and those with adjoint_options with a norm.

    Arguments:
        func, y0, t, rtol, atol, method, options, event_fn: as of `odeint`.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: those of the backward solve;
            None means the same as forward.
        adjoint_params: what gets gradients besides y0; None means the parameters of func, a module.

    Returns:
        as `odeint`.

    Raises:
        ValueError: for a func that is not a module without adjoint_params.
        UnfinishedError, NotFiniteError, TypeError, ValueError: as `odeint`; in the backward pass
            too.

    Example:
        >>> class Field(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(2, 2)
        ...     def forward(self, t, y):
        ...         return self.linear(y)
        >>> field = Field()
        >>> y = sdekit.odeint_adjoint(field, torch.ones(3, 2), torch.linspace(0.0, 1.0, 2))
        >>> y[-1].sum().backward()
        >>> field.linear.weight.grad.shape
        torch.Size([2, 2])

    References:
        Chen et al. 2018, "Neural ordinary differential equations", arXiv 1806.07366.
    """
    require_arguments(y0, t)
    require_method(method)
    require_method(adjoint_method)
    require_order(func, "t, x")
    there: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    back: dict[str, Any] = {
        "rtol": rtol if adjoint_rtol is None else adjoint_rtol,
        "atol": atol if adjoint_atol is None else adjoint_atol,
        "method": method if adjoint_method is None else adjoint_method,
        "options": options if adjoint_options is None else adjoint_options,
    }
    ours = all(solved_here(func, y0, t, event_fn, **settings) for settings in (there, back))
    unclear = options is not None and adjoint_options is None and back["method"] != method
    unknown = adjoint_params is None and (
        not isinstance(func, nn.Module) or getattr(func, "_is_replica", False)
    )
    if not ours or unclear or unknown:
        back["options"] = adjoint_options
        return _by_torchdiffeq(func, y0, t, event_fn, there, back, adjoint_params)
    found = (
        func.parameters()
        if adjoint_params is None and isinstance(func, nn.Module)
        else adjoint_params
    )
    params = [param for param in found or () if param.requires_grad]
    system = System(func, y0)
    xs = _Adjoint.apply(_Way(system, t, there, back), system.flat(y0), *params)
    return system.shaped(xs)


def _by_torchdiffeq(
    func: Callable[..., Any],
    y0: State,
    t: Tensor | Sequence[float],
    event_fn: Callable[..., Any] | None,
    there: dict[str, Any],
    back: dict[str, Any],
    params: Iterable[Tensor] | None,
) -> Any:  # noqa: ANN401 - as odeint_adjoint
    if params is None and isinstance(func, nn.Module):
        params = original("torchdiffeq._impl.adjoint", "find_parameters")(func)
    given: dict[str, Any] = {f"adjoint_{name}": value for name, value in back.items()}
    given["event_fn"] = event_fn and GuardedMethod("event_fn(t, y)", event_fn)
    try:
        return torchdiffeq_adjoint(*handed(func, y0, t), **there, **given, adjoint_params=params)
    except TypeError:
        require_call(func, "func(t, y)", t, y0)
        raise


@dataclass(frozen=True, eq=False)
class _Way:
    """What is solved, when, and how there and back."""

    system: System
    t: Tensor | Sequence[float]
    there: dict[str, Any]
    back: dict[str, Any]

    def slopes(
        self, t: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Those of y, a and the gradients of params: a tensor each, but y and a in parts, so that
        each has its own error.
        """
        half = len(self.system.sizes)
        with torch.enable_grad():
            x = torch.cat(
                [part.detach().reshape(1, -1) for part in state[:half]], dim=1
            ).requires_grad_()
            slope = self.system.drift(t, x)
            a = torch.cat([part.reshape(1, -1) for part in state[half : 2 * half]], dim=1)
            products = [None] * (1 + len(params))
            if slope.requires_grad:
                products = torch.autograd.grad(slope, (x, *params), -a, allow_unused=True)
        zeroed = [
            torch.zeros_like(of) if p is None else p
            for p, of in zip(products, (x, *params), strict=True)
        ]
        return *self.parts(slope.detach()), *self.parts(zeroed[0]), *zeroed[1:]

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.reshape(-1).split(self.system.sizes)


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: _Way, x0: Tensor, *params: Tensor) -> Tensor:  # noqa: ANN401
        system = way.system
        xs = odeint(system.func, system.shaped(x0[0]), way.t, **way.there)
        xs = torch.cat(
            [part.reshape(len(way.t), -1) for part in ((xs,) if system.single else xs)], dim=1
        )
        ctx.way = way
        ctx.save_for_backward(xs, *params)
        return xs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        way: _Way = ctx.way
        xs, *params = ctx.saved_tensors
        half = len(way.system.sizes)
        a = grad[-1]
        found = tuple(torch.zeros_like(param) for param in params)
        for i in range(len(xs) - 1, 0, -1):
            state = (*way.parts(xs[i]), *way.parts(a), *found)
            span = [float(way.t[i]), float(way.t[i - 1])]
            ends = odeint(lambda t, state: way.slopes(t, state, params), state, span, **way.back)
            a = torch.cat([part[1] for part in ends[half : 2 * half]]) + grad[i - 1]
            found = tuple(part[1] for part in ends[2 * half :])
        return None, a.reshape(1, -1), *found
