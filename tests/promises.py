"""Breaks each promise of promises.toml on purpose, in a copy of the tree, and shows that its tests
fail.

`python tests/promises.py TEXT ...` does so for those promises, tests and mistakes that contain one
of the texts; without texts it also writes docs/promises.md. `--page` only writes the page.
"""

import argparse
import itertools
import os
import re
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attribution import ROOT, Source, sources
from executed import CACHE, copied, run_tests
from mutants import Mutant, file_of, places

PAGE = ROOT / "docs" / "promises.md"
LIMIT = 900.0  # seconds for a test
NO_MISTAKES = ("NameError", "ImportError", "ModuleNotFoundError")  # with which any test would fail
TEXT = """\
# Promises, and the tests that fail when they are broken

Tests check the promises of the README and of these pages that are listed here. A test that cannot
fail proves nothing: so each promise is broken on purpose, by a mistake of one line in a copy of the
tree, and the test named below the mistake must fail with it and pass without it. The mistakes are
in `tests/promises.toml`. `make promises` makes them all, one after the other, and writes this page;
`tests/promises.py TEXT` makes those whose lines contain a text. A test of the suite checks that all
tests named here exist, and that each mistake still has its place in the code. `make mutants` makes
hundreds of further mistakes.

Some promises cannot be checked by a test. Numbers of accuracy and of time are
[measured](benchmarks.md) by scripts. Nothing was tried on a GPU: `tests/test_cuda.py` is skipped
where there is none, and host synchronisation is counted on a simulated device. What each solver
supports is in [a table of its own](support.md).
"""


@dataclass(frozen=True)
class Break:
    """A mistake on purpose, and the test that fails with it."""

    promise: str
    mistake: str
    test: str
    mutant: Mutant

    @property
    def text(self) -> str:
        """All that a text may select it by."""
        return " ".join((self.promise, self.mistake, self.test, self.mutant.name))


@dataclass(frozen=True)
class Promise:
    """What is promised, where, and how it is broken."""

    title: str
    says: str
    where: str
    breaks: list[Break]


def promises() -> list[Promise]:
    """The table."""
    table = tomllib.loads((ROOT / "tests" / "promises.toml").read_text())
    return [
        Promise(
            title=entry["title"],
            says=entry["says"],
            where=entry["where"],
            breaks=[_break(entry["says"], each) for each in entry["breaks"]],
        )
        for entry in table["promise"]
    ]


def _break(says: str, entry: dict[str, str]) -> Break:
    mutant = Mutant("promises", entry["old"], entry["new"], entry.get("inside", ""))
    return Break(says, entry["mistake"], entry["test"], mutant)


def page() -> str:
    """docs/promises.md."""
    return "\n".join([TEXT, *itertools.chain(*map(_section, promises()))])


def _section(promise: Promise) -> Iterator[str]:
    yield f"## {promise.title}\n"
    yield f"{promise.says} Promised in {promise.where}.\n"
    yield "Broken on purpose, and the tests that fail:\n"
    for each in promise.breaks:
        yield f"- {each.mistake}:\n  `{each.test}`"
    yield ""


def failure(each: Break, tree: Path, among: list[Source]) -> str:
    """How the test fails with the mistake, in a copy of the tree that is then as before; empty if
    it passes.
    """
    (place,) = places(each.mutant, among)
    path = tree / place.source.path
    path.unlink()
    path.write_text(place.mutated(each.mutant))
    try:
        status, output = run_tests(tree, [each.test], LIMIT, PYTHONDONTWRITEBYTECODE="1")
    finally:
        path.unlink()
        os.link(ROOT / place.source.path, path)
    if status not in (0, 1):
        raise RuntimeError(f"pytest ended with status {status}:\n{output}")
    reason = re.search(r"^(?:E  +|FAILED )(.*)", output, re.MULTILINE)
    if reason and reason[1].startswith(NO_MISTAKES):
        raise ValueError(f"{each.mutant.new} is not code: {reason[1]}")
    return reason[1] if status and reason else ""


def passing(tests: list[str], tree: Path) -> bool:
    """Whether the tests pass without a mistake; prints what they say where they do not."""
    status, output = run_tests(tree, tests, LIMIT * len(tests))
    if status:
        print(output)
    return status == 0


def main() -> int:
    """Runs the tests without and with the mistakes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("only", nargs="*", help="texts: those that contain one of them")
    parser.add_argument("--page", action="store_true", help="only write docs/promises.md")
    arguments = parser.parse_args()
    if not arguments.only:
        PAGE.write_text(page())
    if arguments.page:
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    among = sources()
    every = [each for promise in promises() for each in promise.breaks]
    wanted = [
        each
        for each in every
        if not arguments.only or any(text in each.text for text in arguments.only)
    ]
    tree = copied(CACHE / "promises")
    if not passing(sorted({each.test for each in wanted}, key=file_of), tree):
        print("the tests do not pass without a mistake")
        return 1
    missed = 0
    for each in wanted:
        begun = time.perf_counter()
        reason = failure(each, tree, among)
        missed += not reason
        outcome = f"fails: {reason}" if reason else "DOES NOT FAIL"
        print(f"{time.perf_counter() - begun:.0f} s, {each.mistake}", flush=True)
        print(f"    {each.test} {outcome}", flush=True)
    print(f"{len(wanted) - missed} of {len(wanted)} mistakes are noticed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
