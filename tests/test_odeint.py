"""torchdiffeq's programs here: odeint and its adjoint, what is handed over, and torchdiffeq as an
engine for our equations.
"""

import functools
import importlib
import itertools
import math
from pathlib import Path

import pytest
import torch
import torchdiffeq
from torch import nn

import sdekit
from sdekit import ODE, NotFiniteError, UnfinishedError, interop, odeint, odeint_adjoint
from sdekit._solvers import Dopri5
from sdekit.interop import _crossing, _odeint
from sdekit.interop._odeint_methods import ADAPTIVE, FIXED

F64 = torch.float64
# Version 0.2.4 of torchdiffeq has not all of them.
SHARED, STEPPED = (
    [name for name in names if name in importlib.import_module("torchdiffeq._impl.odeint").SOLVERS]
    for names in (ADAPTIVE, FIXED)
)
EVERY = pytest.mark.parametrize("method", [*ADAPTIVE, *STEPPED])
WAYS = pytest.mark.parametrize("ends", [(0.0, 1.3), (1.3, 0.0)], ids=["forwards", "backwards"])
Y0 = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A field that depends on t; it counts, and refuses times outside an interval and of other
    kinds.
    """

    def __init__(self, low=0.0, high=1.3, dtype=F64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.a = nn.Parameter(torch.randn(2, 2, generator=generator).to(dtype))
        self.b = nn.Parameter(torch.randn(2, generator=generator).to(dtype))
        self.low, self.high, self.calls = (torch.tensor(v, dtype=dtype) for v in (low, high, 0))

    def forward(self, t, y):
        assert t.shape == ()
        assert t.dtype == y.dtype
        assert self.low <= t <= self.high
        self.calls += 1
        return torch.tanh(y @ self.a) + self.b * torch.cos(3 * t)


class Free(Net):
    """The same for torchdiffeq, which steps over the end."""

    def __init__(self, dtype=F64):
        super().__init__(-math.inf, math.inf, dtype)


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def gradients(solve, func, y0, t, **arguments):
    y0 = y0.clone().requires_grad_()
    ys = solve(func, y0, t, **arguments)
    weight = torch.linspace(0.5, 1.5, ys.numel(), dtype=ys.dtype).reshape(ys.shape)
    return torch.autograd.grad((weight * ys).sum(), [y0, func.a, func.b])


# The same values and gradients


def theirs(method):
    """Arguments with which torchdiffeq finds the exact solution, or for fixed steps the same
    one.
    """
    return (
        {"rtol": 1e-10, "atol": 1e-10}
        if method in ADAPTIVE
        else {"method": method, "options": {"step_size": 0.1}}
    )


# Methods of low order, and tolerances at which they do not take too long.
TOLERANCES = {"fehlberg2": 1e-6, "adaptive_heun": 1e-5, "bosh3": 1e-8}
LOOSE = {"fehlberg2": 1e3, "adaptive_heun": 1e3}


def ours(method):
    tolerance = TOLERANCES.get(method, 1e-9)
    return {
        "method": method,
        **({"rtol": tolerance, "atol": tolerance} if method in ADAPTIVE else theirs(method)),
    }


@functools.cache
def found_there(what, method, ends, number):
    """torchdiffeq's values, or gradients, at `number` times."""
    t = torch.linspace(*ends, number, dtype=F64)
    if what == "gradients":
        return gradients(torchdiffeq.odeint, Free(), Y0, t, **theirs(method))
    with torch.no_grad():
        return torchdiffeq.odeint(Free(), Y0, t, **theirs(method))


def expected_of(what, method, ends, number):
    """The exact solution is found once for all methods with adaptive steps."""
    return found_there(what, "dopri5" if method in ADAPTIVE else method, ends, number)


@EVERY
@WAYS
def test_values_are_torchdiffeqs(method, ends):
    """Their own dopri8 is not as exact between steps, where it is of order four: 5e-6 here."""
    t = torch.linspace(*ends, 7, dtype=F64)
    with torch.no_grad():
        found = odeint(Net(), Y0, t, **ours(method))
    expected = expected_of("values", method, ends, 7)
    assert torch.equal(found[0], Y0)
    close(found, expected, 1e-6 * LOOSE.get(method, 1) if method in ADAPTIVE else 1e-13)


@pytest.mark.parametrize("method", STEPPED)
@WAYS
def test_steps_of_a_size_are_torchdiffeqs(method, ends):
    """Outputs between steps are on straight lines; a step that is wider than the interval is as
    wide as that.
    """
    t = torch.tensor(
        [ends[0], 0.2, 0.65, ends[1]] if ends[1] > ends[0] else [ends[0], 0.65, 0.2, ends[1]],
        dtype=F64,
    )
    for size in (0.1, 0.13, 0.37, 5.0):
        arguments = {"method": method, "options": {"step_size": size}}
        with torch.no_grad():
            found = odeint(Net(), Y0, t, **arguments)
            expected = torchdiffeq.odeint(Free(), Y0, t, **arguments)
        torch.testing.assert_close(
            found, expected, rtol=1e-13, atol=1e-13, msg=lambda text, size=size: f"{size}: {text}"
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_defaults(dtype):
    """In float32 too, where the default rtol is less than the spacing of numbers."""
    t = torch.linspace(0, 1.3, 5, dtype=dtype)
    y0 = Y0.to(dtype)
    net = Net(high=float(t[-1]), dtype=dtype)
    ours = odeint(net, y0, t)
    assert ours.dtype == dtype
    close(ours, torchdiffeq.odeint(Free(dtype=dtype), y0, t), 2e-6)


@EVERY
@WAYS
def test_gradients_are_torchdiffeqs(method, ends):
    t = torch.linspace(*ends, 5, dtype=F64)
    expected = expected_of("gradients", method, ends, 5)
    for a, b in zip(gradients(odeint, Net(), Y0, t, **ours(method)), expected, strict=True):
        close(a, b, 1e-5 * LOOSE.get(method, 1) if method in ADAPTIVE else 1e-12)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
@WAYS
def test_gradients_of_the_adjoint(method, ends):
    """Those of torchdiffeq's adjoint on a fixed grid; with adaptive steps those through the
    solver.
    """
    t = torch.linspace(*ends, 4, dtype=F64)
    solve = torchdiffeq.odeint if method in ADAPTIVE else torchdiffeq.odeint_adjoint
    expected = gradients(solve, Free(), Y0, t, **theirs(method))
    for a, b in zip(gradients(odeint_adjoint, Net(), Y0, t, **ours(method)), expected, strict=True):
        close(a, b, 1e-5 if method in ADAPTIVE else 1e-12)


def test_gradients_by_finite_differences():
    a = torch.randn(2, 2, dtype=F64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    y0 = Y0[:2].clone().requires_grad_()

    for solve, more in ((odeint, {}), (odeint_adjoint, {"adjoint_params": (a,)})):

        def ends(a, y0, solve=solve, more=more):
            more = {"adjoint_params": (a,)} if more else {}
            return solve(
                lambda t, y: torch.sin(y @ a), y0, [0.0, 0.4, 1.0], rtol=1e-9, atol=1e-9, **more
            )

        assert torch.autograd.gradcheck(ends, (a, y0), atol=1e-5, fast_mode=True)


def test_the_adjoint_of_a_tuple_with_what_does_not_matter():
    """A parameter that is not used, a constant slope, and a part without elements."""
    unused = torch.ones(3, dtype=F64, requires_grad=True)
    p = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def func(t, state):
        x, w, none = state
        return -p * x, torch.ones_like(w), none

    x0 = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    w0 = torch.tensor(0.0, dtype=F64)
    x, w, _ = odeint_adjoint(
        func, (x0, w0, x0.new_zeros(0)), [0.0, 0.5, 1.0], adjoint_params=(p, unused)
    )
    close(w, torch.tensor([0.0, 0.5, 1.0], dtype=F64), 1e-9)
    found = torch.autograd.grad(x[1:].sum(), [x0, p, unused])
    decay = math.exp(-0.35), math.exp(-0.7)
    close(found[0], torch.full((2,), sum(decay), dtype=F64), 1e-7)
    close(found[1], torch.tensor(-3 * (0.5 * decay[0] + decay[1]), dtype=F64), 1e-7)
    assert torch.equal(found[2], torch.zeros(3, dtype=F64))


def test_the_adjoint_gives_first_derivatives_only_and_says_so():
    y0 = Y0.clone().requires_grad_()
    ys = odeint_adjoint(Net(), y0, [0.0, 1.0])
    (gradient,) = torch.autograd.grad(ys[-1].square().sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="of first order only"):
        gradient.sum().backward()
    y0 = Y0[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        odeint(Net(), y0, [0.0, 1.0])[-1].sum(), y0, create_graph=True
    )
    assert torch.autograd.grad(gradient.sum(), y0)[0].abs().max() > 0


def test_the_way_back_may_differ():
    t = torch.tensor([0.0, 1.3], dtype=F64)
    net = Net()
    arguments = {"method": "dopri5", "rtol": 1e-8, "atol": 1e-8}
    same = gradients(odeint_adjoint, net, Y0, t, **arguments)
    other = gradients(
        odeint_adjoint,
        net,
        Y0,
        t,
        **arguments,
        adjoint_method="dopri8",
        adjoint_rtol=1e-10,
        adjoint_atol=1e-10,
    )
    for a, b in zip(same, other, strict=True):
        assert not torch.equal(a, b)
        close(a, b, 1e-6)


# Shapes


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_any_shape(shape, method):
    y0 = torch.rand(shape, dtype=F64)
    ys = odeint(lambda t, y: -y, y0, [0.0, 0.05, 0.1], method=method)
    assert ys.shape == (3, *shape)
    close(ys[-1], y0 * math.exp(-0.1), 1e-7)


def test_what_is_not_contiguous():
    y0 = torch.rand(4, 3, dtype=F64).T
    close(odeint(lambda t, y: -y, y0, [0.0, 1.0])[-1], y0 / math.e, 1e-7)
    wide = torch.ones(1, dtype=F64).expand(4)
    close(odeint(lambda t, y: -y, wide, [0.0, 1.0])[-1], wide / math.e, 1e-7)


@pytest.mark.parametrize("method", ["dopri5", "midpoint"])
def test_tuples(method):
    y0 = (torch.rand(2, 3, dtype=F64), torch.tensor(0.3, dtype=F64), torch.rand(4, dtype=F64))

    def func(t, state):
        x, s, v = state
        assert (x.shape, s.shape, v.shape) == ((2, 3), (), (4,))
        return torch.cos(t) * x, -s + x.sum(), [v * s][0]

    t = torch.linspace(0.5, 0.0, 5, dtype=F64)
    ours, theirs = (solve(func, y0, t, method=method) for solve in (odeint, torchdiffeq.odeint))
    assert isinstance(ours, tuple)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-6 if method == "dopri5" else 1e-12)


def test_a_small_part_of_a_tuple_is_not_lost_in_a_large_one():
    """The error of a part is its own, as in torchdiffeq: among 10,000 numbers at rest one that
    moves is as exact as alone.
    """
    y0 = (torch.zeros(10_000, dtype=F64), torch.tensor(1.0, dtype=F64))

    def func(t, state):
        return torch.zeros_like(state[0]), state[1] * torch.cos(20 * t)

    exact = math.exp(math.sin(40.0) / 20)
    _, found = odeint(func, y0, [0.0, 2.0], rtol=1e-6, atol=1e-6)
    alone = odeint(lambda t, y: y * torch.cos(20 * t), y0[1], [0.0, 2.0], rtol=1e-6, atol=1e-6)
    assert torch.equal(found, alone)
    assert abs(float(found[-1]) - exact) < 2e-5


def test_tolerances_of_elements_that_are_all_equal_are_one_tolerance():
    def func(t, state):
        small, large = state
        return 0.1 * torch.cos(20 * t) * small, large * (1 + torch.sin(5 * t))

    y0 = (torch.ones(3, dtype=F64), torch.linspace(0.5, 1.0, 2, dtype=F64))
    elements = [torch.full_like(part, 1e-6) for part in y0]
    one, each = (odeint(func, y0, [0.0, 2.0], rtol=rtol, atol=1e-9) for rtol in (1e-6, elements))
    for a, b in zip(one, each, strict=True):
        close(a, b, 1e-12)


def test_the_small_tolerance_of_an_element_is_kept():
    """Of e^{sin(20 t) / 20}: 1e-9 for one element beside 1e-2 for another."""
    y0 = torch.ones(2, dtype=F64)
    rtol = torch.tensor([1e-9, 1e-2], dtype=F64)
    ys = odeint(lambda t, y: y * torch.cos(20 * t), y0, [0.0, 2.0], rtol=rtol, atol=0.0)
    assert abs(float(ys[-1, 0]) - math.exp(math.sin(40.0) / 20)) < 1e-7


def test_nothing_to_do():
    def never(t, y):
        raise AssertionError

    for y0, t in (
        (torch.ones(2, 3), torch.tensor([0.5])),
        (torch.ones(0, 3), torch.tensor([0.0, 1.0])),
        (torch.ones(0), [0.0]),
    ):
        ys = odeint(never, y0, t)
        assert ys.shape == (len(t), *y0.shape)
        assert torch.equal(ys[0], y0)
    (ys,) = odeint(never, (torch.ones(2),), torch.tensor([0.5]), method="euler")
    assert torch.equal(ys, torch.ones(1, 2))


def test_slopes_may_be_of_another_dtype():
    close(
        odeint(lambda t, y: torch.ones(3, dtype=F64), torch.zeros(3), [0.0, 1.0])[-1],
        torch.ones(3),
        1e-6,
    )
    close(
        odeint(lambda t, y: torch.ones(3), torch.zeros(3, dtype=F64), [0.0, 1.0])[-1],
        torch.ones(3, dtype=F64),
        1e-6,
    )


@pytest.mark.parametrize(
    "func", [lambda a, b: a, lambda t, y: y.sum(), lambda t, y: y[:, :1], lambda t, y: y.T]
)
def test_slopes_of_another_shape_are_refused(func):
    """Arguments in scipy's order among them, which would be solved as dy = t dt."""
    with pytest.raises(ValueError, match=r"for a state of shapes \[\(2, 3\)\]; return the state's"):
        odeint(func, torch.ones(2, 3), torch.tensor([0.0, 1.0]))


def test_times_have_one_dimension():
    with pytest.raises(ValueError, match=r"t must have one dimension.*shape \(1, 2\)"):
        odeint(lambda t, y: y, torch.ones(2), torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"'first_step'.*must be positive, not -1"):
        odeint(
            lambda t, y: y, torch.ones(2), torch.tensor([0.0, 1.0]), options={"first_step": -1.0}
        )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes(mode):
    with mode():
        ys = odeint(Net(), Y0, [0.0, 1.0])
    assert not ys.requires_grad


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    odeint(Net(), Y0, [0.0, 1.0])
    odeint(Net(), Y0, [0.0, 1.0], method="euler", options={"step_size": 0.1})
    assert torch.equal(torch.rand(1), expected)


# Steps


@EVERY
def test_func_is_asked_within_the_interval_only(method):
    """Where the last step ends depends on how the ends are rounded."""
    for ends, dtype in itertools.product(
        ((0.1, 0.1 + 0.2), (0.7, 0.1), (1e-3, 1e3)), (torch.float64, torch.float32)
    ):
        t = torch.tensor(ends, dtype=dtype)
        asked = []
        span = abs(ends[1] - ends[0])
        options = {"step_size": span / 9.5} if method in FIXED else {"first_step": 2 * span}
        for given in (options, {}):
            odeint(
                lambda t, y, asked=asked: asked.append(t) or -y / 100,
                torch.ones(2, dtype=dtype),
                t,
                method=method,
                rtol=1e-3 if method in LOOSE else 1e-5,
                options=given,
            )
        assert t.min() <= min(asked), (ends, dtype)
        assert max(asked) <= t.max(), (ends, dtype)


@pytest.mark.parametrize("method", SHARED)
def test_evaluations_are_about_torchdiffeqs(method):
    """For 20 time units of a pendulum: its steps differ by the last one, and by those of outputs
    with dopri8.
    """
    calls = [0, 0]
    t = torch.linspace(0, 20, 5, dtype=F64)

    def pendulum(i):
        def func(t, y):
            calls[i] += 1
            return torch.stack([y[1], -torch.sin(y[0])])

        return func

    y0 = torch.tensor([1.5, 0.0], dtype=F64)
    for i, solve in enumerate((odeint, torchdiffeq.odeint)):
        tolerance = {"bosh3": 1e-5, "fehlberg2": 1e-4, "adaptive_heun": 1e-3}.get(method, 1e-6)
        solve(pendulum(i), y0, t, method=method, rtol=tolerance, atol=tolerance)
    # torchdiffeq leaves out the slope at the end of a step of the two methods of order two, and
    # takes that at a predicted point.
    more = {"adaptive_heun": 2, "fehlberg2": 1.5}.get(method, 1)
    assert calls[0] < 1.15 * more * calls[1] + 5


def test_options_of_adaptive_steps():
    net = Net()
    t = torch.tensor([0.0, 1.3], dtype=F64)
    with torch.no_grad():
        exact = odeint(net, Y0, t, rtol=1e-10, atol=1e-10)
        for options in (
            {"first_step": 0.01},
            {"safety": 0.7, "ifactor": 3.0, "dfactor": torch.tensor(0.5)},
            {"first_step": None},
        ):
            close(odeint(net, Y0, t, rtol=1e-6, atol=1e-6, options=options), exact, 1e-5)
        close(odeint(net, Y0, t, rtol=torch.tensor(1e-6), atol=torch.tensor([1e-6])), exact, 1e-5)


def test_the_limit_of_steps():
    t = torch.linspace(0, 20, 11, dtype=F64)

    def func(t, y):
        return torch.cos(10 * t) * y

    # On average an interval.
    assert odeint(func, Y0, t, options={"max_num_steps": 100}).isfinite().all()
    with pytest.raises(UnfinishedError, match=r"max_steps was not enough.*'max_num_steps'"):
        odeint(func, Y0, t, options={"max_num_steps": 4})


# What is handed over


def refused(*_, **__):
    raise AssertionError("handed over")


@pytest.fixture
def alone(monkeypatch):
    """torchdiffeq solves nothing."""
    monkeypatch.setattr("sdekit.interop._odeint.torchdiffeq_odeint", refused)
    monkeypatch.setattr("sdekit.interop._odeint_adjoint.torchdiffeq_adjoint", refused)


@pytest.mark.parametrize("method", ["implicit_adams", "explicit_adams", "scipy_solver"])
@pytest.mark.parametrize("adjoint", [False, True])
def test_other_methods_are_handed_over(method, adjoint, monkeypatch):
    seen = []
    name = "odeint_adjoint" if adjoint else "odeint"
    original = getattr(torchdiffeq, name)

    def spy(*positional, **keywords):
        seen.append(keywords)
        return original(*positional, **keywords)

    where = "_odeint_adjoint.torchdiffeq_adjoint" if adjoint else "_odeint.torchdiffeq_odeint"
    monkeypatch.setattr(f"sdekit.interop.{where}", spy)
    arguments = {"t": torch.tensor([0.0, 1.0], dtype=F64), "method": method}
    func = Free()
    found = getattr(sdekit, name)(func, Y0, **arguments)
    assert len(seen) == 1
    torch.testing.assert_close(found, original(func, Y0, **arguments), rtol=0, atol=0)


# Options of adaptive steps


ORBIT = torch.tensor([1.0 + 0.5j, -0.3 + 1.0j], dtype=torch.complex128)
SAME = {
    "fehlberg2": {
        "method": "fehlberg2",
        "rtol": 4e-9,
        "atol": 4e-9,
        "t": torch.linspace(0.0, 0.25, 4, dtype=F64),
    },
    "largest error": {"method": "dopri5", "options": {"norm": lambda y: y.abs().max()}},
    "longest step": {"method": "dopri5", "options": {"max_step": 0.05, "first_step": 0.01}},
    "tolerances of elements": {
        "rtol": torch.full((5, 2), 1e-9),
        "atol": torch.rand(5, 2, generator=torch.Generator().manual_seed(3)) * 1e-8,
    },
    "complex": {"y0": ORBIT, "func": lambda t, y: (1j - 0.2 * t) * y},
    "complex, a tuple": {
        "y0": (ORBIT, ORBIT[:1]),
        "func": lambda t, y: (1j * y[0] * y[1].sum(), -y[1]),
        "rtol": (1e-9, torch.tensor(1e-10)),
        "options": {"norm": lambda y: max(part.abs().max() for part in y)},
        "method": "dopri5",
    },
    "dtype of times": {"method": "dopri5", "options": {"dtype": torch.float64}},
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SAME)
def test_what_torchdiffeq_solves_is_solved_here(name):
    arguments = {"func": Free(), "y0": Y0, "t": torch.linspace(0.0, 1.0, 4, dtype=F64)}
    arguments |= SAME[name]
    found, expected = (solve(**arguments) for solve in (odeint, torchdiffeq.odeint))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_adaptive_heun_is_exact_at_its_tolerance():
    """torchdiffeq's own takes the slope at a predicted point for that at the end."""
    t = torch.linspace(0.0, 1.0, 3, dtype=F64)
    found = odeint(lambda t, y: -y, Y0, t, method="adaptive_heun", rtol=3e-7, atol=1e-9)
    close(found, Y0 * torch.exp(-t)[:, None, None], 1e-6)


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("adjoint", [False, True])
def test_func_is_asked_on_the_right_side_of_a_jump(dtype, ends, adjoint):
    """The slope is 1 before a half, 3 after it and NaN there; so steps end there."""
    asked = []

    def func(t, y):
        asked.append(float(t))
        rate = torch.where(t < 0.5, 1.0, torch.where(t > 0.5, 3.0, math.nan))
        return rate.to(y) * torch.ones_like(y)

    y0 = torch.zeros(2, dtype=dtype, requires_grad=True)
    solve, more = (odeint_adjoint, {"adjoint_params": ()}) if adjoint else (odeint, {})
    options = {"jump_t": torch.tensor([0.5, 7.0])}
    ys = solve(func, y0, ends, method="dopri5", options=options, **more)
    close(ys[-1], torch.full_like(y0, 2.0 * (ends[1] - ends[0])), 1e-6)
    assert len(asked) < 100
    ys.sum().backward()
    close(y0.grad, torch.full_like(y0, 2.0), 1e-6)


def test_steps_end_where_they_are_asked_to():
    class Watched(Net):
        def callback_accept_step(self, t0, y0, dt):
            ends.append(float(t0 + dt))

    ends = []
    options = {"step_t": torch.tensor([0.3, 0.9, 0.4, -1.0])}
    odeint(Watched(), Y0, [0.0, 1.0], method="dopri5", options=options)
    for t in (0.3, 0.4, 0.9):
        assert min(abs(t - end) for end in ends) < 1e-7
    with pytest.raises(ValueError, match="must not have any time twice"):
        odeint(Net(), Y0, [0.0, 1.0], options={"step_t": [0.5], "jump_t": [0.5]})


def test_times_of_steps_and_jumps_are_in_double_precision():
    """A list of numbers is, whatever torch's default dtype."""

    class Watched(Net):
        def callback_accept_step(self, t0, y0, dt):
            ends.append(float(t0 + dt))

    ends = []
    for name in ("jump_t", "step_t"):
        for times in ([0.7], (torch.tensor(0.7, dtype=F64),)):
            ends.clear()
            odeint(Watched(), Y0.double(), [0.0, 1.0], method="dopri5", options={name: times})
            assert min(abs(0.7 - end) for end in ends) < 1e-15


def test_a_step_that_a_time_has_cut_does_not_shorten_the_next():
    """A step of 1e-6 between two times, after which the steps would have to grow again."""

    def evaluations(stops):
        net = Net(high=10.0)
        odeint(net, Y0, [0.0, 10.0], method="dopri5", rtol=1e-4, options={"step_t": stops})
        return int(net.calls)

    assert evaluations([1.0, 1.0 + 1e-6]) <= evaluations([1.0]) + 12


def test_a_shortest_step_is_accepted_whatever_its_error():
    asked = []

    def func(t, y):
        asked.append(float(t))
        return torch.cos(30 * t) * y

    options = {"min_step": 0.25}
    ys = odeint(func, Y0, [0.0, 1.0], rtol=1e-9, method="dopri5", options=options)
    assert len(asked) < 32
    assert not torch.allclose(ys[-1], Y0 * math.exp(math.sin(30.0) / 30), rtol=1e-6)
    with pytest.raises(UnfinishedError, match="NaN"):
        odeint(lambda t, y: y * math.nan, Y0, [0.0, 1.0], options={"min_step": 0.25})


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("dopri5", {"step_size": 0.1}, "the method 'dopri5' has no option 'step_size'"),
        ("rk4", {"step_siz": 0.1}, "has no option 'step_siz'.*did you mean 'step_size'"),
    ],
)
def test_unknown_options_are_named(method, options, said):
    with pytest.warns(UserWarning, match=said):
        odeint(Net(), Y0, [0.0, 1.0], method=method, options=options)


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"rtol": torch.full((5, 2), -1.0)}, ValueError, "rtol has tolerances, from 0 on"),
        ({"options": {"norm": 2}}, TypeError, r"options\['norm'\] is a function"),
        ({"method": "rk4", "options": {"interp": "cubik"}}, ValueError, "did you mean 'cubic'"),
        ({"method": "rk4", "options": {"step_size": math.inf}}, ValueError, "positive, not inf"),
        (
            {"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": torch.sin}},
            ValueError,
            "give one",
        ),
        (
            {"method": "rk4", "options": {"grid_constructor": lambda f, y0, t: t + 1}},
            ValueError,
            r"grid_constructor returned times from 1\.0 to 2\.0",
        ),
    ],
)
def test_options_are_checked(more, error, said):
    with pytest.raises(error, match=said):
        odeint(Net(), Y0, [0.0, 1.0], **more)
    with pytest.raises(ValueError, match=r"each of its 2 parts, not 3"):
        odeint(lambda t, y: y, (Y0, Y0), [0.0, 1.0], rtol=(1e-3, 1e-3, 1e-3))


# Options of fixed steps


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("method", ["euler", "heun2", "rk4"])
@WAYS
def test_cubics_and_constructed_grids_are_torchdiffeqs(method, ends):
    t = torch.tensor([ends[0], 0.65, ends[1]], dtype=F64)

    def constructed(func, y0, t):
        return t[0] + (t[-1] - t[0]) * torch.linspace(0, 1, 8, dtype=F64) ** 2

    for options in (
        {"step_size": 0.2, "interp": "cubic"},
        {"grid_constructor": constructed},
        {"step_size": 0.2, "perturb": True},
    ):
        arguments = {"method": method, "options": options}
        with torch.no_grad():
            found = odeint(Net(), Y0, t, **arguments)
            close(found, torchdiffeq.odeint(Free(), Y0, t, **arguments), 1e-12)


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_perturbed_times_are_within_the_steps(dtype):
    asked = []
    options = {"step_size": 0.25, "perturb": True}
    y0 = torch.ones(2, dtype=dtype)
    odeint(lambda t, y: asked.append(float(t)) or -y, y0, [0.0, 1.0], method="rk4", options=options)
    assert not {0.0, 0.25, 0.5, 0.75, 1.0} & set(asked)
    assert 0 < min(asked) < 1e-30
    assert 1 - 2 * torch.finfo(dtype).eps <= max(asked) < 1


# Callbacks


@pytest.mark.parametrize("adjoint", [False, True])
def test_callbacks_are_called(adjoint):
    """With times that run as t does, |dt| and the state in its shape; a rejected step is followed
    by a shorter one from the same time.
    """

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []
            suffixes = ("", "_adjoint") if adjoint else ("",)
            for suffix in suffixes:
                for name in ("step", "accept_step", "reject_step"):
                    setattr(self, f"callback_{name}{suffix}", self.noted(name + suffix))

        def noted(self, name):
            return lambda t0, y0, dt: self.seen.append((name, float(t0), y0, float(dt)))

        def forward(self, t, y):
            return (-y[0] / (1e-3 + (t - 0.5) ** 2) / 300,)

    func = Watched()
    solve = odeint_adjoint if adjoint else odeint
    y0 = (torch.ones(2, 3, dtype=F64, requires_grad=True),)
    (ys,) = solve(func, y0, [1.0, 0.0], rtol=1e-4, atol=1e-4, options={"first_step": 0.3})
    names = [name for name, *_ in func.seen]
    assert set(names) == {"step", "accept_step", "reject_step"}
    assert names[::2] == ["step"] * (len(names) // 2)
    for (_, t, y, dt), (name, t1, y1, dt1), (_, t2, _, dt2) in zip(
        func.seen[::2], func.seen[1::2], func.seen[2::2], strict=False
    ):
        assert (t, dt) == (t1, dt1)
        assert dt > 0
        assert y[0].shape == (2, 3)
        assert y1[0] is not None
        assert t2 == (pytest.approx(t - dt) if name == "accept_step" else t)
        assert name == "accept_step" or dt2 < dt
    if adjoint:
        func.seen.clear()
        ys[-1].sum().backward()
        assert {"step_adjoint", "accept_step_adjoint"} <= {name for name, *_ in func.seen}
        assert len(func.seen[0][2]) == 3  # 0, y and a


def test_callbacks_of_fixed_steps():
    class Watched(Net):
        def callback_step(self, t0, y0, dt):
            seen.append((float(t0), float(dt)))
            self.spoil and y0.mul_(2)

        def callback_accept_step(self, t0, y0, dt):
            raise AssertionError

        spoil = False

    seen = []
    func = Watched()
    with pytest.warns(UserWarning, match="does not call callback_accept_step"):
        odeint(func, Y0, [0.0, 1.0], method="heun3", options={"step_size": 0.4})
    assert seen == [(0.0, 0.4), (0.4, 0.4), (0.8, pytest.approx(0.2))]
    func.spoil = True
    with (
        pytest.warns(UserWarning, match="does not call"),
        torch.no_grad(),
        pytest.raises(RuntimeError, match=r"callback_step\(t0, y0, dt\) changes"),
    ):
        odeint(func, Y0, [0.0, 1.0], method="heun3", options={"step_size": 0.4})


# Derivatives with respect to times


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "euler", "rk4"])
@pytest.mark.parametrize("adjoint", [False, True])
def test_derivatives_with_respect_to_times(method, adjoint):
    """Of adaptive steps those of the exact solution, of fixed steps those of the steps."""
    if adjoint and method in FIXED:
        return  # the adjoint equation's own steps are other ones
    func = Free()
    t = torch.tensor([0.1, 0.5, 1.2], dtype=F64, requires_grad=True)
    y0 = Y0[:1].clone().requires_grad_()
    more = {"rtol": 1e-10, "atol": 1e-10} if method in ADAPTIVE else {}
    more |= {"adjoint_params": tuple(func.parameters())} if adjoint else {}
    solve = odeint_adjoint if adjoint else odeint
    assert torch.autograd.gradcheck(
        lambda y0, t: solve(func, y0, t, method=method, **more),
        (y0, t),
        atol=1e-6,
        fast_mode=True,
    )


def test_a_step_size_has_derivatives_with_respect_to_its_ends():
    t = torch.tensor([0.1, 1.2], dtype=F64, requires_grad=True)
    arguments = {"method": "heun2", "options": {"step_size": 0.3}}
    found, expected = (
        torch.autograd.grad(solve(Free(), Y0, t, **arguments)[-1].sum(), t)[0]
        for solve in (odeint, torchdiffeq.odeint)
    )
    close(found, expected, 1e-12)


@pytest.mark.parametrize("constant", [True, False])
def test_a_grid_of_the_callers_with_derivatives_with_respect_to_its_ends(constant):
    """And of constant times, without a warning of torch that a time is read as a number."""
    t = torch.tensor([0.1, 1.2], dtype=F64, requires_grad=True)

    def constructor(func, y0, t):
        grid = t[0] + (t[-1] - t[0]) * torch.linspace(0, 1, 6, dtype=F64)
        return grid.detach() if constant else grid

    arguments = {"method": "heun2", "options": {"grid_constructor": constructor}}
    ys, theirs = (solve(Free(), Y0, t, **arguments) for solve in (odeint, torchdiffeq.odeint))
    close(ys, theirs, 1e-12)
    if not constant:
        found = torch.autograd.grad(ys[-1].sum(), t)[0]
        close(found, torch.autograd.grad(theirs[-1].sum(), t)[0], 1e-12)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_a_time_at_the_end_of_a_step_has_derivatives(interp):
    """As the time just before; those of the cubic are torchdiffeq's, whose line has none there."""
    options = {"step_size": 0.1, "interp": interp}

    def slopes(solve, time):
        t = torch.tensor([0.0, time, 1.0], dtype=F64, requires_grad=True)
        y = solve(lambda t, y: -y, torch.ones(1, dtype=F64), t, method="rk4", options=options)
        return torch.autograd.grad(y[1].sum(), t)[0]

    found = slopes(odeint, 0.5)
    close(found, slopes(odeint, 0.5 - 1e-9), 1e-6)
    if interp == "cubic":
        close(found, slopes(torchdiffeq.odeint, 0.5), 1e-12)


def test_times_that_require_gradients_leave_second_derivatives_of_states():
    """y = y0 / (1 + w t y0) at t = 1: d y / d y0 = 1 / (1 + w y0)^2."""
    w = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    ys = odeint(lambda t, y: -w * y**2, y0, t, rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
    found = torch.autograd.grad(slope.sum(), (y0, w))
    for value, exact in zip(found, (-0.25, -0.25), strict=True):
        assert float(value) == pytest.approx(exact, abs=1e-8)


def test_second_derivatives_that_would_be_incomplete_are_refused():
    """Those with respect to times, and those by the adjoint equation, which has a graph of its own;
    first ones with create_graph=True are what they are without.
    """
    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    w = torch.nn.Parameter(torch.tensor(0.5, dtype=F64))
    func = torch.nn.Module()
    func.w = w
    func.forward = lambda t, y: -func.w * y**2
    for solve, inputs, name in (
        (odeint, (t,), "derivatives with respect to t"),
        (odeint_adjoint, (y0, w), "derivatives by the adjoint equation"),
    ):
        first, plain = (
            torch.autograd.grad(solve(func, y0, t)[-1].sum(), inputs, create_graph=recorded)
            for recorded in (True, False)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, plain, strict=True))
        with pytest.raises(RuntimeError, match=f"{name} are of first order only"):
            torch.autograd.grad(first[0].sum(), y0)


def test_a_safety_of_one_ends():
    """A step to the last time that is a tenth longer is rejected, and was proposed again."""
    for rate in torch.linspace(0.2, 5.0, 40).tolist():
        ys = odeint(
            lambda t, y, rate=rate: -rate * y, torch.ones(1, dtype=F64), [0.0, 1.0], rtol=1e-5,
            atol=1e-5, options={"safety": 1.0, "max_num_steps": 1000},
        )  # fmt: skip
        assert float(ys[-1]) == pytest.approx(math.exp(-rate), abs=1e-4)


def test_there_are_no_second_derivatives_with_respect_to_times():
    t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    ys = odeint(lambda t, y: 2 * y, torch.ones(1, dtype=F64), t)
    (by_t,) = torch.autograd.grad(ys[-1].square().sum(), t, create_graph=True)
    close(by_t[1], 4 * ys[-1, 0] ** 2, 1e-6)
    with pytest.raises(RuntimeError, match="of first order only"):
        by_t[1].backward()


# Events


def ball(t, y):
    """Height and speed under a gravity of one."""
    return torch.stack([y[1], -torch.ones_like(y[1])])


THROWN = torch.tensor([3.0, 0.5], dtype=F64)
LANDING = 0.5 + math.sqrt(0.25 + 6)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("adjoint", [False, True])
def test_an_event_ends_a_solve(adjoint):
    solve, more = (odeint_adjoint, {"adjoint_params": ()}) if adjoint else (odeint, {})
    t = torch.tensor([0.25, 0.3], dtype=torch.float32)
    when, ys = solve(ball, THROWN, t, event_fn=lambda t, y: y[0], **more)
    assert when.dtype == torch.float32
    assert float(when) == pytest.approx(0.25 + LANDING, abs=1e-6)
    assert torch.equal(ys[0], THROWN)
    close(ys[1], torch.tensor([0.0, 0.5 - LANDING], dtype=F64), 1e-9)
    backwards, _ = solve(ball, THROWN, [0.0, -1.0], event_fn=lambda t, y: y[0], **more)
    assert float(backwards) == pytest.approx(1.0 - LANDING, abs=1e-9)
    ceiling, ys = solve(  # the first of two
        ball, THROWN, [0.0, 1.0], event_fn=lambda t, y: torch.stack([y[0], 3.1 - y[0]]),
        options={"max_step": 0.1}, **more,
    )  # fmt: skip
    assert float(ys[1][0]) == pytest.approx(3.1, abs=1e-9)
    assert float(ceiling) == pytest.approx(0.5 - math.sqrt(0.05), abs=1e-9)
    now, ys = solve(ball, THROWN, [0.25, 1.0], event_fn=lambda t, y: y[0] - 3.0, **more)
    assert float(now) == 0.25
    assert torch.equal(ys[1], THROWN)
    (state,) = solve(
        lambda t, y: (ball(t, y[0]),), (THROWN,), [0.0, 1.0], event_fn=lambda t, y: y[0][0], **more
    )[1]
    close(state[1][1], torch.tensor(0.5 - LANDING, dtype=F64), 1e-9)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_events_of_fixed_steps_are_torchdiffeqs(method, interp):
    arguments = {"method": method, "options": {"step_size": 0.04, "interp": interp}}
    t = torch.tensor([0.0, 1.0], dtype=F64)
    found, expected = (
        solve(ball, THROWN, t, event_fn=lambda t, y: y[0] - 0.1 * t, **arguments)
        for solve in (odeint, torchdiffeq.odeint)
    )
    close(found[0], expected[0], 1e-8)
    close(found[1], expected[1], 1e-8)


def test_what_is_no_event_is_said(monkeypatch):
    """As many steps as torchdiffeq makes are 20,000, which are not all made here."""
    assert _odeint.MOST == _crossing.MOST == 20_000
    for module in (_odeint, _crossing):
        monkeypatch.setattr(module, "MOST", 1000)

    def never(t, y):
        return y[0] + 1e9

    for more, said in (
        ({"event_fn": lambda t, y: y[0] * math.nan}, "event_fn.* is NaN at t = 0"),
        ({"event_fn": never, "method": "rk4"}, "fixed steps need a width"),
        (
            {"event_fn": never, "method": "euler", "options": {"step_size": 1e-6}},
            "has not changed its sign in 1,000 steps",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            odeint(ball, THROWN, [0.0, 1.0], **more)
    with pytest.raises(NotFiniteError, match="after step 3, at t = 3"):
        odeint(
            lambda t, y: torch.where(t > 1.5, math.nan, y), THROWN, [0.0, 1.0], method="euler",
            event_fn=never, options={"step_size": 1.0},
        )  # fmt: skip
    with pytest.raises(ValueError, match="not 3 times"):
        odeint(ball, THROWN, [0.0, 1.0, 2.0], event_fn=never)
    with pytest.raises(TypeError, match="must return a real tensor"):
        odeint(ball, THROWN, [0.0, 1.0], event_fn=lambda t, y: 1.0)
    with pytest.raises(UnfinishedError, match="max_steps was not enough"):
        odeint(
            ball, THROWN, [0.0, 1.0], event_fn=lambda t, y: 1 + 0 * y, options={"max_num_steps": 20}
        )


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_time_of_an_event_has_derivatives(adjoint, reverse):
    """With respect to the state, the first time, and parameters of func and of the event."""
    gravity, ground = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (1.0, 0.2))
    start = THROWN.clone().requires_grad_()
    t0 = torch.tensor(0.25, dtype=F64, requires_grad=True)
    solve = odeint_adjoint if adjoint else odeint
    more = {"adjoint_params": (gravity,)} if adjoint else {}
    when, ys = sdekit.odeint_event(
        lambda t, y: torch.stack([y[1], -gravity + 0 * y[1]]), start, t0, reverse_time=reverse,
        event_fn=lambda t, y: y[0] - ground, odeint_interface=solve, **more,
    )  # fmt: skip

    def closed(start, t0, gravity, ground):
        root = torch.sqrt(start[1] ** 2 + 2 * gravity * (start[0] - ground))
        time = (start[1] - root if reverse else start[1] + root) / gravity
        return t0 + time, start[1] - gravity * time

    inputs = (start, t0, gravity, ground)
    expected = closed(*inputs)
    for ours, theirs in zip((when, ys[1][1]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
        for a, b in zip(
            torch.autograd.grad(ours, inputs, retain_graph=True),
            torch.autograd.grad(theirs, inputs, retain_graph=True, materialize_grads=True,
                                allow_unused=True),
            strict=True,
        ):  # fmt: skip
            close(a, b, 1e-6)


@pytest.mark.parametrize("adjoint", [False, True])
def test_an_event_that_moves_has_derivatives(adjoint):
    """y_0 + t meets 2 + t / 2 at t = 4 - 2 y_0."""
    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    solve, more = (odeint_adjoint, {"adjoint_params": ()}) if adjoint else (odeint, {})
    when, ys = sdekit.odeint_event(
        lambda t, y: torch.ones_like(y), y0, torch.zeros((), dtype=F64),
        event_fn=lambda t, y: y - 2 - t / 2, odeint_interface=solve, **more,
    )  # fmt: skip
    close(when, torch.tensor(2.0, dtype=F64), 1e-8)
    for value, slope in ((when, -2.0), (ys[-1].sum(), -1.0)):
        (found,) = torch.autograd.grad(value, y0, retain_graph=True)
        close(found, torch.full_like(y0, slope), 1e-6)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
def test_an_event_within_a_step_has_derivatives(method):
    """Of e^{-k t} = 1/2, with respect to the initial state and k; at a fixed time for `odeint`."""
    k = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    options = {"step_size": 0.01, "interp": "cubic"} if method == "rk4" else None
    more = {"event_fn": lambda t, y: y - 0.5, "method": method, "options": options}
    _, ys = odeint(lambda t, y: -k * y, y0, [0.0, 1.0], **more)
    when, _ = sdekit.odeint_event(lambda t, y: -k * y, y0, torch.zeros((), dtype=F64), **more)
    log2 = math.log(2)
    for value, expected in ((ys[-1], (0.5, -0.5 * log2)), (when, (1.0, -log2))):
        found = torch.autograd.grad(value.sum(), [y0, k])
        close(torch.stack([found[0][0], found[1]]), torch.tensor(expected, dtype=F64), 1e-6)


def test_the_state_at_an_event_depends_on_the_first_time():
    """By fixed steps as by adaptive ones: the slope is t."""
    t = torch.tensor([0.2, 1.0], dtype=F64, requires_grad=True)
    start = torch.zeros(1, dtype=F64)
    for more in ({"method": "midpoint", "options": {"step_size": 0.1}}, {}):
        _, ys = odeint(lambda t, y: t + 0 * y, start, t, event_fn=lambda t, y: y - 0.3, **more)
        close(torch.autograd.grad(ys[1].sum(), t)[0][0], torch.tensor(-0.2, dtype=F64), 0.2)


def test_the_adjoint_differentiates_the_time_itself():
    start = THROWN.clone().requires_grad_()
    when, _ = odeint_adjoint(ball, start, [0.0, 1.0], event_fn=lambda t, y: y[0], adjoint_params=())
    root = math.sqrt(0.25 + 6)
    close(
        torch.autograd.grad(when, start)[0],
        torch.tensor([1 / root, 1 + 0.5 / root], dtype=F64),
        1e-6,
    )


# The adjoint's options


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "fehlberg2", "rtol": 1e-6, "atol": 1e-6},
        {"adjoint_options": {"norm": "seminorm"}},
        {"adjoint_options": {"norm": lambda state: max(part.abs().max() for part in state[1:3])}},
        {"method": "dopri5", "options": {"norm": lambda y: y.abs().max()}},
        {
            "method": "dopri5",
            "adjoint_method": "adaptive_heun",
            "adjoint_rtol": 1e-4,
            "adjoint_atol": 1e-5,
        },
    ],
)
def test_options_of_the_adjoint(arguments):
    t = torch.tensor([0.0, 1.0], dtype=F64)
    tolerances = {"rtol": 1e-7, "atol": 1e-7}
    found = gradients(odeint_adjoint, Free(), Y0, t, **(tolerances | arguments))
    for a, b in zip(found, gradients(odeint, Net(), Y0, t), strict=True):
        close(a, b, 1e-3)


def test_the_seminorm_leaves_the_parameters_out():
    """A parameter with a wild gradient, by which nothing else is changed."""

    class Wild(nn.Module):
        def __init__(self):
            super().__init__()
            self.wild = nn.Parameter(torch.tensor(0.0, dtype=F64))
            self.asked = 0

        def forward(self, t, y):
            self.asked += 1
            return -y + self.wild * torch.cos(150 * t)

    counts = []
    for options in ({}, {"norm": "seminorm"}):
        func = Wild()
        ys = odeint_adjoint(func, Y0, [0.0, 1.0], rtol=1e-5, atol=1e-5, adjoint_options=options)
        func.asked = 0
        ys[-1].sum().backward()
        counts.append(func.asked)
    assert 4 * counts[1] < counts[0]


def test_gradients_of_complex_states_are_torchdiffeqs():
    rate = torch.tensor(0.3 - 1.2j, dtype=torch.complex128, requires_grad=True)
    start = ORBIT.clone().requires_grad_()
    t = torch.linspace(0.0, 1.0, 3, dtype=F64)

    def loss(solve, **more):
        ys = solve(lambda t, y: rate * y, start, t, rtol=1e-9, atol=1e-9, **more)
        return torch.autograd.grad((ys.abs() + ys.real * ys.imag).sum(), (start, rate))

    expected = loss(torchdiffeq.odeint)
    for solve, more in ((odeint, {}), (odeint_adjoint, {"adjoint_params": (rate,)})):
        for a, b in zip(loss(solve, **more), expected, strict=True):
            close(a, b, 1e-6)


def test_a_func_without_parameters_has_to_name_them():
    with pytest.raises(ValueError, match="adjoint_params"):
        odeint_adjoint(lambda t, y: -y, Y0, [0.0, 1.0])
    with pytest.raises(ValueError, match="adjoint_options"):
        odeint_adjoint(
            Net(),
            Y0,
            [0.0, 1.0],
            method="dopri5",
            options={"first_step": 0.1},
            adjoint_method="rk4",
        )


# What cannot be solved


@pytest.mark.parametrize(
    ("method", "adjoint"), [*((method, False) for method in ADAPTIVE), ("dopri5", True)]
)
def test_what_cannot_be_solved_is_said(method, adjoint):
    """The adjoint's way there is that of every method."""
    solve = functools.partial(odeint_adjoint, adjoint_params=()) if adjoint else odeint

    def wall(t, y):
        return torch.where(t > 0.5, torch.nan, y)

    with pytest.raises(
        UnfinishedError,
        match=r"infinite or NaN however short the step, at t = "
        r"0.5\d*\); look at what func",
    ):
        solve(wall, torch.ones(2), [0.0, 1.0], method=method, rtol=1e-4, atol=1e-4)
    with pytest.raises(UnfinishedError, match="NaN"):
        solve(lambda t, y: y, torch.tensor([1.0, torch.nan]), [0.0, 1.0], method=method)
    start = torch.ones(1, dtype=F64)
    with pytest.raises(UnfinishedError, match=r"at t = (0\.99|1\)|1\.0)"):
        solve(lambda t, y: y * y, start, [0.0, 2.0], method=method, rtol=1e-3, atol=1e-3)


def test_a_nan_on_a_fixed_grid_is_said():
    def wall(t, y):
        return torch.where(t > 0.45, torch.nan, y)

    with pytest.raises(NotFiniteError, match="after step 6"):
        odeint(wall, torch.ones(2), [0.0, 1.0], method="euler", options={"step_size": 0.1})


def test_a_failure_on_the_way_back_is_said():
    class Once(nn.Module):
        back = False

        def forward(self, t, y):
            return y * torch.nan if self.back else y

    func = Once()
    y0 = torch.ones(2, requires_grad=True)
    ys = odeint_adjoint(func, y0, [0.0, 1.0], rtol=1e-5, atol=1e-5)
    func.back = True
    with pytest.raises(UnfinishedError, match="NaN"):
        ys.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"y0": torch.ones(2, dtype=torch.int64)},
            TypeError,
            r"not torch.int64; convert integers "
            r"with .float\(\)",
        ),
        ({"y0": [torch.ones(2)]}, TypeError, r"not list; .* a list with tuple\(\)"),
        ({"y0": 1.0}, TypeError, "not float"),
        ({"y0": ()}, TypeError, "an empty tuple"),
        (
            {"t": torch.tensor([0.0, 1.0, 0.5])},
            ValueError,
            "increase strictly or decrease strictly",
        ),
        ({"t": torch.tensor([1.0, 1.0])}, ValueError, "increase strictly or decrease strictly"),
        (
            {"t": torch.tensor([1.0, 1.0]), "method": "rk4"},
            ValueError,
            "increase strictly or decrease strictly",
        ),
        ({"t": torch.tensor([])}, ValueError, "at least two times"),
        ({"t": torch.tensor([0.0, torch.inf])}, ValueError, "not finite"),
        ({"rtol": 1e-9}, ValueError, r"below the rounding of torch.float32; ask for 1e-07 or more"),
        (
            {"y0": torch.ones(2, dtype=torch.float16)},
            ValueError,
            r"below the rounding of "
            r"torch.float16; ask for 0.001",
        ),
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "not both 0"),
        ({"rtol": -1.0}, ValueError, "from 0 on"),
        ({"method": "dopri6"}, ValueError, "method = 'dopri6' is not one of"),
        ({"method": "rodas4"}, ValueError, r"solve\(\.\.\., solver=Rodas4\(\.\.\.\)\) has it"),
        (
            {"method": "rk4", "options": {"step_size": 0.0}},
            ValueError,
            "step_size is the width of a step, positive",
        ),
        (
            {"method": "dopri5", "options": {"max_num_steps": 0}},
            ValueError,
            "must be positive, not 0",
        ),
        (
            {"func": lambda t, y: y[:1].expand(3)},
            ValueError,
            r"returned \[\(3,\)\] for a state of "
            r"shapes \[\(2,\)\]",
        ),
        ({"func": lambda t, y: 1.0}, TypeError, "returned float; it must return a tensor"),
        (
            {"func": lambda t, y: (y[0],), "y0": (torch.ones(2), torch.ones(1))},
            ValueError,
            "for a state of shapes",
        ),
        (
            {"func": lambda t, y: (y[0], 1.0), "y0": (torch.ones(2), torch.ones(1))},
            TypeError,
            "it must return 2 tensors",
        ),
    ],
)
def test_refusals(change, error, said):
    arguments = {
        "func": lambda t, y: -y,
        "y0": torch.ones(2),
        "t": torch.tensor([0.0, 1.0]),
    } | change
    with pytest.raises(error, match=said):
        odeint(**arguments)


# torchdiffeq as an engine for equations of ours


FLOW = ODE(lambda t, x: x * torch.cos(t))
ENGINES = [
    "dopri5",
    "dopri8",
    "bosh3",
    "fehlberg2",
    "adaptive_heun",
    "euler",
    "midpoint",
    "rk4",
    "explicit_adams",
]
ENGINES += ["implicit_adams", "scipy_solver"]


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("ends", [(0.0, 1.5), (1.5, 0.0)], ids=["forwards", "backwards"])
def test_every_method_of_torchdiffeq_solves_an_equation_of_ours(method, ends):
    asked = []
    ts = torch.linspace(*ends, 31 if method in ("dopri5", "dopri8") else 121, dtype=F64)
    tolerance = 1e-5 if method == "adaptive_heun" else 1e-6
    flow = ODE(lambda t, x: asked.append(float(t)) or x * torch.cos(t))
    x0 = torch.rand(3, 2, 2, dtype=F64)
    # Of order twelve, torchdiffeq's default, explicit_adams is unstable here.
    options = {"max_order": 4} if method == "explicit_adams" else None
    settings = {"rtol": tolerance, "atol": tolerance, "options": options, "save": "all"}
    solution = interop.solve_ode(flow, x0, ts, method=method, **settings)
    exact = x0 * torch.exp(torch.sin(ts) - math.sin(ends[0]))[:, None, None, None]
    close(solution.xs, exact, 2e-2 if method == "euler" else 1e-4)
    assert torch.equal(solution.xs[-1], solution.x)
    assert solution.evaluations.tolist() == [len(asked)] * 3
    assert 0.0 <= min(asked) <= max(asked) <= 1.5
    assert interop.solve_ode(flow, x0, ts[:2], method=method).xs is None


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")
def test_options_of_the_engine():
    calls = []
    flow = ODE(lambda t, x: calls.append(t) or -x)
    x0 = torch.ones(2, 1, dtype=F64)
    fine = interop.solve_ode(flow, x0, [0.0, 1.0], method="rk4", options={"step_size": 0.25})
    assert len(calls) == 16 == int(fine.evaluations[0])
    jump = ODE(lambda t, x: torch.where(t < 0.5, 1.0, 3.0) * torch.ones_like(x))
    for options in (
        {"jump_t": torch.tensor([0.5], dtype=F64)},
        {"jump_t": torch.tensor([1.0, 0.5], dtype=F64)},
    ):
        found = interop.solve_ode(jump, x0, [0.0, 1.0], rtol=1e-8, atol=1e-8, options=options)
        close(found.x, x0 + 2, 1e-10)
    stiff = interop.solve_ode(
        ODE(lambda t, x: -1000 * (x - torch.cos(t))),
        x0,
        [0.0, 1.0],
        method="scipy_solver",
        options={"solver": "BDF"},
    )
    close(stiff.x, x0 * math.cos(1.0), 2e-3)
    with pytest.raises(ValueError, match="max_num_steps"):
        interop.solve_ode(
            flow, x0, [0.0, 50.0], rtol=1e-10, atol=1e-10, options={"max_num_steps": 3}
        )


def test_what_the_engine_stops_for_is_told_from_other_assertions():
    """A failed assertion is torchdiffeq's, for its tolerances, the drift's own or the options'."""
    x0 = torch.ones(2, 1, dtype=F64)

    def careful(t, x):
        assert t < 0.5, "no dt leads beyond 0.5"
        return -x

    with pytest.raises(AssertionError, match="no dt leads beyond"):
        interop.solve_ode(ODE(careful), x0, [0.0, 1.0], rtol=1e-3)
    with pytest.raises(AssertionError, match="max_order"):
        interop.solve_ode(
            FLOW, x0, [0.0, 1.0], method="implicit_adams", options={"max_order": 1000}
        )
    blow_up = ODE(lambda t, x: 1 / (1 - t) ** 2 * torch.ones_like(x))
    with pytest.raises(ValueError, match=r"dopri5 stopped \(underflow in dt"):
        interop.solve_ode(blow_up, x0, [0.0, 2.0])
    x0[1] = torch.nan
    with pytest.raises(NotFiniteError) as caught:
        interop.solve_ode(ODE(lambda t, x: torch.ones_like(x)), x0, [0.5, 1.0])
    assert (caught.value.step, caught.value.t, caught.value.samples) == (0, 0.5, [1])


def test_gradients_of_the_engine_and_of_its_adjoint():
    """The adjoint finds the parameters of a network in the drift's closure, or receives them."""
    net = Net(-math.inf, math.inf)
    flow = ODE(lambda t, x: net(t, x))
    exact = gradients(odeint, net, Y0, [0.0, 1.3], rtol=1e-9, atol=1e-9)
    for given in ({}, {"adjoint": True}, {"adjoint": True, "adjoint_params": net.parameters()}):

        def states(_, x0, ts, given=given):
            return interop.solve_ode(flow, x0, ts, rtol=1e-8, atol=1e-8, save="all", **given).xs

        for a, b in zip(gradients(states, net, Y0, [0.0, 1.3]), exact, strict=True):
            close(a, b, 1e-5)
    x0 = Y0.clone().requires_grad_()
    alone = interop.solve_ode(flow, x0, [0.0, 1.3], adjoint=True, adjoint_params=())
    alone.x.sum().backward()
    assert net.a.grad is None
    assert x0.grad is not None


def test_the_engine_reports_what_is_not_finite_and_takes_empty_batches():
    spoilt = ODE(lambda t, x: torch.where(torch.arange(3)[:, None] == 1, torch.nan, x))
    for method in ("rk4", "implicit_adams", "adaptive_heun", "scipy_solver"):
        with pytest.raises(NotFiniteError) as caught:
            interop.solve_ode(spoilt, torch.ones(3, 2), [0.0, 1.0], method=method)
        assert caught.value.samples == [1]
    empty = interop.solve_ode(FLOW, torch.ones(0, 2), [0.0, 0.5, 1.0], save="all")
    assert empty.xs.shape == (3, 0, 2)
    with pytest.raises(ValueError, match="save must be"):
        interop.solve_ode(FLOW, torch.ones(1, 2), [0.0, 1.0], save="first")


def test_the_engine_and_our_solver_agree():
    ours = sdekit.solve(
        FLOW, Y0, [0.0, 1.5], solver=Dopri5(), control=sdekit.PIDController(1e-9, 1e-9)
    ).x
    close(interop.solve_ode(FLOW, Y0, [0.0, 1.5], rtol=1e-9, atol=1e-9).x, ours, 1e-7)


# Programs written for torchdiffeq, with the import changed


def program(name, source):
    text = (Path(__file__).parent / "programs" / f"{name}.py").read_text()
    assert text.count("from torchdiffeq import odeint") == 1
    namespace = {"__name__": name}
    exec(  # noqa: S102
        compile(
            text.replace("from torchdiffeq import", f"from {source} import"), f"{name}.py", "exec"
        ),
        namespace,
    )
    return namespace


def both(name):
    return [program(name, source) for source in ("torchdiffeq", "sdekit")]


class Within:
    """A field that is never asked outside an interval; it counts."""

    def __init__(self, func, low, high):
        self.func = func
        self.low = low
        self.high = high
        self.calls = 0

    def __call__(self, t, y):
        assert self.low <= t <= self.high
        self.calls += 1
        return self.func(t, y)


def same_gradients(runs, func, low, high, loss, tolerance):
    """Of the loss of a program by torchdiffeq and here; returns the evaluations of both."""
    found = []
    calls = []
    for run, ends in zip(runs, ((-math.inf, math.inf), (low, high)), strict=True):
        within = Within(func, *ends)
        value = loss(run, within)
        found.append([value, *torch.autograd.grad(value, list(func.parameters()))])
        calls.append(within.calls)
    for a, b in zip(*found, strict=True):
        close(a, b, tolerance)
    return calls


def test_a_neural_equation_learns_a_spiral():
    """Here; theirs has the same gradients."""
    runs = both("spiral")
    func, losses = runs[1]["train"](iterations=25)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    (t, y), (_, other) = (run["data"](dtype=F64) for run in runs)
    close(y, other, 1e-6)
    torch.manual_seed(1)
    pieces = runs[0]["batch"](t, y)
    calls = same_gradients(
        runs, func.double(), 0.0, float(pieces[1][-1]), lambda run, f: run["loss"](f, *pieces), 1e-5
    )
    assert calls[1] <= calls[0] + 8


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_three_bodies_go_round_a_figure_eight(method):
    """Energy, the period, and torchdiffeq's orbit, whose states between steps are of order four by
    both of its methods.
    """
    (theirs, ours) = both("three_body")
    orbits = []
    calls = []
    bounded = Within(ours["attraction"], 0.0, ours["PERIOD"])
    free = Within(theirs["attraction"], -math.inf, math.inf)
    fine = 2e-11 if method == "dopri5" else 1e-12
    for run, func, tolerance in ((theirs, free, fine), (ours, bounded, 1e-10)):
        _, x, v = run["orbit"](func, method=method, rtol=tolerance, atol=tolerance)
        orbits.append((x, v))
        calls.append(func.calls)
    energies = ours["energy"](x, v)
    assert (energies - energies[0]).abs().max() < 1e-8
    assert (x[-1] - x[0]).abs().max() < 1e-6
    for a, b in zip(*orbits, strict=True):
        close(a, b, 1e-7)
    assert calls[1] < calls[0]


def test_a_normalizing_flow():
    """It learns here; theirs has the same gradients."""
    runs = both("flow")
    func, losses = runs[1]["train"]()
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    torch.manual_seed(2)
    x = runs[0]["data"](64, F64)
    arguments = {"rtol": 1e-8, "atol": 1e-8}
    calls = same_gradients(
        runs,
        func.double(),
        0.0,
        1.0,
        lambda run, f: run["log_density"](f, x, **arguments).mean(),
        1e-5,
    )
    assert calls[1] <= 1.1 * calls[0]
    through = torch.autograd.grad(
        runs[1]["log_density"](func, x, **arguments).mean(), func.net[0].weight
    )
    runs[1]["odeint"] = odeint_adjoint
    around = torch.autograd.grad(
        runs[1]["log_density"](func, x, **arguments).mean(), func.net[0].weight
    )
    close(around[0], through[0], 1e-5)
    # The density integrates to one: on a grid, which is fine for what is smooth.
    line = torch.linspace(-6, 6, 61, dtype=F64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        density = runs[1]["log_density"](func, grid, rtol=1e-5, atol=1e-5).exp()
    assert float(density.sum()) * 0.04 == pytest.approx(1, abs=1e-3)


# Programs that replace torchdiffeq's functions by ours


def test_what_is_handed_over_reaches_torchdiffeq_after_its_functions_are_replaced(monkeypatch):
    expected = torchdiffeq.odeint(
        Free(),
        Y0,
        torch.linspace(0, 1.3, 3, dtype=F64),
        method="explicit_adams",
        options={"step_size": 0.1},
    )
    monkeypatch.setattr(torchdiffeq, "odeint", odeint)
    monkeypatch.setattr(torchdiffeq, "odeint_adjoint", odeint_adjoint)
    settings = {"method": "explicit_adams", "options": {"step_size": 0.1}}
    for solve in (torchdiffeq.odeint, torchdiffeq.odeint_adjoint):
        close(solve(Free(), Y0, torch.linspace(0, 1.3, 3, dtype=F64), **settings), expected, 1e-12)
    equation = ODE(lambda t, x: -x)
    for adjoint in (False, True):
        solution = interop.solve_ode(
            equation, Y0, [0.0, 1.0], method="bosh3", rtol=1e-7, atol=1e-7, adjoint=adjoint
        )
        close(solution.x, Y0 / math.e, 1e-5)


def test_solve_ode_is_torchdiffeqs_after_its_functions_are_replaced(monkeypatch):
    """torchdiffeq's own dopri5 makes another number of evaluations than ours."""
    equation = ODE(lambda t, x: torch.cos(3 * t) * x)
    expected = []
    for replaced in (False, True):
        if replaced:
            monkeypatch.setattr(torchdiffeq, "odeint", odeint)
        expected.append(interop.solve_ode(equation, Y0, [0.0, 1.3]).evaluations)
    assert torch.equal(*expected)


def test_func_may_return_its_parts_by_a_generator():
    y0 = torch.ones(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    t = torch.tensor([0.0, 1.0])
    found = odeint(lambda t, y: (-part for part in y), y0, t)
    expected = odeint(lambda t, y: tuple(-part for part in y), y0, t)
    assert all(map(torch.equal, found, expected))


# Events, times and tolerances at the limits


def half(t, y):
    return y - 0.5


def decay(t, y):
    return -y * (1 + 0.3 * t)


STEPPING = {"method": "rk4", "options": {"step_size": 0.01, "interp": "cubic"}}


@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_the_time_of_an_event_is_a_floating_number(solve):
    adjoint = {"adjoint_params": ()} if solve is odeint_adjoint else {}
    for t in (torch.tensor([0, 1]), [0, 1], [0.0, 1.0]):
        when, _ = solve(lambda t, y: -y, torch.ones(1), t, event_fn=half, **adjoint)
        assert when.dtype == torch.float32
        close(when, torch.tensor(math.log(2)), 1e-6)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    assert solve(lambda t, y: -y, torch.ones(1), t, event_fn=half, **adjoint)[0].dtype == F64
    when, _ = interop.odeint_event(lambda t, y: -y, torch.ones(1), torch.tensor(0), event_fn=half)
    close(when, torch.tensor(math.log(2)), 1e-6)


@pytest.mark.parametrize("more", [{}, STEPPING], ids=["adaptive", "fixed"])
def test_the_time_of_an_event_depends_on_the_first_time(more):
    def when(first):
        return interop.odeint_event(decay, torch.ones(1, dtype=F64), first, event_fn=half, **more)

    t0 = torch.tensor(0.2, dtype=F64, requires_grad=True)
    found = torch.autograd.grad(when(t0)[0].sum(), t0)[0]
    after, before = (when(t0.detach() + change)[0] for change in (1e-4, -1e-4))
    close(found, ((after - before) / 2e-4).reshape(()), 1e-5)


def test_second_derivatives_of_the_time_of_an_event_are_refused():
    rate = torch.tensor(0.5, dtype=F64, requires_grad=True)
    when, _ = interop.odeint_event(
        lambda t, y: -rate * y**2,
        torch.tensor([1.3], dtype=F64),
        torch.tensor(0.0, dtype=F64),
        event_fn=half,
    )
    (first,) = torch.autograd.grad(when.sum(), rate, create_graph=True)
    close(first, torch.tensor(-(2 - 1 / 1.3) / 0.25, dtype=F64), 1e-6)
    with pytest.raises(RuntimeError, match="the time of an event has first derivatives only"):
        torch.autograd.grad(first, rate)


def test_an_event_that_never_comes_ends_a_solve():
    never = {"event_fn": lambda t, y: y + 2}
    t = torch.tensor([0.0, 1.0])
    for func in (lambda t, y: 0 * y, lambda t, y: 0 * y + 1):
        with pytest.raises(ValueError, match="has not changed its sign up to t ="):
            odeint(func, torch.ones(1), t, **never)
    with pytest.raises(UnfinishedError, match="max_num_steps"):
        odeint(lambda t, y: -y, torch.ones(1), t, **never, options={"max_num_steps": 100})


@pytest.mark.parametrize("method", [None, "rk4"])
def test_a_start_that_is_not_finite_has_no_event(method):
    start = torch.full((1,), math.nan)
    options = {"step_size": 0.1} if method else None
    with pytest.raises(NotFiniteError, match="the initial state x0 is not finite"):
        odeint(lambda t, y: -y, start, [0.0, 1.0], event_fn=half, method=method, options=options)


@pytest.mark.parametrize("method", STEPPED)
def test_derivatives_by_perturbed_times_are_torchdiffeqs(method):
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64, requires_grad=True)

    def found(solve):
        def func(t, y):
            return y * t.cos() + t**2

        ys = solve(func, torch.ones(1, dtype=F64), t, method=method, options={"perturb": True})
        return torch.autograd.grad(ys[-1].sum(), t)[0]

    close(found(odeint), found(torchdiffeq.odeint), 1e-12)


@pytest.mark.parametrize("method", STEPPED)
def test_times_of_another_precision_have_derivatives(method):
    for state, time in ((torch.float32, F64), (F64, torch.float32)):
        for options in (None, {"step_size": 0.3}):
            t = torch.tensor([0.0, 0.5, 1.0], dtype=time, requires_grad=True)

            def found(solve, state=state, t=t, options=options):
                y0 = torch.ones(1, dtype=state)
                ys = solve(lambda t, y: y * t.cos() + t**2, y0, t, method=method, options=options)
                return torch.autograd.grad(ys[-1].sum(), t)[0]

            assert found(odeint).dtype == time
            close(found(odeint), found(torchdiffeq.odeint), 1e-5)


def test_a_step_that_is_not_finite_is_named_on_any_grid():
    def singular(t, y):
        return y / (t - 0.5)

    grid = torch.linspace(0.0, 1.0, 11)
    for options in ({"step_size": 0.125}, {"grid_constructor": lambda func, y0, t: grid}):
        step = 5 if "step_size" in options else 6
        with pytest.raises(NotFiniteError, match=f"not finite after step {step},"):
            odeint(singular, torch.ones(1), [0.0, 1.0], method="euler", options=options)


def test_transforms_of_torch_see_a_solve_by_fixed_steps():
    def last(y, method):
        return odeint(lambda t, y: -(y**2), y, torch.tensor([0.0, 1.0]), method=method)[-1]

    y = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    mapped = torch.func.vmap(lambda y: last(y, "rk4"))(y)
    close(mapped, torch.stack([last(part, "rk4") for part in y]), 1e-6)
    with pytest.raises(RuntimeError, match=r"adaptive steps read their error, which torch\.func"):
        torch.func.vmap(lambda y: last(y, "dopri5"))(y)
    for method in ("rk4", "dopri5"):
        jacobian = torch.func.jacrev(lambda y, method=method: last(y, method))(y[0])
        by_hand = torch.autograd.functional.jacobian(lambda y, method=method: last(y, method), y[0])
        close(jacobian, by_hand, 1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"options": {"max_step": 0.0}}, "max_step > 0"),
        ({"options": {"max_step": -0.1}}, "max_step > 0"),
        ({"options": {"min_step": 0.5, "max_step": 0.1}}, "min_step <= max_step"),
        ({"rtol": -1e-3}, "rtol has tolerances, from 0 on, not -0.001"),
        ({"atol": torch.tensor([1e-6, math.nan])}, "atol has tolerances, from 0 on, not nan"),
        ({"method": "rk4", "options": {"step_size": math.nan}}, "positive, not nan"),
    ],
)
def test_widths_and_tolerances_are_positive(more, said):
    with pytest.raises(ValueError, match=said):
        odeint(lambda t, y: -y, torch.ones(2), [0.0, 1.0], **more)


def test_tolerances_of_elements_and_parts_are_those_of_the_adjoint():
    class Decay(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(2, dtype=F64))

        def forward(self, t, y):
            return (-self.rate * y[0], 0.1 * y[1]) if isinstance(y, tuple) else -self.rate * y

    expected = torch.full((2,), -math.exp(-1), dtype=F64)
    t = [0.0, 1.0]
    ones = torch.ones(2, dtype=F64)
    for y0, atol in ((ones, 1e-8 * ones), ((ones, ones[:1]), (1e-8, 1e-7))):
        field = Decay()
        ys = odeint_adjoint(field, y0, t, rtol=1e-8, atol=atol)
        (ys[0] if isinstance(ys, tuple) else ys)[-1].sum().backward()
        close(field.rate.grad, expected, 1e-6)
