"""Students of one and four steps of the digits network, trained on solutions of its flow.

The teacher is a run folder such as that of `make demo` (`--teacher demo/digits`), or is trained
with the same settings. Students are copies of it, trained on solutions of its probability flow to
an accuracy of 0.1: for one and for four steps (`Trajectories.steps`, a pseudo-Huber loss), and as
rectified flow (`Trajectories.pairs`), one step. The student of one step has `--updates` updates,
the others a sixth of it. From initial states that none of them was trained on:

- the error of x against the exact flow, in standard deviations of the data, mean and median;
- the Frechet distance to training images in the features of a classifier, from 0, that of held-out
  images, to 1, that of noise, beside the teacher's;
- how confident that classifier is, as the mean of its largest probability;
- p of a permutation test of the energy distance of these features between 2,000 samples of the
  student and 2,000 others of the teacher.

Also printed: the evaluations of the teacher for each solution, and the time of each training run.

`python benchmarks/distillation.py [--teacher FOLDER] [--pairs 80000] [--updates 15000]`
"""

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from torch import Tensor

import sdekit_diffusion as sd
from sdekit_diffusion.metrics import classifier_features, frechet

SEED = 0
N = 2000
STEPS = 4
ACCURACY = 0.1  # of each step of a solution
PERMUTATIONS = 1000
STUDENT = sd.Recipe(lr=3e-3, weighting="data", huber=1e-3, seed=SEED)
RECTIFIED = sd.Recipe(lr=3e-3, weighting="edm", seed=SEED)


def teacher_of(folder: Path | None) -> sd.ScoreModel:
    """The model of a run, or one that is trained as `make demo` does."""
    if folder is not None:
        return sd.load(folder)
    digits = sd.data.load("digits")
    torch.manual_seed(SEED)
    net = sd.nets.UNet(channels=1, width=32)
    model = sd.ScoreModel(net, "subvp", "velocity", shape=(1, 8, 8), conditioning="log_snr")
    sd.fit(model, digits, sd.Recipe(steps=2200, lr=4e-3, weighting="plain", seed=SEED))
    return model


def student_of(
    teacher: sd.ScoreModel, data: dict[str, Tensor], recipe: sd.Recipe
) -> tuple[sd.ScoreModel, float]:
    """A copy of the teacher, trained by a recipe, and the minutes of its training."""
    student = copy.deepcopy(teacher)
    began = time.perf_counter()
    sd.fit(student, data, recipe, progress=False)
    return student, (time.perf_counter() - began) / 60


def flow(teacher: sd.ScoreModel, seed: int = SEED, first: int = 0) -> Tensor:
    """Samples by the accurate flow of the teacher."""
    settings: dict[str, Any] = {"seed": seed, "first": first, "batch_size": 500}
    return sd.sample(teacher, N, method=sd.AdaptiveFlow(1e-5, 1e-5), **settings)


def solutions(teacher: sd.ScoreModel, n: int) -> tuple[sd.Trajectories, dict[str, float]]:
    """Solutions for students, their number, the evaluations of each and the seconds of all."""
    evaluated: list[int] = []
    net = cast(torch.nn.Module, teacher.net)
    hook = net.register_forward_hook(lambda net, given, out: evaluated.append(len(out)))
    began = time.perf_counter()
    settings: dict[str, Any] = {"accuracy": ACCURACY, "seed": SEED, "batch_size": 500}
    found = sd.trajectories(teacher, n, STEPS, **settings)
    seconds = time.perf_counter() - began
    hook.remove()
    each = sum(evaluated) / n
    print(f"{n} solutions, {each:.0f} evaluations each, in {seconds:.0f} s", flush=True)
    return found, {"pairs": n, "evaluations of each": each, "seconds of pairs": seconds}


def permutation_test(a: np.ndarray, b: np.ndarray) -> float:
    """p of the energy distance of two sets of points."""
    points = torch.from_numpy(np.concatenate([a, b])).double()
    distances = torch.cdist(points, points)
    rows = distances.sum(dim=1)
    whole = float(rows.sum())

    def energy(chosen: Tensor) -> float:
        within_a = float(distances[chosen][:, chosen].sum())
        between = float(rows[chosen].sum()) - within_a
        within_b = whole - within_a - 2 * between
        return 2 * between / (len(a) * len(b)) - within_a / len(a) ** 2 - within_b / len(b) ** 2

    generator = torch.Generator().manual_seed(SEED)
    found = energy(torch.arange(len(a)))
    larger = sum(
        energy(torch.randperm(len(points), generator=generator)[: len(a)]) >= found
        for _ in range(PERMUTATIONS)
    )
    return (1 + larger) / (1 + PERMUTATIONS)


class Judge:
    """Compares samples with the data and with the teacher."""

    def __init__(self, teacher: sd.ScoreModel, exact: Tensor, others: Tensor) -> None:
        digits = sd.data.load("digits")
        known, labels = digits.reference(10_000)
        assert labels is not None
        self.features = classifier_features(known.double() / 16, labels)
        self.known = self.features(known.double() / 16)
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.randint(17, (N, 1, 8, 8), generator=generator).double() / 16
        self.real, self.noise = (
            frechet(self.features(x), self.known) for x in (digits.test.double() / 16, noise)
        )
        self.scale = teacher.scale
        self.std = teacher.data_std or 1.0
        self.exact = exact
        self.others = self._shown(others)

    def _shown(self, x: Tensor) -> np.ndarray:
        return np.asarray(self.features(self.scale.decode(x).double() / 16))

    def confidence(self, x: Tensor) -> float:
        logits = torch.as_tensor(self.features.logits(self.scale.decode(x).double() / 16))
        return float(logits.softmax(dim=1).amax(dim=1).mean())

    def row(self, x: Tensor) -> dict[str, float]:
        error = (x - self.exact).flatten(1).double().square().mean(dim=1).sqrt() / self.std
        shown = self._shown(x)
        return {
            "mean error": float(error.mean()),
            "median error": float(error.median()),
            "frechet": (frechet(shown, self.known) - self.real) / (self.noise - self.real),
            "confidence": self.confidence(x),
            "p": permutation_test(shown, self.others),
        }


def picture(columns: dict[str, Tensor], scale: Any) -> None:
    """Twenty samples of each, from the same initial states."""
    figure = Figure(figsize=(2.0 * len(columns), 2.4), layout="constrained")
    for axes, (name, x) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        tiles = torch.nn.functional.pad(scale.decode(x[:20]).reshape(5, 4, 8, 8), (1, 1, 1, 1))
        axes.imshow(tiles.permute(0, 2, 1, 3).reshape(50, 40).numpy(), cmap="gray_r")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "distillation.png", dpi=130)


def main() -> None:
    """Trains, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, help="a run folder of digits")
    parser.add_argument("--pairs", type=int, default=80_000)
    parser.add_argument("--updates", type=int, default=15_000, help="of the student of one step")
    arguments = parser.parse_args()
    result = environment(dtype="float32", seed=SEED)
    teacher = teacher_of(arguments.teacher)
    fresh, others = (flow(teacher, **case) for case in ({"first": arguments.pairs}, {"seed": 1}))
    found, particulars = solutions(teacher, arguments.pairs)
    result = {**result, **particulars}
    ends = sd.Trajectories(found.sigmas[[0, -1]], found.y[[0, -1]], found.conditions)
    judge = Judge(teacher, fresh, others)
    settings: dict[str, Any] = {"method": "ddim", "seed": SEED, "first": arguments.pairs}
    most = arguments.updates
    fewer = max(1, most // 6)
    cases = {
        f"{STEPS} steps": (found.steps(), replace(STUDENT, steps=fewer), found.sigmas),
        "1 step": (ends.steps(), replace(STUDENT, steps=most), ends.sigmas),
        "rectified, 1 step": (ends.pairs(), replace(RECTIFIED, steps=fewer), ends.sigmas),
    }
    drawn = {"exact flow": fresh}
    rows = {"teacher, exact flow": judge.row(fresh)}
    for name, (_, _, sigmas) in list(cases.items())[:2]:
        drawn_now = sd.sample(teacher, N, grid=sigmas, **settings)
        rows[f"teacher, DDIM, {name}"] = judge.row(drawn_now)
    for name, (data, recipe, sigmas) in cases.items():
        student, minutes = student_of(teacher, data, recipe)
        drawn[name] = sd.sample(student, N, grid=sigmas, **settings)
        rows[name] = {"updates": recipe.steps, "minutes": minutes, **judge.row(drawn[name])}
        print(name, rows[name], flush=True)
        save("distillation", {**result, "rows": rows})
    publish("distillation", result, [{"samples": name, **row} for name, row in rows.items()])
    for name, row in rows.items():
        print(f"{name:24s}", "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    picture(drawn, teacher.scale)


if __name__ == "__main__":
    main()
