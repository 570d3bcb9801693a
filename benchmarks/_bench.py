"""What all benchmarks share: the machine's particulars, interleaved timings, and where results
go.

`save` keeps a whole result for oneself, `publish` a small one in docs/results, from which
`docs/measured.py` makes the tables of the pages.
"""

import datetime
import json
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PUBLISHED = Path(__file__).parent.parent / "docs" / "results"


def environment(**more: object) -> dict[str, Any]:
    """Command, date, machine, threads, versions; printed and put into every result."""
    names = ("torch", "torchsde", "torchdiffeq", "numpy", "sdekit")
    found = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": "cpu",
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        **more,
    }
    print(json.dumps(found))
    return found


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case, round by round in one process; the first round is discarded."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats + 1):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def ratio(seconds: dict[str, list[float]], name: str, over: str) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[over], strict=True))


def save(name: str, result: dict[str, Any]) -> None:
    """Writes results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def publish(
    name: str, particulars: dict[str, Any], rows: list[dict[str, Any]], part: str | None = None
) -> None:
    """Writes docs/results/NAME.json, a row a line: what `environment` found, and the rows, whose
    numbers are rounded to six digits. A part of a result, such as one problem, is NAME-PART.json,
    and replaces no other part.
    """
    PUBLISHED.mkdir(exist_ok=True)
    lines = ",\n".join(f"    {json.dumps(rounded(row))}" for row in rows)
    text = f'{{\n  "environment": {json.dumps(particulars)},\n  "rows": [\n{lines}\n  ]\n}}\n'
    file = name if part is None else f"{name}-{words(part)}"
    (PUBLISHED / f"{file}.json").write_text(text)


def words(title: str) -> str:
    """A title as part of the name of a file: "d = 2, narrow" is "d_2_narrow"."""
    return re.sub(r"\W+", "_", title)


def rounded(value: Any) -> Any:
    """A row, or what it contains, with six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
