r"""
A neural SDE, fitted to paths
=============================

Networks are the drift and the diffusion of a stochastic equation, fitted to paths of
:math:`\mathrm{d}x = (x - x^3)\,\mathrm{d}t + (0.3 + 0.4 / (1 + x^2))\,\mathrm{d}W` at times 0.3
apart. Two solutions begin at each given value; the loss is the energy score, the mean of their
distances from the next given value less half the distance between them, and its gradient passes
through the solve. Look for learned coefficients on the exact ones where there are many paths, and
for the same two groups at the end.
"""

import matplotlib.pyplot as plt
import sdekit
import torch
from torch import nn


def drift(t, x):
    return x - x**3


def diffusion(t, x):
    return 0.3 + 0.4 / (1 + x**2)


grid = sdekit.uniform(0.0, 3.0, 30)
solver = sdekit.EulerMaruyama()
settings = {"solver": solver, "save": "all"}
start = 0.5 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
given = sdekit.SDE(drift, diffusion, "diagonal")
data = sdekit.solve(given, start, grid, **settings, noise=sdekit.WhiteNoise(0)).xs[..., 0]


def energy_score(a, b, y):
    """E |a - y| - E |a - b| / 2 for independent samples a and b: least for the law of y."""
    return 0.5 * ((a - y).abs() + (b - y).abs() - (a - b).abs()).mean()


torch.manual_seed(0)
f = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
g = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1), nn.Softplus())
model = sdekit.SDE(lambda t, x: f(x), lambda t, x: g(x), "diagonal")
optimiser = torch.optim.Adam([*f.parameters(), *g.parameters()], lr=2e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
for step in range(300):
    time = torch.randint(0, 10, (256,)) * 3
    path = torch.randint(0, 2000, (256,))
    now = data[time, path].repeat(2)[:, None]
    after = data[time + 3, path]
    noise = sdekit.WhiteNoise(step + 1)
    first, second = sdekit.solve(model, now, grid[:4], solver=solver, noise=noise).x.chunk(2)
    loss = energy_score(first[:, 0], second[:, 0], after)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
with torch.no_grad():
    learned = sdekit.solve(model, start, grid, **settings, noise=sdekit.WhiteNoise(0)).xs[..., 0]
    x = torch.linspace(-1.5, 1.5, 100)[:, None]
    pairs = [(drift(0, x), f(x), "drift"), (diffusion(0, x), g(x), "diffusion")]

fig, axes = plt.subplots(1, 3, figsize=(9, 3.1))
axes[0].plot(grid, learned[:, :12], color="C1", lw=0.7)
axes[0].set(xlabel="time", ylabel="x", title="learned paths")
bins = torch.linspace(-2, 2, 41).tolist()
axes[1].hist(data[-1].numpy(), bins, density=True, color="0.8", label="data")
axes[1].hist(learned[-1].numpy(), bins, density=True, histtype="step", color="C1", label="learned")
axes[1].set(xlabel="x", ylabel="density", title="at t = 3")
axes[1].legend()
for k, (exact, learned, name) in enumerate(pairs):
    axes[2].plot(x, exact, color="0.6", lw=3, label="exact" if k == 0 else None)
    axes[2].plot(x, learned, color=f"C{k + 1}", label=f"{name}, learned")
axes[2].set(xlabel="x", title="coefficients")
axes[2].legend()
