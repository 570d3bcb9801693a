"""A small comparison of DDPM, NCSN, NCSNv2 and the VE, VP and sub-VP SDEs on scikit-learn's digits.

Six networks of 144,000 to 191,000 parameters and 7.3 to 7.8 MFLOP an image, U-Nets for DDPM and the
SDEs and RefineNets for NCSN and NCSNv2, get as many updates on as many images: an equal number of
operations, which is the same on every machine, as equal seconds are not. NCSN, NCSNv2 and VE learn
data in [0, 1], as published, the others in [-1, 1]. Distances are Fréchet's between features of a
classifier, of samples in the 17 levels of the data and of all training images; each is the mean
over three sets of samples with its standard error, which does not hold the chance of the training.
The floor is what as many real images have. Then NCSNv2's smallest level is varied, to see what
denoising does. `python benchmarks/ncsn.py [training seed]`
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sdekit import Hutchinson, geometric
from sdekit_diffusion import (
    DDPM,
    NCSN,
    VESDE,
    VPSDE,
    NCSNSettings,
    Recipe,
    ScoreModel,
    SubVPSDE,
    bits_per_dim,
    data,
    fit,
    linear_betas,
    ncsnv2_settings,
    nets,
    sample,
    variational_bound,
)
from sdekit_diffusion.data import Scale
from sdekit_diffusion.metrics import classifier_features, frechet, sampling_floor

SEEDS = (1, 2, 3)
SAMPLES = 250
SHAPE = (1, 8, 8)
PICTURED = 64
UPDATES = 800
BATCH = 64
LR = 4e-3
LIKELIHOODS = 100
PROBES = 2
NOISE = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
DIGITS = data.load("digits")
TRAIN = DIGITS.reference(2000)[0]
LEVELS = DIGITS.scale.levels or 0
UNIT = Scale.quantised(LEVELS, low=0.0, high=1.0)
V1 = NCSNSettings(tuple(geometric(1.0, 0.01, 9).tolist()), 100, 2e-5, "ncsn")
V2 = ncsnv2_settings(UNIT.encode(TRAIN))
REFINE: dict[str, Any] = {
    "channels": 1,
    "width": 12,
    "multipliers": (1, 2, 2),
    "dilations": (1, 1, 2),
}
# As many times shorter than Ho et al.'s as its betas are larger.
CHAIN = DDPM(linear_betas(250, 4e-4, 0.08))
SMALLEST = (0.04, 0.15)  # the last is 2.5 bins, as 0.01 is where there are 256


def deviation(scale: Scale) -> float:
    return float(scale.encode(TRAIN).square().mean().sqrt())


def models() -> dict[str, tuple[ScoreModel, Scale]]:
    """Networks to be trained, and the scale of their data."""

    def unet(sde: Any, scale: Scale, **conventions: Any) -> tuple[ScoreModel, Scale]:
        return ScoreModel(
            nets.UNet(1, 24), sde, shape=SHAPE, data_std=deviation(scale), **conventions
        ), scale

    own: dict[str, Any] = {"shape": SHAPE, "data_std": deviation(UNIT)}
    continuous: dict[str, Any] = {"predicts": "velocity", "conditioning": "log_snr"}
    return {
        "DDPM": unet(CHAIN, DIGITS.scale),
        "NCSN": (ScoreModel(nets.NCSN(**REFINE, levels=10), V1.sde, "score", **own), UNIT),
        "NCSNv2": (ScoreModel(nets.NCSNv2(**REFINE), V2.sde, **own), UNIT),
        "VE": unet(VESDE(0.01, V2.sigmas[0]), UNIT, **continuous),
        "VP": unet(VPSDE(), DIGITS.scale, **continuous),
        "sub-VP": unet(SubVPSDE(), DIGITS.scale, **continuous),
    }


@dataclass(frozen=True)
class Judge:
    """Distances of sets of levels `(n, 1, 8, 8)` to the training images, in the features of a
    classifier of these.
    """

    @cached_property
    def features(self) -> Callable[[Any], Any]:
        assert DIGITS.labels is not None
        return classifier_features(
            TRAIN.flatten(1).double().numpy() / LEVELS, DIGITS.labels.numpy(), seed=0
        )

    @cached_property
    def known(self) -> NDArray[np.float64]:
        return self.of(TRAIN)

    def of(self, levels: Tensor) -> NDArray[np.float64]:
        return self.features(levels.flatten(1).double().numpy() / LEVELS)

    def distance(self, levels: Tensor) -> float:
        return frechet(self.of(levels), self.known)

    def anchors(self) -> dict[str, float]:
        """Held-out images, disjoint sets of all images, images of noise, and training images with
        noise of a tenth.
        """
        pool = self.of(torch.cat([TRAIN, DIGITS.test]))
        floor = sampling_floor(frechet, pool, SAMPLES, against=len(TRAIN))
        draw = torch.Generator().manual_seed(0)
        noisy = UNIT.encode(TRAIN[:SAMPLES])
        noisy = UNIT.decode(noisy + 0.1 * torch.randn(noisy.shape, generator=draw))
        noise = torch.randint(LEVELS, noisy.shape, generator=draw)
        found = {
            "held out": self.distance(DIGITS.test[:SAMPLES]),
            "floor": float(floor.mean),
            "its deviation": float(floor.std),
        }
        return found | {"noisy": self.distance(noisy), "noise": self.distance(noise)}


def trained(seed: int) -> tuple[dict[str, tuple[ScoreModel, Scale]], list[dict[str, Any]]]:
    """The models, and what their networks and their training cost."""
    torch.manual_seed(seed)
    made = models()
    rows = []
    for name, (model, scale) in made.items():
        discrete = name in ("DDPM", "NCSN", "NCSNv2")
        recipe = Recipe(
            steps=UPDATES,
            batch_size=BATCH,
            lr=LR,
            weighting="plain",
            discrete=discrete,
            seed=seed,
        )
        begun = time.process_time()
        wall = time.perf_counter()
        fit(model, TRAIN, recipe, transform=scale.encode, progress=False)
        row = {
            "model": name,
            "CPU seconds": time.process_time() - begun,
            "seconds": time.perf_counter() - wall,
        }
        rows.append(row | size(model))
        print(rows[-1], flush=True)
    return made, rows


def size(model: ScoreModel) -> dict[str, float]:
    """Parameters, MFLOP of an image, and milliseconds of CPU an image in batches of 500, the least
    of three.
    """
    x = torch.randn(500, *SHAPE)
    times = []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(x[:1], 0.5)
        for _ in range(3):
            begun = time.process_time()
            model(x, 0.5)
            times.append(time.process_time() - begun)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": parameters,
        "MFLOP": counter.get_total_flops() / 1e6,
        "ms": 1e3 * min(times) / len(x),
    }


def errors(made: dict[str, tuple[ScoreModel, Scale]]) -> list[dict[str, float]]:
    """E |eps_hat - eps|^2 / d on held-out images at noise levels in [0, 1], and that of the best
    linear denoiser.
    """
    draw = torch.Generator().manual_seed(0)
    rows = []
    u = torch.rand(DIGITS.test.shape, generator=draw)
    eps = torch.randn(DIGITS.test.shape, generator=draw)
    variance = float(UNIT.encode(DIGITS.test, u).var())
    for sigma in NOISE:
        row = {"sigma": sigma, "linear": variance / (variance + sigma**2)}
        for name, (model, scale) in made.items():
            x = scale.encode(DIGITS.test, u)
            noise = sigma * (scale.high - scale.low)
            sde = VESDE(0.1 * noise, 10 * noise, exact=False)
            with torch.no_grad():
                found = model.denoise(0.5, x + noise * eps, sde)
            row[name] = float(((found - x) / noise).square().mean())
        print({key: round(value, 4) for key, value in row.items()}, flush=True)
        rows.append(row)
    return rows


def drawn(
    judge: Judge,
    model: ScoreModel,
    scale: Scale,
    *,
    uniform: bool = False,
    **settings: Any,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Distances of samples as they come and denoised, D(x) at the end; and images of the first set
    of either.
    """
    row: dict[str, Any] = {"plain": [], "denoised": []}
    images: dict[str, Tensor] = {}
    begun = time.process_time()
    for seed in SEEDS:
        draw = torch.Generator().manual_seed(seed)
        start: dict[str, Any] = (
            {"x_T": torch.rand(SAMPLES, *SHAPE, generator=draw)} if uniform else {"n": SAMPLES}
        )
        solution = sample(model, **start, seed=seed, return_solution=True, **settings)
        with torch.no_grad():
            denoised = model.denoise(float(solution.ts[-1]), solution.x, settings.get("sde"))
        row["evaluations"] = float(solution.evaluations.double().mean())
        for key, x in {"plain": solution.x, "denoised": denoised}.items():
            levels = scale.decode(x)
            row[key].append(judge.distance(levels))
            images.setdefault(key, levels[:PICTURED])
    for key in ("plain", "denoised"):
        values = np.asarray(row[key])
        row[key] = {
            "distance": values.mean(),
            "stderr": values.std(ddof=1) / len(values) ** 0.5,
            "sets": row[key],
        }
    return row | {"CPU seconds": time.process_time() - begun}, images


def annealed(settings: NCSNSettings) -> dict[str, Any]:
    return {"sde": settings.sde, "method": settings.method}


def samplings() -> dict[str, tuple[str, dict[str, Any]]]:
    """Each row of the table: its model, and how it is sampled. DDPM's last step, without noise, is
    D(x_1): denoising.
    """
    first = float(CHAIN.sigma(float(CHAIN.levels[0])) / CHAIN.alpha(float(CHAIN.levels[0])))
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "DDPM": (
            "DDPM",
            {"method": "ddpm", "steps": len(CHAIN.betas) - 1, "grid": "native", "end": first},
        ),
        "NCSN": ("NCSN", annealed(V1)),
        "NCSN's network": ("NCSN", {}),
        "NCSNv2": ("NCSNv2", annealed(V2)),
        "NCSNv2's network": ("NCSNv2", {}),
    }
    for name in ("VE", "VP", "sub-VP"):
        rows |= {name: (name, {}), f"{name}, pc": (name, {"method": "pc", "steps": 100})}
    rows["VE, annealed as NCSNv2"] = ("VE", annealed(V2))
    return rows


def likelihood(model: ScoreModel, scale: Scale) -> dict[str, Any]:
    """Bits per dimension of held-out images: of the flow, or for chains of levels their bound from
    half a bin on.
    """
    x = DIGITS.test[:LIKELIHOODS]
    sde = model.sde
    begun = time.process_time()
    given: dict[str, Any] = {"low": scale.low, "high": scale.high, "levels": LEVELS}
    if isinstance(sde, (DDPM, NCSN)):
        bin_width = (scale.high - scale.low) / LEVELS
        times = sde.levels[torch.as_tensor(sde.sigma(sde.levels)) > 0.5 * bin_width]
        bounds = [
            variational_bound(model, x, times=times, variance=v, **given)
            for v in ("smaller", "larger")
        ]
        found = min(bounds, key=lambda bound: bound.mean)
        kind = f"bound, {len(times)} levels"
    else:
        found = bits_per_dim(model, x, trace=Hutchinson(PROBES), **given)
        kind = "flow"
    row = {"kind": kind, "mean": found.mean, "stderr": found.mean_stderr, "n": len(x)}
    return row | {"CPU seconds": time.process_time() - begun}


def picture(
    rows: dict[str, dict[str, Any]], images: dict[str, dict[str, Tensor]], anchors: dict[str, float]
) -> Figure:
    """Real digits and samples of each row, denoised, and of NCSN and NCSNv2 as they come."""
    panels = {"held-out digits": DIGITS.test[:PICTURED]}
    for name, row in rows.items():
        panels[f"{name}, denoised: {row['denoised']['distance']:.2f}"] = images[name]["denoised"]
        if name in ("NCSN", "NCSNv2"):
            panels[f"{name}: {row['plain']['distance']:.2f}"] = images[name]["plain"]
    figure = Figure(figsize=(12, 7.6), layout="constrained")
    figure.suptitle(
        f"Fréchet distance of features; real images {anchors['floor']:.2f}, noise "
        f"{anchors['noise']:.0f}",
        fontsize=10,
    )
    for place, (title, levels) in zip(
        figure.subplots(3, -(-len(panels) // 3)).flat, panels.items(), strict=False
    ):
        framed = torch.nn.functional.pad(levels[:, 0], (1, 1, 1, 1), value=LEVELS // 2)
        place.imshow(
            framed.reshape(8, 8, 10, 10).permute(0, 2, 1, 3).reshape(80, 80),
            cmap="gray",
            vmin=0,
            vmax=LEVELS - 1,
        )
        place.set_title(title, fontsize=8)
    for place in figure.axes:
        place.set_axis_off()
    return figure


def shown(name: str, row: dict[str, Any]) -> str:
    parts = [
        f"{key} {row[key]['distance']:8.3f} +- {row[key]['stderr']:.3f}"
        for key in ("plain", "denoised")
    ]
    return (
        f"{name:24s} {'  '.join(parts)}  evaluations {row['evaluations']:6.0f}  CPU "
        f"{row['CPU seconds']:5.0f} s"
    )


def within(figures: dict[str, Any], key: str) -> str:
    """A figure with its standard error."""
    return f"{figures[key]:.3f} ± {figures['stderr']:.3f}"


def publish_tables(result: dict[str, Any]) -> None:
    """Distances by network and sampler, and by the smallest noise level; errors of the noise."""
    distances = []
    for name, row in result["rows"].items():
        found = {key: within(row[key], "distance") for key in ("plain", "denoised")}
        bits = result["likelihood"].get(name)
        found["evaluations"] = round(row["evaluations"])
        found["bits/dim"] = f"{within(bits, 'mean')}, {bits['kind']}" if bits else ""
        distances.append({"samples": name, **found})
    levels = [
        {
            "sigma_L": least,
            "plain": within(row["plain"], "distance"),
            "denoised": within(row["denoised"], "distance"),
            "difference": row["plain"]["distance"] - row["denoised"]["distance"],
        }
        for least, row in result["smallest level"].items()
    ]
    publish("ncsn", result["environment"], distances)
    publish("ncsn_levels", result["environment"], levels)
    publish("ncsn_noise", result["environment"], result["errors"])


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    begun = time.perf_counter()
    cpu = time.process_time()
    result: dict[str, Any] = {
        "environment": environment(
            dtype="float32", seed=seed, load=os.getloadavg(), updates=UPDATES
        )
    }
    judge = Judge()
    result["anchors"] = anchors = judge.anchors()
    print(anchors)
    made, result["training"] = trained(seed)
    result["errors"] = errors(made)
    rows = {}
    images = {}
    smallest = {}
    for name, (model, settings) in samplings().items():
        rows[name], images[name] = drawn(judge, *made[model], uniform=name == "NCSN", **settings)
        print(shown(name, rows[name]), flush=True)
    for least in SMALLEST:
        settings = ncsnv2_settings(TRAIN[0].numel(), sigma_max=V2.sigmas[0], sigma_min=least)
        smallest[least], _ = drawn(judge, *made["NCSNv2"], **annealed(settings))
        print(shown(f"NCSNv2, sigma_L = {least}", smallest[least]), flush=True)
    result["likelihood"] = {}
    for name, (model, scale) in made.items():
        result["likelihood"][name] = likelihood(model, scale)
        print(name, result["likelihood"][name], flush=True)
    result |= {"rows": rows, "smallest level": smallest}
    result |= {"seconds": time.perf_counter() - begun, "CPU seconds": time.process_time() - cpu}
    print(f"{result['seconds']:.0f} s, {result['CPU seconds']:.0f} s of CPU")
    name = f"ncsn_{seed}" if seed else "ncsn"
    save(name, result)
    if not seed:
        publish_tables(result)
    picture(rows, images, anchors).savefig(RESULTS / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
