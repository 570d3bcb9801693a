"""Damaged files of every kind are refused with a message or harmless, and pickles are never
executed.
"""

import io
import pickle
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from _kinds import Fuzz, kinds

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning")
]
FOLDER = TemporaryDirectory()
KINDS = {kind.name: kind for kind in kinds(Path(FOLDER.name))}
NAMES = pytest.mark.parametrize("name", KINDS, ids=[name.replace(" ", "_") for name in KINDS])


def readable(name):
    """The kind of that name, where it is read at all."""
    if KINDS[name].file.endswith((".pth", ".bin")) and torch.__version__ < "2.10":
        pytest.skip("older versions of torch are refused pickles")
    if name.startswith("diffusers"):
        pytest.importorskip("diffusers")
    return KINDS[name]


@NAMES
def test_damage(name, tmp_path):
    """75 files of each kind: only the documented errors, with a message; no changed value where
    there is a checksum.
    """
    fuzz = Fuzz(readable(name), tmp_path)
    for seed in range(75):
        found = fuzz.once(seed)
        assert fuzz.allowed(found), (seed, found)


# A pickle that would make a file where it is executed.


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def zipped(inner):
    """An archive as torch.save writes them, with a pickle of somebody else's inside."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", inner)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def bombs(marker):
    plain = pickle.dumps(Bomb(marker))
    objects = np.array([Bomb(marker)], dtype=object)
    np.save(npy := io.BytesIO(), objects, allow_pickle=True)
    np.savez(npz := io.BytesIO(), train=objects)
    torch.save({"model": Bomb(marker), "ema": Bomb(marker)}, pth := io.BytesIO())
    torch.save(Bomb(marker), legacy := io.BytesIO(), _use_new_zipfile_serialization=False)
    return [plain, npy.getvalue(), npz.getvalue(), pth.getvalue(), legacy.getvalue(), zipped(plain)]


def test_the_bomb_goes_off_where_it_is_executed(tmp_path):
    plain, npy, *_ = bombs(tmp_path / "executed")
    for execute in (
        lambda: pickle.loads(plain),  # noqa: S301
        lambda: np.load(io.BytesIO(npy), allow_pickle=True),
    ):
        execute()
        (tmp_path / "executed").unlink()


@NAMES
def test_no_pickle_is_executed(name, tmp_path):
    """In the place of each file of each kind: a pickle, .npy, .npz, .pth, an old .pth, an
    archive.
    """
    kind = readable(name)
    folder = tmp_path / "files"
    folder.mkdir()
    kind.write(folder)
    for which, content in enumerate(bombs(tmp_path / "executed")):
        (folder / kind.file).unlink()  # what may still be mapped stays as it was
        (folder / kind.file).write_bytes(content)
        try:
            kind.load(folder)
        except kind.errors as refusal:
            assert len(str(refusal)) > 20, which  # noqa: PT017
        else:
            pytest.fail(f"bomb {which} is not refused")
        assert not (tmp_path / "executed").exists(), which
