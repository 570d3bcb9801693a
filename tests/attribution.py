"""Which tests a line of the packages can matter to."""

import ast
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executed import Records

ROOT = Path(__file__).parent.parent
PACKAGES = ("sdekit", "sdekit_diffusion")
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Lines = list[tuple[str, set[int]]]  # of files


@dataclass(frozen=True)
class Source:
    """A file of the packages."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """Parsed when it is first needed."""
        return ast.parse(self.text)


def sources() -> list[Source]:
    """All files of the packages."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [Source(str(path.relative_to(ROOT)), path.read_text()) for path in paths]


def within(node: Any, line: int) -> bool:
    """Whether a line belongs to a node."""
    return node.lineno <= line <= node.end_lineno


def _body(function: Function) -> set[int]:
    """The lines of a function but for its signature, which is executed at import."""
    parts = [function.body] if isinstance(function, ast.Lambda) else function.body
    return set(range(parts[0].lineno, (parts[-1].end_lineno or 0) + 1))


def _words(nodes: Iterable[ast.AST]) -> set[str]:
    """Names and attributes that occur in them."""
    return {getattr(node, "id", getattr(node, "attr", "")) for node in nodes}


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what it holds, except for functions."""
    if not isinstance(node, Function):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


def _defined(statement: ast.AST) -> set[str]:
    """The names that an outermost statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return {
        node.id
        for target in targets
        if target
        for node in ast.walk(target)
        if isinstance(node, ast.Name)
    }


def in_function(source: Source, line: int) -> bool:
    """Whether a line belongs to a function or a method."""
    return any(
        isinstance(node, ast.FunctionDef) and within(node, line) for node in ast.walk(source.tree)
    )


def dependent(source: Source, line: int, among: list[Source]) -> set[str]:
    """Names of the outermost definition that holds a line, and of constants and classes made of
    it.
    """
    names = _defined(next(node for node in source.tree.body if within(node, line)))
    outer = [
        (_defined(node), _words(_outside_functions(node)))
        for other in among
        for node in other.tree.body
    ]
    while (
        more := {name for made, used in outer if not used.isdisjoint(names) for name in made}
        - names
    ):
        names |= more
    return names


def executed_with(source: Source, line: int) -> Lines:
    """Lines that are executed where a line of a function is: its statement's, or its body for a
    signature's.
    """
    around = [
        node for node in ast.walk(source.tree) if hasattr(node, "lineno") and within(node, line)
    ]
    function = [node for node in around if isinstance(node, ast.FunctionDef)][-1]
    if line not in _body(function):
        return [(source.path, _body(function))]
    inner: Any = [node for node in around if isinstance(node, ast.stmt)][-1]
    end = inner.body[0].lineno - 1 if hasattr(inner, "body") else inner.end_lineno
    return [(source.path, set(range(inner.lineno, max(inner.lineno, end) + 1)))]


def users_of(source: Source, line: int, names: set[str], among: list[Source]) -> Lines:
    """Functions of the outermost statement that holds a line, and those that name one of the
    names.
    """
    own = [
        node
        for statement in source.tree.body
        if within(statement, line)
        for node in ast.walk(statement)
    ]
    functions = [(source.path, node) for node in own if isinstance(node, Function)]
    for other in among:
        for node in ast.walk(other.tree):
            if isinstance(node, Function) and not _words(ast.walk(node)).isdisjoint(names):
                functions.append((other.path, node))
    return [(path, _body(node)) for path, node in functions]


def tests_of(source: Source, line: int, among: list[Source], records: "Records") -> set[str]:
    """The tests that a line can matter to.

    A line of a function matters where it is executed. What is executed at import (constants, lines
    of classes, functions that make them) matters to tests that execute functions which name what is
    made of it, and to those of files that name it.
    """
    found = set()
    lines = executed_with(source, line) if in_function(source, line) else []
    found |= records.executing(lines)
    if not lines or records.at_import(lines):
        names = dependent(source, line, among)
        found |= records.executing(users_of(source, line, names, among)) | records.naming(names)
    return found
