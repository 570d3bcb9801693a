"""A Brownian path that can be evaluated on any intervals, in any order, and stores nothing.

W and its space-time Levy area H over any interval are weighted sums of normals (`wavelets`), which
are hashes of (seed, sample, node). The terms of each branch and of each kind of normal are always
summed separately, level by level: results are bit-identical in every batch and block, and do not
depend on which branch comes first.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, repeat

import torch
from torch import Tensor

from sdekit._grid import Dyadic, require_integer, times
from sdekit._noise import generator
from sdekit._noise.wavelets import terms
from sdekit._noise.white import (
    AbstractSeededNoise,
    Increment,
    NoiseQuery,
    Reader,
    areas_given,
    blocks,
)

_BLOCK = 1 << 21  # normals of a block of steps on a fixed grid, on the CPU
_LARGE_BATCH = 1 << 12  # numbers of a batch from which a copy costs more than a call, on the CPU
_ROUNDING = 0.02  # the largest relative change of a step by rounding its ends to ticks
# Normals of one kind in memory at once: 64 MB of both; on an accelerator four times as many.
_MAX_NORMALS = 1 << 23


@dataclass(frozen=True, eq=False)
class BrownianPath(AbstractSeededNoise):
    """One Brownian path per sample, which does not depend on the grid, the order of queries, the
    batch or, up to rounding, the device.

    A binary tree in each interval between neighbouring knots divides it into 2^depth ticks. Times
    are rounded to ticks, and at ticks the law is exact. Knots in geometric progression resolve a
    geometric grid. On a grid of coarse ticks (`snap`) an increment needs two or three new nodes of
    the tree, on other grids about depth - log2(steps).

    Arguments:
        seed: any integer; None takes one from torch's default generator; or integers `(batch,)`,
            one per sample, each of which gets the path of a batch of one with that seed.
        knots: at least two increasing times; the path is defined between the first and the last.
        depth: the number of levels of each tree, 1 to 32.
        index: the samples' indices, `(batch,)` int64; None counts from `first`.
        first: the index of the first sample if index is None.

    Raises:
        TypeError: for seeds, indices, a first or a depth that are not integers.
        ValueError: for knots that do not increase, a depth out of range, or an index together with
            one seed per sample; in a solve, for times outside the knots, for steps or times of
            output too near to each other for the depth, if the number of seeds or indices is not
            that of the samples, or for a solver that draws more than 1,021 normals a step.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
        >>> path, solver, x0 = sdekit.BrownianPath(seed=0), sdekit.ShARK(), torch.zeros(4, 1)
        >>> coarse, fine = (
        ...     sdekit.solve(sde, x0, sdekit.uniform(0.0, 1.0, n), solver=solver, noise=path).x
        ...     for n in (16, 64)
        ... )
        >>> bool((coarse - fine).abs().max() < 0.01)  # of the same path
        True
    """

    knots: Sequence[float] = (0.0, 1.0)
    depth: int = field(default=20, kw_only=True)

    def __post_init__(self) -> None:
        AbstractSeededNoise.__post_init__(self)
        object.__setattr__(self, "knots", self.tree.knots)

    @property
    def tree(self) -> Dyadic:
        """The times of the path as ticks."""
        return self._tree

    @cached_property
    def _tree(self) -> Dyadic:
        return Dyadic(self.knots, self.depth)

    def ticks(self, t: Tensor) -> Tensor:
        """The ticks nearest to times, int64, shaped like t.

        Raises:
            ValueError: outside the knots.
        """
        tree = self._tree
        ticks = tree.ticks(t)
        last = tree.cells << self.depth
        if ticks.numel() and not 0 <= int(ticks.amin()) <= int(ticks.amax()) <= last:
            raise ValueError(
                f"times from {float(t.min())} to {float(t.max())} are not all on the path, which "
                f"is defined on [{self.knots[0]}, {self.knots[-1]}]; give BrownianPath knots that "
                "span the whole solve"
            )
        return ticks

    def snap(self, ts: Tensor | Sequence[float], spare: int = 2) -> Tensor:
        """A grid near ts on coarse ticks, where the path is cheapest to evaluate, float64; its ends
        are those of ts, rounded to ticks.

        Arguments:
            ts: a monotone grid.
            spare: times are moved to multiples of at most 2^-spare of the smallest interval of ts;
                0 or larger.

        Raises:
            TypeError: for times that are not numbers, or a spare that is not an integer.
            ValueError: for a negative spare, times that are not strictly monotone, times outside
                the knots, or two of them at one tick.
        """
        spare = require_integer("spare, a number of bits,", spare)
        if spare < 0:
            raise ValueError(f"spare counts bits from 0 on, not {spare}")
        ticks = self.ticks(torch.tensor(times(ts), dtype=torch.float64))
        least = int(ticks.diff().abs().min())
        if not least:
            raise ValueError(
                f"two of these times are at one tick of this path of depth {self.depth}: give "
                "fewer times, or a path with a larger depth"
            )
        bits = max(0, least.bit_length() - 1 - spare)
        ticks[1:-1] = (
            (ticks[1:-1] >> bits) + ((ticks[1:-1] >> bits - 1) & 1 if bits else 0)
        ) << bits
        return self.tree.times(ticks)

    def answer(self, query: NoiseQuery) -> Iterator[Increment]:
        ts, x, shape, levy, normals, start, areas = query
        times = torch.tensor(ts[start:], dtype=torch.float64)
        self.require_resolved(times)
        key = self.keys(x)
        readings = self._readings(key, times, x, shape, levy or areas)
        if areas:
            yield from self._with_areas(key, times, readings, x)
            return
        for i, j in blocks(start, len(ts) - 1, normals * x.numel(), x.device):
            z = self.extra_normals(key, range(i, j), normals, x) if normals else repeat(None)
            yield from (
                Increment(w, h, normal)
                for normal, (w, h) in zip(z, islice(readings, j - i), strict=False)
            )

    def _with_areas(
        self,
        key: Tensor,
        ts: Tensor,
        readings: Iterator[tuple[Tensor | None, Tensor | None]],
        x: Tensor,
    ) -> Iterator[Increment]:
        """The increments with areas from `areas_given`. They are drawn for each interval by itself,
        so the areas of two halves do not add up to that of the whole interval.
        """
        ticks = self.ticks(ts)
        for first, last, (w, h) in zip(ticks[:-1], ticks[1:], readings, strict=True):
            assert w is not None
            assert h is not None
            low, high = sorted((int(first), int(last)))
            # A counter has too few bits for both ends of an interval, so the key depends on them.
            (normal,) = self.draw(
                key ^ generator.salt(low, high), range(1), 0, (w.shape[1],) * 2, x
            )
            normal = normal if bool(first < last) else -normal  # the area of the reversed path
            dt = (self.tree.times(last[None]) - self.tree.times(first[None])).abs().to(x)
            yield Increment(w, h, a=areas_given(w, h, dt, normal))

    def require_resolved(self, times: Tensor) -> None:
        """Refuses times whose intervals would be changed by rounding to ticks.

        Raises:
            ValueError: with what to give instead, also for times outside the knots.
        """
        steps = times.diff()
        rounding = self._tree.times(self.ticks(times)).diff() - steps
        if not bool((rounding.abs() <= _ROUNDING * steps.abs()).all()):
            raise ValueError(
                f"the times have intervals that ticks of 2^-{self.depth} of an interval of knots "
                f"change by more than {_ROUNDING:.0%}; give BrownianPath a larger depth, knots "
                "nearer to each other where the times are, or the times of snap(times)"
            )

    def readings(
        self, ts: Sequence[float], x: Tensor, shape: tuple[int, ...] | None, *, levy: bool = False
    ) -> Iterator[Increment]:
        return (
            Increment(w, h)
            for w, h in self._readings(
                self.keys(x), torch.tensor(ts, dtype=torch.float64), x, shape, levy
            )
        )

    def _readings(
        self, key: Tensor, ts: Tensor, x: Tensor, shape: tuple[int, ...] | None, levy: bool
    ) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """W and H between neighbouring times, in blocks."""
        ticks = self.ticks(ts)
        steps = len(ts) - 1
        if shape is None:
            yield from [(None, None)] * steps
            return
        limit = _BLOCK if x.device.type == "cpu" else _BLOCK << 3
        block = min(64, max(4, limit // (8 * max(1, len(x) * math.prod(shape)))))
        for i in range(0, steps, block):
            yield from zip(
                *self._block_increments(key, ticks[i : i + block + 1], x, shape, levy), strict=True
            )

    def reader(self, x: Tensor, shape: tuple[int, ...] | None, *, levy: bool = False) -> Reader:
        if shape is None:
            return lambda t0, t1: Increment()
        size = math.prod(shape)
        dtype = _working_dtype(x)
        cache = _NormalCache(self.keys(x), x.new_zeros(0, size, dtype=dtype))
        slots = torch.full((2, len(x)), -1)

        def read(t0: Tensor, t1: Tensor) -> Increment:
            # Times, nodes and weights are small and are computed on the host.
            ticks = self.ticks(torch.stack([t0, t1]).cpu())
            swapped = ticks.flip(0)
            # A tick of the last query stays in its slot, which has the normals of its branch.
            torch.where((swapped == slots).any(dim=0), swapped, ticks, out=slots)
            nodes, weights = terms(self._tree, slots, levy)
            out = x.new_zeros(1 + levy, 2, len(x), 2, size, dtype=dtype)
            weights = weights.to(out, non_blocking=True).movedim(2, 4)
            for part, weight in _split_terms(nodes, weights, nodes.numel() * size):
                for w, z in zip(weight, cache(part), strict=True):
                    out.addcmul_(w, z)
            out = _sum_branches(out, 3)
            sign = torch.where(ticks[0] > ticks[1], -1, 1).to(x.device, non_blocking=True)
            out[0].mul_(sign.unsqueeze(-1))
            return Increment(*out.to(x.dtype).reshape(1 + levy, len(x), *shape))

        return read

    def _block_increments(
        self, key: Tensor, ticks: Tensor, x: Tensor, shape: tuple[int, ...], levy: bool
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """W and H over the intervals between neighbouring ticks, the same for all samples."""
        reverse = bool(ticks[-1] < ticks[0])
        ticks = ticks.flip(0) if reverse else ticks
        nodes, weights = terms(self._tree, torch.stack([ticks[:-1], ticks[1:]]), levy)
        out = x.new_zeros(
            1 + levy, 2, 2, len(ticks) - 1, len(x) * math.prod(shape), dtype=_working_dtype(x)
        )
        for part, weight in _split_terms(
            nodes, weights.to(out, non_blocking=True), nodes.unique().numel() * out.shape[4]
        ):
            self._add_terms(key, part, weight, out)
        out = _sum_branches(out, 1)
        if reverse:  # the path read backwards: W -> -W, H -> +H
            out = out.flip(1)
            out[0].neg_()
        w, *h = out.to(x.dtype).reshape(*out.shape[:2], len(x), *shape)
        return w.unbind(0), h[0].unbind(0) if h else [None] * len(w)

    @staticmethod
    def _add_terms(key: Tensor, nodes: Tensor, weights: Tensor, out: Tensor) -> None:
        """Adds the terms of nodes that all samples have in common to out; each node is hashed
        once.
        """
        unique_nodes, positions = torch.unique(nodes, return_inverse=True)
        rows = unique_nodes.to(out.device, non_blocking=True).repeat_interleave(len(key))
        size = out.shape[4] // max(1, len(key))
        gathers = out.shape[4] < _LARGE_BATCH or out.device.type != "cpu"
        positions = positions.to(out.device, non_blocking=True) if gathers else positions
        normals = generator.normal_pairs(key.repeat(len(unique_nodes)), rows, size)
        normals = normals.reshape(2, len(unique_nodes), out.shape[4]).to(out.dtype)
        unique_nodes = unique_nodes.tolist()
        for row, weight in zip(positions, weights, strict=True):
            for indices, w, branch in zip(row, weight.unbind(2), out.unbind(2), strict=True):
                if gathers:
                    branch.addcmul_(w, normals[:, indices])
                    continue
                node, count = torch.unique_consecutive(indices, return_counts=True)
                start = 0
                # Consecutive steps with the same node share its normals without a copy.
                for j, n in zip(node.tolist(), count.tolist(), strict=True):
                    run = slice(start, start := start + n)
                    if unique_nodes[j]:
                        branch[:, :, run].addcmul_(w[:, :, run], normals[:, j, None])


class _NormalCache:
    """The normals of the last query by the position of their terms: if a node occurs at the same
    position again, its normals are not drawn again.
    """

    def __init__(self, key: Tensor, like: Tensor) -> None:
        self.key = key
        self.normals = like
        self.nodes = torch.zeros(0, dtype=torch.int64)

    def __call__(self, nodes: Tensor) -> Tensor:
        """The normals of nodes `(terms, 2, batch)`, `(terms, 2, batch, 2, size)`; arbitrary where a
        node is 0.
        """
        size = self.normals.shape[-1]
        if len(nodes) > len(self.nodes):
            self.nodes = torch.zeros_like(nodes)
            self.normals = self.normals.new_zeros(*nodes.shape, 2, size)
        cached = self.nodes[: len(nodes)]
        normals = self.normals[: len(nodes)]
        positions = ((nodes != cached) & (nodes != 0)).view(-1).nonzero().squeeze(1)
        if len(positions):
            new_nodes = nodes.view(-1)[positions]
            cached.view(-1).index_copy_(0, positions, new_nodes)
            positions, new_nodes = (
                part.to(self.key.device, non_blocking=True) for part in (positions, new_nodes)
            )
            drawn = generator.normal_pairs(
                self.key[positions % len(self.key)], new_nodes, size, outer=False
            )
            normals.view(cached.numel(), 2, size).index_copy_(0, positions, drawn.to(normals.dtype))
        return normals


def _split_terms(nodes: Tensor, weights: Tensor, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All terms at once, or one at a time if their normals need too much memory."""
    if numbers < (_MAX_NORMALS if weights.device.type == "cpu" else _MAX_NORMALS << 2):
        yield nodes, weights
        return
    for part, weight in zip(nodes.split(1), weights.split(1), strict=True):
        if bool(part.any()):
            yield part, weight


def _sum_branches(out: Tensor, normals: int) -> Tensor:
    """The sum over the two normals, a dimension of out, then over the two branches,
    `(outputs, 2, ...)`.
    """
    first, second = out.unbind(normals)
    first, second = (first + second).unbind(1)
    return first + second


def _working_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype.itemsize >= 4 else torch.float32
