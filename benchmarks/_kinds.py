"""Files that loaders meet, and what came of loading them once damaged: for benchmarks/fuzz.py and
tests/test_fuzz.py.
"""

import gzip
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _damage import damaged, repacked
from safetensors.torch import load_file
from torch import Tensor, nn

from sdekit_diffusion import (
    CheckpointError,
    ScoreModel,
    data,
    from_diffusers,
    from_score_sde,
    load,
    nets,
    save,
)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: what it is.
        file: which of the files in the folder is damaged.
        write: makes them, sound, in a folder.
        load: returns what the loader reads from the folder, as named values.
        errors: with which it may refuse, always with a message.
        knows: whether the format has a checksum over all that matters, so that no damage may go
            unnoticed.
    """

    name: str
    file: str
    write: Callable[[Path], None]
    load: Callable[[Path], dict[str, Any]]
    errors: tuple[type[Exception], ...]
    knows: bool


def outcome(kind: Kind, folder: Path, sound: Mapping[str, Any]) -> str:
    """What came of loading: "refused", "sound", "changed", or the exception that no caller could
    expect.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind.load(folder)
    except kind.errors as error:
        return "refused" if len(str(error)) > 20 else f"{type(error).__name__} without a message"
    except BaseException as error:  # panics of extensions are not of type Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    return "sound" if same(found, sound) else "changed"


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether all values are equal, tensors bit-identical."""

    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return (
                x.dtype == y.dtype
                and x.shape == y.shape
                and x.numpy().tobytes() == y.numpy().tobytes()
            )
        return x == y

    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)


class Small(nn.Module):
    """A network of the names of score_sde_pytorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.all_modules = nn.ModuleList([nn.Linear(2, 4), nn.Linear(4, 2)])
        self.register_buffer("sigmas", torch.linspace(5.0, 0.1, 10))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.all_modules[1](self.all_modules[0](x).tanh())


def _described(model: ScoreModel) -> dict[str, Any]:
    """Weights, conventions, and the network's output at a point."""
    assert isinstance(model.net, nn.Module)
    held = ("sde", "predicts", "conditioning", "shape", "data_std", "data_range")
    point = torch.linspace(-1, 1, 16).reshape(
        (1, 1, 4, 4) if "net.conv_in.weight" in model.net.state_dict() else (8, 2)
    )
    with torch.no_grad():
        found = {"model.net": model.net(point, torch.ones(len(point)))}
    return {
        **model.net.state_dict(),
        **found,
        **{f"model.{name}": getattr(model, name) for name in held},
    }


def _checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    save(ScoreModel(nets.MLP((2,), 8, 1), "vp", shape=(2,), data_range=(-1.0, 1.0)), folder)


def _unet(folder: Path) -> None:
    from diffusers import (
        DDPMPipeline,  # pyright: ignore[reportPrivateImportUsage]
        DDPMScheduler,  # pyright: ignore[reportPrivateImportUsage]
        UNet2DModel,  # pyright: ignore[reportPrivateImportUsage]
    )

    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "mid_block_type": None,
    }
    unet = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=2,
        **blocks,
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10)).save_pretrained(folder)


def _unet_bin(folder: Path) -> None:
    _unet(folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(
        {name: value.clone() for name, value in load_file(path).items()}, path.with_suffix(".bin")
    )
    path.unlink()


def _pth(legacy: bool) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        torch.manual_seed(0)
        net = Small()
        found = {
            "model": {f"module.{name}": value for name, value in net.state_dict().items()},
            "ema": {
                "decay": 0.999,
                "num_updates": 3,
                "shadow_params": [p.detach() + 1 for p in net.parameters()],
            },
            "optimizer": torch.optim.Adam(net.parameters()).state_dict(),
            "step": 3,
        }
        torch.save(found, folder / "a.pth", _use_new_zipfile_serialization=not legacy)

    return write


def _array(folder: Path) -> dict[str, Any]:
    path = next((path for path in folder.iterdir() if path.suffix in (".npy", ".npz")), folder)
    found = data.load(path)
    return {"train": found.train, "test": found.test, "labels": found.labels, "scale": found.scale}


def _pictures(ending: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from PIL import Image

        for i, image in enumerate(_IMAGES):
            Image.fromarray(image).save(folder / f"{i}.{ending}")

    return write


def _idx(folder: Path) -> None:
    """MNIST's four files, of which one is compressed."""
    for part, n in (("train", 8), ("t10k", 3)):
        images = np.repeat(_IMAGES, 2, axis=0)[:n]
        labels = np.arange(n, dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\3" + np.array(images.shape, ">u4").tobytes() + images.tobytes()
        )
        content = b"\0\0\x08\1" + np.array([n], ">u4").tobytes() + labels.tobytes()
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))


_IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5), dtype=np.uint8)
# More than is read at once.
_MANY = np.random.default_rng(0).integers(0, 256, (5000, 3, 4), dtype=np.uint8)
_FLOATS = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)


def kinds(folder: Path) -> list[Kind]:
    """All kinds; those of our checkpoints are the files that one is found to consist of, saved into
    the folder.
    """
    _checkpoint(folder)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [
        *_kinds_of_checkpoints(names),
        *_kinds_of_data(),
        *_kinds_of_diffusers(),
        *_kinds_of_score_sde(),
    ]


def _kinds_of_checkpoints(files: list[str]) -> list[Kind]:
    """Each of the files of our checkpoints."""

    def read(folder: Path) -> dict[str, Any]:
        return _described(load(folder))

    return [
        Kind(
            f"checkpoint, {file.partition('-')[0]}",
            file,
            _checkpoint,
            read,
            (CheckpointError,),
            True,
        )
        for file in files
    ]


def _kinds_of_data() -> list[Kind]:
    """Arrays, images and MNIST's files."""
    rows: list[tuple[str, str, Callable[[Path], None], bool]] = [
        (".npy of levels", "a.npy", lambda f: np.save(f / "a.npy", _IMAGES), False),
        (".npy of floats", "a.npy", lambda f: np.save(f / "a.npy", _FLOATS), False),
        (".npz", "a.npz", lambda f: np.savez(f / "a.npz", train=_IMAGES), True),
        (".npz of many", "a.npz", lambda f: np.savez(f / "a.npz", train=_MANY), True),
        (".npz compressed", "a.npz", lambda f: np.savez_compressed(f / "a.npz", _FLOATS), True),
        ("png", "2.png", _pictures("png"), True),
        ("MNIST's", "train-images-idx3-ubyte", _idx, False),
        ("MNIST's compressed", "train-labels-idx1-ubyte.gz", _idx, True),
        ("jpg", "2.jpg", _pictures("jpg"), False),
    ]
    return [
        Kind(f"data, {name}", file, write, _array, (ValueError,), knows)
        for name, file, write, knows in rows
    ]


def _kinds_of_diffusers() -> list[Kind]:
    """The files of a pipeline of diffusers."""

    def read(folder: Path) -> dict[str, Any]:
        return _described(from_diffusers(folder))

    weights = "unet/diffusion_pytorch_model"
    rows = [
        ("unet/config.json", "unet/config.json", _unet, False),
        ("scheduler_config.json", "scheduler/scheduler_config.json", _unet, False),
        ("model_index.json", "model_index.json", _unet, False),
        (".safetensors", f"{weights}.safetensors", _unet, False),
        (".bin", f"{weights}.bin", _unet_bin, True),
    ]
    return [
        Kind(f"diffusers, {name}", file, write, read, (CheckpointError,), knows)
        for name, file, write, knows in rows
    ]


def _kinds_of_score_sde() -> list[Kind]:
    """A checkpoint of score_sde_pytorch in both formats of torch, and with right checksums."""

    def read(folder: Path) -> dict[str, Any]:
        return _described(from_score_sde(folder / "a.pth", Small(), "ve"))

    rows = [
        (".pth", _pth(False), True),
        (".pth of old torch", _pth(True), False),
        (".pth with right checksums", _pth(False), False),
    ]
    return [
        Kind(f"score_sde, {name}", "a.pth", write, read, (CheckpointError,), knows)
        for name, write, knows in rows
    ]


class Fuzz:
    """A folder with one kind of file, which is damaged and loaded, each time in another way."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        kind.write(folder)
        self.kind = kind
        self.folder = folder
        self.path = folder / kind.file
        self.content = self.path.read_bytes()
        self.sound = kind.load(folder)
        assert same(self.sound, kind.load(folder))

    def once(self, seed: int) -> str:
        """What came of it, as `outcome` says."""
        rng = random.Random(seed)  # noqa: S311 - not a secret
        change = repacked if "right checksums" in self.kind.name else damaged
        self._put(change(self.content, rng))
        return outcome(self.kind, self.folder, self.sound)

    def allowed(self, found: str) -> bool:
        """Whether that may come of damage: a change only where nothing in the format could tell."""
        return found in ("refused", "sound") or (found == "changed" and not self.kind.knows)

    def _put(self, content: bytes) -> None:
        self.path.unlink()  # what may still be mapped stays as it was
        self.path.write_bytes(content)
