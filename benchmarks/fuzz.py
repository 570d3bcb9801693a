"""Loads 10,000 damaged files of each kind that the library reads, and counts what comes of it.

Each file is refused with one of the documented errors and a message, or loads to the very values
that were saved, or, where its format has no checksum over them, to others. Anything else is a
failure, and the script exits with 1. Every kind runs in a process of its own with 8 GB of memory,
which is started again after a crash. `python benchmarks/fuzz.py` or, for other numbers and some
kinds only, `python benchmarks/fuzz.py 1000 diffusers`
"""

import faulthandler
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _bench import environment, publish, save
from _kinds import Fuzz, kinds

MEMORY = 8 << 30
SLOW = 60.0  # seconds, after which a file is taken to hang the loader


def child(name: str, start: int, stop: int) -> None:
    """Prints what came of each file, a line each: its number before it is loaded, then the
    outcome.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, TemporaryDirectory() as names:
        kind = next(kind for kind in kinds(Path(names)) if kind.name == name)
        fuzz = Fuzz(kind, Path(folder))
        for seed in range(start, stop):
            print(json.dumps(seed), flush=True)
            faulthandler.dump_traceback_later(SLOW, exit=True)
            found = fuzz.once(seed)
            print(json.dumps(found if fuzz.allowed(found) else f"FAILED with {found}"), flush=True)


def fuzzed(name: str, n: int) -> dict[str, Any]:
    """Counts of outcomes, and the failures with their seeds."""
    counts: Counter[str] = Counter()
    failures: dict[int, str] = {}
    seed = 0
    began = time.perf_counter()
    while seed < n:
        run = [sys.executable, __file__, "--child", name, str(seed), str(n)]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        for line in map(json.loads, done.stdout.splitlines()):
            if isinstance(line, int):
                seed = line
                continue
            counts[line if line in ("refused", "sound", "changed") else "failed"] += 1
            if line not in ("refused", "sound", "changed"):
                failures[seed] = line
            seed += 1
        if done.returncode:
            counts["failed"] += 1
            failures[seed] = f"the process ended with {done.returncode}: {done.stderr[-300:]}"
            seed += 1
    return {**counts, "seconds": round(time.perf_counter() - began, 1), "failures": failures}


def outcomes(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """How many files of each kind were refused, loaded to the saved values, or to others."""
    return [
        {
            "file": name,
            "checksum": "yes" if counts["checksum"] else "no",
            "refused": counts.get("refused", 0),
            "the saved values": counts.get("sound", 0),
            "others": counts.get("changed", 0),
            "failed": counts.get("failed", 0),
        }
        for name, counts in found.items()
    ]


def main() -> None:
    n = int(next(iter(sys.argv[1:2]), 10_000))
    only = " ".join(sys.argv[2:])
    result: dict[str, Any] = {
        "environment": environment(dtype="float32", seed=0, files_of_each_kind=n),
        "kinds": {},
    }
    with TemporaryDirectory() as folder:
        chosen = [kind for kind in kinds(Path(folder)) if only in kind.name]
    print(f"{'':45}{'refused':>10}{'sound':>10}{'changed':>10}{'failed':>10}")
    for kind in chosen:
        found = result["kinds"][kind.name] = {"checksum": kind.knows, **fuzzed(kind.name, n)}
        print(
            f"{kind.name:45}"
            + "".join(
                f"{found.get(key, 0):10}" for key in ("refused", "sound", "changed", "failed")
            ),
            flush=True,
        )
        for seed, what in list(found["failures"].items())[:3]:
            print(f"    seed {seed}: {what}")
    save("fuzz", result)
    if not only:
        publish("fuzz", result["environment"], outcomes(result["kinds"]))
    sys.exit(any(found["failures"] for found in result["kinds"].values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
