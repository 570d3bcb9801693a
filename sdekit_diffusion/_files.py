"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"  # the end of a name beside


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; at the end of the block what stands there takes the place of `path`, on the disk.

    Whenever the process or the machine dies, `path` is what it was or what it was to become. After an error it is what it was.

    Raises:
        OSError: when it cannot be written; the message names it.
    """
    beside = path.with_name(f".{path.name}{PART}")
    try:
        yield beside
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{path} cannot be written: {error.strerror or error}") from error
        raise


def settle() -> None:
    """Returns when all that was written is on the disk: one call for many files."""
    if os.name != "nt":
        os.sync()


def _flush(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
