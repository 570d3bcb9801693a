"""torchsde's sdeint_adjoint: gradients by the adjoint equation, driven by the same path."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sdekit._arguments.names import did_you_mean
from sdekit._equations.computed import computed
from sdekit._equations.sde import AbstractSDE
from sdekit._noise.brownian import BrownianPath
from sdekit._noise.white import AbstractNoise, Increment, NoiseQuery, WhiteNoise
from sdekit._solve.gradient import Reversible
from sdekit._solvers import AbstractSolver, EulerHeun, EulerMaruyama, Heun, Midpoint
from sdekit.calling import require_bools, warn_caller
from sdekit.elementary import Time
from sdekit.interop._from_torchsde import signature_errors
from sdekit.interop._sdeint import Call, Solve, default_method, warn_of_unused
from sdekit.interop._to_torchsde import modules_and_parameters
from sdekit.interop._torchsde_grid import Doubling, steps
from sdekit.interop._torchsde_noise import Brownian
from sdekit.interop._torchsde_solvers import ProductMilstein

# torchsde's names, and solvers of the adjoint equation by calculus: those that need products of g
# and dW only.
_SOLVERS: dict[str, dict[str, AbstractSolver]] = {
    "ito": {"euler": EulerMaruyama(), "milstein": ProductMilstein("ito")},
    "stratonovich": {
        "midpoint": Midpoint(),
        "heun": Heun(),
        "euler_heun": EulerHeun(),
        "milstein": ProductMilstein("stratonovich"),
    },
}
_DEPTH = 20  # how often the path between two knots is halved, at most
_LOG2_TICKS = 36  # the base-2 logarithm of the largest number of ticks of a path
_REVERSIBLE = "reversible_heun"
_BACKWARDS = "adjoint_reversible_heun"


def sdeint_adjoint(
    sde: object,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Brownian | None = None,
    method: str | None = None,
    adjoint_method: str | None = None,
    dt: float = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: float = 1e-5,
    adjoint_rtol: float = 1e-5,
    atol: float = 1e-4,
    adjoint_atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: dict[str, Any] | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    names: dict[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: tuple[Tensor, ...] | None = None,
    **unused_kwargs: object,
) -> Any:  # noqa: ANN401 - as sdeint
    """`sdeint` with gradients by the adjoint equation, as `torchsde.sdeint_adjoint`, with its
    arguments and defaults.

    With the loss L, parameters p, a = dL/dy and the equation in Stratonovich form, the equations
    da = -a^T (df/dy) dt - a^T (dg/dy) dW and d(dL/dp) = -a^T (df/dp) dt - a^T (dg/dp) dW are solved
    backwards on the same path, together with y, which is reset to its forward value at each of ts.
    Memory does not grow with the number of steps. The gradient approximates that of the exact
    solution; it differs from the gradient of the numerical solution by errors of order 0.5 or 1 in
    dt. In most cases one of these is better:

    - method="reversible_heun" has the gradient of the numerical solution up to rounding; it keeps
      the states of all steps, but what autograd would record of them only with adaptive,
      adjoint_adaptive, extra or extra_solver_state;
    - `sdekit.solve` with gradient=Checkpointed() has this gradient for the solvers of all methods
      of `sdeint`, and its memory grows as the square root of the number of steps;
    - `sdeint` has it too, with memory proportional to the number of steps.

    Arguments:
        sde, y0, ts, bm, method, dt, adaptive, rtol, atol, dt_min: as in `sdeint`.
        options, names, logqp, extra, extra_solver_state, unused_kwargs: as in `sdeint`.
        adjoint_method: the method of the backward solve: "euler" or "milstein" for Ito equations;
            "midpoint", "heun", "euler_heun" or "milstein" for Stratonovich ones; and
            "adjoint_reversible_heun" for "reversible_heun". None is "adjoint_reversible_heun" for
            "reversible_heun"; otherwise "milstein" for Ito equations with diagonal noise, "euler"
            for other Ito equations, and "midpoint" for Stratonovich ones.
        adjoint_adaptive, adjoint_rtol, adjoint_atol: as adaptive, rtol and atol, for the backward
            solve.
        adjoint_options: has no effect; an option is warned of, or refused if it is grad_free.
        adjoint_params: the tensors that get gradients besides y0; None means the parameters of sde,
            a module or an `AbstractSDE`.

    Returns:
        as `sdeint`. Second derivatives, by the adjoint of the adjoint, exist for Stratonovich
        equations and methods other than "reversible_heun".

    Raises:
        ValueError: without adjoint_params for an sde that has no parameters of its own, being
            neither a module nor an `AbstractSDE`; for an adjoint_method that is unknown or does not
            fit; for bm=WhiteNoise with another method than "reversible_heun".
        NotFiniteError, TypeError, ValueError: as `sdeint`; in the backward pass too.

    Example:
        >>> class Decay(torch.nn.Module):
        ...     noise_type, sde_type = "diagonal", "stratonovich"
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.rate = torch.nn.Parameter(torch.tensor(1.0))
        ...     def f(self, t, y):
        ...         return -self.rate * y
        ...     def g(self, t, y):
        ...         return 0.1 * y
        >>> decay = Decay()
        >>> ys = sdekit.sdeint_adjoint(decay, torch.ones(4, 2), [0.0, 1.0], dt=0.05)
        >>> ys[-1].sum().backward()
        >>> decay.rate.grad.shape
        torch.Size([])

    References:
        Li, Wong, Chen and Duvenaud 2020, "Scalable gradients for stochastic differential
        equations", arXiv 2001.01328; Kidger, Foster, Li and Lyons 2021, arXiv 2105.13493.
    """
    warn_of_unused("sdeint_adjoint", unused_kwargs)
    require_bools(adaptive=adaptive, adjoint_adaptive=adjoint_adaptive, logqp=logqp, extra=extra)
    params = _parameters(sde, adjoint_params)
    call = Call.of(sde, y0, ts, bm, names, logqp=logqp)
    method = default_method(call.problem) if method is None else method
    doubling = Doubling(float(rtol), float(atol), float(dt_min)) if adaptive else None
    solve = call.solve(method, ts, dt, doubling, options)
    if len(ts) == 1:
        return call.at_one_time(solve, extra_solver_state, extra=extra)
    chosen = _adjoint_method(call.problem, method, adjoint_method)
    backward = Doubling(float(adjoint_rtol), float(adjoint_atol), float(dt_min))
    _require_no_options(adjoint_options)
    back = _Backward(chosen, backward if adjoint_adaptive else None, seeded=bm is None)
    with signature_errors(call.problem, call.start):
        if chosen == _BACKWARDS:
            # The state of the solver, and adaptive steps, are differentiated by autograd.
            direct = extra or extra_solver_state is not None or adaptive or adjoint_adaptive
            solve = solve if direct else replace(solve, gradient=Reversible(params))
            xs, state = solve.states(call.start, extra_solver_state)
            return call.result(torch.stack(xs), state, extra=extra)
        _require_no_extra(method, extra_solver_state, extra=extra)
        xs = _Adjoint.apply(back.on_a_path(solve), back, call.start, *params)
        return call.result(xs, (), extra=extra)


def _require_no_extra(
    method: str, extra_solver_state: tuple[Tensor, ...] | None, *, extra: bool
) -> None:
    """Refuses states of the solver, whose gradients another adjoint method has.

    Raises:
        ValueError: with what to do.
    """
    if method == _REVERSIBLE and (extra or extra_solver_state is not None):
        raise ValueError(
            f"extra states of {method!r} have gradients with adjoint_method={_BACKWARDS!r} only"
        )


def _parameters(sde: object, given: Iterable[Tensor] | None) -> list[Tensor]:
    """The tensors that get gradients.

    Raises:
        ValueError: where they are not given, and sde is not a module.
    """
    if given is None and isinstance(sde, AbstractSDE):
        items = modules_and_parameters(sde)
        given = [
            param
            for item in items
            for param in (item.parameters() if isinstance(item, nn.Module) else [item])
        ]
    if given is None:
        if not isinstance(sde, nn.Module):
            raise ValueError(
                "sde is not a torch.nn.Module, whose parameters would get gradients: give "
                "adjoint_params, such as () for none"
            )
        given = sde.parameters()
    return list({id(param): param for param in given if param.requires_grad}.values())


def _require_no_options(options: Mapping[str, Any] | None) -> None:
    """Refuses derivative-free methods, which need g itself, and warns of all other options.

    Raises:
        ValueError: for grad_free.
    """
    if (options or {}).get("grad_free"):
        raise ValueError(
            "the adjoint equation has only products of g and dW, so that Milstein's method takes "
            "their derivatives: leave out grad_free"
        )
    for name in set(options or ()) - {"grad_free"}:
        warn_caller(f"adjoint_options has no option {name!r}, which has no effect")


def _adjoint_method(problem: AbstractSDE, method: str, given: str | None) -> str:
    """The method of the backward solve.

    Raises:
        ValueError: for one that does not exist for the equation, or the forward method.
    """
    known = _SOLVERS[problem.sde_type]
    if given is None:
        if method == _REVERSIBLE:
            return _BACKWARDS
        milstein = problem.sde_type == "ito" and problem.noise_type == "diagonal"
        return "milstein" if milstein else next(iter(known))
    if given == _BACKWARDS:
        if method != _REVERSIBLE:
            raise ValueError(f"{_BACKWARDS!r} runs {_REVERSIBLE!r} backwards, not {method!r}")
        return given
    if given == "milstein" and problem.noise_type == "general":
        raise ValueError(
            "adjoint_method = 'milstein' needs noise that commutes, and this one is general: take "
            f"{next(iter(known))!r}"
        )
    if given not in known:
        raise ValueError(
            f"adjoint_method = {given!r} is not one of {', '.join(known)}, which solve the adjoint "
            f"of {problem.sde_type} equations{did_you_mean(given, known)}"
        )
    if method == _REVERSIBLE:
        warn_caller(
            f"method={method!r} with adjoint_method={given!r} gives up what the method is for, the "
            f"gradient of the steps: take {_BACKWARDS!r}",
        )
    return given


@dataclass(frozen=True, eq=False)
class _Backward:
    """How an adjoint equation is solved; seeded: whether sdekit draws the noise, for bm=None."""

    method: str
    doubling: Doubling | None
    seeded: bool

    def on_a_path(self, solve: Solve) -> Solve:
        """The solve with noise that can be read backwards, in other steps.

        Raises:
            ValueError: for white noise of the caller's.
        """
        if not isinstance(solve.noise, WhiteNoise):
            return solve
        if not self.seeded:
            raise ValueError(
                "WhiteNoise has no path, which the backward solve reads in other steps; use "
                "bm=None or a BrownianPath"
            )
        grid = steps(solve.ts[0], solve.ts[-1], solve.dt, solve.slack)
        knots = sorted({*grid, *solve.ts})
        depth = min(_DEPTH, _LOG2_TICKS - math.ceil(math.log2(len(knots))))
        return replace(solve, noise=BrownianPath(solve.noise.seed, knots, depth=depth))

    def of(self, solve: Solve, adjoint: "AdjointSDE", x: Tensor, t0: float, t1: float) -> Solve:
        """The backward solve between two times."""
        noise = OneSample(solve.noise, x, solve.problem.noise_shape(x))
        solver = _SOLVERS[adjoint.sde_type][self.method]
        return replace(
            solve, problem=adjoint, solver=solver, ts=[t0, t1], noise=noise, gradient=None,
            doubling=self.doubling,
        )  # fmt: skip


class _Adjoint(torch.autograd.Function):
    """The states of a solve at its times, with gradients by the adjoint equation; gradients of the
    adjoint equation are by its own adjoint.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        solve: Solve,
        backward: _Backward,
        x: Tensor,
        *params: Tensor,
    ) -> Tensor:
        xs = torch.stack(solve.states(x.detach())[0])
        ctx.solve = solve
        ctx.back = backward
        ctx.save_for_backward(xs, *params)
        return xs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: ANN401
        (grad,) = grads
        solve: Solve = ctx.solve
        xs, *params = ctx.saved_tensors
        direction = math.copysign(1.0, solve.ts[-1] - solve.ts[0])
        adjoint = AdjointSDE(solve.problem, params, xs.shape[1:], direction)
        a = grad[-1]
        gradients = tuple(torch.zeros_like(param) for param in params)
        for i in range(len(xs) - 1, 0, -1):
            z = adjoint.joined(xs[i], a, *gradients)
            back = ctx.back.of(solve, adjoint, xs[i], solve.ts[i], solve.ts[i - 1])
            (_, z) = _Adjoint.apply(back, ctx.back, z, *params).unbind()
            _, a, *gradients = adjoint.parts(z)
            a = grad[i - 1] + a
        return None, None, a, *gradients


class AdjointSDE(AbstractSDE):
    """The adjoint equation: y, a and the gradients of parameters as one state, `(1, n)`, with the
    noise of y.

    Arguments:
        shape: that of y.
        direction: that of the time in which the equation of y was solved, 1 or -1. The noise of an
            Ito equation has g at the start of each step, so both have other corrections.

    Raises:
        RuntimeError: in `diffusion`, because only products of g and dW are available.
    """

    noise_type = "general"

    def __init__(
        self,
        problem: AbstractSDE,
        params: Sequence[Tensor],
        shape: Sequence[int],
        direction: float,
    ) -> None:
        self.problem = problem
        self.params = params
        self.direction = direction
        self.shape = torch.Size(shape)
        self.sizes = [self.shape.numel()] * 2 + [param.numel() for param in params]

    @computed
    def sde_type(self) -> Any:  # noqa: ANN401
        return self.problem.sde_type

    def joined(self, *parts: Tensor) -> Tensor:
        """The parts as one state."""
        return torch.cat([part.reshape(1, -1) for part in parts], dim=1)

    def parts(self, z: Tensor) -> list[Tensor]:
        """y, a, and the gradients, in their shapes."""
        shapes = [self.shape, self.shape, *(param.shape for param in self.params)]
        return [
            part.reshape(shape)
            for part, shape in zip(z.split(self.sizes, dim=1), shapes, strict=True)
        ]

    def _of(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """y, as a tensor with respect to which derivatives are taken, and a."""
        y, a = self.parts(z)[:2]
        return (y if y.requires_grad else y.detach().requires_grad_()), a

    def _pulled(self, value: Tensor, y: Tensor, a: Tensor, recorded: bool) -> list[Tensor]:
        """a^T times the derivatives of a value with respect to y and the parameters."""
        inputs = (y, *self.params)
        if not value.requires_grad:
            return [torch.zeros_like(tensor) for tensor in inputs]
        return list(
            torch.autograd.grad(
                value, inputs, a, create_graph=recorded, retain_graph=True, allow_unused=True,
                materialize_grads=True,
            )
        )  # fmt: skip

    def drift(self, t: Time, x: Tensor) -> Tensor:
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            y, a = self._of(x)
            f = self.problem.drift(t, y)
            more = [torch.zeros_like(tensor) for tensor in (y, *self.params)]
            if self.sde_type == "ito" and self.problem.noise_type != "additive":
                correction, more = self._of_ito(t, y, a, recorded)
                f = f - self.direction * correction
            pulled = self._pulled(f, y, a, recorded)
        pulled = [-(p + self.direction * m) for p, m in zip(pulled, more, strict=True)]
        return self.joined(f if recorded else f.detach(), *pulled)

    def _of_ito(self, t: Time, y: Tensor, a: Tensor, recorded: bool) -> tuple[Tensor, list[Tensor]]:
        """sum_j D g^j[g^j], which is subtracted from the drift of an Ito equation that is solved
        back from a later time, and added to that of one that is solved back from an earlier time;
        and the corresponding terms of a and of the gradients.
        """
        g: Any = self.problem.diffusion(t, y)
        if self.problem.noise_type == "general":
            columns = list(g.unbind(-1))
        else:
            columns = [torch.broadcast_to(torch.as_tensor(g).to(y), y.shape)]
        total = torch.zeros_like(y)
        gains = [torch.zeros_like(tensor) for tensor in (y, *self.params)]
        for column in columns:
            total = total + self._along(column, y)
            (by_y, *_) = self._pulled(column, y, a, True)
            by = self._pulled(column, y, by_y if recorded else by_y.detach(), recorded)
            gains = [gain + part for gain, part in zip(gains, by, strict=True)]
        return total, gains

    def _along(self, column: Tensor, y: Tensor) -> Tensor:
        """D g[g]; if g_i depends on y_i alone, the Jacobian equals its transpose."""
        if not column.requires_grad:
            return torch.zeros_like(y)
        options: Any = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        if self.problem.noise_type == "diagonal":
            return torch.autograd.grad(column, y, column, **options)[0]
        dual = torch.zeros_like(column).requires_grad_()
        (pulled,) = torch.autograd.grad(column, y, dual, **options)
        if not pulled.requires_grad:
            return torch.zeros_like(y)
        return torch.autograd.grad(pulled, dual, column, **options)[0]

    def diffuse(self, t: Time, x: Tensor, dw: Tensor | None, onto: Tensor) -> Tensor:
        assert dw is not None
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            y, a = self._of(x)
            product = self.problem.diffuse(t, y, dw[0], torch.zeros_like(y))
            pulled = self._pulled(product, y, a, recorded)
        product = product if recorded else product.detach()
        return onto + self.joined(product, *(-part for part in pulled))

    def diffusion(self, t: Time, x: Tensor) -> Tensor:
        raise RuntimeError(
            "the adjoint equation has only products of g and dW; second derivatives by it exist "
            "for Stratonovich equations: differentiate through sdeint instead"
        )

    def noise_shape(self, x: Tensor) -> tuple[int, ...] | None:
        y = self.parts(x)[0]
        return (len(y), *(self.problem.noise_shape(y) or ()))


@dataclass(frozen=True, eq=False)
class OneSample(AbstractNoise):
    """The noise of a batch as that of one sample."""

    noise: AbstractNoise
    like: Tensor
    shape: tuple[int, ...] | None

    @computed
    def seed(self) -> Any:  # noqa: ANN401
        return self.noise.seed

    def rows(self, index: Tensor) -> AbstractNoise:
        raise TypeError("this noise is that of one sample, the whole batch")

    def answer(self, query: NoiseQuery) -> Iterator[Increment]:
        for increment in self.noise.answer(query._replace(x=self.like, shape=self.shape)):
            assert increment.w is not None
            yield Increment(increment.w[None])

    def readings(
        self, ts: Sequence[float], x: Tensor, shape: tuple[int, ...] | None, *, levy: bool = False
    ) -> Iterator[Increment]:
        for increment in self.noise.readings(ts, self.like, self.shape):
            assert increment.w is not None
            yield Increment(increment.w[None])
