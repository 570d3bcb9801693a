"""The settings of NCSN and NCSNv2: noise levels, moves of Langevin dynamics, and the decay of the
averaged weights.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdekit import did_you_mean, geometric
from sdekit_diffusion._diffusions.ncsn import NCSN
from sdekit_diffusion._sampling.annealed_langevin import AnnealedLangevin
from sdekit_diffusion._sampling.published_grids import Native
from sdekit_diffusion._sampling.techniques import (
    geometric_sigmas,
    langevin_step_size,
    max_pairwise_distance,
    variance_ratio,
)

Convention = Literal["ncsnv2", "ncsn"]


@dataclass(frozen=True)
class NCSNSettings:
    """The settings with which a score network of discrete noise levels is trained and sampled.

    Sample with `sample(model, n, sde=settings.sde, method=settings.method, denoise=True)`. If
    sigma_L / s is below 1e-3, with s the standard deviation of the data, add `end=sigma_L / s`.
    Train with `Recipe(ema=settings.ema)`.

    Arguments:
        sigmas: the noise levels sigma_1 > ... > sigma_L.
        steps: T, the number of moves of annealed Langevin dynamics per level.
        step_size: e; the moves at level i have alpha_i = e sigma_i^2 / sigma_L^2.
        convention: "ncsnv2" for moves x + alpha_i s + sqrt(2 alpha_i) z with the score s, or "ncsn"
            for x + alpha_i / 2 s + sqrt(alpha_i) z.
        ema: the decay of the averaged weights; 0 for none.
        batch_size, iterations: those of the published training run; None if there is none.

    Example:
        >>> settings = sd.NCSNSettings(sigmas=(1.0, 0.1, 0.01), steps=5, step_size=6e-6)
        >>> settings.sde.levels.shape, settings.method.moves
        (torch.Size([3]), 5)

    References:
        Song and Ermon 2019, arXiv 1907.05600; 2020, arXiv 2006.09011, table 4.
    """

    sigmas: tuple[float, ...]
    steps: int
    step_size: float
    convention: Convention = "ncsnv2"
    ema: float = 0.999
    batch_size: int | None = None
    iterations: int | None = None

    @property
    def sde(self) -> NCSN:
        """The levels as a diffusion."""
        return NCSN(self.sigmas)

    @property
    def method(self) -> AnnealedLangevin:
        """Annealed Langevin dynamics at these levels, under `sde`."""
        size = self.step_size / self.sigmas[-1] ** 2
        return AnnealedLangevin(
            self.steps, size, self.convention, steps=len(self.sigmas), grid=Native()
        )

    @property
    def variance_ratio(self) -> float:
        """For data at one point, the variance of a sample after the moves of a level over
        sigma_i^2: technique 4 brings it near 1.
        """
        ratio = (self.sigmas[0] / self.sigmas[-1]) ** (1 / (len(self.sigmas) - 1))
        size = self.step_size / self.sigmas[-1] ** 2
        return variance_ratio(
            ratio, self.steps, size if self.convention == "ncsnv2" else 0.5 * size
        )


def ncsnv2_settings(
    data: Tensor | int,
    *,
    sigma_max: float | None = None,
    sigma_min: float = 0.01,
    overlap: float = 0.5,
    steps: int = 5,
    sample: int | None = None,
    seed: int = 0,
) -> NCSNSettings:
    """The settings by NCSNv2's techniques 1, 2, 4 and 5.

    They are sigma_1, the number of levels, the step size, and an average of the weights. Technique
    3 concerns the network, s(x, sigma) = s(x) / sigma.

    Arguments:
        data: the data, `(n, *event)`, in the scale in which they are modelled; or the number of
            coordinates of a point, which needs sigma_max.
        sigma_max: sigma_1; by default the largest distance between two points of the data.
        sigma_min: sigma_L; 0.01 is for data in [0, 1].
        overlap: the overlap of neighbouring levels, see `geometric_sigmas`: 0.5 in the text of the
            paper; 0.567 gives its numbers of levels.
        steps: T, the number of moves per level, as many as the budget allows.
        sample, seed: as in `max_pairwise_distance`, for large sets.

    Raises:
        ValueError: for a number of coordinates without sigma_max, and as `geometric_sigmas`,
            `langevin_step_size` and `max_pairwise_distance`.

    Example:
        >>> settings = sd.ncsnv2_settings(torch.rand(200, 3, 8, 8))
        >>> settings.sigmas[0] > settings.sigmas[-1]
        True

    References:
        Song and Ermon 2020, arXiv 2006.09011.
    """
    if not isinstance(data, int):
        data = torch.as_tensor(data)
        dim = data[0].numel() if len(data) else 0
        sigma_max = (
            max_pairwise_distance(data, sample=sample, seed=seed)
            if sigma_max is None
            else sigma_max
        )
    elif sigma_max is None:
        raise ValueError(
            f"a number of coordinates, {data}, says nothing of distances: pass the data, or "
            "sigma_max"
        )
    else:
        dim = data
    sigmas = geometric_sigmas(dim, sigma_max, sigma_min, overlap=overlap)
    return NCSNSettings(tuple(sigmas.tolist()), steps, langevin_step_size(sigmas, steps))


# Table 4 of Song and Ermon (2020): sigma_1, L, T, e, batch size and iterations; sigma_L = 0.01. For
# FFHQ it prints e = 0.9e-7, but the authors' file configs/ffhq.yml has 0.9e-6, and technique 4
# gives 8.9e-7.
_TABLE: dict[Convention, dict[str, tuple[float, int, int, float, int, int]]] = {
    "ncsn": {
        "cifar10": (1.0, 10, 100, 2e-5, 128, 300_000),
        "celeba": (1.0, 10, 100, 2e-5, 128, 210_000),
        "church": (1.0, 10, 100, 2e-5, 128, 200_000),
        "bedroom": (1.0, 10, 100, 2e-5, 64, 150_000),
    },
    "ncsnv2": {
        "cifar10": (50.0, 232, 5, 6.2e-6, 128, 300_000),
        "celeba": (90.0, 500, 5, 3.3e-6, 128, 210_000),
        "church": (140.0, 788, 4, 4.9e-6, 128, 200_000),
        "bedroom": (190.0, 1086, 3, 1.8e-6, 128, 150_000),
        "tower": (190.0, 1086, 3, 1.8e-6, 128, 150_000),
        "ffhq": (348.0, 2311, 3, 0.9e-6, 32, 80_000),
    },
}


def ncsn_settings(data: str, convention: Convention = "ncsnv2") -> NCSNSettings:
    """The published settings for a data set of images in [0, 1], whose checkpoints `from_ncsnv2`
    loads.

    FFHQ has e = 9e-7, as in the authors' configuration and by technique 4, not the 0.9e-7 of the
    table, with which the moves hardly remove noise.

    Arguments:
        data: "cifar10", of 32 x 32 pixels; "celeba", 64 x 64; LSUN's "church", 96 x 96, "bedroom"
            and "tower", 128 x 128; or "ffhq", 256 x 256.
        convention: "ncsnv2", or "ncsn" for the older model, which has no "tower" and no "ffhq".

    Raises:
        ValueError: for another data set or convention.

    Example:
        >>> settings = sd.ncsn_settings("cifar10")
        >>> len(settings.sigmas), settings.steps
        (232, 5)

    References:
        Song and Ermon 2020, arXiv 2006.09011, table 4; github.com/ermongroup/ncsnv2, configs.
    """
    if convention not in _TABLE or data not in _TABLE[convention]:
        published = "; ".join(
            f"{name!r} with {', '.join(map(repr, rows))}" for name, rows in _TABLE.items()
        )
        raise ValueError(
            f"no settings were published for {data!r} with {convention!r}; there are "
            f"{published}{did_you_mean(convention, _TABLE)}{did_you_mean(data, _TABLE['ncsnv2'])}"
        )
    sigma_max, levels, steps, e, batch_size, iterations = _TABLE[convention][data]
    return NCSNSettings(
        tuple(geometric(sigma_max, 0.01, levels - 1).tolist()),
        steps,
        e,
        convention,
        ema=0.999 if convention == "ncsnv2" else 0.0,
        batch_size=batch_size,
        iterations=iterations,
    )
