"""Simulation-based inference: C2ST of posteriors of four problems of Lueckmann et al. 2021 (arXiv
2101.04653, appendix T) at 10^3 and 10^4 simulations, against the reference samples of sbibm.

sbibm 1.1 gives ten observations per problem and 10,000 samples of each posterior; its code is not
used: `pip install --no-deps sbibm`. One recipe for all: least squares predicts theta from the
simulation x, and a conditional network learns the law of what is left, given x. Training ends by
the loss on a tenth of the simulations, and the weights with the least are kept. The recipe was
chosen with the 1,000 simulations of SEED = 0, by fresh simulations and observations. C2ST is
sbibm's: 0.5 where no classifier can tell samples from the reference, 1 where it always can. Each
observation that is complete is stored. `python benchmarks/inference.py`; with names of problems,
only these, and nothing is stored; with numbers, only these observations.
"""

import bz2
import copy
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from scipy.stats import kstest
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

import sdekit_diffusion as sd

SEED = 1
SIMULATIONS = (1_000, 10_000)
OBSERVATIONS = range(1, 11)
SAMPLES = 10_000
RECIPE = sd.Recipe(steps=3000, batch_size=512, weighting="likelihood", drop=0.0)
WIDTH = 128
DEPTH = 3
HELD_OUT = 0.1
EVERY = 50  # updates between two validation losses
PATIENCE = 600  # updates without a smaller one
VALIDATION_ROWS = 5_000  # the held-out simulations again and again, each time with other noise
STEPS = 40
HELP = (
    "the observations and reference samples of sbibm are missing: run `pip install --no-deps "
    "sbibm`, whose old requirements are not needed, or `pip install --no-deps --target FOLDER "
    "sbibm` and put FOLDER into PYTHONPATH"
)


def two_moons(theta: Tensor, generator: torch.Generator) -> Tensor:
    n = len(theta)
    angle = math.pi * (torch.rand(n, generator=generator) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(n, generator=generator)
    first = radius * angle.cos() + 0.25 - theta.sum(dim=1).abs() / math.sqrt(2)
    second = radius * angle.sin() + (theta[:, 1] - theta[:, 0]) / math.sqrt(2)
    return torch.stack([first, second], dim=1)


def gaussian_linear(theta: Tensor, generator: torch.Generator) -> Tensor:
    return theta + math.sqrt(0.1) * torch.randn(theta.shape, generator=generator)


def slcp(theta: Tensor, generator: torch.Generator) -> Tensor:
    """Simple likelihood, complex posterior: four draws of a Gaussian."""
    z = torch.randn(len(theta), 4, 2, generator=generator)
    std = theta[:, None, 2:4].square()
    rho = theta[:, None, 4].tanh()
    correlated = rho * z[..., 0] + (1 - rho.square()).sqrt() * z[..., 1]
    draws = theta[:, None, :2] + std * torch.stack([z[..., 0], correlated], dim=2)
    return draws.reshape(len(theta), 8)


def gaussian_mixture(theta: Tensor, generator: torch.Generator) -> Tensor:
    std = torch.where(torch.rand(len(theta), 1, generator=generator) < 0.5, 1.0, 0.1)
    return theta + std * torch.randn(theta.shape, generator=generator)


@dataclass(frozen=True)
class Problem:
    """A prior with its simulator.

    Attributes:
        simulate: parameters (n, dim) to simulations (n, k).
        dim: of theta.
        bound: of the uniform prior, |theta| < bound in each coordinate; without one N(0, 0.1 I).
        npe: the published C2ST of neural posterior estimation at 10^3 and 10^4 simulations.
    """

    simulate: Callable[[Tensor, torch.Generator], Tensor]
    dim: int
    bound: float
    npe: tuple[float, float]

    @property
    def name(self) -> str:
        return self.simulate.__name__

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        if math.isinf(self.bound):
            return math.sqrt(0.1) * torch.randn(n, self.dim, generator=generator)
        return self.bound * (2 * torch.rand(n, self.dim, generator=generator) - 1)


PROBLEMS = (
    Problem(two_moons, 2, 1.0, (0.725, 0.606)),
    Problem(gaussian_linear, 10, math.inf, (0.694, 0.552)),
    Problem(slcp, 5, 3.0, (0.975, 0.901)),
    Problem(gaussian_mixture, 2, 10.0, (0.731, 0.661)),
)


@dataclass(frozen=True)
class Observation:
    """An observation (1, k), its true parameters (1, d) and samples of its posterior (n, d)."""

    x: Tensor
    theta: Tensor
    reference: Tensor


def published(problem: Problem, number: int) -> Observation:
    """What sbibm's package has of an observation, found without importing it."""
    spec = importlib.util.find_spec("sbibm")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(HELP)
    tasks = Path(spec.submodule_search_locations[0]) / "tasks"
    folder = tasks / problem.name / "files" / f"num_observation_{number}"
    with bz2.open(folder / "reference_posterior_samples.csv.bz2", "rt") as file:
        reference = _table(file)
    observed = _table(folder / "observation.csv")
    return Observation(observed, _table(folder / "true_parameters.csv"), reference)


def agreement(problem: Problem, observations: list[Observation]) -> float:
    """The p-value of a Kolmogorov-Smirnov test: the rank of each number of an observation among
    1,000 simulations with its true parameters is uniform if both simulators are the same.
    """
    generator = torch.Generator().manual_seed(SEED)
    ranks = [
        (problem.simulate(one.theta.expand(1000, -1), generator) < one.x).double().mean(dim=0)
        for one in observations
    ]
    return float(kstest(torch.cat(ranks).numpy(), "uniform").pvalue)


def _table(file: Any) -> Tensor:
    return torch.tensor(np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2), dtype=torch.float32)


@dataclass(frozen=True)
class Regression:
    """theta = W (1, c) + scale u, c the standardised simulation: least squares, and what is left.

    The coordinates of u have mean 0 and standard deviation 1.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor
    scale: Tensor

    @classmethod
    def of(cls, theta: Tensor, x: Tensor) -> "Regression":
        mean = x.mean(dim=0)
        std = x.std(dim=0)
        columns = _with_one((x - mean) / std)
        weights = torch.linalg.lstsq(columns, theta).solution
        return cls(mean, std, weights, (theta - columns @ weights).std(dim=0))

    def context(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def encode(self, theta: Tensor, x: Tensor) -> Tensor:
        return (theta - _with_one(self.context(x)) @ self.weights) / self.scale

    def decode(self, u: Tensor, x: Tensor) -> Tensor:
        return u * self.scale + _with_one(self.context(x)) @ self.weights


def _with_one(c: Tensor) -> Tensor:
    return torch.cat([torch.ones(len(c), 1), c], dim=1)


@dataclass
class Posterior:
    """p(theta | x) from simulations: `Regression` and a conditional network for what is left."""

    problem: Problem
    regression: Regression
    model: sd.ScoreModel
    losses: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, simulations: int, seed: int) -> "Posterior":
        """From `simulations` simulations."""
        generator = torch.Generator().manual_seed(seed)
        theta = problem.prior(simulations, generator)
        x = problem.simulate(theta, generator)
        regression = Regression.of(theta, x)
        torch.manual_seed(seed)  # of the network's first weights
        d = theta.shape[1]
        net = sd.nets.MLP(shape=(d,), width=WIDTH, depth=DEPTH, context=x.shape[1])
        model = sd.ScoreModel(net, "vp", "velocity", shape=(d,), conditioning="log_snr")
        posterior = cls(problem, regression, model)
        posterior._train(regression.encode(theta, x), regression.context(x))
        return posterior

    def _train(self, u: Tensor, context: Tensor) -> None:
        """Keeps the averaged weights with the least validation loss."""
        held = int(HELD_OUT * len(u))
        again = -(-VALIDATION_ROWS // held)
        validation = (u[:held].repeat(again, 1), {"context": context[:held].repeat(again, 1)})
        measure = sd.validation_loss(validation, RECIPE)
        training = sd.Training(self.model, (u[held:], {"context": context[held:]}), RECIPE)
        best = copy.deepcopy(self.model.state_dict())
        self.losses[0] = measure(self.model, 0)["validation_loss"]
        for record in training:
            if record.step % EVERY == 0:
                with training.averaged() as model:
                    loss = measure(model, record.step)["validation_loss"]
                    if loss < min(self.losses.values()):
                        best = copy.deepcopy(model.state_dict())
                self.losses[record.step] = loss
                if record.step - self.kept >= PATIENCE:
                    break
        training.finish()
        self.model.load_state_dict(best)

    @property
    def kept(self) -> int:
        """The number of updates of the weights."""
        return min(self.losses, key=lambda step: self.losses[step])

    def sample(self, x: Tensor, n: int, seed: int) -> tuple[Tensor, float]:
        """n samples given one x (1, k), and the share outside the prior, which is drawn again."""
        bound = self.problem.bound
        inside = torch.empty(0, self.problem.dim)
        drawn = 0
        while len(inside) < n:
            wanted = math.ceil(1.05 * (n - len(inside)) * (drawn + 1) / (len(inside) + 1))
            rows = x.expand(wanted, -1)
            model = self.model.given(context=self.regression.context(rows))
            u = sd.sample(model, wanted, steps=STEPS, seed=seed, first=drawn)
            theta = self.regression.decode(u, rows)
            drawn += wanted
            inside = torch.cat([inside, theta[(theta.abs() < bound).all(dim=1)]])
        return inside[:n], 1 - len(inside) / drawn


def c2st(reference: Tensor, x: Tensor) -> float:
    """The accuracy of a classifier of two hidden layers of 10 d units, by 5-fold
    cross-validation, on samples scaled by the reference's mean and standard deviation.
    """
    mean = reference.mean(dim=0)
    std = reference.std(dim=0)
    points = torch.cat([(reference - mean) / std, (x - mean) / std]).numpy()
    labels = np.repeat([0, 1], [len(reference), len(x)])
    hidden = (10 * x.shape[1], 10 * x.shape[1])
    classifier = MLPClassifier(hidden, max_iter=10_000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    return float(cross_val_score(classifier, points, labels, cv=folds).mean())


def inferred(
    problem: Problem, simulations: int, observations: list[Observation]
) -> tuple[dict[str, Any], list[Tensor]]:
    """What a posterior took, and its samples for each observation."""
    start = time.perf_counter()
    posterior = Posterior.of(problem, simulations, SEED + simulations)
    trained = time.perf_counter()
    found = [posterior.sample(one.x, SAMPLES, SEED) for one in observations]
    sampled = time.perf_counter()
    row = {
        "problem": problem.name,
        "simulations": simulations,
        "NPE": problem.npe[SIMULATIONS.index(simulations)],
        "updates": max(posterior.losses),
        "kept": posterior.kept,
        "training": trained - start,
        "sampling": sampled - trained,
        "evaluations": STEPS,
        "outside": [outside for _, outside in found],
        "C2ST": [],
    }
    print(
        f"{problem.name:16s} {simulations:6d} simulations: {row['training']:.0f} s training, "
        f"{row['updates']} updates, those of {row['kept']} kept; {row['sampling']:.0f} s sampling, "
        f"{STEPS} evaluations per sample, {np.mean(row['outside']):.1%} outside the prior",
        flush=True,
    )
    return row, [samples for samples, _ in found]


def picture(drawn: dict[tuple[str, int], Tensor], observations: dict[str, Observation]) -> None:
    """For each problem two coordinates of the reference and of both posteriors."""
    figure = Figure(figsize=(9, 3 * len(observations)), layout="constrained")
    axes = figure.subplots(len(observations), 3, squeeze=False)
    for line, (name, one) in zip(axes, observations.items(), strict=True):
        pair = [2, 3] if name == "slcp" else [0, 1]
        shown = {"reference": one.reference}
        shown |= {f"{n:,} simulations": drawn[name, n] for n in SIMULATIONS}
        low, high = one.reference[:, pair].aminmax(dim=0)
        margin = 0.15 * (high - low)
        for i, (title, points) in enumerate(shown.items()):
            cell = line[i]
            cell.plot(*points[:3000, pair].T, ".", markersize=1.5, alpha=0.5, color=f"C{i}")
            cell.plot(*one.theta[0, pair], "k+", markersize=9)
            cell.set(title=f"{name}, {title}" if not i else title)
            cell.set(xlim=(low[0] - margin[0], high[0] + margin[0]))
            cell.set(ylim=(low[1] - margin[1], high[1] + margin[1]))
            cell.set(xlabel=rf"$\theta_{pair[0] + 1}$", ylabel=rf"$\theta_{pair[1] + 1}$")
    figure.savefig(RESULTS / "inference.png", dpi=110)


def of_observation(rows: list[dict[str, Any]], i: int) -> list[dict[str, Any]]:
    """What was found for the i-th observation of each problem; the time of sampling is a mean."""
    return [
        {
            "problem": row["problem"],
            "simulations": row["simulations"],
            "C2ST": row["C2ST"][i],
            "NPE, published": row["NPE"],
            "outside the prior": row["outside"][i],
            "seconds of training": row["training"],
            "of sampling": row["sampling"] / len(row["outside"]),
        }
        for row in rows
    ]


def measure(
    rows: list[dict[str, Any]],
    drawn: list[list[Tensor]],
    references: list[list[Observation]],
    particulars: dict[str, Any],
    numbers: list[int],
) -> None:
    """C2ST, observation by observation, each stored when it is complete."""
    for i, number in enumerate(numbers):
        for row, samples, observations in zip(rows, drawn, references, strict=True):
            start = time.perf_counter()
            row["C2ST"].append(c2st(observations[i].reference, samples[i]))
            print(
                f"{row['problem']:16s} {row['simulations']:6d} simulations, {i + 1} observations: "
                f"C2ST {np.mean(row['C2ST']):.3f}, NPE {row['NPE']:.3f} "
                f"({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
            save("inference", {"environment": particulars, "rows": rows})
        if len(rows) == len(PROBLEMS) * len(SIMULATIONS):
            publish("inference", particulars, of_observation(rows, i), part=f"{number}")


def main() -> None:
    names = [name for name in sys.argv[1:] if not name.isdigit()]
    numbers = [int(name) for name in sys.argv[1:] if name.isdigit()] or list(OBSERVATIONS)
    problems = [problem for problem in PROBLEMS if not names or problem.name in names]
    particulars = environment(dtype="float32", seed=SEED, samples=SAMPLES, evaluations=STEPS)
    rows: list[dict[str, Any]] = []
    drawn: list[list[Tensor]] = []
    references: list[list[Observation]] = []
    agreements: dict[str, float] = {}
    for problem in problems:
        observations = [published(problem, number) for number in numbers]
        agreements[problem.name] = agreement(problem, observations)
        print(f"{problem.name:16s} simulator and observations: p = {agreements[problem.name]:.2f}")
        for simulations in SIMULATIONS:
            row, samples = inferred(problem, simulations, observations)
            rows.append(row)
            drawn.append(samples)
            references.append(observations)
    first = {(r["problem"], r["simulations"]): s[0] for r, s in zip(rows, drawn, strict=True)}
    shown = {row["problem"]: one[0] for row, one in zip(rows, references, strict=True)}
    RESULTS.mkdir(exist_ok=True)
    picture(first, shown)
    measure(rows, drawn, references, particulars, numbers)


if __name__ == "__main__":
    main()
