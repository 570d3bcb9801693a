"""Reverse time: Anderson's equation and the probability flow, from a forward equation and its
score.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self
from weakref import WeakSet

import torch
from torch import Tensor

from sdekit._arguments.numbers import require_number
from sdekit._equations.computed import computed, with_computed
from sdekit._equations.derivative import derivative, require_visible
from sdekit._equations.sde import AbstractSDE, NoiseType, Slope
from sdekit.calling import ChangedError, accepts_swapped, check_of, require_order, require_real
from sdekit.elementary import Time, axpy

Score = Callable[[Time, Tensor], Tensor]


def _require_elementwise(forward: AbstractSDE) -> None:
    if forward.noise_type not in ("additive", "diagonal"):
        raise TypeError(
            f"the forward equation has {forward.noise_type} noise; reversing is supported for "
            "additive and diagonal noise, where div(g g^T) is a number per coordinate"
        )
    if forward.noise_type == "diagonal" and forward.sde_type != "ito":
        raise TypeError(
            "the forward equation is a Stratonovich one; write it as an Ito equation, with g g' / "
            "2 in its drift"
        )


# Equations whose g was found not to depend on x.
_WITH_CONSTANT_DIFFUSION: "WeakSet[ReverseSDE | ProbabilityFlow]" = WeakSet()


def _reverse_drift(
    equation: "ReverseSDE | ProbabilityFlow", factor: float, t: Time, x: Tensor
) -> Tensor:
    """f - factor [div(g g^T) + g g^T s]."""
    forward = equation.forward
    check = check_of(t, x)
    f = check("the drift", forward.drift, t, x)
    s = _checked_score(check, equation.score, t, x)
    g = forward.diffusion(t, x)
    if not isinstance(g, Tensor):
        return axpy(-factor * g * g, s, f)
    if forward.noise_type == "diagonal":

        def square(y: Tensor) -> Tensor:
            g = forward.diffusion(t, y)
            assert isinstance(g, Tensor)
            return g.square()

        def unseen() -> None:
            if torch.compiler.is_compiling() or equation in _WITH_CONSTANT_DIFFUSION:
                return
            require_visible("the diffusion", "div(g g^T)", square, x)
            _WITH_CONSTANT_DIFFUSION.add(equation)

        # g_i depends on x_i alone, so that the transposed derivative applied to ones is the
        # derivative of each square.
        f = axpy(-factor, derivative(square, x, torch.ones_like, unseen)[1], f)
    return torch.addcmul(f, g.to(x.dtype).square(), s, value=-factor)


def _checked_score(check: Callable[..., Tensor], score: Score, t: Time, x: Tensor) -> Tensor:
    """score(t, x), refused if it fails or is not shaped like x; the message says if the arguments
    are exchanged.
    """
    try:
        s = check("score(t, x)", score, t, x)
    except ChangedError:
        raise
    except Exception as error:
        if accepts_swapped(score, t, x, x.shape):
            raise TypeError(_SWAPPED_ARGUMENTS) from error
        raise
    if not isinstance(s, Tensor) or s.shape != x.shape:
        if accepts_swapped(score, t, x, x.shape):
            raise TypeError(_SWAPPED_ARGUMENTS)
        returned = f"shape {tuple(s.shape)}" if isinstance(s, Tensor) else type(s).__name__
        raise ValueError(
            f"score(t, x) returned {returned} for x of shape {tuple(x.shape)}; it must return x's"
        )
    if s.dtype == x.dtype:
        return s
    require_real("score(t, x)", s, x)
    return s.to(x.dtype)


_SWAPPED_ARGUMENTS = (
    "the score is called as score(t, x) here, and this one takes (x, t); pass lambda t, x: "
    "score(x, t)"
)


@dataclass(frozen=True, eq=False)
class ReverseSDE(AbstractSDE):
    """The reverse SDE dx = [f - (1 + eta^2)/2 (div(g g^T) + g g^T s)] dt + eta g dW, to be solved
    from late to early times.

    With s(t, x) = grad log p_t(x) its solution has the forward equation's marginals for every eta:
    eta = 1 is Anderson's equation, eta = 0 the probability flow.

    Arguments:
        forward: dx = f dt + g dW, an Ito equation with additive or diagonal noise. For additive
            noise the divergence is 0; for diagonal noise it is d(g_i^2)/dx_i by autograd, where g_i
            may depend on x_i and t only.
        score: `s(t, x)`, shaped like x. t is a float or `(batch,)`; the functions of
            `sdekit.elementary` accept both.
        eta: the noise level, 0 or larger.
        prepare: a function of the times of a grid that returns `slopes`; None, or an empty result,
            if this saves nothing.
        slopes: the drift at the times of a grid, see `AbstractSDE`; `tabulated` fills it in.

    Raises:
        TypeError: for an eta that is not a number; when the forward noise is of another kind, or
            the arguments of the score are named in the order (x, t); in a solve, when the score is
            not a tensor of real floating-point numbers.
        ValueError: for a negative eta; in a solve, for a score of another shape than x, or for
            predictors with an eta other than 0 and 1.
        RuntimeError: in a solve, when the score changes t or x in place, or for a diagonal g that
            depends on x in a way that torch cannot differentiate.

    Example:
        >>> vp = sd.VPSDE()
        >>> reverse = sdekit.ReverseSDE(vp, lambda t, x: -x)  # of data from N(0, I)
        >>> ts = sdekit.uniform(1.0, 1e-3, 100)
        >>> sdekit.solve(reverse, torch.randn(4, 2), ts, solver=sdekit.EulerMaruyama()).x.shape
        torch.Size([4, 2])

    References:
        Anderson 1982, "Reverse-time diffusion equation models"; Huang et al. 2021,
        arXiv 2106.02808, for eta.
    """

    forward: AbstractSDE
    # A field that takes the place of the method of `AbstractSDE`, and is called like it.
    score: Score  # pyright: ignore[reportIncompatibleMethodOverride]
    eta: float = 1.0
    prepare: Callable[[Sequence[float]], Mapping[float, Slope]] | None = field(
        default=None, repr=False, kw_only=True
    )
    slopes: Mapping[float, Slope] = field(default_factory=dict, repr=False, kw_only=True)
    noise_type: NoiseType = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_number("eta", self.eta, tensors=True)
        # A subclass may have a property of this name.
        vars(self)["noise_type"] = self.forward.noise_type if self.eta else "none"
        if self.slopes:  # of an equation that was checked
            return
        _require_elementwise(self.forward)
        require_order(self.score, "t, x")
        if not 0 <= self.eta < math.inf:
            raise ValueError(
                "eta must be a number from 0 (probability flow) on, 1 being Anderson's equation; "
                f"not {self.eta}"
            )

    @computed
    def jumps(self) -> Sequence[float]:
        return self.forward.jumps

    def drift(self, t: Time, x: Tensor) -> Tensor:
        return _reverse_drift(self, 0.5 * (1 + self.eta**2), t, x)

    def diffusion(self, t: Time, x: Tensor) -> Time:
        return self.eta * self.forward.diffusion(t, x)

    def rows(self, index: Tensor) -> Self:
        return replace(self, forward=self.forward.rows(index))

    def tabulated(self, ts: Sequence[float]) -> Self:
        tabulate = getattr(self.score, "tabulated", None)
        score = self.score if tabulate is None else tabulate(ts)
        slopes = {} if self.prepare is None else self.prepare(ts)
        forward = self.forward.tabulated(ts)
        return with_computed(self, forward=forward, score=score, slopes=slopes)

    @computed
    def scores_on_grid(self) -> Mapping[float, Slope]:
        """Those of a score that has them, after its `tabulated`."""
        return getattr(self.score, "scores_on_grid", {})

    def within(self, t0: float, t1: float) -> Self:
        return replace(self, forward=self.forward.within(t0, t1))

    def kernel(self, t: float) -> tuple[float, float] | None:
        return self.forward.kernel(t)

    def chain(self, s: float, t: float) -> tuple[float, float, float]:
        if self.eta not in (0, 1):
            raise ValueError(
                f"the predictors are for Anderson's equation, eta = 1, and ReverseDiffusion also "
                f"for the probability flow, eta = 0; not {self.eta}: take EulerMaruyama()"
            )
        return self.forward.chain(s, t)


@dataclass(frozen=True, eq=False)
class ProbabilityFlow(AbstractSDE):
    """The probability flow dx = [f - (div(g g^T) + g g^T s) / 2] dt, the ODE with the marginals of
    the forward equation.

    It may be solved in both directions of time.

    Arguments:
        forward, score: as in `ReverseSDE`.

    Raises:
        TypeError, ValueError, RuntimeError: as `ReverseSDE`.

    Example:
        >>> vp = sd.VPSDE()
        >>> flow = sdekit.ProbabilityFlow(vp, lambda t, x: -x)  # of data from N(0, I)
        >>> ts = sdekit.uniform(1.0, 1e-3, 20)
        >>> x = sdekit.solve(flow, torch.ones(1, 1), ts, solver=sdekit.RK4()).x
        >>> round(float(x), 4)  # constant in time for normal data
        1.0

    References:
        Song et al. 2021, arXiv 2011.13456, section 4.3.
    """

    noise_type = "none"

    forward: AbstractSDE
    # A field that takes the place of the method of `AbstractSDE`, and is called like it.
    score: Score  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        _require_elementwise(self.forward)
        require_order(self.score, "t, x")

    @computed
    def jumps(self) -> Sequence[float]:
        return self.forward.jumps

    def drift(self, t: Time, x: Tensor) -> Tensor:
        return _reverse_drift(self, 0.5, t, x)

    def rows(self, index: Tensor) -> Self:
        return replace(self, forward=self.forward.rows(index))

    def within(self, t0: float, t1: float) -> Self:
        return replace(self, forward=self.forward.within(t0, t1))

    def kernel(self, t: float) -> tuple[float, float] | None:
        return self.forward.kernel(t)

    def chain(self, s: float, t: float) -> tuple[float, float, float]:
        return self.forward.chain(s, t)
