"""torchsde as an engine for our equations: `interop.solve_sde`."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sdekit import ODE, SDE, AbstractSDE, BrownianPath, NotFiniteError, WhiteNoise, sdeint
from sdekit.interop import solve_sde

F64 = torch.float64
X0 = torch.randn(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
PATH = BrownianPath(seed=5, knots=(0.0, 1.0))
TS = [0.0, 0.25, 1.0]
METHODS = [
    ("ito", "euler"),
    ("ito", "milstein"),
    ("ito", "srk"),
    ("stratonovich", "heun"),
    ("stratonovich", "euler_heun"),
    ("stratonovich", "midpoint"),
    ("stratonovich", "reversible_heun"),
]
NOISES = {
    "additive": lambda t, x: 0.3 + 0.1 * t,
    "diagonal": lambda t, x: 0.3 + 0.2 * torch.cos(x),
}


def equation(sde_type="ito", kind="diagonal", drift=None):
    return SDE(drift or (lambda t, x: torch.cos(t) - x), NOISES[kind], kind, sde_type)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize(("sde_type", "method"), METHODS, ids=lambda value: value)
def test_states_are_those_of_sdeint_on_the_same_path(sde_type, method, kind):
    asked = []
    sde = equation(sde_type, kind, lambda t, x: asked.append(1) or torch.cos(t) - x)
    found = solve_sde(sde, X0, TS, dt=1 / 16, method=method, noise=PATH, save="all")
    evaluations = len(asked)
    expected = sdeint(sde, X0, TS, dt=1 / 16, method=method, bm=PATH)
    torch.testing.assert_close(found.xs, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.x, found.xs[-1])
    assert found.ts.tolist() == TS
    assert found.evaluations.tolist() == [evaluations] * 3
    assert solve_sde(sde, X0, TS, dt=1 / 16, method=method).xs is None


def test_scalar_and_general_noise():
    matrix = torch.tensor([[0.3, 0.1, 0.0], [0.2, -0.1, 0.4]], dtype=F64)
    x0 = X0[:, 0]
    scalar = SDE(lambda t, x: -x, lambda t, x: 0.3 * x, "scalar")
    general = SDE(
        lambda t, x: -x, lambda t, x: matrix.expand(len(x), 2, 3), "general", noise_size=3
    )
    for sde in (scalar, general):
        settings = {"dt": 1 / 8, "method": "euler"}
        found = solve_sde(sde, x0, TS, noise=PATH, **settings).x
        torch.testing.assert_close(found, sdeint(sde, x0, TS, bm=PATH, **settings)[-1])


def test_its_own_noise_and_adaptive_steps():
    """Of an Ornstein-Uhlenbeck process: the standard deviation at the end."""
    sde = SDE(lambda t, x: -x, lambda t, x: 0.5, "additive")
    x0 = torch.zeros(4000, 1)
    settings = {"method": "srk", "adaptive": True, "rtol": 1e-2, "atol": 1e-2}
    std = float(solve_sde(sde, x0, [0.0, 1.0], dt=0.1, **settings).x.std())
    exact = 0.5 * math.sqrt((1 - math.exp(-2)) / 2)
    assert abs(std / exact - 1) < 5.6 / math.sqrt(8000)


@pytest.mark.parametrize("adjoint_method", [None, "adjoint_reversible_heun"])
def test_gradients_by_the_adjoint(adjoint_method):
    """For x0 and a network in the drift's closure, as the plain gradient of the same steps."""
    net = nn.Linear(2, 2).double()
    sde = equation("stratonovich", drift=lambda t, x: torch.tanh(net(x)) - x)
    settings = {"dt": 1 / 16, "method": "reversible_heun", "noise": PATH}
    found = []
    for more in ({}, {"adjoint": True, "adjoint_method": adjoint_method}):
        x0 = X0.clone().requires_grad_()
        x = solve_sde(sde, x0, TS, **settings, **more).x
        found.append(torch.autograd.grad(x.square().sum(), [x0, *net.parameters()]))
    for plain, by_adjoint in zip(*found, strict=True):
        torch.testing.assert_close(by_adjoint, plain, rtol=1e-7, atol=1e-10)


def test_tensors_that_are_not_parameters_have_gradients_by_the_adjoint_if_they_are_given():
    k = torch.tensor(0.7, dtype=F64, requires_grad=True)
    sde = equation("stratonovich", drift=lambda t, x: -k * x)
    settings = {"dt": 1 / 16, "method": "reversible_heun", "noise": PATH}
    plain, by_adjoint = (
        torch.autograd.grad(solve_sde(sde, X0, TS, **settings, **more).x.sum(), k)[0]
        for more in ({}, {"adjoint": True, "adjoint_params": [k]})
    )
    torch.testing.assert_close(by_adjoint, plain, rtol=1e-7, atol=0)


def test_an_equation_is_asked_for_the_times_of_the_solve():
    @dataclass(frozen=True, eq=False)
    class Until(AbstractSDE):
        noise_type = "diagonal"

        def drift(self, t, x):
            return -x

        def diffusion(self, t, x):
            return 0.1 * x

        def within(self, t0, t1):
            if t1 > 1:
                raise ValueError(f"the equation ends before {t1}")
            return self

    assert solve_sde(Until(), X0, TS, dt=0.25, method="euler").x.isfinite().all()
    with pytest.raises(ValueError, match=r"ends before 2\.0"):
        solve_sde(Until(), X0, [0.0, 2.0], dt=0.25, method="euler")


def test_an_empty_batch_has_no_steps():
    found = solve_sde(equation(), X0[:0], TS, dt=0.1, save="all")
    assert found.xs.shape == (3, 0, 2, 2)


def test_what_is_refused():
    with pytest.raises(ValueError, match="no noise"):
        solve_sde(ODE(lambda t, x: -x), X0, TS, dt=0.1)
    with pytest.raises(ValueError, match="times that increase"):
        solve_sde(equation(), X0, TS[::-1], dt=0.1)
    with pytest.raises(ValueError, match="for adjoint=True"):
        solve_sde(equation(), X0, TS, dt=0.1, adjoint_method="milstein")
    with pytest.raises(ValueError, match="adjoint_params are for adjoint=True"):
        solve_sde(equation(), X0, TS, dt=0.1, adjoint_params=[X0])
    for dt in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="dt must be positive, not"):
            solve_sde(equation(), X0, TS, dt=dt, method="euler")
    with pytest.raises(TypeError, match="WhiteNoise is not one path"):
        solve_sde(equation(), X0, TS, dt=0.1, method="euler", noise=WhiteNoise(0))
    with pytest.raises(ValueError, match="save must be"):
        solve_sde(equation(), X0, TS, dt=0.1, save="first")
    with pytest.raises(TypeError, match="float"):
        solve_sde(equation(), X0.long(), TS, dt=0.1)
    with pytest.raises(ValueError, match="method"):
        solve_sde(equation(), X0, TS, dt=0.1, method="rk4")
    with pytest.raises(RuntimeError, match="in place"):
        solve_sde(equation(drift=lambda t, x: x.mul_(0.5)), X0, TS, dt=0.1, method="euler")


def test_states_that_are_not_finite_are_an_error():
    late = equation(drift=lambda t, x: torch.where((t > 0.5) & (x == x[1]), torch.inf, -x))
    with pytest.raises(NotFiniteError, match="after output 2") as caught:
        solve_sde(late, X0, TS, dt=0.1, method="euler")
    assert caught.value.samples == [1]
    with pytest.raises(NotFiniteError, match="initial state x0"):
        solve_sde(equation(), X0 / 0, TS, dt=0.1, method="euler")
