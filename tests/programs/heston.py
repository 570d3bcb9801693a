"""A program written for torchsde: the price of a call under Heston's model, by Monte Carlo with
full truncation.
"""

import math

import torch
from torchsde import sdeint


class Heston(torch.nn.Module):
    """State (log S, v), driven by two correlated Brownian motions."""

    noise_type = "general"
    sde_type = "ito"

    def __init__(self, rate=0.02, kappa=2.0, theta=0.06, xi=0.3, rho=-0.6):
        super().__init__()
        self.rate = rate
        self.kappa = kappa
        self.theta = theta
        self.xi = xi
        self.rho = rho

    def f(self, t, y):
        v = y[:, 1].clamp(min=0)
        return torch.stack([self.rate - v / 2, self.kappa * (self.theta - v)], dim=1)

    def g(self, t, y):
        root = y[:, 1].clamp(min=0).sqrt()
        zero = torch.zeros_like(root)
        first = torch.stack([root, zero], dim=1)
        second = torch.stack(
            [self.xi * self.rho * root, self.xi * (1 - self.rho**2) ** 0.5 * root], dim=1
        )
        return torch.stack([first, second], dim=1)


def simulate(sde, paths, spot, v0, expiry, bm=None, dtype=torch.float32):
    y0 = torch.tensor([spot, v0], dtype=dtype)
    y0[0] = y0[0].log()
    return sdeint(
        sde, y0.expand(paths, 2), torch.tensor([0.0, expiry], dtype=dtype), bm=bm, dt=1 / 64
    )


def price(sde, strike, spot=100.0, v0=0.05, expiry=1.0, paths=20_000):
    """The price and its standard error."""
    torch.manual_seed(1)
    with torch.no_grad():
        final = simulate(sde, paths, spot, v0, expiry)[-1, :, 0].exp()
    payoff = math.exp(-sde.rate * expiry) * (final - strike).clamp(min=0)
    return payoff.mean().item(), (payoff.std() / paths**0.5).item()
