"""The model whose samples an interactive page shows: that of a run, or an exact mixture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdekit import did_you_mean
from sdekit_diffusion import data as datasets
from sdekit_diffusion._app import labels, trained
from sdekit_diffusion._app.options import Guidance, Loading
from sdekit_diffusion._models.empirical import EmpiricalMixture
from sdekit_diffusion._models.guidance import Guided
from sdekit_diffusion._models.mixture import GaussianMixture
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion.data import Scale
from sdekit_diffusion.data._toys import TOYS

Drawn = tuple[AbstractModel, Tensor]  # a model, and the numbers of the samples drawn from it
_CENTRES = 500  # points of a data set in its exact model
_STD = 0.08  # of the normal law around each
_CLASSES_GUIDANCE = (0.0, 1.0, 3.0)

# Means and variances of components of equal weight.
MIXTURES: dict[str, tuple[list[list[float]], list[float]]] = {
    "two_modes": ([[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05]),
    "three_modes": ([[-1.5, -0.9], [0.0, 1.7], [1.5, -0.9]], [0.2, 0.2, 0.2]),
}


@dataclass(frozen=True, eq=False)
class Explored:
    """A law, or one for each label and scale of guidance.

    Attributes:
        name: the name of the data or the mixture.
        kind: a sentence on the model.
        shape: of a sample.
        sde: the diffusion of the model; None where it has none of its own.
        scale: that of the data, with levels for images.
        data: samples of the data, in the scale of the model; None where they are unknown.
        classes: sample i has classes[i mod len(classes)]; empty for a model without labels.
        guidance: the scales of guidance that are shown unless others are given.
        models: a function of a scale of guidance and a number of samples that returns the models,
            each with the numbers of its samples.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    sde: str | None
    scale: Scale
    data: Tensor | None
    classes: tuple[int, ...]
    guidance: tuple[float, ...]
    models: Callable[[float, int], list[Drawn]]


def of_mixture(name: str, label: tuple[int, ...]) -> Explored:
    """An exact mixture, whose components are classes, or the exact model of a data set of points.

    Raises:
        ValueError: for an unknown name, or labels that it does not have.
    """
    if name in TOYS:
        return _of_points(name, label)
    if name not in MIXTURES:
        known = [*MIXTURES, *TOYS]
        raise ValueError(
            f"--mixture is one of {', '.join(known)}; not {name!r}{did_you_mean(name, known)}"
        )
    means, variances = MIXTURES[name]
    count = len(means)
    wrong = [k for k in label if not 0 <= k < count]
    if wrong:
        raise ValueError(f"{name} has the labels 0 to {count - 1}; --label has {wrong[0]}")
    law = GaussianMixture([1 / count] * count, means, variances)
    classes = label or tuple(range(count))

    def models(guidance: float, n: int) -> list[Drawn]:
        number = torch.arange(n) % len(classes)
        drawn = []
        for i, k in enumerate(classes):
            component = GaussianMixture([1.0], means[k : k + 1], variances[k : k + 1])
            drawn.append((Guided(component, guidance, by=law), (number == i).nonzero()[:, 0]))
        return drawn

    kind = f"An exact mixture of {count} normal laws, which are its classes; no network."
    points = law.sample(400, seed=1)
    scale = Scale()
    return Explored(name, kind, (2,), "vp", scale, points, classes, _CLASSES_GUIDANCE, models)


def _of_points(name: str, label: tuple[int, ...]) -> Explored:
    """The mixture of narrow normal laws around points of a data set."""
    if label:
        raise ValueError(f"the exact model of {name} has no labels: leave out --label")
    source = datasets.load(name)
    law = EmpiricalMixture(source.test[:_CENTRES], _STD)
    kind = f"The exact mixture of normal laws of standard deviation {_STD} around {_CENTRES} points"
    return Explored(
        name,
        f"{kind}; no network.",
        (2,),
        "vp",
        source.scale,
        source.test[_CENTRES : _CENTRES + 400],
        (),
        (1.0,),
        lambda guidance, n: [(law, torch.arange(n))],
    )


def of_run(
    run: Path, label: tuple[int, ...], loading: Loading, conditions: tuple[str, ...] = ()
) -> Explored:
    """The model of a training run, with all its classes in turn unless labels are given, and with
    these values of other conditions.

    Raises:
        ValueError: when the model has no labels or not these, or not these conditions.
    """
    model, recorded_name = trained.opened(run, loading)
    classes = label or labels.all_classes(run, model)
    chosen = labels.chosen(run, model, classes, Guidance(), conditions)

    def models(guidance: float, n: int) -> list[Drawn]:
        options = Guidance(guidance)
        labels.require_guidance(run, model, chosen, options)
        return [(labels.drawn(model, chosen, options, n), torch.arange(n))]

    parameters = sum(p.numel() for p in model.parameters())
    kind = f"A {type(model.net).__name__} of {parameters:,} parameters."
    dropped = chosen is not None and all(labels.is_dropped(run, name) for name in chosen.values)
    guidance = _CLASSES_GUIDANCE if dropped else (1.0,)
    points = None if model.scale.levels else _held_out(recorded_name, model.scale)
    name = run.resolve().name if recorded_name is None else Path(recorded_name).name
    return Explored(
        name, kind, model.shape or (), None, model.scale, points, tuple(classes), guidance, models
    )


def _held_out(name: str | None, scale: Scale) -> Tensor | None:
    """Held-out points in the scale of a model; None where the data are not available."""
    try:
        return None if name is None else scale.encode(trained.source_of(name, scale).test[:400])
    except (ValueError, OSError, ImportError):
        return None
