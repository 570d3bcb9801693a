"""Log-likelihoods under probability flows, against closed forms and beside what users would write
without this library.

The points are from Gaussian mixtures, whose log p is known at sigma / alpha = 1e-3, where all
methods start; the exact law at the other end is given to all of them, so that errors are the
methods' own. Beside ours:

- torchdiffeq: (x, log p) as one state in the diffusion's own time, dopri5 or dopri8, with the exact
  trace or with Hutchinson's and probes that are fixed for the solve, as its differential equation
  needs them to be.
- the published procedure (score_sde): SciPy's RK45 at rtol = atol = 1e-5 on the flattened batch and
  log p as one float64 NumPy state, the score in float32, one fixed Rademacher probe for a run, two
  forward passes an evaluation.

Time ratios are medians of interleaved rounds in one process on one thread.
`python benchmarks/likelihood.py`
"""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torchdiffeq
from _bench import RESULTS, environment, interleaved, publish, ratio, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.integrate import solve_ivp
from torch import Tensor

from sdekit import AbstractTrace, Exact, Hutchinson, Likelihood
from sdekit.elementary import Time
from sdekit_diffusion import (
    VESDE,
    VPSDE,
    AbstractDiffusion,
    AbstractModel,
    AdaptiveFlow,
    GaussianMixture,
    ScoreModel,
    SubVPSDE,
    log_likelihood,
    nets,
)

SEED = 0
END = 1e-3  # sigma / alpha of the points
TARGET = 1e-5
SDES: dict[str, AbstractDiffusion] = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
SOLVERS = ("dopri5", "dopri8")


class WithNetwork(AbstractModel):
    """A mixture that also evaluates a network, and adds 0 times its output: the cost of one with a
    known answer.

    Vector-Jacobian products pass through the network as well.
    """

    sde = None

    def __init__(self, mixture: GaussianMixture, width: int, depth: int) -> None:
        self.mixture = mixture
        self.shape = mixture.shape
        self.data_mean = mixture.data_mean
        self.data_std = mixture.data_std
        torch.manual_seed(SEED)
        self.net = (
            nets.MLP(mixture.shape, width, depth)
            .to(mixture.place()[0])
            .requires_grad_(requires_grad=False)
        )
        torch.nn.init.normal_(self.net.last.weight, std=0.1)  # else it begins with zeros

    def place(self) -> tuple[torch.dtype, torch.device]:
        return self.mixture.place()

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        return self.mixture.predict_data(l, u) + self.nothing(l, u)

    def predict_noise(self, l: Time, u: Tensor) -> Tensor:
        return self.mixture.predict_noise(l, u) + self.nothing(l, u)

    def nothing(self, l: Time, u: Tensor) -> Tensor:
        return 0.0 * self.net(u, torch.as_tensor(l, dtype=u.dtype).expand(len(u)))


@dataclass(frozen=True, eq=False)
class Problem:
    """Points, what evaluates the score, and the closed forms at both ends."""

    mixture: GaussianMixture
    kernel: AbstractDiffusion
    x: Tensor
    model: AbstractModel

    @staticmethod
    def of(
        mixture: GaussianMixture,
        sde: str,
        batch: int,
        *,
        dtype: torch.dtype = torch.float64,
        seed: int = 1,
    ) -> "Problem":
        return Problem(mixture, SDES[sde], mixture.sample(batch, seed=seed).to(dtype), mixture)

    @property
    def start(self) -> float:
        return float(self.kernel.time(-math.log(END)))

    @functools.cached_property
    def exact(self) -> Tensor:
        return self.mixture.marginal(self.start, self.kernel).log_prob(self.x.double())

    @functools.cached_property
    def last(self) -> GaussianMixture:
        return self.mixture.marginal(1.0, self.kernel)

    def prior(self, x: Tensor) -> Tensor:
        return self.last.log_prob(x.double())

    def error(self, value: Tensor) -> float:
        """The mean error in nats."""
        return float((value - self.exact).abs().mean())


@dataclass
class Run:
    """log p by estimate, `(estimates, batch)`, and the evaluations of a sample."""

    values: Tensor
    evaluations: float

    @property
    def value(self) -> Tensor:
        return self.values.mean(dim=0)


def ours(problem: Problem, tol: float, trace: AbstractTrace) -> Likelihood:
    """log p_t of the points as those of the others: ours is of x_t / alpha, which is in the scale
    of the data.
    """
    alpha = float(problem.kernel.alpha(problem.start))
    found = log_likelihood(
        problem.model,
        problem.x / alpha,
        sde=problem.kernel,
        log_prior=problem.prior,
        trace=trace,
        end=END / problem.mixture.data_std,  # in units of which it is given
        method=AdaptiveFlow(tol, tol),
    )
    return replace(found, value=found.value - problem.x[0].numel() * math.log(alpha))


def rademacher(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype) * 2 - 1


@dataclass
class CNF:
    """The augmented equation as a user of torchdiffeq would write it; probes None for the exact
    trace.
    """

    problem: Problem
    probes: Tensor | None
    calls: int = field(default=0)

    def __call__(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        kernel = self.problem.kernel
        t = t.clamp(self.problem.start, 1.0)  # torchdiffeq asks for times slightly outside
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            g = torch.as_tensor(kernel.g(t))
            dx = kernel.f(t) * x - 0.5 * g * g * self.problem.model.score(t, x, kernel)
            return dx.detach(), self.trace(dx, x)

    def trace(self, dx: Tensor, x: Tensor) -> Tensor:
        grad = functools.partial(torch.autograd.grad, retain_graph=True)
        if self.probes is None:
            flat = dx.flatten(1)
            columns = [grad(flat[:, i].sum(), x)[0].flatten(1)[:, i] for i in range(flat.shape[1])]
            return torch.stack(columns).sum(dim=0).unsqueeze(1)
        return torch.stack(
            [(grad(dx, x, v)[0] * v).flatten(1).sum(dim=1) for v in self.probes], dim=1
        )


def torchdiffeq_cnf(
    problem: Problem, tol: float, method: str, probes: int = 0, seed: int = 0
) -> Run:
    """The exact trace for probes = 0; else K fixed Rademacher probes, each with a log p of its own
    in the state.
    """
    x = problem.x
    f = CNF(problem, rademacher((probes, *x.shape), seed, x.dtype) if probes else None)
    ts = torch.tensor([problem.start, 1.0], dtype=torch.float64)
    with torch.no_grad():
        end, change = torchdiffeq.odeint(
            f, (x, x.new_zeros(len(x), max(1, probes))), ts, rtol=tol, atol=tol, method=method
        )
        return Run(problem.prior(end[-1]) + change[-1].double().T, f.calls)


def procedure(problem: Problem, seed: int = 0, tol: float = 1e-5) -> Run:
    """score_sde's likelihood of a batch; evaluations are forward passes."""
    x = problem.x.float()
    kernel = problem.kernel
    calls = 0
    probe = rademacher(tuple(x.shape), seed, x.dtype)
    n = len(x)
    shape = x.shape

    def drift(x: Tensor, t: Tensor) -> Tensor:
        g = torch.as_tensor(kernel.g(t))[:, None]
        return torch.as_tensor(kernel.f(t))[:, None] * x - 0.5 * g * g * problem.model.score(
            t, x, kernel
        )

    def f(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 2
        x = torch.from_numpy(state[:-n].reshape(shape)).float()
        times = torch.full((n,), t)
        with torch.no_grad():
            slope = drift(x, times)
        with torch.enable_grad():
            x.requires_grad_()
            (vjp,) = torch.autograd.grad((drift(x, times) * probe).sum(), x)
        return np.concatenate([slope.numpy().reshape(-1), (vjp * probe).sum(dim=1).numpy()], axis=0)

    state = np.concatenate([x.numpy().reshape(-1), np.zeros(n)])
    found = solve_ivp(f, (problem.start, 1.0), state, rtol=tol, atol=tol, method="RK45").y[:, -1]
    value = problem.prior(torch.from_numpy(found[:-n].reshape(shape))) + torch.from_numpy(
        found[-n:]
    )
    return Run(value[None], calls)


def full_mixture(dim: int, components: int = 3) -> GaussianMixture:
    """Full covariances of condition about 10, modes that are apart by a few deviations."""
    generator = torch.Generator().manual_seed(dim)
    means = torch.randn(components, dim, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(
        torch.randn(components, dim, dim, generator=generator, dtype=torch.float64)
    )[0]
    variances = torch.logspace(-2, -1, dim, dtype=torch.float64).expand(components, dim)
    weights = torch.arange(1.0, components + 1)
    return GaussianMixture(
        weights / weights.sum(), means, axes @ torch.diag_embed(variances) @ axes.mT
    )


def wide_mixture(dim: int, dtype: torch.dtype, components: int = 8) -> GaussianMixture:
    """Diagonal covariances; 8 modes, so that on the way J has 7 directions of rank one besides its
    diagonal.
    """
    generator = torch.Generator().manual_seed(dim)
    means = 0.5 * torch.randn(components, dim, generator=generator, dtype=torch.float64)
    variances = 10 ** (-2 + torch.rand(components, dim, generator=generator, dtype=torch.float64))
    return GaussianMixture(
        torch.full((components,), 1 / components), means.to(dtype), variances.to(dtype)
    )


Curve = dict[float, dict[str, float]]  # by tolerance: the mean error in nats, and milliseconds


def tolerance(found: Curve) -> float:
    """Where the error comes down to 1e-5 for good: log error against log tolerance,
    interpolated.
    """
    ladder = sorted(found)  # from the finest
    for fine, coarse in itertools.pairwise(ladder):
        low = found[fine]["error"]
        high = found[coarse]["error"]
        if high > TARGET:
            return fine * (coarse / fine) ** max(0.0, math.log(TARGET / low) / math.log(high / low))
    return ladder[-1]


def curve(run: Callable[[Problem, float], Tensor], batches: list[Problem]) -> Curve:
    """From the finest tolerance up, until the error is three times 1e-5."""
    found: Curve = {}
    for tol in (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4):
        errors = []
        seconds = []
        for problem in batches:
            begin = time.perf_counter()
            errors.append(problem.error(run(problem, tol)))
            seconds.append(time.perf_counter() - begin)
        found[tol] = {"error": statistics.fmean(errors), "ms": 1e3 * statistics.median(seconds)}
        if found[tol]["error"] > 3 * TARGET:
            break
    return found


# log p of the points at a tolerance, with exact traces.
ESTIMATES: dict[str, Callable[[Problem, float], Tensor]] = {
    "ours": lambda p, tol: ours(p, tol, Exact()).value
}
ESTIMATES |= {
    name: lambda p, tol, name=name: torchdiffeq_cnf(p, tol, name).value for name in SOLVERS
}


def equal_accuracy(sde: str, batches: int = 3) -> dict[str, Any]:
    """Times at a mean error of 1e-5 nats: d = 2, batch 64, float64, exact traces.

    Each method has the tolerance at which its error over 3 batches, interpolated, is that, or the
    first of those a fifth less each at which it really is; then all are timed on the first batch.
    """
    mixture = full_mixture(2)
    problems = [Problem.of(mixture, sde, 64, seed=1 + i) for i in range(batches)]
    curves = {name: curve(run, problems) for name, run in ESTIMATES.items()}
    tols = {name: tolerance(found) for name, found in curves.items()}
    row: dict[str, Any] = {"sde": sde, "curves": curves, "tolerance": tols, "error": {}}
    for name, run in ESTIMATES.items():
        while (error := statistics.fmean(p.error(run(p, tols[name])) for p in problems)) > TARGET:
            tols[name] *= 0.8
        row["error"][name] = error
    row["evaluations"] = {
        "ours": float(ours(problems[0], tols["ours"], Exact()).evaluations.double().mean())
    }
    row["evaluations"] |= {
        name: torchdiffeq_cnf(problems[0], tols[name], name).evaluations for name in SOLVERS
    }
    row |= times_at(tols, problems[0])
    print_equal_accuracy(row)
    return row


def times_at(tols: dict[str, float], problem: Problem) -> dict[str, Any]:
    """Milliseconds of each method at its tolerance, and ours over those of the better of
    torchdiffeq's, with the closed-form score and with a network.
    """
    times: dict[str, Any] = {}
    for label, model, rounds in (
        ("closed form", problem.mixture, 9),
        ("network", WithNetwork(problem.mixture, 128, 3), 5),
    ):
        timed = Problem(problem.mixture, problem.kernel, problem.x, model)
        seconds = interleaved(
            {name: functools.partial(run, timed, tols[name]) for name, run in ESTIMATES.items()},
            rounds,
        )
        times[f"{label}, ms"] = {
            name: 1e3 * statistics.median(values) for name, values in seconds.items()
        }
        times[f"{label}, ours / torchdiffeq"] = max(
            ratio(seconds, "ours", name) for name in SOLVERS
        )
    return times


def print_equal_accuracy(row: dict[str, Any]) -> None:
    """A line for each method, then the ratios with their bars."""
    sde = row["sde"]
    for name in ESTIMATES:
        print(
            f"d = 2 {sde:6s} {name:7s} tolerance {row['tolerance'][name]:.1e}  error "
            f"{row['error'][name]:.1e}  "
            f"evaluations {row['evaluations'][name]:5.0f}  closed form "
            f"{row['closed form, ms'][name]:6.1f} ms  with a network "
            f"{row['network, ms'][name]:6.1f} ms"
        )
    print(
        f"d = 2 {sde:6s} ours / the better of torchdiffeq's: closed form "
        f"{row['closed form, ours / torchdiffeq']:.2f} (bar: <= 0.5)  network "
        f"{row['network, ours / torchdiffeq']:.2f} (bar: <= 0.8)",
        flush=True,
    )


def of_ours(problem: Problem, probes: int) -> tuple[Run, float]:
    """At a tolerance of 1e-5, with the root mean square of the standard errors it reports."""
    found = ours(problem, 1e-5, Hutchinson(probes, seed=SEED) if probes else Exact())
    return Run(found.value[None], float(found.evaluations.double().mean())), float(
        found.stderr.square().mean().sqrt()
    )


def of_torchdiffeq(problem: Problem, probes: int) -> tuple[Run, float]:
    """The standard error is one that a user would compute from the estimates."""
    run = torchdiffeq_cnf(problem, 1e-5, "dopri5", probes, SEED)
    return run, float((run.values.var(dim=0) / probes).mean().sqrt()) if probes > 1 else 0.0


def of_procedure(problem: Problem, probes: int) -> tuple[Run, float]:
    return procedure(problem, SEED), math.nan


def cases_at_one_tolerance(dim: int, dtype: torch.dtype, sde: str) -> dict[str, tuple[str, int]]:
    """Methods with their numbers of probes, 0 for exact traces, by label."""
    probes = (4, 16) if dim > 16 else (0, 8)
    cases = [(name, k) for k in probes for name in ("ours", "dopri5") if k < 16 or name == "ours"]
    if dtype == torch.float32:
        cases.append(("procedure", 1))
    # As many products as dimensions: once.
    if dim == 768 and dtype == torch.float64 and sde == "vp":
        cases.append(("ours", 0))
    return {f"{name}, {f'{k} probes' if k else 'exact trace'}": (name, k) for name, k in cases}


def errors_at_one_tolerance(
    problem: Problem, estimate: Callable[[Problem, int], tuple[Run, float]], probes: int
) -> dict[str, float]:
    """Evaluations and errors of one method, and the standard error that it reports."""
    run, stderr = estimate(problem, probes)
    error = run.value - problem.exact
    return {
        "evaluations": run.evaluations,
        "mean error": float(error.abs().mean()),
        "rms error": float(error.square().mean().sqrt()),
        "standard error": stderr,
    }


def at_one_tolerance(dim: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Errors and evaluations of all at a nominal tolerance of 1e-5; times under VP."""
    wide = dim > 16
    rows = []
    mixture = wide_mixture(dim, torch.float64) if wide else full_mixture(dim)
    model = wide_mixture(dim, dtype) if wide else mixture
    methods = {"ours": of_ours, "dopri5": of_torchdiffeq, "procedure": of_procedure}
    for sde, kernel in SDES.items():
        x = mixture.sample(4 if wide else 64, seed=1).to(dtype)
        problem = Problem(mixture, kernel, x, model)
        cases = cases_at_one_tolerance(dim, dtype, sde)
        seconds: dict[str, list[float]] = {}
        if sde == "vp" and (dtype == torch.float32) == wide:
            runs = {
                label: functools.partial(methods[name], problem, k)
                for label, (name, k) in cases.items()
            }
            seconds = interleaved(runs, 5)
        for label, (name, k) in cases.items():
            row: dict[str, Any] = {"d": dim, "dtype": str(dtype)[6:], "sde": sde, "method": label}
            row |= errors_at_one_tolerance(problem, methods[name], k)
            row["ms"] = 1e3 * statistics.median(seconds[label]) if seconds else math.nan
            rows.append(row)
            print(
                f"d = {dim:4d} {row['dtype']} {sde:6s}{label:22s} error: mean "
                f"{row['mean error']:.1e}, "
                f"rms {row['rms error']:.1e}, reported {row['standard error']:.1e}  evaluations "
                f"{row['evaluations']:4.0f}" + (f"  {row['ms']:7.1f} ms" if seconds else ""),
                flush=True,
            )
    return rows


def spread(values: Tensor, points: int) -> float:
    """The standard deviation of runs of the same points, `(runs * points,)`."""
    return float(values.reshape(-1, points).var(dim=0).mean().sqrt())


def repeated_runs(
    sde: str, *, network: bool, points: int = 4, copies: int = 16, probes: int = 4
) -> dict[str, Any]:
    """d = 3072, float32: our time with 4 probes over that of as many runs of the procedure as leave
    the same standard error.

    Standard errors on both sides are the spread of 16 runs of each of 4 points with the closed-form
    score, on which alone they depend; they are known to about a fifth. The procedure's runs are
    made at once, as one larger batch. Also our probes held fixed, for what they alone would give.
    """
    mixture = wide_mixture(3072, torch.float64)
    model = wide_mixture(3072, torch.float32)
    x = mixture.sample(points, seed=1).float()
    many = Problem(mixture, SDES[sde], x.repeat(copies, 1), model)
    kernel = SDES[sde]
    found = ours(many, 1e-5, Hutchinson(probes, seed=SEED))
    fixed = ours(many, 1e-5, Hutchinson(1, seed=SEED, fresh=False))
    single = procedure(many, SEED)
    row: dict[str, Any] = {"sde": sde, "score": "with a network" if network else "closed form"}
    row["standard error"] = {
        "ours": spread(found.value, points),
        "procedure": spread(single.value, points),
    }
    row["standard error"] |= {"ours, one fixed probe": spread(fixed.value, points)}
    row["reported"] = float(found.stderr.square().mean().sqrt())
    row["mean error"] = {"ours": float((found.value - many.exact).mean())}
    row["mean error"] |= {"procedure": float((single.value - many.exact).mean())}
    row["runs"] = (row["standard error"]["procedure"] / row["standard error"]["ours"]) ** 2
    timed = Problem(mixture, kernel, x, WithNetwork(model, 512, 3) if network else model)
    cases: dict[str, Callable[[], object]] = {"procedure": lambda: procedure(timed, SEED)}
    counts = (probes,) if network else (2, 4, 8, 16)
    cases |= {
        f"ours, {k} probes": lambda k=k: ours(timed, 1e-5, Hutchinson(k, seed=SEED)) for k in counts
    }
    seconds = interleaved(cases, 5)
    row["ms"] = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    row["evaluations"] = {
        "ours": float(found.evaluations.double().mean()),
        "procedure": single.evaluations,
    }
    row["time of one"] = ratio(seconds, f"ours, {probes} probes", "procedure")
    row["ratio"] = row["time of one"] / row["runs"]
    errors = row["standard error"]
    means = row["mean error"]
    each = row["time of one"]
    print(
        f"d = 3072 {sde:6s} {row['score']:14s} standard error: 4 probes {errors['ours']:.2f} "
        f"(reported {row['reported']:.2f}), 4 fixed {errors['ours, one fixed probe'] / 2:.2f}, "
        f"one run of the procedure {errors['procedure']:.2f}; as many of its runs "
        f"{row['runs']:.1f}; evaluations {row['evaluations']['ours']:.0f} and "
        f"{single.evaluations:.0f}; time over one run {each:.2f}, over 4 runs "
        f"{each / probes:.2f}, over as many runs {row['ratio']:.3f} (bar: <= 0.4); mean error "
        f"{means['ours']:.2f} and {means['procedure']:.2f}",
        flush=True,
    )
    return row


def cost_of_exact(dims: tuple[int, ...] = (2, 16, 32, 64, 128)) -> list[dict[str, Any]]:
    """Time with exact traces over that with eight probes, a perceptron as the network: up to which
    dimension exact pays.
    """
    rows = []
    for dim in dims:
        torch.manual_seed(SEED)
        model = ScoreModel(
            nets.MLP((dim,), width=256, depth=3),
            "vp",
            "velocity",
            shape=(dim,),
            conditioning="log_snr",
        )
        x = torch.randn(64, dim)
        runs = {
            t: functools.partial(log_likelihood, model, x, trace=t)
            for t in (Exact(), Hutchinson(8))
        }
        seconds = interleaved({type(t).__name__: run for t, run in runs.items()}, 5)
        rows.append({"dim": dim, "exact / 8 probes": ratio(seconds, "Exact", "Hutchinson")})
        print(
            f"d = {dim:4d}  exact trace over eight probes: {rows[-1]['exact / 8 probes']:.2f} of "
            "the time"
        )
    return rows


def draw(result: dict[str, Any]) -> None:
    """Writes likelihood.png: error against time in two dimensions, standard error against time in
    3,072.
    """
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    for axes in panels:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
    for axes, row in zip(panels, result["equal accuracy"], strict=False):
        draw_equal_accuracy(axes, row)
    panels[0].set_ylabel("mean |error| of log p (nats)")
    panels[0].legend(loc="lower left", fontsize=7, frameon=False)
    draw_repeated_runs(panels[3], result["repeated runs"][1])
    figure.savefig(RESULTS / "likelihood.png", dpi=120)


def draw_equal_accuracy(axes: Axes, row: dict[str, Any]) -> None:
    """Draws the error of each method against its time, in two dimensions."""
    for i, (name, found) in enumerate(row["curves"].items()):
        ms = [v["ms"] for v in found.values()]
        errors = [v["error"] for v in found.values()]
        label = name if name == "ours" else f"torchdiffeq, {name}"
        axes.plot(ms, errors, "-o", color=("C0", "C3", "C1")[i], markersize=4, label=label)
    axes.axhline(TARGET, color="0.6", linewidth=1)
    axes.set(
        xlabel="ms for a batch of 64",
        title=f"d = 2, {row['sde']}, exact trace",
        xlim=(20, 3000),
        ylim=(2e-8, 2e-4),
    )


def draw_repeated_runs(axes: Axes, row: dict[str, Any]) -> None:
    """Draws standard errors against time in 3,072 dimensions, by probes and by runs."""
    probes = (2, 4, 8, 16)
    runs = [1, 2, 4, 8, 16, 32, 64]
    own = row["standard error"]["ours"]
    one = row["standard error"]["procedure"]
    axes.plot(
        [row["ms"][f"ours, {k} probes"] for k in probes],
        [own * math.sqrt(4 / k) for k in probes],
        "-o",
        color="C0",
        markersize=4,
        label="ours, 2 to 16 probes",
    )
    axes.plot(
        [n * row["ms"]["procedure"] for n in runs],
        [one / math.sqrt(n) for n in runs],
        "-s",
        color="C2",
        markersize=4,
        label="score_sde, 1 to 64 runs",
    )
    axes.set(
        ylim=(0.09, 11),
        xlim=(30, 30_000),
        xlabel="ms for a batch of 4",
        title=f"d = 3072, {row['sde']}, probes",
    )
    axes.set_ylabel("standard error of log p (nats)")
    axes.legend(fontsize=7, frameon=False)


def in_two_dimensions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations of each method, and our time over that of the better of torchdiffeq's."""
    return [
        {
            "diffusion": row["sde"],
            "evaluations": round(row["evaluations"]["ours"]),
            **{f"{name} of torchdiffeq": row["evaluations"][name] for name in SOLVERS},
            "time ratio, closed-form score": row["closed form, ours / torchdiffeq"],
            "time ratio, with an MLP inside": row["network, ours / torchdiffeq"],
        }
        for row in rows
    ]


def of_probes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Standard errors in 3,072 dimensions, and our time over that of score_sde's procedure."""
    return [
        {
            "diffusion": row["sde"],
            "score": row["score"],
            "standard error, four probes": row["standard error"]["ours"],
            "four fixed probes": row["standard error"]["ours, one fixed probe"] / 2,
            "one run of score_sde": row["standard error"]["procedure"],
            "time over that run": row["time of one"],
            "over runs of equal error": row["ratio"],
        }
        for row in rows
    ]


def main() -> None:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    result: dict[str, Any] = {"environment": environment(dtype="float64 and float32", seed=SEED)}
    result["equal accuracy"] = [equal_accuracy(sde) for sde in SDES]
    result["repeated runs"] = [repeated_runs(sde, network=False) for sde in SDES] + [
        repeated_runs("vp", network=True)
    ]
    pairs = itertools.product((2, 16, 768, 3072), (torch.float64, torch.float32))
    result["one tolerance"] = [row for dim, dtype in pairs for row in at_one_tolerance(dim, dtype)]
    result["cost of exact"] = cost_of_exact()
    result["seconds"] = time.perf_counter() - begin
    print(f"{result['seconds']:.0f} s")
    save("likelihood", result)
    publish("likelihood", result["environment"], in_two_dimensions(result["equal accuracy"]))
    publish("likelihood_probes", result["environment"], of_probes(result["repeated runs"]))
    draw(result)


if __name__ == "__main__":
    main()
