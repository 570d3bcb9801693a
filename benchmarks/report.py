"""Which statistic of the report sees the difference between a third of a training run and its end.

The network of `make demo` is trained on scikit-learn's digits, and its checkpoint after a third of
the updates is compared with the finished one, and both with training images, against the 500
held-out images. Three sets of 500 of each. First the headline figures of the report; then
two-sample tests, each as the number of standard deviations over 199 permutations of the labels
that its statistic is above their mean; for `kernel_c2st` above 0.5.
`python benchmarks/report.py [RUN]`, the folder of the training run, which is resumed if it exists.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import RESULTS, environment, publish, save
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

import sdekit_diffusion as sd
from sdekit_diffusion._app.classified import classified
from sdekit_diffusion.metrics import (
    classifier_features,
    kernel_c2st,
    precision_recall,
)

SAMPLES = 500
SETS = 3
PERMUTATIONS = 199
SEED = 0
STEPS = 2200
THIRD = STEPS // 3
RECIPE = f"--data digits --weighting plain --steps {STEPS} --lr 4e-3"

Array = NDArray[Any]
Statistic = Callable[[Array, Array], Array]  # of samples (N, d) and signs (N, P), to (P,)


def trained(run: Path) -> None:
    """Trains the network of `make demo`, or completes its run, with a checkpoint at a third."""
    command = [sys.executable, "-m", "sdekit_diffusion", "train", str(run), *RECIPE.split()]
    subprocess.run([*command, "--save-every", str(THIRD), "--keep", "4", "--resume"], check=True)


def drawn(folder: Path, source: sd.data.Dataset) -> list[torch.Tensor]:
    """Sets of samples of a model, as levels."""
    model = sd.load(folder)
    x = sd.sample(model, SETS * SAMPLES, seed=SEED)
    return list(model.scale.decode(x).split(SAMPLES))


def pixels(x: torch.Tensor) -> Array:
    return x.flatten(1).double().numpy() / 16


def energy(x: Array, signs: Array) -> Array:
    """The squared energy distance, up to a factor."""
    return -(signs * (cdist(x, x) @ signs)).mean(axis=0)


def mmd(x: Array, signs: Array) -> Array:
    """The squared MMD of the Gaussian kernel of the median distance, up to a factor."""
    distance = cdist(x, x)
    kernel = np.exp(-np.square(distance / np.median(distance)) / 2)
    return (signs * (kernel @ signs)).mean(axis=0)


def neighbours(x: Array, signs: Array) -> Array:
    """The share of the nearest neighbours of the same set (Henze 1988)."""
    distance = cdist(x, x)
    np.fill_diagonal(distance, np.inf)
    return (signs[distance.argmin(axis=1)] == signs).mean(axis=0)


TESTS: dict[str, Statistic] = {
    "energy distance": energy,
    "MMD": mmd,
    "nearest neighbours": neighbours,
}


def deviations(a: Array, b: Array, statistic: Statistic) -> float:
    """How far a statistic is above its mean over permutations, in their standard deviations."""
    rng = np.random.default_rng(SEED)
    signs = np.repeat([1.0, -1.0], [len(a), len(b)])
    permuted = [rng.permutation(signs) for _ in range(PERMUTATIONS)]
    values = statistic(np.concatenate([a, b]), np.stack([signs, *permuted], axis=1))
    return float((values[0] - values[1:].mean()) / values[1:].std())


def figures(x: torch.Tensor, source: sd.data.Dataset) -> dict[str, float]:
    """The headline figures of the report, and the former one."""
    a = pixels(x)
    b = pixels(source.test)
    start = time.perf_counter()
    test = kernel_c2st(a, b, seed=SEED)
    seconds = time.perf_counter() - start
    manifolds = precision_recall(a, b)
    old = classified(x, source, SEED)
    return {
        "accuracy": test.accuracy,
        "stderr": test.stderr,
        "p": test.p_value,
        "precision": manifolds.precision,
        "recall": manifolds.recall,
        "confidence": old["classes"]["confidence"]["model"]["mean"],
        "Frechet on the scale": old["rows"]["model"]["relative"],
        "Frechet stderr": old["rows"]["model"]["stderr"],
        "seconds of the test": seconds,
    }


def tests(
    x: torch.Tensor, source: sd.data.Dataset, features: Callable[[Array], Array]
) -> dict[str, float]:
    """Each test of pixels, and that of the report in features too."""
    a = pixels(x)
    b = pixels(source.test)
    found = {name: deviations(a, b, statistic) for name, statistic in TESTS.items()}
    for name, of in (("pixels", lambda x: x), ("features", features)):
        test = kernel_c2st(of(a), of(b), permutations=PERMUTATIONS, seed=SEED)
        found[f"kernel_c2st, {name}"] = (test.accuracy - 0.5) / test.stderr
    return found


def printed(rows: dict[str, list[dict[str, float]]]) -> None:
    """Means over the sets, with their standard deviations."""
    for key in next(iter(rows.values()))[0]:
        cells = []
        for name, sets in rows.items():
            values = [row[key] for row in sets]
            cells.append(f"{name} {np.mean(values):8.4f} +- {np.std(values, ddof=1):.4f}")
        print(f"{key:24s}" + "   ".join(cells), flush=True)


def summarised(sets: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """The mean of each figure over the sets, and their standard deviation."""
    found = []
    for figure in next(iter(sets.values()))[0]:
        for name, rows in sets.items():
            values = [row[figure] for row in rows]
            row = {"figure": figure, "set": name, "mean": float(np.mean(values))}
            found.append({**row, "deviation": float(np.std(values, ddof=1))})
    return found


def main() -> None:
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "report"
    particulars = environment(dtype="float32", seed=SEED, samples=SAMPLES)
    trained(run)
    source = sd.data.load("digits")
    rng = np.random.default_rng(SEED)
    train, labels = source.reference(2000)
    assert labels is not None
    rows = [rng.permutation(len(train))[:SAMPLES] for _ in range(SETS)]
    sets = {
        "third": drawn(run / "checkpoints" / f"{THIRD:08d}", source),
        "finished": drawn(run, source),
        "training images": [train[index] for index in rows],
    }
    features = classifier_features(pixels(train), labels.numpy(), seed=SEED)
    headlines = {name: [figures(x, source) for x in part] for name, part in sets.items()}
    printed(headlines)
    compared = {name: [tests(x, source, features) for x in part] for name, part in sets.items()}
    printed(compared)
    save("report", {"environment": particulars, "figures": headlines, "tests": compared})
    publish("report", particulars, summarised(headlines))
    publish("report_tests", particulars, summarised(compared))


if __name__ == "__main__":
    main()
