"""Mean and standard deviation of the data of a model: those of the model, or estimated from its
denoiser.
"""

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sdekit import normal
from sdekit.calling import warn_caller
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.counters import SCALE
from sdekit_diffusion._models.derived import AbstractDerivedModel
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.model import AbstractModel, signal_scale
from sdekit_diffusion._models.score_model import ScoreModel

# The number of coordinates of all points together: the estimate is accurate to a few per cent.
_MIN_COORDINATES = 2048
_POINTS = (8, 256)  # the smallest and the largest number of points
# Noise over the standard deviation of the data at which noisy data are nearly normal.
_NOISE_RATIO = 8.0
_FINAL_RATIO = 0.3  # the same ratio below which the estimate is final
_MEAN_TOLERANCE = 0.02  # the last change of the mean, in standard deviations
_LARGEST_FACTOR = 16.0  # the largest ratio of neighbouring levels in the search for the first
_MAX_LEVELS = 16
_TENSORS_READ = 16  # the number of tensors of which a value is read to detect changes
_LARGEST_SHARE = 0.98  # of the variance: above, a network removes no noise, as before training
_SMALLEST_REMOVED = 0.2  # at y, from data of up to 2 y; random weights may remove less by chance
_ROUNDING = 1e-4  # of a difference, relative to the noise
_WIDE_FACTOR = 0.3  # of the share removed at y / 16; for a normal law 1/64 or less


@dataclass(frozen=True)
class DataScale:
    """The mean of data, a number or shaped like one sample, and their standard deviation."""

    mean: Tensor | float
    std: float


# By models, or for networks with conditions, of which every label makes a new model, by these.
_ESTIMATES: WeakKeyDictionary[object, tuple[Hashable, DataScale]] = WeakKeyDictionary()


def data_scale(
    model: AbstractModel, shape: tuple[int, ...] | None, sde: AbstractDiffusion | None = None
) -> DataScale:
    """`data_mean` and `data_std` of the model; without a data_std estimates from the denoiser, by
    some seven evaluations of a small batch, at levels of its diffusion, or of `sde` if it has none.

    A data_mean that is not 0 is kept. Where an estimate is not possible, the mean is the middle of
    the model's `data_range` and the standard deviation a quarter of its width, or without a range 0
    and 1. With labels per sample the estimate is that of the network without them, because a sample
    must not depend on the labels of the others; there is none if the network does not work without
    them, of which a warning is raised, unless there is a range. A warning is also raised where the
    network, or a score that is a plain function, seems to be one of data with a larger standard
    deviation than the largest noise of the diffusion.
    """
    if model.data_std is not None:
        return DataScale(model.data_mean, model.data_std)
    inner = model.model if isinstance(model, AbstractDerivedModel) else None
    if inner is None:
        scale = _estimate_or_default(model, shape, model.sde or sde)
    else:
        scale = data_scale(inner, shape, sde)
    has_mean = isinstance(model.data_mean, Tensor) or model.data_mean != 0
    return replace(scale, mean=model.data_mean) if has_mean else scale


def _estimate_or_default(
    model: AbstractModel, shape: tuple[int, ...] | None, sde: AbstractDiffusion | None
) -> DataScale:
    """The estimate, which is cached until the model changes; the default where there is none."""
    low, high = getattr(model, "data_range", None) or (-2.0, 2.0)
    default = DataScale((low + high) / 2, (high - low) / 4)
    event = model.shape if shape is None else shape
    if sde is None or event is None or not math.prod(event):
        return default
    if not _works_without(model, model.entries().keys()):
        if getattr(model, "data_range", None) is None:
            warn_caller(
                "the mean and the standard deviation of the data are not known, and are not "
                "estimated from a model that needs conditions of each sample: the solve is made "
                f"for data of mean {default.mean:g} and standard deviation {default.std:g}. Give "
                "ScoreModel(..., data_mean=, data_std=), or the model these attributes"
            )
        return default
    key = _key(model, event, sde)
    if key is None:
        return _estimate(model, event, sde, default)
    net = getattr(model, "net", None)
    owner = net if model.entries() and isinstance(net, nn.Module) else model
    cached = _ESTIMATES.get(owner)
    if cached is None or cached[0] != key:
        cached = _ESTIMATES[owner] = key, _estimate(model, event, sde, default)
    return cached[1]


def _works_without(model: AbstractModel, names: Collection[str]) -> bool:
    """Whether a model has values for these conditions that stand for unknown ones, and was trained
    with them; true if there are none.
    """
    if not names:
        return True
    return isinstance(model, ScoreModel) and {*names} <= {*model.null} - {*model.never_dropped}


def _with_unknown(model: AbstractModel, points: int) -> AbstractModel:
    """The model with unknown conditions of each of a number of points; itself without any."""
    entries = model.entries()
    if not isinstance(model, ScoreModel) or not entries:
        return model
    return model.rows(torch.zeros(points, dtype=torch.int64)).without(entries)


def _key_of_conditions(model: AbstractModel) -> Hashable | None:
    """What an estimate depends on of the conditions: for a network, by which that of all labels is
    kept, their values, since objects of which nothing else keeps a reference may have the identity
    of earlier ones; else their identities. None if it is not known by values.
    """
    given = getattr(model, "conditions", {})
    entries = model.entries()
    if not entries:
        return tuple((name, id(value)) for name, value in given.items())
    others = {name: value for name, value in given.items() if name not in entries}
    if not all(isinstance(value, int | float | str | None) for value in others.values()):
        return None
    nulls = getattr(model, "null", {})
    unknown = [(name, repr(nulls[name]), value.shape[1:]) for name, value in entries.items()]
    return tuple(others.items()), tuple(unknown)


def _key(model: AbstractModel, shape: tuple[int, ...], sde: AbstractDiffusion) -> Hashable | None:
    """Everything that an estimate depends on: conventions, the network, the version counters of its
    weights and buffers, and some of their values, since writes to `.data` are not counted. None if
    there are no weights.
    """
    tensors = [
        value
        for network in model.networks()
        for value in (*network.parameters(), *network.buffers())
    ]
    if not tensors or any(value.is_inference() for value in tensors):
        return None
    of_conditions = _key_of_conditions(model)
    if of_conditions is None:
        return None
    if not model.entries():
        tensors += [
            one for one in getattr(model, "conditions", {}).values() if isinstance(one, Tensor)
        ]
    names = ("predicts", "conditioning", "data_range")
    return (
        shape,
        sde,
        id(getattr(model, "net", None)),
        *(getattr(model, name, None) for name in names),
        of_conditions,
        *((value.data_ptr(), value._version) for value in tensors),
        *_sample_numbers(tensors),
    )


def _sample_numbers(tensors: list[Tensor]) -> list[float]:
    """The first value of some tensors, evenly spaced in the list, in one read."""
    selected = [value for value in tensors if value.numel()][:: 1 + len(tensors) // _TENSORS_READ]
    first = [value.detach().reshape(-1)[0].to(torch.float64) for value in selected]
    return torch.stack(first).tolist() if first else []


def _estimate(
    model: AbstractModel, shape: tuple[int, ...], sde: AbstractDiffusion, default: DataScale
) -> DataScale:
    """The estimate; `default` if the denoiser fails, is not finite, or cannot be that of any data.

    A network is considered untrained if the estimate is above half the largest noise of its
    diffusion, or it was trained with too little noise, of which a warning is raised if the network
    removes far less of the variance at a sixteenth of this noise.

    States v = x_t / alpha with the noise y = sigma / alpha have the variance s^2 + y^2. Where y is
    several times s, they are nearly normal, the mean of D is that of the data, and the share of
    their variance that is left in D is s^2 / (s^2 + y^2), which gives s. At such a y normal states
    are drawn, and the probability flow is solved by DPM-Solver++(2M) to a y below s, where s^2 is
    their variance minus y^2.
    """
    dtype, device = model.place()
    dtype = torch.promote_types(dtype, torch.float32)
    pairs = max(_POINTS[0], min(_POINTS[1], _MIN_COORDINATES // math.prod(shape))) // 2
    z = normal(0, torch.arange(pairs, device=device), shape, counter=SCALE, dtype=dtype)
    z = torch.cat([z, -z])
    z = z / z.square().mean().sqrt()
    try:
        same = _with_unknown(model, len(z))
        with torch.no_grad(), evaluating(same, len(z)):
            mean, std = _along_flow(same, z, *_levels(sde))
            wide = 0 < std < math.inf and _is_wide(same, mean + std * z, _levels(sde)[0])
            beyond = std == math.inf and _is_beyond(same, z, _levels(sde)[0])
    except Exception:
        return default
    trained = any(True for network in model.networks() for _ in network.parameters())
    largest = 0.5 * _levels(sde)[0] if trained else math.inf
    valid = 0 < std < largest and bool(mean.isfinite().all())
    if beyond and not trained:
        warn_caller(
            "the mean and the standard deviation of the data are not known, and even at the "
            f"largest sigma / alpha of {sde}, {_levels(sde)[0]:.3g}, this model takes noise for "
            "data: it is not the score under this diffusion, such as one with another sign or "
            "factor (see check_model), or that of data with a larger standard deviation, which "
            f"need another diffusion{sde.more_noise}. The solve is made for data of mean "
            f"{default.mean:.3g} and standard deviation {default.std:.3g}"
        )
    if wide and std >= largest:
        warn_caller(
            f"the standard deviation of the data is not known, and that of the network, {std:.3g}, "
            f"is not below half the largest sigma / alpha of {sde}, {2 * largest:.3g}: the "
            f"solve is made for data of mean {default.mean:.3g} and standard deviation "
            f"{default.std:.3g}. Give ScoreModel(..., data_mean=, data_std=) unless the network is "
            "not trained"
        )
    return DataScale(mean, std) if valid else default


def _levels(sde: AbstractDiffusion) -> tuple[float, float]:
    """The largest and the smallest sigma / alpha of a diffusion."""
    return math.exp(-float(sde.log_snr(sde.latest()))), math.exp(-float(sde.log_snr(0.0)))


def _along_flow(
    model: AbstractModel, z: Tensor, largest: float, smallest: float
) -> tuple[Tensor, float]:
    """Mean and standard deviation of the data, from standard normals z."""
    start = max(
        _NOISE_RATIO, 2 * math.sqrt(z[0].numel())
    )  # half of the variance may be in one direction
    y = largest
    mean = torch.zeros_like(z[0])
    std = 0.0
    for _ in range(_MAX_LEVELS):
        v = mean + math.hypot(y, std) * z
        data = _denoise(model, v, y)
        change = float((data.mean(dim=0) - mean).square().mean().sqrt())
        mean = data.mean(dim=0)
        std = _std_from_denoiser(v, data, y)
        if not math.isfinite(std):
            return mean, std
        next_level = min(y, max(start * std, y / _LARGEST_FACTOR))
        if next_level <= 0.7 * y:
            y = next_level
        elif change <= _MEAN_TOLERANCE * std:  # with little noise D is far from the mean
            break
    v = mean + math.hypot(y, std) * z
    previous = None
    for _ in range(_MAX_LEVELS):
        next_noise = max(smallest, y / 2)
        data = _denoise(model, v, y)
        target = data if previous is None else data + 0.5 * (data - previous)
        v = next_noise / y * v + (1 - next_noise / y) * target
        previous = data
        y = next_noise
        std = math.sqrt(max(_variance(v) - y * y, 0.0))
        if y < _FINAL_RATIO * std or y <= smallest:
            return mean, std
    return mean, 0.0  # s is smaller than all noise


def _denoise(model: AbstractModel, v: Tensor, y: float) -> Tensor:
    """D at x / alpha = v and sigma / alpha = y."""
    l = -math.log(y)
    return model.predict_data(l, v * float(signal_scale(l)))


def _is_wide(model: AbstractModel, v: Tensor, y: float) -> bool:
    """Whether D removes a far smaller share of the variance of v at the noise y / 16 than at y, as
    for data that are larger than the noise; random weights remove little, or the same at both.
    """
    removed, less = (1 - _share(v, _denoise(model, v, level)) for level in (y, y / 16))
    return removed > _SMALLEST_REMOVED and abs(less) < _WIDE_FACTOR * removed


def _is_beyond(model: AbstractModel, z: Tensor, y: float) -> bool:
    """Whether D leaves nearly all of the variance of states v = y z, as for data that are larger
    than the noise y, or more; but is not v, as for a score that is 0.
    """
    v = y * z
    data = _denoise(model, v, y)
    return _share(v, data) >= _LARGEST_SHARE and bool((data - v).abs().amax() > _ROUNDING * y)


def _share(v: Tensor, data: Tensor) -> float:
    """The share of the variance of v that is left in D."""
    centred = (v - v.mean(dim=0)).to(torch.float64)
    return float((centred * data).sum() / centred.square().sum())


def _std_from_denoiser(v: Tensor, data: Tensor, y: float) -> float:
    """s, from the share of the variance of v that is left in D; y if this is more than half, and
    infinity if it is nearly all.
    """
    share = _share(v, data)
    if not share < _LARGEST_SHARE:
        return math.inf
    return y * math.sqrt(max(share, 0.0) / (1 - share)) if share < 0.5 else y


def _variance(v: Tensor) -> float:
    """The variance of a coordinate."""
    return float((v - v.mean(dim=0)).to(torch.float64).square().mean())
