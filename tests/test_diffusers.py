"""Samples equal to those of diffusers' own schedulers, their steps and order control, on grids in float64."""

import importlib

import pytest
import torch
from peers import Case, agree

from sdekit import DEIS, DPMSolver, UniPC
from sdekit_diffusion import METHODS, VPSDE

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]


class Wide:
    """torch for diffusers, whose schedulers compute in float32 wherever the sample comes from."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def scheduled(monkeypatch):
    """Runs one of diffusers' schedulers on a case: its own steps and order control, our grid in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)

    def run(case, module, name, *, x0=False, **config):
        source = importlib.import_module(f"diffusers.schedulers.{module}")
        monkeypatch.setattr(source, "torch", Wide())
        scheduler = getattr(source, name)(prediction_type="sample" if x0 else "epsilon", **config)
        scheduler.set_timesteps(case.steps)
        scheduler.sigmas = torch.tensor(case.sigmas)
        scheduler.set_begin_index(0)
        x = case.x
        for i, t in enumerate(scheduler.timesteps):
            given = {"variance_noise": case.z[i]} if case.eta else {}
            x = scheduler.step((case.data if x0 else case.noise)(i, x), t, x, **given).prev_sample
        return x

    yield run
    torch.set_default_dtype(before)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize(("steps", "lower_final"), [(20, False), (9, True)])
def test_dpm_solver(scheduled, order, form, steps, lower_final):
    case = Case(VPSDE(), steps)
    options = {"solver_order": order, "solver_type": form, "lower_order_final": lower_final, "final_sigmas_type": "sigma_min"}
    x = scheduled(case, "scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler", **options)
    agree(case.ours(DPMSolver(order, form, lower_final=lower_final)), x)


@pytest.mark.parametrize(("order", "form"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")])
def test_sde_dpm_solver(scheduled, order, form):
    case = Case(VPSDE(), eta=1.0)
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": order, "solver_type": form}
    options |= {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    x = scheduled(case, "scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler", **options)
    agree(case.ours(DPMSolver(order, form)), x)


class Mistaken(DPMSolver):
    """diffusers' SDE form of order 3: -1/2 in its last weight where the paper's algebra gives +1/2."""

    def rule(self, panels):
        moments = panels.moments()
        if panels.k == 2:
            moments[:, 1] = moments[:, 0] / 2
        moments[:, 2:] = moments[:, 2:] / 2 - 1
        return panels.weights(moments)


def test_sde_dpm_solver_of_order_3_is_reproduced_with_its_mistake_only(scheduled):
    case = Case(VPSDE(), eta=1.0)
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "final_sigmas_type": "sigma_min"}
    try:
        x = scheduled(case, "scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler", lower_order_final=False, **options)
    except UnboundLocalError:
        pytest.skip("this version of diffusers has no SDE form of order 3")
    if (case.ours(DPMSolver(3)) - x).abs().max() > 1e-10:  # else they have corrected it
        agree(case.ours(Mistaken(3)), x)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["bh1", "bh2"])
@pytest.mark.parametrize("lower_final", [False, True])
def test_unipc(scheduled, order, form, lower_final):
    case = Case(VPSDE())
    options = {"solver_order": order, "solver_type": form, "lower_order_final": lower_final, "final_sigmas_type": "sigma_min"}
    x = scheduled(case, "scheduling_unipc_multistep", "UniPCMultistepScheduler", **options)
    agree(case.ours(UniPC(order, form, lower_final=lower_final)), x)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("steps", "lower_final"), [(20, False), (9, True)])
def test_deis(scheduled, order, steps, lower_final):
    case = Case(VPSDE(), steps)
    options = {"solver_order": order, "lower_order_final": lower_final}
    x = scheduled(case, "scheduling_deis_multistep", "DEISMultistepScheduler", **options)
    agree(case.ours(DEIS(order, "log_rho", lower_final=lower_final), "noise"), x)


def test_ddim():
    """eta = 0: any 21 values of alpha^2 in the place of its table of a thousand."""
    source = importlib.import_module("diffusers.schedulers.scheduling_ddim")
    case = Case(VPSDE())
    scheduler = source.DDIMScheduler(num_train_timesteps=case.steps, clip_sample=False, steps_offset=0)
    scheduler.set_timesteps(case.steps)
    squares = 1 / (1 + torch.tensor(case.sigmas) ** 2)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = squares[:-1].flip(0), squares[-1]
    x = case.x
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(case.noise(i, x), t, x, eta=0.0).prev_sample
    agree(case.ours(METHODS["ddim"].solver), x)
