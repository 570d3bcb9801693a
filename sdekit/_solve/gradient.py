"""Gradients of a fixed-grid solve for which autograd does not record every step.

Noise has random access, so the backward pass can repeat any steps of the forward pass with the same
noise.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import Node
from torch.utils.checkpoint import checkpoint

from sdekit._solve.active import tensors
from sdekit._solve.steps import Steps
from sdekit._solvers.contract import Tree
from sdekit.calling import is_in_forward_mode


class AbstractGradient(ABC):
    """How the backward pass of a fixed-grid solve is computed: `Checkpointed` or `Reversible`.

    Example:
        >>> isinstance(sdekit.Checkpointed(), sdekit.AbstractGradient)
        True
    """

    @abstractmethod
    def states(self, steps: Steps, x0: Tensor, *, every: bool) -> Iterator[tuple[int, Tensor]]:
        """The states of a solve after the initial one, each with its number of steps.

        The last state is always included.

        Arguments:
            steps: the steps of the solve.
            x0: the initial states, `(batch, *event)`.
            every: whether all states are wanted.
        """


@dataclass(frozen=True, eq=False)
class Checkpointed(AbstractGradient):
    """Keeps every ceil(sqrt(n))-th state of n steps; the backward pass repeats the steps between
    them.

    The gradient is that of plain autograd, up to the order of its sums. Memory falls from the
    tensors of n steps to those of about 2 sqrt(n) steps, and f is evaluated twice as often. The
    nodes of autograd's graph, one per operation, are kept, so that the saving is small for small
    states. All tensors that autograd reaches get a gradient, and second derivatives work.

    Raises:
        RuntimeError: in the backward pass, when a leaf on which the first steps depend was changed
            in place after the solve.
        ValueError: in a solve, for a solver whose steps use derivatives of f: `Rodas4`, `Rodas5P`,
            `ImplicitEulerMaruyama`, `ImplicitPlaten`; with `control=`, `event=`, `save="dense"` or
            times.

    Example:
        >>> rate = torch.tensor(-1.0, requires_grad=True)
        >>> ode = sdekit.ODE(lambda t, x: rate * x)
        >>> ts, solver = sdekit.uniform(0.0, 1.0, 20), sdekit.RK4()
        >>> gradient = sdekit.Checkpointed()
        >>> sdekit.solve(ode, torch.ones(1, 1), ts, solver=solver, gradient=gradient).x.backward()
        >>> round(float(rate.grad), 4)  # e^-1
        0.3679

    References:
        Griewank and Walther 2008, "Evaluating derivatives", section 12.2; Chen et al. 2016,
        arXiv 1604.06174.
    """

    def states(self, steps: Steps, x0: Tensor, *, every: bool) -> Iterator[tuple[int, Tensor]]:
        x = x0
        state = steps.init(x0)
        n = len(steps)
        length = math.isqrt(n - 1) + 1
        versions: list[tuple[Tensor, int]] = []

        def run(*arguments: Any) -> tuple[list[Tensor], Tensor, Tree]:  # noqa: ANN401
            if any(leaf._version != version for leaf, version in versions):
                raise RuntimeError(
                    "a tensor on which f or g depends was changed in place after the solve, and "
                    "Checkpointed() repeats its steps: change it after the backward pass"
                )
            return steps.run(*arguments)

        for i in range(0, n, length):
            j = min(i + length, n)
            xs, x, state = checkpoint(run, x, state, i, j, every, use_reentrant=False)
            if i == 0:
                leaves = _leaves(_nodes(tensors((xs, x, state)), before=x0))
                versions += [(leaf, leaf._version) for leaf in leaves]
            yield from zip(range(j + 1 - len(xs), j + 1), xs, strict=True)


@dataclass(frozen=True, eq=False)
class Reversible(AbstractGradient):
    """Keeps only the last state; the backward pass runs the solver backwards, exactly up to
    rounding.

    Memory does not depend on the number of steps; a step costs three evaluations of f instead of
    one. The solver must be reversible (`ReversibleHeun`). If the drift contracts at some rate,
    rounding errors of the backward solve grow like e^(rate t). So its end is compared with x0, and
    an error is raised if they differ. Only first derivatives exist.

    Gradients go to x0 and to the tensors that f and g close over, such as the parameters of
    modules. These are found in the graph of the first step, at the cost of one step: all leaves
    that require a gradient. If a later step uses another leaf, an error is raised. A tensor that is
    not a leaf gets a gradient only if it is in `parameters`: list it for
    `torch.autograd.functional`, whose `create_graph=True` makes such tensors of its inputs and
    takes gradients that are missing as 0, so that a Hessian is 0 instead of an error.

    Arguments:
        parameters: the tensors that get gradients, instead of those found: to leave out some, or to
            include a tensor that is not a leaf, for `torch.autograd.grad`. None of them may be
            computed from another.

    Raises:
        TypeError: in a solve, for a solver that is not reversible.
        RuntimeError: in the backward pass, when a step uses a leaf that the first step did not, and
            for second derivatives; in a solve, for derivatives in forward mode.
        ArithmeticError: in the backward pass, when it does not return to x0.

    Example:
        >>> rate = torch.tensor(-1.0, requires_grad=True)
        >>> ode = sdekit.ODE(lambda t, x: rate * x)
        >>> ts, solver = sdekit.uniform(0.0, 1.0, 50), sdekit.ReversibleHeun()
        >>> gradient = sdekit.Reversible()
        >>> sdekit.solve(ode, torch.ones(1, 1), ts, solver=solver, gradient=gradient).x.backward()
        >>> round(float(rate.grad), 3)  # e^-1
        0.368

    References:
        Kidger, Foster, Li and Lyons 2021, arXiv 2105.13493, algorithms 1 and 2.
    """

    parameters: Iterable[Tensor] | None = None

    def __post_init__(self) -> None:
        if self.parameters is not None:
            unique = {id(tensor): tensor for tensor in self.parameters}
            object.__setattr__(self, "parameters", tuple(unique.values()))

    def states(self, steps: Steps, x0: Tensor, *, every: bool) -> Iterator[tuple[int, Tensor]]:
        if not steps.solver.reversible:
            name = type(steps.solver).__name__
            raise TypeError(
                f"{name} cannot be run backwards exactly; use ReversibleHeun, or "
                "gradient=Checkpointed()"
            )
        if is_in_forward_mode():
            _require_no_tangents(steps, x0)
        leaves, shared_graph = _captured_leaves(steps, x0)
        parameters = leaves if self.parameters is None else tuple(self.parameters)
        xs = _ReversibleSolve.apply(
            steps,
            every,
            _VectorJacobianProduct(parameters, self.parameters is None, shared_graph),
            x0,
            *parameters,
        )
        yield from zip(range(len(steps) + 1 - len(xs), len(steps) + 1), xs, strict=True)


def _require_no_tangents(steps: Steps, x: Tensor) -> None:
    """Refuses derivatives in forward mode, which would be lost.

    Raises:
        RuntimeError: with what to do.
    """
    increment = next(steps.increments(x, 0, 1))
    ends = steps.step(0, increment, x, steps.init(x))
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors(ends)):
        raise RuntimeError(
            "Reversible() has no derivatives in forward mode: leave out gradient, or take "
            "gradient=Checkpointed()"
        )


def _captured_leaves(steps: Steps, x: Tensor) -> tuple[list[Tensor], bool]:
    """The leaves that require a gradient on which f and g depend besides x, and whether part of
    their graph is shared by all steps.
    """
    if not torch.is_grad_enabled():
        return [], False
    x = x.detach()
    state = steps.init(x)
    increment = next(steps.increments(x, 0, 1))
    first = _nodes(tensors(state))
    second = _nodes(
        tensors(
            steps.step(0, increment, x, _with_tensors(state, map(Tensor.detach, tensors(state))))
        )
    )
    return _leaves(first | second), any(node.next_functions for node in first & second)


class _ReversibleSolve(torch.autograd.Function):
    """From x(t_0) and parameters to the states of a solve; only the last is saved, from which the
    backward pass starts.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        steps: Steps,
        every: bool,
        vjp: "_VectorJacobianProduct",
        x: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        xs, last, state = steps.run(x, steps.init(x), 0, len(steps), every)
        # Parameters are saved by autograd, which then notices if they are changed before the
        # backward pass.
        ctx.save_for_backward(x, last, *parameters)
        ctx.steps = steps
        ctx.vjp = vjp
        ctx.state = _with_tensors(state, map(Tensor.detach, tensors(state)))
        ctx.set_materialize_grads(False)
        return tuple(xs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:  # noqa: ANN401
        with torch.no_grad():
            first = _ReversibleSolve.gradients(ctx, gradients)
        if not torch.is_grad_enabled():
            return (None, None, None, *first)
        origins = [t for t in (*ctx.saved_tensors, *gradients) if t is not None]
        marked = iter(_FirstDerivatives.apply(*[g for g in first if g is not None], *origins))
        return (None, None, None, *(g if g is None else next(marked) for g in first))

    @staticmethod
    def gradients(
        ctx: Any,  # noqa: ANN401
        gradients: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """The gradients of x(t_0) and the parameters."""
        (x0, x, *_) = ctx.saved_tensors
        state = ctx.state
        steps = ctx.steps
        vjp = ctx.vjp
        output_gradients = dict(
            zip(range(len(steps) - len(gradients), len(steps)), gradients, strict=True)
        )
        gradients_at: list[Tensor | None] = [None] * (1 + len(tensors(state)))
        parameter_gradients: list[Tensor | None] = [None] * len(vjp.parameters)
        largest = x.abs()
        for i, increment in steps.backwards(x):
            gradients_at[0] = _sum(gradients_at[0], output_gradients.get(i))
            x, state = steps.reverse_step(i, increment, x, state)
            largest = torch.maximum(largest, x.abs())
            gradients_at, contributions = vjp(
                partial(steps.step, i, increment), (x, state), gradients_at
            )
            parameter_gradients = list(map(_sum, parameter_gradients, contributions))
        _require_return(x, x0, largest)
        (gradient,), contributions = vjp(steps.init, (x,), gradients_at[1:])
        of_parameters = map(_sum, parameter_gradients, contributions)
        return [_sum(gradients_at[0], gradient), *of_parameters]


class _FirstDerivatives(torch.autograd.Function):
    """Gradients that also depend on further tensors, but whose own derivatives are refused."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        raise RuntimeError(
            "Reversible() gives first derivatives only; use gradient=Checkpointed() for second ones"
        )


def _require_return(x: Tensor, x0: Tensor, largest: Tensor) -> None:
    """Refuses a backward solve that does not end at x0: its gradients would belong to another path.

    Differences are relative to the largest number of their sample on the way, so that they do not
    depend on units; but where a solve has become large, to no more than 1 + max |x0|.

    Arguments:
        largest: the largest absolute value of each number on the way back to x.

    Raises:
        ArithmeticError: with the largest relative difference.
    """
    if not x.numel():
        return
    missed, scale = (part.reshape(len(x), -1).amax(1) for part in ((x - x0).abs(), largest))
    scale = scale.clamp_min(torch.finfo(x.dtype).tiny).minimum(1 + x0.abs().max())
    error = float((missed / scale).max())
    if not error <= torch.finfo(x.dtype).eps ** (1 / 3):
        raise ArithmeticError(
            f"run backwards, a sample ends {error:.1e} away from x0 in relative terms: rounding "
            "errors grow like e^(rate t) where the drift contracts at a rate; use "
            "gradient=Checkpointed(), a wider dtype, or a shorter solve"
        )


@dataclass(frozen=True, eq=False)
class _VectorJacobianProduct:
    """The vector-Jacobian product of a function: from gradients of its results to those of the
    tensors in its arguments and of parameters.

    all_leaves: whether the parameters are all leaves of the first step, so that other leaves are
    refused. shared_graph: whether f and g close over tensors with a graph of their own, which is
    then part of every step.
    """

    parameters: Sequence[Tensor]
    all_leaves: bool
    shared_graph: bool

    def __call__(
        self,
        function: Callable[..., Tree],
        arguments: tuple[Tree, ...],
        gradients: Sequence[Tensor | None],
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in tensors(arguments)]
            outputs = tensors(function(*_with_tensors(arguments, iter(inputs))))
        if self.all_leaves:
            self.require_known(inputs, outputs)
        pairs = [
            (y, g)
            for y, g in zip(outputs, gradients, strict=True)
            if g is not None and y.requires_grad
        ]
        if not pairs:
            return [None] * len(inputs), [None] * len(self.parameters)
        ys, vectors = zip(*pairs, strict=True)
        gradients_in = torch.autograd.grad(
            ys,
            [*inputs, *self.parameters],
            vectors,
            retain_graph=self.shared_graph,
            allow_unused=True,
        )
        return list(gradients_in[: len(inputs)]), list(gradients_in[len(inputs) :])

    def require_known(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        known = {id(tensor) for tensor in (*inputs, *self.parameters)}
        if any(id(leaf) not in known for leaf in _leaves(_nodes(outputs))):
            raise RuntimeError(
                "a step depends on a tensor with a gradient that the first step does not read, so "
                "that its gradient would be lost; list what f and g depend on: "
                "Reversible(parameters)"
            )


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None is zero."""
    return b if a is None else a if b is None else a + b


def _nodes(outputs: Iterable[Tensor], before: Tensor | None = None) -> set[Node]:
    """The nodes of the graph of some tensors; not those on which the tensor `before` depends."""
    stack = [tensor.grad_fn for tensor in outputs]
    nodes = set() if before is None or before.grad_fn is None else {before.grad_fn}
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            stack += [earlier for earlier, _ in node.next_functions]
    return nodes


def _leaves(nodes: Iterable[Node]) -> list[Tensor]:
    """The leaves of a graph: a node without successors that accumulates a gradient has its tensor
    as `variable`.
    """
    tensors = [getattr(node, "variable", None) for node in nodes if not node.next_functions]
    return [leaf for leaf in tensors if leaf is not None]


def _with_tensors(tree: Tree, tensors: Iterator[Tensor]) -> Tree:
    """The tree with its tensors replaced."""
    if isinstance(tree, Tensor):
        return next(tensors)
    return (
        tuple(_with_tensors(part, tensors) for part in tree)
        if isinstance(tree, tuple | list)
        else tree
    )
