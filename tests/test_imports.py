"""Who may import whom, as the architecture page says, and the lists of public names."""

import ast
import functools
import graphlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sdekit
import sdekit.plot
import sdekit_diffusion
import sdekit_diffusion.plot
from sdekit import AbstractMultistep, AbstractSolver, PIDController, Tableau, _solvers, all_solvers
from sdekit_diffusion import data, metrics, nets

ROOT = Path(__file__).parent.parent

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def table(package):
    """The levels that the architecture page gives the entries of a package's folder."""
    (block,) = re.findall(rf"```text\n{package}\n(.*?)```", PAGE, flags=re.DOTALL)
    rows = [re.fullmatch(r"(\d+)  (\w+) +\w.*", line) for line in block.splitlines()]
    return {row[2]: int(row[1]) for row in rows}


def modules(package):
    """Paths by dotted names, without the package's."""
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts), path


@functools.cache
def imported(path):
    """Modules and names that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(node.module, alias.name) for alias in node.names]
    return found


def edges(package):
    """Pairs of modules of a package, the first of which imports the second."""
    known = {"": "__init__"} | {name: name for name, _ in modules(package)}
    for name, path in modules(package):
        for module, member in imported(path):
            if module == package or module.startswith(package + "."):
                target = module.removeprefix(package).removeprefix(".")
                inner = f"{target}.{member}".removeprefix(".")
                yield name, known[inner if inner in known else target]


PACKAGES = ["sdekit", "sdekit_diffusion"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_entry_is_on_the_architecture_page(package):
    assert set(table(package)) == {name.split(".")[0] for name, _ in modules(package)}


def test_what_the_architecture_page_places_in_a_file_is_there():
    places = re.findall(r"`([\w.]+)`\s+in\s+`([\w/]+\.py)`", PAGE)
    assert len(places) >= 4
    for name, file in places:
        (path,) = [
            p
            for package in PACKAGES
            for p in (ROOT / package).rglob("*.py")
            if p.as_posix().endswith(f"/{file}")
        ]
        last = name.split(".")[-1]
        assert re.search(rf"(def|class) {last}\b", path.read_text()), f"{file} has no {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down(package):
    level = table(package)
    for above, below in edges(package):
        a = above.split(".")[0]
        b = below.split(".")[0]
        assert a == b or level[b] < level[a], (
            f"{package}.{above} imports {package}.{below}, which is not below it"
        )


@pytest.mark.parametrize("package", PACKAGES)
def test_levels_are_as_low_as_they_can_be(package):
    level = table(package)
    below = {name: [-1] for name in level}
    for above, target in edges(package):
        below[above.split(".")[0]].append(
            level[target.split(".")[0]] if above.split(".")[0] != target.split(".")[0] else -1
        )
    assert level == {name: max(levels) + 1 for name, levels in below.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_have_no_cycle(package):
    graph = {}
    for above, below in edges(package):
        graph.setdefault(above, set()).add(below)
    assert list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize(
    ("package", "most", "levels"), [("sdekit", 12, 8), ("sdekit_diffusion", 15, 8)]
)
def test_a_listing_of_the_folder_explains_the_package(package, most, levels):
    """Few entries, few levels, and no two modules of one name."""
    assert (
        len(
            [
                path
                for path in (ROOT / package).iterdir()
                if path.name not in ("py.typed", "__pycache__")
            ]
        )
        <= most
    )
    assert max(table(package).values()) < levels
    names = [name.split(".")[-1].removeprefix("_") for name, _ in modules(package) if "." in name]
    assert sorted(names) == sorted(set(names))


def test_the_numerical_library_knows_nothing_of_its_client():
    for _, path in modules("sdekit"):
        assert not any(module.startswith("sdekit_diffusion") for module, _ in imported(path)), path


def test_the_client_uses_public_names_only():
    for _, path in modules("sdekit_diffusion"):
        for module, member in imported(path):
            if module == "sdekit":
                assert member is None or member in sdekit.__all__, f"{path}: sdekit.{member}"
            elif module.startswith("sdekit."):
                public = ("sdekit.calling", "sdekit.elementary", "sdekit.plot")
                assert module in public, f"{path}: {module}"


def test_networks_import_torch_only():
    for name, path in modules("sdekit_diffusion"):
        if name.startswith("nets"):
            for module, _ in imported(path):
                assert module.split(".")[0] in {
                    "torch",
                    "math",
                    "collections",
                    "typing",
                    "dataclasses",
                    "abc",
                } or module.startswith("sdekit_diffusion.nets"), f"{path}: {module}"


@pytest.mark.parametrize(
    "package", [sdekit, sdekit_diffusion, data, metrics, nets, sdekit_diffusion.plot]
)
def test_public_names_are_those_that_a_package_imports_for_its_users(package):
    """`__all__` has each of them once, and nothing that is not there."""
    found = {
        name
        for module, name in imported(Path(package.__file__))
        if module.startswith("sdekit") and name
    }
    assert {name for name in found & set(vars(package)) if name[0] != "_"} <= set(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)
    assert len(package.__all__) == len(set(package.__all__))


def test_every_registered_solver_is_public():
    registered = {name for name in dir(_solvers) if inspect.isclass(getattr(_solvers, name))}
    assert {
        name for name in registered if issubclass(getattr(_solvers, name), AbstractSolver)
    } <= set(sdekit.__all__)
    kinds = {type(solver) for solver in all_solvers()}
    assert {PIDController, Tableau}.isdisjoint(kinds)
    assert {sdekit.Heun, sdekit.Dopri8, sdekit.UniPC, sdekit.SRA1} < kinds
    assert {type(solver) for solver in all_solvers(AbstractMultistep)} < kinds


def test_data_needs_no_extra():
    """Libraries that read files of others are imported within functions."""
    for name, path in modules("sdekit_diffusion"):
        top = [
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {alias.name for node in top for alias in node.names} | {
            getattr(node, "module", None) for node in top
        }
        roots = {str(found).split(".")[0] for found in names}
        assert not name.startswith("data") or roots.isdisjoint(
            {"datasets", "fsspec", "mlxtend", "PIL", "sklearn"}
        ), path


LATE = """
import sys

import sdekit
import sdekit.plot
import sdekit_diffusion
import sdekit_diffusion.plot

roots = {name.split(".")[0] for name in sys.modules}
late = {"PIL", "datasets", "diffusers", "matplotlib", "scipy", "sklearn"}
late |= {"torchdiffeq", "torchmetrics", "torchsde", "tyro"}
assert roots.isdisjoint(late), roots & late

import torch

y0 = torch.ones(2, 1, dtype=torch.float64)
t = torch.tensor([0.0, 1.0], dtype=torch.float64)

# Imported in inference mode and with another default device, torchdiffeq still has gradients.
with torch.inference_mode(), torch.device("meta"):
    sdekit.odeint(lambda t, y: -y, y0, t, method="implicit_adams")
assert "torchdiffeq" in sys.modules
start = y0.clone().requires_grad_()
adams = {"method": "implicit_adams", "options": {"step_size": 0.01}}
sdekit.odeint(lambda t, y: y * y, start, t / 2, **adams)[-1].sum().backward()
assert torch.allclose(start.grad, torch.full_like(y0, 4.0), rtol=1e-2)

# The originals are found even if the attributes are replaced before the first call.
import torchdiffeq
import torchsde

torchdiffeq.odeint_adjoint = sdekit.odeint_adjoint
torchdiffeq.odeint_event = sdekit.odeint_event
torchsde.sdeint = sdekit.sdeint
equation = sdekit.SDE(lambda t, x: -x, lambda t, x: 0.1 + 0 * x, noise_type="diagonal")
assert torchsde.sdeint(equation, y0, t, adaptive=True).shape == (2, 2, 1)
settings = {"method": "fehlberg2", "adjoint_params": ()}
assert torchdiffeq.odeint_adjoint(lambda t, y: -y, y0, t, **settings).shape == (2, 2, 1)
when, _ = torchdiffeq.odeint_event(
    lambda t, y: -y, y0[0], t[0], event_fn=lambda t, y: y - 0.5, odeint_interface=sdekit.odeint
)
assert abs(when.item() - 0.693147) < 1e-4
assert issubclass(sdekit.interop.TorchsdeBrownian, torchsde.BaseBrownian)
"""


def test_other_libraries_are_loaded_when_first_needed():
    ended = subprocess.run(  # noqa: S603
        [sys.executable, "-c", LATE], capture_output=True, text=True, check=False
    )
    assert not ended.returncode, ended.stderr


@pytest.mark.parametrize(
    "package", [sdekit, sdekit_diffusion, metrics, data, sdekit.plot, sdekit_diffusion.plot]
)
def test_everything_public_is_documented(package):
    for name in package.__all__:
        item = getattr(package, name)
        assert (name.isupper() and isinstance(item, dict)) or (
            item.__doc__ and not item.__doc__.startswith(f"{name}(")
        ), name


def test_both_packages_are_typed():
    assert (ROOT / "sdekit" / "py.typed").exists()
    assert (ROOT / "sdekit_diffusion" / "py.typed").exists()
