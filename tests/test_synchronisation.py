"""On a simulated GPU: how often the host would wait for the device, and how many kernels a step
would launch.

The device changes torch for the rest of a process, so all programs run in one process of their own.
Two numbers of steps tell what grows: a wait that a solve makes once does not matter, one that every
step makes leaves a real GPU idle. There the library looks more often than elsewhere whether all is
finite, so that few steps pass several looks.
"""

import contextlib
import functools
import importlib
import io
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import simulated_gpu
import torch

ROOT = Path(__file__).parent.parent
# Waits that a call may make, however many steps it takes: what is set up, and the look at the end.
ONCE = 8
DRAW = 10  # kernels of a step that draw its noise, at most
# Steps and updates between two looks, which are 128 and 50 elsewhere.
LOOKS = {"sdekit._solve.fixed_grid": 16, "sdekit_diffusion._training.loop": 10}

pytestmark = pytest.mark.skipif(
    not simulated_gpu.available(), reason="this torch cannot host a device written in Python"
)


def run_all(programs: dict[str, str], results: Connection) -> None:
    """Runs programs one after the other, the failure of one leaving the others as they are, and
    sends of each whether it ended without an error, and what it printed, or the error.
    """
    sys.path += [str(ROOT / "tests"), str(ROOT / "benchmarks")]
    torch.set_num_threads(1)
    for module, interval in LOOKS.items():
        importlib.import_module(module)._CHECK_INTERVAL = interval
    found = {}
    for name, program in programs.items():
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                exec(program, {"__name__": name})  # noqa: S102
            found[name] = (True, output.getvalue())
        except Exception:
            found[name] = (False, traceback.format_exc())
    results.send(found)
    simulated_gpu.leave()


@functools.cache
def outputs(context: ForkServerContext, names: tuple[str, ...]) -> dict[str, tuple[bool, str]]:
    """What programs sent that ran in one process of their own."""
    receiving, sending = context.Pipe(duplex=False)
    programs = {name: PROGRAMS[name] for name in names}
    process = context.Process(target=run_all, args=(programs, sending))
    process.start()
    sending.close()
    found = receiving.recv()
    process.join()
    assert process.exitcode == 0
    return found


@pytest.fixture
def output(context: ForkServerContext) -> Callable[[str], str]:
    """What a program printed. Those of the benchmark run apart where they find a real GPU."""

    def printed(name: str) -> str:
        apart = torch.cuda.is_available()
        together = [
            other for other in PROGRAMS if not apart or (other in BENCHMARK) == (name in BENCHMARK)
        ]
        right, text = outputs(context, tuple(together))[name]
        assert right, text[-3000:]
        return text

    return printed


def rows(output: Callable[[str], str], *groups: str) -> dict[str, dict]:
    found = [row for group in groups for row in json.loads(output(group))]
    return {row["name"]: row for row in found}


def kernels_per_step(row: dict) -> float:
    (few, many) = row["steps"]
    (first, second) = row["kernels"]
    return (second - first) / (many - few)


def test_waits_do_not_grow_with_the_steps(output):
    least = {"sampling": 28, "solving": 10, "training": 4}
    found = rows(output, *least)
    cases = Counter(row["group"] for row in found.values())
    assert all(cases[group] >= count for group, count in least.items())
    growing = [
        row for row in found.values() if row["waits"][1] > row["waits"][0] or row["waits"][0] > ONCE
    ]
    assert not growing
    assert 0 < kernels_per_step(found["ddim"]) < 10
    # The same equation and solver but for the noise, which hundreds of kernels a step would draw in
    # pieces.
    assert kernels_per_step(found["ddpm"]) < kernels_per_step(found["ddim"]) + DRAW
    assert kernels_per_step(found["ddpm on a path"]) < kernels_per_step(found["ddim"]) + 3 * DRAW


def test_adaptive_solves_wait_once_a_round(output):
    for row in rows(output, "adaptive").values():
        assert row["steps"][1] > row["steps"][0], row
        for rounds, waits in zip(row["steps"], row["waits"], strict=True):
            assert waits <= rounds + ONCE, row


FAILURES = """
import torch
from simulated_gpu import DEVICE, SimulatedGPU
from sdekit import SDE, EulerMaruyama, NotFiniteError, WhiteNoise, solve, uniform
from sdekit_diffusion import Recipe, ScoreModel, fit

ts = uniform(0.0, 3.0, 40)

def equation(step):
    at = float(ts[step])
    drift = lambda t, x: torch.where(abs(t - at) < 1e-9, bad, 0.0) - x
    return SDE(drift, lambda t, x: torch.ones_like(x), "additive")

with SimulatedGPU() as gpu:
    bad = torch.zeros(4, 1)
    bad[2] = torch.nan
    bad = bad.to(DEVICE)
    x = torch.zeros(4, 2).to(DEVICE)
    for step in STEPS:
        try:
            solve(equation(step), x, ts, solver=EulerMaruyama(), noise=WhiteNoise(0))
        except NotFiniteError as error:
            print(error.step, error.samples, error.total)

    torch.manual_seed(0)
    model = ScoreModel(torch.nn.Linear(2, 2), "vp", shape=(2,))
    model.net.forward = lambda x, t: torch.nn.functional.linear(x, model.net.weight, model.net.bias)
    model = model.to(DEVICE)
    recipe = Recipe(steps=1000, batch_size=16, warmup=2)
    gpu.clear()
    try:
        spoilt = lambda rows, u: rows + torch.nan
        fit(model, torch.zeros(64, 2), recipe, transform=spoilt, progress=False)
    except ArithmeticError as error:
        print(error)
    print(len(gpu.waits) < 7)
"""
NAN_AT = [5, 18, 39]  # before the first look, between two, and in the last step


def test_failures_are_named_as_on_the_cpu(output):
    """The state after the step that met NaN; a training run one look later at most, without a wait
    before.
    """
    found = output("failures").splitlines()
    assert found[:3] == [f"{step + 1} [2] 4" for step in NAN_AT]
    assert found[3].startswith("the loss is nan at update 10; lower lr")
    assert found[4] == "True"


TRANSFORMS = """
import torch
from simulated_gpu import DEVICE, SimulatedGPU
from sdekit_diffusion import Recipe, ScoreModel, Training

rows = torch.arange(600.0).reshape(300, 2)
with SimulatedGPU() as gpu:
    constant = torch.tensor([2.0, 4.0]).to(DEVICE)
    for transform in (lambda rows, u: (rows + u) / 2, lambda rows, u: (rows + u) / constant):
        scales = []
        for data in (rows, rows.to(DEVICE)):
            torch.manual_seed(0)
            model = ScoreModel(torch.nn.Linear(2, 2), "vp", shape=(2,))
            model.net.forward = lambda x, t: x * model.net.bias
            model = model.to(DEVICE)
            given = set()
            def seen(rows, u):
                given.add((rows.device, u.device, u.dtype))
                return transform(rows, u)
            next(Training(model, data, Recipe(steps=2, batch_size=16), transform=seen))
            assert given == {(torch.device(DEVICE), torch.device(DEVICE), torch.float64)}, given
            scales.append((model.data_mean.tolist(), model.data_std))
        assert scales[0] == scales[1]
        print(scales[0])
"""


def test_transforms_run_where_the_model_is(output):
    """Already when the mean and the standard deviation of the data are found."""
    found = output("transforms").splitlines()
    assert found[0].startswith("([149.75, 150.25], ")
    assert found[1].startswith("([149.75, 75.125], ")


# The device itself: what it records, and what it refuses.

DEVICE = """
import torch
from simulated_gpu import DEVICE, MixedDevicesError, SimulatedGPU

def waits(case):
    gpu.clear()
    case()
    return len(gpu.waits)

with SimulatedGPU() as gpu:
    x, host, index = torch.arange(4.0).to(DEVICE), torch.arange(4.0), torch.tensor([0, 2])
    there, mask = index.to(DEVICE), x > 1
    assert x.device == torch.device(DEVICE) and (2 * x).device == x.device
    for case in CASES:
        found = waits(eval("lambda: " + case[0]))
        assert found == case[1], (case, found)
    gpu.clear()
    y = x.view(2, 2)[0] * 2 + 1
    assert gpu.kernels == 2, gpu.kernels
    joined = ("torch.cat([x, host])", "torch.stack([x, host])")
    for mixed in ("x + host", "host[there]", "host.add_(x)", "x.numpy()", *joined):
        try:
            eval(mixed)
        except (MixedDevicesError, TypeError):
            continue
        raise AssertionError(mixed)
    w = torch.ones(4, device=DEVICE, requires_grad=True)
    (w * x).sum().backward()
    assert w.grad.tolist() == [0.0, 1.0, 2.0, 3.0]
assert torch.tensor(1.0).device.type == "cpu" and torch.tensor.__module__ != "simulated_gpu"
print("done")
"""
CASES = [
    ("x.sum().item()", 1),
    ("bool(x.sum() > 0)", 1),
    ("x.tolist()", 1),
    ("x.cpu()", 1),
    ("x.nonzero()", 1),
    ("x[mask]", 1),
    ("x.clone().__setitem__(mask, x[:1])", 1),
    ("x.unique()", 1),
    ("torch.where(mask)", 1),
    ("torch.equal(x, x)", 1),
    ("x[:2].repeat_interleave(there)", 1),
    ("x[index]", 1),
    ("host.to(DEVICE)", 1),
    ("torch.tensor([1.0], device=DEVICE)", 1),
    ("torch.as_tensor([1.0], device=DEVICE)", 1),
    ("x.copy_(host)", 1),
    ("host.to(DEVICE, non_blocking=True)", 0),
    ("x.copy_(host, non_blocking=True)", 0),
    ("torch.full((3,), 0.5, device=DEVICE)", 0),
    ("torch.arange(3, device=DEVICE)", 0),
    ("x[there]", 0),
    ("x.index_copy(0, there, x[:2])", 0),
    ("x.repeat_interleave(2)", 0),
    ("torch.where(mask, x, 0.0) + 0.5 * x", 0),
    ("x + torch.tensor(1.0)", 0),
    ("x.double().reshape(2, 2).sum()", 0),
]


def test_the_device_records_what_waits_and_refuses_what_mixes(output):
    assert output("device").strip() == "done"


# Fewer steps than the benchmark takes: a wait that every step makes shows with one more step.
FEWER = {
    "ddpm": (20, 40),  # past one look and past two
    **dict.fromkeys(("default", "sde"), (28, 34)),
    **dict.fromkeys(("reverse_diffusion", "ancestral"), (24, 30)),
    **dict.fromkeys(("BrownianPath, ShARK", "WhiteNoise, ShARK"), (6, 20)),
    "BrownianPath": (3, 6),
    "BrownianPath, small": (20, 40),
    "WhiteNoise, small": (20, 40),
    "fit": (3, 15),  # past a look at the loss
    "fit, likelihood weighting": (3, 5),
    "fit, discrete levels": (3, 5),
    "variational_bound": (5, 10),
    "BrownianPath, Checkpointed": (6, 12),
    "BrownianPath, Reversible": (6, 12),
    "WhiteNoise, Checkpointed": (6, 12),
    "WhiteNoise, Reversible": (6, 12),
}
ROWS = f"""
import json
from dataclasses import asdict, replace
import synchronisation

# Of a hundred moves in each step ten show the same.
synchronisation.METHODS["ncsn"] = replace(synchronisation.METHODS["ncsn"], moves=10)
cases = synchronisation.GROUPS[__name__]
fewer = lambda: ((name, {FEWER}.get(name, sizes), case) for name, sizes, case in cases())
synchronisation.GROUPS[__name__] = fewer
print(json.dumps([asdict(row) for row in synchronisation.rows([__name__])]))
"""
BENCHMARK = ("sampling", "solving", "training", "adaptive")
PROGRAMS = {
    **dict.fromkeys(BENCHMARK, ROWS),
    "failures": f"STEPS = {NAN_AT}\n{FAILURES}",
    "transforms": TRANSFORMS,
    "device": f"CASES = {CASES!r}\n{DEVICE}",
}
