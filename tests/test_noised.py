"""`start=Noised(x)`: solves that begin at data with noise, for every method, against exact laws in
one dimension.
"""

import functools
import math

import pytest
import torch

from sdekit import normal
from sdekit_diffusion import (
    DDPM,
    EDMSDE,
    METHODS,
    VESDE,
    VPSDE,
    AdaptiveFlow,
    AdaptiveSDE,
    GaussianMixture,
    Given,
    Guided,
    Noised,
    RectifiedFlow,
    ScoreModel,
    linear_betas,
    sample,
)
from sdekit_diffusion._models import counters
from sdekit_diffusion._models.counters import START

N = 2000
# Kolmogorov's limit: the largest difference of the empirical and the exact distribution function
# exceeds it once in a million samples.
LIMIT = math.sqrt(math.log(2 / 1e-6) / 2 / N)
MIXTURE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0], [1.5]], dtype=torch.float64), [0.09, 0.25]
)
STD = MIXTURE.data_std
TWO = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])
END = 0.02
WITH_NOISE = {"sde", "ddpm", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa", "dpmpp_sde", "adaptive_sde"}
WITH_NOISE |= {"dpm_2_ancestral", "dpmpp_2s_ancestral"}
IN_TIME = {"euler_maruyama", "reverse_diffusion", "ancestral"}
MIXED = {"edm", "pc", "ncsn", "ncsnv2"}  # neither the flow nor the reverse SDE alone
FLOW = set(METHODS) - WITH_NOISE - IN_TIME - MIXED


def phi(x):
    return 0.5 * torch.erfc(-x / math.sqrt(2))


def cdf(weights, means, variances, y):
    """Of a mixture in one dimension; the last dimension of its parameters is that of components."""
    return (weights * phi((y[..., None] - means) / variances.sqrt())).sum(-1)


def noisy_cdf(y, sigma):
    """Of x_0 + sigma eps, x_0 from the mixture."""
    return cdf(MIXTURE.weights, MIXTURE.means[:, 0], MIXTURE.covariances[:, 0, 0] + sigma**2, y)


def posterior_cdf(y, x, sigma):
    """Of the end of the reverse SDE from x + sigma eps: p(x_0 | x_t), averaged over eps on a grid,
    with the noise of the end.
    """
    eps = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    density = torch.exp(-0.5 * eps**2)
    density = density / density.sum()
    xt = (x + sigma * eps)[:, None]
    means = MIXTURE.means[:, 0]
    variances = MIXTURE.covariances[:, 0, 0]
    total = variances + sigma**2
    logits = MIXTURE.weights.log() - 0.5 * ((xt - means) ** 2 / total + total.log())
    gain = variances / total
    rest = sigma**2 * gain + (END * STD) ** 2
    return torch.stack(
        [
            density @ cdf(torch.softmax(logits, 1), means + gain * (xt - means), rest, v.expand(1))
            for v in y
        ]
    )


def flow_cdf(y, x, sigma):
    """Of the end of the flow from x + sigma eps: a monotone map in one dimension, F_0^-1 F_t."""
    target = noisy_cdf(y, END * STD)
    low = torch.full_like(y, -60.0)
    high = torch.full_like(y, 60.0)
    for _ in range(80):
        middle = 0.5 * (low + high)
        above = noisy_cdf(middle, sigma) > target
        low = torch.where(above, low, middle)
        high = torch.where(above, middle, high)
    return phi((low - x) / sigma)


POINTS = torch.linspace(-4, 5, 200, dtype=torch.float64)


@functools.cache
def between_the_modes(function):
    """The function at the points, of the solves from x = -0.4 and the level 0.8."""
    return function(POINTS, -0.4, 0.8 * STD)


def distance(found, exact):
    """The largest difference of the distribution functions, up to what a grid of the exact one
    does not see.
    """
    empirical = (found.flatten()[:, None] <= POINTS).double().mean(0)
    return float((empirical - exact).abs().max())


def settings_of(method):
    """Numbers of steps with which the method's own bias is a fraction of the limit."""
    steps = {"ncsn": 20, "ncsnv2": 100, "ddpm": 200} | dict.fromkeys([*IN_TIME, "pc"], 250)
    steps = steps.get(method)
    return {"method": method, "end": END, "seed": 5, "dtype": torch.float64} | (
        {} if steps is None else {"steps": steps}
    )


@pytest.mark.parametrize("method", sorted(MIXED))
def test_samples_of_the_model_keep_their_law(method):
    """x_t = x + sigma eps follows p_t, and the result p_0: for the methods whose law from one x is
    neither of those of the two tests below.
    """
    x = MIXTURE.sample(N, seed=1)
    found = sample(MIXTURE, sde="vp", start=Noised(x, level=0.8), **settings_of(method))
    assert distance(found, noisy_cdf(POINTS, END * STD)) < LIMIT + 0.005


@pytest.mark.parametrize("method", sorted(WITH_NOISE | IN_TIME))
def test_the_reverse_equation_has_the_averaged_posterior(method):
    """Of one x between the modes; the limit is LIMIT, and 0.01 for the bias of methods in time."""
    start = Noised(torch.tensor([[-0.4]], dtype=torch.float64), level=0.8)
    found = sample(MIXTURE, N, sde="vp", start=start, **settings_of(method))
    assert found.shape == (N, 1)
    exact = between_the_modes(posterior_cdf)
    assert distance(found, exact) < LIMIT + (0.01 if method in IN_TIME else 0.002)
    assert distance(found, between_the_modes(flow_cdf)) > 2 * LIMIT


@pytest.mark.parametrize("method", sorted(FLOW))
def test_the_flow_has_the_image_of_a_normal_law(method):
    start = Noised(torch.tensor([[-0.4]], dtype=torch.float64), level=0.8)
    found = sample(MIXTURE, N, sde="vp", start=start, **settings_of(method))
    assert distance(found, between_the_modes(flow_cdf)) < LIMIT
    assert distance(found, between_the_modes(posterior_cdf)) > 2 * LIMIT


SDES = [VPSDE(), VESDE(), EDMSDE(), RectifiedFlow(), DDPM(linear_betas(100))]


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("by", ["strength", "level"])
def test_the_first_state_is_data_with_noise(sde, by):
    """alpha x + sigma eps at the time of the strength or the level, eps of (seed, first + i)."""
    x = TWO.sample(4, seed=1)
    start = Noised(x, strength=0.6) if by == "strength" else Noised(x, level=1.5)
    settings = {"sde": sde, "seed": 3, "first": 7, "steps": 5, "save": "all", "end": 1e-4}
    solution = sample(TWO, start=start, return_solution=True, dtype=torch.float64, **settings)
    t = float(solution.ts[0])
    if by == "strength":
        first = float(sde.time(-math.log(160 * TWO.data_std))) if sde.latest(1.0) < 1 else sde.T
        last = float(solution.ts[-1])
        share = (lambda t: t ** (1 / 7)) if isinstance(sde, EDMSDE) else (lambda t: t)
        assert share(t) == pytest.approx(0.6 * share(first) + 0.4 * share(last), rel=1e-6)
    alpha, sigma = sde.kernel(t)
    if by == "level":
        assert sigma / alpha == pytest.approx(1.5 * TWO.data_std, rel=1e-6)
    eps = normal(3, torch.arange(7, 11), (2,), counter=START, dtype=torch.float64)
    torch.testing.assert_close(solution.xs[0], alpha * x + sigma * eps, rtol=1e-6, atol=1e-6)
    assert len(solution.ts) == 6  # all steps are taken in what is left


def test_no_counter_is_used_twice():
    values = [v for k, v in vars(counters).items() if k.isupper()]
    assert len(values) == len(set(values))
    assert max(values) < -1  # the prior's; from 0 on they belong to steps


def test_flows_of_one_level_agree_under_every_diffusion():
    x = TWO.sample(5, seed=1)
    found = [
        sample(TWO, sde=sde, start=Noised(x, level=1.5), seed=2, method="ode", dtype=torch.float64)
        for sde in ("vp", "ve", "subvp", "cosine", "edm", "flow")
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-3)


def test_strength_one_is_nearly_the_prior():
    """x is left with the factor alpha_T = 0.0066: a result with another x of unit distance, and
    the same eps, differs little.
    """
    settings = {"sde": "vp", "seed": 2, "dtype": torch.float64}
    a, b = (
        sample(MIXTURE, N, start=Noised(torch.full((1, 1), value), strength=1.0), **settings)
        for value in (0.0, 1.0)
    )
    assert 1e-3 < float((a - b).abs().mean()) < 0.05
    for x in (a, b):
        assert distance(x, noisy_cdf(POINTS, 1e-3 * STD)) < LIMIT + 0.005


@pytest.mark.parametrize("method", ["default", "sde", "ode", "ncsn"])
def test_a_small_strength_returns_x(method):
    x = TWO.sample(50, seed=1)
    start = Noised(x, level=0.005)
    found = sample(TWO, sde="vp", start=start, seed=0, method=method)
    assert float((found - x).abs().max()) < 0.15 * TWO.data_std
    assert not torch.equal(found, x)
    found = sample(TWO, sde="vp", start=Noised(x, strength=1e-3), seed=0, method=method)
    assert float((found - x).abs().max()) < 0.35 * TWO.data_std


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize(
    "method",
    "default dpmpp_2m sde ode adaptive_sde euler_maruyama ancestral pc edm ncsn".split(),
)
def test_batches_and_parts_are_the_same(method):
    """Bit-identical; the x of a sample goes with it. One method or two of each kind: a method is
    given states and does not know where they are from.
    """
    x = TWO.sample(7, seed=1)
    steps = {} if method in ("ode", "adaptive_sde") else {"steps": 2 if method == "ncsn" else 6}
    settings = {"sde": "vp", "method": method, "seed": 3, **steps}
    if method == "adaptive_sde":
        settings["method"] = AdaptiveSDE(0.3, 0.3)  # fewer steps
    whole = sample(TWO, start=Noised(x, strength=0.5), **settings)
    assert whole.shape == (7, 2)
    assert torch.equal(sample(TWO, start=Noised(x, strength=0.5), batch_size=4, **settings), whole)
    part = sample(TWO, 2, start=Noised(x[4:6], strength=0.5), first=4, **settings)
    assert torch.equal(part, whole[4:6])
    assert sample(TWO, 0, start=Noised(x[:0], strength=0.5), **settings).shape == (0, 2)


def test_one_x_serves_all_samples():
    x = TWO.sample(1, seed=1)
    settings = {"sde": "vp", "seed": 3, "steps": 6}
    found = sample(TWO, 5, start=Noised(x, strength=0.5), batch_size=2, **settings)
    expected = sample(TWO, start=Noised(x.expand(5, 2), strength=0.5), **settings)
    assert torch.equal(found, expected)
    assert not torch.equal(found[0], found[1])
    assert sample(TWO, 0, start=Noised(x, strength=0.5), **settings).shape == (0, 2)


def test_a_solve_can_go_on_where_another_stopped():
    """`end` and `level` have one unit, and its result is x_t / alpha."""
    tight = AdaptiveFlow(1e-8, 1e-8)
    settings = {"sde": "vp", "method": tight, "dtype": torch.float64}
    middle = sample(TWO, 6, seed=4, end=0.7, **settings)
    found = sample(TWO, start=Noised(middle, level=0.7, add_noise=False), **settings)
    torch.testing.assert_close(found, sample(TWO, 6, seed=4, **settings), rtol=0, atol=1e-6)


def test_dtypes_are_as_for_initial_states():
    x = TWO.sample(4, seed=1)
    settings = {"sde": "vp", "seed": 3, "steps": 6}
    wide = sample(TWO, start=Noised(x.double(), strength=0.5), **settings)
    assert wide.dtype == torch.float64
    narrow = sample(TWO, start=Noised(x, strength=0.5), **settings)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide.float(), rtol=0, atol=1e-5)  # with the same noise
    half = sample(TWO, start=Noised(x, strength=0.5), dtype=torch.float16, **settings)
    assert torch.equal(half, narrow.half())
    with pytest.raises(ValueError, match=r"x of start is torch.float64 and dtype=torch.float32"):
        sample(TWO, start=Noised(x.double(), strength=0.5), dtype=torch.float32, **settings)


def test_grids_span_what_is_left():
    x = TWO.sample(2, seed=1)
    l = torch.linspace(-math.log(1.5 * TWO.data_std), 5.0, 8)
    end = math.exp(-5.0) / TWO.data_std
    settings = {"sde": "vp", "seed": 0, "end": end, "return_solution": True}
    found = sample(TWO, start=Noised(x, level=1.5), grid=Given(l), **settings)
    assert found.evaluations.tolist() == [7, 7]
    with pytest.raises(ValueError, match="the grid covers sigma / alpha from"):
        sample(TWO, start=Noised(x, level=1.0), grid=Given(l), **settings)


def test_a_path_is_that_of_what_is_left():
    x = TWO.sample(500, seed=1)
    settings = {"sde": "vp", "seed": 0, "noise": "path", "method": "sde"}
    few, many = (
        sample(TWO, start=Noised(x, level=1.0), steps=steps, **settings) for steps in (50, 100)
    )
    assert float((few - many).abs().median()) < 0.02 * TWO.data_std


def test_models_made_from_models():
    """Each sample has its x and its condition, in every batch."""

    settings = {"shape": (2,), "data_std": 1.0}
    network = ScoreModel(lambda x, t, y: y[:, None] + 0 * x, "vp", "data", **settings)
    known = network.given(y=torch.arange(4.0))
    x = torch.zeros(4, 2)
    settings = {"start": Noised(x, strength=0.5), "denoise": True, "seed": 0, "steps": 5}
    for model in (known, Guided(known, 1.0, by=network.given(y=torch.zeros(4)))):
        found = sample(model, batch_size=3, **settings)
        torch.testing.assert_close(found, torch.arange(4.0)[:, None].expand(4, 2))


X = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "give one of strength, .* and level"),
        ({"strength": 0.5, "level": 1.0}, "not 0.5 and 1.0"),
        ({"strength": 0.0}, "above 0 and at most 1; not 0.0"),
        ({"strength": 1.1}, "above 0 and at most 1; not 1.1"),
        ({"strength": math.nan}, "above 0 and at most 1"),
        ({"level": 0.0}, "a positive number such as 2.0; not 0.0"),
        ({"level": math.inf}, "a positive number"),
    ],
)
def test_a_start_is_a_share_or_a_level(settings, match):
    with pytest.raises(ValueError, match=match):
        Noised(X, **settings)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"start": Noised(X, level=1.0), "x_T": X}, ValueError, "x_T and start both say"),
        ({"start": X}, TypeError, r"such as Noised\(x, strength=0.6\), not tensor"),
        ({"start": Noised(X.int(), level=1.0)}, TypeError, "x of start must be a floating tensor"),
        ({"start": Noised([[0.0, 1.0]], level=1.0)}, TypeError, "x of start .* not list"),
        ({"start": Noised(X[:, :1], level=1.0)}, ValueError, r"x of start has shape \(2, 1\)"),
        ({"start": Noised(X, level=1.0), "n": 3}, ValueError, "give one x or 3 of them"),
        ({"start": Noised(X, level=1.0), "n": 0}, ValueError, "give one x or 0 of them"),
        ({"start": Noised(X + math.nan, level=1.0)}, ValueError, "not finite in 2 of 2 samples"),
        ({"start": Noised(X, level=300.0)}, ValueError, "and the start is at 300: choose a level"),
        ({"start": Noised(X, level=1e-3)}, ValueError, "runs from .* and the start is at 0.001"),
        ({"start": Noised(X, level=0.01), "end": 0.02}, ValueError, "to 0.02 standard deviations"),
    ],
)
def test_wrong_starts_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        sample(TWO, sde="vp", **settings)


def test_no_warning_belongs_to_data():
    """Warnings are errors here: data as x_T raise one, and where sigma / alpha at T is small the
    prior does.
    """
    x = TWO.sample(40, seed=1)
    short = VESDE(sigma_max=1.0)
    with pytest.warns(UserWarning, match="the prior is far from"):
        sample(TWO, 2, sde=short, steps=3)
    sample(TWO, sde=short, start=Noised(x, strength=1.0), steps=3)
    sample(TWO, sde="vp", start=Noised(100 + x, strength=0.2), steps=3)
