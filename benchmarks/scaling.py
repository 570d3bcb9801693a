"""What a second process brings on two cores: time of whole commands and of their work, and whether
the numbers are the same.

A network for digits, trained for a little; one process with one thread, one with two, and two with
one each, interleaved. The work is what a command takes beyond one with next to none.
`python benchmarks/scaling.py [sampling] [likelihood] [training]`
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _bench import environment, interleaved, publish, ratio, save

ONE = "1 process"
THREADS = "1 process, 2 threads"
TWO = "2 processes"
LAUNCHES = {ONE: (1, 1), THREADS: (1, 2), TWO: (2, 1)}  # processes, threads of each
REPEATS = 3


def launched(name: str, *arguments: object) -> None:
    """One of the command line's, by torchrun."""
    processes, threads = LAUNCHES[name]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    ended = subprocess.run(
        [*launch, "-m", "--", "sdekit_diffusion", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr)


def compared(
    arguments: tuple[object, ...], least: tuple[object, ...], repeats: int = REPEATS
) -> dict[str, Any]:
    """Seconds of a command and of the same with the least work, and their ratios over one
    process's.

    Arguments:
        arguments: with {} where the name of the launch stands.
        least: options that leave next to no work.
    """

    def case(name: str, label: str, *more: object) -> Callable[[], None]:
        return lambda: launched(name, *(str(a).format(label) for a in arguments), *more)

    starts = {f"start, {name}": case(name, f"start, {name}", *least) for name in LAUNCHES}
    seconds = interleaved({name: case(name, name) for name in LAUNCHES} | starts, repeats)
    work = {
        name: [a - b for a, b in zip(seconds[name], seconds[f"start, {name}"], strict=True)]
        for name in LAUNCHES
    }
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "command over one process's": {name: ratio(seconds, name, ONE) for name in LAUNCHES},
        "work over one process's": {name: ratio(work, name, ONE) for name in LAUNCHES},
    }


def same(files: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Of the results of other launches beside one process's: whether they are bit-identical, and
    how far off.
    """
    return {
        name: {
            "equal": np.array_equal(value, files[ONE]),
            "largest": float(np.abs(value - files[ONE]).max()),
        }
        for name, value in files.items()
    }


def sampling(run: Path) -> dict[str, Any]:
    arguments = ("sample", run, "--n", 1000, "--batch-size", 250, "--out", run / "{}.npy")
    found = compared(arguments, ("--n", 2))
    return found | {
        "samples": same({name: np.load(run / f"{name}.npy").astype(float) for name in LAUNCHES})
    }


def likelihood(run: Path) -> dict[str, Any]:
    options = ("--n", 200, "--batch-size", 50, "--probes", 2, "--tolerance", 1e-3)
    found = compared(
        ("likelihood", run, *options, "--csv", run / "{}.csv"), ("--n", 2, "--batch-size", 1)
    )
    return found | {
        "values": same(
            {name: np.loadtxt(run / f"{name}.csv", delimiter=",", skiprows=1) for name in LAUNCHES}
        )
    }


def training(run: Path) -> dict[str, Any]:
    """Batches of 256; losses by update, which are the same to rounding, and drift apart with it."""
    options = (
        "--data",
        "digits",
        "--steps",
        60,
        "--batch-size",
        256,
        "--log-every",
        1,
        "--overwrite",
    )
    found = compared(("train", run / "{}", *options), ("--steps", 1))
    losses = {
        name: [json.loads(line)["loss"] for line in (run / name / "metrics.jsonl").open()]
        for name in LAUNCHES
    }
    return found | {
        f"losses of {n} updates": same({k: np.array(v[:n]) for k, v in losses.items()})
        for n in (1, 10, 60)
    }


CASES = {"sampling": sampling, "likelihood": likelihood, "training": training}


def published(work: str, found: dict[str, Any]) -> dict[str, Any]:
    """The work's time over that of one process, and the largest difference from its numbers."""
    results = {"sampling": "samples", "likelihood": "values", "training": "losses of 60 updates"}
    return {
        "work": work,
        TWO: found["work over one process's"][TWO],
        THREADS: found["work over one process's"][THREADS],
        "largest difference": found[results[work]][TWO]["largest"],
    }


def main() -> None:
    particulars = environment(repeats=REPEATS, dtype="float32")
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        begun = time.perf_counter()
        launched(THREADS, "train", run, "--data", "digits", "--steps", 100)
        print(f"trained in {time.perf_counter() - begun:.0f} s")
        for name in sys.argv[1:] or CASES:
            result[name] = CASES[name](run)
            print(name, result[name])
            publish("scaling", particulars, [published(name, result[name])], part=name)
    save("scaling", particulars | result)


if __name__ == "__main__":
    main()
