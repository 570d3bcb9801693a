"""Every Python block of the README, the contributor guide and the docs runs, in order, a namespace
a page.
"""

import ast
import re
from fractions import Fraction
from pathlib import Path

import pytest

import sdekit
from sdekit_diffusion import DIFFUSIONS, GRIDS, METHODS, nets

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    text = page.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M):
        yield text[: match.start()].count("\n") + 1, match.group(1)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nets, "registry", dict(nets.registry))
    namespace = {"__name__": "example"}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)  # noqa: S102 - our own pages


def test_there_are_examples():
    (_, main), *_ = blocks(ROOT / "README.md")
    assert len([line for line in main.splitlines() if line.strip()]) <= 12
    assert len(list(blocks(ROOT / "README.md"))) >= 2
    assert len(list(blocks(ROOT / "CONTRIBUTING.md"))) >= 5


@pytest.mark.parametrize(
    ("name", "most"),
    [("Midpoint", 20), ("StochasticMidpoint", 20), ("Adams", 4), ("EDM", 15), ("Squared", 4)],
)
def test_what_the_guide_adds_is_as_short_as_promised(name, most):
    """Lines from the class statement to its end, decorator, docstring and blank lines not
    counted.
    """
    for _, code in blocks(ROOT / "CONTRIBUTING.md"):
        for node in ast.parse(code).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                lines = code.splitlines()[node.lineno - 1 : node.end_lineno]
                docstring = len(ast.get_docstring(node, clean=False).splitlines())
                assert len([line for line in lines if line.strip()]) - docstring <= most
                return
    pytest.fail(f"{name} is not in the guide")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_fits_the_page(page):
    """The built page shows 100 columns of code; a listing in the margin of a list or a formula
    counts too.
    """
    fence = ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            fence = "" if fence else line
        elif fence or line.startswith("    "):
            assert len(line) <= 100, f"{page.name}:{number} has {len(line)} columns"


def test_every_benchmark_is_on_its_page_and_runs_by_make():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        assert f"benchmarks/{path.name}" in page, path.name
        assert f"benchmarks/{path.name}" in makefile, path.name


def test_every_file_of_the_glossary_exists():
    paths = re.findall(r"`(sdekit\w*/[\w/.]+)`", (ROOT / "docs" / "glossary.md").read_text())
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_page_on_samplers_names_every_method_diffusion_and_grid():
    page = (ROOT / "docs" / "samplers.md").read_text()
    methods = page.split("| `method=`")[1].split("\n\n")[0]
    assert set(
        re.findall(r'`"(\w+)"`', "\n".join(line.split("|")[1] for line in methods.splitlines()[2:]))
    ) == set(METHODS)
    diffusions = page.split("| `sde=`")[1].split("\n\n")[0]
    assert re.findall(r'^\| `"(\w+)"`', diffusions, re.M) == list(DIFFUSIONS)
    assert all(f'`"{name}"`' in page.split("## Noise level")[1] for name in GRIDS)


def test_readme_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "lint", "bench", "docs"):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_the_table_of_solvers_says_what_the_classes_declare():
    lines = (ROOT / "docs" / "solvers.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:3] == "| `"]
    rows = [row for row in rows if "Ito" in row[1] or row[1] in ("either", "Stratonovich")]
    assert len(rows) >= 14
    for names, calculus, additive, diagonal, general, _ in rows:
        for name in re.findall(r"`(\w+)", names):
            solver = getattr(sdekit, name)
            solver = solver(-1.0) if name.startswith("Exponential") else solver()
            for kind, cell in (
                ("additive", additive),
                ("diagonal", diagonal),
                ("scalar", diagonal),
                ("general", general),
            ):
                given = re.match(r"\(([\d.]+), ([\d.]+)\)", cell)
                if given:
                    assert solver.order[kind] == tuple(map(float, given.groups())), (name, kind)
                elif cell == "(1, min(k, 2))":
                    assert all(
                        type(solver)(k).order[kind] == (1, min(k, 2)) for k in solver.accuracy
                    ), name
                else:
                    assert kind not in solver.order, (name, kind)
            if calculus != "either":
                assert solver.sde_type == calculus.lower(), name


def test_the_table_of_multistep_rules_says_what_the_classes_declare():
    text = (
        (ROOT / "docs" / "solvers.md").read_text().split("## Multistep rules")[1].split("\n## ")[0]
    )
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line[:3] == "| `"
    ]
    rules = {name for name in sdekit.__all__ if hasattr(getattr(sdekit, name), "accuracy")}
    assert {re.findall(r"`(\w+)", row[0])[0] for row in rows} <= rules
    for name, _, *orders in rows:
        rule = getattr(sdekit, re.findall(r"`(\w+)", name)[0])
        assert {k: int(order) for k, order in enumerate(orders, 1) if order} == rule.accuracy


def test_the_table_of_single_steps_says_what_the_classes_declare():
    text = (
        (ROOT / "docs" / "solvers.md")
        .read_text()
        .split("## Single-step methods")[1]
        .split("\n## ")[0]
    )
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line[:3] == "| `"
    ]
    assert len(rows) == 3
    for call, c, _, order, evaluations, _ in rows:
        name, k = re.fullmatch(r"`(\w+)\((\d?)\)`", call).groups()
        solver = getattr(sdekit, name)(*([int(k)] if k else []))
        assert solver.c == tuple(float(Fraction(part)) for part in c.split(", "))
        assert solver.order["none"] == (int(order), int(order))
        assert len(solver.c) + 1 == int(evaluations)
