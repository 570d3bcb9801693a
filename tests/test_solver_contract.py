"""The solver contract: what each solver promises per kind of noise, forwards and backwards, on nonlinear problems.

Weak orders are measured without Monte Carlo: the expectation of one step by Gauss-Hermite quadrature against the expansion
of the semigroup, whose generator is differentiated by autograd. Strong orders come from 2,000 paths on one fine noise.
"""

import functools
import math

import numpy as np
import pytest
import torch

from sdekit import (
    ODE,
    RK4,
    SDE,
    AdamsBashforth,
    Clocked,
    EulerMaruyama,
    Heun,
    Increment,
    Langevin,
    PredictorCorrector,
    WhiteNoise,
    solve,
    uniform,
)
from sdekit._noise import AbstractNoise
from sdekit.elementary import exp

SOLVERS = [EulerMaruyama(), Heun(), RK4(), *(AdamsBashforth(k) for k in (1, 2, 3))]
DIRECTIONS = pytest.mark.parametrize("direction", [1, -1], ids=["forwards", "backwards"])


def f(t, x):
    return torch.sin(2 * x) + 0.5 * torch.cos(3 * t) - 0.3 * x


COEFFICIENTS = {
    "none": lambda t, x: torch.zeros_like(x),
    "additive": lambda t, x: (0.6 + 0.3 * torch.sin(2 * t)) * torch.ones_like(x),
    "diagonal": lambda t, x: 0.8 + 0.3 * torch.cos(2 * x),
    "scalar": lambda t, x: 0.8 + 0.3 * torch.cos(2 * x),
    "general": lambda t, x: torch.stack([0.6 + 0.3 * torch.cos(2 * x), 0.4 * torch.sin(2 * x) - 0.3 * t], dim=-1),
}


def problem(kind):
    if kind == "none":
        return ODE(f)
    return SDE(f, COEFFICIENTS[kind], kind, noise_size=2 if kind == "general" else None)


def cases(*, multistep):
    return [
        pytest.param(solver, kind, id=f"{solver}-{kind}")
        for solver in SOLVERS
        if isinstance(solver, AdamsBashforth) == multistep
        for kind in solver.order
    ]


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


class FinePath(AbstractNoise):
    """One fine sequence of increments, summed over the intervals of coarser grids on [0, 1], in either direction."""

    seed = 0

    def __init__(self, cells, paths, size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        fine = torch.randn(cells, paths, size, generator=generator, dtype=torch.float64) / math.sqrt(cells)
        self.cells, self.path = cells, torch.cat([torch.zeros(1, paths, size), fine.cumsum(0)])

    def rows(self, index):
        raise NotImplementedError

    def increments(self, ts, x, shape, *, levy, normals, start):
        assert not levy
        assert not normals
        w = self.path[[round(t * self.cells) for t in ts]].diff(dim=0)
        for dw in w[start:]:
            yield Increment(dw.reshape(len(x), *shape))


# Convergence of paths


REFERENCE = 2**12
START = torch.linspace(-2, 2, 2000, dtype=torch.float64)[:, None]


@pytest.fixture(scope="module")
def fine():
    return {size: FinePath(REFERENCE, 2000, size) for size in (1, 2)}


@pytest.fixture(scope="module")
def reference(fine):
    """Paths at the end of [0, 1] on the finest grid, by kind and direction."""
    return functools.cache(lambda kind, ends: milstein(kind, START, fine[2 if kind == "general" else 1], ends))


def milstein(kind, x0, noise, ends):
    """Milstein's method, an order above what is tested against it; Euler-Maruyama for general noise, which has no such."""
    x, b, ts = x0.clone(), COEFFICIENTS[kind], uniform(*ends, REFERENCE).tolist()
    shape = {"scalar": (), "general": (2,)}.get(kind, (1,))
    for t0, t1, step in zip(ts, ts[1:], noise.increments(ts, x, shape, levy=False, normals=0, start=0), strict=False):
        t, dt, dw = torch.tensor(t0, dtype=torch.float64), t1 - t0, step.w.reshape(len(x), -1)
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            g = b(t, y)
            columns = g.unbind(-1) if kind == "general" else [g]
            slopes = [derivative(c, y).detach() for c in columns]
        g = [c.detach() for c in columns]
        x = x + f(t, x) * dt + sum(c * dw[:, i : i + 1] for i, c in enumerate(g))
        if kind != "general":
            x = x + 0.5 * g[0] * slopes[0] * (dw.square() - abs(dt))
    return x


@DIRECTIONS
@pytest.mark.parametrize(("solver", "kind"), [*cases(multistep=False), *cases(multistep=True)])
def test_strong_order(solver, kind, direction, fine, reference):
    promised = solver.order[kind].strong
    noise = fine[2 if kind == "general" else 1]
    x0, ends = START, (0.0, 1.0)[::direction]
    if kind == "none":
        steps, x0 = np.array([16, 32, 64, 128] if promised < 3 else [24, 48, 96]), x0[::100]
        exact = solve(ODE(f), x0, uniform(*ends, 4096), solver=RK4()).x
        noise = None
    else:
        steps = np.array([16, 32, 64, 128])
        exact = reference(kind, ends)
    errors = [
        (solve(problem(kind), x0, uniform(*ends, n), solver=solver, noise=noise).x - exact).square().mean().sqrt()
        for n in steps
    ]
    assert slope(steps, errors) == pytest.approx(promised, abs=0.15)


# Convergence of means


def derivative(p, v):
    if not p.requires_grad:
        return torch.zeros_like(v)
    (d,) = torch.autograd.grad(p.sum(), v, create_graph=True, allow_unused=True)
    return torch.zeros_like(v) if d is None else d


def generator(phi, kind, direction):
    """L phi for dx = f dt + g dW in the given direction of time, differentiated by autograd."""

    def applied(t, x):
        p = phi(t, x)
        dt, dx = derivative(p, t), derivative(p, x)
        g = COEFFICIENTS[kind](t, x)
        square = g.square().sum(-1) if kind == "general" else g.square()
        return direction * (dt + f(t, x) * dx) + 0.5 * square * derivative(dx, x)

    return applied


def expansion(phi, kind, direction, t, x, h, terms):
    value, term, factor = 0.0, phi, 1.0
    for k in range(terms + 1):
        value, factor = value + factor * term(t, x).detach(), factor * h / (k + 1)
        term = generator(term, kind, direction)
    return value


def expectation(solver, kind, direction, phi, t, x, h):
    """E phi of one step from x, by Gauss-Hermite quadrature over the increments."""
    if kind == "none":
        end = solver.step(problem(kind), t, t + direction * h, torch.full((1, 1), x, dtype=torch.float64), Increment(), ()).x
        return phi(torch.tensor(t), end).squeeze()
    size = 2 if kind == "general" else 1
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    grid = np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), -1).reshape(-1, size)
    mass = torch.tensor(np.prod(np.stack(np.meshgrid(*[weights] * size, indexing="ij"), -1).reshape(-1, size), -1))
    mass = mass / mass.sum()
    batch = torch.full((len(grid), 1), x, dtype=torch.float64)
    w = torch.tensor(grid).reshape(len(grid), size) * math.sqrt(h)
    w = w.reshape(-1) if kind == "scalar" else w
    end = solver.step(problem(kind), t, t + direction * h, batch, Increment(w), ()).x
    return (mass * phi(torch.tensor(t), end)[:, 0]).sum()


@DIRECTIONS
@pytest.mark.parametrize(("solver", "kind"), cases(multistep=False))
def test_weak_order_of_one_step(solver, kind, direction):
    promised = solver.order[kind].weak
    h = 2.0 ** -np.arange(6, 11 if promised < 3 else 9)
    t, x = 0.3, 0.9
    errors = []
    for step in h:
        start = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        point = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
        error = 0.0
        for phi in (lambda t, x: torch.cos(x), lambda t, x: x + x**2):
            exact = expansion(phi, kind, direction, start, point, step, terms=int(promised) + 2)
            error += abs(expectation(solver, kind, direction, phi, t, x, step) - exact.item())
        errors.append(error)
    assert slope(1 / h, errors) == pytest.approx(promised + 1, abs=0.1)


def clocked(q):
    """A nonlinear semi-linear equation on the clock e^{q l}, F a function of l and x = y scale(l)."""
    return Clocked(lambda l, x: torch.sin(2 * x) + 0.5 * l, lambda l: exp(-l), a=1 + q / 2, q=q)


@DIRECTIONS
@pytest.mark.parametrize("equation", ["time", "clock, eta = 1", "clock, eta = 0.5"])
@pytest.mark.parametrize("solver", [AdamsBashforth(k) for k in (1, 2, 3)], ids=str)
def test_weak_order_of_several_steps(solver, equation, direction):
    """Expectations over all increments of 1, 2, 4, 8 steps by product quadrature; the differences fall with the order."""
    kind = "additive"
    equation = {"time": problem(kind), "clock, eta = 1": clocked(2.0), "clock, eta = 0.5": clocked(0.5)}[equation]
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    values = []
    for n in (1, 2, 4, 8):
        grid = torch.tensor(np.stack(np.meshgrid(*[nodes] * n, indexing="ij"), -1).reshape(-1, n))
        mass = torch.tensor(np.prod(np.stack(np.meshgrid(*[weights] * n, indexing="ij"), -1).reshape(-1, n), -1))

        class Nodes(FinePath):
            def __init__(self, w):
                self.w = w

            def increments(self, ts, x, shape, *, levy, normals, start):
                for dw, t0, t1 in zip(self.w.T, ts, ts[1:], strict=False):
                    yield Increment(dw[:, None] * math.sqrt(abs(t1 - t0)))

        x0 = torch.full((len(grid), 1), 0.4, dtype=torch.float64)
        start = 0.5 if isinstance(equation, SDE) else 1.0
        span = (start, start + 0.2 * direction)
        x = solve(equation, x0, uniform(*span, n), solver=solver, noise=Nodes(grid)).x[:, 0]
        values.append(((mass / mass.sum()) * torch.cos(2 * x)).sum())
    differences = torch.stack(values).diff().abs()
    order = math.log2(differences[-2] / differences[-1])
    assert order > solver.order[kind].weak - 0.25


# Coefficients


def conditions(a, b, c):
    """The eight order conditions of a fourth-order Runge-Kutta method, and that rows sum to c."""
    a = np.array([[*row, *[0] * (len(b) - len(row))] for row in a], dtype=float)
    b, c = np.array(b, dtype=float), np.array(c, dtype=float)
    return np.array(
        [
            b.sum() - 1,
            b @ c - 1 / 2,
            b @ c**2 - 1 / 3,
            b @ a @ c - 1 / 6,
            b @ c**3 - 1 / 4,
            (b * c) @ a @ c - 1 / 8,
            b @ a @ c**2 - 1 / 12,
            b @ a @ a @ c - 1 / 24,
            *(a.sum(1) - c),
        ]
    )


def test_rk4_satisfies_the_order_conditions_and_no_neighbour_does():
    tableau = RK4.tableau
    assert np.abs(conditions(tableau.a, tableau.b, tableau.c)).max() < 1e-14
    for i, row in enumerate(tableau.a):
        for j, value in enumerate(row):
            if value:
                a = [list(r) for r in tableau.a]
                a[i][j] *= 1.05
                assert np.abs(conditions(a, tableau.b, tableau.c)).max() > 1e-3
    for i in range(4):
        b = list(tableau.b)
        b[i] *= 1.05
        assert np.abs(conditions(tableau.a, b, tableau.c)).max() > 1e-3


@pytest.mark.parametrize(
    ("k", "published"),
    [(1, [1]), (2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12])],
)
def test_adams_bashforth_has_the_classical_weights_on_even_grids(k, published):
    grid = uniform(1.0, -1.0, 8).tolist()
    planned = AdamsBashforth(k).plan(ODE(f), grid)
    for t in grid[k - 1 : -1]:
        assert planned.weights[t] == pytest.approx([-0.25 * w for w in published], abs=1e-13)
    assert [len(planned.weights[t]) for t in grid[:4]] == [min(i + 1, k) for i in range(4)]


# What every solver keeps


ALL = [*SOLVERS, PredictorCorrector(EulerMaruyama(), Langevin(steps=2))]


def every_problem(solver):
    from sdekit import ReverseSDE

    if solver.normals:
        forward = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x), "additive")
        return [ReverseSDE(forward, lambda t, x: -torch.tanh(x))]
    return [problem(kind) for kind in solver.order]


@pytest.mark.parametrize("solver", ALL, ids=str)
@pytest.mark.parametrize("event", [(), (3,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shapes_dtypes_and_batch_independence(solver, event, dtype):
    """A sample's bits are the same alone, in a half batch and in another order."""
    x0 = torch.randn(6, *event, generator=torch.Generator().manual_seed(0)).to(dtype)
    grid = uniform(1.0, 0.0, 9)
    for equation in every_problem(solver):

        def run(x0, noise, equation=equation):
            return solve(equation, x0, grid, solver=solver, noise=noise).x

        whole = run(x0, WhiteNoise(1))
        assert whole.dtype == dtype
        assert whole.shape == x0.shape
        assert torch.equal(run(x0, WhiteNoise(1)), whole)
        assert torch.equal(torch.cat([run(x0[:2], WhiteNoise(1)), run(x0[2:], WhiteNoise(1, first=2))]), whole)
        order = torch.tensor([5, 0, 3])
        assert torch.equal(run(x0[order], WhiteNoise(1).rows(order)), whole[order])
        assert run(x0[:0], WhiteNoise(1)).shape == (0, *event)


@pytest.mark.parametrize("solver", ALL, ids=str)
def test_gradients_flow_through_a_solve(solver):
    equation = every_problem(solver)[-1]

    def end(x0):
        return solve(equation, x0, uniform(0.0, 0.5, 4), solver=solver, noise=WhiteNoise(1)).x

    x0 = torch.linspace(-1, 1.2, 3, dtype=torch.float64)[:, None].requires_grad_()
    assert torch.autograd.gradcheck(end, x0)
