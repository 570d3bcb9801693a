"""What the default method integrates without noise, and by which rule. The numbers were chosen by
benchmarks/choice.py.
"""

import math
from dataclasses import replace
from typing import NamedTuple

from sdekit import AbstractMultistep, AdamsBashforth, AdamsMoulton, LimitedUniPC, UniPC
from sdekit_diffusion._sampling.clock import Integrand
from sdekit_diffusion._sampling.grids import AbstractGrid


class Choice(NamedTuple):
    """An integrand and a rule, for fewer than limit + slope s steps, where s is the stiffness of
    the model; and the reach and the sharpness of a `Focused` for which the caller gives no reach.
    For models of d coordinates the reach is multiplied by d^power.
    """

    limit: float
    integrand: Integrand
    rule: AbstractMultistep
    slope: float = 0.0
    reach: float | None = None
    sharpness: float | None = None
    power: float = 0.0


_TWO = AdamsMoulton(2, self_starting=False, lower_final=True)
_THREE = replace(_TWO, k=3)
_FOUR = replace(_TWO, k=4, lower_final=False)
# In few steps a correction multiplies errors in directions in which the data are narrow.
_PREDICTOR = AdamsBashforth(3, self_starting=False)
_UNIPC = UniPC(2, lower_final=True)
_LIMITED = LimitedUniPC(lower_final=True)
# The keys say whether the model is a network that predicts the noise.
_CHOICES = {
    False: (
        Choice(7, "velocity", _PREDICTOR),
        Choice(25, "velocity", _THREE),
        Choice(math.inf, "velocity", _FOUR),
    ),
    True: (
        Choice(7, "data", _UNIPC, reach=10, sharpness=24),
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
        Choice(-6, "data", _LIMITED, slope=3.5),
        Choice(10, "data", _UNIPC),
        Choice(1, "velocity", _LIMITED, slope=4.5),
        Choice(math.inf, "velocity", _TWO),
    ),
    True: (
        Choice(8, "data", _LIMITED, slope=1.4, reach=10, sharpness=24, power=0.5),
        Choice(-2, "velocity", _LIMITED, slope=6, reach=10, sharpness=24, power=0.5),
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
