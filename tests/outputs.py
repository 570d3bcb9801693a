"""The Python blocks of the pages, and what they print: it stands in a `text` block below each.

`python tests/outputs.py [PAGE ...]` runs the blocks of pages, such as docs/solvers.md, and writes
what they print below them, where it differs from what stands there.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```\n"
    r"(?:\n?(?P=indent)```text\n(?P<printed>.*?)^ *```\n)?",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"(?<!\w)[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?")
TOLERANCE = 1e-3  # relative
COLUMNS = 100


class Example(NamedTuple):
    """A Python block.

    Attributes:
        line: of its fence.
        code: what is between the fences.
        printed: what is said to be printed, empty where nothing is.
        match: its place in the page.
    """

    line: int
    code: str
    printed: str
    match: re.Match[str]


def examples(page: Path) -> Iterator[Example]:
    """The Python blocks of a page."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        code = textwrap.dedent(match["code"])
        yield Example(line, code, textwrap.dedent(match["printed"] or ""), match)


def outputs(page: Path) -> Iterator[tuple[Example, str]]:
    """Runs the blocks of a page in order, in one namespace, and gives what each prints."""
    namespace = {"__name__": "example"}
    for example in examples(page):
        code = compile("\n" * example.line + example.code, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(code, namespace)  # noqa: S102
        yield example, stream.getvalue()


def agree(printed: str, stored: str) -> bool:
    """Whether words are the same and numbers nearly.

    Numbers may differ by a thousandth, or by one in the last decimal that is stored; blanks and
    ends of lines do not count.
    """
    texts = ["".join(NUMBER.sub(" 0 ", text).split()) for text in (printed, stored)]
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(stored), strict=False)
    return texts[0] == texts[1] and all(close(*pair) for pair in pairs)


def close(printed: str, stored: str) -> bool:
    """Whether two numbers are nearly the same."""
    mantissa, _, exponent = stored.partition("e")
    decimals = len(mantissa.partition(".")[2])
    last = 10.0 ** (int(exponent or 0) - decimals) if decimals else 0.0
    allowed = max(TOLERANCE * abs(float(stored)), 1.001 * last)
    return abs(float(printed) - float(stored)) <= allowed


def renewed(page: Path) -> str:
    """The text of a page with what its blocks print now, where that differs."""
    text = page.read_text()
    for example, printed in reversed(list(outputs(page))):
        if not agree(printed, example.printed):
            match = example.match
            between = "" if match["printed"] else "\n"
            start, end = match.span("printed") if match["printed"] else (match.end(),) * 2
            text = text[:start] + between + below(printed, match) + text[end:]
    return text


def below(printed: str, match: re.Match[str]) -> str:
    """What stands below a block: all of it, or its inside where there is one already."""
    lines = [
        textwrap.fill(line, COLUMNS - len(match["indent"]) - 1, break_long_words=False)
        for line in printed.rstrip().splitlines()
    ]
    inside = "\n".join(lines) + "\n"
    whole = inside if match["printed"] else f"```text\n{inside}```\n"
    return textwrap.indent(whole, match["indent"])


def main() -> None:
    """Renews pages."""
    for page in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            text = renewed(page)
        if text != page.read_text():
            page.write_text(text)
            print(f"renewed {os.path.relpath(page, ROOT)}")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)  # as in the tests
    main()
