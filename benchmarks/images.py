"""The mixture of images (Song and Ermon 2020, figure 2): which of 1,297 annealed Langevin dynamics
reaches, and how evenly.

The mixture is centred at scikit-learn's digits, in [0, 1], as images of 32 x 32 pixels: each pixel
of the 8 x 8 is four by four of equal value. Along the 64 directions of such images the mixture is
that of the small ones with four times the values, and along the other 960 it is noise alone,
whatever the image; so the 64 are simulated, with the levels and steps for 1,024. NCSN's settings
begin at sigma_1 = 1 in noise uniform in [0, 1], as published; NCSNv2's follow from the data. The
floor is what independent draws of an image would have. Then the weights of two modes that are far
apart, and what the score of a mixture of 50,000 images in 3,072 dimensions costs.
`python benchmarks/images.py`
"""

import resource
import time
from typing import Any

import numpy as np
import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from sdekit import geometric
from sdekit_diffusion import (
    EmpiricalMixture,
    GaussianMixture,
    NCSNSettings,
    data,
    max_pairwise_distance,
    ncsnv2_settings,
    sample,
)
from sdekit_diffusion.metrics import nearest

SAMPLES = 1000
SEED = 0
ENLARGED = 4
NCSN_V1 = NCSNSettings(tuple(geometric(1.0, 0.01, 9).tolist()), 100, 2e-5, "ncsn")


def digits() -> tuple[Tensor, NDArray[np.int64]]:
    """The images along their 64 directions, `(1297, 1, 8, 8)`, and which digits they are."""
    train, labels = data.load("digits").reference(2000)
    assert labels is not None
    return ENLARGED * train.to(torch.float32) / 16, labels.numpy()


def uniform_noise(shape: tuple[int, ...]) -> Tensor:
    """Pixels uniform in [0, 1], along the directions of enlarged images."""
    generator = torch.Generator().manual_seed(SEED)
    return ENLARGED * torch.rand(ENLARGED**2, *shape, generator=generator).mean(dim=0)


def coverage(reached: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """How many images, how evenly: chi^2 by degree of freedom, of images and of the ten classes, is
    1 for independent draws.
    """
    n = len(reached)
    k = len(labels)
    hits = np.bincount(reached, minlength=k)
    classes = np.bincount(labels[reached], minlength=10)
    wanted = n * np.bincount(labels, minlength=10) / k
    return {
        "distinct": int((hits > 0).sum()),
        "most": int(hits.max()),
        "effective": float(n**2 / np.square(hits).sum()),
        "chi2 images": float(np.square(hits - n / k).sum() / (n / k) / (k - 1)),
        "chi2 classes": float((np.square(classes - wanted) / wanted).sum() / 9),
        "distance of class weights": float(0.5 * np.abs(classes - wanted).sum() / n),
    }


def floor(labels: NDArray[np.int64], trials: int = 1000) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each figure over sets of independent draws."""
    draws = np.random.default_rng(SEED).integers(len(labels), size=(trials, SAMPLES))
    rows = [coverage(reached, labels) for reached in draws]
    return {
        key: (float(np.mean(v)), float(np.std(v)))
        for key in rows[0]
        for v in [[row[key] for row in rows]]
    }


def far_modes(n: int = 20_000) -> dict[str, float]:
    """The share of the smaller of two modes, 0.2, 6 apart: all coordinates but one are independent
    of them and left out. NCSN also begins in the larger mode, with the noise of its first level.
    """
    torch.manual_seed(SEED)
    modes = GaussianMixture([0.2, 0.8], torch.tensor([[-3.0], [3.0]]), [0.0025, 0.0025])
    runs = {
        f"NCSNv2, d = {d}, T = {t}": ncsnv2_settings(d, sigma_max=6.0, steps=t)
        for d, t in ((3072, 5), (3072, 20), (64, 5))
    }
    larger = "NCSN, from the larger mode"
    shares = {}
    for name, settings in {**runs, "NCSN": NCSN_V1, larger: NCSN_V1}.items():
        begun = 3 + NCSN_V1.sigmas[0] * torch.randn(n, 1) if name == larger else None
        x = sample(modes, n, sde=settings.sde, method=settings.method, seed=SEED, x_T=begun)
        shares[name] = float((x < 0).double().mean())
        print(
            f"share of the smaller of two far modes, 0.2 +- {(0.16 / n) ** 0.5:.4f}: {name:26s} "
            f"{shares[name]:.4f}"
        )
    return shares


def cost(n: int = 50_000, dim: int = 3072, points: int = 64) -> dict[str, float]:
    """Seconds of a score at `points` points, the least of five, and by how many MB memory peaks
    above the centres.
    """
    generator = torch.Generator().manual_seed(SEED)
    centres = torch.empty(n, dim)
    for part in centres.split(1000):
        part.normal_(0, 0.5, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mixture = EmpiricalMixture(centres)
    x = centres[:points] + 1
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        mixture.score(0.5, x, "edm")
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found = {
        "centres": n,
        "dimensions": dim,
        "points": points,
        "seconds": min(seconds),
        "MB above the centres": peak,
    }
    print(found)
    return found


def picture(
    images: Tensor,
    drawn: dict[str, Tensor],
    reached: dict[str, NDArray[np.int64]],
    labels: NDArray[np.int64],
) -> None:
    figure = Figure(figsize=(10, 6), layout="constrained")
    cells = figure.add_gridspec(2, 6, height_ratios=(3, 2.2))
    for i, (name, x) in enumerate(drawn.items()):
        axes = figure.add_subplot(cells[0, 2 * i : 2 * i + 2])
        framed = torch.nn.functional.pad(x[:48, 0] / ENLARGED, (1, 1, 1, 1), value=0.5)
        axes.imshow(
            framed.reshape(6, 8, 10, 10).permute(0, 2, 1, 3).reshape(60, 80),
            cmap="gray",
            vmin=0,
            vmax=1,
        )
        axes.set(title=name, xticks=(), yticks=())
    left = figure.add_subplot(cells[1, :3])
    right = figure.add_subplot(cells[1, 3:])
    for i, (name, index) in enumerate(reached.items()):
        left.plot(
            np.sort(np.bincount(index, minlength=len(images)))[::-1], label=name, color=f"C{i}"
        )
        counts = np.bincount(labels[index], minlength=10) / len(index)
        right.bar(np.arange(10) + 0.27 * (i - 1), counts, width=0.27, color=f"C{i}", label=name)
    left.set(
        yscale="symlog",
        xlabel="images, the most frequent first",
        ylabel=f"times reached by {SAMPLES} samples",
    )
    weights = np.bincount(labels, minlength=10) / len(labels)
    deviations = 2 * np.sqrt(weights * (1 - weights) / SAMPLES)
    right.errorbar(
        np.arange(10),
        weights,
        deviations,
        fmt="_",
        color="k",
        markersize=18,
        label="right, two deviations",
    )
    right.set(xlabel="digit", ylabel="share of the samples", xticks=range(10))
    left.legend(fontsize=8)
    right.legend(fontsize=7)
    figure.savefig(RESULTS / "images.png", dpi=120)


def dynamics(
    name: str, mixture: EmpiricalMixture, settings: NCSNSettings, x_T: Tensor | None
) -> tuple[dict[str, Any], Tensor]:
    """What annealed Langevin dynamics with these settings takes, and its samples."""
    start = time.perf_counter()
    found = sample(
        mixture,
        SAMPLES,
        sde=settings.sde,
        method=settings.method,
        x_T=x_T,
        seed=SEED,
        denoise=True,
        return_solution=True,
    )
    row = {
        "settings": name,
        "sigma_1": settings.sigmas[0],
        "L": len(settings.sigmas),
        "T": settings.steps,
        "e": settings.step_size,
        "evaluations": int(found.evaluations[0]),
        "seconds": time.perf_counter() - start,
    }
    return row, found.x


def sampled(
    images: Tensor, mixture: EmpiricalMixture
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """What each run takes, and the samples of each and of the mixture itself."""
    v2 = ncsnv2_settings(images[0].numel() * ENLARGED**2, sigma_max=max_pairwise_distance(images))
    runs = {"NCSN": (NCSN_V1, uniform_noise((SAMPLES, *mixture.shape))), "NCSNv2": (v2, None)}
    rows = []
    drawn = {"independent draws": mixture.sample(SAMPLES, seed=SEED)}
    for name, (settings, x_T) in runs.items():
        row, drawn[name] = dynamics(name, mixture, settings, x_T)
        rows.append(row)
    return rows, drawn


def indices(x: Tensor, images: Tensor) -> NDArray[np.int64]:
    """Which image each sample is."""
    distance, index = nearest(x, images)
    assert distance.max() < 1e-3, "a denoised sample is an image"
    return index


def reached_images(
    rows: list[dict[str, Any]], bottom: dict[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    """How many images each run reached, and of independent draws with the standard deviation."""
    titles = {
        "distinct": "images reached",
        "effective": "effective number",
        "chi2 images": "chi^2 of images",
        "chi2 classes": "chi^2 of the ten classes",
    }
    expected = {title: "{:.3g} ± {:.2g}".format(*bottom[key]) for key, title in titles.items()}
    found: list[dict[str, Any]] = [{"samples": "independent draws", **expected}]
    for row in rows:
        name = f"{row['settings']}: sigma_1 = {row['sigma_1']:.3g}, L = {row['L']}, T = {row['T']}"
        found.append({"samples": name, **{titles[key]: row[key] for key in titles}})
    return found


def main() -> None:
    particulars = environment(dtype="float32", seed=SEED, samples=SAMPLES)
    images, labels = digits()
    bottom = floor(labels)
    rows, drawn = sampled(images, EmpiricalMixture(images))
    reached = {name: indices(x, images) for name, x in drawn.items()}
    taken = [dict(row) for row in rows]
    for row in rows:
        row |= coverage(reached[row["settings"]], labels)
    for key, (mean, deviation) in bottom.items():
        figures = "".join(f"{row['settings']:>9s} {row[key]:8.3g}" for row in rows)
        print(f"{key:26s} floor {mean:7.3g} +- {deviation:7.2g}{figures}")
    shares = far_modes()
    result = {"floor": bottom, "rows": rows, "far modes": shares, "cost": cost()}
    save("images", {"environment": particulars, **result})
    publish("images", particulars, reached_images(rows, bottom))
    publish("far_modes", particulars, [{"settings": n, "weight": w} for n, w in shares.items()])
    for row in taken:
        print(row)
    picture(images, drawn, reached, labels)


if __name__ == "__main__":
    main()
