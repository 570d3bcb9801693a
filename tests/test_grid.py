import math

import numpy as np
import pytest
import torch

from sdekit import geometric, uniform
from sdekit._grid import times


def test_ends_are_exact_and_steps_even():
    grid = uniform(1.0, 1e-3, 7)
    assert grid.dtype == torch.float64
    assert (grid[0], grid[-1], len(grid)) == (1.0, 1e-3, 8)
    torch.testing.assert_close(grid.diff(), torch.full((7,), (1e-3 - 1) / 7, dtype=torch.float64))


def test_geometric():
    grid = geometric(80.0, 0.002, 18)
    assert (grid[0], grid[-1]) == (80.0, 0.002)
    torch.testing.assert_close(
        grid[1:] / grid[:-1], torch.full((18,), (0.002 / 80) ** (1 / 18), dtype=torch.float64)
    )
    with pytest.raises(ValueError, match="two positive times"):
        geometric(1.0, 0.0, 3)


def test_ends_further_apart_than_numbers_reach():
    with pytest.raises(ValueError, match="a finite difference of two finite times"):
        uniform(-1e308, 1e308, 2)


def test_no_steps():
    with pytest.raises(ValueError, match="at least one step"):
        uniform(0.0, 1.0, 0)


@pytest.mark.parametrize("grid", [uniform, geometric])
def test_arguments_are_checked(grid):
    for t1 in (math.inf, math.nan):
        with pytest.raises(ValueError, match=r"two finite times; not from 1\.0 to"):
            grid(1.0, t1, 3)
    with pytest.raises(ValueError, match=r"to another time t1; not from 1\.0 to 1\.0"):
        grid(1.0, 1.0, 3)
    with pytest.raises(TypeError, match="t0, t1 and the number of its steps, an integer; not 1"):
        grid(10, 0.5, 1.0)
    with pytest.raises(TypeError, match="two times; not 'a' and 1"):
        grid("a", 1.0, 3)
    assert len(grid(torch.tensor(1.0), 2, np.int64(3))) == 4


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        ([0.0], "at least two"),
        (torch.zeros(2, 2), "one-dimensional"),
        ([0.0, 0.0], "strictly"),
        ([0.0, 1.0, 0.5], "strictly"),
        ([0.0, math.nan], "finite"),
        ([0.0, math.inf], "finite"),
    ],
)
def test_what_is_not_a_grid(ts, message):
    with pytest.raises(ValueError, match=message):
        times(ts)


def test_grids_from_lists_tensors_and_integers():
    assert times([0, 1, 2]) == [0.0, 1.0, 2.0]
    assert times(torch.tensor([3.0, 1.0])) == [3.0, 1.0]


def test_a_list_of_times_is_not_changed_with_the_grid():
    given = [0.0, 0.5, 1.0]
    grid = times(given)
    grid[1] = 0.25
    assert given == [0.0, 0.5, 1.0]
