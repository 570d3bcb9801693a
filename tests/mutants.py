"""Runs the mutants of mutants.toml, each against the tests that execute its line; prints survivors.

A copy of the tree is mutated, never the tree. `python tests/mutants.py TEXT ...` runs only the
mutants whose area, or line, contains one of the texts; `--part 2 4` the second quarter of the
table, so that a run of the whole may be spread over machines or times. The test that killed a
mutant the last time, which tests/killers.json has, is run first.
"""

import argparse
import ast
import bisect
import functools
import itertools
import json
import os
import re
import sys
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from queue import Queue
from threading import Lock

from attribution import ROOT, Source, sources, tests_of
from executed import CACHE, Records, copied, recorded, run_tests

AIM = 0.97
FILES = 3  # of the first round
LIMIT = 120.0  # seconds of tests for one mutant, the fastest first
KILLERS = ROOT / "tests" / "killers.json"


@dataclass(frozen=True)
class Mutant:
    """`old`, which occurs once in the packages (or in what `inside` names), replaced by `new`."""

    area: str
    old: str
    new: str
    inside: str = ""  # a function, a class or Class.method
    equivalent: str = ""  # why no test can tell the two apart

    @property
    def name(self) -> str:
        """What tells it from others."""
        return "  ".join((self.inside, self.old, "->", self.new))


@dataclass(frozen=True)
class Place:
    """Where a mutant's text stands."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.text.count("\n", 0, self.start) + 1

    def mutated(self, mutant: Mutant) -> str:
        """The file with the mutant."""
        text = self.source.text
        return text[: self.start] + mutant.new + text[self.end :]

    def statement(self, mutant: Mutant) -> str:
        """The outermost statement with the mutant, and blank lines and comments before it."""
        text = self.source.text
        lines = text.splitlines(keepends=True)
        ends = [0, *itertools.accumulate(map(len, lines))]
        statements = [0, *(ends[node.end_lineno or 0] for node in self.source.tree.body)]
        begin = max(end for end in statements if end <= self.start)
        end = min(end for end in statements if end >= self.end)
        return text[begin : self.start] + mutant.new + text[self.end : end]


def mutants() -> list[Mutant]:
    """The table."""
    areas = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())
    return [Mutant(area, **entry) for area, entries in areas.items() for entry in entries]


def _spans(source: Source, inside: str) -> list[tuple[int, int]]:
    """Beginning and end of each definition of that name; of the whole file without one."""
    if not inside:
        return [(0, len(source.text))]
    definitions = _definitions(source)
    return [(start, end) for name, start, end in definitions if name.endswith(f".{inside}")]


@functools.cache
def _definitions(source: Source) -> list[tuple[str, int, int]]:
    """Name, beginning and end of each definition of a file."""
    found = []
    waiting: list[tuple[str, ast.AST]] = [("", source.tree)]
    ends = [0, *itertools.accumulate(map(len, source.text.splitlines(keepends=True)))]
    while waiting:
        outer, node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
                continue  # an expression holds no definition
            name = outer
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}"
                found.append((name, ends[child.lineno - 1], ends[child.end_lineno or 0]))
            waiting.append((name, child))
    return found


def places(mutant: Mutant, among: list[Source]) -> list[Place]:
    """Where the mutant's text occurs, on one line or broken over lines: one place, if the table is
    valid.
    """
    comma = mutant.old.endswith(",")
    old = _one_line(mutant.old, comma).text
    inner = set(re.findall(r"(?<=\W)\w+(?=\W)", old))
    found = []
    for source in among:
        if not inner <= _words(source.text):  # fast
            continue
        line = _one_line(source.text, comma)
        at = line.text.find(old)
        while at >= 0:
            start = line.original(at)
            end = line.original(at + len(old) - 1) + 1
            if any(first <= start and end <= last for first, last in _spans(source, mutant.inside)):
                found.append(Place(source, start, end))
            at = line.text.find(old, at + 1)
    return found


@functools.cache
def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


@dataclass(frozen=True)
class OneLine:
    """Code as if it were not broken over lines, and from where in it, and in the code, both go on
    alike.
    """

    text: str
    begins: list[int]
    originals: list[int]

    def original(self, place: int) -> int:
        """Where in the code it stands."""
        part = bisect.bisect_right(self.begins, place) - 1
        return self.originals[part] + place - self.begins[part]


@functools.cache
def _one_line(text: str, comma: bool) -> OneLine:
    """Each blank, and each end of a line, is one space, or nothing after an opening bracket and
    before a closing one; nor does a comma stand before a closing one, unless it is kept.
    """
    parts = []
    begins = [0]
    originals = [0]
    length = done = 0
    for match in re.finditer(r"\s+", text):
        start, end = match.span()
        inside = text[start - 1 : start] in "([{"
        ends = text[end : end + 1] in ")]}"
        if match[0] == " " and not inside and not ends:
            continue
        before = text[done:start]
        if ends and not comma:
            before = before.removesuffix(",")
        parts += [before, "" if inside or ends else " "]
        length += len(before) + len(parts[-1])
        done = end
        begins.append(length)
        originals.append(done)
    return OneLine("".join([*parts, text[done:]]), begins, originals)


def rounds(tests: set[str], first: str, records: Records) -> list[list[str]]:
    """The tests in the order of running, as many as fit into the limit, the fastest first.

    The test named comes before all; those of the files that have most to do with the line come in
    a round of their own, because to open a test file takes long.
    """
    ordered = sorted(tests, key=lambda name: records.tests[name]["seconds"])
    ends = itertools.accumulate(records.tests[name]["seconds"] for name in ordered)
    fitting = [
        name
        for i, (name, end) in enumerate(zip(ordered, ends, strict=True))
        if i == 0 or end <= LIMIT
    ]
    held = Counter(map(file_of, fitting))
    every = Counter(map(file_of, records.tests))
    nearest = sorted(held, key=lambda file: (-held[file] / every[file], every[file]))[:FILES]
    parts = [
        [name for name in fitting if (file_of(name) in nearest) == near] for near in (True, False)
    ]
    return [part for part in ([first] if first in tests else [], *parts) if part]


def file_of(test: str) -> str:
    """The file of a test."""
    return test.split("::")[0]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    tests: int
    killer: str  # empty if it survived
    seconds: float

    def __str__(self) -> str:
        mutant = self.mutant
        more = " ".join(
            part for part in (mutant.inside, f"{self.tests} tests", mutant.equivalent) if part
        )
        return f"{mutant.area}: {mutant.old}  ->  {mutant.new}  ({more})"


def run(mutant: Mutant, first: str, tree: Path, among: list[Source], records: Records) -> Outcome:
    """Runs the tests of one mutant in a copy of the tree, which is then as before."""
    (place,) = places(mutant, among)
    tests = rounds(tests_of(place.source, place.line, among, records), first, records)
    path = tree / place.source.path
    begun = time.perf_counter()
    path.unlink()
    path.write_text(place.mutated(mutant))
    # Compiled files are compared by size and second, which two mutants may share.
    Path(cache_from_source(str(path))).unlink(missing_ok=True)
    killer = next(filter(None, (killer_among(some, tree, records) for some in tests)), "")
    path.unlink()
    os.link(ROOT / place.source.path, path)
    return Outcome(mutant, len(set().union(*tests)), killer, time.perf_counter() - begun)


def killer_among(tests: list[str], tree: Path, records: Records) -> str:
    """The first of the tests that fails, empty if none does."""
    names = tree / "selected"
    names.write_text("\n".join(tests))
    limit = 60 + 10 * sum(records.tests[name]["seconds"] for name in tests)
    status, output = run_tests(
        tree, sorted({*map(file_of, tests)}), limit, EXECUTED_SELECT=str(names)
    )
    if status == 0:
        return ""
    if status not in (1, 2):
        raise RuntimeError(f"pytest ended with status {status}:\n{output}")
    failures = re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", output, re.MULTILINE)
    return failures[0] if failures else output[-300:]


def table(outcomes: list[Outcome]) -> str:
    """Mutants and survivors by area."""
    lines = [f"{'area':<16}{'mutants':>8}{'killed':>8}{'explained':>10}{'survive':>8}"]
    for area in [*dict.fromkeys(outcome.mutant.area for outcome in outcomes), "all"]:
        those = [outcome for outcome in outcomes if area in ("all", outcome.mutant.area)]
        killed = sum(bool(outcome.killer) for outcome in those)
        explained = sum(not outcome.killer and bool(outcome.mutant.equivalent) for outcome in those)
        survive = len(those) - killed - explained
        lines.append(f"{area:<16}{len(those):>8}{killed:>8}{explained:>10}{survive:>8}")
    return "\n".join(lines)


def main() -> int:
    """Records what is not recorded, runs the mutants, prints what survives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "only", nargs="*", help="texts: run mutants whose area or lines contain one of them"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(1, 1), metavar=("I", "N"), help="part I of N"
    )
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    among = sources()
    wanted = [
        m
        for m in mutants()
        if not arguments.only
        or any(text in f"{m.area} {m.old} {m.inside}" for text in arguments.only)
    ]
    part, parts = arguments.part
    wanted = wanted[len(wanted) * (part - 1) // parts : len(wanted) * part // parts]
    trees: Queue[Path] = Queue()
    for i in range(arguments.jobs):
        trees.put(copied(CACHE / f"tree{i}"))
    records = recorded(trees, arguments.jobs)
    for name in [name for name, test in records.tests.items() if not test["passed"]]:
        print(f"left out, as it does not pass or is skipped: {name}")

    killers = json.loads(KILLERS.read_text())
    writing = Lock()

    def work(mutant: Mutant) -> Outcome:
        tree = trees.get()
        try:
            outcome = run(mutant, killers.get(mutant.name, ""), tree, among, records)
        finally:
            trees.put(tree)
        print(f"{outcome.seconds:5.0f} s, {outcome.killer or 'SURVIVES'}: {outcome}", flush=True)
        with writing:  # at once, so that a run that is interrupted has served the next one
            killers[mutant.name] = outcome.killer if outcome.killer in records.tests else ""
            KILLERS.write_text(json.dumps(killers, indent=1, sort_keys=True) + "\n")
        return outcome

    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(work, wanted))
    print(f"\n{table(outcomes)}\n")
    for outcome in outcomes:
        if not outcome.killer:
            print(f"survives: {outcome}")
        elif outcome.mutant.equivalent:
            print(f"said to be equivalent, yet killed by {outcome.killer}: {outcome}")
    share = sum(bool(outcome.killer) for outcome in outcomes) / len(outcomes)
    print(f"killed: {100 * share:.1f} % of {len(outcomes)}; at least {100 * AIM:.0f} % must be")
    return int(share < AIM)


if __name__ == "__main__":
    sys.exit(main())
