"""Which solver reaches an error with the fewest evaluations: the table of docs/solvers.md.

For each kind of equation every solver that takes it is run on finer and finer grids, or with
smaller and smaller tolerances, and its evaluations of f and g together are interpolated at the
errors in question. Path: the root mean square over paths at the end, against a fine solve of
the same paths. Mean: that of E cos 2x, path by path, where it is three standard errors or more.
Printed are the curves, then the table.

`python benchmarks/work_precision.py`, ten minutes on one thread.
"""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from _bench import RESULTS, environment, publish, save
from _problems import columns, drift, elementwise, state_free
from matplotlib.figure import Figure
from torch import Tensor

import sdekit as sk
from sdekit.elementary import Time

Function = Callable[[Any, Tensor], Tensor]
NoiseType = Literal["none", "additive", "diagonal", "scalar", "general"]
SDEType = Literal["ito", "stratonovich"]
Curve = list[tuple[float, float]]  # evaluations and errors
KINDS = ["path", "mean"]
PATHS = 1000
MANY = 20_000
GRIDS = [2**k for k in range(2, 12)]
TOLERANCES = [10.0**-k for k in range(1, 10)]
UNSTABLE = 10.0  # errors from which on a solve is not in the curves


@dataclass
class Counting:
    """A function with the number of its calls."""

    function: Function
    calls: int = field(default=0, init=False)

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        self.calls += 1
        return self.function(t, x)


@dataclass(frozen=True)
class Case:
    """Equations of one kind: their functions, the solvers that take them and the errors asked for.

    adaptive: solvers that are run with adaptive steps. fine: the steps and the solver of the
    reference.
    """

    name: str
    f: Function
    g: Function | None
    noise_type: NoiseType
    sde_type: SDEType
    errors: tuple[float, ...]
    grids: tuple[sk.AbstractSolver, ...] = ()
    adaptive: tuple[sk.AbstractSolver, ...] = ()
    fine: tuple[int, sk.AbstractSolver] = (8192, sk.RK4())
    end: float = 1.0
    start: tuple[float, ...] = ()

    def states(self, paths: int) -> Tensor:
        if self.start:
            return torch.tensor([self.start], dtype=torch.float64).expand(paths, -1)
        return torch.linspace(-1.5, 1.5, paths, dtype=torch.float64)[:, None]

    def solved(
        self, x0: Tensor, solver: sk.AbstractSolver, seed: int, steps: int = 0, tol: float = 0.0
    ) -> tuple[Tensor, int]:
        """The ends, and the evaluations of f and g: with adaptive steps those of the average
        sample.
        """
        f = Counting(self.f)
        g = Counting(self.g or state_free)
        if self.g is None:
            equation: sk.AbstractSDE = sk.ODE(f)
        else:
            equation = sk.SDE(
                f, g, self.noise_type, self.sde_type,
                noise_size=2 if self.noise_type == "general" else None,
            )  # fmt: skip
        noise = None if self.g is None else sk.BrownianPath(seed, (0.0, self.end), depth=26)
        control = sk.PIDController(tol, tol) if tol else None
        ts = [0.0, self.end] if tol else sk.uniform(0.0, self.end, steps)
        solution = sk.solve(
            equation, x0, ts, solver=solver, noise=noise, control=control, throw=False
        )
        count = f.calls + (g.calls if self.g else 0)
        if not tol:
            return solution.x, count
        assert solution.accepted is not None
        assert solution.rejected is not None
        tried = (solution.accepted + solution.rejected).double()
        return solution.x, round(count * float(tried.mean() / tried.max()))


def general(t: Any, x: Tensor) -> Tensor:
    return columns(torch.as_tensor(t), x)


def smooth(t: Any, x: Tensor) -> Tensor:
    return drift(torch.as_tensor(t), x)


def additive(t: Any, x: Tensor) -> Tensor:
    return state_free(torch.as_tensor(t), x)


def diagonal(t: Any, x: Tensor) -> Tensor:
    return elementwise(torch.as_tensor(t), x)


def van_der_pol(t: Any, x: Tensor) -> Tensor:
    y, v = x.unbind(1)
    return torch.stack([v, 1000 * (1 - y * y) * v - y], dim=1)


def fast_and_slow(t: Any, x: Tensor) -> Tensor:
    """A coordinate, and one that follows it within 1 / 4000."""
    slow, fast = x.unbind(1)
    return torch.stack([-torch.sin(slow) - 0.5 * fast, 4000 * (slow - fast)], dim=1)


def constant(t: Any, x: Tensor) -> Tensor:
    return torch.ones_like(x)


PAIRS = (sk.HeunEuler(), sk.Bosh3(), sk.Dopri5(), sk.Tsit5(), sk.Dopri8())
ITO = (sk.EulerMaruyama(), sk.Milstein(), sk.SRID2(), sk.ImplicitPlaten())
STRATONOVICH = (sk.EulerHeun(), sk.Heun(), sk.Midpoint(), sk.SPaRK(), sk.SlowRK())
ADDITIVE = (
    *(sk.EulerMaruyama(), sk.SEA(), sk.Heun(), sk.SRA1(), sk.ShARK(), sk.SRA3()),
    *(sk.AdamsBashforth(2), sk.AdamsMoulton(2)),
)
CASES = [
    Case("ordinary", smooth, None, "none", "ito", (1e-3, 1e-6, 1e-9),
         (sk.RK4(), sk.AdamsBashforth(4), sk.AdamsMoulton(4)), PAIRS, end=4.0),
    Case("ordinary, stiff", van_der_pol, None, "none", "ito", (1e-2, 1e-4), (),
         (sk.Rodas4(), sk.Rodas5P(), sk.Dopri5(), sk.Tsit5()), end=2.0, start=(2.0, 0.0)),
    Case("additive noise", smooth, additive, "additive", "ito", (1e-2, 1e-3, 1e-4), ADDITIVE,
         fine=(8192, sk.SRA3())),
    Case("diagonal noise, Ito", smooth, diagonal, "diagonal", "ito", (1e-1, 1e-2, 1e-3), ITO,
         fine=(8192, sk.SRID2())),
    Case("diagonal noise, Stratonovich", smooth, diagonal, "diagonal", "stratonovich",
         (1e-1, 1e-2, 1e-3), STRATONOVICH, fine=(8192, sk.SlowRK())),
    Case("general noise, Ito", smooth, general, "general", "ito", (1e-1, 3e-2),
         (sk.EulerMaruyama(), sk.Milstein()), fine=(8192, sk.Milstein())),
    Case("general noise, Stratonovich", smooth, general, "general", "stratonovich", (1e-1, 3e-2),
         (*STRATONOVICH, sk.LogODE()), fine=(8192, sk.SPaRK())),
    Case("additive noise, stiff", fast_and_slow, constant, "additive", "ito", (1e-1, 3e-2, 1e-2),
         (sk.EulerMaruyama(), sk.SRA3(), sk.SKROCK(4), sk.SKROCK(8), sk.SKROCK(16),
          sk.ImplicitEulerMaruyama(), sk.ImplicitPlaten()), fine=(32768, sk.SRA3()),
         start=(0.5, 0.5)),
]  # fmt: skip


def truth(case: Case, x0: Tensor, seed: int) -> Tensor:
    """A fine solve of the same paths; of the stiff equations tighter tolerances."""
    if case.name == "ordinary, stiff":
        return case.solved(x0, sk.Rodas4(), seed, tol=1e-10)[0]
    steps, solver = case.fine
    return case.solved(x0, solver, seed, steps)[0]


def curves(case: Case) -> list[dict[str, Any]]:
    """Evaluations and errors of each solver, of paths and, with noise, of the mean."""
    rows = []
    # Of general noise, and of one start, means are not known well enough.
    kinds = ["path"] if case.g is None or case.start or case.noise_type == "general" else KINDS
    for kind in kinds:
        paths = 1 if case.g is None and case.start else PATHS if kind == "path" else MANY
        x0 = case.states(100 if case.g is None and not case.start else paths)
        exact = truth(case, x0, 1)
        grids = GRIDS if kind == "path" else GRIDS[:5]
        runs = [(solver, {"steps": n}) for solver in case.grids for n in grids]
        runs += [(solver, {"tol": tol}) for solver in case.adaptive for tol in TOLERANCES]
        found: dict[str, Curve] = {}
        for solver, settings in runs:
            x, count = case.solved(x0, solver, 1, **settings)
            name = short(solver) + (", adaptive" if "tol" in settings else "")
            found.setdefault(name, []).append((count, error(kind, x, exact)))
        for name, curve in found.items():
            rows.append({"case": case.name, "kind": kind, "solver": name, "curve": curve})
            shown = "  ".join(f"{int(n)}: {e:.1e}" for n, e in curve)
            print(f"{case.name}, {kind}: {name:26s} {shown}", flush=True)
    return rows


def short(solver: sk.AbstractSolver) -> str:
    """Its name, with its number of values or stages."""
    return re.sub(r"\((?:k=)?(\d*).*", lambda m: f"({m[1]})" if m[1] else "", str(solver))


def error(kind: str, x: Tensor, exact: Tensor) -> float:
    """NaN for a mean that is not known to a third."""
    if kind == "path":
        size = exact.abs().clamp(min=1.0)
        return float(((x - exact) / size).square().mean().sqrt())
    difference = torch.cos(2 * x) - torch.cos(2 * exact)
    mean = float(difference.mean().abs())
    return mean if mean > 3 * float(difference.std()) / len(x) ** 0.5 else math.nan


def evaluations_at(curve: Curve, asked: float) -> float:
    """Of the first crossing, log-linear between the points; NaN where there is none."""
    points = [(n, e) for n, e in curve if math.isfinite(e) and e > 0]
    for (n0, e0), (n1, e1) in itertools.pairwise(points):
        if e1 <= asked < e0:
            share = math.log(e0 / asked) / math.log(e0 / e1)
            return n0 * (n1 / n0) ** share
    return points[0][0] if points and points[0][1] <= asked else math.nan


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The three solvers with the fewest evaluations for each case and each error."""
    found = []
    for case in CASES:
        for kind in KINDS:
            those = [r for r in rows if (r["case"], r["kind"]) == (case.name, kind)]
            for asked in case.errors:
                counts = [(evaluations_at(r["curve"], asked), r["solver"]) for r in those]
                best = sorted((round(n), s) for n, s in counts if math.isfinite(n))[:3]
                if best:
                    named = [{"solver": s, "evaluations": n} for n, s in best]
                    found.append({"case": case.name, "kind": kind, "error": asked, "best": named})
    return found


def of_paths(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The errors of paths of each solver, in lists by its numbers of evaluations, without those of
    unstable solves.
    """
    found = []
    for row in rows:
        points = [(n, float(f"{e:.3g}")) for n, e in row["curve"] if 0 < e < UNSTABLE]
        if row["kind"] == "path" and points:
            counts, errors = map(list, zip(*points, strict=True))
            curve = {"evaluations": counts, "error": errors}
            found.append({"case": row["case"], "solver": row["solver"], **curve})
    return found


def draw(rows: list[dict[str, Any]]) -> None:
    """Errors of paths against evaluations, a panel for each case."""
    figure = Figure(figsize=(14, 7), layout="constrained")
    axes = figure.subplots(2, 4).flatten()
    for ax, case in zip(axes, CASES, strict=True):
        for row in rows:
            if (row["case"], row["kind"]) == (case.name, "path"):
                ax.loglog(*zip(*row["curve"], strict=True), "o-", ms=3, label=row["solver"])
        ax.set(title=case.name, xlabel="evaluations of f and g", ylabel="error of paths")
        ax.legend(fontsize=6)
    figure.savefig(RESULTS / "work_precision.png", dpi=150)


def main() -> None:
    torch.set_num_threads(1)
    result = environment(dtype="torch.float64", seed=1, paths=PATHS, paths_of_means=MANY)
    rows = [row for case in CASES for row in curves(case)]
    save("work_precision", {**result, "rows": rows})
    found = table(rows)
    publish("work_precision", result, found)
    publish("curves", result, of_paths(rows))
    print("\n".join(map(str, found)))
    draw(rows)


if __name__ == "__main__":
    with torch.no_grad():
        main()
