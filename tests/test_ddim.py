"""DDIM's own eta and the sampler of two stages: step for step those that are published, their
orders, their law.

Statistical bounds are 5.5 standard errors with fixed seeds: false alarm below 1e-6 a test.
"""

import math

import numpy as np
import pytest
import torch
from convergence import slope, weak_slope_on_clock
from peers import DTYPES, MIXTURE, Case, agree, dpmpp_2s, dpmpp_sde, euler_ancestral
from physical import on_clock, span_of

from sdekit import AdamsBashforth
from sdekit_diffusion import (
    DDIM,
    METHODS,
    VESDE,
    VPSDE,
    GaussianMixture,
    OnClock,
    UniformInLogSNR,
    sample,
)
from sdekit_diffusion._sampling.ddim import DDIMStep

ETAS = [0.0, 0.5, 1.0, 1.3]
WIDE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.3, 0.2]
)
LINE = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0], [0.5]], dtype=torch.float64), [0.3, 0.2])


def ddim(case):
    """Song, Meng and Ermon 2021, equations 12 and 16, a = alpha^2."""
    x = case.x
    for i in range(case.steps):
        a, b = (case.kernel(l)[0] ** 2 for l in case.l[i : i + 2])
        eps = case.noise(i, x)
        spread = case.eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = (
            math.sqrt(b) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
            + math.sqrt(1 - b - spread**2) * eps
        )
        if case.eta:
            x = x + spread * case.z[i]
    return x


@DTYPES
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_as_published(eta, dtype):
    case = Case(VPSDE(), eta=eta, dtype=dtype)
    agree(case.ours(DDIMStep(eta)), ddim(case))


@DTYPES
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("s_noise", [1.0, 1.003])
def test_euler_with_ancestral_noise(eta, s_noise, dtype):
    """k-diffusion's, whose eta is DDIM's."""
    case = Case(VESDE(), eta=eta, dtype=dtype)
    agree(case.ours(DDIMStep(eta, s_noise=s_noise)), euler_ancestral(case, s_noise))


@DTYPES
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("s_noise", [1.0, 1.003])
def test_two_stages(eta, s_noise, dtype):
    case = Case(VESDE(), eta=eta, dtype=dtype)
    agree(case.ours(DDIMStep(eta, 2, s_noise)), dpmpp_sde(case, s_noise))
    if not eta:
        agree(case.ours(DDIMStep(eta, 2, s_noise)), dpmpp_2s(case))


@DTYPES
@pytest.mark.parametrize(
    ("method", "published"),
    [("dpmpp_sde", dpmpp_sde), (DDIM(0.5), euler_ancestral)],
    ids=["dpmpp_sde", "euler_ancestral"],
)
def test_by_the_one_call(method, published, dtype):
    ve = VESDE()
    steps = 30
    eta = 0.5 if method != "dpmpp_sde" else 1.0
    case = Case(ve, steps, eta, np.linspace(*span_of(MIXTURE, ve, 0.05), steps + 1), dtype)
    ours = sample(
        MIXTURE, sde=ve, method=method, steps=steps, end=0.05, x_T=case.x, seed=3, dtype=dtype
    )
    agree(ours, published(case))


def test_the_ends_of_eta_are_ddim_and_ancestral_sampling():
    for eta, name in ((0.0, "ddim"), (1.0, "ddpm")):
        settings = {"sde": "subvp", "steps": 20, "seed": 1, "dtype": torch.float64}
        agree(
            sample(MIXTURE, 5, method=DDIM(eta), **settings),
            sample(MIXTURE, 5, method=name, **settings),
        )
    half = sample(MIXTURE, 5, method=DDIM(0.5), **settings)
    frozen = sample(
        MIXTURE, 5, method=OnClock(AdamsBashforth(1), eta=0.5, grid=UniformInLogSNR()), **settings
    )
    assert (half - frozen).abs().max() > 1e-3


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("eta", ETAS)
def test_weak_order(eta, stages):
    """Two stages are of order two where a step of one is exact for constant D: eta = 0 and 1, and
    no other.
    """
    solver = DDIMStep(eta, stages)
    promised = solver.order["additive" if eta else "none"].weak
    assert promised == (stages if eta in (0, 1) else 1)
    assert weak_slope_on_clock(solver, on_clock(LINE, VPSDE(), eta)) == pytest.approx(
        promised + 1, abs=0.1
    )


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_strong_order_on_one_path(eta, stages):
    """More steps refine the same sample, and the distance falls with order one."""
    steps = [50, 100, 200]
    settings = {"sde": "vp", "seed": 1, "noise": "path", "end": 0.05, "method": DDIM(eta, stages)}
    ends = {n: sample(WIDE, 200, steps=n, **settings) for n in (*steps, 400)}
    errors = [float((ends[n] - ends[2 * n]).square().mean().sqrt()) for n in steps]
    assert slope(steps, errors) == pytest.approx(1, abs=0.15)


def test_evaluations():
    for method, count in ((DDIM(), 100), (DDIM(1.0), 100), ("dpmpp_sde", 100)):
        counted = sample(
            MIXTURE, 2, sde="vp", method=method, seed=0, return_solution=True
        ).evaluations
        assert counted.tolist() == [count] * 2
    assert METHODS["dpmpp_sde"].steps == 50


def test_the_middle_of_a_step_is_on_the_clock_up_to_its_end():
    """The clock ends at e^497, and the square of that is not a float."""
    settings = {"sde": "vp", "seed": 0, "dtype": torch.float64}
    assert sample(MIXTURE, 2, method=DDIM(6.0, 2, steps=40), **settings).isfinite().all()


@pytest.mark.parametrize(
    "settings", [{"eta": -1.0}, {"eta": math.inf}, {"stages": 3}, {"s_noise": math.nan}], ids=str
)
def test_what_is_refused(settings):
    with pytest.raises(ValueError, match="DDIM needs eta >= 0, 1 or 2 stages"):
        DDIM(**settings)
    with pytest.raises(ValueError, match="without noise reads no Brownian path"):
        sample(MIXTURE, 2, sde="vp", method=DDIM(), noise="path")
