"""How NCSNv2 chooses noise levels and Langevin's step: techniques 1, 2 and 4 of Song and Ermon
(2020, arXiv 2006.09011).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdekit import geometric, uniform01
from sdekit_diffusion._common.counters import ANCHOR

_BLOCK = 1 << 22  # numbers of one block of points


def max_pairwise_distance(data: Tensor, *, sample: int | None = None, seed: int = 0) -> float:
    """The largest Euclidean distance between two points of the data: technique 1's sigma_1.

    Exact, in blocks of points in float64. Points are sorted by their distance r from the mean, the
    farthest first, and pairs with r_a + r_b below the largest distance so far are omitted: nearly
    all for images, none for points on a sphere.

    Arguments:
        data: `(n, *event)`, n from 2 on.
        sample: measure from this many points, chosen at random, to all others, for sets too large
            for n^2 / 2 distances. The result is then a lower bound, never below half the true
            distance, and with confidence 1 - delta the fraction of the points that have another
            farther away is at most log(1 / delta) / sample.
        seed: of this choice.

    Raises:
        ValueError: for fewer than two points, points that are not finite, or a `sample` that is not
            between 1 and n.

    Example:
        >>> sd.max_pairwise_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]))
        5.0

    References:
        Song and Ermon 2020, arXiv 2006.09011, technique 1.
    """
    n = len(data) if data.ndim else 0
    if n < 2 or not data.numel():
        raise ValueError(
            f"a distance needs data of shape (n, *event) with n from 2 on, not {tuple(data.shape)}"
        )
    if sample is not None and not 1 <= sample <= n:
        raise ValueError(
            f"sample counts points to measure from, 1 to {n} here, not {sample}; leave it out for "
            "all"
        )
    flat = data.reshape(n, -1)
    size = max(1, _BLOCK // data[0].numel())
    rows = torch.arange(n, device=data.device)
    centre = (
        torch.stack([flat[i].to(torch.float64).sum(dim=0) for i in rows.split(size)]).sum(dim=0) / n
    )

    def block(index: Tensor) -> Tensor:
        return flat[index].to(torch.float64) - centre

    radius = torch.cat([block(i).norm(dim=1) for i in rows.split(size)])
    if not bool(radius.isfinite().all()):
        raise ValueError("the data have NaN or infinite values; remove those points")
    order = radius.argsort(descending=True)
    is_anchor = torch.ones_like(rows, dtype=torch.bool)
    if sample is not None:
        is_anchor = uniform01(seed, rows, (), counter=ANCHOR).argsort().argsort() < sample
    largest = 0.0
    anchors = order[is_anchor[order]]
    for i in range(0, len(anchors), size):
        anchor_block = anchors[i : i + size]
        a = block(anchor_block)
        radius_max = float(radius[anchor_block[0]])
        for other_block in order[0 if sample else i :].split(size):
            if radius_max + float(radius[other_block[0]]) <= largest:
                break
            largest = max(largest, _farthest(a, block(other_block)))
    return largest


def _farthest(a: Tensor, b: Tensor) -> float:
    """The largest distance from one of a to one of b: a product finds the pair, its difference
    gives the distance.
    """
    squares = torch.addmm(
        a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1), a, b.T, alpha=-2
    )
    i, j = divmod(int(squares.argmax()), len(b))
    return float((a[i] - b[j]).norm())


def level_overlap(dim: int, ratio: float) -> float:
    """Phi(sqrt(2 d) (g - 1) + 3 g) - Phi(sqrt(2 d) (g - 1) - 3 g), left of technique 2's equation.

    The share of the points of the level sigma whose length lies within three standard deviations of
    the mean length at the level g sigma: in d dimensions lengths are nearly normal, of mean sqrt(d)
    sigma and standard deviation sigma / sqrt(2).

    Arguments:
        dim: d, the number of coordinates of a point.
        ratio: g > 1, that of neighbouring levels.
    """
    from scipy.special import ndtr

    shift = math.sqrt(2 * dim) * (ratio - 1)
    return float(ndtr(shift + 3 * ratio) - ndtr(shift - 3 * ratio))


def geometric_sigmas(
    dim: int, sigma_max: float, sigma_min: float = 0.01, *, overlap: float = 0.5
) -> Tensor:
    """Noise levels from sigma_max down to sigma_min in a geometric progression whose neighbours
    overlap: technique 2.

    Their number is the nearest to 1 + log(sigma_max / sigma_min) / log(g), with g the root of
    `level_overlap(dim, g)`.

    Arguments:
        dim: the number of coordinates of a point of the data.
        sigma_max, sigma_min: the ends, sigma_max from `max_pairwise_distance`.
        overlap: 0.5 in the paper's text; 0.567 gives the numbers of levels that it lists.

    Returns:
        the levels, float64, `(L,)`.

    Raises:
        ValueError: for ends not in order, fewer than one dimension, or an overlap that no ratio
            reaches.

    Example:
        >>> sigmas = sd.geometric_sigmas(dim=3 * 32 * 32, sigma_max=50.0)
        >>> float(sigmas[0]), float(sigmas[-1])
        (50.0, 0.01)

    References:
        Song and Ermon 2020, arXiv 2006.09011, technique 2.
    """
    largest = level_overlap(1, 1.0)
    if dim < 1 or not 0 < sigma_min < sigma_max < math.inf or not 0 < overlap < largest:
        values = (
            f"dim = {dim}, sigma_max = {sigma_max}, sigma_min = {sigma_min} and overlap = {overlap}"
        )
        raise ValueError(
            "levels need dim >= 1, 0 < sigma_min < sigma_max and an overlap between 0 and "
            f"{largest:.3f}; not {values}"
        )
    ratio_max = sigma_max / sigma_min
    if level_overlap(dim, ratio_max) >= overlap:
        return geometric(sigma_max, sigma_min, 1)
    rise = _root(lambda rise: level_overlap(dim, 1 + rise) - overlap, ratio_max - 1)
    return geometric(sigma_max, sigma_min, max(1, round(math.log(ratio_max) / math.log1p(rise))))


def variance_ratio(ratio: float, steps: int, size: float) -> float:
    """s^2 / sigma^2 after steps of x <- x + h sigma^2 s + sqrt(2 h) sigma z, from s = g sigma and
    for data that are one point.

    (1 - h)^{2 T} (g^2 - v) + v, v = 2 h / (1 - (1 - h)^2).

    Arguments:
        ratio, steps, size: g, T and h = e / sigma_L^2.
    """
    limit = 1 / (1 - 0.5 * size)
    return (1 - size) ** (2 * steps) * (ratio**2 - limit) + limit


def langevin_step_size(sigmas: Tensor, steps: int) -> float:
    """The step size e that brings s^2 / sigma^2 nearest to 1 after the steps at a level:
    technique 4.

    The quotient stays above 1; its derivative in h = e / sigma_L^2 has one root between 0 and 1.

    Arguments:
        sigmas: levels in a geometric progression, the smallest last, `(L,)`.
        steps: T, the number of moves per level.

    Returns:
        e in NCSNv2's convention, x + alpha s + sqrt(2 alpha) z with alpha = e
        sigma_i^2 / sigma_L^2; NCSN's is twice that.

    Raises:
        ValueError: for fewer than two levels, levels not in order or not in a geometric
            progression, or no steps.

    Example:
        >>> sigmas = sdekit.geometric(50.0, 0.01, 231)
        >>> 0 < sd.langevin_step_size(sigmas, steps=5) < 0.01**2
        True

    References:
        Song and Ermon 2020, arXiv 2006.09011, technique 4.
    """
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
    if (
        sigmas.ndim != 1
        or len(sigmas) < 2
        or not bool((sigmas.diff() < 0).all())
        or not sigmas[-1] > 0
        or steps < 1
    ):
        raise ValueError(
            "a step size needs decreasing positive levels, two or more, and steps >= 1; not "
            f"{len(sigmas)} levels and {steps}"
        )
    ratio = float(sigmas[0] / sigmas[-1]) ** (1 / (len(sigmas) - 1))
    if not torch.allclose(sigmas[:-1] / sigmas[1:], sigmas.new_tensor(ratio), rtol=1e-4):
        raise ValueError(
            "technique 4 is for a geometric progression; take such levels, or give the size of the "
            "moves"
        )

    def slope(h: float) -> float:
        limit = 1 / (1 - 0.5 * h)
        power = (1 - h) ** (2 * steps - 1)
        return 0.5 * limit**2 * (1 - (1 - h) * power) - 2 * steps * power * (ratio**2 - limit)

    return float(sigmas[-1]) ** 2 * _root(slope, 1.0)


def _root(function: Callable[[float], float], largest: float) -> float:
    """The root between 0 and the largest, to the last digits."""
    from scipy.optimize import root_scalar

    return float(root_scalar(function, bracket=(0.0, largest), xtol=1e-15).root)
