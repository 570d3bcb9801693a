"""The table of promises is valid, and docs/promises.md is made from it: `make promises` runs it."""

import ast
from functools import cache

import pytest
from attribution import ROOT, sources
from mutants import places
from promises import PAGE, page, promises

BREAKS = [each for promise in promises() for each in promise.breaks]


@cache
def functions(file):
    """The names of the tests of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@cache
def texts():
    return sources()


@pytest.mark.parametrize("each", BREAKS, ids=lambda each: each.mistake)
def test_the_test_exists_and_the_mistake_has_one_place(each):
    file, name = each.test.split("[")[0].split("::")
    assert name in functions(file)
    found = places(each.mutant, texts())
    assert len(found) == 1, f"in {len(found)} places: {each.mutant.old}"
    text = found[0].mutated(each.mutant)
    assert text != found[0].source.text
    ast.parse(text, found[0].source.path)


def test_the_page_is_made_from_the_table():
    assert PAGE.read_text() == page(), "python tests/promises.py --page writes it"


def test_every_promise_of_the_readme_has_a_test():
    section = (ROOT / "README.md").read_text().split("## What other")[1].split("\n## ")[0]
    promised = [promise for promise in promises() if "README.md" in promise.where]
    assert len(promised) >= section.count("](") >= 8
    assert section.count("\n- ") == 5
