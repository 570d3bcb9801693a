"""Mean and standard deviation of the data of a training run, and warnings of unsuitable data."""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from sdekit.calling import warn_caller
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.principal import SMALLEST_RATIO, estimated_principal_std
from sdekit_diffusion._training.trainable import require_count
from sdekit_diffusion.data import Scale
from sdekit_diffusion.data._batches import AbstractSource, Batch, Shuffled
from sdekit_diffusion.data._loader import Loaded

_MAX_SAMPLES = 1 << 16  # samples that are used, of data in memory
_MAX_SAMPLES_READ = 1 << 10  # of data that have to be read from storage
_MAX_NUMBERS = 1 << 22  # of samples kept to find the direction in which they vary most
_BATCH = 256
# No warning for standard deviations from 0.01 to 100, up to the error of estimating them, and for
# means of up to _LARGEST_MEAN standard deviations.
_SMALLEST_STD = 0.95e-2
_LARGEST_STD = 1.05e2
_LARGEST_MEAN = 30.0
_BYTES = 128.0  # whole numbers from 0 to a largest one above this are taken for bytes


def data_moments(
    source: AbstractSource,
    encode: Callable[[Tensor], Tensor],
    sde: AbstractDiffusion | None = None,
    *,
    few: bool = False,
) -> tuple[Tensor, float]:
    """The mean, shaped like one sample, and the standard deviation: the root mean square, over
    samples and coordinates, of the difference from the mean.

    Estimated from up to 65,536 samples of a tensor or an array in memory, up to 1024 of other data,
    the first ones in the order of seed 0.

    Arguments:
        source: the training data.
        encode: converts rows to inputs of the model.
        sde: a diffusion, to warn of data for which its largest noise is too small.
        few: use 1024 samples of all data.
    """
    rows = source.rows if isinstance(source, Shuffled) else None
    in_memory = isinstance(rows, Tensor | np.ndarray) and not isinstance(rows, np.memmap)
    n = _available(source, _MAX_SAMPLES if in_memory and not few else _MAX_SAMPLES_READ)
    count = 0
    total = squares = centre = torch.zeros(())
    smallest = math.inf
    largest = -math.inf
    integers = True
    read: list[Tensor] = []
    for some in _first(source, n):
        x = encode(some).detach().to(device="cpu", dtype=torch.float64)
        centre = x.mean(dim=0) if not count else centre
        total = total + (x - centre).sum(dim=0)
        squares = squares + (x - centre).square().sum(dim=0)
        smallest = min(smallest, float(x.min()))
        largest = max(largest, float(x.max()))
        integers = integers and bool((x == x.round()).all())
        if not count or (count + len(x)) * x[0].numel() <= _MAX_NUMBERS:
            read.append(x)
        count += len(x)
    bytes_given = smallest >= 0 and largest > _BYTES and integers
    if bytes_given:
        _warn_of_bytes(smallest, largest)
    offset = total / count
    variance = float((squares / count - offset.square()).mean())
    if not math.isfinite(variance):  # the first loss is refused
        return torch.zeros_like(offset, dtype=torch.float32), 1.0
    mean = centre + offset
    std = math.sqrt(max(variance, 0.0)) or 1.0
    _warn_of_scale(float(mean.square().mean().sqrt()), std)
    if sde is not None and not bytes_given:
        _warn_of_little_noise(std, estimated_principal_std(torch.cat(read)), sde)
    return mean.to(torch.float32), std


def _warn_of_bytes(smallest: float, largest: float) -> None:
    """Warns of levels of images that are not scaled."""
    warn_caller(
        f"the data are whole numbers from {smallest:g} to {largest:g}, as bytes are: for images in "
        "[-1, 1] use x / 127.5 - 1, or pass transform=, such as a data set's scale.encode",
    )


def _warn_of_little_noise(std: float, principal: float, sde: AbstractDiffusion) -> None:
    """Warns if the largest noise of a diffusion is below twice `principal`, the standard deviation
    of the data in the direction in which it is largest; not if it is also below twice `std`, that
    of a coordinate, of which `sample` warns.
    """
    noise = math.exp(-float(sde.log_snr(sde.T)))
    if not SMALLEST_RATIO * std <= noise < SMALLEST_RATIO * principal:
        return
    warn_caller(
        f"the largest sigma / alpha of {sde}, {noise:.3g}, is {noise / principal:.3g} times the "
        "standard deviation of the data in the direction in which it is largest, "
        f"{principal:.3g}: the prior is far from the law of noisy data, and samples and "
        f"likelihoods will be from those of the data. Choose another diffusion{sde.more_noise}",
    )


def _warn_of_scale(mean: float, std: float) -> None:
    """Warns of data on a scale on which networks cannot be trained."""
    if _SMALLEST_STD <= std <= _LARGEST_STD and mean <= _LARGEST_MEAN * std:
        return
    warn_caller(
        f"the data have a mean of {mean:.3g} (root mean square over the coordinates) and a "
        f"standard deviation of {std:.3g}; networks expect data of mean 0 and standard deviation "
        "1, and on these samples may be wrong by orders of magnitude: scale them, for example with "
        "transform=scale.encode, where scale = sdekit_diffusion.data.Scale(shift=mean, unit=std), "
        "and decode samples with scale.decode",
    )


def warn_of_raw(source: AbstractSource, encode: Callable[[Tensor], Tensor], scale: Scale) -> None:
    """Warns of data to which the scale of the model seems not to have been applied: they are far
    from the size of model inputs, and the scale would bring them to that size.

    Arguments:
        source, encode: as for `data_moments`.
        scale: the scale of the model; there is no warning for `Scale()`.
    """
    if scale == Scale():
        return
    x = encode(next(_first(source, _available(source, _BATCH)))).detach().cpu().double()
    try:
        mean, std = _size(scale.encode(x, torch.full_like(x, 0.5)))
    except ValueError:  # the scale is for other data
        return
    mean_given, std_given = _size(x)
    inputs = mean < 1.5 and 0.05 < std < 2
    standardised = mean < 0.25 and 0.8 < std < 1.25
    far = mean_given > 2.5 or std_given > 3
    near = mean_given > 0.5 or std_given < 0.1
    if (inputs and far) or (standardised and near):
        warn_caller(
            f"the data have a mean of {mean_given:.3g} (root mean square over the coordinates) and "
            f"a standard deviation of {std_given:.3g}, as if the scale of the model had not been "
            "applied to them; model.scale.decode of its samples would then be wrong: pass "
            "transform=model.scale.encode, or a sdekit_diffusion.data.Dataset with this scale",
        )


def _size(x: Tensor) -> tuple[float, float]:
    """The root mean square over the coordinates of the mean, and of the difference from it."""
    mean = x.mean(dim=0)
    return float(mean.square().mean().sqrt()), float((x - mean).square().mean().sqrt())


def _available(source: AbstractSource, most: int) -> int:
    """How many samples of a source to read: `most`, or all if it is known to have fewer."""
    if isinstance(source, Shuffled):
        return min(len(source.rows), most)
    return min(source.length, most) if isinstance(source, Loaded) and source.length else most


def _first(source: AbstractSource, n: int) -> Iterator[Tensor]:
    """The first n samples of a source, in batches."""
    size = min(n, _BATCH)
    for batch in itertools.islice(source.batches(size), -(-n // size)):
        samples = Batch.of(batch)
        require_count(samples, size)
        x = samples.x
        yield x[:n]
        n -= len(x)
