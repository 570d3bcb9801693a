"""Samples: their law at the end actually used, batch independence, every method under every
diffusion, bad input.

Statistical bounds are 5.5 standard errors (false alarm below 4e-8 each, below 1e-6 a test) with
fixed seeds.
"""

import copy
import functools
import inspect
import itertools
import math
import re
import traceback
from dataclasses import dataclass, replace

import pytest
import torch
from physical import on_clock, span_of
from torch import nn

from sdekit import (
    RK4,
    AdamsBashforth,
    DPMSolver,
    EulerMaruyama,
    Heun,
    Langevin,
    NotFiniteError,
    PredictorCorrector,
    ReverseDiffusion,
    UnfinishedError,
)
from sdekit_diffusion import (
    DDIM,
    METHODS,
    VESDE,
    VPSDE,
    AdaptiveFlow,
    AdaptiveSDE,
    AnnealedLangevin,
    GaussianMixture,
    InTime,
    OnClock,
    ScoreModel,
    SubVPSDE,
    sample,
)
from sdekit_diffusion._sampling.adaptive import AbstractAdaptive
from sdekit_diffusion._sampling.arguments import SampleOptions

Z = 5.5
IN_TIME = [name for name, method in METHODS.items() if isinstance(method, InTime)]
SDES = ["ve", "vp", "subvp"]
KERNELS = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}


def ring():
    """Eight narrow Gaussians with unequal weights: the default must be at the statistical floor
    here.
    """
    angle = torch.arange(8) * math.pi / 4
    weights = torch.arange(1.0, 9.0)
    return GaussianMixture(
        weights / weights.sum(),
        torch.stack([angle.cos(), angle.sin()], 1),
        torch.full((8,), 0.05**2),
    )


def line():
    return GaussianMixture([0.3, 0.7], torch.tensor([-1.0, 0.5]), [0.04, 0.01])


def sixteen():
    """Centred, as data should be: the prior has mean 0, and p_T of VE at sigma = 50 is off by
    |mean| / 50 deviations.
    """
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(3, 16, 16, generator=generator) / 8
    means = torch.randn(3, 16, generator=generator)
    weights = torch.tensor([0.2, 0.3, 0.5])
    return GaussianMixture(
        weights, means - weights @ means, factor @ factor.mT + 0.01 * torch.eye(16)
    )


MIXTURES = {"1": line(), "2": ring(), "16": sixteen()}
# As narrow, with a tenth of the samples or more in each mode, so that a thousand are enough.
FOUR = GaussianMixture(
    [0.1, 0.2, 0.3, 0.4],
    torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]),
    torch.full((4,), 0.05**2),
)


def floor_scores(x, law):
    """z-scores of mode weights, mean and covariance against a law whose modes are far apart."""
    n = len(x)
    flat = x.reshape(len(x), -1).double()
    r = law.responsibilities(x).double()
    weights = (r.mean(0) - law.weights) / (r.std(0) / math.sqrt(n))
    mean = (flat.mean(0) - law.mean().reshape(-1)) / (flat.std(0) / math.sqrt(n))
    centred = flat - law.mean().reshape(-1)
    products = centred[:, :, None] * centred[:, None]
    covariance = (products.mean(0) - law.covariance()) / (products.std(0) / math.sqrt(n))
    return torch.cat([weights, mean, covariance.flatten()]).abs()


def mode_scores(x, law):
    """z-scores of each mode's own mean and variance, and of those of all modes together, for
    isotropic modes that do not overlap.
    """
    mode = law.responsibilities(x).argmax(1)
    parts = [
        (x[mode == k].reshape(-1, len(m)) - m) / v.sqrt()
        for k, (m, v) in enumerate(zip(law._means, law._variances, strict=True))
    ]
    scores = []
    for part in (*parts, torch.cat(parts), torch.cat(parts).reshape(-1, 1)):
        scores += [
            part.mean(0) * math.sqrt(len(part)),
            (part.var(0) - 1) * math.sqrt(len(part) / 2),
        ]
    return torch.cat(scores).abs()


def in_an_interval(l):
    return float(-1 < l < 2)


# In one dimension under two diffusions, in 16 under the one whose prior is furthest from the law,
# the ring under VP: test_schedules.py has the same samples on the clock under all.
FLOORS = [("ve", "1"), ("subvp", "1"), ("vp", "2"), ("ve", "16")]


@pytest.mark.parametrize(("sde", "dimensions"), FLOORS)
def test_default_is_at_the_floor_of_20000_samples(sde, dimensions):
    mixture = MIXTURES[dimensions]
    solution = sample(mixture, 20_000, sde=sde, seed=1, return_solution=True)
    assert solution.evaluations.unique().tolist() == [100]
    end = float(solution.ts[-1])
    assert KERNELS[sde].log_snr(end) == pytest.approx(math.log(1000 / mixture.data_std))
    assert floor_scores(solution.x, mixture.marginal(end, KERNELS[sde])).max() < Z


LAWS = [
    *[
        (OnClock(eta=1.0), 100),
        (OnClock(eta=0.5), 100),
        (OnClock(DPMSolver(3), eta=0.5), 100),
        (OnClock(AdamsBashforth(4)), 99),
        (DDIM(0.5), 200),
        (DDIM(0.5, stages=2), 100),
        (OnClock(eta=in_an_interval), 100),
        (InTime(PredictorCorrector(ReverseDiffusion(), Langevin(steps=2))), 400),
    ],
    # Annealed Langevin dynamics has a bias of its own, which test_annealed.py bounds.
    *((name, None) for name in METHODS if not isinstance(METHODS[name], AnnealedLangevin)),
]
# More steps than the default where the order is one; in time less than half of the default's
# thousand, whose bias is not seen either.
STEPS = {
    "ddim": 200,
    "ddpm": 400,
    "euler_maruyama": 400,
    "reverse_diffusion": 400,
    "ancestral": 400,
    "pc": 300,
}


# Long solves take turns: test_predictors.py has their loops, step by step, under each diffusion.
TURNS = {
    "euler_maruyama": ["vp"],
    "reverse_diffusion": ["subvp"],
    "ancestral": ["ve"],
    "pc": ["ve"],  # with two Langevin steps it is under "vp"
    "adaptive_sde": ["ve"],
    "ode": ["subvp"],
}


def diffusions_of(method):
    """Samples of methods on the clock are the same under each, as test_schedules.py shows."""
    depends_on_time = isinstance(METHODS.get(method), InTime | AbstractAdaptive)
    return TURNS.get(method, SDES if depends_on_time else ["vp"])


@pytest.mark.parametrize(
    ("sde", "method", "steps"),
    [(sde, method, steps) for method, steps in LAWS for sde in diffusions_of(method)],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),  # the same in all processes
)
def test_every_method_has_the_law_of_narrow_modes(sde, method, steps):
    """Of 1000 samples: a width of all modes off by 12 % is seen, and of the smallest by 80 %."""
    steps = STEPS.get(method, steps)
    solution = sample(FOUR, 1000, sde=sde, method=method, steps=steps, seed=2, return_solution=True)
    law = FOUR.marginal(float(solution.ts[-1]), KERNELS[sde])
    assert floor_scores(solution.x, law).max() < Z
    assert mode_scores(solution.x, law).max() < Z


def test_the_tests_have_the_power_to_see_what_matters():
    """A coarse Euler-Maruyama, Langevin with one sample's own norms in two dimensions, and a shift
    by 0.4 of a mode's deviation fail the same test by far.
    """
    law = FOUR.marginal(1e-3, VESDE())
    coarse = sample(FOUR, 1000, sde="vp", method="euler_maruyama", steps=100, seed=2)
    assert mode_scores(coarse, law).max() > 2 * Z
    own = PredictorCorrector(EulerMaruyama(), Langevin(snr=0.16, m=0.0))
    jumping = sample(FOUR, 1000, sde="vp", method=own, steps=200, seed=2)
    assert mode_scores(jumping, law).max() > 4 * Z
    shifted = sample(FOUR, 1000, sde="ve", seed=2) + 0.02
    assert mode_scores(shifted, law).max() > 2 * Z


@pytest.mark.parametrize("sde", ["vp", "subvp"])
def test_other_ends_and_denoising(sde):
    """At sigma/alpha = 0.1 the samples have that noise; denoised, the law of D(x)."""
    solution = sample(FOUR, 1000, sde=sde, end=0.1, seed=3, return_solution=True)
    t = float(solution.ts[-1])
    x = solution.x * KERNELS[sde].alpha(t)
    assert mode_scores(x, FOUR.marginal(t, KERNELS[sde])).max() < Z
    denoised = sample(FOUR, 1000, sde=sde, end=0.1, seed=3, denoise=True)
    torch.testing.assert_close(denoised, FOUR.denoise(t, x, KERNELS[sde]))


def test_vp_and_subvp_give_the_same_image_on_the_clock():
    """Up to the ends: both start from the prior at nearly the same signal-to-noise ratio."""
    mixture = MIXTURES["2"]
    a, b = (sample(mixture, 500, sde=sde, seed=4) for sde in ("vp", "subvp"))
    torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    assert not torch.equal(a, b)


# More than 20 steps of the chain under "vp", more than one level of annealed Langevin dynamics.
NEEDING_MORE = ("reverse_diffusion", "ancestral", "pc", "ncsn", "ncsnv2")
# Less than a hundred steps instead of three hundred; of the second at least one is rejected.
COARSE = AdaptiveSDE(0.3, 0.3)
REJECTING = AdaptiveSDE(0.15, 0.15)


def steps_of(method, n):
    """Adaptive methods take no number; a step of annealed Langevin dynamics is five or a hundred
    moves.
    """
    chosen = METHODS.get(method) if isinstance(method, str) else method
    return (
        None
        if isinstance(chosen, AbstractAdaptive)
        else n // 10
        if isinstance(chosen, AnnealedLangevin)
        else n
    )


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize(
    ("method", "sde"),
    [*((name, "vp") for name in METHODS), *itertools.product(IN_TIME, ["ve"])],
)
def test_shapes_are_a_matter_of_reshaping(method, sde):
    flat = GaussianMixture(
        [0.4, 0.6], torch.tensor([[-1.0, 0.5, 0.2, 0.9], [1.0, 0.0, -0.3, 0.1]]), [0.04, 0.01]
    )
    steps = steps_of(method, 22 if method in NEEDING_MORE else 8)
    settings = {"sde": sde, "method": method, "steps": steps, "seed": 1, "end": 0.02}
    settings["method"] = COARSE if method == "adaptive_sde" else method
    x = sample(flat, 6, **settings)
    shape = (1, 2, 2) if sde == "ve" else (2, 1, 2, 1)
    images = GaussianMixture([0.4, 0.6], flat._means.reshape(2, *shape), [0.04, 0.01])
    y = sample(images, 6, **settings)
    assert y.shape == (6, *shape)
    assert torch.equal(y.reshape(6, 4), x)
    scalar = sample(line(), 6, **settings)
    column = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0], [0.5]]), [0.04, 0.01])
    assert scalar.shape == (6,)
    assert torch.equal(sample(column, 6, **settings)[:, 0], scalar)


class RowWise(nn.Module):
    def forward(self, x, t):
        return torch.tanh(x) * (0.2 + t).reshape(-1, *[1] * (x.ndim - 1))


def require_adaptive_samples_alone(model, settings):
    """In fewer batches than the other methods, whose solves are short: of all, of 4 and of 1."""
    whole = sample(model, 5, return_solution=True, **settings)
    assert whole.x.dtype == settings["dtype"]
    assert whole.rejected.unique().numel() > 1
    parts = [sample(model, 4, **settings), sample(model, 1, first=4, **settings)]
    assert torch.equal(torch.cat(parts), whole.x)


# All methods in float32, as test_samplers.py has them in float64; every other in bfloat16, which is
# float32 rounded at the end.
PRECISIONS = {
    torch.float32: list(METHODS),
    torch.float64: ["default", "sde"],
    torch.bfloat16: [name for name in METHODS if name != "adaptive_sde"][::2],
}


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize(
    ("dtype", "method"),
    [
        pytest.param(dtype, method, id=f"dtype{i}-{method}")
        for i, (dtype, methods) in enumerate(PRECISIONS.items())
        for method in methods
    ],
)
def test_samples_do_not_depend_on_the_batch(method, dtype):
    model = ScoreModel(RowWise(), "vp", shape=(2, 3), data_std=1.0).to(dtype)
    steps = steps_of(method, 24 if method in NEEDING_MORE else 10)
    settings = {"method": method, "steps": steps, "seed": 5, "dtype": dtype}
    if method == "adaptive_sde":
        require_adaptive_samples_alone(model, settings | {"method": REJECTING})
        return
    n = 5
    sizes = [3, 100] if method == "default" else [3]
    whole = sample(model, n, **settings)
    assert whole.dtype == dtype
    half = n // 2 + 1
    halves = [sample(model, half, **settings), sample(model, n - half, first=half, **settings)]
    assert torch.equal(torch.cat(halves), whole)
    for size in sizes:
        assert torch.equal(sample(model, n, batch_size=size, **settings), whole)
    assert torch.equal(sample(model, 1, first=n - 1, **settings), whole[n - 1 :])


def test_networks_agree_between_batches_to_rounding():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 4))
    model = ScoreModel(
        lambda x, t: net(torch.cat([x, t[:, None]], 1)), "subvp", "velocity", shape=(4,)
    )
    whole = sample(model, 64, seed=1)
    torch.testing.assert_close(sample(model, 64, seed=1, batch_size=5), whole, rtol=1e-5, atol=1e-5)


def test_float64_noise_is_that_of_float32():
    model = ScoreModel(RowWise(), "vp", shape=(3,), data_std=1.0)
    single, double = (
        sample(model, 8, seed=3, steps=5, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_seeds():
    model = MIXTURES["2"]
    a = sample(model, 4, sde="vp", seed=1)
    b = sample(model, 4, sde="vp", seed=2)
    assert not torch.equal(a, b)
    torch.manual_seed(7)
    first, second = (sample(model, 4, sde="vp", return_solution=True) for _ in range(2))
    assert first.seed != second.seed
    assert torch.equal(sample(model, 4, sde="vp", seed=first.seed), first.x)
    torch.manual_seed(7)
    assert torch.equal(sample(model, 4, sde="vp"), first.x)


def unscaled(mixture):
    """The same law, solved in the coordinates of data of mean 0 and standard deviation 1."""
    model = copy.copy(mixture)
    model.data_mean = 0.0
    model.data_std = 1.0
    return model


def test_a_model_of_one_diffusion_samples_under_another():
    mixture = FOUR
    vp = VPSDE()
    model = ScoreModel(lambda x, t: mixture.score(t, x, vp), vp, "score", shape=(2,), data_std=1.0)
    for sde in SDES:
        solution = sample(model, 1000, sde=sde, seed=1, return_solution=True)
        law = mixture.marginal(float(solution.ts[-1]), KERNELS[sde])
        assert floor_scores(solution.x, law).max() < Z
        start = KERNELS[sde].log_snr(float(solution.ts[0]))
        assert start == pytest.approx(max(KERNELS[sde].log_snr(1.0), vp.log_snr(1.0)))
    exact = unscaled(mixture)
    torch.testing.assert_close(
        sample(model, 20, seed=1), sample(exact, 20, sde="vp", seed=1), rtol=1e-3, atol=1e-4
    )


def test_a_plain_score_and_a_solver_as_method():
    mixture = MIXTURES["2"]
    vp = VPSDE()
    score = lambda x, t: mixture.score(t, x, vp)  # noqa: E731
    assert sample(score, 3, sde="vp", shape=(2,), seed=1).shape == (3, 2)
    by_solver = sample(mixture, 3, sde="vp", method=EulerMaruyama(), steps=50, seed=1)
    assert torch.equal(
        by_solver, sample(mixture, 3, sde="vp", method="euler_maruyama", steps=50, seed=1)
    )
    assert sample(mixture, 3, sde="vp", method=InTime(Heun(), eta=0.0), steps=50, seed=1).shape == (
        3,
        2,
    )
    assert torch.isfinite(
        sample(mixture, 3, sde="vp", method=OnClock(Heun(), eta=1.0), steps=50, seed=1)
    ).all()


def test_samples_are_contiguous_whatever_x_T_is():
    mixture = GaussianMixture([1.0], [[0.0, 0.0, 0.0]], [1.0])
    x_T = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).t()
    whole = sample(mixture, sde="vp", x_T=x_T, steps=4)
    assert whole.is_contiguous()
    assert torch.equal(whole, sample(mixture, sde="vp", x_T=x_T, steps=4, batch_size=3))


@pytest.mark.parametrize("sde", SDES)
def test_a_given_start(sde):
    """The prior is N(alpha m, (alpha s)^2 + sigma^2), with the mean and the standard deviation
    of the data.
    """
    mixture = MIXTURES["2"]
    kernel = KERNELS[sde]
    alpha = kernel.alpha(kernel.T)
    sigma = kernel.sigma(kernel.T)
    z = kernel.prior((5, 2), seed=9) / sigma
    x_T = alpha * mixture.data_mean + math.hypot(alpha * mixture.data_std, sigma) * z
    torch.testing.assert_close(
        sample(mixture, sde=sde, x_T=x_T), sample(mixture, 5, sde=sde, seed=9)
    )


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_trajectory_is_in_the_diffusions_own_scale_and_time():
    mixture = MIXTURES["2"]
    seen = []
    for method in ("default", "euler_maruyama"):
        seen.clear()
        solution = sample(
            mixture,
            6,
            sde="subvp",
            method=method,
            steps=10,
            seed=1,
            batch_size=4,
            save="all",
            return_solution=True,
            callback=seen.append,
        )
        assert solution.xs.shape == (11, 6, 2)
        alpha = SubVPSDE().alpha(float(solution.ts[-1]))
        torch.testing.assert_close(solution.xs[-1], solution.x * alpha)
        assert solution.ts[0] == pytest.approx(1.0)
        assert [p.step for p in seen] == [*range(11)] * 2
        for p, t, x in zip(seen[:11], solution.ts, solution.xs, strict=True):
            assert p.t == pytest.approx(float(t), abs=1e-9)
            torch.testing.assert_close(p.x, x[:4])


def test_one_step_of_one_value_is_ddim_and_ancestral_sampling():
    """x_s = alpha_s D + sigma_s (x_t - alpha_t D)/sigma_t without noise; with it, the Gaussian
    q(x_s | x_t, x_0 = D).
    """
    mixture = MIXTURES["2"]
    vp = VPSDE()
    x_T = vp.prior((5, 2), seed=1, dtype=torch.float64)
    start, stop = span_of(mixture, vp, 0.5)
    t = vp.time(start)
    s = vp.time(stop)
    settings = {"sde": vp, "x_T": x_T, "end": 0.5, "steps": 1, "dtype": torch.float64, "seed": 2}
    ddim = vp.alpha(s) * sample(mixture, method=OnClock(AdamsBashforth(1)), **settings)
    data = mixture.denoise(t, x_T, vp)
    expected = vp.alpha(s) * data + vp.sigma(s) * (x_T - vp.alpha(t) * data) / vp.sigma(t)
    torch.testing.assert_close(ddim, expected, rtol=1e-9, atol=1e-9)
    many = x_T[:1].expand(100_000, 2)
    settings["x_T"] = many
    x = vp.alpha(s) * sample(mixture, method=OnClock(AdamsBashforth(1), eta=1.0), **settings)
    factor, spread = vp.transition(s, t)
    variance = (vp.sigma(s) * spread / vp.sigma(t)) ** 2
    mean = (vp.alpha(s) * spread**2 * data[0] + factor * vp.sigma(s) ** 2 * x_T[0]) / vp.sigma(
        t
    ) ** 2
    assert ((x.mean(0) - mean).abs() < Z * math.sqrt(variance / 1e5)).all()
    assert ((x.var(0) / variance - 1).abs() < Z * math.sqrt(2 / 1e5)).all()


FINE = RK4()


@functools.cache
def flowed(solver, steps):
    """A nonlinear mixture in float64, on the clock."""
    mixture = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]]), [0.3, 0.2])
    x_T = VPSDE().prior((200, 2), seed=1, dtype=torch.float64)
    settings = {"sde": "vp", "x_T": x_T, "end": 0.05, "steps": steps, "dtype": torch.float64}
    return sample(mixture, method=OnClock(solver), **settings)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_deterministic_order_on_the_clock(k):
    """Against RK4 on the clock: the slope is the promised order within 0.15."""
    exact = flowed(FINE, 200)
    errors = [
        float((flowed(AdamsBashforth(k), n) - exact).square().mean().sqrt()) for n in (100, 400)
    ]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(k, abs=0.15)


def test_ode_counts_and_never_leaves_the_interval():
    times = []
    mixture = MIXTURES["2"]
    vp = VPSDE()

    def score(x, t):
        times.extend(t.tolist())
        return mixture.score(t, x, vp)

    solution = sample(score, 3, sde=vp, shape=(2,), method="ode", seed=1, return_solution=True)
    assert len(times) >= int(solution.evaluations.sum())
    assert max(times) <= 1.0
    assert min(times) >= float(solution.ts[-1]) * (1 - 1e-6)  # float32
    tight = sample(mixture, 3, sde=vp, method=AdaptiveFlow(1e-9, 1e-9), seed=1, dtype=torch.float64)
    loose = sample(mixture, 3, sde=vp, method=AdaptiveFlow(1e-6, 1e-6), seed=1, dtype=torch.float64)
    torch.testing.assert_close(loose, tight, rtol=0, atol=1e-4)


def test_dropout_is_off_and_the_mode_is_kept():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x, t):
            return self.drop(x)

    model = ScoreModel(Net(), "vp", shape=(2,))
    assert torch.equal(sample(model, 3, seed=1, steps=4), sample(model, 3, seed=1, steps=4))
    assert model.training
    assert model.net.drop.training


def test_no_gradients_and_progress(capsys):
    weight = nn.Parameter(torch.ones(()))
    net = nn.Module()
    net.weight = weight
    model = ScoreModel(lambda x, t: weight * x, "vp", shape=(2,))
    assert not sample(model, 3, seed=1, steps=4, progress=True).requires_grad
    assert "4/4" in capsys.readouterr().err


def test_empty_batch():
    assert sample(MIXTURES["2"], 0, sde="vp").shape == (0, 2)
    for method in METHODS:
        assert sample(MIXTURES["2"], 0, sde="vp", method=method, denoise=True).shape == (0, 2)


@pytest.mark.filterwarnings("ignore:x_T has the")
@pytest.mark.parametrize(
    "method", ["default", OnClock(eta=1.0), "euler_maruyama", "pc", "ode"], ids=str
)
def test_failures_name_time_and_rows_of_the_whole_call(method):
    """The network spoils sample 5 from t < 0.5 on; solved in batches of four."""
    x_T = torch.tensor([1.0, -1.0]).repeat(6, 1)
    x_T[5] = 5e4

    def net(x, t):
        return torch.where(
            (t[:, None] < 0.5) & (x.abs().amax(1, keepdim=True) > 50), math.nan, 0 * x
        )

    model = ScoreModel(net, "vp", "data", shape=(2,))
    if method == "ode":
        with pytest.raises(
            UnfinishedError, match=r"1 of 6 samples did not reach the end \(row 5: .* at t = 0\.5"
        ) as unfinished:
            sample(model, x_T=x_T, method=method, batch_size=4, seed=7)
        assert unfinished.value.solution.x.isfinite().all(dim=1).tolist() == [True] * 5 + [False]
        assert (unfinished.value.reached[:5] < 2e-5).all()
        start, stop = unfinished.value.solution.ts.tolist()
        assert start == 1  # times of the diffusion
        assert 0 < stop < 2e-5
        assert unfinished.value.solution.seed == 7
        with pytest.raises(UnfinishedError) as denoised:
            sample(model, x_T=x_T, method=method, batch_size=4, denoise=True)
        more = denoised.value.solution.evaluations - unfinished.value.solution.evaluations
        assert more[:5].tolist() == [1] * 5
        assert (denoised.value.solution.x[:5] == 0).all()  # the data that the network predicts
        return
    with pytest.raises(NotFiniteError, match="1 of 6 samples") as caught:
        sample(model, x_T=x_T, method=method, steps=40, seed=0, batch_size=4)
    assert caught.value.samples == [5]
    assert caught.value.step > 0
    assert 0.39 < caught.value.t < 0.58


@pytest.mark.parametrize("eta", [-1.0, math.nan, math.inf])
def test_eta_is_a_number_from_zero_on(eta):
    for build in (
        OnClock,
        lambda eta: sample(MIXTURES["2"], sde="vp", method=InTime(EulerMaruyama(), eta=eta)),
    ):
        with pytest.raises(ValueError, match="eta must be"):
            build(eta=eta)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", [OnClock(eta=1.0), "euler_maruyama"], ids=str)
def test_half_precision_has_the_law(dtype, method):
    """Solved in float32 and cast: the mode weights of a state kept in half precision would be
    wrong, or overflow.
    """
    settings = {"sde": "ve", "method": method, "steps": 100, "seed": 2}
    wide = sample(MIXTURES["2"], 100, **settings)
    half = sample(MIXTURES["2"], 100, dtype=dtype, **settings)
    assert torch.equal(half, wide.to(dtype))


@pytest.mark.parametrize("settings", [{}, {"denoise": True}], ids=str)
def test_results_beyond_half_precision_are_refused(settings):
    law = GaussianMixture([1.0], [[1e5]], [100.0])
    given = {"sde": "edm", "steps": 2, "seed": 0, **settings}
    with pytest.raises(
        ValueError, match=r"up to 1e\+05, and torch.float16 holds .* to 65504: take"
    ):
        sample(law, 2, dtype=torch.float16, **given)
    assert sample(law, 2, dtype=torch.bfloat16, **given).isfinite().all()


def test_ode_reports_both_ends():
    seen = []
    x = sample(MIXTURES["2"], 3, sde="vp", method="ode", seed=1, callback=seen.append)
    assert [p.step for p in seen] == [0, 1]
    assert seen[0].t == pytest.approx(1.0)
    torch.testing.assert_close(seen[1].x, x * VPSDE().alpha(seen[1].t))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sde": "vpsde"}, ValueError, "unknown sde"),
        ({}, ValueError, "no diffusion of its own"),
        (
            {"sde": "vp", "method": "ddim++"},
            ValueError,
            "unknown method 'ddim\\+\\+'; .*did you mean 'ddim'",
        ),
        ({"sde": "vp", "end": -1.0}, ValueError, "positive number"),
        ({"sde": "vp", "end": 1e6}, ValueError, "nothing to solve"),
        ({"sde": "vp", "end": "1e-3"}, TypeError, "end is a number, .* such as 1e-3; not '1e-3'"),
        ({"sde": "vp", "steps": 0}, ValueError, "a positive integer"),
        ({"sde": "vp", "steps": 2.5}, TypeError, "a positive integer; not 2.5"),
        ({"sde": "vp", "n": -1}, ValueError, "n must be 0 or more, not -1"),
        ({"sde": "vp", "shape": (3,)}, ValueError, "makes samples of shape"),
        ({"sde": "vp", "x_T": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "floating"),
        ({"sde": "vp", "x_T": torch.zeros(2, 3)}, ValueError, "x_T has shape"),
        ({"sde": "vp", "x_T": torch.zeros(2, 2), "n": 7}, ValueError, "x_T has shape"),
        ({"sde": "vp", "dtype": torch.int64}, TypeError, "must be floating"),
        ({"sde": "vp", "save": "all"}, ValueError, "return_solution=True"),
        ({"sde": "vp", "method": "ode", "steps": 0}, ValueError, "a positive integer"),
        ({"sde": "vp", "method": "ode", "steps": 5}, ValueError, "chooses its own steps"),
        ({"sde": "vp", "first": -1}, ValueError, "first must be 0 or more, not -1"),
        ({"sde": "vp", "batch_size": 0}, ValueError, "batch_size must be 1 or more, not 0"),
        ({"sde": "vp", "save": "none"}, ValueError, "save"),
    ],
)
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        sample(MIXTURES["2"], **settings)


def test_shape_must_be_known():
    with pytest.raises(ValueError, match="pass shape="):
        sample(ScoreModel(RowWise(), "vp"))


@pytest.mark.parametrize("grid", [None, "log_snr"])
def test_a_shape_told_to_sample_is_as_good_as_the_models_own(grid):
    """The clock of the default method has the number of coordinates in it."""
    known = ScoreModel(RowWise(), "vp", shape=(9,), data_std=1.0)
    unknown = ScoreModel(RowWise(), "vp", data_std=1.0)
    settings = {"n": 3, "grid": grid, "steps": 12, "seed": 1}
    x = sample(known, **settings)
    assert torch.equal(sample(unknown, shape=(9,), **settings), x)
    x_T = VPSDE().prior((3, 9), seed=1)
    assert torch.equal(sample(unknown, x_T=x_T, **settings), sample(known, x_T=x_T, **settings))
    assert unknown.shape is None


def test_clock_is_the_chain_rule_of_the_reverse_equation():
    """For any integrand: dy/dtau of the clocked drift equals d(x / scale)/dtau along the reverse
    drift in t.
    """
    mixture = MIXTURES["2"]
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sde in KERNELS.values():
        for eta, integrand in (
            (0.0, "data"),
            (0.7, "data"),
            (1.0, "data"),
            (0.0, "noise"),
            (0.0, "velocity"),
        ):
            t = 0.3
            l = sde.log_snr(0.3)
            problem = on_clock(mixture, sde, eta, integrand)
            scale = problem.scale(l)
            time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
            tau = problem.time(sde.log_snr(time))
            (dtau,) = torch.autograd.grad(tau, time)
            inverse = 1 / problem.scale(sde.log_snr(time))
            (slope,) = torch.autograd.grad(inverse, time)
            drift = sde.drift(t, x) - 0.5 * (1 + eta**2) * sde.g(t) ** 2 * mixture.score(t, x, sde)
            torch.testing.assert_close(
                problem.drift(tau.item(), x / scale), (slope * x + drift / scale) / dtau
            )


def test_a_denoising_that_is_not_finite_is_told():
    def late(x, t):
        return torch.where((t < 1e-4).reshape(-1, 1) & (x[:, :1] > 0), math.nan, -x)

    model = ScoreModel(late, "vp", "noise", shape=(2,), data_std=1.0)
    with pytest.raises(
        NotFiniteError,
        match=r"after the denoising that follows step 5, at t = .* "
        r"of 6 samples",
    ) as caught:
        sample(model, 6, seed=0, steps=5, end=1e-3, denoise=True, batch_size=4)
    assert caught.value.samples


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"n": 2.0}, "n must be a whole number, not 2.0"),
        ({"n": True}, "n must be a whole number, not True"),
        ({"first": "1"}, "first must be a whole number, not '1'"),
        ({"first": None}, "first must be a whole number, not None"),
        ({"batch_size": 1.5}, "batch_size must be a whole number"),
        ({"end": torch.ones(2)}, r"end is a number, .*; not tensor\(\[1., 1.\]\)"),
        (
            {"method": OnClock(grid="karras")},
            r"object such as Karras\(\), not 'karras'; names go "
            r"to sample",
        ),
    ],
)
def test_wrong_types_are_told(settings, match):
    with pytest.raises(TypeError, match=match):
        sample(MIXTURES["2"], sde="vp", **settings)


@pytest.mark.parametrize("method", ["default", "sde", "ode", "adaptive_sde"])
def test_labels_are_those_of_their_samples_in_every_batch(method):
    """A network that knows its data, D = y: what a last denoising leaves is y, and no batch has the
    labels of another.
    """
    y = torch.arange(7.0)
    known = {"shape": (2,), "data_std": 1.0}
    known = ScoreModel(lambda x, t, y: y[:, None].expand_as(x), "vp", "data", **known).given(y=y)
    settings = {"method": method, "steps": steps_of(method, 10), "denoise": True, "seed": 0}
    settings["method"] = COARSE if method == "adaptive_sde" else method
    for size in (3, None) if method == "adaptive_sde" else (3, 1, None):
        found = sample(known, 7, batch_size=size, **settings)
        assert torch.equal(found, y[:, None].expand(7, 2))


def test_the_type_of_the_options_is_that_of_the_function():
    """`SampleOptions` has every option of `sample` with its type, but for what is returned."""
    parameters = dict(list(inspect.signature(sample).parameters.items())[2:])
    parameters.pop("return_solution")
    found = {name: parameter.annotation for name, parameter in parameters.items()}
    assert found == SampleOptions.__annotations__


class Bent(nn.Module):
    """A network with a parameter, which notes the calls on the stack that are not torch's."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls = []

    def forward(self, x, t):
        frames = [f.name for f in traceback.extract_stack() if "torch" not in f.filename]
        self.calls.append(len(frames) - 2 - max(i for i, f in enumerate(frames) if f == "sample"))
        return torch.tanh(self.scale * x)


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [*sorted(METHODS), RK4()])
@pytest.mark.parametrize("mean", [0.0, [1.0, -1.0]])
def test_few_calls_lie_between_sample_and_the_network(mean, method, dtype):
    """Named in docs/architecture.md: run, solve, the loop, the solver's step, drift, the affine
    function, the checked call.
    """
    net = Bent()
    chosen = 30 if method in ("reverse_diffusion", "ancestral") else 8
    steps = None if method in ("ode", "adaptive_sde") else chosen
    for made in (net, net.forward):  # a network, and a function
        model = ScoreModel(made, "vp", shape=(2,), data_mean=torch.tensor(mean), data_std=1.0)
        sample(model, 2, method=method, steps=steps, seed=0, dtype=dtype)
    assert len(net.calls) >= 16
    assert max(net.calls) in (6, 7)


def test_the_flow_of_a_subclass_is_solved_its_way():
    @dataclass(frozen=True, eq=False)
    class Doubled(AdaptiveFlow):
        def solve_flow(self, model, u, span, *, after=0):
            solution = super().solve_flow(model, u, span, after=after)
            return replace(solution, x=2 * solution.x)

    law = GaussianMixture([1.0], [[0.0]], [1.0])
    drawn = [sample(law, 3, sde="vp", method=kind(), seed=0) for kind in (AdaptiveFlow, Doubled)]
    torch.testing.assert_close(drawn[1], 2 * drawn[0])


@pytest.mark.parametrize("method", ["ode", "adaptive_sde"])
def test_evaluations_of_adaptive_steps_are_the_calls_of_the_network(method):
    net = Bent()
    model = ScoreModel(net, "vp", shape=(2,), data_std=1.0)
    solution = sample(model, 1, method=method, seed=0, return_solution=True)
    assert solution.evaluations.tolist() == [len(net.calls)]
