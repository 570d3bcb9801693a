"""Data sets as arrays: digits, two-dimensional toys, numpy files and folders of images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_MOST_LEVELS = 2**16


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test samples.

    Attributes:
        train: (N, C, H, W) integer levels 0, ..., levels - 1 of images, or (N, ...) float32 of continuous data.
        test: the same for samples that training never sees.
        levels: of an image; None for continuous data.
        low: the least value of the data: of the dequantised range, or of `train` if continuous.
        high: the largest.
        name: what was loaded.
    """

    train: Tensor
    test: Tensor
    levels: int | None
    low: float
    high: float
    name: str

    def dequantised(self, x: Tensor, noise: Tensor) -> Tensor:
        """Continuous values low + (high - low) (x + noise) / levels, in the dtype of the noise.

        Args:
            x: levels, of any shape.
            noise: in [0, 1), of the shape of x; uniform noise makes the density of the result a bound on the
                probability of the levels (Theis, van den Oord, Bethge, 2016).

        Raises:
            ValueError: the data are continuous.
        """
        return self.low + (self.high - self.low) * (x + noise) / self._levels()

    def quantise(self, x: Tensor) -> Tensor:
        """The levels floor(levels (x - low) / (high - low)), clipped to 0, ..., levels - 1: undoes `dequantised`.

        Raises:
            ValueError: the data are continuous, or x is not finite.
        """
        levels = self._levels()
        if not bool(x.isfinite().all()):
            raise ValueError("x has NaN or infinite values, which have no level; find out why those samples diverged")
        level = ((x - self.low) * (levels / (self.high - self.low))).floor().clamp(0, levels - 1)
        return level.to(_level_dtype(levels))

    def _levels(self) -> int:
        if self.levels is None:
            raise ValueError(f"{self.name} holds continuous data, which have no levels; use its values as they are")
        return self.levels


def sources() -> list[str]:
    """The names of the built-in data sets that `load` knows."""
    return ["digits", *_TOYS]


def load(name: str | Path, *, seed: int = 0) -> Dataset:
    """Loads a data set by name or path.

    Args:
        name: one of `sources()`: "digits" are the 1797 images of 8 x 8 pixels of scikit-learn, the others points in the
            plane. Or a `.npy` or `.npz` file, where integer arrays are images, (N, H, W), (N, C, H, W) or (N, H, W, C)
            with C 1 or 3, and float arrays continuous data (N, ...); an `.npz` holds `train` or `x`, or one array
            alone, and `test` if it likes. Or a folder of png or jpg images of one size, grey or RGB.
        seed: of the points in the plane. All else is split the same way each time, and files into nine tenths
            and one tenth unless they hold `test`. A folder called like a data set is "./digits".

    Raises:
        ValueError: there is no such data set, or its content is not as described.
        ImportError: scikit-learn or pillow is missing.
    """
    path = Path(name).expanduser()
    if name == "digits":
        return _digits()
    if name in _TOYS:
        points = _TOYS[str(name)](np.random.default_rng(seed), 12_000)
        points -= points.mean(0)
        points /= points.std()
        return _dataset(points[:10_000], points[10_000:], str(name))
    if path.is_dir():
        return _dataset(_images(path), None, str(name))
    if path.is_file() and path.suffix in (".npy", ".npz"):
        return _dataset(*_arrays(path), str(name))
    given = "is a file of another kind" if path.is_file() else "does not exist"
    raise ValueError(
        f"'{name}' {given}; choose one of {', '.join(sources())}, a .npy or .npz file, or a folder of png or jpg images"
    )


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'sdekit[app]'") from error
    images = np.asarray(load_digits(return_X_y=True)[0], dtype=np.int64).reshape(-1, 8, 8)
    order = _order(len(images))
    return _dataset(images[order[:1297]], images[order[1297:]], "digits")


def _order(n: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(n)


def _dataset(train: NDArray[np.generic], test: NDArray[np.generic] | None, name: str) -> Dataset:
    """Checks arrays, splits them if there is no test set, and makes tensors of them."""
    train = _samples(train, name, least=2)
    if test is None:
        order, held_out = _order(len(train)), max(1, len(train) // 10)
        train, test = train[order[held_out:]], train[order[:held_out]]
    else:
        test = _samples(test, f"the test set of {name}", least=1)
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise ValueError(
            f"{name} holds training samples of shape {train.shape[1:]} and type {train.dtype} but test samples of shape "
            f"{test.shape[1:]} and type {test.dtype}; save both in one shape and type"
        )
    tensors = torch.from_numpy(train), torch.from_numpy(test)
    if train.dtype == np.float32:
        return Dataset(*tensors, None, float(train.min()), float(train.max()), name)
    levels = 256 if train.dtype == np.uint8 else int(max(train.max(), test.max())) + 1
    if levels < 2:
        raise ValueError(f"{name} has zeros only; images need two levels or more")
    dtype = _level_dtype(levels)
    return Dataset(tensors[0].to(dtype), tensors[1].to(dtype), levels, -1.0, 1.0, name)


def _level_dtype(levels: int) -> torch.dtype:
    return torch.uint8 if levels <= 256 else torch.int64


def _samples(array: NDArray[np.generic], name: str, least: int) -> NDArray[np.generic]:
    """Checks one array: float32 if continuous, else levels (N, C, H, W), uint8 if they were and int64 otherwise."""
    if array.dtype.kind not in "uif":
        raise ValueError(
            f"{name} has type {array.dtype}; save images as integers and other data as floats, with array.astype(...)"
        )
    if array.ndim == 0 or array.size == 0 or len(array) < least:
        raise ValueError(f"{name} has shape {array.shape}; it needs {least} or more samples along its first dimension")
    if array.dtype.kind != "f":
        return _images_first(array, name)
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are NaN, infinite or beyond float32; remove those samples")
    return values


def _images_first(array: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    if not 0 <= int(array.min()) <= int(array.max()) < _MOST_LEVELS:
        raise ValueError(
            f"{name} has integers from {array.min()} to {array.max()}; the levels of an image lie in "
            f"[0, {_MOST_LEVELS - 1}], and other data are saved as floats"
        )
    if array.ndim == 3:
        images = array[:, None]
    else:
        images = np.moveaxis(array, 3, 1) if array.ndim == 4 and array.shape[1] not in (1, 3) else array
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} has integers, so images, of shape {array.shape}; allowed are (N, H, W), (N, C, H, W) and "
            f"(N, H, W, C) with C = 1 or 3; save data that are not images as floats"
        )
    return np.ascontiguousarray(images, dtype=np.uint8 if array.dtype == np.uint8 else np.int64)


def _arrays(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    """The arrays of a numpy file: the samples, and a test set if there is one."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".npy":
                array = np.lib.format.read_array(file, allow_pickle=False)
                if file.read(1):
                    raise ValueError("it goes on after its array")
                return array, None
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise TypeError("it holds a single array, as .npy files do")
            assert archive.zip is not None
            if (wrong := archive.zip.testzip()) is not None:  # numpy stops at the end of the array that a header describes
                raise ValueError(f"the checksum of {wrong} in it is wrong")
            # A member that is not an array comes as bytes.
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds over damaged bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a {path.suffix} file of numbers ({reason}); save it again with "
            f"{'np.save(path, array)' if path.suffix == '.npy' else 'np.savez(path, train=array)'}"
        ) from error
    for key in ("train", "x", *(arrays if len(arrays) == 1 else ())):
        if key in arrays:
            return arrays[key], arrays.get("test")
    raise ValueError(
        f"{path} holds {', '.join(arrays) or 'no arrays'}; it needs an array called train or x, or one array alone"
    )


def _images(folder: Path) -> NDArray[np.uint8]:
    """All png and jpg images of a folder, in the order of their names, (N, H, W) or (N, H, W, 3)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("folders of images need pillow: pip install 'sdekit[app]'") from error
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _FORMATS)
    if not paths:
        raise ValueError(f"{folder} has no png or jpg images; name a folder that holds them, not one above it")
    images: list[NDArray[np.uint8]] = []
    for path in paths:
        try:
            formats = [_FORMATS[path.suffix.lower()]]
            with Image.open(path, formats=formats) as image:
                image.verify()  # the checksums, at which reading does not look
            with Image.open(path, formats=formats) as image:
                mode, pixels = image.mode, np.asarray(image)
        except Exception as error:  # pillow and its codecs raise several kinds over damaged bytes
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path} is not a sound {path.suffix} image ({reason}); replace or remove it") from error
        if mode not in ("L", "RGB"):
            raise ValueError(f"{path} is an image of mode {mode}; convert all to L (grey) or to RGB")
        images.append(pixels)
        if pixels.shape != images[0].shape:
            raise ValueError(
                f"{path} has shape {pixels.shape} but {paths[0].name} has {images[0].shape}; all images of a folder "
                f"must have one size and one mode"
            )
    return np.stack(images)


def _moons(rng: Generator, n: int) -> NDArray[np.float64]:
    angle, upper = np.pi * rng.random(n), rng.random(n) < 0.5
    x, y = np.where(upper, np.cos(angle), 1 - np.cos(angle)), np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([x, y], axis=1) + 0.05 * rng.standard_normal((n, 2))


def _swissroll(rng: Generator, n: int) -> NDArray[np.float64]:
    angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) + 0.3 * rng.standard_normal((n, 2))


def _eight_gaussians(rng: Generator, n: int) -> NDArray[np.float64]:
    angle = 0.25 * np.pi * rng.integers(8, size=n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * rng.standard_normal((n, 2))


def _checkerboard(rng: Generator, n: int) -> NDArray[np.float64]:
    column, row = rng.integers(4, size=n), rng.integers(2, size=n)
    return np.stack([column, 2 * row + column % 2], axis=1) + rng.random((n, 2))


def _spiral(rng: Generator, n: int) -> NDArray[np.float64]:
    angle, arm = 3 * np.pi * np.sqrt(rng.random(n)), rng.choice([-1.0, 1.0], size=n)
    return arm[:, None] * np.stack([-angle * np.cos(angle), angle * np.sin(angle)], axis=1) + 0.2 * rng.standard_normal((n, 2))


_TOYS: dict[str, Callable[[Generator, int], NDArray[np.float64]]] = {
    "moons": _moons,
    "swissroll": _swissroll,
    "eight_gaussians": _eight_gaussians,
    "checkerboard": _checkerboard,
    "spiral": _spiral,
}
