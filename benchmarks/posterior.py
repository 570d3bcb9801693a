"""Posteriors of the Gaussian mixtures of Cardoso et al. 2024 (MCGDiff), with exact scores, against
exact samples and log p(y).

25 unit Gaussians with means (-8 i, -8 j) repeated, in 8, 80 and 800 dimensions, of which 1, 2 and 4
numbers are observed; singular values of A uniform in (0, 1), noise uniform up to the largest.
Sliced Wasserstein-1 and max-sliced Wasserstein-2 distances over 500 directions, relative to their
mean between as many exact samples. Approximate conditioned models, weights by the flow and by the
path, and the methods of azula, where it is installed (`pip install --no-deps azula einops
gdown`).

`python benchmarks/posterior.py` runs 20 problems in 8 dimensions and 5 in the others, two hours on
one thread; `--calibrate` the tolerance of the flow, with noise from 1 to a thousandth of the data's
deviation.
"""

import argparse
import math
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import MultivariateNormal

import sdekit_diffusion as sd
from sdekit import Hutchinson

FIRST = 100  # the first problem; the rules were chosen on problems 0 to 13
PROBLEMS = {8: 20, 80: 5, 800: 5}
SAMPLES = {8: 1024, 80: 1024, 800: 512}
PARTICLES = 4096
CLOUD = {8: 1024, 80: 512, 800: 512}
FLOW = 320  # samples of the flow in 80 dimensions
# In one direction the data vary more than in a coordinate, 7 and 21 times as much in 80 and 800
# dimensions, where the largest noise of the default is 2 and 0.7 times their deviation.
SDE = {8: sd.VPSDE(), 80: sd.VPSDE(beta_max=30.0), 800: sd.VPSDE(beta_max=30.0)}
MEASURED = (1, 2, 4)
STEPS = 100
DIRECTIONS = 500
FLOORS = 8  # pairs of exact samples
WIDE = 3.0  # floors, beyond which samples are wrong
DTYPE = torch.float64


@dataclass(frozen=True)
class Problem:
    """A mixture and an observation, with what is known exactly."""

    law: sd.GaussianMixture
    observation: sd.LinearObservation
    sde: sd.AbstractDiffusion
    noise: float
    responsibilities: Tensor
    log_evidence: float

    @staticmethod
    def of(d: int, m: int, seed: int) -> "Problem":
        generator = torch.Generator().manual_seed(1000 * seed + 10 * m + d)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=DTYPE)

        steps = [(8.0 * i, 8.0 * j) for i in range(-2, 3) for j in range(-2, 3)]
        means = torch.tensor([[*pair] * (d // 2) for pair in steps], dtype=DTYPE)
        weights = uniform(25)
        law = sd.GaussianMixture(weights / weights.sum(), means, torch.ones(25, dtype=DTYPE))
        u, _, v = torch.linalg.svd(
            torch.randn(m, d, generator=generator, dtype=DTYPE), full_matrices=False
        )
        values = uniform(m)
        a = u @ torch.diag(values) @ v
        noise = float(uniform(1) * values.max())
        x = law.sample(1, seed=seed)[0]
        y = a @ x + noise * torch.randn(m, generator=generator, dtype=DTYPE)
        spread = a @ a.T + noise**2 * torch.eye(m, dtype=DTYPE)
        logits = law.weights.log() + MultivariateNormal(means @ a.T, spread).log_prob(y)
        observation = sd.LinearObservation(a, y, noise**2)
        evidence = float(logits.logsumexp(0))
        return Problem(law, observation, SDE.get(d, SDE[8]), noise, logits.softmax(0), evidence)

    def exact(self, n: int, seed: int) -> Tensor:
        """Exact samples: one of the prior, moved by what its y lacks (Matheron's rule)."""
        generator = torch.Generator().manual_seed(seed)
        a = self.observation.operator.matrix
        y = self.observation.y
        k = torch.multinomial(self.responsibilities, n, replacement=True, generator=generator)
        x = self.law.means[k] + torch.randn(n, a.shape[1], generator=generator, dtype=DTYPE)
        eps = self.noise * torch.randn(n, len(y), generator=generator, dtype=DTYPE)
        gain = torch.linalg.solve(a @ a.T + self.noise**2 * torch.eye(len(y), dtype=DTYPE), a).T
        return x + (y - x @ a.T - eps) @ gain.T


def distances(x: Tensor, exact: Tensor) -> tuple[float, float]:
    """Sliced W1, the mean over directions, and max-sliced W2."""
    generator = torch.Generator().manual_seed(7)
    directions = torch.randn(x.shape[1], DIRECTIONS, generator=generator, dtype=DTYPE)
    directions = directions / directions.norm(dim=0)
    a, b = ((points.to(DTYPE) @ directions).sort(dim=0).values for points in (x, exact))
    return float((a - b).abs().mean()), float((a - b).square().mean(dim=0).max().sqrt())


@dataclass(frozen=True)
class Answer:
    """Samples of a method, its evaluations per sample, and its log p(y) where it has one."""

    x: Tensor
    evaluations: float
    log_evidence: float = math.nan
    stderr: float = math.nan
    ess: float = math.nan
    warned: bool = False


def unweighted(covariance: str) -> Callable[[Problem, int], Answer]:
    """Samples of a conditioned model by the default method."""

    def run(problem: Problem, n: int) -> Answer:
        if covariance == "dps":
            model: Any = sd.DPS(problem.law, problem.observation)
        else:
            chosen = data_covariance(problem) if covariance == "data" else covariance
            model = sd.MomentMatched(problem.law, problem.observation, chosen)
        x = sd.sample(model, n, sde=problem.sde, steps=STEPS, seed=1, method="ddpm")
        return Answer(x, STEPS + 1)

    return run


def data_covariance(problem: Problem) -> sd.DataCovariance:
    return sd.DataCovariance(problem.law.covariance())


def particles(d: int, proposal: str) -> Callable[[Problem, int], Answer]:
    """Clouds of particles, resampled."""
    return weighted(sd.Particles(CLOUD[d], STEPS), proposal, PARTICLES)


def weighted(
    method: sd.AbstractWeighting | str, proposal: str, n_of: int | None = None
) -> Callable[[Problem, int], Answer]:
    """Samples with weights, resampled, at most as many as are weighted; n_of: how many are."""

    def run(problem: Problem, n: int) -> Answer:
        chosen = data_covariance(problem) if proposal == "data" else proposal
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = sd.sample_posterior(
                problem.law, problem.observation, n_of or n, sde=problem.sde, method=method,
                proposal=chosen, seed=1,
            )  # fmt: skip
        assert found.evaluations is not None
        return Answer(
            found.resampled(min(n, n_of or n), seed=2),
            float(found.evaluations.double().sum()) / min(n, n_of or n),
            float(found.log_evidence),
            float(found.log_evidence_stderr),
            float(found.ess),
            any("not reliable" in str(one.message) for one in caught),
        )

    return run


def azula_methods() -> dict[str, Callable[[Problem, int], Answer]]:
    """Its methods by name; none where it is not installed."""
    try:
        import _azula
    except ImportError as error:
        print(f"azula is left out: {error}")
        return {}

    def with_problem(sampled: _azula.Sampled) -> Callable[[Problem, int], Answer]:
        def run(problem: Problem, n: int) -> Answer:
            given = problem.observation
            x = sampled(problem.law, given.operator.matrix, given.y, problem.noise, n)
            return Answer(x, _azula.STEPS)

        return run

    return {name: with_problem(sampled) for name, sampled in _azula.METHODS.items()}


def methods(d: int) -> dict[str, Callable[[Problem, int], Answer]]:
    """What is compared in d dimensions: derivatives and dense matrices where there are few."""
    found: dict[str, Callable[[Problem, int], Answer]] = {
        "isotropic": unweighted("isotropic"),
        "DPS": unweighted("dps"),
        "particles": particles(d, "isotropic"),
        "data": unweighted("data"),
        "particles, data": particles(d, "data"),
    }
    if d <= 80:
        found |= {"diagonal": unweighted("diagonal"), "jacobian": unweighted("jacobian")}
    if d == 8:
        found |= {
            "particles, jacobian": particles(d, "jacobian"),
            "particles, default": weighted("particles", "isotropic"),
            "flow": weighted("flow", "jacobian"),
        }
    if d == 80:
        found["flow"] = weighted(sd.FlowWeights(trace=Hutchinson(64)), "isotropic", FLOW)
    return found | azula_methods()


def measure(d: int, m: int, problems: int, chosen: list[str]) -> list[dict[str, Any]]:
    """A row for each problem and method."""
    rows = []
    for seed in range(FIRST, FIRST + problems):
        problem = Problem.of(d, m, seed)
        n = SAMPLES[d]
        exact = [problem.exact(n, 100 + i) for i in range(FLOORS + 1)]
        for name, run in methods(d).items():
            if chosen and name not in chosen:
                continue
            begun = time.process_time()
            try:
                answer = run(problem, n)
            except (ValueError, ArithmeticError) as error:
                print(f"{name}, problem {seed}: {error}"[:160])
                answer = Answer(torch.full_like(exact[0], math.inf), STEPS)
            seconds = time.process_time() - begun
            finite = bool(answer.x.isfinite().all())
            as_many = [points[: len(answer.x)] for points in exact]
            w1, w2 = distances(answer.x, as_many[0]) if finite else (math.inf, math.inf)
            floors = [distances(a, b) for a, b in pairwise(as_many)]
            floor = [statistics.mean(values) for values in zip(*floors, strict=True)]
            error = answer.log_evidence - problem.log_evidence
            rows.append(
                {
                    "d": d, "m": m, "seed": seed, "method": name, "noise": problem.noise,
                    "w1": w1 / floor[0], "w2": w2 / floor[1], "seconds": seconds,
                    "evaluations": answer.evaluations, "error": error, "stderr": answer.stderr,
                    "ess": answer.ess, "warned": answer.warned,
                }
            )  # fmt: skip
    return rows


def middle(values: Iterable[float]) -> float:
    """The median; NaN where a value is NaN."""
    return float(np.median([*values]))


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each method of a cell."""
    by_method = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    base = statistics.median(row["seconds"] for row in by_method.get("particles", rows))
    print(f"d = {rows[0]['d']}, y of {rows[0]['m']} numbers; over the floor: median and largest")
    for name, those in by_method.items():
        w1, w2 = ([row[key] for row in those] for key in ("w1", "w2"))
        line = (
            f"  {name:22s} W1 {statistics.median(w1):8.2f} {max(w1):8.2f}   max-W2 "
            f"{statistics.median(w2):8.2f} {max(w2):8.2f}   {those[0]['evaluations']:6.0f} "
            f"evaluations, time {statistics.median(row['seconds'] for row in those) / base:5.2f}"
        )
        if not math.isnan(those[0]["error"]):
            inside = sum(abs(row["error"]) <= 3 * row["stderr"] for row in those)
            line += (
                f"   log p(y): error {middle(abs(row['error']) for row in those):.3f}, "
                f"stderr {middle(row['stderr'] for row in those):.3f}, within three "
                f"{inside}/{len(those)}, ESS {statistics.median(row['ess'] for row in those):.0f}, "
                f"warned {sum(row['warned'] for row in those)}"
            )
        print(line, flush=True)


def draw(rows: list[dict[str, Any]]) -> None:
    """Distances over the floor, a panel for each number of dimensions."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    sizes = sorted({row["d"] for row in rows})
    axes = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(row["method"] for row in rows))
    for ax, d in zip(axes, sizes, strict=True):
        for y, name in enumerate(names):
            values = [row["w1"] for row in rows if row["d"] == d and row["method"] == name]
            ax.plot(values, [y] * len(values), "|", color="C0" if "azula" in name else "C1", ms=9)
        ax.set(xscale="log", title=f"{d} dimensions", xlabel="sliced W1 over its floor")
        ax.axvline(1.0, color="0.6", lw=0.8)
        ax.set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.savefig(RESULTS / "posterior.png", dpi=150)


def reliability(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method with weights: how often its samples were wrong, and warned of."""
    groups = defaultdict(list)
    for row in rows:
        if not math.isnan(row["error"]):
            groups[row["d"], row["method"]].append(row)
    found = []
    for (d, name), those in groups.items():
        wrong = [row for row in those if row["w1"] > WIDE]
        right = [row for row in those if row["w1"] <= WIDE]
        found.append(
            {
                "d": d,
                "method": name,
                "median ESS": statistics.median(row["ess"] for row in those),
                "problems": len(those),
                "wrong": len(wrong),
                "wrong with a warning": sum(row["warned"] for row in wrong),
                "right with a warning": sum(row["warned"] for row in right),
            }
        )
    return found


def summarised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method of a cell, over its problems."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["d"], row["m"], row["method"]].append(row)
    found = []
    for (d, m, name), those in groups.items():
        base = statistics.median(row["seconds"] for row in groups[d, m, "particles"] or those)
        row: dict[str, Any] = {"d": d, "m": m, "method": name}
        for key, title in (("w1", "W1"), ("w2", "max-W2")):
            row[title] = statistics.median(one[key] for one in those)
            row[f"{title}, largest"] = max(one[key] for one in those)
        row["evaluations"] = round(those[0]["evaluations"])
        row["time"] = statistics.median(one["seconds"] for one in those) / base
        if any(not math.isnan(one["error"]) for one in those):
            row["error of log p(y)"] = middle(abs(one["error"]) for one in those)
            row["standard error"] = middle(one["stderr"] for one in those)
            row["within three"] = sum(abs(one["error"]) <= 3 * one["stderr"] for one in those)
            row["of"] = len(those)
        found.append(row)
    return found


def calibrate() -> list[dict[str, float]]:
    """log p(y) by the flow with noise from 1 to 1e-3 of the data's deviation, in 2 and 8
    dimensions.
    """
    rows = []
    for d in (2, 8):
        for m in (1, 2):
            for ratio in (1.0, 0.1, 0.01, 0.001):
                problem = Problem.of(d, m, FIRST + 50)
                noise = (ratio * problem.law.data_std) ** 2
                observed = sd.LinearObservation(
                    problem.observation.operator, problem.observation.y, noise
                )
                found = sd.sample_posterior(
                    problem.law, observed, 400, sde=problem.sde, method="flow", seed=1
                )
                error = float(found.log_evidence - problem.law.log_evidence(observed))
                stderr = float(found.log_evidence_stderr)
                rows.append({"d": d, "m": m, "noise": ratio, "error": error, "stderr": stderr})
                print(f"d = {d}, y of {m}, noise {ratio:g} s: {error:+.4f} +- {stderr:.4f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dimensions", type=int, nargs="*", default=list(PROBLEMS))
    parser.add_argument(
        "--measured", type=int, nargs="*", default=list(MEASURED), help="numbers of measurements"
    )
    parser.add_argument("--problems", type=int, default=None, help="of each cell")
    parser.add_argument(
        "--methods",
        nargs="*",
        default=[],
        help="only these, with particles for the ratios of times",
    )
    parser.add_argument("--calibrate", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = environment(
        dtype=str(DTYPE),
        first=FIRST,
        steps=STEPS,
        samples=SAMPLES,
        particles=PARTICLES,
    )
    if arguments.calibrate:
        found = calibrate()
        save("posterior_tolerance", {**result, "rows": found})
        publish("posterior_tolerance", result, found)
        return
    rows = []
    for d in arguments.dimensions:
        of_d = []
        law = Problem.of(d, 1, FIRST).law
        wider = (law.principal_std or 0.0) / law.data_std
        print(f"d = {d}: in one direction the data vary {wider:.1f} times as much as a coordinate")
        for m in arguments.measured:
            cell = measure(d, m, arguments.problems or PROBLEMS[d], arguments.methods)
            show(cell)
            of_d += cell
        part = " ".join(arguments.methods) or None
        publish(f"posterior_{d}", result, summarised(of_d), part)
        warned = reliability(of_d)
        publish("posterior_warnings", result, warned, " ".join([f"{d}", *arguments.methods]))
        print(*warned, sep="\n", flush=True)
        rows += of_d
    save("posterior", {**result, "rows": rows})
    draw(rows)


if __name__ == "__main__":
    main()
