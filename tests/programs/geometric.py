"""A program written for torchsde: drift and volatility of a geometric Brownian motion, learned from
moments by gradient.
"""

import torch
from torchsde import sdeint


class GeometricBrownianMotion(torch.nn.Module):
    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self):
        super().__init__()
        self.mu = torch.nn.Parameter(torch.tensor(0.0))
        self.log_sigma = torch.nn.Parameter(torch.tensor(-1.0))

    def f(self, t, y):
        return self.mu * y

    def g(self, t, y):
        return self.log_sigma.exp() * y


def simulate(sde, paths=512, bm=None, method="euler"):
    y0 = torch.ones(paths, 1)
    ts = torch.linspace(0, 1, 5)
    return sdeint(sde, y0, ts, bm=bm, method=method, dt=1 / 32)


def fit(mean, std, iterations=40, method="euler"):
    """mu and sigma under which log y(1) has this mean and standard deviation: mu - sigma^2 / 2 and
    sigma.
    """
    torch.manual_seed(0)
    sde = GeometricBrownianMotion()
    optimizer = torch.optim.Adam(sde.parameters(), lr=0.1)
    for _ in range(iterations):
        optimizer.zero_grad()
        final = simulate(sde, method=method)[-1].log()
        loss = (final.mean() - mean) ** 2 + (final.std() - std) ** 2
        loss.backward()
        optimizer.step()
    return sde.mu.item(), sde.log_sigma.exp().item()
