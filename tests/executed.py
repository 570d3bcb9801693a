"""Which tests execute which lines: recorded once for each test file, in copies of the tree.

As a plugin of pytest (`-p executed`) this file records, or selects tests. Records are kept in
.mutants/ until the packages, the test file or what test files share change.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import coverage
import pytest
from attribution import PACKAGES, ROOT, Lines, sources

CACHE = ROOT / ".mutants"
FOLDERS = (*PACKAGES, "tests", "benchmarks", "docs")
PROCESSES = multiprocessing.get_context("forkserver")  # which imports once what takes long
PROCESSES.set_forkserver_preload(
    "coverage matplotlib.figure pytest scipy.stats sklearn torchdiffeq torchsde".split()
)


# The plugin


class Recorder:
    """Names each test, and each fixture that tests share, as the context of the lines that it
    executes.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.context = ""
        self.tests: dict[str, dict[str, Any]] = {}

    def _switch(self, context: str) -> str:
        before = self.context
        self.context = context
        coverage.Coverage.current().switch_context(context)
        return before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[Any]:
        self._switch(item.nodeid)
        begun = sum(os.times()[:4])
        definitions = [
            definition
            for those in item._fixtureinfo.name2fixturedefs.values()
            for definition in those
        ]
        shared = [
            _fixture(definition) for definition in definitions if definition.scope != "function"
        ]
        self.tests[item.nodeid] = {"shared": shared, "passed": True}
        result = yield
        self.tests[item.nodeid]["seconds"] = sum(os.times()[:4]) - begun
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        if fixturedef.scope == "function":
            return (yield)
        before = self._switch(_fixture(fixturedef))
        try:
            return (yield)
        finally:
            self._switch(before)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests[report.nodeid]["passed"] &= report.passed

    def pytest_sessionfinish(self) -> None:
        self._switch("")
        Path(self.path).write_text(json.dumps(self.tests))


class Selection:
    """Only the tests named in a file, in its order."""

    def __init__(self, path: str) -> None:
        self.rank = {name: i for i, name in enumerate(Path(path).read_text().splitlines())}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.rank),
            key=lambda item: self.rank[item.nodeid],
        )


def _fixture(definition: Any) -> str:
    return f"{definition.baseid}::{definition.argname}"


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest."""
    if path := os.environ.get("EXECUTED_RECORD"):
        config.pluginmanager.register(Recorder(path))
    if path := os.environ.get("EXECUTED_SELECT"):
        config.pluginmanager.register(Selection(path))


# Running tests in a copy of the tree


def copied(folder: Path) -> Path:
    """A copy of the tree, of hard links."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name,
            folder / name,
            copy_function=os.link,
            ignore=shutil.ignore_patterns("__pycache__", "_build"),
        )
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"):
        os.link(path, folder / path.name)
    return folder


def _child(tree: Path, files: list[str], environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(tree)
    with (tree / "output").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    places = [str(tree), str(tree / "tests")]
    sys.path[:0] = places
    # For processes that tests start.
    os.environ |= environment | {"PYTHONPATH": os.pathsep.join(places)}
    recording = coverage.process_startup()  # where the environment names its configuration
    options = [
        "-q",
        "-p",
        "executed",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    status = pytest.main([*options, *([] if recording else ["-x"]), *files])
    if recording:
        recording.stop()
        recording.save()
    sys.stdout.flush()
    sys.exit(int(status))


def run_tests(
    tree: Path, files: list[str], timeout: float | None, **environment: str
) -> tuple[int, str]:
    """Exit status and output of pytest in a copy of the tree; 1 after the timeout."""
    process = PROCESSES.Process(target=_child, args=(tree, files, environment))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return 1, f"FAILED timeout after {timeout:.0f} s"
    return process.exitcode, (tree / "output").read_text(errors="replace")


# Records


def _recorded(tree: Path, file: str, folder: Path) -> None:
    """Runs a test file, writes which of its tests executes which lines, and how long each takes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "coveragerc"
    config.write_text(
        "[run]\n"
        f"data_file = {folder / 'unfinished'}\n"
        f"include = {','.join(str(tree / package / '*') for package in PACKAGES)}\n"
        "parallel = true\nconcurrency = thread, multiprocessing\n"
        "context = ${PYTEST_CURRENT_TEST-}\n"  # that of the test which starts a process of its own
    )
    (tree / "sitecustomize.py").write_text("import coverage\n\ncoverage.process_startup()\n")
    environment = {
        "COVERAGE_PROCESS_START": str(config),
        "EXECUTED_RECORD": str(folder / "tests.json"),
    }
    status, output = run_tests(tree, [file], None, **environment)
    (tree / "sitecustomize.py").unlink()
    if status not in (0, 1, 5) or not (folder / "tests.json").exists():
        raise RuntimeError(f"{file} cannot be recorded:\n{output}")
    coverage.Coverage(config_file=str(config)).combine()
    (folder / "unfinished").rename(folder / "lines")


def _digest(paths: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def recorded(trees: "Queue[Path]", jobs: int) -> "Records":
    """The records of all test files, made where there are none."""
    tools = ("attribution.py", "executed.py", "mutants.py", "test_mutants.py")
    tests = [path for path in sorted((ROOT / "tests").glob("*.py")) if path.name not in tools]
    shared = [path for path in tests if not path.name.startswith("test_")]
    packages = [ROOT / source.path for source in sources()]

    def folder_of(path: Path) -> Path:
        folder = CACHE / f"{path.stem}-{_digest([*packages, *shared, path])}"
        if not (folder / "lines").exists():
            tree = trees.get()
            try:
                _recorded(tree, f"tests/{path.name}", folder)
            finally:
                trees.put(tree)
            print(f"recorded {path.name}", flush=True)
        return folder

    with ThreadPoolExecutor(jobs) as pool:
        return Records(list(pool.map(folder_of, [path for path in tests if path not in shared])))


class Records:
    """Which tests execute a line, and how long they take."""

    def __init__(self, folders: list[Path]) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self._data = []
        self._known: dict[str, dict[int, set[str]]] = {}
        for folder in folders:
            self.tests |= json.loads((folder / "tests.json").read_text())
            self._data.append(coverage.CoverageData(str(folder / "lines")))
            self._data[-1].read()

    def _contexts(self, path: str) -> dict[int, set[str]]:
        """For each line of a file the tests and shared fixtures that execute it."""
        if path not in self._known:
            found: dict[int, set[str]] = {}
            for data in self._data:
                for file in data.measured_files():
                    if file.endswith(f"/{path}"):
                        for line, names in data.contexts_by_lineno(file).items():
                            found.setdefault(line, set()).update(
                                re.sub(r" \(\w+\)$", "", name) for name in names
                            )
            self._known[path] = found
        return self._known[path]

    def executing(self, lines: Lines) -> set[str]:
        """Passing tests that execute one of the lines, themselves or by a fixture that they
        share.
        """
        names = {
            name
            for path, some in lines
            for line in some
            for name in self._contexts(path).get(line, ())
        }
        return {
            name
            for name, test in self.tests.items()
            if test["passed"] and not names.isdisjoint([name, *test["shared"]])
        }

    def at_import(self, lines: Lines) -> bool:
        """Whether one of the lines is executed outside tests: where modules are imported."""
        return any(
            "" in self._contexts(path).get(line, ()) for path, some in lines for line in some
        )

    def naming(self, words: set[str]) -> set[str]:
        """Passing tests of files in which one of the words occurs."""
        files = {name.split("::")[0] for name in self.tests}
        named = {
            file
            for file in files
            if not words.isdisjoint(re.findall(r"\w+", (ROOT / file).read_text()))
        }
        return {
            name
            for name, test in self.tests.items()
            if test["passed"] and name.split("::")[0] in named
        }
