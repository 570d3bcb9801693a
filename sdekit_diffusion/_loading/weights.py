"""Reads files of weights as data: nothing in them is executed, and detectable damage is refused."""

import io
import json
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion.data._array_files import reason

_PREFIXES = ("module.", "_orig_mod.")  # of nn.DataParallel and torch.compile
# Crafted pickles corrupt the memory of earlier versions, even with weights_only: CVE-2026-24747.
_SAFE_TORCH = "2.10"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: when the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable as JSON ({reason(error)}); it is damaged"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds {type(content).__name__}, not an object with names; it is damaged"
        )
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. It has no checksum: damage to the numbers is not detected.

    Raises:
        CheckpointError: when it is damaged.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({reason(error)}); it is damaged"
        ) from error


def read_pickle(path: Path) -> Any:  # noqa: ANN401 - whatever was saved
    """The content of a file of `torch.save`: tensors, numbers, text, lists and dicts. The pickle is
    never executed.

    Raises:
        CheckpointError: when it holds anything else, or is damaged; or when this version of torch
            is not safe.
    """
    if torch.__version__ < _SAFE_TORCH:
        raise CheckpointError(
            f"{path} is a pickle, and torch {torch.__version__} does not read crafted ones safely "
            "(CVE-2026-24747); use torch 2.10 or later, save the tensors as safetensors, or, if "
            "you trust the file, load it yourself and pass what it holds"
        )
    try:
        with path.open("rb") as file:
            archive = zipfile.is_zipfile(file)
            file.seek(0)
            return torch.load(
                _verified_copy(file) if archive else file, map_location="cpu", weights_only=True
            )
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    # Zipfile, torch and its unpickler raise a dozen kinds over damaged bytes.
    except Exception as error:
        raise CheckpointError(
            f"{path} is refused: {reason(error)}. It must be what torch.save writes of tensors, "
            "numbers, text, lists and dicts, undamaged; if you trust it and it holds other "
            "objects, load it yourself and pass a dict of tensors"
        ) from error


def _verified_copy(file: BinaryIO) -> BinaryIO:
    """A copy of an archive with verified checksums. torch does not verify them, and would return
    uninitialised memory for a member with a damaged attribute.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(buffer, "w") as copy:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its archive is compressed, which torch.save does not do")
            copy.writestr(member.filename, archive.read(member))
    buffer.seek(0)
    return buffer


def fill(network: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Copies tensors into a network if they are exactly those that it needs; otherwise raises an
    error and leaves the network unchanged.

    Raises:
        CheckpointError: for names, shapes or dtypes that are not the network's, and for numbers
            that are not finite.
    """
    network_state = network.state_dict()
    _require_same(network_state, state, source)
    for name, value in network_state.items():
        tensor = state[name]
        if not plain(tensor):
            raise CheckpointError(f"{source} holds no plain tensor of numbers as {name}")
        if (
            tensor.shape != value.shape
            or tensor.is_floating_point() != value.is_floating_point()
            or tensor.is_complex()
        ):
            raise CheckpointError(
                f"{source} holds {name} of shape {tuple(tensor.shape)} and {tensor.dtype}, and the "
                f"network has {tuple(value.shape)} and {value.dtype}; build the network with the "
                "settings that it was trained with"
            )
        if not bool(tensor.to(value.dtype).isfinite().all()):
            raise CheckpointError(
                f"{source} holds NaN or infinite numbers in {name}; it is damaged, or training "
                "diverged"
            )
    network.load_state_dict({name: state[name] for name in network_state})


def unwrapped(state: Mapping[str, Any], expected: Container[str]) -> dict[str, Any]:
    """The state without the prefix that a wrapper has added to all names, if none is expected with
    it.
    """
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state) and not any(
            name in expected for name in state
        ):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def plain(value: object) -> bool:
    """Whether this is a dense real tensor with no more elements than its storage holds."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta or value.is_complex())
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _require_same(expected: Mapping[str, Any], state: Mapping[str, Any], source: str) -> None:
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    if missing or unexpected:
        lacks = (
            f"lacks {len(missing)} of the network's tensors, such as {missing[0]}"
            if missing
            else ""
        )
        has = (
            f"has {len(unexpected)} that the network has not, such as {unexpected[0]}"
            if unexpected
            else ""
        )
        raise CheckpointError(
            f"{source} {' and '.join(filter(None, (lacks, has)))}; build the network with the "
            "settings that it was trained with"
        )
