"""Tables of measurements on the pages, from what the benchmarks wrote to docs/results.

A page has a comment `<!-- measured: NAME -->`, and after it, up to `<!-- end -->`, the table of
`docs/results/NAME.json`, or of its parts `NAME-PART.json` together. `make tables` writes the tables
into the pages, which thus can be read without building them, and a test compares them with the
results. A table has a column for each key of the rows, unless `TABLES` says otherwise.
`python docs/measured.py` prints the tables.
"""

import json
import math
import re
import textwrap
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

RESULTS = Path(__file__).parent / "results"
Rows = list[dict[str, Any]]
Table = Callable[[Rows], list[str]]  # the lines of a table


def places(kind: str) -> re.Pattern[str]:
    """The places for tables of a kind, with the tables that are there."""
    return re.compile(
        rf"^<!-- {kind}: (\w+) -->$(?:\n(?:(?!<!--).*\n)*<!-- end -->$)?", re.MULTILINE
    )


def filled(kind: str, name: str, table: list[str]) -> str:
    """A place with its table."""
    return "\n".join([f"<!-- {kind}: {name} -->", "", *table, "", "<!-- end -->"])


PLACE = places("measured")


def completed(text: str) -> str:
    """The text of a page, with the tables of its results and where they come from."""
    return PLACE.sub(lambda match: filled("measured", match[1], table(match[1])), text)


def table(name: str) -> list[str]:
    """The lines of a table, and a sentence with its origin for each machine."""
    result = stored(name)
    written = TABLES.get(name, plain)(result["rows"])
    origin = " ".join(origins(result["environments"]))
    return [part for line in (*written, "", origin) for part in wrapped(line)]


def wrapped(line: str) -> list[str]:
    """A row of a table as it is, a text in lines of 100 columns."""
    if not line or line.startswith("|"):
        return [line]
    return textwrap.wrap(line, width=100, break_long_words=False, break_on_hyphens=False)


def names() -> list[str]:
    """The names of all results."""
    return sorted({path.stem.partition("-")[0] for path in RESULTS.glob("*.json")})


def stored(name: str) -> dict[str, list[dict[str, Any]]]:
    """The environments and the rows of a result, of all its parts together."""
    paths = [*RESULTS.glob(f"{name}.json"), *RESULTS.glob(f"{name}-*.json")]
    in_order = sorted(paths, key=lambda path: (len(path.stem), path.stem))
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in in_order]
    return {
        "environments": [part["environment"] for part in parts],
        "rows": [row for part in parts for row in part["rows"]],
    }


def origins(environments: list[dict[str, Any]]) -> list[str]:
    """The commands, the dates and the machines of a result: a sentence for each machine and day."""
    commands: dict[str, list[str]] = {}
    for found in environments:
        versions = found["versions"]
        dtype = found["dtype"].removeprefix("torch.")
        machine = (
            f"on {found['date']}, with torch {versions['torch']}, sdekit {versions['sdekit']} and "
            f"Python {found['python']}, on {found['threads']} of {found['cores']} cores "
            f"({found['processor']}), in {dtype}."
        )
        commands.setdefault(machine, []).append(f"`{found['command']}`")
    return [
        f"Measured by {', '.join(dict.fromkeys(those))} {machine}"
        for machine, those in commands.items()
    ]


def lines(heads: list[str], body: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *body)]


def shown(value: Any) -> str:  # noqa: ANN401
    """A text as it is, an integer with its thousands apart, a float with three significant digits,
    a list as a range "2 to 3"; nothing for NaN.
    """
    if isinstance(value, list):
        return " to ".join(dict.fromkeys(map(shown, value)))
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{float(f'{value:.3g}'):g}"
    return f"{value:,}" if isinstance(value, int) else value


def plain(rows: Rows) -> list[str]:
    """A column for each key of the rows; empty cells where a row lacks it."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return lines(keys, [[shown(row.get(key, "")) for key in keys] for row in rows])


def newest(*names: str) -> Table:
    """As `plain`, of the last row only for each combination of these keys: a part of a result that
    was measured again replaces these rows of the whole.
    """
    return lambda rows: plain(
        list({tuple(row[name] for name in names): row for row in rows}.values())
    )


def crossed(down: str, across: str, cell: str) -> Table:
    """A line for each value of the keys `down`, a column for each of the keys `across`, and in the
    cells a format of the row's values.
    """

    def made(rows: Rows) -> list[str]:
        found: dict[tuple[str, ...], dict[str, str]] = {}
        for row in rows:
            title = ", ".join(shown(row[key]) for key in across.split(", "))
            line = tuple(shown(row[key]) for key in down.split(", "))
            found.setdefault(line, {})[title] = cell.format(**row)
        heads = list(dict.fromkeys(title for cells in found.values() for title in cells))
        body = [[*line, *(cells.get(head, "") for head in heads)] for line, cells in found.items()]
        return lines([*down.split(", "), *heads], body)

    return made


def named(made: Table, *keys: str) -> Table:
    """The same with the values of some keys as code, such as `"default"`."""
    return lambda rows: made([row | {key: f'`"{row[key]}"`' for key in keys} for row in rows])


# By evaluations, the most that errors are to be over those of the best of others.
EXACT_AIMS = {5: 1.0, 8: 1.0, 10: 0.7, 15: 0.7, 20: 0.5, 50: 0.3, 100: 0.3}
TRAINED_AIMS = {5: 1.0, 6: 1.0, 8: 1.0, 10: 0.8, 15: 0.8, 20: 0.8, 50: 0.8}


def judged(made: Table, aims: dict[int, float], **keys: str) -> Table:
    """The same with the ratios of some keys as text, bold where they are above the aim, and a
    sentence with the numbers of those; rows without a number of evaluations among the aims, and
    those of a scale of guidance of 7.5, have none. Each key is given with what its ratios are
    called.
    """

    def judgement(rows: Rows) -> list[str]:
        pairs = [(row, aim_of(row, aims)) for row in rows]
        count = sum(aim < math.inf for _, aim in pairs)
        counts = [
            f"{sum(row[key] > aim for row, aim in pairs)} of the {count} {name}"
            for key, name in keys.items()
        ]
        marked = [row | {key: bold(row[key], aim) for key in keys} for row, aim in pairs]
        return [*made(marked), "", f"Above the aim: {', '.join(counts)}."]

    return judgement


def aim_of(row: dict[str, Any], aims: dict[int, float]) -> float:
    """The aim of a row, infinite without one."""
    extreme = str(row.get("network")).endswith("guidance 7.5")
    return math.inf if extreme else aims.get(row["evaluations"], math.inf)


def bold(ratio: float, most: float) -> str:
    """A ratio, bold where it is above the most."""
    return f"**{ratio:.2f}**" if ratio > most else f"{ratio:.2f}"


NETWORK_MEANS = {
    "": "ratio",
    " of ratios of medians": "ratio of medians",
    " in hindsight": "ratio in hindsight",
}


def networks(rows: Rows) -> list[str]:
    """The ratios of each network, and over all networks but those of images the geometric means of
    them, of those of the medians and of those in hindsight.
    """
    laws = [row for row in rows if not row["network"].startswith(("digits", "garments"))]
    means = [
        {"network": f"geometric mean{title}", "evaluations": n}
        | {"ratio": geometric_mean(row[key] for row in laws if row["evaluations"] == n)}
        for title, key in NETWORK_MEANS.items()
        for n in dict.fromkeys(row["evaluations"] for row in laws)
    ]
    of_means = [row | {"ratio": f"{row['ratio']:.2f}"} for row in means]
    table = judged(
        lambda marked: crossed("network", "evaluations", "{ratio}")(marked + of_means),
        TRAINED_AIMS,
        ratio="ratios",
    )
    return table(rows)


def fitted(rows: Rows) -> list[str]:
    """The ratios of each network after a fit, and a sentence that counts those of medians above the
    aim.
    """
    ratios = crossed("network", "evaluations", "{ratio} ({over the default:.2f})")
    table = judged(ratios, TRAINED_AIMS, ratio="ratios")(rows)
    known = [row for row in rows if aim_of(row, TRAINED_AIMS) < math.inf]
    over = sum(row["ratio of medians"] > aim_of(row, TRAINED_AIMS) for row in known)
    largest = max(row["ratio of medians"] for row in known)
    return [
        *table,
        "",
        f"Of medians instead of means, {over} of {len(known)} ratios are above the aim, and the "
        f"largest is {largest:.2f}.",
    ]


def frechet_distances(rows: Rows) -> list[str]:
    """Frechet distances of the default, before and after a fit, of that of the others whose samples
    have the least error, and the least of the others; and a sentence that counts where that of the
    default, fitted up to ten steps, is larger by more than two standard errors.
    """
    cells: dict[tuple[str, int], Rows] = {}
    for row in rows:
        cells.setdefault((row["network"], row["evaluations"]), []).append(row)
    shown_rows = []
    above = {"most accurate other": 0, "least of the others": 0}
    farther = 0
    for cell in cells.values():
        others = [row for row in cell if row["method"] not in ("default", "fitted")]
        chosen = {
            "most accurate other": min(others, key=itemgetter("error")),
            "least of the others": min(others, key=itemgetter("excess")),
        }
        shown_rows += [row for row in cell if row["method"] in ("default", "fitted")]
        for name, row in chosen.items():
            shown_rows.append(row | {"method": name})
            above[name] += row["ours less it"] > 2 * row["its stderr"]
        other = chosen["most accurate other"]
        ours = next(row for row in reversed(cell) if row["method"] in ("default", "fitted"))
        stderr = math.hypot(ours["stderr"], other["stderr"])
        farther += abs(ours["excess"]) - abs(other["excess"]) > 2 * stderr
    table = crossed("network, method", "evaluations", "{excess:.3f} ± {stderr:.3f}")(shown_rows)
    counts = " and ".join(f"above that of the {name} in {count}" for name, count in above.items())
    return [
        *table,
        "",
        f"The distance of the default, fitted up to ten steps, is {counts} of the {len(cells)} "
        f"cells, by more than two standard errors of the difference, and farther from 0 than that "
        f"of the most accurate other in {farther}.",
    ]


def grids_of_others(rows: Rows) -> list[str]:
    """How often each grid was chosen, by the kind of networks and the scale of guidance."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        case = (row["networks"], shown(row["guidance"]))
        counts.setdefault(case, dict.fromkeys(row["means"], 0))[row["grid"]] += 1
    body = [[*case, *map(str, found.values())] for case, found in counts.items()]
    return lines(["networks", "guidance", *rows[0]["means"]], body)


def solvers(rows: Rows) -> list[str]:
    """The solver with the fewest evaluations for each equation and error, and the next two."""
    heads = ["equation", "error of", "at most", "take", "evaluations", "next"]
    body = []
    for row in rows:
        first, *others = ([called(one["solver"]), str(one["evaluations"])] for one in row["best"])
        further = ", ".join(map(" ".join, others))
        body.append([row["case"], row["kind"], f"{row['error']:g}", *first, further])
    return lines(heads, body)


def posteriors(rows: Rows) -> list[str]:
    """A line for each method: for each kind of problem the distances of its samples, then its
    log p(y), and the ranges of its evaluations and times.
    """
    of = {(row["method"], f"d = {row['d']}, m = {row['m']}"): row for row in rows}
    methods = list(dict.fromkeys(name for name, _ in of))
    cells = list(dict.fromkeys(cell for _, cell in of))
    weighted = [f"log p(y), {cell}" for cell in cells]
    body = []
    for name in methods:
        those = [of[name, cell] for cell in cells]
        ends = (those[0], those[-1])
        counts = dict.fromkeys(f"{row['evaluations']}" for row in ends)
        times = dict.fromkeys(f"{row['time']:.2g}" for row in ends)
        ranges = [" to ".join(values) for values in (counts, times)]
        body.append([name, *map(distances, those), *map(evidence, those), *ranges])
    return lines(["method", *cells, *weighted, "evaluations", "time"], body)


def distances(row: dict[str, Any]) -> str:
    """W1 and max-W2, each the median and in brackets the largest; "none" where there are no
    samples.
    """
    pairs = [(row[name], row[f"{name}, largest"]) for name in ("W1", "max-W2")]
    return ", ".join(
        f"{f'{median:.2f}' if math.isfinite(median) else 'none'} "
        f"({f'{largest:.1f}' if math.isfinite(largest) else 'none'})"
        for median, largest in pairs
    )


def evidence(row: dict[str, Any]) -> str:
    """Error and standard error of log p(y), "none" where some problems have none, and how often it
    is within three; "" without it.
    """
    if "within three" not in row:
        return ""
    values = [row[name] for name in ("error of log p(y)", "standard error")]
    errors = ["none" if math.isnan(value) else f"{value:.3f}" for value in values]
    return f"{', '.join(dict.fromkeys(errors))}, {row['within three']}/{row['of']}"


def coverages(rows: Rows) -> list[str]:
    """A line for each method: how often the truth is within each interval, with its standard error,
    then the p-value of TARP, and the error of the mean where it is known; "diverged" for a method
    without samples.
    """
    rows = sorted(rows, key=lambda row: row.get("d", 0))  # parts of one dimension together
    complete = next(row for row in rows if "coverage" in row)
    names = [name for name in complete if name not in ("coverage", "tarp", "error")]
    levels = list(complete["coverage"])
    further = {"tarp": "TARP's p", "error": "error of the mean"}
    keys = [key for key in further if key in complete]
    body = []
    for row in rows:
        if "coverage" in row:
            pairs = (row["coverage"][level] for level in levels)
            cells = [f"{100 * share:.1f} ± {100 * stderr:.1f}" for share, stderr in pairs]
            cells += [f"{row[key]:.2g}" for key in keys]
        else:
            cells = ["diverged", *[""] * (len(levels) + len(keys) - 1)]
        body.append([*(shown(row[name]) for name in names), *cells])
    heads = [*names, *(f"{float(level):.0%}" for level in levels), *(further[key] for key in keys)]
    return lines(heads, body)


def classified(rows: Rows) -> list[str]:
    """A line for each fifth of the images, from those of which the classifier is least sure."""
    ordinals = ("least sure", "second", "third", "fourth", "surest")
    body = [
        [name, shown(row["probability"]), f"{row['right']:.2f} ± {row['stderr']:.2f}"]
        for name, row in zip(ordinals, rows, strict=True)
    ]
    return lines(["fifth", "mean probability", "share that is right"], body)


def garments(rows: Rows) -> list[str]:
    """A line for each class, by its name, and one for the mean."""
    named_rows = [row | {"class": GARMENTS.get(row["class"], row["class"])} for row in rows]
    return crossed("class", "set", "{distance:,.1f}")(named_rows)


def recipes(rows: Rows) -> list[str]:
    """A line for each recipe, as it was measured last, the best first, with its difference from the
    default and the standard error.
    """
    body = []
    for row in sorted({row["case"]: row for row in rows}.values(), key=itemgetter("bits")):
        difference = f"{row['difference']:+.3f} ± {row['difference, standard error']:.3f}"
        if row["difference"] == 0:
            difference = ""
        figures = [f"{row['bits']:.3f}", difference, f"{row['frechet']:.2g}"]
        body.append([row["case"], *figures, f"{row['updates']:.0f}"])
    heads = ["network, prediction, recipe", "bits/dim", "difference", "Fréchet", "updates"]
    return lines(heads, body)


def students(rows: Rows) -> list[str]:
    """A line for the samples of the teacher and of each student."""
    heads = ["samples", "updates", "minutes", "mean error", "median", "Fréchet distance"]
    keys = ["samples", "updates", "minutes", "mean error", "median error", "frechet"]
    more = ["confidence", "p"]
    body = [[shown(row.get(key, "")) for key in keys + more] for row in rows]
    return lines(heads + more, body)


def inference(rows: Rows) -> list[str]:
    """A line for each problem and number of simulations: means over the observations, the seconds
    of training and of the samples of all observations.
    """
    cells: dict[tuple[str, int], Rows] = {}
    for row in rows:
        cells.setdefault((row["problem"], row["simulations"]), []).append(row)
    body = []
    for (problem, simulations), those in cells.items():
        seconds = mean(row["seconds of training"] for row in those)
        seconds += sum(row["of sampling"] for row in those)
        figures = [f"{mean(row['C2ST'] for row in those):.3f}", str(len(those))]
        figures += [f"{those[0]['NPE, published']}"]
        figures += [f"{mean(row['outside the prior'] for row in those):.0%}", f"{seconds:.0f}"]
        body.append([problem.replace("_", " "), f"{simulations:,}", *figures])
    heads = ["problem", "simulations", "C2ST", "observations", "NPE, published"]
    return lines([*heads, "outside the prior", "seconds"], body)


def called(solver: str) -> str:
    """`Tsit5`, adaptive."""
    name, _, steps = solver.partition(", ")
    return f"`{name}`{', ' + steps if steps else ''}"


GARMENTS = {
    "0": "T-shirt",
    "1": "trouser",
    "2": "pullover",
    "3": "dress",
    "4": "coat",
    "5": "sandal",
    "6": "shirt",
    "7": "sneaker",
    "8": "bag",
    "9": "ankle boot",
}
MEANS = "{mean:.3g} ± {deviation:.1g}"
TABLES: dict[str, Table] = {
    "adaptive": crossed(
        "dimension, noise after a rejected step", "tolerance", "{bias:.2%} ({evaluations:.0f})"
    ),
    "editing": named(plain, "method"),
    "distillation": students,
    "classified": classified,
    "garments": garments,
    "grids": named(
        crossed(
            "method, grid",
            "evaluations",
            "{ratio:.2f} ({least:.2f} to {largest:.2f} ± {largest stderr:.2f})",
        ),
        "method",
    ),
    "intervals": crossed("estimates", "K", "{coverage:.1%} ({by t:.1%})"),
    "known_coordinates": crossed(
        "method, evaluations", "problem", "{over the floor:.1f} ({error of the mean / std:.2f})"
    ),
    "mixture": named(crossed("method, evaluations", "sde", "{worst:.1f}"), "method", "sde"),
    "networks": networks,
    "networks_distances": frechet_distances,
    "networks_fitted": fitted,
    "networks_guided": judged(
        crossed("network", "evaluations", "{ratio} ({ratio in hindsight:.2f})"),
        TRAINED_AIMS,
        ratio="ratios",
    ),
    "order": crossed("problem", "library, direction", "{error:.1e} (`{method}`)"),
    "overhead_samplers": named(plain, "method"),
    "peer_grids": grids_of_others,
    "posterior_8": posteriors,
    "posterior_80": posteriors,
    "posterior_800": posteriors,
    "posterior_coverage": coverages,
    "posterior_digits": coverages,
    "posterior_warnings": newest("d", "method"),
    "prior": crossed("prior", "sde", "{mean error:.1e}"),
    "probability_flow": crossed("diffusion, direction, solver", "error", "{evaluations}"),
    "recipes_averages": crossed("snapshots", "width", "{error:.1g}"),
    "recipes_plane": crossed(
        "conditioning, weighting", "predicts", "{error:.2g} ± {stderr:.1g}"
    ),
    "recipes_digits": recipes,
    "recipes_larger": recipes,
    "report": crossed("figure", "set", MEANS),
    "report_tests": crossed("figure", "set", MEANS),
    "inference": inference,
    "samplers": judged(
        crossed("problem, sde", "evaluations", "{error:.1e} ({ratio}, {ratio of medians})"),
        EXACT_AIMS,
        **{"ratio": "ratios of means", "ratio of medians": "ratios of medians"},
    ),
    "samplers_laws": crossed("law, method", "samples", "{over the floor:.2g}"),
    "work_precision": solvers,
}  # fmt: skip

if __name__ == "__main__":
    for each in names():
        print("\n".join(table(each)), end="\n\n")
