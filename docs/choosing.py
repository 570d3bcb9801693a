"""The decision tables of docs/choosing.md, from docs/choosing.toml and the stored results.

The page has a comment `<!-- choosing: NAME -->` for each list of decisions, and after it their
table, which `make tables` writes like those of `measured.py`. A decision has a situation, what to
take, evidence and a command. The numbers of its evidence are read from docs/results: with `best`,
evaluations of solvers by the error asked for; with `numbers`, the least and the largest value of a
column in the rows `where` other columns have given values, in the places {} of the evidence.
"""

import tomllib
from pathlib import Path
from typing import Any

import measured

PLACE = measured.places("choosing")
HEADS = ["situation", "take", "evidence", "command"]
DECISIONS = tomllib.loads((Path(__file__).parent / "choosing.toml").read_text(encoding="utf-8"))
Decision = dict[str, Any]


def completed(text: str) -> str:
    """The text of a page, with its decision tables."""
    return PLACE.sub(
        lambda match: measured.filled("choosing", match[1], table(DECISIONS[match[1]])), text
    )


def table(decisions: list[Decision]) -> list[str]:
    """The lines of a table."""
    body = [[one["situation"], one["take"], evidence(one), one["command"]] for one in decisions]
    return measured.lines(HEADS, body)


def evidence(decision: Decision) -> str:
    """The text of a decision, with its numbers."""
    texts = [evaluations(decision)] if "best" in decision else []
    if "evidence" in decision:
        found = (values(number) for number in decision.get("numbers", []))
        ranges = [measured.shown([min(one), max(one)]) for one in found]
        texts.append(decision["evidence"].format(*ranges))
    return "; ".join(texts)


def values(number: Decision) -> list[Any]:
    """A column of the rows of a result where other columns have one of the given values."""
    where = {key: one if isinstance(one, list) else [one] for key, one in number["where"].items()}
    rows = measured.stored(number["result"])["rows"]
    found = [row for row in rows if all(row[key] in where[key] for key in where)]
    if not found:
        raise ValueError(f"docs/results/{number['result']}.json has no row with {where}")
    return [row[number["column"]] for row in found]


def counts(decision: Decision, error: str) -> dict[str, int]:
    """The evaluations of the best three solvers for an error."""
    asked = decision["case"], decision.get("kind", "path"), float(error)
    for row in measured.stored("work_precision")["rows"]:
        if (row["case"], row["kind"], row["error"]) == asked:
            return {one["solver"].split(", ")[0]: one["evaluations"] for one in row["best"]}
    raise ValueError(f"docs/results/work_precision.json has no row {asked}")


def evaluations(decision: Decision) -> str:
    """The evaluations of the best three solvers for each error, those to take first."""
    parts = []
    for error, take in decision["best"].items():
        found = counts(decision, error)
        names = [*take, *(name for name in found if name not in take)]
        solvers = ", ".join(f"`{name}` {found[name]:,}" for name in names)
        parts.append(f"for {error} {solvers}")
    return f"evaluations {'; '.join(parts)}"
