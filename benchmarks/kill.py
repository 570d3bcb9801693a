"""SIGKILL at random moments of commands that torchrun started: each time the same command goes on,
and the end is the same.

Killed are all processes, or torchrun alone, or one of those that it started.
`python benchmarks/kill.py [sampling] [training]`
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import environment, save

import sdekit_diffusion as sd

# Seconds from the start of a command to its kill, uniform up to the longest.
KILLS = 20
SEED = 0
LONGEST = 16.0


def command(processes: int, *arguments: object) -> list[str]:
    """One of the command line's, by torchrun."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    return [*launch, "-m", "--", "sdekit_diffusion", *map(str, arguments)]


def children(parent: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def kill(running: subprocess.Popen[str], rng: np.random.Generator) -> str:
    """Kills some of the processes of a command, waits until none is left, and returns which were
    killed.
    """
    victims = str(rng.choice(["all", "torchrun", "one process"]))
    started = children(running.pid)
    if victims == "one process" and not started:
        victims = "all"
    chosen = {
        "all": [running.pid, *started],
        "torchrun": [running.pid],
        "one process": [int(rng.choice(started or [0]))],
    }
    for process in chosen[victims]:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:  # it had just ended
            continue
    running.communicate()  # until the last that writes on its stdout is gone
    return victims


def survived(
    folder: Path, arguments: tuple[object, ...], out: Path, kills: int, seed: int
) -> dict[str, Any]:
    """Runs a command with --out again and again, killed at random moments, and compares outputs
    with the first, undisturbed.

    What was in the folder of parts before a kill must be in it after the next, not made again.
    """
    rng = np.random.default_rng(seed)
    moments = []
    victims = Counter[str]()
    finished = 0
    parts = Counter[str]()
    subprocess.run(command(1, *arguments, "--out", out), check=True, capture_output=True)
    expected = out.read_bytes()
    known = dict[str, int]()
    out.unlink()
    shards = out.with_name(out.name + ".shards")
    while sum(victims.values()) < kills:
        running = subprocess.Popen(
            command(int(rng.integers(1, 4)), *arguments, "--out", out),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        moment = rng.uniform(0, LONGEST)
        try:
            running.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            victims[kill(running, rng)] += 1
            moments.append(moment)
        if out.exists():
            assert out.read_bytes() == expected
            finished = finished + 1
            known = {}
            out.unlink()
        now = {path.name: path.stat().st_ino for path in shards.glob("*.npz")}
        assert known.items() <= now.items()
        parts["more" if len(now) > len(known) else "none more"] += 1
        known = now
    subprocess.run(command(2, *arguments, "--out", out), check=True, capture_output=True)
    assert out.read_bytes() == expected
    assert [path.name for path in folder.iterdir()] == [out.name]
    return {
        "kills": dict(victims),
        "moments": moments,
        "finished": finished + 1,
        "parts after a run": dict(parts),
    }


def sampling(kills: int = KILLS, seed: int = SEED) -> dict[str, Any]:
    """Samples of a network for digits."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        outputs = Path(folder) / "outputs"
        outputs.mkdir()
        torch.manual_seed(seed)
        net = sd.nets.UNet(channels=1, width=16)
        scale = sd.data.Scale.quantised(17)
        model = sd.ScoreModel(
            net, "subvp", "velocity", shape=(1, 8, 8), conditioning="log_snr", scale=scale
        )
        sd.save(model, run, {"data": {"name": "digits"}})
        arguments = ("sample", run, "--n", 4000, "--batch-size", 25, "--steps", 50)
        return survived(outputs, arguments, outputs / "samples.npy", kills, seed)


def training(kills: int = KILLS, seed: int = SEED) -> dict[str, Any]:
    """Two processes that train a network for digits: weights and lines of metrics against those of
    a run without a break.

    No checkpoint that was there before a kill may be lost by it. A run that came to its end starts
    again.
    """
    rng = np.random.default_rng(seed)
    moments = []
    victims = Counter[str]()
    finished = 0
    reached = []
    options = (
        "--data",
        "digits",
        "--steps",
        200,
        "--batch-size",
        32,
        "--width",
        16,
        "--save-every",
        10,
        "--resume",
    )
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        run = Path(folder) / "run"
        subprocess.run(command(2, "train", whole, *options), check=True, capture_output=True)
        while sum(victims.values()) < kills or finished == 0 or run.exists():
            running = subprocess.Popen(
                command(2, "train", run, *options),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            before = newest(run)
            moment = rng.uniform(0, LONGEST)
            try:
                running.communicate(timeout=moment if sum(victims.values()) < kills else None)
            except subprocess.TimeoutExpired:
                victims[kill(running, rng)] += 1
                moments.append(moment)
            assert newest(run) >= before
            reached.append(newest(run))
            if (run / "config.json").exists():
                assert written(run) == written(whole)
                finished += 1
                shutil.rmtree(run)
    return {
        "kills": dict(victims),
        "moments": moments,
        "finished": finished,
        "newest checkpoint after a run": reached,
    }


def newest(run: Path) -> int:
    """The update of the newest checkpoint, 0 where there is none."""
    return max((int(path.parent.name) for path in run.glob("checkpoints/*/config.json")), default=0)


def written(run: Path) -> tuple[list[str], list[dict[str, float]]]:
    """The names of a run's weights and states, which are checksums of their content, and its lines
    but for the seconds.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*.safetensors"))
    return names, [
        {name: value for name, value in line.items() if name != "seconds"} for line in lines
    ]


CASES = {"sampling": sampling, "training": training}


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    result = environment(kills=KILLS, seed=SEED)
    for name in sys.argv[1:] or CASES:
        begun = time.perf_counter()
        result[name] = CASES[name]()
        print(name, result[name], f"{time.perf_counter() - begun:.0f} s: all bit-identical")
    save("kill", result)


if __name__ == "__main__":
    main()
