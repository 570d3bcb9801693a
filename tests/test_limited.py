"""UniPC-2 with limiters."""

from itertools import pairwise

import pytest
import torch

import sdekit
from sdekit import LimitedUniPC
from sdekit_diffusion import OnClock

TIMES = [0.0, 0.3, 0.5, 0.9, 1.0, 1.2]


def turning(t, x):
    """Slopes of three samples: one that keeps its direction, one that turns, one that returns."""
    stiffness = torch.tensor([[0.3], [2.0], [9.0]], dtype=torch.float64)
    rotated = torch.stack([-x[:, 1], x[:, 0]], dim=1)
    return torch.cos(x) * t - stiffness * x + 1.5 * rotated * (stiffness == 2)


def weights(nodes, start, stop):
    """Of values at nodes, whose polynomial is integrated exactly."""
    powers = torch.arange(len(nodes), dtype=torch.float64)
    nodes = torch.tensor(nodes, dtype=torch.float64)
    ends = torch.tensor([start, stop], dtype=torch.float64)
    moments = (ends[1] ** (powers + 1) - ends[0] ** (powers + 1)) / (powers + 1)
    return torch.linalg.solve(nodes[None] ** powers[:, None], moments).tolist()


def cosine(a, b):
    return ((a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)))[:, None]


def by_definition(x, times):
    """The states of the docstring's formulas, P_2 with B/2, and the cosines."""
    f0 = turning(times[0], x)
    f2 = None
    phi = torch.zeros(len(x), 1, dtype=torch.float64)
    states = [x]
    cosines = []
    for i, (start, stop) in enumerate(pairwise(times)):
        h = stop - start
        one = x + h * f0
        two = one
        if f2 is not None:
            two = one + h / 2 * (f2 - f0) / ((times[i - 1] - start) / h)
        p = one + phi * (two - one)
        if i == len(times) - 2:
            states.append(p)
            break
        f1 = turning(stop, p)
        c1 = x + h / 2 * (f0 + f1)
        if f2 is None:
            x = c1
        else:
            w1, w0, w2 = weights([stop, start, times[i - 1]], start, stop)
            c2 = x + w1 * f1 + w0 * f0 + w2 * f2
            cos = cosine(f1 - f0, f0 - f2)
            phi = cos.clamp(min=0)
            x = p + (1 + cos).clamp(max=1) * (c1 + phi * (c2 - c1) - p)
            cosines.append(cos)
        f2 = f0
        f0 = f1
        states.append(x)
    return torch.stack(states), torch.cat(cosines)


def test_steps_are_those_of_the_definition():
    """Cosines of all kinds occur: near 1, between, and negative."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    ode = sdekit.ODE(turning)
    found = sdekit.solve(ode, x0, TIMES, solver=LimitedUniPC(), save="all").xs
    expected, cosines = by_definition(x0, TIMES)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert cosines.max() > 0.9
    assert cosines.min() < -0.9
    assert ((cosines > 0.1) & (cosines < 0.9)).any()


def test_the_last_step_uses_one_value_if_asked():
    x0 = torch.tensor([[0.5, -0.2]], dtype=torch.float64)
    ode = sdekit.ODE(lambda t, x: torch.sin(x) + t)

    def last(**settings):
        states = sdekit.solve(ode, x0, TIMES, solver=LimitedUniPC(**settings), save="all").xs
        return states[-1] - states[-2], states[-2]

    plain = last()
    for settings in ({"lower_final": True}, {"lower_final": 6}):
        step, before = last(**settings)
        torch.testing.assert_close(before, plain[1], rtol=0, atol=0)
        assert (step - plain[0]).abs().min() > 1e-4, settings
    for settings in ({"lower_final": 5}, {"lower_final": True, "steps_after": 1}):
        torch.testing.assert_close(last(**settings)[0], plain[0], rtol=0, atol=0)
    one = sdekit.solve(ode, x0, [0.0, 0.4], solver=LimitedUniPC()).x
    torch.testing.assert_close(one, x0 + 0.4 * torch.sin(x0), rtol=1e-14, atol=0)


def test_an_evaluation_a_step():
    ode = sdekit.ODE(lambda t, x: -x)
    for steps in (1, 2, 3, 10):
        ts = sdekit.uniform(0.0, 1.0, steps)
        found = sdekit.solve(ode, torch.ones(2, 1), ts, solver=LimitedUniPC())
        assert found.evaluations.tolist() == [steps, steps]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_slopes_that_do_not_change_are_integrated_exactly(dtype):
    """Differences of 0 have no angle; tiny ones have one in any dtype."""
    ode = sdekit.ODE(lambda t, x: torch.ones_like(x))
    ts = sdekit.uniform(0.0, 1.0, 4)
    found = sdekit.solve(ode, torch.zeros(2, 3, dtype=dtype), ts, solver=LimitedUniPC()).x
    torch.testing.assert_close(found, torch.ones_like(found))


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e24])
def test_states_of_any_size_are_solved_alike(scale):
    """In float32 squares of these numbers are 0 or infinite."""
    ode = sdekit.ODE(lambda t, x: torch.stack([x[:, 1], -x[:, 0]], dim=1))
    ts = sdekit.uniform(0.0, 3.0, 12)
    x0 = torch.tensor([[1.0, 0.5]])
    one = sdekit.solve(ode, x0, ts, solver=LimitedUniPC()).x
    other = sdekit.solve(ode, scale * x0, ts, solver=LimitedUniPC()).x
    torch.testing.assert_close(other / scale, one, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_decay_below_the_smallest_squares_is_stable(dtype):
    ode = sdekit.ODE(lambda t, x: -x)
    x0 = torch.tensor([[1.0, 2.0]], dtype=dtype)
    found = sdekit.solve(ode, x0, sdekit.uniform(0.0, 60.0, 120), solver=LimitedUniPC()).x
    assert found.abs().max() < 1e-15


def test_states_of_no_numbers():
    ode = sdekit.ODE(lambda t, x: -x)
    for shape in ((0, 2), (3, 0)):
        found = sdekit.solve(ode, torch.ones(shape), [0.0, 0.5, 1.0, 1.5], solver=LimitedUniPC())
        assert found.x.shape == shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_gradients_where_slopes_do_not_change(dtype):
    """x' = (2 - x)/(1 - t) is a straight line to 2: after 4/5 of the time the derivative is 1/5."""
    ode = sdekit.ODE(lambda t, x: (2 - x) / (1 - t))
    ts = sdekit.uniform(0.0, 0.8, 8)
    for shape in ((200, 1), (50, 3)):
        x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        x0.requires_grad_()
        sdekit.solve(ode, x0, ts, solver=LimitedUniPC()).x.sum().backward()
        torch.testing.assert_close(x0.grad, torch.full_like(x0, 0.2), rtol=0.05, atol=0)


def test_derivatives_take_the_cosines_as_constants():
    """Forwards as backwards; those of smooth slopes agree with differences."""
    ode = sdekit.ODE(lambda t, x: torch.stack([x[:, 1], -torch.sin(x[:, 0])], dim=1))
    ts = sdekit.uniform(0.0, 1.0, 40)
    x0 = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    step = torch.tensor([[0.3, -0.2]], dtype=torch.float64)

    def end(x):
        return sdekit.solve(ode, x, ts, solver=LimitedUniPC()).x

    _, forwards = torch.func.jvp(end, (x0,), (step,))
    _, pull = torch.func.vjp(end, x0)
    torch.testing.assert_close((pull(forwards)[0] * step).sum(), forwards.square().sum())
    differences = (end(x0 + 1e-5 * step) - end(x0 - 1e-5 * step)) / 2e-5
    torch.testing.assert_close(forwards, differences, rtol=1e-5, atol=1e-6)


def test_after_a_change_of_x_nothing_is_extrapolated_from_it():
    """The prediction from a state that the caller has moved uses the new slope alone."""
    ts = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    ode = sdekit.ODE(lambda t, x: torch.cos(t) - x)
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    now = sdekit.stepper(ode, x0, ts, solver=LimitedUniPC())
    for _ in range(4):
        now = now.next()
    moved = now.with_x(now.x + 1.0)
    slope = torch.cos(torch.tensor(0.8, dtype=torch.float64)) - moved.x
    torch.testing.assert_close(moved.next().x, moved.x + 0.2 * slope, rtol=1e-12, atol=0)


def test_refused():
    for k in (1, 3):
        with pytest.raises(ValueError, match="LimitedUniPC is offered for k in 2, not"):
            LimitedUniPC(k)
    solver = LimitedUniPC()
    ts = sdekit.uniform(0.0, 1.0, 3)
    sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
    with pytest.raises(ValueError, match="LimitedUniPC does not solve equations with additive"):
        sdekit.solve(sde, torch.ones(2, 1), ts, solver=solver)
    with pytest.raises(ValueError, match="LimitedUniPC is for the probability flow, eta = 0"):
        OnClock(solver, 0.5)
    with pytest.raises(TypeError, match="not normal with a known mean"):
        solver.mean_weights(0.0, 1.0)
