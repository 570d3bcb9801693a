"""Least squares with few evaluations of a function of differences of its variables."""

from collections.abc import Callable

import numpy as np

_DIFFERENCE = 0.02  # of a variable, for derivatives
_DAMPING = 0.1  # at first, relative to the diagonal of J'J
_FACTOR = 4.0  # by which the damping changes


def least_squares(
    function: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    value: np.ndarray,
    *,
    alike: int,
    trials: int,
    period: int,
    largest: float,
) -> np.ndarray:
    """The point of least |r|^2 among the first and a number of trials x + s of Levenberg and
    Marquardt, each coordinate of x + s clipped, with

        (J'J + c diag(J'J)) s = -J' r.

    Where |r|^2 is less than at x, the trial is the next x, and c is divided by four; otherwise c is
    multiplied by four. The derivatives J are differences before the first of each `period` trials,
    unless x is where they were taken last; after every trial, also one that is refused, they are
    updated by Broyden's

        J + (r(x + s) - r(x) - J s) s' / s's.

    The function must be the same if the same number is added to the first variables, as many as
    `alike` says. Therefore these parts of s, before it is clipped, and of the rows of J are taken
    less their means; otherwise x would drift, since differences are only nearly derivatives.

    SciPy's `least_squares` asks for derivatives at the points that it takes, so that it learns
    nothing from those that it refuses.

    Arguments:
        function: r; infinite or not a number where a trial is refused.
        x: the first point.
        value: r there.
        alike: how many of the variables, from the first on, may be moved together.
        trials: their number.
        period: how many trials there are for each that takes differences.
        largest: the largest |x_i| of a trial.

    References:
        Marquardt 1963, doi 10.1137/0111030; Broyden 1965, doi 10.1090/S0025-5718-1965-0198670-6.
    """
    jacobian = np.zeros((len(value), len(x)))
    damping = _DAMPING
    moved = True
    for trial in range(trials):
        if moved and trial % period == 0:
            jacobian = _centred(_differences(function, x, value), alike)
            moved = False
        step = _centred(_step(jacobian, value, damping), alike)
        step = np.clip(x + step, -largest, largest) - x
        if not np.ptp(step[:alike]) and not step[alike:].any():  # the same r
            break
        trial = function(x + step)
        less = bool(trial @ trial < value @ value)
        if np.isfinite(trial).all():
            centred = _centred(step, alike)  # of the same r
            change = trial - value - jacobian @ centred
            jacobian = jacobian + np.outer(change, centred) / (centred @ centred)
        if less:
            x = x + step
            value = trial
            moved = True
        damping = damping / _FACTOR if less else damping * _FACTOR
    return x


def _differences(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, value: np.ndarray
) -> np.ndarray:
    """The derivatives of a function; differences that are not finite are taken for 0."""
    values = [function(x + shift) for shift in _DIFFERENCE * np.eye(len(x))]
    jacobian = (np.stack(values, axis=1) - value[:, np.newaxis]) / _DIFFERENCE
    jacobian[~np.isfinite(jacobian)] = 0.0
    return jacobian


def _centred(x: np.ndarray, alike: int) -> np.ndarray:
    """x less the mean of its first entries, in these."""
    first = x[..., :alike]
    return np.concatenate([first - first.mean(axis=-1, keepdims=True), x[..., alike:]], axis=-1)


def _step(jacobian: np.ndarray, value: np.ndarray, damping: float) -> np.ndarray:
    """The step s of Levenberg and Marquardt, the shortest where it is not the only one."""
    normal = jacobian.T @ jacobian
    damped = normal + damping * np.diag(np.diag(normal))
    return np.linalg.lstsq(damped, -(jacobian.T @ value), rcond=None)[0]
