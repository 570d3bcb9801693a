"""What the default integrates: mean error of x(end) for the velocity by its c, and for the data, on
mixtures of its own.

The rule is the default's, `AdamsMoulton(4)` on the focused grid, below 20 steps `AdamsMoulton(3)`,
and for the c of the default the other one of them too; x(end) is compared with the probability flow
from the same x_T, solved to 1e-12. The digits are the covariances of scikit-learn's, ten Gaussians.
benchmarks/samplers.py measures the choice on other mixtures.

    python benchmarks/choice.py
"""

import math
from dataclasses import replace
from typing import Any

import torch
from _bench import RESULTS, environment, save
from matplotlib.figure import Figure
from samplers import SEED, Start, mixture, start
from sklearn.datasets import load_digits
from torch import Tensor

from sdekit import AbstractSolver, AdamsMoulton, Dopri8, solve
from sdekit_diffusion import VESDE, VPSDE, AdaptiveFlow, Focused, GaussianMixture, OnClock
from sdekit_diffusion._sampling.clock import velocity_on_angle

BUDGETS = (10, 19, 20, 50)
FRACTIONS = (1.0, 0.5, 1 / 3, 0.25, 0.2, 0.1)
# By evaluations and by what is integrated: geometric mean and largest.
Summary = dict[int, dict[str, tuple[float, float]]]


def digits() -> GaussianMixture:
    """A Gaussian for each class of the digits, 64 pixels from -1/2 to 1/2 and centred, with
    deviations of at least 0.01.
    """
    images, classes = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    images = images / 16 - 0.5
    parts = [(images - images.mean(dim=0))[classes == k] for k in range(10)]
    covariances = torch.stack([torch.cov(part.T) + 1e-4 * torch.eye(64) for part in parts])
    weights = torch.tensor([len(part) / len(images) for part in parts], dtype=torch.float64)
    return GaussianMixture(weights, torch.stack([part.mean(dim=0) for part in parts]), covariances)


PROBLEMS = {
    "d = 2, narrow": (mixture(11, 2, 6, 0.03, 0.1), 400),
    "d = 2, wide": (mixture(12, 2, 8, 0.05, 0.3), 400),
    "d = 16, full": (mixture(13, 16, 5, 0.03, 0.5, full=True), 200),
    "d = 64, full": (mixture(14, 64, 8, 0.05, 0.5, full=True, spread=0.5), 64),
    "d = 3072": (mixture(15, 3072, 5, 0.05, 0.3, spread=0.5), 16),
    "d = 3072, second": (mixture(1002, 3072, 5, 0.05, 0.3, spread=0.5), 16),
    "d = 3072, third": (mixture(1102, 3072, 5, 0.05, 0.3, spread=0.5), 16),
    "d = 3072, close": (mixture(16, 3072, 12, 0.1, 0.4, spread=0.15), 16),
    "digits": (digits(), 64),
}


def turned(down: Start, c: float, rule: AbstractSolver, steps: int) -> Tensor:
    """x(end) by the velocity of some c, in units of the standard deviation of the data."""
    coordinates = down.coordinates
    shift = math.log(coordinates.std)
    span = (down.span[0] + shift, down.span[1] + shift)
    l = Focused().points(coordinates, span, steps)
    problem = velocity_on_angle(coordinates.standardised(down.model), c)
    before, after = (float(problem.scale(end)) for end in span)
    start, stop = (float(coordinates.time(end)) for end in span)
    u = coordinates.standard(start, down.x) / before
    u = solve(problem, u, torch.as_tensor(problem.time(l)), solver=rule).x * after
    return coordinates.physical(stop, u)


def errors_of(down: Start, exact: Tensor, steps: int) -> dict[str, float]:
    """The mean error of x(end) by what is integrated."""
    rule = OnClock(integrand="velocity", steps=steps).rule
    assert isinstance(rule, AdamsMoulton)
    other = replace(rule, k=7 - rule.k)
    ends = {f"{f:.2f}": turned(down, f, rule, steps) for f in FRACTIONS}
    ends["data"] = down.sampled(OnClock(rule, steps=steps))
    ends["other rule"] = turned(down, 0.25, other, steps)
    return {kind: float((x - exact).square().mean(dim=1).sqrt().mean()) for kind, x in ends.items()}


def study() -> list[dict[str, Any]]:
    """A row of errors for each problem, diffusion and number of evaluations."""
    rows: list[dict[str, Any]] = []
    for problem, (law, n) in PROBLEMS.items():
        for name, sde in (("ve", VESDE()), ("vp", VPSDE())):
            down = start(law, sde, n)
            exact = down.sampled(AdaptiveFlow(1e-12, 1e-12, solver=Dopri8()))
            for steps in BUDGETS:
                errors = errors_of(down, exact, steps)
                rows.append({"problem": problem, "sde": name, "evaluations": steps, **errors})
                figures = "  ".join(f"{kind} {error:.1e}" for kind, error in errors.items())
                print(
                    f"{problem:16s} {name}  {steps:3d} evaluations  c / data_std: {figures}",
                    flush=True,
                )
    return rows


def summarised(rows: list[dict[str, Any]], kinds: list[str]) -> Summary:
    """The errors over the least of their row: geometric mean and largest, over all rows."""
    summary = {}
    for steps in BUDGETS:
        here = [r for r in rows if r["evaluations"] == steps]
        least = [min(r[kind] for kind in kinds[:-1]) for r in here]
        ratios = {
            kind: [r[kind] / best for r, best in zip(here, least, strict=True)] for kind in kinds
        }
        summary[steps] = {
            k: (math.exp(sum(map(math.log, v)) / len(v)), max(v)) for k, v in ratios.items()
        }
        figures = "  ".join(
            f"{kind} {mean:.2f} ({worst:.1f})" for kind, (mean, worst) in summary[steps].items()
        )
        print(
            f"{steps:3d} evaluations, over the least of a row, geometric mean (largest): {figures}"
        )
    return summary


def draw(summary: Summary, kinds: list[str]) -> None:
    """Writes choice.png: the errors over the least against c."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for steps in BUDGETS:
        for measure, style in ((0, "-"), (1, ":")):
            ratios = [summary[steps][kind][measure] for kind in kinds[:-2]]
            label = f"{steps} evaluations" if not measure else None
            axes.plot(
                FRACTIONS, ratios, style, marker="o", color=f"C{BUDGETS.index(steps)}", label=label
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="c / data_std",
        ylabel="error over the least, mean and largest",
    )
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "choice.png", dpi=120)


def main() -> None:
    rows = study()
    kinds = list(rows[0])[3:]
    summary = summarised(rows, kinds)
    save(
        "choice",
        {"environment": environment(dtype="float64", seed=SEED), "rows": rows, "summary": summary},
    )
    draw(summary, kinds)


if __name__ == "__main__":
    with torch.no_grad():
        main()
