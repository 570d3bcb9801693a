"""Writes the reference: a page for each public object, by task, from the packages' own lists.

`conf.py` writes the pages to docs/reference before a build. The group of an object follows from
the module that defines it, so that one more solver, network or metric is listed without an edit.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import sdekit
import sdekit.elementary
import sdekit.plot
import sdekit_diffusion as sd
import sdekit_diffusion.plot

PAGES = Path(__file__).parent / "reference"

# Headings, and the beginnings of the names of modules; the first that fits counts.
GROUPS: Mapping[ModuleType, Mapping[str, Sequence[str]]] = {
    sdekit: {
        "Equations": ["sdekit._equations"],
        "Solving": ["sdekit._solve.", "sdekit._grid"],
        "Noise": ["sdekit._noise"],
        "Solvers": ["sdekit._solvers"],
        "Likelihoods, densities and weights of paths": ["sdekit._likelihood"],
        "Functions of torchsde and torchdiffeq": ["sdekit.interop"],
        "Plots of solves": ["sdekit.plot"],
        "Functions of times and states": ["sdekit.elementary"],
        "Functions for extensions": ["sdekit"],
    },
    sd: {
        "Networks": ["sdekit_diffusion.nets"],
        "Data": ["sdekit_diffusion.data"],
        "Training": ["sdekit_diffusion._training"],
        "Diffusions": ["sdekit_diffusion._diffusions"],
        "Exact models": ["sdekit_diffusion._models.mixture", "sdekit_diffusion._models.empirical"],
        "Observations": [
            "sdekit_diffusion._models.observation",
            "sdekit_diffusion._models.linear_observation",
            "sdekit_diffusion._models.joint",
            "sdekit_diffusion._models.operators",
        ],
        "Posteriors": [
            "sdekit_diffusion._models.conditioned",
            "sdekit_diffusion._models.covariances",
            "sdekit_diffusion._models.known",
            "sdekit_diffusion._inference.sample_posterior",
            "sdekit_diffusion._inference.weight",
            "sdekit_diffusion._inference.particles",
        ],
        "Models": ["sdekit_diffusion._models"],
        "Models from files": ["sdekit_diffusion._loading"],
        "Sampling": ["sdekit_diffusion._sampling", "sdekit_diffusion._storage"],
        "Likelihoods, encodings and classification": ["sdekit_diffusion._inference"],
        "Metrics": ["sdekit_diffusion.metrics"],
        "Plots of samples": ["sdekit_diffusion.plot"],
        "Tables of names": [""],
    },
}
MODULES = {
    sdekit: [sdekit, sdekit.interop, sdekit.plot, sdekit.elementary],
    sd: [sd, sd.nets, sd.data, sd.metrics, sd.plot],
}


class Entry(NamedTuple):
    """A public object, and the module of which it is an attribute."""

    module: ModuleType
    name: str

    @property
    def value(self) -> object:
        return getattr(self.module, self.name)

    @property
    def title(self) -> str:
        return f"{self.module.__name__}.{self.name}"

    @property
    def defined(self) -> str:
        """The module that defines it; empty for a table."""
        return "" if isinstance(self.value, dict) else self.value.__module__


def has_page(value: object) -> bool:
    """Whether it is a class, a function or a table."""
    return inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, dict)


def entries(package: ModuleType) -> Iterator[Entry]:
    """Each public class, function and table of a package and of its public modules once."""
    listed = set()
    for module in MODULES[package]:
        for name in module.__all__:
            entry = Entry(module, name)
            if has_page(entry.value) and id(entry.value) not in listed:
                listed.add(id(entry.value))
                yield entry


def grouped(package: ModuleType) -> dict[str, list[Entry]]:
    """The objects by headings, in the order of the table."""
    found: dict[str, list[Entry]] = {heading: [] for heading in GROUPS[package]}
    for entry in entries(package):
        heading = next(
            heading
            for heading, beginnings in GROUPS[package].items()
            if any(entry.defined.startswith(beginning) for beginning in beginnings)
        )
        found[heading].append(entry)
    return {
        heading: sorted(group, key=lambda entry: entry.name) for heading, group in found.items()
    }


def summary(entry: Entry) -> str:
    """The first sentence of its docstring, or the number of names in a table."""
    if isinstance(entry.value, dict):
        return f"A table of {len(entry.value)} names."
    words = " ".join((inspect.getdoc(entry.value) or "").split("\n\n")[0].split())
    sentence = words.partition(". ")[0].rstrip(".:") + "."
    return sentence.replace("\\", r"\\").replace("*", r"\*").replace("|", r"\|").replace("`", "")


def page(entry: Entry) -> str:
    """The text of the page of an object."""
    lines = [entry.title, "=" * len(entry.title), "", f".. currentmodule:: {entry.module.__name__}"]
    if inspect.isclass(entry.value):
        lines += ["", f".. autoclass:: {entry.name}", "   :members:"]
    elif isinstance(entry.value, dict):
        names = ", ".join(f'``"{name}"``' for name in entry.value)
        lines += ["", f".. py:data:: {entry.name}", "", f"   A dict of the names {names}."]
    else:
        lines += ["", f".. autofunction:: {entry.name}"]
    return "\n".join(lines) + "\n"


def index(package: ModuleType) -> str:
    """The list of a package's objects by task."""
    title = f"Reference of {package.__name__}"
    lines = [title, "=" * len(title)]
    for heading, group in grouped(package).items():
        lines += ["", heading, "-" * len(heading), "", ".. list-table::", "   :widths: 35 65", ""]
        for entry in group:
            lines += [f"   * - :doc:`{entry.name} <{entry.title}>`", f"     - {summary(entry)}"]
    lines += ["", ".. toctree::", "   :hidden:", ""]
    lines += [f"   {entry.title}" for group in grouped(package).values() for entry in group]
    return "\n".join(lines) + "\n"


def write() -> None:
    """Writes the pages, those that changed only, and removes those of names that are gone."""
    PAGES.mkdir(exist_ok=True)
    texts = {}
    for package in GROUPS:
        texts[package.__name__] = index(package)
        texts |= {entry.title: page(entry) for entry in entries(package)}
    for path in PAGES.glob("*.rst"):
        if path.stem not in texts:
            path.unlink()
    for name, text in texts.items():
        path = PAGES / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
