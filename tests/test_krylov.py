"""GMRES, products with Jacobians, and stiff equations of many numbers by them."""

import math

import pytest
import torch

from sdekit import (
    ODE,
    ImplicitEulerMaruyama,
    ImplicitPlaten,
    PIDController,
    Rodas4,
    solve,
    uniform,
)
from sdekit._solvers.krylov import gmres
from sdekit._solvers.linear_systems import linear_solver

F64 = torch.float64


def systems(batch, d, seed=0):
    """Matrices around 1, and right sides."""
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(batch, d, d, generator=generator, dtype=F64) / (2 * math.sqrt(d))
    return matrices + torch.eye(d, dtype=F64), torch.randn(batch, d, generator=generator, dtype=F64)


def solved(matrices, right, **settings):
    settings = {"limit": 1e-10 * right.norm(dim=1), "most": 60} | settings
    return gmres(lambda v: (matrices * v[:, None]).sum(-1), right, **settings)[0]


@pytest.mark.parametrize("d", [1, 3, 40, 100])
def test_solutions_and_residuals(d):
    matrices, right = systems(5, d)
    x = solved(matrices, right)
    torch.testing.assert_close(x, torch.linalg.solve(matrices, right), rtol=0, atol=1e-8)
    residual = torch.linalg.vector_norm((matrices @ x[:, :, None])[:, :, 0] - right, dim=1)
    assert (residual <= 1.01e-10 * torch.linalg.vector_norm(right, dim=1)).all()


def test_orthogonality_over_many_dimensions():
    """Of a matrix with numbers from 1 to a million; its residual is what it was taken for."""
    matrices = torch.diag(torch.logspace(0, 6, 80, dtype=F64))[None]
    right = torch.ones(1, 80, dtype=F64)
    x = solved(matrices, right, most=80)
    torch.testing.assert_close(x[0], 1 / matrices[0].diagonal(), rtol=1e-4, atol=0)
    assert float((matrices[0] @ x[0] - right[0]).norm()) <= 1.01e-10 * float(right.norm())


def test_a_sample_does_not_depend_on_others():
    """Although they need, and are asked for, different numbers of dimensions."""
    matrices, right = systems(4, 50)
    matrices[1] = torch.eye(50, dtype=F64)
    matrices[2] = torch.diag(torch.logspace(0, 1, 50, dtype=F64))
    limit = torch.tensor([1e-10, 1e-10, 1e-10, 1e-2], dtype=F64) * right.norm(dim=1)
    together = solved(matrices, right, limit=limit)
    for i in range(4):
        alone = solved(matrices[i : i + 1], right[i : i + 1], limit=limit[i : i + 1])
        assert torch.equal(alone[0], together[i])


def test_subspaces_that_are_exhausted():
    """The exact solution after one or two dimensions; right sides of 0; the rest goes on."""
    matrices, right = systems(4, 50)
    matrices[0] = 3 * torch.eye(50, dtype=F64)
    matrices[1] = torch.diag(torch.cat([torch.full((25,), 2.0), torch.ones(25)]).double())
    right[2] = 0
    x = solved(matrices, right)
    torch.testing.assert_close(x[0], right[0] / 3)
    torch.testing.assert_close(x[1], right[1] / matrices[1].diagonal())
    assert torch.equal(x[2], right[2])
    torch.testing.assert_close(x[3], torch.linalg.solve(matrices[3], right[3]))


def test_systems_without_an_answer():
    """Singular ones, those that need more dimensions, and right sides that are not finite."""
    matrices, right = systems(4, 30)
    matrices[0] = 0
    matrices[1] = torch.eye(30, dtype=F64).roll(1, 0)  # no residual is smaller before the last
    right[1] = torch.eye(30, dtype=F64)[0]
    right[2, 3] = math.inf
    x = solved(matrices, right, most=20, limit=1e-4 * right.norm(dim=1))
    assert x[:3].isnan().all()
    assert x[3].isfinite().all()


def test_real_numbers_in_the_subspace_that_are_no_eigenvalues_do_not_count():
    """The eigenvalues are 1 to 5 and pairs around -1, none of which is real and negative; numbers
    of the subspace are, far from all of them.
    """
    matrix = torch.diag(torch.cat([torch.full((10,), -1.0), torch.linspace(1, 5, 10)]).double())
    for i in range(5):
        matrix[2 * i + 1, 2 * i] = 1 + 0.1 * i
        matrix[2 * i, 2 * i + 1] = -1 - 0.1 * i
    _, right = systems(6, 20)

    def product(v):
        return v @ matrix.T

    settings = {"limit": 0.1 * right.norm(dim=1), "most": 20}
    x, negative = gmres(product, right, **settings)
    assert x.isfinite().all()
    assert not negative.any()
    matrix[:2, :2] = torch.diag(torch.tensor([-1.0, -3.0]))
    assert gmres(product, right, **settings)[1].all()


def reaction(t, x):
    """Each number with its neighbours, stiff, in a medium that changes in time."""
    t = torch.as_tensor(t).reshape(-1, *[1] * (x.ndim - 1))
    flat = x.flatten(1)
    coupled = 400 * (flat.roll(1, 1) - 2 * flat + flat.roll(-1, 1)) - flat**3
    return coupled.reshape(x.shape) + torch.cos(3 * t)


def start(*event):
    flat = torch.linspace(-1, 1, 3 * math.prod(event), dtype=F64)
    return torch.sin(7 * flat).reshape(3, *event)


def test_products_are_those_of_the_jacobian():
    x = start(4, 3)
    t = torch.tensor([0.1, 0.5, 2.0], dtype=F64)
    jacobian, rate = ODE(reaction).jacobian(t, x)
    product, found = ODE(reaction).jacobian_product(t, x)
    torch.testing.assert_close(found, rate)
    v = start(4, 3).cos()
    expected = (jacobian @ v.flatten(1)[:, :, None]).reshape(x.shape)
    torch.testing.assert_close(product(v), expected)


def test_products_of_an_autonomous_linear_drift():
    """Its rate is 0, although its graph does not depend on t."""
    product, rate = ODE(lambda t, x: -2 * x).jacobian_product(torch.zeros(3, dtype=F64), start(4))
    assert torch.equal(product(start(4)), -2 * start(4))
    assert torch.equal(rate, torch.zeros(3, 4, dtype=F64))


@pytest.mark.parametrize("event", [(12,), (2, 6)], ids=str)
def test_steps_are_those_with_factors(event):
    """At a tolerance, and backwards on a grid of the non-stiff part."""
    control = PIDController(1e-3, 1e-3)
    by_factors, by_products = (
        solve(ODE(reaction), start(*event), [0.0, 0.3], solver=solver, control=control)
        for solver in (Rodas4(), Rodas4(direct=11, residual=1e-9))
    )
    assert torch.equal(by_factors.accepted, by_products.accepted)
    torch.testing.assert_close(by_factors.x, by_products.x, rtol=0, atol=1e-8)
    assert not torch.equal(by_factors.x, by_products.x)
    grid = uniform(0.001, 0.0, 3)
    by_factors, by_products = (
        solve(ODE(reaction), start(*event), grid, solver=solver).x
        for solver in (Rodas4(direct=12), Rodas4(direct=0, residual=1e-9))
    )
    torch.testing.assert_close(by_factors, by_products, rtol=1e-8, atol=1e-8)


def test_residuals_are_relative_to_the_largest_right_side_of_a_step():
    """A small one, such as that of an estimate of the error, may be all rounding."""
    x = start(12)
    t = torch.zeros(3, dtype=F64)
    h = torch.full((3,), 0.01, dtype=F64)
    solve_linear, *_ = linear_solver(ODE(reaction), t, x, h, direct=0, residual=1e-6)
    exact, *_ = linear_solver(ODE(reaction), t, x, h, direct=12, residual=1e-6)
    torch.testing.assert_close(solve_linear(x), exact(x), rtol=0, atol=1e-5 * 0.01)
    assert torch.equal(solve_linear(1e-7 * x), torch.zeros_like(x))
    torch.testing.assert_close(solve_linear(1e3 * x), exact(1e3 * x), rtol=0, atol=1e-2 * 0.01)


@pytest.mark.parametrize(
    "solver", [Rodas4(direct=0), ImplicitEulerMaruyama(direct=0)], ids=["Rodas4", "implicit"]
)
@pytest.mark.parametrize("scale", [1e-22, 1e-30, 1e30])
def test_the_size_of_states_does_not_matter_in_float32(solver, scale):
    """Their squares are 0 or infinite there: the smallest did not move at all."""
    x0 = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    decay = ODE(lambda t, x: -50 * x)
    x, scaled = (solve(decay, s * x0, uniform(0, 0.1, 5), solver=solver).x for s in (1.0, scale))
    assert 0 < x[0, 0] < 0.1
    torch.testing.assert_close(scaled / scale, x, rtol=1e-4, atol=0)


def test_many_numbers():
    """Diffusion in 4,000 cells, against its exact modes: a Jacobian would have 128 megabytes."""
    d = 4000
    place = torch.arange(d, dtype=F64) * (2 * math.pi / d)
    x0 = torch.stack([torch.cos(place), torch.cos(40 * place)])
    rate = 0.1 * d**2

    def diffusion(t, x):
        return rate * (x.roll(1, 1) - 2 * x + x.roll(-1, 1))

    control = PIDController(1e-3, 1e-3)
    x = solve(ODE(diffusion), x0, [0.0, 0.002], solver=Rodas4(), control=control).x
    decay = [math.exp(-0.002 * rate * 2 * (1 - math.cos(2 * math.pi * k / d))) for k in (1, 40)]
    torch.testing.assert_close(x, x0 * torch.tensor(decay, dtype=F64)[:, None], rtol=0, atol=2e-3)


def test_tolerances_that_the_residual_does_not_resolve_are_refused():
    settings = {"control": PIDController(1e-9, 1e-9)}
    with pytest.raises(
        ValueError, match="below 1e-08, what Rodas4 resolves for states of this size"
    ):
        solve(ODE(reaction), start(6), [0.0, 3e-4], solver=Rodas4(direct=5), **settings)
    finer = solve(
        ODE(reaction), start(6), [0.0, 3e-4], solver=Rodas4(direct=5, residual=1e-7), **settings
    )
    direct = solve(ODE(reaction), start(6), [0.0, 3e-4], solver=Rodas4(direct=6), **settings)
    torch.testing.assert_close(finer.x, direct.x, rtol=0, atol=1e-8)


def test_inference_mode():
    settings = {"solver": Rodas4(direct=0)}
    plain = solve(ODE(reaction), start(6), uniform(0.0, 0.1, 2), **settings).x
    with torch.inference_mode():
        found = solve(ODE(reaction), start(6), uniform(0.0, 0.1, 2), **settings).x
    torch.testing.assert_close(found, plain)


class Once(torch.autograd.Function):
    """-x^2, whose derivative autograd cannot differentiate again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return -x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return -2 * x * gradient


def test_a_product_that_would_be_zero_is_refused():
    product, _ = ODE(lambda t, x: Once.apply(x)).jacobian_product(torch.zeros(3), start(4))
    with pytest.raises(ValueError, match="cannot be differentiated again"):
        product(start(4))


def test_what_has_no_products_is_refused():
    settings = {"solver": Rodas4(direct=3)}

    def hidden(t, x):
        with torch.no_grad():
            return -100 * x

    with pytest.raises(ValueError, match="in a way that autograd can see"):
        solve(ODE(hidden), start(6), uniform(0.0, 1.0, 20), **settings)
    x0 = start(3).requires_grad_()
    assert solve(ODE(reaction), x0, uniform(0.0, 0.1, 4), **settings).x.requires_grad
    rate = torch.tensor(2.0, dtype=F64, requires_grad=True)
    detached = ODE(lambda t, x: -rate * x.detach())  # it needs gradients, those of the rate alone
    for solver in (Rodas4(direct=3), Rodas4()):
        with pytest.raises(ValueError, match="in a way that autograd can see"), torch.no_grad():
            solve(detached, start(6), uniform(0.0, 1.0, 20), solver=solver)
    with pytest.raises(ValueError, match=r"more than direct = 3 numbers .* without gradients"):
        solve(ODE(reaction), start(6).requires_grad_(), uniform(0.0, 0.1, 4), **settings)
    with pytest.raises(ValueError, match=r"solve under torch\.no_grad"):
        solve(ODE(lambda t, x: -rate * x), start(6), uniform(0.0, 0.1, 4), **settings)


@pytest.mark.parametrize("solver", [Rodas4, ImplicitEulerMaruyama, ImplicitPlaten])
def test_transforms_of_torch_func_are_refused(solver):
    """Of the states, and of a parameter, where neither t nor x is transformed."""

    def end(x, rate):
        equation = ODE(lambda t, x: -rate * x)
        return solve(equation, x, uniform(0.0, 0.1, 2), solver=solver(direct=3)).x.sum()

    x0 = start(6)
    rate = torch.tensor(2.0, dtype=F64)
    refused = pytest.raises(
        ValueError, match=r"more than direct = 3 numbers .* torch\.func does not"
    )
    for argument in (0, 1):
        with refused:
            torch.func.grad(end, argnums=argument)(x0, rate)
    with refused:
        torch.func.jvp(end, (x0, rate), (x0, rate))
