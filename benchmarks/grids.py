"""Grids of few steps for trained networks: published noise levels, and grids fitted to the network
by `fitted_grid`, against the default's own.

The networks are those of benchmarks/networks.py, of images only with `--names digits garments`. The
published levels are those for Stable Diffusion of Align Your Steps, interpolated in log(sigma) to a
number of steps, as their authors do, and of GITS, which has a table for each number of steps; they
are stretched in log(sigma) to the range of the network.
A grid is fitted with 128 samples and measured on 1,000 others. The error of a sample is the root
mean square of its coordinates' difference to the flow of the same network from the same x_T, solved
to 1e-6; samples are left out as in networks.py. A row has the mean error of the default or of
"unipc" on a grid, over that of the default on its own grid, with the bootstrapped standard error of
this ratio.

    python benchmarks/grids.py [--quick] [--names "curve 1" surface] [--budgets 5 8 10]
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _bench import environment, publish, save
from networks import CASES, SEED, Case, near_data, trained
from torch import Tensor

import sdekit_diffusion as sd
from sdekit import uniform
from sdekit_diffusion._sampling.coordinates import Coordinates, Span

BUDGETS = (5, 6, 8, 10)
DATA = ("curve", "curves", "surface")
SAMPLES = 1000
GUIDANCE = 3.0
# Sabour, Fidler and Kreis 2024, arXiv 2404.14507, for Stable Diffusion 1.5.
AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
# Chen, Zhou, Wang, Shen and Lyu 2024, arXiv 2405.11326, as in ComfyUI with its coefficient of 1.20:
# the levels between the first and the last.
GITS_ENDS = (14.615, 0.0292)
GITS = {
    5: (2.845, 1.242, 0.5952, 0.2505),
    6: (5.855, 2.050, 0.9535, 0.4557, 0.1703),
    8: (5.855, 2.451, 1.370, 0.8033, 0.4557, 0.2505, 0.09825),
    10: (5.855, 2.845, 1.671, 1.089, 0.7481, 0.5012, 0.3210, 0.1989, 0.09825),
}
Models = Callable[[int], sd.AbstractModel]  # the model, with labels for a number of samples


@dataclass(frozen=True, eq=False)
class Published(sd.AbstractGrid):
    """Decreasing noise levels, interpolated and stretched in log(sigma) to a span."""

    levels: tuple[float, ...]

    follows_model = True

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        l = -np.log(self.levels)
        share = (l - l[0]) / (l[-1] - l[0])
        places = np.linspace(0, 1, len(l))
        points = np.interp(uniform(0.0, 1.0, steps).numpy(), places, share)
        return span[0] + (span[1] - span[0]) * torch.from_numpy(points)


def models_of(case: Case, quick: bool) -> dict[str, Models]:
    """A network, and for labels of curves the same under guidance instead."""
    model = trained(case, 0.1 if quick else 1.0)
    if case.data == "curves":
        return {
            f"{case.name}, guidance {GUIDANCE:g}": lambda n: sd.Guided(
                model.given(label=torch.arange(n) % 3), GUIDANCE
            )
        }
    plain = model.unconditional() if model.null else model
    return {case.name: lambda n: plain}


def compared(name: str, models: Models, budgets: list[int], n: int) -> list[dict[str, Any]]:
    """A row for each number of evaluations, method and grid."""
    model = models(n)

    def errors(method: str, steps: int, grid: Any) -> np.ndarray:
        x = sd.sample(model, n, steps=steps, method=method, grid=grid, seed=SEED)
        return (x - exact)[near].double().square().flatten(1).mean(dim=1).sqrt().numpy()

    exact = sd.sample(model, n, method=sd.AdaptiveFlow(1e-6, 1e-6), seed=SEED)
    near = near_data(model, exact)
    rows = []
    for steps in budgets:
        own = errors("default", steps, None)
        for method in ("default", "unipc"):
            fitted = sd.fitted_grid(models(128), steps, method=method, seed=SEED + 1)
            grids = {"own": None, "quadratic": "quadratic", "AYS": Published(AYS)}
            if steps in GITS:
                grids["GITS"] = Published((GITS_ENDS[0], *GITS[steps], GITS_ENDS[1]))
            for kind, grid in (grids | {"fitted": fitted}).items():
                row = {"network": name, "evaluations": steps, "method": method, "grid": kind}
                rows.append(row | over(errors(method, steps, grid), own))
        figures = ", ".join(
            f"{row['method']} {row['grid']} {row['ratio']:.2f} +- {row['stderr']:.2f}"
            for row in rows
            if row["evaluations"] == steps
        )
        print(f"{name}, {steps} evaluations: {own.mean():.4f}; {figures}", flush=True)
    return rows


def over(found: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """The mean error, and its ratio to that of the default with a standard error."""
    rng = np.random.default_rng(SEED)
    picks = rng.integers(len(own), size=(200, len(own)))
    ratios = found[picks].mean(axis=1) / own[picks].mean(axis=1)
    mean = float(found.mean())
    return {"error": mean, "ratio": mean / float(own.mean()), "stderr": float(np.std(ratios))}


def summarised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The geometric mean of the ratios over the networks, the least and the largest of them, and
    the largest standard error, for each method, grid and number of evaluations.
    """
    keys = ("method", "grid", "evaluations")
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for cell, here in cells.items():
        ratios = [row["ratio"] for row in here]
        row = dict(zip(keys, cell, strict=True)) | {"networks": len(here)}
        row |= {"ratio": statistics.geometric_mean(ratios)}
        row |= {"least": min(ratios), "largest": max(ratios)}
        found.append(row | {"largest stderr": max(one["stderr"] for one in here)})
    return found


def main() -> None:
    """Trains, fits, measures, prints, saves and publishes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the updates, 200 samples")
    parser.add_argument("--names", nargs="*", default=DATA, help="of data")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="evaluations")
    arguments = parser.parse_args()
    n = 200 if arguments.quick else SAMPLES
    result: dict[str, Any] = {"environment": environment(dtype="float32", seed=SEED), "rows": []}
    for case in CASES:
        if not {case.data, case.data.split()[0]} & set(arguments.names):
            continue
        for name, models in models_of(case, arguments.quick).items():
            result["rows"] += compared(name, models, arguments.budgets, n)
        save("grids", result)
    means = summarised(result["rows"])
    for row in means:
        print(row)
    if not arguments.quick:
        publish("grids", result["environment"], means)


if __name__ == "__main__":
    main()
