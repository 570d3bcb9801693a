"""Samplers side by side on Gaussian mixtures with the exact score: error of x(end), and laws
against their sampling floor.

Deterministic samplers start from the same x_T and are compared with the probability flow solved to
1e-12, at 5 to 100 evaluations. The error of a sample is the root mean square over its
coordinates. Of these are printed the mean over samples, which is the strong error of Kloeden and
Platen, E|x_N - x|; the root mean square, in which one sample in ten thousand that ends in another
mode outweighs all others; the same over those that end in the mode where they should; and the
median. Ours is the default, on its focused grid. The others are the samplers of diffusers (its own
schedulers' steps, where it is installed), those of k-diffusion (by our rules with its weights,
which tests/test_peers.py finds equal to its formulas) and torchdiffeq's fixed-grid methods in the
diffusion's time, each on four grids: that of Karras et al., uniform in log-SNR, uniform in time and
quadratic in time. "best" is the best of all these by each measure at each number of evaluations, so
no single one of them does as well. Of several seeds of x_T the ratios of the default's error to it
are averaged, those of the means and those of the medians.

Stochastic samplers draw 20,000 samples with 25 evaluations and 200,000 with 50 (in 3,072 dimensions
1,000 with 25) and are compared with the closed-form law: mode weights, means and covariances of
each mode in standard errors, and the sliced Wasserstein distance to exact samples. The floor is
what exact samples stay below, under all seeds, with a probability of 95 %; the largest figures of
the seeds are also printed in units of it. The mixtures are none of those on which anything was
chosen.

    python benchmarks/samplers.py [--only deterministic|stochastic] [--mixtures FIRST]
        [--problems "d = 8" digits ...] [--samples N] [--budgets 5 8 10] [--seeds 0 1 2]
        [--sdes vp]

Each problem is a part of the table on the page: one that is run replaces no other. So is each
problem with another number of samples, of the stochastic ones, which shows a smaller bias.
"""

import argparse
import functools
import importlib
import importlib.util
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torchdiffeq
import torchsde
from _bench import RESULTS, environment, publish, save, words
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from sdekit import DEIS, SRA1, AdamsBashforth, Dopri8, DPMSolver, DPMSolverSingle, Heun, UniPC
from sdekit_diffusion import (
    EDMSDE,
    METHODS,
    VESDE,
    VPSDE,
    AbstractDiffusion,
    AbstractGrid,
    AbstractMethod,
    AdaptiveFlow,
    GaussianMixture,
    InTime,
    Karras,
    OnClock,
    Quadratic,
    SubVPSDE,
    UniformInLogSNR,
    UniformInTime,
    sample,
)
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion.metrics import modes, sliced_wasserstein

SDES: dict[str, AbstractDiffusion] = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
BUDGETS = [5, 8, 10, 15, 20, 50, 100]
END = 1e-3
SEED = 1
GRIDS: dict[str, AbstractGrid] = {
    "karras": Karras(),
    "log-SNR": UniformInLogSNR(),
    "time": UniformInTime(),
    "quadratic": Quadratic(),
}
MEASURES = ("mean", "rms", "within mode", "median")
Run = Callable[[int], Tensor]  # from a number of evaluations to x at the end
Rows = dict[str, list[dict[str, Any]]]  # by the name of a table


def mixture(
    seed: int, d: int, k: int, low: float, high: float, *, full: bool = False, spread: float = 1.0
) -> GaussianMixture:
    """k modes with means N(0, spread^2 I), centred, and deviations from low to high, the same in
    all directions unless full.
    """
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(k, d, generator=draw).double() * spread
    weights = 0.3 + torch.rand(k, generator=draw).double()
    weights = weights / weights.sum()
    means = means - weights @ means
    if not full:
        return GaussianMixture(
            weights, means, (low * (high / low) ** torch.rand(k, generator=draw).double()).square()
        )
    axes = torch.linalg.qr(torch.randn(k, d, d, generator=draw).double()).Q
    deviations = low * (high / low) ** torch.rand(k, d, generator=draw).double()
    return GaussianMixture(weights, means, axes @ torch.diag_embed(deviations.square()) @ axes.mT)


def digits() -> GaussianMixture:
    """A mode of standard deviation 0.1 at each of scikit-learn's digits, in [-1, 1]."""
    images = torch.from_numpy(load_digits(return_X_y=True)[0]) / 8 - 1
    weights = torch.full((len(images),), 1 / len(images), dtype=torch.float64)
    return GaussianMixture(weights, images, torch.full_like(weights, 0.01))


def mixtures(first: int) -> dict[str, GaussianMixture]:
    """Those that each seed draws; the eigenvalues of "eigenvalues" are from 1e-4 to 10."""
    return {
        "d = 2, narrow": mixture(first, 2, 6, 0.03, 0.1),
        "d = 16, full": mixture(first + 1, 16, 5, 0.03, 0.5, full=True),
        "d = 3072": mixture(first + 2, 3072, 5, 0.05, 0.3, spread=0.5),
        "d = 8": mixture(first + 3, 8, 5, 0.05, 0.3),
        "d = 32, eigenvalues": mixture(first + 4, 32, 5, 1e-2, math.sqrt(10), full=True),
        "d = 8, narrow": mixture(first + 5, 8, 6, 0.03, 0.1),
    }


FIRST = 601  # the seed of the first mixture
MIXTURES = mixtures(FIRST) | {"digits": digits()}
SAMPLES = {  # of the deterministic samplers
    "d = 2, narrow": 20_000,
    "d = 16, full": 20_000,
    "d = 3072": 32,
    "d = 8": 20_000,
    "d = 32, eigenvalues": 5_000,
    "digits": 300,
}


@dataclass(frozen=True)
class Start:
    """Where all samplers start: states x at l = log(alpha / sigma) = span[0], to be brought to
    span[1], and the seed of x and of further noise.
    """

    model: GaussianMixture
    sde: AbstractDiffusion
    x: Tensor
    span: tuple[float, float]
    seed: int

    @property
    def coordinates(self) -> Coordinates:
        return Coordinates.of(self.model, self.sde)

    def points(self, grid: AbstractGrid, steps: int) -> Tensor:
        """l at the ends of the steps of a grid."""
        shift = math.log(self.model.data_std)
        return (
            grid.points(self.coordinates, (self.span[0] + shift, self.span[1] + shift), steps)
            - shift
        )

    def over_alpha(self, x: Tensor) -> Tensor:
        """x_t at the end over alpha there, which is what `sample` returns."""
        return x / float(self.sde.alpha(float(self.sde.time(self.span[1]))))

    def law(self) -> GaussianMixture:
        """The exact law of x_t / alpha at the end."""
        return self.model.marginal(math.exp(-self.span[1]), EDMSDE())

    def sampled(self, method: AbstractMethod) -> Tensor:
        """x_t / alpha at the end, by the call that users make."""
        end = math.exp(-self.span[1]) / self.model.data_std
        settings = {"x_T": self.x, "sde": self.sde, "method": method, "end": end}
        return sample(self.model, **settings, seed=self.seed, dtype=torch.float64)


def start(law: GaussianMixture, sde: AbstractDiffusion, n: int, seed: int = SEED) -> Start:
    coordinates = Coordinates.of(law, sde)
    shift = math.log(law.data_std)
    low, high = coordinates.span(law, END)
    x = sde.prior((n, *law.shape), seed=seed, t=float(coordinates.time(low)), dtype=torch.float64)
    return Start(law, sde, x, (low - shift, high - shift), seed)


def by(method: AbstractMethod, down: Start, each: int = 1) -> Run:
    """A method with as many steps as a number of evaluations allows."""
    return lambda evaluations: down.sampled(replace(method, steps=evaluations // each))


# Others


K_DIFFUSION: dict[str, tuple[AbstractMethod, int]] = {
    "dpmpp_2m": (OnClock(DPMSolver(2)), 1),
    "lms": (OnClock(DEIS(4, "rho"), integrand="noise"), 1),
    "heun": (OnClock(Heun(), integrand="noise"), 2),
    "dpm_2": (OnClock(DPMSolverSingle(2), integrand="noise"), 2),
    "dpmpp_2s": (OnClock(DPMSolverSingle(2)), 2),
}
PUBLISHED: dict[str, tuple[AbstractMethod, int]] = {
    "DDIM": (OnClock(AdamsBashforth(1)), 1),
    "DPM-Solver++(3M)": (OnClock(DPMSolver(3, lower_final=True)), 1),
    "UniPC-2": (OnClock(UniPC(2, lower_final=True)), 1),
    "UniPC-3": (OnClock(UniPC(3, lower_final=True)), 1),
    "tAB-DEIS-3": (OnClock(DEIS(3, lower_final=True), integrand="noise"), 1),
}
DIFFUSERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "DPMSolverMultistep 2": (
        "dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        {"solver_order": 2},
    ),
    "DPMSolverMultistep 3": (
        "dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        {"solver_order": 3},
    ),
    "UniPCMultistep 2": ("unipc_multistep", "UniPCMultistepScheduler", {"solver_order": 2}),
    "UniPCMultistep 3": ("unipc_multistep", "UniPCMultistepScheduler", {"solver_order": 3}),
    "DEISMultistep 3": ("deis_multistep", "DEISMultistepScheduler", {"solver_order": 3}),
}


class Wide:
    """torch for diffusers, whose schedulers compute in float32 wherever the sample comes from."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def with_diffusers(
    down: Start, module: str, name: str, options: dict[str, Any], grid: AbstractGrid
) -> Run:
    """The steps and the order control of one of its schedulers, in float64; x over sqrt(alpha^2 +
    sigma^2), as it has it.
    """
    source = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
    source.__dict__["torch"] = Wide()
    final = {} if "deis" in module else {"final_sigmas_type": "sigma_min"}

    def run(steps: int) -> Tensor:
        l = down.points(grid, steps)
        t = torch.as_tensor(down.sde.time(l)).tolist()
        alpha, sigma = ([float(f(s)) for s in t] for f in (down.sde.alpha, down.sde.sigma))
        size = [math.hypot(a, s) for a, s in zip(alpha, sigma, strict=True)]
        scheduler = getattr(source, name)(prediction_type="epsilon", **options, **final)
        scheduler.set_timesteps(steps)
        scheduler.sigmas = l.neg().exp()
        scheduler.set_begin_index(0)
        x = down.x / size[0]
        for i, step in enumerate(scheduler.timesteps[:steps]):
            eps = -sigma[i] * down.model.score(t[i], x * size[i], down.sde)
            x = scheduler.step(eps, step, x).prev_sample
        return down.over_alpha(x * size[-1])

    return run


def with_torchdiffeq(down: Start, method: str, each: int, grid: AbstractGrid) -> Run:
    t0, t1 = (float(down.sde.time(l)) for l in down.span)

    def slope(t: Tensor, x: Tensor) -> Tensor:
        at = min(max(float(t), t1), t0)
        return down.sde.drift(at, x) - 0.5 * float(down.sde.g(at)) ** 2 * down.model.score(
            at, x, down.sde
        )

    def run(evaluations: int) -> Tensor:
        ts = torch.as_tensor(down.sde.time(down.points(grid, evaluations // each)))
        states = cast(Tensor, torchdiffeq.odeint(slope, down.x, ts, method=method))
        return down.over_alpha(states[-1])

    return run


def others(down: Start) -> Iterator[tuple[str, Run]]:
    for name, grid in GRIDS.items():
        for who, table in (("k-diffusion", K_DIFFUSION), ("published", PUBLISHED)):
            yield from (
                (f"{who} {kind}, {name}", by(replace(m, grid=grid), down, each))
                for kind, (m, each) in table.items()
            )
        if importlib.util.find_spec("diffusers"):
            for kind, (module, scheduler, options) in DIFFUSERS.items():
                yield (
                    f"diffusers {kind}, {name}",
                    with_diffusers(down, module, scheduler, options, grid),
                )
        for method, each in (("euler", 1), ("midpoint", 2), ("heun2", 2), ("rk4", 4)):
            yield f"torchdiffeq {method}, {name}", with_torchdiffeq(down, method, each, grid)


# Deterministic


def deterministic(problem: str, n: int, seeds: list[int]) -> Rows:
    """The errors of all samplers, and the ratios of the default's to the best, of n samples."""
    rows = []
    ratios = []
    for sde, kernel in SDES.items():
        each = []
        for seed in seeds:
            begin = time.process_time()
            found = errors_of_all(start(MIXTURES[problem], kernel, n, seed))
            for name, by_budget in found.items():
                row = {"problem": problem, "sde": sde, "seed": seed, "method": name}
                rows += [row | {"evaluations": budget, **e} for budget, e in by_budget.items()]
            seconds = time.process_time() - begin
            print(f"\n{problem}, {sde}, {n:,} samples, seed {seed}; {seconds:.0f} s of CPU")
            for measure in MEASURES:
                show(measure, found)
            each.append(found)
        ratios += [ratios_at(budget, each) | {"problem": problem, "sde": sde} for budget in BUDGETS]
        figures = "  ".join(
            f"{row['evaluations']}: {row['mean']:.2f} ({row['median']:.2f})"
            for row in ratios[-len(BUDGETS) :]
        )
        print(
            f"{problem}, {sde}, error over the best, of means (of medians): {figures}", flush=True
        )
    return {"errors": rows, "ratios": ratios}


Found = dict[str, dict[int, dict[str, float]]]  # by method, number of evaluations and measure


def errors_of_all(down: Start) -> Found:
    exact = down.sampled(AdaptiveFlow(1e-12, 1e-12, solver=Dopri8()))
    default = METHODS["default"]
    ours = {
        "default": by(default, down),
        "default, log-SNR": by(replace(default, grid=UniformInLogSNR()), down),
        "default, of the data": by(replace(default, integrand="data"), down),
    }
    mode = modes_of(down.model, exact)
    runs = (*ours.items(), *others(down))
    return {name: errors(run, exact, down.model, mode) for name, run in runs}


def ratios_at(budget: int, each: list[Found]) -> dict[str, Any]:
    """The default's mean error, and its error over the least of the others by each measure: means
    over the seeds.
    """
    error = statistics.fmean(found["default"][budget]["mean"] for found in each)
    row: dict[str, Any] = {"evaluations": budget, "error": error}
    for measure in MEASURES:
        ratios = [
            found["default"][budget][measure] / found[best(found, budget, measure)][budget][measure]
            for found in each
        ]
        row[measure] = statistics.fmean(ratios)
        row[f"{measure} of each seed"] = ratios
    return row


def best(found: Found, budget: int, measure: str) -> str:
    """The name of the best of the others."""
    theirs = [name for name in found if not name.startswith("default")]
    return min(theirs, key=lambda name: found[name][budget][measure])


def errors(
    run: Run, exact: Tensor, law: GaussianMixture, mode: Tensor
) -> dict[int, dict[str, float]]:
    found = {}
    for n in BUDGETS:
        x = run(n)
        each = (x - exact).flatten(1).square().mean(1)
        stayed = modes_of(law, x) == mode
        values = (
            each.sqrt().mean(),
            each.mean().sqrt(),
            each[stayed].mean().sqrt(),
            each.median().sqrt(),
        )
        found[n] = {name: float(value) for name, value in zip(MEASURES, values, strict=True)}
        found[n]["switched"] = float(1 - stayed.double().mean())
    return found


def modes_of(law: GaussianMixture, x: Tensor) -> Tensor:
    return law.responsibilities(x).nan_to_num().argmax(1)


def show(measure: str, found: Found) -> None:
    names = {n: best(found, n, measure) for n in BUDGETS}
    floor = {n: found[names[n]][n][measure] for n in BUDGETS}
    print(
        f"  {measure:11s} {'best of the others':20s}",
        "  ".join(f"{floor[n]:.1e} ({names[n]})" for n in BUDGETS),
    )
    for name in found:
        if name.startswith("default"):
            line = "  ".join(
                f"{found[name][n][measure]:.1e} x {found[name][n][measure] / floor[n]:.2f}"
                for n in BUDGETS
            )
            print(f"  {measure:11s} {name:20s}", line)


# Stochastic

NOISY: dict[str, AbstractMethod] = {
    "default (no noise)": METHODS["default"],
    "sde": METHODS["sde"],
    "sde, eta = 0.5": replace(METHODS["sde"], eta=0.5),
    "sa": METHODS["sa"],
    "dpmpp_2m_sde": METHODS["dpmpp_2m_sde"],
    "dpmpp_3m_sde": METHODS["dpmpp_3m_sde"],
    "ddpm": METHODS["ddpm"],
    "SRA1 on the clock": OnClock(SRA1(), eta=1.0, grid=UniformInLogSNR()),
    "edm (churn)": METHODS["edm"],
    "euler_maruyama": METHODS["euler_maruyama"],
    "pc": METHODS["pc"],
}
EACH = {"SRA1 on the clock": 2, "edm (churn)": 2, "pc": 2}
# Numbers of samples and of evaluations.
_SMALL = [(20_000, 25), (200_000, 50)]
SETTINGS = {
    "d = 2, narrow": _SMALL,
    "d = 8, narrow": _SMALL,
    "d = 16, full": _SMALL,
    "d = 3072": [(1_000, 25)],
}
SCORES = ("weights", "means", "covariances")


class ForTorchsde(torch.nn.Module):
    """The reverse equation with time flipped, as torchsde needs it; its srk is for diagonal
    noise.
    """

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, down: Start) -> None:
        super().__init__()
        self.down = down
        self.last = float(down.sde.time(down.span[0]))

    def time(self, s: Tensor) -> float:
        return min(max(self.last - float(s), 0.0), self.last)

    def f(self, s: Tensor, x: Tensor) -> Tensor:
        t = self.time(s)
        sde = self.down.sde
        return float(sde.g(t)) ** 2 * self.down.model.score(t, x, sde) - sde.drift(t, x)

    def g(self, s: Tensor, x: Tensor) -> Tensor:
        return torch.full_like(x, float(self.down.sde.g(self.time(s))))


def with_torchsde(down: Start, steps: int, method: str) -> Tensor:
    equation = ForTorchsde(down)
    span = equation.last - float(down.sde.time(down.span[1]))
    bm = torchsde.BrownianInterval(
        0.0,
        span,
        down.x.shape,
        dtype=down.x.dtype,
        entropy=down.seed,
        dt=span / steps,
        levy_area_approximation="space-time",
    )
    ts = torch.tensor([0.0, span], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that the last step is cut by rounding
        found = torchsde.sdeint(
            equation, down.x, ts, bm=bm, dt=span / steps * (1 + 1e-12), method=method
        )
    return down.over_alpha(cast(Tensor, found)[-1])


def stochastic(problem: str, settings: list[tuple[int, int]], seeds: list[int]) -> Rows:
    """The deviations of all samplers from the law, for numbers of samples and of evaluations, and
    the largest over the seeds.
    """
    rows = []
    largest = []
    for (n, evaluations), (sde, kernel) in itertools.product(settings, SDES.items()):
        case = {"problem": problem, "sde": sde, "n": n, "evaluations": evaluations}
        here = []
        for seed in seeds:
            begin = time.process_time()
            down = start(MIXTURES[problem], kernel, n, seed)
            end = down.law()
            reference = end.sample(n, seed=1000 + 2 * seed)
            exact = functools.partial(end.sample, n, seed=1001 + 2 * seed)
            runs = {"exact samples": exact} | noisy(down, evaluations, sde)
            for name, run in runs.items():
                here.append(
                    {
                        **case,
                        "seed": seed,
                        "method": name,
                        **judged(run(), end, reference, len(seeds)),
                    }
                )
            seconds = time.process_time() - begin
            print(f"\n{', '.join(map(str, case.values()))}, seed {seed}; {seconds:.0f} s of CPU")
            for row in here[-len(runs) :]:
                figures = "  ".join(f"{key} {value:.3g}" for key, value in list(row.items())[6:])
                print(f"  {row['method']:20s} {figures}")
        rows += here
        largest += [
            case | over_seeds(name, here) for name in dict.fromkeys(r["method"] for r in here)
        ]
    return {"errors": rows, "largest": largest}


def over_seeds(method: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest deviation of each kind over the seeds, in standard errors and over the floor."""
    here = [row for row in rows if row["method"] == method]
    found: dict[str, Any] = {"method": method, "seeds": len(here)}
    for score in SCORES:
        found[score] = max(row[score] for row in here)
        found[f"{score} / floor"] = max(row[score] / row["floor"] for row in here)
    figures = ", ".join(
        f"{score} {found[score]:.1f} ({found[f'{score} / floor']:.2f})" for score in SCORES
    )
    print(f"  {method:20s} largest of {len(here)} seeds (over the floor): {figures}", flush=True)
    return found


def noisy(down: Start, evaluations: int, sde: str) -> dict[str, Callable[[], Tensor]]:
    """Samplers at a number of evaluations; most of the others under VP alone: on the clock
    diffusions differ in their ends.
    """
    many = len(down.x) > 20_000
    first = list(NOISY)[:3]
    chosen = (
        first
        if many
        else [
            name
            for name in NOISY
            if sde == "vp" or name in first or isinstance(NOISY[name], InTime)
        ]
    )
    runs: dict[str, Callable[[], Tensor]] = {
        name: functools.partial(by(NOISY[name], down, EACH.get(name, 1)), evaluations)
        for name in chosen
    }
    if down.x.numel() < 1_000_000:
        for method, each in (("euler", 1), ("srk", 10)):
            runs[f"torchsde {method}"] = functools.partial(
                with_torchsde, down, evaluations // each, method
            )
    return runs


def judged(x: Tensor, law: GaussianMixture, reference: Tensor, draws: int) -> dict[str, float]:
    """Worst deviations in standard errors, of weights, means and covariances; the floor of the
    worst in a number of draws; and the sliced Wasserstein distance.
    """
    if not bool(torch.isfinite(x).all()):
        return dict.fromkeys((*SCORES, "floor", "wasserstein"), math.nan)
    x = x[:, :64]
    reference = reference[:, :64]
    found = modes(x, seen(law, x.shape[1]))
    scores = (found.weight_scores, found.mean_scores, found.covariance_scores)
    worst = {name: float(abs(values).max()) for name, values in zip(SCORES, scores, strict=True)}
    size = 5_000
    return worst | {
        "floor": found.floor(0.95 ** (1 / draws)),
        "wasserstein": sliced_wasserstein(x[:size], reference[:size]),
    }


def seen(law: GaussianMixture, d: int) -> GaussianMixture:
    """The law of the first d coordinates, of a mixture without axes of its own."""
    if law.shape[0] == d:
        return law
    return GaussianMixture(law.weights, law.means[:, :d], law.covariances[:, :d, :d])


def against_others(ratios: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean error of the default, and over that of the best of the others, a row for each law,
    diffusion and number of evaluations.
    """
    keys = ("problem", "sde", "evaluations", "error")
    return [
        {key: row[key] for key in keys} | {"ratio": row["mean"], "ratio of medians": row["median"]}
        for row in ratios
    ]


def deviations(largest: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each law, method and diffusion the largest deviation of any kind, over the floor; of
    20,000 samples and more, and where all are finite.
    """
    found = []
    for row in largest:
        ratios = [row[f"{score} / floor"] for score in SCORES]
        draws = f"{row['n']:,} after {row['evaluations']}, {row['sde']}"
        if row["n"] >= 20_000 and all(map(math.isfinite, ratios)):
            case = {"law": row["problem"], "method": row["method"], "samples": draws}
            found.append(case | {"over the floor": max(ratios)})
    return found


def draw(rows: list[dict[str, Any]], file: str) -> None:
    """The mean errors of the first seed."""
    rows = [row for row in rows if row["seed"] == rows[0]["seed"]]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(10, 3 * len(problems)), layout="constrained")
    axes = figure.subplots(len(problems), len(SDES), sharex=True, sharey="row", squeeze=False)
    for (i, problem), (j, sde) in itertools.product(enumerate(problems), enumerate(SDES)):
        place: Axes = axes[i, j]
        here = [r for r in rows if (r["problem"], r["sde"]) == (problem, sde)]
        for name in dict.fromkeys(
            r["method"]
            for r in here
            if r["method"] not in ("default, log-SNR", "default, of the data")
        ):
            points = [(r["evaluations"], r["mean"]) for r in here if r["method"] == name]
            style: dict[str, Any] = {"color": "0.8", "linewidth": 0.7, "zorder": 1}
            if name == "default":
                style = {"color": "C0", "marker": "o", "markersize": 3, "label": name}
            place.plot(*zip(*points, strict=True), **style)
        place.set(xscale="log", yscale="log", title=f"{problem}, {sde}", ylim=(1e-8, 3))
        place.set_xticks(BUDGETS, map(str, BUDGETS))
        place.xaxis.set_minor_formatter("")
    for place in axes[-1]:
        place.set_xlabel("evaluations")
    for place in axes[:, 0]:
        place.set_ylabel("mean error of x(end)")
    axes[0, 0].plot([], [], color="0.8", label="diffusers, k-diffusion, torchdiffeq")
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.savefig(RESULTS / f"{file}.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("deterministic", "stochastic")
    parser.add_argument("--only", choices=parts, help="one of the two parts")
    parser.add_argument(
        "--mixtures",
        type=int,
        default=FIRST,
        metavar="FIRST",
        help=f"the seed of the first of the six random mixtures ({FIRST})",
    )
    parser.add_argument("--problems", nargs="+", choices=list(MIXTURES))
    parser.add_argument("--samples", type=int, help="their number, for all problems")
    parser.add_argument("--budgets", type=int, nargs="+", help="numbers of evaluations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[SEED], help="of x_T and of noise")
    parser.add_argument("--sdes", nargs="+", choices=list(SDES), default=list(SDES))
    arguments = parser.parse_args()
    MIXTURES.update(mixtures(arguments.mixtures))
    arguments.every_sde = set(arguments.sdes) == set(SDES)
    for name in set(SDES) - set(arguments.sdes):
        del SDES[name]
    particulars = environment(dtype="float64", seeds=arguments.seeds, mixtures=arguments.mixtures)
    with torch.no_grad():
        if arguments.only != "stochastic":
            run_deterministic(arguments, particulars)
        if arguments.only != "deterministic":
            run_stochastic(arguments, particulars)


def run_deterministic(arguments: argparse.Namespace, particulars: dict[str, Any]) -> None:
    """Runs, draws and stores each problem."""
    BUDGETS[:] = arguments.budgets or BUDGETS
    for problem in arguments.problems or SAMPLES:
        n = arguments.samples or SAMPLES.get(problem, 20_000)
        found = deterministic(problem, n, arguments.seeds)
        file = words(f"samplers {arguments.mixtures} {problem}")
        save(file, {"environment": particulars, **found})
        draw(found["errors"], file)
        if arguments.budgets is None and arguments.every_sde:
            publish("samplers", particulars, against_others(found["ratios"]), part=problem)


def run_stochastic(arguments: argparse.Namespace, particulars: dict[str, Any]) -> None:
    """Runs and stores each problem."""
    whole = arguments.samples is arguments.budgets is None
    n = arguments.samples
    chosen = list(itertools.product([n or 20_000], arguments.budgets or [25]))
    for problem in arguments.problems or SETTINGS:
        settings = SETTINGS.get(problem, _SMALL) if whole else chosen
        found = stochastic(problem, settings, arguments.seeds)
        save(words(f"laws {arguments.mixtures} {problem}"), {"environment": particulars, **found})
        if (whole and arguments.every_sde) or n:
            part = f"{problem}, {n} samples" if n else problem
            publish("samplers_laws", particulars, deviations(found["largest"]), part=part)


if __name__ == "__main__":
    main()
