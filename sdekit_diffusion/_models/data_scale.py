"""Mean and standard deviation of the data of a model: as it knows them, or estimated from its
denoiser.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sdekit import normal
from sdekit_diffusion._counters import SCALE
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.derived import AbstractDerivedModel
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.model import AbstractModel, signal_scale

# Coordinates of all points together, at least: the estimate is good to a few per cent.
_NUMBERS = 2048
_POINTS = (8, 256)  # the least and the largest number of points
_NOISY = 8.0  # noise over the standard deviation of the data at which their law is nearly normal
_CLEAN = 0.3  # the same where the estimate is final
_STILL = 0.02  # of the standard deviation: how far the mean may have moved at last
_JUMP = 16.0  # the largest factor from a level to the next in search of the first
_LEVELS = 16
_READ = 16  # tensors of which a number is read to see whether they have changed
_ALL = 0.98  # of the variance: a network that denoises nothing, as before training


@dataclass(frozen=True)
class DataScale:
    """Mean and standard deviation of data: a number, or a tensor shaped like one sample; a
    number.
    """

    mean: Tensor | float
    std: float


_ESTIMATES: WeakKeyDictionary[AbstractModel, tuple[Hashable, DataScale]] = WeakKeyDictionary()


def data_scale(model: AbstractModel, shape: tuple[int, ...] | None) -> DataScale:
    """As the model knows them; else estimated from the denoiser, in some seven evaluations of a
    small batch.

    A mean that the model knows is kept. Where neither is possible, as with labels per sample, they
    are those of data that fill a quarter of the model's `data_range` on either side of its middle,
    or 0 and 1.
    """
    if model.data_std is not None:
        return DataScale(model.data_mean, model.data_std)
    inner = model.model if isinstance(model, AbstractDerivedModel) else None
    found = _unknown(model, shape) if inner is None else data_scale(inner, shape)
    known = isinstance(model.data_mean, Tensor) or model.data_mean != 0
    return replace(found, mean=model.data_mean) if known else found


def _unknown(model: AbstractModel, shape: tuple[int, ...] | None) -> DataScale:
    """The estimate, which is kept as long as the model is the same."""
    low, high = getattr(model, "data_range", None) or (-2.0, 2.0)
    usual = DataScale((low + high) / 2, (high - low) / 4)
    known = model.shape if shape is None else shape
    if model.entries() or model.sde is None or known is None or not math.prod(known):
        return usual
    key = _key(model, known)
    if key is None:
        return _estimated(model, known, usual)
    found = _ESTIMATES.get(model)
    if found is None or found[0] != key:
        found = _ESTIMATES[model] = key, _estimated(model, known, usual)
    return found[1]


def _key(model: AbstractModel, shape: tuple[int, ...]) -> Hashable | None:
    """What an estimate depends on: conventions, the network, its weights and buffers as torch
    counts their changes, and some of their numbers, as writes to `.data` are not counted. None
    where there are no weights.
    """
    held = [
        value
        for network in model.networks()
        for value in (*network.parameters(), *network.buffers())
    ]
    if not held or any(value.is_inference() for value in held):
        return None
    conditions = getattr(model, "conditions", {}).items()
    held += [value for _, value in conditions if isinstance(value, Tensor)]
    names = ("sde", "predicts", "conditioning", "data_range")
    return (
        shape,
        id(getattr(model, "net", None)),
        *(getattr(model, name, None) for name in names),
        *((name, id(value)) for name, value in conditions),
        *((value.data_ptr(), value._version) for value in held),
        *_some_numbers(held),
    )


def _some_numbers(held: list[Tensor]) -> list[float]:
    """The first number of some tensors, evenly chosen among them, read at once."""
    chosen = [value for value in held if value.numel()][:: 1 + len(held) // _READ]
    first = [value.detach().reshape(-1)[0].to(torch.float64) for value in chosen]
    return torch.stack(first).tolist() if first else []


def _estimated(model: AbstractModel, shape: tuple[int, ...], usual: DataScale) -> DataScale:
    """The estimate; `usual` where there is none: of a denoiser that is not finite, or is that of no
    data.

    A network that finds data as large as the noise that it was made for is taken for an untrained
    one.

    Points v = x_t / alpha with noise y = sigma / alpha have the variance s^2 + y^2. Where y is
    several times s they are normal, the mean of D is that of the data, and the share of their
    variance that D keeps is s^2 / (s^2 + y^2): this finds such a y. From there the probability flow
    carries them, by DPM-Solver++(2M), to a y below s, where s^2 is what their variance has beyond
    y^2.
    """
    assert model.sde is not None
    dtype, device = model.place()
    dtype = torch.promote_types(dtype, torch.float32)
    half = max(_POINTS[0], min(_POINTS[1], _NUMBERS // math.prod(shape))) // 2
    z = normal(0, torch.arange(half, device=device), shape, counter=SCALE, dtype=dtype)
    z = torch.cat([z, -z])
    z = z / z.square().mean().sqrt()
    try:
        with torch.no_grad(), evaluating(model, len(z)):
            mean, std = _carried(model, z, *_levels(model.sde))
    except Exception:
        return usual
    trained = any(True for network in model.networks() for _ in network.parameters())
    largest = 0.5 * _levels(model.sde)[0] if trained else math.inf
    found = 0 < std < largest and bool(mean.isfinite().all())
    return DataScale(mean, std) if found else usual


def _levels(sde: AbstractDiffusion) -> tuple[float, float]:
    """The largest and the smallest sigma / alpha of a diffusion."""
    return math.exp(-float(sde.log_snr(sde.latest()))), math.exp(-float(sde.log_snr(0.0)))


def _carried(model: AbstractModel, z: Tensor, largest: float, least: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of the data; z are standard normals."""
    start = max(_NOISY, 2 * math.sqrt(z[0].numel()))  # one direction may have half of the variance
    y = largest
    mean = torch.zeros_like(z[0])
    std = 0.0
    for _ in range(_LEVELS):
        v = mean + math.hypot(y, std) * z
        data = _denoised(model, v, y)
        moved = float((data.mean(dim=0) - mean).square().mean().sqrt())
        mean = data.mean(dim=0)
        std = _kept(v, data, y)
        if not math.isfinite(std):
            return mean, std
        lower = min(y, max(start * std, y / _JUMP))
        if lower <= 0.7 * y:
            y = lower
        elif moved <= _STILL * std:  # where the largest noise hides little, D is far from the mean
            break
    v = mean + math.hypot(y, std) * z
    last = None
    for _ in range(_LEVELS):
        finer = max(least, y / 2)
        data = _denoised(model, v, y)
        target = data if last is None else data + 0.5 * (data - last)
        v = finer / y * v + (1 - finer / y) * target
        last = data
        y = finer
        std = math.sqrt(max(_variance(v) - y * y, 0.0))
        if y < _CLEAN * std or y <= least:
            return mean, std
    return mean, 0.0  # no noise is as small as that


def _denoised(model: AbstractModel, v: Tensor, y: float) -> Tensor:
    """D at x / alpha = v and sigma / alpha = y."""
    l = -math.log(y)
    return model.predict_data(l, v * float(signal_scale(l)))


def _kept(v: Tensor, data: Tensor, y: float) -> float:
    """s, from the share of the variance of v that the denoiser keeps; y for more than half,
    infinite for nearly all.
    """
    centred = (v - v.mean(dim=0)).to(torch.float64)
    share = float((centred * data).sum() / centred.square().sum())
    if not share < _ALL:
        return math.inf
    return y * math.sqrt(max(share, 0.0) / (1 - share)) if share < 0.5 else y


def _variance(v: Tensor) -> float:
    """That of a coordinate."""
    return float((v - v.mean(dim=0)).to(torch.float64).square().mean())
