"""Gradients of torchsde's programs here: the adjoint equation, and the reversible method."""

import warnings

import pytest
import torch
import torchsde
from test_interop import F64, KINDS, Equation, brownian, close, start
from torch import nn

import sdekit
from sdekit import SDE, BrownianPath, NotFiniteError, WhiteNoise
from sdekit.interop import sdeint, sdeint_adjoint

TS = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
# Methods whose backward solve is that of the adjoint equation.
METHODS = {
    "ito": ("euler", "milstein", "srk"),
    "stratonovich": ("midpoint", "heun", "euler_heun", "milstein", "log_ode"),
}
CASES = [
    (kind, calculus, method)
    for calculus, methods in METHODS.items()
    for method in methods
    for kind in KINDS
    if not (kind == "general" and method in ("milstein", "srk"))
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def gradients(solve, sde, ts=TS, dt=1 / 16, **arguments):
    y0 = start().requires_grad_()
    ys = solve(sde, y0, ts, dt=dt, **arguments)
    weight = torch.linspace(0.5, 1.5, ys.numel(), dtype=F64).reshape(ys.shape)
    found = torch.autograd.grad(
        (weight * ys).sum(),
        [y0, *(p for p in sde.parameters() if p.requires_grad)],
        allow_unused=True,
        materialize_grads=True,
    )
    return ys.detach(), *found


def both(sde, levy="foster", **arguments):
    """What sdekit and torchsde find on the same path."""
    return [
        gradients(solve, sde, bm=brownian(sde.size, levy=levy), **arguments)
        for solve in (sdeint_adjoint, torchsde.sdeint_adjoint)
    ]


@pytest.mark.parametrize(("kind", "calculus", "method"), CASES)
def test_gradients_are_torchsdes(kind, calculus, method):
    ours, theirs = both(Equation(kind, calculus), method=method)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-11)


@pytest.mark.parametrize(
    ("kind", "calculus", "method"),
    [
        ("diagonal", "ito", "euler"),
        ("scalar", "ito", "milstein"),
        ("diagonal", "stratonovich", "milstein"),
        ("general", "stratonovich", "heun"),
        ("additive", "stratonovich", "euler_heun"),
    ],
)
def test_the_backward_method_may_be_another(kind, calculus, method):
    """torchsde's Milstein of the adjoint is for diagonal noise; for scalar noise it has none."""
    forward = "srk" if calculus == "ito" else "midpoint"
    arguments = {"method": forward, "adjoint_method": method}
    sde = Equation(kind, calculus)
    if (kind, method) == ("scalar", "milstein"):
        found = gradients(sdeint_adjoint, sde, bm=brownian(1), **arguments, dt=1 / 128)
        exact = gradients(sdeint, sde, bm=brownian(1), method=forward, dt=1 / 128)
        for a, b in zip(found, exact, strict=True):
            close(a, b, 1e-2)
        return
    ours, theirs = both(sde, **arguments)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-11)


@pytest.mark.parametrize("kind", ["diagonal", "scalar", "general"])
def test_decreasing_times(kind):
    """Those of the steps themselves, up to the error of the backward solve: the correction of an
    Ito equation has the other sign.
    """
    arguments = {"method": "euler", "ts": TS.flip(0), "dt": 1 / 1024}
    differences = []
    for dt in (1 / 64, 1 / 1024):
        arguments["dt"] = dt
        found, exact = (
            gradients(solve, Equation(kind, "ito"), bm=BrownianPath(3), **arguments)
            for solve in (sdeint_adjoint, sdeint)
        )
        close(found[0], exact[0], 1e-12)
        relative = [(a - b).norm() / b.norm() for a, b in zip(found[1:], exact[1:], strict=True)]
        differences.append(float(max(relative)))
    assert differences[1] < 0.05
    assert differences[1] < 0.5 * differences[0]


def test_adaptive_steps_both_ways():
    arguments = {"adaptive": True, "adjoint_adaptive": True, "rtol": 1e-3, "atol": 1e-3}
    arguments |= {"adjoint_rtol": 1e-3, "adjoint_atol": 1e-3, "method": "heun"}
    ours, theirs = both(Equation("diagonal", "stratonovich"), ts=TS[[0, 2]], **arguments)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-10)


class Prior(Equation):
    """With the drift of a prior."""

    def h(self, t, y):
        return -self.a * y


@pytest.mark.parametrize("kind", ["diagonal", "additive", "general"])
def test_the_divergence_has_gradients(kind):
    found = []
    for solve in (sdeint_adjoint, torchsde.sdeint_adjoint):
        sde = Prior(kind, "stratonovich")
        bm = brownian(3)
        ys, divergence = solve(sde, start(), TS, bm=bm, dt=1 / 16, logqp=True)
        assert divergence.shape == (2, 4)
        gradient = torch.autograd.grad((ys.sum() + divergence.sum()), list(sde.parameters()))
        found.append([ys, divergence, *gradient])
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-10)


# The reversible method


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ts", [TS, torch.tensor([0.0, 0.37, 1.0], dtype=F64)], ids=str)
def test_the_reversible_method_has_the_gradient_of_its_steps(kind, ts):
    """Between the steps too, where torchsde's is that of other steps."""
    sde = Equation(kind, "stratonovich")
    arguments = {"ts": ts, "method": "reversible_heun"}
    found = gradients(sdeint_adjoint, sde, bm=brownian(sde.size), **arguments)
    exact = gradients(sdeint, sde, bm=brownian(sde.size), **arguments)
    for a, b in zip(found, exact, strict=True):
        close(a, b, 1e-11)
    if ts is TS:
        theirs = gradients(torchsde.sdeint_adjoint, sde, bm=brownian(sde.size), **arguments)
        for a, b in zip(found, theirs, strict=True):
            close(a, b, 1e-11)


def test_the_state_of_the_reversible_method_goes_there_and_back():
    sde = Equation("scalar", "stratonovich")
    arguments = {"bm": brownian(1), "dt": 1 / 16, "method": "reversible_heun"}
    half, state = sdeint_adjoint(sde, start(), [0.0, 0.5], extra=True, **arguments)
    assert [tuple(part.shape) for part in state] == [(4, 2), (4, 2, 1), (4, 2)]
    _, first = sdeint_adjoint(sde, start(), [0.0], extra=True, **arguments)
    assert [tuple(part.shape) for part in first] == [(4, 2), (4, 2, 1), (4, 2)]
    rest = sdeint_adjoint(sde, half[-1], [0.5, 1.0], extra_solver_state=state, **arguments)
    whole = sdeint(sde, start(), [0.0, 1.0], **arguments)
    close(rest[-1], whole[-1])
    found = torch.autograd.grad(rest[-1].sum(), sde.a)[0]
    close(found, torch.autograd.grad(whole[-1].sum(), sde.a)[0], 1e-11)
    with pytest.warns(UserWarning, match="gives up what the method is for"):
        sdeint_adjoint(sde, start(), TS, adjoint_method="midpoint", **arguments)


# Beyond torchsde


def test_a_path_of_ours_and_none():
    """The gradient is that of the steps on the same path, but for the error of both."""
    sde = Equation("general", "stratonovich")
    path = BrownianPath(3, (0.0, 1.0))
    found = gradients(sdeint_adjoint, sde, bm=path, dt=1 / 128)
    exact = gradients(sdeint, sde, bm=path, dt=1 / 128)
    close(found[0], exact[0])
    for a, b in zip(found[1:], exact[1:], strict=True):
        close(a, b, 2e-2)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(gradients(sdeint_adjoint, sde))
    for a, b, c in zip(*runs, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_gradient_tends_to_that_of_the_steps():
    """With the square root of the step for a coupled Ito equation by Euler's method."""
    sde = Equation("general")
    errors = []
    for dt in (1 / 16, 1 / 256):
        path = BrownianPath(3, (0.0, 1.0))
        found, exact = (
            gradients(solve, sde, bm=path, dt=dt, method="euler")
            for solve in (sdeint_adjoint, sdeint)
        )
        errors.append(
            max(float((a - b).abs().max()) for a, b in zip(found[1:], exact[1:], strict=True))
        )
    assert errors[1] < 0.4 * errors[0]


def test_an_equation_of_ours_with_events_of_any_shape():
    rate = nn.Parameter(torch.tensor(0.7, dtype=F64))
    other = torch.tensor(0.2, dtype=F64, requires_grad=True)
    problem = SDE(lambda t, x: -rate * x, lambda t, x: 0.3 * rate * x + other, "diagonal")
    y0 = start(4, 6).reshape(4, 2, 3).requires_grad_()
    path = BrownianPath(1, (0.0, 1.0))
    ys = sdeint_adjoint(problem, y0, TS, bm=path, dt=1 / 64, adjoint_params=(rate, other))
    exact = sdeint(problem, y0, TS, bm=path, dt=1 / 64)
    assert ys.shape == (3, 4, 2, 3)
    for a, b in zip(
        torch.autograd.grad(ys.square().sum(), (y0, rate, other)),
        torch.autograd.grad(exact.square().sum(), (y0, rate, other)),
        strict=True,
    ):
        close(a, b, 2e-2)
    ys = sdeint_adjoint(problem, y0, TS, bm=path, dt=1 / 16)  # what it closes over
    assert float(torch.autograd.grad(ys.sum(), rate)[0]) != 0


def test_second_derivatives_of_stratonovich_equations():
    """The gradient of a penalty of the gradient, against differences."""
    sde = Equation("diagonal", "stratonovich")

    def penalty(scale):
        y0 = scale * start()[:2]
        ys = sdeint_adjoint(sde, y0, TS[[0, 2]], bm=brownian(2, batch=2), dt=1 / 32)
        (gradient,) = torch.autograd.grad(ys[-1].square().sum(), y0, create_graph=True)
        return gradient.square().sum()

    scale = torch.tensor(1.0, dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(penalty(scale), scale)
    change = 1e-3
    difference = (penalty(scale + change) - penalty(scale - change)) / (2 * change)
    assert float(found) == pytest.approx(float(difference.detach()), rel=2e-2)
    sde = Equation("diagonal")
    with pytest.raises(RuntimeError, match="second derivatives by it exist for Stratonovich"):
        torch.autograd.grad(penalty(scale), scale)


def test_a_parameter_without_an_influence_has_the_gradient_zero():
    class Constant(nn.Module):
        noise_type = "diagonal"
        sde_type = "ito"

        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.ones(3, dtype=F64))
            self.fixed = nn.Parameter(torch.ones(2, dtype=F64), requires_grad=False)

        def f(self, t, y):
            return torch.ones_like(y)

        def g(self, t, y):
            return self.fixed.expand_as(y)

    found = gradients(sdeint_adjoint, Constant(), bm=brownian(2))
    assert torch.equal(found[2], torch.zeros(3, dtype=F64))
    close(found[1].sum(), torch.linspace(0.5, 1.5, 24, dtype=F64).sum())


def test_an_explosion_by_the_reversible_method_is_said():
    class Explosive(nn.Module):
        noise_type, sde_type = "diagonal", "stratonovich"

        def f(self, t, y):
            return 50 * y**3

        def g(self, t, y):
            return 0.1 * y

    y0 = torch.ones(2, 1, dtype=F64, requires_grad=True)
    arguments = (Explosive(), y0, [0.0, 1.0])
    messages = []
    for solver in (sdeint, sdeint_adjoint):
        with pytest.raises(NotFiniteError, match="in 2 of 2 samples") as caught:
            solver(*arguments, bm=WhiteNoise(0), dt=0.1, method="reversible_heun")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_failure_on_the_way_back_is_said():
    class Once(Equation):
        back = False

        def f(self, t, y):
            return y * torch.nan if self.back else -y

    sde = Once("diagonal", "stratonovich")
    ys = sdeint_adjoint(sde, start().requires_grad_(), TS, dt=1 / 16)
    sde.back = True
    with pytest.raises(NotFiniteError, match=r"after step 1, at t = 0\.9375"):
        ys.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"adjoint_method": "srk"}, ValueError, "is not one of euler, milstein"),
        ({"adjoint_method": "midpoint"}, ValueError, "is not one of euler, milstein"),
        (
            {"adjoint_method": "adjoint_reversible_heun"},
            ValueError,
            "runs 'reversible_heun' backwards, not 'euler'",
        ),
        ({"adjoint_options": {"grad_free": True}}, ValueError, "leave out grad_free"),
        ({"bm": WhiteNoise(0)}, ValueError, "no path, which the backward solve reads"),
        ({"method": "eul"}, ValueError, "is not one of euler"),
        ({"method": "heun"}, ValueError, "solves stratonovich equations"),
    ],
)
def test_refusals(change, error, said):
    arguments = {"method": "euler", "dt": 1 / 8} | change
    with pytest.raises(error, match=said):
        sdeint_adjoint(Equation("diagonal"), start(), TS, **arguments)


def test_what_has_no_parameters_names_them():
    class Plain:
        noise_type = "diagonal"
        sde_type = "ito"

        def f(self, t, y):
            return -y

        def g(self, t, y):
            return 0.1 * y

    with pytest.raises(ValueError, match="give adjoint_params"):
        sdeint_adjoint(Plain(), start(), TS, dt=0.1)
    assert sdeint_adjoint(Plain(), start(), TS, dt=0.1, adjoint_params=()).shape == (3, 4, 2)
    assert sdeint_adjoint(Plain(), start(), TS[:1], dt=0.1, adjoint_params=()).shape == (1, 4, 2)


def test_unknown_arguments_and_options_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sdeint_adjoint(
            Equation("diagonal"), start(), TS, dt=0.25, rtoll=1.0, options={"grad_fre": True},
            adjoint_options={"norm": 1},
        )  # fmt: skip
    said = " ".join(str(one.message) for one in caught)
    for part in ("rtoll", "did you mean 'grad_free'", "adjoint_options has no option 'norm'"):
        assert part in said


def test_it_is_at_the_top():
    assert sdekit.sdeint_adjoint is sdeint_adjoint


def test_milsteins_backward_step_needs_noise_that_commutes():
    with pytest.raises(ValueError, match="needs noise that commutes, and this one is general"):
        sdeint_adjoint(
            Equation("general"), start(), TS, method="euler", adjoint_method="milstein", dt=0.1
        )


@pytest.mark.filterwarnings("ignore:.*gives up what the method is for")
def test_states_of_the_reversible_method_need_its_adjoint():
    sde = Equation("diagonal", "stratonovich")
    arguments = {"method": "reversible_heun", "dt": 0.1, "extra": True}
    with pytest.raises(ValueError, match="have gradients with adjoint_method='adjoint_reversible"):
        sdeint_adjoint(sde, start(), TS, adjoint_method="midpoint", **arguments)


def test_a_path_of_many_steps_is_less_deep():
    """It is made before the first step, beyond which this solve does not go."""

    class Reached(Exception):  # noqa: N818
        pass

    class Decay(nn.Module):
        noise_type, sde_type = "diagonal", "stratonovich"

        def f(self, t, y):
            if t > 1.5:
                raise Reached
            return -0.1 * y

        def g(self, t, y):
            return 0.01 * y

    n = 2**16 + 1  # with 2^20 ticks to a step there were too many
    with torch.no_grad(), pytest.raises(Reached):
        sdeint_adjoint(Decay(), start(1), [0.0, n], dt=1.0, method="euler_heun")
