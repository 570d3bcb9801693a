"""Power-function averages of weights, and combinations of stored ones that approximate another.

The average of exponent gamma at update t is the integral of theta(tau) p(tau) over [0, t], where
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) is its profile and theta(tau) are the weights after
update n for n - 1 < tau <= n. Its relative width is the standard deviation of tau / t under p.

References:
    Karras et al. 2024, arXiv 2312.02696, section 3 and appendix C.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST_WIDTH = 12**-0.5  # of gamma = 0, the mean of all weights


class Profile(NamedTuple):
    """The exponent of an average, and the update at which it is taken."""

    gamma: float
    step: int


def exponent(width: float) -> float:
    """The gamma of a relative width, (gamma + 1)^{1/2} / ((gamma + 2) (gamma + 3)^{1/2}).

    Raises:
        ValueError: for a width that is not positive, or above that of the mean of all weights.
    """
    if not 0 < width <= LARGEST_WIDTH:
        raise ValueError(
            f"the relative width of an average is above 0 and at most {LARGEST_WIDTH:.4f}, the "
            f"mean of all weights; not {width!r}"
        )
    t = width**-2
    # (gamma + 2)^2 (gamma + 3) = t (gamma + 1).
    return max(0.0, float(np.roots([1, 7, 16 - t, 12 - t]).real.max()))


def combination(profiles: Sequence[Profile], target: Profile) -> NDArray[np.float64]:
    """The coefficients, which sum to 1, of the combination of averages whose profile is the nearest
    to that of a target in the mean square.
    """
    n = len(profiles)
    # The normal equations, with a Lagrange multiplier for the sum. Normalised profiles keep the
    # condition number of the matrix small.
    norms = np.sqrt([_inner(profile, profile) for profile in profiles])
    system = np.zeros((n + 1, n + 1))
    for i, first in enumerate(profiles):
        for j, second in enumerate(profiles):
            system[i, j] = _inner(first, second) / (norms[i] * norms[j])
    scale = norms.min()
    system[:n, n] = system[n, :n] = scale / norms
    products = [_inner(profile, target) for profile in profiles] / norms
    solution = np.linalg.lstsq(system, np.append(products, scale), rcond=1e-13)[0]
    return solution[:n] / norms


def misfit(
    profiles: Sequence[Profile], coefficients: NDArray[np.float64], target: Profile
) -> float:
    """The root mean square difference between a combination of profiles and that of a target, over
    the root mean square of the latter.
    """
    gram = np.array([[_inner(first, second) for first in profiles] for second in profiles])
    products = np.array([_inner(profile, target) for profile in profiles])
    size = _inner(target, target)
    square = coefficients @ gram @ coefficients - 2 * coefficients @ products + size
    return float(np.sqrt(max(0.0, square) / size))


def _inner(first: Profile, second: Profile) -> float:
    """The integral of the product of two profiles."""
    a = first.gamma + 1
    b = second.gamma + 1
    end = min(first.step, second.step)
    return a * b / (a + b - 1) * (end / first.step) ** a * (end / second.step) ** b / end
