"""Tables of the pages that are made from docs/results, and the decisions of docs/choosing.md."""

import re

import choosing
import measured
import networks
import pytest
from outputs import PAGES, ROOT
from registered import completed


def test_tables_of_measurements_are_made_from_what_the_commands_wrote():
    places = {
        name: page.stem
        for page in PAGES
        for name in re.findall(r"^<!-- measured: (\w+) -->$", page.read_text(), re.M)
    }
    assert sorted(places) == sorted(path.stem for path in measured.RESULTS.glob("*.json"))
    for name, page in places.items():
        command = measured.stored(name)["environment"]["command"]
        text = completed(page, (ROOT / "docs" / f"{page}.md").read_text())
        assert (ROOT / command.split()[1]).exists()
        assert command in text
        assert "<!-- measured" not in text


def test_every_line_of_a_stored_table_has_a_cell_for_each_column():
    for path in measured.RESULTS.glob("*.json"):
        lines = measured.table(path.stem)[:-2]
        assert len(lines) > 2
        assert len({line.count("|") for line in lines}) == 1, path.name


def test_a_table_of_solvers_is_made_from_their_evaluations():
    best = [
        {"solver": "Tsit5, adaptive", "evaluations": 142},
        {"solver": "RK4", "evaluations": 160},
    ]
    row = {"case": "ordinary", "kind": "path", "error": 1e-6, "best": best}
    line = measured.solvers([row])[-1]
    assert line == "| ordinary | path | 1e-06 | `Tsit5`, adaptive | 142 | `RK4` 160 |"


def test_a_column_for_each_key_leaves_cells_empty_where_nothing_was_measured():
    rows = [{"gradient": "`a`", "time": 2.345, "range": [1, 2000]}]
    rows.append({"gradient": "`b`", "time": float("nan"), "range": [3.04, 3.01], "peak MB": 173.0})
    assert measured.plain()(rows) == [
        "| gradient | time | range | peak MB |",
        "| --- | --- | --- | --- |",
        "| `a` | 2.3 | 1 to 2,000 |  |",
        "| `b` |  | 3 | 170 |",
    ]
    assert measured.plain(3)(rows)[2] == "| `a` | 2.35 | 1 to 2,000 |  |"


def test_a_crossed_table_has_a_column_for_each_value():
    rows = [
        {"method": "sde", "n": 1000, "sde": "vp", "way": "up", "error of x": 0.012},
        {"method": "sde", "n": 1000, "sde": "ve", "way": "up", "error of x": 0.5},
        {"method": "ode", "n": 20, "sde": "ve", "way": "up", "error of x": 1.0},
    ]
    made = measured.crossed("method, n", "sde, way", "{error of x:.2f}")
    assert measured.named(made, "method")(rows) == [
        "| method | n | vp, up | ve, up |",
        "| --- | --- | --- | --- |",
        '| `"sde"` | 1,000 | 0.01 | 0.50 |',
        '| `"ode"` | 20 |  | 1.00 |',
    ]


def test_geometric_means_of_networks_leave_out_guidance_and_digits():
    names = ["curve 1, vp, noise", "surface, vp, noise", "digits, vp, noise"]
    names.append("curves, vp, noise, guidance 3")
    ratios = [(0.5, 1.0), (2.0, 4.0), (9.0, 9.0), (7.0, 7.0)]
    both = ("ratio", "ratio of medians")
    rows = [
        {"network": name, "evaluations": steps} | dict(zip(both, pair, strict=True))
        for name, pair in zip(names, ratios, strict=True)
        for steps in (5, 10)
    ]
    means = {"networks": 2, "ratio": 1.0, "ratio of medians": 2.0}
    expected = [pytest.approx({"evaluations": steps} | means) for steps in (5, 10)]
    assert networks.geometric_means(rows) == expected
    assert networks.geometric_means(rows[4:]) == []


def test_the_commands_of_the_decisions_exist():
    page = completed("choosing", (ROOT / "docs" / "choosing.md").read_text())
    assert "<!-- choosing" not in page
    scripts = re.findall(r"`(?:python benchmarks/)?(\w+\.py)", page)
    assert len(scripts) > 20
    assert [name for name in scripts if not (ROOT / "benchmarks" / name).exists()] == []
    assert all((ROOT / name).exists() for name in re.findall(r"pytest (tests/\w+\.py)", page))


def decisions():
    return [one for table in choosing.DECISIONS.values() for one in table]


def test_the_solvers_to_take_need_about_the_fewest_evaluations():
    chosen = [one for one in decisions() if "best" in one]
    assert len(chosen) >= 10
    for one in chosen:
        for error, solvers in one["best"].items():
            found = choosing.counts(one, error)
            for solver in solvers:
                assert solver.split("(")[0] in one["take"]
                assert found[solver] <= one.get("within", 1) * min(found.values()), (error, solver)


def test_the_numbers_of_the_decisions_are_within_the_bounds_of_the_advice():
    numbers = [number for one in decisions() for number in one.get("numbers", [])]
    assert numbers
    for number in numbers:
        found = choosing.values(number)
        assert number.get("least", min(found)) <= min(found), number
        assert number.get("most", max(found)) >= max(found), number
    for one in decisions():
        assert one.get("evidence", "").count("{}") == len(one.get("numbers", []))


def test_evidence_has_the_numbers_of_the_results(monkeypatch):
    best = [{"solver": "RK4", "evaluations": 1200}, {"solver": "Tsit5, adaptive", "evaluations": 9}]
    rows = {
        "work_precision": [{"case": "a", "kind": "path", "error": 1e-3, "best": best}],
        "mixture": [{"method": m, "n": n, "worst": n / 4} for m in ("x", "y") for n in (2, 5, 10)],
    }
    monkeypatch.setattr(measured, "stored", lambda name: {"rows": rows[name]})
    number = {"result": "mixture", "column": "worst", "where": {"method": "x", "n": [2, 5]}}
    decision = {"case": "a", "best": {"1e-3": ["Tsit5"]}, "numbers": [number], "evidence": "{} of"}
    text = "evaluations for 1e-3 `Tsit5` 9, `RK4` 1,200; 0.5 to 1.2 of"
    assert choosing.evidence(decision) == text
    with pytest.raises(ValueError, match="has no row"):
        choosing.counts(decision, "1e-4")
