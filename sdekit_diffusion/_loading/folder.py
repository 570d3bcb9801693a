"""Folders of diffusers: a UNet2DModel or UNet2DConditionModel, whose weights must fit exactly, and
the config of a scheduler.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit_diffusion._loading.weights import fill, read_json, read_pickle, read_safetensors
from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion.data._array_files import reason

_NETWORKS = ("UNet2DModel", "UNet2DConditionModel")
_DEPTHS = (
    "layers_per_block",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
)

# Names of weights before diffusers 0.17, and those of today.
_OLD_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def open_folder(
    folder: Path,
    config: Mapping[str, Any] | None,
    require_known: Callable[[Mapping[str, Any]], object],
) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network in a folder, and a scheduler's config: the given one, or that in the folder,
    which `require_known` must accept.

    Raises:
        CheckpointError: when the folder lacks something, or is damaged.
        ImportError: when diffusers is not installed.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder; give one that save_pretrained of a pipeline, a "
            "UNet2DModel or a UNet2DConditionModel wrote"
        )
    index = folder / "model_index.json"
    parts = read_json(index) if index.exists() else {}
    other_parts = [
        name
        for name, part in parts.items()
        if not name.startswith("_") and name not in ("unet", "scheduler") and part
    ]
    if other_parts:
        raise CheckpointError(
            f"{folder} is a pipeline with {', '.join(other_parts)}, in which the network sees "
            "something else than images; load its unet with diffusers and pass "
            "from_diffusers(unet, scheduler.config, data_range=None)"
        )
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    if config is None:
        candidates = [
            folder / "scheduler" / "scheduler_config.json",
            folder / "scheduler_config.json",
        ]
        path = next((candidate for candidate in candidates if candidate.exists()), None)
        if path is None:
            raise CheckpointError(
                f"{folder} has no scheduler_config.json, nor has its scheduler/; pass "
                "from_diffusers(folder, scheduler.config)"
            )
        config = read_json(path)
        try:
            require_known(config)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return _unet(unet_folder), config


def shape_of(settings: Mapping[str, Any]) -> tuple[int, ...] | None:
    """(channels, height, width) from a network's config; None where the size is not known.

    Raises:
        ValueError: when they are not positive integers.
    """
    channels: Any = settings.get("in_channels")
    size: Any = settings.get("sample_size")
    shape = (
        channels,
        *(size if isinstance(size, list | tuple) else [] if size is None else [size, size]),
    )
    if not all(type(n) is int and n > 0 for n in shape) or len(shape) not in (1, 3):
        raise ValueError(
            f"the network's config has in_channels = {channels!r} and sample_size = {size!r}; "
            "these are a number of channels, and of pixels, one for both sides or two, or None"
        )
    return shape if size else None


def _unet(folder: Path) -> nn.Module:
    """The network in a folder, in evaluation mode."""
    try:
        diffusers = import_module("diffusers")
    except ImportError as error:
        raise ImportError(
            "folders of diffusers need it: pip install 'sdekit[diffusers]'"
        ) from error
    path = folder / "config.json"
    weights, state = _state(folder)
    name, options = _options(path, diffusers)
    network = getattr(diffusers, name)
    try:
        _require_buildable(options, len(state))
        # On the meta device: no memory is used before the size is known.
        with torch.device("meta"), torch.no_grad():
            empty_unet = network(**options).eval()
            _require_usable(
                empty_unet,
                shape_of(empty_unet.config) or (empty_unet.config["in_channels"], 64, 64),
            )
        count = sum(value.numel() for value in empty_unet.state_dict().values())
        if count != sum(value.numel() for value in state.values()):
            raise ValueError(f"its network has {count:,} numbers, and {weights.name} another count")
        unet = network(**options)
    except Exception as error:  # whatever constructors raise over senseless arguments
        raise CheckpointError(
            f"{path} does not describe a {name} of these weights: {reason(error)}"
        ) from error
    fill(unet, state, str(weights))
    return unet.eval()


def _options(path: Path, diffusers: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
    """The class of a network by its config, and its arguments, all of which must be known."""
    config = read_json(path)
    name = config.get("_class_name")
    if name not in _NETWORKS:
        raise CheckpointError(
            f"{path} is of a {name!r}; it must be of a {' or '.join(_NETWORKS)}; or pass the "
            "network"
        )
    _, *allowed = inspect.signature(getattr(diffusers, name).__init__).parameters
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = next((key for key in options if key not in allowed), None)
    if unknown is not None:
        raise CheckpointError(
            f"{path} has {unknown!r}, which a {name} of this version of diffusers does not know; "
            "or pass the network"
        )
    return name, options


def _require_buildable(options: Mapping[str, Any], tensors: int) -> None:
    """Refuses numbers of layers with which building the network might not end."""
    for key in _DEPTHS:
        if not all(0 < n <= tensors for n in _numbers(options.get(key))):
            raise ValueError(f"{key} is {options[key]}, and the weights have {tensors} tensors")


def _numbers(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """The numbers in nested lists; none in None, a default of diffusers."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif value is not None:
        yield value


def _require_usable(unet: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuses a network whose output has a wrong shape. Networks with conditions are not
    checked.
    """
    if type(unet).__name__ == "UNet2DModel" and unet.class_embedding is None:
        out = unet(torch.zeros(1, *shape), torch.zeros(1)).sample
        if out.shape[1] < shape[0] or out.shape[2:] != shape[1:]:
            raise ValueError(
                f"its output has shape {tuple(out.shape[1:])} for images of shape {shape}"
            )


def _state(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights in a folder, and the file they are from."""
    safe, pickled = (
        folder / f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin")
    )
    if not safe.exists() and not pickled.exists():
        raise CheckpointError(
            f"{folder} has no {safe.name} or .bin; weights in parts or of a variant are loaded "
            "with from_pretrained of diffusers' class, and passed as from_diffusers(unet, "
            "scheduler.config)"
        )
    path = safe if safe.exists() else pickled
    state = read_safetensors(path) if safe.exists() else read_pickle(path)
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise CheckpointError(f"{path} holds something else than tensors with names")
    for old, new in _OLD_NAMES.items():
        state = {
            name.replace(old, new) if ".attentions." in name else name: value
            for name, value in state.items()
        }
    return path, state
