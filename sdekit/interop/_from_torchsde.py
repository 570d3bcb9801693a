"""Equations of torchsde as equations of sdekit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdekit._arguments.names import did_you_mean
from sdekit._equations.sde import AbstractSDE, NoiseType, SDEType
from sdekit.calling import checked_call, require_call, require_order, require_real
from sdekit.elementary import Time

Method = Callable[..., Any]

_NOISE_TYPES = ("additive", "diagonal", "scalar", "general")
_SDE_TYPES = ("ito", "stratonovich")
_ROLES = {
    "drift": "f",
    "diffusion": "g",
    "diffusion_prod": "g_prod",
    "drift_and_diffusion": "f_and_g",
    "drift_and_diffusion_prod": "f_and_g_prod",
}


def from_torchsde(
    sde: object, *, names: Mapping[str, str] | None = None, noise_size: int | None = None
) -> AbstractSDE:
    """The equation of a torchsde object: dx = f(t, x) dt + g(t, x) dW on states of shape
    `(batch, d)`.

    The first of these methods that the object defines is used: f, f_and_g or f_and_g_prod for the
    drift; g_prod, g, f_and_g or f_and_g_prod for the noise.

    Arguments:
        sde: an object with `noise_type`, `sde_type` and such methods; g is `(batch, d)` for
            diagonal noise and `(batch, d, m)` otherwise, with m = 1 for scalar noise; for additive
            noise g must not depend on x.
        names: other names of the methods, as in torchsde's argument of this name: a dictionary with
            keys among "drift", "diffusion", "diffusion_prod", "drift_and_diffusion" and
            "drift_and_diffusion_prod".
        noise_size: m, for additive and general noise; None takes it in a solve from the shape of g
            at t = 0.

    Raises:
        TypeError: for methods whose parameters are named in the order (y, t); in a solve, when they
            return integers, booleans or complex numbers.
        ValueError: when the object has no noise_type, sde_type, drift or diffusion; in a solve,
            when one of its methods returns another shape, or without noise_size for additive or
            general noise of which only products with g are defined.

    Example:
        >>> class Theirs:
        ...     noise_type, sde_type = "diagonal", "ito"
        ...     def f(self, t, y):
        ...         return -y
        ...     def g(self, t, y):
        ...         return 0.1 * y
        >>> sde = sdekit.interop.from_torchsde(Theirs())
        >>> ts = sdekit.uniform(0.0, 1.0, 10)
        >>> sdekit.solve(sde, torch.ones(4, 2), ts, solver=sdekit.Milstein()).x.shape
        torch.Size([4, 2])
    """
    method_names = names or {}
    methods: dict[str, Any] = {
        role: getattr(sde, method_names.get(key, role), None) for key, role in _ROLES.items()
    }
    noise_type = getattr(sde, "noise_type", None)
    sde_type = getattr(sde, "sde_type", None)
    if noise_type not in _NOISE_TYPES:
        raise ValueError(
            f"noise_type is {noise_type!r}; a torchsde equation has one of "
            f"{', '.join(_NOISE_TYPES)}{did_you_mean(noise_type, _NOISE_TYPES)}"
        )
    if sde_type not in _SDE_TYPES:
        raise ValueError(
            f"sde_type is {sde_type!r}; a torchsde equation has one of "
            f"{', '.join(_SDE_TYPES)}{did_you_mean(sde_type, _SDE_TYPES)}"
        )
    if all(methods[name] is None for name in ("f", "f_and_g", "f_and_g_prod")):
        raise ValueError(
            f"{type(sde).__name__} has no drift; define one of f, f_and_g, f_and_g_prod, or pass "
            "names"
        )
    if all(methods[name] is None for name in ("g", "g_prod", "f_and_g", "f_and_g_prod")):
        raise ValueError(
            f"{type(sde).__name__} has no diffusion; define one of g, f_and_g, g_prod, "
            "f_and_g_prod, or pass names"
        )
    for method in methods.values():
        require_order(method, "t, x")
    return _Torchsde(**methods, noise_type=noise_type, sde_type=sde_type, size=noise_size)


def prepare_solve(problem: AbstractSDE, y0: Tensor, ts: Tensor | Sequence[float]) -> AbstractSDE:
    """The same equation for one solve from y0 at ts[0], called with times in the dtype of ts.

    The number of Brownian motions is determined once, at ts[0]. If f_and_g is the drift, the g
    computed with f is stored for the next call, which is for g at the same point.
    """
    if not isinstance(problem, _Torchsde):
        return problem
    dtype = ts.dtype if isinstance(ts, Tensor) and ts.is_floating_point() else torch.float32
    problem = replace(problem, dtype=torch.promote_types(dtype, torch.float32))
    if (
        problem.noise_type in ("additive", "general")
        and problem.size is None
        and (problem.g or problem.f_and_g)
    ):
        with torch.no_grad():
            g = checked_call("the diffusion", problem.diffusion, float(ts[0]), y0)
            problem = replace(problem, size=g.shape[-1])
    return replace(problem, last_g=[])


@contextmanager
def signature_errors(problem: AbstractSDE, y: Tensor) -> Iterator[None]:
    """A context in which a TypeError of a torchsde equation names the method that takes other
    arguments than those of its call.

    Raises:
        TypeError: with the method, and the arguments of the call.
    """
    try:
        yield
    except TypeError:
        products = ("g_prod", "f_and_g_prod")
        for name in ("f", "g", "f_and_g", *products) if isinstance(problem, _Torchsde) else ():
            method = getattr(problem, name)
            vectors = [y] if name in products else []
            if method is not None:
                require_call(
                    method, f"{name}(t, y{', v' if vectors else ''})", y.new_zeros(()), y, *vectors
                )
        raise


@dataclass(frozen=True, eq=False)
class _Torchsde(AbstractSDE):
    """See `from_torchsde`. Here the g of additive noise is a matrix, which multiplies dW as for
    general noise.
    """

    checks_shapes = True

    f: Method | None
    g: Method | None
    g_prod: Method | None
    f_and_g: Method | None
    f_and_g_prod: Method | None
    noise_type: NoiseType
    sde_type: SDEType
    size: int | None = None
    last_g: list[tuple[Time, Tensor, bool, Tensor]] | None = None
    dtype: torch.dtype = torch.float32

    def _time(self, t: Time, x: Tensor) -> Tensor:
        """t as torchsde passes it, 0-dim; `(batch, 1, ...)` if samples have their own times. Its
        precision is at least that of x.
        """
        dtype = torch.promote_types(self.dtype, x.dtype)
        if isinstance(t, Tensor):
            return t.to(dtype).reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t.to(dtype)
        return torch.full((), t, dtype=dtype, device=x.device)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        if self.f is not None:
            f = self.f(self._time(t, x), x)
        elif self.f_and_g is not None:
            f, g = self.f_and_g(self._time(t, x), x)
            if self.last_g is not None:
                self.last_g[:] = [(t, x, torch.is_grad_enabled(), g)]
        else:
            assert self.f_and_g_prod is not None
            zero = x.new_zeros(len(x), *(self.noise_shape(x) or (1,)))
            f = self.f_and_g_prod(self._time(t, x), x, zero)[0]
        return _checked_shape("the drift", f, tuple(x.shape), x)

    def diffusion(self, t: Time, x: Tensor) -> Tensor:
        g = self._matrix(t, x)
        if self.noise_type == "diagonal":
            return _checked_shape("the diffusion", g, tuple(x.shape), x)
        size = 1 if self.noise_type == "scalar" else self.size or g.shape[-1]
        g = _checked_shape("the diffusion", g, (*x.shape, size), x)
        return g.squeeze(-1) if self.noise_type == "scalar" else g

    def _matrix(self, t: Time, x: Tensor) -> Tensor:
        """g in the shape of torchsde; if only products are defined, from the product with ones, or
        with the unit vector of each Brownian motion.
        """
        known = self._known_g(t, x) if self.last_g else None
        if known is not None:
            return known
        if self.g is not None:
            return self.g(self._time(t, x), x)
        if self.f_and_g is not None:
            return self.f_and_g(self._time(t, x), x)[1]
        if self.noise_type == "diagonal":
            return self._product(t, x, torch.ones_like(x))
        (size,) = self.noise_shape(x) or (1,)
        units = torch.eye(size, dtype=x.dtype, device=x.device)
        return torch.stack([self._product(t, x, unit.expand(len(x), -1)) for unit in units], dim=-1)

    def _known_g(self, t: Time, x: Tensor) -> Tensor | None:
        """g if the last drift was at the same point."""
        assert self.last_g is not None
        s, y, with_grad, g = self.last_g.pop()
        same = (
            y is x
            and with_grad == torch.is_grad_enabled()
            and (s is t or (isinstance(s, float) and s == t))
        )
        return g if same else None

    def _product(self, t: Time, x: Tensor, v: Tensor) -> Tensor:
        method = self.g_prod or self.f_and_g_prod
        assert method is not None
        result = checked_call("the product g . v", method, self._time(t, x), x, v)
        return _checked_shape(
            "the product g . v", result if self.g_prod is not None else result[1], tuple(x.shape), x
        )

    def diffuse(self, t: Time, x: Tensor, dw: Tensor | None, onto: Tensor) -> Tensor:
        assert dw is not None
        if self.g_prod is None and (self.g is not None or self.f_and_g is not None):
            return self.multiply(self.diffusion(t, x), dw, onto)
        return onto + self._product(t, x, dw.unsqueeze(-1) if self.noise_type == "scalar" else dw)

    def multiply(self, g: Time, dw: Tensor | None, onto: Tensor) -> Tensor:
        if self.noise_type == "additive":
            assert isinstance(g, Tensor)
            assert dw is not None
            return onto + torch.einsum("b...m,bm->b...", g, dw)
        return AbstractSDE.multiply(self, g, dw, onto)

    def noise_shape(self, x: Tensor) -> tuple[int, ...] | None:
        if self.noise_type in ("diagonal", "scalar"):
            return AbstractSDE.noise_shape(self, x)
        if self.size is None and self.g is None and self.f_and_g is None:
            raise ValueError(
                "products with g do not tell how many Brownian motions there are; pass noise_size, "
                "or a bm to sdeint"
            )
        with torch.no_grad():
            if self.size is not None:
                return (self.size,)
            return (checked_call("the diffusion", self.diffusion, 0.0, x.clone()).shape[-1],)


def _checked_shape(name: str, value: Tensor, shape: tuple[int, ...], x: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != shape:
        description = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} of this equation is {description}; for this state it must be {shape}"
        )
    require_real(name, value, x)
    return value if value.dtype == x.dtype else value.to(x.dtype)
