"""The probability flow of a mixture with narrow components: evaluations against the error of x at
the end, ours and others'.

From draws of p_T down to sigma / alpha = 1e-3 ("sample") and back from there ("encode"), under each
diffusion. Ours is `AdaptiveFlow`: w = x / r on its own clock, each sample its own steps. The others
integrate dx/dt = f x - g^2 score / 2 in the diffusion's own time, as their users do: scipy sample
by sample, torchdiffeq the batch as one system, told to step onto the end so that nothing is
interpolated, and sample by sample ("alone"). A second time they get w over l = log(alpha / sigma),
to see what the equation does and what the solver. Every call of the right-hand side counts, also
those of first steps and Jacobians.

At one nominal tolerance they differ in error, so only equal errors are compared: evaluations at an
RMS error (per coordinate, over the samples, against scipy's DOP853 at 1e-13), on the straight line
in logarithms between the two runs around it.

    python benchmarks/probability_flow.py
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy
import torch
import torchdiffeq
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from throughput import adaptive_overhead
from torch import Tensor

from sdekit import AbstractSolver, Bosh3, Dopri5, Dopri8, Tsit5
from sdekit_diffusion import VESDE, VPSDE, AdaptiveFlow, GaussianMixture, SubVPSDE
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._sampling.coordinates import Coordinates

SAMPLES = 16
SEED = 1
END = 1e-3
LEVELS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
TOLERANCES = tuple(10 ** (-k / 2) for k in range(2, 20))
SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]])
COVARIANCES = np.array(
    [[[0.05, 0.02], [0.02, 0.04]], [[0.1, 0.0], [0.0, 0.01]], [[0.02, -0.01], [-0.01, 0.05]]]
)
MIXTURE = GaussianMixture(*map(torch.from_numpy, (WEIGHTS, MEANS, COVARIANCES)))
VARIANCES, AXES = np.linalg.eigh(COVARIANCES)
OURS: dict[str, AbstractSolver] = {
    "Bosh3": Bosh3(),
    "Dopri5": Dopri5(),
    "Tsit5": Tsit5(),
    "Dopri8": Dopri8(),
}
SCIPY = ("RK45", "DOP853", "LSODA")
TORCHDIFFEQ = ("bosh3", "dopri5", "dopri8")

# X at the end and evaluations per sample, by tolerance.
Run = Callable[[float], tuple[NDArray[np.float64], float]]
Curve = list[dict[str, float]]


@dataclass
class Right:
    """A right-hand side in one coordinate, "t" for x or "l" for w = x / r, counting its calls; for
    numpy and for torch.
    """

    sde: AbstractDiffusion
    coordinate: str
    span: tuple[float, float]
    calls: int = 0

    @property
    def ends(self) -> tuple[float, float]:
        start, stop = (l if self.coordinate == "l" else float(self.sde.time(l)) for l in self.span)
        return start, stop

    def unit(self, l: float) -> float:
        """How much x is of one unit of the state."""
        t = float(self.sde.time(l))
        return (
            math.hypot(float(self.sde.alpha(t)) * MIXTURE.data_std, float(self.sde.sigma(t)))
            if self.coordinate == "l"
            else 1.0
        )

    def coefficients(self, time: float) -> tuple[float, float, float, float, float]:
        """alpha, sigma and the unit of x there; a and b of a x + b D."""
        # Others ask for times beyond the ends, where the diffusion may not exist.
        time = min(max(float(time), min(self.ends)), max(self.ends))
        t = float(self.sde.time(time)) if self.coordinate == "l" else time
        alpha = float(self.sde.alpha(t))
        sigma = float(self.sde.sigma(t))
        if self.coordinate == "l":
            r = math.hypot(alpha * MIXTURE.data_std, sigma)
            return alpha, sigma, r, -((alpha * MIXTURE.data_std / r) ** 2), alpha / r
        half = 0.5 * float(self.sde.g(t)) ** 2 / sigma**2
        return alpha, sigma, 1.0, float(self.sde.f(t)) + half, -half * alpha

    def numpy(self, time: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
        self.calls += 1
        alpha, sigma, r, a, b = self.coefficients(time)
        return a * x + b * denoise(alpha, sigma, x * r)

    def torch(self, time: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        alpha, sigma, r, a, b = self.coefficients(float(time))
        return a * x + b * torch.from_numpy(denoise(alpha, sigma, x.numpy() * r))


def denoise(alpha: float, sigma: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """MIXTURE.denoise for points `(..., 2)` at one time, in numpy, where a single point is
    cheap.
    """
    z = ((x[..., None, :] - alpha * MEANS)[..., None, :] @ AXES)[..., 0, :]
    variances = alpha * alpha * VARIANCES + sigma * sigma
    logits = np.log(WEIGHTS) - 0.5 * (z * z / variances + np.log(variances)).sum(-1)
    r = np.exp(logits - logits.max(-1, keepdims=True))
    r /= r.sum(-1, keepdims=True)
    along = (AXES @ (alpha * VARIANCES / variances * z)[..., None])[..., 0]
    return (r[..., None] * (MEANS + along)).sum(-2)


def with_scipy(
    sde: AbstractDiffusion,
    x: NDArray[np.float64],
    span: tuple[float, float],
    method: str,
    coordinate: str,
) -> Run:
    right = Right(sde, coordinate, span)
    start, stop = map(right.unit, span)

    def run(tol: float) -> tuple[NDArray[np.float64], float]:
        right.calls = 0
        ends = [
            solve_ivp(right.numpy, right.ends, p / start, method=method, rtol=tol, atol=tol).y[
                :, -1
            ]
            for p in x
        ]
        return np.array(ends) * stop, right.calls / len(x)

    return run


def with_torchdiffeq(
    sde: AbstractDiffusion,
    x: NDArray[np.float64],
    span: tuple[float, float],
    method: str,
    coordinate: str,
) -> Run:
    right = Right(sde, coordinate, span)
    start, stop = map(right.unit, span)
    ts = torch.tensor(right.ends, dtype=torch.float64)

    def run(tol: float) -> tuple[NDArray[np.float64], float]:
        right.calls = 0
        state = torch.from_numpy(x / start)
        options = {"step_t": ts[1:]}
        states = torchdiffeq.odeint(
            right.torch, state, ts, rtol=tol, atol=tol, method=method, options=options
        )
        return np.asarray(states[-1], dtype=np.float64) * stop, float(right.calls)

    return run


def alone(whole: Callable[[NDArray[np.float64]], Run], x: NDArray[np.float64]) -> Run:
    """Each sample a system of its own."""

    def run(tol: float) -> tuple[NDArray[np.float64], float]:
        found = [whole(point[None])(tol) for point in x]
        return np.concatenate([end for end, _ in found]), sum(calls for _, calls in found) / len(x)

    return run


def with_ours(
    sde: AbstractDiffusion,
    x: NDArray[np.float64],
    span: tuple[float, float],
    solver: AbstractSolver,
) -> Run:
    coordinates = Coordinates.of(MIXTURE, sde)
    model = coordinates.standardised(MIXTURE)
    start, stop = (l + math.log(coordinates.std) for l in span)
    t0, t1 = (float(coordinates.time(l)) for l in (start, stop))
    u = coordinates.standard(t0, torch.from_numpy(x))

    def run(tol: float) -> tuple[NDArray[np.float64], float]:
        found = AdaptiveFlow(tol, tol, solver).solve_flow(model, u, (start, stop))
        return coordinates.physical(t1, found.x).numpy(), float(found.evaluations.double().mean())

    return run


def methods(
    sde: AbstractDiffusion, x: NDArray[np.float64], span: tuple[float, float]
) -> dict[str, Run]:
    """All that are compared, by name; what a name begins with says whose it is, and its end the
    coordinate.
    """
    found = {f"ours {name}": with_ours(sde, x, span, solver) for name, solver in OURS.items()}
    for coordinate in ("t", "l"):
        found |= {
            f"scipy {m}, {coordinate}": with_scipy(sde, x, span, m, coordinate) for m in SCIPY
        }
        for m in TORCHDIFFEQ:
            whole = functools.partial(
                with_torchdiffeq, sde, span=span, method=m, coordinate=coordinate
            )
            found[f"torchdiffeq {m}, {coordinate}"] = whole(x)
            if coordinate == "t":
                found[f"torchdiffeq {m} alone, t"] = alone(whole, x)
    return found


def curve(name: str, run: Run, exact: NDArray[np.float64]) -> Curve:
    """Error and evaluations by tolerance; the slowest kinds take fewer."""
    tolerances = TOLERANCES[: 13 if "bosh3" in name.lower() else None][
        :: 2 if "alone" in name else 1
    ]
    found = []
    for tol in tolerances:
        x, evaluations = run(tol)
        error = float(np.sqrt(np.mean((x - exact) ** 2)))
        found.append({"tolerance": tol, "error": error, "evaluations": evaluations})
    return found


def evaluations_at(found: Curve, level: float) -> float:
    """The fewest at which the curve has this error; NaN where it never does."""
    known = [found[0]["evaluations"]] if found[0]["error"] <= level else []
    for a, b in pairwise(found):
        if a["error"] > level >= b["error"]:
            u = math.log(a["error"] / level) / math.log(a["error"] / b["error"])
            known.append(a["evaluations"] ** (1 - u) * b["evaluations"] ** u)
    return min(known, default=math.nan)


def compare(sde: AbstractDiffusion, span: tuple[float, float]) -> dict[str, Any]:
    """The curves of all methods, evaluations at each level, and the fewest of ours and of the
    others in each coordinate.
    """
    x = MIXTURE.marginal(float(sde.time(span[0])), sde).sample(SAMPLES, seed=SEED).numpy()
    exact = with_scipy(sde, x, span, "DOP853", "l")(1e-13)[0]
    check = float(np.abs(with_ours(sde, x, span, Dopri8())(1e-12)[0] - exact).max())
    curves = {name: curve(name, run, exact) for name, run in methods(sde, x, span).items()}
    table = {
        name: [evaluations_at(found, level) for level in LEVELS] for name, found in curves.items()
    }
    fewest = {}
    for who, end in (("ours", ""), ("others", ", t"), ("others", ", l")):
        rows = [
            row
            for name, row in table.items()
            if name.startswith("ours") == (who == "ours") and name.endswith(end)
        ]
        fewest[who + end] = np.nanmin(rows, axis=0).tolist()
    return {
        "reference against ours at 1e-12": check,
        "curves": curves,
        "evaluations": table,
        "fewest": fewest,
    }


def fewest(problems: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each problem, kind of solver and error, with the fewest evaluations."""
    ways = {"sample": "noise to data", "encode": "data to noise"}
    solvers = {"ours": "sdekit", "others, t": "others", "others, l": "others, in log-SNR"}
    rows = []
    for name, problem in problems.items():
        sde, way = name.split(", ")
        for who, counts in problem["fewest"].items():
            common = {"diffusion": sde, "direction": ways[way], "solver": solvers[who]}
            rows += [
                {**common, "error": error, "evaluations": round(count)}
                for error, count in zip(LEVELS, counts, strict=True)
                if math.isfinite(count)
            ]
    return rows


def show(title: str, result: dict[str, Any]) -> None:
    print(
        f"\n{title}: evaluations per sample at an RMS error of  (two references differ by "
        f"{result['reference against ours at 1e-12']:.0e})"
    )
    print(f"{'':28s}" + "".join(f"{level:8.0e}" for level in LEVELS))
    for name, row in (
        result["evaluations"] | {f"fewest, {who}": row for who, row in result["fewest"].items()}
    ).items():
        print(f"{name:28s}" + "".join(f"{value:8.0f}" for value in row), flush=True)


def draw(results: dict[str, Any]) -> None:
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True)
    for place, (title, result) in zip(axes.T.flat, results.items(), strict=True):
        for name, found in result["curves"].items():
            if name.endswith(", l") or "alone" in name:
                continue
            style = "-o" if name.startswith("ours") else ":x" if name.startswith("scipy") else "--+"
            number = (list(OURS) + list(SCIPY) + list(TORCHDIFFEQ)).index(
                name.split()[1].rstrip(",")
            )
            place.plot(
                [p["evaluations"] for p in found],
                [p["error"] for p in found],
                style,
                color=f"C{number}",
                markersize=3,
                label=name,
            )
        place.set(xscale="log", yscale="log", title=title, xlim=(12, 1000), ylim=(1e-9, 1))
        place.set_xticks(ticks := (20, 50, 100, 200, 500), map(str, ticks))
        place.xaxis.set_minor_formatter("")
    for place in axes[1]:
        place.set_xlabel("evaluations per sample")
    for place in axes[:, 0]:
        place.set_ylabel("RMS error of x(end)")
    axes[0, 0].legend(fontsize=6, frameon=False)
    figure.savefig(RESULTS / "probability_flow.png", dpi=120)


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "environment": environment(
            dtype="float64", seed=SEED, samples=SAMPLES, scipy=scipy.__version__
        )
    }
    result["overhead"] = adaptive_overhead()
    problems: dict[str, Any] = {}
    for name, sde in SDES.items():
        low = float(sde.log_snr(1.0))
        high = -math.log(END)
        for way, ends in (("sample", (low, high)), ("encode", (high, low))):
            start = time.perf_counter()
            problems[f"{name}, {way}"] = compare(sde, ends)
            show(f"{name}, {way} ({time.perf_counter() - start:.0f} s)", problems[f"{name}, {way}"])
    for who in ("others, t", "others, l"):
        ratios = np.array(
            [np.divide(p["fewest"]["ours"], p["fewest"][who]) for p in problems.values()]
        )
        print(
            f"\nours over {who}, by error level, worst {ratios.max(0).round(2)}, all: "
            f"{ratios.round(2).tolist()}  (bar: <= 1)"
        )
        result[f"ours / {who}"] = ratios.tolist()
    save("probability_flow", result | {"problems": problems})
    publish("probability_flow", result["environment"], fewest(problems))
    draw(problems)


if __name__ == "__main__":
    with torch.no_grad():
        main()
