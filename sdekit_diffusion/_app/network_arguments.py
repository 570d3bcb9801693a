"""Options of the command line that are the arguments of the networks' constructors."""

import collections.abc
import inspect
import re
from collections.abc import Iterator
from dataclasses import field, make_dataclass
from typing import Any, get_args, get_origin

from torch import nn

from sdekit_diffusion import nets

# Arguments that follow from the data.
_FROM_DATA = ("shape", "channels", "size", "dimensions", "classes", "context", "image")
_SECTION = re.compile(r"^ *Arg(?:ument)?s:\n(.*?)(?=^\s*\n|\Z)", re.DOTALL | re.MULTILINE)
_ENTRY = re.compile(r"([\w, ]+): (.*)")


def arguments(network: type[nn.Module]) -> dict[str, type]:
    """The arguments of a constructor that are options, with their types: `tuple` for a sequence."""
    parameters = inspect.signature(network).parameters.values()
    return {p.name: _option_type(p.annotation) for p in parameters if p.name not in _FROM_DATA}


def with_network_arguments(name: str, base: type) -> type:
    """A frozen dataclass with the fields of a base and those of all networks in `nets.registry`.

    An option is None unless given; then the default of the network is used.

    Arguments:
        name: of the class.
        base: a frozen dataclass whose docstring ends with the list of its attributes.
    """
    types: dict[str, Any] = {}
    for network in nets.registry.values():
        types |= arguments(network)
    lines = [f"    {option}: {_help(option)}" for option in types]
    doc = "\n".join([inspect.cleandoc(base.__doc__ or ""), *lines]) + "\n"
    option_fields = [(option, kind | None, field(default=None)) for option, kind in types.items()]
    return make_dataclass(
        name, option_fields, bases=(base,), frozen=True, namespace={"__doc__": doc}
    )


def _option_type(annotation: Any) -> type:  # noqa: ANN401
    if get_origin(annotation) is collections.abc.Sequence:
        return tuple[get_args(annotation)[0], ...]
    return annotation


def _help(option: str) -> str:
    """The networks' descriptions of an argument, each after the names of its networks."""
    networks: dict[str, list[str]] = {}
    for name, network in nets.registry.items():
        text = dict(_argument_descriptions(network)).get(option)
        if text is None:
            continue
        reference = re.match(r"as in `(\w+)`", text)
        text = (
            dict(_argument_descriptions(nets.registry[reference[1]]))[option] if reference else text
        )
        networks.setdefault(text.rstrip("."), []).append(name)
    return " ".join(f"{', '.join(names)}: {text}." for text, names in networks.items())


def _argument_descriptions(network: type[nn.Module]) -> Iterator[tuple[str, str]]:
    """The arguments that a docstring describes, with their descriptions on one line."""
    section = _SECTION.search(inspect.getdoc(network) or "")
    entries = re.split(r"\n {4}(?=\S)", "\n" + section[1].rstrip()) if section else []
    for entry in entries[1:]:
        match = _ENTRY.fullmatch(" ".join(entry.split()))
        if match:
            yield from ((name, match[2]) for name in match[1].split(", "))
