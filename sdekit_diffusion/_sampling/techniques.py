"""How NCSNv2 chooses noise levels and the step size of Langevin dynamics: techniques 1, 2 and 4 of
Song and Ermon (2020, arXiv 2006.09011).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdekit import geometric, uniform01
from sdekit_diffusion._models.counters import ANCHOR

_BLOCK = 1 << 22  # numbers of one block of points


def max_pairwise_distance(data: Tensor, *, sample: int | None = None, seed: int = 0) -> float:
    """The largest Euclidean distance between two points of the data: technique 1's sigma_1.

    Exact, in float64. Points a are taken in decreasing order of their distance r_a from the mean,
    and pairs with r_a + r_b below the largest distance so far are omitted: nearly all pairs of
    images, none of points on a sphere.

    Arguments:
        data: `(n, *event)`, n at least 2.
        sample: measure only from this number of points, chosen at random, to all others, for sets
            too large for n^2 / 2 distances. The result is then a lower bound, at least half the
            largest distance, and with confidence 1 - delta at most a fraction
            log(1 / delta) / sample of the points have a point farther away than it.
        seed: the seed of this choice.

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
    """The largest distance between a row of a and one of b: a matrix product finds the pair, and
    its difference gives the distance without cancellation.
    """
    squares = torch.addmm(
        a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1), a, b.T, alpha=-2
    )
    i, j = divmod(int(squares.argmax()), len(b))
    return float((a[i] - b[j]).norm())


def level_overlap(dim: int, ratio: float) -> float:
    """Phi(sqrt(2 d) (g - 1) + 3 g) - Phi(sqrt(2 d) (g - 1) - 3 g), the left-hand side of technique
    2's equation.

    It is the share of the points at the level sigma whose norm is within three standard deviations
    of the mean norm at the level g sigma. In d dimensions norms are nearly normal, of mean
    sqrt(d) sigma and standard deviation sigma / sqrt(2).

    Arguments:
        dim: d, the number of coordinates of a point.
        ratio: g > 1, the ratio of neighbouring levels.
    """
    from scipy.special import ndtr

    shift = math.sqrt(2 * dim) * (ratio - 1)
    return float(ndtr(shift + 3 * ratio) - ndtr(shift - 3 * ratio))


def geometric_sigmas(
    dim: int, sigma_max: float, sigma_min: float = 0.01, *, overlap: float = 0.5
) -> Tensor:
    """Noise levels from sigma_max down to sigma_min in a geometric progression whose neighbours
    overlap: technique 2.

    Their number is the integer nearest to 1 + log(sigma_max / sigma_min) / log(g), where the ratio
    g of neighbours solves, with the normal distribution function Phi,

        Phi(sqrt(2 dim) (g - 1) + 3 g) - Phi(sqrt(2 dim) (g - 1) - 3 g) = overlap.

    Arguments:
        dim: the number of coordinates of a point of the data.
        sigma_max, sigma_min: the ends, sigma_max from `max_pairwise_distance`.
        overlap: 0.5 in the text of the paper; 0.567 gives the numbers of levels that it lists.

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
    """For data at one point, the variance over sigma^2 after T moves at the level sigma, from the
    standard deviation g sigma.

    A move is x <- x + h sigma^2 s + sqrt(2 h) sigma z with the score s, and the result is
    (1 - h)^{2 T} (g^2 - v) + v, v = 2 h / (1 - (1 - h)^2).

    Arguments:
        ratio, steps, size: g, T and h = e / sigma_L^2.
    """
    limit = 1 / (1 - 0.5 * size)
    return (1 - size) ** (2 * steps) * (ratio**2 - limit) + limit


def langevin_step_size(sigmas: Tensor, steps: int) -> float:
    """The step size e with which the variance after the moves at a level is nearest to sigma_i^2:
    technique 4.

    For data at one point the moves start from the standard deviation g sigma_i, with g the ratio of
    neighbouring levels, and the variance after them over sigma_i^2 is
    (1 - h)^{2 T} (g^2 - v) + v with h = e / sigma_L^2 and v = 2 h / (1 - (1 - h)^2). It is above 1,
    and has one minimum in h between 0 and 1.

    Arguments:
        sigmas: levels in a geometric progression, decreasing, `(L,)`.
        steps: T, the number of moves per level.

    Returns:
        e in NCSNv2's convention, x + alpha_i s + sqrt(2 alpha_i) z with the score s and
        alpha_i = e sigma_i^2 / sigma_L^2; NCSN's e is twice as large.

    Raises:
        ValueError: for fewer than two levels, levels that are not positive, decreasing and in a
            geometric progression, or steps < 1.

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
    """The root between 0 and `largest`, to rounding."""
    from scipy.optimize import root_scalar

    return float(root_scalar(function, bracket=(0.0, largest), xtol=1e-15).root)
