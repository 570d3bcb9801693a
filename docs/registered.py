"""Rows for what is registered and has none in the tables of a page, from the classes.

`conf.py` adds them to the pages when they are built, so that one more solver, rule, diffusion,
method or grid is on its page before somebody describes it there. `python docs/registered.py` writes
the tables of measurements, of decisions and of the default into the pages (`make tables`).
"""

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion._sampling.default import CHOICES, STIFF_CHOICES, Choice

import choosing
import measured
import plotted
import supported

Row = tuple[str, ...]  # the cells
DEFAULT = measured.places("choices")
KINDS = ("additive", "diagonal", "general")
KINDS_OF_MODELS = {
    "exact": "exact scores",
    "other": "networks",
    "noise": "networks that predict the noise",
}


def made_from(text: str) -> list[Path]:
    """The files from which the tables and plots of a page are made; when one of them changes, or
    another result is stored, the page is built again.
    """
    here = Path(__file__).parent
    if not any(module.PLACE.search(text) for module in (choosing, measured, plotted)):
        return []
    names = ("choosing.py", "choosing.toml", "measured.py", "plotted.py", "results")
    return [*(here / name for name in names), *sorted(measured.RESULTS.glob("*.json"))]


def completed(page: str, text: str) -> str:
    """The text of a page, with a row at the end of its tables for each name that it lacks."""
    written = text
    for head, rows in TABLES.get(page, {}).items():
        before, found, rest = text.partition(f"\n{head}\n")
        if not found:
            raise ValueError(f"{page} has no table with the head {head}")
        table, end, after = rest.partition("\n\n")
        place = (
            written if page == "solvers" else table
        )  # a solver may be in a sentence or any table
        more = [cells for pattern, cells in rows() if not re.search(pattern, place)]
        table += "".join(f"\n| {' | '.join(cells)} |" for cells in more)
        text = before + found + table + end + after
    return plotted.completed(with_tables(text))


def with_tables(text: str) -> str:
    """The text of a page, with the tables of measurements, of decisions and of the default."""
    text = choosing.completed(measured.completed(text))
    choices = {"default": default()}
    return DEFAULT.sub(lambda match: measured.filled("choices", match[1], choices[match[1]]), text)


def summary(kind: type) -> str:
    """The first sentence of a docstring, as Markdown."""
    words = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
    return re.sub(r"([\\`*_|$<\[])", r"\\\1", words)


@cache
def evaluations(name: str) -> str:
    """Of a method with its own number of steps."""
    if not sd.METHODS[name].steps:
        return "by tolerance"
    model = sd.GaussianMixture([1.0], [[0.0]], [1.0])
    solution = sd.sample(model, 1, sde="vp", method=name, seed=0, return_solution=True)
    return str(int(solution.evaluations[0]))


def methods() -> Iterator[tuple[str, Row]]:
    for name, method in sd.METHODS.items():
        cells = f'`"{name}"`', summary(type(method)), f"`{method}`", evaluations(name)
        yield rf'\| [^|]*`"{name}"`[^|]*\|', cells


def diffusions() -> Iterator[tuple[str, Row]]:
    for name, kind in sd.DIFFUSIONS.items():
        yield rf'\| `"{name}"` \|', (f'`"{name}"`', f"`{kind.__name__}`", summary(kind), "")


def grids() -> Iterator[tuple[str, Row]]:
    for name, grid in sd.GRIDS.items():
        yield rf'\| `"{name}"` \|', (f'`"{name}"`', f"`{grid}`", summary(type(grid)))


def default() -> list[str]:
    """What the default does, by the kind of the model, guidance and the number of evaluations."""
    heads = ["model", "guidance", "evaluations below", "integrates", "rule", "grid"]
    rows = [
        [name, guidance, *chosen(choice)]
        for kind, name in KINDS_OF_MODELS.items()
        for guidance, table in (("$s < 1$", CHOICES), ("$s \\ge 1$", STIFF_CHOICES))
        for choice in table[kind]
    ]
    return measured.lines(heads, rows)


def chosen(choice: Choice) -> Row:
    """The bound, the integrand, the rule and the grid of a choice."""
    k = "" if isinstance(choice.rule, sdekit.LimitedUniPC) else choice.rule.k
    rule = f"`{type(choice.rule).__name__}({k})`"
    power = f"\\, d^{{{choice.power:g}}}" if choice.power else ""
    given = {
        "share": choice.share,
        "native share": choice.native_share,
        "reach": choice.reach,
        "sharpness": choice.sharpness,
    }
    shown = {name: f"{name} {value:g}" for name, value in given.items() if value is not None}
    if choice.reach is not None:
        shown["reach"] = f"reach ${choice.reach:g}{power}$".replace("$inf$", "infinite")
    return bound(choice), choice.integrand, rule, ", ".join(shown.values()) or "`Focused()`"


def bound(choice: Choice) -> str:
    """The number of steps below which a choice applies."""
    if math.isinf(choice.limit):
        return "any"
    if not choice.slope:
        return f"{choice.limit:g}"
    slope = "" if choice.slope == 1 else f"{choice.slope:g} "
    rest = f" {'-' if choice.limit < 0 else '+'} {abs(choice.limit):g}" if choice.limit else ""
    return f"${slope}s{rest}$"


def solvers(family: type) -> Iterator[type[sdekit.AbstractSolver]]:
    """The public solvers of a family."""
    for name in sdekit.__all__:
        kind = getattr(sdekit, name)
        if inspect.isclass(kind) and issubclass(kind, family) and not name.startswith("Abstract"):
            yield kind


def others() -> Iterator[type[sdekit.AbstractSolver]]:
    """Solvers without a table of their own."""
    own = sdekit.AbstractMultistep, sdekit.AbstractSingleStep
    yield from (kind for kind in solvers(sdekit.AbstractSolver) if not issubclass(kind, own))


def orders(kind: type[sdekit.AbstractSolver]) -> Mapping[str, sdekit.Order]:
    """Those that do not depend on arguments."""
    return kind.order if isinstance(kind.order, Mapping) else {}


def stages(kind: type[sdekit.AbstractSolver]) -> str:
    """Evaluations of the drift in a step of a tableau."""
    tableau = getattr(kind, "tableau", None)
    if tableau is None:
        return ""
    stochastic = isinstance(tableau, sdekit.StochasticTableau)
    return str(
        sum("f" in one.evaluates for one in tableau.stages) if stochastic else len(tableau.a)
    )


def stochastic() -> Iterator[tuple[str, Row]]:
    for kind in others():
        order = orders(kind)
        if set(order) != {"none"}:
            calculus = str(kind.sde_type).title() if set(order) - {"none", "additive"} else "either"
            pairs = [f"({order[k][0]:g}, {order[k][1]:g})" if k in order else "" for k in KINDS]
            yield rf"`{kind.__name__}\b", (f"`{kind.__name__}`", calculus, *pairs, stages(kind))


def ordinary() -> Iterator[tuple[str, Row]]:
    for kind in others():
        if set(orders(kind)) == {"none"}:
            order = f"{orders(kind)['none'].strong:g}"
            yield rf"`{kind.__name__}\b", (f"`{kind.__name__}`", order, stages(kind), summary(kind))


def networks() -> Iterator[tuple[str, Row]]:
    for name, kind in sd.nets.registry.items():
        arguments = inspect.signature(kind).parameters
        built = {"classes": "label", "context": "context", "image": "image"}
        conditions = ", ".join(built[argument] for argument in built if argument in arguments)
        yield rf"`{name}`", (f"`{name}`", "", conditions or "none", summary(kind))


def rules() -> Iterator[tuple[str, Row]]:
    for kind in solvers(sdekit.AbstractMultistep):
        order = [str(kind.accuracy.get(k, "")) for k in (1, 2, 3, 4)]
        yield rf"`{kind.__name__}\b", (f"`{kind.__name__}(k)`", summary(kind), *order)


def single_steps() -> Iterator[tuple[str, Row]]:
    for kind in solvers(sdekit.AbstractSingleStep):
        yield rf"`{kind.__name__}\b", (f"`{kind.__name__}`", "", summary(kind), "", "", "")


TABLES = {
    "networks": {"| network | samples | conditions | |": networks},
    "samplers": {
        r"| `sde=` | class | $\alpha$ | $\sigma$ |": diffusions,
        "| `method=` | equation | solver | evaluations |": methods,
        "| `grid=` | class | steps |": grids,
    },
    "support": {
        f"| {' | '.join(supported.HEAD)} |": supported.support,
        "| | test | shows |": supported.tests,
    },
    "solvers": {
        "| solver | calculus | additive | diagonal, scalar | general | drift evaluations |": (
            stochastic
        ),
        "| for ordinary equations | order | evaluations | |": ordinary,
        "| rule | weights | k = 1 | 2 | 3 | 4 |": rules,
        "| method | c | weights | order | evaluations | published as |": single_steps,
    },
}

if __name__ == "__main__":
    for path in Path(__file__).parent.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        if text != with_tables(text):
            path.write_text(with_tables(text), encoding="utf-8")
