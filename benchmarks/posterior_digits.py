"""Coverage of posteriors of digits: images drawn from the network, and held-out ones.

The network is that of `make demo`. Half of the pixels of an image are hidden, or every 2 x 2 block
is replaced by its mean, with noise of a tenth of the data's deviation. Printed is how often pixels
are within central intervals of 50, 80 and 95 %, with standard errors over the images, and the
p-value of TARP with points that depend on y. Images drawn from the network test the sampler, those
held out the network too. Approximations, 32 samples of each posterior, stand beside clouds of 128
particles. A picture is drawn of a blur, and one of Poisson counts.

`python benchmarks/posterior_digits.py --run demo/digits`, an hour on one thread.
"""

import argparse
import time
import warnings
from typing import Any

import torch
from _bench import RESULTS, environment, publish, save
from torch import Tensor

import sdekit_diffusion as sd
from sdekit import AdamsMoulton, NotFiniteError
from sdekit_diffusion._app.restoring import Restoration
from sdekit_diffusion.metrics import sbc, tarp

SEED = 3
IMAGES = 200
STEPS = 50
SAMPLES = 32  # of an approximation
PARTICLES = 128
LEVELS = (0.5, 0.8, 0.95)
NOISE = 0.1  # of the data's deviation
PHOTONS = 20.0  # counts of a white pixel
CHAIN = sd.OnClock(AdamsMoulton(2), eta=1.0, steps=STEPS)
Rows = list[dict[str, Any]]


def operators(event: tuple[int, ...]) -> dict[str, sd.AbstractOperator]:
    """What is observed, by name."""
    known = torch.ones(event[1:], dtype=torch.bool)
    known[event[1] // 2 :] = False
    return {"inpainting": sd.Mask(known), "downsampling": sd.Downsampling(2)}


def report(
    rows: Rows,
    names: tuple[str, str, str],
    truth: Tensor,
    y: sd.LinearObservation,
    found: tuple[Tensor, Tensor | None, float],
) -> None:
    """Prints coverage and TARP of samples, with log weights where they have some."""
    x, log_weights, seconds = found
    centres = y.operator.adjoint(y.y, tuple(truth.shape[1:]))
    coverage = sbc(x, truth, log_weights).coverage(LEVELS)
    p_value = float(tarp(x, truth, log_weights, references=centres).p_value)
    weights = torch.full(x.shape[:2], 1 / x.shape[1])
    weights = weights if log_weights is None else log_weights.softmax(dim=1)
    mean = torch.einsum("nk,nk...->n...", weights.to(x), x)
    error = float((mean - truth).square().mean().sqrt())
    shown = "  ".join(
        f"{100 * share:5.1f} +- {100 * stderr:.1f}" for share, stderr in coverage.values()
    )
    print(
        f"{names[0]:13s} {names[1]:9s} {names[2]:10s} {shown}   TARP p {p_value:.2g}   error of "
        f"the mean {error:.4f}   {seconds:.0f} s",
        flush=True,
    )
    row = dict(zip(("task", "images", "method"), names, strict=True))
    rows.append({**row, "coverage": coverage, "tarp": p_value, "error": error})


def measure(
    model: sd.ScoreModel, truth: Tensor, operator: sd.AbstractOperator, names: tuple[str, str]
) -> Rows:
    """Approximations alone and particles, for some images of one kind."""
    rows: Rows = []
    n = len(truth)
    std = float(model.data_std or 1.0)
    y = sd.LinearObservation.simulated(operator, truth, (NOISE * std) ** 2, seed=SEED)
    index = torch.arange(n).repeat_interleave(SAMPLES)
    alone = {
        "isotropic": sd.MomentMatched(model, y),
        "DPS": sd.DPS(model, y, jacobian=False),
    }
    for name, approximation in alone.items():
        begun = time.perf_counter()
        try:
            x = sd.sample(
                approximation.rows(index), len(index), method=CHAIN, seed=1, batch_size=1024
            )
        except NotFiniteError as error:  # DPS's step is too long where R is small
            print(f"{names[0]:13s} {names[1]:9s} {name:10s} diverges: {error}"[:150], flush=True)
            rows.append({"task": names[0], "images": names[1], "method": name, "diverges": True})
            continue
        found = x.unflatten(0, (n, SAMPLES)), None, time.perf_counter() - begun
        report(rows, (*names, name), truth, y, found)
    begun = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weighted = sd.sample_posterior(
            model, y, PARTICLES, particles=PARTICLES, steps=STEPS, seed=1
        )
    found = weighted.x, weighted.log_weights, time.perf_counter() - begun
    report(rows, (*names, "particles"), truth, y, found)
    for one in caught:
        print(f"  warned: {one.message}")
    return rows


def pictures(model: sd.ScoreModel, truth: Tensor) -> None:
    """Posterior samples of blurred digits, and of digits as Poisson counts."""
    std = float(model.data_std or 1.0)
    blurred = sd.LinearObservation.simulated(sd.Blur(1.0), truth, (NOISE * std) ** 2, seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    counts = torch.poisson(rates(truth), generator=generator)
    counted = sd.Observation(counts, log_poisson, each=True)
    RESULTS.mkdir(exist_ok=True)
    shown = {
        "blur": (blurred, blurred.y.reshape(truth.shape)),
        "poisson": (counted, 2 * counts / PHOTONS - 1),
    }
    for name, (observation, y) in shown.items():
        found = sd.sample_posterior(
            model, observation, PARTICLES, particles=PARTICLES, steps=STEPS, seed=1
        )
        restored = Restoration(truth, y, found.x, found.log_weights)
        restored.picture(model.scale).savefig(RESULTS / f"posterior_{name}.png", dpi=150)


def rates(x: Tensor) -> Tensor:
    """Photons of each pixel, those of pixels from -1, black, to 1."""
    return PHOTONS * torch.nn.functional.softplus(10 * (x + 1)) / 20


def log_poisson(x: Tensor, y: Tensor) -> Tensor:
    """log p(y | x) but for a function of y."""
    rate = rates(x)
    return (y * rate.log() - rate).flatten(1).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", default="demo/digits", help="a training run, of `make demo`")
    parser.add_argument("--images", type=int, default=IMAGES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = sd.load(arguments.run)
    assert isinstance(model, sd.ScoreModel)
    n = arguments.images
    held_out = model.scale.encode(sd.data.load("digits").test[:n], 0.5)
    kinds = {
        "drawn": sd.sample(model, n, method=CHAIN, seed=SEED),
        "held out": held_out.to(torch.float32),
    }
    result = environment(dtype="torch.float32", seed=SEED, images=n, steps=STEPS)
    pictures(model, kinds["held out"][:8])
    rows: Rows = []
    for task, operator in operators(tuple(held_out.shape[1:])).items():
        for kind, truth in kinds.items():
            rows += measure(model, truth, operator, (task, kind))
    save("posterior_digits", {**result, "rows": rows})
    publish("posterior_digits", result, rows)


if __name__ == "__main__":
    main()
