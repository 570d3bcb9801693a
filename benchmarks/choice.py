"""What the default integrates: mean error of x(end) for the velocity by its c, and for the data, on
mixtures of its own.

The rule is the default's on the focused grid: `AdamsBashforth(3)` below 7 steps, `AdamsMoulton(3)`
with shorter last steps below 25, and `AdamsMoulton(4)` from there on; with c = 1, the default, also
each of these rules. x(end) is compared with the probability flow from the same x_T, solved to
1e-12. The digits are the covariances of scikit-learn's, ten Gaussians. benchmarks/samplers.py
measures the choice on other mixtures.

With --few the choices for few steps and for networks: grids and rules of the velocity on the same
mixtures; what is integrated, rules and grids for small networks that predict the noise or the
velocity, and under guidance for small networks with labels, of laws in 2 to 64 dimensions, trained
here; the error over the least of a row. It takes hours; with --guided the last of these alone.
benchmarks/networks.py measures them on other networks.

With --noise the rules and the focused grids of the method "sde": the largest deviation
of weights, means and covariances of modes from the exact ones, in units of what exact samples stay
below in 95 % of all draws, as the mean over two mixtures of each kind.

    python benchmarks/choice.py [--few | --guided | --noise]
"""

import itertools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from _bench import RESULTS, environment, publish, save
from matplotlib.figure import Figure
from samplers import SCORES, SEED, Start, judged, mixture, start
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from sdekit import (
    AbstractMultistep,
    AbstractSolver,
    AdamsBashforth,
    AdamsMoulton,
    Dopri8,
    DPMSolver,
    LimitedUniPC,
    UniPC,
    solve,
    uniform,
)
from sdekit_diffusion import (
    VESDE,
    VPSDE,
    AbstractGrid,
    AbstractModel,
    AdaptiveFlow,
    Focused,
    GaussianMixture,
    Guided,
    OnClock,
    Recipe,
    ScoreModel,
    data,
    fit,
    nets,
    sample,
)
from sdekit_diffusion._sampling.clock import velocity_on_angle
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.focused import smooth

BUDGETS = (5, 6, 8, 10, 15, 20, 50)
RULES = {
    "predictor": AdamsBashforth(3, self_starting=False),
    "three": AdamsMoulton(3, self_starting=False, lower_final=True),
    "four": AdamsMoulton(4, self_starting=False),
}
FEW_STEPS = (5, 6, 8, 10, 12, 15, 19)
GUIDANCE = (2.0, 3.0, 7.5)
FEW_STEPS_GUIDED = (5, 8, 10, 15, 20, 25, 35, 50)
FEW_STEPS_OF_NETWORKS = (5, 6, 8, 10, 15, 20, 30, 50)
SHARPNESS = (5.0, 8.0, 12.0)
POWERS = (0.25, 0.375, 0.5)  # of the number of coordinates
FRACTIONS = (1.0, 0.5, 1 / 3, 0.25, 0.2, 0.1)
NOISY_STEPS = (12, 25, 40)
# Of v = log(1 + k y / (y / r + 1)): r and k in d coordinates.
NOISY_EXTENTS: dict[str, Callable[[int], float]] = {
    "r = d^0.5": lambda d: d**0.5,
    "r = 3 d^0.5": lambda d: 3 * d**0.5,
    "r = 0.85 d^0.85": lambda d: 0.85 * d**0.85,
}
NOISY_FACTORS: dict[str, Callable[[int], float]] = {
    "k = 100": lambda d: 100.0,
    "k = 350": lambda d: 350.0,
    "k = 1000": lambda d: 1000.0,
    "k = 1000 / d^0.5": lambda d: 1000 / d**0.5,
}
NOISY_RULES = {
    "two": AdamsMoulton(2),
    "two, shorter last step": AdamsMoulton(2, lower_final=True),
    "three, l": AdamsMoulton(3, variable="l"),
}
# By evaluations and by what is integrated: geometric mean and largest.
Summary = dict[int, dict[str, tuple[float, float]]]


def digits() -> GaussianMixture:
    """A Gaussian for each class of the digits, 64 pixels from -1/2 to 1/2 and centred, with
    deviations of at least 0.01.
    """
    images, classes = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    images = images / 16 - 0.5
    parts = [(images - images.mean(dim=0))[classes == k] for k in range(10)]
    covariances = torch.stack([torch.cov(part.T) + 1e-4 * torch.eye(64) for part in parts])
    weights = torch.tensor([len(part) / len(images) for part in parts], dtype=torch.float64)
    return GaussianMixture(weights, torch.stack([part.mean(dim=0) for part in parts]), covariances)


PROBLEMS = {
    "d = 2, narrow": (mixture(11, 2, 6, 0.03, 0.1), 400),
    "d = 2, wide": (mixture(12, 2, 8, 0.05, 0.3), 400),
    "d = 16, full": (mixture(13, 16, 5, 0.03, 0.5, full=True), 200),
    "d = 32, eigenvalues": (mixture(17, 32, 5, 1e-2, math.sqrt(10), full=True), 200),
    "d = 64, full": (mixture(14, 64, 8, 0.05, 0.5, full=True, spread=0.5), 64),
    "d = 3072": (mixture(15, 3072, 5, 0.05, 0.3, spread=0.5), 16),
    "d = 3072, second": (mixture(1002, 3072, 5, 0.05, 0.3, spread=0.5), 16),
    "d = 3072, third": (mixture(1102, 3072, 5, 0.05, 0.3, spread=0.5), 16),
    "d = 3072, close": (mixture(16, 3072, 12, 0.1, 0.4, spread=0.15), 16),
    "digits": (digits(), 64),
}


def turned(down: Start, c: float, rule: AbstractSolver, steps: int) -> Tensor:
    """x(end) by the velocity of some c, in units of the standard deviation of the data."""
    coordinates = down.coordinates
    shift = math.log(coordinates.std)
    span = (down.span[0] + shift, down.span[1] + shift)
    l = Focused().points(coordinates, span, steps)
    problem = velocity_on_angle(coordinates.standardised(down.model), c)
    before, after = (float(problem.scale(end)) for end in span)
    start, stop = (float(coordinates.time(end)) for end in span)
    u = coordinates.standard(start, down.x) / before
    u = solve(problem, u, torch.as_tensor(problem.time(l)), solver=rule).x * after
    return coordinates.physical(stop, u)


def errors_of(down: Start, exact: Tensor, steps: int) -> dict[str, float]:
    """The mean error of x(end) by what is integrated."""
    rule = OnClock(integrand="velocity", steps=steps).rule
    ends = {f"{f:.2f}": turned(down, f, rule, steps) for f in FRACTIONS}
    ends["data"] = down.sampled(OnClock(rule, steps=steps))
    ends |= {name: turned(down, 1.0, other, steps) for name, other in RULES.items()}
    return {kind: float((x - exact).square().mean(dim=1).sqrt().mean()) for kind, x in ends.items()}


def study() -> list[dict[str, Any]]:
    """A row of errors for each problem, diffusion and number of evaluations."""
    rows: list[dict[str, Any]] = []
    for problem, (law, n) in PROBLEMS.items():
        for name, sde in (("ve", VESDE()), ("vp", VPSDE())):
            down = start(law, sde, n)
            exact = down.sampled(AdaptiveFlow(1e-12, 1e-12, solver=Dopri8()))
            for steps in BUDGETS:
                errors = errors_of(down, exact, steps)
                rows.append({"problem": problem, "sde": name, "evaluations": steps, **errors})
                figures = "  ".join(f"{kind} {error:.1e}" for kind, error in errors.items())
                print(
                    f"{problem:16s} {name}  {steps:3d} evaluations  c / data_std: {figures}",
                    flush=True,
                )
    return rows


def summarised(rows: list[dict[str, Any]], kinds: list[str]) -> Summary:
    """The errors over the least of their row: geometric mean and largest, over all rows."""
    summary = {}
    for steps in BUDGETS:
        here = [r for r in rows if r["evaluations"] == steps]
        least = [min(r[kind] for kind in kinds) for r in here]
        ratios = {
            kind: [r[kind] / best for r, best in zip(here, least, strict=True)] for kind in kinds
        }
        summary[steps] = {
            k: (math.exp(sum(map(math.log, v)) / len(v)), max(v)) for k, v in ratios.items()
        }
        figures = "  ".join(
            f"{kind} {mean:.2f} ({worst:.1f})" for kind, (mean, worst) in summary[steps].items()
        )
        print(
            f"{steps:3d} evaluations, over the least of a row, geometric mean (largest): {figures}"
        )
    return summary


@dataclass(frozen=True, eq=False)
class Candidate(AbstractGrid):
    """`Focused()` with another v, see `smooth`."""

    sharpness: float
    power: float

    follows_model = True

    def points(self, coordinates: Coordinates, span: Span, steps: int) -> Tensor:
        l = uniform(*span, 4000)
        v = torch.as_tensor(smooth(l, coordinates.extent ** (2 * self.power), self.sharpness))
        mass = 0.8 * (v - v[0]) / (v[-1] - v[0])
        mass = mass + 0.2 * torch.linspace(0, 1, len(l), dtype=torch.float64)
        targets = uniform(0.0, 1.0, steps).numpy()
        points = torch.from_numpy(np.interp(targets, mass.numpy(), l.numpy()))
        points[0], points[-1] = span
        return points


def velocity_rules() -> list[dict[str, Any]]:
    """Errors over the least of their row by grid and rule, a row for each problem, diffusion and
    number of steps.
    """
    rules = {
        "3, shorter last step": AdamsMoulton(3, self_starting=False, lower_final=True),
        "2, shorter last step": AdamsMoulton(2, self_starting=False, lower_final=True),
        "3": AdamsMoulton(3, self_starting=False),
        "4": AdamsMoulton(4, self_starting=False),
        "4, shorter last step": AdamsMoulton(4, self_starting=False, lower_final=True),
    }
    rows = []
    for problem, (law, n) in PROBLEMS.items():
        for name, sde in (("ve", VESDE()), ("vp", VPSDE())):
            down = start(law, sde, min(n, 100))
            exact = down.sampled(AdaptiveFlow(1e-9, 1e-9, solver=Dopri8()))
            for steps in FEW_STEPS:
                found = {}
                for k in SHARPNESS:
                    for power in POWERS:
                        for rule, solver in rules.items():
                            method = OnClock(
                                solver, integrand="velocity", steps=steps, grid=Candidate(k, power)
                            )
                            x = down.sampled(method)
                            error = (x - exact).square().mean(dim=1).sqrt().mean()
                            found[f"{k:g}, d^{power:g}, {rule}"] = float(error)
                rows.append({"problem": problem, "sde": name, "steps": steps, **_relative(found)})
    return rows


def _relative(errors: Mapping[str, float]) -> dict[str, float]:
    least = min(errors.values())
    return {name: error / least for name, error in errors.items()}


def laws() -> dict[str, tuple[Tensor, Tensor]]:
    """Laws with labels: eight narrow modes in the plane, with that of the mode; points near three
    closed curves, with that of the curve; a curved law in 16 dimensions and a surface in 32, with
    the quadrant of the two first of the hidden coordinates; MNIST's digits in 8 x 8 pixels.
    """
    generator = torch.Generator().manual_seed(SEED)
    mode = torch.randint(0, 8, (20_000,), generator=generator)
    angle = mode * (math.pi / 4)
    modes = torch.stack([angle.cos(), angle.sin()], dim=1)
    modes = modes + 0.05 * torch.randn(modes.shape, generator=generator)
    weights = torch.randn(16, 3, generator=generator)
    hidden = torch.randn(20_000, 3, generator=generator)
    curved = torch.tanh(hidden @ weights.T)
    curved = curved + 0.1 * torch.randn(curved.shape, generator=generator)
    return {
        "modes": (modes, mode),
        "loops": loops(),
        "curved": (curved, _quadrant(hidden)),
        "sheet": sheet(),
        "images": images(),
    }


def _quadrant(hidden: Tensor) -> Tensor:
    return (hidden[:, 0] > 0).long() + 2 * (hidden[:, 1] > 0).long()


def loops() -> tuple[Tensor, Tensor]:
    """Points near three closed curves of three harmonics."""
    curves = []
    for number in range(3):
        generator = torch.Generator().manual_seed(7777 + number)
        coefficients = torch.randn(3, 2, 2, generator=generator)
        angle = 2 * math.pi * torch.rand(20_000, 1, generator=generator)
        x = 0.05 * torch.randn(20_000, 2, generator=generator)
        for k in range(1, 4):
            waves = torch.cat([torch.cos(k * angle), torch.sin(k * angle)], dim=1)
            x = x + waves @ coefficients[k - 1] / k
        curves.append(x)
    return torch.cat(curves), torch.arange(3).repeat_interleave(20_000)


def sheet() -> tuple[Tensor, Tensor]:
    """Points near a surface of four dimensions."""
    generator = torch.Generator().manual_seed(4242)
    hidden = torch.randn(20_000, 4, generator=generator)
    first = torch.randn(4, 24, generator=generator)
    second = torch.randn(24, 32, generator=generator) / math.sqrt(24)
    x = torch.tanh(hidden @ first) @ second
    return x + 0.05 * torch.randn(20_000, 32, generator=generator), _quadrant(hidden)


def images() -> tuple[Tensor, Tensor]:
    """Means of 4 x 4 pixels of MNIST, of mean 0 and standard deviation 1."""
    x, label = data.load("mnist").reference(6000)
    assert label is not None
    x = functional.pad(functional.avg_pool2d(x.float(), 4), (0, 1, 0, 1))
    return (x - x.mean()) / x.std(), label


def candidates() -> dict[str, OnClock]:
    """What is integrated, with a rule."""
    moulton = [
        AdamsMoulton(k, self_starting=False, lower_final=final)
        for k in (1, 2, 3, 4)
        for final in (False, True)
    ]
    bashforth = [AdamsBashforth(k, self_starting=False) for k in (1, 2, 3)]
    in_l = [
        kind(k, variable="l", self_starting=False, lower_final=True)
        for kind in (AdamsBashforth, AdamsMoulton)
        for k in (2, 3)
    ]
    methods = [
        *(OnClock(rule, integrand="velocity") for rule in (*moulton, *bashforth)),
        *(OnClock(rule, integrand="noise") for rule in (AdamsBashforth(1), *in_l)),
        *(OnClock(UniPC(k, lower_final=k > 1)) for k in (1, 2)),
        OnClock(DPMSolver(2, lower_final=True)),
        *(
            OnClock(LimitedUniPC(lower_final=True), integrand=integrand)
            for integrand in ("data", "velocity")
        ),
    ]
    return {f"{method.integrand}, {_name(method.rule)}": method for method in methods}


def _name(rule: AbstractSolver) -> str:
    assert isinstance(rule, AbstractMultistep)
    return f"{type(rule).__name__}({rule.k}{', shorter last steps' if rule.lower_final else ''})"


def grids(d: int) -> dict[str, Focused]:
    """Of models of d coordinates."""
    return {
        "focused": Focused(),
        "reach 10": Focused(reach=10),
        "reach 10, sharpness 17": Focused(reach=10, sharpness=17),
        "reach 10, sharpness 24": Focused(reach=10, sharpness=24),
        "reach 10 d^0.5, sharpness 24": Focused(reach=10 * math.sqrt(d), sharpness=24),
        "reach 30": Focused(reach=30),
        "infinite reach": Focused(reach=math.inf),
        "infinite reach, sharpness 24": Focused(reach=math.inf, sharpness=24),
        "shares 0.9, 0": Focused(0.9),
        "shares 0.8, 0.1": Focused(0.8, native_share=0.1),
        "shares 0.7, 0.2": Focused(0.7, native_share=0.2),
        "shares 0.5, 0.3": Focused(0.5, native_share=0.3),
    }


def trained(
    x: Tensor,
    label: Tensor | None,
    sde: str,
    predicts: Literal["noise", "velocity"],
    conditioning: Literal["time", "log_snr"] = "time",
) -> ScoreModel:
    """A small network, with labels where there are some."""
    torch.manual_seed(SEED)
    shape = tuple(x.shape[1:])
    classes = 0 if label is None else int(label.max()) + 1
    if len(shape) > 1:
        net: nn.Module = nets.UNet(channels=1, width=24, classes=classes)
        recipe = Recipe(steps=800, batch_size=128, weighting="plain")
    else:
        net = nets.MLP(shape=shape, width=64, classes=classes)
        recipe = Recipe(steps=2500, batch_size=256, weighting="plain")
    model = ScoreModel(net, sde, predicts, shape=shape, conditioning=conditioning)
    fit(model, x if label is None else (x, label), recipe, progress=False)
    return model


def _count(x: Tensor) -> int:
    """Of samples of the solves that are compared: fewer for images, whose networks take longer."""
    return 200 if x.ndim == 2 else 30


def relative_errors(model: AbstractModel, steps: int, n: int) -> dict[str, float]:
    """Of each candidate on each grid, over the least."""
    exact = sample(model, n, method=AdaptiveFlow(1e-6, 1e-6), seed=SEED)
    found = {}
    places = grids(math.prod(model.shape or ()))
    for (name, method), (place, grid) in itertools.product(candidates().items(), places.items()):
        end = sample(model, n, method=method, grid=grid, steps=steps, seed=SEED)
        found[f"{name}, {place}"] = float((end - exact).square().flatten(1).mean(1).sqrt().mean())
    return _relative(found)


def guided_rules() -> list[dict[str, Any]]:
    """Errors by what is integrated, rule and grid under classifier-free guidance, over the least of
    their row, of networks that predict the velocity or the noise under VP.
    """
    rows = []
    predictions: tuple[Literal["velocity", "noise"], ...] = ("velocity", "noise")
    for (law, (x, label)), predicts in itertools.product(laws().items(), predictions):
        model = trained(x, label, "vp", predicts)
        n = _count(x)
        given = model.given(label=torch.arange(n) % (int(label.max()) + 1))
        for scale, steps in itertools.product(GUIDANCE, FEW_STEPS_GUIDED):
            row = {"problem": f"{law}, {predicts}, w = {scale:g}", "sde": "vp", "steps": steps}
            rows.append(row | relative_errors(Guided(given, scale), steps, n))
    return rows


def network_rules(predicts: Literal["noise", "velocity"]) -> list[dict[str, Any]]:
    """The same without guidance, under several diffusions; under VP also for networks that receive
    the log-SNR instead of the time.
    """
    rows = []
    kinds: list[tuple[str, Literal["time", "log_snr"]]] = [
        ("vp", "time"),
        ("vp", "log_snr"),
        ("ve", "time"),
        ("cosine", "time"),
        ("flow", "time"),
    ]
    for (law, (x, _)), (sde, conditioning) in itertools.product(laws().items(), kinds):
        model = trained(x, None, sde, predicts, conditioning)
        for steps in FEW_STEPS_OF_NETWORKS:
            row = {"problem": f"{law}, {predicts}, {conditioning}", "sde": sde, "steps": steps}
            rows.append(row | relative_errors(model, steps, _count(x)))
    return rows


def print_best(rows: list[dict[str, Any]]) -> None:
    """Prints for each number of steps the six kinds with the least geometric mean, and the largest
    ratio of each.
    """
    for steps in dict.fromkeys(row["steps"] for row in rows):
        here = [row for row in rows if row["steps"] == steps]
        kinds = list(here[0])[3:]
        mean = {
            kind: math.exp(sum(math.log(row[kind]) for row in here) / len(here)) for kind in kinds
        }
        best = sorted(kinds, key=lambda kind: mean[kind])[:6]
        figures = "; ".join(
            f"{kind}: {mean[kind]:.2f} ({max(row[kind] for row in here):.1f})" for kind in best
        )
        print(f"{steps:3d} steps: {figures}", flush=True)


def draw(summary: Summary, kinds: list[str]) -> None:
    """Writes choice.png: the errors over the least against c."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for steps in BUDGETS:
        for measure, style in ((0, "-"), (1, ":")):
            ratios = [summary[steps][f"{c:.2f}"][measure] for c in FRACTIONS]
            label = f"{steps} evaluations" if not measure else None
            axes.plot(
                FRACTIONS, ratios, style, marker="o", color=f"C{BUDGETS.index(steps)}", label=label
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="c / data_std",
        ylabel="error over the least, mean and largest",
    )
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "choice.png", dpi=120)


def noisy_problems() -> dict[str, tuple[list[GaussianMixture], int]]:
    """Two mixtures of each kind, and the number of samples, so many that the bias shows."""
    kinds: dict[str, tuple[Callable[[int], GaussianMixture], int]] = {
        "d = 2, narrow": (lambda seed: mixture(seed, 2, 6, 0.03, 0.1), 200_000),
        "d = 8, narrow": (lambda seed: mixture(seed, 8, 6, 0.03, 0.1), 100_000),
        "d = 8": (lambda seed: mixture(seed, 8, 5, 0.05, 0.3), 100_000),
        "d = 16, full": (lambda seed: mixture(seed, 16, 5, 0.03, 0.5, full=True), 40_000),
        "d = 32, eigenvalues": (
            lambda seed: mixture(seed, 32, 5, 1e-2, math.sqrt(10), full=True), 20_000,
        ),
    }  # fmt: skip
    return {name: ([make(911), make(912)], n) for name, (make, n) in kinds.items()}


def noisy_grids(d: int) -> dict[str, Focused]:
    """The grids in d coordinates."""
    pairs = itertools.product(NOISY_EXTENTS.items(), NOISY_FACTORS.items())
    return {
        f"{extent}, {factor}": Focused(0.95, reach=r(d) / d**0.5, sharpness=k(d) * d**0.5)
        for (extent, r), (factor, k) in pairs
    }


def noisy_rules() -> list[dict[str, Any]]:
    """For each problem and number of steps the deviations by grid and rule: all grids with the rule
    of `OnClock`, and all rules on its grid.
    """
    rows = []
    for (problem, (laws, n)), steps in itertools.product(noisy_problems().items(), NOISY_STEPS):
        row: dict[str, Any] = {"problem": problem, "sde": "vp", "steps": steps}
        grids = noisy_grids(laws[0].shape[0])
        own = grids["r = 0.85 d^0.85, k = 350"]
        methods = {
            place: OnClock(eta=1.0, grid=grid, steps=steps) for place, grid in grids.items()
        } | {
            name: OnClock(rule, eta=1.0, grid=own, steps=steps)
            for name, rule in NOISY_RULES.items()
        }
        for kind, method in methods.items():
            row[kind] = sum(deviation(law, method, n) for law in laws) / len(laws)
        rows.append(row)
        figures = "  ".join(f"{kind}: {value:.2f}" for kind, value in list(row.items())[3:])
        print(f"{problem:20s} {steps:3d} steps  {figures}", flush=True)
    print_best(rows)
    return rows


def deviation(law: GaussianMixture, method: OnClock, n: int) -> float:
    """The largest deviation of samples under VP, over the floor."""
    down = start(law, VPSDE(), n)
    scores = judged(down.sampled(method), down.law(), down.law().sample(100, seed=SEED), draws=1)
    return max(scores[name] for name in SCORES) / scores["floor"]


def main() -> None:
    if "--noise" in sys.argv[1:]:
        rows = noisy_rules()
        save("choice_noise", {"environment": environment(dtype="float64", seed=SEED), "rows": rows})
        return
    if {"--few", "--guided"} & set(sys.argv[1:]):
        guided = guided_rules()
        found = {
            f"{predicts}, w = {scale:g}": [
                row for row in guided if row["problem"].endswith(f"{predicts}, w = {scale:g}")
            ]
            for predicts, scale in itertools.product(("velocity", "noise"), GUIDANCE)
        }
        if "--few" in sys.argv[1:]:
            found |= {
                "exact scores": velocity_rules(),
                "networks of the velocity": network_rules("velocity"),
                "networks of the noise": network_rules("noise"),
            }
        for name, rows in found.items():
            print(name)
            print_best(rows)
        save("choice_few", {"environment": environment(seed=SEED), **found})
        return
    rows = study()
    kinds = list(rows[0])[3:]
    summary = summarised(rows, kinds)
    particulars = environment(dtype="float64", seed=SEED)
    save("choice", {"environment": particulars, "rows": rows, "summary": summary})
    means = [
        {"evaluations": steps, **{kind: mean for kind, (mean, _) in found.items()}}
        for steps, found in summary.items()
    ]
    publish("choice", particulars, means)
    draw(summary, kinds)


if __name__ == "__main__":
    main()
