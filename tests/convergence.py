"""How orders are measured: nonlinear problems, one fine noise with references on it, and
expectations without Monte Carlo.
"""

import functools
import itertools
import math

import numpy as np
import torch

from sdekit import ODE, RK4, SDE, Increment, ReverseSDE, solve, uniform
from sdekit._noise.white import AbstractNoise


def f(t, x):
    return torch.sin(2 * x) + 0.5 * torch.cos(3 * t) - 0.3 * x


def b(t, x):
    return 0.8 + 0.3 * torch.cos(2 * x) + 0.2 * torch.sin(3 * t)


def both(angle):
    """Cosine and sine, in one more dimension."""
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)


SHARES = torch.tensor([0.6, 0.8], dtype=torch.float64)
COEFFICIENTS = {
    "none": lambda t, x: torch.zeros_like(x),
    "additive": lambda t, x: (0.6 + 0.3 * torch.sin(2 * t)) * torch.ones_like(x),
    "diagonal": b,
    "scalar": b,  # in one dimension as "diagonal"
    "general": lambda t, x: 0.9 * both(x + t),
    "commutative": lambda t, x: b(t, x).unsqueeze(-1) * SHARES,
}
SIZES = {"general": 2, "commutative": 2}


def general_slopes(columns):
    """The derivatives of the columns of "general" by x. The sum of columns times slopes is zero:
    the equations of Ito and of Stratonovich are the same.
    """
    cosine, sine = columns
    return -sine, cosine


def expanded(kind, sde_type, direction, t, x):
    """The drift of the Ito equation in the running time s = direction t with its derivatives by t,
    x and x twice, and those of g: written out, for autograd would take most of the time.
    """
    sine = torch.sin(2 * x)
    cosine = torch.cos(2 * x)
    a = [f(t, x), -1.5 * torch.sin(3 * t), 2 * cosine - 0.3, -4 * sine]
    a = [direction * part for part in a]
    if kind == "additive":
        return a, (COEFFICIENTS[kind](t, x), 0.6 * torch.cos(2 * t), 0.0, 0.0)
    g = b(t, x)
    g_t = 0.6 * torch.cos(3 * t)
    g_x = -0.6 * sine
    g_xx = -1.2 * cosine
    if sde_type == "stratonovich":
        g_xxx = 2.4 * sine
        shift = (g * g_x, g_t * g_x, g_x**2 + g * g_xx, 3 * g_x * g_xx + g * g_xxx)
        a = [part + 0.5 * more for part, more in zip(a, shift, strict=True)]
    return a, (g, g_t, g_x, g_xx)


def problem(kind, solver):
    if kind == "none":
        return ODE(f)
    sde_type = "ito" if kind == "additive" else solver.sde_type
    return SDE(
        f,
        COEFFICIENTS[kind],
        "general" if kind in SIZES else kind,
        sde_type,
        noise_size=SIZES.get(kind),
    )


class Decay(SDE):
    """dx = -x dt + dW with its kernel."""

    def __init__(self):
        super().__init__(lambda t, x: -x, lambda t, x: torch.ones_like(x), "additive")

    def kernel(self, t):
        return math.exp(-t), math.sqrt(-math.expm1(-2 * t) / 2)


def reverse_decay(a=1.0):
    """A reverse-time equation with a kernel and a score -tanh(a x), for solvers that ask for
    them.
    """
    return ReverseSDE(Decay(), lambda t, x: -torch.tanh(a * x))


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


class FinePath(AbstractNoise):
    """W and its integral on fine cells, each with an H of its own, for the intervals of coarser
    grids on [0, 1].

    Grids may run in either direction: then W changes its sign and H does not.
    """

    seed = 0

    def __init__(self, cells, paths, size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        w, h = torch.randn(
            2, cells, paths, size, generator=generator, dtype=torch.float64
        ) / math.sqrt(cells)
        self.cells = cells
        self.path = torch.cat([torch.zeros(1, paths, size), w.cumsum(0)])
        means = self.path[:-1] + w / 2 + h / math.sqrt(12)
        self.integral = torch.cat([torch.zeros(1, paths, size), means.cumsum(0) / cells])

    def rows(self, index):
        raise NotImplementedError

    def answer(self, query):
        ts, x, shape, levy, normals, start, _ = query
        assert not normals
        at = [round(t * self.cells) for t in ts]
        for t0, t1, i, j in zip(
            ts[start:], ts[start + 1 :], at[start:], at[start + 1 :], strict=False
        ):
            w = self.path[j] - self.path[i]
            h = (self.integral[j] - self.integral[i]) / (t1 - t0) - (
                self.path[i] + self.path[j]
            ) / 2
            yield Increment(w.reshape(len(x), *shape), h.reshape(len(x), *shape) if levy else None)


# Convergence of paths


START = torch.linspace(-2, 2, 2000, dtype=torch.float64)[:, None]


@functools.cache
def fine(size):
    return FinePath(2**10, 2000, size) if size == 1 else FinePath(2**11, 1000, size)


@functools.cache
def commuting():
    """Two columns of noise of which 0.6 w_1 + 0.8 w_2 is fine(1): the paths of "commutative" are
    those of "diagonal".
    """
    noise = FinePath(2**10, 2000, 1, seed=1)
    other = fine(1)
    for name in ("path", "integral"):
        v = getattr(noise, name)
        w = getattr(other, name)
        setattr(noise, name, torch.cat([0.6 * w - 0.8 * v, 0.8 * w + 0.6 * v], dim=2))
    return noise


def derivative(p, v):
    """That of p by v, by a pass back through its graph."""
    if not p.requires_grad:
        return torch.zeros_like(v)
    (found,) = torch.autograd.grad(p.sum(), v, create_graph=True, allow_unused=True)
    return torch.zeros_like(v) if found is None else found


def ito(kind, sde_type, direction):
    """Drift and columns of the Ito equation in the running time s = direction t."""
    g = COEFFICIENTS[kind]

    def columns(t, x):
        return g(t, x).unbind(-1) if kind == "general" else (g(t, x),)

    def drift(t, x):
        g = columns(t, x)
        if sde_type == "ito":
            return direction * f(t, x)
        return direction * f(t, x) + 0.5 * sum(c * derivative(c, x) for c in g)

    return drift, columns


def starts(kind):
    """Where paths begin: one for each row of the noise, and fewer without noise."""
    return START[:: {"none": 100, "general": 2}.get(kind, 1)]


@functools.cache
def reference(kind, sde_type, ends):
    """Paths at the end of [0, 1] on a fine grid: Milstein's method for general noise, Taylor's of
    order 1.5 for other.

    Without noise, RK4's from every hundredth start.
    """
    if kind == "none":
        return solve(ODE(f), starts(kind), uniform(*ends, 2**9), solver=RK4()).x
    direction = int(ends[1] - ends[0])
    size = SIZES.get(kind, 1)
    noise = fine(size)
    x = starts(kind)
    step = milstein if kind == "general" else taylor
    steps = {"general": noise.cells, "additive": 2**10}.get(kind, 2**9)
    ts = uniform(*ends, steps)
    drawn = noise.increments(ts.tolist(), x, (size,), levy=True, normals=0, start=0)
    for t, dw in zip(ts, drawn, strict=False):
        x = step(kind, sde_type, direction, t, x, 1 / steps, dw)
    return x


def milstein(kind, sde_type, direction, t, x, dt, noise):
    """Milstein's method without Levy's area, where the sum of columns times slopes is zero."""
    g = COEFFICIENTS[kind](t, x).unbind(-1)
    dw = noise.w.split(1, dim=1)
    kick = sum(c * w for c, w in zip(g, dw, strict=True))
    turn = sum(c * w for c, w in zip(general_slopes(g), dw, strict=True))
    return x + direction * f(t, x) * dt + kick + 0.5 * turn * kick


def taylor(kind, sde_type, direction, t, x, dt, noise):
    """Kloeden and Platen 1992, equation 10.4.1: strong order 1.5."""
    (a, a_t, a_x, a_xx), (b, b_t, b_x, b_xx) = expanded(kind, sde_type, direction, t, x)
    w = noise.w
    z = dt * (noise.w / 2 + noise.h)
    l0_a = direction * a_t + a * a_x + 0.5 * b**2 * a_xx
    l0_b = direction * b_t + a * b_x + 0.5 * b**2 * b_xx
    third = b * (b_x**2 + b * b_xx) * (w**2 / 3 - dt) * w / 2
    first = x + a * dt + b * w + b * b_x * (w**2 - dt) / 2
    return first + b * a_x * z + l0_a * dt**2 / 2 + l0_b * (w * dt - z) + third


@functools.cache
def strong_slope(solver, kind, direction, noise=None):
    """The measured order; against another noise than the fine one, the order that wrong increments
    leave.
    """
    ends = (0.0, 1.0)[::direction]
    equation = problem(kind, solver)
    promised = solver.order.get(kind, (1,))[0]
    steps = np.array([32, 64])
    if kind == "none":
        steps = np.array([48, 96]) if promised > 2 else steps
    else:
        # On coarse grids the errors of higher order, which fall faster, are the larger ones.
        back = getattr(solver, "k", 1)
        if back > 2:
            steps = steps * (8 if back + getattr(solver, "corrects", False) > 4 else 2)
        noise = noise or (commuting() if kind == "commutative" else fine(SIZES.get(kind, 1)))
        # Steps that iterate take long, and those of order one need not be as fine as others.
        coarse = kind == "commutative" or (solver.iterates and promised >= 1)
        steps = steps // 2 if coarse else steps
    x0 = starts(kind)
    alike = "diagonal" if kind == "commutative" else kind  # in one dimension
    # Both equations of "general" are the same.
    exact = reference(alike, "ito" if kind == "general" else equation.sde_type, ends)
    errors = [
        (solve(equation, x0, uniform(*ends, n), solver=solver, noise=noise).x - exact)
        .square()
        .mean()
        .sqrt()
        for n in steps
    ]
    return slope(steps, errors)


# Convergence of means


@functools.cache
def powers(phi, kind, sde_type, direction, t, points, terms):
    """L^k phi at t and each of the points for k = 0, 1, ..., terms, with L the generator of the
    equation, differentiated by autograd.
    """
    drift, columns = ito(kind, sde_type, direction)

    def generator(phi):
        def applied(t, x):
            p = phi(t, x)
            p_x = derivative(p, x)
            square = sum(c.square() for c in columns(t, x))
            return (
                direction * derivative(p, t) + drift(t, x) * p_x + 0.5 * square * derivative(p_x, x)
            )

        return applied

    x = torch.tensor(points, dtype=torch.float64)[:, None].requires_grad_()
    t = torch.full_like(x, t, requires_grad=True)
    values = []
    term = phi
    for _ in range(terms + 1):
        values.append(term(t, x).detach()[:, 0])
        term = generator(term)
    return values


def expansion(phi, kind, sde_type, direction, t, points, h, terms):
    """E phi after h by sum_k h^k L^k phi / k!."""
    values = powers(phi, kind, sde_type, direction, t, points, terms)
    return sum(h**k / math.factorial(k) * value for k, value in enumerate(values))


def first_function(t, x):
    return torch.cos(x)


def second_function(t, x):
    return x + x**2


def quadrature(nodes, size):
    """Product Gauss-Hermite nodes `(n, size)` and their masses."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid, mass = (
        np.stack(np.meshgrid(*[v] * size, indexing="ij"), -1).reshape(-1, size)
        for v in (points, weights)
    )
    mass = torch.tensor(mass.prod(-1))
    return torch.tensor(grid), mass / mass.sum()


class Nodes(AbstractNoise):
    """Quadrature nodes as increments, a column an interval."""

    seed = 0

    def __init__(self, w):
        self.w = w

    def rows(self, index):
        raise NotImplementedError

    def answer(self, query):
        for dw, (t0, t1) in zip(self.w.T, itertools.pairwise(query.ts), strict=True):
            yield Increment(dw[:, None] * math.sqrt(abs(t1 - t0)))


def moved(solver, kind, direction, t, points, h):
    """The ends of one step from each of the points, `(points, nodes)`, and their masses, by
    quadrature over all that the step draws.
    """
    size = 0 if kind == "none" else SIZES.get(kind, 1)
    shape = () if kind == "scalar" else (size,)
    grid, mass = (
        quadrature(12 if size == 1 else 8, size * (2 if solver.levy else 1))
        if size
        else (None, torch.ones(1))
    )
    points = torch.tensor(points, dtype=torch.float64)
    batch = points.repeat_interleave(len(mass))[:, None]
    parts = (
        (None,) * 2
        if grid is None
        else (
            p.repeat(len(points), 1).reshape(-1, *shape) * math.sqrt(h)
            for p in grid.split(size, dim=1)
        )
    )
    w, h_ = (*parts, None)[:2]
    noise = Increment(w, None if h_ is None else h_ / math.sqrt(12))
    equation = problem(kind, solver)
    state = solver.init(equation, t, batch)
    ends = solver.step(equation, t, t + direction * h, batch, noise, state).x
    return ends.reshape(len(points), -1), mass


def weak_slope(solver, kind, direction, t=0.3, points=(0.9, -0.4, 0.2, 1.3)):
    """The power of h with which one step's means are wrong, summed over points: at a single one the
    leading error may be nearly zero.
    """
    promised = solver.order[kind].weak
    sde_type = problem(kind, solver).sde_type
    alike = "diagonal" if kind == "scalar" else kind  # in one dimension
    h = 2.0 ** -np.arange(9, 13)
    errors = []
    for step in h:
        error = 0.0
        ends, mass = moved(solver, kind, direction, t, points, step)
        for phi in (first_function, second_function):
            exact = expansion(phi, alike, sde_type, direction, t, points, step, int(promised) + 2)
            error += ((mass * phi(t, ends)).sum(1) - exact).abs().sum().item()
        errors.append(error)
    return slope(1 / h, errors)


def local_weak_slope(solver, problem, time, scale=lambda s: 1.0, x=0.4):
    """The power of h with which a step from s = 0 to h differs in mean from two of h/2, for an
    equation of one dimension.

    By quadrature over all that the steps draw; one less is the weak order of a method whose steps
    do not remember.

    Arguments:
        time: the equation's time as a function of s.
        scale: x over the equation's state, in which means are taken.
    """
    lengths = 2.0 ** -np.arange(6, 10)
    errors = []
    for h in lengths:
        ends = []
        for parts in (1, 2):
            ts = [float(time(h * i / parts)) for i in range(parts + 1)]
            drawn = 0 if problem.noise_type == "none" else 1 + solver.normals
            grid, mass = (
                quadrature(8, drawn * parts)
                if drawn
                else (None, torch.ones(1, dtype=torch.float64))
            )
            y = torch.full((len(mass), 1), x / scale(0.0), dtype=torch.float64)
            planned = solver.plan(problem, ts)
            for i, (t0, t1) in enumerate(itertools.pairwise(ts)):
                noise = Increment()
                if grid is not None:
                    w, *z = grid[:, i * drawn : (i + 1) * drawn].split(1, dim=1)
                    noise = Increment(
                        w * math.sqrt(abs(t1 - t0)), None, torch.stack(z) if z else None
                    )
                y = planned.step(problem, t0, t1, y, noise, ()).x
            end = y * scale(h)
            ends.append((mass * (torch.cos(2 * end) + end**2)[:, 0]).sum())
        errors.append(abs(ends[0] - ends[1]).item())
    return slope(1 / lengths, errors)


def weak_slope_on_clock(solver, problem, l=0.2):
    """The same for steps in l."""
    return local_weak_slope(
        solver, problem, lambda h: problem.time(l + h), lambda h: problem.scale(l + h)
    )
