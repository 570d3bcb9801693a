"""Docstrings of public names: each has an example that runs, and says what is raised."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import textwrap
from pathlib import Path

import pytest
import torch

import sdekit
import sdekit.calling
import sdekit.elementary
import sdekit.plot
import sdekit_diffusion
import sdekit_diffusion.plot

IMPORTED = {"torch": torch, "sdekit": sdekit, "sd": sdekit_diffusion}  # what the examples assume
NAMESPACES = [
    sdekit,
    sdekit.calling,
    sdekit.elementary,
    sdekit.interop,
    sdekit.plot,
    sdekit_diffusion,
    sdekit_diffusion.data,
    sdekit_diffusion.metrics,
    sdekit_diffusion.nets,
    sdekit_diffusion.plot,
]
NEEDED = {  # extras that the examples of a module use
    "sdekit.plot": "matplotlib",
    "sdekit_diffusion._loading.diffusers": "diffusers",
    "sdekit_diffusion.data": "sklearn",
    "sdekit_diffusion.data._huggingface": "datasets",
    "sdekit_diffusion.data._sources": "sklearn",
    "sdekit_diffusion.data._dataset": "sklearn",
    "sdekit_diffusion.metrics._features": "sklearn",
    "sdekit_diffusion.metrics._inception": "torchmetrics",
    "sdekit_diffusion.plot": "matplotlib",
    "sdekit_diffusion.plot._curves": "matplotlib",
    "sdekit_diffusion.plot._density": "matplotlib",
    "sdekit_diffusion.plot._drawn": "matplotlib",
    "sdekit_diffusion.plot._solves": "matplotlib",
}
REFUSING = ("require", "checked")  # how functions begin that raise for their callers
LIMIT = 100  # columns


def modules():
    """The names of all modules that can be imported without running a program."""
    for package in (sdekit, sdekit_diffusion):
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                yield module.name


def public():
    """(name, object) of every public name; those of one object once."""
    found = {}
    for namespace in NAMESPACES:
        for name in namespace.__all__:
            value = getattr(namespace, name)
            found.setdefault(id(value), (f"{namespace.__name__}.{name}", value))
    return list(found.values())


def own(value):
    """Whether it is a class or a function of these packages, which has a docstring of its own."""
    return (inspect.isclass(value) or inspect.isroutine(value)) and value.__module__.split(".")[
        0
    ] in (
        "sdekit",
        "sdekit_diffusion",
    )


PUBLIC = public()
OWN = [pytest.param(value, id=name) for name, value in PUBLIC if own(value)]
OTHERS = [pytest.param(name, value, id=name) for name, value in PUBLIC if not own(value)]


@pytest.mark.parametrize("name", list(modules()))
def test_the_examples_run(name, tmp_path, monkeypatch):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False)
    reports = []
    for example in doctest.DocTestFinder().find(module, extraglobs=IMPORTED):
        runner.run(example, out=reports.append)
    assert not runner.failures, "".join(reports)


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_a_public_table_or_module_has_an_example(name, value):
    """In the docstring of a module itself, of other objects in that of the package."""
    package, _, last = name.rpartition(".")
    text = (
        inspect.getdoc(value)
        if inspect.ismodule(value)
        else inspect.getdoc(importlib.import_module(package))
    )
    lines = [line for line in text.splitlines() if line.strip()[:3] in (">>>", "...")]
    assert lines
    assert inspect.ismodule(value) or any(last in line for line in lines)


def tree(value):
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def raises(function):
    """Whether its body raises, or calls what is named as raising for its callers."""
    for node in ast.walk(tree(function)):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if called.lstrip("_").startswith(REFUSING):
                return True
    return False


def constructor(cls):
    """The functions that run when an object is made, as written in these packages."""
    for kind in cls.__mro__:
        if kind.__module__.split(".")[0] not in ("sdekit", "sdekit_diffusion"):
            continue
        for name in ("__init__", "__post_init__"):
            function = vars(kind).get(name)
            if function is not None and function.__code__.co_filename == inspect.getsourcefile(
                kind
            ):
                yield function


def methods(cls):
    """The public methods and properties that a class of these packages writes down."""
    for name, member in vars(cls).items():
        function = inspect.unwrap(
            getattr(member, "fget", None) or getattr(member, "func", None) or member
        )
        function = getattr(function, "__func__", function)
        if not inspect.isfunction(function) or name.startswith("_"):
            continue
        if function.__code__.co_filename == inspect.getsourcefile(cls):  # not written by dataclass
            yield name, function


@pytest.mark.parametrize("value", OWN)
def test_a_public_name_has_an_example_and_lines_that_fit_and_says_what_is_raised(value):
    text = value.__doc__ or ""
    assert ">>>" in text
    indent = 4 * (1 + value.__qualname__.count("."))
    lines = [" " * indent + line for line in inspect.cleandoc(text).splitlines()]
    assert [line for line in lines if len(line) > LIMIT] == []
    if inspect.isroutine(value):
        assert not raises(value) or "Raises:" in text
        return
    assert "Raises:" in text or not any(map(raises, constructor(value)))
    silent = [
        name for name, function in methods(value) if raises(function) and not said(value, name)
    ]
    assert silent == []


def said(cls, name):
    """Whether the docstring of a method, or of what it overrides, or of the class, says what is
    raised.
    """
    texts = [cls.__doc__, *(getattr(vars(kind).get(name), "__doc__", None) for kind in cls.__mro__)]
    return any("Raises:" in text for text in texts if text)


def test_extras_are_of_modules_that_exist():
    root = Path(sdekit_diffusion.__file__).parent.parent
    for name in NEEDED:
        path = root / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists()
