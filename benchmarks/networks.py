"""Trained networks and few evaluations: the default against published samplers, each on the grid
that benchmarks/peer_grids.py chose for it on other networks.

Networks are trained here: MLPs near random curves in the plane and near a random surface in 32
dimensions, laws drawn after all choices, U-Nets on digits and on Fashion-MNIST with half of the
pixels in each direction, and one of diffusers on digits. They predict the noise, the velocity or
the flow. The error of a sample is the root mean square of its coordinates' difference to the flow
of the same network from the same x_T, solved to 1e-6. Samples are left out whose flow ends more
than ten times the median distance from the mean of the data, and more than ten standard deviations:
under strong guidance networks diverge from some x_T, and one of a thousand would decide the mean. A
row has the number of samples that are left out, the mean error of the default, that of the best of
the eight published samplers, the ratio of the means and that of the medians; the ratio in
hindsight, to the best of all of them on all four grids; and the error of the default after
`fit_sampler`, with 512 samples of other seeds (1,024 of curves under guidance; 48 of images with up
to 10 steps and 24 with more), and its ratios to the best of the eight, of means and of medians.
With labels also under guidance of 3 and 7.5, of garments and of digits under sub-VP 3. For images
Frechet distances of all samplers in the features of a classifier, less that of the solved flow,
with bootstrapped standard errors, without guidance and with 3; of the fitted ones up to 20 steps.

`python benchmarks/networks.py [--quick] [--names curve surface digits garments] [--distances]`;
about six hours on one core, all but the images an hour and a quarter; on two cores three in two
processes, each with its part of the names. Fashion-MNIST is the package dataset-fashion-mnist of
Debian.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from _bench import PUBLISHED, RESULTS, environment, publish, save
from matplotlib.figure import Figure
from torch import Tensor

import sdekit_diffusion as sd
from sdekit import DEIS, DPMSolver, UniPC
from sdekit_diffusion.metrics import classifier_features, frechet

SEED = 16
SEED_DIGITS = 17
SEED_IMAGES = 18  # of the other images
BUDGETS = (5, 6, 8, 10, 15, 20, 50)
SAMPLES = 1000
IMAGES_COMPARED = 80  # one by one
FITTED = 512  # samples of a fit
FITTED_CURVES = 1024  # under guidance, where errors of a few samples are far larger than others
FITTED_IMAGES = {48: (5, 6, 8, 10), 24: (15, 20, 50)}  # and their numbers of steps
IMAGES = 500  # for Frechet distances
MOST_FITTED = 20  # steps of a fitted sampler in these comparisons
MOST_GUIDANCE = 3.0  # of a model in them
BOOTSTRAPS = 100
GUIDANCE = (3.0, 7.5)
GRIDS: Mapping[str, sd.AbstractGrid] = {
    "log-SNR": sd.UniformInLogSNR(),
    "quadratic": sd.Quadratic(),
    "Karras": sd.Karras(),
    "time": sd.UniformInTime(),
}
PEERS: Mapping[str, sd.OnClock] = {
    "DDIM": sd.METHODS["ddim"],  # pyright: ignore[reportAssignmentType]
    "UniPC-2": sd.OnClock(UniPC(2, lower_final=True)),
    "UniPC-3": sd.OnClock(UniPC(3, lower_final=True)),
    "UniPC-3, noise": sd.OnClock(UniPC(3, lower_final=True), integrand="noise"),
    "DPM-Solver++(2M)": sd.OnClock(DPMSolver(2, lower_final=True)),
    "DPM-Solver++(3M)": sd.OnClock(DPMSolver(3, lower_final=True)),
    "DPM-Solver-3": sd.OnClock(DPMSolver(3, lower_final=True), integrand="noise"),
    "DEIS-3": sd.OnClock(DEIS(3, lower_final=True), integrand="noise"),
}


@dataclass(frozen=True)
class Case:
    """A network: of which data, under which diffusion, and what it predicts."""

    data: str
    sde: str
    predicts: str
    conditioning: Literal["time", "log_snr"] = "time"

    @property
    def name(self) -> str:
        return f"{self.data}, {self.sde}, {self.predicts}"

    @property
    def seed(self) -> int:
        return {"digits": SEED_DIGITS}.get(self.data, SEED_IMAGES if self.of_images else SEED)

    @property
    def of_images(self) -> bool:
        return self.data in ("digits", "digits of diffusers", "garments")


CASES = (
    Case("curve 7", "vp", "noise"),
    Case("curve 7", "flow", "flow"),
    Case("curve 8", "cosine", "noise"),
    Case("curve 8", "flow", "flow"),
    Case("curve 9", "vp", "velocity", "log_snr"),
    Case("curves", "vp", "velocity", "log_snr"),
    Case("curves", "vp", "noise"),
    Case("surface", "vp", "noise", "log_snr"),
    Case("surface", "subvp", "velocity", "log_snr"),
    Case("digits", "vp", "noise"),
    Case("digits", "subvp", "velocity", "log_snr"),
    Case("digits", "flow", "flow"),
    Case("digits of diffusers", "ddpm", "noise"),
    Case("garments", "vp", "velocity", "log_snr"),
)


def curve(number: int, n: int = 20_000) -> Tensor:
    """Points near a closed curve in the plane: three harmonics with random coefficients."""
    generator = torch.Generator().manual_seed(100 * SEED + number)
    coefficients = torch.randn(3, 2, 2, generator=generator)
    angle = 2 * math.pi * torch.rand(n, 1, generator=generator)
    x = 0.04 * torch.randn(n, 2, generator=generator)
    for k in range(3):
        waves = torch.cat([torch.cos((k + 1) * angle), torch.sin((k + 1) * angle)], dim=1)
        x = x + waves @ coefficients[k] / (k + 1)
    return x


def surface(n: int = 20_000) -> Tensor:
    """Points near a surface of four dimensions in 32: two layers of random weights, and noise."""
    generator = torch.Generator().manual_seed(SEED + 1)
    first = torch.randn(4, 24, generator=generator)
    second = torch.randn(24, 32, generator=generator) / math.sqrt(24)
    z = torch.randn(n, 4, generator=generator)
    return torch.tanh(z @ first) @ second + 0.05 * torch.randn(n, 32, generator=generator)


def halved(x: Tensor) -> Tensor:
    """Images with half of the pixels in each direction."""
    return torch.nn.functional.avg_pool2d(x, 2)


def garments() -> tuple[Tensor, Tensor]:
    """The images of Fashion-MNIST, halved, in [-1, 1], and their classes."""
    source = sd.data.load("fashion-mnist")
    assert isinstance(source.train, Tensor)
    assert source.labels is not None
    return halved(source.scale.encode(source.train)), source.labels


def of_diffusers() -> sd.ScoreModel:
    """A U-Net of diffusers for digits, with attention at the lower resolution."""
    from diffusers import DDPMScheduler, UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        **blocks,
    )
    return sd.from_diffusers(net, DDPMScheduler().config)


def trained(case: Case, updates: float) -> sd.ScoreModel:
    """A model, its updates multiplied by a factor."""
    torch.manual_seed(case.seed)
    settings: dict[str, Any] = {"conditioning": case.conditioning}
    if case.of_images:
        recipe = sd.Recipe(steps=int(1000 * updates), batch_size=128, seed=case.seed)
        data: Any = garments() if case.data == "garments" else sd.data.load("digits")
        if case.data == "digits of diffusers":
            model = of_diffusers()
            data = data.scale.encode(data.train)
        else:
            shape = (1, 14, 14) if case.data == "garments" else (1, 8, 8)
            net = sd.nets.UNet(channels=1, width=32, classes=10)
            model = sd.ScoreModel(net, case.sde, case.predicts, shape=shape, **settings)
    elif case.data == "curves":
        data = (
            torch.cat([curve(i) for i in (13, 14, 15)]),
            torch.arange(3).repeat_interleave(20_000),
        )
        net = sd.nets.MLP(shape=(2,), width=96, classes=3)
        model = sd.ScoreModel(net, case.sde, case.predicts, shape=(2,), **settings)
        recipe = sd.Recipe(steps=int(3000 * updates), batch_size=256, seed=case.seed)
    else:
        data = surface() if case.data == "surface" else curve(int(case.data.split()[1]))
        shape = tuple(data.shape[1:])
        net = sd.nets.MLP(shape=shape, width=96)
        model = sd.ScoreModel(net, case.sde, case.predicts, shape=shape, **settings)
        recipe = sd.Recipe(steps=int(3000 * updates), batch_size=256, seed=case.seed)
    sd.fit(model, data, recipe, progress=False)
    channels_last = torch.nn.utils.convert_conv2d_weight_memory_format
    return channels_last(model, torch.channels_last) if case.of_images else model


def flows(case: Case) -> dict[float, str]:
    """The scales of guidance with which a network is measured, 1 for none, and their names."""
    scales = {"digits": (1.0, *GUIDANCE), "curves": GUIDANCE, "garments": (1.0, GUIDANCE[0])}
    of_case = scales.get(case.data, (1.0,))
    if case.sde == "subvp":
        of_case = of_case[:2]
    return {w: case.name if w == 1 else f"{case.name}, guidance {w:g}" for w in of_case}


def flow(model: sd.ScoreModel, case: Case, scale: float, n: int) -> sd.ScoreModel | sd.Guided:
    """The model of n samples: without labels, or under guidance with as many of each class."""
    if scale == 1:
        return model.unconditional() if model.null else model
    classes = 10 if case.of_images else 3
    return sd.Guided(model.given(label=torch.arange(n) % classes), scale)


def fit(model: sd.ScoreModel, case: Case, scale: float, budgets: tuple[int, ...]) -> None:
    """Fits samplers to a network under a scale of guidance."""
    others = {FITTED_CURVES if case.data == "curves" else FITTED: BUDGETS}
    for n, of_these in (FITTED_IMAGES if case.of_images else others).items():
        steps = [count for count in of_these if count in budgets]
        if steps:
            sd.fit_sampler(flow(model, case, scale, n), steps, n=n, seed=case.seed + 1)


def kind_of(model: sd.ScoreModel) -> str:
    """The kind of a network, by which the grids of others are chosen."""
    if isinstance(model.sde, sd.RectifiedFlow):
        return "straight paths"
    return "noise" if model.predicts_noise else "velocity"


def grids_of_peers(kind: str, guidance: float) -> dict[tuple[str, int], str]:
    """The grid of each published sampler by the number of evaluations, as benchmarks/peer_grids.py
    chose them.
    """
    rows = json.loads((PUBLISHED / "peer_grids.json").read_text())["rows"]
    return {
        (row["method"], row["evaluations"]): row["grid"]
        for row in rows
        if (row["networks"], row["guidance"]) == (kind, guidance)
    }


def near_data(model: sd.AbstractModel, exact: Tensor) -> Tensor:
    """Which exact solutions are not far from the data: at most ten times the median distance from
    the mean, or ten standard deviations.
    """
    assert model.data_std is not None
    distance = (exact - model.data_mean).double().square().flatten(1).mean(dim=1).sqrt()
    return distance <= 10 * distance.median().clamp(min=model.data_std)


def errors(x: Tensor, exact: Tensor, near: Tensor | slice = slice(None)) -> tuple[float, float]:
    """Mean and median over the samples that are not left out."""
    each = (x - exact)[near].double().square().flatten(1).mean(dim=1).sqrt()
    return float(each.mean()), float(each.median())


def compared(
    name: str,
    model: sd.AbstractModel,
    grids: Mapping[tuple[str, int], str],
    budgets: tuple[int, ...],
    n: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each number of evaluations; the others are on these grids, and in hindsight on all.
    The samplers fitted to the network before are those of the column "fitted".
    """

    def drawn(steps: int | None, method: Any, grid: Any = None) -> Tensor:
        return sd.sample(model, n, steps=steps, method=method, grid=grid, seed=seed)

    exact = drawn(None, sd.AdaptiveFlow(1e-6, 1e-6))
    near = near_data(model, exact)
    rows = []
    for steps in budgets:
        found = {
            (peer, grid): errors(drawn(steps, method, GRIDS[grid]), exact, near)
            for peer, method in PEERS.items()
            for grid in GRIDS
        }
        peers = {peer: found[peer, grids[peer, steps]] for peer in PEERS}
        mean, median = errors(drawn(steps, "default", "focused"), exact, near)
        fitted, median_fitted = errors(drawn(steps, "default"), exact, near)
        best = min(peers, key=lambda peer: peers[peer][0])
        best_median = min(those[1] for those in peers.values())
        row = {
            "network": name,
            "evaluations": steps,
            "left out": int((~near).sum()),
            "default": mean,
            "best peer": peers[best][0],
            "its name": f"{best}, {grids[best, steps]}",
            "ratio": mean / peers[best][0],
            "ratio of medians": median / best_median,
            "ratio in hindsight": mean / min(those[0] for those in found.values()),
            "fitted": fitted,
            "ratio fitted": fitted / peers[best][0],
            "ratio of medians fitted": median_fitted / best_median,
            "peers": {f"{peer}, {grid}": those[0] for (peer, grid), those in found.items()},
        }
        rows.append(row)
        show(row)
    return rows


def show(row: Mapping[str, Any]) -> None:
    """Prints a row of `compared`."""
    print(
        f"{row['network']:40s} {row['evaluations']:3d} evaluations: {row['default']:.4f}, best "
        f"peer {row['best peer']:.4f} ({row['its name']}), ratio {row['ratio']:.2f}, of medians "
        f"{row['ratio of medians']:.2f}, in hindsight {row['ratio in hindsight']:.2f}, fitted "
        f"{row['ratio fitted']:.2f}, left out {row['left out']}",
        flush=True,
    )


def reference(case: Case) -> tuple[Tensor, Tensor]:
    """At most 2,000 training images in [0, 1], and their classes."""
    source = sd.data.load("fashion-mnist" if case.data == "garments" else "digits")
    x, labels = source.reference(2000)
    assert labels is not None
    x = source.scale.encode(x)
    return (halved(x) if case.data == "garments" else x).double() / 2 + 0.5, labels


def distances(
    name: str,
    model: sd.AbstractModel,
    grids: Mapping[tuple[str, int], str],
    budgets: tuple[int, ...],
    case: Case,
) -> list[dict[str, Any]]:
    """Frechet distances to training images, less that of the solved flow, of all samplers; a model
    with labels draws as many of each class. The fitted one has up to 20 steps.
    """
    known, labels = reference(case)
    features = classifier_features(known, labels)
    aim = features(known)
    rng = np.random.default_rng(case.seed)
    picks = [np.arange(IMAGES), *(rng.integers(IMAGES, size=IMAGES) for _ in range(BOOTSTRAPS))]

    def drawn(steps: int | None, method: Any, grid: Any = None) -> Tensor:
        return sd.sample(model, IMAGES, method=method, steps=steps, grid=grid, seed=case.seed)

    def distances_of(x: Tensor) -> np.ndarray:
        """That of all samples, and those of the bootstrap."""
        points = features(x.double() / 2 + 0.5)
        return np.array([frechet(points[pick], aim) for pick in picks])

    exact = drawn(None, sd.AdaptiveFlow(1e-5, 1e-5))
    of_flow = distances_of(exact)
    rows = []
    for steps in budgets:
        sets = {"default": drawn(steps, "default", "focused")}
        if steps <= MOST_FITTED:
            sets["fitted"] = drawn(steps, "default")
        ours = list(sets)[-1]
        for peer, method in PEERS.items():
            sets[peer] = drawn(steps, method, GRIDS[grids[peer, steps]])
        excess = {method: distances_of(x) - of_flow for method, x in sets.items()}
        for method, each in excess.items():
            gain = excess[ours] - each
            row = {"network": name, "method": method, "evaluations": steps}
            row |= {"error": errors(sets[method], exact)[0], "excess": each[0]}
            row |= {"stderr": float(np.std(each[1:], ddof=1))}
            rows.append(
                row | {"ours less it": gain[0], "its stderr": float(np.std(gain[1:], ddof=1))}
            )
        figures = "; ".join(
            f"{row['method']} {row['excess']:.3f} +- {row['stderr']:.3f}"
            for row in rows[-len(sets) :]
        )
        print(f"{name}, {steps}: Frechet distance above that of the flow: {figures}", flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Writes networks.png: the ratios by the number of evaluations."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        axes.plot(
            [row["evaluations"] for row in own], [row["ratio"] for row in own], "o-", label=name
        )
    axes.axhline(1, color="k", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="error over the best peer's")
    axes.set_xticks(BUDGETS, [str(n) for n in BUDGETS])
    axes.legend(frameon=False, fontsize=7, ncols=2)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "networks.png", dpi=120)


def publish_case(name: str, result: dict[str, Any]) -> None:
    """Ratios of a network alone, and under guidance, those of the fitted sampler, and distances."""
    if images := [row for row in result["distances"] if row["network"].startswith(name)]:
        publish("networks_distances", result["environment"], images, part=name)
    own = [row for row in result["rows"] if row["network"].startswith(name)]
    if not own:
        return
    ratios = ("ratio", "ratio of medians", "ratio in hindsight")
    keys = ("network", "evaluations", "left out", *ratios, "default", "best peer", "its name")
    rows = [{key: row[key] for key in keys} for row in own]
    for table, under_guidance in (("networks", False), ("networks_guided", True)):
        if here := [row for row in rows if ("guidance" in row["network"]) is under_guidance]:
            publish(table, result["environment"], here, part=name)
    fitted = [
        {"network": row["network"], "evaluations": row["evaluations"]}
        | {"ratio": row["ratio fitted"], "over the default": row["fitted"] / row["default"]}
        | {"ratio of medians": row["ratio of medians fitted"]}
        for row in own
    ]
    publish("networks_fitted", result["environment"], fitted, part=name)


def measure(
    case: Case,
    model: sd.ScoreModel,
    budgets: tuple[int, ...],
    result: dict[str, Any],
    *,
    alone: bool,
) -> None:
    """Adds the rows of a network: errors, and for images distances, or these alone."""
    n = IMAGES_COMPARED if case.of_images else SAMPLES
    for scale, name in flows(case).items():
        if alone and scale > MOST_GUIDANCE:
            continue
        grids = grids_of_peers(kind_of(model), scale)
        fitted = tuple(few for few in budgets if few <= MOST_FITTED) if alone else budgets
        fit(model, case, scale, fitted)
        if not alone:
            one = flow(model, case, scale, n)
            result["rows"] += compared(name, one, grids, budgets, n, case.seed)
        if case.of_images and scale <= MOST_GUIDANCE:
            one = flow(model, case, scale, IMAGES)
            result["distances"] += distances(name, one, grids, budgets, case)


def main() -> None:
    """Trains, fits, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the updates, few budgets")
    parser.add_argument(
        "--names", nargs="*", default=(), help='their beginnings, such as "digits" or "digits, vp"'
    )
    parser.add_argument("--distances", action="store_true", help="Frechet distances alone")
    arguments = parser.parse_args()
    budgets = (5, 10) if arguments.quick else BUDGETS
    settings = {"dtype": "float32", "seed": SEED, "seed of digits": SEED_DIGITS}
    settings["seed of other images"] = SEED_IMAGES
    result: dict[str, Any] = {"environment": environment(**settings), "rows": [], "distances": []}
    for case in CASES:
        if arguments.names and not case.name.startswith(tuple(arguments.names)):
            continue
        if arguments.distances and not case.of_images:
            continue
        start = time.process_time()
        model = trained(case, 0.1 if arguments.quick else 1.0)
        measure(case, model, budgets, result, alone=arguments.distances)
        minutes = (time.process_time() - start) / 60
        print(f"{case.name}: {minutes:.0f} minutes of one core", flush=True)
        result["environment"]["core minutes"] = round(minutes)
        if not arguments.distances:
            draw(result["rows"])
        save("networks_distances" if arguments.distances else "networks", result)
        if not arguments.quick:
            publish_case(case.name, result)


if __name__ == "__main__":
    main()
