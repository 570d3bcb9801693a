"""The noise of a solve: the increments of steps, and the white noise of fixed grids."""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sdekit._grid import Dyadic
from sdekit._noise import generator

# Normals drawn together on the CPU, where the overhead of a call is that of 20,000 normals.
_BLOCK = 1 << 16
# On accelerators, where every draw launches about 30 kernels.
_LARGE_BLOCK = 1 << 22
_DRAWS = 1 << 10  # counters of one step: W, H, then fresh normals; the last is that of areas
_MOST_NORMALS = _DRAWS - 3
_MOST_STEPS = 1 << 27  # the counters of later ones are those of the nodes of paths


class Increment(NamedTuple):
    """The noise of a step over [t0, t1]; None for what the problem or the solver does not use.

    Arguments:
        w: the increment of W, `(batch, *noise_shape)`, of variance |t1 - t0|.
        h: its space-time Levy area H, the mean over the step of W(t) minus the straight line
            between both ends, shaped like w, of variance |t1 - t0| / 12 and independent of w.
        z: further standard normals, `(normals, batch, *event)`.
        a: the Levy areas between the coordinates of W, the integrals of
            (W_j dW_k - W_k dW_j) / 2 over the step with W = 0 at its start, `(batch, m, m)`.

    Example:
        >>> noise = sdekit.WhiteNoise(0)
        >>> increment = next(noise.increments([0.0, 1.0], torch.zeros(3, 2), (2,), levy=True))
        >>> increment.w.shape, increment.h.shape, increment.z
        (torch.Size([3, 2]), torch.Size([3, 2]), None)
    """

    w: Tensor | None = None
    h: Tensor | None = None
    z: Tensor | None = None
    a: Tensor | None = None


class NoiseQuery(NamedTuple):
    """A query of a solve to its noise: the increments over the intervals of a grid.

    Arguments:
        ts: all times of the grid.
        x: a state, `(batch, *event)`, from which the shape, dtype and device are taken.
        shape: the shape of W for one sample; None without noise.
        levy: whether the space-time Levy area H is needed.
        normals: the number of further normals of x's shape per step.
        start: the index of the first interval that is needed.
        areas: whether the areas between the coordinates of W are needed.

    Example:
        >>> query = sdekit.NoiseQuery([0.0, 0.5, 1.0], torch.zeros(3, 2), (2,), normals=1)
        >>> [tuple(increment.z.shape) for increment in sdekit.WhiteNoise(0).answer(query)]
        [(1, 3, 2), (1, 3, 2)]
    """

    ts: Sequence[float]
    x: Tensor
    shape: tuple[int, ...] | None
    levy: bool = False
    normals: int = 0
    start: int = 0
    areas: bool = False


Reader = Callable[[Tensor, Tensor], Increment]  # from times `(batch,)` to times `(batch,)`


class AbstractNoise(ABC):
    """A source of increments for any rows of a batch.

    A subclass defines `rows` and `answer`.

    Attributes:
        seed: the seed, or one per sample, `(batch,)`.

    Example:
        >>> isinstance(sdekit.WhiteNoise(0), sdekit.AbstractNoise)
        True
        >>> noise = sdekit.BrownianPath(0)
        >>> x = torch.zeros(3, 2)
        >>> [tuple(increment.w.shape) for increment in noise.increments([0.0, 0.5, 1.0], x, (2,))]
        [(3, 2), (3, 2)]
    """

    seed: int | Tensor

    @abstractmethod
    def rows(self, index: Tensor) -> Self:
        """The same noise for some of the samples."""

    @abstractmethod
    def answer(self, query: NoiseQuery) -> Iterator[Increment]:
        """The increments of a query, one per interval, from interval `query.start` on."""

    def increments(
        self,
        ts: Sequence[float],
        x: Tensor,
        shape: tuple[int, ...] | None,
        *,
        levy: bool = False,
        normals: int = 0,
        start: int = 0,
    ) -> Iterator[Increment]:
        """The answer to a `NoiseQuery` of these arguments."""
        return self.answer(NoiseQuery(ts, x, shape, levy, normals, start))

    def readings(
        self, ts: Sequence[float], x: Tensor, shape: tuple[int, ...] | None, *, levy: bool = False
    ) -> Iterator[Increment]:
        """The increments between times that need not be those of a solve, and may be equal."""
        return self.increments(ts, x, shape, levy=levy)

    def reader(self, x: Tensor, shape: tuple[int, ...] | None, *, levy: bool) -> Reader:
        """A function from times t0 and t1, both `(batch,)`, to the `Increment` of each sample over
        its own interval.

        Only for noise that is one path, which can be read several times. Arguments as in
        `NoiseQuery`.

        Raises:
            TypeError: for other noise.
        """
        raise TypeError(
            f"{type(self).__name__} is not one path that can be read at any times; use BrownianPath"
        )

    @property
    def tree(self) -> Dyadic:
        """The dyadic times at which a path can be read.

        Raises:
            TypeError: for noise that is not one path.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be read twice, and adaptive steps that draw new noise "
            "after a rejection bias the result; use BrownianPath"
        )


def integers(name: str, values: Any) -> Tensor:  # noqa: ANN401 - whatever a user gives
    """A sequence of integers as an int64 tensor `(batch,)`; of larger integers the lowest 64 bits
    are used.

    Raises:
        TypeError: for other values.
    """
    try:
        if isinstance(values, Tensor):
            if values.dtype == torch.int64 and values.ndim == 1:
                return values
            if values.is_floating_point() or values.is_complex():
                raise TypeError
            return values.to(torch.int64).reshape(-1)
        return torch.tensor([generator.signed(value) for value in values], dtype=torch.int64)
    except TypeError:
        raise TypeError(f"{name} must be an integer, or one per sample; not {values!r}") from None


def blocks(start: int, steps: int, numbers: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Steps `start` to `steps` - 1 in blocks [i, j) whose normals are drawn together; numbers: the
    normals per step.

    Raises:
        ValueError: for more steps than the generator has counters for.
    """
    if steps > _MOST_STEPS:
        raise ValueError(
            f"a grid has at most {_MOST_STEPS:,} steps, not {steps:,}: divide it, and give each "
            "solve a seed of its own"
        )
    block = max(1, (_BLOCK if device.type == "cpu" else _LARGE_BLOCK) // max(1, numbers))
    return ((i, min(i + block, steps)) for i in range(start, steps, block))


@dataclass(frozen=True, eq=False)
class AbstractSeededNoise(AbstractNoise):
    """Noise that is a function of (seed, sample index): the base of `WhiteNoise` and
    `BrownianPath`.
    """

    seed: int | Tensor = field(default_factory=generator.fresh_seed)
    index: Tensor | None = field(default=None, kw_only=True)
    first: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        seed: Any = self.seed
        if seed is None:
            seed = generator.fresh_seed()
        elif isinstance(seed, Tensor) or not hasattr(seed, "__index__"):
            seed = integers("seed", seed)
        object.__setattr__(self, "seed", seed)
        try:
            object.__setattr__(self, "first", operator.index(self.first))
        except TypeError:
            raise TypeError(
                f"first is the index of a sample, an integer such as 0; not {self.first!r:.60}"
            ) from None
        if self.index is not None:
            if isinstance(seed, Tensor):
                raise ValueError(
                    "one seed per sample already distinguishes the samples: leave out index, or "
                    "give one seed and the index"
                )
            object.__setattr__(self, "index", integers("index", self.index))

    def rows(self, index: Tensor) -> Self:
        if not isinstance(index, Tensor):
            raise TypeError(
                f"index is a tensor of rows, or of one bool for each sample, not {index!r:.60}: "
                "give torch.tensor(index)"
            )
        index = index.nonzero().flatten() if index.dtype == torch.bool else index
        if isinstance(self.seed, Tensor):
            return replace(self, seed=self.seed[index.to(self.seed.device)])
        known = self.index
        rows = index + self.first if known is None else known[index.to(known.device)]
        return replace(self, index=rows)

    def keys(self, x: Tensor) -> Tensor:
        """The samples' keys, `(batch,)`, on x's device."""
        per_sample = self.seed if isinstance(self.seed, Tensor) else self.index
        if per_sample is not None and len(per_sample) != len(x):
            raise ValueError(
                f"this noise is for {len(per_sample)} samples and the state has {len(x)}; use "
                "rows(index)"
            )
        if isinstance(self.seed, Tensor):
            index = torch.full_like(self.seed, self.first, device=x.device)
        elif self.index is None:
            index = torch.arange(self.first, self.first + len(x), device=x.device)
        else:
            index = self.index.to(x.device)
        return generator.keys(self.seed, index)

    @staticmethod
    def draw(key: Tensor, steps: range, kind: int, event: tuple[int, ...], x: Tensor) -> Tensor:
        """Fresh normals of some steps, `(steps, batch, *event)`."""
        counters = range(steps.start * _DRAWS + kind, steps.stop * _DRAWS + kind, _DRAWS)
        numbers = generator.standard_normal(key, counters, math.prod(event))
        return numbers.to(x.dtype).reshape(len(steps), len(x), *event)

    def extra_normals(self, key: Tensor, steps: range, normals: int, x: Tensor) -> Tensor:
        """The normals of steps besides the increments of W, `(steps, normals, batch, *event)`.

        Raises:
            ValueError: for more than a step has.
        """
        if normals > _MOST_NORMALS:
            raise ValueError(
                f"the solver draws {normals:,} normals a step, and a step has {_MOST_NORMALS:,} "
                "besides its increments: take fewer corrections a step, as Langevin(steps=1), and "
                "more steps"
            )
        return torch.stack(
            [self.draw(key, steps, 2 + k, tuple(x.shape[1:]), x) for k in range(normals)], dim=1
        )


def areas_given(w: Tensor, h: Tensor, dt: Tensor, normal: Tensor) -> Tensor:
    """Areas with the mean and the covariance that the exact ones have given W and H: the mean
    H_j W_k - W_j H_k, the variance dt^2 / 20 + dt (H_j^2 + H_k^2) / 5, and the covariance
    dt H_k H_l / 5 of those of j, k and of j, l:

        A_jk = H_j (W_k + xi_k) - (W_j + xi_j) H_k + eta_jk,
        xi ~ N(0, dt / 5), eta_jk = -eta_kj ~ N(0, dt^2 / 20).

    Arguments:
        w, h: `(batch, m)`.
        dt: |t1 - t0|.
        normal: standard normals, `(batch, m, m)`: those of xi on the diagonal, of eta above it.

    References:
        Foster, Oberhauser and Lyons 2020, "An optimal polynomial approximation of Brownian motion".
    """
    xi = (0.2 * dt).sqrt() * normal.diagonal(dim1=1, dim2=2)
    above = h[:, :, None] * (w + xi)[:, None, :] + math.sqrt(0.05) * dt * torch.triu(normal, 1)
    return above - above.mT


@dataclass(frozen=True, eq=False)
class WhiteNoise(AbstractSeededNoise):
    """Independent increments, for fixed grids: the normals of step i of sample n depend on
    (seed, n, i) only.

    They do not depend on the batch, on the number of steps that are drawn together, on the dtype
    (they are drawn in float32, then cast) or, up to rounding, on the device. On another grid the
    increments are not those of the same path; `BrownianPath` has one path for all grids. As
    steps are counted from the start of each solve, a solve that continues another one needs another
    seed, or both need one `BrownianPath` over the whole span.

    Arguments:
        seed: any integer; None takes one from torch's default generator; or integers `(batch,)`,
            one per sample, each of which gets the noise of a batch of one with that seed.
        index: the samples' indices n, `(batch,)` int64; None counts from `first`.
        first: the index of the first sample if index is None.

    Raises:
        TypeError: for seeds, indices or a first that are not integers.
        ValueError: for an index together with one seed per sample; in a solve, if the number of
            seeds or indices is not that of the samples, or for a solver that draws more than 1,021
            normals a step.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.3 * x)
        >>> ts, solver, x0 = sdekit.uniform(0.0, 1.0, 10), sdekit.EulerMaruyama(), torch.ones(4, 1)
        >>> a, b = (
        ...     sdekit.solve(sde, x0, ts, solver=solver, noise=sdekit.WhiteNoise(seed=0)).x
        ...     for _ in range(2)
        ... )
        >>> torch.equal(a, b)
        True
    """

    def answer(self, query: NoiseQuery) -> Iterator[Increment]:
        ts, x, shape, levy, normals, start, areas = query
        key = self.keys(x)
        steps = len(ts) - 1
        numbers = max(1, math.prod(shape or ()), math.prod(x.shape[1:]))
        times = np.array(ts[start:])
        scales = np.sqrt(np.abs(times[1:] - times[:-1]))
        # Copied once, without waiting for the queued work of the device.
        scales = torch.tensor(scales).to(x, non_blocking=True)
        for i, j in blocks(start, steps, len(x) * numbers, x.device):
            block = range(i, j)
            w: Sequence[Tensor | None] = [None] * (j - i)
            h = w
            z = w
            a = w
            if shape is not None:
                scale = scales[i - start : j - start].reshape(-1, *[1] * (1 + len(shape)))
                w = self.draw(key, block, 0, shape, x).mul_(scale).unbind(0)
                if levy or areas:
                    h = self.draw(key, block, 1, shape, x).mul_(scale / math.sqrt(12)).unbind(0)
                    if areas:
                        widths = scale.square().reshape(-1).unbind()
                        normal = self.draw(key, block, _DRAWS - 1, shape * 2, x)
                        a = list(map(areas_given, w, h, widths, normal.unbind(0)))
            if normals:
                z = self.extra_normals(key, block, normals, x).unbind(0)
            yield from map(Increment, w, h, z, a)
