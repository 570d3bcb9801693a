"""Editing of given samples, against exact laws: SDEdit, replacement and RePaint, on Gaussian
mixtures in 2 and 8 dimensions with exact scores.

SDEdit: the law of p(x_0 | x_t), averaged over the noise of x_t, is a mixture for each x_t and is
sampled exactly; that of the probability flow is its image of x_t at tolerance 1e-9. Known
coordinates: a mixture given some of its coordinates is a mixture. Distances are sliced Wasserstein
distances of 4,000 samples to 4,000 exact ones, relative to their mean between exact samples.
`python benchmarks/editing.py`, a minute and a half on one thread.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from torch import Tensor

import sdekit_diffusion as sd
from sdekit import Solution
from sdekit_diffusion.metrics import sampling_floor, sliced_wasserstein

SEED = 0
N = 4000
END = 1e-3
LEVELS = (0.5, 1.0, 2.0)  # sigma / alpha at the start, in standard deviations of the data
WITH_NOISE: list[tuple[str, int | None]] = [
    ("sde", 25),
    ("sde", 50),
    ("ddpm", 100),
    ("euler_maruyama", 500),
    ("adaptive_sde", None),
]
FLOWS: list[tuple[str, int | None]] = [
    ("default", 10),
    ("default", 25),
    ("ddim", 50),
    ("ode", None),
]
REPAINTED = ((1, 10), (5, 10), (10, 10), (20, 10), (10, 1))  # resamplings and jump


def mixture(k: int, d: int, spread: float, seed: int) -> sd.GaussianMixture:
    """k components in d dimensions with full covariances, their means N(0, spread^2 I)."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    factors = draw(k, d, d) / d**0.5
    covariances = factors @ factors.mT + 0.05 * torch.eye(d, dtype=torch.float64)
    weights = torch.rand(k, generator=generator, dtype=torch.float64) + 0.5
    return sd.GaussianMixture(weights / weights.sum(), spread * draw(k, d), covariances)


def correlated() -> sd.GaussianMixture:
    covariance = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]], dtype=torch.float64)
    return sd.GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), covariance)


def given_noisy(law: sd.GaussianMixture, x: Tensor, sigma: float, seed: int) -> Tensor:
    """Exact samples of p(x_0 | x_t) for x_t = x + sigma eps, one for each row of x."""
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    xt = x + sigma * eps
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    total = law.covariances + sigma**2 * eye
    densities = torch.distributions.MultivariateNormal(law.means, total)
    logits = law.weights.log() + densities.log_prob(xt[:, None])
    k = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).flatten()
    gain = torch.linalg.solve(total, law.covariances).mT
    mean = law.means[k] + torch.einsum("nij,nj->ni", gain[k], xt - law.means[k])
    factors = torch.linalg.cholesky(sigma**2 * gain)
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return mean + torch.einsum("nij,nj->ni", factors[k], z)


def conditional(law: sd.GaussianMixture, y: Tensor, mask: Tensor) -> sd.GaussianMixture:
    """The law of the coordinates where the mask is False, given those where it is True."""
    known = mask.nonzero().flatten()
    rest = (~mask).nonzero().flatten()
    s = law.covariances[:, known][:, :, known]
    cross = law.covariances[:, rest][:, :, known]
    gain = torch.linalg.solve(s, cross.mT).mT
    means = law.means[:, rest] + torch.einsum("kij,kj->ki", gain, y[known] - law.means[:, known])
    covariances = law.covariances[:, rest][:, :, rest] - gain @ cross.mT
    densities = torch.distributions.MultivariateNormal(law.means[:, known], s)
    weights = torch.softmax(law.weights.log() + densities.log_prob(y[known]), 0)
    return sd.GaussianMixture(weights, means, 0.5 * (covariances + covariances.mT))


def ratios(exact: Callable[[int, int], Tensor]) -> Callable[[Tensor], dict[str, float]]:
    """A function of samples: their distance to exact ones over its mean between exact samples, and
    how many of its standard deviations the two differ by.
    """
    floor = sampling_floor(sliced_wasserstein, exact(6 * N, 1), N, draws=20, seed=SEED)
    reference = exact(N, 2)
    mean = float(floor.mean)
    std = float(floor.std)

    def ratio(x: Tensor) -> dict[str, float]:
        distance = sliced_wasserstein(x, reference)
        return {"over the floor": distance / mean, "deviations": (distance - mean) / std}

    return ratio


def started(law: sd.GaussianMixture, x: Tensor, level: float, **settings: Any) -> Solution:
    """A solve from x with noise; and settings of `sample`."""
    start = sd.Noised(x, level=level)
    return sd.sample(law, sde="vp", start=start, end=END, return_solution=True, **settings)


def sdedit() -> list[dict[str, Any]]:
    """From one x, which is not a likely sample: each method at each level."""
    rows = []
    for d, law in ((2, mixture(4, 2, 2.0, 3)), (8, mixture(5, 8, 1.5, 4))):
        x = (law.mean() + 0.5 * law.data_std)[None]
        for level in LEVELS:
            sigma = level * law.data_std
            posterior = ratios(
                lambda n, s: given_noisy(law, x.expand(n, -1), sigma, s)  # noqa: B023
            )
            solved = partial(started, law, level=level, method=sd.AdaptiveFlow(1e-9, 1e-9))
            flow = ratios(
                lambda n, s: solved(x.expand(n, -1), seed=100 + s).x  # noqa: B023
            )
            for name, steps in (*WITH_NOISE, *FLOWS):
                found = started(law, x.expand(N, -1), level, seed=SEED, method=name, steps=steps)
                row = {
                    "d": d,
                    "level": level,
                    "method": name if steps is None else f"{name}, {steps} steps",
                    "evaluations": round(float(found.evaluations.double().mean())),
                    **((posterior if (name, steps) in WITH_NOISE else flow)(found.x)),
                }
                rows.append(row)
                print("sdedit", row, flush=True)
    return rows


def inpainted(law: sd.GaussianMixture, y: Tensor, mask: Tensor) -> dict[str, Solution]:
    """Samples with known coordinates, by each method."""
    known = sd.Inpainted(law, y, mask)
    settings: Any = {"sde": "vp", "seed": SEED, "end": END, "return_solution": True}
    found = {
        "Inpainted, default": sd.sample(known, N, **settings),
        "Inpainted, sde": sd.sample(known, N, method="sde", **settings),
    }
    for resamplings, jump in REPAINTED:
        method = sd.RePaint(y, mask, resamplings=resamplings, jump=jump)
        found[f"RePaint({resamplings}, {jump})"] = sd.sample(law, N, method=method, **settings)
    return found


def replacement() -> list[dict[str, Any]]:
    """Distances of the unknown half of the coordinates to their law, for known ones that are
    likely.
    """
    problems = {
        "one Gaussian, d = 2": correlated(),
        "4 modes, d = 2": mixture(4, 2, 2.0, 3),
        "5 modes, d = 8": mixture(5, 8, 1.5, 4),
    }
    rows = []
    for name, law in problems.items():
        d = law.shape[0]
        mask = torch.arange(d) < d // 2
        for i, y in enumerate(law.sample(3, seed=7)):
            exact = conditional(law, y, mask)
            ratio = ratios(lambda n, s: exact.sample(n, seed=s))  # noqa: B023
            for method, found in inpainted(law, y, mask).items():
                row = {
                    "problem": name,
                    "y": i,
                    "method": method,
                    "evaluations": round(float(found.evaluations.double().mean())),
                    **ratio(found.x[:, ~mask]),
                }
                row["error of the mean / std"] = float(
                    (found.x[:, ~mask].mean(0) - exact.mean()).square().mean().sqrt()
                    / exact.covariance().diagonal().mean().sqrt()
                )
                rows.append(row)
                print("known coordinates", row, flush=True)
    return rows


def summarised(rows: list[dict[str, Any]], by: tuple[str, ...]) -> list[dict[str, Any]]:
    """Means over the rows that agree in some columns."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    figures = ("evaluations", "over the floor", "deviations", "error of the mean / std")
    summary = []
    for key, group in groups.items():
        means = {f: sum(r[f] for r in group) / len(group) for f in figures if f in group[0]}
        summary.append({**dict(zip(by, key, strict=True)), **means})
        print(
            "mean", {k: round(v, 2) if isinstance(v, float) else v for k, v in summary[-1].items()}
        )
    return summary


def over_levels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method of SDEdit: its evaluations at all levels, and the mean distance in each
    dimension.
    """
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        here = [row for row in rows if row["method"] == method]
        counts = [row["evaluations"] for row in here]
        row = {"method": method.split(",")[0], "evaluations": [min(counts), max(counts)]}
        for d in dict.fromkeys(one["d"] for one in here):
            distances = [one["over the floor"] for one in here if one["d"] == d]
            row[f"d = {d}"] = sum(distances) / len(distances)
        found.append(row)
    return found


def draw(rows: list[dict[str, Any]]) -> None:
    """Writes editing.png: the bias of replacement and RePaint against evaluations."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for i, problem in enumerate(dict.fromkeys(row["problem"] for row in rows)):
        here = [row for row in rows if row["problem"] == problem]
        for start, style in (("Inpainted", "s"), ("RePaint", "o-")):
            points = [
                (row["evaluations"], row["over the floor"])
                for row in here
                if row["method"].startswith(start) and not row["method"].endswith(", 1)")
            ]
            label = f"{problem}: {start}"
            axes.plot(*zip(*points, strict=True), style, color=f"C{i}", label=label, markersize=4)
    axes.axhline(1.0, color="0.6", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="evaluations per sample")
    axes.set_ylabel("distance to the conditional law / sampling floor")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(RESULTS / "editing.png", dpi=120)


def main() -> None:
    begun = time.process_time()
    particulars = environment(dtype="float64", seed=SEED, samples=N)
    edits = sdedit()
    known = replacement()
    tables = {
        "sdedit": summarised(edits, ("d", "method")),
        "known coordinates": summarised(known, ("problem", "method")),
    }
    save(
        "editing",
        {"environment": particulars, "sdedit": edits, "known": known, "means": tables},
    )
    publish("editing", particulars, over_levels(edits))
    publish("known_coordinates", particulars, tables["known coordinates"])
    draw(tables["known coordinates"])
    print(f"{time.process_time() - begun:.0f} s of processor time")


if __name__ == "__main__":
    main()
