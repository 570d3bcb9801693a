"""Weights of the loss, functions of the noise level. `WEIGHTS` and `__all__` register a new one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._models.prediction import Prediction

__all__ = ["WEIGHTS", "AbstractWeight", "MinSNR", "Sigmoid"]


@dataclass(frozen=True)
class AbstractWeight(ABC):
    """w(l) in the loss E w(l) |eps_hat - eps|^2, where l = log(alpha s / sigma) and s is the
    standard deviation of the data.

    To convert a weight of the error of another prediction:

        |eps_hat - eps|^2 = e^{2l} |z_hat - z|^2 = |v_hat - v|^2 / (1 + e^{-2l})

    with the standardised data z = x_0 / s and their velocity v = a eps - b z, a / b = e^l,
    a^2 + b^2 = 1. A subclass is a frozen dataclass of numbers, which a training run records.

    Attributes:
        density: a name in `DENSITIES`, the density of noise levels with this weight where no other
            is given.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class TruncatedSNR(sd.AbstractWeight):  # max(SNR, 1) |x_0 hat - x_0|^2
        ...     def weight(self, l): return (-2 * l).exp().clamp(min=1)
        >>> recipe = sd.Recipe(steps=20, weighting=TruncatedSNR())
    """

    density: ClassVar[str] = "time"

    @abstractmethod
    def weight(self, l: Tensor) -> Tensor:
        """w(l), `(batch,)`, for l, `(batch,)`."""


@dataclass(frozen=True)
class _Plain(AbstractWeight):
    """1: the error of the noise, as in DDPM (Ho et al. 2020, arXiv 2006.11239, equation 14)."""

    def weight(self, l: Tensor) -> Tensor:
        return torch.ones_like(l)


@dataclass(frozen=True)
class _Likelihood(_Plain):
    """1 with l uniform, which bounds the negative log-likelihood (Song et al. 2021, arXiv
    2101.09258).
    """

    density = "uniform"


@dataclass(frozen=True)
class _Data(AbstractWeight):
    """e^{-2l}: the error of the data, |z_hat - z|^2."""

    def weight(self, l: Tensor) -> Tensor:
        return (-2 * l).exp()


@dataclass(frozen=True)
class _EDM(AbstractWeight):
    """1 + e^{-2l}: the error of the velocity of standardised data, the same as EDM's weight
    1 / c_out^2 of |D - x_0|^2 (Karras et al. 2022, arXiv 2206.00364, table 1).
    """

    density = "log_normal"

    def weight(self, l: Tensor) -> Tensor:
        return 1 + (-2 * l).exp()


@dataclass(frozen=True)
class _Velocity(_EDM):
    """1 + e^{-2l}: the error of the velocity of standardised data, with a density of noise levels
    that has heavier tails than EDM's.
    """

    density = "logistic"


@dataclass(frozen=True)
class _Balanced(AbstractWeight):
    """e^{-l}: for a network that predicts the data, the gradient of the loss with respect to its
    output is proportional to w e^{2l} |z_hat - z| = |eps_hat - eps|, of the same size at all noise
    levels. With w = 1 it would grow like e^l.
    """

    density = "uniform"

    def weight(self, l: Tensor) -> Tensor:
        return (-l).exp()


@dataclass(frozen=True)
class MinSNR(AbstractWeight):
    """min(1, gamma e^{-2l}): min(SNR, gamma) |z_hat - z|^2, with SNR = e^{2l}.

    Arguments:
        gamma: the largest weight of |z_hat - z|^2; 5 as published. The SNR is that of the
            standardised data.

    Raises:
        TypeError: for a gamma that is not a number.
        ValueError: unless gamma is positive.

    Example:
        >>> sd.MinSNR(gamma=5).weight(torch.tensor([0.0, 3.0])).round(decimals=4)
        tensor([1.0000, 0.0124])

    References:
        Hang et al. 2023, arXiv 2303.09556.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        require_numbers(self, "gamma")
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma = {self.gamma!r} must be a positive number")

    def weight(self, l: Tensor) -> Tensor:
        return (self.gamma * (-2 * l).exp()).clamp(max=1.0)


@dataclass(frozen=True)
class Sigmoid(AbstractWeight):
    """1 / (1 + e^{2l - bias}), with l uniform: a small weight at low noise, where a model learns
    fine details, which take most of the bits and matter little for how images look.

    Arguments:
        bias: the log-SNR 2l at which the weight is 1/2.

    Raises:
        TypeError: for a bias that is not a number.
        ValueError: unless bias is finite.

    Example:
        >>> sd.Sigmoid(bias=2.0).weight(torch.tensor([1.0]))
        tensor([0.5000])

    References:
        Kingma and Gao 2023, arXiv 2303.00848; Hoogeboom et al. 2024, arXiv 2410.19324.
    """

    density = "uniform"
    bias: float = 2.0

    def __post_init__(self) -> None:
        require_numbers(self, "bias")
        if not math.isfinite(self.bias):
            raise ValueError(f"bias = {self.bias!r} must be a finite number")

    def weight(self, l: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - 2 * l)


WEIGHTS: Mapping[str, AbstractWeight] = {
    "plain": _Plain(),
    "likelihood": _Likelihood(),
    "edm": _EDM(),
    "velocity": _Velocity(),
    "min_snr": MinSNR(),
    "balanced": _Balanced(),
    "data": _Data(),
    "sigmoid": Sigmoid(),
}

# The default weights other than "plain", by prediction; chosen with benchmarks/recipes.py.
_DEFAULT_WEIGHTINGS: Mapping[Prediction, str] = {"data": "balanced", "velocity": "velocity"}

if TYPE_CHECKING:
    Weighting = str | AbstractWeight
else:
    Weighting = Literal[*WEIGHTS]  # what the command line offers


def default_weighting(predicts: Prediction, *, discrete: bool) -> str:
    """The name of the default weight for what a network predicts. With discrete levels it is
    "plain" for the velocity, since "velocity" would come with a density.
    """
    name = _DEFAULT_WEIGHTINGS.get(predicts, "plain")
    return "plain" if discrete and name == "velocity" else name
