"""Published samplers, step for step: the same model, grid and noise give the same samples in
float64.

The references are written down here from the papers' equations, in the form in which k-diffusion's
users know them.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peers import DTYPES, MIXTURE, Case, agree
from physical import run, span_of
from scipy import integrate

from sdekit import DEIS, AdamsBashforth, AdamsMoulton, DPMSolver, UniPC, WhiteNoise
from sdekit_diffusion import METHODS, VESDE, VPSDE, Given, OnClock, sample

# k-diffusion: variance exploding, x = x_0 + sigma eps, t = -log sigma


def euler(case):
    x = case.x
    for i, (s, t) in enumerate(zip(case.sigmas, case.sigmas[1:], strict=False)):
        x = x + (x - case.data(i, x)) / s * (t - s)
    return x


def lagrange(u, node, others):
    return math.prod((u - other) / (node - other) for other in others)


def lms(case, k):
    """Linear multistep: the polynomial in sigma through the last slopes, integrated over the
    step.
    """
    x = case.x
    slopes = []
    s = case.sigmas
    for i in range(case.steps):
        slopes = [(x - case.data(i, x)) / s[i], *slopes][:k]
        for j, slope in enumerate(slopes):
            others = [s[i - m] for m in range(len(slopes)) if m != j]
            x = (
                x
                + slope
                * integrate.quad(
                    lagrange, s[i], s[i + 1], (s[i - j], others), epsabs=0, epsrel=1e-13
                )[0]
            )
    return x


def dpmpp(case, order, form):
    """DPM-Solver++(2M), (2M) SDE and (3M) SDE with noise level eta, that of k-diffusion, which is
    our eta squared.
    """
    x = case.x
    past = []
    eta = case.eta**2
    l = case.l
    for i in range(case.steps):
        d = case.data(i, x)
        h = l[i + 1] - l[i]
        z = (1 + eta) * h
        x = math.exp(-z) * x - math.expm1(-z) * d
        phi2 = math.expm1(-z) / z + 1
        if len(past) == 2 and order == 3:
            r0 = (l[i] - l[i - 1]) / h
            r1 = (l[i - 1] - l[i - 2]) / h
            first = (d - past[0]) / r0
            second = (past[0] - past[1]) / r1
            curve = (first - second) / (r0 + r1)
            x = x + phi2 * (first + curve * r0) - (phi2 / z - 0.5) * curve
        elif past:
            slope = (d - past[0]) / ((l[i] - l[i - 1]) / h)
            x = x + (phi2 if form == "heun" else -0.5 * math.expm1(-z)) * slope
        if eta:
            x = x + case.sigmas[i + 1] * math.sqrt(-math.expm1(-2 * eta * h)) * case.z[i]
        past = [d, *past][:2]
    return x


@DTYPES
@pytest.mark.parametrize("solver", [AdamsBashforth(1), DPMSolver(1), DEIS(1)], ids=str)
@pytest.mark.parametrize("integrand", ["data", "noise"])
def test_euler_on_the_noise_is_ddim(solver, integrand, dtype):
    case = Case(VESDE(), dtype=dtype)
    agree(case.ours(solver, integrand), euler(case))


@DTYPES
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_lms(k, dtype):
    case = Case(VESDE(), dtype=dtype)
    agree(case.ours(DEIS(k, "rho"), "noise"), lms(case, k))


@DTYPES
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("order", "form"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun")]
)
def test_dpm_solver(order, form, eta, dtype):
    case = Case(VESDE(), eta=eta, dtype=dtype)
    assert len(case.z) == (case.steps if eta else 0)
    past = order if order > 1 else 0
    agree(case.ours(DPMSolver(order, form)), dpmpp(case, past, form) if past else ancestral(case))


def ancestral(case):
    """SDE-DPM-Solver++(1), at eta = 1 the Gaussian q(x_s | x_t, x_0 = D)."""
    x = case.x
    s = case.sigmas
    for i in range(case.steps):
        h = case.l[i + 1] - case.l[i]
        z = (1 + case.eta**2) * h
        x = math.exp(-z) * x - math.expm1(-z) * case.data(i, x)
        if case.eta:
            x = x + s[i + 1] * math.sqrt(-math.expm1(-2 * case.eta**2 * h)) * case.z[i]
    return x


# The papers of UniPC and DEIS


def unipc(case, order, form, lower_final):
    """Zhao et al. 2023, algorithm 5 to 8: R rho = phi / B, with 1/2 where one number is left to
    solve for.
    """
    sde = case.sde
    l = case.l
    alpha, sigma = ([float(f(sde.time(v))) for v in l] for f in (sde.alpha, sde.sigma))
    x = case.x
    past = [(0, case.data(0, case.x))]
    for i in range(case.steps):
        k = min(order, len(past), case.steps - i if lower_final else order)
        h = l[i + 1] - l[i]
        b = -h if form == "bh1" else math.expm1(-h)
        ratios = [(l[j] - l[i]) / h for j, _ in past[1:k]] + [1.0]
        differences = [(d - past[0][1]) / r for (_, d), r in zip(past[1:k], ratios, strict=False)]
        phi = math.expm1(-h) / -h - 1
        factorial = 1
        right = []
        for n in range(1, k + 1):
            right.append(phi * factorial / b)
            factorial *= n + 1
            phi = phi / -h - 1 / factorial
        system = np.vander(ratios, k, increasing=True).T
        start = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * past[0][1]
        rho = [0.5] if k == 2 else np.linalg.solve(system[:-1, :-1], right[:-1])
        x = start - alpha[i + 1] * b * sum(
            (r * d for r, d in zip(rho, differences, strict=True)), torch.zeros(())
        )
        if i < case.steps - 1:
            new = case.data(i + 1, x)
            rho = [0.5] if k == 1 else np.linalg.solve(system, right)
            terms = zip(rho, [*differences, new - past[0][1]], strict=True)
            x = start - alpha[i + 1] * b * sum(r * d for r, d in terms)
            past = [(i + 1, new), *past][:order]
    return x


@DTYPES
@pytest.mark.parametrize("lower_final", [False, True])
@pytest.mark.parametrize("form", ["bh1", "bh2"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_unipc(k, form, lower_final, dtype):
    case = Case(VPSDE(), dtype=dtype)
    agree(case.ours(UniPC(k, form, lower_final=lower_final)), unipc(case, k, form, lower_final))


def tab(case, k):
    """Zhang and Chen 2023, equation 15: the polynomial in t through the last noise predictions,
    against d(sigma / alpha).
    """
    x = case.x
    past = []
    t = case.sde.time(torch.tensor(case.l)).tolist()
    alpha = [float(case.sde.alpha(v)) for v in t]

    def density(l, node, others):
        return -lagrange(float(case.sde.time(l)), node, others) * math.exp(-l)

    for i in range(case.steps):
        past = [case.noise(i, x), *past][:k]
        y = x / alpha[i]
        for j, eps in enumerate(past):
            others = [t[i - m] for m in range(len(past)) if m != j]
            y = (
                y
                + eps
                * integrate.quad(
                    density, *case.l[i : i + 2], (t[i - j], others), epsabs=0, epsrel=1e-13
                )[0]
            )
        x = y * alpha[i + 1]
    return x


@DTYPES
@pytest.mark.parametrize("k", [2, 3])
def test_deis(k, dtype):
    case = Case(VPSDE(), dtype=dtype)
    agree(case.ours(DEIS(k), "noise"), tab(case, k))


NAMED = {
    "ddim": euler,
    "ddpm": ancestral,
    "dpmpp_2m": lambda case: dpmpp(case, 2, "midpoint"),
    "dpmpp_3m": lambda case: dpmpp(case, 3, "midpoint"),
    "dpmpp_2m_sde": lambda case: dpmpp(case, 2, "midpoint"),
    "dpmpp_3m_sde": lambda case: dpmpp(case, 3, "heun"),
    "deis": lambda case: tab(case, 3),
    "lms": lambda case: lms(case, 4),
    "unipc": lambda case: unipc(case, 2, "bh2", True),
}


@pytest.mark.parametrize(
    ("name", "rule"), [("dpmpp_2m", DPMSolver(2)), ("dpmpp_3m", DPMSolver(3)), ("deis", DEIS(3))]
)
@pytest.mark.parametrize("steps", [14, 15])
def test_names_use_fewer_values_in_their_last_steps_where_there_are_few(name, rule, steps):
    """Below 15 steps, as diffusers' schedulers; with tests/test_diffusers.py for these."""
    settings = {"sde": "vp", "steps": steps, "grid": "log_snr", "seed": 0}
    rule = replace(rule, lower_final=steps == 14)
    method = OnClock(rule, integrand="noise" if name == "deis" else "data")
    x = sample(MIXTURE, 4, method=method, **settings)
    assert torch.equal(sample(MIXTURE, 4, method=name, **settings), x)


@DTYPES
@pytest.mark.parametrize("name", NAMED)
def test_names(name, dtype):
    """What a user gets for a name, with and without k-diffusion's last step to sigma = 0."""
    ve = VESDE()
    steps = 30
    case = Case(
        ve, steps, METHODS[name].eta, np.linspace(*span_of(MIXTURE, ve, 0.05), steps + 1), dtype
    )
    settings = {
        "sde": ve,
        "method": name,
        "steps": steps,
        "end": 0.05,
        "x_T": case.x,
        "seed": 3,
        "dtype": dtype,
    }
    expected = NAMED[name](case)
    agree(sample(MIXTURE, **settings), expected)
    agree(sample(MIXTURE, denoise=True, **settings), case.data(steps, expected))


def test_these_tests_tell_rules_apart():
    """Near relations differ by a thousand times the tolerance on this grid, and most by far
    more.
    """
    case = Case(VESDE())
    noisy = Case(VESDE(), eta=1.0)
    pairs = [
        (DPMSolver(2), DPMSolver(2, "heun")),
        (DPMSolver(3), DPMSolver(3, "heun")),
        (DPMSolver(3), AdamsBashforth(3)),
    ]
    pairs += [(UniPC(2), UniPC(2, "bh1")), (UniPC(2), AdamsMoulton(2))]
    pairs += [(DEIS(3), DEIS(3, "rho")), (DEIS(3), DEIS(3, "log_rho"))]
    for a, b in pairs:
        assert (case.ours(a) - case.ours(b)).abs().max() > 1e-7, (a, b)
        assert (noisy.ours(a) - noisy.ours(b)).abs().max() > 1e-7, (a, b)


def dpmpp_2m_sde(case, eta):
    """k-diffusion's update, written with its own eta: -h - eta h where `OnClock` has -(1 + eta^2)
    h.
    """
    x = case.x
    old = None
    t = -np.log(case.sigmas)
    for i in range(case.steps):
        denoised = case.data(i, x)
        h = t[i + 1] - t[i]
        x = (
            case.sigmas[i + 1] / case.sigmas[i] * math.exp(-eta * h) * x
            - math.expm1(-h - eta * h) * denoised
        )
        if old is not None:
            x = x - 0.5 * math.expm1(-h - eta * h) * (denoised - old) * (h / (t[i] - t[i - 1]))
        x = x + case.z[i] * case.sigmas[i + 1] * math.sqrt(-math.expm1(-2 * eta * h))
        old = denoised
    return x


@pytest.mark.parametrize("eta", [0.3, 0.5, 1.0])
def test_the_eta_of_on_clock_is_the_square_root_of_that_of_k_diffusion(eta):
    """Normals are those of the steps on either clock, so both noise levels are given the same; eta
    without a change is far off.
    """

    def clocked(own):
        method = OnClock(DPMSolver(2), eta=own, steps=case.steps, grid=Given(torch.tensor(case.l)))
        return run(method, MIXTURE, case.sde, case.x, (case.l[0], case.l[-1]), WhiteNoise(3))

    case = Case(VESDE(), eta=math.sqrt(eta))
    agree(clocked(math.sqrt(eta)), dpmpp_2m_sde(case, eta))
    assert eta == 1 or (clocked(eta) - dpmpp_2m_sde(case, eta)).abs().max() > 0.1
