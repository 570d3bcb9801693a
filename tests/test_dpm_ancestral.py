"""k-diffusion's ancestral samplers of two stages: step for step, their order in law, what they
refuse.
"""

import math

import numpy as np
import pytest
import torch
from peers import DTYPES, MIXTURE, Case, agree, dpm_2_ancestral
from physical import on_clock, span_of
from test_single import Impulses

from sdekit import solve, uniform
from sdekit_diffusion import VESDE, DPMAncestral, GaussianMixture, sample
from sdekit_diffusion._sampling.dpm_ancestral import DPMAncestralStep

PREDICTIONS = pytest.mark.parametrize("integrand", ["noise", "data"])


@DTYPES
@PREDICTIONS
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("s_noise", [1.0, 1.003])
def test_as_published(integrand, eta, s_noise, dtype):
    """Also where the noise is all that is left of sigma, which takes one evaluation."""
    case = Case(VESDE(), eta=eta, dtype=dtype)
    wanted = dpm_2_ancestral(case, s_noise, data=integrand == "data")
    agree(
        Case(VESDE(), dtype=dtype).ours(DPMAncestralStep(integrand, eta, s_noise), "noise"), wanted
    )


@DTYPES
@pytest.mark.parametrize("name", ["dpm_2_ancestral", "dpmpp_2s_ancestral"])
def test_names(name, dtype):
    ve = VESDE()
    steps = 30
    case = Case(ve, steps, 1.0, np.linspace(*span_of(MIXTURE, ve, 0.05), steps + 1), dtype)
    settings = {"sde": ve, "method": name, "steps": steps, "end": 0.05, "seed": 3, "dtype": dtype}
    x = sample(MIXTURE, x_T=case.x, **settings)
    agree(x, dpm_2_ancestral(case, data=name == "dpmpp_2s_ancestral"))


def excess(steps, integrand, s_noise=1.0):
    """The variance in the end minus what it should be, for Gaussian data: steps are linear, so that
    it is exact.
    """
    gaussian = GaussianMixture([1.0], torch.zeros(1, 1, dtype=torch.float64), [0.09])
    s = (5.0, 0.1)
    problem = on_clock(gaussian, VESDE(), integrand="noise")
    solver = DPMAncestralStep(integrand, 1.0, s_noise)
    x = torch.zeros(steps + 1, 1, dtype=torch.float64)
    x[0] = math.sqrt(0.09 + s[0] ** 2)
    clock = problem.time(uniform(-math.log(s[0]), -math.log(s[1]), steps))
    end = solve(problem, x, clock, solver=solver, noise=Impulses()).x
    return abs(float(end.square().sum()) - 0.09 - s[1] ** 2)


@PREDICTIONS
def test_the_law_converges_with_order_two_and_with_other_noise_not_at_all(integrand):
    promised = DPMAncestralStep(integrand).order["none"].weak
    assert math.log2(excess(64, integrand) / excess(128, integrand)) == pytest.approx(
        promised, abs=0.15
    )
    assert excess(128, integrand, s_noise=1.02) > 5 * excess(128, integrand)


@PREDICTIONS
def test_without_noise_it_draws_nothing_and_is_the_single_step_method(integrand):
    assert DPMAncestralStep(integrand, 0.0).normals == 0
    settings = {"sde": "vp", "seed": 0, "steps": 20, "dtype": torch.float64}
    name = "dpm_2" if integrand == "noise" else "dpmpp_2s"
    a = sample(MIXTURE, 3, method=DPMAncestral(integrand, 0.0), return_solution=True, **settings)
    agree(a.x, sample(MIXTURE, 3, method=name, **settings))
    assert a.evaluations.tolist() == [40] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"integrand": "velocity"}, "integrand must be 'noise' or 'data', not 'velocity'"),
        ({"eta": -1.0}, "DPMAncestral needs eta >= 0 and s_noise >= 0, not -1.0 and 1.0"),
        ({"s_noise": math.nan}, "DPMAncestral needs eta >= 0 and s_noise >= 0, not 1.0 and nan"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DPMAncestral(**settings)
