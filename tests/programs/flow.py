"""A program written for torchdiffeq: a continuous normalizing flow in two dimensions, with the
exact trace.
"""

import math

import torch
from torch import nn
from torchdiffeq import odeint


class Flow(nn.Module):
    """dz = f(t, z) dt, and the log-density along it falls by the divergence of f."""

    def __init__(self, hidden=16):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 2),
        )

    def velocity(self, t, z):
        return self.net(torch.cat([z, t.expand(len(z), 1)], dim=1))

    def forward(self, t, states):
        z = states[0]
        with torch.enable_grad():
            z.requires_grad_(True)
            dz = self.velocity(t, z)
            rows = [
                torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)
            ]
        return dz, -torch.stack(rows).sum(0).unsqueeze(1)


def log_density(func, x, **arguments):
    """Of data x, `(n, 2)`: back from time 1 to the normal distribution at time 0."""
    t = torch.tensor([1.0, 0.0]).to(x)
    z, change = (
        part[-1] for part in odeint(func, (x, torch.zeros(len(x), 1).to(x)), t, **arguments)
    )
    return -0.5 * z.square().sum(1) - math.log(2 * math.pi) - change[:, 0]


def data(n, dtype=torch.float32):
    """Two moons, roughly."""
    angle = math.pi * torch.rand(n)
    side = torch.arange(n) % 2
    points = torch.stack(
        [torch.cos(angle) - 0.5 + side, torch.sin(angle) * (1 - 2 * side) + 0.3 * side], dim=1
    )
    return (points + 0.1 * torch.randn(n, 2)).to(dtype)


def train(iterations=12, dtype=torch.float32):
    """The trained flow and the negative log-likelihood at each iteration."""
    torch.manual_seed(0)
    func = Flow().to(dtype)
    optimizer = torch.optim.Adam(func.parameters(), lr=0.02)
    losses = []
    for _ in range(iterations):
        optimizer.zero_grad()
        value = -log_density(func, data(128, dtype), rtol=1e-4, atol=1e-5).mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return func, losses
