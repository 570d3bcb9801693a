"""The table of grids. A new one is added to `GRIDS` and `__all__`."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sdekit import did_you_mean
from sdekit_diffusion._sampling.focused import Focused
from sdekit_diffusion._sampling.given_grids import Equidistributed, Given, Sigmas
from sdekit_diffusion._sampling.grid import AbstractGrid, Levels
from sdekit_diffusion._sampling.published_grids import (
    GeometricInSigma,
    Karras,
    Native,
    Quadratic,
    UniformInLogSNR,
    UniformInTime,
)

__all__ = [
    "GRIDS",
    "AbstractGrid",
    "Equidistributed",
    "Focused",
    "GeometricInSigma",
    "Given",
    "Karras",
    "Native",
    "Quadratic",
    "Sigmas",
    "UniformInLogSNR",
    "UniformInTime",
]

GRIDS: dict[str, AbstractGrid] = {
    "native": Native(),
    "time": UniformInTime(),
    "quadratic": Quadratic(),
    "sigma": GeometricInSigma(),
    "karras": Karras(),
    "log_snr": UniformInLogSNR(),
    "focused": Focused(),
}


def grid_of(choice: AbstractGrid | Levels | str) -> AbstractGrid:
    """A grid from its name, or from noise levels.

    Raises:
        TypeError: for anything else.
        ValueError: for an unknown name, or levels that do not decrease.
    """
    if isinstance(choice, AbstractGrid):
        return choice
    if not isinstance(choice, str) and isinstance(choice, Tensor | np.ndarray | Sequence):
        return Sigmas(choice)
    if not isinstance(choice, str):
        raise TypeError(
            "grid must be a name, a grid or noise levels sigma / alpha that decrease, not "
            f"{type(choice).__name__}"
        )
    if choice not in GRIDS:
        raise ValueError(
            f"unknown grid {choice!r}{did_you_mean(choice, GRIDS)}; choose one of "
            f"{', '.join(GRIDS)}, or pass a grid such as Karras(rho=7)"
        )
    return GRIDS[choice]
