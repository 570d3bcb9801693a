"""Mixtures of one Gaussian around each of many points, such as images, with their exact score under
every diffusion.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sdekit.elementary import Time, broadcast
from sdekit_diffusion._arguments.inputs import require_tensor
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.mixture import (
    ROUNDING,
    AbstractMixture,
    GaussianMixture,
    Observed,
    components_kept,
)
from sdekit_diffusion._models.model import noise_scale, signal_scale, times_of
from sdekit_diffusion._models.observation import AbstractObservation
from sdekit_diffusion._models.principal import principal_std_of

_BLOCK = 1 << 23  # numbers of one block: 84 points at a time for 50,000 centres
_NEAREST = 16  # centres whose distance is a sum of squared differences


class EmpiricalMixture(AbstractMixture):
    """p_0 = sum_k w_k N(c_k, s^2 I), hence p_t = sum_k w_k N(alpha c_k, v I) with
    v = alpha^2 s^2 + sigma^2.

    For s = 0 this is the law that a score network of unlimited capacity learns from n images. It
    equals a `GaussianMixture`, but is made for many centres in many dimensions: points are
    processed in blocks of 2^23 numbers. It has no diffusion of its own: pass `sde=`.

    Squared distances are |x|^2 - 2 alpha x . c + alpha^2 |c|^2 by a matrix product. In float32 its
    error is up to 1e-6 |x| |c|, and that of the logarithm of a weight half of this over v. Where
    the mean of the centres is farther from 0 than the centres from their mean, x and c are
    differences to the mean, and the mixture holds a second copy of the centres. The distances to
    the 16 centres that are nearest by the product, the only ones that matter where v is small, are
    computed from differences in float64.

    Arguments:
        centres: c_k, `(n, *event)`, in the dtype of the points; for points of another dtype each
            call makes a copy of the centres.
        std: s; 0 for the points themselves, which have a score only where sigma > 0.
        weights: w_k, positive, with sum 1, `(n,)`; by default 1/n.

    Raises:
        TypeError: for centres that are not a tensor.
        ValueError: for no centres, centres that are not floating or not finite, a negative std, or
            weights of another shape, that are not positive or do not have the sum 1.

    Example:
        >>> model = sd.EmpiricalMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        >>> x = sd.sample(model, 4, sde="vp", seed=0)
        >>> x.abs().round().tolist()
        [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]

    References:
        Song and Ermon 2020, arXiv 2006.09011, section 3.1 and figure 2.
    """

    def __init__(
        self, centres: Tensor, std: float = 0.0, weights: Tensor | Sequence[float] | None = None
    ) -> None:
        require_tensor("centres", centres, "(n, *event)")
        if centres.ndim < 1 or not centres.numel() or not centres.is_floating_point():
            raise ValueError(
                f"centres must be floating, of shape (n, *event), not {centres.dtype} of "
                f"{tuple(centres.shape)}"
            )
        self.shape = tuple(centres.shape[1:])
        self.std = float(std)
        self._centres = centres.reshape(len(centres), -1)
        n = len(centres)
        equal = torch.full((n,), 1 / n, dtype=torch.float64)
        self.weights = equal if weights is None else _checked_weights(weights, n)
        self.weights = self.weights.to(centres.device)
        mean, variance = self._moments()
        if not math.isfinite(variance) or not 0 <= self.std < math.inf:
            raise ValueError(f"centres must be finite and std a number from 0 on; std is {std}")
        self.data_mean = mean.to(self._centres).reshape(self.shape)
        # Far from 0 a product of two points has few digits of the distance between them.
        far = float(mean.norm()) > math.sqrt(len(mean) * variance)
        origin = self.data_mean.reshape(-1)
        self._origin = origin if far else None
        self._centred = self._centres - origin if far else self._centres
        parts = [
            part.to(torch.float64).square().sum(dim=1)
            for part in self._centred.split(self._block_size(1))
        ]
        self._squares = torch.cat(parts)
        # For a single point any value is possible.
        self.data_std = math.sqrt(variance + self.std**2) or 1.0
        every = -(-self._centres.numel() // _BLOCK)  # for a block in float64
        shares = self.weights[::every]
        widest = principal_std_of(self._centres[::every], shares / shares.sum())
        self.principal_std = math.hypot(widest, self.std)

    def __repr__(self) -> str:
        return (
            f"EmpiricalMixture({len(self._centres)} centres, shape={self.shape}, std={self.std:g})"
        )

    def place(self) -> tuple[torch.dtype, torch.device]:
        return self._centres.dtype, self._centres.device

    def _moments(self) -> tuple[Tensor, float]:
        """The mean of the centres, `(d,)` in float64, and the mean over the coordinates of their
        variance: those of their differences to the first, of which all may be 0.
        """
        origin = self._centres[0].to(torch.float64)
        blocks = self._centres.split(self._block_size(1))
        weights = self.weights.split(self._block_size(1))
        mean = torch.zeros_like(origin)
        for w, block in zip(weights, blocks, strict=True):
            mean += w @ (block - origin)
        squares = torch.zeros_like(origin)
        for w, block in zip(weights, blocks, strict=True):
            squares += w @ (block - origin - mean).square()
        return origin + mean, float(squares.mean())

    @property
    def centres(self) -> Tensor:
        """c_k, `(n, *event)`."""
        return self._centres.reshape(-1, *self.shape)

    def marginal(self, t: float, sde: AbstractDiffusion | str) -> "EmpiricalMixture":
        """The law p_t under a diffusion, an object or a name."""
        alpha, sigma = self.under(sde).kernel(t)
        std = math.hypot(alpha * self.std, sigma)
        return EmpiricalMixture(alpha * self.centres, std, self.weights)

    def given(self, observation: AbstractObservation) -> AbstractMixture:
        """The exact law given y = A x + N(0, R): for s = 0 the centres with other weights, for
        s > 0 a `GaussianMixture` with one covariance for all components. Centres whose weight is
        below e^-100 of the largest, or 0 in their dtype, are omitted.

        Raises:
            TypeError, ValueError: as `GaussianMixture.given`.

        Example:
            >>> points = sd.EmpiricalMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
            >>> y = sd.LinearObservation(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), 1.0)
            >>> points.given(y).weights[1].round(decimals=3)  # 1 / (1 + e^-2)
            tensor(0.8810, dtype=torch.float64)
        """
        observed = self._observed(observation, one=True)
        logits = self._given_logits(observed)[0]
        dtype = self._centres.dtype if self.std else self.weights.dtype
        kept = components_kept(logits, dtype)
        weights = torch.softmax(logits[kept], dim=0)
        centres = self._centres[kept]
        if not self.std:
            return EmpiricalMixture(centres.reshape(-1, *self.shape), weights=weights)
        factor = observed.factor(self._covariance(observed))
        gain = self.std**2 * torch.cholesky_solve(observed.matrix, factor).T
        residual = observed.y[0] - centres.to(gain) @ observed.matrix.T
        rest = self._covariance(observed) - self.std**2 * gain @ observed.matrix
        variances, axes = torch.linalg.eigh(0.5 * (rest + rest.T))
        exact = variances.where(variances > ROUNDING * self.std**2, 0.0).to(centres)
        points = (centres + (residual @ gain.T).to(centres)).reshape(-1, *self.shape)
        return GaussianMixture.of_parts(weights, points, exact[None], axes.to(centres))

    def _given_logits(self, observed: Observed) -> Tensor:
        factor = observed.factor(self._covariance(observed))
        return self.weights.log() + observed.log_normal(self._centres.to(torch.float64), factor)

    def _covariance(self, observed: Observed) -> Tensor:
        """s^2 I."""
        return self.std**2 * torch.eye(observed.matrix.shape[1]).to(observed.matrix)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p_0(x) in nats: `(batch, *event)` to `(batch,)`.

        Raises:
            ValueError: for s = 0.
        """
        alpha, v = self._kernel_columns(1.0, 0.0, x)
        blocks = self._blocks(alpha, v, self._flat(x))
        parts = [
            torch.logsumexp(logits, dim=1) - 0.5 * smallest / self.std**2
            for smallest, logits in blocks
        ]
        d = self._centres.shape[1]
        constant = d * (math.log(self.std) + 0.5 * math.log(2 * math.pi))
        return (torch.cat(parts) - constant).to(x.dtype)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability of each centre given x from p_0: `(batch, *event)` to `(batch, n)`.

        Raises:
            ValueError: for s = 0.
        """
        return torch.cat(
            [
                torch.softmax(logits, dim=1)
                for _, logits in self._blocks(*self._kernel_columns(1.0, 0.0, x), self._flat(x))
            ]
        )

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        """D(l, u) = m + a s^2 / v (u - a m) with v = a^2 s^2 + b^2, and m = sum_k r_k c_k the mean
        of the centres given u.
        """
        a, v = self._kernel_columns(signal_scale(l), noise_scale(l), u)
        mean = self._mean(a, v, u)
        return torch.addcmul(mean, a * self.std**2 / v, self._flat(u) - a * mean).reshape(u.shape)

    def predict_noise(self, l: Time, u: Tensor) -> Tensor:
        """eps(l, u) = b (u - a m) / v, with m and v as in `predict_data`."""
        b = noise_scale(l)
        a, v = self._kernel_columns(signal_scale(l), b, u)
        return ((self._flat(u) - a * self._mean(a, v, u)) / v).reshape(u.shape) * broadcast(b, u)

    def score(self, t: Time, x: Tensor, sde: AbstractDiffusion | str | None = None) -> Tensor:
        """grad log p_t(x) = (alpha m - x) / v, for s > 0 also where sigma = 0.

        Raises:
            ValueError: without a diffusion, for t outside its range or of another shape, and where
                v = 0.
        """
        require_tensor("x", x)
        kernel = self.under(sde)
        t = kernel.checked(times_of(t, x))
        alpha, v = self._kernel_columns(kernel.alpha(t), kernel.sigma(t), x)
        return ((alpha * self._mean(alpha, v, x) - self._flat(x)) / v).reshape(x.shape)

    def _component_points(self, k: Tensor, z: Tensor) -> Tensor:
        return self._centres[k] + self.std * z

    def _block_size(self, numbers: int) -> int:
        """The number of points per block, where each point needs this many numbers, or those of its
        coordinates if they are more.
        """
        return max(1, _BLOCK // max(numbers, self._centres.shape[1]))

    def _kernel_columns(self, alpha: Time, sigma: Time, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and v of each point, `(batch, 1)`.

        Raises:
            ValueError: where v = 0.
        """
        require_tensor("x", x)
        a, b = (
            torch.as_tensor(c, dtype=torch.float64).to(x.device).reshape(-1, 1)
            for c in (alpha, sigma)
        )
        v = (a * self.std).square() + b.square()
        if not bool((v > 0).all()):
            raise ValueError(
                "centres with std = 0 have neither score nor density where sigma = 0: ask for a "
                "later t, such as 1e-3"
            )
        return a.to(x.dtype).expand(len(x), 1), v.to(x.dtype).expand(len(x), 1)

    def _mean(self, alpha: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """The mean of the centres given x, `(batch, d)`."""
        centres = self._centred.to(x)
        parts = [
            torch.softmax(logits, dim=1) @ centres
            for _, logits in self._blocks(alpha, v, self._flat(x))
        ]
        mean = torch.cat(parts)
        return mean if self._origin is None else mean + self._origin.to(x)

    def _blocks(self, alpha: Tensor, v: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each block of points, the smallest squared distance q to an alpha c_k, `(block,)` in
        float64, and log w_k - (q_k - q) / (2 v) for the distances q_k to all, `(block, n)`.
        """
        centres = self._centred.to(x)
        squares = self._squares.to(x)
        log_weights = self.weights.log().to(x)
        count = min(_NEAREST, len(centres))
        size = self._block_size(max(len(centres), 2 * count * centres.shape[1]))
        for a, variance, points in zip(
            alpha.split(size), v.split(size), x.split(size), strict=True
        ):
            centred = self._from_origin(a, points)
            product = torch.addmm(
                a.square() * squares + centred.square().sum(dim=1, keepdim=True),
                a * centred,
                centres.T,
                alpha=-2,
            )
            nearest = product.detach().topk(count, largest=False).indices
            difference = points.to(torch.float64).unsqueeze(1) - a.to(torch.float64).unsqueeze(
                1
            ) * self._centres[nearest.to(self._centres.device)].to(x.device, torch.float64)
            distances = difference.square().sum(dim=2)
            smallest = distances.amin(dim=1)
            relative = (product - smallest.to(x.dtype).unsqueeze(1)).scatter(
                1, nearest, (distances - smallest.unsqueeze(1)).to(x.dtype)
            )
            yield smallest, relative * (-0.5 / variance) + log_weights

    def _from_origin(self, alpha: Tensor, points: Tensor) -> Tensor:
        """Points minus alpha times the origin of the centred centres, rounded once."""
        if self._origin is None:
            return points
        origin = self._origin.to(points.device, torch.float64)
        return (points.to(torch.float64) - alpha.to(torch.float64) * origin).to(points.dtype)


def _checked_weights(weights: Tensor | Sequence[float], n: int) -> Tensor:
    """The weights in float64, after checks.

    Raises:
        ValueError: unless there are n weights, all positive, with sum 1.
    """
    weights = torch.as_tensor(weights, dtype=torch.float64)
    if weights.shape != (n,):
        raise ValueError(f"weights have shape {tuple(weights.shape)}; give one per centre, ({n},)")
    if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-5:
        raise ValueError(
            f"weights must be positive and sum to 1, not {float(weights.sum()):g}; divide them by "
            "their sum, and leave out centres of weight 0"
        )
    return weights
