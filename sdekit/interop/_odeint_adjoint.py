"""torchdiffeq's odeint_adjoint: gradients by the adjoint equation, in memory that does not grow
with the number of steps.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdekit._grid import times
from sdekit.calling import require_call, require_order
from sdekit.interop._crossing import Crossing
from sdekit.interop._guarded import GuardedMethod
from sdekit.interop._odeint import guarded_arguments, odeint
from sdekit.interop._odeint_methods import (
    CALLBACKS,
    is_supported,
    require_arguments,
    require_method,
    tolerances,
)
from sdekit.interop._odeint_steps import rms
from sdekit.interop._odeint_times import differentiated_once
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
    """`odeint` with gradients by the adjoint equation, as `torchdiffeq.odeint_adjoint`, with its
    arguments and defaults.

    With the loss L, f = func, parameters p and a = dL/dy, the equations da = -a^T (df/dy) dt and
    d(dL/dp) = -a^T (df/dp) dt are solved backwards together with y, which is reset to its forward
    value at each of t. Memory does not grow with the number of steps. The methods that `odeint`
    leaves to torchdiffeq are left to it here too.

    Arguments:
        func, y0, t, rtol, atol, method, options, event_fn: as in `odeint`. The attributes
            callback_step_adjoint, callback_accept_step_adjoint and callback_reject_step_adjoint of
            func are called in the backward solve.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: the settings of the backward
            solve; None takes those of the forward solve. The "norm" of adjoint_options is a
            function of the tuple (0, y, a, *gradients of the parameters), in which a tuple y has
            one entry for each of its tensors, as has a; or "seminorm", which leaves out the
            parameters.
        adjoint_params: the tensors that get gradients besides y0 and t; None means the parameters
            of func, which must then be a module.

    Returns:
        as `odeint`.

    Raises:
        ValueError: without adjoint_params for a func that is not a module, and for options without
            adjoint_options if the methods differ.
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
        Chen et al. 2018, "Neural ordinary differential equations", arXiv 1806.07366; Kidger, Chen
        and Lyons 2021, arXiv 2009.09457, for the seminorm.
    """
    require_arguments(y0, t)
    require_method(method, options)
    require_method(adjoint_method, adjoint_options)
    require_order(func, "t, x")
    forward: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": method, "options": options}
    backward: dict[str, Any] = {
        "rtol": rtol if adjoint_rtol is None else adjoint_rtol,
        "atol": atol if adjoint_atol is None else adjoint_atol,
        "method": method if adjoint_method is None else adjoint_method,
        "options": adjoint_options,
    }
    params = _parameters(func, adjoint_params)
    if options is not None and adjoint_options is None and backward["method"] != method:
        raise ValueError(
            "adjoint_options must be given where options are and adjoint_method is another method"
        )
    if not (is_supported(method) and is_supported(backward["method"])):
        return _solve_by_torchdiffeq(func, y0, t, event_fn, forward, backward, params)
    system = System(func, y0)
    backward["options"] = _backward_options(options, adjoint_options, system)
    like = system.flat(y0)
    for name, given in (("rtol", adjoint_rtol), ("atol", adjoint_atol)):
        if given is None:
            backward[name] = _of_all(name, forward[name], system, like, len(params))
    problem = _Problem(system, _numbers(t), forward, backward, event_fn)
    floating = isinstance(t, Tensor) and t.is_floating_point()
    at = t if floating else torch.tensor(_checked(t), dtype=torch.float64)
    xs, when = _Adjoint.apply(problem, system.flat(y0), at, *params)
    states = system.shaped(xs)
    return states if event_fn is None else (when, states)


def _of_all(
    name: str,
    value: Any,  # noqa: ANN401
    system: System,
    like: Tensor,
    params: int,
) -> Any:  # noqa: ANN401
    """A tolerance of y as one of (0, y, a, *gradients): a has those of y, and all others have the
    largest of them.
    """
    parts = tolerances(name, value, system, like)
    if not any(isinstance(part, Tensor) for part in parts) and len({*parts}) == 1:
        return parts[0]
    largest = max(float(torch.as_tensor(part).max()) for part in parts)
    return (largest, *parts, *parts, *[largest] * params)


def _parameters(func: object, given: Iterable[Tensor] | None) -> list[Tensor]:
    """The tensors that get gradients.

    Raises:
        ValueError: where they are not given, and func is not a module.
    """
    if given is None:
        if not isinstance(func, nn.Module):
            raise ValueError(
                "func is not a torch.nn.Module, whose parameters would get gradients: give "
                "adjoint_params, such as () for none"
            )
        given = original("torchdiffeq._impl.adjoint", "find_parameters")(func)
    return [param for param in given or () if param.requires_grad]


def _checked(t: Tensor | Sequence[float]) -> Sequence[float]:
    """Times as numbers; one alone is not a grid."""
    return times(t) if len(t) > 1 else [float(t[0])]


def _numbers(t: Tensor | Sequence[float]) -> Tensor | Sequence[float]:
    return t.detach() if isinstance(t, Tensor) else t


def _backward_options(
    options: Mapping[str, Any] | None, given: Mapping[str, Any] | None, system: System
) -> dict[str, Any]:
    """The options of the backward solve: those of the forward solve but for its norm, or the given
    ones, with a norm of the tuple of all that it solves.
    """
    backward = dict((options or {}) if given is None else given)
    forward_norm = (options or {}).get("norm")
    norm = backward.pop("norm", None) if given is not None else None
    backward.pop("norm", None)
    if callable(norm):
        return {**backward, "norm": norm}
    if norm is None and forward_norm is None:
        return backward
    parts = len(system.shapes)

    def of_state(state: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
        if forward_norm is None:
            return max(map(rms, state))
        return forward_norm(state[0] if system.single else state)

    def of_all(state: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
        rest = () if norm == "seminorm" else state[1 + 2 * parts :]
        y = state[1 : 1 + parts]
        a = state[1 + parts : 1 + 2 * parts]
        return max(abs(of_state(y)), abs(of_state(a)), *map(rms, rest))

    return {**backward, "norm": of_all}


def _solve_by_torchdiffeq(
    func: Callable[..., Any],
    y0: State,
    t: Tensor | Sequence[float],
    event_fn: Callable[..., Any] | None,
    forward_settings: dict[str, Any],
    backward_settings: dict[str, Any],
    params: Sequence[Tensor],
) -> Any:  # noqa: ANN401 - as odeint_adjoint
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
class _Problem:
    """The system, its times, and the settings of the forward and the backward solve."""

    system: System
    t: Tensor | Sequence[float]
    forward_settings: dict[str, Any]
    backward_settings: dict[str, Any]
    event_fn: Callable[..., Any] | None


class _Backward:
    """The slopes of (0, y, a, gradients of the parameters); each tensor of y and a has its own
    error. The number 0 is in the place where torchdiffeq's norms expect the gradient of the time.
    """

    def __init__(self, system: System, params: Sequence[Tensor]) -> None:
        self.system = system
        self.params = params
        for name in CALLBACKS:
            if hasattr(system.func, f"{name}_adjoint"):
                setattr(self, name, getattr(system.func, f"{name}_adjoint"))

    def __call__(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parts = len(self.system.shapes)
        with torch.enable_grad():
            x = self._joined(state[1 : 1 + parts]).detach().requires_grad_()
            slope = self.system.drift(t, x)
            a = self._joined(state[1 + parts : 1 + 2 * parts])
            products = [None] * (1 + len(self.params))
            if slope.requires_grad:
                products = torch.autograd.grad(slope, (x, *self.params), -a, allow_unused=True)
        gradients = [
            torch.zeros_like(tensor) if product is None else product
            for product, tensor in zip(products, (x, *self.params), strict=True)
        ]
        return (
            torch.zeros_like(state[0]),
            *self.system.parts(slope.detach()[0]),
            *self.system.parts(gradients[0][0]),
            *gradients[1:],
        )

    def _joined(self, parts: tuple[Tensor, ...]) -> Tensor:
        return self.system.flat(parts[0] if self.system.single else parts)


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        problem: _Problem,
        x0: Tensor,
        t: Tensor,
        *params: Tensor,
    ) -> tuple[Tensor, Tensor]:
        system = problem.system
        result = odeint(
            system.func, system.shaped(x0[0]), problem.t,
            **problem.forward_settings, event_fn=problem.event_fn,
        )  # fmt: skip
        when, states = (t[-1:], result) if problem.event_fn is None else result
        parts = (states,) if system.single else states
        rows = [system.flat(row[0] if system.single else row) for row in zip(*parts, strict=True)]
        xs = torch.cat(rows)
        ctx.problem = problem
        ends = (t[0], when.reshape(())) if problem.event_fn is not None else t
        ctx.ends = [float(end) for end in ends]
        ctx.save_for_backward(xs, t, *params)
        return xs, when.clone()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
        by_when: Tensor,
    ) -> Any:  # noqa: ANN401
        with torch.no_grad():
            a, by_t, gradients = _Adjoint.solved(ctx, grad, by_when)
        name = "derivatives by the adjoint equation"
        a, by_t, *gradients = differentiated_once(name, ctx.saved_tensors[0], a, by_t, *gradients)
        return None, a, by_t if ctx.needs_input_grad[2] else None, *gradients

    @staticmethod
    def solved(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
        by_when: Tensor,
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """The derivatives with respect to x0, the times, and the parameters."""
        problem: _Problem = ctx.problem
        system = problem.system
        ends: list[float] = ctx.ends
        xs, t, *params = ctx.saved_tensors
        parts = len(system.shapes)
        a = grad[-1:]
        if problem.event_fn is not None and bool(by_when):
            a = a + by_when * _of_event(problem, ends, xs)
        gradients = tuple(torch.zeros_like(param) for param in params)
        by_t = torch.zeros(len(ends), dtype=torch.float64, device=xs.device)
        zero = xs.new_zeros(())
        for i in range(len(xs) - 1, 0, -1):
            by_t[i] = _product(ctx, grad[i], ends[i], xs[i])
            state = (zero, *system.parts(xs[i]), *system.parts(a[0]), *gradients)
            solved = odeint(
                _Backward(system, params), state, [ends[i], ends[i - 1]],
                **problem.backward_settings,
            )  # fmt: skip
            there = tuple(part[1] for part in solved)
            a_parts = there[1 + parts : 1 + 2 * parts]
            a = system.flat(a_parts[0] if system.single else a_parts)
            if i == 1:
                by_t[0] = -_product(ctx, a[0], ends[0], xs[0])
            a = a + grad[i - 1]
            gradients = there[1 + 2 * parts :]
        if problem.event_fn is not None:
            by_t[1] = 0.0
        return a, by_t.to(t), gradients


def _of_event(problem: _Problem, ends: Sequence[float], xs: Tensor) -> Tensor:
    """The derivative of the time of an event with respect to the state at that time."""
    assert problem.event_fn is not None
    crossing = Crossing(problem.system, problem.event_fn, ends[0], xs[:1])
    t = torch.tensor(ends[1], dtype=torch.float64, device=xs.device)
    rate, by_x = crossing.derivatives(t, xs[1:])
    return -by_x / rate if rate else torch.zeros_like(by_x)


def _product(ctx: Any, a: Tensor, t: float, x: Tensor) -> float | Tensor:  # noqa: ANN401
    """a f(t, x), where derivatives with respect to the times are asked for."""
    if not ctx.needs_input_grad[2]:
        return 0.0
    with torch.no_grad():
        return (a * ctx.problem.system.drift(t, x[None])[0]).sum()
