"""Equations: what g means for each kind of noise, what a user's functions get, what is refused."""

import math

import pytest
import torch

from sdekit import (
    ODE,
    RK4,
    SDE,
    AbstractSDE,
    AngleClocked,
    Clocked,
    EulerMaruyama,
    Milstein,
    PIDController,
    ProbabilityFlow,
    ReverseSDE,
    Rodas5P,
    Tsit5,
    WhiteNoise,
    normal,
    solve,
    uniform,
)

X = torch.arange(12.0).reshape(2, 3, 2)


def one(t, x):
    return torch.ones_like(x)


@pytest.mark.parametrize(
    ("kind", "size", "w_shape", "g"),
    [
        ("additive", None, (2, 3, 2), lambda t, x: 2 * t),
        ("additive", None, (2, 3, 2), lambda t, x: torch.full((2,), 3.0)),
        ("diagonal", None, (2, 3, 2), lambda t, x: x),
        ("scalar", None, (2,), lambda t, x: x),
        ("general", 4, (2, 4), lambda t, x: x[..., None] * torch.arange(4.0)),
    ],
)
def test_diffuse_is_the_product_that_the_table_says(kind, size, w_shape, g):
    sde = SDE(one, g, kind, noise_size=size)
    assert sde.noise_shape(X) == w_shape[1:]
    dw = torch.randn(w_shape, generator=torch.Generator().manual_seed(0))
    g_value = torch.as_tensor(g(torch.tensor(0.5), X))
    if kind == "scalar":
        expected = g_value * dw[:, None, None]
    elif kind == "general":
        expected = (g_value * dw[:, None, None, :]).sum(-1)
    else:
        expected = (g_value.reshape(-1, 1, 1) if g_value.ndim == 1 else g_value) * dw
    torch.testing.assert_close(sde.diffuse(0.5, X, dw, X), X + expected)


@pytest.mark.parametrize(
    ("dtype", "given"), [(torch.float64, torch.float64), (torch.float16, torch.float32)]
)
def test_a_function_gets_time_as_a_tensor_no_coarser_than_float32(dtype, given):
    seen = []
    ODE(lambda t, x: seen.append(t) or x).drift(0.25, X.to(dtype))
    assert seen[0].shape == ()
    assert seen[0].dtype == given
    assert seen[0] == 0.25


def test_wrong_shape_is_named():
    with pytest.raises(
        ValueError,
        match=r"f\(t, x\) returned shape \(2,\) for x of shape \(2, 3, "
        r"2\)",
    ):
        ODE(lambda t, x: x[:, 0, 0]).drift(0.0, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_type": "none"}, "use ODE"),
        ({"noise_type": "colored"}, "is not one of"),
        ({"sde_type": "backward"}, "'ito' or 'stratonovich'"),
        ({"noise_type": "general"}, "noise_size"),
        ({"noise_type": "diagonal", "noise_size": 3}, "noise_size"),
    ],
)
def test_what_is_not_an_equation(arguments, message):
    with pytest.raises(ValueError, match=message):
        SDE(one, one, **arguments)


def test_score_is_only_on_equations_built_from_one():
    with pytest.raises(TypeError, match="has no score"):
        SDE(one, one).score(0.0, X)


def test_a_number_a_coordinate_is_broadcast_as_torch_does():
    dw = torch.ones(2, 3, 2)
    sde = SDE(one, lambda t, x: torch.tensor([1.0, 0.0]), "additive")
    torch.testing.assert_close(sde.diffuse(0.0, X, dw, X), X + torch.tensor([1.0, 0.0]))
    assert SDE(one, lambda t, x: 0.5, "additive").diffusion(0.0, X) == 0.5


@pytest.mark.parametrize(
    ("kind", "size", "g"),
    [
        ("diagonal", None, lambda t, x: torch.ones(2, 3, 3)),
        ("scalar", None, lambda t, x: torch.ones(2)),
        ("general", 4, lambda t, x: torch.ones(2, 3, 2, 5)),
    ],
)
def test_wrong_shape_of_g_is_named(kind, size, g):
    with pytest.raises(ValueError, match=r"g\(t, x\) returned shape"):
        SDE(one, g, kind, noise_size=size).diffusion(0.0, X)


def test_the_state_keeps_its_dtype_and_functions_return_tensors():
    wide = SDE(lambda t, x: x.double(), lambda t, x: x.double())
    assert solve(wide, X, [0.0, 1.0], solver=EulerMaruyama()).x.dtype == torch.float32
    with pytest.raises(TypeError, match=r"f\(t, x\) returned float"):
        ODE(lambda t, x: 1.0).drift(0.0, X)


def test_rows_reach_the_forward_equation():
    forward = SDE(one, lambda t, x: torch.ones_like(x), "additive")
    object.__setattr__(forward, "rows", lambda index: OU)
    assert ReverseSDE(forward, ou_score).rows(torch.tensor([1])).forward is OU
    assert ProbabilityFlow(forward, ou_score).rows(torch.tensor([1])).forward is OU


# Reverse time

OU = SDE(lambda t, x: -x, lambda t, x: torch.full_like(x, 2**0.5), "additive")


def ou_score(t, x):
    """N(0, 0.25 e^{-2t} + 1 - e^{-2t}), the law of the Ornstein-Uhlenbeck process from N(0,
    0.25).
    """
    t = torch.as_tensor(t)
    return -x / (1 - 0.75 * torch.exp(-2 * t))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
def test_every_eta_has_the_forward_marginals(eta):
    """Variance 0.25 at the end, mean 0: within 5.5 standard errors of 40,000 samples (false alarm
    below 1e-7).
    """
    n = 40_000
    start = (1 - 0.75 * torch.exp(torch.tensor(-4.0))).sqrt()
    x = (
        start
        * WhiteNoise(7)
        .rows(torch.arange(n))
        .increments([0, 1], torch.zeros(n), (), levy=False, normals=0)
        .__next__()
        .w
    )
    x = solve(
        ReverseSDE(OU, ou_score, eta),
        x,
        uniform(2.0, 0.0, 400),
        solver=EulerMaruyama(),
        noise=WhiteNoise(8),
    ).x
    assert abs(x.mean()) < 5.5 * 0.5 / n**0.5
    # 0.01: the bias of 400 Euler steps.
    assert abs(x.var() / 0.25 - 1) < 5.5 * (2 / n) ** 0.5 + 0.01


def test_probability_flow_is_eta_zero():
    x = torch.linspace(-1, 1, 5)[:, None]
    flow = ProbabilityFlow(OU, ou_score)
    reverse = ReverseSDE(OU, ou_score, 0.0)
    assert flow.noise_type == reverse.noise_type == "none"
    torch.testing.assert_close(flow.drift(0.3, x), reverse.drift(0.3, x))
    torch.testing.assert_close(flow.drift(0.3, x), -x - ou_score(0.3, x))


GEOMETRIC = SDE(lambda t, x: 0.3 * x, lambda t, x: 0.5 * x, "diagonal")


def log_normal(t):
    """Mean and variance of log x_t under geometric Brownian motion from log x_0 ~ N(0.1, 0.04)."""
    return 0.1 + (0.3 - 0.125) * t, 0.04 + 0.25 * t


def geometric_score(t, x):
    mean, variance = log_normal(t)
    return -(1 + (x.log() - mean) / variance) / x


def test_state_dependent_noise_adds_its_divergence():
    """Geometric Brownian motion backwards: without the divergence the mean of log x is off by about
    20 standard errors.
    """
    n = 40_000
    (mean, variance) = log_normal(1.0)
    z = normal(3, torch.arange(n), (1,), dtype=torch.float64)
    x1 = (mean + math.sqrt(variance) * z).exp()
    # Quantiles map to quantiles: the flow is known in closed form.
    flow = solve(
        ProbabilityFlow(GEOMETRIC, geometric_score), x1[:500], uniform(1.0, 0.0, 200), solver=RK4()
    ).x
    torch.testing.assert_close(flow, (0.1 + 0.2 * z[:500]).exp(), rtol=1e-6, atol=0)
    for eta in (0.5, 1.0):
        reverse = ReverseSDE(GEOMETRIC, geometric_score, eta)
        assert reverse.noise_type == "diagonal"
        x0 = solve(
            reverse, x1, uniform(1.0, 0.0, 100), solver=Milstein(), noise=WhiteNoise(4)
        ).x.log()
        # 5.5 standard errors, false alarm below 1e-7, and what 100 steps leave, measured to fall
        # with their number.
        assert abs(x0.mean() - 0.1) < 5.5 * 0.2 / n**0.5 + 0.002
        assert abs(x0.var() / 0.04 - 1) < 5.5 * (2 / n) ** 0.5 + 0.02


@pytest.mark.parametrize("build", [ReverseSDE, ProbabilityFlow])
@pytest.mark.parametrize("inference", [False, True])
def test_a_diffusion_that_torch_cannot_differentiate_is_refused(build, inference):
    """The divergence would be dropped; that of a g that is the same for all x, and of one that
    jumps, is 0.
    """
    scale = torch.tensor(2.0, requires_grad=True)
    x = torch.full((2, 1), 2.0)

    def drift(g):
        with torch.inference_mode(inference):
            return build(SDE(lambda t, x: -x, g), lambda t, x: -x).drift(0.5, x)

    for g in (torch.no_grad()(lambda t, x: 1 * x), lambda t, x: scale * x.detach()):
        with pytest.raises(RuntimeError, match=r"diffusion depends on x, .* div\(g g\^T\) needs"):
            drift(g)
    factor = 1.0 if build is ReverseSDE else 0.5
    assert torch.equal(drift(lambda t, x: x), -x - factor * (2 * x - x**3))
    assert torch.equal(drift(one), -x + factor * x)
    edge = x + 1.5 * torch.finfo(x.dtype).eps ** 0.25 * (1 + x)
    assert torch.equal(drift(lambda t, x: torch.where(x > edge, 2.0, 1.0)), -x + factor * x)


def test_the_diffusion_is_compared_once_in_a_solve():
    """A g that is the same for all x is evaluated three times more, not in each step."""
    calls = []

    def g(t, x):
        calls.append(t)
        return torch.ones_like(x)

    reverse = ReverseSDE(SDE(one, g), ou_score)
    for _ in range(5):
        reverse.drift(0.5, X[:, 0])
    assert len(calls) == 2 * 5 + 3


def test_the_diffusion_is_not_compared_where_vmap_hides_a_parameter_of_it():
    x = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(2, 2)

    def drift(b):
        forward = SDE(lambda t, x: -x, lambda t, x: b * torch.ones_like(x), "diagonal")
        return ReverseSDE(forward, lambda t, x: -x).drift(0.5, x)

    b = torch.tensor([0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(drift)(b), torch.stack([drift(one) for one in b]))


def test_other_noise_is_refused_with_the_reason():
    cases = [
        (
            SDE(one, lambda t, x: x, "scalar"),
            "scalar noise; reversing is supported for additive and diagonal",
        ),
        (SDE(one, lambda t, x: x, "diagonal", "stratonovich"), "write it as an Ito equation"),
    ]
    for build in (ReverseSDE, ProbabilityFlow):
        for forward, message in cases:
            with pytest.raises(TypeError, match=message):
                build(forward, ou_score)


def test_negative_eta():
    with pytest.raises(ValueError, match="eta must be"):
        ReverseSDE(OU, ou_score, -1.0)


def test_score_of_the_wrong_shape():
    with pytest.raises(ValueError, match="score"):
        ReverseSDE(OU, lambda t, x: x[:, :1]).drift(0.5, X[:, 0])


# Clocks


@pytest.mark.parametrize(("a", "q"), [(1.0, 0.0), (2.0, 2.0), (1.25, 0.5), (-1.0, 0.0)])
def test_clocked_drift_is_the_chain_rule(a, q):
    """d/dtau of the integral of F dA, by a central difference in the clock."""
    problem = Clocked(lambda l, x: l * x, lambda l: 1.0, a, q)
    tau = problem.time(0.4)
    x = torch.ones(1, 1, dtype=torch.float64)
    h = 1e-6
    area = lambda t: float(torch.exp(torch.tensor(a * problem.parameter(t), dtype=torch.float64)))  # noqa: E731
    slope = 0.4 * (area(tau + h) - area(tau - h)) / (2 * h)
    assert problem.drift(tau, x).item() == pytest.approx(slope, rel=1e-8)
    assert problem.parameter(problem.time(-3.0)) == pytest.approx(-3.0)
    assert problem.noise_type == ("additive" if q else "none")


def test_clocked_exponents():
    with pytest.raises(ValueError, match="exponents"):
        Clocked(lambda l, x: x, lambda l: 1.0, 0.0)
    for a, q in ((math.nan, 0.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)):
        with pytest.raises(ValueError, match="the exponents must be finite"):
            Clocked(lambda l, x: x, lambda l: 1.0, a, q)


def test_coefficients_are_functions():
    def f(t, x):
        return -x

    for given, make in ((None, ODE), (3, ODE), (None, lambda f: SDE(f, f))):
        with pytest.raises(TypeError, match=rf"f is a function of \(t, x\), not {given}"):
            make(given)
    with pytest.raises(TypeError, match=r"g is a function of \(t, x\), not 1\.0"):
        SDE(f, 1.0)


@pytest.mark.parametrize("c", [0.1, 1.0, 7.0])
def test_angles(c):
    """tan A = -e^{-l} / c, from floats and from tensors; the slope of y is F itself."""
    problem = AngleClocked(lambda l, x: l * x, lambda l: 2.0, c=c)
    l = torch.linspace(-5, 7, 50, dtype=torch.float64)
    torch.testing.assert_close(problem.time(l).tan(), -l.neg().exp() / c, rtol=1e-11, atol=0)
    torch.testing.assert_close(problem.parameter(problem.time(l)), l, rtol=0, atol=1e-11)
    # The clean end does not round away.
    assert problem.parameter(problem.time(300.0)) == pytest.approx(300)
    angle = problem.time(0.4)
    assert angle == pytest.approx(-math.atan(math.exp(-0.4) / c))
    assert problem.drift(angle, torch.ones(1, 1)).item() == pytest.approx(0.8)
    assert problem.tabulated([angle]).drift(angle, torch.ones(1, 1)).item() == pytest.approx(0.8)
    assert problem.noise_type == "none"


@pytest.mark.parametrize("c", [0.0, -1.0, math.inf, math.nan])
def test_angles_need_a_positive_c(c):
    with pytest.raises(ValueError, match="c must be a positive number"):
        AngleClocked(lambda l, x: x, lambda l: 1.0, c=c)


class Decay(AbstractSDE):
    """With rates in double precision, and no diffusion."""

    noise_type = "none"

    def __init__(self):
        self.rate = torch.tensor([[1.0], [2.0]], dtype=torch.float64)

    def drift(self, t, x):
        return -self.rate * x

    def rows(self, index):
        some = Decay()
        some.rate = self.rate[index]
        return some


@pytest.mark.parametrize("solver", [Tsit5(), Rodas5P()], ids=str)
@pytest.mark.parametrize("control", [None, PIDController(1e-5, 1e-5)], ids=["grid", "adaptive"])
def test_the_drift_of_a_subclass_is_cast_to_the_dtype_of_the_state(solver, control):
    solution = solve(
        Decay(), torch.ones(2, 1), uniform(0.0, 0.5, 20), solver=solver, control=control
    )
    assert solution.x.dtype == torch.float32
    torch.testing.assert_close(solution.x, (-0.5 * Decay().rate).exp().float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["scalar", "general"])
def test_the_diffusion_of_a_subclass_is_cast_to_the_dtype_of_the_state(kind):
    class Noisy(Decay):
        noise_type = kind

        def diffusion(self, t, x):
            g = torch.full((2, 1), 0.5, dtype=torch.float64)
            return g if kind == "scalar" else g[..., None]

        def noise_shape(self, x):
            return () if kind == "scalar" else (1,)

    settings = {"solver": EulerMaruyama(), "noise": WhiteNoise(0)}
    x = solve(Noisy(), torch.ones(2, 1), uniform(0.0, 0.5, 20), **settings).x
    assert x.dtype == torch.float32


def test_integers_of_a_subclass_are_refused():
    class Counts(Decay):
        def drift(self, t, x):
            return torch.ones(2, 1, dtype=torch.int64)

    with pytest.raises(TypeError, match=r"drift\(t, x\) returned torch.int64"):
        solve(Counts(), torch.ones(2, 1), uniform(0.0, 0.5, 20), solver=RK4())


def test_an_equation_with_noise_defines_its_diffusion():
    class Noisy(Decay):
        noise_type = "additive"

    assert Decay().diffusion(0.0, X) == 0.0
    with pytest.raises(NotImplementedError, match="Noisy has additive noise and no method"):
        solve(Noisy(), torch.ones(2, 1), uniform(0.0, 0.5, 20), solver=EulerMaruyama())
