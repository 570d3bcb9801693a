"""Whether samples can be distinguished from held-out ones: a two-sample test, precision and recall,
and the classes and confidence of a classifier.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from sdekit_diffusion._app.comparison import Nearest, comparable, fitting
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.metrics import kernel_c2st, precision_recall

LEVEL = 0.01  # p-values below it are called a difference
WORST = 10  # samples of a row
_MOST_SAMPLES = 1000  # of each set in the test, whose cost grows with the cube
_PERMUTATIONS = 999
_NEIGHBOUR = 3  # whose distance is the radius of precision and recall, as published

Array = NDArray[Any]


def compared(x: Tensor, source: Dataset, seed: int) -> dict[str, Any]:
    """Samples against as many held-out ones, by a classifier two-sample test and by precision and
    recall; beside them training samples against held-out ones.

    The test and the manifolds are those of pixels, or of continuous data in the model's scale:
    `benchmarks/report.py` has those of a classifier's features beside them, which show less and
    need labels.
    """
    rng = np.random.default_rng(seed)
    train = source.reference(fitting(source))[0]
    n = min(len(x), len(source.test), _MOST_SAMPLES)
    sets = {"model": x[:n], "train": train[rng.permutation(len(train))[:n]]}
    rows = {}
    for name, samples in sets.items():
        size = len(samples)
        pair = (comparable(samples, source.scale), comparable(source.test[:size], source.scale))
        test = kernel_c2st(*pair, permutations=_PERMUTATIONS, seed=seed)
        manifolds = precision_recall(*pair, k=min(_NEIGHBOUR, size - 1))
        rows[name] = {"n": size, **test._asdict(), **manifolds._asdict()}
        rows[name]["distinguishable"] = test.p_value < LEVEL
    return {"rows": rows, "permutations": _PERMUTATIONS, "level": LEVEL}


def classes(model: Array, held_out: Array, names: Array) -> dict[str, Any]:
    """A classifier's predictions for samples and for held-out ones: the mean and the standard error
    of its confidence, and the number of samples of each class.

    Arguments:
        model, held_out: the logits, `(n, classes)` and `(m, classes)`.
        names: of the classes, `(classes,)`.

    Returns:
        as JSON, with the p-value of the chi-squared test of equal shares of the classes.
    """
    predictions = {"model": _predicted(model), "held_out": _predicted(held_out)}
    counts = {
        name: np.bincount(index, minlength=len(names)) for name, (index, _) in predictions.items()
    }
    confidence = {
        name: {"mean": float(sure.mean()), "stderr": float(sure.std() / len(sure) ** 0.5)}
        for name, (_, sure) in predictions.items()
    }
    return {
        "names": [str(name) for name in names],
        "counts": {name: count.tolist() for name, count in counts.items()},
        "p_value": _equal_shares(np.stack(list(counts.values()))),
        "confidence": confidence,
        "worst": {name: _least_sure(*pair, names) for name, pair in predictions.items()},
    }


def farthest(nearest: Nearest) -> dict[str, Any]:
    """The samples, and the held-out ones, that are farthest from their nearest training sample, as
    JSON.
    """
    sets = {"model": nearest.distances, "held_out": nearest.held_out}
    orders = {
        name: np.argsort(-distances, kind="stable")[:WORST] for name, distances in sets.items()
    }
    return {
        name: {"index": order.tolist(), "distance": sets[name][order].tolist()}
        for name, order in orders.items()
    }


def _predicted(logits: Array) -> tuple[Array, Array]:
    """The predicted class of each sample, as an index, and its probability."""
    probability = softmax(logits, axis=1)
    return probability.argmax(axis=1), probability.max(axis=1)


def _least_sure(index: Array, confidence: Array, names: Array) -> dict[str, Any]:
    """The samples with the lowest confidence, as JSON."""
    order = np.argsort(confidence, kind="stable")[:WORST]
    return {
        "index": order.tolist(),
        "confidence": confidence[order].tolist(),
        "class": [str(name) for name in names[index[order]]],
    }


def _equal_shares(counts: Array) -> float:
    """The p-value of the chi-squared test of two rows of counts; 1 where there is one class."""
    from scipy.stats import chi2_contingency

    nonempty = counts[:, counts.sum(axis=0) > 0]
    result: Any = chi2_contingency(nonempty, correction=False)
    return float(result.pvalue)
