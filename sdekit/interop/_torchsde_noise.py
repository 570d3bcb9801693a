"""torchsde's Brownian motions as the noise of a solve."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from sdekit._equations.computed import computed
from sdekit._noise.white import AbstractNoise, Increment, NoiseQuery

AREAS = ("davie", "foster")  # torchsde's names of approximations to areas

# The types of bm in sdeint; Brownian motions of torchsde are callable.
Brownian = AbstractNoise | Callable[..., Any]


@dataclass(frozen=True, eq=False)
class TorchsdeNoise(AbstractNoise):
    """The increments of a torchsde Brownian motion as noise: dW = bm(t_a, t_b) for a step from t_a
    to t_b, and the negative of bm(t_b, t_a) in reverse time.

    The space-time Levy area of a step is H = U / (t_b - t_a) - bm(t_a, t_b) / 2, where U is the
    integral of W(t) - W(t_a) from t_a to t_b; it is the same in reverse time.

    Arguments:
        bm: a BrownianInterval, BrownianPath or BrownianTree of torchsde, or any callable
            `bm(ta, tb)` that returns `(batch, m)`. If it has a `levy_area_approximation` other than
            "none", it must return the pair of W and U with `return_U=True`, and if that is "davie"
            or "foster" the pair of W and the areas, `(batch, m, m)`, with `return_A=True`.
        index: the rows of its results that are the samples of the solve, `(batch,)` int64; None
            means all.

    Raises:
        TypeError: for a bm that is not callable.
        ValueError: in a solve, when the results of bm do not have the shape of the equation's
            noise, or the solver uses areas or further normals that bm does not have.

    Example:
        >>> import torchsde
        >>> bm = torchsde.BrownianInterval(0.0, 1.0, size=(4, 1))
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 0.1 * x)
        >>> ts, noise = sdekit.uniform(0.0, 1.0, 4), sdekit.interop.TorchsdeNoise(bm)
        >>> sdekit.solve(sde, torch.ones(4, 1), ts, solver=sdekit.Milstein(), noise=noise).x.shape
        torch.Size([4, 1])
    """

    bm: Callable[..., Any]
    index: Tensor | None = None

    def __post_init__(self) -> None:
        if not callable(self.bm):
            raise TypeError(
                "bm is a Brownian motion of torchsde, such as BrownianInterval, or an "
                f"AbstractNoise, not {self.bm!r:.60}"
            )

    @computed
    def seed(self) -> Any:  # noqa: ANN401 - the seed of bm is not known
        return None

    def rows(self, index: Tensor) -> Self:
        return replace(self, index=index if self.index is None else self.index[index])

    def answer(self, query: NoiseQuery) -> Iterator[Increment]:
        ts, x, shape, levy, normals, start, areas = query
        if normals:
            raise ValueError(
                "this solver uses fresh normals and a torchsde Brownian motion has none; use "
                "WhiteNoise(seed)"
            )
        if levy and getattr(self.bm, "levy_area_approximation", "none") == "none":
            raise ValueError(
                "this solver uses the space-time Levy area and bm has none; make it with "
                "levy_area_approximation='space-time', or choose another method"
            )
        known = getattr(self.bm, "levy_area_approximation", "none")
        if areas and known not in AREAS:
            raise ValueError(
                "this solver uses the areas between the coordinates of W, which bm does not have: "
                "make it with levy_area_approximation='foster', or choose another method"
            )
        for t0, t1 in zip(ts[start:-1], ts[start + 1 :], strict=True):
            if shape is None:
                yield Increment()
            elif areas:
                yield self._with_areas(t0, t1, x, shape)
            else:
                yield self._increment(t0, t1, x, shape, levy)

    def _increment(
        self, t0: float, t1: float, x: Tensor, shape: tuple[int, ...], levy: bool
    ) -> Increment:
        low = min(t0, t1)
        high = max(t0, t1)
        sign = math.copysign(1.0, t1 - t0)
        w, u = self.bm(low, high, return_U=True) if levy else (self.bm(low, high), None)
        w = self._reshaped(w, x, shape)
        h = None if u is None else self._reshaped(u, x, shape) / (high - low) - 0.5 * w
        return Increment(w if sign > 0 else -w, h)

    def _with_areas(self, t0: float, t1: float, x: Tensor, shape: tuple[int, ...]) -> Increment:
        w, a = self.bm(min(t0, t1), max(t0, t1), return_A=True)
        w = self._reshaped(w, x, shape)
        a = (a if self.index is None else a[self.index]).to(x)
        return Increment(w, a=a) if t1 > t0 else Increment(-w, a=-a)

    def _reshaped(self, value: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        value = value if self.index is None else value[self.index]
        if len(value) != len(x) or value[:1].numel() != math.prod(shape) * len(x[:1]):
            expected = (len(x), math.prod(shape))
            raise ValueError(
                f"bm returned shape {tuple(value.shape)} and this equation's noise for this state "
                f"is {expected}"
            )
        return value.to(x).reshape(len(x), *shape)
