"""What is recorded with a network, shared by the copies of its model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sdekit_diffusion.data import Scale


class FittedSampler(NamedTuple):
    """A multistep rule, by its name in `FITTED_RULES` or `WEIGHTED_RULES`, and log(alpha / sigma)
    at the ends of its steps, which `fit_sampler` has chosen for a network; and the weights of each
    step, if the rule has weights of its own.
    """

    rule: str
    l: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...] = ()


# By the scale of guidance and the number of steps.
Samplers = Mapping[tuple[float, int], FittedSampler]


@dataclass
class Recorded:
    """What training records: mean, standard deviation and scale of the data; conditions; and the
    levels log(alpha / sigma) of a student. And the samplers of `fit_sampler`.
    """

    mean: Tensor | float = 0.0
    std: float | None = None
    scale: Scale = Scale()  # noqa: RUF009 - frozen
    never_dropped: tuple[str, ...] = ()
    trained_levels: tuple[float, ...] = ()
    samplers: Samplers | None = None


def samplers_in(config: Mapping[str, Any]) -> Samplers:
    """The samplers in the config of a checkpoint."""
    return {
        (saved["guidance"], len(saved["l"]) - 1): FittedSampler(
            saved["rule"], tuple(saved["l"]), tuple(map(tuple, saved.get("weights", ())))
        )
        for saved in config.get("samplers") or ()
    }
