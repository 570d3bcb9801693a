"""Results for many samples in files: processes share the work, which resumes after a kill."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from sdekit import NotFiniteError, UnfinishedError
from sdekit.calling import warn_caller
from sdekit_diffusion._arguments.inputs import as_json, require_whole
from sdekit_diffusion._storage.atomic import PART, exclusive, replace_atomically
from sdekit_diffusion._storage.distributed import process_group, rank, wait, world
from sdekit_diffusion.data._array_files import reason, require_ratio

Arrays = dict[str, NDArray[Any]]
_SETTINGS = "settings"


@dataclass(frozen=True, eq=False)
class Shards:
    """The results for samples first, ..., first + n - 1 in a folder, with one .npz file for every
    batch_size samples.

    Files are written atomically, so that the folder is valid after a kill, and `fill` computes what
    is missing. Processes started by torchrun, or in a process group of torch.distributed, share the
    work; the results do not depend on their number. Iteration yields a dictionary of arrays for
    each file, in the order of the samples.

    Arguments:
        folder: the folder, created if it is missing.
        n: the number of samples.
        batch_size: how many samples are computed together, and stored in one file.
        first: the number of the first sample.
        settings: what else the results depend on, as JSON. Each file contains them, and `fill`
            refuses a folder with other settings.

    Raises:
        TypeError: for numbers of samples that are not whole; while filling or iterating, for
            settings that JSON cannot represent.
        ValueError: for numbers out of range; while iterating, for damaged files, or results with
            other settings.

    Example:
        >>> def work(first, count):
        ...     return {"squares": torch.arange(first, first + count).square().numpy()}
        >>> shards = sd.Shards("results", n=5, batch_size=2)
        >>> shards.fill(work)
        >>> [part["squares"].tolist() for part in shards]
        [[0, 1], [4, 9], [16]]
    """

    folder: Path
    n: int
    batch_size: int
    first: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        for name, smallest in (("n", 0), ("first", 0), ("batch_size", 1)):
            value = getattr(self, name)
            require_whole(name, value, smallest)
            object.__setattr__(self, name, int(value))

    def fill(
        self,
        work: Callable[[int, int], Mapping[str, Tensor | NDArray[Any]]],
        desc: str = "samples",
        *,
        progress: bool = True,
    ) -> None:
        """Computes the missing results; returns in every process when all are complete.

        Arguments:
            work: a function of (first, count) that returns the results for samples first, ...,
                first + count - 1: a dictionary of tensors or arrays `(count, ...)`. The result for
                a sample must not depend on other samples; `sample(..., first=first)` has this
                property.
            desc: the name of the progress bar.
            progress: show a bar, where there are several parts.

        Raises:
            TypeError: for settings that JSON cannot represent.
            ValueError: when the folder has results with other settings, or work returns something
                else than arrays with one row per sample.
            OSError: when a file cannot be written, or another process fills the folder; existing
                files remain.
        """
        self._all()  # refuses before the work what could not be stored after it
        with process_group("cpu"), ExitStack() as stack:
            if rank() == 0:
                self._make()
                stack.enter_context(exclusive(self.folder))
                self._check_files()
            wait()
            missing = [part for part in self._parts() if not self._path(*part).exists()]
            wait()  # until all processes have looked
            try:
                with tqdm(
                    total=self.n,
                    desc=desc,
                    unit="sample",
                    disable=not progress or rank() > 0 or len(self._parts()) == 1,
                ) as bar:
                    for first, count in missing[rank() :: world()]:
                        self._write(self._path(first, count), self._compute(work, first, count))
                        if not bar.disable:  # of all processes
                            bar.update(
                                sum(c for i, c in self._parts() if self._path(i, c).exists())
                                - bar.n
                            )
            except BaseException:
                with suppress(OSError):
                    self.folder.rmdir()  # where there is nothing in it yet
                raise
            wait()

    def __iter__(self) -> Iterator[Arrays]:
        for part in self._parts():
            try:
                arrays = _read(self._path(*part))
            except _DamagedError as error:
                raise ValueError(
                    f"{self._path(*part)} {error}; run the same command again, which recomputes it"
                ) from error
            self._require(json.loads(str(arrays[_SETTINGS])))
            yield arrays

    def remove(self) -> None:
        """Removes the files, and the folder if nothing else is in it."""
        for path in [
            *(self._path(*part) for part in self._parts()),
            *self.folder.glob(f".*{PART}"),
        ]:
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _parts(self) -> list[tuple[int, int]]:
        """The first number and the count of each part."""
        starts = range(0, max(self.n, 1), self.batch_size)
        return [(self.first + i, min(self.batch_size, self.n - i)) for i in starts]

    def _path(self, first: int, count: int) -> Path:
        return self.folder / f"{first:09d}-{count}.npz"

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the folder {self.folder} cannot be made: {error.strerror}; choose another place",
            ) from error

    def _check_files(self) -> None:
        """Checks the files in the folder; removes damaged ones, refuses other settings."""
        expected = {self._path(*part) for part in self._parts()}
        for path in sorted(self.folder.glob("*-*.npz")):
            try:
                old = json.loads(str(_read(path)[_SETTINGS]))
            except _DamagedError as error:
                if path in expected:
                    warn_caller(f"{path} {error}; it is made again")
                    path.unlink()
                continue
            self._require(old)

    def _require(self, old: Mapping[str, Any]) -> None:
        new = self._all()
        # NaN differs from itself, and not as text.
        different = [
            name
            for name in {**old, **new}
            if old.get(name) != new.get(name)
            and json.dumps(old.get(name), sort_keys=True)
            != json.dumps(new.get(name), sort_keys=True)
        ]
        if different:
            description = ", ".join(
                f"{name} {_shortened(old.get(name))} (now {_shortened(new.get(name))})"
                for name in different
            )
            raise ValueError(
                f"{self.folder} has results of another run, with {description}; repeat that one to "
                "finish it, or remove the folder to start again"
            )

    def _all(self) -> dict[str, Any]:
        """The settings, with first, n and batch_size."""
        return as_json(
            "settings",
            {**self.settings, "first": self.first, "n": self.n, "batch_size": self.batch_size},
        )

    def _compute(
        self,
        work: Callable[[int, int], Mapping[str, Tensor | NDArray[Any]]],
        first: int,
        count: int,
    ) -> Arrays:
        """The results of one part; an error names samples by their position among all n."""
        after = first - self.first
        try:
            results = work(first, count)
        except NotFiniteError as error:
            raise error.relocated(after=after, total=self.n) from None
        except UnfinishedError as error:
            raise UnfinishedError(error.solution, error.reached, after, error.advice) from None
        arrays = {name: _array(value) for name, value in results.items()}
        for name, value in arrays.items():
            if value.ndim < 1 or len(value) != count or name == _SETTINGS:
                description = f"{name!r}, {value.dtype} of shape {value.shape}"
                raise ValueError(
                    f"work({first}, {count}) returned {description}; it must return numbers of "
                    f"shape ({count}, ...)"
                )
        return arrays

    def _write(self, path: Path, arrays: Arrays) -> None:
        with replace_atomically(path) as beside, zipfile.ZipFile(beside, "w") as archive:
            for name, value in {**arrays, _SETTINGS: np.array(json.dumps(self._all()))}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, value, allow_pickle=False)


def _array(value: Tensor | NDArray[Any]) -> NDArray[Any]:
    """The numbers of a tensor as an array, those in bfloat16, which numpy has not, as float32."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    return np.asarray(value)


class _DamagedError(ValueError):
    """A file that is not a complete file of results."""


def _read(path: Path) -> Arrays:
    """The arrays of a file, whose checksums are verified."""
    content = BytesIO(path.read_bytes())  # that a file cannot be read does not make it damaged
    try:
        with np.load(content, allow_pickle=False) as archive:
            require_ratio(
                sum(member.file_size for member in archive.zip.infolist()), len(content.getbuffer())
            )
            arrays = {name: archive[name] for name in archive.files}
        json.loads(str(arrays[_SETTINGS]))
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds over damaged bytes
        raise _DamagedError(f"is damaged ({reason(error)})") from error
    return arrays


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def digest(about: object, tensors: Mapping[str, Tensor] | None = None) -> str:
    """A checksum of a value as JSON, and of names, dtypes, shapes and values of tensors: the first
    16 hexadecimal digits of SHA-256.
    """
    checksum = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in (tensors or {}).items():
        checksum.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        checksum.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return checksum.hexdigest()[:16]
