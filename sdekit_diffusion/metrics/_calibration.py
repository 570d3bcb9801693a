"""Calibration of posteriors, classifier two-sample tests and posterior-predictive p-values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit.calling import warn_caller
from sdekit_diffusion.metrics._points import Samples, pair, require_probability, units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Calibration:
    """The result of `sbc` or `tarp`: numbers that are uniform on [0, 1], and independent between
    observations, if the posteriors are exact.

    Attributes:
        values: float64, `(n,)` for n observations, or `(n, d)` with a column for each coordinate.
        central: whether the credible region of level c is the central interval
            [(1 - c) / 2, (1 + c) / 2] of the values, as for ranks; else it is [0, c].
        size: the number of samples of each posterior; with weights the median of their effective
            numbers.

    Example:
        >>> import numpy as np
        >>> calibration = sd.metrics.Calibration(np.linspace(0.005, 0.995, 100))
        >>> calibration.coverage([0.5, 0.9]), float(calibration.p_value) > 0.99
        ({0.5: (0.5, 0.05), 0.9: (0.9, 0.03)}, True)
    """

    values: NDArray[np.float64]
    central: bool = True
    size: float = math.inf

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{100 * level:g} %: {100 * share:.1f} +- {100 * stderr:.1f}"
            for level, (share, stderr) in self.coverage(quiet=True).items()
        )
        columns = self.p_value.size
        corrected = min(1.0, columns * float(np.min(self.p_value)))
        least = f", {columns} times the least of {columns}" if columns > 1 else ""
        return (
            f"Calibration({len(self.values)} observations; covered at {shown}; p-value "
            f"{corrected:.2g}{least})"
        )

    def coverage(
        self, levels: Sequence[float] = (0.5, 0.8, 0.95), *, quiet: bool = False
    ) -> dict[float, tuple[float, float]]:
        """The empirical coverage for each credibility level: the share of observations whose truth
        is within the credible region, averaged over the coordinates, and its standard error.

        For several coordinates the standard error is the larger of two: that by the spread between
        observations, which is 0 if all truths are within, and that of exact posteriors whose
        coordinates are as correlated as the values.

        Arguments:
            levels: the credibility levels.
            quiet: no warning, for callers that show what `hidden` returns.

        Raises:
            ValueError: for levels that are not between 0 and 1.

        Warns:
            UserWarning: where posteriors have so few samples, or weights so small an effective
                number of them, that most truths outside all samples would count as within the
                region: then even wrong posteriors are covered.
        """
        unresolved = [level for level in levels if self.hidden(level) > 0.5]
        if unresolved and not quiet:
            level = max(unresolved)
            warn_caller(
                f"each posterior has effectively {self.size:.3g} samples, too few for regions of "
                f"{100 * level:g} %: of the truths outside all samples "
                f"{100 * self.hidden(level):.0f} % count as within. Coverage says nothing here; "
                "take more samples, or weights with a larger effective sample size",
            )
        columns = self.values.reshape(len(self.values), -1)
        distance = 2 * np.abs(columns - 0.5) if self.central else columns
        n, d = distance.shape
        ratio = _variance_ratio(distance)
        coverage = {}
        for level in levels:
            inside = (distance <= level).mean(axis=1)
            exact = level * (1 - level) * ratio
            spread = float(inside.var(ddof=1)) if min(n, d) > 1 else 0.0
            coverage[level] = (float(inside.mean()), math.sqrt(max(exact, spread) / n))
        return coverage

    def hidden(self, level: float) -> float:
        """The share of the truths outside all samples of their posteriors that `coverage` counts as
        within the region: ranks among few samples are mostly the random numbers that make them
        uniform.

        Raises:
            ValueError: for a level that is not between 0 and 1.
        """
        require_probability("level", level)
        tail = (1 - level) / 2 if self.central else 1 - level
        return max(0.0, 1 - tail * (self.size + 1))

    @property
    def p_value(self) -> NDArray[np.float64]:
        """The p-value of the Kolmogorov-Smirnov test of uniform values, for each column: `()` for
        one column, else `(d,)`.
        """
        from scipy.stats import kstest

        columns = self.values.reshape(len(self.values), -1).T
        return np.array([kstest(column, "uniform").pvalue for column in columns]).squeeze()

    def floor(self, level: float = 0.95) -> float:
        """The distance between the empirical and the uniform distribution function that n exact
        posteriors do not exceed with the probability `level`.

        Raises:
            ValueError: for a level that is not between 0 and 1.
        """
        from scipy.stats import kstwo

        require_probability("level", level)
        return float(kstwo.ppf(level, len(self.values)))

    def plot(self, ax: "Axes | None" = None, level: float = 0.95) -> "Axes":
        """Draws the empirical distribution function of each column minus the uniform one, and the
        band in which that of exact posteriors stays with the probability `level`.

        Ranks of posteriors that are too narrow are above 0 on the left and below on the right.

        Arguments:
            ax: axes to draw on; new ones unless given.
            level: the probability of the band.

        Raises:
            ImportError: when matplotlib is not installed.
            ValueError: for a level that is not between 0 and 1.
        """
        ax = _axes(ax)
        columns = np.sort(self.values.reshape(len(self.values), -1), axis=0)
        share = (np.arange(len(columns)) + 0.5) / len(columns)
        for column in columns.T:
            ax.step(column, share - column, where="mid", color="C0", alpha=0.7)
        ax.axhspan(-self.floor(level), self.floor(level), color="0.9")
        ax.axhline(0.0, color="0.6", linewidth=0.8)
        ax.set(
            xlim=(0, 1),
            xlabel="rank of the truth" if self.central else "credibility",
            ylabel="share of observations less expected",
            title=f"grey: where exact posteriors stay, {100 * level:g} %",
        )
        return ax


def sbc(
    samples: Tensor,
    truth: Tensor,
    log_weights: Tensor | None = None,
    *,
    truth_log_weights: Tensor | None = None,
    seed: int = 0,
) -> Calibration:
    """Simulation-based calibration: the rank of the truth among samples of the posterior, for each
    coordinate.

    The truth is drawn from the prior, y given the truth, and the samples given y. If the posteriors
    are exact, the ranks are uniform.

    Arguments:
        samples: posterior samples `(n, L, *shape)`, L for each of n observations.
        truth: `(n, *shape)`.
        log_weights: the log-weights of the samples, `(n, L)`; equal unless given.
        truth_log_weights: those of the truths, `(n,)`, with the same constant: log p(x) +
            log p(y | x) - log q(x) for independent samples of q.
        seed: of the uniform numbers that break ties.

    Returns:
        a `Calibration` with values `(n, d)`, (L (F + U E) + U) / (L + 1), where F is the share of
        samples below the truth, E the share equal to it, and U uniform on [0, 1). With log_weights
        L is the effective sample size, and the values are uniform only if it is large; with
        truth_log_weights L is the sum of the weights over that of the truth, and the values are
        uniform for any number of samples, because the truth is exchangeable with them.

    Raises:
        ValueError: for shapes that do not fit, log_weights of an observation that are all -inf, or
            NaN, or truth_log_weights without log_weights or that are not finite.

    Example:
        >>> law = sd.GaussianMixture([1.0], [[0.0]], [1.0])
        >>> truth = law.sample(200, seed=0)
        >>> samples = law.sample(200 * 9, seed=1).reshape(200, 9, 1)
        >>> bool(sd.metrics.sbc(samples, truth).p_value > 0.001)
        True

    References:
        Talts et al. 2018, arXiv 1804.06788.
    """
    x, theta, weights = _checked(samples, truth, log_weights)
    below = (weights[:, :, None] * (x < theta[:, None])).sum(axis=1)
    equal = (weights[:, :, None] * (x == theta[:, None])).sum(axis=1)
    share = _share_of_truth(weights, log_weights, truth_log_weights)
    return Calibration(_with_ties(below, equal, share, seed), size=_size(weights))


def tarp(
    samples: Tensor,
    truth: Tensor,
    log_weights: Tensor | None = None,
    *,
    references: Tensor | None = None,
    truth_log_weights: Tensor | None = None,
    seed: int = 0,
) -> Calibration:
    """Tests of accuracy with random points (TARP): for each observation, the posterior probability
    of the ball around a random reference point whose surface contains the truth.

    If the posteriors are exact, it is uniform for any reference points; unlike `sbc` this tests all
    coordinates jointly.

    Arguments:
        samples, truth, log_weights, truth_log_weights: as in `sbc`.
        references: the reference points, `(n, *shape)`, which may depend on y; unless given,
            uniform in the bounding box of the truths of the other observations.
        seed: of the reference points and of the uniform numbers that break ties.

    Returns:
        a `Calibration` with values `(n,)`. Distances are taken in units of the standard deviation
        of each coordinate of the truths of the other observations, and of 1 where these are all
        equal.

    Raises:
        ValueError: for shapes that do not fit, log_weights of an observation that are all -inf, or
            NaN, or truths that are all equal and have no bounding box, without references.

    Example:
        >>> law = sd.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
        >>> truth = law.sample(200, seed=0)
        >>> samples = law.sample(200 * 20, seed=1).reshape(200, 20, 2)
        >>> bool(sd.metrics.tarp(samples, truth).p_value > 0.001)
        True

    References:
        Lemos et al. 2023, arXiv 2302.03026.
    """
    x, theta, weights = _checked(samples, truth, log_weights)
    rng = np.random.default_rng(seed)
    low, high, scale = _of_others(theta)
    if references is None:
        if not np.ptp(theta, axis=0).any():
            raise ValueError(
                "all truths are equal, as one alone is, so that they have no bounding box to draw "
                "reference points from: give references="
            )
        point = low + (high - low) * rng.random(theta.shape)
    else:
        point, _ = pair(references, truth, ("references", "truth"))
        if len(point) != len(theta):
            raise ValueError(
                f"there are {len(point)} references for {len(theta)} observations; give one for "
                "each, (n, *shape), by expand if they are all the same"
            )
    to_truth = np.square((theta - point) / scale).sum(axis=1)
    to_samples = np.square((x - point[:, None]) / scale[:, None]).sum(axis=2)
    inside = (weights * (to_samples < to_truth[:, None])).sum(axis=1)
    equal = (weights * (to_samples == to_truth[:, None])).sum(axis=1)
    share = _share_of_truth(weights, log_weights, truth_log_weights)
    values = _with_ties(inside, equal, share, seed)
    return Calibration(values, central=False, size=_size(weights))


@dataclass(frozen=True, eq=False)
class Predictive:
    """The result of `predictive`: a p-value for each observation.

    Under the model the share of values of at most a is 2 a or less on average, for exact
    posteriors.

    Attributes:
        values: float64, `(n,)`.

    Example:
        >>> import numpy as np
        >>> p = sd.metrics.Predictive(np.linspace(0.2, 0.8, 100))
        >>> p.share(0.3), p.floor(0.3)
        (0.17, 0.68)

    References:
        Meng 1994, "Posterior predictive p-values", equation 3.
    """

    values: NDArray[np.float64]

    def share(self, a: float = 0.05) -> float:
        """The share of values of at most a."""
        return float((self.values <= a).mean())

    def floor(self, a: float = 0.05, level: float = 0.95) -> float:
        """The share of values of at most a that n exact posteriors under the model do not exceed
        with the probability `level`, or a larger one.

        Raises:
            ValueError: for an a or a level that is not between 0 and 1.
        """
        from scipy.stats import binom

        require_probability("a", a)
        require_probability("level", level)
        n = len(self.values)
        return float(binom.ppf(level, n, min(1.0, 2 * a))) / n

    def plot(self, ax: "Axes | None" = None, level: float = 0.95) -> "Axes":
        """Draws the empirical distribution function of the values, and that which exact posteriors
        under the model do not exceed at a given value with the probability `level`.

        Arguments:
            ax: axes to draw on; new ones unless given.
            level: the probability of the region in grey.

        Raises:
            ImportError: when matplotlib is not installed.
            ValueError: for a level that is not between 0 and 1.
        """
        ax = _axes(ax)
        at = np.linspace(0, 1, 201)[1:-1]
        ax.fill_between(at, [self.floor(float(a), level) for a in at], color="0.9")
        values = np.sort(self.values)
        ax.step(values, (np.arange(len(values)) + 1) / len(values), where="post", color="C0")
        ax.set(
            xlim=(0, 1),
            xlabel="p-value of y",
            ylabel="share of observations",
            title=f"grey: where the model explains y, {100 * level:g} %",
        )
        return ax


def predictive(
    samples: Tensor,
    y: Tensor,
    simulate: Callable[[Tensor], Tensor],
    discrepancy: Callable[[Tensor, Tensor], Tensor],
    log_weights: Tensor | None = None,
) -> Predictive:
    """Posterior-predictive p-values: the posterior probability that data simulated from x fit x no
    better than y does.

    Values near 0 mean that the model does not explain y. For exact posteriors they are not uniform,
    but closer to 1/2.

    Arguments:
        samples: posterior samples `(n, L, *shape)`, L for each of n observations.
        y: the observations, `(n, *measured)`.
        simulate: a function from x, `(N, *shape)`, to random data given x, `(N, *measured)`.
        discrepancy: a function of (y, x) that returns one number per sample, `(N,)`, larger for a
            worse fit, such as -log p(y | x).
        log_weights: the log-weights of the samples, `(n, L)`; equal unless given.

    Returns:
        a `Predictive` with n values.

    Raises:
        ValueError: for shapes that do not fit, log_weights of an observation that are all -inf, or
            NaN, or discrepancies that are NaN.

    Example:
        >>> x = torch.zeros(3, 50, 1)
        >>> y = torch.tensor([[0.1], [1.0], [9.0]])
        >>> noise = torch.randn(150, 1, generator=torch.Generator().manual_seed(0))
        >>> p = sd.metrics.predictive(x, y, lambda x: x + noise, lambda y, x: (y - x).abs().sum(1))
        >>> bool(p.values[0] > 0.8), bool(p.values[2] < 0.01)
        (True, True)

    References:
        Gelman, Meng and Stern 1996, "Posterior predictive assessment of model fitness via realized
        discrepancies".
    """
    samples = torch.as_tensor(samples)
    y = torch.as_tensor(y)
    x, _, weights = _checked(samples, samples[:, 0], log_weights)
    if len(y) != len(x):
        raise ValueError(
            f"there are samples of {len(x)} posteriors and {len(y)} of y; give one y for each"
        )
    flat = samples.flatten(0, 1)
    simulated = torch.as_tensor(simulate(flat))
    if simulated.shape != (len(flat), *y.shape[1:]):
        raise ValueError(
            f"simulate returned {tuple(simulated.shape)} for {len(flat)} samples, and y has shape "
            f"{tuple(y.shape)}; give (N, *measured) and (n, *measured)"
        )
    own = _discrepancies(discrepancy(y.repeat_interleave(x.shape[1], dim=0), flat), len(flat), "y")
    replicated = _discrepancies(discrepancy(simulated, flat), len(flat), "simulated data")
    worse = (replicated >= own).reshape(x.shape[:2]).cpu().numpy()
    return Predictive((weights * worse).sum(axis=1))


class TwoSample(NamedTuple):
    """The result of a classifier two-sample test, `c2st` or `kernel_c2st`.

    Arguments:
        accuracy: of the classifier on samples that it was not trained on; about 0.5 for the same
            law.
        stderr: the standard deviation of the accuracy if both sets have the same law.
        p_value: the probability of an accuracy at least as large if both sets have the same law.

    Example:
        >>> sd.metrics.TwoSample(0.5, 0.01, 0.5).accuracy
        0.5
    """

    accuracy: float
    stderr: float
    p_value: float

    def floor(self, level: float = 0.95) -> float:
        """The accuracy that two sets of the same law do not exceed with the probability `level`.

        Raises:
            ValueError: for a level that is not between 0 and 1.
        """
        from scipy.stats import norm

        require_probability("level", level)
        return 0.5 + float(norm.ppf(level)) * self.stderr

    def plot(self, ax: "Axes | None" = None, level: float = 0.95) -> "Axes":
        """Draws the accuracy, and the density of that of two sets of the same law.

        Arguments:
            ax: axes to draw on; new ones unless given.
            level: the probability of the accuracies in grey.

        Raises:
            ImportError: when matplotlib is not installed.
            ValueError: for a level that is not between 0 and 1.
        """
        from scipy.stats import norm

        ax = _axes(ax)
        accuracy = np.linspace(0.5 - 4 * self.stderr, 0.5 + 4 * self.stderr, 200)
        ax.plot(accuracy, norm.pdf(accuracy, 0.5, self.stderr), color="0.6")
        ax.axvspan(accuracy[0], self.floor(level), color="0.9")
        ax.axvline(self.accuracy, color="C0")
        ax.set(
            xlabel="accuracy of the classifier",
            ylabel="density for the same law",
            title=f"grey: of the same law, {100 * level:g} %",
        )
        return ax


def c2st(a: Samples, b: Samples, *, seed: int = 1) -> TwoSample:
    """A test of whether two sets of samples have the same law: the accuracy of a classifier that
    distinguishes them, by 5-fold cross-validation.

    The classifier is a perceptron with two hidden layers of 10 d units, for samples of d
    coordinates standardised by the mean and the standard deviation of the first set, as in the
    benchmark of Lueckmann et al., and by the mean alone where that set does not vary. stderr and
    p_value are those of a binomial distribution, as if the predictions were independent.

    Arguments:
        a, b: samples (N, ...), of the same number and shape.
        seed: of the classifier and the folds.

    Raises:
        ImportError: when scikit-learn is not installed.
        ValueError: for sets of different sizes, or fewer than ten samples.

    Example:
        >>> law = sd.GaussianMixture([1.0], [[0.0]], [1.0])
        >>> a, b = law.sample(100, seed=0), law.sample(100, seed=1)
        >>> sd.metrics.c2st(a, b + 1).p_value < 0.01
        True

    References:
        Lopez-Paz and Oquab 2017, arXiv 1610.06545; Lueckmann et al. 2021, arXiv 2101.04653.
    """
    try:
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise ImportError("a classifier needs scikit-learn: pip install 'sdekit[app]'") from error
    from scipy.stats import binom

    first, second = pair(a, b, least=2 * _FOLDS)
    if len(first) != len(second):
        raise ValueError(
            f"there are {len(first)} samples of a and {len(second)} of b: give as many of both"
        )
    mean = first.mean(axis=0)
    points = (np.concatenate([first, second]) - mean) / units(first)
    labels = np.repeat([0, 1], len(first))
    width = 10 * points.shape[1]
    classifier = MLPClassifier(
        (width, width), activation="relu", solver="adam", max_iter=1000, random_state=seed
    )
    folds = KFold(_FOLDS, shuffle=True, random_state=seed)
    accuracy = float(np.mean(cross_val_score(classifier, points, labels, cv=folds)))
    n = len(points)
    p_value = float(binom.sf(round(accuracy * n) - 1, n, 0.5))
    return TwoSample(accuracy, 0.5 / math.sqrt(n), p_value)


def _axes(ax: "Axes | None") -> "Axes":
    """New axes unless given.

    Raises:
        ImportError: when matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'sdekit[plot]'") from error
    return Figure(figsize=(5, 3.5), layout="constrained").subplots()


def _checked(
    samples: Tensor, truth: Tensor, log_weights: Tensor | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Samples (n, L, d), the truth (n, d), and weights (n, L) that sum to 1.

    Raises:
        ValueError: for shapes that do not fit, or an observation whose weights do not sum to 1.
    """
    samples = torch.as_tensor(samples)
    truth = torch.as_tensor(truth)
    log_weights = None if log_weights is None else torch.as_tensor(log_weights)
    if (
        samples.ndim < 2
        or tuple(samples.shape[2:]) != tuple(truth.shape[1:])
        or (len(samples) != len(truth))
    ):
        raise ValueError(
            f"samples have shape {tuple(samples.shape)} and the truth {tuple(truth.shape)}; give "
            "(n, L, *shape) and (n, *shape), L samples for each of n observations"
        )
    n, count = samples.shape[:2]
    if log_weights is not None and tuple(log_weights.shape) != (n, count):
        raise ValueError(
            f"log_weights have shape {tuple(log_weights.shape)}; "
            f"give one per sample, ({n}, {count})"
        )
    x, theta = pair(samples.flatten(0, 1), truth, ("samples", "truth"))
    if log_weights is None:
        weights = np.full((n, count), 1 / count)
    else:
        weights = log_weights.detach().double().softmax(dim=1).cpu().numpy()
    failed = int((~np.isfinite(weights)).any(axis=1).sum())
    if failed:
        raise ValueError(
            f"{failed} of {n} observations have no weights: all their log_weights are -inf, or "
            "some are NaN or +inf; find out why, or leave those observations out and report it"
        )
    return x.reshape(n, count, -1), theta, weights


def _discrepancies(values: Tensor, count: int, of: str) -> Tensor:
    """One discrepancy per sample, `(count,)`.

    Raises:
        ValueError: for another number of them, or NaN.
    """
    values = torch.as_tensor(values)
    if values.numel() != count:
        raise ValueError(
            f"discrepancy returned {tuple(values.shape)} numbers for {count} samples; it must "
            f"return one per sample, ({count},)"
        )
    if bool(values.isnan().any()):
        raise ValueError(
            f"discrepancy returned NaN for {of}, which is neither a better nor a worse fit; find "
            "out why, or return infinity for what cannot be"
        )
    return values.reshape(count)


def _of_others(
    theta: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For each observation the smallest and the largest value and the standard deviation of each
    coordinate of the truths of all others, `(n, d)`; the deviation is 1 where these do not vary.

    A box or a unit that a truth itself takes part in would treat it unlike its posterior samples.
    """
    n = len(theta)
    if n == 1:
        return theta, theta, np.ones_like(theta)
    ordered = np.sort(theta, axis=0)
    low = np.where(theta == ordered[0], ordered[1], ordered[0])
    high = np.where(theta == ordered[-1], ordered[-2], ordered[-1])
    centred = theta - theta.mean(axis=0)
    squares = np.square(centred)
    variance = (squares.sum(axis=0) - squares) / (n - 1) - squares / (n - 1) ** 2
    std = np.sqrt(np.maximum(variance, 0.0))
    return low, high, np.where(high > low, std, 1.0)


def _variance_ratio(uniform: NDArray[np.float64]) -> float:
    """The variance of means over the d columns of uniform numbers, `(n, d)`, relative to that of
    one: 1/d if they are independent, 1 if they are equal.

    One more row with equal numbers counts, so that few rows that are near 1/2 by chance do not make
    it small.
    """
    n, d = uniform.shape
    variances = 12 * np.square(uniform.mean(axis=1) - 0.5)
    return min(1.0, max(1 / d, (1 + float(variances.sum())) / (1 + n)))


def _effective(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The effective number of samples of each observation."""
    return 1 / np.square(weights).sum(axis=1)


def _size(weights: NDArray[np.float64]) -> float:
    """The median of the effective numbers of samples."""
    return float(np.median(_effective(weights)))


def _share_of_truth(
    weights: NDArray[np.float64], log_weights: Tensor | None, own: Tensor | None
) -> NDArray[np.float64]:
    """The weight of the truth over the sum of it and those of the samples, `(n,)`: 1 / (L + 1) for
    an effective number L of samples, unless its log-weight is given.

    Raises:
        ValueError: for log-weights of the truth that do not fit.
    """
    if own is None:
        return 1 / (_effective(weights) + 1)
    own = torch.as_tensor(own)
    if log_weights is None or own.shape != (len(weights),) or not bool(own.isfinite().all()):
        raise ValueError(
            f"truth_log_weights have shape {tuple(own.shape)}; give one finite number for each of "
            f"{len(weights)} observations, and the log_weights of their samples"
        )
    total = torch.as_tensor(log_weights).double().logsumexp(dim=1).cpu()
    return torch.sigmoid(own.detach().double().cpu() - total.detach()).numpy()


def _with_ties(
    below: NDArray[np.float64],
    equal: NDArray[np.float64],
    share: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """A number from the shares of the samples below and equal to the truth, and that of the truth
    itself, which is uniform where the truth is exchangeable with the samples.
    """
    share = share.reshape(-1, *[1] * (below.ndim - 1))
    u = np.random.default_rng([seed, len(below)]).random(below.shape)
    return (1 - share) * (below + u * equal) + share * u
