"""What makes the host wait for the device, and how many kernels a step launches: each at two
numbers of steps.

Counted by the profiler on a GPU, else on the simulated one of tests/simulated_gpu.py, where nothing
is timed. `python benchmarks/synchronisation.py [--json] [sampling] [solving] [adaptive] [training]`
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _bench import environment, publish
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from simulated_gpu import DEVICE, SimulatedGPU, leave

from sdekit import (
    SDE,
    BrownianPath,
    Checkpointed,
    EulerMaruyama,
    PIDController,
    Reversible,
    ReversibleHeun,
    ShARK,
    WhiteNoise,
    solve,
    uniform,
)
from sdekit_diffusion import (
    DDPM,
    METHODS,
    AbstractModel,
    AdaptiveFlow,
    AdaptiveSDE,
    Inpainted,
    Noised,
    Recipe,
    RePaint,
    ScoreModel,
    fit,
    log_likelihood,
    sample,
    variational_bound,
)

# From a number of steps to that of rounds, where the case chooses its own.
Case = Callable[[int], int | None]

BATCH = 24
SHAPE = (3, 32, 32)
REAL = torch.cuda.is_available()
PLACE = "cuda" if REAL else DEVICE
# Two numbers of steps for each method: some need a number of steps, and others take many moves in
# each.
STEPS = {"ncsn": (2, 3), "ncsnv2": (4, 8), "reverse_diffusion": (24, 36), "ancestral": (24, 36)}
# The last passes two looks at whether x is finite.
STEPS |= {"default": (28, 38), "sde": (28, 38), "ddpm": (20, 260)}
SYNCHRONISING = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
)


@dataclass(frozen=True)
class Row:
    """What a case did at each of two numbers of steps, or of rounds of adaptive steps."""

    group: str
    name: str
    steps: tuple[int, ...]
    waits: tuple[int, ...]
    kernels: tuple[int, ...]
    where: tuple[str, ...]

    @property
    def kernels_per_step(self) -> float:
        return (self.kernels[1] - self.kernels[0]) / max(1, self.steps[1] - self.steps[0])


class Pixelwise(nn.Module):
    """The cheapest network that has weights: one convolution of single pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.1 * self.mix(x)


def model_of(sde: Any = "vp", shape: tuple[int, ...] = SHAPE) -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(Pixelwise(), sde, "noise", shape=shape).to(PLACE)


def sampling() -> Iterator[tuple[str, tuple[int, int], Case]]:
    """Every method on a fixed grid."""
    model = model_of()

    def run(n: int, *, method: Any, of: AbstractModel = model, **more: Any) -> None:
        sample(of, BATCH, method=method, steps=n, seed=0, **more)

    run(1, method="ddim")  # the first call estimates the standard deviation of the data
    for name, method in METHODS.items():
        if not isinstance(method, AdaptiveFlow | AdaptiveSDE):
            yield name, STEPS.get(name, (6, 12)), partial(run, method=name)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[..., 0] = True
    y = torch.ones(SHAPE)
    repaint = RePaint(y, mask, resamplings=2, jump=2)
    yield "repaint", (6, 12), partial(run, method=repaint)
    yield "ddim of known values", (6, 12), partial(run, method="ddim", of=Inpainted(model, y, mask))
    start = Noised(torch.ones(BATCH, *SHAPE), strength=0.5)
    yield "ddim from data", (6, 12), partial(run, method="ddim", start=start)
    yield "ddpm on a path", (6, 18), partial(run, method="ddpm", noise="path")
    yield "ddim, all states", (6, 12), partial(run, method="ddim", save="all", return_solution=True)


def solving() -> Iterator[tuple[str, tuple[int, int], Case]]:
    """`solve` and its gradients on a fixed grid, by both kinds of noise."""
    weight = torch.ones(3, 1, 1).to(PLACE).requires_grad_()
    equation = SDE(
        lambda t, x: -weight * x, lambda t, x: torch.ones_like(x), "additive", "stratonovich"
    )

    def run(n: int, *, x: Tensor, solver: Any, noise: Any, gradient: Any) -> None:
        solution = solve(
            equation, x, uniform(0.0, 1.0, n), solver=solver, noise=noise, gradient=gradient
        )
        solution.x.sum().backward()

    large = torch.ones(BATCH, *SHAPE).to(PLACE)
    small = torch.ones(4, 3, 2, 2).to(PLACE)
    for noise in (WhiteNoise(0), BrownianPath(0)):
        name = type(noise).__name__
        yield (
            name,
            (6, 12),
            partial(run, x=large, solver=EulerMaruyama(), noise=noise, gradient=None),
        )
        yield (
            f"{name}, small",
            (20, 160),
            partial(run, x=small, solver=EulerMaruyama(), noise=noise, gradient=None),
        )
        yield (
            f"{name}, ShARK",
            (6, 50),
            partial(run, x=small, solver=ShARK(), noise=noise, gradient=None),
        )
        for gradient in (Checkpointed(), Reversible()):
            case = partial(run, x=small, solver=ReversibleHeun(), noise=noise, gradient=gradient)
            yield f"{name}, {type(gradient).__name__}", (10, 30), case


def adaptive() -> Iterator[tuple[str, tuple[int, int], Case]]:
    """Adaptive solves, whose first number is the exponent of the tolerance: the counts are those of
    rounds.
    """
    model = model_of(shape=(3, 2, 2))
    x = torch.ones(4, 3, 2, 2).to(PLACE)
    equation = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x), "additive")

    def rounds(solution: Any) -> int:
        return int((solution.accepted + solution.rejected).max())

    def flow(n: int) -> int:
        return rounds(
            sample(model, 4, method=AdaptiveFlow(10.0**-n, 10.0**-n), seed=0, return_solution=True)
        )

    def path(n: int) -> int:
        return rounds(
            sample(model, 4, method=AdaptiveSDE(0.5**n, 0.5**n), seed=0, return_solution=True)
        )

    def outputs(n: int) -> int:
        control = PIDController(10.0**-n, 10.0**-n)
        ts = uniform(0.0, 1.0, 10)
        return rounds(
            solve(
                equation, x, ts, solver=ShARK(), noise=BrownianPath(0), control=control, save="all"
            )
        )

    def likelihood(n: int) -> int:
        solver = AdaptiveFlow(10.0**-n, 10.0**-n)
        found = log_likelihood(model, x, method=solver)
        per_round = 6  # of Dopri5, whose last stage is the first of the next step
        return int(found.evaluations.max()) // per_round

    yield "ode", (2, 4), flow
    yield "adaptive_sde", (1, 2), path
    yield "ShARK, outputs on the way", (1, 2), outputs
    yield "log_likelihood", (2, 4), likelihood


def training() -> Iterator[tuple[str, tuple[int, int], Case]]:
    """Updates of a training run, and the terms of a variational bound."""
    data = torch.zeros(64, 3, 8, 8)
    shape = (3, 8, 8)

    def run(n: int, *, sde: Any, **settings: Any) -> None:
        fit(
            model_of(sde, shape),
            data,
            Recipe(steps=n, batch_size=16, warmup=2, **settings),
            progress=False,
        )

    def bound(n: int) -> None:
        times = uniform(0.01, 1.0, n - 1)
        variational_bound(model_of(shape=shape), torch.zeros(4, *shape).to(PLACE), times=times)

    yield "fit", (5, 55), partial(run, sde="vp")  # past a look at the loss
    yield (
        "fit, likelihood weighting",
        (5, 12),
        partial(run, sde="subvp", weighting="likelihood", flip=True, accumulate=2),
    )
    yield "fit, discrete levels", (5, 12), partial(run, sde=DDPM(), discrete=True)
    yield "variational_bound", (5, 20), bound


GROUPS = {"sampling": sampling, "solving": solving, "adaptive": adaptive, "training": training}


def counted(case: Case, n: int, gpu: SimulatedGPU | None) -> tuple[int, list[str], int]:
    """The steps or rounds of a case, what made the host wait, and the number of kernels."""
    if gpu is not None:
        gpu.clear()
        steps = case(n) or n
        return steps, [f"{wait.kind} ({wait.where})" for wait in gpu.waits], gpu.kernels
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        steps = case(n) or n
    events = list(profile.events() or [])
    waits = [event.name for event in events if event.name in SYNCHRONISING]
    on_device = [event for event in events if event.device_type.name == "CUDA"]
    return steps, waits, sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_device)


def rows(groups: list[str]) -> Iterator[Row]:
    """All cases of some groups, the smaller number of steps first: it includes what is set up
    once.
    """
    with nullcontext() if REAL else SimulatedGPU() as gpu:
        for group in groups:
            for name, sizes, case in GROUPS[group]():
                found = [counted(case, n, gpu) for n in sizes]
                steps, waits, kernels = zip(*found, strict=True)
                common = [f"{count} x {what}" for what, count in Counter(waits[-1]).most_common(4)]
                yield Row(group, name, steps, tuple(map(len, waits)), kernels, tuple(common))


def published(found: list[Row]) -> list[dict[str, Any]]:
    """Of each case the kernels of a step, and how often the host waited in the whole run."""
    return [
        {
            "part": row.group,
            "case": row.name,
            "kernels of a step": row.kernels_per_step,
            "steps": row.steps,
            "reads": row.waits,
        }
        for row in found
    ]


def main() -> None:
    torch.set_num_threads(1)
    asked = [name for name in sys.argv[1:] if name != "--json"] or list(GROUPS)
    if "--json" in sys.argv:
        print(json.dumps([asdict(row) for row in rows(asked)]))
        return
    print(
        f"device: {torch.cuda.get_device_name() if REAL else 'simulated'}; images: "
        f"{(BATCH, *SHAPE)}\n"
    )
    print(f"{'':28s} {'steps':>10s} {'waits':>10s} {'kernels a step':>15s}")
    found = []
    for row in rows(asked):
        found.append(row)
        steps, waits = (" ".join(f"{n:4d}" for n in numbers) for numbers in (row.steps, row.waits))
        print(f"{row.name:28s} {steps:>10s} {waits:>10s} {row.kernels_per_step:15.1f}", flush=True)
    if asked == list(GROUPS):
        publish("synchronisation", environment(dtype="float32", device=PLACE), published(found))


if __name__ == "__main__":
    main()
    leave()
