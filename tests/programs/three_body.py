"""A program written for torchdiffeq: three equal masses on the figure eight of Chenciner and
Montgomery (2000).
"""

import torch
from torchdiffeq import odeint

PERIOD = 6.3259139829


def start(dtype=torch.float64):
    """Positions and velocities, `(3, 2)` each (Simo's digits)."""
    x = (0.97000436, -0.24308753)
    v = (-0.93240737, -0.86473146)
    half = (-v[0] / 2, -v[1] / 2)
    positions = (x, (-x[0], -x[1]), (0.0, 0.0))
    velocities = (half, half, v)
    return torch.tensor(positions, dtype=dtype), torch.tensor(velocities, dtype=dtype)


def attraction(t, state):
    x, v = state
    apart = x[None] - x[:, None]
    cubed = (apart.square().sum(-1, keepdim=True) + torch.eye(3, dtype=x.dtype)[..., None]) ** 1.5
    return v, (apart / cubed).sum(1)


def energy(x, v):
    """Of states `(*times, 3, 2)`."""
    kinetic = 0.5 * v.square().sum((-1, -2))
    pairs = ((0, 1), (0, 2), (1, 2))
    return kinetic - sum(1 / (x[..., i, :] - x[..., j, :]).norm(dim=-1) for i, j in pairs)


def orbit(func=attraction, periods=1.0, times=40, **arguments):
    """Times, positions and velocities along the orbit."""
    t = torch.linspace(0.0, periods * PERIOD, times, dtype=torch.float64)
    return t, *odeint(func, start(), t, **arguments)
