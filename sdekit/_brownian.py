"""A Brownian path that can be asked anything, in any order, and remembers nothing.

On an interval of length h, with r the relative position, the mean of W given its increment W_h and its space-time Levy area H
is r W_h + 6 r (1 - r) H. Halving the interval adds two independent normals, Z ~ N(0, h/16) and N ~ N(0, h/12), such that
with v the relative position in a half

    left:   Z (v - 3 v (1 - v))     + N 3 v (1 - v)
    right:  Z (1 - v - 3 v (1 - v)) - N 3 v (1 - v),

and so on in each half (Foster, Lyons, Oberhauser 2020, arXiv 1904.06961; Jelincic, Foster, Kidger 2024, arXiv 2405.06464).
So W is a sum of wavelets over the nodes of a dyadic tree, one a level, and so is its integral, whose terms are cubics: W and H
over any interval are weighted sums of the normals of two branches. The normals are hashes of (seed, sample, node).

Weights are computed in float64 and subtracted where the two branches share a node, so that nothing cancels in float32. The
sum is taken level by level, each term by itself, whatever is asked: an answer has the same bits in every batch and block.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from sdekit import _random
from sdekit._grid import Dyadic
from sdekit._noise import AbstractSeededNoise, Increment, Reader

_NODES = 1 << 37  # counters from here on are nodes; steps of a solve count from 0
_BLOCK = 1 << 21  # normals of a block of steps on a grid that is known
_LARGE = 1 << 12  # numbers of a batch from which a copy costs more than a call
_ROUNDING = 0.02  # how much of a step may be lost or won by rounding its ends to ticks
_HELD = 1 << 23  # normals of one kind held at once: 64 MB of both


@dataclass(frozen=True, eq=False)
class BrownianPath(AbstractSeededNoise):
    """One Brownian path a sample, the same whatever the grid, the order of the queries, the batch and the device.

    The tree is rooted in each interval between neighbouring knots and resolves 2^-depth of it: times are rounded to such
    ticks, and at ticks the law is exact. Knots in geometric progression make a tree that resolves a geometric grid. On a
    grid of coarse ticks (`snap`) an increment costs two or three new nodes, on others about depth - log2(steps).

    Arguments:
        seed: any integer; None takes one from torch's default generator; or one a sample, `(batch,)`, each of which then has
            the path that it would have alone.
        knots: at least two increasing times; the path lives between the first and the last.
        depth: levels of the tree, 1 to 32.
        index: the samples' indices, `(batch,)` int64; None counts from `first`.
        first: the index of the first sample where index is None.

    Raises:
        ValueError: for knots that do not increase, or a depth out of range.
    """

    knots: Sequence[float] = (0.0, 1.0)
    depth: int = field(default=20, kw_only=True)

    def __post_init__(self) -> None:
        AbstractSeededNoise.__post_init__(self)
        object.__setattr__(self, "knots", self.tree.knots)

    @cached_property
    def tree(self) -> Dyadic:  # pyright: ignore[reportIncompatibleMethodOverride] - a property, kept
        """The times of the path as ticks."""
        return Dyadic(self.knots, self.depth)

    def ticks(self, t: Tensor) -> Tensor:
        """The ticks nearest to times.

        Raises:
            ValueError: outside the knots.
        """
        ticks = self.tree.ticks(t)
        if ticks.numel() and not 0 <= int(ticks.amin()) <= int(ticks.amax()) <= self.tree.cells << self.depth:
            raise ValueError(
                f"times from {float(t.min())} to {float(t.max())} were asked of a path that lives on "
                f"[{self.knots[0]}, {self.knots[-1]}]; give BrownianPath the knots of the whole solve"
            )
        return ticks

    def snap(self, ts: Tensor | Sequence[float], spare: int = 2) -> Tensor:
        """A grid of coarse ticks near ts, on which the path costs least; the first and the last time keep their own ticks.

        Arguments:
            ts: a monotone grid.
            spare: ticks are 2^-spare of the smallest interval of ts, or finer; from 0.
        """
        if spare < 0:
            raise ValueError(f"spare counts bits from 0 on, not {spare}")
        ticks = self.ticks(torch.as_tensor(ts, dtype=torch.float64))
        bits = max(0, int(ticks.diff().abs().min()).bit_length() - 1 - spare)
        ticks[1:-1] = ((ticks[1:-1] >> bits) + ((ticks[1:-1] >> bits - 1) & 1 if bits else 0)) << bits
        return self.tree.times(ticks)

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
        times = torch.tensor(ts[start:], dtype=torch.float64)
        steps = times.diff()
        if not bool(((self.tree.times(self.ticks(times)).diff() - steps).abs() <= _ROUNDING * steps.abs()).all()):
            raise ValueError(
                f"ts has steps that ticks of 2^-{self.depth} of an interval of knots change by more than {_ROUNDING:.0%}; give "
                f"BrownianPath a larger depth, knots nearer to each other where ts is finer, or snap(ts)"
            )
        key = self.keys(x)
        found = self._readings(key, times, x, shape, levy)
        for i, (w, h) in enumerate(found, start):
            z = self.fresh(key, torch.full((1,), i, device=x.device), normals, x)[0] if normals else None
            yield Increment(w, h, z)

    def readings(
        self, ts: Sequence[float], x: Tensor, shape: tuple[int, ...] | None, *, levy: bool = False
    ) -> Iterator[Increment]:
        return (Increment(w, h) for w, h in self._readings(self.keys(x), torch.tensor(ts, dtype=torch.float64), x, shape, levy))

    def _readings(
        self, key: Tensor, ts: Tensor, x: Tensor, shape: tuple[int, ...] | None, levy: bool
    ) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """W and H between neighbouring times, in blocks."""
        ticks, steps = self.ticks(ts), len(ts) - 1
        if shape is None:
            yield from [(None, None)] * steps
            return
        block = min(64, max(4, _BLOCK // (8 * max(1, len(x) * math.prod(shape)))))
        for i in range(0, steps, block):
            yield from zip(*self._block(key, ticks[i : i + block + 1], x, shape, levy), strict=True)

    def reader(self, x: Tensor, shape: tuple[int, ...] | None, *, levy: bool = False) -> Reader:
        if shape is None:
            return lambda t0, t1: Increment()
        key, size = self.keys(x), math.prod(shape)

        def read(t0: Tensor, t1: Tensor) -> Increment:
            ticks = self.ticks(torch.stack([t0, t1]))
            nodes, weights = _terms(self.tree, torch.stack(torch.aminmax(ticks, dim=0)), levy)
            out = x.new_zeros(1 + levy, len(x), size, dtype=_working(x))
            for part, weight in _pieces(nodes, weights.to(out.dtype), 1, nodes.numel() * size):
                place = part.reshape(-1).nonzero().squeeze(1)
                drawn = _random.normal_pairs(key[place % len(x)], part.reshape(-1)[place], size, outer=False)
                found = out.new_zeros(part.numel(), 2, size).index_copy_(0, place, drawn.to(out.dtype))
                for w, z in zip(weight, found.reshape(len(part), len(x), 2, size).unbind(0), strict=True):
                    _add(out, w, z.unbind(1))
            out[0].mul_(torch.where(ticks[0] > ticks[1], -1, 1).unsqueeze(-1))
            return Increment(*out.to(x.dtype).reshape(1 + levy, len(x), *shape))

        return read

    def _block(
        self, key: Tensor, ticks: Tensor, x: Tensor, shape: tuple[int, ...], levy: bool
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """W and H over the intervals between neighbouring ticks, which all samples share."""
        reverse = bool(ticks[-1] < ticks[0])
        ticks = ticks.flip(0) if reverse else ticks
        nodes, weights = _terms(self.tree, torch.stack([ticks[:-1], ticks[1:]]), levy)
        out = x.new_zeros(1 + levy, len(ticks) - 1, len(x) * math.prod(shape), dtype=_working(x))
        for part, weight in _pieces(nodes, weights.to(out), 2, nodes.unique().numel() * out.shape[2]):
            self._sum(key, part, weight, out)
        if reverse:  # the path read backwards: W -> -W, H -> +H
            out = out.flip(1)
            out[0].neg_()
        w, *h = out.to(x.dtype).reshape(*out.shape[:2], len(x), *shape)
        return w.unbind(0), h[0].unbind(0) if h else [None] * len(w)

    @staticmethod
    def _sum(key: Tensor, nodes: Tensor, weights: Tensor, out: Tensor) -> None:
        """out + terms that all samples share; each node is hashed once."""
        found, place = torch.unique(nodes, return_inverse=True)
        rows = found.to(out.device).repeat_interleave(len(key))
        normals = _random.normal_pairs(key.repeat(len(found)), rows, out.shape[2] // max(1, len(key)))
        normals, found = normals.reshape(2, len(found), -1).to(out.dtype), found.tolist()
        for where, weight in zip(place, weights, strict=True):
            if out.shape[2] < _LARGE:
                _add(out, weight, normals[:, where.to(out.device)])
                continue
            node, count = torch.unique_consecutive(where, return_counts=True)
            start = 0
            for j, n in zip(node.tolist(), count.tolist(), strict=True):  # no copy of what steps in a row share
                run = slice(start, start := start + n)
                if found[j]:
                    _add(out[:, run], weight[:, :, run], normals[:, j, None])


def _pieces(nodes: Tensor, weights: Tensor, fewest: int, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All terms at once, or where their normals would fill the memory `fewest` at a time."""
    if numbers < _HELD:
        yield nodes, weights
        return
    for part, weight in zip(nodes.split(fewest), weights.split(fewest), strict=True):
        if bool(part.any()):
            yield part, weight


def _working(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype.itemsize >= 4 else torch.float32


def _add(out: Tensor, weight: Tensor, normals: Iterable[Tensor]) -> None:
    """out + a term: `(outputs, n, size)`, weights `(2, outputs, n, 1)`, the two normals `(n, size)`."""
    for w, z in zip(weight, normals, strict=True):
        out.addcmul_(w, z)


def _terms(tree: Dyadic, ticks: Tensor, levy: bool) -> tuple[Tensor, Tensor]:
    """W, and H, over n intervals as a sum of terms, each with at most one node an interval.

    Arguments:
        ticks: both ends of the intervals, `(2, n)`, increasing.

    Returns:
        the counters of the nodes, `(terms, n)`, 0 where an interval has none; and the weights of a node's two normals in the
        outputs W and H, `(terms, 2, outputs, n, 1)`, float64.
    """
    depth, times = tree.depth, tree.times(ticks)
    # Below the lowest bit that is set anywhere no node has a part.
    lowest = ticks & -ticks
    levels = depth + 1 - int(lowest.masked_fill_(lowest == 0, 1 << depth).amin()).bit_length()
    # Two nodes a level, on the branch of an interval's start and of its end, then the roots of the cells that it meets.
    last = (ticks[1] - 1).clamp_(min=0) >> depth
    first = torch.minimum(ticks[0] >> depth, last)
    cells = 1 if tree.cells == 1 else int((last - first).amax()) + 1
    cell = first + torch.arange(cells, device=ticks.device).unsqueeze(-1)
    nodes, parts = torch.minimum(cell, last) << depth, _root(tree, ticks, times, torch.minimum(cell, last), levy)
    if cells > 1:
        parts = parts * (cell <= last)
    h = times[1] - times[0]
    if levy:
        parts[1, :, 0] += h * parts[0, :, 0]
    parts = parts[:, :, 1] - parts[:, :, 0]
    if levels > 0:
        node, branch = _branch(tree, ticks, levels, levy)
        if levy:
            branch[1, :, 0] += h * branch[0, :, 0]
        # A node on both branches counts once, with the difference of its weights, exact where small.
        shared = branch[:, :, 0] * (node[0] == node[1])
        both = torch.stack([shared - branch[:, :, 0], branch[:, :, 1] - shared], dim=3).flatten(2, 3)
        nodes = torch.cat([node.transpose(0, 1).flatten(0, 1), nodes])
        parts = torch.cat([both, parts], dim=2)
    nodes = torch.where((parts != 0).any(dim=1).any(dim=0), nodes + _NODES, 0)
    if levy:
        parts[1] = parts[1] / torch.where(h == 0, 1.0, h) - 0.5 * parts[0]
    return nodes, parts.permute(2, 1, 0, 3).unsqueeze(-1)


def _root(tree: Dyadic, ticks: Tensor, times: Tensor, cell: Tensor, levy: bool) -> Tensor:
    """W, and its integral, at both ends of intervals as weights of the W and H of cells: `(outputs, 2, ends, cells, n)`."""
    knots = tree.knots_on(ticks.device)
    ends = knots[cell + 1]
    length = ends - knots[cell]
    u = (ticks.unsqueeze(1) - (cell << tree.depth)).clamp_(0, 1 << tree.depth).to(torch.float64) * 2.0**-tree.depth
    w = length.sqrt()
    h = w * (1 / math.sqrt(12))
    value = torch.stack([w * u, 6 * h * u * (1 - u)])
    if not levy:
        return value.unsqueeze(0)
    after = (times.unsqueeze(1) - ends).clamp_(min=0)
    integral = torch.stack([w * (0.5 * length * u * u + after), h * length * u * u * (3 - 2 * u)])
    return torch.stack([value, integral])


def _branch(tree: Dyadic, ticks: Tensor, levels: int, levy: bool) -> tuple[Tensor, Tensor]:
    """The nodes above ticks `(ends, n)`, `(ends, levels, n)`, and W, and its integral, there as weights of their normals.

    The weights have the shape `(outputs, 2, ends, levels, n)`.
    """
    depth, knots, ticks = tree.depth, tree.knots_on(ticks.device), ticks.unsqueeze(1)
    first, below, inside, scale, inverse = _levels(depth, levels, ticks.device)
    cell, tick = ticks >> depth, ticks & ((1 << depth) - 1)
    length = scale * (knots.diff()[cell.clamp(max=tree.cells - 1)] if tree.cells > 1 else knots[1] - knots[0])
    v = (tick & inside).to(torch.float64) * inverse
    left = v < 1
    v = torch.where(left, v, v - 1)
    sign, mirrored, q = 2.0 * left - 1.0, torch.where(left, v, 1 - v), v * (1 - v)
    z = 0.25 * length.sqrt()
    n = z * (4 / math.sqrt(12))
    value = torch.stack([z * (mirrored - 3 * q), 3 * n * sign * q])
    node = (cell << depth) + first + (tick >> below)
    if not levy:
        return node, value.unsqueeze(0)
    cubic = v * v * (1.5 - v)
    integral = torch.stack([-z * q * sign * mirrored, n * torch.where(left, cubic, 0.5 - cubic)])
    return node, torch.stack([value, 0.5 * length * integral])


@lru_cache(maxsize=64)
def _levels(depth: int, levels: int, device: torch.device) -> tuple[Tensor, ...]:
    """By level, `(levels, 1)`: the first node, the bits below it, their mask, a node's part of its cell, and two a tick."""
    level = torch.arange(levels, device=device).unsqueeze(-1)
    below = depth - level
    ticks = (1 << below).to(torch.float64)
    return 1 << level, below, (1 << below) - 1, ticks * 2.0**-depth, 2.0 / ticks
