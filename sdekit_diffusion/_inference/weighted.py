"""Samples with weights: what a posterior is returned as."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit import fresh_seed, uniform01
from sdekit_diffusion._common.counters import RESAMPLING


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """Samples whose weights make them those of the exact law, from one or more clouds.

    For every function h, sum_i w_i h(x_i) / sum_i w_i tends to its mean under the posterior, and
    the mean of the w_i to p(y). With several observations each attribute has one entry per
    observation in front.

    Attributes:
        x: `(n, *shape)`.
        log_weights: log w_i, float64, `(n,)`; the mean of the w_i estimates p(y).
        clouds: how many independent parts the n samples consist of, one after the other.
        evaluations: of the model, per sample, int64.
        probe_variance: the mean variance of log w_i due to random probes; 0 without.
        seed: of all random numbers.
        ancestors: for each sample, the number of the particle at the start from which it descends,
            int64; None where samples are independent.

    Example:
        >>> samples = sd.WeightedSamples(torch.zeros(4, 2), torch.zeros(4), clouds=2)
        >>> float(samples.ess), float(samples.log_evidence), samples.resampled(3, seed=0).shape
        (4.0, 0.0, torch.Size([3, 2]))
    """

    x: Tensor
    log_weights: Tensor
    clouds: int = 1
    evaluations: Tensor | None = None
    probe_variance: float = 0.0
    seed: int | None = None
    ancestors: Tensor | None = None

    def __repr__(self) -> str:
        n = self.log_weights.shape[-1]
        of = f"{math.prod(self.rows)} observations, each " if self.rows else ""
        return (
            f"WeightedSamples({of}{n} samples in {self.clouds} clouds, effective "
            f"{float(self.ess.mean()):.4g}, log p(y) = {float(self.log_evidence.mean()):.5g} +- "
            f"{float(self.log_evidence_stderr.mean()):.2g})"
        )

    @property
    def rows(self) -> tuple[int, ...]:
        """The number of observations in a tuple, empty where there is one."""
        return tuple(self.log_weights.shape[:-1])

    @property
    def weights(self) -> Tensor:
        """w_i / sum_j w_j."""
        return torch.softmax(self.log_weights, dim=-1)

    @property
    def ess(self) -> Tensor:
        """The effective sample size (sum w)^2 / sum w^2: how many independent samples of the exact
        law have about the same error. Samples of one cloud share ancestors, so it is an upper
        bound.
        """
        return 1 / self.weights.square().sum(dim=-1)

    @property
    def families(self) -> Tensor:
        """The effective number of families, 1 / sum_f W_f^2, W_f being the weight of all samples
        that descend from one particle at the start; `ess` where samples are independent.
        """
        if self.ancestors is None:
            return self.ess
        ancestors, order = self.ancestors.sort(dim=-1)
        family = (ancestors.diff(dim=-1) != 0).cumsum(dim=-1)
        family = torch.cat([torch.zeros_like(ancestors[..., :1]), family], dim=-1)
        shares = torch.zeros_like(self.weights)
        shares = shares.scatter_add(-1, family, self.weights.gather(-1, order))
        return 1 / shares.square().sum(dim=-1)

    @property
    def log_evidence(self) -> Tensor:
        """log p(y), the logarithm of the mean weight, in nats."""
        return torch.logsumexp(self.log_weights, dim=-1) - math.log(self.log_weights.shape[-1])

    @property
    def log_evidence_by_cloud(self) -> Tensor:
        """log p(y) of each cloud alone, `(clouds,)`."""
        parts = self.log_weights.unflatten(-1, (self.clouds, -1))
        return torch.logsumexp(parts, dim=-1) - math.log(parts.shape[-1])

    @property
    def log_evidence_stderr(self) -> Tensor:
        """The standard error of log p(y), from the spread of the clouds, or of the weights where
        each sample is a cloud; of one cloud from the weights of its families, see `families`.

        It is that of the mean weight over the mean weight (the delta method), without the error of
        the steps. NaN for one sample.

        References:
            Lee and Whiteley 2018, "Variance estimation in the particle filter", without their
            correction for multinomial resampling.
        """
        parts = self.log_evidence_by_cloud
        if self.clouds == 1:
            n = self.log_weights.shape[-1]
            return ((n / self.families - 1) / (n - 1)).clamp_min(0.0).sqrt()
        relative = torch.exp(parts - parts.amax(dim=-1, keepdim=True))
        return relative.std(dim=-1) / relative.mean(dim=-1) / math.sqrt(self.clouds)

    def resampled(self, n: int, *, seed: int | None = None) -> Tensor:
        """n samples of equal weight, `(n, *shape)`, by systematic resampling; a sample of a large
        weight occurs several times.
        """
        seed = fresh_seed() if seed is None else seed
        weights = self.weights.reshape(-1, self.log_weights.shape[-1])
        index = torch.arange(len(weights), device=weights.device)
        u = uniform01(seed, index, (), counter=RESAMPLING - 1)
        chosen = systematic(weights, u, n)
        flat = self.x.reshape(len(weights), weights.shape[1], *self.x.shape[1 + len(self.rows) :])
        picked = flat[index[:, None], chosen]
        return picked.reshape(*self.rows, n, *flat.shape[2:])

    def mean(self) -> Tensor:
        """The mean of x, weighted."""
        return self._expected(self.x)

    def std(self) -> Tensor:
        """The standard deviation of each coordinate of x, weighted."""
        at = len(self.rows)
        mean = self.mean().unsqueeze(at)
        return self._expected((self.x - mean).square()).sqrt()

    def _expected(self, values: Tensor) -> Tensor:
        at = len(self.rows)
        shape = (*self.weights.shape, *[1] * (values.ndim - at - 1))
        return (values * self.weights.to(values).reshape(shape)).sum(dim=at)


def systematic(weights: Tensor, u: Tensor, n: int) -> Tensor:
    """n indices for each row of weights `(rows, K)`, index k n w_k times, rounded up or down:
    those of the points (u + j) / n, one u from [0, 1) a row.

    References:
        Kitagawa 1996, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space
        models".
    """
    edges = weights.to(torch.float64).cumsum(dim=1)
    edges = edges / edges[:, -1:]
    points = (u.to(torch.float64)[:, None] + torch.arange(n, device=weights.device)) / n
    return torch.searchsorted(edges, points, right=True).clamp_max(weights.shape[1] - 1)
