"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; at the end of the block what stands there takes the place of `path`, on the disk.

    Whenever the process or the machine dies, `path` is what it was or what it was to become. After an error it is what it was.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        yield beside
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
