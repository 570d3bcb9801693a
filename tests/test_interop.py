"""torchsde's equations, Brownian motions and programs here, and our equations there."""

import gc
import math
import warnings
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchsde
from scipy.integrate import quad
from torch import nn
from torchsde._brownian import brownian_interval

import sdekit
from sdekit import NotFiniteError
from sdekit.interop import TorchsdeNoise, from_torchsde, sdeint, to_torchsde
from sdekit.interop._from_torchsde import prepare_solve
from sdekit.interop._sdeint import SOLVERS

F64 = torch.float64
KINDS = ("additive", "diagonal", "scalar", "general")

# Standard errors: a fresh seed would fail one comparison in 1.7 million; the seeds are fixed.
Z = 5.0


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)
    np.random.seed(0)


class Equation(nn.Module):
    """A nonlinear equation with parameters, of any noise type, on states (batch, 2)."""

    def __init__(self, noise_type, sde_type="ito"):
        super().__init__()
        self.noise_type = noise_type
        self.sde_type = sde_type
        self.a = nn.Parameter(torch.tensor([0.7, -0.4], dtype=F64))
        self.b = nn.Parameter(torch.tensor([[0.3, 0.2, -0.1], [0.1, -0.4, 0.2]], dtype=F64))

    def f(self, t, y):
        return torch.sin(self.a * y) - 0.5 * y + t

    def g(self, t, y):
        if self.noise_type == "additive":
            return (self.b * (1 + 0.5 * t)).expand(len(y), 2, 3)
        if self.noise_type == "diagonal":
            return 0.3 + 0.2 * torch.cos(self.a * y)
        if self.noise_type == "scalar":
            return (0.3 + 0.2 * torch.sin(self.a * y)).unsqueeze(-1)
        return self.b * torch.cos(y).unsqueeze(-1)

    @property
    def size(self):
        return {"additive": 3, "diagonal": 2, "scalar": 1, "general": 3}[self.noise_type]


class Only:
    """An equation that defines some of the methods and nothing else, and counts their calls."""

    def __init__(self, sde, *methods):
        self.noise_type = sde.noise_type
        self.sde_type = sde.sde_type
        self.calls = dict.fromkeys(methods, 0)

        def prod(t, y, v):
            g = sde.g(t, y)
            return g * v if sde.noise_type == "diagonal" else torch.einsum("bdm,bm->bd", g, v)

        known = {
            "f": sde.f,
            "g": sde.g,
            "g_prod": prod,
            "f_and_g": lambda t, y: (sde.f(t, y), sde.g(t, y)),
            "f_and_g_prod": lambda t, y, v: (sde.f(t, y), prod(t, y, v)),
        }
        for name in methods:
            setattr(self, name, partial(self.counted, name, known[name]))

    def counted(self, name, method, *args):
        self.calls[name] += 1
        return method(*args)


def start(batch=4, size=2, dtype=F64):
    return torch.linspace(-1, 1, batch * size, dtype=dtype).reshape(batch, size)


def brownian(size, batch=4, t0=0.0, t1=1.0, entropy=7, levy="space-time", dtype=F64):
    return torchsde.BrownianInterval(
        t0, t1, (batch, size), dtype=dtype, entropy=entropy, levy_area_approximation=levy
    )


def close(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# Equations of torchsde here


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_equation_of_torchsde(kind, sde_type):
    sde = Equation(kind, sde_type)
    x = start()
    problem = from_torchsde(sde)
    assert (problem.noise_type, problem.sde_type) == (kind, sde_type)
    assert (
        problem.noise_shape(x)
        == {"additive": (3,), "diagonal": (2,), "scalar": (), "general": (3,)}[kind]
    )
    t = torch.tensor(0.3, dtype=F64)
    dw = torch.randn(4, sde.size, dtype=F64, generator=torch.Generator().manual_seed(0))
    g = sde.g(t, x)
    expected = g * dw if kind == "diagonal" else torch.einsum("bdm,bm->bd", g, dw)
    close(problem.drift(0.3, x), sde.f(t, x))
    dw = dw.reshape(4, *problem.noise_shape(x))
    close(problem.diffuse(0.3, x, dw, x), x + expected)
    close(problem.multiply(problem.diffusion(0.3, x), dw, x), x + expected)


@pytest.mark.parametrize(
    "methods",
    [
        ("f", "g"),
        ("f_and_g",),
        ("f", "g_prod"),
        ("f_and_g_prod",),
        ("f_and_g", "g_prod"),
        ("f", "f_and_g"),
        ("g", "f_and_g_prod"),
    ],
    ids="+".join,
)
@pytest.mark.parametrize("kind", KINDS)
def test_whichever_methods_it_defines(kind, methods):
    sde = Equation(kind)
    whole = sdeint(sde, start(), [0.0, 1.0], bm=brownian(sde.size), dt=1 / 16, method="euler")
    part = sdeint(
        Only(sde, *methods), start(), [0.0, 1.0], bm=brownian(sde.size), dt=1 / 16, method="euler"
    )
    close(part, whole)


def test_what_is_evaluated_together_is_evaluated_once():
    sde = Only(Equation("diagonal"), "f_and_g")
    x = start()
    sdeint(sde, x, [0.0, 1.0], dt=1 / 16, method="euler")
    assert sde.calls == {"f_and_g": 16}


def test_a_pair_is_given_away_once_and_at_one_place_only():
    equation = Equation("diagonal")
    sde = Only(equation, "f_and_g")
    x = start()
    problem = prepare_solve(from_torchsde(sde), x, [0.0, 1.0])
    problem.drift(0.0, x)
    problem.diffusion(0.0, x.clone())  # another place
    problem.diffusion(0.0, x)  # nothing is left
    problem.drift(0.0, x)
    with torch.no_grad():
        assert not problem.diffusion(0.0, x).requires_grad
    assert sde.calls == {"f_and_g": 5}
    held = weakref.ref(x)
    problem.diffuse(0.0, x, torch.ones_like(x), problem.drift(0.0, x))
    assert sde.calls == {"f_and_g": 6}
    del x
    gc.collect()
    assert held() is None


def test_outside_a_solve_nothing_is_kept():
    equation = Equation("diagonal")
    x = start()
    problem = from_torchsde(Only(equation, "f_and_g"))
    problem.drift(0.0, x)
    with torch.no_grad():
        equation.a += 1.0
    close(problem.diffusion(0.0, x), equation.g(None, x))


def test_products_only_need_the_number_of_brownian_motions():
    sde = Only(Equation("general"), "f", "g_prod")
    assert from_torchsde(sde, noise_size=3).noise_shape(start()) == (3,)
    with pytest.raises(ValueError, match="pass noise_size"):
        sdeint(sde, start(), [0.0, 1.0], method="euler")


@pytest.mark.parametrize("methods", [("f", "g_prod"), ("f_and_g_prod",)], ids="+".join)
@pytest.mark.parametrize("kind", KINDS)
def test_the_diffusion_from_products(kind, methods):
    sde = Equation(kind)
    x = start()
    t = torch.tensor(0.3, dtype=F64)
    g = from_torchsde(Only(sde, *methods), noise_size=sde.size).diffusion(0.3, x)
    close(g, sde.g(t, x).squeeze(-1) if kind == "scalar" else sde.g(t, x))
    if kind == "additive":  # torchsde's srk asks for products only
        bm = brownian(3)
        close(
            *(
                solve(sde, x, [0.0, 1.0], bm=bm, dt=1 / 16, method="srk")
                for solve in (sdeint, torchsde.sdeint)
            ),
            1e-10,
        )


def test_methods_by_other_names():
    class Renamed:
        noise_type = "diagonal"
        sde_type = "ito"
        a = Equation("diagonal").f
        b = Equation("diagonal").g
        both = staticmethod(
            lambda t, y: (Equation("diagonal").f(t, y), Equation("diagonal").g(t, y))
        )

    y0 = start()
    bm = brownian(2)
    plain = sdeint(Equation("diagonal"), y0, [0.0, 1.0], bm=bm, dt=0.125, method="euler")
    for names in ({"drift": "a", "diffusion": "b"}, {"drift_and_diffusion": "both"}):
        close(
            sdeint(Renamed(), y0, [0.0, 1.0], bm=bm, dt=0.125, method="euler", names=names), plain
        )
    with pytest.raises(ValueError, match="no drift"):
        sdeint(Renamed(), y0, [0.0, 1.0], names={"diffusion": "b"})


def test_it_is_solved_by_every_loop():
    """sdekit.solve with the same increments as torchsde; in reverse time they are those of the
    reversed path.
    """
    sde = Equation("general")
    bm = brownian(3)
    grid = torch.linspace(0, 1, 17, dtype=F64)
    solution = sdekit.solve(
        from_torchsde(sde), start(), grid, solver=sdekit.EulerMaruyama(), noise=TorchsdeNoise(bm)
    )
    close(
        solution.x, torchsde.sdeint(sde, start(), [0.0, 1.0], bm=bm, dt=1 / 16, method="euler")[-1]
    )
    assert (solution.evaluations.unique().tolist(), solution.seed) == ([16], None)


@pytest.mark.parametrize("kind", ["additive", "diagonal", "scalar"])
def test_it_is_solved_to_order_one_and_a_half(kind):
    """A matrix of additive noise included, which only the equation knows how to multiply."""
    sde = Equation(kind)
    grid = torch.linspace(0, 1, 17, dtype=F64)
    bm = brownian(sde.size)
    solver = sdekit.SRA1() if kind == "additive" else sdekit.SRID2()
    solution = sdekit.solve(
        from_torchsde(sde), start(), grid, solver=solver, noise=TorchsdeNoise(bm)
    )
    close(
        solution.x,
        torchsde.sdeint(sde, start(), [0.0, 1.0], bm=bm, dt=1 / 16, method="srk")[-1],
        1e-10,
    )


def test_it_is_solved_with_adaptive_steps():
    sde = Equation("diagonal")
    path = sdekit.BrownianPath(3, (0.0, 1.0))
    control = sdekit.PIDController(rtol=1e-3, atol=1e-3)
    own = sdekit.solve(
        from_torchsde(sde), start(), [0.0, 1.0], solver=sdekit.SRID2(), noise=path, control=control
    )
    close(own.x, sdeint(sde, start(), [0.0, 1.0], bm=path, dt=1 / 128)[-1], 2e-3)
    with pytest.raises(TypeError, match="use BrownianPath"):
        sdekit.solve(
            from_torchsde(sde),
            start(),
            [0.0, 1.0],
            solver=sdekit.SRID2(),
            noise=TorchsdeNoise(brownian(2)),
            control=control,
        )


# Brownian motions of torchsde


@pytest.mark.parametrize(
    "make", [torchsde.BrownianPath, torchsde.BrownianTree, None], ids=["path", "tree", "callable"]
)
def test_every_brownian_motion(make):
    w0 = torch.zeros(4, 2, dtype=F64)
    bm = make(t0=0.0, w0=w0) if make else lambda ta, tb: brownian(2)(ta, tb)
    w = [i.w for i in TorchsdeNoise(bm).increments([0.0, 0.25, 1.0], w0, (2,))]
    close(w[0], bm(0.0, 0.25))
    close(w[1], bm(0.25, 1.0))


def test_levy_area_and_reverse_time():
    bm = brownian(2)
    x = start()
    noise = TorchsdeNoise(bm)
    w, u = bm(0.25, 0.75, return_U=True)
    (there,) = noise.increments([0.25, 0.75], x, (2,), levy=True)
    (back,) = noise.increments([0.75, 0.25], x, (2,), levy=True)
    close(there.w, w)
    close(there.h, u / 0.5 - w / 2)
    close(back.w, -there.w)
    close(back.h, there.h)
    # Chen's relation for the integral of W - W(start), along the reversed path.
    first, second = noise.increments([0.75, 0.5, 0.25], x, (2,), levy=True)
    integrals = [0.25 * (i.h + i.w / 2) for i in (first, second)]
    close(0.5 * (back.h + back.w / 2), integrals[0] + 0.25 * first.w + integrals[1])


def test_rows_and_start_of_a_brownian_motion():
    bm = brownian(2)
    x = start()
    noise = TorchsdeNoise(bm)
    rows = noise.rows(torch.tensor([3, 1, 0])).rows(torch.tensor([1, 2]))
    (some,) = rows.increments([0.0, 0.5, 1.0], x[:2], (2,), start=1)
    close(some.w, bm(0.5, 1.0)[[1, 0]])


def test_what_a_brownian_motion_lacks_is_said():
    sde = Equation("diagonal")
    with pytest.raises(ValueError, match="bm returned shape"):
        sdeint(sde, start(), [0.0, 1.0], bm=brownian(3), method="euler")
    with pytest.raises(ValueError, match="bm returned shape"):
        sdeint(sde, start(), [0.0, 1.0], bm=brownian(2, batch=5), method="euler")
    with pytest.raises(ValueError, match="levy_area_approximation"):
        list(
            TorchsdeNoise(brownian(2, levy="none")).increments([0.0, 1.0], start(), (2,), levy=True)
        )
    with pytest.raises(ValueError, match="fresh normals"):
        list(TorchsdeNoise(brownian(2)).increments([0.0, 1.0], start(), (2,), normals=1))


# Our equations there


def ours(kind, event, net=None):
    """An equation of ours for states (batch, *event) which multiplies by a parameter of its
    network.
    """
    net = net or nn.Linear(event[-1], event[-1]).to(F64)
    g = {
        "additive": lambda t, x: 0.3 + 0.1 * t,
        "diagonal": lambda t, x: 0.3 * torch.cos(net(x)),
        "scalar": lambda t, x: 0.2 * torch.cos(x),
        "general": lambda t, x: 0.2 * torch.stack([torch.sin(x), torch.cos(x), x], dim=-1),
    }[kind]
    return sdekit.SDE(
        lambda t, x: net(x) - x, g, noise_type=kind, noise_size=3 if kind == "general" else None
    )


@pytest.mark.parametrize("event", [(2,), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_equation_of_ours_in_torchsde(kind, event):
    problem = ours(kind, event)
    y0 = start(4, math.prod(event)).reshape(4, *event)
    module = to_torchsde(problem, event)
    d = math.prod(event)
    bm = brownian({"scalar": 1, "general": 3}.get(kind, d))
    there = torchsde.sdeint(
        module, y0.flatten(1), [0.0, 0.5, 1.0], bm=bm, dt=1 / 16, method="euler"
    )
    close(sdeint(problem, y0, [0.0, 0.5, 1.0], bm=bm, dt=1 / 16, method="euler").flatten(2), there)
    assert len(list(module.parameters())) == 2
    t = torch.tensor(0.2, dtype=F64)
    v = torch.ones(4, bm.shape[1], dtype=F64)
    g = module.g(t, y0.flatten(1))
    close(
        module.g_prod(t, y0.flatten(1), v),
        g * v if kind == "diagonal" else torch.einsum("bdm,bm->bd", g, v),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind):
    sde = Equation(kind)
    x = start()
    again = to_torchsde(from_torchsde(sde, noise_size=sde.size))
    t = torch.tensor(0.3, dtype=F64)
    v = torch.ones(4, sde.size, dtype=F64)
    close(again.f(t, x), sde.f(t, x))
    close(again.g(t, x), sde.g(t, x))
    close(again.g_prod(t, x, v), sde.g(t, x) * v if kind == "diagonal" else sde.g(t, x) @ v[0])
    assert {id(p) for p in again.parameters()} == {id(p) for p in sde.parameters()}


def test_the_parameters_an_equation_holds():
    nets = [nn.Linear(2, 2) for _ in range(4)]

    def scaled(net, t, x):
        return net(x)

    def closed(t, x):
        return {"of": nets[1]}["of"](x) + nets[2](x)

    problem = sdekit.SDE(partial(scaled, nets[0]), closed)
    held = {id(p) for p in to_torchsde(problem).parameters()}
    assert held == {id(p) for net in nets for p in net.parameters()}
    assert not list(to_torchsde(sdekit.SDE(lambda t, x: x, lambda t, x: x)).parameters())
    further = to_torchsde(sdekit.SDE(lambda t, x: x, lambda t, x: x), modules=nets[:1])
    assert {id(p) for p in further.parameters()} == {id(p) for p in nets[0].parameters()}
    method = to_torchsde(sdekit.SDE(nets[0].forward, lambda t, x: x))
    assert len(list(method.parameters())) == 2


class Drift:
    """An object whose methods use a network."""

    def __init__(self, net):
        self.net = net

    def __call__(self, t, x):
        return self.net(x)

    f = __call__


class Own(sdekit.AbstractSDE):
    """An equation of a user's own that is not a dataclass."""

    noise_type = "diagonal"
    sde_type = "stratonovich"

    def __init__(self, net):
        self.net = net

    def drift(self, t, x):
        return self.net(x)

    def diffusion(self, t, x):
        return 0.1 * x


def test_the_parameters_in_attributes():
    net = nn.Linear(1, 1)

    class Global(Own):
        def __init__(self):
            self.holder = {"no net": [Drift(None)]}

        def drift(self, t, x):
            return net(x)

    problems = [
        Own(net),
        Own(Drift(net)),
        Global(),
        sdekit.SDE(Drift(net), lambda t, x: x),
        sdekit.SDE(Drift(net).f, lambda t, x: x),
        sdekit.SDE(net.weight.mul, Drift(net.bias)),
    ]
    for problem in problems:
        held = {id(p) for p in to_torchsde(problem).parameters()}
        assert held == {id(net.weight), id(net.bias)}


def test_networks_in_attributes_have_gradients_of_the_adjoint():
    """They had none."""
    found = []
    for solver in (sdekit.sdeint_adjoint, sdekit.sdeint):
        torch.manual_seed(0)
        own = Own(nn.Linear(1, 1))
        bm = sdekit.BrownianPath(0)
        method = {"method": "reversible_heun", "dt": 0.1, "bm": bm}
        solver(own, torch.ones(2, 1), [0.0, 1.0], **method)[-1].sum().backward()
        assert own.net.weight.grad is not None
        found.append(own.net.weight.grad)
    close(found[0], found[1], 1e-5)


def test_an_equation_without_noise_stays_here():
    with pytest.raises(ValueError, match="no noise"):
        to_torchsde(sdekit.ODE(lambda t, x: x))


def gradients(solve, sde, y0, params):
    y0 = y0.clone().requires_grad_()
    return torch.autograd.grad(solve(sde, y0).square().sum(), (y0, *params))


@pytest.mark.parametrize("event", [(2,), (1, 2)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_adjoint(kind, event):
    """torchsde's exact adjoint through the adapter, against autograd through the same steps and
    through ours.
    """
    net = nn.Linear(2, 2).to(F64)
    base = ours(kind, event, net)
    problem = sdekit.SDE(base.f, base.g, kind, "stratonovich", base.noise_size)
    module = to_torchsde(problem, event)
    y0 = start(3, 2)
    size = {"scalar": 1, "general": 3}.get(kind, 2)

    def through(solver):
        return lambda sde, y: solver(
            sde, y, [0.0, 0.5, 1.0], bm=brownian(size, 3), dt=1 / 16, method="reversible_heun"
        )

    plain = gradients(through(torchsde.sdeint), module, y0, net.parameters())
    adjoint = gradients(through(torchsde.sdeint_adjoint), module, y0, net.parameters())
    here = gradients(
        lambda sde, y: through(sdeint)(problem, y.reshape(3, *event)), None, y0, net.parameters()
    )
    for a, b, c in zip(plain, adjoint, here, strict=True):
        close(b, a, 1e-9)
        close(c, a, 1e-9)


def test_gradcheck_of_the_adjoint():
    """Finite differences in the initial state and a parameter, along one path."""

    def final(y0, weight):
        problem = sdekit.SDE(
            lambda t, x: torch.sin(weight * x),
            lambda t, x: 0.3 * torch.cos(weight * x),
            "diagonal",
            "stratonovich",
        )
        options = {
            "bm": brownian(2, 3, t1=0.25),
            "dt": 1 / 32,
            "method": "reversible_heun",
            "adjoint_params": (weight,),
        }
        return torchsde.sdeint_adjoint(to_torchsde(problem), y0, [0.0, 0.25], **options)[-1]

    inputs = (start(3, 2).requires_grad_(), torch.tensor([0.5, 1.5], dtype=F64, requires_grad=True))
    assert torch.autograd.gradcheck(final, inputs, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "method"), [("diagonal", "euler"), ("additive", "euler"), ("general", "euler")]
)
def test_gradients_of_the_ito_adjoint(kind, method):
    """torchsde's continuous adjoint is right up to the steps."""
    net = nn.Linear(2, 2).to(F64)
    problem = ours(kind, (2,), net)
    y0 = start(3, 2)
    module = to_torchsde(problem)
    size = 3 if kind == "general" else 2

    def through(solver):
        return lambda sde, y: solver(
            sde, y, [0.0, 1.0], bm=brownian(size, 3), dt=1 / 64, method=method
        )

    adjoint = gradients(through(torchsde.sdeint_adjoint), module, y0, net.parameters())
    plain = gradients(through(sdeint), problem, y0, net.parameters())
    for a, b in zip(adjoint, plain, strict=True):
        assert (a - b).norm() < 0.1 * b.norm()


# sdeint: the same steps


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SOLVERS)
def test_pathwise_as_torchsde(method, kind, sde_type):
    sde = Equation(kind, sde_type)
    ts = torch.linspace(0, 1, 5, dtype=F64)
    arguments = {"dt": 1 / 32, "method": method, "bm": brownian(sde.size, levy="foster")}
    if kind not in SOLVERS[method].get(sde_type, {}):
        for solve in (sdeint, torchsde.sdeint):
            with pytest.raises(
                ValueError, match="noise" if sde_type in SOLVERS[method] else "SDE|solves"
            ):
                solve(sde, start(), ts, **arguments)
        return
    theirs = torchsde.sdeint(sde, start(), ts, **arguments)
    assert theirs.shape == (5, 4, 2)
    close(sdeint(sde, start(), ts, **arguments), theirs, 1e-10)


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
@pytest.mark.parametrize("kind", ["additive", "diagonal", "scalar"])
def test_milsteins_method_without_derivatives(kind, sde_type):
    sde = Equation(kind, sde_type)
    arguments = {"dt": 1 / 32, "method": "milstein", "options": {"grad_free": True}}
    ours, theirs = (
        solve(sde, start(), [0.0, 1.0], bm=brownian(sde.size), **arguments)
        for solve in (sdeint, torchsde.sdeint)
    )
    close(ours, theirs, 1e-10)


@pytest.mark.parametrize(
    ("kind", "sde_type", "method"),
    [
        ("diagonal", "ito", "srk"),
        ("scalar", "ito", "milstein"),
        ("additive", "ito", "euler"),
        ("general", "stratonovich", "log_ode"),
        ("diagonal", "stratonovich", "reversible_heun"),
    ],
)
def test_adaptive_steps_are_torchsdes(kind, sde_type, method):
    """At the end of the solve: between the steps ours has the bridge of the path."""
    sde = Equation(kind, sde_type)
    for tolerance, shortest in ((5e-2, 4e-3), (1e-5, 5e-2)):
        arguments = {"method": method, "dt": 0.3, "adaptive": True, "dt_min": shortest}
        arguments |= {"rtol": tolerance, "atol": tolerance}
        found = []
        said = []
        for solve in (sdeint, torchsde.sdeint):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                bm = brownian(sde.size, levy="foster")
                found.append(solve(sde, start(), [0.0, 1.0], bm=bm, **arguments)[-1])
            said.append(
                any("dt_min" in str(c.message) or "minimum" in str(c.message) for c in caught)
            )
        close(*found, 1e-10)
        assert said[0] == said[1]


def test_adaptive_steps_of_eulers_method_warn():
    with pytest.warns(UserWarning, match="do not converge"):
        sdeint(Equation("diagonal"), start(), [0.0, 0.1], method="euler", adaptive=True, rtol=0.1)


def test_adaptive_steps_get_over_what_is_not_finite():
    """The drift has no value beyond 0, where a long step would end: by midpoints half of such steps
    is finite and the whole is not.
    """

    class Emptying(nn.Module):
        noise_type, sde_type = "additive", "stratonovich"

        def f(self, t, y):
            return -8 * y.sqrt()  # y = (1 - 4 t)^2

        def g(self, t, y):
            return torch.zeros(len(y), 1, 1, dtype=F64)

    for dt in (0.2, 0.3, 0.4):
        arguments = {"method": "midpoint", "dt": dt, "adaptive": True}
        y = sdeint(Emptying(), torch.ones(1, 1, dtype=F64), [0.0, 0.24], **arguments)[-1]
        close(y, torch.tensor([[0.0016]], dtype=F64), 2e-4)


def test_adaptive_steps_follow_the_tolerance():
    """On a path of ours, in both directions of time; the error of geometric Brownian motion."""
    sde = sdekit.SDE(lambda t, x: 0.1 * x, lambda t, x: 0.5 * x)
    path = sdekit.BrownianPath(5, (0.0, 1.0), depth=30)
    (w,) = (i.w for i in path.increments([0.0, 1.0], torch.ones(64, 1, dtype=F64), (1,)))
    exact = torch.exp((0.1 - 0.125) + 0.5 * w)
    errors = []
    for tolerance in (1e-2, 1e-5):
        arguments = {"method": "srk", "adaptive": True, "rtol": tolerance, "atol": tolerance}
        x = sdeint(sde, torch.ones(64, 1, dtype=F64), [0.0, 1.0], bm=path, dt=0.1, **arguments)[-1]
        errors.append(float((x - exact).abs().max()))
    assert errors[1] < 0.1 * errors[0] < 0.01
    back = sdeint(sde, start(), [1.0, 0.0], bm=path, dt=0.1, adaptive=True, method="srk")
    assert back.isfinite().all()


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
@pytest.mark.parametrize("kind", KINDS)
def test_default_methods(kind, sde_type):
    sde = Equation(kind, sde_type)
    bm = brownian(sde.size)
    close(
        sdeint(sde, start(), [0.0, 1.0], bm=bm, dt=1 / 16),
        torchsde.sdeint(sde, start(), [0.0, 1.0], bm=bm, dt=1 / 16),
        1e-10,
    )


def test_times_as_torchsde():
    """The last step is shorter; a step may span the solve; times are tensors or lists, dt a
    tensor.
    """
    sde = Equation("diagonal")
    bm = brownian(2)
    for ts, dt in (
        ([0.0, 1.0], 0.375),
        ([0.25, 0.5], 2.0),
        (torch.tensor([0.0, 0.5, 1.0], dtype=F64), torch.tensor(0.25)),
    ):
        close(
            sdeint(sde, start(), ts, bm=bm, dt=dt, method="euler"),
            torchsde.sdeint(sde, start(), ts, bm=bm, dt=dt, method="euler"),
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y0": torch.zeros(3)}, "y0"),
        ({"y0": [1.0]}, "y0"),
        ({"ts": [0.0, 0.0]}, "increase strictly"),
        ({"ts": torch.tensor([0.0, 1.0], requires_grad=True)}, "gradient"),
        ({"method": "rk4"}, "is not one of euler"),
        ({"method": "midpoint"}, "SDE is of type|solves stratonovich"),
        ({"dt": 0.0}, "positive"),
        ({"sde": object()}, "noise_type"),
        ({"sde": Only(Equation("diagonal"), "g")}, "no drift"),
        ({"sde": Only(Equation("diagonal"), "f")}, "no diffusion"),
        ({"y0": torch.zeros(4, 3, dtype=F64)}, None),
        ({"method": "srk", "bm": brownian(2, levy="none")}, "levy"),
    ],
)
def test_refusals(change, said):
    arguments = {
        "sde": Equation("diagonal"),
        "y0": start(),
        "ts": [0.0, 1.0],
        "method": "euler",
        "dt": 0.5,
    } | change
    if said is None:  # the equation itself is of another size
        with pytest.raises(RuntimeError, match="size"):
            sdeint(**arguments)
    else:
        with pytest.raises(ValueError, match=said):
            sdeint(**arguments)
    if said not in ("positive", "gradient"):  # where torchsde never returns, or warns first
        with pytest.raises((ValueError, RuntimeError)):
            torchsde.sdeint(**arguments)


@pytest.mark.parametrize(
    "change",
    [{"rtol": -1.0}, {"atol": -1.0}, {"rtol": math.nan}, {"dt_min": -1}, {"dt_min": math.nan}],
)
def test_tolerances_of_adaptive_steps_are_checked(change):
    said = "dt_min is the length" if "dt_min" in change else "rtol and atol are tolerances"
    with pytest.raises(ValueError, match=said):
        sdeint(Equation("diagonal"), start(), [0.0, 1.0], adaptive=True, **change)


@pytest.mark.parametrize("solver", [sdeint, sdekit.sdeint_adjoint])
def test_states_that_are_no_real_numbers(solver):
    for dtype, said in ((torch.complex64, "for odeint only"), (torch.int64, r"with \.float\(\)")):
        with pytest.raises(TypeError, match=f"not {dtype}: .*{said}"):
            solver(Equation("diagonal"), start().to(dtype), [0.0, 1.0])


def test_an_infinite_step_is_one_step():
    arguments = (Equation("diagonal"), start(), [0.0, 0.3, 1.0])
    more = {"bm": brownian(2), "method": "euler"}
    (*_, once), (*_, endless) = (sdeint(*arguments, dt=dt, **more) for dt in (1.0, math.inf))
    assert torch.equal(once, endless)
    close(endless, torchsde.sdeint(*arguments, dt=math.inf, **more)[-1])
    more = {"bm": sdekit.BrownianPath(0), "method": "milstein", "adaptive": True}
    fine = sdeint(*arguments, dt=math.inf, rtol=1e-3, atol=1e-3, **more)
    close(fine, sdeint(*arguments, dt=0.01, rtol=1e-3, atol=1e-3, **more), 0.05)


def test_a_diffusion_of_another_shape():
    class Flat(Equation):
        def g(self, t, y):
            return y

    with pytest.raises(ValueError, match="the diffusion of this equation"):
        sdeint(Flat("general"), start(), [0.0, 1.0], bm=brownian(3), method="euler")


def test_unknown_arguments_warn_as_in_torchsde():
    with pytest.warns(UserWarning, match="rtoll"):
        sdeint(Equation("diagonal"), start(), [0.0, 0.1], dt=0.05, method="euler", rtoll=1.0)


# sdeint: more than states


class Prior(Equation):
    """The drift of a prior, for logqp."""

    def h(self, t, y):
        return -self.a * y


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_from_a_prior_is_torchsdes(kind):
    sde = Prior(kind, "stratonovich")
    size = sde.size + (kind == "diagonal")
    ours, theirs = (
        solve(sde, start(), [0.0, 0.5, 1.0], bm=brownian(size), dt=1 / 16, logqp=True)
        for solve in (sdeint, torchsde.sdeint)
    )
    assert ours[1].shape == (2, 4)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-10)
    renamed = Only(sde, "f")
    renamed.drawn, renamed.before = sde.g, sde.h
    names = {"diffusion": "drawn", "prior_drift": "before"}
    bm = brownian(size)
    more = sdeint(renamed, start(), [0.0, 1.0], bm=bm, dt=1 / 16, names=names, logqp=True)
    close(more[1][0], ours[1].sum(dim=0), 1e-10)


@pytest.mark.parametrize("method", ["euler", "reversible_heun"])
def test_the_divergence_evaluates_each_function_once_a_step(method):
    prior = Prior("diagonal", "ito" if method == "euler" else "stratonovich")
    sde = Only(prior, "f", "g")
    sde.h = prior.h
    sdeint(sde, start(), [0.0, 1.0], method=method, dt=1 / 16, logqp=True)
    steps = 16 + (method == "reversible_heun")
    assert sde.calls == {"f": steps, "g": steps}


def test_the_divergence_of_decreasing_times():
    """|f - h|^2 / (2 g^2) times the length, 1/4 for each coordinate in each half."""
    sde = Equation("diagonal")
    sde.f = lambda t, y: torch.ones_like(y)
    sde.h = lambda t, y: torch.zeros_like(y)
    sde.g = lambda t, y: torch.ones_like(y)
    for ts in ([0.0, 0.5, 1.0], [1.0, 0.5, 0.0]):
        _, divergence = sdeint(sde, start(), ts, method="euler", dt=1 / 8, logqp=True)
        torch.testing.assert_close(divergence, torch.full_like(divergence, 0.25 * start().shape[1]))


def test_the_divergence_divides_by_no_zero():
    """g of one coordinate is 0, where both drifts agree."""
    sde = Prior("diagonal")
    sde.f = lambda t, y: -y
    sde.h = lambda t, y: torch.stack([-y[:, 0], 1 - y[:, 1]], dim=1)
    sde.g = lambda t, y: torch.stack([0 * y[:, 0], -0.5 + 0 * y[:, 1]], dim=1)
    _, divergence = sdeint(sde, start(), [0.0, 1.0], method="euler", dt=1 / 8, logqp=True)
    close(divergence, torch.full((1, 4), 2.0, dtype=F64))
    with pytest.raises(ValueError, match=r"f, g and h.*lacks h\. .*path_kl"):
        sdeint(Equation("diagonal"), start(), [0.0, 1.0], logqp=True)


@pytest.mark.parametrize("kind", KINDS)
def test_areas_and_divergences_obey_torch_manual_seed(kind):
    sde = Prior(kind, "stratonovich")
    y0 = start()

    def run(seed):
        torch.manual_seed(seed)
        return sdeint(sde, y0, [0.0, 1.0], method="log_ode", dt=1 / 8), sdeint(
            sde, y0, [0.0, 1.0], dt=1 / 8, logqp=True
        )[1]

    close(run(1), run(1), 0)
    assert not torch.equal(run(1)[0], run(2)[0])
    assert not torch.equal(run(1)[1], run(2)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_extra_state_goes_there_and_back(kind):
    sde = Equation(kind, "stratonovich")
    y0 = start()
    bm = brownian(sde.size)
    arguments = {"bm": bm, "dt": 1 / 16, "method": "reversible_heun"}
    half, state = sdeint(sde, y0, [0.0, 0.5], extra=True, **arguments)
    _, theirs = torchsde.sdeint(sde, y0, [0.0, 0.5], extra=True, **arguments)
    for a, b in zip(state, theirs, strict=True):
        close(a, b)
    rest = sdeint(sde, half[-1], [0.5, 1.0], extra_solver_state=state, **arguments)
    close(rest[-1], torchsde.sdeint(sde, y0, [0.0, 1.0], **arguments)[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_extra_state_of_one_time(kind):
    sde = Equation(kind, "stratonovich")
    arguments = {"bm": brownian(sde.size), "method": "reversible_heun", "extra": True}
    (ys, state), (_, theirs) = (
        solver(sde, start(), torch.tensor([0.25], dtype=F64), **arguments)
        for solver in (sdeint, torchsde.sdeint)
    )
    assert ys.shape == (1, 4, 2)
    for a, b in zip(state, theirs, strict=True):
        close(a, b)
    again = sdeint(sde, start(), [0.25], extra_solver_state=state, **arguments)[1]
    assert all(a is b for a, b in zip(again, state, strict=True))
    assert sdeint(Equation(kind), start(), [0.25], method="euler", extra=True)[1] == ()


def test_an_equation_of_ours_keeps_its_shape():
    problem = ours("diagonal", (2, 3))
    y0 = start(4, 6).reshape(4, 2, 3)
    adaptive = {"adaptive": True, "method": "milstein", "rtol": 1e-2, "atol": 1e-2}
    assert sdeint(problem, y0, [0.0, 0.5, 1.0], dt=0.1, **adaptive).shape == (3, 4, 2, 3)
    ys, state = sdeint(problem, y0, [0.0, 1.0], dt=0.25, extra=True, method="euler")
    assert ys.shape == (2, 4, 2, 3)
    assert state == ()


def test_white_noise_is_no_path():
    with pytest.raises(ValueError, match="no path"):
        sdeint(Equation("diagonal"), start(), [0.0, 1.0], bm=sdekit.WhiteNoise(0), adaptive=True)


# sdeint: where torchsde falls short


class Brownian(nn.Module):
    """dy = c dW, and a count of the drift's evaluations."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, volatility=1.0):
        super().__init__()
        self.volatility = volatility
        self.calls = 0

    def f(self, t, y):
        self.calls += 1
        return torch.zeros_like(y)

    def g(self, t, y):
        return torch.full_like(y, self.volatility)


@pytest.mark.parametrize("method", ["euler", "srk"])
def test_variance_between_steps(method):
    """At t = dt / 2 a Brownian motion has variance 0.05; torchsde's straight line has half."""
    y0 = torch.zeros(40_000, 1)
    ts = [0.0, 0.05, 0.1, 0.125, 0.2]
    n = 40_000
    ys = sdeint(Brownian(), y0, ts, dt=0.1, method=method).squeeze(-1)
    covariance = ys[1:] @ ys[1:].T / n
    t = torch.tensor(ts[1:])
    exact = torch.minimum(t[:, None], t)
    error = ((exact**2 + exact.diagonal()[:, None] * exact.diagonal()) / n).sqrt()
    assert bool(((covariance - exact).abs() < Z * error).all())
    theirs = torchsde.sdeint(Brownian(), y0, ts, dt=0.1, method=method)[1].var().item()
    assert theirs == pytest.approx(0.025, rel=0.1)


def test_states_between_steps_are_on_the_path():
    """A Brownian motion is solved exactly, so the state between two steps is the path itself; at
    any number of times.
    """
    bm = brownian(2)
    ts = [0.0, 0.03, 0.05, 0.07, 0.1, 0.11, 0.5, 0.98, 1.0]
    ys = sdeint(Brownian(), start(), ts, bm=bm, dt=0.25, method="euler")
    for t, y in zip(ts, ys, strict=True):
        close(y, start() + bm(0.0, t))
    assert torch.equal(
        ys[[0, -1]], sdeint(Brownian(), start(), [0.0, 1.0], bm=bm, dt=0.25, method="euler")
    )


def test_states_between_steps_for_every_kind_of_noise():
    """The state between is near a finer solve on the same path: the error falls with dt, faster
    than sqrt(dt).
    """
    for kind in KINDS:
        sde = Equation(kind)
        ts = [0.0, 0.3, 0.7, 1.0]
        bm = brownian(sde.size, 500)
        y0 = start(500)
        fine = sdeint(sde, y0, ts, bm=bm, dt=1 / 128, method="euler")
        errors = [
            (sdeint(sde, y0, ts, bm=bm, dt=dt, method="euler") - fine)[1:3].square().mean().sqrt()
            for dt in (1 / 4, 1 / 16)
        ]
        assert errors[1] < 0.4 * errors[0]


@pytest.fixture
def tree(monkeypatch):
    """The nodes of all trees that torchsde makes."""
    nodes = []

    class Counted(brownian_interval._Interval):
        def __init__(self, start, end, parent, is_left, top):
            nodes.append((start, end))
            super().__init__(start, end, parent, is_left, top)

    monkeypatch.setattr(brownian_interval, "_Interval", Counted)
    return nodes


@pytest.mark.parametrize(
    ("end", "dt", "dtype"),
    [(3.0, 0.03, F64), (1.0, 0.01, torch.float32)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("own", [False, True], ids=["fresh", "interval"])
def test_a_hundred_steps_are_a_hundred(end, dt, dtype, own, tree):
    """torchsde makes a last step of the width of a rounding, and its tree refines to that."""
    sde = Brownian()
    y0 = torch.zeros(4, 2, dtype=dtype)
    sdeint(
        sde,
        y0,
        torch.tensor([0.0, end], dtype=dtype),
        bm=brownian(2, t1=end, dtype=dtype) if own else None,
        dt=dt,
        method="euler",
    )
    assert sde.calls == 100
    assert len(tree) < 2000


def test_a_hundred_steps_handed_over_end(tree):
    """One more is torchsde's own, but its tree knows the width of the others."""
    sde = Brownian()
    sdeint(sde, torch.zeros(4, 2, dtype=F64), [0.0, 3.0], dt=0.03, method="euler", extra=True)
    assert sde.calls <= 103  # and what its checks evaluate
    assert len(tree) < 2000


def test_a_long_solve():
    """torchsde's tree recurses on these."""
    sde = Brownian(0.1)
    ys = sdeint(sde, torch.zeros(1, 1), torch.linspace(0, 4, 4), dt=1e-3, method="euler")
    assert sde.calls == 4_000
    assert bool(torch.isfinite(ys).all())


def test_milstein_for_scalar_noise_that_mixes_coordinates():
    """dy = A y dW has the solution exp(A W - A^2 t / 2) y_0; torchsde takes A's transpose, and does
    worse than Euler.
    """
    a = torch.tensor([[0.2, 0.9], [-0.1, 0.3]], dtype=F64)

    class Linear:
        noise_type = "scalar"
        sde_type = "ito"

        def f(self, t, y):
            return torch.zeros_like(y)

        def g(self, t, y):
            return (y @ a.T).unsqueeze(-1)

    y0 = torch.tensor([1.0, -0.5], dtype=F64).expand(500, 2)
    bm = brownian(1, 500)
    exact = (
        torch.matrix_exp(a * bm(0.0, 1.0).unsqueeze(-1) - a @ a / 2) @ y0.unsqueeze(-1)
    ).squeeze(-1)

    def error(solve, method, dt):
        return (
            (solve(Linear(), y0, [0.0, 1.0], bm=bm, dt=dt, method=method)[-1] - exact)
            .square()
            .mean()
            .sqrt()
        )

    # Order one: a quarter.
    assert error(sdeint, "milstein", 1 / 64) < 0.35 * error(sdeint, "milstein", 1 / 16)
    assert error(torchsde.sdeint, "milstein", 1 / 64) > error(torchsde.sdeint, "euler", 1 / 64)


def test_srk_evaluates_what_the_tableau_needs():
    ours, theirs = (Only(Equation("diagonal"), "f", "g") for _ in range(2))
    sdeint(ours, start(), [0.0, 1.0], dt=1 / 16, method="srk")
    assert ours.calls == {"f": 3 * 16, "g": 4 * 16}
    torchsde.sdeint(theirs, start(), [0.0, 1.0], dt=1 / 16, method="srk")
    assert theirs.calls == {"f": 10 * 16 + 1, "g": 10 * 16 + 1}  # one of each to check shapes


def test_seeds_are_torchs():
    y0 = start(8)
    ts = [0.0, 0.33, 1.0]

    def run(seed, numpy_seed=0, rows=8):
        torch.manual_seed(seed)
        np.random.seed(numpy_seed)
        return sdeint(Equation("diagonal"), y0[:rows], ts, dt=0.1, method="euler")

    assert torch.equal(run(1), run(1, numpy_seed=5))
    assert not torch.equal(run(1), run(2))
    close(run(1, rows=3), run(1)[:, :3])  # and a sample does not depend on the others


def test_noise_of_ours():
    """A path gives one solution for all steps and times; white noise repeats its own, whichever
    times are asked for.
    """
    sde = Equation("additive")
    y0 = start(500)
    path = sdekit.BrownianPath(3, (0.0, 1.0))
    coarse, fine = (
        sdeint(sde, y0, [0.0, 0.3, 1.0], bm=path, dt=dt, method="srk") for dt in (1 / 8, 1 / 64)
    )
    assert (coarse - fine)[-1].abs().max() < 0.01
    assert (coarse - fine)[1].square().mean().sqrt() < 0.03
    white = sdekit.WhiteNoise(5)
    some = sdeint(sde, y0, [0.0, 0.3, 1.0], bm=white, dt=1 / 8, method="srk")
    assert torch.equal(some, sdeint(sde, y0, [0.0, 0.3, 1.0], bm=white, dt=1 / 8, method="srk"))
    assert torch.equal(some[-1], sdeint(sde, y0, [0.0, 1.0], bm=white, dt=1 / 8, method="srk")[-1])


def test_a_continued_solve_needs_other_white_noise():
    """Its increments would be those of the first solve; the same span may be solved again."""
    sde = Equation("additive")
    settings = {"dt": 1 / 8, "method": "euler"}
    white = sdekit.WhiteNoise(0)
    y = sdeint(sde, start(), [0.0, 1.0], bm=white, **settings)[-1]
    sdeint(sde, start(), [0.0, 0.5], bm=white, **settings)
    with pytest.raises(ValueError, match=r"used from t = 0 on, and from t = 1 on.*BrownianPath"):
        sdeint(sde, y, [1.0, 2.0], bm=white, **settings)
    whole = sdekit.BrownianPath(0, (0.0, 2.0))
    y = sdeint(sde, start(), [0.0, 1.0], bm=whole, **settings)[-1]
    y = sdeint(sde, y, [1.0, 2.0], bm=whole, **settings)[-1]
    close(y, sdeint(sde, start(), [0.0, 2.0], bm=whole, **settings)[-1], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_of_ours_drives_torchsde(kind):
    sde = Equation(kind)
    y0 = start()
    path = sdekit.BrownianPath(3, (0.0, 1.0))
    arguments = {"bm": path, "dt": 1 / 16, "method": "euler" if kind == "general" else "srk"}
    found = sdeint(sde, y0, [0.0, 0.5, 1.0], **arguments)
    arguments["bm"] = sdekit.interop.TorchsdeBrownian(path, (4, sde.size), dtype=F64)
    close(found, torchsde.sdeint(sde, y0, [0.0, 0.5, 1.0], **arguments), 1e-10)


def test_a_drift_that_is_not_a_number_is_reported():
    class Broken(Equation):
        def f(self, t, y):
            return torch.where((t > 0.5) & (y > 0), math.nan, y)

    with pytest.raises(
        NotFiniteError, match=r"after step 7, at t = 0\.7, in 2 of 4 samples"
    ) as error:
        sdeint(Broken("diagonal"), start() * 5, [0.0, 1.0], dt=0.1, method="euler")
    assert error.value.samples == [2, 3]


def test_reverse_time():
    """Decreasing times follow the same path back; with noise that does not depend on the state the
    start is found again.
    """
    bm = brownian(2)
    ts = [1.0, 0.55, 0.25, 0.0]
    ys = sdeint(Brownian(2.0), start(), ts, bm=bm, dt=0.25, method="euler")
    for t, y in zip(ts, ys, strict=True):
        close(y, start() - 2.0 * (bm(t, 1.0) if t < 1 else 0))
    sde = Equation("additive")
    bm = brownian(3)
    there = sdeint(sde, start(), [0.0, 1.0], bm=bm, dt=1 / 128, method="euler")
    back = sdeint(sde, there[-1], [1.0, 0.0], bm=bm, dt=1 / 128, method="euler")
    assert (back[-1] - start()).abs().max() < 0.02
    wide = sdeint(
        Brownian(), torch.zeros(10_000, 1), [1.0, 0.93, 0.0], dt=0.1, method="euler"
    ).squeeze(-1)
    for variance, exact in zip(wide[1:].var(dim=1), (0.07, 1.0), strict=True):
        assert abs(variance / exact - 1) < Z * (2 / 10_000) ** 0.5


# Programs written for torchsde, with the import changed


def program(name, source):
    text = (Path(__file__).parent / "programs" / f"{name}.py").read_text()
    assert text.count("from torchsde import sdeint") == 1
    namespace = {"__name__": name}
    exec(  # noqa: S102
        compile(
            text.replace("from torchsde import", f"from {source} import"), f"{name}.py", "exec"
        ),
        namespace,
    )
    np.random.seed(0)
    return namespace


def both(name):
    return [program(name, source) for source in ("torchsde", "sdekit")]


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_geometric_brownian_motion(method):
    sde = program("geometric", "torchsde")["GeometricBrownianMotion"]()
    bm = brownian(1, 64, dtype=torch.float32)
    paths = [run["simulate"](sde, 64, bm=bm, method=method) for run in both("geometric")]
    close(paths[1], paths[0], 1e-5)
    finals = [
        run["simulate"](sde, 20_000, method=method)[-1].detach().log() for run in both("geometric")
    ]
    spread = finals[0].std() / 20_000**0.5
    assert abs(finals[0].mean() - finals[1].mean()) < Z * 2**0.5 * spread
    assert abs(finals[0].std() - finals[1].std()) < Z * spread


def test_geometric_brownian_motion_is_learned():
    """512 paths and noisy gradients: within 0.05 of the truth, here."""
    mu, sigma = program("geometric", "sdekit")["fit"](0.2, 0.5, iterations=60)
    assert mu == pytest.approx(0.2 + 0.125, abs=0.06)
    assert sigma == pytest.approx(0.5, abs=0.05)


def heston_call(sde, strike, spot=100.0, v0=0.05, expiry=1.0):
    """The price from the characteristic function of log S(T), in the form that has no branch cut
    (Albrecher et al. 2007).
    """
    r = sde.rate
    kappa = sde.kappa
    theta = sde.theta
    xi = sde.xi
    rho = sde.rho

    def characteristic(u):
        d = np.sqrt((rho * xi * 1j * u - kappa) ** 2 + xi**2 * (1j * u + u * u))
        g = (kappa - rho * xi * 1j * u - d) / (kappa - rho * xi * 1j * u + d)
        decay = np.exp(-d * expiry)
        a = (
            kappa
            * theta
            / xi**2
            * ((kappa - rho * xi * 1j * u - d) * expiry - 2 * np.log((1 - g * decay) / (1 - g)))
        )
        b = (kappa - rho * xi * 1j * u - d) / xi**2 * (1 - decay) / (1 - g * decay)
        return np.exp(1j * u * (math.log(spot) + r * expiry) + a + b * v0)

    def probability(shift):
        def integrand(u):
            tilted = characteristic(u - 1j) / characteristic(-1j) if shift else characteristic(u)
            return (np.exp(-1j * u * math.log(strike)) * tilted / (1j * u)).real

        return 0.5 + quad(integrand, 1e-10, 200, limit=400)[0] / math.pi

    return spot * probability(True) - strike * math.exp(-r * expiry) * probability(False)


def test_heston():
    model = program("heston", "torchsde")["Heston"]
    bm = torchsde.BrownianInterval(0.0, 1.0, (32, 2), entropy=3)
    paths = [run["simulate"](model(), 32, 100.0, 0.05, 1.0, bm=bm) for run in both("heston")]
    close(paths[1], paths[0], 1e-4)
    for strike in (90.0, 110.0):
        exact = heston_call(model(), strike)
        for run in both("heston"):
            price, error = run["price"](model(), strike)
            assert abs(price - exact) < Z * error


def test_the_price_by_the_characteristic_function():
    """Without volatility of the variance, at its mean, Heston's price is that of Black and
    Scholes.
    """
    model = program("heston", "torchsde")["Heston"](xi=1e-4, theta=0.04)
    d = (math.log(100 / 95) + 0.02 + 0.02) / 0.2
    cdf = lambda x: 0.5 * math.erfc(-x / 2**0.5)  # noqa: E731
    assert heston_call(model, 95.0, v0=0.04) == pytest.approx(
        100 * cdf(d) - 95 * math.exp(-0.02) * cdf(d - 0.2), abs=1e-3
    )


def test_latent_sde():
    theirs, ours = both("latent")
    torch.manual_seed(3)
    model = theirs["LatentSDE"]()
    ts, xs = theirs["data"]()
    z0 = torch.randn(32, 2)
    # Pathwise: the bound with the divergence (whose third coordinate has a motion too), and paths
    # without.
    bms = [torchsde.BrownianInterval(0.0, 1.0, (32, 3), entropy=3) for _ in range(2)]
    close(
        *(
            run["elbo"](model, ts, xs, z0, bm=bm)
            for run, bm in zip((ours, theirs), bms, strict=True)
        ),
        1e-5,
    )
    bm = torchsde.BrownianInterval(0.0, 1.0, (32, 2), entropy=3)
    close(*(run["reconstruct"](model, ts, xs, z0, bm=bm) for run in (ours, theirs)), 1e-4)
    # In distribution: the last decoded state, from one initial state.
    many = xs[:1].expand(20_000, -1, -1)
    with torch.no_grad():
        last = [
            run["reconstruct"](model, ts, many, torch.zeros(20_000, 2))[-1]
            for run in (ours, theirs)
        ]
    spread = last[1].std() / 20_000**0.5
    assert abs(last[0].mean() - last[1].mean()) < Z * 2**0.5 * spread
    assert abs(last[0].std() - last[1].std()) < Z * spread


def test_latent_sde_is_trained():
    """Here; the bound is torchsde's, as tested above."""
    _, bounds = program("latent", "sdekit")["train"](iterations=15)
    assert np.mean(bounds[-5:]) > np.mean(bounds[:5]) + 20
