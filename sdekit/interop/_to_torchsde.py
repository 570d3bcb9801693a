"""Equations of sdekit as equations of torchsde."""

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType

import torch
from torch import Tensor, nn

from sdekit._equations.sde import AbstractSDE
from sdekit.interop._guarded import GuardedMethod


def to_torchsde(
    problem: AbstractSDE, event: Sequence[int] | None = None, *, modules: Iterable[nn.Module] = ()
) -> nn.Module:
    """An equation for torchsde's solvers, with the methods f, g and g_prod for states `(batch, d)`.

    | noise_type | g | torchsde's noise_type |
    |---|---|---|
    | additive | `(batch, d, d)`, diagonal matrices | additive |
    | diagonal | `(batch, d)` | diagonal |
    | scalar | `(batch, d, 1)` | scalar |
    | general | `(batch, d, m)` | general |

    The additive g of an equation from `from_torchsde` remains `(batch, d, m)`.

    The result is a module with the modules and parameters of the equation, so that
    `torchsde.sdeint_adjoint` differentiates with respect to them: those in its attributes, and
    those that its functions and methods close over or use as globals.

    Arguments:
        problem: the equation.
        event: the shape of the state of one sample, which torchsde receives as d numbers; None for
            states that are `(batch, d)` already.
        modules: further modules on which the equation depends.

    Raises:
        ValueError: for an equation without noise.

    Example:
        >>> import torchsde
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 0.1 * x)
        >>> module = sdekit.interop.to_torchsde(sde)
        >>> ts = torch.tensor([0.0, 1.0])
        >>> torchsde.sdeint(module, torch.ones(4, 2), ts, method="euler", dt=0.1).shape
        torch.Size([2, 4, 2])
    """
    if problem.noise_type == "none":
        raise ValueError(
            "this equation has no noise, which torchsde's always have; use sdekit.solve or "
            "interop.solve_ode"
        )
    return _AsTorchsde(problem, None if event is None else tuple(event), modules)


class _AsTorchsde(nn.Module):
    """See `to_torchsde`."""

    def __init__(
        self, problem: AbstractSDE, event: tuple[int, ...] | None, modules: Iterable[nn.Module]
    ) -> None:
        super().__init__()
        self.problem = problem
        self.event = event
        self.drift = GuardedMethod("the drift", problem.drift)
        self.diffusion = GuardedMethod("the diffusion", problem.diffusion)
        self.diffuse = GuardedMethod("the diffusion", problem.diffuse)
        self.noise_type = problem.noise_type
        self.sde_type = problem.sde_type
        items = {
            id(item): item for root in (problem, *modules) for item in modules_and_parameters(root)
        }.values()
        self.modules_held = nn.ModuleList(item for item in items if isinstance(item, nn.Module))
        self.parameters_held = nn.ParameterList(
            item for item in items if isinstance(item, nn.Parameter)
        )

    def _state(self, y: Tensor) -> Tensor:
        return y if self.event is None else y.reshape(len(y), *self.event)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(float(t), self._state(y)).reshape(y.shape)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        x = self._state(y)
        g = torch.as_tensor(self.diffusion(float(t), x), dtype=x.dtype, device=x.device)
        if self.noise_type == "general" or g.ndim > x.ndim:
            return g.reshape(*y.shape, -1)
        g = torch.broadcast_to(g, x.shape).reshape(y.shape)
        if self.noise_type == "scalar":
            return g.unsqueeze(-1)
        return torch.diag_embed(g) if self.noise_type == "additive" else g

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        x = self._state(y)
        dw = v.reshape(len(v), *(self.problem.noise_shape(x) or ()))
        return self.diffuse(float(t), x, dw, torch.zeros_like(x)).reshape(y.shape)


def modules_and_parameters(
    value: object, visited: set[int] | None = None
) -> Iterator[nn.Module | nn.Parameter]:
    """The modules and parameters within a value, also in the attributes of objects, in containers,
    and in the variables of functions and methods.
    """
    visited = set() if visited is None else visited
    if id(value) in visited:
        return
    visited.add(id(value))
    if isinstance(value, nn.Module | nn.Parameter):
        yield value
        return
    for part in _parts(value):
        yield from modules_and_parameters(part, visited)


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, FunctionType):
        variables = inspect.getclosurevars(value)
        return (*variables.nonlocals.values(), *variables.globals.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, list | tuple | set):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, BuiltinMethodType):
        return (value.__self__,)
    if isinstance(value, type | ModuleType):
        return ()
    parts = [getattr(value, field.name) for field in fields(value)] if is_dataclass(value) else []
    package = type(value).__module__.partition(".")[0]
    if package == "torch" or package in sys.stdlib_module_names:
        return parts
    parts += getattr(value, "__dict__", {}).values()
    if package not in ("sdekit", "sdekit_diffusion"):  # its methods may use variables as well
        methods = ("drift", "diffusion", "diffuse") if isinstance(value, AbstractSDE) else ()
        parts += [getattr(type(value), name, None) for name in ("__call__", *methods)]
    return parts
