"""torchdiffeq's and torchsde's own tests, with their functions and with sdekit's in their place.

The tests are not in their packages: give the folders of checkouts of the installed versions.
Printed are how many pass, and the calls that sdekit hands to the originals. Tests that look into
the originals' classes, not at their results, fail with any other function: those of torchdiffeq's
adjoint norms.

`python benchmarks/their_tests.py --torchdiffeq DIR --torchsde DIR`, 40 minutes on one thread.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from _bench import environment, save

PARTS = ("api", "event", "gradient", "norm", "odeint")
TESTS = {
    "torchdiffeq": ("tests", [f"{part}_tests.py" for part in PARTS]),
    "torchsde": (".", ["tests/test_sdeint.py", "tests/test_adjoint.py"]),
}


def run(name: str, folder: Path, *, replaced: bool) -> dict[str, object]:
    """The last lines of a run of the tests of a library."""
    where, files = TESTS[name]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    variables = {"SDEKIT_REPLACE": str(int(replaced)), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "_replaced", "-p", "no:cacheprovider", *files],
        cwd=folder / where, env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    failures = re.findall(r"^(?:FAILED|SUBFAILED\S*|SUBFAIL) (.*?)(?: - .*)?$", found.stdout, re.M)
    (last,) = re.findall(r"^.* in \d+.*s.*$", found.stdout, re.M)[-1:]
    handed = "".join(re.findall(r"^calls of sdekit: .*$", found.stdout, re.M))
    print(f"{name}, {'sdekit' if replaced else 'theirs'}: {last}\n  {handed}", flush=True)
    for failure in failures:
        print(f"  failed: {failure[:150]}")
    return {"library": name, "sdekit": replaced, "result": last, "calls": handed}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in TESTS:
        parser.add_argument(f"--{name}", type=Path, help="a checkout, with its tests")
    arguments = parser.parse_args()
    result = environment()
    rows = []
    for name in TESTS:
        folder = getattr(arguments, name)
        if folder is None:
            print(f"{name} is left out: give --{name} DIR")
            continue
        rows += [run(name, folder, replaced=replaced) for replaced in (True, False)]
    save("their_tests", {**result, "rows": rows})


if __name__ == "__main__":
    main()
