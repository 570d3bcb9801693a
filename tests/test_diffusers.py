"""Samples equal to those of diffusers' own schedulers, their steps and order control, on our grids:
in float64, and in float32.

In float64 the schedulers are given wide numbers for float32, in which they compute wherever the
sample comes from.
"""

import importlib
import math

import pytest
import torch
from peers import DTYPES, MIXTURE, Case, agree

from sdekit import DEIS, AdamsBashforth, Ancestral, DPMSolver, Heun, UniPC, WhiteNoise
from sdekit_diffusion import (
    DDPM,
    METHODS,
    VESDE,
    VPSDE,
    InTime,
    Native,
    OnClock,
    linear_betas,
    sample,
)
from sdekit_diffusion._sampling.ddim import DDIMStep

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning")
]


class Wide:
    """torch for diffusers, float64 for float32."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def scheduler(monkeypatch):
    """Makes one of diffusers' schedulers that computes in a dtype, with normals of ours where it
    draws its own.
    """
    # Here, since it takes seconds, in every process that collects tests.
    pytest.importorskip("diffusers")
    before = torch.get_default_dtype()

    def make(dtype, module, name, normals=(), **config):
        source = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
        drawn = iter(normals)
        if dtype == torch.float64:
            torch.set_default_dtype(dtype)
            monkeypatch.setattr(source, "torch", Wide())
        if normals:
            monkeypatch.setattr(source, "randn_tensor", lambda *arguments, **keywords: next(drawn))
        return getattr(source, name)(**config)

    yield make
    torch.set_default_dtype(before)


@pytest.fixture
def scheduled(scheduler):
    """Runs one of those whose grid is sigma / alpha on a case."""

    def run(case, module, name, **config):
        made = scheduler(case.dtype, module, name, prediction_type="epsilon", **config)
        made.set_timesteps(case.steps)
        made.sigmas = torch.tensor(case.sigmas, dtype=case.dtype)
        made.set_begin_index(0)
        x = case.x
        # They ask for this call; x is as our model wants it.
        made.scale_model_input(x, made.timesteps[0])
        for i, t in enumerate(made.timesteps):
            given = {"variance_noise": case.z[i]} if case.eta and "normals" not in config else {}
            x = made.step(case.noise(i, x), t, x, **given).prev_sample
        return x

    return run


@DTYPES
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize(("steps", "lower_final"), [(20, False), (9, True)])
def test_dpm_solver(scheduled, order, form, steps, lower_final, dtype):
    case = Case(VPSDE(), steps, dtype=dtype)
    options = {
        "solver_order": order,
        "solver_type": form,
        "lower_order_final": lower_final,
        "final_sigmas_type": "sigma_min",
    }
    x = scheduled(case, "dpmsolver_multistep", "DPMSolverMultistepScheduler", **options)
    agree(case.ours(DPMSolver(order, form, lower_final=lower_final)), x)


@DTYPES
@pytest.mark.parametrize(("order", "form"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")])
def test_sde_dpm_solver(scheduled, order, form, dtype):
    case = Case(VPSDE(), eta=1.0, dtype=dtype)
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": order, "solver_type": form}
    options |= {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    x = scheduled(case, "dpmsolver_multistep", "DPMSolverMultistepScheduler", **options)
    agree(case.ours(DPMSolver(order, form)), x)


class Mistaken(DPMSolver):
    """diffusers' SDE form of order 3: -1/2 in its last weight where the paper's algebra gives
    +1/2.
    """

    def rule(self, panels):
        moments = panels.moments()
        if panels.k == 2:
            moments[:, 1] = moments[:, 0] / 2
        moments[:, 2:] = moments[:, 2:] / 2 - 1
        return panels.weights(moments)


def test_sde_dpm_solver_of_order_3_is_reproduced_with_its_mistake_only(scheduled):
    case = Case(VPSDE(), eta=1.0)
    options = {
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 3,
        "final_sigmas_type": "sigma_min",
    }
    try:
        x = scheduled(
            case,
            "dpmsolver_multistep",
            "DPMSolverMultistepScheduler",
            lower_order_final=False,
            **options,
        )
    except UnboundLocalError:
        pytest.skip("this version of diffusers has no SDE form of order 3")
    if (case.ours(DPMSolver(3)) - x).abs().max() > 1e-10:  # else they have corrected it
        agree(case.ours(Mistaken(3)), x)


@DTYPES
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["bh1", "bh2"])
@pytest.mark.parametrize("lower_final", [False, True])
def test_unipc(scheduled, order, form, lower_final, dtype):
    case = Case(VPSDE(), dtype=dtype)
    options = {
        "solver_order": order,
        "solver_type": form,
        "lower_order_final": lower_final,
        "final_sigmas_type": "sigma_min",
    }
    x = scheduled(case, "unipc_multistep", "UniPCMultistepScheduler", **options)
    agree(case.ours(UniPC(order, form, lower_final=lower_final)), x)


@DTYPES
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("steps", "lower_final"), [(20, False), (9, True)])
def test_deis(scheduled, order, steps, lower_final, dtype):
    """Its weights of order three cancel in float32, which costs it 1e-4: there ours are compared
    with its own in float64.
    """
    case = Case(VPSDE(), steps, dtype=dtype)
    options = {"solver_order": order, "lower_order_final": lower_final}
    x = scheduled(
        Case(VPSDE(), steps) if order == 3 else case,
        "deis_multistep",
        "DEISMultistepScheduler",
        **options,
    )
    agree(case.ours(DEIS(order, "log_rho", lower_final=lower_final), "noise"), x.to(dtype))


@DTYPES
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(scheduler, eta, dtype):
    """Any 21 values of alpha^2 in the place of its table of a thousand."""
    case = Case(VPSDE(), eta=eta, dtype=dtype)
    made = scheduler(
        dtype,
        "ddim",
        "DDIMScheduler",
        num_train_timesteps=case.steps,
        clip_sample=False,
        steps_offset=0,
    )
    made.set_timesteps(case.steps)
    squares = (1 / (1 + torch.tensor(case.sigmas) ** 2)).to(dtype)
    made.alphas_cumprod = squares[:-1].flip(0)
    made.final_alpha_cumprod = squares[-1]
    x = case.x
    for i, t in enumerate(made.timesteps):
        x = made.step(
            case.noise(i, x), t, x, eta=eta, variance_noise=case.z[i] if eta else None
        ).prev_sample
    agree(case.ours(DDIMStep(eta)), x)
    if not eta:
        agree(case.ours(METHODS["ddim"].solver), x)


@DTYPES
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_ddpm(scheduler, large, dtype):
    """Its own betas, at its own steps, down to the first: the step to the data adds no noise
    there.
    """
    n = 20
    betas = linear_betas(20, 1e-3, 0.4)
    sde = DDPM(betas)
    x = x_T = sde.prior((5, 2), seed=1, dtype=dtype)
    normals = [step.w for step in WhiteNoise(3).increments([float(i) for i in range(n)], x, (2,))]
    kind = "fixed_large" if large else "fixed_small"
    made = scheduler(
        dtype,
        "ddpm",
        "DDPMScheduler",
        normals,
        num_train_timesteps=n,
        trained_betas=betas,
        clip_sample=False,
        variance_type=kind,
    )
    made.set_timesteps(n)
    for t in made.timesteps[:-1]:
        at = (int(t) + 1) / n
        x = made.step(-sde.sigma(at) * MIXTURE.score(at, x, sde), t, x).prev_sample
    end = math.exp(-sde.log_snr(1 / n)) / MIXTURE.data_std
    settings = {"sde": sde, "x_T": x_T, "seed": 3, "steps": n - 1, "dtype": dtype, "end": end}
    same = [InTime(Ancestral(large))]
    same += [] if large else [OnClock(AdamsBashforth(1), 1.0, grid=Native())]
    for method in same:
        ours = sample(MIXTURE, method=method, save="all", return_solution=True, **settings)
        agree(ours.xs[-1], x)


@DTYPES
def test_euler(scheduled, dtype):
    case = Case(VESDE(), dtype=dtype)
    agree(case.ours(AdamsBashforth(1)), scheduled(case, "euler_discrete", "EulerDiscreteScheduler"))


@DTYPES
def test_euler_ancestral(scheduled, dtype):
    case = Case(VESDE(), eta=1.0, dtype=dtype)
    x = scheduled(
        case, "euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", normals=case.z
    )
    agree(case.ours(DDIMStep(1.0)), x)
    agree(case.ours(METHODS["ddpm"].solver), x)


@DTYPES
def test_heun(scheduler, dtype):
    """Two calls per step; the last step, by Euler to sigma = 0, is not made."""
    case = Case(VESDE(), dtype=dtype)
    made = scheduler(dtype, "heun_discrete", "HeunDiscreteScheduler")
    made.set_timesteps(case.steps + 1)
    sigmas = torch.tensor(case.sigmas, dtype=dtype)
    made.sigmas = torch.cat(
        [sigmas[:1], sigmas[1:].repeat_interleave(2), torch.zeros(1, dtype=dtype)]
    )
    made.set_begin_index(0)
    x = case.x
    for i, t in enumerate(made.timesteps[:-1]):
        x = made.step(case.noise((i + 1) // 2, x), t, x).prev_sample
    agree(case.ours(Heun(), "noise"), x)
