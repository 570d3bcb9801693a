"""Gradients through a solve: peak memory and time of plain autograd, checkpoints, the way back, and
the adjoints of sdekit and torchsde.

One equation with an MLP as its drift, by the reversible Heun method, or by the midpoint rule with
the adjoint equation; times are interleaved in one process on one thread, memory is the rise of the
resident set in a process of its own (Linux). The difference is that from the gradient of the steps
by plain autograd, with the same solver on the same path. `python benchmarks/gradient.py`
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
import torchsde
from _bench import environment, interleaved, publish, ratio, save
from torch import Tensor

from sdekit import (
    SDE,
    AbstractGradient,
    AbstractNoise,
    BrownianPath,
    Checkpointed,
    Reversible,
    ReversibleHeun,
    WhiteNoise,
    sdeint,
    sdeint_adjoint,
    solve,
    uniform,
)

STEPS = 256
BATCH = 256
EVENT = 8
WIDTH = 64
PLAIN = "`solve`, plain autograd"
GRADIENTS: dict[str, AbstractGradient | None] = {
    PLAIN: None,
    "`solve`, `Checkpointed()`": Checkpointed(),
    "`solve`, `Reversible()`": Reversible(),
}
# sdeint_adjoint, with the noise that each method can read
ADJOINTS: dict[str, tuple[str, AbstractNoise]] = {
    "`sdeint_adjoint`, `reversible_heun`": ("reversible_heun", WhiteNoise(0)),
    "`sdeint_adjoint`, `midpoint`": ("midpoint", BrownianPath(0, (0.0, 1.0))),
}
THEIRS = "`torchsde.sdeint_adjoint`, `reversible_heun`"


class Equation(torch.nn.Module):
    """dx = (net(x) - x) dt + (0.3 + 0.1 cos x) dW, as torchsde wants it."""

    noise_type = "diagonal"
    sde_type = "stratonovich"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(EVENT, WIDTH), torch.nn.SiLU(), torch.nn.Linear(WIDTH, EVENT)
        )
        self.calls = 0

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x) - x

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        return 0.3 + 0.1 * torch.cos(x)


def ours(equation: Equation, gradient: AbstractGradient | None, steps: int) -> Tensor:
    problem = SDE(equation.f, equation.g, "diagonal", "stratonovich")
    return solve(
        problem,
        start(),
        uniform(0.0, 1.0, steps),
        solver=ReversibleHeun(),
        noise=WhiteNoise(0),
        gradient=gradient,
    ).x


def adjoint(equation: Equation, name: str, steps: int, *, plain: bool = False) -> Tensor:
    """By `sdeint_adjoint`, or with the gradient of the same steps by `sdeint`."""
    method, noise = ADJOINTS[name]
    function = sdeint if plain else sdeint_adjoint
    return function(equation, start(), [0.0, 1.0], bm=noise, dt=1 / steps, method=method)[-1]


def theirs(equation: Equation, steps: int) -> Tensor:
    x = start()
    ts = torch.tensor([0.0, 1.0])
    path = torchsde.BrownianInterval(0.0, 1.0, size=(BATCH, EVENT), entropy=0, dt=1 / steps)
    arguments = {
        "bm": path,
        "dt": 1 / steps,
        "method": "reversible_heun",
        "adjoint_method": "adjoint_reversible_heun",
    }
    return torchsde.sdeint_adjoint(equation, x, ts, **arguments)[-1]


def start() -> Tensor:
    return torch.randn(BATCH, EVENT, generator=torch.Generator().manual_seed(0))


def case(name: str, steps: int) -> Callable[[], tuple[list[Tensor], int]]:
    """The gradients of one solve, and how often the drift was evaluated."""

    def run() -> tuple[list[Tensor], int]:
        equation = Equation()
        if name == THEIRS:
            x = theirs(equation, steps)
        elif name in ADJOINTS:
            x = adjoint(equation, name, steps)
        else:
            x = ours(equation, GRADIENTS[name], steps)
        x.square().mean().backward()
        return [p.grad for p in equation.parameters() if p.grad is not None], equation.calls

    return run


def reference(name: str) -> list[Tensor]:
    """The gradients of the same steps by plain autograd."""
    equation = Equation()
    if name in ADJOINTS:
        x = adjoint(equation, name, STEPS, plain=True)
    else:
        x = ours(equation, None, STEPS)
    return list(torch.autograd.grad(x.square().mean(), list(equation.parameters())))


def peak_memory(name: str, steps: int) -> float:
    """How far the resident set rises, in MB, over what two steps need, in a process of its own."""
    code = f"""
import torch
from gradient import case
torch.set_num_threads(1)

def high_water():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

case({name!r}, 4)()
open("/proc/self/clear_refs", "w").write("5")
before = high_water()
case({name!r}, {steps})()
print(high_water() - before)
"""
    paths = {"PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.abspath(__file__)), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **paths},
    )
    return float(done.stdout)


def main() -> None:
    torch.set_num_threads(1)
    shape = {"steps": STEPS, "batch": BATCH, "event": EVENT, "width": WIDTH}
    found = environment(dtype="float32", seed=0, **shape)
    names = [*GRADIENTS, *ADJOINTS, THEIRS]
    seconds = interleaved({name: case(name, STEPS) for name in names}, 5)
    rows = []
    for name in names:
        gradients, evaluations = case(name, STEPS)()
        row = {
            "gradient": name,
            "evaluations per step": evaluations / STEPS,
            "ms per step": 1e3 * statistics.median(seconds[name]) / STEPS,
            "time / plain": ratio(seconds, name, PLAIN),
            **{f"peak MB, {steps} steps": peak_memory(name, steps) for steps in (STEPS, 4 * STEPS)},
        }
        if name != THEIRS:  # torchsde has a noise of its own
            errors = [
                float((a - b).abs().max() / b.abs().max())
                for a, b in zip(gradients, reference(name), strict=True)
            ]
            row["relative difference"] = max(errors)
        rows.append(
            {
                key: value if key == "gradient" else float(f"{value:.3g}")
                for key, value in row.items()
            }
        )
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    save("gradient", {"environment": found, "rows": rows})
    publish("gradient", found, rows)


if __name__ == "__main__":
    main()
