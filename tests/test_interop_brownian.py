"""Our paths under torchsde's and k-diffusion's interfaces."""

import math
from itertools import pairwise

import pytest
import torch
import torchsde

from sdekit import SDE, SRID2, BrownianPath, EulerMaruyama, Milstein, WhiteNoise, solve, uniform
from sdekit.interop import BrownianTreeNoiseSampler, TorchsdeBrownian


class Diagonal(torch.nn.Module):
    noise_type = "diagonal"
    sde_type = "ito"

    def f(self, t, x):
        return torch.sin(x)

    def g(self, t, x):
        return 0.5 + 0.1 * torch.cos(x)


def test_torchsde_solves_on_our_path():
    x0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    path = BrownianPath(1)
    bm = TorchsdeBrownian(path, (3, 2), dtype=torch.float64)
    for method, solver in (("euler", EulerMaruyama()), ("milstein", Milstein()), ("srk", SRID2())):
        theirs = torchsde.sdeint(
            Diagonal(), x0, torch.tensor([0.0, 1.0]), bm=bm, dt=1 / 64, method=method
        )[-1]
        ours = solve(
            SDE(Diagonal().f, Diagonal().g), x0, uniform(0, 1, 64), solver=solver, noise=path
        ).x
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)


def test_torchsde_may_take_a_last_step_of_rounding_width():
    """dt = 0.1 in float64: its eleventh step is 1e-16 long, and W does not move in it."""
    x0 = torch.zeros(4, 2, dtype=torch.float64)
    bm = TorchsdeBrownian(BrownianPath(0), (4, 2), dtype=torch.float64)
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for method in ("euler", "srk"):
        assert torchsde.sdeint(Diagonal(), x0, ts, bm=bm, dt=0.1, method=method).isfinite().all()


def karras(n, low, high, rho=7.0):
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    return (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho


@pytest.mark.parametrize(
    ("n", "low", "high"), [(200, 0.002, 80.0), (1000, 0.002, 80.0), (200, 0.002, 700.0)]
)
def test_the_steps_of_real_schedules_have_unit_variance_down_to_the_smallest(n, low, high):
    sigmas = karras(n, low, high).float()
    x = torch.zeros(20_000, 1)
    sampler = BrownianTreeNoiseSampler(x, sigmas.min(), sigmas.max(), seed=0)
    for i in [0, n // 2, *range(n - 25, n - 1)]:
        z = sampler(sigmas[i], sigmas[i + 1])
        assert abs(z.var() - 1) < 5.6 * math.sqrt(2 / 20_000)  # 2e-8 two-sided, 27 of them
    assert not sampler(sigmas[-1], 0.0).any(), "below sigma_min there is no step"
    assert (
        BrownianTreeNoiseSampler(x, 1.0, 1.0, seed=[2**64 - 1] * 20_000)(1.0, 0.0).shape == x.shape
    )


def test_a_step_that_the_path_does_not_resolve_is_refused():
    x = torch.zeros(4, 2)
    sampler = BrownianTreeNoiseSampler(x, 0.0, 80.0, seed=0)
    with pytest.raises(ValueError, match=r"levels 3e-05 and 1e-05 .*: give sigma_min > 0"):
        sampler(3e-5, 1e-5)
    assert not sampler(1.0, 1.0).any()
    assert not sampler(90.0, 80.0).any()
    assert BrownianTreeNoiseSampler(x, 1e-5, 80.0, seed=0)(3e-5, 1e-5).all()


def test_the_sign_is_that_of_the_path_read_in_the_order_of_the_call():
    x = torch.zeros(5, 1, dtype=torch.float64)
    sampler = BrownianTreeNoiseSampler(x, 1.0, 2.0, seed=3)
    (w,) = sampler.path.increments([2.0, 1.0], x, (1,))
    torch.testing.assert_close(sampler(2.0, 1.0), w.w)


def test_w_and_u_are_those_of_the_path():
    bm = TorchsdeBrownian(BrownianPath(1), (4, 3), dtype=torch.float64)
    w, u = bm(0.25, 0.75, return_U=True)
    a, ua = bm(0.25, 0.5, return_U=True)
    b, ub = bm(0.5, 0.75, return_U=True)
    torch.testing.assert_close(w, a + b)
    torch.testing.assert_close(u, ua + ub + 0.25 * a)
    torch.testing.assert_close(bm(0.5), bm(0.0, 0.25) + a)
    assert torch.equal(bm(0.5, 0.5), torch.zeros(4, 3, dtype=torch.float64))
    assert bm.to(torch.float32)(0.0, 1.0).dtype == torch.float32
    with pytest.raises(TypeError, match=r"WhiteNoise is not one path.*use BrownianPath"):
        TorchsdeBrownian(WhiteNoise(0), (4, 3))
    with pytest.raises(ValueError, match="return_A"):
        bm(0.0, 1.0, return_A=True)
    with pytest.raises(ValueError, match="ta <= tb"):
        bm(1.0, 0.0)


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 2)], ids=str)
def test_k_diffusion_noise_is_the_same_for_any_batch_and_number_of_steps(shape):
    x = torch.zeros(shape)
    whole = BrownianTreeNoiseSampler(x, 0.03, 14.6, seed=[5, 6, 7, 8])
    alone = BrownianTreeNoiseSampler(x[2:3], torch.tensor(0.03), torch.tensor(14.6), seed=7)
    sigmas = torch.tensor([14.6, 9.0, 4.0, 1.0, 0.03])
    for a, b in pairwise(sigmas):
        assert torch.equal(whole(a, b)[2:3], alone(a, b))
    # Twice the steps: increments add up to those of the long step.
    long = alone(14.6, 4.0)
    first = alone(14.6, 9.0)
    second = alone(9.0, 4.0)
    torch.testing.assert_close(
        math.sqrt(10.6) * long, math.sqrt(5.6) * first + math.sqrt(5.0) * second, rtol=0, atol=1e-5
    )


def test_k_diffusion_noise_is_standard_normal_and_a_rounding_beyond_the_range_is_forgiven():
    x = torch.zeros(200_000, 1)
    sampler = BrownianTreeNoiseSampler(x, 0.1, 10.0, seed=1, transform=lambda s: s.log(), cpu=True)
    z = sampler(torch.tensor(10.0), torch.tensor(0.5))
    # 5.3 standard errors: two-sided 1e-7 each.
    assert abs(z.mean()) < 5.3 / math.sqrt(2e5)
    assert abs(z.var() - 1) < 5.3 * math.sqrt(2 / 2e5)
    assert torch.equal(sampler(10.0 * (1 + 1e-7), 0.5), sampler(10.0, 0.5))
    torch.manual_seed(0)
    a = BrownianTreeNoiseSampler(x, 0.1, 10.0)
    torch.manual_seed(0)
    assert torch.equal(a(1.0, 0.5), BrownianTreeNoiseSampler(x, 0.1, 10.0)(1.0, 0.5))
