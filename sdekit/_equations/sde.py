"""Stochastic differential equations dx = f(t, x) dt + g(t, x) dW, and ordinary ones as the case
g = 0.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp, vmap

from sdekit._equations.derivative import derivative, varies
from sdekit._equations.quadrature import Panels, Rule
from sdekit.calling import is_differentiating, is_transformed, leaf, recording
from sdekit.elementary import Time, axpy, broadcast, scaled

NoiseType = Literal["none", "additive", "diagonal", "scalar", "general"]
SDEType = Literal["ito", "stratonovich"]


class Slope(Protocol):
    """The drift f at a fixed time as a function of x: h f(x), or onto + h f(x) if onto is given,
    with h a float where the time is one.
    """

    def __call__(self, x: Tensor, h: Time = 1.0, onto: Tensor | None = None, /) -> Tensor: ...


class AbstractSDE(ABC):
    """dx = f(t, x) dt + g(t, x) dW on states of shape `(batch, *event)`.

    Time runs in either direction; t is a float on fixed grids and a `(batch,)` tensor where samples
    have their own times, as with adaptive steps: `broadcast(t, x)` gives it a shape that multiplies
    x. A subclass defines `noise_type`, `drift` and, unless that is "none", `diffusion`. The noise
    type says what g is and what shape W has:

    | noise_type | g(t, x) | W |
    |---|---|---|
    | none | not called | none |
    | additive | multiplies W elementwise and is the same for every x | `(batch, *event)` |
    | diagonal | as additive, but depends on x | `(batch, *event)` |
    | scalar | `(batch, *event)` | `(batch,)` |
    | general | `(batch, *event, m)` | `(batch, m)` |

    An additive or diagonal g may have a smaller shape that torch broadcasts against x: `(d,)` is
    one number per coordinate, whatever the batch size, and one number per sample is
    `(batch, 1, ...)`, see `sdekit.elementary.broadcast`.

    Attributes:
        noise_type: "none", "additive", "diagonal", "scalar" or "general".
        sde_type: the calculus, "ito" or "stratonovich".
        slopes: the drift at each time of a grid as a function of x, for equations that compute part
            of it in advance; `tabulated` fills it in. With two more arguments, `(x, h, onto)`,
            these functions return onto + h f(x), and with one, `(x, h)`, h f(x). They refuse
            changes in place themselves, because `solve` does not check them. If they have an
            attribute `unit`, a number h for which h f(x) takes fewer operations than f(x),
            multistep rules keep h f(x).
        scores_on_grid: the score at each time of a grid as a function of x, like `slopes`.
        plans: a cache of the plans of multistep rules on this equation; None makes a new plan in
            each solve.
        jumps: times at which the drift jumps; adaptive steps end at each of them, on a path at
            those that its ticks resolve.
        checks_shapes: whether `drift` and `diffusion` refuse values of other shapes themselves, so
            that `solve` need not.

    Raises:
        ValueError: in a solve, when `drift` or `diffusion` returns another shape.
        TypeError: in a solve, when `drift` returns integers or complex numbers.

    Example:
        >>> class DoubleWell(sdekit.AbstractSDE):  # dx = (x - x^3) dt + 0.5 dW
        ...     noise_type = "additive"
        ...     def drift(self, t, x):
        ...         return x - x**3
        ...     def diffusion(self, t, x):
        ...         return 0.5
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(DoubleWell(), torch.zeros(4, 1), ts, solver=sdekit.Heun()).x.shape
        torch.Size([4, 1])
    """

    noise_type: NoiseType
    sde_type: SDEType = "ito"
    slopes: Mapping[float, Slope] = {}
    scores_on_grid: Mapping[float, Slope] = {}
    plans: MutableMapping[Hashable, Any] | None = None
    jumps: Sequence[float] = ()
    checks_shapes: bool = False
    _is_followed: bool = False  # whether autograd was found to follow the drift to x

    @abstractmethod
    def drift(self, t: Time, x: Tensor) -> Tensor:
        """f(t, x), shaped like x."""

    def diffusion(self, t: Time, x: Tensor) -> Time:
        """g(t, x), shaped as in the table of the class; a float if it is one number. Equations with
        noise define it.

        Raises:
            NotImplementedError: where an equation with noise does not.
        """
        if self.noise_type != "none":
            raise NotImplementedError(
                f"{type(self).__name__} has {self.noise_type} noise and no method diffusion(t, x): "
                'define it, or noise_type = "none"'
            )
        return 0.0

    def jacobian(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """f_x of each sample, `(batch, d, d)` for d numbers per sample, and f_t, shaped like x; by
        d vector-Jacobian products in one batched call. t is `(batch,)`.

        Raises:
            ValueError: for a drift that depends on x, but through which autograd finds no path to
                it: its derivatives would be 0.
        """
        d = math.prod(x.shape[1:])
        basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])
        basis = basis.expand(d, *x.shape)
        plain = d > 0 and not (is_differentiating() or is_transformed())
        with recording():
            if plain:
                by_t, by_x = self._products(t, x, basis)
            else:
                self._require_followed(t, x)
                value_and_vjp: Any = vjp(self.drift, t, x)
                by_t, by_x = vmap(value_and_vjp[1])(basis)
        rate = torch.zeros_like(x) if by_t is None else by_t.T.to(x).reshape(x.shape)
        return by_x.reshape(d, len(x), d).transpose(0, 1), rate

    def _products(self, t: Tensor, x: Tensor, basis: Tensor) -> tuple[Tensor | None, Tensor]:
        """The products of each u of a basis with f_t, None if f does not depend on t, and with f_x,
        without gradients of their own: for small samples in less time than torch.func's transforms
        take.
        """
        time = leaf(t)
        point = leaf(x)
        value = self.drift(time, point)
        by_t, by_x = _gradients(value, (time, point), basis, is_grads_batched=True)
        if by_x is None:
            self._require_constant(t, x)
        return by_t, torch.zeros_like(basis) if by_x is None else by_x

    def jacobian_product(self, t: Tensor, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The function v -> f_x v of each sample, with v shaped like x, and f_t; both without
        gradients. t is `(batch,)`.

        The product is the derivative of f_x^T u with respect to u. The graph of f_x^T u is kept, so
        that the function does not call f.

        Raises:
            ValueError: for a drift that depends on x, but through which autograd finds no path to
                it: its derivatives would be 0; by the function, for a drift whose derivative cannot
                be differentiated again.
        """
        with recording():
            time = leaf(t)
            point = leaf(x)
            value = self.drift(time, point)
            u = torch.zeros_like(value, requires_grad=True)
            by_x, by_t = _gradients(value, (point, time), u, create_graph=True)
        if by_x is None:
            self._require_constant(t, x)

        def derivative(of: Tensor | None, along: Tensor) -> Tensor:
            if of is None or not of.requires_grad:  # it does not depend on u: it is 0
                return torch.zeros_like(x)
            (product,) = torch.autograd.grad(
                of, u, along.to(of), retain_graph=True, allow_unused=True
            )
            if product is None:
                raise ValueError(
                    "f(t, x) has an operation whose derivative cannot be differentiated again, as "
                    "where it is once_differentiable: set direct to the size of a sample, or take "
                    "a solver without its Jacobian"
                )
            return product

        return partial(derivative, by_x), derivative(by_t, torch.ones_like(time))

    def _require_constant(self, t: Tensor, x: Tensor) -> None:
        """Refuses a drift that depends on x although autograd finds no path to x, by its values.

        Raises:
            ValueError: with what to do.
        """
        if varies(partial(self.drift, t), x):
            raise ValueError(
                "f(t, x) does not depend on x in a way that autograd can see: remove "
                "torch.no_grad() and detach() from it, or take a solver without its Jacobian"
            )

    def _require_followed(self, t: Tensor, x: Tensor) -> None:
        """`_require_constant` where autograd finds no path from the drift to x, for derivatives of
        a sum or in transforms, which do not show it. A path that was found is not sought again.

        Raises:
            ValueError: with what to do.
        """
        if self._is_followed or torch.compiler.is_compiling():
            return
        followed = True

        def constant() -> None:
            nonlocal followed
            followed = False
            self._require_constant(t, x)

        if is_transformed():
            derivative(partial(self.drift, t), x, torch.ones_like, constant)
        else:
            with recording():
                point = leaf(x)
                value = self.drift(t, point)
                if _gradients(value, (point,), torch.ones_like(value))[0] is None:
                    constant()
        vars(self)["_is_followed"] = followed

    def drift_at(self, t: Time) -> Slope:
        """f(t, x) as a function of x, to be called once. With one more argument, `(x, h)`, it
        returns h f(t, x), and with two, `(x, h, onto)`, onto + h f(t, x), for solvers that use this
        value of the drift only once.
        """
        return partial(self._drift_onto, t)

    def _drift_onto(self, t: Time, x: Tensor, h: Time = 1.0, onto: Tensor | None = None) -> Tensor:
        f = self.drift(t, x)
        if onto is not None:
            return axpy(h, f, onto)
        return f if isinstance(h, float) and h == 1 else scaled(h, f)

    def diffuse(self, t: Time, x: Tensor, dw: Tensor | None, onto: Tensor) -> Tensor:
        """onto + g(t, x) . dw, for every noise type; dw is shaped like W, or None without noise.

        Some solvers call `diffusion` and `multiply` instead: an equation that overrides one of the
        three must keep them consistent.
        """
        return onto if self.noise_type == "none" else self.multiply(self.diffusion(t, x), dw, onto)

    def multiply(self, g: Time, dw: Tensor | None, onto: Tensor) -> Tensor:
        """onto + g . dw for a g already evaluated; every product of g and noise is made here.

        Raises:
            ValueError: for a g of another shape than the table of the class says.
        """
        if not self.checks_shapes and isinstance(g, Tensor) and dw is not None:
            _require_shape(self.noise_type, g, dw, onto)
        return _PRODUCTS[self.noise_type](g, dw, onto)

    def kick(self, t0: Time, t1: Time, x: Tensor, dw: Tensor | None) -> Tensor:
        """x + the noise of a whole step, for solvers of additive noise that evaluate g once per
        step.

        g is evaluated in the middle of the step; with g at its start the variance would only be
        accurate to first order.
        """
        return self.diffuse(0.5 * (t0 + t1), x, dw, x)

    def physical(self, t: Time, x: Tensor) -> Tensor:
        """A state in the units of the tolerances: x itself, unless the equation is solved in
        another variable.
        """
        return x

    def noise_shape(self, x: Tensor) -> tuple[int, ...] | None:
        """The shape of W for one sample, or None without noise."""
        if self.noise_type == "none":
            return None
        return () if self.noise_type == "scalar" else tuple(x.shape[1:])

    def rows(self, index: Tensor) -> Self:
        """The same equation for some of the samples; itself if nothing but x is per sample.

        index has their rows, int64. Adaptive steps call it, to continue with the samples that have
        not ended, also of an equation that it has returned: `rows(i).rows(j)` is `rows(i[j])`.
        """
        return self

    def tabulated(self, ts: Sequence[float]) -> Self:
        """The same equation with its coefficients at the times of a grid computed in advance.

        The equation itself if this saves nothing.
        """
        return self

    def drifts(
        self, times: Sequence[Tensor], x: Tensor
    ) -> Sequence[Callable[[Tensor], Tensor]] | None:
        """The drift at each of several times, those of the stages of a step, each `(batch,)`, as
        functions of states like x; what depends on the times alone is computed in one call. Each
        function is called once. Like `slopes` they refuse changes in place and other shapes
        themselves, because `solve` does not check them.

        None if that saves nothing.
        """
        return None

    def within(self, t0: float, t1: float) -> Self:
        """The same equation for the times between t0 and t1, which are checked only here.

        The equation itself if it is defined at all times.

        Raises:
            ValueError: when the equation is not defined at one of them.
        """
        return self

    def score(self, t: Time, x: Tensor) -> Tensor:
        """grad log p_t(x), for the equations that are built from it.

        Raises:
            TypeError: for an equation without a score.
        """
        raise TypeError(
            f"{type(self).__name__} has no score; a Langevin corrector needs a ReverseSDE or "
            "ProbabilityFlow"
        )

    def score_at(self, t: Time) -> Callable[[Tensor], Tensor]:
        """The score at a time as a function of x, to be called once."""
        return partial(self.score, t)

    def kernel(self, t: float) -> tuple[float, float] | None:
        """alpha and sigma with x_t | x_0 ~ N(alpha x_0, sigma^2 I), or None if they are unknown."""
        return None

    def chain(self, s: float, t: float) -> tuple[float, float, float]:
        """r, v and w of the Markov chain x_t = r x_s + sqrt(v) z that discretises the equation,
        s < t, with z ~ N(0, I).

        w is the variance of the step back, whose mean is (x_t + v score) / r.

        By default they are exact: r = alpha_t / alpha_s, v = sigma_t^2 - r^2 sigma_s^2, and
        w = v sigma_s^2 / sigma_t^2, the variance of q(x_s | x_t, x_0). Equations with a published
        chain return its numbers.

        Raises:
            TypeError: when the kernel is not known.
            ValueError: unless s < t.
        """
        early = self.kernel(s)
        late = self.kernel(t)
        if early is None or late is None:
            raise TypeError(
                f"{type(self).__name__} has no kernel alpha, sigma, from which the predictors take "
                "their steps; give a ReverseSDE of a diffusion that has, or take EulerMaruyama()"
            )
        if not s < t:
            raise ValueError(
                f"the predictors go from late times to early ones, and this step goes from {t} to "
                f"{s}"
            )
        r = late[0] / early[0]
        v = (late[1] - r * early[1]) * (late[1] + r * early[1])
        return r, v, v * (early[1] / late[1]) ** 2

    def quadrature(
        self, rule: Rule, nodes: np.ndarray, t0: np.ndarray, t1: np.ndarray
    ) -> np.ndarray:
        """The weights w_j of a multistep rule, `(steps, k)`: a step from t0 to t1 adds
        sum_j w_j f_j, with f_j the drifts at the nodes.

        The rule receives `Panels` in the time t; a `Clocked` equation passes its parameter l and
        its clock instead.

        Arguments:
            rule: computes the weights from the panels; `Panels.exact` integrates the interpolant.
            nodes: times, `(steps, k)`.
            t0, t1: the ends of the steps, `(steps,)`.
        """
        return rule(Panels(nodes, t0, t1))

    def between(self, t0: np.ndarray, t1: np.ndarray, c: float) -> np.ndarray:
        """The times a fraction c of the way from t0 to t1, in the variable that rules receive."""
        return t0 + c * (t1 - t0)


def _gradients(
    value: Tensor, points: tuple[Tensor, ...], cotangent: Tensor, **settings: bool
) -> tuple[Tensor | None, ...]:
    """The products of a cotangent with the derivatives of a value with respect to leaves; None for
    each to which autograd finds no path.
    """
    if not value.requires_grad:
        return (None,) * len(points)
    return torch.autograd.grad(value, points, cotangent, allow_unused=True, **settings)


def wrong_shape(name: str, value: Tensor, needed: str, x: Tensor) -> ValueError:
    """The error for a value of an equation's method that torch would broadcast."""
    return ValueError(
        f"{name} of the equation returned shape {tuple(value.shape)} for x of shape "
        f"{tuple(x.shape)}; it must return {needed}. If the equation has numbers of its own for "
        "each sample, define rows(index), because adaptive steps continue with some of the samples"
    )


def _require_shape(noise_type: NoiseType, g: Tensor, dw: Tensor, onto: Tensor) -> None:
    """Refuses a g that torch would broadcast otherwise than the table of `AbstractSDE` says.

    Raises:
        ValueError: with the shape that it must have.
    """
    needed = onto.shape + dw.shape[1:] if noise_type == "general" else onto.shape
    if g.shape == needed:
        return
    text = f"{tuple(needed)}"
    if noise_type in ("additive", "diagonal"):
        pairs = zip(reversed(g.shape), reversed(needed), strict=False)
        if g.ndim <= onto.ndim and all(size in (1, full) for size, full in pairs):
            return
        text += " or a shape that broadcasts to it"
    raise wrong_shape("diffusion(t, x)", g, text, onto)


def _elementwise(g: Time, dw: Tensor, onto: Tensor) -> Tensor:
    return torch.addcmul(onto, g.to(onto.dtype), dw) if isinstance(g, Tensor) else axpy(g, dw, onto)


def _scalar(g: Time, dw: Tensor, onto: Tensor) -> Tensor:
    g = g.to(onto.dtype) if isinstance(g, Tensor) else g
    return onto + g * broadcast(dw, onto)


def _general(g: Tensor, dw: Tensor, onto: Tensor) -> Tensor:
    return onto + torch.einsum("b...m,bm->b...", g.to(dw.dtype), dw)


_PRODUCTS: dict[NoiseType, Callable[..., Tensor]] = {
    "none": lambda g, dw, onto: onto,
    "additive": _elementwise,
    "diagonal": _elementwise,
    "scalar": _scalar,
    "general": _general,
}
