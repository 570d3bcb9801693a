"""Features of a small classifier, for distances that are sensitive to class differences."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sdekit_diffusion.metrics._points import Matrix, Samples, points


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """The features max(0, x W + b) of a classifier with one hidden layer, and its classes.

    Attributes:
        weight, offset: W, (d, width), and b, (width,).
        head, bias: from features to the classes' logits, (width, classes) and (classes,).
        classes: their labels, (classes,).

    Example:
        >>> x = torch.cat([torch.randn(30, 2) + 4 * i for i in range(3)])
        >>> labels = [0] * 30 + [1] * 30 + [2] * 30
        >>> features = sd.metrics.classifier_features(x, labels, width=8)
        >>> features(x).shape
        (90, 8)
    """

    weight: Matrix
    offset: Matrix
    head: Matrix
    bias: Matrix
    classes: np.ndarray

    def __call__(self, x: Samples) -> Matrix:
        """Features (N, width) of samples (N, ...)."""
        return np.maximum(points(x, "x") @ self.weight + self.offset, 0)

    def logits(self, x: Samples) -> Matrix:
        """Logits (N, classes) of samples (N, ...)."""
        return self(x) @ self.head + self.bias

    def accuracy(self, x: Samples, labels: ArrayLike) -> float:
        """The share of samples classified correctly.

        Raises:
            ValueError: unless there is one label for each sample.
        """
        return share_correct(self.classes[np.argmax(self.logits(x), axis=1)], labels)


def share_correct(predicted: np.ndarray, labels: ArrayLike) -> float:
    """The share of labels, (N,) or (N, 1), that are those predicted, (N,).

    Raises:
        ValueError: for another number of labels.
    """
    return float((predicted == one_label_each(labels, len(predicted))).mean())


def one_label_each(labels: ArrayLike, n: int) -> np.ndarray:
    """The labels of n samples, (n,) or (n, 1), as (n,).

    Raises:
        ValueError: for another number of labels, or numbers that are not whole.
    """
    given = np.asarray(labels)
    if given.dtype.kind == "f" and bool((given != given.round()).any()):
        raise ValueError("labels are whole numbers, one for each class; some are fractions or NaN")
    if given.size != n:
        raise ValueError(
            f"labels have shape {given.shape} for {n} samples; give one label for each, ({n},)"
        )
    return given.reshape(-1)


def classifier_features(
    x: Samples, labels: ArrayLike, *, width: int = 64, seed: int = 0
) -> ClassifierFeatures:
    """Trains a classifier with one hidden layer, whose features can be compared with `frechet`.

    It is regularised, so that its features differ little between training samples and others.

    Args:
        x: samples (N, ...), scaled to about [0, 1].
        labels: their classes, (N,), three different ones or more.
        width: of the hidden layer, the number of features.
        seed: of the training.

    Raises:
        ImportError: when scikit-learn is not installed.
        ValueError: for values that are not finite, another number of labels, or fewer than three
            classes.

    Example:
        >>> x = torch.cat([torch.randn(30, 2) + 4 * i for i in range(3)])
        >>> labels = [0] * 30 + [1] * 30 + [2] * 30
        >>> features = sd.metrics.classifier_features(x, labels, width=8)
        >>> sd.metrics.frechet(features(x[:45]), features(x[:45])) < 1e-6
        True
    """
    try:
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise ImportError("a classifier needs scikit-learn: pip install 'sdekit[app]'") from error
    samples = points(x, "x")
    targets = one_label_each(labels, len(samples))
    classes = np.unique(targets)
    if len(classes) < 3:
        raise ValueError(
            f"labels name {len(classes)} classes; features that tell classes apart need "
            "three or more"
        )
    classifier = MLPClassifier((width,), alpha=1.0, max_iter=200, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it need not converge
        classifier.fit(samples, targets)
    (weight, head) = classifier.coefs_
    (offset, bias) = classifier.intercepts_
    return ClassifierFeatures(weight, offset, head, bias, classifier.classes_)
