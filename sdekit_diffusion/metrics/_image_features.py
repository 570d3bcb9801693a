"""Features of a small convolutional classifier of images, for distances that are sensitive to
texture as well as shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

from sdekit_diffusion.metrics._features import one_label_each, share_correct
from sdekit_diffusion.metrics._points import Matrix, Samples, points

_UPDATES = 400
_BATCH = 128
_LARGEST = 64  # pixels along a side; larger images are averaged down
_SMALLEST = 16


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """The last hidden layer of a classifier with three convolutions, and its classes.

    Attributes:
        net: a module from images (N, C, H, W) to features (N, width).
        head: a module from features to the classes' logits (N, classes).
        classes: their labels, (classes,).

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 8))
        >>> head, classes = torch.nn.Linear(8, 3), torch.arange(3).numpy()
        >>> features = sd.metrics.ImageFeatures(net, head, classes)
        >>> features(torch.rand(12, 1, 16, 16)).shape
        (12, 8)
    """

    net: nn.Module
    head: nn.Module
    classes: np.ndarray

    def __call__(self, x: Samples) -> Matrix:
        """Features (N, width) of images (N, C, H, W)."""
        with torch.no_grad():
            return torch.cat([self.net(batch) for batch in _images(x).split(1000)]).double().numpy()

    def logits(self, x: Samples) -> Matrix:
        """Logits (N, classes) of images (N, C, H, W)."""
        with torch.no_grad():
            return self.head(torch.from_numpy(self(x)).float()).double().numpy()

    def accuracy(self, x: Samples, labels: ArrayLike) -> float:
        """The share of images classified correctly.

        Raises:
            ValueError: unless there is one label for each image.
        """
        return share_correct(self.classes[np.argmax(self.logits(x), axis=1)], labels)


def image_features(
    x: Samples, labels: ArrayLike, *, width: int = 64, seed: int = 0
) -> ImageFeatures:
    """Trains a convolutional classifier of images, whose features can be compared with `frechet`.

    The single layer of `classifier_features` responds to little besides means and covariances of
    the pixels: on Fashion-MNIST it does not distinguish images from samples of one Gaussian per
    class.

    Args:
        x: images (N, C, H, W) of 16 x 16 pixels or more, scaled to about [0, 1]; those of more than
            64 pixels along a side are averaged down.
        labels: their classes, (N,), three different ones or more.
        width: of the last hidden layer, the number of features.
        seed: of the training.

    Raises:
        ValueError: for values that are not finite, another number of labels, fewer than three
            classes, or images that are too small.

    Example:
        >>> images, labels = torch.rand(300, 1, 16, 16), [0, 1, 2] * 100
        >>> features = sd.metrics.image_features(images, labels)  # doctest: +SKIP
        >>> sd.metrics.image_features(images[..., :8, :8], labels)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ...
    """
    images = _images(x)
    (classes, class_numbers) = np.unique(one_label_each(labels, len(images)), return_inverse=True)
    if len(classes) < 3 or min(images.shape[2:]) < _SMALLEST:
        raise ValueError(
            f"{len(classes)} classes of images of {images.shape[2]} x {images.shape[3]} pixels; "
            f"these features need three classes and {_SMALLEST} pixels along each side, or take "
            "classifier_features"
        )
    targets = torch.from_numpy(class_numbers)
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(seed)
        net = _network(images[:1], width)
        head = nn.Linear(width, len(classes))
        optimiser = torch.optim.AdamW(
            [*net.parameters(), *head.parameters()], lr=2e-3, weight_decay=0.1
        )
        for rows in _batches(len(images)):
            optimiser.zero_grad()
            functional.cross_entropy(head(net(images[rows])), targets[rows]).backward()
            optimiser.step()
    return ImageFeatures(net.eval(), head.eval(), classes)


def _network(image: Tensor, width: int) -> nn.Sequential:
    net: list[nn.Module] = []
    for inputs, outputs in ((image.shape[1], 32), (32, 64), (64, 64)):
        net += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
    net.append(nn.Flatten())
    return nn.Sequential(*net, nn.Linear(nn.Sequential(*net)(image).shape[1], width), nn.ReLU())


def _batches(n: int) -> Iterator[Tensor]:
    """Rows of each update, a permutation in each epoch."""
    order = torch.cat([torch.randperm(n) for _ in range(-(-_UPDATES * _BATCH // n))])
    return iter(order[: _UPDATES * _BATCH].split(_BATCH))


def _images(x: Samples) -> Tensor:
    """Images as float32, averaged down to at most 64 pixels along a side."""
    shape = np.shape(x)
    if len(shape) != 4:
        raise ValueError(f"x has shape {tuple(shape)}; images are (N, C, H, W)")
    images = torch.from_numpy(points(x, "x")).float().reshape(shape)
    return (
        functional.avg_pool2d(images, -(-max(shape[2:]) // _LARGEST))
        if max(shape[2:]) > _LARGEST
        else images
    )
