"""Averages of any relative width from the snapshots of a training run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit.calling import warn_caller
from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion._training.profiles import Profile, combination, exponent, misfit
from sdekit_diffusion._training.snapshots import FOLDER, read_snapshot, snapshots

_NET = "net."
_LARGEST_MISFIT = 0.05  # of profiles; above, errors are about as large as the effect of averaging


def combined(run: Path, width: float, notes: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the network, averaged with a relative width up to the newest snapshot: the
    linear combination of all snapshots that is nearest to this average.

    Arguments:
        run: the folder of the run.
        width: the relative width.
        notes: the notes of the run, with the widths of its recipe.

    A warning is raised where this combination is not near to it.

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
    target = Profile(gamma, max(files))
    factors = combination(profiles, target)
    if (difference := misfit(profiles, factors, target)) > _LARGEST_MISFIT:
        warn_caller(
            f"no combination of the {len(files)} snapshots of averages of width "
            f"{', '.join(map(str, widths))} is near that of width {width}: the profile of the "
            f"nearest differs by {difference:.0%}; train with more snapshots, or with a width "
            "nearer to it",
        )
    coefficients = iter(factors)
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
