"""Traces of Jacobians: exact, or estimated with random probes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdekit._arguments.names import did_you_mean
from sdekit._arguments.numbers import require_whole
from sdekit._equations.derivative import require_visible
from sdekit._noise.generator import PROBES, keys, normal_pairs, signs
from sdekit.elementary import sum_of_sample

_PROBE_STRIDE = 1 << 12  # counters between the probes of two points of a trajectory


class AbstractTrace(ABC):
    """How tr J is computed from products v^T J v: with random vectors v with E v v^T = I, as
    tr J = E v^T J v, or with all unit vectors.

    Example:
        >>> isinstance(sdekit.Exact(), sdekit.AbstractTrace)
        True
        >>> sdekit.Exact().probes, sdekit.Hutchinson(probes=4).probes
        (0, 4)
    """

    probes: int  # the number of independent estimates; 0 where there is nothing to estimate

    @abstractmethod
    def vectors(self, x: Tensor, index: Tensor, node: Tensor) -> Iterator[Tensor]:
        """The vectors v, each shaped like x.

        Arguments:
            x: points on trajectories, `(rows, *event)`.
            index: the index of the sample of each point, `(rows,)`, on which the probes depend, so
                that they do not depend on the batch.
            node: the number of each point on its trajectory, `(rows,)`.
        """

    @abstractmethod
    def estimates(self, products: Tensor) -> Tensor:
        """Independent estimates of the trace from v^T J v: `(vectors, rows)` to
        `(estimates, rows)`.
        """

    @abstractmethod
    def stderr(self, estimates: Tensor) -> Tensor:
        """The standard error of the mean of estimates: `(estimates, batch)` to `(batch,)`."""


@dataclass(frozen=True)
class Exact(AbstractTrace):
    """The exact trace, by one vector-Jacobian product per coordinate of a sample.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> logp = sdekit.log_likelihood(
        ...     ode, torch.zeros(1, 2), [0.0, 1.0], lambda x: normal.log_prob(x).sum(1),
        ...     trace=sdekit.Exact(),
        ... )
        >>> round(float(logp.value), 3)  # -log(2 pi) - 2
        -3.838
    """

    probes = 0

    def vectors(self, x: Tensor, index: Tensor, node: Tensor) -> Iterator[Tensor]:
        for unit in torch.eye(math.prod(x.shape[1:]), dtype=x.dtype, device=x.device):
            yield unit.reshape(x.shape[1:]).expand_as(x)

    def estimates(self, products: Tensor) -> Tensor:
        return by_row(products).sum(dim=1).unsqueeze(0)

    def stderr(self, estimates: Tensor) -> Tensor:
        return torch.zeros_like(estimates[0])


@dataclass(frozen=True)
class Hutchinson(AbstractTrace):
    """tr J = E v^T J v from K random probes v, each of which gives an unbiased estimate.

    With S = (J + J^T) / 2 the variance of one estimate is 2 (|S|_F^2 - sum_i S_ii^2) for Rademacher
    probes and 2 |S|_F^2 for Gaussian ones. For an integral along a trajectory,
    sum_n w_n tr J_n over its points, a fixed probe has the variance that belongs to the matrix
    sum_n w_n J_n. Fresh probes at each point have the sum of the variances that belong to the
    matrices w_n J_n, which is smaller by a factor of about the number of points, at no cost: the K
    estimates of the integral remain independent and unbiased.

    Arguments:
        probes: K, the number of probes. One probe has no standard error.
        kind: "rademacher", with entries -1 and 1, or "gaussian".
        seed: the seed of the probes, which also depend on the index of the sample.
        fresh: False keeps the probes of a sample fixed along its trajectory, as is usual when the
            trace is integrated together with the trajectory. Estimates then vary more and may be
            skewed, see `Likelihood.interval`.

    Raises:
        TypeError: for a number of probes or a seed that is not a whole number.
        ValueError: for fewer than 1 or more than 4,096 probes, or an unknown kind.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -torch.sin(x))
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> logp = sdekit.log_likelihood(
        ...     ode, torch.zeros(1, 4), [0.0, 1.0], lambda x: normal.log_prob(x).sum(1),
        ...     trace=sdekit.Hutchinson(probes=8),
        ... )
        >>> logp.value.shape, logp.probes
        (torch.Size([1]), 8)

    References:
        Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix for Laplacian
        smoothing splines".
    """

    probes: int = 8
    kind: Literal["rademacher", "gaussian"] = "rademacher"
    seed: int = 0
    fresh: bool = True

    def __post_init__(self) -> None:
        require_whole("probes", self.probes)
        require_whole("seed", self.seed)
        if not 1 <= self.probes <= _PROBE_STRIDE:
            raise ValueError(
                f"Hutchinson needs from one probe to {_PROBE_STRIDE:,}, not {self.probes}"
            )
        if self.kind not in ("rademacher", "gaussian"):
            raise ValueError(
                "kind must be 'rademacher' or 'gaussian', not "
                f"{self.kind!r}{did_you_mean(self.kind, ('rademacher', 'gaussian'))}"
            )

    def vectors(self, x: Tensor, index: Tensor, node: Tensor) -> Iterator[Tensor]:
        key = keys(self.seed, index)
        size = math.prod(x.shape[1:])
        draw = PROBES - (node if self.fresh else torch.zeros_like(node)) * _PROBE_STRIDE
        for k in range(self.probes):
            if self.kind == "rademacher":
                v = signs(key, draw - k, size)
            else:
                v = normal_pairs(key, draw - k, (size + 1) // 2, outer=False).flatten(1)[:, :size]
            yield v.to(x.dtype).reshape(x.shape)

    def estimates(self, products: Tensor) -> Tensor:
        return products

    def stderr(self, estimates: Tensor) -> Tensor:
        if len(estimates) == 1:
            return torch.full_like(estimates[0], math.nan)
        values = by_row(estimates)
        n = len(estimates)
        return (
            (values - values.mean(dim=1, keepdim=True)).square().sum(dim=1) / (n * (n - 1))
        ).sqrt()


def skewness(estimates: Tensor) -> Tensor:
    """n^2 / ((n - 1) (n - 2)) mean (e - mean e)^3 / std^3 of estimates e, `(n, batch)` to
    `(batch,)`; 0 where n < 4.
    """
    n = len(estimates)
    if n < 4:
        return torch.zeros_like(estimates[0])
    values = by_row(estimates)
    values = values - values.mean(dim=1, keepdim=True)
    std = (values.square().sum(dim=1) / (n - 1)).sqrt()
    third = values.pow(3).sum(dim=1) * n / ((n - 1) * (n - 2))
    return torch.where(std > 0, third / std.pow(3), 0.0)


def by_row(values: Tensor) -> Tensor:
    """`(n, rows)` as a contiguous `(rows, n)`: the rounding of sums over n then does not depend on
    the position of a row in its batch.
    """
    return values.mT.contiguous()


def quadratic_forms(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    vectors: Iterator[Tensor],
    *,
    create_graph: bool = False,
) -> Tensor:
    """v^T (dy/dx) v for each vector and row, with y = function(x), from one forward pass:
    `(vectors, rows)`, float64.

    Arguments:
        function: shaped like x.
        x: the points, `(rows, *event)`, which require a gradient.
        vectors: the v, each shaped like x.
        create_graph: whether the result itself can be differentiated.

    Raises:
        RuntimeError: for a function that depends on x in a way that torch cannot differentiate.
    """
    y = function(x)
    depends_on_x = y.requires_grad
    products = []
    for v in vectors:
        vjp = None
        if depends_on_x:
            (vjp,) = torch.autograd.grad(
                y, x, v, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
        depends_on_x = vjp is not None
        products.append(sum_of_sample(torch.zeros_like(v) if vjp is None else vjp * v))
    if not depends_on_x:
        require_visible("the drift", "its divergence", function, x)
    none = y.new_zeros(0, len(x), dtype=torch.float64)  # of states without coordinates
    return torch.stack(products) if products else none
