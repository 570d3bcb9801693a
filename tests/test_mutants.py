"""The table of mutants is valid: `make mutants` runs it."""

import ast
import contextlib
import functools
import json
import textwrap
from collections import Counter

from attribution import sources
from mutants import KILLERS, ROOT, mutants, places


@functools.cache
def simple_statements(text):
    """The first and the last line of statements that hold no others. The tree is not kept: it would
    make each later garbage collection slower.
    """
    found = set()
    waiting = [ast.parse(text)]
    for node in waiting:
        children = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
        ]
        waiting += children
        if not children:
            found.add((node.lineno, node.end_lineno))
    return found


def compiles(place, mutant):
    """With a mutant in a simple statement, its lines do as the whole does; else the outermost
    statement that holds it.
    """
    text = place.source.text
    first = place.line
    last = text.count("\n", 0, place.end) + 1
    for start, end in simple_statements(text):
        if start <= first and last <= end:
            begin = sum(map(len, text.splitlines(keepends=True)[: start - 1]))
            rest = text[place.end :].splitlines(keepends=True)[: end - last + 1]
            lines = text[begin : place.start] + mutant.new + "".join(rest)
            with contextlib.suppress(SyntaxError):
                return ast.parse(textwrap.dedent(lines), place.source.path)
    return ast.parse(place.statement(mutant), place.source.path)


def test_every_mutant_has_one_place_and_compiles():
    among = sources()
    seen = set()
    for mutant in mutants():
        found = places(mutant, among)
        assert len(found) == 1, f"in {len(found)} places: {mutant}"
        text = found[0].mutated(mutant)
        assert text != found[0].source.text, mutant
        assert "\n" not in mutant.old, mutant
        assert (found[0].source.path, text) not in seen, f"twice: {mutant}"
        seen.add((found[0].source.path, text))
        compiles(found[0], mutant)


def test_the_tests_that_killed_mutants_exist():
    killers = json.loads(KILLERS.read_text())
    unknown = set(killers) - {mutant.name for mutant in mutants()}
    assert not unknown
    for killer in filter(None, killers.values()):
        file, _, name = killer.partition("::")
        text = (ROOT / file).read_text()
        function = name.partition("[")[0].split("::")[-1]
        assert not name or f"def {function}(" in text, killer


def test_the_table_is_large_and_even():
    areas = Counter(mutant.area for mutant in mutants())
    assert areas.total() >= 200
    assert min(areas.values()) >= 5
