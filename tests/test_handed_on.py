"""Calls handed on to torchsde and torchdiffeq: functions that change what they get are refused, and
y0 stays as it is.
"""

import pytest
import torch
import torchdiffeq
import torchsde
from torch import nn

from sdekit import (
    SDE,
    LogODE,
    Milstein,
    NotFiniteError,
    StratonovichMilstein,
    odeint,
    odeint_adjoint,
    odeint_event,
    sdeint,
    solve,
)
from sdekit.calling import ChangedError
from sdekit.interop import to_torchsde

REFUSED = pytest.raises(ChangedError, match="changes its input in place")
NO_DERIVATIVE = pytest.raises(RuntimeError, match=r"depends on x, but .* no derivative")
OVERWRITTEN = pytest.raises(ChangedError, match="returned before")
T = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
ODE_CALLS = {
    "scipy_solver": {"method": "scipy_solver"},
    "fixed_adams": {"method": "fixed_adams", "options": {"step_size": 0.05}},
    "explicit_adams": {"method": "explicit_adams", "options": {"step_size": 0.05}},
    "adaptive_heun": {"method": "adaptive_heun", "rtol": 1e-4},
    "fehlberg2": {"method": "fehlberg2", "rtol": 1e-4},
    "tolerances of each element": {
        "rtol": torch.full((4, 3), 1e-5),
        "atol": torch.full((4, 3), 1e-5),
    },
    "event": {"event_fn": lambda t, y: t - 0.5, "t": T[[0, 2]]},
}


def y0(dtype=torch.float64):
    return torch.ones(4, 3, dtype=dtype)


def spoiling(t, y):
    return y.mul_(-1)


def last(outcome):
    return (
        outcome[1] if isinstance(outcome[0], torch.Tensor) and outcome[0].ndim == 0 else outcome
    )[-1]


class Reusing:
    """Returns one buffer again and again."""

    def __init__(self, factor):
        self.factor = factor
        self.buffer = None

    def __call__(self, t, y):
        self.buffer = torch.empty_like(y) if self.buffer is None else self.buffer
        return torch.mul(y, self.factor, out=self.buffer)


class Module(nn.Module):
    def __init__(self, spoils):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))
        self.spoils = spoils

    def forward(self, t, y):
        return self.rate * (y.mul_(1) if self.spoils else y)


@pytest.mark.parametrize("name", ODE_CALLS)
def test_a_func_that_changes_y_is_refused_and_one_that_changes_t_harmless(name):
    call = {"t": T, **ODE_CALLS[name]}
    start = y0()
    ts = T.clone()
    with torch.no_grad(), REFUSED:
        odeint(spoiling, start, **call)
    with torch.no_grad():
        found, expected = (
            last(odeint(func, start, **call))
            for func in (lambda t, y: -y + 0 * t.mul_(2), lambda t, y: -y)
        )
    torch.testing.assert_close(found, expected)
    with REFUSED:
        odeint_adjoint(spoiling, start, **call, adjoint_params=())
    assert torch.equal(start, y0())
    assert torch.equal(T, ts)


@pytest.mark.parametrize("name", ODE_CALLS)
def test_in_inference_mode_the_result_is_right(name):
    call = {"t": T, **ODE_CALLS[name]}
    start = y0()
    with torch.inference_mode():
        found, expected = (last(odeint(f, start, **call)) for f in (spoiling, lambda t, y: -y))
    torch.testing.assert_close(found, expected)
    assert torch.equal(start, y0())


def test_a_buffer_that_is_returned_again_does_not_spoil_the_slopes_that_adams_methods_remember():
    with torch.no_grad():
        found = odeint(Reusing(-1.0), y0(), T, **ODE_CALLS["fixed_adams"])[-1]
    torch.testing.assert_close(found, torch.exp(-T[-1]).expand(4, 3), rtol=1e-4, atol=0)


def test_complex_states_are_copies_and_tuples_and_events_that_change_y_are_refused():
    start = y0(torch.complex128)
    with torch.no_grad():  # a copy, so that the result is right
        found = odeint(spoiling, start, T)
    torch.testing.assert_close(found[-1], start * torch.exp(-T[-1]))
    with torch.no_grad(), REFUSED:
        odeint(
            lambda t, y: (y[0].mul_(-1), -y[1]), (y0(), y0()), T, method="adaptive_heun", rtol=1e-4
        )
    with torch.no_grad(), REFUSED:
        odeint(lambda t, y: -y, y0(), T[[0, 2]], event_fn=lambda t, y: y.mul_(0.5).mean() - 0.2)
    assert torch.equal(start, y0(torch.complex128))


INTERFACES = [None, odeint, odeint_adjoint, torchdiffeq.odeint, torchdiffeq.odeint_adjoint]


def when(func, start, interface=None, event_fn=lambda t, y: y[0, 0] - 0.5, **more):
    """The time and the state at which func(t, y) = -y falls to 1/2."""
    t0 = torch.tensor(0.0, dtype=torch.float64)
    return odeint_event(func, start, t0, event_fn=event_fn, odeint_interface=interface, **more)


@pytest.mark.parametrize("interface", INTERFACES[:2] + INTERFACES[3:4])
def test_odeint_event_refuses_functions_that_change_what_they_get(interface):
    def spoilt(t, y):
        slope = -y.clone()
        y.mul_(0.9)
        return slope

    start = y0()
    with torch.no_grad():
        with REFUSED:
            when(spoilt, start, interface)
        with REFUSED:
            when(lambda t, y: -y, start, interface, lambda t, y: y.mul_(0.9)[0, 0] - 0.5)
    assert torch.equal(start, y0())
    with pytest.raises(TypeError, match="does not fit"):
        when(lambda t: t, start, interface)


@pytest.mark.parametrize("interface", INTERFACES)
def test_odeint_event_has_the_gradients_of_a_module(interface):
    """The state at the event is 1/2 whatever the rate r is, and the time is log(2) / r."""
    func = Module(spoils=False)
    start = y0().requires_grad_()
    time, states = when(func, start, interface)
    torch.testing.assert_close(time.detach(), torch.tensor(2.0, dtype=torch.float64).log())
    torch.testing.assert_close(states[1].detach(), y0() / 2)
    slopes = torch.autograd.grad(time, (func.rate, start))
    torch.testing.assert_close(
        slopes[0], torch.tensor(2.0, dtype=torch.float64).log(), rtol=1e-4, atol=0
    )
    assert slopes[1][0, 0] == pytest.approx(1.0, rel=1e-4)
    assert slopes[1].reshape(-1)[1:].abs().max() < 1e-9
    with REFUSED:
        when(Module(spoils=True), y0(), interface)


def test_complex_states_and_tuples_are_solved():
    (found,) = odeint(lambda t, y: (1j * y[0],), (y0(torch.complex128),), T)
    torch.testing.assert_close(found[-1], torch.exp(1j * T[-1]).expand(4, 3), rtol=1e-6, atol=0)
    found = odeint(lambda t, y: (-y[0], y[0]), (y0(), y0()), T, method="adaptive_heun", rtol=1e-4)
    torch.testing.assert_close(found[1][-1], 2 - torch.exp(-T[-1]).expand(4, 3), rtol=1e-3, atol=0)


def test_func_is_refused_for_what_it_returns():
    adams = ODE_CALLS["fixed_adams"]
    with torch.no_grad(), pytest.raises(TypeError, match=r"int64.*floating"):
        odeint(lambda t, y: y.long(), y0(), T, **adams)
    with torch.no_grad(), pytest.raises(ValueError, match=r"returned \[\(4, 1\)\] for a state"):
        odeint(lambda t, y: -y[:, :1], y0(), T, **adams)
    with torch.no_grad(), pytest.raises(TypeError, match="complex"):
        odeint(lambda t, y: 1j * y, y0(), T, **adams)


def test_gradients_by_a_module_are_those_of_a_sound_one():
    """adjoint_params=None: those of func."""
    call = {"method": "fixed_adams", "options": {"step_size": 0.05}}
    func = Module(spoils=False)
    odeint_adjoint(func, y0(), T, **call)[-1].sum().backward()
    assert abs(func.rate.grad.item() / (12 * torch.exp(-T[-1]).item()) - 1) < 1e-4
    with REFUSED:
        odeint_adjoint(Module(spoils=True), y0(), T, **call)


def test_callbacks_of_func_are_called():
    class Counting:
        steps = 0

        def __call__(self, t, y):
            return -y

        def callback_step(self, t0, y0, dt):
            self.steps += 1

    func = Counting()
    odeint(func, y0(), T, method="euler", options={"step_size": 0.1})
    assert func.steps == 10


class Torchsde(nn.Module):
    """Faulty in one method."""

    noise_type = "diagonal"
    sde_type = "stratonovich"

    def __init__(self, faulty=None, kind="changes y"):
        super().__init__()
        self.faulty = faulty
        self.kind = kind
        self.buffers = {}

    def value(self, name, factor, y):
        if name != self.faulty:
            return factor * y
        if self.kind == "changes y":
            return y.mul_(factor)
        self.buffers.setdefault(name, torch.empty_like(y))
        return self.buffers[name].copy_((factor * y).detach())

    def f(self, t, y):
        return self.value("f", -1.0, y)

    def g(self, t, y):
        return self.value("g", 0.1, y)

    def h(self, t, y):
        return self.value("h", -0.5, y)

    def renamed(self, t, y):
        return self.value("renamed", -1.0, y)


class Joint(nn.Module):
    noise_type = "diagonal"
    sde_type = "ito"

    def f_and_g(self, t, y):
        return y.mul_(-1), 0.1 * torch.ones_like(y)


class Products(nn.Module):
    noise_type = "diagonal"
    sde_type = "stratonovich"

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return 0.1 * y

    def g_prod(self, t, y, v):
        return v.mul_(0.1)


SDE_CALLS = {
    "adaptive": {"adaptive": True, "method": "heun"},
    "log_ode": {"method": "log_ode"},
    "milstein": {"method": "milstein"},
    "logqp": {"logqp": True, "method": "midpoint"},
    "extra": {"extra": True, "method": "reversible_heun"},
    "names": {"names": {"drift": "renamed"}, "adaptive": True, "method": "midpoint"},
}


@pytest.mark.parametrize("name", SDE_CALLS)
@pytest.mark.parametrize("faulty", ["f", "g", "h", "renamed"])
def test_torchsdes_equations_that_change_y_are_refused(name, faulty):
    start = y0()
    asked = {"f": name != "names", "g": True, "h": name == "logqp", "renamed": name == "names"}[
        faulty
    ]
    if not asked:
        assert sdeint(Torchsde(faulty), start, T, dt=0.1, **SDE_CALLS[name]) is not None
        return
    with REFUSED:
        sdeint(Torchsde(faulty), start, T, dt=0.1, **SDE_CALLS[name])
    assert torch.equal(start, y0())


def test_buffers_products_and_joint_functions_are_refused():
    arguments = {"dt": 0.1, "method": "heun", "adaptive": True}
    with torch.no_grad(), OVERWRITTEN:
        sdeint(Torchsde("f", "buffer"), y0(), T, **arguments)
    found = []
    for faulty in ("g", None):  # products g . dW are new tensors
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(sdeint(Torchsde(faulty, "buffer"), y0(), T, **arguments))
    torch.testing.assert_close(*found)
    for sde, method in ((Products(), "heun"), (Joint(), "srk")):
        start = y0()
        with torch.no_grad(), REFUSED:
            sdeint(sde, start, T, dt=0.1, method=method, adaptive=True)
        assert torch.equal(start, y0())


@pytest.mark.parametrize("kind", ["equation", "torchsde's", "renamed"])
def test_a_diffusion_without_its_derivative_is_refused_where_it_is_used(kind):
    """Through a detached tensor Milstein's correction would be zero."""

    def solved(g, method):
        torch.manual_seed(0)
        theirs = Torchsde()
        theirs.g = theirs.noise = g
        names = {"diffusion": "noise"} if kind == "renamed" else None
        if kind == "renamed":
            theirs.g = lambda t, y: 0.1 * y
        equation = SDE(lambda t, x: -x, g, "diagonal", "stratonovich")
        sde = equation if kind == "equation" else theirs
        settings = {"method": method, "adaptive": True, "rtol": 3e-2, "atol": 3e-2}
        return sdeint(sde, y0(), T, dt=0.1, names=names, **settings)

    with NO_DERIVATIVE:
        solved(lambda t, y: (0.1 * y).detach(), "milstein")
    scale = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    with NO_DERIVATIVE:  # of the state, though not of the parameter
        solved(lambda t, y: scale * y.detach(), "milstein")
    assert solved(lambda t, y: scale * y, "milstein").isfinite().all()
    with pytest.raises(NotFiniteError):
        solved(lambda t, y: torch.full_like(y, torch.nan), "milstein")
    for found in (lambda t, y: 0.1 * y, lambda t, y: 0.1 * torch.ones_like(y)):
        assert solved(found, "milstein").isfinite().all()
    assert solved(lambda t, y: (0.1 * y).detach(), "heun").isfinite().all()


def test_levys_areas_need_the_derivative_too():
    def solved(g):
        torch.manual_seed(0)
        sde = SDE(lambda t, x: -x, g, "general", "stratonovich", 2)
        return sdeint(sde, y0(), T, dt=0.1, method="log_ode")

    with NO_DERIVATIVE:
        solved(lambda t, y: (0.1 * torch.stack([y, y.square()], dim=-1)).detach())
    assert solved(lambda t, y: 0.1 * torch.stack([y, y.square()], dim=-1)).isfinite().all()


def test_the_question_for_the_number_of_brownian_motions_leaves_y0():
    class General(nn.Module):
        noise_type = "general"
        sde_type = "ito"

        def f(self, t, y):
            return -y

        def g(self, t, y):
            return y.mul_(0.5).unsqueeze(-1).expand(*y.shape, 2)

    for more in ({}, {"adaptive": True}):
        start = y0()
        with torch.no_grad(), REFUSED:
            sdeint(General(), start, T, dt=0.1, method="euler", **more)
        assert torch.equal(start, y0())


def test_what_they_return_is_checked():
    class Whole(Torchsde):
        def f(self, t, y):
            return (3 * y).long()

    with pytest.raises(TypeError, match="int64"):
        sdeint(Whole(), y0(), T, dt=0.1, method="log_ode")

    class Half(Torchsde):
        def f(self, t, y):
            return torch.ones_like(y, dtype=torch.float16)

    class Full(Torchsde):
        def f(self, t, y):
            return torch.ones_like(y)

    found = []
    for sde in (Half(), Full()):
        torch.manual_seed(0)
        found.append(sdeint(sde, y0(), T, dt=0.1, adaptive=True, method="heun"))
    torch.testing.assert_close(*found)

    class Inferred(Torchsde):
        def g(self, t, y):
            with torch.inference_mode():
                return 0.5 * y

    with pytest.raises(RuntimeError, match="inference mode"):
        sdeint(Inferred(), y0(), T, dt=0.1, method="milstein")


@pytest.mark.parametrize("faulty", ["f", "g"])
def test_our_equations_as_torchsdes_are_guarded(faulty):
    functions = {"f": lambda t, x: -x, "g": lambda t, x: 0.1 * x, faulty: lambda t, x: x.mul_(-0.1)}
    problem = SDE(**functions, noise_type="diagonal", sde_type="stratonovich")
    start = y0()
    with torch.no_grad(), REFUSED:
        sdeint(problem, start, T, dt=0.1, method="heun", adaptive=True)
    assert torch.equal(start, y0())
    for solver in (torchsde.sdeint, torchsde.sdeint_adjoint):
        with REFUSED:
            solver(to_torchsde(problem), y0(), T, dt=0.1, method="heun")


def test_buffers_of_our_equations_are_refused_or_harmless():
    """Products g . dW are new tensors."""

    def solved(f, g):
        torch.manual_seed(0)
        return sdeint(
            SDE(f, g, "diagonal", "stratonovich"), y0(), T, dt=0.1, method="heun", adaptive=True
        )

    with torch.no_grad(), OVERWRITTEN:
        solved(Reusing(-1.0), lambda t, x: 0.1 * x)
    with torch.no_grad():
        expected = solved(lambda t, x: -x, lambda t, x: 0.1 * x)
        torch.testing.assert_close(solved(lambda t, x: -x, Reusing(0.1)), expected)


def test_parameters_that_an_optimiser_changes_between_solves_are_no_fault():
    rate = nn.Parameter(torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64))
    problem = SDE(lambda t, x: rate.expand_as(x), lambda t, x: 0.1 * x, "diagonal")
    theirs = to_torchsde(problem)
    optimiser = torch.optim.SGD([rate], 0.1)
    for solver in (torchsde.sdeint, torchsde.sdeint_adjoint):
        for _ in range(2):
            solver(theirs, y0(), T, dt=0.5, method="euler")[-1].sum().backward()
            optimiser.step()
    assert (rate < torch.tensor([-1.1, -2.1, -3.1])).all()


def test_sound_equations_are_solved_as_by_torchsde():
    """With functions that return one tensor, the same one, again and again, which is not
    refused.
    """
    constant = torch.full((4, 3), 0.2, dtype=torch.float64)

    class Constant(nn.Module):
        noise_type = "diagonal"
        sde_type = "stratonovich"

        def f(self, t, y):
            return y

        def g(self, t, y):
            return constant

    for more in ({"adaptive": True, "method": "heun"}, {"method": "log_ode"}):
        torch.manual_seed(0)
        bm = torchsde.BrownianInterval(
            0.0, 1.0, size=(4, 3), dtype=torch.float64, entropy=1, levy_area_approximation="foster"
        )
        found = sdeint(Constant(), y0(), T, bm=bm, dt=0.1, **more)
        bm = torchsde.BrownianInterval(
            0.0, 1.0, size=(4, 3), dtype=torch.float64, entropy=1, levy_area_approximation="foster"
        )
        torch.testing.assert_close(
            found[-1], torchsde.sdeint(Constant(), y0(), T[[0, 2]], bm=bm, dt=0.1, **more)[-1]
        )


@pytest.mark.parametrize("kind", ["diagonal", "scalar", "general"])
def test_a_derivative_that_is_zero_at_the_start_is_no_fault(kind):
    """Of squares, and where g itself is zero."""
    x0 = torch.zeros(3, 2, dtype=torch.float64)
    for power in (1, 2):

        def g(t, x, power=power):
            value = 0.1 * x**power
            return torch.stack([value, 2 * value], dim=-1) if kind == "general" else value

        for solver in (Milstein(), StratonovichMilstein(), LogODE()):
            sde = SDE(
                lambda t, x: 1 - x, g, kind, solver.sde_type, 2 if kind == "general" else None
            )
            assert solve(sde, x0, [0.0, 0.5, 1.0], solver=solver).x.isfinite().all()
