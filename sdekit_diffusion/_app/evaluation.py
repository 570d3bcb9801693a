"""What is measured of a run: distances of its samples beside their anchors, and held-out
likelihood.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import Tensor, nn

from sdekit import Exact, Hutchinson, Status
from sdekit_diffusion import data as datasets
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._likelihood.bits_per_dim import BitsPerDim, bits_per_dim
from sdekit_diffusion._likelihood.likelihood import log_likelihood
from sdekit_diffusion._loading.load import described_in, load
from sdekit_diffusion._models.checkpoint import CheckpointError, read_config, versions
from sdekit_diffusion._models.model import ScoreModel
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion._storage.shards import digest
from sdekit_diffusion.data import Dataset, Scale
from sdekit_diffusion.metrics import (
    DISTANCES,
    classifier_features,
    frechet,
    image_features,
    inception_scores,
    mmd,
    nearest,
)
from sdekit_diffusion.metrics._inception import Network, outputs, standard_networks

_LEARNT = 10_000  # training images, which a classifier learns from and distances are to
_CLASSES = 3  # the fewest that a classifier's features tell apart
_CONVOLVED = 16  # pixels along a side, from which on the classifier has convolutions
_SEARCHED = 8  # times 256 MB of samples, among which the nearest are looked for
_KERNEL = 2000  # training images to which the unbiased kernel distance is taken
_DRAWS = 10  # sets over which a distance between data and data is averaged
_EXACT_UP_TO = 32  # dimensions: up to here the exact trace costs little more than probes

Array = NDArray[Any]


def opened(
    run: str | Path, device: torch.device | str = "cpu", net: nn.Module | str | Path | None = None
) -> tuple[ScoreModel, str | None]:
    """The model of a run, as `load` gives it, and the name of its data, None where that is not
    known.
    """
    model = load(run, device=device, net=net)
    notes = read_config(described_in(run)).get("notes")
    try:
        return model, str(notes["data"]["name"])  # pyright: ignore[reportOptionalSubscript]
    except (KeyError, TypeError):
        return model, None


def data_of(run: str | Path, given: str | None, known: str | None) -> str:
    """The name of the data, as a user gives it or as the run has it.

    Raises:
        CheckpointError: when neither says it.
    """
    name = given or known
    if name is None:
        raise CheckpointError(
            f"{Path(run) / 'config.json'} does not say what data the model is for; name them by "
            "--data, or data="
        )
    return name


def source_of(name: str, scale: Scale) -> Dataset:
    """A data set for a model of data in a scale, which is put in the place of its own.

    Raises:
        ValueError: when it cannot be found, or is not of that kind.
    """
    source = datasets.load(name)
    if (source.scale.levels is None) != (scale.levels is None):
        kinds = [
            "continuous data" if levels is None else "images"
            for levels in (source.scale.levels, scale.levels)
        ]
        raise ValueError(
            f"{source.name} holds {kinds[0]} and the model is for {kinds[1]}; give it such data"
        )
    return replace(source, scale=scale)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Likelihoods of held-out samples and what is known of their error.

    Attributes: value: bits per dimension of images, nats of other data; `(n,)`. stderr: the
        standard error that probes and dequantisation leave in each; 0 for exact traces of data as
        they are. unit: "bits/dim" or "nats". parts: what the standard error of the mean is made of,
        see `BitsPerDim.parts`. probes: of each trace; 0 for exact traces. draws: of the
        dequantisation; 0 where there is none. evaluations: of the model, the mean over the samples.
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
        shares = {
            name: "unknown" if share != share else f"{share:.4f}"
            for name, share in self.parts.items()
        }
        made = [f"{name} {share}{notes[name]}" for name, share in shares.items()]
        said = [
            f"{found['mean']:.4f} ± {found['stderr']:.4f} {self.unit} (standard error, over "
            f"{found['n']} held-out samples)",
            f"of that error: {', '.join(made)}; {self.evaluations:.0f} evaluations a sample",
        ]
        return said + (
            [f"{self.failed} samples were given up and are not in the mean"] if self.failed else []
        )

    def numbers(self) -> dict[str, Any]:
        """The mean, its standard error, what that is made of, and what they rest on."""
        n = len(self.value)
        known = self.value[~self.value.isnan()]
        return {
            "unit": self.unit,
            "mean": float(known.mean()),
            "stderr": float(known.std(correction=1)) / len(known) ** 0.5
            if len(known) > 1
            else float("nan"),
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
    """Bits per dimension of data `(n, *shape)`, nats of continuous ones in their own units.

    See `bits_per_dim` and `log_likelihood`.
    """
    trace = Exact() if x[:1].numel() <= _EXACT_UP_TO else Hutchinson(probes, seed=seed)
    settings = {
        "sde": sde,
        "trace": trace,
        "method": AdaptiveFlow(tolerance, tolerance),
        "first": first,
    }
    settings |= {"batch_size": batch_size, "progress": progress}
    x = x.to(model.place()[1])
    scale = model.scale
    if scale.levels is None:
        found = log_likelihood(model, scale.encode(x).to(model.place()[0]), **settings)
        value = found.value - scale.log_volume(tuple(x.shape[1:]))
        return BitsPerDim(value[None], found.stderr, found.evaluations, found.status, found.probes)
    return bits_per_dim(
        model,
        x,
        low=scale.low,
        high=scale.high,
        levels=scale.levels,
        draws=draws,
        seed=seed,
        **settings,
    )


def summed(bits: BitsPerDim, scale: Scale) -> HeldOut:
    """What `measured` returned, and what is known of its error."""
    unit, draws = ("nats", 0) if scale.levels is None else ("bits/dim", len(bits.draws))
    evaluations = float(bits.evaluations.double().mean())
    done = bits.status == Status.DONE
    failed = int((~done).sum())
    parts = replace(bits, draws=bits.draws[:, done], probe_stderr=bits.probe_stderr[done]).parts
    return HeldOut(
        bits.value.cpu(), bits.stderr.cpu(), unit, parts, bits.probes, draws, evaluations, failed
    )


def columns(bits: BitsPerDim) -> dict[str, Tensor]:
    """What is known of every sample, each with the samples first."""
    return {
        **vars(bits),
        "draws": bits.draws.T,
        "probes": torch.full_like(bits.status, bits.probes),
    }


def of_columns(parts: Iterable[Mapping[str, Array]]) -> BitsPerDim:
    """All samples of parts as `columns` made them."""
    names = [field.name for field in fields(BitsPerDim)]
    parts = list(parts)
    found = {
        name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in names
    }
    return BitsPerDim(
        **{**found, "draws": found["draws"].T.contiguous(), "probes": int(found["probes"][0])}
    )


def premises(run: str | Path, model: ScoreModel) -> dict[str, str]:
    """What the numbers of a run depend on besides the settings: its model, the libraries, the kind
    of device.
    """
    others = ("files", "notes", "replaces", "sha256", "versions")
    known = versions()
    described = {
        name: value for name, value in read_config(described_in(run)).items() if name not in others
    }
    found = {"model": digest(described, model.state_dict()), "device": model.place()[1].type}
    return found | {name: known[name] for name in ("sdekit", "torch")}


def distances(x: Tensor, source: Dataset, seed: int) -> dict[str, Any]:
    """Of samples to data: in features of a classifier where the data are images of known classes,
    else as they are.
    """
    classes = (
        0 if source.labels is None or source.test_labels is None else len(source.labels.unique())
    )
    if classes >= _CLASSES and source.scale.levels is not None:
        return {"frechet": classified(x, source, seed)}
    return {"distances": against_floor(x, source, seed)}


def _anchors(
    train: Array, labels: Array, levels: int, n: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Sets of n images that a model should be told from, levels `(n, d)`."""
    noisy = train[rng.permutation(len(train))[:n]] + rng.normal(
        0, 0.1 * levels, (min(n, len(train)), train.shape[1])
    )
    return {
        "gaussians": np.clip(np.rint(_gaussians(train, labels, n, rng)), 0, levels - 1),
        "noisy": np.clip(np.rint(noisy), 0, levels - 1),
        "noise": rng.integers(levels, size=(n, train.shape[1])).astype(float),
    }


def _gaussians(x: Array, labels: Array, n: int, rng: np.random.Generator) -> Array:
    """Samples `(n, d)` of a mixture of Gaussians, one for each class with its mean and covariance.

    A sum of the class's deviations from its mean with normal weights is such a sample, in any
    number of dimensions.
    """
    made = []
    for label, size in zip(*np.unique(rng.choice(labels, n), return_counts=True), strict=True):
        own = x[labels == label]
        weights = rng.standard_normal((size, len(own))) / math.sqrt(max(1, len(own) - 1))
        made.append(own.mean(0) + weights @ (own - own.mean(0)))
    return np.concatenate(made)


def classified(x: Tensor, source: Dataset, seed: int) -> dict[str, Any]:
    """Fréchet distances to training images in the features of a classifier of these, with
    bootstrapped standard errors.

    Beside them the unbiased squared MMD of the same features with KID's kernel, and the Inception
    Score of the classifier. Of images of less than 16 pixels along a side the classifier has one
    layer, else convolutions.
    """
    levels = source.scale.levels
    rng = np.random.default_rng(seed)
    images, classes = source.reference(min(_LEARNT, _fitting(source)))
    assert levels is not None
    assert classes is not None
    assert source.test_labels is not None
    train, test, made = (part.flatten(1).double().numpy() for part in (images, source.test, x))
    shape = tuple(x.shape[1:])
    labels = classes.numpy()
    learn = classifier_features if min(shape[1:]) < _CONVOLVED else image_features
    features = learn(train.reshape(-1, *shape) / levels, labels, seed=seed)
    sets = {
        "model": made,
        "real": test[: len(made)],
        **_anchors(train, labels, levels, len(made), rng),
    }
    scaled = {name: part.reshape(-1, *shape) / levels for name, part in sets.items()}
    known = features(train.reshape(-1, *shape) / levels)
    rows = _rows({name: features(part) for name, part in scaled.items()}, known, rng)
    for name, part in scaled.items():
        rows[name]["score"] = classes_score(features.logits(part))
    accuracy = features.accuracy(test.reshape(-1, *shape) / levels, source.test_labels.numpy())
    return {
        "rows": rows,
        "features": known.shape[1],
        "accuracy": accuracy,
        "n_train": len(train),
        "n_held_out": len(test),
    }


def _rows(
    found: dict[str, Array], known: Array, rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Distances of the features of sets, by name, to known ones: on the scale from "real" to
    "noise" with standard errors.
    """
    distances = {name: frechet(some, known) for name, some in found.items()}
    real = distances["real"]
    rows = {}
    span = distances["noise"] - real
    for name, some in found.items():
        again = [
            frechet(some[rng.integers(len(some), size=len(some))], known) for _ in range(_DRAWS)
        ]
        value = distances[name]
        stderr = float(np.std(again, ddof=1)) / span
        rows[name] = {
            "distance": value,
            "relative": (value - real) / span,
            "stderr": stderr,
            "n": len(some),
        }
        rows[name]["kid"] = mmd(some, known[:_KERNEL], kernel="polynomial")
    return rows


def classes_score(logits: Array) -> float:
    """exp E KL(p(class | image) | p(class)), the Inception Score of one set of logits `(n,
    classes)`: from 1 to the classes.
    """
    given = log_softmax(logits, axis=1)
    mean = logsumexp(given, axis=0) - math.log(len(given))
    return float(np.exp((np.exp(given) * (given - mean)).sum(axis=1).mean()))


def inception_networks(
    weights: str | Path, source: Dataset, device: torch.device
) -> tuple[Network, Network]:
    """The standard Inception networks, before the work that ends with them.

    Raises:
        OSError, ImportError: when the weights, or a library, cannot be had.
        ValueError: for data that are no images, or weights that are none.
    """
    if source.scale.levels is None:
        raise ValueError(
            f"{source.name} holds no images, which the Inception network is for; "
            "leave out inception"
        )
    return standard_networks(weights, device)


def inception_table(
    x: Tensor, source: Dataset, networks: tuple[Network, Network], device: torch.device, seed: int
) -> dict[str, Any]:
    """FID, KID and Inception Score of samples, and of as many held-out images, against training
    images.
    """
    levels = source.scale.levels
    assert levels is not None
    parts = {"known": source.reference(_LEARNT)[0], "model": x, "real": source.test[: len(x)]}
    images = {name: coloured(part, levels).to(device) for name, part in parts.items()}
    found = {
        name: [outputs(network, part) for network in networks] for name, part in images.items()
    }
    width = found["known"][0].shape[1]
    joined = {name: torch.cat(pair, dim=1) for name, pair in found.items()}
    # The outputs are there: all that is left of each network is to choose its own.
    chosen: dict[str, Any] = {
        "network": lambda both: both[:, :width],
        "classifier": lambda both: both[:, width:],
    }
    rows: dict[str, Any] = {}
    for name in ("model", "real"):
        scores = inception_scores(joined[name], joined["known"], seed=seed, **chosen)
        rows[name] = {"n": len(parts[name]), **asdict(scores)}
    return {"rows": rows, "n_train": len(parts["known"])}


def coloured(x: Tensor, levels: int) -> Tensor:
    """Images of levels as uint8 `(n, 3, H, W)`, the levels spread over 0 to 255, grey three
    times.
    """
    shades = (
        (torch.arange(levels, dtype=torch.float64) * (255 / (levels - 1))).round().to(torch.uint8)
    )
    return shades[x.long()].expand(-1, 3, -1, -1)


def against_floor(x: Tensor, source: Dataset, seed: int) -> dict[str, Any]:
    """Distances of samples to held-out data, beside those of as many training data: what a perfect
    model would have.
    """
    train = source.reference(_fitting(source))[0]
    scale = source.scale
    n = min(len(x), len(source.test), len(train))
    rng = np.random.default_rng(seed)
    made = _compared(x[:n], scale)
    test = _compared(source.test[:n], scale)
    picks = [_compared(train[rng.permutation(len(train))[:n]], scale) for _ in range(_DRAWS)]
    rows = {}
    for name, (_, distance) in DISTANCES.items():
        floor = [distance(pick, test) for pick in picks]
        rows[name] = {
            "distance": distance(made, test),
            "floor": float(np.mean(floor)),
            "floor_max": max(floor),
        }
    return {"rows": rows, "n": n, "draws": _DRAWS}


def neighbours(x: Tensor, source: Dataset) -> tuple[dict[str, Any], Tensor]:
    """Median distances of samples and of held-out data to their nearest training sample; and the
    nearest of each sample.
    """
    test = source.test[: len(x)]
    size = _fitting(source)
    train = source.reference(_SEARCHED * size)[0]
    both = _compared(torch.cat([x.to(test.dtype), test]), source.scale)
    distance = np.full(len(both), np.inf)
    index = np.zeros(len(both), dtype=np.int64)
    for i in range(0, len(train), size):  # as many at a time as fit into memory as floats
        some, where = nearest(both, _compared(train[i : i + size], source.scale))
        index = np.where(some < distance, i + where, index)
        distance = np.minimum(some, distance)
    made = float(np.median(distance[: len(x)]))
    real = float(np.median(distance[len(x) :]))
    numbers = {"ratio": made / real if real else float("nan"), "samples": made, "held_out": real}
    return numbers | {"n_samples": len(x), "n_held_out": len(test), "n_train": len(train)}, train[
        index[: len(x)]
    ]


def _compared(x: Tensor, scale: Scale) -> Tensor:
    """Levels of images, and continuous data in a model's scale, in which their coordinates weigh
    alike.
    """
    return x.float() if scale.levels is not None else scale.encode(x).float()


def _fitting(source: Dataset) -> int:
    """How many samples fit into 256 MB of float64."""
    return max(1, 2**25 // source.test[0].numel())
