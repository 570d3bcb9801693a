"""What `OnClock` integrates where the caller leaves it to the model, by which rule, and on which
`Focused` grid. The numbers were chosen by benchmarks/choice.py.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

from sdekit import (
    DEIS,
    AbstractMultistep,
    AdamsBashforth,
    AdamsMoulton,
    DPMSolver,
    LimitedUniPC,
    UniPC,
)
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.clock import Integrand
from sdekit_diffusion._sampling.focused import Focused
from sdekit_diffusion._sampling.grid import AbstractGrid


class Choice(NamedTuple):
    """An integrand and a rule, for fewer than limit + slope s steps, where s is the stiffness of
    the model; and the arguments of the `Focused` that goes with them, where the caller gives none.
    For models of d coordinates the reach is multiplied by d^power, and the sharpness by
    d^sharpness_power.
    """

    limit: float
    integrand: Integrand
    rule: AbstractMultistep
    slope: float = 0.0
    reach: float | None = None
    sharpness: float | None = None
    power: float = 0.0
    share: float | None = None
    native_share: float | None = None
    sharpness_power: float = 0.0

    @lru_cache(maxsize=64)  # noqa: B019 - the choices are constants
    def on(self, grid: Focused, d: int) -> Focused:
        """The grid with what this choice has and the caller does not give, for d coordinates."""
        reach = None if self.reach is None else self.reach * d**self.power
        sharpness = None if self.sharpness is None else self.sharpness * d**self.sharpness_power
        return replace(
            grid,
            share=self.share if grid.share is None else grid.share,
            reach=reach,
            sharpness=sharpness if grid.sharpness is None else grid.sharpness,
            native_share=self.native_share if grid.share is None else None,
        )


# exact: exact scores, such as those of mixtures; noise: networks that predict it; other: others
Kind = Literal["exact", "noise", "other"]

_TWO = AdamsMoulton(2, self_starting=False, lower_final=True)
_THREE = replace(_TWO, k=3)
_FOUR = replace(_TWO, k=4, lower_final=False)
# In few steps a correction multiplies errors in directions in which the data are narrow.
_PREDICTOR = AdamsBashforth(3, self_starting=False)
_UNIPC = UniPC(2, lower_final=True)
_LIMITED = LimitedUniPC(lower_final=True)
CHOICES: dict[Kind, tuple[Choice, ...]] = {
    "exact": (
        Choice(7, "velocity", _PREDICTOR),
        Choice(25, "velocity", _THREE),
        Choice(math.inf, "velocity", _FOUR),
    ),
    "noise": (
        Choice(7, "data", _UNIPC, reach=10, sharpness=14),
        Choice(18, "velocity", _TWO, reach=10, sharpness=24),
        Choice(30, "velocity", _TWO, reach=30),
        Choice(40, "velocity", _THREE, reach=math.inf),
        Choice(math.inf, "velocity", _FOUR, reach=math.inf),
    ),
    "other": (
        Choice(6, "velocity", _PREDICTOR),
        Choice(12, "velocity", _TWO, share=0.8, native_share=0.1),
        Choice(22, "velocity", _TWO, share=0.7, native_share=0.2),
        Choice(35, "velocity", _THREE, share=0.5, native_share=0.3),
        Choice(math.inf, "velocity", _FOUR, share=0.5, native_share=0.3),
    ),
}
# On grids that do not follow the model.
_CHOICES_ELSEWHERE: dict[Kind, tuple[Choice, ...]] = {
    "exact": (Choice(math.inf, "velocity", replace(_THREE, lower_final=20)),),
    "noise": (Choice(math.inf, "velocity", _TWO),),
    "other": (Choice(math.inf, "velocity", replace(_THREE, lower_final=20)),),
}
# For models whose stiffness is 1 or more, on every grid.
STIFF_CHOICES: dict[Kind, tuple[Choice, ...]] = {
    "exact": (
        Choice(-6, "data", _LIMITED, slope=3.5),
        Choice(10, "data", _UNIPC),
        Choice(1, "velocity", _LIMITED, slope=4.5),
        Choice(math.inf, "velocity", _TWO),
    ),
    "noise": (
        Choice(0, "data", _LIMITED, slope=1, reach=math.inf, sharpness=24),
        Choice(8, "data", _LIMITED, slope=1.4, reach=10, sharpness=24, power=0.5),
        Choice(3, "velocity", _LIMITED, slope=6, reach=10, sharpness=24, power=0.5),
        Choice(18, "velocity", _TWO, slope=3, reach=10, sharpness=24),
        Choice(16, "velocity", _TWO, slope=14, reach=10, sharpness=24, power=0.5),
        Choice(math.inf, "velocity", _THREE, reach=math.inf, sharpness=24),
    ),
    "other": (
        Choice(0, "data", _LIMITED, slope=2, share=0.9),
        Choice(7, "data", _UNIPC, share=0.9),
        Choice(6, "velocity", _LIMITED, slope=4, share=0.8, native_share=0.1),
        Choice(10, "velocity", _TWO, slope=12, share=0.8, native_share=0.1),
        Choice(math.inf, "velocity", _THREE, share=0.5, native_share=0.3),
    ),
}
# Those that `fit_sampler` tries; the names are saved with models.
FITTED_RULES: dict[str, tuple[Integrand, AbstractMultistep]] = {
    "AdamsBashforth(1), data": ("data", AdamsBashforth(1)),
    "AdamsBashforth(3), velocity": ("velocity", _PREDICTOR),
    "AdamsMoulton(2), velocity": ("velocity", _TWO),
    "AdamsMoulton(3), velocity": ("velocity", _THREE),
    "AdamsMoulton(4), velocity": ("velocity", _FOUR),
    "AdamsMoulton(3), noise": ("noise", AdamsMoulton(3, lower_final=True)),
    "LimitedUniPC, velocity": ("velocity", _LIMITED),
    "LimitedUniPC, data": ("data", _LIMITED),
    "UniPC(2), data": ("data", _UNIPC),
    "UniPC(3), data": ("data", UniPC(3, lower_final=True)),
    "UniPC(3), noise": ("noise", UniPC(3, lower_final=True)),
    "DPMSolver(2), data": ("data", DPMSolver(2, lower_final=True)),
    "DPMSolver(3), noise": ("noise", DPMSolver(3, lower_final=True)),
    "DEIS(3), noise": ("noise", DEIS(3, lower_final=True)),
}
# The integrands of rules that have weights of their own.
WEIGHTED_RULES: dict[str, Integrand] = {
    "weights, data": "data",
    "weights, noise": "noise",
    "weights, velocity": "velocity",
}
WITH_NOISE = Choice(
    math.inf,
    "data",
    rule=AdamsMoulton(2, lower_final=True),
    share=0.95,
    reach=0.85,
    power=0.35,
    sharpness=350,
    sharpness_power=0.5,
)
# For an integrand that the caller names.
RULES: dict[str, AbstractMultistep] = {
    "data": AdamsMoulton(3, self_starting=False),
    "noise": AdamsBashforth(2, variable="l", self_starting=False),
}


def default_choice(grid: AbstractGrid, steps: int, model: AbstractModel | None = None) -> Choice:
    """The choice for a grid, a number of steps and a model; without a model that for exact
    scores.
    """
    kind: Kind = "exact"
    if model is not None and model.predicts_noise:
        kind = "noise"
    elif model is not None and model.learned:
        kind = "other"
    stiffness = 0.0 if model is None else model.stiffness
    table = CHOICES if grid.follows_model else _CHOICES_ELSEWHERE
    choices = (STIFF_CHOICES if stiffness >= 1 else table)[kind]
    return next(choice for choice in choices if steps < choice.limit + choice.slope * stiffness)
