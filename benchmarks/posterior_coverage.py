"""Coverage of posteriors of trained networks, where the truth is drawn from the model itself, so
that the sampler is tested and not the prior.

A network is trained on a mixture in 2 and in 16 dimensions. x_0 is a sample of the network's
reverse process, y = A x_0 + noise, and the posterior is that of the network. Printed is how often
x_0 is within central intervals of 50, 80 and 95 %, coordinate by coordinate, with standard errors
over the observations, and the p-value of TARP with points that depend on y. Approximations, 64
samples of each posterior, stand beside weights by the path and by the flow. `python
benchmarks/posterior_coverage.py`, 40 minutes on one thread; the flow with a quarter of the draws.
"""

import argparse
import math
import time

import torch
from _bench import environment, save
from torch import Tensor

import sdekit_diffusion as sd
from sdekit import AdamsMoulton
from sdekit_diffusion.metrics import sbc, tarp

SEED = 5
DRAWS = 2000
SAMPLES = 64  # of an approximation
LEVELS = (0.5, 0.8, 0.95)
CHAIN = sd.OnClock(AdamsMoulton(2), eta=1.0, steps=100)


def law_of(d: int) -> sd.GaussianMixture:
    """Three modes with full covariances."""
    generator = torch.Generator().manual_seed(d)
    means = 1.5 * torch.randn(3, d, generator=generator) / math.sqrt(d / 2)
    factors = torch.randn(3, d, d, generator=generator) / math.sqrt(2 * d)
    return sd.GaussianMixture([0.5, 0.3, 0.2], means, factors @ factors.mT + 0.02 * torch.eye(d))


def trained(law: sd.GaussianMixture) -> sd.ScoreModel:
    """A network of the law."""
    torch.manual_seed(SEED)
    net = sd.nets.MLP(shape=law.shape, width=128)
    model = sd.ScoreModel(net, "vp", "velocity", shape=law.shape, conditioning="log_snr")
    recipe = sd.Recipe(steps=3000, batch_size=256, lr=2e-3, seed=SEED)
    sd.fit(model, law.sample(50_000, seed=SEED), recipe, progress=False)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--dimensions", type=int, nargs="*", default=[2, 16])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = environment(dtype="torch.float32", seed=SEED, draws=arguments.draws)
    rows = []
    for d in arguments.dimensions:
        model = trained(law_of(d))
        generator = torch.Generator().manual_seed(SEED)
        a = torch.randn(max(1, d // 4), d, generator=generator) / math.sqrt(d)
        n = arguments.draws
        truth = sd.sample(model, n, method=CHAIN, seed=SEED)
        variance = (0.3 * (model.data_std or 1.0)) ** 2
        blank = torch.zeros(len(a))
        y = sd.LinearObservation(a, blank, variance).simulate(truth, seed=SEED)
        observation = sd.LinearObservation(a, y, variance)
        points = y @ torch.linalg.pinv(a).T

        def report(
            name: str,
            x: Tensor,
            log_weights: Tensor | None,
            begun: float,
            d: int = d,
            truth: Tensor = truth,
            points: Tensor = points,
        ) -> None:
            known = truth[: len(x)]
            coverage = sbc(x, known, log_weights).coverage(LEVELS)
            p_value = tarp(x, known, log_weights, references=points[: len(x)]).p_value
            shown = "  ".join(
                f"{100 * share:5.1f} +- {100 * stderr:.1f}" for share, stderr in coverage.values()
            )
            print(
                f"{d:3d}  {name:22s} {shown}   TARP p {float(p_value):.2g}   "
                f"{time.perf_counter() - begun:.0f} s",
                flush=True,
            )
            rows.append({"d": d, "method": name, "coverage": coverage, "tarp": float(p_value)})

        rows_of = torch.arange(n).repeat_interleave(SAMPLES)
        approximations = {
            "isotropic": sd.MomentMatched(model, observation),
            "diagonal": sd.MomentMatched(model, observation, "diagonal"),
            "jacobian": sd.MomentMatched(model, observation, "jacobian"),
            "DPS": sd.DPS(model, observation),
        }
        for name, conditioned in approximations.items():
            begun = time.perf_counter()
            x = sd.sample(
                conditioned.rows(rows_of), len(rows_of), method=CHAIN, seed=1, batch_size=16384
            )
            report(name, x.reshape(n, SAMPLES, d), None, begun)
        begun = time.perf_counter()
        found = sd.sample_posterior(model, observation, 128, seed=1)
        report("particles", found.x, found.log_weights, begun)
        begun = time.perf_counter()
        some = sd.LinearObservation(a, y[: n // 4], variance)
        found = sd.sample_posterior(model, some, 64, method="flow", seed=1)
        report("flow", found.x, found.log_weights, begun)
    save("posterior_coverage", {**result, "rows": rows})


if __name__ == "__main__":
    main()
