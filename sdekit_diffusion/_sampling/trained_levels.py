"""A warning where a student, a network trained at a few noise levels only, is sampled at others."""

import math
import warnings

import torch
from torch import Tensor

from sdekit import AdamsBashforth
from sdekit_diffusion._models.derived import innermost
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.method import AbstractMethod

_TOLERANCE = 1e-3  # of l


def warn_of_levels(
    model: AbstractModel,
    method: AbstractMethod,
    coordinates: Coordinates,
    span: Span,
    *,
    stacklevel: int,
) -> None:
    """Warns unless a student is sampled by DDIM with steps that begin at its trained levels."""
    trained = getattr(innermost(model), "trained_levels", ())
    if not trained:
        return
    known = torch.tensor(trained, dtype=torch.float64) + math.log(coordinates.std)
    levels = _levels_of_ddim(method, coordinates, span)
    if len(levels) == len(known) and torch.allclose(levels, known, rtol=0, atol=_TOLERANCE):
        return
    sigmas = ", ".join(f"{math.exp(-l):.5g}" for l in trained[:4])
    warnings.warn(
        f"this model was trained at {len(trained)} noise levels only, sigma / alpha = {sigmas}"
        f"{', ...' if len(trained) > 4 else ''}: sample it with method='ddim' and the grid that it "
        "was trained for, whose steps begin there (Trajectories.sigmas)",
        stacklevel=stacklevel,
    )


def _levels_of_ddim(method: AbstractMethod, coordinates: Coordinates, span: Span) -> Tensor:
    """l at the beginning of each step of DDIM without noise; empty for other methods."""
    solver = getattr(method, "solver", None)
    is_ddim = isinstance(solver, AdamsBashforth) and solver.k == 1 and not getattr(method, "eta", 0)
    if not is_ddim or method.grid is None:
        return torch.empty(0)
    return method.grid.points(coordinates, span, method.steps)[:-1]
