"""Samples compared with data: distances with their floors, and nearest training samples."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit_diffusion.data import Dataset, Scale
from sdekit_diffusion.metrics import DISTANCES, nearest

_SEARCH_BLOCKS = 8  # blocks of 256 MB of training samples that are searched for neighbours
_DRAWS = 10  # sets over which a distance between data and data is averaged


def against_floor(x: Tensor, source: Dataset, seed: int) -> dict[str, Any]:
    """Distances of samples to held-out data, and the floor: those of as many training samples."""
    train = source.reference(fitting(source))[0]
    scale = source.scale
    n = min(len(x), len(source.test), len(train))
    rng = np.random.default_rng(seed)
    generated = comparable(x[:n], scale)
    test = comparable(source.test[:n], scale)
    train_sets = [comparable(train[rng.permutation(len(train))[:n]], scale) for _ in range(_DRAWS)]
    rows = {}
    for name, (_, distance) in DISTANCES.items():
        floor = [distance(train_set, test) for train_set in train_sets]
        rows[name] = {
            "distance": distance(generated, test),
            "floor": float(np.mean(floor)),
            "floor_max": max(floor),
        }
    return {"rows": rows, "n": n, "draws": _DRAWS}


class Nearest(NamedTuple):
    """The training sample nearest to each sample `(n, ...)`, and the distances of samples `(n,)`
    and of held-out data `(m,)` to their nearest training samples.
    """

    training_samples: Tensor
    distances: NDArray[np.float64]
    held_out: NDArray[np.float64]


def neighbours(x: Tensor, source: Dataset) -> tuple[dict[str, Any], Nearest]:
    """The median distances of samples and of held-out data to their nearest training samples; and
    the nearest one for each sample, with all distances.
    """
    test = source.test[: len(x)]
    size = fitting(source)
    train = source.reference(_SEARCH_BLOCKS * size)[0]
    queries = comparable(torch.cat([x.to(test.dtype), test]), source.scale)
    distance = np.full(len(queries), np.inf)
    index = np.zeros(len(queries), dtype=np.int64)
    for i in range(0, len(train), size):  # in blocks that fit into memory as floats
        block_distance, block_index = nearest(
            queries, comparable(train[i : i + size], source.scale)
        )
        index = np.where(block_distance < distance, i + block_index, index)
        distance = np.minimum(block_distance, distance)
    result = Nearest(train[index[: len(x)]], distance[: len(x)], distance[len(x) :])
    generated_median = float(np.median(result.distances))
    held_out_median = float(np.median(result.held_out))
    numbers = {
        "ratio": generated_median / held_out_median if held_out_median else float("nan"),
        "samples": generated_median,
        "held_out": held_out_median,
    }
    counts = {"n_samples": len(x), "n_held_out": len(test), "n_train": len(train)}
    return numbers | counts, result


def comparable(x: Tensor, scale: Scale) -> Tensor:
    """Images as levels, and continuous data in the model's scale, so that coordinates have equal
    weights.
    """
    return x.float() if scale.levels is not None else scale.encode(x).float()


def fitting(source: Dataset) -> int:
    """The number of samples that fit into 256 MB as float64."""
    return max(1, 2**25 // source.test[0].numel())
