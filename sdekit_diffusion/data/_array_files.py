"""Files of arrays: numpy's and MNIST's."""

import gzip
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

# Deflate compresses zeros by a factor of 1032, and images of one black rectangle by 380.
_MAX_RATIO = 500
_ALWAYS_ALLOWED = 2**20  # bytes to which any file may unpack

_OPTIONAL = "test", "labels", "test_labels"

# The files of MNIST and of data sets in its format, and how many dimensions each has.
_IDX = {
    "train": ("train-images-idx3-ubyte", 3),
    "labels": ("train-labels-idx1-ubyte", 1),
    "test": ("t10k-images-idx3-ubyte", 3),
    "test_labels": ("t10k-labels-idx1-ubyte", 1),
}


def numpy_arrays(path: Path, others: Collection[str] = ()) -> dict[str, Array]:
    """The training samples of a .npy or .npz file, and its test set and labels if there are any,
    by name; and those of the other arrays that there are.

    Raises:
        ValueError: when it cannot be read, or has several arrays and none is called "train" or "x".
    """
    if path.suffix == ".npy":
        return {"train": read_npy(path)}
    arrays = read_npz(path)
    for key in ("train", "x", *(arrays if len(arrays) == 1 else ())):
        if key in arrays:
            return {"train": arrays[key]} | {
                name: arrays[name] for name in (*_OPTIONAL, *others) if name in arrays
            }
    raise ValueError(
        f"{path} holds {', '.join(arrays) or 'no arrays'}; it needs an array called train or x, or "
        "one array alone"
    )


def read_npy(path: Path) -> Array:
    """The array of a .npy file.

    Raises:
        ValueError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise ValueError("it continues after its array")
            return array
    except Exception as error:  # numpy raises several kinds over damaged bytes
        raise _unreadable(path, error, "np.save(path, array)") from error


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name.

    Raises:
        ValueError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise TypeError("it holds a single array, as .npy files do")
            assert archive.zip is not None
            require_ratio(
                sum(member.file_size for member in archive.zip.infolist()), path.stat().st_size
            )
            # Numpy reads only as far as the header says, and does not verify all checksums.
            if (corrupt_member := archive.zip.testzip()) is not None:
                raise ValueError(f"the checksum of {corrupt_member} in it is wrong")
            # Members that are not arrays are returned as bytes.
            return {key: np.asarray(archive[key]) for key in archive.files}
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds over damaged bytes
        raise _unreadable(path, error, "np.savez(path, train=array)") from error


def _unreadable(path: Path, error: Exception, saved: str) -> ValueError:
    return ValueError(
        f"{path} cannot be read as a {path.suffix} file of numbers ({reason(error)}); save it "
        f"again with {saved}"
    )


def has_idx(folder: Path) -> bool:
    """Whether a folder has a file of training images in MNIST's format."""
    return any(_existing_files(folder, _IDX["train"][0]))


def idx_arrays(folder: Path) -> dict[str, Array]:
    """The images and labels in MNIST's files, gzipped or not: train, labels, test, test_labels.

    Raises:
        ValueError: when one of the files is missing or damaged.
    """
    return {key: _read_idx(folder, name, ndim) for key, (name, ndim) in _IDX.items()}


def reason(error: Exception) -> str:
    """The message of an error, in one line."""
    return str(error).partition("\n")[0] or type(error).__name__


def require_ratio(unpacked: int, size: int) -> None:
    """Refuses a file of `size` bytes that unpacks to far more.

    Raises:
        ValueError: for more than 1 MiB and more than 500 times the size of the file.
    """
    if unpacked > max(_ALWAYS_ALLOWED, _MAX_RATIO * size):
        raise ValueError(
            f"its {size:,} bytes unpack to {unpacked:,}, more than {_MAX_RATIO} times as many; "
            "save data without compression"
        )


def _existing_files(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]


def _read_idx(folder: Path, name: str, ndim: int) -> NDArray[np.uint8]:
    """The array of bytes in a file of this format: the bytes 0, 0, 8 (for uint8) and the number of
    dimensions; the sizes as big-endian 32-bit integers; the data.
    """
    paths = _existing_files(folder, name)
    if not paths:
        raise ValueError(
            f"{folder} lacks {name} or {name}.gz; a data set in MNIST's format has "
            f"{', '.join(_file_names())}"
        )
    path = paths[0]
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if (magic := file.read(4)) != bytes((0, 0, 8, ndim)):
                raise ValueError(f"it begins with {magic.hex()} and not with 000008{ndim:02}")
            sizes = tuple(int(size) for size in np.frombuffer(file.read(4 * ndim), ">u4"))
            require_ratio(math.prod(sizes), path.stat().st_size)
            content = file.read(math.prod(sizes) + 1)  # one more, to detect trailing bytes
            return np.frombuffer(content, np.uint8).reshape(sizes).copy()
    except Exception as error:  # gzip, zlib and numpy raise several kinds over damaged bytes
        raise ValueError(
            f"{path} is not a sound file in MNIST's format ({reason(error)}); download it again"
        ) from error


def _file_names() -> list[str]:
    return [name for name, _ in _IDX.values()]
