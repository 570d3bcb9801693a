"""Distances of images in the features of a classifier, on the scale from real images to noise."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from sdekit_diffusion._app.comparison import fitting
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.metrics import classifier_features, frechet, image_features, mmd

_LEARNT = 10_000  # training images, which a classifier learns from and distances are to
_CONVOLVED = 16  # pixels along a side, from which on the classifier has convolutions
_KERNEL = 2000  # training images to which the unbiased kernel distance is taken
_DRAWS = 10  # bootstrapped sets, from which a standard error is estimated

Array = NDArray[Any]


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
    images, classes = source.reference(min(_LEARNT, fitting(source)))
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
