"""The RefineNets of ermongroup/ncsnv2: which of them a state dict belongs to, and the conversion of
its weights to `nets.NCSNv2`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit_diffusion._loading.weights import fill, plain
from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion.nets import NCSNv2

FIRST = "begin_conv.weight"
_NORM = ("gamma", "alpha", "beta")  # concatenated in a row of our norms


@dataclass(frozen=True)
class _Published:
    """A published network: its stages and cascades by name, in the order of use, and the dilations
    of the stages.
    """

    stages: Sequence[str]
    cascades: Sequence[str]
    dilations: Sequence[int]

    def theirs(self, ours: str) -> tuple[str, ...]:
        """The authors' names of the tensors in one of ours: three for the row of a norm."""
        match ours.split("."):
            case ["first", kind]:
                return (f"begin_conv.{kind}",)
            case ["last", "norm", _]:
                return tuple(f"normalizer.{part}" for part in _NORM)
            case ["last", "conv", kind]:
                return (f"end_conv.{kind}",)
            case ["down", i, layer, *rest]:
                return self._down(*divmod(int(i), 2), layer, rest)
            case ["up", i, *rest]:
                return (f"refine{self.cascades[int(i)]}.{self._up(rest)}",)
        raise AssertionError(ours)

    def _down(self, stage: int, block: int, layer: str, rest: Sequence[str]) -> tuple[str, ...]:
        place = f"res{self.stages[stage]}.{block}"
        number = layer[-1]
        kind = rest[-1]
        halves = "conv." if stage and not block and self.dilations[stage] == 1 else ""
        if layer == "shortcut":
            return (f"{place}.shortcut.{halves}{kind}",)
        if "norm" in rest:
            return tuple(f"{place}.normalize{number}.{part}" for part in _NORM)
        return (f"{place}.conv{number}.{halves if number == '2' else ''}{kind}",)

    def _up(self, rest: Sequence[str]) -> str:
        match rest:
            case ["units", i, "layers", n, "conv", kind]:
                return f"adapt_convs.{i}.{_unit(int(n))}.{kind}"
            case ["last", "layers", n, "conv", kind]:
                return f"output_convs.{_unit(int(n))}.{kind}"
            case ["fusion", i, "conv", kind]:
                return f"msf.convs.{i}.{kind}"
            case ["pooling", i, "conv", kind]:
                return f"crp.convs.{i}.{kind}"
        raise AssertionError(rest)


def _unit(n: int) -> str:
    """The n-th convolution of residual units of two."""
    return f"{n // 2 + 1}_{n % 2 + 1}_conv"


_PUBLISHED = [
    _Published("1 2 3 4".split(), "1 2 3 4".split(), (1, 1, 2, 4)),
    _Published("1 2 3 4 5".split(), "1 2 3 4 5".split(), (1, 1, 1, 2, 4)),
    _Published("1 2 3 31 4 5".split(), "1 2 31 3 4 5".split(), (1, 1, 1, 1, 2, 4)),
]


def network(state: Mapping[str, Tensor], centred: bool, source: str) -> NCSNv2:
    """The network of a state dict, with the opposite sign of the output of the authors' network.

    Raises:
        CheckpointError: when it is not that of a published network, or is damaged.
    """
    published, config = _architecture(state, source)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in NCSNv2(**config).state_dict().items()}
    names = {ours: published.theirs(ours) for ours in shapes}
    _require_shapes(state, names, shapes, source)
    values = {ours: _join([state[theirs] for theirs in names[ours]]) for ours in shapes}
    values |= {name: -values[name] for name in ("last.conv.weight", "last.conv.bias")}
    net = NCSNv2(**config, centred=centred)
    fill(net, values, source)
    return net


def _join(parts: Sequence[Tensor]) -> Tensor:
    """A single tensor, or several concatenated to the row of a norm."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))[None]


def _architecture(state: Mapping[str, Tensor], source: str) -> tuple[_Published, dict[str, Any]]:
    """Which of the networks it is, and our arguments for it."""
    numbers = {match[1] for name in state if (match := re.match(r"res(\d+)\.", name))}
    for published in _PUBLISHED:
        ends = [state.get(f"res{stage}.1.conv2.weight") for stage in published.stages]
        weights = [
            value
            for value in (state.get(FIRST), *ends)
            if value is not None and plain(value) and value.numel()
        ]
        if (
            numbers == set(published.stages)
            and len(weights) == 1 + len(ends)
            and weights[0].ndim == 4
        ):
            width = len(weights[0])
            multipliers = [max(len(end) // width, 1) for end in weights[1:]]
            sizes = {"channels": weights[0].shape[1], "width": width, "multipliers": multipliers}
            return published, sizes | {"dilations": published.dilations}
    raise CheckpointError(
        f"{source} holds {', '.join(list(state)[:4])} ...: not the weights of NCSNv2, NCSNv2Deeper "
        "or NCSNv2Deepest"
    )


def _require_shapes(
    state: Mapping[str, Tensor],
    names: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    """Refuses names and shapes that are not the network's, before it is built."""
    expected = {
        theirs: shapes[ours] if len(names_of) == 1 else (shapes[ours][-1] // len(names_of),)
        for ours, names_of in names.items()
        for theirs in names_of
    }
    for name in sorted(expected.keys() | state.keys()):
        value = state.get(name)
        shape_held = (
            None
            if value is None or not plain(value) or not value.is_floating_point()
            else tuple(value.shape)
        )
        if shape_held != expected.get(name) or shape_held is None:
            held_text, expected_text = (
                "no numbers" if shape is None else f"shape {shape}"
                for shape in (shape_held, expected.get(name))
            )
            raise CheckpointError(
                f"{source} has {held_text} as {name}, where the published network has "
                f"{expected_text}; it is another's, or damaged"
            )
