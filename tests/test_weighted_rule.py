"""Rules with weights of their own for each step: their steps are those of other rules with the same
weights.
"""

import pytest
import torch

import sdekit
import sdekit_diffusion as sd
from sdekit_diffusion._sampling.on_clock import OnClock
from sdekit_diffusion._sampling.weighted_rule import WeightedRule

TWO = ((1.0,), (1.5, -0.5), (1.5, -0.5), (1.5, -0.5), (1.5, -0.5))
ODE = sdekit.ODE(lambda t, x: torch.sin(x) + t)
START = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
LAW = sd.GaussianMixture([1.0], [[0.0]], [0.3])


def test_steps_are_those_of_the_rule_with_these_weights():
    ts = sdekit.uniform(0.5, 0.0, 5)
    rule = sdekit.AdamsBashforth(2, self_starting=False)
    expected = sdekit.solve(ODE, START, ts, solver=rule).x
    found = sdekit.solve(ODE, START, ts, solver=WeightedRule(TWO)).x
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_weights_are_in_units_of_the_clock_on_unequal_steps():
    rule = WeightedRule(((1.0,), (0.7, 0.3)))
    t0, t1, t2 = 0.0, 0.1, 0.5
    first = START + t1 * ODE.drift(t0, START)
    slopes = ODE.drift(t1, first), ODE.drift(t0, START)
    expected = first + 0.4 * (0.7 * slopes[0] + 0.3 * slopes[1])
    found = sdekit.solve(ODE, START, [t0, t1, t2], solver=rule).x
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    x = [
        sd.sample(LAW, 8, sde="vp", method=OnClock(solver, steps=4), seed=0)
        for solver in (WeightedRule(((1.0,),) * 4), sdekit.AdamsBashforth(1))
    ]
    torch.testing.assert_close(*x)


def test_four_values_are_kept():
    weights = ((1.0,), (0.5, 0.5), (0.2, 0.3, 0.5), (0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4))
    ts = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    x = START
    slopes = []
    for i, row in enumerate(weights):
        slopes.insert(0, ODE.drift(ts[i], x))
        total = sum(w * slope for w, slope in zip(row, slopes, strict=False))
        x = x + (ts[i + 1] - ts[i]) * total
    found = sdekit.solve(ODE, START, ts, solver=WeightedRule(weights)).x
    torch.testing.assert_close(found, x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (((1.0,), (0.2, 0.3, 0.5)), r"step 2 are \(0.2, 0.3, 0.5\); .* from 1 to 2 of them"),
        ((*TWO, (0.2,) * 5), "step 6 .* from 1 to 4 of them"),
        (((1.0,), ()), r"step 2 are \(\)"),
        (((1.0,), ("1.0",)), r"step 2 are \('1.0',\); they must be finite numbers"),
        (((float("nan"),),), "step 1 are"),
        (((1.0,), None), "step 2 are None"),
    ],
)
def test_weights_that_are_not_valid_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedRule(weights)


def test_weights_for_another_number_of_steps_are_refused():
    with pytest.raises(ValueError, match="weights for 3 steps, and the grid has 4"):
        sdekit.solve(ODE, START, sdekit.uniform(0.0, 1.0, 4), solver=WeightedRule(TWO[:3]))


def test_a_replaced_state_keeps_the_earlier_slopes():
    ts = [0.0, 0.1, 0.2]
    now = sdekit.stepper(ODE, START, ts, solver=WeightedRule(TWO[:2])).next()
    other = now.x + 1
    expected = other + 0.1 * (1.5 * ODE.drift(0.1, other) - 0.5 * ODE.drift(0.0, START))
    torch.testing.assert_close(now.with_x(other).next().x, expected, rtol=1e-14, atol=1e-14)
