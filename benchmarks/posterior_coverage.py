"""Coverage of posteriors of trained networks, where the truth is drawn from the model itself, so
that the sampler is tested and not the prior.

A network is trained on a mixture in 2 and in 16 dimensions. x_0 is a sample of the network's
reverse process, y = A x_0 + noise, and the posterior is that of the network. Printed is how often
x_0 is within central intervals of 50, 80 and 95 %, coordinate by coordinate, with standard errors
over the observations, and the p-value of TARP with points that depend on y. Approximations, 64
samples of each posterior, stand beside weights by the path and by the flow, whose proposal is the
isotropic one. Samples of the flow are few, and the weight of the truth itself, from the densities
of both flows, makes its ranks exact for any number of them (`sbc`); of too few in 16 dimensions
most truths are outside all, and count as covered at 95 %.

`python benchmarks/posterior_coverage.py` takes three hours on one thread, half of them for the flow
in 16 dimensions; `--methods particles --particles 256` adds a line for a larger cloud.
"""

import argparse
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from _bench import environment, publish, save, words
from torch import Tensor

import sdekit_diffusion as sd
from sdekit import AdamsMoulton
from sdekit_diffusion.metrics import sbc, tarp

SEED = 5
DRAWS = 2000
SAMPLES = 64  # of an approximation
PARTICLES = 128
WEIGHTED = 16  # samples per dimension that are weighted by the flow
BATCH = 4096  # of these, solved together
LEVELS = (0.5, 0.8, 0.95)
METHODS = ["isotropic", "diagonal", "jacobian", "DPS", "particles", "flow"]
TIGHT = sd.AdaptiveFlow(rtol=1e-4, atol=1e-4)
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


@dataclass(frozen=True)
class Case:
    """A network, observations of samples of it, and the rows that are printed."""

    model: sd.ScoreModel
    truth: Tensor
    a: Tensor
    variance: float
    y: Tensor
    rows: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def of(d: int, n: int) -> "Case":
        model = trained(law_of(d))
        generator = torch.Generator().manual_seed(SEED)
        a = torch.randn(max(1, d // 4), d, generator=generator) / math.sqrt(d)
        truth = sd.sample(model, n, method=CHAIN, seed=SEED)
        variance = (0.3 * (model.data_std or 1.0)) ** 2
        y = sd.LinearObservation.simulated(a, truth, variance, seed=SEED).y
        return Case(model, truth, a, variance, y)

    def observation(self) -> sd.LinearObservation:
        """The observations."""
        return sd.LinearObservation(self.a, self.y, self.variance)

    def report(
        self,
        name: str,
        x: Tensor,
        begun: float,
        log_weights: Tensor | None = None,
        own: Tensor | None = None,
    ) -> None:
        """Prints the coverage of samples of the posteriors; own: the log-weights of the truths."""
        points = self.y @ torch.linalg.pinv(self.a).T
        ranks = sbc(x, self.truth, log_weights, truth_log_weights=own)
        balls = tarp(x, self.truth, log_weights, references=points, truth_log_weights=own)
        coverage = ranks.coverage(LEVELS)
        p_value = float(balls.p_value)
        shown = "  ".join(
            f"{100 * share:5.1f} +- {100 * stderr:.1f}" for share, stderr in coverage.values()
        )
        d = self.truth.shape[1]
        seconds = time.perf_counter() - begun
        print(f"{d:3d}  {name:22s} {shown}   TARP p {p_value:.2g}   {seconds:.0f} s", flush=True)
        self.rows.append({"d": d, "method": name, "coverage": coverage, "tarp": p_value})


def approximations(case: Case, chosen: list[str]) -> None:
    """Samples of the chosen conditioned models as they are."""
    n = len(case.truth)
    index = torch.arange(n).repeat_interleave(SAMPLES)
    given = case.observation()
    models = {
        name: sd.MomentMatched(case.model, given, name)
        for name in ("isotropic", "diagonal", "jacobian")
    }
    for name, model in {**models, "DPS": sd.DPS(case.model, given)}.items():
        if name not in chosen:
            continue
        begun = time.perf_counter()
        x = sd.sample(model.rows(index), len(index), method=CHAIN, seed=1, batch_size=16384)
        case.report(name, x.reshape(n, SAMPLES, -1), begun)


def weighted(case: Case, chosen: list[str], particles: int) -> None:
    """The same with weights, by the path and by the flow."""
    begun = time.perf_counter()
    if "particles" in chosen:
        found = sd.sample_posterior(case.model, case.observation(), particles, seed=1)
        name = "particles" if particles == PARTICLES else f"{particles} particles"
        case.report(name, found.x, begun, found.log_weights)
    begun = time.perf_counter()
    if "flow" in chosen:
        given = case.observation()
        method = sd.FlowWeights(batch_size=BATCH)
        samples = WEIGHTED * case.truth.shape[1]
        found = sd.sample_posterior(
            case.model, given, samples, method=method, proposal="isotropic", seed=1
        )
        proposal = sd.MomentMatched(case.model, given)
        densities = [
            sd.log_likelihood(model, case.truth, method=TIGHT).value
            for model in (case.model, proposal)
        ]
        own = densities[0] - densities[1] + proposal.observation.log_prob(case.truth)
        case.report("flow", found.x, begun, found.log_weights, own)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--dimensions", type=int, nargs="*", default=[2, 16])
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--particles", type=int, default=PARTICLES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = environment(dtype="torch.float32", seed=SEED, draws=arguments.draws)
    for d in arguments.dimensions:
        case = Case.of(d, arguments.draws)
        approximations(case, arguments.methods)
        weighted(case, arguments.methods, arguments.particles)
        part = f"{d}"
        if arguments.methods != METHODS:
            part = " ".join([part, *arguments.methods])
            part += f" {arguments.particles}" if "particles" in arguments.methods else ""
        save(words(f"posterior_coverage {part}"), {**result, "rows": case.rows})
        publish("posterior_coverage", result, case.rows, part)


if __name__ == "__main__":
    main()
