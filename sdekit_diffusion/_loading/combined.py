"""Averages of any relative width from the snapshots of a training run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion._training.profiles import Profile, combination, exponent
from sdekit_diffusion._training.snapshots import FOLDER, read_snapshot, snapshots

_NET = "net."


def combined(run: Path, width: float, notes: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the network, averaged with a relative width up to the newest snapshot: the
    linear combination of all snapshots that is nearest to this average.

    Arguments:
        run: the folder of the run.
        width: the relative width.
        notes: the notes of the run, with the widths of its recipe.

    Raises:
        ValueError: for a width that no average has.
        CheckpointError: when there are no snapshots, or one is damaged.
    """
    gamma = exponent(width)
    widths = notes.get("recipe", {}).get("widths", [])
    files = snapshots(run)
    if not files or not widths:
        raise CheckpointError(
            f"{run / FOLDER} holds no snapshots of averages: train with Recipe(widths=(0.05, 0.1)) "
            "in a folder, and give that folder"
        )
    profiles = [Profile(exponent(one), step) for step in files for one in widths]
    coefficients = iter(combination(profiles, Profile(gamma, max(files))))
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in files.values():
        averages = read_snapshot(path)
        for prefix in [f"{one}/{_NET}" for one in widths]:
            factor = float(next(coefficients))
            for name, value in averages.items():
                if name.startswith(prefix):
                    key = name.removeprefix(prefix)
                    dtypes[key] = value.dtype
                    # The sum is taken in float64: coefficients are of both signs.
                    term = factor * value.to(torch.float64)
                    total[key] = total[key] + term if key in total else term
    return {name: value.to(dtypes[name]) for name, value in total.items()}
