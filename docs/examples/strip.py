"""Draws the picture of the README, four examples of the gallery in small: the last step of
`make demo`, whose network draws the digits.

`python docs/examples/strip.py demo/digits` writes demo/digits/gallery.png. docs/images has a copy,
made by hand when the picture changes.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import sdekit
import sdekit_diffusion as sd
import torch
from networks import pixels, row


def from_noise_to_data(ax):
    """Paths of the reverse equation, over the densities of a mixture with noise."""
    law = sd.GaussianMixture([0.3, 0.7], [[-1.5], [1.0]], [0.02, 0.05])
    settings = {"method": "euler_maruyama", "steps": 300, "end": 1e-2, "seed": 3}
    solution = sd.sample(law, 15, sde="vp", **settings, save="all", return_solution=True)
    times = torch.linspace(1e-3, 1.0, 150).tolist()
    x = torch.linspace(-3.5, 3.5, 200)[:, None]
    density = torch.stack([law.marginal(t, sd.VPSDE()).log_prob(x).exp() for t in times])
    ax.pcolormesh(times, x[:, 0], density.sqrt().T, cmap="Blues", shading="gouraud")
    ax.plot(solution.ts, solution.xs[:, :, 0], color="C3", lw=0.5)
    ax.set(xlabel="time", ylabel="x", title="from noise to data", xlim=(1, 0), ylim=(-3.5, 3.5))


def strong_orders(ax):
    """Errors of paths against the step, on the same Brownian paths."""
    gbm = sdekit.SDE(lambda t, x: 0.5 * x, lambda t, x: 0.8 * x)
    path = sdekit.BrownianPath(seed=0)
    x0 = torch.ones(500, 1, dtype=torch.float64)
    exact = torch.exp(0.18 + 0.8 * next(path.increments([0.0, 1.0], x0, (1,))).w)
    counts = [4, 8, 16, 32, 64]
    for solver in (sdekit.EulerMaruyama(), sdekit.Milstein(), sdekit.SRID2()):
        grids = [sdekit.uniform(0.0, 1.0, n) for n in counts]
        ends = [sdekit.solve(gbm, x0, grid, solver=solver, noise=path).x for grid in grids]
        errors = [float((x - exact).abs().mean()) for x in ends]
        name = f"{type(solver).__name__}, {solver.order['diagonal'].strong:g}"
        ax.loglog([1 / n for n in counts], errors, "o-", ms=3, lw=0.8, label=name)
    ax.set(xlabel="step", ylabel="mean error of paths", title="strong orders", ylim=(1e-5, 1))
    ax.set_xticks([1 / n for n in counts[::2]], [f"1/{n}" for n in counts[::2]])
    ax.set_xticks([], minor=True)
    ax.legend(loc="lower right")


def likelihood(ax):
    """Log-likelihoods with intervals of 95 %, less the exact values."""
    torch.manual_seed(1)
    law = sd.GaussianMixture(torch.full((4,), 0.25), 1.5 * torch.randn(4, 3), torch.full((4,), 0.3))
    x = law.sample(40, seed=0)
    estimate = sd.log_likelihood(law, x, sde="vp", trace=sdekit.Hutchinson(probes=16))
    exact = law.log_prob(x)
    low, high = estimate.interval(0.95)
    bars = torch.stack([estimate.value - low, high - estimate.value])
    ax.errorbar(torch.arange(40), estimate.value - exact, bars, fmt=".", lw=1, ms=3)
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(xlabel="point", ylabel="error, and 95 % interval", title="log p(x)")


def posterior(figure, model):
    """Digits of which the upper half is seen, with noise."""
    source = sd.data.load("digits")
    truth = source.scale.encode(source.test[3:6], 0.5).float()
    upper = torch.zeros(8, 8, dtype=torch.bool)
    upper[:4] = True
    observation = sd.LinearObservation.simulated(sd.Mask(upper), truth, 0.5**2, seed=0)
    settings = {"particles": 512, "steps": 40, "seed": 0}
    posterior = sd.sample_posterior(model, observation, 512, **settings)
    figure.suptitle("x given its upper half", fontsize="large")
    axes = figure.subplots(3, 6)
    for i, line in enumerate(axes):
        seen = torch.zeros_like(truth[i])
        seen[:, upper] = observation.y[i]
        one = sd.WeightedSamples(posterior.x[i], posterior.log_weights[i])
        images = [truth[i], seen, *one.resampled(3, seed=0), 2 * one.std() - 1]
        row(line, pixels(torch.stack(images), source))
    for ax, title in zip(axes[-1], ("truth", "seen", "", "samples", "", "std."), strict=True):
        ax.set_xlabel(title)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("demo/digits"))
    run = parser.parse_args().run
    mpl.use("Agg")
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    plt.rcParams.update({"axes.titlesize": "large", "legend.frameon": False})
    figure = plt.figure(figsize=(12, 2.6), layout="constrained")
    parts = figure.subfigures(1, 4, width_ratios=[3, 3, 3, 3.4])
    for draw, part in zip((from_noise_to_data, strong_orders, likelihood), parts, strict=False):
        draw(part.subplots())
    posterior(parts[3], sd.load(run))
    figure.savefig(run / "gallery.png", dpi=100)
