"""Stiff ordinary equations: `Rodas4` and `Rodas5P` beside SciPy's Radau, BDF and LSODA.

Van der Pol's equation (mu = 1,000 and 1,000,000), Robertson's kinetics, HIRES, and a reaction with
diffusion in 200 cells (the Brusselator). Printed for several tolerances: the error at the end,
relative to the size of each number there, evaluations, Jacobians, factorisations; then evaluations
at equal error, interpolated between tolerances, over those of SciPy's methods. Then the time of a
batch of 64 of different stiffness over that of a loop of SciPy's solves, at equal tolerance and at
equal error, for three batches. Evaluations are without those for Jacobians, but for LSODA, which
does not tell them apart. `python benchmarks/stiff.py`, half an hour on one thread; `--only batch`
for the batches alone.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

import sdekit

SOLVERS = {"Rodas4": sdekit.Rodas4(), "Rodas5P": sdekit.Rodas5P()}
METHODS = ("Radau", "BDF", "LSODA")
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
CELLS = 200  # of two numbers each
BATCH = 64  # equations in a batch
ROUNDS = 3  # in which a batch is timed
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """x' = f(t, x) up to an end; absolute tolerances are `scale` times the relative ones."""

    drift: Callable[[Any, Tensor], Tensor]
    x0: Tensor
    end: float
    scale: float = 1.0
    smallest: float = 1e-8  # the smallest tolerance that is tried

    def of_arrays(self, t: float, y: Array) -> Array:
        return self.drift(t, torch.from_numpy(y)[None])[0].numpy()


def van_der_pol(mu: float) -> Problem:
    def drift(t: Any, x: Tensor) -> Tensor:
        y, v = x.unbind(1)
        return torch.stack([v, mu * (1 - y * y) * v - y], dim=1)

    return Problem(drift, torch.tensor([2.0, 0.0], dtype=torch.float64), 2 * mu)


def robertson(t: Any, x: Tensor) -> Tensor:
    a, b, c = x.unbind(1)
    first = -0.04 * a + 1e4 * b * c
    third = 3e7 * b * b
    return torch.stack([first, -first - third, third], dim=1)


def hires(t: Any, x: Tensor) -> Tensor:
    """Schafer's reactions (Hairer and Wanner 1996, IV.10)."""
    y = x.unbind(1)
    bound = 280.0 * y[5] * y[7]
    return torch.stack(
        [
            -1.71 * y[0] + 0.43 * y[1] + 8.32 * y[2] + 0.0007,
            1.71 * y[0] - 8.75 * y[1],
            -10.03 * y[2] + 0.43 * y[3] + 0.035 * y[4],
            8.32 * y[1] + 1.71 * y[2] - 1.12 * y[3],
            -1.745 * y[4] + 0.43 * y[5] + 0.43 * y[6],
            -bound + 0.69 * y[3] + 1.71 * y[4] - 0.43 * y[5] + 0.69 * y[6],
            bound - 1.81 * y[6],
            -bound + 1.81 * y[6],
        ],
        dim=1,
    )


def brusselator(t: Any, x: Tensor) -> Tensor:
    """In one dimension, on CELLS cells (Hairer and Wanner 1996, IV.10, with a fiftieth)."""
    u, v = x.unflatten(1, (2, CELLS)).unbind(1)
    diffusion = 0.02 * (CELLS + 1) ** 2

    def laplacian(w: Tensor, wall: float) -> Tensor:
        sides = torch.full_like(w[:, :1], wall)
        padded = torch.cat([sides, w, sides], dim=1)
        return diffusion * (padded[:, 2:] - 2 * w + padded[:, :-2])

    reaction = u * u * v
    first = 1 + reaction - 4 * u + laplacian(u, 1.0)
    return torch.cat([first, 3 * u - reaction + laplacian(v, 3.0)], dim=1)


def problems() -> dict[str, Problem]:
    cells = torch.arange(1, CELLS + 1, dtype=torch.float64) / (CELLS + 1)
    pattern = torch.cat([1 + torch.sin(2 * math.pi * cells), torch.full_like(cells, 3.0)])
    first = torch.zeros(8, dtype=torch.float64)
    first[0] = 1.0
    first[7] = 0.0057
    return {
        "van der Pol, 1e3": van_der_pol(1e3),
        "van der Pol, 1e6": van_der_pol(1e6),
        "Robertson": Problem(robertson, torch.tensor([1.0, 0.0, 0.0]).double(), 1e6, 1e-4),
        "HIRES": Problem(hires, first, 321.8122, 1e-3),
        "Brusselator": Problem(brusselator, pattern, 10.0, smallest=1e-6),
    }


def control_of(tol: float, scale: float) -> sdekit.PIDController:
    """The steps of our solvers, with the safety that `AbstractRosenbrock` advises."""
    return sdekit.PIDController(tol, tol * scale, safety=0.8)


def ours(problem: Problem, solver: str, tol: float) -> tuple[Tensor, dict[str, float]]:
    """By a solver of sdekit."""
    begun = time.perf_counter()
    solution = sdekit.solve(
        sdekit.ODE(problem.drift), problem.x0[None], [0.0, problem.end], solver=SOLVERS[solver],
        control=control_of(tol, problem.scale),
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    assert solution.accepted is not None
    assert solution.rejected is not None
    jacobians = int(solution.accepted)  # a rejected step is tried again with the same one
    counts = {
        "evaluations": int(solution.evaluations),
        "jacobians": jacobians,
        "factorisations": jacobians + int(solution.rejected),
    }
    return solution.x[0], {**counts, "seconds": seconds}


def theirs(problem: Problem, method: str, tol: float) -> tuple[Tensor, dict[str, float]]:
    """By a method of SciPy, with Jacobians by its differences."""
    begun = time.perf_counter()
    found = solve_ivp(
        problem.of_arrays, (0.0, problem.end), problem.x0.numpy(), method=method, rtol=tol,
        atol=tol * problem.scale,
    )  # fmt: skip
    counts = {
        "evaluations": int(found.nfev),
        "jacobians": int(found.njev),
        "factorisations": int(found.nlu),
    }
    return torch.from_numpy(found.y[:, -1]), {**counts, "seconds": time.perf_counter() - begun}


def exact(problem: Problem) -> Tensor:
    """By Radau at the least tolerance."""
    found = solve_ivp(
        problem.of_arrays, (0.0, problem.end), problem.x0.numpy(), method="Radau", rtol=1e-11,
        atol=1e-11 * problem.scale,
    )  # fmt: skip
    return torch.from_numpy(found.y[:, -1])


def measured(name: str, problem: Problem) -> list[dict[str, Any]]:
    """A row for each method and tolerance."""
    known = exact(problem)
    rows = []
    for tol in TOLERANCES:
        if tol < problem.smallest:
            continue
        for method in (*SOLVERS, *METHODS):
            solved = ours if method in SOLVERS else theirs
            end, counts = solved(problem, method, tol)
            size = known.abs() + problem.scale * known.abs().max()
            error = float(((end - known) / size).square().mean().sqrt())
            rows.append({"problem": name, "method": method, "tol": tol, "error": error, **counts})
            print(
                f"{name:17s} {method:7s} {tol:.0e}  error {error:.1e}  {counts['evaluations']:6d} "
                f"evaluations {counts['jacobians']:5d} Jacobians {counts['factorisations']:5d} "
                f"factorisations {counts['seconds']:7.2f} s",
                flush=True,
            )
    return rows


def at_error(rows: list[dict[str, Any]], error: float, key: str = "evaluations") -> float:
    """A number at an error, log-linear between the tolerances; NaN outside."""
    points = sorted((row["error"], row[key]) for row in rows)
    x, y = (np.log([point[i] for point in points]) for i in (0, 1))
    inside = x[0] <= math.log(error) <= x[-1]
    return float(np.exp(np.interp(math.log(error), x, y))) if inside else math.nan


def ratios(rows: list[dict[str, Any]], solver: str, key: str = "evaluations") -> dict[str, float]:
    """A number of a solver over that of each method at the errors that both reach, geometric
    mean.
    """
    own = [row for row in rows if row["method"] == solver]
    found = {}
    for method in METHODS:
        those = [row for row in rows if row["method"] == method]
        others = [(row[key], at_error(those, row["error"], key)) for row in own]
        logs = [math.log(a / b) for a, b in others if not math.isnan(b)]
        found[method] = math.exp(float(np.mean(logs))) if logs else math.nan
    return found


def swings(mu: Tensor, x: Tensor) -> Tensor:
    """Van der Pol's equation."""
    y, v = x.unbind(1)
    return torch.stack([v, mu * (v - y * y * v) - y], dim=1)


def cycles(mu: Tensor, x: Tensor) -> Tensor:
    """The same in time divided by 2 mu."""
    return 2 * mu[:, None] * swings(mu, x)


def reactions(rate: Tensor, x: Tensor) -> Tensor:
    """Robertson's kinetics with another rate of the fast reaction."""
    a, b, c = x.unbind(1)
    first = -0.04 * a + 1e4 * b * c
    third = rate * b * b
    return torch.stack([first, -first - third, third], dim=1)


def swing_numbers(mu: float, y: Array) -> list[float]:
    return [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]


def cycle_numbers(mu: float, y: Array) -> list[float]:
    return [2 * mu * y[1], 2 * mu * (mu * (1 - y[0] ** 2) * y[1] - y[0])]


def reaction_numbers(rate: float, y: Array) -> list[float]:
    first = -0.04 * y[0] + 1e4 * y[1] * y[2]
    third = rate * y[1] * y[1]
    return [first, -first - third, third]


class Family(sdekit.AbstractSDE):
    """x' = f(p, x) with a parameter p of each sample."""

    noise_type = "none"

    def __init__(self, f: Callable[[Tensor, Tensor], Tensor], parameters: Tensor) -> None:
        self.f = f
        self.parameters = parameters

    def drift(self, t: Any, x: Tensor) -> Tensor:
        return self.f(self.parameters, x)

    def rows(self, index: Tensor) -> "Family":
        return Family(self.f, self.parameters[index])


@dataclass(frozen=True)
class Batch:
    """Equations that differ in a parameter, and the same in numbers, for SciPy; absolute tolerances
    as in `Problem`.
    """

    f: Callable[[Tensor, Tensor], Tensor]
    numbers: Callable[[float, Array], list[float]]
    start: tuple[float, ...]
    parameters: Tensor
    end: float
    scale: float = 1.0


STIFFNESS = torch.logspace(0, 3, BATCH, dtype=torch.float64)
RATES = 3e7 * torch.logspace(-4, 1, BATCH, dtype=torch.float64)
BATCHES = {
    "van der Pol, to t = 100": Batch(swings, swing_numbers, (2.0, 0.0), STIFFNESS, 100.0),
    "van der Pol, to t = 2 mu": Batch(cycles, cycle_numbers, (2.0, 0.0), STIFFNESS, 1.0),
    "Robertson": Batch(reactions, reaction_numbers, (1.0, 0.0, 0.0), RATES, 1e4, 1e-4),
}


def batch_by(solver: str, batch: Batch, tol: float) -> Tensor:
    """The ends of the batch in one solve."""
    equations = Family(batch.f, batch.parameters)
    x0 = torch.tensor(batch.start, dtype=torch.float64).expand(BATCH, -1)
    control = control_of(tol, batch.scale)
    span = [0.0, batch.end]
    return sdekit.solve(equations, x0, span, solver=SOLVERS[solver], control=control).x


def loop_by(method: str, batch: Batch, tol: float) -> Tensor:
    """The ends of the batch by a loop over its equations, in numbers."""
    ends = []
    for parameter in batch.parameters.tolist():
        found = solve_ivp(
            lambda t, y, p=parameter: batch.numbers(p, y), (0.0, batch.end), batch.start,
            method=method, rtol=tol, atol=tol * batch.scale,
        )  # fmt: skip
        ends.append(found.y[:, -1])
    return torch.from_numpy(np.stack(ends))


def batches() -> list[dict[str, Any]]:
    """A row for each batch, method and tolerance: the error at the end, from LSODA's solution to
    1e-12, of each number relative to its root mean square over the batch, root mean square over the
    batch and the numbers; and the seconds of the process, the median of interleaved rounds.
    """
    rows = []
    cases = [(method, tol) for method in (*SOLVERS, *METHODS) for tol in TOLERANCES[:5]]
    for name, batch in BATCHES.items():
        known = loop_by("LSODA", batch, 1e-12)
        unit = known.square().mean(dim=0).sqrt()
        seconds: dict[tuple[str, float], list[float]] = {case: [] for case in cases}
        errors: dict[tuple[str, float], float] = {}
        for _ in range(ROUNDS):
            for method, tol in cases:
                solved = batch_by if method in SOLVERS else loop_by
                begun = time.process_time()
                end = solved(method, batch, tol)
                seconds[method, tol].append(time.process_time() - begun)
                errors[method, tol] = float(((end - known) / unit).square().mean().sqrt())
        for method, tol in cases:
            median = statistics.median(seconds[method, tol])
            error = errors[method, tol]
            row = {"batch": name, "method": method, "tol": tol, "error": error}
            rows.append({**row, "seconds": median})
            print(
                f"{name:26s} {method:7s} {tol:.0e}  error {error:.1e} {median:7.2f} s", flush=True
            )
    return rows


def batch_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The time of each solver over that of each method of SciPy, with tolerances of 1e-6, and at
    equal error.
    """
    found = []
    for name in BATCHES:
        own = [row for row in rows if row["batch"] == name]
        same = {row["method"]: row["seconds"] for row in own if row["tol"] == 1e-6}
        for solver in SOLVERS:
            of_tolerance = {method: same[solver] / same[method] for method in METHODS}
            row = {"batch": name, "solver": solver}
            found.append({**row, "at equal": "tolerance, 1e-6", **of_tolerance})
            found.append({**row, "at equal": "error", **ratios(own, solver, "seconds")})
    return found


def draw(rows: list[dict[str, Any]]) -> None:
    """Evaluations against the error, a panel for each problem."""
    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(3.2 * len(names), 3.4), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        for method in (*SOLVERS, *METHODS):
            those = [row for row in rows if (row["problem"], row["method"]) == (name, method)]
            ax.loglog([r["error"] for r in those], [r["evaluations"] for r in those], "o-",
                      label=method)  # fmt: skip
        ax.set(title=name, xlabel="relative error at the end", ylabel="evaluations")
    axes[-1].legend()
    figure.savefig(RESULTS / "stiff.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["equations", "batch"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = environment(dtype="torch.float64")
    if arguments.only != "batch":
        rows = []
        compared: list[dict[str, Any]] = []
        for name, problem in problems().items():
            found = measured(name, problem)
            for solver in SOLVERS:
                compared.append({"equation": name, "solver": solver, **ratios(found, solver)})
                shown = ", ".join(f"{m} {compared[-1][m]:.2f}" for m in METHODS)
                print(f"{name}: evaluations of {solver} at equal error over those of {shown}")
            rows += found
        save("stiff", {**result, "rows": rows})
        publish("stiff", result, compared)
        draw(rows)
    if arguments.only != "equations":
        rows = batches()
        compared = batch_ratios(rows)
        for row in compared:
            shown = ", ".join(f"{m} {row[m]:.2f}" for m in METHODS)
            print(f"{row['batch']}, {row['solver']}: time at equal {row['at equal']} over {shown}")
        save("stiff_batch", {**result, "rows": rows})
        publish("stiff_batch", result, compared)


if __name__ == "__main__":
    main()
