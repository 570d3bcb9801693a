"""Tables of measurements on the pages, from what the benchmarks wrote to docs/results.

A page has a comment `<!-- measured: NAME -->`, and `registered.py` puts the table of
`docs/results/NAME.json` in its place when the pages are built. So a page says what was measured
last: run the command of a table again and its numbers change. `python docs/measured.py` prints the
tables.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PLACE = re.compile(r"^<!-- measured: (\w+) -->$", re.MULTILINE)
Rows = list[dict[str, Any]]


def completed(text: str) -> str:
    """The text of a page, with the tables of its results and where they come from."""
    return PLACE.sub(lambda match: "\n".join(table(match[1])), text)


def table(name: str) -> list[str]:
    """The lines of a table, and a sentence with its origin."""
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return [*TABLES[name](result["rows"]), "", origin(result["environment"])]


def origin(found: dict[str, Any]) -> str:
    """The command, the date and the machine of a result."""
    versions = found["versions"]
    dtype = found["dtype"].removeprefix("torch.")
    return (
        f"Measured by `{found['command']}` on {found['date']}, with torch {versions['torch']}, "
        f"sdekit {versions['sdekit']} and Python {found['python']}, on {found['threads']} of "
        f"{found['cores']} cores ({found['processor']}), in {dtype}."
    )


def solvers(rows: Rows) -> list[str]:
    """The solver with the fewest evaluations for each equation and error, and the next two."""
    heads = "equation", "error of", "at most", "take", "evaluations", "next"
    lines = [f"| {' | '.join(heads)} |", f"{'|---' * len(heads)}|"]
    for row in rows:
        first, *others = ((called(one["solver"]), one["evaluations"]) for one in row["best"])
        further = ", ".join(f"{solver} {count}" for solver, count in others)
        cells = (row["case"], row["kind"], f"{row['error']:g}", first[0], str(first[1]), further)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def called(solver: str) -> str:
    """`Tsit5`, adaptive."""
    name, _, steps = solver.partition(", ")
    return f"`{name}`{', ' + steps if steps else ''}"


def laws(rows: Rows) -> list[str]:
    """Largest differences from the exact law, by method and number of evaluations."""
    diffusions = list(dict.fromkeys(row["sde"] for row in rows))
    runs: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        runs.setdefault((row["method"], row["evaluations"]), {})[row["sde"]] = row["worst"]
    heads = ["method", "evaluations", *(f'`"{name}"`' for name in diffusions)]
    lines = [f"| {' | '.join(heads)} |", f"{'|---' * len(heads)}|"]
    for (method, evaluations), worst in runs.items():
        cells = [f"{worst[name]:.1f}" if name in worst else "" for name in diffusions]
        lines.append(f'| `"{method}"` | {evaluations} | {" | ".join(cells)} |')
    return lines


def gradients(rows: Rows) -> list[str]:
    """Time, memory and error of each way to differentiate a solve."""
    memory = [key for key in rows[0] if key.startswith("peak MB")]
    keys = ["time / plain", *memory, "evaluations per step", "relative difference"]
    lines = [f"| gradient | {' | '.join(keys)} |", f"{'|---' * (len(keys) + 1)}|"]
    for row in rows:
        cells = [f"{float(f'{row[key]:.2g}'):g}" if key in row else "" for key in keys]
        lines.append(f"| {row['gradient']} | {' | '.join(cells)} |")
    return lines


TABLES: dict[str, Callable[[Rows], list[str]]] = {
    "gradient": gradients,
    "mixture": laws,
    "work_precision": solvers,
}

if __name__ == "__main__":
    for each in sorted(RESULTS.glob("*.json")):
        print("\n".join(table(each.stem)), end="\n\n")
