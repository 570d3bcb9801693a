"""Images restored from degraded observations, as samples of the posterior."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from sdekit import uniform01
from sdekit_diffusion._app import figures
from sdekit_diffusion._inference.sample_posterior import sample_posterior
from sdekit_diffusion._models.counters import DEQUANTISATION
from sdekit_diffusion._models.data_scale import data_scale
from sdekit_diffusion._models.linear_observation import LinearObservation
from sdekit_diffusion._models.model import solved_like
from sdekit_diffusion._models.operators import AbstractOperator, Blur, Downsampling, Mask
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion.data import Dataset, Scale
from sdekit_diffusion.metrics import Calibration, sbc

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Hidden = Literal["left", "right", "top", "bottom", "centre", "random"]
_SHOWN = 8  # images of a picture
_DRAWN = 4  # samples of each
# A pixel counts as known below this standard deviation, relative to that of all pixels.
_CERTAIN = 0.01


@dataclass(frozen=True)
class Degradation:
    """How an image is observed: through a mask, downsampled, or blurred, and with noise.

    Attributes:
        mask: the part that is hidden: left, right, top, bottom, centre, or random, half of the
            pixels.
        downsample: the factor by which width and height are reduced.
        blur: the standard deviation of a Gaussian blur, in pixels.
        noise: the standard deviation of the noise, relative to that of the data.

    Raises:
        ValueError: unless one of mask, downsample and blur is given, for an unknown mask, and for
            noise that is not positive.
    """

    mask: Hidden | None = None
    downsample: int | None = None
    blur: float | None = None
    noise: float = 0.1

    def __post_init__(self) -> None:
        given = [value for value in (self.mask, self.downsample, self.blur) if value is not None]
        if len(given) != 1:
            raise ValueError(
                "give one of --mask, --downsample and --blur, such as --mask bottom; "
                f"{len(given)} are given"
            )
        if self.mask is not None and self.mask not in get_args(Hidden):
            raise ValueError(f"a mask hides {', '.join(get_args(Hidden))}; not {self.mask!r}")
        if not self.noise > 0:
            raise ValueError(f"--noise is a positive number, such as 0.1; not {self.noise}")

    @classmethod
    def parsed(cls, text: str) -> Self:
        """A degradation as an option of one word, such as downsample=2,noise=0.2.

        Raises:
            ValueError: for anything else.
        """
        kinds = {"mask": str, "downsample": int, "blur": float, "noise": float}
        try:
            pairs = [part.split("=") for part in text.split(",")]
            given: dict[str, Any] = {name: kinds[name](value) for name, value in pairs}
        except (KeyError, ValueError):
            raise ValueError(
                "--restore is mask=bottom, downsample=2 or blur=1.0, and perhaps noise, as in "
                f"downsample=2,noise=0.2; not {text!r}"
            ) from None
        return cls(**given)

    def __str__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return ", ".join(f"{name} {value}" for name, value in given.items())

    def operator(self, event: tuple[int, ...]) -> AbstractOperator:
        """The operator, for images (channels, height, width).

        Raises:
            ValueError: for samples that are not images.
        """
        if len(event) != 3:
            raise ValueError(f"images are restored, and these samples have the shape {event}")
        if self.downsample is not None:
            return Downsampling(self.downsample)
        if self.blur is not None:
            return Blur(self.blur)
        assert self.mask is not None
        return Mask(_known(self.mask, *event[1:]))


def _known(hidden: Hidden, height: int, width: int) -> Tensor:
    """The pixels that are not hidden, `(height, width)`."""
    known = torch.ones(height, width, dtype=torch.bool)
    if hidden == "random":
        return torch.rand(height, width, generator=torch.Generator().manual_seed(0)) < 0.5
    rows = {"top": slice(0, height // 2), "bottom": slice(height // 2, None)}
    columns = {"left": slice(0, width // 2), "right": slice(width // 2, None)}
    middle = (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4))
    inside = (slice(None), slice(None)) if hidden != "centre" else middle
    known[rows.get(hidden, inside[0]), columns.get(hidden, inside[1])] = False
    return known


def selected(source: Dataset, first: int, n: int) -> Tensor:
    """Held-out images from number `first` on, n or all if there are fewer.

    Raises:
        ValueError: where there are none.
    """
    if n < 1 or not 0 <= first < len(source.test):
        raise ValueError(
            f"{source.name} has {len(source.test)} held-out images, and --first {first} --n {n} "
            "names none: --first counts them from 0 on, and --n from 1"
        )
    return source.test[first : first + n]


def restored(
    model: ScoreModel,
    degradation: Degradation,
    levels: Tensor,
    *,
    samples: int,
    particles: int,
    steps: int,
    seed: int,
    first: int,
) -> dict[str, Tensor]:
    """Posterior samples of images in the scale of the model, with the images and observations.

    Arguments:
        levels: the images, in the scale of the data.
        first: the index of the first image.
    """
    scale: Scale = model.scale
    like = solved_like(model)
    # The model is one of dequantised images: the middles of levels are not among its samples.
    index = torch.arange(first, first + len(levels))
    u = uniform01(seed, index, tuple(levels.shape[1:]), counter=DEQUANTISATION)
    x = scale.encode(levels, u).to(like)
    operator = degradation.operator(tuple(x.shape[1:]))
    std = data_scale(model, tuple(x.shape[1:])).std
    variance = (degradation.noise * std) ** 2
    observation = LinearObservation.simulated(operator, x, variance, seed=seed, first=first)
    posterior = sample_posterior(
        model, observation, samples, particles=particles, steps=steps, seed=seed, first=first
    )
    return {
        "x": x,
        "observed": operator.adjoint(observation.y, tuple(x.shape[1:])),
        "samples": posterior.x,
        "log_weights": posterior.log_weights,
        "log_evidence": posterior.log_evidence,
    }


@dataclass(frozen=True, eq=False)
class Restoration:
    """All images and their posterior samples, `(n, samples, *shape)`."""

    x: Tensor
    observed: Tensor
    samples: Tensor
    log_weights: Tensor

    @staticmethod
    def of(parts: Any) -> "Restoration":  # noqa: ANN401 - dictionaries of arrays
        """The restoration of all images from the parts that `restored` returned."""
        parts = list(parts)
        names = ("x", "observed", "samples", "log_weights")
        return Restoration(
            *(torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in names)
        )

    @property
    def _weights(self) -> Tensor:
        weights = self.log_weights.softmax(dim=1).to(self.samples)
        return weights.reshape(*weights.shape, *[1] * (self.samples.ndim - 2))

    @property
    def mean(self) -> Tensor:
        """The posterior mean of each pixel, `(n, *shape)`."""
        return (self._weights * self.samples).sum(dim=1)

    @property
    def std(self) -> Tensor:
        """The posterior standard deviation of each pixel, `(n, *shape)`."""
        squared_error = (self.samples - self.mean.unsqueeze(1)).square()
        return (self._weights * squared_error).sum(dim=1).sqrt()

    @property
    def error(self) -> float:
        """The root mean square error of the mean."""
        return float((self.mean - self.x).square().mean().sqrt())

    def calibration(self) -> Calibration:
        """The ranks of the pixels in which samples differ."""
        spread = self.samples.std(dim=1, correction=0).mean(dim=0).flatten()
        uncertain = spread > _CERTAIN * float(self.x.std(correction=0))
        uncertain = uncertain | ~uncertain.any()  # where all samples are the same
        samples = self.samples.flatten(2)[:, :, uncertain]
        return sbc(samples, self.x.flatten(1)[:, uncertain], self.log_weights)

    def numbers(self) -> dict[str, Any]:
        """Coverage and error, as JSON: at each level the share of pixels within the intervals of
        their posteriors, and its standard error; the root mean square error of the posterior mean,
        and the root mean square of the posterior standard deviation.
        """
        calibration = self.calibration()
        coverage = {
            f"{level:g}": {"share": share, "stderr": stderr, "hidden": calibration.hidden(level)}
            for level, (share, stderr) in calibration.coverage(quiet=True).items()
        }
        std = float(self.std.square().mean().sqrt())
        return {
            "images": len(self.x), "coverage": coverage, "error": self.error, "std": std,
            "effective": calibration.size,
        }  # fmt: skip

    def sentences(self) -> list[str]:
        """Coverage and error, as text."""
        numbers = self.numbers()
        covered = ", ".join(
            f"{100 * row['share']:.1f} ± {100 * row['stderr']:.1f} % at {100 * float(level):g} %"
            for level, row in numbers["coverage"].items()
        )
        hidden = max(row["hidden"] for row in numbers["coverage"].values()) > 0.5
        caution = (
            f"; this says nothing, because an image has effectively {numbers['effective']:.2g} "
            "samples: take more particles"
        )
        return [
            f"pixels of {numbers['images']} held-out images within the intervals of their "
            f"posteriors: {covered}{caution if hidden else ''}",
            f"root mean square error of the posterior mean {numbers['error']:.3g}, their own "
            f"standard deviation {numbers['std']:.3g}",
        ]

    def picture(self, scale: Scale) -> "Figure":
        """A row for each image: itself, the observation, samples, their mean and standard
        deviation.
        """
        shown = min(_SHOWN, len(self.x))
        index = torch.multinomial(
            self.log_weights.softmax(dim=1)[:shown],
            _DRAWN,
            replacement=True,
            generator=torch.Generator().manual_seed(0),
        )
        drawn = self.samples[torch.arange(shown)[:, None], index]
        largest = self.std[:shown].amax().clamp_min(1e-12)
        width = scale.high - scale.low
        std_image = scale.low + width * self.std[:shown] / largest
        size = self.observed[:shown].abs().amax().clamp_min(1e-12) / max(abs(scale.high), 1e-12)
        columns = [self.x[:shown], self.observed[:shown] / size]
        columns += [*drawn.unbind(1), self.mean[:shown], std_image]
        labels = ["image", "observed", *[f"sample {i + 1}" for i in range(_DRAWN)]]
        return figures.table_of_images(columns, [*labels, "mean", "std"], scale)
