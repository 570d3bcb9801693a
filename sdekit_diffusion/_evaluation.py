"""What is measured of a run: distances of its samples beside their anchors, and held-out likelihood."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit import Exact, Hutchinson, Status
from sdekit_diffusion import data as datasets
from sdekit_diffusion._adaptive import AdaptiveFlow
from sdekit_diffusion._checkpoint import CheckpointError, load, read_config, versions
from sdekit_diffusion._diffusion import AbstractDiffusion
from sdekit_diffusion._likelihood import BitsPerDim, bits_per_dim, log_likelihood
from sdekit_diffusion._model import ScoreModel
from sdekit_diffusion._shards import digest
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.metrics import classifier_features, energy_distance, frechet, nearest, sliced_wasserstein

_DRAWS = 10  # sets over which a distance between data and data is averaged
_EXACT_UP_TO = 32  # dimensions: up to here the exact trace costs little more than probes

Array = NDArray[Any]


def opened(run: str | Path, device: torch.device | str = "cpu") -> tuple[ScoreModel, Dataset]:
    """The model of a run, and the scale of its data as a data set without samples.

    Raises:
        CheckpointError: when the folder is no checkpoint, a damaged one, or one without the scale of its data.
    """
    model, notes = load(run, device=device), read_config(run).get("notes")
    try:
        return model, Dataset(torch.empty(0), torch.empty(0), **notes["data"])  # pyright: ignore[reportOptionalSubscript]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{Path(run) / 'config.json'} does not say what data the model is for; give a folder that `sdekit-diffusion train` "
            "wrote"
        ) from error


def source_of(scale: Dataset, name: str | None = None) -> Dataset:
    """The data set of a run, or another of the same kind.

    Raises:
        ValueError: when it cannot be found, or is not of that kind.
    """
    source = datasets.load(scale.name if name is None else name)
    if (source.levels is None) != (scale.levels is None):
        kinds = ["continuous data" if levels is None else "images" for levels in (source.levels, scale.levels)]
        raise ValueError(f"{source.name} holds {kinds[0]} and the model is for {kinds[1]}; give it data like {scale.name}")
    return source


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Likelihoods of held-out samples and what is known of their error.

    Attributes:
        value: bits per dimension of images, nats of other data; `(n,)`.
        stderr: the standard error that probes and dequantisation leave in each; 0 for exact traces of data as they are.
        unit: "bits/dim" or "nats".
        parts: what the standard error of the mean is made of, see `BitsPerDim.parts`.
        probes: of each trace; 0 for exact traces.
        draws: of the dequantisation; 0 where there is none.
        evaluations: of the model, the mean over the samples.
        failed: how many samples the solve gave up.
    """

    value: Tensor
    stderr: Tensor
    unit: str
    parts: dict[str, float]
    probes: int
    draws: int
    evaluations: float
    failed: int

    def sentences(self) -> list[str]:
        """The mean with its standard error, and what that error is made of, for people."""
        found = self.numbers()
        notes = {"probes": f" ({self.probes} a trace)" if self.probes else " (traces are exact)"}
        notes |= {"data": ", dequantisation with it (1 draw)" if self.draws == 1 else ""}
        notes |= {"dequantisation": f" ({self.draws} draws)"}
        shares = {name: "unknown" if share != share else f"{share:.4f}" for name, share in self.parts.items()}
        made = [f"{name} {share}{notes[name]}" for name, share in shares.items()]
        said = [
            f"{found['mean']:.4f} ± {found['stderr']:.4f} {self.unit} (standard error, over {found['n']} held-out samples)",
            f"of that error: {', '.join(made)}; {self.evaluations:.0f} evaluations a sample",
        ]
        return said + ([f"{self.failed} samples were given up and are not in the mean"] if self.failed else [])

    def numbers(self) -> dict[str, Any]:
        """The mean, its standard error, what that is made of, and what they rest on."""
        n, known = len(self.value), self.value[~self.value.isnan()]
        return {
            "unit": self.unit,
            "mean": float(known.mean()),
            "stderr": float(known.std(correction=1)) / len(known) ** 0.5 if len(known) > 1 else float("nan"),
            "parts": self.parts,
            "probes": self.probes,
            "n": n,
            "draws": self.draws,
            "evaluations": self.evaluations,
            "failed": self.failed,
        }


def measured(
    model: ScoreModel,
    x: Tensor,
    scale: Dataset,
    *,
    probes: int = 8,
    draws: int = 1,
    sde: AbstractDiffusion | str | None = None,
    seed: int = 0,
    first: int = 0,
    tolerance: float = 1e-5,
    batch_size: int | None = None,
    progress: bool = False,
) -> BitsPerDim:
    """Bits per dimension of samples `(n, *shape)`, or nats of continuous data; see `bits_per_dim` and `log_likelihood`."""
    trace = Exact() if x[:1].numel() <= _EXACT_UP_TO else Hutchinson(probes, seed=seed)
    settings = {"sde": sde, "trace": trace, "method": AdaptiveFlow(tolerance, tolerance), "first": first}
    settings |= {"batch_size": batch_size, "progress": progress}
    x = x.to(model.place()[1])
    if scale.levels is None:
        found = log_likelihood(model, x, **settings)
        return BitsPerDim(found.value[None], found.stderr, found.evaluations, found.status, found.probes)
    return bits_per_dim(model, x, low=scale.low, high=scale.high, levels=scale.levels, draws=draws, seed=seed, **settings)


def summed(bits: BitsPerDim, scale: Dataset) -> HeldOut:
    """What `measured` returned, and what is known of its error."""
    unit, draws = ("nats", 0) if scale.levels is None else ("bits/dim", len(bits.draws))
    evaluations, done = float(bits.evaluations.double().mean()), bits.status == Status.DONE
    failed, parts = int((~done).sum()), replace(bits, draws=bits.draws[:, done], probe_stderr=bits.probe_stderr[done]).parts
    return HeldOut(bits.value.cpu(), bits.stderr.cpu(), unit, parts, bits.probes, draws, evaluations, failed)


def columns(bits: BitsPerDim) -> dict[str, Tensor]:
    """What is known of every sample, each with the samples first."""
    return {**vars(bits), "draws": bits.draws.T, "probes": torch.full_like(bits.status, bits.probes)}


def of_columns(parts: Iterable[Mapping[str, Array]]) -> BitsPerDim:
    """All samples of parts as `columns` made them."""
    names, parts = [field.name for field in fields(BitsPerDim)], list(parts)
    found = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in names}
    return BitsPerDim(**{**found, "draws": found["draws"].T.contiguous(), "probes": int(found["probes"][0])})


def held_out(
    model: ScoreModel,
    x: Tensor,
    scale: Dataset,
    *,
    probes: int = 8,
    draws: int = 1,
    sde: AbstractDiffusion | str | None = None,
    seed: int = 0,
    tolerance: float = 1e-5,
    batch_size: int = 100,
    progress: bool = True,
) -> HeldOut:
    """Likelihoods of samples `(n, *shape)`; arguments as of `measured`."""
    bits = measured(
        model, x, scale, probes=probes, draws=draws, sde=sde, seed=seed, tolerance=tolerance, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    return summed(bits, scale)


def premises(run: str | Path, model: ScoreModel) -> dict[str, str]:
    """What the numbers of a run depend on besides the settings: its model, the libraries, the kind of device."""
    others, known = ("files", "notes", "sha256", "versions"), versions()
    described = {name: value for name, value in read_config(run).items() if name not in others}
    found = {"model": digest(described, model.state_dict()), "device": model.place()[1].type}
    return found | {name: known[name] for name in ("sdekit", "torch")}


def labels_of(source: Dataset) -> tuple[Array, Array] | None:
    """The classes of training and test images of scikit-learn's digits, in whatever order they are; None for other data."""
    if source.name != "digits":
        return None
    from sklearn.datasets import load_digits

    known, classes = load_digits(return_X_y=True)
    table = {row.tobytes(): label for row, label in zip(known.astype(np.uint8), classes, strict=True)}
    train, test = ([table[row.tobytes()] for row in part.flatten(1).numpy()] for part in (source.train, source.test))
    return np.array(train), np.array(test)


def _anchors(train: Array, labels: Array, levels: int, n: int, rng: np.random.Generator) -> dict[str, Array]:
    """Sets of n images that a model should be told from, levels `(n, d)`."""
    gaussians = [
        rng.multivariate_normal(train[labels == label].mean(0), np.cov(train[labels == label].T), method="eigh")
        for label in rng.choice(labels, n)
    ]
    noisy = train[rng.permutation(len(train))[:n]] + rng.normal(0, 0.1 * levels, (min(n, len(train)), train.shape[1]))
    return {
        "gaussians": np.clip(np.rint(gaussians), 0, levels - 1),
        "noisy": np.clip(np.rint(noisy), 0, levels - 1),
        "noise": rng.integers(levels, size=(n, train.shape[1])).astype(float),
    }


def classified(x: Tensor, source: Dataset, labels: Array, test_labels: Array, seed: int) -> dict[str, Any]:
    """Fréchet distances to the training images in the features of a classifier of these, with bootstrapped standard errors."""
    assert source.levels is not None
    levels, rng = source.levels, np.random.default_rng(seed)
    train, test, made = (part.flatten(1).double().numpy() for part in (source.train, source.test, x))
    features = classifier_features(train / levels, labels, seed=seed)
    known = features(train / levels)

    def distance(images: Array) -> float:
        return frechet(features(images / levels), known)

    sets = {"model": made, "real": test[: len(made)], **_anchors(train, labels, levels, len(made), rng)}
    real, rows = distance(sets["real"]), {}
    span = distance(sets["noise"]) - real
    for name, images in sets.items():
        value = distance(images)
        again = [distance(images[rng.integers(len(images), size=len(images))]) for _ in range(_DRAWS)]
        stderr = float(np.std(again, ddof=1)) / span
        rows[name] = {"distance": value, "relative": (value - real) / span, "stderr": stderr, "n": len(images)}
    accuracy = features.accuracy(test / levels, test_labels)
    return {"rows": rows, "features": known.shape[1], "accuracy": accuracy, "n_train": len(train), "n_held_out": len(test)}


def against_floor(x: Tensor, source: Dataset, seed: int) -> dict[str, Any]:
    """Distances of samples to held-out data, beside those of as many training data: what a perfect model would have."""
    n = min(len(x), len(source.test), len(source.train))
    test, rng = source.test[:n], np.random.default_rng(seed)
    picks = [source.train[rng.permutation(len(source.train))[:n]] for _ in range(_DRAWS)]
    rows = {}
    for name, distance in {"sliced_wasserstein": sliced_wasserstein, "energy": energy_distance}.items():
        floor = [distance(pick.float(), test.float()) for pick in picks]
        rows[name] = {
            "distance": distance(x[:n].float(), test.float()),
            "floor": float(np.mean(floor)),
            "floor_max": max(floor),
        }
    return {"rows": rows, "n": n, "draws": _DRAWS}


def neighbours(x: Tensor, source: Dataset) -> tuple[dict[str, Any], Array]:
    """Median distances of samples and of held-out data to their nearest training sample; and the samples' nearest."""
    test = source.test[: len(x)]
    made, index = nearest(x, source.train)
    real, _ = nearest(test, source.train)
    medians = float(np.median(made)), float(np.median(real))
    ratio = medians[0] / medians[1] if medians[1] else float("nan")
    numbers = {"ratio": ratio, "samples": medians[0], "held_out": medians[1]}
    return numbers | {"n_samples": len(x), "n_held_out": len(test), "n_train": len(source.train)}, index
