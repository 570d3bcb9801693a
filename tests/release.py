"""Builds the wheel and the sdist, installs each in a fresh environment of each Python, and runs
`tests/smoke.py` there with `-W error`.

`python tests/release.py [PYTHON ...]`, by default the Python that runs it. Run by `make release`
with the oldest and the newest Python that are supported. Needs a package index. The files are in
dist/ at the end.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """A command, away from the sources unless said otherwise."""
    print("+", *command, flush=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, cwd=folder, env=environment, check=True)  # noqa: S603


def build() -> list[Path]:
    """The wheel and the sdist, in dist/."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "hatchling", "build", "-d", DIST)
    return sorted(DIST.iterdir())


def check(python: str, package: Path) -> None:
    """Installs a package in a fresh environment, and runs it there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", folder / "venv")
        bin_python = folder / "venv" / "bin" / "python"
        pip = (bin_python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        run(*pip, "install", package, folder=folder)
        run(*pip, "check", folder=folder)
        shutil.copy(ROOT / "tests" / "smoke.py", folder)
        run(bin_python, "-W", "error", folder / "smoke.py", folder=folder)


def main() -> None:
    packages = build()
    for python in sys.argv[1:] or [sys.executable]:
        for package in packages:
            check(python, package)
    print("built and tried:", *packages)


if __name__ == "__main__":
    main()
