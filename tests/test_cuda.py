"""On a GPU, where there is one: what the CPU gives, without reading the host on the way."""

import warnings

import pytest
import torch
from physical import on_clock

from sdekit import BrownianPath, EulerMaruyama, WhiteNoise, normal, solve, uniform
from sdekit_diffusion import (
    METHODS as NAMED,
)
from sdekit_diffusion import (
    VPSDE,
    AdaptiveFlow,
    AdaptiveSDE,
    GaussianMixture,
    Recipe,
    ScoreModel,
    fit,
    log_likelihood,
    nets,
    sample,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

ADAPTIVE = (AdaptiveFlow, AdaptiveSDE)
MIXTURE = [0.3, 0.7], [[-1.0, 0.2], [1.0, 0.5]], [0.02, 0.05]
METHODS = ["default", "sde", "ddim", "ddpm", "euler_maruyama", "heun", "ode", "adaptive_sde"]


def mixture(device):
    weights, means, variances = (torch.tensor(part, device=device) for part in MIXTURE)
    return GaussianMixture(weights, means, variances)


def test_noise_is_that_of_the_cpu():
    index = torch.arange(100)
    close = normal(0, index.cuda(), (3, 4)).cpu() - normal(0, index, (3, 4))
    assert close.abs().max() < 1e-6
    for source in (WhiteNoise(0), BrownianPath(0, (0.0, 1.0))):
        here, there = (
            list(source.increments([0.0, 0.3, 1.0], x, None))
            for x in (torch.zeros(5, 2), torch.zeros(5, 2).cuda())
        )
        for a, b in zip(here, there, strict=True):
            torch.testing.assert_close(b.w.cpu(), a.w, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("sde", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("method", METHODS)
def test_samples_are_those_of_the_cpu(method, sde):
    steps = None if method in ("ode", "adaptive_sde") else 50
    here, there = (
        sample(mixture(device), 64, sde=sde, method=method, steps=steps, seed=0)
        for device in ("cpu", "cuda")
    )
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-3)


def test_likelihoods_are_those_of_the_cpu():
    x = mixture("cpu").sample(32, seed=0)
    here, there = (
        log_likelihood(mixture(device), x.to(device), sde="vp").value.cpu()
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there, here, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("eta", "integrand"), [(0.0, "data"), (0.0, "velocity"), (1.0, "data")])
def test_fixed_grids_do_not_read_the_host(eta, integrand):
    """torch raises where the host would wait for the GPU; the look at whether the state is finite
    is the last step's.
    """
    model = mixture("cuda")
    x = torch.randn(64, 2, device="cuda")
    problem = on_clock(model, VPSDE(), eta, integrand)
    ts = problem.time(uniform(-2.0, 3.0, 100))
    solve(problem, x, ts, solver=EulerMaruyama(), noise=WhiteNoise(0))  # what is set up once
    reached = []

    def watch(point):
        torch.cuda.set_sync_debug_mode("error" if 0 < point.step < 99 else "default")
        reached.append(point.step)

    try:
        solve(problem, x, ts, solver=EulerMaruyama(), noise=WhiteNoise(0), callback=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reached[-1] == 100


@pytest.mark.parametrize(
    "method", [name for name, method in NAMED.items() if not isinstance(method, ADAPTIVE)]
)
def test_no_method_waits_once_a_step(method):
    """torch warns of each synchronising call: as many at two numbers of steps."""
    net = torch.nn.Conv2d(3, 3, 1).cuda()
    model = ScoreModel(lambda x, t: 0.1 * net(x), "vp", "noise", shape=(3, 32, 32))
    first = {"ncsn": 2, "ncsnv2": 4, "default": 28, "sde": 28}.get(method, 24)

    def waits(steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                sample(model, 24, method=method, steps=steps, seed=0, device="cuda")
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    waits(first)  # what is set up once
    assert waits(2 * first) <= waits(first) <= 8


@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16"}, {"compile": True}], ids=str)
def test_training(settings):
    losses = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = nets.UNet(channels=1, width=8)
        model = ScoreModel(net, "vp", "velocity", shape=(1, 8, 8), conditioning="log_snr").to(
            device
        )
        recipe = Recipe(steps=20, batch_size=32, warmup=5, **(settings if device == "cuda" else {}))
        data = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        losses[device] = torch.stack(
            [record.loss for record in fit(model, data, recipe, progress=False)]
        )
        assert sample(model, 2, steps=10).device.type == device
    assert losses["cuda"].device.type == "cuda"
    torch.testing.assert_close(losses["cuda"].cpu(), losses["cpu"], rtol=0.05, atol=0)
