"""Folders of images."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdekit_diffusion.data._array_files import reason
from sdekit_diffusion.data._dataset import HELD_OUT, Dataset
from sdekit_diffusion.data._stored import Stored, of_stored

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def of_images(folder: Path) -> Dataset:
    """The png and jpg images of a folder and its subfolders, in the order of their names.

    Folders `train` and `test` (or `validation`, `valid`, `val`) are the two sets; if all images are
    in `train`, a tenth of them is held out. The subfolders of a set are classes if each image is in
    one, numbered in the order of their names, or of their values if all are whole numbers: 2 comes
    before 10.

    Raises:
        ValueError: when there are no images, one is damaged, or they differ in size or mode.
    """
    train = folder / "train"
    test = next((folder / name for name in HELD_OUT if (folder / name).is_dir()), None)
    if not train.is_dir() or (test is None and len(_paths(folder)) > len(_paths(train))):
        train = folder
        test = None
    paths = _paths(train)
    test_paths = [] if test is None else _paths(test)
    class_names = [_class_name(path, train) for path in paths]
    test_class_names = [_class_name(path, test or train) for path in test_paths]
    names = _in_order({*class_names, *test_class_names})
    class_numbers = {name: i for i, name in enumerate(names)}
    labels = test_labels = None
    if "" not in class_numbers and len(class_numbers) > 1:
        labels, test_labels = (
            np.array([class_numbers[name] for name in names_of_set], np.int64)
            for names_of_set in (class_names, test_class_names)
        )
    stored = _stored(paths, str(folder))
    if test is None:
        return of_stored(stored, labels=labels)
    return of_stored(stored, _stored(test_paths, f"the test set of {folder}"), labels, test_labels)


def pixels(
    file: Path | BytesIO, name: str, formats: Sequence[str] = tuple(_FORMATS.values())
) -> NDArray[np.uint8]:
    """An image, (H, W) or (H, W, 3).

    Raises:
        ValueError: for one that is damaged, of another format, or neither grey nor RGB.
        ImportError: when pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images need pillow: pip install 'sdekit[app]'") from error
    try:
        content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
        with Image.open(BytesIO(content), formats=list(formats)) as image:
            image.verify()  # checksums, which are not verified by reading
        with Image.open(BytesIO(content), formats=list(formats)) as image:
            mode = image.mode
            array = np.asarray(image)
    except Exception as error:  # pillow and its codecs raise several kinds over damaged bytes
        raise ValueError(
            f"{name} is not a sound {' or '.join(formats)} image ({reason(error)}); replace or "
            "remove it"
        ) from error
    if mode not in ("L", "RGB"):
        raise ValueError(f"{name} is an image of mode {mode}; convert all to L (grey) or to RGB")
    return array


def _paths(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _FORMATS)
    if not paths:
        raise ValueError(f"{folder} has no png or jpg images, nor have the folders in it")
    return paths


def _in_order(names: set[str]) -> list[str]:
    """The names of classes, in the order of their values if all are whole numbers."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _class_name(path: Path, folder: Path) -> str:
    """The subfolder that an image is in; empty if it is directly in the folder."""
    return "/".join(path.relative_to(folder).parts[:-1][:1])


def _stored(paths: list[Path], name: str) -> Stored:
    def read(numbers: Sequence[int]) -> list[NDArray[np.uint8]]:
        return [
            pixels(paths[i], str(paths[i]), [_FORMATS[paths[i].suffix.lower()]]) for i in numbers
        ]

    return Stored(len(paths), read, lambda i: str(paths[i]), name)
