"""Looks for words that the pages, docstrings, comments and messages are written without.

`tests/words.toml` has the words, as regular expressions, and what is written in their place. Code
is left out: blocks, names in backticks, formulas and links. Repeated words are found, too. Run by
`make lint`; prints the places and fails if there are any.

`python tests/prose.py [FILE ...]`, by default all pages, scripts and modules.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (
    "*.md",
    "docs/*.md",
    "docs/*.toml",
    "docs/**/*.py",
    "benchmarks/*.py",
    "sdekit*/**/*.py",
    "tests/*.py",
)
GENERATED = ("_build", "_cache", "gallery", "how_to_guides", "tutorial_pages", "results")
NOT_PROSE = re.compile(
    r"^(`{3,}|~{3,})[^\n]*\n.*?^\1[^\n]*$"  # blocks of code
    r"|^ *(?:>>>|\.\.\.)[^\n]*$"  # examples
    r"|``.+?``|`[^`\n]*(?:\n[^`\n]+)?`"  # names
    r"|\$\$.*?\$\$|\$[^$\n]+\$"  # formulas
    r"|(?<=\])\([^)\s]*\)|https?://\S+|github\.com/\S+(?:\s+models/\S+)?"  # targets of links
    r'|"[A-Z][^"]{9,200}"',  # titles
    re.S | re.M,
)
REPEATED = r"(?-i:(the|a|an|of|to|in|is|it|and|or|for|with|as|are|be|by|on|at|from|not) \1)"
SENTENCE = 3  # strings of at least this number of words are messages
Text = tuple[int, str]  # the line where it begins


def blank(match: re.Match[str]) -> str:
    """As many lines of nothing, with a sign where a name was."""
    return "\n" * match[0].count("\n") or "·"


def prose(path: Path) -> Iterator[Text]:
    """The texts of a file without code."""
    source = path.read_text(encoding="utf-8")
    texts = [(1, source)] if path.suffix in (".md", ".toml") else list(written(source))
    for line, text in texts:
        yield line, re.sub(r"\n[ >-]+", "\n", NOT_PROSE.sub(blank, text))


def written(source: str) -> Iterator[Text]:
    """Docstrings, messages and comments of a Python file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if len(re.findall(r"[a-z]+ ", node.value)) >= SENTENCE:
                yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(map(literal, node.values))
    for number, line in enumerate(source.splitlines(), 1):
        _, sign, comment = line.partition("# ")
        if sign:
            yield number, comment


def literal(part: ast.expr) -> str:
    """The text of a part of an f-string, or a sign for its value."""
    return str(part.value) if isinstance(part, ast.Constant) else "·"


def rules() -> list[tuple[re.Pattern[str], str]]:
    """What to look for, and what to write instead."""
    path = ROOT / "tests" / "words.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))["words"]
    words = {**table, REPEATED: "the word once"}
    return [(whole(pattern), instead) for pattern, instead in words.items()]


def whole(words: str) -> re.Pattern[str]:
    """Whole words, with a space or the end of a line between them."""
    return re.compile(rf"\b(?:{words})\b".replace(" ", r"\s"), re.IGNORECASE)


def found(path: Path, table: list[tuple[re.Pattern[str], str]]) -> set[tuple[int, str]]:
    """Lines of a file, and what is wrong there."""
    places = set()
    for first, text in prose(path):
        for pattern, instead in table:
            for match in pattern.finditer(text):
                line = first + text.count("\n", 0, match.start())
                places.add((line, f"{' '.join(match[0].split())!r}; write: {instead}"))
    return places


def main() -> None:
    given = [Path(name) for name in sys.argv[1:]]
    all_paths = (path for pattern in PAGES for path in ROOT.glob(pattern))
    ours = (path for path in all_paths if not set(path.relative_to(ROOT).parts) & set(GENERATED))
    table = rules()
    wrong = False
    for path in given or sorted(ours):
        for line, message in sorted(found(path, table)):
            print(f"{path}:{line}: {message}")
            wrong = True
    sys.exit(wrong)


if __name__ == "__main__":
    main()
