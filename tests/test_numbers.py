"""Arguments that are numbers: what is not one is refused by name, in every public class."""

import dataclasses
import inspect
import math
from types import NoneType, UnionType
from typing import get_args

import numpy as np
import pytest
import torch

import sdekit
import sdekit_diffusion as sd

MIXTURE = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
X = torch.zeros(1, 1)
OBSERVATION = sd.LinearObservation(torch.ones(1, 1), torch.zeros(1), 0.1)
# The arguments that a class needs besides its numbers.
NEEDED = {
    "ClassifierGuided": lambda: {
        "model": MIXTURE,
        "log_prob": lambda t, x, y: x.sum(dim=1),
        "y": torch.zeros(1),
        "classifier_sde": "vp",
    },
    "DPS": lambda: {"model": MIXTURE, "observation": OBSERVATION},
    "Guided": lambda: {"model": MIXTURE, "by": MIXTURE, "scale": 2.0},
    "InTime": lambda: {"solver": sdekit.EulerMaruyama()},
    "Noised": lambda: {"x": X},
    "RePaint": lambda: {"y": X, "mask": X == 0},
    "ReverseSDE": lambda: {"forward": sd.VPSDE(), "score": lambda t, x: -x},
}
# Records of numbers that the library computes, and coefficients that a method is written with.
RECORDS = {
    "AngleClocked",
    "Clocked",
    "NCSNSettings",
    "PosteriorProblem",
    "RosenbrockTableau",
    "WeightedSamples",
}
WRONG = {
    "text": "a",
    "None": None,
    "a list": [0.5],
    "two numbers": torch.tensor([0.25, 0.5]),
    "an array of two": np.array([0.25, 0.5]),
    "a function": lambda l: 0.5,
    "not a number": math.nan,
}


def kinds(annotation):
    return get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)


def numbers(kind):
    """The arguments of a class that are one number."""
    return {
        field.name: kinds(field.type)
        for field in dataclasses.fields(kind)
        if field.init and float in kinds(field.type) and torch.Tensor not in kinds(field.type)
    }


CLASSES = {
    name: kind
    for module in (sdekit, sd, sd.data)
    for name, kind in vars(module).items()
    if inspect.isclass(kind)
    and not inspect.isabstract(kind)
    and dataclasses.is_dataclass(kind)
    and not name.startswith(("_", "Abstract"))
    and name not in RECORDS
}
CASES = [
    pytest.param(name, argument, wrong, id=f"{name}.{argument}: {label}")
    for name, kind in CLASSES.items()
    for argument, allowed in numbers(kind).items()
    for label, wrong in WRONG.items()
    if not (wrong is None and NoneType in allowed)
    and not (np.ndim(wrong) and tuple[float, ...] in allowed)
    and not (callable(wrong) and any("Callable" in str(one) for one in allowed))
]


def made(name, **arguments):
    """An object, of a method after a solve, where some ranges are checked."""
    one = CLASSES[name](**NEEDED.get(name, dict)() | arguments)
    if isinstance(one, sd.AbstractMethod):
        sd.sample(MIXTURE, 1, sde="vp", method=one)
    return one


@pytest.mark.parametrize(("name", "argument", "wrong"), CASES)
def test_what_is_not_a_number_is_refused_by_name(name, argument, wrong):
    with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
        made(name, **{argument: wrong})


def test_the_classes_are_those_with_numbers():
    with_numbers = {name for name, kind in CLASSES.items() if numbers(kind)}
    assert {"DDIM", "EDM", "Focused", "Guided", "Langevin", "OnClock", "VPSDE"} < with_numbers
    assert set(NEEDED) <= with_numbers
    assert set(RECORDS) <= set(vars(sdekit)) | set(vars(sd))
