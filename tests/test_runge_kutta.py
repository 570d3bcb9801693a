"""Runge-Kutta methods for ordinary equations: all order conditions, that no neighbouring coefficients meet them, and slopes."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch

from sdekit import ODE, RK4, Bosh3, Dopri5, Increment, Tableau, Tsit5

METHODS = pytest.mark.parametrize("solver", [RK4(), Bosh3(), Dopri5(), Tsit5()], ids=str)


# Order conditions


@functools.cache
def trees(order):
    """Rooted trees as sorted tuples of their branches (Hairer, Norsett and Wanner 1993, section II.2)."""
    if order == 1:
        return [()]
    found = set()
    for parts in partitions(order - 1):
        for branches in itertools.product(*(trees(p) for p in parts)):
            found.add(tuple(sorted(branches)))
    return sorted(found)


def partitions(n, largest=None):
    largest = n if largest is None else largest
    if n == 0:
        yield ()
    for part in range(min(n, largest), 0, -1):
        for rest in partitions(n - part, part):
            yield (part, *rest)


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    return size(tree) * math.prod(map(density, tree))


def weights(tree, a):
    return math.prod((a @ weights(branch, a) for branch in tree), start=np.ones(len(a)))


def arrays(tableau):
    """A, b, c with the slope at the end as a last stage where there is an embedded method."""
    rows = list(tableau.a) + ([tableau.b] if tableau.embedded else [])
    a = np.array([[*row, *[0.0] * len(rows)][: len(rows)] for row in rows], dtype=float)
    c = np.array([*tableau.c, *([1.0] if tableau.embedded else [])], dtype=float)
    return a, c


def conditions(tableau, order, b):
    a, c = arrays(tableau)
    rows = a.sum(1) - c
    return np.array([*rows, *(np.array(b) @ weights(t, a) - 1 / density(t) for p in range(1, order + 1) for t in trees(p))])


def everything(tableau, order):
    """The conditions of the method, and of the embedded one an order lower."""
    embedded = [] if tableau.embedded is None else conditions(tableau, order - 1, tableau.embedded)
    return np.concatenate([conditions(tableau, order, tableau.b), embedded])


@pytest.mark.parametrize("solver", [Dopri5(), Tsit5()], ids=str)
def test_the_middle_is_of_order_four_and_no_neighbour_is(solver):
    middle = np.array(solver.tableau.middle)

    def halfway(b):
        a, _ = arrays(solver.tableau)
        trees_ = [t for p in range(1, 5) for t in trees(p)]
        return np.array([b @ weights(t, a) - 0.5 ** size(t) / density(t) for t in trees_])

    assert np.abs(halfway(middle)).max() < 1e-12
    for i in np.nonzero(middle)[0]:
        assert np.abs(halfway(middle * (1 + 0.05 * (np.arange(len(middle)) == i)))).max() > 1e-5


def test_the_number_of_trees():
    assert [len(trees(p)) for p in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@METHODS
def test_order_conditions_hold(solver):
    assert np.abs(everything(solver.tableau, solver.order["none"].strong)).max() < 2e-14


@METHODS
def test_every_coefficient_five_percent_off_breaks_a_condition(solver):
    tableau, order = solver.tableau, solver.order["none"].strong
    for name in ("b", "c", "embedded"):
        for i, value in enumerate(getattr(tableau, name) or ()):
            if value:
                changed = tuple(1.05 * v if i == j else v for j, v in enumerate(getattr(tableau, name)))
                assert np.abs(everything(dataclasses.replace(tableau, **{name: changed}), order)).max() > 1e-5, (name, i)
    for i, row in enumerate(tableau.a):
        for j, value in enumerate(row):
            if value:
                changed = [list(r) for r in tableau.a]
                changed[i][j] *= 1.05
                assert np.abs(everything(dataclasses.replace(tableau, a=tuple(map(tuple, changed))), order)).max() > 1e-5, (
                    i,
                    j,
                )


@METHODS
def test_no_further_order_is_hidden(solver):
    order = solver.order["none"].strong
    assert np.abs(conditions(solver.tableau, order + 1, solver.tableau.b)).max() > 1e-5
    if solver.tableau.embedded:
        assert np.abs(conditions(solver.tableau, order, solver.tableau.embedded)).max() > 1e-5


# Slopes


def one_step(solver, t0, h, x):
    equation = ODE(lambda t, x: x * x * torch.cos(t))
    times = (torch.full((len(x),), t0, dtype=torch.float64), torch.full((len(x),), t0 + h, dtype=torch.float64))
    state = solver.init(equation, times[0], x)
    return solver.step(equation, *times, x, Increment(), state)


@METHODS
@pytest.mark.parametrize("direction", [1, -1], ids=["forwards", "backwards"])
def test_slopes_of_one_step_and_of_its_error_estimate(solver, direction):
    """dx = x^2 cos(t) dt, x = 1 / (1 / x_0 + sin t_0 - sin t)."""
    t0, x0, h = 0.3, torch.tensor([[0.9]], dtype=torch.float64), 2.0 ** -np.arange(2, 8)
    errors, estimates = [], []
    for step in direction * h:
        exact = 1 / (1 / 0.9 + math.sin(t0) - math.sin(t0 + step))
        found = one_step(solver, t0, step, x0)
        errors.append(abs(float(found.x) - exact))
        if solver.embedded:
            estimates.append(abs(float(found.error)))
    order = solver.order["none"].strong
    # From below: one problem may be kinder than the order, which the test before this one shows not to be higher.
    assert finest_slope(h, errors) > order + 1 - 0.3
    if solver.embedded:
        assert finest_slope(h, estimates) > solver.embedded - 0.3


def finest_slope(h, errors):
    """Over the three finest steps whose error is above rounding."""
    h, errors = (np.array(values)[np.array(errors) > 1e-13][-3:] for values in (h, errors))
    assert len(h) == 3
    return np.polyfit(np.log(h), np.log(errors), 1)[0]


@METHODS
def test_times_as_numbers_and_by_sample_give_the_same_step(solver):
    equation, x = ODE(lambda t, x: torch.sin(3 * x) + torch.cos(t)), torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    by_sample = one_step(solver, 0.2, 0.1, x)
    assert by_sample.x.shape == x.shape
    t = torch.full((7,), 0.2, dtype=torch.float64)
    a = solver.step(equation, t, t + 0.1, x, Increment(), solver.init(equation, t, x)).x
    b = solver.step(equation, 0.2, float(t[0] + 0.1), x, Increment(), solver.init(equation, 0.2, x)).x
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_a_tableau_knows_its_difference():
    tableau = Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), embedded=(1.0, 0.0))
    assert tableau.difference == (-0.5, 0.5)
