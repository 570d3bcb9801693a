"""Digits by class: samples judged by a classifier that saw none of them, the worth of labels in
bits per dimension, and classification by Bayes' rule.

A U-Net with labels is trained on scikit-learn's 1,297 training images for `--minutes`. Then:
samples of each class without and with guidance, and the share on which a classifier (scikit-learn's
support vector machine, trained on the real training images) agrees with the label, beside its
accuracy on the 500 held-out images; bits per dimension of these with their labels and without, of
the same model; and p(c | x) of each, with the share of right classes and a calibration curve.

With --garments Fashion-MNIST instead: the Fréchet distance of each class in the features of a
classifier, beside those of held-out images, of Gaussians and of noise. `python
benchmarks/conditional.py [--minutes 5] [--two-modes | --garments]`
"""

import argparse
import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from torch import Tensor

import sdekit_diffusion as sd
from sdekit import Hutchinson
from sdekit_diffusion.metrics import frechet, image_features

SEED = 0
PER_CLASS = 50
GARMENTS = 200  # of each class
SCALES = (0.0, 1.0, 2.0, 3.0)
BINS = 5


def two_modes(n: int = 10_000) -> dict[str, float]:
    """Two labelled modes 6 standard deviations apart: the share of samples of each class that are
    in its mode.
    """
    label = torch.arange(2000) % 2
    generator = torch.Generator().manual_seed(SEED)
    x = 3.0 * (2 * label - 1)[:, None] + torch.randn(2000, 2, generator=generator)
    torch.manual_seed(SEED)
    net = sd.nets.MLP(shape=(2,), width=64, classes=2)
    model = sd.ScoreModel(net, "vp", "velocity", shape=(2,), conditioning="log_snr")
    sd.fit(model, (x, label), sd.Recipe(steps=1500, batch_size=128), progress=False)
    wanted = torch.arange(n) % 2
    samples = sd.sample(model.given(label=wanted), n, steps=20, seed=SEED)
    right = (samples.mean(dim=1) > 0) == (wanted == 1)
    floor = 0.5 * math.erfc(3.0)  # of exact samples on the wrong side: their mean has variance 1/2
    return {"share": float(right.double().mean()), "exact": 1 - floor}


def garments(minutes: float) -> dict[str, Any]:
    """Fashion-MNIST by class: distances of samples of each class to training images of it, with
    those of three other sets of as many images.
    """
    data = sd.data.load("fashion-mnist")
    torch.manual_seed(SEED)
    net = sd.nets.UNet(
        channels=1, width=32, multipliers=(1, 2, 2), attention=(False, False, True), classes=10
    )
    model = sd.ScoreModel(net, "subvp", "velocity", shape=(1, 28, 28), conditioning="log_snr")
    recipe = sd.Recipe(steps=int(290 * minutes), batch_size=64, lr=3e-3, seed=SEED)
    sd.fit(model, data, recipe, progress=True)
    known, labels = data.reference(10_000)
    assert labels is not None
    assert data.test_labels is not None
    features = image_features(known.double() / 255, labels)
    held_out = data.test.double() / 255
    wanted = torch.arange(10).repeat_interleave(GARMENTS)
    sets: dict[str, Callable[[int], Tensor]] = {
        "held-out": lambda k: held_out[data.test_labels == k][:GARMENTS],
        "Gaussians": lambda k: gaussian_images(known[labels == k].double() / 255),
        "noise": lambda k: torch.rand(GARMENTS, 1, 28, 28, dtype=torch.float64),
    }
    agreement: dict[str, float] = {}
    pictures = {}
    for scale in (1.0, 2.0):
        guided = sd.Guided(model.given(label=wanted), scale)
        x = sd.sample(guided, len(wanted), steps=25, seed=SEED, batch_size=200)
        levels = model.scale.decode(x)
        pictures[scale] = levels
        shades = levels.double() / 255
        sets[f"w = {scale:g}"] = lambda k, shades=shades: shades[wanted == k]
        agreement[f"{scale:g}"] = features.accuracy(shades, wanted)
    draw(pictures, GARMENTS, "garments")
    distances = {
        name: [
            frechet(features(images_of(k)), features(known[labels == k].double() / 255))
            for k in range(10)
        ]
        for name, images_of in sets.items()
    }
    return {
        "updates": recipe.steps,
        "classifier on held-out images": features.accuracy(held_out, data.test_labels),
        "agreement": agreement,
        "distance": distances,
    }


def by_garment(distances: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each set of images and class, with the distance; and the mean over the classes."""
    return [
        {"set": name, "class": title, "distance": value}
        for name, values in distances.items()
        for title, value in zip(
            [*map(str, range(len(values))), "mean"], [*values, fmean(values)], strict=True
        )
    ]


def gaussian_images(x: Tensor) -> Tensor:
    """Images from a Gaussian with the mean and the covariance of others, cut to 0 to 1."""
    weights = torch.randn(GARMENTS, len(x), dtype=x.dtype) / math.sqrt(len(x) - 1)
    centred = (x - x.mean(dim=0)).flatten(1)
    return (x.mean(dim=0) + (weights @ centred).reshape(-1, *x.shape[1:])).clamp(0, 1)


def trained(minutes: float) -> tuple[sd.ScoreModel, Any]:
    """A model of digits with labels, and its data."""
    data = sd.data.load("digits")
    torch.manual_seed(SEED)
    net = sd.nets.UNet(channels=1, width=32, classes=10)
    model = sd.ScoreModel(net, "subvp", "velocity", shape=(1, 8, 8), conditioning="log_snr")
    # The default was chosen for fewer than 40 epochs; these are 400.
    recipe = sd.Recipe(steps=int(900 * minutes), batch_size=128, weighting="plain", seed=SEED)
    sd.fit(model, data, recipe, progress=True)
    return model, data


def by_class(model: sd.ScoreModel, data: Any) -> dict[str, Any]:
    """The share of samples on which a classifier agrees with the label, for each scale."""
    from sklearn.svm import SVC

    flat = data.train.flatten(1).numpy() / 16
    judge = SVC(gamma="scale", C=10).fit(flat, data.labels.numpy())
    held_out = data.test.flatten(1).numpy() / 16
    accuracy = float((judge.predict(held_out) == data.test_labels.numpy()).mean())
    label = torch.arange(10).repeat_interleave(PER_CLASS)
    agreement = {}
    pictures = {}
    for scale in SCALES:
        guided = sd.Guided(model.given(label=label), scale)
        x = sd.sample(guided, len(label), steps=20, seed=SEED)
        levels = model.scale.decode(x)
        found = torch.from_numpy(judge.predict(levels.flatten(1).numpy() / 16))
        agreement[f"{scale:g}"] = float((found == label).double().mean())
        pictures[scale] = levels
    draw(pictures, PER_CLASS, "conditional")
    return {"classifier on held-out images": accuracy, "agreement": agreement}


def code_lengths(model: sd.ScoreModel, data: Any) -> dict[str, float]:
    """Bits per dimension of the held-out images with labels and without, and the mean difference
    with its standard error; the same dequantisation and probes for both.
    """
    settings: dict[str, Any] = {
        "low": model.scale.low,
        "high": model.scale.high,
        "levels": model.scale.levels,
        "draws": 2,
        "trace": Hutchinson(probes=8),
        "batch_size": 250,
    }
    labelled = sd.bits_per_dim(model.given(label=data.test_labels), data.test, **settings)
    plain = sd.bits_per_dim(model.unconditional(), data.test, **settings)
    difference = (plain.value - labelled.value).double()
    return {
        "with labels": labelled.mean,
        "with labels, standard error": labelled.mean_stderr,
        "without": plain.mean,
        "without, standard error": plain.mean_stderr,
        "difference": float(difference.mean()),
        "difference, standard error": float(difference.std() / math.sqrt(len(difference))),
    }


def bayes(model: sd.ScoreModel, data: Any) -> dict[str, Any]:
    """The share of held-out images whose class is right, and how often it is, by p(c | x)."""
    x = model.scale.encode(data.test, torch.full(data.test.shape, 0.5, dtype=torch.float64))
    models = [model.given(label=k) for k in range(10)]
    found = sd.classify(models, x.to(torch.float32), draws=4, levels=16, batch_size=250)
    right = found.label == data.test_labels
    p = found.probability.max(dim=1).values
    order = p.argsort()
    curve = [
        {
            "probability": float(p[part].mean()),
            "right": float(right[part].double().mean()),
            "stderr": float(right[part].double().std() / math.sqrt(len(part))),
        }
        for part in order.tensor_split(BINS)
    ]
    return {
        "right": float(right.double().mean()),
        "mean probability": float(p.mean()),
        "mean standard error": float(found.stderr.max(dim=1).values.mean()),
        "evaluations per class": 2 * 4 * 16,
        "curve": [{"images": "held-out digits"} | one for one in curve],
    }


def draw(pictures: dict[float, Tensor], per_class: int, name: str) -> None:
    """One panel per scale: ten samples of each class, a class in a row."""
    figure = Figure(figsize=(3.2 * len(pictures), 3.5), layout="constrained")
    for axes, (scale, levels) in zip(
        figure.subplots(1, len(pictures)), pictures.items(), strict=True
    ):
        size = levels.shape[-1]
        rows = levels.reshape(10, per_class, size, size)[:, :10]
        padded = torch.nn.functional.pad(rows, (1, 1, 1, 1))
        grid = padded.permute(0, 2, 1, 3).reshape(10 * (size + 2), 10 * (size + 2))
        axes.imshow(grid.numpy(), cmap="gray_r", vmin=0, vmax=16 if size == 8 else 255)
        axes.set_title({0.0: "w = 0: unconditional"}.get(scale, f"w = {scale:g}"), fontsize=10)
        axes.set_axis_off()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png", dpi=130)


def main() -> None:
    """Trains, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, about")
    parser.add_argument("--two-modes", action="store_true", help="the plane only")
    parser.add_argument("--garments", action="store_true", help="Fashion-MNIST only")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(dtype="float32", seed=SEED)}
    if arguments.garments:
        result["garments"] = garments(arguments.minutes)
        print(result["garments"])
        publish("garments", result["environment"], by_garment(result["garments"]["distance"]))
        save("garments", result)
        return
    result["two modes"] = two_modes()
    print(result["two modes"])
    if not arguments.two_modes:
        model, data = trained(arguments.minutes)
        for name, measure in (("by class", by_class), ("bits/dim", code_lengths), ("bayes", bayes)):
            result[name] = measure(model, data)
            print(name, result[name], flush=True)
        agreement = result["by class"]["agreement"]
        rows = [{"w": float(w), "share with their label": share} for w, share in agreement.items()]
        publish("conditional", result["environment"], rows)
        publish("classified", result["environment"], result["bayes"]["curve"])
    save("conditional", result)


if __name__ == "__main__":
    main()
