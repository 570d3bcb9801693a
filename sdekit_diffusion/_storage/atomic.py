"""Files that are written atomically, in folders to which one process writes."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"  # suffix of temporary files


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """A context with a temporary path in the folder of `path`; at the end of the block the file
    there replaces `path`, and is flushed to the disk.

    Whenever the process or the machine stops, `path` has either its old or its complete new
    content. After an error it has its old content.

    Raises:
        OSError: when the file cannot be written; the message names it.
    """
    temporary = path.with_name(f".{path.name}{PART}")
    try:
        with with_file_name(path):
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def with_file_name(path: Path) -> Iterator[None]:
    """A context in which an OSError names the file; errors of a full disk do not."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"{path} cannot be written: {error.strerror or error}"
        ) from error


def make_folder(folder: Path) -> Path:
    """Creates a folder if it is missing, and flushes its name to the disk; returns it.

    Raises:
        OSError: when it cannot be made, such as where a file has its name.
    """
    if not folder.is_dir():
        if folder.exists():
            raise FileExistsError(
                errno.EEXIST, f"{folder} is a file, and a folder is to be written: give another"
            )
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)
    return folder


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """A context that locks a folder, so that only this process writes to it. The lock ends with the
    block or the process.

    Where the system or the file system has no locks, other processes are not detected.

    Raises:
        OSError: when another process has the lock.
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


def sync_all() -> None:
    """Returns when all files that were written are on the disk."""
    if os.name != "nt":
        os.sync()


def flush(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
