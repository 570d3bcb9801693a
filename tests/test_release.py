"""What is released: the versions agree, the wheel has the packages and nothing else, and both work
as they are unpacked.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def build(source, target):
    """The wheel and the sdist of a folder, without a package index."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)  # noqa: S603
    return next(target.glob("*.whl")), next(target.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_versions_agree():
    version = PROJECT["version"]
    log = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d{2}-\d{2})$", log, re.M)
    citation = (ROOT / "CITATION.cff").read_text()
    assert released[0][0] == version
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == version
    assert re.search(r'^date-released: "(.*)"$', citation, re.M)[1] == released[0][1]


def test_the_changelog_has_the_sections_of_keep_a_changelog():
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    sections = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert next(line for line in lines if line.startswith("## ")) == "## [Unreleased]"


def test_the_wheel_holds_the_packages_and_nothing_else(built):
    wheel, _ = built
    packed = {name for name in contents(wheel) if ".dist-info/" not in name}
    written = {
        str(path.relative_to(ROOT))
        for package in ("sdekit", "sdekit_diffusion")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == written
    assert {"sdekit/py.typed", "sdekit_diffusion/py.typed"} <= packed
    assert PROJECT["version"] in wheel.name


def test_a_wheel_of_the_unpacked_sdist_is_the_same(built, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    for name in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile"):
        assert (folder / name).exists()
    again, _ = build(folder, tmp_path / "dist")
    assert contents(again) == contents(wheel)


def test_both_packages_run_from_the_wheel_without_a_warning(built, tmp_path):
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(tmp_path)  # noqa: S202
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "smoke.py")]
    settings = {"env": environment, "capture_output": True, "text": True, "cwd": tmp_path}
    ended = subprocess.run(command, **settings)  # noqa: S603
    assert ended.returncode == 0, ended.stderr
    assert f"in {tmp_path}" in ended.stdout


@pytest.mark.skipif(shutil.which("python3.13") is None, reason="there is no python3.13")
def test_the_newest_python_compiles_the_wheel_without_a_warning(built, tmp_path):
    """Whether it runs there, `make release` shows: the packages that it needs are large."""
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(tmp_path)  # noqa: S202
    command = ["python3.13", "-W", "error", "-m", "compileall", "-q", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    assert ended.returncode == 0, ended.stdout + ended.stderr
