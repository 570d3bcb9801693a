"""Tables of the pages that are made from docs/results, and the decisions of docs/choosing.md."""

import itertools
import json
import math
import re

import _bench
import choosing
import editing
import grids
import inference
import measured
import networks
import order
import peer_grids
import plotted
import posterior
import pytest
import recipes
import samplers
import scale
import stiff
import throughput
import torch
from matplotlib.figure import Figure
from outputs import PAGES, ROOT
from registered import completed, made_from, with_tables

import sdekit_diffusion as sd
from sdekit_diffusion import AdaptiveFlow, GaussianMixture, SubVPSDE, UniformInLogSNR


def test_tables_of_measurements_are_made_from_what_the_commands_wrote():
    places = {
        name: page.stem
        for page in PAGES
        for name in re.findall(r"^<!-- (?:measured|plotted): (\w+) -->$", page.read_text(), re.M)
    }
    assert sorted(places) == measured.names()
    for name, page in places.items():
        commands = [found["command"] for found in measured.stored(name)["environments"]]
        written = (ROOT / "docs" / f"{page}.md").read_text()
        text = completed(page, written)
        assert commands
        assert all((ROOT / command.split()[1]).exists() for command in commands)
        assert all(f"`{command}`" in " ".join(text.split()) for command in commands)
        assert "<!-- plotted" not in text
        if f"<!-- plotted: {name} -->" in written:
            assert f"](images/measured/{name}.png)" in text


def test_the_pages_have_the_tables_of_the_stored_results():
    """`make tables` writes them."""
    for page in PAGES:
        text = page.read_text()
        assert with_tables(text) == text, f"{page.name} has other tables: run make tables"
        ends = re.findall("<!-- (measured|choosing|choices|end)", text)
        assert ends[1::2] == ["end"] * (len(ends) // 2), f"{page.name}: an end is missing, or alone"
        assert "end" not in ends[::2]


def test_a_table_takes_the_place_of_the_one_before():
    place = "<!-- measured: prior -->"
    table = "\n".join([place, "", *measured.table("prior"), "", "<!-- end -->"])
    rest = "\n\nText.\n\n<!-- plotted: prior -->\n"
    for before in (place, f"{place}\n\n| a |\n| --- |\n\n<!-- end -->", table):
        assert measured.completed(f"A.\n\n{before}{rest}") == f"A.\n\n{table}{rest}"
    other = f"{place}\n\n<!-- measured: mixture -->\n\n<!-- end -->\n"
    assert measured.completed(other).count("<!-- end -->") == 2


def test_pages_are_built_again_when_a_result_changes():
    assert made_from("A page without tables.") == []
    for place in ("measured: prior", "plotted: mixture", "choosing: grid"):
        files = {path.name for path in made_from(f"Text.\n\n<!-- {place} -->\n")}
        assert {"results", "prior.json", "choosing.toml", "measured.py"} <= files
    assert all(path.exists() for path in made_from("<!-- measured: prior -->"))


def test_every_line_of_a_stored_table_has_a_cell_for_each_column():
    for name in measured.names():
        table = measured.table(name)
        lines = table[: table.index("")]
        assert len(lines) > 2
        assert len({line.count("|") for line in lines}) == 1, name


def test_a_table_of_solvers_is_made_from_their_evaluations():
    best = [
        {"solver": "Tsit5, adaptive", "evaluations": 142},
        {"solver": "RK4", "evaluations": 160},
    ]
    row = {"case": "ordinary", "kind": "path", "error": 1e-6, "best": best}
    line = measured.solvers([row])[-1]
    assert line == "| ordinary | path | 1e-06 | `Tsit5`, adaptive | 142 | `RK4` 160 |"


def test_a_table_of_coverages_has_a_column_for_each_level():
    coverage = {"0.5": [0.51, 0.009], "0.95": [0.942, 0.004]}
    row = {"d": 2, "method": "flow", "coverage": coverage, "tarp": 0.123}
    assert measured.coverages([row, {"d": 2, "method": "DPS", "diverges": True}]) == [
        "| d | method | 50% | 95% | TARP's p |",
        "| --- | --- | --- | --- | --- |",
        "| 2 | flow | 51.0 ± 0.9 | 94.2 ± 0.4 | 0.12 |",
        "| 2 | DPS | diverged |  |  |",
    ]
    assert measured.coverages([row | {"error": 0.25}])[2].endswith("| 0.12 | 0.25 |")


def test_a_column_for_each_key_leaves_cells_empty_where_nothing_was_measured():
    rows = [{"gradient": "`a`", "time": 2.3456, "range": [1, 2000]}]
    rows.append({"gradient": "`b`", "time": float("nan"), "range": [3.001, 3.1], "peak MB": 173.0})
    assert measured.plain(rows) == [
        "| gradient | time | range | peak MB |",
        "| --- | --- | --- | --- |",
        "| `a` | 2.35 | 1 to 2,000 |  |",
        "| `b` |  | 3 to 3.1 | 173 |",
    ]


def test_rows_that_were_measured_again_replace_the_first_ones():
    rows = [{"d": 8, "method": "flow", "wrong": 1}, {"d": 80, "method": "flow", "wrong": 2}]
    assert measured.newest("d", "method")([*rows, rows[0] | {"wrong": 3}])[2:] == [
        "| 8 | flow | 3 |",
        "| 80 | flow | 2 |",
    ]


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


def test_tables_of_classes_have_names():
    row = {"images": "held-out", "probability": 0.9923, "right": 0.97, "stderr": 0.0171}
    table = measured.classified([row] * 5)
    assert table[2] == "| least sure | 0.992 | 0.97 ± 0.02 |"
    rows = [{"set": "noise", "class": name, "distance": 1.0} for name in ("9", "mean")]
    assert measured.garments(rows)[2:] == ["| ankle boot | 1.0 |", "| mean | 1.0 |"]


def test_a_table_of_recipes_has_differences_from_the_default():
    row = {"case": "U-Net", "bits": 2.0684, "difference": 0.0, "difference, standard error": 0.0}
    row |= {"frechet": 0.2412, "updates": 361.2}
    other = row | {"case": "DiT", "bits": 2.0473}
    other |= {"difference": -0.0211, "difference, standard error": 0.0139}
    assert measured.recipes([row | {"bits": 3.0}, row, other])[2:] == [
        "| DiT | 2.047 | -0.021 ± 0.014 | 0.24 | 361 |",
        "| U-Net | 2.068 |  | 0.24 | 361 |",
    ]


def test_a_table_of_inference_has_means_over_the_observations():
    row = {"problem": "two_moons", "simulations": 1000, "NPE, published": 0.725}
    row |= {"seconds of training": 100.0, "of sampling": 10.0}
    rows = [row | {"C2ST": c, "outside the prior": p} for c, p in ((0.5, 0.02), (0.6, 0.04))]
    assert measured.inference(rows)[2:] == ["| two moons | 1,000 | 0.550 | 2 | 0.725 | 3% | 120 |"]


def test_a_table_of_networks_ends_in_geometric_means_without_digits():
    ratios = {"curve 1": (0.5, 1.0, 3.0), "surface": (2.0, 4.0, 3.0), "digits": (9.0, 9.0, 9.0)}
    keys = ("ratio", "ratio of medians", "ratio in hindsight")
    rows = [
        {"network": f"{name}, vp, noise", "evaluations": n, **dict(zip(keys, those, strict=True))}
        for name, those in ratios.items()
        for n in (5, 10)
    ]
    assert measured.networks(rows)[2:] == [
        "| curve 1, vp, noise | 0.50 | 0.50 |",
        "| surface, vp, noise | **2.00** | **2.00** |",
        "| digits, vp, noise | **9.00** | **9.00** |",
        "| geometric mean | 1.00 | 1.00 |",
        "| geometric mean of ratios of medians | 2.00 | 2.00 |",
        "| geometric mean in hindsight | 3.00 | 3.00 |",
        "",
        "Above the aim: 4 of the 6 ratios.",
    ]
    assert len(measured.networks(rows[4:])) == 5


def test_ratios_above_the_aim_are_bold_and_counted():
    """The aim falls with the evaluations; rows without, and of strong guidance, have none."""
    figures = {5: (1.0, 1.01), 10: (0.71, 0.3), 20: (0.5, 0.51), 7: (9.0, 9.0)}
    rows = [
        {"problem": "a", "evaluations": n, "mean": mean, "median": median}
        for n, (mean, median) in figures.items()
    ]
    rows += [rows[0] | {"problem": "b", "network": "a, guidance 7.5", "mean": 8.0}]
    table = measured.judged(
        measured.crossed("problem", "evaluations", "{mean} {median}"),
        measured.EXACT_AIMS,
        mean="means",
        median="medians",
    )
    assert table(rows)[2:] == [
        "| a | 1.00 **1.01** | **0.71** 0.30 | 0.50 **0.51** | 9.00 9.00 |",
        "| b | 8.00 1.01 |  |  |  |",
        "",
        "Above the aim: 1 of the 3 means, 2 of the 3 medians.",
    ]


def test_the_grid_of_a_sampler_has_the_least_geometric_mean_on_other_networks(
    tmp_path, monkeypatch
):
    """And networks.py finds it by the kind of its network and the scale of guidance."""
    grids = dict.fromkeys(networks.GRIDS, 8.0)
    first, second = (grids | {"time": a, "Karras": b} for a, b in ((1.0, 2.4), (5.0, 2.4)))
    found = [
        {
            (peer, steps, grid): error
            for peer in networks.PEERS
            for steps in networks.BUDGETS
            for grid, error in errors.items()
        }
        for errors in (first, second)
    ]
    rows = peer_grids.chosen("noise", 3.0, found)
    assert {row["grid"] for row in rows} == {"time"}
    assert rows[0]["means"] == pytest.approx(grids | {"time": 5.0**0.5, "Karras": 2.4})
    others = [row | {"networks": "velocity", "grid": "Karras"} for row in rows]
    others += [row | {"guidance": 1.0, "grid": "Karras"} for row in rows]
    monkeypatch.setattr(networks, "PUBLISHED", tmp_path)
    (tmp_path / "peer_grids.json").write_text(json.dumps({"rows": others + rows}))
    chosen = networks.grids_of_peers("noise", 3.0)
    assert set(chosen) == set(itertools.product(networks.PEERS, networks.BUDGETS))
    assert set(chosen.values()) == {"time"}
    count = str(len(networks.PEERS) * len(networks.BUDGETS))
    assert measured.grids_of_others(rows)[2:] == [f"| noise | 3 | 0 | 0 | 0 | {count} |"]


def test_medians_of_fitted_samplers_are_counted_where_there_is_an_aim():
    row = {"network": "a", "evaluations": 5, "ratio": 0.5, "over the default": 0.25}
    rows = [row | {"ratio of medians": 0.9}, row | {"evaluations": 10, "ratio of medians": 0.81}]
    rows.append(row | {"network": "b, guidance 7.5", "ratio of medians": 2.0})
    table = measured.fitted([*rows, row | {"network": "c", "ratio of medians": 0.99}])
    assert table[2] == "| a | 0.50 (0.25) | 0.50 (0.25) |"
    assert table[-1] == (
        "Of medians instead of means, 1 of 3 ratios are above the aim, and the largest is 0.99."
    )


def test_a_network_is_stored_apart_from_its_guidance(tmp_path, monkeypatch):
    monkeypatch.setattr(_bench, "PUBLISHED", tmp_path)
    names = ["curves, vp", "curves, vp, guidance 3", "digits, vp"]
    ratios = ("ratio", "ratio of medians", "ratio in hindsight")
    keys = ("evaluations", "left out", *ratios, "default", "best peer", "its name", "peers")
    fitted = {"fitted": 0.5, "ratio fitted": 0.25, "ratio of medians fitted": 0.75}
    rows = [{"network": name} | dict.fromkeys(keys, 1) | fitted for name in names]
    images = [{"network": name, "excess": 0.5} for name in names]
    result = {"environment": {}, "rows": rows, "distances": images}
    networks.publish_case("curves, vp", result)
    for table, name in (("networks", names[0]), ("networks_guided", names[1])):
        (row,) = json.loads((tmp_path / f"{table}-curves_vp.json").read_text())["rows"]
        assert row == {"network": name} | dict.fromkeys(keys[:-1], 1)
    both = json.loads((tmp_path / "networks_fitted-curves_vp.json").read_text())["rows"]
    assert [row["network"] for row in both] == names[:2]
    keys = ("ratio", "over the default", "ratio of medians")
    assert all(tuple(row[key] for key in keys) == (0.25, 0.5, 0.75) for row in both)
    published = json.loads((tmp_path / "networks_distances-curves_vp.json").read_text())["rows"]
    assert published == images[:2]
    assert len(list(tmp_path.iterdir())) == 4
    networks.publish_case("digits", {"environment": {}, "rows": [], "distances": images})
    assert len(list(tmp_path.iterdir())) == 5


def test_samples_far_from_the_data_are_left_out():
    law = sd.GaussianMixture([1.0], [[5.0, 5.0]], [2.0])
    exact = 5 + 2 * torch.linspace(-1.5, 1.5, 8)[:, None].repeat(1, 2)
    exact[3] = 100.0
    near = networks.near_data(law, exact)
    assert near.tolist() == [True, True, True, False, True, True, True, True]
    x = exact + torch.tensor([1.0, 1.0, 1.0, 70.0, 1.0, 1.0, 1.0, 8.0])[:, None]
    assert networks.errors(x, exact, near) == pytest.approx((2.0, 1.0))


def test_the_commands_of_the_decisions_exist():
    page = completed("choosing", (ROOT / "docs" / "choosing.md").read_text())
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
    text = "evaluations for 1e-3 `Tsit5` 9, `RK4` 1,200; 0.5 to 1.25 of"
    assert choosing.evidence(decision) == text
    with pytest.raises(ValueError, match="has no row"):
        choosing.counts(decision, "1e-4")
    with pytest.raises(ValueError, match="has no row with"):
        choosing.values(number | {"where": {"method": "z"}})


def test_rows_of_orders_have_the_best_method_of_each_library():
    at = order.STEPS.index(order.AT)
    heun = "Heun(a=1, b=2)"
    ours = [{"solver": heun, "strong errors": [1.0] * at + [error]} for error in (0.2, 0.1)]
    theirs = [{"solver": f"torchsde {name}", "error": e} for name, e in (("srk", 0.3), ("a", 0.4))]
    common = {"problem": "additive", "direction": -1}
    skipped = {"problem": "ordinary", "direction": 1, "solver": "torchsde a", "error": 1.0}
    found = order.best([skipped, *(common | row for row in ours + theirs)])
    names = {"problem": "additive", "direction": "backwards"}
    assert found == [
        names | {"library": "sdekit", "method": heun, "error": 0.1},
        names | {"library": "torchsde", "method": "srk", "error": 0.3},
    ]


def test_rows_of_the_default_have_its_error_over_that_of_the_best_of_the_others():
    """Means over two seeds of the ratios: of mean errors 1/2 and 2, of medians 1/4 and 1/2."""
    measures = dict.fromkeys(samplers.MEASURES, 1.0)
    each = [
        {"default": (0.2, 0.1), "default, log-SNR": (0.01, 0.01), "a": (0.4, 0.5), "b": (0.8, 0.4)},
        {"default": (0.4, 0.1), "default, log-SNR": (0.01, 0.01), "a": (0.2, 0.3), "b": (0.8, 0.2)},
    ]
    found = [
        {name: {5: measures | {"mean": e, "median": m}} for name, (e, m) in errors.items()}
        for errors in each
    ]
    common = {"problem": "d = 2", "sde": "vp", "evaluations": 5}
    (row,) = samplers.against_others([common | samplers.ratios_at(5, found)])
    assert row == pytest.approx(common | {"error": 0.3, "ratio": 1.25, "ratio of medians": 0.375})


def test_rows_of_inference_are_of_one_observation():
    row = {"problem": "slcp", "simulations": 1000, "C2ST": [0.9, 0.8], "NPE": 0.975}
    row |= {"outside": [0.3, 0.4], "training": 50.0, "sampling": 30.0}
    (found,) = inference.of_observation([row], 1)
    assert (found["C2ST"], found["outside the prior"]) == (0.8, 0.4)
    assert (found["seconds of training"], found["of sampling"]) == (50.0, 15.0)


def test_names_of_recipes_have_what_is_not_the_default():
    case = recipes.Case(weighting="plain", density=sd.LogNormal(0.0, 1.0), stratified=True)
    options = '`weighting="plain"`, `density=LogNormal(mean=0.0, std=1.0)`, `stratified=True`'
    assert case.name == f"U-Net, velocity, {options}"
    assert recipes.TRANSFORMER.name == "transformer, velocity"
    assert recipes.Case("data", skip=True).name == "U-Net, data, `skip=True`"


def test_deviations_of_the_law_are_the_largest_over_the_seeds():
    scores = ({"weights": 1.0, "means": 3.0, "covariances": 2.0}, dict.fromkeys(samplers.SCORES, 2))
    rows = [{"method": "sde", "floor": 2.0, **one} for one in scores]
    found = samplers.over_seeds("sde", [*rows, {"method": "sa"}])
    assert (found["seeds"], found["weights"], found["means / floor"]) == (2, 2, 1.5)
    cell = {"problem": "d = 2", "n": 20_000, "evaluations": 25, **found}
    rows = samplers.deviations([cell | {"sde": "vp"}, cell | {"sde": "ve", "n": 1_000}])
    expected = {"law": "d = 2", "method": "sde", "samples": "20,000 after 25, vp"}
    assert rows == [expected | {"over the floor": 1.5}]


def test_rows_of_grids_have_the_geometric_mean_over_the_networks():
    row = {"method": "default", "grid": "fitted", "evaluations": 5}
    ratios = ({"ratio": 0.5, "stderr": 0.02}, {"ratio": 0.125, "stderr": 0.01})
    (found,) = grids.summarised(
        [row | {"network": name} | one for name, one in zip("ab", ratios, strict=True)]
    )
    means = {"networks": 2, "ratio": 0.25, "least": 0.125, "largest": 0.5, "largest stderr": 0.02}
    assert found == pytest.approx(row | means)


def test_rows_of_posteriors_have_medians_and_the_largest_over_the_problems():
    row = {"d": 2, "m": 1, "evaluations": 10.0, "error": -0.1, "stderr": 0.05}
    rows = [
        row | {"method": name, "w1": float(i), "w2": 1.0, "seconds": s}
        for name, s in (("particles", 2.0), ("flow", 3.0))
        for i in (1, 2, 6)
    ]
    first, second = posterior.summarised(rows)
    assert (first["W1"], first["W1, largest"], first["time"], second["time"]) == (2, 6, 1, 1.5)
    assert (second["within three"], second["of"], second["error of log p(y)"]) == (3, 3, 0.1)


def test_rows_of_paths_have_a_column_for_each_size_and_kind_of_increment():
    times = {"torchsde us/step": 9.0, "known grid / torchsde": 0.5, "any / torchsde": 2.0}
    rows = {f"path (64, 2), {n} steps, {w}": times for n in (100, 999) for w in ("W", "W and H")}
    assert throughput.of_paths(rows) == [
        {"times": "known grid", "W at (64, 2)": 0.5, "W and H at (64, 2)": 0.5},
        {"times": "any", "W at (64, 2)": 2.0, "W and H at (64, 2)": 2.0},
    ]


def test_rows_of_editing_and_of_scales_have_ranges():
    rows = [
        {"d": d, "method": "ode", "evaluations": 30 + d + i, "over the floor": 0.5 * i}
        for d in (2, 8)
        for i in (1, 3)
    ]
    row = {"method": "ode", "evaluations": [33, 41], "d = 2": 1.0, "d = 8": 1.0}
    assert editing.over_levels(rows) == [row]
    ratios = [dict.fromkeys(scale.BUDGETS, value) for value in (0.9, 1.1)]
    rows = [{"sde": "vp", "model": "fit", "ratios": one} for one in ratios]
    both = {"few": [0.9, 1.1], "many": [0.9, 1.1]}
    assert scale.extremes(rows) == [{"diffusion": "vp", "model": "fit"} | both]


def test_a_plot_has_a_panel_and_a_line_for_each_value_of_two_keys():
    rows = [
        {"law": law, "sde": "vp", "method": method, "n": n, "error": 1 / n}
        for law in ("a", "b", "c", "d")
        for method in ("ode", "sde")
        for n in (10, 20)
    ]
    plot = plotted.Plot("law, sde", "method", "n", "error", "error of x", "what to look for")
    *panels, empty, last = plotted.drawn(rows, plot).axes
    assert [ax.get_title() for ax in panels] == ["a, vp", "b, vp", "c, vp", "d, vp"]
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["ode", "sde"]
    assert panels[3].lines[1].get_xydata().tolist() == [[10, 0.1], [20, 0.05]]
    assert not empty.axison
    assert not last.axison
    lists = [{"method": "ode", "n": [10, 20], "error": [0.1, 0.05]}]
    (ax,) = plotted.drawn(lists, plot._replace(panel="")).axes
    assert ax.lines[0].get_xydata().tolist() == [[10, 0.1], [20, 0.05]]


def test_what_is_stored_is_drawn_for_the_pages(tmp_path, monkeypatch):
    """All of it is made into figures. Drawing takes long: those of many panels are drawn empty."""
    save = Figure.savefig

    def quick(figure, file, **settings):
        if len(figure.axes) > 3:
            figure.clear()
        save(figure, file, **settings)

    monkeypatch.setattr(Figure, "savefig", quick)
    monkeypatch.setattr(plotted, "FOLDER", tmp_path)
    plotted.write()
    names = set(measured.names())
    assert {path.stem for path in tmp_path.iterdir()} == names & plotted.PLOTS.keys()
    assert "mixture" in names & plotted.PLOTS.keys()


def test_published_numbers_have_six_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(_bench, "PUBLISHED", tmp_path)
    row = {"n": 1234567, "errors": (1 / 3, 1e-9 / 3), "best": {"ratio": 200 / 3}, "name": "a"}
    _bench.publish("a", {"command": "b"}, [row, row])
    text = (tmp_path / "a.json").read_text()
    found = json.loads(text)
    expected = {"n": 1234567, "errors": [0.333333, 3.33333e-10], "best": {"ratio": 66.6667}}
    assert found == {"environment": {"command": "b"}, "rows": [expected | {"name": "a"}] * 2}
    assert sum("ratio" in line for line in text.splitlines()) == 2


def test_a_table_of_posteriors_says_where_there_are_no_samples():
    row = {"d": 80, "m": 1, "method": "flow", "time": 1.26, "evaluations": 8}
    row |= {"W1": 1.234, "W1, largest": math.inf, "max-W2": math.inf, "max-W2, largest": 2.0}
    evidence = {"error of log p(y)": 0.1, "standard error": 0.2, "within three": 3, "of": 5}
    assert measured.posteriors([row | evidence, row | {"m": 2, "time": 2.0}])[2:] == [
        "| flow | 1.23 (none), none (2.0) | 1.23 (none), none (2.0) | 0.100, 0.200, 3/5 |  "
        "| 8 | 1.3 to 2 |"
    ]


def test_parts_of_a_result_make_one_table(tmp_path, monkeypatch):
    """A run of one part replaces no other, and every command is named once on each machine."""
    monkeypatch.setattr(_bench, "PUBLISHED", tmp_path)
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    place = {"date": "today", "versions": {"torch": "2", "sdekit": "0"}, "python": "3"}
    place |= {"threads": 1, "cores": 2, "processor": "x", "dtype": "torch.float64"}
    first = place | {"command": "python a.py"}
    for error, part in ((9, "d = 2, narrow"), (3, "d = 16"), (1, "d = 2, narrow")):
        _bench.publish("a", first, [{"d": part, "error": error}], part)
    _bench.publish("a", place | {"command": "python b.py"}, [{"d": "4", "error": 2}], part="4")
    _bench.publish("ab", first, [{"d": "other"}])
    assert measured.names() == ["a", "ab"]
    assert (tmp_path / "a-d_2_narrow.json").exists()
    assert measured.table("a") == [
        "| d | error |",
        "| --- | --- |",
        "| 4 | 2 |",
        "| d = 16 | 3 |",
        "| d = 2, narrow | 1 |",
        "",
        "Measured by `python b.py`, `python a.py` on today, with torch 2, sdekit 0 and Python 3, "
        "on 1 of 2",
        "cores (x), in float64.",
    ]


def test_all_samplers_are_compared_at_x_over_alpha():
    """Under sub-VP alpha is 0.9995 at the end, where `sample` returns x_t / alpha."""
    down = samplers.start(samplers.mixture(7, 2, 1, 0.5, 0.5), SubVPSDE(), 4)
    exact = down.sampled(AdaptiveFlow(1e-9, 1e-9))
    grid = UniformInLogSNR()
    theirs = samplers.with_torchdiffeq(down, "rk4", 4, grid)(800)
    torch.testing.assert_close(theirs, exact, rtol=1e-6, atol=1e-6)
    law = GaussianMixture([1.0], [[1.0, 2.0]], [0.5])
    noisy = samplers.start(law, SubVPSDE(), 4).law()
    assert noisy.mean().tolist() == pytest.approx([1.0, 2.0])  # not alpha times it
    assert noisy.data_std == pytest.approx(math.hypot(1.0, 1e-3) * law.data_std)


def test_ratios_at_equal_error_are_those_of_lines_between_the_tolerances():
    """Ours has 100 and 1,000 where Radau has 200 and 800; BDF does not reach the errors."""
    rows = [
        {"method": "Rodas5P", "error": 1e-2, "evaluations": 100, "seconds": 1.0},
        {"method": "Rodas5P", "error": 1e-4, "evaluations": 1000, "seconds": 2.0},
        {"method": "Radau", "error": 1e-1, "evaluations": 100, "seconds": 1.0},
        {"method": "Radau", "error": 1e-3, "evaluations": 400, "seconds": 4.0},
        {"method": "Radau", "error": 1e-5, "evaluations": 1600, "seconds": 4.0},
        *[
            {"method": name, "error": 1.0, "evaluations": 9, "seconds": 1}
            for name in ("BDF", "LSODA")
        ],
    ]
    found = stiff.ratios(rows, "Rodas5P")
    assert found["Radau"] == pytest.approx(math.sqrt(100 / 200 * 1000 / 800))
    assert math.isnan(found["BDF"])
    assert stiff.ratios(rows, "Rodas5P", "seconds")["Radau"] == pytest.approx(math.sqrt(0.5 * 0.5))
