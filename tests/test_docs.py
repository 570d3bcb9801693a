"""Every Python block of the README, the contributor guide and the docs runs, in order, with
a namespace per page, and prints what stands below it.
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
import re
from fractions import Fraction

import api_pages
import printed as scripts
import pytest
from browser import CHROMIUM, Browser
from outputs import PAGES, ROOT, agree, examples, outputs
from registered import completed, evaluations, solvers, summary

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion import DIFFUSIONS, GRIDS, METHODS, VPSDE, Karras, OnClock, nets
from sdekit_diffusion._sampling.default import CHOICES, STIFF_CHOICES


def blocks(page):
    for example in examples(page):
        yield example.line, example.code


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_print_what_stands_below_them(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nets, "registry", dict(nets.registry))
    for example, printed in outputs(page):
        assert agree(printed, example.printed), (
            f"{page.name}:{example.line} prints\n{printed}\n, not\n{example.printed}\n: if that is "
            f"right, python tests/outputs.py {page.relative_to(ROOT)}"
        )


@pytest.mark.parametrize(
    ("stored", "others"),
    [
        ("loss 0.0412 of 12", ["loss 0.0414 of 12", "loss 0.0412 of 13", "gain 0.0412 of 12"]),
        ("6.58e+04", ["6.60e+04", "6.58e+03", "-6.58e+04"]),
        ("Tsit5() 71", ["Tsit5() 72", "Tsit4() 71", "Tsit5() 71 71", "Tsit5()", ""]),
        ("", ["0", "None"]),
        ("tensor([1., 2.])", ["tensor([1., 3.])", "tensor([1., 2., 3.])"]),
    ],
)
def test_another_output_is_noticed(stored, others):
    assert agree(stored, stored)
    assert not any(agree(other, stored) for other in others)


def test_outputs_may_differ_by_rounding_and_in_lines():
    assert agree("a 0.0413\n  (1.2341,\n 7)\n", "a 0.0412 (1.2345, 7)")


def test_there_are_examples():
    (_, main), *_ = blocks(ROOT / "README.md")
    assert len([line for line in main.splitlines() if line.strip()]) <= 12
    assert len(list(blocks(ROOT / "README.md"))) >= 2
    assert len(list(blocks(ROOT / "CONTRIBUTING.md"))) >= 5


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("ExplicitMidpoint", 20),
        ("StochasticMidpoint", 20),
        ("Adams", 4),
        ("LinearNoise", 15),
        ("Squared", 4),
    ],
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
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


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


def built(page):
    """The text of a page as it is built."""
    return completed(page, (ROOT / "docs" / f"{page}.md").read_text())


def rows(text, head):
    """The cells of the rows of a table, without its head."""
    lines = text.split(f"\n| {head} |")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def names(cell):
    return re.findall(r'`"(\w+)"`', cell)


def test_the_page_on_samplers_names_every_method_diffusion_and_grid():
    page = built("samplers")
    for head, registered in (("`method=`", METHODS), ("`sde=`", DIFFUSIONS), ("`grid=`", GRIDS)):
        found = [name for row in rows(page, head) for name in names(row[0])]
        assert sorted(found) == sorted(registered)
    written = (ROOT / "docs" / "samplers.md").read_text()
    found = [name for row in rows(written, "`sde=`") for name in names(row[0])]
    assert found == [name for name in DIFFUSIONS if name in found]


def test_the_page_on_samplers_has_every_case_of_the_default():
    """One row each, in the order in which they are tried."""
    head = "model | guidance | evaluations below | integrates | rule | grid"
    found = rows(built("samplers"), head)
    assert found[9][:5] == ["networks", "$s < 1$", "22", "velocity", "`AdamsMoulton(2)`"]
    assert found[9][5] == "share 0.7, native share 0.2"
    noise = [row for row in found if row[0] == "networks that predict the noise"]
    assert [row[2] for row in noise[:5]] == ["7", "18", "30", "40", "any"]
    assert noise[3][5] == "reach infinite"
    assert noise[6][2:] == [
        "$1.4 s + 8$", "data", "`LimitedUniPC()`", r"reach $10\, d^{0.5}$, sharpness 24"
    ]  # fmt: skip
    assert found[3][2] == "$3.5 s - 6$"
    assert noise[5][2] == "$s$"
    tables = CHOICES, STIFF_CHOICES
    assert len(found) == sum(len(choices) for table in tables for choices in table.values())


def test_the_page_on_samplers_says_how_often_a_method_asks():
    for row in rows(built("samplers"), "`method=`"):
        said = row[3].split(", ")
        for i, name in enumerate(names(row[0])):
            assert evaluations(name) == said[i if len(said) > 1 else 0], name


def test_the_page_on_networks_names_every_network_and_its_conditions():
    arguments = {"label": "classes", "context": "context", "image": "image"}
    table = rows(built("networks"), "network | samples")
    found = {name: row[2] for row in table for name in re.findall(r"`(\w+)`", row[0])}
    assert sorted(found) == sorted(nets.registry)
    for name, conditions in found.items():
        parameters = inspect.signature(nets.registry[name]).parameters
        taken = [condition for condition in arguments if arguments[condition] in parameters]
        assert conditions == (", ".join(taken) or "none"), name


def test_the_page_on_solvers_names_every_solver():
    page = built("solvers")
    assert [
        kind for kind in solvers(sdekit.AbstractSolver) if f"`{kind.__name__}" not in page
    ] == []


def test_the_page_on_support_has_every_solver_and_no_test_that_is_not_there():
    page = built("support")
    found = {row[0].strip("`"): row[1:] for row in rows(page, "solver | noise")}
    assert list(found) == [kind.__name__ for kind in solvers(sdekit.AbstractSolver)]
    # What the tests of the contract have to show of every solver, and what needs no argument.
    assert {cells[2] for cells in found.values()} == {"✓ (4)"}
    for solver in sdekit.all_solvers():
        cells = found[type(solver).__name__]
        assert "not tested" not in cells[:-1], solver
        if not isinstance(solver, sdekit.AbstractPredictor):  # of the flow there is another test
            assert "all" in cells[0] or set(solver.order) <= set(re.findall(r"\w+", cells[0])), (
                solver
            )
    for _, name, _ in rows(page, "| test"):
        file, function = name.strip("`").split("::")
        assert f"def {function}(" in (ROOT / file).read_text()


@dataclasses.dataclass(frozen=True, eq=False)
class One(sdekit.EulerMaruyama):
    """x_1 = a * |x_0|, one more solver.

    And more of it.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class Ordinary(sdekit.RK4):
    """Runge and Kutta's."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rule(sdekit.AdamsBashforth):
    """A rule."""


@dataclasses.dataclass(frozen=True, eq=False)
class Single(sdekit.ClockedHeun):
    """A single step."""


def test_one_more_of_each_has_a_row_when_the_page_is_built(monkeypatch):
    for kind in (One, Ordinary, Rule, Single):
        monkeypatch.setattr(sdekit, kind.__name__, kind, raising=False)
        monkeypatch.setattr(sdekit, "__all__", [*sdekit.__all__, kind.__name__])
    for table, value in (
        (METHODS, OnClock(sdekit.AdamsBashforth(3), steps=10)),
        (DIFFUSIONS, VPSDE),
        (GRIDS, Karras(3.0)),
    ):
        monkeypatch.setitem(table, "another", value)
    page = built("samplers")
    assert rows(page, "`method=`")[-1][3] == "11"
    assert rows(page, "`sde=`")[-1][:2] == ['`"another"`', "`VPSDE`"]
    assert rows(page, "`grid=`")[-1][:2] == ['`"another"`', "`Karras(rho=3.0)`"]
    monkeypatch.setitem(nets.registry, "Another", nets.MLP)
    row = rows(built("networks"), "network | samples")[-1]
    assert row[:3] == ["`Another`", "", "label, context"]
    assert row[3].startswith("Residual multilayer perceptron")
    page = built("solvers")
    one = ["`One`", "Ito", "(1, 1)", "(0.5, 1)", "(0.5, 1)", ""]
    assert rows(page, "solver | calculus")[-1] == one
    ordinary = ["`Ordinary`", "4", "4", "Runge and Kutta's."]
    assert rows(page, "for ordinary equations")[-1] == ordinary
    assert rows(page, "rule | weights")[-1] == ["`Rule(k)`", "A rule.", "1", "2", "3", "4"]
    assert rows(page, "method | c")[-1][:1] == ["`Single`"]
    assert summary(One) == r"x\_1 = a \* \|x\_0\|, one more solver."


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
            argument = {"ExponentialEuler": [-1.0], "ExponentialHeun": [-1.0], "SKROCK": [3]}
            solver = solver(*argument.get(name, []))
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
    for call, c, _, order, number, _ in rows:
        name, k = re.fullmatch(r"`(\w+)\((\d?)\)`", call).groups()
        solver = getattr(sdekit, name)(*([int(k)] if k else []))
        assert solver.c == tuple(float(Fraction(part)) for part in c.split(", "))
        assert solver.order["none"] == (int(order), int(order))
        assert len(solver.c) + 1 == int(number)


def test_the_table_of_methods_for_ordinary_equations_says_what_the_classes_declare():
    found = rows((ROOT / "docs" / "solvers.md").read_text(), "for ordinary equations")
    for cell, order, stages, _ in found:
        for name in re.findall(r"`(\w+)", cell):
            solver = getattr(sdekit, name)
            assert solver.order == {"none": (int(order), int(order))}
            tableau = solver.tableau
            implicit = issubclass(solver, sdekit.AbstractRosenbrock)
            assert len(tableau.times if implicit else tableau.a) == int(stages)
    assert len(found) >= 8


def test_every_public_name_has_a_page_of_the_reference(monkeypatch):
    monkeypatch.setattr(sdekit, "One", One, raising=False)
    monkeypatch.setattr(sdekit, "__all__", [*sdekit.__all__, "One"])
    monkeypatch.setattr(One, "__module__", sdekit.Heun.__module__)
    for package, modules in api_pages.MODULES.items():
        groups = api_pages.grouped(package)
        assert all(groups.values())
        values = [entry.value for group in groups.values() for entry in group]
        for module in modules:
            public = {name: getattr(module, name) for name in module.__all__}
            without = {
                name
                for name, value in public.items()
                if not inspect.ismodule(value) and not any(value is other for other in values)
            }
            assert without == ({"Time", "ZERO"} if module is sdekit.elementary else set())
    observations = {entry.name for entry in api_pages.grouped(sd)["Observations"]}
    assert observations >= {"LinearObservation", "Observation", "Joint", "Mask"}
    solvers = [entry.name for entry in api_pages.grouped(sdekit)["Solvers"]]
    assert solvers == sorted(solvers)
    assert "One" in solvers


def test_a_changed_recipe_of_the_examples_is_trained_again(monkeypatch):
    file = ROOT / "docs" / "examples" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks_of_the_examples", file)
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)
    folder = networks.folder_of(networks.trained_on_digits)
    assert folder.parent == ROOT / "docs" / "_cache"
    assert folder == networks.folder_of(networks.trained_on_digits)
    source = inspect.getsource(networks.trained_on_digits)
    monkeypatch.setattr(networks.inspect, "getsource", lambda _: source.replace("1500", "1600"))
    assert networks.folder_of(networks.trained_on_digits) != folder
    monkeypatch.setattr(networks.inspect, "getsource", lambda _: source)
    assert networks.folder_of(networks.trained_on_digits) == folder
    monkeypatch.setattr(networks, "version", lambda _: "0.0.0")
    assert networks.folder_of(networks.trained_on_digits) != folder


SCRIPT_PAGE = """
.. GENERATED FROM PYTHON SOURCE LINES 1-3

.. rst-class:: sphx-glr-script-out

 .. code-block:: none

    error 0.0412

    steps 12




.. GENERATED FROM PYTHON SOURCE LINES 4-5

.. rst-class:: sphx-glr-script-out

 .. code-block:: none

    the same: True


.. code-block:: Python

    print("no output")
"""


def test_what_scripts_print_is_compared_with_what_is_stored(tmp_path):
    assert agree(scripts.printed(SCRIPT_PAGE), "error 0.0412 steps 12 the same: True")
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "plot_one.rst").write_text(SCRIPT_PAGE)
    for text, differs in (("error 0.0413\nsteps 12\nthe same: True", False), (None, False)):
        assert bool(scripts.differing({"plot_one": text}, tmp_path)) == differs
    for stored in ({}, {"plot_one": "error 0.0412\nsteps 13\nthe same: True"}):
        assert list(scripts.differing(stored, tmp_path)) == ["plot_one"]


def test_stored_outputs_are_those_of_scripts():
    folders = ("tutorials", "how_to", "examples")
    names = {path.stem for name in folders for path in (ROOT / "docs" / name).glob("plot_*.py")}
    assert set(json.loads(scripts.STORED.read_text())) <= names


SEARCH = """<script>
const DOCUMENTATION_OPTIONS = {SHOW_SEARCH_SUMMARY: true};
const stopwords = new Set(["a", "from"]);
const splitQuery = (text) => text.split(/[^a-z]+/).filter((word) => word);
class Stemmer { stemWord(word) { return word.replace(/ing$|s$/, ""); } }
const Search = {_index: {
  docnames: ["start", "samplers", "how_to_guides/plot_masks", "changelog"],
  alltitles: {"A network": [[0, "a"]], "Masks": [[1, "b"], [3, "c"]]},
  indexentries: {"sampling from a model": [[0, "index-0", true]], "mask": [[3, "", false]]},
}};
</script><script>%s</script>"""
RESULTS = """[
  ["start", "Ten minutes", 5, "text"],
  ["index", "Masks", 50, "index"],
  ["samplers", "Samplers of a model", 15, "text"],
  ["how_to_guides/plot_masks", "How do I inpaint?", 5, "text"],
  ["changelog", "Changelog", 5, "text"],
  ["reference/Mask", "Mask.shape", 16, "object", "Python property, in Mask"],
].map(([page, title, score, kind, description = null]) =>
  [page, Scorer.score([page, title, "", description, score, page, kind])])"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, of Debian's package of that name")
def test_a_search_puts_pages_that_answer_first(tmp_path):
    """Sphinx's own order is in the scores of RESULTS. Words count that are in the title of a page,
    in a heading or in a main entry of the index; members of classes and the changelog come later.
    """
    page = tmp_path / "search.html"
    scorer = ROOT / "docs/_static/scorer.js"
    page.write_text(SEARCH % scorer.read_text(encoding="utf-8"), encoding="utf-8")
    orders = {}
    with Browser(tmp_path / "profile") as browser:
        for query in ("sampling+from+model", "masks", "", "from+a+model", "model"):
            browser.open(page, f"?q={query}")
            found = sorted(browser.run(RESULTS), key=lambda result: -result[1])
            orders[query] = [name for name, _ in found]
        summaries = browser.run("DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY")
        assert not browser.problems
    assert orders["sampling+from+model"][1:3] == ["start", "samplers"]
    assert orders["masks"] == [
        "samplers",
        "how_to_guides/plot_masks",
        "reference/Mask",
        "start",
        "changelog",
        "index",  # which Sphinx lists by its title, too
    ]
    assert orders[""][:3] == ["index", "reference/Mask", "samplers"]  # no words: as Sphinx has it
    assert orders["from+a+model"][-1] == "start"  # listed by the entry of the index, too
    assert orders["model"][-1] != "start"  # for half of an entry or less it does not
    assert not summaries  # which a page that is opened as a file cannot read


def test_a_page_has_each_heading_once():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        headings = re.findall(r"^## .+", page.read_text(), flags=re.MULTILINE)
        assert len(headings) == len(set(headings)), page
