"""Solves for every value of some sliders, as the compact arrays of an interactive page."""

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sdekit_diffusion._app.explored import Explored
from sdekit_diffusion._app.figures import frame
from sdekit_diffusion._app.options import Sampler
from sdekit_diffusion._sampling.sample import sample
from sdekit_diffusion.data import Scale

_STEPS16 = 65535  # the largest integer of a coordinate
_BASE64 = 4 / 3
_MOST_POINTS = 300
_MOST_IMAGES = 40
_WITH_NOISE = ("default", "sde", "ddim")  # methods that take every eta


@dataclass(frozen=True)
class Sliders:
    """What the sliders of an interactive page can be set to. A slider with one value is not shown.

    Attributes:
        eta: scales of the noise, see the command sample. Unless given, 0 0.5 1 for points and 0 1
            for images with the methods default, sde and ddim, and the method's own with others.
        steps: numbers of steps; 5 10 20 40 for points and 5 10 20 for images unless given.
        guidance: scales w of guidance, for a model with labels; 0 1 3 unless given.
        seed: seeds; 0 1 2 for points and 0 1 for images unless given.
        times: the largest number of states of one solve that are kept, evenly spaced; all for
            points and 9 for images unless given.

    Raises:
        ValueError: for values that are not increasing, or out of range.
    """

    eta: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    seed: tuple[int, ...] = ()
    times: int | None = None

    def __post_init__(self) -> None:
        for name in ("eta", "steps", "guidance", "seed"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)):
                given = " ".join(map(str, values))
                raise ValueError(f"--{name} takes increasing values, each once; not {given}")
        if any(steps < 1 for steps in self.steps):
            raise ValueError(f"--steps takes numbers from 1 on; not {self.steps[0]}")
        if self.times is not None and self.times < 2:
            raise ValueError(f"--times is a number of states from 2 on; not {self.times}")

    def completed(self, explored: Explored, method: str) -> "Sliders":
        """The sliders with defaults for the values that are not given.

        Raises:
            ValueError: for guidance of a law without labels.
        """
        if not explored.classes and self.guidance not in ((), (1.0,)):
            raise ValueError(
                f"guidance follows labels, and {explored.name} has none: leave out --guidance"
            )
        images = explored.scale.levels is not None
        eta = () if method not in _WITH_NOISE else (0.0, 1.0) if images else (0.0, 0.5, 1.0)
        times = self.times or (9 if images else max(self.steps, default=0) + 1000)
        return Sliders(
            eta=self.eta or eta,
            steps=self.steps or ((5, 10, 20) if images else (5, 10, 20, 40)),
            guidance=self.guidance or explored.guidance,
            seed=self.seed or ((0, 1) if images else (0, 1, 2)),
            times=times,
        )

    def axes(self) -> dict[str, list[float | None]]:
        """The values of each slider."""
        return {
            "eta": list(self.eta) or [None],
            "steps": list(self.steps),
            "guidance": list(self.guidance),
            "seed": list(self.seed),
        }

    def states(self) -> int:
        """The number of saved states per sample, over all solves."""
        assert self.times is not None
        kept = sum(min(steps + 1, self.times) for steps in self.steps)
        return kept * max(1, len(self.eta)) * len(self.guidance) * len(self.seed)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The states of one solve.

    Attributes:
        t: the times, from noise to data, `(k,)`.
        ratio: sigma / alpha at these times, `(k,)`.
        states: x_t / (alpha^2 + sigma^2)^(1/2), `(k, n, *shape)`.
    """

    t: Tensor
    ratio: Tensor
    states: Tensor


def number_of_samples(explored: Explored, sliders: Sliders, n: int | None, limit: float) -> int:
    """The number of samples that fit into `limit` megabytes; equally many of each class where all
    classes fit.

    Raises:
        ValueError: when n, or one, does not fit; or for samples that cannot be drawn.
    """
    shape = explored.shape
    images = explored.scale.levels is not None
    if images and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(f"images have 1 or 3 channels, and these samples have the shape {shape}")
    if not images and math.prod(shape) < 2:
        raise ValueError("samples of one coordinate are not points of a plane: use report")
    if n is not None and n < 1:
        raise ValueError(f"n is the number of samples, from 1 on; not {n}")
    size = (1.02 * math.prod(shape) if images else 4) * sliders.states() * _BASE64
    most = int(0.97 * 1e6 * limit / size)
    if most < (n or 1):
        raise ValueError(
            f"{n or 1} samples of {sliders.states()} states take about "
            f"{(n or 1) * size / 1e6:.1f} MB, more than --megabytes {limit:g}: give fewer values "
            "of --eta, --steps, --guidance and --seed, a smaller --times or --n, or more megabytes"
        )
    if n is not None:
        return n
    fitting = min(most, _MOST_IMAGES if images else _MOST_POINTS)
    classes = len(explored.classes) or 1
    return fitting - fitting % classes if fitting >= classes else fitting


def trajectory(
    explored: Explored, n: int, guidance: float, sampler: Sampler, times: int
) -> Trajectory:
    """The states of samples 0, ..., n - 1 by one `sample` call, or one for each model of the law.

    With eta = 0 no noise is read, whatever the sampler says.

    Arguments:
        times: the most states that are kept.
    """
    options = (sampler if sampler.eta else replace(sampler, noise=None)).settings()
    pairs = explored.models(guidance, n)
    solutions = [
        sample(model, n, save="all", return_solution=True, **options) for model, _ in pairs
    ]
    ts = solutions[0].ts.cpu()
    states = torch.empty((len(ts), n, *explored.shape))
    for (_, rows), solution in zip(pairs, solutions, strict=True):
        assert solution.xs is not None
        states[:, rows] = solution.xs[:, rows].to(states)
    sde = pairs[0][0].under(sampler.sde)
    kept = np.unique(np.linspace(0, len(ts) - 1, min(times, len(ts))).round().astype(int))
    kernels = torch.tensor([sde.kernel(float(ts[i])) for i in kept], dtype=torch.float64)
    alpha, sigma = kernels.T
    size = torch.hypot(alpha, sigma).reshape(-1, *[1] * (states.ndim - 1))
    return Trajectory(ts[kept], sigma / alpha, states[kept] / size.to(states))


def explored_frames(
    explored: Explored, sliders: Sliders, n: int, sampler: Sampler
) -> dict[str, Any]:
    """All solves as JSON: values of the sliders, and arrays in base64 for each combination."""
    axes = sliders.axes()
    assert sliders.times is not None
    solves = []
    for eta, steps, guidance, seed in tqdm([*product(*axes.values())], "solves", leave=False):
        settings = replace(sampler, eta=eta, steps=int(steps or 0), seed=int(seed or 0))
        solves.append(trajectory(explored, n, float(guidance or 0), settings, sliders.times))
    classes = explored.classes
    drawn = _images(solves, explored.scale) if explored.scale.levels else _points(solves, explored)
    return {
        "axes": axes,
        "n": n,
        "classes": list(classes),
        "ts": [[float(f"{t:.3g}") for t in solve.t.tolist()] for solve in solves],
        "ratios": [[float(f"{r:.3g}") for r in solve.ratio.tolist()] for solve in solves],
        **drawn,
    }


def _points(solves: list[Trajectory], explored: Explored) -> dict[str, Any]:
    """Coordinates as integers from 0 to 65535 over the range of all."""
    states = [_plane(solve.states.flatten(0, 1)) for solve in solves]
    data = np.zeros((0, 2)) if explored.data is None else _plane(explored.data)
    together = np.concatenate([*states, data])
    low = together.min(axis=0)
    high = np.maximum(together.max(axis=0), low + 1e-12)
    view = frame(together)
    return {
        "kind": "points",
        "low": low.tolist(),
        "high": high.tolist(),
        "view": [[float(f"{value:.4g}") for value in end] for end in view],
        "data": _integers(data, low, high),
        "solves": [_integers(x, low, high) for x in states],
    }


def _plane(x: Tensor) -> NDArray[np.float64]:
    """The first two coordinates of points."""
    return x.reshape(len(x), -1)[:, :2].double().cpu().numpy()


def _integers(x: NDArray[np.float64], low: NDArray[Any], high: NDArray[Any]) -> str:
    integers = np.rint((x - low) / (high - low) * _STEPS16).astype("<u2")
    return base64.b64encode(integers.tobytes()).decode()


def _images(solves: list[Trajectory], scale: Scale) -> dict[str, Any]:
    """A picture of each solve, a row for each time."""
    return {
        "kind": "images",
        "size": list(solves[0].states.shape[-2:]),
        "solves": list(_pictures(solves, scale)),
    }


def _pictures(solves: list[Trajectory], scale: Scale) -> Iterator[str]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images need pillow: pip install 'sdekit[app]'") from error
    for solve in solves:
        x = (solve.states.double() - scale.low) / (scale.high - scale.low)
        pixels = (255 * x.clamp(0, 1)).round().to(torch.uint8)
        k, n, c, h, w = pixels.shape
        rows = pixels.permute(0, 3, 1, 4, 2).reshape(k * h, n * w, c).numpy()
        file = io.BytesIO()
        Image.fromarray(rows[..., 0] if c == 1 else rows).save(file, "PNG", optimize=True)
        yield base64.b64encode(file.getvalue()).decode()
