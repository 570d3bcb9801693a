"""Builds the wheel and the sdist, installs both in a fresh environment of each Python, one after
the other, and runs `tests/smoke.py` there with `-W error`.

`python tests/release.py [--system] [PYTHON ...]`, by default the Python that runs it. Run by `make
release` with the oldest and the newest Python that are supported. With --system the environments
also see the packages of that Python, such as torch of a Linux distribution. Needs a package index.
The files are in dist/ at the end.
"""

import argparse
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


def conflicts(python: Path, folder: Path) -> dict[str, str]:
    """The requirements of installed packages that are not met, as `pip check` says them, by what
    comes before the version that was found instead.
    """
    command = (python, "-m", "pip", "--disable-pip-version-check", "check")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    print("+", *command, flush=True)
    found = subprocess.run(  # noqa: S603
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    if found.returncode and not found.stdout.strip():
        raise SystemExit(f"pip check failed: {found.stderr}")
    said = found.stdout.splitlines() if found.returncode else []
    return {line.split(", but you have")[0]: line for line in said}


def build() -> list[Path]:
    """The wheel and the sdist, in dist/."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "hatchling", "build", "-d", DIST)
    return sorted(DIST.iterdir())


def check(python: str, packages: list[Path], options: list[str]) -> None:
    """Installs the first package with what it needs in a fresh environment, runs it there, and
    then the others in its place. Conflicts that the packages of the system have among themselves
    are not ours; any other is an error.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", *options, folder / "venv")
        bin_python = folder / "venv" / "bin" / "python"
        pip = (bin_python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        install = (*pip, "install", "--no-compile")
        shutil.copy(ROOT / "tests" / "smoke.py", folder)
        theirs = conflicts(bin_python, folder)
        for package in packages:
            replacing = () if package == packages[0] else ("--force-reinstall", "--no-deps")
            run(*install, *replacing, package, folder=folder)
            found = conflicts(bin_python, folder)
            if ours := [line for what, line in found.items() if what not in theirs]:
                raise SystemExit("\n".join(["pip check after the installation:", *ours]))
            run(bin_python, "-W", "error", folder / "smoke.py", folder=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", action="store_true", help="see the packages of each Python")
    parser.add_argument("python", nargs="*", default=[sys.executable])
    arguments = parser.parse_args()
    options = ["--system-site-packages"] if arguments.system else []
    packages = build()
    for python in arguments.python:
        check(python, packages, options)
    print("built and tried:", *packages)


if __name__ == "__main__":
    main()
