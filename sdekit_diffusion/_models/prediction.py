"""Predictions of networks, and the data and the noise in terms of them."""

from collections.abc import Callable, Mapping
from typing import Literal, cast

import torch
from torch import Tensor

from sdekit import did_you_mean
from sdekit.elementary import Time

Prediction = Literal["noise", "data", "score", "velocity", "flow", "reverse_flow"]

# The names of diffusers, which `predicts` also accepts.
ALIASES: dict[str, Prediction] = {
    "epsilon": "noise",
    "sample": "data",
    "v_prediction": "velocity",
    "flow_prediction": "flow",
}

# Names in papers and programs, for suggestions in messages.
PUBLISHED_NAMES: dict[str, Prediction] = {
    **dict.fromkeys(("x0", "x_0", "x0_prediction", "x_prediction", "sample_prediction"), "data"),
    **dict.fromkeys(("eps", "eps_prediction", "epsilon_prediction", "noise_prediction"), "noise"),
    "v": "velocity",
}


def _inverse(value: Time) -> Time:
    """1 / value, and 0 for 0: a point has no information on x_0 where alpha = 0, nor on eps where
    sigma = 0, and their mean is 0.
    """
    if isinstance(value, Tensor):
        return torch.where(value == 0, 0.0, 1 / value)
    return 1 / value if value else 0.0


def _scaled_inverse(factor: Time, value: Time) -> tuple[Time, Time]:
    """1 / value, and factor / value."""
    inverse = _inverse(value)
    return inverse, factor * inverse


def _over_square(first: Time, second: Time, alpha: Time, sigma: Time) -> tuple[Time, Time]:
    square = alpha * alpha + sigma * sigma
    return first / square, second / square


def _over_sum(first: Time, second: Time, alpha: Time, sigma: Time) -> tuple[Time, Time]:
    total = alpha + sigma
    return first / total, second / total


Coefficients = Callable[[Time, Time], tuple[Time, Time]]

# Functions of (alpha, sigma): a and b in x_0 = a x + b o, for the output o at
# x = alpha x_0 + sigma eps.
DATA: Mapping[Prediction, Coefficients] = {
    "noise": lambda alpha, sigma: _scaled_inverse(-sigma, alpha),
    "data": lambda alpha, sigma: (0.0, 1.0),
    "score": lambda alpha, sigma: _scaled_inverse(sigma * sigma, alpha),
    "velocity": lambda alpha, sigma: _over_square(alpha, -sigma, alpha, sigma),
    "flow": lambda alpha, sigma: _over_sum(1.0, -sigma, alpha, sigma),
    "reverse_flow": lambda alpha, sigma: _over_sum(1.0, sigma, alpha, sigma),
}

# The same for eps = a x + b o.
NOISE: Mapping[Prediction, Coefficients] = {
    "noise": lambda alpha, sigma: (0.0, 1.0),
    "data": lambda alpha, sigma: _scaled_inverse(-alpha, sigma),
    "score": lambda alpha, sigma: (0.0, -sigma),
    "velocity": lambda alpha, sigma: _over_square(sigma, alpha, alpha, sigma),
    "flow": lambda alpha, sigma: _over_sum(1.0, alpha, alpha, sigma),
    "reverse_flow": lambda alpha, sigma: _over_sum(1.0, -alpha, alpha, sigma),
}


def prediction_of(name: str) -> Prediction:
    """The prediction of a name.

    Raises:
        ValueError: for an unknown name.
    """
    predicts = ALIASES.get(name, name)
    if predicts not in DATA:
        suggestion = did_you_mean(name, [*DATA, *ALIASES], PUBLISHED_NAMES)
        raise ValueError(f"predicts = {name!r} is not one of {', '.join(DATA)}{suggestion}")
    return cast(Prediction, predicts)
