"""Files that are there whole or not at all, in folders that one process writes to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"  # the end of a name beside


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; at the end of the block what stands there takes the place
    of `path`, on the disk.

    Whenever the process or the machine dies, `path` is what it was or what it was to become. After
    an error it is what it was.

    Raises:
        OSError: when it cannot be written; the message names it.
    """
    beside = path.with_name(f".{path.name}{PART}")
    try:
        with naming(path):
            yield beside
            flush(beside)
            os.replace(beside, path)
            flush(path.parent)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the block name the file; those of a full disk do not by themselves."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"{path} cannot be written: {error.strerror or error}"
        ) from error


def made(folder: Path) -> Path:
    """The folder, made where it is missing, and its name on the disk."""
    if not folder.is_dir():
        made(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)
    return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """For the time of a block, or until its death, this process is the only one that writes to a
    folder.

    Where the system or the file system has no locks, nothing is known of others.

    Raises:
        OSError: while another process is within such a block.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(
            f"another process is at work in {folder}; wait for its end, or choose another folder"
        ) from None
    except OSError:
        return


def settle() -> None:
    """Returns when all that was written is on the disk: one call for many files."""
    if os.name != "nt":
        os.sync()


def flush(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
