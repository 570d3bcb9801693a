"""Rosenbrock methods: Jacobians, orders, and stiff equations against SciPy's Radau."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch._C._functorch import is_functorch_wrapped_tensor

from sdekit import (
    ODE,
    AbstractRosenbrock,
    Checkpointed,
    Dopri5,
    Dopri8,
    Event,
    Order,
    PIDController,
    Rodas4,
    Rodas5P,
    RosenbrockTableau,
    SemiLinear,
    Status,
    solve,
    uniform,
)
from sdekit._solvers.linear_systems import _product, factorised, inverted, solved

F64 = torch.float64


def swings(x, v, mu):
    """Rates of van der Pol's x'' = mu (1 - x^2) x' - x with mu in the state, so that a batch may
    have several.
    """
    return v, mu * (1 - x * x) * v - x, 0 * mu


def reactions(a, b, c):
    """Rates of Robertson's reactions."""
    first = -0.04 * a + 1e4 * b * c
    third = 3e7 * b * b
    return first, -first - third, third


def equation_of(rates):
    return ODE(lambda t, x: torch.stack(rates(*x.unbind(1)), dim=1))


def van_der_pol(mu):
    x0 = torch.tensor([[2.0, 0.0, value] for value in mu], dtype=F64)
    return equation_of(swings), x0


def radau(rates, x0, end, **settings):
    """One sample from 0 on, in numbers, which takes less time than in tensors."""
    return solve_ivp(
        lambda t, y: rates(*y.tolist()), (0.0, end), x0, "Radau", rtol=1e-8, atol=1e-12, **settings
    )


def test_a_drift_that_autograd_does_not_see_is_refused_beside_a_linear_part():
    """The sum with the linear part has a derivative, but not that of the drift."""
    hidden = SemiLinear(-1.0, lambda t, x: torch.sin(x).detach())
    net = torch.nn.Linear(1, 1)
    beside_time = SemiLinear(-1.0, lambda t, x: torch.sin(x.detach()) + torch.cos(t))
    with_parameters = SemiLinear(-1.0, lambda t, x: net(x.detach()))
    message = "in a way that autograd can see"
    for equation in (hidden, beside_time, with_parameters):
        for direct in (0, 64):
            with pytest.raises(ValueError, match=message), torch.no_grad():
                solve(equation, torch.ones(2, 1), [0.0, 0.5], solver=Rodas4(direct=direct))
    seen = SemiLinear(-1.0, lambda t, x: torch.sin(x))
    plain = ODE(lambda t, x: torch.sin(x) - x)
    x0 = torch.ones(2, 1, dtype=F64)
    ends = [solve(ode, x0, [0.0, 0.5, 1.0], solver=Rodas4()).x for ode in (seen, plain)]
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("enabled", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("event", [(), (3,), (2, 2)], ids=str)
def test_jacobians(event, enabled):
    """Of each sample, against a loop with reverse-mode derivatives; and the derivative by t."""
    size = max(1, math.prod(event))
    weights = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=F64)

    def f(t, x):
        flat = x.reshape(len(x), size)
        t = t.reshape(-1, 1)
        return (torch.sin(flat @ weights) * torch.cos(2 * t) + t**2).reshape(x.shape)

    x = torch.randn(4, *event, generator=torch.Generator().manual_seed(1), dtype=F64)
    t = torch.linspace(0, 1, 4, dtype=F64)
    with torch.set_grad_enabled(enabled):
        jacobian, rate = ODE(f).jacobian(t, x)
    assert jacobian.shape == (4, size, size)
    for i in range(4):
        one = torch.autograd.functional.jacobian(
            lambda v, i=i: f(t[i : i + 1], v[None])[0].reshape(-1), x[i]
        )
        torch.testing.assert_close(jacobian[i], one.reshape(size, size))
        by_t = torch.autograd.functional.jacobian(lambda s, i=i: f(s[None], x[i : i + 1])[0], t[i])
        torch.testing.assert_close(rate[i], by_t)


@pytest.mark.parametrize("enabled", [True, False], ids=["with gradients", "without"])
def test_jacobians_of_drifts_without_t_or_without_x(enabled):
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    t = torch.linspace(0, 1, 4, dtype=F64)
    parameter = torch.ones(2, dtype=F64, requires_grad=True)
    with torch.set_grad_enabled(enabled):
        jacobian, rate = ODE(lambda t, x: -3 * x).jacobian(t, x)
        by_t = ODE(lambda t, x: (t + parameter).expand(x.shape)).jacobian(t, x)
        with pytest.raises(ValueError, match="does not depend on x in a way that autograd"):
            ODE(lambda t, x: x.detach() * parameter).jacobian(t, x)
        constant = ODE(lambda t, x: torch.zeros_like(x) + parameter).jacobian(t, x)
    with torch.inference_mode():
        inferred, _ = ODE(lambda t, x: -3 * x).jacobian(t.clone(), x.clone())
    assert torch.equal(inferred, jacobian)
    assert torch.equal(jacobian, -3 * torch.eye(2, dtype=F64).expand(4, 2, 2))
    assert torch.equal(rate, torch.zeros_like(x))
    assert torch.equal(by_t[0], torch.zeros(4, 2, 2, dtype=F64))
    assert torch.equal(by_t[1], torch.ones_like(x))
    assert torch.equal(constant[0], torch.zeros(4, 2, 2, dtype=F64))
    assert torch.equal(constant[1], torch.zeros_like(x))


class OwnJacobian(ODE):
    """An equation with derivatives of its own, by torch.func."""

    changes = False
    recorded: ClassVar[list[bool]] = []

    def jacobian(self, t, x):
        self.recorded.append(torch.is_grad_enabled())
        by_x = torch.func.vmap(torch.func.jacrev(lambda v: self.drift(0.0, v)))(x)
        if self.changes:
            x.add_(1.0)
        return by_x, torch.zeros_like(x)


class ChangingJacobian(OwnJacobian):
    changes = True


def test_an_equation_with_derivatives_of_its_own():
    """Changes in place are refused, or made in a copy where torch does not count them."""
    x0 = torch.tensor([[1.0, 2.0]], dtype=F64)
    ts = uniform(0.0, 1.0, 10)

    def f(t, x):
        return -10 * x**3

    def solved(equation, x):
        return solve(equation(f), x, ts, solver=Rodas4()).x

    known = solved(ODE, x0)
    OwnJacobian.recorded.clear()
    with torch.no_grad(), torch.inference_mode():
        inferred = solved(OwnJacobian, x0)
    assert OwnJacobian.recorded == 10 * [False]
    torch.testing.assert_close(inferred.clone(), known)
    by_rows = torch.func.vmap(lambda x: solved(ChangingJacobian, x))
    torch.testing.assert_close(by_rows(x0[None])[0], known)
    for inference in (False, True):
        with torch.inference_mode(inference), pytest.raises(RuntimeError, match="in place"):
            solved(ChangingJacobian, x0)


def test_what_is_not_differentiated_costs_no_transforms():
    """A solve whose derivatives nobody asks for has none, and the same bits."""
    x0 = torch.tensor([[2.0, 0.0]], dtype=F64)
    wrapped = []

    def drift(t, x):
        wrapped.append(is_functorch_wrapped_tensor(x))
        return torch.stack([x[:, 1], 5 * (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]], dim=1)

    plain = solve(ODE(drift), x0, uniform(0.0, 1.0, 20), solver=Rodas4())
    assert not any(wrapped)
    assert not plain.x.requires_grad
    followed = solve(ODE(drift), x0.requires_grad_(), uniform(0.0, 1.0, 20), solver=Rodas4())
    assert any(wrapped)
    torch.testing.assert_close(followed.x.detach(), plain.x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("ends", [(0.0, 2.0), (2.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize(("solver", "order"), [(Rodas4(), 4), (Rodas5P(), 5)], ids=str)
def test_order_of_ends_and_of_outputs(solver, order, ends):
    """That of the method at the ends of steps, one less within them, of an equation that depends on
    time.
    """

    def f(t, x):
        t = t.reshape(-1, 1) if isinstance(t, torch.Tensor) else t
        other = torch.sin(2 * x[:, :1]) - 0.3 * x[:, 1:]
        return torch.cat([x[:, 1:] * (2 + t) ** 0.5, other], dim=1)

    x0 = torch.tensor([[1.0, 0.5], [-0.3, 1.2]], dtype=F64)
    grid = torch.linspace(*ends, 17, dtype=F64)
    settings = {"solver": Dopri8(), "control": PIDController(1e-13, 1e-13), "save": "all"}
    at_ends = []
    within = []
    for n in (32, 64):
        # Steps of equal length, by tolerances that all of them meet.
        h = 2.0 / n
        control = PIDController(1e9, 1e9, first=h, largest=1.0 + 1e-12)
        shifted = torch.cat([grid[:1], grid[1:-1] + 0.4 * h * (1 if ends[1] else -1), grid[-1:]])
        known = solve(ODE(f), x0, shifted, **settings).xs
        found = solve(ODE(f), x0, shifted, solver=solver, control=control, save="all")
        assert found.accepted.tolist() == [n, n]
        at_ends.append(float((found.x - known[-1]).norm()))
        within.append(float((found.xs - known)[1:-1].norm()))
    orders = np.log2(np.array([at_ends[:-1], within[:-1]]) / np.array([at_ends[1:], within[1:]]))
    assert (orders[0] > order - 0.2).all()
    assert (orders[1] > order - 1.1).all()


@pytest.mark.parametrize(("solver", "most"), [(Rodas4(), 400), (Rodas5P(), 300)], ids=str)
def test_van_der_pol(solver, most):
    """Past a jump: errors follow the tolerance."""
    equation, x0 = van_der_pol([1e3])
    exact = radau(swings, x0[0], 1e3).y[0, -1]
    errors = []
    for tol in (1e-3, 1e-5):
        control = PIDController(tol, tol)
        solution = solve(equation, x0, [0.0, 1e3], solver=solver, control=control)
        errors.append(float((solution.x[0, 0] - exact).abs()))
    assert errors[0] < 5e-3
    assert errors[1] < 1e-4
    assert int(solution.accepted) < most


@pytest.mark.parametrize("solver", [Rodas4(), Rodas5P()], ids=str)
def test_robertson_and_its_conservation(solver):
    """Eleven decades of time. A linear invariant is kept to rounding."""
    x0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    control = PIDController(1e-5, 1e-9)
    solution = solve(equation_of(reactions), x0, [0.0, 1e8], solver=solver, control=control)
    exact = torch.from_numpy(radau(reactions, x0[0], 1e8).y[:, -1])
    torch.testing.assert_close(solution.x[0], exact, rtol=3e-3, atol=1e-11)
    assert float(solution.x.sum()) == pytest.approx(1.0, abs=1e-12)
    assert int(solution.accepted) < 300


def test_a_span_of_which_the_first_step_is_far_below_rounding():
    """Robertson's reactions to 1e11; the value there is that of Hairer and Wanner's test set."""
    x0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64)
    control = PIDController(1e-5, 1e-10)
    solution = solve(equation_of(reactions), x0, [0.0, 1e11], solver=Rodas4(), control=control)
    assert float(solution.x[0, 0]) == pytest.approx(2.083340149701255e-08, rel=3e-3)
    assert int(solution.rejected) < 10


def test_each_sample_has_its_own_steps():
    """Of different stiffness, with the bits that it has alone."""
    equation, x0 = van_der_pol([1.0, 30.0, 1e3])
    settings = {"solver": Rodas4(), "control": PIDController(1e-3, 1e-3)}
    whole = solve(equation, x0, [0.0, 25.0], **settings)
    assert whole.accepted.unique().numel() == 3
    for i in range(3):
        alone = solve(equation, x0[i : i + 1], [0.0, 25.0], **settings)
        assert torch.equal(alone.x[0], whole.x[i])
        assert int(alone.accepted) == int(whole.accepted[i])


@dataclass(frozen=True, eq=False)
class Forgetful(Rodas4):
    """Computes the Jacobian in every try of a step."""

    def retried(self, given, returned):
        return given


@pytest.mark.parametrize("stiffness", [[30.0], [1.0, 30.0, 1e3]], ids=["one", "three"])
def test_rejected_steps_keep_their_jacobian(stiffness):
    """It depends on t and x alone; results have the same bits."""
    equation, x0 = van_der_pol(stiffness)
    control = PIDController(1e-4, 1e-4)
    jacobians = []

    def counting(t, x):
        if x.requires_grad or is_functorch_wrapped_tensor(x):  # it is differentiated
            jacobians.append(len(x))
        return equation.drift(t, x)

    found = []
    for solver in (Rodas4(), Forgetful()):
        jacobians.clear()
        solution = solve(ODE(counting), x0, [0.0, 25.0], solver=solver, control=control)
        found.append((solution, sum(jacobians)))
    (kept, few), (again, many) = found
    assert torch.equal(kept.x, again.x)
    assert torch.equal(kept.evaluations, again.evaluations)
    assert int(kept.rejected.sum()) > 20
    if len(x0) == 1:
        assert few == int(kept.accepted)
        assert many == int(kept.accepted + kept.rejected)
    else:  # those that have ended are still called until they are removed
        assert many - few == int(kept.rejected.sum())


def test_gradients_with_rejected_steps_of_a_jacobian_without_gradients():
    """That of f = -50 (x - cos t) is a constant; a first step of 0.9 is rejected."""
    start = torch.tensor([[0.3], [40.0]], dtype=F64, requires_grad=True)
    equation = ODE(lambda t, x: -50.0 * (x - torch.cos(torch.as_tensor(t))))
    settings = {"solver": Rodas4(), "control": PIDController(1e-7, 1e-7, first=0.9)}
    solution = solve(equation, start, [0.0, 1.0], **settings)
    assert (solution.rejected > 0).all()
    with torch.no_grad():
        assert torch.equal(solution.x, solve(equation, start, [0.0, 1.0], **settings).x)
    (found,) = torch.autograd.grad(solution.x.sum(), start)
    torch.testing.assert_close(found, torch.full_like(start, math.exp(-50)), rtol=0, atol=1e-12)


def test_a_jacobian_that_is_not_finite_leaves_the_gradients_of_other_samples():
    """x' = -k sqrt(x) at x = -1; the first step of the other sample is rejected."""
    k = torch.tensor(0.5, dtype=F64, requires_grad=True)
    x0 = torch.tensor([[1.0], [-1.0]], dtype=F64)
    solution = solve(
        ODE(lambda t, x: -k * x.sqrt()), x0, [0.0, 1.0], solver=Rodas4(), throw=False,
        control=PIDController(1e-8, 1e-8, first=0.9),
    )  # fmt: skip
    assert solution.status.tolist() == [Status.DONE, Status.NOT_FINITE]
    assert int(solution.rejected[0]) > 0
    (found,) = torch.autograd.grad(solution.x[0, 0], k)
    assert float(found) == pytest.approx(-0.75, rel=1e-6)  # x = (1 - k t / 2)^2


@pytest.mark.parametrize("solver", [Rodas4(), Rodas5P()], ids=str)
def test_it_is_stable_at_infinity(solver):
    """One step of x' = -l x multiplies x by a number that tends to 0 as l h grows."""
    for l in (1e2, 1e4, 1e8):
        x = solve(ODE(lambda t, x, l=l: -l * x), torch.ones(1, 1, dtype=F64), [0.0, 1.0],
                  solver=solver).x  # fmt: skip
        assert abs(float(x)) < 30 / l


def test_fewer_steps_than_an_explicit_pair():
    """Where the slow solution is smooth: x' = -1000 (x - cos t)."""
    equation = ODE(lambda t, x: -1000 * (x - torch.cos(torch.as_tensor(t))))
    x0 = torch.zeros(1, 1, dtype=F64)
    control = PIDController(1e-6, 1e-6)
    stiff, explicit = (
        solve(equation, x0, [0.0, 5.0], solver=solver, control=control)
        for solver in (Rodas4(), Dopri5())
    )
    assert 8 * int(stiff.accepted) < int(explicit.accepted)
    torch.testing.assert_close(stiff.x, explicit.x, rtol=0, atol=1e-5)


def test_gradients_flow_through_stiff_steps():
    """To a parameter of f and to x_0, against finite differences."""

    def solved(k, start):
        equation = ODE(lambda t, x: -k * (x - torch.cos(torch.as_tensor(t))))
        settings = {"solver": Rodas4(), "control": PIDController(1e-7, 1e-7)}
        return solve(equation, start[None, None], [0.0, 1.0], **settings).x.sum()

    k = torch.tensor(50.0, dtype=F64, requires_grad=True)
    start = torch.tensor(0.3, dtype=F64, requires_grad=True)
    found = torch.autograd.grad(solved(k, start), (k, start))
    with torch.no_grad():
        by_k = (solved(k + 1e-3, start) - solved(k - 1e-3, start)) / 2e-3
    assert float(found[0]) == pytest.approx(float(by_k), rel=1e-4)
    assert float(found[1]) == pytest.approx(math.exp(-50), abs=1e-12)


def test_events_of_stiff_equations():
    """The first zero of van der Pol's x, against Radau's."""
    equation, x0 = van_der_pol([100.0])
    event = Event(lambda t, x: x[:, 0])
    settings = {"solver": Rodas4(), "control": PIDController(1e-6, 1e-6), "event": event}
    found = float(solve(equation, x0, [0.0, 300.0], **settings).events.t)

    def zero(t, y):
        return y[0]

    zero.terminal = True
    known = radau(swings, x0[0], 300.0, events=zero)
    assert found == pytest.approx(known.t_events[0][0], abs=2e-3)


def test_drifts_that_are_not_finite_end_as_such():
    """No step is accepted, and the status reports it."""
    equation = ODE(lambda t, x: x * math.inf)
    solution = solve(
        equation, torch.ones(1, 1, dtype=F64), [0.0, 1.0], solver=Rodas4(),
        control=PIDController(1e-3, 1e-3), throw=False,
    )  # fmt: skip
    assert solution.status.tolist() == [Status.NOT_FINITE]


def test_a_singular_matrix_is_a_rejected_step():
    """1 / (gamma h) = J at the first step tried; a shorter one is right."""
    equation = ODE(lambda t, x: 4.0 * x)
    control = PIDController(1e-6, 1e-6, first=1.0)
    solution = solve(equation, torch.ones(1, 1, dtype=F64), [0.0, 1.5], solver=Rodas4(),
                     control=control)  # fmt: skip
    assert int(solution.rejected) >= 1
    assert float(solution.x) == pytest.approx(math.exp(6), rel=1e-4)


def test_drifts_that_autograd_does_not_see_are_refused():
    def hidden(t, x):
        with torch.no_grad():
            return -100 * x

    x0 = torch.ones(2, 1, dtype=F64)
    for drift in (hidden, lambda t, x: -100 * (x.detach() - torch.cos(t))):
        for direct in (0, 64):
            with pytest.raises(ValueError, match="in a way that autograd can see"):
                solve(ODE(drift), x0, uniform(0.0, 1.0, 20), solver=Rodas4(direct=direct))

    def last(rate):
        equation = ODE(lambda t, x: rate * (torch.cos(t) - x.detach()))
        return solve(equation, x0, uniform(0.0, 1.0, 20), solver=Rodas4()).x

    with pytest.raises(ValueError, match="in a way that autograd can see"):
        torch.func.jacrev(last)(torch.tensor(2.0, dtype=F64))
    with pytest.raises(ValueError, match="cannot repeat them: leave out gradient"):
        solve(ODE(lambda t, x: -x), x0, uniform(0.0, 1.0, 20), solver=Rodas4(),
              gradient=Checkpointed())  # fmt: skip


@pytest.mark.parametrize("linear", [None, -1.0])
def test_a_drift_that_is_constant_at_one_point_is_asked_again_at_another(linear):
    def f(t, x):
        return torch.relu(x - 0.5).detach() * -10

    equation = ODE(f) if linear is None else SemiLinear(linear, f)
    at = torch.ones(1, 1, dtype=F64)
    solve(equation, 0.1 * at, [0.0, 0.1], solver=Rodas4())
    with pytest.raises(ValueError, match="in a way that autograd can see"):
        solve(equation, at, [0.0, 0.1], solver=Rodas4())


@pytest.mark.parametrize("direct", [0, 64])
def test_drifts_that_do_not_depend_on_x(direct):
    """Their Jacobian is 0, which is right, and not something that autograd does not see."""
    x0 = torch.ones(2, 1, dtype=F64)
    ts = uniform(0.0, 1.0, 10)

    def last(equation, x0=x0):
        return solve(equation, x0, ts, solver=Rodas4(direct=direct)).x

    rate = torch.tensor(2.0, dtype=F64, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(last(ODE(lambda t, x: torch.full_like(x, 2.0))), x0 + 2)
        torch.testing.assert_close(last(ODE(lambda t, x: rate.expand_as(x))), x0 + 2)
    of_time = last(ODE(lambda t, x: torch.cos(3 * t).expand_as(x)))
    torch.testing.assert_close(of_time, x0 + math.sin(3.0) / 3, rtol=1e-5, atol=0)
    beside = last(SemiLinear(-1.0, lambda t, x: torch.ones_like(x)), 0 * x0)
    torch.testing.assert_close(beside, x0 - math.exp(-1), rtol=1e-5, atol=0)


def test_networks_in_inference_mode():
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 2).double()
    equation = ODE(lambda t, x: -10 * net(x))
    x0 = torch.ones(3, 2, dtype=F64)
    plain = solve(equation, x0, uniform(0.0, 0.1, 4), solver=Rodas4()).x
    with torch.inference_mode():
        found = solve(equation, torch.ones(3, 2, dtype=F64), uniform(0.0, 0.1, 4),
                      solver=Rodas4()).x  # fmt: skip
    torch.testing.assert_close(found, plain.detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("solver", [Rodas4(), Rodas5P()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype, solver):
    limit = (30 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps
    for d in (3, 6):
        x = solve(ODE(lambda t, x: -20 * x), torch.ones(2, d, dtype=dtype), uniform(0.0, 0.1, 8),
                  solver=solver).x  # fmt: skip
        assert x.dtype == dtype
        assert x.double() == pytest.approx(math.exp(-2), abs=limit)


def test_the_derivative_with_respect_to_time_fits_half_precision():
    """h^2 f_t does not, and h f_t does."""
    equation = ODE(lambda t, x: -(x - torch.as_tensor(t).to(x).reshape(-1, 1)))
    x = solve(equation, torch.zeros(1, 1, dtype=torch.float16), [0.0, 300.0, 600.0],
              solver=Rodas4()).x  # fmt: skip
    assert float(x) == pytest.approx(599, rel=4e-3)


@dataclass(frozen=True, eq=False)
class Linear(AbstractRosenbrock):
    """Linearly implicit rules of one and two stages: (1 - h J) k = h f."""

    order: ClassVar = {"none": Order(1, 1)}
    embedded = 1
    tableau: ClassVar = RosenbrockTableau(1.0, (), (), (0.0,), (1.0,), ((0.0,),))


@dataclass(frozen=True, eq=False)
class Twice(Linear):
    tableau: ClassVar = RosenbrockTableau(
        1.0, (), ((-2.0,),), (0.0, 1.0), (1.0, 0.5), ((0.0, 0.0),)
    )


def test_rules_of_one_and_two_stages():
    """Against their formulas for x' = a x + b t."""
    a, b, h = -3.0, 2.0, 0.1
    equation = ODE(lambda t, x: a * x + b * torch.as_tensor(t).to(x).reshape(-1, 1))
    factor = 1 / (1 / h - a)
    first = factor * (a * 1.5 + h * b)
    second = factor * (a * (1.5 + first) + b * h - 2.0 / h * first + 0.5 * h * b)
    for solver, expected in ((Linear(), 1.5 + first), (Twice(), 1.5 + first + second)):
        x0 = torch.full((2, 1), 1.5, dtype=F64)
        x = solve(equation, x0, [0.0, h], solver=solver).x
        torch.testing.assert_close(x, torch.full_like(x0, expected), rtol=1e-13, atol=0)


def test_a_graph_keeps_the_states_of_stages_alone():
    """Not the sums of all later stages, of which they are a part."""
    sizes = []

    def drift(t, x):
        if not is_functorch_wrapped_tensor(x):  # in the Jacobian
            sizes.append(x.untyped_storage().nbytes())
        return -x * x

    x0 = torch.ones(3, 2, dtype=F64, requires_grad=True)
    solve(ODE(drift), x0, [0.0, 0.1], solver=Rodas5P())
    assert sizes == (1 + 8) * [3 * 2 * 8]  # the first asks whether autograd sees x


def test_derivatives_with_gradients_are_not_kept():
    """Those of a rejected step; f_t alone has them where a parameter multiplies t."""
    solver = Rodas4()
    given = solver.init(ODE(lambda t, x: -x), torch.zeros(2, dtype=F64), torch.ones(2, 1))
    jacobian, rate, known = given
    assert bool(solver.retried(given, given)[2].all())
    for i in range(2):
        returned = [jacobian, rate]
        returned[i] = returned[i].clone().requires_grad_()
        assert solver.retried(given, (*returned, known)) is given


def exactly_solved(matrix, right):
    """The solution of one linear system, by elimination with fractions."""
    rows = [[*map(Fraction, row), Fraction(b)] for row, b in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda j: abs(rows[j][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [float(row[-1]) for row in rows]


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_products_with_inverted_factors_are_as_accurate_as_substitutions(d):
    """Where the solution is much smaller than the norms of right side and inverse allow."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, d, d, generator=generator, dtype=F64)
    rates = -(10 ** (8 * torch.rand(40, d, generator=generator, dtype=F64)))
    jacobian = vectors @ torch.diag_embed(rates) @ torch.linalg.inv(vectors)
    length = torch.full((40,), 0.25, dtype=F64)  # so that 1 / length is exact
    matrix = 4.0 * torch.eye(d, dtype=F64) - jacobian
    x = torch.randn(40, d, generator=generator, dtype=F64)
    right = (matrix @ x[..., None])[..., 0]
    factors = factorised(jacobian, length)
    known = torch.tensor(
        [exactly_solved(a, b) for a, b in zip(matrix.tolist(), right.tolist(), strict=True)],
        dtype=F64,
    )
    found = (_product(inverted(factors), right), solved(factors, right))
    errors, least = (
        torch.linalg.vector_norm(x - known, dim=1) / torch.linalg.vector_norm(known, dim=1)
        for x in found
    )
    assert errors.max() <= 4 * least.max() + 1e-15
    ratio = (errors + 1e-16).log() - (least + 1e-16).log()
    assert ratio.mean().exp() < 1.6
    shaped = right.reshape(40, d, 1)
    assert torch.equal(_product(inverted(factors), shaped)[..., 0], found[0])
