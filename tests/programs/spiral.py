"""A program written for torchdiffeq: a neural ordinary equation that learns a spiral."""

import torch
from torch import nn
from torchdiffeq import odeint


class Spiral(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]))

    def forward(self, t, y):
        return y**3 @ self.matrix


class Net(nn.Module):
    def __init__(self, hidden=24):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        for layer in self.net[::2]:
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, t, y):
        return self.net(y**3)


def data(times=200, dtype=torch.float32):
    """The spiral at equal times."""
    t = torch.linspace(0.0, 5.0, times, dtype=dtype)
    with torch.no_grad():
        return t, odeint(
            Spiral().to(dtype), torch.tensor([[2.0, 0.0]], dtype=dtype), t, method="dopri5"
        )


def batch(t, y, size=16, length=8):
    """Pieces of it: where they begin, their times, and where they go."""
    start = torch.randperm(len(t) - length)[:size]
    return y[start], t[:length], torch.stack([y[start + i] for i in range(length)])


def loss(func, y0, t, target):
    return (odeint(func, y0, t) - target).abs().mean()


def train(iterations=40, dtype=torch.float32):
    """The trained network and the loss at each iteration."""
    torch.manual_seed(0)
    (t, y) = data(dtype=dtype)
    func = Net().to(dtype)
    optimizer = torch.optim.RMSprop(func.parameters(), lr=3e-3)
    losses = []
    for _ in range(iterations):
        optimizer.zero_grad()
        value = loss(func, *batch(t, y))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return func, losses
