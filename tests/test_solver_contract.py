"""The solver contract: what each solver promises per kind of noise, forwards and backwards, on nonlinear problems.

Weak orders are measured without Monte Carlo: the expectation of one step by Gauss-Hermite quadrature against the expansion
of the semigroup, whose generator is differentiated by autograd. Strong orders come from 2,000 paths on one fine noise, against
the Taylor method of order 1.5 on that noise, which shares nothing with the solvers.
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
    SEA,
    SRA1,
    SRA3,
    SRID2,
    AdamsBashforth,
    Clocked,
    EulerHeun,
    EulerMaruyama,
    ExponentialEuler,
    ExponentialHeun,
    Heun,
    Increment,
    Langevin,
    Midpoint,
    Milstein,
    PredictorCorrector,
    ReverseSDE,
    ReversibleHeun,
    ShARK,
    SPaRK,
    WhiteNoise,
    solve,
    uniform,
)
from sdekit._noise import AbstractNoise
from sdekit.elementary import exp

MULTISTEP = [*(AdamsBashforth(k) for k in (1, 2, 3)), ReversibleHeun()]
SOLVERS = [
    *(EulerMaruyama(), Milstein(), Heun(), EulerHeun(), Midpoint(), SEA(), SRA1(), SRA3(), ShARK(), SRID2(), SPaRK()),
    *(ExponentialEuler(-1.3), ExponentialHeun(-1.3), RK4(), *MULTISTEP),
]
DIRECTIONS = pytest.mark.parametrize("direction", [1, -1], ids=["forwards", "backwards"])


def f(t, x):
    return torch.sin(2 * x) + 0.5 * torch.cos(3 * t) - 0.3 * x


def b(t, x):
    return 0.8 + 0.3 * torch.cos(2 * x) + 0.2 * torch.sin(3 * t)


COEFFICIENTS = {
    "none": lambda t, x: torch.zeros_like(x),
    "additive": lambda t, x: (0.6 + 0.3 * torch.sin(2 * t)) * torch.ones_like(x),
    "diagonal": b,
    "scalar": b,
    "general": lambda t, x: 0.9 * torch.stack([torch.cos(x + t), torch.sin(x + t)], dim=-1),
    "commutative": lambda t, x: torch.stack([0.6 * b(t, x), 0.8 * b(t, x)], dim=-1),
}
SIZES = {"general": 2, "commutative": 2}


def problem(kind, solver):
    if kind == "none":
        return ODE(f)
    sde_type = "ito" if kind == "additive" else solver.sde_type
    return SDE(f, COEFFICIENTS[kind], "general" if kind in SIZES else kind, sde_type, noise_size=SIZES.get(kind))


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


class FinePath(AbstractNoise):
    """W and its integral on fine cells, each with an H of its own, for the intervals of coarser grids on [0, 1].

    Grids may run in either direction: then W changes its sign and H does not.
    """

    seed = 0

    def __init__(self, cells, paths, size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        w, h = torch.randn(2, cells, paths, size, generator=generator, dtype=torch.float64) / math.sqrt(cells)
        self.cells, self.path = cells, torch.cat([torch.zeros(1, paths, size), w.cumsum(0)])
        means = self.path[:-1] + w / 2 + h / math.sqrt(12)
        self.integral = torch.cat([torch.zeros(1, paths, size), means.cumsum(0) / cells])

    def rows(self, index):
        raise NotImplementedError

    def increments(self, ts, x, shape, *, levy, normals, start):
        assert not normals
        at = [round(t * self.cells) for t in ts]
        for t0, t1, i, j in zip(ts[start:], ts[start + 1 :], at[start:], at[start + 1 :], strict=False):
            w = self.path[j] - self.path[i]
            h = (self.integral[j] - self.integral[i]) / (t1 - t0) - (self.path[i] + self.path[j]) / 2
            yield Increment(w.reshape(len(x), *shape), h.reshape(len(x), *shape) if levy else None)


# Convergence of paths


START = torch.linspace(-2, 2, 2000, dtype=torch.float64)[:, None]


@functools.cache
def fine(size):
    return FinePath(2**10 if size == 1 else 2**12, 2000, size)


def derivative(p, v):
    if not p.requires_grad:
        return torch.zeros_like(v)
    (d,) = torch.autograd.grad(p.sum(), v, create_graph=True, allow_unused=True)
    return torch.zeros_like(v) if d is None else d


def ito(kind, sde_type, direction):
    """Drift and columns of the Ito equation in the running time s = direction t; commuting columns in one."""
    g = COEFFICIENTS[kind]

    def columns(t, x):
        return g(t, x).unbind(-1) if kind == "general" else (b(t, x) if kind == "commutative" else g(t, x),)

    def drift(t, x):
        correction = sum(c * derivative(c, x) for c in columns(t, x)) if sde_type == "stratonovich" else 0.0
        return direction * f(t, x) + 0.5 * correction

    return drift, columns


@functools.cache
def reference(kind, sde_type, ends):
    """Paths at the end of [0, 1] on a fine grid: Milstein's method for general noise, Taylor's of order 1.5 for other."""
    direction, size = int(ends[1] - ends[0]), SIZES.get(kind, 1)
    noise, x, step = fine(size), START, milstein if kind == "general" else taylor
    drift, columns = ito(kind, sde_type, direction)
    steps = noise.cells if kind == "general" else 2**10
    ts = uniform(*ends, steps).tolist()
    for t, dw in zip(ts, noise.increments(ts, x, (size,), levy=True, normals=0, start=0), strict=False):
        if kind == "commutative":
            dw = Increment(*(0.6 * part[:, :1] + 0.8 * part[:, 1:] for part in (dw.w, dw.h)))
        t = torch.full_like(x, t, requires_grad=True)
        x = step(drift, columns, direction, t, x.detach().requires_grad_(), 1 / steps, dw).detach()
    return x


def milstein(drift, columns, direction, t, x, dt, noise):
    """Milstein's method without Levy's area."""
    g = columns(t, x)
    slopes, dw = [derivative(c, x) for c in g], noise.w.split(1, dim=1)
    kick = sum(c * w for c, w in zip(g, dw, strict=True))
    turn = sum(c * w for c, w in zip(slopes, dw, strict=True))
    return x + drift(t, x) * dt + kick + 0.5 * (turn * kick - dt * sum(c * d for c, d in zip(g, slopes, strict=True)))


def taylor(drift, columns, direction, t, x, dt, noise):
    """Kloeden and Platen 1992, equation 10.4.1: strong order 1.5."""
    a, (b,), w, z = drift(t, x), columns(t, x), noise.w, dt * (noise.w / 2 + noise.h)
    a_x, b_x = derivative(a, x), derivative(b, x)

    def l0(p, p_x):
        return direction * derivative(p, t) + a * p_x + 0.5 * b**2 * derivative(p_x, x)

    third = b * derivative(b * b_x, x) * (w**2 / 3 - dt) * w / 2
    first = x + a * dt + b * w + b * b_x * (w**2 - dt) / 2
    return first + b * a_x * z + l0(a, a_x) * dt**2 / 2 + l0(b, b_x) * (w * dt - z) + third


def cases(solvers, *extra):
    return [pytest.param(solver, kind, id=f"{solver}-{kind}") for solver in solvers for kind in (*solver.order, *extra)]


def strong_slope(solver, kind, direction, noise=None):
    """The measured order; against another noise than the fine one, the order that wrong increments leave."""
    ends, equation, promised = (0.0, 1.0)[::direction], problem(kind, solver), solver.order.get(kind, (1,))[0]
    if kind == "none":
        steps, x0 = np.array([24, 48, 96] if promised > 2 else [16, 32, 64, 128]), START[::100]
        exact = solve(equation, x0, uniform(*ends, 2048), solver=RK4()).x
    else:
        steps, x0 = np.array([32, 64, 128] if promised == 0.5 else [16, 32, 64, 128]), START
        exact, noise = reference(kind, equation.sde_type, ends), noise or fine(SIZES.get(kind, 1))
    errors = [
        (solve(equation, x0, uniform(*ends, n), solver=solver, noise=noise).x - exact).square().mean().sqrt() for n in steps
    ]
    return slope(steps, errors)


@DIRECTIONS
@pytest.mark.parametrize(("solver", "kind"), cases(SOLVERS))
def test_strong_order(solver, kind, direction):
    assert strong_slope(solver, kind, direction) == pytest.approx(solver.order[kind].strong, abs=0.15)


@DIRECTIONS
@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.sde_type == "stratonovich"] + [Milstein()], ids=str)
def test_strong_order_is_one_where_general_noise_commutes(solver, direction):
    assert strong_slope(solver, "commutative", direction) == pytest.approx(1, abs=0.15)


@DIRECTIONS
@pytest.mark.parametrize(("solver", "promised"), [(Milstein(), 1), (SRID2(), 1.5)], ids=str)
def test_scalar_noise_may_couple_coordinates(solver, promised, direction):
    """Where g_i depends on all of x, the derivative of g is a matrix and not symmetric."""
    equation = SDE(lambda t, x: f(t, x.flip(1)), lambda t, x: b(t, x.flip(1)), "scalar")
    x0, ends, steps = torch.cat([START, START.flip(0)], dim=1), (0.0, 1.0)[::direction], np.array([16, 32, 64, 128])
    exact = solve(equation, x0, uniform(*ends, 2**10), solver=SRID2(), noise=fine(1)).x
    errors = [(solve(equation, x0, uniform(*ends, n), solver=solver, noise=fine(1)).x - exact).norm() for n in steps]
    assert slope(steps, errors) == pytest.approx(promised, abs=0.15)


class Without(FinePath):
    """The fine noise without H, or with its sign reversed in reverse time, as where a reversed path is taken for a path."""

    def __init__(self, noise, factor):
        self.noise, self.cells, self.factor = noise, noise.cells, factor

    def increments(self, *arguments, **keywords):
        for step in self.noise.increments(*arguments, **keywords):
            yield step._replace(h=self.factor * step.h)


H_SOLVERS = [(SRA1(), "additive"), (SRA3(), "additive"), (ShARK(), "additive"), (SRID2(), "diagonal"), (SPaRK(), "additive")]


@pytest.mark.parametrize(("solver", "kind"), H_SOLVERS, ids=str)
def test_without_its_area_or_with_the_area_of_a_path_not_reversed_the_strong_order_falls(solver, kind):
    for direction in (1, -1):
        assert strong_slope(solver, kind, direction, Without(fine(1), 0.0)) < 1.15
    assert strong_slope(solver, kind, -1, Without(fine(1), -1.0)) < 1.15


# Convergence of means


def expansion(phi, kind, sde_type, direction, t, x, h, terms):
    """E phi after h by sum_k h^k L^k phi / k!, L the generator of the equation, differentiated by autograd."""
    drift, columns = ito(kind, sde_type, direction)

    def generator(phi):
        def applied(t, x):
            p = phi(t, x)
            p_x = derivative(p, x)
            square = sum(c.square() for c in columns(t, x))
            return direction * derivative(p, t) + drift(t, x) * p_x + 0.5 * square * derivative(p_x, x)

        return applied

    value, term, factor = 0.0, phi, 1.0
    for k in range(terms + 1):
        value, factor = value + factor * term(t, x).detach(), factor * h / (k + 1)
        term = generator(term)
    return value.item()


def quadrature(nodes, size):
    """Product Gauss-Hermite nodes `(n, size)` and their masses."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid, mass = (np.stack(np.meshgrid(*[v] * size, indexing="ij"), -1).reshape(-1, size) for v in (points, weights))
    mass = torch.tensor(mass.prod(-1))
    return torch.tensor(grid), mass / mass.sum()


def moved(solver, kind, direction, t, x, h):
    """The ends of one step from x and their masses, by quadrature over all that the step draws."""
    size = 0 if kind == "none" else SIZES.get(kind, 1)
    shape = () if kind == "scalar" else (size,)
    grid, mass = quadrature(12 if size == 1 else 8, size * (2 if solver.levy else 1)) if size else (None, torch.ones(1))
    batch = torch.full((len(mass), 1), x, dtype=torch.float64)
    parts = (None,) * 2 if grid is None else (p.reshape(-1, *shape) * math.sqrt(h) for p in grid.split(size, dim=1))
    w, h_ = (*parts, None)[:2]
    noise = Increment(w, None if h_ is None else h_ / math.sqrt(12))
    equation = problem(kind, solver)
    return solver.step(equation, t, t + direction * h, batch, noise, solver.init(equation, t, batch)).x, mass


@DIRECTIONS
@pytest.mark.parametrize(("solver", "kind"), cases(s for s in SOLVERS if s not in MULTISTEP))
def test_weak_order_of_one_step(solver, kind, direction):
    assert weak_slope(solver, kind, direction) == pytest.approx(solver.order[kind].weak + 1, abs=0.1)


def weak_slope(solver, kind, direction, t=0.3, x=0.9):
    promised = solver.order[kind].weak
    h = 2.0 ** -np.arange(*((9, 13) if promised < 3 else (6, 9)))
    errors = []
    for step in h:
        start = torch.tensor([[t]], dtype=torch.float64, requires_grad=True)
        point = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
        ends, mass = moved(solver, kind, direction, t, x, step)
        error = 0.0
        for phi in (lambda t, x: torch.cos(x), lambda t, x: x + x**2):
            exact = expansion(phi, kind, problem(kind, solver).sde_type, direction, start, point, step, int(promised) + 2)
            error += abs((mass * phi(t, ends)[:, 0]).sum().item() - exact)
        errors.append(error)
    return slope(1 / h, errors)


def clocked(q):
    """A nonlinear semi-linear equation on the clock e^{q l}, F a function of l and x = y scale(l)."""
    return Clocked(lambda l, x: torch.sin(2 * x) + 0.5 * l, lambda l: exp(-l), a=1 + q / 2, q=q)


class Nodes(AbstractNoise):
    """Quadrature nodes as increments, a column an interval."""

    seed = 0

    def __init__(self, w):
        self.w = w

    def rows(self, index):
        raise NotImplementedError

    def increments(self, ts, x, shape, *, levy, normals, start):
        for dw, t0, t1 in zip(self.w.T, ts, ts[1:], strict=False):
            yield Increment(dw[:, None] * math.sqrt(abs(t1 - t0)))


SEVERAL = [
    *((AdamsBashforth(k), kind) for k in (1, 2, 3) for kind in ("additive", "clock, eta = 1", "clock, eta = 0.5")),
    *((ReversibleHeun(), kind) for kind in ("additive", "diagonal")),
]


@DIRECTIONS
@pytest.mark.parametrize(("solver", "kind"), SEVERAL, ids=str)
def test_weak_order_of_several_steps(solver, kind, direction):
    """Expectations over all increments of 1, 2, 4, 8 steps by product quadrature; the differences fall with the order."""
    clocks = {"clock, eta = 1": clocked(2.0), "clock, eta = 0.5": clocked(0.5)}
    equation, values = clocks[kind] if kind in clocks else problem(kind, solver), []
    start, span = 1.0 if kind in clocks else 0.5, 0.1 if kind == "diagonal" else 0.2
    for n in (1, 2, 4, 8):
        grid, mass = quadrature(4, n)
        x0 = torch.full((len(grid), 1), 0.4, dtype=torch.float64)
        x = solve(equation, x0, uniform(start, start + span * direction, n), solver=solver, noise=Nodes(grid)).x[:, 0]
        values.append((mass * torch.cos(2 * x)).sum())
    differences = torch.stack(values).diff().abs()
    order = math.log2(differences[-2] / differences[-1])
    assert order > solver.order.get(kind, solver.order["additive"]).weak - 0.25


# Estimates of the error


EMBEDDED = [s for s in SOLVERS if s.embedded is not None]


@pytest.mark.parametrize(("solver", "kind"), cases(EMBEDDED, "commutative"))
def test_the_error_estimate_falls_with_its_power(solver, kind):
    if kind == "commutative" and "general" not in solver.order:
        pytest.skip("not for general noise")
    h, errors, size = 2.0 ** -np.arange(5, 11), [], SIZES.get(kind, 1)
    x = START[:, 0]
    w, z = torch.randn(2, len(x), size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w, z = (v if kind in SIZES else v[:, 0] for v in (w, z))
    for step in h:
        noise = Increment(w * math.sqrt(step), z * math.sqrt(step / 12))
        errors.append(solver.step(problem(kind, solver), 0.3, 0.3 + step, x, noise, ()).error.square().mean().sqrt())
    # With general noise SPaRK's estimate is of Levy's area; what it promises is the least power.
    promised = solver.embedded if kind == "general" or solver.embedded == 1.5 else 1.5
    assert slope(1 / h, errors) == pytest.approx(promised, abs=0.1)


# Multistep coefficients


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
    if solver.normals:
        forward = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x), "additive")
        return [ReverseSDE(forward, lambda t, x: -torch.tanh(x))]
    return [problem(kind, solver) for kind in solver.order]


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


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not isinstance(s, AdamsBashforth)], ids=str)
@pytest.mark.parametrize("event", [(), (3,), (2, 1, 3)], ids=str)
def test_samples_may_have_times_of_their_own(solver, event):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *event, generator=generator, dtype=torch.float64)
    t0 = torch.tensor([0.0, 0.3, 0.5, 0.1], dtype=torch.float64)
    t1 = torch.tensor([0.1, 0.1, 0.8, 0.05], dtype=torch.float64)
    for equation in every_problem(solver):
        shape = equation.noise_shape(x)
        noise = Increment()
        if shape is not None:
            noise = Increment(*torch.randn(2, 4, *shape, generator=generator, dtype=torch.float64))
        end = solver.step(equation, t0, t1, x, noise, solver.init(equation, t0, x))
        for i in range(4):
            row = slice(i, i + 1)
            alone = Increment(*(part if part is None else part[row] for part in noise))
            state = solver.init(equation, t0[i].item(), x[row])
            single = solver.step(equation, t0[i].item(), t1[i].item(), x[row], alone, state)
            torch.testing.assert_close(end.x[row], single.x, rtol=1e-12, atol=1e-12)
            if end.error is not None:
                assert end.error.shape == x.shape
                torch.testing.assert_close(end.error[row], single.error, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ALL, ids=str)
def test_gradients_flow_through_a_solve(solver):
    equation = every_problem(solver)[-1]

    def end(x0):
        return solve(equation, x0, uniform(0.0, 0.5, 4), solver=solver, noise=WhiteNoise(1)).x

    x0 = torch.linspace(-1, 1.2, 3, dtype=torch.float64)[:, None].requires_grad_()
    assert torch.autograd.gradcheck(end, x0)


@pytest.mark.parametrize("solver", ALL, ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_solver_needs_gradients_enabled(solver, mode):
    for equation in every_problem(solver):
        x0 = torch.linspace(-1, 1.2, 3)[:, None]
        expected = solve(equation, x0, uniform(0.0, 0.5, 4), solver=solver, noise=WhiteNoise(1)).x
        with mode():
            assert torch.equal(solve(equation, x0, uniform(0.0, 0.5, 4), solver=solver, noise=WhiteNoise(1)).x, expected)


@DIRECTIONS
@pytest.mark.parametrize("kind", ReversibleHeun.order)
def test_reversible_heun_finds_its_way_back(kind, direction):
    solver, equation = ReversibleHeun(), problem(kind, ReversibleHeun())
    x0 = torch.linspace(-1, 1.2, 7, dtype=torch.float64)[:, None]
    ts = uniform(*(0.0, 1.0)[::direction], 50).tolist()
    noise = [Increment()] * 50
    if kind != "none":
        noise = list(WhiteNoise(1).increments(ts, x0, equation.noise_shape(x0), start=0))
    x, state = x0, solver.init(equation, ts[0], x0)
    start = state
    for t0, t1, step in zip(ts, ts[1:], noise, strict=False):
        x, _, _, state = solver.step(equation, t0, t1, x, step, state)
    for t0, t1, step in reversed(list(zip(ts, ts[1:], noise, strict=False))):
        x, state = solver.reverse(equation, t0, t1, x, step, state)
    for found, begun in zip((x, *state), (x0, *start), strict=True):
        torch.testing.assert_close(found, begun, rtol=1e-11, atol=1e-11)
