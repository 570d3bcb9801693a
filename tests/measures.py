"""Size of the code of both packages: the longest file, function and parameter list, duplicated
blocks, and comments that silence the type checker.

It prints them, and fails where one of `BOUNDS` is exceeded. A block is duplicated where six or more
lines of code stand at two places. Blank lines, comments, docstrings, imports, `__all__` and lone
punctuation do not count.
`python tests/measures.py [FOLDER]`, the folder of both packages.
"""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("sdekit", "sdekit_diffusion")
BLOCK = 6  # lines
BOUNDS = {"lines of a function": 50, "duplicated blocks": 8, "suppressions": 9}

SUPPRESSION = re.compile(r"# (?:pyright|type): ignore")


class Line(NamedTuple):
    """A line of code without its indentation, and without its names, strings and numbers."""

    number: int
    text: str
    shape: str


class Size(NamedTuple):
    """A number of lines or parameters, and of what."""

    value: int
    name: str


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def docstring(node: ast.AST) -> range:
    """The numbers of the lines of a docstring."""
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return range(first.lineno, first.end_lineno + 1)
    return range(0)


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, from its name on, without its docstring."""
    return node.end_lineno - node.lineno + 1 - len(docstring(node))


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a function has besides self and cls."""
    given = node.args
    names = [
        a.arg
        for a in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
        if a
    ]
    return len([name for name in names if name not in ("self", "cls")])


def code(source: str, tree: ast.AST) -> list[Line]:
    """The lines of code that count for blocks."""
    left_out = {number for node in ast.walk(tree) for number in docstring(node)}
    for node in ast.walk(tree):
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if exports or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
    texts = defaultdict(list)
    shapes = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string.strip() and token.type != tokenize.COMMENT:
            named = token.type in (tokenize.NAME, tokenize.STRING, tokenize.NUMBER)
            texts[token.start[0]].append(token.string)
            shapes[token.start[0]].append("x" if named else token.string)
    kept = [number for number in texts if number not in left_out]
    lines = [Line(number, " ".join(texts[number]), " ".join(shapes[number])) for number in kept]
    return [line for line in lines if any(character.isalnum() for character in line.text)]


def duplicates(files: dict[str, list[Line]], field: str) -> list[Size]:
    """Pairs of places with the same block, each block as long as it can be, the longest first."""
    lines = {name: [getattr(line, field) for line in content] for name, content in files.items()}
    places = defaultdict(list)
    for name, content in lines.items():
        for i in range(len(content) - BLOCK + 1):
            places[tuple(content[i : i + BLOCK])].append((name, i))
    pairs = {pair for same in places.values() for pair in combinations(sorted(same), 2)}
    found = []
    for (a, i), (b, j) in pairs:
        if ((a, i - 1), (b, j - 1)) in pairs:
            continue
        more = 0
        while ((a, i + more + 1), (b, j + more + 1)) in pairs:
            more += 1
        if a == b and i + BLOCK + more > j:  # a list of like lines overlaps itself
            continue
        found.append(Size(BLOCK + more, f"{a}:{files[a][i].number} and {b}:{files[b][j].number}"))
    return sorted(found, reverse=True)


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    sizes = {"file": [], "function": [], "parameter list": []}
    files = {}
    suppressions = 0
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        name = str(path.relative_to(root))
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        suppressions += len(SUPPRESSION.findall(source))
        files[name] = code(source, tree)
        sizes["file"].append(Size(len(source.splitlines()), name))
        for node in functions(tree):
            place = f"{node.name} in {name}"
            sizes["function"].append(Size(length(node), place))
            sizes["parameter list"].append(Size(parameters(node), place))
    for kind, values in sizes.items():
        print(f"longest {kind}: {max(values).value}, {max(values).name}")
    print(f"suppressions of the type checker: {suppressions}")
    found_blocks = {}
    for field, same in (
        ("text", "the same"),
        ("shape", "the same but for names, strings and numbers"),
    ):
        found = duplicates(files, field)
        longest = f"; longest: {found[0].value} lines, {found[0].name}" if found else ""
        print(f"pairs of blocks of {BLOCK} or more lines that are {same}: {len(found)}{longest}")
        found_blocks[field] = len(found)
    values = {
        "lines of a function": max(sizes["function"]).value,
        "duplicated blocks": found_blocks["text"],
        "suppressions": suppressions,
    }
    exceeded = [f"{name}: {values[name]}" for name, most in BOUNDS.items() if values[name] > most]
    if exceeded:
        sys.exit(f"more than allowed, {BOUNDS}: {', '.join(exceeded)}")


if __name__ == "__main__":
    main()
