"""Distances between sets of samples, scores, tests of posteriors, and their values for exact
samples.

Example:
    >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    >>> sd.metrics.energy_distance(x, x)
    0.0
    >>> heading, distance = sd.metrics.DISTANCES["energy"]  # one of those in a report
"""

from collections.abc import Callable

from sdekit_diffusion.metrics import _points
from sdekit_diffusion.metrics._calibration import (
    Calibration,
    Predictive,
    TwoSample,
    c2st,
    predictive,
    sbc,
    tarp,
)
from sdekit_diffusion.metrics._distances import energy_distance, frechet, mmd, sliced_wasserstein
from sdekit_diffusion.metrics._features import ClassifierFeatures, classifier_features
from sdekit_diffusion.metrics._floor import Floor, sampling_floor
from sdekit_diffusion.metrics._image_features import ImageFeatures, image_features
from sdekit_diffusion.metrics._inception import InceptionScores, inception_scores
from sdekit_diffusion.metrics._kernel_test import kernel_c2st
from sdekit_diffusion.metrics._modes import Modes, modes
from sdekit_diffusion.metrics._neighbours import PrecisionRecall, nearest, precision_recall

# The distances between two sets of samples in a report: names in report.json, with their headings.
# The report and the tests of distances take them from here.
DISTANCES: dict[str, tuple[str, Callable[[_points.Samples, _points.Samples], float]]] = {
    "sliced_wasserstein": ("sliced Wasserstein distance", sliced_wasserstein),
    "energy": ("energy distance", energy_distance),
}

__all__ = [
    "DISTANCES",
    "Calibration",
    "ClassifierFeatures",
    "Floor",
    "ImageFeatures",
    "InceptionScores",
    "Modes",
    "PrecisionRecall",
    "Predictive",
    "TwoSample",
    "c2st",
    "classifier_features",
    "energy_distance",
    "frechet",
    "image_features",
    "inception_scores",
    "kernel_c2st",
    "mmd",
    "modes",
    "nearest",
    "precision_recall",
    "predictive",
    "sampling_floor",
    "sbc",
    "sliced_wasserstein",
    "tarp",
]
