"""torchdiffeq's programs here: odeint and its adjoint, what is handed over, and torchdiffeq as an
engine for our equations.
"""

import importlib
import math
from pathlib import Path

import pytest
import torch
import torchdiffeq
from torch import nn

import sdekit
from sdekit import ODE, NotFiniteError, UnfinishedError, interop, odeint, odeint_adjoint
from sdekit._solvers import Dopri5
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
        {"rtol": 1e-11, "atol": 1e-11}
        if method in ADAPTIVE
        else {"method": method, "options": {"step_size": 0.1}}
    )


def ours(method):
    tolerance = 1e-10 if method == "bosh3" else 1e-9
    return {
        "method": method,
        **({"rtol": tolerance, "atol": tolerance} if method in ADAPTIVE else theirs(method)),
    }


@EVERY
@WAYS
def test_values_are_torchdiffeqs(method, ends):
    """Their own dopri8 is not as exact between steps, where it is of order four: 5e-6 here."""
    t = torch.linspace(*ends, 7, dtype=F64)
    with torch.no_grad():
        found = odeint(Net(), Y0, t, **ours(method))
        expected = torchdiffeq.odeint(Free(), Y0, t, **theirs(method))
    assert torch.equal(found[0], Y0)
    close(found, expected, 1e-6 if method in ADAPTIVE else 1e-13)


@pytest.mark.parametrize("method", STEPPED)
@pytest.mark.parametrize("size", [0.1, 0.13, 0.37, 5.0])
@WAYS
def test_steps_of_a_size_are_torchdiffeqs(method, size, ends):
    """Outputs between steps are on straight lines; a step that is wider than the interval is as
    wide as that.
    """
    t = torch.tensor(
        [ends[0], 0.2, 0.65, ends[1]] if ends[1] > ends[0] else [ends[0], 0.65, 0.2, ends[1]],
        dtype=F64,
    )
    arguments = {"method": method, "options": {"step_size": size}}
    with torch.no_grad():
        close(
            odeint(Net(), Y0, t, **arguments), torchdiffeq.odeint(Free(), Y0, t, **arguments), 1e-13
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
    expected = gradients(torchdiffeq.odeint, Free(), Y0, t, **theirs(method))
    for a, b in zip(gradients(odeint, Net(), Y0, t, **ours(method)), expected, strict=True):
        close(a, b, 1e-5 if method in ADAPTIVE else 1e-12)


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

        assert torch.autograd.gradcheck(ends, (a, y0), atol=1e-5)


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
    with pytest.raises(RuntimeError, match="differentiate twice"):
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


@pytest.mark.parametrize("ends", [(0.1, 0.1 + 0.2), (0.7, 0.1), (1e-3, 1e3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@EVERY
def test_func_is_asked_within_the_interval_only(ends, dtype, method):
    t = torch.tensor(ends, dtype=dtype)
    asked = []
    span = abs(ends[1] - ends[0])
    options = {"step_size": span / 9.5} if method in FIXED else {"first_step": 2 * span}
    for given in (options, {}):
        odeint(
            lambda t, y: asked.append(t) or -y / 100,
            torch.ones(2, dtype=dtype),
            t,
            method=method,
            options=given,
        )
    assert t.min() <= min(asked)
    assert max(asked) <= t.max()


@pytest.mark.parametrize("method", SHARED)
def test_evaluations_are_about_torchdiffeqs(method):
    """For 40 time units of a pendulum: its steps differ by the last one, and by those of outputs
    with dopri8.
    """
    calls = [0, 0]
    t = torch.linspace(0, 40, 9, dtype=F64)

    def pendulum(i):
        def func(t, y):
            calls[i] += 1
            return torch.stack([y[1], -torch.sin(y[0])])

        return func

    y0 = torch.tensor([1.5, 0.0], dtype=F64)
    for i, solve in enumerate((odeint, torchdiffeq.odeint)):
        solve(pendulum(i), y0, t, method=method, rtol=1e-6, atol=1e-6)
    assert calls[0] < 1.15 * calls[1] + 5


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


class Watched(Net):
    def callback_step(self, t0, y0, dt):
        pass


HANDED = [
    {"method": "adaptive_heun", "rtol": 1e-4},
    {"method": "fehlberg2"},
    {"method": "implicit_adams"},
    {"method": "scipy_solver"},
    {"method": "dopri5", "options": {"norm": lambda y: y.abs().max()}},
    {"method": "dopri5", "options": {"max_step": 0.1, "first_step": 0.01}},
    {"method": "rk4", "options": {"step_size": 0.1, "interp": "cubic"}},
    {"rtol": torch.full((5, 2), 1e-6)},
    {"func": Watched(-math.inf, math.inf)},
    {"y0": Y0.to(torch.complex128), "func": lambda t, y: 1j * y},
    {"t": torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)},
    {"event_fn": lambda t, y: y[0, 0] - 0.5, "func": lambda t, y: torch.ones_like(y), "y0": 0 * Y0},
]


@pytest.mark.parametrize("arguments", HANDED)
def test_the_rest_is_handed_over(arguments, monkeypatch):
    seen = []

    def spy(*positional, **keywords):
        seen.append(keywords)
        return original(*positional, **keywords)

    original = torchdiffeq.odeint
    monkeypatch.setattr("sdekit.interop._odeint.torchdiffeq_odeint", spy)
    arguments = {"func": Free(), "y0": Y0, "t": torch.tensor([0.0, 1.0], dtype=F64)} | arguments
    found = odeint(**arguments)
    expected = original(**arguments)
    assert len(seen) == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_gradients_with_respect_to_times_and_events():
    t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    ys = odeint(lambda t, y: 2 * y, torch.ones(1, dtype=F64), t)
    close(torch.autograd.grad(ys[-1].sum(), t)[0][1], 2 * ys[-1, 0], 1e-6)
    height = torch.tensor([3.0, 0.0], dtype=F64, requires_grad=True)
    when, _ = torchdiffeq.odeint_event(
        lambda t, y: torch.stack([y[1], -torch.ones_like(y[1])]),
        height,
        torch.tensor(0.0, dtype=F64),
        event_fn=lambda t, y: y[0],
        odeint_interface=odeint,
    )
    assert float(when.detach()) == pytest.approx(math.sqrt(6), abs=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "fehlberg2"},
        {"adjoint_options": {"norm": "seminorm"}},
        {
            "method": "dopri5",
            "adjoint_method": "adaptive_heun",
            "adjoint_rtol": 1e-4,
            "adjoint_atol": 1e-5,
        },
        {"func": Watched(-math.inf, math.inf)},
    ],
)
def test_the_rest_of_the_adjoint_is_handed_over(arguments, monkeypatch):
    seen = []

    def spy(*positional, **keywords):
        seen.append(keywords)
        return original(*positional, **keywords)

    original = torchdiffeq.odeint_adjoint
    monkeypatch.setattr("sdekit.interop._odeint_adjoint.torchdiffeq_adjoint", spy)
    arguments = dict(arguments)
    func = arguments.pop("func", Free())
    t = torch.tensor([0.0, 1.0], dtype=F64)
    found = gradients(odeint_adjoint, func, Y0, t, rtol=1e-7, atol=1e-7, **arguments)
    assert len(seen) == 1
    for a, b in zip(found, gradients(odeint, Net(), Y0, t), strict=True):
        close(a, b, 1e-3)


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
    "solve",
    [odeint, lambda *a, **k: odeint_adjoint(*a, **k, adjoint_params=())],
    ids=["odeint", "adjoint"],
)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_what_cannot_be_solved_is_said(solve, method):
    def wall(t, y):
        return torch.where(t > 0.5, torch.nan, y)

    with pytest.raises(
        UnfinishedError,
        match=r"infinite or NaN however short the step, at t = "
        r"0.5\d*\); look at what func",
    ):
        solve(wall, torch.ones(2), [0.0, 1.0], method=method)
    with pytest.raises(UnfinishedError, match="NaN"):
        solve(lambda t, y: y, torch.tensor([1.0, torch.nan]), [0.0, 1.0], method=method)
    with pytest.raises(UnfinishedError, match=r"at t = (0\.99|1\)|1\.0)"):
        solve(lambda t, y: y * y, torch.ones(1, dtype=F64), [0.0, 2.0], method=method, rtol=1e-4)


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
    ts = torch.linspace(*ends, 121, dtype=F64)
    flow = ODE(lambda t, x: asked.append(float(t)) or x * torch.cos(t))
    x0 = torch.rand(3, 2, 2, dtype=F64)
    # Of order twelve, torchdiffeq's default, explicit_adams is unstable here.
    options = {"max_order": 4} if method == "explicit_adams" else None
    solution = interop.solve_ode(
        flow, x0, ts, rtol=1e-6, atol=1e-6, method=method, options=options, save="all"
    )
    exact = x0 * torch.exp(torch.sin(ts) - math.sin(ends[0]))[:, None, None, None]
    close(solution.xs, exact, 2e-2 if method == "euler" else 1e-4)
    assert torch.equal(solution.xs[-1], solution.x)
    assert solution.evaluations.tolist() == [len(asked)] * 3
    assert 0.0 <= min(asked) <= max(asked) <= 1.5
    assert interop.solve_ode(flow, x0, ts, method=method).xs is None


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
        interop.solve_ode(ODE(careful), x0, [0.0, 1.0])
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
    """The adjoint finds the parameters of a network that the drift closes over, or is told them."""
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
    for run in both("spiral"):
        func, losses = run["train"]()
        assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    runs = both("spiral")
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
    for run, func, tolerance in ((theirs, free, 1e-12), (ours, bounded, 1e-10)):
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
    for run in both("flow"):
        func, losses = run["train"]()
        assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    runs = both("flow")
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
    line = torch.linspace(-6, 6, 121, dtype=F64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        density = runs[1]["log_density"](func, grid, rtol=1e-5, atol=1e-5).exp()
    assert float(density.sum()) * 0.01 == pytest.approx(1, abs=1e-3)


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
            equation, Y0, [0.0, 1.0], method="adaptive_heun", rtol=1e-7, atol=1e-7, adjoint=adjoint
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
