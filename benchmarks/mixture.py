"""Accuracy on a mixture of eight narrow Gaussians in two dimensions: how many evaluations until only sampling noise is left.

For each method, diffusion and number of evaluations: 20,000 samples with the exact score, and the worst deviation, in standard
errors of those samples, of mode weights and of each mode's own mean and variance from the closed-form law at the end. About
3.3 is what exact samples give (40 figures). Also log-likelihoods against the closed form. `python benchmarks/mixture.py`
"""

import math
import time
from typing import Any

import torch
from _bench import RESULTS, environment, save
from matplotlib.figure import Figure
from torch import Tensor

from sdekit_diffusion import (
    METHODS,
    VESDE,
    VPSDE,
    AbstractMethod,
    AdaptiveFlow,
    GaussianMixture,
    OnClock,
    SubVPSDE,
    log_likelihood,
    sample,
)

SAMPLES, SEED = 20_000, 0
SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
RUNS: list[tuple[str, AbstractMethod, tuple[int, ...]]] = [
    ("default", METHODS["default"], (10, 20, 30, 50, 100)),
    ("on the clock, eta = 1", OnClock(eta=1.0), (10, 20, 30, 50, 100)),
    ("euler_maruyama", METHODS["euler_maruyama"], (100, 200, 500, 1000)),
    ("pc", METHODS["pc"], (200, 500, 1000)),
    ("ode", METHODS["ode"], (0,)),
]


def ring() -> tuple[GaussianMixture, Tensor, float]:
    angle, deviation = torch.arange(8, dtype=torch.float64) * math.pi / 4, 0.05
    means, weights = torch.stack([angle.cos(), angle.sin()], 1), torch.arange(1.0, 9.0, dtype=torch.float64)
    return GaussianMixture(weights / weights.sum(), means, torch.full((8,), deviation**2)), means, deviation


def worst(x: Tensor, law: GaussianMixture, means: Tensor, deviation: float) -> float:
    """The largest deviation in standard errors of 8 weights, 16 means and 16 variances."""
    mode, scores = law.posterior(x).argmax(1), []
    for k, (m, w) in enumerate(zip(means, law.weights, strict=True)):
        part = (x[mode == k] - m) / deviation
        scores.append(((len(part) / len(x) - w) / (w * (1 - w) / len(x)).sqrt()).reshape(1))
        scores += [part.mean(0) * math.sqrt(len(part)), (part.var(0) - 1) * math.sqrt(len(part) / 2)]
    return float(torch.cat(scores).abs().max())


def accuracy() -> list[dict[str, Any]]:
    mixture, means, deviation = ring()
    exact = worst(mixture.sample(SAMPLES, seed=SEED), mixture, means, deviation)
    print(f"exact samples: {exact:.1f}")
    rows = []
    for name, method, budgets in RUNS:
        for sde, kernel in SDES.items():
            for budget in budgets:
                steps = {"default": budget - 1, "pc": budget // 2, "ode": None}.get(name, budget)
                start = time.perf_counter()
                solution = sample(mixture, SAMPLES, sde=sde, method=method, steps=steps, seed=SEED, return_solution=True)
                t = float(solution.ts[-1])
                spread = math.hypot(float(kernel.alpha(t)) * deviation, float(kernel.sigma(t)))
                score = worst(solution.x, mixture.marginal(t, kernel), float(kernel.alpha(t)) * means, spread)
                row = {
                    "method": name,
                    "sde": sde,
                    "evaluations": round(float(solution.evaluations.double().mean())),
                    "worst": score,
                }
                rows.append({**row, "seconds": time.perf_counter() - start})
                print(f"{name:22s} {sde:6s} {row['evaluations']:5d} evaluations   worst {score:6.1f} standard errors")
    return rows


def likelihood() -> list[dict[str, Any]]:
    mixture, _, _ = ring()
    x, rows = mixture.sample(256, seed=1), []
    for sde, kernel in SDES.items():
        exact = mixture.marginal(float(VESDE().time(math.log(1000))), VESDE()).log_prob(x)  # data with noise of 1e-3
        for prior in (None, mixture.marginal(1.0, kernel).log_prob):
            ours = log_likelihood(mixture, x, sde=sde, log_prior=prior, method=AdaptiveFlow(1e-6, 1e-6))
            error = (ours.value - exact).abs()
            row: dict[str, Any] = {"sde": sde, "prior": "N(0, sigma_T^2)" if prior is None else "exact p_T"}
            row["evaluations"] = float(ours.evaluations.double().mean())
            rows.append({**row, "mean error": float(error.mean()), "largest error": float(error.max())})
            print("log-likelihood", rows[-1])
    return rows


def main() -> None:
    particulars, rows = environment(dtype="float64", seed=SEED, samples=SAMPLES), accuracy()
    save("mixture", {"environment": particulars, "accuracy": rows, "likelihood": likelihood()})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, _, _) in enumerate(RUNS):
        for sde, style in zip(SDES, ("-", "--", ":"), strict=True):
            points = [(r["evaluations"], r["worst"]) for r in rows if (r["method"], r["sde"]) == (name, sde)]
            axes.plot(*zip(*points, strict=True), style, marker="o", color=f"C{i}", label=f"{name}, {sde}", markersize=3)
    axes.axhline(3.3, color="0.6", linewidth=1)
    axes.annotate("exact samples", (10, 3.4), color="0.4", fontsize=8, va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="evaluations a sample", ylabel="worst deviation (standard errors)")
    axes.set_title(f"Eight narrow Gaussians, {SAMPLES:,} samples, exact score")
    axes.legend(fontsize=6, ncols=2)
    figure.savefig(RESULTS / "mixture.png", dpi=120)


if __name__ == "__main__":
    main()
