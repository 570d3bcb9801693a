"""What the default method integrates without noise, and by which rule. The numbers were chosen by
benchmarks/choice.py.
"""

import math
from dataclasses import replace
from typing import NamedTuple

from sdekit import AbstractMultistep, AdamsBashforth, AdamsMoulton, DPMSolver, UniPC
from sdekit_diffusion._sampling.clock import Integrand
from sdekit_diffusion._sampling.grids import AbstractGrid


class Choice(NamedTuple):
    """An integrand and a rule, for fewer than limit + slope s steps, where s is the stiffness of
    the model; and the reach and the sharpness of a `Focused` for which the caller gives no reach.
    """

    limit: float
    integrand: Integrand
    rule: AbstractMultistep
    slope: float = 0.0
    reach: float | None = None
    sharpness: float | None = None


_TWO = AdamsMoulton(2, self_starting=False, lower_final=True)
_THREE = replace(_TWO, k=3)
_FOUR = replace(_TWO, k=4, lower_final=False)
# In few steps a correction multiplies errors in directions in which the data are narrow.
_PREDICTOR = AdamsBashforth(3, self_starting=False)
_UNIPC = UniPC(2, lower_final=True)
_DPM_SOLVER = DPMSolver(2, lower_final=True)
# The keys say whether the model is a network that predicts the noise.
_CHOICES = {
    False: (
        Choice(7, "velocity", _PREDICTOR),
        Choice(25, "velocity", _THREE),
        Choice(math.inf, "velocity", _FOUR),
    ),
    True: (
        Choice(7, "data", _UNIPC, reach=10, sharpness=17),
        Choice(18, "velocity", _TWO, reach=10, sharpness=24),
        Choice(26, "velocity", _TWO, reach=math.inf),
        Choice(40, "velocity", _THREE, reach=math.inf),
        Choice(math.inf, "velocity", _FOUR, reach=math.inf),
    ),
}
# On grids that do not follow the model.
_CHOICES_ELSEWHERE = {
    False: (Choice(math.inf, "velocity", replace(_THREE, lower_final=20)),),
    True: (Choice(math.inf, "velocity", _TWO),),
}
# For models whose stiffness is 1 or more, on every grid.
_STIFF_CHOICES = {
    False: (
        Choice(-3, "data", UniPC(1), slope=3.5),
        Choice(5, "data", _UNIPC, slope=4.5),
        Choice(math.inf, "velocity", _TWO),
    ),
    True: (
        Choice(-2.5, "data", UniPC(1), slope=3.2, reach=20, sharpness=17),
        Choice(-3, "data", _DPM_SOLVER, slope=5, reach=10, sharpness=17),
        Choice(0, "data", _UNIPC, slope=7, reach=10, sharpness=17),
        Choice(math.inf, "velocity", _TWO, reach=10, sharpness=24),
    ),
}
# For an integrand that the caller names.
RULES: dict[str, AbstractMultistep] = {
    "data": AdamsMoulton(3, self_starting=False),
    "noise": AdamsBashforth(2, variable="l", self_starting=False),
}


def default_choice(
    grid: AbstractGrid, steps: int, predicts_noise: bool, stiffness: float
) -> Choice:
    """The choice for a grid, a number of steps and a model."""
    table = _CHOICES if grid.follows_model else _CHOICES_ELSEWHERE
    choices = (_STIFF_CHOICES if stiffness >= 1 else table)[predicts_noise]
    return next(choice for choice in choices if steps < choice.limit + choice.slope * stiffness)
