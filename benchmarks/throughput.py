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
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torchdiffeq
import torchsde
from _bench import RESULTS, environment, interleaved, publish, ratio, save
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
Function = Callable[[Tensor, Tensor], Tensor]


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


def times_of(seconds: dict[str, list[float]], steps: int, over: str) -> dict[str, float]:
    """Microseconds per step of each case, and its time relative to another one's."""
    row = {
        f"{case} us/step": 1e6 * statistics.median(values) / steps
        for case, values in seconds.items()
    }
    return row | {
        f"{case} / {over}": ratio(seconds, case, over) for case in seconds if case != over
    }


def printed(name: str, row: dict[str, float], bar: str = "", width: int = 28) -> dict[str, float]:
    """The row, printed."""
    print(f"{name:{width}s}", "  ".join(f"{k} {v:.3g}" for k, v in row.items()), bar)
    return row


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
    row = times_of(interleaved(cases, repeats), steps, "bare")
    return printed(name, row, f"  (bar: sdekit / bare <= {bar})")


class Sine:
    """dx = -sin(x) dt + (0.5 + 0.1 sin(x)) dW for both libraries, with its evaluations counted."""

    sde_type = "ito"
    noise_type = "diagonal"

    def __init__(self) -> None:
        self.drifts = 0
        self.diffusions = 0

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        self.drifts += 1
        return -torch.sin(x)

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        self.diffusions += 1
        return 0.5 + 0.1 * torch.sin(x)


def against_torchsde(repeats: int = 15, steps: int = 512) -> dict[str, dict[str, float]]:
    """An equation with diagonal noise at (64, 2): torchsde's solvers and ours, each with its
    default noise; evaluations counted.
    """
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    solvers = {"euler": EulerMaruyama(), "milstein": Milstein(), "srk": SRID2()}
    rows = {}
    for name, solver in solvers.items():
        cases = torchsde_cases(name, solver, x, steps)
        row = times_of(interleaved(cases, repeats), steps, "torchsde")
        counted = Sine()
        torchsde_cases(name, solver, x, steps, counted)["torchsde"]()
        row["torchsde drifts/step"] = counted.drifts / steps
        row["torchsde diffusions/step"] = counted.diffusions / steps
        row["sdekit drifts/step"] = int(cases["sdekit"]().evaluations[0]) / steps
        rows[name] = printed(f"{name} (64, 2)", row)
    return rows


def torchsde_cases(
    name: str, solver: AbstractSolver, x: Tensor, steps: int, sde: Sine | None = None
) -> dict[str, Callable[[], Any]]:
    """One method of torchsde, without and with the size of the steps as a hint to its tree, and
    ours, by `solve` and by `sdeint`.
    """
    sde = sde or Sine()
    ts = torch.tensor([0.0, 1.0])
    theirs = functools.partial(torchsde.sdeint, sde, x, ts, dt=1 / steps, method=name)
    levy = "space-time" if name == "srk" else "none"

    def run_hinted() -> object:
        bm = torchsde.BrownianInterval(
            0.0, 1.0, tuple(x.shape), dt=1 / steps, levy_area_approximation=levy
        )
        return theirs(bm=bm)

    ours = sdekit.SDE(lambda t, x: -torch.sin(x), lambda t, x: 0.5 + 0.1 * torch.sin(x))
    grid = uniform(0.0, 1.0, steps)
    return {
        "torchsde": theirs,
        "torchsde with a hint": run_hinted,
        "sdekit": lambda: solve(ours, x, grid, solver=solver, noise=WhiteNoise(0)),
        "sdeint": functools.partial(sdekit.sdeint, sde, x, ts, dt=1 / steps, method=name),
    }


def paths(repeats: int = 7) -> dict[str, dict[str, float]]:
    """Increments of a Brownian path: torchsde's tree that does not depend on the grid (tolerance
    1e-6) and ours.
    """
    rows = {}
    for shape, steps in itertools.product(((64, 2), (8, 784)), (100, 999)):
        for levy in (False, True):
            seconds = interleaved(path_cases(shape, steps, levy=levy), repeats)
            name = f"path {shape}, {steps} steps, {'W and H' if levy else 'W'}"
            rows[name] = printed(name, times_of(seconds, steps, "torchsde"), width=38)
    return rows


def path_cases(shape: tuple[int, ...], steps: int, *, levy: bool) -> dict[str, Callable[[], None]]:
    """The increments of a path over a known grid, one snapped to coarse ticks, and times of each
    sample.
    """
    x = torch.zeros(shape)
    path = BrownianPath(0)
    grid = uniform(0.0, 1.0, steps)
    times = torch.linspace(0, 1, steps + 1)
    spread = torch.rand(shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def tree() -> None:
        bm = torchsde.BrownianInterval(
            0.0,
            1.0,
            shape,
            halfway_tree=True,
            tol=1e-6,
            levy_area_approximation="space-time" if levy else "none",
        )
        for t0, t1 in pairwise(times):
            bm(t0, t1, return_U=levy)

    def on_grid(ts: list[float]) -> None:
        for _ in path.increments(ts, x, shape[1:], levy=levy):
            pass

    def own_times(starts: Tensor) -> None:
        read = path.reader(x, shape[1:], levy=levy)
        for i in range(steps):
            t = (starts + i / 256) % 1.0
            read(t, (t + 1 / 256).clamp(max=1.0))

    return {
        "torchsde": tree,
        "known grid": functools.partial(on_grid, grid.tolist()),
        "snapped grid": functools.partial(on_grid, path.snap(grid, spare=1).tolist()),
        "dyadic times of each sample": functools.partial(own_times, (256 * spread).floor() / 256),
        "any times of each sample": functools.partial(own_times, spread),
    }


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


def added(x: Tensor, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """x + sum_j w_j k_j."""
    for weight, value in zip(weights, values, strict=False):
        x = torch.add(x, value, alpha=weight) if weight else x
    return x


def dopri5_loop(f: Function, x: Tensor, ends: tuple[float, float], tolerance: float) -> Tensor:
    """The arithmetic of `Dopri5` with a step size per row, from an estimated first one, without any
    check.
    """
    tableau = Dopri5.tableau
    t = torch.full((len(x), 1), ends[0])
    h = torch.full_like(t, math.copysign(tolerance**0.2, ends[1] - ends[0]))
    slope = f(t, x)
    while True:
        remaining = ends[1] - t
        h = torch.where(h.abs() < remaining.abs(), h, remaining)
        increments = [h * slope]
        for c, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
            increments.append(h * f(t + c * h, added(x, row, increments)))
        end = added(x, tableau.b, increments)
        last = f(t + h, end)
        increments.append(h * last)
        error = added(increments[0] * tableau.difference[0], tableau.difference[1:], increments[1:])
        scale = torch.maximum(x.abs(), end.abs()).mul_(tolerance).add_(tolerance)
        q = torch.linalg.vector_norm(error / scale, dim=1, keepdim=True).mul_(x.shape[1] ** -0.5)
        accept = q <= 1
        x = torch.where(accept, end, x)
        slope = torch.where(accept, last, slope)
        t = torch.where(accept, t + h, t)
        h = h * (0.9 * q**-0.2).clamp_(0.2, 10)
        if bool(((ends[1] - t).abs() < 1e-6).all()):
            return x


def flow_on_clock(network: Function) -> Function:
    """The probability flow of `AdaptiveFlow` under VP, for a network of the data, on its clock
    v = log(1 + 5 y / (y + 1)), y = sigma / alpha.
    """
    width = SDE.beta_max - SDE.beta_min

    def flow(v: Tensor, u: Tensor) -> Tensor:
        rise = torch.expm1(v)
        y = rise / (5 - rise)
        b = torch.log1p(y * y)
        t = 2 * b / (SDE.beta_min + torch.sqrt(SDE.beta_min**2 + 2 * width * b))
        a = torch.rsqrt(1 + y * y)
        return -(6 * y + 1) * (y + 1) / (5 * y) * a * (network(u, t[:, 0]) - a * u)

    return flow


def clock(y: float) -> float:
    """v at y."""
    return math.log1p(5 * y / (y + 1))


def adaptive_calls(repeats: int = 15) -> dict[str, dict[str, float]]:
    """Whole calls at (64, 2) over those of torchdiffeq with the same tolerances: `odeint`, and
    `sample(..., method="ode")` over the probability flow written out by hand. And bare loops of
    their arithmetic.
    """
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0.0, 20.0])
    calls = [0]

    def f(t: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        return torch.cos(3 * t) - x

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return torch.tanh(x / (0.05 + t[:, None]))  # as of two modes

    def flow(t: Tensor, x: Tensor) -> Tensor:
        beta = SDE.beta_min + t * (SDE.beta_max - SDE.beta_min)
        b = t * (SDE.beta_min + 0.5 * t * (SDE.beta_max - SDE.beta_min))
        denoised = network(x, t.expand(len(x)))
        return 0.5 * beta * ((torch.exp(-0.5 * b) * denoised - x) / torch.expm1(-b) - x)

    model = ScoreModel(network, SDE, "data", shape=(2,), data_std=1.0)
    alpha, sigma = kernel(1.0)
    on_clock = clock(sigma / alpha), clock(1e-3)
    cases = {
        "odeint": {
            "torchdiffeq": lambda: torchdiffeq.odeint(f, x, ends, rtol=1e-6, atol=1e-6),
            "sdekit": lambda: sdekit.odeint(f, x, ends, rtol=1e-6, atol=1e-6),
            "bare": lambda: dopri5_loop(f, x.reshape(1, -1), (0.0, 20.0), 1e-6),
        },
        "ode": {
            "torchdiffeq": lambda: torchdiffeq.odeint(
                flow, x, torch.tensor([1.0, 1e-3]), rtol=1e-5, atol=1e-5
            ),
            "sdekit": lambda: sample(model, x_T=x, method="ode"),
            "bare": lambda: dopri5_loop(flow_on_clock(network), x, on_clock, 1e-5),
        },
    }
    return {name: over_torchdiffeq(name, runs, calls, repeats) for name, runs in cases.items()}


def over_torchdiffeq(
    name: str, cases: dict[str, Callable[[], Any]], calls: list[int], repeats: int
) -> dict[str, float]:
    """The time of each case relative to torchdiffeq's, and its evaluations."""
    row = {}
    for case, run in cases.items():
        calls[0] = 0
        run()
        row[f"{case} evaluations"] = float(calls[0])
    seconds = interleaved(cases, repeats)
    for case in ("sdekit", "bare"):
        row[f"{case} / torchdiffeq"] = ratio(seconds, case, "torchdiffeq")
    return printed(f"{name} (64, 2)", row)


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


def default_loop(f: Score, x: Tensor, ts: list[float]) -> Tensor:
    """The arithmetic of the default alone under VP, whose numbers are known: a sum of five values,
    and a value of the output and the point of the network.
    """
    weights = (0.5, -0.4, 0.3, -0.2, 0.1)
    values = [x] * 5
    for t in ts[1:]:
        x = added(x, weights, values)
        value = torch.add(f(t, x), x, alpha=-0.05)
        values = [value, *values[:4]]
    return x


# The loop that a method is compared with, its evaluations per step, what the network predicts, and
# a loop of the arithmetic of the method itself, where it is another.
LOOPS = {
    "ddim": (ddim_loop, 1, "data", None),
    "default": (ddim_loop, 1, "data", default_loop),
    "heun": (heun_loop, 2, "noise", None),
    "euler_maruyama": (bare, 1, "score", None),
}


def sampler_overhead(rounds: int = 31) -> dict[str, dict[str, float]]:
    """`sample(ScoreModel(net, ...))` at (64, 2) over bare loops: the time of each beyond that of
    the network's calls, with 50 and with 1,000 evaluations, and the time of a call without its
    steps.

    Each number is computed in every round, from calls of both lengths that follow one another, and
    the median over rounds is reported: the speed of a machine that others use changes from minute
    to minute.
    """
    rows = {}
    for name in LOOPS:
        few, many = (sampler_cases(name, n) for n in (50, 1000))
        sampler_round(few, many)  # the first calls compute what is kept
        found = [sampler_round(few, many) for _ in range(rounds)]
        for part in found[0]:
            each = [row[part] for row in found]
            median = {key: statistics.median(row[key] for row in each) for key in each[0]}
            rows[f"{name}, {part}"] = printed(f"{name} (64, 2), {part}", median)
    return rows


def sampler_round(
    few: dict[str, Callable[[], Any]], many: dict[str, Callable[[], Any]]
) -> dict[str, dict[str, float]]:
    """The numbers of one round, of cases with 50 evaluations and with 1,000, and of a call without
    its steps; of the short calls, the medians of 20.
    """
    seconds = interleaved(few, 20)
    short = {case: statistics.median(values) for case, values in seconds.items()}
    long = {case: timed(run) for case, run in many.items()}
    step = (long["sdekit"] - short["sdekit"]) / 950
    return {
        "50 evaluations": of_round(short, 50),
        "1000 evaluations": of_round(long, 1000),
        "a call without its steps": {"ms": 1e3 * (short["sdekit"] - 50 * step)},
    }


def of_round(seconds: dict[str, float], evaluations: int) -> dict[str, float]:
    """The time of a call and of the arithmetic of its method over the bare loop's, each beyond the
    network's, and their microseconds per evaluation.
    """
    beyond = {case: value - seconds["network"] for case, value in seconds.items()}
    ratios = {
        f"{case} / bare, beyond the network": beyond[case] / beyond["bare"]
        for case in ("sdekit", "arithmetic")
        if case in seconds
    }
    return ratios | {
        f"{case} us/evaluation": 1e6 * seconds[case] / evaluations for case in ("sdekit", "bare")
    }


def timed(run: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def sampler_cases(name: str, evaluations: int) -> dict[str, Callable[[], Any]]:
    """A call of `sample`, the bare loops, and the calls of the network alone."""
    loop, each, predicts, arithmetic = LOOPS[name]
    steps = evaluations // each
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    label = torch.full((64,), 0.5)
    model = ScoreModel(shrinking, SDE, predicts, shape=(2,), data_std=1.0)
    ts = uniform(1.0, 1e-3, steps)
    labels = dict(zip(ts.tolist(), ts.to(torch.float32), strict=True))
    net = lambda t, x: shrinking(x, labels[t].expand(len(x)))  # noqa: E731
    cases = {
        "sdekit": functools.partial(sample, model, 64, method=name, steps=steps, seed=0),
        "bare": functools.partial(loop, net, x, ts.tolist()),
        "network": lambda: [shrinking(x, label) for _ in range(evaluations)],
    }
    if arithmetic is not None:
        cases["arithmetic"] = functools.partial(arithmetic, net, x, ts.tolist())
    return cases


def sampler_mlp_overhead(repeats: int = 31, evaluations: int = 50) -> dict[str, float]:
    """Whole calls of `sample` with a multilayer perceptron at (512, 2) over bare loops with it."""
    torch.manual_seed(0)
    net = nets.MLP(shape=(2,)).eval()
    x = torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, (loop, each, predicts, _) in LOOPS.items():
        steps = evaluations // each
        ts = uniform(1.0, 1e-3, steps)
        labels = dict(zip(ts.tolist(), ts.to(torch.float32), strict=True))
        model = ScoreModel(net, SDE, predicts, shape=(2,), data_std=1.0)
        score = functools.partial(labelled, net, labels)
        cases = {
            "sdekit": functools.partial(sample, model, 512, method=name, steps=steps, seed=0),
            "bare": functools.partial(loop, score, x, ts.tolist()),
        }
        found[name] = ratio(interleaved(cases, repeats), "sdekit", "bare")
    return printed("MLP (512, 2), samplers", found, "  (bar: <= 1.1)")


def labelled(net: torch.nn.Module, labels: dict[float, Tensor], t: float, x: Tensor) -> Tensor:
    """A network at a time of a grid, whose labels are known."""
    return net(x, labels[t].expand(len(x)))


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
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )


def publish_tables(result: dict[str, Any]) -> None:
    """The five tables of docs/benchmarks.md."""
    tables = {
        "overhead": of_loops(result),
        "overhead_samplers": of_samplers(
            result["samplers (64, 2)"],
            result["samplers, MLP (512, 2)"],
            result["samplers (8, 1, 28, 28)"],
        ),
        "overhead_torchsde": of_methods(result["against torchsde"]),
        "overhead_paths": of_paths(result["paths"]),
        "overhead_calls": of_calls(result["adaptive calls"]),
    }
    for name, rows in tables.items():
        publish(name, result["environment"], rows)


def of_loops(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Times over those of the bare loop, and of a solve without a network over the network's."""
    linear = result["linear (64, 2)"]
    network = result["mlp (512, 2)"]
    return [
        {
            "score": "linear (64, 2)",
            "sdekit / loop": linear["sdekit / bare"],
            "fused / loop": linear["fused / bare"],
            "torchsde / loop": linear["torchsde / bare"],
        },
        {
            "score": "MLP (512, 2)",
            "sdekit / loop": network["sdekit / bare"],
            "fused / loop": network["fused / bare"],
        },
        {
            "score": "null network / U-Net (8, 1, 28, 28)",
            "sdekit / loop": result["unet (8, 1, 28, 28)"]["null / network"],
        },
    ]


def of_samplers(
    rows: dict[str, dict[str, float]],
    of_mlp: dict[str, float],
    of_images: dict[str, dict[str, float]],
) -> list[dict[str, Any]]:
    """Times beyond the network over those of a bare loop, of a call without its steps, of whole
    calls with an MLP over those of loops, and with a network that does nothing over those of a
    U-Net.
    """
    return [
        {
            "method": name,
            **{
                f"{n:,} evaluations": rows[f"{name}, {n} evaluations"][
                    "sdekit / bare, beyond the network"
                ]
                for n in (50, 1000)
            },
            "a call, ms": rows[f"{name}, a call without its steps"]["ms"],
            "MLP, all": of_mlp[name],
            "no network / U-Net": of_images[name]["null / network"],
        }
        for name in LOOPS
    ]


def of_methods(rows: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Microseconds per step of torchsde's methods and of ours."""
    return [
        {
            "torchsde's method": name,
            "torchsde": row["torchsde us/step"],
            "with a hint": row["torchsde with a hint us/step"],
            "sdekit": row["sdekit us/step"],
            "sdekit / torchsde": row["sdekit / torchsde"],
            "drifts per step, torchsde": round(row["torchsde drifts/step"]),
            "sdekit's": round(row["sdekit drifts/step"]),
        }
        for name, row in rows.items()
    ]


def of_paths(rows: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Times of 999 increments over those of torchsde's tree, a row for each kind of times."""
    found = {}
    for name, row in rows.items():
        shape, _, levy = name.removeprefix("path ").rpartition(", 999 steps, ")
        for key, value in row.items():
            if shape and key.endswith(" / torchsde"):
                times = key.removesuffix(" / torchsde")
                found.setdefault(times, {"times": times})[f"{levy} at {shape}"] = value
    return list(found.values())


def of_calls(rows: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Times of whole calls with adaptive steps over torchdiffeq's, and of bare loops."""
    names = {"odeint": "odeint", "ode": 'sample(..., method="ode")'}
    return [{"call": f"`{names[name]}`", **row} for name, row in rows.items()]


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
        result["samplers, MLP (512, 2)"] = sampler_mlp_overhead()
        result["samplers (8, 1, 28, 28)"] = sampler_unet_overhead()
        result["against torchsde"] = against_torchsde()
        result["paths"] = paths()
        result["adaptive"] = adaptive_overhead()
        result["adaptive calls"] = adaptive_calls()
    result["memory MB"] = {str(steps): peak_memory(steps) for steps in (100, 1000, 10_000)}
    print("memory growth in MB by steps", result["memory MB"])
    save("throughput", result)
    publish_tables(result)
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
