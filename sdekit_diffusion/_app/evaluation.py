"""Distances of samples to data, chosen by the kind of data; scores with the Inception network."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit_diffusion._app.classified import classified
from sdekit_diffusion._app.comparison import against_floor
from sdekit_diffusion.data import Dataset
from sdekit_diffusion.metrics import inception_scores
from sdekit_diffusion.metrics._inception import Network, outputs, standard_network

_MIN_CLASSES = 3  # the fewest for features of a classifier
_REFERENCE_IMAGES = 10_000  # training images that the standard network's scores compare with


def distances(x: Tensor, source: Dataset, seed: int, given: Tensor | None = None) -> dict[str, Any]:
    """Distances of samples to data: in the features of a classifier if the data are images with
    labels of three classes or more, otherwise of the samples themselves. `given` are the labels
    that the samples were given.
    """
    classes = (
        0 if source.labels is None or source.test_labels is None else len(source.labels.unique())
    )
    if classes >= _MIN_CLASSES and source.scale.levels is not None:
        return {"frechet": classified(x, source, seed, given)}
    return {"distances": against_floor(x, source, seed)}


def inception_network(
    weights: str | Path, source: Dataset, device: torch.device
) -> tuple[Network, Network]:
    """The standard Inception network, loaded before samples are drawn: a function from images to
    features, and one from features to logits.

    Raises:
        OSError, ImportError: when the weights, or a library, are not available.
        ValueError: for data that are not images, or a file that does not hold the weights.
    """
    if source.scale.levels is None:
        raise ValueError(
            f"{source.name} holds no images, which the Inception network is for; leave out "
            "inception"
        )
    return standard_network(weights, device)


def inception_table(
    x: Tensor,
    source: Dataset,
    inception: tuple[Network, Network],
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """FID, KID and Inception Score of samples, and of as many held-out images, relative to training
    images.
    """
    levels = source.scale.levels
    assert levels is not None
    image_sets = {
        "known": source.reference(_REFERENCE_IMAGES)[0],
        "model": x,
        "real": source.test[: len(x)],
    }
    network, head = inception
    features = {
        name: outputs(network, coloured(image_set, levels).to(device))
        for name, image_set in image_sets.items()
    }
    rows: dict[str, Any] = {}
    for name in ("model", "real"):
        scores = inception_scores(
            features[name],
            features["known"],
            network=lambda computed: computed,
            classifier=head,
            seed=seed,
        )
        rows[name] = {"n": len(image_sets[name]), **asdict(scores)}
    return {"rows": rows, "n_train": len(image_sets["known"])}


def coloured(x: Tensor, levels: int) -> Tensor:
    """Images of levels as uint8 `(n, 3, H, W)`, the levels scaled to 0 to 255, grey repeated
    three times.
    """
    shades = (
        (torch.arange(levels, dtype=torch.float64) * (255 / (levels - 1))).round().to(torch.uint8)
    )
    return shades[x.long()].expand(-1, 3, -1, -1)
