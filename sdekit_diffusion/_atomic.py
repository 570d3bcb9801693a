"""Files that are whole or not there, whatever happens while they are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".part"


@contextmanager
def written(path: Path, beside: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes its name when the block ends and all of it is on the disk; until then the old one has it.

    Arguments:
        path: of the file.
        beside: the folder where it is written before, on the same disk; that of the file unless given.

    Raises:
        OSError: where it cannot be written; nothing of it is left then.
    """
    part = (beside or path.parent) / f"{path.name}.{os.getpid()}{SUFFIX}"
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _settle(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def settle() -> None:
    """Puts all that was written on the disk: one call for many files."""
    if os.name != "nt":
        os.sync()


def _settle(folder: Path) -> None:
    """Puts the names of the files in a folder on the disk."""
    if os.name == "nt":  # which opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
