"""FID, KID and Inception Score as torchmetrics computes them, with the standard Inception network
or with other networks.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]

_FEATURES = "2048"  # the layer of the standard network


@dataclass(frozen=True)
class InceptionScores:
    """FID, KID and Inception Score, with their standard deviations where they are defined.

    Attributes:
        fid: the squared Fréchet distance between features.
        kid, kid_std: the squared polynomial MMD of features, mean and standard deviation over
            subsets.
        inception, inception_std: the Inception Score, mean and standard deviation over splits; NaN
            without a classifier.

    Example:
        >>> def network(images):
        ...     return images.float().flatten(1)[:, :8]
        >>> x, y = torch.rand(40, 3, 4, 4), torch.rand(40, 3, 4, 4)
        >>> scores = sd.metrics.inception_scores(x, y, network=network, subset=20)
        >>> scores.fid > 0
        True
    """

    fid: float
    kid: float
    kid_std: float
    inception: float
    inception_std: float


def inception_scores(
    x: Tensor,
    reference: Tensor,
    *,
    network: Network | None = None,
    classifier: Network | None = None,
    weights: str | Path | None = None,
    subset: int = 1000,
    splits: int = 10,
    batch_size: int = 64,
    seed: int = 0,
) -> InceptionScores:
    """FID, KID and Inception Score of images by torchmetrics.

    Compare only scores with the same network, resizing, numbers of images and subsets. The values
    for real images are, for FID, those of
    `sampling_floor(lambda a, b: inception_scores(a, b).fid, reference, n)`.

    Args:
        x: images (N, ...): uint8 (N, 3, H, W) for the standard network, else what the networks
            accept.
        reference: real images (M, ...), on the device of x.
        network: a function from images (B, ...) to features (B, d), for FID and KID; the standard
            Inception network unless given.
        classifier: a function from images to logits (B, classes), for the Inception Score; unless
            given, that of the standard network, or none if `network` is given.
        weights: a file with the standard network's weights,
            `weights-inception-2015-12-05-6726825d.pth`; without it torch-fidelity downloads them
            once.
        subset: the number of images in each of KID's 100 subsets, at most as many as there are.
        splits: the number of splits of the Inception Score.
        batch_size: the number of images in one call of a network.
        seed: of subsets and splits.

    Raises:
        ImportError: when torchmetrics, or torch-fidelity for the standard network, is not
            installed.
        OSError: when the weights of the standard network cannot be read or downloaded.
        ValueError: for fewer than two images, images that the standard network does not accept, or
            weights of another network.

    Example:
        >>> def network(images):  # None is the standard Inception network
        ...     return images.float().flatten(1)[:, :8]
        >>> x = torch.rand(40, 3, 4, 4)
        >>> abs(sd.metrics.inception_scores(x, x, network=network, subset=20).fid) < 1e-3
        True

    Reference: Heusel et al., 2017; Binkowski et al., Demystifying MMD GANs, 2018; Salimans et al.,
        Improved Techniques for Training GANs, 2016.
    """
    torchmetrics = _torchmetrics()
    head = None
    if min(len(x), len(reference)) < 2:
        raise ValueError(
            f"there are {len(x)} and {len(reference)} images; scores need two or more of each"
        )
    if network is None:
        _require_standard_images(x, reference)
        network, head = standard_network(weights, x.device)
    generated, real = (outputs(network, images, batch_size) for images in (x, reference))
    if classifier is not None:
        logits = outputs(classifier, x, batch_size)
    else:
        logits = None if head is None else head(generated)
    score_moments = [torch.tensor(torch.nan)] * 2
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that features are kept in memory
        torch.manual_seed(seed)  # torchmetrics draws from the global generator
        features = _PrecomputedFeatures(generated.shape[1])
        fid = torchmetrics.fid.FrechetInceptionDistance(feature=features)
        kid = torchmetrics.kid.KernelInceptionDistance(
            feature=features, subset_size=min(subset, len(generated), len(real))
        )
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(generated, real=False)
        if logits is not None:
            score = torchmetrics.inception.InceptionScore(feature=features, splits=splits)
            score.update(logits)
            score_moments = score.compute()
        return InceptionScores(
            *(float(value) for value in (fid.compute(), *kid.compute(), *score_moments))
        )


class _PrecomputedFeatures(nn.Module):
    """The identity, as the network of a metric whose features are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def outputs(network: Network, images: Tensor, batch_size: int = 64) -> Tensor:
    """A network's outputs, (N, d), in float64 and without gradients."""
    with torch.no_grad():
        rows = torch.cat([network(batch).flatten(1) for batch in images.split(batch_size)])
    return rows.cpu().double()


def _torchmetrics() -> ModuleType:
    try:
        for name in ("fid", "kid", "inception"):
            import_module(f"torchmetrics.image.{name}")
        return import_module("torchmetrics.image")
    except ImportError as error:
        raise ImportError(
            "FID, KID and Inception Score come with torchmetrics: pip install 'sdekit[metrics]'"
        ) from error


def standard_network(weights: str | Path | None, device: torch.device) -> tuple[Network, Network]:
    """Inception v3 with the weights of published scores: a function from images to features, and
    one from features to logits, in float64 and without the bias, as for published scores.

    Raises:
        ImportError, OSError: as `inception_scores`.
        ValueError: for a file that holds anything but tensors, or those of another network.
    """
    torchmetrics = _torchmetrics()
    if weights is not None:
        _require_tensors(weights)
    network = _loaded(torchmetrics, weights, device)
    head = network.fc.weight.detach().double().cpu().T
    return network, lambda features: features @ head


def _require_tensors(weights: str | Path) -> None:
    """Refuses a file whose pickle would run code: torch-fidelity would load that too."""
    try:
        state = torch.load(weights, map_location="meta", weights_only=True)
    except OSError as error:
        raise _unavailable_weights(error) from error
    except Exception as error:  # of pickle, zipfile and torch
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{weights} is not a file of weights alone ({reason}); download it again from "
            "torch-fidelity"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(
            f"{weights} holds something else than tensors by name; download it again from "
            "torch-fidelity"
        )


def _unavailable_weights(error: Exception) -> OSError:
    return OSError(
        f"the standard Inception network's weights are not available ({error}); give weights= a "
        "file that holds them, or a network= of your own"
    )


def _loaded(
    torchmetrics: ModuleType,
    weights: str | Path | None,
    device: torch.device,
) -> Any:  # noqa: ANN401 - of torchmetrics, which is loaded when needed
    """The standard network up to its features, on the device."""
    try:
        path = None if weights is None else str(weights)
        network = torchmetrics.fid.NoTrainInceptionV3("inception-v3-compat", [_FEATURES], path)
        return network.to(device)
    except ModuleNotFoundError as error:
        raise ImportError(
            "the standard Inception network needs torch-fidelity: pip install 'sdekit[metrics]'"
        ) from error
    except OSError as error:
        raise _unavailable_weights(error) from error
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{weights} does not fit the standard Inception network ({reason})"
        ) from error


def _require_standard_images(*sets: Tensor) -> None:
    for images in sets:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}, and the standard "
                "network takes uint8 (N, 3, H, W); give levels from 0 to 255, grey ones three "
                "times, or a network= of your own"
            )
