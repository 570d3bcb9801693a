"""How the error of particles falls: with their number K as K^{-1/2}, and with the steps at the weak
order of the rule.

Two modes of a line, exact scores, y between them. Errors of log p(y): root mean square over clouds
against K, and the mean over all clouds against the steps, whose standard error is printed. With
fewer steps than those of `RULES` the weights vary too much for a bias to be seen. The standard
errors that single clouds state stand beside the spread of them all. `python
benchmarks/posterior_error.py`, eight minutes on one thread.
"""

import math
from typing import Any, NamedTuple

import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure

import sdekit_diffusion as sd
from sdekit import AbstractSolver, AdamsBashforth, AdamsMoulton

SEED = 3
LAW = sd.GaussianMixture([0.7, 0.3], torch.tensor([[-1.5], [1.0]]).double(), [0.4, 0.6])
OBSERVATION = sd.LinearObservation(torch.eye(1).double(), torch.tensor([-0.3]).double(), 1.0)
NUMBERS = (16, 32, 64, 128, 256, 512, 1024)
CLOUDS = 64  # for each number of particles
FINE = 200  # steps, where the number varies
LARGE = 4096  # particles of a cloud, where the steps vary
FEWEST = 3  # numbers of steps whose bias is clear, for a slope


class Convergence(NamedTuple):
    """A rule, numbers of steps, and the clouds for each: more where the bias is smaller."""

    rule: AbstractSolver
    steps: tuple[int, ...]
    clouds: int


RULES = {
    "AdamsBashforth(1)": Convergence(AdamsBashforth(1), (12, 16, 20, 24, 32), 60),
    "AdamsMoulton(2)": Convergence(AdamsMoulton(2), (16, 20, 24, 32), 800),
}


def clouds(
    solver: AbstractSolver, particles: int, steps: int, count: int
) -> tuple[torch.Tensor, float]:
    """The evidence of each cloud, over the exact one, and the root mean square of the standard
    errors that each states alone.
    """
    method = sd.Particles(particles, steps, method=sd.OnClock(solver, eta=1.0))
    found = sd.sample_posterior(
        LAW, OBSERVATION, count * particles, sde="vp", method=method, seed=SEED
    )
    assert found.ancestors is not None
    parts = (
        values.unflatten(0, (count, particles))
        for values in (found.x, found.log_weights, found.ancestors)
    )
    x, log_weights, ancestors = parts
    alone = sd.WeightedSamples(x, log_weights, ancestors=ancestors)
    stated = float(alone.log_evidence_stderr.square().mean().sqrt())
    return torch.exp(found.log_evidence_by_cloud - LAW.log_evidence(OBSERVATION)), stated


def slope(x: list[float], y: list[float]) -> float:
    """Of log y against log x, by least squares."""
    a, b = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    return float(((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum())


def slopes(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The power with which the error falls, of the particles and of the steps of each rule."""
    found = [{"error against": "the number of particles", "power": rows["slope"]}]
    found += [
        {"error against": f"the steps of {name}", "power": -rows[name]["order"]} for name in RULES
    ]
    return found


def main() -> None:
    torch.set_num_threads(1)
    result = environment(dtype="torch.float64", seed=SEED, clouds=CLOUDS)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    found = [clouds(AdamsMoulton(2), k, FINE, CLOUDS) for k in NUMBERS]
    spreads = [float((ratio - 1).square().mean().sqrt()) for ratio, _ in found]
    stated = [error for _, error in found]
    fitted = slope(list(map(float, NUMBERS)), spreads)
    print(f"error against particles: {[round(s, 4) for s in spreads]}, slope {fitted:.2f}")
    print(f"as clouds state them alone: {[round(s, 4) for s in stated]}")
    left.loglog(NUMBERS, spreads, "o-", label=f"slope {fitted:.2f}")
    left.set(xlabel="particles", ylabel="root mean square error of p(y), relative")
    left.legend()
    numbers = list(map(str, NUMBERS))
    rows: dict[str, Any] = {
        "particles": dict(zip(numbers, spreads, strict=True)),
        "stated": dict(zip(numbers, stated, strict=True)),
        "slope": fitted,
    }
    for name, (rule, numbers_of_steps, repeats) in RULES.items():
        biases = []
        stderrs = []
        for steps in numbers_of_steps:
            ratio, _ = clouds(rule, LARGE, steps, repeats)
            biases.append(abs(float(ratio.mean()) - 1))
            stderrs.append(float(ratio.std()) / math.sqrt(repeats))
        clear = [i for i in range(len(biases)) if biases[i] > 3 * stderrs[i]]
        order = math.nan
        if len(clear) >= FEWEST:
            order = -slope([float(numbers_of_steps[i]) for i in clear], [biases[i] for i in clear])
        print(
            f"{name}: bias {[f'{b:.4f} +- {s:.4f}' for b, s in zip(biases, stderrs, strict=True)]},"
            f" order {order:.2f} over {len(clear)} numbers of steps"
        )
        right.errorbar(
            numbers_of_steps, biases, stderrs, fmt="o-", label=f"{name}: order {order:.2f}"
        )
        rows[name] = {"steps": numbers_of_steps, "bias": biases, "stderr": stderrs, "order": order}
    right.set(xscale="log", yscale="log", xlabel="steps", ylabel="bias of p(y), relative")
    right.legend()
    save("posterior_error", {**result, "rows": rows})
    publish("posterior_error", result, slopes(rows))
    figure.savefig(RESULTS / "posterior_error.png", dpi=150)


if __name__ == "__main__":
    main()
