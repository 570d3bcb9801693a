"""Runge-Kutta methods for ordinary equations: all order conditions, that no neighbouring
coefficients meet them, and slopes.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sdekit import (
    ODE,
    AbstractRungeKutta,
    AbstractSDE,
    Dopri5,
    Dopri8,
    Increment,
    PIDController,
    Tableau,
    Tsit5,
    all_solvers,
    solve,
)

METHODS = pytest.mark.parametrize("solver", all_solvers(AbstractRungeKutta), ids=str)


# Order conditions


@functools.cache
def trees(order):
    """Rooted trees as sorted tuples of their branches (Hairer, Norsett and Wanner 1993, section
    II.2).
    """
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
    return np.array(
        [
            *rows,
            *(
                np.array(b) @ weights(t, a) - 1 / density(t)
                for p in range(1, order + 1)
                for t in trees(p)
            ),
        ]
    )


def lower(order):
    """The order of the embedded method: one less, but for the method of order eight."""
    return 5 if order == 8 else order - 1


def everything(tableau, order):
    """The conditions of the method, and of the embedded one."""
    embedded = (
        [] if tableau.embedded is None else conditions(tableau, lower(order), tableau.embedded)
    )
    return np.concatenate([conditions(tableau, order, tableau.b), embedded])


@pytest.mark.parametrize("solver", [Dopri5(), Tsit5()], ids=str)
def test_the_middle_is_of_order_four_and_no_neighbour_is(solver):
    middle = np.array(solver.tableau.middle)

    def halfway(b):
        a, _ = arrays(solver.tableau)
        trees_ = [t for p in range(1, 5) for t in trees(p)]
        return np.array([b @ weights(t, a) - 0.5 ** size(t) / density(t) for t in trees_])

    assert np.abs(halfway(middle)).max() < 2e-14
    for i in np.nonzero(middle)[0]:
        assert np.abs(halfway(middle * (1 + 0.05 * (np.arange(len(middle)) == i)))).max() > 1e-5


def test_the_number_of_trees():
    assert [len(trees(p)) for p in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@METHODS
def test_order_conditions_hold(solver):
    assert np.abs(everything(solver.tableau, solver.order["none"].strong)).max() < (
        2e-14 if isinstance(solver, Tsit5) else 1e-14
    )


@METHODS
def test_every_coefficient_five_percent_off_breaks_a_condition(solver):
    tableau = solver.tableau
    order = solver.order["none"].strong
    for name in ("b", "c", "embedded"):
        for i, value in enumerate(getattr(tableau, name) or ()):
            if value:
                changed = tuple(
                    1.05 * v if i == j else v for j, v in enumerate(getattr(tableau, name))
                )
                assert (
                    np.abs(everything(dataclasses.replace(tableau, **{name: changed}), order)).max()
                    > 1e-5
                ), (name, i)
    for i, row in enumerate(tableau.a):
        for j, value in enumerate(row):
            if value:
                changed = [list(r) for r in tableau.a]
                changed[i][j] *= 1.05
                assert (
                    np.abs(
                        everything(
                            dataclasses.replace(tableau, a=tuple(map(tuple, changed))), order
                        )
                    ).max()
                    > 1e-5
                ), (
                    i,
                    j,
                )


@METHODS
def test_no_further_order_is_hidden(solver):
    order = solver.order["none"].strong
    assert np.abs(conditions(solver.tableau, order + 1, solver.tableau.b)).max() > 1e-5
    if solver.tableau.embedded:
        assert (
            np.abs(conditions(solver.tableau, lower(order) + 1, solver.tableau.embedded)).max()
            > 1e-5
        )


# Slopes


def one_step(solver, t0, h, x):
    equation = ODE(lambda t, x: x * x * torch.cos(t))
    times = (
        torch.full((len(x),), t0, dtype=torch.float64),
        torch.full((len(x),), t0 + h, dtype=torch.float64),
    )
    state = solver.init(equation, times[0], x)
    return solver.step(equation, *times, x, Increment(), state)


@METHODS
@pytest.mark.parametrize("direction", [1, -1], ids=["forwards", "backwards"])
def test_slopes_of_one_step_and_of_its_error_estimate(solver, direction):
    """dx = x^2 cos(t) dt, x = 1 / (1 / x_0 + sin t_0 - sin t), in the mean square of some x_0."""
    order = solver.order["none"].strong
    h = 2.0 ** -np.linspace(*((0.5, 3) if order == 8 else (2, 7)), 6)
    t0 = 0.3
    x0 = torch.linspace(0.4, 1.3, 15, dtype=torch.float64)[:, None]
    errors = []
    estimates = []
    for step in direction * h:
        exact = 1 / (1 / x0 + math.sin(t0) - math.sin(t0 + step))
        found = one_step(solver, t0, step, x0)
        errors.append(mean_square(found.x - exact))
        if solver.embedded:
            estimates.append(float(solver.quotient(mean_square, found.error)))
    # From below: one problem may be kinder than the order, which the test before this one shows not
    # to be higher.
    assert finest_slope(h, errors) > order + 1 - 0.3
    if solver.embedded:
        assert finest_slope(h, estimates) > solver.embedded - 0.3


def mean_square(x):
    return x.square().mean().sqrt()


def finest_slope(h, errors):
    """Over the three finest steps whose error is above rounding."""
    h, errors = (np.array(values)[np.array(errors) > 1e-13][-3:] for values in (h, errors))
    assert len(h) == 3
    return np.polyfit(np.log(h), np.log(errors), 1)[0]


# Order eight


class Unit(AbstractSDE):
    """Slopes that are unit vectors, one after another from a number on: what is made of them are a
    method's weights.
    """

    noise_type = "none"

    def __init__(self, number):
        self.vectors = iter(torch.eye(16, dtype=torch.float64)[number:, None])
        self.points = []

    def drift(self, t, x):
        self.points.append((t, x[0].numpy()))
        return next(self.vectors)

    def diffusion(self, t, x):
        return 0.0


def output_of_dopri8():
    """A, c with the three stages of the output, and its weights by theta."""
    start = torch.zeros(1, 16, dtype=torch.float64)
    first = torch.eye(16, dtype=torch.float64)[:1]
    step = Dopri8().step(Unit(1), 0.0, 1.0, start, Increment(), (first,))
    more = Unit(13)
    dense = Dopri8().dense(more, 0.0, 1.0, step.dense)
    a, c = arrays(Dopri8.tableau)
    a = np.concatenate([np.pad(a, ((0, 0), (0, 3))), [x for _, x in more.points]])
    c = np.array([*c, *(t for t, _ in more.points)])
    return (
        a,
        c,
        lambda theta: (
            Dopri8().interpolate(dense, torch.tensor([theta], dtype=torch.float64))[0].numpy()
        ),
    )


def test_output_of_dopri8_is_of_order_seven_and_no_higher():
    a, c, b = output_of_dopri8()
    assert a.shape == (16, 16)
    assert np.abs(a.sum(1) - c).max() < 1e-14
    for theta in (0.0, 0.1, 0.5, 0.77, 1.0):
        by_order = [
            max(abs(b(theta) @ weights(t, a) - theta**p / density(t)) for t in trees(p))
            for p in range(1, 9)
        ]
        assert max(by_order[:7]) < 1e-13
        assert by_order[7] > 1e-8 or theta in (0.0, 1.0)
    assert np.abs(b(1.0)[:13] - Dopri8.tableau.b).max() < 1e-14


def test_the_second_estimate_of_dopri8_is_less_a_method_of_order_three():
    unit = torch.eye(16, dtype=torch.float64)[:1]
    _, third = Dopri8().step(Unit(1), 0.0, 1.0, 0 * unit, Increment(), (unit,)).error
    embedded = np.array(Dopri8.tableau.b) - third[0, :13].numpy()
    assert np.abs(conditions(Dopri8.tableau, 3, embedded)).max() < 1e-14
    assert np.abs(conditions(Dopri8.tableau, 4, embedded)).max() > 1e-3


def test_the_coefficients_of_dopri8_are_those_of_scipy():
    from scipy.integrate._ivp import dop853_coefficients as theirs

    a, c, b = output_of_dopri8()
    np.testing.assert_allclose(a, theirs.A, rtol=0, atol=1e-15)
    np.testing.assert_allclose(c, theirs.C, rtol=0, atol=1e-15)
    np.testing.assert_allclose(Dopri8.tableau.difference, theirs.E5, rtol=0, atol=1e-15)
    # The polynomial through the coefficients as scipy's: s (d_1 + (1 - s) (d_2 + ...)).
    rise = np.append(theirs.B, [0] * 4)
    first = np.eye(16)[0]
    last = np.eye(16)[12]
    expected = np.zeros(16)
    s = 0.3
    for i, term in reversed(
        list(enumerate([rise, first - rise, 2 * rise - first - last, *theirs.D]))
    ):
        expected = (expected + term) * (1 - s if i % 2 else s)
    np.testing.assert_allclose(b(s), expected, rtol=0, atol=1e-12)


def test_the_quotient_of_dopri8():
    fifth, third = (
        torch.tensor(v, dtype=torch.float64)
        for v in ([3.0, 0.0, 0.0, torch.inf, 1.0], [40.0, 0.0, 1.0, 1.0, torch.inf])
    )
    q = Dopri8().quotient(lambda e: e, (fifth, third))
    torch.testing.assert_close(
        q, torch.tensor([9 / 5, 0.0, 0.0, torch.inf, torch.inf], dtype=torch.float64)
    )


@pytest.mark.parametrize("ends", [(0.0, 10.0), (3.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("tol", [1e-5, 1e-8, 1e-11])
def test_dopri8_steps_as_scipys_dop853(ends, tol):
    """Van der Pol's equation. Steps may differ by their first; evaluations do not by more than a
    tenth.
    """

    def f(t, y):
        return [y[1], 2 * (1 - y[0] ** 2) * y[1] - y[0]]

    inside = [
        ends[0],
        *(ends[0] + (ends[1] - ends[0]) * part for part in (0.21, 0.5, 0.93)),
        ends[1],
    ]
    theirs = solve_ivp(f, ends, [2.0, 0.0], method="DOP853", rtol=tol, atol=tol)
    exact = solve_ivp(
        f, ends, [2.0, 0.0], method="DOP853", rtol=3e-14, atol=3e-14, t_eval=inside
    ).y.T
    equation = ODE(lambda t, x: torch.stack(f(t, x.unbind(1)), dim=1))
    x0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    ours = solve(equation, x0, inside, solver=Dopri8(), control=PIDController(tol, tol), save="all")
    assert int(ours.evaluations) - 3 * 3 == pytest.approx(theirs.nfev, rel=0.1)
    assert np.abs(ours.xs[:, 0].numpy() - exact).max() < 20 * max(
        tol, np.abs(theirs.y[:, -1] - exact[-1]).max()
    )


# Times


@METHODS
def test_times_as_numbers_and_by_sample_give_the_same_step(solver):
    equation = ODE(lambda t, x: torch.sin(3 * x) + torch.cos(t))
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    by_sample = one_step(solver, 0.2, 0.1, x)
    assert by_sample.x.shape == x.shape
    t = torch.full((7,), 0.2, dtype=torch.float64)
    a = solver.step(equation, t, t + 0.1, x, Increment(), solver.init(equation, t, x)).x
    b = solver.step(
        equation, 0.2, float(t[0] + 0.1), x, Increment(), solver.init(equation, 0.2, x)
    ).x
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_a_tableau_knows_its_difference():
    tableau = Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), embedded=(1.0, 0.0))
    assert tableau.difference == (-0.5, 0.5)
