"""Guidance: denoisers that follow a condition more closely than the model itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdekit import computed
from sdekit.calling import require_bools
from sdekit.elementary import Time, broadcast, sqrt
from sdekit_diffusion._arguments.immutable import is_immutable
from sdekit_diffusion._arguments.inputs import is_number
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.condition_values import is_single, unknown_like
from sdekit_diffusion._models.derived import AbstractDerivedModel, per_sample
from sdekit_diffusion._models.model import AbstractModel, noise_scale, signal_scale
from sdekit_diffusion._models.score_model import ScoreModel
from sdekit_diffusion._models.wrapped import has_parameters, modules_of


@dataclass(frozen=True, eq=False)
class Guided(AbstractDerivedModel):
    """D_r + w (D - D_r): the denoiser D of a model, moved away from that of a reference, D_r.

    If the reference is the same model without its conditions, this is classifier-free guidance:
    w = 0 is the unconditional model, w = 1 the conditional one, and w > 1 favours samples that are
    typical of the condition. Papers and libraries that write (1 + w') D - w' D_r, such as azula,
    have w' = w - 1. If the reference is a weaker network, this is autoguidance.

    A guided model is a model: it can be sampled by every method, has latents and a likelihood. An
    evaluation of B samples that needs both denoisers is one call of the network with 2 B rows if
    the reference has the same network, else one call of each network.

    Arguments:
        model: the model with its condition, such as `model.given(label=labels)`.
        scale: w.
        by: the reference; by default the same model without its conditions, for which the network
            must have been trained with dropped conditions (`Recipe(drop=...)`).
        interval: the smallest and the largest sigma / alpha at which w applies; at other levels it
            is 1. None for all levels.
        rescale: phi in [0, 1], which multiplies the output of the network, for each sample, by
            phi std(output at w = 1) / std(output at w) + 1 - phi; 0 for no rescaling.
        together: whether one call of 2 B rows is made if possible; it needs twice the memory.

    Raises:
        TypeError: when model or the reference is not a model, scale or rescale not a number, or
            together neither True nor False.
        ValueError: when there is no reference, neither given nor unconditional, for a scale that is
            not finite, an interval that is not increasing, or a rescale outside [0, 1].

    Example:
        >>> net = sd.nets.MLP(shape=(2,), width=8, classes=3)
        >>> model = sd.ScoreModel(net, "vp", "velocity", shape=(2,))
        >>> guided = sd.Guided(model.given(label=torch.tensor([0, 1, 2, 2])), 2.0)
        >>> sd.sample(guided, 4, steps=10, seed=0).shape
        torch.Size([4, 2])

    References:
        Ho and Salimans 2022, arXiv 2207.12598; Kynkaanniemi et al. 2024, arXiv 2404.07724, for the
        interval; Lin et al. 2023, arXiv 2305.08891, section 3.4, for rescaling; Karras et al. 2024,
        arXiv 2406.02507, for autoguidance.
    """

    scale: float
    by: AbstractModel | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    together: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_number("scale", self.scale, "1 for no guidance")
        _require_number("rescale", self.rescale, "a share from 0 to 1")
        require_bools(together=self.together)
        if self.by is None:
            object.__setattr__(self, "by", _unconditional(self.model))
        if not isinstance(self.by, AbstractModel):
            raise TypeError(
                f"by is a model, such as weak.given(label=y), not a {type(self.by).__name__}"
            )
        _require_interval(self.interval)
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale is a share, from 0 to 1; not {self.rescale}")

    @computed
    def stiffness(self) -> float:
        return max(self.model.stiffness, _stiffness(self.scale))

    @computed
    def jumps(self) -> tuple[float, ...]:
        if self.interval is None:
            return super().jumps
        ends = (-math.log(ratio) for ratio in self.interval if 0 < ratio < math.inf)
        return (*super().jumps, *ends)

    def diffusions(self) -> list[AbstractDiffusion]:
        unused = self.scale == 1
        if self.interval is not None:  # elsewhere the reference is not evaluated
            low, high = self.interval
            unused = unused or all(
                math.exp(-float(sde.log_snr(0.0))) <= low
                and high <= math.exp(-float(sde.log_snr(sde.T)))
                for sde in self._reference.diffusions()
            )
        return self.model.diffusions() if unused else super().diffusions()

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        w = self._scale_at(l)
        if self.rescale == 0 or (isinstance(w, float) and w == 1.0):
            return self._guided("data", w, l, u)
        own, reference = self._both("data", l, u)
        return self._rescaled(l, u, own, reference + (own - reference) * broadcast(w, u))

    def predict_noise(self, l: Time, u: Tensor) -> Tensor:
        if self.rescale == 0:
            return self._guided("noise", self._scale_at(l), l, u)
        return super().predict_noise(l, u)

    def _guided(self, prediction: Literal["data", "noise"], w: Time, l: Time, u: Tensor) -> Tensor:
        """The prediction of the reference plus w times the difference of the two predictions."""
        if isinstance(w, float) and w in (0.0, 1.0):
            return _predict(self.model if w else self._reference, prediction, l, u)
        own, reference = self._both(prediction, l, u)
        return reference + (own - reference) * broadcast(w, u)

    @property
    def _reference(self) -> AbstractModel:
        assert self.by is not None
        return self.by

    def _scale_at(self, l: Time) -> Time:
        """w at a level, a number, or at one level per sample."""
        if self.interval is None:
            return float(self.scale)
        low, high = self.interval
        if isinstance(l, Tensor) and l.ndim:
            ratio = torch.exp(-l)
            return torch.where((low <= ratio) & (ratio <= high), self.scale, 1.0)
        ratio = math.exp(min(-float(l), 700.0))
        return float(self.scale) if low <= ratio <= high else 1.0

    def _both(
        self, prediction: Literal["data", "noise"], l: Time, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The predictions of the model and of the reference."""
        joined = _joined(self.model, self._reference, len(u)) if self.together else None
        if joined is None:
            return (
                _predict(self.model, prediction, l, u),
                _predict(self._reference, prediction, l, u),
            )
        levels = torch.cat([l, l]) if isinstance(l, Tensor) and l.ndim else l
        own, reference = _predict(joined, prediction, levels, torch.cat([u, u])).chunk(2)
        return own, reference

    def _rescaled(self, l: Time, u: Tensor, own: Tensor, guided: Tensor) -> Tensor:
        """D with the output of the network rescaled towards its standard deviation at w = 1."""
        skip = self.model.affine(l, "data").skip if isinstance(self.model, ScoreModel) else 0.0
        point = u * broadcast(skip, u)
        spread = _spread(guided - point)
        ratio = torch.where(spread > 0, _spread(own - point) / spread, 1.0)
        factor = self.rescale * ratio + (1 - self.rescale)
        return point + (guided - point) * broadcast(factor, u)


@dataclass(frozen=True, eq=False)
class ClassifierGuided(AbstractDerivedModel):
    """D + w (sigma^2 / alpha) grad_x log p(y | x_t): a denoiser guided by a classifier of noisy
    samples.

    For w = 1 and an exact log p this is E[x_0 | x_t, y].

    Arguments:
        model: the unconditional model.
        log_prob: returns log p(y | x_t = x), `(batch,)`, from (x, t, y), differentiable in x, with
            t `(batch,)` a time of `classifier_sde`. A module is put into evaluation mode. A
            constant in log p does not matter.
        y: the condition, one entry per sample, `(n, ...)`.
        scale: w.
        classifier_sde: the diffusion for which log_prob was trained, an object or a name; by
            default that of the model.

    Raises:
        TypeError: when model is not a model, y is not a tensor with one entry per sample, or scale
            is not a number.
        ValueError: when there is no diffusion, neither given nor of the model, for a scale that is
            not finite; while sampling, for a log_prob of another shape or without a
            gradient.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> def log_prob(x, t, y):  # of the sign of x_0
        ...     return torch.nn.functional.logsigmoid(y * x[:, 0] / (0.1 + t))
        >>> guided = sd.ClassifierGuided(model, log_prob, torch.ones(4), classifier_sde="vp")
        >>> bool((sd.sample(guided, 4, sde="vp", seed=0) > 0).all())
        True

    References:
        Dhariwal and Nichol 2021, arXiv 2105.05233, algorithm 1.
    """

    log_prob: Callable[[Tensor, Tensor, Tensor], Tensor]
    y: Tensor = per_sample()  # noqa: RUF009 - the description of a field
    scale: float = 1.0
    classifier_sde: AbstractDiffusion | str | None = None

    def __post_init__(self) -> None:
        _require_number("scale", self.scale, "1 for the classifier as it is")
        if not isinstance(self.y, Tensor) or not self.y.ndim:
            raise TypeError(
                f"y is a tensor with one entry per sample, not {self.y!r:.60}; use "
                "torch.full((n,), ...) for the same of all"
            )
        super().__post_init__()
        self.model.under(self.classifier_sde)  # refuses where there is none

    @computed
    def learned(self) -> bool:
        return self.model.learned or has_parameters(self.log_prob)

    @computed
    def stiffness(self) -> float:
        return max(self.model.stiffness, _stiffness(self.scale))

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        a = signal_scale(l)
        b = noise_scale(l)
        move = self._gradient(l, u) * broadcast(self.scale * b * b / a, u)
        return self.model.predict_data(l, u) + move

    def predict_noise(self, l: Time, u: Tensor) -> Tensor:
        move = self._gradient(l, u) * broadcast(self.scale * noise_scale(l), u)
        return self.model.predict_noise(l, u) - move

    def diffusions(self) -> list[AbstractDiffusion]:
        return [*super().diffusions(), self.model.under(self.classifier_sde)]

    def networks(self) -> list[nn.Module]:
        return [*super().networks(), *modules_of(self.log_prob)]

    def _gradient(self, l: Time, u: Tensor) -> Tensor:
        """The gradient of log p(y | x_t) in u."""
        sde = self.model.under(self.classifier_sde)
        t = sde.time(l)
        alpha = sde.alpha(t)
        sigma = sde.sigma(t)
        size = sqrt(alpha * alpha + sigma * sigma)
        times = t if isinstance(t, Tensor) else torch.full((len(u),), t)
        times = times.to(u).expand(len(u))

        def total(point: Tensor) -> Tensor:
            log_prob = self.log_prob(point * broadcast(size, point), times, self.y.to(u.device))
            _require_log_prob(log_prob, len(u))
            return log_prob.sum()

        return torch.func.grad(total)(u)


def _stiffness(scale: float) -> float:
    """|w - 1|; 0 for w = 0, which is the reference alone."""
    return abs(scale - 1) if scale else 0.0


def _require_log_prob(log_prob: object, n: int) -> None:
    """Refuses an output of log_prob that is not one number per sample, or has no gradient.

    Raises:
        ValueError: with what to return.
    """
    if not isinstance(log_prob, Tensor) or log_prob.shape != (n,):
        shape = tuple(log_prob.shape) if isinstance(log_prob, Tensor) else type(log_prob).__name__
        raise ValueError(
            f"log_prob(x, t, y) returned {shape}; it must return log p(y | x) of each of {n} "
            f"samples, ({n},): of the logits of a classifier, log_softmax(logits, 1)[range(n), y]"
        )
    if not log_prob.requires_grad:
        raise ValueError(
            "log_prob(x, t, y) has no gradient in x: do not detach x, nor use torch.no_grad()"
        )


def _predict(
    model: AbstractModel, prediction: Literal["data", "noise"], l: Time, u: Tensor
) -> Tensor:
    return model.predict_data(l, u) if prediction == "data" else model.predict_noise(l, u)


def _joined(model: AbstractModel, reference: AbstractModel, n: int) -> ScoreModel | None:
    """A model of 2 n samples, n with the conditions of each model, if both have one network, call
    it alike, and their conditions can be joined; else None.
    """
    if not (isinstance(model, ScoreModel) and isinstance(reference, ScoreModel)):
        return None
    if model.net is not reference.net or not _same_conventions(model, reference):
        return None
    joined = {}
    for name in {**model.conditions, **reference.conditions}:
        own, other = (each.conditions.get(name) for each in (model, reference))
        rows = _rows_of_both(own, other, model.null.get(name), n, model.place()[1])
        if not rows:
            return None
        joined[name] = rows[0]
    return model.given(**joined)


def _same_conventions(model: ScoreModel, reference: ScoreModel) -> bool:
    """Whether two models with one network give it the same arguments and read its output alike."""
    if type(model) is not type(reference):
        return False
    if model.sde is not reference.sde and not is_immutable(model.sde):
        return False  # diffusions that may not be compared by value
    names = ("sde", "predicts", "conditioning", "data_std", "null")
    return all(getattr(model, name) == getattr(reference, name) for name in names)


def _rows_of_both(
    own: Any,  # noqa: ANN401 - whatever the network takes
    other: Any,  # noqa: ANN401
    null: float | None,
    n: int,
    device: torch.device,
) -> list[Any]:
    """A list with the values of a condition for the n samples of each of two models, one after the
    other; an empty list if they cannot be joined.
    """
    if own is other and is_single(own):
        return [own]
    tensors = [value for value in (own, other) if isinstance(value, Tensor) and value.ndim]
    if null is None and len(tensors) < 2:
        return []
    like = tensors[0] if tensors else torch.zeros(n, dtype=torch.int64, device=device)
    numbers = [own, other] if tensors else [own, other, null]
    if any(isinstance(value, float) and not value.is_integer() for value in numbers):
        like = like.to(torch.promote_types(like.dtype, torch.get_default_dtype()))
    both = []
    for value in (own, other):
        if isinstance(value, Tensor) and value.ndim:
            both.append(value)
        elif value is None or isinstance(value, int | float):
            assert null is not None
            both.append(unknown_like(like, null if value is None else value))
        else:
            return []
    return [torch.cat(both)]


def _unconditional(model: AbstractModel) -> AbstractModel:
    """The default reference of a model with conditions: the same model without them.

    Raises:
        ValueError: when there is no such model, or the model has no condition.
    """
    if not isinstance(model, ScoreModel):
        raise ValueError(
            f"{type(model).__name__} has no unconditional model that is known here: give one, "
            "by=..."
        )
    reference = model.unconditional()
    if all(model.conditions.get(name) is None for name in model.null):
        raise ValueError(
            f"the model was not given {' or '.join(model.null)}, so there is nothing to guide to: "
            f"pass model.given({next(iter(model.null))}=...), or another reference, by=..."
        )
    return reference


def _require_number(name: str, value: Any, allowed: str) -> None:  # noqa: ANN401
    """Refuses anything but a finite number.

    Raises:
        TypeError, ValueError: with what is allowed.
    """
    if not is_number(value) or not math.isfinite(value):
        kind = ValueError if is_number(value) else TypeError
        raise kind(f"{name} is a finite number, {allowed}; not {value!r:.60}")


def _require_interval(interval: Any) -> None:  # noqa: ANN401 - what a user gives
    """Refuses anything but an interval of sigma / alpha."""
    if interval is None:
        return
    try:
        low, high = interval
        valid = 0 <= low < high
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "interval has a least and a largest sigma / alpha, such as (0.2, 2.0); not "
            f"{interval!r:.60}"
        )


def _spread(output: Tensor) -> Tensor:
    """The standard deviation over the coordinates of each sample, `(batch,)`."""
    return output.unsqueeze(-1).flatten(1).std(dim=1, correction=0)
