"""torchdiffeq's odeint_dense here: the solution between two times as a function."""

import importlib
import math

import numpy as np
import pytest
import torch

import sdekit
from sdekit import NotFiniteError, UnfinishedError, odeint, odeint_dense
from sdekit.interop._odeint_methods import ADAPTIVE, FIXED

F64 = torch.float64
Y0 = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
MATRIX = torch.tensor([[0.2, 1.3], [-1.1, -0.3]], dtype=F64)
ENDS = (torch.tensor(0.2, dtype=F64), torch.tensor(1.7, dtype=F64))
TIMES = torch.tensor([0.2, 0.21, 0.5, 0.93, 1.3, 1.69], dtype=F64)
WAYS = pytest.mark.parametrize("ends", [ENDS, ENDS[::-1]], ids=["forwards", "backwards"])


def field(t, y):
    return torch.tanh(y @ MATRIX) + torch.cos(3 * t)


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
def test_values_are_torchdiffeqs(tolerance):
    """Both have an error of about 15 tolerances here."""
    module = importlib.import_module("torchdiffeq._impl.odeint")
    if not hasattr(module, "odeint_dense"):
        pytest.skip("this version of torchdiffeq has no odeint_dense")
    settings = {"rtol": tolerance, "atol": tolerance}
    theirs = module.odeint_dense(field, Y0, *ENDS, **settings)
    ours = odeint_dense(field, Y0, *ENDS, **settings)
    for t in TIMES:
        assert ours(t).shape == Y0.shape
        close(ours(t), theirs(t), 30 * tolerance)


def ordered(ends):
    """The times in the direction of a solve, and its last."""
    among = TIMES[1:] if ends[0] < ends[1] else TIMES[1:].flip(0)
    return torch.stack([ends[0], *among, ends[1]])


@WAYS
@pytest.mark.parametrize("method", [None, *ADAPTIVE])
def test_states_are_those_of_odeint(method, ends):
    settings = {"rtol": 1e-5, "atol": 1e-5, "method": method}
    y = odeint_dense(field, Y0, *ends, **settings)
    ts = ordered(ends)
    expected = odeint(field, Y0, ts, **settings)
    close(y(ts), expected, 1e-12)
    assert torch.equal(y(ends[0]), Y0)
    assert torch.equal(y(ends[1]), expected[-1])
    back = torch.arange(len(ts)).flip(0)
    assert torch.equal(y(ts[back]), y(ts)[back])  # times in any order


@WAYS
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_are_those_of_odeint(method, interp, ends):
    settings = {"method": method, "options": {"step_size": 0.17, "interp": interp}}
    y = odeint_dense(field, Y0, *ends, **settings)
    ts = ordered(ends)
    close(y(ts), odeint(field, Y0, ts, **settings), 1e-12)


def test_states_of_any_shape_and_kind():
    for shape in ((), (1,), (2, 3)):
        y = odeint_dense(lambda t, y: -y, torch.ones(shape), 0, 1)
        assert y(0.25).shape == shape
        assert y(torch.linspace(0, 1, 4)).shape == (4, *shape)
        assert y(torch.zeros(0)).shape == (0, *shape)
    turned = odeint_dense(lambda t, y: 1j * y, torch.ones(3, dtype=torch.complex128), 0.0, 2.0)
    close(turned(1.5), torch.full((3,), complex(math.cos(1.5), math.sin(1.5))).to(turned(0)), 1e-6)
    assert odeint_dense(lambda t, y: -y, torch.zeros(0, 2), 0.0, 1.0)(0.5).shape == (0, 2)


def test_tuples():
    y0 = (torch.ones(3, dtype=F64), torch.zeros(2, 1, dtype=F64))
    y = odeint_dense(lambda t, y: (-y[0], torch.ones_like(y[1])), y0, 0.0, 1.0)
    first, second = y(torch.tensor([0.5, 1.0], dtype=F64))
    close(first[0], torch.full((3,), math.exp(-0.5), dtype=F64), 1e-6)
    close(second[1], torch.ones(2, 1, dtype=F64), 1e-6)


def test_what_is_returned_is_a_copy():
    y = odeint_dense(field, Y0, *ENDS)
    for t in (*ENDS, 0.9):
        before = y(t).clone()
        y(t).zero_()
        assert torch.equal(y(t), before)


@WAYS
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_gradients(method, ends):
    """With respect to y0, a parameter, and both times: those of e^{a (t - s)}."""
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    start = ends[0].clone().requires_grad_()
    t = torch.tensor(0.9, dtype=F64, requires_grad=True)
    options = {"step_size": 0.02, "interp": "cubic"} if method in FIXED else None
    y = odeint_dense(lambda t, y: a * y, y0, start, ends[1], method=method, options=options)
    value = y(t)[0]
    found = torch.autograd.grad(value, [y0, a, start, t])
    length = 0.9 - float(ends[0])
    size = math.exp(0.7 * length)
    expected = [[size, 0.0], size * length, -0.7 * size, 0.7 * size]
    for one, other in zip(found, expected, strict=True):
        close(one, torch.tensor(other, dtype=F64), 1e-5)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_the_equation_is_solved_once(method):
    """Neither a state without gradients nor a later change of a parameter changes the solution."""
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    options = {"step_size": 0.1, "interp": "cubic"} if method in FIXED else None
    y = odeint_dense(lambda t, y: a * y, y0, 0.0, 1.0, method=method, options=options)
    with torch.no_grad():
        before = y(0.37)
    found = torch.autograd.grad(y(0.37)[0], [y0, a], retain_graph=True)
    size = math.exp(0.7 * 0.37)
    for one, expected in zip(found, ([size, 0.0], 0.37 * size), strict=True):
        close(one, torch.tensor(expected, dtype=F64), 1e-5)
    with torch.no_grad():
        a.fill_(5.0)
        y0.fill_(3.0)
    assert torch.equal(y(0.37), before)


def test_a_time_at_the_end_of_a_step_has_a_derivative():
    y = odeint_dense(lambda t, y: -y, torch.ones(1, dtype=F64), 0.0, 1.0)
    for end in (0.0, 1.0):
        t = torch.tensor(end, dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(y(t).sum(), t)
        assert abs(float(slope) + math.exp(-end)) < 1e-6


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_a_state_between_fixed_steps_depends_on_the_ends(interp):
    """As the neighbouring states do, because the ends of steps move with those of the solve."""
    ends = [torch.tensor(end, dtype=F64, requires_grad=True) for end in (0.0, 1.0)]
    options = {"step_size": 0.1, "interp": interp}
    y = odeint_dense(
        lambda t, y: -y, torch.ones(1, dtype=F64), *ends, method="rk4", options=options
    )

    def slopes(t):
        return torch.stack(torch.autograd.grad(y(t).sum(), ends, retain_graph=True))

    for t, neighbour in ((0.0, 1e-9), (0.5, 0.5 - 1e-9), (1.0, 1.0 - 1e-9)):
        close(slopes(t), slopes(neighbour), 1e-6)


def test_times_outside_are_refused():
    y = odeint_dense(field, Y0, *ENDS)
    for t in (0.1, 1.8, math.nan):
        with pytest.raises(ValueError, match=r"from 0\.2 to 1\.7 and has no state at"):
            y(t)
    with pytest.raises(ValueError, match=r"one dimension, not shape \(2, 2\)"):
        y(torch.zeros(2, 2))
    # In float32 1.7 is above, and 0.2 too; both are times of the solve.
    close(y(torch.tensor(1.7)), y(1.7), 1e-12)
    below = odeint_dense(field, Y0, 0.7, 1.7)
    assert torch.equal(below(torch.tensor(0.7)), Y0)


def test_func_is_asked_within_the_interval_only():
    asked = []

    def watched(t, y):
        asked.append(float(t))
        return field(t, y)

    y = odeint_dense(watched, Y0, 0.2, 1.7, method="dopri8")
    y(torch.linspace(0.2, 1.7, 40, dtype=F64))
    assert min(asked) >= 0.2
    assert max(asked) <= 1.7


@pytest.mark.parametrize("method", ["implicit_adams", "scipy_solver"])
def test_methods_without_dense_output_are_refused(method):
    with pytest.raises(ValueError, match=r"no dense output; take one of .*dopri5.* rk4"):
        odeint_dense(field, Y0, 0.0, 1.0, method=method)


def test_numbers_of_numpy_are_ends():
    for t0 in (np.float32(0), np.int64(0), np.float64(0)):
        close(odeint_dense(field, Y0, t0, 1.0)(0.5), odeint_dense(field, Y0, 0.0, 1.0)(0.5), 1e-12)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="dopri5"):
        odeint_dense(field, Y0, 0.0, 1.0, method="dopri")
    with pytest.raises(ValueError, match="must increase strictly"):
        odeint_dense(field, Y0, 1.0, 1.0)
    with pytest.raises(TypeError, match="t0 and t1 must be numbers"):
        odeint_dense(field, Y0, 0.0, torch.zeros(2))
    with pytest.raises(TypeError, match="t0 and t1 must be numbers"):
        odeint_dense(field, Y0, 0.0, "1")
    with pytest.raises(TypeError, match=r"func\(t, y\)"):
        odeint_dense(lambda y: y, Y0, 0.0, 1.0)
    with pytest.raises(TypeError, match="y0 must be a floating tensor"):
        odeint_dense(field, [1.0], 0.0, 1.0)


def test_failures_have_their_errors():
    one = torch.ones(1, dtype=F64)
    with pytest.raises(UnfinishedError):
        odeint_dense(lambda t, y: y * y, one, 0.0, 2.0)
    options = {"step_size": 0.5}
    with pytest.raises(NotFiniteError, match="step 2"):
        odeint_dense(lambda t, y: y / (t < 0.3), one, 0.0, 2.0, method="euler", options=options)


def test_the_name_is_public():
    assert sdekit.odeint_dense is sdekit.interop.odeint_dense
