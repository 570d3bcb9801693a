"""Bits per dimension of quantised data: log-likelihoods of dequantised levels as code lengths."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit import AbstractTrace, Likelihood, uniform01
from sdekit_diffusion._arguments.inputs import is_whole, require_points, seed_given
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inference.code_length import AbstractCodeLength
from sdekit_diffusion._inference.likelihood import log_likelihood
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.counters import DEQUANTISATION
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._sampling.arguments import Model
from sdekit_diffusion._sampling.grid import DEFAULT_END

_DRAW_STRIDE = 1 << 40  # between the indices of two dequantisations


@dataclass(frozen=True, eq=False)
class BitsPerDim(AbstractCodeLength):
    """Code lengths in bits per dimension, with their standard errors and the parts of these.

    Attributes:
        draws: bits per dimension of every point for every dequantisation, float64,
            `(draws, batch)`.
        probe_stderr: the standard error of the mean over the draws that is due to the probes of
            the traces, `(batch,)`.
        evaluations: the evaluations of the model for each point, over all draws, `(batch,)`.
        status: how the solve of each point ended, the worst of its draws, see `sdekit.Status`,
            `(batch,)`.
        probes: the number of probes of each trace; 0 for exact traces.

    Example:
        >>> model = sd.GaussianMixture([1.0], [[0.0, 0.0]], [0.04])
        >>> pixels = torch.tensor([[3, 4], [4, 5]])
        >>> bits = sd.bits_per_dim(model, pixels, low=-1, high=1, levels=8, draws=2, sde="vp")
        >>> bits.draws.shape, bits.value.shape
        (torch.Size([2, 2]), torch.Size([2]))
        >>> bool(bits.mean > 0)
        True
    """

    draws: Tensor
    probe_stderr: Tensor
    evaluations: Tensor
    status: Tensor
    probes: int

    @property
    def value(self) -> Tensor:
        """Bits per dimension of every point: the mean over the draws, `(batch,)`."""
        return self.draws.mean(dim=0)

    @property
    def stderr(self) -> Tensor:
        """The standard error of `value`, `(batch,)`: the standard deviation of the draws over the
        square root of their number, which includes the error due to the probes; `probe_stderr`
        for a single draw.
        """
        n = len(self.draws)
        return self.draws.std(dim=0) / math.sqrt(n) if n > 1 else self.probe_stderr

    @property
    def parts(self) -> dict[str, float]:
        """The parts of `mean_stderr` by name: standard errors whose squares sum to its square.

        "probes" is due to the random traces; NaN for one probe, whose error is then part of the
        next. "dequantisation" is due to the noise added to the levels; it is missing for one draw,
        and then part of "data". "data" is due to the differences between points; NaN for one
        point.
        """
        points = max(1, self.draws.shape[1])
        n = len(self.draws)
        squares = {"probes": float(self.probe_stderr.square().mean()) / points}
        if n > 1:
            variance = float(self.draws.var(dim=0).mean()) / (n * points)
            squares["dequantisation"] = max(
                0.0, variance - (0.0 if self.probes == 1 else squares["probes"])
            )
        rest = self.mean_stderr**2 - sum(
            value for value in squares.values() if not math.isnan(value)
        )
        squares["data"] = rest if math.isnan(rest) else max(0.0, rest)
        return {name: math.sqrt(value) for name, value in squares.items()}


def bits_per_dim(
    model: Model,
    x: Tensor,
    *,
    low: float,
    high: float,
    levels: int,
    draws: int = 1,
    seed: int | None = 0,
    first: int = 0,
    sde: AbstractDiffusion | str | None = None,
    trace: AbstractTrace | None = None,
    end: float = DEFAULT_END,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    method: AdaptiveFlow = AdaptiveFlow(),  # noqa: B008 - frozen
    batch_size: int | None = None,
    progress: bool = False,
) -> BitsPerDim:
    """Bits per dimension of data with `levels` levels, which are inputs in [low, high] of the
    model:

        -log p(x) / (d log 2) - log2((high - low) / levels),

    where d is the number of coordinates of a sample. Integers k = 0, ..., levels - 1 are
    dequantised here: x = low + (high - low)(k + u) / levels with u uniform on [0, 1). The mean
    over u is then an upper bound of the code length of k. Floats are taken as already dequantised.

    Arguments:
        x: integers, or floats in [low, high], `(batch, *shape)`.
        low, high: the range of the data on which the model was trained.
        levels: the number of levels, 256 for 8-bit images.
        draws: the number of dequantisations of each point, each with new probes.
        seed: of the dequantisation; None takes a new one.
        first: the index of the first point, on which its dequantisation and its probes depend.
        sde, trace, end, log_prior, method, batch_size, progress: as in `log_likelihood`.

    Raises:
        TypeError: when x is not a real tensor, or seed not a whole number.
        ValueError: for values outside the range, floats that look quantised, several draws of
            floats, an empty range, or numbers of levels and draws that are not whole; and as
            `log_likelihood`.
        sdekit.UnfinishedError: as `log_likelihood`.

    Example:
        >>> model = sd.GaussianMixture([1.0], [[0.0, 0.0]], [0.04])
        >>> pixels = torch.tensor([[3, 4], [4, 5]])
        >>> sd.bits_per_dim(model, pixels, low=-1, high=1, levels=8, sde="vp").value.shape
        torch.Size([2])

    References:
        Theis et al. 2016, arXiv 1511.01844, section 3.1.
    """
    require_points(x)
    _require_settings(x, low, high, levels, draws)
    _require_values(x, low, high, levels)
    seed = seed_given(seed)
    dtype = torch.promote_types(as_model(model, sde)[0].place()[0], torch.float32)
    likelihoods = []
    for start in range(first, first + draws * _DRAW_STRIDE, _DRAW_STRIDE):
        points = x
        if not x.is_floating_point():
            points = low + (high - low) * (x + _uniform(x, seed, start)) / levels
            points = points.to(dtype)
        likelihood = log_likelihood(
            model,
            points,
            sde=sde,
            trace=trace,
            end=end,
            log_prior=log_prior,
            method=method,
            first=start,
            batch_size=batch_size,
            progress=progress,
        )
        likelihoods.append(likelihood)
    return _code_lengths(likelihoods, x[0].numel() if len(x) else 1, (high - low) / levels)


def _uniform(x: Tensor, seed: int, first: int) -> Tensor:
    """Numbers in [0, 1), shaped like x, for the dequantisation of samples `first` and following."""
    index = torch.arange(first, first + len(x), device=x.device)
    return uniform01(seed, index, tuple(x.shape[1:]), counter=DEQUANTISATION)


def _code_lengths(likelihoods: list[Likelihood], dimension: int, width: float) -> BitsPerDim:
    """Bits per dimension from the likelihoods of each draw and the width of a level."""
    unit = dimension * math.log(2)
    stderr = torch.stack([part.stderr / unit for part in likelihoods])
    return BitsPerDim(
        torch.stack([-part.value / unit - math.log2(width) for part in likelihoods]),
        stderr.square().mean(dim=0).div(len(likelihoods)).sqrt(),
        torch.stack([part.evaluations for part in likelihoods]).sum(dim=0),
        torch.stack([part.status for part in likelihoods]).amax(dim=0),
        likelihoods[0].probes,
    )


def _require_settings(x: Tensor, low: float, high: float, levels: int, draws: int) -> None:
    """Refuses an empty range, no levels, and several draws of data that are not dequantised."""
    if not (-math.inf < low < high < math.inf and is_whole(levels, 1)):
        raise ValueError(
            "bits per dimension need finite low < high and a whole number of levels from 1 on, not "
            f"{low}, {high} and {levels}"
        )
    if not is_whole(draws, 1) or (draws > 1 and x.is_floating_point()):
        raise ValueError(
            "draws counts dequantisations of integers, a whole number from 1 on; not "
            f"{draws} of {x.dtype}"
        )


def _require_values(x: Tensor, low: float, high: float, levels: int) -> None:
    """Refuses values out of range, and floats that are quantised."""
    if not x.is_floating_point():
        if len(x) and not (int(x.min()) >= 0 and int(x.max()) < levels):
            raise ValueError(
                f"integers from {int(x.min())} to {int(x.max())} are not levels 0 to {levels - 1}"
            )
        return
    if len(x) and not (low <= float(x.min()) and float(x.max()) <= high):
        raise ValueError(
            f"x runs from {float(x.min()):g} to {float(x.max()):g}, outside [{low}, {high}]"
        )
    if x.numel() > levels + 8 and len(x.unique()) <= levels:
        raise ValueError(
            f"x has only {len(x.unique())} different values: it looks quantised, where a density "
            f"has no bound; pass the integer levels 0 to {levels - 1} instead"
        )
