"""Stochastic solvers by their coefficients, their evaluations, and torchsde's results on the same
Brownian motion.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torchsde

from sdekit import (
    SDE,
    SEA,
    SRA1,
    SRA3,
    SRID2,
    AbstractStochasticRungeKutta,
    EulerHeun,
    EulerMaruyama,
    ExponentialEuler,
    ExponentialHeun,
    Heun,
    Increment,
    Midpoint,
    Milstein,
    ReversibleHeun,
    ShARK,
    SlowRK,
    SPaRK,
    Stage,
    all_solvers,
    solve,
    uniform,
)
from sdekit._noise.white import AbstractNoise

ADDITIVE = [
    type(solver)
    for solver in all_solvers(AbstractStochasticRungeKutta)
    # Which has other conditions, below.
    if "additive" in solver.order and not isinstance(solver, SRID2)
]


# Order conditions


def padded(rows, width, depth):
    """Nested tuples of weights as an array, `(rows, width, depth)`, zero where nothing is said."""
    array = np.zeros((len(rows), width, depth))
    for i, row in enumerate(rows):
        for j, weights in enumerate(row):
            array[i, j] = weights
    return array


def read(tableau, depth):
    """c, A, B of the stages with f, of those with g, and the end's weights; B[i, j, k] is for g_j
    N_k in stage i.
    """
    f, g = ([s for s in tableau.stages if kind in s.evaluates] for kind in "fg")

    def arrays(stages):
        A = padded([s.a for s in stages], len(f), 1)[..., 0]
        B = padded([s.b for s in stages], len(g), depth)
        return np.array([s.c for s in stages], float), A, B

    return (
        arrays(f),
        arrays(g),
        np.array(tableau.end.a, float),
        padded([tableau.end.b], len(g), depth)[0],
    )


def consistent(tableau):
    """Rows that sum to c, and an embedded end that is a method."""
    conditions = [sum(s.a) - s.c for s in tableau.stages if s.a]
    if tableau.embedded is not None:
        conditions += [sum(tableau.difference.a), *np.sum(tableau.difference.b, 0)]
    return conditions


def additive_conditions(tableau, *, order):
    """Strong order 1.5 and weak order two for additive noise, in W and H: mean squares of stages
    are those of W's mean.
    """
    (c0, _, B0), (c1, _, _), alpha, ends = read(tableau, 2)
    p, q = B0.sum(1).T
    w, h = ends.T
    conditions = [
        alpha.sum() - 1,
        w.sum() - 1,
        h.sum(),
        alpha @ p - 1 / 2,
        alpha @ q - 1,
        w @ c1 - 1 / 2,
        h @ c1 + 1,
    ]
    if order == 1.5:
        conditions += [alpha @ c0 - 1 / 2, alpha @ (p**2 + q**2 / 12) - 1 / 2, *consistent(tableau)]
    return conditions


def commutative_conditions(tableau):
    """Strong order one for commutative Stratonovich noise: the second-order term of the step is (g
    W)' g W / 2.
    """
    _, (_, _, B), _, ends = read(tableau, 2)
    (w, h) = ends.T
    (p, q) = B.sum(1).T
    return [w @ p - 1 / 2, w @ q + h @ p, h @ q]


def ito_conditions(tableau):
    """Roessler 2010, theorem 5.1: strong order 1.5 with one Brownian motion."""
    (_, A0, B0), (_, A1, B1), alpha, ends = read(tableau, 5)
    assert not B0[..., [0, 1, 3, 4]].any()
    assert not B1[..., :4].any()
    assert not ends[:, 4].any()
    B0 = B0[..., 2]
    B1 = B1[..., 4]
    (b1, b2, b3, b4) = ends.T[[0, 1, 2, 3]]
    e0 = np.ones(len(alpha))
    e1 = np.ones(len(b1))
    s = B1 @ e1
    moved = A1 @ B0 @ e1
    return [
        alpha @ e0 - 1,
        b1 @ e1 - 1,
        *(b @ e1 for b in (b2, b3, b4)),
        *(b @ s - value for b, value in ((b1, 0), (b2, 1), (b3, 0), (b4, 0))),
        alpha @ A0 @ e0 - 1 / 2,
        alpha @ B0 @ e1 - 1,
        alpha @ (B0 @ e1) ** 2 - 3 / 2,
        *(b @ A1 @ e0 - value for b, value in ((b1, 1), (b2, 0), (b3, -1), (b4, 0))),
        *(b @ s**2 - value for b, value in ((b1, 1), (b2, 0), (b3, -1), (b4, 2))),
        *(b @ B1 @ s - value for b, value in ((b1, 0), (b2, 0), (b3, 0), (b4, 1))),
        b1 @ moved / 2 + b3 @ moved / 3,
        *consistent(tableau),
    ]


def stratonovich_conditions(tableau):
    """Strong order 1.5 for commuting Stratonovich noise: paths to h^1.5 in W and H, means to h^2
    (the fourth order in W).
    """
    (cf, _, Bf), (c, A, B), alpha, ends = read(tableau, 2)
    (w, h) = ends.T
    (p, q) = B.sum(1).T
    (pf, qf) = Bf.sum(1).T
    (Bw, Bh) = (B[..., 0], B[..., 1])
    return [
        w.sum() - 1,
        h.sum(),
        *(w @ p - 1 / 2, w @ q + h @ p, h @ q),
        *(
            w @ p**2 - 1 / 3,
            w @ Bw @ p - 1 / 6,
            h @ p**2 + 2 * w @ (p * q),
            h @ Bw @ p + w @ Bh @ p + w @ Bw @ q,
        ),
        *(
            w @ p**3 - 1 / 4,
            (w * p) @ Bw @ p - 1 / 8,
            w @ Bw @ p**2 - 1 / 12,
            w @ Bw @ Bw @ p - 1 / 24,
        ),
        alpha.sum() - 1,
        *(alpha @ pf - 1 / 2, alpha @ qf - 1, w @ c - 1 / 2, h @ c + 1),
        *(alpha @ cf - 1 / 2, alpha @ (pf**2 + qf**2 / 12) - 1 / 2),
        *(
            alpha @ (Bf[..., 0] @ p + Bf[..., 1] @ q / 12) - 1 / 4,
            w @ (c * p) + h @ (c * q) / 12 - 1 / 4,
        ),
        *(w @ Bw @ c + h @ Bh @ c / 12 - 1 / 4, w @ A @ pf + h @ A @ qf / 12),
        *(sum(s.a) - s.c for s in tableau.stages if s.a),
    ]


CONDITIONS = [
    *(
        (
            solver,
            lambda t, order=solver.order["additive"].strong: additive_conditions(t, order=order),
        )
        for solver in ADDITIVE
    ),
    (SPaRK, commutative_conditions),
    (SRID2, ito_conditions),
    (SlowRK, stratonovich_conditions),
]


@pytest.mark.parametrize(("solver", "conditions"), CONDITIONS)
def test_order_conditions(solver, conditions):
    assert np.abs(conditions(solver.tableau)).max() < 1e-14


def test_sra3_without_noise_is_of_order_three():
    (c, A, _), _, alpha, _ = read(SRA3.tableau, 2)
    assert alpha @ c**2 == pytest.approx(1 / 3, abs=1e-15)
    assert alpha @ A @ c == pytest.approx(1 / 6, abs=1e-15)


def neighbours(tree):
    """Every copy with one nonzero number 5 % off."""
    if isinstance(tree, int | float):
        if tree:
            yield 1.05 * tree
    elif isinstance(tree, Stage):
        for name in ("c", "a", "b"):
            yield from (tree._replace(**{name: value}) for value in neighbours(getattr(tree, name)))
    elif isinstance(tree, tuple):
        for i, item in enumerate(tree):
            yield from ((*tree[:i], value, *tree[i + 1 :]) for value in neighbours(item))


PARTIAL = [
    (SPaRK, commutative_conditions),
    *((SlowRK, c) for s, c in CONDITIONS if s is SlowRK and c is not stratonovich_conditions),
]


@pytest.mark.parametrize(
    ("solver", "conditions"), [pair for pair in CONDITIONS if pair not in PARTIAL]
)
def test_no_coefficient_may_be_five_percent_off(solver, conditions):
    tableau = solver.tableau
    seen = 0
    for name in ("stages", "end", "embedded"):
        for value in neighbours(getattr(tableau, name) or ()):
            seen += 1
            assert np.abs(conditions(replace(tableau, **{name: value}))).max() > 1e-3, value
    assert seen >= 8


# Evaluations


@dataclass(frozen=True, eq=False)
class Counting(SDE):
    calls: dict[str, int] = field(default_factory=lambda: {"f": 0, "g": 0})

    def drift(self, t, x):
        self.calls["f"] += 1
        return SDE.drift(self, t, x)

    def diffusion(self, t, x):
        self.calls["g"] += 1
        return SDE.diffusion(self, t, x)


COSTS = [
    (EulerMaruyama(), "diagonal", 1, 1),
    (Heun(), "diagonal", 2, 2),
    (EulerHeun(), "diagonal", 1, 2),
    (Midpoint(), "diagonal", 2, 2),
    (ReversibleHeun(), "diagonal", 1, 1),
    (SEA(), "additive", 1, 2),
    (SRA1(), "additive", 2, 2),
    (SRA3(), "additive", 3, 2),
    (ShARK(), "additive", 2, 2),
    (SRID2(), "diagonal", 3, 4),
    (SPaRK(), "diagonal", 3, 3),
    (SlowRK(), "diagonal", 2, 5),
    (ExponentialEuler(-1.0), "diagonal", 1, 1),
    (ExponentialHeun(-1.0), "additive", 2, 1),
    (Milstein(), "diagonal", 1, 1),
]
COSTS += [  # others, as their tableaux say
    (
        solver,
        "diagonal" if "diagonal" in solver.order else "additive",
        *("".join(stage.evaluates for stage in solver.tableau.stages).count(each) for each in "fg"),
    )
    for solver in all_solvers(AbstractStochasticRungeKutta)
    if type(solver) not in [type(known) for known, *_ in COSTS]
]


@pytest.mark.parametrize(
    ("solver", "kind", "drifts", "diffusions"), COSTS, ids=[f"{row[0]}" for row in COSTS]
)
def test_a_step_evaluates_what_the_method_needs(solver, kind, drifts, diffusions):
    problem = Counting(lambda t, x: torch.sin(x), lambda t, x: 1 + 0 * x, kind, solver.sde_type)
    x = torch.ones(3, 2)
    w, h = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    state = solver.init(problem, 0.0, x)
    started = dict(problem.calls)
    for i in range(5):
        x, _, _, state = solver.step(problem, 0.1 * i, 0.1 * (i + 1), x, Increment(w, h), state)
    assert {key: problem.calls[key] - started[key] for key in "fg"} == {
        "f": 5 * drifts,
        "g": 5 * diffusions,
    }
    # Milstein's looks whether torch sees the derivative of g: where it is 0, at four points.
    firsts = {ReversibleHeun: {"f": 1, "g": 1}, Milstein: {"f": 0, "g": 4}}
    assert started == firsts.get(type(solver), {"f": 0, "g": 0})


# torchsde on the same Brownian motion


class Given(AbstractNoise):
    """Given increments and areas, one an interval."""

    seed = 0

    def __init__(self, w, h):
        self.w = w
        self.h = h

    def rows(self, index):
        raise NotImplementedError

    def answer(self, query):
        shape = (len(query.x), *query.shape)
        for w, h in zip(self.w, self.h, strict=True):
            yield Increment(w.reshape(shape), h.reshape(shape) if query.levy else None)


class Motion(torchsde.BaseBrownian):
    """The same for torchsde, whose U is the integral of W from the start of the interval."""

    dtype = torch.float64
    device = torch.device("cpu")
    levy_area_approximation = "space-time"
    shape = ()

    def __init__(self, w, h):
        self.w = w
        self.h = h
        self.shape = w.shape[1:]

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        i = round(float(ta) * len(self.w))
        dt = float(tb - ta)
        w = self.w[i]
        return (w, dt * (w / 2 + self.h[i])) if return_U else w

    def __repr__(self):
        return "Motion"


def f(t, y):
    return torch.sin(2 * y) + 0.5 * torch.cos(3 * t) - 0.3 * y.flip(1)


DIFFUSIONS = {
    "additive": lambda t, y: (0.6 + 0.3 * torch.sin(2 * t)) * torch.ones_like(y),
    "diagonal": lambda t, y: 0.8 + 0.3 * torch.cos(2 * y) + 0.2 * t,
    # g_i of x_i only: for other scalar noise torchsde's Milstein takes the Jacobian transposed and
    # has strong order 0.5.
    "scalar": lambda t, y: 0.8 + 0.3 * torch.cos(2 * y),
    "general": lambda t, y: torch.stack(
        [torch.cos(y + t), torch.sin(y.flip(1)), 0.3 + 0 * y], dim=-1
    ),
}


class Theirs(torch.nn.Module):
    def __init__(self, kind, sde_type):
        super().__init__()
        self.noise_type = kind
        self.sde_type = sde_type
        self.kind = kind

    def f(self, t, y):
        return f(t, y)

    def g(self, t, y):
        g = DIFFUSIONS[self.kind](t, y)
        return (
            torch.diag_embed(g)
            if self.kind == "additive"
            else g.unsqueeze(-1)
            if self.kind == "scalar"
            else g
        )


TWINS = [
    *(("euler", EulerMaruyama(), kind) for kind in ("additive", "diagonal", "scalar", "general")),
    *(("milstein", Milstein(), kind) for kind in ("additive", "diagonal", "scalar")),
    *(
        (name, solver, kind)
        for name, solver in [
            ("heun", Heun()),
            ("midpoint", Midpoint()),
            ("reversible_heun", ReversibleHeun()),
        ]
        for kind in ("additive", "diagonal", "scalar", "general")
    ),
    *(("euler_heun", EulerHeun(), kind) for kind in ("additive", "diagonal", "scalar", "general")),
    ("srk", SRA1(), "additive"),
    *(("srk", SRID2(), kind) for kind in ("diagonal", "scalar")),
]


@pytest.mark.parametrize(
    ("method", "solver", "kind"), TWINS, ids=[f"{name}-{kind}" for name, _, kind in TWINS]
)
def test_paths_are_those_of_torchsde(method, solver, kind):
    steps = 16
    size = {"scalar": 1, "general": 3}.get(kind, 2)
    y0 = torch.linspace(-1, 1.3, 10, dtype=torch.float64).reshape(5, 2)
    w, h = torch.randn(
        2, steps, 5, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ) / math.sqrt(steps)
    h = h / math.sqrt(12)
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    theirs = torchsde.sdeint(
        Theirs(kind, solver.sde_type), y0, ts, bm=Motion(w, h), method=method, dt=1 / steps
    )[-1]
    problem = SDE(
        f, DIFFUSIONS[kind], kind, solver.sde_type, noise_size=3 if kind == "general" else None
    )
    ours = solve(problem, y0, uniform(0.0, 1.0, steps), solver=solver, noise=Given(w, h)).x
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
