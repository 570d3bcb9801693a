"""Samples with weights: what a posterior is returned as."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit import uniform01
from sdekit_diffusion._arguments.inputs import is_whole, seed_given
from sdekit_diffusion._models.counters import RESAMPLING

_MANY_CLOUDS = 8  # whose spread is a standard error; that of fewer is often too small by chance
_SPREAD = 1.0  # nats, between the evidences of clouds
_FAMILIES = 4.0  # of one cloud, below which its standard error is above a half


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """Weighted samples of a posterior, from one or more independent clouds.

    For every function h, sum_i w_i h(x_i) / sum_i w_i converges to its mean under the posterior,
    and the mean of the w_i to p(y). With n_y observations all tensors have a further first
    dimension of this size.

    Attributes:
        x: the samples, `(n, *shape)`.
        log_weights: log w_i, float64, `(n,)`; the mean of the w_i estimates p(y).
        clouds: the number of independent clouds of equal size, of which the n samples consist, one
            after the other.
        evaluations: of the model, per sample, int64, `(n,)`.
        probe_variance: the mean variance of log w_i due to random probes; 0 without probes.
        seed: of all random numbers.
        ancestors: for each sample, the number of the initial particle from which it descends,
            int64, `(n,)`; None where samples are independent.
        first: the number of the first observation; random numbers depend on the seed and on it.

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
    first: int = 0

    def __repr__(self) -> str:
        n = self.log_weights.shape[-1]
        of = f"{math.prod(self.rows)} observations, each " if self.rows else ""
        return (
            f"WeightedSamples({of}{n} samples in {self.clouds} "
            f"cloud{'s' * (self.clouds > 1)}, effective "
            f"{float(self.ess.mean()):.4g}, log p(y) = {float(self.log_evidence.mean()):.5g} +- "
            f"{float(self.log_evidence_stderr.mean()):.2g})"
        )

    @property
    def rows(self) -> tuple[int, ...]:
        """The leading dimensions: `(n_y,)` for several observations, else `()`."""
        return tuple(self.log_weights.shape[:-1])

    @property
    def indices(self) -> range:
        """The numbers of all samples, on which their random numbers depend besides the seed."""
        n = self.log_weights.shape[-1]
        return range(self.first * n, (self.first + math.prod(self.rows)) * n)

    @property
    def weights(self) -> Tensor:
        """The normalised weights w_i / sum_j w_j, `(n,)`."""
        return torch.softmax(self.log_weights, dim=-1)

    @property
    def ess(self) -> Tensor:
        """The effective sample size (sum w)^2 / sum w^2: the number of independent samples of the
        exact law that give about the same error. It is an upper bound for samples of a cloud that
        was resampled, since they share ancestors.
        """
        return 1 / self.weights.square().sum(dim=-1)

    @property
    def families(self) -> Tensor:
        """The effective number of families, 1 / sum_f W_f^2, where W_f is the total normalised
        weight of the samples that descend from initial particle f; `ess` where samples are
        independent.
        """
        return self.ess if self.ancestors is None else _families(self.weights, self.ancestors)

    @property
    def reliable(self) -> Tensor:
        """Whether nothing speaks against the samples and log p(y) of an observation, bool, `()`:
        the effective sample size is n / 16 or more, but at least 10 and at most 100 are asked for,
        and n / 4 where n is below 40; log p(y) of the clouds has a standard deviation of at most 1
        nat; and the samples of a single cloud descend from effectively 4 initial particles or more.
        `sample_posterior` warns where it is False. A mode that no particle has reached remains
        unnoticed.
        """
        few, spread, related = doubts(self)
        return ~(few | spread | related)

    @property
    def log_evidence(self) -> Tensor:
        """The estimate of log p(y) in nats, the logarithm of the mean weight."""
        return torch.logsumexp(self.log_weights, dim=-1) - math.log(self.log_weights.shape[-1])

    @property
    def log_evidence_by_cloud(self) -> Tensor:
        """The estimate of log p(y) from each cloud alone, in nats, `(clouds,)`."""
        parts = self.log_weights.unflatten(-1, (self.clouds, -1))
        return torch.logsumexp(parts, dim=-1) - math.log(parts.shape[-1])

    @property
    def log_evidence_stderr(self) -> Tensor:
        """The standard error of `log_evidence`, in nats: from the spread of the clouds, or of the
        weights where each sample is a cloud; for a single cloud from its `families`, and for two to
        seven the larger of the two.

        It is the standard error of the mean weight divided by the mean weight (the delta method),
        and does not contain the error of the discretisation in time. NaN for one sample.

        References:
            Lee and Whiteley 2018, "Variance estimation in the particle filter", without their
            correction for multinomial resampling.
        """
        if self.clouds == 1:
            return self._stderr_by_families()
        by_spread = self._stderr_by_spread()
        if self.clouds >= _MANY_CLOUDS or self.clouds == self.log_weights.shape[-1]:
            return by_spread
        return torch.maximum(by_spread, self._stderr_by_families())

    def _stderr_by_spread(self) -> Tensor:
        parts = self.log_evidence_by_cloud
        relative = torch.exp(parts - parts.amax(dim=-1, keepdim=True))
        return relative.std(dim=-1) / relative.mean(dim=-1) / math.sqrt(self.clouds)

    def _stderr_by_families(self) -> Tensor:
        """From the families of each cloud."""
        parts = self.log_weights.unflatten(-1, (self.clouds, -1))
        weights = torch.softmax(parts, dim=-1)
        k = parts.shape[-1]
        ancestors = None if self.ancestors is None else self.ancestors.unflatten(-1, (-1, k))
        families = (
            1 / weights.square().sum(dim=-1) if ancestors is None else _families(weights, ancestors)
        )
        variances = ((k / families - 1) / (k - 1)).clamp_min(0.0)
        shares = torch.softmax(self.log_evidence_by_cloud, dim=-1)
        return (shares.square() * variances).sum(dim=-1).sqrt()

    def resampled(self, n: int, *, seed: int | None = None) -> Tensor:
        """n samples of equal weight, `(n, *shape)`, by systematic resampling: samples of large
        weight occur several times. The seed None takes a new one.

        Raises:
            TypeError: for a seed that is not a whole number.
            ValueError: for an n that is not a whole number from 0 on.
        """
        if not is_whole(n, 0):
            raise ValueError(f"n counts samples, from 0 on; not {n!r}")
        seed = seed_given(seed)
        weights = self.weights.reshape(-1, self.log_weights.shape[-1])
        index = torch.arange(len(weights), device=weights.device)
        u = uniform01(seed, index, (), counter=RESAMPLING - 1)
        chosen = systematic(weights, u, n)
        flat = self.x.reshape(len(weights), weights.shape[1], *self.x.shape[1 + len(self.rows) :])
        picked = flat[index[:, None], chosen]
        return picked.reshape(*self.rows, n, *flat.shape[2:])

    def mean(self) -> Tensor:
        """The weighted mean of x, `shape`."""
        return self._expected(self._wide()).to(self.x.dtype)

    def std(self) -> Tensor:
        """The weighted standard deviation of each coordinate of x, `shape`."""
        wide = self._wide()
        mean = self._expected(wide).unsqueeze(len(self.rows))
        return self._expected((wide - mean).square()).sqrt().to(self.x.dtype)

    def _wide(self) -> Tensor:
        """x in float32 or wider: squares and small weights may be out of the range of half."""
        return self.x.to(torch.promote_types(self.x.dtype, torch.float32))

    def _expected(self, values: Tensor) -> Tensor:
        at = len(self.rows)
        shape = (*self.weights.shape, *[1] * (values.ndim - at - 1))
        return (values * self.weights.to(values).reshape(shape)).sum(dim=at)


def _families(weights: Tensor, ancestors: Tensor) -> Tensor:
    """1 / sum_f W_f^2 along the last dimension, W_f the sum of the weights with ancestor f."""
    ancestors, order = ancestors.sort(dim=-1)
    family = (ancestors.diff(dim=-1) != 0).cumsum(dim=-1)
    family = torch.cat([torch.zeros_like(ancestors[..., :1]), family], dim=-1)
    shares = torch.zeros_like(weights).scatter_add(-1, family, weights.gather(-1, order))
    return 1 / shares.square().sum(dim=-1)


def doubts(samples: WeightedSamples) -> tuple[Tensor, Tensor, Tensor]:
    """For each observation, whether few samples are effective, whether the clouds differ in
    log p(y), and whether the samples of a single cloud descend from few initial particles.
    """
    n = samples.log_weights.shape[-1]
    few = ~(samples.ess >= _fewest(n))
    spread = torch.zeros_like(few)
    related = torch.zeros_like(few)
    if 1 < samples.clouds < n:
        spread = ~(samples.log_evidence_by_cloud.std(dim=-1) <= _SPREAD)
    elif samples.clouds == 1:
        related = ~(samples.families >= min(_FAMILIES, 0.25 * n))
    return few, spread, related


def _fewest(n: int) -> float:
    """The effective sample size below which n samples are doubtful: n / 16, where errors are four
    times those of n independent samples, but from 10 to 100; n / 4 for n below 40.
    """
    return min(max(10.0, n / 16), n / 4, 100.0)


def systematic(weights: Tensor, u: Tensor, n: int) -> Tensor:
    """Systematic resampling: n indices `(rows, n)` for weights `(rows, K)`. Index k occurs n w_k
    times, rounded up or down: the indices are those of the quantiles (u + j) / n, with one uniform
    u, `(rows,)`, per row.

    References:
        Kitagawa 1996, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space
        models".
    """
    edges = weights.to(torch.float64).cumsum(dim=1)
    edges = edges / edges[:, -1:]
    points = (u.to(torch.float64)[:, None] + torch.arange(n, device=weights.device)) / n
    return torch.searchsorted(edges, points, right=True).clamp_max(weights.shape[1] - 1)
