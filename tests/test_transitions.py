"""Densities of steps, and weights of paths."""

import math
from types import SimpleNamespace

import pytest
import torch
from convergence import Nodes, quadrature
from torch.distributions import MultivariateNormal, Normal

from sdekit import (
    ODE,
    RK4,
    SDE,
    SRA1,
    AdamsBashforth,
    AdamsMoulton,
    BrownianPath,
    Clocked,
    EulerMaruyama,
    Increment,
    NotFiniteError,
    Transitions,
    WhiteNoise,
    path_kl,
    path_weights,
    sdeint,
    solve,
    uniform,
)
from sdekit.elementary import sum_of_sample
from sdekit.interop import from_torchsde

Z = 5.6  # standard errors: a false alarm once in 40 million comparisons
X = torch.tensor([[0.3, -0.7], [1.1, 0.4], [-0.2, 0.9]], dtype=torch.float64)
END = torch.tensor([[0.5, -0.6], [0.9, 0.7], [-0.1, 0.6]], dtype=torch.float64)
MATRIX = torch.tensor([[0.7, 0.2], [-0.1, 0.5]], dtype=torch.float64)


def drift(t, x):
    return torch.cos(x) - t * x


KINDS = {
    "additive": (lambda t, x: torch.tensor([0.4, 0.8]).double() * (1 + t)),
    "diagonal": (lambda t, x: 0.3 + 0.2 * x.square() + t),
    "general": (lambda t, x: MATRIX * (1 + x.square().sum(1))[:, None, None]),
}


def equation(kind, f=drift):
    return SDE(f, KINDS[kind], kind, noise_size=2 if kind == "general" else None)


@pytest.mark.parametrize("ts", [[0.2, 0.5], [0.5, 0.2]], ids=["forwards", "backwards"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_a_step_is_that_of_a_normal_law(kind, ts):
    """Of Euler-Maruyama: N(x + f h, g g^T |h|), at the start of the step."""
    sde = equation(kind)
    steps = Transitions(sde, ts, EulerMaruyama())
    f = drift(ts[0], X)
    mean = X + f * (ts[1] - ts[0])
    torch.testing.assert_close(steps.mean(0, X, [f, 100 * f]), mean)
    g = KINDS[kind](ts[0], X)
    if kind == "general":
        covariance = g @ g.mT * abs(ts[1] - ts[0])
        expected = MultivariateNormal(mean, covariance).log_prob(END)
    else:
        std = g * math.sqrt(abs(ts[1] - ts[0]))
        expected = Normal(mean, std).log_prob(END).sum(1)
    torch.testing.assert_close(steps.log_prob(0, X, [f], END), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_is_that_of_two_densities(kind):
    steps = Transitions(equation(kind), [0.2, 0.5], EulerMaruyama())
    f = drift(0.2, X)
    other = f + torch.sin(3 * X)
    dw = torch.tensor([[0.3, -0.2], [0.1, 0.5], [-0.4, 0.2]], dtype=torch.float64)
    end = steps.mean(0, steps.with_noise(0, X, dw), [f])
    move = steps.mean(0, X, [other]) - steps.mean(0, X, [f])
    expected = steps.log_prob(0, X, [other], end) - steps.log_prob(0, X, [f], end)
    torch.testing.assert_close(steps.log_ratio(0, X, move, dw), expected)


SOLVERS = [EulerMaruyama(), AdamsBashforth(1), AdamsBashforth(3), AdamsMoulton(2)]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: f"{type(solver).__name__}")
def test_the_chain_is_that_of_the_solver(solver):
    """With the target the proposal, weights are 1, and paths those of `solve`, but for the last
    correction of a predictor-corrector, of which there is none.
    """
    sde = equation("additive")
    ts = uniform(0.0, 1.0, 12)
    x, log_weight = path_weights(sde, sde, X, ts, solver=solver, noise=WhiteNoise(3))
    assert torch.equal(log_weight, torch.zeros(3, dtype=torch.float64))
    expected = solve(sde, X, ts, solver=solver, noise=WhiteNoise(3)).x
    torch.testing.assert_close(x, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: f"{type(solver).__name__}")
def test_weights_are_products_of_ratios_and_have_the_mean_1(solver):
    """Of rules that look back, too: an independent sum of `log_prob`; E w = 1 and E w x that of
    the target.
    """
    n = 20_000
    ts = uniform(0.0, 1.0, 8)
    q = equation("additive", lambda t, x: -x)
    p = equation("additive", lambda t, x: 0.5 * torch.cos(2 * x) - x)
    x0 = X[:1].expand(n, 2)
    x, log_weight = path_weights(p, q, x0, ts, solver=solver, noise=WhiteNoise(1))
    w = log_weight.exp()
    assert abs(float(w.mean()) - 1) < Z * float(w.std()) / math.sqrt(n)
    assert w.std() > 0.2
    weighted = w * x.sum(1)
    direct = path_weights(p, p, x0, ts, solver=solver, noise=WhiteNoise(2)).x.sum(1)
    error = math.hypot(float(weighted.std()), float(direct.std())) / math.sqrt(n)
    assert abs(float(weighted.mean() - direct.mean())) < Z * error
    unweighted = x.sum(1).mean()
    assert abs(float(unweighted - direct.mean())) > 10 * error


PULL = 0.8  # of the proposal
OTHER = 1.7  # of the target
STD = 0.6


def attracted(rate):
    """An Ornstein-Uhlenbeck process."""
    return SDE(lambda t, x: -rate * x, lambda t, x: STD, "additive")


@pytest.mark.parametrize("steps", [8, 400])
def test_the_divergence_of_two_ornstein_uhlenbeck_processes(steps):
    """(a - b)^2 / (2 s^2) times the sum of E x^2 h: exact for the steps, by the recursion of E x^2;
    of 400 steps also the integral of the exact E x^2, to a hundredth.
    """
    n = 20_000
    h = 1.5 / steps
    x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    pair = (attracted(OTHER), attracted(PULL))
    settings = {"solver": EulerMaruyama(), "noise": WhiteNoise(4)}
    x, kl = path_kl(*pair, x0, uniform(0.0, 1.5, steps), **settings)
    second = [0.49]
    for _ in range(steps - 1):
        second.append((1 - PULL * h) ** 2 * second[-1] + STD**2 * h)
    factor = (OTHER - PULL) ** 2 / (2 * STD**2)
    expected = factor * h * sum(second)
    error = float(kl.std()) / math.sqrt(n)
    assert abs(float(kl.mean()) - expected) < 3 * error
    assert error < 0.01 * expected
    if steps == 400:
        rest = STD**2 / (2 * PULL)
        decayed = (1 - math.exp(-2 * PULL * 1.5)) / (2 * PULL)
        integral = factor * ((0.49 - rest) * decayed + rest * 1.5)
        assert abs(expected - integral) < 0.01 * integral
        assert abs(float(kl.mean()) - integral) < 3 * error + abs(expected - integral)
        return
    direct = solve(pair[1], x0, uniform(0.0, 1.5, steps), **settings).x
    torch.testing.assert_close(x, direct, rtol=1e-12, atol=1e-12)
    weights = path_weights(*pair, x0, uniform(0.0, 1.5, steps), **settings)
    assert torch.equal(weights.x, x)
    assert abs(float((weights.log_weight + kl).mean())) < Z * float(weights.log_weight.std()) / 141
    assert kl.var() < 0.5 * weights.log_weight.var()
    back = path_kl(*pair, x0[:100], uniform(1.5, 0.0, steps), **settings)[1]
    assert (back > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_difference_has_a_constant_divergence(kind):
    """With p - q = g u the divergence is |u|^2 T / 2, whatever the path, the noise and the way."""
    u = torch.tensor([0.3, -0.5], dtype=torch.float64)

    def shifted(t, x):
        g = KINDS[kind](t, x)
        return drift(t, x) + (g @ u if kind == "general" else g * u)

    for ts in (uniform(0.0, 0.8, 5), uniform(0.8, 0.0, 5)):
        pair = (equation(kind, shifted), equation(kind))
        _, kl = path_kl(*pair, X, ts, solver=EulerMaruyama(), noise=NOISE)
        expected = (0.4 * u.square().sum()).expand(3)
        torch.testing.assert_close(kl, expected, rtol=1e-12, atol=0)


def test_the_divergence_is_that_of_the_torchsde_program():
    """`logqp` of `sdeint`, on the same steps and the same path."""
    path = BrownianPath(seed=3, knots=(0.0, 1.0))
    ts = uniform(0.0, 1.0, 16)
    sde = equation("diagonal", lambda t, x: -x)
    prior = equation("diagonal")
    module = SimpleNamespace(
        noise_type="diagonal", sde_type="ito", f=sde.drift, g=sde.diffusion, h=prior.drift
    )
    settings = {"bm": path, "dt": 1 / 16, "method": "euler", "logqp": True}
    _, expected = sdeint(module, X, torch.tensor([0.0, 1.0], dtype=torch.float64), **settings)
    _, kl = path_kl(prior, sde, X, ts, solver=EulerMaruyama(), noise=path)
    torch.testing.assert_close(kl, expected[0], rtol=1e-9, atol=1e-12)


def test_the_divergence_has_gradients():
    """Finite differences, with respect to a parameter of the proposal, through the path as well."""

    def mean(rate):
        q = SDE(lambda t, x: -rate * x, lambda t, x: STD, "additive")
        ts = uniform(0.0, 1.0, 8)
        return path_kl(attracted(OTHER), q, X, ts, solver=EulerMaruyama(), noise=NOISE)[1].mean()

    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(mean(rate), rate)
    expected = (mean(rate.detach() + 1e-5) - mean(rate.detach() - 1e-5)) / 2e-5
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("of_paths", [path_weights, path_kl])
@pytest.mark.parametrize("kind", ["additive", "diagonal"])
def test_a_proposal_that_explodes_is_refused_as_by_solve(of_paths, kind):
    q, p = (equation(kind, lambda t, x, k=k: k * x**3) for k in (50.0, 40.0))
    x0 = torch.cat([X, torch.zeros(1, 2).double()])
    messages = []
    for run in (lambda **given: of_paths(p, q, x0, **given), lambda **given: solve(q, x0, **given)):
        with pytest.raises(NotFiniteError) as caught:
            run(ts=uniform(0.0, 1.0, 20), solver=EulerMaruyama(), noise=NOISE)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    x0[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"initial state x0 .* \(rows 0\)"):
        of_paths(p, q, x0, uniform(0.0, 1.0, 2), solver=EulerMaruyama(), noise=NOISE)


def test_divergences_of_different_noise_are_refused():
    other = SDE(drift, lambda t, x: 0.9, "additive")
    ts = uniform(0.0, 1.0, 3)
    with pytest.raises(ValueError, match="different g"):
        path_kl(other, attracted(PULL), X, ts, solver=EulerMaruyama())
    with pytest.raises(TypeError, match="float"):
        path_kl(other, other, X.long(), ts, solver=EulerMaruyama())


@pytest.mark.parametrize("kind", ["additive", "diagonal"])
def test_coordinates_without_noise(kind):
    """With equal drifts they add nothing, nor NaN to gradients; with others paths have no density
    with respect to each other.
    """
    g = torch.tensor([0.5, 0.0], dtype=torch.float64)
    k = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    settings = {"solver": EulerMaruyama(), "noise": NOISE}

    def pair(*change):
        diffusion = {"additive": lambda t, x: g, "diagonal": lambda t, x: g.expand_as(x)}[kind]
        shift = torch.tensor(change, dtype=torch.float64)
        p = SDE(lambda t, x: shift - k * x, diffusion, kind)
        return p, SDE(lambda t, x: -k * x, diffusion, kind)

    ts = uniform(0.0, 1.0, 4)
    x, kl = path_kl(*pair(0.3, 0.0), X, ts, **settings)
    log_weight = path_weights(*pair(0.3, 0.0), X, ts, **settings).log_weight
    torch.testing.assert_close(kl, torch.full_like(kl, 0.18))  # (0.3 / 0.5)^2 / 2
    torch.testing.assert_close(log_weight, 0.6 * (x - X)[:, 0] / 0.5 - 0.18)
    for value in (kl, log_weight):
        assert abs(float(torch.autograd.grad(value.sum(), k)[0])) < 1e-12
    assert (path_kl(*pair(0.3, 0.1), X, ts, **settings)[1] == math.inf).all()
    assert (path_weights(*pair(0.3, 0.1), X, ts, **settings).log_weight == -math.inf).all()


def test_two_steps_by_hand():
    """AdamsMoulton: the correction of the first step belongs to the mean of the second."""
    sde = SDE(drift, lambda t, x: 0.5, "additive")
    ts = [0.0, 0.3, 0.5]
    steps = Transitions(sde, ts, AdamsMoulton(1))
    f0 = drift(0.0, X)
    x1 = X + 0.3 * f0 + 0.1
    f1 = drift(0.3, x1)
    torch.testing.assert_close(steps.mean(0, X, [f0]), X + 0.3 * f0)
    expected = x1 + 0.2 * f1 + 0.15 * (f1 - f0)  # and the trapezoidal rule less Euler's step
    torch.testing.assert_close(steps.mean(1, x1, [f1, f0]), expected)
    assert steps.memory == 2
    assert len(steps) == 2


def test_girsanov_for_ornstein_uhlenbeck():
    """The mean of log w is minus the divergence, which for linear equations obeys a recursion."""
    n = 40_000
    ts = uniform(0.0, 1.0, 50)
    h = 0.02
    q = SDE(lambda t, x: -x, lambda t, x: 0.7)
    p = SDE(lambda t, x: -2 * x + 0.5, lambda t, x: 0.7)
    x0 = torch.full((n, 1), 0.4, dtype=torch.float64)
    _, log_weight = path_weights(p, q, x0, ts, solver=EulerMaruyama(), noise=WhiteNoise(5))
    mean = 0.4
    variance = 0.0
    divergence = 0.0
    for _ in range(50):
        divergence += 0.5 * h * ((0.5 - mean) ** 2 + variance) / 0.49
        mean = (1 - h) * mean
        variance = (1 - h) ** 2 * variance + 0.49 * h
    error = float(log_weight.std()) / math.sqrt(n)
    assert abs(float(log_weight.mean()) + divergence) < Z * error
    assert divergence > 40 * error


@pytest.mark.parametrize("kind", ["additive", "diagonal", "general"])
def test_divergences_and_means_by_quadrature(kind):
    """Over the nodes of four steps: the divergence of linear equations is that of their recursion,
    and the mean of dP / dQ is 1; no sampling. A general g mixes two coordinates.
    """
    g = torch.tensor([[0.7, 0.0], [0.3, 0.5]], dtype=torch.float64)
    general = kind == "general"
    d = 2 if general else 1
    ts = uniform(0.0, 0.4, 2 if general else 4)
    h = float(ts[1])
    nodes, mass = quadrature(8, d * (len(ts) - 1))
    diffusion = (lambda t, x: g.expand(len(x), 2, 2)) if general else (lambda t, x: 0.7 + 0 * x)
    size = 2 if general else None
    q = SDE(lambda t, x: -x, diffusion, kind, noise_size=size)
    p = SDE(lambda t, x: -2 * x + 0.5, diffusion, kind, noise_size=size)

    class Steps(Nodes):
        def answer(self, query):
            columns = self.w.reshape(len(self.w), -1, d).unbind(1)
            yield from (Increment(column * math.sqrt(h)) for column in columns)

    x0 = torch.full((len(mass), d), 0.4, dtype=torch.float64)
    _, log_weight = path_weights(p, q, x0, ts, solver=EulerMaruyama(), noise=Steps(nodes))
    covariance = g @ g.T if general else torch.tensor([[0.49]], dtype=torch.float64)
    mean = torch.full((d,), 0.4, dtype=torch.float64)
    variance = torch.zeros(d, d, dtype=torch.float64)
    divergence = 0.0
    for _ in range(len(ts) - 1):
        second = variance + torch.outer(0.5 - mean, 0.5 - mean)  # of the difference of both drifts
        divergence += 0.5 * h * float((torch.linalg.inv(covariance) * second).sum())
        mean = (1 - h) * mean
        variance = (1 - h) ** 2 * variance + covariance * h
    assert -float(mass @ log_weight) == pytest.approx(divergence, abs=1e-9)
    assert float(mass @ log_weight.exp()) == pytest.approx(1.0, abs=1e-6)


def test_gradients_are_those_of_finite_differences():
    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def divergence(a):
        q = SDE(lambda t, x: -a * x, lambda t, x: 0.7)
        p = SDE(lambda t, x: torch.sin(x), lambda t, x: 0.7)
        found = path_weights(p, q, X, uniform(0.0, 1.0, 6), solver=EulerMaruyama(), noise=NOISE)
        return -found.log_weight.mean()

    (gradient,) = torch.autograd.grad(divergence(a), a)
    with torch.no_grad():
        difference = (divergence(a + 1e-5) - divergence(a - 1e-5)) / 2e-5
    torch.testing.assert_close(gradient, difference, rtol=1e-7, atol=0)


NOISE = WhiteNoise(11)


def test_the_noise_of_a_clock_is_that_of_the_clock():
    """Its time is the clock: a step has the variance t_1 - t_0, whatever the rate."""
    clocked = Clocked(lambda l, x: x, lambda l: 1.0, a=2.0, q=1.5)
    steps = Transitions(clocked, [0.5, 0.9], AdamsBashforth(1))
    f = clocked.drift(0.5, X)
    mean = steps.mean(0, X, [f])
    expected = Normal(mean, math.sqrt(0.4)).log_prob(END).sum(1)
    torch.testing.assert_close(steps.log_prob(0, X, [f], END), expected)


@pytest.mark.parametrize(
    ("sde", "solver", "error", "message"),
    [
        (ODE(drift), EulerMaruyama(), ValueError, "noise of type 'none' has no density"),
        (
            SDE(drift, lambda t, x: torch.ones_like(x), "scalar"),
            EulerMaruyama(),
            ValueError,
            "noise of type 'scalar' has no density",
        ),
        (equation("diagonal"), AdamsBashforth(1), ValueError, "of AdamsBashforth with noise of"),
        (equation("additive"), SRA1(), TypeError, "SRA1 are not normal with a known mean"),
        (equation("additive"), RK4(), ValueError, "a step of RK4 with noise of type"),
        (
            SDE(drift, lambda t, x: x, "diagonal", "stratonovich"),
            EulerMaruyama(),
            ValueError,
            "solves ito equations and this one is stratonovich",
        ),
    ],
    ids=["none", "scalar", "rule and noise", "stages", "solver and noise", "calculus"],
)
def test_what_has_no_known_density_is_refused(sde, solver, error, message):
    with pytest.raises(error, match=message):
        Transitions(sde, [0.0, 1.0], solver)


def test_a_general_g_must_be_square():
    wide = SDE(drift, lambda t, x: torch.ones(3, 2, 3).double(), "general", noise_size=3)
    steps = Transitions(wide, [0.0, 1.0], EulerMaruyama())
    with pytest.raises(ValueError, match="2 coordinates and 3 Brownian motions"):
        steps.log_prob(0, X, [X], END)


def test_general_noise_of_events_with_several_dimensions():
    """W has one dimension, whatever the state has: the same as for flat states."""
    unit = torch.eye(2, dtype=torch.float64)
    shapes = {"flat": (3, 2), "row": (3, 1, 2)}
    found = {}
    for name, shape in shapes.items():
        g = (0.7 * unit).expand(3, 2, 2).reshape(*shape, 2)
        q, p = (
            SDE(lambda t, x, k=k: 0 * x + k, lambda t, x, g=g: g, "general", noise_size=2)
            for k in (0.0, 0.5)
        )
        x0 = torch.zeros(shape, dtype=torch.float64)
        weights = path_weights(
            p, q, x0, [0.0, 0.4, 1.0], solver=EulerMaruyama(), noise=WhiteNoise(2)
        )
        found[name] = weights.log_weight
        expected = (0.5 * weights.x.reshape(3, 2) - 0.125).sum(1) / 0.49
        torch.testing.assert_close(weights.log_weight, expected)
    torch.testing.assert_close(found["flat"], found["row"])


def test_one_g_per_sample():
    g = torch.tensor([[0.4], [0.8], [1.2]], dtype=torch.float64)
    steps = Transitions(SDE(drift, lambda t, x: g, "additive"), [0.0, 0.5], EulerMaruyama())
    f = drift(0.0, X)
    expected = Normal(X + 0.5 * f, g * math.sqrt(0.5)).log_prob(END).sum(1)
    torch.testing.assert_close(steps.log_prob(0, X, [f], END), expected)


def test_another_g_is_refused():
    with pytest.raises(ValueError, match="different g"):
        path_weights(
            SDE(drift, lambda t, x: 2.0), SDE(drift, lambda t, x: 1.0), X, [0.0, 1.0],
            solver=EulerMaruyama(),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("g", "start"),
    [(lambda t, x: 1 + 3 * t, 0.0), (lambda t, x: 1.001, 1000.0), (lambda t, x: 1e-3, 0.0)],
    ids=["of a later step", "large states", "small"],
)
def test_another_g_in_any_step_is_refused(g, start):
    x0 = torch.full((2, 1), start)
    other = SDE(drift, lambda t, x: 1.1e-3 if float(g(0.0, x)) < 0.1 else 1.0)
    for target, proposal in ((SDE(drift, g), other), (other, SDE(drift, g))):
        with pytest.raises(ValueError, match="different g"):
            path_weights(target, proposal, x0, [0.0, 0.5, 1.0], solver=EulerMaruyama())


class Matrix:
    """An equation of torchsde whose additive noise has a matrix."""

    noise_type = "additive"
    sde_type = "ito"

    def __init__(self, g, shift=0.0):
        self.matrix = torch.as_tensor(g, dtype=torch.float64)
        self.shift = shift

    def f(self, t, y):
        return self.shift - y

    def g(self, t, y):
        return (1 + t) * self.matrix.expand(len(y), *self.matrix.shape)


@pytest.mark.parametrize(("solver", "at"), [(EulerMaruyama(), 0.2), (AdamsBashforth(1), 0.35)])
def test_additive_noise_of_torchsde_has_a_matrix(solver, at):
    """At the start of a step, or in its middle."""
    q = from_torchsde(Matrix(MATRIX))
    mean = X - 0.3 * X
    g = (1 + at) * MATRIX
    expected = MultivariateNormal(mean, g @ g.mT * 0.3).log_prob(END)
    steps = Transitions(q, [0.2, 0.5], solver)
    torch.testing.assert_close(steps.log_prob(0, X, [-X], END), expected)
    p = from_torchsde(Matrix(MATRIX, 0.5))
    x, weight = path_weights(p, q, X, [0.2, 0.5], solver=solver, noise=NOISE)
    target = MultivariateNormal(mean + 0.15, g @ g.mT * 0.3).log_prob(x)
    proposal = MultivariateNormal(mean, g @ g.mT * 0.3).log_prob(x)
    torch.testing.assert_close(weight, target - proposal)


def test_a_diagonal_matrix_is_the_same_noise_as_its_numbers():
    ts = [0.0, 0.5, 1.0]
    q = from_torchsde(Matrix([[0.5, 0.0], [0.0, 0.5]]))
    p, other = (SDE(lambda t, x: -x, lambda t, x, g=g: g * (1 + t), "additive") for g in (0.5, 0.6))
    weight = path_weights(p, q, X, ts, solver=EulerMaruyama(), noise=NOISE).log_weight
    torch.testing.assert_close(weight, torch.zeros_like(weight))
    for pair in ((other, q), (q, other)):
        with pytest.raises(ValueError, match="different g"):
            path_weights(*pair, X, ts, solver=EulerMaruyama(), noise=NOISE)


@pytest.mark.parametrize(
    ("g", "message"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], "a matrix without an inverse"),
        ([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]], "2 coordinates and 3 Brownian motions"),
    ],
    ids=["singular", "wide"],
)
def test_a_matrix_without_an_inverse_is_refused(g, message):
    steps = Transitions(from_torchsde(Matrix(g)), [0.0, 1.0], EulerMaruyama())
    with pytest.raises(ValueError, match=message):
        steps.log_prob(0, X, [X], END)


def test_a_g_is_the_same_up_to_the_rounding_of_its_dtype():
    """Paths with another g have no density, however near."""

    def weights(g, dtype):
        target, proposal = (SDE(drift, lambda t, x, g=g: g * (1 + t)) for g in (g, 0.7))
        return path_weights(target, proposal, X.to(dtype), [0.0, 0.5, 1.0], solver=EulerMaruyama())

    for dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps
        for g in (0.7, 0.7 * (1 + 50 * eps), (0.7 * 0.3) / 0.3):
            assert torch.isfinite(weights(g, dtype).log_weight).all()
        for g in (0.7 * 1.0001, 0.7 * (1 + 2000 * eps)):
            with pytest.raises(ValueError, match="different g"):
                weights(g, dtype)


def test_steps_that_do_not_exist_and_missing_slopes_are_refused():
    steps = Transitions(equation("additive"), uniform(0.0, 1.0, 3), AdamsBashforth(2))
    slopes = [torch.ones_like(X)] * 2
    for i in (-1, 3):
        for call in (
            lambda i: steps.mean(i, X, slopes),
            lambda i: steps.with_noise(i, X, X),
            lambda i: steps.log_prob(i, X, slopes, END),
            lambda i: steps.log_ratio(i, X, X, X),
        ):
            with pytest.raises(ValueError, match=f"the steps 0 to 2, and none of the number {i}"):
                call(i)
    assert len(steps.mean(0, X, slopes[:1])) == 3
    with pytest.raises(ValueError, match="drifts at 2 points, and 1 were given"):
        steps.mean(1, X, slopes[:1])
    with pytest.raises(ValueError, match=r"end has the shape \(1, 2\) and x \(3, 2\)"):
        steps.log_prob(0, X, slopes, END[:1])


def test_drifts_that_are_not_those_of_the_states_are_refused():
    """A tensor was taken for a list of its rows, and a drift of one state for that of all."""
    steps = Transitions(equation("additive"), uniform(0.0, 1.0, 3), EulerMaruyama())
    for call in (steps.mean, lambda i, x, slopes: steps.log_prob(i, x, slopes, END)):
        with pytest.raises(TypeError, match=r"give \[drift\]"):
            call(0, X, -X)
        for slope in (X[:1], X[0], X.mean()):
            with pytest.raises(ValueError, match="a drift of slopes has the shape"):
                call(0, X, [slope])
        with pytest.raises(TypeError, match=r"is an integer, not 1\.5"):
            call(1.5, X, [X])
    two = torch.stack([X, -X])
    torch.testing.assert_close(steps.mean(0, X, [two])[1], steps.mean(0, X, [-X]))
    with pytest.raises(ValueError, match="the mean of the step has the shape"):
        steps.log_prob(0, X, [two], END)


@pytest.mark.parametrize("kind", ["additive", "diagonal"])
def test_a_number_as_g_has_the_dtype_of_the_states(kind):
    sde = SDE(lambda t, x: -x, lambda t, x: 0.3, kind)
    steps = Transitions(sde, [0.0, 0.1], EulerMaruyama())
    law = torch.distributions.Normal(0.9 * X, 0.3 * math.sqrt(0.1), validate_args=False)
    expected = law.log_prob(END).sum(1)
    torch.testing.assert_close(steps.log_prob(0, X, [-X], END), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["additive", "diagonal"])
def test_steps_without_noise_in_a_coordinate_have_no_density(kind):
    g = torch.tensor([1.0, 0.0], dtype=X.dtype)
    steps = Transitions(SDE(lambda t, x: -x, lambda t, x: g, kind), [0.0, 0.1], EulerMaruyama())
    with pytest.raises(ValueError, match="g is 0 in a coordinate here"):
        steps.log_prob(0, X, [-X], 0.9 * X)


def test_noise_types_must_agree():
    with pytest.raises(ValueError, match="the target has diagonal noise and the proposal additive"):
        path_weights(
            equation("diagonal"), equation("additive"), X, [0.0, 1.0], solver=EulerMaruyama()
        )


def test_a_drift_that_changes_its_input_is_refused():
    bad = equation("additive", lambda t, x: x.mul_(0.5))
    with pytest.raises(RuntimeError, match="in place"):
        path_weights(bad, bad, X.clone(), uniform(0.0, 1.0, 3), solver=EulerMaruyama())


def test_sums_do_not_depend_on_the_batch():
    x = torch.randn(5, 3, 11_000, generator=torch.Generator().manual_seed(0))
    whole = sum_of_sample(x)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole, x.double().sum((1, 2)), rtol=1e-12, atol=1e-9)
    for i in range(5):
        assert torch.equal(sum_of_sample(x[i : i + 1]), whole[i : i + 1])
