"""The table of mutants is valid: `make mutants` runs it."""

import ast
from collections import Counter

from attribution import sources
from mutants import mutants, places


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
        ast.parse(found[0].statement(mutant), found[0].source.path)


def test_the_table_is_large_and_even():
    areas = Counter(mutant.area for mutant in mutants())
    assert areas.total() >= 200
    assert min(areas.values()) >= 5
