"""Time that importing both packages adds to importing torch, as a ratio to torch's own import.

Two measurements, in fresh interpreters: within one, torch first and then the packages; and of whole
interpreters, with torch alone and with all three, interleaved.
`python benchmarks/imports.py [ROUNDS]`
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from _bench import environment, interleaved, publish, save

ROUNDS = 7
PACKAGES = "import sdekit, sdekit_diffusion"
WITHIN = f"""
import json, sys, time
def measured(statement):
    wall, processor = time.perf_counter(), time.process_time()
    exec(statement)
    return time.perf_counter() - wall, time.process_time() - processor
torch = measured("import torch")
before = set(sys.modules)
packages = measured({PACKAGES!r})
others = {{name.split(".")[0] for name in set(sys.modules) - before}}
others -= {{"sdekit", "sdekit_diffusion"}}
others = sorted(others - sys.stdlib_module_names)
print(json.dumps({{"torch": torch, "packages": packages, "others": others}}))
"""


def interpreter(program: str) -> str:
    """What a fresh interpreter prints. It may store compiled modules, as an installation does."""
    command = [sys.executable, "-c", program]
    compiled = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=compiled)
    return ended.stdout


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    particulars = environment(rounds=rounds, dtype="float32")
    programs = {"nothing": "", "torch": "import torch", "all": f"import torch; {PACKAGES}"}
    cases: dict[str, Callable[[], object]] = {
        name: partial(interpreter, text) for name, text in programs.items()
    }
    within = []
    cases["within"] = lambda: within.append(json.loads(interpreter(WITHIN)))
    seconds = interleaved(cases, rounds)
    triples = zip(seconds["nothing"], seconds["torch"], seconds["all"], strict=True)
    whole = [(together - torch) / (torch - nothing) for nothing, torch, together in triples]
    within = within[1:]  # the first round compiles
    ratios = [[a / b for a, b in zip(one["packages"], one["torch"], strict=True)] for one in within]
    result: dict[str, Any] = {
        "seconds of torch": statistics.median(one["torch"][0] for one in within),
        "seconds of both packages": statistics.median(one["packages"][0] for one in within),
        "ratio within one interpreter": statistics.median(wall for wall, _ in ratios),
        "ratio of processor time": statistics.median(processor for _, processor in ratios),
        "ratio of whole interpreters": statistics.median(whole),
        "libraries loaded besides torch's": within[0]["others"],
    }
    shown = {name: value for name, value in result.items() if name.startswith(("ratio", "seconds"))}
    print(json.dumps(shown))
    print(f"libraries loaded besides torch's: {', '.join(within[0]['others']) or 'none'}")
    save("imports", particulars | result)
    publish("imports", particulars, [shown])


if __name__ == "__main__":
    main()
