"""The grids on which benchmarks/networks.py runs published samplers, chosen on other networks.

The rule: for each sampler, number of evaluations, scale of guidance and kind of network, the grid
with the least geometric mean of its mean error over five networks of that kind, of the laws of
benchmarks/choice.py: modes and loops in the plane, a curved law in 16 dimensions, a surface in 32,
and images. The kinds are networks that predict the noise and networks that predict the velocity
under VP, and networks of straight paths. The error is that of networks.py.

`python benchmarks/peer_grids.py`; half an hour on one core.
"""

import argparse
import itertools
import math
import statistics
from typing import Any, Literal

import choice
import torch
from _bench import environment, publish, save
from networks import BUDGETS, GRIDS, GUIDANCE, PEERS, errors, kind_of

import sdekit_diffusion as sd

NETWORKS: tuple[tuple[str, Literal["noise", "velocity"]], ...] = (
    ("vp", "noise"),
    ("vp", "velocity"),
    ("flow", "velocity"),
)
SEED = 9  # not that of networks.py
SAMPLES = 500
IMAGES = 40

Errors = dict[tuple[str, int, str], float]


def errors_on_grids(model: sd.AbstractModel, n: int) -> Errors:
    """The mean error of each sampler, by the number of evaluations and the grid."""
    exact = sd.sample(model, n, method=sd.AdaptiveFlow(1e-6, 1e-6), seed=SEED)
    found = {}
    for (peer, method), steps, grid in itertools.product(PEERS.items(), BUDGETS, GRIDS):
        x = sd.sample(model, n, method=method, steps=steps, grid=GRIDS[grid], seed=SEED)
        found[peer, steps, grid] = errors(x, exact)[0]
    assert all(map(math.isfinite, found.values()))
    return found


def chosen(kind: str, guidance: float, found: list[Errors]) -> list[dict[str, Any]]:
    """The best grid of each sampler and number of evaluations over several networks, with the
    geometric means of all.
    """
    rows = []
    for peer, steps in itertools.product(PEERS, BUDGETS):
        means = {
            grid: math.exp(statistics.fmean(math.log(one[peer, steps, grid]) for one in found))
            for grid in GRIDS
        }
        case = {"networks": kind, "guidance": guidance, "method": peer, "evaluations": steps}
        rows.append({**case, "grid": min(means, key=lambda name: means[name]), "means": means})
    return rows


def main() -> None:
    """Trains, chooses, prints and writes."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    particulars = environment(dtype="float32", seed=SEED, seed_of_networks=choice.SEED)
    found: dict[tuple[str, float], list[Errors]] = {}
    for (law, (x, label)), (sde, predicts) in itertools.product(choice.laws().items(), NETWORKS):
        model = choice.trained(x, label, sde, predicts)
        n = SAMPLES if x.ndim == 2 else IMAGES
        given = model.given(label=torch.arange(n) % (int(label.max()) + 1))
        models = {1.0: model.unconditional()} | {w: sd.Guided(given, w) for w in GUIDANCE}
        for guidance, one in models.items():
            found.setdefault((kind_of(model), guidance), []).append(errors_on_grids(one, n))
        print(f"{law}, {sde}, {predicts}", flush=True)
        every = {
            f"{kind}, {guidance:g}": [
                {f"{peer}, {steps}, {grid}": error for (peer, steps, grid), error in one.items()}
                for one in those
            ]
            for (kind, guidance), those in found.items()
        }
        save("peer_grids", {"environment": particulars, "errors": every})
    rows = [row for case, those in found.items() for row in chosen(*case, those)]
    publish("peer_grids", particulars, rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
