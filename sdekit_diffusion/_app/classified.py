"""Distances of images in the features of a classifier, on the scale from real images to noise."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from sdekit_diffusion._app.comparison import fitting
from sdekit_diffusion._app.quality import classes
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.metrics import classifier_features, frechet, image_features, mmd

_TRAINING_IMAGES = 10_000  # for training the classifier, and as the reference of distances
_CONVOLUTIONS_FROM = 16  # smallest side in pixels for which the classifier is convolutional
_KERNEL_IMAGES = 2000  # training images for the unbiased kernel distance
_BOOTSTRAP_SETS = 10  # bootstrap sets of each standard error

Array = NDArray[Any]


def _anchors(
    train: Array, labels: Array, levels: int, n: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Sets of n images that a good model should be better than, levels `(n, d)`."""
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

    The mean of a class plus the sum of its deviations from the mean with independent normal weights
    is such a sample, in any number of dimensions.
    """
    samples = []
    for label, size in zip(*np.unique(rng.choice(labels, n), return_counts=True), strict=True):
        members = x[labels == label]
        weights = rng.standard_normal((size, len(members))) / math.sqrt(max(1, len(members) - 1))
        samples.append(members.mean(0) + weights @ (members - members.mean(0)))
    return np.concatenate(samples)


def classified(
    x: Tensor, source: Dataset, seed: int, given: Tensor | None = None
) -> dict[str, Any]:
    """Fréchet distances of samples to training images in the features of a classifier, with
    bootstrapped standard errors.

    Also the unbiased squared MMD of the same features with KID's kernel, the Inception Score of the
    classifier, and the classes that it predicts, with its confidence; for samples that were given
    labels, the share whose predicted class is the label. The classifier is trained on the training
    images. It has one hidden layer for images with a side of less than 16 pixels, and convolutions
    otherwise.
    """
    levels = source.scale.levels
    rng = np.random.default_rng(seed)
    images, image_labels = source.reference(min(_TRAINING_IMAGES, fitting(source)))
    assert levels is not None
    assert image_labels is not None
    assert source.test_labels is not None
    train, test, generated = (
        array.flatten(1).double().numpy() for array in (images, source.test, x)
    )
    shape = tuple(x.shape[1:])
    labels = image_labels.numpy()
    train_classifier = (
        classifier_features if min(shape[1:]) < _CONVOLUTIONS_FROM else image_features
    )
    features = train_classifier(train.reshape(-1, *shape) / levels, labels, seed=seed)
    sets = {
        "model": generated,
        "real": test[: len(generated)],
        **_anchors(train, labels, levels, len(generated), rng),
    }
    scaled_sets = {name: array.reshape(-1, *shape) / levels for name, array in sets.items()}
    train_features = features(train.reshape(-1, *shape) / levels)
    rows = _rows(
        {name: features(array) for name, array in scaled_sets.items()}, train_features, rng
    )
    logits = {name: features.logits(array) for name, array in scaled_sets.items()}
    for name, array in logits.items():
        rows[name]["score"] = classes_score(array)
    accuracy = features.accuracy(test.reshape(-1, *shape) / levels, source.test_labels.numpy())
    agreement = {}
    if given is not None:
        agreement["agreement"] = features.accuracy(scaled_sets["model"], given.numpy())
    return agreement | {
        "rows": rows,
        "classes": classes(logits["model"], logits["real"], features.classes),
        "features": train_features.shape[1],
        "accuracy": accuracy,
        "n_train": len(train),
        "n_held_out": len(test),
    }


def _rows(
    features: dict[str, Array], reference: Array, rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Distances of the features of named sets to the reference, on the scale from "real" to
    "noise", with standard errors.
    """
    distances = {name: frechet(set_features, reference) for name, set_features in features.items()}
    real = distances["real"]
    rows = {}
    scale = distances["noise"] - real
    for name, set_features in features.items():
        bootstrapped = [
            frechet(
                set_features[rng.integers(len(set_features), size=len(set_features))], reference
            )
            for _ in range(_BOOTSTRAP_SETS)
        ]
        value = distances[name]
        stderr = float(np.std(bootstrapped, ddof=1)) / scale
        rows[name] = {
            "distance": value,
            "relative": (value - real) / scale,
            "stderr": stderr,
            "n": len(set_features),
        }
        rows[name]["kid"] = mmd(set_features, reference[:_KERNEL_IMAGES], kernel="polynomial")
    return rows


def classes_score(logits: Array) -> float:
    """exp E KL(p(class | image) || p(class)), the Inception Score, of logits `(n, classes)`: from 1
    to the number of classes.
    """
    log_probabilities = log_softmax(logits, axis=1)
    log_marginal = logsumexp(log_probabilities, axis=0) - math.log(len(log_probabilities))
    return float(
        np.exp((np.exp(log_probabilities) * (log_probabilities - log_marginal)).sum(axis=1).mean())
    )
