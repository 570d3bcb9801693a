"""Strong and weak orders of every solver, forwards and backwards in time, with torchsde's errors on
the same paths.

Errors are root mean squares over paths at the end of the solve, against a fine grid on the same
Brownian paths or the exact solution. Weak errors are those of E cos(2 x), paired path by path, with
their standard error; a fit from samples is coarse, and the tests measure weak orders by quadrature.
torchsde's solvers read our paths; it solves increasing times only, so that backwards they are given
the equation in reversed time and the reversed path. diffrax's do where it is installed, forwards.

    python benchmarks/order.py [--quick]
"""

import math
import sys
import time
from typing import Any

import _diffrax
import numpy as np
import torch
import torchsde
from _bench import RESULTS, environment, publish, save
from _problems import CASES, THEIRS, Case
from matplotlib.figure import Figure
from torch import Tensor

import sdekit as sk
from sdekit import AbstractSDE, AbstractSolver, BrownianPath

# for strong and for weak errors
PATHS = 2000
MANY = 100_000
STEPS = (16, 32, 64, 128, 256)
FEW = (4, 8, 16, 32)
AT = 128  # steps at which errors are compared
LIBRARIES = ("torchsde", "diffrax")
NONLINEAR = (
    "additive",
    "diagonal",
    "diagonal, Stratonovich",
    "noises that do not commute, Ito",
    "noises that do not commute, Stratonovich",
)


def name_of(solver: AbstractSolver) -> str:
    return str(solver).replace("()", "")


def start(paths: int) -> Tensor:
    return torch.linspace(0.5, 1.5, paths, dtype=torch.float64).unsqueeze(-1)


def initial(case: Case, paths: int, direction: int) -> Tensor:
    x0 = start(paths)
    # The clock's state is y = x kappa.
    return x0 * (case.span[::direction][0]) if case.geometric else x0


def ends(
    case: Case, solver: AbstractSolver, steps: int, direction: int, x0: Tensor, path: BrownianPath
) -> Tensor:
    grid = case.grid(steps, direction)
    x = sk.solve(case.equation, x0, grid, solver=solver, noise=path).x
    return case.equation.physical(grid[-1], x)


def truth(case: Case, direction: int, x0: Tensor, path: BrownianPath, fine: int) -> Tensor:
    if case.exact is not None:
        w = next(
            iter(path.increments(list(case.span[::direction]), x0, tuple(x0.shape[1:]), levy=False))
        ).w
        assert w is not None
        return case.exact(x0, w, direction)
    return ends(case, case.reference, fine, direction, x0, path)


class Theirs(torch.nn.Module):
    """An equation as torchsde's, run backwards by s = 1 - t with the drift's sign changed."""

    def __init__(self, equation: AbstractSDE, direction: int) -> None:
        super().__init__()
        self.equation = equation
        self.direction = direction
        self.sde_type = equation.sde_type
        self.noise_type = (
            "diagonal" if equation.noise_type in ("additive", "diagonal") else "general"
        )
        if equation.noise_type == "additive":
            self.noise_type = "additive"

    def _t(self, s: Tensor) -> float:
        return float(s) if self.direction > 0 else 1.0 - float(s)

    def f(self, s: Tensor, x: Tensor) -> Tensor:
        return self.direction * self.equation.drift(self._t(s), x)

    def g(self, s: Tensor, x: Tensor) -> Tensor:
        g = torch.as_tensor(self.equation.diffusion(self._t(s), x))
        return g.unsqueeze(-1) if self.noise_type == "additive" else g


class Reversed(sk.interop.TorchsdeBrownian):
    """The path read backwards from its end: W -> -W, and U follows from H -> +H."""

    def __call__(
        self,
        ta: Any,
        tb: Any = None,
        return_U: bool = False,
        return_A: bool = False,
    ) -> Any:
        like = torch.empty(self.shape, dtype=self.dtype)
        t0 = 1.0 - float(ta)
        t1 = 1.0 - float(tb)
        shape = tuple(like.shape[1:])
        increment = next(iter(self.path.increments([t0, t1], like, shape, levy=return_U)))
        w = increment.w
        h = increment.h
        assert w is not None
        return w if h is None else (w, (t0 - t1) * (0.5 * w + h))


def torchsde_errors(
    case: Case, direction: int, x0: Tensor, path: BrownianPath, exact: Tensor
) -> dict[str, float]:
    shape = (len(x0), *(case.equation.noise_shape(x0) or ()))
    bm = (sk.interop.TorchsdeBrownian if direction > 0 else Reversed)(
        path, shape, dtype=torch.float64
    )
    found = {}
    for method in case.theirs:
        sde = Theirs(case.equation, direction)
        if sde.noise_type == "additive" and method in THEIRS:
            sde.sde_type = "stratonovich"  # the same equation
        ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
        x = torchsde.sdeint(sde, x0, ts, bm=bm, dt=1 / AT, method=method)[-1]
        found[method] = rms(x - exact)
    return found


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def order(steps: tuple[int, ...], errors: list[float]) -> float:
    good = [(n, e) for n, e in zip(steps, errors, strict=True) if e > 1e-12]
    if len(good) < 2:
        return math.nan
    return -float(np.polyfit(np.log([n for n, _ in good]), np.log([e for _, e in good]), 1)[0])


def weak(
    case: Case,
    solver: AbstractSolver,
    direction: int,
    x0: Tensor,
    path: BrownianPath,
    exact: Tensor,
) -> dict[str, Any]:
    """|E cos 2x - E cos 2x_exact| with standard errors; the fit takes what is known to a third."""
    errors = []
    deviations = []
    for n in FEW:
        difference = torch.cos(2 * ends(case, solver, n, direction, x0, path)) - torch.cos(
            2 * exact
        )
        errors.append(abs(float(difference.mean())))
        deviations.append(float(difference.std()) / len(x0) ** 0.5)
    known = [(n, e) for n, e, s in zip(FEW, errors, deviations, strict=True) if e > 3 * s]
    fit = order(tuple(n for n, _ in known), [e for _, e in known]) if len(known) > 1 else math.nan
    return {"weak errors": errors, "standard errors": deviations, "weak order": fit}


def study(case: Case, direction: int, quick: bool) -> list[dict[str, Any]]:
    paths, many = (
        (200, 2000) if quick else (PATHS, MANY if case.equation.noise_type != "none" else PATHS)
    )
    fine = 1024 if quick else case.fine
    x0 = initial(case, paths, direction)
    path = case.path(1)
    exact = truth(case, direction, x0, path, fine)
    y0 = initial(case, many, direction)
    other = case.path(2)
    limit = truth(case, direction, y0, other, 512)
    theirs = {
        f"torchsde {k}": v for k, v in torchsde_errors(case, direction, x0, path, exact).items()
    }
    if _diffrax.INSTALLED and direction > 0:
        theirs |= {
            f"diffrax {k}": rms(x - exact)
            for k, x in _diffrax.ends(case.name, x0, path, AT).items()
        }
    rows = []
    for solver in case.solvers:
        errors = [rms(ends(case, solver, n, direction, x0, path) - exact) for n in STEPS]
        steps, used = (STEPS[2:], errors[2:]) if case.slow else (STEPS, errors)
        row = {"problem": case.name, "direction": direction, "solver": name_of(solver)}
        row |= {"promised": list(solver.order[case.equation.noise_type])}
        row |= {"strong errors": errors, "strong order": order(steps, used)}
        row |= weak(case, solver, direction, y0, other, limit)
        rows.append(row)
        print(
            f"  {row['solver']:22s} promised {row['promised'][0]:3.1f}/{row['promised'][1]:3.1f}  "
            f"strong {row['strong order']:5.2f}  weak {row['weak order']:5.2f}  error at {AT} "
            f"steps {errors[STEPS.index(AT)]:.2e}",
            flush=True,
        )
    best = min(row["strong errors"][STEPS.index(AT)] for row in rows)
    for method, error in theirs.items():
        rows.append(
            {"problem": case.name, "direction": direction, "solver": method, "error": error}
        )
        print(f"  {method:22s} {'':40s} error at {AT} steps {error:.2e}")
    if theirs:
        print(f"  best of ours {best:.2e}, best of theirs {min(theirs.values()):.2e}")
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    for axes, case in zip(figure.subplots(2, 5).flat, CASES, strict=True):
        names = [name_of(solver) for solver in case.solvers]
        for row in rows:
            if row["problem"] != case.name:
                continue
            if "error" in row:
                axes.plot(AT, row["error"], "k_", markersize=9, markeredgewidth=0.8)
                continue
            style = {
                "color": f"C{names.index(row['solver'])}",
                "linestyle": "-" if row["direction"] > 0 else ":",
            }
            axes.plot(
                STEPS,
                row["strong errors"],
                label=row["solver"] if row["direction"] > 0 else None,
                **style,
            )
        axes.set(xscale="log", yscale="log", xticks=STEPS, xticklabels=map(str, STEPS))
        axes.minorticks_off()
        axes.set_title(case.name, fontsize=8)
        axes.tick_params(labelsize=7)
        low, high = axes.get_ylim()
        axes.set_ylim(low * (low / high) ** 0.5, high)  # room for the legend
        axes.legend(fontsize=5.5, frameon=False, loc="lower left", ncols=2)
    figure.supxlabel(
        "steps (dotted: backwards in time; dashes: methods of torchsde and diffrax on the same "
        "paths)",
        fontsize=9,
    )
    figure.supylabel("strong error", fontsize=9)
    figure.savefig(RESULTS / "order.png", dpi=130)


def best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The method with the least error at `AT` steps, of each library, way and problem with a
    nonlinear drift.
    """
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        library, _, method = row["solver"].partition(" ")
        if library not in LIBRARIES:
            library = "sdekit"
            method = row["solver"]
        error = row["error"] if "error" in row else row["strong errors"][STEPS.index(AT)]
        key = row["problem"], library, row["direction"]
        if error < found.get(key, {"error": math.inf})["error"]:
            way = "forwards" if key[2] > 0 else "backwards"
            names = {"problem": key[0], "library": key[1], "direction": way}
            found[key] = {**names, "method": method, "error": error}
    return [row for row in found.values() if row["problem"] in NONLINEAR]


def main() -> None:
    quick = "--quick" in sys.argv
    torch.set_num_threads(1)
    found = {
        "environment": environment(dtype="float64", seed=[1, 2], paths=[PATHS, MANY], quick=quick),
        "rows": [],
    }
    begun = time.perf_counter()
    for case in CASES:
        for direction in (1, -1):
            print(f"{case.name}, {'forwards' if direction > 0 else 'backwards'}", flush=True)
            found["rows"] += study(case, direction, quick)
    print(f"{time.perf_counter() - begun:.0f} s")
    save("order", found)
    if not quick:
        publish("order", found["environment"], best(found["rows"]))
    draw(found["rows"])


if __name__ == "__main__":
    with torch.no_grad():
        main()
