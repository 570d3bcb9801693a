"""W and its space-time Levy area H over an interval as weighted sums of normals.

On an interval of length h, with r the relative position, the mean of W given its increment W_h and
H is r W_h + 6 r (1 - r) H. Halving the interval adds two independent normals, Z ~ N(0, h/16) and
N ~ N(0, h/12), such that with v the relative position in a half

    left:   Z (v - 3 v (1 - v))     + N 3 v (1 - v)
    right:  Z (1 - v - 3 v (1 - v)) - N 3 v (1 - v),

and so on in each half (Foster, Lyons, Oberhauser 2020, arXiv 1904.06961; Jelincic, Foster, Kidger
2024, arXiv 2405.06464). So W(t) is a sum of wavelets over the nodes of one branch of a dyadic tree,
one node per level. So is its integral, with cubics instead of wavelets. W and H over any interval
are therefore weighted sums of the normals of the two branches that end at its ends.

Weights are computed in float64. If the two branches have a node in common, its weights are
subtracted in float64, so that nothing cancels in float32.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from sdekit._grid import Dyadic

_NODES = 1 << 37  # counters from here on are nodes; steps of a solve count from 0


def terms(tree: Dyadic, ticks: Tensor, levy: bool) -> tuple[Tensor, Tensor]:
    """W, and H, between two ticks `(2, n)`, in any order, as sums over the nodes of both branches
    and over the roots.

    Returns:
        the counters of the nodes, `(terms, 2, n)`, 0 where a branch has no node; and the weights of
        a node's two normals in the outputs W and H, `(terms, outputs, 2, 2, n, 1)`, float64.
    """
    times = tree.times(ticks) if levy else None
    parts = zip(_branches(tree, ticks, levy=levy), _roots(tree, ticks, times), strict=True)
    node, value, *area = [torch.cat(part) for part in parts]
    sign = (ticks - ticks.flip(0)).sign_().to(torch.float64)
    ends = (value * sign).unsqueeze(1)
    if times is not None:
        h = (times[1] - times[0]).abs_()
        area = area[0] * (sign / torch.where(h == 0, 1.0, h)) - value * (0.5 * sign.abs())
        ends = torch.cat([ends, area.unsqueeze(1)], dim=1)
    # A node on both branches is used once, at the upper end, with the difference of its weights,
    # which is accurate even if it is small.
    shared = (node[:, 0] == node[:, 1]).unsqueeze(1)
    upper = sign > 0
    combined = (ends[..., 0, :] + ends[..., 1, :]).unsqueeze(-2) * upper
    nodes = torch.where(shared & ~upper, 0, node)
    return nodes, torch.where(shared[:, None, None], combined, ends).unsqueeze(-1)


def _branches(tree: Dyadic, ticks: Tensor, *, levy: bool) -> Iterator[Tensor]:
    """The nodes above ticks, `(levels, 2, n)`; then W, and its integral, at the ticks as weights of
    the nodes' normals, `(levels, 2, 2, n)`.
    """
    depth = tree.depth
    knots = tree.knots_on(ticks.device)
    cell = ticks >> tree.depth
    tick = ticks & ((1 << depth) - 1) | (1 << depth)
    # Nodes below the lowest bit that is set in any tick do not contribute.
    shift, mask, inverse, root = _levels(
        depth, depth + 1 - int((tick & -tick).amin()).bit_length(), ticks.device
    )
    if tree.cells > 1:
        root = root * knots.diff()[cell.clamp(max=tree.cells - 1)].sqrt()
    else:
        root = root * math.sqrt(tree.knots[1] - tree.knots[0])
    # Along a node s falls from 1 to -1, and m rises from 0 to 1 and falls again.
    s = 1 - (tick & mask) * inverse
    a = s.abs()
    m = 1 - a
    z = m * root
    yield torch.where(m == 0, 0, (cell << depth) + _NODES + (tick >> shift))
    yield torch.stack([z * torch.rsub(a, 1, alpha=3), z * s * math.sqrt(12)], dim=1)
    if levy:
        n = 8 * root * root * m * z
        yield torch.stack([-s * n, (1.5 - m) * n * (4 / math.sqrt(12))], dim=1)


def _roots(tree: Dyadic, ticks: Tensor, times: Tensor | None) -> Iterator[Tensor]:
    """As `_branches` for the roots of the cells between two ticks, whose normals give the W and H
    of a cell: `(cells, 2, n)`.
    """
    depth = tree.depth
    knots = tree.knots_on(ticks.device)
    cell = torch.zeros_like(ticks).unsqueeze(0)
    if tree.cells > 1:
        low, high = torch.aminmax(ticks, dim=0)
        last = (high - 1).clamp_(min=0) >> depth
        first = torch.minimum(low >> depth, last)
        cell = (
            first + torch.arange(int((last - first).amax()) + 1, device=ticks.device).unsqueeze(-1)
        ).unsqueeze(1)
        cell = cell.expand(-1, 2, -1)
        yield torch.where(cell <= last, (cell << depth) + _NODES, 0)
    else:
        yield cell + _NODES
    u = (ticks - (cell << depth)).clamp_(0, 1 << depth).to(torch.float64) * 2.0**-depth
    cell = cell.clamp(max=tree.cells - 1)
    length = knots.diff()[cell]
    root = length.sqrt()
    rest = 1 - u
    w = root * u
    yield torch.stack([w, w * rest * math.sqrt(3)], dim=1)
    if times is not None:
        w = w * length * u
        beyond = (times - knots[cell + 1]).clamp_(min=0)
        yield torch.stack(
            [0.5 * w + root * beyond, w * (1 + 2 * rest) * (1 / math.sqrt(12))], dim=1
        )


@lru_cache(maxsize=64)
def _levels(depth: int, levels: int, device: torch.device) -> tuple[Tensor, ...]:
    """Per level, `(levels, 1, 1)`: the number of bits below a node, their mask, 2 divided by the
    ticks of a node, and the square root of a 16th of its length.
    """
    shift = depth - torch.arange(levels, device=device).reshape(-1, 1, 1)
    ticks = (1 << shift).to(torch.float64)
    return shift, (1 << shift) - 1, 2.0 / ticks, 0.25 * (ticks * 2.0**-depth).sqrt()
