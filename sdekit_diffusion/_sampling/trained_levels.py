"""Warnings where a student, a network trained at few noise levels, is evaluated at others."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdekit import AdamsBashforth
from sdekit.calling import warn_caller
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
    denoise: bool,
) -> None:
    """Warns unless a student is sampled by DDIM with steps that begin at its trained levels, and is
    not evaluated at the end, to `denoise`.
    """
    trained = getattr(innermost(model), "trained_levels", ())
    if not trained:
        return
    known = torch.tensor(trained, dtype=torch.float64) + math.log(coordinates.std)
    levels = _levels_of_ddim(method, coordinates, span)
    same = len(levels) == len(known) and torch.allclose(levels, known, rtol=0, atol=_TOLERANCE)
    if same and not denoise:
        return
    warn_caller(
        f"{_trained_at(trained)}: sample it with method='ddim' and the grid that it was trained "
        "for, whose steps begin there (Trajectories.sigmas), without denoise and without a level 0",
    )


def warn_of_few_levels(model: AbstractModel) -> None:
    """Warns of a student where a model is needed at all levels."""
    if trained := getattr(innermost(model), "trained_levels", ()):
        warn_caller(
            f"{_trained_at(trained)}, and is evaluated here at others, so the result is wrong: "
            "take its teacher, or another model that was trained at all levels",
        )


def _trained_at(levels: Sequence[float]) -> str:
    sigmas = ", ".join(f"{math.exp(-l):.5g}" for l in levels[:4])
    return (
        f"this model was trained at {len(levels)} noise levels only, sigma / alpha = {sigmas}"
        f"{', ...' if len(levels) > 4 else ''}"
    )


def _levels_of_ddim(method: AbstractMethod, coordinates: Coordinates, span: Span) -> Tensor:
    """l at the beginning of each step of DDIM without noise; empty for other methods."""
    solver = getattr(method, "solver", None)
    is_ddim = isinstance(solver, AdamsBashforth) and solver.k == 1 and not getattr(method, "eta", 0)
    if not is_ddim or method.grid is None:
        return torch.empty(0)
    return method.grid.points(coordinates, span, method.steps)[:-1]
