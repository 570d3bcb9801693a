"""torchdiffeq's odeint_adjoint: gradients by the adjoint equation, in memory that does not grow
with the number of steps.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sdekit.calling import require_call, require_order
from sdekit.interop._guarded import GuardedMethod
from sdekit.interop._odeint import guarded_arguments, odeint
from sdekit.interop._odeint_methods import is_supported, require_arguments, require_method
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
    forward: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    given: dict[str, Any] = {
        "rtol": adjoint_rtol,
        "atol": adjoint_atol,
        "method": adjoint_method,
        "options": adjoint_options,
    }
    backward = {name: forward[name] if given[name] is None else given[name] for name in forward}
    supported = all(
        is_supported(func, y0, t, event_fn, **settings) for settings in (forward, backward)
    )
    ambiguous = options is not None and adjoint_options is None and backward["method"] != method
    unknown_parameters = adjoint_params is None and (
        not isinstance(func, nn.Module) or getattr(func, "_is_replica", False)
    )
    if not supported or ambiguous or unknown_parameters:
        backward["options"] = adjoint_options
        return _solve_by_torchdiffeq(func, y0, t, event_fn, forward, backward, adjoint_params)
    candidates = (
        func.parameters()
        if adjoint_params is None and isinstance(func, nn.Module)
        else adjoint_params
    )
    params = [param for param in candidates or () if param.requires_grad]
    system = System(func, y0)
    xs = _Adjoint.apply(_AdjointProblem(system, t, forward, backward), system.flat(y0), *params)
    return system.shaped(xs)


def _solve_by_torchdiffeq(
    func: Callable[..., Any],
    y0: State,
    t: Tensor | Sequence[float],
    event_fn: Callable[..., Any] | None,
    forward_settings: dict[str, Any],
    backward_settings: dict[str, Any],
    params: Iterable[Tensor] | None,
) -> Any:  # noqa: ANN401 - as odeint_adjoint
    if params is None and isinstance(func, nn.Module):
        params = original("torchdiffeq._impl.adjoint", "find_parameters")(func)
    adjoint_settings: dict[str, Any] = {
        f"adjoint_{name}": value for name, value in backward_settings.items()
    }
    adjoint_settings["event_fn"] = event_fn and GuardedMethod("event_fn(t, y)", event_fn)
    try:
        return torchdiffeq_adjoint(
            *guarded_arguments(func, y0, t),
            **forward_settings,
            **adjoint_settings,
            adjoint_params=params,
        )
    except TypeError:
        require_call(func, "func(t, y)", t, y0)
        raise


@dataclass(frozen=True, eq=False)
class _AdjointProblem:
    """The system, its times, and the settings of the forward and the backward solve."""

    system: System
    t: Tensor | Sequence[float]
    forward_settings: dict[str, Any]
    backward_settings: dict[str, Any]

    def slopes(
        self, t: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The slopes of y, a and the gradients of params; y and a are split into their parts, so
        that each has its own error.
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
        gradients = [
            torch.zeros_like(tensor) if product is None else product
            for product, tensor in zip(products, (x, *params), strict=True)
        ]
        return *self.parts(slope.detach()), *self.parts(gradients[0]), *gradients[1:]

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.reshape(-1).split(self.system.sizes)


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _AdjointProblem, x0: Tensor, *params: Tensor) -> Tensor:  # noqa: ANN401
        system = problem.system
        xs = odeint(system.func, system.shaped(x0[0]), problem.t, **problem.forward_settings)
        xs = torch.cat(
            [part.reshape(len(problem.t), -1) for part in ((xs,) if system.single else xs)], dim=1
        )
        ctx.problem = problem
        ctx.save_for_backward(xs, *params)
        return xs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ANN401 # pyright: ignore[reportIncompatibleMethodOverride]
        problem: _AdjointProblem = ctx.problem
        xs, *params = ctx.saved_tensors
        half = len(problem.system.sizes)
        a = grad[-1]
        gradients = tuple(torch.zeros_like(param) for param in params)
        for i in range(len(xs) - 1, 0, -1):
            state = (*problem.parts(xs[i]), *problem.parts(a), *gradients)
            span = [float(problem.t[i]), float(problem.t[i - 1])]
            ends = odeint(
                lambda t, state: problem.slopes(t, state, params),
                state,
                span,
                **problem.backward_settings,
            )
            a = torch.cat([part[1] for part in ends[half : 2 * half]]) + grad[i - 1]
            gradients = tuple(part[1] for part in ends[2 * half :])
        return None, a.reshape(1, -1), *gradients
