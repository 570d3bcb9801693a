"""Evaluations of the network per sample of a posterior, by the sampler of the package sbi (NPSE,
Sharrock et al. 2024, arXiv 2210.04872) with its defaults and by ours, at 1,000 simulations.

The problems and our recipe are those of `inference.py`; gaussian_linear is left out, whose prior is
not bounded and whose C2ST takes longest. Both get the same simulations and the same observation of
sbibm, and each draws 10,000 samples inside the prior. Evaluations of rejected samples count, and
seconds are those of processor time. In an environment with both, `pip install sbi` and `pip install
--no-deps sbibm`: `python benchmarks/inference_sbi.py`; with names of problems, only these, and
nothing is stored.
"""

# pyright: reportMissingImports=false

import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _bench import environment, publish
from inference import (
    PROBLEMS,
    SAMPLES,
    SEED,
    STEPS,
    Observation,
    Posterior,
    Problem,
    c2st,
    published,
)
from torch import Tensor, nn

SIMULATIONS = 1_000
OBSERVATION = 1


class Counted:
    """The rows that a network has evaluated."""

    def __init__(self, network: nn.Module) -> None:
        self.rows = 0
        network.register_forward_hook(self._add)

    def _add(self, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        self.rows += len(out)


def by_sbi(problem: Problem, one: Observation) -> list[dict[str, Any]]:
    """NPSE with its defaults, and its other sampler."""
    from sbi.inference import NPSE
    from sbi.utils import BoxUniform

    generator = torch.Generator().manual_seed(SEED + SIMULATIONS)
    theta = problem.prior(SIMULATIONS, generator)
    x = problem.simulate(theta, generator)
    torch.manual_seed(SEED + SIMULATIONS)
    bound = torch.full((problem.dim,), problem.bound)
    start = time.process_time()
    inference = NPSE(prior=BoxUniform(-bound, bound), show_progress_bars=False)
    inference.append_simulations(theta, x).train()
    seconds = time.process_time() - start
    rows = []
    for name in ("sde", "ode"):
        posterior = inference.build_posterior(sample_with=name)
        counted = Counted(posterior.vector_field_estimator.net)
        sampler = partial(posterior.sample, (SAMPLES,), x=one.x, show_progress_bars=False)
        rows.append(measured(problem, one, f"sbi, NPSE, {name!r}", counted, sampler, seconds))
    return rows


def by_sdekit(problem: Problem, one: Observation) -> dict[str, Any]:
    """`inference.py`'s posterior."""
    start = time.process_time()
    posterior = Posterior.of(problem, SIMULATIONS, SEED + SIMULATIONS)
    seconds = time.process_time() - start
    net = posterior.model.net
    assert isinstance(net, nn.Module)
    counted = Counted(net)

    def sampler() -> Tensor:
        return posterior.sample(one.x, SAMPLES, SEED)[0]

    return measured(problem, one, f"sdekit, {STEPS} steps", counted, sampler, seconds)


def measured(
    problem: Problem,
    one: Observation,
    name: str,
    counted: Counted,
    sampler: Callable[[], Tensor],
    training: float,
) -> dict[str, Any]:
    """What a sampler took, and how its samples differ from the reference."""
    before = counted.rows
    start = time.process_time()
    samples = sampler()
    seconds = time.process_time() - start
    row = {
        "problem": problem.name,
        "sampler": name,
        "evaluations per sample": (counted.rows - before) / SAMPLES,
        "C2ST": c2st(one.reference, samples),
        "seconds of training": training,
        "of sampling": seconds,
    }
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    if importlib.util.find_spec("sbi") is None:
        print("left out: the package sbi is missing, run `pip install sbi`")
        return
    bounded = {problem.name: problem for problem in PROBLEMS if problem.bound < float("inf")}
    names = sys.argv[1:] or list(bounded)
    if unknown := [name for name in names if name not in bounded]:
        sys.exit(f"no problem {', '.join(unknown)}; choose among {', '.join(bounded)}")
    sbi = importlib.metadata.version("sbi")
    particulars = environment(dtype="float32", seed=SEED, samples=SAMPLES, sbi=sbi)
    rows = []
    for name in names:
        one = published(bounded[name], OBSERVATION)
        rows += [by_sdekit(bounded[name], one), *by_sbi(bounded[name], one)]
    if not sys.argv[1:]:
        publish("inference_sbi", particulars, rows)


if __name__ == "__main__":
    main()
