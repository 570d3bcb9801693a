"""Gradients through a solve: right, second ones too, in the memory promised; torch.func and
torch.compile.
"""

import functools
import itertools
import math
import shutil
import weakref
from collections import Counter

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from convergence import reverse_decay
from torch._dynamo.utils import counters
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdekit
from sdekit import (
    ODE,
    SDE,
    AbstractPredictor,
    AdamsBashforth,
    Checkpointed,
    EulerMaruyama,
    Heun,
    Langevin,
    LogODE,
    Milstein,
    NotFiniteError,
    PIDController,
    PredictorCorrector,
    ReverseSDE,
    Reversible,
    ReversibleHeun,
    WhiteNoise,
    all_solvers,
    solve,
    uniform,
)
from sdekit._equations.derivative import derivative
from sdekit._solve.gradient import _require_return
from sdekit._solvers.planned import AbstractPlanned

pytestmark = pytest.mark.filterwarnings(
    "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"
)

KINDS = ["none", "additive", "diagonal", "scalar", "general"]


def equation(kind, theta, sde_type="stratonovich"):
    """A nonlinear equation with a parameter in f, another in g."""
    a, b = theta

    def f(t, x):
        return torch.sin(a * x) + 0.5 * torch.cos(3 * t) - 0.3 * x.flip(-1)

    g = {
        "additive": lambda t, x: (0.6 + 0.3 * torch.sin(b * t)) * torch.ones_like(x),
        "diagonal": lambda t, x: 0.8 + 0.3 * torch.cos(b * x),
        "scalar": lambda t, x: 0.8 + 0.3 * torch.cos(b * x),
        "general": lambda t, x: torch.stack(
            [0.6 + 0.3 * torch.cos(b * x), 0.4 * torch.sin(2 * x) - 0.3 * t], dim=-1
        ),
    }
    return (
        ODE(f)
        if kind == "none"
        else SDE(f, g[kind], kind, sde_type, noise_size=2 if kind == "general" else None)
    )


def states(problem, x0, ts, *, solver, gradient=None):
    """All states of a solve after the first."""
    return solve(
        problem, x0, ts, solver=solver, noise=WhiteNoise(1), gradient=gradient, save="all"
    ).xs[1:]


def end(problem, x0, ts, *, solver, gradient=None):
    """The last state of a solve."""
    return solve(problem, x0, ts, solver=solver, noise=WhiteNoise(1), gradient=gradient).x


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def network(width=16, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, 2)
    ).to(dtype)


# The numbers


def turning():
    """Every gradient with every kind of noise, by turns forwards and backwards."""
    gradients = {"plain": None, "checkpointed": Checkpointed(), "reversible": Reversible()}
    directions = {"forwards": (0.2, 1.0), "backwards": (1.0, 0.2)}
    for i, (name, gradient) in enumerate(gradients.items()):
        for j, kind in enumerate(KINDS):
            direction = list(directions)[(i + j) % 2]
            yield pytest.param(
                gradient, kind, directions[direction], id=f"{name}-{kind}-{direction}"
            )


@pytest.mark.parametrize(("gradient", "kind", "ends"), list(turning()))
def test_gradients_are_those_of_finite_differences(gradient, kind, ends):
    x0, a, b = tensors((1, 2), (), ())

    def solved(x0, a, b):
        problem = equation(kind, (a, b))
        ts = uniform(*ends, 3)
        return (
            end(problem, x0, ts, solver=ReversibleHeun(), gradient=gradient),
            states(problem, x0, ts, solver=ReversibleHeun(), gradient=gradient),
        )

    assert torch.autograd.gradcheck(solved, (x0, a, b))


@pytest.mark.parametrize(
    ("gradient", "kind", "ends"),
    [
        case
        for case in turning()
        if case.values[1] in ("additive", "diagonal", "general")
        and not isinstance(case.values[0], Reversible)
    ],
)
def test_second_derivatives(gradient, kind, ends):
    x0, a, b = tensors((1, 2), (), ())

    def solved(x0, a, b):
        return end(
            equation(kind, (a, b)),
            x0,
            uniform(*ends, 3),
            solver=ReversibleHeun(),
            gradient=gradient,
        )

    assert torch.autograd.gradgradcheck(solved, (x0, a, b))


def hundreds_of_steps(gradient, value, ends):
    """The result of 300 steps with a network, and the gradients."""
    net = network()
    (x0, scale) = tensors((8, 2), 2)
    problem = SDE(
        lambda t, x: net(x) - x, lambda t, x: 0.2 + scale * torch.cos(x), "diagonal", "stratonovich"
    )
    wanted = [x0, scale, *net.parameters()]
    x = value(problem, x0, uniform(*ends, 300), solver=ReversibleHeun(), gradient=gradient)
    return x.detach(), torch.autograd.grad((x * torch.cos(x)).sum(), wanted)


hundreds_of_plain_steps = functools.cache(functools.partial(hundreds_of_steps, None))


@pytest.mark.parametrize(
    ("gradient", "tolerance", "value", "ends"),
    [
        (Checkpointed(), 1e-13, states, (0.0, 1.0)),
        (Reversible(), 1e-9, states, (0.0, 1.0)),
        (Reversible(), 1e-9, end, (1.0, 0.0)),
    ],
    ids=["checkpointed-forwards", "reversible-forwards", "reversible-backwards"],
)
def test_hundreds_of_steps_give_the_plain_gradient(gradient, tolerance, value, ends):
    (x, ours) = hundreds_of_steps(gradient, value, ends)
    (y, plain) = hundreds_of_plain_steps(value, ends)
    assert torch.equal(x, y)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def of_each_family():
    """One solver of each module, all but those whose steps cannot be repeated."""
    chosen = {type(solver).__module__: solver for solver in all_solvers()}
    langevin = PredictorCorrector(EulerMaruyama(), Langevin())
    found = [*chosen.values(), Heun(), AdamsBashforth(3), sdekit.ExponentialEuler(-1.0), langevin]
    return [solver for solver in found if not solver.differentiates]


@pytest.mark.parametrize(
    ("solver", "steps"),  # one piece and several, by turns
    [(s, n) for i, s in enumerate(of_each_family()) for n in ((1, 5), (2, 6))[i % 2]],
    ids=str,
)
def test_checkpointing_serves_solvers_of_each_family(solver, steps):
    """In either direction; predictors and correctors are for the reverse."""
    x0, a, b = tensors((3, 2), (), ())
    reverse = isinstance(solver, AbstractPredictor | PredictorCorrector) or steps in (2, 5)
    ts = uniform(*((1.0, 0.0) if reverse else (0.0, 1.0)), steps)
    for kind in kinds_of(solver):
        problem = with_parameters(solver, kind, a, b)
        x, y = (end(problem, x0, ts, solver=solver, gradient=g) for g in (Checkpointed(), None))
        ours, plain = (
            torch.autograd.grad(x.sum(), (x0, a, b), materialize_grads=True) for x in (x, y)
        )
        assert torch.equal(x, y)
        torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-13)


def test_checkpointing_repeats_dropout():
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    )

    def solved(gradient):
        torch.manual_seed(5)
        x = end(
            ODE(lambda t, x: net(x)),
            torch.ones(4, 2),
            uniform(0.0, 1.0, 10),
            solver=Heun(),
            gradient=gradient,
        )
        return torch.autograd.grad(x.sum(), list(net.parameters()))

    torch.testing.assert_close(solved(Checkpointed()), solved(None))


@pytest.mark.parametrize(
    "gradient", [Checkpointed(), Reversible()], ids=["checkpointed", "reversible"]
)
def test_without_autograd_nothing_is_kept_or_repeated(gradient):
    x0, a, b = tensors((3, 2), (), ())
    problem, calls = counted(equation("diagonal", (a, b)))
    with torch.no_grad():
        x = end(problem, x0, uniform(0.0, 1.0, 10), solver=ReversibleHeun(), gradient=gradient)
    assert not x.requires_grad
    assert len(calls) == 11


# What the reversible solve has to find


def test_leaves_behind_a_graph_get_their_gradient():
    """What f closes over may be computed from leaves: a hypernetwork, say."""
    x0, z = tensors((3, 2), (4,))
    problem_of = lambda a: equation("diagonal", (a, 1.5))  # noqa: E731
    grid = uniform(0.0, 1.0, 20)
    a = torch.sin(z).sum()
    x = end(problem_of(a), x0, grid, solver=ReversibleHeun(), gradient=Reversible())
    y = end(problem_of(a), x0, grid, solver=ReversibleHeun())
    for wanted in ([x0, z], [x0]):
        ours, plain = (
            torch.autograd.grad(x.square().sum() + a, wanted, retain_graph=True) for x in (x, y)
        )
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    named = end(problem_of(a), x0, grid, solver=ReversibleHeun(), gradient=Reversible([a]))
    for wanted in ([x0, z], [a], [x0]):
        ours, plain = (
            torch.autograd.grad(x.square().sum(), wanted, retain_graph=True) for x in (named, y)
        )
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_gradients_accumulate_in_leaves():
    net = network()
    found = []
    for gradient in (None, Reversible(), Reversible(net.parameters()), Checkpointed()):
        net.zero_grad()
        x0 = torch.ones(3, 2, dtype=torch.float64)
        end(
            ODE(lambda t, x: net(x)),
            x0,
            uniform(0, 1, 20),
            solver=ReversibleHeun(),
            gradient=gradient,
        ).sum().backward()
        found.append([p.grad.clone() for p in net.parameters()])
    for ours in found[1:]:
        torch.testing.assert_close(ours, found[0], rtol=1e-12, atol=1e-12)


def test_only_the_parameters_given_get_a_gradient():
    x0, a, b = tensors((3, 2), (), ())
    x = end(
        equation("diagonal", (a, b)),
        x0,
        uniform(0, 1, 5),
        solver=ReversibleHeun(),
        gradient=Reversible([a]),
    )
    found = torch.autograd.grad(x.sum(), (x0, a, b), allow_unused=True)
    assert [g is None for g in found] == [False, False, True]


def test_a_parameter_that_is_given_twice_counts_once():
    x0, a = tensors((3, 2), ())
    settings = {"solver": ReversibleHeun(), "gradient": Reversible([a, a])}
    x = end(ODE(lambda t, x: torch.sin(a * x)), x0, uniform(0, 1, 5), **settings)
    plain = end(ODE(lambda t, x: torch.sin(a * x)), x0, uniform(0, 1, 5), solver=ReversibleHeun())
    found, expected = (torch.autograd.grad(v.sum(), a)[0] for v in (x, plain))
    torch.testing.assert_close(found, expected)


def test_a_leaf_that_turns_up_late_is_refused():
    x0, a = tensors((3, 2), ())
    problem = ODE(lambda t, x: torch.sin(a * x) if t > 0.5 else torch.sin(x))
    for gradient in (Reversible(), Reversible([a])):
        x = end(problem, x0, uniform(0.0, 1.0, 10), solver=ReversibleHeun(), gradient=gradient)
        if gradient.parameters is None:
            with pytest.raises(
                RuntimeError,
                match=r"list what f and g depend on: "
                r"Reversible\(parameters\)",
            ):
                x.sum().backward()
        else:
            (found,) = torch.autograd.grad(x.sum(), a)
            plain = end(problem, x0, uniform(0.0, 1.0, 10), solver=ReversibleHeun())
            torch.testing.assert_close(found, *torch.autograd.grad(plain.sum(), a))


def test_parameters_changed_before_the_backward_pass_are_noticed():
    for gradient, message in (
        (Reversible(), "modified by an inplace operation"),
        (Checkpointed(), "changed in place after the solve"),
    ):
        net = network()
        x0 = tensors((3, 2))[0]
        encoder = torch.ones((), dtype=torch.float64, requires_grad=True)
        settings = {"solver": ReversibleHeun(), "gradient": gradient}
        x = end(ODE(lambda t, x, net=net: net(x)), x0 + encoder, uniform(0, 1, 5), **settings)
        with torch.no_grad():
            encoder.add_(1.0)  # not a part of the steps
        x.sum().backward(retain_graph=True)
        with torch.no_grad():
            net[0].weight.add_(1.0)
        with pytest.raises(RuntimeError, match=message):
            x.sum().backward()


def test_derivatives_in_forward_mode_are_refused_where_steps_are_reversed():
    """They would be lost; Checkpointed() has them."""
    x0 = torch.ones(2, 1, dtype=torch.float64)
    rate = torch.tensor(1.3, dtype=torch.float64)
    settings = {"solver": ReversibleHeun()}
    ts = uniform(0, 1, 20)

    def tangent(gradient):
        dual = forward_ad.make_dual(rate, torch.ones_like(rate))
        x = end(ODE(lambda t, x: -dual * x * x), x0, ts, gradient=gradient, **settings)
        return forward_ad.unpack_dual(x).tangent

    with forward_ad.dual_level():
        torch.testing.assert_close(tangent(Checkpointed()), tangent(None))
        with pytest.raises(RuntimeError, match="no derivatives in forward mode"):
            tangent(Reversible())
        end(ODE(lambda t, x: -rate * x), x0, ts, gradient=Reversible(), **settings)


def test_a_hessian_of_listed_tensors_is_refused_where_steps_are_reversed():
    x0 = torch.ones(2, 1, dtype=torch.float64)

    def f(rate):
        return end(
            ODE(lambda t, x: -rate * x * x), x0, uniform(0, 1, 5), solver=ReversibleHeun(),
            gradient=Reversible([rate]),
        ).sum()  # fmt: skip

    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.functional.hessian(f, torch.tensor(1.3, dtype=torch.float64))


def test_what_reversible_refuses():
    x0, a, b = tensors((3, 2), (), ())
    problem = equation("none", (a, b))
    with pytest.raises(TypeError, match="Heun cannot be run backwards exactly; use ReversibleHeun"):
        end(problem, x0, uniform(0, 1, 5), solver=Heun(), gradient=Reversible())
    x = end(problem, x0, uniform(0, 1, 5), solver=ReversibleHeun(), gradient=Reversible())
    (plain,) = torch.autograd.grad(x.sum(), x0, retain_graph=True)
    (found,) = torch.autograd.grad(x.sum(), x0, create_graph=True)
    assert torch.equal(found, plain)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(found.sum(), x0)


def test_reversible_has_gradients_of_states_without_coordinates():
    x0 = torch.zeros(3, 0, requires_grad=True)
    ode = ODE(lambda t, x: -x)
    x = solve(ode, x0, uniform(0, 1, 5), solver=ReversibleHeun(), gradient=Reversible()).x
    x.sum().backward()
    assert x0.grad.shape == (3, 0)


def test_reversible_refuses_a_way_back_that_does_not_return():
    theta = torch.tensor(6.0, requires_grad=True)
    problem = SDE(
        lambda t, x: torch.tanh(x) - theta * x,
        lambda t, x: 0.3 * torch.ones_like(x),
        "additive",
        "stratonovich",
    )
    x = solve(
        problem,
        torch.ones(3, 2),
        uniform(0, 5, 500),
        solver=ReversibleHeun(),
        noise=WhiteNoise(0),
        gradient=Reversible(),
    ).x
    with pytest.raises(ArithmeticError, match="away from x0"):
        x.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_how_far_a_way_back_may_miss(dtype):
    """By the cube root of the dtype's rounding error, relative to one plus the largest number of
    x0, or to the largest of the sample on its way if that is less.
    """
    x0 = torch.tensor([[3.0, -1.0], [1e-6, -2e-6]], dtype=dtype)
    largest = torch.tensor([[0.0, 10.0], [1e-5, 0.0]], dtype=dtype)
    allowed = torch.finfo(dtype).eps ** (1 / 3) * torch.tensor([[4.0], [1e-5]], dtype=dtype)
    _require_return(x0 + 0.95 * allowed, x0, largest)
    for row in range(2):
        with pytest.raises(ArithmeticError, match="away from x0"):
            _require_return(x0[[row]] + 1.05 * allowed[row], x0, largest[[row]])
    _require_return(0 * x0, 0 * x0, 0 * x0)


@pytest.mark.parametrize("unit", [1.0, 1e-3])
def test_reversible_refuses_a_way_back_that_does_not_return_in_any_unit(unit):
    """The gradient of the smaller states was 4 % off."""
    rate = torch.tensor(12.0, requires_grad=True)
    ode = ODE(lambda t, x: rate * (unit * math.sin(3 * t) - x))
    settings = {"solver": ReversibleHeun(), "gradient": Reversible()}
    x = solve(ode, torch.full((2, 1), unit), uniform(0, 1, 100), **settings).x
    with pytest.raises(ArithmeticError, match="away from x0"):
        x.sum().backward()


@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_reversible_returns_to_zero_in_any_unit(unit):
    """Also the paths that are near 0 at both ends by chance."""
    rate = torch.tensor(0.7, requires_grad=True)
    problem = SDE(lambda t, x: -rate * x, lambda t, x: unit, "additive")
    settings = {"solver": ReversibleHeun(), "noise": WhiteNoise(0)}
    plain, reversible = (
        torch.autograd.grad(
            solve(
                problem, torch.zeros(10_000, 1), uniform(0, 1, 20), gradient=gradient, **settings
            ).x.square().sum(),
            rate,
        )[0]
        for gradient in (None, Reversible())
    )  # fmt: skip
    torch.testing.assert_close(reversible, plain, rtol=1e-4, atol=0)


@pytest.mark.parametrize("solver", [EulerMaruyama(), Milstein()], ids=str)
def test_checkpoints_hold_solvers_that_differentiate(solver):
    """Derivatives inside a step, as of g in Milstein's method and of g g^T in reverse time."""
    theta = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    forward = SDE(lambda t, x: -theta * x, lambda t, x: 0.1 + theta * x)
    x0 = torch.ones(3, 1, dtype=torch.float64)
    for problem, ts in (
        (forward, uniform(0, 1, 16)),
        (ReverseSDE(forward, lambda t, x: -x), uniform(1, 0, 16)),
    ):
        plain, checkpointed = (
            torch.autograd.grad(
                solve(
                    problem, x0, ts, solver=solver, noise=WhiteNoise(0), gradient=gradient
                ).x.sum(),
                theta,
            )[0]
            for gradient in (None, Checkpointed())
        )
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=0)


@pytest.mark.parametrize("save", ["last", "all"])
@pytest.mark.parametrize(
    "gradient", [Checkpointed(), Reversible()], ids=["checkpointed", "reversible"]
)
def test_failures_are_located(gradient, save):
    problem = ODE(lambda t, x: torch.where(t > 0.5, torch.nan, -x))
    options = {"solver": ReversibleHeun(), "gradient": gradient, "save": save}
    with pytest.raises(NotFiniteError, match=r"after step 6, at t = 0\.6, in 3 of 3 samples"):
        solve(problem, torch.ones(3, 2), uniform(0, 1, 10), **options)
    assert solve(
        problem, torch.ones(3, 2), uniform(0, 1, 10), **options, throw=False
    ).status.tolist() == [1, 1, 1]
    assert solve(problem, torch.ones(0, 2), uniform(0, 1, 10), **options).x.shape == (0, 2)


def test_adaptive_steps_are_refused():
    with pytest.raises(ValueError, match="gradient= goes with a fixed grid"):
        solve(
            ODE(lambda t, x: x),
            torch.ones(3, 2),
            [0.0, 1.0],
            solver=sdekit.Dopri5(),
            control=PIDController(),
            gradient=Checkpointed(),
        )


def test_callbacks_see_every_state():
    for gradient in (Checkpointed(), Reversible()):
        seen = []
        solve(
            ODE(lambda t, x: x),
            torch.ones(3, 2),
            uniform(0, 1, 10),
            solver=ReversibleHeun(),
            gradient=gradient,
            callback=seen.append,
        )
        assert [point.step for point in seen] == list(range(11))


# What it costs


class Peak(TorchDispatchMode):
    """The most bytes in tensors made under it that were alive together."""

    def __init__(self):
        super().__init__()
        self.known = set()
        self.now = 0
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.untyped_storage().data_ptr() not in self.known
            ):
                storage = tensor.untyped_storage()
                self.known.add(storage.data_ptr())
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.drop, storage.data_ptr(), storage.nbytes())
        return out

    def drop(self, pointer, size):
        self.known.discard(pointer)
        self.now -= size


def peak(gradient, steps):
    net = network(32, torch.float32)
    x0 = torch.ones(16, 2)
    ts = uniform(0.0, 1.0, steps)
    problem = SDE(
        lambda t, x: net(x) - x, lambda t, x: 0.2 + 0.1 * torch.cos(x), "diagonal", "stratonovich"
    )
    with Peak() as seen:
        x = end(problem, x0, ts, solver=ReversibleHeun(), gradient=gradient)
        torch.autograd.grad(x.sum(), list(net.parameters()))
    return seen.most


def test_peak_memory_of_forward_and_backward_pass(monkeypatch):
    """As n without help, as sqrt(n) with checkpoints, constant on the way back."""
    monkeypatch.setattr("sdekit._noise.white._BLOCK", 1 << 9)
    plain = [peak(None, n) for n in (36, 144)]
    checkpointed = [peak(Checkpointed(), n) for n in (36, 144)]
    reversible = [peak(Reversible(), n) for n in (36, 144)]
    assert plain[1] / plain[0] == pytest.approx(4, rel=0.1)
    assert checkpointed[1] / checkpointed[0] == pytest.approx(2, rel=0.15)
    assert checkpointed[0] < 0.2 * plain[1]
    assert reversible[1] - reversible[0] < 32 * 108  # the grid itself: a few float64 a step
    assert reversible[1] < 0.5 * checkpointed[1]


def counted(problem):
    """The same equation, and a list that grows by one with each evaluation of the drift."""
    calls = []

    def f(t, x):
        calls.append(None)
        return problem.drift(t, x)

    return SDE(f, problem.diffusion, problem.noise_type, problem.sde_type), calls


def evaluations(gradient, steps):
    x0, a, b = tensors((3, 2), (), ())
    problem, calls = counted(equation("diagonal", (a, b)))
    x = end(problem, x0, uniform(0.0, 1.0, steps), solver=ReversibleHeun(), gradient=gradient)
    forward = len(calls)
    x.sum().backward()
    return forward, len(calls) - forward


def test_evaluations_of_the_drift():
    """Twice with checkpoints; reversibly three times, and two for finding the leaves."""
    assert evaluations(None, 100) == (101, 0)
    assert evaluations(Checkpointed(), 100) == (101, 100)
    assert evaluations(Reversible(), 100) == (103, 201)


# torch.func and torch.compile


PUBLIC = [
    PredictorCorrector(EulerMaruyama(), Langevin()),
    *(solver for solver in all_solvers() if not solver.iterates),
]


# Their steps differ with the kind of noise; all others leave it to the equation. (That of
# StratonovichMilstein is Milstein's.)
DISTINGUISHING = (EulerMaruyama, Milstein, LogODE)


def kinds_of(solver):
    """All of a solver that distinguishes them, or else the first and the last."""
    kinds = ["additive"] if solver.normals else list(solver.order)
    if type(solver) in DISTINGUISHING or len(kinds) < 3:
        return kinds
    return [kinds[0], kinds[-1]]


def cases():
    return [
        pytest.param(solver, kind, id=f"{type(solver).__name__}-{kind}")
        for solver in PUBLIC
        for kind in kinds_of(solver)
    ]


SOLVERS = pytest.mark.parametrize(("solver", "kind"), cases())


def with_parameters(solver, kind, a, b=1.5):
    if solver.normals or isinstance(solver, AbstractPredictor):
        return reverse_decay(a)
    return equation(kind, (a, b), solver.sde_type)


@SOLVERS
def test_solves_under_torch_func(solver, kind):
    """The finite check reads values, which vmap hides: it passes there."""
    x0 = torch.linspace(-1, 1.2, 4, dtype=torch.float64).reshape(2, 2)
    a = torch.tensor(1.3, dtype=torch.float64)
    # Rules that look back need steps to do so.
    ts = uniform(1.0, 0.0, 4 if isinstance(solver, AbstractPlanned) else 2)

    def last(x0, a=a):
        return end(with_parameters(solver, kind, a), x0, ts, solver=solver)

    def every(x0, a=a):
        return states(with_parameters(solver, kind, a), x0, ts, solver=solver)

    def with_noise(b):
        return end(with_parameters(solver, kind, a, b), x0, ts, solver=solver)

    parameters = torch.tensor([0.5, 2.0], dtype=torch.float64)
    starts = torch.stack([x0, 2 * x0])
    # How states are collected has nothing to do with the kind of noise.
    first = kind == next(iter(solver.order)) or solver.normals
    for solved in (last, every) if first else (last,):
        close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
        close(vmap(solved)(starts), torch.stack([solved(x) for x in starts]))
        jacobian = torch.autograd.functional.jacobian(solved, x0)
        close(jacrev(solved)(x0), jacobian)
        if solved is every:  # the other transforms see the same steps
            continue
        close(
            vmap(functools.partial(solved, x0))(parameters),
            torch.stack([solved(x0, a) for a in parameters]),
        )
        if kind != "none" and not solver.normals:
            close(vmap(with_noise)(parameters), torch.stack([with_noise(b) for b in parameters]))
        close(jacfwd(solved)(x0), jacobian)
        value, along = jvp(solved, (x0,), (torch.cos(x0),))
        close(value, solved(x0))
        close(along, torch.einsum("...ij,ij->...", jacobian, torch.cos(x0)))


@pytest.mark.parametrize("solver", [s for s in all_solvers() if s.iterates], ids=str)
def test_solvers_that_iterate_under_torch_func(solver):
    """vmap, which hides whether they have converged, is refused; derivatives in both modes are
    right, also where gradients are disabled.
    """
    x0 = torch.linspace(-1, 1.2, 4, dtype=torch.float64).reshape(2, 2)
    given = torch.tensor(1.3, dtype=torch.float64)

    def solved(x0, a=given):
        return end(with_parameters(solver, "diagonal", a), x0, uniform(1.0, 0.0, 2), solver=solver)

    with pytest.raises(RuntimeError, match=r"which torch\.func\.vmap hides: solve all rows"):
        vmap(solved)(torch.stack([x0, 2 * x0]))
    jacobian = torch.autograd.functional.jacobian(solved, x0)
    torch.testing.assert_close(jacrev(solved)(x0), jacobian, rtol=1e-12, atol=1e-12)
    by_a = torch.autograd.functional.jacobian(lambda a: solved(x0, a), given)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            _, along = jvp(solved, (x0,), (torch.cos(x0),))
            _, with_a = jvp(lambda a: solved(x0, a), (given,), (torch.ones_like(given),))
        expected = torch.einsum("...ij,ij->...", jacobian, torch.cos(x0))
        torch.testing.assert_close(along, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(with_a, by_a, rtol=1e-12, atol=1e-12)


def test_solves_within_nested_transforms():
    """vmap hides values from the finite check also where a gradient is taken within it."""
    starts = torch.linspace(0.5, 2.0, 6, dtype=torch.float64).reshape(3, 2, 1)
    ode = sdekit.ODE(lambda t, x: x * torch.cos(t))

    def total(x0):
        return end(ode, x0, uniform(0.0, 1.0, 4), solver=sdekit.RK4()).sum()

    slopes = vmap(torch.func.grad(total))(starts)
    expected = torch.stack([torch.func.grad(total)(x0) for x0 in starts])
    torch.testing.assert_close(slopes, expected, rtol=1e-12, atol=0)
    with pytest.raises(sdekit.NotFiniteError):
        torch.func.grad(total)(torch.full_like(starts[0], torch.inf))


def test_an_error_of_a_function_is_not_taken_for_a_refusal_of_torch():
    """Whether hooks keep torch.func from differentiating does not depend on what an error says."""
    calls = []

    def function(x):
        calls.append(x)
        raise RuntimeError("not about saved tensor hooks")

    with pytest.raises(RuntimeError, match="not about"):
        derivative(function, torch.ones(2), torch.ones_like)
    assert len(calls) == 1
    with torch.autograd.graph.save_on_cpu():
        y, slope = derivative(torch.sin, torch.zeros(2), torch.ones_like)
        with pytest.raises(RuntimeError, match="not about"):
            derivative(function, torch.ones(2), torch.ones_like)
    assert y.tolist() == [0.0, 0.0]
    assert slope.tolist() == [1.0, 1.0]
    assert len(calls) == 2


def light(solver, kind, a):
    """An equation of few operations, each of which a compiler traces once a stage."""
    if solver.normals or isinstance(solver, AbstractPredictor):
        return reverse_decay(a)
    g = {
        "additive": lambda t, x: t * torch.ones_like(x),
        "diagonal": lambda t, x: torch.cos(x),
        "scalar": lambda t, x: torch.cos(x),
        "general": lambda t, x: torch.stack([torch.cos(x), t + x.flip(-1)], dim=-1),
    }

    def f(t, x):
        return torch.sin(a * x.flip(-1)) + t

    if kind == "none":
        return ODE(f)
    return SDE(f, g[kind], kind, solver.sde_type, noise_size=2 if kind == "general" else None)


def compiled_steps(solver, kind, time, backend, steps=4):
    """The end of a solve whose steps are compiled, the end of one whose steps are not, and how
    often there was compiling.
    """
    torch._dynamo.reset()
    counters.clear()
    x0 = torch.linspace(-1, 1.2, 6, dtype=torch.float64).reshape(3, 2)
    a = torch.tensor(1.3, dtype=torch.float64)
    ts = uniform(1.0, 0.0, steps).tolist()
    problem = light(solver, kind, a)
    solver = solver.plan(problem, ts)
    ends = []
    for step in (torch.compile(solver.step, backend=backend, fullgraph=True), solver.step):
        x = x0
        state = solver.init(problem, time(ts[0]), x0)
        increments = WhiteNoise(1).increments(
            ts,
            x0,
            problem.noise_shape(x0),
            levy=solver.levy == "H",
            normals=solver.normals,
            start=0,
        )
        for t0, t1, increment in zip(ts, ts[1:], increments, strict=False):
            x, _, _, state = step(problem, time(t0), time(t1), x, increment, state)
        ends.append(x)
    return *ends, counters["stats"]["unique_graphs"]


TIMES = {
    "floats": lambda t: t,
    "one tensor": lambda t: torch.tensor(t, dtype=torch.float64),
    "a time per sample": lambda t: torch.full((3,), t, dtype=torch.float64),
}
ON_GRIDS = (AbstractPlanned, AbstractPredictor, PredictorCorrector)  # times are floats there


def compiled_cases():
    """Every solver with its kinds of noise, and with times as floats and as tensors, in as few
    pairs as can be: solvers of two kinds meet one of the two forms of tensors, by turns, and
    those of one kind meet one form of times. Of solvers that share a step, all but the first have
    one pair, by turns too.
    """
    turns = Counter()
    floats, one, each = TIMES
    forms_of_one_kind = itertools.cycle([each, floats, one])
    for i, solver in enumerate(PUBLIC):
        kinds = kinds_of(solver)
        tensors = itertools.cycle([each, one] if i % 2 else [one, each])
        if isinstance(solver, ON_GRIDS):
            tried = [(kind, floats) for kind in kinds]
        elif len(kinds) == 1:
            tried = [(*kinds, next(forms_of_one_kind))]
        else:
            tried = list(zip(kinds, itertools.chain([floats], tensors), strict=False))
        step = type(solver).step
        if turns[step]:
            tried = [tried[turns[step] % len(tried)]]
        turns[step] += 1
        yield from (
            pytest.param(solver, *pair, id=f"{type(solver).__name__}-{'-'.join(pair)}")
            for pair in tried
        )


@pytest.mark.parametrize(("solver", "kind", "time"), list(compiled_cases()))
def test_a_step_compiles_whole(solver, kind, time):
    """As tensors, times do not make a step compile again; a state that appears with the first step
    may, once.
    """
    # Each float is compiled again: one step, or two where the first leaves a state for the second;
    # rules that look back need steps to do so.
    steps = 4 if time != "floats" else getattr(solver, "k", 1)
    if isinstance(solver, AbstractPlanned) or type(solver).init is not sdekit.AbstractSolver.init:
        steps = max(steps, 2)
    compiled, eager, count = compiled_steps(solver, kind, TIMES[time], "eager", steps=steps)
    torch.testing.assert_close(compiled, eager, rtol=1e-14, atol=1e-14)
    assert count <= 2 or time == "floats"


@pytest.mark.filterwarnings("ignore:Skipping serialization:UserWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_the_same_numbers(monkeypatch):
    """Two steps of two solvers in one graph. Torch's headers are not compiled ahead, which takes
    longer than the code of the steps.
    """
    ahead = "cpp_cache_precompile_headers"
    monkeypatch.setattr(torch._inductor.config, ahead, False, raising=False)
    torch._dynamo.reset()
    x0 = torch.linspace(-1, 1.2, 6, dtype=torch.float64).reshape(3, 2)
    a = torch.tensor(1.3, dtype=torch.float64)
    times = [1.0, 0.4, 0.0]
    ts = torch.tensor(times, dtype=torch.float64).unbind()
    solvers = (EulerMaruyama(), ReversibleHeun())
    problems = [light(solver, "diagonal", a) for solver in solvers]
    states = [s.init(problem, ts[0], x0) for s, problem in zip(solvers, problems, strict=True)]

    def ends(x0, states, ts, increments):
        found = []
        for solver, problem, state in zip(solvers, problems, states, strict=True):
            x = x0
            for t0, t1, increment in zip(ts, ts[1:], increments, strict=False):
                x, _, _, state = solver.step(problem, t0, t1, x, increment, state)
            found.append(x)
        return found

    increments = list(WhiteNoise(1).increments(times, x0, (2,), start=0))
    given = (x0, states, ts, increments)
    compiled = torch.compile(ends, backend="inductor", fullgraph=True)(*given)
    torch.testing.assert_close(compiled, ends(*given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "solved",
    [
        lambda ode, x0, ts: solve(ode, x0, ts, solver=sdekit.RK4()),
        lambda ode, x0, ts: sdekit.integrate(ode, x0, ts, solver=sdekit.RK4()),
        lambda ode, x0, ts: end(ode, x0, [0.0, ts[1]], solver=sdekit.RK4()),
        lambda ode, x0, ts: sdekit.stepper(ode, x0, ts, solver=sdekit.RK4()),
        lambda ode, x0, ts: sdekit.interop.solve_ode(ode, x0, ts),
        lambda ode, x0, ts: sdekit.Transitions(
            SDE(lambda t, x: -x, lambda t, x: 1.0, "additive"), ts, EulerMaruyama()
        ),
    ],
    ids=["solve", "integrate", "a list", "stepper", "solve_ode", "Transitions"],
)
def test_times_that_require_a_gradient_are_refused(solved):
    """It would be None; without autograd they are numbers."""
    ts = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    x0 = torch.ones(2, 1)
    ode = ODE(lambda t, x: -x)
    with pytest.raises(ValueError, match=r"ts requires a gradient.*ts\.detach\(\).*odeint"):
        solved(ode, x0, ts)
    with torch.no_grad():
        solved(ode, x0, ts)
    end = sdekit.odeint(lambda t, x: -x, x0, ts, method="rk4")[-1]
    assert torch.autograd.grad(end.sum(), ts)[0].abs().max() > 0.1


@pytest.mark.parametrize("listed", [True, False])
def test_output_times_that_require_a_gradient_are_refused(listed):
    time = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    times = [0.2, time] if listed else time[None]
    settings = {"solver": sdekit.RK4()}
    ode = ODE(lambda t, x: -x)
    x0 = torch.ones(2, 1)
    with pytest.raises(ValueError, match=r"save requires a gradient.*save\.detach\(\)"):
        sdekit.solve(ode, x0, [0.0, 1.0], save=times, **settings)
    dense = sdekit.solve(ode, x0, [0.0, 1.0], save="dense", **settings)
    with pytest.raises(ValueError, match=r"t requires a gradient.*t\.detach\(\)"):
        dense.at(times)
    with torch.no_grad():
        saved = sdekit.solve(ode, x0, [0.0, 1.0], save=times, **settings).xs
        torch.testing.assert_close(dense.at(times), saved)


def test_a_compiled_drift_is_compiled_once_and_gets_gradients():
    """f sees its time as a tensor: it compiles for each way in which autograd is on or off, not for
    each step.
    """
    torch._dynamo.reset()
    counters.clear()
    net = network()
    x0 = tensors((3, 2))[0]
    f = torch.compile(lambda t, x: net(x) * torch.cos(t), backend="aot_eager", fullgraph=True)
    found = []
    for gradient in (None, Checkpointed(), Reversible()):
        x = end(ODE(f), x0, uniform(0.0, 1.0, 12), solver=ReversibleHeun(), gradient=gradient)
        found.append(torch.autograd.grad(x.sum(), [x0, *net.parameters()]))
    for ours in found[1:]:
        torch.testing.assert_close(ours, found[0], rtol=1e-12, atol=1e-12)
    assert counters["stats"]["unique_graphs"] <= 5
