"""A Brownian path that can be asked anything, in any order, and remembers nothing.

On an interval of length h, with r the relative position, the mean of W given its increment W_h and its space-time Levy area H
is r W_h + 6 r (1 - r) H. Halving the interval adds two independent normals, Z ~ N(0, h/16) and N ~ N(0, h/12), such that
with v the relative position in a half

    left:   Z (v - 3 v (1 - v))     + N 3 v (1 - v)
    right:  Z (1 - v - 3 v (1 - v)) - N 3 v (1 - v),

and so on in each half (Foster, Lyons, Oberhauser 2020, arXiv 1904.06961; Jelincic, Foster, Kidger 2024, arXiv 2405.06464). So
W is a sum of wavelets over the nodes of a dyadic tree, one a level, and so is its integral, whose terms are cubics: W and H over any
interval are weighted sums of the normals of two branches. The normals are hashes of (seed, sample, node).

Weights are computed in float64 and subtracted where the two branches share a node, so that nothing cancels in float32. The
sum is taken level by level, each term by itself, whatever is asked: an answer has the same bits in every batch and block.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from sdekit import _random
from sdekit._noise import AbstractSeededNoise, Increment

_NODES = 1 << 37  # counters from here on are nodes; steps of a solve count from 0
_BLOCK = 1 << 20  # normals of a block of steps on a grid that is known
_LARGE = 1 << 12  # numbers of a batch from which a copy costs more than a call


@dataclass(frozen=True, eq=False)
class BrownianPath(AbstractSeededNoise):
    """One Brownian path a sample, the same whatever the grid, the order of the queries, the batch and the device.

    The tree is rooted in each interval between neighbouring knots and resolves 2^-depth of it: times are rounded to such
    ticks, and at ticks the law is exact. Knots in geometric progression make a tree that resolves a geometric grid. On a grid of
    coarse ticks (`snap`) an increment costs two or three new nodes, on others about depth - log2(steps).

    Arguments:
        seed: any integer; None takes one from torch's default generator.
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
        knots = torch.as_tensor(self.knots, dtype=torch.float64).tolist()
        if len(knots) < 2 or not all(a < b and math.isfinite(b - a) for a, b in pairwise(knots)):
            raise ValueError(f"knots must be at least two increasing finite times, not {self.knots}")
        if not 1 <= self.depth <= 32 or (len(knots) - 1) << self.depth > _NODES // 2:
            raise ValueError(
                f"depth must be from 1 to 32, and 2^depth times the number of intervals at most 2^36: {self.depth}"
            )
        object.__setattr__(self, "knots", tuple(knots))

    # Times and ticks

    def ticks(self, t: Tensor) -> Tensor:
        """Times as integers: cell * 2^depth + the tick in the cell, nearest to t.

        Raises:
            ValueError: outside the knots.
        """
        knots = torch.tensor(self.knots, dtype=torch.float64, device=t.device)
        cell = torch.searchsorted(knots, t.to(torch.float64), right=True).sub_(1).clamp_(0, len(knots) - 2)
        start = knots[cell]
        tick = ((t - start) / (knots[cell + 1] - start)).mul_(1 << self.depth).round_().to(torch.int64)
        ticks = tick.add_(cell << self.depth)
        if not t.is_cuda and bool((ticks < 0).any() | (ticks > (len(knots) - 1) << self.depth).any()):
            raise ValueError(
                f"times from {float(t.min())} to {float(t.max())} were asked of a path that lives on "
                f"[{self.knots[0]}, {self.knots[-1]}]; give BrownianPath the knots of the whole solve"
            )
        return ticks

    def times(self, ticks: Tensor) -> Tensor:
        """The times of ticks, float64."""
        knots = torch.tensor(self.knots, dtype=torch.float64, device=ticks.device)
        cell = (ticks >> self.depth).clamp_(max=len(knots) - 2)
        return torch.lerp(knots[cell], knots[cell + 1], (ticks - (cell << self.depth)).to(torch.float64) * 2.0**-self.depth)

    def snap(self, ts: Tensor | Sequence[float], spare: int = 2) -> Tensor:
        """A grid of coarse ticks near ts, on which the path costs least; the first and the last time stay.

        Arguments:
            ts: a monotone grid.
            spare: ticks are 2^-spare of the smallest interval of ts, or finer.
        """
        ticks = self.ticks(torch.as_tensor(ts, dtype=torch.float64))
        bits = max(0, int(ticks.diff().abs().min()).bit_length() - 1 - spare)
        ticks[1:-1] = ((ticks[1:-1] >> bits) + ((ticks[1:-1] >> bits - 1) & 1 if bits else 0)) << bits
        return self.times(ticks)

    # Increments

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
        key, steps = self.keys(x), len(ts) - 1
        ticks = self.ticks(torch.tensor(ts, dtype=torch.float64))
        if not bool((ticks.diff() != 0).all()):
            raise ValueError(f"ts has steps below the path's resolution, 2^-{self.depth} of an interval of knots; raise depth")
        size = max(1, len(x)) * max(1, math.prod(shape or x.shape[1:]))
        block = min(64, max(4, _BLOCK // (8 * size)))
        for i in range(start, steps, block):
            j = min(i + block, steps)
            w = h = z = [None] * (j - i)
            if shape is not None:
                w, h = self._block(key, ticks[i : j + 1], x, shape, levy)
            if normals:
                z = self.fresh(key, torch.arange(i, j, device=x.device), normals, x).unbind(0)
            yield from map(Increment, w, h, z)

    def increment(self, t0: Tensor, t1: Tensor, x: Tensor, shape: tuple[int, ...], *, levy: bool = False) -> Increment:
        """The increment of each sample over an interval of its own, times `(batch,)`."""
        key, size, (s, t) = self.keys(x), math.prod(shape), (self.ticks(t0), self.ticks(t1))
        terms = _Terms.over(self, torch.minimum(s, t), torch.maximum(s, t), levy=levy)
        term, row = terms.needed.nonzero(as_tuple=True)
        found = x.new_zeros(2, *terms.nodes.shape, size, dtype=_working(x))
        found[:, term, row] = _random.normal_pairs(key[row], terms.nodes[term, row], size).to(found.dtype)
        out = x.new_zeros(1 + levy, len(x), size, dtype=_working(x))
        for i, weight in enumerate(terms.weights.to(out.dtype)):
            _add(out, weight, found[:, i])
        out[0].mul_(torch.where(s > t, -1, 1).unsqueeze(-1))
        return Increment(*out.to(x.dtype).reshape(1 + levy, len(x), *shape))

    def _block(
        self, key: Tensor, ticks: Tensor, x: Tensor, shape: tuple[int, ...], levy: bool
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """W and H over the intervals between neighbouring ticks, which all samples share."""
        reverse = bool(ticks[-1] < ticks[0])
        ticks = ticks.flip(0) if reverse else ticks
        terms = _Terms.over(self, ticks[:-1], ticks[1:], levy=levy)
        nodes, place = torch.unique(terms.nodes, return_inverse=True)
        size = math.prod(shape)
        rows = nodes.to(x.device).repeat_interleave(len(x))
        found = _random.normal_pairs(key.repeat(len(nodes)), rows, size).reshape(2, len(nodes), -1)
        out = x.new_zeros(1 + levy, len(ticks) - 1, len(x) * size, dtype=_working(x))
        used = terms.needed.any(dim=1).tolist()
        for i, weight in enumerate(terms.weights.to(out)):
            if not used[i]:
                continue
            if len(x) * size < _LARGE:
                _add(out, weight, found[:, place[i].to(x.device)].to(out.dtype))
                continue
            node, count = torch.unique_consecutive(place[i], return_counts=True)
            start = 0
            for j, n in zip(node.tolist(), count.tolist(), strict=True):  # no copy of what steps in a row share
                run = slice(start, start := start + n)
                if nodes[j]:
                    _add(out[:, run], weight[..., run], found[:, j, None].to(out.dtype))
        if reverse:  # the path read backwards: W -> -W, H -> +H
            out = out.flip(1)
            out[0].neg_()
        w, *h = out.to(x.dtype).reshape(*out.shape[:2], len(x), *shape)
        return w.unbind(0), h[0].unbind(0) if h else [None] * len(w)


def _working(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype.itemsize >= 4 else torch.float32


def _add(out: Tensor, weight: Tensor, normals: Tensor) -> None:
    """out + a term: `(outputs, n, size)`, weights `(2, outputs, n)`, normals `(2, n, size)`."""
    for w, z in zip(weight, normals, strict=True):
        out.addcmul_(w.unsqueeze(-1), z)


@dataclass(frozen=True, eq=False)
class _Terms:
    """W, and H, over n intervals [s, t] as a sum of terms, each with at most one node an interval.

    nodes: the counters of the nodes, `(terms, n)`; 0 where an interval has none.
    weights: of a node's two normals in the outputs W and H, `(terms, 2, outputs, n)`, float64.
    """

    nodes: Tensor
    weights: Tensor

    @property
    def needed(self) -> Tensor:
        return self.nodes != 0

    @staticmethod
    def over(path: BrownianPath, s: Tensor, t: Tensor, *, levy: bool) -> "_Terms":
        depth, ends = path.depth, (path.times(s), path.times(t))
        knots = torch.tensor(path.knots, dtype=torch.float64, device=s.device)
        h = ends[1] - ends[0]
        # The roots of the cells that [s, t] meets, then two nodes a level, on the branch of t and on that of s.
        last = (t - 1) >> depth
        cells = max(1, int((last - (s >> depth)).max()) + 1)
        cell = torch.minimum((s >> depth) + torch.arange(cells, device=s.device).unsqueeze(-1), last.clamp(min=0))
        (w_s, i_s), (w_t, i_t) = (_root(path, k, time, cell, knots) for k, time in zip((s, t), ends, strict=True))
        new = cell.diff(dim=0, prepend=cell[:1] - 1) > 0
        nodes, w, i = cell << depth, new * (w_t - w_s), new * (i_t - i_s - h * w_s)
        if levels := depth - _common_zeros(torch.cat([s, t]), depth):
            (node_s, w_s, i_s), (node_t, w_t, i_t) = (_branch(k, depth, levels, knots) for k in (s, t))
            i_s = i_s + h * w_s
            same = node_s == node_t
            nodes = torch.cat([nodes, torch.stack([node_t, node_s], dim=1).flatten(0, 1)])
            w = torch.cat([w, torch.stack([w_t - same * w_s, -(~same * w_s)], dim=2).flatten(1, 2)], dim=1)
            i = torch.cat([i, torch.stack([i_t - same * i_s, -(~same * i_s)], dim=2).flatten(1, 2)], dim=1)
        outputs = [w, i / torch.where(h == 0, 1.0, h) - 0.5 * w] if levy else [w]
        needed = (w != 0).any(dim=0) | (i != 0).any(dim=0)
        return _Terms(torch.where(needed, nodes + _NODES, 0), torch.stack(outputs).permute(2, 1, 0, 3))


def _common_zeros(ticks: Tensor, depth: int) -> int:
    """How many low bits are 0 in all ticks: on levels below, no node has a part in them."""
    lowest = ticks & -ticks
    return min(depth, int(torch.where(lowest == 0, 1 << depth, lowest).min()).bit_length() - 1)


def _root(path: BrownianPath, k: Tensor, time: Tensor, cell: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """W and its integral at a tick as weights of the W and H of a cell, which it need not be in: `(2, cells, n)`."""
    length = knots[cell + 1] - knots[cell]
    u = (k - (cell << path.depth)).clamp(0, 1 << path.depth).to(torch.float64) * 2.0**-path.depth
    w, h = length.sqrt(), (length / 12).sqrt()
    after = (time - knots[cell + 1]).clamp(min=0)
    value = torch.stack([w * u, h * 6 * u * (1 - u)])
    return value, torch.stack([w * (0.5 * length * u * u + after), h * length * u * u * (3 - 2 * u)])


def _branch(k: Tensor, depth: int, levels: int, knots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nodes above tick k, `(levels, n)`, and W and its integral there as weights of their normals, `(2, levels, n)`."""
    level = torch.arange(levels, device=k.device).unsqueeze(-1)
    cell, tick, below = k >> depth, k & ((1 << depth) - 1), depth - level
    last = knots.numel() - 2
    length = knots.diff()[cell.clamp(max=last)] * torch.exp2(-level.to(torch.float64))
    v = (tick & ((1 << below) - 1)).to(torch.float64) * torch.exp2(1.0 - below.to(torch.float64))
    left = v < 1
    v = torch.where(left, v, v - 1)
    q, cubic = 3 * v * (1 - v), v * v * (1.5 - v)
    z, n = length.sqrt() / 4, (length / 12).sqrt()
    value = torch.stack([z * (torch.where(left, v, 1 - v) - q), n * torch.where(left, q, -q)])
    integral = torch.stack([z * v * (1 - v) * torch.where(left, -v, 1 - v), n * torch.where(left, cubic, 0.5 - cubic)])
    return (cell << depth) + (1 << level) + (tick >> below), value, 0.5 * length * integral
