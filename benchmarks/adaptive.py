"""Adaptive steps of a stochastic equation: the bias that is left, and what it costs, with one path
and with noise drawn again.

The reverse equation of a Gaussian of variance 0.25 in 1, 2, 4 and 16 dimensions, from sigma = 50 to
1e-3, on the clock dy = D dkappa + dB. The bias of the variance is measured against a fine grid on
the same paths, so that it has no sampling noise. "Drawn again" takes the same steps with the same
controller, but new noise after a rejection, as many samplers do.

Then geometric Brownian motion by SRID2, where g depends on the state: errors against the exact
solution on the same paths, beside a grid of about as many equal steps.

    python benchmarks/adaptive.py
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from torch import Tensor

from sdekit import (
    SDE,
    SRA1,
    SRID2,
    BrownianPath,
    Clocked,
    Increment,
    PIDController,
    geometric,
    solve,
    uniform,
)
from sdekit.elementary import Time, broadcast, exp

SAMPLES = 20_000
LOW = 50.0**-2
HIGH = 1e-3**-2
TOLERANCES = (0.2, 0.05, 1e-2, 2e-3)
DIMENSIONS = (1, 2, 4, 16)


def denoiser(l: Time, x: Tensor) -> Tensor:
    return x * broadcast(0.25 / (0.25 + exp(-2.0 * l)), x)


EQUATION = Clocked(denoiser, lambda l: exp(-2.0 * l), a=2.0, q=2.0)


@dataclass(frozen=True, eq=False)
class DrawnAgain(BrownianPath):
    """Noise that forgets: every reading is new."""

    def reader(self, x: Tensor, shape: tuple[int, ...] | None, *, levy: bool = False) -> Any:
        generator = torch.Generator().manual_seed(int(x[:, 0].sum().abs() * 1e6) % 2**31)

        def read(t0: Tensor, t1: Tensor) -> Increment:
            scale = broadcast((t1 - t0).abs().sqrt(), x)
            w, h = torch.randn(2, *x.shape, generator=generator, dtype=x.dtype)
            return Increment(w * scale, h * scale / math.sqrt(12))

        return read


def state_dependent() -> list[dict[str, float]]:
    """dx = -x dt + 0.8 x dW on [0, 1], 20,000 paths."""
    equation = SDE(lambda t, x: -x, lambda t, x: 0.8 * x)
    x0 = torch.ones(SAMPLES, 1, dtype=torch.float64)
    path = BrownianPath(5)
    w = next(iter(path.increments([0.0, 1.0], x0, (1,)))).w
    assert w is not None
    exact = torch.exp(-1 - 0.32 + 0.8 * w)
    rows = []
    for tol in (1e-2, 1e-3, 1e-4):
        solution = solve(
            equation, x0, [0.0, 1.0], solver=SRID2(), noise=path, control=PIDController(tol, tol)
        )
        assert solution.accepted is not None
        steps = round(float((solution.evaluations / 3).double().mean()))
        even = solve(
            equation, x0, path.snap(uniform(0.0, 1.0, steps)), solver=SRID2(), noise=path
        ).x
        row = {"tolerance": tol, "steps tried": float(steps)}
        for name, x in (("adaptive", solution.x), ("equal steps", even)):
            error = x - exact
            row |= {
                f"{name}, rms": float(error.square().mean().sqrt()),
                f"{name}, bias": float(error.mean() / exact.mean()),
            }
        row["standard error of the adaptive bias"] = float(
            (solution.x - exact).std() / exact.mean() / SAMPLES**0.5
        )
        rows.append(row)
        print("  ".join(f"{k} {v:.3g}" for k, v in row.items()), flush=True)
    return rows


def additive(dim: int) -> list[dict[str, float]]:
    """The bias in `dim` dimensions at each tolerance, with one path and with new noise."""
    n = SAMPLES // dim
    noise = torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y0 = LOW * math.sqrt(0.25 + 1 / LOW) * noise
    knots = geometric(LOW, HIGH, 12).tolist()
    path = BrownianPath(5, knots)
    exact = (
        (solve(EQUATION, y0, geometric(LOW, HIGH, 2000), solver=SRA1(), noise=path).x / HIGH)
        .square()
        .mean()
    )
    rows = []
    for tol in TOLERANCES:
        control = PIDController(tol, tol)
        row = {"dimension": dim, "tolerance": tol}
        for name, source in (("one path", path), ("drawn again", DrawnAgain(5, knots))):
            solution = solve(
                EQUATION, y0, [LOW, HIGH], solver=SRA1(), noise=source, control=control
            )
            variance = (solution.x / HIGH).square().mean()
            row[name] = float(variance / (exact if name == "one path" else 0.25) - 1)
            row[f"{name}, evaluations"] = float(solution.evaluations.double().mean())
            assert solution.rejected is not None
            row[f"{name}, rejected"] = float(solution.rejected.double().mean())
        rows.append(row)
        print(
            f"d = {dim:2d}  tolerance {tol:5.3f}  one path: bias {100 * row['one path']:7.3f} "
            f"%  {row['one path, evaluations']:6.1f} evaluations  "
            f"{row['one path, rejected']:5.2f} rejected   drawn again: bias "
            f"{100 * row['drawn again']:7.3f} % +- {100 * math.sqrt(2 / SAMPLES):.1f} %",
            flush=True,
        )
    return rows


def biases(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each dimension, tolerance and kind of noise."""
    return [
        {
            "dimension": row["dimension"],
            "noise after a rejected step": name,
            "tolerance": row["tolerance"],
            "bias": row[name],
            "evaluations": row[f"{name}, evaluations"],
        }
        for row in rows
        for name in ("one path", "drawn again")
    ]


def draw(rows: list[dict[str, float]]) -> None:
    """Writes adaptive.png: the bias against the tolerance."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for i, dim in enumerate(DIMENSIONS):
        here = [row for row in rows if row["dimension"] == dim]
        for name, style in (("one path", "-o"), ("drawn again", ":x")):
            found = [abs(row[name]) for row in here]
            axes.plot(
                TOLERANCES, found, style, color=f"C{i}", markersize=4, label=f"d = {dim}, {name}"
            )
    axes.set(xscale="log", yscale="log", xlabel="tolerance", ylabel="|bias of the variance|")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(RESULTS / "adaptive.png", dpi=120)


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "environment": environment(dtype="float64", seed=5, samples=SAMPLES),
        "rows": [row for dim in DIMENSIONS for row in additive(dim)],
    }
    result["state-dependent noise"] = state_dependent()
    save("adaptive", result)
    publish("adaptive", result["environment"], biases(result["rows"]))
    publish("adaptive_state", result["environment"], result["state-dependent noise"])
    draw(result["rows"])


if __name__ == "__main__":
    with torch.no_grad():
        main()
