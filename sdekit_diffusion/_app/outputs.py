"""Writes samples to files: arrays, a picture or a folder of images, with one part at a time in
memory.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import torch

from sdekit_diffusion._app import figures
from sdekit_diffusion._app.held_out import Array, HeldOut
from sdekit_diffusion._app.restoring import Restoration
from sdekit_diffusion._storage.atomic import replace_atomically, sync_all
from sdekit_diffusion._storage.shards import Shards
from sdekit_diffusion.data import Scale

SHARDS = ".shards"


def shards_of(out: Path) -> Path:
    """The folder of the parts of an output, beside it; the output itself if it ends in .shards.

    Raises:
        ValueError: for a name that no output has.
    """
    if not out.name or out.suffix not in (*_WRITERS, SHARDS, ""):
        raise ValueError(
            f"{out} ends in none of .npz, .npy, .png and {SHARDS}, nor is it a folder; choose a "
            "name that does"
        )
    return out if out.suffix == SHARDS else out.with_name(out.name + SHARDS)


def require(out: Path, shards: Shards, scale: Scale) -> None:
    """Refuses outputs that could not be written, before samples are drawn.

    Raises:
        ValueError: for a folder where a file is expected, or a file where a folder is, pictures
            without samples, images of data that are not images, or images that exist already.
    """
    if out.exists() and out.is_dir() == bool(out.suffix in _WRITERS):
        raise ValueError(
            f"{out} is {'a folder' if out.is_dir() else 'a file'}, which this output is not; "
            "choose another name"
        )
    if out.suffix == ".png" and not shards.n:
        raise ValueError("there are no samples to draw; ask for one or more")
    if out.suffix:
        return
    if scale.levels is None or scale.levels > 256:
        kind = "points" if scale.levels is None else f"{scale.levels} levels"
        raise ValueError(
            f"a folder holds png images of up to 256 levels, and these samples have {kind}; end "
            f"{out} in .npz"
        )
    existing = [
        name for name in (_file_name(shards, i) for i in range(shards.n)) if (out / name).exists()
    ]
    if existing and not shards.folder.exists():
        raise ValueError(
            f"{out} holds {existing[0]} already; choose another folder, or remove its images"
        )


def assemble(out: Path, shards: Shards, scale: Scale) -> tuple[int, ...]:
    """Writes the output from all parts, in order, and removes these; returns the shape of all
    samples.

    Raises:
        OSError: when it cannot be written; the parts stay.
    """
    shape = (shards.n, *next(iter(shards))["samples"].shape[1:])
    if out.suffix == SHARDS:
        return shape
    parts = (part["samples"] for part in shards)
    if out.suffix:
        with replace_atomically(out) as temporary, temporary.open("wb") as file:
            _WRITERS[out.suffix](file, parts, shards.n, scale)
    else:
        _write_images(out, parts, shards, scale)
    shards.remove()
    return shape


def table(csv: Path, result: HeldOut) -> None:
    """Writes the likelihood of each sample, one per line."""
    columns = np.stack([np.arange(len(result.value)), result.value, result.stderr], axis=1)
    with replace_atomically(csv) as temporary:
        np.savetxt(
            temporary, columns, "%.17g", ",", header=f"sample,{result.unit},stderr", comments=""
        )


def save_restoration(out: Path, restoration: Restoration, scale: Scale) -> None:
    """Writes the picture of restored images, or all samples with their weights."""
    with replace_atomically(out) as temporary, temporary.open("wb") as file:
        if out.suffix == ".png":
            restoration.picture(scale).savefig(file, format="png")
        else:
            np.savez(file, **{name: value.numpy() for name, value in vars(restoration).items()})


def save_page(out: Path, page: str, limit: float) -> float:
    """Writes a page of at most `limit` megabytes, and returns its size in megabytes.

    Raises:
        ValueError: for a page that is larger.
    """
    content = page.encode()
    size = len(content) / 1e6
    if size > limit:
        raise ValueError(
            f"the page would have {size:.1f} MB, more than --megabytes {limit:g}: give a smaller "
            "--n, fewer values, or more megabytes"
        )
    with replace_atomically(out) as temporary:
        temporary.write_bytes(content)
    return size


def _write_npy(file: IO[bytes], parts: Iterator[Array], n: int, _: Scale) -> None:
    first = next(parts)
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (n, *first.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for part in chain([first], parts):
        file.write(part.tobytes())


def _write_npz(file: IO[bytes], parts: Iterator[Array], n: int, scale: Scale) -> None:
    with (
        zipfile.ZipFile(file, "w") as archive,
        archive.open("samples.npy", "w", force_zip64=True) as member,
    ):
        _write_npy(member, parts, n, scale)


def _write_png(file: IO[bytes], parts: Iterator[Array], n: int, scale: Scale) -> None:
    figures.picture(torch.from_numpy(np.concatenate(list(parts))), scale).savefig(
        file, format="png"
    )


def _write_images(folder: Path, parts: Iterable[Array], shards: Shards, scale: Scale) -> None:
    """Writes 000000.png, ..., named by the index of the sample, with levels scaled to 0 to 255."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "folders of images need pillow: pip install 'sdekit[app]'; the samples are kept"
        ) from error
    assert scale.levels is not None
    shades = np.rint(np.arange(scale.levels) * (255 / (scale.levels - 1))).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(image for part in parts for image in part):
        pixels = np.moveaxis(shades[image], 0, 2)
        with (folder / _file_name(shards, i)).open("wb") as file:
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
                file, format="PNG"
            )
    sync_all()


def _file_name(shards: Shards, i: int) -> str:
    return f"{shards.first + i:06d}.png"


_WRITERS: dict[str, Callable[[IO[bytes], Iterator[Array], int, Scale], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".png": _write_png,
}
