"""Levenberg and Marquardt's method with Broyden's updates: its trials are those of the formulas,
and they find minima.
"""

import numpy as np
import pytest

from sdekit_diffusion._sampling.least_squares import least_squares

DIFFERENCES = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
LINEAR = np.array([[1.0, 2.0], [-3.0, 0.5], [0.5, 4.0], [0.2, -0.3]])
SLOPES = LINEAR @ DIFFERENCES
TARGET = np.array([1.0, 2.0, 3.0, -1.0])
SETTINGS = {"alike": 3, "trials": 30, "period": 100, "largest": 100.0}


def linear(x):
    return SLOPES @ x - TARGET


def curved(x, scale=1.0):
    first, second = DIFFERENCES @ x
    return linear(x) + scale * np.array([first**2, 0.0, first * second, 0.0])


def minimised(function, x=(0.0, 0.0, 0.0), **settings):
    """The point found, and those where the function was asked for."""
    asked = []

    def recorded(x):
        asked.append(x.copy())
        return function(x)

    x = np.array(x)
    return least_squares(recorded, x, function(x), **(SETTINGS | settings)), asked


def differences(function, x):
    jacobian = np.stack([(function(x + one) - function(x)) / 0.02 for one in 0.02 * np.eye(3)], 1)
    return jacobian - jacobian.mean(axis=1, keepdims=True)


def updated(jacobian, value, found, step):
    return jacobian + np.outer(found - value - jacobian @ step, step) / (step @ step)


def damped(jacobian, damping):
    normal = jacobian.T @ jacobian
    return normal + damping * np.diag(np.diag(normal))


def require_step(step, jacobian, value, damping):
    """Less its mean, which changes nothing."""
    expected = np.linalg.solve(damped(jacobian, damping), -jacobian.T @ value)
    assert step == pytest.approx(expected - expected.mean(), rel=1e-9)


def test_linear_least_squares_are_solved():
    found, _ = minimised(linear)
    exact = np.linalg.lstsq(LINEAR, TARGET, rcond=None)[0]
    assert DIFFERENCES @ found == pytest.approx(exact, rel=1e-9)


def test_a_trial_that_is_less_is_taken_and_the_damping_falls():
    _, asked = minimised(linear, trials=2)
    assert asked[:3] == pytest.approx(0.02 * np.eye(3))
    require_step(asked[3], SLOPES, -TARGET, 0.1)
    require_step(asked[4] - asked[3], SLOPES, linear(asked[3]), 0.025)


@pytest.mark.parametrize("refusal", [np.inf, np.nan])
def test_a_trial_that_is_not_finite_is_refused_and_the_damping_grows(refusal):
    def function(x):
        return linear(x) if np.abs(x).max() < 0.1 else np.array([refusal, 0.0, 0.0, 0.0])

    found, asked = minimised(function, trials=2)
    require_step(asked[3], SLOPES, -TARGET, 0.1)
    require_step(asked[4], SLOPES, -TARGET, 0.4)
    assert not found.any()


@pytest.mark.parametrize("scale", [0.3, 1e3])
def test_the_derivatives_are_updated_after_every_trial(scale):
    """Also after one that is refused, since the function is larger there."""

    def function(x):
        return curved(x, scale)

    _, asked = minimised(function, trials=2)
    start = -TARGET
    first = differences(function, np.zeros(3))
    require_step(asked[3], first, start, 0.1)
    value = function(asked[3])
    second = updated(first, start, value, asked[3])
    if scale < 1:
        assert value @ value < start @ start
        require_step(asked[4] - asked[3], second, value, 0.025)
    else:
        assert value @ value > start @ start
        require_step(asked[4], second, start, 0.4)


def test_differences_are_taken_again_each_period_where_x_has_moved():
    _, asked = minimised(curved, trials=4, period=2)
    assert len(asked) == 3 + 2 + 3 + 2
    x = asked[4]
    assert asked[5:8] == pytest.approx(x + 0.02 * np.eye(3))
    require_step(asked[8] - x, differences(curved, x), curved(x), 0.1 / 16)


def test_differences_are_not_taken_again_at_the_same_point():
    def function(x):
        return linear(x) if np.abs(x).max() < 0.03 else np.full(4, np.inf)

    _, asked = minimised(function, trials=4, period=2)
    assert len(asked) == 3 + 4


def test_no_coordinate_is_larger_than_the_largest():
    """And after a step that is clipped the derivatives are updated as after one that is not."""
    found, asked = minimised(curved, largest=0.2)
    assert np.abs(asked).max() == pytest.approx(0.2)
    assert np.abs(found).max() == pytest.approx(0.2)
    start = -TARGET
    first = differences(curved, np.zeros(3))
    step = asked[3] - asked[3].mean()
    assert np.abs(asked[3].mean()) > 0.01
    second = updated(first, start, curved(asked[3]), step)
    free = np.linalg.solve(damped(second, 0.025), -second.T @ curved(asked[3]))
    wanted = asked[3] + free - free.mean()
    assert asked[4] == pytest.approx(np.clip(wanted, -0.2, 0.2))


def test_differences_that_are_not_finite_are_zero():
    """So that trials move away from there."""

    def function(x):
        return linear(x) if x[0] - x[2] < 0.01 else np.full(4, np.nan)

    found, _ = minimised(function)
    exact = np.linalg.lstsq(LINEAR, TARGET, rcond=None)[0]
    assert DIFFERENCES @ found == pytest.approx(exact, rel=1e-6)


def test_no_trial_of_a_constant_is_made():
    found, asked = minimised(lambda x: np.ones(4))
    assert not found.any()
    assert len(asked) == 3


def test_a_curved_valley_is_followed_to_its_end():
    """That of Rosenbrock 1960, doi 10.1093/comjnl/3.3.175, of differences."""

    def valley(x):
        first, second = DIFFERENCES @ x
        return np.array([1 - first, 10 * (second - first**2)])

    found, _ = minimised(valley, (-1.2, 1.0, 0.0), trials=60, period=4)
    assert DIFFERENCES @ found == pytest.approx([1.0, 1.0], abs=1e-6)


def test_other_variables_are_not_moved_together():
    matrix = np.array([[1.0, 2.0], [-3.0, 0.5], [0.5, 4.0]])
    target = np.array([1.0, 2.0, 5.0])

    def function(x):
        return matrix @ np.array([x[0] - x[1], x[2]]) - target

    found, _ = minimised(function, alike=2)
    exact = np.linalg.lstsq(matrix, target, rcond=None)[0]
    assert [found[0] - found[1], found[2]] == pytest.approx(exact, rel=1e-9)
    assert found[0] == pytest.approx(-found[1], abs=1e-12)
    found, _ = minimised(lambda x: np.array([x[2] - 1, 2 * x[2] - 2]), alike=2)
    assert found == pytest.approx([0.0, 0.0, 1.0])
