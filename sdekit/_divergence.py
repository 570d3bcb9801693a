"""Traces of Jacobians: exact, or estimated with random probes."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdekit._random import PROBES, normal


class AbstractTrace(ABC):
    """An estimator of tr(dF/dx), given vectors v with E v v^T = I (or the unit vectors): tr = E v^T (dF/dx) v."""

    @abstractmethod
    def vectors(self, x: Tensor, index: Tensor) -> Tensor:
        """The vectors of every sample, `(vectors, batch, *event)`, held fixed along its trajectory.

        Arguments:
            x: the states; index: the samples' indices, `(batch,)`: a sample's probes do not depend on its batch.
        """

    @abstractmethod
    def estimates(self, products: Tensor) -> Tensor:
        """Independent estimates of the trace from v^T J v: `(vectors, batch)` to `(estimates, batch)`."""

    @abstractmethod
    def stderr(self, estimates: Tensor) -> Tensor:
        """The standard error of the mean of estimates: `(estimates, batch)` to `(batch,)`."""


@dataclass(frozen=True)
class Exact(AbstractTrace):
    """The trace itself, one vector-Jacobian product for each dimension."""

    def vectors(self, x: Tensor, index: Tensor) -> Tensor:
        size = x[0].numel()
        unit = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
        return unit.expand(size, *x.shape)

    def estimates(self, products: Tensor) -> Tensor:
        return products.sum(dim=0, keepdim=True)

    def stderr(self, estimates: Tensor) -> Tensor:
        return torch.zeros_like(estimates[0])


@dataclass(frozen=True)
class Hutchinson(AbstractTrace):
    """tr J = E v^T J v from K random probes, each an unbiased estimate.

    With S = (J + J^T) / 2 one estimate has variance 2 (|S|_F^2 - sum S_ii^2) for Rademacher probes and 2 |S|_F^2 for
    Gaussian ones.

    Arguments:
        probes: K. One probe has no standard error.
        kind: "rademacher" or "gaussian".
        seed: what the probes depend on, besides a sample's index.

    References:
        Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines".
    """

    probes: int = 8
    kind: Literal["rademacher", "gaussian"] = "rademacher"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"Hutchinson needs at least one probe, not {self.probes}")
        if self.kind not in ("rademacher", "gaussian"):
            raise ValueError(f"kind must be 'rademacher' or 'gaussian', not {self.kind!r}")

    def vectors(self, x: Tensor, index: Tensor) -> Tensor:
        v = normal(self.seed, index, (self.probes, *x.shape[1:]), counter=PROBES, dtype=x.dtype).transpose(0, 1)
        return v if self.kind == "gaussian" else torch.where(v < 0, -1.0, 1.0).to(x.dtype)

    def estimates(self, products: Tensor) -> Tensor:
        return products

    def stderr(self, estimates: Tensor) -> Tensor:
        if len(estimates) == 1:
            return torch.full_like(estimates[0], math.nan)
        return estimates.std(dim=0) / math.sqrt(len(estimates))


def vector_jacobian_products(y: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """v^T (dy/dx) v for each vector and sample, from one forward pass: `(vectors, batch)`.

    Arguments:
        y: F(x), computed from x with gradients; x: `(batch, *event)`; vectors: `(vectors, batch, *event)`.
    """
    products = []
    for v in vectors:
        (vjp,) = torch.autograd.grad(y, x, v, retain_graph=True, allow_unused=True)
        products.append(torch.zeros(len(x)).to(x) if vjp is None else (vjp * v).reshape(len(x), -1).sum(dim=1))
    return torch.stack(products)
