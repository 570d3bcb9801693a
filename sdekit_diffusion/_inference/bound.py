"""The variational bound of a chain of Gaussian steps, in bits per dimension, term by term."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sdekit.calling import warn_caller
from sdekit_diffusion._arguments.inputs import is_whole, require_event, require_points, seed_given
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inference.chain import Chain, ChainNoise, Variance, times_of
from sdekit_diffusion._inference.code_length import AbstractCodeLength
from sdekit_diffusion._inference.decoder import decoder_of
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.in_batches import batches
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.arguments import Model

_MARGIN = 0.1  # of log(sigma / alpha), by which the levels of DDPM and VP differ


@dataclass(frozen=True, eq=False)
class VariationalBound(AbstractCodeLength):
    """-log p(x_0) <= L_0 + L_1 + ... + L_N in bits per dimension, where each term is an expectation
    over q(x_1, ..., x_N | x_0).

    Attributes:
        draws: L_0, ..., L_{N-1} of every point for every draw of the noise, float64,
            `(draws, N, batch)`: L_0 = -log p(x_0 | x_1) of the decoder, and
            L_i = KL(q(x_i | x_{i+1}, x_0) || p(x_i | x_{i+1})).
        prior: L_N = KL(q(x_N | x_0) || N(0, sigma_N^2 I)), exact, `(batch,)`.
        times: the times of x_1, ..., x_N, float64, `(N,)`.

    Example:
        >>> model = sd.GaussianMixture([1.0], [[0.0, 0.0]], [0.04])
        >>> chain = sd.DDPM(sd.linear_betas(50, 1e-3, 0.2))
        >>> bound = sd.variational_bound(model, torch.zeros(3, 2), sde=chain)
        >>> bound.draws.shape, bound.prior.shape
        (torch.Size([1, 50, 3]), torch.Size([3]))
    """

    draws: Tensor
    prior: Tensor
    times: Tensor

    @property
    def terms(self) -> Tensor:
        """L_0, ..., L_N of every point, `(N + 1, batch)`: the means over the draws, and `prior`."""
        return torch.cat([self.draws.mean(dim=0), self.prior[None]])

    @property
    def terms_stderr(self) -> Tensor:
        """The standard errors of `terms`, `(N + 1, batch)`: NaN for a single draw, except that of
        `prior`, which is 0.
        """
        n = len(self.draws)
        sampled = (
            self.draws.std(dim=0) / math.sqrt(n)
            if n > 1
            else torch.full_like(self.draws[0], math.nan)
        )
        return torch.cat([sampled, torch.zeros_like(self.prior)[None]])

    @property
    def value(self) -> Tensor:
        """The bound of every point, `(batch,)`."""
        return self.terms.sum(dim=0)

    @property
    def stderr(self) -> Tensor:
        """The standard error of `value`, `(batch,)`; the draws of different steps are independent.
        NaN for one draw.
        """
        return self.terms_stderr.square().sum(dim=0).sqrt()

    @property
    def term_means(self) -> tuple[Tensor, Tensor]:
        """The means of L_0, ..., L_N over the points, and their standard errors, `(N + 1,)` each:
        NaN for one point.
        """
        n = len(self.prior)
        spread = (
            self.terms.std(dim=1)
            if n > 1
            else torch.full((len(self.times) + 1,), math.nan, dtype=torch.float64)
        )
        return self.terms.mean(dim=1), spread / math.sqrt(n)


def variational_bound(
    model: Model,
    x: Tensor,
    *,
    low: float | None = None,
    high: float | None = None,
    levels: int | None = None,
    variance: Variance = "smaller",
    decoder_std: float | None = None,
    times: Tensor | None = None,
    sde: AbstractDiffusion | str | None = None,
    draws: int = 1,
    seed: int | None = 0,
    first: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> VariationalBound:
    """The variational bound on the code length of x_0, in bits per dimension, under any diffusion.

    The generative model is the chain of steps p(x_s | x_t) = N(a x_t + b D(x_t), v I) that begins
    at N(0, sigma_N^2 I); D is the denoiser. The forward process has q(x_s | x_t, x_0) =
    N(a x_t + b x_0, std^2 I), see `AbstractDiffusion.posterior`. A step then adds, in nats,

        d/2 (std^2/v - 1 - log(std^2/v)) + b^2 |x_0 - D(x_t)|^2 / (2 v),

    with d coordinates per sample. The cost is one evaluation of the model per step, draw and point.

    Integers k in 0, ..., levels - 1 stand for x_0 = low + (high - low)(k + 1/2) / levels, the
    middle of the bin within which `bits_per_dim` dequantises them. The decoder gives k the
    probability of its bin under N(D(x_1), decoder_std^2); the outermost bins extend to infinity. Ho
    et al., whose 256 levels run from -1 to 1, have low = -1 - 1/255 and high = 1 + 1/255. For
    floats the decoder is a density, and the result is a bound of -log2 p(x) / d.

    Arguments:
        model: a `ScoreModel`, a `GaussianMixture`, or a plain score `(x, t)` with sde=.
        x: integers with low, high and levels, or floats without, `(batch, *shape)`.
        low, high, levels: as in `bits_per_dim`.
        variance: v of a reverse step: "smaller", that of q(x_s | x_t, x_0), or "larger", that of
            q(x_t | x_s); for `DDPM` beta_i (1 - abar_{i-1}) / (1 - abar_i) and beta_i.
        decoder_std: the standard deviation of the decoder; unless given, sigma at the first of the
            times, whose square is beta_1 for `DDPM`.
        times: the times of x_1, ..., x_N, `(N,)`, increasing, with sigma > 0; the diffusion's own
            `levels` unless given. For quantised data the first sigma should be half a bin or more,
            see docs/likelihood.md.
        sde: the diffusion; the model's own unless given.
        draws: the number of draws of the noise at each step; two or more give each point a standard
            error.
        seed, first: the noise of point i depends only on (seed, first + i), the draw and the step;
            None takes a new seed.
        batch_size: how many points are evaluated together; all unless given.
        progress: show a bar.

    Warns:
        UserWarning: for times whose sigma / alpha is outside the range of the model's diffusion.

    Raises:
        TypeError: when x is not a real tensor, or seed not a whole number; or for integers without
            low, high and levels.
        ValueError: for values or arguments out of range or not finite, floats with levels, times
            that do not increase, or no times under a diffusion without levels of its own.

    Example:
        >>> model = sd.GaussianMixture([1.0], [[0.0, 0.0]], [0.04])
        >>> chain = sd.DDPM(sd.linear_betas(50, 1e-3, 0.2))
        >>> pixels = torch.tensor([[3, 4], [4, 5]])
        >>> bound = sd.variational_bound(model, pixels, low=-1, high=1, levels=8, sde=chain)
        >>> bound.value.shape
        torch.Size([2])

    References:
        Ho et al. 2020, arXiv 2006.11239, equation 5 and section 3.3; in their code decoder_std^2
        is the smaller variance of the step from x_2 to x_1.
    """
    require_points(x)
    model, sde = as_model(model, sde)
    chain = Chain(sde, times_of(sde, times), variance, decoder_std)
    decoder = decoder_of(x, low, high, levels)
    _require(model, x, draws, batch_size)
    _warn_of_levels(model, chain)
    dtype = torch.promote_types(
        x.dtype if x.is_floating_point() else model.place()[0], torch.float32
    )
    seed = seed_given(seed)
    size = batch_size or max(len(x), 1)
    evaluations = len(chain.times) * draws * -(-len(x) // size)
    bar = tqdm(total=evaluations, unit="step", desc="bound", disable=not progress)
    terms = []
    priors = []
    with torch.no_grad(), evaluating(model, len(x)), bar:
        for _, rows, batch_model in batches(model, len(x), size, x.device):
            x0 = decoder.values(x[rows])
            noise = ChainNoise(seed, first + rows, tuple(x.shape[1:]), dtype)
            draw_terms = [
                chain.terms(batch_model, x0, noise, k, decoder, bar.update) for k in range(draws)
            ]
            terms.append(torch.stack(draw_terms))
            priors.append(chain.prior(x0))
    unit = (x[0].numel() if len(x) else 1) * math.log(2)
    return VariationalBound(
        torch.cat(terms, dim=2) / unit,
        torch.cat(priors) / unit,
        torch.tensor(chain.times, dtype=torch.float64),
    )


def _require(model: AbstractModel, x: Tensor, draws: int, batch_size: int | None) -> None:
    """Refuses numbers out of range, and points of another shape than the model's."""
    if not is_whole(draws, 1) or not (batch_size is None or is_whole(batch_size, 1)):
        raise ValueError(
            f"draws and batch_size count from 1 on, in whole numbers; not {draws} and {batch_size}"
        )
    require_event(x, model.shape)


def _warn_of_levels(model: AbstractModel, chain: Chain) -> None:
    """Warns if the chain has noise levels that the model was not trained for."""
    first, last = (float(chain.sde.log_snr(chain.times[i])) for i in (0, -1))
    for sde in model.diffusions():
        least, most = (float(sde.log_snr(t)) for t in (sde.T, 0.0))
        if last < least - _MARGIN or first > most + _MARGIN:
            warn_caller(
                f"the chain has sigma / alpha from {math.exp(-first):.3g} to {math.exp(-last):.3g},"
                f" and the model was trained under {sde}, from {math.exp(-most):.3g} to "
                f"{math.exp(-least):.3g}: outside it is asked at times that it does not know, "
                "and the bound is loose. Choose times= within, or another sde",
            )
