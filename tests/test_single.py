"""Single-step samplers: step for step those that are published, and the law of EDM's with churn.

Orders without noise are in test_samplers.py and test_solver_contract.py, laws on narrow modes in
test_sample.py.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from peers import DTYPES, MIXTURE, Case, agree, dpm_2, dpm_3, dpmpp_2s, dpmpp_3s, exp_heun, heun
from physical import on_clock, span_of

from sdekit import ClockedHeun, DPMSolverSingle, Heun, Increment, solve, uniform
from sdekit._noise.white import AbstractNoise
from sdekit_diffusion import (
    EDM,
    METHODS,
    VESDE,
    VPSDE,
    GaussianMixture,
    ScoreModel,
    sample,
    stepper,
)
from sdekit_diffusion._sampling.edm_sampler import Churn

PUBLISHED = {
    "heun": (VESDE(), Heun(), "noise", heun),
    "dpm_2": (VESDE(), DPMSolverSingle(2), "noise", dpm_2),
    "dpmpp_2s": (VESDE(), DPMSolverSingle(2), "data", dpmpp_2s),
    "dpm_3": (VPSDE(), DPMSolverSingle(3), "noise", dpm_3),
    "dpmpp_3s": (VPSDE(), DPMSolverSingle(3), "data", dpmpp_3s),
}


@DTYPES
@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name, dtype):
    sde, solver, integrand, published = PUBLISHED[name]
    case = Case(sde, dtype=dtype)
    agree(case.ours(solver, integrand), published(case))


@DTYPES
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_exponential_heun(eta, dtype):
    case = Case(VESDE(), eta=eta, dtype=dtype)
    agree(case.ours(ClockedHeun()), exp_heun(case))


CHURNS = [
    {},
    {"s_churn": 5.0},
    {"s_churn": 40.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.003},
    {"s_churn": 5.0, "rule": "euler"},
    {"s_churn": 5.0, "rule": "dpm_2"},
]


def named(steps, dtype, **settings):
    """A call of sample down to sigma = 0.05, and the case that it is compared with."""
    ve = VESDE()
    case = Case(ve, steps, 0.0, np.linspace(*span_of(MIXTURE, ve, 0.05), steps + 1), dtype)
    return sample(
        MIXTURE, sde=ve, steps=steps, end=0.05, x_T=case.x, seed=3, dtype=dtype, **settings
    ), case


@DTYPES
@pytest.mark.parametrize("settings", CHURNS, ids=str)
@pytest.mark.parametrize("steps", [10, 20])
def test_edm(settings, steps, dtype):
    """Also where gamma is at its bound, sqrt(2) - 1."""
    case = Case(VESDE(), steps, dtype=dtype)
    agree(case.ours(Churn(**settings), "noise"), heun(case, **settings))


@DTYPES
@pytest.mark.parametrize("settings", CHURNS, ids=str)
def test_edm_by_the_one_call(settings, dtype):
    """The noise is never raised above that of the start, which is the diffusion's largest."""
    ours, case = named(30, dtype, method=EDM(**settings))
    agree(ours, heun(case, **settings, largest=case.sigmas[0]))


@DTYPES
@pytest.mark.parametrize("name", ["heun", "edm", "dpm_2", "dpmpp_2s", "exp_heun", "dpmpp_3s"])
def test_names(name, dtype):
    ours, case = named(30, dtype, method=name)
    references = {
        "edm": lambda case: heun(case, 40, 0.05, 50, largest=case.sigmas[0]),
        "exp_heun": exp_heun,
        "dpmpp_3s": dpmpp_3s,
    }
    agree(ours, references[name](case) if name in references else PUBLISHED[name][3](case))


def test_these_tests_tell_methods_apart():
    case = Case(VESDE())
    ends = [case.ours(solver, integrand) for _, solver, integrand, _ in PUBLISHED.values()] + [
        case.ours(ClockedHeun())
    ]
    ends += [heun(case, **settings) for settings in CHURNS[1:]]
    for i, a in enumerate(ends):
        assert all((a - b).abs().max() > 1e-6 for b in ends[:i])


class Impulses(AbstractNoise):
    """Row j gets z = 1 in step j - 1 and nothing else: what one normal becomes by the end."""

    seed = 0

    def rows(self, index):
        raise NotImplementedError

    def answer(self, query):
        x = query.x
        for i in range(query.start, len(query.ts) - 1):
            yield Increment(z=(torch.arange(len(x)) == i + 1).to(x)[None, :, None])


def excess(steps, s_noise=1.0, rule="heun"):
    """The variance in the end minus what it should be, for Gaussian data: steps are linear, so that
    it is exact.
    """
    gaussian = GaussianMixture([1.0], torch.zeros(1, 1, dtype=torch.float64), [0.09])
    ve = VESDE()
    s = (5.0, 0.1)
    problem = on_clock(gaussian, ve, integrand="noise")
    solver = Churn(s_churn=10.0, s_noise=s_noise, rule=rule)
    x = torch.zeros(steps + 1, 1, dtype=torch.float64)
    x[0] = math.sqrt(0.09 + s[0] ** 2)
    clock = problem.time(uniform(-math.log(s[0]), -math.log(s[1]), steps))
    return abs(
        float(solve(problem, x, clock, solver=solver, noise=Impulses()).x.square().sum())
        - 0.09
        - s[1] ** 2
    )


@pytest.mark.parametrize("rule", ["heun", "euler", "dpm_2"])
def test_churn_converges_to_the_law_with_the_order_of_the_rule(rule):
    promised = Churn(rule=rule).order["none"].weak
    assert promised == (1 if rule == "euler" else 2)
    rate = math.log2(excess(64, rule=rule) / excess(128, rule=rule))
    assert rate == pytest.approx(promised, abs=0.15)


def test_churn_with_other_noise_does_not_converge():
    assert excess(128, s_noise=1.02) > 10 * excess(128)


def test_no_churn_is_heun_and_draws_nothing():
    a = sample(MIXTURE, 4, sde="vp", method=EDM(), seed=0, return_solution=True)
    b = sample(MIXTURE, 4, sde="vp", method="heun", seed=0, return_solution=True)
    assert torch.equal(a.x, b.x)
    assert a.evaluations.tolist() == [100] * 4
    assert a.seed == b.seed
    assert Churn().normals == 0


def test_euler_takes_one_evaluation_a_step():
    settings = {"sde": "vp", "seed": 0, "steps": 20}
    method = EDM(s_churn=5.0, rule="euler")
    counted = sample(MIXTURE, 2, method=method, return_solution=True, **settings)
    assert counted.evaluations.tolist() == [20, 20]
    agree(
        sample(MIXTURE, 2, method=EDM(rule="euler"), **settings, dtype=torch.float64),
        sample(MIXTURE, 2, method="ddim", **settings, dtype=torch.float64),
    )


def test_noise_outside_the_range_is_not_added():
    a = sample(MIXTURE, 4, sde="vp", method=EDM(s_churn=40, s_tmin=1e3, s_tmax=1e4), seed=0)
    assert torch.equal(a, sample(MIXTURE, 4, sde="vp", method="heun", seed=0))


@pytest.mark.parametrize(
    "settings",
    [
        {"s_churn": -1.0},
        {"s_churn": math.inf},
        {"s_tmin": 2.0, "s_tmax": 1.0},
        {"s_noise": math.nan},
    ],
    ids=str,
)
def test_edm_refuses(settings):
    with pytest.raises(ValueError, match="EDM needs s_churn >= 0"):
        EDM(**settings)


@pytest.mark.parametrize("sigmas", [[20.0, 5.0, 1.0], [20.0, 5.0, 1.0, 0.0]], ids=str)
def test_churn_counts_the_step_to_0_and_begins_below_the_noisy_end(sigmas):
    """As in k-diffusion, for data that are 0: the variance at the last positive level."""
    zero = ScoreModel(lambda x, t: 0 * x, "ve", "data", shape=(1,), data_std=1.0)
    n = 20_000
    settings = {"grid": sigmas, "method": EDM(0.3, rule="euler"), "seed": 0}
    with pytest.warns(UserWarning, match="x_T has the standard deviation 0"):
        at = stepper(zero, x_T=torch.zeros(n, 1), **settings)
    while at.remaining:
        at = at.next()
    factor = 1 + 0.3 / (len(sigmas) - 1)
    variance = 0.0
    for s, t in pairwise(sigmas[:3]):
        hat = factor * s
        variance = (variance + hat**2 - s**2) * (t / hat) ** 2
    assert float(at.x.var()) == pytest.approx(variance, rel=5.5 * math.sqrt(2 / n))


def test_edm_refuses_other_rules():
    with pytest.raises(ValueError, match=r"one of 'heun', 'euler', 'dpm_2', not 'eular'.*euler"):
        EDM(rule="eular")


@pytest.mark.parametrize("k", [0, 1, 4])
def test_a_single_step_has_two_or_three_evaluations(k):
    with pytest.raises(ValueError, match="DPMSolverSingle is offered for k in 2, 3"):
        DPMSolverSingle(k)


def test_evaluations():
    for name, count in {
        "heun": 100,
        "edm": 100,
        "exp_heun": 100,
        "dpm_2": 100,
        "dpmpp_2s": 100,
        "dpmpp_3s": 99,
    }.items():
        assert (
            sample(
                MIXTURE, 2, sde="vp", method=METHODS[name], seed=0, return_solution=True
            ).evaluations.tolist()
            == [count] * 2
        )
