"""What each solver supports, from the lists of solvers that the tests run: the table of support.md.

A cell names the tests by their numbers. `registered.py` adds the tables when the pages are built;
`python docs/supported.py` prints them. A new solver is in the lists of the tests, and so here, as
soon as it is registered.
"""

import importlib
import inspect
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import sdekit

ROOT = Path(__file__).parent.parent
Row = tuple[str, ...]  # the cells
NOISE = ("none", "additive", "diagonal", "scalar", "general")
UNTESTED = "not tested"
HEAD = "solver noise time dtypes batch vmap compile adaptive GPU".split()


@dataclass(frozen=True)
class Cover:
    """A test that has the solver as a parameter, and what it shows for each solver it runs."""

    file: str
    name: str
    shows: str
    kind: str = "none"  # of noise, where that is not a parameter
    directions: tuple[int, ...] = (1, -1)  # of time, where that is not a parameter

    @cache  # noqa: B019 - they are a few
    def runs(self) -> list[dict[str, Any]]:
        """Its parameters in each run."""
        for folder in ("tests", "benchmarks"):
            if str(ROOT / folder) not in sys.path:
                sys.path.append(str(ROOT / folder))
        function = getattr(importlib.import_module(self.file), self.name)
        marks = [mark for mark in function.pytestmark if mark.name == "parametrize"]
        parts = [[_named(mark.args[0], value) for value in mark.args[1]] for mark in marks]
        return [
            {name: value for part in run for name, value in part.items()}
            for run in itertools.product(*parts)
        ]

    def of(self, kind: type) -> list[dict[str, Any]]:
        """The runs with a solver of a class."""
        return [run for run in self.runs() if type(run["solver"]) is kind]


def _named(names: str | tuple[str, ...], value: Any) -> dict[str, Any]:  # noqa: ANN401
    """A value of `pytest.mark.parametrize`, which may be of several parameters, by name."""
    split = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    if hasattr(value, "marks"):  # pytest.param
        value = value.values
    elif len(split) == 1:
        value = (value,)
    return dict(zip(split, value, strict=True))


ORDERS = (
    Cover(
        "test_solver_contract",
        "test_strong_order",
        "the strong order on nonlinear problems, per kind of noise, in both directions of time",
    ),
    Cover(
        "test_runge_kutta",
        "test_slopes_of_one_step_and_of_its_error_estimate",
        "the orders of a step and of its error estimate, in both directions of time",
    ),
    Cover(
        "test_predictors",
        "test_weak_order",
        "the weak order under three diffusions, from late times to early ones",
        kind="additive",
        directions=(-1,),
    ),
)
SAME = Cover(
    "test_solver_contract",
    "test_shapes_dtypes_and_batch_independence",
    "states of any shape in four dtypes; each sample is bit-identical in a part of the "
    "batch and in another order",
)
TRANSFORMED = Cover(
    "test_gradient",
    "test_solves_under_torch_func",
    "`vmap`, `jacrev`, `jacfwd` and `jvp` of a solve on a fixed grid",
)
ITERATED = Cover(
    "test_gradient",
    "test_solvers_that_iterate_under_torch_func",
    "`jacrev` and `jvp` of a solve; `vmap` is refused, because it hides whether the iterations of "
    "a step have converged",
)
COMPILED = Cover(
    "test_gradient",
    "test_a_step_compiles_whole",
    "a step compiles without a graph break and returns the same numbers",
)
ESTIMATED = Cover(
    "test_solver_contract",
    "test_the_error_estimate_falls_with_its_power",
    "the error estimate, for adaptive steps, falls with the power of the step that is declared",
)
COVERS = (*ORDERS, SAME, TRANSFORMED, ITERATED, COMPILED, ESTIMATED)


def number(cover: Cover) -> str:
    """How cells refer to a test."""
    return str(COVERS.index(cover) + 1)


def solvers() -> Iterator[type[sdekit.AbstractSolver]]:
    """The public solvers."""
    for name in sdekit.__all__:
        kind = getattr(sdekit, name)
        public = inspect.isclass(kind) and not name.startswith("Abstract")
        if public and issubclass(kind, sdekit.AbstractSolver):
            yield kind


def noise_and_time(kind: type) -> tuple[str, str]:
    """The kinds of noise and the directions of time in which an order is measured."""
    found = [(cover, run) for cover in ORDERS for run in cover.of(kind)]
    if not found:
        return UNTESTED, UNTESTED
    noise = {run.get("kind", cover.kind) for cover, run in found}
    directions: set[int] = set()
    for cover, run in found:
        directions |= {run["direction"]} if "direction" in run else set(cover.directions)
    covers = ", ".join(number(cover) for cover in ORDERS if cover.of(kind))
    time = "both" if len(directions) == 2 else "forwards" if 1 in directions else "backwards"
    kinds = "all" if len(noise) == len(NOISE) else ", ".join(sorted(noise, key=NOISE.index))
    return f"{kinds} ({covers})", time


def transformed(kind: type) -> str:
    """Whether torch.func works."""
    if TRANSFORMED.of(kind):
        return f"✓ ({number(TRANSFORMED)})"
    return f"refused ({number(ITERATED)})" if ITERATED.of(kind) else UNTESTED


def compiled(kind: type) -> str:
    """Whether a step compiles."""
    if COMPILED.of(kind):
        return f"✓ ({number(COMPILED)})"
    return "no: it iterates" if ITERATED.of(kind) else UNTESTED


def adaptive(kind: type) -> str:
    """Whether there is an error estimate."""
    for cover in (ESTIMATED, ORDERS[1]):
        runs = cover.of(kind)
        if runs and runs[0]["solver"].embedded is not None:
            return f"✓ ({number(cover)})"
    return "no"


def support() -> Iterator[tuple[str, Row]]:
    """A row for each solver, and the pattern by which it is found."""
    for kind in solvers():
        same = f"✓ ({number(SAME)})" if SAME.of(kind) else UNTESTED
        cells = (*noise_and_time(kind), same, same, transformed(kind), compiled(kind))
        row = (f"`{kind.__name__}`", *cells, adaptive(kind), UNTESTED)
        yield rf"`{kind.__name__}`", row


def tests() -> Iterator[tuple[str, Row]]:
    """A row for each of the tests that cells name."""
    for cover in COVERS:
        name = f"`tests/{cover.file}.py::{cover.name}`"
        yield name, (number(cover), name, cover.shows)


def main() -> None:
    """Prints the tables."""
    for rows in (support, tests):
        for _, row in rows():
            print(f"| {' | '.join(row)} |")
        print()


if __name__ == "__main__":
    main()
