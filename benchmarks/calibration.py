"""How often the 95 % interval of a log-likelihood with random probes covers what exact traces give,
in 5,000 runs each.

A run is a point with K = 8 probes of its own; there are 20 points and 250 runs of each, with the
trajectory and the nodes of the exact trace; beside it what Student's t alone would cover. Then the
standard deviation of one probe's log p, held fixed on the way or fresh at every node. First, what
intervals of simulated estimates cover. `python benchmarks/calibration.py`
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from scipy.special import stdtrit
from torch import Tensor

from sdekit import Exact, Hutchinson, Likelihood
from sdekit._likelihood.divergence import skewness
from sdekit.elementary import Time
from sdekit_diffusion import (
    AbstractDerivedModel,
    AbstractModel,
    AdaptiveFlow,
    GaussianMixture,
    Recipe,
    ScoreModel,
    data,
    fit,
    log_likelihood,
    nets,
)

SEED = 0
POINTS = 20
COPIES = 250
PROBES = 8
PROBE_KINDS: tuple[Literal["rademacher", "gaussian"], ...] = ("rademacher", "gaussian")
KINDS = list(itertools.product(PROBE_KINDS, (True, False)))


@dataclass(frozen=True, eq=False)
class Once(AbstractDerivedModel):
    """A model that is evaluated once where rows are equal, as those of runs of one point are.

    Where gradients are wanted its Jacobian is found in full, once for a point of a trajectory; each
    row's vector-Jacobian products are then products with that matrix.
    """

    known: dict[bytes, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def predict_data(self, l: Time, u: Tensor) -> Tensor:
        times = torch.as_tensor(l, dtype=torch.float64).expand(len(u))
        rows = torch.cat([times[:, None], u.detach().flatten(1).double()], dim=1).contiguous()
        keys = [row.tobytes() for row in rows.numpy()]
        last = {key: i for i, key in enumerate(keys)}  # a row for each point
        place = {key: i for i, key in enumerate(last)}
        number = torch.tensor([place[key] for key in keys])
        if not u.requires_grad:
            some = torch.tensor(list(last.values()))
            return self.model.predict_data(times[some], u[some])[number]
        new = torch.tensor(
            [i for key, i in last.items() if key not in self.known], dtype=torch.int64
        )
        if len(new):
            found = zip(*self._jacobian(times[new], u.detach()[new]), strict=True)
            self.known.update((keys[i], pair) for i, pair in zip(new.tolist(), found, strict=True))
        value, jacobian = (
            torch.stack([self.known[key][i] for key in last])[number] for i in (0, 1)
        )
        move = (u - u.detach()).flatten(1).unsqueeze(2)
        return value + (jacobian @ move).reshape(u.shape)

    def _jacobian(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.requires_grad_()
            out = self.model.predict_data(l, u)
            flat = out.flatten(1)
            rows = [
                torch.autograd.grad(flat[:, i].sum(), u, retain_graph=True)[0].flatten(1)
                for i in range(flat.shape[1])
            ]
        return out.detach(), torch.stack(rows, dim=1)


def mixture(dim: int) -> GaussianMixture:
    """Four modes with full covariances of condition 10, at distances of a few deviations."""
    generator = torch.Generator().manual_seed(dim)
    means = 0.5 * torch.randn(4, dim, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(4, dim, dim, generator=generator, dtype=torch.float64))[0]
    variances = torch.logspace(-1.5, -0.5, dim, dtype=torch.float64).expand(4, dim)
    return GaussianMixture(
        [0.1, 0.2, 0.3, 0.4], means, axes @ torch.diag_embed(variances) @ axes.mT
    )


def plane(dim: int) -> GaussianMixture:
    """A Gaussian that is narrow in one direction, oblique to all axes: estimates from fixed probes
    are chi-squared.
    """
    u = torch.randn(dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    unit = torch.eye(dim, dtype=torch.float64)
    covariance = unit - (1 - 0.03**2) * torch.outer(u, u) / u.square().sum()
    return GaussianMixture([1.0], torch.zeros(1, dim, dtype=torch.float64), covariance.unsqueeze(0))


LAWS = [
    ("mixture, d = 16", mixture(16), "vp"),
    ("mixture, d = 32", mixture(32), "ve"),
    ("plane, d = 16", plane(16), "vp"),
    ("plane, d = 32", plane(32), "ve"),
]


def digits() -> tuple[Once, Tensor]:
    """A small U-Net after 500 updates on scikit-learn's digits, and test images that it has not
    seen.
    """
    source = data.load("digits")
    torch.manual_seed(SEED)
    net = nets.UNet(1, 16)
    model = ScoreModel(net, "subvp", "velocity", shape=(1, 8, 8), conditioning="log_snr")
    fit(
        model,
        source.train,
        Recipe(steps=500, batch_size=64, weighting="plain"),
        transform=source.scale.encode,
        progress=False,
    )
    x = source.test[:POINTS]
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(SEED))
    return Once(model.eval().requires_grad_(requires_grad=False)), source.scale.encode(x, noise)


def calibration(name: str, model: AbstractModel, x: Tensor, sde: str) -> list[dict[str, Any]]:
    """Coverage by kind of probe, of all runs and of the point with the least; at a tolerance of
    1e-3, also for the truth.
    """
    method = AdaptiveFlow(1e-3, 1e-3)
    rows = []
    truth = log_likelihood(model, x, sde=sde, trace=Exact(), method=method).value
    many = x.repeat(COPIES, *[1] * (x.ndim - 1))
    exact = truth.repeat(COPIES)
    for kind, fresh in KINDS:
        found = log_likelihood(
            model, many, sde=sde, trace=Hutchinson(PROBES, kind, SEED, fresh), method=method
        )
        low, high = found.interval(0.95)
        covered = ((low <= exact) & (exact <= high)).double().reshape(COPIES, POINTS)
        plain = (found.value - exact).abs() <= float(stdtrit(PROBES - 1, 0.975)) * found.stderr
        z = (found.value - exact).reshape(COPIES, POINTS)
        row: dict[str, Any] = {
            "problem": name,
            "kind": kind,
            "fresh": fresh,
            "runs": covered.numel(),
        }
        row |= {
            "coverage": float(covered.mean()),
            "lowest of a point": float(covered.mean(dim=0).min()),
        }
        row["by t alone"] = float(plain.double().mean())
        row["bias in standard errors"] = float(z.mean() / z.std() * covered.numel() ** 0.5)
        row["evaluations"] = float(found.evaluations.double().mean())
        rows.append(row)
        print(
            f"{name:16s} {kind:10s} {'fresh' if fresh else 'fixed'}  coverage "
            f"{100 * row['coverage']:5.2f} % of {row['runs']:,} (bar: 93 to 97), of the worst "
            f"point {100 * row['lowest of a point']:.1f} %, by Student's t alone "
            f"{100 * row['by t alone']:.2f} %;  bias {row['bias in standard errors']:+.1f} "
            f"standard errors;  {row['evaluations']:.0f} evaluations",
            flush=True,
        )
    return rows


def one_probe(name: str, model: AbstractModel, x: Tensor, sde: str) -> list[dict[str, Any]]:
    """The standard deviation of log p from one probe, at the default tolerance; over 20 points and
    20 runs of 8 probes each.

    Fresh probes average over the nodes of the integral what fixed ones repeat at all of them.
    """
    rows = []
    for kind in PROBE_KINDS:
        row: dict[str, Any] = {"problem": name, "kind": kind}
        for fresh in (True, False):
            found = log_likelihood(
                model,
                x.repeat(20, *[1] * (x.ndim - 1)),
                sde=sde,
                trace=Hutchinson(PROBES, kind, SEED, fresh),
            )
            row["fresh" if fresh else "fixed"] = float(
                (PROBES * found.stderr.square().mean()).sqrt()
            )
        row |= {
            "variance, fixed / fresh": (row["fixed"] / row["fresh"]) ** 2,
            "evaluations": float(found.evaluations.double().mean()),
        }
        rows.append(row)
        print(
            f"{name:16s} {kind:10s} one probe: {row['fixed']:6.2f} nats fixed, {row['fresh']:6.2f} "
            f"fresh; variance ratio {row['variance, fixed / fresh']:.1f}; "
            f"{row['evaluations']:.0f} evaluations",
            flush=True,
        )
    return rows


def interval_of(estimates: Tensor, level: float, skewed: bool = True) -> tuple[Tensor, Tensor]:
    """The interval of a likelihood with these estimates, `(K, runs)`; without the correction,
    Student's.
    """
    mean = estimates.mean(dim=0)
    stderr = Hutchinson(len(estimates)).stderr(estimates)
    none = torch.zeros_like(mean)
    found = skewness(estimates) if skewed else none
    return Likelihood(mean, stderr, none, none, none, len(estimates), found).interval(level)


def simulated(
    name: str, draw: Callable[[int], Tensor], exact: float, probes: tuple[int, ...]
) -> list[dict[str, Any]]:
    """What 100,000 intervals of K estimates v^T M v cover, and how wide they are beside Student's
    alone.
    """
    rows = []
    for k in probes:
        estimates = draw(k)
        row: dict[str, Any] = {"estimates": name, "probes": k}
        for level, skewed in ((0.95, True), (0.99, True), (0.95, False)):
            low, high = interval_of(estimates, level, skewed)
            covered = ((low <= exact) & (exact <= high)).double().mean()
            row[f"{level} {'corrected' if skewed else 'by t alone'}"] = float(covered)
            row[f"width {level} {skewed}"] = float((high - low).mean())
        row["width"] = row.pop("width 0.95 True") / row.pop("width 0.95 False")
        rows.append(row)
        print(
            f"{name:32s} K = {k:2d}  coverage {100 * row['0.95 corrected']:5.1f} % at 95 %, "
            f"{100 * row['0.99 corrected']:5.1f} at 99; by Student's t alone "
            f"{100 * row['0.95 by t alone']:5.1f};  width {row['width']:.2f} of that",
            flush=True,
        )
    return rows


def simulations() -> list[dict[str, Any]]:
    """Estimates that are normal, chi-squared, and squares of sums of signs."""
    generator = torch.Generator().manual_seed(SEED)
    runs = 100_000
    few = (2, 3, 4, 6, 8, 16, 32)
    rows = []

    def normals(*shape: int) -> Tensor:
        return torch.randn(*shape, runs, generator=generator, dtype=torch.float64)

    rows += simulated("normal", normals, 0.0, few)
    for m in (2, 1):
        name = f"chi-squared, degrees of freedom {m}"
        rows += simulated(name, lambda k, m=m: normals(m, k).square().sum(dim=0), float(m), few)
    for m in (2, 3, 4, 6, 8, 12, 16):
        name = f"signs of {m} coordinates alike"
        rows += simulated(
            name, lambda k, m=m: normals(m, k).sign().sum(dim=0).square(), float(m), (8, 16)
        )
    return rows


def publish_tables(result: dict[str, Any]) -> None:
    """Coverage on problems and of simulated estimates, and the deviations of one probe."""
    coverage = [
        {
            "problem": row["problem"],
            "probes": f"{'fresh' if row['fresh'] else 'fixed'} {row['kind']}",
            "coverage": row["coverage"],
            "of the point with the least": row["lowest of a point"],
            "by Student's t alone": row["by t alone"],
        }
        for row in result["coverage"]
    ]
    publish("coverage", result["environment"], coverage)
    intervals = [
        {
            "estimates": row["estimates"],
            "K": row["probes"],
            "coverage": row["0.95 corrected"],
            "by t": row["0.95 by t alone"],
            "coverage at 99 %": row["0.99 corrected"],
            "width over that by t": row["width"],
        }
        for row in result["simulated"]
    ]
    publish("intervals", result["environment"], intervals)
    publish("one_probe", result["environment"], result["one probe"])


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "environment": environment(dtype="float64, digits float32", seed=SEED, probes=PROBES)
    }
    result["simulated"] = simulations()
    problems: list[tuple[str, AbstractModel, Tensor, str]] = [
        ("digits, d = 64", *digits(), "subvp")
    ]
    problems += [(name, law, law.sample(POINTS, seed=SEED), sde) for name, law, sde in LAWS]
    rows = [row for problem in problems for row in calibration(*problem)]
    result |= {
        "coverage": rows,
        "one probe": [row for problem in problems for row in one_probe(*problem)],
    }
    save("calibration", result)
    publish_tables(result)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row["problem"] for row in rows))
    axes.axhspan(93, 97, color="0.92")
    axes.axhline(95, color="0.7", linewidth=1)
    for i, (kind, fresh) in enumerate(KINDS):
        values = [
            100 * row["coverage"] for row in rows if (row["kind"], row["fresh"]) == (kind, fresh)
        ]
        at = [n + 0.12 * (i - 1.5) for n in range(len(names))]
        axes.plot(
            at,
            values,
            "o" if fresh else "s",
            color=f"C{i // 2}",
            label=f"{kind}, {'fresh' if fresh else 'fixed'}",
        )
    axes.set_xticks(range(len(names)), names)
    axes.set(
        ylabel="coverage of 95 % intervals (%)",
        ylim=(88, 100),
        title=f"5,000 runs each, {PROBES} probes",
    )
    axes.legend(fontsize=7, frameon=False, ncols=2)
    figure.savefig(RESULTS / "calibration.png", dpi=120)


if __name__ == "__main__":
    main()
