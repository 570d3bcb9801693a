"""Overhead of a fixed-grid solve over the bare loop that a good engineer would write, and memory
against steps.

Ratios are medians of interleaved rounds in one process on one thread.
`python benchmarks/throughput.py`
"""

import functools
import itertools
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import torch
import torchdiffeq
import torchsde
from _bench import RESULTS, environment, interleaved, ratio, save
from matplotlib.figure import Figure
from torch import Tensor

import sdekit
from sdekit import (
    ODE,
    SRID2,
    AbstractSolver,
    BrownianPath,
    Dopri5,
    EulerMaruyama,
    Milstein,
    PIDController,
    ReverseSDE,
    Solution,
    WhiteNoise,
    solve,
    uniform,
)
from sdekit.elementary import Time
from sdekit_diffusion import (
    VPSDE,
    ScoreModel,
    nets,
    sample,
)

SDE = VPSDE()
Score = Callable[[Time, Tensor], Tensor]


def bare(score: Score, x: Tensor, ts: list[float]) -> Tensor:
    """x + f dt + g sqrt(dt) randn for the reverse VP equation."""
    for t0, t1 in pairwise(ts):
        dt = t1 - t0
        beta = SDE.beta_min + t0 * (SDE.beta_max - SDE.beta_min)
        f = -0.5 * beta * x - beta * score(t0, x)
        x = x + f * dt + math.sqrt(beta) * math.sqrt(-dt) * torch.randn_like(x)
    return x


def fused(score: Score, x: Tensor, ts: list[float]) -> Tensor:
    """The same with the fewest passes over memory."""
    for t0, t1 in pairwise(ts):
        dt = t1 - t0
        beta = SDE.beta_min + t0 * (SDE.beta_max - SDE.beta_min)
        x = torch.add(x * (1 - 0.5 * beta * dt), score(t0, x), alpha=-beta * dt)
        x = torch.add(x, torch.randn_like(x), alpha=math.sqrt(-beta * dt))
    return x


def ours(score: Score, x: Tensor, ts: list[float]) -> Tensor:
    return solve(ReverseSDE(SDE, score), x, ts, solver=EulerMaruyama(), noise=WhiteNoise(0)).x


class ForTorchsde(torch.nn.Module):
    """The reverse equation with time flipped, as torchsde needs it."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def f(self, s: Tensor, x: Tensor) -> Tensor:
        beta = SDE.beta_min + (1 - s) * (SDE.beta_max - SDE.beta_min)
        return 0.5 * beta * x + beta * self.score(1 - s, x)

    def g(self, s: Tensor, x: Tensor) -> Tensor:
        return (SDE.beta_min + (1 - s) * (SDE.beta_max - SDE.beta_min)).sqrt().expand_as(x)


def with_torchsde(score: Score, x: Tensor, ts: list[float]) -> Tensor:
    grid = torch.tensor([0.0, 1 - ts[-1]])
    return torchsde.sdeint(
        ForTorchsde(score), x, grid, dt=(1 - ts[-1]) / (len(ts) - 1), method="euler"
    )[-1]


def compare(
    name: str, score: Score, shape: tuple[int, ...], steps: int, repeats: int, bar: float
) -> dict[str, float]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ts = uniform(1.0, 1e-3, steps).tolist()
    cases = {
        "bare": lambda: bare(score, x, ts),
        "fused": lambda: fused(score, x, ts),
        "sdekit": lambda: ours(score, x, ts),
    }
    if steps == 500:  # at 100 steps torchsde refines its tree to rounding width (its issue 109)
        cases["torchsde"] = lambda: with_torchsde(score, x, ts)
    seconds = interleaved(cases, repeats)
    row = {
        f"{case} us/step": 1e6 * statistics.median(values) / steps
        for case, values in seconds.items()
    }
    row |= {f"{case} / bare": ratio(seconds, case, "bare") for case in seconds if case != "bare"}
    print(
        f"{name:28s}",
        "  ".join(f"{k} {v:.2f}" for k, v in row.items()),
        f"  (bar: sdekit / bare <= {bar})",
    )
    return row


def against_torchsde(repeats: int = 15, steps: int = 512) -> dict[str, dict[str, float]]:
    """dx = -sin(x) dt + g dW at (64, 2): its solvers and ours, each with its default noise;
    evaluations counted.
    """
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    counts = [0, 0]

    class Theirs(torch.nn.Module):
        sde_type = "ito"

        def __init__(self, noise_type: str) -> None:
            super().__init__()
            self.noise_type = noise_type

        def f(self, t: Tensor, x: Tensor) -> Tensor:
            counts[0] += 1
            return -torch.sin(x)

        def g(self, t: Tensor, x: Tensor) -> Tensor:
            counts[1] += 1
            return 0.5 + 0.1 * torch.sin(x)

    theirs = Theirs("diagonal")
    ours = sdekit.SDE(lambda t, x: -torch.sin(x), lambda t, x: 0.5 + 0.1 * torch.sin(x))
    ts = torch.tensor([0.0, 1.0])
    grid = uniform(0.0, 1.0, steps)
    solvers = {"euler": EulerMaruyama(), "milstein": Milstein(), "srk": SRID2()}
    rows = {}
    for name, solver in solvers.items():

        def run_theirs(name: str = name) -> Tensor:
            return torchsde.sdeint(theirs, x, ts, dt=1 / steps, method=name)[-1]

        def run_hinted(name: str = name) -> Tensor:
            levy = "space-time" if name == "srk" else "none"
            bm = torchsde.BrownianInterval(
                0.0, 1.0, (64, 2), dt=1 / steps, levy_area_approximation=levy
            )
            return torchsde.sdeint(theirs, x, ts, bm=bm, dt=1 / steps, method=name)[-1]

        def run_ours(solver: AbstractSolver = solver) -> Solution:
            return solve(ours, x, grid, solver=solver, noise=WhiteNoise(0))

        def run_sdeint(name: str = name) -> Tensor:
            return sdekit.sdeint(theirs, x, ts, dt=1 / steps, method=name)[-1]

        cases = {
            "torchsde": run_theirs,
            "torchsde with a hint": run_hinted,
            "sdekit": run_ours,
            "sdeint": run_sdeint,
        }
        seconds = interleaved(cases, repeats)
        counts[:] = 0, 0
        run_theirs()
        row = {
            f"{case} us/step": 1e6 * statistics.median(values) / steps
            for case, values in seconds.items()
        }
        row |= {
            f"{case} / torchsde": ratio(seconds, case, "torchsde")
            for case in cases
            if case != "torchsde"
        }
        row |= {
            "torchsde drifts/step": counts[0] / steps,
            "torchsde diffusions/step": counts[1] / steps,
        }
        row["sdekit drifts/step"] = int(run_ours().evaluations[0]) / steps
        print(f"{name + ' (64, 2)':28s}", "  ".join(f"{k} {v:.3g}" for k, v in row.items()))
        rows[name] = row
    return rows


def paths(repeats: int = 7) -> dict[str, dict[str, float]]:
    """Increments of a Brownian path: torchsde's tree that does not depend on the grid (tolerance
    1e-6) and ours.
    """
    rows = {}
    for shape, steps in itertools.product(((64, 2), (8, 784)), (100, 999)):
        x = torch.zeros(shape)
        path = BrownianPath(0)
        grid = uniform(0.0, 1.0, steps)
        known = grid.tolist()
        times = torch.linspace(0, 1, steps + 1)
        snapped = path.snap(grid, spare=1).tolist()
        spread = torch.rand(
            shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        aligned = (256 * spread).floor() / 256

        def tree(levy: str, shape: tuple[int, ...] = shape, times: Tensor = times) -> None:
            bm = torchsde.BrownianInterval(
                0.0, 1.0, shape, halfway_tree=True, tol=1e-6, levy_area_approximation=levy
            )
            for t0, t1 in pairwise(times):
                bm(t0, t1, return_U=levy != "none")

        def ours(ts: list[float], *, levy: bool, x: Tensor = x, path: BrownianPath = path) -> None:
            for _ in path.increments(ts, x, tuple(x.shape[1:]), levy=levy):
                pass

        def own_times(
            starts: Tensor, *, levy: bool, x: Tensor = x, path: BrownianPath = path, n: int = steps
        ) -> None:
            read = path.reader(x, tuple(x.shape[1:]), levy=levy)
            for i in range(n):
                t = (starts + i / 256) % 1.0
                read(t, (t + 1 / 256).clamp(max=1.0))

        for levy in (False, True):
            cases = {
                "torchsde": functools.partial(tree, "space-time" if levy else "none"),
                "known grid": functools.partial(ours, known, levy=levy),
                "snapped grid": functools.partial(ours, snapped, levy=levy),
                "dyadic times of each sample": functools.partial(own_times, aligned, levy=levy),
                "any times of each sample": functools.partial(own_times, spread, levy=levy),
            }
            seconds = interleaved(cases, repeats)
            row = {
                f"{case} us/step": 1e6 * statistics.median(values) / steps
                for case, values in seconds.items()
            }
            row |= {
                f"{case} / torchsde": ratio(seconds, case, "torchsde")
                for case in cases
                if case != "torchsde"
            }
            name = f"path {shape}, {steps} steps, {'W and H' if levy else 'W'}"
            print(f"{name:38s}", "  ".join(f"{k} {v:.3g}" for k, v in row.items()))
            rows[name] = row
    return rows


def adaptive_overhead(repeats: int = 15) -> dict[str, float]:
    """Time of a dopri5 step beyond its evaluations at (64, 2): torchdiffeq's for all samples
    together, ours for each.
    """
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    calls = [0]

    def f(t: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        return torch.cos(3 * t) - x

    def theirs() -> None:
        torchdiffeq.odeint(f, x, torch.tensor([0.0, 20.0]), rtol=1e-6, atol=1e-6)

    def own() -> None:
        solve(ODE(f), x, [0.0, 20.0], solver=Dopri5(), control=PIDController(1e-6, 1e-6))

    t = torch.tensor(0.3)
    counts = {}
    for name, run in (("torchdiffeq", theirs), ("sdekit", own)):
        calls[0] = 0
        run()
        counts[name] = calls[0]
    bare = {"evaluation": lambda: [f(t, x) for _ in range(600)]}
    seconds = interleaved({"torchdiffeq": theirs, "sdekit": own} | bare, repeats)
    each = statistics.median(seconds["evaluation"]) / 600
    row = {f"{name} evaluations": float(n) for name, n in counts.items()}
    for name, n in counts.items():
        row[f"{name} overhead us/step"] = (
            1e6 * (statistics.median(seconds[name]) - n * each) / (n / 6)
        )
    row["sdekit / torchdiffeq"] = (
        row["sdekit overhead us/step"] / row["torchdiffeq overhead us/step"]
    )
    print(
        f"{'adaptive dopri5 (64, 2)':28s}",
        "  ".join(f"{k} {v:.3g}" for k, v in row.items()),
        "  (bar: <= 0.5)",
    )
    return row


def adaptive_calls(repeats: int = 15) -> dict[str, dict[str, float]]:
    """Whole calls at (64, 2) over those of torchdiffeq with the same tolerances: `odeint`, and
    `sample(..., method="ode")` over the probability flow written out by hand.
    """
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0.0, 20.0])
    calls = [0]

    def f(t: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        return torch.cos(3 * t) - x

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return torch.tanh(x / (0.05 + t[:, None]))  # as of two modes

    def flow(t: Tensor, x: Tensor) -> Tensor:
        beta = SDE.beta_min + t * (SDE.beta_max - SDE.beta_min)
        b = t * (SDE.beta_min + 0.5 * t * (SDE.beta_max - SDE.beta_min))
        denoised = counted(x, t.expand(len(x)))
        return 0.5 * beta * ((torch.exp(-0.5 * b) * denoised - x) / torch.expm1(-b) - x)

    odeint = functools.partial(torchdiffeq.odeint, f, x, ends, rtol=1e-6, atol=1e-6)
    own_odeint = functools.partial(sdekit.odeint, f, x, ends, rtol=1e-6, atol=1e-6)
    span = torch.tensor([1.0, 1e-3])
    theirs = functools.partial(torchdiffeq.odeint, flow, x, span, rtol=1e-5, atol=1e-5)
    model = ScoreModel(counted, SDE, "data", shape=(2,), data_std=1.0)
    own = functools.partial(sample, model, x_T=x, method="ode")
    rows = {}
    for name, cases in {
        "odeint": {"torchdiffeq": odeint, "sdekit": own_odeint},
        "ode": {"torchdiffeq": theirs, "sdekit": own},
    }.items():
        counts = {}
        for case, run in cases.items():
            calls[0] = 0
            run()
            counts[f"{case} evaluations"] = float(calls[0])
        seconds = interleaved(cases, repeats)
        rows[name] = {"sdekit / torchdiffeq": ratio(seconds, "sdekit", "torchdiffeq"), **counts}
        print(f"{name} (64, 2)", "  ".join(f"{k} {v:.3g}" for k, v in rows[name].items()))
    return rows


def shrinking(x: Tensor, t: Tensor) -> Tensor:
    """A network with nothing about it."""
    return 0.9 * x


def kernel(t: float) -> tuple[float, float]:
    """alpha and sigma of VP, inline in a bare loop."""
    b = t * (SDE.beta_min + 0.5 * t * (SDE.beta_max - SDE.beta_min))
    return math.exp(-0.5 * b), math.sqrt(-math.expm1(-b))


def ddim_loop(f: Score, x: Tensor, ts: list[float]) -> Tensor:
    a0, s0 = kernel(ts[0])
    for t0, t1 in pairwise(ts):
        a1, s1 = kernel(t1)
        x = (s1 / s0) * x + (a1 - a0 * s1 / s0) * f(t0, x)
        a0 = a1
        s0 = s1
    return x


def heun_loop(f: Score, x: Tensor, ts: list[float]) -> Tensor:
    """x over alpha, with eps = -sigma score."""
    a0, s0 = kernel(ts[0])
    for t0, t1 in pairwise(ts):
        a1, s1 = kernel(t1)
        dt = s1 / a1 - s0 / a0
        d0 = -s0 * f(t0, a0 * x)
        d1 = -s1 * f(t1, a1 * (x + dt * d0))
        x = x + (d0 + d1) * (0.5 * dt)
        a0 = a1
        s0 = s1
    return x


def sampler_overhead(repeats: int = 31) -> dict[str, dict[str, float]]:
    """`sample(ScoreModel(net, ...))` at (64, 2) over bare loops: the time of each beyond that of
    the network's calls.
    """
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    label = torch.full((64,), 0.5)
    loops = {
        "ddim": (ddim_loop, 1),
        "default": (ddim_loop, 1),
        "heun": (heun_loop, 2),
        "euler_maruyama": (bare, 1),
    }
    predicts = {"ddim": "data", "default": "data", "heun": "noise", "euler_maruyama": "score"}
    rows = {}
    spent = {}
    for (name, (loop, each)), evaluations in itertools.product(loops.items(), (50, 1000)):
        steps = evaluations // each
        model = ScoreModel(shrinking, SDE, predicts[name], shape=(2,), data_std=1.0)
        ts = uniform(1.0, 1e-3, steps)
        labels = dict(zip(ts.tolist(), ts.to(torch.float32), strict=True))
        net = lambda t, x, labels=labels: shrinking(x, labels[t].expand(len(x)))  # noqa: E731
        cases = {
            "sdekit": functools.partial(sample, model, 64, method=name, steps=steps, seed=0),
            "bare": functools.partial(loop, net, x, ts.tolist()),
            "network": lambda n=evaluations: [shrinking(x, label) for _ in range(n)],
        }
        seconds = interleaved(cases, repeats if evaluations < 100 else 7)
        median = {case: statistics.median(values) for case, values in seconds.items()}
        beyond = (median["sdekit"] - median["network"]) / (median["bare"] - median["network"])
        row = {
            "sdekit / bare, beyond the network": beyond,
            "sdekit us/evaluation": 1e6 * median["sdekit"] / evaluations,
        }
        print(
            f"{name} (64, 2), {evaluations} evaluations",
            "  ".join(f"{k} {v:.3g}" for k, v in row.items()),
        )
        rows[f"{name}, {evaluations}"] = row
        spent[name, evaluations] = 1e3 * median["sdekit"]
    for name in loops:
        few, many = (spent[name, evaluations] for evaluations in (50, 1000))
        rows[f"{name}, a call"] = {"ms": few - 50 * (many - few) / 950}
        print(f"{name} (64, 2), a call without its steps: {rows[f'{name}, a call']['ms']:.2f} ms")
    return rows


def sampler_unet_overhead(repeats: int = 9, steps: int = 20) -> dict[str, dict[str, float]]:
    """Samples of a model that does next to nothing over as many evaluations of a U-Net, at (8, 1,
    28, 28).
    """
    torch.manual_seed(0)
    net = nets.UNet().eval()
    x = torch.randn(8, 1, 28, 28)
    label = torch.full((8,), 0.5)
    model = ScoreModel(shrinking, SDE, "data", shape=(1, 28, 28), data_std=1.0)
    names = {"ddim": 1, "default": 1, "heun": 2, "euler_maruyama": 1}
    cases = {
        name: functools.partial(sample, model, 8, method=name, steps=steps // each, seed=0)
        for name, each in names.items()
    }
    seconds = interleaved(
        cases | {"network": lambda: [net(x, label) for _ in range(steps)]}, repeats
    )
    rows = {name: {"null / network": ratio(seconds, name, "network")} for name in names}
    print(
        f"{'U-Net, samplers':28s}",
        "  ".join(f"{k} {v['null / network']:.4g}" for k, v in rows.items()),
        "  (bar: <= 0.03)",
    )
    return rows


def unet_overhead(repeats: int = 9) -> dict[str, float]:
    """A solve with a null network over the network's own time, at (8, 1, 28, 28)."""
    torch.manual_seed(0)
    net = nets.UNet().eval()
    x = torch.randn(8, 1, 28, 28)
    label = torch.full((8,), 0.5)
    steps = 20
    ts = uniform(1.0, 1e-3, steps).tolist()
    seconds = interleaved(
        {
            "null": lambda: ours(lambda t, x: x, x, ts),
            "network": lambda: [net(x, label) for _ in range(steps)],
        },
        repeats,
    )
    row = {
        f"{name} us/step": 1e6 * statistics.median(values) / steps
        for name, values in seconds.items()
    }
    row["null / network"] = ratio(seconds, "null", "network")
    print(
        f"{'U-Net (8, 1, 28, 28)':28s}",
        "  ".join(f"{k} {v:.4g}" for k, v in row.items()),
        "  (bar: <= 0.02)",
    )
    return row


def peak_memory(steps: int) -> float:
    """How far the resident set rises, in MB, during one solve at (8, 1, 28, 28), in a process of
    its own (Linux).
    """
    code = f"""
import torch
from sdekit import *
torch.set_num_threads(1)

def high_water():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

sde = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x), "additive")
x = torch.zeros(8, 1, 28, 28)
solve(sde, x, uniform(0, 1, 2), solver=EulerMaruyama(), noise=WhiteNoise(0))
open("/proc/self/clear_refs", "w").write("5")
before = high_water()
solve(sde, x, uniform(0, 1, {steps}), solver=EulerMaruyama(), noise=WhiteNoise(0))
print(high_water() - before)
"""
    return float(
        subprocess.run(  # noqa: S603
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )


def main() -> None:
    torch.set_num_threads(1)
    result = {"environment": environment(dtype="float32", seed=0)}
    torch.manual_seed(0)
    mlp = torch.nn.Sequential(
        *[
            m
            for i in range(3)
            for m in (torch.nn.Linear(2 if i == 0 else 128, 128), torch.nn.SiLU())
        ][:-1]
    )
    head = torch.nn.Linear(128, 2)
    with torch.no_grad():
        result["linear (64, 2)"] = compare(
            "linear score (64, 2)", lambda t, x: -0.9 * x, (64, 2), 500, 31, 1.5
        )
        result["mlp (512, 2)"] = compare(
            "MLP score (512, 2)", lambda t, x: head(mlp(x)), (512, 2), 100, 31, 1.05
        )
        result["unet (8, 1, 28, 28)"] = unet_overhead()
        result["samplers (64, 2)"] = sampler_overhead()
        result["samplers (8, 1, 28, 28)"] = sampler_unet_overhead()
        result["against torchsde"] = against_torchsde()
        result["paths"] = paths()
        result["adaptive"] = adaptive_overhead()
        result["adaptive calls"] = adaptive_calls()
    result["memory MB"] = {str(steps): peak_memory(steps) for steps in (100, 1000, 10_000)}
    print("memory growth in MB by steps", result["memory MB"])
    save("throughput", result)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    names = ["bare", "fused", "sdekit", "torchsde"]
    axes.bar(
        names,
        [result["linear (64, 2)"][f"{name} us/step"] for name in names],
        color=["0.7", "0.7", "C0", "C3"],
    )
    axes.set_yscale("log")
    axes.set_ylabel("microseconds a step")
    axes.set_title("Euler-Maruyama, linear score, batch (64, 2), one thread")
    figure.savefig(RESULTS / "throughput.png", dpi=120)


if __name__ == "__main__":
    main()
