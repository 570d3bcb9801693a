"""Property-based tests of the marginal kernels: every fact of the closed forms, for drawn
parameters, times, shapes, dtypes.
"""

import itertools
import math
from dataclasses import dataclass

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from sdekit import (
    SDE,
    SRA1,
    Dopri5,
    PIDController,
    ProbabilityFlow,
    ReverseSDE,
    SPaRK,
    WhiteNoise,
    log_likelihood,
    normal,
    solve,
    uniform,
)
from sdekit.elementary import exp, expm1, log1p, sqrt
from sdekit.interop import solve_ode
from sdekit_diffusion import (
    DDPM,
    DIFFUSIONS,
    EDMSDE,
    NCSN,
    VESDE,
    VPSDE,
    AbstractDiffusion,
    CosineVPSDE,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    cosine_betas,
    linear_betas,
)
from sdekit_diffusion._diffusions.diffusion import _cached_table
from sdekit_diffusion._diffusions.names import diffusion
from sdekit_diffusion._diffusions.vp import AbstractLinearBeta

hypothesis.settings.register_profile("kernels", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.load_profile("kernels")


def ve(exact):
    return st.builds(
        lambda low, ratio, exact: VESDE(low, low * ratio, exact),
        st.floats(1e-3, 0.5),
        st.floats(2.0, 1e4),
        exact,
    )


def linear_beta(kind):
    return st.builds(
        lambda low, more: kind(low, low + more), st.floats(0.0, 2.0), st.floats(0.1, 30.0)
    )


def levels(ratios):
    """Noise levels from 0.01 up, by their ratios."""
    return NCSN(0.01 * np.cumprod([1.0, *ratios]))


NOISELESS = st.one_of(  # at t = 0
    ve(st.just(True)),
    linear_beta(VPSDE),
    linear_beta(SubVPSDE),
    st.builds(CosineVPSDE, st.floats(4e-3, 0.1)),
    st.builds(EDMSDE, st.floats(1.0, 100.0)),
    st.just(RectifiedFlow()),
    st.builds(DDPM, st.lists(st.floats(1e-4, 0.9), min_size=2, max_size=12)),
    st.builds(
        DDPM, st.sampled_from([linear_betas(), linear_betas(100, 1e-3, 0.2), cosine_betas(50)])
    ),
)
NOISY = st.one_of(
    ve(st.just(False)), st.builds(levels, st.lists(st.floats(1.1, 4.0), min_size=1, max_size=8))
)
# A diffusion without a strategy above is tested with its defaults.
VARIED = {VESDE, VPSDE, SubVPSDE, CosineVPSDE, EDMSDE, RectifiedFlow, DDPM, NCSN}
OTHERS = [kind() for kind in DIFFUSIONS.values() if kind not in VARIED]
NOISELESS = st.one_of(NOISELESS, *(st.just(sde) for sde in OTHERS if sde.sigma(0.0) == 0))
ALL = st.one_of(NOISELESS, NOISY, *(st.just(sde) for sde in OTHERS))
DEFAULTS = [kind() for kind in DIFFUSIONS.values()]

# Times in units of the end of time.
times = st.floats(1e-4, 1.0)
inside = st.floats(0.01, 0.99)


def column(t, **kind):
    return torch.tensor([t], dtype=torch.float64, **kind)


def close(a, b, rel=1e-9, abs=0.0):  # noqa: A002 - pytest's own names
    return float(a) == pytest.approx(float(b), rel=rel, abs=abs)


@given(ALL, inside)
def test_drift_and_diffusion_are_the_derivatives_of_alpha_and_sigma(sde, t):
    """f = d log(alpha)/dt and g^2 = d sigma^2/dt - 2 f sigma^2, the derivatives by autograd."""
    t *= sde.T
    time = column(t, requires_grad=True)
    (f,) = torch.autograd.grad(torch.log(sde.alpha(time)), time)
    (slope,) = torch.autograd.grad(sde.sigma(time).square(), time)
    assert close(sde.f(t), f, abs=1e-12)
    assert close(sde.g(t) ** 2, slope - 2 * f * sde.sigma(time.detach()) ** 2, rel=1e-7)


@given(NOISELESS, st.floats(1e-4, 0.99))
def test_alpha_and_sigma_are_the_integrals_of_the_coefficients(sde, t):
    """log(alpha) and (sigma/alpha)^2 by scipy's quadrature of f and of g^2/alpha^2, over each step
    of a chain.
    """
    t *= sde.T
    jumps = sde.integral.x[1:-1] if isinstance(sde, DDPM) else ()
    hypothesis.assume(len(jumps) < 50)
    ends = [0.0, *(jump for jump in jumps if jump < t), t]

    def integral(function):
        return sum(
            integrate.quad(function, a, b, epsabs=0, epsrel=1e-11)[0]
            for a, b in itertools.pairwise(ends)
        )

    log_alpha = integral(sde.f)
    ratio = integral(lambda s: (sde.g(s) / sde.alpha(s)) ** 2)
    assert close(math.log(sde.alpha(t)), log_alpha, rel=1e-8, abs=1e-14)
    assert close((sde.sigma(t) / sde.alpha(t)) ** 2, ratio, rel=1e-8)


@given(ALL, st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3, unique=True).map(sorted))
def test_transitions_compose_and_have_positive_variance(sde, stu):
    s, u, t = (sde.T * v for v in stu)
    hypothesis.assume(min(u - s, t - u) > 1e-6)
    (a1, d1) = sde.transition(s, u)
    (a2, d2) = sde.transition(u, t)
    (a, d) = sde.transition(s, t)
    assert close(a1 * a2, a)
    assert close((a2 * d1) ** 2 + d2**2, d**2, rel=1e-6)
    assert d > 0
    expected = sde.sigma(t) ** 2 - (sde.alpha(t) / sde.alpha(s)) ** 2 * sde.sigma(s) ** 2
    assert close(d**2, expected, rel=1e-6, abs=1e-12 * sde.sigma(t) ** 2)


@given(NOISELESS, times)
def test_transitions_from_the_start_are_the_marginals(sde, t):
    t *= sde.T
    a, d = sde.transition(0.0, t)
    assert close(a, sde.alpha(t))
    assert close(d, sde.sigma(t))


@given(ALL, st.floats(0.0, 1.0))
def test_no_time_no_transition(sde, t):
    t *= sde.T
    assert sde.transition(t, t) == (1.0, 0.0)
    a, d = sde.transition(column(t), column(t))
    assert (a.item(), d.item()) == (1.0, 0.0)


@given(st.floats(0.0, 2.0), st.floats(0.1, 30.0), st.floats(0.0, 1.0))
def test_sub_vp_is_below_vp(low, more, t):
    vp = VPSDE(low, low + more)
    sub = SubVPSDE(low, low + more)
    assert sub.sigma(t) <= vp.sigma(t) * (1 + 1e-15)
    assert close(sub.sigma(t), vp.sigma(t) ** 2, rel=1e-12)
    assert sub.alpha(t) == vp.alpha(t)


@given(NOISELESS)
def test_the_start_has_no_noise(sde):
    assert sde.sigma(0.0) == 0.0
    assert sde.alpha(0.0) == 1.0
    assert sde.log_snr(0.0) == math.inf


@given(ALL, st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2, unique=True).map(sorted))
def test_the_clock_never_turns(sde, st_):
    """kappa = alpha^2/sigma^2 decreases strictly."""
    s, t = (sde.T * v for v in st_)
    hypothesis.assume(t - s > 1e-9)
    assert sde.log_snr(s) > sde.log_snr(t)


@given(ALL, times)
def test_time_is_the_inverse_of_the_clock(sde, t):
    t *= sde.T
    assert close(sde.time(sde.log_snr(t)), t, rel=1e-7, abs=1e-12)
    assert close(sde.time(sde.log_snr(column(t))), t, rel=1e-7, abs=1e-12)


@given(ALL, times)
def test_floats_and_tensors_agree(sde, t):
    t *= sde.T
    for name in ("alpha", "sigma", "f", "g", "log_snr"):
        assert close(getattr(sde, name)(column(t)), getattr(sde, name)(t), rel=1e-12, abs=1e-12)


@given(NOISELESS, st.floats(1e-5, 1.0))
def test_closed_forms_hold_in_float32(sde, t):
    """At t = 1e-5 the naive 1 - exp is wrong by a per cent; expm1 is right to the rounding of t and
    of the exponent.
    """
    single = torch.tensor([sde.T * t], dtype=torch.float32).clamp(max=sde.T)
    # Rounded over a jump.
    hypothesis.assume(
        not isinstance(sde, DDPM) or close(sde.f(single), sde.f(float(single)), rel=1e-5)
    )
    for name in ("alpha", "sigma", "f", "g"):
        assert close(getattr(sde, name)(single), getattr(sde, name)(float(single)), rel=3e-5)


@given(NOISELESS, st.floats(1e-5, 0.99))
def test_the_clock_is_inverted_in_float32(sde, t):
    l = torch.tensor([sde.log_snr(sde.T * t)], dtype=torch.float32)
    assert close(sde.log_snr(float(sde.time(l))), l, abs=3e-5)


@given(
    ALL,
    times,
    st.lists(st.integers(1, 3), max_size=4).map(tuple),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_marginal_keeps_shape_and_dtype_and_is_per_sample(sde, t, event, dtype):
    x0 = torch.ones(2, *event, dtype=dtype)
    t = torch.tensor([t, t / 2], dtype=torch.float64) * sde.T
    mean, std = sde.marginal(t, x0)
    assert mean.dtype == dtype
    assert mean.shape == x0.shape
    assert (mean + std * x0).shape == x0.shape
    for row in range(2):
        alone, spread = sde.marginal(float(t[row]), x0[row : row + 1])
        torch.testing.assert_close(
            mean[row : row + 1], alone, rtol=1e-2 if dtype.itemsize == 2 else 1e-6, atol=1e-7
        )
        assert close(
            std[row].flatten()[0], spread, rel=1e-2 if dtype.itemsize == 2 else 1e-6, abs=1e-7
        )


@given(ALL, st.sampled_from([-1e-3, 1.001, math.nan, math.inf]))
def test_times_outside_are_refused(sde, t):
    t *= sde.T
    x = torch.zeros(1, 1)
    for call in (
        lambda: sde.marginal(t, x),
        lambda: sde.marginal(column(t), x),
        lambda: sde.transition(0.1 * sde.T, t),
        lambda: sde.prior((1, 1), t=t),
        lambda: sde.log_prior(x, t),
        lambda: sde.drift(column(t), x),
        lambda: sde.diffusion(column(t), x),
    ):
        with pytest.raises(ValueError, match="outside the range"):
            call()


@pytest.mark.parametrize("sde", DEFAULTS, ids=str)
def test_times_outside_by_rounding_are_the_ends(sde):
    x = torch.ones(1, 1, dtype=torch.float64)
    for outside, end in ((-5e-8, 0.0), (1 + 1e-7, 1.0)):
        t, last = outside * sde.T, end * sde.T
        assert sde.kernel(t) == sde.kernel(last)
        for a, b in ((t, last), (column(t), column(last))):
            torch.testing.assert_close(sde.marginal(a, x), sde.marginal(b, x), rtol=0, atol=0)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE(), DDPM(cosine_betas(20))], ids=str)
def test_loops_that_make_their_times_do_not_read_them(sde):
    """The same diffusion, which takes a tensor as it is and still refuses a float."""
    free = sde.unchecked()
    x = torch.ones(2, 1)
    assert free == sde
    assert hash(free) == hash(sde)
    beyond = torch.tensor([0.5, 1.5]) * sde.T
    assert free.checked(beyond) is beyond
    inside = 0.5 * beyond
    for a, b in zip(free.marginal(inside, x), sde.marginal(inside, x), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="outside the range"):
        free.checked(1.5 * sde.T)
    with pytest.raises(ValueError, match="outside the range"):
        sde.checked(beyond)


@pytest.mark.parametrize("ends", [(0.1, 1.5), (1.5, 0.1), (0.2, -0.1)])
@pytest.mark.parametrize(
    "equation",
    [VPSDE(), ReverseSDE(VPSDE(), lambda t, x: -x), ProbabilityFlow(VPSDE(), lambda t, x: -x)],
    ids=lambda equation: type(equation).__name__,
)
def test_adaptive_solves_refuse_times_outside(equation, ends):
    """At the ends, before the first step: each sample has its own times on the way, and none
    beyond.
    """
    noisy = equation.noise_type != "none"
    solver = SPaRK() if noisy else Dopri5()
    x = torch.ones(2, 1)
    control = PIDController(0.1, 0.1)
    calls = [lambda: solve(equation, x, ends, solver=solver, control=control)]
    if not noisy:
        calls += [
            lambda: solve_ode(equation, x, ends),
            lambda: log_likelihood(equation, x, ends, lambda x: x.sum(dim=1)),
        ]
    for call in calls:
        with pytest.raises(ValueError, match="outside the range of VPSDE"):
            call()
    assert solve(equation, x, (0.1, 0.9), solver=solver, control=control).x.isfinite().all()


def test_transitions_go_forwards():
    with pytest.raises(ValueError, match="goes forwards"):
        VPSDE().transition(0.5, 0.4)


@pytest.mark.parametrize(
    "sde", [*DEFAULTS, VESDE(0.1, 5.0, exact=False), DDPM(cosine_betas(20))], ids=str
)
def test_simulated_transitions_have_the_marginals(sde):
    """Exact transitions through five times: mean and variance within 6 standard errors of 1e5 paths
    (false alarm 2e-9).
    """
    n = 100_000
    x0 = 0.7
    index = torch.arange(n)
    s = 0.0
    x = torch.full((n,), x0, dtype=torch.float64)
    if sde.sigma(0.0) != 0:
        x = x + sde.sigma(0.0) * normal(1, index, (), counter=50, dtype=torch.float64)
    for i, t in enumerate(sde.T * u for u in (0.01, 0.1, 0.3, 0.7, 1.0)):
        factor, spread = sde.transition(s, t)
        x = factor * x + spread * normal(1, index, (), counter=i, dtype=torch.float64)
        s = t
        mean, std = sde.marginal(t, torch.full((1,), x0, dtype=torch.float64))
        assert abs(x.mean() - mean) < 6 * std / math.sqrt(n)
        assert abs(x.var() / std**2 - 1) < 6 * math.sqrt(2 / n)


@pytest.mark.parametrize(
    "sde",
    [VESDE(0.1, 5.0), VPSDE(), RectifiedFlow(), DDPM(linear_betas(100, 1e-3, 0.2))],
    ids=str,
)
def test_simulated_equation_has_the_marginals(sde):
    """SRA1 on the SDE's own drift and diffusion; 6 standard errors of 8,000 paths and the bias of
    200 steps. That drift and diffusion are the derivatives of alpha and sigma is
    shown above, for all.
    """
    n = 8000
    x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    x = solve(sde, x0, uniform(0.0, 0.6 * sde.T, 200), solver=SRA1(), noise=WhiteNoise(3)).x
    mean, std = sde.marginal(0.6 * sde.T, x0[:1])
    assert abs(x.mean() - mean) < 6 * std / math.sqrt(n) + 2e-3
    assert abs(x.var() / std**2 - 1) < 6 * math.sqrt(2 / n) + 4e-3


def test_published_conventions():
    """Song et al.'s formulas, written their way."""
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    c = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    torch.testing.assert_close(VPSDE().alpha(t), torch.exp(c))
    torch.testing.assert_close(VPSDE().sigma(t), torch.sqrt(1 - torch.exp(2 * c)))
    torch.testing.assert_close(SubVPSDE().sigma(t), 1 - torch.exp(2 * c))
    beta = 0.1 + t * (20 - 0.1)
    torch.testing.assert_close(VPSDE().g(t), beta.sqrt())
    torch.testing.assert_close(SubVPSDE().g(t), torch.sqrt(beta * (1 - torch.exp(4 * c))))
    published = 0.01 * (50 / 0.01) ** t
    torch.testing.assert_close(VESDE(exact=False).sigma(t), published)
    torch.testing.assert_close(VESDE().sigma(t), torch.sqrt(published**2 - 0.01**2))
    torch.testing.assert_close(VESDE().g(t), published * math.sqrt(2 * math.log(50 / 0.01)))


@pytest.mark.parametrize("sde", DEFAULTS, ids=str)
def test_prior(sde):
    t = 0.8 * sde.T
    x = sde.prior((50_000, 2), seed=1, t=t, dtype=torch.float64)
    sigma = sde.sigma(t)
    assert abs(x.var() / sigma**2 - 1) < 6 * math.sqrt(2 / x.numel())
    expected = (
        torch.distributions.Normal(0.0, torch.tensor(sigma, dtype=torch.float64)).log_prob(x).sum(1)
    )
    torch.testing.assert_close(sde.log_prior(x, t), expected)
    assert torch.equal(sde.log_prior(x), sde.log_prior(x, sde.T))
    assert torch.equal(sde.prior((10, 2), seed=1, first=7, t=t, dtype=torch.float64), x[7:17])
    torch.manual_seed(0)
    a = sde.prior((2, 3))
    torch.manual_seed(0)
    assert torch.equal(sde.prior((2, 3)), a)


def test_the_prior_has_no_density_without_noise():
    with pytest.raises(ValueError, match="no density where sigma = 0, at t = 0: ask for it at a l"):
        VPSDE().log_prior(torch.zeros(1, 1), 0.0)


def test_names():
    known = [VESDE(), VPSDE(), SubVPSDE(), CosineVPSDE(), EDMSDE(), RectifiedFlow(), DDPM(), NCSN()]
    assert [diffusion(name) for name in "ve vp subvp cosine edm flow ddpm ncsn".split()] == known
    assert all(diffusion(name) == kind() for name, kind in DIFFUSIONS.items())
    assert diffusion(VPSDE(0.2)) == VPSDE(0.2)
    with pytest.raises(ValueError, match="unknown sde 'vpsde'; choose one of ve, vp, subvp"):
        diffusion("vpsde")


@pytest.mark.parametrize(
    "build",
    [
        lambda: VESDE(0.0),
        lambda: VESDE(2.0, 1.0),
        lambda: VPSDE(-1.0),
        lambda: SubVPSDE(3.0, 2.0),
        lambda: VPSDE(0.0, 0.0),
    ],
)
def test_parameters_out_of_range(build):
    with pytest.raises(ValueError, match="needs 0"):
        build()


def test_drift_and_diffusion_are_an_equation_of_sdekit():
    sde = VPSDE()
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    plain = SDE(lambda t, x: x * sde.f(t), lambda t, x: sde.g(t), "additive")
    torch.testing.assert_close(sde.drift(0.3, x), plain.drift(0.3, x))
    assert np.allclose(sde.diffusion(0.3, x), plain.diffusion(0.3, x))


def test_tables_hold_constants_in_double_precision():
    @dataclass(frozen=True)
    class OrnsteinUhlenbeck(AbstractDiffusion):
        rate: float = 5.1

        def alpha(self, t):
            return exp(-self.rate * t)

        def sigma(self, t):
            return sqrt(-expm1(-2 * self.rate * t))

        def time(self, l):
            return 0.5 * log1p(exp(-2 * l)) / self.rate

        def f(self, t):
            return -self.rate

        def g(self, t):
            return (2 * self.rate) ** 0.5

    x = torch.ones(1, 1, dtype=torch.float64)
    sde = OrnsteinUhlenbeck().tabulated([0.25, 0.5])
    assert float(sde.drift(0.5, x)) == -5.1
    assert sde.diffusion(0.25, x) == 10.2**0.5


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_what_is_said_to_preserve_the_variance_does(name):
    sde = DIFFUSIONS[name]()
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64) * sde.T
    deviation = float((torch.as_tensor(sde.size(t)) - 1).abs().max())
    assert sde.preserves_variance or name not in ("vp", "cosine", "ddpm")
    assert (deviation < 1e-14) == sde.preserves_variance


class Louder:
    def sigma(self, t):
        return 2 * super().sigma(t)


def test_a_diffusion_with_another_sigma_preserves_the_variance_only_if_it_is_set():
    class Own(Louder, VPSDE):
        pass

    class Inherited(Own):
        pass

    class Derived(VPSDE):
        sigma = Louder.sigma

    class Steeper(VPSDE):
        def integral(self, t):
            return t**3

    class Another(VPSDE):
        preserves_variance = True

        def alpha(self, t):
            return VPSDE.alpha(self, t)

    class Declared(VPSDE):
        preserves_variance = True

    class Diamond(Declared, Derived):
        pass

    class Fainter(AbstractLinearBeta):
        def alpha(self, t):
            return 0.5 * super().alpha(t)

    class Beside(VPSDE, Fainter):
        pass

    others = (Own, Inherited, Derived, Diamond, Beside)
    assert not any(kind.preserves_variance for kind in others)
    assert all(kind.preserves_variance for kind in (Steeper, Another, Declared))
    assert Own(0.1, 20.0) == Own(beta_max=20.0)
    point = ScoreModel(lambda x, t: x, Own(), "data", shape=(1,), data_std=1.0)._levels(0.0)[0]
    assert point == Own().size(Own().time(0.0))
    assert point > 1.1


def test_the_table_of_a_grid_is_computed_once():
    """But not of a diffusion that can change, nor of one that does not check its times."""
    x = torch.ones(1, 1)
    ts = [0.25, 0.5]
    _cached_table.cache_clear()
    for _ in range(3):
        table = VPSDE().tabulated(ts)
        assert table.diffusion(0.5, x) == pytest.approx(VPSDE().g(0.5))
    assert _cached_table.cache_info().misses == 1
    gentle = VPSDE(beta_max=10.0)
    assert gentle.tabulated(ts).diffusion(0.5, x) == pytest.approx(gentle.g(0.5))
    VPSDE().tabulated(torch.linspace(0.1, 0.9, 2001).tolist())
    assert _cached_table.cache_info().currsize == 2  # without the long one
    late = VPSDE().unchecked().tabulated([0.5, 3.0])
    assert late.diffusion(3.0, x) == pytest.approx(VPSDE().unchecked().g(3.0))
    with pytest.raises(ValueError, match="outside the range"):
        VPSDE().tabulated([0.5, 3.0])
    with pytest.raises(ValueError, match="outside the range"):
        VPSDE().tabulated(ts).drift(torch.tensor([5.0]), x)
    VPSDE().unchecked().tabulated(ts).drift(torch.tensor([5.0]), x)

    class Changing(VPSDE):
        rate = 1.0

        def f(self, t):
            return self.rate * super().f(t)

    sde = Changing()
    before = float(sde.tabulated(ts).drift(0.5, x))
    Changing.rate = 2.0
    assert float(sde.tabulated(ts).drift(0.5, x)) == pytest.approx(2 * before)
